"""`l2 bench cluster`: what a Dask cluster's path costs beside processes of this machine, on the same cores."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from market import compute
from market.compute import mapping
from market.console import Say
from market.settings import Settings
from market.units import days_between
from proving.bench.command import in_turn, seconds
from proving.bench.goals import Measure

#: Memory that a worker says it has (GB).
MEMORY_GB: Final = 4
_WORKERS: Final = 2
_FIRST: Final = "2026-01-05"
_LOCAL: Final = ("--host", "127.0.0.1", "--no-dashboard")


class Cluster:
    """A scheduler and worker processes on loopback, each restarted by its nanny when it dies."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder, self.uri = folder, f"dask://127.0.0.1:{self.port}"
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, workers: int = _WORKERS, threads: int = 1) -> None:
        self._run("scheduler", "--port", str(self.port), *_LOCAL)
        self.join(workers, threads)

    def join(self, workers: int = 1, threads: int = 1) -> None:
        """Start more workers."""
        options = ("--nworkers", str(workers), "--nthreads", str(threads), "--memory-limit", "0")
        given = ("--resources", f"memory_gb={MEMORY_GB}")
        self._run("worker", f"127.0.0.1:{self.port}", *_LOCAL, *options, *given)

    def _run(self, *arguments: str) -> None:
        command, one = [sys.executable, "-m", "dask", *arguments], {"OMP_NUM_THREADS": "1"}
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            self._running.append(
                subprocess.Popen(
                    command, cwd=self.folder, env=os.environ | one, stdout=log, stderr=log, start_new_session=True
                )
            )  # fmt: skip

    def stop(self, first: int = 0) -> None:
        """End all of it at once, as a machine that loses its power does; from 1 on all but the scheduler."""
        for process in self._running[first:]:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        del self._running[first:]


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area, as it is measured."""
    from assets.market_data import bars_of

    days, turns, empty = (1, 1, 10) if quick else (6, 3, 500)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster, lake = Cluster(folder), folder / "lake"
        here = Settings(root=str(lake), source="synthetic")
        there = msgspec.structs.replace(here, compute=cluster.uri)
        cluster.start()
        try:
            say("starting a scheduler and two workers")
            compute.check(there)
            with mapping(_WORKERS, here) as local, mapping(_WORKERS, there) as remote:

                def bars(mapped: compute.Map) -> float:
                    shutil.rmtree(lake / "bars", ignore_errors=True)
                    tasks = [
                        (here.root, here, "BTCUSDT", day)
                        for day in days_between(_FIRST, "2026-12-31")[:days]
                    ]
                    return seconds(lambda: mapped(bars_of, tasks, lambda *_: None))

                for mapped in (local, remote):  # imports and compiles
                    bars(mapped)
                say(f"bars of {days} days, in {turns} turns")
                took = in_turn([lambda: bars(local), lambda: bars(remote)], turns)
                nothing = [(n,) for n in range(empty)]

                def none(mapped: compute.Map) -> float:
                    return seconds(lambda: mapped(abs, nothing, lambda *_: None))

                idle = in_turn([lambda: none(local), lambda: none(remote)], turns)
            connected = min(seconds(lambda: compute.check(there)) for _ in range(turns))
        finally:
            cluster.stop()
    how = f"best of {turns} turns, local and cluster in turn, {_WORKERS} processes each on loopback, warm"
    yield Measure(
        name="bars by the cluster over bars here",
        ours=took[1] / took[0],
        unit="times",
        better="less",
        how=f"{days} synthetic days of BTCUSDT, {took[0] / days:.2f} s a day here; {how}",
    )
    for place, value in zip(("here", "by the cluster"), idle, strict=True):
        yield Measure(
            name=f"an empty task {place}",
            ours=value / empty * 1e3,
            unit="ms",
            better="less",
            how=f"{empty} tasks; {how}",
        )
    yield Measure(
        name="connect and check", ours=connected * 1e3, unit="ms", better="less",
        how=f"code, libraries, clock and root of both workers; best of {turns}",
    )  # fmt: skip
