"""Any bytes: events, or a rejection that is counted, has reason and place, and keeps the raw line.

Real frames of every recorded kind are bent in the ways in which frames go wrong: a byte, a piece of
text, a value, a field, their order. Made frames stand for the kinds that no recording holds.
"""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.events import Events, Kind
from market.ingest import ingest
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from market.units import utc_date
from market.wire.capture import Block, CaptureError, CaptureWriter, read_blocks, read_lines
from market.wire.decode import Decoder
from market.wire.results import Decoded
from market.wire.survey import IngestError, scan
from tests.conftest import recordings

#: When the frames of the recording were sent.
NS = 1_786_310_818_000_000_000
MS = NS // 1_000_000
DAY = utc_date(NS)

Frame = dict[str, Any]


@cache
def samples() -> tuple[bytes, ...]:
    """A few frames of every kind: recorded ones where there are recordings, and synthetic ones."""
    level = [["86723.40", "0.194"], ["86723.3", "1.5"]]
    data = {"s": "BTCUSDT", "b": level, "a": [["86723.5", "0"]], "u": 5, "seq": 9}
    printed = {"T": MS, "s": "BTCUSDT", "S": "Buy", "v": "0.250", "p": "83766.30"}
    more = {"L": "PlusTick", "i": "68bc1c35", "BT": False, "RPI": True, "seq": 821670598155}
    opening = {"topic": "orderbook.200.BTCUSDT", "type": "snapshot", "ts": MS, "data": data}
    made: list[Frame] = [
        opening | {"cts": MS},
        opening | {"type": "delta", "data": data | {"u": 6}},
        {"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": MS, "data": [printed | more]},
        {"topic": "allLiquidation.BTCUSDT", "type": "snapshot", "ts": MS, "data": [printed]},
        {
            "topic": "tickers.BTCUSDT",
            "type": "delta",
            "data": {"symbol": "BTCUSDT", "markPrice": "65114.30", "fundingRate": "-0.0001"},
            "cs": 24987956059,
            "ts": MS,
        },
        {"topic": "kline.1.BTCUSDT", "type": "snapshot", "ts": MS, "data": []},
        {"success": True, "ret_msg": "pong", "op": "ping"},
        {"l2": "disconnect", "reason": "x"},
        {"l2": "checkpoint", "topic": "orderbook.200.BTCUSDT", "data": data},
        {"l2": "instrument", **msgspec.to_builtins(BUILT_IN["BTCUSDT"])},
    ]
    found = [msgspec.json.encode(frame) for frame in made]
    seen: Counter[tuple[str, bytes]] = Counter()
    for path in sorted(recordings().glob("bybit-linear-*.frames.zst")):
        for _, frame in read_lines(path):
            topic = frame.partition(b'"topic":"')[2].partition(b'"')[0]
            kind = topic.decode(), frame.partition(b'"type":"')[2][:5]
            seen[kind] += 1
            if seen[kind] <= 2:
                found.append(frame)
    return tuple(found)


#: Wrong values of a field.
ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1.5,
        1e308,
        2**53 + 1,
        2**64,
        10**30,
        "",
        "0",
        "-0.5",
        "-1",
        "1e5",
        "NaN",
        "Infinity",
        "0x10",
        " 1",
        "1 ",
        "٣",
        "0.00000000001",
        "9" * 39,
        "9" * 400,
        "ETHUSDT",
        "Both",
        "\0",
        [],
        {},
        [[]],
        [["1", "1", "1"]],
        [["1"]],
        [[1, 2]],
    ]
)


@st.composite
def bent(draw: Any) -> bytes:
    """A real frame, or one that was mutated once or twice."""
    text: bytes = draw(st.sampled_from(samples()))
    for _ in range(draw(st.integers(0, 2))):
        way = draw(st.sampled_from(["value", "field", "bytes", "piece", "cut"]))
        if way in ("value", "field"):
            text = _bent_json(draw, text, way)
            continue
        at = draw(st.integers(0, max(0, len(text) - 1)))
        size = draw(st.integers(0, 8))
        piece = text[at : at + size]
        new = {
            "bytes": draw(st.binary(max_size=4)),
            "piece": piece * draw(st.integers(0, 3)),
            "cut": b"",
        }[way]
        text = text[:at] + new + (b"" if way == "cut" else text[at + size :])
    return text.replace(b"\n", b" ")


def _bent_json(draw: Any, text: bytes, way: str) -> bytes:
    """The frame with one value, anywhere in it, replaced, removed, doubled or moved."""
    try:
        frame = json.loads(text)
    except ValueError:  # bent before
        return text
    places: list[tuple[Any, Any]] = []
    _places(frame, places)
    if not places:
        return text
    holder, key = draw(st.sampled_from(places))
    if way == "value":
        holder[key] = draw(ODD)
    elif isinstance(holder, dict):
        value = holder.pop(key)
        if draw(st.booleans()):
            holder[key] = value  # the same field, last
    else:
        holder.insert(key, holder[key])
    return json.dumps(frame, separators=(",", ":")).encode()


def _places(value: Any, places: list[tuple[Any, Any]]) -> None:
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 4))
    for key in keys:
        places.append((value, key))
        if isinstance(value[key], dict | list):
            _places(value[key], places)


@st.composite
def captured(draw: Any) -> list[bytes]:
    """Lines of a capture: most with a growing time, some with another or with none."""
    lines = []
    now = NS
    for _ in range(draw(st.integers(1, 8))):
        now += draw(st.sampled_from([0, 1_000_000, 10**9, -(10**9), 4 * 3600 * 10**9]))
        stamp = draw(
            st.sampled_from(
                [str(now).encode()] * 60 + [b"", b"0", b"-1", b"x", b"9" * 19, b"1" * 25]
            )
        )
        frame = draw(st.one_of(bent(), bent(), bent(), st.binary(max_size=60)))
        lines.append(stamp + b" " + frame.replace(b"\n", b" "))
    return lines


def block_of(lines: list[bytes]) -> Block:
    return Block("x", 1, b"".join(line + b"\n" for line in lines), last=True)


def accounted(decoded: Decoded) -> int:
    """Number of lines accounted for: frames, rejections, control lines."""
    frames = sum(counts.frames for counts in decoded.counts.values())
    return frames + len(decoded.rejects) + len(decoded.controls)


def sane(events: Events) -> bool:
    """Invariants of every row."""
    kinds = set(events["kind"].tolist())
    levels = events["kind"] <= Kind.DELTA
    prints = (events["kind"] == Kind.TRADE) | (events["kind"] == Kind.LIQUIDATION)
    named = events["side"] != 0
    return bool(
        kinds <= {int(kind) for kind in Kind}
        and (np.diff(events["receive_ns"]) >= 0).all()
        and np.isin(events["side"], (-1, 0, 1)).all()
        and (events["price_ticks"][levels & named] > 0).all()
        and (events["qty_lots"] >= 0).all()
        and (events["qty_lots"][prints] > 0).all()
        and (events["price_ticks"][prints] > 0).all()
        and named[prints].all()
        and (events["price_ticks"] <= 1 << 53).all()
        and (events["qty_lots"] <= 1 << 53).all()
    )


# No exception; every line is a frame, a control line or a rejection with its number and its bytes; the
# rows keep their invariants; the compiled reader returns what the reference returns.
@settings(derandomize=True, max_examples=120, deadline=None)
@given(captured())
def test_every_line_is_events_or_a_located_rejection(lines: list[bytes]) -> None:
    decoded = Decoder().decode_block(block_of(lines))
    assert decoded.lines == len(lines) == accounted(decoded)
    for reject in decoded.rejects:
        assert reject.raw == lines[reject.line - 1]
        assert reject.reason
        assert reject.detail
    for events in decoded.events.values():
        assert sane(events)
    letter = Decoder(compiled=False).decode_block(block_of(lines))
    assert (letter.rejects, letter.counts) == (decoded.rejects, decoded.counts)
    assert {symbol: rows.tobytes() for symbol, rows in letter.events.items()} == {
        symbol: rows.tobytes() for symbol, rows in decoded.events.items()
    }


# The same for one live frame.
@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(bent(), min_size=1, max_size=6))
def test_every_live_frame_is_events_or_a_rejection(frames: list[bytes]) -> None:
    decoder = Decoder()
    for n, frame in enumerate(frames):
        decoded = decoder.decode_frame(NS + n, frame)
        assert accounted(decoded) == 1
        assert all(sane(events) for events in decoded.events.values())


def test_an_empty_topic_is_rejected_and_matches_no_free_slot() -> None:
    frame = b'{"topic":"","type":"delta","ts":%d,"data":{}}' % MS
    for decoded in (
        Decoder().decode_frame(NS, frame),
        Decoder().decode_block(block_of([b"%d %b" % (NS, frame)])),
    ):
        assert [reject.reason for reject in decoded.rejects] == ["unknown topic"]
        assert accounted(decoded) == 1


# Every line of a capture arrives in the lake: as rows of events, or as received in the quarantine, with
# its file, its line number and a reason. Only a capture without one usable frame is an error.
@settings(derandomize=True, max_examples=12, deadline=None)
@given(captured())
def test_every_line_of_a_capture_is_ingested_or_quarantined(
    lines: list[bytes],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/bad.frames.zst"
        with CaptureWriter(path) as writer:
            writer.append_block(b"".join(line + b"\n" for line in lines))
        lake = Lake(f"{folder}/lake", "recorded")
        report = None
        with suppress(IngestError):
            keys = list(scan([path]))
            report = ingest(lake, [path], keys, Settings()) if keys else None
        if report is None:
            return
        kept = [
            row
            for symbol, day in lake.partitions("quarantine")
            for row in lake.read("quarantine", symbol, day).to_pylist()
        ]
        assert len(kept) == report.quarantined == sum(report.reasons.values())
        for row in kept:
            assert row["file"] == "bad.frames.zst"
            assert row["raw"] == lines[row["line"] - 1]
            assert row["reason"]
        if {day for _, day in keys} == {DAY}:
            decoded = Decoder(symbols=[symbol for symbol, _ in keys]).decode_block(block_of(lines))
            assert report.lines == len(lines)
            assert len(decoded.rejects) == report.quarantined + report.elsewhere
            assert sum(report.frames.values()) + len(decoded.controls) == decoded.lines - len(
                decoded.rejects
            )


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_file_reads_as_lines_or_is_an_error(content: bytes, magic: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.frames.zst"
        path.write_bytes(b"\x28\xb5\x2f\xfd" * magic + content)
        with suppress(CaptureError):
            for block in read_blocks(path):
                assert Decoder().decode_block(block).lines == block.data.count(b"\n")


FLOODS = {
    "nesting": b"[" * 1_000_000,
    "objects": b'{"topic":' * 100_000,
    "digits": b'{"topic":"orderbook.200.BTCUSDT","ts":' + b"9" * 1_000_000 + b"}",
    "a long string": b'{"topic":"' + b"x" * 1_000_000 + b'"}',
    "zeros": b'{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":%d,"data":[%b0]}'
    % (MS, b"0," * 500_000),
    "levels": b'{"topic":"orderbook.200.BTCUSDT","type":"delta","ts":%d,"data":{"s":"BTCUSDT","b":[%b'
    b'["1","1"]],"a":[],"u":1}}' % (MS, b'["1","1"],' * 100_000),
    "empty lists": b'{"topic":"orderbook.200.BTCUSDT","type":"delta","ts":%d,"data":{"s":"BTCUSDT",'
    b'"b":[%b[]],"a":[],"u":1}}' % (MS, b"[]," * 330_000),
    "fields": b'{"topic":"tickers.BTCUSDT","type":"delta","ts":%d,"data":{%b"symbol":"BTCUSDT"}}'
    % (MS, b"".join(b'"f%d":"",' % n for n in range(100_000))),
    "checkpoint": b'{"l2":"checkpoint","topic":"orderbook.200.BTCUSDT","data":{"s":"BTCUSDT","b":[%b'
    b'["1","1"]],"a":[],"u":1}}' % (b'["1","1"],' * 100_000),
    "an exponent": b'{"topic":"orderbook.200.BTCUSDT","ts":1e999999999}',
}


# Memory for a line is proportional to its length, whatever its content.
@pytest.mark.parametrize("name", FLOODS)
def test_memory_of_a_line_is_proportional_to_its_length(name: str) -> None:
    line = b"%d %b" % (NS, FLOODS[name])
    decoder = Decoder()
    decoder.decode_frame(NS, b"{}")
    tracemalloc.start()
    try:
        decoded = decoder.decode_block(block_of([line]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert accounted(decoded) == 1
    assert peak < 100 * max(len(line), 1 << 20)
