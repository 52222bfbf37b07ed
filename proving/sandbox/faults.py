"""Faults: what a venue does wrong, to whom and when, all of it on record.

A fault is commanded (`Faults.command`; over HTTP by `proving.sandbox.control`), or drawn from a seed at
rates a simulated minute (`schedule`, `Faults.follow`); either way the log says what happened.

``to`` is a client's key or a connection ("public/1" is the first one to the public stream), empty for
whoever comes next. ``what`` is the beginning of a route ("order/create") or topic ("orderbook.50"),
empty for any. ``times`` is how often it happens, ``ms`` how long it lasts: simulated time, except for
the clock. Faults act at three places: a request on its way in and its answer on its way out
(`Faults.request`), a frame on its way to a reader (`Faults.frame`), and a connection. The exchange
knows nothing of them; only a restart is told to it.

Frames of one topic keep their order unless ``swap`` is asked for, which no venue does.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from market.errors import UsageError
from market.units import MINUTE_NS, MS_NS
from proving.sandbox.connection import Connection

#: What is held until something passes it goes out after so long all the same.
_PATIENCE_MS: Final = 1000
#: Entries of the log kept in memory; a file has all.
KEPT: Final = 10_000


class Kind(NamedTuple):
    """``place`` is where it acts, ``ms`` how long it lasts when nothing else is said."""

    place: str
    says: str
    ms: int = 0


KINDS: Final[dict[str, Kind]] = {
    "answer_lost": Kind("request", "carried out, and never answered"),
    "answer_late": Kind("request", "carried out, and answered after ms", 2000),
    "cut_before": Kind("request", "the connection is cut, and nothing is carried out"),
    "cut_after": Kind("request", "carried out, and the connection is cut without an answer"),
    "timed_out": Kind("request", "carried out, and answered with 10000, as if it might not be"),
    "rate_limited": Kind("request", "refused with 10006"),
    "maintenance": Kind("request", "refused with 10016"),
    "overloaded": Kind("request", "refused with HTTP status 429"),
    "banned": Kind("request", "refused with HTTP status 403"),
    "drop": Kind("frame", "a frame is left out, which in a book is a gap"),
    "duplicate": Kind("frame", "a frame is sent twice"),
    "delay": Kind("frame", "a topic comes ms late, in its order", 2000),
    "overtake": Kind("frame", "a frame waits until one of another topic has passed it"),
    "swap": Kind("frame", "a frame waits until the next of its topic has passed it"),
    "silence": Kind("connection", "nothing is sent for ms, all of it afterwards", 5000),
    "close": Kind("connection", "the connection is closed"),
    "abort": Kind("connection", "the connection is cut"),
    "restart": Kind("venue", "every book begins anew with a snapshot of u = 1"),
    "clock": Kind("venue", "the venue's wall clock is wrong by ms from now on", 5000),
}
#: Code, message and HTTP status of an answer that is made up.
CODES: Final = {
    "timed_out": (10000, "Server Timeout", 200),
    "rate_limited": (10006, "Too many visits. Exceeded the API Rate Limit.", 200),
    "maintenance": (10016, "Internal System Error. Services are restarting.", 200),
    "overloaded": (429, "System level frequency protection.", 429),
    "banned": (10010, "access too frequent", 403),
}
#: Kinds before which a request is not carried out.
BEFORE: Final = ("cut_before", "rate_limited", "maintenance", "overloaded", "banned")


class FaultError(UsageError):
    """A fault, or a rate of faults, that cannot be; the message says what can."""


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """A fault that is to happen."""

    kind: str
    to: str = ""
    what: str = ""
    times: int = 1
    ms: int | None = None

    def checked(self) -> Fault:
        """With its duration; FaultError says what is wrong with it."""
        kind = KINDS.get(self.kind)
        if kind is None:
            raise FaultError(f"{self.kind}: no such fault; kinds are {', '.join(KINDS)}")
        if not 1 <= self.times <= 1_000_000:
            raise FaultError(f"times {self.times}: expected 1 to 1,000,000")
        ms = kind.ms if self.ms is None else self.ms
        if abs(ms) > 86_400_000 or (ms < 0 and self.kind != "clock"):
            raise FaultError(f"ms {ms}: expected 0 to 86,400,000, less only for clock")
        return msgspec.structs.replace(self, ms=ms)


class Happened(msgspec.Struct, frozen=True):
    """A line of the log: what happened, when in simulated time, and to whom.

    ``what`` is the route or topic, and of a fault that found nobody it is ``nobody``.
    """

    at_ns: int
    kind: str
    to: str
    what: str
    ms: int


class Faults:
    """What is to go wrong, and what has.

    ``keys`` are those of the clients, ``connections`` gives those that are open, oldest first, and
    ``restart`` begins all books anew.
    """

    def __init__(
        self,
        keys: Sequence[str],
        connections: Callable[[], Sequence[Connection]],
        restart: Callable[[], None],
        log: Path | None = None,
    ) -> None:
        self.now_ns = 0  #: simulated; nothing happens without `advance`
        self.clock_ms = 0  #: how wrong the venue's wall clock is
        self.log: deque[Happened] = deque(maxlen=KEPT)
        self._keys, self._connections, self._restart = tuple(keys), connections, restart
        self._path = log
        self._armed: list[Fault] = []
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._held: dict[tuple[Connection, str], _Held] = {}
        self._plan: Iterator[Due] = iter(())
        self._next: Due | None = None
        if log is not None:
            log.write_bytes(b"")

    # -- what is to happen -------------------------------------------------------------------------

    @property
    def waiting(self) -> tuple[Fault, ...]:
        """Faults that wait for a request or a frame."""
        return tuple(self._armed)

    def command(self, fault: Fault) -> None:
        """Let a fault happen: to the next request or frame that it fits, or at once."""
        fault = fault.checked()
        place = KINDS[fault.kind].place
        if place in ("request", "frame"):
            self._armed.append(fault)
        elif place == "venue":
            self._of_venue(fault)
        else:
            for _ in range(fault.times):
                self._of_connection(fault)

    def follow(self, plan: Iterator[Due]) -> None:
        """Let the faults of a schedule happen, each at its time."""
        self._plan = plan
        self._next = next(plan, None)

    def _happen(self, due: Due) -> None:
        place = KINDS[due.kind].place
        if place == "request":
            there = list(self._keys)
        else:
            there = [connection.name for connection in self._connections()]
        fault = Fault(kind=due.kind, ms=due.ms)
        if place != "venue":
            if not there:
                self._note(fault, "", "nobody")
                return
            fault.to = there[due.who % len(there)]
        if not any((one.kind, one.to) == (fault.kind, fault.to) for one in self._armed):
            self.command(fault)

    def clear(self) -> None:
        """Nothing waits any more, a schedule included; what is held goes out, the clock is right."""
        self._armed.clear()
        self.clock_ms = 0
        self.follow(iter(()))
        held, self._timers = sorted(self._timers, key=lambda timer: timer[:2]), []
        for _, _, happen in held:
            happen()

    def at(self, at_ns: int, happen: Callable[[], None]) -> None:
        """Call at a simulated time."""
        heapq.heappush(self._timers, (at_ns, next(self._numbers), happen))

    @property
    def next_ns(self) -> int | None:
        """When the next thing happens that waits for time alone."""
        times = [self._timers[0][0]] if self._timers else []
        return min([*times, *([self._next.at_ns] if self._next else [])], default=None)

    def advance(self, now_ns: int) -> None:
        """Simulated time has come to ``now_ns``, and stopped at `next_ns` on its way."""
        self.now_ns = now_ns
        while self._timers and self._timers[0][0] <= now_ns:
            heapq.heappop(self._timers)[2]()
        while self._next is not None and self._next.at_ns <= now_ns:
            due, self._next = self._next, next(self._plan, None)
            self._happen(due)

    # -- where it happens --------------------------------------------------------------------------

    def wall_ns(self) -> int:
        """The venue's wall clock."""
        return time.time_ns() + self.clock_ms * MS_NS

    def request(self, key: str, what: str) -> Fault | None:
        """The fault that befalls a request of a client, None when there is none."""
        return self._taken("request", (key,), what) if self._armed else None

    def frame(self, connection: Connection, topic: str, frame: bytes) -> None:
        """Take a frame on its way to a reader, and put it where it waits to be sent."""
        if not (self._armed or self._held):
            connection.put(frame)
            return
        held = self._held.get((connection, topic))
        fault = None if held else self._taken("frame", connection.names, topic)
        if fault is not None and fault.kind == "drop":
            return
        if fault is not None and fault.kind in ("delay", "overtake", "swap"):
            self._hold(connection, topic, frame, fault)
            return
        if held is not None and held.until != "swap":
            held.frames.append(frame)
            return
        connection.put(frame)
        if fault is not None:  # a duplicate
            connection.put(frame)
        for (other, theirs), waiting in list(self._held.items()):
            passed = "swap" if theirs == topic else "overtake"
            if other is connection and waiting.until == passed:
                self._release(connection, theirs)

    def _hold(self, connection: Connection, topic: str, frame: bytes, fault: Fault) -> None:
        self._held[connection, topic] = _Held(fault.kind, [frame])
        wait_ms = fault.ms if fault.kind == "delay" else (fault.ms or _PATIENCE_MS)
        assert wait_ms is not None
        self.at(self.now_ns + wait_ms * MS_NS, lambda: self._release(connection, topic))

    def _release(self, connection: Connection, topic: str) -> None:
        held = self._held.pop((connection, topic), None)
        for frame in held.frames if held else ():
            connection.put(frame)

    def _of_connection(self, fault: Fault) -> None:
        found = next((c for c in self._connections() if not fault.to or fault.to in c.names), None)
        self._note(fault, found.name if found else fault.to, "" if found else "nobody")
        if found is None:
            return
        if fault.kind == "silence":
            found.speaking.clear()
            self.at(self.now_ns + (fault.ms or 0) * MS_NS, found.speaking.set)
        else:
            found.end(orderly=fault.kind == "close")

    def _of_venue(self, fault: Fault) -> None:
        self._note(fault, "", "")
        if fault.kind == "clock":
            self.clock_ms = fault.ms or 0
        else:
            self._restart()

    def _taken(self, place: str, names: tuple[str, ...], what: str) -> Fault | None:
        """The oldest armed fault that fits, one time less of which is left."""
        for at, fault in enumerate(self._armed):
            if (
                KINDS[fault.kind].place == place
                and (not fault.to or fault.to in names)
                and what.startswith(fault.what)
            ):
                self._note(fault, names[0], what)
                fault.times -= 1
                if not fault.times:
                    del self._armed[at]
                return fault
        return None

    # -- what has happened -------------------------------------------------------------------------

    def _note(self, fault: Fault, to: str, what: str) -> None:
        happened = Happened(self.now_ns, fault.kind, to, what, fault.ms or 0)
        self.log.append(happened)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(happened) + b"\n")


class _Held(NamedTuple):
    """Frames of a topic that wait for time, or until something passes them."""

    until: str
    frames: list[bytes]


def read_log(path: Path) -> list[Happened]:
    """What a log says that happened, in order; ValueError for a line that is none."""
    decode = msgspec.json.Decoder(Happened).decode
    return [decode(line) for line in path.read_bytes().splitlines()]


class Due(NamedTuple):
    """A fault of a schedule: ``who`` is drawn too, and falls on one of those that are there then."""

    at_ns: int
    kind: str
    who: int
    ms: int


def schedule(seed: int, rates: Mapping[str, float], start_ns: int) -> Iterator[Due]:
    """Faults at random, for ever: each kind a Poisson stream at its rate a simulated minute.

    What lasts for a time lasts 0.2 to 1.8 times as long as it does by default. FaultError for a kind
    that does not exist and for a rate that is not from 0 to 60,000.
    """
    for kind, rate in rates.items():
        if kind not in KINDS:
            raise FaultError(f"{kind}: no such fault; kinds are {', '.join(KINDS)}")
        if not 0 <= rate <= 60_000:
            raise FaultError(f"{kind}={rate:g}: expected 0 to 60,000 a minute")
    streams = [_stream(seed, kind, rate, start_ns) for kind, rate in sorted(rates.items()) if rate]
    return heapq.merge(*streams)


def _stream(seed: int, kind: str, rate: float, at_ns: int) -> Iterator[Due]:
    dice = random.Random(f"{seed}/faults/{kind}")
    while True:
        at_ns += round(dice.expovariate(rate) * MINUTE_NS)
        ms = round(KINDS[kind].ms * dice.uniform(0.2, 1.8))
        yield Due(at_ns, kind, dice.getrandbits(32), ms)


def rates_of(text: str) -> dict[str, float]:
    """Rates written as ``drop=6,abort=0.5``; ``all`` is every kind but ``swap``. FaultError says what
    is wrong."""
    rates: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        kind, _, number = part.partition("=")
        try:
            rate = float(number)
        except ValueError:
            raise FaultError(f"{part}: expected KIND=RATE a simulated minute") from None
        kinds = [name for name in KINDS if name != "swap"] if kind == "all" else [kind]
        rates |= dict.fromkeys(kinds, rate)
    return rates
