"""`l2 liquidity` over a capture, and over a lake without bars."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from market.errors import DataError
from market.settings import Settings
from orchestration.liquidity_report import LiquidityError, analyse
from tests.orchestration.parsed_page import ParsedPage


def test_a_capture_is_surveyed_and_drawn(data_dir: Path, tmp_path: Path) -> None:
    page = tmp_path / "liquidity.html"
    settings = Settings()
    settings = msgspec.structs.replace(
        settings, market=msgspec.structs.replace(settings.market, symbols=("BTCUSDT",))
    )
    capture = str(data_dir / "bybit-linear-20260809.frames.zst")
    surveys = analyse(settings, frames=[capture], page=str(page))
    assert list(surveys) == ["BTCUSDT"]
    median = {each["name"]: each["median"] for each in surveys["BTCUSDT"]["measured"]}
    bands = [median[f"depth within {band} bps, a side"] for band in (1, 2)]
    assert 0 < bands[0] < bands[1]
    assert median["sweep of 10,000"] <= median["sweep of 100,000"] <= median["sweep of 1,000,000"]
    drawn = ParsedPage(page.read_text(encoding="utf-8"))
    assert drawn.pictures
    assert drawn.fetched == []


def test_a_lake_without_bars_and_a_missing_capture_are_refused(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(Settings(), root=str(tmp_path))
    with pytest.raises(LiquidityError, match="no bars of BTCUSDT, ETHUSDT; name captures"):
        analyse(settings)
    with pytest.raises(DataError, match="no such capture"):
        analyse(settings, frames=[str(tmp_path / "none")])
