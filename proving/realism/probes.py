"""Hypothetical passive orders at both ends of the queue: when they fill, and what they meet then.

Every few seconds four orders of one lot are thought of, a bid and an ask at the touch, each once at
the front of its queue and once at its back. None disturbs the market or the others. From what is
displayed, not from any order of the market itself, so that recorded and synthetic books are asked the
same question:

- front: nothing stands before it; the first print at its price fills it;
- back: all that is displayed at its price when it comes stands before it. Only prints take from that,
  and what is displayed bounds it: whoever leaves is assumed to have stood behind (pessimistic);
- a print through its price, or an opposite best that reaches it, fills either.

An order stays where it was put until the deadline, so a market that walks away leaves it unfilled.
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

#: One order. ``filled_ns`` is zero while it rests, -1 once its deadline has passed.
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
_DUE: Final = 0  #: when the next orders are placed
_OLDEST: Final = 1  #: first order that may still rest
_USED: Final = 2


@kernel
def _place(state: BookState, probes: Any, head: Any, now: int) -> None:
    """Four orders at the touch."""
    mid2 = best(state, 1) + best(state, -1)
    for side in (1, -1):
        price = best(state, side)
        for back in range(2):
            probe = probes[head[_USED]]
            probe.placed_ns = now
            probe.filled_ns = 0
            probe.side = side
            probe.price_ticks = price
            probe.ahead = level(state, side, price) if back else 0
            probe.back = back
            probe.mid2_ticks = mid2
            head[_USED] += 1


@kernel
def _run(
    state: BookState, probes: Any, head: Any, events: Events, every_ns: int, deadline_ns: int
) -> int:
    """Take rows in until ``probes`` is full; returns how many were taken."""
    for n in range(len(events)):
        if head[_USED] + 4 > len(probes):
            return n
        event = events[n]
        now = event.receive_ns
        while head[_OLDEST] < head[_USED] and (
            probes[head[_OLDEST]].filled_ns != 0
            or probes[head[_OLDEST]].placed_ns + deadline_ns < now
        ):
            if probes[head[_OLDEST]].filled_ns == 0:
                probes[head[_OLDEST]].filled_ns = -1
            head[_OLDEST] += 1
        if event.kind == _TRADE:
            if event.flags & _HIDDEN:
                continue
            for k in range(head[_OLDEST], head[_USED]):
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
            for k in range(head[_OLDEST], head[_USED]):
                probe = probes[k]
                if probe.filled_ns != 0 or now - probe.placed_ns > deadline_ns:
                    continue
                side = probe.side
                if side * (probe.price_ticks - best(state, -side)) >= 0:
                    probe.filled_ns = now
                else:
                    probe.ahead = min(probe.ahead, level(state, side, probe.price_ticks))
            if now >= head[_DUE]:
                _place(state, probes, head, now)
                head[_DUE] = (now // every_ns + 1) * every_ns
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
        self._head = np.zeros(3, np.int64)
        self._last_ns = 0

    def push(self, events: Events) -> None:
        """Take event rows in, in receive order."""
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
        probes = self._probes[: self._head[_USED]]
        kept = probes[probes["placed_ns"] + self._deadline_ns <= self._last_ns].copy()
        kept["filled_ns"][kept["filled_ns"] == 0] = -1
        return kept
