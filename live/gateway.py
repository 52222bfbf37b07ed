"""The seam between the core and a venue: what a codec does, and the plain codec of simulated venues.

A codec is pure: it turns requests into the venue's messages and the venue's messages into evidence, and
knows no socket and no clock. So the log keeps what the venue said, in the venue's own bytes, and a repeated
run reads it by the same code.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from live.messages import Evidence, RequestBody


class Codec(Protocol):
    """Reads a venue's messages. Times are receive times, epoch ns."""

    def evidence(self, now_ns: int, frame: bytes) -> list[Evidence]:
        """What a frame of the private stream says; empty for control frames.

        What cannot be read is `messages.Refused`, never an exception.
        """
        ...

    def answer(self, now_ns: int, request: RequestBody, body: bytes) -> list[Evidence]:
        """What the answer to a request says."""
        ...


class PlainCodec:
    """The codec of paper and simulations: messages are lists of evidence as JSON."""

    def __init__(self) -> None:
        self._decoder = msgspec.json.Decoder(list[Evidence])

    def evidence(self, now_ns: int, frame: bytes) -> list[Evidence]:
        """The evidence itself."""
        return self._decoder.decode(frame)

    def answer(self, now_ns: int, request: RequestBody, body: bytes) -> list[Evidence]:
        """The evidence itself."""
        return self._decoder.decode(body)

    def encode(self, evidence: list[Evidence]) -> bytes:
        """A message that `evidence` and `answer` read back."""
        return msgspec.json.encode(evidence)
