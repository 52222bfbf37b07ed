"""Observation of a market, small enough to compare markets by: per frame, per second and per order.

`Observer` reads one symbol's events once, in receive order, at one book frame per 100 ms
(`proving.realism.conflation`), and keeps an `Observation`:

    per frame   touch, quantities at it, notional within `NEAR_BPS` of the mid on either side
    per second  the columns `KEPT` of the bars
    per sample  once in 50 frames: level quantities and the cumulative depth profile
    per order   taker orders: the trades of one side and one exchange time, summed
    per probe   hypothetical passive orders at the front and the back of the queue

Recorded and synthetic markets are read alike, so their statistics are comparable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.bars import BarBuilder, Bars
from market.book import (
    NO_KEY,
    BookState,
    apply,
    best,
    best_key,
    is_valid,
    level,
    lots_at,
    new_state,
    next_key,
)
from market.events import Events, Flag, Kind
from market.instruments import Instrument
from market.kernel import kernel
from market.settings import Settings
from market.units import SECOND_NS
from proving.realism.conflation import PERIOD_NS, Conflation
from proving.realism.probes import Prober

FRAMES_A_SECOND: Final = SECOND_NS // PERIOD_NS

#: Bar columns that are kept.
KEPT: Final = (
    "frames",
    "updates",
    "gap",
    "mid_close",
    "spread_mean",
    "spread_one",
    "bid_q1_mean",
    "ask_q1_mean",
    "bid_depth",
    "ask_depth",
    "bid_reach",
    "ask_reach",
    "ofi_1",
    "bid_add",
    "bid_cancel",
    "ask_add",
    "ask_cancel",
    "buy_qty",
    "sell_qty",
    "buy_notional",
    "sell_notional",
)

#: Distances from the mid of the cumulative depth profile of a side (bps).
PROFILE_BPS: Final = np.arange(0.25, 4.01, 0.25)
#: Depth by which shocks and recovery are measured: within so much of the mid (bps).
NEAR_BPS: Final = 1.0
#: Levels behind the touch whose quantities are sampled, once every `_SAMPLE_EVERY` frames.
_SAMPLED: Final = 20
_SAMPLE_EVERY: Final = 50

FRAME: Final = np.dtype(
    [
        ("t_ns", "i8"),
        ("bid", "i8"),
        ("ask", "i8"),
        ("bid_lots", "i8"),
        ("ask_lots", "i8"),
        ("bid_near", "f8"),
        ("ask_near", "f8"),
    ]
)
ORDER: Final = np.dtype([("t_ns", "i8"), ("side", "i8"), ("lots", "i8")])

_TRADE: Final = int(Kind.TRADE)
_BLOCK: Final = int(Flag.BLOCK)

Floats = npt.NDArray[np.float64]
Table = npt.NDArray[np.void]

_HEAD: Final = np.dtype(
    [
        ("frames", "i8"),  # rows written to each table by the present call
        ("orders", "i8"),
        ("samples", "i8"),
        ("exchange_ns", "i8"),  # of the last trade
        ("frame", "i8"),  # number of the next valid frame
        ("crossed", "i8"),  # frames that left the book crossed
    ]
)


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol's market over an unbroken span [start_ns, stop_ns); times are receive times.

    ``frames`` (dtype FRAME) are frames that left a valid book, at most one per 100 ms; ``bars`` maps the names of `KEPT` to one value per second; ``orders`` and ``probes``
    are tables of the dtypes ORDER and PROBE. At the instants ``sampled_ns``: ``profile``, shape
    (n, 2, len(PROFILE_BPS)), cumulative notional by side and distance, NaN past the last level, and
    ``level_lots``, shape (n, 2, 20), the quantities behind the touch, zero past the last level.
    ``crossed`` counts frames that left the book crossed.
    """

    label: str
    symbol: str
    start_ns: int
    stop_ns: int
    tick: float
    lot: float
    frames: Table
    bars: dict[str, Floats]
    orders: Table
    probes: Table
    sampled_ns: npt.NDArray[np.int64]
    profile: Floats
    level_lots: npt.NDArray[np.int64]
    crossed: int = 0

    @property
    def seconds(self) -> int:
        return (self.stop_ns - self.start_ns) // SECOND_NS

    def between(self, first_s: int, last_s: int) -> Observation:
        """The part from second ``first_s`` up to, not including, ``last_s``."""
        start, stop = (self.start_ns + second * SECOND_NS for second in (first_s, last_s))

        def cut(table: Table, time: str) -> Table:
            low, high = np.searchsorted(table[time], [start, stop])
            return table[low:high]

        sampled = slice(*np.searchsorted(self.sampled_ns, [start, stop]).tolist())
        return msgspec.structs.replace(
            self,
            start_ns=start,
            stop_ns=stop,
            frames=cut(self.frames, "t_ns"),
            bars={name: values[first_s:last_s] for name, values in self.bars.items()},
            orders=cut(self.orders, "t_ns"),
            probes=cut(self.probes, "placed_ns"),
            sampled_ns=self.sampled_ns[sampled],
            profile=self.profile[sampled],
            level_lots=self.level_lots[sampled],
        )


@kernel
def _near(state: BookState, row: int, mid2: int, price: float) -> float:
    """Notional of a side within `NEAR_BPS` of the mid; ``price`` is a tick times a lot."""
    side = 1 - 2 * row
    notional = 0.0
    key = best_key(state, row)
    while key != NO_KEY and 1e4 * (2 * key + side * mid2) <= NEAR_BPS * mid2:
        notional += float(-side * key) * lots_at(state, row, key)
        key = next_key(state, row, key)
    return notional * price


@kernel
def _profile(state: BookState, row: int, mid2: int, price: float, steps: Any, out: Any) -> None:
    """Cumulative notional of a side up to each distance of ``steps`` (bps)."""
    side = 1 - 2 * row
    notional, place = 0.0, 0
    key = best_key(state, row)
    while place < len(steps):
        if key == NO_KEY:
            out[place:] = np.nan
            return
        bps = (2 * key + side * mid2) / mid2 * 1e4
        while place < len(steps) and steps[place] < bps:
            out[place] = notional * price
            place += 1
        notional += float(-side * key) * lots_at(state, row, key)
        key = next_key(state, row, key)


@kernel
def _sample(state: BookState, row: int, out: Any) -> None:
    """Quantities of the levels behind the touch."""
    key = best_key(state, row)
    for n in range(len(out)):
        if key != NO_KEY:
            key = next_key(state, row, key)
        out[n] = lots_at(state, row, key) if key != NO_KEY else 0


@kernel
def _observe(
    state: BookState,
    events: Events,
    frames: Any,
    orders: Any,
    sampled_ns: Any,
    level_lots: Any,
    profile: Any,
    steps: Any,
    heads: Any,
    price: float,
) -> None:
    """Apply rows; every table has room for as many rows as there are events."""
    head = heads[0]
    for i in range(len(events)):
        event = events[i]
        if event.kind == _TRADE:
            if event.flags & _BLOCK:
                continue
            last = head.orders - 1
            if (
                last >= 0
                and head.exchange_ns == event.exchange_ns
                and orders[last].side == event.side
            ):
                orders[last].lots += event.qty_lots
                continue
            head.exchange_ns = event.exchange_ns
            orders[head.orders].t_ns = event.receive_ns
            orders[head.orders].side = event.side
            orders[head.orders].lots = event.qty_lots
            head.orders += 1
        elif apply(state, event):
            if not is_valid(state):
                head.crossed += best(state, 1) >= best(state, -1)
                continue
            frame = frames[head.frames]
            frame.t_ns = event.receive_ns
            frame.bid = best(state, 1)
            frame.ask = best(state, -1)
            frame.bid_lots = level(state, 1, frame.bid)
            frame.ask_lots = level(state, -1, frame.ask)
            mid2 = frame.bid + frame.ask
            frame.bid_near = _near(state, 0, mid2, price)
            frame.ask_near = _near(state, 1, mid2, price)
            head.frames += 1
            if head.frame % _SAMPLE_EVERY == 0:
                sampled_ns[head.samples] = event.receive_ns
                for row in range(2):
                    _sample(state, row, level_lots[head.samples, row])
                    _profile(state, row, mid2, price, steps, profile[head.samples, row])
                head.samples += 1
            head.frame += 1


class Observer:
    """Reads one symbol's events as they come; ``finish`` returns the observation."""

    def __init__(self, label: str, instrument: Instrument, settings: Settings) -> None:
        self._label, self._instrument = label, instrument
        self._feed = Conflation()
        self._bars = BarBuilder(instrument, settings.market.stale_after_s)
        self._prober = Prober()
        self._state = new_state()
        self._head = np.zeros(1, _HEAD)
        self._price = instrument.tick_size * instrument.lot_size
        self._parts: list[dict[str, Any]] = []
        self._made: list[dict[str, Any]] = []
        self._open_order = np.zeros(0, ORDER)

    def push(self, events: Events) -> None:
        """Apply event rows (dtype ``EVENT``, receive order)."""
        self._take(self._feed.push(events))

    def _take(self, events: Events) -> None:
        self._keep(self._bars.push(events))
        self._prober.push(events)
        # The last order may continue in the next chunk.
        open_orders = len(self._open_order)
        room = len(events) + open_orders
        frames, orders = np.empty(room, FRAME), np.empty(room, ORDER)
        samples = room // _SAMPLE_EVERY + 2
        sampled_ns = np.empty(samples, np.int64)
        level_lots = np.empty((samples, 2, _SAMPLED), np.int64)
        profile = np.empty((samples, 2, len(PROFILE_BPS)))
        orders[:open_orders] = self._open_order
        head = self._head[0]
        head["frames"], head["orders"], head["samples"] = 0, open_orders, 0
        _observe(
            self._state,
            events,
            frames,
            orders,
            sampled_ns,
            level_lots,
            profile,
            PROFILE_BPS,
            self._head,
            self._price,
        )
        n_frames, n_orders, n_samples = (
            int(head[name]) for name in ("frames", "orders", "samples")
        )
        done = max(0, n_orders - 1)
        self._open_order = orders[done:n_orders].copy()
        self._parts.append(
            {
                "frames": frames[:n_frames].copy(),
                "orders": orders[:done].copy(),
                "sampled_ns": sampled_ns[:n_samples].copy(),
                "level_lots": level_lots[:n_samples].copy(),
                "profile": profile[:n_samples].copy(),
            }
        )

    def _keep(self, bars: Bars) -> None:
        """Keep the chosen columns only; a day of whole bars would be 70 MB."""
        if len(bars):
            self._made.append(
                {
                    "t_ns": bars.t_ns,
                    **{name: bars.column(name).copy() for name in KEPT},
                }
            )

    def finish(self) -> Observation:
        """The observation; ValueError when it has no whole second."""
        self._take(self._feed.finish())
        self._keep(self._bars.finish())
        if not self._made:
            raise ValueError(f"{self._label}: no event of {self._instrument.symbol}")
        bars = {
            name: np.concatenate([part[name] for part in self._made]) for name in ("t_ns", *KEPT)
        }
        ends = bars.pop("t_ns")
        parts = {
            name: np.concatenate([part[name] for part in self._parts])
            for name in ("frames", "sampled_ns", "level_lots", "profile")
        }
        orders = np.concatenate([*(part["orders"] for part in self._parts), self._open_order])
        return Observation(
            label=self._label,
            symbol=self._instrument.symbol,
            start_ns=int(ends[0]) - SECOND_NS,
            stop_ns=int(ends[-1]),
            tick=self._instrument.tick_size,
            lot=self._instrument.lot_size,
            bars=bars,
            orders=orders,
            probes=self._prober.finish(),
            crossed=int(self._head["crossed"][0]),
            **parts,
        )


def observe(
    label: str, chunks: Iterable[Events], instrument: Instrument, settings: Settings
) -> Observation:
    """The observation of a finite stream of one symbol's events."""
    observer = Observer(label, instrument, settings)
    for chunk in chunks:
        observer.push(chunk)
    return observer.finish()
