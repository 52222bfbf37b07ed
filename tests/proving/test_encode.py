"""Encoding is the exact inverse of decoding, in the venue's own spelling."""

from __future__ import annotations

import json
import re
import uuid
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.events import EVENT, Events, Field, Flag, Kind
from market.instruments import BUILT_IN, Instrument
from market.wire.capture import Block, read_blocks
from market.wire.decode import Decoder
from market.wire.encode import Encoder
from proving.synthetic import generate, profile

BTC = BUILT_IN["BTCUSDT"]
T0 = 1_767_225_600_000  #: epoch ms


def row(kind: Kind, ms: int = 0, **values: int) -> tuple[int, ...]:
    """One event row; times are ``ms`` after `T0` unless said."""
    defaults = dict.fromkeys(EVENT.names or (), 0) | {
        "receive_ns": (T0 + ms) * 10**6 + 123,
        "exchange_ns": (T0 + ms) * 10**6,
        "publish_ns": (T0 + ms) * 10**6,
        "kind": int(kind),
    }
    return tuple((defaults | values).values())


def rows(*parts: tuple[int, ...]) -> Events:
    return np.array(list(parts), EVENT)


def decoded(lines: bytes, instrument: Instrument) -> Events:
    found = Decoder({instrument.symbol: instrument}).decode_block(Block("x", 1, lines))
    assert not found.rejects
    assert not found.duplicates
    return found.events[instrument.symbol]


def one(events: Events, instrument: Instrument = BTC) -> dict[str, object]:
    ((_, frame),) = list(Encoder(instrument).frames(events))
    content: dict[str, object] = json.loads(frame)
    return content


KEPT = [name for name in EVENT.names or () if name != "pad"]
FIRST, LAST = int(Flag.FIRST), int(Flag.LAST)


def test_a_book_frame_has_the_venues_format() -> None:
    events = rows(
        row(Kind.DELTA, update_id=17, side=1, price_ticks=867_234, qty_lots=194, flags=FIRST),
        row(Kind.DELTA, update_id=17, side=-1, price_ticks=867_235, qty_lots=0),
        row(Kind.DELTA, update_id=17, side=-1, price_ticks=867_301, qty_lots=12_000, flags=LAST),
    )
    ((receive_ns, frame),) = list(Encoder(BTC).frames(events))
    assert receive_ns == T0 * 10**6 + 123
    assert frame == (
        b'{"topic":"orderbook.200.BTCUSDT","type":"delta","ts":1767225600000,"data":{"s":"BTCUSDT",'
        b'"b":[["86723.40","0.194"]],"a":[["86723.50","0"],["86730.10","12.000"]],"u":17,'
        b'"seq":28275609600015},"cts":1767225600000}'
    )


def test_an_empty_book_frame_is_kept() -> None:
    events = rows(row(Kind.DELTA, update_id=18, flags=FIRST | LAST))
    data = one(events)["data"]
    assert isinstance(data, dict)
    assert (data["b"], data["a"], data["u"]) == ([], [], 18)


def test_trades_have_every_field_of_the_venues() -> None:
    common = {"side": 1, "qty_lots": 20, "update_id": 99}
    events = rows(
        row(Kind.TRADE, price_ticks=600_000, **common),
        row(Kind.TRADE, price_ticks=600_001, **common),
        row(Kind.TRADE, price_ticks=600_001, **common, flags=int(Flag.RPI)),
        row(Kind.TRADE, price_ticks=599_999, **(common | {"side": -1})),
        row(Kind.TRADE, price_ticks=599_999, **common, flags=int(Flag.BLOCK) | LAST),
    )
    frame = one(events)
    trades = frame["data"]
    assert frame["topic"] == "publicTrade.BTCUSDT"
    assert isinstance(trades, list)
    assert [trade["L"] for trade in trades] == [
        "ZeroPlusTick",
        "PlusTick",
        "ZeroPlusTick",
        "MinusTick",
        "ZeroMinusTick",
    ]
    assert [trade["RPI"] for trade in trades] == [False, False, True, False, False]
    assert [trade["BT"] for trade in trades] == [False] * 4 + [True]
    assert [trade["S"] for trade in trades] == ["Buy"] * 3 + ["Sell", "Buy"]
    assert {trade["seq"] for trade in trades} == {99}
    assert trades[0] == {
        "T": T0, "s": "BTCUSDT", "S": "Buy", "v": "0.020", "p": "60000.00", "L": "ZeroPlusTick",
        "i": trades[0]["i"], "BT": False, "RPI": False, "seq": 99,
    }  # fmt: skip
    ids = [uuid.UUID(trade["i"]) for trade in trades]
    assert len(set(ids)) == 5
    assert {(i.version, i.variant) for i in ids} == {(5, uuid.RFC_4122)}


def test_a_ticker_is_a_snapshot_once_and_pads_to_the_scale() -> None:
    def frame(ms: int, field: Field, value: int) -> tuple[int, ...]:
        return row(Kind.TICKER, ms, field=int(field), value=value, flags=LAST)

    events = rows(
        frame(0, Field.MARK_PRICE, 8_671_630 * 10**6),
        frame(100, Field.FUNDING_RATE, -12_500),
        frame(200, Field.OPEN_INTEREST, 52_774_528),
        frame(300, Field.TURNOVER_24H, 42 * 10**6),
        frame(400, Field.NEXT_FUNDING_MS, T0),
        frame(500, Field.INDEX_PRICE, 12_345_678_912_345),
    )
    found = [json.loads(frame) for _, frame in Encoder(BTC).frames(events)]
    assert [f["type"] for f in found] == ["snapshot"] + ["delta"] * 5
    assert [list(f["data"].items())[1] for f in found] == [
        ("markPrice", "86716.30"),
        ("fundingRate", "-0.000125"),
        ("openInterest", "52774.528"),
        ("turnover24h", "42.0000"),
        ("nextFundingTime", str(T0)),
        ("indexPrice", "123456.78912345"),
    ]


def test_a_liquidation_has_the_side_of_its_position() -> None:
    values = {"side": -1, "price_ticks": 600_000, "qty_lots": 5, "flags": LAST}
    frame = one(rows(row(Kind.LIQUIDATION, **values)))
    assert frame["topic"] == "allLiquidation.BTCUSDT"
    assert frame["data"] == [{"T": T0, "s": "BTCUSDT", "S": "Sell", "v": "0.005", "p": "60000.00"}]


# For every symbol: decode(encode(events)) == events, in one call or frame by frame.


@pytest.mark.parametrize("symbol", sorted(BUILT_IN))
def test_a_synthetic_market_round_trips_exactly(symbol: str) -> None:
    events = np.concatenate(list(generate(profile("default"), 3, symbol, "2026-02-03", 0, 200)))
    lines = Encoder(BUILT_IN[symbol]).encode(events)
    assert decoded(lines.text.tobytes(), BUILT_IN[symbol]).tobytes() == events.tobytes()
    assert len(lines.ends) == np.count_nonzero(events["flags"] & Flag.LAST)
    assert (lines.text[lines.ends - 1] == ord("\n")).all()


def test_encoded_lines_do_not_depend_on_chunk_sizes() -> None:
    events = np.concatenate(list(generate(profile("demo"), 3, "BTCUSDT", "2026-02-03", 0, 60)))
    whole = Encoder(BTC).encode(events).text.tobytes()
    lasts = np.flatnonzero(events["flags"] & Flag.LAST) + 1
    encoder, cuts = Encoder(BTC), [0, *lasts[::37].tolist(), len(events)]
    parts = [encoder.encode(events[a:b]).text.tobytes() for a, b in pairwise(cuts)]
    assert b"".join(parts) == whole


# A recording that is decoded, encoded and decoded again has the same rows: nothing that becomes an
# event is lost in spelling.


@pytest.mark.parametrize("name", ["bybit-linear-20260809", "usdm-20240718"])
def test_recorded_frames_survive_the_round_trip(data_dir: Path, name: str) -> None:
    block = next(read_blocks(data_dir / f"{name}.frames.zst"))
    first = Decoder(BUILT_IN).decode_block(block)
    for symbol, events in first.events.items():
        lasts = np.flatnonzero(events["flags"] & Flag.LAST)
        events = events[: lasts[-1] + 1]
        lines = Encoder(BUILT_IN[symbol]).encode(events).text.tobytes()
        again = decoded(lines, BUILT_IN[symbol])
        for column in KEPT:
            assert np.array_equal(again[column], events[column]), column


@given(
    st.lists(
        st.tuples(st.sampled_from([1, -1]), st.integers(1, 2**53), st.integers(0, 2**53 - 1)),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(["0.1", "0.5", "1", "0.01", "0.00001", "0.25"]),
    st.sampled_from(["0.001", "1", "0.01", "10"]),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_any_tick_lot_and_size_round_trips(
    levels: list[tuple[int, int, int]], tick: str, lot: str
) -> None:
    instrument = Instrument(symbol="X1", tick=tick, lot=lot, min_qty=lot, min_notional="5")
    levels.sort(key=lambda level: -level[0])
    events = rows(
        *(
            row(Kind.SNAPSHOT, update_id=5, side=side, price_ticks=ticks, qty_lots=lots)
            for side, ticks, lots in levels
        )
    )
    events["flags"][0] |= FIRST
    events["flags"][-1] |= LAST
    text = Encoder(instrument).encode(events).text.tobytes()
    for price in re.findall(rb'\["([0-9.]+)"', text):
        assert len(price.partition(b".")[2]) >= 2
    assert decoded(text, instrument).tobytes() == events.tobytes()


def test_incomplete_or_restated_frames_are_rejected() -> None:
    part = rows(row(Kind.DELTA, update_id=1, side=1, price_ticks=5, qty_lots=5, flags=FIRST))
    with pytest.raises(ValueError, match="not whole"):
        Encoder(BTC).encode(part)
    part["flags"] |= LAST | int(Flag.CHECKPOINT)
    with pytest.raises(ValueError, match="CHECKPOINT"):
        Encoder(BTC).encode(part)
    assert len(Encoder(BTC).encode(part[:0]).ends) == 0
