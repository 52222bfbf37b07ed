"""The venue's public topics: their names, and the ticker fields that become events.

A name is a stem, for books and klines an argument, and a symbol: ``orderbook.200.BTCUSDT``,
``kline.1.BTCUSDT``, ``publicTrade.BTCUSDT``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

from market.events import Field

#: Families of topics that become events, in the order of `symbol_topics`.
BOOK, TRADE, TICKER, LIQUIDATION = range(4)
FAMILIES: Final = 4

BOOK_STEM: Final = "orderbook"
TRADE_STEM: Final = "publicTrade"
TICKER_STEM: Final = "tickers"
LIQUIDATION_STEM: Final = "allLiquidation"

#: A longer name is no topic.
MAX_TOPIC: Final = 64

_NAME: Final = re.compile(r"([A-Za-z][A-Za-z0-9]*)((?:\.[A-Za-z0-9_-]+)*)\.([A-Za-z0-9_-]+)")
_IN_TEXT: Final = re.compile(rb'"topic"\s*:\s*"([A-Za-z0-9._-]{1,64})"')

#: Ticker fields by the venue's name; the last four are those of our archives' frames.
TICKER_FIELDS: Final[dict[str, Field]] = {
    "markPrice": Field.MARK_PRICE,
    "indexPrice": Field.INDEX_PRICE,
    "fundingRate": Field.FUNDING_RATE,
    "nextFundingTime": Field.NEXT_FUNDING_MS,
    "openInterest": Field.OPEN_INTEREST,
    "turnover24h": Field.TURNOVER_24H,
    "volume24h": Field.VOLUME_24H,
    "lastPrice": Field.LAST_PRICE,
    "expectedFunding": Field.EXPECTED_FUNDING_MS,
    "settledTime": Field.SETTLED_MS,
    "settledRate": Field.SETTLED_RATE,
    "settledMark": Field.SETTLED_MARK,
}


class TopicName(NamedTuple):
    """The parts of a name; ``argument`` is a book's depth or a kline's interval, else empty."""

    stem: str
    argument: str
    symbol: str


def parse(name: str) -> TopicName | None:
    """The parts of a topic's name, None for a name that is none."""
    parts = _NAME.fullmatch(name) if len(name) <= MAX_TOPIC else None
    return TopicName(parts[1], parts[2][1:], parts[3]) if parts else None


def symbol_of(name: str) -> str:
    """The symbol of a topic: its last part."""
    return name.rpartition(".")[2]


def topic_in(text: bytes, within: int = sys.maxsize) -> str:
    """The topic that a frame or line names in its first bytes, empty when it names none."""
    match = _IN_TEXT.search(text, 0, within)
    return match[1].decode() if match else ""


def book_topic(depth: int, symbol: str) -> str:
    """The name of a book of ``depth`` levels a side."""
    return f"{BOOK_STEM}.{depth}.{symbol}"


def ticker_topic(symbol: str) -> str:
    """The name of a ticker."""
    return f"{TICKER_STEM}.{symbol}"


def symbol_topics(symbol: str, book_depth: int) -> tuple[str, str, str, str]:
    """The topics of a symbol that become events, in the order of the families."""
    return (
        book_topic(book_depth, symbol),
        f"{TRADE_STEM}.{symbol}",
        ticker_topic(symbol),
        f"{LIQUIDATION_STEM}.{symbol}",
    )


def public_topics(symbols: Iterable[str], depths: Iterable[int]) -> list[str]:
    """The topics to subscribe to: a symbol's books of these depths, then its other families."""
    depths = tuple(depths)
    return [
        name
        for symbol in symbols
        for name in (
            *(book_topic(depth, symbol) for depth in depths),
            *symbol_topics(symbol, 0)[TRADE:],
        )
    ]
