"""The table of both desks: figures of summed sessions with intervals that are paired by seed, and the goals.

Sessions of different seeds are independent, what happens within one is not: every interval is the 95 % percentile
interval of a bootstrap of whole sessions, with the same sessions drawn for both desks.

**Sharpe** is that of the sessions' net results as if each were a day's: mean / standard deviation · √365. A desk that
never trades has 0. Where the baseline is below `LEAST_SHARPE` a ratio means nothing, and the goal is judged by the
difference. Over one recording, seeds are draws of the signal: their intervals say nothing about other days.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from execution.simulation.queue import BOUNDS
from market.settings import FEE_ROWS_BPS
from market.units import BPS
from proving.desk.sessions import PARTS, ROWS, Figures

Float = npt.NDArray[np.float64]
#: Sums by name, (draws, sessions).
Sums = Mapping[str, Float]
#: Figures by cell, then by seed.
Found = Mapping[str, Mapping[int, Figures]]
Bounded = tuple[float, float, float]  #: a figure with its interval

RESAMPLES: Final = 4000
YEAR: Final = math.sqrt(365)
LEAST_SHARPE: Final = 0.5
#: A saving is of costs above this (bps), a bias of so many parents.
LEAST_COST, LEAST_PARENTS = 0.5, 20


def _over(above: str, below: str, scale: float = 1.0) -> Callable[[Sums], Float]:
    def figure(sums: Sums) -> Float:
        under = sums[below].sum(axis=1)
        over = sums[above].sum(axis=1)
        out = np.full(len(under), np.nan)
        np.divide(scale * over, under, out=out, where=under != 0)
        return out

    return figure


def sharpe(sums: Sums) -> Float:
    """Of sessions as days, a year; 0 for a desk that never trades."""
    net = sums["net"]
    spread = net.std(axis=1, ddof=1)
    out = np.zeros(len(net))
    np.divide(YEAR * net.mean(axis=1), spread, out=out, where=spread > 0)
    return out


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A column of the table: what it is of, its decimals, and the figure of (draws, sessions) sums."""

    text: str
    of: Callable[[Sums], Float]
    digits: int = 2


METRICS: Final[dict[str, Metric]] = {
    "sharpe": Metric(text="Sharpe", of=sharpe, digits=1),
    "net": Metric(text="net, bps of capital a session", of=_over("net", "capital", BPS)),
    "cost": Metric(text="all-in cost, bps", of=_over("cost", "parents_usdt"), digits=3),
    "bare": Metric(text="cost without fees, bps", of=_over("cost_without_fees", "parents_usdt"), digits=3),
    "fill": Metric(text="filled, %", of=_over("filled", "parents_usdt", 100), digits=1),
    "made": Metric(text="filled as maker, %", of=_over("filled_maker", "parents_usdt", 100), digits=1),
    "maker": Metric(text="maker share of turnover, %", of=_over("turnover_maker", "turnover", 100), digits=1),
    "hit": Metric(text="hit rate, %", of=_over("hits", "trips", 100), digits=1),
    "funding": Metric(text="funding paid, bps of capital", of=_over("funding", "capital", BPS), digits=3),
    "drawdown": Metric(text="drawdown, bps of capital", of=_over("drawdown", "capital", BPS)),
    "turnover": Metric(text="turnover, capital a session", of=_over("turnover", "capital")),
}  # fmt: skip


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of two cells and its difference, new less base, with the paired 95 % interval; NaN where undefined.

    ``ratio`` is new over base with its interval, ``own`` new's figure with an interval of its own: where base hardly
    trades, too few draws have a difference.
    """

    metric: str
    base: float
    new: float
    own: Bounded
    difference: Bounded
    ratio: Bounded
    sessions: int


def compare(base: Sequence[Figures], new: Sequence[Figures], metric: str) -> Compared:
    """Both cells' sessions, in the same order of seeds."""
    n, figure = len(base), METRICS[metric].of
    drawn = _drawn(n)
    old, late = (
        figure({name: np.array([one[name] for one in cell])[drawn] for name in base[0] if name in new[0]})
        for cell in (base, new)
    )  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = late / old
    return Compared(
        metric=metric, base=float(old[0]), new=float(late[0]), own=_bounded(late),
        difference=_bounded(late - old), ratio=_bounded(ratio), sessions=n,
    )  # fmt: skip


def _drawn(n: int) -> npt.NDArray[np.int64]:
    """Places of n sessions: of the sample itself, then of the resamples."""
    drawn = np.random.Generator(np.random.Philox(key=n)).integers(0, n, (RESAMPLES, n))
    return np.concatenate([np.arange(n)[np.newaxis], drawn])


def _bounded(values: Float) -> Bounded:
    known = values[1:][np.isfinite(values[1:])]
    if not math.isfinite(values[0]) or len(known) < 0.95 * (len(values) - 1):
        return float(values[0]), math.nan, math.nan
    low, high = np.quantile(known, (0.025, 0.975))
    return float(values[0]), float(low), float(high)


def paired(found: Found, base: str, new: str) -> list[Compared]:
    """Every metric of two cells over the seeds that both have; empty below two."""
    seeds = sorted(found.get(base, {}).keys() & found.get(new, {}).keys())
    if len(seeds) < 2:
        return []
    old, late = ([found[cell][seed] for seed in seeds] for cell in (base, new))
    return [compare(old, late, metric) for metric in METRICS]


def desks(found: Found) -> list[tuple[str, list[Compared]]]:
    """Whole against legacy by fee row and queue bound."""
    cells = [(f"legacy {fee}", f"{fee} {queue}") for fee in FEE_ROWS_BPS for queue in BOUNDS]
    lines = [(name, paired(found, base, f"whole {name}")) for base, name in cells]
    return [line for line in lines if line[1]]


def alone(found: Found, fee: str) -> list[tuple[str, list[Compared]]]:
    """What each part adds: over `legacy`, and to the whole without it."""
    whole, out = f"whole {fee} {BOUNDS[0]}", []
    for part in PARTS:
        out.append((f"{part}, over legacy", paired(found, f"legacy {fee}", f"legacy + {part}")))
        out.append((f"{part}, in the whole", paired(found, f"whole - {part}", whole)))
    return [line for line in out if line[1]]


class Bias(msgspec.Struct, frozen=True, kw_only=True):
    """Cost less its estimate of a cell's group: mean bps with its interval over sessions.

    ``stated_bps`` is the standard deviation that the estimates state of their own bias. ``holds``: the mean is
    within 1.96 of it and of the sampling error together, which the interval has.
    """

    cell: str
    group: str
    parents: int
    mean: Bounded
    stated_bps: float

    @property
    def holds(self) -> bool:
        error = (self.mean[2] - self.mean[1]) / 3.92
        return abs(self.mean[0]) <= 1.96 * math.hypot(self.stated_bps, error)


def bias(found: Found) -> list[Bias]:
    """Cost less its estimate by cell of the whole, algorithm and urgency."""
    out = []
    for cell, by_seed in found.items():
        names = sorted({n[5:] for one in by_seed.values() for n in one if n.startswith("bias ")})
        for name in names if cell.startswith("whole ") and " - " not in cell else ():
            kinds = ("bias", "biased", "stated")
            sums = np.array(
                [[one.get(f"{kind} {name}", 0.0) for kind in kinds] for one in by_seed.values()]
            )
            total = sums[_drawn(len(sums))].sum(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                mean = _bounded(total[:, 0] / total[:, 1])
            parents = int(total[0, 1])
            stated = float(total[0, 2]) / parents
            out.append(Bias(cell=cell, group=name, parents=parents, mean=mean, stated_bps=stated))
    return out


# -- the owners' goals -----------------------------------------------------------------------------


class Goal(msgspec.Struct, frozen=True):
    """A goal of the owners in a cell: what was found, and whether it holds."""

    goal: str
    cell: str
    found: str
    holds: bool


def goals(row: str, lines: Sequence[tuple[str, Sequence[Compared]]]) -> list[Goal]:
    """The owners' goals where the row can show them; slippage counts with fees and with what was not filled."""
    out = []
    for cell, compared in lines:
        by = {each.metric: each for each in compared}
        cost, fill, made, ratio = by["cost"], by["fill"], by["made"], by["sharpe"]
        where = f"{row}, {cell}"
        if row == "planted":
            text = f"difference {_interval(ratio.difference, 1)}"
            holds = ratio.difference[1] > 0 and ratio.new > 0
            if ratio.base >= LEAST_SHARPE:
                text = f"ratio {_interval(ratio.ratio, 2)}"
                holds = ratio.ratio[0] >= 1.3 and ratio.ratio[1] > 1
            text = f"{ratio.base:.1f} → {ratio.new:.1f}, {text}"
            out.append(Goal("Sharpe +30 %", where, text, holds))
        if ROWS[row].draws and cost.base >= LEAST_COST:  # the same parents for both
            saved, high, low = (100 * (x - 1) for x in cost.ratio)
            text = f"{cost.base:.2f} → {cost.new:.2f} bps, {saved:+.0f} % [{high:+.0f}, {low:+.0f}]"
            out.append(Goal("slippage −50 %", where, text, saved <= -50))
        if math.isfinite(fill.new):
            text = f"{fill.new:.1f} % [{fill.own[1]:.1f}, {fill.own[2]:.1f}], as maker {made.new:.1f} %"
            out.append(Goal("fills > 95 %", where, text, fill.new > 95))
    return out


# -- text ------------------------------------------------------------------------------------------


def _interval(bounded: Bounded, digits: int) -> str:
    value, low, high = bounded
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]".replace("+nan", "–")


def markdown(title: str, lines: Sequence[tuple[str, Sequence[Compared]]]) -> list[str]:
    """Lines as a Markdown table: base → new, and the difference with its interval, or the new one's own (alone)."""
    if not lines:
        return []
    out = [f"### {title}, {lines[0][1][0].sessions} sessions", ""]
    out += ["| | " + " | ".join(m.text for m in METRICS.values()) + " |", "|---|" + "---|" * len(METRICS)]  # fmt: skip
    for name, compared in lines:
        cells = []
        for each in compared:
            digits = METRICS[each.metric].digits
            pair = f"{each.base:.{digits}f} → {each.new:.{digits}f}".replace("nan", "–")
            paired_ok = math.isfinite(each.difference[1]) or not math.isfinite(each.own[1])
            told = each.difference if paired_ok else each.own
            cells.append(f"{pair}; {'' if paired_ok else 'alone '}{_interval(told, digits)}")
        out.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*out, ""]


def report(
    rows: Mapping[str, Mapping[str, Mapping[int, Figures]]],
) -> tuple[list[str], dict[str, Any]]:
    """The tables as Markdown, and the same as plain data."""
    text, data, judged = list[str](), dict[str, Any](), list[Goal]()
    for row, found in rows.items():
        both = desks(found)
        single = alone(found, ROWS[row].parts_at) if ROWS[row].parts_at else []
        judged += goals(row, both)
        text += markdown(f"{row}: legacy → whole", both)
        text += markdown(f"{row}: each part alone, {ROWS[row].parts_at}, {BOUNDS[0]}", single)
        data[row] = {"desks": dict(both), "parts": dict(single), "bias": bias(found)}
    text += ["### Goals", "", "| goal | where | found | holds |", "|---|---|---|---|"]
    text += [f"| {g.goal} | {g.cell} | {g.found} | {'yes' if g.holds else 'no'} |" for g in judged]
    text += ["", "### Cost less its estimate, bps", ""]
    text += ["| where | algorithm | parents | mean | stated error | within |", "|---|---|---|---|---|---|"]  # fmt: skip
    text += [
        f"| {row}, {b.cell} | {b.group} | {b.parents:,} | {_interval(b.mean, 2)} | {b.stated_bps:.2f} "
        f"| {'yes' if b.holds else 'no'} |"
        for row, one in data.items()
        for b in one["bias"]
        if b.parents >= LEAST_PARENTS
    ]
    return text, data | {"goals": judged}
