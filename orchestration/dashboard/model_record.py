"""How the model in force did in service, from lake and bundles: what the model page shows beside the stream.

Served predictions and what came of them are those of the hourly check of decay (`models_registry.monitoring`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS
from models_registry import comparison, monitoring
from models_registry.manifest import (
    Bundle,
    BundleError,
    bundles_folder,
    load_champion,
    manifests,
)
from models_registry.monitoring import Served
from models_registry.validation import effective_count

#: Days that are read, hours of the rolling rank IC, bins of the reliability, features and versions of the table.
DAYS: Final = 3
ROLLING_H: Final = 24
_BINS, _FEATURES, _VERSIONS = 8, 12, 5


def record(settings: Settings) -> dict[str, Any]:
    """Figures of the champion as plain data; "error" says what to do where there is none."""
    champion = load_champion(settings.root, settings.model_name)
    if champion is None:
        return {
            "error": "no version is promoted: train with `l2 pipeline`, then `l2 promote VERSION`"
        }
    pointer, bundle = champion
    manifest, lake = bundle.manifest, Lake(settings.root, settings.source)
    home = bundles_folder(settings.root, settings.model_name)
    rows = monitoring.served(
        lake, manifest, days=DAYS, features=("expected_bps", "cost_bps"), stride_s=5
    )
    rows = rows.where(rows.version == pointer.version)
    state, found = monitoring.read_state(home), comparison.compare(lake, settings)
    return {
        "version": pointer.version,
        "trained_to": manifest.window.last_date,
        "ic_stated": manifest.metrics.get("ic_mean"),
        "decay": {
            "statistic": state.cusum,
            "limit": manifest.decay.limit,
            "reference": manifest.decay.mean,
            "observations": state.observations,
            "watched_to_ns": state.watched_to_ns,
            "alarm_ns": state.alarm_ns,
        },
        "rolling": rolling_ic(rows),
        "reliability": reliability(rows, bundle),
        "slope": [_known(value) for value in monitoring.calibration_slope(rows)],
        **signals(rows),
        "challenger": found if isinstance(found, str) else msgspec.to_builtins(found),
        "importance": importance(home),
    }


def rolling_ic(rows: Served) -> list[tuple[int, float, float, float]]:
    """(end in ns, rank IC, its 95 % bounds) of the last `ROLLING_H` hours at each hour's end, of 3 hours at least:
    the monitored stream's mean and its standard error over hours."""
    if not len(rows.t_ns):
        return []
    ends, x = rows.observations(3600)
    found = []
    for n in range(3, len(x) + 1):
        part = x[max(0, n - ROLLING_H) : n]
        mean, error = float(part.mean()), 1.96 * float(part.std(ddof=1)) / math.sqrt(len(part))
        found.append((int(ends[n - 1]), mean, mean - error, mean + error))
    return found


def reliability(rows: Served, bundle: Bundle) -> list[tuple[float, float, float]]:
    """By bins of equal count: the probability of the right sign that was said, the share that was right, and
    1.96 standard errors on independent labels; without a fitted slope nothing was said."""
    confidence = bundle.recipe.confidence
    size = np.abs(rows.raw_bps) / rows.scale_bps
    known = np.isfinite(size) & (size > 0) & (rows.realised_bps != 0) & ~np.isnan(rows.realised_bps)
    if confidence is None or not known.any():
        return []
    said = 1.0 / (1.0 + np.exp(-confidence.sign_slope * size[known]))
    right = (np.sign(rows.raw_bps) == np.sign(rows.realised_bps))[known]
    independent = max(1.0, effective_count(rows.t_ns[known], bundle.recipe.primary_s) / _BINS)
    found = []
    for chosen in np.array_split(np.argsort(said, kind="stable"), _BINS):
        if len(chosen):
            share = float(right[chosen].mean())
            error = 1.96 * math.sqrt(share * (1.0 - share) / independent)
            found.append((float(said[chosen].mean()), share, error))
    return found


def signals(rows: Served) -> dict[str, Any]:
    """Share of decisions whose expectation exceeded its cost (coverage), and of these the share that earned
    nothing over the primary horizon after that cost (false signals)."""
    if not len(rows.t_ns):
        return {"decisions": 0, "coverage": None, "false_net": None}
    expected, cost = rows.vectors.T
    acts: npt.NDArray[np.bool_] = np.abs(expected) > cost
    earned = (np.sign(expected) * rows.realised_bps - cost)[acts]
    earned = earned[~np.isnan(earned)]
    return {
        "decisions": len(rows.t_ns),
        "hours": len(np.unique(rows.t_ns // (3600 * SECOND_NS))),
        "coverage": float(acts.mean()),
        "false_net": float((earned <= 0).mean()) if len(earned) else None,
    }


def importance(home: Path) -> dict[str, Any]:
    """Share of the boosters' gain by feature in the last versions that were fetched, the newest first."""
    versions, shares = list[str](), list[dict[str, float]]()
    for path in reversed(manifests(home)):
        if len(versions) == _VERSIONS:
            break
        try:
            bundle, total = Bundle.load(path.parent), np.zeros(0)
        except BundleError:  # damaged, and not in force
            continue
        versions.append(path.parent.name.partition("-")[0])
        for booster in bundle.boosters:
            gain = np.asarray(booster.feature_importance("gain"), np.float64)
            total = (total if len(total) else np.zeros(len(gain))) + gain / max(gain.sum(), 1e-300)
        total /= max(1, len(bundle.boosters))
        shares.append(dict(zip(bundle.manifest.features, total.tolist(), strict=True)))
    newest = shares[0] if shares else {}
    names = sorted(newest, key=lambda name: -newest[name])[:_FEATURES]
    return {
        "versions": versions,
        "shares": {name: [each.get(name) for each in shares] for name in names},
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
