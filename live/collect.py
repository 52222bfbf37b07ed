"""Collects the worker's state folder into the lake: decisions, orders, fills, parents and their cost.

The journal is only read, and each row goes to the partition of its UTC date; finished hours of
decisions are moved. Idempotent, and safe beside a running worker.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final

import pyarrow as pa

from execution.tca import TABLES, Row, fitted, to_table
from live.decisions import collect_decisions, write_merged
from live.journal import open_read_only, read_entries
from live.messages import Append
from live.records import journal_rows
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
)

#: Primary key of each table; order ids are unique per venue.
KEYS: Final = {
    "parents": ("venue", "parent_id"),
    "orders": ("venue", "client_id"),
    "fills": ("venue", "client_id", "exec_id"),
    "tca": ("venue", "parent_id"),
    "markouts": ("venue", "client_id", "exec_id"),
}


def collect(lake: Lake, state: str | Path, venue: str) -> dict[str, int]:
    """Upsert a worker's state folder into the lake; rows by table.

    JournalError when the journal is of another schema version. Rows are merged into partitions that
    stand, so a second collection waits for the first.
    """
    state = Path(state)
    with exclusive(state / "collect.lock", "the worker's records"):
        return _collect(lake, state, venue)


def _collect(lake: Lake, state: Path, venue: str) -> dict[str, int]:
    collected = {"decisions": sum(collect_decisions(lake, state / "decisions").values())}
    database = open_read_only(state / "journal.sqlite3")
    try:
        entries = (
            Append(
                kind=entry.kind,
                time_ns=entry.time_ns,
                body=entry.body,
                symbol=entry.symbol,
                parent_id=entry.parent_id,
                client_id=entry.client_id,
            )
            for entry in read_entries(database)
        )
        rows = journal_rows(entries, venue)
    finally:
        database.close()
    for table, timed_rows in rows.items():
        parts: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for time_ns, row in timed_rows:
            parts[getattr(row, "symbol"), utc_date(time_ns)].append(row)  # noqa: B009
        for (symbol, day), part in sorted(parts.items()):
            columns = to_table(part, TABLES[table]).drop(["symbol"])
            present = _present_rows(lake, table, symbol, day)
            write_merged(lake, table, symbol, day, columns, KEYS[table], present)
        collected[table] = len(timed_rows)
    return collected


def _present_rows(lake: Lake, table: str, symbol: str, day: str) -> pa.Table | None:
    """A partition's rows in the present columns, whatever version of the schema wrote them."""
    if not lake.exists(table, symbol, day):
        return None
    rows = lake.as_written(table, symbol, day).read()
    named = rows.append_column("symbol", pa.array([symbol] * rows.num_rows, pa.string()))
    return fitted(named, TABLES[table]).drop(["symbol"])
