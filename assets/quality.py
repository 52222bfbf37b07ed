"""Great Expectations on events and bars, as blocking checks with Data Docs.

Each partition is first reduced to one row of figures in DuckDB; the suites then state what those
figures may be. An expectation says what a dbt test does not: the dbt tests hold the shape of
tables (keys, uniqueness, one row per bar), the suites hold the quality of what the venue sent.

A breach of a ``critical`` expectation blocks what comes after; a ``warning`` is shown and does not.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
import msgspec

from assets.market_data import Key, bars, events, keys_of
from assets.partitions import PARTITIONS
from assets.platform import Platform
from market.events import Flag, Kind
from market.lake import Lake

if TYPE_CHECKING:
    import pandas as pd


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """One expectation: a figure of a partition lies between ``low`` and ``high`` (both allowed)."""

    figure: str
    low: float | None = None
    high: float | None = None
    severity: str = "critical"
    why: str


class Breach(msgspec.Struct, frozen=True):
    severity: str
    figure: str
    partitions: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.figure} in {', '.join(self.partitions)} ({self.why})"


_BOOK: Final = f"kind in ({Kind.SNAPSHOT}, {Kind.DELTA})"
_FRAME: Final = f"{_BOOK} and flags & {Flag.LAST} > 0 and flags & {Flag.CHECKPOINT} = 0"

#: Figures of one events partition.
EVENT_FIGURES: Final = {
    "completeness": f"""count(distinct receive_ns // 1000000000) filter ({_FRAME})
        / (max(receive_ns) // 1000000000 - min(receive_ns) // 1000000000 + 1)""",
    "gap_share": f"""count(*) filter ({_BOOK} and flags & {Flag.GAP} > 0)
        / greatest(1, count(*) filter ({_FRAME}))""",
    "steps_back": "count(*) filter (receive_ns < previous_ns)",
    "nonpositive_price": f"count(*) filter (kind != {Kind.TICKER} and side != 0 and price_ticks <= 0)",
    "nonpositive_trade": f"count(*) filter (kind = {Kind.TRADE} and qty_lots <= 0)",
    "trades_off_market": f"""count(*) filter (kind = {Kind.TRADE}
        and abs(price_ticks / nullif(trade_median, 0) - 1) > 0.2)
        / greatest(1, count(*) filter (kind = {Kind.TRADE}))""",
    "lag_min_s": f"min((receive_ns - exchange_ns) / 1e9) filter ({_FRAME})",
    "lag_spread_s": f"""quantile_cont((receive_ns - exchange_ns) / 1e9, 0.999) filter ({_FRAME})
        - min((receive_ns - exchange_ns) / 1e9) filter ({_FRAME})""",
}

EVENT_BOUNDS: Final = (
    Bound(
        figure="completeness",
        low=0.5,
        why="most seconds must have a book frame; a quiet book still ticks ten times a second",
    ),
    Bound(
        figure="completeness",
        low=0.98,
        severity="warning",
        why="a recording in order misses hardly a second",
    ),
    Bound(figure="gap_share", high=0.01, why="book frames missing before more than 1 % of frames"),
    Bound(
        figure="steps_back", high=0, why="ingest orders by receive time; a step back is its fault"
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
        why="our clock runs behind the exchange's; lags are then only comparable among themselves",
    ),
    Bound(
        figure="lag_spread_s",
        high=2,
        severity="warning",
        why="the slowest frames came seconds after the fastest: the network or the reader stalled",
    ),
)

#: Figures of one bars partition.
BAR_FIGURES: Final = {
    "gap_share": "avg(gap)",
    "mid_null_share": "count(*) filter (mid_close is null) / count(*)",
    "largest_jump_pct": "100 * max(abs(ln(mid_close / nullif(previous_mid, 0))))",
    "spread_median_bps": "median(spread_bps)",
    "one_sided_share": """count(*) filter (frames > 0 and gap = 0 and (bid_q1 is null or ask_q1 is null))
        / count(*)""",
    "volume_without_trades": "count(*) filter ((buy_n = 0) != (buy_qty = 0) or (sell_n = 0) != (sell_qty = 0))",
    "truncated_share": "avg(truncated)",
    "silent_share": "count(*) filter (frames = 0) / count(*)",
}

BAR_BOUNDS: Final = (
    Bound(
        figure="gap_share",
        high=0.2,
        why="a fifth of the seconds without a valid book trains nothing",
    ),
    Bound(
        figure="gap_share",
        high=0.01,
        severity="warning",
        why="every gap costs an hour of warm-up after it",
    ),
    Bound(figure="mid_null_share", high=0.2, why="bars without a mid have no label"),
    Bound(figure="largest_jump_pct", high=5, why="5 % in a second is a wrong price, not a market"),
    Bound(
        figure="largest_jump_pct",
        high=1,
        severity="warning",
        why="1 % in a second happens a few times a year; look at it before training",
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
)

#: A window without an order follows the file and streams: a day of events is never held at once.
_SOURCES: Final = {
    "events": """select *, lag(receive_ns) over () as previous_ns from read_parquet('{path}'),
        (select median(price_ticks) as trade_median from read_parquet('{path}') where kind = {trade})""",
    "bars": """select *, lag(mid_close) over (order by t_ns) as previous_mid
        from read_parquet('{path}')""",
}


def summarise(
    lake: Lake, table: str, keys: Sequence[Key], figures: dict[str, str]
) -> "pd.DataFrame":
    """One row of figures per partition that stands, with a ``partition`` column."""
    import duckdb
    import pandas as pd

    select = ", ".join(f"({sql})::double as {name}" for name, sql in figures.items())
    rows = []
    for symbol, day in keys:
        if lake.exists(table, symbol, day):
            path = lake.path(table, symbol, day)
            source = _SOURCES[table].format(path=path, trade=int(Kind.TRADE))
            row = duckdb.sql(f"select {select} from ({source})").fetchone()
            rows.append([f"{day} {symbol}", *(row or ())])
    return pd.DataFrame(rows, columns=["partition", *figures])


def validate(
    frame: "pd.DataFrame", name: str, bounds: Sequence[Bound], folder: Path
) -> tuple[list[Breach], str]:
    """Run one suite over a frame of figures; the breaches and the URL of its Data Docs."""
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
                where = (row["partition"] for row in result.result["unexpected_index_list"])
                breaches.append(Breach(bound.severity, bound.figure, tuple(where), bound.why))
    return breaches, str(context.get_docs_sites_urls()[0]["site_url"])


def _check(
    context: dg.AssetCheckExecutionContext,
    platform: Platform,
    table: str,
    figures: dict[str, str],
    bounds: Sequence[Bound],
) -> dg.AssetCheckResult:
    frame = summarise(platform.lake(), table, keys_of(context.partition_keys), figures)
    if frame.empty:
        note = f"no {table} partition to judge: these dates are straight as bars"
        return dg.AssetCheckResult(passed=True, metadata={"note": note})
    breaches, docs = validate(frame, table, bounds, platform.folder("quality"))
    for breach in breaches:
        context.log.warning(str(breach))
    metadata: dict[str, Any] = {
        "partitions": len(frame),
        "expectations": len(bounds),
        "breaches": dg.MetadataValue.json([str(breach) for breach in breaches]),
        "figures": dg.MetadataValue.md(frame.round(4).to_markdown(index=False)),
        "Data Docs": dg.MetadataValue.url(docs),
    }
    blocking = any(breach.severity == "critical" for breach in breaches)
    return dg.AssetCheckResult(
        passed=not breaches,
        severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN,
        metadata=metadata,
    )


@dg.asset_check(asset=events, blocking=True, partitions_def=PARTITIONS)
def events_quality(
    context: dg.AssetCheckExecutionContext, platform: Platform
) -> dg.AssetCheckResult:
    """Completeness per second, gaps, order in time, prices, lags."""
    return _check(context, platform, "events", EVENT_FIGURES, EVENT_BOUNDS)


@dg.asset_check(asset=bars, blocking=True, partitions_def=PARTITIONS)
def bars_quality(context: dg.AssetCheckExecutionContext, platform: Platform) -> dg.AssetCheckResult:
    """Gaps, missing mids, jumps, spreads, sides, volumes."""
    return _check(context, platform, "bars", BAR_FIGURES, BAR_BOUNDS)
