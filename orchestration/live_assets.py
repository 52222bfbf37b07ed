"""Dagster assets of what the live worker leaves: its records into the lake, and their daily skew check.

They belong here because `assets` may not import `live`, whose process loads no Dagster.
"""

# No postponed annotations here: Dagster compares the type of `context` at run time.

from typing import Any

import dagster as dg

from assets.platform import OWNERS, PARTITIONS, Platform, keys_of


@dg.asset(
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="live",
    owners=OWNERS,
    kinds={"python", "parquet"},
)
def decisions(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[None]:
    """The live worker's decisions with their feature vectors; its orders, fills and costs too.

    Collects finished hours and what is new in the log, also while the worker runs. Idempotent.
    """
    from live.collect import collect

    settings, lake = platform.settings(), platform.lake()
    venue = settings.live.venue
    state = settings.home / "live" / venue
    collected: dict[str, int] = {}
    if (state / "log").exists():
        collected = collect(lake, state, venue)
    rows = {
        f"{day} {symbol}": lake.rows("decisions", symbol, day)
        for symbol, day in keys_of(context.partition_keys)
        if lake.exists("decisions", symbol, day)
    }
    return dg.MaterializeResult(
        metadata={
            "rows": sum(rows.values()),
            "by partition": dg.MetadataValue.json(rows),
            "collected": dg.MetadataValue.json(collected),
        }
    )


@dg.asset(group_name="live", owners=OWNERS, kinds={"python", "lightgbm"})
def served(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[None]:
    """What the running worker served in the hours that are over: collected, the champion's patch fitted to
    it, and the challenger compared with it. The check `decay` goes on from here.
    """
    from live.collect import collect
    from models_registry.comparison import compare, show
    from models_registry.online import refit

    settings, lake = platform.settings(), platform.lake()
    venue = settings.live.venue
    state = settings.home / "live" / venue
    if (state / "log").exists():
        collect(lake, state, venue)
    fitted, compared = refit(lake, settings), compare(lake, settings)
    if not isinstance(compared, str):
        show(settings, compared)
    said = compared if isinstance(compared, str) else compared.summary
    context.log.info(f"{fitted.summary}; {said}")
    return dg.MaterializeResult(metadata={"patch": fitted.summary, "challenger": said})


@dg.asset_check(asset=decisions, partitions_def=PARTITIONS)
def live_batch_skew(
    context: dg.AssetCheckExecutionContext, platform: Platform
) -> dg.AssetCheckResult:
    """Decisions recomputed from the worker's own capture by the batch SQL; any difference fails."""
    from assets.skew import compare

    report = compare(platform.lake(), platform.settings(), keys_of(context.partition_keys))
    context.log.info(report.summary)
    metadata: dict[str, Any] = {
        "summary": report.summary,
        "decisions": report.decisions,
        "values compared": report.values,
        "differences": report.differences,
        "by name": dg.MetadataValue.json(report.by_name),
        "first differences": dg.MetadataValue.json([str(one) for one in report.examples]),
        "cannot be recomputed": dg.MetadataValue.json(list(report.not_recomputed)),
    }
    return dg.AssetCheckResult(passed=report.passed, metadata=metadata)
