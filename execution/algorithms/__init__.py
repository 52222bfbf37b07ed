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


def start(name: str, parent: Parent, **parameters: Any) -> Working:
    """A new algorithm of that name; ValueError when there is none or it refuses a parameter."""
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r}: expected one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name](parent, **parameters)
