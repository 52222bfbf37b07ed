"""What limits a position beside the order's own limits: margin, liquidation and correlated symbols.

`execution.liquidation` and `execution.leaders` compute. Here is what the venue says (`evidence`), what
`live.safety` is told of it (`see`), how a position shrinks while margin or liquidation ask for it (`reduced`),
and what other symbols' moves and positions mean for an entry (`delays`, `group`). With ``desk.margin`` off only
the distance to the liquidation price that the venue states is told.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from execution.account import Account
from execution.leaders import Leaders, LeadersState
from execution.liquidation import Headroom
from execution.margin import (
    BTC_TIERS,
    MarginError,
    MarginMode,
    Terms,
    Tier,
    liquidation_ticks,
    tiers,
)
from live.messages import (
    Evidence,
    PositionReport,
    QueryKind,
    QueryResult,
    Refused,
    TierReport,
    WalletReport,
)
from live.safety import Safety
from market.instruments import Instrument
from market.settings import Settings
from market.units import BPS, E8, MINUTE_NS, SECOND_NS

#: A position is sized for this multiple of `risk.liquidation_bps`: entered at the limit itself, the first
#: adverse tick would begin to close it.
SIZING_ROOM: Final = 2.0
#: While margin or liquidation ask for it, a position loses this share of its lots every `STEP_NS`, rounded
#: up, so that the last lot goes too. The venue's own liquidation comes in steps as well, and costs more.
STEP_SHARE: Final = 0.25
STEP_NS: Final = MINUTE_NS
#: A liquidation price that differs is asked for again, and counts when it still does after so long.
CONFIRM_NS: Final = 2 * SECOND_NS
#: Liquidation prices below this share of the mark are as good as none.
_NO_PRICE: Final = 0.01


class ExposureState(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of `Exposure`."""

    #: By symbol, when the next step is due and the lots that are left until then.
    steps: dict[str, tuple[int, int]] = {}
    leaders: LeadersState = msgspec.field(default_factory=LeadersState)


class Exposure:
    """Margin and correlated symbols of the desk's account. Times are epoch ns.

    ``headroom`` is None with ``desk.margin`` off, ``leaders`` with ``desk.leaders`` off. ``at_venue``: the venue states tiers and liquidation
    prices; a simulated venue's are ours. ``say`` takes lines (level, event, fields).
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        account: Account,
        settings: Settings,
        at_venue: bool,
        say: Callable[..., None],
    ) -> None:
        self._account, self._at_venue, self._say = account, at_venue, say
        self.limits = settings.risk
        leverage = f"{Decimal(repr(settings.live.leverage)):f}"
        mode = MarginMode(settings.live.margin_mode)
        terms = {
            symbol: Terms(tiers=BTC_TIERS, leverage=leverage, mode=mode, taker_fee=one.taker_fee)
            for symbol, one in instruments.items()
        }
        self.headroom = Headroom(account, terms) if settings.desk.margin else None
        correlated = {*instruments, *settings.market.watch}
        self.leaders = Leaders(correlated) if settings.desk.leaders else None
        self._prices: dict[str, float] = {}
        self._rate = 0.0  #: maintenance margin over the balance, at the last second
        self._see: Callable[[int, str, float, str], None] = lambda *_: None
        self._shrinks: Callable[[str], bool] = lambda symbol: False
        self._ask_again: Callable[[int, str, int], None] = lambda *_: None
        self._stated: dict[str, float] = {}  #: liquidation prices in ticks, 0 for none
        self._differs_ns: dict[str, int] = {}
        self._capped: set[str] = set()  #: by symbol and side, said
        self._steps: dict[str, tuple[int, int]] = {}

    def govern(self, safety: Safety, ask_again: Callable[[int, str, int], None]) -> None:
        """Tell ``safety`` what is measured, and obey its limits; ``ask_again`` asks for the wallet, and after a
        delay (ns) for a symbol's position."""
        self._see, self._shrinks, self._ask_again = safety.see, safety.shrinks, ask_again

    def snapshot(self) -> ExposureState:
        leaders = LeadersState() if self.leaders is None else self.leaders.state
        return ExposureState(steps=dict(self._steps), leaders=leaders)

    def restore(self, state: ExposureState) -> None:
        self._steps = dict(state.steps)
        if self.leaders is not None:
            self.leaders.state = copy.deepcopy(state.leaders)

    # -- what the venue says ---------------------------------------------------------------------

    def evidence(self, now_ns: int, told: Evidence) -> None:
        """Take what the venue says of margins, after the account took it."""
        match told:
            case PositionReport():
                self._stated[told.symbol] = told.liquidation_ticks if told.lots else 0.0
                self._compare(now_ns, told)
            case WalletReport():
                self._account.apart_e8 = told.balance_e8 - self._account.balance_e8
            case QueryResult() if told.query.kind is QueryKind.RISK_LIMITS:
                refused = any(isinstance(row, Refused) and not row.retry for row in told.reports)
                if not (told.complete or refused):
                    return  # it is asked for again
                rows = [row for row in told.reports if isinstance(row, TierReport)]
                self._take_tiers(told.query.symbol, rows, told.reason)
            case _:
                pass

    def _take_tiers(self, symbol: str, rows: Sequence[TierReport], reason: str) -> None:
        headroom = self.headroom
        if headroom is None or symbol not in headroom.terms:
            return
        if not rows:
            why = reason or "the venue states none"
            self._say("warning", "risk tiers of BTCUSDT assumed", symbol=symbol, why=why)
            return
        try:
            if reason:
                raise MarginError(reason)
            found = _tiers_of(rows)
        except MarginError as error:
            headroom.unknown.add(symbol)
            self._say(
                "error", "risk tiers do not match: nothing is opened", symbol=symbol, why=str(error)
            )
            return
        headroom.unknown.discard(symbol)
        headroom.terms[symbol] = msgspec.structs.replace(headroom.terms[symbol], tiers=found)

    def _compare(self, now_ns: int, told: PositionReport) -> None:
        """Hold the venue's liquidation price against ours for the position that it states."""
        symbol, headroom = told.symbol, self.headroom
        if headroom is None or symbol not in headroom.terms:
            return
        terms, holdings = headroom.terms[symbol], self._account.holdings
        others = [s for s, holding in holdings.items() if holding.position_lots and s != symbol]
        isolated = terms.mode is MarginMode.ISOLATED
        # Under cross margin the venue's estimate with several positions depends on marks that we do not see.
        if (
            not told.lots
            or told.lots != holdings[symbol].position_lots
            or (others and not isolated)
        ):
            self._differs_ns.pop(symbol, None)
            return
        ours = self._expected_ticks(told, terms)
        apart_bps = _apart_bps(told, ours, headroom.mark_ticks(symbol))
        if apart_bps <= self.limits.liquidation_apart_bps:
            self._differs_ns.pop(symbol, None)
        elif symbol not in self._differs_ns:
            self._differs_ns[symbol] = now_ns
            self._say(
                "warning", "the venue's liquidation price differs, asked for again",
                symbol=symbol, venue=told.liquidation_ticks, ours=round(ours, 1), bps=apart_bps,
            )  # fmt: skip
            self._ask_again(now_ns, symbol, CONFIRM_NS)
        elif now_ns - self._differs_ns[symbol] >= CONFIRM_NS:
            self._see(now_ns, "liquidation_apart_bps", apart_bps, symbol)

    def _expected_ticks(self, told: PositionReport, terms: Terms) -> float:
        assert self.headroom is not None
        holding, side = self._account.holdings[told.symbol], 1 if told.lots > 0 else -1
        per_tick = abs(told.lots) * holding.instrument.tick_size * holding.instrument.lot_size * E8
        value = per_tick * told.entry_e8 / E8 / holding.instrument.tick_size
        if terms.mode is MarginMode.ISOLATED:
            return liquidation_ticks(terms, side, per_tick, value, value / float(terms.leverage))
        # The cost basis of ours and the venue's may differ, by what the realised profits differ.
        balance = self._account.balance_e8 + self._account.apart_e8
        backing = balance + side * value - holding.cost_e8
        return liquidation_ticks(terms, side, per_tick, value, backing)

    # -- what is told to safety ------------------------------------------------------------------

    def mark(self, mids_ticks: Mapping[str, float]) -> None:
        """Take the mids at a whole second; NaN keeps the last."""
        ticks = {s: h.instrument.tick_size for s, h in self._account.holdings.items()}
        known = {s: mid * ticks[s] for s, mid in mids_ticks.items() if not math.isnan(mid)}
        self._prices |= known
        if self.headroom is not None:
            self.headroom.mark({symbol: round(mid * E8) for symbol, mid in known.items()})
            self._rate = self.headroom.rate()

    def learn(self, t_ns: int, mids: Mapping[str, float]) -> None:
        """Take mids (quote currency) that seconds without a gap closed with."""
        if self.leaders is not None:
            for symbol in self.leaders.second(t_ns, mids):
                self._say(
                    "warning", "a correlated symbol without data guards nothing", symbol=symbol
                )

    def see(self, now_ns: int, symbol: str, mid_ticks: float) -> None:
        """Tell `live.safety` the distance to liquidation; of a simulated venue the margin rate too."""
        if self.headroom is not None and not self._at_venue:
            self._see(now_ns, "margin_rate", self._rate, "")
        if not math.isnan(away_bps := self.distance_bps(symbol, mid_ticks)):
            self._see(now_ns, "liquidation_bps", away_bps, symbol)

    def distance_bps(self, symbol: str, mid_ticks: float) -> float:
        """From the mid to the nearer of the venue's liquidation price and ours; NaN where neither is counted."""
        stated, found = self._stated.get(symbol), list[float]()
        if stated is not None:
            away = abs(stated - mid_ticks) / mid_ticks * BPS if stated > 0 else math.inf
            found.append(away)
        if self.headroom is not None:
            found.append(self.headroom.distance_bps(symbol))
        return min(found, default=math.nan)

    # -- what follows for positions --------------------------------------------------------------

    def caps(self, symbol: str, side: int) -> dict[str, int]:
        """The cap ``margin``: the largest position on a side that margin and liquidation allow; none with
        ``desk.margin`` off. A cap of 0 is said once, with what to do.
        """
        if self.headroom is None:
            return {}
        least_bps = SIZING_ROOM * self.limits.liquidation_bps
        lots = self.headroom.largest_lots(symbol, side, least_bps)
        key = f"{symbol}{side:+d}"
        if lots:
            self._capped.discard(key)
        elif key not in self._capped:
            self._capped.add(key)
            self._say(
                "warning", "margin leaves no size: fund the account, or lower live.leverage",
                symbol=symbol, side=side, least_bps=least_bps, equity=self._account.backed_e8 / E8,
            )  # fmt: skip
        return {"margin": lots}

    def delays(self, symbol: str, side: int) -> bool:
        """Whether an entry waits for the next second; never with ``desk.leaders`` off."""
        return self.leaders is not None and self.leaders.delays(symbol, side)

    def group(self, symbol: str, side: int, targets: Mapping[str, int]) -> dict[str, float] | None:
        """Signed exposures of other symbols in units of this one (quote currency): of their positions or, where
        that is more on ``side``, their ``targets`` in lots; None with ``desk.leaders`` off."""
        if self.leaders is None:
            return None
        held, wanted = dict[str, float](), dict[str, float]()
        for other, holding in self._account.holdings.items():
            tick, lot = holding.instrument.tick_size, holding.instrument.lot_size
            value = lot * self._prices.get(other, float(holding.entry_ticks or 0) * tick)
            held[other] = holding.position_lots * value
            wanted[other] = targets.get(other, 0) * value
        now, then = (self.leaders.exposures(symbol, side, each) for each in (held, wanted))
        worse = max if side > 0 else min
        return {other: worse(now.get(other, 0.0), then.get(other, 0.0)) for other in now | then}

    def reduced(self, now_ns: int, symbol: str, position: int, target: int) -> tuple[int, bool]:
        """The target within what is left of the position, a quarter less at once and every minute that it lasts;
        and whether the position is larger than that, so that the step is still to be made."""
        if self.headroom is None or not position or not self._shrinks(symbol):
            self._steps.pop(symbol, None)
            return target, False
        due_ns, most = self._steps.get(symbol, (now_ns, abs(position)))
        if now_ns >= due_ns:
            most = math.floor(min(most, abs(position)) * (1 - STEP_SHARE))
            due_ns = now_ns + STEP_NS
            self._say(
                "warning", "position reduced for margin", symbol=symbol, lots=position, to=most
            )
        self._steps[symbol] = due_ns, most
        return max(-most, min(most, target)), abs(position) > most


def _tiers_of(rows: Sequence[TierReport]) -> tuple[Tier, ...]:
    """The table of a venue's rows; MarginError unless it is one, with the deductions that follow from it."""
    try:
        by_limit = sorted(rows, key=lambda row: Decimal(row.limit))
        found = tiers(
            (int(Decimal(row.limit)), row.initial, row.maintenance, row.max_leverage)
            for row in by_limit
        )
    except (ArithmeticError, ValueError) as error:
        raise MarginError(f"a risk tier that is no number: {error}") from None
    for row, tier in zip(by_limit, found, strict=True):
        if row.deduction and abs(Decimal(row.deduction) - Decimal(float(tier.deduction))) > 1:
            raise MarginError(
                f"the tier up to {row.limit} deducts {row.deduction}, by its rates {float(tier.deduction):g}"
            )
    return found


def _apart_bps(told: PositionReport, ours: float, mark: float) -> float:
    """How far two liquidation prices are apart, of the venue's; 0 where neither is in reach."""
    stated, side = told.liquidation_ticks, 1 if told.lots > 0 else -1
    if max(stated, ours) < _NO_PRICE * mark:
        return 0.0
    if stated <= 0:  # it states none, where a price would be outside of its limits
        return math.inf if side * (mark - ours) < mark / 2 else 0.0
    return abs(ours - stated) / stated * BPS
