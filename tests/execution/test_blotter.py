"""The blotter's books balance to the last unit, and its round trips add up to them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.account import Account, fee_e8, rate_of_bps, value_e8
from execution.blotter import Blotter, EntryReason, Trade, break_even_bps, capacity_usdt
from execution.orders import Filled, Liquidity
from market.instruments import BUILT_IN
from market.settings import FEE_ROWS_BPS
from market.units import E8

BTC = BUILT_IN["BTCUSDT"]


def fill(n: int, side: int, lots: int, price: int, maker: bool, row: str = "vip0") -> Filled:
    liquidity = Liquidity.MAKER if maker else Liquidity.TAKER
    rate = rate_of_bps(FEE_ROWS_BPS[row][maker])
    return Filled(
        client_id=f"o-{n}",
        time_ns=1_000 + n,
        venue_ns=1_000 + n,
        exec_id=f"o-{n}/1",
        symbol="BTCUSDT",
        side=side,
        qty_lots=lots,
        price_ticks=price,
        liquidity=liquidity,
        fee_e8=fee_e8(value_e8(BTC, price, lots), rate),
        leaves_lots=0,
    )


FILLS = st.lists(
    st.tuples(
        st.sampled_from((1, -1)),
        st.integers(1, 50),
        st.integers(580_000, 620_000),
        st.booleans(),
        st.integers(-1_000, 1_000),
    ),
    min_size=1,
    max_size=30,
)


@given(FILLS, st.integers(580_000, 620_000), st.sampled_from(sorted(FEE_ROWS_BPS)))
def test_equity_at_a_fee_row_is_that_of_an_account_that_pays_it(
    made: list[tuple[int, int, int, bool, int]], mid: int, row: str
) -> None:
    """Invariant, to the last unit at 1e-8: the row's equity is that of an account that really paid it."""
    blotter, account = Blotter({"BTCUSDT": BTC}, FEE_ROWS_BPS), Account({"BTCUSDT": BTC})
    for n, (side, lots, price, maker, paid) in enumerate(made):
        executed = fill(n, side, lots, price, maker, row)
        blotter.filled(executed)
        account.apply(executed)
        blotter.funded("BTCUSDT", paid, n)
        account.holdings["BTCUSDT"].funding_e8 += paid
    assert blotter.totals["BTCUSDT"].fees_e8[row] == account.holdings["BTCUSDT"].fees_e8
    expected = account.equity_e8({"BTCUSDT": mid})
    assert round(blotter.equity({"BTCUSDT": float(mid)})[row] * E8) == expected


@given(FILLS)
def test_round_trips_sum_to_the_totals_once_flat(
    made: list[tuple[int, int, int, bool, int]],
) -> None:
    """Invariant: once flat, the net result of the round trips is the equity at every fee row."""
    blotter = Blotter({"BTCUSDT": BTC}, FEE_ROWS_BPS)
    for n, (side, lots, price, maker, _) in enumerate(made):
        blotter.filled(fill(n, side, lots, price, maker))
    held = blotter.totals["BTCUSDT"].lots
    if held:
        blotter.filled(fill(len(made), -1 if held > 0 else 1, abs(held), 600_000, False))
    for row, equity in blotter.equity({}).items():
        brought = math.fsum(trade.net_usdt(row) for trade in blotter.trades)
        assert brought == pytest.approx(equity, abs=1e-6)
    opened = sum(trade.turnover_usdt for trade in blotter.trades)
    assert opened == pytest.approx(blotter.totals["BTCUSDT"].turnover_e8 / E8)
    assert all(trade.lots > 0 and trade.entry_ns <= trade.exit_ns for trade in blotter.trades)


def test_a_reversal_ends_one_round_trip_and_begins_the_next() -> None:
    blotter = Blotter({"BTCUSDT": BTC}, FEE_ROWS_BPS)
    for regime, executed in (
        ("calm", fill(0, 1, 10, 600_000, True)),
        ("wild", fill(1, -1, 25, 600_600, False)),
        ("over", fill(2, 1, 15, 600_300, False)),
    ):
        reason = EntryReason(regime=regime, expected_bps=1.0, sweeps_bps=(0.1, 0.2, 0.3))
        blotter.opened("BTCUSDT", reason)
        blotter.filled(executed)
    first, second = blotter.trades
    assert (first.side, first.regime, first.lots) == (1, "calm", 10)
    assert (second.side, second.regime, second.lots) == (-1, "wild", 15)
    # 0.010 BTC from 60,000 to 60,060; 0.015 BTC from 60,060 to 60,030
    assert first.gross_usdt == pytest.approx(0.6)
    assert second.gross_usdt == pytest.approx(0.45)
    assert first.fees_vip0_usdt == pytest.approx(600 * 2e-4 + 600.6 * 5.5e-4)
    assert second.fees_vip3_usdt == pytest.approx((900.9 + 900.45) * 3.5e-4)
    assert second.net_usdt_zero == second.gross_usdt
    assert first.maker_share == pytest.approx(600 / 1200.6)


def test_the_break_even_fee_makes_the_net_result_zero() -> None:
    assert break_even_bps(12.0, 2.0, 100_000.0) == pytest.approx(1.0)
    assert math.isnan(break_even_bps(0.0, 0.0, 0.0))


def trade(net: float, sweeps: tuple[float, float, float], value: float = 10_000.0) -> Trade:
    return Trade(
        symbol="BTCUSDT", side=1, regime="all", expected_bps=1.0, entry_ns=0, exit_ns=1, lots=1,
        entry_price=1.0, exit_price=1.0, value_usdt=value, turnover_usdt=2 * value, maker_share=0.0,
        fills=2, gross_usdt=net, funding_usdt=0.0, fees_vip0_usdt=0.0, fees_vip3_usdt=0.0,
        net_usdt_vip0=net, net_usdt_vip3=net, net_usdt_zero=net, sweep_10k_bps=sweeps[0],
        sweep_100k_bps=sweeps[1], sweep_1m_bps=sweeps[2],
    )  # fmt: skip


def test_capacity_is_where_sweeping_the_book_uses_up_the_net_result() -> None:
    # 2 bps net over 10,000 leave 1 bp a leg; the sweep costs 0.5 at 10,000 and 1.5 at 100,000.
    assert capacity_usdt([trade(2.0, (0.5, 1.5, 4.0))], "zero") == pytest.approx(100_000.0)
    # A book that does not hold more claims no more.
    assert capacity_usdt([trade(2.0, (0.5, math.nan, math.nan))], "zero") == pytest.approx(10_000)
    assert math.isnan(capacity_usdt([trade(-2.0, (0.5, 1.5, 4.0))], "zero"))
    assert math.isnan(capacity_usdt([], "zero"))
