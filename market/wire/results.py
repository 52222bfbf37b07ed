"""What a decoder returns: event rows, counts by topic, rejected lines and control lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from market.events import Events
from market.wire.capture import Block


class Reject(msgspec.Struct, frozen=True):
    """A line that was not converted. ``symbol`` and ``topic`` are empty when the text names none.

    ``line`` counts from 1 in the capture (0 for a live frame); ``raw`` is the line as received.
    """

    line: int
    reason: str
    detail: str
    symbol: str
    topic: str
    raw: bytes


class Control(msgspec.Struct, frozen=True):
    """A control line: when, where, and its fields (``l2`` says which kind it is)."""

    receive_ns: int
    line: int
    fields: dict[str, Any]


class TopicCounts(msgspec.Struct, frozen=True):
    """Counts of one topic. Lags are receive − exchange time; None when no row was made.

    ``frames`` counts accepted frames, duplicates included; ``steps_back`` those whose receive time is
    before an earlier frame's, ``left_out`` those of them that have no time: over a second before.
    """

    frames: int = 0
    events: int = 0
    rejected: int = 0
    duplicates: int = 0
    gaps: int = 0
    steps_back: int = 0
    left_out: int = 0
    min_lag_ns: int | None = None
    max_lag_ns: int | None = None

    def __add__(self, other: TopicCounts) -> TopicCounts:
        lows = [n.min_lag_ns for n in (self, other) if n.min_lag_ns is not None]
        highs = [n.max_lag_ns for n in (self, other) if n.max_lag_ns is not None]
        return TopicCounts(
            self.frames + other.frames,
            self.events + other.events,
            self.rejected + other.rejected,
            self.duplicates + other.duplicates,
            self.gaps + other.gaps,
            self.steps_back + other.steps_back,
            self.left_out + other.left_out,
            min(lows, default=None),
            max(highs, default=None),
        )


class Decoded(msgspec.Struct, frozen=True):
    """What lines became: event rows (dtype ``EVENT``) by symbol, in stream order, and the counts.

    ``counts`` is by topic and has every topic that was seen, also those that are not converted;
    replies to our own requests count as ``op.<name>``, and topics after a thousand names as
    ``other``. ``rest`` has the lines that `Decoder.decode_part` left for the next call, None when it
    took all; ``reached`` says that the first of them was received at or after the end time.
    """

    events: dict[str, Events]
    counts: dict[str, TopicCounts]
    rejects: tuple[Reject, ...] = ()
    controls: tuple[Control, ...] = ()
    lines: int = 0
    rest: Block | None = None
    reached: bool = False

    @property
    def duplicates(self) -> int:
        return sum(counts.duplicates for counts in self.counts.values())

    @property
    def gaps(self) -> int:
        return sum(counts.gaps for counts in self.counts.values())

    @property
    def left_out(self) -> int:
        return sum(counts.left_out for counts in self.counts.values())

    @property
    def steps_back(self) -> int:
        return sum(counts.steps_back for counts in self.counts.values())


def joined(parts: Sequence[Decoded]) -> Decoded:
    """Consecutive results as one."""
    if len(parts) == 1:
        return parts[0]
    events: dict[str, list[Events]] = {}
    counts: dict[str, TopicCounts] = {}
    for part in parts:
        for symbol, rows in part.events.items():
            events.setdefault(symbol, []).append(rows)
        for topic, count in part.counts.items():
            counts[topic] = counts.get(topic, TopicCounts()) + count
    return Decoded(
        {symbol: np.concatenate(rows) for symbol, rows in events.items()},
        counts,
        tuple(reject for part in parts for reject in part.rejects),
        tuple(control for part in parts for control in part.controls),
        sum(part.lines for part in parts),
    )
