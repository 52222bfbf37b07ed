"""What the system page shows beside the worker's state, and which files the page's process hands out."""

from __future__ import annotations

import sqlite3
from collections import deque
from pathlib import Path

import dagster as dg
import msgspec
import pytest
from starlette.requests import Request

from live.run import logger
from market.lake import Lake
from market.pages import DATA_DOCS, REPORTS
from market.settings import Settings
from market.units import utc_date
from orchestration.dashboard.command import _file, published
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.machine import Machine, newest_capture, pipeline_runs
from orchestration.dashboard.system import line_of
from orchestration.metrics import Metrics
from orchestration.ui import dagster_instance


def test_of_any_number_of_log_lines_the_last_are_told_each_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines: deque[tuple[str, str]] = deque(maxlen=40)
    say = logger(lines)
    for n in range(5_000):
        say.info("<b>line</b>", n=n, filler="x" * 5_000)
    assert capsys.readouterr().err.count("\n") == 5_000
    assert [number for number, _ in lines] == [str(n) for n in range(4_961, 5_001)]
    assert max(len(line) for _, line in lines) == 1_000


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"timestamp": "2026-03-02T10:00:00.5Z", "level": "warning", "event": "book lost", "symbol": "A"},
         "2026-03-02 10:00:00 ! book lost: symbol A"),
        ({"event": "<img src=x>"}, "  <img src=x>"),
        ({}, "  "),
    ],
)  # fmt: skip
def test_a_line_is_shown_in_words(told: dict[str, str], shown: str) -> None:
    assert line_of(msgspec.json.encode(told).decode()) == shown


@pytest.mark.parametrize("line", ['{"event": "cut in the mid', "[]", "no JSON", ""])
def test_a_line_that_is_no_record_is_shown_as_it_is(line: str) -> None:
    assert line_of(line) == line


def test_the_runs_of_the_pipeline_are_read_from_dagsters_own_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = Settings(root=str(tmp_path))
    assert pipeline_runs(settings) == []

    @dg.op
    def fails() -> None:
        raise ValueError("no")

    @dg.job
    def nightly() -> None:
        fails()

    monkeypatch.setenv("DAGSTER_HOME", "")
    with dagster_instance(settings) as instance:
        done = nightly.execute_in_process(instance=instance, raise_on_error=False)
    monkeypatch.delenv("DAGSTER_HOME")
    (run,) = pipeline_runs(settings)
    assert (run.id, run.job, run.status) == (done.run_id, "nightly", "FAILURE")
    assert 0 < (run.started_s or 0) <= (run.ended_s or 0)
    follow = Follower(tmp_path / "state.sock")
    told = {m.name: m.samples for m in Metrics(settings, follow).collect()}
    follow.close()
    assert told["l2_pipeline_failed"][0].value == 1.0
    assert 0 <= told["l2_pipeline_age_seconds"][0].value < 600


def test_what_cannot_be_read_is_said_and_a_lake_is_not_made_by_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    root = tmp_path / "none"
    machine = Machine(Settings(root=str(root)))
    machine.close()
    machine.look()
    assert machine.capture is None
    assert machine.runs == []
    assert not root.exists()
    runs = root / "dagster" / "history" / "runs.db"
    runs.parent.mkdir(parents=True)
    runs.write_text("no database")
    with pytest.raises(sqlite3.DatabaseError):
        pipeline_runs(Settings(root=str(root)))


def test_the_newest_capture_is_that_written_to_last(tmp_path: Path) -> None:
    lake, now_s = Lake(tmp_path), 1_772_409_600.0
    assert newest_capture(lake, now_s) is None
    for day_s, name in ((now_s - 86_400, "b"), (now_s, "a")):
        path = Path(lake.frames_dir(utc_date(int(day_s * 1e9)))) / f"{name}.frames.zst"
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode() * 7)
    found = newest_capture(lake, now_s)
    assert found is not None
    assert (found.name, found.bytes) == ("a.frames.zst", 7)


def test_only_reports_and_data_docs_are_handed_out(tmp_path: Path) -> None:
    for path in (
        "l2.toml",
        f"{REPORTS}/tca.html",
        f"{REPORTS}/keys.env",
        f"{DATA_DOCS}/index.html",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    (tmp_path / REPORTS / "out.html").symlink_to(tmp_path / "l2.toml")
    asked = (
        f"{REPORTS}/tca.html", f"{DATA_DOCS}/index.html", f"{REPORTS}/keys.env", f"{REPORTS}/out.html",
        f"{REPORTS}/../l2.toml", "l2.toml", REPORTS, f"{REPORTS}/none.html", "/etc/passwd", "\0",
    )  # fmt: skip
    assert [path for path in asked if published(tmp_path, path)] == list(asked[:2])
    page = "<script>alert(1)</script>"
    refusal = _file(tmp_path, Request({"type": "http", "path_params": {"path": page}}))
    assert (refusal.status_code, refusal.media_type) == (404, "text/plain")
    assert refusal.headers["x-content-type-options"] == "nosniff"
