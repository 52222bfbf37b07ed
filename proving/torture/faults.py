"""What goes wrong beyond the venue's own faults (`proving.sandbox.faults.KINDS`), and when, by seed.

Every seed leaves out some kinds and draws a rate for each of the others, so that rare combinations come up
which a uniform mixture would bury.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from market.units import MINUTE_NS
from proving.sandbox import faults as venue_faults

#: Kinds of our own → what they are.
OWN: Final[dict[str, str]] = {
    "kill": "the process is killed between any two of its effects, and comes back",
    "power_cut": "the same, and what was not synced is lost",
    "upgrade": "the worker is stopped without closing positions, and a new version starts",
    "busy": "the process reads nothing for up to 4 s",
    "skew": "the worker's clock is wrong by up to 6 s for a while",
    "halt": "an operator halts, and resumes later",
    "flatten": "an operator flattens, and resumes later",
    "pause": "an operator pauses a symbol, and resumes later",
    "limits": "an operator tightens a limit",
    "stop_fired": "the venue-side stop triggers, every second time while the process is dead",
    "liquidation": "the venue takes the position over",
    "deleveraging": "the venue closes a part of the position against another client (ADL)",
    "unknown_execution": "a part of the position is moved by an execution of a type that the worker lacks",
    "human_order": "a person trades on the account",
    "human_cancel": "a person cancels an order of ours",
    "funding": "a funding settlement",
}
#: Every kind, the venue's own first.
KINDS: Final = (*venue_faults.KINDS, *OWN)
#: Faults a minute, where it is not `_RATE`.
_RATE: Final = 3.0
_RATES: Final = {
    "restart": 1.0,
    "delist": 0.7,
    "clock": 1.0,
    "liquidation": 0.7,
    "unknown_execution": 1.5,
    "flatten": 1.0,
    "limits": 0.7,
    "skew": 1.5,
}
#: Longest duration of a kind, as a share of the venue's default.
_MS_SHARE: Final = {"delist": 0.15}


class Due(NamedTuple):
    """A fault at its time; ``draw`` decides whatever else is left to chance."""

    at_ns: int
    kind: str
    draw: int


def schedule(seed: int, start_ns: int, end_ns: int) -> list[Due]:
    """The faults of a seed, in order of time."""
    dice = random.Random(f"{seed}/faults")
    found = [due for kind in KINDS for due in _kind(dice, kind, start_ns, end_ns)]
    return sorted(found)


def _kind(dice: random.Random, kind: str, start_ns: int, end_ns: int) -> Iterator[Due]:
    if dice.random() < 0.4:
        return
    rate = _RATES.get(kind, _RATE) * dice.uniform(0.5, 3.0)
    at_ns = start_ns
    while True:
        at_ns += round(dice.expovariate(rate) * MINUTE_NS)
        if at_ns >= end_ns:
            return
        yield Due(at_ns, kind, dice.getrandbits(32))


def duration_ms(kind: str, draw: int) -> int:
    """Of a fault of the venue: 0.2 to 1.8 times its default; the clock's error has either sign."""
    share = _MS_SHARE.get(kind, 1.0)
    ms = round(venue_faults.KINDS[kind].ms * share * (0.2 + 1.6 * (draw % 1000) / 1000))
    return -ms if kind == "clock" and draw & 1 << 16 else ms
