"""Limits hold whatever happens, and each reason to stop an order is a case here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.account import Account
from execution.liquidation import Headroom
from execution.margin import BTC_TIERS, MarginMode, Terms
from execution.order_machine import Order, Orders
from execution.orders import (
    Accepted,
    Action,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    Event,
    Filled,
    Lost,
    OrderType,
    Rejected,
    Submit,
    TimeInForce,
)
from execution.risk import Denial, Guard
from execution.venue import View
from market.settings import Risk, SettingsError, load
from market.units import SECOND_NS
from tests.execution.tape import INSTRUMENT, SYMBOL
from tests.execution.test_algorithms import ChaoticVenue, event_of, fill, view

OTHER = msgspec.structs.replace(INSTRUMENT, symbol="OTHER")
#: A lot is worth 100.5 at the usual mid.
MIDS = {SYMBOL: 100.5, "OTHER": 100.5}
LIMITS = Risk(
    order_usdt=1_100,
    position_usdt=2_100,
    gross_usdt=5_000,
    leverage=0.5,
    price_band_bps=200,
    daily_loss_usdt=50,
    drawdown_usdt=80,
    actions_per_s=10,
    liquidation_bps=500,
)


class Watched(Guard):
    """A guard with its order machine and account, and what its caller owes them."""

    def __init__(
        self,
        positions: dict[str, int] | None = None,
        traded: Sequence[str] = (SYMBOL, "OTHER"),
        leverage: str = "",
        **limits: Any,
    ) -> None:
        instruments = {SYMBOL: INSTRUMENT, "OTHER": OTHER}
        self.orders, self.account = Orders(), Account(instruments, 10_000 * 10**8)
        for symbol, lots in (positions or {}).items():
            self.account.adopt(symbol, lots, 100_50000000)
        asked = msgspec.structs.replace(LIMITS, **limits)
        terms = Terms(tiers=BTC_TIERS, leverage=leverage, mode=MarginMode.ISOLATED)
        headroom = Headroom(self.account, dict.fromkeys(instruments, terms)) if leverage else None
        super().__init__(instruments, asked, self.orders, self.account, traded, headroom)

    def sends(self, action: Action, seen: View | None = None, now: int = 0) -> Denial | None:
        """Judge an action, and tell the order machine of one that is allowed."""
        denial = self.allow(now, action, view(now) if seen is None else seen)
        if denial is None:
            if isinstance(action, Submit):
                self.orders.sent(action, "p", now)
            else:
                self.orders.requested(action, now)
        return denial

    def hears(self, *events: Event) -> None:
        for event in events:
            self.orders.apply(event)
            if isinstance(event, Filled):
                self.account.apply(event)

    def equity(self, now: int, usdt: float) -> None:
        """Mark the account to an equity; adopted positions cost what they are worth."""
        self.account.opening_e8 += round(usdt * 1e8) - self.account.balance_e8
        self.account.mark(now, MIDS)
        self.mark(MIDS)


def guard(positions: dict[str, int] | None = None, **more: Any) -> Watched:
    return Watched(positions, **more)


def order(name: str = "p-1", side: int = 1, lots: int = 5, price: int = 100, **more: Any) -> Submit:
    return Submit(
        client_id=name, symbol=SYMBOL, side=side, qty_lots=lots, price_ticks=price, **more
    )


def denial_of(
    ours: Watched, action: Action, seen: View | None = None, now: int = 0
) -> Denial | None:
    return ours.sends(action, seen, now)


@pytest.mark.parametrize(
    ("action", "denial"),
    [
        (order(), None),
        (order(lots=0), Denial.BAD_QUANTITY),
        (order(lots=-1), Denial.BAD_QUANTITY),
        (order(side=0), Denial.BAD_QUANTITY),
        (order(price=0), Denial.BAD_PRICE),
        (order(price=103), Denial.PRICE_BAND),
        (order(side=-1, price=98), Denial.PRICE_BAND),
        (order(side=-1, price=150), None),
        (order(lots=11), Denial.ORDER_LIMIT),
        (order(order_type=OrderType.MARKET), Denial.UNBOUNDED),
        (order(price=103, time_in_force=TimeInForce.IOC), Denial.PRICE_BAND),
        (order(reduce_only=True), Denial.REDUCE_ONLY),
        (msgspec.structs.replace(order(), symbol="NONE"), Denial.UNKNOWN_SYMBOL),
        (Cancel(client_id="x"), Denial.UNKNOWN_ORDER),
        (Amend(client_id="x", price_ticks=99), Denial.UNKNOWN_ORDER),
    ],
)
def test_a_request_is_denied_for_its_own_fault(action: Action, denial: Denial | None) -> None:
    ours = guard()
    assert denial_of(ours, action) is denial
    assert ours.denials == ({denial: 1} if denial else {})


def test_a_client_id_is_used_once() -> None:
    ours = guard()
    assert denial_of(ours, order()) is None
    assert denial_of(ours, order()) is Denial.DUPLICATE_ID


@pytest.mark.parametrize("seen", [view(stale=True), msgspec.structs.replace(view(), bids=())])
def test_nothing_is_sent_into_a_stale_or_unknown_market(seen: View) -> None:
    assert denial_of(guard(), order(), seen) is Denial.STALE_MARKET
    assert guard().allow(0, order(), None) is Denial.STALE_MARKET


def test_open_orders_count_as_if_they_had_filled() -> None:
    ours = guard()
    assert denial_of(ours, order("a", lots=10)) is None
    assert denial_of(ours, order("b", lots=10)) is None
    assert denial_of(ours, order("c", lots=1)) is Denial.POSITION_LIMIT
    assert denial_of(ours, order("d", side=-1, lots=10, price=101)) is None
    ours.hears(event_of(Cancelled, "a", reason="requested", leaves_lots=10))
    assert denial_of(ours, order("e", lots=5)) is None


def test_an_order_of_unknown_state_counts_as_open() -> None:
    ours = guard()
    denial_of(ours, order("a", lots=10))
    denial_of(ours, order("b", lots=10))
    ours.hears(event_of(Lost, "a", reason="no answer"), event_of(Lost, "b", reason="no answer"))
    assert denial_of(ours, order("c", lots=1)) is Denial.POSITION_LIMIT


def test_lots_filled_by_the_venues_count_stay_open_until_their_fills() -> None:
    ours = guard(position_usdt=1_100)
    denial_of(ours, order("a", lots=10))
    ours.hears(event_of(Cancelled, "a", reason="requested", leaves_lots=4))
    assert denial_of(ours, order("b", lots=5)) is Denial.POSITION_LIMIT
    assert denial_of(ours, order("c", lots=4)) is None
    ours.hears(fill(6, 4, "x1", "a"))
    assert ours.account.position_lots(SYMBOL) == 6
    assert denial_of(ours, order("d", lots=1)) is Denial.POSITION_LIMIT


def test_an_amend_under_way_counts_at_its_larger_quantity() -> None:
    ours = guard()
    denial_of(ours, order("a", lots=10))
    assert denial_of(ours, Amend(client_id="a", qty_lots=20)) is None
    assert denial_of(ours, order("b", lots=1)) is Denial.POSITION_LIMIT
    assert denial_of(ours, Amend(client_id="a", qty_lots=21)) is Denial.POSITION_LIMIT
    ours.hears(event_of(Amended, "a", price_ticks=100, qty_lots=20))
    assert denial_of(ours, Amend(client_id="a", price_ticks=99)) is None
    assert denial_of(ours, Amend(client_id="a", price_ticks=110)) is Denial.PRICE_BAND
    ours.hears(fill(8, 12, "x1", "a"))
    assert denial_of(ours, Amend(client_id="a", qty_lots=8), now=SECOND_NS) is Denial.BAD_QUANTITY


def test_shared_limits_are_split_into_equal_parts() -> None:
    """2,010 of 3,100 are used by another symbol: half of the rest is ours, five lots, and we
    keep it whatever the other does before the next mark."""
    ours = guard({"OTHER": 20}, position_usdt=1e9, gross_usdt=3_100)
    ours.equity(0, 1e9)
    other = msgspec.structs.replace(order("o", lots=6), symbol="OTHER")
    assert denial_of(ours, other, msgspec.structs.replace(view(), symbol="OTHER")) is (
        Denial.GROSS_LIMIT
    )
    assert denial_of(ours, order("a", lots=6)) is Denial.GROSS_LIMIT
    assert denial_of(ours, order("b", lots=5)) is None
    five = msgspec.structs.replace(order("p", lots=5), symbol="OTHER")
    assert denial_of(ours, five, msgspec.structs.replace(view(), symbol="OTHER")) is None


def test_orders_that_an_earlier_process_left_open_count() -> None:
    ours = guard()
    left = Order(
        submit=order("a", lots=20),
        parent_id="p",
        price_ticks=100,
        qty_lots=20,
        filled_lots=5,
        sent_ns=0,
        changed_ns=0,
    )
    ours.orders.restore([left])
    assert denial_of(ours, order("b", lots=6)) is Denial.POSITION_LIMIT
    assert denial_of(ours, order("a", lots=1)) is Denial.DUPLICATE_ID
    assert denial_of(ours, Cancel(client_id="a")) is None


def test_leverage_follows_equity() -> None:
    assert denial_of(guard(), order(lots=10)) is None
    poor = guard(daily_loss_usdt=1e9, drawdown_usdt=1e9)
    poor.equity(0, 1_970.0)
    assert denial_of(poor, order(lots=10)) is Denial.LEVERAGE


def test_after_a_daily_loss_only_reducing_orders_pass_until_midnight() -> None:
    ours = guard({SYMBOL: 10}, drawdown_usdt=1_000)
    ours.equity(0, 10_000.0)
    ours.equity(1, 9_950.0)
    assert denial_of(ours, order("a", lots=1)) is Denial.DAILY_LOSS
    assert denial_of(ours, order("b", side=-1, lots=10, price=101, reduce_only=True)) is None
    tomorrow = 86_400 * SECOND_NS
    ours.equity(tomorrow, 9_950.0)
    assert denial_of(ours, order("c", lots=1), now=tomorrow) is None


def test_a_drawdown_limit_outlasts_the_day() -> None:
    ours = guard()
    ours.equity(0, 10_040.0)
    ours.equity(86_400 * SECOND_NS, 9_960.0)
    assert denial_of(ours, order("a", lots=1)) is Denial.DRAWDOWN


def test_a_position_near_its_liquidation_is_not_increased() -> None:
    ours = guard({SYMBOL: 5}, leverage="25")  # liquidated some 370 bps below the entry
    assert denial_of(ours, order("a")) is Denial.LIQUIDATION
    assert denial_of(ours, order("b", side=-1, price=101)) is None
    assert denial_of(guard({SYMBOL: 5}, leverage="10"), order("c")) is None


def test_an_order_after_which_a_position_would_be_near_its_liquidation_is_denied() -> None:
    """Of a flat symbol too, and counting what is open; unknown tiers deny all that opens."""
    assert denial_of(guard(leverage="25"), order("a")) is Denial.LIQUIDATION
    ours = guard(leverage="10")
    assert ours.sends(order("a")) is None
    assert ours._headroom is not None
    ours._headroom.unknown.add(SYMBOL)
    assert denial_of(ours, order("b")) is Denial.LIQUIDATION


def test_the_rate_limit_stops_neither_cancels_nor_what_reduces() -> None:
    ours = guard({SYMBOL: 10})
    for k in range(5):
        assert denial_of(ours, order(f"a{k}", lots=1)) is None
    assert denial_of(ours, order("b", lots=1)) is Denial.RATE_LIMIT
    assert denial_of(ours, Amend(client_id="a0", price_ticks=99)) is Denial.RATE_LIMIT
    assert denial_of(ours, Cancel(client_id="a0")) is None
    assert denial_of(ours, order("c", -1, 4, 101, reduce_only=True)) is None
    assert denial_of(ours, Amend(client_id="c", price_ticks=102)) is None
    assert denial_of(ours, order("d", -1, 4, 101)) is None
    assert denial_of(ours, order("e", -1, 4, 101)) is Denial.RATE_LIMIT
    assert denial_of(ours, order("f", lots=1), now=SECOND_NS) is None


def test_symbols_that_are_only_watched_take_no_part_of_the_limits() -> None:
    """One of two is traded: all ten requests a second and the whole gross limit are its own."""
    ours = guard(traded=[SYMBOL], position_usdt=1e9, order_usdt=1e9, gross_usdt=3_100)
    for k in range(10):
        assert denial_of(ours, order(f"a{k}", lots=3)) is None
    assert denial_of(ours, order("b", lots=1)) is Denial.RATE_LIMIT
    assert denial_of(ours, order("c", lots=1), now=SECOND_NS) is Denial.GROSS_LIMIT


def test_a_position_in_a_symbol_that_is_not_traded_counts_and_may_only_be_closed() -> None:
    ours = guard({"OTHER": 20}, traded=[SYMBOL], position_usdt=1e9, gross_usdt=3_100)
    other = msgspec.structs.replace(view(), symbol="OTHER")
    more = msgspec.structs.replace(order("a", lots=1), symbol="OTHER")
    assert denial_of(ours, more, other) is Denial.NOT_TRADED
    close = msgspec.structs.replace(order("b", -1, 20, 101), symbol="OTHER", reduce_only=True)
    assert denial_of(ours, close, other) is None
    # 2,010 of 3,100 are used.
    assert denial_of(ours, order("c", lots=11)) is Denial.ORDER_LIMIT
    assert denial_of(ours, order("d", lots=10)) is None
    assert denial_of(ours, order("e", lots=1)) is Denial.GROSS_LIMIT


def test_reducing_orders_together_never_reverse_a_position() -> None:
    ours = guard({SYMBOL: 10})
    assert denial_of(ours, order("a", -1, 8, 101, reduce_only=True)) is None
    assert denial_of(ours, order("b", -1, 3, 101, reduce_only=True)) is Denial.REDUCE_ONLY
    assert denial_of(ours, order("c", -1, 2, 101, reduce_only=True)) is None


def test_duplicate_and_foreign_events_change_nothing() -> None:
    ours = guard()
    denial_of(ours, order("a"))
    twice = fill(2, 3, "x1", "a")
    second = event_of(Rejected, "a", reason="second request")
    ours.hears(twice, twice, event_of(Accepted, "b"), second)
    assert ours.account.position_lots(SYMBOL) == 2
    assert denial_of(ours, Amend(client_id="a", qty_lots=2)) is Denial.BAD_QUANTITY


def test_limits_have_to_be_positive() -> None:
    with pytest.raises(SettingsError, match=r"risk\.leverage"):
        load(environ={}, overrides=["risk.leverage=0"])


@settings(derandomize=True, max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(50, 200))
def test_no_sequence_of_signals_fills_and_faults_passes_a_limit(seed: int, steps: int) -> None:
    """The venue's own position, plus all that may still fill there, stays within the position limit
    whatever is asked for, refused, lost, doubled, late or out of order. The price stands still: it
    alone may carry a position past a limit."""
    venue, ours = ChaoticVenue(seed), guard(gross_usdt=1e9, leverage=1e3, actions_per_s=1_000)
    dice = venue.random
    limit = int(LIMITS.position_usdt / 100.5)
    names: list[str] = []
    for k in range(steps):
        chance = dice.random()
        if chance < 0.6 or not names:
            names.append(f"p-{len(names)}")
            side = dice.choice([1, -1])
            action: Action = order(names[-1], side, dice.randint(1, 10), 100 + (side < 0))
            if dice.random() < 0.3:
                action = msgspec.structs.replace(action, time_in_force=TimeInForce.IOC)
        elif chance < 0.8:
            action = Cancel(client_id=dice.choice(names))
        else:
            action = Amend(client_id=dice.choice(names), price_ticks=99)
        if ours.sends(action, now=k * SECOND_NS) is None:
            venue.send([action])
        venue.live()
        for side in (1, -1):
            still = sum(venue.leaves[n] for n, o in venue.open.items() if o.side == side)
            assert side * venue.position + still <= limit
        ours.hears(*venue.news())
