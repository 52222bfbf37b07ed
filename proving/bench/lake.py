"""The lake under `l2 bench market`: a day taken in, and queries over a month of features.

Run as a program it takes one capture into a lake, events and bars, and prints what that cost as one
JSON object: peak memory is a process's own, so the day gets a process of its own.

    python -m proving.bench.lake CAPTURE ROOT
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from market.bars import make_bars
from market.features import feature_names
from market.ingest import ingest, scan
from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS, day_start_ns, days_between
from market.wire.capture import CaptureWriter, read_blocks
from market.wire.survey import first_frame_ns
from proving.bench.yardstick import Measure, peak_mb, seconds
from proving.synthetic import profile, write_frames

_SEED: Final = 11
_DAY: Final = "2026-01-05"


# -- a day of frames ---------------------------------------------------------------------------------


def day_taken_in(
    symbols: Sequence[str], span_s: int, folder: Path, say: Callable[[str], None]
) -> Iterator[Measure]:
    """Memory and time of taking a generated day of book, trades and tickers in, events and bars.

    That cost grows linearly is shown by the day's first quarter, taken in alone. ``span_s`` is how
    long the day is.
    """
    say("generating a day of frames")
    whole, quarter = folder / "day.frames.zst", folder / "quarter.frames.zst"
    write_frames(whole, profile("default"), _SEED, symbols, _DAY, 0, span_s)
    _head_of(whole, quarter, first_frame_ns(whole) + span_s // 4 * SECOND_NS)
    say("taking it in")
    part = _taken_in(quarter, folder / "quarter")
    day = _taken_in(whole, folder / "day")
    how = (
        f"{span_s / 3600:g} h of orderbook.200, trades and tickers of {len(symbols)} symbols, "
        f"{day['rows']:,} events; events and bars, in a process of its own"
    )
    yield Measure(
        name="a day taken in: peak memory", ours=day["peak_mb"], unit="MB", better="less", how=how
    )
    yield Measure(
        name="a day taken in: time", ours=day["seconds"], unit="s", better="less", how=how
    )
    yield Measure(
        name="a day taken in: time per event over its first quarter",
        ours=day["seconds"] / part["seconds"] * part["rows"] / day["rows"],
        unit="times",
        better="less",
        how=how,
    )
    yield Measure(
        name="a day taken in: memory over its first quarter",
        ours=day["peak_mb"] / part["peak_mb"],
        unit="times",
        better="less",
        how=how,
    )


def _head_of(capture: Path, target: Path, until_ns: int) -> None:
    """Write the lines of a capture that were received before an instant."""
    with CaptureWriter(target) as writer:
        for block in read_blocks(capture):
            if int(block.data[: block.data.index(b" ")]) >= until_ns:
                return
            writer.append_block(block.data)


def _taken_in(capture: Path, root: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "proving.bench.lake", str(capture), str(root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(capture: str, root: str) -> None:
    settings = Settings()
    lake = Lake(root, "synthetic")
    started = time.perf_counter()
    keys = list(scan([capture]))
    report = ingest(lake, [capture], keys, settings)
    for symbol, day in keys:
        make_bars(lake, symbol, day, settings)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - started,
                "rows": sum(report.events.values()),
                "peak_mb": peak_mb(),
            }
        )
    )


# -- a month of features -----------------------------------------------------------------------------


def queries(
    symbols: Sequence[str],
    days: int,
    rows: int,
    repetitions: int,
    folder: Path,
    say: Callable[[str], None],
) -> Iterator[Measure]:
    """Medians of warm queries over a lake of features: ``days`` dates of ``rows`` seconds each."""
    say(f"writing {days} days of features")
    lake = Lake(folder / "month", "synthetic")
    dates = days_between(_DAY, "2026-12-31")[:days]
    for symbol in symbols:
        _write_features(lake, symbol, dates, rows)
    names = feature_names()
    last, end_ns = dates[-1], day_start_ns(dates[-1]) + rows * SECOND_NS
    hour = f"date = '{last}' and t_ns > {end_ns - 3600 * SECOND_NS}"
    asked = {
        "last hour, 20 features of one symbol": (
            f"select t_ns, {', '.join(names[:20])} from features "
            f"where symbol = '{symbols[0]}' and {hour} order by t_ns"
        ),
        "last hour, all features of both symbols": (
            f"select symbol, t_ns, {', '.join(names)} from features where {hour}"
        ),
        "aggregate of one feature over all days": (
            f"select symbol, avg({names[0]}), stddev_pop({names[0]}) from features group by symbol"
        ),
    }
    connection = lake.connect(["features"])
    say("querying")
    for name, query in asked.items():
        found = connection.execute(query).to_arrow_table().num_rows
        spent = [
            seconds(lambda: connection.execute(query).to_arrow_table())  # noqa: B023
            for _ in range(repetitions)
        ]
        yield Measure(
            name=f"query: {name}",
            ours=statistics.median(spent) * 1e3,
            unit="ms",
            better="less",
            how=f"median of {repetitions} warm, to an Arrow table of {found:,} rows; {days} days of "
            f"{len(symbols)} symbols, {rows:,} rows of {len(names)} random features a day",
        )
    connection.close()


def _write_features(lake: Lake, symbol: str, dates: Sequence[str], rows: int) -> None:
    """Partitions of the table's own columns. Random values, which hardly compress, on every date."""
    names = feature_names()
    draws = np.random.default_rng(_SEED).standard_normal((len(names), rows))
    columns = [pa.array(np.ones(rows, np.bool_)), *map(pa.array, draws)]
    for day in dates:
        t_ns = day_start_ns(day) + np.arange(1, rows + 1) * SECOND_NS
        table = pa.table([pa.array(t_ns), *columns], names=["t_ns", "warm", *names])
        lake.write("features", symbol, day, table, dictionary=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
