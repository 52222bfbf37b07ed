"""`l2 bench lake`: feature tables over ranges of dates, and what pages and the worker ask of a lake.

    python -m proving.bench.lake ROOT FIRST LAST

materialises the feature tables over a range, as `l2 pipeline` does: in a process of its own, whose
memory is measured together with that of the processes it starts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from market.console import Say
from market.errors import DataError
from market.features import feature_names
from market.features.precision import rounded
from market.lake import Lake
from market.settings import load
from market.units import SECOND_NS, day_start_ns, days_between, previous_day
from proving.bench.command import seconds
from proving.bench.goals import Measure

SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
#: Days of the ranges, each built in a lake of its own bars.
RANGES: Final = (2, 6, 30)
_FIRST: Final = "2026-01-05"
_SEED: Final = 11
_SAMPLE_S: Final = 0.1


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is measured."""
    with tempfile.TemporaryDirectory() as folder:
        month = (2, 4000, 1) if quick else (30, 86_400, 21)
        yield from queries(*month, Path(folder), say)
    with tempfile.TemporaryDirectory() as folder:
        for days in RANGES[:1] if quick else RANGES:
            say(f"feature tables of {days} days")
            yield from feature_range(Path(folder), days, 600 if quick else 86_400)


# -- feature tables over a range ---------------------------------------------------------------------


def feature_range(folder: Path, days: int, rows: int) -> Iterator[Measure]:
    """Cost of the feature tables of ``days`` dates of ``rows`` seconds; bars are made where absent."""
    dates = days_between(_FIRST, "2026-12-31")[:days]
    root, lake = str(folder), Lake(folder, "synthetic")
    for symbol in SYMBOLS:
        for day in (previous_day(dates[0]), *dates):
            _write_bars(lake, symbol, day, rows)
    command = [sys.executable, "-m", "proving.bench.lake", root, dates[0], dates[-1]]
    started = time.perf_counter()
    peak, staged = 0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            staged = max(staged, size_below(folder / "staging"))
            time.sleep(_SAMPLE_S)
    took = time.perf_counter() - started
    if process.returncode:
        raise DataError(f"the feature tables of {dates[0]} to {dates[-1]} failed; see above")
    tables = ("features", "labels", "training_set")
    stored = sum(
        Path(lake.path(t, s, d)).stat().st_size for t in tables for s in SYMBOLS for d in dates
    )
    how = (
        f"synthetic bars of {len(SYMBOLS)} symbols, {rows:,} seconds a day, through Dagster; the "
        f"process and those it starts, looked at every {_SAMPLE_S:g} s"
    )
    name = f"feature tables of {days} days"
    for figure, ours, unit in (
        ("peak memory", peak / 1e6, "MB"),
        ("peak staging", staged / 1e6, "MB"),
        ("stored a symbol and day", stored / 1e6 / len(SYMBOLS) / days, "MB"),
        ("time a day", took / days, "s"),
    ):
        yield Measure(name=f"{name}: {figure}", ours=ours, unit=unit, better="less", how=how)


def _write_bars(lake: Lake, symbol: str, day: str, rows: int) -> None:
    """The first seconds of a day of the reduced market."""
    from assets.market_data import synthetic_bars

    if not lake.exists("bars", symbol, day):
        synthetic_bars(lake, load(environ={}, overrides=["source=synthetic"]), symbol, day)
        if rows < 86_400:
            lake.write("bars", symbol, day, lake.read("bars", symbol, day).slice(0, rows))


def resident(pid: int) -> int:
    """Resident bytes of a process and all that it has started (Linux)."""
    children: dict[int, list[int]] = {}
    size: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
        size[int(path.parent.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    tree = [pid]
    for each in tree:
        tree += children.get(each, [])
    return sum(size.get(each, 0) for each in tree)


def size_below(folder: Path) -> int:
    """Bytes of the files in a folder, some of which may be going."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(f"{parent}/{name}").st_blocks * 512
            except OSError:
                continue
    return total


def main(root: str, first: str, last: str) -> None:
    """Materialise the feature tables of a synthetic lake over a range."""
    import dagster as dg

    from assets.dbt_assets import warehouse
    from assets.platform import Platform
    from orchestration.automation import range_tags

    dg.materialize(
        [warehouse],
        tags=range_tags(first, last, SYMBOLS),
        resources={"platform": Platform(overrides=[f"root={root}", "source=synthetic"])},
        instance=dg.DagsterInstance.ephemeral(),
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )


# -- what is asked of a month ------------------------------------------------------------------------


def queries(days: int, rows: int, repetitions: int, folder: Path, say: Say) -> Iterator[Measure]:
    """Median times of warm queries over a lake of ``days`` dates of ``rows`` seconds each."""
    say(f"writing {days} days of features")
    lake = Lake(folder, "synthetic")
    dates = days_between(_FIRST, "2026-12-31")[:days]
    for symbol in SYMBOLS:
        _write_features(lake, symbol, dates, rows)
        _write_bars(lake, symbol, dates[-1], rows)
    names = feature_names()
    last, end_ns = dates[-1], day_start_ns(dates[-1]) + rows * SECOND_NS
    since_ns = end_ns - 3600 * SECOND_NS
    hour = f"date = '{last}' and t_ns > {since_ns}"
    connection = lake.connect(["features"])

    def sql(query: str) -> Callable[[], pa.Table]:
        return lambda: connection.execute(query).to_arrow_table()

    works: dict[str, Callable[[], pa.Table]] = {
        "last hour, 20 features of one symbol": sql(
            f"select t_ns, {', '.join(names[:20])} from features "
            f"where symbol = '{SYMBOLS[0]}' and {hour} order by t_ns"
        ),
        "last hour, all features of both symbols": sql(
            f"select symbol, t_ns, {', '.join(names)} from features where {hour}"
        ),
        "aggregate of one feature over all days": sql(
            f"select symbol, avg({names[0]}), stddev_pop({names[0]}) from features group by symbol"
        ),
        "aggregate of one feature over a day": sql(
            f"select symbol, avg({names[0]}), stddev_pop({names[0]}) from features "
            f"where date = '{last}' group by symbol"
        ),
        "last hour of bars of one symbol, by the worker": lambda: lake.between(
            "bars", SYMBOLS[0], last, since_ns, end_ns
        ),
    }
    say("querying")
    for name, work in works.items():
        returned = work().num_rows
        times = [seconds(work) for _ in range(repetitions)]
        yield Measure(
            name=f"query: {name}",
            ours=statistics.median(times) * 1e3,
            unit="ms",
            better="less",
            how=f"median of {repetitions} warm, to an Arrow table of {returned:,} rows; {days} days of "
            f"{len(SYMBOLS)} symbols, {rows:,} rows of {len(names)} random features a day",
        )
    connection.close()


def _write_features(lake: Lake, symbol: str, dates: Sequence[str], rows: int) -> None:
    """Partitions of random values, which hardly compress, the same on every date."""
    names = feature_names()
    draws = rounded(np.random.default_rng(_SEED).standard_normal((len(names), rows)))
    columns = [pa.array(np.ones(rows, np.bool_)), *map(pa.array, draws)]
    for day in dates:
        t_ns = day_start_ns(day) + np.arange(1, rows + 1) * SECOND_NS
        table = pa.table([pa.array(t_ns), *columns], names=["t_ns", "warm", *names])
        lake.write("features", symbol, day, table, dictionary=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
