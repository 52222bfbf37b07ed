"""Coverage says what is held, from where, and where it has gaps; and does not read twice."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from live.coverage import coverage, missing
from market.ingest import adopt
from market.lake import Lake
from market.units import DAY_NS, day_start_ns
from market.wire.capture import CaptureWriter
from orchestration.cli import main

S = 1_000_000_000
DAY = "2026-03-01"
T = day_start_ns(DAY)


def frame(topic: str, kind: str = "delta", u: int = 0) -> bytes:
    content = {"topic": topic, "type": kind, "ts": 1, "data": {"b": [], "a": [], "u": u}}
    return msgspec.json.encode(content)


def write(lake: Lake, name: str, lines: list[tuple[int, bytes]]) -> Path:
    path = Path(lake.frames_dir(DAY)) / f"{name}.frames.zst"
    with CaptureWriter(path) as writer:
        for receive_ns, line in lines:
            writer.append(receive_ns, line)
    return path


def book_lines(start_s: float, count: int, u: int) -> list[tuple[int, bytes]]:
    """A snapshot and one delta a second."""
    topic = "orderbook.200.BTCUSDT"
    return [
        (T + round(start_s * S) + n * S, frame(topic, "delta" if n else "snapshot", u + n))
        for n in range(count)
    ]


def test_holes_gaps_and_the_turn_of_the_date_are_reported(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "recorded")
    late = 86_400 - 100
    first = book_lines(0, 60, 1)
    first[30:] = [(ns + 20 * S, line) for ns, line in first[30:]]  # twenty seconds of silence
    del first[10]  # an update id is missing
    write(lake, "a", first)
    write(lake, "b", book_lines(late, 200, 1))

    days = coverage(lake, 200)

    assert [(day.day, day.files, day.frames, day.gaps) for day in days] == [
        (DAY, 2, 159, 1),
        ("2026-03-02", 1, 100, 0),
    ]
    start, stop = T + 79 * S, T + late * S
    assert days[0].holes == ((T + 29 * S, T + 50 * S), (start, stop))
    assert days[0].covered_s == pytest.approx(86_399 - 21 - (stop - start) / 1e9)
    assert days[1].first_ns == T + DAY_NS


def test_missing_dates_between_two_others_are_reported(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "recorded")
    write(lake, "a", book_lines(0, 5, 1))
    for symbol, day in (("BTCUSDT", "2026-03-05"), ("ETHUSDT", "2026-02-27")):
        path = Path(lake.archive(symbol, day))
        at = day_start_ns(day)
        with CaptureWriter(path) as writer:
            writer.append(at, frame(f"orderbook.200.{symbol}", "snapshot", 1))
    assert missing(coverage(lake, 200)) == [("BTCUSDT", "2026-03-02", "2026-03-04", 3)]


def test_a_capture_is_scanned_again_only_when_it_has_grown(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "recorded")
    path = write(lake, "a", book_lines(0, 10, 1))
    said: list[str] = []

    assert coverage(lake, 200, say=said.append) == coverage(lake, 200, say=said.append)
    assert len(said) == 1
    with CaptureWriter(path) as writer:
        writer.append(T + 10 * S, frame("orderbook.200.BTCUSDT", u=11))
    (day,) = coverage(lake, 200, say=said.append)

    assert (day.frames, day.gaps, len(said)) == (11, 0, 2)


def test_the_recordings_are_whole(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = Lake(tmp_path, "recorded")
    adopt(lake, data_dir / "bybit-linear-20260809.frames.zst")

    assert main(["coverage", "--root", str(tmp_path), "--json"]) == 0

    result = json.loads(capsys.readouterr().out)
    days = result["days"]
    assert result["missing"] == []
    assert [day["symbol"] for day in days] == ["BTCUSDT", "ETHUSDT"]
    assert all((day["gaps"], day["holes"], day["torn"]) == (0, [], 0) for day in days)
    assert all(day["source"] == "capture" and 40 < day["covered_s"] < 43 for day in days)
    assert main(["coverage", "--root", str(tmp_path), "--symbols", "ETHUSDT"]) == 0
    shown = capsys.readouterr().out
    assert "ETHUSDT" in shown
    assert "BTCUSDT" not in shown
