"""hftbacktest's converter of Bybit frames. Run by the peer's own interpreter, and it knows no other:

    peers/hftbacktest/bin/python tests/peers/hftbacktest_convert.py FRAMES.gz FEW.gz ROWS

``FRAMES.gz`` holds lines of one symbol, ``<receive ns> <frame>``, with books of 200 levels; ``FEW.gz``
a few of them, to compile with; ``ROWS`` is how many rows there is room for. Each question is a line of
standard input, each answer a line of standard output, both JSON:

    "seconds"   wall-clock time of one conversion
    "rows"      book levels and trades that the last conversion found
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from hftbacktest import DEPTH_EVENT, DEPTH_SNAPSHOT_EVENT, EXCH_EVENT, TRADE_EVENT
from hftbacktest.data.utils.bybit import BybitDepthLevel, convert_depth


def converted(path: str, room: int) -> Any:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return convert_depth(
            path, buffer_size=room, single_depth_level=int(BybitDepthLevel.LEVEL_200)
        )


def main() -> None:
    path, few, room = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rows = converted(few, room)
    for line in sys.stdin:
        if json.loads(line) == "seconds":
            started = time.perf_counter()
            rows = converted(path, room)
            answer: Any = time.perf_counter() - started
        else:
            kinds = rows["ev"] & 0xFF
            found = np.isin(kinds, (DEPTH_EVENT, DEPTH_SNAPSHOT_EVENT, TRADE_EVENT))
            answer = int((found & (rows["ev"] & EXCH_EVENT != 0)).sum())
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
