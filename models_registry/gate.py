"""The promotion gate: rows that pass or fail, each with its figure, and the verdict.

not_enough_data   fewer test blocks than required
abstain           a blocking row fails
promote           every blocking row passes

It is asked every day on a growing stream. The bound of the IC is therefore valid at all looks at once
(`statistics.anytime_lower`): the first procedure tried on a lake is, if without skill, ever promoted with a
chance of `ALPHA` at most, the k-th with one of `ALPHA` / k, so that of k of them any is with one of
`ALPHA` · (1 + 1/2 + … + 1/k) at most: 0.059 of ten. Half of it is spent on blocks within days, while there are fewer
than `DAY_LEVEL` test days, half on whole days from then on: days differ more than hours can tell.
Simulated by `python -m models_registry.gate` (reduced form: 1440 independent pairs a day, the IC row alone,
looks on days 5 to 30; seeds of numpy's Philox from 0):

    null      1 of 2000 seeds ever promoted: 0.05 %, 95 % upper bound 0.24 %
    IC 0.05   promoted by day 5 / 10 / 30: 69 / 98 / 100 % of 500 seeds
    IC 0.10   promoted by day 5: 100 % of 500 seeds

The IC of the last `RECENT_DAYS` test days must be above zero too (one-sided 95 %), so that dead days cannot
hide behind good ones. A challenger must beat the champion on the same seconds beyond noise: the 95 % lower
bound of the difference of their rank ICs is above zero, unless the champion's decay alarm stands or this
code cannot run it. Some rows are advisory until there are `FULL_DAYS` test days.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.units import DAY_NS, DAY_S
from models_registry import statistics
from models_registry.manifest import Gate, GateRow
from models_registry.probes import Probe
from models_registry.statistics import anytime_lower
from models_registry.trades import FeeResult
from models_registry.validation import bin_sums, distinct, lower_bound

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Chance that a procedure without skill, the only one that was tried, is ever promoted.
ALPHA: Final = 0.02
#: Test days from which whole days are the blocks of the IC's bound.
DAY_LEVEL: Final = 10
RECENT_DAYS: Final = 5
#: Test days from which every row blocks.
FULL_DAYS: Final = 60
#: Effect sizes (mean over deviation of a block) at which the bound is tightest.
_DAY_EFFECT: Final = 1.5
_BLOCK_EFFECT: Final = 0.5

DSR_LEAST: Final = 0.95
PBO_MOST: Final = 0.2
#: Days that two procedures must share, one for each block of the PBO.
PBO_DAYS: Final = 16
FALSE_SIGNALS_MOST: Final = 0.2
STABILITY_LEAST: Final = 0.4


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate knows besides the test blocks.

    ``trials`` counts the looks at these data (this one included, its tuning not yet) of ``procedures``,
    ``correlation`` is the mean one of their daily results and ``sharpe_variance`` the variance of their
    Sharpe ratios (None: too few); ``others`` are the daily results of the other procedures by day number.
    ``rows`` are found elsewhere.
    """

    procedures: int = 1
    trials: int = 1
    correlation: float = 0.0
    sharpe_variance: float | None = None
    others: tuple[Mapping[int, float], ...] = ()
    champion_decayed: bool = False
    rows: tuple[GateRow, ...] = ()

    def overfitting(self, days: Int, net: Float) -> tuple[float, int] | None:
        """PBO of this procedure among those that share `PBO_DAYS` days with it, and with one another, and how
        many they are with it; None where none does.
        """
        shared, chosen = set(days.tolist()), list[Mapping[int, float]]()
        for other in sorted(self.others, key=lambda one: -len(shared & one.keys())):
            if len(shared & other.keys()) >= PBO_DAYS:
                shared &= other.keys()
                chosen.append(other)
        if not chosen:
            return None
        at = sorted(shared)
        rest = [np.array([other[day] for day in at]) for other in chosen]
        table = np.column_stack([net[np.searchsorted(days, at)], *rest])
        return statistics.overfitting_probability(table), table.shape[1]


def decide(
    rows: Iterable[GateRow],
    *,
    blocks: int,
    min_blocks: int,
    shortfall: Sequence[str] = (),
) -> Gate:
    """The verdict; its reasons are the failed blocking rows, or what was shown.

    ``shortfall`` says why test blocks are missing.
    """
    kept = tuple(rows)
    if blocks < min_blocks:
        reasons = (f"{blocks} test blocks of at least {min_blocks}", *shortfall)
        return Gate(verdict="not_enough_data", reasons=reasons, rows=kept)
    failed = tuple(row.text for row in kept if row.blocking and not row.passed)
    if failed:
        return Gate(verdict="abstain", reasons=failed, rows=kept)
    shown = tuple(row.text for row in kept if row.name in ("ic", "net"))
    return Gate(verdict="promote", reasons=shown, rows=kept)


def row(
    name: str, passed: bool, value: float, limit: float | None, text: str, *, blocking: bool = True
) -> GateRow:
    """A row; figures that are not finite become None."""
    return GateRow(
        name=name,
        blocking=blocking,
        passed=passed,
        value=value if math.isfinite(value) else None,
        limit=limit,
        text=text,
    )


def days_of(t_ns: Int) -> Int:
    """The distinct UTC days (numbers) of decision times (n,)."""
    return distinct((t_ns - 1) // DAY_NS)


def ic_lower(t_ns: Int, product: Float, block_s: int, procedures: int = 1) -> tuple[float, str]:
    """The always-valid lower bound of the mean rank product (n,), and what its blocks are.

    ``procedures`` is how many were tried on these data. See the module's docstring.
    """
    days = len(days_of(t_ns))
    size, effect = _blocks(days, block_s)
    known = ~np.isnan(product)
    sums = bin_sums(t_ns[known] - 1, (product[known], np.ones(int(known.sum()))), size)
    if not len(sums):
        return -math.inf, "no block"
    of = f"{days} days" if size == DAY_S else f"{len(sums)} blocks of {size} s on {days} days"
    # The mean of these is the pooled IC, whatever the blocks' sizes.
    means = sums[:, 0] / sums[:, 1].mean()
    return anytime_lower(means, ALPHA / 2.0 / max(1, procedures), effect), of


def _blocks(days: int, block_s: int) -> tuple[int, float]:
    """Seconds of a block of the IC's bound, and the effect size that it is tightest for."""
    return (DAY_S, _DAY_EFFECT) if days >= DAY_LEVEL else (block_s, _BLOCK_EFFECT)


def ic_row(t_ns: Int, product: Float, ic: float, block_s: int, procedures: int = 1) -> GateRow:
    """Whether the pooled rank IC is above zero at every look so far."""
    lower, of = ic_lower(t_ns, product, block_s, procedures)
    tried = f", {procedures} procedures tried" if procedures > 1 else ""
    said = f"{lower:.4f}" if math.isfinite(lower) else "no value"
    return row(
        "ic",
        lower > 0.0,
        lower,
        0.0,
        f"rank IC {ic:.4f} has an always-valid lower bound of {said} by {of}{tried}"
        + ("" if lower > 0.0 else ", not above zero"),
    )


def recent_row(t_ns: Int, product: Float, block_s: int, samples: int, seed: int) -> GateRow:
    """Whether the IC of the last test days alone is above zero."""
    days = days_of(t_ns)[-RECENT_DAYS:]
    last = (t_ns - 1) // DAY_NS >= days[0]
    known = ~np.isnan(product[last])
    mean = float(product[last][known].mean()) if known.any() else 0.0
    lower = lower_bound(
        t_ns[last],
        product[last],
        known.astype(np.float64),
        block_s=block_s,
        samples=samples,
        seed=seed,
    )
    return row(
        "recent ic",
        lower > 0.0,
        lower,
        0.0,
        f"rank IC {mean:.4f} of the last {len(days)} test days has a 95 % lower bound of {lower:.4f}"
        + ("" if lower > 0.0 else ", not above zero"),
    )


def net_row(result: FeeResult, min_trades: int) -> GateRow:
    """Whether the target rule earns more than its costs, by the worse of the settlements at gaps."""
    if result.trades < min_trades:
        text = (
            f"{result.trades} trades at fee row {result.row} of at least {min_trades}: expectations "
            "rarely exceed the cost"
        )
        return row("net", False, result.trades, min_trades, text)
    lower = result.net_lower_bps
    bound = f"{lower:.3f} bps" if math.isfinite(lower) else "no value"
    return row(
        "net",
        lower > 0.0,
        lower,
        0.0,
        f"net {result.net_bps:.3f} bps per trade over {result.trades} trades at fee row {result.row} has "
        f"a 95 % lower bound of {bound}" + ("" if lower > 0.0 else ", not above zero"),
    )


def champion_row(
    champion: str,
    t_ns: Int,
    difference: Float,
    *,
    decayed: bool,
    block_s: int,
    samples: int,
    seed: int,
) -> GateRow:
    """Challenger against champion: ``difference`` (n,) of their rank products on the same seconds."""
    known = ~np.isnan(difference)
    if decayed:
        text = (
            f"champion {champion}: its decay alarm stands, any challenger that passes replaces it"
        )
        return row("champion", True, math.nan, 0.0, text)
    if not known.any():
        text = f"champion {champion}: no test second is later than its training, so it stays"
        return row("champion", False, math.nan, 0.0, text)
    mean = float(difference[known].mean())
    lower = lower_bound(
        t_ns,
        difference,
        known.astype(np.float64),
        block_s=block_s,
        samples=samples,
        seed=seed,
    )
    hours = len(distinct(t_ns[known])) / 3600.0
    return row(
        "champion",
        lower > 0.0,
        lower,
        0.0,
        f"rank IC {mean:+.4f} against champion {champion} on the same {hours:.1f} h has a 95 % lower "
        f"bound of {lower:+.4f}" + ("" if lower > 0.0 else ": not better beyond noise"),
    )


def probe_row(probe: Probe) -> GateRow:
    """A leakage probe as a row."""
    return row(probe.name, probe.passed, probe.value, probe.limit, f"{probe.name}: {probe.text}")


def overfitting_row(context: Context, days: Int, net: Float) -> GateRow:
    """PBO of the procedures with daily results ``net`` (n,) on ``days`` (n,), advisory at first."""
    if (found := context.overfitting(days, net)) is None:
        text = (
            f"PBO not computable: none of {len(context.others)} other procedures has {PBO_DAYS} of these "
            f"{len(days)} test days"
        )
        return row("overfitting", True, math.nan, PBO_MOST, text, blocking=False)
    pbo, among = found
    text = f"PBO {pbo:.2f} among {among} of {context.procedures} procedures"
    return advisory_row("overfitting", pbo <= PBO_MOST, pbo, PBO_MOST, text, len(days))


def advisory_row(
    name: str, passed: bool, value: float, limit: float | None, text: str, days: int
) -> GateRow:
    """A row that blocks only from `FULL_DAYS` test days on."""
    return row(name, passed, value, limit, text, blocking=days >= FULL_DAYS)


def simulate(ic: float, seeds: int, days: int = 30) -> list[int]:
    """The day on which the IC row first passes in each of ``seeds`` reduced-form histories; 0 for never."""
    first = []
    for seed in range(seeds):
        generator = np.random.Generator(np.random.Philox(key=seed))
        predicted, noise = generator.standard_normal((2, days, 24, 60))
        product = predicted * (ic * predicted + math.sqrt(1 - ic**2) * noise)
        passed = 0
        for day in range(5, days + 1):
            size, effect = _blocks(day, 3600)
            means = product[:day].mean(axis=(1, 2) if size == DAY_S else 2).ravel()
            if anytime_lower(means, ALPHA / 2.0, effect) > 0:
                passed = day
                break
        first.append(passed)
    return first


if __name__ == "__main__":
    for planted, count in ((0.0, 2000), (0.05, 500), (0.10, 500)):
        found = np.array(simulate(planted, count))
        shares = {day: np.mean((found > 0) & (found <= day)) for day in (5, 10, 30)}
        print(planted, f"{int((found > 0).sum())} of {count}", shares)
