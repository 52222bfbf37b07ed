"""What `l2 bench capture` measures: reading a day of the venue's archives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from proving.bench.archive_day import BOOK_FRAMES, TRADES, archive_day
from proving.bench.yardstick import Measure


def measure(quick: bool, say: Callable[[str], None]) -> Iterator[Measure]:
    """Every figure of this area, as it is found."""
    say("a day of archives to events and bars")
    share = 100 if quick else 1
    with tempfile.TemporaryDirectory() as folder:
        found = archive_day(Path(folder), BOOK_FRAMES // share, TRADES // share)
    how = (
        f"one run on one core: {found.archive.book_lines:,} frames of 500 levels, "
        f"{found.text_bytes / 2**20:.0f} MiB, and {found.archive.trades:,} trades"
    )
    yield Measure(
        name="archive day to events and bars",
        ours=found.seconds,
        unit="s",
        how=how,
        better="less",
    )
    for step, took in (
        ("as one stream", found.convert_s),
        ("to events", found.ingest_s),
        ("to bars", found.bars_s),
    ):
        yield Measure(
            name=f"archive day {step}", ours=took, unit="s", how="of the run above", better="less"
        )
