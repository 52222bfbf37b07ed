"""What each topic has said so far, kept in the venue's own words.

A recorder needs it for two things: to notice at once that a topic can no longer be followed, so that
it is asked for anew, and to open a file with the state the stream was in. Prices and quantities stay
the text that came, so that no instrument's grid has a say in what can be recorded.

    book frame                          becomes
    snapshot                            the book; with the same ``u`` again it is a repeat
    delta, ``u`` = last + 1             applied
    delta, ``u`` <= last                a duplicate
    delta, ``u`` > last + 1             a gap: stale until the next snapshot
    crossed or overfull                 broken: stale until the next snapshot; looked for by `check`
    unreadable                          stale until the next snapshot
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from market.wire.topics import BOOK_STEM, TICKER_STEM, parse, topic_in

#: A book may hold so many more levels than its topic's depth before it counts as overfull.
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
    """One topic's stream: what was counted, and whether it can be followed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames = 0
        self.unreadable = 0
        self.last_ns = 0  #: receive time of the last frame

    @property
    def stale(self) -> bool:
        """Whether the state is not known, so that only a new snapshot helps."""
        return False

    def follow(self, frame: bytes) -> None:
        """Take a frame of this topic."""

    def forget(self) -> None:
        """The connection is gone: what is held no longer holds."""

    def state(self) -> object | None:
        """The ``data`` of a checkpoint, None when nothing is held."""
        return None


class BookTopic(Topic):
    """A book topic: on either side the size by price, both in the venue's text."""

    def __init__(self, name: str, depth: int, symbol: str) -> None:
        super().__init__(name)
        self.symbol = symbol
        self.limit = depth + SLACK
        self.bids: dict[str, str] = {}
        self.asks: dict[str, str] = {}
        self.update_id = 0
        self.held = False
        self.duplicates = self.repeats = self.gaps = self.broken = 0

    @property
    def stale(self) -> bool:
        return not self.held

    def follow(self, frame: bytes) -> None:
        try:
            content = _book_frame(frame)
        except msgspec.MsgspecError:
            self.unreadable += 1
            self.held = False
            return
        data = content.data
        if content.type == "snapshot":
            self.repeats += self.held and data.u == self.update_id
            self.bids, self.asks = dict(data.b), dict(data.a)
            self.held = True
        elif not self.held:
            return
        elif data.u <= self.update_id:
            self.duplicates += 1
            return
        elif data.u != self.update_id + 1:
            self.gaps += 1
            self.held = False
            return
        else:
            _apply(self.bids, data.b)
            _apply(self.asks, data.a)
        self.update_id = data.u

    def check(self) -> None:
        """Go stale when the book is crossed, overfull or no book at all.

        Whoever follows calls it now and then: what breaks a book stays in it, and to look after
        every frame would cost more than to follow it.
        """
        if not self.held:
            return
        try:
            crossed = max(map(float, self.bids), default=-math.inf) >= min(
                map(float, self.asks), default=math.inf
            )
        except ValueError:
            crossed = True
        if crossed or max(len(self.bids), len(self.asks)) > self.limit:
            self.broken += 1
            self.held = False

    def forget(self) -> None:
        self.held = False

    def state(self) -> object | None:
        self.check()
        if not self.held:
            return None
        return {
            "s": self.symbol,
            "b": sorted(self.bids.items(), key=_price, reverse=True),
            "a": sorted(self.asks.items(), key=_price),
            "u": self.update_id,
        }


def _apply(levels: dict[str, str], changes: list[tuple[str, str]]) -> None:
    for price, size in changes:
        # A size that begins with another digit than 0 is not zero, which settles most of them.
        if size[:1] != "0" or size.strip("0."):
            levels[price] = size
        else:
            levels.pop(price, None)


def _price(level: tuple[str, str]) -> float:
    return float(level[0])


class TickerTopic(Topic):
    """A ticker topic: fields as last sent."""

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
    """The topics of one connection."""

    def __init__(self, names: list[str]) -> None:
        self.topics: dict[str, Topic] = {name: _topic(name) for name in names}
        #: Frames of no topic that was asked for: replies, strangers, garbage.
        self.others = 0

    def follow(self, receive_ns: int, frame: bytes) -> Topic | None:
        """Take a frame; returns its topic, None when it is of none that was asked for."""
        topic = self.topics.get(topic_in(frame, 4096))
        if topic is None:
            self.others += 1
            return None
        topic.frames += 1
        topic.last_ns = receive_ns
        topic.follow(frame)
        return topic

    def forget(self) -> None:
        for topic in self.topics.values():
            topic.forget()

    def checkpoints(self) -> list[bytes]:
        """Control lines that restate what is held."""
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
