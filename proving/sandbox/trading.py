"""Clients of the exchange and their orders: state, and how the venue writes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Any, Final

import msgspec

from execution.account import Account, unit_e8, value_e8
from execution.margin import Margin, MarginMode, OpenOrder, Security, Terms, at_mark_e8
from market.instruments import Instrument
from market.units import E8
from proving.sandbox.figures import Figures, money, rounded
from proving.sandbox.listing import LISTINGS

OPEN: Final = ("New", "PartiallyFilled", "Untriggered")
#: Triggers of orders that close a whole position, each of which a position has one at most.
WHOLE: Final = ("TakeProfit", "StopLoss", "TrailingStop")
#: Closed orders, executions, closings and log rows kept a client, the newest of each: what is older is
#: dropped, so that a world that runs for days does not grow.
KEPT: Final = 1_000

Row = dict[str, Any]


class Trigger(msgspec.Struct, kw_only=True):
    """What a conditional order waits for; prices at 1e-8."""

    kind: str
    rises: bool  #: whether it waits for the price from below
    price_e8: int
    by: str = "LastPrice"
    distance_e8: int = 0  #: of a trailing stop, from the best price since it is active
    active_e8: int = 0  #: when a trailing stop becomes active; 0 at once
    partner: Order | None = None  #: ends when this one is triggered

    def reached(self, lowest_e8: int, highest_e8: int) -> bool:
        """Whether prices within a span trigger; a trailing stop follows them first."""
        if self.active_e8:
            begun = lowest_e8 <= self.active_e8 if self.rises else highest_e8 >= self.active_e8
            if not begun:
                return False
            self.active_e8 = 0
        if self.distance_e8 and self.rises:
            self.price_e8 = min(self.price_e8, lowest_e8 + self.distance_e8)
        elif self.distance_e8:
            self.price_e8 = max(self.price_e8, highest_e8 - self.distance_e8)
        return highest_e8 >= self.price_e8 if self.rises else lowest_e8 <= self.price_e8


class Stops(msgspec.Struct, frozen=True, kw_only=True):
    """Take-profit, stop-loss and trailing stop as they are asked for: prices at 1e-8, 0 to take one
    away, None to leave it as it is."""

    take_profit_e8: int | None = None
    stop_loss_e8: int | None = None
    trailing_e8: int | None = None
    active_e8: int = 0
    take_by: str = "LastPrice"
    stop_by: str = "LastPrice"
    partial: bool = False
    take_limit_ticks: int = 0  #: 0 for a market order
    stop_limit_ticks: int = 0

    def of_whole(self) -> tuple[tuple[str, int | None, str], ...]:
        """(kind, price, watched price) of what closes the whole position."""
        return (
            ("TakeProfit", self.take_profit_e8, self.take_by),
            ("StopLoss", self.stop_loss_e8, self.stop_by),
            ("TrailingStop", self.trailing_e8, "LastPrice"),
        )

    def of_part(self) -> tuple[tuple[str, int | None, str, int], ...]:
        """(kind, price, watched price, limit) of what closes a part of it."""
        return (
            ("PartialTakeProfit", self.take_profit_e8, self.take_by, self.take_limit_ticks),
            ("PartialStopLoss", self.stop_loss_e8, self.stop_by, self.stop_limit_ticks),
        )


class Order(msgspec.Struct, kw_only=True, eq=False):
    """One order of a client; money at 1e-8, times in simulated ms."""

    client: Client
    figures: Figures
    number: int
    order_id: str
    link_id: str
    side: int
    market: bool
    ticks: int  #: of a market order, the worst price it may get
    lots: int
    force: str
    reduce_only: bool
    close_on_trigger: bool
    created_ms: int
    updated_ms: int
    last_ticks: int  #: last trade when it was placed
    handle: int = 0
    status: str = "New"
    cancel_type: str = "UNKNOWN"
    reject_reason: str = "EC_NoError"
    executed_lots: int = 0
    value_e8: int = 0
    fee_e8: int = 0
    closed_pnl_e8: int = 0
    create_type: str = "CreateByUser"
    trigger: Trigger | None = None
    stops: Stops | None = None  #: what its executions bring along
    smp_type: str = "None"  #: what happens when it would meet another of its client's
    smp_order_id: str = ""  #: the order that it did not meet

    @property
    def symbol(self) -> str:
        return self.figures.instrument.symbol

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def leaves_lots(self) -> int:
        return self.lots - self.executed_lots if self.is_open else 0

    def for_margin(self) -> OpenOrder:
        return OpenOrder(self.symbol, self.side, self.ticks, self.leaves_lots)

    def listed(self) -> Row:
        """The order as the venue lists it over REST: numbers padded, and zeros where the stream has
        nothing."""
        figures, row = self.figures, self.row()
        no_price = figures.padded_price(0)
        prices = ("triggerPrice", "takeProfit", "stopLoss")
        triggers = ("stopOrderType", "triggerBy", "tpTriggerBy", "slTriggerBy")
        unset = {"tpslMode": "UNKNOWN", "tpLimitPrice": "0", "slLimitPrice": "0"}
        return {
            **row,
            **{name: _padded(row[name], figures) if row[name] else no_price for name in prices},
            **{name: row[name] or "UNKNOWN" for name in triggers},
            **{name: "" if row[name] == nothing else row[name] for name, nothing in unset.items()},
            "slippageTolerance": "",
            "price": figures.padded_price(self.ticks),
            "qty": figures.padded_qty(self.lots),
            "leavesQty": figures.padded_qty(self.leaves_lots),
            "cumExecQty": figures.padded_qty(self.executed_lots),
            "lastPriceOnCreated": figures.padded_price(self.last_ticks),
            "avgPrice": row["avgPrice"] or "0",
        }

    def _conditions(self) -> Row:
        """What it waits for, and what it brings along."""
        trigger, stops, figures = self.trigger, self.stops or Stops(), self.figures
        mode = "UNKNOWN"
        if self.stops is not None:
            mode = "Partial" if stops.partial else "Full"
        elif trigger is not None and trigger.kind != "Stop":
            mode = "Full" if trigger.kind in WHOLE else "Partial"
        return {
            "stopOrderType": trigger.kind if trigger else "",
            "triggerPrice": money(trigger.price_e8) if trigger else "",
            "triggerBy": trigger.by if trigger else "",
            "triggerDirection": (1 if trigger.rises else 2) if trigger else 0,
            "takeProfit": money(stops.take_profit_e8) if stops.take_profit_e8 else "",
            "stopLoss": money(stops.stop_loss_e8) if stops.stop_loss_e8 else "",
            "tpTriggerBy": stops.take_by if stops.take_profit_e8 else "",
            "slTriggerBy": stops.stop_by if stops.stop_loss_e8 else "",
            "tpLimitPrice": figures.price(stops.take_limit_ticks),
            "slLimitPrice": figures.price(stops.stop_limit_ticks),
            "tpslMode": mode,
        }

    def row(self) -> Row:
        """The order as the venue's stream tells of it."""
        figures, leaves = self.figures, self.leaves_lots
        leaves_e8 = value_e8(figures.instrument, self.ticks, leaves)
        return {
            "symbol": self.symbol,
            "orderId": self.order_id,
            "orderLinkId": self.link_id,
            "blockTradeId": "",
            "side": side_name(self.side),
            "positionIdx": 0,
            "orderStatus": self.status,
            "cancelType": self.cancel_type,
            "rejectReason": self.reject_reason,
            "timeInForce": self.force,
            "isLeverage": "",
            "price": figures.price(self.ticks),
            "qty": figures.qty(self.lots),
            "avgPrice": average(self.value_e8, self.executed_lots, figures) or "",
            "leavesQty": figures.qty(leaves),
            "leavesValue": money(leaves_e8),
            "cumExecQty": figures.qty(self.executed_lots),
            "cumExecValue": money(self.value_e8),
            "cumExecFee": money(self.fee_e8),
            "cumFeeDetail": {"USDT": money(self.fee_e8)} if self.executed_lots else {},
            "orderType": "Market" if self.market else "Limit",
            "orderIv": "",
            **self._conditions(),
            "placeType": "",
            "lastPriceOnCreated": figures.price(self.last_ticks),
            "closeOnTrigger": self.close_on_trigger,
            "reduceOnly": self.reduce_only,
            "smpGroup": 0,
            "smpType": self.smp_type,
            "smpOrderId": self.smp_order_id,
            "slippageToleranceType": "UNKNOWN",
            "slippageTolerance": "0",
            "createType": self.create_type,
            "marketUnit": "",
            "extraFees": "",
            "rpiTakerAccess": False,
            "rpiMatchedQty": "0",
            "createdTime": str(self.created_ms),
            "updatedTime": str(self.updated_ms),
            "closedPnl": money(self.closed_pnl_e8),
        }


class Position(msgspec.Struct):
    """What the account's arithmetic does not keep of a position."""

    created_ms: int = 0
    updated_ms: int = 0
    sequence: int = -1


class Client:
    """One account with its key, orders and records. ``owner`` marks its orders in the market."""

    def __init__(
        self,
        owner: int,
        key: str,
        secret: str,
        instruments: dict[str, Instrument],
        terms: dict[str, Terms],
        deposit_e8: int,
        opened_ms: int = 0,
    ) -> None:
        self.owner, self.key, self.secret = owner, key, secret
        self.account = Account(instruments, deposit_e8)
        self.margin = Margin(self.account, terms)
        self.mode = MarginMode.CROSS
        self.moves_price = True  #: a price out of the band goes to its edge
        self.windows: dict[str, int] = {}  #: seconds until a disconnect cancels, by product
        self.open: dict[str, Order] = {}  #: in the market, by order id, oldest first
        self.waiting: dict[str, Order] = {}  #: for their triggers, by order id
        self.closed: deque[Order] = deque(maxlen=KEPT)
        self.links: dict[str, Order] = {}
        self.executions: deque[Row] = deque(maxlen=KEPT)
        self.closings: deque[Closing] = deque(maxlen=KEPT)
        self.log: deque[Row] = deque(maxlen=KEPT)
        self.positions = {symbol: Position(opened_ms, opened_ms) for symbol in instruments}

    def close(self, order: Order) -> None:
        """An order is no longer open; the oldest closed one may be forgotten for it."""
        self.open.pop(order.order_id, None)
        self.waiting.pop(order.order_id, None)
        if len(self.closed) == KEPT:
            forgotten = self.closed[0]
            if self.links.get(forgotten.link_id) is forgotten:
                del self.links[forgotten.link_id]
        self.closed.append(order)

    def open_orders(self) -> list[OpenOrder]:
        return [order.for_margin() for order in self.open.values()]

    def stops(self, symbol: str) -> dict[str, Order]:
        """The waiting orders that close the whole position of a symbol, by kind."""
        return {
            order.trigger.kind: order
            for order in self.waiting.values()
            if order.symbol == symbol and order.trigger and order.trigger.kind in WHOLE
        }

    def margin_rates(
        self, marks: dict[str, int], more: Sequence[OpenOrder] = ()
    ) -> tuple[int, int]:
        """Initial and maintenance margin to the balance at mark, in 1/10,000, with more orders."""
        held = [s for s, h in self.account.holdings.items() if h.position_lots]
        securities = [self.margin.security(symbol, marks[symbol]) for symbol in held]
        profit = sum(self.margin.unrealised_e8(symbol, marks[symbol]) for symbol in held)
        initial = self.margin.orders_e8([*self.open_orders(), *more])
        initial += sum(security.initial_e8 for security in securities if security)
        maintenance = sum(security.maintenance_e8 for security in securities if security)
        whole = max(1, self.account.balance_e8 + profit)
        return initial * 10_000 // whole, maintenance * 10_000 // whole

    def set_mode(self, mode: MarginMode) -> None:
        """Isolated or cross, for every symbol of the account."""
        terms = self.margin.terms
        for symbol, term in terms.items():
            terms[symbol] = msgspec.structs.replace(term, mode=mode)
        self.mode = mode

    # -- as the venue writes it ----------------------------------------------------------------------

    def position_row(self, figures: Figures, mark_e8: int) -> Row:
        """The position of a symbol, flat or not."""
        instrument = figures.instrument
        symbol = instrument.symbol
        holding, terms = self.account.holdings[symbol], self.margin.terms[symbol]
        security = self.margin.security(symbol, mark_e8)
        lots, about = holding.position_lots, self.positions[symbol]
        cost_e8 = abs(holding.cost_e8)
        value = at_mark_e8(instrument, lots, mark_e8) if self.mode is MarginMode.CROSS else cost_e8
        tier = terms.tiers.index(terms.reached(value))
        profit_e8 = self.margin.unrealised_e8(symbol, mark_e8) if lots else 0
        initial = money(security.initial_e8) if security else "0"
        maintenance = money(security.maintenance_e8) if security else "0"
        realised_e8 = holding.realised_e8 - holding.fees_e8 - holding.funding_e8
        return {
            "positionIdx": 0,
            "tradeMode": 0,
            "riskId": LISTINGS[symbol].first_tier + tier,
            "riskLimitValue": str(terms.tiers[tier].limit),
            "symbol": symbol,
            "side": side_name(lots) if lots else "",
            "size": figures.qty(abs(lots)),
            "avgPrice": average(cost_e8, abs(lots), figures) or "0",
            "positionValue": money(cost_e8) if lots else "",
            "autoAddMargin": 0,
            "positionStatus": "Normal",
            "leverage": terms.leverage,
            "markPrice": rounded(mark_e8, 2),
            "liqPrice": liquidation_price(security, figures),
            "bustPrice": "",
            "breakEvenPrice": break_even(lots, holding.cost_e8, realised_e8, figures),
            "positionIM": initial,
            "positionMM": maintenance,
            "positionIMByMp": initial,
            "positionMMByMp": maintenance,
            "positionBalance": initial if self.mode is MarginMode.ISOLATED else "0",
            "tpslMode": "Full",
            **self._stop_prices(symbol),
            "sessionAvgPrice": "",
            "unrealisedPnl": money(profit_e8) if lots else "",
            "curRealisedPnl": money(realised_e8),
            "cumRealisedPnl": money(realised_e8),
            "adlRankIndicator": 2 if lots else 0,
            "isReduceOnly": False,
            "mmrSysUpdatedTime": "",
            "leverageSysUpdatedTime": "",
            "createdTime": str(about.created_ms),
            "updatedTime": str(about.updated_ms),
            "seq": about.sequence,
        }

    def _stop_prices(self, symbol: str) -> Row:
        prices = {"takeProfit": "", "stopLoss": "", "trailingStop": "0"}
        names = {"TakeProfit": "takeProfit", "StopLoss": "stopLoss", "TrailingStop": "trailingStop"}
        for kind, order in self.stops(symbol).items():
            trigger = order.trigger
            if trigger is not None:
                prices[names[kind]] = money(trigger.distance_e8 or trigger.price_e8)
        return prices

    def wallet_row(self, marks: dict[str, int]) -> Row:
        """The account; its sums are empty where the venue gives them no meaning (isolated margin)."""
        margin = self.margin
        held = [s for s, h in self.account.holdings.items() if h.position_lots]
        securities = [margin.security(symbol, marks[symbol]) for symbol in held]
        profit = sum(margin.unrealised_e8(symbol, marks[symbol]) for symbol in held)
        position_im = sum(security.initial_e8 for security in securities if security)
        position_mm = sum(security.maintenance_e8 for security in securities if security)
        order_im = margin.orders_e8(self.open_orders())
        balance = self.account.balance_e8
        equity = balance + profit
        initial = order_im + position_im
        cross = self.mode is MarginMode.CROSS
        sums = {
            "totalMarginBalance": money(equity),
            "totalAvailableBalance": money(equity - initial),
            "totalPerpUPL": money(profit),
            "totalInitialMargin": money(initial),
            "totalInitialMarginByMp": money(initial),
            "totalMaintenanceMargin": money(position_mm),
            "totalMaintenanceMarginByMp": money(position_mm),
            "accountIMRate": rate(initial, equity),
            "accountIMRateByMp": rate(initial, equity),
            "accountMMRate": rate(position_mm, equity),
            "accountMMRateByMp": rate(position_mm, equity),
            "accountLTV": "0",
        }
        realised = sum(
            h.realised_e8 - h.fees_e8 - h.funding_e8 for h in self.account.holdings.values()
        )
        return {
            "accountType": "UNIFIED",
            "totalEquity": money(equity),
            "totalWalletBalance": money(balance),
            **{name: text if cross else "" for name, text in sums.items()},
            "coin": [
                {
                    "coin": "USDT",
                    "equity": money(equity),
                    "usdValue": money(equity),
                    "walletBalance": money(balance),
                    "locked": "0",
                    "borrowAmount": "0",
                    "accruedInterest": "0",
                    "totalOrderIM": money(order_im),
                    "totalPositionIM": money(position_im),
                    "totalPositionMM": money(position_mm),
                    "unrealisedPnl": money(profit),
                    "cumRealisedPnl": money(realised),
                    "bonus": "0",
                    "collateralSwitch": True,
                    "marginCollateral": True,
                    "colRes": "",
                    "spotHedgingQty": "0",
                    "spotBorrow": "0",
                    "availableToWithdraw": "",
                    "availableToBorrow": "",
                }
            ],
        }


def _padded(text: str, figures: Figures) -> str:
    return f"{Decimal(text):.{figures.price_places}f}"


def side_name(side: int) -> str:
    return "Buy" if side > 0 else "Sell"


def average(total_e8: int, lots: int, figures: Figures) -> str:
    """Average price of a value, 8 decimals at most; empty for nothing."""
    if not lots:
        return ""
    price = Fraction(total_e8, lots * unit_e8(figures.instrument))
    return money(round(price * Fraction(figures.instrument.tick) * E8))


def rate(part_e8: int, whole_e8: int) -> str:
    """A share, cut to four decimals."""
    if whole_e8 <= 0:
        return "0"
    return money(part_e8 * 10_000 // whole_e8 * 10_000)


def liquidation_price(security: Security | None, figures: Figures) -> str:
    """Liquidation price of an isolated position; empty in cross mode and where there is none."""
    if security is None or security.liquidation_ticks is None:
        return ""
    return figures.price(floor(security.liquidation_ticks))


def break_even(lots: int, cost_e8: int, realised_e8: int, figures: Figures) -> str:
    """Where closing would leave nothing gained or lost: (value - realised) / (size ∓ size · taker)."""
    if not lots:
        return ""
    taker = Fraction(figures.instrument.taker_fee)
    size = lots - abs(lots) * taker
    price = Fraction(cost_e8 - realised_e8) / (size * unit_e8(figures.instrument))
    ticks_e8 = price * Fraction(Decimal(figures.instrument.tick)) * E8
    return money(round(ticks_e8))


class Closing(msgspec.Struct, kw_only=True):
    """What one order has closed of a position."""

    order: Order
    lots: int = 0
    entry_e8: int = 0
    exit_e8: int = 0
    pnl_e8: int = 0
    fills: int = 0
    exec_type: str = "Trade"
    leverage: str = "1"

    def row(self) -> Row:
        order, figures = self.order, self.order.figures
        return {
            "symbol": order.symbol,
            "orderId": order.order_id,
            "side": side_name(order.side),
            "qty": figures.qty(order.lots),
            "orderPrice": figures.price(order.ticks),
            "orderType": "Market" if order.market else "Limit",
            "execType": self.exec_type,
            "closedSize": figures.qty(self.lots),
            "cumEntryValue": money(self.entry_e8),
            "avgEntryPrice": average(self.entry_e8, self.lots, figures),
            "cumExitValue": money(self.exit_e8),
            "avgExitPrice": average(self.exit_e8, self.lots, figures),
            "closedPnl": money(self.pnl_e8),
            "fillCount": str(self.fills),
            "leverage": self.leverage,
            "createdTime": str(order.created_ms),
            "updatedTime": str(order.updated_ms),
        }
