"""The current state of each topic, in the venue's own text.

The recorder uses it to detect that a topic is out of sync and must be resubscribed, and to open a file
with checkpoints. Prices and sizes stay text as received, so that recording needs no tick or lot.

    book frame                          effect
    snapshot                            replaces the book; with an unchanged ``u`` counted as a repeat
    delta, ``u`` = last + 1             applied
    delta, ``u`` <= last                ignored as a duplicate
    delta, ``u`` > last + 1             sequence gap: stale until the next snapshot
    crossed, or too many levels         broken, found by `check`: stale until the next snapshot
    unreadable                          stale until the next snapshot
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from market.wire.topics import BOOK_STEM, TICKER_STEM, parse, topic_in

#: Levels a side beyond the topic's depth before a book counts as broken.
SLACK: Final = 20


class _BookData(msgspec.Struct):
    u: int
    b: list[tuple[str, str]] = []
    a: list[tuple[str, str]] = []
    s: str = ""


class _BookFrame(msgspec.Struct):
    type: str
    data: _BookData


class _TickerFrame(msgspec.Struct):
    type: str
    data: dict[str, Any]


_book_frame = msgspec.json.Decoder(_BookFrame).decode
_ticker_frame = msgspec.json.Decoder(_TickerFrame).decode


class Topic:
    """A topic that has no state: counts frames. Base of the others."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames = 0
        self.unreadable = 0
        self.last_ns = 0  #: receive time of the last frame

    @property
    def stale(self) -> bool:
        """Whether the state is unknown until the next snapshot."""
        return False

    def follow(self, frame: bytes) -> None:
        """Apply a frame of this topic."""

    def forget(self) -> None:
        """The connection is lost, and the state with it."""

    def state(self) -> object | None:
        """The ``data`` of a checkpoint, None when the state is unknown."""
        return None


class BookTopic(Topic):
    """A book topic: sizes by price for each side, both in the venue's text."""

    def __init__(self, name: str, depth: int, symbol: str) -> None:
        super().__init__(name)
        self.symbol = symbol
        self.limit = depth + SLACK
        self.bids: dict[str, str] = {}
        self.asks: dict[str, str] = {}
        self.update_id = 0
        self.synchronised = False
        self.duplicates = self.repeats = self.gaps = self.broken = 0

    @property
    def stale(self) -> bool:
        return not self.synchronised

    def follow(self, frame: bytes) -> None:
        try:
            content = _book_frame(frame)
        except msgspec.MsgspecError:
            self.unreadable += 1
            self.synchronised = False
            return
        data = content.data
        if content.type == "snapshot":
            self.repeats += self.synchronised and data.u == self.update_id
            self.bids, self.asks = dict(data.b), dict(data.a)
            self.synchronised = True
        elif not self.synchronised:
            return
        elif data.u <= self.update_id:
            self.duplicates += 1
            return
        elif data.u != self.update_id + 1:
            self.gaps += 1
            self.synchronised = False
            return
        else:
            _apply(self.bids, data.b)
            _apply(self.asks, data.a)
        self.update_id = data.u

    def check(self) -> None:
        """Go stale if the book is crossed, has too many levels or a price that is no number.

        Called about once a second: a broken book stays broken, and checking every frame would cost
        more than applying it.
        """
        if not self.synchronised:
            return
        try:
            crossed = max(map(float, self.bids), default=-math.inf) >= min(
                map(float, self.asks), default=math.inf
            )
        except ValueError:
            crossed = True
        if crossed or max(len(self.bids), len(self.asks)) > self.limit:
            self.broken += 1
            self.synchronised = False

    def forget(self) -> None:
        self.synchronised = False

    def state(self) -> object | None:
        self.check()
        if not self.synchronised:
            return None
        return {
            "s": self.symbol,
            "b": sorted(self.bids.items(), key=_price, reverse=True),
            "a": sorted(self.asks.items(), key=_price),
            "u": self.update_id,
        }


def _apply(levels: dict[str, str], changes: list[tuple[str, str]]) -> None:
    for price, size in changes:
        # Fast path: most sizes start with a digit other than 0.
        if size[:1] != "0" or size.strip("0."):
            levels[price] = size
        else:
            levels.pop(price, None)


def _price(level: tuple[str, str]) -> float:
    return float(level[0])


class TickerTopic(Topic):
    """A ticker topic: the latest value of each field."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.fields: dict[str, Any] = {}

    def follow(self, frame: bytes) -> None:
        try:
            content = _ticker_frame(frame)
        except (msgspec.MsgspecError, ValueError):
            self.unreadable += 1
            return
        if content.type == "snapshot":
            self.fields = {}
        self.fields.update(content.data)

    def forget(self) -> None:
        self.fields = {}

    def state(self) -> object | None:
        return self.fields or None


class Replica:
    """The subscribed topics of one connection."""

    def __init__(self, names: list[str]) -> None:
        self.topics: dict[str, Topic] = {name: _topic(name) for name in names}
        #: Frames of no subscribed topic: replies, unknown topics, garbage.
        self.others = 0

    def follow(self, receive_ns: int, frame: bytes) -> Topic | None:
        """Apply a frame; returns its topic, None when it is not a subscribed one."""
        topic = self.topics.get(topic_in(frame, 4096))
        if topic is None:
            self.others += 1
            return None
        topic.frames += 1
        topic.last_ns = receive_ns
        topic.follow(frame)
        return topic

    def forget(self) -> None:
        """The connection is lost, and the state of every topic with it."""
        for topic in self.topics.values():
            topic.forget()

    def checkpoints(self) -> list[bytes]:
        """Checkpoint lines of every topic whose state is known."""
        return [
            msgspec.json.encode({"l2": "checkpoint", "topic": topic.name, "data": state})
            for topic in self.topics.values()
            if (state := topic.state()) is not None
        ]


def _topic(name: str) -> Topic:
    parts = parse(name)
    if parts is not None and parts.stem == BOOK_STEM:
        return BookTopic(name, int(parts.argument), parts.symbol)
    return TickerTopic(name) if parts is not None and parts.stem == TICKER_STEM else Topic(name)
