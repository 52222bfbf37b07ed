"""The worker: frames in, decisions every second, orders to the venue, all of it recorded.

    frame ─► decoder ─► own capture ─► trader (bars, features, champion, desk) ─► venue
                                          └─► decision log, journal

One thread, one loop. Decisions and orders are made by `live.trader`, which a backtest drives too; they
are a function of the events, so that a replay repeats them bit for bit. Only loading a bundle, finishing
an hour's file and reading the socket run in other threads. Records come before effects: the frame is
captured before it is used, the intent journalled before the order is sent.

At midnight UTC the own capture starts a new file with checkpoints of books and tickers, from which the
bars of the date start too; so live and batch agree on every date.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec
import numpy as np
import structlog

from live.champion import Champion
from live.clock import VenueClock, clock_of
from live.collect import collect
from live.core import Core
from live.decisions import Decision, DecisionLog
from live.feed import Feed, FeedError, Item, ReplayFeed, WireFeed
from live.history import join_history, save_history
from live.journal import Journal
from live.messages import Append, Effect, InForce, Input, PublicFrame, Renew, Say, Send, Tick
from live.own_capture import OwnCapture, checkpoints
from live.paper import CLOSING_NS, GRID_NS, PaperGateway, paper_venues
from live.rehearsal import rehearse
from market.console import Result
from market.errors import UsageError
from market.features import feature_hash, feature_names
from market.ingest import MAX_SILENCE_NS
from market.instruments import BUILT_IN, Instrument, leader
from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS, utc_date
from market.wire.survey import instruments_of
from market.wire.topics import public_topics

#: So many refused frames, and none accepted, end a run: nothing can come of it.
_REFUSED: Final = 200


class Worker:
    """Drives the core from one feed: `run` to its end, `handle` for one item.

    ``champion`` and ``journal`` stay the caller's to close. ``monotonic_ns`` must be the clock of the
    feed's ``due_ns``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        lake: Lake,
        instruments: Mapping[str, Instrument],
        feed: Feed,
        gateway: PaperGateway,
        champion: Champion,
        journal: Journal,
        log: Any,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._settings, self._lake, self._feed = settings, lake, feed
        self._gateway, self._champion, self._journal, self._log = gateway, champion, journal, log
        self._monotonic_ns = monotonic_ns
        self._instruments = instruments
        self.core = Core(
            settings,
            instruments,
            model=champion,
            codec=gateway.codec,
            name=settings.live.venue,
            at_venue=False,
            on_decision=self._decided,
            on_midnight=self._midnight,
        )
        self.run_id = ""
        self._own_capture: OwnCapture | None = None
        self._decisions: DecisionLog | None = None
        self._paced = False
        self._latencies_ns = array("q")
        self._unpaced = 0

    # -- one item of the feed --------------------------------------------------------------------

    def handle(self, item: Item) -> None:
        """Process a tick or a frame."""
        if self._own_capture is None:
            self._begin(item.receive_ns)
        trader = self.core.trader
        second_ns = trader.second_ns
        started = item.due_ns or self._monotonic_ns()
        if item.due_ns and not self._paced:
            self._paced = True
            self._unpaced = len(self._latencies_ns)  # of `--warm-up`: due at no time
            del self._latencies_ns[:]
        if item.receive_ns - trader.second_ns >= SECOND_NS and self._champion.refresh():
            self.core.load(self._champion)
            pointer = self._champion.pointer
            self._step(
                item.receive_ns,
                InForce(
                    name=pointer.name,
                    version=pointer.version,
                    manifest_sha256=pointer.manifest_sha256,
                ),
            )
        self._pass(item.receive_ns)
        if item.frame is None:
            self._step(item.receive_ns, Tick())
        else:
            assert self._own_capture is not None
            self._own_capture.append(item.receive_ns, item.frame)
            self._step(item.receive_ns, PublicFrame(frame=item.frame))
            if self._rejected >= _REFUSED and not self.core.events:
                raise self._all_refused()
        self._pass(item.receive_ns)
        if trader.second_ns > second_ns:
            self._latencies_ns.append(self._monotonic_ns() - started)

    def _pass(self, now_ns: int) -> None:
        """Hand the core what has come from the venue by now."""
        for time_ns, given in self._gateway.until(now_ns):
            self._step(time_ns, given)

    def _step(self, now_ns: int, given: Input) -> None:
        self._carry_out(now_ns, self.core.step(now_ns, given))

    def _carry_out(self, now_ns: int, effects: Sequence[Effect]) -> None:
        self._gateway.take(self.core.rows)
        for effect in effects:
            match effect:
                case Send():
                    self._gateway.send(now_ns, effect)
                case Append():
                    row = effect.time_ns, effect.kind, effect.symbol, effect.parent_id
                    durable = effect.kind == "intent"
                    self._journal._add([(*row, effect.client_id, effect.body)], durable)
                case Renew():
                    if isinstance(self._feed, WireFeed):
                        self._feed.renew(effect.topics)
                case Say():
                    getattr(self._log, effect.level)(effect.event, **effect.fields)

    @property
    def _rejected(self) -> int:
        return sum(self.core.rejects.values())

    def _all_refused(self) -> FeedError:
        (topic, reason), _ = max(self.core.rejects.items(), key=lambda item: item[1])
        return FeedError(
            f"{self._rejected} frames were refused and none accepted, most of {topic or 'no topic'}: "
            f"{reason}; the log shows the first"
        )

    def _begin(self, first_ns: int) -> None:
        """Name the run, open its files, reconcile orders and join the lake's history."""
        runs = sum(1 for _ in self._journal.entries("run"))
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(first_ns // SECOND_NS))
        self.run_id = f"{self._settings.live.venue}-{stamp}-{runs + 1}"
        second_ns = first_ns // SECOND_NS * SECOND_NS
        self._own_capture = OwnCapture(self._settings.root, self.run_id, self._instruments)
        self._decisions = DecisionLog(
            self._journal.path.parent / "decisions", self.run_id, feature_names()
        )
        for file in self._decisions.recovered:
            self._log.warning(
                "decisions recovered", file=str(file.path), rows=file.rows, torn=file.torn
            )
        about = {"model": self._champion.pointer.version, "symbols": list(self._instruments)}
        self._journal.append("run", first_ns, msgspec.json.encode({"run": self.run_id, **about}))
        self._log.info("worker started", run=self.run_id, **about)
        history = join_history(self._lake, self._instruments, second_ns)
        if history is not None:
            save_history(self._settings.root, self.run_id, history)
            self._log.info(
                "history joined", seconds=min(len(bars) for bars, *_ in history.values())
            )
        effects = self.core.begin(second_ns, history)
        self._open_capture(second_ns)
        self._carry_out(second_ns, effects)

    def _open_capture(self, now_ns: int) -> None:
        """Start a file of the own capture with checkpoints, unless the last event is too old."""
        assert self._own_capture is not None
        restated: list[bytes] = []
        if now_ns - self.core.trader.last_event_ns <= MAX_SILENCE_NS:
            for symbol, state in self.core.trader.symbols.items():
                restated += checkpoints(
                    self._instruments[symbol],
                    state.builder.book,
                    state.ticker,
                    self._settings.market.book_depth,
                )
        self._own_capture.open(now_ns, restated)

    def _midnight(self, midnight_ns: int) -> None:
        assert self._own_capture is not None
        self._open_capture(midnight_ns)
        self._log.info("new date", date=utc_date(midnight_ns), capture=self._own_capture.paths[-1])

    def _decided(self, decision: Decision, horizons_s: tuple[int, ...]) -> None:
        assert self._decisions is not None
        self._decisions.add(decision, horizons_s)

    # -- from beginning to end -------------------------------------------------------------------

    def run(self, flatten: bool = True) -> dict[str, Any]:
        """Consume the feed to its end; returns `summary`. Files are finished even on an error."""
        with ExitStack() as stack:
            stack.callback(self._finish)
            if first_ns := self._feed.first_ns:
                self._begin(first_ns)  # before the first frame is due
            for item in self._feed:
                self.handle(item)
            if self.run_id:
                self._close(flatten)
        if self.core.rejects and not self.core.events:
            raise self._all_refused()
        summary = self.summary()
        self._log.info("worker stopped", **summary)
        return summary

    def _close(self, flatten: bool) -> None:
        """The end of the stream: cancel open orders, close positions, measure costs; time runs on."""
        core, now_ns = self.core, self.core.now_ns
        core.stop(now_ns, flatten)
        self._carry_out(now_ns, core.trader.drain())
        until_ns = now_ns + 2 * CLOSING_NS
        while not core.ended and now_ns < until_ns:
            now_ns = (now_ns // GRID_NS + 1) * GRID_NS
            self._pass(now_ns)
            self._step(now_ns, Tick())
            self._pass(now_ns)
        core.finish(flatten)
        self._carry_out(now_ns, core.trader.drain())

    def _finish(self) -> None:
        with ExitStack() as stack:  # both, whatever the first raises
            if self._own_capture is not None:
                stack.callback(self._own_capture.close)
            if self._decisions is not None:
                stack.callback(self._decisions.close)

    def summary(self) -> dict[str, Any]:
        """Counts, costs and latencies of the run; plain data, printed by `summary_text`."""
        latencies = np.array(self._latencies_ns or [0], np.float64) / 1e3
        p50, p99, p999 = np.percentile(latencies, (50, 99, 99.9)).round(1).tolist()
        return {
            "run": self.run_id,
            "model": f"{self._champion.pointer.name} {self._champion.pointer.version}",
            "fee_row": self._settings.model.fee_row,
            "frames": self.core.frames,
            "events": self.core.events,
            "rejected": self._rejected,
            "gaps": self.core.gaps,
            **self.core.trader.summary(),
            "swaps": self._champion.swaps,
            "bundles_refused": self._champion.refused,
            "latency_us": {
                "p50": p50,
                "p99": p99,
                "p99.9": p999,
                "n": len(self._latencies_ns),
                "unpaced": self._unpaced,
            },
            "captures": self._own_capture.paths if self._own_capture is not None else [],
        }


# -- putting it together ---------------------------------------------------------------------------


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
    """Run a worker over captures (``frames``) or a WebSocket (``url``) until the feed ends.

    The feed ends with its captures, after ``duration_s`` seconds, or at SIGTERM or SIGINT; open
    orders are then cancelled and, with ``flatten``, positions closed. Returns `Worker.summary`.
    Raises UsageError, NoChampionError, BundleError, FeedError, JournalError or LakeError.
    """
    log = logger()
    symbols = followed(settings.market.symbols)
    champion = Champion(
        settings.root,
        settings.model_name,
        feature_hash=feature_hash(),
        book_topic=f"orderbook.{settings.market.book_depth}",
        source=settings.source,
        symbols=settings.market.symbols,
        log=log,
    )
    with ExitStack() as stack:
        stack.callback(champion.close)
        feed: ReplayFeed | WireFeed
        if url is not None:
            wanted = public_topics(symbols, [settings.market.book_depth])
            clock = VenueClock(clock_of(url, settings.clock, lambda text: log.info(text)))
            feed = WireFeed(url, wanted, duration_s=duration_s, clock_ns=clock, speed=clock.speed)
        else:
            feed = ReplayFeed(frames, speed=speed, warm_up_s=warm_up_s, duration_s=duration_s)
        instruments = known_instruments(symbols, frames, settings.market.book_depth)
        lake = Lake(settings.root, settings.source)
        state = Path(settings.root) / "live" / settings.live.venue
        journal = stack.enter_context(Journal(state / "journal.sqlite3"))
        worker = Worker(
            settings,
            lake=lake,
            instruments=instruments,
            feed=feed,
            gateway=PaperGateway(paper_venues(instruments, settings, journal.positions)),
            champion=champion,
            journal=journal,
            log=log,
        )
        took_s = rehearse(settings, instruments, champion)
        log.info("rehearsed", seconds=round(took_s, 3))
        stack.enter_context(stopping(feed, log))
        summary = worker.run(flatten)
    return summary | {"collected": collect(lake, state, settings.live.venue)}


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
def stopping(feed: Feed, log: Any) -> Iterator[None]:
    """SIGTERM and the first SIGINT stop the feed, so that the worker shuts down cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        feed.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
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
    parser.add_argument("--venue", choices=["paper"], default="paper")
    parser.add_argument(
        "--frames", nargs="+", default=[], metavar="FILE", help="replay these captures"
    )
    parser.add_argument("--url", metavar="WS", help="public WebSocket to follow instead")
    parser.add_argument("--speed", type=float, default=1.0, help="replay speed, 1 = as recorded")
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


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 live`: trade with the champion until the market or the time ends."""
    if bool(options.frames) == bool(options.url):
        raise UsageError("say where the market comes from: --frames FILE… or --url WS")
    with _resolver(settings):
        result = run(
            settings,
            frames=options.frames,
            url=options.url,
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
