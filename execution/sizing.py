"""Position sizing: from an expected return to a target position, its side and its size.

The side is `next_target`, one rule for validation, backtest and live. Being in the market costs a
round trip, so it enters only for more than that:

- flat: take the signal's side when the expected return exceeds the round trip's cost;
- in a position: a signal on our side above the cost confirms it, and its age starts again;
- a signal on the other side above the cost turns it round;
- otherwise stay until the age reaches the horizon of the expectation, then leave.

The size is the smallest of named caps (`position_lots`), among them fractional Kelly, a volatility target and
liquidity, in whole lots rounded down; docs/desk.md has the formulas, their sources and the defaults. Returns and volatilities are of the same horizon, in bps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from market.kernel import compiled
from market.settings import Desk, Risk
from market.units import BPS, DAY_S

#: Standard error, as a share of the edge, of a model that states none: the edge then counts half.
UNKNOWN_ERROR: Final = math.sqrt(0.5)
#: Of the guard's limits: the mid may move until a parent's last order is judged by them.
HEADROOM: Final = 0.98
#: More lots than any cap means.
_MOST_LOTS: Final = 1 << 53
YEAR_S: Final = 365 * DAY_S  #: of a market that never closes
#: A volatility or impact that is smaller is none.
_LEAST_BPS: Final = 1e-9


@compiled
def next_target(
    position: int, age_s: float, expected_bps: float, cost_bps: float, horizon_s: float
) -> int:
    """The next target's sign: +1 long, 0 flat, -1 short.

    ``position`` is the present sign, ``age_s`` the time since it was entered or last confirmed,
    ``expected_bps`` the signed expected return over ``horizon_s`` (NaN when there is none, which
    confirms nothing and enters nothing), ``cost_bps`` the round trip's cost.
    """
    if expected_bps > cost_bps:
        return 1
    if expected_bps < -cost_bps:
        return -1
    return position if age_s < horizon_s else 0


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """What a position is expected to earn, in bps over the horizon.

    ``mean_bps`` is the expected return in the position's direction before costs, ``error_bps`` its standard
    error (NaN: not stated), ``cost_bps`` the round trip's cost, ``sigma_bps`` the return's volatility.
    ``impact_bps`` is what taking one lot moves the price it pays; n lots pay √n times as much.
    """

    mean_bps: float
    error_bps: float
    cost_bps: float
    sigma_bps: float
    horizon_s: float
    impact_bps: float = 0.0

    @property
    def net_bps(self) -> float:
        """The edge shrunk by its error, less the cost.

        The prior of a signal is that it means nothing, so the return before costs is shrunk, not the
        difference: costs are known. Without a stated error, `UNKNOWN_ERROR`.
        """
        error = UNKNOWN_ERROR * abs(self.mean_bps) if math.isnan(self.error_bps) else self.error_bps
        return shrunk_bps(self.mean_bps, error) - self.cost_bps


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What a size is decided by. Money in quote currency, ``lot_usdt`` the value of a lot.

    Without an ``edge`` the size is ``fixed_lots``. ``against_lots`` are held on the other side, which the
    same parent has to close. ``depth_lots`` rest within the price bound, ``room_usdt`` is what the guard lets
    the symbol hold by the gross limit and by leverage. ``group_usdt`` are signed exposures of other
    symbols, in units of this one (their beta applied), None where they are not counted. ``more`` are caps of
    other parts in lots; ``ramp`` is the share of the size that there is evidence for.
    """

    side: int
    desk: Desk
    risk: Risk
    lot_usdt: float
    least_lots: int = 1
    fixed_lots: int = 0
    edge: Edge | None = None
    equity_usdt: float = 0.0
    against_lots: int = 0
    depth_lots: int = 0
    room_usdt: tuple[float, float] = (math.inf, math.inf)
    group_usdt: Mapping[str, float] | None = None
    more: Mapping[str, int] = {}
    ramp: float = 1.0


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """A size in lots, 0 for none, the cap that decided it, and every cap in lots."""

    lots: int
    binding: str
    caps: dict[str, int]


def position_lots(inputs: Inputs) -> Size:
    """The size of a position: the smallest cap, and none where that is below ``least_lots``."""
    caps = _caps(inputs)
    binding = min(caps, key=lambda name: caps[name])
    lots = caps[binding]
    if inputs.ramp < 1.0:
        # A size that is capped is still one: without fills there would never be evidence.
        caps["ramp"] = max(min(lots, inputs.least_lots), math.floor(lots * inputs.ramp))
        if caps["ramp"] < lots:
            binding, lots = "ramp", caps["ramp"]
    return Size(lots=lots if lots >= inputs.least_lots else 0, binding=binding, caps=caps)


def _caps(inputs: Inputs) -> dict[str, int]:
    edge, desk, risk, equity = inputs.edge, inputs.desk, inputs.risk, inputs.equity_usdt
    caps: dict[str, int] = {}

    def usdt(name: str, value: float) -> None:
        caps[name] = _whole(value / inputs.lot_usdt)

    if edge is None:
        caps["fixed"] = inputs.fixed_lots
    elif not equity > 0.0:
        return {"equity": 0}
    elif not edge.sigma_bps > _LEAST_BPS:
        return {"volatility unknown": 0}
    else:
        net_bps = edge.net_bps
        usdt("kelly", equity * kelly(net_bps, edge.sigma_bps, desk.kelly))
        if edge.impact_bps > _LEAST_BPS:
            caps["impact"] = _whole((max(0.0, net_bps) / (3 * edge.impact_bps)) ** 2)
        year_bps = edge.sigma_bps * math.sqrt(YEAR_S / edge.horizon_s)
        usdt("volatility", equity * desk.volatility * BPS / year_bps)
        caps["depth"] = _whole(inputs.depth_lots * desk.depth_share)
        usdt("symbol", equity * desk.symbol_share)
        usdt("order", risk.order_usdt * HEADROOM)
        caps["order"] = max(0, caps["order"] - inputs.against_lots)
        usdt("position", risk.position_usdt * HEADROOM)
        for name, room in zip(("book", "leverage"), inputs.room_usdt, strict=True):
            usdt(name, room * HEADROOM)
    if inputs.group_usdt is not None:
        held = max(0.0, inputs.side * math.fsum(inputs.group_usdt.values()))  # a hedge adds no room
        usdt("group", equity * desk.group_share - held)
    return caps | dict(inputs.more)


def kelly(net_bps: float, sigma_bps: float, share: float) -> float:
    """Share of equity by fractional Kelly, share·μ/σ²; 0 for no edge."""
    return share * max(0.0, net_bps) / BPS / (sigma_bps / BPS) ** 2


def shrunk_bps(mean_bps: float, error_bps: float) -> float:
    """A mean shrunk towards zero by its error: m·max(0, 1 - (e/m)²) (positive-part James-Stein)."""
    if not abs(mean_bps) > error_bps:
        return 0.0
    return mean_bps * (1 - (error_bps / mean_bps) ** 2)


def _whole(lots: float) -> int:
    """Rounded down, from 0; NaN is no size."""
    return math.floor(min(lots, _MOST_LOTS)) if lots > 0 else 0
