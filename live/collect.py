"""Collects what a worker left into the lake: decisions, labels, orders, fills, parents and their cost.

The log is only read, from where the last collection ended; each new row goes to the partition of its UTC
date, and no other partition is touched. Finished hours of decisions are moved. Idempotent, and safe beside
a running worker: rows replace those of the same key, and how far it read is written down last.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from execution.order_machine import Order
from execution.tca import Row, fitted, to_table
from live import log
from live.decisions import collect_decisions, write_merged
from live.journal import KINDS, JournalError, TableRows, require_migrated
from live.labels import LabelRecord
from live.messages import Append
from market.lake import Lake
from market.locks import exclusive
from market.provenance import Table
from market.units import utc_date

RECORDS: Final = (
    Table("orders", version=1, record=True),
    Table("fills", version=1, record=True),
    Table("parents", version=2, record=True),
    Table("tca", version=2, record=True),
    Table("markouts", version=1, record=True),
    Table("realised", version=1, record=True),
    Table("shadow", version=1, record=True),
    Table("statements", version=1, record=True),
    Table("carry", version=1, record=True),
)

#: What became of predictions: a row for each second at which labels became known, and one for each
#: prediction of a challenger.
PREDICTED: Final = {
    "realised": pa.schema(
        [
            pa.field("t_ns", pa.int64(), nullable=False),
            pa.field("decided_ns", pa.list_(pa.int64())),
            pa.field("horizon_s", pa.list_(pa.int32())),
            pa.field("return_bps", pa.list_(pa.float64())),
        ]
    ),
    "shadow": pa.schema(
        [
            pa.field("t_ns", pa.int64(), nullable=False),
            pa.field("model_version", pa.string(), nullable=False),
            pa.field("bundle_sha", pa.string(), nullable=False),
            pa.field("raw_bps", pa.float64()),
            pa.field("scale_bps", pa.float64()),
        ]
    ),
}

#: Primary key of each table; order ids are unique per venue.
KEYS: Final = {
    "parents": ("venue", "parent_id"),
    "orders": ("venue", "client_id"),
    "fills": ("venue", "client_id", "exec_id"),
    "tca": ("venue", "parent_id"),
    "markouts": ("venue", "client_id", "exec_id"),
    "realised": ("t_ns",),
    "shadow": ("t_ns", "bundle_sha"),
    "statements": ("venue",),
    "carry": ("venue", "time_ns"),
}

#: Rows in memory at once, about.
_BATCH: Final = 100_000


class _Read(msgspec.Struct, frozen=True, kw_only=True):
    """How far a log was collected, and the orders that may still change."""

    segment: int = 0
    offset: int = 0
    orders: tuple[Order, ...] = ()
    executions: tuple[tuple[str, str], ...] = ()


_READ: Final = msgspec.msgpack.Decoder(_Read)


def collect(lake: Lake, state: str | Path, venue: str) -> dict[str, int]:
    """Upsert what is new in a worker's state folder into the lake; rows by table.

    LogError for a log that cannot be read, JournalError for one that has to be migrated. Rows are merged
    into partitions that stand, so a second collection, of any venue into the lake, waits for the first.
    """
    state = Path(state)
    with (
        exclusive(state / "collect.lock", "the worker's records"),
        exclusive(lake.home / "records.lock", f"records of {lake.uri}"),
    ):
        require_migrated(state)
        collected = dict.fromkeys(KEYS, 0)
        collected["decisions"] = sum(collect_decisions(lake, state / "decisions").values())
        for table, count in _collect(lake, state, venue):
            collected[table] += count
    return collected


def _collect(lake: Lake, state: Path, venue: str) -> list[tuple[str, int]]:
    memory, counts = state / "collected", []
    read = _memory(memory)
    rows = TableRows(venue)
    rows.orders.restore(read.orders, read.executions)
    position = log.Position(read.segment, read.offset)
    pending = 0
    predicted: dict[tuple[str, str, str], list[dict[str, object]]] = defaultdict(list)

    def publish() -> None:
        for (table, symbol, day), found in predicted.items():
            counts.append((table, len(found)))
            columns = pa.Table.from_pylist(found, schema=PREDICTED[table])
            write_merged(lake, table, symbol, day, columns, KEYS[table])
        predicted.clear()
        for table, timed_rows in rows.drain().items():
            counts.append((table, len(timed_rows)))
            _merge(lake, table, timed_rows)
        orders = rows.orders
        done = _Read(
            segment=position.segment,
            offset=position.offset,
            orders=tuple(orders.by_id.values()),
            executions=tuple(orders.executions()),
        )
        temporary = memory.with_suffix(".tmp")
        temporary.write_bytes(msgspec.msgpack.encode(done))
        os.replace(temporary, memory)

    for block in log.read(state / "log", position):
        records = [body for _, body in block.records if isinstance(body, Append)]
        for record in records:
            try:
                rows.take(record)
                if (row := _predicted(record)) is not None:
                    day = utc_date(record.time_ns)
                    predicted[row[0], record.symbol, day].append(row[1])
            except (msgspec.DecodeError, ValueError) as error:
                raise JournalError(
                    f"{state / 'log'}: segment {block.segment}, block at byte {block.offset}: a record of "
                    f"kind {record.kind} cannot be read ({error}); collect with the version that wrote it"
                ) from error
        pending += len(records)
        position = log.Position(block.segment, block.end)
        if pending >= _BATCH:
            publish()
            pending = 0
    if position != (read.segment, read.offset):
        publish()
    return counts


def _predicted(record: Append) -> tuple[str, dict[str, object]] | None:
    """Table and row of labels, and of a challenger's prediction."""
    if record.kind == "labels":
        returns = msgspec.json.decode(record.body, type=LabelRecord).returns
        decided, horizons, values = zip(*returns, strict=True)
        row = {"decided_ns": decided, "horizon_s": horizons, "return_bps": values}
        return "realised", {"t_ns": record.time_ns, **row}
    if record.kind == "shadow":
        return "shadow", msgspec.json.decode(record.body)
    return None


def _memory(path: Path) -> _Read:
    try:
        return _READ.decode(path.read_bytes())
    except FileNotFoundError:
        return _Read()
    except msgspec.DecodeError as error:
        raise JournalError(
            f"{path}: not readable by this version ({error}); remove it, and the whole log is collected "
            "again, into the same rows"
        ) from error


def _merge(lake: Lake, table: str, timed_rows: list[tuple[int, Row]]) -> None:
    parts: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for time_ns, row in timed_rows:
        parts[getattr(row, "symbol"), utc_date(time_ns)].append(row)  # noqa: B009
    for (symbol, day), part in sorted(parts.items()):
        columns = to_table(part, KINDS[table]).drop(["symbol"])
        write_merged(lake, table, symbol, day, columns, KEYS[table], _present_rows)


def _present_rows(lake: Lake, table: str, symbol: str, day: str) -> pa.Table:
    """A partition's rows in the present columns, whatever version of the schema wrote them."""
    rows = lake.as_written(table, symbol, day).read()
    named = rows.append_column("symbol", pa.array([symbol] * rows.num_rows, pa.string()))
    return fitted(named, KINDS[table]).drop(["symbol"])
