"""Fuzzing: malformed requests are answered in the venue's envelope and change nothing.

For every request:

- there is an answer in the venue's envelope, and it is never 10016 (a defect of ours);
- a refused request leaves positions, money, orders and settings unchanged;
- an executed one leaves the books balanced;
- the connection stays open.

``L2_FUZZ_EXAMPLES`` sets the number of examples per test.
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

from proving.sandbox import order_entry
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.gateway import ROUTES
from proving.sandbox.protocol import signature
from proving.sandbox.server import Sandbox
from tests.proving.sandbox_server import Served, ask, served
from tests.proving.test_sandbox_exchange import check_books

EXAMPLES: Final = int(os.environ.get("L2_FUZZ_EXAMPLES", "40"))
bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

#: The server's thread draws from Python's global random numbers, which Hypothesis warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module")

ENVELOPE: Final = {"retCode", "retMsg", "result", "retExtInfo", "time"}
STATUSES: Final = {200, 400, 401, 403, 404}

#: Request fields with valid and invalid values.
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
#: A valid order, of which fields are dropped and replaced.
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
#: Valid routes, and near misses.
paths = st.sampled_from(sorted(ROUTES)) | st.sampled_from(["", "order", "order/create/", "../x"])


class Line:
    """One HTTP connection kept over all requests."""

    def __init__(self, venue: Served) -> None:
        self.venue = venue
        self.keys = venue.description["keys"][0]
        self.http = http.client.HTTPConnection(
            urlsplit(venue.description["rest"]).netloc, timeout=20
        )
        self.http.connect()
        self.socket = self.http.sock

    def send(
        self, method: str, path: str, payload: bytes, headers: dict[str, str]
    ) -> tuple[int, Any]:
        query = "?" + payload.decode() if method == "GET" and payload else ""
        body = payload if method == "POST" else None
        self.http.request(method, "/v5/" + quote(path) + query, body, headers)
        answer = self.http.getresponse()
        result = answer.status, json.loads(answer.read())
        assert self.http.sock is self.socket, "the connection was closed"
        return result

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
    connection = Line(venue)
    yield connection
    connection.http.close()


def state(exchange: SandboxExchange) -> Any:
    """The state that a refused request must not change."""
    client = exchange.clients[0]
    terms = client.margin.terms["BTCUSDT"]
    orders = [*client.open.values(), *client.untriggered.values()]
    return (
        [(o.order_id, o.ticks, o.lots, o.status, o.trigger, o.stops) for o in orders],
        (
            len(client.closed),
            len(client.executions),
            len(client.transactions),
            sorted(client.by_link_id),
        ),
        (client.position_lots("BTCUSDT"), client.account.balance_e8),
        (terms, client.mode, client.clamps_price, dict(client.dcp_windows_s)),
    )


def check_and_flatten(exchange: SandboxExchange) -> None:
    """Check the books, then cancel the client's orders and close its position."""
    check_books(exchange)
    client = exchange.clients[0]
    body = {"category": "linear", "symbol": "BTCUSDT"}
    order_entry.cancel_all(exchange, client, body)
    while position := client.position_lots("BTCUSDT"):
        side = "Sell" if position > 0 else "Buy"
        close = {"qty": "0", "reduceOnly": True, "closeOnTrigger": True}
        order_entry.create(exchange, client, {**body, "side": side, "orderType": "Market", **close})


def check_answer(line: Line, send: Callable[[], tuple[int, Any]]) -> int:
    """Send a request and assert the rules above; its code."""
    before = line.venue.run(state)
    status, answer = send()
    assert status in STATUSES
    assert set(answer) == ENVELOPE
    assert answer["retCode"] != 10016, "a defect"
    codes = [answer["retCode"], *(leg["code"] for leg in answer["retExtInfo"].get("list", []))]
    if all(codes):
        assert line.venue.run(state) == before
    else:
        line.venue.run(check_and_flatten)
    return int(answer["retCode"])


@bounded
@given(path=paths, request=requests)
def test_requests_with_invalid_fields(line: Line, path: str, request: dict[str, Any]) -> None:
    route = ROUTES.get(path)
    if route is not None and route.method == "GET":
        pairs = [
            f"{quote(name)}={quote(str(value))}"
            for name, value in request.items()
            if "\ud800" not in str(value)
        ]
        payload = "&".join(pairs).encode()
        check_answer(line, lambda: line.send("GET", path, payload, line.signed(payload)))
        return
    payload = json.dumps(request).encode()
    check_answer(line, lambda: line.send("POST", path, payload, line.signed(payload)))


@bounded
@given(
    payload=st.binary(max_size=200)
    | anything.map(lambda value: json.dumps(value).encode())
    | st.integers(1, 20_000).map(lambda depth: b"[" * depth)
    | st.integers(1, 20_000).map(lambda depth: b'{"a":' * depth)
    | st.integers(0, 60).map(lambda cut: json.dumps(ORDER).encode()[:cut]),
    path=st.sampled_from(["order/create", "order/cancel", "order/create-batch", "order/amend"]),
)
def test_malformed_bodies(line: Line, payload: bytes, path: str) -> None:
    code = check_answer(line, lambda: line.send("POST", path, payload, line.signed(payload)))
    assert code in (10001, 110001)


@bounded
@given(
    name=st.sampled_from(["stamp", "key", "sign", "window"]),
    value=st.sampled_from(["0", "-1", "9" * 30, "x", "1e3", "", "\xe9", "0x10", " 1"])
    | st.text(
        st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=80
    ),
)
def test_invalid_signatures_keys_and_timestamps(line: Line, name: str, value: str) -> None:
    payload = json.dumps(ORDER).encode()
    headers = line.signed(payload, **{name: value.strip()})
    encoded = {key: text.encode("latin-1") for key, text in headers.items()}
    code = check_answer(line, lambda: line.send("POST", "order/create", payload, encoded))  # type: ignore[arg-type]
    assert code in (10001, 10002, 10003, 10004)


@pytest.fixture(scope="module")
def wires(venue: Served) -> Iterator[list[ClientConnection]]:
    with ExitStack() as stack:
        names = ("ws_public", "ws_private", "ws_trade")
        yield [stack.enter_context(connect(venue.description[name])) for name in names]


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
def test_sockets_survive_malformed_frames(
    venue: Served, wires: list[ClientConnection], texts: list[str]
) -> None:
    before = venue.run(state)
    for wire in wires:
        for text in texts:
            wire.send(text.encode("utf-8", "replace").decode())
        # The answer to this ping shows that no frame before it ended the connection.
        wire.send('{"op":"ping","req_id":"still here","reqId":"still here"}')
        deadline = time.monotonic() + 60
        while "still here" not in str(wire.recv(timeout=60)):
            assert time.monotonic() < deadline
    assert venue.run(state) == before


@pytest.mark.parametrize(
    "prefix",
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
def test_half_open_sockets_do_not_block_others(venue: Served, prefix: bytes) -> None:
    address = urlsplit(venue.description["rest"])
    before = venue.run(state)
    with ExitStack() as stack:
        for _ in range(40):
            wire = stack.enter_context(
                socket.create_connection((address.hostname, address.port), timeout=10)
            )
            wire.sendall(prefix)
        assert ask(venue, "/v5/account/info")[1]["retCode"] == 0
    assert ask(venue, "/v5/account/info")[1]["retCode"] == 0
    assert venue.run(state) == before


def test_a_slow_sender_is_answered_and_blocks_nobody(venue: Served) -> None:
    """A request sent byte by byte."""
    address = urlsplit(venue.description["rest"])
    with socket.create_connection((address.hostname, address.port), timeout=10) as wire:
        for byte in b"GET /v5/market/time HTTP/1.1\r\nHost: x\r\n\r\n":
            wire.sendall(bytes([byte]))
            time.sleep(0.005)
        assert ask(venue, "/v5/account/info")[1]["retCode"] == 0
        answer = b""
        while b'"timeSecond"' not in answer:
            answer += (piece := wire.recv(4096))
            assert piece, "the connection was closed"


def test_a_body_over_the_size_limit_is_refused(venue: Served) -> None:
    address = urlsplit(venue.description["rest"])
    before = venue.run(state)
    connection = http.client.HTTPConnection(address.netloc, timeout=20)
    connection.request("POST", "/v5/order/create", b" " * (2 << 20))
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()
    assert venue.run(state) == before


def test_a_defect_is_logged_and_answered_with_10016(
    venue: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> Any:
        raise ZeroDivisionError("a defect")

    for path in ("market/tickers", "account/info"):
        monkeypatch.setitem(ROUTES, path, ROUTES[path]._replace(run=fail))
        status, answer, _ = ask(venue, f"/v5/{path}?category=linear")
        assert (status, answer["retCode"], answer["result"]) == (200, 10016, {})
    assert caplog.text.count("ZeroDivisionError: a defect") == 2
    assert ask(venue, "/v5/position/list?category=linear&symbol=BTCUSDT")[1]["retCode"] == 0


def test_rate_limits_refuse_single_requests_and_split_batches() -> None:
    """Ten orders per second: an eleventh is refused with a reset time, and a batch is executed in part."""
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
        assert len(venue.run(lambda exchange: list(exchange.clients[0].open))) == 10
        line, query = Line(venue), b"category=linear&symbol=BTCUSDT"
        before = [line.send("GET", "market/price-limit", query, {}) for _ in range(700)]
        assert {status for status, _ in before[:590]} == {200}
        beyond = [answer["retCode"] for status, answer in before if status == 403]
        assert set(beyond) <= {10018}
        # A slow machine may not reach the limit.
        assert beyond or before[-1][1]["time"] - before[0][1]["time"] > 5000
        line.http.close()
