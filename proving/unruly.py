"""A local venue that misbehaves on purpose, and keeps account of all it sent.

It sends book frames at a rate, and does one wrong thing after the other. What silences and lost
connections hold back comes as a burst afterwards, so that the rate holds over the whole of a run.
The account is a folder: a file a connection with the digest of each message in the order sent, how
each connection ended, and every fault.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from websockets.protocol import State

TOPICS: Final = tuple(
    f"orderbook.{depth}.{symbol}" for depth in (50, 200) for symbol in ("BTCUSDT", "ETHUSDT")
)
#: What goes wrong, and what the venue then does.
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
#: Ticks from the touch within which levels change, so that no book outgrows its topic.
_DEPTH: Final = 50
#: Level lists rendered once, of which a frame takes the next one: so many that a compressor, which
#: looks back two megabytes, has forgotten one when it comes again.
_VARIANTS: Final = 5003
#: Messages written at once at most, so that faults keep their times when the venue is behind.
_BATCH: Final = 500
_LARGE: Final = 2 << 20
_BUFFERED: Final = 1 << 20
_SILENCE_S: Final = 1.5
_SLEEP_S: Final = 0.002
_NOT_BY_US: Final = "by the other side"


def digest(message: bytes) -> bytes:
    """What a message is known by; a newline in it is a space, as in captures."""
    return hashlib.blake2b(message.replace(b"\n", b" "), digest_size=DIGEST_BYTES).digest()


class Venue:
    """A public endpoint on loopback: ``rate`` frames a second, a fault every ``fault_s`` seconds."""

    def __init__(self, folder: Path, rate: float, fault_s: float, seed: int) -> None:
        self.folder, self.rate, self.fault_s = folder, rate, fault_s
        self.random = random.Random(seed)
        self.connections = self.sent = self.faults = 0
        self.start = self.fault_at = 0.0  #: monotonic seconds; the start is the first subscription
        self._variants = [_rendered(self.random) for _ in range(_VARIANTS)]

    async def serve(self, address: Any) -> None:
        """Put the endpoint's address into a queue and serve until cancelled."""
        from websockets.asyncio.server import serve

        async with serve(self._connected, "127.0.0.1", 0, compression=None) as server:
            address.put(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await asyncio.get_running_loop().create_future()

    def due(self) -> int:
        """How many frames are to be sent now."""
        return int((time.monotonic() - self.start) * self.rate) - self.sent

    def levels(self, number: int) -> bytes:
        return self._variants[number % _VARIANTS]

    def note(self, name: str, text: str) -> None:
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
        self.note("ends.txt", f"{number} {session.ended}")


class _Session:
    """One connection: requests are answered beside the stream."""

    def __init__(self, venue: Venue, socket: Any, log: Any) -> None:
        self.venue, self.socket, self.log = venue, socket, log
        self.subscribed = asyncio.Event()
        self.updates = dict.fromkeys(TOPICS, 0)
        self.ended = _NOT_BY_US

    async def answer(self) -> None:
        """Answer requests as they come, between two batches of frames."""
        async for text in self.socket:
            request = msgspec.json.decode(text)
            reply = {"success": True, "ret_msg": "", "conn_id": "1", "op": request["op"]}
            self.say(msgspec.json.encode(reply))
            if request["op"] == "subscribe":
                for topic in request["args"]:
                    self.say(self._frame(topic, "snapshot"))
                self.subscribed.set()

    def say(self, *messages: bytes) -> None:
        """Note messages and write them, as the server's frames of text that they are."""
        if self.is_open():
            self.log.write(b"".join(map(digest, messages)))
            self.socket.transport.write(b"".join(map(_wire, messages)))

    def is_open(self) -> bool:
        """Whether anything can still be said."""
        return self.ended == _NOT_BY_US and bool(self.socket.state is State.OPEN)

    async def send_frames(self) -> None:
        await self.subscribed.wait()
        venue = self.venue
        if not venue.start:
            venue.start = time.monotonic()
            venue.fault_at = venue.start + venue.fault_s
        while self.is_open():
            count = min(venue.due(), _BATCH)
            self.say(*(self._next() for _ in range(count)))
            if time.monotonic() >= venue.fault_at:
                venue.fault_at = time.monotonic() + venue.fault_s
                await self._fault(list(FAULTS)[venue.faults % len(FAULTS)])
            await asyncio.sleep(0 if venue.due() > _BATCH else _SLEEP_S)
            while self.is_open() and self.socket.transport.get_write_buffer_size() > _BUFFERED:
                await asyncio.sleep(_SLEEP_S)

    async def _fault(self, fault: str) -> None:
        """Do one wrong thing."""
        self.venue.faults += 1
        self.venue.note("faults.txt", fault)
        topic = self.venue.random.choice(TOPICS)
        if fault == "gap":
            self.updates[topic] += 3
        elif fault == "duplicate":
            self.updates[topic] -= 1
            self.say(self._frame(topic, "delta"))
        elif fault == "reset":
            self.updates[topic] = 0
            self.say(self._frame(topic, "snapshot"))
        elif fault == "ghost":
            self.say(self._frame(topic, "delta", b'"b":[["99999999.0","1"]],"a":[]'))
        elif fault == "silence":
            await asyncio.sleep(_SILENCE_S)
        elif fault == "garbage":
            self.say(self.venue.random.randbytes(200))
        elif fault == "large":
            self.say(b'{"topic":"big","fill":"%b"}' % (b"x" * _LARGE))
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
        now = time.time_ns() // 1_000_000
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


def _rendered(dice: random.Random) -> bytes:
    """The lists of bids and asks of a frame of 30 levels near the touch."""
    bids, asks = (
        [
            [f"{50_000 + sign * away / 10:.1f}", f"{dice.expovariate(1.0):.3f}"]
            for away in sorted(dice.sample(range(1, _DEPTH), _LEVELS // 2))
        ]
        for sign in (-1, 1)
    )
    return msgspec.json.encode({"b": bids, "a": asks})[1:-1]


def _wire(message: bytes) -> bytes:
    """A whole unmasked text frame of the WebSocket protocol (RFC 6455, section 5.2)."""
    size = len(message)
    if size < 126:
        return b"\x81%c%b" % (size, message)
    if size < 1 << 16:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), message)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), message)
