"""What an order is checked for before it may enter the market, with the venue's codes."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from execution.account import value_e8
from execution.margin import MarginError, OpenOrder
from proving.sandbox.listing import LISTINGS
from proving.sandbox.refusal import RefusedError
from proving.sandbox.tape import Tape
from proving.sandbox.trading import Client, Order

Body = Mapping[str, Any]

MOST_OPEN: Final = 500
MOST_CONDITIONAL: Final = 10


def text(body: Body, name: str, default: str = "") -> str:
    """A string of a request."""
    value = body.get(name, default)
    if not isinstance(value, str):
        raise RefusedError(10001, f"params error: {name} invalid")
    return value


def flag(body: Body, name: str) -> bool:
    """A boolean of a request, false by default."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RefusedError(10001, f"params error: {name} invalid")
    return value


def choice(body: Body, name: str, known: tuple[str, ...]) -> str:
    """One of some words, the first by default."""
    chosen = text(body, name) or known[0]
    if chosen not in known:
        raise RefusedError(10001, f"params error: {name} invalid")
    return chosen


def most_lots(tape: Tape, is_market: bool) -> int:
    """The largest order of a symbol."""
    listing = LISTINGS[tape.symbol]
    return tape.figures.lots(listing.max_market_qty if is_market else listing.max_qty)


def size(tape: Tape, lots: int, is_market: bool) -> None:
    if lots < tape.instrument.qty_lots(tape.instrument.min_qty):
        raise RefusedError(10001, "The number of contracts exceeds minimum limit allowed")
    if lots > most_lots(tape, is_market):
        raise RefusedError(
            10001, "The number of contracts exceeds maximum limit allowed: too large"
        )


def worth(tape: Tape, ticks: int, lots: int) -> None:
    """The least value of an order."""
    least = tape.instrument.min_notional
    if value_e8(tape.instrument, ticks, lots) < Decimal(least).scaleb(8):
        raise RefusedError(110094, f"Order does not meet minimum order value {least}USDT")


def within_limits(tape: Tape, ticks: int) -> int:
    """A price that the symbol may ever have."""
    listing, figures = LISTINGS[tape.symbol], tape.figures
    if not figures.ticks(listing.min_price) <= ticks <= figures.ticks(listing.max_price):
        raise RefusedError(110003, "Order price is out of permissible range")
    return ticks


def within_band(tape: Tape, client: Client, side: int, ticks: int) -> int:
    """A limit price at the edge of the band when it is beyond; refused for those who want that."""
    low, high = tape.band()
    inside = min(ticks, high) if side > 0 else max(ticks, low)
    if inside != within_limits(tape, ticks) and not client.moves_price:
        raise RefusedError(110003, "Order price is out of permissible range")
    return inside


def reducible(
    client: Client, symbol: str, side: int, but: Order | None = None, *, rests: bool = True
) -> int:
    """Lots that one more reduce-only order may have: of one that rests, beside those that do.

    For one that executes at once the others give way afterwards.
    """
    held = -side * client.account.holdings[symbol].position_lots
    if held <= 0:
        raise RefusedError(110017, "current position is zero, cannot fix reduce-only order qty")
    asked = sum(
        order.leaves_lots
        for order in client.open.values()
        if rests and order.reduce_only and order.symbol == symbol and order is not but
    )
    if asked >= held:
        raise RefusedError(110017, "Reduce-only rule not satisfied")
    return held - asked


def margin(
    client: Client, order: OpenOrder, marks: Mapping[str, int], but: Order | None = None
) -> None:
    """Room for an order beside the others, ``but`` for one that it takes the place of."""
    others = [held.for_margin() for held in client.open.values() if held is not but]
    holding, terms = client.account.holdings[order.symbol], client.margin.terms[order.symbol]
    reached = abs(holding.position_lots + order.side * order.leaves_lots)
    try:
        terms.tier(value_e8(holding.instrument, order.price_ticks, reached))
    except MarginError as error:
        raise RefusedError(110090, f"Order exceeds the maximum position limit: {error}") from None
    if not client.margin.accepts(order, marks, others):
        raise RefusedError(110007, "ab not enough for new order")


def count(client: Client, symbol: str, *, conditional: bool) -> None:
    """One order more of a symbol."""
    if conditional:
        own = [o for o in client.waiting.values() if o.trigger and o.trigger.kind == "Stop"]
        if sum(order.symbol == symbol for order in own) >= MOST_CONDITIONAL:
            raise RefusedError(110009, "You can not have more than 10 conditional orders")
    elif sum(order.symbol == symbol for order in client.open.values()) >= MOST_OPEN:
        raise RefusedError(110020, "You can not have more than 500 active orders")
