"""Proof of the recorder under load: a local venue that misbehaves, and every line compared.

    python -m live.soak --seconds 600 --rate 10000

The venue runs in a process of its own and notes a digest of each message in the order it was sent,
a connection a file. Afterwards the captures are read, and the lines of each connection must be that
sequence, without a hole or a change, from its first message on. What may be missing is only the tail
of a connection that was aborted in the middle of a message, or that the recorder itself closed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from live.clock import SteadyClock
from live.feed import Backoff, WireFeed
from live.recording import Recording
from market.capture import read_blocks
from market.instruments import BUILT_IN
from market.settings import Settings

TOPICS: Final = tuple(
    f"orderbook.{depth}.{symbol}" for depth in (50, 200) for symbol in ("BTCUSDT", "ETHUSDT")
)
FAULTS: Final = (
    "gap",
    "duplicate",
    "reset",
    "ghost",
    "silence",
    "garbage",
    "large",
    "close",
    "abort",
)
_LEVELS: Final = 30
_DIGEST: Final = 8
_BATCH: Final = 500
_LARGE: Final = 2 << 20


class Venue:
    """A public endpoint that sends book frames at a rate, with a fault every ``fault_s`` seconds."""

    def __init__(self, folder: Path, rate: float, fault_s: float, seed: int) -> None:
        self.folder, self.rate, self.fault_s = folder, rate, fault_s
        self.random = random.Random(seed)
        self.connections = 0
        self.faults = 0

    async def serve(self, address: Any) -> None:
        from websockets.asyncio.server import serve

        async with serve(self._connected, "127.0.0.1", 0, compression=None) as server:
            address.put(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await asyncio.get_running_loop().create_future()

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


class _Session:
    """One connection: requests are answered beside the stream."""

    def __init__(self, venue: Venue, socket: Any, log: Any) -> None:
        self.venue, self.socket, self.log = venue, socket, log
        self.lock = asyncio.Lock()
        self.subscribed = asyncio.Event()
        self.updates = dict.fromkeys(TOPICS, 0)

    async def say(self, message: bytes) -> None:
        async with self.lock:
            self.log.write(digest(message))
            await self.socket.send(message, text=True)

    async def answer(self) -> None:
        async for text in self.socket:
            request = msgspec.json.decode(text)
            reply = {"success": True, "ret_msg": "", "conn_id": "1", "op": request["op"]}
            await self.say(msgspec.json.encode(reply))
            if request["op"] == "subscribe":
                for topic in request["args"]:
                    await self.snapshot(topic)
                self.subscribed.set()

    async def snapshot(self, topic: str, update_id: int | None = None) -> None:
        """The book anew; ``update_id`` 1 is what a restarted service sends."""
        self.updates[topic] = update_id or self.updates[topic] + 1
        await self.say(self._frame(topic, "snapshot"))

    async def send_frames(self) -> None:
        from websockets.exceptions import ConnectionClosed

        await self.subscribed.wait()
        venue = self.venue
        start = time.monotonic()
        sent, fault_at = 0, venue.fault_s
        try:
            while True:
                passed = time.monotonic() - start
                # In batches: a venue that cannot keep its rate still has its faults.
                for _ in range(min(int(passed * venue.rate) - sent, _BATCH)):
                    topic = TOPICS[sent % len(TOPICS)]
                    self.updates[topic] += 1
                    await self.say(self._frame(topic, "delta"))
                    sent += 1
                if passed >= fault_at:
                    fault_at = passed + venue.fault_s
                    fault = FAULTS[venue.faults % len(FAULTS)]
                    venue.faults += 1
                    if not await self._fault(fault):
                        return
                    if fault == "silence":
                        start += 1.5
                await asyncio.sleep(0.002)
        except ConnectionClosed:
            return

    async def _fault(self, fault: str) -> bool:
        """Do one wrong thing; False when the connection ends by it."""
        topic = self.venue.random.choice(TOPICS)
        if fault == "gap":
            self.updates[topic] += 3
        elif fault == "duplicate":
            await self.say(self._frame(topic, "delta"))
        elif fault == "reset":
            await self.snapshot(topic, 1)
        elif fault == "ghost":
            self.updates[topic] += 1
            await self.say(self._frame(topic, "delta", [["99999999.0", "1"]]))
        elif fault == "silence":
            await asyncio.sleep(1.5)
        elif fault == "garbage":
            await self.say(self.venue.random.randbytes(200))
        elif fault == "large":
            await self.say(b'{"topic":"big","fill":"%b"}' % (b"x" * _LARGE))
        elif fault == "close":
            await self.socket.close()
            return False
        else:
            # The head of a message whose rest never comes.
            self.socket.transport.write(b"\x81\x7e\x40\x00half a message")
            await asyncio.sleep(0.05)
            self.socket.transport.abort()
            return False
        return True

    def _frame(self, topic: str, kind: str, bids: list[list[str]] | None = None) -> bytes:
        u = self.updates[topic]
        low = bids or [[f"{50_000 - n}.0", f"{(u + n) % 997 + 1}.001"] for n in range(_LEVELS // 2)]
        high = [[f"{50_001 + n}.0", f"{(u * 7 + n) % 997 + 1}.001"] for n in range(_LEVELS // 2)]
        data = {"s": topic.rpartition(".")[2], "b": low, "a": high, "u": u, "seq": u}
        now = time.time_ns() // 1_000_000
        return msgspec.json.encode(
            {"topic": topic, "type": kind, "ts": now, "data": data, "cts": now}
        )


def digest(message: bytes) -> bytes:
    """What a message is known by; a newline in it is a space, as in captures."""
    return hashlib.blake2b(message.replace(b"\n", b" "), digest_size=_DIGEST).digest()


def soak(root: Path, seconds: float, rate: float, fault_s: float = 2.0) -> dict[str, Any]:
    """Record from a misbehaving venue for so long and compare; ``wrong`` is empty when all is well."""
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
            backoff=Backoff(0.05, 0.5),
        )
        recording = Recording(
            Settings(root=str(root / "lake")), feed, list(TOPICS), BUILT_IN, clock, _say
        )
        began, cpu = time.monotonic(), time.process_time()
        result = recording.run()
        took, used = time.monotonic() - began, time.process_time() - cpu
    finally:
        process.terminate()
        process.join(30)
    found = compare(sent, result["files"])
    return {
        **found,
        "seconds": round(took, 1),
        "frames_per_s": round(result["received"] / took),
        "recorder_cpu_share": round(used / took, 2),
        **{name: value for name, value in result.items() if name not in ("frames", "files")},
        "files": len(result["files"]),
    }


def compare(sent: Path, captures: Sequence[str]) -> dict[str, Any]:
    """Every line of these captures against what the venue noted."""
    wrong: list[str] = []
    lines = tail = 0
    notes = sorted(sent.glob("*.sent"))
    stored = list(_connections(captures))
    if len(stored) > len(notes):
        wrong.append(f"{len(stored)} connections in the captures, {len(notes)} at the venue")
    for note, received in zip(notes, stored, strict=False):
        said = note.read_bytes()
        lines += len(received) // _DIGEST
        if not said.startswith(received):
            wrong.append(f"connection {note.stem}: lines differ from what was sent")
        tail += (len(said) - len(received)) // _DIGEST
    return {"wrong": wrong, "lines_compared": lines, "sent_but_never_received": tail}


def _connections(captures: Sequence[str]) -> Iterator[bytes]:
    """The digests of each connection's lines, one after the other."""
    held: bytearray | None = None
    for path in captures:
        for frame in _frames(path):
            if not frame.startswith(b'{"l2":'):
                if held is not None:
                    held += digest(frame)
            elif frame.startswith(b'{"l2":"connect"'):
                if held is not None:
                    yield bytes(held)
                held = bytearray()
    if held is not None:
        yield bytes(held)


def _frames(path: str) -> Iterator[bytes]:
    """The lines of a capture without their times; garbage may hold any byte but a newline."""
    for block in read_blocks(path):
        for line in block.data.split(b"\n")[:-1]:
            yield line.partition(b" ")[2]


def _serve(folder: Path, rate: float, fault_s: float, address: Any) -> None:
    asyncio.run(Venue(folder, rate, fault_s, 1).serve(address))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=10_000.0, help="frames a second")
    parser.add_argument("--fault-every", type=float, default=2.0, metavar="S")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), options.seconds, options.rate, options.fault_every)
    print(json.dumps(result, indent=1))
    return int(bool(result["wrong"] or result["lost"]))


if __name__ == "__main__":
    sys.exit(main())
