"""Great Expectations suites on events, bars and features, as blocking asset checks with Data Docs.

Each partition is reduced to one row of figures (`assets.quality_figures`), whose allowed ranges are
stated here. dbt's tests hold the shape of tables (keys, uniqueness, one row per bar); these suites hold
the quality of the data.

A breach of a ``critical`` expectation keeps its partition from what comes after (`assets.isolation`) and
withholds the date from training: its training_set partition is removed until the date passes. A
``warning`` is only shown. Every result is a row of the lake's table ``quality``, one per expectation.
"""

import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dagster as dg
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from assets.isolation import LeftOut, critical
from assets.market_data import bars, events
from assets.platform import PARTITIONS, Key, Platform, keys_of
from assets.quality_figures import summarise
from market.lake import Lake
from market.locks import exclusive
from market.provenance import Table

if TYPE_CHECKING:
    import pandas as pd


QUALITY: Final = Table("quality", version=1, record=True)

#: Columns of the table ``quality``; ``judged`` is the table that was validated.
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


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """One expectation: ``low`` <= figure <= ``high``, None for an open end; NaN passes."""

    figure: str
    low: float | None = None
    high: float | None = None
    severity: str = "critical"
    why: str


class Breach(msgspec.Struct, frozen=True):
    """A failed expectation and its partitions ("DATE SYMBOL")."""

    severity: str
    figure: str
    partitions: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.figure} in {', '.join(self.partitions)} ({self.why})"


EVENTS: Final = (
    Bound(
        figure="completeness",
        low=0.5,
        why="most seconds must have a book frame; even a quiet book sends ten a second",
    ),
    Bound(
        figure="completeness",
        low=0.98,
        severity="warning",
        why="a sound recording misses hardly a second",
    ),
    Bound(figure="gap_share", high=0.01, why="book frames missing before more than 1 % of frames"),
    Bound(
        figure="steps_back",
        high=0,
        why="ingest orders by receive time; a step back is a defect of it",
    ),
    Bound(figure="nonpositive_price", high=0, why="no order and no trade has a price of zero"),
    Bound(figure="nonpositive_trade", high=0, why="a trade moves a quantity"),
    Bound(
        figure="trades_off_market",
        high=0.001,
        why="trades more than 20 % from the day's median are another symbol's or a wrong scale",
    ),
    Bound(
        figure="lag_min_s",
        low=0,
        severity="warning",
        why="our clock is behind the exchange's; only differences of lags are then meaningful",
    ),
    Bound(
        figure="lag_spread_s",
        high=2,
        severity="warning",
        why="the slowest frames came seconds after the fastest: the network or the reader stalled",
    ),
    Bound(
        figure="clock_step_s",
        high=0.2,
        severity="warning",
        why="the minimum lag per minute shifted: one of the two clocks was stepped",
    ),
    Bound(
        figure="crossed_share",
        high=0.01,
        why="a book crossed after more than 1 % of its frames was rebuilt wrongly",
    ),
    Bound(
        figure="crossed_share",
        high=0,
        severity="warning",
        why="the venue's book is never crossed after a whole frame",
    ),
    Bound(
        figure="one_sided_share",
        high=0.01,
        why="a book with an empty side after more than 1 % of its frames is unusable",
    ),
    Bound(
        figure="steps_back_share",
        high=0.001,
        severity="warning",
        why="frames received before their predecessors: the clock stepped back, or files are mixed",
    ),
    Bound(
        figure="left_out",
        high=0,
        severity="warning",
        why="the clock was set back over a second: frames have no time; table quarantine has file, lines "
        "and seconds",
    ),
    Bound(
        figure="rejected_share", high=0.01, why="the decoder rejected more than 1 % of the lines"
    ),
    Bound(
        figure="rejected_share",
        high=0,
        severity="warning",
        why="a line was rejected; table quarantine has it with file, line and reason",
    ),
)

BARS: Final = (
    Bound(
        figure="gap_share",
        high=0.2,
        why="with a fifth of the seconds without a valid book hardly a row is warm",
    ),
    Bound(
        figure="gap_share",
        high=0.01,
        severity="warning",
        why="rows after a gap are not warm: up to a minute for 60 s of it, 12 minutes for more than three",
    ),
    Bound(figure="mid_null_share", high=0.2, why="bars without a mid have no label"),
    Bound(figure="largest_jump_pct", high=5, why="5 % in a second is a wrong price, not a market"),
    Bound(
        figure="largest_jump_pct",
        high=1,
        severity="warning",
        why="1 % in a second happens a few times a year; inspect it before training",
    ),
    Bound(
        figure="spread_median_bps",
        low=0,
        high=2,
        why="the spread is a tick nearly always; a wider median is a broken book",
    ),
    Bound(figure="one_sided_share", high=0.001, why="a valid book has two sides"),
    Bound(
        figure="volume_without_trades", high=0, why="counts and quantities come from the same rows"
    ),
    Bound(
        figure="silent_share",
        high=0.05,
        severity="warning",
        why="seconds without a single book frame",
    ),
    Bound(
        figure="ticker_silent_share",
        high=0.05,
        severity="warning",
        why="mark, index, funding and open interest were older than a minute",
    ),
    Bound(
        figure="volume_to_turnover",
        low=0.5,
        high=2,
        why="the sum of trades is far from the ticker's 24 h turnover: another market or scale",
    ),
    Bound(
        figure="volume_to_turnover",
        low=0.95,
        high=1.05,
        severity="warning",
        why="the sum of trades differs from the ticker's 24 h turnover: some are missing or doubled",
    ),
)

FEATURES: Final = (
    Bound(
        figure="null_share",
        high=0.5,
        why="half of the features are NULL in warm rows: an input is missing",
    ),
    Bound(
        figure="null_share",
        high=0.25,
        severity="warning",
        why="the ticker's features are some 15 %; more than those are NULL",
    ),
    Bound(
        figure="absent",
        high=40,
        severity="warning",
        why="features without a single value: a whole input is missing",
    ),
    Bound(
        figure="constant",
        high=20,
        severity="warning",
        why="features that never change: an input is frozen",
    ),
    Bound(
        figure="warm_share",
        low=0.9,
        severity="warning",
        why="rows after a gap do not train; a sound date is warm but for minutes",
    ),
    Bound(
        figure="drift",
        high=20,
        why="20 interquartile ranges from the week before is another unit, not another market",
    ),
    Bound(
        figure="drift",
        high=1,
        severity="warning",
        why="a steady feature drifted from its median of the week before",
    ),
)
#: Table -> its expectations.
SUITES: Final = {"events": EVENTS, "bars": BARS, "features": FEATURES}


def validate(
    frame: "pd.DataFrame", name: str, bounds: Sequence[Bound], folder: Path
) -> tuple[list[Breach], str]:
    """Run one suite over rows of figures, as `summarise` makes them, in a GX project in ``folder``.

    Returns the breaches and the URL of the result's page in Data Docs. The project's definitions are
    read, changed and written back, so one run at a time does this.
    """
    with exclusive(folder / "project.lock", "the quality project"):
        return _validate(frame, name, bounds, folder)


def _validate(
    frame: "pd.DataFrame", name: str, bounds: Sequence[Bound], folder: Path
) -> tuple[list[Breach], str]:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.checkpoint import UpdateDataDocsAction

    context = gx.get_context(mode="file", project_root_dir=str(folder))
    context.variables.progress_bars = {"globally": False}
    suite = gx.ExpectationSuite(
        name=name,
        expectations=[
            gxe.ExpectColumnValuesToBeBetween(
                column=bound.figure,
                min_value=bound.low,
                max_value=bound.high,
                severity=bound.severity,
                notes=bound.why,
                meta={"order": order},
            )
            for order, bound in enumerate(bounds)
        ],
    )
    data = (
        context.data_sources.add_or_update_pandas("partitions")
        .add_dataframe_asset(name)
        .add_batch_definition_whole_dataframe("all")
    )
    validation = context.validation_definitions.add_or_update(
        gx.ValidationDefinition(name=name, data=data, suite=context.suites.add_or_update(suite))
    )
    checkpoint = context.checkpoints.add_or_update(
        gx.Checkpoint(
            name=name,
            validation_definitions=[validation],
            actions=[UpdateDataDocsAction(name="docs")],
            result_format={
                "result_format": "COMPLETE",
                "unexpected_index_column_names": ["partition"],
            },
        )
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": frame})
    breaches = []
    for validated in outcome.run_results.values():
        for result in validated.results:
            if not result.success:
                bound = bounds[result.expectation_config.meta["order"]]
                failing = (row["partition"] for row in result.result["unexpected_index_list"])
                breaches.append(Breach(bound.severity, bound.figure, tuple(failing), bound.why))
    # The result's own page: the index of the site loads scripts from the Internet.
    (page,) = outcome.run_results
    return breaches, str(context.get_docs_sites_urls(resource_identifier=page)[0]["site_url"])


def record(lake: Lake, table: str, frame: "pd.DataFrame", breaches: Sequence[Breach]) -> list[Key]:
    """Write the results into the table ``quality``, and withhold failing dates from training.

    Returns the (symbol, date) keys with a critical breach, whose training_set partitions it removed.
    """
    failures = {
        (breach.severity, breach.figure, partition)
        for breach in breaches
        for partition in breach.partitions
    }
    failed_keys = []
    for figures in frame.to_dict("records"):
        partition = str(figures["partition"])
        day, symbol = partition.split(" ")
        rows = pa.Table.from_pylist(
            [
                {
                    "judged": table,
                    "figure": bound.figure,
                    "value": None if math.isnan(figures[bound.figure]) else figures[bound.figure],
                    "low": bound.low,
                    "high": bound.high,
                    "severity": bound.severity,
                    "passed": (bound.severity, bound.figure, partition) not in failures,
                    "why": bound.why,
                }
                for bound in SUITES[table]
            ],
            schema=VERDICTS,
        )
        if lake.exists("quality", symbol, day):
            others = lake.read("quality", symbol, day).replace_schema_metadata()
            rows = pa.concat_tables([others.filter(pc.not_equal(others["judged"], table)), rows])
        lake.write(
            "quality",
            symbol,
            day,
            rows.sort_by([(name, "ascending") for name in ("judged", "figure", "severity")]),
        )
        if any(severity == "critical" and of == partition for severity, _, of in failures):
            failed_keys.append((symbol, day))
            lake.remove("training_set", symbol, day)
    return failed_keys


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
    lake, bounds, keys = platform.lake(), SUITES[table], keys_of(context.partition_keys)
    frame = summarise(lake, table, keys)
    if frame.empty:
        note = f"no {table} partition to validate: these dates have only bars"
        return dg.AssetCheckResult(
            asset_key=table, check_name=f"{table}_quality", passed=True, metadata={"note": note}
        )
    breaches, docs = validate(frame, table, bounds, platform.folder("quality"))
    withheld = record(lake, table, frame, breaches)
    left = LeftOut(context.log.warning)
    for breach in breaches:
        context.log.warning(str(breach))
    for key in withheld:
        left.fail(key, f"critical: {critical(lake, key, [table])}")
    metadata = left.finish() | {
        "partitions": len(frame),
        "expectations": len(bounds),
        "breaches": dg.MetadataValue.json([str(breach) for breach in breaches]),
        "figures": dg.MetadataValue.md(frame.round(4).to_markdown(index=False)),
        "Data Docs": dg.MetadataValue.url(docs),
    }
    return dg.AssetCheckResult(
        asset_key=table,
        check_name=f"{table}_quality",
        passed=not breaches,
        severity=severity(withheld, keys),
        metadata=metadata,
    )


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
