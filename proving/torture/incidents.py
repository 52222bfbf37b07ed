"""What happens to an account at the venue without its worker's doing. False where it cannot happen now."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from proving.sandbox.accounts import Client
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.staging import Staged, StagingError, stage

#: Lots of a person's order, at most.
HUMAN_LOTS: Final = 10

Incident = Callable[[SandboxExchange, Client, str, random.Random], bool]
#: Fields of a command that are drawn.
_Draw = Callable[[SandboxExchange, Client, str, random.Random], dict[str, str]]


def _staged(do: str, draw: _Draw = lambda exchange, client, symbol, dice: {}) -> Incident:
    def strike(exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random) -> bool:
        fields = draw(exchange, client, symbol, dice)
        try:
            stage(exchange, Staged(do, client.key, symbol, **fields))
        except StagingError:
            return False
        return True

    return strike


def _at_last(
    exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random
) -> dict[str, str]:
    """The last price: at the bankruptcy price nothing would be left to go on with."""
    tape = exchange.tapes[symbol]
    return {"price": tape.codec.price(tape.last_ticks)}


def _part(
    exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random
) -> dict[str, str]:
    lots = dice.randint(1, max(1, abs(client.position_lots(symbol))))
    return {"qty": exchange.tapes[symbol].codec.qty(lots)}


def _little(
    exchange: SandboxExchange, client: Client, symbol: str, dice: random.Random
) -> dict[str, str]:
    side, lots = dice.choice(("Buy", "Sell")), dice.randint(1, HUMAN_LOTS)
    return {"side": side, "qty": exchange.tapes[symbol].codec.qty(lots)}


INCIDENTS: Final[dict[str, Incident]] = {
    "stop_fired": _staged("stop"),
    "liquidation": _staged("liquidate", _at_last),
    "deleveraging": _staged("adl", _part),
    "unknown_execution": _staged("move", _part),
    "human_order": _staged("order", _little),
    "human_cancel": _staged("cancel"),
    "funding": _staged("funding"),
}


def fill_part(exchange: SandboxExchange, client: Client, other: Client) -> bool:
    """Another client takes about half of a resting order, behind what is in front of it; false for none."""
    for order in list(client.open.values()):
        market = exchange.markets[order.symbol]
        ahead, part = market.lots_ahead(order.handle), order.leaves_lots // 2
        if ahead is None or not part or order.executed_lots:
            continue
        better = sum(
            lots
            for ticks, lots in market.levels(order.side)
            if order.side * (ticks - order.ticks) > 0
        )
        taker = exchange.new_order(
            other, order.symbol, -order.side, order.ticks, better + ahead + part
        )
        other.open[taker.order_id] = taker
        exchange.submit(taker)
        return True
    return False
