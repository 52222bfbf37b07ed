"""Random event streams for property tests, and slices of the recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from market.events import EVENT, Events, Field, Flag, Kind
from market.instruments import BUILT_IN
from market.units import MS_NS
from market.wire.capture import read_blocks
from market.wire.decode import Decoder

START_NS = 1_700_000_000_000_000_000

#: Steps between frames: none, within a frame interval, about the flicker limit, across seconds, and
#: beyond a silence of five seconds.
STEPS_MS = (0, 1, 40, 99, 100, 101, 300, 650, 1000, 2400, 5000, 6300)

#: Mostly deltas and trades; the rest is rare but in most streams.
HAPPENINGS = (
    *("delta",) * 8,
    *("trade",) * 4,
    *("snapshot", "checkpoint", "empty", "gap", "ticker", "liquidation", "crossing"),
)


def level_row(kind: Kind, side: int, price_ticks: int, qty_lots: int) -> np.ndarray:
    row = np.zeros(1, EVENT)
    row["kind"], row["side"], row["price_ticks"], row["qty_lots"] = (
        kind,
        side,
        price_ticks,
        qty_lots,
    )
    return row


def framed(rows: list[np.ndarray], now_ns: int, update_id: int, flags: int = 0) -> Events:
    """Rows as one frame."""
    frame = np.concatenate(rows)
    frame["receive_ns"], frame["exchange_ns"] = now_ns, now_ns - 7 * MS_NS
    frame["publish_ns"], frame["update_id"] = now_ns - 3 * MS_NS, update_id
    frame["flags"] |= np.uint8(flags & ~int(Flag.GAP))
    frame["flags"][0] |= Flag.FIRST | (flags & Flag.GAP)
    frame["flags"][-1] |= Flag.LAST
    return frame


def full_book(draw: Any, base: int) -> list[tuple[int, int, int]]:
    bids = draw(st.lists(st.tuples(st.integers(0, 14), st.integers(1, 900)), min_size=1))
    asks = draw(st.lists(st.tuples(st.integers(0, 14), st.integers(1, 900)), min_size=1))
    return [(1, base - 1 - n, q) for n, q in bids] + [(-1, base + n, q) for n, q in asks]


@st.composite
def streams(draw: Any, max_frames: int = 30) -> list[Events]:
    """Frames in receive order; opens with a snapshot more often than not."""
    now, base, held = START_NS + draw(st.integers(0, 999)) * MS_NS, 5_000, {}
    frames = []
    opening = ["snapshot"] if draw(st.integers(0, 4)) else []
    happenings = opening + draw(
        st.lists(st.sampled_from(HAPPENINGS), min_size=1, max_size=max_frames)
    )
    for number, happening in enumerate(happenings):
        now += draw(st.sampled_from(STEPS_MS)) * MS_NS
        base += draw(st.sampled_from((0, 0, 0, 1, -1)))
        flags = 0
        if happening in ("trade", "liquidation"):
            kind = Kind.TRADE if happening == "trade" else Kind.LIQUIDATION
            flags = draw(st.sampled_from((0, 0, 0, Flag.RPI, Flag.BLOCK))) if kind == 3 else 0
            side = draw(st.sampled_from((1, -1)))
            price = base - (side < 0) + side * draw(st.integers(0, 2))
            rows = [level_row(kind, side, price, draw(st.integers(1, 90)))]
        elif happening == "ticker":
            rows = [np.zeros(1, EVENT)]
            rows[0]["kind"] = Kind.TICKER
            rows[0]["field"] = draw(st.sampled_from(list(Field)))
            rows[0]["value"] = draw(st.integers(1, 10**12))
        elif happening in ("snapshot", "checkpoint"):
            if happening == "snapshot":
                held = {(side, price): lots for side, price, lots in full_book(draw, base)}
            else:
                flags = Flag.CHECKPOINT
            rows = [level_row(Kind.SNAPSHOT, *key, lots) for key, lots in held.items()]
            rows = rows or [level_row(Kind.SNAPSHOT, 0, 0, 0)]
        elif happening == "empty":
            rows = [level_row(Kind.DELTA, 0, 0, 0)]
        else:
            flags = Flag.GAP if happening == "gap" else 0
            shift = 3 if happening == "crossing" else 0
            levels = [
                (side, price + side * shift, draw(st.sampled_from((lots, 0, 5))))
                for side, price, lots in full_book(draw, base)
            ]
            # Levels on the wrong side of the new base are usually deleted in the same frame.
            if draw(st.integers(0, 9)):
                edge = {1: base, -1: base - 1}
                levels += [(s, p, 0) for s, p in held if s * p >= s * edge[s]]
            for side, price, lots in levels:
                held.pop((side, price), None)
                if lots:
                    held[side, price] = lots
            rows = [level_row(Kind.DELTA, *level) for level in levels]
        frames.append(framed(rows, now, number + 1, flags))
    return frames


def recorded(folder: Path, name: str, symbol: str, seconds: float) -> Events:
    """Event rows of one symbol from the first seconds of a recording."""
    decoder, parts = Decoder(BUILT_IN, symbols=[symbol]), []
    for block in read_blocks(folder / f"{name}.frames.zst", 1 << 20):
        parts.append(decoder.decode_block(block).events.get(symbol, np.zeros(0, EVENT)))
        events = np.concatenate(parts)
        until = events["receive_ns"][:1] + round(seconds * 1e9)
        if (events["receive_ns"] >= until).any():
            break
    return events[events["receive_ns"] < until]
