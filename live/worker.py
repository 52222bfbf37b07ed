"""The worker: one process that decides every second and trades, all of it recorded.

    feed ─► shell (live.shell): stamp ─► log ─► core (live.core) ─► requests ─► venue
              └─► own capture, decisions        └─► records: the journal's tables

This module puts a run together, and has the verb `l2 live`. Decisions and orders are a function of what
is in the log, so that `--again` repeats them bit for bit. At midnight UTC the own capture starts a new
file with checkpoints of books and tickers, from which the bars of the date start too; so live and batch
agree on every date.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any, Self

import msgspec
import structlog

from live.bybit.codec import BybitCodec
from live.bybit.connections import Connections
from live.bybit.venues import VenueAddress, address_of, keys_of
from live.champion import Champion
from live.clock import VenueClock, clock_of
from live.collect import collect
from live.control import Control
from live.core import CoreState
from live.decisions import DecisionLog
from live.feed import Item, ReplayFeed, WireFeed
from live.gateway import Codec, PlainCodec
from live.history import join_history, save_history
from live.journal import require_migrated
from live.keeper import Keeper
from live.log import Header, LogWriter, lock, require
from live.loopback import exchange, past_of
from live.messages import Append
from live.own_capture import OwnCapture
from live.paper import PaperGateway, paper_venues
from live.rehearsal import rehearse
from live.restoration import checkpoint_of, restore
from live.shell import STAGES, Given, History, Shell
from live.state_stream import StateStream
from market.console import Result
from market.errors import UsageError
from market.features import feature_hash, feature_names
from market.instruments import BUILT_IN, Instrument, leader
from market.lake import Lake
from market.settings import Settings
from market.units import E8, SECOND_NS
from market.wire.survey import instruments_of
from market.wire.topics import public_topics


def run(
    settings: Settings,
    *,
    frames: Sequence[str] = (),
    speed: float = 1.0,
    warm_up_s: float = 0.0,
    duration_s: float | None = None,
    url: str | None = None,
    flatten: bool = True,
) -> dict[str, Any]:
    """Run a worker over captures (``frames``), a public stream (``url``) or a venue until its end.

    It ends with its captures, after ``duration_s`` seconds, or at SIGTERM or SIGINT; open orders are
    then cancelled and, with ``flatten``, positions closed. Returns `Run.summary`. Raises UsageError,
    NoChampionError, BundleError, VenueError, LogError or LakeError.
    """
    with Run(settings, frames, url) as one:
        if one.public is None:
            feed: ReplayFeed | WireFeed = ReplayFeed(
                frames, speed=speed, warm_up_s=warm_up_s, duration_s=duration_s
            )
            duration_s = None
        else:
            feed = one.wire(one.public)
        summary = one.trade(feed, flatten, duration_s)
    state = Path(settings.root) / "live" / settings.live.venue
    return summary | {"collected": collect(one.lake, state, settings.live.venue)}


class Run:
    """What a run holds from its start to its end: lock, model, connections, files. A context manager."""

    def __init__(self, settings: Settings, captures: Sequence[str], url: str | None) -> None:
        self.settings, self.say, self.inbox = settings, logger(), queue.SimpleQueue[Any]()
        depth = settings.market.book_depth
        self.instruments = known_instruments(followed(settings.market.symbols), captures, depth)
        self.venue = settings.live.venue
        self.state = Path(settings.root) / "live" / self.venue
        self.address = None if self.venue == "paper" else address_of(settings)
        self.public = url if self.address is None else self.address.public
        self.clock: VenueClock | None = None
        self.codec: Codec = PlainCodec()
        self.gateway: Connections | None = None
        self.run_id = ""
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as begun:
            self.champion = begun.enter_context(closing(self._champion()))
            self.lake = Lake(self.settings.root, self.settings.source)
            take = partial(self._lock, begun)
            take(self.state / "worker.lock", f"a worker of {self.venue}")
            require_migrated(self.state)
            self.say.info("rehearsed", seconds=round(self._rehearse(), 3))
            if self.address is not None:
                self._connect(self.address, begun)
            self._ends = begun.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()
        gc.unfreeze()
        sys.setswitchinterval(0.005)

    @staticmethod
    def _lock(stack: ExitStack, file: Path, what: str) -> None:
        stack.callback(os.close, lock(file, what))

    def _champion(self) -> Champion:
        settings = self.settings
        return Champion(
            settings.root,
            settings.model_name,
            feature_hash=feature_hash(),
            book_topic=f"orderbook.{settings.market.book_depth}",
            source=settings.source,
            symbols=settings.market.symbols,
            log=self.say,
        )

    def _rehearse(self) -> float:
        took_s = rehearse(self.settings, self.instruments, self.champion)
        # What is loaded now stays: the collector looks at it never again.
        gc.collect()
        gc.freeze()
        # A thread that wakes up, as with a sync that ended, waits for the interpreter so long at most.
        sys.setswitchinterval(0.0005)
        return took_s

    def _connect(self, address: VenueAddress, stack: ExitStack) -> None:
        """Connect to the venue, as the only worker of its account on this machine."""
        keys, codec = keys_of(), BybitCodec(self.instruments)
        account = sha256(f"{address.rest} {keys.key}".encode()).hexdigest()[:16]
        folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        self._lock(stack, folder / f"l2-account-{account}.lock", "this account's worker")
        self.codec = codec
        self.clock = self._clock_of(address.public)
        self.gateway = Connections(
            address,
            keys,
            codec,
            lambda _, given: self.inbox.put(Given(given, time.monotonic_ns())),
            self.settings.live,
            clock_ns=self.clock,
            speed=self.clock.speed,
        )
        self.gateway.start()
        stack.callback(self.gateway.stop, 2.0)

    def _clock_of(self, url: str) -> VenueClock:
        return VenueClock(clock_of(url, self.settings.clock, lambda text: self.say.info(text)))

    def wire(self, url: str) -> WireFeed:
        """The feed of a public stream, in the venue's time."""
        self.clock = clock = self.clock or self._clock_of(url)
        topics = public_topics(list(self.instruments), [self.settings.market.book_depth])
        return WireFeed(url, topics, clock_ns=clock, speed=clock.speed, inbox=self.inbox)

    # -- from the first frame to the last --------------------------------------------------------

    def trade(
        self,
        feed: ReplayFeed | WireFeed,
        flatten: bool = True,
        duration_s: float | None = None,
    ) -> dict[str, Any]:
        """Trade to the feed's end, or for so many of the venue's seconds; returns the summary."""
        # What takes seconds comes first: nothing that is received shall wait for it.
        history: History | None = None
        if self.address is not None and self.venue == "sandbox":
            history = past_of(self.address.rest, self.instruments, self.settings)
        items: Iterator[Any] = iter(feed)
        first_ns = feed.first_ns
        if not first_ns:  # only the venue knows
            seen = [next(items)]
            while not isinstance(seen[-1], Item):  # connections came up meanwhile
                seen.append(next(items))
            first_ns, items = seen[-1].receive_ns, itertools.chain(seen, items)
        with ExitStack() as stack:
            shell = self.begin(feed, first_ns, stack, history)
            stack.enter_context(stopping(shell.stop, self.say))
            until_ns = 0 if duration_s is None else first_ns + round(duration_s * 1e9)
            left = shell.run(items, flatten, until_ns)
        summary = self.summary(shell) | {"left": left}
        self.say.info("worker stopped", **summary)
        return summary

    def begin(
        self,
        feed: ReplayFeed | WireFeed,
        first_ns: int,
        stack: ExitStack,
        history: History | None = None,
    ) -> Shell:
        """A shell that has begun, with the history before the first frame; ``stack`` ends its threads."""
        shell = self._shell(feed, first_ns, stack)
        second_ns = first_ns // SECOND_NS * SECOND_NS
        history = history or join_history(self.lake, self.instruments, second_ns)
        pointer = self.champion.pointer
        about = {"model": pointer.version, "symbols": list(self.instruments)}
        if history is not None:
            save_history(self.settings.root, self.run_id, history)
            seconds = min(len(bars) for bars, *_ in history.values())
            self.say.info("history joined", seconds=seconds)
        self.say.info("worker started", run=self.run_id, **about)
        body = msgspec.json.encode({"run": self.run_id, **about, "sha": pointer.manifest_sha256})
        # Not before now, whatever waits in the inbox: deadlines count from here.
        now_ns = first_ns if self.clock is None else max(first_ns, self.clock())
        shell.begin(now_ns, Append(kind="run", time_ns=now_ns, body=body), history)
        return shell

    def _shell(self, feed: ReplayFeed | WireFeed, first_ns: int, stack: ExitStack) -> Shell:
        settings, instruments = self.settings, self.instruments
        opening_e8 = round(settings.execution.capital_usdt * E8)
        restored = restore(self.state / "log", instruments, opening_e8)
        number = 1 if restored is None else int(restored.header.run.rpartition("-")[2]) + 1
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(first_ns // SECOND_NS))
        self.run_id = f"{self.venue}-{stamp}-{number}"
        state = None if restored is None else restored.state
        if restored is not None:
            require(restored.header, self.state / "log", self.venue, "", settings.source)
            if restored.torn is not None:
                self.say.warning("log's torn end kept aside", **restored.torn._asdict())
        header = Header(
            venue=self.venue,
            account="",
            source=settings.source,
            instruments={s: (found.tick, found.lot) for s, found in instruments.items()},
            settings=msgspec.json.encode(settings),
            code=feature_hash(),
            run=self.run_id,
            checkpoint=checkpoint_of(state or CoreState()),
        )
        writer = LogWriter(self.state / "log", header, first_ns, background=True)
        stack.callback(writer.close)
        paper = None
        if self.gateway is None:
            account = None if state is None else state.account
            holdings = {} if account is None else account.holdings
            held = {symbol: holding.position_lots for symbol, holding in holdings.items()}
            paper = PaperGateway(paper_venues(instruments, settings, held))
        live = isinstance(feed, WireFeed)
        capture = OwnCapture(settings.root, self.run_id, instruments)
        decisions = DecisionLog(self.state / "decisions", self.run_id, feature_names())
        for file in decisions.recovered:
            self.say.warning("decisions recovered", **file._asdict())
        keeper = Keeper(capture, decisions, lambda error: shell.failed(error), may_wait=not live)
        stack.callback(keeper.close)
        stream = StateStream(self.state / "state.sock")
        stack.callback(stream.close)
        shell = Shell(
            settings,
            instruments,
            state=state,
            champion=self.champion,
            feed=feed,
            inbox=self.inbox,
            log=writer,
            keeper=keeper,
            say=self.say,
            codec=self.codec,
            paper=paper,
            gateway=self.gateway,
            stream=stream,
            clock_ns=self.clock or time.time_ns,
            speed=self.clock.speed if self.clock is not None else 1.0,
        )
        shell.control = Control(self.state / "control", shell.command, shell.emergency)
        stack.callback(shell.control.close)
        stack.callback(shell.writer.close)
        return shell

    def summary(self, shell: Shell) -> dict[str, Any]:
        """Counts, costs and latencies of the run; plain data, printed by `summary_text`."""
        core, pointer = shell.core, self.champion.pointer
        decision = shell.latency["decision"].summary()
        return {
            "run": self.run_id,
            "model": f"{pointer.name} {pointer.version}",
            "fee_row": self.settings.model.fee_row,
            "frames": core.frames,
            "events": core.events,
            "rejected": sum(core.rejects.values()),
            "gaps": core.gaps,
            **core.trader.summary(),
            "swaps": self.champion.swaps,
            "bundles_refused": self.champion.refused,
            "latency_us": decision | {"unpaced": shell.unpaced},
            "stages_us": {stage: shell.latency[stage].summary() for stage in STAGES},
            "lost_frames": shell.keeper.lost_frames,
            "captures": shell.keeper.capture.paths,
        }


def followed(symbols: Sequence[str]) -> list[str]:
    """The traded symbols, and those whose bars enter their features."""
    return list(dict.fromkeys([*symbols, *(leader(symbol) for symbol in symbols)]))


def known_instruments(
    symbols: Sequence[str], captures: Sequence[str], book_depth: int
) -> dict[str, Instrument]:
    """The instruments of the symbols: those of the captures, else the built-in ones.

    UsageError when neither has a symbol.
    """
    known = BUILT_IN | (instruments_of(captures, symbols, book_depth) if captures else {})
    if missing := [symbol for symbol in symbols if symbol not in known]:
        raise UsageError(
            f"{', '.join(missing)}: tick and lot are not known; use a capture that opens with its "
            "instruments, or add the symbol to market/instruments.py"
        )
    return {symbol: known[symbol] for symbol in symbols}


def logger() -> Any:
    """Structured logging, one JSON line each, to stderr."""
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )


@contextmanager
def stopping(stop: Callable[[str], None], log: Any) -> Iterator[None]:
    """SIGTERM and the first SIGINT stop the worker, so that it shuts down cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(number: int, _: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop(signal.Signals(number).name)

    before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary_text(summary: Mapping[str, Any]) -> str:
    """`Worker.summary` as a table."""

    def number(value: float | None, unit: str, digits: int = 2) -> str:
        return "none" if value is None else f"{value:,.{digits}f} {unit}"

    parts = summary["cost_parts_bps"]
    latency = summary["latency_us"]
    share = summary["maker_share"]
    rows = [
        ("run", f"{summary['run']}, {summary['model']}, fees of {summary['fee_row']}"),
        ("market", f"{summary['frames']:,} frames, {summary['events']:,} events, "
                   f"{summary['gaps']} gaps, {summary['rejected']} rejected"),
        ("decisions", f"{summary['decisions']:,}, {summary['warm_decisions']:,} of them warm"),
        ("signals", ", ".join(f"{n:,} {symbol}" for symbol, n in summary["signals"].items())),
        ("orders", f"{summary['parents']} parents, {summary['orders']} orders, "
                   f"{summary['fills']} fills, maker {'none' if share is None else f'{share:.1%}'}"),
        ("all-in cost", f"{number(summary['all_in_cost_bps'], 'bps')} = "
                        + " + ".join(f"{name.removesuffix('_bps')} {number(value, '').strip()}"
                                     for name, value in parts.items())),
        ("profit", f"gross {number(summary['gross_pnl_usdt'], 'USDT')}, "
                   f"net {number(summary['net_pnl_usdt'], 'USDT')}"),
        ("latency", f"p50 {latency['p50']:,.0f} us, p99 {latency['p99']:,.0f} us, "
                    f"p99.9 {latency['p99.9']:,.0f} us over {latency['n']:,} seconds"),
        ("captures", ", ".join(summary["captures"]) or "none"),
    ]  # fmt: skip
    return "\n".join(f"{name:<12} {value}" for name, value in rows)


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 live`."""
    parser.add_argument(
        "--venue",
        choices=["paper", "sandbox", "testnet", "demo", "live"],
        help="default: live.venue of the settings, paper",
    )
    parser.add_argument(
        "--frames", nargs="+", default=[], metavar="FILE", help="replay these captures, on paper"
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help="public WebSocket to follow on paper; of a sandbox its rest address",
    )
    parser.add_argument("--speed", type=float, default=1.0, help="of a replay or a started sandbox")
    parser.add_argument(
        "--warm-up",
        type=float,
        default=0.0,
        metavar="S",
        help="replay this much at full speed first",
    )
    parser.add_argument(
        "--for", dest="duration", type=float, metavar="S", help="stop after this long"
    )
    parser.add_argument("--keep-position", action="store_true", help="do not flatten at the end")
    parser.add_argument(
        "--again",
        metavar="LOG",
        help="repeat the last run of a log folder and compare every effect",
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 live`: trade with the champion until the market or the time ends."""
    if options.again:
        from live.repetition import repeat

        return repeat(Path(options.again), options.json)
    venue = options.venue or settings.live.venue
    live = msgspec.structs.replace(settings.live, venue=venue)
    settings = msgspec.structs.replace(settings, live=live)
    if venue == "paper" and bool(options.frames) == bool(options.url):
        raise UsageError(
            "say where the market comes from: --frames FILE…, --url WS or --venue NAME"
        )
    if venue != "paper" and options.frames:
        raise UsageError(f"--frames: captures are replayed on paper, not at the venue {venue}")
    with ExitStack() as stack:
        if venue == "sandbox":
            symbols = followed(settings.market.symbols)
            served = exchange(settings, options.url, options.speed, symbols)
            settings = stack.enter_context(served)
        stack.enter_context(_resolver(settings))
        result = run(
            settings,
            frames=options.frames,
            url=options.url if venue == "paper" else None,
            speed=options.speed,
            warm_up_s=options.warm_up,
            duration_s=options.duration,
            flatten=not options.keep_position,
        )
    if not options.json:
        print(summary_text(result))
    return result


@contextmanager
def _resolver(settings: Settings) -> Iterator[None]:
    """The resolver as a child process, which copies a promoted version to a local bundle.

    A process of its own, so that the worker never loads MLflow; if it dies, the worker keeps its
    champion.
    """
    every = str(settings.live.resolve_every_s)
    command = [sys.executable, "-m", "models_registry.resolver", "--every", every]
    # stdout is reserved for the result, so the resolver writes to stderr
    process = subprocess.Popen(command, stdout=2)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            # A library being imported may block the signal; a kill leaves no partial file.
            process.kill()
            process.wait()
