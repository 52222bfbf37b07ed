"""One symbol in the simulator: its exchange, our delayed picture of it, and what is under way between.

The tables of `execution.simulation.exchange` as Python fills and reads them, and the kernels of
`execution.simulation.replay` called until they are done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from struct import Struct
from typing import Final

import numpy as np

from execution.orders import Submit
from execution.simulation import exchange as ex
from execution.simulation import replay
from execution.simulation.exchange import with_room
from market.book import NO_LEVEL, Book
from market.events import EVENT, Events
from market.instruments import Instrument

_ORDER: Final = Struct(f"{len(ex.ORDER.names or ())}q")
_REQUEST: Final = Struct(f"{ex.INBOX_COLUMNS}q")
_OUTCOME: Final = Struct(f"{ex.OUTBOX_COLUMNS}q")
_NO_ROWS: Final = np.zeros(0, EVENT)


class Lane:
    """One symbol: its exchange, our delayed picture of it, and what is under way in between."""

    def __init__(
        self, instrument: Instrument, fees: tuple[str, str], exchange: ex.Exchange, remembers: int
    ) -> None:
        self.instrument = instrument
        self._remembers = remembers
        self.fees = fees  #: of takers and of makers, decimal strings
        self.local = Book()
        self.clock = np.zeros(replay.CLOCK_SIZE, np.int64)
        self.clock[[replay.BID, replay.ASK, replay.TURN_BID, replay.TURN_ASK]] = NO_LEVEL
        self.ahead = self.behind = _NO_ROWS
        self.to_match: deque[Events] = deque()
        self.to_see: deque[Events] = deque()
        self.asked: list[Submit] = []  #: by number of the order
        self.last_arrival_ns = 0
        self.times = self.clock.data
        self.install(exchange)

    def install(self, exchange: ex.Exchange) -> None:
        """Take tables that may have moved."""
        self.exchange = exchange
        queue, latency = exchange.queue, exchange.latency
        tables = (exchange.orders, exchange.inbox, exchange.outbox)
        self._parts = (
            *(exchange.book, exchange.touch, *queue, *tables),
            *(exchange.cells, exchange.reals, *latency),
            *(self.clock, self.local.state),
        )
        self.cells = exchange.cells.data
        self._orders, self._inbox, self._outbox = (
            table.reshape(-1).view(np.uint8).data for table in tables
        )

    # -- requests ------------------------------------------------------------------------------

    def enter(
        self, arrives_ns: int, request: int, order: int, price: int, lots: int, refusal: int
    ) -> None:
        """Put a request under way; ``refusal`` is the code of a reason that is known already."""
        cells = self.cells
        head, end = cells[ex.ARRIVED], cells[ex.INBOX_END]
        if head == end:
            head = end = cells[ex.ARRIVED] = 0
        elif end == len(self.exchange.inbox):
            inbox = np.zeros((2 * end, ex.INBOX_COLUMNS), np.int64)
            inbox[: end - head] = self.exchange.inbox[head:end]
            cells[ex.ARRIVED], end = 0, end - head
            self.install(self.exchange._replace(inbox=inbox))
        row = (arrives_ns, request, order, price, lots, refusal)
        _REQUEST.pack_into(self._inbox, end * _REQUEST.size, *row)
        self.cells[ex.INBOX_END] = end + 1

    @property
    def full(self) -> bool:
        """Whether the next order needs `make_room` first."""
        return len(self.asked) == len(self.exchange.orders)

    def make_room(self) -> bool:
        """Room in the table of orders: what finished long ago leaves it, and the others move up.

        An order stays while it is open, under way, or named by a request or an outcome under way,
        and until so many have been asked for after it as are remembered. Returns whether orders
        have left; all numbers are then others.
        """
        exchange, cells = self.exchange, self.cells
        if len(exchange.orders) <= self._remembers:
            orders = np.concatenate([exchange.orders, np.zeros_like(exchange.orders)])
            self.install(exchange._replace(orders=orders))
            return False
        inbox = exchange.inbox[cells[ex.ARRIVED] : cells[ex.INBOX_END]]
        outbox = exchange.outbox[cells[ex.HEARD] : cells[ex.OUTBOX_END]]
        old, count = exchange.orders, len(exchange.orders)
        stays = (old["state"] == ex.SENT) | (old["state"] == ex.OPEN)
        stays[max(0, count - self._remembers) :] = True
        stays[inbox[:, ex.TARGET]] = stays[outbox[:, ex.ORDER_NUMBER]] = True
        kept = np.flatnonzero(stays)
        numbers = np.full(count + 1, -1)  # the last place is for the number -1 of no order
        numbers[kept] = np.arange(len(kept))
        orders = np.zeros(count if len(kept) <= count * 3 // 4 else 2 * count, ex.ORDER)
        orders[: len(kept)] = old[kept]
        orders["earlier"][: len(kept)] = numbers[old["earlier"][kept]]
        inbox[:, ex.TARGET] = numbers[inbox[:, ex.TARGET]]
        outbox[:, ex.ORDER_NUMBER] = numbers[outbox[:, ex.ORDER_NUMBER]]
        resting = exchange.queue.resting[: exchange.queue.used[0]]
        resting["order"] = numbers[resting["order"]]
        self.asked = [self.asked[n] for n in kept.tolist()]
        self.install(exchange._replace(orders=orders))
        return True

    def open(self, order: Submit, values: Sequence[int]) -> int:
        """A row in the table of orders, which is not full; returns the order's number."""
        number = len(self.asked)
        _ORDER.pack_into(self._orders, number * _ORDER.size, *values)
        self.asked.append(order)
        return number

    def say(self, due_ns: int, outcome: int, order: int, reason: int) -> None:
        """An outcome that the exchange knows nothing of; it is first in, first out as all are."""
        end = self.cells[ex.OUTBOX_END]
        if end == len(self.exchange.outbox):
            self.install(with_room(self.exchange))
            end = self.cells[ex.OUTBOX_END]
        due_ns = max(due_ns, self.cells[ex.LAST_DUE])
        self.cells[ex.LAST_DUE] = due_ns
        row = (due_ns, self.cells[ex.NOW], outcome, order, 0, 0, 0, reason, 0, 0)
        _OUTCOME.pack_into(self._outbox, end * _OUTCOME.size, *row)
        self.cells[ex.OUTBOX_END] = end + 1

    def outcomes(self, now_ns: int) -> list[tuple[int, ...]]:
        """Rows of the outbox that have reached us by now, each once."""
        cells, size = self.cells, _OUTCOME.size
        head, end = cells[ex.HEARD], cells[ex.OUTBOX_END]
        if head == end:
            return []
        heard = []
        for row in _OUTCOME.iter_unpack(self._outbox[head * size : end * size]):
            if row[0] > now_ns:
                break
            heard.append(row)
        head += len(heard)
        if head == end:
            head = cells[ex.OUTBOX_END] = 0
        cells[ex.HEARD] = head
        return heard

    # -- rows ----------------------------------------------------------------------------------

    def push(self, events: Events) -> None:
        self.to_match.append(events)
        self.to_see.append(events)

    def _go_on(self, why: int) -> None:
        """Give the kernels what they came back for."""
        if why == replay.NO_ROOM:
            self.install(with_room(self.exchange))
        elif why == replay.MATCHED_ALL:
            self.ahead = self.to_match.popleft()
            self.clock[replay.MATCHED] = 0
        else:
            self.behind = self.to_see.popleft()
            self.clock[replay.SEEN] = 0

    def match(self, limit_ns: int, patience_ns: int, stop_at_outcome: bool) -> int:
        """Run the exchange; returns how far it went."""
        while why := replay.match(
            self.exchange,
            self.clock,
            self.ahead,
            bool(self.to_match),
            limit_ns,
            patience_ns,
            stop_at_outcome,
        ):
            self._go_on(why)
        return self.times[replay.REACHED_NS]

    def see(self, until_ns: int) -> None:
        """Bring the local book up to a time."""
        while why := replay.see(
            self.exchange,
            self.clock,
            self.local.state,
            self.behind,
            bool(self.to_see),
            until_ns,
        ):
            self._go_on(why)
        self.cells[ex.NOW] = until_ns

    def run(
        self,
        until_ns: int,
        patience_ns: int,
        stop_at_outcome: bool,
        stop_at_touch: bool,
        every_ns: int,
    ) -> int:
        """Both, as `execution.simulation.replay.run` has it; returns the time."""
        while why := replay.run_parts(
            *self._parts,
            self.ahead,
            bool(self.to_match),
            self.behind,
            bool(self.to_see),
            until_ns,
            patience_ns,
            stop_at_outcome,
            stop_at_touch,
            every_ns,
        ):
            self._go_on(why)
        return self.cells[ex.NOW]

    def next_frame_ns(self) -> int | None:
        """Receive time of the next frame to be seen, None when none is pushed."""
        start = self.times[replay.SEEN]
        for rows in (self.behind, *self.to_see):
            if start < len(rows):
                return int(replay.next_frame_ns(rows, start))
            start = 0
        return None

    def news(self, now_ns: int) -> bool:
        """Whether an outcome has reached us or the touch has changed; the touch is then known."""
        cells, times = self.cells, self.times
        head = cells[ex.HEARD]
        heard = head < cells[ex.OUTBOX_END] and self.exchange.outbox[head, ex.DUE] <= now_ns
        touch = times[replay.BID], times[replay.ASK]
        moved = touch != (times[replay.TURN_BID], times[replay.TURN_ASK])
        times[replay.TURN_BID], times[replay.TURN_ASK] = touch
        return bool(heard) or moved
