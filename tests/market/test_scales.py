"""Markets of every size: the venue's coarsest and finest grids, its largest sums, its odd decimals.

A ticker field that cannot be held is left out by name and place; its frame and the other fields stay.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from live.archives.download import FetchError, fetch
from market.events import EVENT, PLACES, Field, from_arrow
from market.ingest import ingest
from market.instruments import Instrument, partition_instrument, refusal
from market.lake import Lake
from market.settings import Settings, SettingsError, load, with_symbols
from market.wire.capture import Block, CaptureWriter
from market.wire.decode import Decoder
from market.wire.results import Decoded
from market.wire.survey import IngestError, scan
from market.wire.topics import TICKER_FIELDS
from orchestration.cli import main

NS = 1_790_134_716_200_000_000
MS = 1_790_134_716_101
PEPE = Instrument(
    symbol="1000PEPEUSDT", tick="0.0000001", lot="100", min_qty="100", min_notional="5"
)


def instrument(tick: str, lot: str, symbol: str = "XUSDT") -> Instrument:
    return Instrument(symbol=symbol, tick=tick, lot=lot, min_qty=lot, min_notional="5")


def lines(*frames: Any) -> Block:
    texts = (json.dumps(frame, separators=(",", ":")).encode() for frame in frames)
    return Block("x", 1, b"".join(b"%d %b\n" % (NS, text) for text in texts), last=True)


def ticker(symbol: str, **fields: Any) -> dict[str, Any]:
    topic = f"tickers.{symbol}"
    return {"topic": topic, "type": "delta", "ts": MS, "data": {"symbol": symbol, **fields}}


def decoded(of: Instrument, *frames: Any) -> Decoded:
    """What both readers make of the frames, which is the same."""
    both = [
        Decoder({of.symbol: of}, compiled=compiled).decode_block(lines(*frames))
        for compiled in (True, False)
    ]
    assert both[0].rejects == both[1].rejects
    assert both[0].counts == both[1].counts
    rows = [each.events.get(of.symbol, np.zeros(0, EVENT)) for each in both]
    assert rows[0].tobytes() == rows[1].tobytes()
    return both[0]


def values(result: Decoded, symbol: str) -> dict[str, int]:
    rows = result.events[symbol]
    return {
        Field(field).name: value
        for field, value in zip(rows["field"].tolist(), rows["value"].tolist(), strict=True)
    }


def test_a_symbol_of_a_huge_volume_keeps_every_field() -> None:
    frame = ticker(
        "1000PEPEUSDT",
        lastPrice="0.0045000",
        markPrice="0.0045001",
        openInterest="68744761000000.761",
        turnover24h="1570383121.943499",
        volume24h="1000000000000000",
        nextFundingTime="1786320000000",
        fundingRate="-0.00012345",
    )
    result = decoded(PEPE, frame)
    assert result.rejects == ()
    assert values(result, "1000PEPEUSDT") == {
        "LAST_PRICE": 450_000,
        "MARK_PRICE": 450_010,
        "OPEN_INTEREST": 68_744_761_000_000_761,
        "TURNOVER_24H": 1_570_383_121_943_499,
        "VOLUME_24H": 10**18,
        "NEXT_FUNDING_MS": 1_786_320_000_000,
        "FUNDING_RATE": -12_345,
    }


@pytest.mark.parametrize(
    ("name", "text", "detail"),
    [
        ("volume24h", "1e17", "absurd size"),
        ("volume24h", "9" * 60, "absurd size"),
        ("turnover24h", "12,5", "wrong type"),
        ("openInterest", 5.5, "wrong type"),
        ("fundingRate", "0.000000001", "finer than 1e-08"),
        ("markPrice", "99999999999999", "absurd size"),
        ("indexPrice", None, "wrong type"),
        ("lastPrice", "NaN", "wrong type"),
        ("nextFundingTime", "1786320000000.5", "finer than 1"),
    ],
)
def test_a_bad_field_is_left_out_by_name_and_place(name: str, text: Any, detail: str) -> None:
    good = "markPrice" if name != "markPrice" else "indexPrice"
    result = decoded(PEPE, ticker(PEPE.symbol), ticker(PEPE.symbol, **{name: text, good: "1.5"}))
    assert values(result, PEPE.symbol) == {TICKER_FIELDS[good].name: 150_000_000}
    (reject,) = result.rejects
    assert (reject.reason, reject.line, reject.symbol) == (f"{name} left out", 2, PEPE.symbol)
    assert reject.detail.startswith(detail)
    assert len(reject.detail) < 200
    (counts,) = result.counts.values()
    assert (counts.frames, counts.rejected, counts.events) == (2, 0, 1)


def test_two_bad_fields_of_one_frame_are_named_both() -> None:
    result = decoded(PEPE, ticker(PEPE.symbol, volume24h="x", openInterest="y", markPrice="z"))
    assert [each.reason for each in result.rejects] == [
        "volume24h left out", "openInterest left out", "markPrice left out",
    ]  # fmt: skip
    assert not result.events


def test_a_frame_of_another_symbol_is_still_rejected_whole() -> None:
    frame = ticker(PEPE.symbol, volume24h="x")
    frame["data"]["symbol"] = "BTCUSDT"
    result = decoded(PEPE, frame)
    assert [each.reason for each in result.rejects] == ["wrong symbol"]
    assert not result.events


@pytest.mark.parametrize("text", ["0.00000001", "1e-8", "1E-8", "0.0000000100", "0.1e-7", "10e-9"])
def test_a_number_is_read_alike_in_every_spelling(text: str) -> None:
    fine = instrument(text, "1e-3")
    assert decoded(fine, ticker("XUSDT", markPrice=text)).events["XUSDT"]["value"].tolist() == [1]
    data = {"s": "XUSDT", "b": [[text, "1e-3"], ["0.00000300", "2.50"]], "a": [], "u": 1}
    book = {"topic": "orderbook.200.XUSDT", "type": "snapshot", "ts": MS, "data": data}
    rows = decoded(fine, book).events["XUSDT"]
    assert rows["price_ticks"].tolist() == [1, 300]
    assert rows["qty_lots"].tolist() == [1, 2500]


@pytest.mark.parametrize("tick", ["1e-99", "1e99", "0", "-1", "0e5", "1e-13", "x", ""])
def test_a_grid_that_is_none_is_refused(tick: str) -> None:
    line = {"l2": "instrument", **msgspec.to_builtins(instrument(tick, "1"))}
    result = Decoder({}).decode_block(lines(line))
    assert [each.reason for each in result.rejects] == ["bad control line"]


# On every grid that the venue has, prices and quantities that lie on it are read exactly.
TICKS = ["0.00000001", "0.0000005", "0.001", "0.05", "1", "25", "1000"]
LOTS = ["0.001", "0.01", "0.1", "1", "10", "100", "1000", "1000000"]


@given(st.data(), st.sampled_from(TICKS), st.sampled_from(LOTS))
def test_every_grid_is_read_exactly(data: Any, tick: str, lot: str) -> None:
    of = instrument(tick, lot)
    ticks = data.draw(st.integers(1, 10**9))
    lots = data.draw(st.integers(0, 10**9))
    price, qty = (f"{of.price(ticks):f}", f"{of.qty(lots):f}")
    body = {"s": "XUSDT", "b": [[price, qty]], "a": [], "u": 1}
    frame = {"topic": "orderbook.200.XUSDT", "type": "snapshot", "ts": MS, "data": body}
    (row,) = decoded(of, frame).events["XUSDT"]
    assert (row["price_ticks"], row["qty_lots"]) == (ticks, lots)


@given(st.sampled_from(sorted(TICKER_FIELDS)), st.integers(0, 2**63 - 1), st.integers(0, 4))
def test_every_value_that_fits_is_held(name: str, count: int, zeros: int) -> None:
    places = PLACES[TICKER_FIELDS[name]]
    text = f"{Decimal(count).scaleb(-places):f}"
    if "." in text:
        text += "0" * zeros
    result = decoded(PEPE, ticker(PEPE.symbol, **{name: text}))
    assert result.rejects == ()
    assert result.events[PEPE.symbol]["value"].tolist() == [count]


# -- symbols -----------------------------------------------------------------------------------------

LINEAR = ["BTCUSDT", "1000PEPEUSDT", "SHIB1000USDT", "BTCPERP", "USDCUSDT", "10000SATSUSDT", "TEST"]
INVERSE = ["BTCUSD", "XRPUSD", "BTCUSDH26", "ETHUSDZ25"]
DATED = ["BTC-26DEC25", "BTCUSDT-26DEC25", "ETH-3JAN26", "BTC-31JAN25-60000-C"]


def test_linear_perpetuals_are_taken_in_and_others_refused_by_name() -> None:
    assert [refusal(symbol) for symbol in LINEAR] == [""] * len(LINEAR)
    assert all(f"{symbol}: an inverse contract" in refusal(symbol) for symbol in INVERSE)
    assert all(f"{symbol}: a contract with a delivery date" in refusal(symbol) for symbol in DATED)


@pytest.mark.parametrize("symbol", ["BTCUSD", "BTC-26DEC25"])
def test_settings_fetch_and_ingest_refuse_in_one_line(symbol: str, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=rf"^--set market.symbols=BTCUSDT,{symbol}: {symbol}: a"
    ):
        load(environ={}, overrides=[f"market.symbols=BTCUSDT,{symbol}"])
    with pytest.raises(SettingsError, match=f"^--symbols: {symbol}: a"):
        with_symbols(Settings(), ["ETHUSDT", symbol])
    with pytest.raises(FetchError, match=f"^{symbol}: a"):
        fetch(Settings(root=str(tmp_path)), [symbol], "2026-01-01", "2026-01-01", print)
    path = capture(tmp_path / "a.frames.zst", book_of(symbol, "1"))
    with pytest.raises(IngestError, match=f"^{symbol}: a"):
        ingest(Lake(tmp_path), [path], [(symbol, "2026-01-01")], Settings())


def capture(path: Path, *frames: Any) -> str:
    with CaptureWriter(path) as writer:
        for n, frame in enumerate(frames):
            writer.append(NS + n, json.dumps(frame, separators=(",", ":")).encode())
    return str(path)


def book_of(symbol: str, qty: str) -> dict[str, Any]:
    data = {"s": symbol, "b": [["0.0000045", qty]], "a": [["0.0000046", "1200"]], "u": 1}
    return {"topic": f"orderbook.200.{symbol}", "type": "snapshot", "ts": MS, "data": data}


def test_a_recording_beside_an_inverse_contract_is_taken_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = capture(tmp_path / "a.frames.zst", book_of("SHIB1000USDT", "1"), book_of("BTCUSD", "1"))
    inverse = capture(tmp_path / "b.frames.zst", book_of("BTCUSD", "1"))
    root = f"--root={tmp_path / 'lake'}"
    assert main(["ingest", mixed, root]) == 0
    assert "left out: BTCUSD: an inverse contract" in capsys.readouterr().err
    assert {symbol for symbol, _ in Lake(tmp_path / "lake").partitions("events")} == {
        "SHIB1000USDT"
    }
    assert main(["ingest", inverse, root]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "BTCUSD: an inverse contract" in line


@pytest.mark.parametrize("qty", ["300", "212345678900", "1000000000000000"])
def test_quantities_of_any_size_are_read_without_an_instrument(qty: str, tmp_path: Path) -> None:
    """A foreign recording says no lot; that of its quantities must hold the largest too."""
    symbol = "SHIB1000USDT"
    path = capture(
        tmp_path / "a.frames.zst",
        book_of(symbol, qty),
        ticker(
            symbol, markPrice="0.00000455", volume24h=qty, fundingRate="-0.0001", turnover24h="x"
        ),
    )
    lake = Lake(tmp_path / "lake")
    ((key, _),) = scan([path]).items()
    report = ingest(lake, [path], [key], Settings())
    assert report.reasons == {"turnover24h left out": 1}
    of = partition_instrument(lake.metadata("events", *key), symbol)
    rows = from_arrow(lake.read("events", *key))
    assert [of.qty(lots) for lots in rows["qty_lots"][:2].tolist()] == [Decimal(qty), 1200]
    assert [of.price(n) for n in rows["price_ticks"][:2].tolist()] == [
        Decimal("0.0000045"), Decimal("0.0000046"),
    ]  # fmt: skip
    assert rows["value"][2:].tolist() == [455, int(qty) * 1000, -10_000]
    (lost,) = lake.read("quarantine", *key).to_pylist()
    assert (lost["file"], lost["line"]) == ("a.frames.zst", 2)
    assert lost["detail"] == "wrong type: turnover24h 'x' is no decimal number"
