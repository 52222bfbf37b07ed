"""Orders, their states, and the messages between us and a venue: requests, and evidence of what became
of them.

Signs: ``side`` is +1 buy, -1 sell, and a formula has one path with the sign in it. Prices are ticks
and quantities lots, integers both. Times are epoch ns.

`execution.order_machine` folds the evidence into the state of each order; nobody else does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class OrderState(StrEnum):
    """State of an order by the events received so far; the diagram is above."""

    PENDING_NEW = "PENDING_NEW"
    NEW = "NEW"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    PENDING_CANCEL = "PENDING_CANCEL"
    FILLED = "FILLED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    UNKNOWN = "UNKNOWN"

    @property
    def is_final(self) -> bool:
        """Whether the order can no longer fill."""
        return self in (OrderState.FILLED, OrderState.CANCELLED, OrderState.REJECTED)


class OrderType(StrEnum):
    LIMIT = "Limit"
    MARKET = "Market"


class TimeInForce(StrEnum):
    """Time in force: good till cancelled, immediate or cancel, fill or kill, or post-only."""

    GTC = "GTC"
    IOC = "IOC"
    FOK = "FOK"
    POST_ONLY = "PostOnly"


#: An order of these takes what it can at once, and rests never.
NEVER_REST: Final = (TimeInForce.IOC, TimeInForce.FOK)


class Liquidity(StrEnum):
    """Whether a fill provided liquidity (maker) or took it (taker)."""

    MAKER = "maker"
    TAKER = "taker"


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, gc=False):
    """Base of actions and events; tagged, so a journal can read them back."""


# -- actions: requests to the venue ----------------------------------------------------------------


class Submit(Message, frozen=True, kw_only=True):
    """A new order. ``client_id`` is unique for ever: sent twice, the second is rejected.

    ``stop_ticks`` is the trigger price of the stop that the venue arms with the position that the order
    opens; 0 for none.
    """

    client_id: str
    symbol: str
    side: int
    qty_lots: int
    #: Every order of ours has a limit price; a market order, which ignores it, is denied by the guard.
    price_ticks: int = 0
    order_type: OrderType = OrderType.LIMIT
    time_in_force: TimeInForce = TimeInForce.GTC
    reduce_only: bool = False
    stop_ticks: int = 0


class Amend(Message, frozen=True, kw_only=True):
    """New price and/or new total quantity; None leaves it as it is."""

    client_id: str
    price_ticks: int | None = None
    qty_lots: int | None = None


class Cancel(Message, frozen=True, kw_only=True):
    """Cancel the open quantity of an order."""

    client_id: str


Action = Submit | Amend | Cancel


# -- evidence: what the venue says, or does not say ------------------------------------------------


class ExecutionType(StrEnum):
    """What moved a position. An execution of an unknown type halts its symbol."""

    TRADE = "Trade"
    DELEVERAGING = "AdlTrade"
    LIQUIDATION = "BustTrade"
    SETTLEMENT = "Settle"
    UNKNOWN = "unknown"


class OrderEvent(Message, frozen=True, kw_only=True):
    """Base: ``time_ns`` is when we learn it, ``venue_ns`` when it happened at the venue.

    ``client_id`` is empty for what is not of an order of ours.
    """

    client_id: str
    time_ns: int
    venue_ns: int


class Accepted(OrderEvent, frozen=True, kw_only=True):
    """The venue took the order; it may rest or fill."""

    venue_order_id: str = ""


class Rejected(OrderEvent, frozen=True, kw_only=True):
    """The venue did not take the order, or our own guard denied it (reason ``risk: …``).

    ``duplicate``: the id was used before, which is evidence that an order of that id is at the venue.
    """

    reason: str
    duplicate: bool = False


class Filled(OrderEvent, frozen=True, kw_only=True):
    """One execution. ``fee_e8`` is in quote currency at 1e-8, positive when paid."""

    exec_id: str
    symbol: str
    side: int
    qty_lots: int
    price_ticks: int
    liquidity: Liquidity
    fee_e8: int
    leaves_lots: int
    #: Queue ahead when the order was placed, for the analysis of queue position.
    queue_ahead_lots: int = 0
    venue_order_id: str = ""
    execution: ExecutionType = ExecutionType.TRADE


class Amended(OrderEvent, frozen=True, kw_only=True):
    """The price and the total quantity of an order after an amend."""

    price_ticks: int
    qty_lots: int


class Cancelled(OrderEvent, frozen=True, kw_only=True):
    """The order ended with ``leaves_lots`` unfilled (0: not known)."""

    reason: str
    leaves_lots: int = 0


class CancelRejected(OrderEvent, frozen=True, kw_only=True):
    """A cancel or amend was rejected; the order's state is unchanged, unless it is ``gone``: the venue
    has no such open order, so what became of it has to be asked.
    """

    reason: str
    gone: bool = False


class Lost(OrderEvent, frozen=True, kw_only=True):
    """No answer came within the deadline: the order is UNKNOWN until evidence closes it."""

    reason: str


class OrderReport(OrderEvent, frozen=True, kw_only=True):
    """An order as the venue states it, on the private stream or in a query: cumulative, so that reports
    may be lost, repeated or late. ``filled_lots`` is the cumulative executed quantity, ``state`` one of
    NEW, PARTIALLY_FILLED, FILLED, CANCELLED and REJECTED; ``is_stop`` for an untriggered stop.
    """

    venue_order_id: str
    symbol: str
    side: int
    state: OrderState
    price_ticks: int
    qty_lots: int
    filled_lots: int
    reason: str = ""
    reduce_only: bool = False
    is_stop: bool = False


Event = Accepted | Rejected | Filled | Amended | Cancelled | CancelRejected | Lost | OrderReport
