"""How long requests and answers travel: constant, as recorded, or longer in a busy market.

A model gives two times: *entry*, from sending a request at a local time to its arrival at the
exchange, and *response*, from an event at the exchange to our hearing of it. Both ways are first in,
first out, which is the simulator's part: nothing overtakes what was sent before it.

A negative entry latency is a request that never arrived: its refusal is heard after the absolute
value. Only recorded latencies have such.

| model    | entry at local time t                  | response at exchange time x               |
|----------|----------------------------------------|-------------------------------------------|
| constant | entry                                  | response                                  |
| recorded | interpolated over the requests' times  | interpolated over the exchange's times    |
| activity | entry + busy × rows received lately    | response + busy × rows matched lately     |

Interpolation is linear between neighbouring records, clamped at both ends, and cut (towards zero) to
whole ns, as hftbacktest does. "Lately" is an exponential mean over `WINDOW_NS`, in thousand rows a
second: book levels and trades, each at the clock of its way, so that a latency never depends on what
is still to come.
"""

from __future__ import annotations

from math import exp
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.kernel import kernel

#: Memory of the activity model.
WINDOW_NS: Final = 1_000_000_000

CONSTANT: Final = 0
_RECORDED: Final = 1
ACTIVITY: Final = 2

#: Columns of a recorded request: when it was sent, its way to the exchange (`_LOST` when it never
#: arrived), and how long until we heard of it.
_SENT: Final = 0
_WAY: Final = 1
_ROUND: Final = 2
_LOST: Final = -(1 << 62)

Table = npt.NDArray[np.int64]


class Latency(NamedTuple):
    """A latency model as kernels take it; make one with `constant`, `recorded` or `activity`."""

    kind: int
    entry_ns: int
    response_ns: int
    #: Extra ns of either way per thousand rows a second.
    busy_ns: int
    requests: Table  #: (n, 3): sent, way there, round trip
    answers: Table  #: (m, 2): exchange time, way back


def _model(kind: int, entry_ns: int, response_ns: int, busy_ns: int) -> Latency:
    if min(entry_ns, response_ns, busy_ns) < 0:
        raise ValueError("latencies of the simulator are negative: expected 0 or more ns")
    none = np.zeros((0, 3), np.int64)
    return Latency(kind, entry_ns, response_ns, busy_ns, none, np.zeros((0, 2), np.int64))


def constant(entry_ns: int, response_ns: int) -> Latency:
    """The same latencies always; ValueError when one is negative."""
    return _model(CONSTANT, entry_ns, response_ns, 0)


def activity(entry_ns: int, response_ns: int, busy_ns: int) -> Latency:
    """Latencies that grow by ``busy_ns`` per thousand rows a second; ValueError when negative."""
    return _model(ACTIVITY, entry_ns, response_ns, busy_ns)


def recorded(records: Table) -> Latency:
    """Latencies of recorded requests, shape (n, 3): sent, at the exchange, answered (epoch ns).

    A request whose exchange time is zero was refused on its way: orders around it are refused, too.
    Times of sending and at the exchange grow from row to row; ValueError where they do not, where an
    answer precedes its cause, or when no request ever arrived.
    """
    records = np.ascontiguousarray(records, np.int64)
    if records.ndim != 2 or records.shape[1] != 3:
        raise ValueError(f"latency records of shape {records.shape}: expected (n, 3)")
    arrived = records[records[:, 1] > 0]
    if len(arrived) == 0:
        raise ValueError("latency records: no request ever reached the exchange")
    for name, times in (("sending", records[:, 0]), ("the exchange", arrived[:, 1])):
        if (places := np.flatnonzero(np.diff(times) <= 0)).size:
            raise ValueError(
                f"latency records: the time of {name} does not grow after row {int(places[0])} "
                f"({int(times[places[0]])}); sort them"
            )
    heard = np.maximum(records[:, 0], records[:, 1])
    if (places := np.flatnonzero(records[:, 2] < heard)).size:
        raise ValueError(f"latency records: row {int(places[0])} was answered before its cause")
    way = np.where(records[:, 1] > 0, records[:, 1] - records[:, 0], _LOST)
    requests = np.column_stack([records[:, 0], way, records[:, 2] - records[:, 0]])
    answers = np.column_stack([arrived[:, 1], arrived[:, 2] - arrived[:, 1]])
    return Latency(_RECORDED, 0, 0, 0, requests, answers)


@kernel
def _before(table: Table, time_ns: int) -> int:
    """The last row whose time is not after ``time_ns``; -1 when there is none."""
    low, high = 0, len(table)
    while low < high:
        middle = (low + high) >> 1
        if table[middle, 0] <= time_ns:
            low = middle + 1
        else:
            high = middle
    return low - 1


@kernel
def _between(table: Table, place: int, column: int, time_ns: int) -> int:
    """A column between row ``place`` and the next, cut towards zero from the earlier value."""
    x, y = table[place, 0], table[place, column]
    slope = (table[place + 1, column] - y) / (table[place + 1, 0] - x)
    return int(slope * (time_ns - x)) + int(y)


@kernel
def entry_ns(latency: Latency, time_ns: int, rate: float) -> int:
    """From sending at ``time_ns`` to arrival; negative when it is refused on its way.

    ``rate`` is that of `rate_at`, at the receive clock.
    """
    requests = latency.requests
    if latency.kind != _RECORDED:
        return latency.entry_ns + int(latency.busy_ns * rate)
    place = _before(requests, time_ns)
    if place < 0 or place == len(requests) - 1:
        place = max(place, 0)
        way = requests[place, _WAY]
        return int(-requests[place, _ROUND] if way == _LOST else way)
    if requests[place, _WAY] == _LOST or requests[place + 1, _WAY] == _LOST:
        return -int(_between(requests, place, _ROUND, time_ns))
    return int(_between(requests, place, _WAY, time_ns))


@kernel
def response_ns(latency: Latency, time_ns: int, rate: float) -> int:
    """From an event at the exchange to our hearing of it; ``rate`` at the exchange's clock."""
    answers = latency.answers
    if latency.kind != _RECORDED:
        return latency.response_ns + int(latency.busy_ns * rate)
    place = _before(answers, time_ns)
    if place < 0 or place == len(answers) - 1:
        return int(answers[max(place, 0), 1])
    return int(_between(answers, place, 1, time_ns))


@kernel
def faded(count: float, elapsed_ns: int) -> float:
    """An exponential count of rows, ``elapsed_ns`` later."""
    return count * exp(-elapsed_ns / WINDOW_NS)


@kernel
def rate_at(count: float, elapsed_ns: int) -> float:
    """Thousand rows a second, from the exponential count."""
    return float(faded(count, elapsed_ns)) / (WINDOW_NS / 1e9) / 1e3
