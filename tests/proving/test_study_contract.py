"""The venue contract over the engine's venue, in a market that stands still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from execution.orders import Action, Amend, Event, Filled, Submit
from proving.study.branch import Branch, Why
from proving.study.venue import EngineVenue
from proving.synthetic.background import BACKGROUND
from proving.synthetic.matching import TimeInForce
from proving.synthetic.profiles import profile
from tests.execution.tape import ASKS, BIDS, SYMBOL
from tests.execution.venue_contract import VenueContract

MS = 1_000_000
TRADED = "BTCUSDT"


class QuietBranch(Branch):
    """A market in which nothing happens but what the test does."""

    def to_news(self, until_ns: int, arrival_ns: int, entry_ns: int, stops: bool) -> Why:
        picture, clock = self.picture, self._state.clock
        while True:
            limit = min(until_ns, self.now_ns)
            picture["now_ns"] = max(int(picture["now_ns"]), limit)
            if limit == until_ns:
                return Why.QUIET
            if self.now_ns >= arrival_ns:
                return Why.ARRIVED
            clock[0] = min(int(picture["now_ns"]) + entry_ns, arrival_ns) - self.midnight_ns

    def opens(self) -> int:
        """Replace the book by the contract's; returns the ticks that its price of zero stands for."""
        shift = (self.best(1) or 0) - 100
        for side in (1, -1):
            for ticks, _ in self.levels(side):
                for order in self._engine.queue(side, ticks):
                    self._engine.cancel(order.reference)
        for side, levels in ((1, BIDS), (-1, ASKS)):
            for price, lots in levels:
                self.enter(side, price + shift, lots, TimeInForce.GOOD_TILL_CANCELLED)
        return shift

    def enter(self, side: int, ticks: int, lots: int, force: TimeInForce) -> None:
        """An order of somebody else."""
        self._make_room()
        self._publish(self._engine.limit(side, ticks, lots, BACKGROUND, force))
        self._collect()


class EngineTape:
    """The harness of `tests.execution.tape.Tape` around the engine's venue."""

    def __init__(self) -> None:
        self.venue = EngineVenue(
            profile("default"),
            410,
            TRADED,
            "2026-03-01",
            entry_ns=MS,
            response_ns=0,
            taker_fee="0.00055",
            maker_fee="0.0002",
        )
        market: Any = self.venue.market
        market.__class__ = QuietBranch
        self.market: QuietBranch = market
        self.shift = self.market.opens()
        self.simulator, self.events = self, list[Event]()

    def send(self, *actions: Any) -> list[Event]:
        """Send actions; as the simulator's `send`, which takes them as one list, without waiting."""
        if len(actions) == 1 and not isinstance(actions[0], msgspec.Struct):
            self.venue.send([self._moved(action) for action in actions[0]])
            return []
        self.venue.send([self._moved(action) for action in actions])
        return self.wait()

    def _moved(self, action: Action) -> Action:
        more: dict[str, Any] = {}
        if isinstance(action, Submit):
            more["symbol"] = TRADED if action.symbol == SYMBOL else action.symbol
        if isinstance(action, Submit | Amend) and (action.price_ticks or 0) > 0:
            more["price_ticks"] = (action.price_ticks or 0) + self.shift
        return msgspec.structs.replace(action, **more)

    def wait(self) -> list[Event]:
        self.venue.advance(self.venue.now_ns + 2 * MS)
        return self._heard(self.venue.poll())

    def _heard(self, events: Sequence[Event]) -> list[Event]:
        moved = [
            msgspec.structs.replace(e, symbol=SYMBOL, price_ticks=e.price_ticks - self.shift)
            if isinstance(e, Filled)
            else e
            for e in events
        ]
        self.events += moved
        return moved

    def prints(self, side: int, price_ticks: int, qty_lots: int) -> list[Event]:
        """Somebody trades through everything better than a price, and ``qty_lots`` at it."""
        ticks = price_ticks + self.shift
        better = sum(lots for at, lots in self.market.levels(-side) if side * (ticks - at) > 0)
        self.market.enter(side, ticks, better + qty_lots, TimeInForce.IMMEDIATE_OR_CANCEL)
        self.venue._fill_resting(self.market.reports())
        return self.wait()

    def position_lots(self, symbol: str) -> int:
        return self.venue.position_lots(TRADED)

    @property
    def position(self) -> int:
        return self.venue.position_lots(TRADED)


class TestEngineVenue(VenueContract):
    @pytest.fixture
    def tape(self) -> EngineTape:
        return EngineTape()
