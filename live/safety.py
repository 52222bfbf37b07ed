"""Safety: what is measured → its limit → what is done → what clears it, as one table; operators' commands.

Pure: the core tells it facts, and asks for the mode in force before it opens anything. What a limit did and
what an operator ordered outlive a restart (`SafetyState`), so that no crash forgets a loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final, Literal, NamedTuple

import msgspec

from live.messages import Command, Effect, Say
from market.settings import Risk
from market.units import DAY_NS, SECOND_NS


class Mode(IntEnum):
    """What may be sent for a symbol, from free to strict; the strictest in force counts."""

    NORMAL = 0
    PASSIVE = 1  #: no crossing but to reduce
    PAUSE = 2  #: nothing is opened or enlarged; exits go on
    REDUCE = 3  #: the same, for as long as a loss or the margin asks for it
    FLATTEN = 4  #: the position is closed
    HALT = 5  #: everything is cancelled; only reducing orders and stops are sent


class Limit(NamedTuple):
    """A row of the table. ``setting`` of `[risk]` holds the limit; empty for a fact that is 0 or 1.

    ``clears``: "eased" once the fact is within ``ease`` × the limit; "fact" then too, or by `l2 resume`;
    "day" at the next UTC day, or by `l2 resume`; "resume" by that alone. ``below``: a fact under its limit is the bad one. ``again``: a
    resumed loss may grow by its limit once more. ``shrinks``: the position is reduced in steps for as long as
    it is in force (`live.exposure`).
    """

    name: str
    fact: str
    setting: str
    action: Mode
    clears: Literal["eased", "fact", "day", "resume"] = "eased"
    ease: float = 0.8
    below: bool = False
    again: bool = False
    shrinks: bool = False

    def bound(self, limits: Risk) -> float:
        return float(getattr(limits, self.setting)) if self.setting else 1.0


#: Facts: ``stale_s`` since the last frame, ``behind_s`` of its venue time behind the venue's clock when it was
#: received, ``gap_s`` since the book was last valid, ``late_s`` from a
#: second's end to its decision, ``clock_skew_s`` of the venue's clock against ours, ``rate_used`` of the
#: request limit, ``rejects`` in a minute, losses in quote currency, the account's maintenance
#: ``margin_rate``, ``liquidation_bps`` from the mid to the liquidation price, ``liquidation_apart_bps`` between
#: the venue's and ours, and flags.
LIMITS: Final = (
    Limit("stale data", "stale_s", "stale_s", Mode.PAUSE),
    Limit("long stale data", "stale_s", "gap_flatten_s", Mode.FLATTEN, ease=0.1),
    Limit("venue behind", "behind_s", "stale_s", Mode.PAUSE),
    Limit("gap", "gap_s", "gap_s", Mode.PAUSE),
    Limit("long gap", "gap_s", "gap_flatten_s", Mode.FLATTEN, ease=0.1),
    Limit("clock skew", "clock_skew_s", "clock_skew_s", Mode.PAUSE),
    Limit("late decisions", "late_s", "late_s", Mode.PASSIVE),
    Limit("very late decisions", "late_s", "late_pause_s", Mode.PAUSE),
    Limit("rate limit nearly used", "rate_used", "rate_share", Mode.PAUSE),
    Limit("reject burst", "rejects", "rejects_per_min", Mode.PAUSE, ease=0.5),
    Limit("daily loss", "day_loss_usdt", "daily_loss_usdt", Mode.REDUCE, "day", again=True),
    Limit("drawdown", "drawdown_usdt", "drawdown_usdt", Mode.REDUCE, "resume", again=True),
    Limit("margin", "margin_rate", "margin_reduce", Mode.REDUCE, shrinks=True),
    Limit("margin nearly used", "margin_rate", "margin_flatten", Mode.FLATTEN),
    Limit(
        "liquidation",
        "liquidation_bps",
        "liquidation_bps",
        Mode.REDUCE,
        ease=1.2,
        below=True,
        shrinks=True,
    ),
    Limit(
        "liquidation close",
        "liquidation_bps",
        "liquidation_flatten_bps",
        Mode.FLATTEN,
        ease=1.5,
        below=True,
    ),
    #: The venue counts by other tiers, another balance or another rule than we do.
    Limit(
        "liquidation differs", "liquidation_apart_bps", "liquidation_apart_bps", Mode.HALT, "resume"
    ),
    Limit("decay alarm", "decay", "", Mode.PAUSE, "fact", again=True),
    Limit("disk full", "disk_full", "", Mode.REDUCE),
    #: The venue holds what the log does not explain, and the policy is to halt.
    Limit("unexplained", "unexplained", "", Mode.HALT, "resume"),
    #: The venue's transaction log of a day is not what the log has.
    Limit("statement differs", "statement", "", Mode.HALT, "resume"),
)

#: Names of limits by fact.
_BY_FACT: Final = {fact: [x for x in LIMITS if x.fact == fact] for fact in {x.fact for x in LIMITS}}
_BY_NAME: Final = {limit.name: limit for limit in LIMITS}
#: Limits after which sizes begin again (`live.ramp`): of money and of the model, not of data that come late.
CUTS: Final = frozenset(
    ("daily loss", "drawdown", "margin", "liquidation", "liquidation differs", "decay alarm",
     "unexplained")
)  # fmt: skip

#: Settings of `[risk]` whose larger value is the tighter one, and those that parts of the desk take at the start
#: alone: algorithms price by the band, so that a tighter one in the guard would deny every exit that crosses.
LARGER: Final = frozenset({"liquidation_bps", "liquidation_flatten_bps"})
SETTINGS_ALONE: Final = frozenset({"close_bps", "stop_bps", "price_band_bps", "actions_per_s"})

_MODES: Final = {"halt": Mode.HALT, "flatten": Mode.FLATTEN, "pause": Mode.PAUSE}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's order that stands until it is resumed."""

    mode: Mode
    who: str
    reason: str
    since_ns: int


class SafetyState(msgspec.Struct, kw_only=True):
    """What outlives a restart. Keys of limits are ``name/SYMBOL``, without symbol for all."""

    reached: dict[str, int] = {}  #: since when, ns
    bases: dict[str, float] = {}  #: losses that were resumed from
    facts: dict[str, float] = {}  #: last values of what was resumed or may be
    standing: dict[str, Standing] = {}  #: by symbol, empty for all
    limits: dict[str, float] = {}  #: `[risk]` as tightened
    counts: dict[str, int] = {}  #: how often each limit was reached
    rejects_ns: list[int] = []
    day: int = 0


class Safety:
    """The mode of each symbol, by facts and commands. Times are epoch ns; ``emit`` takes the lines.

    ``limits`` is `[risk]` as tightened by commands: the guard's limits as well.
    """

    def __init__(
        self,
        symbols: Iterable[str],
        risk: Risk,
        emit: Callable[[Effect], None],
        state: SafetyState | None = None,
    ) -> None:
        self._symbols = list(symbols)
        self._emit = emit
        self._state = state = copy.deepcopy(state) or SafetyState()
        # Settings may have become tighter than what was ordered.
        state.limits = {n: v for n, v in state.limits.items() if n not in SETTINGS_ALONE}
        tighter = {n: v for n, v in state.limits.items() if _is_tighter(n, v, getattr(risk, n))}
        self.limits = _replaced(risk, tighter)
        self._modes: dict[str, Mode] = {}
        self.strictest = Mode.NORMAL  #: of all symbols
        self._renew()
        self.changed = False  #: since the core put it on record
        self._seen: dict[tuple[str, str], float] = {}  #: last value by fact and symbol, to be shown

    @property
    def resumed(self) -> tuple[float, float]:
        """Losses of the day and since the peak (quote currency) that were resumed from."""
        bases = self._state.bases
        return bases.get("daily loss/", 0.0), bases.get("drawdown/", 0.0)

    def used(self) -> dict[str, float]:
        """By setting of `[risk]`, the worst value last seen of what it limits, less what was resumed from."""
        found: dict[str, float] = {}
        for limit in LIMITS:
            values = [
                value - self._state.bases.get(f"{limit.name}/{symbol}", 0.0)
                for (fact, symbol), value in self._seen.items()
                if fact == limit.fact and math.isfinite(value)
            ]
            if limit.setting and values:
                worst = min(values) if limit.below else max(values)
                found[limit.setting] = max(worst, found.get(limit.setting, worst))
        return found

    @property
    def breaches(self) -> int:
        """How often limits that cut sizes were reached."""
        return sum(n for name, n in self._state.counts.items() if name in CUTS)

    @property
    def counts(self) -> dict[str, int]:
        """How often each limit was reached, by its name."""
        return dict(self._state.counts)

    @property
    def held(self) -> list[str]:
        """What closes or halts until a person lifts it: operators' orders, and limits that wait for `l2 resume`."""
        state = self._state
        limits = [_BY_NAME[key.rpartition("/")[0]] for key in state.reached]
        ordered = [
            f"{x.mode.name.lower()} by {x.who}"
            for x in state.standing.values()
            if x.mode >= Mode.FLATTEN
        ]
        waits = [x.name for x in limits if x.action >= Mode.FLATTEN and x.clears == "resume"]
        return list(dict.fromkeys(ordered + waits))

    def mode(self, symbol: str) -> Mode:
        """The strictest mode in force for a symbol."""
        return self._modes[symbol]

    def why(self, symbol: str) -> list[str]:
        """What holds a symbol's mode, the limits' names and the operators' reasons."""
        state = self._state
        reached = [key.rpartition("/")[0] for key in state.reached if _concerns(key, symbol)]
        ordered = [state.standing[s].reason for s in ("", symbol) if s in state.standing]
        return reached + ordered

    def shrinks(self, symbol: str) -> bool:
        """Whether a limit in force asks for a smaller position, step by step."""
        return any(
            _BY_NAME[key.rpartition("/")[0]].shrinks and _concerns(key, symbol)
            for key in self._state.reached
        )

    def snapshot(self) -> SafetyState:
        """For a checkpoint."""
        return copy.deepcopy(self._state)

    # -- facts -----------------------------------------------------------------------------------

    def see(self, now_ns: int, fact: str, value: float, symbol: str = "") -> None:
        """A fact's value now, of a symbol or (empty) of all; NaN, not known, changes nothing."""
        changed, self._seen[fact, symbol] = False, value
        for limit in _BY_FACT[fact]:
            changed |= self._weigh(now_ns, limit, value, symbol)
        if changed:
            self._renew()

    def _weigh(self, now_ns: int, limit: Limit, value: float, symbol: str) -> bool:
        state, key = self._state, f"{limit.name}/{symbol}"
        lowered = value < (base := state.bases.get(key, 0.0)) > 0
        if lowered:  # what was won back is not lost once more
            base = state.bases[key] = max(0.0, value)
        bound = limit.bound(self.limits) + base
        if limit.again:
            state.facts[key] = value
        if value <= bound if limit.below else value >= bound:
            if key in state.reached:
                return lowered
            state.reached[key] = now_ns
            state.counts[limit.name] = state.counts.get(limit.name, 0) + 1
            self._say("warning", "limit reached", limit, symbol, value=value, bound=bound)
            return True
        eased = value > bound * limit.ease if limit.below else value < bound * limit.ease
        if limit.clears in ("eased", "fact") and eased and key in state.reached:
            self._clear(key, value=value, by="fact")
            return True
        return lowered

    def rejected(self, now_ns: int) -> None:
        """The venue refused a request."""
        self._state.rejects_ns.append(now_ns)
        self.see(now_ns, "rejects", float(len(self._state.rejects_ns)))

    def second(self, now_ns: int) -> None:
        """A second passed: what a minute or a UTC day clears."""
        state = self._state
        if state.rejects_ns:
            recent = [ns for ns in state.rejects_ns if ns > now_ns - 60 * SECOND_NS]
            state.rejects_ns = recent
            self.see(now_ns, "rejects", float(len(recent)))
        if state.day != now_ns // DAY_NS:
            state.day = now_ns // DAY_NS
            for key in [*state.reached, *state.bases]:
                if _BY_NAME[key.rpartition("/")[0]].clears == "day":
                    state.bases.pop(key, None)
                    if key in state.reached:
                        self._clear(key, by="new day")
            self._renew()

    # -- commands --------------------------------------------------------------------------------

    def command(self, now_ns: int, command: Command) -> None:
        """Honour halt, flatten, pause, resume and limits, and take in ``fact``: measurements from outside the
        core (``limits`` holds name → value: late_s, clock_skew_s, disk_full, decay).
        """
        state, symbol = self._state, command.symbol
        if command.command == "fact":
            for fact, value in command.limits.items():
                if fact in _BY_FACT:
                    self.see(now_ns, fact, value, symbol)
            return
        by: dict[str, object] = {"who": command.who, "reason": command.reason, "symbol": symbol}
        self._emit(Say(level="warning", event=f"command {command.command}", fields=by))
        if command.command in _MODES:
            state.standing[symbol] = Standing(
                mode=_MODES[command.command],
                who=command.who,
                reason=command.reason,
                since_ns=now_ns,
            )
        elif command.command == "resume":
            self._resume(symbol)
        elif command.command == "limits":
            self._tighten(command)
        self._renew()

    def _resume(self, symbol: str) -> None:
        """Lift what stands; of all symbols, for an empty one."""
        state = self._state
        for other in [s for s in state.standing if symbol in ("", s)]:
            del state.standing[other]
        for key in list(state.reached):
            name, _, concerned = key.rpartition("/")
            limit = _BY_NAME[name]
            if limit.clears != "eased" and symbol in ("", concerned):
                if limit.again:
                    state.bases[key] = state.facts.get(key, 0.0)
                self._clear(key, by="resume")

    def _tighten(self, command: Command) -> None:
        for name, value in command.limits.items():
            old = getattr(self.limits, name, None)
            if old is None or name in SETTINGS_ALONE or not _is_tighter(name, value, old):
                why = "limits are only tightened here; loosen them in the settings and start anew"
                fields = {"limit": name, "value": value, "present": old, "why": why}
                self._emit(Say(level="error", event="limit not changed", fields=fields))
                continue
            self._state.limits[name] = value
            self.limits = _replaced(self.limits, {name: value})
            fields = {"limit": name, "value": value, "before": old}
            self._emit(Say(level="warning", event="limit tightened", fields=fields))

    # -- what follows ----------------------------------------------------------------------------

    def _clear(self, key: str, **fields: object) -> None:
        name, _, symbol = key.rpartition("/")
        del self._state.reached[key]
        self._say("info", "limit cleared", _BY_NAME[name], symbol, **fields)

    def _say(self, level: str, event: str, limit: Limit, symbol: str, **fields: object) -> None:
        about = {"limit": limit.name, "action": limit.action.name.lower(), "symbol": symbol}
        self._emit(Say(level=level, event=event, fields=about | fields))

    def _renew(self) -> None:
        state, self.changed = self._state, True
        for symbol in self._symbols:
            modes = [
                _BY_NAME[k.rpartition("/")[0]].action for k in state.reached if _concerns(k, symbol)
            ]
            modes += [state.standing[s].mode for s in ("", symbol) if s in state.standing]
            self._modes[symbol] = max(modes, default=Mode.NORMAL)
        self.strictest = max(self._modes.values(), default=Mode.NORMAL)


def _concerns(key: str, symbol: str) -> bool:
    return key.rpartition("/")[2] in ("", symbol)


def _is_tighter(name: str, value: float, present: float) -> bool:
    return value >= present if name in LARGER else 0 < value <= present


def _replaced(limits: Risk, values: dict[str, float]) -> Risk:
    fields = {n: type(getattr(limits, n))(v) for n, v in values.items()}
    return msgspec.structs.replace(limits, **fields)
