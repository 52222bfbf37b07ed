"""What was traded and what it cost, as tables: the worker's records through dbt, a date at a time.

    parents, orders, fills, tca, markouts ─► parent_costs, order_outcomes, fill_markouts, cost_findings

`build_costs` is the one way in, for Dagster and for `l2 tca`. A partition is made of the records of its
date and its neighbours, because what becomes of a parent may fall behind midnight; it is made again
when one of them has changed.
"""

# No postponed annotations here: Dagster compares the type of `context` as it stands.

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import dagster as dg
import msgspec
from dagster_dbt import dbt_assets

from assets.contracts import PROJECT
from assets.partitions import PARTITIONS, Span, context_spans
from assets.platform import Platform
from assets.warehouse import (
    TRANSLATOR,
    Key,
    TableTest,
    WarehouseError,
    check_results,
    dbt_vars,
    manifest,
    publish,
    run_dbt,
    silent,
    staging,
)
from execution.tca import TABLES as RECORDS
from execution.tca.figures import figures, main_table
from market.lake import Lake
from market.settings import Settings
from market.units import days_between, next_day, previous_day

#: Table -> what its partitions are sorted by.
TABLES: Final = {
    "parent_costs": ("decision_ns", "venue", "parent_id"),
    "order_outcomes": ("sent_ns", "venue", "client_id"),
    "fill_markouts": ("time_ns", "venue", "client_id", "exec_id"),
    "cost_findings": ("time_ns", "kind", "venue", "parent_id", "client_id", "exec_id"),
}


class CostsReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run made: the partitions of dates with records, and those that stood already."""

    rows: dict[str, dict[str, int]]
    tests: tuple[TableTest, ...]
    keys: tuple[Key, ...]
    standing: bool


def build_costs(
    lake: Lake,
    settings: Settings,
    symbols: Sequence[str],
    from_date: str,
    to_date: str,
    progress: Callable[[str], None] | None = None,
) -> CostsReport:
    """Build the tables of all dates of a range that have records, unless they stand as they are.

    Raises WarehouseError, and publishes nothing, when a model or a test fails.
    """
    if not lake.is_local:
        raise WarehouseError(f"{lake.uri}: dbt stages on a local disk; use a local lake root")
    held = {table: set(lake.partitions(table)) for table in RECORDS}
    wanted = Span(tuple(sorted(symbols)), from_date, to_date).keys
    keys = [key for key in wanted if any(key in found for found in held.values())]
    inputs = {key: _inputs(lake, held, key) for key in keys}
    if all(lake.stands(table, *key, inputs[key]) for table in TABLES for key in keys):
        rows = {table: _rows(lake, table, keys) for table in TABLES}
        return CostsReport(rows=rows, tests=(), keys=tuple(keys), standing=True)
    with staging(lake) as out:
        variables = dbt_vars(lake, settings, symbols, from_date, to_date, str(out))
        tests = run_dbt(PROJECT, out, variables, tuple(TABLES), progress or silent)
        rows = {table: publish(lake, out, table, inputs, order) for table, order in TABLES.items()}
    return CostsReport(rows=rows, tests=tests, keys=tuple(keys), standing=False)


def _inputs(lake: Lake, held: Mapping[str, set[Key]], key: Key) -> str:
    """Fingerprint of the records that a partition is made from: their bytes, for they grow."""
    symbol, day = key
    digest = hashlib.sha256()
    for date in (previous_day(day), day, next_day(day)):
        for table, found in held.items():
            if (symbol, date) in found:
                with lake.fs.open_input_stream(lake.path(table, symbol, date)) as stream:
                    digest.update(f"{table} {date}".encode() + stream.read())
    return digest.hexdigest()[:16]


def _rows(lake: Lake, table: str, keys: Sequence[Key]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for symbol, day in keys:
        counted[symbol] = counted.get(symbol, 0) + lake.rows(table, symbol, day)
    return counted


def cost_rows(
    lake: Lake, symbols: Sequence[str], from_date: str, to_date: str
) -> dict[str, list[dict[str, Any]]]:
    """Rows of each table over a range, in time order; None where something is not known."""
    keys = [(symbol, day) for day in days_between(from_date, to_date) for symbol in symbols]
    return {
        table: [
            {"symbol": symbol, "date": day, **row}
            for symbol, day in keys
            if lake.exists(table, symbol, day)
            for row in lake.read(table, symbol, day).to_pylist()
        ]
        for table in TABLES
    }


@dbt_assets(  # type: ignore[untyped-decorator]
    manifest=manifest(),
    select=" ".join(TABLES),
    name="costs",
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    dagster_dbt_translator=TRANSLATOR,
)
def costs(context: dg.AssetExecutionContext, platform: Platform) -> Iterator[Any]:
    """What the worker's orders cost on the asked dates; a date without records has no partition."""
    settings, lake = platform.settings(), platform.lake()
    reports = []
    rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    for span in context_spans(context):
        asked = span.symbols, span.from_date, span.to_date
        try:
            reports.append(build_costs(lake, settings, *asked, context.log.info))
        except WarehouseError as error:
            yield from check_results(context, error.tests)
            raise dg.Failure(str(error)) from error
        for table, found in cost_rows(lake, *asked).items():
            rows[table] += found
    told = figures(*rows.values())
    for table in TABLES:
        if dg.AssetKey(table) in context.selected_asset_keys:
            metadata: dict[str, Any] = {"rows": len(rows[table])}
            if table == "parent_costs":
                metadata |= {"cost": dg.MetadataValue.md(markdown(told)), "states": told["states"]}
            elif table == "cost_findings":
                metadata["found"] = told["findings"]
            yield dg.MaterializeResult(asset_key=table, metadata=metadata)
    yield from check_results(context, [test for report in reports for test in report.tests])


def markdown(told: Mapping[str, Any]) -> str:
    """The main table as Markdown."""
    head, *lines = main_table(told)
    if not lines:
        return "No parent was measured on these dates."
    rule = "|".join(["---"] * 3 + ["---:"] * (len(head) - 3))
    return "\n".join(["|".join(head), rule, *("|".join(line) for line in lines)])
