"""Replay a run from its log and compare every effect: how an incident is examined (`l2 live --again`).

`replay` compares; `LoggedCore` is the core of a worker's run, begun as it was from the records beside its log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from live import log
from live.bybit import account
from live.bybit.codec import BybitCodec
from live.core import Core
from live.decisions import Decision
from live.gateway import PlainCodec
from live.history import saved_history
from live.log import Body, Checkpoint, Header, LogError, Position
from live.messages import Append, Effect, InForce, Input, PublicFrame
from live.restoration import checkpoint_of, state_of
from market.console import Result
from market.instruments import BUILT_IN
from market.settings import Settings
from models_registry.manifest import Bundle, Pointer, bundles_folder
from models_registry.pointed import find

T = TypeVar("T", bound=Body)


class Replayable(Protocol):
    """A core that starts as a run did and handles its inputs; a bundle that comes into force it loads."""

    def begin(self, now_ns: int) -> Sequence[Effect]: ...

    def step(self, now_ns: int, given: Input) -> Sequence[Effect]: ...

    def checkpoint(self) -> Checkpoint: ...


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay came to; ``difference`` is the first one in words, empty when there is none."""

    run: str
    segments: int
    inputs: int
    effects: int
    difference: str = ""


def replay(folder: Path, segment: int, make: Callable[[Header], Replayable]) -> Replayed:
    """Replay the run that a segment (0: the last) is of, from its beginning to its end or a difference.

    ``make`` builds the core from the first header of the run. LogError for a log that cannot be read.
    """
    headers = {number: log.header_of(path) for number, path in log.segments(folder).items()}
    run, mine = run_of(folder, headers, segment)
    comparison = _Comparison(make(headers[mine[0]]))
    for block in blocks_of(folder, mine):
        for index, (now_ns, body) in enumerate(block.records):
            place = f"segment {block.segment}, record {index} of the block at byte {block.offset}"
            if difference := comparison.take(now_ns, body):
                found = f"{place}, {now_ns}: {difference}"
                return _told(run, mine, comparison, found)
    return _told(run, mine, comparison, "")


def run_of(folder: Path, headers: Mapping[int, Header], segment: int = 0) -> tuple[str, list[int]]:
    """The run that a segment (0: the last) is of, and all its segments. LogError where there is none."""
    segment = segment or max(headers, default=0)
    if segment not in headers:
        raise LogError(f"{folder}: no segment {segment}; it has {', '.join(map(str, headers))}")
    run = headers[segment].run
    return run, [number for number, header in headers.items() if header.run == run]


def blocks_of(folder: Path, mine: Sequence[int]) -> Iterator[log.Block]:
    """The blocks of a run."""
    for block in log.read(folder, Position(mine[0])):
        if block.segment not in mine:
            return
        yield block


def _told(run: str, mine: Sequence[int], comparison: _Comparison, difference: str) -> Replayed:
    return Replayed(
        run=run,
        segments=len(mine),
        inputs=comparison.inputs,
        effects=comparison.effects,
        difference=difference,
    )


class _Comparison:
    """Feeds inputs to a core, and holds what it makes of them against what the log has."""

    def __init__(self, core: Replayable) -> None:
        self._core = core
        self._made: deque[Effect] = deque()
        self._begins_ns: int | None = None  #: until the core has begun
        self._begun = self._frame = False  #: the last input was a public frame
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
        # Frames that were taken together are logged before what any of them made.
        together = self._frame and isinstance(body, PublicFrame)
        if self._made and not together:
            return f"the log has no more effects, now {self._made[0]}"
        self._frame = isinstance(body, PublicFrame)
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


# -- a run of the worker ---------------------------------------------------------------------------


class _Model(NamedTuple):
    pointer: Pointer
    bundle: Bundle


class LoggedCore:
    """A core that begins and goes on as the run of a header did, from its records."""

    def __init__(
        self,
        folder: Path,
        header: Header,
        on_decision: Callable[[Decision, tuple[int, ...]], None] | None = None,
    ) -> None:
        self._header, self._folder = header, folder
        settings = self.settings = msgspec.json.decode(header.settings, type=Settings)
        self._root = folder.parents[2]
        found = log.segments(folder).items()
        self._begins = Position(next(n for n, p in found if log.header_of(p).run == header.run))
        if unlisted := header.instruments.keys() - BUILT_IN.keys():
            raise LogError(
                f"{folder}: limits of {', '.join(sorted(unlisted))} are not known; add the symbol to "
                "market/instruments.py"
            )
        instruments = {
            symbol: msgspec.structs.replace(BUILT_IN[symbol], tick=tick, lot=lot)
            for symbol, (tick, lot) in header.instruments.items()
        }
        self._instruments = instruments
        paper = header.venue == "paper"
        traded = {symbol: instruments[symbol] for symbol in settings.market.symbols}
        self.model = self._model(self._first(InForce))
        self.core = Core(
            settings,
            instruments,
            model=self.model,
            codec=PlainCodec() if paper else BybitCodec(instruments),
            name=header.venue,
            at_venue=not paper,
            state=state_of(header.checkpoint),
            on_decision=on_decision,
            check=partial(
                account.problems, settings=settings, instruments=traded, source=settings.source
            ),
        )

    def begin(self, now_ns: int) -> list[Effect]:
        run, depth = self._header.run, self.settings.market.book_depth
        history = saved_history(self._root, run, self._instruments, depth)
        record = self._first(Append)
        return [record, *self.core.begin(record.time_ns, history)]

    def step(self, now_ns: int, given: Input) -> list[Effect]:
        if isinstance(given, InForce):
            self.model = self._model(given)
            self.core.load(self.model)
        return self.core.step(now_ns, given)

    def checkpoint(self) -> Checkpoint:
        return checkpoint_of(self.core.snapshot())

    def _first(self, kind: type[T]) -> T:
        """The run's first record of a kind."""
        for block in log.read(self._folder, self._begins):
            for _, body in block.records:
                if isinstance(body, Header):
                    mine = body.run == self._header.run
                elif mine and isinstance(body, kind):
                    return body
        raise LogError(f"{self._folder}: run {self._header.run} ended before it began")

    def _model(self, force: InForce) -> _Model:
        home = bundles_folder(self._root, force.name)
        pointer, bundle = find(home, force.manifest_sha256)
        return _Model(msgspec.structs.replace(pointer, version=force.version), bundle)


def replay_last(folder: Path, as_json: bool) -> Result:
    """Replay the last run of a log folder; LogError when it cannot be read."""
    folder = folder.resolve()
    found = replay(folder, 0, lambda header: LoggedCore(folder, header))
    if not as_json:
        same = found.difference or "the same effects, byte for byte"
        print(f"{found.run}: {found.inputs:,} inputs, {found.effects:,} effects: {same}")
    return msgspec.to_builtins(found)  # type: ignore[no-any-return]
