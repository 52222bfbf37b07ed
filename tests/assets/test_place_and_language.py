"""The tables do not depend on the time zone or on how the machine's language writes numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_BUILD = """
import hashlib, locale, sys, time
time.tzset()
locale.setlocale(locale.LC_ALL, "")
from assets.warehouse import TABLES, build_range
from market.bars import make_bars
from market.ingest import adopt, ingest
from market.lake import Lake
from market.settings import load
from market.wire.survey import scan

lake, settings = Lake(sys.argv[1]), load(environ={}, overrides=[f"root={sys.argv[1]}"])
captures = [adopt(lake, sys.argv[2])]
keys = sorted(scan(captures))
ingest(lake, captures, keys, settings)
for key in keys:
    make_bars(lake, *key, settings)
build_range(lake, settings, sorted({s for s, _ in keys}), keys[0][1], keys[-1][1])
for table in ("events", "bars", *TABLES):
    for key in keys:
        rows = lake.read(table, *key).replace_schema_metadata()
        print(table, *key, rows.num_rows, hashlib.sha256(str(rows.to_pydict()).encode()).hexdigest())
"""


def built(root: Path, capture: Path, place: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(root), str(capture)],
        env=os.environ | place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def there(folder: Path) -> dict[str, str]:
    """Half an hour off UTC, and decimal commas where the machine has the language or can make it."""
    place = {"TZ": "Asia/Kolkata", "LC_ALL": "de_DE.UTF-8", "LOCPATH": str(folder)}
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")],
        capture_output=True,
        check=False,
    )
    return place if made.returncode == 0 else place | {"LC_ALL": "C"}


def test_tables_are_the_same_in_every_place_and_language(data_dir: Path, tmp_path: Path) -> None:
    capture = data_dir / "bybit-linear-20260809.frames.zst"
    usual = built(tmp_path / "utc", capture, {"TZ": "UTC", "LC_ALL": "C"})
    assert len(usual) == 10
    assert built(tmp_path / "there", capture, there(tmp_path)) == usual
