"""`l2 tca` over records of a study or a backtest: the figures, the cost report, refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from execution.study import StudyReport, study
from execution.tca import TABLES, ParentRow, summarise
from market.errors import UsageError
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from orchestration.backtest.tear_sheet import TableWriter
from orchestration.cli import main
from orchestration.tca.command import TcaError, analyse, lake_beside, report_text
from proving.synthetic import generate, profile
from tests.orchestration.parsed_page import ParsedPage

DAY = "2026-03-09"


@pytest.fixture(scope="module")
def report() -> StudyReport:
    """Two algorithms over a quarter of an hour of a synthetic market."""
    events = list(generate(profile("demo"), 7, "BTCUSDT", DAY, 0, 900))
    return study({"BTCUSDT": events}, BUILT_IN, Settings(), every_s=45, queues=("risk_averse",))


def dealt(parents: Sequence[ParentRow]) -> Iterator[ParentRow]:
    """The parents as if an A/B had dealt them between their algorithms."""
    seen: Counter[str] = Counter()
    for row in parents:
        yield msgspec.structs.replace(row, arm=row.algorithm, stratum=f"s #{seen[row.algorithm]}")
        seen[row.algorithm] += 1


@pytest.fixture(scope="module")
def tear_sheet(report: StudyReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tear sheet's name with the tables beside it, as a backtest writes them."""
    page = tmp_path_factory.mktemp("tear_sheet") / "sheet.html"
    writer = TableWriter(page.with_suffix(""))
    for table, rows in (
        ("parents", list(dealt(report.parents))),
        ("orders", report.orders),
        ("fills", report.fills),
        ("tca", report.rows),
        ("markouts", report.markouts),
    ):
        writer(table, rows)
    writer.close()
    return page


@pytest.fixture(scope="module")
def analysed(
    tear_sheet: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str, Settings]:
    """The figures of those records, the cost report, and settings that name their lake."""
    folder = tmp_path_factory.mktemp("lake")
    settings = Settings(root=str(lake_beside(tear_sheet, folder, "recorded").base))
    result = analyse(settings, page=str(folder / "costs.html"))
    return result, (folder / "costs.html").read_text(encoding="utf-8"), settings


def test_the_figures_are_those_of_the_rows(
    analysed: tuple[dict[str, Any], str, Settings], report: StudyReport
) -> None:
    result, _, _ = analysed
    by_name = {s.algorithm: s for s in summarise(report.rows) if s.side == 0}
    assert {row["algorithm"] for row in result["costs"]} == set(by_name) == {"market", "passive"}
    for row in result["costs"]:
        summary = by_name[row["algorithm"]]
        mean, low, high, n = row["total_bps"]
        assert row["parents"] == summary.parents
        assert n == summary.instants
        assert mean == pytest.approx(summary.total_bps)
        assert (low, high) == pytest.approx((summary.low_bps, summary.high_bps))
        assert row["timing_bps"] == pytest.approx(summary.timing_bps)
    assert result["impact_by"] == {"control": len(report.rows)}
    assert result["findings"] == {}
    assert sum(row["orders"] for row in result["orders"]) == len(report.orders)
    json.dumps(result, allow_nan=False)


def test_every_dimension_counts_every_parent_once(
    analysed: tuple[dict[str, Any], str, Settings], report: StudyReport
) -> None:
    result, _, _ = analysed
    for name, lines in result["attribution"].items():
        assert sum(line["parents"] for line in lines) == len(report.rows), name
        assert all(line["total_bps"][3] > 0 for line in lines)


def test_the_report_is_one_file_with_every_section(
    analysed: tuple[dict[str, Any], str, Settings],
) -> None:
    result, text, _ = analysed
    page = ParsedPage(text)
    assert len(page.pictures) >= 4
    assert page.fetched == []
    assert "@import" not in text
    assert "url(http" not in text
    words = " ".join(page.words)
    for heading in (
        "Cost of parents, in parts", "A/B of execution", "Parent by parent", "Against benchmarks",
        "The estimate before the trade", "Attribution", "By volatility",
        "Markouts", "Orders", "Records to check",
    ):  # fmt: skip
        assert heading in words
    for row in result["markouts"]:
        assert row["what"] in words


def test_arms_on_record_are_compared_pair_by_pair(
    analysed: tuple[dict[str, Any], str, Settings], report: StudyReport
) -> None:
    (found,) = analysed[0]["arms"]
    algorithms = {row.algorithm for row in report.parents}
    assert {arm["arm"] for arm in found["arms"]} == algorithms
    assert found["pairs"] + found["left_out"] == len(report.parents) / 2
    costs = {a: [r.total_bps for r in report.rows if r.algorithm == a] for a in sorted(algorithms)}
    first, second = (np.mean(each) for each in costs.values())
    assert found["difference_bps"] == pytest.approx(second - first)
    assert "cheaper: " in report_text(analysed[0])


def test_the_same_records_give_the_same_report(
    analysed: tuple[dict[str, Any], str, Settings],
) -> None:
    result, text, settings = analysed
    page = Path(result["page"]).with_name("again.html")  # beside it: links are relative to the page
    again = analyse(settings, first=DAY, last=DAY, page=str(page))
    assert again | {"page": ""} == result | {"page": ""}
    assert page.read_text(encoding="utf-8") == text


def test_the_tables_of_a_backtest_are_read_whole(tear_sheet: Path, tmp_path: Path) -> None:
    lake = lake_beside(tear_sheet, tmp_path, "recorded")
    for table in TABLES:
        rows = pq.read_table(tear_sheet.with_name(f"sheet.{table}.parquet"))
        assert lake.load(table, ["BTCUSDT"], DAY, DAY).num_rows == rows.num_rows > 0


def test_a_lake_without_orders_and_malformed_dates_are_refused(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path / "lake"))
    with pytest.raises(TcaError, match="no orders on record from 2026-01-01 to the last"):
        analyse(settings, first="2026-01-01")
    with pytest.raises(TcaError, match="no orders on record of BTCUSDT"):
        analyse(settings, symbols=["BTCUSDT"])
    for wrong in ("20260101", "yesterday", "2026-02-30"):
        with pytest.raises(UsageError, match=f"{wrong}: not a date"):
            analyse(settings, first=wrong)
    with pytest.raises(UsageError, match="is after"):
        analyse(settings, first="2026-01-02", last="2026-01-01")


def test_missing_and_outdated_tables_are_refused(tear_sheet: Path, tmp_path: Path) -> None:
    with pytest.raises(TcaError, match=r"other\.parents\.parquet: no such table"):
        analyse(Settings(), beside=str(tmp_path / "other.html"))
    rows = pq.read_table(tear_sheet.with_name("sheet.parents.parquet"))
    pq.write_table(rows.drop(["sigma_bps"]), tmp_path / "old.parents.parquet")
    with pytest.raises(TcaError, match="without sigma_bps; it is of an older version"):
        lake_beside(tmp_path / "old.html", tmp_path, "recorded")


def test_the_verb_prints_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2_ROOT", str(tmp_path / "lake"))
    assert main(["tca", "--from", "2026-01-01", "--symbol", "BTCUSDT"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("l2 tca: ")
    assert printed.err.count("\n") == 1
    assert not Lake(tmp_path / "lake").partitions("parent_costs")
