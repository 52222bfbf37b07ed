"""Repeat a run from its log and compare every effect: how an incident is examined (`l2 live --again`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from live import log
from live.log import Body, Checkpoint, Header, LogError, Position
from live.messages import Effect, Input


class Repeats(Protocol):
    """A core that starts as a run did and handles its inputs; a bundle that comes into force it loads."""

    def begin(self, now_ns: int) -> Sequence[Effect]: ...

    def step(self, now_ns: int, given: Input) -> Sequence[Effect]: ...

    def checkpoint(self) -> Checkpoint: ...


class Repeated(msgspec.Struct, frozen=True, kw_only=True):
    """What a repetition came to; ``difference`` is the first one in words, empty when there is none."""

    run: str
    segments: int
    inputs: int
    effects: int
    difference: str = ""


def again(folder: Path, segment: int, make: Callable[[Header], Repeats]) -> Repeated:
    """Repeat the run that a segment (0: the last) is of, from its beginning to its end or a difference.

    ``make`` builds the core from the first header of the run. LogError for a log that cannot be read.
    """
    headers = {number: log.header_of(path) for number, path in log.segments(folder).items()}
    segment = segment or max(headers, default=0)
    if segment not in headers:
        raise LogError(f"{folder}: no segment {segment}; it has {', '.join(map(str, headers))}")
    run = headers[segment].run
    mine = [number for number, header in headers.items() if header.run == run]
    repetition = _Repetition(make(headers[mine[0]]))
    for block in log.read(folder, Position(mine[0])):
        if block.segment not in mine:
            break
        for index, (now_ns, body) in enumerate(block.records):
            place = f"segment {block.segment}, record {index} of the block at byte {block.offset}"
            if difference := repetition.take(now_ns, body):
                found = f"{place}, {now_ns}: {difference}"
                return _told(run, mine, repetition, found)
    return _told(run, mine, repetition, "")


def _told(run: str, mine: Sequence[int], repetition: _Repetition, difference: str) -> Repeated:
    return Repeated(
        run=run,
        segments=len(mine),
        inputs=repetition.inputs,
        effects=repetition.effects,
        difference=difference,
    )


class _Repetition:
    """Feeds inputs to a core, and holds what it makes of them against what the log has."""

    def __init__(self, core: Repeats) -> None:
        self._core = core
        self._made: deque[Effect] = deque()
        self._begins_ns: int | None = None  #: until the core has begun
        self._begun = False
        self.inputs = self.effects = 0

    def take(self, now_ns: int, body: Body) -> str:
        """Take the next record; the difference in words, if there is one."""
        if isinstance(body, Header) and not self._begun:
            self._begun, self._begins_ns = True, now_ns
            return ""
        if self._begins_ns is not None:  # what it makes of that is dated with it
            begins_ns = now_ns if isinstance(body, Effect) else self._begins_ns
            self._begins_ns = None
            self._made.extend(self._core.begin(begins_ns))
        if isinstance(body, Effect):
            self.effects += 1
            made = self._made.popleft() if self._made else None
            return "" if _bytes(made) == _bytes(body) else f"the log has {body}, now {made}"
        if self._made:
            return f"the log has no more effects, now {self._made[0]}"
        if isinstance(body, Input):
            self.inputs += 1
            self._made.extend(self._core.step(now_ns, body))
        elif (ours := self._core.checkpoint()) != body.checkpoint:
            sections = body.checkpoint.sections
            names = [name for name, state in ours.sections.items() if sections.get(name) != state]
            return f"another checkpoint: {', '.join(names)}"
        return ""


def _bytes(effect: Effect | None) -> bytes:
    return msgspec.msgpack.encode(effect)
