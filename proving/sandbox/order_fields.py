"""Fields of order requests: each documented one is honoured or refused by its name, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from proving.sandbox import order_checks
from proving.sandbox.accounts import STOP_KINDS, Client, Stops, Trigger, VenueOrder
from proving.sandbox.protocol import Body, RefusedError, choice, decimal, invalid, text
from proving.sandbox.tape import PublicTape

#: Prices that a trigger may watch, the default first.
WATCHED_PRICES: Final = ("LastPrice", "MarkPrice", "IndexPrice")
_STOP_FIELDS: Final = ("TriggerBy", "OrderType", "LimitPrice")
_TAKE: Final = dict.fromkeys((f"tp{name}" for name in _STOP_FIELDS), ("takeProfit",))
_STOP: Final = dict.fromkeys((f"sl{name}" for name in _STOP_FIELDS), ("stopLoss",))
#: Fields that have no effect without one of others.
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "triggerBy": ("triggerPrice",),
    "triggerDirection": ("triggerPrice",),
    "slippageTolerance": ("slippageToleranceType",),
    "bboLevel": ("bboSideType",),
    "tpslMode": ("takeProfit", "stopLoss", "trailingStop"),
    "activePrice": ("trailingStop",),
    "tpSize": ("takeProfit",),
    "slSize": ("stopLoss",),
    **_TAKE,
    **_STOP,
}
#: Fields of other categories, or of what this venue has not, and the values that ask for nothing.
_NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "isLeverage": (0, "0"),
    "marketUnit": (),
    "orderIv": (),
    "mmp": (False,),
    "orderFilter": ("Order",),
    "rpiTakerAccess": (False,),
}
_OF_POSITIONS: Final = ("trailingStop", "activePrice", "tpSize", "slSize")
_UNSET: Final = (None, "", "UNKNOWN")


def check_fields(body: Body, *, of_position: bool = False) -> None:
    """Refuse fields that would have no effect."""
    absent: dict[str, tuple[Any, ...]] = {} if of_position else dict.fromkeys(_OF_POSITIONS, ())
    for name, values in {**_NOTHING, **absent}.items():
        given = body.get(name)
        if not any(type(given) is type(value) and given == value for value in (*_UNSET, *values)):
            raise RefusedError(10001, f"params error: {name} is not supported here")
    for name, others in _NEEDS.items():
        is_given = body.get(name) not in _UNSET and not (
            name == "triggerDirection" and body[name] == 0
        )
        if is_given and all(body.get(other) in _UNSET for other in others):
            raise RefusedError(10001, f"params error: {name} needs {' or '.join(others)}")


def check_amended_fields(body: Body, order: VenueOrder) -> None:
    """Refuse fields that an order of its kind has not, or that would have no effect."""
    is_untriggered = order.status == "Untriggered"
    check_fields({**body, "triggerBy": ""} if is_untriggered else body)
    impossible = {
        "price": order.is_market,
        "triggerPrice": not is_untriggered,
        "takeProfit": order.only_reduces,
        "stopLoss": order.only_reduces,
    }
    for name, is_refused in impossible.items():
        if is_refused and body.get(name) not in _UNSET:
            raise RefusedError(10001, f"params error: {name} is not one of this order's")


def check_one_way(client: Client, body: Body) -> None:
    """Refuse the position index of hedge mode, or everything in it."""
    index = body.get("positionIdx", 0)
    if client.is_hedged or index not in (0, "0") or isinstance(index, bool):
        raise RefusedError(10001, "position idx not match position mode")


def limit_ticks(tape: PublicTape, body: Body, side: int) -> int:
    """The price of a limit order: its own, or that of one of the book's best five levels."""
    if body.get("slippageToleranceType") not in _UNSET:
        raise RefusedError(10001, "params error: slippageToleranceType is for market orders")
    bbo_side = text(body, "bboSideType")
    if not bbo_side:
        return tape.codec.ticks(body.get("price"))
    level = text(body, "bboLevel")
    if bbo_side not in ("Queue", "Counterparty") or level not in ("1", "2", "3", "4", "5"):
        raise invalid("bboSideType or bboLevel")
    if body.get("price"):
        raise RefusedError(10001, "params error: price is the book's with bboSideType")
    levels = tape.books[200].levels(side if bbo_side == "Queue" else -side, int(level))
    if len(levels) < int(level):
        raise RefusedError(10001, "params error: the book has no such level")
    return levels[-1][0]


def worst_ticks(tape: PublicTape, body: Body, side: int) -> int:
    """The worst price of a market order: the price limit, or less far with a slippage tolerance."""
    if body.get("bboSideType"):
        raise RefusedError(10001, "params error: bboSideType is for limit orders")
    low, high = tape.price_limits()
    limit = high if side > 0 else low
    kind = text(body, "slippageToleranceType")
    if kind in ("", "UNKNOWN"):
        return limit
    tolerance = decimal(body.get("slippageTolerance"), "slippageTolerance")
    touch = next(iter(tape.books[1].sides[-side]), limit)
    if kind == "TickSize":
        if not 1 <= tolerance <= 10_000 or tolerance % 1:
            raise RefusedError(110108, "slippageTolerance in ticks must be within 1 and 10000")
        ticks = touch + side * int(tolerance)
    elif kind == "Percent":
        if not Decimal("0.01") <= tolerance <= 10:
            raise RefusedError(110109, "slippageTolerance in percent must be within 0.01 and 10")
        ticks = int(touch * (1 + side * tolerance / 100))
    else:
        raise invalid("slippageToleranceType")
    return min(ticks, limit) if side > 0 else max(ticks, limit)


def price_e8(tape: PublicTape, body: Body, name: str) -> int | None:
    """A price parameter at 1e-8: None when it is absent, 0 to remove what it sets."""
    value = text(body, name)
    if not value:
        return None
    if not decimal(value, name):
        return 0
    return tape.codec.ticks(value, name) * tape.tick_e8


def trigger_of(tape: PublicTape, body: Body) -> Trigger | None:
    """The trigger of a conditional order; None for a plain one."""
    trigger_e8 = price_e8(tape, body, "triggerPrice")
    if not trigger_e8:
        return None
    direction = body.get("triggerDirection")
    if direction not in (1, 2) or isinstance(direction, bool):
        raise invalid("triggerDirection")
    trigger = Trigger(
        kind="Stop",
        on_rise=direction == 1,
        price_e8=trigger_e8,
        by=choice(body, "triggerBy", WATCHED_PRICES),
    )
    order_checks.check_trigger_side(trigger, watched_e8(tape, trigger.by))
    return trigger


def watched_e8(tape: PublicTape, by: str) -> int:
    """The price that a trigger watches, now."""
    last_e8 = tape.last_ticks * tape.tick_e8
    return {"LastPrice": last_e8, "MarkPrice": tape.mark_e8, "IndexPrice": tape.index_e8}[by]


def stops_of(tape: PublicTape, body: Body, before: Stops | None = None) -> Stops | None:
    """Take-profit, stop-loss and trailing stop of a request; None when it has none of them.

    What a request does not name is as ``before``.
    """
    take_e8, stop_e8 = (price_e8(tape, body, name) for name in ("takeProfit", "stopLoss"))
    trailing_e8 = price_e8(tape, body, "trailingStop")
    if take_e8 is None and stop_e8 is None and trailing_e8 is None:
        return None
    old = before or Stops()
    modes = ("Partial", "Full") if old.partial else ("Full", "Partial")
    partial = choice(body, "tpslMode", modes) == "Partial"
    if partial and trailing_e8 is not None:
        raise RefusedError(10001, "params error: trailingStop is for tpslMode Full")
    limits = {"tp": old.take_limit_ticks, "sl": old.stop_limit_ticks}
    for prefix, given in (("tp", take_e8), ("sl", stop_e8)):
        if given is None:
            continue
        is_limit = choice(body, f"{prefix}OrderType", ("Market", "Limit")) == "Limit"
        if is_limit and not partial:
            raise RefusedError(10001, f"params error: {prefix}OrderType is for tpslMode Partial")
        limit = body.get(f"{prefix}LimitPrice")
        if limit not in (*_UNSET, "0") and not is_limit:
            raise RefusedError(
                10001, f"params error: {prefix}LimitPrice needs {prefix}OrderType Limit"
            )
        limits[prefix] = tape.codec.ticks(limit, f"{prefix}LimitPrice") if is_limit else 0
    watched = [choice(body, f"{prefix}TriggerBy", WATCHED_PRICES) for prefix in ("tp", "sl")]
    return Stops(
        take_profit_e8=old.take_profit_e8 if take_e8 is None else take_e8,
        stop_loss_e8=old.stop_loss_e8 if stop_e8 is None else stop_e8,
        trailing_e8=trailing_e8,
        activation_e8=price_e8(tape, body, "activePrice") or 0,
        take_by=old.take_by if take_e8 is None else watched[0],
        stop_by=old.stop_by if stop_e8 is None else watched[1],
        partial=partial,
        take_limit_ticks=limits["tp"],
        stop_limit_ticks=limits["sl"],
    )


def order_filter(body: Mapping[str, Any]) -> str:
    """Which orders a request means: all (empty), plain ones or conditional ones."""
    value = body.get("orderFilter") or ""
    if value not in ("", "Order", "StopOrder"):
        raise RefusedError(10001, "params error: orderFilter is not supported here")
    return str(value)


def stop_type(body: Mapping[str, Any]) -> str:
    """The kind of conditional orders that a request means, empty for all."""
    value = body.get("stopOrderType") or ""
    if value not in ("", *STOP_KINDS):
        raise invalid("stopOrderType")
    return str(value)
