"""The worker's shell: what is not a function of inputs. Threads, clock, disk, and the core in the middle.

    feed, connections, commands ─► inbox ─► main loop: stamp ─► log ─► core.step ─► effects
    writer    syncs the log, and lets requests leave once what they rest on is on disk
    keeper    writes the own capture and the decisions, which nothing waits for

The main loop never waits on the disk or the network. Whatever raises in it, open orders are cancelled and
positions closed in `Shell.run`, in real time, within ``live.closing_s``.
"""

from __future__ import annotations

import gc
import math
import queue
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Any, Final, Protocol

from live.bybit import account
from live.champion import Champion
from live.control import Control
from live.core import Core, CoreState
from live.decisions import Decision
from live.feed import TICK_NS, Feed, FeedError, Item, ReplayFeed, WireFeed
from live.frames import MOST
from live.gateway import Codec
from live.history import SymbolHistory
from live.inbox import Given, grouped, require_accepted
from live.keeper import Keeper
from live.latency import Histogram
from live.log import LogError, LogWriter
from live.messages import (
    Append,
    CancelAll,
    Command,
    Effect,
    InForce,
    Input,
    Link,
    PublicFrame,
    Renew,
    Say,
    Send,
    Tick,
)
from live.own_capture import checkpoints
from live.paper import PaperGateway
from live.restoration import checkpoint_of
from live.shadow import Shadow, decay_alarm
from live.state_stream import StateStream
from live.state_view import view
from live.writer import Writer
from market.errors import VenueError, no_space
from market.ingest import MAX_SILENCE_NS
from market.instruments import Instrument
from market.settings import Settings
from market.units import MS_NS, SECOND_NS, utc_date

History = Mapping[str, SymbolHistory]
#: Connection -> whether it is up, since when (ns), and why not.
Links = dict[str, tuple[bool, int, str]]
#: The last lines of the worker's log, (number, JSON) each.
Lines = deque[tuple[str, str]]

#: Where time is lost between an input and its request: waiting in the inbox, the core's step, the log's
#: append and sync, and handing over to the socket.
STAGES: Final = ("queue", "step", "log", "sync", "send", "decision")

#: A state is published this often (wall clock).
_PUBLISH_NS: Final = 200 * MS_NS
#: Smaller lateness of decisions is not told to the core.
_LATE_S: Final = 0.1
#: A disk that refused something counts as full for so long after the last time.
_FULL_NS: Final = 60 * SECOND_NS
#: Seconds between collections of all generations; the younger are collected every second.
_FULL_GC_S: Final = 60


class StartError(VenueError):
    """The venue contradicts settings or manifest, so that nothing was begun; the message says what."""

    exit_status = 3


class Gateway(Protocol):
    """A venue's connections: requests go out; what it says is put into the inbox as inputs."""

    def send(self, send: Send) -> None: ...


class Shell:
    """One worker from its first input to its end: `begin`, then `run`, or `take` for one item.

    The venue is ``paper``, simulated in the stream's time, or a ``gateway`` whose messages ``codec`` reads.
    ``clock_ns`` is the venue's time, of which ``speed`` seconds pass in one of ours. Feed, gateway and
    files are the caller's to close.
    """

    def __init__(
        self,
        settings: Settings,
        instruments: Mapping[str, Instrument],
        *,
        state: CoreState | None,
        champion: Champion,
        feed: Feed,
        inbox: queue.SimpleQueue[Any],
        log: LogWriter,
        keeper: Keeper,
        say: Any,
        codec: Codec,
        paper: PaperGateway | None = None,
        gateway: Gateway | None = None,
        stream: StateStream | None = None,
        shadow: Shadow | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        speed: float = 1.0,
        lines: Lines | None = None,
    ) -> None:
        self.lines = deque() if lines is None else lines
        self.settings, self.instruments, self.champion = settings, instruments, champion
        self.feed, self.log, self.keeper = feed, log, keeper
        self._inbox, self._say, self._paper, self._gateway = inbox, say, paper, gateway
        self.stream, self._clock_ns, self._speed = stream, clock_ns, speed
        self.shadow, self._for_shadow = shadow, list[Decision]()
        self._decay = decay_alarm(settings)
        traded = {symbol: instruments[symbol] for symbol in settings.market.symbols}
        self.core = Core(
            settings,
            instruments,
            model=champion,
            codec=codec,
            name=settings.live.venue,
            at_venue=paper is None,
            state=state,
            on_decision=self._decided,
            on_midnight=self._midnight,
            check=partial(
                account.problems, settings=settings, instruments=traded, source=settings.source
            ),
        )
        self.latency = {stage: Histogram() for stage in STAGES}
        self.decisions: dict[str, Decision] = {}
        self.links: Links = {}
        self.control: Control | None = None
        self.now_ns = self.unpaced = self._began_ns = 0
        self._stop_reason, self._paced, self._lag_s = "", False, 0.0
        self._was_late = True  #: what an earlier process told stands until it is told anew
        self._was_full, self._refused_ns = "disk full" in self.core.safety.why(""), 0
        self._leaves = False  #: what rests, to the next worker
        self._published_ns = self._collected_s = 0
        self._unshown = False  #: the state cannot be shown, which was said
        self._said: list[str] | None = None
        self._failures: dict[str, int] = {}
        self._commands: deque[Given] = deque()  #: they go before the inbox
        send = gateway.send if gateway is not None else lambda _: None
        self.writer = Writer(log, send, self.put, self.failed, self.latency)

    # -- inputs ----------------------------------------------------------------------------------

    def put(self, body: Input) -> None:
        """An input from any thread."""
        self._inbox.put(Given(body, time.monotonic_ns()))

    def command(self, name: str, command: Command) -> None:
        """A command from any thread, before all that waits; it is answered by its name (`live.control`)."""
        self._commands.append(Given(command, time.monotonic_ns(), name))
        self._inbox.put(Given(Tick(), 0))

    def stop(self, reason: str) -> None:
        """Begin to shut down, from any thread or a signal handler."""
        self._stop_reason = self._stop_reason or reason
        self._inbox.put(Given(Tick(), 0))
        if isinstance(self.feed, ReplayFeed):
            self.feed.stop()

    def begin(self, now_ns: int, run: Append, history: History | None = None) -> None:
        """Start at an instant with the history before it; ``run`` is its record."""
        self.now_ns, self._began_ns = now_ns, time.monotonic_ns()
        begun = self.core.begin(now_ns, history)
        if self._paper is not None:
            self._paper.take(self.core.rows)  # the book that the history ends with
        self._carry_out(now_ns, [run, *begun])
        self._open_capture(now_ns)
        self._in_force()

    def take(self, item: Item | Given) -> None:
        """One thing of the inbox."""
        read = time.monotonic_ns()
        if isinstance(item, Item):
            self.now_ns = max(self.now_ns, item.receive_ns)
            due_ns, body = item.due_ns, _body(item)
            if due_ns and not self._paced:
                self._paced, self.unpaced = True, self.latency["decision"].count
                self.latency["decision"] = Histogram()
        else:
            due_ns, body = item.read_ns, item.body
            if self._paper is None and not item.name:  # a command is earlier than what waits
                self.now_ns = max(self.now_ns, self._clock_ns())
            if isinstance(body, Link):
                self.links[body.stream] = (body.up, self.now_ns, body.reason)
        if due_ns > self._began_ns:
            self.latency["queue"].add(read - due_ns)
        if isinstance(item, Item) or item.name:
            self._tell_lag()
        second_ns = self.core.trader.second_ns
        ends = self.now_ns // SECOND_NS > second_ns // SECOND_NS
        if ends and self.champion.refresh():
            self._in_force()
        if ends and (alarm_s := self._decay.look()) is not None:
            self._step(self.now_ns, _fact("decay", alarm_s))
        if self._paper is not None:
            for time_ns, given in self._paper.until(self.now_ns):
                self._step(time_ns, given)
        if isinstance(body, PublicFrame):
            self.keeper.frames([(self.now_ns, body.frame)])
            if not self.core.events:
                require_accepted(self.core.rejects)
        name = "" if isinstance(item, Item) else item.name
        if name and isinstance(body, Command) and body.command == "handover":
            self._leaves = True
            self.stop("handover")
        self._said = [] if name else None
        self._step(self.now_ns, body)
        if name:
            self._answer(name)
        if ends and self.core.trader.second_ns > second_ns:
            self._measure(due_ns or read)
        if self._for_shadow and self.shadow is not None:
            trader = self.core.trader
            self.shadow.take(self._for_shadow, trader.computed)
            trader.compute_also(self.shadow.features)
            self._for_shadow = []
        if isinstance(body, Tick):
            self._tick()

    def _take_commands(self) -> None:
        while self._commands:
            self.take(self._commands.popleft())

    def take_frames(self, items: Sequence[Item]) -> None:
        """Frames that waited in the inbox, in order: those that end no second together."""
        while items:
            n, end_ns = 1, self.core.trader.second_ns + SECOND_NS
            if self._paced and self._paper is None and self.core.events and self.now_ns < end_ns:
                n = max(1, bisect_left(items, end_ns, key=attrgetter("receive_ns")))
            if n > 1:
                self._together(items[:n])
            else:
                self.take(items[0])
            items = items[n:]

    def _together(self, items: Sequence[Item]) -> None:
        self.latency["queue"].add(time.monotonic_ns() - items[0].due_ns)
        self._tell_lag()
        given: list[tuple[int, PublicFrame]] = []
        for item in items:
            self.now_ns = max(self.now_ns, item.receive_ns)
            given.append((self.now_ns, PublicFrame(frame=item.frame or b"")))
        self.keeper.frames([(now_ns, body.frame) for now_ns, body in given])
        before = time.monotonic_ns()
        self.log.append(given)
        logged = time.monotonic_ns()
        effects = self.core.step_frames(given)
        self.latency["step"].add(time.monotonic_ns() - logged)
        self.latency["log"].add(logged - before)
        if effects:
            self._carry_out(self.now_ns, effects)

    def _tell_lag(self) -> None:
        """The core's time is that of what it is given: how far the clock is ahead, when much waits."""
        if self._gateway is not None:
            lag_s, least_s = (self._clock_ns() - self.now_ns) / 1e9, self.settings.live.answer_s / 4
            lag_s = lag_s if lag_s > least_s else 0.0
            if lag_s > self._lag_s + least_s or lag_s < self._lag_s / 2:
                self._lag_s = lag_s
                self._step(self.now_ns, _fact("lag_s", lag_s))

    def _step(self, now_ns: int, body: Input) -> None:
        before = time.monotonic_ns()
        self.log.append_input(now_ns, body)
        logged = time.monotonic_ns()
        effects = self.core.step(now_ns, body)
        self.latency["step"].add(time.monotonic_ns() - logged)
        self.latency["log"].add(logged - before)
        if self._paper is not None and self.core.rows:
            self._paper.take(self.core.rows)
        if effects:
            self._carry_out(now_ns, effects)

    def _carry_out(self, now_ns: int, effects: list[Effect]) -> None:
        position = self.log.append_effects(now_ns, effects)
        for effect in effects:
            match effect:
                case Send():
                    if self._paper is not None:
                        self._paper.send(now_ns, effect)
                    else:
                        self.writer.put(position, effect)
                case Say():
                    getattr(self._say, effect.level)(effect.event, **effect.fields)
                    if self._said is not None:
                        told = ", ".join(f"{key} {value}" for key, value in effect.fields.items())
                        self._said.append(f"{effect.event}: {told}" if told else effect.event)
                case Renew() if isinstance(self.feed, WireFeed):
                    self.feed.renew(effect.topics)

    def _in_force(self) -> None:
        pointer = self.champion.pointer
        self.core.load(self.champion)
        sha = pointer.in_force
        body = InForce(name=pointer.name, version=pointer.version, manifest_sha256=sha)
        self._step(self.now_ns, body)

    def _decided(self, decision: Decision, horizons_s: tuple[int, ...]) -> None:
        self.decisions[decision.symbol] = decision
        self.keeper.decision(decision, horizons_s)
        if self.shadow is not None and not math.isnan(decision.expected_bps):
            self._for_shadow.append(decision)

    def _midnight(self, midnight_ns: int) -> None:
        self._open_capture(midnight_ns)
        self._say.info("new date", date=utc_date(midnight_ns))

    def _open_capture(self, now_ns: int) -> None:
        """Start a file of the own capture with checkpoints, unless the last event is too old."""
        restated: list[bytes] = []
        if now_ns - self.core.trader.last_event_ns <= MAX_SILENCE_NS:
            depth = self.settings.market.book_depth
            for symbol, state in self.core.trader.symbols.items():
                found = self.instruments[symbol]
                restated += checkpoints(found, state.builder.book, state.ticker, depth)
        self.keeper.open(now_ns, restated)

    # -- time ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """The state for others, and in idle moments the collector of cycles."""
        if not self._paced or not self._inbox.empty():
            return
        wall_ns, second = time.monotonic_ns(), self.now_ns // SECOND_NS
        if self.stream is not None and wall_ns - self._published_ns >= _PUBLISH_NS:
            self._published_ns = wall_ns
            try:
                self.stream.publish(view(self))
            except Exception as error:  # nobody's orders wait for what is shown
                if not self._unshown:
                    self._say.error("state not shown", reason=f"{type(error).__name__}: {error}")
                self._unshown = True
        elif second > self._collected_s:
            gc.collect(2 if second // _FULL_GC_S > self._collected_s // _FULL_GC_S else 1)
            self._collected_s = second

    def _measure(self, due_ns: int) -> None:
        """A second ended: how late its decisions were made, and whether the disk is full, told when it matters."""
        late_ns = time.monotonic_ns() - due_ns
        self.latency["decision"].add(late_ns)
        late_s = late_ns * self._speed / SECOND_NS
        replays = isinstance(self.feed, ReplayFeed)  # its result does not depend on its speed
        if self._paced and not replays and (late_s >= _LATE_S or self._was_late):
            self._was_late = late_s >= _LATE_S
            self._step(self.now_ns, _fact("late_s", late_s))
        refused_ns = time.monotonic_ns() - self._refused_ns if self._refused_ns else _FULL_NS
        if (full := self.log.full or refused_ns < _FULL_NS) != self._was_full:
            self._was_full = full
            self._step(self.now_ns, _fact("disk_full", float(full)))
        if self.log.turn_due(self.now_ns):
            self.log.turn(self.now_ns, checkpoint_of(self.core.snapshot()))

    # -- trouble ---------------------------------------------------------------------------------

    def failed(self, error: Exception) -> None:
        """From any thread: something beside the main loop failed, most likely for want of disk."""
        kind = type(error).__name__
        times = self._failures[kind] = self._failures.get(kind, 0) + 1
        if no_space(error) or isinstance(error, LogError):
            self._refused_ns = time.monotonic_ns()
        if str(times).strip("0") == "1":
            self._say.error("failed", reason=f"{kind}: {error}", times=times)

    def emergency(self, command: Command) -> None:
        """In another thread: the main loop does not take a halt, so it is done without it.

        Nothing that opens leaves any more, and every open order is cancelled.
        """
        self.writer.gated = True
        if self._gateway is not None:
            wait_ns = round(self.settings.live.answer_s * SECOND_NS)
            for n, symbol in enumerate(self.core.trader.symbols, 1):
                body, due_ns = CancelAll(symbol=symbol), self._clock_ns() + wait_ns
                self._gateway.send(Send(number=-n, body=body, deadline_ns=due_ns))
        self._say.error("halted without the main loop", who=command.who, reason=command.reason)

    def _answer(self, name: str) -> None:
        try:  # what an operator is told is done outlives this process; else the next one takes the file
            self.log.sync()
        except LogError as error:
            self.failed(error)
            return
        self.writer.gated = False  # the core knows it now
        shown, said = view(self), self._said
        self._said = None
        if self.control is not None:
            modes = {symbol: row["mode"] for symbol, row in shown["symbols"].items()}
            self.control.answer(name, {"said": said, "modes": modes, "orders": [*shown["orders"]]})

    # -- from beginning to end -------------------------------------------------------------------

    def run(self, items: Iterator[Any], flatten: bool = True, until_ns: int = 0) -> list[str]:
        """Consume ``items`` to their end or to ``until_ns``, then close down; what is left, a line each.

        What raised in between is raised again once orders are cancelled and positions closed.
        """
        failure: BaseException | None = None
        try:
            for given in grouped(items, self._inbox, MOST if self._paper is None else 1):
                self._take_commands()
                if isinstance(given, list):
                    self.take_frames(given)
                else:
                    self.take(given)
                while self._paper is not None and not self._inbox.empty():
                    if isinstance(waiting := self._inbox.get(), Item | Given):
                        self.take(waiting)
                if self._stop_reason or (until_ns and self.now_ns >= until_ns):
                    break
                if problems := self.core.reconciliation.problems:
                    raise StartError("; ".join(problems))
        except StartError:
            raise  # the account must not be traded: nothing is sent, not even to close
        except BaseException as error:
            failure = error
            self._say.error("closing down", reason=f"{type(error).__name__}: {error}")
        begun = not isinstance(failure, StartError)
        left = self._close_down(flatten, failure) if begun else []
        if failure is not None:
            raise failure
        return left

    def _close_down(self, flatten: bool, failure: BaseException | None) -> list[str]:
        reason = self._stop_reason or ("the stream ended" if failure is None else repr(failure))
        limits = {"leave" if self._leaves else "flatten": 1.0} if flatten or self._leaves else {}
        stop = Command(command="stop", who="worker", reason=reason, limits=limits)
        # The core keeps to `live.closing_s` of the venue's time; this is for one that does not.
        until_s = self.settings.live.closing_s + self._speed
        until = time.monotonic() + until_s / self._speed
        end_ns, replay = self.now_ns + round(until_s * SECOND_NS), isinstance(self.feed, ReplayFeed)
        self._closing(partial(self.take, Given(stop, 0)), stop)
        while not self.core.ended and (
            self.now_ns < end_ns if replay else time.monotonic() < until
        ):
            self._closing(self._wait, stop)
        left = self.core.reconciliation.left()
        finish = Command(command="finish", who="worker", reason=reason)
        self._closing(partial(self.take, Given(finish, 0)), stop)
        return left

    def _closing(self, step: Callable[[], None], stop: Command) -> None:
        """A step of the close-down: one that fails ends none of the others."""
        try:
            step()
        except Exception as error:
            if not self.writer.gated:
                self._say.error("cannot close in order", reason=f"{type(error).__name__}: {error}")
                self.emergency(stop)
            self.failed(error)

    def _wait(self) -> None:
        """The next thing while closing down: of a replay, time goes on by itself."""
        self._take_commands()
        if isinstance(self.feed, ReplayFeed):
            self.take(Item((self.now_ns // TICK_NS + 1) * TICK_NS, None, 0))
            return
        item: Any = None
        with suppress(queue.Empty):
            item = self._inbox.get(timeout=0.1)
        if isinstance(item, Item | Given):
            self.take(item)
        elif isinstance(item, FeedError):
            self._say.error("feed ended", reason=str(item))
        else:
            self.take(Item(self._clock_ns(), None, time.monotonic_ns()))


def _body(item: Item) -> Input:
    return Tick() if item.frame is None else PublicFrame(frame=item.frame)


def _fact(name: str, value: float) -> Command:
    return Command(command="fact", who="worker", reason="", limits={name: value})
