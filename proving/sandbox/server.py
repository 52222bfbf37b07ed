"""The sandbox as a server on loopback: one port for REST and WebSocket, and the clock of the world.

Simulated time starts when the server does and runs at ``speed`` times the wall clock; when the
machine cannot keep up it falls behind, and the mapping of the ``clock`` is what it would be without.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from market.console import Result, names
from market.settings import Settings
from proving.sandbox.connection import Connection, Endpoint
from proving.sandbox.control import Control
from proving.sandbox.exchange import Exchange
from proving.sandbox.faults import Faults, rates_of, schedule
from proving.sandbox.private import PrivateStream
from proving.sandbox.rest import Rest
from proving.sandbox.stream import PublicStream
from proving.sandbox.trade import Trade
from proving.synthetic.profiles import profile

#: How often the world moves, and how far at most before requests are heard again.
STEP_S: Final = 0.005
STRIDE_NS: Final = 200_000_000


class Sandbox:
    """A world and its endpoints; `start` and `stop` in one event loop.

    ``fault_rates`` are of faults at random (`proving.sandbox.faults.schedule`), all of which a file
    ``fault_log`` is written of, as JSON lines that `proving.sandbox.faults.read_log` reads.
    """

    def __init__(
        self,
        seed: int,
        *,
        speed: float = 1.0,
        profile_name: str = "default",
        symbols: Sequence[str] = ("BTCUSDT",),
        clients: int = 2,
        limited: bool = True,
        fault_rates: Mapping[str, float] | None = None,
        fault_log: Path | None = None,
    ) -> None:
        if not 0 < speed <= 1000:
            raise ValueError(f"speed {speed}: expected more than 0 and at most 1000")
        if not 1 <= clients <= 1000:
            raise ValueError(f"{clients} accounts: expected 1 to 1000")
        self.speed = speed
        self.stream, self.private = PublicStream(), PrivateStream()
        self.exchange = Exchange(
            profile(profile_name),
            seed,
            symbols,
            clients=clients,
            listen=self.stream.publish,
            tell=self.private.tell,
        )
        self.stream.follow(self.exchange)
        keys = [client.key for client in self.exchange.clients]
        self.faults = Faults(keys, self._connections, self._restart, fault_log)
        self.faults.advance(self.exchange.now_ns)
        self.faults.follow(schedule(seed, fault_rates or {}, self.exchange.now_ns))
        self.stream.deliver = self.private.deliver = self.faults.frame
        self.private.follow(self.exchange, self.catch_up, self.faults.wall_ns)
        rest = Rest(self.exchange, self.catch_up, limited, self.faults.wall_ns)
        self.trade = Trade(rest, self.faults.wall_ns)
        self._control = Control(self.faults, rest.answer)
        self.trade.answering = self._control.reply
        self._wall_ns = self._begun_ns = 0
        self._runner: web.AppRunner | None = None
        self._moving: asyncio.Task[None] | None = None
        self.address = ""

    @property
    def _endpoints(self) -> dict[str, Endpoint]:
        return {
            "/v5/public/linear": self.stream,
            "/v5/private": self.private,
            "/v5/trade": self.trade,
        }

    async def start(self, port: int = 0) -> dict[str, Any]:
        """Serve on loopback; what a client has to know, once it can connect."""
        app = web.Application(client_max_size=1 << 20)
        for path, endpoint in self._endpoints.items():
            app.router.add_get(path, endpoint.serve)
        app.router.add_route("*", "/control/faults", self._control.command)
        app.router.add_route("*", "/{path:.*}", self._control.answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        bound = self._runner.addresses[0][1]
        self.address = f"127.0.0.1:{bound}"
        self._wall_ns, self._begun_ns = time.time_ns(), time.monotonic_ns()
        self._moving = asyncio.create_task(self._move())
        return self.description()

    def description(self) -> dict[str, Any]:
        """Addresses, keys and the clock: simulated = simulated_ns + speed · (wall - wall_ns)."""
        return {
            "rest": f"http://{self.address}",
            "ws_public": f"ws://{self.address}/v5/public/linear",
            "ws_private": f"ws://{self.address}/v5/private",
            "ws_trade": f"ws://{self.address}/v5/trade",
            "keys": [{"key": c.key, "secret": c.secret} for c in self.exchange.clients],
            "clock": {
                "wall_ns": self._wall_ns,
                "simulated_ns": self.exchange.start_ns,
                "speed": self.speed,
            },
        }

    async def stop(self) -> None:
        """End connections and the world."""
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)
        for endpoint in self._endpoints.values():
            await endpoint.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def catch_up(self) -> None:
        """Let simulated time go on to the present, or a stride towards it."""
        passed = int((time.monotonic_ns() - self._begun_ns) * self.speed)
        exchange = self.exchange
        due_ns = min(exchange.start_ns + passed, exchange.now_ns + STRIDE_NS)
        while exchange.now_ns < due_ns:
            stop_ns = self.faults.next_ns
            exchange.advance(due_ns if stop_ns is None else min(due_ns, stop_ns))
            self.faults.advance(exchange.now_ns)
        self.stream.candles()

    def _connections(self) -> list[Connection]:
        return [c for endpoint in self._endpoints.values() for c in endpoint.connections]

    def _restart(self) -> None:
        for tape in self.exchange.tapes.values():
            tape.restart()

    async def _move(self) -> None:
        while True:
            self.catch_up()
            await asyncio.sleep(STEP_S)


def run(sandbox: Sandbox, port: int, ready: Callable[[dict[str, Any]], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``ready`` is told what clients have to know.

    Raises OSError when the port is taken, and what has stopped the world when something has.
    """
    asyncio.run(_serve(sandbox, port, ready))


async def _serve(sandbox: Sandbox, port: int, ready: Callable[[dict[str, Any]], None]) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # What was loaded stays: looking through it for garbage again and again would hold up answers.
    gc.collect()
    gc.freeze()
    ready(await sandbox.start(port))
    assert sandbox._moving is not None
    waiting = asyncio.create_task(stopped.wait())
    done, _ = await asyncio.wait({waiting, sandbox._moving}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    failed = sandbox._moving in done
    moving = sandbox._moving
    await sandbox.stop()
    if failed:
        moving.result()


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 sandbox`."""
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    parser.add_argument("--seed", type=int, default=1, help="of the market, keys and ids")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated time to the clock's")
    parser.add_argument("--profile", metavar="NAME", default="default", help="of the market")
    parser.add_argument("--symbols", metavar="A,B", help="default: BTCUSDT")
    parser.add_argument("--accounts", type=int, default=2, metavar="N", help="funded clients")
    parser.add_argument("--no-rate-limit", action="store_true", help="answer every request")
    parser.add_argument(
        "--faults", default="", metavar="KIND=N,…", help="so many a simulated minute, all=N for all"
    )
    parser.add_argument(
        "--fault-log", type=Path, metavar="FILE", help="what went wrong, when, to whom"
    )


def command(_: Settings, options: argparse.Namespace) -> Result:
    """`l2 sandbox`: serve until SIGTERM or SIGINT; the first line says where and with which keys."""
    sandbox = Sandbox(
        options.seed,
        speed=options.speed,
        profile_name=options.profile,
        symbols=names(options.symbols) or ("BTCUSDT",),
        clients=options.accounts,
        limited=not options.no_rate_limit,
        fault_rates=rates_of(options.faults),
        fault_log=options.fault_log,
    )
    run(sandbox, options.port, lambda ready: print(json.dumps(ready), flush=True))
    return None
