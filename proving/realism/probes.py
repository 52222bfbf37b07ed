"""Probe orders: hypothetical passive orders at both ends of the queue, and when they would fill.

Every few seconds there are four of one lot, a bid and an ask at the touch, each once at the front of
its queue and once at the back. They have no impact on the market or on each other. Queue positions are
estimated from displayed quantities alone, so that recorded and synthetic books are treated alike:

- front: nothing is ahead; the first trade at its price fills it;
- back: the displayed quantity at its price is ahead. Only trades reduce it, and the displayed quantity
  bounds it: cancels are assumed to come from behind (the risk-averse queue model);
- a trade through its price, or an opposite best that reaches it, fills either.

A probe stays at its price until the deadline, so a market that moves away leaves it unfilled.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from market.book import BookState, apply, best, is_valid, level, new_state
from market.events import Events, Flag, Kind
from market.kernel import kernel
from market.units import SECOND_NS

_TRADE: Final = int(Kind.TRADE)
_HIDDEN: Final = int(Flag.RPI | Flag.BLOCK)

#: A probe. ``filled_ns`` is zero while it rests, -1 once its deadline has passed; ``ahead`` are the
#: lots in front of it, ``back`` is 1 for the back of the queue.
PROBE: Final = np.dtype(
    [
        ("placed_ns", "i8"),
        ("filled_ns", "i8"),
        ("side", "i8"),
        ("price_ticks", "i8"),
        ("ahead", "i8"),
        ("back", "i8"),
        ("mid2_ticks", "i8"),
    ]
)
_HEAD: Final = np.dtype(
    [
        ("due_ns", "i8"),  # when the next orders are placed
        ("oldest", "i8"),  # first order that may still rest
        ("used", "i8"),  # rows of the table in use
    ]
)


@kernel
def _place(state: BookState, probes: Any, head: Any, now: int) -> None:
    """Place four orders at the touch; ``head`` is the record."""
    mid2 = best(state, 1) + best(state, -1)
    for side in (1, -1):
        price = best(state, side)
        for back in range(2):
            probe = probes[head.used]
            probe.placed_ns = now
            probe.filled_ns = 0
            probe.side = side
            probe.price_ticks = price
            probe.ahead = level(state, side, price) if back else 0
            probe.back = back
            probe.mid2_ticks = mid2
            head.used += 1


@kernel
def _run(
    state: BookState, probes: Any, heads: Any, events: Events, every_ns: int, deadline_ns: int
) -> int:
    """Apply rows until ``probes`` is full; returns how many were applied."""
    head = heads[0]
    for n in range(len(events)):
        if head.used + 4 > len(probes):
            return n
        event = events[n]
        now = event.receive_ns
        while head.oldest < head.used and (
            probes[head.oldest].filled_ns != 0 or probes[head.oldest].placed_ns + deadline_ns < now
        ):
            if probes[head.oldest].filled_ns == 0:
                probes[head.oldest].filled_ns = -1
            head.oldest += 1
        if event.kind == _TRADE:
            if event.flags & _HIDDEN:
                continue
            for k in range(head.oldest, head.used):
                probe = probes[k]
                if probe.filled_ns != 0 or probe.side != -event.side:
                    continue
                through = probe.side * (probe.price_ticks - event.price_ticks)
                if through == 0:
                    probe.ahead -= event.qty_lots
                if (through > 0 or (through == 0 and probe.ahead < 0)) and (
                    now - probe.placed_ns <= deadline_ns
                ):
                    probe.filled_ns = now
        elif apply(state, event) and is_valid(state):
            for k in range(head.oldest, head.used):
                probe = probes[k]
                if probe.filled_ns != 0 or now - probe.placed_ns > deadline_ns:
                    continue
                side = probe.side
                if side * (probe.price_ticks - best(state, -side)) >= 0:
                    probe.filled_ns = now
                else:
                    probe.ahead = min(probe.ahead, level(state, side, probe.price_ticks))
            if now >= head.due_ns:
                _place(state, probes, head, now)
                head.due_ns = (now // every_ns + 1) * every_ns
    return len(events)


class Prober:
    """Places orders into one symbol's events as they come and watches them to their deadline."""

    def __init__(self, every_ns: int = SECOND_NS, deadline_ns: int = 30 * SECOND_NS) -> None:
        if every_ns <= 0 or deadline_ns <= 0:
            raise ValueError(
                f"every {every_ns} ns, deadline {deadline_ns} ns: both must be positive"
            )
        self._every_ns, self._deadline_ns = every_ns, deadline_ns
        self._state = new_state()
        self._probes = np.zeros(1 << 10, PROBE)
        self._head = np.zeros(1, _HEAD)
        self._last_ns = 0

    def push(self, events: Events) -> None:
        """Apply event rows, in receive order."""
        done = 0
        while done < len(events):
            done += _run(
                self._state,
                self._probes,
                self._head,
                events[done:],
                self._every_ns,
                self._deadline_ns,
            )
            if done < len(events):
                self._probes = np.concatenate([self._probes, np.zeros_like(self._probes)])
        if len(events):
            self._last_ns = int(events["receive_ns"][-1])

    def finish(self) -> npt.NDArray[np.void]:
        """The orders (dtype `PROBE`, by time) whose whole deadline the stream covers."""
        probes = self._probes[: self._head["used"][0]]
        kept = probes[probes["placed_ns"] + self._deadline_ns <= self._last_ns].copy()
        kept["filled_ns"][kept["filled_ns"] == 0] = -1
        return kept
