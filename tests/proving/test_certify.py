"""Certification: the planted truth is the closed form's, rules fail what they must, seeds resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models_registry.validation import information_coefficient
from orchestration.cli import main
from proving.certify import verdict
from proving.certify.market import Scenario, known, plant
from proving.certify.rows import ROWS, coverage
from proving.certify.stream import PER_DAY, Fall, cusum_delay_days, stream
from proving.certify.verdict import Cells, Line


def test_the_filter_has_the_ic_of_its_closed_form() -> None:
    scenario = Scenario(days=4, hours=6.0, ic=0.6, half_life_s=120.0, filterable=0.85)
    made = plant(scenario, 11)
    found = information_coefficient(made.oracle_bps, made.rows.labels_bps[:, 0], made.rows.t_ns, 60)
    assert known(scenario).ic == pytest.approx(0.51)
    # Overlapping labels: some 1440 independent ones.
    assert found.pearson == pytest.approx(0.51, abs=3 / np.sqrt(found.n_eff))


def test_a_seed_draws_one_market_whatever_is_planted() -> None:
    null, strong = (plant(Scenario(days=1, hours=0.5, ic=ic), 3) for ic in (0.0, 0.3))
    decoy = null.features.names.index("noise_60s")
    assert np.array_equal(null.rows.features[:, decoy], strong.rows.features[:, decoy])
    assert not null.oracle_bps.any()


def test_bounds_of_the_delay_are_those_of_the_literature() -> None:
    # quant.md 3.5, from the same formula computed independently.
    assert [round(cusum_delay_days(d), 2) for d in (0.05, 0.08, 0.10)] == [1.72, 0.86, 0.61]


def test_a_stream_changes_when_and_by_what_it_says() -> None:
    made = stream(Fall(before=0.3, after=-0.3), days=60, change_day=30, seed=5)
    half = 30 * PER_DAY
    for part, ic in ((made.part(0, half), 0.3), (made.part(half, 2 * half), -0.3)):
        assert np.corrcoef(part.predicted, part.realised)[0, 1] == pytest.approx(ic, abs=0.02)
        assert np.corrcoef(part.realised[1:], part.realised[:-1])[0, 1] == pytest.approx(
            0.78,
            abs=0.02,  # neighbours share three steps of four, and predictions persist
        )
    assert made.realised.std() == pytest.approx(np.exp(0.25**2), abs=0.02)


def test_coverage_is_the_most_that_keeps_false_signals_below() -> None:
    score, label = np.array([5.0, -4.0, 3.0, 2.0, 1.0]), np.array([1.0, -1.0, 1.0, 1.0, -1.0])
    assert coverage(score, label, 0.2) == 1.0
    assert coverage(score, label, 0.1) == 0.8


#: Figures that pass, and the same with one that must not.
PASSING: dict[str, Cells] = {
    "null": {
        "null": [{"ic": 0.001 * (-1) ** i, "promoted": 0, "certified": 0} for i in range(200)]
    },
    "regimes": {"changing": [{"adaptive": 3.0, "static": 2.0, "legacy": 1.0}] * 5},
    "leaks": {"decoy": [{"caught": 1.0, "label_edge": 1.0}] * 5},
}
SPOILT = (
    ("null", "null", {"ic": 0.2}),
    ("null", "null", {"promoted": 1}),
    ("null", "null", {"certified": 0.5}),
    ("regimes", "changing", {"adaptive": -20.0}),
    ("leaks", "decoy", {"caught": 0.0}),
)


def judge(row: str, cells: Cells) -> list[Line]:
    return ROWS[row].judge(cells)


@pytest.mark.parametrize(("row", "cell", "worse"), SPOILT)
def test_a_row_fails_on_what_it_forbids(row: str, cell: str, worse: verdict.Figures) -> None:
    good = list(PASSING[row][cell])
    assert all(line.passed for line in judge(row, {cell: good}))
    spoilt = [{**each, **worse} if i % 2 else each for i, each in enumerate(good)]
    assert not all(line.passed for line in judge(row, {cell: spoilt}))


def test_misses_count_as_the_longest_delay() -> None:
    late = [{"drop": 0.1, "delay_days": d, "missed": d == 15.0} for d in (0.5, 0.5, 15.0)]
    soon = judge("decay", {"step": late})[0]
    assert soon.figure == pytest.approx(2 / 3)
    assert not soon.passed


def test_finished_seeds_do_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["certify", "--seeds", "1", "--folder", str(tmp_path), "--jobs", "1", "--json"]
    leaks = [*options, "--only", "leaks", "--runs", "decoy,honest"]
    assert main(leaks) == 1  # open: one seed of twenty
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = (tmp_path / "leaks.jsonl").read_bytes()
    assert main(leaks) == 1  # open: one seed of twenty
    assert (tmp_path / "leaks.jsonl").read_bytes() == kept
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
    assert {x["what"]: x["figure"] for x in first["table"]} == {
        "decoy: caught by label_edge": 1.0,
        "honest: caught by none": 0.0,
    }


def test_a_null_seed_is_not_promoted_and_a_large_fall_is_found() -> None:
    found = ROWS["null"].runs["null"](1)["null"]
    assert (found["promoted"], found["certified"]) == (0.0, 0.0)
    assert ROWS["decay"].runs["from 0.15"](1)["step 0.15 to 0"]["delay_days"] < 1.0
