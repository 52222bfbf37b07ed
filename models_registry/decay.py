"""Decay of the live IC: a CUSUM on the product of prediction and realised return, both ranked.

One observation per time bin is the mean over the bin's rows of

    x = z(prediction / scale) * z(realised / scale)

with z the normal score of a value among those of its symbol in the `RANKED_S` that end with its UTC hour,
and scale the trailing volatility: the mean of x is the rank IC, and neither a doubled volatility nor
bolder or shifted predictions move it for long. Page's CUSUM (1954) for a fall of the mean mu by d,

    S <- max(0, S + mu - SHARE * d - x),        alarm when S > limit,        d = min(mu, DROP),

with mu from the out-of-sample rows of validation. The limit is simulated for a given mean time between
alarms while nothing changes (in-control average run length, ARL0), on stationary resamples of those rows:
each simulated monitor has its own mu, of a resample as long as the reference, because a few days of
reference know mu to a tenth only. Every prediction counts, not only those that traded: the trades of a day
are too few. The stream is that of the procedure: S goes on when another version comes into force.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market.kernel import compiled
from market.lake import Lake
from market.provenance import Table
from market.settings import Settings
from market.units import HOUR_NS, SECOND_NS, utc_date
from models_registry import dataset
from models_registry.dataset import Features
from models_registry.manifest import Bundle, DecayReference, load_champion
from models_registry.recipe import StrictStruct
from models_registry.validation import bin_sums, distinct, effective_count, normal_scores
from models_registry.validation import information_coefficient as coefficient

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Out-of-sample performance of champions by date; it outlives them.
SCORES: Final = Table("performance", version=1, record=True)

#: Values are ranked among those of so long.
RANKED_S: Final = 86_400
#: The fall of the mean that the CUSUM is made for, at most, and the share of it between mu and its drift.
DROP: Final = 0.10
SHARE: Final = 0.4

#: Simulated monitors of one limit; each runs for ARL0.
PATHS: Final = 200

#: Candidate limits, in standard deviations of the observation.
_GRID: Final = np.geomspace(0.5, 500.0, 400)


class DecayReport(StrictStruct, frozen=True, kw_only=True):
    """Result of the monitor over a stream of predictions.

    ``statistic`` is the maximum of the CUSUM, ``alarm_ns`` when it first exceeded ``limit``; ``note`` is
    the reason when the monitor could not run. Beside it, without an alarm: the slope of what came on
    what was expected, and the PSI of drifted features (`models_registry.monitoring`).
    """

    failed: bool
    statistic: float
    limit: float | None
    alarm_ns: int | None
    ic_recent: float
    ic_reference: float
    n_eff: float
    observations: int
    note: str
    slope: float = math.nan
    slope_error: float = math.nan
    drifted: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float | int | None]:
        """The numbers by name, for people and metadata."""
        return {
            "statistic": self.statistic,
            "limit": self.limit,
            "IC recent": self.ic_recent,
            "IC reference": self.ic_reference,
            "independent observations": self.n_eff,
            "calibration slope": self.slope,
            "its standard error": self.slope_error,
            "drifted features": len(self.drifted),
        }

    @property
    def summary(self) -> str:
        """One line."""
        if self.note:
            return self.note
        said = (
            f"IC {self.ic_recent:.4f} over {self.n_eff:.0f} independent observations, reference "
            f"{self.ic_reference:.4f}; CUSUM {self.statistic:.1f} of {self.limit:.1f}"
        )
        if self.alarm_ns is None:
            return f"no decay: {said}"
        return f"decayed on {utc_date(self.alarm_ns)}: {said}"


def observations(
    t_ns: Int,
    symbol: npt.NDArray[np.signedinteger[Any]],
    predicted: Float,
    realised: Float,
    spacing_s: int,
) -> tuple[Int, Float]:
    """The monitored stream: ends of the non-empty time bins (bins,), and x (bins,).

    An hour's x depends on the day before its end alone, however the rows are cut at whole hours with that
    day before them. ``symbol`` may tell models apart as well. ``predicted`` and ``realised`` (n,) are in units of their scale; rows with NaN are left out.
    """
    known = ~(np.isnan(predicted) | np.isnan(realised))
    t_ns, symbol = t_ns[known], symbol[known]
    predicted, realised = predicted[known], realised[known]
    product = np.empty(len(t_ns))
    for one in np.unique(symbol):
        own = np.flatnonzero(symbol == one)
        own = own[np.argsort(t_ns[own], kind="stable")]
        hour = t_ns[own] // HOUR_NS
        for end in distinct(hour):
            first, until = np.searchsorted(hour, [end - RANKED_S // 3600 + 1, end + 1])
            new = np.searchsorted(hour, end) - first
            rows = own[first:until]
            product[rows[new:]] = _scores(predicted[rows], new) * _scores(realised[rows], new)
    sums = bin_sums(t_ns, (product, np.ones(len(t_ns))), spacing_s)
    ends = (distinct(t_ns // (spacing_s * SECOND_NS)) + 1) * spacing_s * SECOND_NS
    return ends, sums[:, 0] / sums[:, 1]


def _scores(values: Float, new: int) -> Float:
    """Normal scores of ``values[new:]`` among all of them (n,); by one sort where none are equal."""
    ordered = np.sort(values)
    if np.any(ordered[1:] == ordered[:-1]):
        return normal_scores(values)[new:]
    return _distinct_scores(len(values))[np.searchsorted(ordered, values[new:])]


@lru_cache(maxsize=8)
def _distinct_scores(count: int) -> Float:
    return normal_scores(np.arange(count, dtype=np.float64))


def make_reference(
    t_ns: Int,
    symbol: npt.NDArray[np.int8],
    predicted: Float,
    realised: Float,
    *,
    spacing_s: int,
    arl0_days: float,
    block_s: int,
    seed: int,
) -> DecayReference:
    """The decay reference from out-of-sample rows (n,), in units of their scale.

    Honest only for predictions that were made out of sample, net of purging.
    """
    _, x = observations(t_ns, symbol, predicted, realised, spacing_s)
    mean = float(x.mean()) if len(x) else 0.0
    limit = None
    if mean > 0.0:
        limit = simulate_limit(
            x,
            arl0=arl0_days * 86_400.0 / spacing_s,
            mean_block=block_s / spacing_s,
            seed=seed,
        )
    return DecayReference(
        spacing_s=spacing_s,
        mean=mean,
        drift=_drift(mean),
        limit=limit,
        arl0_days=arl0_days,
        observations=len(x),
    )


@compiled
def _drift(mean):  # type: ignore[no-untyped-def]
    return mean - SHARE * min(max(mean, 0.0), DROP)


def simulate_limit(x: Float, *, arl0: float, mean_block: float, seed: int) -> float:
    """The CUSUM limit with one false alarm in ``arl0`` observations, on stationary resamples of ``x``.

    The mean is over references of the length of ``x`` too; a monitor starts again after an alarm.
    """
    limits = _GRID * float(x.std())
    low, high = 0, len(limits) - 1
    length = math.ceil(arl0)
    while low < high:
        middle = (low + high) // 2
        alarms = _false_alarms(x, limits[middle], 1.0 / mean_block, length, seed % 2**32)
        if alarms <= PATHS * length / arl0:
            high = middle
        else:
            low = middle + 1
    return float(limits[low])


@compiled
def _false_alarms(x, limit, leave, length, seed):  # type: ignore[no-untyped-def]
    """Alarms of `PATHS` monitors, each with the mean of its own resample of x as reference."""
    np.random.seed(seed)
    alarms = 0
    at = 0
    for _ in range(PATHS):
        total = 0.0
        for step in range(len(x)):
            at = np.random.randint(len(x)) if step == 0 or np.random.random() < leave else at + 1
            at = 0 if at == len(x) else at
            total += x[at]
        drift = _drift(total / len(x))
        level = 0.0
        for step in range(length):
            at = np.random.randint(len(x)) if step == 0 or np.random.random() < leave else at + 1
            at = 0 if at == len(x) else at
            level = max(0.0, level + drift - x[at])
            if level > limit:
                alarms += 1
                level = 0.0
    return alarms


@compiled
def cusum(x, drift):  # type: ignore[no-untyped-def]
    """Page's CUSUM of a fall of x (n,), from zero: float64 (n,)."""
    out = np.empty(len(x))
    cusum = 0.0
    for step in range(len(x)):
        cusum = max(0.0, cusum + drift - x[step])
        out[step] = cusum
    return out


class DecayState(StrictStruct, frozen=True, kw_only=True):
    """Where the monitor stands; it goes on from here, whatever version predicts.

    ``alarm_ns`` is the alarm that stands, raised while ``alarm_version`` predicted: the CUSUM started again
    at it. ``ic_recent`` is the mean of x with a half-life of a day.
    """

    watched_to_ns: int = 0
    cusum: float = 0.0
    statistic: float = 0.0
    ic_recent: float = 0.0
    observations: int = 0
    alarms: int = 0
    alarm_ns: int | None = None
    alarm_version: str = ""


def advance(
    state: DecayState, reference: DecayReference, ends: Int, x: Float, version: str = ""
) -> DecayState:
    """The state after observations x (n,) that end at ``ends``; earlier ones than it has seen are left out.

    Without a limit, when the reference has no positive IC, nothing is watched.
    """
    new = ends > state.watched_to_ns
    ends, x = ends[new], x[new]
    if not len(x) or reference.limit is None:
        return state
    found, level, most = _alarms(x, reference.drift, reference.limit, state.cusum)
    keep = 0.5 ** (reference.spacing_s / RANKED_S)
    recent = state.ic_recent if state.observations else reference.mean
    for value in x:
        recent += (1.0 - keep) * (value - recent)
    return DecayState(
        watched_to_ns=int(ends[-1]),
        cusum=level,
        statistic=most,
        ic_recent=float(recent),
        observations=state.observations + len(x),
        alarms=state.alarms + len(found),
        alarm_ns=int(ends[found[0]]) if len(found) and not state.alarm_ns else state.alarm_ns,
        alarm_version=version if len(found) and not state.alarm_ns else state.alarm_version,
    )


def alarms(reference: DecayReference, x: Float) -> Int:
    """Places of all alarms of the monitor over x (n,); it starts again from zero after each."""
    if reference.limit is None:
        return np.empty(0, np.int64)
    return np.asarray(_alarms(x, reference.drift, reference.limit, 0.0)[0])


@compiled
def _alarms(x, drift, limit, level):  # type: ignore[no-untyped-def]
    found = np.empty(len(x), np.int64)
    count, most = 0, level
    for step in range(len(x)):
        level = max(0.0, level + drift - x[step])
        most = max(most, level)
        if level > limit:
            found[count] = step
            count += 1
            level = 0.0
    return found[:count], level, most


def monitor(
    reference: DecayReference,
    t_ns: Int,
    symbol: npt.NDArray[np.int8],
    predicted: Float,
    realised: Float,
) -> DecayReport:
    """Run the monitor from zero over rows (n,), in units of their scale."""
    ends, x = observations(t_ns, symbol, predicted, realised, reference.spacing_s)
    known = ~(np.isnan(predicted) | np.isnan(realised))
    n_eff = effective_count(t_ns[known], reference.spacing_s)
    if reference.limit is None:
        return _nothing(reference, "the reference has no positive IC: nothing can decay")
    if not len(x):
        return _nothing(reference, "no prediction has a realised return yet")
    state = advance(DecayState(), reference, ends, x)
    return DecayReport(
        failed=state.alarm_ns is not None,
        statistic=state.statistic,
        limit=reference.limit,
        alarm_ns=state.alarm_ns,
        ic_recent=float(x.mean()),
        ic_reference=reference.mean,
        n_eff=n_eff,
        observations=len(x),
        note="",
    )


def _nothing(reference: DecayReference | None, note: str) -> DecayReport:
    return DecayReport(
        failed=False,
        statistic=0.0,
        limit=reference.limit if reference else None,
        alarm_ns=None,
        ic_recent=0.0,
        ic_reference=reference.mean if reference else 0.0,
        n_eff=0.0,
        observations=0,
        note=note,
    )


def monitor_days(lake: Lake, bundle: Bundle, days: Iterable[str], threads: int = 1) -> DecayReport:
    """Run the monitor over the training set of these days, predicting one day at a time."""
    manifest = bundle.manifest
    primary = manifest.horizons_s.index(manifest.primary_s)
    t_ns, symbol = [np.empty(0, np.int64)], [np.empty(0, np.int8)]
    predicted, realised = [np.empty(0)], [np.empty(0)]
    for day in days:
        rows = dataset.load(lake, manifest.symbols, [day], manifest.features, manifest.horizons_s)
        if not len(rows):
            continue
        made = bundle.predict_many(rows.features, threads)
        t_ns.append(rows.t_ns)
        symbol.append(rows.symbol)
        predicted.append(made.raw_bps / made.scale_bps)
        realised.append(rows.labels_bps[:, primary] / made.scale_bps)
    return monitor(
        manifest.decay,
        np.concatenate(t_ns),
        np.concatenate(symbol),
        np.concatenate(predicted),
        np.concatenate(realised),
    )


#: Columns of the table ``performance``.
PERFORMANCE: Final = pa.schema(
    [
        pa.field("horizon_s", pa.int32(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("n_eff", pa.float64(), nullable=False),
        pa.field("ic", pa.float64(), nullable=False),
        pa.field("ic_pearson", pa.float64(), nullable=False),
        pa.field("mean_edge_bps", pa.float64()),
        pa.field("hit_rate", pa.float64()),
    ]
)


def score(
    lake: Lake, bundle: Bundle, version: str, symbol: str, day: str, threads: int = 1
) -> pa.Table:
    """Performance of a bundle's predictions on one day of one symbol: one row per horizon.

    ``mean_edge_bps`` is the mean of sign(prediction) * realised return, ``hit_rate`` the share of
    non-zero predictions with the realised sign; NULL without such predictions. LakeError when the day
    has no training set.
    """
    manifest = bundle.manifest
    lake.open(dataset.TABLE, symbol, day).close()
    rows = dataset.load(lake, [symbol], [day], manifest.features, manifest.horizons_s)
    records = []
    made = bundle.predict_many(rows.features, threads).by_horizon if len(rows) else None
    for column, horizon in enumerate(manifest.horizons_s):
        predicted = made[:, column] if made is not None else np.empty(0)
        realised = rows.labels_bps[:, column]
        found = coefficient(predicted, realised, rows.t_ns, horizon)
        acted = ~np.isnan(realised) & (np.nan_to_num(predicted) != 0.0)
        edge = np.sign(predicted[acted]) * realised[acted]
        records.append(
            {
                "horizon_s": horizon,
                "model_version": version,
                "rows": found.rows,
                "n_eff": found.n_eff,
                "ic": found.rank,
                "ic_pearson": found.pearson,
                "mean_edge_bps": float(edge.mean()) if len(edge) else None,
                "hit_rate": float(np.mean(edge > 0)) if len(edge) else None,
            }
        )
    return pa.Table.from_pylist(records, schema=PERFORMANCE)


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """Partitions that `score_days` wrote, and a summary line."""

    partitions: int
    summary: str


def score_days(
    lake: Lake,
    settings: Settings,
    keys: Iterable[tuple[str, str]],
    features: Features | None = None,
) -> Scored:
    """Write the champion's `performance` partition of each (symbol, date) after its training window.

    Dates within the window (in-sample) and dates without a training set are skipped and counted.
    """
    found = _champion(settings, features)
    if isinstance(found, str):
        return Scored(partitions=0, summary=f"{found}: nothing scored")
    version, bundle = found
    written, trained, absent = 0, 0, 0
    for symbol, day in keys:
        if not lake.exists(dataset.TABLE, symbol, day):
            absent += 1
        elif day <= bundle.manifest.window.last_date:
            trained += 1
        else:
            inputs = f"{lake.fingerprint(dataset.TABLE, symbol, day)} {bundle.manifest_sha256[:16]}"
            made = score(lake, bundle, version, symbol, day, settings.model.threads)
            lake.write("performance", symbol, day, made, inputs=inputs)
            written += 1
    return Scored(
        partitions=written,
        summary=(
            f"champion {version}: {written} partitions scored, {trained} lie in its training "
            f"window, {absent} have no training set"
        ),
    )


def check(lake: Lake, settings: Settings, features: Features | None = None) -> DecayReport:
    """Run the champion's monitor over all dates of the lake after its training window."""
    found = _champion(settings, features)
    if isinstance(found, str):
        return _nothing(None, found)
    _, bundle = found
    later = [
        day
        for day in dataset.dates(lake, bundle.manifest.symbols)
        if day > bundle.manifest.window.last_date
    ]
    return monitor_days(lake, bundle, later, settings.model.threads)


def _champion(settings: Settings, features: Features | None) -> tuple[str, Bundle] | str:
    """The champion's version and bundle, or the reason why there is none to use."""
    champion = load_champion(settings.root, settings.model_name)
    if champion is None:
        return f"no champion of {settings.model_name} yet"
    pointer, bundle = champion
    defined = features or Features.defined()
    if bundle.manifest.feature_hash != defined.hash:
        return (
            f"champion {pointer.version} takes feature definitions "
            f"{bundle.manifest.feature_hash}, the lake is made with {defined.hash}"
        )
    return pointer.version, bundle
