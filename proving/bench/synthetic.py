"""`l2 bench synth`: throughput of the synthetic market, from latent paths to event rows, and memory.

An L3 event is an order entered, amended or cancelled, or an execution in the matching engine. There is
no peer: the questions are how many a second, whether a longer run costs more per event, and whether
more days need more memory.

    python -m proving.bench.synthetic DAYS SECONDS      prints the peak memory of a process of its own
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Final

from market.console import Say
from market.lake import Lake
from market.units import DAY_S, SECOND_NS
from proving.bench.goals import Measure
from proving.synthetic import reduced
from proving.synthetic.marketplace import SyntheticMarket
from proving.synthetic.profiles import profile

_SEED: Final = 1
_DAYS: Final = ("2026-03-01", "2026-03-02")


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is measured; ``quick`` runs minutes instead of days."""
    day_s, hour_s = (120, 60) if quick else (DAY_S, 3600)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        say(f"one day of {symbol}")
        compile_market(symbol)
        took, events = run(symbol, _DAYS[0], [0, hour_s, day_s])
        how = f"one run of {day_s:,} s, default profile, one core, JIT excluded"
        yield Measure(
            name=f"a day to events, {symbol}",
            ours=sum(took),
            unit="s",
            better="less",
            how=f"{how}; the hidden day included",
        )
        yield Measure(
            name=f"L3 events a second, {symbol}",
            ours=sum(events) / sum(took[1:]),
            unit="events/s",
            how=f"{how}; the hidden day not included",
        )
        yield Measure(
            name=f"cost per L3 event, a day over its first hour, {symbol}",
            ours=sum(took[1:]) / sum(events) / (took[1] / events[0]),
            unit="times",
            better="less",
            how=f"{day_s:,} s and the first {hour_s:,} s of the same run",
        )
    say("a day of bars in the reduced form")
    for symbol in ("BTCUSDT", "ETHUSDT"):
        yield Measure(
            name=f"a day to bars in the reduced form, {symbol}",
            ours=reduced_day(symbol),
            unit="s",
            better="less",
            how="default profile, one core, written to Parquet; the hidden day included, JIT excluded",
        )
    say("memory of one day and of two")
    one, two = (peak_mb(count, day_s) for count in (1, 2))
    yield Measure(
        name="peak memory of a day",
        ours=one,
        unit="MB",
        better="less",
        how="a process of its own that generates BTCUSDT and keeps nothing",
    )
    yield Measure(
        name="peak memory, two days over one",
        ours=two / one,
        unit="times",
        better="less",
        how="as above",
    )


def compile_market(symbol: str) -> None:
    """Compile the kernels, or load them from the cache."""
    market = SyntheticMarket(profile("default"), _SEED, symbol, _DAYS[0])
    market.advance(market.midnight_ns + SECOND_NS)


def run(symbol: str, day: str, stops_s: Sequence[int]) -> tuple[list[float], list[int]]:
    """Seconds to make the latent day, then seconds and L3 events from each stop to the next."""
    started = time.perf_counter()
    market = SyntheticMarket(profile("default"), _SEED, symbol, day)
    took, events = [time.perf_counter() - started], []
    for stop_s in stops_s[1:]:
        started, before = time.perf_counter(), market.counts["events"]
        end_ns = market.midnight_ns + stop_s * SECOND_NS
        while market.now_ns < end_ns:
            market.chunk(end_ns)
        took.append(time.perf_counter() - started)
        events.append(market.counts["events"] - before)
    return took, events


def reduced_day(symbol: str) -> float:
    """Seconds to make and write a day's bars without events."""
    market = profile("default")
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder, "synthetic")
        reduced.write_bars(lake, market, _SEED, symbol, _DAYS[0])
        started = time.perf_counter()
        reduced.write_bars(lake, market, _SEED, symbol, _DAYS[1])
        return time.perf_counter() - started


def peak_mb(days: int, stop_s: int) -> float:
    """Peak memory (MB) of a process that generates so many days, one after the other."""
    command = [sys.executable, "-m", "proving.bench.synthetic", str(days), str(stop_s)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    for name in _DAYS[: int(sys.argv[1])]:
        run("BTCUSDT", name, [0, int(sys.argv[2])])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
