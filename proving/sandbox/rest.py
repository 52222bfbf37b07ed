"""REST: routes, signatures, rate limits and the envelope around every answer.

Each answer is `{"retCode", "retMsg", "result", "retExtInfo", "time"}` with HTTP status 200, refusals
of business included; ``time`` and receive windows follow the wall clock. A batch counts as many
requests as it has; of one that does not fit as a whole, the first go through and the rest are refused
one by one.

All requests together, public ones included, are 600 in five seconds at most; what is beyond is answered
with HTTP 403 until there is room again (the venue shuts an address out for ten minutes).

What goes wrong in here by our own fault is answered with 10016 and told in the log with its traceback.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from proving.sandbox import desk, entry, private, quotes
from proving.sandbox.exchange import Exchange
from proving.sandbox.refusal import RefusedError
from proving.sandbox.signing import client_of
from proving.sandbox.trading import Client

Result = dict[str, Any]

LIMIT_WINDOW_MS: Final = 1000
#: Requests of one address, here all, within a time.
ADDRESS_LIMIT: Final = 600
ADDRESS_WINDOW_MS: Final = 5000
#: Requests a second of a client and route when limits are off.
UNLIMITED: Final = 1_000_000


class Route(NamedTuple):
    """``run`` takes the exchange, the client (private routes) and the query or body."""

    method: str
    run: Callable[..., Any]
    private: bool
    limit: int = 0  #: requests a second and client
    batch: bool = False


def _market(run: Callable[..., Any]) -> Route:
    return Route("GET", run, False)


def _single(run: Callable[..., Any], limit: int = 10) -> Route:
    return Route("POST", run, True, limit)


def _batch(run: Callable[..., Any]) -> Route:
    return Route("POST", partial(entry.batch, run), True, 10, True)


def _own(run: Callable[..., Any], limit: int = 50) -> Route:
    return Route("GET", run, True, limit)


ROUTES: Final[dict[str, Route]] = {
    "market/instruments-info": _market(quotes.instruments),
    "market/orderbook": _market(quotes.orderbook),
    "market/tickers": _market(quotes.tickers),
    "market/recent-trade": _market(quotes.recent_trades),
    "market/kline": _market(quotes.candles),
    "market/mark-price-kline": _market(partial(quotes.candles, kind="mark-price-kline")),
    "market/index-price-kline": _market(partial(quotes.candles, kind="index-price-kline")),
    "market/premium-index-price-kline": _market(
        partial(quotes.candles, kind="premium-index-price-kline")
    ),
    "market/funding/history": _market(quotes.funding_history),
    "market/open-interest": _market(quotes.open_interest),
    "market/risk-limit": _market(quotes.risk_limits),
    "market/price-limit": _market(quotes.price_limit),
    "system/status": _market(quotes.status),
    "order/create": _single(entry.create),
    "order/amend": _single(entry.amend),
    "order/cancel": _single(entry.cancel),
    "order/cancel-all": _single(entry.cancel_all),
    "order/disconnected-cancel-all": _single(private.set_window, 5),
    "order/create-batch": _batch(entry.create),
    "order/amend-batch": _batch(entry.amend),
    "order/cancel-batch": _batch(entry.cancel),
    "order/pre-check": _single(entry.check),
    "order/realtime": _own(desk.open_orders),
    "order/history": _own(desk.order_history),
    "execution/list": _own(desk.executions),
    "position/list": _own(desk.positions),
    "position/closed-pnl": _own(desk.closed_pnl),
    "position/set-leverage": _single(desk.set_leverage),
    "position/switch-mode": _single(desk.switch_mode),
    "position/trading-stop": _single(desk.set_trading_stop),
    "position/symbol-info": _own(desk.leverages),
    "account/wallet-balance": _own(desk.wallet),
    "account/fee-rate": _own(desk.fee_rate, 5),
    "account/info": _own(desk.account_info),
    "account/query-dcp-info": _own(private.windows, 5),
    "account/transaction-log": _own(desk.transaction_log, 25),
    "account/set-margin-mode": _single(desk.set_margin_mode, 5),
    "account/set-limit-px-action": _single(desk.set_price_action),
    "user/query-api": _own(desk.query_api, 10),
    "asset/coin/query-info": _own(desk.coins, 5),
}


class Limits:
    """Requests of each client and route within the last second."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], deque[int]] = {}
        self._all: deque[int] = deque()

    def arrive(self, now_ms: int) -> None:
        """Any request; refused when its address has sent too many."""
        while self._all and self._all[0] <= now_ms - ADDRESS_WINDOW_MS:
            self._all.popleft()
        if len(self._all) >= ADDRESS_LIMIT:
            raise RefusedError(10018, "Exceeded the IP Rate Limit.", 403)
        self._all.append(now_ms)

    def take(
        self, client: Client, path: str, limit: int, cost: int, now_ms: int
    ) -> tuple[dict[str, str], int]:
        """Headers after the requests, and how many of them fit; refused when none does."""
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
            raise LimitedError(headers)
        return headers, granted


class LimitedError(RefusedError):
    """Too many requests; the headers say when there is room again."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__(10006, entry.TOO_MANY)
        self.headers = headers


class Done(NamedTuple):
    """What has become of a request; ``headers`` tell of its rate limit."""

    result: Result
    beside: Mapping[str, Any] = MappingProxyType({})
    headers: Mapping[str, str] = MappingProxyType({})
    code: int = 0
    message: str = "OK"
    status: int = 200


class Rest:
    """``current`` brings the exchange to the present before a request is carried out; ``wall_ns`` is
    the venue's wall clock."""

    def __init__(
        self,
        exchange: Exchange,
        current: Callable[[], None],
        limited: bool,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.exchange, self._current = exchange, current
        self._clients = {client.key: client for client in exchange.clients}
        self._log = logging.getLogger(__name__)
        self._limits, self._limited, self._wall_ns = Limits(), limited, wall_ns

    async def answer(self, request: web.Request) -> web.Response:
        """One request, whatever it is."""
        now_ns = self._wall_ns()
        now_ms = now_ns // 1_000_000
        try:
            body = await request.read()
            if self._limited:
                self._limits.arrive(now_ms)
            raw = request.raw_path.partition("?")[2]
            path = request.path.removeprefix("/v5/")
            if path == "market/time":
                done = Done({"timeSecond": str(now_ns // 10**9), "timeNano": str(now_ns)})
            else:
                done = self._run(request, path, raw, body, now_ms)
        except RefusedError as refused:
            done = _refused(refused, {})
        except web.HTTPException:
            raise
        except Exception:  # whatever it is, a client is answered and the venue goes on
            done = self._failed(request.path, {})
        envelope = {
            "retCode": done.code,
            "retMsg": done.message,
            "result": done.result,
            "retExtInfo": dict(done.beside),
            "time": now_ms,
        }
        return web.Response(
            body=msgspec.json.encode(envelope),
            status=done.status,
            headers=done.headers,
            content_type="application/json",
        )

    def _run(self, request: web.Request, path: str, raw: str, body: bytes, now_ms: int) -> Done:
        route = ROUTES.get(path)
        if route is None or not request.path.startswith("/v5/"):
            raise RefusedError(10017, "Route not found.", 404)
        if request.method != route.method:
            raise RefusedError(10017, "Request method is not supported.", 400)
        asked: Any = dict(parse_qsl(raw, keep_blank_values=True))
        if not route.private:
            self._current()
            return Done(route.run(self.exchange, asked))
        payload = raw.encode("utf-8", "surrogateescape") if route.method == "GET" else body
        client = client_of(request.headers, payload, now_ms, self._clients)
        if route.method == "POST":
            asked = _decoded(body)
        return self.carry_out(client, path, asked, now_ms)

    def carry_out(self, client: Client, path: str, asked: Any, now_ms: int) -> Done:
        """A client's request on a private route, however it has come: counted, then done."""
        route = ROUTES[path]
        headers: dict[str, str] = {}
        legs = asked.get("request") if route.batch else None
        cost = len(legs) if isinstance(legs, list) and legs else 1
        limit = route.limit if self._limited else UNLIMITED
        try:
            headers, granted = self._limits.take(client, path, limit, cost, now_ms)
            self._current()
            run = partial(route.run, granted=granted) if route.batch else route.run
            done = run(self.exchange, client, asked)
        except LimitedError as limited:
            return _refused(limited, limited.headers)
        except RefusedError as refused:
            return _refused(refused, headers)
        except Exception:
            return self._failed(path, headers)
        result, beside = done if route.batch else (done, {})
        return Done(result, beside, headers)

    def _failed(self, path: str, headers: dict[str, str]) -> Done:
        """Our own fault, as the venue tells of its own: the outcome is not known to the client."""
        self._log.exception("request %s failed", path)
        return _refused(RefusedError(10016, "Internal server error."), headers)


def _refused(refused: RefusedError, headers: dict[str, str]) -> Done:
    return Done(refused.result, {}, headers, refused.code, refused.message, refused.status)


def _decoded(body: bytes) -> Result:
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise RefusedError(10001, "Request parameter error.")
    return decoded
