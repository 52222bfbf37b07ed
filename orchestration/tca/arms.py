"""The A/B of execution on record: all-in cost of two arms, compared by a test that holds at every look.

    python -m orchestration.tca.arms     how often equal arms are told apart, and how soon unequal ones

Parents come in pairs of one stratum, one of each arm (`live.arms`); an observation is a pair's difference of
all-in cost. Where the arms cost the same, the hash that dealt them makes its sign a fair coin, whatever the
market did between the two. The interval is that of `l2 ab` (`models_registry.statistics.anytime_interval`): it
holds at all looks at once, so that one may look every day and stop when it excludes zero.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from execution.algorithms.working import Parent
from execution.tca.groups import interval
from live.arms import Arms
from market.console import bps, estimate, table
from market.instruments import BUILT_IN
from market.settings import Execution
from models_registry.comparison import AB_ALPHA, AB_EFFECT
from models_registry.statistics import anytime_interval

Rows = Sequence[Mapping[str, Any]]
HEAD: Final = ("arm", "parents", "all-in bps [95 %]")


def compared(parents: Rows, costs: Rows) -> list[dict[str, Any]]:
    """A comparison for each venue and two arms, of the rows of `parents` and `tca`; plain data.

    ``difference_bps`` is the second arm's cost less the first's, between ``lower_bps`` and ``upper_bps`` at
    every look (95 %); ``cheaper`` is the arm that costs less, or "open". Pairs of which one was not measured,
    or was cut by the end of its process, are left out and counted.
    """
    known = {
        (row["venue"], row["parent_id"]): row["total_bps"]
        for row in costs
        if row["total_bps"] is not None and row["impact_by"] != "cut"
    }
    pairs: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in sorted(parents, key=lambda row: row["decision_ns"]):
        if row.get("arm"):
            pairs[row["venue"], row["stratum"]].append(row)
    found: dict[tuple[str, tuple[str, ...]], list[tuple[int, float]]] = defaultdict(list)
    left: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
    totals: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (venue, _), members in pairs.items():
        cost = {r["arm"]: known.get((venue, r["parent_id"])) for r in members}
        for row in members:
            if (total := known.get((venue, row["parent_id"]))) is not None:
                totals[venue, row["arm"]].append(total)
        if len(members) != 2 or len(cost) != 2:
            continue  # the second is yet to come
        names = tuple(sorted(cost))
        first, second = (cost[name] for name in names)
        if first is None or second is None:
            left[venue, names] += 1
        else:
            found[venue, names].append((members[1]["decision_ns"], second - first))
    return [
        _comparison(venue, names, [x for _, x in sorted(each)], left[venue, names], totals)
        for (venue, names), each in sorted(found.items())
    ]


def _comparison(
    venue: str,
    names: tuple[str, ...],
    differences: Iterable[float],
    left: int,
    totals: Mapping[tuple[str, str], Sequence[float]],
) -> dict[str, Any]:
    x = np.array(list(differences))
    lower, upper = anytime_interval(x, AB_ALPHA, AB_EFFECT)
    arms = []
    for name in names:
        mean = interval(totals[venue, name])
        bounds = [None if math.isnan(v) else v for v in (mean.mean, mean.low, mean.high)]
        arms.append({"arm": name, "parents": mean.n, "total_bps": bounds})
    return {
        "venue": venue,
        "arms": arms,
        "pairs": len(x),
        "left_out": left,
        "difference_bps": float(x.mean()),
        "lower_bps": lower if math.isfinite(lower) else None,
        "upper_bps": upper if math.isfinite(upper) else None,
        "cheaper": names[0] if lower > 0 else names[1] if upper < 0 else "open",
    }


def lines(comparison: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A comparison's arms as table cells under `HEAD`."""
    return [
        (arm["arm"], f"{arm['parents']:,}", estimate(*arm["total_bps"]))
        for arm in comparison["arms"]
    ]


def sentence(comparison: Mapping[str, Any]) -> str:
    """What is known of the difference, in a line."""
    first, second = (arm["arm"] for arm in comparison["arms"])
    found = comparison["difference_bps"], comparison["lower_bps"], comparison["upper_bps"]
    left = f", {comparison['left_out']} not measured" if comparison["left_out"] else ""
    return (
        f"{comparison['venue']}: {second} less {first}: {estimate(*found)} bps at every look (95 %), "
        f"{comparison['pairs']:,} pairs{left}; cheaper: {comparison['cheaper']}"
    )


def text(comparisons: Iterable[Mapping[str, Any]]) -> str:
    """The comparisons for a terminal."""
    return "\n\n".join(f"{table(lines(one), HEAD)}\n{sentence(one)}" for one in comparisons)


# -- the simulated check ---------------------------------------------------------------------------


def simulate(
    seed: int, effect_bps: float, *, days: int = 60, a_day: int = 40, noise_bps: float = 6.0
) -> int:
    """Parents until the arms are told apart, at one look a day; 0 when they never are in so many days.

    Reduced form: two symbols, sizes and volatilities as they come, costs of level and noise by stratum, noise
    of Student's t with 3 degrees of freedom; ``effect_bps`` is what the second arm costs more.
    """
    draw = np.random.Generator(np.random.Philox(key=seed))
    arms = Arms(Execution(arms=("market", "passive"), arms_seed=seed))
    instruments = {symbol: BUILT_IN[symbol] for symbol in ("BTCUSDT", "ETHUSDT")}
    first: dict[str, tuple[str, float]] = {}
    found: list[float] = []
    for day in range(days):
        sizes, sigmas = draw.lognormal(9.5, 1.0, a_day), draw.lognormal(0.0, 0.4, a_day)
        shocks: npt.NDArray[np.float64] = draw.standard_t(3, a_day) * noise_bps / math.sqrt(3)
        for n in range(a_day):
            symbol, lots = list(instruments)[int(draw.integers(2))], max(1, int(sizes[n] / 100))
            parent = Parent(id="", symbol=symbol, side=1, qty_lots=lots, decision_ns=0, deadline_ns=1,
                            decision_mid_ticks=1e6)  # fmt: skip
            arm = arms.of(parent, "", instruments[symbol], sigmas[n])
            cost = 2.0 + math.log10(sizes[n]) + sigmas[n] * shocks[n]
            cost += effect_bps * (arm.algorithm == "passive")
            if (before := first.pop(arm.stratum, None)) is None:
                first[arm.stratum] = arm.algorithm, cost
            else:
                found.append((cost - before[1]) * (1 if arm.algorithm == "passive" else -1))
        lower, upper = anytime_interval(np.array(found), AB_ALPHA, AB_EFFECT)
        if lower > 0 or upper < 0:
            return (day + 1) * a_day
    return 0


def main() -> None:
    """Print the check's table: 2,000 seeds of equal arms, 200 of each planted difference, from 0."""
    rows = []
    for effect_bps, seeds in ((0.0, 2000), (1.0, 200), (2.0, 200), (4.0, 200)):
        told = np.array([simulate(seed, effect_bps) for seed in range(seeds)])
        some = told[told > 0]
        half, most = np.quantile(some, (0.5, 0.9)) if len(some) else (math.nan, math.nan)
        rows.append((bps(effect_bps), f"{len(some)} of {seeds}", f"{half:.0f}", f"{most:.0f}"))
    print(table(rows, ("costs more by, bps", "told apart", "parents, half", "nine in ten")))


if __name__ == "__main__":
    main()
