"""One seed: the worker's process, its disk and network, and the exchange, under one virtual clock.

    start-up ── faults, 35 s ── calm: orders are sent and filled ── stop ── the judge compares

Everything is drawn from the seed, so that a run repeats itself to the last bit.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from execution.orders import OrderState, Submit
from live.bybit.codec import Call
from live.messages import Append, Command, Effect, Input, PublicFrame, Tick
from market.units import MS_NS, SECOND_NS
from proving.sandbox import faults as venue_faults
from proving.sandbox.virtual import Delivery, VirtualVenue
from proving.torture import faults
from proving.torture.coverage import RECENT_NS
from proving.torture.disk import Disk
from proving.torture.incidents import INCIDENTS, fill_part
from proving.torture.invariants import LIVELY_NS, Judge
from proving.torture.life import Life, Terms
from proving.torture.network import HALF_OPEN_NS, Heap, Network, Wire
from proving.torture.process import Process

START_UP_NS: Final = 5 * SECOND_NS
FAULTS_NS: Final = 35 * SECOND_NS
#: The calm lasts so long at least, and until an order is filled.
CALM_NS: Final = 12 * SECOND_NS
#: A worker that is stopped for a new version gets so long.
UPGRADE_NS: Final = 5 * SECOND_NS
#: What is on its way when the worker has ended arrives within this.
LATE_NS: Final = 2 * SECOND_NS
#: A stopped worker says what is left within this.
STOP_NS: Final = 20 * SECOND_NS
#: How long a dead process stays away (ms).
_AWAY_MS: Final = (200, 8000)
#: An operator's command is taken back after this (ms).
_COMMAND_MS: Final = (2000, 14_000)

#: A fault may wait for an order in a state that passes quickly, so long at most.
_AIMS: Final = (
    *(None, None, OrderState.PENDING_NEW, OrderState.NEW),
    *(OrderState.PARTIALLY_FILLED, OrderState.PARTIALLY_FILLED, OrderState.PENDING_CANCEL),
)
_AIM_NS: Final = 6 * SECOND_NS
#: Where a fault waits for a partially filled order, one is filled in part, every so often.
PART_NS: Final = SECOND_NS // 2
#: The requests that a fault waits for.
_ROUTES: Final = ("", "", "order/create", "order/amend", "order/cancel")


class Aimed(NamedTuple):
    """A fault that waits for an order in a state, and strikes without one in the end."""

    state: OrderState
    until_ns: int
    due: faults.Due
    dice: random.Random


class World:
    """A run of one seed on a venue that stands at its beginning. ``trace`` gets a line per event."""

    def __init__(
        self,
        seed: int,
        venue: VirtualVenue,
        folder: Path,
        trace: Callable[[str], None] | None = None,
        client: int = 0,
    ) -> None:
        self.seed, self.venue, self.met = seed, venue, Counter[tuple[str, str]]()
        self.dice = random.Random(f"{seed}/world")
        self.client = venue.clients[client]
        self.other = venue.clients[2]
        self.symbols = tuple(venue.exchange.instruments)
        self.start_ns = venue.now_ns
        self.faults_end_ns = self.start_ns + START_UP_NS + FAULTS_NS
        self.heap = Heap(self.start_ns)
        venue.clock = lambda: self.heap.now_ns
        self.network = Network(self.heap, self.dice)
        self.terms = Terms.drawn(seed, venue)
        self.disk = Disk(folder)
        self.judge = Judge(
            venue.exchange, self.heap, self.client, self.symbols, self.terms.limit_usdt
        )
        self.life = Life(self.terms, self.disk)
        self.process: Process | None = None
        self.digest = hashlib.blake2b(digest_size=8)
        self._aimed: list[Aimed] = []
        self._commands: list[Command] = []  #: of an operator, that are not done yet
        self._part_ns = 0  #: until then no other order is filled in part
        self._trace, self._seen_faults = trace, len(venue.faults.log)

    # -- the run -----------------------------------------------------------------------------------

    def run(self) -> Judge:
        """From the first start to the last comparison."""
        self._begin()
        for due in faults.schedule(self.seed, self.start_ns + START_UP_NS, self.faults_end_ns):
            self.heap.at(due.at_ns, partial(self._strike, due))
        self._until(self.faults_end_ns)
        self._end_faults()
        filled = self.judge.filled
        self._until(
            self.faults_end_ns + LIVELY_NS,
            lambda: self.heap.now_ns >= self.faults_end_ns + CALM_NS and self.judge.filled > filled,
        )
        self.judge.check_liveliness(filled)
        self._command("stop", reason="end of the run", limits={"flatten": 1.0})
        core = self.life.core
        assert core is not None
        self._until(self.heap.now_ns + STOP_NS, lambda: core.ended)
        self._until(self.heap.now_ns + LATE_NS)
        self.judge.settled(core.orders, core.account, self.life.end())
        for difference in self.life.repeated():
            self.judge.found(11, difference)
        return self.judge

    def _until(self, end_ns: int, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Time passes, until a time or as soon as ``is_enough``."""
        venue, heap = self.venue, self.heap
        while heap.now_ns < end_ns and not is_enough():
            # The venue is advanced when something leaves it or reaches it, not at every event.
            stop_ns = min(end_ns, heap.next_ns)
            if venue.next_ns <= stop_ns:
                stop_ns = venue.next_ns
                self._deliver(venue.advance(stop_ns))
            heap.run(stop_ns)
            self._deliver(venue.advance(venue.now_ns))
            if self._aimed:
                self._take_aim()
            self._count_faults()
            self.judge.watch(self.process)

    def _deliver(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            wire = self._wire_of(delivery.connection)
            if wire is not None:
                wire.down(delivery)

    def _wire_of(self, remote: object) -> Wire | None:
        wires = self.process.wires.values() if self.process is not None else ()
        return next((wire for wire in wires if wire.remote is remote), None)

    @property
    def _alive(self) -> Process | None:
        """The process that runs; None while there is none."""
        process = self.process
        return process if process is not None and process.is_alive else None

    def _begin(self) -> None:
        """A process starts, after a crash from what its log holds."""
        if self._alive is not None:
            return
        self.judge.began()
        self._say("start")
        self.process = self.life.begin(
            self.heap, self.network, self.venue, self.client, self, self._died
        )
        self.process.commands = self._commands
        self.process.start()
        for command in list(self._commands):
            self.process.give(command)

    def _died(self) -> None:
        self._say("died")
        self.judge.counts["crashes"] += 1
        self.heap.after(self.dice.randint(*_AWAY_MS) * MS_NS, self._begin)

    # -- what is observed --------------------------------------------------------------------------

    def given(self, process: Process, now_ns: int, body: Input) -> None:
        self.judge.given(process, now_ns, body)
        if not isinstance(body, PublicFrame | Tick):
            self._show("in", body)

    def made(self, process: Process, now_ns: int, effect: Effect) -> None:
        self.judge.made(process, now_ns, effect)
        self.digest.update(msgspec.msgpack.encode(effect))
        if not isinstance(effect, Append):
            self._show("out", effect)

    def left(self, process: Process, submit: Submit) -> None:
        self.judge.left(process, submit)

    def carried_out(self, process: Process, call: Call) -> None:
        self.judge.carried_out(process, call)
        self._show("venue", call)

    def _say(self, what: str, text: str = "") -> None:
        self.digest.update(f"{self.heap.now_ns} {what} {text}".encode())
        self._show(what, text)

    def _show(self, what: str, event: object) -> None:
        if self._trace is not None:
            at_s = (self.heap.now_ns - self.start_ns) / SECOND_NS
            self._trace(f"{at_s:10.6f} {what:6} {event}")

    # -- faults ------------------------------------------------------------------------------------

    def _strike(self, due: faults.Due) -> None:
        dice = random.Random(due.draw)
        if (aim := dice.choice(_AIMS)) is None:
            self._hit(due, dice)
        else:
            self._aimed.append(Aimed(aim, due.at_ns + _AIM_NS, due, dice))

    def _take_aim(self) -> None:
        """Strike with the faults whose state an order is in, or that have waited for long enough."""
        core, now_ns = self.life.core, self.heap.now_ns
        states = {order.state for order in core.orders.open()} if core is not None else set()
        wanted = {aimed.state for aimed in self._aimed} - states
        if OrderState.PARTIALLY_FILLED in wanted and now_ns >= self._part_ns:
            self._part_ns = now_ns + PART_NS
            self.venue.catch_up()
            fill_part(self.venue.exchange, self.client, self.other)
        waiting, self._aimed = self._aimed, []
        for aimed in waiting:
            if aimed.state in states or now_ns >= aimed.until_ns:
                self._hit(aimed.due, aimed.dice)
            else:
                self._aimed.append(aimed)

    def _hit(self, due: faults.Due, dice: random.Random) -> None:
        if due.kind in venue_faults.KINDS:
            self._strike_venue(due, dice)
            return
        alive = self._alive
        if due.kind == "stop_fired" and alive is not None and dice.random() < 0.5:
            alive.die()
        if due.kind in INCIDENTS:
            self.venue.catch_up()
            symbol = dice.choice(self.symbols)
            struck = INCIDENTS[due.kind](self.venue.exchange, self.client, symbol, dice)
            if struck and due.kind == "unknown_execution":
                self.judge.unknown[self.client.executions[-1]["execId"]] = symbol
        else:
            struck = getattr(self, f"_{due.kind}")(dice)
        if struck:
            self._meet(due.kind)

    def _strike_venue(self, due: faults.Due, dice: random.Random) -> None:
        place = venue_faults.KINDS[due.kind].place
        to = what = ""
        if place == "request":
            to = self.client.key
            what = dice.choice(_ROUTES)
        elif place != "venue" and self.process is not None:
            to = dice.choice([wire.remote.name for wire in self.process.wires.values()])
        elif due.kind == "delist":
            what = dice.choice(self.symbols)
        self.venue.command(due.kind, to, what, ms=faults.duration_ms(due.kind, due.draw))
        if due.kind == "clock":
            self.heap.after(dice.randint(1000, 8000) * MS_NS, self._correct_clock)

    def _correct_clock(self) -> None:
        self.venue.catch_up()
        self.venue.faults.clock_error_ms = 0

    def _count_faults(self) -> None:
        """The venue's faults strike when a request or frame comes; its log says when."""
        log = self.venue.faults.log
        for at in range(self._seen_faults - len(log), 0):
            if log[at].what != "nobody":
                self._meet(log[at].kind)
        self._seen_faults = len(log)

    def _meet(self, kind: str) -> None:
        """A fault strikes: every order that is open, or was a moment ago, meets it."""
        self._say("fault", kind)
        self.judge.counts["faults"] += 1
        core, since_ns = self.life.core, self.heap.now_ns - RECENT_NS
        for state in {
            order.state
            for order in (core.orders.by_id.values() if core is not None else ())
            if not order.state.is_final or order.changed_ns >= since_ns
        }:
            self.met[kind, state] += 1

    def _end_faults(self) -> None:
        self.venue.catch_up()
        self.venue.faults.clear()
        self._aimed.clear()
        self.judge.faults_end_ns = self.heap.now_ns
        self._begin()
        assert self.process is not None
        self.process.skew_ns = self.process.busy_until_ns = 0
        self.process.spare()
        for after_ns in (0, HALF_OPEN_NS, HALF_OPEN_NS + 2 * SECOND_NS):  # some evidence comes late
            self.heap.after(after_ns, self._resume)

    def _upgrade(self, dice: random.Random) -> bool:
        left = {"leave": 1.0} if dice.random() < 0.7 else {}  # resting orders, or positions alone
        process = self._alive
        if process is None or not self._command("stop", "an upgrade", limits=left):
            return False
        self._replace(process, self.heap.now_ns + UPGRADE_NS)
        return True

    def _replace(self, process: Process, until_ns: int) -> None:
        """Start a new version when the process has ended, or is out of time."""
        if process is not self._alive:
            return
        if not process.core.ended and self.heap.now_ns < until_ns:
            self.heap.after(100 * MS_NS, partial(self._replace, process, until_ns))
            return
        self._say("upgrade")
        self.judge.counts["upgrades"] += 1
        self.life.end()
        self.life.version += 1
        process.leave()
        self.heap.after(self.dice.randint(*_AWAY_MS) * MS_NS, self._begin)

    def _kill(self, dice: random.Random) -> bool:
        return self._crash(dice, power=False)

    def _power_cut(self, dice: random.Random) -> bool:
        return self._crash(dice, power=True)

    def _crash(self, dice: random.Random, *, power: bool) -> bool:
        if self._alive is None:
            return False
        self.life.power = power
        self._alive.kill_after(dice.randrange(40), sending=dice.random() < 0.6)
        return True

    def _busy(self, dice: random.Random) -> bool:
        return self._disturb("busy_until_ns", self.heap.now_ns + dice.randint(200, 4000) * MS_NS)

    def _skew(self, dice: random.Random) -> bool:
        self.heap.after(dice.randint(2000, 8000) * MS_NS, lambda: self._correct("skew_ns"))
        return self._disturb("skew_ns", dice.choice((-1, 1)) * dice.randint(100, 6000) * MS_NS)

    def _disturb(self, name: str, value: int) -> bool:
        if self._alive is None:
            return False
        setattr(self._alive, name, value)
        return True

    def _correct(self, name: str) -> None:
        self._disturb(name, 0)

    def _command(self, command: str, reason: str = "a drill", **more: Any) -> bool:
        if self._alive is None:
            return False
        given = Command(command=command, who="operator", reason=reason, **more)
        if command != "stop":  # which is a signal to a process, and no file
            self._commands.append(given)
        self._alive.give(given)
        return True

    def _operate(self, dice: random.Random, command: str, **more: Any) -> bool:
        self.heap.after(dice.randint(*_COMMAND_MS) * MS_NS, self._resume)
        return self._command(command, **more)

    def _resume(self) -> None:
        self._command("resume")

    def _halt(self, dice: random.Random) -> bool:
        if dice.random() < 0.5:  # it outlasts the process
            self.heap.after(
                SECOND_NS, partial(self._strike, faults.Due(0, "kill", dice.getrandbits(32)))
            )
        return self._operate(dice, "halt")

    def _flatten(self, dice: random.Random) -> bool:
        return self._operate(dice, "flatten")

    def _pause(self, dice: random.Random) -> bool:
        return self._operate(dice, "pause", symbol=dice.choice(self.symbols))

    def _limits(self, dice: random.Random) -> bool:
        tighter = self.terms.limit_usdt * dice.uniform(0.9, 1.0)
        return self._command("limits", limits={"position_usdt": tighter})
