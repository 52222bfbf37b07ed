"""A run put together: lock, model, connections, log, files; its shell from the first frame to the last."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import msgspec
import structlog

from live.bybit.codec import BybitCodec
from live.bybit.connections import Connections
from live.bybit.venues import VenueAddress, address_of, keys_of
from live.champion import Champion
from live.clock import VenueClock, clock_of
from live.control import Control, lock, lock_account
from live.core import CoreState
from live.decisions import DecisionLog
from live.feed import Item, ReplayFeed, WireFeed
from live.gateway import Codec, PlainCodec
from live.history import join_history, save_history
from live.inbox import Given
from live.journal import require_migrated
from live.keeper import Keeper
from live.lease import Lease, leased
from live.log import Header, LogWriter
from live.loopback import past_of
from live.messages import Append
from live.own_capture import OwnCapture
from live.paper import PaperGateway, paper_venues
from live.rehearsal import rehearse, settle, unsettle
from live.restoration import checkpoint_of, require, require_known, restore
from live.shadow import Shadow
from live.shell import STAGES, History, Lines, Shell
from live.state_stream import StateStream
from market.errors import UsageError, VenueError
from market.features import feature_hash, feature_names
from market.instruments import BUILT_IN, Instrument, leader
from market.lake import Lake
from market.settings import Market, Settings
from market.units import E8, SECOND_NS
from market.wire.survey import instruments_of
from market.wire.topics import public_topics

#: Of the worker's log, the state stream shows so many lines, and so much of each.
_LINES: Final = 40
_LINE_CHARACTERS: Final = 1_000


class StoppedError(VenueError):
    """The worker failed while a person or a limit held it: a person has to look before it trades again."""

    exit_status = 3


class Run:
    """What a run holds from its start to its end: lock, model, connections, files. A context manager."""

    def __init__(self, settings: Settings, captures: Sequence[str], url: str | None) -> None:
        self.lines: Lines = deque(maxlen=_LINES)
        self.settings, self.say, self.inbox = settings, logger(self.lines), queue.SimpleQueue[Any]()
        depth = settings.market.book_depth
        self.instruments = known_instruments(followed(settings.market), captures, depth)
        self.venue = settings.live.venue
        self.state = settings.home / "live" / self.venue
        self.address = None if self.venue == "paper" else address_of(settings)
        self.public = url if self.address is None else self.address.public
        self.clock: VenueClock | None = None
        self.codec: Codec = PlainCodec()
        self.gateway: Connections | None = None
        self.shadow: Shadow | None = None
        self.lease: Lease | None = None
        self.account: str = self.venue  #: the venue's id of it; paper has no other
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
        unsettle()

    @staticmethod
    def _lock(stack: ExitStack, file: Path, what: str) -> None:
        stack.callback(os.close, lock(file, what))

    def _champion(self) -> Champion:
        return Champion(self.settings, feature_hash=feature_hash(), log=self.say)

    def _rehearse(self) -> float:
        took_s = rehearse(self.settings, self.instruments, self.champion)
        settle()
        return took_s

    def _connect(self, address: VenueAddress, stack: ExitStack) -> None:
        """Connect to the venue, as the only worker of its account: on this machine, and with state in
        PostgreSQL on any.
        """
        self.codec = codec = BybitCodec(self.instruments)
        self.clock = self._clock_of(address.public)
        self.gateway = Connections(
            address,
            keys_of(),
            codec,
            lambda _, given: self.inbox.put(Given(given, time.monotonic_ns())),
            self.settings.live,
            clock_ns=self.clock,
            speed=self.clock.speed,
        )
        self.gateway.start()
        if self.gateway.disconnect_cancels:
            away_s = self.settings.live.disconnect_cancel_s
            self.say.info("the venue cancels what rests when we are away", after_s=away_s)
        stack.callback(self.gateway.stop, 2.0)
        self.account = self.gateway.account
        what = f"the worker of account {self.account} of {address.name}"
        stack.enter_context(lock_account(address.rest, self.account, what))
        if (state := self.settings.state) != "sqlite":
            name = f"account {self.account} of {address.rest}"
            held = leased(state, name, self.settings.live.closing_s, self.say.warning, time.sleep)
            self.lease = stack.enter_context(held)
            self.gateway.may_send = self.lease.stands
            stack.callback(self.gateway.stop, 2.0)  # before the lease is given back

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
            if self.lease is not None:
                stack.enter_context(self.lease.watch(partial(self._lost, shell)))
            until_ns = 0 if duration_s is None else first_ns + round(duration_s * 1e9)
            try:
                left = shell.run(items, flatten, until_ns)
            except Exception as error:
                if not (held := shell.core.safety.held):
                    raise
                why = f"ended while held ({', '.join(held)}): {type(error).__name__}: {error}"
                raise StoppedError(f"{why}; docs/runbook.md says what to do") from error
        summary = self.summary(shell) | {"left": left, "held": shell.core.safety.held}
        self.say.info("worker stopped", **summary)
        return summary

    def _lost(self, shell: Shell, why: str) -> None:
        self.say.error("stopping", reason=why)
        shell.stop(why)

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
        watch = self.settings.market.watch
        history = history or join_history(self.lake, self.instruments, second_ns, watch)
        pointer = self.champion.pointer
        about = {"model": pointer.version, "symbols": list(self.instruments)}
        if history is not None:
            save_history(self.settings.home, self.run_id, history)
            seconds = min(len(bars) for bars, *_ in history.values())
            self.say.info("history joined", seconds=seconds)
        self.say.info("worker started", run=self.run_id, **about)
        body = msgspec.json.encode({"run": self.run_id, **about, "sha": pointer.manifest_sha256})
        # Not before now, whatever waits in the inbox: deadlines count from here.
        now_ns = first_ns if self.clock is None else max(first_ns, self.clock())
        shell.begin(now_ns, Append(kind="run", time_ns=now_ns, body=body), history)
        return shell

    def _paced(self) -> Settings:
        """The settings in the venue's time: what the network and the wall clock take lasts longer there."""
        live, speed = self.settings.live, self.clock.speed if self.clock is not None else 1.0
        if speed == 1.0:
            return self.settings
        paced = msgspec.structs.replace(
            live,
            answer_s=live.answer_s * speed,
            receive_window_ms=round(live.receive_window_ms * speed),
            closing_s=live.closing_s * speed,
        )
        return msgspec.structs.replace(self.settings, live=paced)

    def _shell(self, feed: ReplayFeed | WireFeed, first_ns: int, stack: ExitStack) -> Shell:
        settings, instruments = self._paced(), self.instruments
        opening_e8 = round(settings.execution.capital_usdt * E8)
        restored = restore(self.state / "log", instruments, opening_e8)
        number = 1 if restored is None else int(restored.header.run.rpartition("-")[2]) + 1
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(first_ns // SECOND_NS))
        self.run_id = f"{self.venue}-{stamp}-{number}"
        state = None if restored is None else restored.state
        if restored is not None:
            require(restored.header, self.state / "log", self.venue, self.account, settings.source)
            require_known(restored.state, self.state / "log", instruments)
            if restored.torn is not None:
                self.say.warning("log's torn end kept aside", **restored.torn._asdict())
        header = Header(
            venue=self.venue,
            account=self.account,
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
        capture = OwnCapture(settings.home, self.run_id, instruments)
        decisions = DecisionLog(self.state / "decisions", self.run_id, feature_names())
        for file in decisions.recovered:
            self.say.warning("decisions recovered", **file._asdict())
        keeper = Keeper(capture, decisions, lambda error: shell.failed(error), may_wait=not live)
        stack.callback(keeper.close)
        stream = StateStream(self.state / "state.sock")
        stack.callback(stream.close)
        shadow = self.shadow = Shadow(
            settings.root,
            settings.model_name,
            feature_hash=feature_hash(),
            book_topic=f"orderbook.{settings.market.book_depth}",
            horizons_s=self.champion.bundle.horizons_s,
            put=lambda given: shell.put(given),
            log=self.say,
        )
        stack.callback(shadow.close)
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
            shadow=shadow,
            clock_ns=self.clock or time.time_ns,
            speed=self.clock.speed if self.clock is not None else 1.0,
            lines=self.lines,
        )
        shell.control = Control(
            self.state / "control", shell.command, shell.emergency, self.instruments
        )
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
            "shadowed": {} if self.shadow is None else self.shadow.counts,
            "latency_us": decision | {"unpaced": shell.unpaced},
            "stages_us": {stage: shell.latency[stage].summary() for stage in STAGES},
            "lost_frames": shell.keeper.lost_frames,
            "captures": shell.keeper.capture.paths,
        }


def followed(market: Market) -> list[str]:
    """The traded symbols, those whose bars enter their features, and the watched ones."""
    leaders = (leader(symbol) for symbol in market.symbols)
    return list(dict.fromkeys([*market.symbols, *leaders, *market.watch]))


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


class _Printer:
    """Prints lines to stderr. One that it does not take (its reader is gone, its disk full) is counted in later ones:
    nothing may end for want of a line. Without a lock, so that a signal handler may say something."""

    unsaid = 0

    def owing(self, _: object, __: str, fields: Any) -> Any:
        return fields | {"unsaid": self.unsaid} if self.unsaid else fields

    def info(self, line: str) -> None:
        try:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        except (OSError, ValueError, RuntimeError):  # the last: a handler's, within another line
            self.unsaid += 1

    debug = warning = error = info


def logger(lines: Lines) -> Any:
    """Structured logging, one JSON line each, to stderr; the last ones, by number, are kept in ``lines``."""
    numbers = itertools.count(1)

    def keep(_: object, __: str, line: Any) -> Any:
        lines.append((str(next(numbers)), line[:_LINE_CHARACTERS]))
        return line

    printer = _Printer()
    return structlog.wrap_logger(
        printer,
        processors=[
            structlog.processors.add_log_level,
            printer.owing,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
            keep,
        ],
    )


@contextmanager
def stopping(stop: Callable[[str], None], log: Any) -> Iterator[None]:
    """SIGTERM, SIGHUP (but under nohup) and the first SIGINT stop the worker, so that it shuts down cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(number: int, _: FrameType | None) -> None:
        stop(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log.info("stopping", signal=signal.Signals(number).name)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
