"""How a worker of a seed is set up, and how it comes back: settings, log, core; its last comparison."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from live import restoration
from live.bybit.codec import BybitCodec
from live.core import Core, CoreState
from live.log import Checkpoint, Header, LogWriter, segments
from live.replay import replay
from live.restoration import checkpoint_of, state_of
from market.instruments import Instrument
from market.settings import Desk, Execution, Market, Risk, Settings
from market.settings import Live as LiveSettings
from market.units import E8, MS_NS
from market.wire.topics import symbol_topics
from proving.sandbox.accounts import Client
from proving.sandbox.virtual import VirtualVenue
from proving.torture.decider import RandomModel, SecondAsFeature
from proving.torture.disk import Disk
from proving.torture.network import Heap, Network
from proving.torture.process import Observer, Process

#: Space that the log allocates ahead: little, for it is read back at every sync.
RESERVE_BYTES: Final = 1 << 14
ALGORITHMS: Final = (
    *("passive", "passive", "passive", "iceberg", "iceberg"),
    *("market", "adaptive", "twap", "router"),
)


class Terms(msgspec.Struct, kw_only=True):
    """What a seed draws of the worker: its settings, its model, how it reaches the venue."""

    seed: int
    settings: Settings
    instruments: dict[str, Instrument]
    has_trade_socket: bool
    sync_ns: int

    @property
    def opening_e8(self) -> int:
        return round(self.settings.execution.capital_usdt * E8)

    @property
    def limit_usdt(self) -> float:
        return self.settings.risk.position_usdt

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(
            topic
            for symbol in self.instruments
            for topic in symbol_topics(symbol, self.settings.market.book_depth)
        )

    @classmethod
    def drawn(cls, seed: int, venue: VirtualVenue) -> Terms:
        """Of a seed. The limit is so little above the target that no order too many fits in."""
        dice = random.Random(f"{seed}/terms")
        symbols = tuple(venue.exchange.instruments)
        execution = Execution(
            algorithm=dice.choice(ALGORITHMS),
            deadline_s=dice.choice((1.0, 2.0, 2.5)),
            size_share=dice.choice((0.05, 0.2, 0.6)),  # a large order fills in parts
        )
        target_usdt = execution.capital_usdt * execution.size_share
        risk = Risk(
            position_usdt=1.3 * target_usdt, order_usdt=3 * target_usdt, price_band_bps=100.0
        )
        live = LiveSettings(
            venue="sandbox",
            differences=dice.choice(("adopt", "adopt", "cancel", "halt")),
            audit_s=dice.choice((2.0, 5.0, 20.0, 60.0)),
        )
        settings = Settings(
            live=live,
            source="synthetic",
            market=Market(symbols=symbols),
            execution=execution,
            risk=risk,
            desk=_desk(random.Random(f"{seed}/desk")),
        )
        return cls(
            seed=seed,
            settings=settings,
            instruments=dict(venue.exchange.instruments),
            has_trade_socket=dice.random() < 0.7,
            sync_ns=dice.choice((0, 1, 10)) * MS_NS,
        )


def _desk(dice: random.Random) -> Desk:
    """The parts of the desk, each on or off; half of the seeds have all of them on."""
    if dice.random() < 0.5:
        return Desk()
    names = ("urgency", "leaders", "funding", "margin", "ramp")
    parts = {name: dice.random() < 0.5 for name in names}
    return msgspec.convert({"size": dice.choice(("risk", "fixed")), **parts}, Desk)


class Life:
    """The processes of a run, one after the other, over one folder."""

    def __init__(self, terms: Terms, disk: Disk) -> None:
        self.terms, self.disk, self.power = terms, disk, False
        self.core: Core | None = None  #: of the last process
        self._log: LogWriter | None = None
        self._abandoned: list[LogWriter] = []  #: never closed, as a dead process closes nothing
        self.version = 1  #: of the worker

    def begin(
        self,
        heap: Heap,
        network: Network,
        venue: VirtualVenue,
        client: Client,
        observer: Observer,
        killed: Callable[[], None],
    ) -> Process:
        """A new process, from what the disk holds after the last one died."""
        terms, folder = self.terms, self.disk.folder
        if self._log is not None:
            self._abandoned.append(self._log)
            if self.power:
                self.disk.cut_power(network.dice)
            self.power = False
        found = restoration.restore(folder, terms.instruments, terms.opening_e8, self.disk.sync)
        state = found.state if found is not None else CoreState()
        self.core = self._core(state, str(self.version))
        header = Header(
            venue="sandbox",
            account=client.key,
            source="synthetic",
            instruments={},
            settings=b"{}",
            code=str(self.version),
            run=f"{terms.seed}-{len(self._abandoned)}",
            checkpoint=checkpoint_of(state),
        )
        self._log = LogWriter(
            folder, header, heap.now_ns, reserve_bytes=RESERVE_BYTES, fdatasync=self.disk.sync
        )
        return Process(
            heap,
            network,
            venue,
            client,
            BybitCodec(terms.instruments),
            terms.topics,
            self.core,
            self._log,
            observer,
            killed,
            sync_ns=terms.sync_ns,
            has_trade_socket=terms.has_trade_socket,
        )

    def _core(self, state: CoreState, version: str) -> Core:
        terms = self.terms
        return Core(
            terms.settings,
            terms.instruments,
            model=RandomModel(terms.seed, version),
            codec=BybitCodec(terms.instruments),
            name="sandbox",
            at_venue=True,
            state=state,
            evaluator=SecondAsFeature(),
        )

    def end(self) -> list[str]:
        """A process has stopped by itself: what it says is left."""
        assert self.core is not None
        assert self._log is not None
        self._log.close()
        return self.core.reconciliation.left()

    def repeated(self) -> Iterator[str]:
        """Every process again from its log, effect by effect; where one differs."""
        for number in segments(self.disk.folder):
            found = replay(self.disk.folder, number, self._again)
            if found.difference:
                yield found.difference

    def _again(self, header: Header) -> _Again:
        return _Again(self._core(state_of(header.checkpoint), header.code))


class _Again:
    """A core as `live.replay` replays it."""

    def __init__(self, core: Core) -> None:
        self.begin, self.step, self._core = core.begin, core.step, core

    def checkpoint(self) -> Checkpoint:
        return checkpoint_of(self._core.snapshot())
