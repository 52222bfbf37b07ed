"""hftbacktest's event arrays (``.npz``), from events of the lake and as rows of a capture.

An array has the fields ``ev, exch_ts, local_ts, px, qty, order_id, ival, fval``; ``ev`` is a kind in
its low byte and bits for "seen at the exchange", "seen locally", buy and sell.

Out: levels and trades of the visible book. A snapshot, or a gap in the sequence, clears the book first, and
after a gap nothing of the book follows until the next snapshot: it is empty where ours is invalid. Exchange
times are made non-decreasing and no later than receipt, so that a row is one event in both orders.

In: rows that were seen locally. A clear or a snapshot replaces both sides of the book.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from live.archives.conversion import ArchiveError
from live.archives.foreign import Floats, Integers, Refused, put_levels
from market.events import EVENT, Events, Flag, Kind, from_arrow
from market.instruments import Instrument, partition_instrument
from market.lake import Lake

#: The library's layout (version 2), and its kinds and bits of ``ev``.
ROW: Final = np.dtype(
    [
        ("ev", "u8"), ("exch_ts", "i8"), ("local_ts", "i8"), ("px", "f8"), ("qty", "f8"),
        ("order_id", "u8"), ("ival", "i8"), ("fval", "f8"),
    ]
)  # fmt: skip
DEPTH, TRADE, CLEAR, SNAPSHOT = 1, 2, 3, 4
EXCHANGE, LOCAL, BUY, SELL = 1 << 31, 1 << 30, 1 << 29, 1 << 28

#: Their kind by ours, and ours by theirs; 0 for none.
_THEIRS: Final = np.array([0, SNAPSHOT, DEPTH, TRADE, 0, 0], np.uint64)
_OURS: Final = np.zeros(256, np.uint8)
_OURS[[DEPTH, TRADE, CLEAR, SNAPSHOT]] = Kind.DELTA, Kind.TRADE, Kind.SNAPSHOT, Kind.SNAPSHOT
_ROWS: Final = 1 << 17


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """Rows written, and what of the partition is not in them.

    ``left_out`` counts ticker fields, liquidations, trades off the visible book, and levels between a gap
    and the next snapshot; ``moved`` exchange times, by at most ``moved_ns``.
    """

    rows: int
    left_out: int
    moved: int
    moved_ns: int


def export(lake: Lake, symbol: str, day: str, out: Path) -> Exported:
    """Write the events of one symbol's date as ``data`` of an npz, whole or not at all.

    Memory is bounded: rows are compressed as they are read. LakeError when there are no events.
    """
    partition = lake.open("events", symbol, day)
    notes = lake.metadata("events", symbol, day)
    try:
        instrument = partition_instrument(notes, symbol)
    except KeyError:
        raise ArchiveError(f"{symbol} {day}: its events name no instrument") from None
    part = out.with_name(f".{out.name}.part")
    raw = out.with_name(f".{out.name}.rows")
    total = rows = moved = moved_ns = 0
    rewriting = _Rewriting(instrument)
    try:
        # The header says how many rows follow, which is known when they are written.
        with open(raw, "wb") as file:
            for batch in partition.iter_batches(batch_size=_ROWS):
                total += batch.num_rows
                events = rewriting.rows(from_arrow(batch))
                file.write(events.tobytes())
                rows += len(events)
        moved, moved_ns = rewriting.moved, rewriting.moved_ns
        with (
            zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("data.npy", "w", force_zip64=True) as member,
            open(raw, "rb") as file,
        ):
            header = {"descr": npy.dtype_to_descr(ROW), "fortran_order": False, "shape": (rows,)}
            npy.write_array_header_1_0(member, header)
            while piece := file.read(ROW.itemsize * _ROWS):
                member.write(piece)
        os.replace(part, out)
    finally:
        for path in (part, raw):
            with suppress(FileNotFoundError):
                path.unlink()
    return Exported(
        rows=rows,
        left_out=total - rewriting.kept,
        moved=moved,
        moved_ns=moved_ns,
    )


class _Rewriting:
    """Events in order, as rows of the library."""

    def __init__(self, instrument: Instrument) -> None:
        self._tick, self._lot = float(instrument.tick), float(instrument.lot)
        self._broken = False  #: after a gap, until the next snapshot
        self._last_ns = 0
        self.kept = self.moved = self.moved_ns = 0

    def rows(self, events: Events) -> npt.NDArray[np.void]:
        book = events["kind"] <= Kind.DELTA
        cleared = (events["flags"] & Flag.FIRST != 0) & (events["kind"] == Kind.SNAPSHOT)
        gap = events["flags"] & Flag.GAP != 0
        # The last gap or snapshot up to each row says whether the book is known there.
        turns = np.where(cleared | gap, np.arange(1, len(events) + 1), 0)
        latest = np.maximum.accumulate(turns)
        broken = np.where(latest > 0, gap[latest - 1], self._broken)
        if len(events):
            self._broken = bool(broken[-1])
        hidden = events["flags"] & (Flag.RPI | Flag.BLOCK) != 0
        kept = (events["side"] != 0) & np.where(
            book, ~broken, (events["kind"] == Kind.TRADE) & ~hidden
        )
        self.kept += int(kept.sum())
        clears = cleared | gap
        counts = kept.astype(np.int64) + clears
        source = np.repeat(np.arange(len(events)), counts)
        places = np.cumsum(counts) - counts
        out = np.zeros(len(source), ROW)
        of = events[source]
        sides = np.where(of["side"] > 0, BUY, SELL).astype(np.uint64)
        out["ev"] = _THEIRS[of["kind"]] | sides | np.uint64(EXCHANGE | LOCAL)
        # Rounded to the float nearest to the decimal.
        out["px"] = np.round(of["price_ticks"] * self._tick, 8)
        out["qty"] = np.round(of["qty_lots"] * self._lot, 8)
        first = places[clears]
        out["ev"][first] = CLEAR | EXCHANGE | LOCAL
        out["px"][first] = out["qty"][first] = 0.0
        out["local_ts"] = of["receive_ns"]
        happened = np.minimum(of["exchange_ns"], of["receive_ns"])
        times = np.maximum.accumulate(np.concatenate([[self._last_ns], happened]))[1:]
        distance = np.abs(times - of["exchange_ns"])
        self.moved += int(np.count_nonzero(distance))
        if len(out):
            self._last_ns = int(times[-1])
            self.moved_ns = max(self.moved_ns, int(distance.max()))
        out["exch_ts"] = times
        return out


class EventFile:
    """An npz (its array ``data``, or its only one) or npy of one symbol; ArchiveError when it is none."""

    feed = "all"

    def __init__(self, path: Path, symbol: str) -> None:
        self.path, self.symbol = path, symbol
        self.refused = Refused(path)
        first = next(self._chunks(), np.zeros(0, ROW))
        if not len(first):
            raise ArchiveError(f"{path}: holds no events")
        self.start_ns = int(first["local_ts"][0])
        self._first = first

    def sample(self) -> tuple[Floats, Floats]:
        """Prices and quantities of the first rows."""
        kinds = self._first["ev"] & np.uint64(0xFF)
        quotes = self._first[np.isin(kinds, [DEPTH, TRADE, SNAPSHOT])]
        return quotes["px"], quotes["qty"]

    def blocks(self, instrument: Instrument) -> Iterator[tuple[Integers, Events]]:
        """Rows that were seen locally, each with its number."""
        first = 1
        for chunk in self._chunks():
            local = chunk["ev"] & np.uint64(LOCAL) != 0
            numbers, rows = np.arange(first, first + len(chunk))[local], chunk[local]
            first += len(chunk)
            kinds = (rows["ev"] & np.uint64(0xFF)).astype(np.int64)
            up, down = (rows["ev"] & np.uint64(bit) != 0 for bit in (BUY, SELL))
            events = np.zeros(len(rows), EVENT)
            events["receive_ns"], events["exchange_ns"] = rows["local_ts"], rows["exch_ts"]
            events["kind"] = _OURS[kinds]
            events["side"] = np.where(kinds == CLEAR, 0, up.astype(np.int8) - down)
            wrong = [("neither of depth nor a trade", events["kind"] == 0)]
            wrong += put_levels(events, rows["px"], rows["qty"], instrument, kinds != CLEAR)
            usable = self.refused.sound(wrong, numbers)
            yield numbers[usable], events[usable]

    def _chunks(self) -> Iterator[npt.NDArray[np.void]]:
        try:
            with open(self.path, "rb") as file:
                if file.read(2) != b"PK":
                    file.seek(0)
                    yield from self._array(file)
                    return
            with zipfile.ZipFile(self.path) as archive:
                names = archive.namelist()
                name = "data.npy" if "data.npy" in names else names[0]
                if name != "data.npy" and len(names) != 1:
                    raise ArchiveError(f"{self.path}: several arrays and none named data")
                with archive.open(name) as member:
                    yield from self._array(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, IndexError) as error:
            raise ArchiveError(f"{self.path}: damaged or no array of events ({error})") from error

    def _array(self, file: Any) -> Iterator[npt.NDArray[np.void]]:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype != ROW or fortran or len(shape) != 1:
            raise ArchiveError(f"{self.path}: an array of {dtype}, not of hftbacktest's events")
        left = shape[0]
        while left:
            count = min(left, _ROWS)
            data = file.read(count * ROW.itemsize)
            if len(data) < count * ROW.itemsize:
                raise ArchiveError(
                    f"{self.path}: ends {left - len(data) // ROW.itemsize:,} rows early"
                )
            left -= count
            yield np.frombuffer(data, ROW)
