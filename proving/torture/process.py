"""The worker's process in virtual time: what its shell does, and nothing that its core decides.

Every input goes to the log before the core sees it; a request leaves once the log is synced up to it;
an answer, its deadline or the end of its connection goes back as an input. The process may be killed at
any instant in between: before and after each append, each step, and each effect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Final, Protocol

from execution.orders import Submit
from live.bybit.codec import BybitCodec, Call, not_sent
from live.core import Core
from live.log import LogWriter
from live.messages import (
    Answer,
    Command,
    Effect,
    Expired,
    Input,
    Link,
    PrivateFrame,
    PublicFrame,
    Renew,
    Send,
    Tick,
)
from market.units import MS_NS, SECOND_NS
from proving.sandbox.accounts import Client
from proving.sandbox.virtual import VirtualVenue
from proving.torture.network import Heap, Network, Wire

TICK_NS: Final = 100 * MS_NS
#: What nothing was sent upon is on disk after so long at most.
SYNC_EVERY_NS: Final = SECOND_NS
PRIVATE_TOPICS: Final = ("order", "execution", "position", "wallet")
#: A public stream that says nothing for so long is replaced (60 s in the shell, which runs for longer).
SILENCE_NS: Final = 6 * SECOND_NS
STREAMS: Final = ("public", "private", "trade")


class KilledError(Exception):
    """The process was killed at this instant."""


class Observer(Protocol):
    """Who watches a run; nothing that it does reaches the process."""

    def given(self, process: Process, now_ns: int, body: Input) -> None: ...
    def made(self, process: Process, now_ns: int, effect: Effect) -> None: ...
    def left(self, process: Process, submit: Submit) -> None: ...
    def carried_out(self, process: Process, call: Call) -> None: ...


class Process:
    """One life of the worker, from its start to its death.

    ``skew_ns`` is its clock's error, ``busy_until_ns`` when it reads its inputs again. ``killed`` is told
    when it dies by `kill_after`.
    """

    def __init__(
        self,
        heap: Heap,
        network: Network,
        venue: VirtualVenue,
        client: Client,
        codec: BybitCodec,
        topics: tuple[str, ...],
        core: Core,
        log: LogWriter,
        observer: Observer,
        killed: Callable[[], None],
        *,
        sync_ns: int,
        has_trade_socket: bool,
    ) -> None:
        self.core, self.is_alive, self.skew_ns, self.busy_until_ns = core, True, 0, 0
        self.wires: dict[str, Wire] = {}
        self.commands: list[
            Command
        ] = []  #: files in the control folder: a command's goes when it is done
        self._heap, self._network, self._venue, self._client = heap, network, venue, client
        self._codec, self._topics, self._log = codec, topics, log
        self._observer, self._killed = observer, killed
        self._sync_ns, self._streams = sync_ns, STREAMS if has_trade_socket else STREAMS[:2]
        self._now_ns = self._heard_ns = 0
        self._instants: int | None = None  #: left to live
        self._ambush: int | None = None  #: the same, from the next step that sends
        self._inbox: deque[Input] = deque()
        self._unsent: deque[Send] = deque()
        self._waiting: dict[int, str] = {}  #: number of a request without an answer → its stream
        self._tick_ns = self._sync_due_ns = 0

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect everything, and let time begin."""
        for stream in self._streams:
            self._connect(stream)
        now_ns = self._clock_ns()
        self._do(now_ns, self.core.begin(now_ns))
        self._tick()

    def kill_after(self, instants: int, *, sending: bool) -> None:
        """Die so many instants from now, or (``sending``) of those of the next step that sends."""
        if sending:
            self._ambush = instants
        else:
            self._instants = instants

    def spare(self) -> None:
        """Take back a `kill_after` that has not come to pass."""
        self._ambush = self._instants = None

    def die(self) -> None:
        """The process was killed."""
        self.leave()
        self._killed()

    def leave(self) -> None:
        """The process is gone; what it has sent is on its way."""
        self.is_alive = False
        for wire in self.wires.values():
            if wire.is_up:
                wire.hang_up(partial(self._venue.disconnect, wire.remote))

    def _instant(self) -> None:
        if self._instants is not None:
            self._instants -= 1
            if self._instants < 0:
                raise KilledError

    def _clock_ns(self) -> int:
        self._now_ns = max(self._now_ns, self._heap.now_ns + self.skew_ns)
        return self._now_ns

    # -- inputs and effects ------------------------------------------------------------------------

    def give(self, body: Input) -> None:
        """An input arrives; it is handled at once, or when the process reads again."""
        if not self.is_alive:
            return
        if self._heap.now_ns < self.busy_until_ns:
            if not self._inbox:
                self._heap.at(self.busy_until_ns, self._read)
            self._inbox.append(body)
            return
        try:
            self._handle(body)
        except KilledError:
            self.die()

    def _read(self) -> None:
        inbox, self._inbox = self._inbox, deque()
        for body in inbox:
            self.give(body)

    def _handle(self, body: Input) -> None:
        now_ns = self._clock_ns()
        self._instant()
        self._log.append_input(now_ns, body)
        self._observer.given(self, now_ns, body)
        self._instant()
        effects = self.core.step(now_ns, body)
        if self._ambush is not None and any(isinstance(effect, Send) for effect in effects):
            self._instants = self._ambush % (2 * len(effects) + 4)
        self._instant()
        self._do(now_ns, effects)
        if isinstance(body, Command):
            self._log.sync()  # what an operator is told is done is on disk
            if body in self.commands:
                self.commands.remove(body)

    def _do(self, now_ns: int, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self._log.append_effects(now_ns, [effect])
            self._observer.made(self, now_ns, effect)
            self._instant()
            if isinstance(effect, Send):
                if not self._unsent:
                    self._heap.after(self._sync_ns, self._synced)
                self._unsent.append(effect)
            elif isinstance(effect, Renew):
                self._renew(effect.topics)
        next_ns = self.core.next_ns
        if next_ns and next_ns - self.skew_ns < self._tick_ns:
            self._schedule_tick(next_ns)

    def _synced(self) -> None:
        """The log is on disk up to here: what waited for it leaves, one after the other."""
        if not self.is_alive:
            return
        try:
            self._log.sync()
            self._instant()
            while self._unsent:
                self._send(self._unsent.popleft())
                self._instant()
        except KilledError:
            self.die()

    def _tick(self) -> None:
        if self.is_alive and self._heap.now_ns >= self._tick_ns:
            self._tick_ns = 1 << 62
            wire = self.wires["public"]
            if wire.is_up and self._heap.now_ns > self._heard_ns + SILENCE_NS:
                wire.hang_up(partial(self._venue.disconnect, wire.remote))
                self._lose("public", "silent")
            if self._heap.now_ns >= self._sync_due_ns:
                self._sync_due_ns = self._heap.now_ns + SYNC_EVERY_NS
                self._log.sync()
            self.give(Tick())
            self._schedule_tick(self.core.next_ns)

    def _schedule_tick(self, core_ns: int) -> None:
        """The next tick, by the time that the core wants one (0: never)."""
        now_ns = self._heap.now_ns
        next_ns = max(core_ns - self.skew_ns, now_ns + MS_NS) if core_ns else now_ns + TICK_NS
        self._tick_ns = min(next_ns, now_ns + TICK_NS)
        self._heap.at(self._tick_ns, self._tick)

    # -- connections -------------------------------------------------------------------------------

    def _connect(self, stream: str) -> None:
        if not self.is_alive:
            return
        topics = {"public": self._topics, "private": PRIVATE_TOPICS, "trade": ()}[stream]
        self._heard_ns = self._heap.now_ns
        remote = self._venue.connect(stream, self._client if stream != "public" else None, topics)
        self.wires[stream] = Wire(
            self._network, remote, partial(self._receive, stream), partial(self._lose, stream)
        )
        self._heap.after(
            self._network.up.draw() + self._network.down.draw(),
            lambda: self.give(Link(stream=stream, up=True)) if self.wires[stream].is_up else None,
        )

    def _receive(self, stream: str, frame: bytes) -> None:
        if stream == "public":
            self._heard_ns = self._heap.now_ns
            self.give(PublicFrame(frame=frame))
        elif stream == "private":
            self.give(PrivateFrame(frame=frame))
        elif (number := req_id(frame)) is not None:
            self._answer(number, frame)

    def _lose(self, stream: str, reason: str) -> None:
        if stream == "public":
            self.give(PublicFrame(frame=b'{"l2":"disconnect"}'))
        self.give(Link(stream=stream, up=False, reason=reason))
        for number in [n for n, way in self._waiting.items() if way == stream]:
            self._expire(number, reason)
        self._heap.after(
            self._network.dice.randint(50, 1500) * MS_NS, partial(self._connect, stream)
        )

    def _renew(self, topics: tuple[str, ...]) -> None:
        wire = self.wires["public"]
        for op in ("unsubscribe", "subscribe"):
            for topic in topics:
                wire.up(partial(self._venue.send, wire.remote, {"op": op, "args": [topic]}))

    # -- requests ----------------------------------------------------------------------------------

    def _send(self, send: Send) -> None:
        if isinstance(send.body, Submit):
            self._observer.left(self, send.body)
        talk = self._codec.converse(send.body, send.symbol)
        call = next(talk)
        wire = self.wires.get("trade")
        by_socket = wire is not None and bool(call.operation)
        self._waiting[send.number] = "trade" if by_socket else ""
        self._heap.at(
            send.deadline_ns - self.skew_ns, partial(self._expire, send.number, "no answer")
        )
        if not by_socket:
            self._ask(send, talk, call)
        elif wire is None or not wire.is_up:
            self._answer(send.number, not_sent("no connection"))
        else:
            header = {
                "X-BAPI-TIMESTAMP": str(self._clock_ns() // MS_NS),
                "X-BAPI-RECV-WINDOW": "5000",
            }
            frame = {
                "reqId": str(send.number),
                "op": call.operation,
                "header": header,
                "args": [call.params],
            }
            wire.up(partial(self._arrive, wire, frame, call))

    def _arrive(self, wire: Wire, frame: dict[str, Any], call: Call) -> None:
        self._venue.send(wire.remote, frame)
        self._observer.carried_out(self, call)

    def _ask(self, send: Send, talk: Generator[Call, bytes, bytes], call: Call) -> None:
        """One call over REST."""
        stamp_ns = self._clock_ns()
        self._heap.after(
            self._network.up.draw(), partial(self._carry_out, send, talk, call, stamp_ns)
        )

    def _carry_out(
        self, send: Send, talk: Generator[Call, bytes, bytes], call: Call, stamp_ns: int
    ) -> None:
        outcome = self._venue.request(self._client, call.path, call.params, stamp_ns)
        body = outcome.answer.body if outcome.answer is not None else None
        self._observer.carried_out(self, call)
        back_ns = outcome.delay_ns + self._network.down.draw()
        if body is not None:
            self._heap.after(back_ns, partial(self._continue, send, talk, body))
        elif outcome.is_cut:
            self._heap.after(back_ns, partial(self._expire, send.number, "connection reset"))

    def _continue(self, send: Send, talk: Generator[Call, bytes, bytes], body: bytes) -> None:
        if not self.is_alive:
            return
        try:
            self._ask(send, talk, talk.send(body))
        except StopIteration as end:
            self._answer(send.number, end.value)

    def _answer(self, number: int, body: bytes) -> None:
        self._waiting.pop(number, None)
        self.give(Answer(request=number, body=body))

    def _expire(self, number: int, reason: str) -> None:
        if self._waiting.pop(number, None) is not None:
            self.give(Expired(request=number, reason=reason))


def req_id(frame: bytes) -> int | None:
    """The number of the request that a frame of the trade socket answers; None for control frames."""
    start = frame.find(b'"reqId":"')
    digits = frame[start + 9 : frame.find(b'"', start + 9)] if start >= 0 else b""
    return int(digits) if digits.isdigit() else None
