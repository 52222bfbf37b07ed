"""A client's account over REST: orders, executions, positions, wallet and settings.

Each function takes the exchange, the client and the query (of a GET) or body (of a POST), and returns the
result or raises a `RefusedError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Final

from execution.margin import MarginError, MarginMode
from market.units import MS_NS
from proving.sandbox import order_checks
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.listing import LISTINGS
from proving.sandbox.order_entry import matches_filter, tape_of
from proving.sandbox.order_fields import check_fields, check_one_way, order_filter, stops_of
from proving.sandbox.protocol import (
    Body,
    Query,
    RefusedError,
    Row,
    choice,
    decimal,
    invalid,
    page,
    page_limit,
    require_linear,
    text,
)
from proving.sandbox.rows import closed_pnl_row, listed_order_row, position_row, wallet_row

#: Margin modes by their names at the venue; portfolio margin is refused.
MARGIN_MODES: Final = {"ISOLATED_MARGIN": MarginMode.ISOLATED, "REGULAR_MARGIN": MarginMode.CROSS}
#: Closed orders that `order/realtime` still lists.
RECENT_ORDERS: Final = 500
#: Statuses and types that lists can be cut down to; empty for all.
_ORDER_STATUSES: Final = ("", "Filled", "Cancelled", "Rejected", "Deactivated")
_EXEC_TYPES: Final = (
    *("", "Trade", "AdlTrade", "Funding", "BustTrade", "Delivery", "Settle", "BlockTrade"),
    *("MovePosition", "FutureSpread", "CorporateAction"),
)
_DCP_PRODUCTS: Final = ("OPTIONS", "DERIVATIVES", "SPOT")
_DCP_WINDOW_S: Final = (3, 300)


# -- orders, executions and the transaction log ----------------------------------------------------


def _id_filters(query: Query) -> dict[str, str]:
    return {name: query.get(name, "") for name in ("symbol", "orderId", "orderLinkId")}


def open_orders(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """Open orders; an order requested by id also when it closed recently."""
    require_linear(query)
    by_id = query.get("orderId") or query.get("orderLinkId")
    if not (by_id or query.get("symbol") or query.get("settleCoin") or query.get("baseCoin")):
        raise RefusedError(10001, "params error: symbol, settleCoin or baseCoin is required")
    recent = list(client.closed)[-RECENT_ORDERS:]
    entered = [order for order in client.open.values() if not order.is_in_flight]
    orders: list[VenueOrder] = [*entered, *client.untriggered.values()]
    if by_id:
        orders = recent + orders
    elif choice(query, "openOnly", ("0", "1")) == "1":
        orders = recent
    rows = _order_rows(orders, query)
    return page(rows, {**query, "startTime": ""}, "createdTime", 20, 50, **_id_filters(query))


def order_history(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """Closed orders."""
    require_linear(query)
    equal = {**_id_filters(query), "orderStatus": choice(query, "orderStatus", _ORDER_STATUSES)}
    return page(_order_rows(client.closed, query), query, "createdTime", 20, 50, **equal)


def _order_rows(orders: Iterable[VenueOrder], query: Query) -> Iterator[Row]:
    """Rows of the orders that match a query's filter and ids, newest first; made lazily."""
    chosen = order_filter(query)
    order_id, link_id = query.get("orderId", ""), query.get("orderLinkId", "")
    matching = [
        order
        for order in orders
        if matches_filter(order, chosen)
        and order_id in ("", order.order_id)
        and link_id in ("", order.link_id)
    ]
    matching.sort(key=lambda order: order.number, reverse=True)
    return (listed_order_row(order) for order in matching)


def executions(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """Executions and funding payments."""
    require_linear(query)
    equal = {**_id_filters(query), "execType": choice(query, "execType", _EXEC_TYPES)}
    return page(reversed(client.executions), query, "execTime", 50, 100, **equal)


def closed_pnl(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """The closed profit of each order that reduced a position."""
    require_linear(query)
    rows = (closed_pnl_row(closed) for closed in reversed(client.closed_pnls))
    return page(rows, query, "updatedTime", 50, 100, symbol=query.get("symbol", ""))


def transaction_log(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """Everything that moved the balance."""
    equal = {"type": query.get("type", ""), "currency": query.get("currency", "")}
    rows = page(reversed(client.transactions), query, "transactionTime", 20, 50, **equal)
    del rows["category"]
    return rows


# -- positions, wallet and account -----------------------------------------------------------------


def _requested_symbol(exchange: SandboxExchange, query: Query) -> str:
    """The requested symbol, empty for all; refused when it is unknown."""
    symbol = query.get("symbol", "")
    if symbol and symbol not in exchange.tapes:
        raise invalid("symbol")
    return symbol


def positions(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """The position of a symbol, flat or not; by settlement coin only the open ones."""
    if query.get("category") == "inverse":
        return {"list": [], "nextPageCursor": "", "category": "inverse"}
    require_linear(query)
    page_limit(query, 20, 200)
    symbol = _requested_symbol(exchange, query)
    if not symbol and query.get("settleCoin") != "USDT":
        raise RefusedError(10001, "params error: symbol or settleCoin is required")
    tapes = [exchange.tapes[s] for s in ([symbol] if symbol else client.held_symbols())]
    rows = [position_row(client, tape.codec, tape.mark_e8) for tape in tapes]
    if client.is_hedged:
        rows = [{**row, "positionIdx": place} for row in rows for place in (1, 2)]
    return {"list": rows, "nextPageCursor": "", "category": "linear"}


def leverages(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """The leverage of each symbol, with a position or without."""
    require_linear(query)
    requested = _requested_symbol(exchange, query)
    rows = [
        {"symbol": symbol, "leverage": terms.leverage, "side": "", "positionIdx": 0}
        for symbol, terms in client.margin.terms.items()
        if requested in ("", symbol)
    ]
    return {"category": "linear", "list": rows}


def wallet(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """Balances and margins of the unified account."""
    if query.get("accountType") != "UNIFIED":
        raise RefusedError(10001, "accountType only support UNIFIED.")
    return {"list": [wallet_row(client, exchange.marks)]}


def fee_rate(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """Maker and taker fee of each symbol."""
    require_linear(query)
    requested, names = (
        _requested_symbol(exchange, query),
        ("symbol", "makerFeeRate", "takerFeeRate"),
    )
    rows = [
        dict(zip(names, (symbol, *client.fee_rates(item)), strict=True))
        for symbol, item in exchange.instruments.items()
        if requested in ("", symbol)
    ]
    return {"category": "linear", "list": rows}


def account_info(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """Margin mode and disconnect-cancel-all settings."""
    names = {mode: name for name, mode in MARGIN_MODES.items()}
    return {
        "marginMode": names[client.mode],
        "updatedTime": str(exchange.start_ns // MS_NS),
        "unifiedMarginStatus": 6,
        "dcpStatus": "ON" if client.dcp_windows_s else "OFF",
        "timeWindow": client.dcp_windows_s.get("DERIVATIVES", 10),
        "smpGroup": 0,
        "isMasterTrader": False,
        "spotHedgingStatus": "OFF",
    }


def api_key_info(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """The API key and its permissions."""
    names = ("Spot", "Options", "CopyTrading", "BlockTrade", "Exchange", "NFT")
    permissions: dict[str, list[str]] = {name: [] for name in names}
    permissions |= {"ContractTrade": ["Order", "Position"], "Derivatives": []}
    permissions["Wallet"] = ["AccountTransfer", "Withdraw"] if client.may_withdraw else []
    return {
        "id": str(client.owner),
        "note": "sandbox",
        "apiKey": client.key,
        "readOnly": int(client.is_read_only),
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


def coins(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """Deposits and withdrawals: no coin has any."""
    return {"rows": []}


# -- settings --------------------------------------------------------------------------------------


def set_leverage(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Set the leverage of a symbol, the same for both sides."""
    tape = tape_of(exchange, body)
    buy, sell = (decimal(body.get(name), name) for name in ("buyLeverage", "sellLeverage"))
    if buy != sell:
        raise RefusedError(10001, "buy leverage and sell leverage have to be equal")
    if buy == Decimal(client.margin.terms[tape.symbol].leverage):
        raise RefusedError(110043, "leverage not modified")
    highest = Decimal(LISTINGS[tape.symbol].tiers[0].max_leverage)
    if not 1 <= buy <= highest or buy % Decimal("0.01"):
        raise RefusedError(110013, "cannot set leverage due to risk limit")
    try:
        client.margin.set_leverage(tape.symbol, f"{buy.normalize():f}")
    except MarginError as error:
        raise RefusedError(110013, f"cannot set leverage due to risk limit: {error}") from None
    exchange.private_messages.settings_changed(client, tape.symbol, exchange.now_ns)
    return {}


def set_trading_stop(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Set take-profit, stop-loss and trailing stop of a position or of a part of it."""
    tape = tape_of(exchange, body)
    check_one_way(client, body)
    check_fields(body, of_position=True)
    stops = stops_of(tape, body)
    if stops is None:
        raise RefusedError(10001, "params error: nothing is to be set")
    position = client.position_lots(tape.symbol)
    if not position:
        raise RefusedError(10001, "can not set tp/sl/ts for zero position")
    last_e8 = tape.last_ticks * tape.tick_e8
    order_checks.check_stop_sides(stops, 1 if position > 0 else -1, last_e8)
    if stops.partial:
        lots = tape.codec.lots(body.get("tpSize") or body.get("slSize") or "0")
        take_size = body.get("tpSize", body.get("slSize"))
        stop_size = body.get("slSize", body.get("tpSize"))
        if not 0 < lots <= abs(position) or take_size != stop_size:
            raise invalid("tpSize or slSize")
        exchange.conditional.add_partial_stops(client, tape.symbol, stops, lots, exchange.now_ns)
        return {}
    if body.get("tpSize") or body.get("slSize"):
        raise RefusedError(10001, "params error: tpSize and slSize are for tpslMode Partial")
    if not exchange.conditional.would_change(client, tape.symbol, stops):
        raise RefusedError(34040, "not modified")
    exchange.conditional.set_full_stops(client, tape.symbol, stops, exchange.now_ns)
    return {}


def switch_mode(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Leave hedge mode, in which an account may be found; nothing else is supported."""
    require_linear(body)
    if not (text(body, "symbol") or text(body, "coin")):
        raise RefusedError(10001, "params error: symbol or coin is required")
    if body.get("mode") in (3, "3") and not client.is_hedged:
        raise RefusedError(10001, "params error: hedge mode is not supported by this venue yet")
    if body.get("mode") not in (0, "0", 3, "3") or isinstance(body["mode"], bool):
        raise invalid("mode")
    if client.is_hedged == (body["mode"] in (3, "3")):
        raise RefusedError(110025, "Position mode is not modified")
    if client.held_symbols():
        raise RefusedError(
            110024, "You have an existing position, so position mode cannot be switched"
        )
    if client.open or client.untriggered:
        raise RefusedError(110028, "You have existing orders, so position mode cannot be switched")
    client.is_hedged = False
    return {}


def set_margin_mode(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Switch between isolated and cross margin; refused with open orders or positions."""
    mode = MARGIN_MODES.get(text(body, "setMarginMode"))
    if mode is None:
        raise invalid("setMarginMode")
    if mode is client.mode:
        raise RefusedError(110026, "Cross/isolated margin mode is not modified")
    if client.open or client.untriggered or client.held_symbols():
        reason = {"reasonCode": "3400045", "reasonMsg": "Close positions and cancel orders first"}
        raise RefusedError(3400045, "Set margin mode failed", result={"reasons": [reason]})
    client.set_mode(mode)
    for symbol in exchange.tapes:
        exchange.private_messages.settings_changed(client, symbol, exchange.now_ns)
    return {"reasons": []}


def set_price_action(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Whether a price beyond the price limits is clamped to them or refused."""
    modify = body.get("modifyEnable")
    if not isinstance(modify, bool):
        raise invalid("modifyEnable")
    client.clamps_price = modify
    return {}


def set_dcp_window(exchange: SandboxExchange, client: Client, body: Body) -> Row:
    """Set disconnect-cancel-all: seconds without a connection until orders are cancelled."""
    product, window_s = text(body, "product", "OPTIONS"), body.get("timeWindow")
    if product not in _DCP_PRODUCTS:
        raise invalid("product")
    if not isinstance(window_s, int) or not _DCP_WINDOW_S[0] <= window_s <= _DCP_WINDOW_S[1]:
        raise invalid("timeWindow")
    client.dcp_windows_s[product] = window_s
    return {}


def dcp_windows(exchange: SandboxExchange, client: Client, query: Query) -> Row:
    """The disconnect-cancel-all windows that are set."""
    rows = [
        {"product": product, "dcpStatus": "ON", "timeWindow": str(window_s)}
        for product, window_s in client.dcp_windows_s.items()
    ]
    return {"dcpInfos": rows}
