"""What certification requires: lines that pass or fail, each with its figure, bounds and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from models_registry.slopes import Z95
from proving.certify.stream import cusum_delay_days

Float = npt.NDArray[np.float64]
#: Figures of one seed by name.
Figures = dict[str, float]
#: Figures of the seeds of a row by cell, in order of seeds.
Cells = Mapping[str, Sequence[Figures]]

RESAMPLES: Final = 4000
ALARMS_PER_DAY: Final = 1 / 30


class Bounded(NamedTuple):
    """A figure with its 95 % bounds, one-sided each."""

    figure: float
    low: float
    high: float


class Line(msgspec.Struct, frozen=True):
    """One line of the table."""

    row: str
    what: str
    needs: str
    passed: bool
    seeds: int
    figure: float
    low: float
    high: float


def column(records: Sequence[Figures], name: str) -> Float:
    """A figure of every seed (seeds,)."""
    return np.array([record[name] for record in records], np.float64)


def ratio(above: Float, below: Float) -> Bounded:
    """Ratio of sums of paired seeds with its bounds, by bootstrap over seeds."""
    generator = np.random.Generator(np.random.Philox(key=1))
    drawn = generator.integers(0, len(above), (RESAMPLES, len(above)))
    under = below[drawn].sum(axis=1)
    values = np.where(under > 0, above[drawn].sum(axis=1) / np.where(under > 0, under, 1), np.inf)
    low, high = np.quantile(values, [0.05, 0.95], method="lower")
    whole = above.sum() / below.sum() if below.sum() > 0 else math.inf
    return Bounded(float(whole), float(low), float(high))


def average(values: Float) -> Bounded:
    """Mean over seeds with its normal bounds."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    middle = float(values.mean())
    return Bounded(middle, middle - Z95 * error, middle + Z95 * error)


def share(hits: Float) -> Bounded:
    """Share of seeds with its Clopper-Pearson bounds."""
    k, n = float((hits > 0).sum()), len(hits)
    low = float(betaincinv(k, n - k + 1, 0.05)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 0.95)) if k < n else 1.0
    return Bounded(k / n, low, high)


def alarm_rate(records: Sequence[Figures]) -> Bounded:
    """False alarms per 30 days with Poisson bounds, over all days watched."""
    from scipy.stats import chi2

    alarms = column(records, "alarms").sum()
    scale = 30.0 / column(records, "watched_days").sum()
    low = chi2.ppf(0.05, 2 * alarms) / 2 if alarms else 0.0
    high = chi2.ppf(0.95, 2 * alarms + 2) / 2
    return Bounded(float(alarms * scale), float(low * scale), float(high * scale))


def null(cells: Cells) -> list[Line]:
    """No information: no IC, no promotion, no signal that is certified."""
    found = cells["null"]
    n, ic = len(found), average(column(found, "ic"))
    error = (ic.high - ic.figure) / Z95
    small = abs(ic.figure) <= 3 * error and error <= 0.005
    promoted = share(column(found, "promoted"))
    covered = average(column(found, "certified"))
    needs = "within 3 standard errors of 0, these ≤ 0.005"
    return [
        Line("null", "mean IC", needs, small, n, *ic),
        Line(
            "null", "promoted on any of 30 days", "upper ≤ 3 %", promoted.high <= 0.03, n, *promoted
        ),
        Line("null", "certified coverage", "upper ≤ 0.1 %", covered.high <= 0.001, n, *covered),
    ]


def planted(cells: Cells) -> list[Line]:
    """What is there is found, and acted on only where the rate of false signals allows it."""
    out = []
    for cell, least in (("0.03", 0.0), ("0.10", 0.70), ("0.30", 0.85)):
        if not (found := cells.get(cell)):
            continue
        n, part = len(found), ratio(column(found, "ic"), column(found, "oracle_ic"))
        what = f"IC {cell}: share of the filter's IC"
        needs = f"lower ≥ {least:.0%}" if least else "stated"
        out.append(Line("planted", what, needs, not least or part.low >= least, n, *part))
        if cell != "0.30":
            covered, what = average(column(found, "certified")), f"IC {cell}: certified coverage"
            passed = covered.high <= 0.001
            out.append(Line("planted", what, "upper ≤ 0.1 %", passed, n, *covered))
    if found := cells.get("0.50"):
        part = ratio(column(found, "certified"), column(found, "oracle_coverage"))
        what = "filterable 0.5: certified coverage over the filter's"
        out.append(Line("planted", what, "≥ 70 %", part.figure >= 0.70, len(found), *part))
        kept = share((column(found, "false") <= 0.20).astype(np.float64))
        what = "filterable 0.5: seeds with ≤ 20 % false signals"
        out.append(Line("planted", what, "≥ 95 %", kept.figure >= 0.95, len(found), *kept))
    return out


def regimes(cells: Cells) -> list[Line]:
    """Sharpe ratios of daily results, paired by seed, over what does not adapt.

    A rival below 0.5 makes no ratio: whatever it is, the line fails.
    """
    out = []
    for cell, rival in (("changing", "legacy"), ("changing", "static"), ("stationary", "static")):
        if not (found := cells.get(cell)):
            continue
        theirs = column(found, rival)
        part, base = ratio(column(found, "adaptive"), theirs), float(theirs.mean())
        needs, passed = "≥ 0.95", part.figure >= 0.95
        if cell == "changing":
            needs, passed = "≥ 1.3, lower > 1", part.figure >= 1.3 and part.low > 1.0
        what = f"{cell}: Sharpe ratio over that of {rival}, {base:.2f}"
        out.append(Line("regimes", what, needs, passed and base >= 0.5, len(found), *part))
    return out


def decay(cells: Cells) -> list[Line]:
    """Falls found in time at one false alarm in 30 days; nothing else is called a fall.

    A fall that is missed counts with all the days that were watched.
    """
    out = []
    for cell, found in cells.items():
        n = len(found)
        if cell.startswith("still"):
            rate, what = alarm_rate(found), f"{cell}: false alarms in 30 days"
            out.append(Line("decay", what, "lower ≤ 1", rate.low <= 1.0, n, *rate))
            continue
        delay, drop = column(found, "delay_days"), found[0]["drop"]
        missed = int(column(found, "missed").sum())
        large, part = drop >= 0.10 - 1e-9, average(delay)
        if "step" not in cell:
            what = f"{cell}: mean delay in days, {missed} missed"
            out.append(Line("decay", what, "stated", True, n, *part))
            continue
        if large:
            soon = share((delay <= 1.0).astype(np.float64))
            what = f"{cell}: found within 24 h"
            out.append(Line("decay", what, "≥ 90 %", soon.figure >= 0.9, n, *soon))
        part = average(delay / cusum_delay_days(drop))
        what = f"{cell}: mean delay over the CUSUM's, {missed} missed"
        needs = "stated" if large else "≤ 1.5"
        out.append(Line("decay", what, needs, large or part.figure <= 1.5, n, *part))
    return out


def leaks(cells: Cells) -> list[Line]:
    """Every planted leak is caught, by the probes named, and an honest run is not accused."""
    out = []
    for cell, found in cells.items():
        caught = share(column(found, "caught"))
        by = [k for k in found[0] if k != "caught" and column(found, k).any()]
        what = f"{cell}: caught by {', '.join(by) or 'none'}"
        if cell == "honest":
            needs, passed = "≤ 5 %", caught[0] <= 0.05
        else:
            needs, passed = "all", caught[0] == 1.0
        out.append(Line("leaks", what, needs, passed, len(found), *caught))
    return out
