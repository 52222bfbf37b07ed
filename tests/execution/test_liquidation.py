"""The distance to liquidation before and after an order, against `Margin.liquidated` and real fills."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from execution.account import Account, fee_e8, value_e8
from execution.liquidation import Headroom
from execution.margin import BTC_TIERS, MarginMode, Terms
from market.instruments import BUILT_IN
from market.units import E8

BTC, ETH = BUILT_IN["BTCUSDT"], BUILT_IN["ETHUSDT"]
TICKS = {"BTCUSDT": 600_000, "ETHUSDT": 300_000}
MARKS = {"BTCUSDT": 60_000 * E8, "ETHUSDT": 3_000 * E8}
LEAST_BPS = 1_000.0

MODES = st.sampled_from(list(MarginMode))
SIDES = st.sampled_from([1, -1])


def headroom(
    balance: int, held: dict[str, int] | None = None, mode: MarginMode = MarginMode.CROSS,
    leverage: str = "10",
) -> Headroom:  # fmt: skip
    account = Account({"BTCUSDT": BTC, "ETHUSDT": ETH}, balance * E8)
    terms = Terms(tiers=BTC_TIERS, leverage=leverage, mode=mode)
    found = Headroom(account, {"BTCUSDT": terms, "ETHUSDT": terms})
    for symbol, lots in (held or {}).items():
        trade(found, symbol, lots)
    found.mark(MARKS)
    return found


def trade(one: Headroom, symbol: str, lots: int) -> None:
    """Fill at the mark for the taker fee."""
    holding, ticks = one.account.holdings[symbol], TICKS[symbol]
    value = value_e8(holding.instrument, ticks, abs(lots))
    holding.trade(lots, ticks, fee_e8(value, one.terms[symbol].taker_fee))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    balance=st.integers(1_000, 5_000_000),
    lots=st.integers(1, 200_000),
    other=st.integers(-50_000, 50_000),
    side=SIDES,
    mode=MODES,
)
def test_an_account_is_liquidated_at_the_price_that_is_named_and_not_before(
    balance: int, lots: int, other: int, side: int, mode: MarginMode
) -> None:
    """With the other position's mark fixed, whatever the tiers that the price crosses on its way."""
    one = headroom(balance, {"BTCUSDT": side * lots, "ETHUSDT": other}, mode)
    assume(one.liquidated(MARKS) == [])
    _, ticks = one.after("BTCUSDT")
    assert side * (TICKS["BTCUSDT"] - ticks) > 0
    for beyond in (True, False):
        mark = ticks * (1 + (-side if beyond else side) * 1e-6)
        marks = MARKS | {"BTCUSDT": round(mark * 10**7)}
        if 0 < mark * lots * 1e-4 < 1e9:  # within the last tier
            assert ("BTCUSDT" in one.liquidated(marks)) == beyond


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    held=st.integers(-3_000, 3_000),
    more=st.integers(-3_000, 3_000),
    other=st.integers(-3_000, 3_000),
    mode=MODES,
)
def test_what_an_order_would_leave_is_what_its_fill_leaves(
    held: int, more: int, other: int, mode: MarginMode
) -> None:
    one = headroom(30_000, {"BTCUSDT": held, "ETHUSDT": other}, mode)
    lots, ticks = one.after("BTCUSDT", more)
    away = one.distance_bps("BTCUSDT", more)
    trade(one, "BTCUSDT", more)
    assert one.after("BTCUSDT") == (lots, pytest.approx(ticks))
    assert one.distance_bps("BTCUSDT") == pytest.approx(away)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    balance=st.integers(-1_000, 3_000_000),
    held=st.integers(-1_000, 1_000),
    other=st.integers(-10_000, 10_000),
    side=SIDES,
    mode=MODES,
    leverage=st.sampled_from(["1", "2", "5", "10", "20", "100"]),
)
def test_the_largest_position_keeps_its_distance_and_a_lot_more_does_not(
    balance: int, held: int, other: int, side: int, mode: MarginMode, leverage: str
) -> None:
    """Far enough from liquidation and covered by the balance, or no position at all."""
    one = headroom(balance, {"BTCUSDT": held, "ETHUSDT": other}, mode, leverage)
    largest = one.largest_lots("BTCUSDT", side, LEAST_BPS)
    for lots in {largest, largest + 1} - {0}:
        after = headroom(balance, {"BTCUSDT": held, "ETHUSDT": other}, mode, leverage)
        trade(after, "BTCUSDT", side * lots - held)
        after.mark(MARKS)
        covered = after.available_e8(MARKS) >= 0
        far = after.distance_bps("BTCUSDT") >= LEAST_BPS
        fits = int(Fraction(leverage)) <= 100 and covered and far
        assert fits == (lots == largest) or value_e8(BTC, TICKS["BTCUSDT"], lots) > 2_000_000 * E8


def test_a_position_that_no_price_liquidates_is_infinitely_or_far_away() -> None:
    one = headroom(200_000, {"BTCUSDT": 100})
    assert one.after("BTCUSDT")[1] < 0
    assert one.distance_bps("BTCUSDT") > 10_000
    assert one.distance_bps("ETHUSDT") == math.inf


@pytest.mark.parametrize("balance", [0, -5_000])
@pytest.mark.parametrize("side", [1, -1])
def test_no_equity_gives_no_size_and_a_position_is_past_its_liquidation(
    balance: int, side: int
) -> None:
    one = headroom(balance)
    assert one.largest_lots("BTCUSDT", side, LEAST_BPS) == 0
    assert one.rate() == 0.0
    assert one.distance_bps("BTCUSDT", side * 10) < 0
    trade(one, "BTCUSDT", side * 10)
    assert one.rate() == math.inf


def test_isolated_leverage_that_is_too_near_gives_no_size() -> None:
    one = headroom(100_000, mode=MarginMode.ISOLATED, leverage="20")
    assert one.largest_lots("BTCUSDT", 1, LEAST_BPS) == 0
    assert one.largest_lots("BTCUSDT", 1, 300.0) > 0


def test_no_mark_or_unknown_tiers_give_no_size() -> None:
    one = headroom(100_000)
    one.unknown.add("BTCUSDT")
    assert one.largest_lots("BTCUSDT", 1, LEAST_BPS) == 0
    bare = Headroom(Account({"BTCUSDT": BTC}, 10**13), {"BTCUSDT": Terms(tiers=BTC_TIERS)})
    assert bare.largest_lots("BTCUSDT", 1, LEAST_BPS) == 0


def test_figures_do_not_depend_on_another_symbols_fills_until_the_next_mark() -> None:
    one = headroom(20_000, {"BTCUSDT": 1_000})
    before = one.distance_bps("BTCUSDT"), one.largest_lots("BTCUSDT", 1, LEAST_BPS)
    trade(one, "ETHUSDT", 2_000)
    assert (one.distance_bps("BTCUSDT"), one.largest_lots("BTCUSDT", 1, LEAST_BPS)) == before
    one.mark(MARKS)
    assert one.distance_bps("BTCUSDT") < before[0]
    assert one.largest_lots("BTCUSDT", 1, LEAST_BPS) < before[1]


def test_what_the_venue_holds_beside_the_log_secures_a_position() -> None:
    one = headroom(20_000, {"BTCUSDT": 1_000})
    near = one.distance_bps("BTCUSDT")
    one.account.apart_e8 = 10_000 * E8
    one.mark({})
    assert one.distance_bps("BTCUSDT") > near + 1_000
