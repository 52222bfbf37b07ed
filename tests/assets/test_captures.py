"""Which captures are read for a date."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets.market_data import captures_for
from market.ingest import adopt, ingest
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, MINUTE_NS, SECOND_NS
from tests.market.corpus import DAY, MIDNIGHT, Lines, messages, received, write

NEXT, THIRD = "2026-11-21", "2026-11-22"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def lines(start_ns: int, seed: int = 1, symbol: str = "BTCUSDT") -> Lines:
    return received(messages(symbol, start_ns, 4, seed), seed)


def test_a_capture_of_three_dates_is_found_for_the_third(lake: Lake, tmp_path: Path) -> None:
    days = (MIDNIGHT - DAY_NS // 2 + n * DAY_NS for n in range(3))
    path = adopt(lake, write(tmp_path, "x", [line for ns in days for line in lines(ns)]))
    own = adopt(lake, write(tmp_path, "y", lines(MIDNIGHT + SECOND_NS, 2, "ETHUSDT")))
    assert captures_for(lake, [THIRD]) == [path]
    assert captures_for(lake, [NEXT]) == [path, own]
    report = ingest(lake, captures_for(lake, [THIRD]), [("BTCUSDT", THIRD)], Settings())
    assert report.gaps == 0
    assert lake.partitions("events") == [("BTCUSDT", THIRD)]


def test_all_captures_that_run_past_midnight_are_found(lake: Lake, tmp_path: Path) -> None:
    """Recorders side by side, one a symbol; another one ended at noon."""
    sides = [
        lines(MIDNIGHT - 2 * SECOND_NS, n, symbol)
        for n, symbol in enumerate(("BTCUSDT", "ETHUSDT", "SOLUSDT"))
    ]
    paths = [adopt(lake, write(tmp_path, f"{n}", side)) for n, side in enumerate(sides)]
    adopt(lake, write(tmp_path, "noon", lines(MIDNIGHT - DAY_NS // 2, 3)))
    assert sorted(captures_for(lake, [NEXT])) == sorted(paths)
    assert captures_for(lake, [THIRD]) == []


def test_a_capture_that_ends_just_before_a_date_is_read_for_its_book(
    lake: Lake, tmp_path: Path
) -> None:
    ends = adopt(lake, write(tmp_path, "ends", lines(MIDNIGHT - MINUTE_NS)))
    torn = Path(lake.frames_dir(DAY)) / "torn.frames.zst"
    torn.write_bytes(b"no capture")
    assert captures_for(lake, [NEXT]) == [ends]
