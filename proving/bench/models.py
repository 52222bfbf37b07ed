"""`l2 bench models`: training and inference of the ensemble, beside scikit-learn's and LightGBM's own fit.

Rows are generated: a slow driver moves the price and six features see it through noise, the others are
noise. The peers fit the same rows with the same trees, leaves, learning rate and bins.

    python -m proving.bench.models DAYS STRIDE TREES     prints peak memory (MB) and processor seconds of a
                                                         training on so many days of two symbols
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import lightgbm
import msgspec
import numpy as np
import numpy.typing as npt

from market.console import Say
from market.features import feature_names
from market.settings import Model, Settings
from market.units import DAY_NS, DAY_S, SECOND_NS, day_start_ns, utc_date
from models_registry import ensemble, training
from models_registry.dataset import Features, Rows
from models_registry.ensemble import BoosterParameters
from models_registry.fold import Trainer, Tuned, folds_of
from models_registry.manifest import MANIFEST_FILE, Bundle, parse_manifest
from models_registry.recipe import Predictor
from proving.bench.command import peak_mb
from proving.bench.goals import Measure

FIRST_DAY: Final = day_start_ns("2026-01-01") // DAY_NS
HORIZONS: Final = (10, 60, 300, 900)
_PARAMETERS: Final = BoosterParameters(feature_share=1.0)
_SEEING: Final = 6


class GeneratedSource:
    """A `dataset.Source` that generates each date's rows when they are read, the same every time."""

    def __init__(self, days: int, seconds: int = DAY_S, first_day: int = FIRST_DAY) -> None:
        self._dates = tuple(utc_date((first_day + n) * DAY_NS) for n in range(days))
        self._seconds = seconds

    def dates(self) -> tuple[str, ...]:
        return self._dates

    def read(self, days: Iterable[str], features: Sequence[str], stride_s: int = 1) -> Rows:
        days = list(days)
        size = 2 * len(range(stride_s - 1, self._seconds, stride_s))
        rows = Rows.empty(size * len(days), len(features), len(HORIZONS))
        for n, day in enumerate(days):
            self._fill(rows.where(slice(n * size, (n + 1) * size)), day, features, stride_s)
        return rows

    def _fill(self, rows: Rows, day: str, features: Sequence[str], stride_s: int) -> None:
        count = self._seconds
        shown = np.arange(stride_s - 1, count, stride_s)
        driver, labels = zip(*(self._path(day, symbol) for symbol in range(2)), strict=True)
        rows.t_ns[:] = np.repeat(day_start_ns(day) + (shown + 1) * SECOND_NS, 2)
        rows.symbol[:] = np.arange(len(rows)) % 2
        rows.mid[:], rows.spread_bps[:] = 1e5, 0.01
        for symbol, label in enumerate(labels):
            rows.labels_bps[symbol::2] = label[shown]
        for column, name in enumerate(features):
            number = feature_names().index(name)
            for symbol in range(2):
                noise = np.random.Generator(
                    np.random.Philox(key=[day_start_ns(day), 2 * number + symbol])
                ).standard_normal(len(shown), np.float32)
                seen = driver[symbol][shown] if number < _SEEING else 0.0
                rows.features[symbol::2, column] = seen + noise
            if name == ensemble.SCALE_FEATURE:
                rows.features[:, column] = 15.0 + np.abs(rows.features[:, column])

    def _path(self, day: str, symbol: int) -> tuple[npt.NDArray[np.float64], ...]:
        """The driver (seconds,) and labels (seconds, horizons) in bps of one symbol."""
        from scipy.signal import lfilter

        generator = np.random.Generator(np.random.Philox(key=[day_start_ns(day), 10_000 + symbol]))
        memory = 0.5 ** (1 / 30)
        shocks = generator.standard_normal(self._seconds) * np.sqrt(1 - memory**2)
        driver = lfilter([1.0], [1.0, -memory], shocks)
        path = np.cumsum(0.1 * driver + 0.9 * generator.standard_normal(self._seconds))
        labels = np.full((self._seconds, len(HORIZONS)), np.nan)
        for column, horizon in enumerate(HORIZONS):
            known = max(0, self._seconds - horizon - 1)
            labels[:known, column] = path[1 + horizon :][:known] - path[1:][:known]
        return driver, labels


def settings(stride_s: int, **model: object) -> Settings:
    """Settings of a synthetic lake that trains on the generated rows."""
    small = {"train_stride_s": stride_s, "fee_row": "zero", "act": "expected_edge", **model}
    return Settings(root="none", source="synthetic", model=msgspec.convert(small, Model))


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is measured; ``quick`` takes minutes of rows instead of days."""
    days, seconds = (2, 3000) if quick else (3, DAY_S)
    names = feature_names()[:25]
    rows = GeneratedSource(days, seconds).read(
        GeneratedSource(days).dates(), names, 1 if quick else 2
    )
    target = rows.labels_bps[:, 1] / 7.0
    known = ~np.isnan(target)
    features, target = rows.features[known], target[known]
    say(f"fits of {len(target):,} rows")
    ours: list[float] = []
    peers: dict[str, list[float]] = {"scikit-learn's histogram boosting": [], "lightgbm.train": []}
    for _ in range(1 if quick else 3):
        ours.append(_timed(lambda: _ours(features, target, names)))
        peers["scikit-learn's histogram boosting"].append(
            _timed(lambda: _sklearn(features, target))
        )
        peers["lightgbm.train"].append(_timed(lambda: _plain(features, target)))
    how = (
        f"binning and {_PARAMETERS.trees} trees of {_PARAMETERS.leaves} leaves on {len(target):,} "
        f"rows of {len(names)} features, one thread, processor time, best of {len(ours)}"
    )
    for name, taken in peers.items():
        yield Measure(
            name=f"fit, beside {name}", ours=min(ours), peer=min(taken), unit="s", better="less", how=how
        )  # fmt: skip
    say("one row through a whole ensemble")
    for name, predictor in (
        ("one-row inference: p99", trained(days + 2, seconds, 15)),
        (
            "one-row inference, a booster per horizon and objective: p99",
            whole(days + 2, seconds, 15),
        ),
    ):
        yield _inference(name, predictor, features[0], 200 if quick else 20_000)
    say("memory of a training")
    for name, count, stride_s, trees in (
        ("8 days at every 15 s", 8, 15, _PARAMETERS.trees),
        # Memory does not depend on the trees; all of them would take twenty minutes.
        ("30 days at every second", 30, 1, 8),
    ):
        count, stride_s = (4, 60) if quick else (count, stride_s)
        peak, took = training_cost(count, stride_s, trees)
        yield Measure(
            name=f"training, {name}: peak memory",
            ours=peak,
            unit="MB",
            better="less",
            how=f"two symbols, {2 * count * DAY_S // stride_s:,} rows, all {len(feature_names())} candidates, "
            f"generated by date; three test blocks, boosters of {trees} trees; a process of its own; "
            f"{took:.0f} processor s",
        )


def _inference(
    name: str, predictor: Predictor, given: npt.NDArray[np.float32], count: int
) -> Measure:
    width = len(predictor.recipe.features)
    row = given[:width].astype(np.float64)
    taken_ms = []
    for _ in range(count):
        started = time.perf_counter()
        predictor.predict(row)
        taken_ms.append(1e3 * (time.perf_counter() - started))
    median, highest = np.percentile(taken_ms, [50, 99])
    return Measure(
        name=name,
        ours=float(highest),
        unit="ms",
        better="less",
        how=f"{len(predictor.boosters)} boosters on {width} features, closed loop, {count:,} rows; "
        f"median {median:.3f} ms",
    )


def _untuned(trees: int) -> Callable[..., Trainer]:
    def made(*given: Any) -> Trainer:
        trainer = Trainer(*given)
        parameters = dict.fromkeys(HORIZONS, BoosterParameters(trees=trees))
        trainer.tuned = Tuned(parameters=parameters, span_s=math.inf)
        return trainer

    return made


def whole(days: int, seconds: int, stride_s: int) -> Predictor:
    """The first fold's model with all its boosters; a version leaves out those that got no weight."""
    source, model = (
        GeneratedSource(days, seconds),
        settings(stride_s, trials=0, min_train_days=3).model,
    )
    trainer = _untuned(_PARAMETERS.trees)(source, Features.defined(), model, None, lambda _: None)
    fitted = trainer.fit(folds_of(trainer.rows.t_ns, model)[0])
    assert not isinstance(fitted, str), fitted
    return ensemble.predictor(fitted.recipe, fitted.members)


def trained(days: int, seconds: int, stride_s: int, trees: int = _PARAMETERS.trees) -> Bundle:
    """A bundle trained on generated days, with all that is kept of an evaluation in memory."""
    source = GeneratedSource(days, seconds)
    chosen = settings(stride_s, trials=0, min_train_days=3, max_test_blocks=3)
    made = training.evaluate(source, chosen, Features.defined(), fits=_untuned(trees))
    model = training.finish(
        made, source, chosen, Features.defined(), data_fingerprint="generated", git_sha="none"
    )
    manifest = parse_manifest(model.files[MANIFEST_FILE], MANIFEST_FILE)
    texts = [model.files[member.booster].decode() for member in manifest.recipe.members]
    return Bundle(manifest, [ensemble.read_booster(text) for text in texts], "")


def training_cost(days: int, stride_s: int, trees: int) -> tuple[float, float]:
    """Peak memory (MB) and processor seconds of a training in a process of its own."""
    command = [sys.executable, "-m", "proving.bench.models", *map(str, (days, stride_s, trees))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, took = done.stdout.split()
    return float(peak), float(took)


def _timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _ours(features: npt.NDArray[np.float32], target: npt.NDArray[np.float64], names: Sequence[str]) -> object:  # fmt: skip
    data = ensemble.bin_features(features, names, 1)
    return ensemble.fit_booster(
        data, target, _PARAMETERS, horizon_s=1, stride_s=1, seed=1, threads=1
    )


def _plain(features: npt.NDArray[np.float32], target: npt.NDArray[np.float64]) -> object:
    parameters = {
        "objective": "regression", "max_bin": 63, "num_leaves": _PARAMETERS.leaves, "num_threads": 1,
        "learning_rate": _PARAMETERS.learning_rate, "lambda_l2": _PARAMETERS.l2, "verbosity": -1,
        "min_data_in_leaf": _PARAMETERS.leaf_labels,
    }  # fmt: skip
    return lightgbm.train(parameters, lightgbm.Dataset(features, target), _PARAMETERS.trees)


def _sklearn(features: npt.NDArray[np.float32], target: npt.NDArray[np.float64]) -> object:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        return HistGradientBoostingRegressor(
            max_iter=_PARAMETERS.trees, max_leaf_nodes=_PARAMETERS.leaves, max_bins=63,
            learning_rate=_PARAMETERS.learning_rate, l2_regularization=_PARAMETERS.l2,
            min_samples_leaf=_PARAMETERS.leaf_labels, early_stopping=False,
        ).fit(features, target)  # fmt: skip


if __name__ == "__main__":
    trained(int(sys.argv[1]), DAY_S, *map(int, sys.argv[2:]))
    print(peak_mb(), time.process_time())
