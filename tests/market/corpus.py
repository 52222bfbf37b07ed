"""Recordings cut, mixed and doubled at random, and what ingest makes of them.

    python -m tests.market.corpus --seconds 600

runs every recording and made-up case through ingest whole, and again cut into files at random (in
chunks, line by line, overlapping, doubled, named and given in any order, torn at an end). The
partitions must be the same; after a step of a recorder's clock they may differ when a finding names it.
Each trial prints its seed when it fails; ``--seed`` repeats one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from market.events import Events, from_arrow
from market.ingest import IngestReport, ingest
from market.lake import Lake
from market.settings import Settings
from market.units import MS_NS, SECOND_NS, day_start_ns
from market.wire.capture import CaptureWriter, read_blocks
from market.wire.survey import IngestError, Key, scan
from tests.conftest import recordings

DAY = "2026-11-20"
START_NS = day_start_ns(DAY) + 43_200 * SECOND_NS
MIDNIGHT = day_start_ns("2026-11-21")

Lines = list[bytes]
Message = tuple[int, dict[str, Any]]  #: venue's time (ms), frame


def pack(frame: Any) -> bytes:
    return json.dumps(frame, separators=(",", ":")).encode()


# -- a venue, and recorders of it --------------------------------------------------------------


def messages(symbol: str, start_ns: int, seconds: float, seed: int) -> list[Message]:
    """What a venue sends of a symbol: a snapshot, then a delta each 100 ms, trades and tickers."""
    chance, made = random.Random(f"{symbol}{seed}"), []
    ms = start_ns // MS_NS
    u = ms // 50 % 10**8
    head = {"topic": f"orderbook.200.{symbol}", "type": "snapshot", "ts": ms}
    sides = {"b": [[f"{99 - n}.0", "5.000"] for n in range(9)]}
    sides |= {"a": [[f"{101 + n}.0", "5.000"] for n in range(9)]}
    made.append((ms, head | {"data": {"s": symbol, **sides, "u": u, "seq": u * 7}, "cts": ms}))
    for n in range(1, int(seconds * 10)):
        now, u = ms + n * 100, u + 1
        level = [[f"{99 - chance.randrange(9)}.0", f"{chance.randrange(1, 9)}.000"]]
        data = {"s": symbol, "b": level, "a": [], "u": u, "seq": u * 7}
        made.append((now, head | {"type": "delta", "ts": now, "data": data, "cts": now - 3}))
        if chance.random() < 0.6:
            prints = [
                {
                    "T": now,
                    "s": symbol,
                    "S": chance.choice(("Buy", "Sell")),
                    "v": f"{chance.randrange(1, 900) / 1000:.3f}",
                    "p": "100.0",
                    "i": f"{symbol}-{u}-{k}",
                    "seq": u * 7,
                }
                for k in range(chance.randrange(1, 4))
            ]
            topic = {"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": now + 1}
            made.append((now + 1, topic | {"data": prints}))
        if chance.random() < 0.2:
            data = {"symbol": symbol, "markPrice": f"{100 + chance.randrange(9) / 10:.2f}"}
            topic = {"topic": f"tickers.{symbol}", "type": "delta", "ts": now + 2, "cs": u}
            made.append((now + 2, topic | {"data": data}))
    return made


def received(
    sent: Sequence[Message],
    seed: int,
    *,
    delay_ms: float = 20,
    loss: float = 0,
    clock: Callable[[int], int] = lambda ns: ns,
) -> Lines:
    """The lines of a recorder: in the order sent, each after its delay, some lost.

    ``clock`` turns true time into that of the recorder's clock.
    """
    chance, now, lines = random.Random(seed), 0, []
    for n, (ms, frame) in enumerate(sorted(sent, key=lambda message: message[0])):
        now = max(now + 1, ms * MS_NS + round((delay_ms + 8 * chance.random()) * MS_NS))
        if n == 0 or chance.random() >= loss:
            lines.append(b"%d %b" % (clock(now), pack(frame)))
    return lines


def control(ns: int, kind: str, **fields: Any) -> bytes:
    return b"%d %b" % (ns, pack({"l2": kind, **fields}))


def stamp(line: bytes) -> int:
    return int(line.partition(b" ")[0])


# -- files, and what ingest makes of them ------------------------------------------------------


class Made:
    """Partitions of events by key, and the report."""

    def __init__(self, events: dict[Key, Events], report: IngestReport) -> None:
        self.events, self.report = events, report

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Made)
            and self.events.keys() == other.events.keys()
            and all(np.array_equal(self.events[key], other.events[key]) for key in self.events)
        )

    __hash__ = None  # type: ignore[assignment]


def write(folder: Path, name: str, lines: Lines) -> str:
    path = folder / f"{name}.frames.zst"
    with CaptureWriter(path) as writer:
        writer.append_block(b"".join(line + b"\n" for line in lines))
    return str(path)


def ingested(paths: Sequence[str], keys: Sequence[Key] | None = None) -> Made:
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder)
        keys = list(scan(paths)) if keys is None else keys
        report = ingest(lake, paths, keys, Settings())
        return Made({key: from_arrow(lake.read("events", *key)) for key in keys}, report)


def made_of(*files: Lines) -> Made:
    """Ingest of files with these lines; the first gets the last name."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{len(files) - n:03d}" for n in range(len(files))]
        return ingested([write(Path(folder), *each) for each in zip(names, files, strict=True)])


# -- ways to cut lines into files --------------------------------------------------------------


def chunks(lines: Lines, chance: random.Random) -> list[Lines]:
    """Consecutive files, each with an overlap into the next or none."""
    count = chance.randrange(1, 5)
    cuts = sorted(chance.sample(range(1, len(lines)), min(count, len(lines) - 1)))
    overlap = chance.choice((0, 0, 1, 30))
    bounds = zip([0, *cuts], [*cuts, len(lines)], strict=True)
    return [lines[start : stop + overlap] for start, stop in bounds]


def scattered(lines: Lines, chance: random.Random) -> list[Lines]:
    """Each line in one or more of several files, at random."""
    files: list[Lines] = [[] for _ in range(chance.randrange(2, 5))]
    doubled = chance.choice((0, 0, 0.2))
    for line in lines:
        for n in chance.sample(range(len(files)), 1 + (chance.random() < doubled)):
            files[n].append(line)
    return [each for each in files if each]


def alternating(lines: Lines, chance: random.Random) -> list[Lines]:
    return [lines[::2], lines[1::2]]


def by_symbol(lines: Lines, chance: random.Random) -> list[Lines]:
    """A file a symbol; lines that name none go anywhere."""
    files: dict[bytes, Lines] = {}
    for line in lines:
        name = line.partition(b'"topic":"')[2].partition(b'"')[0].rpartition(b".")[2]
        files.setdefault(name or chance.choice([b"", *files]), []).append(line)
    return list(files.values())


def doubled(lines: Lines, chance: random.Random) -> list[Lines]:
    return [lines, lines]


WAYS = (chunks, scattered, alternating, by_symbol, doubled)


def steps(lines: Lines) -> list[int]:
    """By how much receive time steps back, wherever it does."""
    stamps = [stamp(line) for line in lines]
    clock = np.maximum.accumulate(stamps)
    return [int(step) for step in clock - stamps if step > 0]


# -- the campaign ------------------------------------------------------------------------------


def recorded(path: Path, chance: random.Random, lines: int = 3000) -> Lines:
    """Consecutive lines of a recording, from a random place on."""
    whole = b"".join(block.data for block in read_blocks(path)).split(b"\n")[:-1]
    first = chance.randrange(max(1, len(whole) - lines))
    return whole[first : first + lines]


def inputs(folder: Path) -> dict[str, Path]:
    """Recordings, and the cases beside them."""
    found = [*folder.glob("*.frames.zst"), *folder.parent.glob("cases/*.frames.zst")]
    return {path.name: path for path in sorted(found)}


def recorders(seed: int, chance: random.Random) -> tuple[str, list[Lines]]:
    """A made-up case: its name and the lines of each recorder."""
    start = chance.choice((START_NS, MIDNIGHT - 12 * SECOND_NS))
    symbols = ("BTCUSDT", "ETHUSDT")[: chance.randrange(1, 3)]
    sent = [m for symbol in symbols for m in messages(symbol, start, 25, seed)]
    count = chance.randrange(1, 4)
    loss = chance.choice((0, 0.02, 0.3))
    found = [
        received(sent, seed + n, delay_ms=chance.uniform(5, 400), loss=loss) for n in range(count)
    ]
    name = f"{count} recorders of {len(symbols)}, {loss:.0%} lost"
    if count == 1 and chance.random() < 0.5:
        back = chance.choice((5 * MS_NS, 300 * MS_NS, 2 * SECOND_NS, 3600 * SECOND_NS))
        from_ns = start + 10 * SECOND_NS
        found = [received(sent, seed, clock=lambda ns: ns - back * (ns >= from_ns))]
        name = f"a clock set back by {back / 1e9:g} s"
    return name, found


def trial(seed: int, known: dict[str, Path]) -> tuple[str, str]:
    """(what was tried, "same", "named" or "DIFFERENT") of one seed."""
    chance = random.Random(seed)
    if known and chance.random() < 0.5:
        name, path = chance.choice(list(known.items()))
        sides = [recorded(path, chance)]
    else:
        name, sides = recorders(seed, chance)
    if chance.random() < 0.2:  # torn: the end of a recording is missing
        sides[-1] = sides[-1][: chance.randrange(2, len(sides[-1]))]
        name += ", torn"
    # Two recordings side by side, each cut into files of consecutive or of any lines.
    ways = WAYS if len(sides) == 1 else (chunks, alternating, doubled)
    cut = [(way := chance.choice(ways), way(side, chance)) for side in sides]
    files = [each for _, of_side in cut for each in of_side]
    chance.shuffle(files)
    name += ": " + ", ".join(way.__name__ for way, _ in cut)
    try:
        whole = made_of(*sides)
    except IngestError as error:
        whole = error  # type: ignore[assignment]
    try:
        found = made_of(*files)
    except IngestError as error:
        same = isinstance(whole, IngestError) and str(error)[:20] == str(whole)[:20]
        return name, "same" if same else f"DIFFERENT {error}"
    if whole == found:
        return name, "same"
    named = bool(found.report.findings) and any(steps(side) for side in sides)
    return name, "named" if named else "DIFFERENT"


def campaign(seconds: float, seed: int, known: dict[str, Path]) -> Iterator[tuple[int, str, str]]:
    """(seed, what was tried, outcome) of trials until the time is over; at least one."""
    until = time.monotonic() + seconds
    while True:
        yield (seed, *trial(seed, known))
        seed += 1
        if time.monotonic() >= until:
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    options = parser.parse_args()
    known = inputs(recordings())
    print(f"{len(known)} recordings and cases, and made-up ones; first seed {options.seed}")
    outcomes: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    seed = options.seed
    for seed, name, outcome in campaign(options.seconds, options.seed, known):
        outcomes[outcome.partition(" ")[0]] += 1
        tried[name.partition(":")[0]] += 1
        if outcome.startswith("DIFFERENT"):
            print(f"seed {seed}: {name}: {outcome}", flush=True)
    print(f"seeds {options.seed} to {seed}: {dict(outcomes)}")
    for name, count in sorted(tried.items()):
        print(f"  {count:5}  {name}")
    return int(outcomes["DIFFERENT"] > 0)


if __name__ == "__main__":
    sys.exit(main())
