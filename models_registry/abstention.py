"""Acting only where it is certified: false-signal rates bounded by learn-then-test, regime by regime.

A signal at t is false when the primary label, in the direction of the prediction, earns nothing: gross,
or net of the spread at t and both taker fees. Its score is |raw| / scale. For thresholds from strict to
loose, H: rate > target is rejected when P(Bin(n, target) <= k) <= delta, that is when the Clopper–Pearson
upper bound is at most the target; the sequence stops at the first threshold that is not rejected, so
the rate is above the target with probability delta at most (Angelopoulos et al. 2021, fixed
sequence). n counts independent labels and k that share of them. Each regime's statement holds at its own
95 %. It assumes that later signals are exchangeable with those counted; `AdaptiveLevel` follows between
two trainings what is not, by what was served (`models_registry.online`).

The same sequence over all regimes' signals has three times the labels and so a looser threshold, of their
rate together. A regime takes it unless its own signals above it were false more often than the target.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.settings import FEE_ROWS_BPS, Model
from models_registry.dataset import Rows
from models_registry.recipe import (
    Basis,
    Certificate,
    Recipe,
    Regime,
    Scope,
    Step,
    regime_index,
)
from models_registry.statistics import clopper_pearson_upper
from models_registry.validation import effective_count

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Shares of a regime's signals that are tried, strict to loose; one with fewer independent signals is
#: not, as its bound could not be met even with few errors.
COVERAGES: Final = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2,
                    0.22, 0.25, 0.28, 0.31, 0.34, 0.37, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # fmt: skip
MIN_SIGNALS: Final = 100.0
CONFIDENCE: Final = 0.95


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """n decisions out of sample, (n,) each: time, trailing volatility in bps, |raw| / scale, and what the
    primary label earned in the direction of the prediction, bps before and after costs.
    """

    t_ns: Int
    volatility: Float
    score: Float
    gross_bps: Float
    net_bps: Float

    def where(self, mask: npt.NDArray[np.bool_]) -> Scored:
        """The decisions where ``mask`` (n,) is true."""
        return Scored(**{name: getattr(self, name)[mask] for name in self.__struct_fields__})


def score(rows: Rows, signed: Float, volatility: Float, model: Model) -> Scored:
    """Decisions with a label; ``signed`` (n,) is raw / scale."""
    label = rows.labels_bps[:, model.horizons_s.index(model.primary_s)]
    gross = np.sign(signed) * label
    cost = rows.spread_bps + 2 * FEE_ROWS_BPS[model.fee_row][0]
    found = Scored(
        t_ns=rows.t_ns,
        volatility=volatility,
        score=np.abs(signed),
        gross_bps=gross,
        net_bps=gross - cost,
    )
    return found.where(~np.isnan(found.net_bps) & ~np.isnan(volatility) & (found.score > 0))


def learn_then_test(
    t_ns: Int, score: Float, false: npt.NDArray[np.bool_], *, horizon_s: int, target: float,
    confidence: float,
) -> tuple[float | None, tuple[Step, ...]]:  # fmt: skip
    """The loosest score whose false-signal rate is certified (None: none is), and the steps tried."""
    order = np.argsort(-score, kind="stable")
    steps: list[Step] = []
    for coverage in COVERAGES:
        count = math.ceil(coverage * len(order))
        if not count:
            break
        least = float(score[order[count - 1]])
        acted = score >= least
        n_eff = effective_count(t_ns[acted], horizon_s)
        if n_eff < MIN_SIGNALS or (steps and steps[-1].score == least):
            continue
        rate = float(false[acted].mean())
        upper = clopper_pearson_upper(rate * n_eff, n_eff, confidence)
        steps.append(
            Step(score=least, coverage=float(acted.mean()), n_eff=n_eff, rate=rate, upper=upper)
        )
    return loosest(steps, target), tuple(steps)


def loosest(steps: tuple[Step, ...] | list[Step], level: float) -> float | None:
    """The score of the last step, from strict to loose, before the first whose bound exceeds ``level``."""
    found = None
    for step in steps:
        if step.upper > level:
            break
        found = step.score
    return found


def certify(recipe: Recipe, scored: Scored, model: Model) -> Recipe:
    """The recipe with certificates, gross and net, in every regime, which decide its act rule."""
    index = regime_index(scored.volatility, recipe.regimes)
    together = _certificates(scored, model, "all")
    regimes = []
    for number, regime in enumerate(recipe.regimes):
        inside = scored.where(index == number)
        made = tuple(
            whole if _holds(whole, inside) else own
            for own, whole in zip(_certificates(inside, model, "regime"), together, strict=True)
        )
        regimes.append(
            _ruled(msgspec.structs.replace(regime, certificates=made), recipe.act, model)
        )
    return msgspec.structs.replace(recipe, regimes=tuple(regimes))


def _earned(scored: Scored) -> dict[Basis, Float]:
    return {"gross": scored.gross_bps, "net": scored.net_bps}


def _certificates(scored: Scored, model: Model, scope: Scope) -> tuple[Certificate, ...]:
    made = []
    for basis, bps in _earned(scored).items():
        least, steps = learn_then_test(
            scored.t_ns, scored.score, bps <= 0, horizon_s=model.primary_s,
            target=model.false_rate, confidence=CONFIDENCE,
        )  # fmt: skip
        made.append(
            Certificate(
                basis=basis,
                fee_row=model.fee_row,
                target=model.false_rate,
                confidence=CONFIDENCE,
                least_score=least,
                steps=steps,
                scope=scope,
            )
        )
    return tuple(made)


def _holds(whole: Certificate, inside: Scored) -> bool:
    """Whether all signals together are certified, and those ``inside`` a regime do not speak against it."""
    if whole.least_score is None:
        return False
    false = _earned(inside)[whole.basis][inside.score >= whole.least_score] <= 0
    return bool(len(false)) and float(false.mean()) <= whole.target


def _ruled(regime: Regime, act: str, model: Model) -> Regime:
    """A certified recipe acts from its certified score on, whatever else opens the regime."""
    if act != "certified":
        return regime
    least = next(c.least_score for c in regime.certificates if c.basis == model.certify)
    if least is None:
        return msgspec.structs.replace(regime, threshold_bps=None)
    return msgspec.structs.replace(regime, threshold_bps=0.0, least_score=least)


class AdaptiveLevel(msgspec.Struct, frozen=True, kw_only=True):
    """The level that a regime's threshold is chosen at between two trainings; plain, serialisable state.

    level' = level + step * (target - err), err 1 for a false signal, else 0: over T signals the mean of err
    is within (max(level, 1 - level) + step) / (step * T) of the target, whatever the data do, as long
    as a level of 0 gives no errors (Gibbs & Candès 2021). While `least_score` is None, give it the
    errors of would-be signals at the strictest step, or it never acts again.
    """

    target: float = 0.2
    step: float = 0.01
    level: float = 0.2

    def update(self, err: float) -> AdaptiveLevel:
        """The state after one more signal's outcome is known."""
        return msgspec.structs.replace(self, level=self.level + self.step * (self.target - err))

    def least_score(self, certificate: Certificate) -> float | None:
        """The score from which to act now; at the initial level it is the certified one."""
        return loosest(certificate.steps, self.level)
