"""Fault injection: how the venue misbehaves, to whom and when; every fault is logged.

A fault is commanded (`Faults.command`; over HTTP by `proving.sandbox.control`), or drawn from a seed at
rates per simulated minute (`schedule`, `Faults.follow`).

``to`` is a client's key or a connection ("public/1" is the first to the public stream), empty for the
next one. ``what`` is the prefix of a route ("order/create") or topic ("orderbook.50"), empty for any.
``times`` is how often it happens, ``ms`` how long it lasts: simulated time, except for the clock. Faults
act on requests and their answers (`Faults.carry_out`), on frames (`Faults.deliver`) and on connections.
The exchange knows nothing of them except a restart.

Frames of one topic keep their order unless ``swap`` is requested, which no venue does.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from market.errors import UsageError
from market.units import MINUTE_NS, MS_NS
from proving.sandbox.streams import Connection

#: Timeout of frames that wait to be overtaken.
_OVERTAKE_TIMEOUT_MS: Final = 1000
#: Log entries kept in memory; a log file has all.
KEPT: Final = 10_000
AnswerT = TypeVar("AnswerT")


class FaultKind(NamedTuple):
    """``place`` is where it acts, ``ms`` its default duration."""

    place: str
    says: str
    ms: int = 0


KINDS: Final[dict[str, FaultKind]] = {
    "answer_lost": FaultKind("request", "carried out, and never answered"),
    "answer_late": FaultKind("request", "carried out, and answered after ms", 2000),
    "cut_before": FaultKind("request", "the connection is cut, and nothing is carried out"),
    "cut_after": FaultKind("request", "carried out, and the connection is cut without an answer"),
    "timed_out": FaultKind(
        "request", "carried out, and answered with 10000, as if it might not be"
    ),
    "rate_limited": FaultKind("request", "refused with 10006"),
    "maintenance": FaultKind("request", "refused with 10016"),
    "overloaded": FaultKind("request", "refused with HTTP status 429"),
    "banned": FaultKind("request", "refused with HTTP status 403"),
    "drop": FaultKind("frame", "a frame is left out, which in a book is a gap"),
    "duplicate": FaultKind("frame", "a frame is sent twice"),
    "delay": FaultKind("frame", "a topic comes ms late, in its order", 2000),
    "overtake": FaultKind("frame", "a frame waits until one of another topic has passed it"),
    "swap": FaultKind("frame", "a frame waits until the next of its topic has passed it"),
    "silence": FaultKind("connection", "nothing is sent for ms, all of it afterwards", 5000),
    "close": FaultKind("connection", "the connection is closed"),
    "abort": FaultKind("connection", "the connection is cut"),
    "restart": FaultKind("venue", "every book begins anew with a snapshot of u = 1"),
    "delist": FaultKind("venue", "symbols that begin with what have no stream for ms", 60_000),
    "clock": FaultKind("venue", "the venue's wall clock is wrong by ms from now on", 5000),
}
#: Code, message and HTTP status of the answers that a fault makes up.
RESPONSES: Final = {
    "timed_out": (10000, "Server Timeout", 200),
    "rate_limited": (10006, "Too many visits. Exceeded the API Rate Limit.", 200),
    "maintenance": (10016, "Internal System Error. Services are restarting.", 200),
    "overloaded": (429, "System level frequency protection.", 429),
    "banned": (10010, "access too frequent", 403),
}
#: Kinds whose request is not executed.
NOT_EXECUTED: Final = ("cut_before", "rate_limited", "maintenance", "overloaded", "banned")


class FaultError(UsageError):
    """An impossible fault or rate of faults; the message says what is possible."""


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """A pending fault."""

    kind: str
    to: str = ""
    what: str = ""
    times: int = 1
    ms: int | None = None

    def validated(self) -> Fault:
        """A copy with its duration filled in; FaultError says what is wrong with it."""
        kind = KINDS.get(self.kind)
        if kind is None:
            raise FaultError(f"{self.kind}: no such fault; kinds are {', '.join(KINDS)}")
        if not 1 <= self.times <= 1_000_000:
            raise FaultError(f"times {self.times}: expected 1 to 1,000,000")
        ms = kind.ms if self.ms is None else self.ms
        if abs(ms) > 86_400_000 or (ms < 0 and self.kind != "clock"):
            raise FaultError(f"ms {ms}: expected 0 to 86,400,000, less only for clock")
        return msgspec.structs.replace(self, ms=ms)

    @property
    def duration_ns(self) -> int:
        return (self.ms or 0) * MS_NS


class FaultEvent(msgspec.Struct, frozen=True):
    """A line of the log: a fault that happened, when in simulated time, and to whom.

    ``what`` is the route or topic, or ``nobody`` when there was no connection for it.
    """

    at_ns: int
    kind: str
    to: str
    what: str
    ms: int


class Outcome(NamedTuple, Generic[AnswerT]):
    """What becomes of a request: its answer after so long, or none; then the connection may be cut."""

    answer: AnswerT | None
    delay_ns: int = 0
    is_cut: bool = False


class Timer:
    """An action that will be run, unless it is cancelled before."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.run = action

    def cancel(self) -> None:
        """It will not be run."""
        self.run = lambda: None


class _HeldFrames(NamedTuple):
    """Frames of a topic held back for a time, or until a frame overtakes them."""

    kind: str
    frames: list[bytes]


class Faults:
    """Pending, scheduled and logged faults.

    ``keys`` are the clients' API keys, ``connections`` gives the open ones, oldest first, and ``restart``
    publishes all books anew. ``log_path`` receives every `FaultEvent` as a JSON line. ``clock_ns`` is the
    wall clock, None for simulated time.
    """

    def __init__(
        self,
        keys: Sequence[str],
        connections: Callable[[], Sequence[Connection]],
        restart: Callable[[], None],
        log_path: Path | None = None,
        clock_ns: Callable[[], int] | None = time.time_ns,
    ) -> None:
        self.now_ns = 0  #: simulated; only `advance` moves it
        self._clock_ns = clock_ns
        self.clock_error_ms = 0  #: of the venue's wall clock
        self.log: deque[FaultEvent] = deque(maxlen=KEPT)
        self._keys, self._connections, self._restart = tuple(keys), connections, restart
        self._log_path = log_path
        self._pending: list[Fault] = []
        self._delisted: list[str] = []
        self._timers: list[tuple[int, int, Timer]] = []  #: heap of (ns, number, action)
        self._numbers = itertools.count()
        self._held: dict[tuple[Connection, str], _HeldFrames] = {}
        self._schedule: Iterator[ScheduledFault] = iter(())
        self._next: ScheduledFault | None = None
        if log_path is not None:
            log_path.write_bytes(b"")

    # -- commands and the schedule -----------------------------------------------------------------

    @property
    def pending(self) -> tuple[Fault, ...]:
        """Faults that wait for a request or a frame."""
        return tuple(self._pending)

    def command(self, fault: Fault) -> None:
        """Make a fault happen: to the next request or frame that it matches, or at once."""
        fault = fault.validated()
        place = KINDS[fault.kind].place
        if place in ("request", "frame"):
            self._pending.append(fault)
        elif place == "venue":
            self._log(fault, "", "")
            if fault.kind == "clock":
                self.clock_error_ms = fault.ms or 0
            elif fault.kind == "delist":
                self._delisted.append(fault.what)
                self.call_later(fault.duration_ns, lambda: self._delisted.remove(fault.what))
            else:
                self._restart()
        else:
            for _ in range(fault.times):
                self._hit_connection(fault)

    def follow(self, faults: Iterator[ScheduledFault]) -> None:
        """Make the faults of a schedule happen, each at its time."""
        self._schedule = faults
        self._next = next(faults, None)

    def _command_scheduled(self, due: ScheduledFault) -> None:
        place = KINDS[due.kind].place
        if place == "request":
            targets = list(self._keys)
        else:
            targets = [connection.name for connection in self._connections()]
        fault = Fault(kind=due.kind, ms=due.ms)
        if place != "venue":
            if not targets:
                self._log(fault, "", "nobody")
                return
            fault.to = targets[due.target % len(targets)]
        if not any((other.kind, other.to) == (fault.kind, fault.to) for other in self._pending):
            self.command(fault)

    def clear(self) -> None:
        """Cancel pending and scheduled faults, run all timers now, and correct the clock."""
        self._pending.clear()
        self.clock_error_ms = 0
        self.follow(iter(()))
        timers, self._timers = sorted(self._timers, key=lambda timer: timer[:2]), []
        for _, _, timer in timers:
            timer.run()

    def delisted(self, symbol: str) -> bool:
        """Whether the public stream refuses a symbol's topics, and is silent in those subscribed to."""
        return any(map(symbol.startswith, self._delisted))

    def call_later(self, delay_ns: int, action: Callable[[], None]) -> Timer:
        """Run an action after so much simulated time."""
        timer = Timer(action)
        heapq.heappush(self._timers, (self.now_ns + delay_ns, next(self._numbers), timer))
        return timer

    @property
    def next_ns(self) -> int | None:
        """The next simulated time at which something happens by itself."""
        times = [self._timers[0][0]] if self._timers else []
        return min([*times, *([self._next.at_ns] if self._next else [])], default=None)

    def advance(self, now_ns: int) -> None:
        """Advance simulated time, which must stop at `next_ns` on its way."""
        self.now_ns = now_ns
        while self._timers and self._timers[0][0] <= now_ns:
            heapq.heappop(self._timers)[2].run()
        while self._next is not None and self._next.at_ns <= now_ns:
            due, self._next = self._next, next(self._schedule, None)
            self._command_scheduled(due)

    def wall_ns(self) -> int:
        """The venue's wall clock, with its error."""
        now_ns = self.now_ns if self._clock_ns is None else self._clock_ns()
        return now_ns + self.clock_error_ms * MS_NS

    # -- requests, frames and connections ----------------------------------------------------------

    def carry_out(
        self,
        key: str,
        route: str,
        run: Callable[[], AnswerT],
        refuse: Callable[[int, str, int], AnswerT],
    ) -> Outcome[AnswerT]:
        """Execute a client's request, with the fault that happens to it.

        ``refuse`` makes an answer of code, message and HTTP status.
        """
        fault = self._take("request", (key,), route) if self._pending else None
        if fault is None:
            return Outcome(run())
        answer = None if fault.kind in NOT_EXECUTED else run()
        if fault.kind in RESPONSES:
            return Outcome(refuse(*RESPONSES[fault.kind]))
        if fault.kind == "answer_late":
            return Outcome(answer, fault.duration_ns)
        return Outcome(None, is_cut=fault.kind != "answer_lost")

    def deliver(self, connection: Connection, topic: str, frame: bytes) -> None:
        """Queue a frame for a subscriber, unless a fault drops, holds or repeats it."""
        if not (self._pending or self._held):
            connection.put(frame)
            return
        held = self._held.get((connection, topic))
        fault = None if held else self._take("frame", connection.names, topic)
        if fault is not None and fault.kind == "drop":
            return
        if fault is not None and fault.kind in ("delay", "overtake", "swap"):
            self._hold(connection, topic, frame, fault)
            return
        if held is not None and held.kind != "swap":
            held.frames.append(frame)
            return
        connection.put(frame)
        if fault is not None:  # a duplicate
            connection.put(frame)
        for (other, held_topic), waiting in list(self._held.items()):
            overtaken = "swap" if held_topic == topic else "overtake"
            if other is connection and waiting.kind == overtaken:
                self._release(connection, held_topic)

    def _hold(self, connection: Connection, topic: str, frame: bytes, fault: Fault) -> None:
        self._held[connection, topic] = _HeldFrames(fault.kind, [frame])
        timeout_ns = fault.duration_ns
        if fault.kind != "delay" and not timeout_ns:
            timeout_ns = _OVERTAKE_TIMEOUT_MS * MS_NS
        self.call_later(timeout_ns, lambda: self._release(connection, topic))

    def _release(self, connection: Connection, topic: str) -> None:
        held = self._held.pop((connection, topic), None)
        for frame in held.frames if held else ():
            connection.put(frame)

    def _hit_connection(self, fault: Fault) -> None:
        target = next((c for c in self._connections() if not fault.to or fault.to in c.names), None)
        self._log(fault, target.name if target else fault.to, "" if target else "nobody")
        if target is None:
            return
        if fault.kind == "silence":
            target.pause()
            self.call_later(fault.duration_ns, target.resume)
        else:
            target.end(orderly=fault.kind == "close")

    def _take(self, place: str, names: tuple[str, ...], what: str) -> Fault | None:
        """The oldest pending fault that matches; one of its times is used up."""
        for at, fault in enumerate(self._pending):
            if (
                KINDS[fault.kind].place == place
                and (not fault.to or fault.to in names)
                and what.startswith(fault.what)
            ):
                self._log(fault, names[0], what)
                fault.times -= 1
                if not fault.times:
                    del self._pending[at]
                return fault
        return None

    def _log(self, fault: Fault, to: str, what: str) -> None:
        event = FaultEvent(self.now_ns, fault.kind, to, what, fault.ms or 0)
        self.log.append(event)
        if self._log_path is not None:
            with self._log_path.open("ab") as file:
                file.write(msgspec.json.encode(event) + b"\n")


def read_log(path: Path) -> list[FaultEvent]:
    """The events of a log file, in order; ValueError for a malformed line."""
    decode = msgspec.json.Decoder(FaultEvent).decode
    return [decode(line) for line in path.read_bytes().splitlines()]


# -- schedules -------------------------------------------------------------------------------------


class ScheduledFault(NamedTuple):
    """A fault of a schedule; ``target`` is drawn, modulo the clients or connections at that time."""

    at_ns: int
    kind: str
    target: int
    ms: int


def schedule(seed: int, rates: Mapping[str, float], start_ns: int) -> Iterator[ScheduledFault]:
    """Endless random faults: each kind is a Poisson process at its rate per simulated minute.

    Durations are uniform from 0.2 to 1.8 times the default. FaultError for an unknown kind and for a rate
    outside 0 to 60,000.
    """
    for kind, rate in rates.items():
        if kind not in KINDS:
            raise FaultError(f"{kind}: no such fault; kinds are {', '.join(KINDS)}")
        if not 0 <= rate <= 60_000:
            raise FaultError(f"{kind}={rate:g}: expected 0 to 60,000 a minute")
    return heapq.merge(
        *(_poisson(seed, kind, rate, start_ns) for kind, rate in sorted(rates.items()) if rate)
    )


def _poisson(seed: int, kind: str, rate: float, at_ns: int) -> Iterator[ScheduledFault]:
    dice = random.Random(f"{seed}/faults/{kind}")
    while True:
        at_ns += round(dice.expovariate(rate) * MINUTE_NS)
        ms = round(KINDS[kind].ms * dice.uniform(0.2, 1.8))
        yield ScheduledFault(at_ns, kind, dice.getrandbits(32), ms)


def rates_of(text: str) -> dict[str, float]:
    """Rates written as ``drop=6,abort=0.5``; ``all`` is every kind but ``swap`` and ``delist``.

    FaultError says what is wrong with the text.
    """
    rates: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        kind, _, number = part.partition("=")
        try:
            rate = float(number)
        except ValueError:
            raise FaultError(f"{part}: expected KIND=RATE a simulated minute") from None
        kinds = (
            [name for name in KINDS if name not in ("swap", "delist")] if kind == "all" else [kind]
        )
        rates |= dict.fromkeys(kinds, rate)
    return rates
