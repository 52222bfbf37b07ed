"""What a delay of entries after a leader's shock earns: planted lead-lag, and null data where there is none.

    python -m proving.leaders [--seeds 1-20] [--hours 6]

Each seed is a synthetic day's efficient prices (`proving.synthetic.latent`). At each second an entry on either
side is thought of; `execution.leaders.Leaders.delays` says which of them wait a second. Gain: how much better the
price of these is then, in bps; by entry: the same over all entries. Intervals are of the mean over seeds, 95 %,
Student's t.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
from scipy import stats

from execution.leaders import LEAST_S, Leaders
from market.console import seeds, table
from market.units import SECOND_NS
from proving.synthetic.latent import PER_SECOND, drivers
from proving.synthetic.profiles import Profile, altered, profile

DAY: Final = "2026-01-05"
FOLLOWER: Final = "ETHUSDT"


def markets() -> dict[str, Profile]:
    """The default market (follows by 0.3 s), one that follows by 0.9 s, and one of independent symbols."""
    base = profile("default")
    return {
        "follows by 0.3 s": base,
        "follows by 0.9 s": _follower(base, lag_s=0.9),
        "null": _follower(base, follows="", beta=0.0),
    }


def _follower(base: Profile, **changes: Any) -> Profile:
    listings = [
        listing | (changes if listing["symbol"] == FOLLOWER else {})
        for listing in msgspec.to_builtins(base)["listings"]
    ]
    return altered(base, listings=listings)


def gains(market: Profile, seed: int, hours: float) -> tuple[float, float]:
    """(mean gain of the delayed entries in bps, their share of all entries) of a seed; NaN without any."""
    logs = {
        listing.symbol: drivers(market, seed, listing.symbol, DAY).log_price
        for listing in market.listings
    }
    leaders, own = Leaders(logs), logs[FOLLOWER]
    found, entries = list[float](), 0
    for second in range(1, round(hours * 3600)):
        at = second * PER_SECOND
        leaders.second(second * SECOND_NS, {s: math.exp(path[at]) for s, path in logs.items()})
        if second <= 2 * LEAST_S:
            continue
        entries += 2
        found += [
            -side * (own[at + PER_SECOND] - own[at]) * 1e4
            for side in (1, -1)
            if leaders.delays(FOLLOWER, side)
        ]
    return float(np.mean(found)) if found else math.nan, len(found) / entries


def rows(named: list[int], hours: float) -> Iterator[tuple[str, str]]:
    """A row for each market: its name and what was found."""
    for name, market in markets().items():
        gain, share = np.array([gains(market, seed, hours) for seed in named]).T
        by_entry = np.where(share > 0, np.nan_to_num(gain), 0.0) * share
        yield (
            name,
            f"{share.mean():.3%} of entries wait, gain of these {_mean(gain[share > 0])} bps, "
            f"by entry {_mean(by_entry)} bps",
        )


def _mean(values: np.ndarray[Any, Any]) -> str:
    if len(values) < 2:
        return "none"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.4f} ± {half:.4f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1-20")
    parser.add_argument("--hours", type=float, default=6.0)
    asked = parser.parse_args()
    print(table(list(rows(list(seeds(asked.seeds)), asked.hours))))
