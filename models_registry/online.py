"""The online update, hourly: the champion's weights fitted anew to what it served, and its act rule following."""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.lake import Lake
from market.settings import Settings
from market.units import HOUR_NS
from models_registry.abstention import AdaptiveLevel
from models_registry.manifest import Bundle, Pointer, load_champion
from models_registry.monitoring import Served, served
from models_registry.pointed import Followed, Patch, publish, withdraw
from models_registry.recipe import Basis, Recipe, Regime, regime_index
from models_registry.state import one_at_a_time

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Served rows of so many hours are fitted; what was fitted in training counts as this many.
PATCH_HOURS, PRIOR_HOURS = 72, 48
#: Days back that the act rule follows a version from.
SERVED_DAYS: Final = 365
#: Hours whose log-loss decides about a patch, and the seconds between the rows that are fitted.
JUDGED_HOURS, PATCH_STRIDE_S = 24, 15
#: Standard errors by which a patch has to be better.
PATCH_ERRORS: Final = 1.645


class Refit(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a refit: ``improvement`` in log-loss per observation, with its standard error."""

    adopted: bool
    hours: int
    improvement: float
    error: float
    summary: str


def refit(lake: Lake, settings: Settings) -> Refit:
    """Fit the champion's weights to what it served, and put a patch in force if that is better, or if the act rule
    of its certified recipe (`followed`) is not that of training any more.

    Better by the prequential log-loss: of each of the last `JUDGED_HOURS` hours, by the normal likelihood
    of the return in units of scale, with weights fitted on what was known before that hour, against the
    champion's own. A patch that is not (any more) is withdrawn. The gain stays that of training, whose errors are
    stated for what it multiplies; so do scores, which are expectations in units of volatility.
    """
    champion = load_champion(settings.root, settings.model_name)
    if champion is None:
        return _no_refit(f"no champion of {settings.model_name} yet")
    pointer, bundle = champion
    manifest = bundle.manifest
    rows = served(
        lake,
        manifest,
        days=PATCH_HOURS / 24,
        features=manifest.features,
        stride_s=PATCH_STRIDE_S,
    )
    rows = rows.where(rows.version == pointer.version)
    hours = len(np.unique((rows.t_ns - 1) // HOUR_NS))
    if hours < 2 * JUDGED_HOURS:
        return _no_refit(
            f"version {pointer.version}: {hours} hours served, {2 * JUDGED_HOURS} needed"
        )
    members = bundle.recipe.members
    made = bundle.predict_many(rows.vectors, settings.model.threads)
    basis = made.output * np.array([m.to_primary for m in members])
    own = np.array([m.weight for m in members]) * bundle.recipe.gain
    theta, gains = prequential(basis, rows.realised_bps / rows.scale_bps, rows.t_ns, own)
    improvement, error = float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains)))
    better = improvement > PATCH_ERRORS * error
    gain = bundle.recipe.gain or 1.0
    adaptive = _followed(lake, settings, pointer, bundle)
    what = f"the champion of {settings.model_name}"
    if adopted := better or adaptive is not None:
        patch = Patch(
            name=settings.model_name,
            version=pointer.version,
            manifest_sha256=bundle.manifest_sha256,
            until_ns=int(rows.t_ns[-1]),
            weights=tuple(map(float, theta / gain if better else own / gain)),
            gain=gain,
            improvement=improvement if better else 0.0,
            hours=hours,
            adaptive=adaptive,
        )
        with one_at_a_time(settings, "champion", what):
            adopted = publish(settings.root, patch) is not None
    elif pointer.patch:
        with one_at_a_time(settings, "champion", what):
            withdraw(settings.root, pointer)
    said = "a patch is in force" if adopted else "no patch"
    return Refit(
        adopted=adopted,
        hours=hours,
        improvement=improvement,
        error=error,
        summary=(
            f"version {pointer.version}: {said}; prequential log-loss better by {improvement:.2e} "
            f"± {error:.1e} an observation over {len(gains)} hours"
        ),
    )


def _followed(
    lake: Lake, settings: Settings, pointer: Pointer, bundle: Bundle
) -> tuple[Followed, ...] | None:
    """`followed` over all that a version served, a decision per horizon; None while it changes nothing."""
    manifest, recipe = bundle.manifest, bundle.recipe
    if recipe.act != "certified":
        return None
    rows = served(
        lake,
        manifest,
        days=SERVED_DAYS,
        features=(recipe.scale.feature, "cost_bps"),
        stride_s=manifest.primary_s,
    )
    found = followed(recipe, rows.where(rows.version == pointer.version), settings.model.certify)
    return found if [one.least_score for one in found] != [*map(_least, recipe.regimes)] else None


def _least(regime: Regime) -> float | None:
    return None if regime.threshold_bps is None else regime.least_score


def followed(recipe: Recipe, rows: Served, basis: Basis) -> tuple[Followed, ...]:
    """The act rule of each regime after what it served: an `AdaptiveLevel` from its certificate on.

    ``rows`` by time with labels that do not overlap; ``vectors`` are volatility and round trip's cost, bps.
    A regime without a certificate stays as it is.
    """
    volatility, cost = rows.vectors.T
    score = np.abs(rows.raw_bps) / rows.scale_bps
    earned = np.sign(rows.raw_bps) * rows.realised_bps - (cost if basis == "net" else 0.0)
    index = regime_index(volatility, recipe.regimes)
    found = []
    for number, regime in enumerate(recipe.regimes):
        chosen = next((c for c in regime.certificates if c.basis == basis and c.steps), None)
        if chosen is None:
            found.append(Followed(level=0.0, least_score=_least(regime)))
            continue
        state = AdaptiveLevel(target=chosen.target, level=chosen.target)
        least = state.least_score(chosen)
        inside = (index == number) & ~np.isnan(earned)
        for one, bps in zip(score[inside].tolist(), earned[inside].tolist(), strict=True):
            # While it acts on nothing, on the outcomes of the strictest signals.
            if one >= (chosen.steps[0].score if least is None else least):
                state = state.update(float(bps <= 0))
                least = state.least_score(chosen)
        found.append(Followed(level=state.level, least_score=least))
    return tuple(found)


def _no_refit(why: str) -> Refit:
    return Refit(adopted=False, hours=0, improvement=0.0, error=0.0, summary=why)


def prequential(basis: Float, y: Float, t_ns: Int, own: Float) -> tuple[Float, Float]:
    """Coefficients (members,) fitted on everything, and the log-loss gained in each judged hour.

    ``basis`` (n, members) of the label ``y`` (n,) in units of scale; ``own`` are the coefficients of
    training, to which least squares are shrunk by `PRIOR_HOURS`; none is negative.
    """
    hour, index = np.unique((t_ns - 1) // HOUR_NS, return_inverse=True)
    rest = y - basis @ own
    square = np.stack([basis[index == h].T @ basis[index == h] for h in range(len(hour))])
    cross = np.stack([basis[index == h].T @ rest[index == h] for h in range(len(hour))])

    def fitted(until: int) -> Float:
        gram, moment = square[:until].sum(axis=0), cross[:until].sum(axis=0)
        ridge = 1e-3 * np.trace(gram) / len(own) * np.eye(len(own))
        step = np.linalg.solve(gram * (1 + PRIOR_HOURS / until) + ridge, moment)
        return np.asarray(np.maximum(own + step, 0.0))

    gains = []
    for h in range(len(hour) - JUDGED_HOURS, len(hour)):
        # Labels of the hour before reach into this one.
        theta, rows = fitted(h - 1), index == h
        variance = float((rest[index < h - 1] ** 2).mean())
        better = rest[rows] ** 2 - (y[rows] - basis[rows] @ theta) ** 2
        gains.append(float(better.mean()) / (2.0 * variance))
    return fitted(len(hour)), np.array(gains)
