"""Dates are made by themselves: which are asked for, when again, and by a real daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from assets.platform import Platform, run_dates
from market.lake import Lake
from market.settings import load
from orchestration import automation
from orchestration.automation import daily, new_captures, range_tags
from orchestration.ui import dagster_instance
from tests.conftest import REPOSITORY

SYMBOLS = ("BTCUSDT", "ETHUSDT")
NOW = datetime(2026, 3, 10, 0, 20, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Captures of three closed dates and of the present one."""
    lake = Lake(tmp_path, "recorded")
    for day in ("2026-03-06", "2026-03-08", "2026-03-09", "2026-03-10"):
        lake.put(f"{lake.frames_dir(day)}/a.frames.zst", b"frames")
    return lake


def made(lake: Lake, table: str, day: str, *symbols: str) -> None:
    for symbol in symbols:
        lake.write(table, symbol, day, pa.table({"t_ns": [1]}))


def _instance(folder: Path) -> dg.DagsterInstance:
    """One on disk: the context of a schedule opens it by reference."""
    folder.mkdir()
    return dg.DagsterInstance.local_temp(str(folder))


def asked(lake: Lake, instance: dg.DagsterInstance) -> list[tuple[str, str] | None]:
    """The ranges that the daily schedule asks for."""
    platform = Platform(overrides=[f"root={lake.uri}"])
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=NOW, resources={"platform": platform}
    ) as context:
        found = daily.evaluate_tick(context).run_requests
    assert found is not None
    return [run_dates(request.tags) for request in found]


def test_the_daily_run_makes_yesterday_and_what_was_missed_of_every_symbol(
    lake: Lake, tmp_path: Path
) -> None:
    with _instance(tmp_path / "1") as instance:
        every = [("2026-03-06", "2026-03-06"), ("2026-03-08", "2026-03-09")]
        assert asked(lake, instance) == every
        made(lake, "training_set", "2026-03-06", *SYMBOLS)
        made(lake, "training_set", "2026-03-08", "BTCUSDT")
        assert asked(lake, instance) == every[1:]
        made(lake, "training_set", "2026-03-08", "ETHUSDT")
        assert asked(lake, instance) == [("2026-03-09", "2026-03-09")]


def test_a_date_is_asked_for_again_after_a_failure_and_not_for_ever(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = "2026-03-09"
    for other in ("2026-03-06", "2026-03-08"):
        made(lake, "training_set", other, *SYMBOLS)
    with _instance(tmp_path / "2") as instance:

        def ended(status: dg.DagsterRunStatus) -> str:
            run = dg.DagsterRun("pipeline", tags=range_tags(day, day, SYMBOLS), status=status)
            return instance.add_run(run).run_id

        under_way = ended(dg.DagsterRunStatus.STARTED)
        assert asked(lake, instance) == []
        instance.delete_run(under_way)
        ended(dg.DagsterRunStatus.FAILURE)
        assert asked(lake, instance) == [], "an hour has to pass"
        monkeypatch.setattr(automation, "AGAIN", timedelta(0))
        for _ in range(automation.ATTEMPTS - 1):
            assert asked(lake, instance) == [(day, day)]
            ended(dg.DagsterRunStatus.FAILURE)
        assert asked(lake, instance) == []
    with _instance(tmp_path / "3") as instance:
        done = dg.DagsterRun("pipeline", tags=range_tags(day, day, SYMBOLS))
        instance.add_run(done.with_status(dg.DagsterRunStatus.SUCCESS))
        assert asked(lake, instance) == [], "there are no data of what it left out"
        made(lake, "events", day, "ETHUSDT")
        assert asked(lake, instance) == [(day, day)], "there are, and it was not made"


def test_the_sensor_asks_for_the_newest_closed_date_too(lake: Lake) -> None:
    platform = Platform(overrides=[f"root={lake.uri}"])
    with dg.DagsterInstance.ephemeral() as instance:
        with dg.build_sensor_context(instance, resources={"platform": platform}) as context:
            found = [item for item in new_captures(context) if isinstance(item, dg.RunRequest)]
        assert run_dates(found[-1].tags) == ("2026-03-08", "2026-03-10")  # long past


def test_the_schedule_is_on_for_a_recorded_lake_and_one_setting_turns_it_off() -> None:
    assert daily.default_status == dg.DefaultScheduleStatus.RUNNING
    code = "from orchestration.automation import daily; print(daily.default_status.value, daily.cron_schedule)"
    for variables, printed in (
        ({"L2_PIPELINE__DAILY": "off"}, "STOPPED 20 0 * * *"),
        ({"L2_SOURCE": "synthetic"}, "STOPPED 20 0 * * *"),
        ({"L2_PIPELINE__DAILY": "06:05"}, "RUNNING 5 6 * * *"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True
        )
        assert done.stdout.strip() == printed, done.stderr


def test_a_real_daemon_asks_for_what_was_missed(lake: Lake, tmp_path: Path) -> None:
    """The daemon of `l2 ui`, whose schedule nobody has switched on, at its minute of the day."""
    settings = load(environ={}, overrides=[f"root={lake.uri}"])
    at = datetime.now(UTC) + timedelta(seconds=180)  # until when it has started
    environment = os.environ | {
        "DAGSTER_HOME": str(tmp_path / "dagster"),
        "L2_ROOT": lake.uri,
        "L2_PIPELINE__DAILY": f"{at:%H:%M}",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", environment["DAGSTER_HOME"])
        instance = dagster_instance(settings)
    command = [
        Path(sys.executable).parent / "dagster-daemon",
        "run",
        "-m",
        "orchestration.definitions",
    ]
    with (tmp_path / "daemon.log").open("w") as log:
        daemon = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wanted = {("2026-03-06", "2026-03-06"), ("2026-03-08", "2026-03-10")}
        for _ in range(600):
            runs = instance.get_runs(dg.RunsFilter(job_name="pipeline"))
            if {run_dates(run.tags) for run in runs} == wanted:
                break
            assert daemon.poll() is None, (tmp_path / "daemon.log").read_text()
            time.sleep(1)
        else:
            pytest.fail((tmp_path / "daemon.log").read_text())
        assert {run.tags["dagster/schedule_name"] for run in runs} == {"daily"}
    finally:
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()
