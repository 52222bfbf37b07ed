"""Conditional orders: they wait outside the market until a price is reached, then enter it.

    Untriggered ──► Triggered ──► New ──► …
         │              └──► Rejected     no margin for it, or nothing to reduce
         └──► Deactivated                 by its client, or with the position it was to close

| kind                               | what it is                                          |
|------------------------------------|-----------------------------------------------------|
| Stop                               | a client's order with a trigger price               |
| TakeProfit, StopLoss, TrailingStop | closes the whole position, one of each at most      |
| PartialTakeProfit, PartialStopLoss | closes a part of it; of a pair, one ends the other  |

Watched are the last, mark or index price. Trades between two looks count with their highest and
lowest price, so that none is missed; looks are a few milliseconds apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from market.units import E8
from proving.sandbox import checks
from proving.sandbox.notices import Notices
from proving.sandbox.refusal import RefusedError
from proving.sandbox.tape import Tape
from proving.sandbox.trading import WHOLE, Client, Order, Stops, Trigger

#: How the venue says that an order came to be, by the kind of its trigger.
CREATED: Final = {
    "Stop": "CreateByUser",
    "TakeProfit": "CreateByTakeProfit",
    "StopLoss": "CreateByStopLoss",
    "TrailingStop": "CreateByTrailingStop",
    "PartialTakeProfit": "CreateByPartialTakeProfit",
    "PartialStopLoss": "CreateByPartialStopLoss",
}

Make = Callable[..., Order]


class Triggers:
    """Orders that wait, of all clients. ``enter`` sends one to the market, ``make`` makes one."""

    def __init__(
        self,
        tapes: dict[str, Tape],
        notices: Notices,
        enter: Callable[[Order], None],
        make: Make,
    ) -> None:
        self._tapes, self._notices, self._enter, self._make = tapes, notices, enter, make
        self._waiting: dict[str, dict[str, Order]] = {symbol: {} for symbol in tapes}
        self._pairs: dict[str, tuple[Order, ...]] = {}  # by the order that they were attached to

    # -- waiting -----------------------------------------------------------------------------------

    def place(self, order: Order, now_ns: int) -> None:
        """An order begins to wait."""
        order.status = "Untriggered"
        order.client.waiting[order.order_id] = order
        self._waiting[order.symbol][order.order_id] = order
        self._tell(order, now_ns)

    def changed(self, order: Order, now_ns: int) -> None:
        """A waiting order was amended."""
        self._tell(order, now_ns)

    def deactivate(self, order: Order, cancel_type: str, now_ns: int) -> None:
        """An order waits no longer and will not enter."""
        order.status, order.cancel_type = "Deactivated", cancel_type
        if cancel_type == "CancelByUser":
            order.reject_reason = "EC_PerCancelRequest"
        self._end(order, now_ns)

    def _end(self, order: Order, now_ns: int) -> None:
        self._waiting[order.symbol].pop(order.order_id, None)
        order.client.close(order)
        self._tell(order, now_ns)

    def _tell(self, order: Order, now_ns: int) -> None:
        order.updated_ms = now_ns // 1_000_000
        self._notices.order(order, [], now_ns, self._tapes[order.symbol].sequence(now_ns))

    # -- triggering --------------------------------------------------------------------------------

    def check(self, symbol: str, now_ns: int) -> None:
        """Orders whose price has been reached since the last look enter the market, oldest first."""
        tape, waiting = self._tapes[symbol], self._waiting[symbol]
        lowest, highest = tape.take_span()
        if not waiting:
            return
        spans = {
            "LastPrice": (lowest * tape.tick_e8, highest * tape.tick_e8),
            "MarkPrice": (tape.mark_e8, tape.mark_e8),
            "IndexPrice": (tape.index_e8, tape.index_e8),
        }
        for order in sorted(waiting.values(), key=lambda order: order.number):
            trigger = order.trigger
            assert trigger is not None
            # What an earlier one has set off may have ended a later one.
            if order.order_id in waiting and trigger.reached(*spans[trigger.by]):
                self._fire(order, now_ns)

    def _fire(self, order: Order, now_ns: int) -> None:
        trigger = order.trigger
        assert trigger is not None
        order.status = "Triggered"
        self._tell(order, now_ns)
        try:
            self._admit(order, trigger)
        except RefusedError:
            order.status, order.reject_reason = "Rejected", "EC_Others"
            self._end(order, now_ns)
            return
        del self._waiting[order.symbol][order.order_id]
        del order.client.waiting[order.order_id]
        order.client.open[order.order_id] = order
        order.status = "New"
        partner = trigger.partner
        if partner is not None and partner.status == "Untriggered":
            self.deactivate(partner, "CancelByTpSlTsClear", now_ns)
        self._enter(order)

    def _admit(self, order: Order, trigger: Trigger) -> None:
        """Price and quantity as of now; refused where a new order would be."""
        tape, client = self._tapes[order.symbol], order.client
        low, high = tape.band()
        if order.market:
            order.ticks = high if order.side > 0 else low
        else:
            order.ticks = checks.within_band(tape, client, order.side, order.ticks)
        if order.reduce_only:
            rests = order.force in ("GTC", "PostOnly")
            room = checks.reducible(client, order.symbol, order.side, rests=rests)
            whole = trigger.kind in WHOLE or not order.lots
            order.lots = min(room, checks.most_lots(tape, order.market) if whole else order.lots)
        else:
            checks.count(client, order.symbol, conditional=False)
            marks = {symbol: tape.mark_e8 for symbol, tape in self._tapes.items()}
            one_more = msgspec.structs.replace(order.for_margin(), leaves_lots=order.lots)
            checks.margin(client, one_more, marks)

    # -- positions ---------------------------------------------------------------------------------

    def attach(self, order: Order, lots: int, now_ns: int) -> None:
        """So many lots of an order were executed that brings a take-profit or stop-loss along."""
        stops, client = order.stops, order.client
        held = client.account.holdings[order.symbol].position_lots
        if stops is None or held * order.side <= 0:
            return
        if not stops.partial:
            self.protect(client, order.symbol, stops, now_ns)
            return
        pair = [leg for leg in self._pairs.get(order.order_id, ()) if leg.status == "Untriggered"]
        for leg in pair:
            leg.lots += lots
            self._tell(leg, now_ns)
        if not pair:
            waits = {
                parent: legs
                for parent, legs in self._pairs.items()
                if any(leg.status == "Untriggered" for leg in legs)
            }
            legs = self.part(client, order.symbol, stops, lots, now_ns)
            self._pairs = {**waits, order.order_id: legs}

    def protect(self, client: Client, symbol: str, stops: Stops, now_ns: int) -> None:
        """Take-profit, stop-loss and trailing stop of a whole position: set, moved or taken away.

        What ``stops`` has None of stays as it is.
        """
        for kind, price_e8, by in stops.of_whole():
            order = self.of_position(client, symbol, kind)
            if price_e8 is None:
                continue
            if order is not None and price_e8 == 0:
                self.deactivate(order, "CancelByUser", now_ns)
            elif order is not None:
                order.trigger = self._trigger(client, symbol, kind, price_e8, by, stops)
                self._tell(order, now_ns)
            elif price_e8:
                held = client.account.holdings[symbol].position_lots
                trigger = self._trigger(client, symbol, kind, price_e8, by, stops)
                self.place(self._close_order(client, symbol, abs(held), trigger), now_ns)

    def would_change(self, client: Client, symbol: str, stops: Stops) -> bool:
        """Whether anything that `protect` sets is not so already."""
        for kind, price_e8, by in stops.of_whole():
            order = self.of_position(client, symbol, kind)
            trigger = order.trigger if order is not None else None
            now_e8 = (trigger.distance_e8 or trigger.price_e8) if trigger is not None else 0
            if price_e8 is None:
                continue
            if price_e8 != now_e8 or (trigger is not None and by != trigger.by):
                return True
        return False

    def part(
        self, client: Client, symbol: str, stops: Stops, lots: int, now_ns: int
    ) -> tuple[Order, ...]:
        """Take-profit and stop-loss of a part of a position."""
        made = []
        for kind, price_e8, by, limit_ticks in stops.of_part():
            if price_e8:
                trigger = self._trigger(client, symbol, kind, price_e8, by, stops)
                made.append(self._close_order(client, symbol, lots, trigger, limit_ticks))
        if len(made) == 2:
            for leg, other in zip(made, reversed(made), strict=True):
                assert leg.trigger is not None
                leg.trigger.partner = other
        for leg in made:
            self.place(leg, now_ns)
        return tuple(made)

    def follow(self, client: Client, symbol: str, now_ns: int) -> None:
        """A position has changed: what was to close one that is gone ends, the rest takes its size."""
        held = client.account.holdings[symbol].position_lots
        for order in list(client.waiting.values()):
            trigger = order.trigger
            if order.symbol != symbol or trigger is None or trigger.kind == "Stop":
                continue
            if held * order.side >= 0:
                self.deactivate(order, "CancelByTpSlTsClear", now_ns)
            else:
                order.lots = abs(held) if trigger.kind in WHOLE else min(order.lots, abs(held))

    @staticmethod
    def of_position(client: Client, symbol: str, kind: str) -> Order | None:
        """The waiting order of a kind that closes the whole position of a symbol."""
        return client.stops(symbol).get(kind)

    def _trigger(
        self, client: Client, symbol: str, kind: str, price_e8: int, by: str, stops: Stops
    ) -> Trigger:
        side = 1 if client.account.holdings[symbol].position_lots > 0 else -1
        rises = (side > 0) == (kind in ("TakeProfit", "PartialTakeProfit"))
        trigger = Trigger(kind=kind, by=by, rises=rises, price_e8=price_e8)
        if kind == "TrailingStop":
            last_e8 = self._tapes[symbol].last_ticks * self._tapes[symbol].tick_e8
            trigger.distance_e8, trigger.active_e8 = price_e8, stops.active_e8
            trigger.price_e8 = max(last_e8 - side * price_e8, 0)
        return trigger

    def _close_order(
        self, client: Client, symbol: str, lots: int, trigger: Trigger, limit_ticks: int = 0
    ) -> Order:
        side = -1 if client.account.holdings[symbol].position_lots > 0 else 1
        force = "GTC" if limit_ticks else "IOC"
        order = self._make(
            client,
            symbol,
            side,
            limit_ticks,
            lots,
            market=not limit_ticks,
            force=force,
            reduce_only=True,
            close_on_trigger=True,
        )
        order.trigger, order.create_type = trigger, CREATED[trigger.kind]
        return order


def check_side(trigger: Trigger, now_e8: int) -> None:
    """A price that lies ahead in the direction it is waited for."""
    if trigger.rises and trigger.price_e8 <= now_e8:
        raise RefusedError(
            110092,
            f"expect Rising, but trigger_price[{trigger.price_e8}] <= current[{now_e8}]??LastPrice",
        )
    if not trigger.rises and trigger.price_e8 >= now_e8:
        raise RefusedError(
            110093,
            f"expect Falling, but trigger_price[{trigger.price_e8}] >= current[{now_e8}]??LastPrice",
        )


def check_stops(stops: Stops, side: int, base_e8: int) -> None:
    """A take-profit beyond and a stop-loss before the price that a position of a side begins at."""
    named: Sequence[tuple[str, int | None, int]] = (
        ("TakeProfit", stops.take_profit_e8, side),
        ("StopLoss", stops.stop_loss_e8, -side),
    )
    for name, price_e8, sign in named:
        if price_e8 and sign * (price_e8 - base_e8) <= 0:
            where = "higher" if sign > 0 else "lower"
            position = "Buy" if side > 0 else "Sell"
            raise RefusedError(
                10001,
                f"{name}:{price_e8 / E8:.2f} set for {position} position should be {where} than "
                f"base_price:{base_e8 / E8:.2f}",
            )
