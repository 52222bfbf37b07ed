"""What benchmarks are made with: a measured figure, fair repetition, and another engine beside ours.

Speeds of a machine drift while a benchmark runs, so what is compared is measured in turn: ours,
theirs, ours, theirs. The best of several repetitions is what the code can do when nothing disturbs
it; it is taken for both sides alike. Latencies are never a best: their percentiles are over all that
happened in one run.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from market.errors import DataError

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PEER: Final = _REPOSITORY / "peers" / "hftbacktest" / "bin" / "python"
_PEER_PROGRAMS: Final = _REPOSITORY / "tests" / "peers"


class PeerError(DataError):
    """The other engine failed, or its answer is not ours; the message says where."""


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure, and the peer's figure for the same work on the same data where there is one.

    ``better`` says which way is better, ``how`` what was measured, on what, and which of several
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


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(works: Sequence[Callable[[], float]], repetitions: int) -> list[float]:
    """The best (smallest) time that each of several works reports, run in turn."""
    found = [[work() for work in works] for _ in range(repetitions)]
    return [min(times) for times in zip(*found, strict=True)]


def recorded() -> list[Path]:
    """The recorded captures of busy markets in the folder that ``L2_TEST_DATA`` names, in time order."""
    named = os.environ.get("L2_TEST_DATA")
    return sorted(Path(named).glob("usdm-*.frames.zst")) if named else []


@contextmanager
def real_time() -> Iterator[str]:
    """Real-time priority for a latency that must not count what other programs take; says which.

    Normal priority where the system does not grant it. Not for work that keeps a core busy for as
    long as a second: the kernel would take the core away for a while.
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
    """The most memory that this process has held so far, in MB (1e6 bytes).

    Linux counts in ``ru_maxrss`` what the parent held when it started this process; ``VmHWM`` begins
    with the program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts in bytes


def peer_ready() -> bool:
    """Whether the peer's environment was made (`make bench-peers` makes it)."""
    return _PEER.exists() and _PEER.parent.parent.joinpath(".ready").exists()


def run_peer(program: str, *arguments: str | Path) -> None:
    """Run a program of tests/peers to its end; CalledProcessError when it fails."""
    command = [str(_PEER), str(_PEER_PROGRAMS / program), *map(str, arguments)]
    subprocess.run(command, check=True)


class Peer:
    """A program of tests/peers under the peer's own interpreter, which answers a line with a line.

    It is started with its arguments, makes itself ready (data loaded, code compiled), and then does
    one piece of work per question, which it times itself. Questions and answers are JSON.
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
            pass  # its end is told below, by the answer that does not come
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise PeerError(f"{self.program} ended with status {status} at {question!r}")
        return msgspec.json.decode(line)

    def close(self) -> None:
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
