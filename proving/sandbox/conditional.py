"""Conditional orders: held outside the market until a trigger price is reached, then entered.

    Untriggered ──► Triggered ──► New ──► …
         │              └──► Rejected     insufficient margin, or nothing to reduce
         └──► Deactivated                 by its client, or with the position it was to close

| kind                               | meaning                                               |
|------------------------------------|-------------------------------------------------------|
| Stop                               | a client's order with a trigger price                 |
| TakeProfit, StopLoss, TrailingStop | closes the whole position, at most one of each        |
| PartialTakeProfit, PartialStopLoss | closes a part; of a pair, one cancels the other       |

A trigger watches the last, mark or index price. Checks are a few milliseconds apart; of the last price
they see the lowest and highest trade since the check before, so that no trade is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from market.units import MS_NS
from proving.sandbox import order_checks
from proving.sandbox.accounts import FULL_STOP_KINDS, Client, Stops, Trigger, VenueOrder
from proving.sandbox.private_messages import PrivateMessages
from proving.sandbox.protocol import RefusedError
from proving.sandbox.tape import PublicTape

#: The venue's ``createType`` of an order by the kind of its trigger.
CREATE_TYPES: Final = {
    "Stop": "CreateByUser",
    "TakeProfit": "CreateByTakeProfit",
    "StopLoss": "CreateByStopLoss",
    "TrailingStop": "CreateByTrailingStop",
    "PartialTakeProfit": "CreateByPartialTakeProfit",
    "PartialStopLoss": "CreateByPartialStopLoss",
}


class ConditionalOrders:
    """The untriggered orders of all clients.

    ``submit`` sends an order to the market, ``new_order`` creates one (`SandboxExchange.new_order`).
    """

    def __init__(
        self,
        tapes: dict[str, PublicTape],
        messages: PrivateMessages,
        submit: Callable[[VenueOrder], None],
        new_order: Callable[..., VenueOrder],
    ) -> None:
        self._tapes, self._messages = tapes, messages
        self._submit, self._new_order = submit, new_order
        self._untriggered: dict[str, dict[str, VenueOrder]] = {symbol: {} for symbol in tapes}
        self._pairs: dict[str, tuple[VenueOrder, ...]] = {}  #: by id of the order attached to

    # -- untriggered orders ------------------------------------------------------------------------

    def add(self, order: VenueOrder, now_ns: int) -> None:
        """Hold an order until it triggers."""
        order.status = "Untriggered"
        order.client.untriggered[order.order_id] = order
        self._untriggered[order.symbol][order.order_id] = order
        self.report(order, now_ns)

    def deactivate(self, order: VenueOrder, cancel_type: str, now_ns: int) -> None:
        """Cancel an untriggered order."""
        order.status, order.cancel_type = "Deactivated", cancel_type
        if cancel_type == "CancelByUser":
            order.reject_reason = "EC_PerCancelRequest"
        self._close(order, now_ns)

    def _close(self, order: VenueOrder, now_ns: int) -> None:
        self._untriggered[order.symbol].pop(order.order_id, None)
        order.client.close(order)
        self.report(order, now_ns)

    def report(self, order: VenueOrder, now_ns: int) -> None:
        """Send the messages of a changed order."""
        order.updated_ms = now_ns // MS_NS
        sequence = self._tapes[order.symbol].sequence(now_ns)
        self._messages.order_changed(order, [], now_ns, sequence)

    # -- triggering --------------------------------------------------------------------------------

    def check(self, symbol: str, now_ns: int) -> None:
        """Trigger the orders whose price was reached since the last check, oldest first."""
        tape, untriggered = self._tapes[symbol], self._untriggered[symbol]
        low, high = tape.pop_trade_range()
        if not untriggered:
            return
        ranges = {
            "LastPrice": (low * tape.tick_e8, high * tape.tick_e8),
            "MarkPrice": (tape.mark_e8, tape.mark_e8),
            "IndexPrice": (tape.index_e8, tape.index_e8),
        }
        for order in sorted(untriggered.values(), key=lambda order: order.number):
            trigger = order.trigger
            assert trigger is not None
            # An order triggered earlier in this loop may have cancelled this one.
            if order.order_id in untriggered and trigger.update(*ranges[trigger.by]):
                self.fire(order, now_ns)

    def fire(self, order: VenueOrder, now_ns: int) -> None:
        """Trigger an order."""
        trigger = order.trigger
        assert trigger is not None
        order.status = "Triggered"
        self.report(order, now_ns)
        try:
            self._admit(order, trigger)
        except RefusedError:
            order.status, order.reject_reason = "Rejected", "EC_Others"
            self._close(order, now_ns)
            return
        del self._untriggered[order.symbol][order.order_id]
        del order.client.untriggered[order.order_id]
        order.client.open[order.order_id] = order
        order.status = "New"
        partner = trigger.partner
        if partner is not None and partner.status == "Untriggered":
            self.deactivate(partner, "CancelByTpSlTsClear", now_ns)
        self._submit(order)

    def _admit(self, order: VenueOrder, trigger: Trigger) -> None:
        """Set price and quantity as of now; RefusedError where a new order would be refused."""
        tape, client = self._tapes[order.symbol], order.client
        low, high = tape.price_limits()
        if order.is_market:
            order.ticks = high if order.side > 0 else low
        else:
            order.ticks = order_checks.price_in_limits(tape, client, order.side, order.ticks)
        if order.only_reduces:
            rests = order.time_in_force in ("GTC", "PostOnly")
            room = order_checks.reducible_lots(client, order.symbol, order.side, rests=rests)
            is_full = trigger.kind in FULL_STOP_KINDS or not order.lots
            lots = order_checks.max_order_lots(tape, order.is_market) if is_full else order.lots
            order.lots = min(room, lots)
        else:
            order_checks.check_order_count(client, order.symbol, conditional=False)
            marks = {symbol: tape.mark_e8 for symbol, tape in self._tapes.items()}
            new = msgspec.structs.replace(order.for_margin(), leaves_lots=order.lots)
            order_checks.check_margin(client, new, marks)

    # -- take-profit, stop-loss and trailing stop --------------------------------------------------

    def on_fill(self, order: VenueOrder, lots: int, now_ns: int) -> None:
        """Attach an order's take-profit and stop-loss to so many lots just filled."""
        stops, client = order.stops, order.client
        if stops is None or client.position_lots(order.symbol) * order.side <= 0:
            return
        # What stands may be that of the position which this one has just replaced.
        self.on_position_change(client, order.symbol, now_ns)
        if not stops.partial:
            if order.has_armed:  # later fills arm only what no longer stands, and move nothing
                standing = client.full_stops(order.symbol)
                take_e8 = None if "TakeProfit" in standing else stops.take_profit_e8
                stop_e8 = None if "StopLoss" in standing else stops.stop_loss_e8
                stops = msgspec.structs.replace(stops, take_profit_e8=take_e8, stop_loss_e8=stop_e8)
            order.has_armed = True
            self.set_full_stops(client, order.symbol, stops, now_ns)
            return
        pair = [leg for leg in self._pairs.get(order.order_id, ()) if leg.status == "Untriggered"]
        for leg in pair:
            leg.lots += lots
            self.report(leg, now_ns)
        if not pair:
            live = {
                parent: legs
                for parent, legs in self._pairs.items()
                if any(leg.status == "Untriggered" for leg in legs)
            }
            legs = self.add_partial_stops(client, order.symbol, stops, lots, now_ns)
            self._pairs = {**live, order.order_id: legs}

    def on_position_change(self, client: Client, symbol: str, now_ns: int) -> None:
        """Deactivate stops whose position is gone, and size the others to the position."""
        position = client.position_lots(symbol)
        for order in list(client.untriggered.values()):
            trigger = order.trigger
            if order.symbol != symbol or trigger is None or trigger.kind == "Stop":
                continue
            if position * order.side >= 0:
                self.deactivate(order, "CancelByTpSlTsClear", now_ns)
            elif trigger.kind in FULL_STOP_KINDS:
                order.lots = abs(position)
            else:
                order.lots = min(order.lots, abs(position))

    def set_full_stops(self, client: Client, symbol: str, stops: Stops, now_ns: int) -> None:
        """Add, move or remove the stops that close the whole position."""
        for kind, price_e8, by in stops.full():
            order = client.full_stops(symbol).get(kind)
            if price_e8 is None:
                continue
            if order is not None and price_e8 == 0:
                self.deactivate(order, "CancelByUser", now_ns)
            elif order is not None:
                order.trigger = self._trigger(client, symbol, kind, price_e8, by, stops)
                self.report(order, now_ns)
            elif price_e8:
                lots = abs(client.position_lots(symbol))
                trigger = self._trigger(client, symbol, kind, price_e8, by, stops)
                self.add(self._closing_order(client, symbol, lots, trigger), now_ns)

    def would_change(self, client: Client, symbol: str, stops: Stops) -> bool:
        """Whether `set_full_stops` would change anything."""
        for kind, price_e8, by in stops.full():
            order = client.full_stops(symbol).get(kind)
            trigger = order.trigger if order is not None else None
            current_e8 = (trigger.distance_e8 or trigger.price_e8) if trigger is not None else 0
            if price_e8 is None:
                continue
            if price_e8 != current_e8 or (trigger is not None and by != trigger.by):
                return True
        return False

    def add_partial_stops(
        self, client: Client, symbol: str, stops: Stops, lots: int, now_ns: int
    ) -> tuple[VenueOrder, ...]:
        """Add the take-profit and stop-loss of a part of a position; the orders added."""
        legs = []
        for kind, price_e8, by, limit_ticks in stops.parts():
            if price_e8:
                trigger = self._trigger(client, symbol, kind, price_e8, by, stops)
                legs.append(self._closing_order(client, symbol, lots, trigger, limit_ticks))
        if len(legs) == 2:
            for leg, other in zip(legs, reversed(legs), strict=True):
                assert leg.trigger is not None
                leg.trigger.partner = other
        for leg in legs:
            self.add(leg, now_ns)
        return tuple(legs)

    def _trigger(
        self, client: Client, symbol: str, kind: str, price_e8: int, by: str, stops: Stops
    ) -> Trigger:
        side = 1 if client.position_lots(symbol) > 0 else -1
        on_rise = (side > 0) == (kind in ("TakeProfit", "PartialTakeProfit"))
        trigger = Trigger(kind=kind, by=by, on_rise=on_rise, price_e8=price_e8)
        if kind == "TrailingStop":
            last_e8 = self._tapes[symbol].last_ticks * self._tapes[symbol].tick_e8
            trigger.distance_e8, trigger.activation_e8 = price_e8, stops.activation_e8
            trigger.price_e8 = max(last_e8 - side * price_e8, 0)
        return trigger

    def _closing_order(
        self, client: Client, symbol: str, lots: int, trigger: Trigger, limit_ticks: int = 0
    ) -> VenueOrder:
        order = self._new_order(
            client,
            symbol,
            -1 if client.position_lots(symbol) > 0 else 1,
            limit_ticks,
            lots,
            is_market=not limit_ticks,
            time_in_force="GTC" if limit_ticks else "IOC",
            reduce_only=True,
            close_on_trigger=True,
        )
        order.trigger, order.create_type = trigger, CREATE_TYPES[trigger.kind]
        return order
