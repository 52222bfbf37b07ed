"""Pre-trade risk limits: every request passes them before it is sent, or is denied for one reason.

The guard assumes the worst case: every open order, and every order of unknown state, may fill
completely at once. A request is allowed when all limits hold even then:

    |position + open buys|, |position - open sells|   ≤ position limit, of each symbol, at the mid
    Σ over symbols of the larger of the two            ≤ gross limit and leverage × equity

So no sequence of fills, rejections or duplicates can carry a position past a limit: only the price
can, and then requests that increase it are denied. A loss limit is the kill switch: after it only
reducing orders pass. What reduces a position, and every cancel, passes the rate limit too.

Limits shared by symbols (gross, leverage, rate limit) are split into equal parts among the traded ones at
every `mark`, so that a symbol's decisions never depend on the order in which other symbols' events arrive.

The guard only judges. Orders are those of the order machine, positions and equity the account's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from enum import StrEnum

from execution.account import Account
from execution.liquidation import Headroom
from execution.order_machine import Orders
from execution.orders import Action, Cancel, OrderType, Submit
from execution.venue import View
from market.instruments import Instrument
from market.settings import Risk
from market.units import BPS, E8, SECOND_NS


class Denial(StrEnum):
    """Why a request was not sent; the list is closed. STALE_MARKET: no view, a stale or one-sided one.
    UNBOUNDED: a market order, which trades at any price.
    """

    UNKNOWN_SYMBOL = "unknown_symbol"
    NOT_TRADED = "not_traded"
    UNKNOWN_ORDER = "unknown_order"
    DUPLICATE_ID = "duplicate_id"
    BAD_QUANTITY = "bad_quantity"
    BAD_PRICE = "bad_price"
    STALE_MARKET = "stale_market"
    UNBOUNDED = "unbounded"
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


class Guard:
    """Checks requests against limits. ``denials`` counts denied requests by reason.

    With ``headroom`` the liquidation price after an order keeps its distance from the mid. Positions of symbols that are not ``traded`` count in shared limits, and may only be reduced.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        limits: Risk,
        orders: Orders,
        account: Account,
        traded: Sequence[str],
        headroom: Headroom | None = None,
    ) -> None:
        self.limits = limits
        self.denials: dict[Denial, int] = {}
        #: Losses (quote currency) of the day and since the peak that an operator resumed from.
        self.resumed: tuple[float, float] = (0.0, 0.0)
        self._instruments, self._orders, self._account = instruments, orders, account
        self._traded = frozenset(traded)
        self._mids: dict[str, float] = {}
        self._headroom = headroom
        self._sent: dict[str, deque[int]] = {symbol: deque() for symbol in instruments}
        self._rate = max(1, limits.actions_per_s // max(1, len(self._traded)))
        self._room: dict[str, tuple[float, float]] = {}
        self._share_limits()

    def mark(self, mids_ticks: Mapping[str, float]) -> None:
        """Take the mids now, after `Account.mark`; NaN keeps the last known value."""
        self._mids |= {s: mid for s, mid in mids_ticks.items() if not math.isnan(mid)}
        self._share_limits()

    def _share_limits(self) -> None:
        """Each symbol's part of the shared limits: its worst case now, and an equal part of the rest."""
        worst = {symbol: self.worst_usdt(symbol) for symbol in self._account.holdings}
        total = sum(worst.values())
        for symbol in self._traded:
            gross, geared = (
                worst[symbol] + max(0.0, limit - total) / len(self._traded)
                for limit in (
                    self.limits.gross_usdt,
                    self.limits.leverage * self._account.backed_e8 / E8,
                )
            )
            self._room[symbol] = (gross, geared)

    def room_usdt(self, symbol: str) -> tuple[float, float]:
        """What a symbol may hold by the gross limit and by leverage, as of the last mark."""
        return self._room.get(symbol, (0.0, 0.0))

    # -- requests ------------------------------------------------------------------------------

    def allow(self, now_ns: int, action: Action, view: View | None) -> Denial | None:
        """None when the request may be sent, and then it counts in the rate; else why it is denied.

        ``view`` is the symbol's present picture; None or a stale one denies all but cancels. The
        caller tells the order machine what it sends.
        """
        symbol = self._symbol_of(action)
        sent = self._sent.get(symbol, deque())
        while sent and sent[0] <= now_ns - SECOND_NS:
            sent.popleft()
        denial = self._judge(action, view, len(sent) >= self._rate)
        if denial is None:
            sent.append(now_ns)
        else:
            self.denials[denial] = self.denials.get(denial, 0) + 1
        return denial

    def _judge(self, action: Action, view: View | None, busy: bool) -> Denial | None:
        order = self._orders.by_id.get(action.client_id)
        if isinstance(action, Cancel):
            return None if order is not None else Denial.UNKNOWN_ORDER
        if isinstance(action, Submit):
            if order is not None:
                return Denial.DUPLICATE_ID
            if action.symbol not in self._instruments:
                return Denial.UNKNOWN_SYMBOL
            if action.order_type is OrderType.MARKET:
                return Denial.UNBOUNDED
            return self._judge_order(
                action.symbol,
                action.side,
                action.qty_lots,
                action.price_ticks,
                action.reduce_only,
                view,
                busy,
            )
        if order is None or order.state.is_final:
            return Denial.UNKNOWN_ORDER
        submit, more = order.submit, 0
        if action.qty_lots is not None:
            if action.qty_lots <= order.filled_lots:
                return Denial.BAD_QUANTITY
            more = max(0, action.qty_lots - order.filled_lots - order.exposed_lots)
        return self._judge_order(
            submit.symbol,
            submit.side,
            more,
            action.price_ticks,
            submit.reduce_only,
            view,
            busy,
            amends=True,
        )

    def _judge_order(
        self,
        symbol: str,
        side: int,
        lots: int,
        price_ticks: int | None,
        reduce_only: bool,
        view: View | None,
        busy: bool,
        amends: bool = False,
    ) -> Denial | None:
        """Judge ``lots`` more of an order; an amend of the price alone adds none.

        ``busy`` when the symbol's rate is used up.
        """
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
        position = self._account.position_lots(symbol)
        reducing = side * position < 0 and self._open(symbol, side) + lots <= abs(position)
        if reduce_only and not reducing:
            return Denial.REDUCE_ONLY
        if reducing:
            return None
        if symbol not in self._traded:
            return Denial.NOT_TRADED
        if busy:
            return Denial.RATE_LIMIT
        return self._judge_increase(symbol, side, lots, mid) if lots else None

    def _judge_increase(self, symbol: str, side: int, lots: int, mid: float) -> Denial | None:
        limits, account = self.limits, self._account
        day_usdt, peak_usdt = self.resumed
        if account.marked_e8 <= account.day_opening_e8 - (limits.daily_loss_usdt + day_usdt) * E8:
            return Denial.DAILY_LOSS
        if account.marked_e8 <= account.peak_e8 - (limits.drawdown_usdt + peak_usdt) * E8:
            return Denial.DRAWDOWN
        if (headroom := self._headroom) is not None:
            more = side * (self._open(symbol, side) + lots)  # as if every order of this side filled
            away_bps = headroom.distance_bps(symbol, more, mid)
            if away_bps < limits.liquidation_bps or symbol in headroom.unknown:
                return Denial.LIQUIDATION
        value = self._lot_usdt(symbol)
        if lots * value > limits.order_usdt:
            return Denial.ORDER_LIMIT
        if self._worst_lots(symbol, side, lots) * value > limits.position_usdt:
            return Denial.POSITION_LIMIT
        gross, geared = self._room[symbol]
        if self.worst_usdt(symbol, side, lots) > gross:
            return Denial.GROSS_LIMIT
        if self.worst_usdt(symbol, side, lots) > geared:
            return Denial.LEVERAGE
        return None

    def _symbol_of(self, action: Action) -> str:
        if isinstance(action, Submit):
            return action.symbol
        order = self._orders.by_id.get(action.client_id)
        return order.symbol if order is not None else ""

    def _open(self, symbol: str, side: int) -> int:
        return sum(
            order.exposed_lots for order in self._orders.open(symbol) if order.submit.side == side
        )

    def _worst_lots(self, symbol: str, side: int, more: int) -> int:
        """Largest position on one side after open orders and ``more`` lots fill."""
        position = self._account.position_lots(symbol)
        return max(0, side * position + self._open(symbol, side) + more)

    def worst_usdt(self, symbol: str, side: int = 0, more: int = 0) -> float:
        """Notional of the worst case of both sides, with ``more`` lots on ``side``."""
        worst = max(self._worst_lots(symbol, s, more if s == side else 0) for s in (1, -1))
        return worst * self._lot_usdt(symbol)

    def _lot_usdt(self, symbol: str) -> float:
        """Notional of a lot at the last mid, before the first at the price of entry."""
        holding = self._account.holdings[symbol]
        price_ticks = self._mids.get(symbol) or float(holding.entry_ticks or 0)
        return price_ticks * holding.instrument.tick_size * holding.instrument.lot_size
