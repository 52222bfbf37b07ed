"""`l2 bench AREA`: throughput, latency and memory, beside a peer where there is one, against goals.

To add an area, write a module here with a function

    measure(quick: bool, say: Say) -> Iterator[Measure]

that yields figures as they are measured, name it in `AREAS`, and put its goals into
`proving.bench.goals.GOALS` under the names of its measures. With ``quick`` it does the same work on so little data that a test can run it;
the figures then mean nothing, and no goal is judged.

The speed of a machine drifts while a benchmark runs, so competitors are measured in turn: ours,
theirs, ours, theirs. The best of several repetitions is what the code can do undisturbed; it is taken
for both sides alike. Latencies are never a best: their percentiles are over one whole run.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import msgspec

from market.console import Result, Say, say, significant, table
from market.errors import DataError, UsageError
from market.settings import Settings
from proving.bench.calibration import REFERENCE_MACHINE, REFERENCE_MS, between, calibrate, factors
from proving.bench.goals import GOALS, Measure, Threshold

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PEER: Final = _REPOSITORY / "peers" / "hftbacktest" / "bin" / "python"
_PEER_PROGRAMS: Final = _REPOSITORY / "tests" / "peers"

#: Area -> the module that measures it.
AREAS: Final[dict[str, str]] = {
    "market": "proving.bench.market",
    "live": "proving.bench.live",
    "lake": "proving.bench.lake",
    "growth": "proving.bench.growth",
    "capture": "proving.bench.capture",
    "execution": "proving.bench.execution",
    "backtest": "proving.bench.backtest",
    "synth": "proving.bench.synthetic",
    "sandbox": "proving.bench.sandbox",
    "models": "proving.bench.models",
    "cluster": "proving.bench.cluster",
    "page": "proving.bench.page",
}

#: A row's factor is of the calibrations before and after it, which are never further apart than it takes.
_CALIBRATED_FOR_S: Final = 20.0


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the result; ``goal`` is null where none is set, ``met`` where none was judged.

    ``goal`` is as stated, for the reference machine; ``bound`` is what it comes to on this one, where
    work of the row's ``kind`` takes ``factor`` times as long, and what ``met`` judges.
    ``met_unscaled`` judges the goal as stated.
    """

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    unit: str
    goal: str | None
    kind: str | None
    factor: float | None
    bound: str | None
    met: bool | None
    met_unscaled: bool | None
    how: str
    parts: dict[str, Any] = {}


class BenchError(UsageError):
    """No benchmark has this name."""


class PeerError(DataError):
    """The peer failed, or its result differs from ours; the message says where."""


def measures(area: str, quick: bool, say: Say, seconds: float | None = None) -> Iterator[Measure]:
    """The figures of an area as they are measured; BenchError for an unknown area, or one without ``seconds``."""
    if area not in AREAS:
        raise BenchError(f"{area}: nothing is measured under this name; known: {', '.join(AREAS)}")
    measure = import_module(AREAS[area]).measure
    if seconds is not None and area != "page":
        raise BenchError(f"{area}: takes the time it takes; --seconds is of page alone")
    figures: Iterator[Measure] = measure(quick, say, *([] if seconds is None else [seconds]))
    return figures


def run(area: str, quick: bool, say: Say, seconds: float | None = None) -> dict[str, Any]:
    """Measure an area; plain data, with the machine and commit it was measured on."""
    if not peer_ready():
        say("the peer is not installed, so its columns stay empty; make bench-peers installs it")
    passes = 1 if quick else 25
    started = time.monotonic()
    load = os.getloadavg()[0]
    calibrations = [calibrate(passes)]
    calibrated = time.monotonic()
    taken: list[tuple[Measure, int]] = []
    for measure in measures(area, quick, say, seconds):
        taken.append((measure, len(calibrations)))
        say(f"{measure.name}: {significant(measure.ours)} {measure.unit}")
        if time.monotonic() > calibrated + _CALIBRATED_FOR_S:
            calibrations.append(calibrate(passes))
            calibrated = time.monotonic()
    calibrations.append(calibrate(passes))
    goals = {} if quick else GOALS.get(area, {})
    rows = [
        _row(
            measure,
            goals.get(measure.name, ()),
            factors(between(calibrations[after - 1], calibrations[after])),
        )
        for measure, after in taken
    ]
    return {
        "area": area,
        "quick": quick,
        "peer": "hftbacktest 2.4.4" if peer_ready() else None,
        **_environment(),
        "load_at_start": round(load, 2),
        "reference": {"machine": REFERENCE_MACHINE, "ms": REFERENCE_MS},
        "calibrations_ms": calibrations,
        "seconds": round(time.monotonic() - started, 1),
        "rows": [msgspec.structs.asdict(row) for row in rows],
    }


def _row(
    measure: Measure,
    goals: tuple[Threshold, ...],
    factor: Mapping[str, float] = MappingProxyType({}),
) -> ResultRow:
    bounds = [goal.scaled(factor) for goal in goals]
    kind = next((goal.kind for goal in goals if goal.kind), None)
    return ResultRow(
        name=measure.name,
        ours=measure.ours,
        peer=measure.peer,
        ratio=measure.ratio,
        unit=measure.unit,
        goal=", ".join(map(str, goals)) or None,
        kind=kind,
        factor=factor[kind] if kind else None,
        bound=", ".join(map(str, bounds)) or None,
        met=_all_met(measure, bounds),
        met_unscaled=_all_met(measure, goals),
        how=measure.how,
        parts=measure.parts,
    )


def _all_met(measure: Measure, goals: Sequence[Threshold]) -> bool | None:
    """Whether every goal is met; None where one cannot be judged, or there is none."""
    judged = [goal.met(measure) for goal in goals]
    return None if not judged or None in judged else all(judged)


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
            f"{row['factor']:.2f} {row['kind']}" if row["kind"] else "",
            row["bound"] if row["kind"] else "",
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
            f"{result['processor']}, Python {result['python']}, load {result['load_at_start']:g} at the start and {result['load']:g} at the end"
            f"{peer}; the run took {result['seconds']:.0f} s. {speeds(result)}",
            "",
            *("| " + " | ".join(str(cell) or " " for cell in row) + " |" for row in table),
            "",
            *(f"- **{row['name']}**: {row['how']}" for row in result["rows"]),
        ]
    )


def speeds(result: dict[str, Any]) -> str:
    """One sentence: how long each kind of calibration takes here, relative to the reference machine."""
    taken = result["calibrations_ms"]
    reference = result["reference"]
    spans = ", ".join(
        f"{kind} {min(each[kind] for each in taken) / ms:.2f}–{max(each[kind] for each in taken) / ms:.2f}"
        for kind, ms in reference["ms"].items()
    )
    return f"Times relative to the reference machine ({reference['machine']}): {spans}."


HEAD: Final = ("what", "ours", "peer", "ratio", "unit", "goal", "machine", "goal here", "")


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 bench`."""
    parser.add_argument("area", metavar="AREA", help=f"one of {', '.join(AREAS)}")
    parser.add_argument(
        "--quick", action="store_true", help="so little of everything that the figures mean nothing"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of `page`: how long it is watched"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print a section of docs/benchmarks.md"
    )


def command(_: Settings, options: argparse.Namespace) -> Result:
    """`l2 bench`: an area's measures beside their goals."""
    result = run(options.area, options.quick, say, options.seconds)
    if options.markdown:
        print(markdown(result))
    elif not options.json:
        print(table(lines(result), HEAD))
        print(
            f"{speeds(result)} Load {result['load_at_start']:g} at the start, {result['load']:g} at the end."
        )
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
