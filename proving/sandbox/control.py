"""The control endpoint, and how faults befall requests over REST and WebSocket.

    POST   /control/faults   {"kind": "answer_lost", "to": KEY, "what": "order/create", "times": 1}
    GET    /control/faults   the kinds, what still waits to happen, and the log
    DELETE /control/faults   nothing waits any more; what is held goes out, the clock is right again

It is there for whoever can reach the server's port, which is bound to loopback, and asks for no key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from market.units import MS_NS
from proving.sandbox.connection import Connection
from proving.sandbox.faults import BEFORE, CODES, KINDS, Fault, Faults
from proving.sandbox.trade import Request, say_soon

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: A client that has lost an answer is looked after so often, and let go after so long.
_LOOK_S: Final = 0.05
_LOST_S: Final = 120.0


class Control:
    """``answer`` is how a request over REST is answered when nothing is wrong."""

    def __init__(self, faults: Faults, answer: Answer) -> None:
        self._faults, self._answer = faults, answer

    async def command(self, request: web.Request) -> web.Response:
        """A request to the control endpoint."""
        faults = self._faults
        try:
            if request.method == "POST":
                faults.command(msgspec.json.decode(await request.read(), type=Fault))
            elif request.method == "DELETE":
                faults.clear()
            elif request.method != "GET":
                raise ValueError(f"{request.method}: expected GET, POST or DELETE")
        except (msgspec.MsgspecError, ValueError) as error:
            return _json({"error": str(error)}, 400)
        return _json(
            {
                "kinds": {name: kind.says for name, kind in KINDS.items()},
                "waiting": faults.waiting,
                "log": list(faults.log),
            }
        )

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A request over REST, and what befalls it."""
        key, route = request.headers.get("X-BAPI-API-KEY", ""), request.path.removeprefix("/v5/")
        fault = self._faults.request(key, route)
        if fault is None:
            return await self._answer(request)
        if fault.kind not in BEFORE:
            response = await self._answer(request)
        if fault.kind == "answer_late":
            late = asyncio.Event()
            self._faults.at(self._faults.now_ns + (fault.ms or 0) * MS_NS, late.set)
            await late.wait()
            return response
        if fault.kind in CODES:
            return self._made_up(fault.kind)
        if fault.kind == "answer_lost":
            await _gone(request)
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    def reply(self, connection: Connection, request: Request, now_ms: int) -> None:
        """A request for order entry over WebSocket, and what befalls it."""
        fault = self._faults.request(request.client.key, request.path)
        if fault is None:
            say_soon(connection, request.carried_out(now_ms))
            return
        frame = request.carried_out(now_ms) if fault.kind not in BEFORE else {}
        if fault.kind in CODES:
            code, message, _ = CODES[fault.kind]
            say_soon(connection, request.refused(now_ms, code, message))
        elif fault.kind == "answer_late":
            late_ns = self._faults.now_ns + (fault.ms or 0) * MS_NS
            self._faults.at(late_ns, lambda: connection.say(frame))
        elif fault.kind != "answer_lost":
            connection.end(orderly=False)

    def _made_up(self, kind: str) -> web.Response:
        code, message, status = CODES[kind]
        now_ms = self._faults.wall_ns() // MS_NS
        envelope = {
            "retCode": code,
            "retMsg": message,
            "result": {},
            "retExtInfo": {},
            "time": now_ms,
        }
        headers = {
            "X-Bapi-Limit": "10",
            "X-Bapi-Limit-Status": "0",
            "X-Bapi-Limit-Reset-Timestamp": str(now_ms + 100),
        }
        return _json(envelope, status, headers)


async def _gone(request: web.Request) -> None:
    """Until the client has given up waiting."""
    waited = 0.0
    while waited < _LOST_S and request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(_LOOK_S)
        waited += _LOOK_S


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(content),
        status=status,
        headers=headers,
        content_type="application/json",
    )
