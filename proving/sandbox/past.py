"""The frames of the recent past, so that a client that comes is warm at once.

Frames are kept as a capture (zstd of lines ``<receive ns> <frame>``), a piece a minute; each piece begins
with snapshots, so that a reader may begin with any. The receive time is a millisecond after a frame's ``ts``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import zstandard

from market.units import MINUTE_NS, MS_NS, SECOND_NS
from market.wire.topics import book_topic, symbol_topics
from proving.sandbox.tape import PublicTape

#: Depths of the books that are kept.
DEPTHS: Final = (50, 200)
_STEM: Final = b'{"topic":"'
_TS: Final = b'"ts":'
_TS_DIGITS: Final = 13


class Past:
    """The frames of the last ``kept_s`` seconds of all topics that a worker reads."""

    def __init__(self, kept_s: int, symbols: Iterable[str]) -> None:
        self.topics: frozenset[str] = frozenset(
            topic
            for symbol in symbols
            for topic in (
                *symbol_topics(symbol, DEPTHS[0]),
                *(book_topic(depth, symbol) for depth in DEPTHS),
            )
            if kept_s
        )
        #: (when it begins, compressed lines), oldest first
        self._pieces: deque[tuple[int, bytes]] = deque(
            maxlen=-(-kept_s * SECOND_NS // MINUTE_NS) + 1
        )
        self._begins_ns = 0  #: of the piece that is being written
        self._lines: list[tuple[int, bytes]] = []

    def put(self, topic: str, frame: bytes) -> None:
        """Keep a frame."""
        if self._begins_ns and topic in self.topics:
            self._lines.append((max(_sent_ns(frame) + MS_NS, self._begins_ns), frame))

    def follow(self, tapes: Mapping[str, PublicTape], now_ns: int) -> None:
        """Begin another piece when a minute has passed; call at least so often."""
        if not self.topics or now_ns - self._begins_ns < MINUTE_NS:
            return
        if self._begins_ns:
            self._pieces.append((self._begins_ns, zstandard.compress(self._text(), 3)))
            # A frame of the last moment may be dated after this one: times do not step back.
            now_ns = max(now_ns, *(received_ns for received_ns, _ in self._lines))
        self._begins_ns, self._lines = now_ns, []
        for tape in tapes.values():
            for topic in sorted(self.topics):
                if topic.endswith(f".{tape.symbol}") and (frame := tape.snapshot(topic, now_ns)):
                    self._lines.append((now_ns, frame))

    def _text(self) -> bytes:
        """The piece that is being written, in order of time; topics keep their order."""
        lines = sorted(self._lines, key=lambda line: line[0])
        return b"".join(b"%d %s\n" % line for line in lines)

    def capture(self, topics: Collection[str], since_ns: int) -> bytes:
        """The frames of topics from a time or up to a minute before it on, as a capture."""
        starts = [begins_ns for begins_ns, _ in self._pieces if begins_ns <= since_ns]
        pieces = [piece for begins_ns, piece in self._pieces if begins_ns >= max(starts, default=0)]
        text = b"".join(map(zstandard.decompress, pieces)) + self._text()
        wanted = {topic.encode() for topic in topics}
        lines = (line for line in text.splitlines(keepends=True) if _topic(line) in wanted)
        return zstandard.compress(b"".join(lines), 1)

    def unknown(self, topics: Iterable[str]) -> list[str]:
        """The topics that are not kept."""
        return [topic for topic in topics if topic not in self.topics]


def _sent_ns(frame: bytes) -> int:
    at = frame.rindex(_TS) if frame.startswith(_STEM + b"tickers") else frame.index(_TS)
    return int(frame[at + len(_TS) : at + len(_TS) + _TS_DIGITS]) * MS_NS


def _topic(line: bytes) -> bytes:
    at = line.index(_STEM) + len(_STEM)
    return line[at : line.index(b'"', at)]
