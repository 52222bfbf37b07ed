"""Exposure and liquidation against figures that the venue itself gave, and against exact algebra."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.account import Account, fee_e8, funding_e8, value_e8
from execution.margin import (
    BTC_TIERS,
    Margin,
    MarginError,
    MarginMode,
    OpenOrder,
    Terms,
    tiers,
)
from execution.orders import Filled, Liquidity
from market.instruments import BUILT_IN, Instrument
from market.units import E8
from proving.sandbox.accounts import ClientMargin

BTC = BUILT_IN["BTCUSDT"]
XRP = Instrument(symbol="XRPUSDT", tick="0.0001", lot="1", min_qty="1", min_notional="5")
#: One tier for all, as the venue's figures of small positions had it.
FLAT = tiers([(10**9, "0.01", "0.005", "100")])
XRP_TIERS = tiers([(10**9, "0.015", "0.0075", "75")])


def e8(text: str) -> int:
    return int(Decimal(text) * E8)


def holding(lots: int, ticks: int, terms: Terms, opening: str = "1000") -> ClientMargin:
    account = Account({"BTCUSDT": BTC}, e8(opening))
    fill(account, lots, ticks)
    return ClientMargin(account, {"BTCUSDT": terms})


def fill(account: Account, lots: int, ticks: int) -> None:
    account.apply(
        Filled(
            client_id="a",
            time_ns=1,
            venue_ns=1,
            exec_id=f"{lots}@{ticks}",
            symbol="BTCUSDT",
            side=1 if lots > 0 else -1,
            qty_lots=abs(lots),
            price_ticks=ticks,
            liquidity=Liquidity.TAKER,
            fee_e8=0,
            leaves_lots=0,
        )
    )


# -- the venue's own figures -------------------------------------------------------------------------


def test_margins_are_the_venues() -> None:
    btc = Terms(tiers=FLAT, leverage="10", taker_fee="0.0006")
    value = value_e8(BTC, 230_329, 100)
    assert btc.position_margin_e8(1, value) == e8("231.5727766")
    assert btc.maintenance_e8(1, value) == e8("12.7602266")
    xrp = Terms(tiers=XRP_TIERS, leverage="10")
    value = value_e8(XRP, 27_862, 4)
    assert xrp.position_margin_e8(1, value) == e8("1.11999668")
    assert xrp.maintenance_e8(1, value) == e8("0.08910268")
    assert xrp.order_margin_e8(1, value_e8(XRP, 25_293, 10)) == e8("2.55573119")


@pytest.mark.parametrize(
    ("lots", "mark", "rate", "paid"),
    [
        (2, "29476.42", "0.00076104", "0.04486547"),
        (2, "29474.10", "-0.00103505", "-0.06101433"),
        (2, "29133.60", "0.00100378", "0.05848746"),
    ],
)
def test_funding_is_rounded_as_the_venue_rounds(lots: int, mark: str, rate: str, paid: str) -> None:
    assert funding_e8(BTC, lots, e8(mark), e8(rate)) == e8(paid)


def test_closed_pnl_is_the_venues_figure() -> None:
    fees = fee_e8(value_e8(BTC, 281_447, 10), "0.0006") + fee_e8(
        value_e8(BTC, 281_499, 10), "0.0006"
    )
    account = Account({"BTCUSDT": BTC})
    fill(account, 10, 281_447)
    fill(account, -10, 281_499)
    assert account.holdings["BTCUSDT"].realised_e8 == e8("0.052")
    assert account.balance_e8 - fees == e8("-0.2857676")


def test_deductions_follow_from_limits_and_rates() -> None:
    assert [tier.deduction for tier in BTC_TIERS[:4]] == [0, 510, 1_710, 3_530]
    assert BTC_TIERS[24].deduction == 3_232_510
    assert BTC_TIERS[-1].deduction == 242_382_510


def test_a_liquidation_price_is_that_of_the_published_rule() -> None:
    """One BTC at 50,000, ten times leverage, half a per cent of maintenance."""
    margin = holding(1_000, 500_000, Terms(tiers=FLAT))
    security = margin.security("BTCUSDT", e8("50000"))
    assert security is not None
    assert security.liquidation_ticks is not None
    assert float(security.liquidation_ticks) / 10 == pytest.approx(45_226.13, abs=0.005)
    assert security.bankruptcy_ticks == 450_000


# -- what follows ------------------------------------------------------------------------------------

TERMS = st.builds(
    Terms,
    tiers=st.just(BTC_TIERS),
    leverage=st.sampled_from(["1", "1.43", "2", "7.5", "10"]),
    mode=st.just(MarginMode.ISOLATED),
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    terms=TERMS,
    lots=st.integers(1, 90_000),
    ticks=st.integers(100_000, 1_000_000),
    side=st.sampled_from([1, -1]),
    extra=st.integers(0, 10**12),
)
def test_at_the_liquidation_price_the_margin_left_is_maintenance(
    terms: Terms, lots: int, ticks: int, side: int, extra: int
) -> None:
    """Margin at entry, less the loss, is the maintenance rate on the value at mark less the deduction:
    exactly, with the closing fee set aside; the position is liquidated there, not before."""
    margin = holding(side * lots, ticks, terms)
    margin.add("BTCUSDT", extra)
    security = margin.security("BTCUSDT", ticks * 10**7)
    assert security is not None
    price = security.liquidation_ticks
    if price is None:
        return
    tier, unit = terms.tier(value_e8(BTC, ticks, lots)), Fraction(value_e8(BTC, 1, lots))
    margin_left = Fraction(value_e8(BTC, ticks, lots)) / Fraction(terms.leverage)
    margin_left += Fraction(extra) / (1 - side * Fraction(terms.taker_fee))
    margin_left += side * unit * (price - ticks)
    assert margin_left == unit * price * Fraction(tier.maintenance) - tier.deduction * E8
    mark = int(price * 10**7)
    assert margin.liquidated({"BTCUSDT": mark - side * 2}) == ["BTCUSDT"]
    assert margin.liquidated({"BTCUSDT": mark + side * 2}) == []


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    value=st.integers(1, 10**17),
    side=st.sampled_from([1, -1]),
    leverage=st.sampled_from(["1", "2", "10"]),
)
def test_margins_are_rounded_up_to_the_unit(value: int, side: int, leverage: str) -> None:
    """And an order asks for the opening fee on top of what its position will ask for."""
    terms = Terms(tiers=BTC_TIERS, leverage=leverage)
    rate, gear = Fraction(terms.taker_fee), Fraction(leverage)
    exact = value / gear + value * (1 - side / gear) * rate
    assert 0 <= terms.position_margin_e8(side, value) - exact < 1
    assert 0 <= terms.order_margin_e8(side, value) - exact - value * rate < 1


def test_maintenance_is_continuous_where_tiers_meet() -> None:
    terms = Terms(tiers=BTC_TIERS, leverage="1")
    for tier in BTC_TIERS[:-1]:
        here, above = (terms.maintenance_e8(1, tier.limit * E8 + more) for more in (0, 1))
        assert 0 <= above - here <= 1


def test_a_tier_bounds_leverage_and_size() -> None:
    terms = Terms(tiers=BTC_TIERS, leverage="100")
    assert terms.tier(2_000_000 * E8).limit == 2_000_000
    with pytest.raises(MarginError, match="leverage 100 is above 90, the most for positions up to"):
        terms.tier(2_000_000 * E8 + 1)
    with pytest.raises(MarginError, match="beyond the last risk tier"):
        Terms(tiers=BTC_TIERS, leverage="1").tier(1_200_000_001 * E8)
    margin = holding(50_000, 500_000, Terms(tiers=BTC_TIERS))
    with pytest.raises(MarginError, match="leverage 150"):
        margin.set_leverage("BTCUSDT", "150")
    with pytest.raises(MarginError, match=r"leverage 0\.5 is below 1"):
        margin.set_leverage("BTCUSDT", "0.5")
    assert margin.terms["BTCUSDT"].leverage == "10"


def test_tiers_that_do_not_grow_are_refused() -> None:
    with pytest.raises(MarginError, match="risk tier up to 5: limits and rates have to grow"):
        tiers([(10, "0.1", "0.05", "10"), (5, "0.2", "0.1", "5")])
    with pytest.raises(MarginError, match="no risk tier"):
        tiers([])


def test_orders_reserve_margin_and_reducing_orders_none() -> None:
    terms = Terms(tiers=BTC_TIERS)
    margin = holding(10, 500_000, terms)
    mark = {"BTCUSDT": e8("50000")}
    free = margin.available_e8(mark)
    assert free == e8("1000") - terms.position_margin_e8(1, e8("500"))
    sells = [OpenOrder("BTCUSDT", -1, 510_000, 6), OpenOrder("BTCUSDT", -1, 500_000, 6)]
    # Ten of twelve lots reduce; the two at the higher price would open.
    opens = terms.order_margin_e8(-1, value_e8(BTC, 510_000, 2))
    assert margin.orders_e8(sells) == opens
    assert margin.available_e8(mark, sells) == free - opens
    buy = OpenOrder("BTCUSDT", 1, 490_000, 10)
    assert margin.available_e8(mark, [buy]) == free - terms.order_margin_e8(1, e8("490"))


def test_an_order_is_accepted_within_margin_and_risk_tier() -> None:
    terms = Terms(tiers=BTC_TIERS)
    margin = holding(10, 500_000, terms, opening="100")
    mark = {"BTCUSDT": e8("50000")}
    assert margin.accepts(OpenOrder("BTCUSDT", 1, 490_000, 9), mark, [])
    assert not margin.accepts(OpenOrder("BTCUSDT", 1, 490_000, 11), mark, [])
    assert not margin.accepts(OpenOrder("BTCUSDT", 1, 490_000, 10**9), mark, [])
    assert margin.accepts(OpenOrder("BTCUSDT", -1, 510_000, 10), mark, [])


def test_extra_margin_moves_the_liquidation_price_away_and_comes_back() -> None:
    margin = holding(-100, 500_000, Terms(tiers=BTC_TIERS))
    mark = e8("50000")
    free = margin.available_e8({"BTCUSDT": mark})
    before = margin.security("BTCUSDT", mark)
    margin.add("BTCUSDT", e8("50"))
    after = margin.security("BTCUSDT", mark)
    assert before is not None
    assert after is not None
    assert before.liquidation_ticks is not None
    assert after.liquidation_ticks is not None
    assert after.liquidation_ticks > before.liquidation_ticks
    assert margin.available_e8({"BTCUSDT": mark}) == free - e8("50")
    margin.add("BTCUSDT", -e8("50"))
    assert margin.security("BTCUSDT", mark) == before
    with pytest.raises(MarginError, match=r"BTCUSDT: -1\.00000000 of extra margin would be left"):
        margin.add("BTCUSDT", -e8("1"))


def test_cross_positions_share_the_balance_and_are_liquidated_together() -> None:
    terms = Terms(tiers=BTC_TIERS, mode=MarginMode.CROSS)
    margin = holding(100, 500_000, terms, opening="1000")
    mark = e8("50000")
    assert margin.security("BTCUSDT", mark).liquidation_ticks is None
    assert margin.liquidated({"BTCUSDT": mark}) == []
    # 0.1 BTC and 1,000 of balance: near 40,150 the balance at mark meets the maintenance margin.
    assert margin.liquidated({"BTCUSDT": e8("40200")}) == []
    assert margin.liquidated({"BTCUSDT": e8("40100")}) == ["BTCUSDT"]
    with pytest.raises(MarginError, match="extra margin is for isolated positions"):
        margin.add("BTCUSDT", 1)


def test_a_flat_account_needs_no_margin() -> None:
    margin = Margin(Account({"BTCUSDT": BTC}, e8("10")), {"BTCUSDT": Terms(tiers=BTC_TIERS)})
    assert margin.security("BTCUSDT", e8("50000")) is None
    assert margin.available_e8({}) == e8("10")
    assert margin.liquidated({}) == []
    with pytest.raises(MarginError, match="no position to secure"):
        margin.add("BTCUSDT", 1)
