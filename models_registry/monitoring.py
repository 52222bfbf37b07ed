"""The decay check between two retrains, hourly, and what it rests on: served predictions and their labels.

It reads what the worker served and what came of it (tables `decisions`, `realised` and `shadow`,
which `live.collect` fills from its log while it runs): hours that are over and whose labels are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from market.console import say
from market.lake import Lake
from market.locks import exclusive
from market.settings import Settings
from market.units import HOUR_NS, SECOND_NS, utc_date
from models_registry import dataset, decay
from models_registry.dataset import Features
from models_registry.decay import RANKED_S, DecayReport, DecayState, advance, observations
from models_registry.manifest import (
    Bundle,
    BundleError,
    DecayReference,
    Manifest,
    bundles_folder,
    encode,
    load_champion,
    manifests,
    parse_manifest,
)
from models_registry.pointed import DECAY_FILE, replace_file
from models_registry.recipe import scale_bps

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: A monitor without state begins so long before the last decision.
FIRST_DAYS: Final = 8
#: Bins of the PSI; what is less than this is no drift whatever its significance.
PSI_BINS, PSI_LEAST = 10, 0.25


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """n served predictions with their label, by time: bps; ``vectors`` (n, features) or (n, 0)."""

    t_ns: Int
    symbol: npt.NDArray[np.int8]
    version: npt.NDArray[np.str_]
    raw_bps: Float
    scale_bps: Float
    realised_bps: Float
    vectors: Float

    def where(self, mask: npt.NDArray[np.bool_]) -> Served:
        """The rows where ``mask`` (n,) is true."""
        return Served(**{name: getattr(self, name)[mask] for name in self.__struct_fields__})

    def observations(self, spacing_s: int) -> tuple[Int, Float]:
        """The monitored stream (`decay.observations`); versions are ranked apart."""
        _, version = np.unique(self.version, return_inverse=True)
        group = self.symbol + 8 * version.astype(np.int64)
        scaled = self.raw_bps / self.scale_bps, self.realised_bps / self.scale_bps
        return observations(self.t_ns, group, *scaled, spacing_s)


def served(
    lake: Lake,
    manifest: Manifest,
    table: str = "decisions",
    *,
    after_ns: int | None = None,
    days: float = FIRST_DAYS,
    features: Sequence[str] = (),
    stride_s: int = 1,
) -> Served:
    """Predictions of `decisions` or `shadow` whose primary label is known, of hours that are over.

    After ``after_ns``, else of the last ``days``; at multiples of ``stride_s`` seconds, with these
    columns of the vector. A decision of two runs counts once.
    """
    scale = manifest.recipe.scale
    wanted = [key for key in lake.partitions(table) if key[0] in manifest.symbols]
    last = max((day for _, day in wanted), default="")
    parts: list[Served] = []
    for symbol, day in wanted:
        if day < utc_date(after_ns) if after_ns else _days_between(day, last) > days:
            continue
        realised_ns, realised = _realised(lake, symbol, day, manifest.primary_s)
        names = [*features] if table == "decisions" else []
        own = [scale.feature] if table == "decisions" else ["scale_bps"]
        columns = ["t_ns", "model_version", "raw_bps", *own, *names]
        rows = lake.read(table, symbol, day, list(dict.fromkeys(columns)))
        t_ns, once = np.unique(rows["t_ns"].to_numpy(), return_index=True)
        place = np.searchsorted(realised_ns, t_ns)
        place = np.minimum(place, max(len(realised_ns) - 1, 0))
        known = (t_ns // SECOND_NS % stride_s == 0) & (
            realised_ns[place] == t_ns if len(realised_ns) else np.zeros(len(t_ns), np.bool_)
        )
        chosen = once[known]
        volatility = _floats(rows, own[0])[chosen]
        scaled = scale_bps(volatility, scale, manifest.primary_s)
        parts.append(
            Served(
                t_ns=t_ns[known],
                symbol=np.full(len(chosen), manifest.symbols.index(symbol), np.int8),
                version=np.array(rows["model_version"].to_pylist(), np.str_)[chosen],
                raw_bps=_floats(rows, "raw_bps")[chosen],
                scale_bps=scaled if table == "decisions" else volatility,
                realised_bps=realised[place[known]] if len(realised) else np.empty(0),
                vectors=np.column_stack([_floats(rows, n)[chosen] for n in names])
                if names
                else np.empty((len(chosen), 0)),
            )
        )
    if not parts:
        return _none_served(len(features))
    joined = Served(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in Served.__struct_fields__
        }
    )
    joined = joined.where(~np.isnan(joined.raw_bps))
    if not len(joined.t_ns):
        return joined
    over_ns = int(joined.t_ns.max()) // HOUR_NS * HOUR_NS
    order = np.lexsort((joined.symbol, joined.t_ns))
    order = order[joined.t_ns[order] < over_ns]
    return joined.where(order)  # type: ignore[arg-type]  # an index serves as well


def _none_served(features: int) -> Served:
    none = np.empty(0)
    return Served(
        t_ns=none.astype(np.int64),
        symbol=none.astype(np.int8),
        version=none.astype(np.str_),
        raw_bps=none,
        scale_bps=none,
        realised_bps=none,
        vectors=np.empty((0, features)),
    )


def _realised(lake: Lake, symbol: str, day: str, horizon_s: int) -> tuple[Int, Float]:
    """Times of decisions of a date and their labels at a horizon, by time; those of the next date too."""
    times, values = [np.empty(0, np.int64)], [np.empty(0)]
    for key in [
        d for s, d in lake.partitions("realised") if s == symbol and 0 <= _days_between(day, d) <= 1
    ]:
        rows = lake.read("realised", symbol, key)
        at = pc.list_flatten(rows["horizon_s"]).to_numpy() == horizon_s
        times.append(pc.list_flatten(rows["decided_ns"]).to_numpy()[at])
        values.append(pc.list_flatten(rows["return_bps"]).to_numpy()[at])
    decided, first = np.unique(np.concatenate(times), return_index=True)
    return decided, np.concatenate(values)[first]


def _days_between(day: str, later: str) -> int:
    return int((np.datetime64(later) - np.datetime64(day)).astype(int))


def _floats(rows: Any, name: str) -> Float:
    return np.asarray(rows[name].to_numpy(zero_copy_only=False), np.float64)


# -- decay -----------------------------------------------------------------------------------------


def check(lake: Lake, settings: Settings, features: Features | None = None) -> DecayReport:
    """Let the monitor go on to the last hour that is over, and write its state for worker and next check.

    The alarm stands until another version is champion. Where no worker served anything it runs over the
    training set instead, from the champion's last date on (`decay.check`).
    """
    champion = load_champion(settings.root, settings.model_name)
    if champion is None or not lake.partitions("realised"):
        return decay.check(lake, settings, features)
    pointer, bundle = champion
    home = bundles_folder(settings.root, settings.model_name)
    with exclusive(home / "decay.lock", "the decay monitor"):
        state = read_state(home)
        after_ns = (
            state.watched_to_ns - (RANKED_S + 3600) * SECOND_NS if state.watched_to_ns else None
        )
        rows = served(lake, bundle.manifest, after_ns=after_ns)
        if state.alarm_ns is not None and state.alarm_version != pointer.version:
            state = msgspec.structs.replace(state, alarm_ns=None, alarm_version="")
        state = watch(state, rows, _references(home, bundle))
        replace_file(home / DECAY_FILE, encode(state))
    slope, error = calibration_slope(rows)
    reference = bundle.manifest.decay
    return DecayReport(
        failed=state.alarm_ns is not None,
        statistic=state.statistic,
        limit=reference.limit,
        alarm_ns=state.alarm_ns,
        ic_recent=state.ic_recent,
        ic_reference=reference.mean,
        n_eff=float(state.observations),
        observations=state.observations,
        note="" if reference.limit else "the reference has no positive IC: nothing can decay",
        slope=slope,
        slope_error=error,
        drifted=drifted_features(lake, bundle.manifest),
    )


def read_state(home: Path) -> DecayState:
    """The monitor's state; a fresh one where there is none that can be read."""
    try:
        return msgspec.json.decode((home / DECAY_FILE).read_bytes(), type=DecayState)
    except (FileNotFoundError, msgspec.DecodeError):
        return DecayState()


def alarm_of(settings: Settings, version: str) -> int | None:
    """When the alarm was raised that stands for a version which is champion; None without one."""
    state = read_state(bundles_folder(settings.root, settings.model_name))
    return state.alarm_ns if state.alarm_version == version else None


def watch(state: DecayState, rows: Served, references: dict[str, DecayReference]) -> DecayState:
    """The state after served rows, each judged by the reference of the version that predicted."""
    if not len(rows.t_ns):
        return state
    spacing_s = next(iter(references.values())).spacing_s
    ends, x = rows.observations(spacing_s)
    last = np.searchsorted(rows.t_ns, ends, side="left") - 1
    version = rows.version[last]
    for begin, end in _stretches(version):
        named = str(version[begin])
        reference = references.get(named) or next(iter(references.values()))
        state = advance(state, reference, ends[begin:end], x[begin:end], named)
    return state


def _stretches(values: npt.NDArray[np.str_]) -> list[tuple[int, int]]:
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    return list(pairwise(edges))


def _references(home: Path, champion: Bundle) -> dict[str, DecayReference]:
    """The references by version, the champion's first; without those of bundles that cannot be read."""
    found = {}
    for path in manifests(home):
        try:
            manifest = parse_manifest(path.read_bytes(), str(path))
        except (OSError, BundleError) as error:
            say(f"decay: without its reference: {error}")
        else:
            found[path.parent.name.partition("-")[0]] = manifest.decay
    return {"": champion.manifest.decay} | found


def calibration_slope(rows: Served) -> tuple[float, float]:
    """Slope of what came in the last day on what was expected, 1 when calibrated; its standard error by hours."""
    if not len(rows.t_ns):
        return math.nan, math.nan
    rows = rows.where(rows.t_ns > rows.t_ns[-1] - RANKED_S * SECOND_NS)
    p, y = rows.raw_bps / rows.scale_bps, rows.realised_bps / rows.scale_bps
    hour, index = np.unique((rows.t_ns - 1) // HOUR_NS, return_inverse=True)
    square = float((p * p).sum())
    if len(hour) < 2 or square == 0.0:
        return math.nan, math.nan
    slope = float((p * y).sum()) / square
    by_hour = np.bincount(index, p * (y - slope * p))
    return slope, float(np.sqrt((by_hour**2).sum()) / square)


def drifted_features(lake: Lake, manifest: Manifest) -> dict[str, float]:
    """PSI of the features of the last served day that differ from those of the last training dates.

    PSI = sum (a - e) ln(a / e) over `PSI_BINS` bins of equal share in training, at every 900 s. Without a
    drift it is (1/n + 1/m) chi-squared with a degree less than bins, of which the limit is the 1 % quantile
    over all features. It says nothing of the alpha, and no alarm comes of it.
    """
    from scipy.stats import chi2

    window = manifest.window
    days = [d for d in dataset.dates(lake, manifest.symbols) if d <= window.last_date][-5:]
    old = dataset.load(lake, manifest.symbols, days, manifest.features, (), 900).features
    if not len(old):
        return {}
    new = served(lake, manifest, days=1, features=manifest.features, stride_s=900).vectors
    if not len(new):
        return {}
    limit = chi2.ppf(1.0 - 0.01 / len(manifest.features), PSI_BINS - 1)
    found = {}
    for column, name in enumerate(manifest.features):
        value = psi(old[:, column].astype(np.float64), new[:, column])
        if value > max(PSI_LEAST, limit * (1 / len(old) + 1 / len(new))):
            found[name] = round(value, 3)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def psi(old: Float, new: Float) -> float:
    """Population stability index of new values (m,) over the bins of old ones (n,); NaN has its own bin."""
    edges: Float = np.unique(np.nanquantile(old, np.linspace(0, 1, PSI_BINS + 1)[1:-1]))
    shares = []
    for values in (old, new):
        place = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values))
        counts = np.bincount(place.astype(np.int64), minlength=len(edges) + 2)
        shares.append((counts + 0.5) / (len(values) + 0.5 * len(counts)))
    e, a = shares
    return float(((a - e) * np.log(a / e)).sum())
