"""`l2 live --again LOG`: the core of a run, begun as it was, for `live.again`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from live import log
from live.again import again
from live.bybit import account
from live.bybit.codec import BybitCodec
from live.core import Core
from live.gateway import PlainCodec
from live.history import saved_history
from live.log import Body, Checkpoint, Header, LogError
from live.messages import Append, Command, Effect, InForce, Input
from live.restoration import checkpoint_of, state_of
from market.console import Result
from market.instruments import BUILT_IN
from market.settings import Settings
from models_registry.manifest import (
    MANIFEST_FILE,
    Bundle,
    BundleError,
    Pointer,
    bundles_folder,
    sha256,
)

T = TypeVar("T", bound=Body)


class _Model(NamedTuple):
    pointer: Pointer
    bundle: Bundle


class Repetition:
    """A core that begins and goes on as the run of a header did, from its records."""

    def __init__(self, folder: Path, header: Header) -> None:
        self._header, self._folder, self._flatten = header, folder, True
        settings = self._settings = msgspec.json.decode(header.settings, type=Settings)
        self._root = folder.parents[2]
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
        self.core = Core(
            settings,
            instruments,
            model=self._model(self._first(InForce)),
            codec=PlainCodec() if paper else BybitCodec(instruments),
            name=header.venue,
            at_venue=not paper,
            state=state_of(header.checkpoint),
            check=partial(
                account.problems, settings=settings, instruments=traded, source=settings.source
            ),
        )

    def begin(self, now_ns: int) -> list[Effect]:
        run, depth = self._header.run, self._settings.market.book_depth
        history = saved_history(self._root, run, self._instruments, depth)
        record = self._first(Append)
        return [record, *self.core.begin(record.time_ns, history)]

    def step(self, now_ns: int, given: Input) -> list[Effect]:
        match given:
            case InForce():
                self.core.load(self._model(given))
            case Command(command="stop"):
                self._flatten = "flatten" in given.limits
        if self.core.ended:  # the shell's last call
            self.core.finish(self._flatten)
        return self.core.step(now_ns, given)

    def checkpoint(self) -> Checkpoint:
        return checkpoint_of(self.core.snapshot())

    def _first(self, kind: type[T]) -> T:
        """The run's first record of a kind."""
        for block in log.read(self._folder):
            for _, body in block.records:
                if isinstance(body, Header):
                    mine = body.run == self._header.run
                elif mine and isinstance(body, kind):
                    return body
        raise LogError(f"{self._folder}: run {self._header.run} ended before it began")

    def _model(self, force: InForce) -> _Model:
        home = bundles_folder(self._root, force.name)
        for manifest in sorted(home.glob(f"*/{MANIFEST_FILE}")):
            if sha256(manifest.read_bytes()) == force.manifest_sha256:
                pointer = Pointer(
                    name=force.name,
                    version=force.version,
                    folder=manifest.parent.name,
                    manifest_sha256=force.manifest_sha256,
                )
                return _Model(pointer, Bundle.load(manifest.parent, force.manifest_sha256))
        raise BundleError(
            f"{home}: version {force.version} of the log is not there; promote it once more, so that "
            "the resolver fetches it"
        )


def repeat(folder: Path, as_json: bool) -> Result:
    """Repeat the last run of a log folder; LogError when it cannot be read."""
    folder = folder.resolve()
    found = again(folder, 0, lambda header: Repetition(folder, header))
    if not as_json:
        same = found.difference or "the same effects, byte for byte"
        print(f"{found.run}: {found.inputs:,} inputs, {found.effects:,} effects: {same}")
    return msgspec.to_builtins(found)  # type: ignore[no-any-return]
