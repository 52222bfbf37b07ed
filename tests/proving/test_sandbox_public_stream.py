"""The sandbox's public stream, by pybit, by ccxt.pro and by hand."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pybit.unified_trading
import pytest
from websockets.sync.client import connect

from proving.sandbox.server import Sandbox
from tests.proving.sandbox_clients import SYMBOL, Wire, ccxt_client
from tests.proving.sandbox_server import Served, pybit_stream, served


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(seed=7, speed=2.0)) as running:
        yield running


@pytest.fixture
def wire(venue: Served) -> Iterator[Wire]:
    with connect(venue.description["ws_public"]) as socket:
        yield Wire(socket)


def book_of(frames: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Bid and ask prices after a snapshot and deltas; asserts that there is no sequence gap."""
    sides: dict[str, dict[float, str]] = {"b": {}, "a": {}}
    update = 0
    for frame in frames:
        data = frame["data"]
        if frame["type"] == "snapshot":
            sides = {"b": {}, "a": {}}
        else:
            assert data["u"] == update + 1
        update = data["u"]
        for name, side in sides.items():
            for price, size in data[name]:
                if size == "0":
                    del side[float(price)]
                else:
                    side[float(price)] = size
    return sorted(sides["b"], reverse=True), sorted(sides["a"])


@pytest.mark.parametrize("depth", [50, 200, 1000])
def test_a_book_built_from_deltas_equals_a_later_snapshot(
    venue: Served, wire: Wire, depth: int
) -> None:
    topic = f"orderbook.{depth}.BTCUSDT"
    assert wire.ask({"op": "subscribe", "args": [topic]})["success"]
    frames = [wire.next() for _ in range(15)]
    assert [frame["type"] for frame in frames] == ["snapshot"] + ["delta"] * 14
    assert {frame["topic"] for frame in frames} == {topic}
    with connect(venue.description["ws_public"]) as socket:
        late = Wire(socket)
        late.ask({"op": "subscribe", "args": [topic]})
        snapshot = late.next()
    while frames[-1]["data"]["u"] < snapshot["data"]["u"]:
        frames.append(wire.next())
    while frames[-1]["data"]["u"] > snapshot["data"]["u"]:
        frames.pop()
    assert book_of(frames) == book_of([snapshot])
    bids, asks = book_of(frames)
    assert bids[0] < asks[0]
    assert max(len(bids), len(asks)) <= depth
    for frame in frames:
        assert frame["ts"] >= frame["cts"]


def test_the_one_level_book_sends_snapshots_only(wire: Wire) -> None:
    wire.ask({"op": "subscribe", "args": ["orderbook.1.BTCUSDT"], "req_id": 5})
    frames = [wire.next() for _ in range(20)]
    assert {frame["type"] for frame in frames} == {"snapshot"}
    updates = [frame["data"]["u"] for frame in frames]
    assert updates == sorted(updates)
    assert all(len(frame["data"][side]) == 1 for frame in frames for side in "ba")


def test_tickers_send_a_snapshot_then_changed_fields(wire: Wire) -> None:
    wire.ask({"op": "subscribe", "args": ["tickers.BTCUSDT"]})
    first, *later = [wire.next() for _ in range(5)]
    assert first["type"] == "snapshot"
    assert {"bid1Price", "markPrice", "fundingRate", "nextFundingTime"} <= set(first["data"])
    assert {frame["type"] for frame in later} == {"delta"}
    assert all(1 < len(frame["data"]) < len(first["data"]) for frame in later)
    assert all(frame["data"]["symbol"] == "BTCUSDT" for frame in later)


def test_trades_and_candles_are_published(wire: Wire) -> None:
    answer = wire.ask({"op": "subscribe", "args": ["publicTrade.BTCUSDT", "kline.1.BTCUSDT"]})
    assert answer["success"]
    seen: dict[str, dict[str, Any]] = {}
    while len(seen) < 2:
        frame = wire.next()
        seen[frame["topic"]] = frame
    trade = seen["publicTrade.BTCUSDT"]["data"][0]
    assert set(trade) >= {"T", "s", "S", "v", "p", "L", "i", "BT"}
    candle = seen["kline.1.BTCUSDT"]["data"][-1]
    assert candle["end"] - candle["start"] == 59_999
    assert float(candle["low"]) <= float(candle["close"]) <= float(candle["high"])


def test_public_requests_are_answered_and_refused_as_on_the_venue(wire: Wire) -> None:
    request = {"op": "subscribe", "args": ["allLiquidation.BTCUSDT"], "req_id": 3}
    answer = wire.ask(request)
    identity = answer["conn_id"]
    assert answer == {
        "success": True,
        "ret_msg": "",
        "conn_id": identity,
        "req_id": "3",
        "op": "subscribe",
    }
    again = wire.ask({**request, "req_id": "e6"})
    assert again["ret_msg"] == "error:already subscribed,topic:allLiquidation.BTCUSDT"
    for topic in ("orderbook.500.BTCUSDT", "tickers.btcusdt", "order", "tickers.NOPEUSDT", 7):
        both = wire.ask({"op": "subscribe", "args": ["tickers.BTCUSDT", topic]})
        assert (both["success"], both["req_id"]) == (False, "")
        assert both["ret_msg"] == f"error:handler not found,topic:{topic}"
    pong = wire.ask({"op": "ping", "req_id": "p"})
    assert (pong["ret_msg"], pong["op"], pong["req_id"]) == ("pong", "ping", "p")
    assert wire.ask({"op": "dance"})["ret_msg"] == "error:invalid op"
    for text in ("{", "[]", "null", "[" * 5000, '{"op":'):
        assert wire.ask(text)["ret_msg"].startswith("Failed to decode incoming data:")
    assert wire.ask({"op": "unsubscribe", "args": ["allLiquidation.BTCUSDT"]})["success"]
    assert wire.ask({"op": "subscribe", "args": ["allLiquidation.BTCUSDT"]})["success"]


def test_the_command_prints_its_addresses_and_ends_on_sigterm() -> None:
    command = [
        sys.executable,
        "-m",
        "orchestration.cli",
        "sandbox",
        "--seed",
        "3",
        "--accounts",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            description = json.loads(process.stdout.readline())
            with urllib.request.urlopen(
                description["rest"] + "/v5/market/time", timeout=10
            ) as answer:
                assert json.load(answer)["retCode"] == 0
            with connect(description["ws_public"]) as socket:
                assert Wire(socket).ask({"op": "ping"})["success"]
                process.send_signal(signal.SIGTERM)
                assert process.wait(15) == 0
        finally:
            process.kill()
    assert len(description["keys"]) == 1
    assert description["clock"]["speed"] == 1.0


@pytest.mark.usefixtures("minutes_at_most")
def test_pybit_keeps_a_local_book(venue: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its book raises when a delta deletes an unknown price."""
    address = venue.description["ws_public"].replace("linear", "{CHANNEL_TYPE}")
    monkeypatch.setattr(pybit.unified_trading, "PUBLIC_WSS", address)
    stream = pybit_stream(channel_type="linear")
    seen: list[dict[str, Any]] = []
    stream.orderbook_stream(50, "BTCUSDT", seen.append)
    deadline = time.monotonic() + 60
    while len(seen) < 60 and time.monotonic() < deadline:
        time.sleep(0.05)
    stream.exit()
    assert len(seen) >= 60
    data = seen[-1]["data"]
    assert float(data["b"][0][0]) < float(data["a"][0][0])


def test_ccxt_pro_watches_book_trades_and_ticker(venue: Served) -> None:
    async def watched() -> tuple[Any, Any, Any]:
        exchange = ccxt_client(venue, pro=True)
        try:
            for _ in range(20):
                book = await exchange.watch_order_book(SYMBOL, 50)
            trades = await exchange.watch_trades(SYMBOL)
            ticker = await exchange.watch_ticker(SYMBOL)
        finally:
            await exchange.close()
        return book, trades, ticker

    book, trades, ticker = asyncio.run(asyncio.wait_for(watched(), 30))
    assert book["bids"][0][0] < book["asks"][0][0]
    assert trades[-1]["price"] > 0
    assert ticker["last"] > 0
