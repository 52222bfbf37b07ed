"""The public WebSocket: each topic's frames to its readers.

A reader of a book or ticker is first sent a snapshot of where the stream stands; what it is sent next
follows on from there.
"""

from __future__ import annotations

import re
from typing import Final

from market.units import SECOND_NS
from proving.sandbox.candles import INTERVALS
from proving.sandbox.connection import Connection, Stream
from proving.sandbox.exchange import Exchange
from proving.sandbox.tape import DEPTHS

_TOPIC: Final = re.compile(
    rf"(orderbook\.(?:{'|'.join(map(str, DEPTHS))})|kline\.(?:{'|'.join(INTERVALS)})"
    r"|publicTrade|tickers|allLiquidation|priceLimit)\.([A-Z0-9]+)"
)


class PublicStream(Stream):
    """`publish` is what the exchange calls for every frame; `follow` the exchange before serving."""

    name = "public"
    exchange: Exchange

    def __init__(self) -> None:
        super().__init__()
        self._second = 0

    def follow(self, exchange: Exchange) -> None:
        """The exchange whose frames these are."""
        self.exchange = exchange

    def publish(self, topic: str, frame: bytes) -> None:
        """A frame to all readers of its topic."""
        for reader in self.readers.get(topic, ()):
            self.deliver(reader, topic, frame)

    def candles(self) -> None:
        """The candles that somebody reads, once a simulated second."""
        exchange = self.exchange
        second = exchange.now_ns // SECOND_NS
        if second == self._second:
            return
        self._second = second
        for topic in self.readers:
            if topic.startswith("kline."):
                _, interval, symbol = topic.split(".")
                frame = exchange.tapes[symbol].candle_frame(interval, exchange.now_ns)
                if frame is not None:
                    self.publish(topic, frame)

    def knows(self, connection: Connection, topic: str) -> bool:
        match = _TOPIC.fullmatch(topic)
        return match is not None and match[2] in self.exchange.tapes

    def join(self, connection: Connection, topic: str) -> None:
        tape = self.exchange.tapes[topic.rpartition(".")[2]]
        snapshot = tape.snapshot(topic, self.exchange.now_ns)
        if snapshot is not None:
            connection.put(snapshot)
        super().join(connection, topic)
