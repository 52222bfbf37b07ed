"""Captures recorded side by side, backups of one topic, and clocks that were set back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from market import event_partition
from market.events import Flag, Kind
from market.ingest import ingest
from market.lake import Lake
from market.settings import Settings
from market.units import HOUR_NS, MS_NS, SECOND_NS
from market.wire import merge
from market.wire.capture import read_lines as corpus_lines
from market.wire.survey import last_receive_ns, scan
from tests.conftest import recordings
from tests.market import corpus
from tests.market.corpus import (
    DAY,
    MIDNIGHT,
    START_NS,
    WAYS,
    Lines,
    Made,
    campaign,
    control,
    inputs,
    made_of,
    messages,
    received,
    stamp,
    write,
)

BTC, ETH = ("BTCUSDT", DAY), ("ETHUSDT", DAY)
SENT = messages("BTCUSDT", START_NS, 30, 1)
BOTH = [*SENT, *messages("ETHUSDT", START_NS, 30, 1)]
WHOLE = received(BOTH, 1)


def book_rows(made: Made) -> Any:
    rows = made.events[BTC]
    return rows[(rows["kind"] <= Kind.DELTA) & (rows["flags"] & Flag.LAST != 0)]


def frame_of(line: bytes) -> Any:
    return json.loads(line.partition(b" ")[2])


def times(lines: Lines) -> dict[int, int]:
    """``u`` of each book frame -> its receive time."""
    books = ((frame_of(line), stamp(line)) for line in lines if b"orderbook" in line)
    return {frame["data"]["u"]: ns for frame, ns in books}


def print_times(lines: Lines) -> dict[str, int]:
    """Trade id -> its receive time."""
    frames = ((frame_of(line), stamp(line)) for line in lines if b"publicTrade" in line)
    return {each["i"]: ns for frame, ns in frames for each in frame["data"]}


# -- one recording in several files -----------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(3))
def test_any_cut_of_a_recording_gives_the_same_partitions(
    way: Callable[[Lines, random.Random], list[Lines]], seed: int
) -> None:
    files = way(WHOLE, random.Random(seed))
    random.Random(seed).shuffle(files)
    made = made_of(*files)
    assert made == made_of(WHOLE)
    assert (made.report.gaps, made.report.steps_back, made.report.findings) == (0, 0, ())


def test_windows_and_blocks_do_not_decide_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    first = received(SENT, 1, loss=0.1)
    second = received(SENT, 2, delay_ms=25, loss=0.1)
    expected = made_of(first, second)
    monkeypatch.setattr(merge, "_WINDOW_BYTES", 1)
    monkeypatch.setattr(merge, "BLOCK_BYTES", 500)
    monkeypatch.setattr(merge, "read_blocks", lambda path: corpus.read_blocks(path, 3000))
    assert made_of(first, second) == expected


def test_files_that_do_not_touch_pass_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = received(messages("BTCUSDT", START_NS + HOUR_NS, 5, 2), 2)
    paths = [write(tmp_path, "b", WHOLE), write(tmp_path, "a", later)]
    starts = {path: stamp(lines[0]) for path, lines in zip(paths, (WHOLE, later), strict=True)}
    pieces = list(merge.Merge(starts))
    assert all(piece.numbers is None for piece in pieces)
    assert b"".join(piece.block.data for piece in pieces) == b"".join(
        line + b"\n" for line in [*WHOLE, *later]
    )


def test_each_file_is_accounted_for(tmp_path: Path) -> None:
    half = len(WHOLE) // 2
    paths = [
        write(tmp_path, "one", WHOLE[: half + 40]),
        write(tmp_path, "two", [*WHOLE[half:], b"no line"]),
    ]
    lake = Lake(tmp_path / "lake")
    report = ingest(lake, paths, list(scan(paths)), Settings())
    used = {name: (usage.used, usage.repeated) for name, usage in report.files.items()}
    assert used == {
        "one.frames.zst": (half + 40, 0),
        "two.frames.zst": (len(WHOLE) - half - 40, 40),
    }
    (row,) = lake.read("quarantine", "unattributed", DAY).to_pylist()
    assert (row["file"], row["line"]) == ("two.frames.zst", len(WHOLE) - half + 1)
    files = json.loads(lake.metadata("ingests", *BTC)["files"])
    assert {each["topic"].rpartition(".")[2] for each in files} == {"BTCUSDT"}
    book = [each for each in files if each["topic"].startswith("orderbook")]
    assert sum(each["used"] for each in book) == 300
    assert book[0]["first_ns"] == stamp(WHOLE[0])
    assert book[1]["last_ns"] <= stamp(WHOLE[-1])


def test_a_connection_lost_beside_another_recorder_is_no_gap_of_its_symbols() -> None:
    ether = received(messages("ETHUSDT", START_NS, 30, 1), 3)
    middle = len(ether) // 2
    lost = control(stamp(ether[middle]) - 1, "disconnect", reason="recorder stopped")
    made = made_of([*ether[:middle], lost], received(SENT, 1))
    assert made.report.gaps == 0
    assert not (made.events[BTC]["flags"] & Flag.GAP).any()


@pytest.mark.parametrize("apart_ns", [0, 3 * SECOND_NS])
def test_a_recorder_that_was_started_again_goes_on(apart_ns: int) -> None:
    """It stops with a line of its own, and opens with a connection and snapshots."""
    again = messages("BTCUSDT", START_NS + 30 * SECOND_NS + apart_ns, 10, 2)
    first, second = received(SENT, 1), received(again, 2)
    files = (
        [*first, control(stamp(first[-1]) + 1, "disconnect", reason="recorder stopped")],
        [control(stamp(second[0]) - 5, "connect", url="x"), *second],
    )
    assert made_of(*files) == made_of(files[0] + files[1])
    assert not (made_of(*files).events[BTC]["flags"] & Flag.GAP).any()


# -- backups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.0, 0.03, 0.4])
@pytest.mark.parametrize("delay_ms", [5, 27, 900])
@pytest.mark.parametrize("seed", range(2))
def test_a_backup_fills_what_the_primary_lacks(loss: float, delay_ms: float, seed: int) -> None:
    primary = received(SENT, seed, delay_ms=20, loss=loss)
    backup = received(SENT[1:], seed + 9, delay_ms=delay_ms, loss=loss)
    backup = [line for line in backup if stamp(line) > stamp(primary[0])]
    made = made_of(backup, primary)
    rows = book_rows(made)
    ours, theirs = times(primary), times(backup)
    assert rows["update_id"].tolist() == sorted(ours | theirs)
    missing = np.diff(rows["update_id"], prepend=rows["update_id"][0] - 1) > 1
    assert ((rows["flags"] & Flag.GAP != 0) == missing).all()
    own = [ours.get(u) or theirs[u] for u in rows["update_id"].tolist()]
    # An update waits for the one before it, and is never given a better time than its recording's.
    waited = np.maximum.accumulate(np.where(missing, own, own))
    assert (rows["receive_ns"] >= own).all()
    assert (rows["receive_ns"] <= waited).all()
    prints = print_times(backup) | print_times(primary)
    trades = made.events[BTC][made.events[BTC]["kind"] == Kind.TRADE]
    assert sorted(trades["receive_ns"].tolist()) == sorted(prints.values())


def test_a_frame_of_trades_is_filled_trade_by_trade() -> None:
    primary = received(SENT, 1)
    place = next(n for n, line in enumerate(primary) if line.count(b'"i":') == 3)
    frame = frame_of(primary[place])
    kept = frame | {"data": frame["data"][:1]}
    cut = [*primary[:place], b"%d %b" % (stamp(primary[place]), corpus.pack(kept))]
    cut += primary[place + 1 :]
    late = b"%d %b" % (stamp(primary[place]) + 5, primary[place].partition(b" ")[2])
    first = b"%d %b" % (stamp(primary[0]) + 1, primary[0].partition(b" ")[2])
    trades = made_of(cut, [first, late]).events[BTC]
    trades = trades[trades["kind"] == Kind.TRADE]
    assert len(trades) == len(print_times(primary))
    at = trades["receive_ns"][trades["update_id"] == frame["data"][0]["seq"]]
    assert sorted(at.tolist()) == [stamp(late) - 5, stamp(late), stamp(late)]


def test_the_primary_does_not_depend_on_names_or_order() -> None:
    sides = [received(SENT, n, delay_ms=20 + n, loss=0.1) for n in range(3)]
    expected = made_of(*sides)
    assert made_of(*sides[::-1]) == expected
    assert made_of(sides[1], sides[2], sides[0]) == expected
    primary = times(min(sides, key=lambda lines: stamp(lines[0])))
    rows = book_rows(expected)
    own = [primary.get(u, 0) for u in rows["update_id"].tolist()]
    assert (rows["receive_ns"] >= own).all()
    assert (rows["receive_ns"] == own).mean() > 0.7


def test_two_recorders_that_turn_at_the_same_hour_stay_who_they_are() -> None:
    hour = START_NS + 15 * SECOND_NS
    files, sides = [], []
    for n in range(2):
        lines = received(SENT, n, delay_ms=20 + 3 * n, loss=0.1 * n)
        sides.append(lines)
        early = [line for line in lines if stamp(line) < hour]
        late = lines[len(early) :]
        files += [[*early, control(stamp(late[0]), "turn")], late]
    expected = made_of(*sides)
    assert made_of(*files) == expected
    assert made_of(files[2], files[1], files[0], files[3]) == expected


def test_a_torn_copy_beside_its_original_and_a_backup_adds_nothing() -> None:
    sides = [received(SENT, n, delay_ms=20 + 9 * n, loss=0.1) for n in range(2)]
    for copied in range(2):
        torn = sides[copied][: len(sides[copied]) * 2 // 3]
        assert made_of(torn, *sides) == made_of(*sides, torn) == made_of(*sides)


@pytest.mark.parametrize("count", [1, 2])
def test_midnight_between_files_side_by_side(count: int) -> None:
    sent = messages("BTCUSDT", MIDNIGHT - 20 * SECOND_NS, 40, 3)
    sides = [received(sent, n, delay_ms=20 + 6 * n, loss=0.05) for n in range(count)]
    expected = made_of(*sides)
    assert len(expected.events) == 2
    files = []
    for lines in sides:
        early = [line for line in lines if stamp(line) < MIDNIGHT]
        late = lines[len(early) :]
        files += [[*early, control(stamp(late[0]), "turn")], late]
    assert made_of(*files) == expected
    if count == 2:
        return
    opened = expected.events[("BTCUSDT", "2026-11-21")]
    assert (opened["flags"][:1] & Flag.CHECKPOINT != 0).all()


def test_a_stalled_recording_gives_no_trade_twice() -> None:
    """The primary's trades come up to half a minute late; the backup has them in time."""
    lines = received(SENT, 1)
    stalled = [
        b"%d %b" % (max(stamp(line), START_NS + 25 * SECOND_NS + n), line.partition(b" ")[2])
        if stamp(line) > START_NS + 2 * SECOND_NS
        else line
        for n, line in enumerate(lines)
    ]
    made = made_of(stalled, received(SENT[1:], 2, delay_ms=30))
    trades = made.events[BTC][made.events[BTC]["kind"] == Kind.TRADE]
    assert len(trades) == len(print_times(lines))
    assert np.array_equal(book_rows(made)["update_id"], sorted(times(lines)))


def test_two_recordings_in_one_file_are_found() -> None:
    """Nothing tells whose line is whose."""
    lines = sorted(received(SENT, 1) + received(SENT, 2), key=stamp)
    assert "two recordings of a topic" in made_of(lines).report.findings[0]
    assert made_of(lines[::2], lines[1::2]).report.events


# -- clocks ----------------------------------------------------------------------------------------


def set_back(by_ns: int) -> Lines:
    """A clock that is set back some ten seconds after the start, between a book and its trades."""
    stamps = [stamp(line) for line in received(SENT, 1)]
    close = (n for n in range(150, 300) if stamps[n] - stamps[n - 1] < 4 * MS_NS)
    at_ns = stamps[next(close)]
    return received(SENT, 1, clock=lambda ns: ns - by_ns * (ns >= at_ns))


def test_a_small_step_back_takes_the_time_before_it() -> None:
    made = made_of(set_back(5 * MS_NS))
    assert made.report.gaps == 0
    assert len(book_rows(made)) == 300
    (finding,) = made.report.findings
    assert "received up to a second before earlier ones" in finding


@pytest.mark.parametrize("by_ns", [2 * SECOND_NS, 7 * SECOND_NS, HOUR_NS])
def test_a_stretch_after_a_clock_was_set_back_is_left_out(tmp_path: Path, by_ns: int) -> None:
    lines = set_back(by_ns)
    path = write(tmp_path, "one", lines)
    lake = Lake(tmp_path / "lake")
    report = ingest(lake, [path], [BTC], Settings())
    clock = np.maximum.accumulate([stamp(line) for line in lines])
    behind = [n for n, line in enumerate(lines) if stamp(line) < clock[n]]
    finding = report.findings[0]
    assert finding.startswith(
        f"one.frames.zst, lines {behind[0] + 1} to {behind[-1] + 1}: the clock"
    )
    assert f"set back by {by_ns / 1e9 - 0.004:.2f}" in finding
    (row,) = lake.read("quarantine", *BTC).to_pylist()
    assert (row["file"], row["line"], row["reason"]) == (
        "one.frames.zst",
        behind[0] + 1,
        "clock set back",
    )
    rows = lake.read("events", *BTC).to_pandas()
    assert rows["receive_ns"].is_monotonic_increasing
    assert (rows["receive_ns"].value_counts() < 20).all()
    gaps = rows["flags"] & int(Flag.GAP) != 0
    assert gaps.sum() == (1 if behind[-1] + 1 < len(lines) else 0)
    counts = lake.read("ingests", *BTC).to_pandas()
    assert counts["left_out"].sum() == len(behind) == report.files["one.frames.zst"].left_out


@pytest.mark.parametrize("by_ns", [5 * MS_NS, 2 * SECOND_NS, 7 * SECOND_NS, HOUR_NS])
def test_a_clock_set_back_between_two_files_is_the_same_as_in_one(by_ns: int) -> None:
    lines = set_back(by_ns)
    place = next(n for n in range(1, len(lines)) if stamp(lines[n]) < stamp(lines[n - 1]))
    files = lines[:place], lines[place:]
    whole, cut = made_of(lines), made_of(*files)
    # By an hour the files do not touch, and nothing is left out; then the venue's times tell.
    assert cut == whole or by_ns == HOUR_NS
    assert cut.report.findings


def test_a_clock_set_back_over_midnight_is_found() -> None:
    sent = messages("BTCUSDT", MIDNIGHT - 10 * SECOND_NS, 30, 4)
    back = 15 * SECOND_NS
    lines = received(sent, 1, clock=lambda ns: ns - back * (ns >= MIDNIGHT + 5 * SECOND_NS))
    made = made_of(lines)
    assert [day for _, day in made.events] == [DAY, "2026-11-21"]
    assert any("set back by 1" in finding for finding in made.report.findings)


def test_a_clock_that_jumps_ahead_and_back_is_found() -> None:
    jumped = range(START_NS + 10 * SECOND_NS, START_NS + 12 * SECOND_NS)
    lines = received(SENT, 1, clock=lambda ns: ns + 8 * SECOND_NS * (ns in jumped))
    made = made_of(lines)
    (finding,) = made.report.findings
    assert "set back by 8" in finding or "set back by 7.9" in finding
    after = book_rows(made)["receive_ns"] > START_NS + 20 * SECOND_NS
    assert after.any()


def test_a_backup_covers_a_stretch_that_the_primary_lost_to_its_clock() -> None:
    made = made_of(set_back(4 * SECOND_NS), received(SENT[1:], 2, delay_ms=30))
    assert np.array_equal(book_rows(made)["update_id"], sorted(times(WHOLE)))
    assert not (made.events[BTC]["flags"] & Flag.GAP).any()
    assert len(made.report.findings) >= 1


def test_a_backup_whose_clock_is_another_is_left_out_beside_the_primary() -> None:
    primary = received(SENT, 1, loss=0.1)
    astray = received(SENT, 2, clock=lambda ns: ns + 15 * SECOND_NS)
    astray = [line for line in astray if stamp(line) < stamp(primary[-1])]
    made = made_of(primary, astray)
    assert made == made_of(primary)
    (finding,) = made.report.findings
    assert "off the recording's beside it" in finding


def test_frames_left_out_beside_another_recording_are_in_the_counts(tmp_path: Path) -> None:
    primary = received(SENT, 1)
    astray = received(SENT, 2, clock=lambda ns: ns + 15 * SECOND_NS)
    astray = [line for line in astray if stamp(line) < stamp(primary[-1])]
    lake = Lake(tmp_path / "lake")
    ingest(lake, [write(tmp_path, "a", primary), write(tmp_path, "b", astray)], [BTC], Settings())
    counts = lake.read("ingests", *BTC).to_pandas()
    assert counts["left_out"].sum() == len(astray)
    (row,) = lake.read("quarantine", *BTC).to_pylist()
    assert (row["file"], row["line"]) == ("b.frames.zst", 1)


# -- which captures --------------------------------------------------------------------------------


def test_a_capture_tells_its_last_time_by_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, "one", WHOLE)
    assert last_receive_ns(path) == stamp(WHOLE[-1])
    later = write(tmp_path, "later", [b"%d {}" % (stamp(WHOLE[-1]) + n) for n in range(1, 999)])
    torn = Path(path).read_bytes() + Path(later).read_bytes()
    for cut in (0, 9, 90):
        Path(path).write_bytes(torn[: len(torn) - cut])
        read = [ns for ns, _ in corpus_lines(path)]
        assert last_receive_ns(path) == max(read)
    empty = write(tmp_path, "two", [b"no line", b"5 rubbish"])
    assert last_receive_ns(empty) == 0


def test_dates_of_files_side_by_side_are_their_own() -> None:
    """The first goes on past midnight before the second is read."""
    first = received(messages("BTCUSDT", MIDNIGHT - 10 * SECOND_NS, 20, 5), 1)
    second = received(messages("ETHUSDT", MIDNIGHT - 9 * SECOND_NS, 5, 5), 2)
    assert [*made_of(first, second).events] == [BTC, ("BTCUSDT", "2026-11-21"), ETH]


# -- the corpus ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_the_corpus_gives_the_same_partitions_or_a_finding(seed: int) -> None:
    ((_, name, outcome),) = campaign(0, seed, inputs(recordings()))
    assert outcome in ("same", "named"), name


def test_rows_come_in_groups_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_partition, "ROW_GROUP", 64)
    assert made_of(WHOLE[::2], WHOLE[1::2]) == made_of(WHOLE)
