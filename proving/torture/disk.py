"""What a disk holds after a crash: what was synced for certain, of the rest a prefix whose end is torn.

A killed process leaves all that it has written. A power cut leaves of what was not synced a prefix; behind
it lie zeros, or nothing where the file was that short.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Final

SECTOR: Final = 512


class Disk:
    """The files of a folder, each written from its beginning to its end; `sync` stands in for fdatasync."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lost_bytes = self.power_cuts = 0
        self._safe: dict[int, int] = {}  #: inode → bytes that are safe

    def sync(self, descriptor: int) -> None:
        """What a file holds now is safe."""
        inode = os.fstat(descriptor).st_ino
        safe = self._safe.get(inode, 0)
        path = f"/proc/self/fd/{descriptor}"
        self._safe[inode] = safe + len(_written(Path(path), safe))

    def cut_power(self, dice: random.Random) -> None:
        """Lose what was not synced, as a power cut does."""
        self.power_cuts += 1
        for path in sorted(self.folder.rglob("*.log")):
            safe = self._safe.get(path.stat().st_ino, 0)
            unsafe = _written(path, safe)
            kept = dice.randint(0, len(unsafe))
            torn = dice.randint(0, min(kept, SECTOR)) if dice.random() < 0.5 else 0
            self.lost_bytes += len(unsafe) - kept + torn
            with path.open("r+b") as file:
                file.seek(safe + kept - torn)
                file.write(bytes(len(unsafe) - kept + torn))
            if dice.random() < 0.5:  # the length was not on disk either
                os.truncate(path, safe + kept)


def _written(path: Path, start: int) -> bytes:
    """What was written from ``start`` on; space that is only allocated holds zeros."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read().rstrip(b"\0")
