"""`l2 bench`: rows are whole, goals name rows that exist, units make sense. How fast anything is, the
benchmark itself judges, on a machine that has nothing else to do; tests never do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from market.book import Book
from orchestration.cli import main
from proving.bench import market as bench
from proving.bench.calibration import REFERENCE_MACHINE, REFERENCE_MS, between, factors
from proving.bench.command import (
    AREAS,
    HEAD,
    BenchError,
    Peer,
    PeerError,
    ResultRow,
    _row,
    in_turn,
    lines,
    markdown,
    peer_ready,
    run,
)
from proving.bench.goals import Measure, Threshold
from tests.conftest import recordings
from tests.proving.bench_goals import check_goals

UNITS = {"M rows/s", "MB/s of JSON", "ms", "µs", "s", "MB", "times"}


@pytest.fixture(scope="module")
def market() -> Iterator[dict[str, Any]]:
    """A quick run without the peer, which takes longer to compile than all else together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proving.bench.command._PEER", Path("nowhere"))
        patch.setenv("L2_TEST_DATA", str(recordings()))
        yield run("market", quick=True, say=lambda _: None)


def test_every_row_of_a_quick_run_is_complete(market: dict[str, Any]) -> None:
    rows = market["rows"]
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == set(ResultRow.__struct_fields__)
        assert math.isfinite(row["ours"])
        assert row["ours"] > 0
        assert row["unit"] in UNITS
        assert row["how"]
        assert (row["peer"] is None) == (row["ratio"] is None)


def test_every_goal_names_a_measured_row(market: dict[str, Any], data_dir: Path) -> None:
    check_goals("market", {row["name"]: row["unit"] for row in market["rows"]})


def test_a_quick_run_judges_no_goal(market: dict[str, Any]) -> None:
    assert all(row["goal"] is None and row["met"] is None for row in market["rows"])


def test_a_run_records_its_machine_and_commit(market: dict[str, Any]) -> None:
    assert {"date", "cores", "processor", "python", "commit", "peer"} <= set(market)


def test_without_the_peer_its_columns_are_null_and_a_hint_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("proving.bench.command._PEER", tmp_path / "none")
    said: list[str] = []
    monkeypatch.setattr(bench, "measure", lambda quick, say: bench.books("few", [few()], 1))
    rows = run("market", quick=True, say=said.append)["rows"]
    assert rows
    assert all(row["peer"] is None and row["ratio"] is None for row in rows)
    assert sum("make bench-peers" in line for line in said) == 1


def few() -> Any:
    return bench.generated_rows(5_000)


@pytest.mark.peers
def test_with_the_peer_its_figures_are_beside_ours() -> None:
    assert peer_ready(), "make bench-peers installs the peer"
    rows = {row["name"]: row for row in run("market", quick=True, say=lambda _: None)["rows"]}
    for name in ("book", "book and bars", "frames to events"):
        found = rows[f"{name}, generated"]
        assert found["ratio"] == pytest.approx(found["ours"] / found["peer"])


@pytest.mark.peers
def test_the_peers_book_equals_ours_level_by_level(tmp_path: Path) -> None:
    rows = bench.book_rows(few())
    book = Book()
    book.apply(rows)
    np.savez(tmp_path / "rows.npz", rows=bench.for_peer(rows))
    with Peer("hftbacktest_book.py", tmp_path / "rows.npz") as peer:
        assert peer.ask("seconds") > 0
        (theirs,) = peer.ask("levels")
    bench.check_equal("few", book, theirs)


@pytest.mark.peers
def test_a_peer_that_exits_is_an_error_with_its_name(tmp_path: Path) -> None:
    with (
        Peer("hftbacktest_book.py", tmp_path / "missing.npz") as peer,
        pytest.raises(PeerError, match=r"hftbacktest_book\.py ended with status 1"),
    ):
        peer.ask("seconds")


def test_books_that_differ_are_an_error_with_the_number_of_levels() -> None:
    book = Book()
    book.apply(bench.book_rows(few()))
    theirs = [[1, *level] for level in book.bids()] + [[-1, *level] for level in book.asks()]
    bench.check_equal("few", book, theirs)
    theirs[0][2] += 1
    with pytest.raises(PeerError, match="differ in 2 levels"):
        bench.check_equal("few", book, theirs)


def test_a_ratio_above_one_means_ours_is_better() -> None:
    fast = Measure(name="a", ours=30.0, peer=10.0, unit="M rows/s", how="")
    small = Measure(name="b", ours=10.0, peer=30.0, unit="MB", how="", better="less")
    assert fast.ratio == small.ratio == 3.0
    assert Measure(name="c", ours=1.0, unit="s", how="").ratio is None


def test_a_goal_is_met_missed_or_not_judged() -> None:
    measure = Measure(name="a", ours=30.0, unit="M rows/s", how="")
    assert _row(measure, (Threshold("ours", ">=", 30.0),)).met is True
    assert _row(measure, (Threshold("ours", "<=", 29.0),)).met is False
    of_ratio = _row(measure, (Threshold("ours", ">=", 1), Threshold("ratio", ">=", 1.5)))
    assert of_ratio.met is None
    assert of_ratio.goal == "ours >= 1, ratio >= 1.5"
    assert _row(measure, ()).goal is None


def test_a_goal_in_absolute_time_is_judged_at_the_machines_speed() -> None:
    factor = {"compiled": 1.25, "query": 4.0}
    slow = Measure(name="a", ours=120.0, unit="µs", how="", better="less")
    row = _row(slow, (Threshold("ours", "<=", 100, "compiled"),), factor)
    assert (row.met, row.met_unscaled) == (True, False)
    assert (row.goal, row.bound) == ("ours <= 100", "ours <= 125")
    assert (row.kind, row.factor) == ("compiled", 1.25)
    beyond = msgspec.structs.replace(slow, ours=125.1)
    assert _row(beyond, (Threshold("ours", "<=", 100, "compiled"),), factor).met is False


def test_a_rate_is_asked_less_of_on_a_slower_machine_and_more_on_a_faster() -> None:
    goals = (Threshold("ours", ">=", 60, "compiled"), Threshold("ratio", ">=", 10))
    measure = Measure(name="a", ours=50.0, peer=5.0, unit="MB/s of JSON", how="")
    slower = _row(measure, goals, {"compiled": 1.25})
    assert slower.bound == "ours >= 48, ratio >= 10"
    assert (slower.met, slower.met_unscaled) == (True, False)
    fast = _row(msgspec.structs.replace(measure, ours=70.0), goals, {"compiled": 0.8})
    assert fast.bound == "ours >= 75, ratio >= 10"
    assert (fast.met, fast.met_unscaled) == (False, True)


def test_goals_that_are_no_time_are_the_same_on_every_machine() -> None:
    factor = dict.fromkeys(REFERENCE_MS, 3.0)
    row = _row(
        Measure(name="a", ours=30.0, unit="MB", how=""), (Threshold("ours", "<=", 20),), factor
    )
    assert (row.bound, row.kind, row.factor, row.met) == ("ours <= 20", None, None, False)


def test_calibrations_of_the_run_are_in_it_and_the_factor_lies_between_them(
    market: dict[str, Any],
) -> None:
    assert len(market["calibrations_ms"]) >= 2
    for taken in market["calibrations_ms"]:
        assert set(taken) == set(REFERENCE_MS)
        assert min(taken.values()) > 0
    twice = {kind: 2 * ms for kind, ms in REFERENCE_MS.items()}
    eight = {kind: 8 * ms for kind, ms in REFERENCE_MS.items()}
    assert factors(between(twice, eight)) == pytest.approx(dict.fromkeys(REFERENCE_MS, 4.0))


def test_the_page_states_the_machines_speed_beside_the_reference(market: dict[str, Any]) -> None:
    page = markdown(market)
    assert REFERENCE_MACHINE in page
    assert all(f"{kind} " in page for kind in REFERENCE_MS)


def test_the_table_marks_missed_goals() -> None:
    measure = Measure(name="a", ours=30.0, unit="M rows/s", how="")
    row = _row(measure, (Threshold("ours", ">=", 31.0),))
    cells = lines({"rows": [{name: getattr(row, name) for name in ResultRow.__struct_fields__}]})
    assert cells == [("a", "30", "–", "–", "M rows/s", "ours >= 31", "", "", "MISSED")]


def test_the_markdown_has_a_table_row_and_a_meaning_per_measure(
    market: dict[str, Any],
) -> None:
    page = markdown(market).splitlines()
    for row in market["rows"]:
        (cells,) = (line for line in page if line.startswith(f"| {row['name']} |"))
        assert cells.count("|") == len(HEAD) + 1
        assert f"- **{row['name']}**: {row['how']}" in page


def test_works_run_in_turn_and_the_best_time_of_each_is_kept() -> None:
    order: list[str] = []
    times = {"a": [3.0, 1.0, 2.0], "b": [5.0, 6.0, 4.0]}

    def work(name: str) -> float:
        order.append(name)
        return times[name].pop(0)

    assert in_turn([lambda: work("a"), lambda: work("b")], 3) == [1.0, 4.0]
    assert order == ["a", "b"] * 3


def test_an_unknown_area_is_an_error_that_names_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "weather"]) == 2
    error = capsys.readouterr().err
    assert all(area in error for area in AREAS)
    with pytest.raises(BenchError):
        run("weather", quick=True, say=lambda _: None)
