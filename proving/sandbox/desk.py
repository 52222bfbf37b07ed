"""A client's own affairs over REST: orders, executions, positions, balance and settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from execution.margin import MarginError, MarginMode
from proving.sandbox.checks import Body, text
from proving.sandbox.entry import matches_filter, stops_of, tape_of
from proving.sandbox.exchange import Exchange
from proving.sandbox.figures import number
from proving.sandbox.listing import LISTINGS
from proving.sandbox.paging import Query, limit_of, page
from proving.sandbox.refusal import RefusedError
from proving.sandbox.trading import Client, Order, Row
from proving.sandbox.triggers import check_stops

Result = dict[str, Any]

#: Margin modes as the account has them; a portfolio has none here.
MODES = {"ISOLATED_MARGIN": MarginMode.ISOLATED, "REGULAR_MARGIN": MarginMode.CROSS}
RECENT = 500


def _linear(query: Query) -> None:
    if query.get("category") != "linear":
        raise RefusedError(10001, "Illegal category")


def _filters(query: Query) -> dict[str, str]:
    names = ("symbol", "orderId", "orderLinkId")
    return {name: query.get(name, "") for name in names}


def open_orders(exchange: Exchange, client: Client, query: Query) -> Result:
    """Open orders; an order asked for by id also when it has closed of late."""
    _linear(query)
    known = query.get("orderId") or query.get("orderLinkId")
    if not (known or query.get("symbol") or query.get("settleCoin") or query.get("baseCoin")):
        raise RefusedError(10001, "params error: symbol, settleCoin or baseCoin is required")
    recent = list(client.closed)[-RECENT:]
    orders: list[Order] = [*client.open.values(), *client.waiting.values()]
    if known:
        orders = recent + orders
    elif query.get("openOnly") == "1":
        orders = recent
    listed = _listed(orders, query)
    return page(listed, {**query, "startTime": ""}, "createdTime", 20, 50, **_filters(query))


def order_history(exchange: Exchange, client: Client, query: Query) -> Result:
    _linear(query)
    equal = {**_filters(query), "orderStatus": query.get("orderStatus", "")}
    return page(_listed(client.closed, query), query, "createdTime", 20, 50, **equal)


def _listed(orders: Iterable[Order], query: Query) -> Iterator[Row]:
    """Rows of the orders that a query names, the newest first; each is made when it is asked for."""
    kind = query.get("orderFilter", "")
    named = (query.get("orderId", ""), query.get("orderLinkId", ""))
    chosen = [
        order
        for order in orders
        if matches_filter(order, kind)
        and all(
            not n or n == own for n, own in zip(named, (order.order_id, order.link_id), strict=True)
        )
    ]
    chosen.sort(key=lambda order: order.number, reverse=True)
    return (order.listed() for order in chosen)


def executions(exchange: Exchange, client: Client, query: Query) -> Result:
    _linear(query)
    equal = {**_filters(query), "execType": query.get("execType", "")}
    return page(reversed(client.executions), query, "execTime", 50, 100, **equal)


def closed_pnl(exchange: Exchange, client: Client, query: Query) -> Result:
    _linear(query)
    rows = (closing.row() for closing in reversed(client.closings))
    return page(rows, query, "updatedTime", 50, 100, symbol=query.get("symbol", ""))


def transaction_log(exchange: Exchange, client: Client, query: Query) -> Result:
    equal = {"type": query.get("type", ""), "currency": query.get("currency", "")}
    made = page(reversed(client.log), query, "transactionTime", 20, 50, **equal)
    del made["category"]
    return made


def positions(exchange: Exchange, client: Client, query: Query) -> Result:
    """By symbol also when flat, by coin only what is held."""
    if query.get("category") == "inverse":
        return {"list": [], "nextPageCursor": "", "category": "inverse"}
    _linear(query)
    limit_of(query, 20, 200)
    symbol = query.get("symbol", "")
    if symbol and symbol not in exchange.tapes:
        raise RefusedError(10001, "params error: symbol invalid")
    if not symbol and query.get("settleCoin") != "USDT":
        raise RefusedError(10001, "params error: symbol or settleCoin is required")
    chosen = (
        [symbol] if symbol else [s for s, h in client.account.holdings.items() if h.position_lots]
    )
    rows = [
        client.position_row(exchange.tapes[s].figures, exchange.tapes[s].mark_e8) for s in chosen
    ]
    return {"list": rows, "nextPageCursor": "", "category": "linear"}


def leverages(exchange: Exchange, client: Client, query: Query) -> Result:
    """The leverage of each symbol, whether anything is held or not."""
    _linear(query)
    asked = query.get("symbol", "")
    if asked and asked not in exchange.tapes:
        raise RefusedError(10001, "params error: symbol invalid")
    rows = [
        {"symbol": symbol, "leverage": terms.leverage, "side": "", "positionIdx": 0}
        for symbol, terms in client.margin.terms.items()
        if asked in ("", symbol)
    ]
    return {"category": "linear", "list": rows}


def wallet(exchange: Exchange, client: Client, query: Query) -> Result:
    if query.get("accountType") != "UNIFIED":
        raise RefusedError(10001, "accountType only support UNIFIED.")
    return {"list": [client.wallet_row(exchange.marks())]}


def fee_rate(exchange: Exchange, client: Client, query: Query) -> Result:
    _linear(query)
    asked = query.get("symbol", "")
    if asked and asked not in exchange.instruments:
        raise RefusedError(10001, "params error: symbol invalid")
    rows = [
        {"symbol": symbol, "takerFeeRate": item.taker_fee, "makerFeeRate": item.maker_fee}
        for symbol, item in exchange.instruments.items()
        if asked in ("", symbol)
    ]
    return {"category": "linear", "list": rows}


def account_info(exchange: Exchange, client: Client, query: Query) -> Result:
    modes = {mode: name for name, mode in MODES.items()}
    return {
        "marginMode": modes[client.mode],
        "updatedTime": str(exchange.start_ns // 1_000_000),
        "unifiedMarginStatus": 6,
        "dcpStatus": "ON" if client.windows else "OFF",
        "timeWindow": client.windows.get("DERIVATIVES", 10),
        "smpGroup": 0,
        "isMasterTrader": False,
        "spotHedgingStatus": "OFF",
    }


def query_api(exchange: Exchange, client: Client, query: Query) -> Result:
    names = ("Spot", "Options", "CopyTrading", "BlockTrade", "Exchange", "NFT")
    permissions: dict[str, list[str]] = {name: [] for name in names}
    permissions |= {"ContractTrade": ["Order", "Position"], "Wallet": [], "Derivatives": []}
    return {
        "id": str(client.owner),
        "note": "sandbox",
        "apiKey": client.key,
        "readOnly": 0,
        "secret": "",
        "permissions": permissions,
        "ips": ["*"],
        "type": 1,
        "deadlineDay": 90,
        "expiredAt": "2036-01-01T00:00:00Z",
        "createdAt": "2026-01-01T00:00:00Z",
        "unified": 0,
        "uta": 1,
        "userID": client.owner,
        "inviterID": 0,
        "vipLevel": "No VIP",
        "mktMakerLevel": "0",
        "affiliateID": 0,
    }


def coins(exchange: Exchange, client: Client, query: Query) -> Result:
    return {"rows": []}


# -- settings --------------------------------------------------------------------------------------


def set_leverage(exchange: Exchange, client: Client, body: Body) -> Result:
    tape = tape_of(exchange, body)
    buy, sell = (number(body.get(name), name) for name in ("buyLeverage", "sellLeverage"))
    if buy != sell:
        raise RefusedError(10001, "buy leverage and sell leverage have to be equal")
    if buy == number(client.margin.terms[tape.symbol].leverage, "leverage"):
        raise RefusedError(110043, "leverage not modified")
    if not 1 <= buy <= number(
        LISTINGS[tape.symbol].tiers[0].max_leverage, "leverage"
    ) or buy % number("0.01", "leverageStep"):
        raise RefusedError(110013, "cannot set leverage due to risk limit")
    try:
        client.margin.set_leverage(tape.symbol, f"{buy.normalize():f}")
    except MarginError as error:
        raise RefusedError(110013, f"cannot set leverage due to risk limit: {error}") from None
    exchange.notices.restated(client, tape.symbol, exchange.now_ns)
    return {}


def set_trading_stop(exchange: Exchange, client: Client, body: Body) -> Result:
    """Take-profit, stop-loss and trailing stop of a position, or of a part of it."""
    tape = tape_of(exchange, body)
    if body.get("positionIdx", 0) not in (0, "0"):
        raise RefusedError(10001, "position idx not match position mode")
    stops = stops_of(tape, body)
    if stops is None:
        raise RefusedError(10001, "params error: nothing is to be set")
    held = client.account.holdings[tape.symbol].position_lots
    if not held:
        raise RefusedError(10001, "can not set tp/sl/ts for zero position")
    check_stops(stops, 1 if held > 0 else -1, tape.last_ticks * tape.tick_e8)
    if stops.partial:
        lots = tape.figures.lots(body.get("tpSize") or body.get("slSize") or "0")
        if not 0 < lots <= abs(held) or body.get("slSize", body.get("tpSize")) != body.get(
            "tpSize", body.get("slSize")
        ):
            raise RefusedError(10001, "params error: tpSize or slSize invalid")
        exchange.triggers.part(client, tape.symbol, stops, lots, exchange.now_ns)
        return {}
    if not exchange.triggers.would_change(client, tape.symbol, stops):
        raise RefusedError(34040, "not modified")
    exchange.triggers.protect(client, tape.symbol, stops, exchange.now_ns)
    return {}


def switch_mode(exchange: Exchange, client: Client, body: Body) -> Result:
    """One-way is the only position mode here."""
    if body.get("mode") in (0, "0"):
        raise RefusedError(110025, "Position mode is not modified")
    raise RefusedError(10001, "params error: hedge mode is not supported by this venue yet")


def set_margin_mode(exchange: Exchange, client: Client, body: Body) -> Result:
    """Another margin mode, while nothing is held and no order is open."""
    mode = MODES.get(text(body, "setMarginMode"))
    if mode is None:
        raise RefusedError(10001, "params error: setMarginMode invalid")
    if mode is client.mode:
        raise RefusedError(110026, "Cross/isolated margin mode is not modified")
    if (
        client.open
        or client.waiting
        or any(h.position_lots for h in client.account.holdings.values())
    ):
        reason = {"reasonCode": "3400045", "reasonMsg": "Close positions and cancel orders first"}
        raise RefusedError(3400045, "Set margin mode failed", result={"reasons": [reason]})
    client.set_mode(mode)
    for symbol in exchange.tapes:
        exchange.notices.restated(client, symbol, exchange.now_ns)
    return {"reasons": []}


def set_price_action(exchange: Exchange, client: Client, body: Body) -> Result:
    """Whether a price out of the band is moved to its edge or refused."""
    modify = body.get("modifyEnable")
    if not isinstance(modify, bool):
        raise RefusedError(10001, "params error: modifyEnable invalid")
    client.moves_price = modify
    return {}
