"""What happens to an account at the venue without its worker's doing. False where it cannot happen now."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from proving.sandbox import order_entry
from proving.sandbox.accounts import Client
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.protocol import RefusedError

#: Lots of a person's order, at most.
HUMAN_LOTS: Final = 10

Incident = Callable[[SandboxExchange, Client, str, random.Random], bool]


def _stop_fired(
    exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random
) -> bool:
    """The price jumps to the stop: it triggers with the next check."""
    stop = client.full_stops(symbol).get("StopLoss")
    if stop is None or stop.trigger is None:
        return False
    stop.trigger.price_e8 = 0 if stop.trigger.on_rise else 1 << 62
    return True


def _liquidation(
    exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random
) -> bool:
    """The venue cancels every order of the symbol and takes the position over."""
    if not client.position_lots(symbol):
        return False
    for order in list(client.open.values()):
        if order.symbol == symbol:
            exchange.cancel(order, "CancelAllBeforeLiq")
    return _close(exchange, client, symbol, abs(client.position_lots(symbol)), "BustTrade")


def _deleveraging(
    exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random
) -> bool:
    """The venue closes a part of the position against another client."""
    lots = abs(client.position_lots(symbol))
    return lots > 0 and _close(exchange, client, symbol, dice.randint(1, lots), "AdlTrade")


def _close(exchange: SandboxExchange, client: Client, symbol: str, lots: int, kind: str) -> bool:
    """An execution of the venue's own that closes so many lots of a position at the last price."""
    if not lots:
        return False
    side = -1 if client.position_lots(symbol) > 0 else 1
    tape = exchange.tapes[symbol]
    order = exchange.new_order(client, symbol, side, tape.last_ticks, lots, is_market=True)
    order.create_type, order.status = f"CreateBy{kind}", "Filled"
    at_ns = exchange.now_ns
    sequence, exec_id = tape.sequence(at_ns), f"{kind}-{order.order_id}"
    row = exchange.account_book._book(
        order, tape.last_ticks, lots, kind, False, exec_id, at_ns, sequence
    )
    exchange.private_messages.order_changed(order, [row], at_ns, sequence)
    exchange.conditional.on_position_change(client, symbol, at_ns)
    return True


def _human_order(
    exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random
) -> bool:
    """A person buys or sells a little at market."""
    body = {
        "category": "linear",
        "symbol": symbol,
        "side": dice.choice(("Buy", "Sell")),
        "orderType": "Market",
        "qty": exchange.tapes[symbol].codec.qty(dice.randint(1, HUMAN_LOTS)),
    }
    try:
        order_entry.create(exchange, client, body)
    except RefusedError:
        return False
    return True


def _human_cancel(
    exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random
) -> bool:
    """A person cancels an order of the worker's."""
    if not client.open:
        return False
    exchange.cancel(dice.choice(list(client.open.values())))
    return True


def _funding(exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random) -> bool:
    """A settlement, at another time than the venue's schedule says."""
    exchange.settle_funding(symbol)
    return bool(client.position_lots(symbol))


INCIDENTS: Final[dict[str, Incident]] = {
    "stop_fired": _stop_fired,
    "liquidation": _liquidation,
    "deleveraging": _deleveraging,
    "human_order": _human_order,
    "human_cancel": _human_cancel,
    "funding": _funding,
}
