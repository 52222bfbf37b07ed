"""`l2 bench growth`: what a symbol-day costs when there are 2 of them, and when there are 60.

    python -m proving.bench.growth ROOT FIRST LAST

takes captures of a range of dates through ingest, bars and feature tables, a date after the other, as the
pipeline's steps do, and prints the processor seconds of each. The first date warms up (imports, compiled
kernels) and is not counted. Days are of a few minutes: how the cost grows with their number is what is
measured, and the cost of whole days is in `l2 bench lake` and `market`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from market.console import Say
from market.errors import DataError
from market.lake import Lake
from market.settings import load
from market.units import days_between
from proving.bench.goals import Measure
from proving.bench.lake import SYMBOLS, resident, size_below

#: Symbol-days of the runs.
SIZES: Final = (2, 10, 60)
STEPS: Final = ("ingest", "bars", "features")
_FIRST: Final = "2026-01-05"
_SEED: Final = 11
_SPAN_S: Final = 600
_SAMPLE_S: Final = 0.1


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area: the sizes one after the other, then the largest over the smallest."""
    with tempfile.TemporaryDirectory() as folder:
        yield from grown(Path(folder), SIZES[:1] if quick else SIZES, 20 if quick else _SPAN_S, say)


def grown(folder: Path, sizes: tuple[int, ...], span_s: int, say: Say) -> Iterator[Measure]:
    """The figures of these numbers of symbol-days, each of ``span_s`` seconds."""
    from proving import synthetic

    dates = days_between(_FIRST, "2026-12-31")[: 1 + max(sizes) // len(SYMBOLS)]
    source = Lake(folder / "captures", "synthetic")
    say(f"making captures of {len(dates)} dates")
    for day in dates:
        synthetic.write_frames(
            source, synthetic.profile("demo"), _SEED, SYMBOLS, day, stop_s=span_s
        )
    how = (
        f"{len(SYMBOLS)} symbols, {span_s} s of the demo market a day; processor seconds of the process and "
        f"those it started; memory and staging looked at every {_SAMPLE_S:g} s"
    )
    found: dict[str, list[float]] = {}
    for size in sizes:
        figures = _run(folder, dates[: 1 + size // len(SYMBOLS)], size)
        for name, (value, unit) in figures.items():
            found.setdefault(name, []).append(value)
            yield Measure(
                name=f"{size} symbol-days: {name}", ours=value, unit=unit, better="less", how=how
            )
    if len(sizes) > 1:
        for name, values in found.items():
            yield Measure(
                name=f"{name}, {sizes[-1]} over {sizes[0]} symbol-days",
                ours=values[-1] / values[0],
                unit="ratio",
                better="less",
                how=how,
            )


def _run(folder: Path, dates: list[str], size: int) -> dict[str, tuple[float, str]]:
    lake = Lake(folder / str(size), "synthetic")
    Path(lake.base, "frames").symlink_to(folder / "captures" / "frames")
    command = [sys.executable, "-m", "proving.bench.growth", lake.base, dates[0], dates[-1]]
    peak = staged = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            staged = max(staged, size_below(lake.home / "staging"))
            time.sleep(_SAMPLE_S)
        printed = process.stdout.read() if process.stdout else b""
    if process.returncode:
        raise DataError(f"{dates[0]} to {dates[-1]} failed; see above")
    used = json.loads(printed.splitlines()[-1])
    stored = sum(
        entry.size
        for table in lake.tables()
        for (_, day), entry in lake.entries(table).items()
        if day != dates[0]
    )
    return {
        **{f"{step}, a symbol-day": (used[step] / size, "CPU s") for step in STEPS},
        "all steps, a symbol-day": (sum(used.values()) / size, "CPU s"),
        "peak memory": (peak / 1e6, "MB"),
        "peak staging": (staged / 1e6, "MB"),
        "stored, a symbol-day": (stored / size / 1e6, "MB"),
    }


def _used_s() -> float:
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in each)


def main(root: str, first: str, last: str) -> None:
    """The steps over a range of dates; prints the processor seconds of each as JSON."""
    from assets.market_data import bars_of, captures_for
    from assets.warehouse import build_range
    from market.ingest import ingest

    settings = load(environ={}, overrides=[f"root={root}", "source=synthetic"])
    lake, used = Lake(root, "synthetic"), dict.fromkeys(STEPS, 0.0)
    os.environ["L2_ROOT"] = root
    for day in days_between(first, last):
        marks = [_used_s()]
        ingest(lake, captures_for(lake, [day]), [(symbol, day) for symbol in SYMBOLS], settings)
        marks.append(_used_s())
        for symbol in SYMBOLS:
            bars_of(root, settings, symbol, day)
        marks.append(_used_s())
        build_range(lake, settings, SYMBOLS, day, day)
        marks.append(_used_s())
        if day != first:
            for step, before, after in zip(STEPS, marks, marks[1:], strict=False):
                used[step] += after - before
    print(json.dumps(used))


if __name__ == "__main__":
    main(*sys.argv[1:])
