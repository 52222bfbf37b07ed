"""Requests → the venue's requests, and what the venue says → evidence. Pure: no socket, no clock.

The table of return codes (`VERDICTS`) says what became of a request:

| verdict   | a new order            | amend, cancel                     | query, stop, cancel-all |
| --------- | ---------------------- | --------------------------------- | ----------------------- |
| DONE      | Accepted               | nothing: the private stream says  | the result; nothing     |
| UNCHANGED | Lost                   | nothing                           | nothing                 |
| REFUSED   | Rejected               | CancelRejected                    | Refused                 |
| LATER     | Rejected               | CancelRejected                    | Refused, retry          |
| DUPLICATE | Rejected, duplicate    | Lost                              | Refused                 |
| GONE      | Lost                   | CancelRejected, gone              | Refused                 |
| UNKNOWN   | Lost                   | Lost                              | Refused, retry          |

A code that the table does not hold is UNKNOWN, as is an answer that cannot be read: the order is then
asked for, and a query is asked again. An acknowledgement is not an outcome; the private stream has that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from decimal import Decimal
from enum import Enum, auto
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from execution.orders import (
    Accepted,
    Amend,
    Cancel,
    CancelRejected,
    Event,
    Filled,
    Lost,
    OrderReport,
    OrderType,
    Rejected,
    Submit,
    TimeInForce,
)
from live.bybit import rows
from live.bybit.rows import Reader, Row, UnreadableError, milliseconds, text
from live.messages import (
    CancelAll,
    Evidence,
    Query,
    QueryKind,
    QueryResult,
    Refused,
    Report,
    RequestBody,
    SetStop,
)
from market.instruments import Instrument
from market.units import DAY_NS, MS_NS


class Verdict(Enum):
    """What a return code says of a request."""

    DONE = auto()
    UNCHANGED = auto()
    REFUSED = auto()
    LATER = auto()
    DUPLICATE = auto()
    GONE = auto()
    UNKNOWN = auto()


_BY_VERDICT: Final[dict[Verdict, tuple[int, ...]]] = {
    Verdict.DONE: (0,),
    #: What was asked for holds already: modes, leverage, stops.
    Verdict.UNCHANGED: (110025, 110026, 110043, 34040),
    #: An order of that id is there; or the request came twice.
    Verdict.DUPLICATE: (110072, 110030, 170141, 10014, 20006),
    #: No such open order: it ended, or never was.
    Verdict.GONE: (110001, 110008, 110010, 170213),
    #: Not executed for a reason that passes by itself: rates, overload, an order in work.
    Verdict.LATER: (10006, 10018, 10403, 10429, 110079, 20003, 403, 429),
    Verdict.REFUSED: (
        *(400, 401, 404, 10001, 10002, 10003, 10004, 10005, 10007, 10010, 10017, 10024, 10027),
        *(10028, 10029, 10032, 10404, 20001, 30208, 30209, 110003, 110004, 110006, 110007),
        *(110009, 110012, 110013, 110017, 110020, 110021, 110024, 110028, 110044, 110045),
        *(110064, 110074, 110090, 110092, 110093, 110094, 110108, 110109, 110120, 110121),
        *(170131, 3400045),
    ),
    #: The venue itself does not know: time-outs, internal errors, restarts, expiry in its queue.
    Verdict.UNKNOWN: (10000, 10016, 10019, -1),
}
VERDICTS: Final = {code: verdict for verdict, codes in _BY_VERDICT.items() for code in codes}

#: Orders that ended without an execution are listed for so long (`order/history`).
KEPT_NS: Final = DAY_NS
#: Longest span of one query of executions.
_WEEK_MS: Final = 7 * 86_400_000
_TRANSACTIONS: Final = "account/transaction-log"
#: A query that has not ended after so many pages is incomplete.
MAX_PAGES: Final = 50
_SIDES: Final = {1: "Buy", -1: "Sell"}
_LINK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,36}")


class Call(NamedTuple):
    """One request of the venue: a path below ``/v5/``, whether it is a POST, and its parameters."""

    path: str
    is_post: bool
    params: dict[str, Any]

    @property
    def operation(self) -> str:
        """Its name on the trade socket; empty for what goes by REST only."""
        return self.path.replace("/", ".") if self.path in _ON_SOCKET else ""


_ON_SOCKET: Final = ("order/create", "order/amend", "order/cancel")


class Page(NamedTuple):
    """An answer of the venue with its return code and time."""

    code: int
    reason: str
    venue_ns: int
    result: Row


def page(body: bytes) -> Page:
    """The envelope of an answer, of REST or of the trade socket; UnreadableError without a return code.

    The connection writes an answer that is no JSON object, an HTTP error page for one, as `unreadable`.
    """
    envelope = _object(body)
    code = envelope.get("retCode", envelope.get("status"))
    if not isinstance(code, int) or isinstance(code, bool):
        raise UnreadableError("no retCode")
    header, result = envelope.get("header"), envelope.get("result", envelope.get("data"))
    stamp: Row = envelope if "time" in envelope or not isinstance(header, dict) else header
    name = "time" if stamp is envelope else "Timenow"
    return Page(
        code,
        text(envelope, "retMsg")[:200],
        milliseconds(stamp, name) if name in stamp else 0,
        result if isinstance(result, dict) else {},
    )


def unreadable(status: int, body: bytes) -> bytes:
    """An HTTP answer that is no JSON object, as a body that `page` reads."""
    return msgspec.json.encode({"status": status, "retMsg": body[:200].decode(errors="replace")})


def not_sent(reason: str, code: int = 10001) -> bytes:
    """The answer to a request that never left; it reads as a refusal of the venue with that code."""
    return msgspec.json.encode({"retCode": code, "retMsg": f"not sent: {reason}"})


def _object(body: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnreadableError("not JSON") from None
    if not isinstance(decoded, dict):
        raise UnreadableError("no JSON object")
    return decoded


class _Said(msgspec.Struct):
    """One page of a query's answer: the call's path, and the venue's own bytes."""

    path: str
    body: msgspec.Raw


class _Pages(msgspec.Struct):
    """The body of a query's `Answer`."""

    complete: bool
    reason: str
    pages: list[_Said]


class BybitCodec:
    """A `live.gateway.Codec` of the symbols with an instrument; account and orders in one coin.

    A venue that does not state its fees (``states_fees``, which `Connections` sets) is not asked for them.
    """

    def __init__(self, instruments: Mapping[str, Instrument], settle_coin: str = "USDT") -> None:
        self.reader = Reader(instruments, settle_coin)
        self.states_fees = True

    # -- requests ------------------------------------------------------------------------------

    def converse(self, body: RequestBody, symbol: str = "") -> Generator[Call, bytes, bytes]:
        """The calls of a request, one after the other: yields each, is sent its answer, and returns the
        body of the request's `Answer`.

        ``symbol`` is that of an amend's or cancel's order. ValueError, before the first call, for a
        request that cannot be written: without an instrument, or a price or quantity not positive.
        """
        if not isinstance(body, Query):
            return (yield self.encode(body, symbol))
        said = _Pages(complete=True, reason="", pages=[])
        said.reason = yield from self._ask(body, said.pages)
        said.complete = not said.reason
        return msgspec.json.encode(said)

    def encode(self, body: Submit | Amend | Cancel | CancelAll | SetStop, symbol: str = "") -> Call:
        """The call of a request that is not a query; ValueError as of `converse`."""
        symbol = getattr(body, "symbol", symbol)
        grid = self.reader.instruments.get(symbol)
        if grid is None:
            raise ValueError(f"symbol {symbol!r} has no instrument here")
        params: dict[str, Any] = {"category": "linear", "symbol": symbol}
        match body:
            case Submit():
                return Call("order/create", True, params | self._order(body, grid))
            case Amend():
                params["orderLinkId"] = _link_id(body.client_id)
                if body.qty_lots is not None:
                    params["qty"] = _qty(grid, body.qty_lots)
                if body.price_ticks is not None:
                    params["price"] = _price(grid, body.price_ticks)
                return Call("order/amend", True, params)
            case Cancel():
                params["orderLinkId"] = _link_id(body.client_id)
                return Call("order/cancel", True, params)
            case CancelAll():
                return Call("order/cancel-all", True, params | {"orderFilter": "Order"})
        stop = _price(grid, body.stop_ticks) if body.stop_ticks else "0"
        params |= {"tpslMode": "Full", "positionIdx": 0, "stopLoss": stop}
        return Call("position/trading-stop", True, params | {"slTriggerBy": "MarkPrice"})

    def _order(self, order: Submit, grid: Instrument) -> dict[str, Any]:
        """The parameters of a new order. A market order is written as what it is at the venue, an
        immediate-or-cancel limit at its bound, so that the bound is ours.
        """
        if order.side not in _SIDES:
            raise ValueError(f"side {order.side!r}")
        is_market = order.order_type is OrderType.MARKET
        params: dict[str, Any] = {
            "side": _SIDES[order.side],
            "orderType": "Limit",
            "qty": _qty(grid, order.qty_lots),
            "price": _price(grid, order.price_ticks),
            "timeInForce": (TimeInForce.IOC if is_market else order.time_in_force).value,
            "positionIdx": 0,
            "orderLinkId": _link_id(order.client_id),
            "reduceOnly": order.reduce_only,
        }
        if order.stop_ticks and not order.reduce_only:  # the venue takes no stop with reduce-only
            stop = _price(grid, order.stop_ticks)
            params |= {"stopLoss": stop, "slTriggerBy": "MarkPrice", "tpslMode": "Full"}
        return params

    def _ask(self, query: Query, pages: list[_Said]) -> Generator[Call, bytes, str]:
        """The calls of a query; returns why its answer is incomplete, empty when it is complete.

        An order is looked for among the open ones and those that ended lately, then in the history, then
        in executions. Absent from all three it is not at the venue as of the first call's time, unless it
        is older than `KEPT_NS`, or so young that it may still be on its way.
        """
        symbol = {"symbol": query.symbol} if query.symbol else {}
        linear = {"category": "linear", **symbol}
        of_coin = linear if symbol else {**linear, "settleCoin": self.reader.settle_coin}
        link = {"orderLinkId": query.client_id} if query.client_id else {}
        ask = partial(_listed, pages)
        match query.kind:
            case QueryKind.ORDER:
                reason = yield from ask("order/realtime", linear | link, 50)
                if not reason and not any(_rows(page(said.body)) for said in pages):
                    reason = yield from ask("order/history", linear | link, 50)
                return reason or (yield from ask("execution/list", linear | link, 100))
            case QueryKind.EXECUTIONS:
                start_ms, reason = query.since_ns // MS_NS, ""
                if not start_ms:  # the venue's default: its last week
                    return (yield from ask("execution/list", linear | link, 100))
                while not reason and (
                    not pages or start_ms <= page(pages[-1].body).venue_ns // MS_NS
                ):
                    span = {"startTime": str(start_ms), "endTime": str(start_ms + _WEEK_MS)}
                    reason = yield from ask("execution/list", linear | link | span, 100)
                    start_ms += _WEEK_MS
                return reason
            case QueryKind.TRANSACTIONS:
                start_ms, day_ms = query.since_ns // MS_NS, DAY_NS // MS_NS
                end_ms = (start_ms // day_ms + 1) * day_ms
                of_coin = {"accountType": "UNIFIED", "currency": self.reader.settle_coin}
                for ms in range(start_ms, end_ms, day_ms // 4):
                    span = {"startTime": str(ms), "endTime": str(min(ms + day_ms // 4, end_ms) - 1)}
                    if reason := (yield from ask(_TRANSACTIONS, of_coin | span, 50)):
                        return reason
                return ""
            case QueryKind.ACCOUNT:
                reason = yield from ask("user/query-api", {}, 0)
                return reason or (yield from ask("account/info", {}, 0))
            case QueryKind.WALLET:
                coin = {"accountType": "UNIFIED", "coin": self.reader.settle_coin}
                return (yield from ask("account/wallet-balance", coin, 0))
            case QueryKind.FEES:
                return (yield from ask("account/fee-rate", linear, 0)) if self.states_fees else ""
            case QueryKind.INSTRUMENT:
                return (yield from ask("market/instruments-info", linear, 1000))
            case QueryKind.RISK_LIMITS:
                return (yield from ask("market/risk-limit", linear, 0))
            case QueryKind.POSITION:
                return (yield from ask("position/list", of_coin, 200))
            case QueryKind.OPEN_ORDERS:
                return (yield from ask("order/realtime", of_coin, 50))

    # -- what the venue says -------------------------------------------------------------------

    def evidence(self, now_ns: int, frame: bytes) -> list[Evidence]:
        """What a frame of the private stream says; nothing for replies and pongs."""
        try:
            message = _object(frame)
            if "topic" not in message:
                if "op" in message or "success" in message:
                    return []
                raise UnreadableError("neither topic nor op")
            topic = text(message, "topic").partition(".linear")[0]
            created_ns = milliseconds(message, "creationTime")
            found = rows.rows(message, "data")
        except UnreadableError as error:
            return [Refused(reason=f"private stream: {error}: {frame[:120]!r}")]
        return self._read(topic, found, now_ns, created_ns)

    def _read(self, topic: str, found: Iterable[Row], now_ns: int, venue_ns: int) -> list[Evidence]:
        """The evidence of rows of a topic or list; a row that cannot be read is `Refused`."""
        evidence: list[Evidence] = []
        for row in found:
            try:
                match topic:
                    case "order" | "order/realtime" | "order/history":
                        evidence.append(self.reader.order(row, now_ns))
                    case "execution" | "execution/list":
                        evidence += self.reader.execution(row, now_ns)
                    case "position" | "position/list":
                        evidence.append(self.reader.position(row))
                    case "wallet" | "account/wallet-balance":
                        wallet = self.reader.wallet(row, venue_ns)
                        evidence += [] if wallet is None else [wallet]
                    case _ if topic == _TRANSACTIONS:
                        evidence.append(self.reader.transaction(row))
                    case "market/instruments-info":
                        evidence.append(rows.instrument(row))
                    case "account/fee-rate":
                        evidence.append(rows.fees(row))
                    case "market/risk-limit":
                        evidence.append(rows.tier(row))
                    case _:
                        raise UnreadableError("not read here")
            except UnreadableError as error:
                evidence.append(Refused(reason=f"{topic}: {error}"))
        return evidence

    def answer(self, now_ns: int, request: RequestBody, body: bytes) -> list[Evidence]:
        """What the answer to a request says: see the table above; one `QueryResult` of a query."""
        if isinstance(request, Query):
            return [self._result(now_ns, request, body)]
        try:
            said = page(body)
            venue_id = text(said.result, "orderId")
            verdict = VERDICTS.get(said.code, Verdict.UNKNOWN)
        except UnreadableError as error:
            said = Page(0, f"unreadable answer: {error}: {body[:120]!r}", 0, {})
            verdict, venue_id = Verdict.UNKNOWN, ""
        reason = f"{said.code} {said.reason}" if said.code else said.reason
        if not isinstance(request, Submit | Amend | Cancel):
            if verdict in (Verdict.DONE, Verdict.UNCHANGED):
                return []
            retry = verdict in (Verdict.LATER, Verdict.UNKNOWN)
            return [Refused(reason=reason, code=said.code, retry=retry)]
        known: dict[str, Any] = {"client_id": request.client_id, "time_ns": now_ns}
        known["venue_ns"] = said.venue_ns
        if isinstance(request, Submit):
            if verdict is Verdict.DONE:
                return [Accepted(**known, venue_order_id=venue_id)]
            # An order in work may be this very one.
            if verdict in (Verdict.REFUSED, Verdict.LATER) and said.code != _IN_WORK:
                return [Rejected(**known, reason=reason)]
            if verdict is Verdict.DUPLICATE:
                return [Rejected(**known, reason=reason, duplicate=True)]
            return [Lost(**known, reason=reason)]
        if verdict in (Verdict.DONE, Verdict.UNCHANGED):
            return []
        if verdict in (Verdict.REFUSED, Verdict.LATER, Verdict.GONE):
            gone = verdict is Verdict.GONE
            return [CancelRejected(**known, reason=reason, gone=gone)]
        return [Lost(**known, reason=reason)]

    def _result(self, now_ns: int, query: Query, body: bytes) -> QueryResult:
        orders: list[Event] = []
        reports: list[Report] = []
        times: list[int] = []
        seen: set[Evidence] = set()
        results: dict[str, Row] = {}
        try:
            said = msgspec.json.decode(body, type=_Pages)
            reason = said.reason
            for each in said.pages:
                answer = page(each.body)
                times.append(answer.venue_ns)
                results[each.path] = answer.result
                if answer.code:
                    retry = VERDICTS.get(answer.code) in (None, Verdict.LATER, Verdict.UNKNOWN)
                    reports.append(Refused(reason=reason, code=answer.code, retry=retry))
                    continue
                if each.path in ("user/query-api", "account/info"):
                    continue
                listed = rows.rows(answer.result, "list")
                for one in self._read(each.path, listed, now_ns, answer.venue_ns):
                    if one in seen:  # pages shift while they are read
                        continue
                    seen.add(one)
                    if isinstance(one, OrderReport | Filled):
                        orders.append(one)
                    elif isinstance(one, Report):
                        reports.append(one)
                        reason = reason or (one.reason if isinstance(one, Refused) else "")
            if "account/info" in results and not reason:
                key, info = results["user/query-api"], results["account/info"]
                reports.append(rows.account(key, info, times[-1]))
        except (UnreadableError, msgspec.MsgspecError) as error:
            reason = f"unreadable answer: {error}"
        venue_ns = min(times, default=0)
        is_absent = query.kind is QueryKind.ORDER and not orders and not reason
        if is_absent and query.since_ns and venue_ns - query.since_ns > KEPT_NS:
            reason = "the order is older than what the venue lists of ended ones"
        orders.reverse()  # lists come newest first
        orders.sort(key=lambda event: event.venue_ns)
        return QueryResult(
            query=query,
            complete=not reason,
            venue_ns=venue_ns,
            orders=tuple(orders),
            reports=tuple(reversed(reports)),
            reason=reason,
        )


_IN_WORK: Final = 110079


def _listed(
    pages: list[_Said], path: str, params: dict[str, Any], limit: int
) -> Generator[Call, bytes, str]:
    """The pages of one list, of at most ``limit`` rows each (0: it has one page), until it ends."""
    cursor = ""
    for _ in range(MAX_PAGES):
        turn = ({"limit": str(limit)} if limit else {}) | ({"cursor": cursor} if cursor else {})
        body = yield Call(path, False, params | turn)
        try:
            said = page(body)
            pages.append(_Said(path, msgspec.Raw(body)))
            cursor = text(said.result, "nextPageCursor")
        except UnreadableError as error:
            return f"{path}: unreadable answer: {error}: {body[:120]!r}"
        if said.code:
            return f"{path}: {said.code} {said.reason}"
        # The venue names a next page after the last row too.
        if not cursor or len(_rows(said)) < limit:
            return ""
    return f"{path}: more than {MAX_PAGES} pages"


def _rows(said: Page) -> list[Any]:
    found = said.result.get("list")
    return found if isinstance(found, list) else []


def _link_id(client_id: str) -> str:
    if not _LINK_ID.fullmatch(client_id):
        raise ValueError(f"order id {client_id!r}: expected up to 36 of A-Z, a-z, 0-9, - and _")
    return client_id


def _price(grid: Instrument, ticks: int) -> str:
    return _written(grid.price, ticks, "price in ticks")


def _qty(grid: Instrument, lots: int) -> str:
    return _written(grid.qty, lots, "quantity in lots")


def _written(value: Callable[[int], Decimal], units: int, name: str) -> str:
    """The venue's decimal string of whole units; ValueError unless they are positive."""
    if units != int(units) or units <= 0:
        raise ValueError(f"{name}: {units!r} is not a positive whole number")
    return f"{value(units):f}"
