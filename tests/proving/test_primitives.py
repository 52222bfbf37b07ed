"""A second taken apart and put together: nothing is lost, and nothing impossible comes out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.bars import Bars, bars_from_chunks
from market.columns import COLUMNS, C
from market.instruments import BUILT_IN
from market.settings import Settings
from proving.synthetic import generate, profile, touch
from proving.synthetic.primitives import NAMES, P, compose, decompose, trades

LOT = BUILT_IN["BTCUSDT"].lot_size
#: Columns that compose does not write: the touch's, what trades derive, tickers, and the record's.
ELSEWHERE = {
    *touch.COLUMNS, "gap", "run_length", "trade_age_s", "last_price", "mark", "index_price",
    "basis_bps", "funding_rate", "funding_mean", "funding_in_s", "open_interest", "turnover_24h",
    *(f"hawkes_{side}_{tau}" for side in ("buy", "sell") for tau in (1, 10, 100)),
}  # fmt: skip


@pytest.fixture(scope="module")
def bars() -> Bars:
    chunks = generate(profile("default"), 6, "BTCUSDT", "2026-03-01", 0, 900)
    return bars_from_chunks(chunks, BUILT_IN["BTCUSDT"], Settings())


def shell(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Bars with the columns of the touch alone."""
    out = np.full_like(values, np.nan)
    for name in touch.COLUMNS:
        out[:, getattr(C, name)] = values[:, getattr(C, name)]
    return out


def test_compose_inverts_decompose(bars: Bars) -> None:
    values = bars.values[60:]
    again = shell(values)
    compose(decompose(values), again, LOT)
    for name in set(COLUMNS) - ELSEWHERE:
        before, after = values[:, getattr(C, name)], again[:, getattr(C, name)]
        assert (np.isnan(before) == np.isnan(after)).all(), name
        same = np.isclose(before, after, rtol=1e-6, atol=1e-9, equal_nan=True)
        # A sweep that ends on the second level costs a little less than the gap to it.
        assert same.mean() > (0.9 if name.startswith("sweep") else 0.999), name


# Whatever values the primitives take, the second is one that could have been.


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1e6))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_composed_bars_satisfy_every_constraint(bars: Bars, seed: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    values = shell(bars.values[60:160])
    parts = rng.standard_normal((100, len(NAMES))) * width * rng.random(len(NAMES))
    parts[:, P["bid_reach"]] = np.abs(parts[:, P["bid_reach"]]) * 100
    parts[:, [P["buy_n"], P["sell_n"]]] = rng.integers(0, 40, (100, 2))
    compose(parts, values, LOT)
    bar = {name: values[:, place] for place, name in enumerate(COLUMNS)}
    reached = np.zeros(100, bool)
    for side in ("bid", "ask"):
        assert (bar[f"{side}_q1"] >= LOT * 0.999).all()
        assert (bar[f"{side}_q5"] >= bar[f"{side}_q1"]).all()
        assert (bar[f"{side}_q10"] >= bar[f"{side}_q5"]).all()
        bands = [bar[f"{side}_d{bps}"] for bps in (1, 2, 3)]
        for near, far in zip(bands, [*bands[1:], bar[f"{side}_depth"]], strict=True):
            assert not (near > far * (1 + 1e-12)).any()
        for bps, band in zip((1, 2, 3), bands, strict=True):
            assert (np.isnan(band) == (bar[f"{side}_reach"] < bps)).all()
            reached |= np.isnan(band)
        assert (bar[f"{side}_add"] >= bar[f"{side}_add_1"] - 1e-9).all()
        assert (bar[f"{side}_gap"] >= 1).all()
    for taker in ("buy", "sell"):
        n, qty = bar[f"{taker}_n"], bar[f"{taker}_qty"]
        assert ((n == 0) == (qty == 0)).all()
        assert (qty >= n * LOT * 0.999).all()
        assert (bar[f"rpi_{taker}_qty"] <= qty + 1e-9).all()
        costs = [bar[f"sweep_{taker}_{size}"] for size in ("10k", "100k", "1m")]
        assert not (costs[0] > costs[1] + 1e-9).any()
        assert not (costs[1] > costs[2] + 1e-9).any()
        for cost in costs:
            reached |= np.isnan(cost)
    assert (bar["truncated"] == reached).all()
    assert (np.isnan(bar["vwap"]) == (bar["buy_n"] + bar["sell_n"] == 0)).all()
    assert (bar["max_trade"] <= np.maximum(bar["buy_qty"], bar["sell_qty"]) + 1e-9).all()


def test_trades_are_counted_into_hawkes_sums_and_runs() -> None:
    values = np.zeros((200, len(COLUMNS)))
    values[:, C.mid_close], values[:, C.spread_bps] = 100.0, 0.2
    values[:, C.buy_n] = 3.0
    values[150:, C.buy_n], values[150:, C.sell_n] = 0.0, 1.0
    age = np.full(200, 0.5)
    trades(values, age, np.zeros(200), np.random.default_rng(1).random((200, 64)), 0.5)
    assert values[:150, C.run_length].tolist() == [3.0 * n for n in range(1, 151)]
    assert values[199, C.run_length] == -50
    assert (values[:, C.trade_age_s] == 0.5).all()
    assert values[0, C.last_price] == pytest.approx(100 * (1 + 0.1e-4))
    assert values[199, C.last_price] == pytest.approx(100 * (1 - 0.1e-4))
    # Three a second for ever: a sum of e^(-age/100) near 3 * 100 of them.
    steady = 3 * sum(np.exp(-(n + 0.75) / 100) for n in range(150))
    assert values[149, C.hawkes_buy_100] == pytest.approx(steady, rel=0.01)


def test_hawkes_sums_decay_in_seconds_without_trades() -> None:
    values = np.zeros((3, len(COLUMNS)))
    values[:, C.mid_close], values[:, C.spread_bps] = 100.0, 0.2
    values[0, C.buy_n] = 1.0
    trades(values, np.full(3, 0.25), np.zeros(3), np.zeros((3, 64)), 0.0)
    ages = values[:, C.trade_age_s]
    assert ages.tolist() == [0.25, 1.25, 2.25]
    assert values[:, C.hawkes_buy_1] == pytest.approx(np.exp(-ages))
    assert (values[:, C.run_length] == 1).all()
