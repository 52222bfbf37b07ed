"""Whatever is sent to the sandbox, it answers as the venue does, goes on, and changes nothing by it.

What holds for every request, however it is made up:

- there is an answer, in the venue's envelope, and it is never that something went wrong in here;
- a request that is refused leaves positions, money, orders and settings as they were;
- one that is carried out leaves the books balanced;
- the connection goes on after it.

``L2_FUZZ_EXAMPLES`` makes a campaign of it: so many examples of each kind instead of some dozens.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection, connect

from proving.sandbox import entry
from proving.sandbox.exchange import Exchange
from proving.sandbox.rest import ROUTES
from proving.sandbox.server import Sandbox
from proving.sandbox.signing import signature
from tests.proving.sandbox_server import Served, ask, served
from tests.proving.test_sandbox_exchange import check_books

EXAMPLES: Final = int(os.environ.get("L2_FUZZ_EXAMPLES", "40"))
bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

#: Hypothesis sees that Python's own random numbers move on: the server's thread draws some.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module")

ENVELOPE: Final = {"retCode", "retMsg", "result", "retExtInfo", "time"}
STATUSES: Final = {200, 400, 401, 403, 404}

#: Fields of requests, and values of which some are good.
FIELDS: Final[dict[str, list[Any]]] = {
    "category": ["linear", "spot", "", None],
    "symbol": ["BTCUSDT", "NOPEUSDT", "btcusdt", ""],
    "side": ["Buy", "Sell", "buy"],
    "orderType": ["Limit", "Market", "Stop"],
    "qty": ["0.010", "0", "-1", "0.0001", "99999999", "1e3", "NaN", "Infinity", "9" * 60],
    "price": ["60000", "59000.05", "0", "-1", "1e400", "0." + "0" * 30 + "1", "9" * 40],
    "timeInForce": ["GTC", "IOC", "FOK", "PostOnly", "RPI"],
    "orderId": ["", "unknown", "x" * 5000],
    "orderLinkId": ["a", "x" * 37, "\u2603", "a b"],
    "positionIdx": [0, "0", 1, 2, -1, 1.5],
    "reduceOnly": [True, False, "true", 1],
    "closeOnTrigger": [True, False, None],
    "triggerPrice": ["70000", "50000", "0", "x"],
    "triggerDirection": [1, 2, "1", 3, True],
    "takeProfit": ["90000", "1", "0"],
    "stopLoss": ["1", "90000", "0"],
    "trailingStop": ["10", "0", "x"],
    "tpslMode": ["Full", "Partial", "Half"],
    "tpSize": ["0.001", "9", ""],
    "smpType": ["CancelMaker", "None"],
    "slippageToleranceType": ["TickSize", "Percent", "x"],
    "slippageTolerance": ["1", "0", "10001", "x"],
    "bboSideType": ["Queue", "x"],
    "bboLevel": ["1", "6", 1],
    "request": [[], [{}], [1], "x", [{"symbol": "BTCUSDT"}] * 21],
    "buyLeverage": ["10", "0", "151", "1.005", "x", 5],
    "sellLeverage": ["10", "11"],
    "mode": [0, 3, "x"],
    "setMarginMode": ["ISOLATED_MARGIN", "REGULAR_MARGIN", "PORTFOLIO_MARGIN"],
    "modifyEnable": [True, "x"],
    "settleCoin": ["USDT", "BTC", ""],
    "baseCoin": ["BTC", ""],
    "product": ["DERIVATIVES", "x"],
    "timeWindow": [10, 1, "x", 10**30],
    "limit": ["1", "0", "-1", "9" * 30, "x"],
    "cursor": ["0", "-1", "x", "9" * 30],
    "startTime": ["0", "1", "x", "9" * 30],
    "endTime": ["1", "x", "9" * 15],
    "interval": ["1", "M", "7", ""],
    "intervalTime": ["5min", "x"],
    "accountType": ["UNIFIED", "SPOT"],
    "execType": ["Trade", "x"],
}
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["9" * 400, "1e-400", "\x00", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
fields = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(FIELDS[name]) | anything)
)
#: Something like a request: the parts of an order, with a few of them replaced.
ORDER: Final = {
    "category": "linear",
    "symbol": "BTCUSDT",
    "side": "Buy",
    "orderType": "Limit",
    "qty": "0.010",
    "price": "60000",
}
requests = st.builds(
    lambda drop, more: {**{k: v for k, v in ORDER.items() if k not in drop}, **dict(more)},
    st.sets(st.sampled_from(sorted(ORDER)), max_size=2),
    st.lists(fields, max_size=5),
)
#: Names a hair's breadth from right, beside the right ones.
paths = st.sampled_from(sorted(ROUTES)) | st.sampled_from(["", "order", "order/create/", "../x"])


class Line:
    """One connection kept over all requests; it is asked at the end whether it still lives."""

    def __init__(self, venue: Served) -> None:
        self.venue = venue
        self.keys = venue.told["keys"][0]
        self.http = http.client.HTTPConnection(urlsplit(venue.told["rest"]).netloc, timeout=20)
        self.http.connect()
        self.socket = self.http.sock

    def send(
        self, method: str, path: str, payload: bytes, headers: dict[str, str]
    ) -> tuple[int, Any]:
        query = "?" + payload.decode() if method == "GET" and payload else ""
        body = payload if method == "POST" else None
        self.http.request(method, "/v5/" + quote(path) + query, body, headers)
        answer = self.http.getresponse()
        told = answer.status, json.loads(answer.read())
        assert self.http.sock is self.socket, "the connection was given up"
        return told

    def signed(self, payload: bytes, **wrong: str) -> dict[str, str]:
        now, key = str(time.time_ns() // 1_000_000), self.keys["key"]
        stamp = wrong.get("stamp", now)
        text = f"{stamp}{key}5000".encode() + payload
        return {
            "X-BAPI-API-KEY": wrong.get("key", key),
            "X-BAPI-TIMESTAMP": stamp,
            "X-BAPI-RECV-WINDOW": wrong.get("window", "5000"),
            "X-BAPI-SIGN": wrong.get("sign", signature(self.keys["secret"], text)),
        }


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(seed=19, clients=2, limited=False)) as running:
        yield running


@pytest.fixture(scope="module")
def line(venue: Served) -> Iterator[Line]:
    made = Line(venue)
    yield made
    made.http.close()


def state(exchange: Exchange) -> Any:
    """What a refused request must not change."""
    client = exchange.clients[0]
    terms = client.margin.terms["BTCUSDT"]
    orders = [*client.open.values(), *client.waiting.values()]
    return (
        [(o.order_id, o.ticks, o.lots, o.status, o.trigger, o.stops) for o in orders],
        (len(client.closed), len(client.executions), len(client.log), sorted(client.links)),
        (client.account.holdings["BTCUSDT"].position_lots, client.account.balance_e8),
        (terms, client.mode, client.moves_price, dict(client.windows)),
    )


def settle(exchange: Exchange) -> None:
    """The books balance; then the client has nothing open and holds nothing."""
    check_books(exchange)
    client = exchange.clients[0]
    body = {"category": "linear", "symbol": "BTCUSDT"}
    entry.cancel_all(exchange, client, body)
    while held := client.account.holdings["BTCUSDT"].position_lots:
        side = "Sell" if held > 0 else "Buy"
        close = {"qty": "0", "reduceOnly": True, "closeOnTrigger": True}
        entry.create(exchange, client, {**body, "side": side, "orderType": "Market", **close})


def judge(line: Line, send: Callable[[], tuple[int, Any]]) -> int:
    """Send something and hold the answer and what it did to the rules; the code it was answered with."""
    before = line.venue.now(state)
    status, answer = send()
    assert status in STATUSES
    assert set(answer) == ENVELOPE
    assert answer["retCode"] != 10016, "something went wrong in here"
    codes = [answer["retCode"], *(leg["code"] for leg in answer["retExtInfo"].get("list", []))]
    if all(codes):
        assert line.venue.now(state) == before
    else:
        line.venue.now(settle)
    return int(answer["retCode"])


@bounded
@given(path=paths, request=requests)
def test_requests_with_wrong_parts(line: Line, path: str, request: dict[str, Any]) -> None:
    route = ROUTES.get(path)
    if route is not None and route.method == "GET":
        pairs = [
            f"{quote(name)}={quote(str(value))}"
            for name, value in request.items()
            if "\ud800" not in str(value)
        ]
        payload = "&".join(pairs).encode()
        judge(line, lambda: line.send("GET", path, payload, line.signed(payload)))
        return
    payload = json.dumps(request).encode()
    judge(line, lambda: line.send("POST", path, payload, line.signed(payload)))


@bounded
@given(
    payload=st.binary(max_size=200)
    | anything.map(lambda value: json.dumps(value).encode())
    | st.integers(1, 20_000).map(lambda depth: b"[" * depth)
    | st.integers(1, 20_000).map(lambda depth: b'{"a":' * depth)
    | st.integers(0, 60).map(lambda cut: json.dumps(ORDER).encode()[:cut]),
    path=st.sampled_from(["order/create", "order/cancel", "order/create-batch", "order/amend"]),
)
def test_bodies_that_are_no_requests(line: Line, payload: bytes, path: str) -> None:
    code = judge(line, lambda: line.send("POST", path, payload, line.signed(payload)))
    assert code in (10001, 110001)


@bounded
@given(
    name=st.sampled_from(["stamp", "key", "sign", "window"]),
    value=st.sampled_from(["0", "-1", "9" * 30, "x", "1e3", "", "\xe9", "0x10", " 1"])
    | st.text(
        st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=80
    ),
)
def test_signatures_keys_and_clocks_that_are_wrong(line: Line, name: str, value: str) -> None:
    payload = json.dumps(ORDER).encode()
    headers = line.signed(payload, **{name: value.strip()})
    encoded = {key: text.encode("latin-1") for key, text in headers.items()}
    code = judge(line, lambda: line.send("POST", "order/create", payload, encoded))  # type: ignore[arg-type]
    assert code in (10001, 10002, 10003, 10004)


@pytest.fixture(scope="module")
def wires(venue: Served) -> Iterator[list[ClientConnection]]:
    with ExitStack() as stack:
        names = ("ws_public", "ws_private", "ws_trade")
        yield [stack.enter_context(connect(venue.told[name])) for name in names]


@bounded
@given(
    texts=st.lists(
        st.text(max_size=60)
        | st.fixed_dictionaries(
            {"op": st.sampled_from(["subscribe", "auth", "order.create", "ping"]) | anything},
            optional={"args": anything, "req_id": anything, "reqId": anything, "header": anything},
        ).map(json.dumps),
        min_size=1,
        max_size=6,
    )
)
def test_sockets_answer_whatever_is_said_on_them(
    venue: Served, wires: list[ClientConnection], texts: list[str]
) -> None:
    before = venue.now(state)
    for wire in wires:
        for text in texts:
            wire.send(text.encode("utf-8", "replace").decode())
        # An answer that only this ping has: nothing before it has ended the connection.
        wire.send('{"op":"ping","req_id":"still here","reqId":"still here"}')
        deadline = time.monotonic() + 10
        while "still here" not in str(wire.recv(timeout=10)):
            assert time.monotonic() < deadline
    assert venue.now(state) == before


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET",
        b"GET /v5/market/time HTTP/1.1\r\nHost: x\r\n",
        b"POST /v5/order/create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"POST /v5/order/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v5/public/linear HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 20_000,
        b"\x00" * 5000,
    ],
)
def test_half_open_sockets_hold_nobody_up(venue: Served, begun: bytes) -> None:
    address = urlsplit(venue.told["rest"])
    before = venue.now(state)
    with ExitStack() as stack:
        for _ in range(40):
            wire = stack.enter_context(
                socket.create_connection((address.hostname, address.port), timeout=10)
            )
            wire.sendall(begun)
        assert ask(venue, "/v5/account/info")[1]["retCode"] == 0
    assert ask(venue, "/v5/account/info")[1]["retCode"] == 0
    assert venue.now(state) == before


def test_a_slow_sender_is_answered_when_it_is_done(venue: Served) -> None:
    """One that says a byte at a time, while others are answered at once."""
    address = urlsplit(venue.told["rest"])
    with socket.create_connection((address.hostname, address.port), timeout=10) as wire:
        for byte in b"GET /v5/market/time HTTP/1.1\r\nHost: x\r\n\r\n":
            wire.sendall(bytes([byte]))
            time.sleep(0.005)
        assert ask(venue, "/v5/account/info")[1]["retCode"] == 0
        answer = b""
        while b'"timeSecond"' not in answer:
            answer += (piece := wire.recv(4096))
            assert piece, "the connection was closed"


def test_a_body_that_is_too_large_is_refused(venue: Served) -> None:
    address = urlsplit(venue.told["rest"])
    before = venue.now(state)
    connection = http.client.HTTPConnection(address.netloc, timeout=20)
    connection.request("POST", "/v5/order/create", b" " * (2 << 20))
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()
    assert venue.now(state) == before


def test_what_goes_wrong_in_here_is_told_and_answered(
    venue: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError("of our own making")

    for path in ("market/tickers", "account/info"):
        monkeypatch.setitem(ROUTES, path, ROUTES[path]._replace(run=broken))
        status, answer, _ = ask(venue, f"/v5/{path}?category=linear")
        assert (status, answer["retCode"], answer["result"]) == (200, 10016, {})
    assert caplog.text.count("ZeroDivisionError: of our own making") == 2
    assert ask(venue, "/v5/position/list?category=linear&symbol=BTCUSDT")[1]["retCode"] == 0


def test_a_flood_is_told_to_wait_and_nothing_is_lost() -> None:
    """Of ten orders a second the eleventh is refused, with when to come again; a batch goes in part."""
    with served(Sandbox(seed=19, clients=1)) as venue:
        leg = {name: value for name, value in ORDER.items() if name != "category"}
        leg["price"] = "55000"
        batch = json.dumps({"category": "linear", "request": [leg] * 12}).encode()
        status, answer, headers = ask(venue, "/v5/order/create-batch", batch)
        codes = [leg["code"] for leg in answer["retExtInfo"]["list"]]
        assert (status, codes) == (200, [0] * 10 + [10006] * 2)
        assert headers["X-Bapi-Limit-Status"] == "0"
        again = ask(venue, "/v5/order/create-batch", batch)
        assert again[1]["retCode"] == 10006
        assert int(again[2]["X-Bapi-Limit-Reset-Timestamp"]) > again[1]["time"]
        assert len(venue.now(lambda exchange: list(exchange.clients[0].open))) == 10
        line, query = Line(venue), b"category=linear&symbol=BTCUSDT"
        before = [line.send("GET", "market/price-limit", query, {}) for _ in range(700)]
        assert {status for status, _ in before[:590]} == {200}
        beyond = [answer["retCode"] for status, answer in before if status == 403]
        assert set(beyond) <= {10018}
        # Where the machine is too slow for a flood there is none.
        assert beyond or before[-1][1]["time"] - before[0][1]["time"] > 5000
        line.http.close()
