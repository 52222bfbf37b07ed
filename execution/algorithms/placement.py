"""Order placement: across the spread, or resting in which queue and with how much.

    market         everything at once, across the spread: the baseline
    passive        peg to the own touch, cross with the remainder at the deadline
    iceberg        the same, showing a tip at a time
    cont_kukanov   split at once between limit and market orders by the cost of an unfilled remainder
    adaptive       passive, cancelling before sweeps

All but the first rest post-only and never follow the market beyond a price limit. How long they wait is
up to the parent's urgency (`execution.urgency`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from execution.algorithms.working import Parent, Working
from execution.order_machine import Order
from execution.orders import Action, Amend
from execution.venue import View
from market.units import BPS, MS_NS, SECOND_NS


class MarketOrder(Working):
    """Everything at once across the spread; what a thin book did not fill is sent again."""

    def _decide(self, now_ns: int, view: View) -> Iterator[Action]:
        if not view.stale and not self._live:
            yield from self._take(now_ns, self.parent.qty_lots, view)


class Resting(Working):
    """Base of passive algorithms: keeps a quantity resting and pegs it to a price.

    Orders rest post-only. When the wanted price moves away from one it is amended, ``pause_ns`` after
    its last move at the earliest and at most ``max_moves`` times in all: every move loses queue
    position. None is chased past ``chase_bps`` of the decision price; the remainder then waits for the
    deadline, when it crosses.
    """

    def __init__(
        self,
        parent: Parent,
        *,
        max_moves: int = 20,
        pause_ns: int = 500 * MS_NS,
        chase_bps: float = 20.0,
    ) -> None:
        super().__init__(parent)
        self.moves = 0
        self._max_moves, self._pause_ns = max_moves, pause_ns
        slack = parent.decision_mid_ticks * chase_bps / BPS
        self._furthest_ticks = parent.decision_mid_ticks + parent.side * slack
        self._posted_ns = -pause_ns
        self._moved_ns: dict[str, int] = {}

    def _cancelled_unfilled(self, order: Order, now_ns: int) -> None:
        # A post-only order that would have crossed a moved market is no failure.
        if order.crosses:
            self._failed(now_ns)

    def _decide(self, now_ns: int, view: View) -> Iterator[Action]:
        if view.stale:
            if now_ns >= self.until_ns:
                for order in self._live:
                    yield from self._cancel(order, now_ns)
        elif now_ns >= self.until_ns:
            yield from self._cross(now_ns, self.parent.qty_lots - self.filled_lots, view)
        else:
            yield from self._work(now_ns, view)

    def _work(self, now_ns: int, view: View) -> Iterator[Action]:
        """Actions before the remainder crosses, with a sound book."""
        yield from self._rest(now_ns, self.parent.qty_lots, view.touch(self.parent.side))

    def _rest(self, now_ns: int, lots: int, price_ticks: int) -> Iterator[Action]:
        """Keep ``lots`` resting in all, amending orders that are further away than ``price_ticks``."""
        resting = sum(order.open_lots for order in self._pending.values() if not order.crosses)
        missing = min(lots - resting, self.remaining_lots)
        if missing > 0 and now_ns - self._posted_ns >= self._pause_ns:
            self._posted_ns = now_ns
            yield from self._post(now_ns, missing, price_ticks)
        for order in self._live:
            yield from self._follow(order, now_ns, price_ticks)

    def _follow(self, order: Order, now_ns: int, price_ticks: int) -> Iterator[Action]:
        side, client_id = self.parent.side, order.submit.client_id
        away = side * (price_ticks - order.price_ticks) > 0
        affordable = side * (self._furthest_ticks - price_ticks) >= 0
        last_ns = max(self._moved_ns.get(client_id, self._posted_ns), order.refused_ns)
        ready = self._rests(order) and not order.amending and now_ns - last_ns >= self._pause_ns
        if away and affordable and ready and self.moves < self._max_moves:
            self.moves += 1
            self._moved_ns[client_id] = now_ns
            amend = Amend(client_id=client_id, price_ticks=price_ticks)
            self._asked[client_id] = amend
            yield amend


class PassivePeg(Resting):
    """Peg to the own touch; cross with the remainder at the deadline.

    With ``behind_bps`` it rests so far behind the touch at first and moves up evenly, to join the
    touch after the share ``patience`` of its time. A maker at the touch is often filled by a price
    jump, whose size is the adverse selection it pays; behind the touch an order pays less of the jump,
    and has a better queue position where the price stops at it. ValueError for a negative distance, a
    share outside 0 to 1, or a share without a distance, which would change nothing.
    """

    def __init__(
        self,
        parent: Parent,
        *,
        behind_bps: float = 0.0,
        patience: float = 0.0,
        max_moves: int = 20,
        pause_ns: int = 500 * MS_NS,
        chase_bps: float = 20.0,
    ) -> None:
        super().__init__(parent, max_moves=max_moves, pause_ns=pause_ns, chase_bps=chase_bps)
        if behind_bps < 0 or not 0 <= patience <= 1 or (patience and not behind_bps):
            raise ValueError(
                f"{behind_bps:g} bps behind the touch for a share {patience:g} of the time: expected no negative "
                "distance, a share of 0 to 1, and none (patience) without a distance (behind_bps)"
            )
        self._behind_bps = behind_bps
        self._patience = patience

    def _work(self, now_ns: int, view: View) -> Iterator[Action]:
        side, price = self.parent.side, view.touch(self.parent.side)
        waited_ns = now_ns - self.parent.decision_ns
        patience_ns = self._patience * (self.until_ns - self.parent.decision_ns)
        if waited_ns < patience_ns:
            share = 1 - waited_ns / patience_ns
            price -= side * round(price * self._behind_bps / BPS * share)
        yield from self._rest(now_ns, self.parent.qty_lots, max(1, price))


class Iceberg(Resting):
    """The passive peg, showing no more than a tip; each new tip joins the queue at its end.

    The tip is ``tip_share`` of the parent, and at most ``touch_share`` of the quantity displayed at
    the own touch, so that it does not stand out; one lot at least.
    """

    def __init__(self, parent: Parent, *, tip_share: float = 0.1, touch_share: float = 0.2) -> None:
        super().__init__(parent, pause_ns=100 * MS_NS, max_moves=200)
        self._tip_share, self._touch_share = tip_share, touch_share

    def _work(self, now_ns: int, view: View) -> Iterator[Action]:
        side = self.parent.side
        price, displayed = (view.bids if side > 0 else view.asks)[0]
        tip = min(self._tip_share * self.parent.qty_lots, self._touch_share * displayed)
        if not self._live:
            yield from self._rest(now_ns, max(1, math.ceil(tip)), price)
        for order in self._live:
            yield from self._follow(order, now_ns, price)


class ContKukanov(Resting):
    """How much to rest and how much to take at once, for one venue (Cont and Kukanov 2017).

    With half-spread h, taker fee f, maker fee -r, the queue ahead Q, the outflow ξ of our queue until
    the deadline and the penalty λ for an unfilled remainder (costs in bps of price), the optimal
    resting quantity is

        L = clip(F⁻¹((2h + f + r) / (λ + h + r)) - Q, 0, S)

    with F the distribution of ξ, and the rest is taken. The outflow is modelled as exponential with
    the mean rate of the monitor. The split is reviewed every ``review_ns``; resting orders are pegged,
    and cross at the deadline. ValueError for a penalty that is no higher than the maker fee.
    """

    def __init__(
        self,
        parent: Parent,
        *,
        taker_bps: float = 5.5,
        maker_bps: float = 2.0,
        penalty_bps: float = 9.0,
        review_ns: int = 5 * SECOND_NS,
    ) -> None:
        super().__init__(parent)
        if penalty_bps <= maker_bps:
            raise ValueError(
                f"penalty of {penalty_bps:g} bps: expected more than the maker fee, {maker_bps:g} bps"
            )
        self._taker_bps, self._rebate_bps, self._penalty_bps = taker_bps, -maker_bps, penalty_bps
        self._review_ns, self._reviewed_ns = review_ns, -review_ns
        self.take_lots = 0

    def resting_lots(self, now_ns: int, view: View) -> int:
        """L for the unfilled quantity, from 0 to all of it."""
        side = self.parent.side
        unfilled = self.parent.qty_lots - self.filled_lots
        left_s = max(0.0, (self.until_ns - now_ns) / SECOND_NS)
        mean = self.monitor.outflow_lots_s(side, view) * left_s
        half = view.half_spread_bps
        level = (2 * half + self._taker_bps + self._rebate_bps) / (
            self._penalty_bps + half + self._rebate_bps
        )
        if level >= 1:
            return unfilled
        queue = (view.bids if side > 0 else view.asks)[0][1]
        return round(min(max(-mean * math.log1p(-level) - queue, 0.0), unfilled))

    def _work(self, now_ns: int, view: View) -> Iterator[Action]:
        self.monitor.see(view)
        unfilled = self.parent.qty_lots - self.filled_lots
        if now_ns - self._reviewed_ns >= self._review_ns:
            self._reviewed_ns = now_ns
            self.take_lots = self.filled_lots + unfilled - self.resting_lots(now_ns, view)
        if (take := self.take_lots - self.filled_lots) > 0:
            yield from self._cross(now_ns, take, view)
        yield from self._rest(now_ns, unfilled - max(take, 0), view.touch(self.parent.side))


class Adaptive(Resting):
    """Passive, cancelling before sweeps. Two rules:

    - *Step aside.* When the own side's share of the touch (queue imbalance) is below ``aside_share``,
      the price is about to trade through us: orders are cancelled, and posted again when the share is
      above ``return_share`` or the touch has moved. Fills just before a sweep are adversely selected.
    - *Hold back.* When the signal expects the market to come to us by more than ``hold_back_bps``,
      resting orders are not moved.
    """

    def __init__(
        self,
        parent: Parent,
        *,
        aside_share: float = 0.05,
        return_share: float = 0.2,
        hold_back_bps: float = 0.5,
    ) -> None:
        super().__init__(parent, max_moves=200, pause_ns=200 * MS_NS)
        self._aside_share, self._return_share = aside_share, return_share
        self._hold_back_bps = hold_back_bps
        self._aside_ticks: int | None = None

    def _work(self, now_ns: int, view: View) -> Iterator[Action]:
        side, unfilled = self.parent.side, self.parent.qty_lots - self.filled_lots
        price = view.touch(side)
        if self._steps_aside(view):
            for order in self._live:
                if order.price_ticks == price:
                    yield from self._cancel(order, now_ns)
            return
        if side * (view.signal_bps or 0.0) < -self._hold_back_bps and self._live:
            return
        yield from self._rest(now_ns, unfilled, price)

    def _steps_aside(self, view: View) -> bool:
        own, other = (view.bids, view.asks)[:: self.parent.side]
        share = own[0][1] / (own[0][1] + other[0][1])
        if self._aside_ticks == own[0][0]:
            if share > self._return_share:
                self._aside_ticks = None
        else:
            self._aside_ticks = own[0][0] if share < self._aside_share else None
        return self._aside_ticks is not None
