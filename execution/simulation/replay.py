"""The order of rows and requests in time, compiled: two clocks run through the rows of a symbol.

At *exchange time* (the matching engine's stamp) rows change the book that our orders meet; at
*receive time* they change the local book that we see. `run` brings both up to a time and stops where
Python is to be asked: at an outcome, at a change of the touch, at a timer.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from execution.simulation import exchange as ex
from execution.simulation.arrivals import arrive, book_fills
from execution.simulation.exchange import Exchange, finds_room
from execution.simulation.latency import ACTIVITY, Latency, Table, faded
from execution.simulation.queue import HIDDEN, Queue, row_matched
from execution.simulation.whole import Touch, row_matched_whole
from market.book import BookState, apply, best
from market.events import Events, Flag, Kind
from market.kernel import inlined, kernel

#: Why a kernel came back.
DONE: Final = 0
NO_ROOM: Final = 1  #: the tables are full: see `execution.simulation.exchange.with_room`
MATCHED_ALL: Final = 2  #: the rows for the exchange are at their end, and there are more
SEEN_ALL: Final = 3  #: the rows for the local book are at their end, and there are more

#: Places in a lane's ``clock``, which `run` and Python share.
MATCHED: Final = 0  #: the next row for the exchange
SEEN: Final = 1  #: the next row for the local book
PUSHED_NS: Final = 2  #: exchange time of the last row pushed
RECEIVED_NS: Final = 3  #: receive time of the last row pushed
REACHED_NS: Final = 4  #: how far `match` went
BID: Final = 5  #: touch of the local book in ticks, `NO_LEVEL` for none
ASK: Final = 6
TURN_BID: Final = 7  #: the touch when news were told last
TURN_ASK: Final = 8
FRAME_NS: Final = 9  #: the end of the next frame to be seen, zero until it is looked up
BOUGHT: Final = 10  #: lots that takers have bought in the visible book, as far as seen
SOLD: Final = 11
CLOCK_SIZE: Final = 12

Clock = npt.NDArray[np.int64]

_TRADE: Final = int(Kind.TRADE)
_LAST: Final = int(Flag.LAST)


@kernel
def survey(rows: Events, shift_ns: int, clock: Clock) -> int:
    """Note up to when a push of rows tells; the first row that is out of order, -1 when none is."""
    pushed, received = clock[PUSHED_NS], clock[RECEIVED_NS]
    for n in range(len(rows)):
        if rows[n].receive_ns < received:
            return n
        received = rows[n].receive_ns
        if rows[n].kind <= _TRADE:
            pushed = max(pushed, min(rows[n].exchange_ns + shift_ns, received))
    clock[PUSHED_NS], clock[RECEIVED_NS] = pushed, received
    return -1


@kernel
def _count_row(reals: Any, row: int, cells: Any, last: int, time_ns: int) -> None:
    """Add a row to an exponential count of rows."""
    if time_ns > cells[last]:
        reals[row] = faded(reals[row], time_ns - cells[last])
        cells[last] = time_ns
    reals[row] += 1.0


@inlined
def _match_row(exchange: Exchange, event: Any) -> int:
    """Apply a row at the exchange; returns the lots of ours that it filled."""
    cells, power = exchange.cells, exchange.reals[ex.POWER]
    book, queue, model = exchange.book, exchange.queue, cells[ex.MODEL]
    if cells[ex.WHOLE]:
        return int(row_matched_whole(book, queue, exchange.touch, event, model, power))
    return int(row_matched(book, queue, event, model, power, cells[ex.WINDOW_LEVELS]))


@inlined
def _skim(
    book: BookState, rows: Events, n: int, rows_ns: int, shift_ns: int, until_ns: int
) -> tuple[int, int]:
    """Rows that meet nothing of ours; returns the next row and the time of the last."""
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
    exchange: Exchange,
    clock: Clock,
    rows: Events,
    more: bool,
    limit_ns: int,
    patience_ns: int,
    stop_at_outcome: bool,
) -> int:
    """Run the exchange up to ``limit_ns``; returns why it came back.

    Rows come before requests at equal times. A request waits until the rows up to its arrival are
    known, or are not expected any more. With ``stop_at_outcome`` it goes no further than the instant
    at which the first outcome reaches us.
    """
    cells, inbox, outbox = exchange.cells, exchange.inbox, exchange.outbox
    active = exchange.latency.kind == ACTIVITY
    plain = not active and not cells[ex.WHOLE]
    known = max(clock[PUSHED_NS] - 1, limit_ns - patience_ns)
    shift, rows_ns, n = cells[ex.SHIFT_NS], cells[ex.ROWS_NS], clock[MATCHED]
    first = cells[ex.HEARD]
    why = -1
    while why < 0:
        if stop_at_outcome and cells[ex.OUTBOX_END] > first:
            limit_ns = min(limit_ns, max(outbox[first, ex.DUE], cells[ex.NOW]))
        head = cells[ex.ARRIVED]
        due = head < cells[ex.INBOX_END] and inbox[head, ex.ARRIVES] <= min(limit_ns, known)
        until = inbox[head, ex.ARRIVES] if due else limit_ns
        filled = 0
        full = False
        if plain and exchange.queue.used[0] + exchange.queue.used[1] == 0:
            n, rows_ns = _skim(exchange.book, rows, n, rows_ns, shift, until)
        while n < len(rows) and filled == 0:
            event = rows[n]
            if event.kind <= _TRADE:
                # Nothing is received before it happened, and the engine's time does not run back.
                happened = max(rows_ns, min(event.exchange_ns + shift, event.receive_ns))
                if happened > until:
                    break
                full = exchange.queue.used[0] > 0 and not finds_room(exchange)
                if full:
                    break
                rows_ns = happened
                if active:
                    _count_row(exchange.reals, ex.MATCHED_ROWS, cells, ex.MATCHED_NS, happened)
                filled = _match_row(exchange, event)
            n += 1
        if filled > 0:
            cells[ex.CLOCK] = max(cells[ex.CLOCK], rows_ns)
            book_fills(exchange)
        elif full:
            why = NO_ROOM
        elif n == len(rows) and more:
            why = MATCHED_ALL
        elif not due:
            cells[ex.CLOCK] = max(cells[ex.CLOCK], min(limit_ns, known))
            why = DONE
        elif not finds_room(exchange):
            why = NO_ROOM
        else:
            cells[ex.CLOCK] = max(cells[ex.CLOCK], until)
            cells[ex.ARRIVED] += 1
            arrive(exchange, inbox[head])
    cells[ex.ROWS_NS], clock[MATCHED], clock[REACHED_NS] = rows_ns, n, limit_ns
    return why


@kernel
def see(
    exchange: Exchange, clock: Clock, local: BookState, rows: Events, more: bool, until_ns: int
) -> int:
    """Bring the local book up to ``until_ns``; returns why it came back."""
    n, cells = clock[SEEN], exchange.cells
    active = exchange.latency.kind == ACTIVITY
    while n < len(rows) and rows[n].receive_ns <= until_ns:
        apply(local, rows[n])
        if rows[n].kind == _TRADE and not rows[n].flags & HIDDEN:
            clock[BOUGHT if rows[n].side > 0 else SOLD] += rows[n].qty_lots
        if active and rows[n].kind <= _TRADE:
            _count_row(exchange.reals, ex.SEEN_ROWS, cells, ex.SEEN_NS, rows[n].receive_ns)
        n += 1
    clock[SEEN] = n
    if n == len(rows) and more:
        return SEEN_ALL
    clock[BID], clock[ASK] = best(local, 1), best(local, -1)
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
    exchange: Exchange,
    clock: Clock,
    local: BookState,
    ahead: Events,
    more_ahead: bool,
    behind: Events,
    more_behind: bool,
    until_ns: int,
    patience_ns: int,
    stop_at_outcome: bool,
    stop_at_touch: bool,
    every_ns: int,
) -> int:
    """Bring the exchange (rows ``ahead``) and our own clock (rows ``behind``) up to ``until_ns``.

    It stops earlier, as asked, at the instant at which an outcome reaches us or at which the touch
    of the local book changes; with ``every_ns`` above zero at the first multiple of it at which
    either has happened since Python was asked last. Returns why it came back; called again it goes
    on.
    """
    cells, outbox = exchange.cells, exchange.outbox
    while True:
        now = cells[ex.NOW]
        turn = max(until_ns, now)
        if every_ns > 0:
            turn = min(turn, (now // every_ns + 1) * every_ns)
        step = turn
        if stop_at_touch:
            # Looked up once: rows that are still to be fetched may belong to the same instant.
            if clock[FRAME_NS] == 0:
                if clock[SEEN] == len(behind) and more_behind:
                    return SEEN_ALL
                clock[FRAME_NS] = max(next_frame_ns(behind, clock[SEEN]), now)
            step = min(step, clock[FRAME_NS])
        why = match(exchange, clock, ahead, more_ahead, step, patience_ns, stop_at_outcome)
        if why != DONE:
            return int(why)
        step = clock[REACHED_NS]
        why = see(exchange, clock, local, behind, more_behind, step)
        if why != DONE:
            return int(why)
        cells[ex.NOW], clock[FRAME_NS] = step, 0
        head = cells[ex.HEARD]
        heard = cells[ex.OUTBOX_END] > head and outbox[head, ex.DUE] <= step
        moved = clock[BID] != clock[TURN_BID] or clock[ASK] != clock[TURN_ASK]
        if every_ns > 0 and (heard or moved) and step == turn:
            break
        if step >= until_ns or (stop_at_outcome and heard) or (stop_at_touch and moved):
            break
    if every_ns > 0 or stop_at_touch:
        clock[TURN_BID], clock[TURN_ASK] = clock[BID], clock[ASK]
    return DONE


@kernel
def run_parts(
    book: BookState,
    touch: Touch,
    resting: npt.NDArray[np.void],
    taken: npt.NDArray[np.void],
    used: npt.NDArray[np.int64],
    orders: npt.NDArray[np.void],
    inbox: npt.NDArray[np.int64],
    outbox: npt.NDArray[np.int64],
    cells: npt.NDArray[np.int64],
    reals: npt.NDArray[np.float64],
    kind: int,
    entry_ns: int,
    response_ns: int,
    busy_ns: int,
    requests: Table,
    answers: Table,
    clock: Clock,
    local: BookState,
    ahead: Events,
    more_ahead: bool,
    behind: Events,
    more_behind: bool,
    until_ns: int,
    patience_ns: int,
    stop_at_outcome: bool,
    stop_at_touch: bool,
    every_ns: int,
) -> int:
    """`run` with the exchange in parts: a tuple from Python costs several times what its parts do."""
    queue = Queue(resting, taken, used)
    latency = Latency(kind, entry_ns, response_ns, busy_ns, requests, answers)
    exchange = Exchange(book, touch, queue, orders, inbox, outbox, cells, reals, latency)
    return int(
        run(
            exchange,
            clock,
            local,
            ahead,
            more_ahead,
            behind,
            more_behind,
            until_ns,
            patience_ns,
            stop_at_outcome,
            stop_at_touch,
            every_ns,
        )
    )
