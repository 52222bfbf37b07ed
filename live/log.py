"""The log: every input and effect of the core, in one order, on disk. It is the truth; all else is a view.

    ROOT/live/VENUE/log/000001.log     a segment: from a start, or a whole hour, to the next
    ROOT/live/VENUE/log/000001.log.torn   what a crash left of an unfinished block, kept aside

A segment is a sequence of blocks, each ``L2L``, format (1 byte), CRC-32, compressed and raw length (4
bytes each, little endian), how much of the file was synced before it (8), then zstd of a msgpack array of
records ``[now_ns, body]``. The first record is the `Header`: who wrote it, with which settings and code,
and the `Checkpoint` that the segment starts from. The other bodies are `messages.Input` and
`messages.Effect`; frames are kept as bytes. Behind the last block lie zeros: space is allocated ahead, so
that a full disk is noticed while what a shutdown has to say still fits.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import zstandard

from live.messages import Effect, Input, Struct
from market.errors import DataError
from market.units import HOUR_NS

FORMAT: Final = 1
#: Pending records become a block at this size, or at a sync.
BLOCK_BYTES: Final = 1 << 16
#: Allocated ahead of what is written: what a worker may still say on a full disk.
RESERVE_BYTES: Final = 4 << 20
#: Zeros are written ahead in pieces of this size: no sync of a block waits for more of them.
_ZEROS: Final = bytes(1 << 18)
SUFFIX: Final = ".log"

_MAGIC: Final = b"L2L"
#: Magic, format; CRC-32 of all that follows it; compressed and raw length; bytes synced before.
_HEAD: Final = struct.Struct("<3sBIIIQ")
_CRC: Final = struct.Struct("<I")
_REST: Final = struct.Struct("<IIQ")
_MOST_BYTES: Final = 1 << 30
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class LogError(DataError):
    """The log cannot be read or written; the message names the file and what to do."""

    exit_status = 3


class LogFullError(LogError):
    """The disk is full. Said once, with the reserve left: the worker can cancel and flatten."""


class Checkpoint(msgspec.Struct, frozen=True):
    """The core's state in named sections, each read by the part that made it.

    A record `messages.Append` of kind ``section/NAME`` replaces a section from there on; orders, account
    and counters follow from the evidence instead (`live.restoration`).
    """

    sections: dict[str, bytes] = {}


class Header(Struct, frozen=True, kw_only=True):
    """The first record of a segment. ``account`` is the venue's id of it, ``instruments`` are (tick, lot)
    by symbol, ``settings`` the effective ones as JSON, ``code`` the version of the platform.
    """

    venue: str
    account: str
    source: str
    instruments: dict[str, tuple[str, str]]
    settings: bytes
    code: str
    run: str
    checkpoint: Checkpoint = Checkpoint()


Body = Header | Input | Effect
_RECORDS: Final = msgspec.msgpack.Decoder(list[tuple[int, Body]])


# -- reading ---------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A block: where it begins and ends in its segment, and its records (now_ns, body)."""

    segment: int
    offset: int
    end: int
    records: list[tuple[int, Body]]


class Position(NamedTuple):
    """A place between two blocks."""

    segment: int = 0
    offset: int = 0


_BEGINNING: Final = Position()


class Torn(NamedTuple):
    """What was cut off a segment that a crash left unfinished; ``kept`` is where it lies now."""

    segment: Path
    bytes: int
    kept: Path


def segments(folder: Path) -> dict[int, Path]:
    """Number -> file of every segment, in order."""
    return {int(path.stem): path for path in sorted(folder.glob(f"[0-9]*{SUFFIX}"))}


def read(folder: Path, since: Position = _BEGINNING, holding: bytes = b"") -> Iterator[Block]:
    """The blocks from a position on, to the end of what is whole; also beside a running writer.

    Only those whose records hold the bytes ``holding``: the others are not decoded, which is most of the work.
    LogError for damage that no crash explains, a newer format, and a position that it does not reach.
    """
    found = {number: path for number, path in segments(folder).items() if number >= since.segment}
    if since.segment and since.segment not in found:
        raise LogError(f"{folder}: no segment {since.segment}; put it back, or collect anew")
    last = max(found, default=0)
    for number, path in found.items():
        offset = since.offset if number == since.segment else 0
        end = offset
        for block in _blocks(path, number, offset, holding):
            end = block.end
            if block.records:
                yield block
        if number != last:
            _require_whole(path, end)


def header_of(path: Path) -> Header:
    """The header of a segment; LogError when it has none."""
    block = next(_blocks(path, 0, 0), None)
    if block and isinstance(body := block.records[0][1], Header):
        return body
    raise LogError(f"{path}: no segment of a log; move it away")


def offsets(path: Path) -> list[int]:
    """Where a segment's blocks begin, by their heads alone, and where the last one ends."""
    found = [0]
    with open(path, "rb") as file:
        while length := _length(file.read(_HEAD.size)):
            found.append(file.seek(length, os.SEEK_CUR))
    return found


def last_ns(path: Path) -> int:
    """The time of a segment's last record; of its blocks the last is decoded alone."""
    return next(b for at in reversed(offsets(path)) for b in _blocks(path, 0, at)).records[-1][0]


def last_segment(folder: Path) -> tuple[int, Header] | None:
    """Number and header of the last segment; None for an empty log."""
    found = segments(folder)
    return (number, header_of(found[number])) if (number := max(found, default=0)) else None


def repair(folder: Path, fdatasync: Callable[[int], None] = os.fdatasync) -> Torn | None:
    """Cut what a crash left unfinished at the log's end, and keep it in a file beside; None if nothing.

    For the one writer, before it starts. What a killed writer left unsynced is synced: the next segment rests on
    it, and its end is not torn any more. LogError for any other damage.
    """
    if not (found := segments(folder)):
        return None
    path = found[max(found)]
    end = 0
    for block in _blocks(path, max(found), 0):
        end = block.end
    data = path.read_bytes()
    torn = data[end:].rstrip(b"\0")
    kept = path.with_name(f"{path.name}.torn")
    if end < len(data) or not end:
        if torn:
            with open(kept, "ab") as aside:
                aside.write(torn)
                aside.flush()
                os.fsync(aside.fileno())
        os.truncate(path, end)
        if not end:
            path.unlink()
        _sync_folder(folder)
    if end:
        with open(path, "rb") as file:
            fdatasync(file.fileno())
    return Torn(path, len(torn), kept) if torn else None


def _blocks(path: Path, number: int, offset: int, holding: bytes = b"") -> Iterator[Block]:
    """Whole blocks from an offset, up to what is torn, unfinished, or zeros; without ``holding`` in them empty."""
    unpack = zstandard.ZstdDecompressor()
    with open(path, "rb") as file:
        file.seek(offset)
        while head := file.read(_HEAD.size):
            if offset == 0 and head[:3] == _MAGIC and head[3] > FORMAT:
                raise LogError(
                    f"{path}: format {head[3]} is newer than {FORMAT}, the newest known here; use the version that wrote it"
                )
            payload = _payload(head, file.read(_length(head)))
            if payload is None:
                file.seek(offset)  # what lies before may be large
                _require_torn(path, offset, file.read())
                return
            end = offset + _HEAD.size + len(payload)
            try:
                raw = unpack.decompress(payload, max_output_size=_HEAD.unpack(head)[4])
                records = _RECORDS.decode(raw) if holding in raw else []
            except (zstandard.ZstdError, msgspec.DecodeError) as error:
                raise LogError(
                    f"{path}: the block at byte {offset} cannot be read ({error}); use the version that wrote it"
                ) from error
            yield Block(number, offset, end, records)
            offset = end


def _length(head: bytes) -> int:
    """The compressed length that a block's head states; 0 for what is no head."""
    if len(head) < _HEAD.size or head[:3] != _MAGIC:
        return 0
    return min(int(_HEAD.unpack(head)[3]), _MOST_BYTES)


def _payload(head: bytes, payload: bytes) -> bytes | None:
    """The payload when the block is whole."""
    if not (length := _length(head)) or len(payload) < length:
        return None
    return payload if zlib.crc32(head[-_REST.size :] + payload) == _HEAD.unpack(head)[2] else None


def _whole(data: bytes, at: int) -> bool:
    head, start = data[at : at + _HEAD.size], at + _HEAD.size
    return _payload(head, data[start : start + _length(head)]) is not None


def _require_torn(path: Path, offset: int, data: bytes) -> None:
    """LogError when the block at ``offset``, where ``data`` begin, is not whole although a later one was synced."""
    at = 0
    while (at := data.find(_MAGIC, at + 1)) >= 0:
        if _whole(data, at) and _HEAD.unpack_from(data, at)[5] > offset:
            if not _whole(path.read_bytes(), offset):  # a running writer may have finished it since
                raise _damaged(path, offset)
            return


def _require_whole(path: Path, end: int) -> None:
    """LogError unless a segment that another follows ends with a block."""
    with open(path, "rb") as file:
        file.seek(end)
        if file.read().strip(b"\0"):
            raise _damaged(path, end)


def _damaged(path: Path, offset: int) -> LogError:
    return LogError(
        f"{path}: damaged at byte {offset}, with sound blocks behind; nothing was sent. Put the file back "
        f"from a copy, or move {path.parent} away: the next start then takes orders and positions from "
        "the venue"
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- writing ---------------------------------------------------------------------------------------


class _Chunk(msgspec.Struct, gc=False):
    """Records that become one block, the first of a new segment when it ``opens``."""

    raw: bytearray
    records: int = 0
    opens: bool = False


class LogWriter:
    """Appends to the log of a folder; the caller holds its lock (`live.control.lock`) and has called `repair`.

    One thread appends, which only encodes, and gets a position. What came up to there is on disk once `sync`
    has returned as much, which may run in another thread: then ``background`` keeps appends from writing
    full blocks. A request leaves when its position is synced; all else is at least every ``live.log_sync_s``.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        now_ns: int,
        *,
        background: bool = False,
        reserve_bytes: int = RESERVE_BYTES,
        fdatasync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.header = folder, header
        self.position = self.synced_to = 0
        self.full = False  #: the disk is full, and the reserve is being used
        self._background, self._reserve_bytes = background, reserve_bytes
        self._fdatasync = fdatasync
        self._encoder = msgspec.msgpack.Encoder()
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._pending = threading.Lock()  # guards the chunks
        self._disk = threading.RLock()  # held while blocks are written; taken before the other
        self._chunks: list[_Chunk] = []
        self._number, self._descriptor = max(segments(folder), default=0), -1
        self._offset = self._synced_offset = self._allocated = self._written_to = 0
        self._hour = 0
        self.turn(now_ns, header.checkpoint)
        self.sync()

    # -- records -------------------------------------------------------------------------------

    def append_input(self, now_ns: int, body: Input) -> int:
        """Append an input, before it is handled."""
        return self.append(((now_ns, body),))

    def append_effects(self, now_ns: int, effects: Sequence[Effect]) -> int:
        """Append what the core made of it; a `Send` leaves when the position returned is synced."""
        return self.append([(now_ns, effect) for effect in effects])

    def turn(self, now_ns: int, checkpoint: Checkpoint) -> None:
        """Start a new segment from this state; the earlier one is synced before."""
        with self._pending:
            self._chunks.append(_Chunk(bytearray(), opens=True))
        self._hour = now_ns // HOUR_NS
        self.append(((now_ns, msgspec.structs.replace(self.header, checkpoint=checkpoint)),))

    def turn_due(self, now_ns: int) -> bool:
        """Whether an hour has ended since the segment began."""
        return now_ns // HOUR_NS != self._hour

    def append(self, records: Sequence[tuple[int, Body]]) -> int:
        """Append records with their times; the position they end at."""
        with self._pending:
            chunk = self._chunks[-1]
            before = len(chunk.raw)
            for record in records:
                self._encoder.encode_into(record, chunk.raw, -1)
            chunk.records += len(records)
            self.position += len(chunk.raw) - before
            if full := len(chunk.raw) >= BLOCK_BYTES:
                self._chunks.append(_Chunk(bytearray()))
        if full and not self._background:
            self.flush()
        return self.position

    # -- to disk -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand every record to the operating system: a crash of the process loses nothing then.

        LogError when it cannot be written: it is kept, and tried again by the next call.
        """
        with self._disk:
            was_full = self.full
            while (chunk := self._first()) is not None:
                with self._writing():
                    self._put(chunk)
                with self._pending:
                    self._chunks.pop(0)
            if self.full and not was_full:
                left = max(0, self._allocated - self._offset) >> 10
                raise LogFullError(
                    f"{self.folder}: the disk is full; {left} KiB are left for the log, so that orders "
                    "can be cancelled and positions closed; make space"
                )

    def sync(self) -> int:
        """Have everything on disk: a power cut loses nothing then. The position that was reached."""
        with self._disk:
            try:
                self.flush()
            finally:  # a full disk is said after what was written is safe
                if self._written_to > self.synced_to:
                    with self._writing():
                        self._sync_file()
                    self.synced_to = self._written_to
            return self.synced_to

    def close(self) -> None:
        """Sync, and give back what was allocated ahead."""
        with self._disk:
            if self._descriptor >= 0:
                try:
                    self.sync()
                finally:
                    self._close_file()

    def _first(self) -> _Chunk | None:
        """The oldest chunk with records; it gets no more of them."""
        with self._pending:
            while len(self._chunks) > 1 and not self._chunks[0].records:
                self._chunks.pop(0)
            chunk = self._chunks[0]
            if not chunk.records:
                return None
            if len(self._chunks) == 1:
                self._chunks.append(_Chunk(bytearray()))
            return chunk

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """LogError for what the system says of the disk."""
        try:
            yield
        except OSError as error:
            raise LogError(
                f"{self.folder}: cannot be written ({error.strerror}), and what is not in the log is "
                "never sent; it needs space and a folder that may be written"
            ) from error

    def _put(self, chunk: _Chunk) -> None:
        if chunk.opens:
            self._open_file()
            chunk.opens = False
        raw = b"\xdd" + chunk.records.to_bytes(4, "big") + chunk.raw
        payload = self._compressor.compress(raw)
        rest = _REST.pack(len(payload), len(raw), self._synced_offset) + payload
        block = _MAGIC + bytes((FORMAT,)) + _CRC.pack(zlib.crc32(rest)) + rest
        self._allocate(self._offset + len(block))
        done = 0
        while done < len(block):
            done += os.pwrite(self._descriptor, block[done:], self._offset + done)
        self._offset += len(block)
        self._written_to += len(chunk.raw)

    def _allocate(self, end: int) -> None:
        """Have space for a block and the reserve behind it; `full` where it is the reserve's."""
        if end + self._reserve_bytes <= self._allocated:
            return
        ahead = end + 2 * self._reserve_bytes - self._allocated
        try:
            os.posix_fallocate(self._descriptor, self._allocated, ahead)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self.full = True
            return
        if self._background:
            where = self._number, self._allocated, self._allocated + ahead
            threading.Thread(target=self._zero, args=where, name="zeros", daemon=True).start()
        self._allocated += ahead
        self.full = False

    def _zero(self, number: int, start: int, end: int) -> None:
        # In a thread, ahead of the blocks: the sync of a block that overwrites changes no extent, so it
        # does not wait for the file system's journal and all that is in it.
        descriptor = -1
        with suppress(OSError):  # a slower sync is all that is lost
            for at in range(start, end, len(_ZEROS)):
                with self._disk:
                    if self._number != number or self._descriptor < 0:
                        break
                    descriptor = os.dup(self._descriptor) if descriptor < 0 else descriptor
                    begin, until = max(at, self._offset), min(at + len(_ZEROS), end)
                    if begin < until:
                        os.pwrite(descriptor, _ZEROS[: until - begin], begin)
                os.fdatasync(descriptor)
        if descriptor >= 0:
            os.close(descriptor)

    def _open_file(self) -> None:
        """The next segment; the present one is whole and synced before it exists."""
        if self._descriptor >= 0:
            self._sync_file()
            self._close_file()
        path = self.folder / f"{self._number + 1:06d}{SUFFIX}"
        self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        _sync_folder(self.folder)
        self._number += 1
        self._offset = self._synced_offset = self._allocated = 0

    def _sync_file(self) -> None:
        self._fdatasync(self._descriptor)
        self._synced_offset = self._offset

    def _close_file(self) -> None:
        os.ftruncate(self._descriptor, self._offset)
        os.close(self._descriptor)
        self._descriptor = -1
