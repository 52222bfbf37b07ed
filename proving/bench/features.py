"""Latency of the live path, for `l2 bench market`: decode, book, bars and all features of two symbols.

Open loop: every frame is due at its recorded receive time divided by the speed, whatever the path is
doing then. Its latency runs from then until everything that follows from it is done, queueing included
(no coordinated omission). Frames that have come due meanwhile are processed as one batch.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from market.bars import COLUMNS, BarBuilder, bars_from_chunks
from market.features import FeatureEvaluator, feature_names
from market.features.evaluator import RING_S
from market.instruments import Instrument
from market.settings import Settings
from market.units import SECOND_NS
from market.wire.capture import Block, read_lines
from market.wire.decode import Decoder
from market.wire.results import Decoded
from market.wire.survey import instruments_of
from proving.bench.calibration import real_time
from proving.bench.goals import Measure

Frame = tuple[int, bytes]

_MOST_AT_ONCE: Final = 4096
#: Features of a model, as `market.settings.Model.select`.
_TAKEN: Final = 25
_GAP: Final = list(COLUMNS).index("gap")


class LivePath:
    """The worker's path from a frame to features, before any decision: events, book, bars, features.

    A frame that comes after the end of a second first closes that second for every symbol and
    evaluates all features of every symbol.
    """

    def __init__(self, instruments: Mapping[str, Instrument], settings: Settings) -> None:
        depth = settings.market.book_depth
        self.decoder = Decoder(instruments, depth, instruments, follow=False)
        self.builders = {
            symbol: BarBuilder(instrument, settings.market.stale_after_s)
            for symbol, instrument in instruments.items()
        }
        self.evaluator = FeatureEvaluator(tuple(instruments))
        self.vectors: dict[str, npt.NDArray[np.float64]] = {}
        self._second_ns = 0

    def remember(self, symbol: str, bars: npt.NDArray[np.float64], before_ns: int) -> None:
        """Warm up the evaluator with bars (n, len(COLUMNS)), repeated, up to an instant."""
        last = before_ns // SECOND_NS * SECOND_NS
        for n in range(RING_S):
            t_ns = last - (RING_S - 1 - n) * SECOND_NS
            self.evaluator.push(symbol, t_ns, bars[n % len(bars)])
        self._second_ns = last

    def take(self, frames: Sequence[Frame]) -> int:
        """Process frames in order; returns the number of seconds that they closed."""
        closed = self._reach(frames[0][0])
        if len(frames) == 1:
            self._push(self.decoder.decode_frame(*frames[0]))
            return closed
        left: Block | None = Block("", 1, b"".join(b"%d %b\n" % frame for frame in frames))
        while left is not None:
            part = self.decoder.decode_part(left, self._second_ns + SECOND_NS)
            self._push(part)
            left = part.rest
            if left is not None and part.reached:
                closed += self._reach(int(left.data.split(b" ", 1)[0]))
        return closed

    def _push(self, decoded: Decoded) -> None:
        for symbol, events in decoded.events.items():
            self.builders[symbol].push(events)

    def _reach(self, receive_ns: int) -> int:
        """Close the seconds that end at or before a receive time; returns how many."""
        last = receive_ns // SECOND_NS * SECOND_NS
        closed = (last - self._second_ns) // SECOND_NS
        if closed <= 0:
            return 0
        self._second_ns = last
        for symbol, builder in self.builders.items():
            bars = builder.close_until(last)
            for t_ns, row in zip(bars.t_ns.tolist(), bars.values, strict=True):
                self.evaluator.push(symbol, t_ns, row)
        for symbol in self.builders:
            self.vectors[symbol], _ = self.evaluator.evaluate(symbol)
        return closed


def features(
    data: str,
    capture: str,
    symbols: Sequence[str],
    paced_s: float,
    burst_s: float,
    warm_up_s: float,
) -> Iterator[Measure]:
    """Latencies of the live path over one capture, and the evaluator's alone.

    The first ``warm_up_s`` of the capture are unpaced, the next ``paced_s`` at the recorded pace, the
    rest at ten times that for at most ``burst_s`` of wall-clock time.
    """
    settings = Settings()
    instruments = instruments_of([capture], symbols)
    lines = list(read_lines(capture))
    start = lines[0][0]
    history = {
        symbol: _whole_bars(symbol, instrument, lines, settings)
        for symbol, instrument in instruments.items()
    }
    path = LivePath(instruments, settings)
    for symbol, bars in history.items():
        path.remember(symbol, bars, start)
    steps = (
        ("recorded pace", 1.0, warm_up_s + paced_s),
        ("10x burst", 10.0, warm_up_s + paced_s + 10 * burst_s),
    )
    at = 0
    while at < len(lines) and lines[at][0] < start + warm_up_s * SECOND_NS:
        path.take(lines[at : at + 1])
        at += 1
    for pace, speed, until_s in steps:
        stop = at
        while stop < len(lines) and lines[stop][0] < start + until_s * SECOND_NS:
            stop += 1
        if stop > at:
            with real_time() as priority:
                latencies = _replayed(path.take, lines[at:stop], speed)
            yield from _percentiles(f"{data}, {priority}", pace, *latencies)
        at = stop
    with real_time() as priority:
        alone = list(_evaluator_alone(f"{data}, {priority}", history, start))
    yield from alone
    yield _stalls(min(5.0, paced_s))


def _stalls(span_s: float) -> Measure:
    """The longest time for which the machine descheduled this process: a floor of the latencies above."""
    clock = time.perf_counter_ns
    before = started = clock()
    longest = 0
    while before - started < span_s * SECOND_NS:
        now = clock()
        longest = max(longest, now - before)
        before = now
    return Measure(
        name="machine: longest stall",
        ours=longest / 1e6,
        unit="ms",
        better="less",
        how=f"an empty loop at normal priority looks at the clock for {span_s:g} s; not ours to improve",
    )


def _whole_bars(
    symbol: str, instrument: Instrument, lines: Sequence[Frame], settings: Settings
) -> npt.NDArray[np.float64]:
    """The bars of the capture's whole seconds in which the book was valid."""
    decoder = Decoder({symbol: instrument}, settings.market.book_depth, [symbol], follow=False)
    decoded = (decoder.decode_frame(*line).events for line in lines)
    chunks = [events[symbol] for events in decoded if symbol in events]
    values = bars_from_chunks([np.concatenate(chunks)], instrument, settings).values
    whole: npt.NDArray[np.float64] = values[values[:, _GAP] == 0.0]
    return whole


def _replayed(
    take: Callable[[Sequence[Frame]], int], lines: Sequence[Frame], speed: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Latency (ns) of every frame, and which frames came with the close of a second."""
    latencies = np.zeros(len(lines), np.int64)
    closing = np.zeros(len(lines), np.bool_)
    received = np.maximum.accumulate(np.array([receive_ns for receive_ns, _ in lines]))
    clock = time.perf_counter_ns
    anchor = clock() + SECOND_NS // 1000
    due_ns = anchor + ((received - received[0]) / speed).astype(np.int64)
    due: list[int] = due_ns.tolist()
    at = 0
    while at < len(lines):
        while (wait_ns := due[at] - clock()) > 0:
            time.sleep(wait_ns / SECOND_NS)  # as a worker sleeps until its socket has something
        stop = bisect_right(due, clock(), at + 1, min(len(lines), at + _MOST_AT_ONCE))
        closing[at:stop] = take(lines[at:stop]) > 0
        latencies[at:stop] = clock() - due_ns[at:stop]
        at = stop
    return latencies, closing


def _percentiles(
    data: str, pace: str, latencies: npt.NDArray[np.int64], closing: npt.NDArray[np.bool_]
) -> Iterator[Measure]:
    how = (
        f"{data}, two symbols, {len(latencies):,} frames, of which {int(closing.sum()):,} come with the "
        f"close of a second ({len(feature_names())} features of each symbol); counted from the "
        "instant a frame is due; the frames due by then are taken together"
    )
    for name, of, share in (
        ("p99", latencies, 99.0),
        ("p99.9", latencies, 99.9),
        ("p99 of closes", latencies[closing], 99.0),
    ):
        if len(of):
            value = float(np.percentile(of, share)) / 1e6
            yield Measure(
                name=f"features, {pace}: {name}", ours=value, unit="ms", better="less", how=how
            )


def _evaluator_alone(
    data: str, history: Mapping[str, npt.NDArray[np.float64]], start_ns: int
) -> Iterator[Measure]:
    """One bar pushed and the features of one symbol evaluated, second by second: of all, and of a model."""
    names = feature_names()
    drawn = np.random.default_rng(0).choice(names, _TAKEN, replace=False).tolist()
    spent = {
        "all": _evaluated(history, start_ns, names),
        "model": _evaluated(history, start_ns, drawn),
    }
    how = f"{data}; push of a bar and all {len(names)} features of one symbol, {len(spent['all']):,} times on full windows"
    yield Measure(
        name="evaluator alone: p99",
        ours=float(np.percentile(spent["all"], 99)) / 1e3,
        unit="µs",
        better="less",
        how=how,
    )
    yield Measure(
        name="evaluator alone, features of a model: median",
        ours=float(np.median(spent["model"])) / 1e3,
        peer=float(np.median(spent["all"])) / 1e3,
        unit="µs",
        better="less",
        how=f"the same with {_TAKEN} features drawn at random, as many as a model takes, beside all of them",
    )


def _evaluated(
    history: Mapping[str, npt.NDArray[np.float64]], start_ns: int, names: Sequence[str]
) -> list[int]:
    """Time (ns) of each push and evaluation of these features."""
    evaluator = FeatureEvaluator(tuple(history), names)
    first = start_ns // SECOND_NS
    spent = []
    rounds = RING_S + max(map(len, history.values()))
    for n in range(rounds):
        for symbol, bars in history.items():
            bar = bars[n % len(bars)]
            started = time.perf_counter_ns()
            evaluator.push(symbol, (first + n) * SECOND_NS, bar)
            if n >= RING_S:
                evaluator.evaluate(symbol)
                spent.append(time.perf_counter_ns() - started)
            elif n == RING_S - 1:
                evaluator.evaluate(symbol)
    return spent
