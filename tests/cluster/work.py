"""Tasks that misbehave as the tests ask; importable by the workers."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from market.errors import DataError
from market.lake import Lake


def half_written(root: str, day: str) -> int:
    """Write a partition; the first process that does so is killed in the middle of it."""
    import pyarrow as pa

    lake, rows = Lake(root), pa.table({"t_ns": list(range(1000))})
    killed = Path(root) / "killed"
    with lake.writer("bars", "BTCUSDT", day, rows.schema) as out:
        out.write_table(rows.slice(0, 500).replace_schema_metadata(out.schema.metadata))
        with suppress(FileExistsError):
            killed.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        out.write_table(rows.slice(500).replace_schema_metadata(out.schema.metadata))
    return os.getpid()


def deadly(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing(name: str) -> None:
    raise DataError(f"{name}: cannot be read") if name == "ours" else ZeroDivisionError("a defect")


def span(seconds: float) -> tuple[int, float, float]:
    """Which process slept, from when to when."""
    begun = time.time()
    time.sleep(seconds)
    return os.getpid(), begun, time.time()
