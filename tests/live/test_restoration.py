"""A new process knows what the log's evidence says, wherever a crash cut it; a run repeats from its log."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.account import Account
from execution.order_machine import Orders
from execution.orders import (
    Accepted,
    Amend,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    Lost,
    Rejected,
    Submit,
)
from execution.tca import ParentRow
from live import log
from live.core import CoreState
from live.desk import DeskState
from live.funding import FundingPayment
from live.gateway import PlainCodec
from live.log import Body, Checkpoint, Header, LogWriter
from live.messages import (
    Answer,
    Append,
    Effect,
    Expired,
    Input,
    PositionReport,
    PrivateFrame,
    PublicFrame,
    Send,
    Tick,
)
from live.replay import replay
from live.requests import Requests
from live.restoration import checkpoint_of, restore, state_of
from live.safety import SafetyState
from market.instruments import BUILT_IN

T = 1_700_000_000_000_000_000
SYMBOL = "BTCUSDT"
INSTRUMENTS = {SYMBOL: BUILT_IN[SYMBOL]}
HEADER = Header(
    venue="paper", account="", source="synthetic", instruments={}, settings=b"", code="", run="r1"
)
CODEC = PlainCodec()


class Machine:
    """A small core over the real order machine and account: every tick it sends something, at random but
    by its seed; it records what it does as the contract says. `step` yields each effect as it is made.
    """

    def __init__(self, state: CoreState) -> None:
        self.orders = Orders()
        self.orders.restore(state.orders, state.executions)
        self.account = Account(INSTRUMENTS, 10**12)
        if state.account is not None:
            self.account.restore(state.account)
        self.requests = Requests(10**9)
        self.requests.restore(state.requests)
        self.parents, self.open = state.desk.parent_number, dict(state.desk.open)
        self.fills = {key: list(fills) for key, fills in state.desk.fills.items()}
        self.safety = state.safety
        self.answered: Answer | Expired | None = None

    def state(self) -> CoreState:
        return CoreState(
            orders=tuple(self.orders.by_id.values()),
            executions=tuple(self.orders.executions()),
            account=self.account.snapshot(),
            requests=self.requests.snapshot(),
            safety=self.safety,
            desk=DeskState(
                parent_number=self.parents,
                open=self.open,
                fills={key: tuple(fills) for key, fills in self.fills.items()},
            ),
        )

    def take(self, now_ns: int, given: Input) -> None:
        """What is known once an input is on record: the request before was handled."""
        match self.answered:
            case Answer(request=number):
                self.requests.answered(number)
            case Expired(request=number):
                self.requests.expired(number)
        self.answered = given if isinstance(given, Answer | Expired) else None

    def step(self, now_ns: int, given: Input) -> Iterator[Effect]:
        self.take(now_ns, given)
        match given:
            case PrivateFrame():
                for event in CODEC.evidence(now_ns, given.frame):
                    yield from self._learn(event)  # type: ignore[arg-type]
            case Answer():
                for event in CODEC.evidence(now_ns, given.body):
                    yield from self._learn(event)  # type: ignore[arg-type]
            case Expired() if (send := self.requests.under_way.get(given.request)) is not None:
                lost = Lost(
                    client_id=send.body.client_id,  # type: ignore[union-attr]
                    time_ns=now_ns,
                    venue_ns=now_ns,
                    reason="late",
                )
                yield from self._learn(lost)
            case Tick():
                yield from self._act(now_ns, random.Random(f"{self.parents} {now_ns}"))

    def _learn(self, event: Event) -> Iterator[Effect]:
        order = self.orders.apply(event)
        booked = isinstance(event, Filled) and self.account.apply(event)
        if order is not None or booked:
            parent_id = order.parent_id if order else ""
            if isinstance(event, Filled) and parent_id in self.fills:
                self.fills[parent_id].append(event)
            yield self._append("event", event.time_ns, event, parent_id, event.client_id)

    def _act(self, now_ns: int, chance: random.Random) -> Iterator[Effect]:
        open_ids = [order.client_id for order in self.orders.open()]
        action: Submit | Cancel | Amend
        if not open_ids or chance.random() < 0.5:
            self.parents += 1
            parent_id = f"p{self.parents}"
            row = ParentRow(
                parent_id=parent_id, symbol=SYMBOL, side=1, algorithm="passive", venue="paper",
                qty_lots=9, size_usdt=1.0, decision_ns=now_ns, deadline_ns=now_ns,
                decision_mid_ticks=1.5,
            )  # fmt: skip
            self.open[parent_id], self.fills[parent_id] = row, []
            yield self._append("parent", now_ns, row, parent_id)
            action = Submit(
                client_id=f"{parent_id}-1", symbol=SYMBOL, side=chance.choice((1, -1)), qty_lots=9
            )
            self.orders.sent(action, parent_id, now_ns)
        else:
            client_id = chance.choice(open_ids)
            parent_id = self.orders.by_id[client_id].parent_id
            amend = Amend(client_id=client_id, qty_lots=chance.randint(5, 12))
            action = chance.choice((Cancel(client_id=client_id), amend))
            self.orders.requested(action, now_ns)
        yield self._append("intent", now_ns, action, parent_id, action.client_id)
        yield self.requests.open(now_ns, action)
        if self.open and chance.random() < 0.3:
            ended = next(iter(self.open))
            del self.open[ended], self.fills[ended]
            yield self._append("end", now_ns, {}, ended)
        yield from self._money(now_ns, chance)
        if chance.random() < 0.2:
            self.safety = SafetyState(day=self.safety.day + 1 if self.safety else 1)
            body = msgspec.json.encode(self.safety)
            yield Append(kind="section/safety", time_ns=now_ns, body=body)

    def _money(self, now_ns: int, chance: random.Random) -> Iterator[Effect]:
        """Funding told by the venue or figured by us, a position taken from it, a mark to market."""
        payment = FundingPayment(
            symbol=SYMBOL, time_ns=now_ns, position_lots=1, mark_e8=0, rate_e8=0, paid_e8=3
        )
        account, kind = self.account, chance.randrange(6)
        if kind == 0:
            if account.fund(exec_id := f"f{chance.randint(0, 3)}", SYMBOL, 3, now_ns):
                yield self._append("funding", now_ns, payment, "", exec_id)
        elif kind == 1:
            account.pay(SYMBOL, 3, now_ns)
            yield self._append("funding", now_ns, payment, "")
        elif kind == 2:
            report = PositionReport(
                symbol=SYMBOL, lots=chance.randint(-5, 5), entry_e8=10**13, venue_ns=now_ns
            )
            account.adopt(SYMBOL, report.lots, report.entry_e8, report.venue_ns)
            yield self._append("adopted", now_ns, report, "")
        elif kind == 3:
            account.mark(now_ns, {SYMBOL: 600_000.0 + chance.randint(-99, 99)})
            yield self._append("equity", now_ns, account.marks(), "")

    def _append(
        self, kind: str, time_ns: int, body: object, parent_id: str, client_id: str = ""
    ) -> Append:
        return Append(
            kind=kind,
            time_ns=time_ns,
            body=msgspec.json.encode(body),
            symbol=SYMBOL,
            parent_id=parent_id,
            client_id=client_id,
        )


def events(chance: random.Random, now_ns: int, ids: Sequence[str]) -> list[Event]:
    """Evidence of any kind, of orders of ours and not, repeated and out of order."""
    made: list[Event] = []
    for _ in range(chance.randint(1, 3)):
        about = {
            "client_id": chance.choice([*ids, "", "p1-1"]),
            "time_ns": now_ns,
            "venue_ns": now_ns - chance.randint(0, 5),
        }
        kind = chance.choice([Accepted, Filled, Filled, Cancelled, Rejected, CancelRejected, Lost])
        if kind is Filled:
            made.append(
                Filled(
                    **about, exec_id=f"e{chance.randint(0, 30)}", symbol=SYMBOL, side=1,
                    qty_lots=chance.randint(1, 4), price_ticks=600_000 + chance.randint(-9, 9),
                    liquidity=Liquidity.MAKER, fee_e8=7, leaves_lots=0,
                )
            )  # fmt: skip
        elif kind is Accepted:
            made.append(Accepted(**about))
        else:
            made.append(kind(**about, reason="r"))
    return made


def inputs(chance: random.Random, machine: Machine, now_ns: int) -> Input:
    ids = list(machine.orders.by_id)
    number = chance.choice([*machine.requests.under_way, 77])
    frame = CODEC.encode(list(events(chance, now_ns, ids)))
    return chance.choice(
        [
            Tick(),
            Tick(),
            PrivateFrame(frame=frame),
            PublicFrame(frame=b"{}"),
            Answer(request=number, body=frame),
            Expired(request=number, reason="late"),
        ]
    )


class Run:
    """A run of the machine with its log, a block a record, and the state after each record."""

    def __init__(self, folder: Path, seed: int, steps: int) -> None:
        chance = random.Random(seed)
        machine = Machine(CoreState())
        self.out = LogWriter(folder, HEADER, T, reserve_bytes=0, fdatasync=lambda _: None)
        #: (segment, end of the block) -> state
        self.states = {self.place: encoded(machine.state())}
        for n in range(1, steps):
            if chance.random() < 0.1:
                machine.take(T + n, Tick())  # between steps the last one was handled
                self.out.turn(T + n, checkpoint_of(machine.state()))
                self.out.flush()
                self.states[self.place] = encoded(machine.state())
            given = inputs(chance, machine, T + n)
            self.out.append_input(T + n, given)
            self._note(machine, given)
            for effect in machine.step(T + n, given):
                self.out.append_effects(T + n, [effect])
                self._note(machine)
        self.out.close()

    def _note(self, machine: Machine, given: Input | None = None) -> None:
        self.out.flush()
        if given is not None:
            before = machine.answered
            machine.take(T, given)
            machine.answered, self.states[self.place] = before, encoded(machine.state())
        else:
            self.states[self.place] = encoded(machine.state())

    @property
    def place(self) -> tuple[int, int]:
        return self.out._number, self.out._offset


def encoded(state: CoreState) -> dict[str, bytes]:
    return checkpoint_of(state).sections


@settings(derandomize=True, max_examples=6, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_cut_anywhere_leaves_the_state_of_what_survived(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Invariant, for every boundary of records and torn blocks behind it: orders, executions, money,
    requests, parents and sections are those of the machine after the records that survived."""
    folder = tmp_path_factory.mktemp("log")
    run = Run(folder, seed, 40)
    chance = random.Random(seed)
    for (segment, end), expected in reversed(run.states.items()):
        path = log.segments(folder)[segment]
        for later in [p for number, p in log.segments(folder).items() if number > segment]:
            later.unlink()
        data = path.read_bytes()[: end + chance.choice((0, 0, 1, 20, 30))]
        path.write_bytes(data)
        restored = restore(folder, INSTRUMENTS, 10**12)
        assert restored is not None
        assert encoded(restored.state) == expected, (segment, end)
    assert restore(folder / "empty", INSTRUMENTS, 0) is None


def test_an_answer_whose_effects_are_missing_leaves_its_request_open(tmp_path: Path) -> None:
    """The last input of a log may not have been handled: its request is asked about, not forgotten."""
    out = LogWriter(tmp_path, HEADER, T)
    send = Send(number=7, body=Cancel(client_id="p1-1"), deadline_ns=T + 1)
    out.append_effects(T, [send])
    out.append_input(T + 1, Answer(request=7, body=b"[]"))
    out.close()
    restored = restore(tmp_path, INSTRUMENTS, 0)
    assert restored is not None
    assert restored.state.requests.under_way == (send,)
    assert restored.state.requests.number == 7


def test_what_follows_a_checkpoint_alone_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path, 3, 60)
    first, *_, last = log.segments(tmp_path).values()
    first.write_bytes(b"not even a log")
    restored = restore(tmp_path, INSTRUMENTS, 10**12)
    assert restored is not None
    assert encoded(restored.state) == list(run.states.values())[-1]
    header = log.header_of(last)
    assert state_of(header.checkpoint).desk.parent_number > 0


# -- repeating a run -------------------------------------------------------------------------------


class Again:
    """The machine as `again` drives it; ``wrong_ns`` is when it does what it did not."""

    def __init__(self, header: Header, wrong_ns: int = 0) -> None:
        self.machine, self.wrong_ns = Machine(state_of(header.checkpoint)), wrong_ns

    def begin(self, now_ns: int) -> Sequence[Effect]:
        return []

    def step(self, now_ns: int, given: Input) -> Sequence[Effect]:
        made = list(self.machine.step(now_ns, given))
        return made[:-1] if made and now_ns >= self.wrong_ns > 0 else made

    def checkpoint(self) -> Checkpoint:
        self.machine.take(T, Tick())
        return checkpoint_of(self.machine.state())


def bodies(folder: Path) -> list[tuple[int, Body]]:
    return [record for block in log.read(folder) for record in block.records]


def test_a_run_repeats_from_its_log_with_the_same_effects(tmp_path: Path) -> None:
    Run(tmp_path, 5, 80)
    records = bodies(tmp_path)
    told = replay(tmp_path, 2, Again)
    assert told.difference == ""
    assert told.run == "r1"
    assert told.inputs == sum(isinstance(body, Input) for _, body in records) == 79
    assert told.effects == sum(isinstance(body, Effect) for _, body in records) > 50


def test_the_first_difference_is_told_with_its_place(tmp_path: Path) -> None:
    Run(tmp_path, 5, 80)
    wrong_ns = T + 40
    told = replay(tmp_path, 0, lambda header: Again(header, wrong_ns))
    assert "record 0 of the block at byte" in told.difference
    assert "the log has Send(" in told.difference or "the log has Append(" in told.difference
    assert told.difference.endswith("now None")
    assert 0 < told.inputs < 79
    with pytest.raises(log.LogError, match="no segment 99; it has 1, 2"):
        replay(tmp_path, 99, Again)


def test_a_state_that_drifted_is_told_at_the_next_checkpoint(tmp_path: Path) -> None:
    Run(tmp_path, 5, 80)

    def poorer(header: Header) -> Again:
        core = Again(header)
        core.machine.account.holdings[SYMBOL].closed_e8 -= 1
        return core

    assert "another checkpoint: account" in replay(tmp_path, 0, poorer).difference
