"""`l2 bench sandbox`: latency of order entry and of market data, and the server's memory.

The server is a process of its own with twenty accounts and no rate limits; this process is all twenty
clients, each with a connection for orders, a private stream and a public one. The cost of the clients
is not in the figures as long as this process has a core of its own.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import re
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np

from market.units import MS_NS
from proving.bench.goals import Measure
from proving.sandbox.protocol import signature
from proving.sandbox.server import Sandbox, run
from proving.usage import resident_mb

CLIENTS: Final = 20
ORDERS_PER_S: Final = 200
LOAD_S: Final = 60
SEED: Final = 1
SYMBOL: Final = "BTCUSDT"
TOPICS: Final = (f"orderbook.200.{SYMBOL}", f"publicTrade.{SYMBOL}")
OWN_TOPICS: Final = ("order", "execution", "position", "wallet")
FAST: Final = 20.0
HOURS: Final = 4

#: ms that a request may be on its way: a busy machine's stall is a late answer here, never a refusal.
_RECV_WINDOW: Final = "60000"

#: Orders of a client between two cancels of all its resting orders.
_SWEEP: Final = 10
#: The matching engine's time in a frame: ``cts`` of a book delta, or the first trade's ``T``.
_ENGINE_MS: Final = re.compile(r'"type":"delta".*"cts":([0-9]+)}$|"data":\[{"T":([0-9]+)')


def measure(quick: bool, say: Callable[[str], None]) -> Iterator[Measure]:
    """Every figure of this area, as it is measured."""
    seconds, hours = (1, 0.002) if quick else (LOAD_S, HOURS)
    say(f"{CLIENTS} clients, {ORDERS_PER_S} orders a second, {seconds} s")
    with _served(1.0) as (server_info, _):
        load = asyncio.run(_loaded(server_info, ORDERS_PER_S, seconds))
    yield from _answers(load, seconds)
    say(f"{hours:g} simulated hours at speed {FAST:g}, {3600 / FAST * hours / 60:.0f} minutes")
    with _served(FAST) as (server_info, server):
        samples = asyncio.run(_sampled(server_info, server, hours))
    yield from _memory(samples, hours)


def round_trip(quick: bool) -> Iterator[Measure]:
    """From an order's request over WebSocket to its answer, with few orders: the venue's part of an order."""
    seconds = 1 if quick else LOAD_S // 3
    with _served(1.0) as (server_info, _):
        load = asyncio.run(_loaded(server_info, ORDERS_PER_S / 2, seconds))
    for row in _answers(load, seconds):
        if "WebSocket" in row.name:
            name = row.name.replace(
                "order over WebSocket to answer", "exchange on loopback, round trip"
            )
            yield msgspec.structs.replace(row, name=name)


def _answers(load: _Load, seconds: float) -> Iterator[Measure]:
    for over_rest, name in ((True, "REST"), (False, "WebSocket")):
        answers = np.array(load.answers[over_rest]) / MS_NS
        how = (
            f"{len(answers):,} orders in {seconds} s, {CLIENTS} clients that read market data and "
            f"their own affairs ({load.own:,} frames); {load.refused} orders of all were refused"
        )
        percentiles = np.percentile(answers, (50, 99, 99.9)).tolist()
        for rank, value in zip(("p50", "p99", "p99.9"), percentiles, strict=True):
            yield Measure(
                name=f"order over {name} to answer: {rank}",
                ours=value,
                unit="ms",
                how=how,
                better="less",
            )
    late = np.array(load.late) / MS_NS
    how = f"{len(late):,} frames of {', '.join(TOPICS)} by the engine's time in them"
    for name, value in (("p99", np.percentile(late, 99)), ("most", late.max())):
        yield Measure(
            name=f"frames late: {name}", ours=float(value), unit="ms", how=how, better="less"
        )


def _memory(samples: list[float], hours: float) -> Iterator[Measure]:
    taken = ", ".join(f"{sample:.0f}" for sample in samples)
    how = (
        f"speed {FAST:g}, {ORDERS_PER_S} orders a second; MB after each of {hours:g} hours: {taken}"
    )
    yield Measure(
        name="memory after the last hour", ours=samples[-1], unit="MB", how=how, better="less"
    )
    yield Measure(
        name="memory after the last hour over the second",
        ours=samples[-1] / samples[min(1, len(samples) - 1)],
        unit="times",
        how=how,
        better="less",
    )


# -- the server ------------------------------------------------------------------------------------


@contextmanager
def _served(speed: float) -> Iterator[tuple[dict[str, Any], int]]:
    """A running server: the addresses and keys that it prints, and its process id."""
    spawn = multiprocessing.get_context("spawn")
    server_info = spawn.Queue()
    process = spawn.Process(target=_serve, args=(speed, server_info), daemon=True, name="sandbox")
    process.start()
    assert process.pid is not None
    try:
        yield server_info.get(timeout=120), process.pid
    finally:
        process.terminate()
        process.join(30)


def _serve(speed: float, server_info: Any) -> None:
    run(Sandbox(SEED, speed=speed, clients=CLIENTS, limited=False), 0, server_info.put)


# -- the clients -----------------------------------------------------------------------------------


class _Load:
    """Latencies and counts that the clients measured."""

    def __init__(self, server_info: Mapping[str, Any]) -> None:
        self.server_info = server_info
        #: ns from request to answer, over REST (True) and WebSocket (False)
        self.answers = {True: array("q"), False: array("q")}
        self.late = array("q")  #: ns of frames after their due time
        self.refused = 0
        self.own = 0  #: frames of private streams

    def due_ns(self, simulated_ns: int) -> int:
        """Wall-clock time of a simulated time."""
        clock = self.server_info["clock"]
        passed = (simulated_ns - clock["simulated_ns"]) / clock["speed"]
        return int(clock["wall_ns"] + passed)


async def _loaded(server_info: Mapping[str, Any], rate: float, seconds: float) -> _Load:
    """Orders at a rate from all clients in turn, each of which reads its public and private stream."""
    load = _Load(server_info)
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        clients = [
            await _Client.connected(stack, session, load, keys) for keys in server_info["keys"]
        ]
        reading = [asyncio.create_task(part) for client in clients for part in client.reading()]
        await asyncio.sleep(1)
        del load.late[:]
        gc.collect()
        gc.disable()
        try:
            await _trade(clients, load, rate, seconds)
        finally:
            gc.enable()
            for task in reading:
                task.cancel()
            ended = await asyncio.gather(*reading, return_exceptions=True)
    for end in ended:
        if not isinstance(end, asyncio.CancelledError):
            raise RuntimeError(f"a stream ended: {end!r}")
    return load


class _Client:
    """One account: REST, order entry over WebSocket, a private and a public stream."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        load: _Load,
        keys: Mapping[str, str],
        sockets: Mapping[str, aiohttp.ClientWebSocketResponse],
    ) -> None:
        self._session, self._load, self._keys, self._sockets = session, load, keys, sockets
        self._acknowledgements: dict[str, asyncio.Future[int]] = {}
        self._numbers = itertools.count(1)

    @classmethod
    async def connected(
        cls,
        stack: AsyncExitStack,
        session: aiohttp.ClientSession,
        load: _Load,
        keys: Mapping[str, str],
    ) -> _Client:
        """A client that is authenticated and subscribed."""
        sockets = {
            name: await stack.enter_async_context(
                session.ws_connect(load.server_info[f"ws_{name}"], max_msg_size=1 << 24)
            )
            for name in ("public", "private", "trade")
        }
        expires = time.time_ns() // MS_NS + 60_000
        sign = signature(keys["secret"], f"GET/realtime{expires}".encode())
        for name in ("private", "trade"):
            await sockets[name].send_json({"op": "auth", "args": [keys["key"], expires, sign]})
            await sockets[name].receive()
        await sockets["private"].send_json({"op": "subscribe", "args": OWN_TOPICS})
        await sockets["public"].send_json({"op": "subscribe", "args": TOPICS})
        return cls(session, load, keys, sockets)

    def reading(self) -> list[Coroutine[Any, Any, None]]:
        return [self._read_market(), self._read_own(), self._read_answers()]

    async def _read_market(self) -> None:
        async for message in self._sockets["public"]:
            stamp = _ENGINE_MS.search(message.data)
            if stamp is not None:
                due_ns = self._load.due_ns(int(stamp[1] or stamp[2]) * MS_NS)
                self._load.late.append(time.time_ns() - due_ns)

    async def _read_own(self) -> None:
        async for _ in self._sockets["private"]:
            self._load.own += 1

    async def _read_answers(self) -> None:
        async for message in self._sockets["trade"]:
            answer = msgspec.json.decode(message.data)
            self._acknowledgements.pop(answer["reqId"]).set_result(answer["retCode"])

    async def place(self, body: dict[str, Any], over_rest: bool) -> None:
        """Place an order and record its latency to the acknowledgement."""
        began = time.perf_counter_ns()
        code = await (self.post("create", body) if over_rest else self._ask(body))
        self._load.answers[over_rest].append(time.perf_counter_ns() - began)
        self._load.refused += code != 0

    async def _ask(self, body: dict[str, Any]) -> int:
        name = str(next(self._numbers))
        answer = self._acknowledgements[name] = asyncio.get_running_loop().create_future()
        header = {
            "X-BAPI-TIMESTAMP": str(time.time_ns() // MS_NS),
            "X-BAPI-RECV-WINDOW": _RECV_WINDOW,
        }
        frame = {"reqId": name, "header": header, "op": "order.create", "args": [body]}
        await self._sockets["trade"].send_str(msgspec.json.encode(frame).decode())
        code: int = await answer
        return code

    async def post(self, path: str, body: dict[str, Any]) -> int:
        """Send a signed request; returns its retCode."""
        payload = msgspec.json.encode(body)
        stamp = str(time.time_ns() // MS_NS)
        signed = f"{stamp}{self._keys['key']}{_RECV_WINDOW}".encode() + payload
        headers = {
            "X-BAPI-API-KEY": self._keys["key"],
            "X-BAPI-TIMESTAMP": stamp,
            "X-BAPI-RECV-WINDOW": _RECV_WINDOW,
            "X-BAPI-SIGN": signature(self._keys["secret"], signed),
            "Content-Type": "application/json",
        }
        url = f"{self._load.server_info['rest']}/v5/order/{path}"
        async with self._session.post(url, data=payload, headers=headers) as response:
            answer = msgspec.json.decode(await response.read())
        code: int = answer["retCode"]
        return code

    async def last_price(self) -> float:
        url = f"{self._load.server_info['rest']}/v5/market/tickers?category=linear&symbol={SYMBOL}"
        async with self._session.get(url) as response:
            answer = msgspec.json.decode(await response.read())
        return float(answer["result"]["list"][0]["lastPrice"])


async def _trade(clients: Sequence[_Client], load: _Load, rate: float, seconds: float) -> None:
    """Place orders of all clients in turn, half over REST; every `_SWEEP` orders a client cancels all."""
    price = await clients[0].last_price()
    began = time.monotonic()
    in_flight: set[asyncio.Task[Any]] = set()
    for number, body in zip(range(round(rate * seconds)), _orders(price), strict=False):
        await asyncio.sleep(began + number / rate - time.monotonic())
        turn, place = divmod(number, CLIENTS)
        client = clients[place]
        wanted: list[Coroutine[Any, Any, Any]] = [client.place(body, over_rest=turn % 4 < 2)]
        if (turn + place) % _SWEEP == 0:
            wanted.append(client.post("cancel-all", {"category": "linear", "symbol": SYMBOL}))
        for part in wanted:
            task = asyncio.create_task(part)
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
    await asyncio.gather(*in_flight)


def _orders(price: float) -> Iterator[dict[str, Any]]:
    """Orders of each client in turn: one in five a market order, the others limits up to 10 bps behind.

    Sides alternate, so that positions stay small.
    """
    for turn in itertools.count():
        for client in range(CLIENTS):
            side = 1 if turn % 2 else -1
            order = {
                "category": "linear",
                "symbol": SYMBOL,
                "side": "Buy" if side > 0 else "Sell",
                "qty": "0.010",
            }
            if (turn + client) % 5 == 0:
                yield {**order, "orderType": "Market"}
            else:
                behind = (1 + (turn + client) % 10) * 1e-4
                limit = f"{price * (1 - side * behind):.1f}"
                yield {**order, "orderType": "Limit", "price": limit}


async def _sampled(server_info: Mapping[str, Any], server: int, hours: float) -> list[float]:
    """The server's memory under load after each simulated hour, and at the end."""
    samples = []
    left = hours
    while left > 0:
        span = min(1.0, left)
        await _loaded(server_info, ORDERS_PER_S, span * 3600 / FAST)
        samples.append(resident_mb(server))
        left -= span
    return samples
