"""dbt's tables as Dagster assets: `warehouse` and `costs`, made by one factory."""

# No postponed annotations here: Dagster compares the type of `context` as it stands.

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import dagster as dg
import msgspec
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, dbt_assets

from assets import costs as cost_tables
from assets import warehouse as feature_tables
from assets.dbt import NOT_RUN, BuildReport, Key, TableTest, WarehouseError, manifest
from assets.isolation import LeftOut, apart, reason_of
from assets.platform import OWNERS, PARTITIONS, Platform, Span, context_spans, partition_key
from execution.tca.figures import figures
from market.compute import map_tasks, on_cluster
from market.errors import DataError
from market.instruments import leader
from market.lake import Lake
from market.settings import Settings

#: Memory of a batch (GB).
MEMORY_GB: Final = 2.5
#: Builds ``tables``: `assets.warehouse.build_range`, or one called like it.
Build = Callable[..., BuildReport]
#: Metadata of each table after a run.
Describe = Callable[[Lake, Sequence[Span], Sequence[BuildReport]], Mapping[str, dict[str, Any]]]

#: dbt source or model -> the asset that makes it, where names differ.
ASSETS: Final = {
    "stg_bars": "bars",
    **dict.fromkeys(("parents", "orders", "fills", "tca", "markouts"), "decisions"),
}


_SYMBOLS: Final = PARTITIONS.get_partitions_def_for_dimension("symbol").get_partition_keys()
BARS_OF_FEATURES: Final = dg.MultiPartitionMapping(
    {
        "date": dg.DimensionPartitionMapping(
            "date",
            dg.TimeWindowPartitionMapping(
                start_offset=-1, allow_nonexistent_upstream_partitions=True
            ),
        ),
        "symbol": dg.DimensionPartitionMapping(
            "symbol",
            dg.StaticPartitionMapping(
                {read: [s for s in _SYMBOLS if read in (s, leader(s))] for read in _SYMBOLS}
            ),
        ),
    }
)


class Translator(DagsterDbtTranslator):  # type: ignore[misc]  # dagster_dbt is not typed here
    """dbt models as assets."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        name = str(dbt_resource_props["name"])
        return dg.AssetKey(ASSETS.get(name, name))

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str:
        return "execution" if "costs" in dbt_resource_props["fqn"] else "warehouse"

    def get_partition_mapping(
        self, dbt_resource_props: Mapping[str, Any], dbt_parent_resource_props: Mapping[str, Any]
    ) -> dg.PartitionMapping | None:
        """Features read the day before, and the symbol that leads theirs, as `warehouse._read` says."""
        names = (dbt_resource_props["name"], dbt_parent_resource_props["name"])
        return BARS_OF_FEATURES if names == ("features", "stg_bars") else None

    def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> Sequence[str]:
        return OWNERS

    def get_description(self, dbt_resource_props: Mapping[str, Any]) -> str:
        return " ".join(str(dbt_resource_props["description"]).split())


#: The worker's records are several dbt sources but one asset, ``decisions``.
TRANSLATOR: Final = Translator(
    settings=DagsterDbtTranslatorSettings(enable_duplicate_source_asset_keys=True)
)


def table_assets(
    name: str, tables: Sequence[str], build: Build, describe: Describe, batch: int
) -> Any:
    """Partitioned assets of a group of dbt tables; a dbt run is of at most ``batch`` partitions."""

    @dbt_assets(  # type: ignore[untyped-decorator]
        manifest=manifest(),
        select=" ".join(tables),
        name=name,
        partitions_def=PARTITIONS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        dagster_dbt_translator=TRANSLATOR,
    )
    def run(context: dg.AssetExecutionContext, platform: Platform) -> Iterator[Any]:
        settings, lake = platform.settings(), platform.lake()
        selected = {key.to_user_string() for key in context.selected_asset_keys}
        spans = [part for span in context_spans(context) for part in span.batches(batch)]
        left = LeftOut(context.log.warning)
        tests: list[TableTest] = []
        batches: dict[Span, Batch] = {}

        def made(task: tuple[Any, ...], done: Batch) -> None:
            batches[task[2]] = done
            for report in done.reports:
                if len(spans) > 1:
                    log_published(context, report, f"batch {len(batches)} of {len(spans)}")
            if done.broken:
                raise dg.Failure(done.broken)
            tests.extend(done.tests)
            for key, reason in done.failed.items():
                left.fail(key, reason)

        # Elsewhere nobody would see the lines of a batch that is under way.
        make = built if on_cluster(settings) else partial(built, log=context.log.info)
        tasks = [(build, settings, span, selected) for span in spans]
        map_tasks(make, tasks, 1, made, settings, MEMORY_GB)
        reports = [report for span in spans for report in batches[span].reports]
        for report in reports:
            tests += report.tests
            for key in report.missing:
                left.lacks(key, "no bars")
            for key, reason in report.failed.items():
                left.fail(key, reason)
        made_keys = [key for report in reports for key in report.keys]
        unasked = (
            "the tables are current" if any(r.current and r.keys for r in reports) else "no records"
        )
        if left.failed and not made_keys:
            yield from check_results(context, tests, dg.AssetCheckSeverity.ERROR, unasked)
        left_out = left.finish(made_keys)
        metadata = describe(lake, spans, reports)
        for table in tables:
            if table in selected:
                yield dg.MaterializeResult(
                    asset_key=table, metadata={**left_out, **metadata[table]}
                )
        # dbt's checks block a whole run: an error would keep the partitions that stand from going on.
        yield from check_results(context, tests, dg.AssetCheckSeverity.WARN, unasked)

    return run


class Batch(msgspec.Struct, kw_only=True):
    """What a batch made, what its failing parts say, and why no other would do better ("" if they may)."""

    reports: list[BuildReport] = []
    tests: list[TableTest] = []
    failed: dict[Key, str] = {}
    broken: str = ""


def built(
    build: Build,
    settings: Settings,
    span: Span,
    tables: Collection[str],
    log: Callable[[str], None] | None = None,
) -> Batch:
    """Build a span, and where that fails its parts; a worker process may run it."""
    lake, batch = Lake(settings.root, settings.source), Batch()

    def failed(key: Key, error: DataError) -> None:
        batch.tests.extend(getattr(error, "tests", ()))
        batch.failed[key] = reason_of(error)

    def made(part: Span) -> None:
        if batch.broken:
            return
        given = (lake, settings, part.symbols, part.from_date, part.to_date, log)
        try:
            batch.reports.append(build(*given, tables=tables))
        except WarehouseError as error:
            if any(not test.passed for test in error.tests):
                raise
            batch.broken = str(error)  # not for its data: no part of the range would do better

    apart(span, made, failed)
    return batch


def log_published(context: dg.AssetExecutionContext, report: BuildReport, which: str) -> None:
    """Show what a batch has published at once: it stands, whatever becomes of the rest of the run."""
    for table in report.rows:
        for key in report.keys:
            context.log_event(
                dg.AssetMaterialization(
                    table, partition=partition_key(*key), metadata={"published": which}
                )
            )
    context.log.info(f"{which}: {len(report.keys)} partitions published")


def check_results(
    context: dg.AssetExecutionContext,
    tests: Sequence[TableTest],
    severity: dg.AssetCheckSeverity,
    unasked: str,
) -> Iterator[dg.AssetCheckResult]:
    """Results of the selected checks; one that ran for several spans must pass in all.

    A test does not run where nothing was built; Dagster wants a result, which says why: ``unasked``.
    """
    for key in sorted(context.selected_asset_check_keys, key=lambda key: key.name):
        ran = [test for test in tests if test.name == key.name]
        if not ran:
            yield dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=True,
                metadata={NOT_RUN: unasked},
            )
        else:
            yield dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=all(test.passed for test in ran),
                severity=severity,
                metadata={
                    "failing rows": sum(test.failures for test in ran),
                    "message": "; ".join(test.message for test in ran if test.message),
                },
            )


def _describe_features(
    lake: Lake, spans: Sequence[Span], reports: Sequence[BuildReport]
) -> dict[str, dict[str, Any]]:
    """Row counts of each table over the spans of a run."""
    metadata = {}
    for table in {table for report in reports for table in report.rows}:
        by_symbol: dict[str, int] = {}
        for report in reports:
            for symbol, rows in report.rows[table].items():
                by_symbol[symbol] = by_symbol.get(symbol, 0) + rows
        metadata[table] = {
            "rows": sum(by_symbol.values()),
            "by symbol": dg.MetadataValue.json(by_symbol),
        }
    return metadata


def _build_costs(*arguments: Any, tables: Collection[str]) -> BuildReport:
    return cost_tables.build_costs(*arguments)  # which makes all of them together


def _describe_costs(
    lake: Lake, spans: Sequence[Span], reports: Sequence[BuildReport]
) -> dict[str, dict[str, Any]]:
    """Row counts of each table and the cost summary over the spans of a run.

    Orders and markouts, of which there are many for each parent, are counted and not read.
    """
    parents: list[dict[str, Any]] = []
    findings: list[dict[str, Any]] = []
    for span in spans:
        for table, into in (("parent_costs", parents), ("cost_findings", findings)):
            into += cost_tables.table_rows(lake, table, span.symbols, span.from_date, span.to_date)
    summary = figures(parents, (), (), findings)
    metadata: dict[str, dict[str, Any]] = {
        table: {"rows": sum(sum(report.rows[table].values()) for report in reports)}
        for table in cost_tables.TABLES
    }
    metadata["parent_costs"] |= {
        "cost": dg.MetadataValue.md(cost_tables.markdown(summary)),
        "states": summary["states"],
    }
    metadata["cost_findings"] |= {"found": summary["findings"]}
    return metadata


warehouse = table_assets(
    "warehouse",
    feature_tables.TABLES,
    feature_tables.build_range,
    _describe_features,
    feature_tables.BATCH,
)
costs = table_assets(
    "costs", tuple(cost_tables.TABLES), _build_costs, _describe_costs, cost_tables.BATCH
)
