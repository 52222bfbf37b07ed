"""Hand-made market rows, and a harness that shows them to a simulated venue."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from execution.algorithms.working import Working
from execution.orders import Action, Event, Filled, OrderType, Submit, TimeInForce
from execution.simulation.simulator import Simulator
from execution.tca import PARTS, Shortfall
from execution.venue import View
from market.events import EVENT, Events, Flag, Kind
from market.instruments import Instrument

SYMBOL = "TEST"
#: One tick is 1, one lot is 1: prices and quantities in the tests are what they look like.
INSTRUMENT = Instrument(
    symbol=SYMBOL,
    tick="1",
    lot="1",
    min_qty="1",
    min_notional="0",
    taker_fee="0.00055",
    maker_fee="0.0002",
)
#: Bids 100×10, 99×20, 98×30; asks 101×10, 102×20, 103×30.
BIDS = ((100, 10), (99, 20), (98, 30))
ASKS = ((101, 10), (102, 20), (103, 30))


def frame(
    time_ns: int,
    bids: Iterable[tuple[int, int]] = (),
    asks: Iterable[tuple[int, int]] = (),
    *,
    kind: Kind = Kind.DELTA,
    exchange_ns: int | None = None,
    flags: int = 0,
) -> Events:
    """One whole book frame; levels are (price_ticks, qty_lots)."""
    levels = [(1, *level) for level in bids] + [(-1, *level) for level in asks]
    rows = np.zeros(max(1, len(levels)), EVENT)
    rows["receive_ns"] = time_ns
    rows["exchange_ns"] = time_ns if exchange_ns is None else exchange_ns
    rows["kind"] = kind
    if levels:
        rows["side"], rows["price_ticks"], rows["qty_lots"] = zip(*levels, strict=True)
    rows["flags"][0] |= Flag.FIRST | flags
    rows["flags"][-1] |= Flag.LAST
    return rows


def snapshot(time_ns: int, bids: Any = BIDS, asks: Any = ASKS, **more: Any) -> Events:
    return frame(time_ns, bids, asks, kind=Kind.SNAPSHOT, **more)


def trade(
    time_ns: int,
    side: int,
    price_ticks: int,
    qty_lots: int,
    flags: int = 0,
    exchange_ns: int | None = None,
) -> Events:
    """One public trade; ``side`` is the taker's."""
    rows = np.zeros(1, EVENT)
    rows["receive_ns"] = time_ns
    rows["exchange_ns"] = time_ns if exchange_ns is None else exchange_ns
    rows["kind"], rows["side"] = Kind.TRADE, side
    rows["price_ticks"], rows["qty_lots"] = price_ticks, qty_lots
    rows["flags"] = Flag.LAST | flags
    return rows


def limit(
    client_id: str,
    side: int,
    price_ticks: int,
    qty_lots: int,
    time_in_force: TimeInForce = TimeInForce.GTC,
    **more: Any,
) -> Submit:
    return Submit(
        client_id=client_id,
        symbol=SYMBOL,
        side=side,
        qty_lots=qty_lots,
        price_ticks=price_ticks,
        time_in_force=time_in_force,
        **more,
    )


def market(client_id: str, side: int, qty_lots: int, **more: Any) -> Submit:
    return Submit(
        client_id=client_id,
        symbol=SYMBOL,
        side=side,
        qty_lots=qty_lots,
        order_type=OrderType.MARKET,
        **more,
    )


class Tape:
    """A simulator without latency whose market is written line by line, 1 µs apart."""

    def __init__(self, simulator: Simulator | None = None, **more: Any) -> None:
        self.simulator = simulator or Simulator(
            {SYMBOL: INSTRUMENT}, entry_latency_ns=0, response_latency_ns=0, **more
        )
        self.now_ns = 1_000_000
        self.events: list[Event] = []

    def wait(self, time_ns: int = 1_000) -> list[Event]:
        """Let time pass on a silent feed; the events received meanwhile."""
        self.now_ns += time_ns
        self.simulator.on_events(SYMBOL, frame(self.now_ns + 1))
        self.simulator.advance(self.now_ns)
        events = list(self.simulator.poll())
        self.events += events
        return events

    def shows(self, bids: Any = (), asks: Any = (), **more: Any) -> list[Event]:
        self.now_ns += 2
        self.simulator.on_events(SYMBOL, frame(self.now_ns, bids, asks, **more))
        return self.wait()

    def opens(self, bids: Any = BIDS, asks: Any = ASKS) -> Tape:
        self.shows(bids, asks, kind=Kind.SNAPSHOT)
        return self

    def prints(self, side: int, price_ticks: int, qty_lots: int, flags: int = 0) -> list[Event]:
        self.now_ns += 2
        self.simulator.on_events(SYMBOL, trade(self.now_ns, side, price_ticks, qty_lots, flags))
        return self.wait()

    def send(self, *actions: Any) -> list[Event]:
        self.simulator.send(actions)
        return self.wait()

    @property
    def position(self) -> int:
        return self.simulator.position_lots(SYMBOL)


def fills(events: Sequence[Event], client_id: str | None = None) -> list[tuple[int, int]]:
    """(price_ticks, qty_lots) of the executions among events, of one order or of all."""
    return [
        (e.price_ticks, e.qty_lots)
        for e in events
        if isinstance(e, Filled) and client_id in (None, e.client_id)
    ]


def kinds(events: Sequence[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def play(working: Working, now_ns: int, view: View, events: Iterable[Event]) -> list[Action]:
    """Step an algorithm after these events, and send all that it asks for."""
    orders = working.orders
    changed = [order for event in events if (order := orders.apply(event)) is not None]
    actions = list(working.step(now_ns, view, changed))
    for action in actions:
        if isinstance(action, Submit):
            orders.sent(action, working.parent.id, now_ns)
        else:
            orders.requested(action, now_ns)
    return actions


def residual_bps(row: Shortfall) -> float:
    """Parts of a cost minus their total: zero to 1e-9."""
    return math.fsum(getattr(row, part) for part in PARTS) - row.total_bps
