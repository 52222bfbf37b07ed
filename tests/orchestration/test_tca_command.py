"""`l2 tca` over what a study, a worker or a backtest left: the figures, the page, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from execution.study import StudyReport, study
from execution.tca import TABLES, summarise
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from orchestration.backtest.tear_sheet import TableWriter
from orchestration.cli import main
from orchestration.tca import TcaError, _beside, analyse
from proving.synthetic import generate, profile

DAY = "2026-03-09"


@pytest.fixture(scope="module")
def report() -> StudyReport:
    """Two algorithms over a quarter of an hour of a synthetic market."""
    events = list(generate(profile("demo"), 7, "BTCUSDT", DAY, 0, 900))
    return study({"BTCUSDT": events}, BUILT_IN, Settings(), every_s=45, queues=("risk_averse",))


@pytest.fixture(scope="module")
def left(report: StudyReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page's name with the tables beside it, as a backtest leaves them."""
    page = tmp_path_factory.mktemp("left") / "sheet.html"
    kept = TableWriter(page.with_suffix(""))
    for table, rows in (
        ("parents", report.parents),
        ("orders", report.orders),
        ("fills", report.fills),
        ("tca", report.rows),
        ("markouts", report.markouts),
    ):
        kept(table, rows)
    kept.close()
    return page


class Page(HTMLParser):
    """What stands in a page: tags, addresses, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [v for k, v in attrs if v and k in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def told(
    left: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str, Settings]:
    """What is said of those records, the page of it, and settings that name their lake."""
    folder = tmp_path_factory.mktemp("lake")
    settings = Settings(root=str(_beside(left, folder, "recorded").base))
    result = analyse(settings, page=str(folder / "costs.html"))
    return result, (folder / "costs.html").read_text(encoding="utf-8"), settings


def test_the_figures_are_those_of_the_rows(
    told: tuple[dict[str, Any], str, Settings], report: StudyReport
) -> None:
    found, _, _ = told
    by_name = {s.algorithm: s for s in summarise(report.rows) if s.side == 0}
    assert {row["algorithm"] for row in found["costs"]} == set(by_name) == {"market", "passive"}
    for row in found["costs"]:
        summary = by_name[row["algorithm"]]
        mean, low, high, n = row["total_bps"]
        assert row["parents"] == summary.parents
        assert n == summary.instants
        assert mean == pytest.approx(summary.total_bps)
        assert (low, high) == pytest.approx((summary.low_bps, summary.high_bps))
        assert row["timing_bps"] == pytest.approx(summary.timing_bps)
    assert found["impact_by"] == {"control": len(report.rows)}
    assert found["findings"] == {}
    assert sum(row["orders"] for row in found["orders"]) == len(report.orders)
    json.dumps(found, allow_nan=False)


def test_every_dimension_counts_every_parent_once(
    told: tuple[dict[str, Any], str, Settings], report: StudyReport
) -> None:
    found, _, _ = told
    for name, lines in found["attribution"].items():
        assert sum(line["parents"] for line in lines) == len(report.rows), name
        assert all(line["total_bps"][3] > 0 for line in lines)


def test_the_page_needs_nothing_else_and_says_everything(
    told: tuple[dict[str, Any], str, Settings],
) -> None:
    found, text, _ = told
    page = Page(text)
    assert page.tags["svg"] >= 4
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert all(address.startswith("#") for address in page.addresses)
    assert "@import" not in text
    assert "url(http" not in text
    words = " ".join(page.words)
    for heading in (
        "What parents cost, in parts", "Parent by parent", "Against benchmarks",
        "The estimate before the trade", "What the cost may be laid to", "By volatility",
        "Markouts", "Orders", "What is not as it should be",
    ):  # fmt: skip
        assert heading in words
    for row in found["markouts"]:
        assert row["what"] in words


def test_the_same_records_give_the_same_page(
    told: tuple[dict[str, Any], str, Settings], tmp_path: Path
) -> None:
    found, text, settings = told
    again = analyse(settings, first=DAY, last=DAY, page=str(tmp_path / "again.html"))
    assert again | {"page": ""} == found | {"page": ""}
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_what_a_backtest_left_is_taken_whole(left: Path, tmp_path: Path) -> None:
    lake = _beside(left, tmp_path, "recorded")
    for table in TABLES:
        rows = pq.read_table(left.with_name(f"sheet.{table}.parquet"))
        assert lake.load(table, ["BTCUSDT"], DAY, DAY).num_rows == rows.num_rows > 0


def test_a_lake_without_orders_and_dates_that_are_none_are_refused(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path / "lake"))
    with pytest.raises(TcaError, match="no orders on record from 2026-01-01 to the last"):
        analyse(settings, first="2026-01-01")
    with pytest.raises(TcaError, match="no orders on record of BTCUSDT"):
        analyse(settings, symbols=["BTCUSDT"])
    for wrong in ("20260101", "yesterday", "2026-02-30"):
        with pytest.raises(TcaError, match=f"{wrong}: not a date"):
            analyse(settings, first=wrong)
    with pytest.raises(TcaError, match="is after"):
        analyse(settings, first="2026-01-02", last="2026-01-01")


def test_tables_that_are_missing_or_older_are_refused(left: Path, tmp_path: Path) -> None:
    with pytest.raises(TcaError, match=r"other\.parents\.parquet: no such table"):
        analyse(Settings(), beside=str(tmp_path / "other.html"))
    rows = pq.read_table(left.with_name("sheet.parents.parquet"))
    pq.write_table(rows.drop(["sigma_bps"]), tmp_path / "old.parents.parquet")
    with pytest.raises(TcaError, match="without sigma_bps; it is of an older version"):
        _beside(tmp_path / "old.html", tmp_path, "recorded")


def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2_ROOT", str(tmp_path / "lake"))
    assert main(["tca", "--from", "2026-01-01", "--symbol", "BTCUSDT"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("l2 tca: ")
    assert said.err.count("\n") == 1
    assert not Lake(tmp_path / "lake").partitions("parent_costs")
