"""Every look is counted, and what the gate is told of them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import planted
import pytest

from market.lake import Lake
from market.settings import Settings
from models_registry import store, trials

HOME = planted.settings(Path("lake"))


def daily(sign: float = 1.0) -> dict[int, float]:
    return {day: sign * (1.0 + day % 3) for day in range(10)}


def test_looks_add_up_and_daily_ones_of_a_procedure_are_one_series(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    assert trials.context(url, "a").trials == 1
    for _ in range(3):
        trials.record(url, "training", "a", "x", 9, daily())
    trials.record(url, "research", "b", "y", 1, daily(-1.0))
    found = trials.context(url, "a")
    assert (found.trials, found.procedures) == (3 * 9 + 1 + 1, 2)
    assert found.others == (daily(-1.0),)
    assert found.correlation == pytest.approx(-1.0)
    assert found.sharpe_variance is not None
    assert found.sharpe_variance > 0
    third = trials.context(url, "c")
    assert third.procedures == 3
    assert len(third.others) == 2


def test_a_procedure_is_its_settings_and_features_and_not_its_threads() -> None:
    same = msgspec.structs.replace(HOME, model=msgspec.structs.replace(HOME.model, threads=7))
    other = msgspec.structs.replace(HOME, model=msgspec.structs.replace(HOME.model, trials=7))
    of = trials.procedure(HOME, planted.FEATURES)
    assert trials.procedure(same, planted.FEATURES) == of
    assert trials.procedure(other, planted.FEATURES) != of
    assert trials.procedure(HOME, planted.Features.of(("signal",))) != of


def test_every_tuning_trial_of_every_horizon_and_span_is_a_look(
    registered: tuple[Lake, Settings],
) -> None:
    home = store.registry_home(registered[1])
    with closing(sqlite3.connect(home / "optuna.db")) as db:
        kept = db.execute("select count(*) from trials").fetchone()[0]
    assert kept % (2 * 2) == 0  # those of 10 s and 60 s: 300 s has too few labels to judge by
    with closing(sqlite3.connect(home / "trials.db")) as db:
        assert db.execute("select looks from looks where kind = 'training'").fetchall() == [
            (1 + kept,)
        ]
