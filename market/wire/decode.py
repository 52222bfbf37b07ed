"""Bybit V5 public frames → event rows, exactly, with every refusal named and located.

`Decoder` keeps what a stream needs to be understood: the running maximum of receive time, the last
``u`` of each book topic, and the grid (tick and lot) of each symbol. Blocks of a capture and single
live frames go through the same rules:

    frame of a book topic            becomes
    snapshot, any ``u``              SNAPSHOT rows, the first flagged FIRST: the book begins anew
    delta, ``u`` = last + 1          DELTA rows
    delta, ``u`` <= last             nothing; counted as a duplicate
    delta, ``u`` > last + 1, or before any snapshot, or first after a disconnect or a rejected frame
                                     DELTA rows, the first flagged GAP

Well-formed frames are read by the compiled `market.wire.scanner`; everything else by `market.wire.reference`,
which reads the same frames to the same rows and is the only place where a frame is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from market.events import Events, Flag
from market.instruments import BUILT_IN, Instrument
from market.wire import reference, scanner, stream
from market.wire.capture import Block
from market.wire.reference import Quote, RejectedError, field_in, quote_of, text_in, whole_in
from market.wire.stream import BOOK, FAMILIES, LIQUIDATION, TICKER, TRADE, Words

#: Rows that the scanner fills before they are handed on: 16 MB.
_BUFFER_ROWS: Final = 1 << 18
#: Rejections of one part; a block of garbage comes in several parts, so that memory stays bounded.
_PART_REJECTS: Final = 10_000
#: Topics that are not converted, counted by name; all further ones of a stream count as one, so that
#: a flood of names stays bounded. No topic's own name is without a dot.
_MAX_OTHERS: Final = 1000
OTHER: Final = "other"

_TOPIC_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:\.[A-Za-z0-9_-]+)+")
_TOPIC_IN_TEXT: Final = re.compile(rb'"topic"\s*:\s*"([A-Za-z0-9._-]{1,64})"')


class Reject(msgspec.Struct, frozen=True):
    """A line that was not converted. ``symbol`` and ``topic`` are empty when they cannot be told.

    ``line`` counts from 1 in the capture (0 for a live frame); ``raw`` is the line as it stood.
    """

    line: int
    reason: str
    detail: str
    symbol: str
    topic: str
    raw: bytes


class Control(msgspec.Struct, frozen=True):
    """A control line: when, where, and its fields (``l2`` says what it is)."""

    receive_ns: int
    line: int
    fields: dict[str, Any]


class TopicCounts(msgspec.Struct, frozen=True):
    """What came over one topic. Lags are receive − exchange time; None when no row was made.

    ``frames`` counts accepted frames, duplicates included; ``rejected`` those that were refused.
    """

    frames: int = 0
    events: int = 0
    rejected: int = 0
    duplicates: int = 0
    gaps: int = 0
    steps_back: int = 0
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
            min(lows, default=None),
            max(highs, default=None),
        )


class Decoded(msgspec.Struct, frozen=True):
    """What lines became: event rows (dtype ``EVENT``) by symbol, in stream order, and the counts.

    ``counts`` is by topic and holds every topic that was seen, also those not converted; answers to
    our own requests count as ``op.<name>``, and what comes after a thousand names as ``other``. ``rest`` holds the lines that `Decoder.decode_part` left
    for the next call, None when it took all; ``reached`` says that its first was received too late.
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
    def steps_back(self) -> int:
        return sum(counts.steps_back for counts in self.counts.values())


class _PastError(Exception):
    """The line belongs after the time up to which the caller wants to read."""


class Decoder:
    """The state of one stream. ``symbols`` limits what is converted; other symbols only count.

    ``follow`` says whether ``instrument`` control lines change the grid of later rows; a reader that
    writes rows of one grid passes False, and a frame off that grid is then rejected by name.
    ``compiled=False`` reads everything by the reference.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument] = BUILT_IN,
        book_depth: int = 200,
        symbols: Collection[str] | None = None,
        *,
        follow: bool = True,
        compiled: bool = True,
    ) -> None:
        self.book_depth = book_depth
        self.instruments: dict[str, Instrument] = {}
        self._wanted = None if symbols is None else frozenset(symbols)
        self._follow = follow
        self._compiled = compiled
        self._symbols: list[str] = []
        self._topics: list[str] = []
        self._index: dict[str, int] = {}
        self._quotes: list[Quote] = []
        self._state = np.zeros((0, stream.STATE_SIZE), np.int64)
        self._clock = np.zeros(1, np.int64)
        self._others: dict[str, TopicCounts] = {}
        self._other_names: set[str] = set()
        self._passing: list[str] = []
        self._passed = stream.Passed(
            np.zeros((stream.MAX_PASSED, stream.MAX_TOPIC), np.uint8),
            np.full(stream.MAX_PASSED, stream.UNNAMED),
            np.zeros((stream.MAX_PASSED, 2), np.int64),
        )
        self._rejects: list[Reject] = []
        self._controls: list[Control] = []
        self._rows = np.empty((_BUFFER_ROWS, stream.WORDS), np.int64)
        self._row_symbols = np.empty(_BUFFER_ROWS, np.uint8)
        for instrument in instruments.values():
            if self._wanted is None or instrument.symbol in self._wanted:
                self._list(instrument)
        self._tables = self._build()

    @property
    def clock_ns(self) -> int:
        """Running maximum of receive time, zero before the first frame."""
        return int(self._clock[0])

    # -- ways in -------------------------------------------------------------------------------

    def decode_block(self, block: Block) -> Decoded:
        """All lines of a block."""
        part = self.decode_part(block)
        parts = [part]
        while part.rest is not None:
            part = self.decode_part(part.rest)
            parts.append(part)
        return parts[0] if len(parts) == 1 else _joined(parts)

    def decode_part(self, block: Block, until_ns: int = stream.NEVER) -> Decoded:
        """The lines of a block up to the first received at or after ``until_ns``.

        What was not read, for this reason or because there were very many rejections, is in
        ``rest``.
        """
        text = np.frombuffer(block.data, np.uint8)
        pieces: dict[str, list[Events]] = {}
        at = n = lines = 0
        reached = False
        while at < len(text) and len(self._rejects) < _PART_REJECTS:
            status = stream.UNUSUAL
            if self._compiled and not block.cut:
                status, at, n, read, _ = scanner.scan(
                    self._tables,
                    self._passed,
                    text,
                    at,
                    0,
                    until_ns,
                    self._rows,
                    self._row_symbols,
                    n,
                )
                lines += read
                if status == stream.FULL and n:
                    n = self._hand_on(pieces, n)
                    continue
            if status in (stream.DONE, stream.REACHED):
                reached = status == stream.REACHED
                break
            end = block.data.find(b"\n", at)
            end = len(block.data) if end < 0 else end
            try:
                number = block.first_line + lines
                found = self._line(block.data[at:end], number, number in block.cut, until_ns)
            except _PastError:
                reached = True
                break
            if found is not None:
                n = self._put(pieces, n, *found)
            lines += 1
            at = end + 1
        self._hand_on(pieces, n)
        events = {
            symbol: piece[0] if len(piece) == 1 else np.concatenate(piece)
            for symbol, piece in sorted(pieces.items())
        }
        rest = None
        if at < len(text):
            rest = msgspec.structs.replace(
                block, first_line=block.first_line + lines, data=block.data[at:]
            )
        return self._taken(events, lines, rest, reached)

    def decode_frame(self, receive_ns: int, frame: bytes) -> Decoded:
        """One frame as it came from the wire, or one control line without its time."""
        if self._compiled and 0 < receive_ns < stream.NEVER and b"\n" not in frame:
            text = np.frombuffer(frame, np.uint8)
            status, _, n, lines, topic = scanner.scan(
                self._tables,
                self._passed,
                text,
                0,
                receive_ns,
                stream.NEVER,
                self._rows,
                self._row_symbols,
                0,
            )
            if status == stream.DONE and lines:
                return self._taken_one(topic, self._rows[:n].copy())
        found = self._received(receive_ns, frame, b"%d %b" % (receive_ns, frame), 0, stream.NEVER)
        events = {} if found is None else {self._symbols[found[0]]: stream.as_events(found[1])}
        return self._taken(events, 1)

    # -- results -------------------------------------------------------------------------------

    def _hand_on(self, pieces: dict[str, list[Events]], n: int) -> int:
        """Copy the first n buffered rows to their symbols' pieces; returns 0, the rows left."""
        counts = np.bincount(self._row_symbols[:n])
        for index in np.flatnonzero(counts):
            rows = np.empty((counts[index], stream.WORDS), np.int64)
            stream.take_rows(self._rows, self._row_symbols, index, rows)
            pieces.setdefault(self._symbols[index], []).append(stream.as_events(rows))
        return 0

    def _put(self, pieces: dict[str, list[Events]], n: int, symbol: int, rows: Words) -> int:
        """Put the reference's rows after the n buffered ones; returns how many are buffered then."""
        if n + len(rows) > _BUFFER_ROWS:
            n = self._hand_on(pieces, n)
        if len(rows) > _BUFFER_ROWS:
            pieces.setdefault(self._symbols[symbol], []).append(stream.as_events(rows))
            return n
        self._rows[n : n + len(rows)] = rows
        self._row_symbols[n : n + len(rows)] = symbol
        return n + len(rows)

    def _taken(
        self,
        events: dict[str, Events],
        lines: int,
        rest: Block | None = None,
        reached: bool = False,
    ) -> Decoded:
        """The result of a call; what it counted is cleared."""
        for place in np.flatnonzero(self._passed.counts[:, 0]):
            self._count_other(self._passing[place], self._passed_by(int(place)))
        counts = self._others
        counted = self._state[:, [stream.FRAMES, stream.EVENTS, stream.REJECTED]]
        for topic in np.flatnonzero(counted.any(axis=1)):
            counts[self._topics[topic]] = self._counted(int(topic))
        decoded = Decoded(
            events,
            counts,
            tuple(self._rejects),
            tuple(self._controls),
            lines,
            rest,
            reached,
        )
        self._others, self._rejects, self._controls = {}, [], []
        return decoded

    def _taken_one(self, topic: int, rows: Words) -> Decoded:
        """`_taken` for the one compiled frame of a live stream, where microseconds count."""
        if topic >= len(self._topics):
            place = topic - len(self._topics)
            return Decoded({}, {self._passing[place]: self._passed_by(place)}, lines=1)
        events = {self._symbols[topic // FAMILIES]: stream.as_events(rows)} if len(rows) else {}
        return Decoded(events, {self._topics[topic]: self._counted(topic)}, lines=1)

    def _counted(self, topic: int) -> TopicCounts:
        state = self._state[topic]
        *counts, low, high = state[stream.COUNTERS :].tolist()
        state[stream.COUNTERS : stream.MIN_LAG] = 0
        state[stream.MIN_LAG], state[stream.MAX_LAG] = stream.NEVER, -stream.NEVER
        if low > high:
            return TopicCounts(*counts)
        frames, events, rejected, duplicates, gaps, steps_back = counts
        return TopicCounts(frames, events, rejected, duplicates, gaps, steps_back, low, high)

    def _passed_by(self, place: int) -> TopicCounts:
        frames, steps_back = self._passed.counts[place].tolist()
        self._passed.counts[place] = 0
        return TopicCounts(frames=frames, steps_back=steps_back)

    # -- symbols -------------------------------------------------------------------------------

    def _list(self, instrument: Instrument) -> None:
        """Take an instrument into the tables, or its new grid when it is there already."""
        symbol = instrument.symbol
        quote = quote_of(instrument)
        if symbol in self.instruments:
            place = self._symbols.index(symbol)
            if self._quotes[place] != quote:
                # Rows of the old grid and of the new one must not meet in one book.
                self._quotes[place] = quote
                self._state[FAMILIES * place + BOOK, stream.PENDING_GAP] = 1
        else:
            self._symbols.append(symbol)
            self._quotes.append(quote)
            for topic in stream.symbol_topics(symbol, self.book_depth):
                self._index[topic] = len(self._topics)
                self._topics.append(topic)
            state = np.zeros((len(self._topics), stream.STATE_SIZE), np.int64)
            state[:, stream.MIN_LAG], state[:, stream.MAX_LAG] = stream.NEVER, -stream.NEVER
            state[: len(self._state)] = self._state
            self._state = state
        self.instruments[symbol] = instrument

    def _build(self) -> stream.Tables:
        names = np.zeros((len(self._topics), stream.MAX_TOPIC), np.uint8)
        for n, topic in enumerate(self._topics):
            names[n, : len(topic)] = np.frombuffer(topic.encode(), np.uint8)
        grid = [(q.tick.unit, q.tick.places, q.lot.unit, q.lot.places) for q in self._quotes]
        return stream.Tables(
            names,
            np.array([len(topic) for topic in self._topics], np.int64),
            np.array([len(symbol) for symbol in self._symbols], np.int64),
            np.array(grid, np.int64).reshape(-1, 4),
            self._state,
            self._clock,
        )

    # -- the reference -------------------------------------------------------------------------

    def _line(self, line: bytes, number: int, cut: bool, until_ns: int) -> tuple[int, Words] | None:
        """One line of a capture; (symbol, rows) or None."""
        head, space, frame = line.partition(b" ")
        if cut:
            self._reject(number, "line too long", "only its head is kept", line)
        elif not space or not head.isdigit() or len(head) > 19:
            self._reject(number, "bad receive time", "expected `<epoch ns> <frame>`", line)
        else:
            return self._received(int(head), frame, line, number, until_ns)
        return None

    def _received(
        self, receive_ns: int, frame: bytes, line: bytes, number: int, until_ns: int
    ) -> tuple[int, Words] | None:
        try:
            if not 0 < receive_ns < stream.NEVER:
                raise RejectedError("bad receive time", f"{receive_ns} is no epoch ns")
            try:
                content = msgspec.json.decode(frame)
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                raise RejectedError("not JSON", str(error)) from error
            if not isinstance(content, dict):
                raise RejectedError("unknown shape", "a frame is a JSON object")
            if "l2" in content:
                return self._controlled(receive_ns, content, number, until_ns)
            if "topic" in content:
                return self._framed(receive_ns, content, until_ns)
            self._answered(content)
        except RejectedError as refusal:
            self._reject(number, refusal.reason, refusal.detail, line)
        return None

    def _reject(self, number: int, reason: str, detail: str, line: bytes) -> None:
        """Keep a refused line. A book frame that is lost makes the topic's next delta a GAP."""
        named = _TOPIC_IN_TEXT.search(line)
        topic = named[1].decode() if named else ""
        symbol = topic.rpartition(".")[2]
        index = self._index.get(topic)
        if index is not None:
            self._state[index, stream.REJECTED] += 1
            self._state[index, stream.PENDING_GAP] = 1
        elif topic:
            self._count_other(topic, TopicCounts(rejected=1))
        self._rejects.append(Reject(number, reason, detail, symbol, topic, bytes(line)))

    def _answered(self, content: dict[str, Any]) -> None:
        """An answer to a request of ours (pong, subscription): counted, never converted."""
        name = content.get("op")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z_.]{1,32}", name):
            raise RejectedError("unknown shape", "neither a topic, an op nor a control line")
        self._count_other(f"op.{name}", TopicCounts(frames=1))

    def _count_other(self, topic: str, counts: TopicCounts) -> None:
        if len(self._other_names) < _MAX_OTHERS:
            self._other_names.add(topic)
        elif topic not in self._other_names:
            topic = OTHER
        self._others[topic] = self._others.get(topic, TopicCounts()) + counts

    def _framed(
        self, receive_ns: int, frame: dict[str, Any], until_ns: int
    ) -> tuple[int, Words] | None:
        topic = frame["topic"]
        if type(topic) is not str:
            raise RejectedError("wrong type", "topic is not a string")
        if len(topic) > stream.MAX_TOPIC or not _TOPIC_NAME.fullmatch(topic):
            raise RejectedError("unknown topic", f"{topic[: stream.MAX_TOPIC]!r}")
        index = self._index.get(topic)
        if index is None:
            self._pass_by(receive_ns, topic, frame, until_ns)
            return None
        family = index % FAMILIES
        kind = text_in(frame, "type")
        if kind not in ("snapshot", "delta"):
            raise RejectedError("unknown shape", f"type {kind[:20]!r}")
        publish_ms = whole_in(frame, "ts", stream.MAX_MS)
        exchange_ms = whole_in(frame, "cts", stream.MAX_MS) if "cts" in frame else publish_ms
        quote = self._quotes[index // FAMILIES]
        data = field_in(frame, "data", list if family in (TRADE, LIQUIDATION) else dict)
        update_id = 0
        if family == BOOK:
            update_id, rows = reference.book_rows(quote, data)
        elif family == TICKER:
            rows = reference.ticker_rows(quote, data)
        else:
            rows = reference.print_rows(quote, data)
        verdict = stream.settle(
            self._tables,
            index,
            rows,
            0,
            len(rows),
            receive_ns,
            publish_ms * 1_000_000,
            exchange_ms * 1_000_000,
            update_id,
            kind == "snapshot",
            0,
            until_ns,
        )
        if verdict == stream.BAD_TIME:
            raise RejectedError("bad receive time", "over a day later than the venue's own time")
        if verdict == stream.BAD_VENUE_TIME:
            raise RejectedError(
                "bad venue time", "over a day ahead of its receipt, or two of a frame"
            )
        if verdict == stream.PAST:
            raise _PastError
        return (index // FAMILIES, rows) if verdict == stream.KEPT and len(rows) else None

    def _pass_by(self, receive_ns: int, topic: str, frame: dict[str, Any], until_ns: int) -> None:
        """A topic that is not converted: counted, with its steps back."""
        symbol = topic.rpartition(".")[2]
        ours = topic in stream.symbol_topics(symbol, self.book_depth)
        if ours and (self._wanted is None or symbol in self._wanted):
            raise RejectedError("unknown instrument", f"no tick and lot known for {symbol}")
        sent_ms = frame.get("ts")
        steps_back = receive_ns < self.clock_ns
        if type(sent_ms) is int and receive_ns - sent_ms * 1_000_000 <= stream.MAX_LAG_NS:
            if max(self.clock_ns, receive_ns) >= until_ns:
                raise _PastError
            self._clock[0] = max(self.clock_ns, receive_ns)
        self._count_other(topic, TopicCounts(frames=1, steps_back=int(steps_back)))
        place = len(self._passing)
        if topic in self._other_names and topic not in self._passing and place < stream.MAX_PASSED:
            # From the next frame on, the compiled reader passes the topic by.
            self._passing.append(topic)
            self._passed.topic[place, : len(topic)] = np.frombuffer(topic.encode(), np.uint8)
            self._passed.topic_size[place] = len(topic)

    # -- control lines -------------------------------------------------------------------------

    def _controlled(
        self, receive_ns: int, fields: dict[str, Any], number: int, until_ns: int
    ) -> tuple[int, Words] | None:
        what = fields["l2"]
        found = None
        if what == "disconnect":
            self._state[BOOK::FAMILIES, stream.PENDING_GAP] = 1
        elif what == "instrument":
            self._instrument(fields)
        elif what == "checkpoint":
            found = self._checkpoint(receive_ns, fields, until_ns)
        elif what == "turn" and receive_ns >= until_ns:
            # The last line of a file that the recorder left for the next one: a date's file says
            # itself that the stream went on past midnight.
            raise _PastError
        elif type(what) is not str:
            raise RejectedError("bad control line", "l2 is not a string")
        self._controls.append(Control(receive_ns, number, fields))
        return found

    def _instrument(self, fields: dict[str, Any]) -> None:
        try:
            instrument = msgspec.convert(fields, Instrument)
            quote_of(instrument)
        except (msgspec.ValidationError, ValueError) as error:
            raise RejectedError("bad control line", f"instrument: {error}") from error
        symbol = instrument.symbol
        if len(stream.symbol_topics(symbol, self.book_depth)[0]) > stream.MAX_TOPIC:
            raise RejectedError("bad control line", "instrument: symbol too long")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", symbol) or len(self._symbols) >= 250:
            raise RejectedError("bad control line", "instrument: not a symbol, or too many")
        if self._wanted is not None and symbol not in self._wanted:
            return
        if self._follow or symbol not in self.instruments:
            self._list(instrument)
            self._tables = self._build()

    def _checkpoint(
        self, receive_ns: int, fields: dict[str, Any], until_ns: int
    ) -> tuple[int, Words] | None:
        topic = text_in(fields, "topic")
        index = self._index.get(topic)
        if index is None or index % FAMILIES not in (BOOK, TICKER):
            return None
        quote = self._quotes[index // FAMILIES]
        data = field_in(fields, "data", dict)
        if index % FAMILIES == BOOK:
            update_id, rows = reference.book_rows(quote, data)
        else:
            update_id, rows = 0, reference.ticker_rows(quote, data)
        verdict = stream.settle(
            self._tables,
            index,
            rows,
            0,
            len(rows),
            receive_ns,
            receive_ns,
            receive_ns,
            update_id,
            True,
            int(Flag.CHECKPOINT),
            until_ns,
        )
        if verdict == stream.PAST:
            raise _PastError
        return index // FAMILIES, rows


def _joined(parts: list[Decoded]) -> Decoded:
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
