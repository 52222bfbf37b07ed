"""The exchange: running markets, clients, and what executions, funding and liquidation do to them.

Everything here happens in simulated time and in one thread; the world is a function of the profile,
the seed and the requests with the times they came at. Conservation holds at any moment: positions of
clients, fund and crowd add up to nothing, and each client's balance is its deposits with what its
executions, fees and funding made of them.

A market lasts for a day: at midnight (UTC, simulated) the next day's takes over with books of its
own, and open orders are entered again, oldest first, behind what rests there.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Final

from execution.account import E8, Account, Holding, fee_e8, value_e8
from execution.margin import BTC_TIERS, MarginMode, Terms, at_mark_e8
from live.sandbox.figures import money, rounded
from live.sandbox.tape import DEEP, DEEP_NS, TICKER_NS, Listener, Tape
from live.sandbox.trading import Client, Closing, Order, side_name
from market.lake import day_start_ns
from market.matching import Execution, Status, TimeInForce
from market.synthetic.flow import BACKGROUND
from market.synthetic.marketplace import Market, Report, built_in
from market.synthetic.profiles import Profile
from market.synthetic.publication import TOPICS

#: The world begins on this day, so long after its midnight.
FIRST_DAY: Final = "2026-03-01"
START_S: Final = 300
DEPOSIT_E8: Final = 100_000 * E8
FUNDING_NS: Final = 8 * 3600 * 1_000_000_000

_MS: Final = 1_000_000
_SECOND: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _SECOND

FORCES: Final = {
    "GTC": TimeInForce.GOOD_TILL_CANCELLED,
    "IOC": TimeInForce.IMMEDIATE_OR_CANCEL,
    "FOK": TimeInForce.FILL_OR_KILL,
    "PostOnly": TimeInForce.POST_ONLY,
}
#: Why an order that was not refused on arrival ended without resting.
_REASONS: Final = {
    Status.WOULD_TAKE: "EC_PostOnlyWillTakeLiquidity",
    Status.CANNOT_FILL: "EC_NoEnoughQtyToFill",
}


def _unheard(topic: str, frame: bytes) -> None:
    """Nobody listens."""


class Exchange:
    """``listen`` is called with every public frame and its topic, in order."""

    def __init__(
        self,
        profile: Profile,
        seed: int,
        symbols: Sequence[str] = ("BTCUSDT",),
        *,
        clients: int = 2,
        deposit_e8: int = DEPOSIT_E8,
        day: str = FIRST_DAY,
        listen: Listener = _unheard,
    ) -> None:
        self.profile, self.seed = profile, seed
        self.instruments = {symbol: built_in(symbol) for symbol in symbols}
        self.tapes = {symbol: Tape(item, listen) for symbol, item in self.instruments.items()}
        self.fund = Account(self.instruments)
        self.crowd_lots = dict.fromkeys(symbols, 0)  #: the position of everybody else
        self.requests = 0
        keys = random.Random(f"{seed}/keys")
        self.clients = [
            Client(
                owner,
                "".join(keys.choices("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz", k=18)),
                f"{keys.getrandbits(144):036x}",
                self.instruments,
                {
                    symbol: Terms(tiers=BTC_TIERS, mode=MarginMode.CROSS)
                    for symbol in self.instruments
                },
                deposit_e8,
            )
            for owner in range(BACKGROUND + 1, BACKGROUND + 1 + clients)
        ]
        self._numbers = {"order": 0, "execution": 0}
        self._orders: dict[str, dict[int, Order]] = {}  # by symbol and handle
        self._touched: set[tuple[Client, str]] = set()
        self.now_ns = day_start_ns(day)
        self._open_day()
        self.advance(self.now_ns + START_S * _SECOND)
        self.start_ns = self.now_ns

    # -- time --------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        return self.now_ns // _MS

    def advance(self, until_ns: int) -> None:
        """Let time go on."""
        while self.now_ns < until_ns:
            stop_ns = min(until_ns, self.now_ns - self.now_ns % TICKER_NS + TICKER_NS)
            for symbol in self.tapes:
                self._run(symbol, stop_ns)
            self.now_ns = stop_ns
            if stop_ns % TICKER_NS == 0:
                self._publish()
            if stop_ns % _SECOND == 0:
                self._liquidate()
            if stop_ns % FUNDING_NS == 0:
                for symbol in self.tapes:
                    self.settle(symbol)
            if stop_ns % _DAY_NS == 0:
                self._open_day()

    def _open_day(self) -> None:
        """The markets of the day that begins now."""
        day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_ns // _SECOND)).date()
        self.markets = {
            symbol: Market(
                self.profile, self.seed, symbol, day.isoformat(), instrument, topics=TOPICS
            )
            for symbol, instrument in self.instruments.items()
        }
        self._orders = {symbol: {} for symbol in self.instruments}
        resting = [order for client in self.clients for order in client.open.values()]
        for order in sorted(resting, key=lambda order: order.number):
            self.enter(order)

    def _run(self, symbol: str, until_ns: int) -> None:
        """One market to a time, and what is heard of it."""
        market = self.markets[symbol]
        self.tapes[symbol].take(market.advance(until_ns))
        for report in market.reports():
            self._hear(symbol, report)
        while self._touched:
            self._trim(*self._touched.pop())

    def _publish(self) -> None:
        for symbol, tape in self.tapes.items():
            if not tape.values:
                continue
            if self.now_ns % DEEP_NS == 0:
                market = self.markets[symbol]
                tape.deepen(market.levels(1, DEEP), market.levels(-1, DEEP), self.now_ns)
            tape.tick(self.now_ns)

    def marks(self) -> dict[str, int]:
        """Mark prices at 1e-8 by symbol."""
        return {symbol: tape.mark_e8 for symbol, tape in self.tapes.items()}

    # -- orders ------------------------------------------------------------------------------------

    def identity(self, kind: str) -> str:
        """The next id of an order or an execution."""
        self._numbers[kind] += 1
        text = f"{self.seed}/{kind}/{self._numbers[kind]}"
        return str(uuid.UUID(bytes=hashlib.blake2b(text.encode(), digest_size=16).digest()))

    def number(self) -> int:
        """A number for an order, growing."""
        return self._numbers["order"]

    def enter(self, order: Order) -> None:
        """An order meets the market; it is open before, and may be closed after."""
        market, owner = self.markets[order.symbol], order.client.owner
        left = order.lots - order.executed_lots
        if order.market:
            order.handle = market.take(order.side, left, order.ticks, owner)
        else:
            force = FORCES[order.force]
            order.handle = market.submit(order.side, order.ticks, left, force, owner)
        self._orders[order.symbol][order.handle] = order
        self._run(order.symbol, self.now_ns)

    def cancel(self, order: Order, cancel_type: str = "CancelByUser") -> None:
        """Take an open order out of the market."""
        order.cancel_type = cancel_type
        by_client = cancel_type == "CancelByUser"
        order.reject_reason = "EC_PerCancelRequest" if by_client else "EC_NoError"
        self.markets[order.symbol].cancel(order.handle)
        self._run(order.symbol, self.now_ns)

    def amend(self, order: Order, ticks: int, lots: int) -> None:
        """Another price or total quantity, more than is executed already."""
        force = FORCES[order.force]
        left = lots - order.executed_lots
        order.ticks, order.lots, order.updated_ms = ticks, lots, self.now_ms
        self.markets[order.symbol].amend(order.handle, ticks, left, force)
        self._run(order.symbol, self.now_ns)

    def _hear(self, symbol: str, report: Report) -> None:
        order = self._orders[symbol][report.handle]
        for execution in report.executions:
            self._fill(order, execution, maker=report.status is None)
        order.updated_ms = report.exchange_ns // _MS
        status = report.status
        if status in _REASONS and order.executed_lots == 0:
            order.reject_reason = _REASONS[status]
        if (
            status is Status.WOULD_TAKE
            and self.markets[symbol].lots_ahead(order.handle) is not None
        ):
            # A resting order that was amended to a price at which it would take.
            order.reject_reason = _REASONS[status]
            self.markets[symbol].cancel(order.handle)
            self._run(symbol, self.now_ns)
        elif status is Status.RESTING or (status is None and report.left):
            order.status = "PartiallyFilled" if order.executed_lots else "New"
        elif order.executed_lots == order.lots:
            self._close(symbol, order, "Filled")
        else:
            if status is Status.EXPIRED:
                some = (
                    "EC_CancelForNoFullFill" if order.executed_lots else "EC_NoImmediateQtyToFill"
                )
                order.reject_reason = some
            self._close(symbol, order, "Cancelled")

    def _close(self, symbol: str, order: Order, status: str) -> None:
        order.status = status
        order.client.close(order)
        del self._orders[symbol][order.handle]

    def _trim(self, client: Client, symbol: str) -> None:
        """Reduce-only orders never ask for more than there is to reduce; the newest give way."""
        free = client.account.holdings[symbol].position_lots
        for order in list(client.open.values()):
            if order.symbol != symbol or not order.reduce_only or not order.is_open:
                continue
            room = max(0, -order.side * free)
            if room == 0:
                self.cancel(order, "CancelByReduceOnly")
                continue
            if order.leaves_lots > room:
                self.amend(order, order.ticks, order.executed_lots + room)
            free += order.side * order.leaves_lots

    # -- money -------------------------------------------------------------------------------------

    def _fill(self, order: Order, execution: Execution, maker: bool) -> None:
        """One execution of a client's order, booked and recorded."""
        other = execution.taker_owner if maker else execution.maker_owner
        if other == BACKGROUND:
            self.crowd_lots[order.symbol] -= order.side * execution.lots
        instrument = order.figures.instrument
        rate = instrument.maker_fee if maker else instrument.taker_fee
        fee = fee_e8(value_e8(instrument, execution.ticks, execution.lots), rate)
        self._book(order, execution.ticks, execution.lots, fee, rate, "Trade", maker)
        self._touched.add((order.client, order.symbol))

    def _book(
        self, order: Order, ticks: int, lots: int, fee: int, rate: str, kind: str, maker: bool
    ) -> None:
        """Price and quantity into the account, the order's sums and the client's records."""
        client, figures, symbol = order.client, order.figures, order.symbol
        holding, about = client.account.holdings[symbol], client.positions[symbol]
        tape = self.tapes[symbol]
        held, realised = holding.position_lots, holding.realised_e8
        brought = holding.trade(order.side * lots, ticks, fee)
        gross = holding.realised_e8 - realised
        closed = min(abs(held), lots) if held * order.side < 0 else 0
        value = value_e8(figures.instrument, ticks, lots)
        order.executed_lots += lots
        order.value_e8 += value
        order.fee_e8 += fee
        order.closed_pnl_e8 += brought
        if held == 0:
            about.created_ms = self.now_ms
        about.updated_ms, about.sequence = self.now_ms, tape.sequence(self.now_ns)
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
        name = self.identity("execution")
        client.executions.append(
            {
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
                "execTime": str(self.now_ms),
                "execPnl": money(gross),
                "isMaker": maker,
                "feeRate": rate,
                "feeCurrency": "USDT",
                "closedSize": figures.qty(closed),
                "markPrice": rounded(tape.mark_e8, 2),
                "indexPrice": rounded(tape.index_e8, 2),
                "seq": tape.sequence(self.now_ns),
                **_EMPTY,
            }
        )
        self._log(order, name, lots, figures.price(ticks), rate, fee=fee, cash=gross)

    def _log(
        self, order: Order, name: str, lots: int, price: str, rate: str, *, fee: int, cash: int
    ) -> None:
        client, figures, symbol = order.client, order.figures, order.symbol
        client.log.append(
            {
                "id": name,
                "symbol": symbol,
                "category": "linear",
                "side": side_name(order.side),
                "transactionTime": str(self.now_ms),
                "type": "TRADE",
                "qty": figures.qty(lots),
                "size": figures.qty(client.account.holdings[symbol].position_lots),
                "currency": "USDT",
                "tradePrice": price,
                "funding": "",
                "fee": money(fee),
                "cashFlow": money(cash),
                "change": money(cash - fee),
                "cashBalance": money(client.account.balance_e8),
                "feeRate": rate,
                "bonusChange": "0",
                "tradeId": name,
                "orderId": order.order_id,
                "orderLinkId": order.link_id,
            }
        )

    def settle(self, symbol: str) -> None:
        """Funding for what is held now."""
        tape, now = self.tapes[symbol], str(self.now_ms)
        rate, mark = tape.funding_rate_e8, tape.mark_e8
        tape.funding.append((self.now_ms, rate))
        self.fund.settle(symbol, mark, rate)
        for client in self.clients:
            lots = client.account.holdings[symbol].position_lots
            if not lots:
                continue
            paid = client.account.settle(symbol, mark, rate)
            name, order = self.identity("execution"), self.identity("execution")
            side, size = side_name(lots), tape.figures.qty(abs(lots))
            own = money(rate if lots > 0 else -rate)
            client.executions.append(
                {
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
                    "execPrice": rounded(mark, 2),
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
                    "markPrice": rounded(mark, 2),
                    "indexPrice": "",
                    "seq": tape.sequence(self.now_ns),
                    **_EMPTY,
                }
            )
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
                    "tradePrice": rounded(mark, 2),
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

    def _liquidate(self) -> None:
        """Positions that their margins no longer hold go to the fund."""
        marks = None
        for client in self.clients:
            if not any(h.position_lots for h in client.account.holdings.values()):
                continue
            marks = marks or self.marks()
            gone = client.margin.liquidated(marks)
            for order in list(client.open.values()):
                if order.symbol in gone:
                    self.cancel(order, "CancelAllBeforeLiq")
            prices = {symbol: self._bankruptcy(client, symbol, marks) for symbol in gone}
            for symbol, ticks in prices.items():
                self._take_over(client, symbol, ticks)

    def _bankruptcy(self, client: Client, symbol: str, marks: dict[str, int]) -> int:
        """The price in ticks that leaves nothing of what secured a position."""
        holding, margin = client.account.holdings[symbol], client.margin
        side = 1 if holding.position_lots > 0 else -1
        if client.mode is MarginMode.ISOLATED:
            security = margin.security(symbol, marks[symbol])
            assert security is not None
            return max(1, round(security.bankruptcy_ticks))
        # All positions secure each other: each bears its share of what is left.
        held = [s for s, h in client.account.holdings.items() if h.position_lots]
        values = {s: self._at_mark(client.account.holdings[s], marks[s]) for s in held}
        left = client.account.balance_e8 + sum(margin.unrealised_e8(s, marks[s]) for s in held)
        own = Fraction(left) * values[symbol] / sum(values.values())
        own -= values[symbol] * Fraction(margin.terms[symbol].taker_fee)
        price = 1 - side * own / values[symbol]
        ticks = price * Fraction(marks[symbol], E8) / Fraction(holding.instrument.tick)
        return max(1, round(ticks))

    @staticmethod
    def _at_mark(holding: Holding, mark_e8: int) -> int:
        return at_mark_e8(holding.instrument, holding.position_lots, mark_e8)

    def _take_over(self, client: Client, symbol: str, ticks: int) -> None:
        tape, holding = self.tapes[symbol], client.account.holdings[symbol]
        held = holding.position_lots
        order = self.order(client, symbol, -1 if held > 0 else 1, ticks, abs(held), market=True)
        order.create_type, order.status = "CreateByTakeOver_PassThrough", "Filled"
        rate = tape.instrument.taker_fee
        fee = fee_e8(value_e8(tape.instrument, ticks, abs(held)), rate)
        self._book(order, ticks, abs(held), fee, rate, "BustTrade", maker=False)
        client.margin.extra_e8.pop(symbol, None)
        self.fund.holdings[symbol].trade(held, ticks, 0)
        short = -client.account.balance_e8
        if short > 0:  # what a balance lacks, the fund makes good
            client.account.opening_e8 += short
            self.fund.opening_e8 -= short
        client.closed.append(order)
        tape.liquidate(1 if held > 0 else -1, ticks, abs(held), self.now_ns)

    def order(
        self,
        client: Client,
        symbol: str,
        side: int,
        ticks: int,
        lots: int,
        *,
        market: bool = False,
        force: str = "IOC",
        link_id: str = "",
        reduce_only: bool = False,
        close_on_trigger: bool = False,
    ) -> Order:
        """A new order of a client, not entered yet."""
        tape = self.tapes[symbol]
        return Order(
            client=client,
            figures=tape.figures,
            order_id=self.identity("order"),
            number=self.number(),
            link_id=link_id,
            side=side,
            market=market,
            ticks=ticks,
            lots=lots,
            force=force,
            reduce_only=reduce_only,
            close_on_trigger=close_on_trigger,
            created_ms=self.now_ms,
            updated_ms=self.now_ms,
            last_ticks=tape.last_ticks,
        )


#: Fields of an execution that say nothing of a linear perpetual.
_EMPTY: Final = {
    "blockTradeId": "",
    "isLeverage": "",
    "marketUnit": "",
    "tradeIv": "",
    "markIv": "",
    "underlyingPrice": "",
    "extraFees": "",
}
