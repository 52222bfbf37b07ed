"""Public market data over REST. Each function takes the exchange and the query."""

from __future__ import annotations

from typing import Final

from market.units import E8, MS_NS
from proving.sandbox.candles import INTERVALS, MINUTE_MS
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.listing import LISTINGS, instrument_info
from proving.sandbox.protocol import (
    Query,
    RefusedError,
    Row,
    integer,
    invalid,
    money,
    page_limit,
    rounded,
)
from proving.sandbox.tape import DEEP, PublicTape

#: Open-interest intervals in minutes.
INTEREST_MINUTES: Final = {"5min": 5, "15min": 15, "30min": 30, "1h": 60, "4h": 240, "1d": 1440}
CATEGORIES: Final = ("linear", "inverse", "spot", "option")


def _category(query: Query) -> str:
    """The requested category; only linear has symbols here."""
    name = query.get("category", "")
    if name not in CATEGORIES:
        raise RefusedError(10001, "Illegal category")
    return name


def _tape(exchange: SandboxExchange, query: Query) -> PublicTape:
    """The tape of the requested symbol."""
    tape = exchange.tapes.get(query.get("symbol", ""))
    if _category(query) != "linear" or tape is None:
        raise invalid("symbol")
    return tape


def _tapes(exchange: SandboxExchange, query: Query) -> list[PublicTape]:
    """The tape of the requested symbol, or all of the category."""
    if _category(query) != "linear":
        return []
    return [_tape(exchange, query)] if "symbol" in query else list(exchange.tapes.values())


def instruments(exchange: SandboxExchange, query: Query) -> Row:
    """Tick, lot, limits and leverage of symbols."""
    trading = query.get("status", "Trading") == "Trading"
    base = query.get("baseCoin", "")
    rows = [instrument_info(tape.instrument) for tape in _tapes(exchange, query)] if trading else []
    chosen = [row for row in rows if not base or row["baseCoin"] == base]
    return {"category": _category(query), "list": chosen, "nextPageCursor": ""}


def orderbook(exchange: SandboxExchange, query: Query) -> Row:
    """The book of 1000 levels as last published; ``u`` is that topic's update id."""
    tape, limit = _tape(exchange, query), page_limit(query, 25, DEEP)
    book, codec = tape.deep_book(), tape.codec

    def side(sign: int) -> list[list[str]]:
        levels = book.levels(sign, limit)
        return [[codec.padded_price(ticks), codec.padded_qty(lots)] for ticks, lots in levels]

    return {
        "s": tape.symbol,
        "b": side(1),
        "a": side(-1),
        "ts": book.publish_ns // MS_NS,
        "u": book.update_id,
        "seq": tape.sequence(book.exchange_ns),
        "cts": book.exchange_ns // MS_NS,
    }


def tickers(exchange: SandboxExchange, query: Query) -> Row:
    """The tickers of symbols."""
    rows = []
    for tape in _tapes(exchange, query):
        fields = tape.ticker_fields()
        del fields["tickDirection"]
        delivery = dict.fromkeys(("predictedDeliveryPrice", "basisRate", "deliveryFeeRate"), "")
        basis = {"deliveryTime": "0", "basis": "", "basisRateYear": ""}
        rows.append({"symbol": tape.symbol, **fields, **delivery, **basis})
    return {"category": _category(query), "list": rows}


def recent_trades(exchange: SandboxExchange, query: Query) -> Row:
    """The last public trades, newest first."""
    tape, limit = _tape(exchange, query), page_limit(query, 500, 1000)
    rows = [
        {
            "execId": trade["i"],
            "symbol": trade["s"],
            "price": trade["p"],
            "size": trade["v"],
            "side": trade["S"],
            "time": str(trade["T"]),
            "isBlockTrade": trade["BT"],
            "isRPITrade": trade["RPI"],
            "seq": str(trade["seq"]),
        }
        for trade in reversed(list(tape.trades)[-limit:])
    ]
    return {"category": "linear", "list": rows}


def candles(exchange: SandboxExchange, query: Query, kind: str = "kline") -> Row:
    """Candles of last price, mark price, index price or premium index, newest first."""
    tape, limit = _tape(exchange, query), page_limit(query, 200, 1000)
    interval = query.get("interval", "")
    if interval not in INTERVALS:
        raise RefusedError(10001, "Invalid period!")
    start, end = integer(query, "start", 0), integer(query, "end", 1 << 62)
    rows = []
    for candle in reversed(tape.candles[kind].latest(interval, limit, start, end)):
        values = candle.open, candle.high, candle.low, candle.close
        if kind == "kline":
            prices = [tape.codec.price(value) for value in values]
            traded = [tape.codec.qty(candle.lots), money(candle.turnover_e8)]
        else:
            places = 6 if kind.startswith("premium") else 2
            prices, traded = [rounded(value, places) for value in values], []
        rows.append([str(candle.start_ms), *prices, *traded])
    return {"category": "linear", "symbol": tape.symbol, "list": rows}


def funding_history(exchange: SandboxExchange, query: Query) -> Row:
    """Funding settlements since the start, newest first."""
    tape, limit = _tape(exchange, query), page_limit(query, 200, 200)
    if "startTime" in query and "endTime" not in query:
        raise RefusedError(10001, "params error: endTime is required with startTime")
    start, end = integer(query, "startTime", 0), integer(query, "endTime", 1 << 62)
    rows = [
        {
            "symbol": tape.symbol,
            "fundingRate": money(rate),
            "fundingRateTimestamp": str(at_ms),
        }
        for at_ms, rate in reversed(tape.funding)
        if start <= at_ms <= end
    ]
    return {"category": "linear", "list": rows[:limit]}


def open_interest(exchange: SandboxExchange, query: Query) -> Row:
    """Open interest at the start of each interval, newest first."""
    tape, limit = _tape(exchange, query), page_limit(query, 50, 200)
    minutes = INTEREST_MINUTES.get(query.get("intervalTime", ""))
    if minutes is None:
        raise invalid("intervalTime")
    start, end = integer(query, "startTime", 0), integer(query, "endTime", 1 << 62)
    chosen = [
        (at_ms, interest)
        for at_ms, interest in reversed(tape.open_interest)
        if at_ms % (minutes * MINUTE_MS) == 0 and start <= at_ms <= end
    ]
    offset = integer(query, "cursor", 0)
    rows = [
        {"openInterest": rounded(interest, 8), "timestamp": str(at_ms)}
        for at_ms, interest in chosen[offset : offset + limit]
    ]
    more = str(offset + limit) if len(chosen) > offset + limit else ""
    return {"category": "linear", "symbol": tape.symbol, "list": rows, "nextPageCursor": more}


def risk_limits(exchange: SandboxExchange, query: Query) -> Row:
    """The risk tiers of symbols."""
    rows = [
        {
            "id": number,
            "symbol": tape.symbol,
            "riskLimitValue": str(tier.limit),
            "maintenanceMargin": tier.maintenance,
            "initialMargin": tier.initial,
            "isLowestRisk": int(number == LISTINGS[tape.symbol].first_tier),
            "maxLeverage": f"{float(tier.max_leverage):.2f}",
            "mmDeduction": money(int(tier.deduction * E8)) if tier.deduction else "",
        }
        for tape in _tapes(exchange, query)
        for number, tier in enumerate(LISTINGS[tape.symbol].tiers, LISTINGS[tape.symbol].first_tier)
    ]
    return {"category": _category(query), "list": rows, "nextPageCursor": ""}


def price_limit(exchange: SandboxExchange, query: Query) -> Row:
    """The current price limits of a symbol."""
    tape = _tape(exchange, query)
    return {**tape.price_limit_row(), "ts": str(exchange.now_ms)}


def status(exchange: SandboxExchange, query: Query) -> Row:
    """The maintenance calendar, which is empty."""
    return {"list": []}
