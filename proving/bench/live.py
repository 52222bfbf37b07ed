"""`l2 bench live`: from a frame at the socket to the bytes of an order, by stage.

The worker's shell as it trades: WebSocket, log with fdatasync, guard, own capture and decisions, on the disk
of the folder. A process beside it sends a recording's frames at their recorded pace, and ten times as fast,
whatever the worker is doing then (open loop): a latency counts from the instant its frame was due to be
sent. The venue answers at once, in this process, so that no figure holds its time.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import structlog

from execution.orders import (
    Accepted,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    Filled,
    Liquidity,
    OrderType,
    Submit,
    TimeInForce,
)
from live.bybit.codec import BybitCodec
from live.decisions import DecisionLog
from live.feed import Item, WireFeed
from live.gateway import PlainCodec
from live.history import SymbolHistory, capture_history
from live.inbox import Given
from live.keeper import Keeper
from live.latency import Histogram
from live.log import Header, LogWriter
from live.messages import (
    Answer,
    Append,
    CancelAll,
    Evidence,
    PositionReport,
    Query,
    QueryKind,
    QueryResult,
    Send,
    SetStop,
)
from live.own_capture import OwnCapture
from live.rehearsal import rehearse, settle, unsettle
from live.shell import Shell
from market.bars import Bars
from market.book import Book
from market.console import Say
from market.features import feature_names
from market.instruments import Instrument
from market.settings import Settings
from market.units import SECOND_NS
from market.wire.capture import read_lines
from market.wire.survey import instruments_of
from market.wire.topics import public_topics
from proving.bench.backtest import followers
from proving.bench.command import recorded
from proving.bench.disk import SYNCS, Disk, disk_alone
from proving.bench.goals import Measure
from proving.bench.sandbox import round_trip
from proving.bench.stopwatch import Stopwatch
from proving.synthetic import profile, write_frames

SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
STAGES: Final = ("feed", "queue", "decode", "market", "decide", "guard", "log", "sync", "send")
#: Name, speed, and how often a recording of five minutes is run. The last one is as the worker once was: the
#: collector of cycles runs when it likes, over all that is loaded, and the capture is synced by the main loop.
PACES: Final = (
    ("recorded pace", 1.0, 1),
    ("10x burst", 10.0, 4),
    ("10x burst, collector and capture as they were", 10.0, 4),
)


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is measured."""
    span_s = 6.0 if quick else 120.0
    with tempfile.TemporaryDirectory(prefix="l2-bench-", dir=os.environ.get("L2_ROOT")) as folder:
        data, capture = "recorded", next(map(str, reversed(recorded())), "")
        if not capture:
            say("no recordings: frames are generated; set L2_TEST_DATA to a folder of captures")
            data, capture = "generated", str(Path(folder) / "made.frames.zst")
            write_frames(capture, profile("default"), 1, SYMBOLS, "2026-03-02", 0, 400)
        allocated, disk = (
            disk_alone(Path(folder), 20 if quick else SYNCS, over) for over in (False, True)
        )
        for pace, speed, times in PACES:
            runs = []
            for n in range(1 if quick else times):
                say(f"{pace}, {span_s:g} s")
                with _Run(Path(folder) / f"{pace}{n}", capture, speed, pace == PACES[-1][0]) as run:
                    run.trade(min(span_s, 300 / speed))
                runs.append(run)
            yield from _figures(runs, data, pace, disk)
        yield from disk.figures("overwritten, as the log is")
        yield from allocated.figures("into allocated space")
    yield from round_trip(quick)


# -- the sender ------------------------------------------------------------------------------------


def _serve(capture: str, speed: float, told: Any) -> None:
    """Send a capture's frames at their times to the one client; tell port, then the monotonic anchor."""
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.frames import Frame, Opcode
    from websockets.protocol import State

    lines = [
        (ns, Frame(Opcode.TEXT, frame).serialize(mask=False))
        for ns, frame in read_lines(capture)
        if not frame.startswith(b'{"l2"')
    ]

    async def client(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"success":true,"ret_msg":"","op":"subscribe"}')
        anchor = time.monotonic_ns() + SECOND_NS // 10
        told.put(anchor)
        for receive_ns, frame in lines:
            due = anchor + (receive_ns - lines[0][0]) / speed
            if (wait := (due - time.monotonic_ns()) / 1e9) > 0:
                await asyncio.sleep(wait)
            if connection.state is not State.OPEN:  # the worker has enough, and closes
                return
            # Not `send`, which takes the sender as long as a frame may take the worker.
            connection.transport.write(frame)

    async def main() -> None:
        async with serve(client, "127.0.0.1", 0, max_queue=None, compression=None) as server:
            told.put(server.sockets[0].getsockname()[1])
            await server.serve_forever()

    asyncio.run(main())


# -- the venue -------------------------------------------------------------------------------------


class _Venue:
    """Writes a request's bytes to a socket, and answers it at once: orders rest until they are cancelled,
    what crosses is filled.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        put: Callable[[Any], None],
        now_ns: Callable[[], int],
    ) -> None:
        self._codec, self._plain, self._put, self._now_ns = (
            BybitCodec(instruments),
            PlainCodec(),
            put,
            now_ns,
        )
        self._orders: dict[str, Submit] = {}
        self._lots = dict.fromkeys(instruments, 0)
        self.begun: dict[int, int] = {}
        self.written: dict[int, int] = {}  #: number -> when its bytes were handed to the system, ns
        near, far = socket.socketpair()
        self._near = near
        threading.Thread(target=self._drain, args=(far,), daemon=True).start()

    @staticmethod
    def _drain(far: socket.socket) -> None:
        while far.recv(1 << 16):
            pass

    def send(self, send: Send) -> None:
        if isinstance(send.body, Submit | Amend | Cancel):
            self.begun[send.number] = time.monotonic_ns()
            call = next(self._codec.converse(send.body, send.symbol))
            frame = {"reqId": str(send.number), "op": call.operation, "args": [call.params]}
            self._near.sendall(msgspec.json.encode(frame))
            self.written[send.number] = time.monotonic_ns()
        self._put(Answer(request=send.number, body=self._plain.encode(self._evidence(send))))

    def _evidence(self, send: Send) -> list[Evidence]:
        now_ns, body = self._now_ns(), send.body
        about: dict[str, Any] = {"time_ns": now_ns, "venue_ns": now_ns}
        match body:
            case Submit():
                self._orders[body.client_id] = body
                about["client_id"] = body.client_id
                taken: list[Evidence] = [Accepted(**about)]
                if body.order_type is OrderType.MARKET or body.time_in_force is TimeInForce.IOC:
                    self._lots[body.symbol] += body.side * body.qty_lots
                    fill = Filled(
                        exec_id=body.client_id, symbol=body.symbol, side=body.side,
                        qty_lots=body.qty_lots, price_ticks=body.price_ticks or 1,
                        liquidity=Liquidity.TAKER, fee_e8=0, leaves_lots=0, **about,
                    )  # fmt: skip
                    taken.append(fill)
                return taken
            case Amend():
                old = self._orders[body.client_id]
                price, lots = body.price_ticks or old.price_ticks, body.qty_lots or old.qty_lots
                return [
                    Amended(client_id=body.client_id, price_ticks=price, qty_lots=lots, **about)
                ]
            case Cancel():
                return [Cancelled(client_id=body.client_id, reason="asked for", **about)]
            case Query(kind=QueryKind.POSITION):
                report = PositionReport(
                    symbol=body.symbol, lots=self._lots[body.symbol], venue_ns=now_ns
                )
                return [QueryResult(query=body, complete=True, venue_ns=now_ns, reports=(report,))]
            case Query():
                return [QueryResult(query=body, complete=True, venue_ns=now_ns)]
            case CancelAll() | SetStop():
                return []


# -- the worker ------------------------------------------------------------------------------------


class FollowerModel:
    def __init__(self, settings: Settings) -> None:
        fixed = followers(settings, 20, "return_now")  # turns every second or two
        self.pointer, self.bundle = fixed.pointer, fixed.bundle
        self.swaps = self.refused = 0

    def refresh(self) -> bool:
        return False


class _ReplayClock:
    """The recording's time: it stands until the sender has told when it begins."""

    def __init__(self, first_ns: int, speed: float, told: Any) -> None:
        self._first_ns, self._speed, self._told = first_ns, speed, told
        self.anchor_ns = 0

    def __call__(self) -> int:
        if not self.anchor_ns:
            with suppress(queue.Empty):
                self.anchor_ns = self._told.get_nowait()
        passed_ns = time.monotonic_ns() - self.anchor_ns if self.anchor_ns else 0
        return self._first_ns + int(max(0, passed_ns) * self._speed)


class _Frame(Item):
    """An item with the time at which it was to be sent as ``due_ns``."""

    read_ns = 0  #: when it was read from the socket


class _TimedShell(Shell):
    """Knows, of each request, when the frame that led to it was due, and what each stage took (of frames
    that were taken together: all of them).
    """

    def watch(self) -> None:
        core, watch = self.core, Stopwatch()
        self.stopwatch = watch
        self.requests: dict[int, dict[str, int]] = {}  #: number -> instants and stages, ns
        self._origin: dict[str, int] = {}
        self._origins: dict[int, dict[str, int]] = {}  #: of frames taken together, by their time
        answer_ns = round(self.settings.live.answer_s * SECOND_NS)
        for owner, name, stage in (
            (core._decoder, "decode_frame", "decode"),
            (core._decoder, "read", "decode"),
            (core._decoder, "advance", "market"),
            (core._decoder, "finish", "market"),
            (core.trader, "on_rows", "market"),
            (core.trader, "_push", "market"),
            (core.trader, "_decide", "decide"),
            (core.trader, "react", "decide"),
            (core.desk.guard, "allow", "guard"),
            (self.log, "append_input", "log"),
            (self.log, "append", "log"),
            (self.log, "append_effects", "log"),
        ):
            watch.wrap(owner, name, stage)
        put = self.writer.put

        def handed(position: int, send: Send) -> None:
            at = {"handed": time.monotonic_ns()}
            origin = self._origins.get(send.deadline_ns - answer_ns, self._origin)
            self.requests[send.number] = origin | watch.spent | at
            put(position, send)

        self.writer.put = handed  # type: ignore[method-assign]

    def take(self, item: Item | Given) -> None:
        self._begin([item])
        super().take(item)

    def _together(self, items: Sequence[Item]) -> None:
        self._begin(items)
        super()._together(items)

    def _begin(self, items: Sequence[Item | Given]) -> None:
        self.stopwatch.spent.clear()
        self._origins, taken = {}, time.monotonic_ns()
        for item in reversed(items):
            due = item.due_ns if isinstance(item, Item) else item.read_ns
            read = item.read_ns if isinstance(item, _Frame | Given) else due
            self._origin = {"due": due, "read": read, "taken": taken}
            if isinstance(item, _Frame):
                self._origins[max(self.now_ns, item.receive_ns)] = self._origin


class _Run:
    """One pace: the sender's process, the worker, and what its requests took. A context manager."""

    def __init__(self, root: Path, capture: str, speed: float, as_it_was: bool) -> None:
        self._as_it_was = as_it_was
        self.settings = msgspec.convert(
            {"root": str(root), "model": {"fee_row": "zero"}, "live": {"venue": "sandbox"},
             "execution": {"algorithm": "passive", "deadline_s": 10.0},
             # What crosses is filled at its bound here, and the losses would end the run.
             "risk": {"daily_loss_usdt": 1e12, "drawdown_usdt": 1e12}}, Settings,
        )  # fmt: skip
        self._capture, self._speed = capture, speed
        self._instruments = instruments_of([capture], SYMBOLS)
        self._first_ns = next(read_lines(capture))[0]
        self._ends = ExitStack()
        self.collections: list[float] = []

    def __enter__(self) -> _Run:
        spawn = multiprocessing.get_context("spawn")
        self._told = spawn.Queue()
        sender = spawn.Process(
            target=_serve, args=(self._capture, self._speed, self._told), daemon=True
        )
        sender.start()
        self._ends.callback(sender.join, 10)
        self._ends.callback(sender.terminate)
        self._port = self._told.get(timeout=60)
        self.shell, self._feed = self._worker()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()
        unsettle()

    def _worker(self) -> tuple[_TimedShell, WireFeed]:
        settings, instruments = self.settings, self._instruments
        state = Path(settings.root) / "live" / "bench"
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._clock = clock = _ReplayClock(self._first_ns, self._speed, self._told)
        topics = public_topics(SYMBOLS, [settings.market.book_depth])
        url = f"ws://127.0.0.1:{self._port}"
        feed = WireFeed(url, topics, clock_ns=clock, speed=self._speed, inbox=inbox)
        model: Any = FollowerModel(settings)
        rehearse(settings, instruments, model)
        settle()
        if self._as_it_was:
            gc.unfreeze()
            gc.set_threshold(700, 10, 10)
        grid = {symbol: (found.tick, found.lot) for symbol, found in instruments.items()}
        header = Header(
            venue="bench", account="", source="recorded", instruments=grid,
            settings=b"{}", code="bench", run="bench",
        )  # fmt: skip
        log = LogWriter(state / "log", header, self._first_ns, background=True)
        capture = OwnCapture(settings.root, "bench", instruments)
        decisions = DecisionLog(state / "decisions", "bench", feature_names())
        keeper = Keeper(capture, decisions, lambda error: shell.failed(error), may_wait=False)
        self.venue = _Venue(
            instruments, lambda body: inbox.put(Given(body, time.monotonic_ns())), clock
        )
        shell = _TimedShell(
            settings,
            instruments,
            state=None,
            champion=model,
            feed=feed,
            inbox=inbox,
            log=log,
            keeper=keeper,
            say=structlog.wrap_logger(structlog.ReturnLogger()),
            codec=PlainCodec(),
            gateway=self.venue,
            clock_ns=clock,
            speed=self._speed,
        )
        self._ends.callback(log.close)
        self._ends.callback(keeper.close)
        shell.core.reconciliation._check = lambda _: []
        shell.watch()
        return shell, feed

    def trade(self, span_s: float) -> None:
        """Trade for so long, warm from the first second: the recording's own bars, over and over."""
        past = capture_history(self._capture, self._instruments, self.settings)
        assert past is not None
        begin_ns = self._first_ns // SECOND_NS * SECOND_NS
        history = {symbol: hour_of(each, begin_ns) for symbol, each in past.items()}
        self.shell.begin(begin_ns, Append(kind="run", time_ns=begin_ns, body=b"{}"), history)
        if self._as_it_was:
            self.shell._collected_s = 1 << 62
            self.shell.keeper.frames = self.shell.keeper.capture.append  # type: ignore[method-assign]
            while not self.shell.keeper.capture.paths:
                time.sleep(0.01)
        until_ns = begin_ns + round(span_s * self._speed * SECOND_NS)
        started = [0]

        def collected(phase: str, _: dict[str, int]) -> None:
            if phase == "start":
                started[0] = time.monotonic_ns()
            else:
                self.collections.append((time.monotonic_ns() - started[0]) / 1e6)

        gc.callbacks.append(collected)
        try:
            self.shell.run(self._due(iter(self._feed)), flatten=False, until_ns=until_ns)
        finally:
            gc.callbacks.remove(collected)

    def _due(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items; of a frame, with the time at which it was due to be sent."""
        received = np.array(
            [ns for ns, frame in read_lines(self._capture) if not frame.startswith(b'{"l2"')]
        )
        offsets = ((received - received[0]) / self._speed).astype(np.int64).tolist()
        number = 0
        for item in items:
            if isinstance(item, Item) and item.frame and not item.frame.startswith(b'{"l2"'):
                frame = _Frame(item.receive_ns, item.frame, self._clock.anchor_ns + offsets[number])
                frame.read_ns, item = item.due_ns, frame
                number += 1
            yield item


def _figures(runs: Sequence[_Run], data: str, pace: str, disk: Disk) -> Iterator[Measure]:
    """Percentiles of the whole and of each stage over all runs, with their histograms."""
    stages = {stage: Histogram() for stage in (*STAGES, "total")}
    for run in runs:
        for number, written in run.venue.written.items():
            found = run.shell.requests[number]
            if not found["due"]:
                continue
            begun = run.venue.begun[number]
            stages["feed"].add(max(0, found["read"] - found["due"]))
            stages["queue"].add(max(0, found["taken"] - found["read"]))
            for stage in ("decode", "market", "decide", "guard", "log"):
                stages[stage].add(found.get(stage, 0))
            stages["sync"].add(begun - found["handed"])
            stages["send"].add(written - begun)
            stages["total"].add(written - found["due"])
    total = stages["total"]
    collections = [taken_ms for run in runs for taken_ms in run.collections]
    how = (
        f"{data}, two symbols, {len(runs)} runs, {total.count:,} order requests of "
        f"{sum(run.shell.core.frames for run in runs):,} frames; from the instant at which the frame "
        f"behind it was due to the last byte written; on {disk.kind}; {len(collections)} collections of "
        f"at most {max(collections, default=0.0):.2f} ms"
    )
    parts = {
        stage: found.summary() | {"histogram": found.buckets()} for stage, found in stages.items()
    }
    for percent in (50, 99, 99.9):
        yield Measure(
            name=f"order, {pace}: p{percent:g}",
            ours=total.percentile_us(percent) / 1e3,
            unit="ms",
            better="less",
            how=how,
            parts=parts if percent == 50 else {},
        )
    for stage in STAGES:
        yield Measure(
            name=f"order, {pace}, {stage}: p99",
            ours=stages[stage].percentile_us(99) / 1e3,
            unit="ms",
            better="less",
            how=how,
        )


def hour_of(history: SymbolHistory, until_ns: int) -> SymbolHistory:
    """An hour of a recording's bars, repeated, up to an instant, with an empty book."""
    back = np.arange(3_660, dtype=np.int64)[::-1]
    values = history.bars.values[back % len(history.bars.values)]
    bars = Bars(t_ns=until_ns - SECOND_NS * back, values=values)
    return SymbolHistory(bars, Book(), history.ticker)
