"""Locks between processes that share a lake: who comes second waits, and says for whom.

A lock is on a range of bytes of a file and ends with its process. In one process it is held once: a
second holder there would not wait, and its end would release both.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from market.console import say

#: struct flock of Linux: type, whence, start, length, process.
_FLOCK: Final = "hhqqi4x"


@contextmanager
def exclusive(file: Path, what: str, start: int = 0, length: int = 0) -> Iterator[None]:
    """Hold ``length`` bytes of ``file`` from ``start``, by default all; ``what`` names them to people.

    OSError where the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError:
            say(f"waiting for process {_holder(descriptor, start, length)}, which works on {what}")
            fcntl.lockf(descriptor, fcntl.LOCK_EX, length, start)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int, start: int, length: int) -> str:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return "?" if kind == fcntl.F_UNLCK else str(pid)
