"""A date's events come from the recorder's capture where it holds them, else from the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import msgspec

from assets.market_data import events
from assets.platform import Platform, partition_key
from market.lake import Lake
from market.units import day_start_ns
from market.wire.capture import CaptureWriter

DAY = "2026-03-01"
T = day_start_ns(DAY) + 1_000_000_000


def capture(path: str, symbol: str, price: str) -> None:
    """A book of one level a side, which says where it came from by its price."""
    data = {"s": symbol, "b": [[price, "1"]], "a": [["9000.0", "1"]], "u": 1, "seq": 1}
    frame = {"topic": f"orderbook.200.{symbol}", "type": "snapshot", "ts": T // 10**6, "data": data}
    with CaptureWriter(path) as writer:
        writer.append(T, msgspec.json.encode(frame | {"cts": T // 10**6}))


def materialised(root: Path, *symbols: str) -> dict[str, dict[str, Any]]:
    """Metadata of the events asset over these symbols' date, by symbol."""
    first, last = (partition_key(symbol, DAY) for symbol in (symbols[0], symbols[-1]))
    result = dg.materialize(
        [events],
        resources={"platform": Platform(overrides=[f"root={root}"])},
        tags={
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        },
    )
    return {
        str(happened.partition).rpartition("|")[2]: {
            name: value.value for name, value in happened.metadata.items()
        }
        for happened in result.asset_materializations_for_node("events")
    }


def best_bid(lake: Lake, symbol: str) -> int:
    price: int = lake.read("events", symbol, DAY).column("price_ticks")[0].as_py()
    return price


def test_events_come_from_the_archive_where_nothing_was_recorded(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "recorded")
    capture(lake.archive("BTCUSDT", DAY), "BTCUSDT", "100.0")
    capture(lake.archive("ETHUSDT", DAY), "ETHUSDT", "10.00")

    told = materialised(tmp_path, "BTCUSDT", "ETHUSDT")
    assert told["BTCUSDT"]["from archives"] == [f"BTCUSDT {DAY}", f"ETHUSDT {DAY}"]
    assert {symbol: found["read from"] for symbol, found in told.items()} == {
        "BTCUSDT": "the venue's archive",
        "ETHUSDT": "the venue's archive",
    }
    assert told["ETHUSDT"]["files"] == ["ETHUSDT.frames.zst"]
    assert (best_bid(lake, "BTCUSDT"), best_bid(lake, "ETHUSDT")) == (1000, 1000)

    capture(f"{lake.frames_dir(DAY)}/a.frames.zst", "BTCUSDT", "200.0")
    told = materialised(tmp_path, "BTCUSDT", "ETHUSDT")
    assert told["BTCUSDT"]["from archives"] == [f"ETHUSDT {DAY}"]
    assert told["BTCUSDT"]["rows"] == 4
    assert (told["BTCUSDT"]["read from"], told["BTCUSDT"]["files"]) == (
        "captures",
        ["a.frames.zst"],
    )
    assert told["ETHUSDT"]["read from"] == "the venue's archive"
    assert (best_bid(lake, "BTCUSDT"), best_bid(lake, "ETHUSDT")) == (2000, 1000)
