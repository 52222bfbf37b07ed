"""How urgent a parent is, and what a funding settlement changes: one scale, in one place.

    urgency = min(1, max(0, lost / (saved · done)))      1 where saved ≤ 0, or at the deadline

    saved   what a fill at the own touch costs less than crossing now: taker fee, half the spread and
            impact, against maker fee, half the spread earned and adverse selection
    done    1 - exp(-left / fill): the share that fills by the deadline, with ``fill`` the expected time
            until what is left of the parent fills in its queue
    lost    what passes while it waits: signal · share(min(fill, left)) - funding · exp(-stamp / fill)

The signal counts for the side that it favours, and `Decay.share` says how much of it has come after a
time. The last term is the funding of a settlement before the deadline, which a fill after it does not
pay: max(0, side · rate) of what opens a position, min(0, side · rate) of what closes one. What would be
received is never counted. So urgency is the
cost of waiting over what waiting saves: at 1 crossing is the cheaper, at 0 waiting costs nothing.

An algorithm of urgency u waits no longer than the first 1 - u of its time (`Working.until_ns`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from execution.estimates import POLICY, Decay, Policy, fill_model, queued
from execution.liquidity import Costs, Monitor, estimate_taker
from execution.venue import View

#: Half-lives that `half_life_s` chooses from: 1 s to a day, 5 % apart.
_HALF_LIVES_S: Final = tuple(1.05**n for n in range(233))


def half_life_s(shares: Sequence[tuple[float, float, float]], horizon_s: float) -> float:
    """Half-life of a signal by least squares; infinite where nothing says (its return comes evenly).

    ``shares`` are (horizon in s, the signal's return over it as a share of that over ``horizon_s``, weight).
    """
    if not shares:
        return math.inf
    return min(
        (*_HALF_LIVES_S, math.inf),
        key=lambda life: math.fsum(
            weight * (share - Decay(half_life_s=life, horizon_s=horizon_s).ratio(at)) ** 2
            for at, share, weight in shares
        ),
    )


class Funding(NamedTuple):
    """The next settlement: seconds until it, and the predicted rate that longs pay there (bps)."""

    stamp_s: float
    rate_bps: float

    def paid_bps(self, side: int, holding_s: float) -> float:
        """What a position of ``side`` held for so long pays; 0 where it would be paid.

        Only a position held at the settlement pays. What is received is never counted as an edge.
        """
        return max(0.0, side * self.rate_bps) if 0 <= self.stamp_s <= holding_s else 0.0


def urgency(
    monitor: Monitor,
    view: View,
    side: int,
    lots: int,
    left_s: float,
    costs: Costs,
    decay: Decay,
    funding: Funding | None = None,
    reduces: bool = False,
    policy: Policy = POLICY,
) -> float:
    """Urgency of what is left of a parent, ``left_s`` before its deadline; the view is sound (not stale).

    ``reduces``: it closes a position, so that what the other side pays is what it saves."""
    if lots <= 0:
        return 0.0
    crossing = estimate_taker(monitor, view, side, lots, costs).total_bps
    saved = crossing - (costs.maker_bps - view.half_spread_bps + policy.adverse_at(monitor))
    if saved <= 0 or left_s <= 0:
        return 1.0
    modelled_s = fill_model(costs.source).expected_fill_s(queued(monitor, view, side, lots))
    fill_s = modelled_s / policy.pegged
    lost = side * (view.signal_bps or 0.0) * decay.share(min(fill_s, left_s))
    if funding is not None and 0 < funding.stamp_s < left_s:
        paid_bps = (min if reduces else max)(0.0, side * funding.rate_bps)
        lost -= paid_bps * math.exp(-funding.stamp_s / fill_s)
    if lost <= 0:
        return 0.0
    return min(1.0, lost / (saved * max(-math.expm1(-left_s / fill_s), 1e-12)))


def entry_bps(
    cost_bps: float, side: int, funding: Funding | None, decay: Decay, holding_s: float
) -> float:
    """The expected return above which a position is entered now: its break-even.

    With P what it would pay at a settlement within ``holding_s``, an entry has to earn its cost and P, and
    more than P of its return before the settlement, or it is better entered after it:

        max(cost + P, P / share(stamp))
    """
    paid = 0.0 if funding is None else funding.paid_bps(side, holding_s)
    if funding is None or not paid:
        return cost_bps
    share = decay.share(funding.stamp_s)
    return max(cost_bps + paid, paid / share) if share else math.inf


def leaves_for_funding(
    cost_bps: float,
    side: int,
    expected_bps: float,
    funding: Funding | None,
    decay: Decay,
    within_s: float,
) -> bool:
    """Whether a position is better closed before a settlement within ``within_s``: when it would pay more
    than the round trip that this costs, and the return that it gives up until then (NaN: none)."""
    if funding is None:
        return False
    given_up = max(0.0, side * expected_bps) * decay.share(funding.stamp_s)
    return funding.paid_bps(side, within_s) > cost_bps + (0.0 if math.isnan(given_up) else given_up)
