"""Order entry: requests checked as the venue checks them, then carried out.

Each function takes a client and the request's body and returns the result, or raises a `RefusedError`
that has changed nothing. Conditional orders, attached take-profit and stop-loss, self-match
prevention and slippage tolerance are not here yet: a request that asks for one is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from execution.account import value_e8
from execution.margin import MarginError, OpenOrder
from live.sandbox.exchange import FORCES, Exchange
from live.sandbox.listing import LISTINGS
from live.sandbox.refusal import RefusedError
from live.sandbox.tape import Tape
from live.sandbox.trading import Client, Order

Body = Mapping[str, Any]
Result = dict[str, Any]

MOST_OPEN: Final = 500
MOST_IN_BATCH: Final = 20
_LINK: Final = re.compile(r"[A-Za-z0-9_-]{1,36}")
_SIDES: Final = {"Buy": 1, "Sell": -1}
#: What an order may ask for elsewhere, and the values that ask for nothing.
_NOT_HERE: Final = {
    "triggerPrice": ("", "0"),
    "takeProfit": ("", "0"),
    "stopLoss": ("", "0"),
    "slippageTolerance": ("", "0"),
    "bboSideType": ("",),
    "smpType": ("", "None"),
}


def text(body: Body, name: str, default: str = "") -> str:
    """A string of a request."""
    value = body.get(name, default)
    if not isinstance(value, str):
        raise RefusedError(10001, f"params error: {name} invalid")
    return value


def tape_of(exchange: Exchange, body: Body) -> Tape:
    """The symbol a request is about; refused outside the linear category and for unknown symbols."""
    if body.get("category") != "linear":
        raise RefusedError(10001, "Illegal category")
    tape = exchange.tapes.get(text(body, "symbol"))
    if tape is None:
        raise RefusedError(10001, "params error: symbol invalid")
    return tape


def create(exchange: Exchange, client: Client, body: Body) -> Result:
    """A new order; what becomes of it is not said here."""
    tape = tape_of(exchange, body)
    side = _SIDES.get(text(body, "side"))
    if side is None:
        raise RefusedError(10001, "params error: side invalid")
    kind = text(body, "orderType")
    if kind not in ("Limit", "Market"):
        raise RefusedError(10001, "params error: orderType invalid")
    is_market = kind == "Market"
    force = "IOC" if is_market else (text(body, "timeInForce") or "GTC")
    if force not in FORCES:
        raise RefusedError(10001, "params error: timeInForce invalid")
    if body.get("positionIdx", 0) not in (0, "0"):
        raise RefusedError(10001, "position idx not match position mode")
    for name, nothing in _NOT_HERE.items():
        if text(body, name) not in nothing:
            raise RefusedError(10001, f"params error: {name} is not supported by this venue yet")
    link_id = _link(client, body)
    reduce_only, close = _flag(body, "reduceOnly"), _flag(body, "closeOnTrigger")
    held = client.account.holdings[tape.symbol].position_lots
    if body.get("qty") == "0" and reduce_only and close:
        lots = min(abs(held), _most(tape, is_market))
    else:
        lots = tape.figures.lots(body.get("qty"))
        _check_size(tape, lots, is_market)
    if reduce_only:
        rests = force in ("GTC", "PostOnly")
        lots = min(lots, _reducible(client, tape.symbol, side, rests=rests))
    low, high = tape.band()
    if is_market:
        ticks = high if side > 0 else low
    else:
        ticks = _within(tape, client, side, tape.figures.ticks(body.get("price")))
    if not reduce_only:
        _check_value(tape, ticks, lots)
        _check_margin(exchange, client, OpenOrder(tape.symbol, side, ticks, lots))
    if sum(order.symbol == tape.symbol for order in client.open.values()) >= MOST_OPEN:
        raise RefusedError(110020, "You can not have more than 500 active orders")
    order = exchange.order(
        client,
        tape.symbol,
        side,
        ticks,
        lots,
        market=is_market,
        force=force,
        link_id=link_id,
        reduce_only=reduce_only,
        close_on_trigger=close,
    )
    client.open[order.order_id] = order
    if link_id:
        client.links[link_id] = order
    exchange.enter(order)
    return _ack(order)


def amend(exchange: Exchange, client: Client, body: Body) -> Result:
    """Another price, another total quantity, or both."""
    tape = tape_of(exchange, body)
    order = _open_order(client, tape, body, "to replace")
    for name, nothing in _NOT_HERE.items():
        if text(body, name) not in nothing:
            raise RefusedError(10001, f"params error: {name} is not supported by this venue yet")
    ticks, lots = order.ticks, order.lots
    if text(body, "price"):
        ticks = _within(tape, client, order.side, tape.figures.ticks(body["price"]))
    if text(body, "qty"):
        lots = tape.figures.lots(body["qty"])
        _check_size(tape, lots, order.market)
        if lots <= order.executed_lots:
            raise RefusedError(110064, "The amended qty is not more than what is filled already")
    if (ticks, lots) == (order.ticks, order.lots):
        raise RefusedError(
            10001, "The order remains unchanged as the parameters entered match the existing ones."
        )
    if order.reduce_only:
        room = _reducible(client, tape.symbol, order.side, order)
        lots = min(lots, order.executed_lots + room)
    else:
        _check_value(tape, ticks, lots)
        left = OpenOrder(tape.symbol, order.side, ticks, lots - order.executed_lots)
        _check_margin(exchange, client, left, order)
    exchange.amend(order, ticks, lots)
    return _ack(order)


def cancel(exchange: Exchange, client: Client, body: Body) -> Result:
    """One order, by its id or else by its link id."""
    order = _open_order(client, tape_of(exchange, body), body, "to cancel")
    exchange.cancel(order)
    return _ack(order)


def cancel_all(exchange: Exchange, client: Client, body: Body) -> Result:
    """Every open order of a symbol or of the settlement coin."""
    if body.get("category") != "linear":
        raise RefusedError(10001, "Illegal category")
    symbol = text(body, "symbol")
    if symbol:
        tape_of(exchange, body)
    elif not (text(body, "settleCoin") or text(body, "baseCoin")):
        raise RefusedError(10001, "params error: symbol, baseCoin or settleCoin is required")
    chosen = [order for order in client.open.values() if _chosen(order, body)]
    for order in chosen:
        exchange.cancel(order)
    return {"list": [_ack(order) for order in chosen], "success": "1"}


def _chosen(order: Order, body: Body) -> bool:
    if text(body, "symbol"):
        return order.symbol == text(body, "symbol")
    if text(body, "baseCoin"):
        return order.symbol == f"{body['baseCoin']}USDT"
    return text(body, "settleCoin") == "USDT"


def batch(
    single: Callable[[Exchange, Client, Body], Result],
    exchange: Exchange,
    client: Client,
    body: Body,
) -> tuple[Result, Result]:
    """Several requests of a kind: their results, and beside them code and message of each."""
    requests = body.get("request")
    if body.get("category") != "linear":
        raise RefusedError(10001, "Illegal category")
    if not isinstance(requests, list) or not 1 <= len(requests) <= MOST_IN_BATCH:
        raise RefusedError(10001, "params error: request invalid")
    rows: list[Result] = []
    codes: list[Result] = []
    for request in requests:
        leg = dict(request) if isinstance(request, dict) else {}
        done = {"orderId": "", "orderLinkId": str(leg.get("orderLinkId", ""))}
        created, code, message = "", 0, "OK"
        try:
            done = single(exchange, client, {**leg, "category": "linear"})
            created = str(exchange.now_ms)
        except RefusedError as refusal:
            code, message = refusal.code, refusal.message
        row = {"category": "linear", "symbol": str(leg.get("symbol", "")), **done}
        rows.append({**row, "createAt": created} if single is create else row)
        codes.append({"code": code, "msg": message})
    return {"list": rows}, {"list": codes}


# -- checks ----------------------------------------------------------------------------------------


def _ack(order: Order) -> Result:
    return {"orderId": order.order_id, "orderLinkId": order.link_id}


def _flag(body: Body, name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RefusedError(10001, f"params error: {name} invalid")
    return value


def _link(client: Client, body: Body) -> str:
    link_id = text(body, "orderLinkId")
    if link_id and not _LINK.fullmatch(link_id):
        raise RefusedError(10001, "params error: orderLinkId invalid")
    if link_id in client.links:
        raise RefusedError(110072, "OrderLinkedID is duplicate")
    return link_id


def _open_order(client: Client, tape: Tape, body: Body, purpose: str) -> Order:
    order_id, link_id = text(body, "orderId"), text(body, "orderLinkId")
    if not order_id and not link_id:
        raise RefusedError(10001, "params error: OrderId or orderLinkId is required")
    order = client.open.get(order_id) if order_id else client.links.get(link_id)
    if order is None or not order.is_open or order.symbol != tape.symbol:
        raise RefusedError(110001, f"order not exists or too late {purpose}")
    return order


def _most(tape: Tape, is_market: bool) -> int:
    listing = LISTINGS[tape.symbol]
    return tape.figures.lots(listing.max_market_qty if is_market else listing.max_qty)


def _check_size(tape: Tape, lots: int, is_market: bool) -> None:
    if lots < tape.instrument.qty_lots(tape.instrument.min_qty):
        raise RefusedError(10001, "The number of contracts exceeds minimum limit allowed")
    if lots > _most(tape, is_market):
        raise RefusedError(
            10001, "The number of contracts exceeds maximum limit allowed: too large"
        )


def _check_value(tape: Tape, ticks: int, lots: int) -> None:
    least = tape.instrument.min_notional
    if value_e8(tape.instrument, ticks, lots) < Decimal(least).scaleb(8):
        raise RefusedError(110094, f"Order does not meet minimum order value {least}USDT")


def _reducible(
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


def _within(tape: Tape, client: Client, side: int, ticks: int) -> int:
    """A limit price at the edge of the band when it is beyond; refused for those who want that."""
    listing, figures = LISTINGS[tape.symbol], tape.figures
    if not figures.ticks(listing.min_price) <= ticks <= figures.ticks(listing.max_price):
        raise RefusedError(110003, "Order price is out of permissible range")
    low, high = tape.band()
    inside = min(ticks, high) if side > 0 else max(ticks, low)
    if inside != ticks and not client.moves_price:
        raise RefusedError(110003, "Order price is out of permissible range")
    return inside


def _check_margin(
    exchange: Exchange, client: Client, order: OpenOrder, but: Order | None = None
) -> None:
    """Room for an order beside the others, ``but`` for one that it takes the place of."""
    others = [held.for_margin() for held in client.open.values() if held is not but]
    holding, terms = client.account.holdings[order.symbol], client.margin.terms[order.symbol]
    reached = abs(holding.position_lots + order.side * order.leaves_lots)
    try:
        terms.tier(value_e8(holding.instrument, order.price_ticks, reached))
    except MarginError as error:
        raise RefusedError(110090, f"Order exceeds the maximum position limit: {error}") from None
    if not client.margin.accepts(order, exchange.marks(), others):
        raise RefusedError(110007, "ab not enough for new order")
