"""The sandbox as a server on loopback: one port for REST and WebSocket, and the simulated clock.

Simulated time starts with the server and runs at ``speed`` times the wall clock. When the machine cannot
keep up it falls behind; the ``clock`` that the server prints, and answers at `live.clock.CLOCK_PATH`, is
the mapping without that lag.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from live.clock import CLOCK_PATH
from live.loopback import DESCRIPTION_PATH
from market.units import SECOND_NS, day_start_ns
from proving.sandbox.control import Control
from proving.sandbox.exchange import FIRST_DAY, START_NS
from proving.sandbox.staging import states_of
from proving.sandbox.venue import Venue

#: How often simulated time advances, and how far at most before requests are served again.
STEP_S: Final = 0.005
MAX_ADVANCE_NS: Final = 200_000_000


class Sandbox:
    """An exchange and its endpoints; call `start` and `stop` in one event loop.

    The market begins at ``begins_ns``, five minutes before clients come; without one it runs at the
    present time, late by what building it takes. ``fault_rates`` schedules random faults
    (`proving.sandbox.faults.schedule`); every fault is written to
    ``fault_log`` as a JSON line that `proving.sandbox.faults.read_log` reads. ``limited`` turns rate
    limits on; with ``past_s`` so many seconds pass before clients come, who can ask for the frames of so
    long. Accounts are found in ``states`` (`proving.sandbox.staging.STATES`). ValueError for a speed or number of clients out of range.
    """

    def __init__(
        self,
        seed: int,
        *,
        speed: float = 1.0,
        profile_name: str = "default",
        symbols: Sequence[str] = ("BTCUSDT",),
        begins_ns: int | None = day_start_ns(FIRST_DAY),
        clients: int = 2,
        limited: bool = True,
        demo: bool = False,
        past_s: int = 0,
        latency_ms: float = 0.0,
        states: str = "",
        fault_rates: Mapping[str, float] | None = None,
        fault_log: Path | None = None,
    ) -> None:
        if not 0 < speed <= 1000:
            raise ValueError(f"speed {speed}: expected more than 0 and at most 1000")
        if not 1 <= clients <= 1000:
            raise ValueError(f"{clients} accounts: expected 1 to 1000")
        self.speed, found = speed, states_of(states)
        if begins_ns is None:
            begins_ns = (time.time_ns() // SECOND_NS - past_s) * SECOND_NS - START_NS
        self.venue = Venue(
            seed,
            profile_name,
            symbols,
            self.catch_up,
            limited=limited,
            demo=demo,
            past_s=past_s,
            latency_ms=latency_ms,
            fault_rates=fault_rates,
            fault_log=fault_log,
            clients=clients,
            begins_ns=begins_ns,
        )
        self.exchange, self.faults = self.venue.exchange, self.venue.faults
        for client in self.exchange.clients:
            for state in found:
                state.apply(client)
        self._control = Control(self.venue)
        self.address = ""
        self._start_wall_ns = self._start_monotonic_ns = 0
        self._runner: web.AppRunner | None = None
        self._advancing: asyncio.Task[None] | None = None
        self._is_behind = False

    async def start(self, port: int = 0) -> dict[str, Any]:
        """Serve on loopback; returns `description` once clients can connect."""
        app = web.Application(client_max_size=1 << 20)
        for path, endpoint in self.venue.endpoints.items():
            app.router.add_get(path, endpoint.serve)
        app.router.add_route("*", "/control/faults", self._control.faults)
        app.router.add_post("/control/account", self._control.account)
        app.router.add_get("/control/past", self._control.past)
        app.router.add_get(DESCRIPTION_PATH, self._describe)
        app.router.add_get(CLOCK_PATH, self._clock)
        app.router.add_route("*", "/{path:.*}", self._control.answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        bound = self._runner.addresses[0][1]
        self.address = f"127.0.0.1:{bound}"
        self._start_wall_ns, self._start_monotonic_ns = time.time_ns(), time.monotonic_ns()
        self._advancing = asyncio.create_task(self._advance())
        return self.description()

    def description(self) -> dict[str, Any]:
        """Addresses, keys and the clock: simulated = simulated_ns + speed · (wall - wall_ns)."""
        streams = {
            f"ws_{path.split('/')[2]}": f"ws://{self.address}{path}"
            for path in self.venue.endpoints
        }
        return {
            "rest": f"http://{self.address}",
            **streams,
            "keys": [{"key": c.key, "secret": c.secret} for c in self.exchange.clients],
            "clock": {
                "wall_ns": self._start_wall_ns,
                "simulated_ns": self.exchange.start_ns,
                "speed": self.speed,
            },
        }

    async def _describe(self, _: web.Request) -> web.Response:
        return web.json_response(self.description())

    async def _clock(self, _: web.Request) -> web.Response:
        return web.json_response(self.description()["clock"])

    async def stop(self) -> None:
        """Stop simulated time and close all connections."""
        if self._advancing is not None:
            self._advancing.cancel()
            await asyncio.gather(self._advancing, return_exceptions=True)
        for endpoint in self.venue.endpoints.values():
            await endpoint.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def catch_up(self) -> None:
        """Advance simulated time to the present, by `MAX_ADVANCE_NS` at most."""
        elapsed_ns = int((time.monotonic_ns() - self._start_monotonic_ns) * self.speed)
        exchange = self.exchange
        present_ns = exchange.start_ns + elapsed_ns
        until_ns = min(present_ns, exchange.now_ns + MAX_ADVANCE_NS)
        self.venue.advance(until_ns)
        self._is_behind = until_ns < present_ns

    async def _advance(self) -> None:
        while True:
            self.catch_up()
            # Behind its clock it only lets connections have their turn: at 20 x a pause at every step is as
            # long as the step, and what a busy machine takes away would never be made up for.
            await asyncio.sleep(0 if self._is_behind else STEP_S)


def run(sandbox: Sandbox, port: int, ready: Callable[[dict[str, Any]], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``ready`` is called with `Sandbox.description`.

    OSError when the port is taken; an exception that stops simulated time is raised again.
    """
    asyncio.run(_serve(sandbox, port, ready))


async def _serve(sandbox: Sandbox, port: int, ready: Callable[[dict[str, Any]], None]) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # Exempt everything loaded so far from garbage collection, whose pauses would delay answers.
    gc.collect()
    gc.freeze()
    ready(await sandbox.start(port))
    advancing = sandbox._advancing
    assert advancing is not None
    waiting = asyncio.create_task(stopped.wait())
    done, _ = await asyncio.wait({waiting, advancing}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    await sandbox.stop()
    if advancing in done:
        advancing.result()
