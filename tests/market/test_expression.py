"""The feature language: syntax, meaning, and parity of both engines."""

from __future__ import annotations

import numpy as np
import pytest
from feature_bars import random_bars, run_model, staged
from hypothesis import given, settings
from hypothesis import strategies as st

from market.bars import COLUMNS
from market.features.evaluator import Evaluator, Program
from market.features.expression import ExpressionError, Language, memory, text
from market.features.statement import Statement
from market.units import SECOND_NS, day_start_ns

DAY = "2026-01-02"
START = day_start_ns(DAY) // SECOND_NS
NAMES = list(COLUMNS)
LEADERS = {"BTCUSDT": "ETHUSDT", "ETHUSDT": "BTCUSDT"}


def both_engines(expressions, data, terms=None, dates=(DAY,)):
    """{(symbol, t_s): value} of each expression, from SQL and from the evaluator."""
    language = Language(COLUMNS, terms)
    named = {name: language.parse(text, name) for name, text in expressions.items()}
    sql = Statement(named, language.labels).render("{{ ref('stg_bars') }}", LEADERS, "BTCUSDT")
    tables = [
        staged(symbol, t * SECOND_NS, bars, list(dates)) for symbol, (t, bars) in data.items()
    ]
    rows = run_model(sql, tables[0].from_batches([b for t in tables for b in t.to_batches()]))
    batch = {name: {} for name in [*named, "warm"]}
    keys = list(zip(rows["symbol"].to_pylist(), rows["t_ns"].to_pylist(), strict=True))
    for name in batch:
        for (symbol, t_ns), value in zip(keys, rows[name].to_pylist(), strict=True):
            batch[name][symbol, t_ns // SECOND_NS] = value
    live = live_values(named, data)
    return batch, {name: {key: live[name][key] for key in batch[name]} for name in batch}


def live_values(named, data):
    evaluator = Evaluator(Program(named, NAMES), list(data), LEADERS, NAMES)
    live = {name: {} for name in [*named, "warm"]}
    rows = {symbol: dict(zip(t.tolist(), bars, strict=True)) for symbol, (t, bars) in data.items()}
    for second in sorted({second for table in rows.values() for second in table}):
        present = [symbol for symbol in data if second in rows[symbol]]
        for symbol in present:
            evaluator.push(symbol, second * SECOND_NS, rows[symbol][second])
        for symbol in present:
            vector, warm = evaluator.evaluate(symbol)
            live["warm"][symbol, second] = warm
            for name, value in zip(named, vector.tolist(), strict=True):
                live[name][symbol, second] = None if np.isnan(value) else value
    return live


def assert_equal(batch, live):
    for name, values in batch.items():
        for key, a in values.items():
            b = live[name][key]
            assert (a is None) == (b is None), f"{name} at {key}: SQL {a}, evaluator {b}"
            assert a is None or abs(a - b) <= 1e-9 * max(1, abs(a)), f"{name} at {key}: {a}, {b}"


def column_data(seed, n=400, missing=0.05, null=0.1):
    """Two symbols of random bars around midnight, with missing seconds and NULLs."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    data = {}
    for symbol in ("BTCUSDT", "ETHUSDT"):
        t = START - n // 2 + np.arange(n)
        bars = random_bars(rng, n)
        bars[rng.random(bars.shape) < null] = np.nan
        bars[:, NAMES.index("gap")] = rng.random(n) < 0.01
        keep = rng.random(n) >= missing
        data[symbol] = (t[keep], bars[keep])
    return data


# -- meaning: each function against numpy ------------------------------------------------------

A, B = NAMES.index("bid_q1"), NAMES.index("ofi_1")


def last(values, w, i):
    if i + 1 < 0.8 * w:
        return np.array([])
    part = values[max(0, i - w + 1) : i + 1]
    return part[~np.isnan(part)]


def pairs(a, b, w, i):
    if i + 1 < 0.8 * w:
        return np.array([]), np.array([])
    a, b = a[max(0, i - w + 1) : i + 1], b[max(0, i - w + 1) : i + 1]
    both = ~np.isnan(a) & ~np.isnan(b)
    return a[both], b[both]


REFERENCE = {
    "bid_q1 + ofi_1 * 2 - 1": lambda a, b, i: a[i] + b[i] * 2 - 1,
    "-bid_q1 / 4": lambda a, b, i: -a[i] / 4,
    "div(ofi_1, bid_q1)": lambda a, b, i: b[i] / a[i],
    "div(bid_q1, ofi_1 - ofi_1)": lambda a, b, i: np.nan,
    "log(ofi_1)": lambda a, b, i: np.log(b[i]) if b[i] > 0 else np.nan,
    "sqrt(ofi_1)": lambda a, b, i: np.sqrt(b[i]) if b[i] >= 0 else np.nan,
    "abs(ofi_1)": lambda a, b, i: abs(b[i]),
    "sign(ofi_1)": lambda a, b, i: np.sign(b[i]),
    "sin(ofi_1) + cos(ofi_1)": lambda a, b, i: np.sin(b[i]) + np.cos(b[i]),
    "clip(ofi_1, -1, 2)": lambda a, b, i: np.clip(b[i], -1, 2),
    "least(bid_q1, ofi_1)": lambda a, b, i: np.minimum(a[i], b[i]),
    "greatest(bid_q1, ofi_1)": lambda a, b, i: np.maximum(a[i], b[i]),
    "lag(ofi_1, 3)": lambda a, b, i: b[i - 3] if i >= 3 else np.nan,
    "lag(lag(ofi_1, 3), 2)": lambda a, b, i: b[i - 5] if i >= 5 else np.nan,
    "sum(ofi_1, 7)": lambda a, b, i: last(b, 7, i).mean() * 7 if len(last(b, 7, i)) else np.nan,
    "mean(ofi_1, 30)": lambda a, b, i: last(b, 30, i).mean() if len(last(b, 30, i)) else np.nan,
    "min(ofi_1, 9)": lambda a, b, i: min(last(b, 9, i), default=np.nan),
    "max(ofi_1, 9)": lambda a, b, i: max(last(b, 9, i), default=np.nan),
    "std(ofi_1, 30)": lambda a, b, i: last(b, 30, i).std() if len(last(b, 30, i)) else np.nan,
    "corr(ofi_1, bid_q1, 30)": lambda a, b, i: (
        np.corrcoef(*pairs(a, b, 30, i))[0, 1] if len(pairs(a, b, 30, i)[0]) > 1 else np.nan
    ),
    "slope(ofi_1, bid_q1, 30)": lambda a, b, i: (
        np.polyfit(*pairs(a, b, 30, i), 1)[0] if len(pairs(a, b, 30, i)[0]) > 1 else np.nan
    ),
    "sum(lag(ofi_1, 2), 5)": lambda a, b, i: (
        v.mean() * 5 if len(v := last(np.append([np.nan] * 2, b)[:-2], 5, i)) else np.nan
    ),
}


@pytest.mark.parametrize("expression", REFERENCE)
def test_functions_compute_what_numpy_computes(expression):
    (t, bars), *_ = column_data(seed=1, n=90, missing=0.0).values()
    bars[:, NAMES.index("gap")] = 0.0
    node = Language(COLUMNS).parse(expression)
    live = live_values({"x": node}, {"BTCUSDT": (t, bars)} | {"ETHUSDT": (t[:1], bars[:1])})
    for i, second in enumerate(t.tolist()):
        want = REFERENCE[expression](bars[:, A], bars[:, B], i)
        got = live["x"]["BTCUSDT", second]
        assert (got is None) == bool(np.isnan(want)), (i, want, got)
        assert got is None or got == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_every_function_is_the_same_in_both_engines():
    expressions = {f"x{n}": expression for n, expression in enumerate(REFERENCE)}
    expressions |= {
        "led": "lead(lag(ofi_1, 2)) + lag(lead(bid_q1), 2)",
        "led_sum": "lead(sum(ofi_1, 5)) - sum(lead(ofi_1) * bid_q1, 5)",
        "day": "day_s - lag(day_s, 5)",
        "term": "div(mean(gap_size, 20), std(lead(gap_size), 20))",
    }
    terms = {"gap_size": "div(bid_q1 - ask_q1, bid_q1 + ask_q1)"}
    assert_equal(*both_engines(expressions, column_data(seed=2), terms))


# A random expression over bars with NULLs, zeros, constants, missing seconds and values at both ends of
# the doubles is NULL at the same rows in both engines, and equal elsewhere.

_LEAVES = ["bid_q1", "ofi_1", "rv", "lag(ofi_1, 2)", "lead(ofi_1)", "3", "0.5"]
ROW = st.recursive(
    st.sampled_from(_LEAVES),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["log", "sqrt", "abs", "sign", "cos"]), inner).map(
            lambda p: f"{p[0]}({p[1]})"
        ),
        st.tuples(st.sampled_from(["div", "least", "greatest"]), inner, inner).map(
            lambda p: f"{p[0]}({p[1]}, {p[2]})"
        ),
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        inner.map(lambda one: f"clip({one}, -2, 5)"),
    ),
    max_leaves=5,
)
SERIES = ROW.map(lambda one: f"({one}) + 0 * bid_q1")
EXPRESSION = st.one_of(
    SERIES,
    st.tuples(st.sampled_from(["min", "max"]), ROW).map(lambda p: f"{p[0]}({p[1]} + 0 * rv, 4)"),
    # Divided by what is exact or far from zero: a quotient by a rounding error is nobody's value.
    st.sampled_from(["sum(sign(ofi_1), 5)", "std(clip(ofi_1, -9, 9), 6)"]).flatmap(
        lambda w: SERIES.map(lambda one: f"div({one}, {w}) - {w}")
    ),
    SERIES.map(lambda one: f"({one}) * corr(ofi_1, sign(bid_q1), 8)"),
)
AWKWARD = [0.0, 0.0, 1.0, -1.0, 1e-300, 1e300, -1e300, 1e99, 1e101, 7.5, np.inf, np.nan]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(EXPRESSION, min_size=24, max_size=24), st.integers(0, 2**31))
def test_random_expressions_agree_on_awkward_values(expressions, seed):
    data = column_data(seed, n=30)
    rng = np.random.Generator(np.random.Philox(key=seed + 1))
    for _, bars in data.values():
        for name in ("bid_q1", "ofi_1", "rv"):
            awkward = rng.random(len(bars)) < 0.6
            bars[awkward, NAMES.index(name)] = rng.choice(AWKWARD, int(awkward.sum()))
    assert_equal(*both_engines({f"x{n}": one for n, one in enumerate(expressions)}, data))


def test_a_negligible_variance_is_no_variance():
    cases = [
        ([5.0] * 20, 0.0),
        ([1e9, 1e9 + 1e-4] * 10, 0.0),
        ([1e9, 1e9 + 1e4] * 10, 0.0),
        ([1e9, 1e9 + 1e6] * 10, 5e5),
        ([1e-7, -1e-7] * 10, 0.0),
        ([0.01, -0.01] * 10, 0.01),
    ]
    t, bars = START + 1 + np.arange(120), random_bars(np.random.default_rng(3), 120)
    bars[:, B] = np.concatenate([values for values, _ in cases])
    expressions = {
        "std": "std(ofi_1, 20)",
        "z": "div(ofi_1, std(ofi_1, 20))",
        "corr": "corr(bid_q1, ofi_1, 20)",
        "slope": "slope(bid_q1, ofi_1, 20)",
    }
    for engine in both_engines(expressions, {"BTCUSDT": (t, bars)}):
        for n, (_, deviation) in enumerate(cases, 1):
            end = ("BTCUSDT", START + 20 * n)
            assert engine["std"][end] == pytest.approx(deviation, rel=1e-6)
            for name in ("z", "corr", "slope"):
                assert (engine[name][end] is None) == (deviation == 0.0)


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("sum(mean(ofi_1, 5), 5)", "sum() of a window"),
        ("lag(mean(ofi_1, 5), 5)", "lag() of a window"),
        ("ofi_1 / bid_q1", "use div()"),
        ("ofi_1 / 0", "use div()"),
        ("ofi_77", "no bar column or term named ofi_77"),
        ("ofi_1 ** 2", "not allowed"),
        ("keep(ofi_1)", "no function named keep"),
        ("__import__('os')", "no function named"),
        ("sum(ofi_1, 2.5)", "whole seconds"),
        ("sum(ofi_1, 3601)", "whole seconds from 1 to 3600"),
        ("sum(lag(ofi_1, 1), 3600)", "looks back 3601 s"),
        ("sum(ofi_1)", "takes 2 arguments"),
        ("sum(3, 60)", "of a constant"),
        ("clip(ofi_1, 2, 1)", "low < high"),
        ("lead(lead(ofi_1))", "leader has no leader"),
        ("3 + 4", "uses no column"),
        ("ofi_1 +", "invalid syntax"),
    ],
)
def test_a_bad_expression_is_an_error_with_its_place(expression, message):
    with pytest.raises(ExpressionError) as caught:
        Language(COLUMNS).parse(expression, "feature x")
    assert str(caught.value).startswith("feature x: ")
    assert message in str(caught.value)


def test_memory_is_the_look_back_of_a_value():
    language = Language(COLUMNS, {"ret": "ofi_1 - lag(ofi_1, 1)"})
    for expression, seconds in {
        "ofi_1": 1,
        "lag(ofi_1, 60)": 61,
        "sum(ofi_1, 60)": 60,
        "sum(ret, 60)": 61,
        "sum(lag(ret, 5), 60) + lag(ofi_1, 3)": 66,
    }.items():
        assert memory(language.parse(expression)) == seconds


def test_the_text_of_a_node_parses_to_the_same_node():
    language = Language(COLUMNS, {"ret": "log(div(mid_close, lag(mid_close, 1))) * 1e4"})
    for expression in [*REFERENCE, "corr(ret, lag(lead(ret), 1), 300)", "lead(ret) * 0.25 - -ret"]:
        node = language.parse(expression)
        assert text(language.parse(text(node))) == text(node)
