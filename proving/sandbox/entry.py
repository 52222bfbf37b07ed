"""Order entry: requests checked as the venue checks them, then carried out.

Each function takes a client and the request's body and returns the result, or raises a `RefusedError`
that has changed nothing. Hedge mode is not here: a request for it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import msgspec

from execution.margin import OpenOrder
from proving.sandbox import checks
from proving.sandbox.checks import Body, choice, flag, text
from proving.sandbox.exchange import FORCES, Exchange
from proving.sandbox.figures import number
from proving.sandbox.refusal import RefusedError
from proving.sandbox.tape import Tape
from proving.sandbox.trading import Client, Order, Stops, Trigger
from proving.sandbox.triggers import check_side, check_stops

Result = dict[str, Any]

MOST_IN_BATCH: Final = 20
TOO_MANY: Final = "Too many visits. Exceeded the API Rate Limit."
SELF_MATCH: Final = ("None", "CancelMaker", "CancelTaker", "CancelBoth")
#: Prices that an order may wait for, the default first.
WATCHED: Final = ("LastPrice", "MarkPrice", "IndexPrice")
_LINK: Final = re.compile(r"[A-Za-z0-9_-]{1,36}")
_SIDES: Final = {"Buy": 1, "Sell": -1}


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
    order = _checked(exchange, client, body)
    if order.link_id:
        client.links[order.link_id] = order
    if order.trigger is not None:
        exchange.triggers.place(order, exchange.now_ns)
    else:
        client.open[order.order_id] = order
        exchange.enter(order)
    return _ack(order)


def check(exchange: Exchange, client: Client, body: Body) -> Result:
    """What a new order would make of the account's margin rates, in 1/10,000; nothing is placed."""
    order = _checked(exchange, client, body)
    marks = exchange.marks()
    before = client.margin_rates(marks)
    after = client.margin_rates(marks, [] if order.trigger else [order.for_margin()])
    names = ("preImrE4", "preMmrE4", "postImrE4", "postMmrE4")
    return {**_ack(order), **dict(zip(names, (*before, *after), strict=True))}


def _checked(exchange: Exchange, client: Client, body: Body) -> Order:
    """The order that a request asks for, with everything looked at that can be refused."""
    tape = tape_of(exchange, body)
    side = _SIDES.get(text(body, "side"))
    if side is None:
        raise RefusedError(10001, "params error: side invalid")
    kind = text(body, "orderType")
    if kind not in ("Limit", "Market"):
        raise RefusedError(10001, "params error: orderType invalid")
    is_market = kind == "Market"
    force = "IOC" if is_market else choice(body, "timeInForce", tuple(FORCES))
    if body.get("positionIdx", 0) not in (0, "0"):
        raise RefusedError(10001, "position idx not match position mode")
    smp_type = choice(body, "smpType", SELF_MATCH)
    link_id = _link(client, body)
    reduce_only, close = flag(body, "reduceOnly"), flag(body, "closeOnTrigger")
    trigger, stops = _trigger(tape, body), stops_of(tape, body)
    if stops is not None and reduce_only:
        raise RefusedError(10001, "params error: a reduce-only order has no takeProfit or stopLoss")
    held = client.account.holdings[tape.symbol].position_lots
    if body.get("qty") == "0" and reduce_only and close:
        lots = 0 if trigger else min(abs(held), checks.most_lots(tape, is_market))
    else:
        lots = tape.figures.lots(body.get("qty"))
        checks.size(tape, lots, is_market)
    ticks = _bound(tape, body, side) if is_market else _limit_ticks(tape, body, side)
    if not is_market:
        checks.within_limits(tape, ticks)
    if stops is not None:
        base_ticks = tape.last_ticks if is_market else ticks
        check_stops(stops, side, trigger.price_e8 if trigger else base_ticks * tape.tick_e8)
    if not reduce_only:
        checks.worth(tape, ticks, lots)
    if trigger is None:
        if reduce_only:
            rests = force in ("GTC", "PostOnly")
            lots = min(lots, checks.reducible(client, tape.symbol, side, rests=rests))
        if not is_market:
            ticks = checks.within_band(tape, client, side, ticks)
        if not reduce_only:
            one_more = OpenOrder(tape.symbol, side, ticks, lots)
            checks.margin(client, one_more, exchange.marks())
    checks.count(client, tape.symbol, conditional=trigger is not None)
    order = exchange.order(
        client,
        tape.symbol,
        side,
        0 if is_market and trigger else ticks,
        lots,
        market=is_market,
        force=force,
        link_id=link_id,
        reduce_only=reduce_only,
        close_on_trigger=close,
    )
    order.trigger, order.stops, order.smp_type = trigger, stops, smp_type
    return order


def amend(exchange: Exchange, client: Client, body: Body) -> Result:
    """Another price, another total quantity, other triggers, or several of them."""
    tape = tape_of(exchange, body)
    order = _open_order(client, tape, body, "to replace")
    ticks, lots, trigger, stops = order.ticks, order.lots, order.trigger, order.stops
    if text(body, "price") and not order.market:
        ticks = checks.within_limits(tape, tape.figures.ticks(body["price"]))
    if text(body, "qty"):
        lots = tape.figures.lots(body["qty"])
        checks.size(tape, lots, order.market)
        if lots <= order.executed_lots:
            raise RefusedError(110064, "The amended qty is not more than what is filled already")
    price_e8 = _price_e8(tape, body, "triggerPrice")
    if price_e8 and trigger and order.status == "Untriggered":
        trigger = msgspec.structs.replace(trigger, price_e8=price_e8)
        trigger.by = choice(body, "triggerBy", (trigger.by, *WATCHED))
        check_side(trigger, _watched_e8(tape, trigger.by))
    asked = stops_of(tape, body)
    if asked is not None and not order.reduce_only:
        check_stops(asked, order.side, ticks * tape.tick_e8)
        stops = asked
    if (ticks, lots, trigger, stops) == (order.ticks, order.lots, order.trigger, order.stops):
        raise RefusedError(
            10001, "The order remains unchanged as the parameters entered match the existing ones."
        )
    waits = order.status == "Untriggered"
    moved = (ticks, lots) != (order.ticks, order.lots)
    if not waits and moved:
        ticks = checks.within_band(tape, client, order.side, ticks)
        if order.reduce_only:
            room = checks.reducible(client, tape.symbol, order.side, order)
            lots = min(lots, order.executed_lots + room)
        else:
            checks.worth(tape, ticks, lots)
            left = OpenOrder(tape.symbol, order.side, ticks, lots - order.executed_lots)
            checks.margin(client, left, exchange.marks(), order)
    order.trigger, order.stops = trigger, stops
    if waits:
        order.ticks, order.lots = ticks, lots
    if not waits and moved:
        exchange.amend(order, ticks, lots)
    else:
        exchange.triggers.changed(order, exchange.now_ns)
    return _ack(order)


def cancel(exchange: Exchange, client: Client, body: Body) -> Result:
    """One order, by its id or else by its link id."""
    order = _open_order(client, tape_of(exchange, body), body, "to cancel")
    _cancel(exchange, order)
    return _ack(order)


def _cancel(exchange: Exchange, order: Order) -> None:
    if order.status == "Untriggered":
        exchange.triggers.deactivate(order, "CancelByUser", exchange.now_ns)
    elif order.is_open:  # what an earlier cancellation has ended is ended
        exchange.cancel(order)


def cancel_all(exchange: Exchange, client: Client, body: Body) -> Result:
    """Every open order of a symbol or of the settlement coin."""
    if body.get("category") != "linear":
        raise RefusedError(10001, "Illegal category")
    symbol = text(body, "symbol")
    if symbol:
        tape_of(exchange, body)
    elif not (text(body, "settleCoin") or text(body, "baseCoin")):
        raise RefusedError(10001, "params error: symbol, baseCoin or settleCoin is required")
    everything = [*client.open.values(), *client.waiting.values()]
    chosen = [order for order in everything if _chosen(order, body)]
    for order in chosen:
        _cancel(exchange, order)
    return {"list": [_ack(order) for order in chosen], "success": "1"}


def _chosen(order: Order, body: Body) -> bool:
    if not matches_filter(order, text(body, "orderFilter")):
        return False
    stop_type = text(body, "stopOrderType")
    if stop_type and (order.trigger is None or order.trigger.kind != stop_type):
        return False
    if text(body, "symbol"):
        return order.symbol == text(body, "symbol")
    if text(body, "baseCoin"):
        return order.symbol == f"{body['baseCoin']}USDT"
    return text(body, "settleCoin") == "USDT"


def matches_filter(order: Order, chosen: str) -> bool:
    """Whether an order is of the kind that a filter names: plain, conditional, or all."""
    return chosen == "" or (chosen == "StopOrder") == (order.trigger is not None)


def batch(
    single: Callable[[Exchange, Client, Body], Result],
    exchange: Exchange,
    client: Client,
    body: Body,
    granted: int = MOST_IN_BATCH,
) -> tuple[Result, Result]:
    """Several requests of a kind: their results, and beside them code and message of each.

    ``granted`` is how many of them the rate limit has room for.
    """
    requests = body.get("request")
    if body.get("category") != "linear":
        raise RefusedError(10001, "Illegal category")
    if not isinstance(requests, list) or not 1 <= len(requests) <= MOST_IN_BATCH:
        raise RefusedError(10001, "params error: request invalid")
    rows: list[Result] = []
    codes: list[Result] = []
    for place, request in enumerate(requests):
        leg = dict(request) if isinstance(request, dict) else {}
        done = {"orderId": "", "orderLinkId": str(leg.get("orderLinkId", ""))}
        created, code, message = "", 0, "OK"
        try:
            if place >= granted:
                raise RefusedError(10006, TOO_MANY)
            done = single(exchange, client, {**leg, "category": "linear"})
            created = str(exchange.now_ms)
        except RefusedError as refusal:
            code, message = refusal.code, refusal.message
        row = {"category": "linear", "symbol": str(leg.get("symbol", "")), **done}
        rows.append({**row, "createAt": created} if single is create else row)
        codes.append({"code": code, "msg": message})
    return {"list": rows}, {"list": codes}


# -- parts of requests -----------------------------------------------------------------------------


def _ack(order: Order) -> Result:
    return {"orderId": order.order_id, "orderLinkId": order.link_id}


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
    if order_id:
        order = client.open.get(order_id) or client.waiting.get(order_id)
    else:
        order = client.links.get(link_id)
    if order is None or not order.is_open or order.symbol != tape.symbol:
        raise RefusedError(110001, f"order not exists or too late {purpose}")
    return order


def _limit_ticks(tape: Tape, body: Body, side: int) -> int:
    """The price of a limit order, its own or one of the book's best five."""
    whose = text(body, "bboSideType")
    if not whose:
        return tape.figures.ticks(body.get("price"))
    level = text(body, "bboLevel")
    if whose not in ("Queue", "Counterparty") or level not in ("1", "2", "3", "4", "5"):
        raise RefusedError(10001, "params error: bboSideType or bboLevel invalid")
    levels = tape.books[50].levels(side if whose == "Queue" else -side, int(level))
    if not levels:
        raise RefusedError(10001, "params error: the book has no such level")
    return levels[-1][0]


def _bound(tape: Tape, body: Body, side: int) -> int:
    """The worst price of a market order: the band's edge, or closer if a slippage is given."""
    low, high = tape.band()
    edge = high if side > 0 else low
    kind = text(body, "slippageToleranceType")
    if kind in ("", "UNKNOWN"):
        return edge
    allowed = number(body.get("slippageTolerance"), "slippageTolerance")
    touch = next(iter(tape.books[1].sides[-side]), edge)
    if kind == "TickSize":
        if not 1 <= allowed <= 10_000 or allowed % 1:
            raise RefusedError(110108, "slippageTolerance in ticks must be within 1 and 10000")
        ticks = touch + side * int(allowed)
    elif kind == "Percent":
        if not Decimal("0.01") <= allowed <= 10:
            raise RefusedError(110109, "slippageTolerance in percent must be within 0.01 and 10")
        ticks = int(touch * (1 + side * allowed / 100))
    else:
        raise RefusedError(10001, "params error: slippageToleranceType invalid")
    return min(ticks, edge) if side > 0 else max(ticks, edge)


def _price_e8(tape: Tape, body: Body, name: str) -> int | None:
    """A price of a request at 1e-8: None when it is not there, 0 for one that is to be taken away."""
    value = text(body, name)
    if not value:
        return None
    if not number(value, name):
        return 0
    return tape.figures.ticks(value, name) * tape.tick_e8


def _trigger(tape: Tape, body: Body) -> Trigger | None:
    """What a new order waits for, if it does."""
    price_e8 = _price_e8(tape, body, "triggerPrice")
    if not price_e8:
        return None
    direction = body.get("triggerDirection")
    if direction not in (1, 2) or isinstance(direction, bool):
        raise RefusedError(10001, "params error: triggerDirection invalid")
    trigger = Trigger(
        kind="Stop",
        rises=direction == 1,
        price_e8=price_e8,
        by=choice(body, "triggerBy", WATCHED),
    )
    check_side(trigger, _watched_e8(tape, trigger.by))
    return trigger


def _watched_e8(tape: Tape, by: str) -> int:
    last_e8 = tape.last_ticks * tape.tick_e8
    return {"LastPrice": last_e8, "MarkPrice": tape.mark_e8, "IndexPrice": tape.index_e8}[by]


def stops_of(tape: Tape, body: Body) -> Stops | None:
    """Take-profit, stop-loss and trailing stop of a request, if there are any."""
    take_e8, stop_e8 = (_price_e8(tape, body, name) for name in ("takeProfit", "stopLoss"))
    trailing_e8 = _price_e8(tape, body, "trailingStop")
    if take_e8 is None and stop_e8 is None and trailing_e8 is None:
        return None
    partial = choice(body, "tpslMode", ("Full", "Partial")) == "Partial"
    limits = {}
    for prefix in ("tp", "sl"):
        is_limit = choice(body, f"{prefix}OrderType", ("Market", "Limit")) == "Limit"
        if is_limit and not partial:
            raise RefusedError(10001, f"params error: {prefix}OrderType is for tpslMode Partial")
        limit = body.get(f"{prefix}LimitPrice")
        limits[prefix] = tape.figures.ticks(limit, f"{prefix}LimitPrice") if is_limit else 0
    return Stops(
        take_profit_e8=take_e8,
        stop_loss_e8=stop_e8,
        trailing_e8=trailing_e8,
        active_e8=_price_e8(tape, body, "activePrice") or 0,
        take_by=choice(body, "tpTriggerBy", WATCHED),
        stop_by=choice(body, "slTriggerBy", WATCHED),
        partial=partial,
        take_limit_ticks=limits["tp"],
        stop_limit_ticks=limits["sl"],
    )
