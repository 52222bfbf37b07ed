"""Proof of the recorder under load: a local venue that misbehaves, and every line compared.

    python -m proving.soak --seconds 600 --rate 10000

The venue (`proving.unruly`) runs in a process of its own and notes a digest of each message in the order
it was sent, a connection a file. Afterwards the captures are read, and the lines of each connection
must be that sequence, without a hole or a change, from its first message on. What may be missing is
only the tail of a connection that was cut within a message, or that the recorder itself closed: it
never arrived. Everything is written into a folder of its own, which is gone afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from live.clock import SteadyClock
from live.feed import Backoff, WireFeed
from live.recording import Recording
from market.instruments import BUILT_IN
from market.settings import Settings
from market.units import SECOND_NS
from market.wire.capture import read_blocks
from proving.unruly import DIGEST_BYTES, FAULTS, TOPICS, Venue, digest

SEED: Final = 1
_BACKOFF_SEED: Final = 2
_MB: Final = 1e6


def soak(
    root: Path, seconds: float, rate: float, fault_s: float = 2.0, file_s: float = 60.0
) -> dict[str, Any]:
    """Record from a misbehaving venue for so long and compare; ``wrong`` is empty when all is well.

    ``rate`` is in frames a second, ``fault_s`` between two faults; a capture holds ``file_s``.
    """
    sent = root / "sent"
    sent.mkdir(parents=True)
    spawn = multiprocessing.get_context("spawn")
    address = spawn.Queue()
    process = spawn.Process(
        target=_serve, args=(sent, rate, fault_s, address), daemon=True, name="venue"
    )
    process.start()
    try:
        clock = SteadyClock()
        feed = WireFeed(
            address.get(timeout=60),
            TOPICS,
            duration_s=seconds,
            clock_ns=clock,
            keep_replies=True,
            backoff=Backoff(0.05, 0.5, _BACKOFF_SEED),
        )
        recording = Recording(
            Settings(root=str(root / "lake")),
            feed,
            list(TOPICS),
            BUILT_IN,
            clock,
            _say,
            span_ns=round(file_s * SECOND_NS),
        )
        idle_mb = _peak_mb()
        began, cpu = time.monotonic(), time.process_time()
        result = recording.run()
        took, used = time.monotonic() - began, time.process_time() - cpu
        peak_mb = _peak_mb()
    finally:
        process.terminate()
        process.join(30)
    files = result["files"]
    found = compare(sent, files)
    return {
        **found,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "seeds": [SEED, _BACKOFF_SEED],
        "seconds": round(took, 1),
        "rate_asked": rate,
        "faults": faults_of(sent),
        "recorder_cpu_share": round(used / took, 2),
        "idle_mb": round(idle_mb),
        "peak_mb": round(peak_mb),
        "compressed_bytes": sum(Path(path).stat().st_size for path in files),
        **{name: value for name, value in result.items() if name not in ("frames", "files")},
        "files": len(files),
    }


def compare(sent: Path, captures: Sequence[str]) -> dict[str, Any]:
    """Every line of these captures against what the venue noted."""
    wrong: list[str] = []
    lines = tail = 0
    notes = sorted(sent.glob("*.sent"))
    ends = dict(line.split(" ", 1) for line in _noted(sent / "ends.txt"))
    pace = _Pace()
    stored = list(_connections(captures, pace))
    if len(stored) > len(notes):
        wrong.append(f"{len(stored)} connections in the captures, {len(notes)} at the venue")
    for note, received in zip(notes, stored, strict=False):
        said = note.read_bytes()
        lines += len(received) // DIGEST_BYTES
        if not said.startswith(received):
            wrong.append(f"connection {note.stem}: lines differ from what was sent")
        missing = (len(said) - len(received)) // DIGEST_BYTES
        if missing and ends.get(str(int(note.stem))) == "close":
            wrong.append(
                f"connection {note.stem}: closed in order, and {missing} lines are missing"
            )
        tail += missing
    return {
        "wrong": wrong,
        "lines_compared": lines,
        "sent_but_never_received": tail,
        "lines_per_s": round(lines / pace.span_s) if pace.span_s else 0,
        "busiest_second": max(pace.seconds.values(), default=0),
    }


def faults_of(sent: Path) -> dict[str, int]:
    """What the venue did wrong, and how often."""
    found = Counter(_noted(sent / "faults.txt"))
    return {fault: found[fault] for fault in FAULTS}


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a table of two columns."""
    rows = {
        "date": result["date"],
        "seeds (venue, waits between connections)": ", ".join(map(str, result["seeds"])),
        "length": f"{result['seconds']:,.0f} s",
        "rate asked for": f"{result['rate_asked']:,.0f} frames/s",
        "lines received and stored": f"{result['received']:,}, {result['lines_per_s']:,} a second",
        "in the busiest second": f"{result['busiest_second']:,}",
        "lines compared": f"{result['lines_compared']:,}",
        "that differ, or are missing": "; ".join(result["wrong"]) or "none",
        "lost for want of memory or disk": f"{result['lost']:,}",
        "sent into connections that were cut, never received": (
            f"{result['sent_but_never_received']:,}"
        ),
        **{f"fault: {FAULTS[fault]}": count for fault, count in result["faults"].items()},
        "connections": result["connections"],
        "gaps, duplicates, broken books, unreadable frames seen": ", ".join(
            f"{result[name]:,}" for name in ("gaps", "duplicates", "broken_books", "unreadable")
        ),
        "topics asked for anew": result["resyncs"],
        "text, compressed, files": (
            f"{result['text_bytes'] / _MB:,.0f} MB, {result['compressed_bytes'] / _MB:,.0f} MB, "
            f"{result['files']}"
        ),
        "recorder's share of a core": f"{result['recorder_cpu_share']:.2f}",
        "recorder's peak memory (before the run)": (
            f"{result['peak_mb']:,} MB ({result['idle_mb']:,} MB)"
        ),
        "most frames that waited": f"{result['deepest_queue']:,}",
    }
    lines = ["| what | figure |", "|---|---|", *(f"| {name} | {rows[name]} |" for name in rows)]
    return "\n".join(lines)


def _noted(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


class _Pace:
    """How fast lines came, by their receive times."""

    def __init__(self) -> None:
        self.seconds: Counter[int] = Counter()
        self.first = self.last = 0

    def note(self, receive_ns: int) -> None:
        self.seconds[receive_ns // SECOND_NS] += 1
        self.first = self.first or receive_ns
        self.last = receive_ns

    @property
    def span_s(self) -> float:
        return (self.last - self.first) / SECOND_NS


def _connections(captures: Sequence[str], pace: _Pace) -> Iterator[bytes]:
    """The digests of each connection's lines, one after the other."""
    held: bytearray | None = None
    for path in captures:
        for stamp, frame in _lines(path):
            if not frame.startswith(b'{"l2":'):
                pace.note(int(stamp))
                if held is not None:
                    held += digest(frame)
            elif frame.startswith(b'{"l2":"connect"'):
                if held is not None:
                    yield bytes(held)
                held = bytearray()
    if held is not None:
        yield bytes(held)


def _lines(path: str) -> Iterator[tuple[bytes, bytes]]:
    """(time, frame) of each line; garbage may hold any byte but a newline."""
    for block in read_blocks(path):
        for line in block.data.split(b"\n")[:-1]:
            stamp, _, frame = line.partition(b" ")
            yield stamp, frame


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _serve(folder: Path, rate: float, fault_s: float, address: Any) -> None:
    asyncio.run(Venue(folder, rate, fault_s, SEED).serve(address))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=10_000.0, help="frames a second")
    parser.add_argument("--fault-every", type=float, default=2.0, metavar="S")
    parser.add_argument("--file-every", type=float, default=60.0, metavar="S")
    parser.add_argument("--json", action="store_true", help="figures for machines, not a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(
            Path(folder), options.seconds, options.rate, options.fault_every, options.file_every
        )
    print(json.dumps(result, indent=1) if options.json else markdown(result))
    return int(bool(result["wrong"] or result["lost"]))


if __name__ == "__main__":
    sys.exit(main())
