"""Virtual time and the network in it: one heap of events, connections that keep their order and are cut.

A latency is drawn per message and direction; a connection is first in, first out in each direction, as
TCP is. What is in flight when a connection is cut is lost on its way to the worker, and may or may not
still reach the venue. REST requests have a connection each, so their order is not kept.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Final

from market.units import MS_NS, SECOND_NS
from proving.sandbox.virtual import Delivery, VirtualConnection

#: A connection that is cut without a word is noticed by the worker's heartbeat after so long at most.
HALF_OPEN_NS: Final = 8 * SECOND_NS


class Heap:
    """Events of one virtual clock, by time and then in the order of scheduling."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0

    @property
    def next_ns(self) -> int:
        """When the next event is; far away when there is none."""
        return self._events[0][0] if self._events else 1 << 62

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Run an action at a time, now at the earliest."""
        self._number += 1
        heapq.heappush(self._events, (max(time_ns, self.now_ns), self._number, action))

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Run an action after so long."""
        self.at(self.now_ns + delay_ns, action)

    def run(self, until_ns: int) -> None:
        """Run what is due up to a time, inclusive."""
        while self._events and self._events[0][0] <= until_ns:
            self.now_ns, _, action = heapq.heappop(self._events)
            action()
        self.now_ns = until_ns


class Latency:
    """Latencies of one direction: a base of its own, an exponential tail, and rare spikes."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._base_ns = round(dice.uniform(0.5, 20.0) * MS_NS)
        self._tail_ns = dice.uniform(0.2, 10.0) * MS_NS
        self._spike_share = dice.choice((0.0, 0.001, 0.01))

    def draw(self) -> int:
        """Nanoseconds of the next message."""
        spike = self._dice.random() < self._spike_share
        tail_ns = self._dice.expovariate(1.0) * (SECOND_NS / 2 if spike else self._tail_ns)
        return self._base_ns + round(tail_ns)


class Network:
    """The latencies between worker and venue; streams and requests share them."""

    def __init__(self, heap: Heap, dice: random.Random) -> None:
        self.heap, self.dice = heap, dice
        self.up, self.down = Latency(dice), Latency(dice)


class Wire:
    """The way of one connection of the worker to the venue, whose end there is ``remote``.

    ``received`` gets the frames as they arrive, ``lost`` the reason when the worker learns of the end.
    """

    def __init__(
        self,
        network: Network,
        remote: VirtualConnection,
        received: Callable[[bytes], None],
        lost: Callable[[str], None],
    ) -> None:
        self.remote, self.is_up = remote, True
        self._network, self._received, self._lost = network, received, lost
        self._last_down_ns = self._last_up_ns = 0

    def down(self, delivery: Delivery) -> None:
        """A frame left the venue, or the connection ended there."""
        network, frame = self._network, delivery.frame
        arrival_ns = max(self._last_down_ns, delivery.time_ns + network.down.draw())
        if frame is not None:
            self._last_down_ns = arrival_ns
            network.heap.at(arrival_ns, lambda: self._arrive(frame))
            return
        if network.dice.random() < 0.5:
            network.heap.at(arrival_ns, lambda: self._end("closed by the venue"))
            return
        self._received = lambda frame: None  # what is in flight is lost
        if network.dice.random() < 0.3:
            arrival_ns += network.dice.randrange(HALF_OPEN_NS)
        network.heap.at(arrival_ns, lambda: self._end("connection reset"))

    def up(self, action: Callable[[], None]) -> None:
        """Something is on its way to the venue: ``action`` is done there when it arrives."""
        network = self._network
        self._last_up_ns = max(self._last_up_ns, network.heap.now_ns + network.up.draw())
        network.heap.at(self._last_up_ns, lambda: action() if self.remote.is_open else None)

    def hang_up(self, end: Callable[[], None]) -> None:
        """The worker, or its process, is gone; ``end`` is done when the venue learns of it."""
        self.is_up = False
        self.up(end)

    def _arrive(self, frame: bytes) -> None:
        if self.is_up:
            self._received(frame)

    def _end(self, reason: str) -> None:
        if self.is_up:
            self.is_up = False
            self._lost(reason)
