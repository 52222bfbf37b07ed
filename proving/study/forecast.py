"""Days of the synthetic market with the best forecast of the price that can be known in them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from execution.hazard.placements import Signal
from market.events import Events
from market.instruments import BUILT_IN, Instrument
from market.units import SECOND_NS
from proving.synthetic import generate, profile
from proving.synthetic.tables import truth


def day_with_forecast(
    name: str, seed: int, symbol: str, day: str
) -> tuple[Iterator[Events], Instrument, Signal]:
    """A symbol-day's events, its instrument, and its forecast: the expected move in bps over the
    profile's IC horizon at an instant, of the last second that has ended; None outside the day.
    """
    market = profile(name)
    rate = math.log(2) / market.half_life_s
    gain = -math.expm1(-rate * market.ic_horizon_s) / rate
    table = truth(market, seed, symbol, day)
    expected = table["filtered_alpha"].to_numpy() * gain
    midnight_ns = int(table["t_ns"][0].as_py()) - SECOND_NS

    def signal(now_ns: int) -> float | None:
        # Row n is of the end of second n: the last one that has ended.
        second = (now_ns - midnight_ns) // SECOND_NS - 1
        return float(expected[second]) if 0 <= second < len(expected) else None

    return generate(market, seed, symbol, day), BUILT_IN[symbol], signal
