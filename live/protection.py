"""What is held is protected: a stop at the venue with every position, and orders that close one.

T, the longest that a position stands without a stop while the venue answers, is `UNPROTECTED_NS` and the time
to close it. An entry carries its stop, so that the venue arms it with the first fill; a position found without
one gets it at once, by `SetStop` that is repeated; after `UNPROTECTED_NS` in vain the position is closed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Final

import msgspec

from execution.account import Account
from execution.order_machine import Order, Orders
from execution.orders import Cancel, Filled, Submit, TimeInForce
from live.messages import Append, Effect, PositionReport, Say, SetStop
from live.requests import Requests, Retries
from market.settings import Settings
from market.units import BPS, E8, SECOND_NS

#: A position that could not be given a stop for so long is closed.
UNPROTECTED_NS: Final = 10 * SECOND_NS
#: A stop is moved when it is off by this share of its distance.
MATERIAL: Final = 0.1
#: An execution without an order of ours is a stop's within this share of its price.
STOP_SLIP: Final = 0.01
KEPT: Final = 8
#: Closing orders of a position leave at least this far apart; the bound widens with each up to the factor.
CLOSE_EVERY_NS: Final = SECOND_NS
MOST_BOUND: Final = 3


class Closing(msgspec.Struct, kw_only=True):
    """A position that is being closed."""

    reason: str
    tries: int = 0
    due_ns: int = 0


class ProtectionState(msgspec.Struct, kw_only=True):
    """A checkpoint of `Protection`."""

    stops: dict[str, int] = {}  #: trigger price at the venue as far as known, ticks
    armed: dict[str, list[int]] = {}  #: the last ones that `SetStop` set
    bare_ns: dict[str, int] = {}  #: since when a position has none
    closing: dict[str, Closing] = {}


class Protection:
    """Stops and closing orders. ``at_venue``: the venue holds stops; else there are none."""

    def __init__(
        self,
        orders: Orders,
        account: Account,
        requests: Requests,
        retries: Retries,
        settings: Settings,
        emit: Callable[[Effect], None],
        state: ProtectionState,
    ) -> None:
        self._orders, self._account = orders, account
        self._requests, self._retries, self._emit = requests, retries, emit
        self._limits = settings.risk
        self._at_venue = settings.live.venue != "paper"
        self.state = copy.deepcopy(state)
        #: Whether a symbol's position, and so its entry price, is open to question.
        self.doubts: Callable[[str], bool] = lambda symbol: False
        self._marks: dict[str, float] = {}
        #: The venue's lots and entry price in ticks.
        self._stated: dict[str, tuple[int, float]] = {}

    def mark(self, symbol: str, mid_ticks: float) -> None:
        """The last known mid of a symbol."""
        if mid_ticks > 0:
            self._marks[symbol] = mid_ticks

    # -- stops -----------------------------------------------------------------------------------

    def entry_stop(self, symbol: str, side: int, price_ticks: float) -> int:
        """The stop to attach to an entry, 0 for none: from the last known mid, which a bound may be far from."""
        return self._stop_ticks(side, self._marks.get(symbol, price_ticks))

    def _stop_ticks(self, side: int, price_ticks: float) -> int:
        if not self._at_venue or price_ticks <= 0:
            return 0
        return max(1, round(price_ticks * (1 - side * self._limits.stop_bps / BPS)))

    def fill(self, now_ns: int, fill: Filled, order: Order | None) -> None:
        """An execution was booked."""
        symbol, moved = fill.symbol, fill.side * fill.qty_lots
        lots = self._account.position_lots(symbol)
        if lots * fill.side > 0:  # opened, increased or turned by it
            attached = order.submit.stop_ticks if order is not None else 0
            if attached or (lots - moved) * lots <= 0:
                self.state.stops[symbol] = attached
        self.protect(now_ns, symbol)

    def report(self, now_ns: int, report: PositionReport) -> None:
        """The venue states a position, no older than our last execution of it."""
        if report.lots * self._account.position_lots(report.symbol) > 0:
            tick = self._account.holdings[report.symbol].instrument.tick_size
            self._stated[report.symbol] = report.lots, report.entry_e8 / E8 / tick
            self.state.stops[report.symbol] = report.stop_ticks
            self.protect(now_ns, report.symbol)

    def fits_stop(self, fill: Filled) -> bool:
        """Whether an execution is of a stop of ours: at a price that one had. The position that it belongs to
        may still be unheard of.
        """
        orders = self._orders.by_id.values()
        stops = [o.submit.stop_ticks for o in orders if o.symbol == fill.symbol]
        stops += self.state.armed.get(fill.symbol, [])
        return any(abs(fill.price_ticks - stop) <= STOP_SLIP * stop for stop in stops)

    def armed(self, now_ns: int, body: SetStop) -> None:
        """The venue took a stop."""
        self.state.stops[body.symbol] = body.stop_ticks
        armed = [*self.state.armed.get(body.symbol, []), body.stop_ticks]
        self.state.armed[body.symbol] = armed[-KEPT:]
        self.protect(now_ns, body.symbol)

    def protect(self, now_ns: int, symbol: str) -> None:
        """Have the stop where it belongs."""
        state, key = self.state, f"stop/{symbol}"
        lots = self._account.position_lots(symbol)
        if not lots or not self._at_venue:
            self._retries.done(key)
            state.bare_ns.pop(symbol, None)
            state.stops.pop(symbol, None)
            return
        entry, stop = self._entry(symbol), state.stops.get(symbol, 0)
        wanted = self._stop_ticks(1 if lots > 0 else -1, entry)
        is_near = stop and abs(stop - wanted) <= MATERIAL * abs(entry - wanted)
        if is_near or (stop and self.doubts(symbol)):
            self._retries.done(key)
        else:
            self._retries.want(now_ns, key, SetStop(symbol=symbol, stop_ticks=wanted))
        if stop:
            state.bare_ns.pop(symbol, None)
        else:
            state.bare_ns.setdefault(symbol, now_ns)

    def _entry(self, symbol: str) -> float:
        """The price that the stop is measured from. Ours depends on the order in which executions came, so
        the venue's goes first, and the last known mid while executions may be missing.
        """
        holding, mark = self._account.holdings[symbol], self._marks.get(symbol, 0.0)
        lots, stated = self._stated.get(symbol, (0, 0.0))
        if lots == holding.position_lots and stated > 0:
            return stated
        entry = holding.entry_ticks
        if entry is None or entry <= 0 or (mark and self.doubts(symbol)):
            return mark or 1.0
        return float(entry)

    # -- closing ---------------------------------------------------------------------------------

    def close(self, now_ns: int, symbol: str, reason: str) -> None:
        """Cancel the symbol's orders and close its position by reduce-only orders until both are proven."""
        if symbol not in self.state.closing:
            self.state.closing[symbol] = Closing(reason=reason, due_ns=now_ns)
            self._say("warning", "closing", symbol, reason=reason)

    def is_closing(self, symbol: str) -> bool:
        return symbol in self.state.closing

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self.state.closing or self.state.bare_ns)

    def step(self, now_ns: int) -> None:
        """Close what is to be closed, and what could not be protected."""
        for symbol, since_ns in self.state.bare_ns.items():
            if now_ns - since_ns >= UNPROTECTED_NS:
                self.close(now_ns, symbol, "the venue takes no stop")
        for symbol, closing in list(self.state.closing.items()):
            self._close(now_ns, symbol, closing)

    def _close(self, now_ns: int, symbol: str, closing: Closing) -> None:
        lots, orders = self._account.position_lots(symbol), list(self._orders.open(symbol))
        self.cancel_resting(now_ns, symbol)
        if not lots and not orders:
            del self.state.closing[symbol]
            self._say("info", "closed", symbol, reason=closing.reason)
            return
        under_way = any(order.crosses and order.submit.reduce_only for order in orders)
        if not lots or under_way or now_ns < closing.due_ns:
            return
        closing.tries += 1
        closing.due_ns = now_ns + CLOSE_EVERY_NS
        side = -1 if lots > 0 else 1
        away = side * self._limits.close_bps * min(closing.tries, MOST_BOUND) / BPS
        bound = (self._marks.get(symbol) or self._entry(symbol)) * (1 + away)
        submit = Submit(
            client_id=f"{symbol}-{now_ns // SECOND_NS}-c{self._requests.number + 1}",
            symbol=symbol,
            side=side,
            qty_lots=abs(lots),
            price_ticks=max(1, math.ceil(bound) if side > 0 else math.floor(bound)),
            time_in_force=TimeInForce.IOC,
            reduce_only=True,
        )
        self._orders.sent(submit, "", now_ns)
        self._send(now_ns, submit, symbol)

    def cancel_resting(self, now_ns: int, symbol: str) -> None:
        """Cancel what rests, once; reconciliation repeats what stays without an answer."""
        for order in list(self._orders.open(symbol)):
            if not (order.state.is_final or order.crosses or order.cancel_sent):
                self.cancel(now_ns, order)

    def cancel(self, now_ns: int, order: Order) -> None:
        """Cancel an order, also one that was cancelled before: the request is idempotent."""
        action = Cancel(client_id=order.client_id)
        self._orders.requested(action, now_ns)
        self._send(now_ns, action, order.symbol)

    def _send(self, now_ns: int, action: Submit | Cancel, symbol: str) -> None:
        self._emit(
            Append(
                kind="intent",
                time_ns=now_ns,
                body=msgspec.json.encode(action),
                symbol=symbol,
                client_id=action.client_id,
            )
        )
        self._emit(self._requests.open(now_ns, action, symbol))

    def _say(self, level: str, event: str, symbol: str, **fields: object) -> None:
        self._emit(Say(level=level, event=event, fields={"symbol": symbol, **fields}))
