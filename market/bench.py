"""What `l2 bench market` measures: the book, bars, decoding, the live path, the lake.

Generated data come from the ``default`` synthetic market, whose rates are those of recorded days.
Recorded data are the busy captures of `yardstick.recorded`; rows about them are left out where there
are none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from market.bars import BarBuilder
from market.book import Book
from market.capture import read_blocks
from market.decode import Decoder
from market.events import Events, Kind
from market.instruments import BUILT_IN
from market.synthetic import generate, profile
from market.yardstick import Measure, Peer, PeerError, in_turn, peer_ready, recorded, seconds

Say = Callable[[str], None]

_DAY: Final = "2026-01-05"
_SEED: Final = 11
_STALE_S: Final = 5.0


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is found."""
    say("generating rows")
    rows = generated_rows(20_000 if quick else 2_000_000)
    yield from books("generated", [rows], 1 if quick else 5)
    if recordings := recorded():
        yield from books("recorded", recorded_rows(recordings), 1 if quick else 20)
    else:
        say("no recordings at hand, so what is measured on them is left out; set L2_TEST_DATA")


def generated_rows(count: int) -> Events:
    """The first ``count`` book and trade rows of a synthetic BTCUSDT day, whole frames."""
    parts: list[Events] = []
    held = 0
    for chunk in generate(profile("default"), _SEED, "BTCUSDT", _DAY):
        part = chunk[(chunk["kind"] == Kind.TRADE) | _is_book(chunk)]
        parts.append(part)
        held += len(part)
        if held >= count:
            break
    return np.concatenate(parts)[:count]


def recorded_rows(paths: Sequence[Path]) -> list[Events]:
    """The book and trade rows of BTCUSDT in each of several captures."""
    streams = []
    for path in paths:
        decoder = Decoder(symbols=["BTCUSDT"])
        parts = [decoder.decode_block(block).events for block in read_blocks(path)]
        rows = np.concatenate([part["BTCUSDT"] for part in parts if "BTCUSDT" in part])
        streams.append(rows[(rows["kind"] == Kind.TRADE) | _is_book(rows)])
    return streams


def book_rows(rows: Events) -> Events:
    """The rows about the book."""
    found: Events = rows[_is_book(rows)]
    return found


def _is_book(events: Events) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (events["kind"] == Kind.SNAPSHOT) | (
        events["kind"] == Kind.DELTA
    )
    return found


# -- the book, and the bars --------------------------------------------------------------------------


def books(data: str, streams: Sequence[Events], repetitions: int) -> Iterator[Measure]:
    """Book rows through the book alone, and all rows through the bars, beside the peer's array book.

    Every stream is BTCUSDT's and begins with a snapshot. PeerError when the books at the end of one
    are not equal, level by level.
    """
    alone = [book_rows(rows) for rows in streams]
    books = [Book() for _ in streams]

    def book() -> float:
        books[:] = [Book() for _ in streams]
        return seconds(lambda: [book.apply(rows) for book, rows in zip(books, alone, strict=True)])

    def bars() -> float:
        builders = [BarBuilder(BUILT_IN["BTCUSDT"], _STALE_S) for _ in streams]
        return seconds(lambda: [b.push(rows) for b, rows in zip(builders, streams, strict=True)])

    book(), bars()
    count, count_alone = sum(map(len, streams)), sum(map(len, alone))
    peer_rate = None
    with tempfile.TemporaryDirectory() as folder:
        if peer_ready():
            path = Path(folder) / "rows.npz"
            np.savez(path, *map(for_peer, alone))
            with Peer("hftbacktest_book.py", path) as peer:
                works = [book, bars, lambda: float(peer.ask("seconds"))]
                of_book, of_bars, of_peer = in_turn(works, repetitions)
                for ours, theirs in zip(books, peer.ask("levels"), strict=True):
                    check_equal(data, ours, theirs)
            peer_rate = count_alone / of_peer / 1e6
        else:
            of_book, of_bars = in_turn([book, bars], repetitions)
    how = f"best of {repetitions} in turn; {data} BTCUSDT"
    yield Measure(
        name=f"book, {data}",
        ours=count_alone / of_book / 1e6,
        peer=peer_rate,
        unit="M rows/s",
        how=f"{how}, {count_alone:,} book rows; the peer's array book without a strategy",
    )
    yield Measure(
        name=f"book and bars, {data}",
        ours=count / of_bars / 1e6,
        peer=peer_rate,
        unit="M rows/s",
        how=f"{how}, {count:,} rows, all bar columns; the peer's book alone",
    )


def for_peer(rows: Events) -> npt.NDArray[Any]:
    """Rows as tests/peers/hftbacktest_book.py reads them."""
    names = ("kind", "flags", "side", "price_ticks", "qty_lots")
    out = np.zeros(
        len(rows), np.dtype([*((name, rows.dtype[name]) for name in names), ("time_ns", "i8")])
    )
    for name in names:
        out[name] = rows[name]
    out["time_ns"] = np.maximum.accumulate(rows["receive_ns"])
    return out


def check_equal(data: str, book: Book, theirs: list[list[int]]) -> None:
    """PeerError when the peer's levels, [side, ticks, lots] each, are not those of our book."""
    ours = {(1, *level) for level in book.bids()} | {(-1, *level) for level in book.asks()}
    different = sorted(ours ^ {(side, ticks, lots) for side, ticks, lots in theirs})
    if different or not ours:
        raise PeerError(
            f"after the {data} rows the books differ in {len(different)} levels of {len(ours)}, "
            f"the first {different[:1]}"
        )
