"""The desk: from target positions to parent orders and child orders, each journalled before it is sent.

One parent order per symbol at a time. A new target abandons the active parent: its open order is
cancelled, its fills stay, and the next decision opens a parent for the remaining quantity. After a
parent that ends short of its quantity entries pause for a deadline's length, so that a venue that rejects
is not tried every second; what reduces a position never waits.

Symbols are independent: what the desk does for one depends on its own frames and the clock, never on
the interleaving of several symbols' frames. So replaying each symbol by itself repeats a live run.

Order ids are deterministic and unique in a journal: ``SYMBOL-<decision s>-<number>`` for the journal's
n-th parent, ``<parent>-<n>`` for its orders.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from execution.account import Account, unit_e8, value_e8
from execution.algorithms import start
from execution.algorithms.working import Parent, Working
from execution.liquidity import Costs, Monitor, Propagator, depth_lots, estimate
from execution.order_machine import Order
from execution.orders import (
    Action,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    Rejected,
    Submit,
)
from execution.risk import Guard
from execution.tca import (
    PARTS,
    Circumstances,
    MidRecorder,
    ParentRow,
    displayed_ahead,
    markout_rows,
    parent_row,
    shortfall,
)
from execution.venue import View
from live.journal import MemoryJournal, order_row, restored
from live.paper import LiveVenue
from market.events import Events
from market.instruments import Instrument
from market.settings import Execution, Risk
from market.units import E8, HOUR_NS, MINUTE_NS, SECOND_NS

#: An active algorithm is stepped at least this often.
TIMER_NS: Final = 100_000_000

#: Longest markout after a fill; a parent's cost is final only then.
MARKOUT_NS: Final = 60 * SECOND_NS

#: Recorded depth is the quantity within this many bps of the mid.
DEPTH_BPS: Final = 3.0


class ActiveParent(msgspec.Struct, kw_only=True):
    """A parent order being worked by its algorithm."""

    parent: Parent
    algorithm: Working
    name: str
    changed: list[Order]
    denied: bool = False  #: an action was denied since the last step
    row: ParentRow
    #: Client id -> displayed quantity (lots) in front of a limit order when it was sent.
    ahead: dict[str, float] = {}
    abandoned: bool = False
    touch: tuple[int | None, int | None] = (None, None)
    timer_ns: int = 0
    expected_bps: float | None = None


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


class FundingPayment(msgspec.Struct, frozen=True, kw_only=True):
    """One funding settlement: mark price, rate and payment (positive = paid) at 1e-8."""

    symbol: str
    time_ns: int
    position_lots: int
    mark_e8: int
    rate_e8: int
    paid_e8: int


class Desk:
    """Turns target positions into orders. All times are receive times, epoch ns.

    ``venues`` maps symbols to venues, ``name`` is the venue's name in records. ``costs`` are the fees
    and parameters of pre-trade cost estimates, honest when they are the fee row that is really paid;
    ``signal_s`` is the horizon of the expected return.
    """

    def __init__(
        self,
        venues: Mapping[str, LiveVenue],
        journal: MemoryJournal,
        instruments: Mapping[str, Instrument],
        settings: Execution,
        risk: Risk,
        name: str,
        log: Any,
        costs: Costs,
        signal_s: float,
    ) -> None:
        self._venues, self._journal, self._name, self._log = venues, journal, name, log
        self._estimates, self._signal_s = costs, signal_s
        self._instruments, self._settings = instruments, settings
        self._band_bps = risk.price_band_bps
        self.account = Account(instruments, round(settings.capital_usdt * E8))
        self.registry = restored(journal, self.account)
        self.guard = Guard(instruments, risk, self.registry, self.account, tuple(instruments))
        self.orders = self.fills = self.parents = 0
        self._maker_e8 = self._filled_e8 = 0
        self._costs: dict[str, list[float]] = {}  #: figure -> its sum and count over parents
        self._monitors = {symbol: Monitor() for symbol in instruments}
        self._recorders = {symbol: MidRecorder() for symbol in instruments}
        self.mids = {symbol: recorder.mids for symbol, recorder in self._recorders.items()}
        self._work: dict[str, ActiveParent] = {}
        self._fills: dict[str, list[Filled]] = {}
        self._ended: list[FinishedParent] = []
        self._rest_until: dict[str, int] = {}

    def position_lots(self, symbol: str) -> int:
        """Signed position: the sum of executions received."""
        return self.account.position_lots(symbol)

    def has_parent(self, symbol: str) -> bool:
        """Whether the symbol has an active parent order."""
        return symbol in self._work

    def size_lots(self, symbol: str, mid: float) -> int:
        """Lots of a full position, a share of capital at this mid (quote currency); 0 below the minimum."""
        instrument = self._instruments[symbol]
        notional = self._settings.capital_usdt * self._settings.size_share
        lots = round(notional / (mid * instrument.lot_size))
        return lots if lots >= instrument.qty_lots(instrument.min_qty) else 0

    # -- targets -------------------------------------------------------------------------------

    def set_target(
        self, symbol: str, target_lots: int, now_ns: int, expected_bps: float | None
    ) -> None:
        """Work towards a signed position of ``target_lots``; called once a second.

        ``expected_bps`` is the decision's expected return, None when there is none.
        """
        self._monitors[symbol].see(self._venues[symbol].view(symbol))
        position_lots = self.position_lots(symbol)
        missing = target_lots - position_lots
        work = self._work.get(symbol)
        if work is not None:
            work.expected_bps = expected_bps
            remaining_lots = work.parent.side * (work.parent.qty_lots - work.algorithm.filled_lots)
            if missing != remaining_lots:
                self._abandon(work, now_ns)
            return
        if now_ns < self._rest_until.get(symbol, 0):  # only what reduces does not wait
            missing = min(max(missing, min(-position_lots, 0)), max(-position_lots, 0))
        if missing:
            self._open(symbol, missing, now_ns, self._settings.algorithm, expected_bps)

    def _open(
        self, symbol: str, lots: int, now_ns: int, algorithm: str, expected_bps: float | None
    ) -> None:
        view = self._venues[symbol].view(symbol)
        if view.stale:
            return
        position_lots = self.position_lots(symbol)
        parent = Parent(
            id=f"{symbol}-{now_ns // SECOND_NS}-{self._journal.parents + 1}",
            symbol=symbol,
            side=1 if lots > 0 else -1,
            qty_lots=abs(lots),
            decision_ns=now_ns,
            deadline_ns=now_ns + round(self._settings.deadline_s * 1e9),
            decision_mid_ticks=view.mid_ticks,
            reduce_only=position_lots * lots < 0 and abs(lots) <= abs(position_lots),
        )
        view = msgspec.structs.replace(view, signal_bps=expected_bps)
        parameters = {"costs": self._estimates} if algorithm == "router" else {}
        working = start(algorithm, parent, self.registry, self._band_bps, **parameters)
        working.inform(copy.deepcopy(self._monitors[symbol]))
        row = parent_row(
            parent,
            algorithm,
            self._name,
            self._instruments[symbol],
            circumstances=self._circumstances(working, algorithm, view),
        )
        self._journal.append("parent", now_ns, msgspec.json.encode(row), symbol, parent.id)
        self.parents += 1
        self._log.info("parent opened", id=parent.id, side=parent.side, lots=parent.qty_lots)
        self._fills[parent.id] = []
        self._work[symbol] = ActiveParent(
            parent=parent,
            algorithm=working,
            changed=[],
            name=algorithm,
            row=row,
            ahead={},
            timer_ns=now_ns,
            expected_bps=expected_bps,
        )

    def _circumstances(self, working: Working, algorithm: str, view: View) -> Circumstances:
        """The market at a parent's start, and its pre-trade cost estimate."""
        parent = working.parent
        monitor = self._monitors[parent.symbol]
        taken = view.asks if parent.side > 0 else view.bids
        span_s = (parent.deadline_ns - parent.decision_ns) / SECOND_NS
        foreseen = view.signal_bps is not None
        return Circumstances(
            spread_regime=str(monitor.regime(view)),
            sigma_bps=monitor.sigma_bps,
            volume_lots_s=monitor.volume_lots_s(view),
            depth_lots=float(depth_lots(taken, view.mid_ticks, DEPTH_BPS)),
            signal_bps=math.nan if view.signal_bps is None else view.signal_bps,
            signal_s=self._signal_s if foreseen else math.nan,
            estimate=working.estimate(view)
            or estimate(
                algorithm, monitor, view, parent.side, parent.qty_lots, span_s, self._estimates
            ),
        )

    def _abandon(self, work: ActiveParent, now_ns: int) -> None:
        work.algorithm.abandon()
        work.abandoned = True
        work.timer_ns = now_ns

    # -- the market moves, the venue answers -----------------------------------------------------

    def apply_reconciliation(self, events: Sequence[Event]) -> None:
        """Record what became of the orders that an earlier process left open; done once, at the start."""
        for event in self._journal.record_events(events):
            self.registry.apply(event)

    def on_events(self, symbol: str, events: Events) -> None:
        """Take event rows of a symbol as received: costs are measured by its mids and trades."""
        self._recorders[symbol].push(events)

    def step(self, symbol: str, now_ns: int) -> None:
        """Take the venue's order events, and step the algorithm on one, a new touch or its timer."""
        venue = self._venues[symbol]
        for event in self._journal.record_events(venue.poll()):
            self._take(event)
        work = self._work.get(symbol)
        if work is not None:
            touch = venue.touch(symbol)
            if work.changed or work.denied or touch != work.touch or now_ns >= work.timer_ns:
                work.touch = touch
                self._let(work, now_ns)

    def _let(self, work: ActiveParent, now_ns: int) -> None:
        """Step an algorithm: journal the intents, then send the actions."""
        parent = work.parent
        venue = self._venues[parent.symbol]
        work.timer_ns = now_ns + TIMER_NS
        view = venue.view(parent.symbol)
        if work.expected_bps is not None:
            view = msgspec.structs.replace(view, signal_bps=work.expected_bps)
        changed, work.changed, work.denied = work.changed, [], False
        asked = work.algorithm.step(now_ns, view, changed)
        actions = self._allowed(work, now_ns, view, asked)
        if actions:
            self._journal.record_intents(now_ns, parent.symbol, parent.id, actions)
            venue.send(actions)
            for action in actions:
                if isinstance(action, Submit):
                    work.ahead[action.client_id] = displayed_ahead(view, action)
            self.orders += sum(isinstance(action, Submit) for action in actions)
        if work.algorithm.done:
            self._end(work, now_ns)

    def _allowed(
        self, work: ActiveParent, now_ns: int, view: View, actions: Sequence[Action]
    ) -> list[Action]:
        """Actions within every risk limit, told to the order machine; the others are recorded."""
        passed = []
        for action in actions:
            denial = self.guard.allow(now_ns, action, view)
            if denial is None:
                passed.append(action)
                if isinstance(action, Submit):
                    self.registry.sent(action, work.parent.id, now_ns)
                else:
                    self.registry.requested(action, now_ns)
                continue
            work.denied = True
            refusal = Rejected if isinstance(action, Submit) else CancelRejected
            event = refusal(
                client_id=action.client_id,
                time_ns=now_ns,
                venue_ns=now_ns,
                reason=f"risk: {denial}",
            )
            body, symbol = msgspec.json.encode(event), work.parent.symbol
            self._journal.append("denied", now_ns, body, symbol, work.parent.id)
            self._log.warning("order denied by risk limit", id=action.client_id, reason=str(denial))
        return passed

    def _take(self, event: Event) -> None:
        order = self.registry.apply(event)
        if isinstance(event, Filled):
            self._book(event)
        if order is None:
            self._log.error("event of an order unknown to the journal", order_event=repr(event))
            return
        if isinstance(event, Filled):
            self._fills.setdefault(order.parent_id, []).append(event)
        work = self._work.get(order.submit.symbol)
        if work is not None and work.parent.id == order.parent_id:
            work.changed.append(order)

    def _book(self, fill: Filled) -> None:
        self.account.apply(fill)
        self.fills += 1
        value = value_e8(self._instruments[fill.symbol], fill.price_ticks, fill.qty_lots)
        self._filled_e8 += value
        self._maker_e8 += value * (fill.liquidity is Liquidity.MAKER)

    def _end(self, work: ActiveParent, now_ns: int) -> None:
        parent, filled = work.parent, work.algorithm.filled_lots
        del self._work[parent.symbol]
        if filled < parent.qty_lots and not work.abandoned:
            self._rest_until[parent.symbol] = now_ns + round(self._settings.deadline_s * 1e9)
        self._log.info("parent ended", id=parent.id, filled=filled, lots=parent.qty_lots)
        self._ended.append(
            FinishedParent(
                row=work.row,
                parent=parent,
                fills=self._fills[parent.id],
                orders=tuple(work.ahead),
                ahead=work.ahead,
                picked=work.algorithm.picked,
                arrival_ns=work.algorithm.arrival_ns,
                end_ns=now_ns,
            )
        )

    def settle_funding(
        self, symbol: str, time_ns: int, lots: int, mark_e8: int, rate_e8: int
    ) -> None:
        """Settle funding on a position of then at this mark price and rate (1e-8), and record it."""
        funding = FundingPayment(
            symbol=symbol,
            time_ns=time_ns,
            position_lots=lots,
            mark_e8=mark_e8,
            rate_e8=rate_e8,
            paid_e8=self.account.settle(symbol, mark_e8, rate_e8, lots),
        )
        self._journal.append("funding", time_ns, msgspec.json.encode(funding), symbol)

    def measure(self, now_ns: int) -> None:
        """Mark to market, measure the cost of parents that are due, and drop mids no longer needed."""
        for recorder in self._recorders.values():
            recorder.mids.until_ns = now_ns  # without a valid book the last mid is carried forward
        known = {symbol: mids.at(mids.until_ns) for symbol, mids in self.mids.items()}
        self.account.mark(now_ns, known)
        self.guard.mark(known)
        if now_ns % MINUTE_NS == 0:
            self.registry.forget(now_ns - HOUR_NS)  # an event may be late
        due = [ended for ended in self._ended if now_ns > ended.due_ns]
        self._ended = [ended for ended in self._ended if now_ns <= ended.due_ns]
        for ended in due:
            self._measure(ended)
        for symbol, recorder in self._recorders.items():
            waiting = [e.parent.decision_ns for e in self._ended if e.parent.symbol == symbol]
            if symbol in self._work:
                waiting.append(self._work[symbol].parent.decision_ns)
            recorder.forget(min(waiting, default=now_ns))

    def _measure(self, ended: FinishedParent) -> None:
        parent, row = ended.parent, ended.row
        record, venue = self._recorders[parent.symbol], self._venues[parent.symbol]
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
            control=None if venue.moves_market else record.mids,
            propagator=Propagator(sigma_bps=row.sigma_bps, volume_s=row.volume_lots_s),
            traded=record.traded,
            own_in_traded=venue.moves_market,
            signal_bps=row.signal_bps,
            signal_s=row.signal_s,
        )
        orders = [
            order_row(self._journal.orders[client_id], self._name) for client_id in ended.orders
        ]
        after = markout_rows(parent.id, self._name, orders, ended.fills, record.mids, ended.ahead)
        for name in (*PARTS, "total_bps", "markout_60s_bps"):
            if not math.isnan(value := getattr(cost, name)):
                sums = self._costs.setdefault(name, [0.0, 0.0])
                sums[0] += value
                sums[1] += 1.0
        for kind, body in (("markouts", after), ("end", cost)):
            encoded = msgspec.json.encode(body)
            self._journal.append(kind, ended.end_ns, encoded, parent.symbol, parent.id)
        self._fills.pop(parent.id, None)

    # -- the end -------------------------------------------------------------------------------

    def abandon(self, now_ns: int) -> None:
        """Abandon every active parent: the next step cancels its open order."""
        for work in self._work.values():
            self._abandon(work, now_ns)

    def flatten(self, now_ns: int) -> None:
        """Open market parents that close every position."""
        for symbol in self._instruments:
            if (lots := self.position_lots(symbol)) and symbol not in self._work:
                self._open(symbol, -lots, now_ns, "market", None)

    def finish(self, now_ns: int, flattened: bool) -> None:
        """Measure all finished parents with the markouts known so far; log open orders as errors.

        With ``flattened`` a remaining position is an error too.
        """
        self.measure(now_ns)
        for ended in self._ended:
            self._measure(ended)
        self._ended.clear()
        for order in self._journal.open_orders():
            self._log.error("order still open", id=order.submit.client_id, state=order.state)
        for symbol in self._instruments:
            if (lots := self.position_lots(symbol)) and flattened:
                self._log.error("position still open", symbol=symbol, lots=lots)

    def summary(self) -> dict[str, Any]:
        """Counts, costs (mean bps over parents) and profit (quote currency); plain data."""

        def mean(name: str) -> float | None:
            total, count = self._costs.get(name, (0.0, 0.0))
            return total / count if count else None

        gross, fees, funding = self._money()
        return {
            "parents": self.parents,
            "orders": self.orders,
            "fills": self.fills,
            "filled_usdt": self._filled_e8 / E8,
            "maker_share": self._maker_e8 / self._filled_e8 if self.fills else None,
            "all_in_cost_bps": mean("total_bps"),
            "cost_parts_bps": {part: mean(part) for part in PARTS},
            "markout_60s_bps": mean("markout_60s_bps"),
            "fees_usdt": fees,
            "funding_usdt": funding,
            "gross_pnl_usdt": gross,
            "net_pnl_usdt": gross - fees - funding,
            "positions": {s: self.position_lots(s) for s in self._instruments},
            "denied": {str(denial): count for denial, count in self.guard.denials.items()},
        }

    def _money(self) -> tuple[float, float, float]:
        """Gross profit marked at the last mids, fees and funding paid (quote currency)."""
        gross = fees = funding = 0.0
        for symbol, holding in self.account.holdings.items():
            open_profit = 0.0
            if holding.position_lots:
                mid = self.mids[symbol].at(self.mids[symbol].until_ns)
                value = unit_e8(holding.instrument) * holding.position_lots * mid
                open_profit = value - holding.cost_e8
            gross += (holding.realised_e8 + open_profit) / E8
            fees += holding.fees_e8 / E8
            funding += holding.funding_e8 / E8
        return gross, fees, funding
