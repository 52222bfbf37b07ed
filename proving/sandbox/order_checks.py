"""The sandbox venue's order checks, with the venue's codes (our own limits are `execution.risk`)."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from execution.account import value_e8
from execution.margin import MarginError, OpenOrder
from market.units import E8
from proving.sandbox.accounts import Client, Stops, Trigger, VenueOrder
from proving.sandbox.listing import LISTINGS
from proving.sandbox.protocol import RefusedError
from proving.sandbox.tape import PublicTape

#: Open and conditional orders of a client and symbol.
MAX_OPEN: Final = 500
MAX_CONDITIONAL: Final = 10


def max_order_lots(tape: PublicTape, is_market: bool) -> int:
    """The largest order of a symbol."""
    listing = LISTINGS[tape.symbol]
    return tape.codec.lots(listing.max_market_qty if is_market else listing.max_qty)


def check_size(tape: PublicTape, lots: int, is_market: bool) -> None:
    """Refuse a quantity below the symbol's minimum or above its maximum."""
    if lots < tape.instrument.qty_lots(tape.instrument.min_qty):
        raise RefusedError(10001, "The number of contracts exceeds minimum limit allowed")
    if lots > max_order_lots(tape, is_market):
        raise RefusedError(
            10001, "The number of contracts exceeds maximum limit allowed: too large"
        )


def check_notional(tape: PublicTape, ticks: int, lots: int) -> None:
    """Refuse an order below the symbol's minimum notional."""
    minimum = tape.instrument.min_notional
    if value_e8(tape.instrument, ticks, lots) < Decimal(minimum).scaleb(8):
        raise RefusedError(110094, f"Order does not meet minimum order value {minimum}USDT")


def check_price_range(tape: PublicTape, ticks: int) -> None:
    """Refuse a price outside the symbol's permanent range."""
    listing, codec = LISTINGS[tape.symbol], tape.codec
    if not codec.ticks(listing.min_price) <= ticks <= codec.ticks(listing.max_price):
        raise RefusedError(110003, "Order price is out of permissible range")


def price_in_limits(tape: PublicTape, client: Client, side: int, ticks: int) -> int:
    """A limit price clamped to the current price limits, or refused if its client wants that."""
    low, high = tape.price_limits()
    clamped = min(ticks, high) if side > 0 else max(ticks, low)
    check_price_range(tape, ticks)
    if clamped != ticks and not client.clamps_price:
        raise RefusedError(110003, "Order price is out of permissible range")
    return clamped


def check_trigger_side(trigger: Trigger, current_e8: int) -> None:
    """Refuse a trigger price that the current price has passed already."""
    if trigger.on_rise and trigger.price_e8 <= current_e8:
        code, direction, sign = 110092, "Rising", "<="
    elif not trigger.on_rise and trigger.price_e8 >= current_e8:
        code, direction, sign = 110093, "Falling", ">="
    else:
        return
    raise RefusedError(
        code,
        f"expect {direction}, but trigger_price[{trigger.price_e8}] {sign} "
        f"current[{current_e8}]??LastPrice",
    )


def check_stop_sides(stops: Stops, side: int, base_e8: int) -> None:
    """Refuse a take-profit or stop-loss on the wrong side of the entry price of a position."""
    for name, price_e8, sign in (
        ("TakeProfit", stops.take_profit_e8, side),
        ("StopLoss", stops.stop_loss_e8, -side),
    ):
        if price_e8 and sign * (price_e8 - base_e8) <= 0:
            where = "higher" if sign > 0 else "lower"
            position = "Buy" if side > 0 else "Sell"
            raise RefusedError(
                10001,
                f"{name}:{price_e8 / E8:.2f} set for {position} position should be {where} than "
                f"base_price:{base_e8 / E8:.2f}",
            )


def reducible_lots(
    client: Client,
    symbol: str,
    side: int,
    replaced: VenueOrder | None = None,
    *,
    rests: bool = True,
) -> int:
    """Lots that a new reduce-only order may have; refused when there are none.

    A resting order shares the position with the resting reduce-only orders other than ``replaced``. One
    that executes at once does not: the others are trimmed afterwards.
    """
    position = -side * client.position_lots(symbol)
    if position <= 0:
        raise RefusedError(110017, "current position is zero, cannot fix reduce-only order qty")
    committed = sum(
        order.leaves_lots
        for order in client.open.values()
        if rests and order.only_reduces and order.symbol == symbol and order is not replaced
    )
    if committed >= position:
        raise RefusedError(110017, "Reduce-only rule not satisfied")
    return position - committed


def check_margin(
    client: Client,
    order: OpenOrder,
    marks: Mapping[str, int],
    replaced: VenueOrder | None = None,
) -> None:
    """Refuse an order for which risk tier or margin leave no room beside the other open orders."""
    others = [other.for_margin() for other in client.open.values() if other is not replaced]
    holding, terms = client.account.holdings[order.symbol], client.margin.terms[order.symbol]
    position = abs(holding.position_lots + order.side * order.leaves_lots)
    try:
        terms.tier(value_e8(holding.instrument, order.price_ticks, position))
    except MarginError as error:
        raise RefusedError(110090, f"Order exceeds the maximum position limit: {error}") from None
    if not client.margin.accepts(order, marks, others):
        raise RefusedError(110007, "ab not enough for new order")


def check_order_count(client: Client, symbol: str, *, conditional: bool) -> None:
    """Refuse one order more than a symbol may have."""
    if conditional:
        stops = [o for o in client.untriggered.values() if o.trigger and o.trigger.kind == "Stop"]
        if sum(order.symbol == symbol for order in stops) >= MAX_CONDITIONAL:
            raise RefusedError(110009, "You can not have more than 10 conditional orders")
    elif sum(order.symbol == symbol for order in client.open.values()) >= MAX_OPEN:
        raise RefusedError(110020, "You can not have more than 500 active orders")
