"""Soak test of the recorder: a local venue that misbehaves, and every stored line compared.

    python -m proving.soak --seconds 600 --rate 10000

The venue runs in a process of its own and logs a digest of each message in the order sent, one file
per connection. Afterwards the captures are read: the lines of each connection must be that sequence,
without a gap or a change, from its first message on. Only the tail of a connection that was cut within
a message, or that the recorder itself closed, may be missing: it never arrived. Everything is written
to a temporary folder.

Book frames come at a fixed rate, faults one after the other. What silences and reconnects hold back
comes as a burst afterwards, so that the rate holds over the whole run.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from websockets.protocol import State

from live.clock import SteadyClock
from live.feed import Backoff, WireFeed
from live.market_recorder import Recorder
from market.console import say
from market.instruments import BUILT_IN
from market.settings import Settings
from market.units import MS_NS, SECOND_NS
from market.wire.capture import read_blocks

SEED: Final = 1
_BACKOFF_SEED: Final = 2
_MB: Final = 1e6

TOPICS: Final = tuple(
    f"orderbook.{depth}.{symbol}" for depth in (50, 200) for symbol in ("BTCUSDT", "ETHUSDT")
)
#: Faults of the venue, in the order in which they come.
FAULTS: Final = {
    "gap": "three frames of a topic are left out",
    "duplicate": "a frame is sent twice",
    "reset": "a snapshot with u = 1, as after a restart of the service",
    "ghost": "a level far across the book, which no frame takes away",
    "silence": "nothing for a second and a half",
    "garbage": "200 random bytes as a message",
    "large": "a message of 2 MB",
    "close": "the connection is closed",
    "abort": "the connection is cut within a message",
}
DIGEST_BYTES: Final = 8

_LEVELS: Final = 30
#: Levels change within so many ticks of the touch, so that no book outgrows its topic.
_DEPTH: Final = 50
#: Level lists, encoded once and used in turn: more than fit into a compressor's window of 2 MB, so
#: that it finds no repetition.
_VARIANTS: Final = 5003
#: Most messages in one write, so that faults keep their times when the venue is behind.
_BATCH: Final = 500
_LARGE: Final = 2 << 20
_BUFFERED: Final = 1 << 20
_SILENCE_S: Final = 1.5
_SLEEP_S: Final = 0.002
_BY_RECORDER: Final = "by the other side"


def soak(
    root: Path, seconds: float, rate: float, fault_s: float = 2.0, file_s: float = 60.0
) -> dict[str, Any]:
    """Record from the venue for so long, then compare; ``wrong`` in the result is empty if all is well.

    ``rate`` is in frames a second, ``fault_s`` the time between two faults; a capture file holds
    ``file_s``.
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
        recording = Recorder(
            Settings(root=str(root / "lake")),
            feed,
            list(TOPICS),
            BUILT_IN,
            clock,
            say,
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
    return {
        **compare(sent, files),
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
    """Compare every line of captures with the venue's log in the folder ``sent``."""
    wrong: list[str] = []
    lines = tail = 0
    logs = sorted(sent.glob("*.sent"))
    ends = dict(line.split(" ", 1) for line in _log_lines(sent / "ends.txt"))
    rates = _LineRates()
    stored = list(_connections(captures, rates))
    if len(stored) > len(logs):
        wrong.append(f"{len(stored)} connections in the captures, {len(logs)} at the venue")
    for log, received in zip(logs, stored, strict=False):
        digests = log.read_bytes()
        lines += len(received) // DIGEST_BYTES
        if not digests.startswith(received):
            wrong.append(f"connection {log.stem}: lines differ from what was sent")
        missing = (len(digests) - len(received)) // DIGEST_BYTES
        if missing and ends.get(str(int(log.stem))) == "close":
            wrong.append(f"connection {log.stem}: closed in order, and {missing} lines are missing")
        tail += missing
    return {
        "wrong": wrong,
        "lines_compared": lines,
        "sent_but_never_received": tail,
        "lines_per_s": round(lines / rates.span_s) if rates.span_s else 0,
        "busiest_second": max(rates.seconds.values(), default=0),
    }


def faults_of(sent: Path) -> dict[str, int]:
    """How often the venue committed each fault."""
    counts = Counter(_log_lines(sent / "faults.txt"))
    return {fault: counts[fault] for fault in FAULTS}


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


def _log_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


class _LineRates:
    """Lines per second, by their receive times."""

    def __init__(self) -> None:
        self.seconds: Counter[int] = Counter()
        self.first = self.last = 0

    def add(self, receive_ns: int) -> None:
        self.seconds[receive_ns // SECOND_NS] += 1
        self.first = self.first or receive_ns
        self.last = receive_ns

    @property
    def span_s(self) -> float:
        return (self.last - self.first) / SECOND_NS


def _connections(captures: Sequence[str], rates: _LineRates) -> Iterator[bytes]:
    """The digests of each connection's lines, concatenated."""
    digests: bytearray | None = None
    for path in captures:
        for stamp, frame in _lines(path):
            if not frame.startswith(b'{"l2":'):
                rates.add(int(stamp))
                if digests is not None:
                    digests += digest(frame)
            elif frame.startswith(b'{"l2":"connect"'):
                if digests is not None:
                    yield bytes(digests)
                digests = bytearray()
    if digests is not None:
        yield bytes(digests)


def _lines(path: str) -> Iterator[tuple[bytes, bytes]]:
    """(receive time, frame) of each line; frames of random bytes may hold any byte but a newline."""
    for block in read_blocks(path):
        for line in block.data.split(b"\n")[:-1]:
            stamp, _, frame = line.partition(b" ")
            yield stamp, frame


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _serve(folder: Path, rate: float, fault_s: float, address: Any) -> None:
    asyncio.run(FaultyVenue(folder, rate, fault_s, SEED).serve(address))


# -- the venue -------------------------------------------------------------------------------------


def digest(message: bytes) -> bytes:
    """Digest of a message; a newline in it counts as a space, as captures store it."""
    return hashlib.blake2b(message.replace(b"\n", b" "), digest_size=DIGEST_BYTES).digest()


class FaultyVenue:
    """A public endpoint on loopback: ``rate`` frames a second, a fault every ``fault_s`` seconds.

    The log is a ``folder``: a file per connection with the digest of each message in the order sent,
    ``ends.txt`` with how each connection ended, ``faults.txt`` with every fault.
    """

    def __init__(self, folder: Path, rate: float, fault_s: float, seed: int) -> None:
        self.folder, self.rate, self.fault_s = folder, rate, fault_s
        self.random = random.Random(seed)
        self.connections = self.sent = self.faults = 0
        self.start = self.fault_at = 0.0  #: monotonic seconds; the start is the first subscription
        self._variants = [_encoded_levels(self.random) for _ in range(_VARIANTS)]

    async def serve(self, address: Any) -> None:
        """Put the endpoint's address into a queue and serve until cancelled."""
        from websockets.asyncio.server import serve

        async with serve(self._connected, "127.0.0.1", 0, compression=None) as server:
            address.put(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await asyncio.get_running_loop().create_future()

    def due(self) -> int:
        """Number of frames that are due now."""
        return int((time.monotonic() - self.start) * self.rate) - self.sent

    def levels(self, number: int) -> bytes:
        """The level lists of a frame."""
        return self._variants[number % _VARIANTS]

    def log(self, name: str, text: str) -> None:
        """Append a line to a file of the log."""
        with (self.folder / name).open("a") as file:
            file.write(f"{text}\n")

    async def _connected(self, socket: Any) -> None:
        number, self.connections = self.connections, self.connections + 1
        with (self.folder / f"{number:06d}.sent").open("wb", buffering=0) as log:
            session = _Session(self, socket, log)
            answering = asyncio.create_task(session.answer())
            try:
                await session.send_frames()
            finally:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
        self.log("ends.txt", f"{number} {session.ended}")


class _Session:
    """One connection: requests are answered beside the stream of frames."""

    def __init__(self, venue: FaultyVenue, socket: Any, log: Any) -> None:
        self.venue, self.socket, self.log = venue, socket, log
        self.subscribed = asyncio.Event()
        self.updates = dict.fromkeys(TOPICS, 0)
        self.ended = _BY_RECORDER

    async def answer(self) -> None:
        """Respond to requests, between two batches of frames."""
        async for text in self.socket:
            request = msgspec.json.decode(text)
            reply = {"success": True, "ret_msg": "", "conn_id": "1", "op": request["op"]}
            self.send(msgspec.json.encode(reply))
            if request["op"] == "subscribe":
                for topic in request["args"]:
                    self.send(self._frame(topic, "snapshot"))
                self.subscribed.set()

    def send(self, *messages: bytes) -> None:
        """Log messages and write them as text frames, past the library, which would slow the sender."""
        if self.is_open():
            self.log.write(b"".join(map(digest, messages)))
            self.socket.transport.write(b"".join(map(_websocket_frame, messages)))

    def is_open(self) -> bool:
        """Whether the connection still takes messages."""
        return self.ended == _BY_RECORDER and bool(self.socket.state is State.OPEN)

    async def send_frames(self) -> None:
        """Send frames and faults as they come due, until the connection ends; waits when it backs up."""
        await self.subscribed.wait()
        venue = self.venue
        if not venue.start:
            venue.start = time.monotonic()
            venue.fault_at = venue.start + venue.fault_s
        while self.is_open():
            count = min(venue.due(), _BATCH)
            self.send(*(self._next() for _ in range(count)))
            if time.monotonic() >= venue.fault_at:
                venue.fault_at = time.monotonic() + venue.fault_s
                await self._fault(list(FAULTS)[venue.faults % len(FAULTS)])
            await asyncio.sleep(0 if venue.due() > _BATCH else _SLEEP_S)
            while self.is_open() and self.socket.transport.get_write_buffer_size() > _BUFFERED:
                await asyncio.sleep(_SLEEP_S)

    async def _fault(self, fault: str) -> None:
        """Commit one of `FAULTS`."""
        self.venue.faults += 1
        self.venue.log("faults.txt", fault)
        topic = self.venue.random.choice(TOPICS)
        if fault == "gap":
            self.updates[topic] += 3
        elif fault == "duplicate":
            self.updates[topic] -= 1
            self.send(self._frame(topic, "delta"))
        elif fault == "reset":
            self.updates[topic] = 0
            self.send(self._frame(topic, "snapshot"))
        elif fault == "ghost":
            self.send(self._frame(topic, "delta", b'"b":[["99999999.0","1"]],"a":[]'))
        elif fault == "silence":
            await asyncio.sleep(_SILENCE_S)
        elif fault == "garbage":
            self.send(self.venue.random.randbytes(200))
        elif fault == "large":
            self.send(b'{"topic":"big","fill":"%b"}' % (b"x" * _LARGE))
        elif fault == "close":
            if self.is_open():
                self.ended = "close"
                await self.socket.close()
        elif self.is_open():
            self.ended = "abort"
            self.socket.transport.write(b"\x81\x7e\x40\x00half a message")
            await asyncio.sleep(0.05)
            self.socket.transport.abort()

    def _next(self) -> bytes:
        topic = TOPICS[self.venue.sent % len(TOPICS)]
        self.venue.sent += 1
        return self._frame(topic, "delta")

    def _frame(self, topic: str, kind: str, levels: bytes = b"") -> bytes:
        self.updates[topic] += 1
        u = self.updates[topic]
        now = time.time_ns() // MS_NS
        return (
            b'{"topic":"%b","type":"%b","ts":%d,"data":{"s":"%b",%b,"u":%d,"seq":%d},"cts":%d}'
            % (
                topic.encode(),
                kind.encode(),
                now,
                topic.rpartition(".")[2].encode(),
                levels or self.venue.levels(u),
                u,
                u,
                now,
            )
        )


def _encoded_levels(rng: random.Random) -> bytes:
    """JSON of the bids and asks of a frame of 30 levels near the touch."""
    bids, asks = (
        [
            [f"{50_000 + sign * away / 10:.1f}", f"{rng.expovariate(1.0):.3f}"]
            for away in sorted(rng.sample(range(1, _DEPTH), _LEVELS // 2))
        ]
        for sign in (-1, 1)
    )
    return msgspec.json.encode({"b": bids, "a": asks})[1:-1]


def _websocket_frame(message: bytes) -> bytes:
    """A whole unmasked text frame of the WebSocket protocol (RFC 6455, section 5.2)."""
    size = len(message)
    if size < 126:
        return b"\x81%c%b" % (size, message)
    if size < 1 << 16:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), message)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), message)


def main() -> int:
    """Run the soak; 1 when a line differs or was lost."""
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
