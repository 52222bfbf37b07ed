"""`l2 bench page`: what the page costs the worker, and what it costs itself.

The worker replays a capture on paper at several times its pace, in a process of its own, in turn without a
reader of its state stream, with one that reads, and with one that is stopped (SIGSTOP). Its orders and records
are compared bit for bit. What the reader heard is then published again, at the same rate, to `l2 dashboard`
with its market page open in headless Chromium, whose own process is watched. ``--seconds`` says for how long.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from live import log
from live.feed import ReplayFeed
from live.history import capture_history
from live.messages import Append, Send
from live.run import Run
from live.state_stream import StateStream, read_states
from market.console import Say
from market.errors import UsageError
from market.settings import Settings
from market.units import SECOND_NS
from proving.bench.command import recorded
from proving.bench.goals import Measure
from proving.bench.live import SYMBOLS, FollowerModel, hour_of
from proving.synthetic import profile, write_frames
from proving.usage import cpu_s, resident_mb

ARMS: Final = ("no reader", "a reader", "a stopped reader")
#: A stopped reader loses lines after 256 of them and what the socket holds: at four a second some 80 s.
_SPEED: Final = 3.0
_SPAN_S: Final = 100.0
_ROUNDS: Final = 5
_SAMPLE_S: Final = 5.0
_PUBLISH_S: Final = 0.25
CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")


def measure(quick: bool, say: Say, seconds: float | None = None) -> Iterator[Measure]:
    """Every figure of this area; the page is watched for ``seconds`` (60 by default)."""
    span_s, rounds = (6.0, 1) if quick else (_SPAN_S, _ROUNDS)
    market_s = 20 + round(span_s * _SPEED)
    watched_s = seconds or (10.0 if quick else 60.0)
    with tempfile.TemporaryDirectory(prefix="l2-bench-") as folder:
        capture = next(map(str, reversed(recorded())), "")
        if not capture:
            capture = str(Path(folder) / "made.frames.zst")
            write_frames(capture, profile("default"), 1, SYMBOLS, "2026-03-02", 0, market_s)
        heard = Path(folder) / "heard.jsonl"
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for n in range(rounds):
            for arm in ARMS:
                say(f"round {n + 1} of {rounds}, {arm}, {span_s:g} s")
                root = Path(folder) / f"{n}{ARMS.index(arm)}"
                found[arm].append(_worker_beside(root, capture, span_s, arm, heard))
        yield from _of_worker(found, rounds, span_s)
        say(f"the page, {watched_s:g} s")
        yield from _of_page(Path(folder) / "page", heard, watched_s)


# -- the worker ------------------------------------------------------------------------------------


class _Bench(Run):
    """A run with a fixed model that trades all the time, and a history."""

    capture = ""

    def _champion(self) -> Any:
        model = FollowerModel(self.settings)
        model.close = lambda: None  # type: ignore[attr-defined]
        return model

    def begin(self, feed: Any, first_ns: int, stack: ExitStack, history: Any = None) -> Any:
        past = capture_history(self.capture, self.instruments, self.settings)
        assert past is not None
        begin_ns = first_ns // SECOND_NS * SECOND_NS
        self.shell = super().begin(
            feed, first_ns, stack, {s: hour_of(each, begin_ns) for s, each in past.items()}
        )
        return self.shell


def _work(root: str, capture: str, span_s: float, told: Any) -> None:
    """Replay in this process; tell its processor time, events, lines that readers lost, and a checksum."""
    settings = msgspec.convert(
        {"root": root, "source": "recorded", "model": {"fee_row": "zero"},
         "execution": {"algorithm": "passive", "deadline_s": 10.0},
         "risk": {"daily_loss_usdt": 1e12, "drawdown_usdt": 1e12}}, Settings,
    )  # fmt: skip
    _Bench.capture = capture
    with _Bench(settings, [capture], None) as run:
        feed = ReplayFeed([capture], speed=_SPEED, duration_s=span_s)
        before = time.process_time()
        run.trade(feed, flatten=False)
        spent_s = time.process_time() - before
        events, stream = run.shell.core.events, run.shell.stream
    digest, orders = sha256(), 0
    for block in log.read(Path(root) / "live" / "paper" / "log"):
        for now_ns, body in block.records:
            if isinstance(body, Send | Append):
                orders += isinstance(body, Send)
                digest.update(msgspec.msgpack.encode((now_ns, body)))
    told.put({"cpu_s": spent_s, "events": events, "dropped": stream.dropped if stream else 0, "requests": orders,
              "digest": digest.hexdigest()})  # fmt: skip


def _hear(socket: str, out: str, stop: bool) -> None:
    """Read the state stream into a file, or stop after its first line."""
    while not Path(socket).exists():
        time.sleep(0.05)
    with open(out, "wb") as file:
        for line in read_states(socket, 60.0):
            if stop:
                os.kill(os.getpid(), signal.SIGSTOP)
            file.write(msgspec.json.encode(line) + b"\n")


def _worker_beside(
    root: Path, capture: str, span_s: float, arm: str, heard: Path
) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    worker = spawn.Process(target=_work, args=(str(root), capture, span_s, told))
    reader = spawn.Process(
        target=_hear,
        args=(str(root / "live/paper/state.sock"), str(heard if arm == ARMS[1] else os.devnull),
              arm == ARMS[2]),
    )  # fmt: skip
    worker.start()
    try:
        if arm != ARMS[0]:
            reader.start()
        result: dict[str, Any] = told.get(timeout=span_s + 300)
        return result
    finally:
        worker.join(30)
        worker.kill()
        if arm != ARMS[0]:
            reader.join(0 if arm == ARMS[2] else 10)
            reader.kill()  # also while it is stopped
            reader.join()


def _of_worker(
    found: Mapping[str, list[dict[str, Any]]], rounds: int, span_s: float
) -> Iterator[Measure]:
    each = {arm: [run["cpu_s"] / run["events"] for run in runs] for arm, runs in found.items()}
    first = found[ARMS[0]][0]
    how = (
        f"{rounds} runs of {span_s:g} s at {_SPEED:g} times the capture's pace, in turn; {first['events']:,} "
        f"events and {first['requests']:,} requests each; processor time of the worker's process"
    )
    yield Measure(
        name="worker, an event without a reader", ours=median(each[ARMS[0]]) * 1e6,
        unit="µs of processor", how=how, better="less", parts=dict(found),
    )  # fmt: skip
    for arm in ARMS[1:]:
        ratios = [one / alone for one, alone in zip(each[arm], each[ARMS[0]], strict=True)]
        yield Measure(
            name=f"worker, an event with {arm}", ours=median(ratios), unit="times", better="less",
            how="median of the ratios of runs beside each other to that without a reader",
            parts={"ratios": ratios},
        )  # fmt: skip
    others = {run["digest"] for runs in found.values() for run in runs}
    yield Measure(
        name="worker, runs whose orders or records differ", ours=float(len(others) - 1), unit="runs",
        better="less", how="every request and record of all runs, with its time, as one checksum",
    )  # fmt: skip
    yield Measure(
        name="worker, lines that a stopped reader lost",
        ours=float(median(run["dropped"] for run in found[ARMS[2]])),
        unit="lines",
        how="counted by the worker; it never waited for them",
    )


# -- the page --------------------------------------------------------------------------------------


def _of_page(root: Path, heard: Path, watched_s: float) -> Iterator[Measure]:
    with _published(root, heard), served(root) as (process, address), _opened(address):
        time.sleep(5)
        begun, before_s, samples = time.monotonic(), cpu_s(process.pid), []
        while (passed_s := time.monotonic() - begun) < watched_s:
            time.sleep(min(_SAMPLE_S, watched_s - passed_s))
            samples.append((cpu_s(process.pid), resident_mb(process.pid)))
        wall_s = time.monotonic() - begun
    cores = (samples[-1][0] - before_s) / wall_s
    how = (
        f"{wall_s:,.0f} s, {len(samples)} samples; four states a second of {len(SYMBOLS)} symbols, the market "
        f"page open in {'headless Chromium' if CHROMIUM else 'no browser: none is installed'}"
    )
    memory = [mb for _, mb in samples]
    yield Measure(
        name="page, most memory", ours=max(memory), unit="MB", better="less", how=how,
        parts={"resident_mb": memory},
    )  # fmt: skip
    yield Measure(
        name="page, processor", ours=cores, unit="cores", better="less", how=how,
        parts={"cpu_s": [cpu for cpu, _ in samples]},
    )  # fmt: skip


@contextmanager
def _published(root: Path, heard: Path) -> Iterator[None]:
    """A worker's stream that says again what was heard, over and over, as of now."""
    spawn = multiprocessing.get_context("spawn")
    path = root / "live" / "sandbox" / "state.sock"
    path.parent.mkdir(parents=True)
    told = spawn.Process(target=_publish, args=(str(path), str(heard)), daemon=True)
    told.start()
    try:
        yield
    finally:
        told.kill()
        told.join()


def _publish(path: str, heard: str) -> None:
    stream = StateStream(path)
    lines = [msgspec.json.decode(line) for line in Path(heard).read_bytes().splitlines()]
    if not lines:
        raise UsageError(f"{heard}: the reader heard nothing")
    while True:
        state: dict[str, dict[str, Any]] = {}
        for line in lines:
            for section, patch in line.get("state", {}).items():
                merged = state.get(section, {}) | patch
                state = state | {section: {k: v for k, v in merged.items() if v is not None}}
            if "worker" in state:
                state = state | {"worker": state["worker"] | {"time_ns": time.time_ns()}}
                stream.publish(state)
                time.sleep(_PUBLISH_S)


@contextmanager
def served(root: Path, *more: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`l2 dashboard` in a process of its own, with more arguments and environment ``variables``; its address."""
    command = [sys.executable, "-m", "orchestration.cli", "dashboard", "--root", str(root)]
    # NiceGUI would take a process below pytest for a test of its own kind.
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} | variables
    with subprocess.Popen(
        [*command, "--venue", "sandbox", "--port", "0", *more], stderr=subprocess.PIPE, text=True,
        env=environment,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            address = process.stderr.readline().split("the page: ")[1].split()[0]
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:  # it is said just before it serves
                with suppress(OSError), urllib.request.urlopen(address):
                    break
                time.sleep(0.05)
            yield process, address
        finally:
            process.kill()


@contextmanager
def _opened(address: str) -> Iterator[None]:
    """The market page in a browser, where one is installed."""
    if CHROMIUM is None:
        yield
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
            f"--user-data-dir={scratch}", "--disable-background-networking", f"{address}market",
        ]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as browser:
            try:
                yield
            finally:
                browser.terminate()
