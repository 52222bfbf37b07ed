"""The sandbox's faults: each is seen by real clients as it is named, logged, and nothing else changes."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any

import ccxt
import pybit.exceptions
import pybit.unified_trading
import pytest
from aiohttp import web
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from proving.sandbox.connection import Connection
from proving.sandbox.exchange import Exchange
from proving.sandbox.faults import KINDS, Fault, Faults, Happened, rates_of, read_log, schedule
from proving.sandbox.server import Sandbox
from proving.sandbox.signing import signature
from proving.sandbox.stream import PublicStream
from proving.synthetic.profiles import profile
from tests.proving.sandbox_server import Served, served

BOOK = "orderbook.50.BTCUSDT"
TRADES = "publicTrade.BTCUSDT"
TICKERS = "tickers.BTCUSDT"
SECOND = 1_000_000_000
SPEED = 4.0


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with served(Sandbox(seed=13, speed=SPEED, limited=False)) as venue:
        yield venue


@pytest.fixture
def venue(running: Served) -> Iterator[Served]:
    yield running
    control(running, "DELETE")


def control(venue: Served, method: str = "GET", **fault: Any) -> dict[str, Any]:
    """What the control endpoint answers."""
    url = venue.told["rest"] + "/control/faults"
    body = json.dumps(fault).encode() if fault else None
    request = urllib.request.Request(url, body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            said: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            said = json.load(error)
    return said


def last(venue: Served) -> dict[str, Any]:
    """The newest line of the log."""
    line: dict[str, Any] = control(venue)["log"][-1]
    return line


def post(
    venue: Served, route: str, body: dict[str, Any], *, stamp: int = 0, timeout: float = 10.0
) -> tuple[int, dict[str, Any]]:
    """HTTP status and answer of a signed request, however the connection ends."""
    keys, payload = venue.told["keys"][0], json.dumps(body)
    at = str(stamp or time.time_ns() // 1_000_000)
    headers = {
        "X-BAPI-API-KEY": keys["key"],
        "X-BAPI-TIMESTAMP": at,
        "X-BAPI-SIGN": signature(keys["secret"], f"{at}{keys['key']}5000{payload}".encode()),
        "X-BAPI-RECV-WINDOW": "5000",
    }
    connection = http.client.HTTPConnection(venue.sandbox.address, timeout=timeout)
    try:
        connection.request("POST", f"/v5/{route}", payload, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def resting(venue: Served, link: str) -> dict[str, Any]:
    """A purchase far from the market, that a client knows again by its link id."""
    price = venue.now(lambda exchange: exchange.tapes["BTCUSDT"].band()[0])
    return {
        "category": "linear",
        "symbol": "BTCUSDT",
        "side": "Buy",
        "orderType": "Limit",
        "qty": "0.001",
        "price": f"{price / 10:.1f}",
        "orderLinkId": link,
    }


def placed(venue: Served, link: str) -> bool:
    """Whether an order has come to the exchange."""
    found = venue.now(lambda exchange: link in exchange.clients[0].links)
    return bool(found)


def newest(venue: Served) -> str:
    """The name of the connection that was opened last."""
    name: str = venue.now(lambda _: list(venue.sandbox.stream.connections)[-1].name)
    return name


class Wire:
    """A connection to the public stream by hand."""

    def __init__(self, socket: ClientConnection, *topics: str) -> None:
        self.socket = socket
        socket.send(json.dumps({"op": "subscribe", "args": topics}))
        while "topic" not in self.next():
            pass

    def next(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(self.socket.recv(timeout=10))
        return frame

    def frames(self, count: int) -> list[dict[str, Any]]:
        """Frames of topics, as they come."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            frame = self.next()
            found += [frame] if "topic" in frame else []
        return found

    def updates(self, count: int) -> list[int]:
        """Update ids of the next frames of the book."""
        found: list[int] = []
        while len(found) < count:
            frame = self.next()
            found += [frame["data"]["u"]] if frame.get("topic") == BOOK else []
        return found


def steps(updates: list[int]) -> list[int]:
    return [after - before for before, after in pairwise(updates)]


# -- requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "seen", "carried_out"),
    [
        ("answer_lost", TimeoutError, True),
        ("answer_late", (200, 0), True),
        ("cut_before", OSError, False),
        ("cut_after", OSError, True),
        ("timed_out", (200, 10000), True),
        ("rate_limited", (200, 10006), False),
        ("maintenance", (200, 10016), False),
        ("overloaded", (429, 429), False),
        ("banned", (403, 10010), False),
    ],
)
def test_a_request_meets_its_fault_once_and_the_order_is_there_or_not(
    venue: Served, kind: str, seen: Any, carried_out: bool
) -> None:
    key, link = venue.told["keys"][0]["key"], f"fault-{kind}"
    control(venue, "POST", kind=kind, to=key, what="order/create")
    if isinstance(seen, tuple):
        status, answer = post(venue, "order/create", resting(venue, link))
        assert (status, answer["retCode"]) == seen
        assert set(answer) == {"retCode", "retMsg", "result", "retExtInfo", "time"}
    else:
        with pytest.raises((seen, http.client.HTTPException)):
            post(venue, "order/create", resting(venue, link), timeout=0.5)
    assert placed(venue, link) == carried_out
    line = last(venue)
    assert (line["kind"], line["to"], line["what"]) == (kind, key, "order/create")
    assert control(venue)["waiting"] == []
    assert post(venue, "order/create", resting(venue, f"{link}-2"))[1]["retCode"] == 0


def test_a_late_answer_comes_when_it_was_to(venue: Served) -> None:
    control(venue, "POST", kind="answer_late", what="order/create", ms=3000)
    before = venue.now(lambda exchange: exchange.now_ns)
    assert post(venue, "order/create", resting(venue, "late"))[1]["retCode"] == 0
    assert venue.now(lambda exchange: exchange.now_ns) >= before + 3 * SECOND


def test_other_clients_and_routes_go_on_as_ever(venue: Served) -> None:
    control(venue, "POST", kind="maintenance", to=venue.told["keys"][1]["key"])
    control(venue, "POST", kind="maintenance", what="order/amend")
    assert post(venue, "order/create", resting(venue, "as-ever"))[1]["retCode"] == 0
    assert len(control(venue)["waiting"]) == 2


def ccxt_client(venue: Served, timeout_ms: int = 10_000) -> ccxt.bybit:
    keys = venue.told["keys"][0]
    client = ccxt.bybit(
        {
            "apiKey": keys["key"],
            "secret": keys["secret"],
            "timeout": timeout_ms,
            "enableRateLimit": False,
            "options": {"defaultType": "swap", "fetchMarkets": {"types": ["linear"]}},
        }
    )
    for name in ("spot", "futures", "v2", "public", "private"):
        client.urls["api"][name] = venue.told["rest"]
    return client


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("answer_lost", ccxt.RequestTimeout),
        ("cut_after", ccxt.NetworkError),
        ("rate_limited", ccxt.RateLimitExceeded),
        ("maintenance", ccxt.ExchangeError),
        ("timed_out", ccxt.ExchangeError),
        ("overloaded", ccxt.ExchangeError),
    ],
)
def test_ccxt_names_the_fault(venue: Served, kind: str, raised: type[Exception]) -> None:
    client = ccxt_client(venue, 1000)
    control(venue, "POST", kind=kind, what="account/wallet-balance")
    with pytest.raises(raised):
        client.fetch_balance()
    assert client.fetch_balance()["USDT"]["total"] > 0
    assert last(venue)["what"] == "account/wallet-balance"


def test_pybit_waits_out_a_limit_and_names_what_it_does_not_know(venue: Served) -> None:
    keys = venue.told["keys"][0]
    client = pybit.unified_trading.HTTP(api_key=keys["key"], api_secret=keys["secret"])
    client.endpoint = venue.told["rest"]
    control(venue, "POST", kind="rate_limited", what="account/wallet-balance")
    assert client.get_wallet_balance(accountType="UNIFIED")["retCode"] == 0
    assert last(venue)["kind"] == "rate_limited"
    control(venue, "POST", kind="maintenance", what="account/wallet-balance")
    with pytest.raises(pybit.exceptions.InvalidRequestError, match="10016"):
        client.get_wallet_balance(accountType="UNIFIED")
    control(venue, "POST", kind="banned", what="account/wallet-balance")
    with pytest.raises(pybit.exceptions.FailedRequestError):
        client.get_wallet_balance(accountType="UNIFIED")


def test_order_entry_over_websocket_meets_the_same_faults(venue: Served) -> None:
    keys, seen = venue.told["keys"][0], {}
    kinds = {
        "answer_lost": True,
        "answer_late": True,
        "timed_out": True,
        "rate_limited": False,
        "maintenance": False,
        "cut_before": False,
        "cut_after": True,
    }
    for kind in kinds:
        control(venue, "POST", kind=kind, to=keys["key"], what="order/create", ms=300)
        with connect(venue.told["ws_trade"]) as socket:
            expires = time.time_ns() // 1_000_000 + 10_000
            sign = signature(keys["secret"], f"GET/realtime{expires}".encode())
            socket.send(json.dumps({"op": "auth", "args": [keys["key"], expires, sign]}))
            assert json.loads(socket.recv(timeout=10))["retCode"] == 0
            header = {"X-BAPI-TIMESTAMP": str(time.time_ns() // 1_000_000)}
            args = [resting(venue, f"trade-{kind}")]
            ask = {"reqId": kind, "header": header, "op": "order.create", "args": args}
            socket.send(json.dumps(ask))
            replies = []
            try:
                while not any(reply.get("reqId") for reply in replies):
                    replies.append(json.loads(socket.recv(timeout=1)))
            except (TimeoutError, ConnectionClosed) as ended:
                seen[kind] = type(ended).__name__
            else:
                seen[kind] = replies[-1]["retCode"]
        assert placed(venue, f"trade-{kind}") == kinds[kind]
    assert seen == {
        "answer_lost": "TimeoutError",
        "answer_late": 0,
        "timed_out": 10000,
        "rate_limited": 10006,
        "maintenance": 10016,
        "cut_before": "ConnectionClosedError",
        "cut_after": "ConnectionClosedError",
    }


# -- frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "times", "found"),
    [("drop", 3, [4]), ("duplicate", 1, [0]), ("swap", 1, [-1, 2, 2])],
)
def test_a_book_shows_the_fault_in_its_update_ids(
    venue: Served, kind: str, times: int, found: list[int]
) -> None:
    with connect(venue.told["ws_public"]) as socket:
        wire = Wire(socket, BOOK)
        updates = wire.updates(2)
        control(venue, "POST", kind=kind, what=BOOK, times=times)
        updates += wire.updates(1)
        while set(steps(updates)) == {1} and len(updates) < 5000:  # what was sent before it
            updates += wire.updates(1)
        seen = steps(updates + wire.updates(10))
    assert sorted(step for step in seen if step != 1) == found
    line = last(venue)
    assert (line["kind"], line["what"]) == (kind, BOOK)
    assert line["to"].startswith("public/")


def test_a_delayed_topic_keeps_its_order_while_the_others_pass(venue: Served) -> None:
    with connect(venue.told["ws_public"]) as socket:
        wire = Wire(socket, BOOK, "orderbook.1.BTCUSDT")
        frames, behind = wire.frames(1), 0
        control(venue, "POST", kind="delay", what=BOOK, ms=1000)
        while behind < 500 and len(frames) < 5000:
            frames += wire.frames(1)
            behind = max(frame["cts"] for frame in frames) - frames[-1]["cts"]
        frames += wire.frames(50)
    books = [frame for frame in frames if frame["topic"] == BOOK and frame["type"] == "delta"]
    assert set(steps([frame["data"]["u"] for frame in books])) == {1}
    assert 700 <= behind <= 1300  # what is held is held from the last time that the world stopped


def test_a_frame_is_overtaken_by_another_topic_only(venue: Served) -> None:
    with connect(venue.told["ws_public"]) as socket:
        wire = Wire(socket, BOOK, "orderbook.1.BTCUSDT")
        wire.frames(5)
        control(venue, "POST", kind="overtake", what=BOOK)
        frames = wire.frames(200)
    books = [frame["data"]["u"] for frame in frames if frame["topic"] == BOOK]
    assert set(steps(books)) == {1}
    assert last(venue)["kind"] == "overtake"


def test_a_silent_connection_says_all_of_it_afterwards(venue: Served) -> None:
    with connect(venue.told["ws_public"]) as socket, connect(venue.told["ws_public"]) as other:
        loud, quiet = Wire(socket, BOOK), Wire(other, BOOK)
        name = newest(venue)
        control(venue, "POST", kind="silence", to=name, ms=4000)
        before = quiet.updates(1)[0]
        while (now := loud.updates(1)[0]) < before + 150:
            pass
        assert quiet.updates(1)[0] < now - 100
        assert set(steps(quiet.updates(100))) == {1}
    assert last(venue)["to"] == name


def test_a_client_is_told_twice_of_one_execution(venue: Served) -> None:
    keys = venue.told["keys"][0]
    control(venue, "POST", kind="duplicate", to=keys["key"], what="execution")
    with connect(venue.told["ws_private"]) as socket:
        expires = time.time_ns() // 1_000_000 + 10_000
        sign = signature(keys["secret"], f"GET/realtime{expires}".encode())
        socket.send(json.dumps({"op": "auth", "args": [keys["key"], expires, sign]}))
        socket.send(json.dumps({"op": "subscribe", "args": ["execution"]}))
        while json.loads(socket.recv(timeout=10))["op"] != "subscribe":
            pass
        body = {**resting(venue, ""), "orderType": "Market"}
        assert post(venue, "order/create", body)[1]["retCode"] == 0
        first, second = (socket.recv(timeout=10) for _ in range(2))
    assert first == second
    assert json.loads(first)["topic"] == "execution"
    assert (last(venue)["kind"], last(venue)["to"]) == ("duplicate", keys["key"])


@pytest.mark.parametrize(("kind", "code"), [("close", 1001), ("abort", None)])
def test_a_connection_ends_and_the_next_begins_anew(
    venue: Served, kind: str, code: int | None
) -> None:
    with connect(venue.told["ws_public"]) as socket:
        wire = Wire(socket, BOOK)
        control(venue, "POST", kind=kind, to=newest(venue))
        with pytest.raises(ConnectionClosed) as ended:
            wire.updates(10_000)
    assert (ended.value.rcvd.code if ended.value.rcvd else None) == code
    with connect(venue.told["ws_public"]) as socket:
        assert set(steps(Wire(socket, BOOK).updates(10))) == {1}


def test_after_a_restart_books_count_from_one_and_are_the_same(venue: Served) -> None:
    with connect(venue.told["ws_public"]) as socket:
        wire = Wire(socket, BOOK)
        control(venue, "POST", kind="restart")
        while (frame := wire.next())["data"]["u"] != 1:
            pass
        assert frame["type"] == "snapshot"
        updates = wire.updates(20)
        assert updates == list(range(2, 22))
        assert wire.updates(1)[0] == updates[-1] + 1
    url = venue.told["rest"] + "/v5/market/orderbook?category=linear&symbol=BTCUSDT"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert json.load(answer)["result"]["u"] < 10_000


def test_a_wrong_clock_refuses_those_who_go_by_the_right_one(venue: Served) -> None:
    control(venue, "POST", kind="clock", ms=60_000)
    code = post(venue, "order/create", resting(venue, "clock"))[1]["retCode"]
    assert code == 10002
    client = ccxt_client(venue)
    assert 55_000 < -client.load_time_difference() < 65_000
    client.options["adjustForTimeDifference"] = True
    assert client.fetch_balance()["USDT"]["total"] > 0
    control(venue, "DELETE")
    assert post(venue, "order/create", resting(venue, "clock"))[1]["retCode"] == 0


def test_the_control_endpoint_says_what_it_cannot_use(venue: Served) -> None:
    assert "kinds are answer_lost" in control(venue, "POST", kind="flood")["error"]
    assert "times" in control(venue, "POST", kind="drop", times=0)["error"]
    assert "ms" in control(venue, "POST", kind="delay", ms=-1)["error"]
    assert "where" in control(venue, "POST", kind="drop", where="here")["error"]
    assert "PUT" in control(venue, "PUT", kind="drop")["error"]
    assert control(venue)["waiting"] == []
    assert set(control(venue)["kinds"]) == set(KINDS)


# -- by seed -----------------------------------------------------------------------------------------


def test_a_schedule_is_a_function_of_its_seed_and_kinds_do_not_disturb_each_other() -> None:
    few, more = rates_of("drop=6,abort=2"), rates_of("all=2,drop=6")
    first = list(islice(schedule(3, few, 0), 400))
    assert first == list(islice(schedule(3, few, 0), 400))
    assert first != list(islice(schedule(4, few, 0), 400))
    among = [due for due in islice(schedule(3, more, 0), 4000) if due.kind in few]
    assert among[:400] == first
    minutes = first[-1].at_ns / 60e9
    assert 0.8 < 400 / minutes / 8 < 1.25  # so many a minute, give or take four deviations
    assert "swap" not in more


@pytest.mark.parametrize("text", ["drop", "drop=x", "flood=1", "drop=-1", "drop=1e9", "drop=nan"])
def test_rates_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        schedule(1, rates_of(text), 0)


def test_what_a_seed_draws_happens_at_its_time_and_is_written_down(tmp_path: Path) -> None:
    log = tmp_path / "faults.jsonl"
    rates = rates_of("restart=600,drop=600,rate_limited=600")
    sandbox = Sandbox(seed=21, speed=20.0, fault_rates=rates, fault_log=log)
    begun = sandbox.exchange.now_ns
    with served(sandbox) as venue, connect(venue.told["ws_public"]) as socket:
        wire = Wire(socket, BOOK)
        while len(happened := read_log(log)) < 12 or {one.kind for one in happened} != set(rates):
            wire.next()
            post(venue, "order/cancel-all", {"category": "linear", "symbol": "BTCUSDT"})
    happened = read_log(log)
    ends = happened[-1].at_ns
    due = takewhile(lambda one: one.at_ns <= ends, schedule(21, rates, begun))
    assert [one.at_ns for one in happened if one.kind == "restart"] == [
        one.at_ns for one in due if one.kind == "restart"
    ]
    assert {one.kind for one in happened} == set(rates)
    keys = {client.key for client in sandbox.exchange.clients}
    assert {one.to for one in happened if one.kind == "rate_limited"} <= keys


# -- idle --------------------------------------------------------------------------------------------


def test_with_no_fault_every_reader_has_every_frame_to_the_byte() -> None:
    told: list[tuple[str, bytes]] = []

    async def read() -> list[bytes]:
        stream = PublicStream()
        exchange = Exchange(profile("default"), 5, clients=1, listen=stream.publish)
        faults = Faults(["key"], list, lambda: None)
        faults.follow(schedule(1, {}, 0))
        stream.deliver = faults.frame
        stream.follow(exchange)
        reader = Connection(web.WebSocketResponse(), "public/1")
        for topic in (BOOK, TRADES, TICKERS):
            stream.readers[topic] = {reader}
        exchange.advance(exchange.now_ns + 5 * SECOND)
        faults.advance(exchange.now_ns)
        return [reader.waiting.get_nowait() for _ in range(reader.waiting.qsize())]

    bare = Exchange(profile("default"), 5, clients=1, listen=lambda *frame: told.append(frame))
    told.clear()
    bare.advance(bare.now_ns + 5 * SECOND)
    expected = [frame for topic, frame in told if topic in (BOOK, TRADES, TICKERS)]
    assert len(expected) > 100
    assert asyncio.run(read()) == expected


def test_what_lasts_ends_and_what_waits_can_be_taken_back() -> None:
    async def run() -> list[Happened]:
        reader = Connection(web.WebSocketResponse(), "public/1")
        faults = Faults(["key"], lambda: [reader], lambda: None)
        for kind in ("delay", "overtake", "drop"):
            faults.command(Fault(kind=kind, what=kind))
        faults.frame(reader, "delay", b"1")
        faults.frame(reader, "overtake", b"2")
        faults.command(Fault(kind="silence"))
        faults.command(Fault(kind="clock", ms=-7))
        assert (reader.waiting.qsize(), reader.speaking.is_set()) == (0, False)
        assert faults.wall_ns() < time.time_ns()
        faults.clear()
        # In the order in which they would have gone by themselves: after one second, and after two.
        assert [reader.waiting.get_nowait() for _ in range(2)] == [b"2", b"1"]
        assert reader.speaking.is_set()
        assert (faults.waiting, faults.next_ns, faults.clock_ms) == ((), None, 0)
        return list(faults.log)

    assert [line.kind for line in asyncio.run(run())] == ["delay", "overtake", "silence", "clock"]
