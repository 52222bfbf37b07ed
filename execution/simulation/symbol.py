"""One symbol's replay as Python drives it: requests in, outcomes out, rows pushed.

The tables of `state` as Python fills and reads them, and the kernels of `replay`, called again until
they are done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from struct import Struct
from typing import Final

import numpy as np

from execution.orders import Submit
from execution.simulation import replay
from execution.simulation import state as st
from market.book import Book
from market.events import EVENT, Events
from market.instruments import Instrument

_ORDER: Final = Struct(f"{st.ORDER.itemsize // 8}q")
_REQUEST: Final = Struct(f"{st.REQUEST.itemsize // 8}q")
_OUTCOME: Final = Struct(f"{st.OUTCOME.itemsize // 8}q")
_NO_ROWS: Final = np.zeros(0, EVENT)


class SymbolReplay:
    """One symbol: its exchange, our delayed picture of it, and what is under way in between.

    ``local`` is the book whose state is ``state.local``; finished orders are known until
    ``remembers`` more have been sent.
    """

    def __init__(
        self,
        instrument: Instrument,
        fees: tuple[str, str],
        local: Book,
        state: st.ReplayState,
        remembers: int,
    ) -> None:
        self.instrument = instrument
        self.fees = fees  #: of takers and of makers, decimal strings
        self.local = local
        self.orders: list[Submit] = []  #: by number of the order
        self.last_arrival_ns = 0
        self.scalars = st.scalars_of(state)
        self._remembers = remembers
        # The rows that the kernels work on, and those pending after them.
        self._match_rows = self._local_rows = _NO_ROWS
        self._to_match: deque[Events] = deque()
        self._to_receive: deque[Events] = deque()
        self._install(state)

    def _install(self, state: st.ReplayState) -> None:
        """Take tables that may have moved."""
        self.state = state
        kind, entry_ns, response_ns, busy_ns, *times = state.latency
        tables = (state.orders, state.inbox, state.outbox)
        (book, *flat) = (
            table.view(np.int64)
            for table in (state.book, *state.queue, *tables, state.scalars, *times, state.local)
        )
        # The leading arguments of `replay.run`.
        self._parts = (
            *(book, state.touch, *flat[:7]),
            *(kind, entry_ns, response_ns, busy_ns, *flat[7:]),
        )
        self._orders, self._inbox, self._outbox = (table.view(np.uint8).data for table in tables)

    # -- requests ------------------------------------------------------------------------------

    def request(
        self, arrival_ns: int, kind: int, order: int, price: int, lots: int, reason: int
    ) -> None:
        """Put a request under way; ``reason`` is the code of a rejection that is known already."""
        head, end = self.scalars.inbox_head[0], self.scalars.inbox_end[0]
        if head == end:
            head = end = self.scalars.inbox_head[0] = 0
        elif end == len(self.state.inbox):
            inbox = np.zeros(2 * end, st.REQUEST)
            inbox[: end - head] = self.state.inbox[head:end]
            self.scalars.inbox_head[0], end = 0, end - head
            self._install(self.state._replace(inbox=inbox))
        row = (arrival_ns, kind, order, price, lots, reason)
        _REQUEST.pack_into(self._inbox, end * _REQUEST.size, *row)
        self.scalars.inbox_end[0] = end + 1

    @property
    def full(self) -> bool:
        """Whether the next order needs `make_room` first."""
        return len(self.orders) == len(self.state.orders)

    def make_room(self) -> bool:
        """Room in the table of orders: orders that finished long ago are forgotten.

        An order stays while it is open, under way, or named by a request or an outcome under way,
        and until so many have been sent after it as are remembered. Returns whether orders were
        forgotten; all numbers have then changed.
        """
        state, scalars = self.state, self.scalars
        if len(state.orders) <= self._remembers:
            orders = np.concatenate([state.orders, np.zeros_like(state.orders)])
            self._install(state._replace(orders=orders))
            return False
        inbox = state.inbox[scalars.inbox_head[0] : scalars.inbox_end[0]]
        outbox = state.outbox[scalars.outbox_head[0] : scalars.outbox_end[0]]
        old, count = state.orders, len(state.orders)
        stays = (old["state"] == st.SENT) | (old["state"] == st.OPEN)
        stays[max(0, count - self._remembers) :] = True
        stays[inbox["order"]] = stays[outbox["order"]] = True
        kept = np.flatnonzero(stays)
        numbers = np.full(count + 1, -1)  # the last place is for the number -1 of no order
        numbers[kept] = np.arange(len(kept))
        orders = np.zeros(count if len(kept) <= count * 3 // 4 else 2 * count, st.ORDER)
        orders[: len(kept)] = old[kept]
        orders["earlier"][: len(kept)] = numbers[old["earlier"][kept]]
        resting = state.queue.resting[: state.queue.used[0]]
        for table in (inbox, outbox, resting):
            table["order"] = numbers[table["order"]]
        self.orders = [self.orders[n] for n in kept.tolist()]
        self._install(state._replace(orders=orders))
        return True

    def add(self, order: Submit, values: Sequence[int]) -> int:
        """A row in the table of orders, which is not full; returns the order's number."""
        number = len(self.orders)
        _ORDER.pack_into(self._orders, number * _ORDER.size, *values)
        self.orders.append(order)
        return number

    def lose(self, due_ns: int, outcome: int, order: int, reason: int) -> None:
        """An outcome of a request that never reached the exchange; first in, first out as all."""
        scalars = self.scalars
        end = scalars.outbox_end[0]
        if end == len(self.state.outbox):
            self._install(st.with_room(self.state))
            end = scalars.outbox_end[0]
        due_ns = scalars.last_due_ns[0] = max(due_ns, scalars.last_due_ns[0])
        row = (due_ns, scalars.now_ns[0], outcome, order, 0, 0, 0, reason, 0, 0)
        _OUTCOME.pack_into(self._outbox, end * _OUTCOME.size, *row)
        scalars.outbox_end[0] = end + 1

    def outcomes(self, now_ns: int) -> list[tuple[int, ...]]:
        """Rows of the outbox that have reached us by now, each once."""
        scalars, size = self.scalars, _OUTCOME.size
        head, end = scalars.outbox_head[0], scalars.outbox_end[0]
        if head == end:
            return []
        rows = []
        for row in _OUTCOME.iter_unpack(self._outbox[head * size : end * size]):
            if row[0] > now_ns:
                break
            rows.append(row)
        head += len(rows)
        if head == end:
            head = scalars.outbox_end[0] = 0
        scalars.outbox_head[0] = head
        return rows

    # -- rows ----------------------------------------------------------------------------------

    def push(self, events: Events) -> None:
        """Rows for the exchange and for the local book, in receive order."""
        self._to_match.append(events)
        self._to_receive.append(events)

    def _supply(self, why: int) -> None:
        """Give the kernels what they stopped for."""
        if why == replay.NO_ROOM:
            self._install(st.with_room(self.state))
        elif why == replay.MATCHED_ALL:
            self._match_rows = self._to_match.popleft()
            self.scalars.next_match[0] = 0
        else:
            self._local_rows = self._to_receive.popleft()
            self.scalars.next_local[0] = 0

    def match(self, limit_ns: int, stop_at_outcome: bool) -> int:
        """Run the exchange; returns the time that it reached."""
        while why := replay.match(
            self.state, self._match_rows, bool(self._to_match), limit_ns, stop_at_outcome
        ):
            self._supply(why)
        return self.scalars.reached_ns[0]

    def receive(self, until_ns: int) -> None:
        """Bring the local book up to a time."""
        while why := replay.receive(self.state, self._local_rows, bool(self._to_receive), until_ns):
            self._supply(why)
        self.scalars.now_ns[0] = until_ns

    def run(self, until_ns: int, stop_at_outcome: bool, stop_at_touch: bool, every_ns: int) -> int:
        """Both, as `replay.run` has it; returns the time."""
        while why := replay.run(
            *self._parts,
            self._match_rows,
            bool(self._to_match),
            self._local_rows,
            bool(self._to_receive),
            until_ns,
            stop_at_outcome,
            stop_at_touch,
            every_ns,
        ):
            self._supply(why)
        return self.scalars.now_ns[0]

    def next_frame_ns(self) -> int | None:
        """Receive time of the next frame for the local book, None when none is pushed."""
        start = self.scalars.next_local[0]
        for rows in (self._local_rows, *self._to_receive):
            if start < len(rows):
                return int(replay.next_frame_ns(rows, start))
            start = 0
        return None

    def news(self, now_ns: int) -> bool:
        """Whether an outcome has reached us or the touch has changed since the last call."""
        scalars = self.scalars
        head = scalars.outbox_head[0]
        answered = head < scalars.outbox_end[0] and self.state.outbox["due_ns"][head] <= now_ns
        bid, ask = scalars.bid_ticks[0], scalars.ask_ticks[0]
        moved = (bid, ask) != (scalars.reported_bid_ticks[0], scalars.reported_ask_ticks[0])
        scalars.reported_bid_ticks[0], scalars.reported_ask_ticks[0] = bid, ask
        return bool(answered) or moved
