"""What benchmarks measure must be the real thing: the live path is judged by what it computes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from market.bars import COLUMNS
from market.instruments import BUILT_IN
from market.settings import Settings
from market.wire.capture import read_lines
from proving.bench.calibration import real_time
from proving.bench.command import peak_mb
from proving.bench.features import Frame, LivePath, _replayed
from proving.synthetic import profile, write_frames

SYMBOLS = ("BTCUSDT", "ETHUSDT")


@cache
def lines() -> list[Frame]:
    """Six seconds of both symbols."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.frames.zst"
        write_frames(path, profile("default"), 3, SYMBOLS, "2026-01-05", 0, 6)
        return list(read_lines(path))


def taken(batches: Sequence[Sequence[Frame]]) -> tuple[int, list[bytes], list[dict[str, int]]]:
    """Seconds closed, feature vectors and books after the batches."""
    path = LivePath({symbol: BUILT_IN[symbol] for symbol in SYMBOLS}, Settings())
    for symbol in SYMBOLS:
        path.remember(symbol, np.zeros((1, len(COLUMNS))), lines()[0][0])
    closed = sum(path.take(batch) for batch in batches if batch)
    vectors = [path.vectors[symbol].tobytes() for symbol in SYMBOLS]
    return closed, vectors, [path.builders[symbol].book.counters for symbol in SYMBOLS]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_batches_and_single_frames_give_the_same_features(cuts: list[int]) -> None:
    frames = lines()
    places = sorted({0, len(frames), *(cut % len(frames) for cut in cuts)})
    together = taken([frames[a:b] for a, b in pairwise(places)])
    assert together == one_by_one()
    assert together[0] == 5
    assert all(counters["frames"] > 40 for counters in together[2])


@cache
def one_by_one() -> tuple[int, list[bytes], list[dict[str, int]]]:
    return taken([[frame] for frame in lines()])


def test_a_replay_passes_every_frame_on_once_and_in_order() -> None:
    seen: list[Frame] = []

    def take(frames: Sequence[Frame]) -> int:
        seen.extend(frames)
        return int(len(seen) == len(lines()))

    latencies, closing = _replayed(take, lines(), 1000.0)
    assert seen == lines()
    assert len(latencies) == len(closing) == len(lines())
    assert (latencies > 0).all()
    assert closing[-1]
    assert not closing[0]


def test_peak_memory_excludes_the_parents() -> None:
    held = np.ones(60_000_000)
    ours = peak_mb()
    assert ours > held.nbytes / 1e6
    command = "from proving.bench.command import peak_mb; print(peak_mb())"
    child = subprocess.run(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, check=True
    )
    assert 1 < float(child.stdout) < held.nbytes / 1e6


def test_real_time_priority_ends_with_its_block() -> None:
    before = os.sched_getscheduler(0)
    with real_time() as priority:
        inside = os.sched_getscheduler(0)
    assert (inside == os.SCHED_FIFO) == (priority == "real-time priority")
    assert os.sched_getscheduler(0) == before
