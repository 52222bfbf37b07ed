"""What a person reads of a lake in a terminal: the verbs on a small lake that an earlier version left."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from orchestration.cli import main
from orchestration.pipeline import report_text
from tests.conftest import REPOSITORY


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fixture's lake: 100 s of market on 2026-03-02, records of a worker on 2026-03-10."""
    archive = sorted((REPOSITORY / "tests" / "fixtures").glob("lake-*.tar.xz"))[-1]
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    for name in ("L2_CONFIG", "L2_ROOT", "L2_SET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "lake"


def l2(lake: Path, *arguments: str) -> int:
    return main([*arguments, "--root", str(lake), "--set", "source=synthetic"])


def test_costs_are_printed_as_tables_with_their_records_to_check(
    lake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert l2(lake, "tca", "--html", "costs.html") == 0
    printed = capsys.readouterr().out
    assert "BTCUSDT, ETHUSDT, 2026-03-10 to 2026-03-10, synthetic: 68 parents" in printed
    assert "error [95 %]" in printed
    assert "markouts, bps" in printed
    assert Path("costs.html").read_text().startswith("<!doctype html>")


def test_liquidity_of_dates_is_printed_and_drawn(
    lake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert l2(lake, "liquidity", "--symbols", "BTCUSDT", "--html", "liquidity.html") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("BTCUSDT, 100 s\n")
    assert "half-life of depth within 2 bps" in printed
    assert "<svg" in Path("liquidity.html").read_text()


def test_captures_taken_in_are_counted_by_topic(
    lake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = next(lake.rglob("*.frames.zst"))
    assert main(["ingest", str(capture), "--root", "other", "--set", "source=synthetic"]) == 0
    printed = capsys.readouterr().out
    assert "orderbook.200.BTCUSDT 1000" in " ".join(printed.split())
    assert main(["sql", "select count(*) as n from events", "--json", "--root", "other"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": [{"n": 91_609}]}


def test_sql_prints_a_table_to_people(lake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert l2(lake, "sql", "select symbol, count(*) as bars from bars group by 1 order by 1") == 0
    assert "BTCUSDT" in capfd.readouterr().out


def test_a_pipeline_report_names_what_failed_and_why() -> None:
    text = report_text(
        {
            "dates": ["2026-03-02", "2026-03-03"],
            "source": "recorded",
            "frames": {"orderbook.200.BTCUSDT": 8_989},
            "events": 404_618,
            "quarantined": 1,
            "bars": {"BTCUSDT": 479},
            "feature_rows": {"BTCUSDT": 479},
            "checks": [
                {"asset": "events", "check": "events_quality", "passed": False, "severity": "ERROR",
                 "breaches": ["critical: completeness in 2026-03-02 BTCUSDT"]},
                {"asset": "bars", "check": "bars_quality", "passed": True, "severity": "WARN"},
            ],
            "without_data": {"2026-03-03 ETHUSDT": "no capture"},
            "failed_partitions": {},
            "unread": {},
            "verdict": "not_enough_data",
            "reasons": ["0 test blocks of at least 5"],
            "champion": "none",
            "execution": [{"symbol": "BTCUSDT", "all-in bps": 5.51}],
            "failed": True,
            "failed_steps": ["bars"],
        }
    )  # fmt: skip
    assert "checks 1 passed, 1 failed" in " ".join(text.split())
    assert "failed: events.events_quality" in text
    assert "WARN no data: " in text
    assert "critical: completeness in 2026-03-02 BTCUSDT" in text
    assert "0 test blocks of at least 5" in text
    assert "all-in bps" in text
    assert text.endswith("FAILED at bars")
