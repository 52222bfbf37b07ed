"""The features: one definition, two engines, the same values row by row; no look-ahead."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from feature_bars import NAMES, random_bars, run_model, staged
from hypothesis import given, settings
from hypothesis import strategies as st

from market.bars import COLUMNS, Bars, make_bars
from market.features import (
    FEATURES,
    FeatureEvaluator,
    feature_hash,
    feature_names,
    formula,
    is_of_book,
    nodes,
    parse,
    read_table,
)
from market.features.definitions import TERMS
from market.features.expression import ExpressionError, memory
from market.features.rendering import generated, render_model
from market.ingest import ingest
from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS, day_start_ns

REPOSITORY = Path(__file__).resolve().parents[2]
DAY, NEXT = "2026-01-02", "2026-01-03"
MIDNIGHT = day_start_ns(NEXT) // SECOND_NS
SYMBOLS = ("BTCUSDT", "ETHUSDT")


def model(data, dates):
    """(symbols, t_s, features float64 (rows, features), warm) of the dbt model."""
    tables = [staged(symbol, t * SECOND_NS, bars, dates) for symbol, (t, bars) in data.items()]
    rows = run_model(render_model(), pa.concat_tables(tables))
    values = [rows[name].to_numpy(zero_copy_only=False) for name in feature_names()]
    seconds = rows["t_ns"].to_numpy() // SECOND_NS
    return rows["symbol"].to_pylist(), seconds, np.column_stack(values), rows["warm"].to_pylist()


def live(data, since=0):
    """{(symbol, t_s): (features, warm)} of the evaluator, pushed second by second."""
    evaluator = FeatureEvaluator(SYMBOLS)
    rows = {symbol: dict(zip(t.tolist(), bars, strict=True)) for symbol, (t, bars) in data.items()}
    found = {}
    for second in sorted(set().union(*rows.values())):
        present = [symbol for symbol in rows if second in rows[symbol]]
        for symbol in present:
            evaluator.push(symbol, second * SECOND_NS, rows[symbol][second])
        for symbol in present:
            if second >= since:
                found[symbol, second] = evaluator.evaluate(symbol)
    return found


def assert_parity(data, dates):
    symbols, seconds, values, warm = model(data, dates)
    found = live(data)
    assert len(seconds)
    for symbol, second, row, ready in zip(symbols, seconds.tolist(), values, warm, strict=True):
        vector, live_warm = found[symbol, second]
        assert live_warm == ready, (symbol, second)
        off = np.isnan(row) != np.isnan(vector)
        off |= np.abs(row - vector) > 1e-9 * np.maximum(1.0, np.abs(row))
        assert not off.any(), [
            (symbol, second, name, a, b)
            for name, a, b, bad in zip(feature_names(), row, vector, off, strict=True)
            if bad
        ]
    return values, warm


def two_symbols(seed, start, n, missing=0.0, null=0.0):
    rng = np.random.Generator(np.random.Philox(key=seed))
    data = {}
    for symbol, price in zip(SYMBOLS, (60_000.0, 3_000.0), strict=True):
        bars = random_bars(rng, n, price)
        bars[rng.random(bars.shape) < null] = np.nan
        keep = rng.random(n) >= missing
        data[symbol] = ((start + np.arange(n))[keep], bars[keep])
    return data


HOUR = {"volume_rel_60", "realised_vol_3600", "vol_ratio_300_3600"}

# -- parity ------------------------------------------------------------------------------------


def test_a_whole_record_is_equal_in_both_engines_warm_and_not_null():
    values, warm = assert_parity(two_symbols(1, MIDNIGHT - 3650, 4000), [DAY, NEXT])
    assert sum(warm) == 2 * (4000 - 719)
    missing = np.isnan(values[warm]).sum(axis=0)
    assert dict(zip(feature_names(), missing.tolist(), strict=True)) == {
        name: 2 * (2880 - 720) if name in HOUR else 2 * 181 if name == "return_900" else 0
        for name in feature_names()
    }


# With missing seconds, values, or a symbol for a while, with constants and values out of scale, both
# engines give the same rows, across midnight.

DEFECTS = st.lists(
    st.tuples(
        st.sampled_from(["absent", "null", "constant", "near", "zero", "huge", "tiny", "gap"]),
        st.sampled_from(SYMBOLS),
        st.integers(0, 500),
        st.integers(1, 300),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=30),
    ),
    min_size=2,
    max_size=8,
)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(DEFECTS, st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 0.6]))
def test_defective_bars_are_equal_in_both_engines(defects, seed, missing):
    data = two_symbols(seed, MIDNIGHT - 300, 600, missing, null=missing / 10)
    for kind, symbol, first, length, columns in defects:
        t, bars = data[symbol]
        hit = (t >= MIDNIGHT - 300 + first) & (t < MIDNIGHT - 300 + first + length)
        places = np.ix_(hit, [NAMES.index(name) for name in columns])
        if kind == "absent":
            data[symbol] = (t[~hit], bars[~hit])
        elif kind == "gap":
            bars[hit, NAMES.index("gap")] = 1.0
        elif kind == "constant":
            bars[places] = bars[0, places[1]] if len(bars) else 1.0
        elif kind == "near" and len(bars):
            noise = np.random.Generator(np.random.Philox(seed)).standard_normal(bars[places].shape)
            bars[places] = bars[0, places[1]] * (1 + 10.0 ** -(first % 8 + 2) * noise)
        elif kind in {"huge", "tiny"}:
            bars[places] *= 1e150 if kind == "huge" else 1e-150
        else:
            bars[places] = np.nan if kind == "null" else 0.0
    assert_parity(data, [DAY, NEXT])


# Near a constant: every column varies by a relative size of its own between 1e-9 and 1e-3.


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_near_constant_bars_are_equal_in_both_engines(seed):
    rng = np.random.Generator(np.random.Philox(seed))
    data = two_symbols(seed, MIDNIGHT - 300, 600)
    for _, bars in data.values():
        near = rng.random(len(NAMES)) < 0.6
        near[NAMES.index("gap")] = False
        apart = 10.0 ** rng.uniform(-9, -3, len(NAMES)) * rng.standard_normal(bars.shape)
        bars[:, near] = (bars[0] * (1 + apart))[:, near]
    assert_parity(data, [DAY, NEXT])


# Far from zero: from some second on, most unbounded columns have an offset of their own, 1e5 to 1e8 (in
# base units more than there are coins), the ten levels' flow the same one. Differences of large sums
# must not be lost in rounding.

BOUNDED = {"share", "log s", "0/1"}
LEVELS = [NAMES.index(f"ofi_{level}") for level in range(1, 11)]


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_offset_bars_are_equal_in_both_engines(seed):
    rng = np.random.Generator(np.random.Philox(seed))
    free = np.array([unit not in BOUNDED for unit, _ in COLUMNS.values()])
    data = two_symbols(seed, MIDNIGHT - 300, 600)
    for _, bars in data.values():
        offset = 10.0 ** rng.uniform(5, 8, len(NAMES)) * (free & (rng.random(len(NAMES)) < 0.6))
        begin = rng.integers(0, 500, len(NAMES))
        offset[LEVELS], begin[LEVELS] = offset[LEVELS[0]], begin[LEVELS[0]]
        bars += np.where(np.arange(len(bars))[:, None] < begin, 0, offset)
    assert_parity(data, [DAY, NEXT])


WITHOUT_TICKER = {name for name, node in nodes().items() if memory(node) <= 400} - {"liq_tilt_300"}
TICKER = {
    *(one.name for one in FEATURES if one.family == "perpetual" and not one.name.startswith("liq")),
    "activity_day_300",
    "funding_sin",
    "funding_cos",
}


@pytest.mark.parametrize(
    ("file", "dates", "rows", "present", "absent"),
    [
        # Eight minutes without tickers, across midnight: everything but what tickers say.
        (
            "usdm-20240718.frames.zst",
            ["2024-07-18", "2024-07-19"],
            900,
            WITHOUT_TICKER - TICKER,
            TICKER,
        ),
        # A fast market, and a clock that steps back.
        ("usdm-20240808.frames.zst", ["2024-08-08"], 600, WITHOUT_TICKER - TICKER, TICKER),
        # Forty quiet seconds with tickers.
        (
            "bybit-linear-20260809.frames.zst",
            ["2026-08-09"],
            80,
            {"basis_now", "premium_now", "funding_now", "funding_sin"},
            {"return_60", "oi_change_60", "lead_return_60", "activity_day_300"},
        ),
    ],
)
def test_recorded_bars_are_equal_in_both_engines(
    file, dates, rows, present, absent, data_dir, tmp_path
):
    lake, config = Lake(tmp_path, "recorded"), Settings()
    ingest(lake, [str(data_dir / file)], [(s, day) for s in SYMBOLS for day in dates], config)
    parts: dict[str, list[Bars]] = {symbol: [] for symbol in SYMBOLS}
    for symbol, day in lake.partitions("events"):
        make_bars(lake, symbol, day, config)
        table = lake.read("bars", symbol, day)
        columns = [table[name].to_numpy() for name in NAMES]
        parts[symbol].append(
            Bars(t_ns=table["t_ns"].to_numpy(), values=np.column_stack(columns).astype(float))
        )
    data = {
        symbol: (
            np.concatenate([part.t_ns for part in found]) // SECOND_NS,
            np.concatenate([part.values for part in found]),
        )
        for symbol, found in parts.items()
    }
    values, _ = assert_parity(data, dates)
    assert len(values) >= rows
    exists = dict(zip(feature_names(), ~np.isnan(values).all(axis=0), strict=True))
    assert all(exists[name] for name in present)
    assert not any(exists[name] for name in absent)


def test_bits_do_not_depend_on_the_dates_and_symbols_built_together():
    data = two_symbols(5, MIDNIGHT - 5000, 9000, missing=0.01)
    symbols, seconds, together, _ = model(data, [DAY, NEXT])
    apart = {}
    for date in (DAY, NEXT):
        for symbol in SYMBOLS:
            tables = [staged(one, t * SECOND_NS, bars, [date]) for one, (t, bars) in data.items()]
            stg_bars = pa.concat_tables(tables)
            asked = pa.compute.equal(stg_bars["symbol"], symbol)
            wanted = pa.compute.and_(stg_bars["wanted"], asked)
            at = stg_bars.column_names.index("wanted")
            rows = run_model(render_model(), stg_bars.set_column(at, "wanted", wanted), threads=1)
            vectors = np.column_stack([rows[n].to_numpy(False) for n in feature_names()])
            for t_ns, vector in zip(rows["t_ns"].to_pylist(), vectors, strict=True):
                apart[symbol, t_ns // SECOND_NS] = vector
    assert len(apart) == len(seconds)
    for symbol, second, row in zip(symbols, seconds.tolist(), together, strict=True):
        assert row.tobytes() == apart[symbol, second].tobytes()


# -- look-ahead and look-back -------------------------------------------------------------------


def test_no_look_ahead_bars_after_t_change_nothing_at_t():
    data = two_symbols(6, MIDNIGHT - 400, 800, missing=0.02)
    cut = MIDNIGHT + 100
    other = two_symbols(7, MIDNIGHT - 400, 800)
    changed = {
        symbol: (
            np.concatenate([t[t <= cut], other[symbol][0][other[symbol][0] > cut]]),
            np.concatenate([bars[t <= cut], other[symbol][1][other[symbol][0] > cut]]),
        )
        for symbol, (t, bars) in data.items()
    }
    _, seconds, values, _ = model(data, [DAY, NEXT])
    _, later, others, _ = model(changed, [DAY, NEXT])
    before, same = seconds <= cut, later <= cut
    assert values[before].tobytes() == others[same].tobytes()
    assert values[~before].tobytes() != others[~same].tobytes()


def test_bars_older_than_the_look_back_change_nothing():
    old, new = two_symbols(8, MIDNIGHT, 4200), two_symbols(9, MIDNIGHT, 4200)
    last = MIDNIGHT + 4199
    mixed = {
        symbol: (t, np.where((t > last - 3600)[:, None], bars, old[symbol][1]))
        for symbol, (t, bars) in new.items()
    }
    for symbol in SYMBOLS:
        long, _ = live(new, since=last)[symbol, last]
        short, _ = live(mixed, since=last)[symbol, last]
        assert long.tobytes() == short.tobytes()


# -- the live evaluator -------------------------------------------------------------------------


def test_an_evaluator_warmed_up_from_history_equals_the_old_one():
    data = two_symbols(10, MIDNIGHT, 8200, missing=0.001)
    last = max(int(t[-1]) for t, _ in data.values()) - 3
    data = {symbol: (t[t <= last], bars[t <= last]) for symbol, (t, bars) in data.items()}
    old = live(data, since=last - 50)
    fresh = FeatureEvaluator(SYMBOLS)
    for symbol, (t, bars) in data.items():
        recent = t > last - 3700
        fresh.push_many(symbol, t[recent] * SECOND_NS, bars[recent])
    for symbol, (t, _) in data.items():
        vector, warm = fresh.evaluate(symbol)
        assert vector.tobytes() == old[symbol, int(t[-1])][0].tobytes()
        assert warm == old[symbol, int(t[-1])][1]


@pytest.mark.parametrize("seed", range(4))
def test_features_chosen_at_any_time_have_the_bits_of_all_together(seed):
    """From the next second on, NULLs of uncovered windows and warmth included; the others are NaN."""
    generator = np.random.default_rng(seed)
    data = two_symbols(seed, MIDNIGHT, 1200, missing=0.2 * (seed % 2))
    names = np.array(feature_names())
    whole, part = FeatureEvaluator(SYMBOLS), FeatureEvaluator(SYMBOLS, ())
    rows = {symbol: dict(zip(t.tolist(), bars, strict=True)) for symbol, (t, bars) in data.items()}
    chosen = np.zeros(len(names), bool)
    for n, second in enumerate(sorted(set().union(*rows.values()))):
        if n % 200 == 50:
            chosen = np.isin(names, generator.choice(names, 25))
            part.choose(set(names[chosen]))
        present = [symbol for symbol in rows if second in rows[symbol]]
        for symbol in present:
            for evaluator in (whole, part):
                evaluator.push(symbol, second * SECOND_NS, rows[symbol][second])
        for symbol in present:
            (expected, warm), (found, found_warm) = whole.evaluate(symbol), part.evaluate(symbol)
            assert found[chosen].tobytes() == expected[chosen].tobytes()
            assert np.isnan(found[~chosen]).all()
            assert found_warm == warm
    with pytest.raises(ValueError, match="no feature nonsense"):
        part.choose(["nonsense"])


def test_a_late_leaders_bar_counts_from_the_next_second():
    data = two_symbols(11, MIDNIGHT, 100)
    on_time, late = FeatureEvaluator(SYMBOLS[:1]), FeatureEvaluator(SYMBOLS[:1])
    (t, btc), (_, eth) = data.values()
    for n, second in enumerate(t.tolist()):
        on_time.push("ETHUSDT", second * SECOND_NS, eth[n])
        for evaluator in (on_time, late):
            evaluator.push("BTCUSDT", second * SECOND_NS, btc[n])
            vector, _ = evaluator.evaluate("BTCUSDT")
        assert np.isnan(vector[feature_names().index("lead_queue_now")])
        late.push("ETHUSDT", second * SECOND_NS, eth[n])
    assert on_time.evaluate("BTCUSDT")[0].tobytes() == late.evaluate("BTCUSDT")[0].tobytes()


def test_bars_out_of_order_or_of_wrong_shape_are_errors():
    evaluator = FeatureEvaluator(SYMBOLS[:1])
    bar = random_bars(np.random.default_rng(13), 1)[0]
    with pytest.raises(ValueError, match="no bar has been pushed"):
        evaluator.evaluate("BTCUSDT")
    evaluator.push("BTCUSDT", 10 * SECOND_NS, bar)
    for symbol, t_ns, row, message in (
        ("XRPUSDT", 11 * SECOND_NS, bar, "not among the evaluator's symbols"),
        ("BTCUSDT", 10 * SECOND_NS, bar, "once and in order"),
        ("BTCUSDT", 11 * SECOND_NS + 1, bar, "whole second"),
        ("BTCUSDT", 11 * SECOND_NS, bar[:-1], "has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.push(symbol, t_ns, row)


# -- the definitions ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", generated())
def test_committed_files_are_up_to_date_with_the_definitions(path):
    stands = (REPOSITORY / path).read_text()
    assert stands == generated()[path], f"{path} is stale: run make generate"


def test_the_set_is_broad_and_every_feature_is_documented():
    assert len(FEATURES) >= 120
    assert len({formula(feature) for feature in FEATURES}) >= 60
    assert sum(map(is_of_book, FEATURES)) >= 84
    assert {feature.family for feature in FEATURES} == {
        *("order flow", "imbalance", "micro-price", "shape", "stability", "cross-level"),
        *("trade flow", "toxicity", "volatility", "return", "perpetual", "leader", "time"),
    }
    assert len(set(feature_names())) == len(FEATURES)
    assert {"realised_vol_300", "return_60", "tfi_60", "ofi_60", "spread_bps_now"} <= set(
        feature_names()
    )
    for feature in FEATURES:
        assert feature.rationale.endswith(".")
        assert feature.source
        assert feature.expected_sign in {-1, 0, 1, None}


def test_windows_and_levels_are_one_formula_and_prices_are_not_the_book():
    named = {feature.name: feature for feature in FEATURES}
    for one, other in (("ofi_15", "ofi_900"), ("sweep_tilt_10k_now", "sweep_tilt_1m_now")):
        assert formula(named[one]) == formula(named[other])
    assert formula(named["ofi_60"]) != formula(named["tfi_60"])
    assert is_of_book(named["micro_now"])
    assert is_of_book(named["lead_ofi_15"])
    assert not is_of_book(named["return_60"])
    assert not is_of_book(named["premium_now"])


def test_every_term_is_used_by_a_feature():
    used = " ".join([*TERMS.values(), *(feature.expression for feature in FEATURES)])
    for term in TERMS:
        assert re.search(rf"\b{term}\b", used), term


# Multiplying every price by one factor changes no feature: none depends on the price level. Notionals
# scale with prices.

PRICES = {
    name for name, (unit, _) in COLUMNS.items() if unit in {"quote", "quote/bps", "quote/bps2"}
}


def test_no_feature_depends_on_the_price_level():
    data = two_symbols(14, MIDNIGHT, 1000)
    scaled = {symbol: (t, bars.copy()) for symbol, (t, bars) in data.items()}
    for _, bars in scaled.values():
        bars[:, [NAMES.index(name) for name in PRICES]] *= 2.0
    last = MIDNIGHT + 999
    for symbol in SYMBOLS:
        before, _ = live(data, since=last)[symbol, last]
        after, _ = live(scaled, since=last)[symbol, last]
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-9)


def test_named_features_are_in_the_units_that_others_rely_on():
    data = two_symbols(15, MIDNIGHT, 1000)
    t, bars = data["BTCUSDT"]
    column = {name: bars[:, k] for k, name in enumerate(NAMES)}
    vector, _ = live(data, since=int(t[-1]))["BTCUSDT", int(t[-1])]
    got = dict(zip(feature_names(), vector.tolist(), strict=True))
    buys, sells = column["buy_qty"][-60:].sum(), column["sell_qty"][-60:].sum()
    assert got["realised_vol_300"] == pytest.approx(np.sqrt(column["rv"][-300:].sum()) * 1e4)
    assert got["return_60"] == pytest.approx(
        np.log(column["mid_close"][-1] / column["mid_close"][-61]) * 1e4
    )
    assert got["tfi_60"] == pytest.approx((buys - sells) / (buys + sells))
    assert got["ofi_60"] == pytest.approx(
        column["ofi_1"][-60:].sum() / column["depth_norm"][-60:].mean()
    )
    assert got["spread_bps_now"] == column["spread_bps"][-1]


def test_the_hash_follows_meaning_and_order():
    assert re.fullmatch(r"[0-9a-f]{16}", feature_hash())
    assert list(nodes()) == list(feature_names())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("== x\nspread  +  me\n    spread_bps + nothing\n    | Why.", "named nothing"),
        ("== x\nspread_bps  +  me\n    spread_bps\n    | Why.", "the name is taken"),
        ("== x\nspread +  me", "line 2: cannot be read: spread"),
    ],
)
def test_a_bad_definition_is_an_error_that_names_it(table, message):
    with pytest.raises(ExpressionError, match=message):
        parse(read_table(table))
