"""Ingest: captures become partitions that read alone, idempotently; rejections are quarantined."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from market import event_partition
from market.bars import make_bars
from market.book import Book
from market.events import EVENT, Events, Flag, Kind, from_arrow
from market.ingest import adopt, fingerprint, ingest
from market.instruments import BUILT_IN, Instrument
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, SECOND_NS, day_start_ns
from market.wire.capture import CaptureError, CaptureWriter, read_blocks
from market.wire.decode import Decoder
from market.wire.survey import IngestError, instruments_of, scan

DAY, NEXT = "2026-11-20", "2026-11-21"
MIDNIGHT = day_start_ns(NEXT)
KEYS = [("BTCUSDT", DAY), ("BTCUSDT", NEXT)]


def pack(frame: Any) -> bytes:
    return json.dumps(frame, separators=(",", ":")).encode()


def book(
    ns: int,
    u: int,
    bids: list[list[str]],
    asks: list[list[str]] | None = None,
    *,
    kind: str = "delta",
    symbol: str = "BTCUSDT",
) -> tuple[int, bytes]:
    data = {"s": symbol, "b": bids, "a": asks or [], "u": u, "seq": 1}
    ms = ns // 10**6 - 5
    topic = f"orderbook.200.{symbol}"
    return ns, pack({"topic": topic, "type": kind, "ts": ms + 1, "data": data, "cts": ms})


def tick(ns: int, **fields: str) -> tuple[int, bytes]:
    data = {"symbol": "BTCUSDT", **fields}
    return ns, pack({"topic": "tickers.BTCUSDT", "type": "delta", "data": data, "ts": ns // 10**6})


def across_midnight() -> list[tuple[int, bytes]]:
    """A minute of book on each side of midnight, one frame a second, no sequence gap."""
    start = MIDNIGHT - 60 * SECOND_NS
    lines = [
        book(start, 1, [["99.9", "1"], ["99.8", "2"]], [["100.1", "3"]], kind="snapshot"),
        tick(start + 1, markPrice="100.0", fundingRate="0.0001"),
        tick(start + 2, markPrice="100.5"),
    ]
    return lines + [
        book(start + n * SECOND_NS, n + 1, [["99.8", f"{n}"]], [["100.2", f"{n % 7}"]])
        for n in range(1, 120)
    ]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def capture(tmp_path: Path) -> Callable[..., str]:
    """Writes lines, ready (ns, frame) pairs or bytes as they are, to a capture."""

    def write(lines: list[Any], name: str = "a.frames.zst") -> str:
        with CaptureWriter(tmp_path / name) as writer:
            for line in lines:
                whole = line if isinstance(line, bytes) else b"%d %b" % line
                writer.append_block(whole + b"\n")
        return str(tmp_path / name)

    return write


def events_of(lake: Lake, symbol: str, day: str) -> Events:
    return from_arrow(lake.read("events", symbol, day))


def files_of(lake: Lake) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(lake.base).rglob("*.parquet")}


# -- partitions ------------------------------------------------------------------------------------


def test_a_partition_holds_exactly_the_frames_received_on_its_date(
    lake: Lake, capture: Callable[..., str]
) -> None:
    report = ingest(lake, [capture(across_midnight())], KEYS, Settings())
    first, second = events_of(lake, *KEYS[0]), events_of(lake, *KEYS[1])
    assert first["receive_ns"].max() < MIDNIGHT <= second["receive_ns"].min()
    assert report.events == {"BTCUSDT 2026-11-20": len(first), "BTCUSDT 2026-11-21": len(second)}
    assert report.frames == {"orderbook.200.BTCUSDT": 120, "tickers.BTCUSDT": 2}
    assert (report.gaps, report.duplicates, report.quarantined) == (0, 0, 0)
    assert lake.partitions("quarantine") == []


def test_the_new_date_opens_with_book_and_ticker_restated(
    lake: Lake, capture: Callable[..., str]
) -> None:
    ingest(lake, [capture(across_midnight())], KEYS, Settings())
    first, second = events_of(lake, *KEYS[0]), events_of(lake, *KEYS[1])
    restated = second[second["flags"] & Flag.CHECKPOINT != 0]
    assert np.array_equal(restated, second[: len(restated)])
    assert set(restated["receive_ns"].tolist()) == {MIDNIGHT}
    ticker = restated[restated["kind"] == Kind.TICKER]
    assert ticker["value"].tolist() == [100_50000000, 10000]
    whole, alone = Book(), Book()
    whole.apply(first)
    alone.apply(second[: len(restated)])
    assert (alone.bids(), alone.asks()) == (whole.bids(), whole.asks())
    assert alone.update_id == whole.update_id
    rest = second[len(restated) :]
    whole.apply(rest)
    alone.apply(rest)
    assert alone.valid
    assert (alone.bids(), alone.asks()) == (whole.bids(), whole.asks())
    assert not (second["flags"] & Flag.GAP).any()


def test_a_date_ingested_alone_is_the_same_as_with_its_neighbour(
    tmp_path: Path, capture: Callable[..., str]
) -> None:
    path = capture(across_midnight())
    both, one = Lake(tmp_path / "both"), Lake(tmp_path / "one")
    ingest(both, [path], KEYS, Settings())
    ingest(one, [path], KEYS[1:], Settings())
    assert one.partitions("events") == KEYS[1:]
    assert np.array_equal(events_of(one, *KEYS[1]), events_of(both, *KEYS[1]))


def test_a_book_long_silent_across_midnight_is_not_restated(
    lake: Lake, capture: Callable[..., str]
) -> None:
    lines = [
        book(MIDNIGHT - 700 * SECOND_NS, 1, [["99.9", "1"]], [["100.1", "1"]], kind="snapshot"),
        book(MIDNIGHT + SECOND_NS, 1, [["99.9", "1"]], [["100.1", "1"]], kind="snapshot"),
    ]
    ingest(lake, [capture(lines)], KEYS, Settings())
    assert not (events_of(lake, *KEYS[1])["flags"] & Flag.CHECKPOINT).any()


def test_a_gap_before_midnight_stays_a_gap_after_it(
    lake: Lake, capture: Callable[..., str]
) -> None:
    lines = [
        book(MIDNIGHT - 3 * SECOND_NS, 1, [["99.9", "1"]], [["100.1", "1"]], kind="snapshot"),
        book(MIDNIGHT - 2 * SECOND_NS, 5, [["99.9", "2"]]),
        book(MIDNIGHT + SECOND_NS, 6, [["99.9", "3"]]),
    ]
    ingest(lake, [capture(lines)], KEYS, Settings())
    alone = Book()
    alone.apply(events_of(lake, *KEYS[1]))
    assert not alone.synchronised


def test_ingest_is_idempotent_to_the_byte(tmp_path: Path, capture: Callable[..., str]) -> None:
    path = capture([*across_midnight(), b"%d rubbish" % (MIDNIGHT + 61 * SECOND_NS)])
    found = []
    for name in ("one", "two"):
        lake = Lake(tmp_path / name)
        ingest(lake, [path], KEYS, Settings())
        once = files_of(lake)
        ingest(lake, [path], KEYS, Settings())
        assert files_of(lake) == once
        found.append([data for _, data in sorted(once.items())])
    assert found[0] == found[1]
    assert len(found[0]) == 5


def test_the_order_of_captures_does_not_matter(tmp_path: Path, capture: Callable[..., str]) -> None:
    lines = across_midnight()
    paths = [capture(lines[:50], "b.frames.zst"), capture(lines[50:], "a.frames.zst")]
    one, two = Lake(tmp_path / "one"), Lake(tmp_path / "two")
    assert ingest(one, paths, KEYS, Settings()).gaps == 0
    ingest(two, paths[::-1], KEYS, Settings())
    assert list(files_of(one).values()) == list(files_of(two).values())
    assert scan(paths) == scan(paths[::-1])


def test_row_groups_do_not_depend_on_blocks(
    lake: Lake, capture: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_partition, "ROW_GROUP", 16)
    ingest(lake, [capture(across_midnight())], KEYS, Settings())
    metadata = lake.open("events", *KEYS[0]).metadata
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert set(sizes[:-1]) == {16}
    assert 0 < sizes[-1] <= 16


def test_the_old_partition_stays_when_the_new_one_cannot_be_finished(
    lake: Lake, capture: Callable[..., str]
) -> None:
    ingest(lake, [capture(across_midnight())], KEYS, Settings())
    before = files_of(lake)
    whole = Path(capture(across_midnight(), "b.frames.zst")).read_bytes()
    damaged = Path(capture([book(MIDNIGHT - SECOND_NS, 1, [["1.0", "1"]], kind="snapshot")], "c"))
    damaged.write_bytes(damaged.read_bytes() + b"damage" + whole)
    with pytest.raises(CaptureError, match="damaged near byte"):
        ingest(lake, [str(damaged)], KEYS[:1], Settings())
    assert files_of(lake) == before
    assert not list(Path(lake.base).rglob("*.tmp"))


def test_the_fingerprint_follows_content_and_depth(capture: Callable[..., str]) -> None:
    one = capture(across_midnight(), "a.frames.zst")
    two = capture(across_midnight()[:-1], "b.frames.zst")
    shallow = msgspec.structs.replace(
        Settings(), market=msgspec.structs.replace(Settings().market, book_depth=50)
    )
    prints = {
        fingerprint([one], Settings()),
        fingerprint([two], Settings()),
        fingerprint([one, two], Settings()),
        fingerprint([one], shallow),
    }
    assert len(prints) == 4
    assert fingerprint([one, two], Settings()) == fingerprint([two, one], Settings())


# -- rejections and counts -------------------------------------------------------------------------


def test_rejected_lines_are_quarantined_with_file_line_and_reason(
    lake: Lake, capture: Callable[..., str]
) -> None:
    lines: list[Any] = across_midnight()[:10]
    off = book(MIDNIGHT - 30 * SECOND_NS, 99, [["99.85", "1"]])
    lines.insert(4, off)
    lines.insert(5, b"\xff\x00 rubbish")
    report = ingest(lake, [capture(lines)], KEYS[:1], Settings())
    assert report.reasons == {"bad receive time": 1, "price off tick": 1}
    assert report.quarantined == 2
    (ours,) = lake.read("quarantine", *KEYS[0]).to_pylist()
    assert ours["raw"] == b"%d %b" % off
    assert (ours["file"], ours["line"]) == ("a.frames.zst", 5)
    (unknown,) = lake.read("quarantine", "unattributed", DAY).to_pylist()
    assert (unknown["line"], unknown["raw"]) == (6, b"\xff\x00 rubbish")
    counts = {row["topic"]: row for row in lake.read("ingests", *KEYS[0]).to_pylist()}
    assert counts["orderbook.200.BTCUSDT"]["rejected"] == 1
    assert counts["orderbook.200.BTCUSDT"]["gaps"] == 1
    assert counts["unattributed"]["rejected"] == 1


def test_a_quarantine_without_rejections_is_removed(
    lake: Lake, capture: Callable[..., str]
) -> None:
    bad = capture([*across_midnight(), b"x"], "a.frames.zst")
    ingest(lake, [bad], KEYS, Settings())
    assert lake.partitions("quarantine") == [("unattributed", NEXT)]
    ingest(lake, [capture(across_midnight(), "b.frames.zst")], KEYS, Settings())
    assert lake.partitions("quarantine") == []


def test_counts_by_topic_add_up_to_the_rows(lake: Lake, capture: Callable[..., str]) -> None:
    lines = across_midnight()
    lines.insert(60, lines[59])
    lines.append((MIDNIGHT, pack({"topic": "kline.1.BTCUSDT", "ts": MIDNIGHT // 10**6})))
    ingest(lake, [capture(lines)], KEYS, Settings())
    for key in KEYS:
        rows = lake.read("ingests", *key).to_pylist()
        assert sum(row["events"] for row in rows) == len(events_of(lake, *key))
    counts = {row["topic"]: row for row in rows}
    assert counts["orderbook.200.BTCUSDT"]["min_lag_ns"] == 5_000_000
    assert counts["kline.1.BTCUSDT"] == {
        **dict.fromkeys(("events", "rejected", "duplicates", "gaps", "left_out", "torn"), 0),
        "topic": "kline.1.BTCUSDT",
        "converted": False,
        "frames": 1,
        "steps_back": 1,
        "min_lag_ns": None,
        "max_lag_ns": None,
    }
    first = {row["topic"]: row for row in lake.read("ingests", *KEYS[0]).to_pylist()}
    assert first["orderbook.200.BTCUSDT"]["duplicates"] == 1


def test_a_torn_tail_is_counted_and_the_rest_is_kept(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "a.frames.zst"
    with CaptureWriter(path, frame_bytes=500) as writer:
        for line in across_midnight():
            writer.append_block(b"%d %b\n" % line)
    path.write_bytes(path.read_bytes()[:-9])
    report = ingest(lake, [str(path)], KEYS, Settings())
    assert report.torn == 1
    assert 110 < report.lines < 122
    by_day = {
        day: {row["torn"] for row in lake.read("ingests", symbol, day).to_pylist()}
        for symbol, day in KEYS
    }
    assert by_day == {DAY: {0}, NEXT: {1}}


@pytest.mark.parametrize("text", [b"hello\nworld\n", b"5 {}\n", b"\n\n\n", b'7 {"op":"x"}\n'])
def test_a_file_without_a_single_frame_is_an_error_that_says_so(
    lake: Lake, capture: Callable[..., str], text: bytes
) -> None:
    path = capture([text[:-1]])
    with pytest.raises(IngestError, match=r"not one of its \d+ lines is a frame") as caught:
        ingest(lake, [path], KEYS, Settings())
    assert path in str(caught.value)
    with pytest.raises(IngestError, match="not one of its"):
        adopt(lake, path)


def test_a_key_without_events_is_reported_and_does_not_stop_the_others(
    lake: Lake, capture: Callable[..., str]
) -> None:
    wanted = [KEYS[0], ("ETHUSDT", DAY), ("BTCUSDT", "2026-11-22")]
    report = ingest(lake, [capture(across_midnight())], wanted, Settings())
    assert report.missing == {"BTCUSDT 2026-11-22": 0, f"ETHUSDT {DAY}": 0}
    assert lake.partitions("events") == [KEYS[0]]


@pytest.mark.parametrize("key", [("BTCUSDT", "2026-13-01"), ("../x", DAY), ("BTCUSDT", "20261120")])
def test_a_malformed_key_is_an_error(
    lake: Lake, capture: Callable[..., str], key: tuple[str, str]
) -> None:
    with pytest.raises(IngestError, match="not a symbol and a date"):
        ingest(lake, [capture(across_midnight())], [key], Settings())


def test_a_capture_of_control_lines_only_does_not_stop_the_others(
    lake: Lake, capture: Callable[..., str]
) -> None:
    silent = capture([(MIDNIGHT - 90 * SECOND_NS, b'{"l2":"connect"}')], "silent")
    report = ingest(lake, [silent, capture(across_midnight())], KEYS, Settings())
    assert report.captures[0] == silent
    assert len(report.events) == 2


def test_progress_is_reported_file_by_file(lake: Lake, capture: Callable[..., str]) -> None:
    said: list[str] = []
    ingest(lake, [capture(across_midnight())], KEYS, Settings(), progress=said.append)
    assert said == ["a.frames.zst: read, 122 lines"]


# -- instruments -----------------------------------------------------------------------------------


def test_a_partition_names_its_instrument(lake: Lake, capture: Callable[..., str]) -> None:
    finer = msgspec.structs.replace(BUILT_IN["BTCUSDT"], tick="0.05", source="venue")
    line = (MIDNIGHT - 61 * SECOND_NS, pack({"l2": "instrument", **msgspec.to_builtins(finer)}))
    lines = [line, *across_midnight(), book(MIDNIGHT + 61 * SECOND_NS, 121, [["99.85", "1"]])]
    ingest(lake, [capture(lines)], KEYS, Settings())
    named = msgspec.json.decode(lake.metadata("events", *KEYS[1])["instrument"], type=Instrument)
    assert named == finer
    assert events_of(lake, *KEYS[1])["price_ticks"][-1] == 1997


def test_a_foreign_capture_on_a_finer_lot_is_read_exactly(capture: Callable[..., str]) -> None:
    snapshot = book(MIDNIGHT, 1, [["99.99", "0.006"]], kind="snapshot", symbol="ETHUSDT")
    path = capture([snapshot, *across_midnight()])
    found = instruments_of([path], ["ETHUSDT", "BTCUSDT"])
    assert found["ETHUSDT"].lot == "0.001"
    assert found["ETHUSDT"].min_qty == BUILT_IN["ETHUSDT"].min_qty
    assert found["BTCUSDT"] == BUILT_IN["BTCUSDT"]


def test_a_symbol_without_an_instrument_gets_the_grid_of_its_capture(
    lake: Lake, capture: Callable[..., str]
) -> None:
    levels = [["130.52", "2.5"], ["130.50", "10"]]
    path = capture([book(MIDNIGHT, 1, levels, kind="snapshot", symbol="SOLUSDT")])
    ingest(lake, [path], [("SOLUSDT", NEXT)], Settings())
    rows = events_of(lake, "SOLUSDT", NEXT)
    assert rows["price_ticks"].tolist() == [13052, 13050]
    assert rows["qty_lots"].tolist() == [25, 100]


# -- scan and adopt --------------------------------------------------------------------------------


def test_scan_lists_the_keys_that_ingest_can_make(capture: Callable[..., str]) -> None:
    late = (MIDNIGHT + 400 * DAY_NS, across_midnight()[5][1])
    other = (MIDNIGHT, pack({"topic": "orderbook.50.SOLUSDT", "ts": 1}))
    path = capture([*across_midnight(), late, other, b"rubbish"])
    assert scan([path]) == {
        ("BTCUSDT", DAY): {"orderbook.200.BTCUSDT": 60, "tickers.BTCUSDT": 2},
        ("BTCUSDT", NEXT): {"orderbook.200.BTCUSDT": 60},
    }


def test_adopting_the_same_content_twice_keeps_one_copy(
    lake: Lake, capture: Callable[..., str]
) -> None:
    path = adopt(lake, capture(across_midnight(), "a.frames.zst"))
    assert adopt(lake, capture(across_midnight(), "b.frames.zst")) == path
    other = adopt(lake, capture(across_midnight()[1:], "c.frames.zst"))
    assert lake.captures(DAY) == [path, other]
    assert adopt(lake, path) == path
    assert b"".join(block.data for block in read_blocks(path)).count(b"\n") == 122


# -- recordings ------------------------------------------------------------------------------------


def test_a_recording_across_midnight_becomes_partitions_without_a_loss(
    data_dir: Path, lake: Lake
) -> None:
    path = adopt(lake, data_dir / "usdm-20240718.frames.zst")
    assert lake.captures("2024-07-18") == [path]
    keys = list(scan([path]))
    assert keys == [
        (symbol, day) for symbol in ("BTCUSDT", "ETHUSDT") for day in ("2024-07-18", "2024-07-19")
    ]
    report = ingest(lake, [path], keys, Settings())
    assert report.frames == {
        "orderbook.200.BTCUSDT": 8989,
        "orderbook.200.ETHUSDT": 8682,
        "publicTrade.BTCUSDT": 10701,
        "publicTrade.ETHUSDT": 13655,
    }
    assert (report.quarantined, report.gaps, report.steps_back) == (0, 0, 0)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        instrument = instruments_of([path], [symbol])[symbol]
        decoder = Decoder({symbol: instrument})
        decoded = [decoder.decode_block(block).events for block in read_blocks(path)]
        straight = np.concatenate([events[symbol] for events in decoded if symbol in events])
        parts = [events_of(lake, symbol, day) for day in ("2024-07-18", "2024-07-19")]
        stored = np.concatenate(parts)
        assert np.array_equal(stored[stored["flags"] & Flag.CHECKPOINT == 0], straight)
        for part in parts:
            alone = Book()
            alone.apply(part)
            assert alone.valid
            assert alone.counters["crossed"] == 0
            assert alone.counters["gaps"] == 0


def test_events_survive_the_way_through_the_lake_unchanged(
    lake: Lake, capture: Callable[..., str]
) -> None:
    ingest(lake, [capture(across_midnight())], KEYS, Settings())
    table = lake.read("events", *KEYS[0])
    rows = from_arrow(table)
    assert rows.dtype == EVENT
    assert isinstance(table, pa.Table)
    decoder = Decoder()
    straight = decoder.decode_part(
        next(iter(read_blocks(capture(across_midnight(), "z")))), MIDNIGHT
    )
    assert np.array_equal(rows, straight.events["BTCUSDT"])


# -- the end of a date --------------------------------------------------------------------------

# Bars of a date go on to midnight when its stream does, even if one symbol was silent; the stream's end
# is decided by the date's own captures, so that a date does not depend on the next.


def silent_at_midnight() -> list[tuple[int, bytes]]:
    """Bitcoin is silent from three seconds before midnight on; ether goes on."""
    start = MIDNIGHT - 60 * SECOND_NS
    levels = [["99.9", "1"]], [["100.1", "3"]]
    lines = [
        book(start, 1, *levels, kind="snapshot", symbol=symbol) for symbol in ("BTCUSDT", "ETHUSDT")
    ]
    for n in range(1, 70):
        if n < 58 or n > 64:
            lines.append(book(start + n * SECOND_NS + 5, n + 1, [["99.8", f"{n}"]]))
        lines.append(
            book(start + n * SECOND_NS + 7, n + 1, [["99.8", f"{n}"]], symbol="ETHUSDT"),
        )
    return lines


def until(lake: Lake, symbol: str, day: str) -> float:
    """``until_ns`` of a partition, as seconds from midnight."""
    return (int(lake.metadata("events", symbol, day)["until_ns"]) - MIDNIGHT) / SECOND_NS


def test_a_silent_symbols_date_lasts_as_long_as_the_stream(
    lake: Lake, capture: Callable[..., str]
) -> None:
    ingest(lake, [capture(silent_at_midnight())], KEYS, Settings())
    assert [until(lake, *key) for key in KEYS] == [0, 10]
    for key in KEYS:
        make_bars(lake, *key, Settings())
    t_ns = np.concatenate([lake.read("bars", *key)["t_ns"].to_numpy() for key in KEYS])
    assert np.array_equal(t_ns, MIDNIGHT + np.arange(-59, 11) * SECOND_NS)


def test_a_stream_that_ends_early_ends_with_its_last_line_of_any_topic(
    lake: Lake, capture: Callable[..., str]
) -> None:
    lines = [line for line in silent_at_midnight() if line[0] < MIDNIGHT - SECOND_NS]
    ingest(lake, [capture(lines)], KEYS[:1], Settings())
    assert until(lake, *KEYS[0]) == -1
    assert make_bars(lake, *KEYS[0], Settings()) == 59


def test_a_turn_line_shows_that_the_stream_went_on(
    tmp_path: Path, capture: Callable[..., str]
) -> None:
    """Hourly files: the date alone, and together with the next date's, is the same."""
    lines = silent_at_midnight()
    turn = b'%d {"l2":"turn"}' % (MIDNIGHT + 8)
    early = [line for line in lines if line[0] < MIDNIGHT - SECOND_NS]
    late = [line for line in lines if line[0] > MIDNIGHT + SECOND_NS]
    names = capture([*early, turn]), capture(late, "b.frames.zst")
    alone, both = Lake(tmp_path / "alone"), Lake(tmp_path / "both")
    ingest(alone, names[:1], KEYS[:1], Settings())
    ingest(both, names, KEYS, Settings())
    assert until(alone, *KEYS[0]) == until(both, *KEYS[0]) == 0
    assert np.array_equal(events_of(alone, *KEYS[0]), events_of(both, *KEYS[0]))
    # Without the line the next file is no evidence: the date alone could not know it.
    ingest(both, [capture(early, "c.frames.zst"), names[1]], KEYS, Settings())
    assert until(both, *KEYS[0]) == -1


def test_a_date_with_restated_rows_only_has_no_events(
    lake: Lake, capture: Callable[..., str]
) -> None:
    lines = [line for line in silent_at_midnight() if line[0] < MIDNIGHT]
    path = capture([*lines, b'%d {"l2":"turn"}' % MIDNIGHT])
    assert ingest(lake, [path], KEYS, Settings()).missing == {f"BTCUSDT {NEXT}": 0}
    assert lake.partitions("events") == KEYS[:1]
