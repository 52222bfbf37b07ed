"""Collects the worker's state folder into the lake: decisions, orders, fills, parents and their cost.

The journal is only read, and each row goes to the partition of its UTC date; finished hours of
decisions are moved. Idempotent, and safe beside a running worker.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import pyarrow as pa

from execution.orders import Action, Amend, Event, Filled, Submit
from execution.tca import (
    TABLES,
    FillRow,
    MarkoutRow,
    ParentRow,
    Row,
    Shortfall,
    fill_row,
    fitted,
    to_table,
)
from live.decisions import collect_decisions, write_merged
from live.journal import (
    Entry,
    JournalOrder,
    after_action,
    after_event,
    open_read_only,
    order_row,
    read_entries,
)
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

R = TypeVar("R", bound=Row)

_ACTION = msgspec.json.Decoder(Action)
_EVENT = msgspec.json.Decoder(Event)


def _read(kind: type[R], fields: dict[str, object]) -> R:
    """A row from its JSON, which has null for NaN."""
    return msgspec.convert({k: math.nan if v is None else v for k, v in fields.items()}, kind)


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
        rows = journal_rows(read_entries(database), venue)
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


def journal_rows(entries: Iterable[Entry], venue: str) -> dict[str, list[tuple[int, Row]]]:
    """Table -> (time that dates the row, row) for every row in these journal entries."""
    parents: list[tuple[int, Row]] = []
    fills: list[tuple[int, Row]] = []
    costs: list[tuple[int, Row]] = []
    markouts: list[tuple[int, Row]] = []
    orders: dict[str, JournalOrder] = {}
    amends: dict[str, int] = defaultdict(int)
    executions: set[tuple[str, str]] = set()
    for entry in entries:
        if entry.kind == "parent":
            parent = _read(ParentRow, msgspec.json.decode(entry.body))
            parents.append((parent.decision_ns, parent))
        elif entry.kind == "end":
            cost = _read(Shortfall, msgspec.json.decode(entry.body))
            costs.append((cost.decision_ns, cost))
        elif entry.kind == "markouts":
            of_parent = [_read(MarkoutRow, fields) for fields in msgspec.json.decode(entry.body)]
            markouts += [(row.time_ns, row) for row in of_parent]
        elif entry.kind == "intent":
            action = _ACTION.decode(entry.body)
            if isinstance(action, Submit):
                orders[action.client_id] = JournalOrder.submitted(
                    action, entry.parent_id, entry.time_ns
                )
            elif (order := orders.get(action.client_id)) is not None:
                amends[action.client_id] += isinstance(action, Amend)
                orders[action.client_id] = after_action(order, action, entry.time_ns)
        elif entry.kind == "event":
            event = _EVENT.decode(entry.body)
            if isinstance(event, Filled):
                if (event.client_id, event.exec_id) in executions:
                    continue
                executions.add((event.client_id, event.exec_id))
                fill: FillRow = fill_row(event, entry.parent_id, venue)
                fills.append((event.time_ns, fill))
            if (order := orders.get(event.client_id)) is not None:
                orders[event.client_id] = after_event(order, event)
    placed: list[tuple[int, Row]] = [
        (order.submitted_ns, order_row(order, venue, amends[order.submit.client_id]))
        for order in orders.values()
    ]
    return {
        "parents": parents,
        "orders": placed,
        "fills": fills,
        "tca": costs,
        "markouts": markouts,
    }
