"""`l2 bench market`: the book, bars, decoding, the live path (`proving.bench.features`), ingest.

Generated data come from the ``default`` synthetic market, whose rates are those of recorded days.
Recorded data are the captures of `command.recorded`; their rows are left out where there are none.

    python -m proving.bench.market CAPTURE ROOT

ingests one capture into a lake, events and bars, and prints the cost as one JSON object: peak memory
is a process's own, so the day gets a process of its own.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from market.bars import BarBuilder, make_bars
from market.book import Book
from market.console import Say
from market.events import Events, Kind
from market.ingest import ingest
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS
from market.wire.capture import CaptureWriter, read_blocks
from market.wire.decode import Decoder
from market.wire.survey import first_frame_ns, scan
from market.wire.topics import symbol_topics
from proving.bench.command import (
    Peer,
    PeerError,
    in_turn,
    peak_mb,
    peer_ready,
    recorded,
    seconds,
)
from proving.bench.goals import Measure
from proving.synthetic import generate, profile, write_frames

SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
_DAY: Final = "2026-01-05"
_SEED: Final = 11
_STALE_S: Final = 5.0
_OURS_A_TURN: Final = 4


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is measured."""
    # Imported here: the process of `main` that measures ingest must not load the evaluator.
    from proving.bench.features import features

    recordings = recorded()
    if not recordings:
        say("no recordings: their rows are left out; set L2_TEST_DATA to a folder of captures")
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
        yield from features(data, capture, SYMBOLS, *spans)
    with tempfile.TemporaryDirectory() as folder:
        yield from ingested_day(SYMBOLS, 60 if quick else 86_400, Path(folder), say)


def generated_rows(count: int) -> Events:
    """The first ``count`` book and trade rows of a synthetic BTCUSDT day, whole frames."""
    parts: list[Events] = []
    rows = 0
    for chunk in generate(profile("default"), _SEED, "BTCUSDT", _DAY):
        part = chunk[(chunk["kind"] == Kind.TRADE) | _is_book(chunk)]
        parts.append(part)
        rows += len(part)
        if rows >= count:
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
    """The rows of book frames."""
    book: Events = rows[_is_book(rows)]
    return book


def _is_book(events: Events) -> npt.NDArray[np.bool_]:
    kind = events["kind"]
    return np.asarray((kind == Kind.SNAPSHOT) | (kind == Kind.DELTA))


# -- the book, and the bars --------------------------------------------------------------------------


def books(data: str, streams: Sequence[Events], repetitions: int) -> Iterator[Measure]:
    """Book rows through the book alone, and all rows through the bars, beside the peer's array book.

    Every stream is BTCUSDT's and begins with a snapshot. PeerError when the final books of a stream
    differ in any level.
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
    """Compare the peer's levels, [side, ticks, lots] each, with our book; PeerError if they differ."""
    ours = {(1, *level) for level in book.bids()} | {(-1, *level) for level in book.asks()}
    different = sorted(ours ^ {(side, ticks, lots) for side, ticks, lots in theirs})
    if different or not ours:
        raise PeerError(
            f"after the {data} rows the books differ in {len(different)} levels of {len(ours)}, "
            f"the first {different[:1]}"
        )


# -- frames to events --------------------------------------------------------------------------------


def frames(data: str, captures: Sequence[Path], repetitions: int) -> Iterator[Measure]:
    """Decoding the lines of BTCUSDT in captures to event rows, beside the peer's converter.

    Each side reads the same lines from a file in its own format, decompression included: ours a
    capture, the peer's gzipped text. PeerError when the numbers of levels and trades differ.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        json_bytes, rows = 0, 0
        own = [folder / f"{n}.frames.zst" for n in range(len(captures))]
        for capture, path in zip(captures, own, strict=True):
            lines = _lines_of("BTCUSDT", capture)
            json_bytes += sum(len(line) - line.index(b" ") - 1 for line in lines)
            with CaptureWriter(path) as writer:
                writer.append_block(b"".join(lines))
            path.with_suffix(".gz").write_bytes(gzip.compress(b"".join(lines), 6))
            path.with_suffix(".few.gz").write_bytes(gzip.compress(b"".join(lines[:50])))

        def read() -> None:
            nonlocal rows
            # A frame without levels is one row without a side.
            rows = sum(int(np.count_nonzero(events["side"])) for events in _read(own))

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
                            str(2 * rows + 1000),
                        )
                    )
                    for path in own
                ]
                works.append(lambda: sum(float(peer.ask("seconds")) for peer in peers))
            best = in_turn(works, repetitions)
            if peer_ready():
                peer_rate = json_bytes / best[1] / 1e6
                theirs = sum(int(peer.ask("rows")) for peer in peers)
                if theirs != rows:
                    raise PeerError(f"{data} frames hold {rows} rows for us, {theirs} for the peer")
    yield Measure(
        name=f"frames to events, {data}",
        ours=json_bytes / best[0] / 1e6,
        peer=peer_rate,
        unit="MB/s of JSON",
        how=f"best of {repetitions} turns, ours {_OURS_A_TURN} times a turn, which still takes the "
        f"shorter time; {data} BTCUSDT, {json_bytes / 1e6:.1f} MB, "
        f"{rows:,} rows; unpacking included (ours zstd, the peer's converter gzip)",
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


# -- ingest of a day ---------------------------------------------------------------------------------


def ingested_day(symbols: Sequence[str], span_s: int, folder: Path, say: Say) -> Iterator[Measure]:
    """Memory and time of ingesting a generated day of book, trades and tickers into events and bars.

    The day's first quarter is ingested alone beside it: cost should grow linearly. ``span_s`` is the
    length of the day.
    """
    say("generating a day of frames")
    whole, quarter = folder / "day.frames.zst", folder / "quarter.frames.zst"
    write_frames(whole, profile("default"), _SEED, symbols, _DAY, 0, span_s)
    _head_of(whole, quarter, first_frame_ns(whole) + span_s // 4 * SECOND_NS)
    say("ingesting it")
    part = _ingested(quarter, folder / "quarter")
    day = _ingested(whole, folder / "day")
    how = (
        f"{span_s / 3600:g} h of orderbook.200, trades and tickers of {len(symbols)} symbols, "
        f"{day['rows']:,} events; events and bars, in a process of its own"
    )
    yield Measure(
        name="a day taken in: peak memory", ours=day["peak_mb"], unit="MB", better="less", how=how
    )
    yield Measure(
        name="a day taken in: time", ours=day["seconds"], unit="s", better="less", how=how
    )
    yield Measure(
        name="a day taken in: time per event over its first quarter",
        ours=day["seconds"] / part["seconds"] * part["rows"] / day["rows"],
        unit="times",
        better="less",
        how=how,
    )
    yield Measure(
        name="a day taken in: memory over its first quarter",
        ours=day["peak_mb"] / part["peak_mb"],
        unit="times",
        better="less",
        how=how,
    )


def _head_of(capture: Path, target: Path, until_ns: int) -> None:
    """Copy the lines of a capture that were received before an instant, to the block."""
    with CaptureWriter(target) as writer:
        for block in read_blocks(capture):
            if int(block.data[: block.data.index(b" ")]) >= until_ns:
                return
            writer.append_block(block.data)


def _ingested(capture: Path, root: Path) -> dict[str, Any]:
    """What `main` prints, from a process of its own."""
    command = [sys.executable, "-m", "proving.bench.market", str(capture), str(root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    cost: dict[str, Any] = json.loads(done.stdout)
    return cost


def main(capture: str, root: str) -> None:
    """Ingest a capture into a new lake and print seconds, rows and peak memory."""
    settings = Settings()
    lake = Lake(root, "synthetic")
    started = time.perf_counter()
    keys = list(scan([capture]))
    report = ingest(lake, [capture], keys, settings)
    for symbol, day in keys:
        make_bars(lake, symbol, day, settings)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - started,
                "rows": sum(report.events.values()),
                "peak_mb": peak_mb(),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
