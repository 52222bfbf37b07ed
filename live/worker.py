"""The worker: frames in, decisions every second, orders through the venue, all of it on record.

    frame ─► own capture ─► decoder ─► bars (book inside) ─► the venue's market
    second ends ─► bars close ─► features ─► champion ─► decision, logged with its vector ─► target
    venue's answers, touch, time ─► desk ─► algorithm ─► journal ─► venue

One thread, one loop, the receive clock: what happens depends on the feed's items alone, so a replay
repeats bit by bit. Only reading a bundle, finishing an hour's file and reading the socket run
elsewhere. What matters is on record before it acts: the frame before it is decoded, the intent
before it is sent.

At midnight UTC the capture begins a new file and the bars begin anew from the book and ticker held,
exactly as the batch does with a date's partition; so live and batch have one meaning on every date.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from execution.target import next_target
from live.champion import Champion
from live.collect import collect
from live.decisions import Decision, DecisionLog
from live.desk import Desk
from live.feed import Feed, Item, ReplayFeed, WireFeed, topics
from live.history import join
from live.journal import Journal
from live.paper import LiveVenue, PaperVenue
from live.recorder import Held, Recorder, checkpoints
from live.report import logger
from live.report import summary_text as summary_text
from market.bars import COLUMNS, BarBuilder, Bars
from market.decode import Decoder, Reject
from market.features import FeatureEvaluator, feature_hash, feature_names
from market.ingest import HELD_NS
from market.instruments import BUILT_IN, Instrument, leader
from market.lake import DAY_NS, Lake, utc_date
from market.settings import FEE_ROWS_BPS, Settings
from market.survey import instruments_of

SECOND_NS: Final = 1_000_000_000
_MID, _SPREAD = (list(COLUMNS).index(name) for name in ("mid_close", "spread_bps"))


class Lane:
    """One symbol: its bars under way, and what was decided about it last."""

    def __init__(self, instrument: Instrument, stale_after_s: float) -> None:
        self.instrument = instrument
        self.stale_after_s = stale_after_s
        self.builder = BarBuilder(instrument, stale_after_s)
        self.held = Held()
        self.row: npt.NDArray[np.float64] | None = None  #: the bar that closed last
        self.target = 0
        self.target_lots = 0
        self.since_ns = 0  #: when the target was taken or last confirmed
        self.signals = 0
        self.entries = 0

    def restart(self) -> None:
        """Begin bars anew, as a date's partition does."""
        self.builder = BarBuilder(self.instrument, self.stale_after_s)


class Worker:
    """Drives one feed through one venue. `run` does all of it; `handle` takes one item.

    ``champion``, ``journal`` and ``venue`` are used, not owned. ``monotonic_ns`` is the clock that
    the feed's ``due_ns`` is of.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        lake: Lake,
        instruments: Mapping[str, Instrument],
        feed: Feed,
        venue: LiveVenue,
        champion: Champion,
        journal: Journal,
        log: Any,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._settings, self._lake, self._feed = settings, lake, feed
        self._venue, self._champion, self._journal, self._log = venue, champion, journal, log
        self._monotonic_ns = monotonic_ns
        self._instruments = instruments
        self._decoder = Decoder(instruments, settings.market.book_depth, instruments, follow=False)
        stale_after_s = settings.market.stale_after_s
        self.lanes = {
            name: Lane(instrument, stale_after_s) for name, instrument in instruments.items()
        }
        self._evaluator = FeatureEvaluator(settings.market.symbols)
        self._names = feature_names()
        self.desk = Desk(venue, journal, instruments, settings.execution, settings.live.venue, log)
        self._fees_bps = 2 * FEE_ROWS_BPS[settings.model.fee_row][0]
        self._columns = self._of_model()
        self.run_id = ""
        self._recorder: Recorder | None = None
        self._decisions: DecisionLog | None = None
        self._now_ns = 0
        self._second_ns = 0  #: the last second that was closed
        self._last_frame_ns = 0
        self._paced = False
        self._was_warm = False
        self._latencies_ns = array("q")
        self.frames = self.events = self.decided = self.gaps = 0
        self.rejects: dict[tuple[str, str], int] = {}
        self.skipped_seconds = self.warm_decisions = 0

    # -- one item of the feed --------------------------------------------------------------------

    def handle(self, item: Item) -> None:
        """Take one step: bare time or a frame."""
        if self._recorder is None:
            self._begin(item.receive_ns)
        now = max(self._now_ns, item.receive_ns)
        if now >= self._second_ns + SECOND_NS:
            started = item.due_ns or self._monotonic_ns()
            if item.due_ns and not self._paced:
                self._paced = True
                del self._latencies_ns[:]  # a warm-up is not paced, so it has no latency
            self._close_seconds(now)
            self._latencies_ns.append(self._monotonic_ns() - started)
        self._now_ns = now
        if item.frame is not None:
            self._take(item.receive_ns, item.frame)
        self._venue.advance(now)
        self.desk.step(now)

    def _take(self, receive_ns: int, frame: bytes) -> None:
        assert self._recorder is not None
        self.frames += 1
        self._last_frame_ns = self._now_ns
        self._recorder.append(receive_ns, frame)
        decoded = self._decoder.decode_frame(receive_ns, frame)
        for symbol, events in decoded.events.items():
            lane = self.lanes[symbol]
            self.events += len(events)
            lane.held.apply(events)
            late = lane.builder.push(events)
            if len(late):
                # Cannot be: seconds are closed before the first event behind them is pushed.
                raise RuntimeError(f"{symbol}: an event closed {len(late)} bars before the clock")
            self._venue.on_events(symbol, events)
        self.gaps += decoded.gaps
        for reject in decoded.rejects:
            self._note_reject(reject)

    def _note_reject(self, reject: Reject) -> None:
        """Count a refused frame; the capture has it. Of the same kind the 1st, 10th, 100th … is told."""
        kind = reject.topic, reject.reason
        times = self.rejects[kind] = self.rejects.get(kind, 0) + 1
        if str(times).strip("0") == "1":
            self._log.warning(
                "frame rejected",
                topic=reject.topic,
                reason=reject.reason,
                detail=reject.detail,
                times=times,
            )

    def _begin(self, first_ns: int) -> None:
        """Name the run, open its files, and join the lake's history where it ends at this second."""
        runs = sum(1 for _ in self._journal.entries("run"))
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(first_ns // SECOND_NS))
        self.run_id = f"{self._settings.live.venue}-{stamp}-{runs + 1}"
        self._second_ns = self._now_ns = first_ns // SECOND_NS * SECOND_NS
        self._recorder = Recorder(self._settings.root, self.run_id, self._instruments)
        self._decisions = DecisionLog(
            self._journal.path.parent / "decisions", self.run_id, self._names
        )
        for found in self._decisions.recovered:
            self._log.warning(
                "decisions recovered", file=str(found.path), rows=found.rows, torn=found.torn
            )
        about = {"model": self._champion.pointer.version, "symbols": list(self.lanes)}
        self._journal.note("run", first_ns, msgspec.json.encode({"run": self.run_id, **about}))
        left = self._journal.open_orders()
        self._journal.record(self._venue.settle(left, first_ns))
        self._log.info("start", run=self.run_id, orders_settled=len(left), **about)
        history = join(self._lake, self._instruments, self._second_ns)
        restated: list[bytes] = []
        if history is not None:
            for symbol, (bars, book, held) in history.items():
                self._evaluator.push_many(symbol, bars.t_ns, bars.values)
                restated += checkpoints(
                    self._instruments[symbol], book, held, self._settings.market.book_depth
                )
            self._log.info(
                "history joined", seconds=min(len(bars) for bars, *_ in history.values())
            )
        self._recorder.open(self._second_ns, restated)
        self._restate(restated)

    def _restate(self, lines: list[bytes]) -> None:
        """Open bars with what the capture's file opens with."""
        for line in lines:
            for symbol, events in self._decoder.decode_frame(self._second_ns, line).events.items():
                self.lanes[symbol].builder.push(events)
                self.lanes[symbol].held.apply(events)

    def _new_date(self) -> None:
        """Midnight: the capture goes on in a new file, and bars begin anew from what is held."""
        assert self._recorder is not None
        restated: list[bytes] = []
        for symbol, lane in self.lanes.items():
            if self._second_ns - self._last_frame_ns <= HELD_NS:
                restated += checkpoints(
                    self._instruments[symbol],
                    lane.builder.book,
                    lane.held,
                    self._settings.market.book_depth,
                )
            lane.restart()
        self._recorder.open(self._second_ns, restated)
        self._restate(restated)
        self._log.info("new date", date=utc_date(self._second_ns), capture=self._recorder.paths[-1])

    # -- a second ends ---------------------------------------------------------------------------

    def _close_seconds(self, now_ns: int) -> None:
        """Close every second up to ``now_ns``; decide at the last, because the others are past."""
        last = now_ns // SECOND_NS * SECOND_NS
        self.skipped_seconds += (last - self._second_ns) // SECOND_NS - 1
        while self._second_ns < last:
            # Up to the next midnight at once: there the bars begin anew.
            midnight = (self._second_ns // DAY_NS + 1) * DAY_NS
            self._second_ns = min(last, midnight)
            closed = {
                symbol: lane.builder.close_until(self._second_ns)
                for symbol, lane in self.lanes.items()
            }
            self._push(closed)
            if self._second_ns == midnight:
                self._new_date()
        self._decide(last)

    def _push(self, closed: Mapping[str, Bars]) -> None:
        """Hand bars to the evaluator, all symbols of a second before those of the next."""
        rows = sorted(
            (int(t_ns), symbol, n)
            for symbol, bars in closed.items()
            for n, t_ns in enumerate(bars.t_ns)
        )
        for t_ns, symbol, n in rows:
            row = closed[symbol].values[n]
            self._evaluator.push(symbol, t_ns, row)
            self.lanes[symbol].row = row

    def _decide(self, t_ns: int) -> None:
        assert self._decisions is not None
        if self._champion.refresh():
            self._columns = self._of_model()
        champion = self._champion
        for symbol in self._settings.market.symbols:
            lane = self.lanes[symbol]
            if lane.row is None:
                continue
            vector, warm = self._evaluator.evaluate(symbol)
            mid, spread_bps = float(lane.row[_MID]), float(lane.row[_SPREAD])
            sound = warm and not math.isnan(mid)
            if warm and not self._was_warm:
                self._was_warm = True
                self._log.info("warm", symbol=symbol, t_ns=t_ns)
            expected = raw = math.nan
            by_horizon = (math.nan,) * len(champion.bundle.horizons_s)
            regime = "unknown"
            if sound:
                found = champion.bundle.predict(vector[self._columns])
                expected, raw = found.expected_bps, found.raw_bps
                by_horizon, regime = found.by_horizon, found.regime
            cost_bps = self._fees_bps + spread_bps
            target = self._target(lane, t_ns, expected, cost_bps, mid)
            position = self.desk.position_lots(symbol)
            self._decisions.add(
                Decision(
                    symbol=symbol,
                    t_ns=t_ns,
                    model_version=champion.pointer.version,
                    bundle_sha=champion.pointer.manifest_sha256,
                    expected_bps=expected,
                    raw_bps=raw,
                    by_horizon=by_horizon,
                    regime=regime,
                    warm=warm,
                    target=target,
                    position_lots=position,
                    cost_bps=cost_bps,
                    mid=mid,
                    spread_bps=spread_bps,
                    vector=vector,
                ),
                champion.bundle.horizons_s,
            )
            self.decided += 1
            self.warm_decisions += warm
            self.desk.aim(
                symbol, lane.target_lots, t_ns, None if math.isnan(expected) else expected
            )

    def _target(
        self, lane: Lane, t_ns: int, expected_bps: float, cost_bps: float, mid: float
    ) -> int:
        """The rule's next target; a book that cannot be trusted means out."""
        signal_now = abs(expected_bps) > cost_bps
        lane.signals += signal_now
        if math.isnan(mid):
            target = 0
        else:
            age_s = (t_ns - lane.since_ns) / 1e9
            horizon_s = float(self._champion.bundle.manifest.primary_s)
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
        return np.array([place[name] for name in self._champion.bundle.manifest.features], np.intp)

    # -- from beginning to end -------------------------------------------------------------------

    def run(self, flatten: bool = True) -> dict[str, Any]:
        """Consume the feed to its end; returns the summary. Whatever happens, files are finished."""
        with ExitStack() as stack:
            stack.callback(self._finish)
            for item in self._feed:
                self.handle(item)
            if self.run_id:
                self._now_ns = self.desk.close(self._now_ns, flatten)
        summary = self.summary()
        self._log.info("stop", **summary)
        return summary

    def _finish(self) -> None:
        if self._decisions is not None:
            self._decisions.close()
        if self._recorder is not None:
            self._recorder.close()

    def summary(self) -> dict[str, Any]:
        """What the run saw, decided, did, and what it cost; plain data."""
        latencies = np.array(self._latencies_ns or [0], np.float64) / 1e3
        p50, p99, p999 = np.percentile(latencies, (50, 99, 99.9)).round(1).tolist()
        return {
            "run": self.run_id,
            "model": f"{self._champion.pointer.name} {self._champion.pointer.version}",
            "fee_row": self._settings.model.fee_row,
            "frames": self.frames,
            "events": self.events,
            "rejected": sum(self.rejects.values()),
            "gaps": self.gaps,
            "decisions": self.decided,
            "warm_decisions": self.warm_decisions,
            "skipped_seconds": self.skipped_seconds,
            "signals": {name: lane.signals for name, lane in self.lanes.items()},
            "entries": {name: lane.entries for name, lane in self.lanes.items()},
            **self.desk.summary(),
            "swaps": self._champion.swaps,
            "bundles_refused": self._champion.refused,
            "latency_us": {"p50": p50, "p99": p99, "p99.9": p999, "n": len(self._latencies_ns)},
            "captures": self._recorder.paths if self._recorder is not None else [],
        }


# -- putting it together ---------------------------------------------------------------------------


def run(
    settings: Settings,
    *,
    frames: Sequence[str] = (),
    speed: float = 1.0,
    warm_up_s: float = 0.0,
    duration_s: float | None = None,
    url: str | None = None,
    flatten: bool = True,
) -> dict[str, Any]:
    """Run a worker over captures (``frames``) or a WebSocket (``url``) until the feed ends.

    The feed ends with its captures, after ``duration_s`` seconds, or at SIGTERM or SIGINT; open
    orders are then cancelled and, with ``flatten``, positions closed. Returns `Worker.summary`.
    Raises NoChampionError, BundleError, FeedError, JournalError, LakeError, one line each.
    """
    log = logger()
    symbols = followed(settings.market.symbols)
    champion = Champion(
        settings.root,
        settings.model_name,
        feature_hash=feature_hash(),
        book_topic=f"orderbook.{settings.market.book_depth}",
        source=settings.source,
        symbols=settings.market.symbols,
        log=log,
    )
    with ExitStack() as stack:
        stack.callback(champion.close)
        feed: ReplayFeed | WireFeed
        if url is not None:
            wanted = topics(symbols, settings.market.book_depth)
            feed = WireFeed(url, wanted, duration_s=duration_s)
        else:
            feed = ReplayFeed(frames, speed=speed, warm_up_s=warm_up_s, duration_s=duration_s)
        instruments = known_instruments(symbols, frames, settings.market.book_depth)
        lake = Lake(settings.root, settings.source)
        state = Path(settings.root) / "live" / settings.live.venue
        journal = stack.enter_context(Journal(state / "journal.sqlite3"))
        worker = Worker(
            settings,
            lake=lake,
            instruments=instruments,
            feed=feed,
            venue=PaperVenue(instruments, settings, journal.positions),
            champion=champion,
            journal=journal,
            log=log,
        )
        stack.enter_context(stopping(feed, log))
        summary = worker.run(flatten)
    return summary | {"collected": collect(lake, state, settings.live.venue)}


def followed(symbols: Sequence[str]) -> list[str]:
    """The symbols traded, and those whose bars enter their features."""
    return list(dict.fromkeys([*symbols, *(leader(symbol) for symbol in symbols)]))


def known_instruments(
    symbols: Sequence[str], captures: Sequence[str], book_depth: int
) -> dict[str, Instrument]:
    """The instruments behind the symbols: what the captures say of them, else the built-in ones.

    ValueError when neither knows a symbol.
    """
    known = BUILT_IN | (instruments_of(captures, symbols, book_depth) if captures else {})
    if missing := [symbol for symbol in symbols if symbol not in known]:
        raise ValueError(
            f"{', '.join(missing)}: tick and lot are not known; use a capture that opens with its "
            "instruments, or add the symbol to market/instruments.py"
        )
    return {symbol: known[symbol] for symbol in symbols}


@contextmanager
def stopping(feed: Feed, log: Any) -> Iterator[None]:
    """SIGTERM and the first SIGINT end the feed, so that the worker stops in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        feed.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
