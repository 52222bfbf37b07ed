"""Transaction cost tables: the worker's records through dbt, one date at a time.

    parents, orders, fills, tca, markouts ─► parent_costs, order_outcomes, fill_markouts, cost_findings

`build_costs` is the only entry point, for Dagster and for `l2 tca`. A partition depends on the records
of its date and of both neighbours, because a parent may end after midnight; it is rebuilt when one of
them has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from assets.dbt import (
    PROJECT,
    BuildReport,
    Key,
    dbt_vars,
    publish,
    run_dbt,
    staging,
)
from execution.tca import TABLES as RECORDS
from execution.tca.figures import main_table
from market.lake import Lake
from market.provenance import Table
from market.settings import Settings
from market.units import days_between, next_day, previous_day

DECLARED: Final = (
    Table(
        "parent_costs",
        version=1,
        upstream=("parents", "orders", "fills", "tca", "markouts"),
        files=(
            "dbt_project/dbt_project.yml",
            "dbt_project/macros/records.sql",
            "dbt_project/macros/vars.sql",
            "dbt_project/models/costs/parent_costs.sql",
        ),
    ),
    Table(
        "order_outcomes",
        version=1,
        upstream=("parent_costs",),
        files=("dbt_project/models/costs/order_outcomes.sql",),
    ),
    Table(
        "fill_markouts",
        version=1,
        upstream=("parent_costs",),
        files=("dbt_project/models/costs/fill_markouts.sql",),
    ),
    Table(
        "cost_findings",
        version=1,
        upstream=("parent_costs",),
        files=("dbt_project/models/costs/cost_findings.sql",),
    ),
)
#: Partitions of one dbt run: records are small, and each run reads a day more on either side.
BATCH: Final = 62
#: Table -> sort order of its partitions.
TABLES: Final = {
    "parent_costs": ("decision_ns", "venue", "parent_id"),
    "order_outcomes": ("sent_ns", "venue", "client_id"),
    "fill_markouts": ("time_ns", "venue", "client_id", "exec_id"),
    "cost_findings": ("time_ns", "kind", "venue", "parent_id", "client_id", "exec_id"),
}


def build_costs(
    lake: Lake,
    settings: Settings,
    symbols: Sequence[str],
    from_date: str,
    to_date: str,
    progress: Callable[[str], None] | None = None,
) -> BuildReport:
    """Build the tables for all dates of a range that have records, unless all are current.

    WarehouseError, with nothing published, when a model or a test fails.
    """
    recorded = {table: set(lake.partitions(table)) for table in RECORDS}
    requested = [(s, day) for s in sorted(symbols) for day in days_between(from_date, to_date)]
    keys = [key for key in requested if any(key in present for present in recorded.values())]
    inputs = {key: _inputs(lake, recorded, key) for key in keys}
    if all(lake.is_current(table, *key, inputs[key]) for table in TABLES for key in keys):
        rows = {table: _rows(lake, table, keys) for table in TABLES}
        return BuildReport(rows=rows, tests=(), keys=tuple(keys), current=True)
    with staging(lake) as out:
        variables = dbt_vars(lake, settings, symbols, from_date, to_date, str(out), tuple(RECORDS))
        tests = run_dbt(PROJECT, out, variables, tuple(TABLES), progress or (lambda line: None))
        rows = {table: publish(lake, out, table, inputs, order) for table, order in TABLES.items()}
    return BuildReport(rows=rows, tests=tests, keys=tuple(keys))


def _inputs(lake: Lake, recorded: Mapping[str, set[Key]], key: Key) -> str:
    """Fingerprint of a partition's records: of their bytes, because records are appended to."""
    symbol, day = key
    digest = hashlib.sha256()
    for date in (previous_day(day), day, next_day(day)):
        for table, present in recorded.items():
            if (symbol, date) in present:
                rows = lake.content(lake.path(table, symbol, date))
                digest.update(f"{table} {date}".encode() + rows)
    return digest.hexdigest()[:16]


def _rows(lake: Lake, table: str, keys: Sequence[Key]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for symbol, day in keys:
        counted[symbol] = counted.get(symbol, 0) + lake.rows(table, symbol, day)
    return counted


def cost_rows(
    lake: Lake, symbols: Sequence[str], from_date: str, to_date: str
) -> dict[str, list[dict[str, Any]]]:
    """Rows of each table over a range, by date, then symbol; None for NULL."""
    return {table: table_rows(lake, table, symbols, from_date, to_date) for table in TABLES}


def table_rows(
    lake: Lake, table: str, symbols: Sequence[str], from_date: str, to_date: str
) -> list[dict[str, Any]]:
    """The same of one table."""
    return [
        {"symbol": symbol, "date": day, **row}
        for day in days_between(from_date, to_date)
        for symbol in symbols
        if lake.exists(table, symbol, day)
        for row in lake.read(table, symbol, day).to_pylist()
    ]


def markdown(summary: Mapping[str, Any]) -> str:
    """The main table of `execution.tca.figures.figures` as Markdown."""
    head, *lines = main_table(summary)
    if not lines:
        return "No parent was measured on these dates."
    rule = "|".join(["---"] * 3 + ["---:"] * (len(head) - 3))
    return "\n".join(["|".join(head), rule, *("|".join(line) for line in lines)])
