"""Partitions stand by themselves: a run over dates of which some are missing, damaged or unsound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from market.lake import Lake
from market.settings import load
from market.units import day_start_ns
from market.wire.capture import CaptureWriter
from orchestration.cli import main
from orchestration.pipeline import report_text, run

#: Great Expectations still imports and calls what Python and its own libraries are giving up.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

MS = 1_000_000
SECONDS = 20
BTC, ETH = "BTCUSDT", "ETHUSDT"
WHOLE = [f"2026-01-0{n}" for n in (1, 8)]
ABSENT, NO_ZSTD, EMPTY, ETH_GAPS, BTC_ONLY, OTHERS = (f"2026-01-0{n}" for n in range(2, 8))


def lines(symbol: str, day: str, gap_every: int = 0) -> Iterator[tuple[int, bytes]]:
    """A book of one level a side, ten frames a second; with ``gap_every`` update ids are left out."""
    u = 0
    for n in range(SECONDS * 10):
        receive_ns = day_start_ns(day) + 60_000 * MS + n * 100 * MS
        u += 2 if gap_every and n % gap_every == 0 else 1
        bid, ask = ("60000.0", "60000.1") if symbol == BTC else ("3000.00", "3000.01")
        levels = {"b": [[bid, f"{1 + n % 5}"]], "a": [[ask, f"{1 + n % 7}"]]}
        frame = {
            "topic": f"orderbook.200.{symbol}",
            "type": "delta" if n else "snapshot",
            "ts": receive_ns // MS - 5,
            "data": {"s": symbol, **levels, "u": u, "seq": u},
            "cts": receive_ns // MS - 6,
        }
        yield receive_ns, msgspec.json.encode(frame)


def capture(path: str | Path, *streams: Iterator[tuple[int, bytes]]) -> str:
    with CaptureWriter(path) as writer:
        for receive_ns, frame in sorted(line for stream in streams for line in stream):
            writer.append(receive_ns, frame)
    return str(path)


def damage(path: str | Path, content: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, dict[str, Any]]:
    lake = Lake(tmp_path_factory.mktemp("isolation") / "lake", "recorded")

    def file(day: str) -> str:
        return f"{lake.frames_dir(day)}/a.frames.zst"

    for day in WHOLE:
        capture(file(day), lines(BTC, day), lines(ETH, day))
    damage(file(NO_ZSTD), b"this is no capture at all")
    damage(file(EMPTY), b"")
    capture(file(ETH_GAPS), lines(BTC, ETH_GAPS), lines(ETH, ETH_GAPS, gap_every=5))
    capture(file(BTC_ONLY), lines(BTC, BTC_ONLY))
    capture(file(OTHERS), lines("SOLUSDT", OTHERS))
    tables = ["events", "bars", "features", "labels", "training_set"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("L2_ROOT", lake.base)
        report = run(load(), first=WHOLE[0], last=WHOLE[-1], selection=tables)
    return lake, report


def test_every_sound_partition_of_the_range_is_made(ran: tuple[Lake, dict[str, Any]]) -> None:
    lake, _ = ran
    sound = [(BTC, WHOLE[0]), (BTC, ETH_GAPS), (BTC, BTC_ONLY), (BTC, WHOLE[1])]
    sound += [(ETH, day) for day in WHOLE]
    for table in ("bars", "features", "labels", "training_set"):
        assert lake.partitions(table) == sound, table
    assert lake.partitions("events") == sorted([*sound, (ETH, ETH_GAPS)])
    assert all(lake.rows("features", *key) == SECONDS for key in sound)


def test_what_was_left_out_is_named_with_its_reason(ran: tuple[Lake, dict[str, Any]]) -> None:
    _, report = ran
    lacking, failed = report["without_data"], report["failed_partitions"]
    assert set(lacking) == {f"{day} {s}" for day in (ABSENT, OTHERS) for s in (BTC, ETH)} | {
        f"{BTC_ONLY} {ETH}"
    }
    assert set(failed) == {f"{day} {s}" for day in (NO_ZSTD, EMPTY) for s in (BTC, ETH)} | {
        f"{ETH_GAPS} {ETH}"
    }
    assert failed[f"{ETH_GAPS} {ETH}"].endswith("critical: events.gaps")
    assert "not a zstd file" in failed[f"{NO_ZSTD} {BTC}"]
    assert "the file is empty" in failed[f"{EMPTY} {BTC}"]
    assert report["failed"]  # data was left out, so that the exit status is 1
    assert not report["failed_steps"]


def test_the_report_says_it_in_a_line_for_each_reason(ran: tuple[Lake, dict[str, Any]]) -> None:
    told = report_text(ran[1]).splitlines()
    lacking = [line for line in told if line.startswith("WARN no data")]
    assert [line.split(": ")[1] for line in lacking] == [
        f"{ABSENT} {BTC}, {ABSENT} {ETH}",
        f"{OTHERS} {BTC}, {BTC_ONLY} {ETH}, {OTHERS} {ETH}",
    ]
    assert "events: no capture under" in lacking[0]
    assert lacking[1].endswith("events: no frame of it in the captures")
    assert len([line for line in told if line.startswith("FAILED")]) == 3


def test_captures_that_cannot_be_used_are_named_and_stop_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A capture whose receive times are of another date than its market holds nothing to use."""
    day = WHOLE[0]
    late = 400 * 86_400_000 * MS
    shifted = [(receive_ns + late, frame) for receive_ns, frame in lines(ETH, day)]
    good = capture(tmp_path / "good.frames.zst", lines(BTC, day))
    bad = capture(tmp_path / "bad.frames.zst", iter(shifted))
    torn = tmp_path / "torn.frames.zst"
    whole = list(lines(ETH, day))
    for part in (whole[:150], whole[150:]):
        capture(torn, iter(part))
    damage(torn, torn.read_bytes()[:-40])
    damage(tmp_path / "none.frames.zst", b"")
    for verb, files in (("ingest", [bad]), ("pipeline", ["--frames", bad])):
        assert main([verb, *files, "--root", str(tmp_path / "lake")]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "the venue's time was 2026-01-01 00:00:59 UTC" in said
        assert "over a day later" in said
    files = [bad, str(tmp_path / "none.frames.zst"), str(torn), good]
    assert main(["ingest", *files, "--root", str(tmp_path / "lake"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told["unread"]) == set(files[:2])
    assert told["torn"] == 1
    assert Lake(tmp_path / "lake").partitions("events") == [(BTC, day), (ETH, day)]
