"""Decoding: exact rows, sequence by topic, and a reason and a place for every rejection."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.events import EVENT, Events, Field, Flag, Kind
from market.instruments import BUILT_IN, Instrument
from market.wire.capture import Block, read_blocks
from market.wire.decode import OTHER, Decoder
from market.wire.jsontext import value_end
from market.wire.results import Decoded, TopicCounts

NS = 1_790_134_716_200_000_000
MS = 1_790_134_716_101
BOOK = "orderbook.200.BTCUSDT"

#: The re-framed recordings quote ETH on a lot of 0.001.
FINE = {**BUILT_IN, "ETHUSDT": msgspec.structs.replace(BUILT_IN["ETHUSDT"], lot="0.001")}


def pack(frame: Any) -> bytes:
    return json.dumps(frame, separators=(",", ":")).encode()


def book(
    u: int,
    bids: list[list[Any]] | None = None,
    asks: list[list[Any]] | None = None,
    kind: str = "delta",
    **over: Any,
) -> dict[str, Any]:
    data = {"s": "BTCUSDT", "b": bids or [], "a": asks or [], "u": u, "seq": 9}
    return {"topic": BOOK, "type": kind, "ts": MS, "data": data, "cts": MS - 7, **over}


def trade(**over: Any) -> dict[str, Any]:
    entry = {
        "T": MS - 3,
        "s": "BTCUSDT",
        "S": "Buy",
        "v": "0.250",
        "p": "83766.30",
        "L": "PlusTick",
        "i": "68bc1c35-dcc0-58e8-a4c5-f59a6b790814",
        "BT": False,
        "RPI": False,
        "seq": 821670598155,
    } | over
    entry = {name: value for name, value in entry.items() if value is not None}
    return {"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": MS, "data": [entry]}


def ticker(**fields: Any) -> dict[str, Any]:
    return {
        "topic": "tickers.BTCUSDT",
        "type": "delta",
        "data": {"symbol": "BTCUSDT", **fields},
        "cs": 12,
        "ts": MS,
    }


def block_of(*lines: bytes, first_line: int = 1) -> Block:
    return Block("x", first_line, b"".join(line + b"\n" for line in lines), last=True)


def stamped(*frames: Any, start: int = NS) -> Block:
    return block_of(*(b"%d %b" % (start + n, pack(frame)) for n, frame in enumerate(frames)))


#: Every rule is tested on both readers: the compiled one and the reference.
@pytest.fixture(params=[True, False], ids=["compiled", "reference"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return Decoder(compiled=request.param)


def btc(decoded: Decoded) -> Events:
    return decoded.events.get("BTCUSDT", np.zeros(0, EVENT))


# -- frames to rows --------------------------------------------------------------------------------


def test_a_snapshot_becomes_levels_in_ticks_and_lots(decoder: Decoder) -> None:
    frame = book(7, [["86723.40", "0.194"], ["86723.3", "2"]], [["86723.50", "0"]], "snapshot")
    rows = btc(decoder.decode_frame(NS, pack(frame)))
    assert rows["price_ticks"].tolist() == [867234, 867233, 867235]
    assert rows["qty_lots"].tolist() == [194, 2000, 0]
    assert rows["side"].tolist() == [1, 1, -1]
    assert rows["kind"].tolist() == [Kind.SNAPSHOT] * 3
    assert rows["flags"].tolist() == [Flag.FIRST, 0, Flag.LAST]
    assert set(rows["receive_ns"].tolist()) == {NS}
    assert set(rows["exchange_ns"].tolist()) == {(MS - 7) * 10**6}
    assert set(rows["publish_ns"].tolist()) == {MS * 10**6}
    assert set(rows["update_id"].tolist()) == {7}
    assert not rows["value"].any()
    assert not rows["pad"].any()


def test_without_cts_the_exchange_time_is_ts(decoder: Decoder) -> None:
    frame = book(1, [["1.0", "1"]], kind="snapshot")
    del frame["cts"]
    assert btc(decoder.decode_frame(NS, pack(frame)))["exchange_ns"].tolist() == [MS * 10**6]


def test_a_frame_without_levels_is_one_row_that_keeps_its_times(decoder: Decoder) -> None:
    decoder.decode_frame(NS, pack(book(1, [["1.0", "1"]], kind="snapshot")))
    (row,) = btc(decoder.decode_frame(NS + 1, pack(book(2))))
    assert (row["side"], row["kind"], row["update_id"]) == (0, Kind.DELTA, 2)
    assert row["flags"] == Flag.FIRST | Flag.LAST
    assert (row["price_ticks"], row["qty_lots"]) == (0, 0)


def test_a_trade_carries_the_takers_side_and_its_flags(decoder: Decoder) -> None:
    frame = trade(S="Sell", RPI=True, BT=True)
    frame["data"].append(trade()["data"][0])
    rows = btc(decoder.decode_frame(NS, pack(frame)))
    assert rows["side"].tolist() == [-1, 1]
    assert rows["kind"].tolist() == [Kind.TRADE] * 2
    assert rows["flags"].tolist() == [Flag.RPI | Flag.BLOCK, Flag.LAST]
    assert rows["price_ticks"].tolist() == [837663] * 2
    assert rows["qty_lots"].tolist() == [250] * 2
    assert rows["exchange_ns"].tolist() == [(MS - 3) * 10**6] * 2
    assert rows["update_id"].tolist() == [821670598155] * 2


def test_old_trades_without_rpi_and_seq_are_read(decoder: Decoder) -> None:
    (row,) = btc(decoder.decode_frame(NS, pack(trade(RPI=None, seq=None))))
    assert (row["flags"], row["update_id"]) == (Flag.LAST, 0)


def test_a_liquidation_keeps_the_side_of_the_liquidated_position(decoder: Decoder) -> None:
    entry = {"T": MS, "s": "BTCUSDT", "S": "Buy", "v": "0.5", "p": "80000.1"}
    frame = {"topic": "allLiquidation.BTCUSDT", "type": "snapshot", "ts": MS, "data": [entry]}
    (row,) = btc(decoder.decode_frame(NS, pack(frame)))
    assert (row["kind"], row["side"], row["qty_lots"]) == (Kind.LIQUIDATION, 1, 500)


def test_only_known_ticker_fields_become_rows(decoder: Decoder) -> None:
    frame = ticker(
        bid1Price="1",
        lastPrice="65114.30",
        markPrice="65117.44",
        indexPrice="",
        openInterest="59891.732",
        turnover24h="4273027716.4294",
        fundingRate="0.0001",
        nextFundingTime="1786320000000",
        openInterestValue="nonsense",
    )
    rows = btc(decoder.decode_frame(NS, pack(frame)))
    assert dict(zip(rows["field"].tolist(), rows["value"].tolist(), strict=True)) == {
        Field.LAST_PRICE: 6511430000000,
        Field.MARK_PRICE: 6511744000000,
        Field.OPEN_INTEREST: 59891732,
        Field.TURNOVER_24H: 4273027716429400,
        Field.FUNDING_RATE: 10000,
        Field.NEXT_FUNDING_MS: 1786320000000,
    }
    assert rows["flags"].tolist() == [0] * 5 + [Flag.LAST]
    assert not rows["side"].any()


def test_a_negative_funding_rate_is_read(decoder: Decoder) -> None:
    (row,) = btc(decoder.decode_frame(NS, pack(ticker(fundingRate="-0.00012345"))))
    assert row["value"] == -12345


def test_a_ticker_without_a_known_field_is_counted_only(decoder: Decoder) -> None:
    decoded = decoder.decode_frame(NS, pack(ticker(bid1Size="3")))
    assert decoded.events == {}
    assert decoded.counts["tickers.BTCUSDT"].frames == 1


@pytest.mark.parametrize(
    "frame",
    [
        {"topic": "orderbook.50.BTCUSDT", "type": "delta", "ts": MS, "data": {}},
        {"topic": "kline.1.BTCUSDT", "ts": MS, "data": []},
        {"topic": "priceLimit.BTCUSDT", "ts": MS, "data": {}},
    ],
)
def test_other_topics_are_counted_and_not_converted(decoder: Decoder, frame: Any) -> None:
    decoded = decoder.decode_block(stamped(frame, frame))
    assert decoded.counts == {frame["topic"]: TopicCounts(frames=2)}
    assert not decoded.events
    assert not decoded.rejects


def test_replies_to_our_requests_are_counted(decoder: Decoder) -> None:
    pong = {"success": True, "ret_msg": "pong", "conn_id": "x", "req_id": "", "op": "ping"}
    assert decoder.decode_frame(NS, pack(pong)).counts == {"op.ping": TopicCounts(frames=1)}


def test_only_the_requested_symbols_are_converted() -> None:
    decoder = Decoder(symbols=["ETHUSDT"])
    decoded = decoder.decode_frame(NS, pack(trade()))
    assert not decoded.events
    assert decoded.counts["publicTrade.BTCUSDT"].frames == 1


def test_white_space_key_order_and_escapes_change_nothing() -> None:
    frame = book(3, [["1.5", "0.25"]], [["1.6", "1"]], "snapshot")
    plain = btc(Decoder().decode_frame(NS, pack(frame)))
    reordered = dict(reversed(frame.items()))
    reordered["data"] = dict(reversed(frame["data"].items()))
    for text in (
        json.dumps(frame, indent=1),
        json.dumps(reordered),
        json.dumps(frame).replace("BTCUSDT", "\\u0042TCUSDT"),
    ):
        assert np.array_equal(btc(Decoder().decode_frame(NS, text.encode())), plain)


# -- sequence --------------------------------------------------------------------------------------


def flags_of(decoder: Decoder, *frames: Any) -> list[tuple[int, int]]:
    """(u, flags of the first row) of the accepted book frames."""
    rows = btc(decoder.decode_block(stamped(*frames)))
    firsts = rows[rows["flags"] & Flag.FIRST != 0]
    return list(zip(firsts["update_id"].tolist(), firsts["flags"].tolist(), strict=True))


ONE = int(Flag.FIRST | Flag.LAST)
GAP = int(Flag.FIRST | Flag.LAST | Flag.GAP)
LEVEL = [["1.0", "1"]]


def test_the_next_u_follows_on_and_a_snapshot_restarts_at_any_u(decoder: Decoder) -> None:
    frames = [
        book(50, LEVEL, kind="snapshot"),
        book(51, LEVEL),
        book(1, LEVEL, kind="snapshot"),
        book(2, LEVEL),
    ]
    assert flags_of(decoder, *frames) == [(50, ONE), (51, ONE), (1, ONE), (2, ONE)]


def test_an_old_u_is_a_duplicate(decoder: Decoder) -> None:
    frames = [book(5, LEVEL, kind="snapshot"), book(5, LEVEL), book(4, LEVEL), book(6, LEVEL)]
    decoded = decoder.decode_block(stamped(*frames))
    assert btc(decoded)["update_id"].tolist() == [5, 6]
    assert decoded.duplicates == 2
    assert decoded.gaps == 0
    assert decoded.counts[BOOK].frames == 4
    assert decoded.counts[BOOK].events == 2


def test_a_sequence_gap_flags_the_first_row_only(decoder: Decoder) -> None:
    two = [["1.0", "1"], ["0.9", "1"]]
    decoded = decoder.decode_block(
        stamped(book(5, LEVEL, kind="snapshot"), book(7, two), book(8, LEVEL))
    )
    rows = btc(decoded)
    assert rows["flags"].tolist() == [ONE, Flag.FIRST | Flag.GAP, Flag.LAST, ONE]
    assert decoded.gaps == 1


def test_a_delta_before_any_snapshot_is_a_gap(decoder: Decoder) -> None:
    assert flags_of(decoder, book(9, LEVEL), book(10, LEVEL)) == [(9, GAP), (10, ONE)]


def test_the_first_delta_after_a_disconnect_is_a_gap_whatever_its_u(decoder: Decoder) -> None:
    for u in (6, 5, 99):
        flags = flags_of(
            decoder, book(5, LEVEL, kind="snapshot"), {"l2": "disconnect"}, book(u, LEVEL)
        )
        assert flags == [(5, ONE), (u, GAP)]
    snapshot = book(3, LEVEL, kind="snapshot")
    assert flags_of(decoder, snapshot, {"l2": "disconnect"}, snapshot) == [(3, ONE), (3, ONE)]


def test_a_rejected_book_frame_makes_the_next_delta_a_gap(decoder: Decoder) -> None:
    bad = book(6, [["1.05", "1"]])
    flags = flags_of(decoder, book(5, LEVEL, kind="snapshot"), bad, book(7, LEVEL), book(8, LEVEL))
    assert flags == [(5, ONE), (7, GAP), (8, ONE)]


def test_continuity_is_by_topic(decoder: Decoder) -> None:
    eth = book(800, LEVEL, kind="snapshot", topic="orderbook.200.ETHUSDT")
    eth["data"]["s"] = "ETHUSDT"
    flags = flags_of(decoder, book(5, LEVEL, kind="snapshot"), eth, book(6, LEVEL))
    assert flags == [(5, ONE), (6, ONE)]


# -- time ------------------------------------------------------------------------------------------


def test_receive_time_is_a_running_maximum_and_steps_back_are_counted(decoder: Decoder) -> None:
    lines = [b"%d %b" % (NS + step, pack(trade())) for step in (10, 4, 12)]
    decoded = decoder.decode_block(block_of(*lines))
    assert btc(decoded)["receive_ns"].tolist() == [NS + 10, NS + 10, NS + 12]
    assert decoded.steps_back == 1
    assert decoder.clock_ns == NS + 12
    lag = NS - (MS - 3) * 10**6
    counts = decoded.counts["publicTrade.BTCUSDT"]
    assert (counts.min_lag_ns, counts.max_lag_ns) == (lag + 10, lag + 12)


def test_a_receive_time_a_day_after_the_venues_is_rejected(
    decoder: Decoder,
) -> None:
    late = NS + 2 * 86_400 * 10**9
    decoded = decoder.decode_block(
        block_of(b"%d %b" % (late, pack(trade())), b"%d %b" % (NS, pack(trade())))
    )
    assert [reject.reason for reject in decoded.rejects] == ["bad receive time"]
    assert btc(decoded)["receive_ns"].tolist() == [NS]


def test_a_part_ends_before_the_first_frame_of_the_next_date(decoder: Decoder) -> None:
    frames = [book(1, LEVEL, kind="snapshot"), book(2, LEVEL), {"bad": 1}, book(3, LEVEL)]
    part = decoder.decode_part(stamped(*frames), NS + 1)
    assert (part.lines, part.reached) == (1, True)
    assert part.rest is not None
    assert part.rest.first_line == 2
    after = decoder.decode_part(part.rest)
    assert after.rest is None
    assert btc(after)["update_id"].tolist() == [2, 3]
    assert after.gaps == 0
    assert [reject.line for reject in after.rejects] == [3]


# -- control lines ---------------------------------------------------------------------------------


def test_a_checkpoint_restates_the_book_and_the_stream_goes_on(decoder: Decoder) -> None:
    data = {"s": "BTCUSDT", "b": [["1.0", "1"]], "a": [["1.1", "2"]], "u": 41}
    decoded = decoder.decode_block(
        stamped({"l2": "checkpoint", "topic": BOOK, "data": data}, book(42, LEVEL))
    )
    rows = btc(decoded)
    assert rows["kind"].tolist() == [Kind.SNAPSHOT, Kind.SNAPSHOT, Kind.DELTA]
    assert rows["flags"].tolist() == [
        Flag.CHECKPOINT | Flag.FIRST,
        Flag.CHECKPOINT | Flag.LAST,
        ONE,
    ]
    assert rows["receive_ns"].tolist() == [NS, NS, NS + 1]
    assert decoded.counts[BOOK].frames == 1
    assert [control.fields["l2"] for control in decoded.controls] == ["checkpoint"]


def test_a_ticker_checkpoint_restates_its_fields(decoder: Decoder) -> None:
    data = {"symbol": "BTCUSDT", "markPrice": "100.5"}
    line = {"l2": "checkpoint", "topic": "tickers.BTCUSDT", "data": data}
    (row,) = btc(decoder.decode_block(stamped(line)))
    assert (row["field"], row["value"]) == (Field.MARK_PRICE, 100_50000000)
    assert row["flags"] == Flag.CHECKPOINT | Flag.LAST


def test_the_captures_own_instrument_wins_over_the_table(decoder: Decoder) -> None:
    line = {"l2": "instrument", **msgspec.to_builtins(BUILT_IN["BTCUSDT"]), "tick": "0.05"}
    decoded = decoder.decode_block(stamped(line, book(1, [["1.05", "1"]], kind="snapshot")))
    assert btc(decoded)["price_ticks"].tolist() == [21]
    assert decoder.instruments["BTCUSDT"].tick == "0.05"


def test_an_instrument_line_makes_a_new_symbol_known(decoder: Decoder) -> None:
    sol = Instrument(symbol="SOLUSDT", tick="0.010", lot="0.1", min_qty="0.1", min_notional="5")
    frame = trade(s="SOLUSDT", p="130.51", v="2.5") | {"topic": "publicTrade.SOLUSDT"}
    decoded = decoder.decode_block(
        stamped(frame, {"l2": "instrument", **msgspec.to_builtins(sol)}, frame)
    )
    assert [reject.reason for reject in decoded.rejects] == ["unknown instrument"]
    (row,) = decoded.events["SOLUSDT"]
    assert (row["price_ticks"], row["qty_lots"]) == (13051, 25)


def test_a_decoder_of_a_fixed_grid_rejects_prices_off_it_by_name() -> None:
    line = {"l2": "instrument", **msgspec.to_builtins(BUILT_IN["BTCUSDT"]), "tick": "0.01"}
    decoder = Decoder(follow=False)
    decoded = decoder.decode_block(stamped(line, book(1, [["1.05", "1"]], kind="snapshot")))
    assert [reject.reason for reject in decoded.rejects] == ["price off tick"]


# -- rejections ------------------------------------------------------------------------------------

LEVELS = [["1.0", "1"]] * 5001

REJECTED: list[tuple[str, Any]] = [
    ("not JSON", b'{"topic":"orderbook.200.BTCUSDT"'),
    ("not JSON", b"\xff\xfe"),
    ("not JSON", b"[" * 100_000),
    ("not JSON", {**ticker(), "data": {"symbol": "\ud800"}}),
    ("unknown shape", b"[]"),
    ("unknown shape", b"{}"),
    ("unknown shape", book(1, LEVEL, kind="update")),
    ("unknown shape", book(1, [["1.0"]])),
    ("unknown shape", book(1, [["1.0", "1", "1"]])),
    ("unknown topic", {"topic": "orderbook"}),
    ("unknown topic", {"topic": "x y.BTCUSDT"}),
    ("unknown topic", {"topic": "a." + "b" * 100}),
    ("unknown instrument", trade(s="DOGEUSDT") | {"topic": "publicTrade.DOGEUSDT"}),
    ("wrong type", {"topic": 5}),
    ("wrong type", book(1, [[1.0, "1"]])),
    ("wrong type", book(1, [["1.0", "one"]])),
    ("wrong type", book(1, [["", "1"]])),
    ("wrong type", book(1, [["1e", "1"]])),
    ("wrong type", book(1, [["1.", "1"]])),
    ("wrong type", book(1, [["NaN", "1"]])),
    ("wrong type", book(1, LEVEL, ts="5")),
    ("wrong type", book(1, LEVEL, ts=5.0)),
    ("wrong type", book(1, LEVEL, ts=True)),
    ("wrong type", book(1, LEVEL, data=[])),
    ("wrong type", trade(BT="false")),
    ("wrong type", trade(v=1)),
    ("missing field", {"topic": BOOK, "type": "delta", "ts": MS}),
    ("missing field", {"topic": BOOK, "ts": MS, "data": {}}),
    ("missing field", trade(p=None)),
    ("missing field", {**ticker(), "data": {}}),
    ("wrong symbol", trade(s="ETHUSDT")),
    ("wrong symbol", {**ticker(), "data": {"symbol": "BTCUSDU"}}),
    ("price off tick", book(1, [["1.05", "1"]])),
    ("price not positive", book(1, [["0", "1"]])),
    ("price not positive", book(1, [["-1.0", "1"]])),
    ("quantity off lot", trade(v="0.0005")),
    ("quantity not positive", trade(v="0")),
    ("negative quantity", book(1, [["1.0", "-1"]])),
    ("absurd size", book(1, [["1.0", "9007199254740.993"]])),
    ("absurd size", book(1, [["1" + "0" * 50, "1"]])),
    ("absurd size", book(2**53 + 1, LEVEL)),
    ("absurd size", book(-1, LEVEL)),
    ("absurd size", book(1, LEVEL, ts=10**15)),
    ("unknown side", trade(S="buy")),
    ("level flood", book(1, LEVELS)),
    ("trade flood", trade() | {"data": trade()["data"] * 5001}),
    ("bad venue time", book(1, LEVEL, ts=4_102_444_800_000, cts=4_102_444_800_000)),
    ("bad venue time", book(1, LEVEL, cts=MS - 86_400_001)),
    ("bad venue time", book(1, LEVEL, cts=MS + 86_400_001)),
    ("bad venue time", trade(T=5)),
    ("bad control line", {"l2": 5}),
    ("bad control line", {"l2": "instrument", "symbol": "BTCUSDT"}),
    (
        "bad control line",
        {"l2": "instrument", **msgspec.to_builtins(BUILT_IN["BTCUSDT"]), "tick": "0"},
    ),
    ("missing field", {"l2": "checkpoint", "topic": BOOK}),
]


@pytest.mark.parametrize(("reason", "frame"), REJECTED)
def test_a_bad_frame_is_rejected_with_reason_and_place(
    decoder: Decoder, reason: str, frame: Any
) -> None:
    text = frame if isinstance(frame, bytes) else pack(frame)
    good = pack(trade())
    decoded = decoder.decode_block(
        block_of(b"%d %b" % (NS, good), b"%d %b" % (NS, text), b"%d %b" % (NS, good), first_line=7)
    )
    (reject,) = decoded.rejects
    assert reject.reason == reason
    assert reject.line == 8
    assert reject.raw == b"%d %b" % (NS, text)
    assert reject.detail
    assert len(reject.detail) < 200
    assert len(btc(decoded)) == 2
    live = decoder.decode_frame(NS, text)
    assert [each.reason for each in live.rejects] == [reason]


@pytest.mark.parametrize(
    "line", [b"", b" ", b"{}", b"-5 {}", b"12", b"1x {}", b"9" * 30 + b" {}", b"0 {}", b"\xb2 {}"]
)
def test_a_line_without_a_receive_time_is_rejected(decoder: Decoder, line: bytes) -> None:
    decoded = decoder.decode_block(block_of(line))
    assert [reject.reason for reject in decoded.rejects] == ["bad receive time"]


def test_a_rejection_names_symbol_and_topic_where_the_text_does(decoder: Decoder) -> None:
    decoded = decoder.decode_frame(NS, pack(book(1, LEVEL))[:-1])
    (reject,) = decoded.rejects
    assert (reject.symbol, reject.topic) == ("BTCUSDT", BOOK)
    assert decoded.counts[BOOK].rejected == 1


def test_rejections_of_a_part_are_bounded() -> None:
    decoder = Decoder()
    lines = [b"x"] * 25_000
    part = decoder.decode_part(block_of(*lines))
    assert part.rest is not None
    assert len(part.rejects) < len(lines)
    whole = Decoder().decode_block(block_of(*lines))
    assert [reject.line for reject in whole.rejects] == list(range(1, len(lines) + 1))


def test_topics_counted_by_name_are_bounded() -> None:
    decoder = Decoder()
    lines = [b'%d {"topic":"kline.%d.BTCUSDT"}' % (NS, n) for n in range(1500)]
    refused = [b'%d {"topic":"a.b%d"' % (NS, n) for n in range(500)]
    parts = [decoder.decode_block(block_of(*text)) for text in (lines, refused, lines)]
    frames = [sum(count.frames for count in part.counts.values()) for part in parts]
    assert frames == [1500, 0, 1500]
    assert len(parts[1].rejects) == 500
    assert len({topic for part in parts for topic in part.counts}) == 1001
    assert parts[2].counts[OTHER].frames == 500


def test_a_truncated_line_is_rejected_as_too_long() -> None:
    block = msgspec.structs.replace(stamped(trade(), trade(), trade()), cut=frozenset({2}))
    decoded = Decoder().decode_block(block)
    assert [(reject.line, reject.reason) for reject in decoded.rejects] == [(2, "line too long")]
    assert len(btc(decoded)) == 2


def test_a_live_frame_with_newlines_is_one_frame(decoder: Decoder) -> None:
    frame = pack(trade())
    assert len(btc(decoder.decode_frame(NS, frame + b"\n"))) == 1
    for text in (frame + b"\n" + frame, b"", b"\n"):
        decoded = decoder.decode_frame(NS, text)
        assert [reject.reason for reject in decoded.rejects] == ["not JSON"]
        assert not decoded.events


# -- any bytes -------------------------------------------------------------------------------------


def same(left: Decoded, right: Decoded) -> bool:
    """Whether two results are equal in every field."""
    return (
        left.events.keys() == right.events.keys()
        and all(left.events[s].tobytes() == right.events[s].tobytes() for s in left.events)
        and left.counts == right.counts
        and left.rejects == right.rejects
        and left.controls == right.controls
        and left.lines == right.lines
    )


def agreed(block: Block) -> Decoded:
    """Both readers' results, and that of the lines one by one as live frames where possible."""
    compiled, reference = Decoder(), Decoder(compiled=False)
    results = compiled.decode_block(block), reference.decode_block(block)
    assert same(*results)
    assert compiled.clock_ns == reference.clock_ns
    return results[0]


# Any bytes: no exception, every line is a frame, a control line, or a located rejection, and the
# compiled reader returns exactly what the reference returns.
@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=8))
def test_any_bytes_give_events_or_located_rejections(lines: list[bytes]) -> None:
    block = block_of(*lines)
    decoded = agreed(block)
    frames = sum(counts.frames for counts in decoded.counts.values())
    total = block.data.count(b"\n")
    assert decoded.lines == total
    assert frames + len(decoded.rejects) + len(decoded.controls) == total
    assert [r.raw for r in decoded.rejects] == [
        block.data.split(b"\n")[reject.line - 1] for reject in decoded.rejects
    ]


REAL = [
    pack(frame)
    for frame in (
        book(5, [["86723.40", "0.194"]], [["86723.5", "0"], ["86724.0", "1.5"]], "snapshot"),
        book(6, [["86723.40", "0"]]),
        book(6, [["86723.40", "0"]]),
        book(8, [], [["86723.5", "3"]]),
        trade(),
        trade(S="Sell", BT=True),
        ticker(lastPrice="65114.30", bid1Price="5", fundingRate="-0.0001"),
        ticker(symbol="BTCUSDT", nextFundingTime="1786320000000", markPrice="1.5"),
        {"l2": "disconnect"},
    )
]


# Mutated real frames: bytes flipped, cut out, doubled or swapped between frames.
@settings(max_examples=250, derandomize=True, deadline=None)
@given(data=st.data())
def test_both_readers_agree_on_mutated_frames(data: st.DataObject) -> None:
    lines = [
        b"%d %b" % (NS + n, mutated(data, data.draw(st.sampled_from(REAL))))
        for n in range(data.draw(st.integers(1, 6)))
    ]
    agreed(block_of(*lines))


def mutated(data: st.DataObject, frame: bytes) -> bytes:
    """The frame with up to two of its pieces replaced."""
    text = bytearray(frame)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, max(0, len(text) - 1)))
        size = data.draw(st.integers(0, 6))
        piece = data.draw(
            st.one_of(
                st.sampled_from(
                    [b'"', b",", b"0", b"-", b".", b"]", b"}", b"[", b"{", b":", b"\\", b" "]
                ),
                st.just(bytes(text[at : at + size]) * 2),
                st.binary(max_size=3),
            )
        )
        text[at : at + size] = piece
    return bytes(text)


# Frames of topics that are not converted, the first of each valid: the compiled reader, which skips the
# topic from then on, gives the reference's counts, clock, rejections and end, for any mutation and
# receive time, and as live frames too.

PASSED = [
    pack(frame)
    for frame in (
        book(5, [["86723.40", "0.194"]], [["86723.5", "0"]], topic="orderbook.50.BTCUSDT"),
        book(1, topic="orderbook.1.ETHUSDT", extra={"a": [[], {}, [{"b": None}]], "b": [True]}),
        {"ts": MS, "topic": "kline.1.BTCUSDT", "data": [{"confirm": False, "close": "1.5"}]},
        {"topic": "priceLimit.BTCUSDT", "ts": MS - 90_000_000, "data": {"buyLmt": "5"}},
        {"topic": "tickers.SOLUSDT", "data": {"x": 1.5}},
    )
]
LATER = ["l2", "ts", "topic", "type"]


@settings(max_examples=250, derandomize=True, deadline=None)
@given(data=st.data())
def test_both_readers_skip_the_same_unconverted_frames(data: st.DataObject) -> None:
    lines = [b"%d %b" % (NS, frame) for frame in PASSED]
    now = NS
    for _ in range(data.draw(st.integers(1, 6))):
        now += data.draw(st.sampled_from([0, 1_000_000, -1_000_000, 90_000_000_000_000]))
        frame = data.draw(st.sampled_from(PASSED + REAL[:1]))
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from(LATER))
            value = data.draw(st.sampled_from([b"1", b'"x"', b'"tickers.SOLUSDT"', b"9" * 19]))
            frame = frame[:-1] + b',"%b":%b}' % (key.encode(), value)
        lines.append(b"%d %b" % (now, mutated(data, frame).replace(b"\n", b" ")))
    decoded = agreed(block_of(*lines))
    until_ns = NS + data.draw(st.sampled_from([1, 1_000_000, 90_000_000_000_000]))
    parts = [
        Decoder(compiled=compiled).decode_part(block_of(*lines), until_ns)
        for compiled in (True, False)
    ]
    assert same(*parts)
    assert (parts[0].rest, parts[0].reached) == (parts[1].rest, parts[1].reached)
    live = Decoder()
    counts: dict[str, TopicCounts] = {}
    for line in lines:
        stamp, _, frame = line.partition(b" ")
        for topic, count in live.decode_frame(int(stamp), frame).counts.items():
            counts[topic] = counts.get(topic, TopicCounts()) + count
    assert counts == decoded.counts


# Random well-formed books: prices and quantities on the grid come back exactly, off it are rejected.
@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    levels=st.lists(
        st.tuples(st.integers(1, 2**53), st.integers(0, 2**53), st.integers(0, 3)), max_size=20
    )
)
def test_quantities_and_prices_are_exact(levels: list[tuple[int, int, int]]) -> None:
    bids = [
        [f"{Decimal(ticks) / 10:.{1 + pad}f}", f"{Decimal(lots) / 1000:.{3 + pad}f}"]
        for ticks, lots, pad in levels
    ]
    rows = btc(agreed(stamped(book(1, bids, kind="snapshot"))))
    if levels:
        assert rows["price_ticks"].tolist() == [ticks for ticks, _, _ in levels]
        assert rows["qty_lots"].tolist() == [lots for _, lots, _ in levels]


# -- recordings ------------------------------------------------------------------------------------

RECORDINGS = {
    "bybit-linear-20260809": {
        "orderbook.200.BTCUSDT": 414,
        "orderbook.200.ETHUSDT": 421,
        "publicTrade.BTCUSDT": 16,
        "publicTrade.ETHUSDT": 12,
        "tickers.BTCUSDT": 185,
        "tickers.ETHUSDT": 216,
    },
    "usdm-20240718": {
        "orderbook.200.BTCUSDT": 8989,
        "orderbook.200.ETHUSDT": 8682,
        "publicTrade.BTCUSDT": 10701,
        "publicTrade.ETHUSDT": 13655,
    },
    "usdm-20240808": {
        "orderbook.200.BTCUSDT": 6505,
        "orderbook.200.ETHUSDT": 6569,
        "publicTrade.BTCUSDT": 21313,
        "publicTrade.ETHUSDT": 14076,
    },
}


def frames_in(path: Path) -> Iterator[tuple[int, bytes]]:
    for block in read_blocks(path):
        for line in block.data.splitlines():
            stamp, _, frame = line.partition(b" ")
            yield int(stamp), frame


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_decodes_whole_with_no_gap(data_dir: Path, name: str) -> None:
    decoder = Decoder(FINE)
    frames: Counter[str] = Counter()
    steps_back = 0
    for block in read_blocks(data_dir / f"{name}.frames.zst"):
        decoded = decoder.decode_block(block)
        assert decoded.rejects == ()
        assert (decoded.gaps, decoded.duplicates) == (0, 0)
        steps_back += decoded.steps_back
        frames.update({topic: counts.frames for topic, counts in decoded.counts.items()})
        for events in decoded.events.values():
            assert (np.diff(events["receive_ns"]) >= 0).all()
    assert dict(frames) == RECORDINGS[name]
    assert steps_back == (name == "usdm-20240808")


@pytest.mark.parametrize("name", RECORDINGS)
def test_compiled_reference_and_live_agree_on_a_recording(data_dir: Path, name: str) -> None:
    lines = [
        b"%d %b" % line
        for line, _ in zip(frames_in(data_dir / f"{name}.frames.zst"), range(6000), strict=False)
    ]
    block = block_of(*lines)
    compiled = Decoder(FINE).decode_block(block)
    assert same(compiled, Decoder(FINE, compiled=False).decode_block(block))
    live = Decoder(FINE)
    pieces: dict[str, list[Events]] = {}
    counts: dict[str, TopicCounts] = {}
    for line in lines:
        stamp, _, frame = line.partition(b" ")
        decoded = live.decode_frame(int(stamp), frame)
        for symbol, rows in decoded.events.items():
            pieces.setdefault(symbol, []).append(rows)
        for topic, count in decoded.counts.items():
            counts[topic] = counts.get(topic, TopicCounts()) + count
    assert counts == compiled.counts
    for symbol, rows in compiled.events.items():
        assert np.concatenate(pieces[symbol]).tobytes() == rows.tobytes()


# The oracle shares no code with the decoder: the venue's JSON through `json` and `Decimal` into a dict
# of prices. The rows must rebuild the same book after every frame, and it is never crossed.
@pytest.mark.parametrize("name", RECORDINGS)
def test_the_rows_rebuild_the_book_that_plain_json_gives(data_dir: Path, name: str) -> None:
    decoder = Decoder(FINE)
    theirs: dict[str, dict[str, dict[Decimal, Decimal]]] = {}
    ours: dict[str, dict[int, dict[int, int]]] = {}
    last_u: dict[str, int] = {}
    checked = 0
    for n, (stamp, text) in enumerate(frames_in(data_dir / f"{name}.frames.zst")):
        if n == 5000:
            break
        frame = json.loads(text)
        rows = decoder.decode_frame(stamp, text).events
        if not frame["topic"].startswith("orderbook"):
            continue
        data, symbol = frame["data"], frame["data"]["s"]
        if frame["type"] == "snapshot":
            theirs[symbol], ours[symbol] = {"b": {}, "a": {}}, {1: {}, -1: {}}
        else:
            assert data["u"] == last_u[symbol] + 1
        last_u[symbol] = data["u"]
        for side in ("b", "a"):
            for price, size in data[side]:
                if Decimal(size):
                    theirs[symbol][side][Decimal(price)] = Decimal(size)
                else:
                    theirs[symbol][side].pop(Decimal(price), None)
        for row in rows[symbol]:
            held = ours[symbol][int(row["side"])]
            if row["qty_lots"]:
                held[int(row["price_ticks"])] = int(row["qty_lots"])
            else:
                held.pop(int(row["price_ticks"]), None)
        assert max(ours[symbol][1]) < min(ours[symbol][-1])
        if n % 50 == 0:
            listed = FINE[symbol]
            for sign, side in ((1, "b"), (-1, "a")):
                assert {
                    listed.price(ticks): listed.qty(lots)
                    for ticks, lots in ours[symbol][sign].items()
                } == theirs[symbol][side]
            checked += 1
    assert checked > 10


# A recorder keeps several depths of a book. Only one depth is converted, the others are counted: with
# every frame repeated as another depth's, the events are those of the frames alone.
@pytest.mark.parametrize("name", RECORDINGS)
def test_other_depths_are_counted_and_change_no_event(data_dir: Path, name: str) -> None:
    alone: list[bytes] = []
    mixed: list[bytes] = []
    for (stamp, frame), _ in zip(
        frames_in(data_dir / f"{name}.frames.zst"), range(3000), strict=False
    ):
        line = b"%d %b" % (stamp, frame)
        alone.append(line)
        mixed += [line.replace(b"book.200.", b"book.1000."), line] if b"book" in line else [line]
    plain = Decoder(FINE).decode_block(block_of(*alone))
    results = [
        Decoder(FINE, compiled=compiled).decode_block(block_of(*mixed))
        for compiled in (True, False)
    ]
    assert same(*results)
    assert all(
        results[0].events[symbol].tobytes() == plain.events[symbol].tobytes()
        for symbol in plain.events
    )
    for topic in ("orderbook.200.BTCUSDT", "orderbook.200.ETHUSDT"):
        other = results[0].counts[topic.replace("200", "1000")]
        assert other.frames == plain.counts[topic].frames > 100
    assert not results[0].rejects


# -- plain JSON ------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(0, 9 * 10**18 - 1),
        st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\')),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text("abz_0 ", max_size=3), inner, max_size=4),
    ),
    max_leaves=12,
)


# A value in the plain form is read to its end, whatever follows it, and truncated it has no end; for
# any other text with an end, the part before the end is JSON.
@settings(max_examples=200, derandomize=True, deadline=None)
@given(PLAIN, st.sampled_from([b"", b",", b"}", b'"', b"]x"]), st.data())
def test_a_plain_value_ends_where_its_json_ends(
    value: Any, after: bytes, data: st.DataObject
) -> None:
    text = pack(value)
    whole = np.frombuffer(text + after, np.uint8)
    assert value_end(whole, 0, len(whole)) == len(text)
    if isinstance(value, str | list | dict):
        assert value_end(whole, 0, data.draw(st.integers(0, len(text) - 1))) == -1
    bent = np.frombuffer(mutated(data, text), np.uint8)
    end = value_end(bent, 0, len(bent))
    if end >= 0:
        json.loads(bent[:end].tobytes())


@pytest.mark.parametrize("depth", [1, 60, 61, 10_000])
def test_a_value_nested_too_deep_is_left_to_the_reference(depth: int) -> None:
    text = np.frombuffer(b"[" * depth + b"]" * depth, np.uint8)
    assert value_end(text, 0, len(text)) == (2 * depth if depth <= 60 else -1)
