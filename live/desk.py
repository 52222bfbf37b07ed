"""The desk: from target positions to orders, each on record before it leaves.

One parent order a symbol at a time. A new target while one is under way abandons it: its open order
is cancelled, what filled stays, and the next decision opens a parent for what is then missing. A
parent that ends short of its quantity is not followed by another for a deadline's length, so that a
venue that refuses is not asked every second.

Identities are deterministic and never come twice in a journal: ``SYMBOL-<decision s>-<number>``,
the number counting the journal's parents, and an order of it ``<parent>-<n>``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from execution.account import E8, Account, unit_e8
from execution.algorithms import start
from execution.orders import Event, Filled, Liquidity, Submit
from execution.tca import PARTS, Mids, Shortfall, parent_row, shortfall
from execution.working import Parent, Working
from live.journal import Journal
from live.paper import LiveVenue
from market.instruments import Instrument
from market.settings import Execution

SECOND_NS: Final = 1_000_000_000

#: An algorithm is stepped at least this often.
TIMER_NS: Final = 100_000_000

#: Markouts look this far behind a fill; a parent's cost is final only then.
MARKOUT_NS: Final = 60 * SECOND_NS

#: At the end orders get this much time to be answered.
CLOSING_NS: Final = 5 * SECOND_NS
_CLOSING_STEP_NS: Final = 10_000_000


class Work(msgspec.Struct, kw_only=True):
    """A parent order under way."""

    parent: Parent
    algorithm: Working
    name: str
    inbox: list[Event]
    abandoned: bool = False
    touch: tuple[int | None, int | None] = (None, None)
    timer_ns: int = 0
    expected_bps: float | None = None


class Ended(msgspec.Struct, kw_only=True):
    """A finished parent order whose markouts are still to come."""

    parent: Parent
    fills: list[Filled]
    algorithm: str
    arrival_ns: int | None
    end_ns: int


class Desk:
    """Works targets into positions through a venue. All times are the receive clock's, ns."""

    def __init__(
        self,
        venue: LiveVenue,
        journal: Journal,
        instruments: Mapping[str, Instrument],
        settings: Execution,
        name: str,
        log: Any,
    ) -> None:
        self._venue, self._journal, self._name, self._log = venue, journal, name, log
        self._instruments, self._settings = instruments, settings
        self.account = Account(instruments)
        self.orders = self.fills = self.parents = 0
        self._maker_value = self._filled_value = 0.0
        self.costs: list[Shortfall] = []
        self.mids = {symbol: Mids() for symbol in instruments}
        self._opened: dict[str, float] = {}
        self._work: dict[str, Work] = {}
        self._fills: dict[str, list[Filled]] = {}
        self._ended: list[Ended] = []
        self._rest_until: dict[str, int] = {}

    def position_lots(self, symbol: str) -> int:
        """Signed position as far as we have heard: the sum of the executions on record."""
        return self._journal.positions.get(symbol, 0)

    def working(self, symbol: str) -> bool:
        """Whether a parent order of the symbol is under way."""
        return symbol in self._work

    def size_lots(self, symbol: str, mid: float) -> int:
        """A full position: the settings' share of capital at this mid (quote currency), in lots."""
        instrument = self._instruments[symbol]
        notional = self._settings.capital_usdt * self._settings.size_share
        lots = round(notional / (mid * instrument.lot_size))
        return lots if lots >= instrument.qty_lots(instrument.min_qty) else 0

    # -- targets -------------------------------------------------------------------------------

    def aim(self, symbol: str, target_lots: int, now_ns: int, expected_bps: float | None) -> None:
        """Work towards a position of ``target_lots`` (signed)."""
        missing = target_lots - self.position_lots(symbol)
        work = self._work.get(symbol)
        if work is not None:
            work.expected_bps = expected_bps
            ahead = work.parent.side * (work.parent.qty_lots - work.algorithm.filled_lots)
            if missing != ahead:
                self._abandon(work, now_ns)
            return
        if missing and now_ns >= self._rest_until.get(symbol, 0):
            self._open(symbol, missing, now_ns, self._settings.algorithm, expected_bps)

    def _open(
        self, symbol: str, lots: int, now_ns: int, algorithm: str, expected_bps: float | None
    ) -> None:
        view = self._venue.view(symbol)
        if view.stale:
            return
        held = self.position_lots(symbol)
        parent = Parent(
            id=f"{symbol}-{now_ns // SECOND_NS}-{self._journal.parents + 1}",
            symbol=symbol,
            side=1 if lots > 0 else -1,
            qty_lots=abs(lots),
            decision_ns=now_ns,
            deadline_ns=now_ns + round(self._settings.deadline_s * 1e9),
            decision_mid_ticks=view.mid_ticks,
            reduce_only=held * lots < 0 and abs(lots) <= abs(held),
        )
        row = parent_row(parent, algorithm, self._name, self._instruments[symbol])
        self._journal.note("parent", now_ns, msgspec.json.encode(row), symbol, parent.id)
        self.parents += 1
        self._log.info("parent", id=parent.id, side=parent.side, lots=parent.qty_lots)
        self._fills[parent.id] = []
        self._work[symbol] = Work(
            parent=parent,
            algorithm=start(algorithm, parent),
            inbox=[],
            name=algorithm,
            timer_ns=now_ns,
            expected_bps=expected_bps,
        )

    def _abandon(self, work: Work, now_ns: int) -> None:
        work.algorithm.abandon()
        work.abandoned = True
        work.timer_ns = now_ns

    # -- the market moves, the venue answers -----------------------------------------------------

    def step(self, now_ns: int) -> None:
        """Take the venue's answers, and let every algorithm react that has a reason to."""
        for event in self._journal.record(self._venue.poll()):
            self._take(event)
        for symbol, mids in self.mids.items():
            bid, ask = touch = self._venue.touch(symbol)
            if bid is not None and ask is not None and bid < ask:
                mids.append(now_ns, (bid + ask) / 2)
            mids.until_ns = now_ns  # without a sound book the last mid known stands
            work = self._work.get(symbol)
            if work is not None and (work.inbox or touch != work.touch or now_ns >= work.timer_ns):
                work.touch = touch
                self._let(work, now_ns)
        while self._ended and now_ns > self._ended[0].end_ns + MARKOUT_NS:
            self._measure(self._ended.pop(0))

    def _let(self, work: Work, now_ns: int) -> None:
        """One step of an algorithm: its intents on disk, then its actions on their way."""
        parent = work.parent
        work.timer_ns = now_ns + TIMER_NS
        view = self._venue.view(parent.symbol)
        if work.expected_bps is not None:
            view = msgspec.structs.replace(view, signal_bps=work.expected_bps)
        events, work.inbox = work.inbox, []
        actions = work.algorithm.step(now_ns, view, events)
        if actions:
            self._journal.intend(now_ns, parent.symbol, parent.id, actions)
            self._venue.send(actions)
            self.orders += sum(isinstance(action, Submit) for action in actions)
        if work.algorithm.done:
            self._end(work, now_ns)

    def _take(self, event: Event) -> None:
        order = self._journal.orders.get(event.client_id)
        if order is None:
            self._log.error("answer to an order that the journal does not name", event=repr(event))
            return
        if isinstance(event, Filled):
            self._book(event)
            self._fills.setdefault(order.parent_id, []).append(event)
        work = self._work.get(order.submit.symbol)
        if work is not None and work.parent.id == order.parent_id:
            work.inbox.append(event)

    def _book(self, fill: Filled) -> None:
        self.account.apply(fill)
        self.fills += 1
        value = unit_e8(self._instruments[fill.symbol]) * fill.price_ticks * fill.qty_lots / E8
        self._filled_value += value
        self._maker_value += value * (fill.liquidity is Liquidity.MAKER)

    def _end(self, work: Work, now_ns: int) -> None:
        parent, filled = work.parent, work.algorithm.filled_lots
        del self._work[parent.symbol]
        if filled < parent.qty_lots and not work.abandoned:
            self._rest_until[parent.symbol] = now_ns + round(self._settings.deadline_s * 1e9)
        self._log.info("parent ended", id=parent.id, filled=filled, lots=parent.qty_lots)
        self._ended.append(
            Ended(
                parent=parent,
                fills=self._fills[parent.id],
                algorithm=work.name,
                arrival_ns=work.algorithm.arrival_ns,
                end_ns=now_ns,
            )
        )

    def _measure(self, ended: Ended) -> None:
        parent = ended.parent
        cost = shortfall(
            parent,
            ended.fills,
            self.mids[parent.symbol],
            self._instruments[parent.symbol],
            algorithm=ended.algorithm,
            venue=self._name,
            arrival_ns=ended.arrival_ns,
            end_ns=ended.end_ns,
        )
        self.costs.append(cost)
        body = msgspec.json.encode(cost)
        self._journal.note("end", ended.end_ns, body, parent.symbol, parent.id)
        self._fills.pop(parent.id, None)
        self.mids[parent.symbol].forget(ended.end_ns)

    # -- the end -------------------------------------------------------------------------------

    def close(self, now_ns: int, flatten: bool) -> int:
        """Cancel what is open, flatten if asked, measure what ended; returns the time it is then.

        Orders get `CLOSING_NS` of the venue's time each for cancelling and for flattening. What is
        left after that is logged and stays in the journal.
        """
        for work in self._work.values():
            self._abandon(work, now_ns)
        now_ns = self._wait(now_ns)
        if flatten and not self._work:
            for symbol in self._instruments:
                if lots := self.position_lots(symbol):
                    self._open(symbol, -lots, now_ns, "market", None)
            now_ns = self._wait(now_ns)
        for ended in self._ended:
            self._measure(ended)
        self._ended.clear()
        for order in self._journal.open_orders():
            self._log.error("order still open", id=order.submit.client_id, state=order.state)
        for symbol in self._instruments:
            if (lots := self.position_lots(symbol)) and flatten:
                self._log.error("position left", symbol=symbol, lots=lots)
        return now_ns

    def _wait(self, now_ns: int) -> int:
        until = now_ns + CLOSING_NS
        while self._work and now_ns < until:
            self._venue.advance(now_ns)
            self.step(now_ns)
            now_ns += _CLOSING_STEP_NS
        return now_ns

    def summary(self) -> dict[str, Any]:
        """Orders, fills, what they cost and brought; bps over parents, money in quote currency."""

        def mean(name: str) -> float | None:
            found = [v for v in (getattr(c, name) for c in self.costs) if not math.isnan(v)]
            return math.fsum(found) / len(found) if found else None

        holdings = self.account.holdings
        gross = fees = 0.0
        for symbol, holding in holdings.items():
            mid = self.mids[symbol].at(self.mids[symbol].until_ns)
            value = unit_e8(holding.instrument) * holding.position_lots * mid
            open_profit = value - holding.cost_e8 if holding.position_lots else 0.0
            gross += (holding.realised_e8 + open_profit) / E8
            fees += holding.fees_e8 / E8
        return {
            "parents": self.parents,
            "orders": self.orders,
            "fills": self.fills,
            "filled_usdt": self._filled_value,
            "maker_share": self._maker_value / self._filled_value if self.fills else None,
            "all_in_cost_bps": mean("total_bps"),
            "cost_parts_bps": {part: mean(part) for part in PARTS},
            "markout_60s_bps": mean("markout_60s_bps"),
            "fees_usdt": fees,
            "gross_pnl_usdt": gross,
            "net_pnl_usdt": gross - fees,
            "positions": {s: self.position_lots(s) for s in self._instruments},
        }
