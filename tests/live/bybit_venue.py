"""The exchange on loopback as the driver's venue, and a client of it that keeps what the driver says."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from live.bybit.codec import BybitCodec
from live.bybit.connections import Connections
from live.bybit.venues import Keys, sandbox
from live.clock import VenueClock
from live.messages import (
    Answer,
    Evidence,
    Expired,
    Input,
    PrivateFrame,
    Query,
    QueryKind,
    QueryResult,
    RequestBody,
    Send,
)
from market.instruments import BUILT_IN, Instrument
from market.settings import Clock, Live
from market.units import SECOND_NS
from tests.proving.sandbox_server import Served

SYMBOL = "BTCUSDT"
T = TypeVar("T")


class Client:
    """The driver with its inputs in order, and what they say."""

    def __init__(
        self,
        venue: Served,
        *,
        trade: bool = True,
        demo: bool = False,
        client: int = 0,
        answer_s: float = 5.0,
        instruments: Mapping[str, Instrument] | None = None,
        **live: Any,
    ) -> None:
        keys = {**venue.description["keys"][client], **live.pop("keys", {})}
        self.venue, self.account = venue, venue.sandbox.exchange.clients[client]
        self.clock = VenueClock(Clock(**venue.description["clock"]))
        address = sandbox(venue.description["rest"], trade=trade and not demo, states_fees=not demo)
        self.codec = BybitCodec(
            {name: BUILT_IN[name] for name in venue.sandbox.exchange.instruments}
            if instruments is None
            else instruments
        )
        self.inputs: list[tuple[int, Input]] = []
        self.evidence: list[Evidence] = []
        self._came: queue.Queue[tuple[int, Input]] = queue.Queue()
        self._answer_s, self._bodies = answer_s, dict[int, RequestBody]()
        self.connections = Connections(
            address,
            Keys(keys["key"], keys["secret"]),
            self.codec,
            lambda ns, given: self._came.put((ns, given)),
            Live(**live),
            clock_ns=self.clock,
            speed=self.clock.speed,
        )

    def send(self, body: RequestBody, symbol: str = SYMBOL, answer_s: float | None = None) -> int:
        """Send a request; its number."""
        number = len(self._bodies) + 1
        self._bodies[number] = body
        wait_s = self._answer_s if answer_s is None else answer_s
        deadline_ns = self.clock() + round(wait_s * self.clock.speed * SECOND_NS)
        self.connections.send(
            Send(number=number, body=body, deadline_ns=deadline_ns, symbol=symbol)
        )
        return number

    def until(self, found: Callable[[], T], timeout_s: float = 60.0) -> T:
        """Take inputs until a condition holds; its result."""
        deadline = time.monotonic() + timeout_s
        while not (result := found()):
            assert time.monotonic() < deadline, self.evidence[-5:]
            try:
                ns, given = self._came.get(timeout=0.05)
            except queue.Empty:
                continue
            self.inputs.append((ns, given))
            if isinstance(given, PrivateFrame):
                self.evidence += self.codec.evidence(ns, given.frame)
            elif isinstance(given, Answer):
                self.evidence += self.codec.answer(ns, self._bodies[given.request], given.body)
        return result

    def ended(self, number: int) -> Input:
        """The answer to a request, or its expiry, whichever comes first."""

        def found() -> Input | None:
            return next(
                (
                    given
                    for _, given in self.inputs
                    if isinstance(given, Answer | Expired) and given.request == number
                ),
                None,
            )

        ended = self.until(found)
        assert ended is not None
        return ended

    def ask(self, body: RequestBody, symbol: str = SYMBOL) -> list[Evidence]:
        """What the answer to a request says."""
        answer = self.ended(self.send(body, symbol))
        assert isinstance(answer, Answer), answer
        return self.codec.answer(self.clock(), body, answer.body)

    def query(self, kind: QueryKind, symbol: str = SYMBOL, **more: Any) -> QueryResult:
        (result,) = self.ask(Query(kind=kind, symbol=symbol, **more))
        assert isinstance(result, QueryResult)
        return result

    def touch(self, side: int) -> int:
        """The market's best price of a side, ticks."""
        best: int = self.venue.run(lambda exchange: exchange.markets[SYMBOL].best(side))
        return best

    def fault(self, kind: str, what: str = "", times: int = 1, ms: int | None = None) -> None:
        from proving.sandbox.faults import Fault

        fault = Fault(kind, self.account.key, what, times, ms)
        self.venue.run(lambda _: self.venue.sandbox.faults.command(fault))


@contextmanager
def connected(venue: Served, **more: Any) -> Iterator[Client]:
    client = Client(venue, **more)
    client.connections.start()
    try:
        yield client
    finally:
        client.connections.stop(5.0)
