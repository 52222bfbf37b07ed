"""The search for hyper-parameters: repeatable, kept on disk, and resumed where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from models_registry import ensemble, tuning
from models_registry.ensemble import BoosterParameters, FittedBooster
from models_registry.tuning import Studies

GENERATOR = np.random.default_rng(1)
X = GENERATOR.normal(size=(1500, 4)).astype(np.float32)
Y = X[:, 0] * 0.5 + GENERATOR.normal(size=1500)
DATA = ensemble.bin_features(X[:1000], list("abcd"), 1)


class StoppedError(Exception):
    """The process ends."""


def search(studies: Studies | None, trials: int, fits: int | None = None) -> Any:
    calls = []

    def fit(parameters: BoosterParameters, watch: Any) -> FittedBooster:
        calls.append(parameters)
        if fits is not None and len(calls) > fits:
            raise StoppedError
        return ensemble.fit_booster(
            DATA, Y[:1000], parameters, horizon_s=1, stride_s=1, seed=1, threads=1, watch=watch
        )

    found = tuning.tune(
        fit, X[1000:], Y[1000:], first=BoosterParameters(), trials=trials, seed=3,
        studies=studies, name="60 s",
    )  # fmt: skip
    return found, calls


def test_an_interrupted_search_goes_on_to_the_same_end(tmp_path: Path) -> None:
    studies = Studies(url=f"sqlite:///{tmp_path}/optuna.db", prefix="data")
    whole, calls = search(None, 7)
    assert (calls[0], len(calls)) == (BoosterParameters(), 7)
    with pytest.raises(StoppedError):
        search(studies, 7, fits=4)
    resumed, rest = search(studies, 7)
    assert (resumed, rest) == (whole, calls[4:])
    assert search(studies, 7) == (whole, [])


def test_trials_are_kept_where_the_dashboard_reads_them_and_some_are_pruned(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    (_, best), _ = search(Studies(url=url, prefix="data"), 10)
    study = optuna.load_study(study_name="data 60 s", storage=url)
    assert study.best_value == best
    states = [trial.state.name for trial in study.trials]
    assert len(states) == 10
    assert set(states) == {"COMPLETE", "PRUNED"}


def test_without_trials_the_first_parameters_stand() -> None:
    (parameters, value), calls = search(None, 0)
    assert (parameters, calls) == (BoosterParameters(), [])
    assert np.isnan(value)
