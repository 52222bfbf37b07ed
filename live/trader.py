"""The trader: events and time in, decisions every second, requests out; one code for live and backtest.

    events ─► bars (with the book) ─► our picture of the market
    second ends ─► bars close ─► features ─► model ─► decision ─► target position
    evidence of orders, touch, time ─► desk ─► execution algorithm ─► guard ─► requests

It is a function of what it is given and knows no venue: a driver hands over rows (`on_rows`), evidence of
orders and the time at which something may be done (`react`), and ends seconds (`close_second`); it takes
the `effects` and carries out the requests. All times are receive times of the stream.

- Bars close and decisions are made at whole seconds t from what was received before t (no look-ahead).
  Their orders leave at t: the time to compute them is part of the settings' entry latency.
- Symbols interact at whole seconds only, so the interleaving of their frames does not matter.

At midnight UTC bars restart from checkpoints of book and ticker, as a date's partition does in the
batch; positions, orders and the evaluator's memory continue.

While features are not warm (in a gap, a minute after a short one, 12 minutes after a long one or a start
without history) nothing is entered, and what is held goes when its horizon has passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from execution.liquidity import Costs
from execution.orders import Event
from execution.sizing import next_target
from execution.urgency import Funding, entry_bps, leaves_for_funding
from live.decisions import Decision
from live.desk import Desk
from live.funding import Settlement, predicted
from live.history import SymbolHistory
from live.messages import Effect, Say
from live.pre_trade import decay_of
from live.statement import DailyStatement
from live.symbol_state import SymbolState
from market.bars import COLUMNS, Bars
from market.events import Events, Flag
from market.features import FeatureEvaluator, feature_names
from market.ingest import MAX_SILENCE_NS
from market.instruments import Instrument, leader
from market.settings import FEE_ROWS_BPS, Settings
from market.units import DAY_NS, E8, SECOND_NS
from models_registry.manifest import Bundle, Pointer
from models_registry.recipe import NO_REGIME, Prediction

#: After a longer silence of all symbols, seconds pass without a decision.
SILENCE_NS: Final = 60 * SECOND_NS

#: A position is sized again when the expected return after costs has grown so much.
GROWN: Final = 1.5

Floats = npt.NDArray[np.float64]

_CHECKPOINT: Final = int(Flag.CHECKPOINT)
_MID, _SPREAD, _GAP = (list(COLUMNS).index(name) for name in ("mid_close", "spread_bps", "gap"))


class Model(Protocol):
    """A model in force: its bundle, and the pointer that names its version."""

    @property
    def pointer(self) -> Pointer: ...

    @property
    def bundle(self) -> Bundle: ...


class Evaluates(Protocol):
    """What makes feature vectors of bars, as `market.features.FeatureEvaluator` does."""

    def push(self, symbol: str, t_ns: int, bar: Floats, /) -> None: ...

    def push_many(self, symbol: str, t_ns: npt.NDArray[np.int64], bars: Floats, /) -> None: ...

    def choose(self, names: Collection[str], /) -> None: ...

    def evaluate(self, symbol: str) -> tuple[Floats, bool]: ...


class Trader:
    """Drives model and desk from events, evidence and time.

    ``name`` is the venue's name in records. ``on_decision`` gets every decision with the model's horizons
    (seconds), ``on_midnight`` the time of each UTC midnight before bars restart. ``evaluator`` replaces
    the features' own. ``pays_funding``: settlements are booked from the market's ticker, which is for
    venues that do not report them.
    """

    def __init__(
        self,
        settings: Settings,
        instruments: Mapping[str, Instrument],
        *,
        model: Model,
        name: str,
        moves_market: bool = False,
        pays_funding: bool = True,
        on_decision: Callable[[Decision, tuple[int, ...]], None] | None = None,
        on_midnight: Callable[[int], None] | None = None,
        evaluator: Evaluates | None = None,
    ) -> None:
        self._settings = settings
        self._on_decision, self._on_midnight = on_decision, on_midnight
        self._pays_funding = pays_funding
        self.effects: list[Effect] = []
        stale_after_s = settings.market.stale_after_s
        self.symbols = {
            symbol: SymbolState(found, stale_after_s) for symbol, found in instruments.items()
        }
        taker_bps, maker_bps = FEE_ROWS_BPS[settings.model.fee_row]
        self.desk = Desk(
            self.symbols,
            settings,
            name,
            costs=Costs(taker_bps=taker_bps, maker_bps=maker_bps, source=settings.source),
            moves_market=moves_market,
            emit=self.effects.append,
        )
        self._statement = DailyStatement(self.desk.account, name, pays_funding, self.effects.append)
        traded = settings.market.symbols
        self._evaluator = evaluator or FeatureEvaluator(traded)
        #: Whose bars enter features; those of the others are only watched.
        self._featured = frozenset((*traded, *map(leader, traded)))
        self._also: tuple[str, ...] = ()
        self.load(model)
        self._fees_bps = 2 * FEE_ROWS_BPS[settings.model.fee_row][0]
        self.second_ns = 0  #: end of the last closed second
        self.last_event_ns = 0  #: receive time of the last event
        self.decides = True  #: not any more in a shut-down
        self._was_warm = False
        self.decisions = self.warm_decisions = self.skipped_seconds = 0
        self.unpriced_funding = 0  #: settlements of a position without a known mark price or rate

    def drain(self) -> list[Effect]:
        """The effects since the last call, in order."""
        effects = self.effects[:]
        self.effects.clear()
        return effects

    def load(self, model: Model) -> None:
        """Decide by another model from now on, on the features that it takes."""
        self._model = model
        self.desk.pre_trade.decay = decay_of(model.bundle)
        self.desk.sizes.ramp.load(model.pointer.manifest_sha256)
        self._columns = columns_of(model.bundle)
        #: The features in decisions' vectors; the others are NaN.
        self.computed = frozenset((*model.bundle.manifest.features, *self._also))
        self._evaluator.choose(self.computed)

    def compute_also(self, names: tuple[str, ...]) -> None:
        """Compute these features besides the model's from now on."""
        if names != self._also:
            self._also = names
            self.load(self._model)

    # -- the stream ------------------------------------------------------------------------------

    def begin(
        self, second_ns: int, history: Mapping[str, SymbolHistory] | None = None
    ) -> dict[str, Events]:
        """Start at a whole second, with the history before it if there is one.

        Returns, by symbol, checkpoint rows of the book that the history ends with.
        """
        self.second_ns = self.last_event_ns = second_ns
        self.desk.sizes.ramp.begin(second_ns)
        restated = {}
        for symbol, state in self.symbols.items():
            if history is not None and symbol in history:
                bars, book, ticker = history[symbol]
                known = bars.t_ns <= second_ns  # a feed may begin before the history's end
                if symbol in self._featured:
                    self._evaluator.push_many(symbol, bars.t_ns[known], bars.values[known])
                state.builder.book = book
                state.ticker.fields = dict(ticker.fields)
                rows = restated[symbol] = state.checkpoint_rows(second_ns)
                state.restart_bars(rows)
                self.desk.on_events(symbol, rows)
            state.settlements.begin(state.ticker.fields, second_ns)
        known_of = history or {}
        self._learn_history(second_ns, known_of)
        for symbol in self._settings.market.symbols:
            if symbol in known_of and (known_of[symbol].bars.t_ns <= second_ns).any():
                # The hour is derived now, not by the first decision.
                self._evaluator.evaluate(symbol)
        return restated

    def _learn_history(self, until_ns: int, history: Mapping[str, SymbolHistory]) -> None:
        """Returns of correlated symbols over the history, second by second."""
        mids: dict[int, dict[str, float]] = {}
        for symbol, (bars, *_) in history.items():
            for t_ns, row in zip(bars.t_ns.tolist(), bars.values, strict=True):
                if t_ns <= until_ns and not row[_GAP]:
                    mids.setdefault(t_ns, {})[symbol] = float(row[_MID])
        for t_ns in sorted(mids):
            self.desk.exposure.learn(t_ns, mids[t_ns])

    def on_rows(self, symbol: str, rows: Events) -> bool:
        """Take event rows of whole frames of one symbol and one second, in receive order.

        False when they only restate a book that was known, which is no news to a venue either. ValueError
        when they are not all of the second that follows the last closed one.
        """
        first, last = int(rows["receive_ns"][0]), int(rows["receive_ns"][-1])
        if last >= self.second_ns + SECOND_NS or first < self.second_ns:
            raise ValueError(
                f"{symbol}: events from {first} to {last} are not of the second that began at "
                f"{self.second_ns}; push one second at a time"
            )
        self.last_event_ns = max(self.last_event_ns, last)
        state = self.symbols[symbol]
        restated = bool(rows["flags"][0] & _CHECKPOINT) and state.builder.book.valid
        self._take(state, rows, restated)
        return not restated

    def _take(self, state: SymbolState, rows: Events, restated: bool) -> None:
        state.take(rows)
        if not restated:
            self.desk.on_events(state.instrument.symbol, rows)

    def took(self, symbol: str, rows: Events) -> None:
        """The same for rows that are in the symbol's book and bars already (`live.frames`)."""
        self.last_event_ns = max(self.last_event_ns, int(rows["receive_ns"][-1]))
        self.symbols[symbol].ticker.apply(rows)
        self.desk.on_events(symbol, rows)

    def react(self, symbol: str, now_ns: int, evidence: Sequence[Event] = ()) -> None:
        """Take evidence of orders; step the algorithm on it, on a new touch or at its timer."""
        self.desk.step(symbol, now_ns, evidence)

    # -- a second ends ---------------------------------------------------------------------------

    def next_end(self, target_ns: int) -> int:
        """End of the next second; in a long silence further, up to ``target_ns``, a whole second."""
        end_ns = self.second_ns + SECOND_NS
        if not self._silent:
            return end_ns
        # No further than the next midnight or funding settlement.
        due = (state.settlements.next_ns for state in self.symbols.values())
        return min(target_ns, self._midnight_ns, *(ns for ns in due if ns > self.second_ns))

    @property
    def _silent(self) -> bool:
        return self.second_ns + SECOND_NS - self.last_event_ns > SILENCE_NS

    @property
    def _midnight_ns(self) -> int:
        return (self.second_ns // DAY_NS + 1) * DAY_NS

    def close_second(self, end_ns: int) -> None:
        """Close the seconds up to ``end_ns`` (from `next_end`): bars, funding, costs, and decisions."""
        silent, midnight_ns = self._silent, self._midnight_ns
        if silent:
            self.skipped_seconds += (end_ns - self.second_ns) // SECOND_NS
        self.second_ns = end_ns
        self._push(
            {symbol: state.builder.close_until(end_ns) for symbol, state in self.symbols.items()}
        )
        if self._pays_funding:
            self.settle_funding()
        if end_ns == midnight_ns:
            self._new_date()
        self.desk.measure(end_ns)
        self.desk.exposure.mark(self.desk.costs.last_mids())
        self.desk.exposure.learn(end_ns, {s: m.mid_at(end_ns) for s, m in self.symbols.items()})
        self._statement.second(end_ns)
        if not silent and self.decides:
            self._decide(end_ns)

    def close_until(self, now_ns: int) -> None:
        """Close every second that has ended by ``now_ns``."""
        target_ns = now_ns // SECOND_NS * SECOND_NS
        while self.second_ns < target_ns:
            self.close_second(self.next_end(target_ns))

    def _push(self, closed: Mapping[str, Bars]) -> None:
        """Push closed bars to the evaluator by time, then symbol."""
        rows = sorted(
            (int(t_ns), symbol, n)
            for symbol, bars in closed.items()
            for n, t_ns in enumerate(bars.t_ns)
        )
        for t_ns, symbol, n in rows:
            state = self.symbols[symbol]
            state.row, state.row_ns = closed[symbol].values[n], t_ns
            if symbol in self._featured:
                self._evaluator.push(symbol, t_ns, state.row)

    def _new_date(self) -> None:
        """Midnight: restart bars, from checkpoints unless the last event is too old."""
        if self._on_midnight is not None:
            self._on_midnight(self.second_ns)
        fresh = self.second_ns - self.last_event_ns <= MAX_SILENCE_NS
        for state in self.symbols.values():
            state.restart_bars(state.checkpoint_rows(self.second_ns)[: None if fresh else 0])

    def finish(self, now_ns: int) -> None:
        """After the shut-down: pay, measure and state what is known by now."""
        self.settle_funding(wait_ns=0)
        self.desk.finish(now_ns)
        self._statement.finish(now_ns)

    def settle_funding(self, wait_ns: int = SECOND_NS) -> None:
        """Pay what was settled, once executions before the settlement have been reported."""
        for symbol, state in self.symbols.items():
            settled = state.settlements.until(state.ticker.fields, self.second_ns)
            state.unpaid += [settled] if settled is not None else []
            while state.unpaid and self.second_ns >= state.unpaid[0].time_ns + wait_ns:
                self._pay(symbol, state, state.unpaid.pop(0))

    def _pay(self, symbol: str, state: SymbolState, settled: Settlement) -> None:
        lots = self.desk.account.position_lots_at(symbol, settled.time_ns)
        mark_e8 = settled.mark_e8
        if mark_e8 is None and state.row is not None and not math.isnan(state.row[_MID]):
            mark_e8 = round(float(state.row[_MID]) * E8)
        if not lots:
            return
        if mark_e8 is None or settled.rate_e8 is None:
            self.unpriced_funding += 1
        else:
            self.desk.settle_funding(symbol, settled.time_ns, lots, mark_e8, settled.rate_e8)

    # -- decisions -------------------------------------------------------------------------------

    def _decide(self, t_ns: int) -> None:
        model = self._model
        for symbol in self._settings.market.symbols:
            state = self.symbols[symbol]
            if state.row is None or state.row_ns != t_ns:
                self._target(state, t_ns, self._nothing(), math.nan, math.nan)
                self.desk.set_target(symbol, state.target_lots, t_ns, None)
                self.desk.step(symbol, t_ns)
                continue
            vector, warm = self._evaluator.evaluate(symbol)
            mid, spread_bps = float(state.row[_MID]), float(state.row[_SPREAD])
            if warm and not self._was_warm:
                self._was_warm = True
                self.effects.append(
                    Say(level="info", event="warm", fields={"symbol": symbol, "t_ns": t_ns})
                )
            sound = warm and not math.isnan(mid)
            prediction = self._expect(symbol, t_ns, vector) if sound else self._nothing()
            expected = prediction.expected_bps
            trip_bps = self._cost_bps(state, t_ns, expected, spread_bps)
            funding = self._funding(state, t_ns, abs(expected) > trip_bps)
            side = 1 if expected > 0 else -1
            decay, deadline_s = self.desk.pre_trade.decay, self._settings.execution.deadline_s
            cost_bps = entry_bps(trip_bps, side, funding, decay, decay.horizon_s + deadline_s)
            leaves = leaves_for_funding(
                trip_bps, state.target, expected, funding, decay, deadline_s
            )
            target = self._target(state, t_ns, prediction, cost_bps, mid, leaves)
            if self._on_decision is not None:
                self._on_decision(
                    Decision(
                        symbol=symbol,
                        t_ns=t_ns,
                        model_version=model.pointer.version,
                        bundle_sha=model.pointer.in_force,
                        expected_bps=expected,
                        raw_bps=prediction.raw_bps,
                        by_horizon=prediction.by_horizon,
                        regime=prediction.regime,
                        warm=warm,
                        target=target,
                        position_lots=self.desk.position_lots(symbol),
                        cost_bps=cost_bps,
                        mid=mid,
                        spread_bps=spread_bps,
                        error_bps=prediction.error_bps,
                        scale_bps=prediction.scale_bps,
                        vector=vector,
                    ),
                    model.bundle.horizons_s,
                )
            self.decisions += 1
            self.warm_decisions += warm
            self.desk.set_target(
                symbol, state.target_lots, t_ns, None if math.isnan(expected) else expected
            )
            self.desk.step(symbol, t_ns)

    def summary(self) -> dict[str, Any]:
        """Counts of decisions and orders, and their costs (`Desk.summary`); plain data."""
        return {
            "decisions": self.decisions,
            "warm_decisions": self.warm_decisions,
            "skipped_seconds": self.skipped_seconds,
            "signals": {symbol: state.signals for symbol, state in self.symbols.items()},
            "entries": {symbol: state.entries for symbol, state in self.symbols.items()},
            **self.desk.summary(),
        }

    def _expect(self, symbol: str, t_ns: int, vector: npt.NDArray[np.float64]) -> Prediction:
        """The model's expectation of a symbol at t from its features (all of them, in order)."""
        return self._model.bundle.predict(vector[self._columns])

    def _nothing(self) -> Prediction:
        """The prediction for a row that is not warm or has no mid: NaN."""
        horizons = len(self._model.bundle.horizons_s)
        return Prediction(
            expected_bps=math.nan,
            raw_bps=math.nan,
            by_horizon=(math.nan,) * horizons,
            regime=NO_REGIME,
        )

    def _cost_bps(
        self, state: SymbolState, t_ns: int, expected_bps: float, spread_bps: float
    ) -> float:
        """The round trip's cost: what execution is expected to pay for it, or two taker fees and the spread
        with `Desk.urgency` off, and where there is neither an expectation nor a position to trade on."""
        side = (expected_bps > 0) - (expected_bps < 0) or state.target
        found = None
        if side and self._settings.desk.urgency:
            signal = None if math.isnan(expected_bps) else expected_bps
            symbol = state.instrument.symbol
            lots = self.desk.sizes.likely_lots(symbol)
            found = self.desk.pre_trade.round_trip_bps(symbol, side, signal, t_ns, lots)
        return self._fees_bps + spread_bps if found is None else found

    def _funding(self, state: SymbolState, t_ns: int, signal: bool) -> Funding | None:
        """The next settlement as predicted; where that is missing it counts as zero, and is said once."""
        if not self._settings.desk.funding:
            return None
        found = predicted(state.ticker.fields, t_ns)
        if found is None and signal and not state.funding_missed:
            state.funding_missed = True
            symbol = state.instrument.symbol
            self.desk.say("warning", "funding not predicted, taken as zero", symbol=symbol)
        return found

    def _target(
        self,
        state: SymbolState,
        t_ns: int,
        prediction: Prediction,
        cost_bps: float,
        mid: float,
        leaves: bool = False,
    ) -> int:
        """The target rule's next position; without an expectation (NaN) nothing is entered.

        ``leaves``: a position on the same side is closed all the same. A signal often begins small: unless
        sizes are fixed, one that has become `GROWN` times as strong as when the position was sized, or had
        no size, is sized again, and may only add; to shrink costs as much as to add.
        """
        symbol, expected_bps = state.instrument.symbol, prediction.expected_bps
        signal_now = abs(expected_bps) > cost_bps
        state.signals += signal_now
        age_s = (t_ns - state.signal_ns) / 1e9
        horizon_s = float(self._model.bundle.manifest.primary_s)
        target: int = next_target(state.target, age_s, expected_bps, cost_bps, horizon_s)
        if leaves and target == state.target:
            target = 0
        delayed = target != 0 and self.desk.exposure.delays(symbol, target)
        if delayed and target != state.target:
            target = 0  # a leader has just moved against it: the next second decides, what reduces goes on
        if signal_now and target:
            state.signal_ns = t_ns
        edge_bps = abs(expected_bps) - cost_bps
        grown = signal_now and not delayed and edge_bps >= GROWN * state.sized_bps
        if target != state.target or (grown and self._settings.desk.size == "risk"):
            lots = 0 if target != state.target else abs(state.target_lots)
            state.entries += target not in (0, state.target)
            state.target, state.target_lots = target, target * lots
            if target:
                size = self.desk.sizes.decide(
                    symbol, target, t_ns, mid, prediction, cost_bps, horizon_s
                )
                state.sized_bps = edge_bps if size.lots else 0.0
                if size.lots > lots or not lots:
                    self.desk.sizes.last[symbol] = size
                    state.target_lots = target * size.lots
        return target

    def targets(self) -> list[object]:
        """What is on record as soon as it changes: each symbol's target, and the evidence of sizes and costs."""
        targets = [(state.target, state.target_lots) for state in self.symbols.values()]
        return [*targets, self.desk.sizes.ramp.state, self.desk.pre_trade.learnt.state]

    def cut(self, now_ns: int, breaches: int) -> None:
        """Shrink every target at once when a limit that cuts was reached (``breaches`` so far)."""
        share = self.desk.sizes.ramp.breached(now_ns, breaches)
        if share < 1.0:
            for state in self.symbols.values():
                state.target_lots = int(state.target_lots * share)


def columns_of(bundle: Bundle) -> npt.NDArray[np.intp]:
    """Columns of a model's features in the evaluator's vector."""
    place = {name: n for n, name in enumerate(feature_names())}
    return np.array([place[name] for name in bundle.manifest.features], np.intp)
