"""Event rows → Bybit V5 public frames: the inverse of `market.wire.decode`.

A frame is the rows from one flagged FIRST to one flagged LAST. Numbers are formatted as the venue's:
decimal strings padded to the instrument's scale, a deleted level as ``"0"``. Fields that an event row
does not have are derived: ``seq`` of books and ``cs`` of tickers grow with time and order them against
trades, ``L`` (tick direction) follows from the trade before, and a trade's ``i`` (id) is a hash of its
``seq``, place and symbol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.events import EVENT, PLACES, Events, Field, Flag, Kind
from market.instruments import Instrument
from market.kernel import compiled
from market.units import MS_NS
from market.wire.jsontext import put, put_number
from market.wire.topics import TICKER_FIELDS, symbol_topics

Text = npt.NDArray[np.uint8]

_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_TRADE: Final = int(Kind.TRADE)
_TICKER: Final = int(Kind.TICKER)
_LAST: Final = int(Flag.LAST)
_RPI: Final = int(Flag.RPI)
_BLOCK: Final = int(Flag.BLOCK)
_PLACES: Final = np.array([0] + [PLACES[field] for field in Field])

#: Sequence numbers of one millisecond; a book's comes after those of the trades in it.
_SEQ_PER_MS: Final = 16
#: Most bytes of a level, of another row, and of the rest of a frame.
_LEVEL_BYTES: Final = 56
_OTHER_BYTES: Final = 320
_FRAME_BYTES: Final = 400


def _bytes(text: str) -> Text:
    return np.frombuffer(text.encode(), np.uint8).copy()


_DATA_S: Final = _bytes(',"data":{"s":"')
_BIDS: Final = _bytes('","b":[')
_ASKS: Final = _bytes('],"a":[')
_U: Final = _bytes('],"u":')
_SEQ: Final = _bytes(',"seq":')
_CTS: Final = _bytes('},"cts":')
_LEVEL: Final = _bytes('["')
_THEN: Final = _bytes('","')
_LEVEL_END: Final = _bytes('"],')
_DATA_LIST: Final = _bytes(',"data":[')
_T: Final = _bytes('{"T":')
_S_LOWER: Final = _bytes(',"s":"')
_BUY: Final = _bytes('","S":"Buy","v":"')
_SELL: Final = _bytes('","S":"Sell","v":"')
_P: Final = _bytes('","p":"')
_L: Final = _bytes('","L":"')
_I: Final = _bytes('","i":"')
_BT: Final = _bytes('","BT":')
_RPI_KEY: Final = _bytes(',"RPI":')
_TRUE: Final = _bytes("true")
_FALSE: Final = _bytes("false")
_LIST_END: Final = _bytes("]}\n")
_QUOTED_END: Final = _bytes('"}')
_CS: Final = _bytes('},"cs":')
_TS: Final = _bytes(',"ts":')
_FRAME_END: Final = _bytes("}\n")
_DIRECTIONS: Final = tuple(
    _bytes(name) for name in ("PlusTick", "ZeroPlusTick", "MinusTick", "ZeroMinusTick")
)
_PLUS, _ZERO_PLUS, _MINUS, _ZERO_MINUS = _DIRECTIONS
_HEX: Final = _bytes("0123456789abcdef")
_KEYS: Final = {field: name for name, field in TICKER_FIELDS.items()}
_NAMES: Final = np.zeros((len(_KEYS) + 1, 20), np.uint8)
_NAME_SIZES: Final = np.zeros(len(_KEYS) + 1, np.int64)
for _field, _name in _KEYS.items():
    _quoted = _bytes(f',"{_name}":"')
    _NAMES[_field, : len(_quoted)] = _quoted
    _NAME_SIZES[_field] = len(_quoted)


class _Style(NamedTuple):
    """Constant parts and formats of one symbol's frames."""

    symbol: Text
    snapshot: Text  #: up to and with ``"ts":``, as the next two
    delta: Text
    trade: Text
    liquidation: Text
    ticker_snapshot: Text  #: up to and with ``"symbol":"X"``, as the next
    ticker_delta: Text
    price_unit: int  #: a tick in units of the last written decimal
    price_places: int
    qty_unit: int
    qty_places: int
    places: npt.NDArray[np.int64]  #: decimals of each ticker field at least
    salt: np.uint64


class Lines(NamedTuple):
    """Lines of a capture, ``<receive ns> <frame>\\n``."""

    text: Text  #: all lines, one after the other
    ends: npt.NDArray[np.int64]  #: (n,) where each line ends in ``text``
    receive_ns: npt.NDArray[np.int64]  #: (n,)


class Encoder:
    """Encodes one symbol's frames in order; the first ticker frame is a snapshot, later ones are deltas."""

    def __init__(self, instrument: Instrument, book_depth: int = 200) -> None:
        self._style = _style(instrument, book_depth)
        #: last trade price (0 before the first), its direction, whether a ticker was written
        self._state = np.zeros(3, np.int64)

    def trade_id(self, sequence: int, place: int) -> str:
        """The id of the trade with a sequence at a place in its frame, as `encode` writes it."""
        text = np.empty(36, np.uint8)
        _uuid(text, 0, sequence, place, self._style.salt)
        return text.tobytes().decode()

    def encode(self, events: Events) -> Lines:
        """Whole frames (dtype ``EVENT``, shape (n,)) of the symbol as lines of a capture.

        Raises ValueError when the last frame is not whole, or when rows restate the book
        (CHECKPOINT): the venue never sent those.
        """
        if events.dtype != EVENT:
            raise ValueError(f"events of dtype {events.dtype}: expected market.events.EVENT")
        if len(events) == 0:
            return Lines(np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))
        if not events["flags"][-1] & _LAST:
            raise ValueError("the last frame is not whole: its last row is not flagged LAST")
        restated = np.flatnonzero(events["flags"] & int(Flag.CHECKPOINT))
        if len(restated):
            raise ValueError(f"row {restated[0]} restates state (CHECKPOINT): not a venue's frame")
        lasts = np.flatnonzero(events["flags"] & _LAST)
        books = np.count_nonzero(events["kind"] <= _DELTA)
        size = books * _LEVEL_BYTES + (len(events) - books) * _OTHER_BYTES
        text = np.empty(size + len(lasts) * _FRAME_BYTES, np.uint8)
        ends = np.empty(len(lasts), np.int64)
        used = _write(text, ends, events, lasts, self._style, self._state)
        return Lines(text[:used], ends, events["receive_ns"][lasts])

    def frames(self, events: Events) -> Iterator[tuple[int, bytes]]:
        """(receive_ns, frame) one by one, as from a socket."""
        lines = self.encode(events)
        start = 0
        for end, receive_ns in zip(lines.ends.tolist(), lines.receive_ns.tolist(), strict=True):
            yield receive_ns, lines.text[start : end - 1].tobytes().partition(b" ")[2]
            start = end


def _style(instrument: Instrument, book_depth: int) -> _Style:
    symbol = instrument.symbol
    lot_places = _places(instrument.lot)
    # The venue pads prices of linear perpetuals to two decimals at least: "86723.40" at a tick of 0.1.
    price_places = max(2, _places(instrument.tick))
    places = np.zeros(len(_KEYS) + 1, np.int64)
    places[[Field.MARK_PRICE, Field.INDEX_PRICE, Field.LAST_PRICE]] = price_places
    places[[Field.TURNOVER_24H, Field.VOLUME_24H]] = 4
    places[Field.OPEN_INTEREST] = lot_places
    of_book, of_trades, of_ticker, of_liquidations = symbol_topics(symbol, book_depth)
    book = f'"topic":"{of_book}"'
    ticker = f'{{"topic":"{of_ticker}","type":"%s","data":{{"symbol":"{symbol}"'
    salt = hashlib.blake2b(symbol.encode(), digest_size=8).digest()
    return _Style(
        _bytes(symbol),
        _bytes(f'{{{book},"type":"snapshot","ts":'),
        _bytes(f'{{{book},"type":"delta","ts":'),
        _bytes(f'{{"topic":"{of_trades}","type":"snapshot","ts":'),
        _bytes(f'{{"topic":"{of_liquidations}","type":"snapshot","ts":'),
        _bytes(ticker % "snapshot"),
        _bytes(ticker % "delta"),
        int(Decimal(instrument.tick).scaleb(price_places)),
        price_places,
        int(Decimal(instrument.lot).scaleb(lot_places)),
        lot_places,
        places,
        np.frombuffer(salt, np.uint64)[0],
    )


def _places(step: str) -> int:
    """Decimals of a tick or lot."""
    exponent = Decimal(step).normalize().as_tuple().exponent
    return max(0, -int(exponent))


@compiled
def _value(text: Text, at: int, value: int, decimals: int, places: int) -> int:
    """An integer of so many decimals with as many as it needs, at least ``places``."""
    if value < 0:
        text[at] = 45
        at += 1
        value = -value
    while decimals < places:
        value *= 10
        decimals += 1
    while decimals > places and value % 10 == 0:
        value //= 10
        decimals -= 1
    return int(put_number(text, at, value, decimals))


@compiled
def _mixed(word: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@compiled
def _uuid(text: Text, at: int, seq: int, place: int, salt: np.uint64) -> int:
    """A name-based UUID (version 5, variant 1) in text."""
    high = _mixed(np.uint64(seq) ^ salt)
    low = _mixed(high + np.uint64(place) + np.uint64(1))
    for n in range(32):
        word = high if n < 16 else low
        digit = (word >> np.uint64(4 * (15 - n % 16))) & np.uint64(15)
        if n == 12:
            digit = np.uint64(5)
        elif n == 16:
            digit = np.uint64(8) | (digit & np.uint64(3))
        if n in (8, 12, 16, 20):
            text[at] = 45
            at += 1
        text[at] = _HEX[digit]
        at += 1
    return at


@compiled
def _levels(
    text: Text, at: int, events: Events, first: int, last: int, side: int, style: _Style
) -> int:
    """One side's changed levels, separated by commas."""
    some = False
    for n in range(first, last + 1):
        if events[n].side != side:
            continue
        some = True
        at = put(text, at, _LEVEL)
        at = put_number(text, at, events[n].price_ticks * style.price_unit, style.price_places)
        at = put(text, at, _THEN)
        lots = events[n].qty_lots
        at = put_number(text, at, lots * style.qty_unit, style.qty_places if lots else 0)
        at = put(text, at, _LEVEL_END)
    return at - 1 if some else at


@compiled
def _print(
    text: Text,
    at: int,
    events: Events,
    n: int,
    place: int,
    style: _Style,
    state: npt.NDArray[np.int64],
) -> int:
    """One trade or liquidation of a frame."""
    ticks = events[n].price_ticks
    at = put(text, at, _T)
    at = put_number(text, at, events[n].exchange_ns // MS_NS, 0)
    at = put(text, at, _S_LOWER)
    at = put(text, at, style.symbol)
    at = put(text, at, _BUY if events[n].side > 0 else _SELL)
    at = put_number(text, at, events[n].qty_lots * style.qty_unit, style.qty_places)
    at = put(text, at, _P)
    at = put_number(text, at, ticks * style.price_unit, style.price_places)
    if events[n].kind != _TRADE:
        return int(put(text, at, _QUOTED_END))
    if state[0] != 0 and ticks != state[0]:
        state[1] = 1 if ticks > state[0] else -1
        direction = _PLUS if ticks > state[0] else _MINUS
    else:
        direction = _ZERO_MINUS if state[1] < 0 else _ZERO_PLUS
    state[0] = ticks
    at = put(text, at, _L)
    at = put(text, at, direction)
    at = put(text, at, _I)
    at = _uuid(text, at, events[n].update_id, place, style.salt)
    at = put(text, at, _BT)
    at = put(text, at, _TRUE if events[n].flags & _BLOCK else _FALSE)
    at = put(text, at, _RPI_KEY)
    at = put(text, at, _TRUE if events[n].flags & _RPI else _FALSE)
    at = put(text, at, _SEQ)
    at = put_number(text, at, events[n].update_id, 0)
    text[at] = 125
    return at + 1


@compiled
def _write(
    text: Text,
    ends: npt.NDArray[np.int64],
    events: Events,
    lasts: npt.NDArray[np.int64],
    style: _Style,
    state: npt.NDArray[np.int64],
) -> int:
    """Write all frames as lines; returns the number of bytes."""
    at = first = 0
    for line in range(len(lasts)):
        last = lasts[line]
        head = events[first]
        at = put_number(text, at, head.receive_ns, 0)
        text[at] = 32
        at += 1
        publish_ms, exchange_ms = head.publish_ns // MS_NS, head.exchange_ns // MS_NS
        if head.kind == _SNAPSHOT or head.kind == _DELTA:
            at = put(text, at, style.snapshot if head.kind == _SNAPSHOT else style.delta)
            at = put_number(text, at, publish_ms, 0)
            at = put(text, at, _DATA_S)
            at = put(text, at, style.symbol)
            at = put(text, at, _BIDS)
            at = _levels(text, at, events, first, last, 1, style)
            at = put(text, at, _ASKS)
            at = _levels(text, at, events, first, last, -1, style)
            at = put(text, at, _U)
            at = put_number(text, at, head.update_id, 0)
            at = put(text, at, _SEQ)
            at = put_number(text, at, exchange_ms * _SEQ_PER_MS + _SEQ_PER_MS - 1, 0)
            at = put(text, at, _CTS)
            at = put_number(text, at, exchange_ms, 0)
            at = put(text, at, _FRAME_END)
        elif head.kind == _TICKER:
            at = put(text, at, style.ticker_delta if state[2] else style.ticker_snapshot)
            state[2] = 1
            for n in range(first, last + 1):
                field = events[n].field
                at = put(text, at, _NAMES[field, : _NAME_SIZES[field]])
                at = _value(text, at, events[n].value, _PLACES[field], style.places[field])
                text[at] = 34
                at += 1
            at = put(text, at, _CS)
            at = put_number(text, at, publish_ms * _SEQ_PER_MS, 0)
            at = put(text, at, _TS)
            at = put_number(text, at, publish_ms, 0)
            at = put(text, at, _FRAME_END)
        else:
            at = put(text, at, style.trade if head.kind == _TRADE else style.liquidation)
            at = put_number(text, at, publish_ms, 0)
            at = put(text, at, _DATA_LIST)
            for n in range(first, last + 1):
                at = _print(text, at, events, n, n - first, style, state)
                text[at] = 44
                at += 1
            at = put(text, at - 1, _LIST_END)
        ends[line] = at
        first = last + 1
    return at
