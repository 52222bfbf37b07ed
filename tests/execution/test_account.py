"""Account arithmetic, against rational numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.account import (
    Account,
    AccountState,
    fee_e8,
    funding_e8,
    rate_of_bps,
    unit_e8,
    value_e8,
)
from execution.orders import ExecutionType, Filled, Liquidity
from market.errors import DataError
from market.instruments import BUILT_IN, Instrument
from market.units import DAY_NS, HOUR_NS

BTC, ETH = BUILT_IN["BTCUSDT"], BUILT_IN["ETHUSDT"]


def filled(n: int, symbol: str, side: int, lots: int, ticks: int, fee: int) -> Filled:
    return Filled(
        client_id="a",
        time_ns=n,
        venue_ns=n,
        exec_id=str(n),
        symbol=symbol,
        side=side,
        qty_lots=lots,
        price_ticks=ticks,
        liquidity=Liquidity.TAKER,
        fee_e8=fee,
        leaves_lots=0,
    )


def test_value_is_exact() -> None:
    # 0.123 BTC at 65,432.1
    assert value_e8(BTC, 654_321, 123) == 804_814_830_000


def test_fees_are_rounded_up_and_rebates_down() -> None:
    assert fee_e8(100_000_000, "0.00055") == 55_000
    assert fee_e8(1, "0.00055") == 1
    assert fee_e8(100_000_001, "-0.0001") == -10_000
    assert fee_e8(0, "0.00055") == 0


def test_rates_of_the_fee_rows_are_exact() -> None:
    assert [rate_of_bps(x) for x in (5.5, 2.0, 1.4, 0.0)] == ["0.00055", "0.0002", "0.00014", "0"]


def test_funding_follows_the_venues_example() -> None:
    # Long 10 BTC at mark 8,000, rate 0.01 %: the long pays 8 USDT and the short receives it.
    assert funding_e8(BTC, 10_000, 8_000 * 10**8, 10_000) == 8 * 10**8
    assert funding_e8(BTC, -10_000, 8_000 * 10**8, 10_000) == -8 * 10**8


def test_an_instrument_finer_than_the_unit_is_refused() -> None:
    fine = Instrument(symbol="X", tick="0.00001", lot="0.0001", min_qty="1", min_notional="5")
    with pytest.raises(DataError, match=r"X: tick 0\.00001 × lot 0\.0001"):
        unit_e8(fine)


GRIDS = [("0.00000001", "1000"), ("0.00000001", "1000000"), ("1000", "0.001"), ("1000", "1000000")]


@pytest.mark.parametrize(("tick", "lot"), GRIDS)
def test_money_is_exact_on_the_venues_coarsest_and_finest_grids(tick: str, lot: str) -> None:
    of = Instrument(symbol="X", tick=tick, lot=lot, min_qty=lot, min_notional="5")
    account = Account({"X": of})
    bought, sold, lots = 10**9, 10**9 + 7, 10**12
    account.apply(filled(1, "X", 1, lots, bought, 0))
    assert account.equity_e8({"X": sold}) == value_e8(of, sold - bought, lots)
    mark_e8 = int(of.price(bought) * 10**8)
    assert account.settle("X", mark_e8, -30) == -(value_e8(of, bought, lots) * 30 // 10**8)
    account.apply(filled(2, "X", -1, lots, sold, 0))
    profit = of.price(sold - bought) * of.qty(lots) * 10**8
    assert account.holdings["X"].realised_e8 == profit


def test_round_trip_realises_the_difference_and_leaves_nothing() -> None:
    account = Account(BUILT_IN, opening_e8=1_000 * 10**8)
    account.apply(filled(1, "BTCUSDT", 1, 100, 600_000, 7))
    holding = account.holdings["BTCUSDT"]
    assert holding.entry_ticks == 600_000
    account.apply(filled(2, "BTCUSDT", -1, 100, 600_500, 8))
    assert (holding.position_lots, holding.cost_e8, holding.entry_ticks) == (0, 0, None)
    assert holding.realised_e8 == 100 * 500 * unit_e8(BTC)
    assert account.balance_e8 == 1_000 * 10**8 + holding.realised_e8 - 15


def test_reversing_a_position_opens_at_the_new_price() -> None:
    account = Account(BUILT_IN)
    account.apply(filled(1, "BTCUSDT", 1, 10, 600_000, 0))
    account.apply(filled(2, "BTCUSDT", -1, 25, 601_000, 0))
    holding = account.holdings["BTCUSDT"]
    assert (holding.position_lots, holding.entry_ticks) == (-15, 601_000)
    assert holding.realised_e8 == 10 * 1_000 * unit_e8(BTC)


def test_closed_pnl_is_the_venues() -> None:
    account = Account(BUILT_IN)
    opening, closing = 16_886_820, 16_889_940
    account.apply(filled(1, "BTCUSDT", 1, 10, 281_447, opening))
    account.apply(filled(2, "BTCUSDT", -1, 10, 281_499, closing))
    assert account.holdings["BTCUSDT"].closed_e8 == -28_576_760


def test_a_partial_close_takes_its_share_of_the_opening_fees() -> None:
    holding = Account(BUILT_IN).holdings["BTCUSDT"]
    holding.trade(10, 600_000, 100)
    assert holding.trade(-4, 600_000, 7) == -(40 + 7)
    # Through zero: six close with six ninths of the fee, three open with the rest.
    assert holding.trade(-9, 600_000, 18) == -(60 + 12)
    assert holding.open_fees_e8 == 6


def test_a_duplicate_execution_counts_once() -> None:
    account = Account(BUILT_IN)
    fill = filled(1, "BTCUSDT", 1, 10, 600_000, 5)
    assert account.apply(fill)
    assert not account.apply(fill)
    assert account.holdings["BTCUSDT"].position_lots == 10


def test_funding_moves_the_balance_and_not_the_position() -> None:
    account = Account(BUILT_IN)
    account.apply(filled(1, "BTCUSDT", -1, 1_000, 600_000, 0))
    paid = account.settle("BTCUSDT", 60_000 * 10**8, 10_000)
    assert paid == -6 * 10**8
    assert account.balance_e8 == 6 * 10**8
    assert account.holdings["BTCUSDT"].position_lots == -1_000


TRADES = st.lists(
    st.tuples(
        st.sampled_from(["BTCUSDT", "ETHUSDT"]),
        st.sampled_from([1, -1]),
        st.integers(1, 997),
        st.integers(1, 10**6),
        st.integers(-50, 10**9),
        st.sampled_from([None, -37_501, 0, 10_000]),
    ),
    max_size=40,
)


@settings(derandomize=True, max_examples=100)
@given(trades=TRADES, marks=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)))
def test_equity_is_conserved_to_the_last_unit(
    trades: list[tuple[str, int, int, int, int, int | None]], marks: tuple[int, int]
) -> None:
    """At every instant, to the last unit: equity is the opening balance, minus what was paid for the
    fills, their fees and the funding, plus what the position is worth at the mark. The position is
    the signed sum of the fills, and it costs something only while it exists. Closed PnL is
    the realised profit less all fees but the opening fees of the open position."""
    account = Account(BUILT_IN, opening_e8=12_345)
    mark = dict(zip(("BTCUSDT", "ETHUSDT"), marks, strict=True))
    cash = 12_345
    held = {"BTCUSDT": 0, "ETHUSDT": 0}
    for n, (symbol, side, lots, ticks, fee, rate) in enumerate(trades):
        account.apply(filled(n, symbol, side, lots, ticks, fee))
        held[symbol] += side * lots
        cash -= value_e8(BUILT_IN[symbol], ticks, side * lots) + fee
        if rate is not None:
            cash -= account.settle(symbol, mark[symbol] * 10**6, rate)
        worth = sum(value_e8(BUILT_IN[s], mark[s], lots) for s, lots in held.items())
        assert account.equity_e8(mark) == cash + worth
        for s, holding in account.holdings.items():
            assert holding.position_lots == held[s]
            assert holding.bought_lots - holding.sold_lots == held[s]
            assert holding.closed_e8 == holding.realised_e8 - holding.fees_e8 + holding.open_fees_e8
            if not held[s]:
                assert holding.cost_e8 == holding.open_fees_e8 == 0


@settings(derandomize=True, max_examples=100)
@given(
    st.integers(-(10**15), 10**15),
    st.fractions(min_value=-1, max_value=1, max_denominator=10**6),
)
def test_a_fee_is_the_smallest_whole_unit_not_below_the_exact_one(
    value: int, rate: Fraction
) -> None:
    text = f"{rate.numerator / rate.denominator:.8f}"
    exact = value * Fraction(text)
    assert 0 <= fee_e8(value, text) - exact < 1


# -- the account of a process that ends and starts again -------------------------------------------


def again(account: Account, symbols: dict[str, Instrument] | None = None) -> Account:
    """The account after a restart."""
    state = msgspec.json.decode(msgspec.json.encode(account.snapshot()), type=AccountState)
    restarted = Account(BUILT_IN if symbols is None else symbols)
    restarted.restore(state)
    return restarted


def held(lots: int = 500) -> Account:
    """200,000 and a position bought at 60,000."""
    account = Account(BUILT_IN, opening_e8=200_000 * 10**8)
    account.apply(filled(1, "BTCUSDT", 1, lots, 600_000, 0))
    account.mark(DAY_NS, {"BTCUSDT": 600_000.0})
    return account


def test_a_restart_keeps_cost_peak_and_the_days_opening() -> None:
    """500 lots of 0.001 at 60,000 are 30,000: a tenth of it is lost after the restart, and funding of
    one basis point is 2.70 at the new price."""
    account = again(held())
    assert [account.position_lots_at("BTCUSDT", ns) for ns in (1, 2)] == [0, 500]
    assert account.mark(DAY_NS + HOUR_NS, {"BTCUSDT": 540_000.0}) == 197_000 * 10**8
    assert (account.peak_e8, account.day_opening_e8) == (200_000 * 10**8, 200_000 * 10**8)
    assert account.settle("BTCUSDT", 54_000 * 10**8, 10_000) == 270_000_000
    account.apply(filled(2, "BTCUSDT", -1, 500, 540_000, 0))
    assert account.position_lots("BTCUSDT") == 0
    assert account.balance_e8 == 197_000 * 10**8 - 270_000_000


def test_a_crash_loop_cannot_lose_the_daily_limit_again() -> None:
    account = held()
    for price in (598_000.0, 596_000.0, 594_000.0):
        account.mark(DAY_NS + HOUR_NS, {"BTCUSDT": price})
        account = again(account)
    assert account.day_opening_e8 - account.marked_e8 == 300 * 10**8
    account.mark(2 * DAY_NS, {"BTCUSDT": 594_000.0})
    assert (account.day_opening_e8, account.peak_e8) == (199_700 * 10**8, 200_000 * 10**8)


def test_executions_before_a_restart_count_once_after_it() -> None:
    account = again(held())
    assert not account.apply(filled(1, "BTCUSDT", 1, 500, 600_000, 0))
    assert account.position_lots("BTCUSDT") == 500


def test_a_position_in_a_symbol_no_longer_configured_is_kept() -> None:
    account = again(held(), {"ETHUSDT": BUILT_IN["ETHUSDT"]})
    assert account.position_lots("BTCUSDT") == 500
    assert account.mark(DAY_NS, {"BTCUSDT": 540_000.0}) == 197_000 * 10**8


def test_a_position_counted_in_other_lots_is_refused() -> None:
    other = msgspec.structs.replace(BTC, lot="0.01")
    with pytest.raises(DataError, match=r"BTCUSDT: 500 lots were held when a lot was 0\.001, now"):
        again(held(), {"BTCUSDT": other})


def test_an_execution_of_no_order_of_ours_moves_the_position() -> None:
    """A liquidation, the venue's deleveraging, an order by hand."""
    account = held()
    liquidated = filled(2, "BTCUSDT", -1, 100, 540_000, 9)
    foreign = msgspec.structs.replace(liquidated, client_id="", execution=ExecutionType.LIQUIDATION)
    assert account.apply(foreign)
    assert account.position_lots("BTCUSDT") == 400
    assert account.holdings["BTCUSDT"].realised_e8 == -600 * 10**8
    assert account.position_lots("NONE") == 0


def test_funding_that_the_venue_states_counts_once() -> None:
    account = held()
    assert account.fund("f1", "BTCUSDT", 300, DAY_NS)
    assert not again(account).fund("f1", "BTCUSDT", 300, DAY_NS)
    assert account.holdings["BTCUSDT"].funding_e8 == 300
    assert account.position_lots("BTCUSDT") == 500


def test_an_adopted_position_holds_the_executions_before_it() -> None:
    """The venue says 300 at 59,000.5: what came before that is in it, what came after is booked."""
    account = held()
    account.adopt("BTCUSDT", 300, 59_000_50000000, venue_ns=50)
    holding = account.holdings["BTCUSDT"]
    assert (holding.position_lots, holding.entry_ticks) == (300, Fraction("590005"))
    late, later = (
        msgspec.structs.replace(filled(n, "BTCUSDT", -1, 100, 600_000, 0), venue_ns=n)
        for n in (50, 51)
    )
    assert not account.apply(late)
    assert account.apply(later)
    assert holding.position_lots == 200


def test_execution_ids_are_remembered_for_eight_days() -> None:
    account = Account(BUILT_IN)
    times = [0, DAY_NS, 8 * DAY_NS, 8 * DAY_NS + 1]
    for n, venue_ns in enumerate(times):
        fill = filled(n, "BTCUSDT", 1, 1, 600_000, 0)
        assert account.apply(msgspec.structs.replace(fill, venue_ns=venue_ns))
    assert (len(account.snapshot().executions), account.forgotten) == (3, 1)
    # What is older than the memory cannot be told from a repetition, now or after a restart.
    for each in (account, again(account)):
        assert not each.apply(filled(0, "BTCUSDT", 1, 1, 600_000, 0))
        assert each.position_lots("BTCUSDT") == 4


def test_equity_waits_for_the_first_mid_of_a_position() -> None:
    account = held()
    account.apply(filled(2, "ETHUSDT", 1, 10, 300_000, 0))
    before = account.marked_e8
    assert account.mark(DAY_NS, {"BTCUSDT": 540_000.0, "ETHUSDT": math.nan}) == before
    assert account.mark(DAY_NS, {"ETHUSDT": 300_000.5}) < before


def test_both_sides_of_a_trade_with_ourselves_are_booked() -> None:
    """A human's order that meets our resting one: one trade, one id, two executions."""
    account = Account({"BTCUSDT": BTC})
    bought = filled(1, "BTCUSDT", 1, 3, 100, 0)
    sold = msgspec.structs.replace(bought, side=-1)
    assert [account.apply(one) for one in (bought, sold, bought, sold)] == [
        True,
        True,
        False,
        False,
    ]
    holding = account.holdings["BTCUSDT"]
    assert (holding.bought_lots, holding.sold_lots, holding.position_lots) == (3, 3, 0)
