"""The trader: events and time in, decisions every second, orders out. One for live and backtest.

    events ─► bars (book inside) ─► the venue's market
    second ends ─► bars close ─► features ─► model ─► decision ─► target
    venue's answers, touch, time ─► desk ─► algorithm ─► journal ─► venue

A driver feeds it: the worker with what it receives, the backtest with what the lake holds. All time is
that of the stream, so what happens is a function of the events:

- a symbol's market, orders and bars are touched at the receive times of its own frames, on a grid of
  `GRID_NS`, and when an answer that is under way arrives; bare time adds no other instant;
- bars close and decisions fall on whole seconds t, from what was received before t. Orders of the
  decision leave at t: the time to compute it belongs to the settings' entry latency;
- the symbols meet at whole seconds only, so it does not matter how their frames were interleaved.

At midnight UTC the bars begin anew from the book and ticker held, exactly as the batch does with a
date's partition; positions, orders and the evaluator's memory go on.

Out of a market that cannot be judged: while a row is not warm (a gap, a stale or crossed book, the first
hour) the target is flat.
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
from live.history import History
from live.journal import Ledger
from live.paper import LiveVenue
from live.recorder import Held
from market.bars import COLUMNS, BarBuilder, Bars
from market.events import EVENT, Events, Field, Flag, Kind
from market.features import FeatureEvaluator, feature_names
from market.ingest import MAX_SILENCE_NS
from market.instruments import Instrument
from market.settings import FEE_ROWS_BPS, Settings
from market.units import DAY_NS, SECOND_NS
from models_registry.manifest import NO_REGIME, Bundle, Pointer, Prediction

#: Bare time acts at multiples of this.
GRID_NS: Final = TIMER_NS

#: When no symbol has said anything for longer, seconds pass without a decision.
SILENCE_NS: Final = 60 * SECOND_NS

#: At the end orders get this much time to be answered.
CLOSING_NS: Final = 5 * SECOND_NS

#: The venue settles funding at these times of the UTC day unless its ticker says otherwise.
FUNDING_NS: Final = 8 * 3_600 * SECOND_NS

_MID, _SPREAD = (list(COLUMNS).index(name) for name in ("mid_close", "spread_bps"))
_TICKER, _TRADE = int(Kind.TICKER), int(Kind.TRADE)
_LAST, _CHECKPOINT = int(Flag.LAST), int(Flag.CHECKPOINT)


class Model(Protocol):
    """What decides: a bundle in force, and the version it is."""

    @property
    def pointer(self) -> Pointer: ...

    @property
    def bundle(self) -> Bundle: ...

    def refresh(self) -> bool:
        """Look for another bundle; True when one came into force just now."""
        ...


class Lane:
    """One symbol: its bars under way, how far its market has come, and what was decided last."""

    def __init__(self, instrument: Instrument, stale_after_s: float) -> None:
        self.instrument = instrument
        self.stale_after_s = stale_after_s
        self.builder = BarBuilder(instrument, stale_after_s)
        self.held = Held()
        self.row: npt.NDArray[np.float64] | None = None  #: the bar that closed last
        self.row_ns = 0
        self.now_ns = 0  #: up to where its market was brought
        self.target = 0
        self.target_lots = 0
        self.since_ns = 0  #: when the target was taken or last confirmed
        self.signals = 0
        self.entries = 0
        self.funding_ns = 0  #: when funding is settled next
        self.funding: tuple[int, int] | None = None  #: mark and rate at 1e-8 as known before that

    def restate(self, now_ns: int) -> Events:
        """Rows that say what is held of the book and the ticker, for who begins anew at ``now_ns``."""
        book = self.builder.book.snapshot_rows(now_ns)
        ticker = np.zeros(len(self.held.ticker), EVENT)
        for row, (field, value) in zip(ticker, sorted(self.held.ticker.items()), strict=True):
            row["field"], row["value_e8"] = field, value
        for name in ("receive_ns", "exchange_ns", "publish_ns"):
            ticker[name] = now_ns
        ticker["kind"], ticker["flags"] = _TICKER, _CHECKPOINT
        ticker["flags"][-1:] |= _LAST
        return np.concatenate([book, ticker])

    def restart(self, rows: Events) -> None:
        """Begin bars anew, as a date's partition does, from what was held."""
        self.builder = BarBuilder(self.instrument, self.stale_after_s)
        self.builder.push(rows)


class Trader:
    """Drives model, desk and venues from events and time.

    ``venues`` gives each symbol the venue it trades at, ``journal`` keeps intents and outcomes,
    ``name`` is the venue's name on record. ``decided`` gets every decision with the model's horizons,
    ``turned`` every midnight before the bars begin anew.
    """

    def __init__(
        self,
        settings: Settings,
        instruments: Mapping[str, Instrument],
        *,
        model: Model,
        venues: Mapping[str, LiveVenue],
        journal: Ledger,
        name: str,
        log: Any,
        decided: Callable[[Decision, tuple[int, ...]], None] | None = None,
        turned: Callable[[int], None] | None = None,
    ) -> None:
        self._settings, self._model, self._log = settings, model, log
        self._venues, self._decided, self._turned = venues, decided, turned
        stale_after_s = settings.market.stale_after_s
        self.lanes = {symbol: Lane(found, stale_after_s) for symbol, found in instruments.items()}
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
        self._evaluator = FeatureEvaluator(settings.market.symbols)
        self._names = feature_names()
        self._columns = self._of_model()
        self._fees_bps = 2 * FEE_ROWS_BPS[settings.model.fee_row][0]
        self.second_ns = 0  #: the last second that was closed
        self.heard_ns = 0  #: receive time of the last event
        self._was_warm = False
        self.decisions = self.warm_decisions = self.skipped_seconds = 0
        self.unpriced_funding = 0  #: settlements of a position whose rate the data do not say

    # -- the stream ------------------------------------------------------------------------------

    def begin(self, second_ns: int, history: Mapping[str, History] | None = None) -> None:
        """Start at a whole second, with the hour before it where the lake holds it."""
        self.second_ns = self.heard_ns = second_ns
        for symbol, lane in self.lanes.items():
            lane.now_ns = second_ns
            if history is not None:
                bars, book, held = history[symbol]
                self._evaluator.push_many(symbol, bars.t_ns, bars.values)
                lane.builder.book = book
                lane.held.ticker = dict(held.ticker)
                rows = lane.restate(second_ns)
                lane.restart(rows)
                self._venues[symbol].on_events(symbol, rows)
                self.desk.on_events(symbol, rows)
            self._note_funding(lane, second_ns)

    def on_events(self, symbol: str, events: Events) -> None:
        """Rows of one or more whole frames of a symbol, in receive order, of one second.

        What comes of them does not depend on how they were cut into calls. ValueError when they
        reach into another second than the one in progress after `advance`.
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
        lane = self.lanes[symbol]
        self.heard_ns = max(self.heard_ns, last)
        restates = bool((events["flags"] & _CHECKPOINT).any())
        start = 0
        while start < len(events):
            if self._at_rest(symbol) and not restates:
                self._take(lane, events[start:])
                lane.now_ns = last
                return
            ends = events["flags"][start:] & _LAST
            end = start + int(ends.argmax()) + 1 if ends.any() else len(events)
            self._frame(lane, events[start:end])
            start = end

    def advance(self, now_ns: int) -> None:
        """Time has come to ``now_ns``, and every event before it is in."""
        self._close_until(now_ns)
        for lane in self.lanes.values():
            self._pass(lane, now_ns // GRID_NS * GRID_NS)

    def _close_until(self, now_ns: int) -> None:
        target_ns = now_ns // SECOND_NS * SECOND_NS
        while self.second_ns < target_ns:
            self._close_second(target_ns)

    def reach(self, now_ns: int) -> None:
        """Bring every symbol's market to ``now_ns``, also between two instants of the grid.

        For where a stream ends: in the midst of one, bare time is `advance`'s.
        """
        self.advance(now_ns)
        for lane in self.lanes.values():
            self._pass(lane, now_ns)

    def close(self, flatten: bool) -> None:
        """The stream has ended: cancel what is open, flatten if asked, measure what ended.

        Orders get `CLOSING_NS` each for cancelling and for flattening; what is left is logged and
        stays in the journal.
        """
        now_ns = max(self.heard_ns, *(lane.now_ns for lane in self.lanes.values()))
        self.reach(now_ns)
        self.desk.abandon(now_ns)
        now_ns = self._wait(now_ns)
        if flatten:
            for venue in self._venues.values():
                venue.advance(now_ns)  # one at rest was left where its last second ended
            self.desk.flatten(now_ns)
            now_ns = self._wait(now_ns)
        self.desk.finish(now_ns, flatten)

    def summary(self) -> dict[str, Any]:
        """What was decided and done, and what it cost; plain data."""
        return {
            "decisions": self.decisions,
            "warm_decisions": self.warm_decisions,
            "skipped_seconds": self.skipped_seconds,
            "signals": {symbol: lane.signals for symbol, lane in self.lanes.items()},
            "entries": {symbol: lane.entries for symbol, lane in self.lanes.items()},
            **self.desk.summary(),
        }

    def _wait(self, now_ns: int) -> int:
        until_ns = now_ns + CLOSING_NS
        for symbol in self.lanes:
            self.desk.step(symbol, now_ns)
        while any(not self._at_rest(symbol) for symbol in self.lanes) and now_ns < until_ns:
            now_ns = (now_ns // GRID_NS + 1) * GRID_NS
            for lane in self.lanes.values():
                self._pass(lane, now_ns)
        return now_ns

    # -- a symbol's market -----------------------------------------------------------------------

    def _at_rest(self, symbol: str) -> bool:
        """Nothing of ours is under way, so only the second's end has to look."""
        return not self.desk.working(symbol) and self._venues[symbol].idle

    def _take(self, lane: Lane, events: Events) -> None:
        symbol = lane.instrument.symbol
        # A restated book is news to a venue only when its own is not known.
        restated = events["flags"][0] & _CHECKPOINT and lane.builder.book.valid
        lane.held.apply_many(events)
        if len(lane.builder.push(events)):
            # Cannot be: seconds are closed before the first event behind them is pushed.
            raise RuntimeError(f"{symbol}: an event closed a bar before the clock")
        if not restated:
            self._venues[symbol].on_events(symbol, events)
            self.desk.on_events(symbol, events)

    def _frame(self, lane: Lane, frame: Events) -> None:
        """One frame, with orders under way: what was due before it, the frame, what it caused."""
        symbol, now_ns = lane.instrument.symbol, int(frame["receive_ns"][0])
        if frame["kind"][0] > _TRADE:
            self._take(lane, frame)
            return
        self._pass(lane, now_ns)
        self._take(lane, frame)
        self._venues[symbol].advance(now_ns)
        self.desk.step(symbol, now_ns)

    def _pass(self, lane: Lane, until_ns: int) -> None:
        """Bring a symbol's market to ``until_ns``, stopping at the grid and at each answer."""
        symbol = lane.instrument.symbol
        while lane.now_ns < until_ns:
            if self._at_rest(symbol):
                lane.now_ns = until_ns
                return
            stop_ns = min(until_ns, (lane.now_ns // GRID_NS + 1) * GRID_NS)
            while lane.now_ns < stop_ns:
                lane.now_ns = self._venues[symbol].advance(stop_ns, stop_at_outcome=True)
                self.desk.step(symbol, lane.now_ns)

    # -- a second ends ---------------------------------------------------------------------------

    def _close_second(self, target_ns: int) -> None:
        """Close the second in progress; in a long silence all seconds up to ``target_ns`` at once."""
        end_ns = self.second_ns + SECOND_NS
        silent = end_ns - self.heard_ns > SILENCE_NS
        midnight = (self.second_ns // DAY_NS + 1) * DAY_NS
        if silent:
            # Up to the next midnight or funding at once: there something happens all the same.
            end_ns = min(target_ns, midnight, *(lane.funding_ns for lane in self.lanes.values()))
            self.skipped_seconds += (end_ns - self.second_ns) // SECOND_NS
        for symbol, lane in self.lanes.items():
            self._pass(lane, end_ns)
            self._venues[symbol].advance(end_ns)
        self.second_ns = end_ns
        self._push(
            {symbol: lane.builder.close_until(end_ns) for symbol, lane in self.lanes.items()}
        )
        self._settle_funding()
        if end_ns == midnight:
            self._new_date()
        self.desk.measure(end_ns)
        if not silent:
            self._decide(end_ns)

    def _push(self, closed: Mapping[str, Bars]) -> None:
        """Hand bars to the evaluator, all symbols of a second before those of the next."""
        rows = sorted(
            (int(t_ns), symbol, n)
            for symbol, bars in closed.items()
            for n, t_ns in enumerate(bars.t_ns)
        )
        for t_ns, symbol, n in rows:
            lane = self.lanes[symbol]
            lane.row, lane.row_ns = closed[symbol].values[n], t_ns
            self._evaluator.push(symbol, t_ns, lane.row)

    def _new_date(self) -> None:
        """Midnight: bars begin anew from what is held, unless it was said too long ago."""
        if self._turned is not None:
            self._turned(self.second_ns)
        fresh = self.second_ns - self.heard_ns <= MAX_SILENCE_NS
        for lane in self.lanes.values():
            lane.restart(lane.restate(self.second_ns)[: None if fresh else 0])

    def _settle_funding(self) -> None:
        """Settle what fell due by this second with the mark and rate known before it."""
        for symbol, lane in self.lanes.items():
            if self.second_ns >= lane.funding_ns and self.desk.position_lots(symbol):
                if lane.funding is None:
                    self.unpriced_funding += 1
                else:
                    self.desk.settle_funding(symbol, lane.funding_ns, *lane.funding)
            self._note_funding(lane, self.second_ns)

    def _note_funding(self, lane: Lane, now_ns: int) -> None:
        ticker = lane.held.ticker
        mark, rate = ticker.get(Field.MARK_PRICE), ticker.get(Field.FUNDING_RATE)
        lane.funding = None if mark is None or rate is None else (mark, rate)
        told_ns = ticker.get(Field.NEXT_FUNDING_MS, 0) * 1_000_000
        lane.funding_ns = told_ns if told_ns > now_ns else (now_ns // FUNDING_NS + 1) * FUNDING_NS

    # -- decisions -------------------------------------------------------------------------------

    def _decide(self, t_ns: int) -> None:
        model = self._model
        if model.refresh():
            self._columns = self._of_model()
        for symbol in self._settings.market.symbols:
            lane = self.lanes[symbol]
            if lane.row is None or lane.row_ns != t_ns:
                lane.target = lane.target_lots = 0
                self.desk.aim(symbol, 0, t_ns, None)
                continue
            vector, warm = self._evaluator.evaluate(symbol)
            mid, spread_bps = float(lane.row[_MID]), float(lane.row[_SPREAD])
            if warm and not self._was_warm:
                self._was_warm = True
                self._log.info("warm", symbol=symbol, t_ns=t_ns)
            sound = warm and not math.isnan(mid)
            found = self._expect(symbol, t_ns, vector) if sound else self._nothing()
            expected = found.expected_bps
            cost_bps = self._fees_bps + spread_bps
            target = self._target(lane, t_ns, expected, cost_bps, mid, sound)
            if self._decided is not None:
                self._decided(
                    Decision(
                        symbol=symbol,
                        t_ns=t_ns,
                        model_version=model.pointer.version,
                        bundle_sha=model.pointer.manifest_sha256,
                        expected_bps=expected,
                        raw_bps=found.raw_bps,
                        by_horizon=found.by_horizon,
                        regime=found.regime,
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
            self.desk.aim(
                symbol, lane.target_lots, t_ns, None if math.isnan(expected) else expected
            )
            self.desk.step(symbol, t_ns)

    def _expect(self, symbol: str, t_ns: int, vector: npt.NDArray[np.float64]) -> Prediction:
        """The model's expectation of a symbol at t from its features (all of them, in order)."""
        return self._model.bundle.predict(vector[self._columns])

    def _nothing(self) -> Prediction:
        """The expectation where the market cannot be judged."""
        horizons = len(self._model.bundle.horizons_s)
        return Prediction(
            expected_bps=math.nan,
            raw_bps=math.nan,
            by_horizon=(math.nan,) * horizons,
            regime=NO_REGIME,
        )

    def _target(
        self, lane: Lane, t_ns: int, expected_bps: float, cost_bps: float, mid: float, sound: bool
    ) -> int:
        """The rule's next target; a market that cannot be judged means out."""
        signal_now = abs(expected_bps) > cost_bps
        lane.signals += signal_now
        target = 0
        if sound:
            age_s = (t_ns - lane.since_ns) / 1e9
            horizon_s = float(self._model.bundle.manifest.primary_s)
            target = next_target(lane.target, age_s, expected_bps, cost_bps, horizon_s)
        if signal_now and target:
            lane.since_ns = t_ns
        if target != lane.target:
            lane.entries += target != 0
            lane.target = target
            symbol = lane.instrument.symbol
            lane.target_lots = target * self.desk.size_lots(symbol, mid) if target else 0
        return target

    def _of_model(self) -> npt.NDArray[np.intp]:
        """Where the model's features stand in the evaluator's vector."""
        place = {name: n for n, name in enumerate(self._names)}
        return np.array([place[name] for name in self._model.bundle.manifest.features], np.intp)
