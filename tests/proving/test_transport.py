"""What goes wrong on the way: known in events, seen in frames, and the same bars either way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from market.bars import bars_from_chunks
from market.book import Book
from market.events import EVENT, Events, Flag, Kind
from market.ingest import ingest
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from proving.synthetic import generate, write_frames
from proving.synthetic.profiles import Profile, altered, profile

DAY = "2026-03-01"
BTC = "BTCUSDT"
SETTINGS = Settings(source="synthetic")
STOP_S = 240


def faulty(**faults: float) -> Profile:
    return altered(profile("demo"), **faults)


def events(market: Profile) -> Events:
    return np.concatenate(list(generate(market, 7, BTC, DAY, 0, STOP_S)))


def books(rows: Events) -> Events:
    """First rows of book frames."""
    firsts: Events = rows[(rows["kind"] <= Kind.DELTA) & (rows["flags"] & Flag.FIRST != 0)]
    return firsts


@pytest.fixture(scope="module")
def sound() -> Events:
    return events(profile("demo"))


def test_a_gap_is_flagged_and_a_snapshot_resynchronises(sound: Events) -> None:
    rows = events(faulty(gaps_per_h=60.0))
    firsts = books(rows)
    after = np.flatnonzero(firsts["flags"] & Flag.GAP)
    assert len(after) >= 2
    missing = firsts["update_id"][after] - firsts["update_id"][after - 1] - 1
    assert (missing >= 1).all()
    assert missing.sum() == len(books(sound)) - len(firsts)
    book, whole = Book(), Book()
    book.apply(rows)
    whole.apply(sound)
    assert book.counters["gaps"] == len(after)
    assert book.valid
    assert book.bids() == whole.bids()
    snapshots = np.flatnonzero(firsts["kind"] == Kind.SNAPSHOT)[1:]
    assert len(snapshots) == len(after)
    assert (firsts["receive_ns"][snapshots] - firsts["receive_ns"][after] < 2_000_000_000).all()


def test_a_reset_restates_the_book_and_counts_from_one(sound: Events) -> None:
    rows = events(faulty(resets_per_h=60.0))
    firsts = books(rows)
    resets = np.flatnonzero(firsts["update_id"] == 1)
    assert len(resets) >= 2
    assert (firsts["kind"][resets] == Kind.SNAPSHOT).all()
    steps = np.diff(firsts["update_id"])
    assert (np.delete(steps, resets - 1) == 1).all()
    book, whole = Book(), Book()
    book.apply(rows)
    whole.apply(sound)
    assert book.asks() == whole.asks()
    assert book.counters["gaps"] == 0


def test_clock_skew_shifts_receive_times_alone(sound: Events) -> None:
    rows = events(faulty(skew_ms=-1500.0))
    assert (rows["receive_ns"] == sound["receive_ns"] - 1_500_000_000).all()
    rows["receive_ns"] = sound["receive_ns"]
    assert rows.tobytes() == sound.tobytes()


def test_frames_with_every_fault_decode_to_the_same_events(tmp_path: Path) -> None:
    market = faulty(gaps_per_h=40.0, resets_per_h=40.0, duplicates_per_h=90.0, skew_ms=700.0)
    path = write_frames(tmp_path / "x.frames.zst", market, 7, [BTC], DAY, 0, STOP_S)
    decoder, repeats = Decoder(), 0
    pieces: list[Events] = []
    for block in read_blocks(path):
        decoded = decoder.decode_block(block)
        assert not decoded.rejects
        repeats += decoded.duplicates
        pieces += decoded.events.values()
    rows, expected = np.concatenate(pieces), events(market)
    assert repeats >= 2
    assert rows.tobytes() == expected.astype(EVENT).tobytes()
    by_frames = bars_from_chunks(pieces, BUILT_IN[BTC], SETTINGS)
    straight = bars_from_chunks([expected], BUILT_IN[BTC], SETTINGS)
    assert by_frames.values.tobytes() == straight.values.tobytes()
    assert by_frames.column("gap").sum() > 0


def test_faster_topics_are_ingested_and_change_no_bar(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", "synthetic")
    market = faulty(duplicates_per_h=90.0)
    path = write_frames(tmp_path / "x.frames.zst", market, 7, [BTC], DAY, 0, 60, depths=(50, 1))
    topics = {line.split(b'"topic":"')[1].split(b'"')[0] for line in frames_of(path)}
    assert {b"orderbook.1.BTCUSDT", b"orderbook.50.BTCUSDT", b"orderbook.200.BTCUSDT"} <= topics
    report = ingest(lake, [path], [(BTC, DAY)], SETTINGS)
    assert not report.reasons
    stored = lake.read("events", BTC, DAY)
    straight = np.concatenate(list(generate(market, 7, BTC, DAY, 0, 60)))
    assert stored.num_rows == len(straight)
    with pytest.raises(ValueError, match="has topics of"):
        write_frames(tmp_path / "y.zst", market, 7, [BTC], DAY, 0, 5, depths=(3,))


def frames_of(path: str) -> list[bytes]:
    lines = [line for block in read_blocks(path) for line in block.data.splitlines()]
    return [line for line in lines if b'"topic"' in line]


def test_a_part_of_the_day_has_the_faults_of_the_whole() -> None:
    market = faulty(gaps_per_h=60.0, resets_per_h=60.0)
    part = np.concatenate(list(generate(market, 7, BTC, DAY, 0, 100)))
    assert part.tobytes() == events(market)[: len(part)].tobytes()
