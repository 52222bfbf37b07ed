"""The decision log: every decision with its feature vector, in hourly Parquet files.

    STATE/decisions/date=YYYY-MM-DD/hour=HH/RUN-N.arrows     the current hour, appended
    STATE/decisions/date=YYYY-MM-DD/hour=HH/RUN-N.parquet    a finished hour, renamed into place

A Parquet file cannot be read before it is finished, so the current hour is an Arrow stream: after a
crash everything but a torn last batch is recovered from it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market.lake import Lake
from market.provenance import Table
from market.store import ReplacedError
from market.units import HOUR_NS, utc_date

DECISIONS: Final = Table("decisions", version=1, record=True)

#: Rows buffered in memory before they are appended to the hour's stream.
BATCH_ROWS: Final = 60


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The decision for one symbol at one second. Times in ns, returns and cost in bps, NaN for NULL.

    ``expected_bps`` is the expected return that the target rule used, ``raw_bps`` the same before the
    regime's threshold; ``target`` is the sign of the target position, ``position_lots`` the position
    at that time; ``error_bps`` is the standard error of ``raw_bps`` and ``scale_bps`` the volatility over the
    horizon, which are not in the files; ``vector`` are the features, float64 of shape (features,).
    """

    symbol: str
    t_ns: int
    model_version: str
    bundle_sha: str
    expected_bps: float
    raw_bps: float
    by_horizon: tuple[float, ...]
    regime: str
    warm: bool
    target: int
    position_lots: int
    cost_bps: float
    mid: float
    spread_bps: float
    error_bps: float = math.nan
    scale_bps: float = math.nan
    vector: npt.NDArray[np.float64]


_LEADING: Final = (
    ("run", pa.string()),
    ("t_ns", pa.int64()),
    ("model_version", pa.string()),
    ("bundle_sha", pa.string()),
    ("expected_bps", pa.float64()),
    ("raw_bps", pa.float64()),
    ("regime", pa.string()),
    ("warm", pa.bool_()),
    ("target", pa.int8()),
    ("position_lots", pa.int64()),
    ("cost_bps", pa.float64()),
    ("mid", pa.float64()),
    ("spread_bps", pa.float64()),
)


def schema(horizons_s: Sequence[int], features: Sequence[str]) -> pa.Schema:
    """Arrow schema of the decision files; the lake's partitions have no ``symbol``."""
    return pa.schema(
        [
            pa.field("symbol", pa.string(), nullable=False),
            *(pa.field(name, kind) for name, kind in _LEADING),
            *(pa.field(f"expected_{h}_bps", pa.float64()) for h in horizons_s),
            *(pa.field(name, pa.float64()) for name in features),
        ]
    )


class Recovered(NamedTuple):
    """A file recovered after a crash; ``torn`` when its last batch was incomplete."""

    path: Path
    rows: int
    torn: bool


class DecisionLog:
    """Appends the decisions of one run; a new hour or new horizons finish the file.

    Opening it recovers what earlier runs left unfinished in ``folder`` (``recovered``).
    """

    def __init__(self, folder: str | Path, run: str, features: Sequence[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.rows = 0
        self.recovered = recover(self.folder)
        self._features = tuple(features)
        self._pending: list[Decision] = []
        self._key: tuple[int, tuple[int, ...]] | None = None
        self._files = 0
        self._path: Path | None = None
        self._sink: pa.OSFile | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        # In a thread: converting an hour to Parquet takes longer than a frame may wait.
        self._finisher = ThreadPoolExecutor(1, "decisions")
        self._finishing: list[Future[int]] = []

    def add(self, decision: Decision, horizons_s: Sequence[int]) -> None:
        """Append a decision; ``horizons_s`` are those of its ``by_horizon``."""
        key = ((decision.t_ns - 1) // HOUR_NS, tuple(horizons_s))
        if key != self._key:
            self._finish()
            self._key = key
        self._pending.append(decision)
        self.rows += 1
        if len(self._pending) >= BATCH_ROWS:
            self._append()

    def close(self) -> None:
        """Finish the current file; raises what finishing an earlier one raised."""
        self._finish()
        self._finisher.shutdown(wait=True)
        for future in self._finishing:
            future.result()

    def _append(self) -> None:
        if not self._pending or self._key is None:
            return
        if self._stream is None:
            hour, horizons = self._key
            day = utc_date(hour * HOUR_NS)
            self._files += 1
            self._path = (
                self.folder
                / f"date={day}"
                / f"hour={hour % 24:02d}"
                / f"{self.run}-{self._files}.arrows"
            )
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = pa.OSFile(str(self._path), "wb")
            self._stream = pa.ipc.new_stream(self._sink, schema(horizons, self._features))
        self._stream.write_batch(self._batch())
        self._pending.clear()

    def _batch(self) -> pa.RecordBatch:
        assert self._key is not None
        rows, horizons = self._pending, self._key[1]
        columns: list[pa.Array] = [pa.array([row.symbol for row in rows], pa.string())]
        for name, kind in _LEADING:
            values = [self.run if name == "run" else getattr(row, name) for row in rows]
            columns.append(pa.array(values, kind, from_pandas=True))
        numbers = np.array([[*row.by_horizon, *row.vector] for row in rows], np.float64)
        columns += [
            pa.array(np.ascontiguousarray(column), pa.float64(), from_pandas=True)
            for column in numbers.T
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema(horizons, self._features))

    def _finish(self) -> None:
        self._append()
        if self._stream is None or self._sink is None or self._path is None:
            return
        self._stream.close()
        self._sink.close()
        self._finishing.append(self._finisher.submit(_to_parquet, self._path))
        self._stream = self._sink = self._path = None


def recover(folder: Path) -> list[Recovered]:
    """Finish the files that a crash left unfinished, in name order."""
    recovered = []
    for path in sorted(folder.glob("date=*/hour=*/*.arrows")):
        rows, torn = read_stream(path)
        _write_parquet(rows, path)
        recovered.append(
            Recovered(path.with_suffix(".parquet"), 0 if rows is None else len(rows), torn)
        )
    return recovered


def _to_parquet(path: Path) -> int:
    rows, _ = read_stream(path)
    _write_parquet(rows, path)
    return 0 if rows is None else len(rows)


def read_stream(path: Path) -> tuple[pa.Table | None, bool]:
    """The complete batches of a stream, and whether an incomplete one follows."""
    batches: list[pa.RecordBatch] = []
    with pa.OSFile(str(path), "rb") as source:
        try:
            reader = pa.ipc.open_stream(source)
            for batch in reader:
                batches.append(batch)  # noqa: PERF402 - keeps the batches before an error
        except (pa.ArrowInvalid, OSError):
            return (pa.Table.from_batches(batches) if batches else None), True
    return pa.Table.from_batches(batches, reader.schema), False


def _write_parquet(rows: pa.Table | None, path: Path) -> None:
    if rows is not None:
        temporary = path.with_suffix(".tmp")
        try:
            pq.write_table(rows, temporary, compression="zstd")
            os.replace(temporary, path.with_suffix(".parquet"))
        finally:
            temporary.unlink(missing_ok=True)
    path.unlink()


def collect_decisions(lake: Lake, folder: str | Path) -> dict[tuple[str, str], int]:
    """Move finished files into the lake's ``decisions`` partitions; rows by (symbol, date).

    A partition is rewritten with its old and new rows, deduplicated by (run, time), and only then are
    the files removed: idempotent, so a crash in between loses and duplicates nothing.
    """
    moved: dict[tuple[str, str], int] = {}
    by_day: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).glob("date=*/hour=*/*.parquet")):
        by_day.setdefault(path.parent.parent.name.removeprefix("date="), []).append(path)
    for day, paths in by_day.items():
        tables = [pq.read_table(path, partitioning=None) for path in paths]
        rows = pa.concat_tables(tables, promote_options="default")
        for symbol in sorted(set(rows.column("symbol").to_pylist())):
            mine = rows.filter(pc.equal(rows.column("symbol"), symbol)).drop(["symbol"])
            write_merged(lake, "decisions", symbol, day, mine, ("run", "t_ns"))
            moved[symbol, day] = len(mine)
        for path in paths:
            path.unlink()
    return moved


def write_merged(
    lake: Lake,
    table: str,
    symbol: str,
    day: str,
    rows: pa.Table,
    key: tuple[str, ...],
    read: Callable[[Lake, str, str, str], pa.Table] = Lake.read,
) -> None:
    """Upsert rows into a partition by primary key: a new row replaces the one that ``read`` finds.

    In an object store another machine may do so at the same time: then it is read and merged again. On a disk the
    caller holds the lake's lock of records (`live.collect`).
    """
    while True:
        version = lake.version(table, symbol, day)
        try:
            present = [read(lake, table, symbol, day)] if lake.exists(table, symbol, day) else []
            lake.write(table, symbol, day, _merged([rows, *present], key), version=version)
            return
        except ReplacedError:
            continue


def _merged(parts: list[pa.Table], key: tuple[str, ...]) -> pa.Table:
    rows = pa.concat_tables(parts, promote_options="default")
    first: dict[tuple[object, ...], int] = {}
    for index, values in enumerate(
        zip(*(rows.column(name).to_pylist() for name in key), strict=True)
    ):
        first.setdefault(values, index)
    order = [first[values] for values in sorted(first)]
    return rows.take(pa.array(order, pa.int64())).replace_schema_metadata()
