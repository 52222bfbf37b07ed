"""The algorithms by the names that settings, studies and the router use.

To add one: derive from `placement.Resting` or `schedules.Scheduled` (or, for something new, from
`working.Working`), and name it here.
"""

from __future__ import annotations

from typing import Any, Final

from execution.algorithms.placement import Adaptive, ContKukanov, Iceberg, MarketOrder, PassivePeg
from execution.algorithms.router import Router
from execution.algorithms.schedules import AlmgrenChriss, Pov, Twap, Vwap
from execution.algorithms.working import Parent, Working
from execution.order_machine import Orders

ALGORITHMS: Final[dict[str, type[Working]]] = {
    "market": MarketOrder,
    "passive": PassivePeg,
    "iceberg": Iceberg,
    "cont_kukanov": ContKukanov,
    "adaptive": Adaptive,
    "twap": Twap,
    "vwap": Vwap,
    "pov": Pov,
    "almgren_chriss": AlmgrenChriss,
    "router": Router,
}


def start(
    name: str,
    parent: Parent,
    orders: Orders | None = None,
    band_bps: float | None = None,
    **parameters: Any,
) -> Working:
    """A new algorithm of that name, with its orders in an order machine (by default one of its own),
    which crosses no further than ``band_bps`` from the mid (by default that of `market.settings.Risk`).

    ValueError when there is none of that name or it refuses a parameter.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r}: expected one of {', '.join(ALGORITHMS)}")
    working = ALGORITHMS[name](parent, **parameters)
    if orders is not None:
        working.orders = orders
    if band_bps is not None:
        working.band_bps = band_bps
    return working
