"""From a feature vector to an expected return: how boosters are combined, and when to act.

    scale  = max(v[scale.feature], scale.floor_bps) * sqrt(primary / scale.window_s)      bps
    raw_m  = booster_m(v)      in units of scale at m's horizon; log-odds of up for a direction booster
    c      = sum_m weight_m * to_primary_m * raw_m
    raw    = scale * gain * c                                                             bps
    error  = scale * sqrt(level_error² + (gain_error * c)²)          standard error of raw, bps
    probability = 1 / (1 + exp(-sign_slope * |raw| / scale)),  confidence = Phi(|raw| / error)

    act = threshold       expected_bps = raw where |raw| >= the regime's threshold_bps, else 0
    act = certified       the same where also |raw| / scale >= the regime's least_score
    act = expected_edge   expected_bps = sign(raw) * max(0, |raw| - error) in open regimes, else 0

The regime is the volatility band of v[scale.feature]. Format 1 has neither errors nor direction
boosters, and acts by threshold. The worker imports this module: no training code here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from market.features.precision import Float32, rounded
from models_registry.one_row import OneRow

if TYPE_CHECKING:
    import lightgbm

Float = npt.NDArray[np.float64]

Objective = Literal["return", "direction"]
Act = Literal["threshold", "expected_edge", "certified"]
Basis = Literal["gross", "net"]
Scope = Literal["regime", "all"]

#: Regime of a row without volatility, which has no prediction either.
NO_REGIME: Final = "unknown"


class StrictStruct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every JSON record here: immutable, keyword-only, unknown keys refused."""


class CalibrationBin(StrictStruct, frozen=True, kw_only=True):
    """One of equally filled bins of the calibrated prediction: means of prediction and outcome."""

    rows: int
    predicted_bps: float
    realised_bps: float


class Calibration(StrictStruct, frozen=True, kw_only=True):
    """From a booster's output to an expected return at its own horizon: a line through zero.

    ``fitted`` is the least-squares slope with standard error ``error`` over ``n_eff`` independent
    labels (None: too few to tell), ``slope = max(0, fitted) * max(0, 1 - error²/fitted²)`` (positive-part James–Stein).
    """

    fitted: float
    error: float | None
    n_eff: float
    slope: float
    table: tuple[CalibrationBin, ...]


class Member(StrictStruct, frozen=True, kw_only=True):
    """One booster of a horizon and objective, its calibration and its weight in the ensemble."""

    horizon_s: int
    booster: str
    sha256: str
    calibration: Calibration
    #: Slope of the primary label on this booster's output, shrunk like `Calibration.slope`.
    to_primary: float
    weight: float
    #: Rank IC of this booster's output with the primary label where it was calibrated.
    ic: float
    objective: Objective = "return"


class Scale(StrictStruct, frozen=True, kw_only=True):
    """Volatility scaling: labels are divided by trailing volatility, predictions multiplied by it."""

    feature: str
    window_s: int
    floor_bps: float


class Step(StrictStruct, frozen=True, kw_only=True):
    """The signals of a regime whose score |raw| / scale is at least ``score``.

    ``coverage`` is their share of the regime's rows, ``n_eff`` counts independent ones, ``rate`` of which
    were false; ``upper`` is the bound of that rate at the certificate's confidence.
    """

    score: float
    coverage: float
    n_eff: float
    rate: float
    upper: float


class Certificate(StrictStruct, frozen=True, kw_only=True):
    """A bound on a regime's false-signal rate by learn-then-test (`models_registry.abstention`).

    ``least_score`` is the loosest threshold whose rate is at most ``target`` with ``confidence``, None when
    none is; net is after the spread and both taker fees of ``fee_row``. ``steps`` go from strict to loose.
    """

    basis: Basis
    fee_row: str
    target: float
    confidence: float
    least_score: float | None
    steps: tuple[Step, ...]
    #: Whose signals were counted: the regime's, or those of all regimes together.
    scope: Scope = "regime"


class Regime(StrictStruct, frozen=True, kw_only=True):
    """A band of trailing volatility, and the prediction that is acted on in it.

    ``up_to_bps`` is the band's upper end (None: unbounded); ``threshold_bps`` the smallest absolute
    prediction that is acted on, None in a closed regime, which has no significant positive slope or no
    certified threshold; ``least_score`` the smallest |raw| / scale.
    """

    name: str
    up_to_bps: float | None
    threshold_bps: float | None
    least_score: float = 0.0
    certificates: tuple[Certificate, ...] = ()


class Confidence(StrictStruct, frozen=True, kw_only=True):
    """Errors of the combined expectation in units of scale, and the slope of the sign's log-odds."""

    level_error: float
    gain_error: float
    sign_slope: float


class Recipe(StrictStruct, frozen=True, kw_only=True):
    """How the boosters' outputs become an expected return, as in this module's docstring."""

    #: In the order of the vector.
    features: tuple[str, ...]
    primary_s: int
    scale: Scale
    members: tuple[Member, ...]
    gain: float
    regimes: tuple[Regime, ...]
    act: Act = "threshold"
    confidence: Confidence | None = None

    @property
    def horizons_s(self) -> tuple[int, ...]:
        """Horizons with an expected return of their own, in order."""
        return tuple(m.horizon_s for m in self.members if m.objective == "return")


class Prediction(StrictStruct, frozen=True, kw_only=True):
    """The prediction for one row.

    ``expected_bps`` is the target rule's input: the expected return over the primary horizon in bps, 0
    where the recipe does not act, NaN when there is none. ``raw_bps`` is the same before that rule,
    on which IC and decay are measured; ``by_horizon`` the calibrated expected returns in bps at the
    recipe's ``horizons_s``. ``error_bps``, ``probability`` that the return has raw_bps' sign and
    ``confidence`` that its expectation has are NaN from a manifest of format 1. ``scale_bps`` is the
    volatility over the primary horizon.
    """

    expected_bps: float
    raw_bps: float
    by_horizon: tuple[float, ...]
    regime: str
    error_bps: float = math.nan
    probability: float = math.nan
    confidence: float = math.nan
    scale_bps: float = math.nan


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions for n rows: float64 of shape (n,), ``by_horizon`` (n, horizons).

    ``output`` are the boosters' raw outputs (n, members); ``regime`` is an index into the recipe's
    regimes, -1 for none; ``scale_bps`` is the scale at the primary horizon.
    """

    expected_bps: Float
    raw_bps: Float
    by_horizon: Float
    output: Float
    regime: npt.NDArray[np.int8]
    scale_bps: Float
    error_bps: Float
    probability: Float
    confidence: Float


def scale_bps(volatility: Float, scale: Scale, horizon_s: int) -> Float:
    """Volatility over the horizon in bps: trailing volatility, floored, by the square root of time.

    NaN where the volatility is NaN; shape as given.
    """
    floored = np.where(np.isnan(volatility), np.nan, np.maximum(volatility, scale.floor_bps))
    return np.asarray(floored * math.sqrt(horizon_s / scale.window_s), np.float64)


def regime_index(volatility: Float, regimes: Sequence[Regime]) -> npt.NDArray[np.int8]:
    """Index of each row's regime, -1 where the volatility is NaN."""
    edges = np.array([r.up_to_bps for r in regimes if r.up_to_bps is not None], np.float64)
    index = np.searchsorted(edges, volatility, side="left")
    return np.where(np.isnan(volatility), -1, index).astype(np.int8)


class Predictor:
    """A recipe and its boosters: the same arithmetic in validation, scoring and live."""

    def __init__(self, recipe: Recipe, boosters: Sequence[lightgbm.Booster]) -> None:
        self.recipe = recipe
        self.boosters = tuple(boosters)
        self._scale_column = recipe.features.index(recipe.scale.feature)
        self._thresholds = np.array(
            [np.inf if r.threshold_bps is None else r.threshold_bps for r in recipe.regimes]
            + [np.nan]  # reached by index -1, where the expectation is NaN anyway
        )
        self._least_scores = np.array([r.least_score for r in recipe.regimes] + [np.nan])
        self._one_row: OneRow | None = None

    @property
    def horizons_s(self) -> tuple[int, ...]:
        return self.recipe.horizons_s

    def predict(self, vector: npt.NDArray[np.floating]) -> Prediction:
        """The prediction for one row of shape (features,), NaN for NULL; from one thread at a time."""
        matrix = self._rounded(vector[np.newaxis, :])
        if self._one_row is None:
            self._one_row = OneRow(self.boosters, len(self.recipe.features))
        many = self._combined(matrix, self._one_row(matrix[0])[np.newaxis, :].copy())
        index = int(many.regime[0])
        return Prediction(
            expected_bps=float(many.expected_bps[0]),
            raw_bps=float(many.raw_bps[0]),
            by_horizon=tuple(float(value) for value in many.by_horizon[0]),
            regime=self.recipe.regimes[index].name if index >= 0 else NO_REGIME,
            error_bps=float(many.error_bps[0]),
            probability=float(many.probability[0]),
            confidence=float(many.confidence[0]),
            scale_bps=float(many.scale_bps[0]),
        )

    def predict_many(self, matrix: npt.NDArray[np.floating], threads: int = 1) -> Predictions:
        """Predictions for rows of shape (n, features), n > 0; bit for bit those of `predict`.

        Features are rounded as the training set keeps them, whoever computed them.
        """
        matrix = self._rounded(matrix)
        output = np.empty((len(matrix), len(self.boosters)))
        for column, booster in enumerate(self.boosters):
            output[:, column] = booster.predict(matrix, raw_score=True, num_threads=threads)
        return self._combined(matrix, output)

    def contributions(self, vector: npt.NDArray[np.floating]) -> Float:
        """Each feature's part of ``raw_bps`` and, last, the constant one (features + 1,): they sum to it.

        TreeSHAP (Lundberg et al. 2020) of each booster, weighted as the boosters are.
        """
        recipe, matrix = self.recipe, self._rounded(vector[np.newaxis, :])
        parts = np.zeros(len(recipe.features) + 1)
        for member, booster in zip(recipe.members, self.boosters, strict=True):
            own = np.asarray(booster.predict(matrix, pred_contrib=True))[0]
            parts += own * (member.weight * member.to_primary)
        volatility = np.asarray(matrix[:, self._scale_column], np.float64)
        return parts * recipe.gain * float(scale_bps(volatility, recipe.scale, recipe.primary_s)[0])

    def _rounded(self, matrix: npt.NDArray[np.floating]) -> Float32:
        if matrix.ndim != 2 or matrix.shape[1] != len(self.recipe.features):
            raise ValueError(
                f"the model takes {len(self.recipe.features)} features, got shape {matrix.shape}"
            )
        return rounded(matrix)

    def _combined(self, matrix: Float32, output: Float) -> Predictions:
        """Predictions from the boosters' outputs (n, members)."""
        recipe = self.recipe
        volatility = np.asarray(matrix[:, self._scale_column], np.float64)
        by_horizon = np.empty((len(matrix), len(recipe.horizons_s)))
        combined = np.zeros(len(matrix))
        horizon = 0
        # Column by column, never a matrix product: its summation order depends on the row count,
        # and one row live must give the bits that many rows gave in validation.
        for member, raw in zip(recipe.members, output.T, strict=True):
            combined += raw * (member.weight * member.to_primary)
            if member.objective == "return":
                own_scale = scale_bps(volatility, recipe.scale, member.horizon_s)
                by_horizon[:, horizon] = raw * member.calibration.slope * own_scale
                horizon += 1
        scale = scale_bps(volatility, recipe.scale, recipe.primary_s)
        raw_bps = combined * recipe.gain * scale
        regime = regime_index(volatility, recipe.regimes)
        reached = (np.abs(raw_bps) >= self._thresholds[regime]) & (
            np.abs(raw_bps) >= self._least_scores[regime] * scale
        )
        error_bps, probability, confidence = self._errors(combined, raw_bps, scale)
        acted_bps = raw_bps
        if recipe.act == "expected_edge":
            acted_bps = np.sign(raw_bps) * np.maximum(0.0, np.abs(raw_bps) - error_bps)
        return Predictions(
            expected_bps=np.where(reached | np.isnan(raw_bps), acted_bps, 0.0),
            raw_bps=raw_bps,
            by_horizon=by_horizon,
            output=output,
            regime=regime,
            scale_bps=scale,
            error_bps=error_bps,
            probability=probability,
            confidence=confidence,
        )

    def _errors(self, combined: Float, raw_bps: Float, scale: Float) -> tuple[Float, Float, Float]:
        """Standard error in bps, probability of the right sign, confidence: (n,) each."""
        found = self.recipe.confidence
        if found is None:
            nothing = np.full(len(raw_bps), np.nan)
            return nothing, nothing, nothing
        from scipy.special import expit, ndtr

        error = scale * np.sqrt(found.level_error**2 + (found.gain_error * combined) ** 2)
        size = np.abs(raw_bps)
        return error, expit(found.sign_slope * (size / scale)), ndtr(size / error)
