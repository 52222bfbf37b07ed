"""Money: what executions, funding and liquidation do to clients, their records, the fund and the crowd.

Conservation holds at any moment: positions of clients, fund and crowd add up to nothing, and each
client's balance is its deposits with what its executions, fees and funding made of them.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from execution.account import Account, Holding, fee_e8, value_e8
from execution.margin import MarginMode, at_mark_e8
from market.units import E8, MS_NS
from proving.sandbox.figures import money
from proving.sandbox.tape import Tape
from proving.sandbox.trading import Client, Closing, Order, Row, side_name
from proving.synthetic.background import BACKGROUND
from proving.synthetic.engine import EngineExecution


class Names:
    """Ids of orders and executions: UUIDs that are a function of the seed and a count."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.given = {"order": 0, "execution": 0}

    def next(self, kind: str) -> str:
        """The next id of a kind."""
        self.given[kind] += 1
        text = f"{self._seed}/{kind}/{self.given[kind]}"
        return str(uuid.UUID(bytes=hashlib.blake2b(text.encode(), digest_size=16).digest()))


class Ledger:
    """Everybody's accounts. Rows that it returns are executions as the venue lists them."""

    def __init__(self, tapes: dict[str, Tape], clients: Sequence[Client], names: Names) -> None:
        self.tapes, self.clients, self._names = tapes, clients, names
        self.fund = Account({symbol: tape.instrument for symbol, tape in tapes.items()})
        self.crowd_lots = dict.fromkeys(tapes, 0)  #: the position of everybody else
        self.marks: dict[str, int] = {}  #: mark prices at 1e-8 by symbol, as last taken

    def mark(self) -> None:
        """Take the mark prices of now."""
        for symbol, tape in self.tapes.items():
            if tape.values:
                self.marks[symbol] = tape.mark_e8

    def trade(
        self,
        order: Order,
        execution: EngineExecution,
        maker: bool,
        name: str,
        at_ns: int,
        sequence: int,
    ) -> Row:
        """One execution of a client's order, which is the public trade of that name and sequence."""
        other = execution.taker_owner if maker else execution.maker_owner
        if other == BACKGROUND:
            self.crowd_lots[order.symbol] -= order.side * execution.lots
        instrument = order.figures.instrument
        rate = instrument.maker_fee if maker else instrument.taker_fee
        return self._book(
            order, execution.ticks, execution.lots, rate, "Trade", maker, name, at_ns, sequence
        )

    def _book(
        self,
        order: Order,
        ticks: int,
        lots: int,
        rate: str,
        kind: str,
        maker: bool,
        name: str,
        at_ns: int,
        sequence: int,
    ) -> Row:
        """Price and quantity into the account, the order's sums and the client's records."""
        client, figures, symbol = order.client, order.figures, order.symbol
        holding, about = client.account.holdings[symbol], client.positions[symbol]
        at_ms = at_ns // MS_NS
        value = value_e8(figures.instrument, ticks, lots)
        fee = fee_e8(value, rate)
        held, realised = holding.position_lots, holding.realised_e8
        brought = holding.trade(order.side * lots, ticks, fee)
        gross = holding.realised_e8 - realised
        closed = min(abs(held), lots) if held * order.side < 0 else 0
        order.executed_lots += lots
        order.value_e8 += value
        order.fee_e8 += fee
        order.closed_pnl_e8 += brought
        if held == 0:
            about.created_ms = at_ms
        about.updated_ms, about.sequence = at_ms, sequence
        if closed:
            exit_e8 = value_e8(figures.instrument, ticks, closed)
            last = client.closings[-1] if client.closings else None
            if last is None or last.order is not order:
                leverage = client.margin.terms[symbol].leverage
                last = Closing(order=order, exec_type=kind, leverage=leverage)
                client.closings.append(last)
            last.lots += closed
            last.exit_e8 += exit_e8
            last.entry_e8 += exit_e8 - gross if held > 0 else exit_e8 + gross
            last.pnl_e8 += brought
            last.fills += 1
        row = {
            "symbol": symbol,
            "orderId": order.order_id,
            "orderLinkId": order.link_id,
            "side": side_name(order.side),
            "orderPrice": figures.price(order.ticks),
            "orderQty": figures.qty(order.lots),
            "leavesQty": figures.qty(order.lots - order.executed_lots),
            "orderType": "Market" if order.market else "Limit",
            "stopOrderType": "UNKNOWN",
            "createType": order.create_type,
            "execId": name,
            "execPrice": figures.price(ticks),
            "execQty": figures.qty(lots),
            "execValue": money(value),
            "execFee": money(fee),
            "execType": kind,
            "execTime": str(at_ms),
            "execPnl": money(gross),
            "isMaker": maker,
            "feeRate": rate,
            "feeCurrency": "USDT",
            "closedSize": figures.qty(closed),
            "markPrice": plain_price(self.marks[symbol]),
            "indexPrice": "",
            "seq": sequence,
            **_EMPTY,
        }
        client.executions.append(row)
        client.log.append(
            {
                "id": name,
                "symbol": symbol,
                "category": "linear",
                "side": side_name(order.side),
                "transactionTime": str(at_ms),
                "type": "TRADE",
                "qty": figures.qty(lots),
                "size": figures.qty(holding.position_lots),
                "currency": "USDT",
                "tradePrice": figures.price(ticks),
                "funding": "",
                "fee": money(fee),
                "cashFlow": money(gross),
                "change": money(gross - fee),
                "cashBalance": money(client.account.balance_e8),
                "feeRate": rate,
                "bonusChange": "0",
                "tradeId": name,
                "orderId": order.order_id,
                "orderLinkId": order.link_id,
            }
        )
        return row

    # -- funding -----------------------------------------------------------------------------------

    def settle(self, symbol: str, at_ns: int) -> list[tuple[Client, Row]]:
        """Funding for what is held now; who paid or received it, and the row that says so."""
        tape, now = self.tapes[symbol], str(at_ns // MS_NS)
        rate, mark = tape.funding_rate_e8, tape.mark_e8
        tape.funding.append((at_ns // MS_NS, rate))
        self.fund.settle(symbol, mark, rate)
        settled: list[tuple[Client, Row]] = []
        for client in self.clients:
            lots = client.account.holdings[symbol].position_lots
            if not lots:
                continue
            paid = client.account.settle(symbol, mark, rate)
            name, order = self._names.next("execution"), self._names.next("execution")
            side, size = side_name(lots), tape.figures.qty(abs(lots))
            own = money(rate if lots > 0 else -rate)
            row = {
                "symbol": symbol,
                "orderId": order,
                "orderLinkId": "",
                "side": side,
                "orderPrice": "0",
                "orderQty": "0",
                "leavesQty": "0",
                "orderType": "UNKNOWN",
                "stopOrderType": "UNKNOWN",
                "createType": "",
                "execId": name,
                "execPrice": plain_price(mark),
                "execQty": size,
                "execValue": money(at_mark_e8(tape.instrument, lots, mark)),
                "execFee": money(paid),
                "execType": "Funding",
                "execTime": now,
                "execPnl": "0",
                "isMaker": False,
                "feeRate": own,
                "feeCurrency": "USDT",
                "closedSize": "0",
                "markPrice": plain_price(mark),
                "indexPrice": "",
                "seq": tape.sequence(at_ns),
                **_EMPTY,
            }
            client.executions.append(row)
            client.log.append(
                {
                    "id": name,
                    "symbol": symbol,
                    "category": "linear",
                    "side": side,
                    "transactionTime": now,
                    "type": "SETTLEMENT",
                    "qty": size,
                    "size": tape.figures.qty(lots),
                    "currency": "USDT",
                    "tradePrice": plain_price(mark),
                    "funding": money(-paid),
                    "fee": "0",
                    "cashFlow": "0",
                    "change": money(-paid),
                    "cashBalance": money(client.account.balance_e8),
                    "feeRate": own,
                    "bonusChange": "0",
                    "tradeId": name,
                    "orderId": order,
                    "orderLinkId": "",
                }
            )
            settled.append((client, row))
        return settled

    # -- liquidation -------------------------------------------------------------------------------

    def bankruptcy_ticks(self, client: Client, symbol: str, marks: dict[str, int]) -> int:
        """The price in ticks that leaves nothing of what secured a position."""
        holding, margin = client.account.holdings[symbol], client.margin
        side = 1 if holding.position_lots > 0 else -1
        if client.mode is MarginMode.ISOLATED:
            security = margin.security(symbol, marks[symbol])
            assert security is not None
            return max(1, round(security.bankruptcy_ticks))
        # All positions secure each other: each bears its share of what is left.
        held = [s for s, h in client.account.holdings.items() if h.position_lots]
        values = {s: _at_mark(client.account.holdings[s], marks[s]) for s in held}
        left = client.account.balance_e8 + sum(margin.unrealised_e8(s, marks[s]) for s in held)
        own = Fraction(left) * values[symbol] / sum(values.values())
        own -= values[symbol] * Fraction(margin.terms[symbol].taker_fee)
        price = 1 - side * own / values[symbol]
        ticks = price * Fraction(marks[symbol], E8) / Fraction(holding.instrument.tick)
        return max(1, round(ticks))

    def take_over(self, order: Order, at_ns: int) -> Row:
        """The fund takes a position at the price of an order that closes it whole."""
        client, symbol, ticks = order.client, order.symbol, order.ticks
        tape, held = self.tapes[symbol], client.account.holdings[symbol].position_lots
        order.create_type, order.status = "CreateByTakeOver_PassThrough", "Filled"
        name, sequence = self._names.next("execution"), tape.sequence(at_ns)
        rate = tape.instrument.taker_fee
        row = self._book(order, ticks, abs(held), rate, "BustTrade", False, name, at_ns, sequence)
        client.margin.extra_e8.pop(symbol, None)
        self.fund.holdings[symbol].trade(held, ticks, 0)
        short = -client.account.balance_e8
        if short > 0:  # what a balance lacks, the fund makes good
            client.account.opening_e8 += short
            self.fund.opening_e8 -= short
        client.closed.append(order)
        tape.liquidate(1 if held > 0 else -1, ticks, abs(held), at_ns)
        return row


def plain_price(price_e8: int) -> str:
    """A price at 1e-8, to two decimals and without trailing zeros."""
    return money(round(price_e8, -6))


def _at_mark(holding: Holding, mark_e8: int) -> int:
    return at_mark_e8(holding.instrument, holding.position_lots, mark_e8)


#: Fields of an execution that say nothing of a linear perpetual.
_EMPTY: Final = {
    "blockTradeId": "",
    "isLeverage": "0",
    "marketUnit": "",
    "tradeIv": "",
    "markIv": "",
    "underlyingPrice": "",
    "extraFees": "",
}
