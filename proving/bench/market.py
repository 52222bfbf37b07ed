"""What `l2 bench market` measures: the book, bars, decoding, the live path, the lake.

Generated data come from the ``default`` synthetic market, whose rates are those of recorded days.
Recorded data are the busy captures of `yardstick.recorded`; rows about them are left out where there
are none.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from market.bars import BarBuilder
from market.book import Book
from market.console import Say
from market.events import Events, Kind
from market.instruments import BUILT_IN
from market.wire.capture import CaptureWriter, read_blocks
from market.wire.decode import Decoder
from market.wire.topics import symbol_topics
from proving.bench.lake import day_taken_in, queries
from proving.bench.live import live
from proving.bench.yardstick import Measure, Peer, PeerError, in_turn, peer_ready, recorded, seconds
from proving.synthetic import generate, profile, write_frames

SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
_DAY: Final = "2026-01-05"
_SEED: Final = 11
_STALE_S: Final = 5.0
_OURS_A_TURN: Final = 4


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is found."""
    recordings = recorded()
    if not recordings:
        say("no recordings at hand, so what is measured on them is left out; set L2_TEST_DATA")
    say("the book and the bars")
    rows = generated_rows(20_000 if quick else 2_000_000)
    yield from books("generated", [rows], 1 if quick else 5)
    del rows
    if recordings:
        yield from books("recorded", recorded_rows(recordings), 1 if quick else 20)
    say("frames to events")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.frames.zst"
        span_s = 20 if quick else 3600
        write_frames(made, profile("default"), _SEED, ["BTCUSDT"], _DAY, 0, span_s)
        yield from frames("generated", [made], 1 if quick else 5)
    if recordings:
        yield from frames("recorded", recordings[:1] if quick else recordings, 1 if quick else 7)
    say("the live path")
    with tempfile.TemporaryDirectory() as folder:
        data, capture = "recorded", str(recordings[-1]) if recordings else ""
        if not recordings:
            data, capture = "generated", str(Path(folder) / "made.frames.zst")
            write_frames(capture, profile("default"), _SEED, SYMBOLS, _DAY, 0, 400)
        spans = (1.0, 0.5, 5.0) if quick else (60.0, 60.0, 30.0)
        yield from live(data, capture, SYMBOLS, *spans)
    with tempfile.TemporaryDirectory() as folder:
        yield from day_taken_in(SYMBOLS, 60 if quick else 86_400, Path(folder), say)
    with tempfile.TemporaryDirectory() as folder:
        month = (2, 4000, 1) if quick else (30, 86_400, 21)
        yield from queries(SYMBOLS, *month, Path(folder), say)


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


# -- frames to events --------------------------------------------------------------------------------


def frames(data: str, captures: Sequence[Path], repetitions: int) -> Iterator[Measure]:
    """The lines of BTCUSDT in captures, read to event rows, beside the peer's converter.

    Each side reads the same lines from a file in its own format, unpacking included: ours a capture,
    the peer gzipped text. PeerError when they do not find equally many levels and trades.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        json_bytes, found = 0, 0
        own = [folder / f"{n}.frames.zst" for n in range(len(captures))]
        for capture, path in zip(captures, own, strict=True):
            lines = _lines_of("BTCUSDT", capture)
            json_bytes += sum(len(line) - line.index(b" ") - 1 for line in lines)
            with CaptureWriter(path) as writer:
                writer.append_block(b"".join(lines))
            path.with_suffix(".gz").write_bytes(gzip.compress(b"".join(lines), 6))
            path.with_suffix(".few.gz").write_bytes(gzip.compress(b"".join(lines[:50])))

        def read() -> None:
            nonlocal found
            # the row of a frame without levels is no level
            found = sum(int(np.count_nonzero(events["side"])) for events in _read(own))

        def ours() -> float:
            return min(seconds(read) for _ in range(_OURS_A_TURN))

        ours()
        peer_rate = None
        with ExitStack() as stack:
            works = [ours]
            if peer_ready():
                peers = [
                    stack.enter_context(
                        Peer(
                            "hftbacktest_convert.py",
                            path.with_suffix(".gz"),
                            path.with_suffix(".few.gz"),
                            str(2 * found + 1000),
                        )
                    )
                    for path in own
                ]
                works.append(lambda: sum(float(peer.ask("seconds")) for peer in peers))
            best = in_turn(works, repetitions)
            if peer_ready():
                peer_rate = json_bytes / best[1] / 1e6
                theirs = sum(int(peer.ask("rows")) for peer in peers)
                if theirs != found:
                    raise PeerError(
                        f"{data} frames hold {found} rows for us, {theirs} for the peer"
                    )
    yield Measure(
        name=f"frames to events, {data}",
        ours=json_bytes / best[0] / 1e6,
        peer=peer_rate,
        unit="MB/s of JSON",
        how=f"best of {repetitions} turns, ours {_OURS_A_TURN} times a turn, which still takes the "
        f"shorter time; {data} BTCUSDT, {json_bytes / 1e6:.1f} MB, "
        f"{found:,} rows; unpacking included (ours zstd, the peer's converter gzip)",
    )


def _lines_of(symbol: str, capture: Path) -> list[bytes]:
    """The book and trade lines of one symbol in a capture, newlines included."""
    topics = tuple(f'"topic":"{name}"'.encode() for name in symbol_topics(symbol, 200)[:2])
    lines = (
        line for block in read_blocks(capture) for line in block.data.splitlines(keepends=True)
    )
    return [line for line in lines if any(topic in line[:80] for topic in topics)]


def _read(captures: Sequence[Path]) -> Iterator[Events]:
    for path in captures:
        decoder = Decoder(symbols=["BTCUSDT"])
        for block in read_blocks(path):
            yield from decoder.decode_block(block).events.values()
