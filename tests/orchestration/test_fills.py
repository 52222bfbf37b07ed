"""`l2 fills`: sources, what is kept, and what is fitted on what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from execution import hazard
from execution.hazard import COVARIATES
from execution.hazard.placements import QUEUES, Placed
from execution.hazard.survival import Lives
from orchestration import fills
from orchestration.fills import FillsError, Source, captures, page, synthetic
from tests.conftest import REPOSITORY


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


def test_a_capture_that_is_not_there_is_named() -> None:
    with pytest.raises(FillsError, match=r"nowhere\.frames\.zst: no such capture"):
        captures(["nowhere.frames.zst"], ["BTCUSDT"])


def test_without_a_source_there_is_nothing_to_do() -> None:
    from market.settings import Settings

    with pytest.raises(FillsError, match="name --frames or --seeds"):
        fills.placed_in_all([], Settings(), lambda text: None)


def test_what_is_kept_is_what_was_found(tmp_path: Path) -> None:
    source = synthetic([5], ["BTCUSDT"])[0]
    fills.store(tmp_path, source, some())
    kept = fills._kept(tmp_path, source)
    assert kept is not None
    assert kept.refused == some().refused
    for queue, lives in some().lives.items():
        for mine, theirs in zip(kept.lives[queue], lives, strict=True):
            assert (mine == theirs).all()
    assert fills._kept(tmp_path, synthetic([6], ["BTCUSDT"])[0]) is None


def test_kinds_are_fitted_apart_and_one_that_is_not_named_stays() -> None:
    """A fit on synthetic days leaves the recorded parameters alone, and the other way round."""
    standing = hazard.committed()
    source = Source(name="seed 5", symbol="BTCUSDT", seed=5)
    found = fills.fitted({source: some()}, standing)
    assert found.fits["recorded"] == standing.fits["recorded"]
    assert found.fits["synthetic"]["power3"].fitted_on == ("seed 5",)
    report = fills.judge({source: some(), Source(name="x", symbol="B", path="x"): some()}, found)
    assert {(row.source, row.fitted) for row in report.judged} == {("seed 5", True), ("x", False)}
    assert {row.refused for row in report.judged} == {3}
    assert "| seed 5 | BTCUSDT | power3 | 300 |" in page.text(report, "picture.png")


def test_parameters_are_read_as_they_were_written(tmp_path: Path) -> None:
    import msgspec

    path = fills.write(hazard.committed(), tmp_path / "parameters.json")
    assert msgspec.json.decode(path.read_bytes(), type=hazard.Parameters) == hazard.committed()
    assert path.read_bytes() == hazard.PARAMETERS.read_bytes()


def test_the_page_in_the_docs_says_what_the_code_does() -> None:
    said = (REPOSITORY / "docs" / "fills.md").read_text(encoding="utf-8")
    assert said.startswith(page.TEXT)
    for kind, fits in hazard.committed().fits.items():
        assert page.coefficients(fits) in said, kind
