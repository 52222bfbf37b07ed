"""The door for research: what is judged there is judged as the pipeline judges, and every look counts."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import polars
import pyarrow as pa
import pytest
from sklearn.base import BaseEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline

from execution.algorithms.placement import MarketOrder
from market.bars import COLUMNS, Bars
from market.errors import L2Error
from market.lake import Lake
from market.settings import Desk, Settings
from market.units import days_between
from models_registry import ensemble, labels, store, training, trials
from models_registry.ensemble import BoosterParameters
from models_registry.own import OwnSource
from models_registry.state import database
from orchestration.backtest.command import backtest
from orchestration.backtest.foresight import file_of, foresee, record
from orchestration.backtest.run import load_model
from orchestration.backtest.span import instruments_of_span, span_of
from orchestration.research import Lab, Look
from tests.conftest import REPOSITORY
from tests.live.live_market import live_settings, promote
from tests.live.warm import planted as planted_minutes
from tests.live.warm import write
from tests.models_registry import planted

DAYS = days_between("2026-01-01", "2026-01-05")
RIDGE = make_pipeline(SimpleImputer(), Ridge())
LEAK = "ln(lead(mid_close, 61) over (order by t_ns) / lead(mid_close) over (order by t_ns))"


def write_bars(lake: Lake) -> None:
    """Bars of the planted dates: the mid, and as order flow what the features see of the drift."""
    names = list(COLUMNS)
    for day in DAYS:
        for stream, symbol in enumerate(planted.SYMBOLS):
            rows = planted.day(day, stream, 0.25)
            values = np.full((len(rows), len(names)), np.nan)
            for column, source in (("mid_close", "mid_close"), ("ofi_1", "signal")):
                values[:, names.index(column)] = rows[source].to_numpy()
            bars = Bars(t_ns=rows["t_ns"].to_numpy(), values=values)
            lake.write("bars", symbol, day, bars.to_arrow())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("research") / "lake"
    write_bars(planted.lake(root, len(DAYS), 0.25))
    return Lab(planted.settings(root))


def looks(lab: Lab) -> int:
    return trials.context(database(lab.settings, "looks"), "of no procedure").trials - 1


def counted(lab: Lab, look: Any, *given: Any, **more: Any) -> Look:
    """The look, which the trial registry counts once."""
    before = looks(lab)
    found: Look = look(*given, **more)
    assert found.number == looks(lab) == before + 1
    return found


def test_a_table_comes_in_three_kinds_with_its_units(lab: Lab) -> None:
    asked = ("bars", DAYS[1], DAYS[2], ["ETHUSDT"], ["mid_close", "spread_bps"])
    arrow = lab.table(*asked)
    assert arrow.column_names == ["t_ns", "mid_close", "spread_bps", "symbol"]
    assert len(arrow) == 2 * 7200
    assert arrow.schema.field("spread_bps").metadata[b"unit"].startswith(b"bps: ")
    assert lab.table(*asked, kind="polars").equals(polars.from_arrow(arrow))
    frame = lab.table(*asked, kind="pandas")
    assert frame.attrs["units"]["t_ns"] == "ns"
    assert frame["mid_close"].equals(arrow["mid_close"].to_pandas())
    count = lab.sql("select count(*) as n from bars where symbol = 'ETHUSDT' group by date")
    assert count["n"].to_pylist() == [7200] * len(DAYS)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda lab: Lab("no/such/lake"), "no/such/lake: no lake"),
        (lambda lab: lab.table("bar"), "bar: no such table; there are bars"),
        (lambda lab: lab.table("bars", columns=["mid"]), "bars: no column 'mid'"),
        (lambda lab: lab.table("bars", "yesterday"), "yesterday to : Invalid isoformat"),
        (lambda lab: lab.sql("select mid from bars"), "Referenced column"),
        (lambda lab: lab.column("x", "ofi_1 +"), r"x: ofi_1 \+: Parser Error"),
        (lambda lab: lab.column("x", lambda ofi_1: ofi_1.sum()), "x: gave shape \\(\\)"),
        (lambda lab: lab.feature("ofi"), "ofi: no feature of the training set"),
        (lambda lab: lab.feature("signal", 61), "61 s: there are labels of"),
        (lambda lab: lab.feature("signal", first="2027-01-01"), "training_set: nothing from 2027"),
        (lambda lab: lab.judge(LinearRegression()), "LinearRegression: ValueError: Input X contains"),
        (lambda lab: lab.judge(RIDGE, folds="combinatorial", groups=1), "combinatorial folds: 2 of 1"),
        (lambda lab: lab.judge(RIDGE, label="sharpe"), "label 'sharpe': expected one of return, cost_aw"),
        (lambda lab: lab.judge(label="cost_aware"), "label 'cost_aware': the ensemble learns returns"),
        (lambda lab: lab.study({"market": MarketOrder}), "no events"),
        (lambda lab: lab.backtest(pa.table({"t_ns": [1]}), "x"), "x: no column symbol"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line_and_is_no_look(lab: Lab, ask, said: str) -> None:
    before = looks(lab)
    with pytest.raises(L2Error, match=said) as raised:
        ask(lab)
    assert "\n" not in str(raised.value)
    assert looks(lab) == before


def test_a_feature_of_ones_own_has_the_ic_of_the_same_one_in_the_lake(lab: Lab) -> None:
    column = lab.column("pressure", "ofi_1")
    own, theirs = counted(lab, lab.feature, column), counted(lab, lab.feature, "signal")
    assert own.figures == theirs.figures
    assert 0.05 < own.figures["ic_low"] < own.figures["ic"] < own.figures["ic_high"]
    assert own.figures["days_of_its_sign"] == 1.0
    assert all(probe.passed for probe in own.probes)
    smooth = lab.column("smooth", "avg(ofi_1) over (order by t_ns rows 29 preceding)")
    same = lab.column("smooth", lambda ofi_1: ofi_1.rolling(30, min_periods=1).mean())
    for symbol in planted.SYMBOLS:
        np.testing.assert_allclose(smooth.values[symbol][1], same.values[symbol][1], atol=1e-9)
    assert lab.feature(smooth).figures["ic"] > own.figures["ic"]
    noise = lab.feature("noise_1").figures
    assert abs(noise["ic"]) < 3.5 / np.sqrt(noise["n_eff"])


def test_a_planted_leak_is_named_by_the_probes_and_the_verdict(lab: Lab) -> None:
    leak = lab.column("oracle", LEAK)
    failed = {probe.name: probe.text for probe in lab.feature(leak).probes if not probe.passed}
    assert set(failed) >= {"time_shift", "truncation"}
    assert all("oracle" in text for text in failed.values())
    judged = counted(lab, lab.judge, RIDGE, ["signal", leak])
    assert judged.evaluations[0].gate.verdict == "abstain"
    assert any("oracle" in reason for reason in judged.evaluations[0].gate.reasons)


class Primary(BaseEstimator):
    """The pipeline's booster of the primary horizon, as anyone would bring it."""

    def fit(self, X: Any, y: Any, sample_weight: Any) -> Primary:  # noqa: N803
        names = [f"f{n}" for n in range(X.shape[1])]
        made = ensemble.fit_booster(
            ensemble.bin_features(X, names, 1), y, BoosterParameters(), horizon_s=60, stride_s=5,
            seed=Settings().model.seed, threads=1, weight=sample_weight,
        )  # fmt: skip
        self.booster_ = made.booster()
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        return self.booster_.predict(X, num_threads=1)


def test_the_pipelines_primary_model_has_the_pipelines_figures(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "OBJECTIVES", ("return",))
    model = msgspec.structs.replace(lab.settings.model, horizons_s=(60,), trials=0)
    alone = Lab(msgspec.structs.replace(lab.settings, model=model))
    context = trials.context(database(alone.settings, "looks"), "one more procedure")
    own = counted(alone, alone.judge, Primary()).evaluations[0]
    source = planted.LakeSource(alone.lake, planted.SYMBOLS, (60,))
    ours = training.evaluate(source, alone.settings, planted.FEATURES, context=context)
    assert (own.ic, own.ic_lower, own.daily) == (ours.ic, ours.ic_lower, ours.daily)
    assert own.blocks == ours.blocks
    assert repr(own.results) == repr(ours.results)  # a NaN is no number's equal
    assert own.gate.rows[: len(ours.gate.rows)] == ours.gate.rows
    assert own.pooled is not None
    assert ours.pooled is not None
    assert np.array_equal(own.pooled.raw_bps, ours.pooled.raw_bps)
    assert [b.name for b in own.baselines] == ["majority"]


class Sides(BaseEstimator):
    """A classifier of two features that keeps what it was asked to learn."""

    learnt: ClassVar[list[np.ndarray]] = []

    def fit(self, x: np.ndarray, y: np.ndarray) -> Sides:
        self.learnt.append(y)
        self.line_ = Ridge().fit(np.nan_to_num(x), y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.line_.predict(np.nan_to_num(x))


@pytest.mark.parametrize("label", ["cost_aware", "triple_barrier"])
def test_a_model_may_learn_another_label_and_is_judged_by_returns(lab: Lab, label: str) -> None:
    Sides.learnt.clear()
    look = counted(lab, lab.judge, Sides(), ["signal", "echo"], label=label)
    y = Sides.learnt[-1]
    assert set(np.unique(y)) == {-1.0, 0.0, 1.0}
    assert all(probe.passed for probe in look.probes)
    (evaluation,) = look.evaluations
    assert evaluation.ic_lower > 0.1
    rows = planted.source(lab.lake).read(DAYS, ["realised_vol_300"])
    one = rows.where(rows.symbol == 0)
    half = one.spread_bps / 2e4
    bid, ask = one.mid * (1 - half), one.mid * (1 + half)
    if label == "cost_aware":
        made = labels.cost_aware(one.t_ns, bid, ask, 60, 0.0).label
    else:
        width = 1e-4 * one.features[:, 0].astype(float) * np.sqrt(60 / 300)
        made, _ = labels.triple_barrier(one.t_ns, bid, ask, width, 60)
    source = planted.source(lab.lake)
    own = OwnSource(source, DAYS, planted.SYMBOLS, {}).learning(label, lab.settings.model)
    read = own.read(DAYS, ["signal"], 5)
    mine = read.where(read.symbol == 0)
    assert np.array_equal(
        mine.labels_bps[:, -1], made[np.isin(one.t_ns, mine.t_ns)], equal_nan=True
    )
    assert mine.labels_bps.shape[1] == 1 + len(planted.HORIZONS)


def test_every_path_of_combinatorial_folds_tests_every_group_and_is_one_look(lab: Lab) -> None:
    look = counted(lab, lab.judge, RIDGE, ["signal", "echo"], folds="combinatorial", groups=4)
    assert len(look.evaluations) == 3
    assert [len(one.blocks) for one in look.evaluations] == [4, 4, 4]
    assert all(probe.passed for probe in look.probes)
    assert min(one.ic.rank for one in look.evaluations) > 0.1
    assert "| 3 | " in look.text


def test_looks_enter_the_deflated_sharpe_ratio(lab: Lab) -> None:
    def dsr(look: Look) -> tuple[float, str]:
        (row,) = (row for row in look.evaluations[0].gate.rows if row.name == "deflated sharpe")
        return row.value or 0.0, row.text

    first = lab.judge(RIDGE, ["noise_1"], name="noise")
    for _ in range(20):
        lab.feature("noise_2")
    value, text = dsr(lab.judge(RIDGE, ["noise_1"], name="noise"))
    assert value < dsr(first)[0]
    assert f"for {looks(lab)} trials" in text


def test_what_is_kept_is_a_run_that_no_alias_and_no_gate_reads(lab: Lab) -> None:
    look = lab.judge(RIDGE, ["signal"])
    run_id = lab.keep(look, "a note")
    with store.registry_client(lab.settings) as client:
        run = client.get_run(run_id)
        assert client.get_experiment(run.info.experiment_id).name == "synthetic-l2-research"
        assert run.data.metrics["ic_mean"] == look.figures["ic_mean"]
        assert run.data.tags["note"] == "a note"
        assert {"identity", "gate.verdict"}.isdisjoint(run.data.tags)
        assert store.latest_attempt(client, lab.settings.model_name) is None
        assert store.aliases_of(client, lab.settings.model_name) == {}
        assert client.search_registered_models() == []
        files = {file.path for file in client.list_artifacts(run_id, "pictures")}
    assert "pictures/net.png" in files


def test_the_example_of_the_docs_runs_and_draws(lab: Lab, tmp_path: Path) -> None:
    model = msgspec.to_builtins(lab.settings.model)
    lines = [f"{key} = {json.dumps(value)}" for key, value in model.items()]
    (Path(lab.lake.uri) / "l2.toml").write_text("\n".join(["[model]", *lines]))
    before = looks(lab)
    example = runpy.run_path(str(REPOSITORY / "docs" / "research_example.py"))
    found = example["main"](lab.lake.uri, str(tmp_path), ("signal", "echo"))
    names = ["signal", "pressure", "surge", "oracle", "ridge", "ridge"]
    assert [look.name for look in found] == names
    assert looks(lab) == before + len(names)
    pictures = {file.name: file.read_bytes()[:4] for file in tmp_path.iterdir()}
    assert pictures == dict.fromkeys(("research_columns.png", "research_models.png"), b"\x89PNG")


# -- over events -----------------------------------------------------------------------------------

DAY = "2026-03-02"
SPAN = (f"{DAY}T00:00:02", f"{DAY}T00:02:02")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("market")
    write(Lake(root, "synthetic"), planted_minutes("demo", DAY, 330))
    promote(root, follows="ofi_now")
    return Lab(live_settings(root))


def test_a_signal_that_is_the_champions_trades_as_the_champion(market: Lab, tmp_path: Path) -> None:
    # A signal states neither an error nor a half-life, which sizes and urgency read of a model.
    desk = Desk(size="fixed", urgency=False)
    market = Lab(msgspec.structs.replace(market.settings, desk=desk))
    settings, symbols = market.settings, market.settings.market.symbols
    span = span_of(market.lake, symbols, *SPAN)
    instruments, _ = instruments_of_span(market.lake, symbols, span)
    champion = load_model(settings, "champion", symbols)
    foresee(settings, instruments, span, [champion], symbols, tmp_path)
    parts = []
    for symbol in symbols:
        rows = np.fromfile(file_of(tmp_path, 0, symbol), record(len(champion.bundle.horizons_s)))
        rows = rows[rows["warm"]]
        columns = {name: rows[name].copy() for name in ("t_ns", "expected_bps")}
        parts.append(pa.table({"symbol": [symbol] * len(rows), **columns}))
    signal = polars.from_arrow(pa.concat_tables(parts))
    look = counted(market, market.backtest, signal, "mine", *SPAN)
    ours = backtest(settings, first=SPAN[0], last=SPAN[1], bounded=False, workers=1)
    assert ours["round_trips"] > 0
    for row, values in ours["rows"].items():
        assert look.figures[f"{row}.net_usdt"] == values["net_usdt"]
    assert "Against synthetic-l2 1 on the same events" in str(look)
    nothing = market.backtest(signal.with_columns(expected_bps=0.0), "nothing", *SPAN)
    assert nothing.figures["zero.net_usdt"] == 0.0


class Mine(MarketOrder):
    """An algorithm of one's own that happens to be one of ours."""


def test_an_algorithm_of_ones_own_runs_in_study_and_backtest_beside_ours(market: Lab) -> None:
    report = market.study(
        {"mine": Mine}, ("market",), *SPAN, deadline_s=5.0, every_s=20.0, queues=("power3",)
    )
    costs = {
        s.algorithm: s.total_bps for s in report.summaries if s.side == 0 and s.symbol == "BTCUSDT"
    }
    assert costs["mine"] == costs["market"]
    assert len(report.rows) > 0
    later = (f"{DAY}T00:00:30", SPAN[1])
    assert market.study({}, ("market",), *later, deadline_s=5.0, every_s=20.0).skipped == 0
    mine = counted(market, market.backtest, None, "mine", *SPAN, algorithm=Mine)
    ours = market.backtest(None, "market", *SPAN, algorithm="market")
    assert mine.figures == ours.figures
    with pytest.raises(L2Error, match="algorithm market: there is one of that name"):
        market.study({"market": Mine}, (), *SPAN)
