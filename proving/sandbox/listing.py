"""What the venue lists of a symbol beside its instrument: limits and filters.

Figures of BTCUSDT are the venue's of September 2026. Of ETHUSDT only the first risk tier has been seen
(positions up to 900,000 at 0.5 %, its number 11); the others stand in: its limits are to those of
BTCUSDT's tiers for the same leverage as the first is to the one of the same rate.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec

from execution.margin import BTC_TIERS, Tier, tiers
from market.instruments import Instrument
from proving.sandbox.tape import FUNDING_CAP


class Listing(msgspec.Struct, frozen=True):
    """Limits of a symbol; quantities and prices are decimal strings."""

    base: str
    name: str
    number: int
    launch_ms: int
    min_price: str
    max_price: str
    tick: str  #: as the venue writes it
    max_qty: str
    max_market_qty: str
    tiers: tuple[Tier, ...]
    first_tier: int = 1  #: number of the lowest risk tier


#: BTCUSDT's tiers without the first, which has a leverage that ETHUSDT has not.
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


def info(instrument: Instrument) -> dict[str, Any]:
    """A row of instruments-info."""
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
        "symbolId": listing.number,
        "symbolType": "",
        "underlyingTicker": "",
    }
