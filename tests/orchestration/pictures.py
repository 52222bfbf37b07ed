"""Pictures of the dashboard's pages, for docs: a worker that trades on the exchange on loopback.

    python -m tests.orchestration.pictures            writes docs/dashboard/PAGE-WIDTH[-dark].png

Light at 1440 px, dark at 390 px, with a palette of 64 colours, after the worker has traded for two minutes. With
a folder also the other way round, without a worker, and of the worker's log, into that folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from orchestration.dashboard.command import PAGES
from tests.live.live_market import promote
from tests.live.loopback_worker import REPOSITORY, SYMBOLS, Worker, holds, serving
from tests.orchestration.browser import Tab, browser
from tests.orchestration.test_dashboard import cell, page

FOLDER: Final = REPOSITORY / "docs" / "dashboard"
#: Width, and whether it is dark.
DOCS: Final = ((1440, False), (390, True))
OTHERS: Final = ((1440, True), (390, False))
_TRADES_S: Final = 120.0


def shots(
    tab: Tab, address: str, names: Sequence[str], kinds: Sequence[tuple[int, bool]], folder: Path,
    says: str = "trading", after_s: float = 6.0,
) -> Iterator[Path]:  # fmt: skip
    """Take pictures of pages, with or without a question, some time after they say something: charts are drawn
    with the next seconds, and models are read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for width, dark in kinds:
            tab.open(f"{address}{name}", width, dark=dark)
            tab.until(f"document.body.innerText.includes({says!r})")
            time.sleep(after_s)
            made = folder / f"{name.partition('?')[0]}-{width}{'-dark' * dark}.png"
            tab.picture(made)
            Image.open(made).convert("RGB").quantize(64).save(made, optimize=True)
            yield made


def take(others: Path | None) -> Iterator[Path]:
    """Write the pictures; their paths."""
    with tempfile.TemporaryDirectory() as root, serving(*SYMBOLS) as exchange, browser() as tab:
        promote(Path(root))
        with page(Path(root)) as address:
            if others:
                yield from shots(tab, address, PAGES, DOCS, others / "none", "no worker", 1.0)
            worker = Worker(Path(root), exchange)
            worker.until(holds)
            time.sleep(_TRADES_S)
            tab.open(f"{address}execution")
            names = (*PAGES, f"why?order={tab.until(cell('Parents at work', 0))}")
            yield from shots(tab, address, names, DOCS, FOLDER)
            if others:
                yield from shots(tab, address, names, OTHERS, others)
        worker.stop()
        if others:
            log = Path(root) / "live" / "sandbox" / "log"
            with page(Path(root), "--again", str(log)) as address:
                yield from shots(tab, address, PAGES, DOCS, others / "again")
        assert tab.errors == []


if __name__ == "__main__":
    for path in take(Path(sys.argv[1]) if sys.argv[1:] else None):
        print(path, path.stat().st_size, flush=True)
