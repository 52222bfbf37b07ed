"""The compiled reader: lines of the venue's own compact JSON, read byte by byte into event rows.

It reads the plain form of a frame only. A line that differs (white space, an escape, an unknown key,
a price off the grid, an unknown topic) is left to `market.wire.decode`, whose reference reader alone
decides what is rejected and why.

Frames of topics that are not converted (other depths of the book, other kinds of topics) are checked
to be whole, counted, and skipped, once the reference has read a first frame of the topic.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from market.events import Events
from market.kernel import kernel
from market.units import MS_NS
from market.wire import payload
from market.wire.jsontext import (
    CLOSE_OBJECT,
    COMMA,
    NEWLINE,
    OPEN_OBJECT,
    SPACE,
    Text,
    integer,
    key_at,
    packed,
    same,
    starts,
    string_end,
    value_end,
)
from market.wire.stream import (
    ACCEPTED,
    BAD_RECEIVE_TIME,
    BAD_VENUE_TIME,
    BEYOND_END,
    MAX_LAG_NS,
    MAX_MS,
    Head,
    Tables,
    accept,
)
from market.wire.topics import BOOK, FAMILIES, TICKER

#: Why `scan_lines` returned: at the end of the text; before a line that the reference must read, that does
#: not fit into the buffer, or that was received at or after the time to read up to.
DONE, UNUSUAL, FULL, REACHED = range(4)

_L2 = packed("l2")[0]
_TOPIC = packed("topic")[0]
_TYPE = packed("type")[0]
_TS = packed("ts")[0]
_CTS = packed("cts")[0]
_CS = packed("cs")[0]
_DATA = packed("data")[0]

_SNAPSHOT: Final = np.frombuffer(b'"snapshot"', np.uint8)
_DELTA: Final = np.frombuffer(b'"delta"', np.uint8)


@kernel
def _place_of(topics: Any, text: Text, start: int, stop: int) -> int:
    """The place of the topic named ``text[start:stop]``, -1 when it is none of these."""
    for n in range(len(topics)):
        if same(text, start, stop, topics[n].name, 0, topics[n].name_size):
            return n
    return -1


@kernel
def _skip_frame(
    topic: Any, clock: Any, text: Text, at: int, end: int, receive_ns: int, until_ns: int
) -> tuple[int, int]:
    """A frame, from ``at`` on, of a topic that is not converted; (status, position after).

    A frame whose topic or time is given twice, or not at all, or which could be a control line, is
    UNUSUAL.
    """
    sent_ms = 0
    seen = 0
    while True:
        low, high, at = key_at(text, at + 1, end)
        if at < 0 or (high == 0 and low == _L2):
            return UNUSUAL, at
        bit = 0
        if high == 0 and low == _TS:
            bit = 1
            sent_ms, at = integer(text, at, end)
        else:
            if high == 0 and low == _TOPIC:
                bit = 2
            at = value_end(text, at, end)
        if at < 0 or at >= end or seen & bit:
            return UNUSUAL, at
        seen |= bit
        if text[at] == CLOSE_OBJECT:
            break
        if text[at] != COMMA:
            return UNUSUAL, at
    at += 1
    if seen != 3 or sent_ms > MAX_MS or (at < end and text[at] != NEWLINE):
        return UNUSUAL, at
    step_back = receive_ns < clock[0]
    # A receive time that lies far after the venue's own would push the running maximum with it.
    if receive_ns - sent_ms * MS_NS <= MAX_LAG_NS:
        now = max(clock[0], receive_ns)
        if now >= until_ns:
            return REACHED, at
        clock[0] = now
    topic.counts.frames += 1
    topic.counts.steps_back += step_back
    return DONE, at


@kernel
def _frame(
    tables: Tables,
    text: Text,
    at: int,
    end: int,
    receive_ns: int,
    until_ns: int,
    rows: Events,
    first: int,
) -> tuple[int, int, int, int]:
    """One frame; (status, topic, rows written so far, position after the frame).

    Topics that are not converted are numbered after those that are.
    """
    if at >= end or text[at] != OPEN_OBJECT:
        return UNUSUAL, 0, first, at
    begin = at
    n = first
    index = -1
    publish_ms = 0
    exchange_ms = 0
    update_id = 0
    is_snapshot = False
    seen = 0
    while True:
        low, high, at = key_at(text, at + 1, end)
        if at < 0 or at >= end or high != 0:
            return UNUSUAL, 0, first, at
        if low == _TOPIC:
            bit = 1
            start = at + 1
            at = string_end(text, at, end)
            if at < 0:
                return UNUSUAL, 0, first, at
            index = _place_of(tables.topics, text, start, at - 1)
            if index < 0:
                place = _place_of(tables.passed, text, start, at - 1)
                if place < 0:
                    return UNUSUAL, 0, first, at
                status, at = _skip_frame(
                    tables.passed[place], tables.clock, text, begin, end, receive_ns, until_ns
                )
                return status, len(tables.topics) + place, first, at
        elif low == _TYPE:
            bit = 2
            is_snapshot = starts(text, at, end, _SNAPSHOT)
            if not is_snapshot and not starts(text, at, end, _DELTA):
                return UNUSUAL, 0, first, at
            at += len(_SNAPSHOT) if is_snapshot else len(_DELTA)
        elif low == _TS:
            bit = 4
            publish_ms, at = integer(text, at, end)
        elif low == _CTS:
            bit = 8
            exchange_ms, at = integer(text, at, end)
        elif low == _CS:
            bit = 16
            _, at = integer(text, at, end)
        elif low == _DATA and index >= 0:
            bit = 32
            family = index % FAMILIES
            topic = tables.topics[index]
            if seen & bit or (family in (BOOK, TICKER) and text[at] != OPEN_OBJECT):
                return UNUSUAL, 0, first, at
            if family == BOOK:
                update_id, n, at = payload.book(topic, text, at, end, rows, n)
            elif family == TICKER:
                n, at = payload.ticker(topic, text, at, end, rows, n)
            else:
                n, at = payload.prints(topic, text, at, end, rows, n)
            if at == payload.NO_ROOM:
                return FULL, 0, first, at
        else:
            return UNUSUAL, 0, first, at
        if at < 0 or at >= end or seen & bit:
            return UNUSUAL, 0, first, at
        seen |= bit
        if text[at] == CLOSE_OBJECT:
            break
        if text[at] != COMMA:
            return UNUSUAL, 0, first, at
    at += 1
    if seen & 39 != 39 or publish_ms > MAX_MS or exchange_ms > MAX_MS:
        return UNUSUAL, 0, first, at
    if at < end and text[at] != NEWLINE:
        return UNUSUAL, 0, first, at
    exchange_ms = exchange_ms if seen & 8 else publish_ms
    head = Head(receive_ns, publish_ms * MS_NS, exchange_ms * MS_NS, update_id, is_snapshot, 0)
    verdict = accept(tables, index, rows, first, n, head, until_ns)
    if verdict in (BAD_RECEIVE_TIME, BAD_VENUE_TIME):
        return UNUSUAL, index, first, at
    if verdict == BEYOND_END:
        return REACHED, index, first, at
    return DONE, index, n if verdict == ACCEPTED else first, at


@kernel
def scan_lines(
    tables: Tables,
    text: Text,
    at: int,
    received_ns: int,
    until_ns: int,
    rows: Events,
    symbols: Text,
    n: int,
) -> tuple[int, int, int, int, int]:
    """Lines from ``at`` on, rows from ``n`` on; (status, position, rows written, lines, last topic).

    ``symbols[k]`` is the symbol of row k. With ``received_ns`` the text is one frame that was
    received then, without a time or a newline.
    """
    end = len(text)
    lines = 0
    topic = 0
    while at < end:
        receive_ns = received_ns
        body = at
        if received_ns == 0:
            receive_ns, body = integer(text, at, end)
            if body < 0 or body >= end or text[body] != SPACE or receive_ns == 0:
                return UNUSUAL, at, n, lines, topic
            body += 1
        status, topic, stop, after = _frame(tables, text, body, end, receive_ns, until_ns, rows, n)
        if status != DONE:
            return status, at, n, lines, topic
        for k in range(n, stop):
            symbols[k] = topic // FAMILIES
        n = stop
        at = after + 1
        lines += 1
    return DONE, at, n, lines, topic
