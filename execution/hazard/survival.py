"""Fit and validation of the hazards: person-periods, Newton, censored likelihood, reliability.

Arrays in, arrays out. The person-periods of a life are the intervals that it was observed through; an
interval that its observation would not have covered whole is left out, whatever happened in it, so
that censoring selects nothing (Singer and Willett 1993).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from execution.hazard import Cause, Causes, midtimes_s

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: Outcomes of a life, and of a person-period.
CENSORED: Final = 0
FILLED: Final = 1
RAN_AWAY: Final = 2


class Lives(NamedTuple):
    """Orders that were observed once and then watched; all arrays have a row per life."""

    covariates: Floats  #: (n, covariates)
    lasted_s: Floats  #: until its outcome, or until the watch ended
    watched_s: Floats  #: how long it would have been watched at most
    outcome: Integers  #: one of CENSORED, FILLED, RAN_AWAY
    observed_s: Floats  #: time of the observation; lives of one moment are alike


def joined(parts: Sequence[Lives]) -> Lives:
    """Lives of several streams; moments of different streams are kept apart."""
    begins = np.cumsum([0.0, *(float(part.observed_s.max(initial=0.0)) + 1e6 for part in parts)])
    return Lives(
        covariates=np.concatenate([part.covariates for part in parts]),
        lasted_s=np.concatenate([part.lasted_s for part in parts]),
        watched_s=np.concatenate([part.watched_s for part in parts]),
        outcome=np.concatenate([part.outcome for part in parts]),
        observed_s=np.concatenate(
            [part.observed_s + begin for part, begin in zip(parts, begins, strict=False)]
        ),
    )


class Periods(NamedTuple):
    """Person-periods: one row per interval that a life was observed through."""

    life: Integers
    interval: Integers
    outcome: Integers


def periods(lives: Lives, edges_s: Sequence[float]) -> Periods:
    """The person-periods of lives over intervals that end at ``edges_s``."""
    edges = np.asarray(edges_s, np.float64)
    whole = np.searchsorted(edges, lives.watched_s, "right")  #: intervals watched whole
    ended = np.searchsorted(edges, lives.lasted_s, "left")  #: interval in which it ended
    ends = (lives.outcome != CENSORED) & (ended < whole)
    count = np.where(ends, ended + 1, np.minimum(whole, len(edges)))
    # A life that was cut short counts for the intervals before only.
    count = np.where(
        lives.outcome == CENSORED,
        np.minimum(count, np.searchsorted(edges, lives.lasted_s, "right")),
        count,
    )
    life = np.repeat(np.arange(len(count)), count)
    first = np.cumsum(count) - count
    interval = np.arange(len(life)) - np.repeat(first, count)
    outcome = np.zeros(len(life), np.int64)
    last = (first + count - 1)[ends]
    outcome[last] = lives.outcome[ends]
    return Periods(life, interval, outcome)


def design(x: Floats, interval: Integers, edges_s: Sequence[float]) -> Floats:
    """Regressors of person-periods: an indicator per interval, x, and x · ln(1 + mid-time)."""
    edges = tuple(edges_s)
    z = np.log1p(np.asarray(midtimes_s(edges)))[interval]
    base = (interval[:, None] == np.arange(len(edges))).astype(np.float64)
    return np.concatenate([base, x, x * z[:, None]], axis=1)


class Fit(NamedTuple):
    """Coefficients of both causes on `design`'s columns, and their covariance."""

    coefficients: Floats  #: (2, columns): filled, ran away
    covariance: Floats  #: (2 · columns, 2 · columns), from the information at the optimum
    steps: int


def fit_multinomial(
    x: Floats,
    outcome: Integers,
    *,
    ridge: float = 1.0,
    ridged: npt.NDArray[np.bool_] | None = None,
    steps: int = 50,
) -> Fit:
    """Multinomial logit of outcomes 1 and 2 against 0, by Newton's method with a ridge.

    Maximises Σ log p - ridge/2 · Σ b² over the columns that ``ridged`` names (default: all). The
    penalised likelihood is strictly concave, so a step that does not raise it is halved. Raises
    ValueError when it does not converge.
    """
    n, columns = x.shape
    penalty = ridge * (np.ones(columns) if ridged is None else ridged.astype(np.float64))
    penalty = np.tile(np.maximum(penalty, 1e-6), 2)
    b = np.zeros((2, columns))
    reached = _penalised(x, outcome, b, penalty)
    for step in range(1, steps + 1):
        p = _probabilities(x, b)
        gradient = (
            np.concatenate([x.T @ ((outcome == c + 1) - p[:, c]) for c in range(2)])
            - penalty * b.ravel()
        )
        curvature = np.diag(penalty)
        for c in range(2):
            for d in range(c, 2):
                product = p[:, c] * ((c == d) - p[:, d])
                block = x.T @ (x * product[:, None])
                rows, others = (
                    slice(c * columns, (c + 1) * columns),
                    slice(d * columns, (d + 1) * columns),
                )
                curvature[rows, others] += block
                if c != d:
                    curvature[others, rows] += block.T
        move = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > 1e-6:
            tried = b + length * move.reshape(2, columns)
            value = _penalised(x, outcome, tried, penalty)
            if value >= reached:
                break
            length /= 2
        gained, b, reached = value - reached, tried, max(value, reached)
        if abs(gained) < 1e-8 * (1 + abs(reached)):
            return Fit(b, np.asarray(np.linalg.inv(curvature), np.float64), step)
    raise ValueError(f"the fit of {n} person-periods did not converge in {steps} steps")


def _probabilities(x: Floats, b: Floats) -> Floats:
    """(n, 2) probabilities of both causes."""
    eta = np.minimum(x @ b.T, 50.0)
    odds: Floats = np.exp(eta)
    return np.asarray(odds / (1 + odds.sum(axis=1, keepdims=True)))


def _penalised(x: Floats, outcome: Integers, b: Floats, penalty: Floats) -> float:
    return float(_log_probabilities(_probabilities(x, b), outcome).sum()) - 0.5 * float(
        penalty @ b.ravel() ** 2
    )


def _log_probabilities(p: Floats, outcome: Integers) -> Floats:
    """Log probability of the outcomes, given (n, 2) probabilities of both causes."""
    chance = np.where(outcome == 0, 1 - p.sum(axis=1), 0.0)
    for c in range(2):
        chance = np.where(outcome == c + 1, p[:, c], chance)
    return np.asarray(np.log(np.maximum(chance, 1e-300)))


def fit(lives: Lives, edges_s: Sequence[float], *, ridge: float = 1.0) -> tuple[Causes, Fit]:
    """The hazards of lives: `FillModel`'s coefficients, and the fit on standardised covariates.

    Only covariates are shrunk, in units of their standard deviations, so that one that never varied
    gets a coefficient of zero.
    """
    mean, sd = lives.covariates.mean(axis=0), lives.covariates.std(axis=0)
    sd = np.where(sd > 0, sd, 1.0)
    rows = periods(lives, edges_s)
    x = design(((lives.covariates - mean) / sd)[rows.life], rows.interval, edges_s)
    ridged = np.arange(x.shape[1]) >= len(edges_s)
    result = fit_multinomial(x, rows.outcome, ridge=ridge, ridged=ridged)
    z = np.log1p(np.asarray(midtimes_s(tuple(edges_s))))
    causes = []
    for b in result.coefficients:
        base, level, slope = np.split(b, [len(edges_s), len(edges_s) + len(mean)])
        level, slope = level / sd, slope / sd
        shifted = base - level @ mean - (slope @ mean) * z
        causes.append(
            Cause(
                base=tuple(shifted.tolist()),
                level=tuple(level.tolist()),
                slope=tuple(slope.tolist()),
            )
        )
    return Causes(filled=causes[0], ran_away=causes[1]), result


#: Candidate ridges, and how many observations are enough to choose by.
RIDGES: Final = (1.0, 10.0, 100.0)
_ENOUGH: Final = 8_000


def chosen_ridge(lives: Lives, edges_s: Sequence[float], folds: int = 4) -> float:
    """The ridge with the highest cross-validated likelihood, over ``folds`` stretches of time.

    Lives of one moment end alike, so a plain fit is overconfident. Chosen on every n-th life when
    there are very many, with ridges in proportion.
    """
    chosen, thinned = thin(lives, _ENOUGH)
    parts = np.array_split(np.argsort(chosen.observed_s, kind="stable"), folds)

    def likelihood(ridge: float) -> float:
        total = 0.0
        for n, left_out in enumerate(parts):
            rest = np.concatenate([part for k, part in enumerate(parts) if k != n])
            causes, _ = fit(subset(chosen, rest), edges_s, ridge=ridge / thinned)
            unseen = subset(chosen, left_out)
            predicted = hazards(causes, unseen.covariates, edges_s)
            total += float(log_likelihoods(unseen, predicted, edges_s).sum())
        return total

    return max(RIDGES, key=likelihood)


def thin(lives: Lives, most: int) -> tuple[Lives, int]:
    """Every n-th of the lives, at most ``most``; and n."""
    every = max(1, -(-len(lives.outcome) // most))
    return subset(lives, np.arange(0, len(lives.outcome), every)), every


def subset(lives: Lives, rows: Integers) -> Lives:
    """The lives of some rows."""
    return Lives(
        covariates=lives.covariates[rows],
        lasted_s=lives.lasted_s[rows],
        watched_s=lives.watched_s[rows],
        outcome=lives.outcome[rows],
        observed_s=lives.observed_s[rows],
    )


# -- predictions of many lives -----------------------------------------------------------------------


def hazards(causes: Causes, covariates: Floats, edges_s: Sequence[float]) -> Floats:
    """(n, intervals, 2) hazards of filled and ran away, as `FillModel` has them for one state."""
    z = np.log1p(np.asarray(midtimes_s(tuple(edges_s))))
    odds = [
        np.exp(
            np.minimum(
                np.asarray(c.base)
                + (covariates @ np.asarray(c.level))[:, None]
                + (covariates @ np.asarray(c.slope))[:, None] * z,
                50.0,
            )
        )
        for c in (causes.filled, causes.ran_away)
    ]
    both = np.stack(odds, axis=2)
    return np.asarray(both / (1 + both.sum(axis=2, keepdims=True)))


def incidence(hazard: Floats, edges_s: Sequence[float], horizon_s: float) -> Floats:
    """(n, 2) cumulative incidence of both causes within a horizon that is one of the edges."""
    k = list(edges_s).index(horizon_s) + 1
    alive = np.cumprod(1 - hazard[:, :k].sum(axis=2), axis=1)
    before = np.concatenate([np.ones((len(alive), 1)), alive[:, :-1]], axis=1)
    return np.asarray((before[:, :, None] * hazard[:, :k]).sum(axis=1))


def rates(lives: Lives) -> tuple[float, float]:
    """Constant rates of both causes, 1/s: events over exposure time."""
    exposed = float(lives.lasted_s.sum())
    if exposed <= 0:
        return 0.0, 0.0
    filled, away = (float((lives.outcome == c).sum()) / exposed for c in (FILLED, RAN_AWAY))
    return filled, away


def constant(rates: tuple[float, float], edges_s: Sequence[float]) -> Floats:
    """(1, intervals, 2) hazards of two constant rates: the baseline."""
    lengths = np.diff(np.asarray(edges_s, np.float64), prepend=0.0)
    total = max(sum(rates), 1e-300)
    ended = -np.expm1(-total * lengths)
    return np.stack([ended * rate / total for rate in rates], axis=1)[None]


def log_likelihoods(lives: Lives, hazard: Floats, edges_s: Sequence[float]) -> Floats:
    """Right-censored log-likelihood of every life, (n,), under hazards (n or 1, intervals, 2)."""
    at_risk = periods(lives, edges_s)
    rows = at_risk.life if len(hazard) > 1 else np.zeros(len(at_risk.life), np.int64)
    log = _log_probabilities(hazard[rows, at_risk.interval], at_risk.outcome)
    return np.asarray(np.bincount(at_risk.life, log, len(lives.outcome)), np.float64)


class Bin(NamedTuple):
    """Orders with like predictions: mean prediction, share that filled and its 95 % interval.

    ``blocks`` counts the stretches of time they come from: orders of one stretch fill together, so
    they count as one observation.
    """

    predicted: float
    observed: float
    low: float
    high: float
    n: int
    blocks: int


#: Orders of one stretch of this length count as one observation of the market.
BLOCK_S: Final = 30.0


def reliability(
    lives: Lives, hazard: Floats, edges_s: Sequence[float], horizon_s: float, bins: int = 10
) -> list[Bin]:
    """Reliability: predicted against observed fills within a horizon, in bins of equal counts.

    Only lives watched for the whole horizon enter, so that nothing is censored.
    """
    kept = lives.watched_s >= horizon_s
    p = incidence(hazard[kept], edges_s, horizon_s)[:, 0]
    filled = (lives.outcome == FILLED) & (lives.lasted_s <= horizon_s)
    y = filled[kept].astype(np.float64)
    blocks = np.floor(lives.observed_s[kept] / BLOCK_S)
    if len(p) == 0:
        return []
    order = np.argsort(p, kind="stable")
    return [
        _bin(p[part], y[part], blocks[part])
        for part in np.array_split(order, min(bins, len(order)))
        if len(part)
    ]


def _bin(p: Floats, y: Floats, blocks: Floats) -> Bin:
    share, n = float(y.mean()), len(y)
    _, place = np.unique(blocks, return_inverse=True)
    sums = np.bincount(place, y - share)
    count = len(sums)
    spread = (
        float(np.sqrt((sums**2).sum() * count / max(1, count - 1))) / n if count > 1 else math.nan
    )
    return Bin(
        float(p.mean()),
        share,
        max(0.0, share - 1.96 * spread),
        min(1.0, share + 1.96 * spread),
        n,
        count,
    )


class Score(NamedTuple):
    """Mean log-likelihood of an order under the model and under constant hazards, and their
    difference with its 95 % interval over stretches of time."""

    orders: int
    model: float
    constant: float
    gain: float
    low: float
    high: float


def score(lives: Lives, hazard: Floats, baseline: Floats, edges_s: Sequence[float]) -> Score:
    """Score the model's likelihood of the outcomes against that of constant hazards."""
    ours = log_likelihoods(lives, hazard, edges_s)
    theirs = log_likelihoods(lives, baseline, edges_s)
    gains = ours - theirs
    mean = float(gains.mean())
    _, place = np.unique(np.floor(lives.observed_s / BLOCK_S), return_inverse=True)
    sums = np.bincount(place, gains - mean)
    spread = float(np.sqrt((sums**2).sum())) / len(gains)
    return Score(
        len(gains),
        float(ours.mean()),
        float(theirs.mean()),
        mean,
        mean - 1.96 * spread,
        mean + 1.96 * spread,
    )
