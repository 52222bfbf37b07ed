"""Whatever is lost, late, repeated or cut: in the end log and venue agree, by evidence.

1. Once everything arrives again, open orders and position are the same in log and venue.
2. No order is ever sent twice, and an order counts as refused only when the venue never had it.
3. Every execution is in the position once; an order's executions are its cumulative count at the venue.
4. A position has its stop at the venue.
5. Nothing is opened while an order is unknown, and trading goes on in the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution.orders import Amend, Cancel, OrderState, Submit, TimeInForce
from live.messages import Send
from live.reconciliation import Phase
from live.safety import Mode
from tests.live import fate
from tests.live.fate import MID, Desk, S, Venue

STEPS = (
    "submit",
    "take",
    "reduce",
    "cancel",
    "amend",
    "fill",
    "stop",
    "late",
    "again",
    "deaf",
    "hear",
    "lose",
    "heal",
    "crash",
    "wait",
    "wait",
)


class Play:
    """A sequence of what can happen, by one source of chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.desk = Desk(Venue(), fate.settings(differences="halt"))
        self.desk.start()
        self.number = 0
        self.cut: list[Any] = []  #: evidence that came late

    def step(self, name: str) -> None:
        getattr(self, name)()

    def _pick(self) -> Any:
        open_orders = [o for o in self.desk.orders.open() if not o.state.is_final]
        return self.chance.choice(open_orders) if open_orders else None

    def submit(self, **fields: Any) -> None:
        if self.desk.fate.may_open(S) or fields.get("reduce_only"):
            self.number += 1
            self.desk.submit(f"{S}-1-{self.number}", self.chance.randint(1, 20), **fields)

    def take(self) -> None:
        self.submit(time_in_force=TimeInForce.IOC, side=self.chance.choice((1, -1)))

    def reduce(self) -> None:
        side = -1 if self.desk.lots > 0 else 1
        self.submit(time_in_force=TimeInForce.IOC, side=side, reduce_only=True, stop_ticks=0)

    def cancel(self) -> None:
        if (order := self._pick()) is not None:
            self.desk.request(Cancel(client_id=order.client_id))

    def amend(self) -> None:
        order = self._pick()
        if order is not None and not order.crosses and not order.amend_lots:
            lots = order.filled_lots + self.chance.randint(1, 20)
            self.desk.request(Amend(client_id=order.client_id, qty_lots=lots))

    def fill(self) -> None:
        resting = [c for c, o in self.desk.venue.orders.items() if not o.state.is_final]
        if resting:
            client_id = self.chance.choice(resting)
            order = self.desk.venue.orders[client_id]
            self.desk.venue.fill(
                client_id, self.chance.randint(1, max(1, order.qty - order.filled))
            )
            self.desk.settle()

    def stop(self) -> None:
        venue = self.desk.venue
        if venue.lots and venue.stop:
            side = -1 if venue.lots > 0 else 1
            venue.fill("", abs(venue.lots), side=side, price=venue.stop)
            self.desk.settle()

    def late(self) -> None:
        """Evidence under way is held back, some of it for ever."""
        self.fill_quietly()
        self.cut += self.desk.venue.outbox
        self.desk.venue.outbox = []

    def fill_quietly(self) -> None:
        hears, self.desk.hears = self.desk.hears, False
        resting = [c for c, o in self.desk.venue.orders.items() if not o.state.is_final]
        if resting:
            self.desk.venue.fill(resting[0], 1)
        self.desk.hears = hears

    def again(self) -> None:
        self.chance.shuffle(self.cut)
        self.desk.tell(*self.cut[:5])

    def deaf(self) -> None:
        self.desk.link(up=False)

    def hear(self) -> None:
        self.desk.link(up=True)

    def lose(self) -> None:
        arrives, returns = self.chance.random() < 0.5, self.chance.random() < 0.5
        share = self.chance.random()

        def reaches(send: Send) -> tuple[bool, bool]:
            if self.chance.random() < share:
                return arrives, returns and arrives
            return True, True

        self.desk.reaches = reaches

    def heal(self) -> None:
        self.desk.reaches = lambda send: (True, True)

    def crash(self) -> None:
        self.desk.crash()
        self.desk.start()

    def wait(self) -> None:
        self.desk.run(self.chance.choice((0.1, 1.0, 3.0, 12.0)), step_ms=100)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.lists(st.sampled_from(STEPS), max_size=40))
def test_in_the_end_log_and_venue_agree(seed: int, steps: list[str]) -> None:
    play = Play(seed)
    desk, venue = play.desk, play.desk.venue
    arrived: list[str] = []
    take: Callable[[Send], Any] = venue.take

    def counted(send: Send) -> Any:
        if isinstance(send.body, Submit):
            arrived.append(send.body.client_id)
        return take(send)

    venue.take = counted
    for step in steps:
        play.step(step)
    play.heal()
    play.hear()
    desk.run(100, step_ms=500)
    assert desk.agrees()
    assert len(arrived) == len(set(arrived))
    sent = [body.client_id for body in desk.bodies(Submit)]
    assert len(sent) == len(set(sent))
    for client_id, order in desk.orders.by_id.items():
        assert (order.state is OrderState.REJECTED) == (client_id not in venue.orders)
        theirs = venue.orders.get(client_id)
        assert order.filled_lots == (theirs.filled if theirs is not None else 0)
        assert order.state is not OrderState.UNKNOWN
    assert desk.lots == sum(fill.side * fill.qty_lots for fill in venue.fills)
    if venue.lots:
        side = 1 if venue.lots > 0 else -1
        assert venue.stop
        assert side * (MID - venue.stop) > 0
    assert desk.fate.phase is Phase.TRADING
    assert desk.safety.mode(S) == Mode.NORMAL, "nothing was taken for somebody else's"
