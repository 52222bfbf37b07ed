"""Great Expectations suites on events, bars and features, as blocking asset checks with Data Docs.

A suite states in Great Expectations' own metrics what must hold of the rows of a partition
(`assets.quality_batches`): values within limits, in all rows or mostly, a minimum, a median, a sum. dbt's
tests hold the shape of tables (keys, uniqueness, one row per bar); these suites hold the quality of the
data. Data Docs have one page per partition and table, which the next check of it replaces.

A breach of a ``critical`` expectation keeps its partition from what comes after (`assets.isolation`) and
withholds the date from training: its training_set partition is removed until the date passes. A
``warning`` is only shown. Every result is a row of the lake's table ``quality``, one per expectation.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import dagster as dg
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from assets.dbt import NOT_RUN
from assets.expectations import SUITES, Bound
from assets.isolation import LeftOut, critical, name
from assets.market_data import bars, events
from assets.platform import PARTITIONS, Key, Platform, keys_of
from assets.quality_batches import BATCHES
from market.lake import Lake
from market.locks import exclusive
from market.provenance import Table

if TYPE_CHECKING:
    import pandas as pd


QUALITY: Final = Table("quality", version=1, record=True)

#: Columns of the table ``quality``; ``judged`` is the table that was validated, ``value`` the metric or the
#: share of rows outside the limits.
VERDICTS: Final = pa.schema(
    [
        pa.field("judged", pa.string(), nullable=False),
        pa.field("figure", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("severity", pa.string(), nullable=False),
        pa.field("passed", pa.bool_(), nullable=False),
        pa.field("why", pa.string(), nullable=False),
    ]
)


#: Great Expectations has the pages of Data Docs load style, scripts and pictures from other hosts, and the
#: scripts do nothing without those. All of it is taken out, so that nothing leaves the machine, and this is
#: the style.
_FOREIGN: Final = re.compile(
    r"<script\b.*?</script>|<footer\b.*?</footer>|<link\b[^>]*>|<img\b[^>]*>|url\([^)]*\)| onclick=\"[^\"]*\"",
    re.DOTALL,
)
_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 14px/1.4 system-ui, sans-serif; max-width: 1080px; margin: 1em auto; padding: 0 1em; }
nav { height: auto !important; } .breadcrumb { list-style: none; padding: 0; } .breadcrumb li { display: inline; }
.breadcrumb li + li::before { content: " / "; }
h4 { font-size: 1.5em; } h5 { font-size: 1.2em; } h6 { font-size: 1em; } h4, h5, h6 { margin: .8em 0 .3em; }
table { border-collapse: collapse; margin: .3em 0; } td, th { border: 1px solid #8886; padding: .2em .6em; }
td { vertical-align: top; overflow-wrap: anywhere; } .badge { font-weight: bold; }
.card.mb-3, a[data-toggle=collapse] { display: none; }
i.fa-check-circle::before { content: "\\2713"; color: #0a0; font: bold 14px sans-serif; }
i.fa-times::before, i.fa-exclamation-triangle::before { content: "\\2717"; color: #c00; font: bold 14px sans-serif; }
"""


#: Of the project's folder, where the pages are.
SITE: Final = "gx/uncommitted/data_docs/local_site"


class Verdict(msgspec.Struct, frozen=True):
    """What an expectation found in a partition ("DATE SYMBOL"); ``rows`` are the first that are outside."""

    bound: Bound
    partition: str
    value: float
    passed: bool
    rows: tuple[str, ...] = ()

    def __str__(self) -> str:
        bound = self.bound
        found = f" at {', '.join(self.rows)}" if self.rows else f" {self.value:.4g}"
        return f"{bound.severity}: {bound.figure}{found} in {self.partition} ({bound.why})"


def validate(
    batches: Mapping[str, "pd.DataFrame"],
    table: str,
    bounds: Sequence[Bound],
    folder: Path,
    links: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[Verdict], dict[str, str]]:
    """Run a table's suite over each partition's batch, in a GX project in ``folder``.

    Partitions are "DATE SYMBOL"; ``links`` are for the site's front page. Returns what each expectation found, and by partition the URL of its page
    in Data Docs. The project's definitions are read, changed and written back, so one run at a time does
    this.
    """
    with exclusive(folder / "project.lock", "the quality project"):
        found = _validate(batches, table, bounds, folder)
        _publish(folder / SITE, table, batches, links)
        return found


def _validate(
    batches: Mapping[str, "pd.DataFrame"], table: str, bounds: Sequence[Bound], folder: Path
) -> tuple[list[Verdict], dict[str, str]]:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
    )

    context = gx.get_context(mode="file", project_root_dir=str(folder))
    styles = folder / "gx/plugins/custom_data_docs/styles/data_docs_custom_styles.css"
    styles.write_text(_STYLE)
    context.variables.progress_bars = {"globally": False}
    rows = context.data_sources.add_or_update_pandas("lake").add_dataframe_asset(table)
    data = rows.add_batch_definition_whole_dataframe("partition")
    verdicts: list[Verdict] = []
    pages = {}
    for partition, batch in batches.items():
        index = str(batch.columns[0])
        asked = [
            bound.expectation(order)
            for order, bound in enumerate(bounds)
            if bound.metric == "present" or batch[bound.figure].notna().any()
        ]
        suite = context.suites.add_or_update(gx.ExpectationSuite(name=table, expectations=asked))
        validation = context.validation_definitions.add_or_update(
            gx.ValidationDefinition(name=table, data=data, suite=suite)
        )
        checkpoint = context.checkpoints.add_or_update(
            gx.Checkpoint(
                name=table,
                validation_definitions=[validation],
                result_format={
                    "result_format": "SUMMARY",
                    "partial_unexpected_count": 5,
                    "unexpected_index_column_names": [index],
                },
            )
        )
        outcome = checkpoint.run(
            batch_parameters={"dataframe": batch},
            # of the partition, so that the page of an earlier check is replaced
            run_id=RunIdentifier(
                partition, datetime.fromisoformat(f"{partition[:10]}T00:00+00:00")
            ),
        )
        ((page, validated),) = outcome.run_results.items()
        pages[partition] = page
        verdicts += (
            _verdict(bounds[found.expectation_config.meta["order"]], partition, index, found)
            for found in validated.results
        )
    suite_page = ExpectationSuiteIdentifier(name=table)
    context.build_data_docs(resource_identifiers=[*pages.values(), suite_page], build_index=False)
    urls = {
        partition: str(context.get_docs_sites_urls(resource_identifier=page)[0]["site_url"])
        for partition, page in pages.items()
    }
    return verdicts, urls


def _publish(site: Path, table: str, partitions: Iterable[str], links: Mapping[str, str]) -> None:
    """Take what is foreign out of the pages just made, and write the front page: every partition, newest
    first, with the page of each table.
    """
    made = [site / "expectations" / f"{table}.html"]
    for partition in partitions:
        made += (site / "validations" / table / partition).glob("*/*.html")
    for page in made:
        page.write_text(_FOREIGN.sub("", page.read_text()))
    found: dict[str, list[str]] = {}
    for page in sorted(site.glob("validations/*/[0-9]*/*/*.html")):
        table, partition = page.parts[-4:-2]
        link = f'<a href="{quote(str(page.relative_to(site)))}">{table}</a>'
        found.setdefault(partition, []).append(link)
    lines = [f"<li>{name}: {', '.join(found[name])}</li>" for name in sorted(found, reverse=True)]
    nav = " · ".join(f'<a href="{url}">{name}</a>' for name, url in links.items())
    text = (
        "<meta name=viewport content='width=device-width'><title>Data Docs</title>"
        f"<style>{_STYLE}</style><nav>{nav}</nav><h1>Data Docs</h1><ul>{''.join(lines)}</ul>"
    )
    (site / "index.html").write_text(f"<!doctype html><meta charset=utf-8>{text}\n")


def _verdict(bound: Bound, partition: str, index: str, found: Any) -> Verdict:
    """``index`` names the batch's rows. RuntimeError when Great Expectations could not compute it."""
    result = found.result
    value = result.get("observed_value", result.get("unexpected_percent"))
    if value is None:
        raise RuntimeError(f"{bound.figure} in {partition}: {found.exception_info}")
    share = "observed_value" not in result
    outside = result.get("partial_unexpected_index_list") or ()
    return Verdict(
        bound,
        partition,
        float(value) / 100 if share else float(value),
        bool(found.success),
        tuple(str(row[index]) for row in outside),
    )


def record(lake: Lake, table: str, key: Key, verdicts: Sequence[Verdict]) -> bool:
    """Write a partition's results into the table ``quality``, and withhold it from training if they fail.

    Returns whether one is a critical breach, so that its training_set partition was removed.
    """
    rows = pa.Table.from_pylist(
        [
            {
                "judged": table,
                "figure": verdict.bound.figure,
                "value": verdict.value,
                **_limits(verdict.bound),
                "severity": verdict.bound.severity,
                "passed": verdict.passed,
                "why": verdict.bound.why,
            }
            for verdict in verdicts
        ],
        schema=VERDICTS,
    )
    if lake.exists("quality", *key):
        others = lake.read("quality", *key).replace_schema_metadata()
        rows = pa.concat_tables([others.filter(pc.not_equal(others["judged"], table)), rows])
    order = [(column, "ascending") for column in ("judged", "figure", "severity")]
    lake.write("quality", *key, rows.sort_by(order))
    return bool(withhold(lake, [key])) if any(map(_is_critical, verdicts)) else False


def _limits(bound: Bound) -> dict[str, float | None]:
    """Of the recorded value: of a metric its limits, of a share of rows how many may be outside."""
    if bound.metric in ("values", "present"):
        return {"low": None, "high": bound.outside}
    return {"low": bound.low, "high": bound.high}


def _is_critical(verdict: Verdict) -> bool:
    return verdict.bound.severity == "critical" and not verdict.passed


def withhold(lake: Lake, keys: Sequence[Key]) -> dict[Key, str]:
    """Remove training_set partitions with a recorded critical breach; each with the reason."""
    withheld = {key: failing for key in keys if (failing := critical(lake, key, SUITES))}
    for key in withheld:
        lake.remove("training_set", *key)
    return withheld


def severity(failed: Collection[Key], keys: Collection[Key]) -> dg.AssetCheckSeverity:
    """An error, which blocks what comes after, when nothing is left to go on with.

    Else a warning: Dagster blocks whole runs, and later steps leave the failed partitions out.
    """
    return dg.AssetCheckSeverity.ERROR if set(keys) <= set(failed) else dg.AssetCheckSeverity.WARN


def _check(
    context: dg.AssetCheckExecutionContext, platform: Platform, table: str
) -> dg.AssetCheckResult:
    lake, bounds = platform.lake(), SUITES[table]
    keys = keys_of(context.partition_keys)
    there = {name(key): key for key in keys if lake.exists(table, *key)}
    if not there:
        note = f"no {table} partition to validate: these dates have only bars"
        return dg.AssetCheckResult(
            asset_key=table, check_name=f"{table}_quality", passed=True, metadata={NOT_RUN: note}
        )
    batches = {partition: BATCHES[table](lake, *key) for partition, key in there.items()}
    to = platform.settings().pages
    links = {
        "reports": to.file("reports/index.html"),
        "Dagster": to.asset(table),
        "MLflow": to.mlflow,
    }
    folder = platform.folder("quality")
    verdicts, files = validate(batches, table, bounds, folder, links)
    # A browser opens no file from Dagster's page, so the dashboard hands it out.
    before = folder.parent.as_uri()
    pages = {name: to.file(url.removeprefix(f"{before}/")) for name, url in files.items()}
    left, withheld = LeftOut(context.log.warning), []
    for partition, key in there.items():
        if record(lake, table, key, [v for v in verdicts if v.partition == partition]):
            withheld.append(key)
            left.fail(key, f"critical: {critical(lake, key, [table])}")
    breaches = [str(verdict) for verdict in verdicts if not verdict.passed]
    for breach in breaches:
        context.log.warning(breach)
    metadata = left.finish() | {
        "partitions": len(there),
        "expectations": len(bounds),
        "breaches": dg.MetadataValue.json(breaches),
        "figures": dg.MetadataValue.md(_figures(verdicts, pages)),
    }
    return dg.AssetCheckResult(
        asset_key=table,
        check_name=f"{table}_quality",
        passed=not breaches,
        severity=severity(withheld, keys),
        metadata=metadata,
    )


def _figures(verdicts: Sequence[Verdict], pages: Mapping[str, str]) -> str:
    """A Markdown table of what was found: a row per partition, which leads to its page in Data Docs."""
    found: dict[str, dict[str, str]] = {partition: {} for partition in pages}
    for verdict in verdicts:
        mark = "" if verdict.passed else " ✗"
        before = found[verdict.partition].get(verdict.bound.figure, "")
        found[verdict.partition][verdict.bound.figure] = before or f"{verdict.value:.4g}{mark}"
    heads = list(dict.fromkeys(figure for row in found.values() for figure in row))
    lines = [["partition", *heads], ["---", *["---:"] * len(heads)]]
    lines += [
        [f"[{partition}]({pages[partition]})", *(row.get(head, "") for head in heads)]
        for partition, row in found.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dg.asset_check(asset=events, blocking=True, partitions_def=PARTITIONS)
def events_quality(
    context: dg.AssetCheckExecutionContext, platform: Platform
) -> dg.AssetCheckResult:
    """Completeness per second, sequence gaps, time order, clocks, crossed books, prices, rejects."""
    return _check(context, platform, "events")


@dg.asset_check(asset=bars, blocking=True, partitions_def=PARTITIONS)
def bars_quality(context: dg.AssetCheckExecutionContext, platform: Platform) -> dg.AssetCheckResult:
    """Gaps, missing mids, jumps, spreads, empty sides, volumes and turnover, stale tickers."""
    return _check(context, platform, "bars")


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(
            "features_quality",
            asset="features",
            blocking=True,
            partitions_def=PARTITIONS,
            description="NULLs, constant features, warm rows, drift against the week before.",
        ),
        dg.AssetCheckSpec(
            "sound_dates",
            asset="training_set",
            blocking=True,
            partitions_def=PARTITIONS,
            description="The training set has no date that failed a critical expectation.",
        ),
    ],
)
def features_quality(
    context: dg.AssetCheckExecutionContext, platform: Platform
) -> Iterator[dg.AssetCheckResult]:
    """The suite over features, and `sound_dates`: one dbt run makes both tables, training waits."""
    yield _check(context, platform, "features")
    keys = keys_of(context.partition_keys)
    withheld = withhold(platform.lake(), keys)
    left = LeftOut(context.log.warning)
    for key, failing in withheld.items():
        left.fail(key, f"critical: {failing}")
    yield dg.AssetCheckResult(
        check_name="sound_dates",
        asset_key="training_set",
        passed=not withheld,
        severity=severity(withheld, keys),
        metadata=left.finish(),
    )
