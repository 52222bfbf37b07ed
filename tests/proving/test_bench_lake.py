"""`l2 bench lake`: a small range is built as users build it, and what is measured is all of it."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

from proving.bench.lake import RANGES, measure, resident, size_below
from tests.proving.bench_goals import check_goals


def test_every_figure_has_a_row_and_every_goal_a_figure() -> None:
    found = {row.name: row for row in measure(True, lambda _: None)}
    assert all(math.isfinite(row.ours) and row.ours > 0 for row in found.values())
    units = {name: row.unit for name, row in found.items()}
    for days in RANGES[1:]:  # as for the shortest, in the long run only
        of_range = {
            n: u for n, u in units.items() if n.startswith(f"feature tables of {RANGES[0]} ")
        }
        units |= {n.replace(f" {RANGES[0]} ", f" {days} "): unit for n, unit in of_range.items()}
    check_goals("lake", units)
    # dbt and its DuckDB are processes apart: without them this would be the parent's 300 MB
    assert found[f"feature tables of {RANGES[0]} days: peak memory"].ours > 400


def test_memory_is_counted_over_all_that_a_process_starts() -> None:
    program = (
        "import subprocess, sys\n"
        "code = 'data = bytearray(200_000_000); data[::4096] = data[1::4096]; input()'\n"
        "subprocess.run([sys.executable, '-c', code])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while (seen := resident(process.pid)) < 200e6 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.communicate(b"\n")
    assert 200e6 < seen < 400e6
    assert resident(process.pid) == 0


def test_the_size_of_a_folder_is_that_of_all_its_files(tmp_path: Path) -> None:
    assert size_below(tmp_path / "absent") == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (tmp_path / name).write_bytes(b"x" * 8192)
    assert size_below(tmp_path) == 3 * 8192
