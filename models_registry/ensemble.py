"""The ensemble: a LightGBM regressor per horizon, calibrated and combined into one expectation.

Labels are divided by trailing volatility (`realised_vol_300`, scaled to the horizon by the square root
of time, floored) and, for training only, clipped at five of those units. So quiet and volatile hours,
BTC and ETH, weigh the same in the squared loss; in bps the most volatile hours would dominate it.
Predictions are multiplied back, and all evaluation is unclipped in bps.

Calibration and combination are lines through zero, fitted on rows that no booster was trained on:

    slope_h       label_h   on booster_h's output       -> the expectation at horizon h
    to_primary_h  label_p   on booster_h's output       -> booster_h as a predictor at the primary
    weight_h      max(0, rank IC of booster_h with label_p)², normalised to one
    gain          label_p   on sum weight_h to_primary_h output_h

each slope shrunk by its own uncertainty (`shrunk`). A horizon without a positive IC gets weight zero;
if all do, the prediction is zero and the model never trades.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.features.precision import Float32
from models_registry.dataset import Rows
from models_registry.manifest import (
    Calibration,
    CalibrationBin,
    Member,
    Predictor,
    Recipe,
    Regime,
    Scale,
    regime_index,
    scale_bps,
    sha256,
)
from models_registry.validation import (
    Mask,
    TimeSpan,
    effective_count,
    information_coefficient,
    normal_scores,
    split_tail,
)

if TYPE_CHECKING:
    import lightgbm

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

SCALE_FEATURE: Final = "realised_vol_300"
SCALE_WINDOW_S: Final = 300

#: Training labels are clipped at this, in units of their scale.
CLIP: Final = 5.0

#: One-sided 95 % normal quantile.
Z95: Final = 1.6448536269514722

#: With fewer independent labels a regime stays closed and a test block is skipped.
MIN_EFFECTIVE: Final = 30.0

#: Minimum rows to train a booster.
MIN_TRAIN_ROWS: Final = 500

#: How features are binned; the same for every booster.
_BINNING: Final = {"max_bin": 63, "feature_pre_filter": False, "verbosity": -1}

REGIMES: Final = ("low", "normal", "high")
CALIBRATION_BINS: Final = 10


class BoosterParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Tuned hyperparameters, shared by all horizons.

    ``leaf_labels`` is the least number of independent labels in a leaf: at a stride of 15 s a leaf
    of the 900 s horizon must hold 60 times as many rows as one of the 10 s horizon.
    """

    trees: int = 120
    learning_rate: float = 0.05
    leaves: int = 15
    leaf_labels: int = 40
    feature_share: float = 0.5
    l2: float = 10.0


class FittedBooster(msgspec.Struct, frozen=True, kw_only=True):
    """A trained booster before calibration: its horizon and its LightGBM text."""

    horizon_s: int
    text: str

    @property
    def file(self) -> str:
        """Its file name in a bundle."""
        return f"booster_{self.horizon_s}s.txt"


def scale_of(volatility: Float) -> Scale:
    """The volatility scale, floored at the first percentile of the training rows' volatility."""
    known = volatility[volatility > 0]
    floor = float(np.quantile(known, 0.01)) if len(known) else 1.0
    return Scale(feature=SCALE_FEATURE, window_s=SCALE_WINDOW_S, floor_bps=floor)


def targets(labels_bps: Float, volatility: Float, scale: Scale, horizons_s: Sequence[int]) -> Float:
    """Labels (n, horizons) in units of their scale, unclipped."""
    return np.column_stack(
        [
            labels_bps[:, column] / scale_bps(volatility, scale, horizon)
            for column, horizon in enumerate(horizons_s)
        ]
    )


def bin_features(features: Float32, names: Sequence[str], threads: int) -> lightgbm.Dataset:
    """Rows (n, f) as a binned LightGBM Dataset, shared by all horizons and trials."""
    import lightgbm

    data = lightgbm.Dataset(
        features,
        np.zeros(len(features)),
        feature_name=list(names),
        params={**_BINNING, "num_threads": threads},
        free_raw_data=False,
    )
    return data.construct()


def fit_booster(
    data: lightgbm.Dataset,
    target: Float,
    parameters: BoosterParameters,
    *,
    horizon_s: int,
    stride_s: int,
    seed: int,
    threads: int,
) -> FittedBooster:
    """Train one horizon on the binned rows whose target (n,) is not NaN.

    Deterministic whatever the number of threads: with column-wise histograms, also the faster mode
    here, one thread sums each.
    """
    import lightgbm

    known = np.flatnonzero(~np.isnan(target))
    overlap = max(1.0, horizon_s / stride_s)
    settings = {
        **_BINNING,
        "objective": "regression",
        "learning_rate": parameters.learning_rate,
        "num_leaves": parameters.leaves,
        "min_data_in_leaf": max(1, min(int(parameters.leaf_labels * overlap), len(known) // 8)),
        "feature_fraction": parameters.feature_share,
        "lambda_l2": parameters.l2,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": threads,
        "seed": seed,
    }
    # A subset gets its parent's labels when constructed, so its own are set afterwards.
    part = data.subset(known, params=settings).construct()
    part.set_label(np.clip(target[known], -CLIP, CLIP))
    booster = lightgbm.train(settings, part, num_boost_round=parameters.trees)
    return FittedBooster(horizon_s=horizon_s, text=booster.model_to_string())


def read_booster(text: str) -> lightgbm.Booster:
    """A booster from its text, as it is served; the trained object itself is never used."""
    import lightgbm

    return lightgbm.Booster(model_str=text)


class LineFit(msgspec.Struct, frozen=True, kw_only=True):
    """A least-squares line through zero; ``error`` is its slope's standard error."""

    slope: float
    error: float
    n_eff: float

    @property
    def shrunk(self) -> float:
        """Positive-part James–Stein shrinkage of the slope; never negative."""
        if not self.slope > 0:
            return 0.0
        return self.slope * max(0.0, 1.0 - (self.error / self.slope) ** 2)

    @property
    def lower(self) -> float:
        """One-sided 95 % lower bound."""
        return self.slope - Z95 * self.error


def fit_line(x: Float, y: Float, t_ns: Int, horizon_s: int) -> LineFit:
    """y on x through zero over rows without NaN; the error allows for overlapping labels."""
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    n_eff = effective_count(t_ns[known], horizon_s)
    power = float(x @ x)
    if power <= 0.0 or n_eff < 2.0:
        return LineFit(slope=0.0, error=math.inf, n_eff=n_eff)
    slope = float(x @ y) / power
    variance = float(np.mean((y - slope * x) ** 2)) / power
    return LineFit(slope=slope, error=math.sqrt(variance * max(1.0, len(x) / n_eff)), n_eff=n_eff)


def combine(
    members: Sequence[FittedBooster],
    output: Float,
    rows: Rows,
    volatility: Float,
    scale: Scale,
    edges_bps: Sequence[float],
    features: Sequence[str],
    primary_s: int,
) -> Recipe:
    """Calibrate and combine boosters by their ``output`` (n, horizons) on ``rows``.

    Honest only for rows that no booster was trained on, purged of overlap. ``volatility`` (n,) is the
    scale feature of the rows, ``edges_bps`` the regimes' inner edges.
    """
    horizons_s = [member.horizon_s for member in members]
    goals = targets(rows.labels_bps, volatility, scale, horizons_s)
    primary = goals[:, horizons_s.index(primary_s)]
    own = [fit_line(output[:, i], goals[:, i], rows.t_ns, h) for i, h in enumerate(horizons_s)]
    across = [fit_line(output[:, i], primary, rows.t_ns, primary_s) for i in range(len(members))]
    ics = [
        information_coefficient(output[:, i], primary, rows.t_ns, primary_s).rank
        for i in range(len(members))
    ]
    merits = np.array(
        [
            max(0.0, ic) ** 2 if line.shrunk > 0 else 0.0
            for ic, line in zip(ics, across, strict=True)
        ]
    )
    weights = merits / merits.sum() if merits.sum() > 0 else merits
    combined = np.zeros(len(rows))
    for i, line in enumerate(across):
        combined += output[:, i] * (weights[i] * line.shrunk)
    gain = fit_line(combined, primary, rows.t_ns, primary_s).shrunk
    return Recipe(
        features=tuple(features),
        primary_s=primary_s,
        scale=scale,
        members=tuple(
            Member(
                horizon_s=member.horizon_s,
                booster=member.file,
                sha256=sha256(member.text.encode()),
                calibration=Calibration(
                    fitted=own[i].slope,
                    error=own[i].error if math.isfinite(own[i].error) else None,
                    n_eff=own[i].n_eff,
                    slope=own[i].shrunk,
                    table=calibration_table(
                        output[:, i]
                        * own[i].shrunk
                        * scale_bps(volatility, scale, member.horizon_s),
                        rows.labels_bps[:, i],
                    ),
                ),
                to_primary=across[i].shrunk,
                weight=float(weights[i]),
                ic=ics[i],
            )
            for i, member in enumerate(members)
        ),
        gain=gain,
        regimes=_regimes(combined, primary, rows.t_ns, volatility, edges_bps, primary_s),
    )


def _regimes(
    combined: Float,
    primary: Float,
    t_ns: Int,
    volatility: Float,
    edges_bps: Sequence[float],
    primary_s: int,
) -> tuple[Regime, ...]:
    """Open a regime only if its own rows show, at 95 %, a positive slope of the prediction.

    An open regime's threshold is zero: the cost is the target rule's concern.
    """
    bands = [
        Regime(name=name, up_to_bps=edge, threshold_bps=None)
        for name, edge in zip(REGIMES, [*edges_bps, None], strict=True)
    ]
    index = regime_index(volatility, bands)
    opened = []
    for number, band in enumerate(bands):
        inside: Mask = index == number
        line = fit_line(combined[inside], primary[inside], t_ns[inside], primary_s)
        shown = line.n_eff >= MIN_EFFECTIVE and line.lower > 0.0
        opened.append(msgspec.structs.replace(band, threshold_bps=0.0 if shown else None))
    return tuple(opened)


def regime_edges(volatility: Float) -> tuple[float, float]:
    """Terciles of the training rows' volatility, bps."""
    known = volatility[~np.isnan(volatility)]
    low, high = np.quantile(known, [1 / 3, 2 / 3]) if len(known) else (1.0, 2.0)
    return float(low), float(high)


def calibration_table(predicted_bps: Float, realised_bps: Float) -> tuple[CalibrationBin, ...]:
    """Equally filled bins of prediction against realised return; empty for a constant prediction."""
    known = ~(np.isnan(predicted_bps) | np.isnan(realised_bps))
    p, y = predicted_bps[known], realised_bps[known]
    if len(p) < CALIBRATION_BINS or p.min() == p.max():
        return ()
    order = np.argsort(p, kind="stable")
    return tuple(
        CalibrationBin(
            rows=len(part),
            predicted_bps=float(p[part].mean()),
            realised_bps=float(y[part].mean()),
        )
        for part in np.array_split(order, CALIBRATION_BINS)
    )


def fit(
    rows: Rows,
    volatility: Float,
    scale: Scale,
    names: Sequence[str],
    horizons_s: Sequence[int],
    parameters: BoosterParameters,
    *,
    stride_s: int,
    seed: int,
    threads: int,
) -> tuple[FittedBooster, ...]:
    """Train one booster per horizon on all rows."""
    goals = targets(rows.labels_bps, volatility, scale, horizons_s)
    data = bin_features(rows.features, names, threads)
    return tuple(
        fit_booster(
            data,
            goals[:, column],
            parameters,
            horizon_s=horizon,
            stride_s=stride_s,
            seed=seed + column,
            threads=threads,
        )
        for column, horizon in enumerate(horizons_s)
    )


def outputs(members: Sequence[FittedBooster], features: Float32, threads: int) -> Float:
    """The boosters' raw outputs for rows (n, f): float64 (n, horizons)."""
    if not len(features):
        return np.empty((0, len(members)))
    return np.column_stack(
        [read_booster(m.text).predict(features, num_threads=threads) for m in members]
    )


def predictor(recipe: Recipe, members: Sequence[FittedBooster]) -> Predictor:
    """A predictor with these boosters, read from their texts."""
    return Predictor(recipe, [read_booster(member.text) for member in members])


def tune(
    rows: Rows,
    volatility: Float,
    span: TimeSpan,
    names: Sequence[str],
    *,
    column: int,
    horizon_s: int,
    stride_s: int,
    trials: int,
    seed: int,
    threads: int,
) -> tuple[BoosterParameters, float]:
    """The best hyperparameters by rank IC at one horizon, and that IC.

    ``column`` is the horizon's column of the labels. Trials are scored on the span's last quarter,
    purged. Honest only with a ``span`` that no test block overlaps: callers give the first fold's
    training span. The defaults are the first trial, and the result, with an IC of NaN, when there are
    too few rows.
    """
    import optuna

    head, tail = split_tail(rows.t_ns, span, 0.25, horizon_s)
    train, scored = rows.where(head.mask(rows.t_ns)), rows.where(tail.mask(rows.t_ns))
    train_vol, scored_vol = volatility[head.mask(rows.t_ns)], volatility[tail.mask(rows.t_ns)]
    if trials < 1 or len(train) < MIN_TRAIN_ROWS or len(scored) < MIN_EFFECTIVE:
        return BoosterParameters(), math.nan
    scale = scale_of(train_vol)
    only = slice(column, column + 1)
    goal = targets(train.labels_bps[:, only], train_vol, scale, (horizon_s,))[:, 0]
    realised = normal_scores(
        targets(scored.labels_bps[:, only], scored_vol, scale, (horizon_s,))[:, 0]
    )

    data = bin_features(train.features, names, threads)

    def objective(trial: optuna.Trial) -> float:
        parameters = BoosterParameters(
            trees=trial.suggest_int("trees", 40, 160, step=20),
            learning_rate=trial.suggest_float("learning_rate", 0.02, 0.1, log=True),
            leaves=trial.suggest_int("leaves", 7, 31, step=4),
            leaf_labels=trial.suggest_int("leaf_labels", 20, 160, log=True),
            feature_share=trial.suggest_float("feature_share", 0.3, 0.9),
            l2=trial.suggest_float("l2", 1.0, 100.0, log=True),
        )
        member = fit_booster(
            data,
            goal,
            parameters,
            horizon_s=horizon_s,
            stride_s=stride_s,
            seed=seed,
            threads=threads,
        )
        output = outputs((member,), scored.features, threads)[:, 0]
        return float(np.nanmean(normal_scores(output) * realised))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=seed, multivariate=True, constant_liar=True, n_startup_trials=max(3, trials // 2)
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(msgspec.to_builtins(BoosterParameters()))
    study.optimize(objective, n_trials=trials)
    return msgspec.convert(study.best_params, BoosterParameters), float(study.best_value)
