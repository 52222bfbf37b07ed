"""Summary of studied days: cost by algorithm, size and deadline, and the goals with their verdicts.

Observations of one day are dependent, days of different seeds are not: intervals come from a bootstrap
of whole days. Differences are paired: the same parent under two algorithms, from the same instant of the
same market.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from execution.tca import third, thirds
from proving.study.days import ParentOutcome

BASELINE: Final = "market"
ROUTER: Final = "router"
#: The baseline's size in the goals.
GOAL_SIZE: Final = "10k"
_SAMPLES: Final = 4000

Group = Callable[[ParentOutcome], str]


class DayMean(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over parents with its 95 % interval and one-sided 95 % upper bound, by the day bootstrap.

    NaN bounds below two days. ``n`` counts parents.
    """

    mean: float
    low: float
    high: float
    upper: float
    n: int
    days: int


class AlgorithmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One algorithm in one group of parents; costs in bps, positive when paid."""

    group: str
    algorithm: str
    #: Mean notional of its parents, and their mean deadline.
    size_usdt: float
    deadline_s: float
    total: DayMean
    #: From the baseline, paired by parent.
    difference: DayMean
    delay_bps: float
    spread_bps: float
    impact_bps: float
    timing_bps: float
    opportunity_bps: float
    fees_bps: float
    completion: float
    #: Share of the filled quantity that filled as maker.
    maker_share: float
    time_to_fill_s: float
    markout_1s_bps: float
    markout_5s_bps: float
    markout_30s_bps: float
    markout_60s_bps: float
    #: ParentOutcome less estimate.
    bias: DayMean
    rmse_bps: float


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A goal of the study, the figure found, and whether it holds."""

    name: str
    wanted: str
    found: str
    holds: bool


def day_mean(values: Iterable[tuple[int, float]]) -> DayMean:
    """Mean of (day, value) pairs and its bounds by the bootstrap of days; NaN values are left out."""
    known = [(day, value) for day, value in values if not math.isnan(value)]
    if not known:
        return DayMean(mean=math.nan, low=math.nan, high=math.nan, upper=math.nan, n=0, days=0)
    names, places = np.unique([day for day, _ in known], return_inverse=True)
    sums = np.bincount(places, weights=[value for _, value in known])
    counts = np.bincount(places).astype(np.float64)
    mean, days = float(sums.sum() / counts.sum()), len(names)
    if days < 2:
        return DayMean(
            mean=mean, low=math.nan, high=math.nan, upper=math.nan, n=len(known), days=days
        )
    drawn = np.random.Generator(np.random.Philox(key=days)).integers(0, days, (_SAMPLES, days))
    means: npt.NDArray[np.float64] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high, upper = (float(q) for q in np.quantile(means, (0.025, 0.975, 0.95)))
    return DayMean(mean=mean, low=low, high=high, upper=upper, n=len(known), days=days)


def lines(outcomes: Sequence[ParentOutcome], group: Group) -> list[AlgorithmSummary]:
    """The summary of every algorithm in every group, in order of appearance."""
    base = {_parent(row): row.total_bps for row in outcomes if row.algorithm == BASELINE}
    members: dict[tuple[str, str], list[ParentOutcome]] = {}
    for row in outcomes:
        members.setdefault((group(row), row.algorithm), []).append(row)
    return [_line(name, algorithm, rows, base) for (name, algorithm), rows in members.items()]


def by_cell(row: ParentOutcome) -> str:
    """Group by size and deadline."""
    return f"{row.size}, {row.deadline_s} s"


def _parent(row: ParentOutcome) -> tuple[Any, ...]:
    return row.symbol, row.seed, row.decision_ns, row.side


def _day(row: ParentOutcome) -> int:
    return row.seed


def _line(
    group: str, algorithm: str, rows: Sequence[ParentOutcome], base: dict[tuple[Any, ...], float]
) -> AlgorithmSummary:
    errors = [row.total_bps - row.estimate_bps for row in rows]
    squares = _mean([error * error for error in errors])
    means = {
        name: _mean([getattr(row, name) for row in rows])
        for name in AlgorithmSummary.__struct_fields__
        if name in ParentOutcome.__struct_fields__ and name not in ("algorithm", "maker_share")
    }
    filled = sum(row.filled_lots for row in rows)
    made = math.fsum(
        row.maker_share * row.filled_lots for row in rows if not math.isnan(row.maker_share)
    )
    return AlgorithmSummary(
        group=group,
        algorithm=algorithm,
        total=day_mean((_day(row), row.total_bps) for row in rows),
        difference=day_mean(
            (_day(row), row.total_bps - base.get(_parent(row), math.nan)) for row in rows
        ),
        completion=filled / sum(row.qty_lots for row in rows),
        maker_share=made / filled if filled else math.nan,
        bias=day_mean((_day(row), error) for row, error in zip(rows, errors, strict=True)),
        rmse_bps=math.sqrt(squares),
        **means,
    )


def regimes(outcomes: Sequence[ParentOutcome]) -> dict[str, Group]:
    """Groupings of parents by the state of the market at their decision."""
    volatility = thirds(row.sigma_bps for row in outcomes)
    depth = thirds(float(row.depth_lots) for row in outcomes)
    tight = min((row.market_spread_bps for row in outcomes), default=math.nan) * 1.5

    return {
        "volatility": lambda row: third(row.sigma_bps, volatility),
        "depth": lambda row: third(float(row.depth_lots), depth),
        "spread": lambda row: "one tick" if row.market_spread_bps <= tight else "wider",
    }


def goals(outcomes: Sequence[ParentOutcome]) -> list[Goal]:
    """The goals of the router, each with its figure and verdict."""
    cells = {(line.group, line.algorithm): line for line in lines(outcomes, by_cell)}
    names = list(dict.fromkeys(group for group, _ in cells))
    verdicts: list[Goal] = []
    for name in names:
        if name.startswith(f"{GOAL_SIZE},") and (name, ROUTER) in cells:
            total, base = cells[name, ROUTER].total, cells[name, BASELINE].total
            saved = 1 - total.mean / base.mean
            verdicts += [
                Goal(
                    name=f"cost below immediate market orders, {name}",
                    wanted=f"≥ {share:.0%}",
                    found=f"{saved:.1%} ({total.mean:.2f} for {base.mean:.2f} bps)",
                    holds=saved >= share,
                )
                for share in (0.4, 0.5)
            ]
    routed = [row for row in outcomes if row.algorithm in (ROUTER, BASELINE)]
    divided = [("size and deadline", by_cell), *regimes(routed).items()]
    for label, group in divided:
        ours = [line for line in lines(routed, group) if line.algorithm == ROUTER]
        if ours:
            worst = max(ours, key=lambda line: _bound(line.difference))
            bound = worst.difference.upper
            verdicts.append(
                Goal(
                    name=f"never worse than market, by {label}",
                    wanted="95 % upper bound ≤ +0.3 bps",
                    found=f"{bound:+.2f} bps at worst ({worst.group})",
                    holds=bound <= 0.3,
                )
            )
    ours = [line for (_, algorithm), line in cells.items() if algorithm == ROUTER]
    if ours:
        least = min(ours, key=lambda line: line.completion)
        makers = min(ours, key=lambda line: line.maker_share)
        whole = lines([row for row in outcomes if row.algorithm == ROUTER], lambda _: "all")[0]
        verdicts += [
            Goal(
                name="completion",
                wanted="≥ 99 %",
                found=f"{least.completion:.2%} at least ({least.group})",
                holds=least.completion >= 0.99,
            ),
            Goal(
                name="maker share of what was filled",
                wanted="≥ 80 %",
                found=f"{makers.maker_share:.1%} at least ({makers.group})",
                holds=makers.maker_share >= 0.8,
            ),
            Goal(
                name="estimate before the trade unbiased",
                wanted="zero inside the 95 % interval of outcome less estimate",
                found=f"{whole.bias.mean:+.2f} [{whole.bias.low:+.2f}, {whole.bias.high:+.2f}] bps, "
                f"RMSE {whole.rmse_bps:.2f}",
                holds=whole.bias.low <= 0 <= whole.bias.high,
            ),
        ]
    return verdicts


def _bound(mean: DayMean) -> float:
    return math.inf if math.isnan(mean.upper) else mean.upper


def text(outcomes: Sequence[ParentOutcome]) -> str:
    """The table as text, and the goals below it."""
    head = (
        f"{'size, deadline':22}{'algorithm':16}{'n':>6}{'cost bps [95 %]':>23}{'less market [95 %]':>27}"
        f"{'spread':>8}{'impact':>8}{'timing':>8}{'fees':>6}{'filled':>8}{'maker':>7}{'time s':>8}"
        f"{'5 s':>7}{'60 s':>7}"
    )
    rows = [head]
    for line in lines(outcomes, by_cell):
        total, less = line.total, line.difference
        rows.append(
            f"{line.group:22}{line.algorithm:16}{total.n:6}"
            f"{f'{total.mean:.2f} [{total.low:.2f}, {total.high:.2f}]':>23}"
            f"{f'{less.mean:+.2f} [{less.low:+.2f}, {less.high:+.2f}]':>27}"
            f"{line.spread_bps:8.2f}{line.impact_bps:8.2f}{line.timing_bps:8.2f}{line.fees_bps:6.2f}"
            f"{line.completion:8.1%}{line.maker_share:7.0%}{line.time_to_fill_s:8.1f}"
            f"{line.markout_5s_bps:7.2f}{line.markout_60s_bps:7.2f}"
        )
    rows += ["", f"{'outcome less estimate':22}{'n':>6}{'bps [95 %]':>24}{'RMSE':>7}{'in it':>7}"]
    for line in lines(outcomes, lambda _: "all"):
        bias = line.bias
        if bias.n:
            rows.append(
                f"{line.algorithm:22}{bias.n:6}"
                f"{f'{bias.mean:+.3f} [{bias.low:+.3f}, {bias.high:+.3f}]':>24}{line.rmse_bps:7.2f}"
                f"{'yes' if bias.low <= 0 <= bias.high else 'no':>7}"
            )
    rows.append("")
    rows += [
        f"{'holds' if goal.holds else 'FAILS':6}{goal.name}: {goal.found}; wanted {goal.wanted}"
        for goal in goals(outcomes)
    ]
    return "\n".join(rows)


def _mean(values: Sequence[float]) -> float:
    real = [value for value in values if not math.isnan(value)]
    return math.fsum(real) / len(real) if real else math.nan
