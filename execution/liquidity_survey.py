"""Liquidity over a span of bars: depth, sweep costs, spread, outflow, fill probability, resilience.

Computed from one symbol's 1 s bars (`market.columns`), so that a day takes a moment. Money is in quote
currency (USDT), both sides are pooled unless stated, and seconds in which a figure is unknown are left
out; ``n`` counts the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from execution.hazard import FillModel, Queued
from market.units import BPS

Floats = npt.NDArray[np.float64]

#: Bar columns that a survey reads.
COLUMNS: Final = (
    *(f"{side}_{what}" for side in ("bid", "ask") for what in ("q1", "d1", "d2", "d3", "depth")),
    *(f"{side}_cancel_1" for side in ("bid", "ask")),
    *(f"sweep_{way}_{size}" for way in ("buy", "sell") for size in ("10k", "100k", "1m")),
    "mid_close",
    "spread_ticks",
    "spread_bps",
    "spread_one",
    "buy_notional",
    "sell_notional",
)
#: A second in which takers took this share of the depth within 2 bps is a shock to that side.
SHOCK_SHARE: Final = 0.3
#: Seconds after a shock at which depth is measured.
RECOVERY_S: Final = (1, 2, 3, 5, 10, 20, 30)
#: Time constant of the averages of flow and volatility, as `execution.liquidity.Monitor`'s.
MEMORY_S: Final = 60.0
#: Horizons of fill probabilities.
HORIZONS_S: Final = (1.0, 5.0, 30.0)
#: The fill model is evaluated every so many seconds.
FILLS_EVERY_S: Final = 5
_SIDES: Final = ("bid", "ask")


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over the span: mean and quantiles over ``n`` known values; None without any."""

    name: str
    unit: str
    mean: float | None
    low: float | None  #: a tenth of the values lies below
    median: float | None
    high: float | None  #: a tenth lies above
    n: int


class Resilience(msgspec.Struct, frozen=True, kw_only=True):
    """Recovery of depth within 2 bps after shocks: the share of the lost depth that had returned, by
    seconds, and the half-life h of 1 - 2^(-τ/h) fitted to it; None when depth recovered within the
    second of the shock, faster than bars can resolve."""

    shocks: int
    returned: dict[int, float]
    half_life_s: float | None


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one symbol; ``seconds`` counts its bars."""

    symbol: str
    seconds: int
    measured: list[Measured]
    resilience: Resilience


def survey(symbol: str, bars: Mapping[str, Floats], model: FillModel) -> Survey:
    """Survey one symbol. ``bars`` has `COLUMNS`, an array per column, NaN where unknown."""
    return Survey(
        symbol=symbol,
        seconds=len(bars["mid_close"]),
        measured=[*_measured(bars), *_fills(bars, model)],
        resilience=resilience(bars),
    )


def _measured(bars: Mapping[str, Floats]) -> Iterator[Measured]:
    mid = bars["mid_close"]
    for band, name in (("d1", "1 bps"), ("d2", "2 bps"), ("d3", "3 bps")):
        yield _figure(f"depth within {name}, a side", "USDT", _both(bars, band))
    yield _figure("depth displayed, a side", "USDT", _both(bars, "depth"))
    for size, name in (("10k", "10,000"), ("100k", "100,000"), ("1m", "1,000,000")):
        costs = np.concatenate([bars[f"sweep_{way}_{size}"] for way in ("buy", "sell")])
        yield _figure(f"sweep of {name}", "bps", costs)
        yield _figure(f"sweep of {name} passes the book", "share", _share(np.isnan(costs), mid))
    yield _figure("spread", "bps", bars["spread_bps"])
    yield _figure("time with a spread of one tick", "share", bars["spread_one"])
    usual = averaged(bars["spread_bps"])
    wide = (bars["spread_ticks"] > 1) & (bars["spread_bps"] > 1.5 * usual)
    yield _figure("spread wide: over 1.5 times its average", "share", _share(wide, mid))
    yield _figure(
        "queue at the touch", "USDT", np.concatenate([bars[f"{s}_q1"] * mid for s in _SIDES])
    )
    taken = np.concatenate([bars["sell_notional"], bars["buy_notional"]])
    yield _figure("taken from a side", "USDT/s", taken)
    left = np.concatenate([bars[f"{s}_cancel_1"] * mid for s in _SIDES])
    yield _figure("cancelled at a touch, at least", "USDT/s", left)


def _fills(bars: Mapping[str, Floats], model: FillModel) -> Iterator[Measured]:
    """Fill probability and time to fill of a lot that joins either touch, every `FILLS_EVERY_S`."""
    chances: dict[float, list[float]] = {horizon: [] for horizon in HORIZONS_S}
    waits: list[float] = []
    for state in _states(bars):
        for horizon in HORIZONS_S:
            chances[horizon].append(model.fill_probability(state, horizon))
        waits.append(model.expected_fill_s(state))
    for horizon, probabilities in chances.items():
        yield _figure(
            f"a lot at the touch fills within {horizon:g} s", "probability", np.array(probabilities)
        )
    yield _figure("expected time to fill, following the touch", "s", np.array(waits))


def _states(bars: Mapping[str, Floats]) -> Iterator[Queued]:
    mid = bars["mid_close"]
    moves = np.diff(np.log(mid), prepend=np.nan) * BPS
    sigma = np.sqrt(averaged(moves**2))
    queues = [bars[f"{side}_q1"] * mid for side in _SIDES]
    flows = [averaged(bars[name]) for name in ("sell_notional", "buy_notional")]
    for own in (0, 1):
        rows = zip(
            queues[own].tolist(),
            queues[1 - own].tolist(),
            bars["spread_ticks"].tolist(),
            flows[own].tolist(),
            sigma.tolist(),
            strict=True,
        )
        for own_touch, opposite, spread, flow, volatility in islice(
            rows, None, None, FILLS_EVERY_S
        ):
            if math.isnan(own_touch + opposite + spread + flow + volatility):
                continue
            yield Queued(
                ahead_usdt=own_touch,
                own_usdt=own_touch,
                opposite_usdt=opposite,
                spread_ticks=spread,
                outflow_usdt_s=flow,
                sigma_bps=volatility,
            )


def resilience(bars: Mapping[str, Floats]) -> Resilience:
    """Recovery of depth within 2 bps on the side hit, after seconds in which takers took much of it.

    Shocks are chosen by traded quantity and never by depth, so that depth's own noise does not look
    like recovery. Sums over shocks are compared, because a single one may not have moved depth. Depth
    is that of the close, around the mid of the close.
    """
    lost, back = 0.0, np.zeros(len(RECOVERY_S))
    shocks = 0
    for side, taken in (("bid", bars["sell_notional"]), ("ask", bars["buy_notional"])):
        depth = bars[f"{side}_d2"]
        reach = len(depth) - RECOVERY_S[-1]
        at = np.arange(1, max(1, reach))
        hit = at[taken[at] >= SHOCK_SHARE * depth[at - 1]] if len(at) else at
        after = depth[hit[:, None] + np.array(RECOVERY_S)]
        known = ~np.isnan(depth[hit] + depth[hit - 1] + after.sum(axis=1))
        hit, after = hit[known], after[known]
        shocks += len(hit)
        lost += float((depth[hit - 1] - depth[hit]).sum())
        back += (after - depth[hit][:, None]).sum(axis=0)
    if not shocks or lost <= 0:
        return Resilience(shocks=shocks, returned={}, half_life_s=None)
    share = back / lost
    return Resilience(
        shocks=shocks,
        returned=dict(zip(RECOVERY_S, share.tolist(), strict=True)),
        half_life_s=_half_life(share),
    )


def _half_life(share: Floats) -> float | None:
    """The h for which 1 - 2^(-τ/h) is nearest to the shares returned; None when nothing returned."""
    if share.max() <= 0:
        return None
    tried = np.geomspace(0.2, 300, 400)
    curves = 1 - 2 ** (-np.array(RECOVERY_S) / tried[:, None])
    return float(tried[((curves - share) ** 2).sum(axis=1).argmin()])


def averaged(values: Floats) -> Floats:
    """Exponential average over `MEMORY_S` of a value per second, without look-ahead.

    Unknown seconds are skipped; NaN before the first known one.
    """
    keep = math.exp(-1 / MEMORY_S)
    total = weight = 0.0
    averages = np.empty(len(values))
    for n, value in enumerate(values.tolist()):
        total *= keep
        weight *= keep
        if not math.isnan(value):
            total += value
            weight += 1.0
        averages[n] = total / weight if weight > 0 else math.nan
    return averages


def _both(bars: Mapping[str, Floats], what: str) -> Floats:
    return np.concatenate([bars[f"{side}_{what}"] for side in _SIDES])


def _share(happens: npt.NDArray[np.bool_], mid: Floats) -> Floats:
    """1 where ``happens``, else 0; NaN where the book was not valid."""
    known = ~np.isnan(np.tile(mid, len(happens) // max(1, len(mid))))
    return np.where(known, happens.astype(np.float64), np.nan)


def _figure(name: str, unit: str, values: Floats | Sequence[float]) -> Measured:
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return Measured(name=name, unit=unit, mean=None, low=None, median=None, high=None, n=0)
    low, median, high = np.quantile(known, (0.1, 0.5, 0.9)).tolist()
    return Measured(
        name=name,
        unit=unit,
        mean=float(known.mean()),
        low=low,
        median=median,
        high=high,
        n=len(known),
    )
