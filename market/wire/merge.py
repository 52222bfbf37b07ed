"""Captures → one stream of lines in time order, whoever recorded them and however they are cut.

A file that is alone in time passes block by block as it is. Where files lie side by side (`NEAR_NS`),
their lines are merged, by rules that depend on what the lines say and not on names, blocks or cuts:

    time        runs per file; files without a message in common are parts of one recording, and
                one that goes on where another ended, by the venue's times, follows on its clock
    ties        keep a file's order; across files control lines first, then by content
    repeated    the same line with the same receive time counts once
    primary     the recording whose line comes first on a date (UTC); of its copies in others none
                is used, so that the times are those of one machine
    backup      what the primary lacks comes from the next recording with that one's own times;
                updates of a book wait for the ones before them
    clock       a recording whose clock lies over `NEAR_NS` from the primary's is left out beside it
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.units import DAY_NS, SECOND_NS
from market.wire.capture import BLOCK_BYTES, Block, read_blocks
from market.wire.lines import (
    CONTROL,
    COPY,
    FRAME,
    LEFT_OUT,
    LINE,
    MARK,
    REPEATED,
    SNAPSHOT,
    USED,
    Lines,
    Piece,
    Usage,
    find_copies,
    gather,
    index_lines,
    is_repeated,
    put_in_order,
    set_times,
    stretches,
)
from market.wire.topics import topic_in

#: Copies of one message are received within this time, in recordings whose clocks are right.
NEAR_NS: Final = 10 * SECOND_NS
#: A message that was used is remembered for so long.
_MEMORY_NS: Final = 60 * SECOND_NS
#: Text that is merged at once, beside what is read ahead.
_WINDOW_BYTES: Final = 16 << 20

_STAMP: Final = re.compile(rb"[0-9]{1,18}(?= )|[1-8][0-9]{18}(?= )")
_ALL: Final = 1 << 62
_FATES: Final = {USED: "used", REPEATED: "repeated", COPY: "copies", LEFT_OUT: "left_out"}


class _File:
    """A capture that is being read."""

    def __init__(self, number: int, path: str, start_ns: int) -> None:
        self.number, self.path, self.start_ns = number, path, start_ns
        self.blocks = read_blocks(path)
        self.clock_ns = start_ns
        self.in_stretch = self.ended = False
        self.recording = -1
        self.compared: set[int] = set()  #: ended files that it may go on from
        self.chain = number  #: the file that it goes on from in the end


class Merge:
    """The pieces of captures, given with the receive times of their first lines, in this order."""

    def __init__(self, starts: Mapping[str, int]) -> None:
        self._files = [_File(n, path, ns) for n, (path, ns) in enumerate(starts.items())]
        self._pending = deque(self._files)
        self._active: list[_File] = []
        self._lines, self._marks = np.zeros(0, LINE), np.zeros(0, MARK)
        self._text = b""
        self._parts: list[tuple[Lines, Lines, bytes]] = []  #: read, and not in the window yet
        self._first_ns = _ALL  #: of the lines that were not given out
        self._names: dict[int, str] = {}
        self._turns: dict[int, int] = {}  #: time of a turn line -> its file
        self._ranks: dict[int, list[int]] = {}  #: day -> recordings, the primary first
        self._ends: list[Block] = []

    def __iter__(self) -> Iterator[Piece]:
        while self._pending or self._active:
            if not self._active:
                self._active.append(self._pending.popleft())
            if len(self._active) > 1 or len(self._lines) or self._parts:
                yield from self._merged()
                continue
            (file,) = self._active
            block, before_ns = next(file.blocks), file.clock_ns
            stamp = _STAMP.match(block.data, block.data.rfind(b"\n", 0, -1) + 1)
            if stamp is not None:
                file.clock_ns = max(before_ns, int(stamp[0]))
            if self._pending and (
                stamp is None or self._pending[0].start_ns - NEAR_NS <= file.clock_ns
            ):
                file.clock_ns = before_ns
                self._add(file, block)
                continue
            file.recording = max(file.recording, 0)
            for day in range(before_ns // DAY_NS, file.clock_ns // DAY_NS + 1):
                self._rank(day, file.recording)
            if block.last:
                self._active.clear()
            yield Piece(block, file.start_ns, [file.path])

    # -- reading -------------------------------------------------------------------------------

    def _add(self, file: _File, block: Block) -> None:
        """Read a block of a file into the window."""
        lines, marks = index_lines(block.data, file.number, block.first_line)
        if block.cut:
            lines["cut"] = np.isin(lines["number"], list(block.cut))
        file.clock_ns, file.in_stretch = set_times(lines, file.clock_ns, file.in_stretch)
        topics, places = np.unique(lines["topic"], return_index=True)
        for topic, place in zip(topics.tolist(), places, strict=True):
            if topic and topic not in self._names:
                line = lines[place]
                self._names[topic] = topic_in(block.data[line["start"] : line["stop"]])
        for line in lines[lines["kind"] == CONTROL]:
            if b'"turn"' in block.data[line["start"] : line["stop"]]:
                self._turns[int(line["receive_ns"])] = file.number
        self._parts.append((lines, marks, block.data))
        self._first_ns = min([self._first_ns, *lines["key_ns"][:1].tolist()])
        file.ended = block.last
        if block.last:
            self._ends.append(msgspec.structs.replace(block, data=b""))

    def _join(self) -> None:
        """Put what was read into the window."""
        parts = [(self._lines, self._marks, self._text), *self._parts]
        texts = np.cumsum([0, *(len(text) for _, _, text in parts)])
        counts = np.cumsum([0, *(len(lines) for lines, _, _ in parts)])
        for n, (lines, marks, _) in enumerate(parts):
            lines["start"] += texts[n]
            lines["stop"] += texts[n]
            marks["line"] += counts[n]
        self._lines = np.concatenate([lines for lines, _, _ in parts])
        self._marks = np.concatenate([marks for _, marks, _ in parts])
        self._text = b"".join(text for _, _, text in parts)
        self._parts = []

    def _read_on(self) -> int:
        """Read a window of all active files; returns the time up to which it can be given out."""
        read = 0
        while True:
            while self._pending and self._pending[0].start_ns - NEAR_NS <= max(
                file.clock_ns for file in self._active
            ):
                self._active.append(self._pending.popleft())
            unread = [file for file in self._active if not file.ended]
            if not unread:
                return _ALL
            slowest = min(unread, key=lambda file: file.clock_ns)
            # Read ahead: copies are looked for NEAR_NS on, and whose they are another NEAR_NS.
            limit_ns = slowest.clock_ns - 2 * NEAR_NS
            if read >= _WINDOW_BYTES and self._first_ns < limit_ns:
                break
            block = next(slowest.blocks)
            self._add(slowest, block)
            read += max(1, len(block.data))
        self._active = [
            file
            for file in self._active
            if not (file.ended and file.clock_ns + _MEMORY_NS < limit_ns)
        ]
        near = self._pending and self._pending[0].start_ns - NEAR_NS <= slowest.clock_ns
        return limit_ns if near or len(self._active) > 1 else _ALL

    # -- judging -------------------------------------------------------------------------------

    def _merged(self) -> Iterator[Piece]:
        """The next window: its lines up to a time, in order."""
        limit_ns = self._read_on()
        self._join()
        lines = self._lines
        open_ = lines["done"] == 0
        lines["fate"][open_ & (lines["fate"] == COPY)] = USED
        self._find_repeated(np.flatnonzero(open_))
        for file in self._active:
            if file.recording < 0 and file.start_ns <= min(limit_ns, _ALL - NEAR_NS) + NEAR_NS:
                file.recording = self._recording_of(file)
        self._compare_clocks()
        ranks = self._line_ranks()
        rewritten = self._find_copies(ranks)
        moved = self._set_places()
        rewritten |= self._controls(ranks)
        waiting = moved & (lines["done"] == 0) & (lines["fate"] == USED)
        for place in np.flatnonzero(waiting).tolist():
            raw = rewritten.get(place) or self._raw(lines[place])
            rewritten[place] = b"%d %b" % (lines["at_ns"][place], raw.partition(b" ")[2])
        yield from self._give(limit_ns, rewritten)
        self._forget(limit_ns)

    def _raw(self, line: np.void) -> bytes:
        return self._text[line["start"] : line["stop"]]

    def _find_repeated(self, open_: npt.NDArray[np.intp]) -> None:
        lines = self._lines
        part = lines[open_]
        order = open_[np.lexsort((part["file"], part["mark"], part["receive_ns"]))]
        repeated = np.zeros(len(lines), np.bool_)
        is_repeated(np.frombuffer(self._text, np.uint8), lines, order, repeated)
        lines["fate"][repeated] = REPEATED

    def _live_marks(self) -> Lines:
        """Marks of frames that count."""
        lines = self._lines[self._marks["line"]]
        live = (lines["kind"] >= FRAME) & ((lines["fate"] == USED) | (lines["fate"] == COPY))
        found: Lines = self._marks[live]
        return found

    def _recording_of(self, file: _File) -> int:
        """The recording that a file is part of: the first without a message in common.

        A file that it turned from, or with which it shares lines, says it for certain.
        """
        lines = self._lines
        again = lines[(lines["file"] == file.number) & (lines["fate"] == REPEATED)]
        twins = lines["file"][
            np.isin(lines["receive_ns"], again["receive_ns"])
            & np.isin(lines["mark"], again["mark"])
        ]
        certain: list[int] = [
            self._turns.get(file.start_ns, file.number),
            *np.unique(twins).tolist(),
        ]
        for other in certain:
            if other != file.number and self._files[other].recording >= 0:
                return self._files[other].recording
        marks = self._live_marks()
        files = self._lines["file"][marks["line"]]
        ours = np.unique(marks["mark"][files == file.number])
        rivals = {
            self._files[other].recording
            for other in np.unique(files[np.isin(marks["mark"], ours)])
            if other != file.number
        }
        return next(n for n in range(len(self._files) + 1) if n not in rivals)

    def _compare_clocks(self) -> None:
        """Follow on from files that ended, and leave out files whose clock is another."""
        lines = self._lines
        frames = lines[(lines["kind"] >= FRAME) & (lines["fate"] != REPEATED)]
        of_file = {file.number: frames[frames["file"] == file.number] for file in self._active}
        for first, second in combinations(sorted(of_file), 2):
            before, after = self._files[first], self._files[second]
            ours, theirs = of_file[first], of_file[second]
            shared = np.intersect1d(ours["topic"], theirs["topic"])
            if not len(shared) or after.start_ns > before.clock_ns:
                continue
            same = before.recording == after.recording >= 0
            if same and before.ended and first not in after.compared:
                after.compared.add(first)
                if all(
                    theirs["sent_ns"][theirs["topic"] == topic].min()
                    >= ours["sent_ns"][ours["topic"] == topic].max()
                    for topic in shared
                ):
                    after.chain = before.chain
                    mine = (lines["file"] == second) & (lines["done"] == 0)
                    mine &= lines["fate"] != REPEATED
                    part = lines[mine]
                    after.clock_ns, after.in_stretch = set_times(part, before.clock_ns, False)
                    lines[mine] = part
                    continue
            lags = [(each["receive_ns"] - each["sent_ns"]).min() for each in (ours, theirs)]
            if abs(lags[1] - lags[0]) > NEAR_NS:
                astray = (lines["file"] == second) & (lines["done"] == 0)
                astray &= (lines["key_ns"] <= before.clock_ns) & (lines["kind"] >= FRAME)
                lines["fate"][astray] = LEFT_OUT
                lines["other_clock"][astray] = 1
                lines["behind_ns"][astray] = abs(lags[1] - lags[0])

    def _rank(self, day: int, recording: int) -> int:
        """The rank of a recording on a day; 0 for the primary, whose line came first."""
        ranks = self._ranks.setdefault(day, [])
        if recording not in ranks:
            ranks.append(recording)
        return ranks.index(recording)

    def _line_ranks(self) -> npt.NDArray[np.int64]:
        """The rank of each line's recording on its date by the venue's time."""
        lines = self._lines
        recordings = np.array([file.recording for file in self._files])[lines["file"]]
        known = (recordings >= 0) & (lines["kind"] >= FRAME) & (lines["fate"] != LEFT_OUT)
        width = len(self._files) + 2
        pairs = lines["key_ns"] // DAY_NS * width + recordings + 1
        places = np.flatnonzero(known)
        places = places[np.lexsort((lines["mark"][places], lines["key_ns"][places]))]
        firsts = np.unique(pairs[places], return_index=True)[1]
        for place in places[np.sort(firsts)]:
            self._rank(int(lines["key_ns"][place] // DAY_NS), int(recordings[place]))
        days = np.where(lines["sent_ns"] > 0, lines["sent_ns"], lines["key_ns"]) // DAY_NS
        values, inverse = np.unique(days * width + recordings + 1, return_inverse=True)
        ranks = []
        for day, recording in (divmod(int(value), width) for value in values):
            order = self._ranks.get(day, [])
            at = recording - 1
            ranks.append(order.index(at) if at in order else len(order) + recording)
        return np.array(ranks, np.int64)[inverse]

    def _find_copies(self, ranks: npt.NDArray[np.int64]) -> dict[int, bytes]:
        """Judge copies; of a frame of trades of which a part is copied the rest, by line."""
        lines, marks = self._lines, self._live_marks()
        order = np.lexsort((ranks[marks["line"]], marks["mark"]))
        copied = np.zeros(len(marks), np.bool_)
        find_copies(marks[order], lines, ranks, NEAR_NS, _MEMORY_NS, copied)
        owners = marks["line"][order]
        all_of = np.bincount(owners, minlength=len(lines))
        of = np.bincount(owners[copied], minlength=len(lines))
        open_ = lines["done"] == 0
        lines["fate"][open_ & (of > 0) & (of == all_of)] = COPY
        gone = np.empty_like(copied)
        gone[order] = copied
        rests = {}
        for place in np.flatnonzero(open_ & (of > 0) & (of < all_of)):
            stamp, _, frame = self._raw(lines[place]).partition(b" ")
            content = msgspec.json.decode(frame)
            among = zip(content["data"], gone[marks["line"] == place], strict=True)
            content["data"] = [each for each, has in among if not has]
            rests[int(place)] = b"%b %b\n" % (stamp, msgspec.json.encode(content))
        return rests

    def _set_places(self) -> npt.NDArray[np.bool_]:
        """Set the lines' places in time; returns where a line waits for one of another file."""
        lines = self._lines
        lines["at_ns"] = lines["key_ns"]
        moved = np.zeros(len(lines), np.bool_)
        books = np.flatnonzero((lines["kind"] >= SNAPSHOT) & (lines["fate"] == USED))
        part = lines[books]
        order = books[np.lexsort((part["key_ns"], part["order"], part["topic"]))]
        put_in_order(lines, order, NEAR_NS, moved)
        return moved

    def _controls(self, ranks: npt.NDArray[np.int64]) -> dict[int, bytes]:
        """Judge control lines: a lost connection concerns the topics of its own file only."""
        lines, changed = self._lines, {}
        frames = lines["kind"] >= FRAME
        for place in np.flatnonzero((lines["kind"] == CONTROL) & (lines["done"] == 0)):
            line = lines[place]
            if line["fate"] != USED:
                continue
            stamp, _, text = self._raw(line).partition(b" ")
            content = msgspec.json.decode(text)
            here = frames & (abs(lines["key_ns"] - line["key_ns"]) <= NEAR_NS)
            if content["l2"] == "checkpoint":
                better = here & (lines["topic"] == line["topic"]) & (ranks < ranks[place])
                if better.any():
                    lines["fate"][place] = COPY
            elif content["l2"] == "disconnect":
                mine = lines["file"] == line["file"]
                own = np.setdiff1d(
                    lines["topic"][here & mine], lines["topic"][here & (ranks != ranks[place])]
                )
                others = np.setdiff1d(lines["topic"][here], own)
                if len(others):
                    names = sorted(self._names[topic] for topic in others.tolist())
                    text = msgspec.json.encode(content | {"except": names})
                    changed[int(place)] = b"%b %b\n" % (stamp, text)
        return changed

    # -- giving out ----------------------------------------------------------------------------

    def _give(self, limit_ns: int, rewritten: dict[int, bytes]) -> Iterator[Piece]:
        """The pieces of the window up to a time, date by date; marks their lines as done."""
        lines = self._lines
        open_ = lines["done"] == 0
        used = open_ & (lines["fate"] == USED) & (lines["at_ns"] < limit_ns)
        dropped = open_ & (lines["fate"] != USED) & (lines["key_ns"] < limit_ns)
        lines["done"][used | dropped] = 1
        paths = [file.path for file in self._files]
        gone = lines[dropped]
        text = self._text
        order = np.flatnonzero(used)
        chains = np.array([file.chain for file in self._files])
        order = order[_in_order(lines[order], chains[lines["file"][order]])]
        starts, stops = lines["start"].copy(), lines["stop"].copy()
        for place in sorted(rewritten):
            starts[place], stops[place] = len(text), len(text) + len(rewritten[place])
            text += rewritten[place]
        given = lines[order]
        given["start"], given["stop"] = starts[order], stops[order]
        days = given["at_ns"] // DAY_NS
        sizes = np.cumsum(given["stop"] - given["start"])
        cuts = np.flatnonzero(np.diff(days) | np.diff(sizes // BLOCK_BYTES)) + 1
        began = self._began
        for n, part in enumerate(np.split(given, cuts)):
            day = int(part["at_ns"][0] // DAY_NS) if len(part) else 0
            day_of = gone["key_ns"] // DAY_NS
            fallen = gone if n == len(cuts) else gone[:0]
            if n < len(cuts) and days[cuts[n]] != day:
                fallen, gone = gone[day_of <= day], gone[day_of > day]
            out = np.empty(int((part["stop"] - part["start"]).sum()), np.uint8)
            gather(np.frombuffer(text, np.uint8), part, out)
            left = stretches(fallen[fallen["fate"] == LEFT_OUT], text, paths)
            yield Piece(
                Block(
                    paths[part["file"][0]] if len(part) else "",
                    1,
                    out.tobytes(),
                    frozenset((np.flatnonzero(part["cut"]) + 1).tolist()),
                ),
                began(day),
                [paths[n] for n in part["file"]],
                part["number"].copy(),
                self._usage(np.concatenate([part, fallen])),
                left,
            )
        for block in self._ends:
            file = next(file for file in self._files if file.path == block.path)
            yield Piece(block, file.start_ns, [block.path])
        self._ends = []

    def _began(self, day: int) -> int:
        ahead = np.unique(self._lines["file"][self._lines["key_ns"] >= day * DAY_NS])
        return min((self._files[n].start_ns for n in ahead), default=_ALL)

    def _usage(self, lines: Lines) -> dict[tuple[str, str], Usage]:
        lines = lines[lines["kind"] >= CONTROL]
        kinds, inverse = np.unique(lines[["file", "topic", "fate"]], return_inverse=True)
        usage: dict[tuple[str, str], Usage] = {}
        for n, (file, topic, fate) in enumerate(kinds.tolist()):
            times = lines["key_ns"][inverse == n]
            found = Usage(first_ns=int(times.min()), last_ns=int(times.max()))
            setattr(found, _FATES[fate], len(times))
            key = self._files[file].path, self._names.get(topic, "")
            usage[key] = usage.get(key, Usage()) + found
        return usage

    def _forget(self, limit_ns: int) -> None:
        """Drop what was given out, but for the marks of the last minute."""
        lines = self._lines
        if limit_ns == _ALL:
            self._lines, self._marks, self._text = lines[:0], self._marks[:0], b""
            self._active = [file for file in self._active if not file.ended]
            self._first_ns = _ALL
            return
        kept = (lines["done"] == 0) | (lines["key_ns"] >= limit_ns - _MEMORY_NS)
        places = np.cumsum(kept) - 1
        marks = self._marks[kept[self._marks["line"]]]
        marks["line"] = places[marks["line"]]
        lines = lines[kept]
        open_ = lines["done"] == 0
        sizes = np.where(open_, lines["stop"] - lines["start"], 0)
        part = lines[open_]
        out = np.empty(int(sizes.sum()), np.uint8)
        gather(np.frombuffer(self._text, np.uint8), part, out)
        lines["stop"] = np.cumsum(sizes)
        lines["start"] = lines["stop"] - sizes
        self._lines, self._marks, self._text = lines, marks, out.tobytes()
        self._first_ns = int(part["key_ns"].min(initial=_ALL))


def _in_order(lines: Lines, chains: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Order by time; at ties of several chains of files by content, else as in the file."""
    times, first, group = np.unique(lines["at_ns"], return_index=True, return_inverse=True)
    mixed = np.zeros(len(times), np.bool_)
    mixed[group[chains != chains[first][group]]] = True
    tied = mixed[group]
    kind = np.where(lines["kind"] == CONTROL, 0, 1 + (lines["kind"] >= SNAPSHOT))
    keys = [np.where(tied, key, 0) for key in (lines["mark"], lines["order"], kind)]
    return np.lexsort((lines["number"], lines["file"], *keys, group))
