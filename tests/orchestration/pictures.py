"""Pictures of the dashboard's pages, for docs: a worker that trades on the exchange on loopback.

    python -m tests.orchestration.pictures            writes docs/dashboard/PAGE-WIDTH.png

Light at 1440 px, dark at 390 px, with a palette of 64 colours, after the worker has traded for a minute and a half.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Final

from PIL import Image

from orchestration.dashboard.command import PAGES
from tests.live.live_market import promote
from tests.live.loopback_worker import REPOSITORY, SYMBOLS, Worker, holds, serving
from tests.orchestration.browser import browser
from tests.orchestration.test_dashboard import page

FOLDER: Final = REPOSITORY / "docs" / "dashboard"
WIDTHS: Final = ((1440, False), (390, True))
_TRADES_S: Final = 90.0


def take(folder: Path = FOLDER, trades_s: float = _TRADES_S) -> list[Path]:
    """Write the pictures into a folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with tempfile.TemporaryDirectory() as root, serving(*SYMBOLS) as exchange:
        promote(Path(root))
        worker = Worker(Path(root), exchange)
        with page(Path(root)) as address, browser() as tab:
            worker.until(holds)
            time.sleep(trades_s)
            for name in PAGES:
                for width, dark in WIDTHS:
                    tab.open(f"{address}{name}", width, dark=dark)
                    tab.until("document.body.innerText.includes('trading')")
                    time.sleep(3)  # charts are drawn with the next seconds
                    made.append(folder / f"{name}-{width}.png")
                    tab.picture(made[-1])
                    Image.open(made[-1]).convert("RGB").quantize(64).save(made[-1], optimize=True)
        worker.stop()
    return made


if __name__ == "__main__":
    print(*take(), sep="\n")
