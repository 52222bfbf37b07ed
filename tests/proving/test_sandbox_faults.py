"""Fault injection: real clients see each fault as named, the log has it, and nothing else changes."""

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
import pytest
from aiohttp import web
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.faults import KINDS, Fault, FaultEvent, Faults, rates_of, read_log, schedule
from proving.sandbox.server import Sandbox
from proving.sandbox.streams import PublicStream, SocketConnection
from proving.synthetic.profiles import profile
from tests.proving.sandbox_clients import Wire, authentication, ccxt_client, pybit_client
from tests.proving.sandbox_server import Served, served, signed_headers

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
    """The answer of the control endpoint."""
    url = venue.description["rest"] + "/control/faults"
    body = json.dumps(fault).encode() if fault else None
    request = urllib.request.Request(url, body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            answer = json.load(error)
    return answer


def last(venue: Served) -> dict[str, Any]:
    """The newest line of the log."""
    line: dict[str, Any] = control(venue)["log"][-1]
    return line


def post(
    venue: Served, route: str, body: dict[str, Any], *, timeout: float = 10.0
) -> tuple[int, dict[str, Any]]:
    """HTTP status and answer of a signed request; raises as the connection ends."""
    payload = json.dumps(body).encode()
    connection = http.client.HTTPConnection(venue.sandbox.address, timeout=timeout)
    try:
        headers = signed_headers(venue.description["keys"][0], payload)
        connection.request("POST", f"/v5/{route}", payload, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def resting(venue: Served, link: str) -> dict[str, Any]:
    """A buy order far from the market, with a link id."""
    price = venue.run(lambda exchange: exchange.tapes["BTCUSDT"].price_limits()[0])
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
    """Whether an order was created."""
    exists: bool = venue.run(lambda exchange: link in exchange.clients[0].by_link_id)
    return exists


def newest(venue: Served) -> str:
    """The name of the newest connection."""
    name: str = venue.run(lambda _: list(venue.sandbox.venue.public_stream.connections)[-1].name)
    return name


def subscribed(socket: ClientConnection, *topics: str) -> Wire:
    """A connection that has received its first frame of a topic."""
    wire = Wire(socket)
    assert wire.ask({"op": "subscribe", "args": list(topics)})["success"]
    wire.next()
    return wire


def updates_of(wire: Wire, count: int) -> list[int]:
    """Update ids of the next frames of the book."""
    return [wire.next(BOOK)["data"]["u"] for _ in range(count)]


def steps(updates: list[int]) -> list[int]:
    return [after - before for before, after in pairwise(updates)]


# -- requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "seen", "executed"),
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
def test_a_request_fault_happens_once_and_the_order_exists_or_not(
    venue: Served, kind: str, seen: Any, executed: bool
) -> None:
    key, link = venue.description["keys"][0]["key"], f"fault-{kind}"
    control(venue, "POST", kind=kind, to=key, what="order/create")
    if isinstance(seen, tuple):
        status, answer = post(venue, "order/create", resting(venue, link))
        assert (status, answer["retCode"]) == seen
        assert set(answer) == {"retCode", "retMsg", "result", "retExtInfo", "time"}
    else:
        with pytest.raises((seen, http.client.HTTPException)):
            post(venue, "order/create", resting(venue, link), timeout=0.5)
    assert placed(venue, link) == executed
    line = last(venue)
    assert (line["kind"], line["to"], line["what"]) == (kind, key, "order/create")
    assert control(venue)["waiting"] == []
    assert post(venue, "order/create", resting(venue, f"{link}-2"))[1]["retCode"] == 0


def test_a_late_answer_comes_after_its_delay(venue: Served) -> None:
    control(venue, "POST", kind="answer_late", what="order/create", ms=3000)
    before = venue.run(lambda exchange: exchange.now_ns)
    assert post(venue, "order/create", resting(venue, "late"))[1]["retCode"] == 0
    assert venue.run(lambda exchange: exchange.now_ns) >= before + 3 * SECOND


def test_other_clients_and_routes_are_not_affected(venue: Served) -> None:
    control(venue, "POST", kind="maintenance", to=venue.description["keys"][1]["key"])
    control(venue, "POST", kind="maintenance", what="order/amend")
    assert post(venue, "order/create", resting(venue, "as-ever"))[1]["retCode"] == 0
    assert len(control(venue)["waiting"]) == 2


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
def test_ccxt_raises_the_matching_exception(
    venue: Served, kind: str, raised: type[Exception]
) -> None:
    client = ccxt_client(venue, timeout=1000)
    control(venue, "POST", kind=kind, what="account/wallet-balance")
    with pytest.raises(raised):
        client.fetch_balance()
    assert client.fetch_balance()["USDT"]["total"] > 0
    assert last(venue)["what"] == "account/wallet-balance"


def test_pybit_retries_a_rate_limit_and_raises_other_codes(venue: Served) -> None:
    client = pybit_client(venue)
    control(venue, "POST", kind="rate_limited", what="account/wallet-balance")
    assert client.get_wallet_balance(accountType="UNIFIED")["retCode"] == 0
    assert last(venue)["kind"] == "rate_limited"
    control(venue, "POST", kind="maintenance", what="account/wallet-balance")
    with pytest.raises(pybit.exceptions.InvalidRequestError, match="10016"):
        client.get_wallet_balance(accountType="UNIFIED")
    control(venue, "POST", kind="banned", what="account/wallet-balance")
    with pytest.raises(pybit.exceptions.FailedRequestError):
        client.get_wallet_balance(accountType="UNIFIED")


def test_order_entry_over_websocket_has_the_same_faults(venue: Served) -> None:
    keys, seen = venue.description["keys"][0], {}
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
        with connect(venue.description["ws_trade"]) as socket:
            assert Wire(socket).ask(authentication(venue))["retCode"] == 0
            header = {"X-BAPI-TIMESTAMP": str(time.time_ns() // 1_000_000)}
            args = [resting(venue, f"trade-{kind}")]
            request = {"reqId": kind, "header": header, "op": "order.create", "args": args}
            socket.send(json.dumps(request))
            try:
                seen[kind] = json.loads(socket.recv(timeout=5))["retCode"]
            except (TimeoutError, ConnectionClosed) as ended:
                seen[kind] = type(ended).__name__
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
    ("kind", "times", "expected"),
    [("drop", 3, [4]), ("duplicate", 1, [0]), ("swap", 1, [-1, 2, 2])],
)
def test_update_ids_of_a_book_show_the_fault(
    venue: Served, kind: str, times: int, expected: list[int]
) -> None:
    with connect(venue.description["ws_public"]) as socket:
        wire = subscribed(socket, BOOK)
        updates = updates_of(wire, 2)
        control(venue, "POST", kind=kind, what=BOOK, times=times)
        updates += updates_of(wire, 1)
        while set(steps(updates)) == {1} and len(updates) < 5000:  # sent before the fault
            updates += updates_of(wire, 1)
        seen = steps(updates + updates_of(wire, 10))
    assert sorted(step for step in seen if step != 1) == expected
    line = last(venue)
    assert (line["kind"], line["what"]) == (kind, BOOK)
    assert line["to"].startswith("public/")


def test_a_delayed_topic_keeps_its_order(venue: Served) -> None:
    with connect(venue.description["ws_public"]) as socket:
        wire = subscribed(socket, BOOK, "orderbook.1.BTCUSDT")
        frames, behind = wire.topics(1), 0
        control(venue, "POST", kind="delay", what=BOOK, ms=1000)
        while behind < 500 and len(frames) < 5000:
            frames += wire.topics(1)
            behind = max(frame["cts"] for frame in frames) - frames[-1]["cts"]
        frames += wire.topics(50)
    books = [frame for frame in frames if frame["topic"] == BOOK and frame["type"] == "delta"]
    assert set(steps([frame["data"]["u"] for frame in books])) == {1}
    assert 700 <= behind <= 1300  # the delay counts from the last advance of time


def test_a_frame_is_overtaken_only_by_another_topic(venue: Served) -> None:
    with connect(venue.description["ws_public"]) as socket:
        wire = subscribed(socket, BOOK, "orderbook.1.BTCUSDT")
        wire.topics(5)
        control(venue, "POST", kind="overtake", what=BOOK)
        frames = wire.topics(200)
    books = [frame["data"]["u"] for frame in frames if frame["topic"] == BOOK]
    assert set(steps(books)) == {1}
    assert last(venue)["kind"] == "overtake"


def test_a_silent_connection_delivers_everything_afterwards(venue: Served) -> None:
    with (
        connect(venue.description["ws_public"]) as socket,
        connect(venue.description["ws_public"]) as other,
    ):
        loud, quiet = subscribed(socket, BOOK), subscribed(other, BOOK)
        name = newest(venue)
        control(venue, "POST", kind="silence", to=name, ms=4000)
        before = updates_of(quiet, 1)[0]
        while (now := updates_of(loud, 1)[0]) < before + 150:
            pass
        assert updates_of(quiet, 1)[0] < now - 100
        assert set(steps(updates_of(quiet, 100))) == {1}
    assert last(venue)["to"] == name


def test_a_duplicate_fault_repeats_an_execution_message(venue: Served) -> None:
    keys = venue.description["keys"][0]
    control(venue, "POST", kind="duplicate", to=keys["key"], what="execution")
    with connect(venue.description["ws_private"]) as socket:
        wire = Wire(socket)
        assert wire.ask(authentication(venue))["success"]
        assert wire.ask({"op": "subscribe", "args": ["execution"]})["success"]
        body = {**resting(venue, ""), "orderType": "Market"}
        assert post(venue, "order/create", body)[1]["retCode"] == 0
        first, second = wire.topics(2)
    assert first == second
    assert first["topic"] == "execution"
    assert (last(venue)["kind"], last(venue)["to"]) == ("duplicate", keys["key"])


@pytest.mark.parametrize(("kind", "code"), [("close", 1001), ("abort", None)])
def test_a_connection_ends_and_a_new_one_gets_a_snapshot(
    venue: Served, kind: str, code: int | None
) -> None:
    with connect(venue.description["ws_public"]) as socket:
        wire = subscribed(socket, BOOK)
        control(venue, "POST", kind=kind, to=newest(venue))
        with pytest.raises(ConnectionClosed) as ended:
            updates_of(wire, 10_000)
    assert (ended.value.rcvd.code if ended.value.rcvd else None) == code
    with connect(venue.description["ws_public"]) as socket:
        assert set(steps(updates_of(subscribed(socket, BOOK), 10))) == {1}


def test_update_ids_start_from_one_after_a_restart(venue: Served) -> None:
    with connect(venue.description["ws_public"]) as socket:
        wire = subscribed(socket, BOOK)
        control(venue, "POST", kind="restart")
        while (frame := wire.next())["data"]["u"] != 1:
            pass
        assert frame["type"] == "snapshot"
        updates = updates_of(wire, 20)
        assert updates == list(range(2, 22))
        assert updates_of(wire, 1)[0] == updates[-1] + 1
    url = venue.description["rest"] + "/v5/market/orderbook?category=linear&symbol=BTCUSDT"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert json.load(answer)["result"]["u"] < 10_000


def test_a_wrong_venue_clock_refuses_correct_timestamps(venue: Served) -> None:
    control(venue, "POST", kind="clock", ms=60_000)
    code = post(venue, "order/create", resting(venue, "clock"))[1]["retCode"]
    assert code == 10002
    client = ccxt_client(venue)
    assert 55_000 < -client.load_time_difference() < 65_000
    client.options["adjustForTimeDifference"] = True
    assert client.fetch_balance()["USDT"]["total"] > 0
    control(venue, "DELETE")
    assert post(venue, "order/create", resting(venue, "clock"))[1]["retCode"] == 0


def test_the_control_endpoint_explains_invalid_commands(venue: Served) -> None:
    assert "kinds are answer_lost" in control(venue, "POST", kind="flood")["error"]
    assert "times" in control(venue, "POST", kind="drop", times=0)["error"]
    assert "ms" in control(venue, "POST", kind="delay", ms=-1)["error"]
    assert "where" in control(venue, "POST", kind="drop", where="here")["error"]
    assert "PUT" in control(venue, "PUT", kind="drop")["error"]
    assert control(venue)["waiting"] == []
    assert set(control(venue)["kinds"]) == set(KINDS)


# -- schedules -----------------------------------------------------------------------------------------


def test_a_schedule_is_a_function_of_seed_and_kind() -> None:
    few, more = rates_of("drop=6,abort=2"), rates_of("all=2,drop=6")
    first = list(islice(schedule(3, few, 0), 400))
    assert first == list(islice(schedule(3, few, 0), 400))
    assert first != list(islice(schedule(4, few, 0), 400))
    among = [due for due in islice(schedule(3, more, 0), 4000) if due.kind in few]
    assert among[:400] == first
    minutes = first[-1].at_ns / 60e9
    assert 0.8 < 400 / minutes / 8 < 1.25  # eight per minute, within four standard deviations
    assert "swap" not in more


@pytest.mark.parametrize("text", ["drop", "drop=x", "flood=1", "drop=-1", "drop=1e9", "drop=nan"])
def test_invalid_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        schedule(1, rates_of(text), 0)


def test_scheduled_faults_happen_on_time_and_are_logged(tmp_path: Path) -> None:
    log = tmp_path / "faults.jsonl"
    rates = rates_of("restart=600,drop=600,rate_limited=600")
    sandbox = Sandbox(seed=21, speed=20.0, fault_rates=rates, fault_log=log)
    begun = sandbox.exchange.now_ns
    with served(sandbox) as venue, connect(venue.description["ws_public"]) as socket:
        wire = subscribed(socket, BOOK)
        while len(events := read_log(log)) < 12 or {one.kind for one in events} != set(rates):
            wire.next()
            post(venue, "order/cancel-all", {"category": "linear", "symbol": "BTCUSDT"})
    events = read_log(log)
    ends = events[-1].at_ns
    due = takewhile(lambda one: one.at_ns <= ends, schedule(21, rates, begun))
    assert [one.at_ns for one in events if one.kind == "restart"] == [
        one.at_ns for one in due if one.kind == "restart"
    ]
    assert {one.kind for one in events} == set(rates)
    keys = {client.key for client in sandbox.exchange.clients}
    assert {one.to for one in events if one.kind == "rate_limited"} <= keys


# -- without a server --------------------------------------------------------------------------------------------


def test_without_faults_subscribers_get_every_frame_unchanged() -> None:
    published: list[tuple[str, bytes]] = []

    async def read() -> list[bytes]:
        stream = PublicStream()
        exchange = SandboxExchange(profile("default"), 5, clients=1, on_frame=stream.publish)
        faults = Faults(["key"], list, lambda: None)
        faults.follow(schedule(1, {}, 0))
        stream.deliver = faults.deliver
        stream.attach(exchange)
        reader = SocketConnection(web.WebSocketResponse(), "public/1")
        for topic in (BOOK, TRADES, TICKERS):
            stream.subscribers[topic] = {reader: None}
        exchange.advance(exchange.now_ns + 5 * SECOND)
        faults.advance(exchange.now_ns)
        return [reader.queue.get_nowait() for _ in range(reader.queue.qsize())]

    bare = SandboxExchange(
        profile("default"), 5, clients=1, on_frame=lambda *frame: published.append(frame)
    )
    published.clear()
    bare.advance(bare.now_ns + 5 * SECOND)
    expected = [frame for topic, frame in published if topic in (BOOK, TRADES, TICKERS)]
    assert len(expected) > 100
    assert asyncio.run(read()) == expected


def test_clear_releases_held_frames_and_cancels_pending_faults() -> None:
    async def run() -> list[FaultEvent]:
        reader = SocketConnection(web.WebSocketResponse(), "public/1")
        faults = Faults(["key"], lambda: [reader], lambda: None)
        for kind in ("delay", "overtake", "drop"):
            faults.command(Fault(kind=kind, what=kind))
        faults.deliver(reader, "delay", b"1")
        faults.deliver(reader, "overtake", b"2")
        faults.command(Fault(kind="silence"))
        faults.command(Fault(kind="clock", ms=-7))
        assert (reader.queue.qsize(), reader.unpaused.is_set()) == (0, False)
        assert faults.wall_ns() < time.time_ns()
        faults.clear()
        # In the order of their timers: one second (overtake), two seconds (delay).
        assert [reader.queue.get_nowait() for _ in range(2)] == [b"2", b"1"]
        assert reader.unpaused.is_set()
        assert (faults.pending, faults.next_ns, faults.clock_error_ms) == ((), None, 0)
        return list(faults.log)

    assert [line.kind for line in asyncio.run(run())] == ["delay", "overtake", "silence", "clock"]
