"""What the venue lists of a symbol: limits, risk tiers, and how its prices and quantities are written.

Limits of BTCUSDT are the venue's of September 2026. Of ETHUSDT only the first risk tier was observed
(positions up to 900,000 at 0.5 %, its number 11); the other tiers are scaled from BTCUSDT's: the ratio
of two limits at the same leverage is the ratio of the two first tiers at the same rate.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec

from execution.margin import BTC_TIERS, Tier, tiers
from market.instruments import Instrument
from market.units import E8
from proving.sandbox.protocol import RefusedError, Row, decimal

FUNDING_CAP: Final = "0.00333"


class DecimalCodec:
    """Ticks and lots of one instrument ↔ the venue's decimal strings.

    Market data are padded to the instrument's scale; orders, positions and candles have no trailing
    zeros.
    """

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.tick_e8 = round(instrument.tick_size * E8)
        self._tick, self._lot = Decimal(instrument.tick), Decimal(instrument.lot)
        # The venue pads prices of linear perpetuals to two decimals at least.
        self.price_places = max(2, _places(self._tick))
        self.qty_places = _places(self._lot)

    def price(self, ticks: int) -> str:
        return _plain(self._tick * ticks)

    def qty(self, lots: int) -> str:
        return _plain(self._lot * lots)

    def padded_price(self, ticks: int) -> str:
        return f"{self._tick * ticks:.{self.price_places}f}"

    def padded_qty(self, lots: int) -> str:
        return f"{self._lot * lots:.{self.qty_places}f}"

    def ticks(self, value: Any, name: str = "price") -> int:
        """Ticks of a price parameter; refused when it is off the tick grid or zero."""
        ticks, rest = divmod(decimal(value, name), self._tick)
        if rest or not ticks:
            raise RefusedError(110003, "price is invalid")
        return int(ticks)

    def lots(self, value: Any) -> int:
        """Lots of a quantity parameter, truncated to whole lots as the venue does."""
        return int(decimal(value, "qty") // self._lot)


def _plain(value: Decimal) -> str:
    digits = f"{value:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _places(step: Decimal) -> int:
    return max(0, -int(step.normalize().as_tuple().exponent))


class Listing(msgspec.Struct, frozen=True):
    """Limits of a symbol; quantities and prices are decimal strings."""

    base: str
    name: str
    symbol_id: int
    launch_ms: int
    min_price: str
    max_price: str
    tick: str  #: padded, as the venue writes it
    max_qty: str
    max_market_qty: str
    tiers: tuple[Tier, ...]
    first_tier: int = 1  #: id of the lowest risk tier


#: Without BTCUSDT's first tier, whose leverage ETHUSDT does not offer.
_ETH_TIERS: Final = tiers(
    (tier.limit * 9 // 20, tier.initial, tier.maintenance, tier.max_leverage)
    for tier in BTC_TIERS[1:]
)

LISTINGS: Final = {
    "BTCUSDT": Listing(
        "BTC",
        "Bitcoin",
        5,
        1_584_230_400_000,
        "0.10",
        "1999999.80",
        "0.10",
        "1500.000",
        "150.000",
        BTC_TIERS,
    ),
    "ETHUSDT": Listing(
        "ETH",
        "Ethereum",
        6,
        1_603_238_400_000,
        "0.01",
        "199999.98",
        "0.01",
        "15000.00",
        "1500.00",
        _ETH_TIERS,
        first_tier=11,
    ),
}


def instrument_info(instrument: Instrument) -> Row:
    """The row of a symbol in `market/instruments-info`."""
    listing = LISTINGS[instrument.symbol]
    return {
        "symbol": instrument.symbol,
        "contractType": "LinearPerpetual",
        "status": "Trading",
        "baseCoin": listing.base,
        "quoteCoin": "USDT",
        "settleCoin": "USDT",
        "launchTime": str(listing.launch_ms),
        "deliveryTime": "0",
        "deliveryFeeRate": "",
        "priceScale": str(max(2, len(instrument.tick.partition(".")[2]))),
        "leverageFilter": {
            "minLeverage": "1",
            "maxLeverage": f"{Decimal(listing.tiers[0].max_leverage):.2f}",
            "leverageStep": "0.01",
        },
        "priceFilter": {
            "minPrice": listing.min_price,
            "maxPrice": listing.max_price,
            "tickSize": listing.tick,
        },
        "lotSizeFilter": {
            "maxOrderQty": listing.max_qty,
            "minOrderQty": instrument.min_qty,
            "qtyStep": instrument.lot,
            "postOnlyMaxOrderQty": listing.max_qty,
            "maxMktOrderQty": listing.max_market_qty,
            "minNotionalValue": instrument.min_notional,
        },
        "riskParameters": {"priceLimitRatioX": "0.01", "priceLimitRatioY": "0.02"},
        "unifiedMarginTrade": True,
        "fundingInterval": 480,
        "copyTrading": "both",
        "upperFundingRate": FUNDING_CAP,
        "lowerFundingRate": f"-{FUNDING_CAP}",
        "isPreListing": False,
        "preListingInfo": None,
        "displayName": instrument.symbol,
        "fullName": listing.name,
        "forbidUplWithdrawal": False,
        "marketRegion": "",
        "symbolId": listing.symbol_id,
        "symbolType": "",
        "underlyingTicker": "",
    }
