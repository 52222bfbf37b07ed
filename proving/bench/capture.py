"""`l2 bench capture`: a day of the venue's archives converted to a capture, to events and to bars.

The archives are synthetic, of the size and format of a busy day: `BOOK_FRAMES` frames of a book of 500
levels a side, about 449 MiB of JSON, and `TRADES` trades. Prices mean nothing; the same seed gives the
same bytes. The measure is of one process pinned to one core.
"""

from __future__ import annotations

import gzip
import multiprocessing
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from live.archives.conversion import ArchiveDay, convert
from market.bars import make_bars
from market.console import Say
from market.events import EVENT, Events, Flag, Kind
from market.ingest import ingest
from market.instruments import BUILT_IN
from market.kernel import compiled
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, MS_NS, day_start_ns
from market.wire.encode import Encoder
from proving.bench.goals import Measure

SYMBOL: Final = "BTCUSDT"
DAY: Final = "2025-08-01"
BOOK_FRAMES: Final = 620_000
TRADES: Final = 1_000_000
LEVELS: Final = 500  #: a side
SEED: Final = 20250801

_CHUNK: Final = 10_000  #: frames made at once
_UPDATES: Final = 28  #: levels drawn a frame; those drawn twice count once
_ROWS_A_FRAME: Final = 4 * 40 + _UPDATES
_MIDDLE: Final = 1 << 15  #: first best bid within the window of twice as many ticks
_PRICE_TICKS: Final = 1_150_000
_LATENCY_NS: Final = 20_000_000

_SNAPSHOT: Final = int(Kind.SNAPSHOT)
_DELTA: Final = int(Kind.DELTA)
_FIRST: Final = int(Flag.FIRST)
_LAST: Final = int(Flag.LAST)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each step from a day's archives to bars, and the numbers of rows."""

    archive: ArchiveDay
    text_bytes: int  #: of the book archive, unpacked
    convert_s: float
    ingest_s: float
    bars_s: float
    events: int
    bars: int

    @property
    def seconds(self) -> float:
        """All steps together."""
        return self.convert_s + self.ingest_s + self.bars_s


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is measured."""
    say("a day of archives to events and bars")
    share = 100 if quick else 1
    with tempfile.TemporaryDirectory() as folder:
        day = archive_day(Path(folder), BOOK_FRAMES // share, TRADES // share)
    how = (
        f"one run on one core: {day.archive.book_lines:,} frames of 500 levels, "
        f"{day.text_bytes / 2**20:.0f} MiB, and {day.archive.trades:,} trades"
    )
    yield Measure(
        name="archive day to events and bars",
        ours=day.seconds,
        unit="s",
        how=how,
        better="less",
    )
    for step, took in (
        ("as one stream", day.convert_s),
        ("to events", day.ingest_s),
        ("to bars", day.bars_s),
    ):
        yield Measure(
            name=f"archive day {step}", ours=took, unit="s", how="of the run above", better="less"
        )


def write_archives(
    folder: Path, frames: int = BOOK_FRAMES, trades: int = TRADES
) -> tuple[Path, Path]:
    """Write the two archives of a date, ``frames`` and ``trades`` evenly over it; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.Generator(np.random.Philox(SEED))
    start_ms = day_start_ns(DAY) // MS_NS
    gaps = 0.7 + 0.3 * generator.exponential(size=frames)
    times = start_ms + (np.cumsum(gaps) / gaps.sum() * (DAY_NS // MS_NS - 1)).astype(np.int64)
    books = folder / f"{DAY}_{SYMBOL}_ob{LEVELS}.data.zip"
    touch = _write_books(books, times, generator)
    trade_file = folder / f"{SYMBOL}{DAY}.csv.gz"
    _write_trades(trade_file, trades, times, touch, generator)
    return books, trade_file


def convert_day(root: Path, books: Path, trades: Path) -> Conversion:
    """Archives to the events and bars of a lake under ``root``, timed step by step."""
    lake = Lake(root, "recorded")
    settings = Settings(root=str(root))
    out = Path(lake.archive(SYMBOL, DAY))
    with zipfile.ZipFile(books) as archive:
        text_bytes = sum(member.file_size for member in archive.infolist())
    began = time.perf_counter()
    archived = convert(
        books,
        trades,
        out,
        symbol=SYMBOL,
        day=DAY,
        depth=settings.market.book_depth,
        latency_ns=_LATENCY_NS,
    )
    converted = time.perf_counter()
    report = ingest(lake, [str(out)], [(SYMBOL, DAY)], settings)
    ingested = time.perf_counter()
    bars = make_bars(lake, SYMBOL, DAY, settings)
    return Conversion(
        archive=archived,
        text_bytes=text_bytes,
        convert_s=converted - began,
        ingest_s=ingested - converted,
        bars_s=time.perf_counter() - ingested,
        events=sum(report.events.values()),
        bars=bars,
    )


def archive_day(folder: Path, frames: int = BOOK_FRAMES, trades: int = TRADES) -> Conversion:
    """Write a day under ``folder`` and convert it on one core, with every kernel compiled before."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _pin_to_one_core) as pool:
        small = pool.submit(write_archives, folder / "small", 500, 500).result()
        pool.submit(convert_day, folder / "warm", *small).result()
        paths = pool.submit(write_archives, folder / "day", frames, trades).result()
        return pool.submit(convert_day, folder / "lake", *paths).result()


def _pin_to_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


# -- books -----------------------------------------------------------------------------------------


def _write_books(path: Path, times: Integers, generator: np.random.Generator) -> Integers:
    """Write the frames published at these times; returns the best bid (ticks) after each."""
    sizes = np.zeros((2, 2 * _MIDDLE), np.int64)
    changed = np.zeros((2, 2 * _MIDDLE), np.int64)
    touch = np.empty(len(times), np.int64)
    place = np.array([_MIDDLE])
    encoder = Encoder(BUILT_IN[SYMBOL], LEVELS)
    rows = np.zeros(_CHUNK * _ROWS_A_FRAME + 2 * LEVELS, EVENT)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(path.name.removesuffix(".zip"), "w") as member,
    ):
        for first in range(0, len(times), _CHUNK):
            count = min(_CHUNK, len(times) - first)
            moves = generator.standard_normal(count) * 2.4 * (generator.random(count) < 0.35)
            draws = generator.random((count, _UPDATES, 3))
            lots = 1 + generator.exponential(900.0, (count, _ROWS_A_FRAME)).astype(np.int64)
            used = _change(
                rows, sizes, changed, place, touch, first, moves.round(), draws, lots, times
            )
            lines = encoder.encode(rows[:used])
            text = lines.text.tobytes()
            frames = []
            at = 0
            for end in lines.ends.tolist():
                # An archive holds no receive time.
                frames.append(text[at + 20 : end - 1])
                at = end
            member.write(b"\r\n".join([*frames, b""]))
    return touch


@compiled
def _change(
    rows: Events,
    sizes: Integers,
    changed: Integers,
    place: Integers,
    touch: Integers,
    first: int,
    moves: Floats,
    draws: Floats,
    lots: Integers,
    times: Integers,
) -> int:
    """Write the rows of the frames from ``first`` on, one a move; returns the number of rows.

    ``sizes`` and ``changed`` hold lots and the last frame of change by side and tick, ``place`` the
    best bid's tick. Bids fill the `LEVELS` ticks at and below it, asks as many above, but for holes.
    """
    n = 0
    for f in range(len(moves)):
        number = first + f
        start = n
        used = 0
        if number == 0:
            for side in range(2):
                for away in range(LEVELS):
                    tick = place[0] - away if side == 0 else place[0] + 1 + away
                    sizes[side, tick] = 1 + away * 7 % 900
                    n = _row(rows, n, side, tick, sizes[side, tick])
        else:
            step = int(max(-40.0, min(40.0, moves[f])))
            way = 1 if step > 0 else -1
            for _ in range(abs(step)):
                old = place[0]
                place[0] = old + way
                # The touch moves by a tick: each side loses a level at one end and gains one at the other.
                eaten = 1 if way > 0 else 0
                near = old + 1 if way > 0 else old
                far_gone = (old - LEVELS + 1) if way > 0 else (old + LEVELS)
                far_new = (old + LEVELS + 1) if way > 0 else (old - LEVELS)
                for side, tick, size in (
                    (eaten, near, 0),
                    (1 - eaten, near, lots[f, used]),
                    (1 - eaten, far_gone, 0),
                    (eaten, far_new, lots[f, used + 1]),
                ):
                    if size != 0 or sizes[side, tick] != 0:
                        sizes[side, tick] = size
                        changed[side, tick] = number
                        n = _row(rows, n, side, tick, size)
                used += 2
            for d in range(draws.shape[1]):
                side = int(draws[f, d, 0] * 2)
                away = int(draws[f, d, 1] ** 3 * LEVELS)
                tick = place[0] - away if side == 0 else place[0] + 1 + away
                if changed[side, tick] == number:
                    continue
                changed[side, tick] = number
                gone = away > 0 and sizes[side, tick] != 0 and draws[f, d, 2] < 0.12
                sizes[side, tick] = 0 if gone else lots[f, used]
                used += 1
                n = _row(rows, n, side, tick, sizes[side, tick])
        for k in range(start, n):
            rows[k].receive_ns = times[number] * MS_NS
            rows[k].publish_ns = times[number] * MS_NS
            rows[k].exchange_ns = (times[number] - 3) * MS_NS
            rows[k].update_id = number + 1
            rows[k].kind = _SNAPSHOT if number == 0 else _DELTA
            rows[k].flags = (_FIRST if k == start else 0) | (_LAST if k == n - 1 else 0)
        touch[number] = place[0] - _MIDDLE + _PRICE_TICKS
    return n


@compiled
def _row(rows: Events, n: int, side: int, tick: int, size: int) -> int:
    rows[n].side = 1 if side == 0 else -1
    rows[n].price_ticks = tick - _MIDDLE + _PRICE_TICKS
    rows[n].qty_lots = size
    return n + 1


# -- trades ----------------------------------------------------------------------------------------


def _write_trades(
    path: Path, count: int, times: Integers, touch: Integers, generator: np.random.Generator
) -> None:
    """Write trades at the touch, newest first, as old archives have them."""
    start_ms = day_start_ns(DAY) // MS_NS
    at = np.sort(generator.integers(0, DAY_NS // 100_000, count))  # tenths of a millisecond
    bid = touch[np.maximum(np.searchsorted(times - start_ms, at // 10, "right") - 1, 0)]
    buys = generator.random(count) < 0.5
    prices = bid + buys
    lots = 1 + generator.exponential(40.0, count).astype(np.int64)
    names = generator.bytes(16 * count).hex()
    columns = zip(at.tolist(), buys.tolist(), prices.tolist(), lots.tolist(), strict=True)
    lines = [
        "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,"
        "foreignNotional,RPI\n"
    ]
    for n, (tenth, buy, ticks, size) in reversed(list(enumerate(columns))):
        seconds, rest = divmod(start_ms * 10 + tenth, 10_000)
        name = names[32 * n : 32 * n + 32]
        value = size * ticks / 10_000
        lines.append(
            f"{seconds}.{rest:04d},{SYMBOL},{'Buy' if buy else 'Sell'},{size / 1000:.3f},"
            f"{ticks / 10:.2f},ZeroPlusTick,{name[:8]}-{name[8:12]}-{name[12:16]}-{name[16:20]}-"
            f"{name[20:]},{value * 1e8:.4e},{size / 1000:.3f},{value:.4f},0\n"
        )
    with gzip.GzipFile(path, "w", compresslevel=1, mtime=0) as file:
        file.write("".join(lines).encode())
