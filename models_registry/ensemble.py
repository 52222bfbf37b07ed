"""The ensemble: a LightGBM booster per horizon and objective, stacked and calibrated into one expectation.

Labels are divided by trailing volatility (`realised_vol_300`, scaled to the horizon by the square root
of time, floored) and, for training only, clipped at five of those units. So quiet and volatile hours,
BTC and ETH, weigh the same in the loss; in bps the most volatile hours would dominate it.
Predictions are multiplied back, and all evaluation is unclipped in bps. The objectives are

    return       squared error of the scaled return
    direction    log-loss of its sign, outside the band of `labels.direction`; the output is log-odds

both weighted by each label's uniqueness. Stacking weights are non-negative least squares of the primary
label on outputs that no booster was trained on (`stack`); calibration is lines through zero on the same
rows, the latest with most weight (`recency`):

    slope_m       label_h   on booster_m's output       -> the expectation at horizon h
    to_primary_m  label_p   on booster_m's output       -> booster_m as a predictor at the primary
    gain          label_p   on c = sum weight_m to_primary_m output_m
    sign_slope    log-odds that label_p has the sign of c, on |gain * c|

each slope shrunk by its own uncertainty (`shrunk`). A booster without a positive slope gets weight zero;
if all do, the prediction is zero and the model never trades.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.features.precision import Float32
from market.settings import Model
from models_registry import abstention, labels
from models_registry.dataset import Rows
from models_registry.manifest import sha256
from models_registry.recipe import (
    Calibration,
    CalibrationBin,
    Confidence,
    Member,
    Objective,
    Predictor,
    Recipe,
    Regime,
    Scale,
    regime_index,
    scale_bps,
)
from models_registry.slopes import fit_line, fit_sign, pooled, recency
from models_registry.validation import Mask, information_coefficient

if TYPE_CHECKING:
    import lightgbm

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

SCALE_FEATURE: Final = "realised_vol_300"
SCALE_WINDOW_S: Final = 300

#: Training labels are clipped at this, in units of their scale.
CLIP: Final = 5.0

#: With fewer independent labels a regime stays closed and a test block is skipped.
MIN_EFFECTIVE: Final = 30.0

#: Minimum rows to train a booster.
MIN_TRAIN_ROWS: Final = 500

#: How features are binned; the same for every booster.
_BINNING: Final = {"max_bin": 63, "feature_pre_filter": False, "verbosity": -1}

REGIMES: Final = ("low", "normal", "high")
CALIBRATION_BINS: Final = 10


OBJECTIVES: Final[tuple[Objective, ...]] = ("return", "direction")


class BoosterParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Tuned hyperparameters of a horizon, shared by its objectives.

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
    """A trained booster before calibration: its horizon, objective and LightGBM text."""

    horizon_s: int
    objective: Objective
    text: str

    @property
    def file(self) -> str:
        """Its file name in a bundle."""
        suffix = "" if self.objective == "return" else f"_{self.objective}"
        return f"booster_{self.horizon_s}s{suffix}.txt"

    def booster(self) -> Any:
        """What predicts: read from the text, as it is served; the trained object itself is never used."""
        return read_booster(self.text)


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
    objective: Objective = "return",
    weight: Float | None = None,
    watch: Callable[[Any], None] | None = None,
) -> FittedBooster:
    """Train one horizon on the binned rows whose scaled label ``target`` (n,) is not NaN.

    ``weight`` (n,) is each row's; ``watch`` is a LightGBM callback. A direction booster leaves out rows
    within the band, whose width is of these rows. Without a label, or a direction of one side only, there is
    nothing to learn: the booster says 0. Deterministic whatever the number of threads: with
    column-wise histograms, also the faster mode here, one thread sums each.
    """
    import lightgbm

    if objective == "direction":
        k = labels.band_width(target, np.ones(1))
        sign = labels.direction(target, np.ones(1), k)
        known = np.flatnonzero(np.abs(sign) > 0)
        label = (sign[known] > 0).astype(np.float64)
        loss = {"objective": "binary", "boost_from_average": False}
        learns = 0.0 < label.sum() < len(label)
    else:
        known = np.flatnonzero(~np.isnan(target))
        label = np.clip(target[known], -CLIP, CLIP)
        loss = {"objective": "regression"}
        learns = len(known) > 0
    if not learns:
        # LightGBM takes no empty set, and gives log-odds of -35 for a single class.
        known, label = np.arange(len(target)), np.zeros(len(target))
        loss = {"objective": "regression"}
    overlap = max(1.0, horizon_s / stride_s)
    settings = {
        **_BINNING,
        **loss,
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
    part.set_label(label)
    if weight is not None:
        part.set_weight(weight[known])
    booster = lightgbm.train(
        settings, part, num_boost_round=parameters.trees, callbacks=[watch] if watch else None
    )
    return FittedBooster(horizon_s=horizon_s, objective=objective, text=booster.model_to_string())


def read_booster(text: str) -> lightgbm.Booster:
    """A booster from its text."""
    import lightgbm

    return lightgbm.Booster(model_str=text)


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """What boosters gave, ``output`` (n, members), for rows that they were not trained on, purged.

    ``rows`` without features; ``volatility`` (n,) is their scale feature. The boosters of different folds
    are the same members.
    """

    rows: Rows
    volatility: Float
    output: Float

    def where(self, mask: Mask) -> Outputs:
        """The rows where ``mask`` (n,) is true."""
        return Outputs(
            rows=self.rows.where(mask), volatility=self.volatility[mask], output=self.output[mask]
        )

    def then(self, other: Outputs) -> Outputs:
        """These rows and the others."""
        return Outputs(
            rows=self.rows.then(other.rows),
            volatility=np.concatenate((self.volatility, other.volatility)),
            output=np.concatenate((self.output, other.output)),
        )


def stack(seen: Outputs, scale: Scale, model: Model) -> Float:
    """Stacking weights (members,), non-negative and summing to one, or all zero.

    Least squares (Lawson & Hanson 1974), weighted by recency, of the primary scaled label on the members'
    outputs, each first multiplied by its own shrunk slope.
    """
    from scipy.optimize import nnls

    goals = targets(seen.rows.labels_bps, seen.volatility, scale, model.horizons_s)
    primary, t_ns = goals[:, model.horizons_s.index(model.primary_s)], seen.rows.t_ns
    weight = recency(t_ns)
    slopes = [fit_line(x, primary, t_ns, model.primary_s, weight).shrunk for x in seen.output.T]
    known = ~np.isnan(primary)
    if not known.any():
        return np.zeros(seen.output.shape[1])
    root = np.sqrt(weight[known])
    found = nnls(
        seen.output[known] * slopes * root[:, np.newaxis],
        np.clip(primary[known], -CLIP, CLIP) * root,
    )[0]
    return np.asarray(found / found.sum() if found.sum() > 0 else found)


def combine(
    members: Sequence[FittedBooster],
    weights: Float,
    seen: Outputs,
    scale: Scale,
    edges_bps: Sequence[float],
    features: Sequence[str],
    model: Model,
) -> Recipe:
    """Calibrate the stack of boosters by what they gave out of sample, and its act rule.

    ``edges_bps`` are the regimes' inner edges.
    """
    primary_s = model.primary_s
    rows, volatility, output = seen.rows, seen.volatility, seen.output
    weight = recency(rows.t_ns)
    goals = targets(rows.labels_bps, volatility, scale, model.horizons_s)
    column_of = [model.horizons_s.index(member.horizon_s) for member in members]
    primary = goals[:, model.horizons_s.index(primary_s)]
    own = [
        fit_line(output[:, i], goals[:, column], rows.t_ns, members[i].horizon_s, weight)
        for i, column in enumerate(column_of)
    ]
    across = [fit_line(x, primary, rows.t_ns, primary_s, weight) for x in output.T]
    combined = np.zeros(len(rows))
    for i, line in enumerate(across):
        combined += output[:, i] * (weights[i] * line.shrunk)
    line = fit_line(combined, primary, rows.t_ns, primary_s, weight)
    edge = combined * line.shrunk
    confidence = None
    if math.isfinite(line.error):
        residual = float(np.nanstd(primary - edge))
        confidence = Confidence(
            level_error=residual / math.sqrt(line.n_eff),
            gain_error=line.error,
            sign_slope=fit_sign(edge, primary, rows.t_ns, primary_s, weight).shrunk,
        )
    recipe = Recipe(
        features=tuple(features),
        primary_s=primary_s,
        scale=scale,
        members=tuple(
            Member(
                horizon_s=member.horizon_s,
                objective=member.objective,
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
                        rows.labels_bps[:, column],
                    ),
                ),
                to_primary=across[i].shrunk,
                weight=float(weights[i]),
                ic=information_coefficient(output[:, i], primary, rows.t_ns, primary_s).rank,
            )
            for i, (member, column) in enumerate(zip(members, column_of, strict=True))
        ),
        gain=line.shrunk,
        regimes=_regimes(combined, primary, rows.t_ns, weight, volatility, edges_bps, primary_s),
        act=model.act,
        confidence=confidence,
    )
    scored = abstention.score(rows, edge, volatility, model)
    return abstention.certify(recipe, scored, model)


def _regimes(
    combined: Float,
    primary: Float,
    t_ns: Int,
    weight: Float,
    volatility: Float,
    edges_bps: Sequence[float],
    primary_s: int,
) -> tuple[Regime, ...]:
    """Open a regime if a positive slope of the prediction in it is shown at 95 %.

    The slopes of regimes are taken for draws around a common one, so that a regime of few labels has the
    evidence of the others, as far as they agree (`pooled`). An open regime's threshold is zero: the
    cost is the target rule's concern.
    """
    bands = [
        Regime(name=name, up_to_bps=edge, threshold_bps=None)
        for name, edge in zip(REGIMES, [*edges_bps, None], strict=True)
    ]
    index = regime_index(volatility, bands)
    lines = []
    for number in range(len(bands)):
        inside: Mask = index == number
        lines.append(
            fit_line(combined[inside], primary[inside], t_ns[inside], primary_s, weight[inside])
        )
    return tuple(
        msgspec.structs.replace(
            band, threshold_bps=0.0 if line.n_eff >= MIN_EFFECTIVE and line.lower > 0.0 else None
        )
        for band, line in zip(bands, pooled(lines), strict=True)
    )


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
    parameters: Mapping[int, BoosterParameters],
    model: Model,
) -> tuple[FittedBooster, ...]:
    """Train every horizon and objective on all rows (n, ``names``); ``parameters`` by horizon.

    First the return boosters in the horizons' order, then those of direction.
    """
    goals = targets(rows.labels_bps, volatility, scale, model.horizons_s)
    weight = [labels.weights(rows.t_ns, rows.symbol, horizon) for horizon in model.horizons_s]
    data = bin_features(rows.features, names, model.threads)

    def one(job: tuple[Objective, int]) -> FittedBooster:
        objective, column = job
        horizon = model.horizons_s[column]
        return fit_booster(
            data,
            goals[:, column],
            parameters.get(horizon, BoosterParameters()),
            horizon_s=horizon,
            stride_s=model.train_stride_s,
            seed=model.seed + column,
            threads=1,
            objective=objective,
            weight=weight[column],
        )

    jobs = [(objective, n) for objective in OBJECTIVES for n in range(len(model.horizons_s))]
    with ThreadPoolExecutor(model.threads) as pool:
        return tuple(pool.map(one, jobs))


def outputs(members: Sequence[FittedBooster], features: Float32, threads: int) -> Float:
    """The boosters' raw outputs for rows (n, f): float64 (n, members)."""
    if not len(features):
        return np.empty((0, len(members)))
    return np.column_stack(
        [m.booster().predict(features, raw_score=True, num_threads=threads) for m in members]
    )


def predictor(recipe: Recipe, members: Sequence[FittedBooster]) -> Predictor:
    """A predictor with these boosters."""
    return Predictor(recipe, [member.booster() for member in members])
