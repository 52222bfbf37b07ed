"""Clients of the exchange, their orders and their records: state only; `rows` writes them out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final

import msgspec

from execution.account import Account, value_e8
from execution.margin import Margin, MarginError, MarginMode, OpenOrder, Terms
from market.instruments import Instrument
from proving.sandbox.listing import DecimalCodec
from proving.sandbox.protocol import Row

OPEN_STATUSES: Final = ("New", "PartiallyFilled", "Untriggered")
#: Kinds of orders that close the whole position; a position has at most one of each.
FULL_STOP_KINDS: Final = ("TakeProfit", "StopLoss", "TrailingStop")
#: Every kind of trigger.
STOP_KINDS: Final = ("Stop", *FULL_STOP_KINDS, "PartialTakeProfit", "PartialStopLoss")
#: Records of each kind kept per client, the newest: an exchange that runs for days must not grow.
KEPT: Final = 1_000
#: The transaction log goes back for days.
TRANSACTIONS: Final = 50_000


class Trigger(msgspec.Struct, kw_only=True):
    """The trigger condition of a conditional order; prices at 1e-8."""

    kind: str
    on_rise: bool  #: triggers at or above the price, else at or below
    price_e8: int
    by: str = "LastPrice"
    distance_e8: int = 0  #: of a trailing stop, from the best price since its activation
    activation_e8: int = 0  #: price that activates a trailing stop; 0 once it is active
    partner: VenueOrder | None = None  #: the other leg of a pair, cancelled when this one triggers

    def update(self, low_e8: int, high_e8: int) -> bool:
        """Whether a price range triggers; a trailing stop is activated and moved first."""
        if self.activation_e8:
            reached = (
                low_e8 <= self.activation_e8 if self.on_rise else high_e8 >= self.activation_e8
            )
            if not reached:
                return False
            self.activation_e8 = 0
        if self.distance_e8 and self.on_rise:
            self.price_e8 = min(self.price_e8, low_e8 + self.distance_e8)
        elif self.distance_e8:
            self.price_e8 = max(self.price_e8, high_e8 - self.distance_e8)
        return high_e8 >= self.price_e8 if self.on_rise else low_e8 <= self.price_e8


class Stops(msgspec.Struct, frozen=True, kw_only=True):
    """Take-profit, stop-loss and trailing stop of one request.

    Prices at 1e-8: 0 removes one, None leaves it unchanged.
    """

    take_profit_e8: int | None = None
    stop_loss_e8: int | None = None
    trailing_e8: int | None = None
    activation_e8: int = 0
    take_by: str = "LastPrice"
    stop_by: str = "LastPrice"
    partial: bool = False
    take_limit_ticks: int = 0  #: 0 for a market order
    stop_limit_ticks: int = 0

    def full(self) -> tuple[tuple[str, int | None, str], ...]:
        """(kind, price, watched price) of the orders that close the whole position."""
        return (
            ("TakeProfit", self.take_profit_e8, self.take_by),
            ("StopLoss", self.stop_loss_e8, self.stop_by),
            ("TrailingStop", self.trailing_e8, "LastPrice"),
        )

    def parts(self) -> tuple[tuple[str, int | None, str, int], ...]:
        """(kind, price, watched price, limit ticks) of the orders that close a part of it."""
        return (
            ("PartialTakeProfit", self.take_profit_e8, self.take_by, self.take_limit_ticks),
            ("PartialStopLoss", self.stop_loss_e8, self.stop_by, self.stop_limit_ticks),
        )


class VenueOrder(msgspec.Struct, kw_only=True, eq=False):
    """One order of a client at the venue; money at 1e-8, times in simulated ms."""

    client: Client
    codec: DecimalCodec
    number: int  #: in order of creation
    order_id: str
    link_id: str
    side: int
    is_market: bool
    ticks: int  #: limit price; of a market order the worst price it may get
    lots: int
    time_in_force: str
    reduce_only: bool
    close_on_trigger: bool
    created_ms: int
    updated_ms: int
    last_ticks: int  #: last trade when it was created
    handle: int = 0  #: in the matching engine
    status: str = "New"
    cancel_type: str = "UNKNOWN"
    reject_reason: str = "EC_NoError"
    executed_lots: int = 0
    value_e8: int = 0
    fee_e8: int = 0
    closed_pnl_e8: int = 0
    create_type: str = "CreateByUser"
    trigger: Trigger | None = None
    stops: Stops | None = None  #: take-profit and stop-loss attached to its fills
    smp_type: str = "None"  #: self-match prevention
    smp_order_id: str = ""  #: the own order that it would have matched
    has_armed: bool = False  #: its stops stand since its first fill
    is_in_flight: bool = False  #: accepted by the gateway, not yet in the market

    @property
    def symbol(self) -> str:
        return self.codec.instrument.symbol

    @property
    def is_open(self) -> bool:
        return self.status in OPEN_STATUSES

    @property
    def leaves_lots(self) -> int:
        return self.lots - self.executed_lots if self.is_open else 0

    @property
    def only_reduces(self) -> bool:
        return self.reduce_only or self.close_on_trigger

    def for_margin(self) -> OpenOrder:
        return OpenOrder(self.symbol, self.side, self.ticks, self.leaves_lots)


class PositionMeta(msgspec.Struct):
    """Times and sequence of a position, which the account's arithmetic does not keep."""

    created_ms: int = 0
    updated_ms: int = 0
    sequence: int = -1  #: -1 before the first execution


class ClosedPnl(msgspec.Struct, kw_only=True):
    """What one order closed of a position; money at 1e-8."""

    order: VenueOrder
    lots: int = 0
    entry_e8: int = 0
    exit_e8: int = 0
    pnl_e8: int = 0
    fills: int = 0
    exec_type: str = "Trade"
    leverage: str = "1"


class ClientMargin(Margin):
    """Margin as the exchange judges its clients' requests by it."""

    def set_leverage(self, symbol: str, leverage: str) -> None:
        """Change the leverage of the position and of later orders; MarginError when its tier forbids
        it."""
        if Fraction(leverage) < 1:
            raise MarginError(f"{symbol}: leverage {leverage} is below 1")
        changed = msgspec.structs.replace(self.terms[symbol], leverage=leverage)
        changed.tier(abs(self.account.holdings[symbol].cost_e8))
        self.terms[symbol] = changed

    def accepts(
        self, order: OpenOrder, marks: Mapping[str, int], orders: Sequence[OpenOrder]
    ) -> bool:
        """Whether the available balance covers one order more, and a risk tier its full fill."""
        holding, terms = self.account.holdings[order.symbol], self.terms[order.symbol]
        reached = abs(holding.position_lots + order.side * order.leaves_lots)
        try:
            terms.tier(value_e8(holding.instrument, order.price_ticks, reached))
        except MarginError:
            return False
        more = self.orders_e8([*orders, order]) - self.orders_e8(orders)
        return more <= max(0, self.available_e8(marks, orders))


class Client:
    """One account with its API key, orders and records. ``owner`` marks its orders in the market."""

    def __init__(
        self,
        owner: int,
        key: str,
        secret: str,
        instruments: dict[str, Instrument],
        terms: dict[str, Terms],
        deposit_e8: int,
        opened_ms: int = 0,
    ) -> None:
        self.owner, self.key, self.secret = owner, key, secret
        self.account = Account(instruments, deposit_e8)
        self.margin = ClientMargin(self.account, terms)
        self.mode = MarginMode.CROSS
        self.is_read_only = self.may_withdraw = False  #: rights of the key
        self.is_hedged = False  #: the account is in hedge mode, in which every order is refused
        #: maker and taker fee by symbol, where they are not the listing's
        self.fees: dict[str, tuple[str, str]] = {}
        self.clamps_price = True  #: a price beyond the price limits moves to the limit
        self.dcp_windows_s: dict[str, int] = {}  #: of disconnect-cancel-all, by product
        self.open: dict[str, VenueOrder] = {}  #: in the market, by order id, oldest first
        self.untriggered: dict[str, VenueOrder] = {}  #: conditional orders, by order id
        self.closed: deque[VenueOrder] = deque(maxlen=KEPT)
        self.by_link_id: dict[str, VenueOrder] = {}
        self.executions: deque[Row] = deque(maxlen=KEPT)
        self.closed_pnls: deque[ClosedPnl] = deque(maxlen=KEPT)
        self.transactions: deque[Row] = deque(maxlen=TRANSACTIONS)
        self.position_meta = {symbol: PositionMeta(opened_ms, opened_ms) for symbol in instruments}

    def fee_rates(self, instrument: Instrument) -> tuple[str, str]:
        """Maker and taker fee of a symbol."""
        return self.fees.get(instrument.symbol, (instrument.maker_fee, instrument.taker_fee))

    def close(self, order: VenueOrder) -> None:
        """Move an order to the closed ones, which may drop the oldest of them."""
        self.open.pop(order.order_id, None)
        self.untriggered.pop(order.order_id, None)
        if len(self.closed) == KEPT:
            dropped = self.closed[0]
            if self.by_link_id.get(dropped.link_id) is dropped:
                del self.by_link_id[dropped.link_id]
        self.closed.append(order)

    def position_lots(self, symbol: str) -> int:
        """The signed position in a symbol."""
        return self.account.holdings[symbol].position_lots

    def held_symbols(self) -> list[str]:
        """Symbols with a position."""
        return [s for s, holding in self.account.holdings.items() if holding.position_lots]

    def open_orders(self) -> list[OpenOrder]:
        """Orders in the market, as margin is computed from them."""
        return [order.for_margin() for order in self.open.values()]

    def full_stops(self, symbol: str) -> dict[str, VenueOrder]:
        """The untriggered orders that close the whole position of a symbol, by kind."""
        return {
            order.trigger.kind: order
            for order in self.untriggered.values()
            if order.symbol == symbol and order.trigger and order.trigger.kind in FULL_STOP_KINDS
        }

    def margins_e8(self, marks: dict[str, int]) -> tuple[int, int, int]:
        """Unrealised profit, initial and maintenance margin of all positions at their marks."""
        held, margin = self.held_symbols(), self.margin
        securities = [margin.security(symbol, marks[symbol]) for symbol in held]
        return (
            sum(margin.unrealised_e8(symbol, marks[symbol]) for symbol in held),
            sum(security.initial_e8 for security in securities if security),
            sum(security.maintenance_e8 for security in securities if security),
        )

    def margin_rates(
        self, marks: dict[str, int], more: Sequence[OpenOrder] = ()
    ) -> tuple[int, int]:
        """Initial and maintenance margin, ``more`` orders included, in 1/10,000 of the equity."""
        profit, initial, maintenance = self.margins_e8(marks)
        initial += self.margin.orders_e8([*self.open_orders(), *more])
        equity = max(1, self.account.balance_e8 + profit)
        return initial * 10_000 // equity, maintenance * 10_000 // equity

    def set_mode(self, mode: MarginMode) -> None:
        """Isolated or cross margin, for every symbol of the account."""
        terms = self.margin.terms
        for symbol, term in terms.items():
            terms[symbol] = msgspec.structs.replace(term, mode=mode)
        self.mode = mode
