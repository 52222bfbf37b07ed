"""The desk against legacy: paired intervals, drawn signals, and the same parents for both on a recording."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from orchestration.cli import main
from proving.desk import sessions
from proving.desk.sessions import Figures, recording, session, variant
from proving.desk.table import compare, goals, markdown, paired
from proving.kept import Done


def figures(net: float, cost: float, parents_usdt: float = 1000.0) -> Figures:
    names = (
        "funding",
        "cost_without_fees",
        "filled",
        "filled_maker",
        "turnover_maker",
        "hits",
        "drawdown",
    )
    shared = {"capital": 1e5, "turnover": 2e3, "trips": 4.0, **dict.fromkeys(names, 1.0)}
    return shared | {"net": net, "cost": cost * parents_usdt, "parents_usdt": parents_usdt}


def test_a_difference_is_paired_by_session() -> None:
    dice = np.random.default_rng(1)
    market = dice.normal(0, 100, 30)  # what both desks went through
    base = [figures(5 + x, 5.5) for x in market]
    new = [figures(15 + x, 2.2) for x in market]
    assert compare(base, new, "cost").ratio == pytest.approx((0.4, 0.4, 0.4))
    net = compare(base, new, "net").difference
    assert net == pytest.approx(
        (1.0, 1.0, 1.0)
    )  # 10 of 100,000 in bps, without the market's scatter
    assert compare(base, new, "sharpe").difference[1] > 0


def test_what_never_traded_has_no_cost_and_a_sharpe_of_zero() -> None:
    idle = [figures(0.0, 0.0, 0.0)] * 20
    busy = [figures(x, 2.0) for x in (1.0, 2.0, 3.0, 2.0) * 5]
    assert math.isnan(compare(idle, busy, "cost").difference[0])
    assert compare(idle, busy, "sharpe").base == 0.0
    found = {cell: dict(enumerate(each)) for cell, each in (("base", idle), ("new", busy))}
    goal, fills = goals("planted", [("vip0, pessimistic", paired(found, "base", "new"))])
    assert goal.holds
    assert "difference" in goal.found  # of zero there is no ratio
    assert (fills.goal, fills.holds) == ("fills > 95 %", False), (
        "decisions of a model are judged too"
    )


def test_where_the_baseline_hardly_trades_the_new_desks_own_interval_is_shown() -> None:
    """One of twenty sessions has a parent of the baseline: a third of the draws have none."""
    base = [figures(0.0, 5.5, 0.0)] * 19 + [figures(1.0, 5.5)]
    new = [figures(x, x) for x in (1.0, 2.0, 3.0, 2.0) * 5]
    found = {cell: dict(enumerate(each)) for cell, each in (("base", base), ("new", new))}
    lines = paired(found, "base", "new")
    (cost,) = (each for each in lines if each.metric == "cost")
    assert math.isnan(cost.difference[1])
    assert cost.own[0] == 2.0
    assert 1.5 < cost.own[1] < 2.0 < cost.own[2] < 2.5
    text = markdown("planted", [("vip0, pessimistic", lines)])[-2]
    assert f"5.500 → 2.000; alone +2.000 [+{cost.own[1]:.3f}, +{cost.own[2]:.3f}]" in text


def test_both_desks_work_the_same_drawn_parents_on_a_recording(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2_TEST_DATA", str(data_dir))
    cells = {
        "legacy": variant("vip0", sessions.PESSIMISTIC, profile="legacy"),
        "passive": variant("vip0", sessions.PESSIMISTIC, "execution.algorithm=passive", profile="legacy"),
    }  # fmt: skip
    market = partial(recording, "usdm-20240808")
    found = session(market, cells, 1, "recorded", draws=True)
    legacy, passive = found["legacy"], found["passive"]
    assert legacy["parents"] == passive["parents"] > 0
    assert legacy["filled_maker"] == 0 < passive["filled_maker"]
    assert legacy["cost"] / legacy["parents_usdt"] == pytest.approx(5.5, abs=0.5)
    assert not legacy["errors"]


def test_kept_sessions_are_judged_without_running_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    biased = {"bias passive low": 2.0, "biased passive low": 20.0}
    with open(tmp_path / "parents.jsonl", "wb") as file:
        for seed in (3001, 3002, 3003):
            for run, cells in (
                ("whole", sessions.whole()),
                ("parts", sessions.parts("vip0", True)),
            ):
                found = {
                    cell: figures(seed - 3000.0, 5.5 if cell.startswith("legacy") else 2.5) | biased
                    for cell in cells
                }
                done = Done(
                    row="parents", run=run, seed=seed, code="a", cpu_s=8.0, at="", figures=found
                )
                file.write(msgspec.json.encode(done) + b"\n")
        file.write(b'{"row": "parents", "run"')  # cut by a crash
    options = ("--judge", "--only", "parents", "--seeds", "3001-3003", "--folder", str(tmp_path))
    assert main(["desk-table", *options]) == 0
    told = capsys.readouterr()
    assert "a line is cut; its seed runs again" in told.err
    assert "5.500 → 2.500" in told.out
    assert main(["desk-table", *options, "--json"]) == 0
    data = msgspec.json.decode(capsys.readouterr().out)
    assert data["cpu_s"] == 48.0
    assert data["code"] == ["a"]
    assert main(["desk-table", "--only", "another"]) == 2
