"""What `l2 bench sandbox` measures: how soon orders are acknowledged and frames come, and memory.

The server is a process of its own with twenty accounts and no limits; this process is all twenty
clients, each with a connection for orders and a stream of market data. What it costs to be them is
not in the figures as long as this process has a core of its own.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import re
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np

from live.sandbox.server import Sandbox, run
from live.sandbox.signing import signature
from market.bench.yardstick import Measure

CLIENTS: Final = 20
ORDERS_PER_S: Final = 200
LOAD_S: Final = 60
SEED: Final = 1
SYMBOL: Final = "BTCUSDT"
TOPICS: Final = (f"orderbook.200.{SYMBOL}", f"publicTrade.{SYMBOL}")
FAST: Final = 20.0
HOURS: Final = 3

_MS: Final = 1_000_000
_MB: Final = 1e6
#: Orders of a client between two times that it cancels what rests.
_SWEEP: Final = 10
#: The engine's time in a frame of news: the book's in a delta, else the first trade's.
_ENGINE_MS: Final = re.compile(rb'"type":"delta".*"cts":([0-9]+)}$|"data":\[{"T":([0-9]+)')


def measure(quick: bool, say: Callable[[str], None]) -> Iterator[Measure]:
    """Every figure of this area, as it is found."""
    seconds, hours = (2, 0.02) if quick else (LOAD_S, HOURS)
    say(f"{CLIENTS} clients, {ORDERS_PER_S} orders a second, {seconds} s")
    with _served(1.0) as (told, _):
        load = asyncio.run(_loaded(told, ORDERS_PER_S, seconds))
    yield from _answers(load, seconds)
    say(f"{hours:g} simulated hours at speed {FAST:g}, {3600 / FAST * hours / 60:.0f} minutes")
    with _served(FAST) as (told, server):
        samples = asyncio.run(_sampled(told, server, hours))
    yield from _memory(samples, hours)


def _answers(load: _Load, seconds: float) -> Iterator[Measure]:
    how = (
        f"{len(load.answers):,} orders over REST in {seconds} s, {CLIENTS} clients with market data, "
        f"{load.refused} refused"
    )
    percentiles = np.percentile(np.array(load.answers) / 1e6, (50, 99, 99.9))
    for name, value in zip(("p50", "p99", "p99.9"), percentiles.tolist(), strict=True):
        yield Measure(
            name=f"order to answer: {name}", ours=value, unit="ms", how=how, better="less"
        )
    late = np.array(load.late) / 1e6
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
    """A server, as what it tells its clients and its process id."""
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    process = spawn.Process(target=_serve, args=(speed, told), daemon=True, name="sandbox")
    process.start()
    assert process.pid is not None
    try:
        yield told.get(timeout=120), process.pid
    finally:
        process.terminate()
        process.join(30)


def _serve(speed: float, told: Any) -> None:
    run(Sandbox(SEED, speed=speed, clients=CLIENTS, limited=False), 0, told.put)


def _resident_mb(process: int) -> float:
    """Memory that a process holds now, MB (1e6 bytes)."""
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / _MB


# -- the clients -----------------------------------------------------------------------------------


class _Load:
    """What the clients saw."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.told = told
        self.answers = array("q")  #: ns from request to answer
        self.late = array("q")  #: ns of frames after their due time
        self.refused = 0

    def due_ns(self, simulated_ns: int) -> int:
        """Wall-clock time of a simulated one."""
        clock = self.told["clock"]
        passed = (simulated_ns - clock["simulated_ns"]) / clock["speed"]
        return int(clock["wall_ns"] + passed)


async def _loaded(told: Mapping[str, Any], rate: float, seconds: float) -> _Load:
    """Orders at a rate from all clients in turn, each of which reads market data."""
    load = _Load(told)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        reading = [asyncio.create_task(_read(session, load)) for _ in told["keys"]]
        await asyncio.sleep(1)
        del load.late[:]
        gc.collect()
        gc.disable()
        try:
            await _trade(session, load, rate, seconds)
        finally:
            gc.enable()
            for task in reading:
                task.cancel()
            ended = await asyncio.gather(*reading, return_exceptions=True)
    for end in ended:
        if not isinstance(end, asyncio.CancelledError):
            raise RuntimeError(f"a stream of market data ended: {end!r}")
    return load


async def _read(session: aiohttp.ClientSession, load: _Load) -> None:
    """Take the frames of one stream, and note how late they are."""
    async with session.ws_connect(load.told["ws_public"], max_msg_size=1 << 24) as socket:
        await socket.send_json({"op": "subscribe", "args": TOPICS})
        async for message in socket:
            text = message.data.encode()
            stamp = _ENGINE_MS.search(text)
            if stamp is not None:
                load.late.append(time.time_ns() - load.due_ns(int(stamp[1] or stamp[2]) * _MS))


async def _trade(session: aiohttp.ClientSession, load: _Load, rate: float, seconds: float) -> None:
    price = await _last_price(session, load.told["rest"])
    began = time.monotonic()
    under_way: set[asyncio.Task[Any]] = set()
    for number, body in zip(range(round(rate * seconds)), _orders(price), strict=False):
        await asyncio.sleep(began + number / rate - time.monotonic())
        keys = load.told["keys"][number % CLIENTS]
        wanted: list[asyncio.Task[Any]] = [asyncio.create_task(_place(session, load, keys, body))]
        if number // CLIENTS % _SWEEP == _SWEEP - 1:
            every = {"category": "linear", "symbol": SYMBOL}
            wanted.append(asyncio.create_task(_post(session, load, keys, "cancel-all", every)))
        for task in wanted:
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)


def _orders(price: float) -> Iterator[dict[str, Any]]:
    """Orders of each client in turn: one in five at the market, the others up to 10 bps behind it.

    Buying and selling alternate, so that nobody holds much.
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


async def _place(
    session: aiohttp.ClientSession, load: _Load, keys: Mapping[str, str], body: dict[str, Any]
) -> None:
    began = time.perf_counter_ns()
    code = await _post(session, load, keys, "create", body)
    load.answers.append(time.perf_counter_ns() - began)
    load.refused += code != 0


async def _post(
    session: aiohttp.ClientSession,
    load: _Load,
    keys: Mapping[str, str],
    path: str,
    body: dict[str, Any],
) -> int:
    """A signed request; its code."""
    payload = msgspec.json.encode(body)
    stamp = str(time.time_ns() // 1_000_000)
    signed = f"{stamp}{keys['key']}5000".encode() + payload
    headers = {
        "X-BAPI-API-KEY": keys["key"],
        "X-BAPI-TIMESTAMP": stamp,
        "X-BAPI-RECV-WINDOW": "5000",
        "X-BAPI-SIGN": signature(keys["secret"], signed),
        "Content-Type": "application/json",
    }
    url = f"{load.told['rest']}/v5/order/{path}"
    async with session.post(url, data=payload, headers=headers) as response:
        answer = msgspec.json.decode(await response.read())
    code: int = answer["retCode"]
    return code


async def _last_price(session: aiohttp.ClientSession, address: str) -> float:
    url = f"{address}/v5/market/tickers?category=linear&symbol={SYMBOL}"
    async with session.get(url) as response:
        answer = msgspec.json.decode(await response.read())
    return float(answer["result"]["list"][0]["lastPrice"])


async def _sampled(told: Mapping[str, Any], server: int, hours: float) -> list[float]:
    """The server's memory under load after each simulated hour, and at the end."""
    samples = []
    left = hours
    while left > 0:
        span = min(1.0, left)
        await _loaded(told, ORDERS_PER_S, span * 3600 / FAST)
        samples.append(_resident_mb(server))
        left -= span
    return samples
