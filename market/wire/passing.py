"""Frames of topics that are not converted: read whole, counted, and left.

A recorder keeps more than what becomes events: other depths of the book, other kinds of topics.
`market.wire.decode` names here each such topic once it has passed a frame of it by the reference;
from then on the compiled reader checks that a frame is whole, counts it, and keeps its time.
"""

from __future__ import annotations

from market.kernel import kernel
from market.wire.jsontext import Text, integer, key_at, packed, same, value_end
from market.wire.stream import DONE, MAX_LAG_NS, MAX_MS, REACHED, UNUSUAL, Passed, Words

_L2 = packed("l2")[0]
_TOPIC = packed("topic")[0]
_TS = packed("ts")[0]


@kernel
def passed_topic(passed: Passed, text: Text, start: int, stop: int) -> int:
    """The place of the topic ``text[start:stop]`` among those that pass, -1 when it is none."""
    for n in range(len(passed.topic_size)):
        if same(text, start, stop, passed.topic[n], 0, passed.topic_size[n]):
            return n
    return -1


@kernel
def pass_by(
    passed: Passed,
    topic: int,
    clock: Words,
    text: Text,
    at: int,
    end: int,
    receive_ns: int,
    until_ns: int,
) -> tuple[int, int]:
    """One frame, from ``at`` on, of the topic at a place of those that pass; (status, position after).

    A frame whose topic or time is given twice, or not at all, or which could be a control line, is
    UNUSUAL: the reference knows what it means.
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
        if text[at] == 125:
            break
        if text[at] != 44:
            return UNUSUAL, at
    at += 1
    if seen != 3 or sent_ms > MAX_MS or (at < end and text[at] != 10):
        return UNUSUAL, at
    step_back = receive_ns < clock[0]
    # A receive time that lies far after the venue's own would push the running maximum with it.
    if receive_ns - sent_ms * 1_000_000 <= MAX_LAG_NS:
        now = max(clock[0], receive_ns)
        if now >= until_ns:
            return REACHED, at
        clock[0] = now
    passed.counts[topic, 0] += 1
    passed.counts[topic, 1] += step_back
    return DONE, at
