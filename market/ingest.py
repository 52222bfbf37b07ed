"""Captures → the lake: events partitions, counts by topic, and quarantined lines.

Captures are read once, as one stream in time order (`market.wire.merge`). A partition is the UTC date
of receive time; when the stream crosses midnight the new one opens with the book and the ticker
restated, flagged CHECKPOINT, so that it can be read alone. Rows are written as they come, in row groups
of a fixed size: memory does not grow with the day, and the same captures give the same bytes.

    events       one row per book level, trade, liquidation and ticker field
    ingests      one row per topic: frames, events, rejections, duplicates, gaps, lags; its metadata
                 ``files`` says what became of the lines of each file
    quarantine   every rejected line as received, with file, line number and reason, and every
                 accepted one of which a ticker field was left out; lines that name no symbol are
                 under the symbol ``unattributed``

An events partition names the instant up to which the stream is known (``until_ns``): midnight when
one of the date's captures goes on past it, else the end of the second of the stream's last line, of
any topic and symbol. Seconds up to there passed, also those in which one symbol was silent.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from market.book import Book
from market.event_partition import Partition
from market.events import EVENT, Events, Flag, Kind
from market.lake import Lake
from market.provenance import Table
from market.settings import Settings
from market.store import size_of
from market.units import DAY_NS, MINUTE_NS, SECOND_NS, day_start_ns, utc_date
from market.wire.capture import Block, content_hash
from market.wire.decode import Decoder
from market.wire.lines import LeftOut, Piece, Usage, left_out_of
from market.wire.merge import Merge
from market.wire.results import Decoded, Reject, TopicCounts
from market.wire.survey import IngestError, Key, first_frame_ns, instruments_of, starts_of
from market.wire.topics import symbol_of, symbol_topics

#: After a longer silence across midnight the stream has ended with the old date: its book is not
#: restated, because it says nothing about the new one.
MAX_SILENCE_NS: Final = 10 * MINUTE_NS
UNATTRIBUTED: Final = "unattributed"

_PROGRESS_BYTES: Final = 256 << 20
_NO_EVENTS: Final = np.zeros(0, EVENT)

INGESTS_SCHEMA: Final = pa.schema(
    [
        pa.field("topic", pa.string(), nullable=False),
        pa.field("converted", pa.bool_(), nullable=False),
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("rejected", pa.int64(), nullable=False),
        pa.field("duplicates", pa.int64(), nullable=False),
        pa.field("gaps", pa.int64(), nullable=False),
        pa.field("steps_back", pa.int64(), nullable=False),
        pa.field("left_out", pa.int64(), nullable=False),
        pa.field("torn", pa.int64(), nullable=False),
        pa.field("min_lag_ns", pa.int64()),
        pa.field("max_lag_ns", pa.int64()),
    ]
)


TABLES: Final = (
    Table("events", version=2),
    Table("ingests", version=2, upstream=("events",)),
    Table("quarantine", version=1, upstream=("events",)),
)


class IngestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an ingest did, over the requested dates.

    ``frames`` counts by topic, ``events`` by ``"SYMBOL DATE"``, ``reasons`` quarantined lines by
    reason. ``elsewhere`` counts rejected lines of configured symbols that were not requested: the
    ingest of their own partition keeps them. ``missing`` has the keys without an event, under such names,
    and how many of their lines were quarantined. ``torn`` is the number of captures with a torn tail,
    ``torn_bytes`` the bytes dropped there. ``files`` says what became of each capture's frames,
    ``findings`` what a person has to see, a sentence each.
    """

    captures: tuple[str, ...]
    inputs: str
    lines: int
    frames: dict[str, int]
    events: dict[str, int]
    quarantined: int
    reasons: dict[str, int]
    elsewhere: int
    missing: dict[str, int]
    duplicates: int
    gaps: int
    steps_back: int
    torn: int
    torn_bytes: int
    files: dict[str, Usage]
    findings: tuple[str, ...]


def ingest(
    lake: Lake,
    captures: Sequence[str],
    keys: Collection[Key],
    settings: Settings,
    progress: Callable[[str], None] | None = None,
) -> IngestReport:
    """Write the partitions of the given (symbol, date) keys from these captures.

    A key without an event in them is left as it is, and reported. Raises IngestError when a file has no
    frame, CaptureError when one cannot be read. Partitions are replaced atomically, a date at a time:
    the old one stays until the new one is whole.
    """
    if not keys:
        raise IngestError("no (symbol, date) requested; name at least one")
    for symbol, day in keys:
        _check_key(symbol, day)
    if not captures:
        raise IngestError("no capture to read; name at least one *.frames.zst file")
    starts = starts_of(captures)
    ordered = list(starts)
    run = _Run(lake, ordered, keys, settings, starts[ordered[0]])
    try:
        for piece in Merge(starts):
            run.read(piece, progress)
            if run.done:
                break
        run.close_day(run.seen_until_ns)
    except BaseException as error:
        run.abandon(error)
        raise
    return run.report()


def fingerprint(captures: Iterable[str], settings: Settings) -> str:
    """Hash of the inputs of these captures' events besides code: content, names and book depth."""
    files = sorted((Path(path).name, size_of(path), content_hash(path)) for path in captures)
    text = msgspec.json.encode([settings.market.book_depth, files])
    return hashlib.sha256(text).hexdigest()[:16]


def adopt(lake: Lake, file: str | Path) -> str:
    """Copy a capture into the lake's frames, under the date of its first frame; returns its path.

    The name is made of first receive time and content hash, so that adopting is idempotent and names
    sort by time. The copy appears whole or not at all.
    """
    first = first_frame_ns(file)
    name = f"{first:019d}-{content_hash(file)[:16]}.frames.zst"
    path = f"{lake.frames_dir(utc_date(first))}/{name}"
    if lake.store.stat(path) is None:
        lake.put_file(path, file)
    return path


def _check_key(symbol: str, day: str) -> None:
    try:
        whole = date.fromisoformat(day).isoformat() == day
    except ValueError:
        whole = False
    if not whole or not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", symbol):
        raise IngestError(f"{symbol} {day}: not a symbol and a date (YYYY-MM-DD)")


def _in_file(file: str, line: int) -> tuple[str, int]:
    return file, line


class _Run:
    """One ingest: the stream, and the open partitions of its current date."""

    def __init__(
        self,
        lake: Lake,
        captures: Sequence[str],
        keys: Collection[Key],
        settings: Settings,
        first_ns: int,
    ) -> None:
        self.lake, self.captures, self.settings = lake, captures, settings
        self.keys = frozenset(keys)
        self.symbols = sorted({symbol for symbol, _ in keys})
        self.last_day = max(day for _, day in keys)
        self.inputs = fingerprint(captures, settings)
        depth = settings.market.book_depth
        self.instruments = instruments_of(captures, self.symbols, depth)
        self.decoder = Decoder(self.instruments, depth, self.symbols, follow=False)
        self.books = {symbol: Book() for symbol in self.symbols}
        self.tickers: dict[str, dict[int, Events]] = {symbol: {} for symbol in self.symbols}
        self.frames: Counter[str] = Counter()
        self.events: dict[str, int] = {}
        self.reasons: Counter[str] = Counter()
        self.missing = dict.fromkeys((f"{symbol} {day}" for symbol, day in sorted(keys)), 0)
        self.lines = self.torn = self.torn_bytes = self.elsewhere = 0
        self.duplicates = self.gaps = self.steps_back = 0
        self.files: dict[str, Usage] = {}
        self.findings: list[str] = []
        self._read: Counter[str] = Counter()  #: lines, by capture
        self._understood: Counter[str] = Counter()
        self._shown = self._waited = 0
        self._seen_ns = 0
        self.done = False
        self._open_day(utc_date(first_ns))

    # -- dates ---------------------------------------------------------------------------------

    def _open_day(self, day: str) -> None:
        self.day = day
        self.until_ns = day_start_ns(day) + DAY_NS
        self.stack = ExitStack()
        self.open = {
            symbol: self._partition(symbol) for symbol in self.symbols if (symbol, day) in self.keys
        }
        self._torn_today = 0
        self._usage: dict[tuple[str, str], Usage] = {}
        self._left_out: dict[tuple[str, int], LeftOut] = {}
        self.done = day > self.last_day

    def _partition(self, symbol: str) -> Partition:
        partition = Partition(self.lake, self.stack, (symbol, self.day), self.inputs)
        partition.instrument = self.instruments.get(symbol)
        return partition

    @property
    def seen_until_ns(self) -> int:
        """The end of the second of the stream's last line."""
        return (self._seen_ns // SECOND_NS + 1) * SECOND_NS

    def close_day(self, until_ns: int) -> None:
        """Publish the date's partitions; the stream is known up to ``until_ns``."""
        if self.open:
            self._keep_left_out()
            self._unattributed().finish(until_ns)
        for partition in self.open.values():
            partition.finish(until_ns)
        self.stack.close()
        for symbol, partition in self.open.items():
            if symbol == UNATTRIBUTED:
                continue
            key = f"{symbol} {self.day}"
            self.missing[key] = partition.quarantined
            if partition.rows > partition.restated:
                self.events[key] = partition.rows
                del self.missing[key]
            self._write_counts(partition)
        self.open = {}

    def abandon(self, error: BaseException) -> None:
        """Drop unfinished partitions; published ones stay."""
        try:
            self.stack.__exit__(type(error), error, error.__traceback__)
        except BaseException as again:
            if again is not error:
                raise

    def _turn(self, stamp_ns: int, began_ns: int) -> None:
        """Go on to the date of a line received at ``stamp_ns``, carrying the state over.

        ``began_ns`` is when its file begins. Only a file of the old date shows that the date's
        stream went on, so that a partition does not depend on files read after it.
        """
        goes_on = stamp_ns - self._seen_ns <= MAX_SILENCE_NS
        to_midnight = goes_on and began_ns < self.until_ns
        self.close_day(self.until_ns if to_midnight else self.seen_until_ns)
        self._open_day(utc_date(stamp_ns))
        if not goes_on:
            return
        midnight = self.until_ns - DAY_NS
        for symbol, partition in self.open.items():
            rows = self.books[symbol].snapshot_rows(midnight)
            rows = np.concatenate([rows, self._ticker_rows(symbol, midnight)])
            if len(rows):
                partition.restated = len(rows)
                partition.add(rows)

    def _ticker_rows(self, symbol: str, midnight: int) -> Events:
        fields = self.tickers[symbol]
        rows = np.concatenate([fields[field] for field in sorted(fields)] or [_NO_EVENTS])
        rows["receive_ns"] = midnight
        rows["flags"] = Flag.CHECKPOINT
        rows["flags"][-1:] = Flag.CHECKPOINT | Flag.LAST
        return rows

    # -- the stream ----------------------------------------------------------------------------

    def read(self, piece: Piece, progress: Callable[[str], None] | None) -> None:
        """Take a piece of the stream in; lines after the last date are not read."""
        block, path = piece.block, piece.files[0] if piece.files else ""
        rest: Block | None = block
        while rest is not None and not self.done:
            state = self.decoder.clock_ns, self.decoder.in_stretch
            part = self.decoder.decode_part(rest, self.until_ns)
            self._take(part, piece)
            if piece.numbers is None:
                self._note_alone(path, part, rest, *state)
            rest = part.rest
            if part.reached and rest is not None:
                self._turn(int(rest.data.partition(b" ")[0]), piece.began_ns)
        if self.done:
            return
        self._note(piece.usage, piece.left_out)
        for (file, _), usage in piece.usage.items():
            self._understood[file] += 1
            self._read[file] += usage.used + usage.repeated + usage.copies + usage.left_out
        if block.torn:
            self._torn_today += 1
            if self.open:
                self.torn += 1
                self.torn_bytes += block.torn_bytes
        if block.last and not self._understood[path]:
            raise IngestError(
                f"{path}: not one of its {self._read[path]} lines is a frame; a capture holds lines of "
                "`<receive time, epoch ns> <frame JSON>`"
            )
        self._shown += len(block.data)
        if progress is not None and (block.last or self._shown >= _PROGRESS_BYTES):
            self._shown = 0
            done = block.compressed_bytes / size_of(path)
            state_of = "read" if block.last else f"{done:.0%}"
            progress(f"{Path(path).name}: {state_of}, {self._read[path]:,} lines")

    def _note_alone(
        self, path: str, part: Decoded, block: Block, clock_ns: int, in_stretch: bool
    ) -> None:
        """Note what became of the lines of a file that is alone in time."""
        self._read[path] += part.lines
        self._understood[path] += len(part.controls) + sum(n.frames for n in part.counts.values())
        first_ns, last_ns = clock_ns or self.decoder.clock_ns, self.decoder.clock_ns
        usage = {
            (path, topic): Usage(n.frames - n.left_out, 0, 0, n.left_out, first_ns, last_ns)
            for topic, n in part.counts.items()
        }
        left_out: list[LeftOut] = []
        if part.left_out:
            rest = 0 if part.rest is None else len(part.rest.data)
            read = msgspec.structs.replace(block, data=block.data[: len(block.data) - rest])
            left_out = left_out_of(read, clock_ns, in_stretch)
        self._note(usage, left_out)

    def _note(self, usage: Mapping[tuple[str, str], Usage], left_out: Iterable[LeftOut]) -> None:
        for key, more in usage.items():
            self._usage[key] = self._usage.get(key, Usage()) + more
            if self.open:
                self.files[key[0]] = self.files.get(key[0], Usage()) + more
        for stretch in left_out:
            found = self._left_out.setdefault((stretch.file, stretch.clock_ns), stretch)
            if found is not stretch:
                found.extend(stretch)

    def _keep_left_out(self) -> None:
        """A row of quarantine and a finding for each stretch of lines without a time."""
        for stretch in self._left_out.values():
            name = Path(stretch.file).name
            self.findings.append(f"{name}, {stretch.text}")
            rejects = [
                Reject(stretch.first_line, "clock set back", stretch.text, symbol, "", stretch.raw)
                for symbol in sorted(stretch.symbols & self.open.keys())
            ]
            self._quarantine(rejects, partial(_in_file, name))

    def _take(self, part: Decoded, piece: Piece) -> None:
        if self.decoder.clock_ns:
            self._seen_ns = self.decoder.clock_ns
        if self.day < self.last_day:
            self._carry(part.events)
        if not self.open:
            return
        self.lines += part.lines
        for symbol, events in part.events.items():
            if symbol in self.open:
                self.open[symbol].add(events)
        for topic, counts in part.counts.items():
            self.frames[topic] += counts.frames
            self.duplicates += counts.duplicates
            self.gaps += counts.gaps
            self.steps_back += counts.steps_back
            self._waited += counts.steps_back - counts.left_out
            partition = self.open.get(symbol_of(topic))
            if partition is not None:
                before = partition.counts.get(topic, TopicCounts())
                partition.counts[topic] = before + counts
        if part.rejects:
            self._quarantine(part.rejects, piece.place)

    def _carry(self, events: Mapping[str, Events]) -> None:
        """Apply rows to book and ticker, for the restatement at the next midnight."""
        for symbol, rows in events.items():
            self.books[symbol].apply(rows)
            fields = rows[rows["kind"] == Kind.TICKER]
            for field in np.unique(fields["field"]):
                self.tickers[symbol][int(field)] = fields[fields["field"] == field][-1:].copy()

    def _quarantine(
        self, rejects: Sequence[Reject], place: Callable[[int], tuple[str, int]]
    ) -> None:
        """Keep rejected lines; ``place`` gives the (file, line number) of a line."""
        by_symbol: dict[str, list[Reject]] = {}
        for reject in rejects:
            if reject.symbol in self.open:
                by_symbol.setdefault(reject.symbol, []).append(reject)
            elif reject.symbol not in (*self.symbols, *self.settings.market.recorded):
                by_symbol.setdefault(UNATTRIBUTED, []).append(reject)
            else:
                self.elsewhere += 1
        for symbol, rejected in by_symbol.items():
            partition = self._unattributed() if symbol == UNATTRIBUTED else self.open[symbol]
            partition.quarantine([place(reject.line) for reject in rejected], rejected)
            self.reasons.update(reject.reason for reject in rejected)

    def _unattributed(self) -> Partition:
        if UNATTRIBUTED not in self.open:
            self.open[UNATTRIBUTED] = self._partition(UNATTRIBUTED)
        return self.open[UNATTRIBUTED]

    # -- results -------------------------------------------------------------------------------

    def _write_counts(self, partition: Partition) -> None:
        symbol = partition.key[0]
        converted = symbol_topics(symbol, self.settings.market.book_depth)
        counts = dict(sorted(partition.counts.items()))
        lags = [n.min_lag_ns for n in counts.values() if n.min_lag_ns is not None]
        if min(lags, default=0) < -SECOND_NS:
            self.findings.append(
                f"{symbol} {self.day}: frames were received up to {-min(lags) / 1e9:.3f} s before the venue "
                "sent them: the recorder's clock was behind"
            )
        if partition.restated:
            counts["restated"] = TopicCounts(events=partition.restated)
        if unattributed := self.open[UNATTRIBUTED].quarantined:
            counts[UNATTRIBUTED] = TopicCounts(rejected=unattributed)
        left_out: Counter[str] = Counter()  # those that a merge left out were not decoded
        for (_, topic), usage in self._usage.items():
            left_out[topic] += usage.left_out
        rows: list[dict[str, Any]] = [
            {
                "topic": topic,
                "converted": topic in converted,
                "torn": self._torn_today,
                **msgspec.structs.asdict(count),
                "left_out": left_out[topic],
            }
            for topic, count in counts.items()
        ]
        table = pa.Table.from_pylist(rows, schema=INGESTS_SCHEMA)
        files = [
            {"file": Path(file).name, "topic": topic, **msgspec.to_builtins(usage)}
            for (file, topic), usage in sorted(self._usage.items())
            if symbol_of(topic) == symbol
        ]
        extra = {"files": msgspec.json.encode(files).decode()}
        self.lake.write("ingests", *partition.key, table, self.inputs, extra)

    def report(self) -> IngestReport:
        if self.duplicates:
            self.findings.append(
                f"{self.duplicates} updates of books came again and are dropped; if a file holds two "
                "recordings of a topic, give them apart: its trades count twice"
            )
        if self._waited:
            self.findings.append(
                f"{self._waited} frames were received up to a second before earlier ones "
                "(a clock stepped back) and have the earlier ones' time"
            )
        return IngestReport(
            captures=tuple(self.captures),
            inputs=self.inputs,
            lines=self.lines,
            frames=dict(sorted(self.frames.items())),
            events=dict(sorted(self.events.items())),
            quarantined=sum(self.reasons.values()),
            reasons=dict(sorted(self.reasons.items())),
            elsewhere=self.elsewhere,
            missing=self.missing,
            duplicates=self.duplicates,
            gaps=self.gaps,
            steps_back=self.steps_back,
            torn=self.torn,
            torn_bytes=self.torn_bytes,
            files={Path(path).name: usage for path, usage in sorted(self.files.items())},
            findings=tuple(self.findings),
        )
