"""Jobs, the daily schedule, and the sensors."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg

from assets.platform import RANGE_END, RANGE_START, Platform, partition_key
from market.settings import load

#: Everything, over a range of partitions, in one run.
pipeline_job = dg.define_asset_job(
    "pipeline",
    selection=dg.AssetSelection.all(),
    description="The whole path over a range of dates and all symbols.",
)

#: Training alone, over whatever the training set holds.
retrain_job = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets("model", "champion"),
    description="Train on the training set as it stands, and promote what passes the gate.",
)


def range_tags(first: str, last: str, symbols: tuple[str, ...]) -> dict[str, str]:
    """Run tags that select every partition from first to last date, for all these symbols."""
    return {
        RANGE_START: partition_key(symbols[0], first),
        RANGE_END: partition_key(symbols[-1], last),
    }


@dg.schedule(
    job=pipeline_job,
    cron_schedule="20 0 * * *",
    execution_timezone="UTC",
    description="At 00:20 UTC: yesterday from frames to features, then retrain and gate.",
)
def daily(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """One run for yesterday's partitions; twenty minutes let the last capture be closed."""
    yesterday = (context.scheduled_execution_time - timedelta(days=1)).strftime("%Y-%m-%d")
    return dg.RunRequest(
        run_key=yesterday, tags=range_tags(yesterday, yesterday, load().market.symbols)
    )


@dg.sensor(
    job=pipeline_job,
    minimum_interval_seconds=300,
    description="A closed date of captures without events asks for a run.",
)
def new_captures(
    context: dg.SensorEvaluationContext, platform: Platform
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Dates before today whose captures changed since the cursor and which have no events yet."""
    lake, symbols = platform.lake(), platform.settings().market.symbols
    seen: dict[str, Any] = json.loads(context.cursor or "{}")
    done = {day for _, day in lake.partitions("events")}
    asked = [
        day for day in lake.capture_dates()[:-1] if day not in done and seen.get(day) != "asked"
    ]
    if not asked:
        yield dg.SkipReason("every closed date of captures has events, or was asked for")
    for day in asked:
        seen[day] = "asked"
        yield dg.RunRequest(run_key=f"capture {day}", tags=range_tags(day, day, symbols))
    context.update_cursor(json.dumps(seen))


#: Evaluates automation conditions: a failed decay check asks for a retrain.
automation_sensor = dg.AutomationConditionSensorDefinition(
    "retrain_on_decay",
    target=dg.AssetSelection.assets("model"),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A decay check that begins to fail asks for one training attempt.",
)
