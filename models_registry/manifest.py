"""The format of a model version (a bundle): LightGBM text boosters and one JSON manifest; inference.

A bundle is a folder:

    manifest.json        `Manifest`; names each booster with its SHA-256
    booster_60s.txt ...  one LightGBM text model per horizon and objective

and a pointer file names the champion's bundle (`read_pointer`); the resolver writes both, the trading
process only reads them. From a feature vector to an expected return:

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
boosters, and acts by threshold. This module imports no MLflow, pandas or training
code, because the worker imports it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from market.errors import ModelError
from market.features.precision import rounded

if TYPE_CHECKING:
    import lightgbm

Float = npt.NDArray[np.float64]

FORMAT: Final = 2
#: Formats that are read; a field that an older one lacks has its default.
FORMATS: Final = (1, FORMAT)
MANIFEST_FILE: Final = "manifest.json"
POINTER_FILE: Final = "champion.json"

#: Regime of a row without volatility, which has no prediction either.
NO_REGIME: Final = "unknown"

Verdict = Literal["promote", "abstain", "not_enough_data"]
Objective = Literal["return", "direction"]
Act = Literal["threshold", "expected_edge", "certified"]
Basis = Literal["gross", "net"]


class BundleError(ModelError):
    """A bundle or pointer cannot be used; the message names the file and what to do."""


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


class Selection(StrictStruct, frozen=True, kw_only=True):
    """How the model's features were selected (`models_registry.selection`), over ``folds`` folds.

    ``frequency`` is the share of folds that selected each of the model's features; ``stability`` the index
    of Nogueira et al. with its 95 % interval (None with fewer than two folds); ``decoys_selected`` counts,
    over all folds, the noise columns that were selected.
    """

    candidates: int
    clusters: int
    folds: int
    decoys: int
    decoys_selected: int
    frequency: dict[str, float]
    stability: float | None
    stability_lower: float | None
    stability_upper: float | None


class Fees(StrictStruct, frozen=True, kw_only=True):
    """The fee row that the verdict assumes, bps per side."""

    row: str
    taker_bps: float
    maker_bps: float


class TrainingWindow(StrictStruct, frozen=True, kw_only=True):
    """Training data of the final boosters, both ends included."""

    first_date: str
    last_date: str
    first_ns: int
    last_ns: int
    rows: int
    stride_s: int


class GateRow(StrictStruct, frozen=True, kw_only=True):
    """One question of the gate: its figure (None: none), the limit that it was held to, and the answer.

    A row that is not ``blocking`` is advice to a reviewer.
    """

    name: str
    blocking: bool
    passed: bool
    value: float | None
    limit: float | None
    text: str


class Gate(StrictStruct, frozen=True, kw_only=True):
    """The promotion gate's verdict, its reasons, and the rows that it rests on (none in old manifests)."""

    verdict: Verdict
    reasons: tuple[str, ...]
    rows: tuple[GateRow, ...] = ()


class DecayReference(StrictStruct, frozen=True, kw_only=True):
    """Reference of the decay monitor (`models_registry.decay`).

    ``mean`` is the mean of the monitored stream over the out-of-sample rows, one observation per
    ``spacing_s``; ``limit`` is the alarm limit of the CUSUM with ``drift``, None when the mean is not
    positive and nothing could decay.
    """

    spacing_s: int
    mean: float
    drift: float
    limit: float | None
    arl0_days: float
    observations: int


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


class Manifest(StrictStruct, frozen=True, kw_only=True):
    """Everything about a model version except its trees."""

    format: int
    name: str
    source: Literal["recorded", "synthetic"]
    book_topic: str
    symbols: tuple[str, ...]
    #: `market.features.feature_hash()` of the definitions the training set was made by.
    feature_hash: str
    #: `list_hash` of the recipe's features.
    feature_list_hash: str
    recipe: Recipe
    fees: Fees
    window: TrainingWindow
    data_fingerprint: str
    git_sha: str
    seed: int
    parameters: dict[str, float | int | str | bool]
    gate: Gate
    decay: DecayReference
    metrics: dict[str, float]
    selection: Selection | None = None

    @property
    def features(self) -> tuple[str, ...]:
        return self.recipe.features

    @property
    def horizons_s(self) -> tuple[int, ...]:
        return self.recipe.horizons_s

    @property
    def primary_s(self) -> int:
        return self.recipe.primary_s


class Prediction(StrictStruct, frozen=True, kw_only=True):
    """The prediction for one row.

    ``expected_bps`` is the target rule's input: the expected return over the primary horizon in bps, 0
    where the recipe does not act, NaN when there is none. ``raw_bps`` is the same before that rule,
    on which IC and decay are measured; ``by_horizon`` the calibrated expected returns in bps at the
    recipe's ``horizons_s``. ``error_bps``, ``probability`` that the return has raw_bps' sign and
    ``confidence`` that its expectation has are NaN from a manifest of format 1.
    """

    expected_bps: float
    raw_bps: float
    by_horizon: tuple[float, ...]
    regime: str
    error_bps: float = math.nan
    probability: float = math.nan
    confidence: float = math.nan


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


class Pointer(StrictStruct, frozen=True, kw_only=True):
    """Which bundle is the champion: a folder below ``<root>/bundles/<name>`` and its checksum."""

    name: str
    version: str
    folder: str
    manifest_sha256: str


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def list_hash(names: Sequence[str]) -> str:
    """Hash of a feature list in its order (16 hex digits)."""
    return sha256("\n".join(names).encode())[:16]


def encode(record: StrictStruct) -> bytes:
    """Canonical JSON: equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def bundles_folder(root: str | Path, name: str) -> Path:
    """Where the bundles of a model are; BundleError when the root is not local."""
    if "://" in str(root):
        raise BundleError(f"{root}: bundles are stored on a local disk; use a local root")
    return Path(root) / "bundles" / name


def read_pointer(root: str | Path, name: str) -> Pointer | None:
    """The champion's pointer, None when nothing has been promoted; BundleError when unreadable."""
    path = bundles_folder(root, name) / POINTER_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Pointer)
    except msgspec.DecodeError as error:
        raise BundleError(
            f"{path}: not a champion pointer ({error}); run the resolver again"
        ) from error


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

    @property
    def horizons_s(self) -> tuple[int, ...]:
        return self.recipe.horizons_s

    def predict(self, vector: npt.NDArray[np.floating]) -> Prediction:
        """The prediction for one row of shape (features,), NaN for NULL."""
        many = self.predict_many(vector[np.newaxis, :])
        index = int(many.regime[0])
        return Prediction(
            expected_bps=float(many.expected_bps[0]),
            raw_bps=float(many.raw_bps[0]),
            by_horizon=tuple(float(value) for value in many.by_horizon[0]),
            regime=self.recipe.regimes[index].name if index >= 0 else NO_REGIME,
            error_bps=float(many.error_bps[0]),
            probability=float(many.probability[0]),
            confidence=float(many.confidence[0]),
        )

    def predict_many(self, matrix: npt.NDArray[np.floating], threads: int = 1) -> Predictions:
        """Predictions for rows of shape (n, features), n > 0; bit for bit those of `predict`.

        Features are rounded as the training set keeps them, whoever computed them.
        """
        recipe = self.recipe
        if matrix.ndim != 2 or matrix.shape[1] != len(recipe.features):
            raise ValueError(
                f"the model takes {len(recipe.features)} features, got shape {matrix.shape}"
            )
        matrix = rounded(matrix)
        volatility = np.asarray(matrix[:, self._scale_column], np.float64)
        output = np.empty((len(matrix), len(recipe.members)))
        by_horizon = np.empty((len(matrix), len(recipe.horizons_s)))
        combined = np.zeros(len(matrix))
        horizon = 0
        # Column by column, never a matrix product: its summation order depends on the row count,
        # and one row live must give the bits that many rows gave in validation.
        for column, (member, booster) in enumerate(zip(recipe.members, self.boosters, strict=True)):
            raw = np.asarray(booster.predict(matrix, raw_score=True, num_threads=threads))
            output[:, column] = raw
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


class Bundle(Predictor):
    """A verified model version, ready to predict."""

    def __init__(
        self, manifest: Manifest, boosters: Sequence[lightgbm.Booster], manifest_sha256: str
    ) -> None:
        super().__init__(manifest.recipe, boosters)
        self.manifest = manifest
        self.manifest_sha256 = manifest_sha256

    @classmethod
    def load(cls, folder: str | Path, manifest_sha256: str = "") -> Bundle:
        """Read and verify a bundle.

        BundleError unless every file has its registered SHA-256 (the manifest's own is checked when
        given) and the feature list its hash.
        """
        import lightgbm

        folder = Path(folder)
        data = _read(folder / MANIFEST_FILE)
        digest = sha256(data)
        if manifest_sha256 and digest != manifest_sha256:
            raise BundleError(
                f"{folder / MANIFEST_FILE}: checksum {digest[:16]} is not the registered "
                f"{manifest_sha256[:16]}; remove the folder and run the resolver again"
            )
        manifest = parse_manifest(data, str(folder / MANIFEST_FILE))
        boosters = []
        for member in manifest.recipe.members:
            path = folder / member.booster
            text = _read(path)
            if sha256(text) != member.sha256:
                raise BundleError(
                    f"{path}: checksum {sha256(text)[:16]} is not the manifest's "
                    f"{member.sha256[:16]}; remove the folder and run the resolver again"
                )
            boosters.append(lightgbm.Booster(model_str=text.decode()))
            if boosters[-1].num_feature() != len(manifest.features):
                raise BundleError(
                    f"{path}: takes {boosters[-1].num_feature()} features, the manifest lists "
                    f"{len(manifest.features)}; train again"
                )
        return cls(manifest, boosters, digest)

    def require(self, feature_hash: str, book_topic: str) -> None:
        """BundleError unless the model was trained on these feature definitions and this topic."""
        found = self.manifest
        if found.feature_hash != feature_hash:
            raise BundleError(
                f"model {found.name} was trained on feature definitions {found.feature_hash}, the "
                f"running code has {feature_hash}; train again or run the code it was trained with"
            )
        if found.book_topic != book_topic:
            raise BundleError(
                f"model {found.name} was trained on {found.book_topic}, this run reads "
                f"{book_topic}; set market.book_depth accordingly or train again"
            )


def load_champion(root: str | Path, name: str) -> tuple[Pointer, Bundle] | None:
    """The champion's pointer and verified bundle, None when nothing has been promoted."""
    pointer = read_pointer(root, name)
    if pointer is None:
        return None
    folder = bundles_folder(root, name) / pointer.folder
    return pointer, Bundle.load(folder, pointer.manifest_sha256)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in ``data``; BundleError naming ``where`` when it is not valid."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"{where}: not a model manifest ({error}); train again") from error
    if manifest.format not in FORMATS:
        raise BundleError(f"{where}: format {manifest.format}, this code reads up to {FORMAT}")
    if list_hash(manifest.features) != manifest.feature_list_hash:
        raise BundleError(f"{where}: the feature list does not have its hash; train again")
    recipe = manifest.recipe
    if recipe.scale.feature not in recipe.features:
        raise BundleError(f"{where}: scale feature {recipe.scale.feature} is not a feature")
    if any(Path(member.booster).name != member.booster for member in recipe.members):
        raise BundleError(f"{where}: a booster is not a plain file name; train again")
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror}); run the resolver again"
        ) from error
