"""Bybit V5 public frames → event rows, exactly; every rejected line has a reason and a place.

`Decoder` keeps the state of a stream: the running maximum of receive time, the last ``u`` of each book
topic, and the grid (tick and lot) of each symbol. Blocks of a capture and single live frames follow
the same rules:

    frame of a book topic            becomes
    snapshot, any ``u``              SNAPSHOT rows, the first flagged FIRST: the book starts over
    delta, ``u`` = last + 1          DELTA rows
    delta, ``u`` <= last             nothing; counted as a duplicate
    delta, ``u`` > last + 1, or before any snapshot, or first after a disconnect or a rejected frame
                                     DELTA rows, the first flagged GAP (a sequence gap)

Well-formed frames are read by the compiled `market.wire.scanner`; all others by
`market.wire.reference`, which reads the same frames to the same rows and is the only place where a
frame is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.events import EVENT, Events, Flag
from market.instruments import BUILT_IN, Instrument
from market.units import MS_NS
from market.wire import reference, scanner, stream, topics
from market.wire.capture import Block
from market.wire.reference import Grid, RejectedError, field_in, grid_of, int_in, str_in
from market.wire.results import Control, Decoded, Reject, TopicCounts, joined
from market.wire.stream import Head
from market.wire.topics import BOOK, FAMILIES, LIQUIDATION, TICKER, TRADE

#: Rows that the scanner fills before they are handed on: 16 MB.
_BUFFER_ROWS: Final = 1 << 18
#: Rejections of one part; a block of garbage comes in several parts, so that memory stays bounded.
_PART_REJECTS: Final = 10_000
#: Topics that are not converted, counted by name; all further ones of a stream count as one, so that
#: a flood of names stays bounded. No topic's own name is without a dot.
_MAX_OTHERS: Final = 1000
OTHER: Final = "other"
#: Symbols of one stream: their indices are bytes.
_MAX_SYMBOLS: Final = 250

_SYMBOL: Final = re.compile(r"[A-Za-z0-9_-]+")
_OP: Final = re.compile(r"[a-z_.]{1,32}")

#: Rows of one symbol, by its index.
_Rows = tuple[int, Events]


class _EndReachedError(Exception):
    """The line was received at or after the time up to which the caller wants to read."""


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
        self._grids: list[Grid] = []
        self._topics: list[str] = []
        self._index: dict[str, int] = {}
        self._passed: list[str] = []
        self._tables = stream.Tables(
            stream.new_topics(0), stream.new_topics(stream.MAX_PASSED), np.zeros(2, np.int64)
        )
        self._others: dict[str, TopicCounts] = {}
        self._other_names: set[str] = set()
        self._rejects: list[Reject] = []
        self._left_out: list[RejectedError] = []
        self._controls: list[Control] = []
        # The same memory twice: numpy copies plain words several times faster than structured rows.
        self._words = np.empty((_BUFFER_ROWS, EVENT.itemsize // 8), np.int64)
        self._rows = _as_rows(self._words)
        self._row_symbols = np.empty(_BUFFER_ROWS, np.uint8)
        for instrument in instruments.values():
            if self._wanted is None or instrument.symbol in self._wanted:
                self._add_instrument(instrument)

    @property
    def clock_ns(self) -> int:
        """Running maximum of receive time, zero before the first frame."""
        return int(self._tables.clock[0])

    @property
    def in_stretch(self) -> bool:
        """Whether frames are left out until the running maximum is passed: the clock was set back."""
        return bool(self._tables.clock[1])

    # -- entry points --------------------------------------------------------------------------

    def decode_block(self, block: Block) -> Decoded:
        """All lines of a block."""
        parts = [self.decode_part(block)]
        while (rest := parts[-1].rest) is not None:
            parts.append(self.decode_part(rest))
        return joined(parts)

    def decode_part(self, block: Block, until_ns: int = stream.NEVER) -> Decoded:
        """The lines of a block up to the first received at or after ``until_ns``.

        Lines that were not read, for this reason or because there were very many rejections, are in
        ``rest``.
        """
        text = np.frombuffer(block.data, np.uint8)
        pieces: dict[str, list[Events]] = {}
        at = n = lines = 0
        reached = False
        while at < len(text) and len(self._rejects) < _PART_REJECTS:
            status = scanner.UNUSUAL
            if self._compiled and not block.cut:
                status, at, n, read, _ = scanner.scan_lines(
                    self._tables, text, at, 0, until_ns, self._rows, self._row_symbols, n
                )
                lines += read
                if status == scanner.FULL and n:
                    n = self._flush(pieces, n)
                    continue
            if status in (scanner.DONE, scanner.REACHED):
                reached = status == scanner.REACHED
                break
            end = block.data.find(b"\n", at)
            end = len(block.data) if end < 0 else end
            try:
                number = block.first_line + lines
                rows = self._line(block.data[at:end], number, number in block.cut, until_ns)
            except _EndReachedError:
                reached = True
                break
            if rows is not None:
                n = self._buffer(pieces, n, *rows)
            lines += 1
            at = end + 1
        self._flush(pieces, n)
        events = {
            symbol: piece[0] if len(piece) == 1 else np.concatenate(piece)
            for symbol, piece in sorted(pieces.items())
        }
        rest = None
        if at < len(text):
            rest = msgspec.structs.replace(
                block, first_line=block.first_line + lines, data=block.data[at:]
            )
        return self._result(events, lines, rest, reached)

    def decode_frame(self, receive_ns: int, frame: bytes) -> Decoded:
        """One frame as received from the socket, or one control line without its time."""
        if self._compiled and 0 < receive_ns < stream.NEVER and b"\n" not in frame:
            text = np.frombuffer(frame, np.uint8)
            status, _, n, lines, topic = scanner.scan_lines(
                self._tables, text, 0, receive_ns, stream.NEVER, self._rows, self._row_symbols, 0
            )
            if status == scanner.DONE and lines:
                return self._result_of_frame(topic, _as_rows(self._words[:n].copy()))
        rows = self._received(receive_ns, frame, b"%d %b" % (receive_ns, frame), 0, stream.NEVER)
        events = {} if rows is None else {self._symbols[rows[0]]: rows[1]}
        return self._result(events, 1)

    # -- results -------------------------------------------------------------------------------

    def _flush(self, pieces: dict[str, list[Events]], n: int) -> int:
        """Copy the first n buffered rows to their symbols' pieces; returns 0, the rows left."""
        counts = np.bincount(self._row_symbols[:n])
        for index in np.flatnonzero(counts):
            rows = np.empty(counts[index], EVENT)
            stream.take_rows(self._rows, self._row_symbols, index, rows)
            pieces.setdefault(self._symbols[index], []).append(rows)
        return 0

    def _buffer(self, pieces: dict[str, list[Events]], n: int, symbol: int, rows: Events) -> int:
        """Put the reference's rows after the n buffered ones; returns how many are buffered then."""
        if n + len(rows) > _BUFFER_ROWS:
            n = self._flush(pieces, n)
        if len(rows) > _BUFFER_ROWS:
            pieces.setdefault(self._symbols[symbol], []).append(rows)
            return n
        self._words[n : n + len(rows)] = rows.view(np.int64).reshape(len(rows), -1)
        self._row_symbols[n : n + len(rows)] = symbol
        return n + len(rows)

    def _result(
        self,
        events: dict[str, Events],
        lines: int,
        rest: Block | None = None,
        reached: bool = False,
    ) -> Decoded:
        """The result of a call; its counts are cleared."""
        for place in np.flatnonzero(self._tables.passed["counts"]["frames"]):
            self._count_other(self._passed[place], _taken(self._tables.passed, int(place)))
        counts = self._others
        counted = self._tables.topics["counts"]
        for topic in np.flatnonzero(counted["frames"] | counted["events"] | counted["rejected"]):
            counts[self._topics[topic]] = _taken(self._tables.topics, int(topic))
        decoded = Decoded(
            events, counts, tuple(self._rejects), tuple(self._controls), lines, rest, reached
        )
        self._others, self._rejects, self._controls = {}, [], []
        return decoded

    def _result_of_frame(self, topic: int, rows: Events) -> Decoded:
        """`_result` for the one compiled frame of a live stream, where microseconds count."""
        if topic >= len(self._topics):
            place = topic - len(self._topics)
            return Decoded({}, {self._passed[place]: _taken(self._tables.passed, place)}, lines=1)
        events = {self._symbols[topic // FAMILIES]: rows} if len(rows) else {}
        return Decoded(events, {self._topics[topic]: _taken(self._tables.topics, topic)}, lines=1)

    # -- symbols -------------------------------------------------------------------------------

    def _add_instrument(self, instrument: Instrument) -> None:
        """Add an instrument to the tables, or its new grid when it is there already."""
        symbol = instrument.symbol
        grid = grid_of(instrument)
        changed = False
        if symbol in self.instruments:
            place = self._symbols.index(symbol)
            changed = self._grids[place] != grid
            self._grids[place] = grid
        else:
            place = len(self._symbols)
            self._symbols.append(symbol)
            self._grids.append(grid)
            added = stream.new_topics(FAMILIES)
            for topic, name in zip(
                added, topics.symbol_topics(symbol, self.book_depth), strict=True
            ):
                stream.set_name(topic, name)
                self._index[name] = len(self._topics)
                self._topics.append(name)
            self._tables = self._tables._replace(topics=np.append(self._tables.topics, added))
        rows = self._tables.topics[FAMILIES * place : FAMILIES * (place + 1)]
        rows["tick_unit"], rows["tick_places"] = grid.tick.unit, grid.tick.places
        rows["lot_unit"], rows["lot_places"] = grid.lot.unit, grid.lot.places
        if changed:
            # Rows of the old grid and of the new one must not meet in one book.
            rows[BOOK]["gap_pending"] = 1
        self.instruments[symbol] = instrument

    # -- lines that the reference reads --------------------------------------------------------

    def _line(self, line: bytes, number: int, cut: bool, until_ns: int) -> _Rows | None:
        """One line of a capture; (symbol, rows) or None."""
        stamp, space, frame = line.partition(b" ")
        if cut:
            self._reject(number, "line too long", "only its head is kept", line)
        elif not space or not stamp.isdigit() or len(stamp) > 19:
            self._reject(number, "bad receive time", "expected `<epoch ns> <frame>`", line)
        else:
            return self._received(int(stamp), frame, line, number, until_ns)
        return None

    def _received(
        self, receive_ns: int, frame: bytes, line: bytes, number: int, until_ns: int
    ) -> _Rows | None:
        self._left_out = []
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
                return self._control_line(receive_ns, content, number, until_ns)
            if "topic" in content:
                rows = self._topic_frame(receive_ns, content, until_ns)
                self._note_left_out(number, content["topic"], line)
                return rows
            self._reply(content)
        except RejectedError as rejection:
            self._reject(number, rejection.reason, rejection.detail, line)
        return None

    def _note_left_out(self, number: int, name: str, line: bytes) -> None:
        """Keep a line of which a field was left out: its frame counts as accepted."""
        symbol = topics.symbol_of(name)
        for each in self._left_out:
            self._rejects.append(
                Reject(number, each.reason, each.detail, symbol, name, bytes(line))
            )

    def _reject(self, number: int, reason: str, detail: str, line: bytes) -> None:
        """Keep a rejected line. A book frame that is lost makes the topic's next delta a GAP."""
        name = topics.topic_in(line)
        index = self._index.get(name)
        if index is not None:
            topic = self._tables.topics[index]
            topic["counts"]["rejected"] += 1
            topic["gap_pending"] = 1
        elif name:
            self._count_other(name, TopicCounts(rejected=1))
        symbol = topics.symbol_of(name)
        self._rejects.append(Reject(number, reason, detail, symbol, name, bytes(line)))

    def _reply(self, content: dict[str, Any]) -> None:
        """A reply to a request of ours (pong, subscription): counted, never converted."""
        name = content.get("op")
        if not isinstance(name, str) or not _OP.fullmatch(name):
            raise RejectedError("unknown shape", "neither a topic, an op nor a control line")
        self._count_other(f"op.{name}", TopicCounts(frames=1))

    def _count_other(self, name: str, counts: TopicCounts) -> None:
        if len(self._other_names) < _MAX_OTHERS:
            self._other_names.add(name)
        elif name not in self._other_names:
            name = OTHER
        self._others[name] = self._others.get(name, TopicCounts()) + counts

    def _topic_frame(self, receive_ns: int, frame: dict[str, Any], until_ns: int) -> _Rows | None:
        name = frame["topic"]
        if type(name) is not str:
            raise RejectedError("wrong type", "topic is not a string")
        if topics.parse(name) is None:
            raise RejectedError("unknown topic", f"{name[: topics.MAX_TOPIC]!r}")
        index = self._index.get(name)
        if index is None:
            self._count_unconverted(receive_ns, name, frame, until_ns)
            return None
        family = index % FAMILIES
        kind = str_in(frame, "type")
        if kind not in ("snapshot", "delta"):
            raise RejectedError("unknown shape", f"type {kind[:20]!r}")
        publish_ms = int_in(frame, "ts", stream.MAX_MS)
        exchange_ms = int_in(frame, "cts", stream.MAX_MS) if "cts" in frame else publish_ms
        data = field_in(frame, "data", list if family in (TRADE, LIQUIDATION) else dict)
        update_id, rows = self._data_rows(index, data)
        head = Head(
            receive_ns, publish_ms * MS_NS, exchange_ms * MS_NS, update_id, kind == "snapshot", 0
        )
        kept = self._accept(index, rows, head, until_ns)
        return (index // FAMILIES, rows) if kept and len(rows) else None

    def _data_rows(self, index: int, data: Any) -> tuple[int, Events]:
        """(update id, rows) of the data of a topic."""
        grid = self._grids[index // FAMILIES]
        family = index % FAMILIES
        if family == BOOK:
            return reference.book_rows(grid, data)
        if family == TICKER:
            rows, self._left_out = reference.ticker_rows(grid, data)
            return 0, rows
        return 0, reference.print_rows(grid, data)

    def _accept(self, index: int, rows: Events, head: Head, until_ns: int) -> bool:
        """Whether the rows are kept; RejectedError or _EndReachedError when the frame is not."""
        verdict = stream.accept(self._tables, index, rows, 0, len(rows), head, until_ns)
        if verdict == stream.BAD_RECEIVE_TIME:
            raise RejectedError("bad receive time", "over a day later than the venue's own time")
        if verdict == stream.BAD_VENUE_TIME:
            raise RejectedError(
                "bad venue time", "over a day ahead of its receipt, or two of a frame"
            )
        if verdict == stream.BEYOND_END:
            raise _EndReachedError
        return bool(verdict == stream.ACCEPTED)

    def _count_unconverted(
        self, receive_ns: int, name: str, frame: dict[str, Any], until_ns: int
    ) -> None:
        """A frame of a topic that is not converted: counted, with its steps back."""
        symbol = topics.symbol_of(name)
        ours = name in topics.symbol_topics(symbol, self.book_depth)
        if ours and (self._wanted is None or symbol in self._wanted):
            raise RejectedError("unknown instrument", f"no tick and lot known for {symbol}")
        sent_ms = frame.get("ts")
        step_back = receive_ns < self.clock_ns
        if type(sent_ms) is int and receive_ns - sent_ms * MS_NS <= stream.MAX_LAG_NS:
            now = max(self.clock_ns, receive_ns)
            if now >= until_ns:
                raise _EndReachedError
            self._tables.clock[0] = now
        self._count_other(name, TopicCounts(frames=1, steps_back=int(step_back)))
        place = len(self._passed)
        if name in self._other_names and name not in self._passed and place < stream.MAX_PASSED:
            # From the next frame on, the compiled reader skips the topic.
            self._passed.append(name)
            stream.set_name(self._tables.passed[place], name)

    # -- control lines -------------------------------------------------------------------------

    def _control_line(
        self, receive_ns: int, fields: dict[str, Any], number: int, until_ns: int
    ) -> _Rows | None:
        kind = fields["l2"]
        rows = None
        if kind == "disconnect":
            kept = fields.get("except")  # topics of other connections, where captures are merged
            for topic, name in zip(self._tables.topics, self._topics, strict=True):
                topic["gap_pending"] |= not isinstance(kept, list) or name not in kept
        elif kind == "instrument":
            self._instrument_line(fields)
        elif kind == "checkpoint":
            rows = self._checkpoint(receive_ns, fields, until_ns)
        elif kind == "turn" and receive_ns >= until_ns:
            # The last line of a file that the recorder closed for the next one: it shows, within the
            # date's own file, that the stream went on past midnight.
            raise _EndReachedError
        elif type(kind) is not str:
            raise RejectedError("bad control line", "l2 is not a string")
        self._controls.append(Control(receive_ns, number, fields))
        return rows

    def _instrument_line(self, fields: dict[str, Any]) -> None:
        try:
            instrument = msgspec.convert(fields, Instrument)
            grid_of(instrument)
        except (msgspec.ValidationError, ValueError) as error:
            raise RejectedError("bad control line", f"instrument: {error}") from error
        symbol = instrument.symbol
        if len(topics.book_topic(self.book_depth, symbol)) > topics.MAX_TOPIC:
            raise RejectedError("bad control line", "instrument: symbol too long")
        if not _SYMBOL.fullmatch(symbol) or len(self._symbols) >= _MAX_SYMBOLS:
            raise RejectedError("bad control line", "instrument: not a symbol, or too many")
        if self._wanted is not None and symbol not in self._wanted:
            return
        if self._follow or symbol not in self.instruments:
            self._add_instrument(instrument)

    def _checkpoint(self, receive_ns: int, fields: dict[str, Any], until_ns: int) -> _Rows | None:
        """Rows that restate a book or a ticker; None for a topic that is not converted."""
        index = self._index.get(str_in(fields, "topic"))
        if index is None or index % FAMILIES not in (BOOK, TICKER):
            return None
        update_id, rows = self._data_rows(index, field_in(fields, "data", dict))
        times = receive_ns, receive_ns, receive_ns
        self._accept(index, rows, Head(*times, update_id, True, int(Flag.CHECKPOINT)), until_ns)
        return index // FAMILIES, rows


def _as_rows(words: npt.NDArray[np.int64]) -> Events:
    """Words, shape (n, 8), seen as event rows without a copy."""
    return words.reshape(-1).view(EVENT)


def _taken(slots: Any, place: int) -> TopicCounts:
    """The counts of a topic, which are cleared."""
    counts: tuple[int, ...] = slots["counts"][place].item()
    slots["counts"][place] = stream.NO_COUNTS
    has_lags = counts[-2] <= counts[-1]
    return TopicCounts(*counts) if has_lags else TopicCounts(*counts[:-2])
