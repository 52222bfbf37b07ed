"""`l2 bench AREA`: throughput, latency and memory, beside a peer where there is one, against goals.

To add an area, write a module here with a function

    measure(quick: bool, say: Say) -> Iterator[Measure]

that yields figures as they are measured, name it in `AREAS`, and put its goals into `GOALS` under the
names of its measures. With ``quick`` it does the same work on so little data that a test can run it;
the figures then mean nothing, and no goal is judged.

The speed of a machine drifts while a benchmark runs, so competitors are measured in turn: ours,
theirs, ours, theirs. The best of several repetitions is what the code can do undisturbed; it is taken
for both sides alike. Latencies are never a best: their percentiles are over one whole run.
"""

from __future__ import annotations

import argparse
import operator
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from execution.algorithms import ALGORITHMS
from market.console import Result, Say, say, significant, table
from market.errors import DataError, UsageError
from market.settings import Settings

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PEER: Final = _REPOSITORY / "peers" / "hftbacktest" / "bin" / "python"
_PEER_PROGRAMS: Final = _REPOSITORY / "tests" / "peers"

#: Area -> the module that measures it.
AREAS: Final[dict[str, str]] = {
    "market": "proving.bench.market",
    "capture": "proving.bench.capture",
    "execution": "proving.bench.execution",
    "synth": "proving.bench.synthetic",
    "sandbox": "proving.bench.sandbox",
}

_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
}


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure, and the peer's for the same work on the same data where there is one.

    ``better`` is "more" or "less"; ``how`` says what was measured, on which data, and which of several
    repetitions this is.
    """

    name: str
    ours: float
    unit: str
    how: str
    peer: float | None = None
    better: str = "more"

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer's; None without a peer."""
        if self.peer is None:
            return None
        return self.ours / self.peer if self.better == "more" else self.peer / self.ours


class Threshold(msgspec.Struct, frozen=True):
    """A goal: the bound that ``ours``, or the ``ratio`` to the peer, has to keep."""

    of: str
    relation: str
    value: float

    def __str__(self) -> str:
        return f"{self.of} {self.relation} {self.value:g}"

    def met(self, measure: Measure) -> bool | None:
        """Whether the figure keeps the bound; None when it does not exist (no peer)."""
        figure = measure.ratio if self.of == "ratio" else measure.ours
        return None if figure is None else _OPERATORS[self.relation](figure, self.value)


def _ratio(value: float) -> Threshold:
    return Threshold("ratio", ">=", value)


def _at_least(value: float) -> Threshold:
    return Threshold("ours", ">=", value)


def _at_most(value: float) -> Threshold:
    return Threshold("ours", "<=", value)


#: Area -> name of a measure -> its goals. Ratios count from 1: above it ours is better.
GOALS: Final[dict[str, dict[str, tuple[Threshold, ...]]]] = {
    "market": {
        "book, generated": (_ratio(1.5),),
        "book, recorded": (_ratio(1.5),),
        "book and bars, generated": (_ratio(0.5),),
        "book and bars, recorded": (_ratio(0.5),),
        "frames to events, generated": (_ratio(10), _at_least(60)),
        "frames to events, recorded": (_ratio(10), _at_least(60)),
        "live, recorded pace: p99": (_at_most(1),),
        "live, recorded pace: p99.9": (_at_most(10),),
        "live, 10x burst: p99": (_at_most(1),),
        "live, 10x burst: p99.9": (_at_most(10),),
        "evaluator alone: p99": (_at_most(100),),
        "a day taken in: peak memory": (_at_most(1000),),
        "a day taken in: time per event over its first quarter": (_at_most(1.2),),
        "query: last hour, 20 features of one symbol": (_at_most(10),),
        "query: last hour, all features of both symbols": (_at_most(60),),
        "query: aggregate of one feature over all days": (_at_most(100),),
    },
    "capture": {
        "archive day to events and bars": (_at_most(30),),
    },
    "execution": {
        "replay without a strategy, generated": (_ratio(1),),
        "replay without a strategy, recorded": (_ratio(1),),
        "quotes in plain Python, generated": (_ratio(2),),
        "quotes in plain Python, recorded": (_ratio(2),),
        "quotes, peak memory, generated": (_ratio(1),),
        "quotes, peak memory, recorded": (_ratio(1),),
        "quotes, cost per row of 4 spans over one": (_at_most(1.1),),
        "fill probability of one state": (_at_most(20),),
        **{f"decision, {name}: p99": (_at_most(200),) for name in ALGORITHMS},
    },
    "sandbox": {
        "order over REST to answer: p99": (_at_most(20),),
        "order over WebSocket to answer: p99": (_at_most(20),),
        # A push interval of the topic.
        "frames late: most": (_at_most(100),),
        "memory after the last hour over the second": (_at_most(1.05),),
    },
    "synth": {
        "a day to events, BTCUSDT": (_at_most(30),),
        "a day to events, ETHUSDT": (_at_most(30),),
        "cost per L3 event, a day over its first hour, BTCUSDT": (_at_most(1.1),),
        "cost per L3 event, a day over its first hour, ETHUSDT": (_at_most(1.1),),
        # A thousand symbol-days an hour.
        "a day to bars in the reduced form, BTCUSDT": (_at_most(3.6),),
        "a day to bars in the reduced form, ETHUSDT": (_at_most(3.6),),
        "peak memory, two days over one": (_at_most(1.1),),
    },
}


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the result; ``goal`` is null where none is set, ``met`` where none was judged."""

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    unit: str
    goal: str | None
    met: bool | None
    how: str


class BenchError(UsageError):
    """No benchmark has this name."""


class PeerError(DataError):
    """The peer failed, or its result differs from ours; the message says where."""


def measures(area: str, quick: bool, say: Say) -> Iterator[Measure]:
    """The figures of an area as they are measured; BenchError for an unknown area."""
    if area not in AREAS:
        raise BenchError(f"{area}: nothing is measured under this name; known: {', '.join(AREAS)}")
    figures: Iterator[Measure] = import_module(AREAS[area]).measure(quick, say)
    return figures


def run(area: str, quick: bool, say: Say) -> dict[str, Any]:
    """Measure an area; plain data, with the machine and commit it was measured on."""
    if not peer_ready():
        say("the peer is not installed, so its columns stay empty; make bench-peers installs it")
    started = time.monotonic()
    rows = []
    for measure in measures(area, quick, say):
        rows.append(_row(measure, () if quick else GOALS.get(area, {}).get(measure.name, ())))
        say(f"{measure.name}: {significant(measure.ours)} {measure.unit}")
    return {
        "area": area,
        "quick": quick,
        "peer": "hftbacktest 2.4.4" if peer_ready() else None,
        **_environment(),
        "seconds": round(time.monotonic() - started, 1),
        "rows": [msgspec.structs.asdict(row) for row in rows],
    }


def _row(measure: Measure, goals: tuple[Threshold, ...]) -> ResultRow:
    judged = [goal.met(measure) for goal in goals]
    return ResultRow(
        name=measure.name,
        ours=measure.ours,
        peer=measure.peer,
        ratio=measure.ratio,
        unit=measure.unit,
        goal=", ".join(map(str, goals)) or None,
        met=None if not judged or None in judged else all(judged),
        how=measure.how,
    )


def _environment() -> dict[str, Any]:
    """Date, machine and commit of a run."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "commit": _commit(),
    }


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Abbreviated commit of the checkout, with a plus when files differ; None outside git."""
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def lines(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The rows as cells of a table for people: `HEAD` names the columns."""
    return [
        (
            row["name"],
            significant(row["ours"]),
            significant(row["peer"]),
            significant(row["ratio"]),
            row["unit"],
            row["goal"] or "",
            {True: "met", False: "MISSED", None: ""}[row["met"]],
        )
        for row in result["rows"]
    ]


def markdown(result: dict[str, Any]) -> str:
    """The result as a section of docs/benchmarks.md: the table, and what each row is."""
    peer = f", beside {result['peer']}" if result["peer"] else ", without the peer"
    table = [HEAD, ("---",) * len(HEAD), *lines(result)]
    return "\n".join(
        [
            f"## {result['area']}",
            "",
            f"{result['date']}, commit {result['commit']}, {result['cores']} cores of "
            f"{result['processor']}, Python {result['python']}, load {result['load']:g} at the end"
            f"{peer}; the run took {result['seconds']:.0f} s.",
            "",
            *("| " + " | ".join(str(cell) or " " for cell in row) + " |" for row in table),
            "",
            *(f"- **{row['name']}**: {row['how']}" for row in result["rows"]),
        ]
    )


HEAD: Final = ("what", "ours", "peer", "ratio", "unit", "goal", "")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 bench`."""
    parser.add_argument("area", metavar="AREA", help=f"one of {', '.join(AREAS)}")
    parser.add_argument(
        "--quick", action="store_true", help="so little of everything that the figures mean nothing"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print a section of docs/benchmarks.md"
    )


def command(_: Settings, options: argparse.Namespace) -> Result:
    """`l2 bench`: an area's measures beside their goals."""
    result = run(options.area, options.quick, say)
    if options.markdown:
        print(markdown(result))
    elif not options.json:
        print(table(lines(result), HEAD))
    return result


# -- tools of the areas ----------------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(works: Sequence[Callable[[], float]], repetitions: int) -> list[float]:
    """The smallest time (s) that each of several works reports, run in turn so that drift is shared."""
    rounds = [[work() for work in works] for _ in range(repetitions)]
    return [min(times) for times in zip(*rounds, strict=True)]


def recorded() -> list[Path]:
    """The recorded captures of busy markets in the folder that ``L2_TEST_DATA`` names, in time order."""
    folder = os.environ.get("L2_TEST_DATA")
    return sorted(Path(folder).glob("usdm-*.frames.zst")) if folder else []


@contextmanager
def real_time() -> Iterator[str]:
    """Real-time scheduling (SCHED_FIFO), so that other programs do not count; yields which priority.

    Normal priority where the system does not grant it. Not for work that keeps a core busy for a
    second or more: the kernel then throttles real-time processes.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError):
        yield "normal priority"
        return
    try:
        yield "real-time priority"
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def peak_mb() -> float:
    """Largest resident memory of this process so far, MB (1e6 bytes).

    Linux's ``ru_maxrss`` includes what the parent held at the fork; ``VmHWM`` begins with the program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts in bytes


# -- the peer --------------------------------------------------------------------------------------


def peer_ready() -> bool:
    """Whether the peer is installed (by `make bench-peers`)."""
    return _PEER.exists() and _PEER.parent.parent.joinpath(".ready").exists()


def run_peer(program: str, *arguments: str | Path) -> None:
    """Run a program of tests/peers to its end; CalledProcessError when it fails."""
    command = [str(_PEER), str(_PEER_PROGRAMS / program), *map(str, arguments)]
    subprocess.run(command, check=True)


class Peer:
    """A program of tests/peers under the peer's own interpreter, driven over its pipes.

    It loads its data, compiles its code, and then does one piece of work per question, which it times
    itself. Questions and answers are lines of JSON.
    """

    def __init__(self, program: str, *arguments: str | Path) -> None:
        if not peer_ready():
            raise PeerError("the peer's environment is missing; make bench-peers makes it")
        self.program = program
        self._process = subprocess.Popen(
            [str(_PEER), str(_PEER_PROGRAMS / program), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: str) -> Any:
        """The answer to a question; PeerError when the program has ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(question).decode() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reported below, by the answer that does not come
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise PeerError(f"{self.program} ended with status {status} at {question!r}")
        return msgspec.json.decode(line)

    def close(self) -> None:
        """Close the pipes, on which the program ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
