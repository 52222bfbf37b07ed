"""Order entry: create, amend, cancel and batch requests, validated as the venue validates them.

Each function takes the exchange, the client and the request's body, and returns the result or raises a
`RefusedError` that has changed nothing. Hedge mode is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Final

import msgspec

from execution.margin import OpenOrder
from proving.sandbox import order_checks
from proving.sandbox.accounts import Client, Stops, Trigger, VenueOrder
from proving.sandbox.exchange import TIMES_IN_FORCE, SandboxExchange
from proving.sandbox.protocol import (
    Body,
    RefusedError,
    Row,
    choice,
    decimal,
    flag,
    invalid,
    require_linear,
    text,
)
from proving.sandbox.tape import PublicTape

MAX_BATCH: Final = 20
RATE_LIMITED: Final = "Too many visits. Exceeded the API Rate Limit."
SMP_TYPES: Final = ("None", "CancelMaker", "CancelTaker", "CancelBoth")
#: Prices that a trigger may watch, the default first.
WATCHED_PRICES: Final = ("LastPrice", "MarkPrice", "IndexPrice")
_LINK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,36}")
_SIDES: Final = {"Buy": 1, "Sell": -1}


def tape_of(exchange: SandboxExchange, body: Body) -> PublicTape:
    """The tape of the requested symbol; refused outside linear and for unknown symbols."""
    require_linear(body)
    tape = exchange.tapes.get(text(body, "symbol"))
    if tape is None:
        raise invalid("symbol")
    return tape


def create(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Create an order. The answer only acknowledges it; the private stream tells what becomes of it."""
    order = _validated_order(exchange, client, body)
    if order.link_id:
        client.by_link_id[order.link_id] = order
    if order.trigger is not None:
        exchange.conditional.add(order, exchange.now_ns)
    else:
        client.open[order.order_id] = order
        exchange.submit(order)
    return _ids(order)


def pre_check(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """The account's margin rates (1/10,000) before and after a new order, which is not created."""
    order = _validated_order(exchange, client, body)
    before = client.margin_rates(exchange.marks)
    after = client.margin_rates(exchange.marks, [] if order.trigger else [order.for_margin()])
    names = ("preImrE4", "preMmrE4", "postImrE4", "postMmrE4")
    return {**_ids(order), **dict(zip(names, (*before, *after), strict=True))}


def _validated_order(exchange: SandboxExchange, client: Client, body: Body) -> VenueOrder:
    """The requested order, after every check that may refuse it."""
    tape = tape_of(exchange, body)
    side = _SIDES.get(text(body, "side"))
    if side is None:
        raise invalid("side")
    kind = text(body, "orderType")
    if kind not in ("Limit", "Market"):
        raise invalid("orderType")
    is_market = kind == "Market"
    time_in_force = "IOC" if is_market else choice(body, "timeInForce", tuple(TIMES_IN_FORCE))
    check_one_way(client, body)
    smp_type = choice(body, "smpType", SMP_TYPES)
    link_id = _link_id(client, body)
    reduce_only, close = flag(body, "reduceOnly"), flag(body, "closeOnTrigger")
    trigger, stops = _trigger(tape, body), stops_of(tape, body)
    if stops is not None and reduce_only:
        raise RefusedError(10001, "params error: a reduce-only order has no takeProfit or stopLoss")
    if body.get("qty") == "0" and reduce_only and close:
        position = abs(client.position_lots(tape.symbol))
        lots = 0 if trigger else min(position, order_checks.max_order_lots(tape, is_market))
    else:
        lots = tape.codec.lots(body.get("qty"))
        order_checks.check_size(tape, lots, is_market)
    ticks = _worst_ticks(tape, body, side) if is_market else _limit_ticks(tape, body, side)
    if not is_market:
        order_checks.check_price_range(tape, ticks)
    if stops is not None:
        base_ticks = tape.last_ticks if is_market else ticks
        base_e8 = trigger.price_e8 if trigger else base_ticks * tape.tick_e8
        order_checks.check_stop_sides(stops, side, base_e8)
    if not reduce_only:
        order_checks.check_notional(tape, ticks, lots)
    if trigger is None:
        if reduce_only:
            rests = time_in_force in ("GTC", "PostOnly")
            lots = min(lots, order_checks.reducible_lots(client, tape.symbol, side, rests=rests))
        if not is_market:
            ticks = order_checks.price_in_limits(tape, client, side, ticks)
        if not reduce_only:
            new = OpenOrder(tape.symbol, side, ticks, lots)
            order_checks.check_margin(client, new, exchange.marks)
    order_checks.check_order_count(client, tape.symbol, conditional=trigger is not None)
    order = exchange.new_order(
        client,
        tape.symbol,
        side,
        0 if is_market and trigger else ticks,
        lots,
        is_market=is_market,
        time_in_force=time_in_force,
        link_id=link_id,
        reduce_only=reduce_only,
        close_on_trigger=close,
    )
    order.trigger, order.stops, order.smp_type = trigger, stops, smp_type
    return order


def amend(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Amend price, total quantity, trigger or attached stops of an open order."""
    tape = tape_of(exchange, body)
    order = _open_order(client, tape, body, "to replace")
    ticks, lots, trigger, stops = order.ticks, order.lots, order.trigger, order.stops
    if text(body, "price") and not order.is_market:
        ticks = tape.codec.ticks(body["price"])
        order_checks.check_price_range(tape, ticks)
    if text(body, "qty"):
        lots = tape.codec.lots(body["qty"])
        order_checks.check_size(tape, lots, order.is_market)
        if lots <= order.executed_lots:
            raise RefusedError(110064, "The amended qty is not more than what is filled already")
    is_untriggered = order.status == "Untriggered"
    price_e8 = _price_e8(tape, body, "triggerPrice")
    if price_e8 and trigger and is_untriggered:
        trigger = msgspec.structs.replace(trigger, price_e8=price_e8)
        trigger.by = choice(body, "triggerBy", (trigger.by, *WATCHED_PRICES))
        order_checks.check_trigger_side(trigger, _watched_e8(tape, trigger.by))
    new_stops = stops_of(tape, body)
    if new_stops is not None and not order.reduce_only:
        order_checks.check_stop_sides(new_stops, order.side, ticks * tape.tick_e8)
        stops = new_stops
    if (ticks, lots, trigger, stops) == (order.ticks, order.lots, order.trigger, order.stops):
        raise RefusedError(
            10001, "The order remains unchanged as the parameters entered match the existing ones."
        )
    is_moved = (ticks, lots) != (order.ticks, order.lots) and not is_untriggered
    if is_moved:
        ticks = order_checks.price_in_limits(tape, client, order.side, ticks)
        if order.reduce_only:
            room = order_checks.reducible_lots(client, tape.symbol, order.side, order)
            lots = min(lots, order.executed_lots + room)
        else:
            order_checks.check_notional(tape, ticks, lots)
            remaining = OpenOrder(tape.symbol, order.side, ticks, lots - order.executed_lots)
            order_checks.check_margin(client, remaining, exchange.marks, order)
    order.trigger, order.stops = trigger, stops
    if is_untriggered:
        order.ticks, order.lots = ticks, lots
    if is_moved:
        exchange.amend(order, ticks, lots)
    else:
        exchange.conditional.report(order, exchange.now_ns)
    return _ids(order)


def cancel(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Cancel one order, by its id or else by its link id."""
    order = _open_order(client, tape_of(exchange, body), body, "to cancel")
    _cancel(exchange, order)
    return _ids(order)


def _cancel(exchange: SandboxExchange, order: VenueOrder) -> None:
    if order.status == "Untriggered":
        exchange.conditional.deactivate(order, "CancelByUser", exchange.now_ns)
    elif order.is_open:  # an earlier cancel of cancel_all may have closed it
        exchange.cancel(order)


def cancel_all(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Cancel every open order of a symbol, base coin or settlement coin."""
    require_linear(body)
    symbol = text(body, "symbol")
    if symbol:
        tape_of(exchange, body)
    elif not (text(body, "settleCoin") or text(body, "baseCoin")):
        raise RefusedError(10001, "params error: symbol, baseCoin or settleCoin is required")
    orders = [*client.open.values(), *client.untriggered.values()]
    chosen = [order for order in orders if _is_chosen(order, body)]
    for order in chosen:
        _cancel(exchange, order)
    return {"list": [_ids(order) for order in chosen], "success": "1"}


def _is_chosen(order: VenueOrder, body: Body) -> bool:
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


def matches_filter(order: VenueOrder, order_filter: str) -> bool:
    """Whether an order matches ``orderFilter``: plain, conditional (`StopOrder`) or all (empty)."""
    return order_filter == "" or (order_filter == "StopOrder") == (order.trigger is not None)


def batch(
    single: Callable[[SandboxExchange, Client, Body], Row],
    exchange: SandboxExchange,
    client: Client,
    body: Body,
    granted: int = MAX_BATCH,
) -> tuple[Row, Row]:
    """Several requests of a kind: their results, and code and message of each.

    ``granted`` is how many of them the rate limit admits; the others are refused one by one.
    """
    requests = body.get("request")
    require_linear(body)
    if not isinstance(requests, list) or not 1 <= len(requests) <= MAX_BATCH:
        raise invalid("request")
    results: list[Row] = []
    codes: list[Row] = []
    for place, request in enumerate(requests):
        leg = dict(request) if isinstance(request, dict) else {}
        ids = {"orderId": "", "orderLinkId": str(leg.get("orderLinkId", ""))}
        created, code, message = "", 0, "OK"
        try:
            if place >= granted:
                raise RefusedError(10006, RATE_LIMITED)
            ids = single(exchange, client, {**leg, "category": "linear"})
            created = str(exchange.now_ms)
        except RefusedError as refusal:
            code, message = refusal.code, refusal.message
        row = {"category": "linear", "symbol": str(leg.get("symbol", "")), **ids}
        results.append({**row, "createAt": created} if single is create else row)
        codes.append({"code": code, "msg": message})
    return {"list": results}, {"list": codes}


# -- parameters ------------------------------------------------------------------------------------


def _ids(order: VenueOrder) -> Row:
    return {"orderId": order.order_id, "orderLinkId": order.link_id}


def check_one_way(client: Client, body: Body) -> None:
    """Refuse the position index of hedge mode, and in hedge mode every one."""
    if client.is_hedged or body.get("positionIdx", 0) not in (0, "0"):
        raise RefusedError(10001, "position idx not match position mode")


def _link_id(client: Client, body: Body) -> str:
    link_id = text(body, "orderLinkId")
    if link_id and not _LINK_ID.fullmatch(link_id):
        raise invalid("orderLinkId")
    if link_id in client.by_link_id:
        raise RefusedError(110072, "OrderLinkedID is duplicate")
    return link_id


def _open_order(client: Client, tape: PublicTape, body: Body, purpose: str) -> VenueOrder:
    order_id, link_id = text(body, "orderId"), text(body, "orderLinkId")
    if not order_id and not link_id:
        raise RefusedError(10001, "params error: OrderId or orderLinkId is required")
    if order_id:
        order = client.open.get(order_id) or client.untriggered.get(order_id)
    else:
        order = client.by_link_id.get(link_id)
    if order is None or not order.is_open or order.symbol != tape.symbol:
        raise RefusedError(110001, f"order not exists or too late {purpose}")
    return order


def _limit_ticks(tape: PublicTape, body: Body, side: int) -> int:
    """The price of a limit order: its own, or that of one of the book's best five levels."""
    bbo_side = text(body, "bboSideType")
    if not bbo_side:
        return tape.codec.ticks(body.get("price"))
    level = text(body, "bboLevel")
    if bbo_side not in ("Queue", "Counterparty") or level not in ("1", "2", "3", "4", "5"):
        raise invalid("bboSideType or bboLevel")
    levels = tape.books[200].levels(side if bbo_side == "Queue" else -side, int(level))
    if not levels:
        raise RefusedError(10001, "params error: the book has no such level")
    return levels[-1][0]


def _worst_ticks(tape: PublicTape, body: Body, side: int) -> int:
    """The worst price of a market order: the price limit, or less far with a slippage tolerance."""
    low, high = tape.price_limits()
    limit = high if side > 0 else low
    kind = text(body, "slippageToleranceType")
    if kind in ("", "UNKNOWN"):
        return limit
    tolerance = decimal(body.get("slippageTolerance"), "slippageTolerance")
    touch = next(iter(tape.books[1].sides[-side]), limit)
    if kind == "TickSize":
        if not 1 <= tolerance <= 10_000 or tolerance % 1:
            raise RefusedError(110108, "slippageTolerance in ticks must be within 1 and 10000")
        ticks = touch + side * int(tolerance)
    elif kind == "Percent":
        if not Decimal("0.01") <= tolerance <= 10:
            raise RefusedError(110109, "slippageTolerance in percent must be within 0.01 and 10")
        ticks = int(touch * (1 + side * tolerance / 100))
    else:
        raise invalid("slippageToleranceType")
    return min(ticks, limit) if side > 0 else max(ticks, limit)


def _price_e8(tape: PublicTape, body: Body, name: str) -> int | None:
    """A price parameter at 1e-8: None when it is absent, 0 to remove what it sets."""
    value = text(body, name)
    if not value:
        return None
    if not decimal(value, name):
        return 0
    return tape.codec.ticks(value, name) * tape.tick_e8


def _trigger(tape: PublicTape, body: Body) -> Trigger | None:
    """The trigger of a conditional order; None for a plain one."""
    price_e8 = _price_e8(tape, body, "triggerPrice")
    if not price_e8:
        return None
    direction = body.get("triggerDirection")
    if direction not in (1, 2) or isinstance(direction, bool):
        raise invalid("triggerDirection")
    trigger = Trigger(
        kind="Stop",
        on_rise=direction == 1,
        price_e8=price_e8,
        by=choice(body, "triggerBy", WATCHED_PRICES),
    )
    order_checks.check_trigger_side(trigger, _watched_e8(tape, trigger.by))
    return trigger


def _watched_e8(tape: PublicTape, by: str) -> int:
    last_e8 = tape.last_ticks * tape.tick_e8
    return {"LastPrice": last_e8, "MarkPrice": tape.mark_e8, "IndexPrice": tape.index_e8}[by]


def stops_of(tape: PublicTape, body: Body) -> Stops | None:
    """Take-profit, stop-loss and trailing stop of a request; None when it has none of them."""
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
        limits[prefix] = tape.codec.ticks(limit, f"{prefix}LimitPrice") if is_limit else 0
    return Stops(
        take_profit_e8=take_e8,
        stop_loss_e8=stop_e8,
        trailing_e8=trailing_e8,
        activation_e8=_price_e8(tape, body, "activePrice") or 0,
        take_by=choice(body, "tpTriggerBy", WATCHED_PRICES),
        stop_by=choice(body, "slTriggerBy", WATCHED_PRICES),
        partial=partial,
        take_limit_ticks=limits["tp"],
        stop_limit_ticks=limits["sl"],
    )
