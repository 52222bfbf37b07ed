"""An index of lines: what `market.wire.merge` must know of each, without decoding it.

A line has a time on its own file's clock (`set_times`) and marks of what it carries: the update of a
book, a trade, or its whole text. Two lines with a mark in common are copies of one message.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.kernel import kernel
from market.units import MS_NS
from market.wire.capture import Block
from market.wire.jsontext import NEWLINE, QUOTE, SPACE, Text, integer, same, starts, string_end
from market.wire.stream import MAX_LAG_NS, MAX_MS, MAX_STEP_BACK_NS
from market.wire.topics import BOOK_STEM, TRADE_STEM, symbol_of, topic_in

#: Kinds of lines. ODD ones are not in the plain form that the kernel reads.
TEXT, ODD, CONTROL, FRAME, PRINTS, SNAPSHOT, DELTA = range(7)
#: What becomes of a line: used; the same line again; a copy of what another recording has; left out
#: because the clock of its file is wrong.
USED, REPEATED, COPY, LEFT_OUT = range(4)

LINE: Final = np.dtype(
    [
        ("file", "i8"),
        ("number", "i8"),  # in its file, from 1
        ("start", "i8"),  # place in the text, with the newline
        ("stop", "i8"),
        ("receive_ns", "i8"),  # as written, 0 without a time
        ("key_ns", "i8"),  # on its file's clock: the running maximum
        ("at_ns", "i8"),  # its place in the merged stream
        ("sent_ns", "i8"),  # by the venue's clock
        ("topic", "i8"),  # a hash of its name
        ("order", "i8"),  # ``u`` of a book
        ("mark", "i8"),  # the first of its marks
        ("kind", "i8"),
        ("fate", "i8"),
        ("behind_ns", "i8"),  # of a line left out: how far its clock was set back, or is off
        ("other_clock", "i8"),  # left out because of another recording's clock
        ("cut", "i8"),  # only its head is kept
        ("done", "i8"),  # given out, or dropped
    ]
)
MARK: Final = np.dtype([("mark", "i8"), ("line", "i8")])

Lines = npt.NDArray[np.void]

#: An update waits for those before it, of which so many may be missing; further apart ``u`` started anew.
_MOST_MISSING: Final = 1000
#: A message is compared with so many of its copies.
_MOST_COPIES: Final = 64

_SEED: Final = -3750763034362895579
_PRIME: Final = 1099511628211


def _bytes(text: str) -> Text:
    return np.frombuffer(text.encode(), np.uint8)


_HEAD: Final = _bytes('{"topic":"')
_BOOK: Final = _bytes(f"{BOOK_STEM}.")
_TRADE: Final = _bytes(f"{TRADE_STEM}.")
_TS: Final = _bytes('"ts":')
_U: Final = _bytes('"u":')
_IS_DELTA: Final = _bytes('"type":"delta"')
_ID: Final = _bytes('"i":"')


def index_lines(text: bytes, file: int, first_line: int) -> tuple[Lines, Lines]:
    """(lines, marks) of whole lines; times are set by `set_times`, which knows what came before."""
    lines = np.zeros(text.count(b"\n"), LINE)
    marks = np.zeros(len(lines) + text.count(_ID.tobytes()), MARK)
    count = _index(np.frombuffer(text, np.uint8), lines, marks)
    lines["file"] = file
    lines["number"] = first_line + np.arange(len(lines))
    more = [marks[:count]]
    for place in np.flatnonzero(lines["kind"] == ODD):
        line = lines[place]
        more.append(_index_odd(line, text[line["start"] : line["stop"]]))
        more[-1]["line"] = place
    return lines, np.concatenate(more)


def _index_odd(line: Any, text: bytes) -> Lines:
    """Index a line that is a control line or in another form of JSON; its marks."""
    line["kind"] = TEXT
    try:
        content = msgspec.json.decode(text.partition(b" ")[2])
    except (msgspec.DecodeError, ValueError, RecursionError):
        content = None
    none = np.zeros(0, MARK)
    if not isinstance(content, dict):
        return none
    is_control = "l2" in content
    if is_control:
        line["kind"] = CONTROL
        content["ts"] = int(line["receive_ns"]) // MS_NS
    if not isinstance(content.get("topic"), str):
        return none
    first = {name: content[name] for name in ("topic", "type", "ts") if name in content}
    plain = b"%d %b\n" % (line["receive_ns"], msgspec.json.encode(first | content))
    lines, marks = np.zeros(1, LINE), np.zeros(1 + plain.count(_ID.tobytes()), MARK)
    count = _index(np.frombuffer(plain, np.uint8), lines, marks)
    if lines["kind"][0] < FRAME:
        return none
    for name in ("sent_ns", "topic", "order", "mark"):
        line[name] = lines[name][0]
    if not is_control:
        line["kind"] = lines["kind"][0]
    return marks[:count]


def set_times(lines: Lines, clock_ns: int, left_out: bool) -> tuple[int, bool]:
    """Set the times of a file's next lines: the running maximum of its receive times.

    After a step back of over a second frames have no time until the maximum is passed. Takes and
    returns the clock, and whether the last frame was in such a stretch.
    """
    if not len(lines):
        return clock_ns, left_out
    late = lines["receive_ns"] - lines["sent_ns"] > MAX_LAG_NS
    frame = (lines["kind"] >= FRAME) & ~late
    own = np.where(frame, lines["receive_ns"], 0)
    clock = np.maximum.accumulate(np.maximum(own, clock_ns))
    before = np.concatenate([[clock_ns], clock[:-1]])
    highs = np.cumsum(frame & (own >= before))
    stepped = np.where(frame & (before - own > MAX_STEP_BACK_NS), highs, 0 if left_out else -1)
    stretch = np.maximum.accumulate(stepped) == highs
    lines["key_ns"] = np.where(
        lines["kind"] == CONTROL, np.maximum(clock, lines["receive_ns"]), clock
    )
    lines["fate"] = np.where(frame & (own < before) & stretch, LEFT_OUT, USED)
    lines["behind_ns"] = np.where(lines["fate"] == LEFT_OUT, before - own, 0)
    return int(clock[-1]), bool(stretch[-1])


class Usage(msgspec.Struct):
    """What became of the lines of one file and topic; times are receive times."""

    used: int = 0
    repeated: int = 0
    copies: int = 0
    left_out: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.used + other.used,
            self.repeated + other.repeated,
            self.copies + other.copies,
            self.left_out + other.left_out,
            min(self.first_ns, other.first_ns) if self.first_ns else other.first_ns,
            max(self.last_ns, other.last_ns),
        )


class LeftOut(msgspec.Struct):
    """Lines of a file without a time: its clock was set back, or lies far from the primary's.

    They were received up to ``behind_ns`` before ``clock_ns``, which its clock had reached; that is 0
    when the other recording's clock is meant.
    """

    file: str
    clock_ns: int
    first_line: int
    last_line: int
    frames: int
    behind_ns: int
    symbols: set[str]
    raw: bytes

    def extend(self, more: LeftOut) -> None:
        """Add later lines of the same stretch."""
        self.last_line = more.last_line
        self.frames += more.frames
        self.behind_ns = max(self.behind_ns, more.behind_ns)
        self.symbols |= more.symbols

    @property
    def text(self) -> str:
        """Where and why, for people."""
        how = "was set back by {} s" if self.clock_ns else "is {} s off the recording's beside it"
        return (
            f"lines {self.first_line} to {self.last_line}: the clock "
            f"{how.format(f'{self.behind_ns / 1e9:.3f}')}; "
            f"{self.frames} frames have no time and are left out"
        )


class Piece(msgspec.Struct):
    """Lines in order, all of one UTC date when they are merged.

    ``files`` and ``numbers`` say where each merged line was; a block as it is has its one file.
    ``began_ns`` is when the first file began that has lines of this date.
    """

    block: Block
    began_ns: int
    files: list[str]
    numbers: npt.NDArray[np.int64] | None = None
    usage: dict[tuple[str, str], Usage] = {}
    left_out: list[LeftOut] = []

    def place(self, line: int) -> tuple[str, int]:
        """(file, line number) of a line of the block."""
        if self.numbers is None:
            return self.files[0], line
        return self.files[line - 1], int(self.numbers[line - 1])


def left_out_of(block: Block, clock_ns: int, in_stretch: bool) -> list[LeftOut]:
    """The stretches of a block that are behind the clock, given the state before it."""
    lines, _ = index_lines(block.data, 0, block.first_line)
    set_times(lines, clock_ns, in_stretch)
    return stretches(lines[lines["fate"] == LEFT_OUT], block.data, [block.path])


def stretches(lines: Lines, text: bytes, paths: list[str]) -> list[LeftOut]:
    found: dict[tuple[int, int], LeftOut] = {}
    for line in lines:
        raw = text[line["start"] : line["stop"] - 1]
        key = int(line["file"]), 0 if line["other_clock"] else int(line["key_ns"])
        number = int(line["number"])
        if key not in found:
            found[key] = LeftOut(paths[key[0]], key[1], number, number, 0, 0, set(), raw)
        stretch = found[key]
        stretch.last_line = number
        stretch.frames += 1
        stretch.behind_ns = max(stretch.behind_ns, int(line["behind_ns"]))
        stretch.symbols.add(symbol_of(topic_in(raw)))
    return list(found.values())


@kernel
def _hash(text: Text, start: int, stop: int, value: int) -> int:
    for n in range(start, stop):
        value = (value ^ int(text[n])) * _PRIME
    return value


@kernel
def _after(text: Text, at: int, end: int, piece: Text) -> int:
    """The position after the next occurrence of a piece, -1 when there is none."""
    while at + len(piece) <= end:
        if text[at] == piece[0] and starts(text, at, end, piece):
            return at + len(piece)
        at += 1
    return -1


@kernel
def _after_last(text: Text, at: int, end: int, piece: Text) -> int:
    place = end - len(piece)
    while place >= at:
        if text[place] == piece[0] and starts(text, place, end, piece):
            return place + len(piece)
        place -= 1
    return -1


@kernel
def _index(text: Text, lines: Lines, marks: Lines) -> int:
    """Fill ``lines`` (zeros) and ``marks``; returns the number of marks."""
    at = 0
    count = 0
    for n in range(len(lines)):
        stop = at
        while text[stop] != NEWLINE:
            stop += 1
        line = lines[n]
        line.start = at
        line.stop = stop + 1
        receive_ns, body = integer(text, at, stop)
        if 0 < body < stop and text[body] == SPACE and 0 < receive_ns < 1 << 62:
            line.receive_ns = receive_ns
            line.kind = ODD
            count = _index_frame(text, body + 1, stop, line, n, marks, count)
        if line.kind < FRAME:
            line.mark = _hash(text, at, stop, _SEED)
        at = stop + 1
    return count


@kernel
def _index_frame(
    text: Text, at: int, end: int, line: Any, number: int, marks: Lines, count: int
) -> int:
    if not starts(text, at, end, _HEAD):
        return count
    name = at + len(_HEAD)
    after = string_end(text, name - 1, end)
    sent = _after(text, after, end, _TS) if after > 0 else -1
    sent_ms, done = integer(text, sent, end) if sent > 0 else (0, -1)
    if done < 0 or sent_ms > MAX_MS:
        return count
    line.sent_ns = sent_ms * MS_NS
    line.topic = _hash(text, name, after - 1, _SEED)
    first = count
    if starts(text, name, end, _BOOK):
        place = _after_last(text, after, end, _U)
        update_id, done = integer(text, place, end) if place > 0 else (0, -1)
        if done < 0:
            return count
        line.order = update_id
        line.kind = DELTA if _after(text, after, end, _IS_DELTA) > 0 else SNAPSHOT
        marks[count].mark = (line.topic ^ update_id) * _PRIME
        marks[count].line = number
        count += 1
    elif starts(text, name, end, _TRADE):
        line.kind = PRINTS
        place = _after(text, after, end, _ID)
        while place > 0:
            stop = place
            while stop < end and text[stop] != QUOTE:
                stop += 1
            marks[count].mark = _hash(text, place, stop, line.topic)
            marks[count].line = number
            count += 1
            place = _after(text, stop, end, _ID)
    else:
        line.kind = FRAME
    if count == first:
        marks[count].mark = _hash(text, at, end, line.topic)
        marks[count].line = number
        count += 1
    line.mark = marks[first].mark
    return count


@kernel
def gather(text: Text, lines: Lines, out: Text) -> None:
    """Copy lines one after the other."""
    at = 0
    for n in range(len(lines)):
        for place in range(lines[n].start, lines[n].stop):
            out[at] = text[place]
            at += 1


@kernel
def is_repeated(text: Text, lines: Lines, order: Any, repeated: Any) -> None:
    """Mark lines that equal the one before them in ``order`` (by receive time and mark)."""
    for n in range(1, len(order)):
        mine, other = lines[order[n]], lines[order[n - 1]]
        size = other.stop - other.start
        if (
            mine.receive_ns > 0
            and mine.receive_ns == other.receive_ns
            and (mine.file != other.file or repeated[order[n - 1]])
            and same(text, mine.start, mine.stop, text, other.start, size)
        ):
            repeated[order[n]] = True


@kernel
def find_copies(
    marks: Lines, lines: Lines, ranks: Any, near_ns: int, memory_ns: int, copied: Any
) -> None:
    """Set ``copied`` at marks that a better recording has; ``marks`` are sorted by mark and rank.

    A recording of a lower rank has it within ``near_ns``, or any other had it long before.
    """
    start = 0
    for stop in range(1, len(marks) + 1):
        if stop < len(marks) and marks[stop].mark == marks[start].mark:
            continue
        for n in range(start, stop):
            mine = marks[n].line
            for other in range(start, min(stop, start + _MOST_COPIES)):
                theirs = marks[other].line
                ahead_ns = lines[mine].key_ns - lines[theirs].key_ns
                better = ranks[theirs] < ranks[mine] and abs(ahead_ns) <= near_ns
                before = ranks[theirs] != ranks[mine] and near_ns < ahead_ns <= memory_ns
                if better or before:
                    copied[n] = True
                    break
        start = stop


@kernel
def put_in_order(lines: Lines, order: Any, near_ns: int, moved: Any) -> None:
    """Give a book's updates times that do not fall; ``order`` is by topic, ``u`` and time.

    ``moved`` is set where a line waits for one of another file.
    """
    for n in range(1, len(order)):
        line, before = lines[order[n]], lines[order[n - 1]]
        wait_ns = before.at_ns - line.at_ns
        follows = line.topic == before.topic and line.order - before.order <= _MOST_MISSING
        if follows and line.kind == DELTA and 0 < wait_ns <= near_ns:
            moved[order[n]] = before.file != line.file or moved[order[n - 1]]
            line.at_ns = before.at_ns
