"""Order entry over WebSocket: the order routes of REST under their names with dots, each with an answer.

A connection authenticates first. A request names itself (`reqId`, once a connection) and has the time
and receive window of a REST request in its header; limits are those of the routes, shared with REST.
What becomes of an order is told by the private stream, before the answer or after it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from proving.sandbox.connection import Connection, Endpoint, decoded
from proving.sandbox.refusal import RefusedError
from proving.sandbox.rest import Rest
from proving.sandbox.signing import WINDOW_MS, check_window, client_of_socket
from proving.sandbox.trading import Client

Frame = dict[str, Any]

OPERATIONS: Final = {
    f"order.{verb}{batch}": f"order/{verb}{batch}"
    for verb in ("create", "amend", "cancel")
    for batch in ("", "-batch")
}
LONGEST_ID: Final = 36
#: Answers take so long. pybit notes whom an answer is for only after it has sent the request, and drops
#: one that is faster, as none of a venue far away is.
ANSWER_S: Final = 0.003
#: Names of requests remembered a connection.
REMEMBERED: Final = 10_000


class Request:
    """One request for an operation, checked; nothing has come of it yet."""

    def __init__(self, rest: Rest, client: Client, frame: Frame, connection: Connection) -> None:
        self.client, self.path = client, OPERATIONS[frame["op"]]
        self._rest, self._frame, self._connection = rest, frame, connection

    def carried_out(self, now_ms: int) -> Frame:
        """Do it; the answer."""
        done = self._rest.carry_out(self.client, self.path, self._frame["args"][0], now_ms)
        return self._answer(now_ms, done.code, done.message, done.result, done.beside, done.headers)

    def refused(self, now_ms: int, code: int, message: str) -> Frame:
        """The answer that it is not done."""
        return self._answer(now_ms, code, message, {}, {}, {})

    def _answer(
        self,
        now_ms: int,
        code: int,
        message: str,
        data: Frame,
        beside: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> Frame:
        return {
            **named(self._frame),
            "retCode": code,
            "retMsg": message,
            "op": self._frame["op"],
            "data": data,
            "retExtInfo": dict(beside),
            "header": {**headers, "Traceid": uuid.uuid4().hex, "Timenow": str(now_ms)},
            "connId": self._connection.identity,
        }


class Trade(Endpoint):
    """``answering`` is how a request comes by its answer; ``rest`` carries it out."""

    name = "trade"

    def __init__(self, rest: Rest, wall_ns: Callable[[], int] = time.time_ns) -> None:
        super().__init__()
        self.answering: Callable[[Connection, Request, int], None] = _answer
        self._rest, self._wall_ns = rest, wall_ns
        self._clients = {client.key: client for client in rest.exchange.clients}
        self._named: dict[Connection, dict[str, None]] = {}

    def answer(self, connection: Connection, text: str) -> None:
        frame, unread = decoded(text)
        now_ms = self._wall_ns() // 1_000_000
        op = frame.get("op") if isinstance(frame.get("op"), str) else ""
        reply: Frame = {"retCode": 0, "retMsg": "OK", "op": op}
        try:
            if unread:
                raise RefusedError(10001, unread)
            if op == "ping":
                reply |= {"op": "pong", "data": [str(now_ms)]}
            elif op == "auth":
                self._authenticate(connection, frame, now_ms)
            else:
                self.answering(connection, self._request(connection, frame, now_ms), now_ms)
                return
        except RefusedError as refused:
            reply |= {"retCode": refused.code, "retMsg": refused.message}
            if op in OPERATIONS:
                reply |= {"data": {}, "retExtInfo": {}, "header": {"Timenow": str(now_ms)}}
        say_soon(connection, {**named(frame), **reply, "connId": connection.identity})

    def leave(self, connection: Connection) -> None:
        self._named.pop(connection, None)

    def _authenticate(self, connection: Connection, frame: Frame, now_ms: int) -> None:
        if connection.client is not None:
            raise RefusedError(20001, "Repeat auth")
        connection.client = client_of_socket(frame.get("args"), now_ms, self._clients)

    def _request(self, connection: Connection, frame: Frame, now_ms: int) -> Request:
        """A request that can be counted and tried; refused when it is none."""
        if connection.client is None:
            raise RefusedError(10004, "Request not authorized")
        if frame.get("op") not in OPERATIONS:
            raise RefusedError(10404, "op type is not found")
        name = frame.get("reqId", "")
        if not isinstance(name, str) or len(name) > LONGEST_ID:
            raise RefusedError(10001, "params error: reqId invalid")
        header, args = frame.get("header"), frame.get("args")
        if not isinstance(header, dict):
            raise RefusedError(10001, "params error: header invalid")
        stamp, window = header.get("X-BAPI-TIMESTAMP"), header.get("X-BAPI-RECV-WINDOW", WINDOW_MS)
        check_window(str(stamp), str(window), now_ms)
        if not isinstance(args, list) or len(args) != 1 or not isinstance(args[0], dict):
            raise RefusedError(10001, "params error: args invalid")
        if name:
            names = self._named.setdefault(connection, {})
            if name in names:
                raise RefusedError(20006, "reqId is duplicate")
            names[name] = None
            if len(names) > REMEMBERED:
                del names[next(iter(names))]
        return Request(self._rest, connection.client, frame, connection)


def _answer(connection: Connection, request: Request, now_ms: int) -> None:
    say_soon(connection, request.carried_out(now_ms))


def say_soon(connection: Connection, frame: Frame) -> None:
    """Send an answer when a venue's could be there at the earliest."""
    asyncio.get_running_loop().call_later(ANSWER_S, connection.say, frame)


def named(frame: Frame) -> Frame:
    """A request's id, when it has one."""
    return {"reqId": frame["reqId"]} if frame.get("reqId") else {}
