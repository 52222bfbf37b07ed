"""Every look is counted, and what the gate is told of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import planted
import pytest

from models_registry import trials

HOME = planted.settings(Path("lake"))


def daily(sign: float = 1.0) -> dict[int, float]:
    return {day: sign * (1.0 + day % 3) for day in range(10)}


def test_looks_add_up_and_daily_ones_of_a_procedure_are_one_series(tmp_path: Path) -> None:
    assert trials.context(tmp_path, "a", 9).trials == 9
    for _ in range(3):
        trials.record(tmp_path, "training", "a", "x", 9, daily())
    trials.record(tmp_path, "research", "b", "y", 1, daily(-1.0))
    found = trials.context(tmp_path, "a", 9)
    assert (found.trials, found.procedures) == (3 * 9 + 1 + 9, 2)
    assert found.others == (daily(-1.0),)
    assert found.correlation == pytest.approx(-1.0)
    assert found.sharpe_variance is not None
    assert found.sharpe_variance > 0
    third = trials.context(tmp_path, "c", 1)
    assert third.procedures == 3
    assert len(third.others) == 2


def test_a_procedure_is_its_settings_and_features_and_not_its_threads() -> None:
    same = msgspec.structs.replace(HOME, model=msgspec.structs.replace(HOME.model, threads=7))
    other = msgspec.structs.replace(HOME, model=msgspec.structs.replace(HOME.model, trials=7))
    of = trials.procedure(HOME, planted.FEATURES)
    assert trials.procedure(same, planted.FEATURES) == of
    assert trials.procedure(other, planted.FEATURES) != of
    assert trials.procedure(HOME, planted.Features.of(("signal",))) != of
