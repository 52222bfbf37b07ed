"""The venue in simulated time: no network, no thread, no wall clock; a function of seed and requests.

    venue = VirtualVenue(seed=7)
    client = venue.clients[0]
    venue.connect("public", topics=["orderbook.200.BTCUSDT", "publicTrade.BTCUSDT"])
    venue.connect("private", client, ["order", "execution", "position", "wallet"])
    for delivery in venue.advance(until_ns): ...          # what left the venue, in order
    outcome = venue.request(client, "order/create", {...}, stamp_ns)   # arrives now
    venue.command("cut_after", to=client.key, what="order/create")     # see `faults.KINDS`
    venue.stage("liquidate", to=client.key)                            # see `staging.DEEDS`

Nothing takes time on the way: what a client does arrives at the driver's ``clock``, up to which the venue is
advanced first, and the driver delays deliveries and answers as its network does. The venue's wall clock is simulated time, with the error that
a fault gives it. A process that forks carries on two venues that know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import msgspec

from market.units import MS_NS, SECOND_NS, day_start_ns
from proving.sandbox.accounts import Client
from proving.sandbox.exchange import CYCLE_NS, FIRST_DAY, START_NS
from proving.sandbox.faults import Fault, Outcome, Timer
from proving.sandbox.gateway import ROUTES, HttpAnswer
from proving.sandbox.protocol import signature
from proving.sandbox.staging import Staged, stage
from proving.sandbox.streams import Connection
from proving.sandbox.venue import Venue

_PATHS: Final = {"public": "/v5/public/linear", "private": "/v5/private", "trade": "/v5/trade"}


class Delivery(NamedTuple):
    """A frame that left the venue, and when; None is the end of the connection."""

    time_ns: int
    connection: VirtualConnection
    frame: bytes | None


class VirtualConnection(Connection):
    """A connection whose frames go to ``put``; None is its end."""

    def __init__(self, name: str, put: Callable[[Connection, bytes | None], None]) -> None:
        super().__init__(name)
        self.is_open = True
        self._deliver = put
        self._held: list[bytes] | None = None

    def put(self, frame: bytes) -> None:
        if self._held is not None:
            self._held.append(frame)
        elif self.is_open:
            self._deliver(self, frame)

    def pause(self) -> None:
        self._held = [] if self._held is None else self._held

    def resume(self) -> None:
        held, self._held = self._held, None
        for frame in held or ():
            self.put(frame)

    def end(self, orderly: bool) -> None:
        if self.is_open:
            self.is_open, self._held = False, None
            self._deliver(self, None)


class VirtualVenue:
    """A venue that stands still unless `advance` is called.

    ``market`` are options of `SandboxExchange`: ``begins_ns``, ``clients``, ``deposit_e8``. Frames leave at
    the end of a cycle: ``cycle_ns`` divides 100 ms, and 20 ms is the venue's own; longer ones are cheaper.
    with 100 ms a simulated minute takes 0.1 core-seconds.
    """

    def __init__(
        self,
        seed: int,
        *,
        profile_name: str = "default",
        symbols: Sequence[str] = ("BTCUSDT",),
        cycle_ns: int = CYCLE_NS,
        start_ns: int = START_NS,
        begins_ns: int = day_start_ns(FIRST_DAY),
        limited: bool = True,
        fault_rates: Mapping[str, float] | None = None,
        **market: Any,
    ) -> None:
        self.clock: Callable[[], int] | None = (
            None  #: of the driver; None: what is done arrives now
        )
        self._deliveries: list[Delivery] = []
        self._stamped = 0
        self.venue = Venue(
            seed,
            profile_name,
            symbols,
            lambda: None,
            limited=limited,
            fault_rates=fault_rates,
            clock_ns=None,
            later=self._later,
            prebuilds=False,
            cycle_ns=cycle_ns,
            start_ns=start_ns,
            begins_ns=begins_ns,
            **market,
        )
        self.exchange, self.faults = self.venue.exchange, self.venue.faults
        self.clients = self.exchange.clients

    @property
    def now_ns(self) -> int:
        """Simulated time; only `advance` moves it."""
        return self.exchange.now_ns

    @property
    def next_ns(self) -> int:
        """When something leaves the venue by itself, at the earliest."""
        exchange_ns, fault_ns = self.exchange.next_ns, self.faults.next_ns
        next_ns = exchange_ns if fault_ns is None else min(exchange_ns, fault_ns)
        return max(next_ns, self.now_ns + 1)

    def advance(self, until_ns: int) -> list[Delivery]:
        """Advance simulated time; what left the venue since the last call, in order of time."""
        self._advance(until_ns)
        deliveries, self._deliveries, self._stamped = self._deliveries, [], 0
        return deliveries

    def _advance(self, until_ns: int) -> None:
        self._stamp()
        while self.now_ns < until_ns:
            self.venue.advance(min(until_ns, self.next_ns))
            self._stamp()

    def catch_up(self) -> None:
        """Advance to the driver's clock: before what arrives now comes what happens until then."""
        if self.clock is not None:
            self._advance(self.clock())

    def _stamp(self) -> None:
        """Date what was put since the last call: the market runs ahead of the exchange in a cycle."""
        for at in range(self._stamped, len(self._deliveries)):
            self._deliveries[at] = self._deliveries[at]._replace(time_ns=self.now_ns)
        self._stamped = len(self._deliveries)

    def _put(self, connection: Connection, frame: bytes | None) -> None:
        assert isinstance(connection, VirtualConnection)
        self._deliveries.append(Delivery(self.now_ns, connection, frame))
        if frame is None:
            self._endpoint(connection.name).lose(connection)

    def _later(self, delay_s: float, action: Callable[[], None]) -> Timer:
        return self.faults.call_later(round(delay_s * SECOND_NS), action)

    def _endpoint(self, name: str) -> Any:
        return self.venue.endpoints[_PATHS[name.partition("/")[0]]]

    # -- what a client does ------------------------------------------------------------------------

    def connect(
        self, stream: str, client: Client | None = None, topics: Iterable[str] = ()
    ) -> VirtualConnection:
        """A new connection to the public, private or trade endpoint, authenticated and subscribed.

        The answers to that come as deliveries.
        """
        self.catch_up()
        endpoint = self._endpoint(stream)
        connection: VirtualConnection = endpoint.open(
            lambda name: VirtualConnection(name, self._put)
        )
        if client is not None:
            expires = self.faults.wall_ns() // MS_NS + 10_000
            sign = signature(client.secret, f"GET/realtime{expires}".encode())
            self.send(connection, {"op": "auth", "args": [client.key, expires, sign]})
        if names := list(topics):
            self.send(connection, {"op": "subscribe", "args": names})
        return connection

    def send(self, connection: VirtualConnection, frame: Mapping[str, Any] | str) -> None:
        """A frame of a client arrives; nothing happens when its connection has ended."""
        self.catch_up()
        if connection.is_open:
            text = frame if isinstance(frame, str) else msgspec.json.encode(frame).decode()
            self._endpoint(connection.name).answer(connection, text)

    def disconnect(self, connection: VirtualConnection) -> None:
        """A client has closed its connection, or died."""
        self.catch_up()
        connection.end(orderly=True)

    def request(
        self, client: Client, path: str, params: Mapping[str, Any], stamp_ns: int | None = None
    ) -> Outcome[HttpAnswer]:
        """A REST request of a client ("order/create") arrives, with its timestamp where that is private.

        ``params`` are the query (of strings) or the body. The outcome's answer leaves after its delay;
        None: never, and the connection may be cut.
        """
        self.catch_up()
        stamp = str((self.faults.wall_ns() if stamp_ns is None else stamp_ns) // MS_NS)
        gateway = self.venue.gateway

        def answer() -> HttpAnswer:
            if ROUTES[path].private:
                return gateway.answer_unsigned(client, path, dict(params), stamp)
            return gateway.answer("GET", f"/v5/{path}?{urlencode(params)}", {}, b"")

        return self.faults.carry_out(client.key, path, answer, gateway.refuse)

    def command(
        self, kind: str, to: str = "", what: str = "", times: int = 1, ms: int | None = None
    ) -> None:
        """Make a fault happen (`proving.sandbox.faults.KINDS`)."""
        self.catch_up()
        self.faults.command(Fault(kind, to, what, times, ms))

    def stage(self, do: str, **fields: str) -> None:
        """Make something happen to an account without its client (`proving.sandbox.staging.DEEDS`)."""
        self.catch_up()
        stage(self.exchange, Staged(do, **fields))
