"""Gateway: REST, and order entry over WebSocket, with their authentication and rate limits.

Every REST answer is `{"retCode", "retMsg", "result", "retExtInfo", "time"}` with HTTP status 200, business
refusals included; ``time`` is simulated, like every time of an order or execution, while time stamps,
receive windows and `market/time` follow the wall clock. Rate limits count requests per client and route
over both transports. A batch counts as many requests as it has legs; when not all fit, the first are
executed and the others refused one by one.

All requests to this address, public ones included, are limited to 600 in five seconds; beyond that the
answer is HTTP 403 until there is room again (the venue bans an address for ten minutes).

A defect of ours is answered with 10016 and logged with its traceback.
"""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from market.units import MS_NS, SECOND_NS
from proving.sandbox import account_requests, market_requests, order_entry
from proving.sandbox.accounts import Client
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.protocol import (
    RECV_WINDOW_MS,
    RefusedError,
    Row,
    authenticate,
    authenticate_socket,
    check_recv_window,
    invalid,
)
from proving.sandbox.streams import (
    Connection,
    Endpoint,
    Json,
    Later,
    decode_request,
    in_event_loop,
)

LIMIT_WINDOW_MS: Final = 1000
#: Requests of one IP address, here all of them, within a window.
ADDRESS_LIMIT: Final = 600
ADDRESS_WINDOW_MS: Final = 5000
#: Rate limit of a route when limits are off.
UNLIMITED: Final = 1_000_000

#: WebSocket operations and their REST routes.
OPERATIONS: Final = {
    f"order.{verb}{batch}": f"order/{verb}{batch}"
    for verb in ("create", "amend", "cancel")
    for batch in ("", "-batch")
}
MAX_REQ_ID: Final = 36
#: Request ids remembered per connection, to refuse duplicates.
KEPT_REQ_IDS: Final = 10_000
#: Delay of WebSocket answers: pybit registers its callback after sending, and drops an answer that comes
#: before that, which over a real network none does.
ANSWER_DELAY_S: Final = 0.003


# -- routes ----------------------------------------------------------------------------------------


class Route(NamedTuple):
    """``run`` takes the exchange, the client (private routes) and the query or body."""

    method: str
    run: Callable[..., Any]
    private: bool
    limit: int = 0  #: requests per second and client
    batch: bool = False


def _public(run: Callable[..., Any]) -> Route:
    return Route("GET", run, False)


def _get(run: Callable[..., Any], limit: int = 50) -> Route:
    return Route("GET", run, True, limit)


def _post(run: Callable[..., Any], limit: int = 10) -> Route:
    return Route("POST", run, True, limit)


def _batch(run: Callable[..., Any]) -> Route:
    return Route("POST", partial(order_entry.batch, run), True, 10, True)


ROUTES: Final[dict[str, Route]] = {
    "market/instruments-info": _public(market_requests.instruments),
    "market/orderbook": _public(market_requests.orderbook),
    "market/tickers": _public(market_requests.tickers),
    "market/recent-trade": _public(market_requests.recent_trades),
    "market/kline": _public(market_requests.candles),
    "market/mark-price-kline": _public(partial(market_requests.candles, kind="mark-price-kline")),
    "market/index-price-kline": _public(partial(market_requests.candles, kind="index-price-kline")),
    "market/premium-index-price-kline": _public(
        partial(market_requests.candles, kind="premium-index-price-kline")
    ),
    "market/funding/history": _public(market_requests.funding_history),
    "market/open-interest": _public(market_requests.open_interest),
    "market/risk-limit": _public(market_requests.risk_limits),
    "market/price-limit": _public(market_requests.price_limit),
    "system/status": _public(market_requests.status),
    "order/create": _post(order_entry.create),
    "order/amend": _post(order_entry.amend),
    "order/cancel": _post(order_entry.cancel),
    "order/cancel-all": _post(order_entry.cancel_all),
    "order/disconnected-cancel-all": _post(account_requests.set_dcp_window, 5),
    "order/create-batch": _batch(order_entry.create),
    "order/amend-batch": _batch(order_entry.amend),
    "order/cancel-batch": _batch(order_entry.cancel),
    "order/pre-check": _post(order_entry.pre_check),
    "order/realtime": _get(account_requests.open_orders),
    "order/history": _get(account_requests.order_history),
    "execution/list": _get(account_requests.executions),
    "position/list": _get(account_requests.positions),
    "position/closed-pnl": _get(account_requests.closed_pnl),
    "position/set-leverage": _post(account_requests.set_leverage),
    "position/switch-mode": _post(account_requests.switch_mode),
    "position/trading-stop": _post(account_requests.set_trading_stop),
    "position/symbol-info": _get(account_requests.leverages),
    "account/wallet-balance": _get(account_requests.wallet),
    "account/fee-rate": _get(account_requests.fee_rate, 5),
    "account/info": _get(account_requests.account_info),
    "account/query-dcp-info": _get(account_requests.dcp_windows, 5),
    "account/transaction-log": _get(account_requests.transaction_log, 25),
    "account/set-margin-mode": _post(account_requests.set_margin_mode, 5),
    "account/set-limit-px-action": _post(account_requests.set_price_action),
    "user/query-api": _get(account_requests.api_key_info, 10),
    "asset/coin/query-info": _get(account_requests.coins, 5),
}


#: Routes that demo accounts do not have.
NOT_ON_DEMO: Final = frozenset(
    {"account/fee-rate", "account/query-dcp-info", "order/disconnected-cancel-all"}
)

# -- rate limits -----------------------------------------------------------------------------------


class RateLimits:
    """Request times of each client and route in the last second, and of the address."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], deque[int]] = {}
        self._address: deque[int] = deque()

    def count_address(self, now_ms: int) -> None:
        """Count any request; refused when the address has sent too many."""
        while self._address and self._address[0] <= now_ms - ADDRESS_WINDOW_MS:
            self._address.popleft()
        if len(self._address) >= ADDRESS_LIMIT:
            raise RefusedError(10018, "Exceeded the IP Rate Limit.", 403)
        self._address.append(now_ms)

    def take(
        self, client: Client, path: str, limit: int, cost: int, now_ms: int
    ) -> tuple[dict[str, str], int]:
        """Count ``cost`` requests: the rate-limit headers, and how many are granted; refused when none."""
        times = self._times.setdefault((client.key, path), deque())
        while times and times[0] <= now_ms - LIMIT_WINDOW_MS:
            times.popleft()
        granted = min(cost, limit - len(times))
        times.extend([now_ms] * granted)
        reset = now_ms if granted == cost or not times else times[0] + LIMIT_WINDOW_MS
        headers = {
            "X-Bapi-Limit": str(limit),
            "X-Bapi-Limit-Status": str(limit - len(times)),
            "X-Bapi-Limit-Reset-Timestamp": str(reset),
        }
        if not granted:
            raise RateLimitedError(headers)
        return headers, granted


class RateLimitedError(RefusedError):
    """Too many requests; the headers say when there is room again."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__(10006, order_entry.RATE_LIMITED)
        self.headers = headers


# -- REST ------------------------------------------------------------------------------------------


class Response(NamedTuple):
    """The outcome of a request; ``ext_info`` is its `retExtInfo`, ``headers`` its rate limit."""

    result: Row
    ext_info: Mapping[str, Any] = MappingProxyType({})
    headers: Mapping[str, str] = MappingProxyType({})
    code: int = 0
    message: str = "OK"
    status: int = 200


class HttpAnswer(NamedTuple):
    """An answer as it is sent."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})


def http_answer(response: Response, now_ms: int) -> HttpAnswer:
    """A response in its envelope."""
    envelope = {
        "retCode": response.code,
        "retMsg": response.message,
        "result": response.result,
        "retExtInfo": dict(response.ext_info),
        "time": now_ms,
    }
    return HttpAnswer(msgspec.json.encode(envelope), response.status, response.headers)


def _refusal(refused: RefusedError, headers: dict[str, str]) -> Response:
    return Response(refused.result, {}, headers, refused.code, refused.message, refused.status)


class Gateway:
    """``catch_up`` brings the exchange up to now before a request is executed; ``wall_ns`` is the venue's
    wall clock; without ``limited`` nothing is refused for its rate."""

    def __init__(
        self,
        exchange: SandboxExchange,
        catch_up: Callable[[], None],
        limited: bool,
        wall_ns: Callable[[], int] = time.time_ns,
        demo: bool = False,
    ) -> None:
        self.exchange, self._catch_up, self._demo = exchange, catch_up, demo
        self.clients = {client.key: client for client in exchange.clients}
        self.trace_numbers = itertools.count()
        self._log = logging.getLogger(__name__)
        self._limits, self._limited, self._wall_ns = RateLimits(), limited, wall_ns

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> HttpAnswer:
        """Answer one REST request; ``target`` is path and query as sent."""
        now_ns = self._wall_ns()
        now_ms = now_ns // MS_NS
        path, _, query = target.partition("?")
        try:
            if self._limited:
                self._limits.count_address(now_ms)
            if path == "/v5/market/time":
                time_row = {"timeSecond": str(now_ns // SECOND_NS), "timeNano": str(now_ns)}
                response = Response(time_row)
            else:
                response = self._respond(method, path, query, headers, body, now_ms)
        except RefusedError as refused:
            response = _refusal(refused, {})
        except Exception:  # a defect must not stop the venue
            response = self._defect(path, {})
        # Clients take the clock that they sign by from there.
        is_clock = path == "/v5/market/time"
        return http_answer(response, now_ms if is_clock else self.exchange.now_ms)

    def answer_unsigned(self, client: Client, path: str, params: Any, stamp: str) -> HttpAnswer:
        """The answer to a request of a client on a private route, without its signature; ``stamp`` is
        its timestamp, in ms."""
        now_ms = self._wall_ns() // MS_NS
        try:
            check_recv_window(stamp, str(RECV_WINDOW_MS), now_ms)
        except RefusedError as refused:
            return http_answer(_refusal(refused, {}), self.exchange.now_ms)
        response = self.execute(client, path, params, now_ms)
        return http_answer(response, self.exchange.now_ms)

    def refuse(self, code: int, message: str, status: int) -> HttpAnswer:
        """The answer to a request that is not executed, as if its rate were the reason."""
        now_ms = self._wall_ns() // MS_NS
        headers = {
            "X-Bapi-Limit": "10",
            "X-Bapi-Limit-Status": "0",
            "X-Bapi-Limit-Reset-Timestamp": str(now_ms + 100),
        }
        response = Response({}, {}, headers, code, message, status)
        return http_answer(response, self.exchange.now_ms)

    def _respond(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes,
        now_ms: int,
    ) -> Response:
        route = ROUTES.get(path.removeprefix("/v5/"))
        if route is None or not path.startswith("/v5/"):
            raise RefusedError(10017, "Route not found.", 404)
        if method != route.method:
            raise RefusedError(10017, "Request method is not supported.", 400)
        params: Any = dict(parse_qsl(query, keep_blank_values=True))
        if not route.private:
            self._catch_up()
            return Response(route.run(self.exchange, params))
        payload = query.encode("utf-8", "surrogateescape") if route.method == "GET" else body
        client = authenticate(headers, payload, now_ms, self.clients)
        if route.method == "POST":
            params = _decode_body(body)
        return self.execute(client, path.removeprefix("/v5/"), params, now_ms)

    def execute(self, client: Client, path: str, params: Any, now_ms: int) -> Response:
        """Count and execute an authenticated request on a private route, over either transport."""
        route = ROUTES[path]
        headers: dict[str, str] = {}
        legs = params.get("request") if route.batch else None
        cost = len(legs) if isinstance(legs, list) and legs else 1
        limit = route.limit if self._limited else UNLIMITED
        try:
            if self._demo and path in NOT_ON_DEMO:
                raise RefusedError(10032, "Demo trading are not supported.")
            if client.is_read_only and route.method == "POST":
                raise RefusedError(
                    10005, "Permission denied, please check your API key permissions."
                )
            headers, granted = self._limits.take(client, path, limit, cost, now_ms)
            self._catch_up()
            run = partial(route.run, granted=granted) if route.batch else route.run
            outcome = run(self.exchange, client, params)
        except RateLimitedError as limited:
            return _refusal(limited, limited.headers)
        except RefusedError as refused:
            return _refusal(refused, headers)
        except Exception:
            return self._defect(path, headers)
        result, ext_info = outcome if route.batch else (outcome, {})
        return Response(result, ext_info, headers)

    def _defect(self, path: str, headers: dict[str, str]) -> Response:
        """The answer to an exception of ours: the client does not know whether the request took effect."""
        self._log.exception("request %s failed", path)
        return _refusal(RefusedError(10016, "Internal server error."), headers)


def _decode_body(body: bytes) -> Row:
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise RefusedError(10001, "Request parameter error.")
    return decoded


# -- order entry over WebSocket --------------------------------------------------------------------


class TradeRequest:
    """A validated request of an operation, not executed yet."""

    def __init__(
        self, gateway: Gateway, client: Client, frame: Json, connection: Connection
    ) -> None:
        self.client, self.path = client, OPERATIONS[frame["op"]]
        self._gateway, self._frame, self._connection = gateway, frame, connection

    def execute(self, now_ms: int) -> Json:
        """Execute it; the answer."""
        params = self._frame["args"][0]
        return self._answer(self._gateway.execute(self.client, self.path, params, now_ms))

    def refuse(self, code: int, message: str) -> Json:
        """The answer to a request that is not executed."""
        return self._answer(Response({}, code=code, message=message))

    def _answer(self, response: Response) -> Json:
        stamp = str(self._gateway.exchange.now_ms)
        return {
            **_req_id(self._frame),
            "retCode": response.code,
            "retMsg": response.message,
            "op": self._frame["op"],
            "data": response.result,
            "retExtInfo": dict(response.ext_info),
            "header": {**response.headers, "Traceid": self._trace_id(), "Timenow": stamp},
            "connId": self._connection.conn_id,
        }

    def _trace_id(self) -> str:
        number = next(self._gateway.trace_numbers)
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{self._connection.name}/{number}").hex


class TradeSocket(Endpoint):
    """Order entry over WebSocket: the order routes of REST, after authentication, each with an answer.

    A request carries its id (`reqId`, unique per connection) and, in its header, the timestamp and receive
    window of a REST request. ``on_request`` executes a request and answers it.
    """

    name = "trade"

    def __init__(
        self,
        gateway: Gateway,
        wall_ns: Callable[[], int] = time.time_ns,
        later: Later = in_event_loop,
    ) -> None:
        super().__init__()
        self.on_request: Callable[[Connection, TradeRequest, int], None] = self._execute
        self._gateway, self._wall_ns, self._later = gateway, wall_ns, later
        self._req_ids: dict[Connection, dict[str, None]] = {}

    def answer(self, connection: Connection, text: str) -> None:
        frame, error = decode_request(text)
        now_ms = self._wall_ns() // MS_NS
        op = frame.get("op") if isinstance(frame.get("op"), str) else ""
        reply: Json = {"retCode": 0, "retMsg": "OK", "op": op}
        try:
            if error:
                raise RefusedError(10001, error)
            if op == "ping":
                reply |= {"op": "pong", "data": [str(now_ms)]}
            elif op == "auth":
                self._authenticate(connection, frame, now_ms)
            else:
                self.on_request(connection, self._request(connection, frame, now_ms), now_ms)
                return
        except RefusedError as refused:
            reply |= {"retCode": refused.code, "retMsg": refused.message}
            if op in OPERATIONS:
                reply |= {
                    "data": {},
                    "retExtInfo": {},
                    "header": {"Timenow": str(self._gateway.exchange.now_ms)},
                }
        self.put_delayed(connection, {**_req_id(frame), **reply, "connId": connection.conn_id})

    def put_delayed(self, connection: Connection, frame: Json) -> None:
        """Queue an answer when one could be there over a network at the earliest."""
        self._later(ANSWER_DELAY_S, lambda: connection.put_json(frame))

    def _execute(self, connection: Connection, request: TradeRequest, now_ms: int) -> None:
        self.put_delayed(connection, request.execute(now_ms))

    def on_disconnect(self, connection: Connection) -> None:
        self._req_ids.pop(connection, None)

    def _authenticate(self, connection: Connection, frame: Json, now_ms: int) -> None:
        if connection.client is not None:
            raise RefusedError(20001, "Repeat auth")
        clients = self._gateway.clients
        connection.client = authenticate_socket(frame.get("args"), now_ms, clients)

    def _request(self, connection: Connection, frame: Json, now_ms: int) -> TradeRequest:
        """The validated request of a frame; RefusedError says what is wrong with it."""
        if connection.client is None:
            raise RefusedError(10004, "Request not authorized")
        if not isinstance(frame.get("op"), str) or frame["op"] not in OPERATIONS:
            raise RefusedError(10404, "op type is not found")
        req_id = frame.get("reqId", "")
        if not isinstance(req_id, str) or len(req_id) > MAX_REQ_ID:
            raise invalid("reqId")
        header, args = frame.get("header"), frame.get("args")
        if not isinstance(header, dict):
            raise invalid("header")
        stamp = header.get("X-BAPI-TIMESTAMP")
        window = header.get("X-BAPI-RECV-WINDOW", RECV_WINDOW_MS)
        check_recv_window(str(stamp), str(window), now_ms)
        if not isinstance(args, list) or len(args) != 1 or not isinstance(args[0], dict):
            raise invalid("args")
        if req_id:
            req_ids = self._req_ids.setdefault(connection, {})
            if req_id in req_ids:
                raise RefusedError(20006, "reqId is duplicate")
            req_ids[req_id] = None
            if len(req_ids) > KEPT_REQ_IDS:
                del req_ids[next(iter(req_ids))]
        return TradeRequest(self._gateway, connection.client, frame, connection)


def _req_id(frame: Json) -> Json:
    """A request's id, if it has one."""
    return {"reqId": frame["reqId"]} if frame.get("reqId") else {}
