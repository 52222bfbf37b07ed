"""The disk alone: how long a small write and its fdatasync take, for the figures that wait for them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from proving.bench.goals import Measure

SYNCS: Final = 400


class Disk:
    """Percentiles (ms) of a write of 4 KiB with its fdatasync, and the type of the file system."""

    def __init__(self, kind: str, taken_ns: Sequence[int]) -> None:
        self.kind = kind
        self.ms = {f"p{p:g}": float(np.percentile(taken_ns, p)) / 1e6 for p in (50, 99, 99.9)}

    def figures(self, what: str) -> Iterator[Measure]:
        how = f"{SYNCS} times 4 KiB written, then fdatasync, on {self.kind}; not ours to improve"
        for rank, value in self.ms.items():
            name = f"disk alone, fdatasync {what}: {rank}"
            yield Measure(name=name, ours=value, unit="ms", better="less", how=how)


def disk_alone(folder: Path, times: int, over: bool) -> Disk:
    """The disk's own fdatasync, ``over`` zeros that were written before, and its file system."""
    taken, block = [], bytes(4096)
    with open(folder / f"probe{over}", "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, times * len(block))
        if over:
            os.pwrite(file.fileno(), bytes(times * len(block)), 0)
            os.fsync(file.fileno())
        for _ in range(times):
            started = time.monotonic_ns()
            file.write(block)
            os.fdatasync(file.fileno())
            taken.append(time.monotonic_ns() - started)
            time.sleep(0.005)
    return Disk(_file_system(folder), taken)


def _file_system(folder: Path) -> str:
    """The type of the file system of a folder, from /proc/mounts; "unknown" elsewhere."""
    best = ("", "unknown")
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, kind, *_ = line.split()
            if str(folder.resolve()).startswith(point) and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]
