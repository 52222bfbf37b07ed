"""Money: the effect of executions, funding and liquidations on clients, their records and the fund.

Conservation holds at any moment: the positions of clients, insurance fund and background traders sum to
zero, and a client's balance is its deposits plus the result of its executions, fees and funding.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from execution.account import Account, fee_e8, value_e8
from execution.margin import MarginMode, at_mark_e8
from market.units import E8, MS_NS
from proving.sandbox.accounts import Client, ClosedPnl, VenueOrder
from proving.sandbox.protocol import Row
from proving.sandbox.rows import execution_row, funding_row, transaction_row
from proving.sandbox.tape import PublicTape
from proving.synthetic.background import BACKGROUND
from proving.synthetic.engine import EngineExecution

#: ``createType`` of the order that takes a position over, by the type of its execution.
CREATE_TYPES: Final = {
    "BustTrade": "CreateByTakeOver_PassThrough",
    "AdlTrade": "CreateByAdl_PassThrough",
    "MovePosition": "CreateByBlockTradeMovePosition_PassThrough",
}


class IdGenerator:
    """Ids of orders and executions: UUIDs that are a function of the seed and a count."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.counts = {"order": 0, "execution": 0}

    def next(self, kind: str) -> str:
        """The next id of a kind."""
        self.counts[kind] += 1
        text = f"{self._seed}/{kind}/{self.counts[kind]}"
        return str(uuid.UUID(bytes=hashlib.blake2b(text.encode(), digest_size=16).digest()))


class AccountBook:
    """The accounts of all clients and of the insurance fund.

    Methods that book something return its execution as the venue lists it.
    """

    def __init__(
        self, tapes: dict[str, PublicTape], clients: Sequence[Client], ids: IdGenerator
    ) -> None:
        self.tapes, self.clients, self._ids = tapes, clients, ids
        self.fund = Account({symbol: tape.instrument for symbol, tape in tapes.items()})
        self.background_lots = dict.fromkeys(tapes, 0)  #: position of the background traders
        self.marks: dict[str, int] = {}  #: mark prices at 1e-8 by symbol, as of `update_marks`

    def update_marks(self) -> None:
        """Take over the current mark prices."""
        for symbol, tape in self.tapes.items():
            if tape.values:
                self.marks[symbol] = tape.mark_e8

    # -- executions --------------------------------------------------------------------------------

    def book_trade(
        self,
        order: VenueOrder,
        execution: EngineExecution,
        is_maker: bool,
        exec_id: str,
        at_ns: int,
        sequence: int,
    ) -> Row:
        """Book one execution of an order; id and sequence are those of the public trade."""
        counterparty = execution.taker_owner if is_maker else execution.maker_owner
        if counterparty == BACKGROUND:
            self.background_lots[order.symbol] -= order.side * execution.lots
        ticks, lots = execution.ticks, execution.lots
        return self._book(order, ticks, lots, "Trade", is_maker, exec_id, at_ns, sequence)

    def _book(
        self,
        order: VenueOrder,
        ticks: int,
        lots: int,
        exec_type: str,
        is_maker: bool,
        exec_id: str,
        at_ns: int,
        sequence: int,
    ) -> Row:
        """Book an execution into the account, the order's sums and the client's records."""
        client, instrument, symbol = order.client, order.codec.instrument, order.symbol
        holding, meta = client.account.holdings[symbol], client.position_meta[symbol]
        at_ms = at_ns // MS_NS
        notional = value_e8(instrument, ticks, lots)
        rate = client.fee_rates(instrument)[0 if is_maker else 1]
        fee = fee_e8(notional, rate)
        before_lots, before_realised = holding.position_lots, holding.realised_e8
        net_pnl = holding.trade(order.side * lots, ticks, fee)
        gross_pnl = holding.realised_e8 - before_realised
        closed_lots = min(abs(before_lots), lots) if before_lots * order.side < 0 else 0
        order.executed_lots += lots
        order.value_e8 += notional
        order.fee_e8 += fee
        order.closed_pnl_e8 += net_pnl
        if before_lots == 0:
            meta.created_ms = at_ms
        meta.updated_ms, meta.sequence = at_ms, sequence
        if closed_lots:
            closed = _closed_pnl_of(order, exec_type)
            exit_e8 = value_e8(instrument, ticks, closed_lots)
            closed.lots += closed_lots
            closed.exit_e8 += exit_e8
            closed.entry_e8 += exit_e8 - gross_pnl if before_lots > 0 else exit_e8 + gross_pnl
            closed.pnl_e8 += net_pnl
            closed.fills += 1
        row = execution_row(
            order,
            exec_id=exec_id,
            exec_type=exec_type,
            is_maker=is_maker,
            ticks=ticks,
            lots=lots,
            closed_lots=closed_lots,
            notional_e8=notional,
            fee_e8=fee,
            fee_rate=rate,
            pnl_e8=gross_pnl,
            at_ms=at_ms,
            sequence=sequence,
            mark_e8=self.marks[symbol],
        )
        client.executions.append(row)
        change = transaction_row(client, row, order.codec, gross_pnl - fee)
        client.transactions.append(change)
        return row

    # -- funding -----------------------------------------------------------------------------------

    def settle_funding(self, symbol: str, at_ns: int) -> list[tuple[Client, Row]]:
        """Settle funding on every position of a symbol; (client, execution) of those that have one."""
        tape, at_ms = self.tapes[symbol], at_ns // MS_NS
        rate, mark = tape.funding_rate_e8, tape.mark_e8
        tape.funding.append((at_ms, rate))
        self.fund.settle(symbol, mark, rate)
        settled: list[tuple[Client, Row]] = []
        for client in self.clients:
            lots = client.position_lots(symbol)
            if not lots:
                continue
            paid = client.account.settle(symbol, mark, rate)
            row = funding_row(
                tape.codec,
                lots,
                exec_id=self._ids.next("execution"),
                order_id=self._ids.next("execution"),
                paid_e8=paid,
                rate_e8=rate,
                mark_e8=mark,
                at_ms=at_ms,
                sequence=tape.sequence(at_ns),
            )
            client.executions.append(row)
            client.transactions.append(transaction_row(client, row, tape.codec, -paid))
            settled.append((client, row))
        return settled

    # -- liquidation -------------------------------------------------------------------------------

    def bankruptcy_ticks(self, client: Client, symbol: str, marks: dict[str, int]) -> int:
        """The price in ticks at which a position has used up its margin."""
        holdings, margin = client.account.holdings, client.margin
        side = 1 if client.position_lots(symbol) > 0 else -1
        if client.mode is MarginMode.ISOLATED:
            security = margin.security(symbol, marks[symbol])
            assert security is not None
            return max(1, round(security.bankruptcy_ticks))
        # Cross margin: the positions share the equity by their value at mark.
        held = client.held_symbols()
        values = {
            s: at_mark_e8(holdings[s].instrument, client.position_lots(s), marks[s]) for s in held
        }
        equity = client.account.balance_e8 + sum(margin.unrealised_e8(s, marks[s]) for s in held)
        share = Fraction(equity) * values[symbol] / sum(values.values())
        share -= values[symbol] * Fraction(margin.terms[symbol].taker_fee)
        price = 1 - side * share / values[symbol]
        ticks = price * Fraction(marks[symbol], E8) / Fraction(holdings[symbol].instrument.tick)
        return max(1, round(ticks))

    def take_over(self, order: VenueOrder, at_ns: int, exec_type: str) -> Row:
        """Transfer what an order closes of a position to the insurance fund at the order's price.

        The fund covers a negative balance.
        """
        client, symbol, ticks = order.client, order.symbol, order.ticks
        tape, lots = self.tapes[symbol], -order.side * order.lots
        order.create_type, order.status = CREATE_TYPES[exec_type], "Filled"
        exec_id, sequence = self._ids.next("execution"), tape.sequence(at_ns)
        row = self._book(order, ticks, order.lots, exec_type, False, exec_id, at_ns, sequence)
        self.fund.holdings[symbol].trade(lots, ticks, 0)
        client.closed.append(order)
        if exec_type != "BustTrade":
            return row
        client.margin.extra_e8.pop(symbol, None)
        shortfall = -client.account.balance_e8
        if shortfall > 0:
            client.account.opening_e8 += shortfall
            self.fund.opening_e8 -= shortfall
        tape.publish_liquidation(1 if lots > 0 else -1, ticks, abs(lots), at_ns)
        return row


def _closed_pnl_of(order: VenueOrder, exec_type: str) -> ClosedPnl:
    """The closed profit of an order: its client's newest, or a new one."""
    client = order.client
    newest = client.closed_pnls[-1] if client.closed_pnls else None
    if newest is not None and newest.order is order:
        return newest
    leverage = client.margin.terms[order.symbol].leverage
    closed = ClosedPnl(order=order, exec_type=exec_type, leverage=leverage)
    client.closed_pnls.append(closed)
    return closed
