"""What happens to an account without its worker, and states that an account may be found in; by command.

    POST /control/account   {"to": KEY, "do": "liquidate"}                     for tests and simulations
    POST /control/account   {"to": KEY, "do": "order", "side": "Buy", "qty": "0.1"}
    POST /control/account   {"to": KEY, "do": "state", "state": "hedge"}

`DEEDS` and `STATES` say what there is. Over `virtual.VirtualVenue` the same by `stage`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from execution.margin import MarginMode
from market.errors import UsageError
from proving.sandbox import order_entry
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.protocol import RefusedError


class StagingError(UsageError):
    """Something that cannot be staged; the message says why."""


class Staged(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A command; ``qty`` and ``price`` are decimal strings, empty for all of the position and the price
    that the venue makes."""

    do: str
    to: str = ""
    symbol: str = "BTCUSDT"
    side: str = ""
    qty: str = ""
    price: str = ""
    state: str = ""


class State(NamedTuple):
    says: str
    apply: Callable[[Client], None]


def _set(**values: Any) -> Callable[[Client], None]:
    def apply(client: Client) -> None:
        for name, value in values.items():
            setattr(client, name, value)

    return apply


def _set_leverage(client: Client) -> None:
    for symbol in client.margin.terms:
        client.margin.set_leverage(symbol, "25")


def _set_fees(client: Client) -> None:
    client.fees = dict.fromkeys(client.margin.terms, ("0.00018", "0.0004"))


STATES: Final[dict[str, State]] = {
    "read_only": State("the key may not trade", _set(is_read_only=True)),
    "withdraw": State("the key may withdraw", _set(may_withdraw=True)),
    "hedge": State("the account is in hedge mode", _set(is_hedged=True)),
    "leverage": State("every symbol's leverage is 25", _set_leverage),
    "isolated": State("margin is isolated", lambda client: client.set_mode(MarginMode.ISOLATED)),
    "vip": State("fees of the first tier: maker 0.00018, taker 0.0004", _set_fees),
}


def states_of(names: str) -> list[State]:
    """States named with commas between; StagingError for an unknown one."""
    chosen = [name for name in names.split(",") if name]
    for name in chosen:
        if name not in STATES:
            raise StagingError(f"{name}: no such state; there are {', '.join(STATES)}")
    return [STATES[name] for name in chosen]


# -- deeds -----------------------------------------------------------------------------------------


def _position(client: Client, staged: Staged) -> int:
    position = client.position_lots(staged.symbol)
    if not position:
        raise StagingError(f"{staged.do}: there is no position in {staged.symbol}")
    return position


def _liquidate(exchange: SandboxExchange, client: Client, staged: Staged) -> None:
    _position(client, staged)
    ticks = exchange.tapes[staged.symbol].codec.ticks(staged.price) if staged.price else 0
    exchange.liquidate(client, [staged.symbol], ticks)


def _deleverage(
    exchange: SandboxExchange, client: Client, staged: Staged, exec_type: str = "AdlTrade"
) -> None:
    position, tape = abs(_position(client, staged)), exchange.tapes[staged.symbol]
    lots = min(tape.codec.lots(staged.qty), position) if staged.qty else position
    exchange.take_over(
        client, staged.symbol, round(tape.mark_e8 / tape.tick_e8), lots, exec_type=exec_type
    )


def _move(exchange: SandboxExchange, client: Client, staged: Staged) -> None:
    _deleverage(exchange, client, staged, "MovePosition")


def _order(exchange: SandboxExchange, client: Client, staged: Staged) -> None:
    body = {"category": "linear", "symbol": staged.symbol, "side": staged.side, "qty": staged.qty}
    kind = (
        {"orderType": "Limit", "price": staged.price} if staged.price else {"orderType": "Market"}
    )
    order_entry.create(exchange, client, {**body, **kind})


def _close(exchange: SandboxExchange, client: Client, staged: Staged) -> None:
    side = "Sell" if _position(client, staged) > 0 else "Buy"
    flags = {"reduceOnly": True, "closeOnTrigger": True, "orderType": "Market", "qty": "0"}
    order_entry.create(
        exchange, client, {"category": "linear", "symbol": staged.symbol, "side": side, **flags}
    )


def _stop(exchange: SandboxExchange, client: Client, staged: Staged) -> None:
    stops: list[VenueOrder] = [
        order
        for order in client.untriggered.values()
        if order.symbol == staged.symbol and order.trigger and order.trigger.kind == "StopLoss"
    ]
    if not stops:
        raise StagingError(f"stop: there is no stop-loss in {staged.symbol}")
    exchange.conditional.fire(stops[0], exchange.now_ns)


def _cancel(exchange: SandboxExchange, client: Client, staged: Staged) -> None:
    own = [order for order in client.open.values() if order.symbol == staged.symbol]
    if not own:
        raise StagingError(f"cancel: there is no open order in {staged.symbol}")
    exchange.cancel(own[-1])


def _found(exchange: SandboxExchange, client: Client, staged: Staged) -> None:
    for state in states_of(staged.state):
        state.apply(client)


class Deed(NamedTuple):
    says: str
    do: Callable[[SandboxExchange, Client, Staged], None]


DEEDS: Final[dict[str, Deed]] = {
    "liquidate": Deed("orders are cancelled, the position is taken over", _liquidate),
    "adl": Deed(
        "qty of the position is closed at the mark price by auto-deleveraging", _deleverage
    ),
    "move": Deed("qty of the position is moved to another account at the mark price", _move),
    "order": Deed("a human's order, without an id of ours", _order),
    "close": Deed("a human closes the position by a market order", _close),
    "cancel": Deed("a human cancels the newest order, whosever it is", _cancel),
    "funding": Deed("funding is settled, now", lambda e, _, s: e.settle_funding(s.symbol)),
    "stop": Deed("the position's stop-loss triggers, whatever the price", _stop),
    "state": Deed("the account is found in states, with commas between", _found),
}


def stage(exchange: SandboxExchange, staged: Staged) -> None:
    """Carry out a command; StagingError says why it cannot be."""
    client = next((c for c in exchange.clients if staged.to in ("", c.key)), None)
    if client is None or staged.symbol not in exchange.tapes:
        raise StagingError(f"no account {staged.to} or no symbol {staged.symbol}")
    if staged.do not in DEEDS:
        raise StagingError(f"{staged.do}: no such deed; there are {', '.join(DEEDS)}")
    try:
        DEEDS[staged.do].do(exchange, client, staged)
    except RefusedError as refused:
        raise StagingError(f"{staged.do}: {refused}") from None
