"""A rehearsal before the first frame: the worker's whole path once, on made-up frames.

The first call of compiled code loads it, or compiles it where no process has before, which takes
seconds to minutes; pyarrow, LightGBM and the algorithms are lazy too. All of it is paid here, by a core
of its own that is thrown away, so that no frame waits for it and no latency is of a warm-up.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa

from live.core import Core
from live.gateway import PlainCodec
from live.paper import PaperDriver, on_paper, paper_venues
from live.trader import Model
from market.instruments import Instrument
from market.settings import Settings
from market.units import MS_NS, SECOND_NS
from market.wire.decode import Decoder
from market.wire.topics import symbol_topics

#: Any whole second; the made-up market opens at it.
_START_NS: Final = 1_700_000_000 * SECOND_NS
_SECONDS: Final = 3
_ORDER_NS: Final = _START_NS + SECOND_NS
_MID_TICKS: Final = 100_000
_THRESHOLDS: Final = gc.get_threshold()


def rehearse(settings: Settings, instruments: Mapping[str, Instrument], model: Model) -> float:
    """Decode, decide, order and fill for `_SECONDS` of a made-up market; the seconds that it took.

    Leaves nothing behind: no file, no entry of a journal, no state.
    """
    started = time.monotonic()
    depth = settings.market.book_depth
    decoder = Decoder(instruments, depth, instruments, follow=False)
    settings, now_ns = on_paper(settings), _START_NS
    core = Core(
        settings, instruments, model=model, codec=PlainCodec(), name="rehearsal", at_venue=False
    )
    driver, desk = PaperDriver(core, paper_venues(instruments, settings)), core.desk
    driver.begin(_START_NS)
    for now_ns, frame in _frames(instruments, depth):
        driver.advance(now_ns)
        for symbol, events in decoder.decode_frame(now_ns, frame).events.items():
            if now_ns == _ORDER_NS and not desk.has_parent(symbol):
                desk.set_target(symbol, _least_lots(instruments[symbol]), now_ns, 1.0)
            driver.on_events(symbol, events)
    prediction = model.bundle.predict(np.zeros(len(model.bundle.manifest.features)))
    for symbol, instrument in instruments.items():  # nothing was warm: no entry was judged or sized
        mid = _MID_TICKS * instrument.tick_size
        desk.pre_trade.round_trip_bps(symbol, 1, 1.0, now_ns)
        desk.sizes.decide(symbol, 1, now_ns, mid, prediction, 0.0, 60.0)
    driver.close(flatten=True)
    pa.array(
        np.zeros(1), from_pandas=True
    )  # imports pandas: the decision log's thread would hold the GIL
    return time.monotonic() - started


def settle() -> None:
    """Set the interpreter up for short waits, once everything is loaded; `unsettle` takes it back."""
    # What is loaded now stays: the collector looks at it never again. The rest it looks at in idle moments
    # (`live.shell`); by itself it would in any thread at any time, for milliseconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)
    # A thread that wakes up, as with a sync that ended, waits for the interpreter so long at most.
    sys.setswitchinterval(0.0005)


def unsettle() -> None:
    """What the interpreter does by itself."""
    gc.unfreeze()
    gc.set_threshold(*_THRESHOLDS)
    sys.setswitchinterval(0.005)


def _least_lots(instrument: Instrument) -> int:
    """Twice what the venue takes at least."""
    value = _MID_TICKS * instrument.tick_size * instrument.lot_size
    least = math.ceil(float(instrument.min_notional) / value)
    return 2 * max(instrument.qty_lots(instrument.min_qty), least)


def _frames(instruments: Mapping[str, Instrument], depth: int) -> Iterator[tuple[int, bytes]]:
    """Frames of every kind of every symbol with their receive times, ten a second."""
    instants = range(_START_NS, _START_NS + _SECONDS * SECOND_NS, 100 * MS_NS)
    for u, now_ns in enumerate(instants, 1):
        opens, ms = u == 1, now_ns // MS_NS
        for symbol, instrument in instruments.items():
            lots = _least_lots(instrument)
            shown, sold = str(instrument.qty(lots)), str(instrument.qty(9 * lots))
            price = {side: str(instrument.price(_MID_TICKS + side)) for side in (-1, 1)}
            book = {
                "s": symbol,
                "b": [[price[-1], shown]],
                "a": [[price[1], shown]],
                "u": u,
                "seq": u,
            }
            trade = {"T": ms, "s": symbol, "S": "Sell", "v": sold, "p": price[-1], "i": str(u)}
            quote = {"symbol": symbol, "markPrice": price[1], "fundingRate": "0.0001"}
            liquidation = [{"T": ms, "s": symbol, "S": "Buy", "v": sold, "p": price[1]}]
            change = "snapshot" if opens else "delta"
            kinds = (change, "snapshot", change, "snapshot")
            for topic, kind, data in zip(
                symbol_topics(symbol, depth),
                kinds,
                (book, [trade], quote, liquidation),
                strict=True,
            ):
                frame = {"topic": topic, "type": kind, "ts": ms, "cts": ms, "data": data}
                yield now_ns, msgspec.json.encode(frame)
