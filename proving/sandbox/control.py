"""The venue over HTTP: REST with the faults of its requests, and the control endpoints.

The control endpoints need no key; their port is bound to loopback:

    POST   /control/faults   {"kind": "answer_lost", "to": KEY, "what": "order/create", "times": 1}
    GET    /control/faults   the kinds, pending faults, and the log
    DELETE /control/faults   cancel pending faults, release held frames, correct the clock
    POST   /control/account  {"to": KEY, "do": "liquidate"}; `proving.sandbox.staging` says what else
    GET    /control/description       addresses, keys and clock, as the server's first line
    GET    /control/past?seconds=900&topics=orderbook.200.BTCUSDT,tickers.BTCUSDT
                             the frames of that time, or up to a minute more, as a capture (zstd)
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import web

from market.units import SECOND_NS
from proving.sandbox.faults import KINDS, Fault
from proving.sandbox.gateway import HttpAnswer
from proving.sandbox.staging import DEEDS, Staged, StagingError, stage
from proving.sandbox.venue import Venue

#: Polling interval and timeout of waiting for a client to hang up after a lost answer.
_POLL_S: Final = 0.05
_HANG_UP_TIMEOUT_S: Final = 120.0


class Control:
    """Answers HTTP requests to a venue."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a REST request, with the fault that happens to it."""
        gateway, faults = self._venue.gateway, self._venue.faults
        headers, body = request.headers, await request.read()
        outcome = faults.carry_out(
            headers.get("X-BAPI-API-KEY", ""),
            request.path.removeprefix("/v5/"),
            lambda: gateway.answer(request.method, request.raw_path, headers, body),
            gateway.refuse,
        )
        if outcome.delay_ns:
            is_due = asyncio.Event()
            faults.call_later(outcome.delay_ns, is_due.set)
            await is_due.wait()
        if outcome.answer is not None:
            return _response(outcome.answer)
        if not outcome.is_cut:
            await _hang_up(request)
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def faults(self, request: web.Request) -> web.Response:
        """Answer a request about faults."""
        faults = self._venue.faults
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
                "waiting": faults.pending,
                "log": list(faults.log),
            }
        )

    async def account(self, request: web.Request) -> web.Response:
        """Carry out a command about an account."""
        try:
            stage(self._venue.exchange, msgspec.json.decode(await request.read(), type=Staged))
        except (msgspec.MsgspecError, StagingError) as error:
            return _json({"error": str(error)}, 400)
        return _json({name: deed.says for name, deed in DEEDS.items()})

    async def past(self, request: web.Request) -> web.Response:
        """Answer a request for past frames; all topics that are kept by default."""
        past, now_ns = self._venue.past, self._venue.exchange.now_ns
        topics = [name for name in request.query.get("topics", "").split(",") if name]
        seconds = request.query.get("seconds", "")
        if not past.topics:
            return _json({"error": "nothing is kept: start the exchange with --past SECONDS"}, 409)
        if unknown := past.unknown(topics):
            return _json(
                {"error": f"{', '.join(unknown)}: not kept; {sorted(past.topics)} are"}, 400
            )
        if not seconds.isdigit():
            return _json({"error": f"seconds={seconds}: expected a whole number"}, 400)
        since_ns = now_ns - int(seconds) * SECOND_NS
        return _response(
            HttpAnswer(past.capture(topics or past.topics, since_ns)), "application/zstd"
        )


async def _hang_up(request: web.Request) -> None:
    """Wait until the client has closed its connection, or for the timeout."""
    waited = 0.0
    while (
        waited < _HANG_UP_TIMEOUT_S
        and request.transport is not None
        and not request.transport.is_closing()
    ):
        await asyncio.sleep(_POLL_S)
        waited += _POLL_S


def _json(content: Any, status: int = 200) -> web.Response:
    return _response(HttpAnswer(msgspec.json.encode(content), status))


def _response(answer: HttpAnswer, content_type: str = "application/json") -> web.Response:
    return web.Response(
        body=answer.body,
        status=answer.status,
        headers=answer.headers,
        content_type=content_type,
    )
