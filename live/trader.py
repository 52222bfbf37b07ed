"""The trader: events and time in, decisions every second, orders out; one code for live and backtest.

    events ─► bars (with the book) ─► the venue's picture of the market
    second ends ─► bars close ─► features ─► model ─► decision ─► target position
    venue's order events, touch, time ─► desk ─► execution algorithm ─► journal ─► venue

A driver feeds it: the worker from its feed, the backtest from the lake. All times are receive times of
the stream, so a run is deterministic, a function of its events:

- a symbol's market, orders and bars change at the receive times of its own frames, on a time grid of
  `GRID_NS`, and when an order event in flight arrives; bare time adds no other instant;
- bars close and decisions are made at whole seconds t from what was received before t (no look-ahead).
  Their orders leave at t: the time to compute them is part of the settings' entry latency;
- symbols interact at whole seconds only, so the interleaving of their frames does not matter.

At midnight UTC bars restart from checkpoints of book and ticker, as a date's partition does in the
batch; positions, orders and the evaluator's memory continue.

While features are not warm (in a gap, a minute after a short one, 12 minutes after a long one or a start
without history) the target is flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from execution.liquidity import Costs
from execution.sizing import next_target
from live.decisions import Decision
from live.desk import TIMER_NS, Desk
from live.funding import Settlement, Settlements
from live.history import SymbolHistory
from live.journal import MemoryJournal
from live.own_capture import TickerState
from live.paper import LiveVenue
from market.bars import COLUMNS, BarBuilder, Bars
from market.events import EVENT, Events, Flag, Kind
from market.features import FeatureEvaluator, feature_names
from market.ingest import MAX_SILENCE_NS
from market.instruments import Instrument
from market.settings import FEE_ROWS_BPS, Settings
from market.units import DAY_NS, E8, SECOND_NS
from models_registry.manifest import NO_REGIME, Bundle, Pointer, Prediction

#: Between frames the market advances on multiples of this.
GRID_NS: Final = TIMER_NS

#: After a longer silence of all symbols, seconds pass without a decision.
SILENCE_NS: Final = 60 * SECOND_NS

#: At the end of a run open orders get this long to be cancelled, and positions to be closed.
CLOSING_NS: Final = 5 * SECOND_NS

#: Funding interval of the UTC day unless the ticker names the next settlement.

Floats = npt.NDArray[np.float64]

_MID, _SPREAD = (list(COLUMNS).index(name) for name in ("mid_close", "spread_bps"))
_TICKER, _TRADE = int(Kind.TICKER), int(Kind.TRADE)
_LAST, _CHECKPOINT = int(Flag.LAST), int(Flag.CHECKPOINT)


class Model(Protocol):
    """A model in force: its bundle, and the pointer that names its version."""

    @property
    def pointer(self) -> Pointer: ...

    @property
    def bundle(self) -> Bundle: ...

    def refresh(self) -> bool:
        """Check for a newly promoted bundle; True when one was swapped in just now."""
        ...


class Evaluates(Protocol):
    """What makes feature vectors of bars, as `market.features.FeatureEvaluator` does."""

    def push(self, symbol: str, t_ns: int, bar: Floats, /) -> None: ...

    def push_many(self, symbol: str, t_ns: npt.NDArray[np.int64], bars: Floats, /) -> None: ...

    def evaluate(self, symbol: str) -> tuple[Floats, bool]: ...


class SymbolState:
    """State of one symbol: its bar builder and ticker, and its latest bar, decision and funding."""

    def __init__(self, instrument: Instrument, stale_after_s: float) -> None:
        self.instrument = instrument
        self.stale_after_s = stale_after_s
        self.builder = BarBuilder(instrument, stale_after_s)
        self.ticker = TickerState()
        self.row: npt.NDArray[np.float64] | None = None  #: the last closed bar
        self.row_ns = 0
        self.now_ns = 0  #: receive time that its market has reached
        self.target = 0
        self.target_lots = 0
        self.signal_ns = 0  #: of the last signal in the target's direction
        self.signals = 0
        self.entries = 0
        self.settlements = Settlements()
        self.unpaid: list[Settlement] = []  #: settled within the last second

    def checkpoint_rows(self, now_ns: int) -> Events:
        """Checkpoint rows of book and ticker at ``now_ns``."""
        book = self.builder.book.snapshot_rows(now_ns)
        ticker = np.zeros(len(self.ticker.fields), EVENT)
        for row, (field, value) in zip(ticker, sorted(self.ticker.fields.items()), strict=True):
            row["field"], row["value"] = field, value
        for name in ("receive_ns", "exchange_ns", "publish_ns"):
            ticker[name] = now_ns
        ticker["kind"], ticker["flags"] = _TICKER, _CHECKPOINT
        ticker["flags"][-1:] |= _LAST
        return np.concatenate([book, ticker])

    def restart_bars(self, rows: Events) -> None:
        """Restart the bar builder from checkpoint rows, as a date's partition does."""
        self.builder = BarBuilder(self.instrument, self.stale_after_s)
        self.builder.push(rows)


class Trader:
    """Drives model, desk and venues from events and time.

    ``venues`` maps symbols to venues, ``journal`` records order intents and events, ``name`` is the
    venue's name in records. ``on_decision`` gets every decision with the model's horizons (seconds),
    ``on_midnight`` the time of each UTC midnight before bars restart. ``evaluator`` replaces the features'
    own.
    """

    def __init__(
        self,
        settings: Settings,
        instruments: Mapping[str, Instrument],
        *,
        model: Model,
        venues: Mapping[str, LiveVenue],
        journal: MemoryJournal,
        name: str,
        log: Any,
        on_decision: Callable[[Decision, tuple[int, ...]], None] | None = None,
        on_midnight: Callable[[int], None] | None = None,
        evaluator: Evaluates | None = None,
    ) -> None:
        self._settings, self._model, self._log = settings, model, log
        self._venues, self._on_decision, self._on_midnight = venues, on_decision, on_midnight
        stale_after_s = settings.market.stale_after_s
        self.symbols = {
            symbol: SymbolState(found, stale_after_s) for symbol, found in instruments.items()
        }
        taker_bps, maker_bps = FEE_ROWS_BPS[settings.model.fee_row]
        self.desk = Desk(
            venues,
            journal,
            instruments,
            settings.execution,
            settings.risk,
            name,
            log,
            costs=Costs(taker_bps=taker_bps, maker_bps=maker_bps),
            signal_s=float(settings.model.primary_s),
        )
        self._evaluator = evaluator or FeatureEvaluator(settings.market.symbols)
        self._columns = columns_of(model.bundle)
        self._fees_bps = 2 * FEE_ROWS_BPS[settings.model.fee_row][0]
        self.second_ns = 0  #: end of the last closed second
        self.last_event_ns = 0  #: receive time of the last event
        self._was_warm = False
        self.decisions = self.warm_decisions = self.skipped_seconds = 0
        self.unpriced_funding = 0  #: settlements of a position without a known mark price or rate

    # -- the stream ------------------------------------------------------------------------------

    def begin(self, second_ns: int, history: Mapping[str, SymbolHistory] | None = None) -> None:
        """Start at a whole second, with the history before it if there is one."""
        self.second_ns = self.last_event_ns = second_ns
        for symbol, state in self.symbols.items():
            state.now_ns = second_ns
            if history is not None:
                bars, book, ticker = history[symbol]
                self._evaluator.push_many(symbol, bars.t_ns, bars.values)
                state.builder.book = book
                state.ticker.fields = dict(ticker.fields)
                rows = state.checkpoint_rows(second_ns)
                state.restart_bars(rows)
                self._venues[symbol].on_events(symbol, rows)
                self.desk.on_events(symbol, rows)
            state.settlements.begin(state.ticker.fields, second_ns)

    def on_events(self, symbol: str, events: Events) -> None:
        """Take event rows of whole frames of one symbol and one second, in receive order.

        The result does not depend on how a second's rows are split into calls. ValueError when they
        are not all of the second that follows the last closed one.
        """
        if not len(events):
            return
        first, last = int(events["receive_ns"][0]), int(events["receive_ns"][-1])
        # Seconds only: events of other symbols before this one may still be to come.
        self._close_until(first)
        if last >= self.second_ns + SECOND_NS or first < self.second_ns:
            raise ValueError(
                f"{symbol}: events from {first} to {last} are not of the second that began at "
                f"{self.second_ns}; push one second at a time"
            )
        state = self.symbols[symbol]
        self.last_event_ns = max(self.last_event_ns, last)
        restates = bool((events["flags"] & _CHECKPOINT).any())
        start = 0
        while start < len(events):
            if self._at_rest(symbol) and not restates:
                self._take(state, events[start:])
                state.now_ns = last
                return
            ends = events["flags"][start:] & _LAST
            end = start + int(ends.argmax()) + 1 if ends.any() else len(events)
            self._frame(state, events[start:end])
            start = end

    def advance(self, now_ns: int) -> None:
        """Advance time to ``now_ns``; all earlier events must have been taken.

        Closes the seconds before it, and advances each market to the last instant of the grid.
        """
        self._close_until(now_ns)
        for state in self.symbols.values():
            self._pass(state, now_ns // GRID_NS * GRID_NS)

    def _close_until(self, now_ns: int) -> None:
        target_ns = now_ns // SECOND_NS * SECOND_NS
        while self.second_ns < target_ns:
            self._close_second(target_ns)

    def advance_exactly(self, now_ns: int) -> None:
        """`advance`, and every market to ``now_ns`` itself instead of the grid: at a stream's end."""
        self.advance(now_ns)
        for state in self.symbols.values():
            self._pass(state, now_ns)

    def close(self, flatten: bool) -> None:
        """End of the stream: cancel open orders, with ``flatten`` close positions, measure costs.

        Cancelling and flattening take at most `CLOSING_NS` each; what is left is logged as an error
        and stays in the journal.
        """
        now_ns = max(self.last_event_ns, *(state.now_ns for state in self.symbols.values()))
        self.advance_exactly(now_ns)
        self._settle_funding(wait_ns=0)
        self.desk.abandon(now_ns)
        now_ns = self._wait(now_ns)
        if flatten:
            for venue in self._venues.values():
                venue.advance(now_ns)  # an idle one was left at the end of the last second
            self.desk.flatten(now_ns)
            now_ns = self._wait(now_ns)
        self.desk.finish(now_ns, flatten)

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

    def _wait(self, now_ns: int) -> int:
        until_ns = now_ns + CLOSING_NS
        for symbol in self.symbols:
            self.desk.step(symbol, now_ns)
        while any(not self._at_rest(symbol) for symbol in self.symbols) and now_ns < until_ns:
            now_ns = (now_ns // GRID_NS + 1) * GRID_NS
            for state in self.symbols.values():
                self._pass(state, now_ns)
        return now_ns

    # -- a symbol's market -----------------------------------------------------------------------

    def _at_rest(self, symbol: str) -> bool:
        """No parent or order is open, so the market need not be stepped within the second."""
        return not self.desk.has_parent(symbol) and self._venues[symbol].idle

    def _take(self, state: SymbolState, events: Events) -> None:
        symbol = state.instrument.symbol
        # A restated book is news to a venue only when its own is not known.
        restated = events["flags"][0] & _CHECKPOINT and state.builder.book.valid
        state.ticker.apply(events)
        if len(state.builder.push(events)):
            # Cannot be: seconds are closed before the first event behind them is pushed.
            raise RuntimeError(f"{symbol}: an event closed a bar that time had not closed")
        if not restated:
            self._venues[symbol].on_events(symbol, events)
            self.desk.on_events(symbol, events)

    def _frame(self, state: SymbolState, frame: Events) -> None:
        """One frame while orders are open: advance to it, apply it, let the desk react."""
        symbol, now_ns = state.instrument.symbol, int(frame["receive_ns"][0])
        if frame["kind"][0] > _TRADE:
            self._take(state, frame)
            return
        self._pass(state, now_ns)
        self._take(state, frame)
        self._venues[symbol].advance(now_ns)
        self.desk.step(symbol, now_ns)

    def _pass(self, state: SymbolState, until_ns: int) -> None:
        """Advance a symbol's market, stopping at the grid and at each order event."""
        symbol = state.instrument.symbol
        while state.now_ns < until_ns:
            if self._at_rest(symbol):
                state.now_ns = until_ns
                return
            stop_ns = min(until_ns, (state.now_ns // GRID_NS + 1) * GRID_NS)
            while state.now_ns < stop_ns:
                state.now_ns = self._venues[symbol].advance(stop_ns, stop_at_outcome=True)
                self.desk.step(symbol, state.now_ns)

    # -- a second ends ---------------------------------------------------------------------------

    def _close_second(self, target_ns: int) -> None:
        """Close the next second; in a long silence all seconds up to ``target_ns`` at once."""
        end_ns = self.second_ns + SECOND_NS
        silent = end_ns - self.last_event_ns > SILENCE_NS
        midnight = (self.second_ns // DAY_NS + 1) * DAY_NS
        if silent:
            # No further than the next midnight or funding settlement.
            due = (state.settlements.next_ns for state in self.symbols.values())
            end_ns = min(target_ns, midnight, *(ns for ns in due if ns > self.second_ns))
            self.skipped_seconds += (end_ns - self.second_ns) // SECOND_NS
        for symbol, state in self.symbols.items():
            self._pass(state, end_ns)
            self._venues[symbol].advance(end_ns)
        self.second_ns = end_ns
        self._push(
            {symbol: state.builder.close_until(end_ns) for symbol, state in self.symbols.items()}
        )
        self._settle_funding()
        if end_ns == midnight:
            self._new_date()
        self.desk.measure(end_ns)
        if not silent:
            self._decide(end_ns)

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
            self._evaluator.push(symbol, t_ns, state.row)

    def _new_date(self) -> None:
        """Midnight: restart bars, from checkpoints unless the last event is too old."""
        if self._on_midnight is not None:
            self._on_midnight(self.second_ns)
        fresh = self.second_ns - self.last_event_ns <= MAX_SILENCE_NS
        for state in self.symbols.values():
            state.restart_bars(state.checkpoint_rows(self.second_ns)[: None if fresh else 0])

    def _settle_funding(self, wait_ns: int = SECOND_NS) -> None:
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
        if model.refresh():
            self._columns = columns_of(model.bundle)
        for symbol in self._settings.market.symbols:
            state = self.symbols[symbol]
            if state.row is None or state.row_ns != t_ns:
                state.target = state.target_lots = 0
                self.desk.set_target(symbol, 0, t_ns, None)
                continue
            vector, warm = self._evaluator.evaluate(symbol)
            mid, spread_bps = float(state.row[_MID]), float(state.row[_SPREAD])
            if warm and not self._was_warm:
                self._was_warm = True
                self._log.info("warm", symbol=symbol, t_ns=t_ns)
            sound = warm and not math.isnan(mid)
            prediction = self._expect(symbol, t_ns, vector) if sound else self._nothing()
            expected = prediction.expected_bps
            cost_bps = self._fees_bps + spread_bps
            target = self._target(state, t_ns, expected, cost_bps, mid, sound)
            if self._on_decision is not None:
                self._on_decision(
                    Decision(
                        symbol=symbol,
                        t_ns=t_ns,
                        model_version=model.pointer.version,
                        bundle_sha=model.pointer.manifest_sha256,
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

    def _target(
        self,
        state: SymbolState,
        t_ns: int,
        expected_bps: float,
        cost_bps: float,
        mid: float,
        sound: bool,
    ) -> int:
        """The target rule's next position, flat unless the row is ``sound``."""
        signal_now = abs(expected_bps) > cost_bps
        state.signals += signal_now
        target = 0
        if sound:
            age_s = (t_ns - state.signal_ns) / 1e9
            horizon_s = float(self._model.bundle.manifest.primary_s)
            target = next_target(state.target, age_s, expected_bps, cost_bps, horizon_s)
        if signal_now and target:
            state.signal_ns = t_ns
        if target != state.target:
            state.entries += target != 0
            state.target = target
            symbol = state.instrument.symbol
            state.target_lots = target * self.desk.size_lots(symbol, mid) if target else 0
        return target


def columns_of(bundle: Bundle) -> npt.NDArray[np.intp]:
    """Columns of a model's features in the evaluator's vector."""
    place = {name: n for n, name in enumerate(feature_names())}
    return np.array([place[name] for name in bundle.manifest.features], np.intp)
