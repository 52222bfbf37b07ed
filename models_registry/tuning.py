"""Hyper-parameters of one horizon by Optuna, within a training span: pruned, seeded, kept, resumable.

Each trial's sampler is seeded by the trial's number, so that a search that was interrupted and goes on ends
where an uninterrupted one does. Kept trials are in a database that optuna-dashboard reads (`models_registry.state`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.features.precision import Float32
from models_registry.ensemble import BoosterParameters, FittedBooster, read_booster
from models_registry.store import asked
from models_registry.validation import mean_known, normal_scores

if TYPE_CHECKING:
    import optuna

Float = npt.NDArray[np.float64]

#: Trees between two looks at the score, which pruning decides by.
CHECK_EVERY: Final = 20
#: No trial is pruned before so many have ended.
_UNPRUNED_TRIALS: Final = 3

#: Trains a booster: parameters and a LightGBM callback, or None.
Fit = Callable[[BoosterParameters, Callable[[Any], None] | None], FittedBooster]


class Studies(msgspec.Struct, frozen=True, kw_only=True):
    """Where trials are kept; studies of one ``prefix`` are of the same data, code and settings."""

    url: str  #: SQLAlchemy's
    prefix: str


#: SQLite takes one writer at a time.
_writing = Lock()


def tune(
    fit: Fit,
    scored: Float32,
    realised: Float,
    *,
    first: BoosterParameters,
    trials: int,
    seed: int,
    studies: Studies | None = None,
    name: str = "",
) -> tuple[BoosterParameters, float]:
    """The best parameters by rank IC of ``fit``'s booster with ``realised`` on ``scored``, and that IC.

    ``first`` are tried first. Honest only for rows (n, f) and returns (n,) that ``fit`` does not train on,
    purged, and that neither calibration nor test see. ``first`` and NaN without a trial.
    """
    import optuna

    if trials < 1:
        return first, math.nan
    goal = normal_scores(realised)

    def objective(trial: optuna.Trial) -> float:
        parameters = BoosterParameters(
            trees=trial.suggest_int("trees", 40, 160, step=20),
            learning_rate=trial.suggest_float("learning_rate", 0.02, 0.1, log=True),
            leaves=trial.suggest_int("leaves", 7, 31, step=4),
            leaf_labels=trial.suggest_int("leaf_labels", 20, 160, log=True),
            feature_share=trial.suggest_float("feature_share", 0.3, 0.9),
            l2=trial.suggest_float("l2", 1.0, 100.0, log=True),
        )
        so_far = np.zeros(len(scored))

        def watch(state: Any) -> None:
            done = state.iteration + 1
            if done % CHECK_EVERY or done >= parameters.trees:
                return
            so_far[:] += state.model.predict(
                scored, start_iteration=done - CHECK_EVERY, num_iteration=CHECK_EVERY,
                num_threads=1,
            )  # fmt: skip
            trial.report(_ic(so_far, goal), done)
            if trial.should_prune():
                raise optuna.TrialPruned

        member = fit(parameters, watch)
        return _ic(np.asarray(read_booster(member.text).predict(scored, num_threads=1)), goal)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    study = optuna.create_study(
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(_UNPRUNED_TRIALS, CHECK_EVERY),
    )
    kept = _kept(studies, name)
    if kept is not None:
        study.add_trials(kept.get_trials(states=states))
    if not study.trials:
        study.enqueue_trial(msgspec.to_builtins(first))
    while (number := len(study.get_trials(deepcopy=False, states=states))) < trials:
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + number, multivariate=True, n_startup_trials=max(3, trials // 2)
        )
        study.optimize(objective, n_trials=1)
        if kept is not None:
            with _kept_at(studies):
                kept.add_trial(study.trials[-1])
    return msgspec.convert(study.best_params, BoosterParameters), float(study.best_value)


def _ic(predicted: Float, goal: Float) -> float:
    # A NaN fails its trial, and the search would go on for ever.
    return mean_known(normal_scores(predicted) * goal)


def kept_trials(studies: Studies) -> Iterator[tuple[str, optuna.trial.FrozenTrial]]:
    """Every trial that is kept of these data, code and settings, with the name of its study."""
    import optuna

    kind, _, file = studies.url.partition(":///")
    if kind == "sqlite" and not Path(file).exists():
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _storage(studies)
    for name in optuna.get_all_study_names(storage):
        if name.startswith(f"{studies.prefix} "):
            for trial in optuna.load_study(study_name=name, storage=storage).trials:
                yield name.removeprefix(f"{studies.prefix} "), trial


@contextmanager
def _kept_at(studies: Studies | None) -> Iterator[None]:
    import sqlalchemy as sa
    from optuna.exceptions import StorageInternalError

    what, kinds = "the trials of a search", (sa.exc.SQLAlchemyError, StorageInternalError)
    with _writing, asked(studies.url if studies else "", what, *kinds):
        yield


def _storage(studies: Studies) -> optuna.storages.RDBStorage:
    import optuna

    # Tasks of a cluster that share a file wait for each other.
    options = {"connect_args": {"timeout": 60}} if studies.url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(studies.url, engine_kwargs=options)


def _kept(studies: Studies | None, name: str) -> optuna.Study | None:
    if studies is None:
        return None
    import optuna

    with _kept_at(studies):
        return optuna.create_study(
            storage=_storage(studies),
            study_name=f"{studies.prefix} {name}",
            direction="maximize",
            load_if_exists=True,
        )
