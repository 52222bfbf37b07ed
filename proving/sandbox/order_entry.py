"""Order entry: create, amend, cancel and batch requests, validated as the venue validates them.

Each function takes the exchange, the client and the request's body, and returns the result or raises a
`RefusedError` that has changed nothing. Hedge mode is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from execution.margin import OpenOrder
from proving.sandbox import order_checks
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.exchange import TIMES_IN_FORCE, SandboxExchange
from proving.sandbox.order_fields import (
    WATCHED_PRICES,
    check_amended_fields,
    check_fields,
    check_one_way,
    limit_ticks,
    order_filter,
    price_e8,
    stop_type,
    stops_of,
    trigger_of,
    watched_e8,
    worst_ticks,
)
from proving.sandbox.protocol import (
    Body,
    RefusedError,
    Row,
    choice,
    flag,
    invalid,
    require_linear,
    text,
)
from proving.sandbox.tape import PublicTape

MAX_BATCH: Final = 20
RATE_LIMITED: Final = "Too many visits. Exceeded the API Rate Limit."
SMP_TYPES: Final = ("None", "CancelMaker", "CancelTaker", "CancelBoth")
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
        exchange.enter(client, partial(_arrive, exchange, order))
    return _ids(order)


def _arrive(exchange: SandboxExchange, order: VenueOrder) -> None:
    """A new order arrives at the market, unless it was cancelled on the way there."""
    if not order.is_open:
        return
    order.is_in_flight = False
    if order.only_reduces:
        room = -order.side * order.client.position_lots(order.symbol)
        if room <= 0:
            exchange.cancel(order, "CancelByReduceOnly")
            return
        order.lots = min(order.lots, room)
    exchange.submit(order)


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
    check_fields(body)
    check_one_way(client, body)
    time_in_force = choice(body, "timeInForce", tuple(TIMES_IN_FORCE))
    time_in_force = "IOC" if is_market else time_in_force  # the venue overrules a market order's
    smp_type = choice(body, "smpType", SMP_TYPES)
    link_id = _link_id(client, body)
    reduce_only, close = flag(body, "reduceOnly"), flag(body, "closeOnTrigger")
    only_reduces = reduce_only or close
    trigger, stops = trigger_of(tape, body), stops_of(tape, body)
    if stops is not None and only_reduces:
        raise RefusedError(10001, "params error: a reduce-only order has no takeProfit or stopLoss")
    if body.get("qty") == "0" and reduce_only and close:
        position = abs(client.position_lots(tape.symbol))
        lots = 0 if trigger else min(position, order_checks.max_order_lots(tape, is_market))
    else:
        lots = tape.codec.lots(body.get("qty"))
        order_checks.check_size(tape, lots, is_market)
    ticks = worst_ticks(tape, body, side) if is_market else limit_ticks(tape, body, side)
    if not is_market:
        order_checks.check_price_range(tape, ticks)
    if stops is not None:
        base_ticks = tape.last_ticks if is_market else ticks
        base_e8 = trigger.price_e8 if trigger else base_ticks * tape.tick_e8
        order_checks.check_stop_sides(stops, side, base_e8)
    if not only_reduces:
        order_checks.check_notional(tape, ticks, lots)
    if trigger is None:
        if only_reduces:
            rests = time_in_force in ("GTC", "PostOnly")
            lots = min(lots, order_checks.reducible_lots(client, tape.symbol, side, rests=rests))
        if not is_market:
            ticks = order_checks.price_in_limits(tape, client, side, ticks)
        if not only_reduces:
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
    order.is_in_flight = trigger is None
    return order


def amend(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Amend price, total quantity, trigger or attached stops of an open order."""
    tape = tape_of(exchange, body)
    order = _open_order(client, tape, body, "to replace")
    is_untriggered = order.status == "Untriggered"
    check_amended_fields(body, order)
    ticks, lots, trigger, stops = order.ticks, order.lots, order.trigger, order.stops
    if text(body, "price"):
        ticks = tape.codec.ticks(body["price"])
        order_checks.check_price_range(tape, ticks)
    if text(body, "qty"):
        lots = tape.codec.lots(body["qty"])
        order_checks.check_size(tape, lots, order.is_market)
        if lots <= order.executed_lots:
            raise RefusedError(110064, "The amended qty is not more than what is filled already")
    if trigger is not None and is_untriggered:
        trigger_e8 = price_e8(tape, body, "triggerPrice") or trigger.price_e8
        by = choice(body, "triggerBy", (trigger.by, *WATCHED_PRICES))
        if (trigger_e8, by) != (trigger.price_e8, trigger.by):
            trigger = msgspec.structs.replace(trigger, price_e8=trigger_e8, by=by)
            order_checks.check_trigger_side(trigger, watched_e8(tape, by))
    new_stops = stops_of(tape, body, order.stops)
    if new_stops is not None:
        order_checks.check_stop_sides(new_stops, order.side, ticks * tape.tick_e8)
        stops = new_stops
    if (ticks, lots, trigger, stops) == (order.ticks, order.lots, order.trigger, order.stops):
        raise RefusedError(
            10001, "The order remains unchanged as the parameters entered match the existing ones."
        )
    is_moved = (ticks, lots) != (order.ticks, order.lots) and not is_untriggered
    if is_moved:
        ticks = order_checks.price_in_limits(tape, client, order.side, ticks)
        if order.only_reduces:
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
        exchange.enter(client, partial(_arrive_amend, exchange, order, ticks, lots))
    else:
        exchange.conditional.report(order, exchange.now_ns)
    return _ids(order)


def _arrive_amend(exchange: SandboxExchange, order: VenueOrder, ticks: int, lots: int) -> None:
    """A change arrives at the market; one that what was executed meanwhile has overtaken is dropped."""
    if order.is_open and lots > order.executed_lots:
        exchange.amend(order, ticks, lots)


def cancel(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Cancel one order, by its id or else by its link id."""
    order = _open_order(client, tape_of(exchange, body), body, "to cancel")
    if not matches_filter(order, order_filter(body)):
        raise RefusedError(110001, "order not exists or too late to cancel")
    exchange.enter(client, partial(_arrive_cancel, exchange, order))
    return _ids(order)


def _arrive_cancel(exchange: SandboxExchange, order: VenueOrder) -> None:
    """A cancel arrives; that of an order filled on the way there is told by a second message."""
    if order.status == "Untriggered":
        exchange.conditional.deactivate(order, "CancelByUser", exchange.now_ns)
    elif order.is_open:
        exchange.cancel(order)
    elif order.status == "Filled":
        exchange.report_too_late(order)


def cancel_all(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Cancel every open order of a symbol, base coin or settlement coin."""
    require_linear(body)
    order_filter(body)
    symbol = text(body, "symbol")
    if symbol:
        tape_of(exchange, body)
    elif not (text(body, "settleCoin") or text(body, "baseCoin")):
        raise RefusedError(10001, "params error: symbol, baseCoin or settleCoin is required")
    orders = [*client.open.values(), *client.untriggered.values()]
    chosen = [order for order in orders if _is_chosen(order, body)]
    for order in chosen:
        exchange.enter(client, partial(_arrive_cancel, exchange, order))
    return {"list": [_ids(order) for order in chosen], "success": "1"}


def _is_chosen(order: VenueOrder, body: Body) -> bool:
    if not matches_filter(order, order_filter(body)):
        return False
    kind = stop_type(body)
    if kind and (order.trigger is None or order.trigger.kind != kind):
        return False
    if text(body, "symbol"):
        return order.symbol == text(body, "symbol")
    if text(body, "baseCoin"):
        return order.symbol == f"{body['baseCoin']}USDT"
    return text(body, "settleCoin") == "USDT"


def matches_filter(order: VenueOrder, chosen: str) -> bool:
    """Whether an order matches ``orderFilter``: plain, conditional (`StopOrder`) or all (empty)."""
    return chosen == "" or (chosen == "StopOrder") == (order.trigger is not None)


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
