"""Pre-trade risk limits: every request passes them before it is sent, or is denied for one reason.

The guard assumes the worst case: every open order, and every order of unknown state, may fill
completely at once. A request is allowed when all limits hold even then:

    |position + open buys|, |position - open sells|   ≤ position limit, of each symbol, at the mid
    Σ over symbols of the larger of the two            ≤ gross limit and leverage × equity

So no sequence of fills, rejections or duplicates can carry a position past a limit: only the price
can, and then requests that increase it are denied. A loss limit is the kill switch: after it only
reducing orders pass.

Limits shared by symbols (gross, leverage, rate limit) are split into equal parts at every `mark`, so
that a symbol's decisions never depend on the order in which other symbols' events arrive.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from execution.orders import (
    Accepted,
    Action,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Lost,
    OrderType,
    Rejected,
    Submit,
)
from execution.venue import View
from market.instruments import Instrument
from market.settings import Risk
from market.units import BPS, DAY_NS, SECOND_NS


class Denial(StrEnum):
    """Why a request was not sent; the list is closed. STALE_MARKET: no view, a stale or one-sided one."""

    UNKNOWN_SYMBOL = "unknown_symbol"
    UNKNOWN_ORDER = "unknown_order"
    DUPLICATE_ID = "duplicate_id"
    BAD_QUANTITY = "bad_quantity"
    BAD_PRICE = "bad_price"
    STALE_MARKET = "stale_market"
    PRICE_BAND = "price_band"
    ORDER_LIMIT = "order_limit"
    POSITION_LIMIT = "position_limit"
    GROSS_LIMIT = "gross_limit"
    LEVERAGE = "leverage"
    LIQUIDATION = "liquidation"
    DAILY_LOSS = "daily_loss"
    DRAWDOWN = "drawdown"
    RATE_LIMIT = "rate_limit"
    REDUCE_ONLY = "reduce_only"


class _Open(msgspec.Struct, kw_only=True):
    """An order that may still fill; the quantity of an amend under way counts already."""

    symbol: str
    side: int
    qty_lots: int
    reduce_only: bool
    amend_lots: list[int] = []
    filled_lots: int = 0

    @property
    def leaves_lots(self) -> int:
        return max(self.qty_lots, *self.amend_lots, 0) - self.filled_lots


class Guard:
    """Checks requests against limits, with its own record of positions and open orders.

    ``equity_usdt`` is the account's at the start, ``positions`` signed lots then. ``denials`` counts
    denied requests by reason.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        limits: Risk,
        equity_usdt: float,
        positions: Mapping[str, int] | None = None,
    ) -> None:
        self.limits = limits
        self.denials: dict[Denial, int] = {}
        self._instruments = instruments
        self._positions = dict.fromkeys(instruments, 0) | dict(positions or {})
        self._mids: dict[str, float] = {}
        self._liquidation: dict[str, float] = {}
        self._orders: dict[str, _Open] = {}
        self._seen: set[str] = set()
        self._executions: set[str] = set()
        self._sent: dict[str, deque[int]] = {symbol: deque() for symbol in instruments}
        self._rate = max(1, limits.actions_per_s // max(1, len(instruments)))
        self._room: dict[str, tuple[float, float]] = {}
        self._equity = self._peak = self._day_equity = equity_usdt
        self._day: int | None = None
        self._share_limits()

    # -- state of the account ------------------------------------------------------------------

    def position_lots(self, symbol: str) -> int:
        """Signed position: the sum of executions received."""
        return self._positions[symbol]

    def mark(self, now_ns: int, equity_usdt: float, mids_ticks: Mapping[str, float]) -> None:
        """Mark to market: the account's equity and the mids now; NaN keeps the last known value.

        The first mark of a UTC day sets the equity that the daily loss is measured from.
        """
        self._mids |= {s: mid for s, mid in mids_ticks.items() if not math.isnan(mid)}
        if math.isnan(equity_usdt):
            equity_usdt = self._equity
        self._equity = equity_usdt
        self._peak = max(self._peak, equity_usdt)
        if self._day != now_ns // DAY_NS:
            self._day, self._day_equity = now_ns // DAY_NS, equity_usdt
        self._share_limits()

    def adopt(self, order: Submit, filled_lots: int) -> None:
        """Take over an order that an earlier process left open or in unknown state."""
        self._commit(order)
        self._orders[order.client_id].filled_lots = filled_lots
        self._share_limits()

    def _share_limits(self) -> None:
        """Each symbol's part of the shared limits: its worst case now, and an equal part of the rest."""
        worst = {symbol: self._worst_usdt(symbol) for symbol in self._instruments}
        total = sum(worst.values())
        for symbol, value in worst.items():
            gross, geared = (
                value + max(0.0, limit - total) / len(worst)
                for limit in (self.limits.gross_usdt, self.limits.leverage * self._equity)
            )
            self._room[symbol] = (gross, geared)

    def liquidation(self, symbol: str, price_ticks: float | None) -> None:
        """Set the liquidation price of the symbol's position; None when it has none."""
        if price_ticks is None:
            self._liquidation.pop(symbol, None)
        else:
            self._liquidation[symbol] = price_ticks

    def apply(self, events: Sequence[Event]) -> None:
        """Take in order events; duplicates and orders that are not ours change nothing."""
        for event in events:
            order = self._orders.get(event.client_id)
            if isinstance(event, Filled):
                self._fill(event, order)
            elif order is None or isinstance(event, Accepted | Lost | CancelRejected):
                continue
            elif isinstance(event, Rejected):
                # An order that has filled was accepted: the rejection is of a duplicate request.
                if not order.filled_lots:
                    del self._orders[event.client_id]
            elif isinstance(event, Cancelled):
                self._cancelled(event, order)
            elif isinstance(event, Amended):
                order.qty_lots = event.qty_lots
                if event.qty_lots in order.amend_lots:
                    order.amend_lots.remove(event.qty_lots)
                if order.leaves_lots <= 0:
                    del self._orders[event.client_id]

    def _fill(self, fill: Filled, order: _Open | None) -> None:
        if fill.exec_id in self._executions or fill.symbol not in self._positions:
            return
        self._executions.add(fill.exec_id)
        self._positions[fill.symbol] += fill.side * fill.qty_lots
        if order is not None:
            order.filled_lots += fill.qty_lots
            if order.leaves_lots <= 0:
                del self._orders[fill.client_id]

    def _cancelled(self, event: Cancelled, order: _Open) -> None:
        """A cancel may overtake fills: lots that filled by the venue's count stay open until then."""
        order.amend_lots.clear()
        order.qty_lots -= event.leaves_lots
        if not event.leaves_lots or order.leaves_lots <= 0:
            del self._orders[event.client_id]

    # -- requests ------------------------------------------------------------------------------

    def allow(self, now_ns: int, action: Action, view: View | None) -> Denial | None:
        """None when the request may be sent, and then it counts as sent; else why it is denied.

        ``view`` is the symbol's present picture; None or a stale one denies all but cancels.
        """
        symbol = self._symbol_of(action)
        sent = self._sent.get(symbol, deque())
        while sent and sent[0] <= now_ns - SECOND_NS:
            sent.popleft()
        denial = self._judge(action, view, len(sent))
        if denial is None:
            sent.append(now_ns)
            self._commit(action)
        else:
            self.denials[denial] = self.denials.get(denial, 0) + 1
        return denial

    def _commit(self, action: Action) -> None:
        if isinstance(action, Submit):
            self._seen.add(action.client_id)
            self._orders[action.client_id] = _Open(
                symbol=action.symbol,
                side=action.side,
                qty_lots=action.qty_lots,
                reduce_only=action.reduce_only,
            )
        elif isinstance(action, Amend) and action.qty_lots is not None:
            self._orders[action.client_id].amend_lots.append(action.qty_lots)

    def _judge(self, action: Action, view: View | None, sent: int) -> Denial | None:
        if isinstance(action, Cancel):
            return None if action.client_id in self._seen else Denial.UNKNOWN_ORDER
        if sent >= self._rate:
            return Denial.RATE_LIMIT
        if isinstance(action, Submit):
            if action.client_id in self._seen:
                return Denial.DUPLICATE_ID
            if action.symbol not in self._instruments:
                return Denial.UNKNOWN_SYMBOL
            limit = None if action.order_type is OrderType.MARKET else action.price_ticks
            return self._judge_order(
                action.symbol, action.side, action.qty_lots, limit, action.reduce_only, view
            )
        order = self._orders.get(action.client_id)
        if order is None:
            return Denial.UNKNOWN_ORDER
        more = 0
        if action.qty_lots is not None:
            if action.qty_lots <= order.filled_lots:
                return Denial.BAD_QUANTITY
            more = max(0, action.qty_lots - order.filled_lots - order.leaves_lots)
        return self._judge_order(
            order.symbol, order.side, more, action.price_ticks, order.reduce_only, view, amends=True
        )

    def _judge_order(
        self,
        symbol: str,
        side: int,
        lots: int,
        price_ticks: int | None,
        reduce_only: bool,
        view: View | None,
        amends: bool = False,
    ) -> Denial | None:
        """Judge ``lots`` more of an order; an amend of the price alone adds none."""
        if side not in (1, -1) or lots < (0 if amends else 1):
            return Denial.BAD_QUANTITY
        if price_ticks is not None and price_ticks <= 0:
            return Denial.BAD_PRICE
        if view is None or view.symbol != symbol or view.stale or not view.bids or not view.asks:
            return Denial.STALE_MARKET
        mid = self._mids[symbol] = view.mid_ticks
        if price_ticks is not None:
            away_bps = side * (price_ticks - mid) / mid * BPS
            if away_bps > self.limits.price_band_bps:
                return Denial.PRICE_BAND
        position = self._positions[symbol]
        reducing = side * position < 0 and self._open(symbol, side) + lots <= abs(position)
        if reduce_only and not reducing:
            return Denial.REDUCE_ONLY
        if reducing or lots == 0:
            return None
        return self._judge_increase(symbol, side, lots, mid)

    def _judge_increase(self, symbol: str, side: int, lots: int, mid: float) -> Denial | None:
        limits = self.limits
        if self._equity <= self._day_equity - limits.daily_loss_usdt:
            return Denial.DAILY_LOSS
        if self._equity <= self._peak - limits.drawdown_usdt:
            return Denial.DRAWDOWN
        liquidated = self._liquidation.get(symbol)
        if liquidated is not None and side * self._positions[symbol] > 0:
            distance = side * (mid - liquidated) / mid * BPS
            if distance < limits.liquidation_bps:
                return Denial.LIQUIDATION
        value = self._lot_usdt(symbol)
        if lots * value > limits.order_usdt:
            return Denial.ORDER_LIMIT
        if self._worst_lots(symbol, side, lots) * value > limits.position_usdt:
            return Denial.POSITION_LIMIT
        gross, geared = self._room[symbol]
        if self._worst_usdt(symbol, side, lots) > gross:
            return Denial.GROSS_LIMIT
        if self._worst_usdt(symbol, side, lots) > geared:
            return Denial.LEVERAGE
        return None

    def _symbol_of(self, action: Action) -> str:
        if isinstance(action, Submit):
            return action.symbol
        order = self._orders.get(action.client_id)
        return order.symbol if order is not None else ""

    def _open(self, symbol: str, side: int) -> int:
        return sum(
            order.leaves_lots
            for order in self._orders.values()
            if order.symbol == symbol and order.side == side
        )

    def _worst_lots(self, symbol: str, side: int, more: int) -> int:
        """Largest position on one side after open orders and ``more`` lots fill."""
        return max(0, side * self._positions[symbol] + self._open(symbol, side) + more)

    def _worst_usdt(self, symbol: str, side: int = 0, more: int = 0) -> float:
        """Notional of the worst case of both sides, with ``more`` lots on ``side``."""
        worst = max(self._worst_lots(symbol, s, more if s == side else 0) for s in (1, -1))
        return worst * self._lot_usdt(symbol)

    def _lot_usdt(self, symbol: str) -> float:
        """Notional of a lot at the last mid; zero before the first, when there is no position either."""
        instrument = self._instruments[symbol]
        return self._mids.get(symbol, 0.0) * instrument.tick_size * instrument.lot_size
