"""Captures: what the venue sent, exactly as received, in append-only zstd text.

One line a frame, ``<receive time, epoch ns> <frame JSON>``. Between the frames are control lines of
our own, ``<ns> {"l2": "connect" | "disconnect" | "subscribe" | "checkpoint" | "instrument" | "turn",
…}``. A file is a sequence of zstd frames. The writer flushes one often, so that a crash can tear only
the tail: the reader drops a torn tail, says how many bytes it was, and never skips anything else.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import msgspec
import zstandard

from market.errors import DataError
from market.store import open_object

#: A block, its pieces and its rows fit into a processor's cache together.
BLOCK_BYTES: Final = 1 << 20
#: A longer line is no frame of a venue; only its head is kept, so that memory stays bounded.
MAX_LINE_BYTES: Final = 16 << 20
KEPT_HEAD_BYTES: Final = 4096

#: How a zstd frame begins.
MAGIC: Final = b"\x28\xb5\x2f\xfd"
#: Compressed bytes per step. zstd expands at most some 32,768-fold, so a step stays under 64 MB.
_STEP: Final = 2048
#: Text per step; the length of a line is checked in steps of this size.
_FEED: Final = 1 << 20


class CaptureError(DataError):
    """A capture cannot be read or written; the message names the file and the reason."""


class Block(msgspec.Struct, frozen=True):
    """Consecutive whole lines of a capture.

    ``data`` ends with a newline unless it is empty; ``first_line`` counts from 1; ``cut`` has the
    numbers of the lines that were too long, of which only the head is kept. ``compressed_bytes`` is
    how much of the file was read so far. The last block of a file has ``last`` set and says what was
    dropped at its torn tail: ``torn_bytes`` of an unfinished line, ``torn_frame`` when the last zstd
    frame was unfinished.
    """

    path: str
    first_line: int
    data: bytes
    cut: frozenset[int] = frozenset()
    compressed_bytes: int = 0
    last: bool = False
    torn_bytes: int = 0
    torn_frame: bool = False

    @property
    def torn(self) -> bool:
        return self.torn_bytes > 0 or self.torn_frame


def read_blocks(path: str | Path, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """The lines of a capture in blocks of about ``size`` bytes; the last one has ``last`` set.

    Raises CaptureError when the file is missing, empty, not zstd, or damaged before its tail.
    """
    lines = _Lines()
    with _opened(path) as file:
        unpacking = _Unpacking(str(path), file)
        for piece in unpacking:
            for start in range(0, len(piece), _FEED):
                lines.feed(piece[start : start + _FEED])
                if lines.whole_bytes >= size:
                    first, data, cut = lines.take()
                    yield Block(str(path), first, data, cut, unpacking.consumed)
    torn_bytes = lines.partial_bytes
    first, data, cut = lines.take()
    yield Block(
        str(path),
        first,
        data,
        cut,
        unpacking.consumed,
        last=True,
        torn_bytes=torn_bytes,
        torn_frame=unpacking.unfinished,
    )


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(receive_ns, frame) of every line with a time at its head, for tools that go line by line."""
    for block in read_blocks(path):
        # At newlines only: garbage may hold any other byte that ends a line of text.
        for line in block.data.split(b"\n")[:-1]:
            head, _, frame = line.partition(b" ")
            if head.isdigit():
                yield int(head), frame


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes (hex)."""
    try:
        with open_object(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror}") from error


def _opened(path: str | Path) -> BinaryIO:
    try:
        file = open_object(path)  # the caller's with statement closes it
    except FileNotFoundError as error:
        raise CaptureError(f"{path}: no such capture") from error
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read: {error.strerror}") from error
    head = file.read(4)
    file.seek(0)
    skippable = len(head) == 4 and head[1:] == b"\x2a\x4d\x18" and head[0] >> 4 == 5
    if head == MAGIC or skippable:
        return file
    file.close()
    if not head:
        raise CaptureError(f"{path}: the file is empty; a capture holds at least one zstd frame")
    if MAGIC.startswith(head):
        raise CaptureError(f"{path}: only {len(head)} bytes; nothing of the capture was written")
    raise CaptureError(f"{path}: not a zstd file; a capture is zstd-compressed text")


class _Unpacking:
    """Iterates the text of a file of zstd frames, in pieces of bounded size.

    ``whole`` is the end of the last finished frame, ``unfinished`` whether one was torn at the end.
    Zeros after the last frame count as torn: file systems leave them after a power cut.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.consumed = 0
        self.whole = 0
        self.unfinished = False

    def __iter__(self) -> Iterator[bytes]:
        unpacker = zstandard.ZstdDecompressor()
        frame: Any = None
        while step := self.file.read(_STEP):
            self.consumed += len(step)
            while step:
                if frame is None:
                    if not step.strip(b"\0") and self._only_zeros_follow():
                        self.unfinished = True
                        return
                    frame = unpacker.decompressobj()
                try:
                    yield frame.decompress(step)
                except zstandard.ZstdError as error:
                    if step.endswith(b"\0") and self._only_zeros_follow():
                        self.unfinished = True
                        return
                    raise CaptureError(
                        f"{self.path}: damaged near byte {self.consumed - len(step)} ({error}); "
                        "only the end of a capture may be torn"
                    ) from error
                step = b""
                if frame.eof:
                    step = frame.unused_data
                    self.whole = self.consumed - len(step)
                    frame = None
        self.unfinished = frame is not None

    def _only_zeros_follow(self) -> bool:
        place = self.file.tell()
        while rest := self.file.read(1 << 20):
            if rest.strip(b"\0"):
                self.file.seek(place)
                return False
        return True


class _Lines:
    """Joins pieces of text into whole lines."""

    def __init__(self) -> None:
        self._whole: list[bytes | memoryview] = []
        self._partial: list[bytes] = []
        self.whole_bytes = 0
        self.partial_bytes = 0
        self._line = 1
        self._whole_lines = 0
        self._cut: set[int] = set()

    def feed(self, piece: bytes) -> None:
        end = piece.rfind(b"\n") + 1
        if end:
            start = 0
            if self.partial_bytes > MAX_LINE_BYTES:
                self._cut.add(self._line + self._whole_lines)
                start = piece.find(b"\n")
            whole: list[bytes | memoryview] = [*self._partial, memoryview(piece)[start:end]]
            self._whole += whole
            self.whole_bytes += sum(map(len, whole))
            self._whole_lines += piece.count(b"\n")
            self._partial, self.partial_bytes = [], 0
        if end < len(piece):
            self._partial.append(piece[end:])
            self.partial_bytes += len(piece) - end
            if self.partial_bytes > MAX_LINE_BYTES:
                self._partial = [b"".join(self._partial)[:KEPT_HEAD_BYTES]]

    def take(self) -> tuple[int, bytes, frozenset[int]]:
        """(number of the first line, the whole lines gathered, numbers of those cut)."""
        first, data, cut = self._line, b"".join(self._whole), frozenset(self._cut)
        self._line += self._whole_lines
        self._whole, self._cut, self.whole_bytes, self._whole_lines = [], set(), 0, 0
        return first, data, cut


class CaptureWriter:
    """Appends to one capture, crash-safe: text that was synced (fsync) is read back after a crash.

    Live frames go through `append`, which ends and syncs a zstd frame every ``sync_ms`` of the
    monotonic ``clock`` (ns). Bulk writers use `append_block`. Either ends a zstd frame every
    ``frame_bytes`` of text. Reopening a file with a torn tail first truncates the tail;
    ``dropped_bytes`` says how many bytes of an unfinished line were lost.

    A write that fails raises CaptureError, and every later one too: the file is truncated to its last
    whole zstd frame, so that it reads well and can be opened again, and ``lost_bytes`` says how much
    text of the unfinished one was lost.

    Raises CaptureError when the file cannot be opened, is no capture, or is locked by another
    process.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        sync_ms: int = 1000,
        frame_bytes: int = 8 << 20,
        level: int = 3,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.path = str(path)
        self.dropped_bytes = self.lost_bytes = 0
        self._sync_ns = sync_ms * 1_000_000
        self._frame_bytes = frame_bytes
        self._clock = clock
        # A checksum turns a flipped bit on disk into an error instead of a wrong price.
        self._packer = zstandard.ZstdCompressor(level=level, write_checksum=True)
        self._frame: Any = None
        self._text_bytes = 0
        self._whole = 0  #: end of the last finished zstd frame of the file
        self._failed = False
        self._last_sync = clock()
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - open until close
        except OSError as error:
            raise CaptureError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._mend()
        except BlockingIOError as error:
            self._file.close()
            raise CaptureError(f"{path}: another process is writing this capture") from error
        except BaseException:
            self._file.close()
            raise

    def append(self, receive_ns: int, frame: bytes) -> None:
        """Add one frame. A newline in it, which JSON allows only as white space, becomes a space."""
        if b"\n" in frame:
            frame = frame.replace(b"\n", b" ")
        self.append_block(b"%d %b\n" % (receive_ns, frame))
        if self._clock() - self._last_sync >= self._sync_ns:
            self.sync()

    def control(self, ns: int, fields: Mapping[str, Any]) -> None:
        """Add a control line; its kind is the field ``l2``."""
        if "l2" not in fields:
            raise CaptureError(f"{self.path}: a control line needs a field l2")
        self.append_block(b"%d %b\n" % (ns, msgspec.json.encode(fields)))

    def append_block(self, lines: bytes) -> None:
        """Add whole lines, each with its receive time and newline."""
        if not lines:
            return
        if not lines.endswith(b"\n"):
            raise CaptureError(f"{self.path}: a block of lines must end with a newline")
        if self._failed:
            raise CaptureError(f"{self.path}: an earlier write failed; open the capture again")
        if self._frame is None:
            self._frame = self._packer.compressobj()
        self._text_bytes += len(lines)
        self._write(self._frame.compress(lines))
        if self._text_bytes >= self._frame_bytes:
            self._end_frame()

    def sync(self) -> None:
        """Flush and fsync everything appended so far."""
        self._end_frame()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._failed = True
            raise CaptureError(f"{self.path}: cannot be synced: {error.strerror}") from error
        self._last_sync = self._clock()

    def close(self) -> None:
        """Sync and close the file; after a failed write only close it."""
        if not self._file.closed:
            try:
                if not self._failed:
                    self.sync()
            finally:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _end_frame(self) -> None:
        if self._frame is not None:
            self._write(self._frame.flush())
            self._whole = os.fstat(self._file.fileno()).st_size
            self._frame, self._text_bytes = None, 0

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self._failed = True
            self.lost_bytes, self._text_bytes = self._text_bytes, 0
            self._frame = None
            with suppress(OSError):  # otherwise the rest of the frame is a torn tail
                self._file.truncate(self._whole)
            raise CaptureError(f"{self.path}: cannot be written: {error.strerror}") from error

    def _mend(self) -> None:
        """Truncate a torn tail; whole lines of an unfinished frame are kept in a frame of their own."""
        self._whole = os.fstat(self._file.fileno()).st_size
        if self._whole < len(MAGIC):
            self._whole = self._file.truncate(0)
            return
        with _opened(self.path) as file:
            unpacking = _Unpacking(self.path, file)
            end = b"\n"
            for piece in unpacking:
                end = piece[-1:] or end
            if not unpacking.unfinished:
                if end != b"\n":
                    self.append_block(b"\n")
                return
            file.seek(unpacking.whole)
            tail = b"".join(_Unpacking(self.path, file))
        whole_lines = tail[: tail.rfind(b"\n") + 1]
        self.dropped_bytes = len(tail) - len(whole_lines)
        self._whole = self._file.truncate(unpacking.whole)
        self.append_block(whole_lines)
        self.sync()
