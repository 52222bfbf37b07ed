"""Who comes second waits until the first has ended, and says for which process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_HOLD = """
import sys
from market.lake import Lake
with Lake(sys.argv[1]).working_on(sys.argv[2], sys.argv[3]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def _hold(root: Path, first: str, last: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _HOLD, str(root), first, last]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _line(stream: object) -> str:
    return stream.readline()  # type: ignore[attr-defined, no-any-return]


def test_runs_of_one_date_wait_and_of_other_dates_do_not(tmp_path: Path) -> None:
    first = _hold(tmp_path, "2026-01-02", "2026-01-04")
    assert _line(first.stdout) == "held\n"
    beside = _hold(tmp_path, "2026-01-05", "2026-01-05")
    assert _line(beside.stdout) == "held\n"
    second = _hold(tmp_path, "2026-01-01", "2026-01-02")
    said = _line(second.stderr)
    assert f"waiting for process {first.pid}, which works on 2026-01-01 to 2026-01-02" in said
    assert second.poll() is None
    first.communicate("\n")
    assert _line(second.stdout) == "held\n"
    second.communicate("\n")
    beside.communicate("\n")


def test_a_killed_holder_lets_the_next_in(tmp_path: Path) -> None:
    first = _hold(tmp_path, "2026-01-02", "2026-01-02")
    assert _line(first.stdout) == "held\n"
    second = _hold(tmp_path, "2026-01-02", "2026-01-02")
    assert "waiting" in _line(second.stderr)
    first.kill()
    first.communicate()
    assert _line(second.stdout) == "held\n"
    second.communicate("\n")
