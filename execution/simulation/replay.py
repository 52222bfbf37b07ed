"""The order of rows and requests in time, compiled: two clocks run through the rows of a symbol.

At *exchange time* (the matching engine's stamp) rows change the book that our orders meet; at
*receive time* they change the local book that we see. `run` brings both up to a time and stops where
Python is to decide: at an outcome, at a change of the touch, at a timer.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from execution.simulation.arrivals import arrive, book_fills
from execution.simulation.latency import (
    ACTIVITY,
    REQUEST_TIMES,
    RESPONSE_TIMES,
    Latency,
    counted,
)
from execution.simulation.queue import HIDDEN, RESTING, TAKEN, Queue, row_matched
from execution.simulation.state import (
    ORDER,
    OUTCOME,
    REQUEST,
    SCALARS,
    ReplayState,
    finds_room,
)
from execution.simulation.whole import Touch, row_matched_whole
from market.book import BOOK, BookState, apply, best
from market.events import Events, Flag, Kind
from market.kernel import inlined, kernel

#: Why a kernel returned.
DONE: Final = 0
NO_ROOM: Final = 1  #: the tables are full: see `state.with_room`
MATCHED_ALL: Final = 2  #: the rows for the exchange are at their end, and more are pending
RECEIVED_ALL: Final = 3  #: the rows for the local book are at their end, and more are pending

#: A table of int64 fields as Python hands it over; a structured array would cost more to unbox.
Flat = npt.NDArray[np.int64]

_TRADE: Final = int(Kind.TRADE)
_LAST: Final = int(Flag.LAST)


@kernel
def register(scalars: Any, rows: Events) -> int:
    """Note the last times of a push of rows; the first row out of receive order, -1 for none.

    ``scalars`` is `ReplayState.scalars`, unchanged where a row is out of order.
    """
    known = scalars[0]
    pushed, received = known.pushed_ns, known.received_ns
    for n in range(len(rows)):
        if rows[n].receive_ns < received:
            return n
        received = rows[n].receive_ns
        if rows[n].kind <= _TRADE:
            pushed = max(pushed, min(rows[n].exchange_ns + known.shift_ns, received))
    known.pushed_ns, known.received_ns = pushed, received
    return -1


@inlined
def _match_row(state: ReplayState, event: Any) -> int:
    """Apply a row at the exchange; returns the lots of ours that it filled."""
    rules, book, queue = state.scalars[0], state.book, state.queue
    model, power = rules.queue_model, rules.queue_power
    if rules.whole:
        return int(row_matched_whole(book, queue, state.touch, event, model, power))
    return int(row_matched(book, queue, event, model, power, rules.window_levels))


@inlined
def _skim(
    book: BookState, rows: Events, n: int, rows_ns: int, shift_ns: int, until_ns: int
) -> tuple[int, int]:
    """Apply rows while no order of ours can meet them; the next row and the time of the last."""
    while n < len(rows):
        event = rows[n]
        if event.kind <= _TRADE:
            happened = max(rows_ns, min(event.exchange_ns + shift_ns, event.receive_ns))
            if happened > until_ns:
                break
            rows_ns = happened
            apply(book, event)
        n += 1
    return n, rows_ns


@kernel
def match(
    state: ReplayState, rows: Events, more: bool, limit_ns: int, stop_at_outcome: bool
) -> int:
    """Run the exchange up to ``limit_ns``; returns why it stopped.

    Rows come before requests at equal times. A request waits until the rows up to its arrival are
    known, or ``patience_ns`` at most. With ``stop_at_outcome`` it goes no further than the instant at
    which the first outcome reaches us. ``more``: rows are pending beyond ``rows``.
    """
    scalars, inbox, outbox = state.scalars[0], state.inbox, state.outbox
    active = state.latency.kind == ACTIVITY
    plain = not active and not scalars.whole
    known = max(scalars.pushed_ns - 1, limit_ns - scalars.patience_ns)
    shift, rows_ns, n = scalars.shift_ns, scalars.row_ns, scalars.next_match
    first = scalars.outbox_head
    why = -1
    while why < 0:
        if stop_at_outcome and scalars.outbox_end > first:
            limit_ns = min(limit_ns, max(outbox[first].due_ns, scalars.now_ns))
        head = scalars.inbox_head
        due = head < scalars.inbox_end and inbox[head].arrival_ns <= min(limit_ns, known)
        until = inbox[head].arrival_ns if due else limit_ns
        filled = 0
        full = False
        if plain and state.queue.used[0] + state.queue.used[1] == 0:
            n, rows_ns = _skim(state.book, rows, n, rows_ns, shift, until)
        while n < len(rows) and filled == 0:
            event = rows[n]
            if event.kind <= _TRADE:
                # Nothing is received before it happened, and the engine's time does not run back.
                happened = max(rows_ns, min(event.exchange_ns + shift, event.receive_ns))
                if happened > until:
                    break
                full = state.queue.used[0] > 0 and not finds_room(state)
                if full:
                    break
                rows_ns = happened
                if active:
                    elapsed = happened - scalars.matched_ns
                    scalars.matched_rows = counted(scalars.matched_rows, elapsed)
                    scalars.matched_ns = max(scalars.matched_ns, happened)
                filled = _match_row(state, event)
            n += 1
        if filled > 0:
            scalars.clock_ns = max(scalars.clock_ns, rows_ns)
            book_fills(state)
        elif full:
            why = NO_ROOM
        elif n == len(rows) and more:
            why = MATCHED_ALL
        elif not due:
            scalars.clock_ns = max(scalars.clock_ns, min(limit_ns, known))
            why = DONE
        elif not finds_room(state):
            why = NO_ROOM
        else:
            scalars.clock_ns = max(scalars.clock_ns, until)
            scalars.inbox_head += 1
            arrive(state, inbox[head])
    scalars.row_ns, scalars.next_match, scalars.reached_ns = rows_ns, n, limit_ns
    return why


@kernel
def receive(state: ReplayState, rows: Events, more: bool, until_ns: int) -> int:
    """Bring the local book up to ``until_ns``; returns why it stopped."""
    scalars, local = state.scalars[0], state.local
    n = scalars.next_local
    active = state.latency.kind == ACTIVITY
    while n < len(rows) and rows[n].receive_ns <= until_ns:
        event = rows[n]
        apply(local, event)
        if event.kind == _TRADE and not event.flags & HIDDEN:
            if event.side > 0:
                scalars.bought_lots += event.qty_lots
            else:
                scalars.sold_lots += event.qty_lots
        if active and event.kind <= _TRADE:
            elapsed = event.receive_ns - scalars.counted_ns
            scalars.received_rows = counted(scalars.received_rows, elapsed)
            scalars.counted_ns = max(scalars.counted_ns, event.receive_ns)
        n += 1
    scalars.next_local = n
    if n == len(rows) and more:
        return RECEIVED_ALL
    scalars.bid_ticks, scalars.ask_ticks = best(local, 1), best(local, -1)
    return DONE


@kernel
def next_frame_ns(rows: Events, start: int) -> int:
    """Receive time of the first book frame that ends at row ``start`` or later.

    Where no frame ends any more it is that of the last row, and without rows the end of time.
    """
    for n in range(start, len(rows)):
        if rows[n].kind < _TRADE and rows[n].flags & _LAST:
            return int(rows[n].receive_ns)
    return int(rows[len(rows) - 1].receive_ns) if start < len(rows) else 1 << 62


@kernel
def run(
    book: Flat,
    touch: Touch,
    resting: Flat,
    taken: Flat,
    used: Flat,
    orders: Flat,
    inbox: Flat,
    outbox: Flat,
    scalars: Flat,
    latency_kind: int,
    entry_ns: int,
    response_ns: int,
    busy_ns: int,
    request_times: Flat,
    response_times: Flat,
    local: Flat,
    match_rows: Events,
    more_to_match: bool,
    local_rows: Events,
    more_to_receive: bool,
    until_ns: int,
    stop_at_outcome: bool,
    stop_at_touch: bool,
    every_ns: int,
) -> int:
    """Bring the exchange and our own clock up to ``until_ns``; returns why it stopped.

    It stops earlier, as asked, at the instant at which an outcome reaches us or at which the touch
    of the local book changes; with ``every_ns`` above zero at the first multiple of it at which
    either has happened since it last stopped there. Called again it goes on.

    The state comes in parts (`SymbolReplay`): a tuple from Python costs several times its parts.
    """
    state = ReplayState(
        book.view(BOOK),
        touch,
        Queue(resting.view(RESTING), taken.view(TAKEN), used),
        orders.view(ORDER),
        inbox.view(REQUEST),
        outbox.view(OUTCOME),
        scalars.view(SCALARS),
        Latency(
            latency_kind,
            entry_ns,
            response_ns,
            busy_ns,
            request_times.view(REQUEST_TIMES),
            response_times.view(RESPONSE_TIMES),
        ),
        local.view(BOOK),
    )
    shared = state.scalars[0]
    while True:
        now = shared.now_ns
        turn = max(until_ns, now)
        if every_ns > 0:
            turn = min(turn, (now // every_ns + 1) * every_ns)
        step = turn
        if stop_at_touch:
            # Looked up once: rows that are still to be fetched may belong to the same instant.
            if shared.frame_ns == 0:
                if shared.next_local == len(local_rows) and more_to_receive:
                    return RECEIVED_ALL
                shared.frame_ns = max(next_frame_ns(local_rows, shared.next_local), now)
            step = min(step, shared.frame_ns)
        why = match(state, match_rows, more_to_match, step, stop_at_outcome)
        if why != DONE:
            return int(why)
        step = shared.reached_ns
        why = receive(state, local_rows, more_to_receive, step)
        if why != DONE:
            return int(why)
        shared.now_ns, shared.frame_ns = step, 0
        head = shared.outbox_head
        answered = shared.outbox_end > head and state.outbox[head].due_ns <= step
        moved = (
            shared.bid_ticks != shared.reported_bid_ticks
            or shared.ask_ticks != shared.reported_ask_ticks
        )
        if every_ns > 0 and (answered or moved) and step == turn:
            break
        if step >= until_ns or (stop_at_outcome and answered) or (stop_at_touch and moved):
            break
    if every_ns > 0 or stop_at_touch:
        shared.reported_bid_ticks, shared.reported_ask_ticks = shared.bid_ticks, shared.ask_ticks
    return DONE
