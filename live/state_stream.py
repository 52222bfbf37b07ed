"""The worker's state for other programs: a unix socket that tells a snapshot, then what changed.

    {"type": "snapshot", "version": 1, "sequence": 7, "state": {section: {key: value}}}
    {"type": "change", "sequence": 8, "state": {section: {key: value, gone: null}}}
    {"type": "dropped", "lines": 31}          this reader was too slow; a snapshot follows

One JSON object a line; a change is a merge patch (RFC 7396) of two levels. docs/live.md has the schema.
A thread of its own makes and sends the lines; each reader has a bounded queue, and what does not fit is
dropped and counted.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

VERSION: Final = 1
#: Lines that wait for a reader at most, and readers at a time.
QUEUE_LINES: Final = 256
READERS: Final = 32
#: A longer path does not fit into a socket's address.
_ADDRESS_BYTES: Final = 100

State = Mapping[str, Mapping[str, Any]]


def changes(before: State, after: State) -> dict[str, dict[str, Any]]:
    """The merge patch that makes ``after`` of ``before``."""
    patch = {}
    for section in {**before, **after}:
        old, new = before.get(section, {}), after.get(section, {})
        changed = {key: value for key, value in new.items() if old.get(key) != value}
        if changed := changed | {key: None for key in old if key not in new}:
            patch[section] = changed
    return patch


class _Reader:
    """A connection: lines that wait, the rest of one that is half sent, and how many were dropped."""

    def __init__(self, connection: socket.socket, first: bytes) -> None:
        self.connection, self.lines, self.rest = connection, deque([first]), b""
        self.dropped = 0

    def add(self, line: bytes) -> int:
        """Queue a line; returns how many were dropped."""
        if not self.dropped and len(self.lines) < QUEUE_LINES:
            self.lines.append(line)
            return 0
        lost = len(self.lines) + 1
        self.dropped += lost
        self.lines.clear()
        return lost

    def send(self, snapshot: bytes) -> None:
        """Send what the socket takes; after drops their number and the snapshot."""
        with suppress(BlockingIOError):
            while self.rest or self.lines or self.dropped:
                if not self.rest and self.dropped:
                    told = {"type": "dropped", "lines": self.dropped}
                    self.lines.extend((msgspec.json.encode(told) + b"\n", snapshot))
                    self.dropped = 0
                self.rest = self.rest or self.lines.popleft()
                self.rest = self.rest[self.connection.send(self.rest) :]


class StateStream:
    """Serves `publish`ed states at ``path``. ``dropped`` counts lines that readers did not take."""

    def __init__(self, path: str | Path) -> None:
        self.path = self._bound = Path(path)
        self.dropped = self._sequence = 0
        self._state: State = {}
        self._waiting: deque[State] = deque(maxlen=1)  #: the newest state that is not told yet
        self._readers: dict[int, _Reader] = {}
        self._closing = False
        self.path.unlink(missing_ok=True)
        if len(os.fsencode(path)) > _ADDRESS_BYTES:
            self._bound = Path(tempfile.mkdtemp(prefix="l2-")) / self.path.name
            self.path.symlink_to(self._bound)
        self._server, (self._woken, self._waker) = socket.socket(socket.AF_UNIX), os.pipe()
        self._server.bind(str(self._bound))
        os.chmod(self._bound, 0o600)
        self._server.listen()
        self._server.setblocking(False)
        os.set_blocking(self._waker, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="state", daemon=True)
        self._thread.start()

    def publish(self, state: State) -> None:
        """The state now, which the caller changes no more; never waits."""
        self._waiting.append(state)
        with suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def close(self) -> None:
        """Tell the last state as far as the readers take it, and end."""
        self._closing = True
        with suppress(BlockingIOError):
            os.write(self._waker, b"\0")
        self._thread.join(timeout=5)
        self.path.unlink(missing_ok=True)
        if self._bound != self.path:
            self._bound.unlink(missing_ok=True)
            self._bound.parent.rmdir()

    def _serve(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.fileobj is self._server:
                    self._accept()
                elif key.fd == self._woken:
                    os.read(self._woken, 4096)
                    self._tell()
                elif reader := self._readers.get(key.fd):  # it may have left as a state was told
                    self._step(reader)
        self._tell()
        for open_socket in (self._server, *(each.connection for each in self._readers.values())):
            open_socket.close()
        self._selector.close()

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._server.accept()
            if len(self._readers) >= READERS:
                connection.close()
                return
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)
            reader = self._readers[connection.fileno()] = _Reader(connection, self._snapshot())
            self._step(reader)

    def _line(self, kind: str, state: State, **fields: int) -> bytes:
        told = {"type": kind, **fields, "sequence": self._sequence, "state": state}
        return msgspec.json.encode(told) + b"\n"

    def _snapshot(self) -> bytes:
        return self._line("snapshot", self._state, version=VERSION)

    def _tell(self) -> None:
        while self._waiting:
            state = self._waiting.popleft()
            if patch := changes(self._state, state):
                self._state, self._sequence = state, self._sequence + 1
                line = self._line("change", patch)
                for reader in list(self._readers.values()):
                    self.dropped += reader.add(line)
                    self._step(reader)

    def _step(self, reader: _Reader) -> None:
        """Send what waits, and look whether the reader is still there."""
        descriptor = reader.connection.fileno()
        try:
            with suppress(BlockingIOError):
                if not reader.connection.recv(4096):  # what it says is ignored
                    raise ConnectionError
            reader.send(self._snapshot() if reader.dropped else b"")
            waits = selectors.EVENT_WRITE if reader.rest or reader.lines or reader.dropped else 0
            self._selector.modify(reader.connection, selectors.EVENT_READ | waits)
        except OSError:
            self._selector.unregister(reader.connection)
            del self._readers[descriptor]
            reader.connection.close()


def read_states(path: str | Path, timeout_s: float) -> Iterator[dict[str, Any]]:
    """The stream's lines; ends with it, or when nothing is said for ``timeout_s``. OSError without one, or
    when it says something else.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(Path(path).resolve(strict=True)))
        with connection.makefile("rb") as lines, suppress(TimeoutError):
            for line in lines:
                if line.endswith(b"\n"):  # else the worker has ended within it
                    yield _decoded(line)


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise OSError(errno.EPROTO, f"not a line of the state stream ({error})") from error
