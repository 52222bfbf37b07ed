"""`l2 fills`: sources, the cache of outcomes, and fits by kind of market."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from execution import hazard
from execution.hazard import COVARIATES
from execution.hazard.placements import QUEUES, Placed
from execution.hazard.survival import Lives
from market.errors import DataError, UsageError
from market.pages import REPORTS
from market.settings import Settings
from orchestration.cli import main
from orchestration.fills import evaluation, fill_report
from orchestration.fills.evaluation import Source, captures, synthetic
from tests.conftest import REPOSITORY
from tests.orchestration.parsed_page import ParsedPage


def some(count: int = 300, seed: int = 1) -> Placed:
    rng = np.random.Generator(np.random.Philox(key=seed))
    lasted = rng.exponential(5.0, count)
    lives = Lives(
        covariates=rng.standard_normal((count, len(COVARIATES))),
        lasted_s=np.minimum(lasted, 60.0),
        watched_s=np.full(count, 60.0),
        outcome=np.where(lasted < 60, rng.integers(1, 3, count), 0),
        observed_s=np.arange(count, dtype=np.float64) * 5,
    )
    return Placed(dict.fromkeys(QUEUES, lives), dict.fromkeys(QUEUES, 3))


def test_a_missing_capture_is_named() -> None:
    with pytest.raises(DataError, match=r"nowhere\.frames\.zst: no such capture"):
        captures(["nowhere.frames.zst"], ["BTCUSDT"])


def test_without_a_source_there_is_nothing_to_score() -> None:
    with pytest.raises(UsageError, match="name --frames or --seeds"):
        evaluation.place_all([], Settings(), lambda text: None)


def test_outcomes_are_loaded_as_they_were_stored(tmp_path: Path) -> None:
    source = synthetic([5], ["BTCUSDT"])[0]
    evaluation.store(tmp_path, source, some())
    loaded = evaluation.load(tmp_path, source)
    assert loaded is not None
    assert loaded.refused == some().refused
    for queue, lives in some().lives.items():
        for mine, theirs in zip(loaded.lives[queue], lives, strict=True):
            assert (mine == theirs).all()
    assert evaluation.load(tmp_path, synthetic([6], ["BTCUSDT"])[0]) is None


def test_kinds_are_fitted_apart_and_the_others_stay() -> None:
    """A fit on synthetic days leaves the recorded parameters alone, and the other way round."""
    previous = hazard.committed()
    source = Source(name="seed 5", symbol="BTCUSDT", seed=5)
    parameters = evaluation.fit({source: some()}, previous)
    assert parameters.fits["recorded"] == previous.fits["recorded"]
    assert parameters.fits["synthetic"]["power3"].fitted_on == ("seed 5",)
    other = Source(name="x", symbol="B", path="x")
    report = evaluation.evaluate({source: some(), other: some()}, parameters)
    assert {(row.source, row.fitted) for row in report.judged} == {("seed 5", True), ("x", False)}
    assert {row.refused for row in report.judged} == {3}
    assert "| seed 5 | BTCUSDT | power3 | 300 |" in fill_report.document(report, "picture.png")


def test_parameters_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = evaluation.write_parameters(hazard.committed(), tmp_path / "parameters.json")
    assert msgspec.json.decode(path.read_bytes(), type=hazard.Parameters) == hazard.committed()
    assert path.read_bytes() == hazard.PARAMETERS.read_bytes()


def test_docs_fills_is_the_report_of_the_committed_parameters() -> None:
    committed = (REPOSITORY / "docs" / "fills.md").read_text(encoding="utf-8")
    assert committed.startswith(fill_report.TEXT)
    for kind, fits in hazard.committed().fits.items():
        assert fill_report.coefficients(fits) in committed, kind


def test_a_page_of_html_goes_to_the_lakes_reports(tmp_path: Path) -> None:
    kept, root = tmp_path / "kept", tmp_path / "lake"
    kept.mkdir()
    evaluation.store(kept, synthetic([1], ["BTCUSDT"])[0], some())
    given = ["fills", "--seeds", "1", "--symbols", "BTCUSDT", "--kept", str(kept), "--html"]
    assert main([*given, "--root", str(root), "--workers", "1"]) == 0
    text = (root / REPORTS / "fills.html").read_text(encoding="utf-8")
    page = ParsedPage(text)
    assert page.fetched == []
    assert "<svg" in text
    assert "<td>seed 1</td><td>BTCUSDT</td><td>power3</td><td>300</td>" in text
    assert "`" not in text
    assert "fills.html" in (root / REPORTS / "index.html").read_text(encoding="utf-8")
