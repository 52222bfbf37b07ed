"""The desk: from target positions to parent orders and child orders, each on record before it is sent.

One parent order per symbol at a time. A new target abandons the active parent: its open order is
cancelled, its fills stay, and the next decision opens a parent for the remaining quantity. After a
parent that ends short of its quantity entries pause for a deadline's length, so that a venue that rejects
is not tried every second; what reduces a position never waits.

Symbols are independent: what the desk does for one depends on its own frames and the clock, never on
the interleaving of several symbols' frames. So replaying each symbol by itself repeats a live run.

Order ids are deterministic and unique in a log: ``SYMBOL-<decision s>-<number>`` for its n-th parent,
``<parent>-<n>`` for the parent's orders.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from execution.account import Account, unit_e8, value_e8
from execution.algorithms import start
from execution.algorithms.working import Parent, Working
from execution.liquidity import Costs, Monitor, Propagator, depth_lots, estimate
from execution.order_machine import Order, Orders
from execution.orders import (
    Action,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    Rejected,
    Submit,
    TimeInForce,
)
from execution.risk import Guard
from execution.tca import (
    PARTS,
    Circumstances,
    MidRecorder,
    ParentRow,
    displayed_ahead,
    markout_rows,
    order_row,
    parent_row,
    shortfall,
)
from execution.venue import View
from live.messages import Append, Effect, FundingReport, Say
from live.requests import Requests
from live.safety import Mode
from live.symbol_state import SymbolState
from market.events import Events
from market.settings import Settings
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
    changed: dict[str, Order] = {}
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
    """One funding settlement: mark price, rate (0 where the venue does not state it) and payment
    (positive = paid) at 1e-8."""

    symbol: str
    time_ns: int
    position_lots: int
    mark_e8: int
    rate_e8: int
    paid_e8: int


class DeskState(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of the desk: the last parent's number, and the parents whose cost is not on record."""

    parent_number: int = 0
    open: dict[str, ParentRow] = {}
    rest_until: dict[str, int] = {}


class Desk:
    """Turns target positions into requests. All times are receive times, epoch ns.

    ``symbols`` are our pictures of the markets, ``name`` is the venue's name in records. ``costs`` are the
    fees and parameters of pre-trade cost estimates, honest when they are the fee row that is really paid.
    ``moves_market``: our orders are in the market data that we receive, and our fills among its trades.
    ``emit`` takes the effects.
    """

    def __init__(
        self,
        symbols: Mapping[str, SymbolState],
        settings: Settings,
        name: str,
        *,
        costs: Costs,
        moves_market: bool,
        emit: Callable[[Effect], None],
    ) -> None:
        self._symbols, self._settings, self._name = symbols, settings.execution, name
        self._estimates, self._signal_s = costs, float(settings.model.primary_s)
        self._band_bps = settings.risk.price_band_bps
        self._moves_market, self._emit = moves_market, emit
        self._instruments = {symbol: state.instrument for symbol, state in symbols.items()}
        self.requests = Requests(round(settings.live.answer_s * 1e9))
        self.orders = Orders()
        self.account = Account(self._instruments, round(settings.execution.capital_usdt * E8))
        self.guard = Guard(
            self._instruments, settings.risk, self.orders, self.account, settings.market.symbols
        )
        self.parent_number = 0  #: of the last parent in the log
        self.sent = self.fills = self.parents = 0
        self._maker_e8 = self._filled_e8 = 0
        self._costs: dict[str, list[float]] = {}  #: figure -> its sum and count over parents
        self._monitors = {symbol: Monitor() for symbol in symbols}
        self._recorders = {symbol: MidRecorder() for symbol in symbols}
        self.mids = {symbol: recorder.mids for symbol, recorder in self._recorders.items()}
        self._work: dict[str, ActiveParent] = {}
        self._fills: dict[str, list[Filled]] = {}
        self._ended: list[FinishedParent] = []
        self._rest_until: dict[str, int] = {}
        self._cut: dict[str, ParentRow] = {}  #: parents of an earlier process, without an end
        self._mode: Callable[[str], Mode] = lambda symbol: Mode.NORMAL
        self._stop_ticks: Callable[[str, int, float], int] | None = None

    def govern(
        self,
        mode: Callable[[str], Mode],
        stop_ticks: Callable[[str, int, float], int] | None = None,
    ) -> None:
        """Obey a symbol's ``mode``; attach the stops of ``stop_ticks`` to orders that open a position."""
        self._mode, self._stop_ticks = mode, stop_ticks

    # -- restart -------------------------------------------------------------------------------

    def snapshot(self) -> DeskState:
        """For a checkpoint."""
        open_rows = {work.parent.id: work.row for work in self._work.values()}
        return DeskState(
            parent_number=self.parent_number,
            open=open_rows | {ended.parent.id: ended.row for ended in self._ended} | self._cut,
            rest_until=dict(self._rest_until),
        )

    def restore(self, state: DeskState) -> None:
        """Go on from a checkpoint; `end_cut` ends the parents that were open."""
        self.parent_number, self._cut = state.parent_number, dict(state.open)
        self._rest_until = dict(state.rest_until)

    def end_cut(self, now_ns: int) -> None:
        """Record parents that an earlier process left without an end: nothing works them any more."""
        for parent_id, row in self._cut.items():
            self._append("cut", now_ns, {"reason": "the process ended"}, row.symbol, parent_id)
            self._say("warning", "parent cut by the end of a process", id=parent_id)
        self._cut.clear()

    # -- state ---------------------------------------------------------------------------------

    def position_lots(self, symbol: str) -> int:
        """Signed position: the sum of executions."""
        return self.account.position_lots(symbol)

    def has_parent(self, symbol: str) -> bool:
        """Whether the symbol has an active parent order."""
        return symbol in self._work

    def at_rest(self, symbol: str) -> bool:
        """No parent is active, and no order may still fill."""
        return symbol not in self._work and not any(self.orders.open(symbol))

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
        self._monitors[symbol].see(self._symbols[symbol].view(now_ns))
        mode, position_lots = self._mode(symbol), self.position_lots(symbol)
        algorithm = self._settings.algorithm
        if mode in (Mode.PAUSE, Mode.HALT):
            target_lots = position_lots  # whatever is open is abandoned, nothing is begun
        elif mode is Mode.REDUCE:
            target_lots = min(max(target_lots, min(position_lots, 0)), max(position_lots, 0))
        elif mode is Mode.FLATTEN:
            target_lots, algorithm = 0, "market"
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
            self._open(symbol, missing, now_ns, algorithm, expected_bps)

    def _open(
        self, symbol: str, lots: int, now_ns: int, algorithm: str, expected_bps: float | None
    ) -> None:
        view = self._symbols[symbol].view(now_ns)
        if view.stale:
            return
        position_lots = self.position_lots(symbol)
        self.parent_number += 1
        parent = Parent(
            id=f"{symbol}-{now_ns // SECOND_NS}-{self.parent_number}",
            symbol=symbol,
            side=1 if lots > 0 else -1,
            qty_lots=abs(lots),
            decision_ns=now_ns,
            deadline_ns=now_ns + round(self._settings.deadline_s * 1e9),
            decision_mid_ticks=view.mid_ticks,
            reduce_only=position_lots * lots < 0 and abs(lots) <= abs(position_lots),
        )
        view = msgspec.structs.replace(view, signal_bps=expected_bps)
        parameters: dict[str, Any] = {"costs": self._estimates} if algorithm == "router" else {}
        working = start(algorithm, parent, self.orders, self._band_bps, **parameters)
        working.inform(copy.deepcopy(self._monitors[symbol]))
        row = parent_row(
            parent,
            algorithm,
            self._name,
            self._instruments[symbol],
            circumstances=self._circumstances(working, algorithm, view),
        )
        self._append("parent", now_ns, row, symbol, parent.id)
        self.parents += 1
        self._say("info", "parent opened", id=parent.id, side=parent.side, lots=parent.qty_lots)
        self._fills[parent.id] = []
        self._work[symbol] = ActiveParent(
            parent=parent,
            algorithm=working,
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

    def on_events(self, symbol: str, events: Events) -> None:
        """Take event rows of a symbol as received: costs are measured by its mids and trades."""
        self._recorders[symbol].push(events)

    def step(self, symbol: str, now_ns: int, evidence: Sequence[Event] = ()) -> None:
        """Take evidence of orders, and step the algorithm on it, on a new touch or at its timer."""
        for event in evidence:
            self.take(event)
        work = self._work.get(symbol)
        if work is not None:
            touch = self._symbols[symbol].touch()
            if work.changed or work.denied or touch != work.touch or now_ns >= work.timer_ns:
                work.touch = touch
                self._let(work, now_ns)

    def _let(self, work: ActiveParent, now_ns: int) -> None:
        """Step an algorithm, and send what the guard allows."""
        parent = work.parent
        work.timer_ns = now_ns + TIMER_NS
        view = self._symbols[parent.symbol].view(now_ns)
        if work.expected_bps is not None:
            view = msgspec.structs.replace(view, signal_bps=work.expected_bps)
        changed, work.changed, work.denied = list(work.changed.values()), {}, False
        for action in work.algorithm.step(now_ns, view, changed):
            denial = self._denial(now_ns, action, view)
            if denial:
                work.denied = True
                self._deny(now_ns, parent, action, denial)
                continue
            self._send(now_ns, parent, action)
            if isinstance(action, Submit):
                work.ahead[action.client_id] = displayed_ahead(view, action)
                self.sent += 1
        if work.algorithm.done:
            self._end(work, now_ns)

    def _denial(self, now_ns: int, action: Action, view: View) -> str:
        """Why an action is not sent; empty when it is."""
        if isinstance(action, Submit) and not action.reduce_only:
            mode = self._mode(action.symbol)
            passive = action.time_in_force is TimeInForce.POST_ONLY
            if mode >= Mode.PAUSE or (mode is Mode.PASSIVE and not passive):
                return f"mode: {mode.name.lower()}"
        denial = self.guard.allow(now_ns, action, view)
        return "" if denial is None else f"risk: {denial}"

    def _deny(self, now_ns: int, parent: Parent, action: Action, reason: str) -> None:
        refusal = Rejected if isinstance(action, Submit) else CancelRejected
        event = refusal(client_id=action.client_id, time_ns=now_ns, venue_ns=now_ns, reason=reason)
        self._append("denied", now_ns, event, parent.symbol, parent.id, action.client_id)
        self._say("warning", "order denied", id=action.client_id, reason=reason)

    def _send(self, now_ns: int, parent: Parent, action: Action) -> None:
        if isinstance(action, Submit):
            if self._stop_ticks is not None and not action.reduce_only:
                stop = self._stop_ticks(action.symbol, action.side, action.price_ticks)
                action = msgspec.structs.replace(action, stop_ticks=stop)
            self.orders.sent(action, parent.id, now_ns)
        else:
            self.orders.requested(action, now_ns)
        self._append("intent", now_ns, action, parent.symbol, parent.id, action.client_id)
        self._emit(self.requests.open(now_ns, action, parent.symbol))

    def take(self, event: Event) -> str:
        """Fold evidence of an order in; the symbol that it is news of, empty for none.

        An execution of no order of ours (a liquidation, a human's order) moves the position all the same.
        """
        order = self.orders.apply(event)
        if order is None:
            return self._foreign(event) if isinstance(event, Filled) else ""
        parent_id, symbol = order.parent_id, order.submit.symbol
        self._append("event", event.time_ns, event, symbol, parent_id, event.client_id)
        if isinstance(event, Filled):
            self._book(event)
            self._fills.setdefault(parent_id, []).append(event)
        work = self._work.get(symbol)
        if work is not None and work.parent.id == parent_id:
            work.changed[order.submit.client_id] = order
        return symbol

    def _foreign(self, fill: Filled) -> str:
        if fill.symbol not in self.account.holdings or not self._book(fill):
            return ""
        self._append("event", fill.time_ns, fill, fill.symbol, "", fill.client_id)
        self._say(
            "warning", "execution of no order of ours", execution=fill.exec_id, symbol=fill.symbol
        )
        return fill.symbol

    def book_funding(self, report: FundingReport) -> None:
        """Book a settlement as the venue states it, once."""
        symbol, paid_e8 = report.symbol, report.paid_e8
        if self.account.fund(report.exec_id, symbol, paid_e8, report.venue_ns):
            payment = FundingPayment(
                symbol=symbol,
                time_ns=report.venue_ns,
                position_lots=report.lots,
                mark_e8=report.mark_e8,
                rate_e8=0,
                paid_e8=paid_e8,
            )
            self._append("funding", report.venue_ns, payment, symbol, client_id=report.exec_id)

    def record(self, kind: str, time_ns: int, body: object) -> None:
        """Append a record of no order."""
        self._append(kind, time_ns, body)

    def facts(self) -> dict[str, float]:
        """What `live.safety` judges of money: losses in quote currency."""
        account = self.account
        return {
            "day_loss_usdt": (account.day_opening_e8 - account.marked_e8) / E8,
            "drawdown_usdt": (account.peak_e8 - account.marked_e8) / E8,
        }

    def _append(
        self,
        kind: str,
        time_ns: int,
        body: object,
        symbol: str = "",
        parent_id: str = "",
        client_id: str = "",
    ) -> None:
        self._emit(
            Append(
                kind=kind,
                time_ns=time_ns,
                body=msgspec.json.encode(body),
                symbol=symbol,
                parent_id=parent_id,
                client_id=client_id,
            )
        )

    def _say(self, level: str, event: str, **fields: object) -> None:
        self._emit(Say(level=level, event=event, fields=fields))

    def _book(self, fill: Filled) -> bool:
        if not self.account.apply(fill):
            return False
        self.fills += 1
        value = value_e8(self._instruments[fill.symbol], fill.price_ticks, fill.qty_lots)
        self._filled_e8 += value
        self._maker_e8 += value * (fill.liquidity is Liquidity.MAKER)
        return True

    def _end(self, work: ActiveParent, now_ns: int) -> None:
        parent, filled = work.parent, work.algorithm.filled_lots
        del self._work[parent.symbol]
        if filled < parent.qty_lots and not work.abandoned:
            self._rest_until[parent.symbol] = now_ns + round(self._settings.deadline_s * 1e9)
        self._say("info", "parent ended", id=parent.id, filled=filled, lots=parent.qty_lots)
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
        self._append("funding", time_ns, funding, symbol)

    def measure(self, now_ns: int) -> None:
        """Mark to market, measure the cost of parents that are due, and drop mids no longer needed."""
        for recorder in self._recorders.values():
            recorder.mids.until_ns = now_ns  # without a valid book the last mid is carried forward
        known = {symbol: mids.at(mids.until_ns) for symbol, mids in self.mids.items()}
        self.account.mark(now_ns, known)
        self.guard.mark(known)
        if now_ns % MINUTE_NS == 0:
            self.orders.forget(now_ns - HOUR_NS)  # an event may be late
            self._append("equity", now_ns, self.account.marks())
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
            if (order := self.orders.get(client_id)) is not None
        ]
        after = markout_rows(parent.id, self._name, orders, ended.fills, record.mids, ended.ahead)
        for name in (*PARTS, "total_bps", "markout_60s_bps"):
            if not math.isnan(value := getattr(cost, name)):
                sums = self._costs.setdefault(name, [0.0, 0.0])
                sums[0] += value
                sums[1] += 1.0
        for kind, body in (("markouts", after), ("end", cost)):
            self._append(kind, ended.end_ns, body, parent.symbol, parent.id)
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
        for order in self.orders.open():
            self._say("error", "order still open", id=order.client_id, state=str(order.state))
        for symbol in self._instruments:
            if (lots := self.position_lots(symbol)) and flattened:
                self._say("error", "position still open", symbol=symbol, lots=lots)

    def summary(self) -> dict[str, Any]:
        """Counts, costs (mean bps over parents) and profit (quote currency); plain data."""

        def mean(name: str) -> float | None:
            total, count = self._costs.get(name, (0.0, 0.0))
            return total / count if count else None

        gross, fees, funding = self._money()
        return {
            "parents": self.parents,
            "orders": self.sent,
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
