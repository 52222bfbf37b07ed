"""Orders, executions, positions and balances as the venue writes them.

The order and names of the fields are the venue's. REST and the private stream differ in padding and in
what they write for nothing; a row is REST's unless it says otherwise.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Final

from execution.account import unit_e8, value_e8
from execution.margin import MarginMode, Security, at_mark_e8
from market.units import E8
from proving.sandbox.accounts import FULL_STOP_KINDS, Client, ClosedPnl, Stops, VenueOrder
from proving.sandbox.listing import LISTINGS, DecimalCodec
from proving.sandbox.protocol import Row, money, plain_price, rounded

#: Fields of an execution without a meaning for a linear perpetual.
_NOT_LINEAR: Final = {
    "blockTradeId": "",
    "isLeverage": "0",
    "marketUnit": "",
    "tradeIv": "",
    "markIv": "",
    "underlyingPrice": "",
    "extraFees": "",
}

# -- decimals --------------------------------------------------------------------------------------


def side_name(side: int) -> str:
    return "Buy" if side > 0 else "Sell"


def order_type(order: VenueOrder) -> str:
    return "Market" if order.is_market else "Limit"


def average_price(total_e8: int, lots: int, codec: DecimalCodec) -> str:
    """Average price of a value, 8 decimals at most; empty for no lots."""
    if not lots:
        return ""
    price = Fraction(total_e8, lots * unit_e8(codec.instrument))
    return money(round(price * Fraction(codec.instrument.tick) * E8))


def _ratio(part_e8: int, whole_e8: int) -> str:
    """A ratio, truncated to four decimals; 0 of nothing."""
    if whole_e8 <= 0:
        return "0"
    return money(part_e8 * 10_000 // whole_e8 * 10_000)


def _liquidation_price(
    client: Client, security: Security | None, codec: DecimalCodec, mark_e8: int
) -> str:
    """Where a position is liquidated; empty where that is at no price.

    Under cross margin an estimate, and only for the one position that is held: the price at which the
    equity is the maintenance margin, which grows with the value of the position.
    """
    if security is None:
        return ""
    if client.mode is MarginMode.ISOLATED:
        ticks = security.liquidation_ticks
        return "" if ticks is None else codec.price(floor(ticks))
    symbol = codec.instrument.symbol
    if client.held_symbols() != [symbol]:
        return ""
    lots = client.position_lots(symbol)
    value = at_mark_e8(codec.instrument, lots, mark_e8) * (1 if lots > 0 else -1)
    equity = client.account.balance_e8 + client.margin.unrealised_e8(symbol, mark_e8)
    price = Fraction(value - equity, value - security.maintenance_e8) * mark_e8
    listing = LISTINGS[symbol]
    within = Decimal(listing.min_price) <= price / E8 <= Decimal(listing.max_price)
    return money(round(price)) if within else ""


def _break_even_price(lots: int, cost_e8: int, realised_e8: int, codec: DecimalCodec) -> str:
    """The price at which closing nets to zero: (cost - realised) / (size ∓ size · taker fee)."""
    if not lots:
        return ""
    taker = Fraction(codec.instrument.taker_fee)
    size = lots - abs(lots) * taker
    price = Fraction(cost_e8 - realised_e8) / (size * unit_e8(codec.instrument))
    return money(round(price * Fraction(Decimal(codec.instrument.tick)) * E8))


# -- orders ----------------------------------------------------------------------------------------


def order_row(order: VenueOrder) -> Row:
    """An order as the private stream writes it."""
    codec, leaves = order.codec, order.leaves_lots
    return {
        "symbol": order.symbol,
        "orderId": order.order_id,
        "orderLinkId": order.link_id,
        "blockTradeId": "",
        "side": side_name(order.side),
        "positionIdx": 0,
        "orderStatus": order.status,
        "cancelType": order.cancel_type,
        "rejectReason": order.reject_reason,
        "timeInForce": order.time_in_force,
        "isLeverage": "",
        "price": codec.price(order.ticks),
        "qty": codec.qty(order.lots),
        "avgPrice": average_price(order.value_e8, order.executed_lots, codec),
        "leavesQty": codec.qty(leaves),
        "leavesValue": money(value_e8(codec.instrument, order.ticks, leaves)),
        "cumExecQty": codec.qty(order.executed_lots),
        "cumExecValue": money(order.value_e8),
        "cumExecFee": money(order.fee_e8),
        "cumFeeDetail": {"USDT": money(order.fee_e8)} if order.executed_lots else {},
        "orderType": order_type(order),
        "orderIv": "",
        **_conditions(order),
        "placeType": "",
        "lastPriceOnCreated": codec.price(order.last_ticks),
        "closeOnTrigger": order.close_on_trigger,
        "reduceOnly": order.reduce_only,
        "smpGroup": 0,
        "smpType": order.smp_type,
        "smpOrderId": order.smp_order_id,
        "slippageToleranceType": "UNKNOWN",
        "slippageTolerance": "0",
        "createType": order.create_type,
        "marketUnit": "",
        "extraFees": "",
        "rpiTakerAccess": False,
        "rpiMatchedQty": "0",
        "createdTime": str(order.created_ms),
        "updatedTime": str(order.updated_ms),
        "closedPnl": money(order.closed_pnl_e8),
    }


def _conditions(order: VenueOrder) -> Row:
    """The trigger of an order, and the take-profit and stop-loss attached to it."""
    trigger, stops, codec = order.trigger, order.stops or Stops(), order.codec
    mode = "UNKNOWN"
    if order.stops is not None:
        mode = "Partial" if stops.partial else "Full"
    elif trigger is not None and trigger.kind != "Stop":
        mode = "Full" if trigger.kind in FULL_STOP_KINDS else "Partial"
    return {
        "stopOrderType": trigger.kind if trigger else "",
        "triggerPrice": money(trigger.price_e8) if trigger else "",
        "triggerBy": trigger.by if trigger else "",
        "triggerDirection": (1 if trigger.on_rise else 2) if trigger else 0,
        "takeProfit": money(stops.take_profit_e8) if stops.take_profit_e8 else "",
        "stopLoss": money(stops.stop_loss_e8) if stops.stop_loss_e8 else "",
        "tpTriggerBy": stops.take_by if stops.take_profit_e8 else "",
        "slTriggerBy": stops.stop_by if stops.stop_loss_e8 else "",
        "tpLimitPrice": codec.price(stops.take_limit_ticks),
        "slLimitPrice": codec.price(stops.stop_limit_ticks),
        "tpslMode": mode,
    }


def listed_order_row(order: VenueOrder) -> Row:
    """An order as REST lists it: numbers padded, and zeros where the stream has an empty string."""
    codec, row = order.codec, order_row(order)
    no_price = codec.padded_price(0)
    prices = ("triggerPrice", "takeProfit", "stopLoss")
    triggers = ("stopOrderType", "triggerBy", "tpTriggerBy", "slTriggerBy")
    unset = {"tpslMode": "UNKNOWN", "tpLimitPrice": "0", "slLimitPrice": "0"}
    places = codec.price_places
    return {
        **row,
        **{name: f"{Decimal(row[name]):.{places}f}" if row[name] else no_price for name in prices},
        **{name: row[name] or "UNKNOWN" for name in triggers},
        **{name: "" if row[name] == nothing else row[name] for name, nothing in unset.items()},
        "slippageTolerance": "",
        "price": codec.padded_price(order.ticks),
        "qty": codec.padded_qty(order.lots),
        "leavesQty": codec.padded_qty(order.leaves_lots),
        "cumExecQty": codec.padded_qty(order.executed_lots),
        "lastPriceOnCreated": codec.padded_price(order.last_ticks),
        "avgPrice": row["avgPrice"] or "0",
    }


def closed_pnl_row(closed: ClosedPnl) -> Row:
    """What one order closed of a position."""
    order, codec = closed.order, closed.order.codec
    return {
        "symbol": order.symbol,
        "orderId": order.order_id,
        "side": side_name(order.side),
        "qty": codec.qty(order.lots),
        "orderPrice": codec.price(order.ticks),
        "orderType": order_type(order),
        "execType": closed.exec_type,
        "closedSize": codec.qty(closed.lots),
        "cumEntryValue": money(closed.entry_e8),
        "avgEntryPrice": average_price(closed.entry_e8, closed.lots, codec),
        "cumExitValue": money(closed.exit_e8),
        "avgExitPrice": average_price(closed.exit_e8, closed.lots, codec),
        "closedPnl": money(closed.pnl_e8),
        "fillCount": str(closed.fills),
        "leverage": closed.leverage,
        "createdTime": str(order.created_ms),
        "updatedTime": str(order.updated_ms),
    }


# -- executions ------------------------------------------------------------------------------------


def execution_row(
    order: VenueOrder,
    *,
    exec_id: str,
    exec_type: str,
    is_maker: bool,
    ticks: int,
    lots: int,
    closed_lots: int,
    notional_e8: int,
    fee_e8: int,
    fee_rate: str,
    pnl_e8: int,
    at_ms: int,
    sequence: int,
    mark_e8: int,
) -> Row:
    """An execution of an order; ``pnl_e8`` is the profit of the closed lots before fees."""
    codec = order.codec
    return {
        "symbol": order.symbol,
        "orderId": order.order_id,
        "orderLinkId": order.link_id,
        "side": side_name(order.side),
        "orderPrice": codec.price(order.ticks),
        "orderQty": codec.qty(order.lots),
        "leavesQty": codec.qty(order.lots - order.executed_lots),
        "orderType": order_type(order),
        "stopOrderType": "UNKNOWN",
        "createType": order.create_type,
        "execId": exec_id,
        "execPrice": codec.price(ticks),
        "execQty": codec.qty(lots),
        "execValue": money(notional_e8),
        "execFee": money(fee_e8),
        "execType": exec_type,
        "execTime": str(at_ms),
        "execPnl": money(pnl_e8),
        "isMaker": is_maker,
        "feeRate": fee_rate,
        "feeCurrency": "USDT",
        "closedSize": codec.qty(closed_lots),
        "markPrice": plain_price(mark_e8),
        "indexPrice": "",
        "seq": sequence,
        **_NOT_LINEAR,
    }


def funding_row(
    codec: DecimalCodec,
    lots: int,
    *,
    exec_id: str,
    order_id: str,
    paid_e8: int,
    rate_e8: int,
    mark_e8: int,
    at_ms: int,
    sequence: int,
) -> Row:
    """A funding payment for a position as an execution, whose fee is the payment."""
    return {
        "symbol": codec.instrument.symbol,
        "orderId": order_id,
        "orderLinkId": "",
        "side": side_name(lots),
        "orderPrice": "0",
        "orderQty": "0",
        "leavesQty": "0",
        "orderType": "UNKNOWN",
        "stopOrderType": "UNKNOWN",
        "createType": "",
        "execId": exec_id,
        "execPrice": plain_price(mark_e8),
        "execQty": codec.qty(abs(lots)),
        "execValue": money(at_mark_e8(codec.instrument, lots, mark_e8)),
        "execFee": money(paid_e8),
        "execType": "Funding",
        "execTime": str(at_ms),
        "execPnl": "0",
        "isMaker": False,
        "feeRate": money(rate_e8 if lots > 0 else -rate_e8),
        "feeCurrency": "USDT",
        "closedSize": "0",
        "markPrice": plain_price(mark_e8),
        "indexPrice": "",
        "seq": sequence,
        **_NOT_LINEAR,
    }


def transaction_row(client: Client, execution: Row, codec: DecimalCodec, change_e8: int) -> Row:
    """An execution in the transaction log, once the account has booked it."""
    is_funding = execution["execType"] == "Funding"
    return {
        "id": execution["execId"],
        "symbol": execution["symbol"],
        "category": "linear",
        "side": execution["side"],
        "transactionTime": execution["execTime"],
        "type": "SETTLEMENT" if is_funding else "TRADE",
        "qty": execution["execQty"],
        "size": codec.qty(client.position_lots(execution["symbol"])),
        "currency": "USDT",
        "tradePrice": execution["execPrice"],
        "funding": money(change_e8) if is_funding else "",
        "fee": "0" if is_funding else execution["execFee"],
        "cashFlow": execution["execPnl"],
        "change": money(change_e8),
        "cashBalance": money(client.account.balance_e8),
        "feeRate": execution["feeRate"],
        "bonusChange": "0",
        "tradeId": execution["execId"],
        "orderId": execution["orderId"],
        "orderLinkId": execution["orderLinkId"],
    }


# -- positions and balances ------------------------------------------------------------------------


def position_row(client: Client, codec: DecimalCodec, mark_e8: int) -> Row:
    """The position of a symbol, flat or not."""
    instrument = codec.instrument
    symbol = instrument.symbol
    holding, terms = client.account.holdings[symbol], client.margin.terms[symbol]
    security = client.margin.security(symbol, mark_e8)
    lots, meta = holding.position_lots, client.position_meta[symbol]
    cost_e8 = abs(holding.cost_e8)
    is_isolated = client.mode is MarginMode.ISOLATED
    value = cost_e8 if is_isolated else at_mark_e8(instrument, lots, mark_e8)
    tier = terms.tiers.index(terms.reached(value))
    profit_e8 = client.margin.unrealised_e8(symbol, mark_e8) if lots else 0
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
        "size": codec.qty(abs(lots)),
        "avgPrice": average_price(cost_e8, abs(lots), codec) or "0",
        "positionValue": money(cost_e8) if lots else "",
        "autoAddMargin": 0,
        "positionStatus": "Normal",
        "leverage": terms.leverage,
        "markPrice": rounded(mark_e8, 2),
        "liqPrice": _liquidation_price(client, security, codec, mark_e8),
        "bustPrice": "",
        "breakEvenPrice": _break_even_price(lots, holding.cost_e8, realised_e8, codec),
        "positionIM": initial,
        "positionMM": maintenance,
        "positionIMByMp": initial,
        "positionMMByMp": maintenance,
        "positionBalance": initial if is_isolated else "0",
        "tpslMode": "Full",
        **_stop_prices(client, symbol),
        "sessionAvgPrice": "",
        "unrealisedPnl": money(profit_e8) if lots else "",
        "curRealisedPnl": money(realised_e8),
        "cumRealisedPnl": money(realised_e8),
        "adlRankIndicator": 2 if lots else 0,
        "isReduceOnly": False,
        "mmrSysUpdatedTime": "",
        "leverageSysUpdatedTime": "",
        "createdTime": str(meta.created_ms),
        "updatedTime": str(meta.updated_ms),
        "seq": meta.sequence,
    }


def _stop_prices(client: Client, symbol: str) -> Row:
    prices = {"takeProfit": "", "stopLoss": "", "trailingStop": "0"}
    fields = dict(zip(FULL_STOP_KINDS, prices, strict=True))
    for kind, order in client.full_stops(symbol).items():
        trigger = order.trigger
        if trigger is not None:
            prices[fields[kind]] = money(trigger.distance_e8 or trigger.price_e8)
    return prices


def wallet_row(client: Client, marks: dict[str, int]) -> Row:
    """The wallet at mark prices; its sums are empty under isolated margin, as on the venue."""
    profit, position_im, position_mm = client.margins_e8(marks)
    order_im = client.margin.orders_e8(client.open_orders())
    balance = client.account.balance_e8
    equity = balance + profit
    initial = order_im + position_im
    is_cross = client.mode is MarginMode.CROSS
    sums = {
        "totalMarginBalance": money(equity),
        "totalAvailableBalance": money(equity - initial),
        "totalPerpUPL": money(profit),
        "totalInitialMargin": money(initial),
        "totalInitialMarginByMp": money(initial),
        "totalMaintenanceMargin": money(position_mm),
        "totalMaintenanceMarginByMp": money(position_mm),
        "accountIMRate": _ratio(initial, equity),
        "accountIMRateByMp": _ratio(initial, equity),
        "accountMMRate": _ratio(position_mm, equity),
        "accountMMRateByMp": _ratio(position_mm, equity),
        "accountLTV": "0",
    }
    realised = balance - client.account.opening_e8
    return {
        "accountType": "UNIFIED",
        "totalEquity": money(equity),
        "totalWalletBalance": money(balance),
        **{name: text if is_cross else "" for name, text in sums.items()},
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
