"""Jobs, the daily schedule, and the sensors."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from assets.platform import RANGE_END, RANGE_START, Platform, partition_key, run_dates
from market.lake import Lake
from market.settings import Settings, load
from market.units import days_between

#: A date's last capture is closed so long after midnight.
CLOSED: Final = timedelta(minutes=20)
#: A date whose run failed is asked for again after this, and not for ever.
AGAIN: Final = timedelta(hours=1)
ATTEMPTS: Final = 5
_RUNS: Final = 500
#: Everything, over a range of partitions, in one run.
pipeline_job = dg.define_asset_job(
    "pipeline",
    selection=dg.AssetSelection.all(),
    description="The whole path over a range of dates and all symbols.",
)

#: Training and promotion, over whatever the training set holds.
retrain_job = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets("model", "champion"),
    description="Train on the training set as it stands, and promote what passes the gate.",
)


#: What the worker served in the hours that are over; a worker that runs hears of an alarm at once.
hourly_job = dg.define_asset_job(
    "hourly",
    selection=dg.AssetSelection.assets("served")
    | dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("performance"), "decay")),
    description="Collect what was served, patch the champion, compare the challenger, look for decay.",
)

hourly = dg.ScheduleDefinition(
    job=hourly_job,
    cron_schedule="5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="At five past each hour: decay, patch and challenger.",
)


def range_tags(first: str, last: str, symbols: tuple[str, ...]) -> dict[str, str]:
    """Run tags that select every partition from first to last date, for all these symbols."""
    return {
        RANGE_START: partition_key(symbols[0], first),
        RANGE_END: partition_key(symbols[-1], last),
    }


def missing(lake: Lake, settings: Settings, now: datetime) -> list[str]:
    """Closed dates of captures or archives on which a symbol has no training set yet, sorted."""
    last = (now - CLOSED - timedelta(days=1)).strftime("%Y-%m-%d")
    recorded = {*lake.capture_dates(), *(day for _, day in lake.archives())}
    made = set(lake.partitions("training_set"))
    symbols = settings.market.recorded
    return sorted(
        day for day in recorded if day <= last and any((s, day) not in made for s in symbols)
    )


def requests(
    instance: dg.DagsterInstance, lake: Lake, settings: Settings, days: Iterable[str]
) -> Iterator[dg.RunRequest]:
    """One run for each range of consecutive dates that is to be asked for.

    Not asked for: what a run is under way for; what one left out for want of data, since when no capture
    came; what has failed `ATTEMPTS` times, or within the last hour.
    """
    runs = instance.get_run_records(dg.RunsFilter(job_name=pipeline_job.name), limit=_RUNS)
    asked: list[tuple[str, int]] = []
    for day in days:
        since = _since(lake, settings, day)
        of_day = [run for run in runs if _covers(run, day) and run.create_timestamp >= since]
        unmade = any(
            lake.exists("events", symbol, day) and not lake.exists("training_set", symbol, day)
            for symbol in settings.market.recorded
        )
        ended = {dg.DagsterRunStatus.SUCCESS: unmade, dg.DagsterRunStatus.FAILURE: True}
        failed = [run for run in of_day if ended.get(run.dagster_run.status, False)]
        if len(failed) < sum(
            run.dagster_run.status != dg.DagsterRunStatus.CANCELED for run in of_day
        ):
            continue  # under way, or all was made that there are data of
        if len(failed) >= ATTEMPTS:
            continue
        if failed and failed[0].update_timestamp > datetime.now(UTC) - AGAIN:
            continue
        asked.append((day, len(failed)))
    while asked:
        span = [asked.pop(0)]
        while asked and days_between(span[-1][0], asked[0][0])[1:] == [asked[0][0]]:
            span.append(asked.pop(0))
        first, last = span[0][0], span[-1][0]
        turn = sum(count for _, count in span)
        newest = max(_since(lake, settings, day) for day, _ in span)
        yield dg.RunRequest(
            run_key=f"{first} to {last}: captures of {newest:%F %T}, {turn} failed",
            tags=range_tags(first, last, settings.market.recorded),
        )


def _covers(run: dg.RunRecord, day: str) -> bool:
    dates = run_dates(run.dagster_run.tags)
    return dates is not None and dates[0] <= day <= dates[1]


def _since(lake: Lake, settings: Settings, day: str) -> datetime:
    """When the last capture of a date came."""
    archives = [lake.archive(symbol, day) for symbol in settings.market.recorded]
    found = map(lake.store.stat, [*lake.captures(day), *archives])
    return max((file.written for file in found if file), default=datetime.fromtimestamp(0, UTC))


_SETTINGS: Final = load()
_ON: Final = _SETTINGS.pipeline.daily != "off" and _SETTINGS.source == "recorded"
_AT: Final = (_SETTINGS.pipeline.daily if _ON else "00:20").split(":")


@dg.schedule(
    job=pipeline_job,
    cron_schedule=f"{int(_AT[1])} {int(_AT[0])} * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING if _ON else dg.DefaultScheduleStatus.STOPPED,
    description="Daily: yesterday and what was missed, from frames to features; retrain, gate.",
)
def daily(
    context: dg.ScheduleEvaluationContext, platform: Platform
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Runs for yesterday's partitions and for closed dates that no run has made."""
    settings, lake = platform.settings(), platform.lake()
    asked = list(
        requests(
            context.instance,
            lake,
            settings,
            missing(lake, settings, context.scheduled_execution_time),
        )
    )
    if not asked:
        yield dg.SkipReason(
            "every closed date of captures is made, under way, or left out for good"
        )
    yield from asked


@dg.sensor(
    job=pipeline_job,
    minimum_interval_seconds=300,
    description="A closed date of captures that came late, or whose run failed, asks for a run.",
)
def new_captures(
    context: dg.SensorEvaluationContext, platform: Platform
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """What `daily` would ask for now."""
    settings, lake = platform.settings(), platform.lake()
    days = missing(lake, settings, datetime.now(UTC))
    asked = list(requests(context.instance, lake, settings, days))
    if not asked:
        yield dg.SkipReason(
            "every closed date of captures is made, under way, or left out for good"
        )
    yield from asked


#: Evaluates automation conditions: a failed decay check asks for a retrain.
automation_sensor = dg.AutomationConditionSensorDefinition(
    "retrain_on_decay",
    target=dg.AssetSelection.assets("model", "champion"),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A decay check that begins to fail asks for one training attempt, and its promotion.",
)
