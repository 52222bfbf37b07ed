"""`l2 study`: resumed days, reports that show the figures, recordings under both queue bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from market.settings import Settings
from orchestration.cli import main
from orchestration.study import command as study
from orchestration.study import study_report
from proving.study import command as engine
from proving.study.days import ParentOutcome, Plan, Size
from tests.orchestration.parsed_page import ParsedPage

PLAN = Plan(
    contenders=engine.contenders(("market", "router")),
    sizes=(Size("10k", usdt=10_000.0),),
    deadlines_s=(5,),
    every_s=90,
    hours=0.25,
)
SEEDS = (412, 413)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("days")


def studied(folder: Path, plan: Plan = PLAN) -> tuple[list[ParentOutcome], list[str]]:
    progress: list[str] = []
    rows = engine.synthetic(Settings(), plan, SEEDS, ("BTCUSDT",), folder, 1, progress.append)
    return rows, progress


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[ParentOutcome]:
    return studied(folder)[0]


@pytest.fixture(scope="module")
def result(outcomes: list[ParentOutcome]) -> dict[str, Any]:
    return {"synthetic": engine.as_data(outcomes)}


def test_a_study_resumes_with_the_days_that_are_missing(
    folder: Path, outcomes: list[ParentOutcome]
) -> None:
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["BTCUSDT-412.parquet", "BTCUSDT-413.parquet"]
    before = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    again, progress = studied(folder)
    assert files[0].stat().st_mtime_ns == before[files[0]]
    assert len(progress) == 2

    def timeless(rows: list[ParentOutcome]) -> str:
        return str([msgspec.structs.replace(row, decision_us=0.0) for row in rows])

    assert timeless(again) == timeless(outcomes)


def test_a_file_of_another_plan_is_recomputed(tmp_path: Path) -> None:
    one = msgspec.structs.replace(PLAN, every_s=200)
    studied(tmp_path, one)
    rows, _ = studied(tmp_path, msgspec.structs.replace(one, deadlines_s=(6,)))
    assert {row.deadline_s for row in rows} == {6}


def test_data_are_plain_json_without_nan(result: dict[str, Any]) -> None:
    text = json.dumps(result, allow_nan=False)
    cells = json.loads(text)["synthetic"]["cells"]
    assert {cell["algorithm"] for cell in cells} == {"market", "router", "oracle"}
    assert result["synthetic"]["seeds"] == list(SEEDS)


def test_the_report_shows_the_figures_in_one_file(result: dict[str, Any], tmp_path: Path) -> None:
    study_report.write(result, tmp_path / "study.html", "l2 study --synthetic")
    page = ParsedPage((tmp_path / "study.html").read_text())
    for cell in result["synthetic"]["cells"]:
        assert f"{cell['total']['mean']:.2f}" in page.cells
    for goal in result["synthetic"]["goals"]:
        assert goal["found"] in page.cells
    assert len(page.pictures) == 3
    assert page.fetched == []


def test_a_markdown_report_has_its_pictures_beside_it(
    result: dict[str, Any], tmp_path: Path
) -> None:
    study_report.write(result, tmp_path / "study.md", "l2 study --synthetic")
    text = (tmp_path / "study.md").read_text()
    images = sorted(path.name for path in tmp_path.glob("*.png"))
    assert images == ["study-costs.png", "study-differences.png", "study-markouts.png"]
    assert all(f"({image})" in text for image in images)
    assert "    l2 study --synthetic" in text


def test_wrong_calls_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2_ROOT", str(tmp_path))
    for status, words, line in (
        (2, (), "nothing to study: ask for --synthetic, or name captures with --frames"),
        (1, ("--frames", "none.zst"), "none.zst: no such capture"),
        (
            2,
            ("--synthetic", "--algorithms", "sniper"),
            "algorithm 'sniper': expected some of market,",
        ),
    ):
        assert main(["study", *words]) == status
        assert line in capsys.readouterr().err


def test_a_recording_is_studied_under_both_bounds(data_dir: Path) -> None:
    path = data_dir / "usdm-20240808.frames.zst"
    settings = Settings()
    settings = msgspec.structs.replace(
        settings, market=msgspec.structs.replace(settings.market, symbols=("BTCUSDT",))
    )
    report = study.recorded(settings, path, ("market", "router"), (10_000.0,), lambda _: None, 1)
    result = study.recorded_data(path.name, report)
    by_name = {(s["algorithm"], s["venue"]): s for s in result["summaries"]}
    assert set(by_name) == {(a, q) for a in ("market", "router") for q in study.QUEUES}
    for queue in study.QUEUES:
        assert by_name["router", queue]["total_bps"] < by_name["market", queue]["total_bps"]
    assert study_report.recorded_rows(result)
