"""Parents at work and finished; what they cost is measured once their last markout is known, and recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from execution.algorithms import start
from execution.algorithms.working import Parent, Working
from execution.hazard import QueueEstimate
from execution.liquidity import Propagator
from execution.order_machine import Order, Orders
from execution.orders import Filled
from execution.tca import (
    ESTIMATES,
    MARKOUTS_S,
    PARTS,
    MidRecorder,
    Mids,
    ParentRow,
    Shortfall,
    markout_rows,
    order_row,
    shortfall,
)
from live.messages import Emitter
from market.events import Events
from market.instruments import Instrument
from market.units import SECOND_NS

#: Longest markout after a fill; a parent's cost is final only then.
MARKOUT_NS: Final = 60 * SECOND_NS


class ActiveParent(msgspec.Struct, kw_only=True):
    """A parent order being worked by its algorithm."""

    parent: Parent
    algorithm: Working
    name: str
    changed: dict[str, Order] = {}
    denied: bool = False  #: an action was denied since the last step
    row: ParentRow
    #: Client id -> displayed quantity (lots) in front of a limit order when it was sent.
    ahead: dict[str, float] = {}
    abandoned: bool = False
    #: Of an earlier process: its cost is that of a cut parent. ``waits``: for the first decision about it.
    adopted: bool = False
    waits: bool = False
    touch: tuple[int | None, int | None] = (None, None)
    timer_ns: int = 0
    expected_bps: float | None = None
    urgency: float | None = None
    #: By client id, where an order stands in its queue as far as `live.state_view` has looked: shown alone.
    queues: dict[str, QueueEstimate] = {}


def recorded_parent(row: ParentRow, resting: Sequence[Order]) -> Parent:
    """A parent as it was recorded, of which these orders rest."""
    names = ("symbol", "side", "qty_lots", "decision_ns", "deadline_ns", "decision_mid_ticks")
    return Parent(
        id=row.parent_id,
        reduce_only=any(order.submit.reduce_only for order in resting),
        **{name: getattr(row, name) for name in names},
    )


def adopted(row: ParentRow, filled: int, orders: Orders, band_bps: float) -> ActiveParent | None:
    """An earlier process's parent to go on with, pegged to the touch; None when no order of it rests."""
    mine = [order for order in orders.by_id.values() if order.parent_id == row.parent_id]
    resting = [o for o in mine if not (o.state.is_final or o.crosses or o.cancel_sent)]
    if not resting:
        return None
    working = start("passive", recorded_parent(row, resting), orders, band_bps)
    working.adopt(mine, filled)
    return ActiveParent(
        parent=working.parent,
        algorithm=working,
        name=row.algorithm,
        row=row,
        adopted=True,
        waits=True,
    )


class FinishedParent(msgspec.Struct, kw_only=True):
    """A finished parent order whose markouts are not known yet."""

    row: ParentRow
    parent: Parent
    fills: list[Filled]
    orders: tuple[str, ...]
    ahead: dict[str, float]
    picked: str
    arrival_ns: int | None
    end_ns: int

    @property
    def due_ns(self) -> int:
        """When its last markout and the mid at its deadline are known."""
        return max(self.end_ns + MARKOUT_NS, self.parent.deadline_ns)


class ParentCosts:
    """Measures parents of several symbols by the markets that it is shown (`on_events`).

    ``name`` is the venue's name in records. ``moves_market``: our orders are in the market data that we
    receive, and our fills among its trades. ``measured`` gets of every parent its row, its cost, and its
    realised less its expected cost in bps.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        orders: Orders,
        name: str,
        moves_market: bool,
        emitter: Emitter,
        measured: Callable[[ParentRow, Shortfall, float], None] = lambda row, cost, missed: None,
    ) -> None:
        self._instruments, self._orders, self._name = instruments, orders, name
        self._measured = measured
        self._moves_market, self._emitter = moves_market, emitter
        self._recorders = {symbol: MidRecorder() for symbol in instruments}
        self.mids = {symbol: recorder.mids for symbol, recorder in self._recorders.items()}
        self.waiting: list[FinishedParent] = []  #: finished, and not measured yet
        self.cut: dict[str, ParentRow] = {}  #: parents that an earlier process left without an end
        self.fills: dict[str, list[Filled]] = {}  #: of parents not measured yet, late ones too
        self._sums: dict[str, list[float]] = {}  #: figure -> its sum and count over parents

    def on_events(self, symbol: str, events: Events) -> None:
        """Take event rows of a symbol as received."""
        self._recorders[symbol].push(events)

    def carry(self, now_ns: int) -> dict[str, float]:
        """Carry the last mids forward to a time, as without a valid book; the mids in ticks."""
        for mids in self.mids.values():
            mids.until_ns = now_ns
        return self.last_mids()

    def last_mids(self) -> dict[str, float]:
        """The latest mids in ticks."""
        return {symbol: mids.at(mids.until_ns) for symbol, mids in self.mids.items()}

    def measure(self, now_ns: int, active: Sequence[Parent]) -> None:
        """Measure the parents that are due, and drop mids that neither they nor ``active`` ones need."""
        due = [ended for ended in self.waiting if now_ns > ended.due_ns]
        self.waiting = [ended for ended in self.waiting if now_ns <= ended.due_ns]
        for ended in due:
            self._measure(ended)
        for row in list(self.cut.values()):
            self._end_cut(now_ns, row)
        needed = [*active, *(ended.parent for ended in self.waiting)]
        for symbol, recorder in self._recorders.items():
            times = [parent.decision_ns for parent in needed if parent.symbol == symbol]
            recorder.forget(min(times, default=now_ns))

    def _end_cut(self, now_ns: int, row: ParentRow) -> None:
        """End a parent whose process ended, once its orders are settled and the market is known.

        What the market did in between is not on record: the spread holds all that its fills lost against
        the decision, what was not filled is valued now, and markouts are not known.
        """
        parent_id, mids = row.parent_id, self.mids.get(row.symbol)
        left = any(order.parent_id == parent_id for order in self._orders.open(row.symbol))
        # A replay may begin before the parent did.
        if left or mids is None or now_ns < row.decision_ns or math.isnan(mid := mids.at(now_ns)):
            return
        parent = recorded_parent(row, ())
        fills = self.fills.pop(parent_id, [])
        # A replay may begin before what the earlier process reached.
        end_ns = max(now_ns, row.decision_ns + 1, *(fill.venue_ns for fill in fills))
        cost = shortfall(
            parent,
            fills,
            Mids((row.decision_ns, end_ns), (row.decision_mid_ticks, mid)),
            self._instruments[row.symbol],
            algorithm=row.algorithm,
            venue=self._name,
            arrival_ns=row.decision_ns,
            end_ns=end_ns,
        )
        unknown = [n for n in cost.__struct_fields__ if n.startswith(("markout_", "vs_twap"))]
        fields: dict[str, Any] = {"impact_by": "cut", **dict.fromkeys(unknown, math.nan)}
        cost = msgspec.structs.replace(cost, **fields)
        self._emitter.append("end", now_ns, cost, row.symbol, parent_id)
        self._emitter.say("warning", "parent cut by the end of its process", id=parent_id)
        del self.cut[parent_id]

    def finish(self) -> None:
        """Measure all that are finished, with the markouts known so far."""
        for ended in self.waiting:
            self._measure(ended)
        self.waiting.clear()

    def mean(self, name: str) -> float | None:
        """Mean of a figure over the parents measured; None before the first."""
        total, count = self._sums.get(name, (0.0, 0.0))
        return total / count if count else None

    def _measure(self, ended: FinishedParent) -> None:
        parent, row = ended.parent, ended.row
        record = self._recorders[parent.symbol]
        cost = shortfall(
            parent,
            ended.fills,
            record.mids,
            self._instruments[parent.symbol],
            algorithm=row.algorithm,
            picked=ended.picked,
            venue=self._name,
            arrival_ns=ended.arrival_ns,
            end_ns=ended.end_ns,
            control=None if self._moves_market else record.mids,
            propagator=Propagator(sigma_bps=row.sigma_bps, volume_s=row.volume_lots_s),
            traded=record.traded,
            own_in_traded=self._moves_market,
            signal_bps=row.signal_bps,
            signal_s=row.signal_s,
        )
        orders = [
            order_row(order, self._name)
            for client_id in ended.orders
            if (order := self._orders.get(client_id)) is not None
        ]
        after = markout_rows(parent.id, self._name, orders, ended.fills, record.mids, ended.ahead)
        for name in (*PARTS, "total_bps", *(f"markout_{s}s_bps" for s in MARKOUTS_S)):
            if not math.isnan(value := getattr(cost, name)):
                sums = self._sums.setdefault(name, [0.0, 0.0])
                sums[0] += value
                sums[1] += 1.0
        for kind, body in (("markouts", after), ("end", cost)):
            self._emitter.append(kind, ended.end_ns, body, parent.symbol, parent.id)
        expected = math.fsum(getattr(row, name) for name in ESTIMATES)
        self._measured(row, cost, float(cost.total_bps - expected))
        self.fills.pop(parent.id, None)
