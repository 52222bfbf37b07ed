"""How long requests and responses travel: constant, as recorded, or longer in a busy market.

A model gives two times: the *entry* latency from sending a request at a local time to its arrival at
the exchange, and the *response* latency from an event at the exchange to our receiving it. Both ways
are first in, first out, which the simulator sees to.

A latency is honest when it was measured on the connection that is traded over: too short a one fills
orders that would have come too late, and cancels in time what would have been hit.

A negative entry latency is a request that never arrived: its rejection is received after the absolute
value. Only recorded latencies have such.

| model    | entry at local time t                  | response at exchange time x               |
|----------|----------------------------------------|-------------------------------------------|
| constant | entry                                  | response                                  |
| recorded | interpolated over the requests' times  | interpolated over the exchange's times    |
| activity | entry + busy × rows received lately    | response + busy × rows matched lately     |

Interpolation is linear between neighbouring records, clamped at both ends, and cut (towards zero) to
whole ns, as hftbacktest does. "Lately" is an exponential mean over `WINDOW_NS`, in thousand rows a
second: book levels and trades, each by the clock of its way, so that a latency never looks ahead.
"""

from __future__ import annotations

from math import exp
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.kernel import kernel
from market.units import SECOND_NS

#: Memory of the activity model.
WINDOW_NS: Final = SECOND_NS

CONSTANT: Final = 0
_RECORDED: Final = 1
ACTIVITY: Final = 2

#: A recorded request: when it was sent, its way to the exchange (`_LOST` when it never arrived), and
#: its round trip.
REQUEST_TIMES: Final = np.dtype([("sent_ns", "i8"), ("entry_ns", "i8"), ("round_trip_ns", "i8")])
#: A recorded response: when it left the exchange, and its way back.
RESPONSE_TIMES: Final = np.dtype([("venue_ns", "i8"), ("response_ns", "i8")])
_LOST: Final = -(1 << 62)

Table = npt.NDArray[np.void]
Times = npt.NDArray[np.int64]


class Latency(NamedTuple):
    """A latency model as kernels take it; make one with `constant`, `recorded` or `activity`."""

    kind: int
    entry_ns: int
    response_ns: int
    #: Extra ns of either way per thousand rows a second.
    busy_ns: int
    requests: Table  #: dtype REQUEST_TIMES
    responses: Table  #: dtype RESPONSE_TIMES


def _model(kind: int, entry_ns: int, response_ns: int, busy_ns: int) -> Latency:
    if min(entry_ns, response_ns, busy_ns) < 0:
        raise ValueError("latencies of the simulator are negative: expected 0 or more ns")
    requests, responses = np.zeros(0, REQUEST_TIMES), np.zeros(0, RESPONSE_TIMES)
    return Latency(kind, entry_ns, response_ns, busy_ns, requests, responses)


def constant(entry_ns: int, response_ns: int) -> Latency:
    """The same latencies always; ValueError when one is negative."""
    return _model(CONSTANT, entry_ns, response_ns, 0)


def activity(entry_ns: int, response_ns: int, busy_ns: int) -> Latency:
    """Latencies that grow by ``busy_ns`` per thousand rows a second; ValueError when negative."""
    return _model(ACTIVITY, entry_ns, response_ns, busy_ns)


def recorded(records: Times) -> Latency:
    """Latencies of recorded requests, shape (n, 3): sent, at the exchange, answered (epoch ns).

    A request whose exchange time is zero was rejected on its way: orders around it are, too. Times of
    sending and at the exchange grow from row to row; ValueError where they do not, where an answer
    precedes its cause, or when no request ever arrived.
    """
    records = np.ascontiguousarray(records, np.int64)
    if records.ndim != 2 or records.shape[1] != 3:
        raise ValueError(f"latency records of shape {records.shape}: expected (n, 3)")
    sent, venue, answered = records.T
    arrived = venue > 0
    if not arrived.any():
        raise ValueError("latency records: no request ever reached the exchange")
    for name, times in (("sending", sent), ("the exchange", venue[arrived])):
        if (rows := np.flatnonzero(np.diff(times) <= 0)).size:
            raise ValueError(
                f"latency records: the time of {name} does not grow after row {int(rows[0])} "
                f"({int(times[rows[0]])}); sort them"
            )
    if (rows := np.flatnonzero(answered < np.maximum(sent, venue))).size:
        raise ValueError(f"latency records: row {int(rows[0])} was answered before its cause")
    requests = np.zeros(len(records), REQUEST_TIMES)
    requests["sent_ns"], requests["round_trip_ns"] = sent, answered - sent
    requests["entry_ns"] = np.where(arrived, venue - sent, _LOST)
    responses = np.zeros(int(arrived.sum()), RESPONSE_TIMES)
    responses["venue_ns"] = venue[arrived]
    responses["response_ns"] = (answered - venue)[arrived]
    return Latency(_RECORDED, 0, 0, 0, requests, responses)


@kernel
def _faded(count: float, elapsed_ns: int) -> float:
    """An exponential count of rows, ``elapsed_ns`` later."""
    return count * exp(-elapsed_ns / WINDOW_NS)


@kernel
def counted(count: float, elapsed_ns: int) -> float:
    """An exponential count of rows, ``elapsed_ns`` after the last one, with one row more."""
    return (float(_faded(count, elapsed_ns)) if elapsed_ns > 0 else count) + 1.0


@kernel
def _rate(count: float, elapsed_ns: int) -> float:
    """Thousand rows a second, from the exponential count."""
    return float(_faded(count, elapsed_ns)) / (WINDOW_NS / SECOND_NS) / 1e3


@kernel
def _last_until(times: Times, time_ns: int) -> int:
    """The last row whose time is not after ``time_ns``; -1 when there is none."""
    low, high = 0, len(times)
    while low < high:
        middle = (low + high) >> 1
        if times[middle] <= time_ns:
            low = middle + 1
        else:
            high = middle
    return low - 1


@kernel
def _interpolated(times: Times, values: Times, row: int, time_ns: int) -> int:
    """A value between ``row`` and the next, cut towards zero from the earlier value."""
    x, y = times[row], values[row]
    slope = (values[row + 1] - y) / (times[row + 1] - x)
    return int(slope * (time_ns - x)) + int(y)


@kernel
def entry_ns(latency: Latency, time_ns: int, count: float, elapsed_ns: int) -> int:
    """From sending at ``time_ns`` to arrival; negative when it is rejected on its way.

    ``count`` is the exponential count of rows received, as it was ``elapsed_ns`` ago.
    """
    if latency.kind == ACTIVITY:
        return latency.entry_ns + int(latency.busy_ns * _rate(count, elapsed_ns))
    if latency.kind == CONSTANT:
        return latency.entry_ns
    requests = latency.requests
    sent, entry = requests["sent_ns"], requests["entry_ns"]
    row = _last_until(sent, time_ns)
    if row < 0 or row == len(requests) - 1:
        row = max(row, 0)
        return int(-requests["round_trip_ns"][row] if entry[row] == _LOST else entry[row])
    if entry[row] == _LOST or entry[row + 1] == _LOST:
        return -int(_interpolated(sent, requests["round_trip_ns"], row, time_ns))
    return int(_interpolated(sent, entry, row, time_ns))


@kernel
def response_ns(latency: Latency, time_ns: int, count: float, elapsed_ns: int) -> int:
    """From an event at the exchange to our receiving it; ``count`` is of the rows matched."""
    if latency.kind == ACTIVITY:
        return latency.response_ns + int(latency.busy_ns * _rate(count, elapsed_ns))
    if latency.kind == CONSTANT:
        return latency.response_ns
    responses = latency.responses
    row = _last_until(responses["venue_ns"], time_ns)
    if row < 0 or row == len(responses) - 1:
        return int(responses["response_ns"][max(row, 0)])
    return int(_interpolated(responses["venue_ns"], responses["response_ns"], row, time_ns))
