"""Market data over REST: what anybody may ask. Each function takes the exchange and the query."""

from __future__ import annotations

from typing import Any, Final

from market.units import E8
from proving.sandbox.candles import INTERVALS
from proving.sandbox.exchange import Exchange
from proving.sandbox.figures import money, rounded
from proving.sandbox.listing import LISTINGS, info
from proving.sandbox.paging import Query, limit_of, whole
from proving.sandbox.refusal import RefusedError
from proving.sandbox.tape import DEEP, Tape

Result = dict[str, Any]

#: Minutes of the intervals of open interest.
INTEREST_MINUTES: Final = {"5min": 5, "15min": 15, "30min": 30, "1h": 60, "4h": 240, "1d": 1440}
CATEGORIES: Final = ("linear", "inverse", "spot", "option")


def category(query: Query) -> str:
    """The category asked for; only linear has symbols here."""
    name = query.get("category", "")
    if name not in CATEGORIES:
        raise RefusedError(10001, "Illegal category")
    return name


def tape_of(exchange: Exchange, query: Query) -> Tape:
    """The symbol asked for."""
    tape = exchange.tapes.get(query.get("symbol", ""))
    if category(query) != "linear" or tape is None:
        raise RefusedError(10001, "params error: symbol invalid")
    return tape


def tapes_of(exchange: Exchange, query: Query) -> list[Tape]:
    """The symbol asked for, or all of the category."""
    if "symbol" in query and category(query) == "linear":
        return [tape_of(exchange, query)]
    return list(exchange.tapes.values()) if category(query) == "linear" else []


def instruments(exchange: Exchange, query: Query) -> Result:
    trading = query.get("status", "Trading") == "Trading"
    base = query.get("baseCoin", "")
    rows = [info(tape.instrument) for tape in tapes_of(exchange, query)] if trading else []
    chosen = [row for row in rows if not base or row["baseCoin"] == base]
    return {"category": category(query), "list": chosen, "nextPageCursor": ""}


def orderbook(exchange: Exchange, query: Query) -> Result:
    """The deep topic's book as last published, so that ``u`` is that topic's."""
    tape, limit = tape_of(exchange, query), limit_of(query, 25, DEEP)
    book, figures = tape.books[DEEP], tape.figures

    def side(sign: int) -> list[list[str]]:
        levels = book.levels(sign, limit)
        return [[figures.padded_price(ticks), figures.padded_qty(lots)] for ticks, lots in levels]

    return {
        "s": tape.symbol,
        "b": side(1),
        "a": side(-1),
        "ts": book.publish_ns // 1_000_000,
        "u": book.update_id,
        "seq": tape.sequence(book.exchange_ns),
        "cts": book.exchange_ns // 1_000_000,
    }


def tickers(exchange: Exchange, query: Query) -> Result:
    rows = []
    for tape in tapes_of(exchange, query):
        fields = tape.ticker()
        del fields["tickDirection"]
        unused = dict.fromkeys(("predictedDeliveryPrice", "basisRate", "deliveryFeeRate"), "")
        more = {"deliveryTime": "0", "basis": "", "basisRateYear": ""}
        rows.append({"symbol": tape.symbol, **fields, **unused, **more})
    return {"category": category(query), "list": rows}


def recent_trades(exchange: Exchange, query: Query) -> Result:
    tape, limit = tape_of(exchange, query), limit_of(query, 500, 1000)
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


def candles(exchange: Exchange, query: Query, kind: str = "kline") -> Result:
    """Candles of trades, of the mark or index price or of the premium, newest first."""
    tape, limit = tape_of(exchange, query), limit_of(query, 200, 1000)
    interval = query.get("interval", "")
    if interval not in INTERVALS:
        raise RefusedError(10001, "Invalid period!")
    start, end = whole(query, "start", 0), whole(query, "end", 1 << 62)
    rows = []
    for candle in reversed(tape.candles[kind].latest(interval, limit, start, end)):
        values = candle.opening, candle.high, candle.low, candle.close
        if kind == "kline":
            prices = [tape.figures.price(value) for value in values]
            traded = [tape.figures.qty(candle.lots), money(candle.turnover_e8)]
        else:
            places = 6 if kind.startswith("premium") else 2
            prices, traded = [rounded(value, places) for value in values], []
        rows.append([str(candle.start_ms), *prices, *traded])
    return {"category": "linear", "symbol": tape.symbol, "list": rows}


def funding_history(exchange: Exchange, query: Query) -> Result:
    """Settlements since the world began, newest first."""
    tape, limit = tape_of(exchange, query), limit_of(query, 200, 200)
    if "startTime" in query and "endTime" not in query:
        raise RefusedError(10001, "params error: endTime is required with startTime")
    start, end = whole(query, "startTime", 0), whole(query, "endTime", 1 << 62)
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


def open_interest(exchange: Exchange, query: Query) -> Result:
    """Open interest at the beginnings of intervals, newest first."""
    tape, limit = tape_of(exchange, query), limit_of(query, 50, 200)
    minutes = INTEREST_MINUTES.get(query.get("intervalTime", ""))
    if minutes is None:
        raise RefusedError(10001, "params error: intervalTime invalid")
    start, end = whole(query, "startTime", 0), whole(query, "endTime", 1 << 62)
    chosen = [
        (at_ms, interest)
        for at_ms, interest in reversed(tape.interests)
        if at_ms % (minutes * 60_000) == 0 and start <= at_ms <= end
    ]
    skipped = whole(query, "cursor", 0)
    rows = [
        {"openInterest": rounded(interest, 8), "timestamp": str(at_ms)}
        for at_ms, interest in chosen[skipped : skipped + limit]
    ]
    more = str(skipped + limit) if len(chosen) > skipped + limit else ""
    return {"category": "linear", "symbol": tape.symbol, "list": rows, "nextPageCursor": more}


def risk_limits(exchange: Exchange, query: Query) -> Result:
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
        for tape in tapes_of(exchange, query)
        for number, tier in enumerate(LISTINGS[tape.symbol].tiers, LISTINGS[tape.symbol].first_tier)
    ]
    return {"category": category(query), "list": rows, "nextPageCursor": ""}


def price_limit(exchange: Exchange, query: Query) -> Result:
    tape = tape_of(exchange, query)
    return {**tape.price_limit(), "ts": str(exchange.now_ms)}


def status(exchange: Exchange, query: Query) -> Result:
    """No maintenance is announced."""
    return {"list": []}
