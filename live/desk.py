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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from execution.account import Account, value_e8
from execution.algorithms.working import Parent
from execution.liquidity import Costs, Monitor
from execution.order_machine import Orders
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
from execution.sizing import Size
from execution.tca import PARTS, ParentRow, Shortfall, displayed_ahead, parent_row
from execution.venue import View
from live.arms import Arms
from live.exposure import Exposure
from live.funding import FundingPayment
from live.messages import Effect, Emitter, FundingReport
from live.parent_costs import ActiveParent, FinishedParent, ParentCosts, adopted
from live.position_size import Sizes
from live.pre_trade import PreTrade
from live.ramp import RampState
from live.requests import Requests
from live.safety import Mode
from live.symbol_state import SymbolState
from market.events import Events
from market.settings import Settings
from market.units import E8, HOUR_NS, MINUTE_NS

#: An active algorithm is stepped at least this often.
TIMER_NS: Final = 100_000_000


class DeskState(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of the desk: the last parent's number, and the parents whose cost is not on record."""

    parent_number: int = 0
    open: dict[str, ParentRow] = {}
    fills: dict[str, tuple[Filled, ...]] = {}  #: theirs
    rest_until: dict[str, int] = {}
    #: By symbol: sign and lots of the target, time of its last signal.
    targets: dict[str, tuple[int, int, int]] = {}
    arms: dict[str, int] = {}  #: parents of each stratum of an A/B
    sizes: dict[str, Size] = {}  #: at the last entry
    ramp: RampState = RampState()
    learnt: dict[str, tuple[int, float]] = {}  #: what parents cost beyond their estimates


class Desk:
    """Turns target positions into requests. All times are receive times, epoch ns.

    ``symbols`` are our pictures of the markets, ``name`` is the venue's name in records. ``costs`` are the
    fees and parameters of pre-trade cost estimates, honest when they are the fee row that is really paid.
    ``moves_market``: our orders are in the market itself, at a venue that states positions and margins.
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
        self._traded = settings.market.symbols
        self._band_bps = settings.risk.price_band_bps
        self._emit, self._emitter = emit, Emitter(emit)
        self.say = self._emitter.say
        self._instruments = own = {s: state.instrument for s, state in symbols.items()}
        self.requests = Requests(round(settings.live.answer_s * 1e9))
        self.orders = Orders()
        self.account = account = Account(own, round(settings.execution.capital_usdt * E8))
        self.exposure = Exposure(own, account, settings, moves_market, self.say)
        self.guard = Guard(
            own, settings.risk, self.orders, account, self._traded, self.exposure.headroom
        )
        self.parent_number = 0  #: of the last parent in the log
        self.sent = self.fills = self.parents = self._maker_e8 = self._filled_e8 = 0
        self.monitors = {symbol: Monitor() for symbol in symbols}
        in_tape = (
            moves_market and settings.live.venue != "demo"
        )  # whose market data are the main venue's
        self.pre_trade = PreTrade(settings, symbols, self.monitors, self.orders, costs, in_tape)
        self._arms = Arms(settings.execution)
        self.sizes = Sizes(
            settings, symbols, self.monitors, self.account, self.guard, self._emitter,
            self.position_lots, self.exposure.caps, self.exposure.group,
        )  # fmt: skip
        self.costs = ParentCosts(own, self.orders, name, in_tape, self._emitter, self._measured)
        self.mids = self.costs.mids
        self._work: dict[str, ActiveParent] = {}
        self._rest_until: dict[str, int] = {}
        self._mode: Callable[[str], Mode] = lambda symbol: Mode.NORMAL
        self._ready: Callable[[], bool] = lambda: True
        self._stop_ticks: Callable[[str, int, float], int] | None = None

    def govern(
        self,
        mode: Callable[[str], Mode],
        stop_ticks: Callable[[str, int, float], int] | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Obey a symbol's ``mode``; attach the stops of ``stop_ticks`` to orders that open; do nothing until
        ``ready``."""
        self._mode, self._stop_ticks, self._ready = mode, stop_ticks, ready

    # -- restart -------------------------------------------------------------------------------

    def snapshot(self) -> DeskState:
        rows = [*(work.row for work in self._work.values()), *self.costs.cut.values()]
        rows += [ended.row for ended in self.costs.waiting]
        return DeskState(
            parent_number=self.parent_number,
            open={row.parent_id: row for row in rows},
            fills={row.parent_id: tuple(self.costs.fills.get(row.parent_id, ())) for row in rows},
            rest_until=dict(self._rest_until),
            targets={s: (m.target, m.target_lots, m.signal_ns) for s, m in self._symbols.items()},
            arms=dict(self._arms.counts),
            sizes=dict(self.sizes.last),
            ramp=self.sizes.ramp.state,
            learnt=self.pre_trade.learnt.state,
        )

    def restore(self, state: DeskState) -> None:
        """Go on from a checkpoint; parents that were open end as cut, unless `adopt` goes on with them."""
        for symbol in state.targets.keys() & self._symbols.keys():
            market = self._symbols[symbol]
            market.target, market.target_lots, market.signal_ns = state.targets[symbol]
        self.parent_number, self.costs.cut = state.parent_number, dict(state.open)
        self.costs.fills = {key: list(state.fills.get(key, ())) for key in state.open}
        self._rest_until, self._arms.counts = dict(state.rest_until), dict(state.arms)
        self.sizes.last = dict(state.sizes)
        self.sizes.ramp.restore(state.ramp)
        self.pre_trade.learnt.state = dict(state.learnt)

    def adopt(self) -> None:
        """Go on with an earlier process's parents whose orders rest: pegged to the touch until their deadline,
        once a decision has confirmed them."""
        for row in list(self.costs.cut.values()):
            if row.symbol in self._traded and row.symbol not in self._work:
                filled = sum(fill.qty_lots for fill in self.costs.fills.get(row.parent_id, ()))
                if work := adopted(row, filled, self.orders, self._band_bps):
                    del self.costs.cut[row.parent_id]
                    self._work[row.symbol] = work
                    self.say("info", "parent goes on", id=row.parent_id)

    # -- state ---------------------------------------------------------------------------------

    def position_lots(self, symbol: str) -> int:
        """Signed position: executions, and those that the venue counts and we have yet to hear of."""
        missing = (o.submit.side * o.missing_lots for o in self.orders.open(symbol))
        return self.account.position_lots(symbol) + sum(missing)

    @property
    def parents_at_work(self) -> list[ActiveParent]:
        """The parent orders that are worked now."""
        return list(self._work.values())

    def has_parent(self, symbol: str) -> bool:
        """Whether the symbol has an active parent order."""
        return symbol in self._work

    def at_rest(self, symbol: str) -> bool:
        """No parent is active, and no order may still fill."""
        return symbol not in self._work and not any(self.orders.open(symbol))

    # -- targets -------------------------------------------------------------------------------

    def set_target(
        self, symbol: str, target_lots: int, now_ns: int, expected_bps: float | None
    ) -> None:
        """Work towards a signed position; called once a second with the decision's expected return, if any."""
        self.monitors[symbol].see(self._symbols[symbol].view(now_ns))
        self.pursue(symbol, target_lots, now_ns, expected_bps)

    def pursue(
        self, symbol: str, target_lots: int, now_ns: int, expected_bps: float | None
    ) -> None:
        """Open, keep or abandon what target and mode ask for."""
        mode, position_lots = self._mode(symbol), self.position_lots(symbol)
        if not self._ready():
            return
        target_lots, due = self.exposure.reduced(now_ns, symbol, position_lots, target_lots)
        forced = "market" if due else ""  # at once, whatever works already
        if mode is Mode.HALT:
            target_lots = position_lots  # whatever is open is abandoned, nothing is begun
        elif mode in (Mode.PAUSE, Mode.REDUCE):
            target_lots = min(max(target_lots, min(position_lots, 0)), max(position_lots, 0))
        elif mode is Mode.FLATTEN:
            target_lots, forced = 0, "market"
        missing = target_lots - position_lots
        work = self._work.get(symbol)
        if work is not None:
            work.waits = False
            work.expected_bps = expected_bps
            view = self._symbols[symbol].view(now_ns)
            judged = self.pre_trade.judged(
                work.parent, view, expected_bps, work.algorithm.filled_lots
            )
            work.urgency = judged.urgency
            remaining_lots = work.parent.side * (work.parent.qty_lots - work.algorithm.filled_lots)
            slow = forced not in ("", work.name, work.algorithm.picked)
            if not work.abandoned and (missing != remaining_lots or slow):
                self._abandon(work, now_ns)
            return
        if now_ns < self._rest_until.get(symbol, 0):  # only what reduces does not wait
            missing = min(max(missing, min(-position_lots, 0)), max(-position_lots, 0))
        if missing:
            self._open(symbol, missing, now_ns, forced, expected_bps)

    def _open(
        self, symbol: str, lots: int, now_ns: int, forced: str, expected_bps: float | None
    ) -> None:
        view = self._symbols[symbol].view(now_ns)
        if view.stale:
            return
        self.parent_number += 1
        parent = self.pre_trade.parent(lots, view, self.parent_number, self.position_lots(symbol))
        arm = self._arms.of(parent, forced, view.instrument, self.monitors[symbol].sigma_bps)
        parent, algorithm = arm.parent(parent), arm.algorithm
        view = self.pre_trade.judged(parent, view, expected_bps)
        working = self.pre_trade.started(algorithm, parent, **arm.parameters)
        row = parent_row(
            parent,
            algorithm,
            self._name,
            self._instruments[symbol],
            circumstances=self.pre_trade.circumstances(working, algorithm, view),
        )
        row = self.sizes.on_record(arm.on_record(row), parent)
        self._emitter.append("parent", now_ns, row, symbol, parent.id)
        self.parents += 1
        self.say("info", "parent opened", id=parent.id, side=parent.side, lots=parent.qty_lots)
        self.costs.fills[parent.id] = []
        self._work[symbol] = ActiveParent(
            parent=parent,
            algorithm=working,
            name=algorithm,
            row=row,
            timer_ns=now_ns,
            expected_bps=expected_bps,
            urgency=view.urgency,
        )

    def _abandon(self, work: ActiveParent, now_ns: int) -> None:
        work.algorithm.abandon()
        work.abandoned, work.waits = True, False
        work.timer_ns = now_ns

    # -- the market moves, the venue answers -----------------------------------------------------

    def on_events(self, symbol: str, events: Events) -> None:
        """Take event rows of a symbol as received: costs are measured by its mids and trades."""
        self.costs.on_events(symbol, events)

    def at_work(self, symbol: str) -> ActiveParent | None:
        """The parent whose algorithm `step` steps, if any."""
        work = self._work.get(symbol)
        return None if work is None or work.waits or not self._ready() else work

    def step(self, symbol: str, now_ns: int, evidence: Sequence[Event] = ()) -> None:
        """Take evidence of orders, and step the algorithm on it, on a new touch or at its timer."""
        for event in evidence:
            self.take(event)
        if (work := self.at_work(symbol)) is not None:
            touch = self._symbols[symbol].touch()
            if work.changed or work.denied or touch != work.touch or now_ns >= work.timer_ns:
                work.touch = touch
                self._let(work, now_ns)

    def _let(self, work: ActiveParent, now_ns: int) -> None:
        """Step an algorithm, and send what the guard allows."""
        parent = work.parent
        work.timer_ns = now_ns + TIMER_NS
        view = self._symbols[parent.symbol].view(now_ns)
        if work.expected_bps is not None or work.urgency is not None:
            view = msgspec.structs.replace(view, signal_bps=work.expected_bps, urgency=work.urgency)
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
        self._emitter.append("denied", now_ns, event, parent.symbol, parent.id, action.client_id)
        self.say("warning", "order denied", id=action.client_id, reason=reason)

    def _send(self, now_ns: int, parent: Parent, action: Action) -> None:
        if isinstance(action, Submit):
            if self._stop_ticks is not None and not action.reduce_only:
                stop = self._stop_ticks(action.symbol, action.side, action.price_ticks)
                action = msgspec.structs.replace(action, stop_ticks=stop)
            self.orders.sent(action, parent.id, now_ns)
        else:
            self.orders.requested(action, now_ns)
        self._emitter.append("intent", now_ns, action, parent.symbol, parent.id, action.client_id)
        self._emit(self.requests.open(now_ns, action, parent.symbol))

    def take(self, event: Event) -> str:
        """Fold evidence of an order in; the symbol that it is news of, empty for none.

        An execution of no order of ours (a liquidation, a human's order) moves the position all the same.
        """
        order = self.orders.apply(event)
        if order is None:
            return self._foreign(event) if isinstance(event, Filled) else ""
        parent_id, symbol = order.parent_id, order.submit.symbol
        self._emitter.append("event", event.time_ns, event, symbol, parent_id, event.client_id)
        if isinstance(event, Filled):
            self._book(event)
            if parent_id in self.costs.fills:
                self.costs.fills[parent_id].append(event)
        work = self._work.get(symbol)
        if work is not None and work.parent.id == parent_id:
            work.changed[order.submit.client_id] = order
        return symbol

    def _foreign(self, fill: Filled) -> str:
        if fill.symbol not in self.account.holdings or not self._book(fill):
            return ""
        self._emitter.append("event", fill.time_ns, fill, fill.symbol, "", fill.client_id)
        self.say(
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
            self._emitter.append(
                "funding", report.venue_ns, payment, symbol, client_id=report.exec_id
            )

    def facts(self) -> dict[str, float]:
        """What `live.safety` judges of money: losses in quote currency."""
        return {
            "day_loss_usdt": (self.account.day_opening_e8 - self.account.marked_e8) / E8,
            "drawdown_usdt": (self.account.peak_e8 - self.account.marked_e8) / E8,
        }

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
        self.say("info", "parent ended", id=parent.id, filled=filled, lots=parent.qty_lots)
        if work.adopted:  # what the market did before this process is not known
            self.costs.cut[parent.id] = work.row
            return
        self.costs.waiting.append(
            FinishedParent(
                row=work.row,
                parent=parent,
                fills=self.costs.fills[parent.id],
                orders=tuple(work.ahead),
                ahead=work.ahead,
                picked=work.algorithm.picked,
                arrival_ns=work.algorithm.arrival_ns,
                end_ns=now_ns,
            )
        )

    def _measured(self, row: ParentRow, cost: Shortfall, missed_bps: float) -> None:
        self.sizes.ramp.measured(self.pre_trade.measured(row, cost, missed_bps))

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
            paid_e8=self.account.settle(symbol, mark_e8, rate_e8, lots, time_ns),
        )
        self._emitter.append("funding", time_ns, funding, symbol)

    def measure(self, now_ns: int) -> None:
        """Mark to market, measure the cost of parents that are due, and drop mids no longer needed."""
        known = self.costs.carry(now_ns)
        self.account.mark(now_ns, known)
        self.guard.mark(known)
        if now_ns % MINUTE_NS == 0:
            self.orders.forget(now_ns - HOUR_NS)  # an event may be late
            self._emitter.append("equity", now_ns, self.account.marks())
        self.costs.measure(now_ns, [work.parent for work in self._work.values()])

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

    def finish(self, now_ns: int) -> None:
        """End and measure all parents but those with an open order, which the next start ends."""
        for work in list(self._work.values()):
            if not any(order.parent_id == work.parent.id for order in self.orders.open()):
                self._end(work, now_ns)
        self.measure(now_ns)
        self.costs.finish()

    def summary(self) -> dict[str, Any]:
        """Counts, costs (mean bps over parents) and profit (quote currency); plain data."""
        gross, fees, funding = self.account.profit(self.costs.last_mids())
        return {
            "parents": self.parents,
            "orders": self.sent,
            "fills": self.fills,
            "filled_usdt": self._filled_e8 / E8,
            "maker_share": self._maker_e8 / self._filled_e8 if self.fills else None,
            "all_in_cost_bps": self.costs.mean("total_bps"),
            "cost_parts_bps": {part: self.costs.mean(part) for part in PARTS},
            "markout_60s_bps": self.costs.mean("markout_60s_bps"),
            "fees_usdt": fees,
            "funding_usdt": funding,
            "gross_pnl_usdt": gross,
            "net_pnl_usdt": gross - fees - funding,
            "positions": {s: self.position_lots(s) for s in self._instruments},
            "denied": {str(denial): count for denial, count in self.guard.denials.items()},
        }
