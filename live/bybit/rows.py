"""The venue's rows → evidence: orders, executions, positions, wallet, account, instrument, fees.

Prices and quantities are read from the venue's decimal strings to ticks and lots exactly. What is off the
grid, of another category or otherwise not as documented raises `UnreadableError`, never another exception.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from execution.orders import ExecutionType, Filled, Liquidity, OrderReport, OrderState
from live.messages import (
    AccountReport,
    Evidence,
    FeeReport,
    FundingReport,
    InstrumentReport,
    PositionReport,
    Refused,
    TierReport,
    TransactionReport,
    WalletReport,
)
from market.instruments import Instrument
from market.units import E8, MS_NS, SECOND_NS

Row = Mapping[str, Any]  #: a JSON object of the venue

#: `orderStatus` → state. Untriggered and triggered stops rest; a deactivated one has ended.
STATES: Final = {
    "New": OrderState.NEW,
    "Untriggered": OrderState.NEW,
    "Triggered": OrderState.NEW,
    "PartiallyFilled": OrderState.PARTIALLY_FILLED,
    "Filled": OrderState.FILLED,
    "Cancelled": OrderState.CANCELLED,
    "PartiallyFilledCanceled": OrderState.CANCELLED,
    "Deactivated": OrderState.CANCELLED,
    "Rejected": OrderState.REJECTED,
}
_STOP_STATUSES: Final = ("Untriggered", "Triggered", "Deactivated")
#: `execType` that moves a position; every other but Funding is unknown, which halts the symbol.
EXECUTIONS: Final = {
    kind.value: kind for kind in ExecutionType if kind is not ExecutionType.UNKNOWN
}
_SIDES: Final = {"Buy": 1, "Sell": -1}
_FUNDING: Final = "SETTLEMENT"  #: type of a funding payment in the transaction log
_DECIMAL: Final = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,18})?")
#: Words of the venue for "no reason".
_NO_REASON: Final = ("", "UNKNOWN", "EC_NoError")


class UnreadableError(ValueError):
    """A message of the venue is not as documented; says which field."""


class Reader:
    """Reads rows of the instruments given; more can be added to ``instruments`` at any time."""

    def __init__(self, instruments: Mapping[str, Instrument], settle_coin: str = "USDT") -> None:
        self.instruments, self.settle_coin = dict(instruments), settle_coin

    def order(self, row: Row, now_ns: int) -> OrderReport:
        """An order, as the private stream and the order lists write it."""
        grid, status = self._instrument(row), text(row, "orderStatus")
        if status not in STATES:
            raise UnreadableError(f"orderStatus {status!r}")
        reasons = (text(row, "rejectReason"), text(row, "cancelType"))
        return OrderReport(
            client_id=text(row, "orderLinkId"),
            time_ns=now_ns,
            venue_ns=milliseconds(row, "updatedTime"),
            venue_order_id=text(row, "orderId"),
            symbol=grid.symbol,
            side=side(row),
            state=STATES[status],
            price_ticks=ticks(grid, row, "price"),
            qty_lots=lots(grid, row, "qty"),
            filled_lots=lots(grid, row, "cumExecQty"),
            reason=" ".join(word for word in reasons if word not in _NO_REASON),
            reduce_only=row.get("reduceOnly") is True,
            is_stop=status in _STOP_STATUSES,
        )

    def execution(self, row: Row, now_ns: int) -> list[Evidence]:
        """An execution: a fill, or a funding settlement, whose fee is the payment.

        A fee in another coin than the settlement coin is `Refused` beside the fill, which counts without it.
        """
        grid, kind, coin = self._instrument(row), text(row, "execType"), text(row, "feeCurrency")
        fee = decimal(row, "execFee")
        if kind == "Funding":
            return [
                FundingReport(
                    exec_id=text(row, "execId"),
                    symbol=grid.symbol,
                    lots=side(row) * lots(grid, row, "execQty"),
                    mark_e8=e8(decimal(row, "execPrice")),
                    paid_e8=e8(fee, ROUND_CEILING),
                    venue_ns=milliseconds(row, "execTime"),
                )
            ]
        beside: list[Evidence] = []
        if coin not in ("", self.settle_coin):
            beside.append(Refused(reason=f"{grid.symbol}: a fee of {fee} {coin} is not counted"))
            fee = Decimal(0)
        taxes = row.get("extraFees")
        for tax in taxes if isinstance(taxes, list) else ():
            if isinstance(tax, dict) and tax.get("feeCoin") == self.settle_coin:
                fee += decimal(tax, "fee")
        fill = Filled(
            client_id=text(row, "orderLinkId"),
            time_ns=now_ns,
            venue_ns=milliseconds(row, "execTime"),
            exec_id=text(row, "execId"),
            symbol=grid.symbol,
            side=side(row),
            qty_lots=lots(grid, row, "execQty"),
            price_ticks=ticks(grid, row, "execPrice"),
            liquidity=Liquidity.MAKER if row.get("isMaker") is True else Liquidity.TAKER,
            fee_e8=e8(fee, ROUND_CEILING),
            leaves_lots=lots(grid, row, "leavesQty"),
            venue_order_id=text(row, "orderId"),
            execution=EXECUTIONS.get(kind, ExecutionType.UNKNOWN),
        )
        return [fill, *beside]

    def position(self, row: Row) -> PositionReport:
        """A position, of the stream (`entryPrice`) or of a query (`avgPrice`).

        Its time is when it last changed. A position index other than 0 is hedge mode's.
        """
        grid = self._instrument(row)
        size_lots = lots(grid, row, "size")
        return PositionReport(
            symbol=grid.symbol,
            lots=size_lots * side(row) if size_lots else 0,
            entry_e8=e8(decimal(row, "entryPrice" if "entryPrice" in row else "avgPrice")),
            stop_ticks=ticks(grid, row, "stopLoss"),
            liquidation_ticks=float(decimal(row, "liqPrice") / Decimal(grid.tick)),
            hedged=row.get("positionIdx") != 0,
            leverage=text(row, "leverage"),
            venue_ns=milliseconds(row, "updatedTime"),
        )

    def wallet(self, row: Row, venue_ns: int) -> WalletReport | None:
        """The settlement coin's balance; None where the row does not list the coin."""
        for coin in rows(row, "coin"):
            if text(coin, "coin") == self.settle_coin:
                return WalletReport(
                    equity_e8=e8(decimal(coin, "equity")),
                    balance_e8=e8(decimal(coin, "walletBalance")),
                    initial_margin_rate=float(decimal(row, "accountIMRate")),
                    maintenance_margin_rate=float(decimal(row, "accountMMRate")),
                    venue_ns=venue_ns,
                )
        return None

    def transaction(self, row: Row) -> TransactionReport:
        """A line of the transaction log, of any symbol and type; what a settlement moved is funding."""
        symbol, kind = text(row, "symbol"), text(row, "type")
        grid, change_e8 = self.instruments.get(symbol), e8(decimal(row, "change"))
        is_trade = grid is not None and kind != _FUNDING and text(row, "side") in _SIDES
        return TransactionReport(
            kind=kind,
            exec_id=text(row, "tradeId"),
            symbol=symbol,
            lots=side(row) * lots(grid, row, "qty") if grid and is_trade else 0,
            price_ticks=ticks(grid, row, "tradePrice") if grid and is_trade else 0,
            fee_e8=e8(decimal(row, "fee"), ROUND_CEILING),
            funding_e8=-change_e8 if kind == _FUNDING else 0,
            cash_e8=e8(decimal(row, "cashFlow")),
            change_e8=change_e8,
            venue_ns=milliseconds(row, "transactionTime"),
        )

    def _instrument(self, row: Row) -> Instrument:
        category, symbol = text(row, "category", "linear"), text(row, "symbol")
        if category not in ("linear", ""):
            raise UnreadableError(f"category {category!r} of {symbol}")
        instrument = self.instruments.get(symbol)
        if instrument is None:
            raise UnreadableError(f"symbol {symbol!r}, which has no instrument here")
        return instrument


def account(key: Row, info: Row, venue_ns: int) -> AccountReport:
    """The account of a key, from `user/query-api` and `account/info`."""
    permissions = key.get("permissions")
    if not isinstance(permissions, dict):
        raise UnreadableError("no permissions")
    granted = permissions.get("ContractTrade") or ()
    status = info.get("unifiedMarginStatus")
    return AccountReport(
        account=str(key.get("userID", "")),
        unified=key.get("uta") == 1 or status in (5, 6),
        margin_mode=text(info, "marginMode"),
        can_trade=key.get("readOnly") == 0 and "Order" in granted and "Position" in granted,
        can_withdraw="Withdraw" in (permissions.get("Wallet") or ()),
        expires_ns=_instant(text(key, "expiredAt")),
        venue_ns=venue_ns,
    )


def _instant(stamp: str) -> int:
    """Epoch ns of an RFC 3339 time; 0 for none."""
    if not stamp:
        return 0
    try:
        return int(datetime.fromisoformat(stamp).timestamp()) * SECOND_NS
    except ValueError:
        raise UnreadableError(f"time {stamp!r}") from None


def instrument(row: Row) -> InstrumentReport:
    """Tick, lot and limits, in the venue's own strings."""
    grid, sizes = row.get("priceFilter"), row.get("lotSizeFilter")
    if not isinstance(grid, dict) or not isinstance(sizes, dict):
        raise UnreadableError("no priceFilter or lotSizeFilter")
    return InstrumentReport(
        symbol=text(row, "symbol"),
        tick=text(grid, "tickSize"),
        lot=text(sizes, "qtyStep"),
        status=text(row, "status"),
        min_qty=text(sizes, "minOrderQty"),
        min_notional=text(sizes, "minNotionalValue"),
        max_order_qty=text(sizes, "maxOrderQty"),
        max_market_qty=text(sizes, "maxMktOrderQty"),
    )


def fees(row: Row) -> FeeReport:
    """Fee rates of a symbol."""
    return FeeReport(
        symbol=text(row, "symbol"),
        maker=text(row, "makerFeeRate"),
        taker=text(row, "takerFeeRate"),
    )


def tier(row: Row) -> TierReport:
    """A row of `market/risk-limit`."""
    for name in ("riskLimitValue", "initialMargin", "maintenanceMargin", "maxLeverage"):
        if decimal(row, name) <= 0:
            raise UnreadableError(f"{name} {row.get(name)!r}")
    decimal(row, "mmDeduction")
    return TierReport(
        symbol=text(row, "symbol"),
        limit=text(row, "riskLimitValue"),
        initial=text(row, "initialMargin"),
        maintenance=text(row, "maintenanceMargin"),
        max_leverage=text(row, "maxLeverage"),
        deduction=text(row, "mmDeduction"),
    )


# -- fields ----------------------------------------------------------------------------------------


def rows(container: Row, name: str) -> list[Row]:
    """A list of objects."""
    found = container.get(name)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UnreadableError(f"no list {name}")
    return found


def text(row: Row, name: str, default: str = "") -> str:
    """A string; ``default`` where it is absent."""
    value = row.get(name, default)
    if not isinstance(value, str):
        raise UnreadableError(f"{name} {value!r}")
    return value


def side(row: Row) -> int:
    """+1 buy, -1 sell."""
    name = text(row, "side")
    if name not in _SIDES:
        raise UnreadableError(f"side {name!r}")
    return _SIDES[name]


def decimal(row: Row, name: str) -> Decimal:
    """A decimal string; 0 where it is empty or absent."""
    value = text(row, name)
    if value and not _DECIMAL.fullmatch(value):
        raise UnreadableError(f"{name} {value!r}")
    return Decimal(value or 0)


def e8(amount: Decimal, rounding: str = ROUND_HALF_EVEN) -> int:
    """An amount at 1e-8; averages and extra fees can be finer."""
    return int((amount * E8).to_integral_value(rounding))


def ticks(grid: Instrument, row: Row, name: str) -> int:
    """A price in ticks."""
    return _whole(grid.price_ticks, row, name)


def lots(grid: Instrument, row: Row, name: str) -> int:
    """A quantity in lots."""
    return _whole(grid.qty_lots, row, name)


def _whole(convert: Callable[[Decimal], int], row: Row, name: str) -> int:
    value = decimal(row, name)
    try:
        number = convert(value)
    except ValueError as error:
        raise UnreadableError(f"{name}: {error}") from None
    if number < 0:
        raise UnreadableError(f"{name} {value} is negative")
    return number


def milliseconds(row: Row, name: str) -> int:
    """A time in ms, a number or its digits, as epoch ns."""
    value = row.get(name)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 13:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**13:
        raise UnreadableError(f"{name} {value!r}")
    return value * MS_NS
