"""`l2 backtest`: the report, the tear sheet, a second model, queue bounds, and look-ahead probes."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from execution.simulation.queue import BOUNDS
from live.decisions import Decision
from live.trader import Trader
from market.console import say
from market.lake import Lake
from market.settings import FEE_ROWS_BPS
from market.units import SECOND_NS
from models_registry.recipe import Prediction
from orchestration.backtest import lookahead
from orchestration.backtest.command import backtest
from orchestration.backtest.figures import bound_figures, figures
from orchestration.backtest.report_tables import report_text
from orchestration.backtest.run import Run, load_model, opening, replay
from orchestration.backtest.span import SpanError, instruments_of_span, span_of
from orchestration.cli import main
from tests.live.live_market import live_settings, promote
from tests.live.warm import planted, write
from tests.orchestration.parsed_page import ParsedPage

DAY = "2026-03-02"
#: The least that the probes need for a verdict.
SECONDS = 330
Vector = npt.NDArray[np.float64]


def near(value: float) -> Any:
    """Sums of exact money as floats."""
    return pytest.approx(value, rel=1e-9, abs=1e-6)


def shown(cell: str) -> float | None:
    """A cell as the number that it shows."""
    if cell == "–":
        return None
    share = cell.endswith("%")
    return float(cell.rstrip("%").replace(",", "")) / (100 if share else 1)


def same(cell: str, value: float | None, digits: int) -> bool:
    number = shown(cell)
    if number is None or value is None:
        return number is None and value is None
    return math.isclose(number, value, rel_tol=0, abs_tol=0.50001 * 10**-digits)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of planted minutes behind a warm-up hour, and two models on the order flow of each
    second: the champion follows it, `other` trades against it."""
    folder = tmp_path_factory.mktemp("planted")
    write(Lake(folder, "synthetic"), planted("demo", DAY, SECONDS))
    promote(folder, version="2", follows="ofi_now", sign=-1.0)
    promote(folder, version="1", follows="ofi_now")
    (folder / "other").symlink_to(folder / "bundles" / "synthetic-l2" / "2-test")
    return folder


def printed(
    root: Path, capsys: pytest.CaptureFixture[str], *options: str, status: int = 0
) -> dict[str, Any]:
    """The JSON that the verb prints."""
    settings = live_settings(root)
    given = [
        f"source={settings.source}",
        f"model.horizons_s={','.join(map(str, settings.model.horizons_s))}",
        f"model.primary_s={settings.model.primary_s}",
        f"model.fee_row={settings.model.fee_row}",
        f"execution.deadline_s={settings.execution.deadline_s}",
    ]
    sets = [word for item in given for word in ("--set", item)]
    with pytest.MonkeyPatch.context() as environment:
        for item in (*given, "config=", "root="):
            name = "L2_" + item.partition("=")[0].upper().replace(".", "__")
            environment.setenv(name, "")  # so that what main() sets is put back
            environment.delenv(name)
        environment.chdir(root)
        assert main(["backtest", "--root", str(root), *sets, *options, "--json"]) == status
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


FIRST = f"{DAY}T00:00:02"
UNTIL = f"{DAY}T00:02:02"


@pytest.fixture(scope="module")
def reported(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Two minutes with every part of a report."""
    page = tmp_path_factory.mktemp("page") / "sheet.html"
    report = backtest(
        live_settings(root), against=str(root / "other"), first=FIRST, last=UNTIL, page=str(page)
    )
    return report, page


def test_the_verb_prints_the_result_of_the_function(
    root: Path, reported: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report, _ = reported
    result = printed(root, capsys, "--from", FIRST, "--to", UNTIL, "--against", str(root / "other"))
    expected = {k: v for k, v in report.items() if k not in ("seconds", "files")}
    assert result.pop("seconds") > 0
    assert result == json.loads(json.dumps(expected))


def test_the_books_close_at_every_fee_row(reported: tuple[dict[str, Any], Path]) -> None:
    """Net = gross − fees − funding; trades, regimes and symbols each add up to the same; at the
    break-even fee the net is zero; no drawdown is deeper than the stated one."""
    report, page = reported
    trades = pq.read_table(page.with_suffix(".trades.parquet"))
    curve = pq.read_table(page.with_suffix(".equity.parquet"))
    assert report["round_trips"] == trades.num_rows > 50
    assert len(report["regimes"]) >= 1
    assert len(report["by_symbol"]) == 2
    for row in FEE_ROWS_BPS:
        figures = report["rows"][row]
        net = figures["net_usdt"]
        funding = report["funding_usdt"]
        assert net == near(report["gross_usdt"] - figures["fees_usdt"] - funding)
        assert net == near(math.fsum(trades[f"net_usdt_{row}"].to_pylist()))
        equity = curve[f"net_{row}_usdt"].to_numpy()
        assert equity[-1] == near(net)
        fall = (np.maximum.accumulate(np.maximum(equity, 0.0)) - equity).max()
        assert figures["drawdown_usdt"] >= fall - 1e-6
    vip0 = report["rows"]["vip0"]["fees_usdt"]
    assert vip0 > report["rows"]["vip3"]["fees_usdt"] > report["rows"]["zero"]["fees_usdt"] == 0
    turnover = report["turnover_usdt"]
    assert turnover == near(math.fsum(trades["turnover_usdt"].to_pylist()))
    earned = report["gross_usdt"] - report["funding_usdt"]
    assert earned == near(report["break_even_bps"] * turnover / 1e4)
    at_row = report["rows"][report["fee_row"]]["net_usdt"]
    for groups in (report["regimes"], report["by_symbol"]):
        assert sum(group["trades"] for group in groups) == report["round_trips"]
        assert math.fsum(group["net_usdt"] for group in groups) == near(at_row)
    assert sum(group["time_share"] for group in report["regimes"]) == pytest.approx(1.0)
    exposure = report["exposure"]
    assert 0 < exposure["invested_share"] <= 1
    assert abs(exposure["mean_net_usdt"]) <= exposure["mean_gross_usdt"] <= exposure["largest_usdt"]
    assert report["worker"]["positions"] == {"BTCUSDT": 0, "ETHUSDT": 0}
    assert report["errors"] == []


def test_the_tear_sheet_shows_the_figures_of_the_json(
    reported: tuple[dict[str, Any], Path],
) -> None:
    _, file = reported
    report = json.loads(file.with_suffix(".json").read_text())
    page = ParsedPage(file.read_text(encoding="utf-8"))
    fees = page.rows("Profit after fees and funding")
    assert set(fees) == set(report["rows"])
    for name, line in fees.items():
        figures = report["rows"][name]
        for head, key, digits in (
            ("taker", "taker_bps", 1), ("maker", "maker_bps", 1), ("fees", "fees_usdt", 2),
            ("net", "net_usdt", 2), ("net a day", "net_usdt_per_day", 2),
            ("net bps a trade", "net_bps", 3), ("hits", "hit_rate", 3),
            ("drawdown", "drawdown_usdt", 2),
        ):  # fmt: skip
            assert same(line[head], figures[key], digits), (name, head)
        capacity = figures["capacity_usdt"]
        stated = line["capacity a trade"]
        assert stated == "none" if capacity is None else same(stated, capacity, 0)
    for heading, groups, key in (
        ("Round trips", "by_symbol", "symbol"),
        ("By regime", "regimes", "regime"),
    ):
        lines = page.rows(heading)
        assert set(lines) == {group[key] for group in report[groups]}
        for group in report[groups]:
            line = lines[group[key]]
            for head, name, digits in (
                ("trades", "trades", 0), ("gross bps", "gross_bps", 3),
                ("net bps", "net_bps", 3), ("net USDT", "net_usdt", 2),
                ("hits", "hit_rate", 3), ("held s", "holding_s", 1), ("maker", "maker_share", 3),
            ):  # fmt: skip
                assert same(line[head], group[name], digits), (heading, head)
    lines = page.rows("Between the bounds of the queue")
    assert list(lines) == [BOUNDS[0], report["queue"], BOUNDS[1]]
    for name, line in lines.items():
        run = report if name == report["queue"] else report["bounds"][name]
        assert same(line["round trips"], run["round_trips"], 0)
        assert same(line["maker"], run["maker_share"], 3)
        assert same(line["break-even"], run["break_even_bps"], 3)
        for head, row in (("net at vip0", "vip0"), ("at vip3", "vip3"), ("at zero", "zero")):
            assert same(line[head], run["rows"][row]["net_usdt"], 2)
    rival = report["against"]
    lines = page.rows(f"Against {rival['model']} on the same events")
    for name, line in lines.items():
        assert same(line["net"], report["rows"][name]["net_usdt"], 2)
        assert same(line["the other's"], rival["rows"][name]["net_usdt"], 2)
        assert same(line["difference"], rival["difference"][name]["net_usdt"], 2)
    about = {line[0]: line[1] for line in page.tables[f"Backtest of {report['model']}"]}
    assert same(about["break-even fee"].split()[0], report["break_even_bps"], 3)
    assert same(about["turnover"].split()[0], report["turnover_usdt"], 0)
    assert f"{report['events']:,} events" in about["market"]
    assert f"{report['round_trips']:,} round trips" in about["evidence"]
    text = file.read_text(encoding="utf-8")
    assert all(line.split("'")[0] in text for line in report["assumptions"])


def test_the_tear_sheet_is_one_file_with_its_tables_beside_it(
    reported: tuple[dict[str, Any], Path],
) -> None:
    report, file = reported
    page = ParsedPage(file.read_text(encoding="utf-8"))
    assert len(page.pictures) == 3
    for picture in page.pictures:
        drawn = sum(1 for part in picture.iter() if part.tag.endswith("}path"))
        assert drawn > 10
    assert page.fetched == []
    assert all(Path(name).stat().st_size > 0 for name in report["files"])
    written = pacsv.read_csv(file.with_suffix(".trades.csv"))
    parquet = pq.read_table(file.with_suffix(".trades.parquet"))
    assert written.num_rows == parquet.num_rows
    assert written["net_usdt_vip0"].to_pylist() == pytest.approx(
        parquet["net_usdt_vip0"].to_pylist()
    )
    for table in ("orders", "fills", "parents", "tca"):
        assert pq.read_table(file.with_suffix(f".{table}.parquet")).num_rows > 50


def test_the_bounds_are_runs_with_these_queue_models(
    root: Path, reported: tuple[dict[str, Any], Path]
) -> None:
    report, _ = reported
    assert set(report["bounds"]) == set(BOUNDS)
    for bound in BOUNDS:
        alone = backtest(live_settings(root, queue=bound), first=FIRST, last=UNTIL, bounded=False)
        assert "bounds" not in alone
        assert bound_figures(alone) == report["bounds"][bound]
    maker = [run["maker_share"] for run in (report["bounds"][BOUNDS[0]], report)]
    maker.append(report["bounds"][BOUNDS[1]]["maker_share"])
    assert maker == sorted(maker)


def test_a_second_model_trades_the_same_events_with_books_of_its_own(
    root: Path, reported: tuple[dict[str, Any], Path]
) -> None:
    report, _ = reported
    rival = report["against"]
    alone = backtest(
        live_settings(root), model=str(root / "other"), first=FIRST, last=UNTIL, bounded=False
    )
    for name in set(alone) - {"seconds"}:
        assert rival[name] == alone[name], name
    assert rival["inputs"] == report["inputs"]
    for row, apart in rival["difference"].items():
        gap = report["rows"][row]["net_usdt"] - rival["rows"][row]["net_usdt"]
        assert apart["net_usdt"] == near(gap)
        assert apart["net_usdt_per_day"] is apart["net_usdt_per_day_95"] is None, "two minutes"


def test_a_model_against_itself_makes_no_difference(root: Path) -> None:
    until = f"{DAY}T00:00:42"
    report = backtest(
        live_settings(root), against="champion", first=FIRST, last=until, bounded=False
    )
    assert report["round_trips"] > 10
    for row in FEE_ROWS_BPS:
        assert report["against"]["difference"][row]["net_usdt"] == 0
        assert report["against"]["rows"][row] == report["rows"][row]


def test_a_run_that_begins_within_a_date_has_the_book_of_that_second(root: Path) -> None:
    """Without bars before it the trader has to warm up, but its mids are right from the start."""
    settings = live_settings(root)
    lake = Lake(settings.root, settings.source)
    symbols = settings.market.symbols
    mids: list[dict[tuple[str, int], float]] = []
    for first in (FIRST, f"{DAY}T00:00:32"):
        span = span_of(lake, symbols, first, f"{DAY}T00:00:42")
        instruments, _ = instruments_of_span(lake, symbols, span)
        seen: list[Decision] = []
        model = load_model(settings, "champion", symbols)
        replay(lake, instruments, span, [Run(settings, instruments, model, decided=seen.append)])
        mids.append({(one.symbol, one.t_ns): one.mid for one in seen})
    # A watched symbol of which the lake has nothing is left out of both.
    several = [*symbols, "SOLUSDT"]
    assert instruments_of_span(lake, several, span, ["SOLUSDT"])[0] == instruments
    unheard = msgspec.structs.replace(instruments[symbols[0]], symbol="SOLUSDT")
    listed = instruments | {"SOLUSDT": unheard}
    known = opening(lake, listed, span.first_ns, ["SOLUSDT"])
    assert known is not None
    assert known.keys() == set(symbols)
    with pytest.raises(SpanError, match="SOLUSDT: no events"):
        instruments_of_span(lake, several, span)
    whole, late = mids
    assert len(late) == 2 * 9
    assert all(whole[key] == mid for key, mid in late.items())


def test_the_workers_limits_stop_a_backtest_too(root: Path) -> None:
    settings = live_settings(root)
    risk = msgspec.structs.replace(settings.risk, drawdown_usdt=0.01)
    free = backtest(settings, first=FIRST, last=UNTIL)
    limited = backtest(msgspec.structs.replace(settings, risk=risk), first=FIRST, last=UNTIL)
    assert free["worker"]["limits"] == {}
    assert limited["worker"]["limits"]["drawdown"] == 1
    assert limited["round_trips"] < free["round_trips"] / 2
    assert "Limits reached (`[risk]`): drawdown 1 times" in report_text(limited)


def test_runs_by_foresight_are_those_of_the_trader_to_the_last_bit(
    root: Path, reported: tuple[dict[str, Any], Path]
) -> None:
    """Row by row, with features and predictions of its own: every figure is the same."""
    report, _ = reported
    settings = live_settings(root)
    lake = Lake(settings.root, settings.source)
    span = span_of(lake, settings.market.symbols, FIRST, UNTIL)
    instruments, inputs = instruments_of_span(lake, settings.market.symbols, span)
    for which, found in (("champion", report), (str(root / "other"), report["against"])):
        model = load_model(settings, which, settings.market.symbols)
        run = Run(settings, instruments, model)
        events = replay(lake, instruments, span, [run])
        direct = figures(run.books(events), model, span, inputs, lake.source, events)
        assert direct["round_trips"] > 30
        assert direct == {name: found[name] for name in direct}


def test_processes_change_no_figure(
    root: Path, reported: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _ = reported
    monkeypatch.setattr("orchestration.backtest.command.processes", lambda _: 2)
    settings, other = live_settings(root), str(root / "other")
    again = backtest(settings, against=other, first=FIRST, last=UNTIL, say=say)
    assert again | {"seconds": 0} == {n: v for n, v in report.items() if n != "files"} | {
        "seconds": 0
    }


def test_how_often_a_run_flushes_finished_rows_changes_nothing(
    root: Path,
    reported: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every ten seconds instead of every hour: the same figures, the same rows in the same order."""
    _, page = reported
    monkeypatch.setattr("orchestration.backtest.run.FLUSH_NS", 10 * SECOND_NS)
    often = tmp_path / "sheet.html"
    backtest(live_settings(root), first=FIRST, last=UNTIL, bounded=False, page=str(often))
    for table in ("orders", "fills", "parents", "tca", "trades", "equity"):
        mine, theirs = (pq.read_table(p.with_suffix(f".{table}.parquet")) for p in (often, page))
        key = mine.column_names[0]
        assert mine.sort_by(key).equals(theirs.sort_by(key)), table


# -- probes ----------------------------------------------------------------------------------------


def test_features_one_bar_early_are_caught_on_the_planted_market(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truncated, the past stays the same; a bar late, results change within their error; a bar early,
    they jump, and the probe says so."""
    report = printed(root, capsys, "--probe", "1", "--from", FIRST)
    assert [row["same"] for row in report["truncated"]] == [True]
    assert report["truncated"][0]["records"] > 1_000
    assert report["verdict"] == "clean"
    assert report["would_be_caught"]
    late, unshifted, early = report["shifts"]
    assert (late["ahead_s"], unshifted["ahead_s"], early["ahead_s"]) == (-1, 0, 1)
    assert unshifted["z"] > 10
    assert early["z"] < -10
    noise = math.hypot(unshifted["error_bps"], late["error_bps"])
    assert abs(late["gross_bps"] - unshifted["gross_bps"]) < 3 * noise
    assert early["gross_bps"] - unshifted["gross_bps"] > 3 * noise


class RecordingTrader(Trader):
    """A trader that records its predictions."""

    def __init__(self, *arguments: Any, recorded: lookahead.Recorded, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._recorded = recorded

    def _expect(self, symbol: str, t_ns: int, vector: Vector) -> Prediction:
        prediction = self._recorded[symbol, t_ns] = super()._expect(symbol, t_ns, vector)
        return prediction


def test_a_backtest_whose_features_are_one_bar_early_fails(root: Path) -> None:
    """The leak itself: at t the trader has the prediction of t + 1 s."""
    settings = live_settings(root)
    recorded: lookahead.Recorded = {}
    lake = Lake(settings.root, settings.source)
    span = span_of(lake, settings.market.symbols, FIRST, None)
    instruments, _ = instruments_of_span(lake, settings.market.symbols, span)
    model = load_model(settings, "champion", settings.market.symbols)
    unshifted = Run(
        settings, instruments, model, trader=partial(RecordingTrader, recorded=recorded)
    )
    replay(lake, instruments, span, [unshifted])
    early = partial(lookahead.ShiftedTrader, recorded=recorded, lead_s=1)
    report = lookahead.probe(settings, first=FIRST, truncations=0, trader=early)
    assert report["verdict"] == "LOOKS AHEAD"
    assert report["failed"]
    assert "LOOKS AHEAD" in lookahead.report_text(report)


class BiasedTrader(Trader):
    """A trader whose predictions depend on the run: each is a billionth of a bp higher."""

    runs = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        BiasedTrader.runs += 1
        self._bias_bps = 1e-9 * BiasedTrader.runs

    def _expect(self, symbol: str, t_ns: int, vector: Vector) -> Prediction:
        prediction = super()._expect(symbol, t_ns, vector)
        biased = prediction.expected_bps + self._bias_bps
        return msgspec.structs.replace(prediction, expected_bps=biased)


def test_records_that_change_with_later_events_fail(root: Path) -> None:
    report = lookahead.probe(
        live_settings(root), first=FIRST, last=f"{DAY}T00:00:32", truncations=1, trader=BiasedTrader
    )
    assert [row["same"] for row in report["truncated"]] == [False]
    assert report["failed"]
    assert "DIFFER" in lookahead.report_text(report)
