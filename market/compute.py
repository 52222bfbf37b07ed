"""Where heavy work runs: pure, importable functions over tasks, in processes here or on a Dask cluster.

A task is run again when the worker that ran it is lost, so that a function gives the same result whenever it
is called and replaces what it writes as a whole. A step declares the memory of one task (GB): a worker
starts with what it has (``dask worker --nthreads 1 --resources memory_gb=8``) and takes no more tasks than fit.
Before the first task a cluster is asked for what would spoil the work: other code, other libraries, a clock
that differs, a lake's root that is not there. A worker that joins later is asked the same.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

from market.console import say
from market.errors import DataError, L2Error
from market.provenance import source_hash
from market.settings import Settings

#: The clocks of this machine and of a worker differ by no more than this (seconds).
CLOCKS_APART_S: Final = 1.0
#: A scheduler, and then its first worker, is waited for so long (seconds).
_WAIT_S: Final = 30
#: A cluster without a worker is said after this, and ends the work after that (seconds).
_SAID_S, _PATIENCE_S = 10.0, 300.0
#: It is looked at this often; what has ended is taken this often (seconds).
_LOOK_S, _TAKE_S = 5.0, 0.02
_MEMORY: Final = "memory_gb"
#: Libraries that decide what a task gives.
_LIBRARIES: Final = ("numpy", "numba", "duckdb", "pyarrow", "lightgbm")

_clock = time.time
#: Of a worker: code, libraries and root that it has been found to agree with.
_ALIKE: Final = set[tuple[Any, ...]]()

Done = Callable[[tuple[Any, ...], Any], None]


class ComputeError(DataError):
    """Where the work was to run it cannot, or what ran it was lost; the message names worker or task."""


class Map(Protocol):
    """``function(*task)`` for each task; ``done(task, result)`` as they end."""

    def __call__(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], done: Done
    ) -> None: ...


def map_tasks(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    workers: int,
    done: Done,
    settings: Settings | None = None,
    memory_gb: float = 0.0,
) -> None:
    """``function(*task)`` for each task where `mapping` says; ``done(task, result)`` as they end."""
    if tasks:
        with mapping(min(workers, len(tasks)), settings, memory_gb) as mapped:
            mapped(function, tasks, done)


@contextmanager
def mapping(
    workers: int, settings: Settings | None = None, memory_gb: float = 0.0
) -> Iterator[Map]:
    """A `Map` for several calls one after the other: on the cluster of the settings, else in ``workers``
    processes, fewer where the machine's memory does not hold as many tasks of ``memory_gb``.

    ComputeError when the cluster cannot serve, before any work; of a task whose workers are lost; and when
    its scheduler is gone. What was done stands.
    """
    if on_cluster(settings):
        assert settings is not None
        with _cluster(settings, memory_gb) as mapped:
            yield mapped
        return
    if memory_gb:
        workers = min(workers, int(_memory_gb() / memory_gb))
    if workers <= 1:
        yield _map_here
        return
    # spawn: a forked child would inherit the locks of dagster's threads
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_leave_interrupts
    ) as pool:

        def mapped(
            function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], done: Done
        ) -> None:
            futures = {pool.submit(function, *task): task for task in tasks}
            for future in as_completed(futures):
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    raise ComputeError(
                        f"{named(futures[future])}: a worker process was killed, perhaps for its memory; what "
                        "was done stands: run it again"
                    ) from error
                done(futures[future], result)

        yield mapped


def on_cluster(settings: Settings | None) -> bool:
    """Whether the settings send work to a cluster."""
    return settings is not None and settings.compute != "local"


def check(settings: Settings) -> None:
    """ComputeError when the cluster that the settings name cannot serve; nothing of ``local``."""
    if on_cluster(settings):
        with _cluster(settings, 0.0):
            pass


def named(task: Sequence[Any]) -> str:
    """A task for people: its words and numbers, without folders."""
    words = (getattr(each, "__name__", each) for each in task)
    return " ".join(
        str(word) for word in words if isinstance(word, str | int) and "/" not in str(word)
    )


def _map_here(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], done: Done) -> None:
    for task in tasks:
        done(task, function(*task))


def _leave_interrupts() -> None:
    """A terminal's Ctrl-C reaches workers too; the process that has them ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _memory_gb() -> float:
    """The memory of this machine, or of the container that this process runs in."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # "max" is no number
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found / 1e9


# -- a cluster -------------------------------------------------------------------------------------


@contextmanager
def _cluster(settings: Settings, memory_gb: float) -> Iterator[Map]:
    try:
        from distributed import Client, KilledWorker
        from distributed import as_completed as completed
    except ModuleNotFoundError as error:
        raise ComputeError(
            f"compute = {settings.compute}: Dask is not installed; pip install l2-platform[cluster]"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # each end is told here, in a line
    address = settings.compute.replace("dask://", "tcp://")
    try:
        client = Client(address, timeout=_WAIT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ComputeError(
            f"compute = {settings.compute}: no Dask scheduler answers there; start it, or set compute = local"
        ) from error

    def mapped(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], done: Done) -> None:
        asked = {_MEMORY: memory_gb} if memory_gb else None
        ours, run = about(), uuid4().hex
        futures = {
            client.submit(
                _run, ours, settings.root, function, task,
                key=f"{named((function, *task))} {run}-{number}", resources=asked, pure=False,
            ): task
            for number, task in enumerate(tasks)
        }  # fmt: skip
        ended = 0
        try:
            waiting = completed(list(futures), loop=client.loop)
            for future in _as_they_end(client, settings, waiting, checked):
                task = futures.pop(future)  # a worker keeps the results of those that are held
                try:
                    result = future.result()
                except L2Error:
                    raise
                except CancelledError as error:
                    raise ComputeError(
                        f"compute = {settings.compute}: the scheduler is gone; {ended} of {len(tasks)} tasks were "
                        "done, which stand: start it and run this again"
                    ) from error
                except KilledWorker as error:
                    raise ComputeError(
                        f"{named(task)}: {error.allowed_failures + 1} workers were lost while running it, the last "
                        f"of them {error.last_worker.address}; see its log, and what memory it is given"
                    ) from error
                except Exception as error:
                    raise ComputeError(
                        f"{named(task)}: {error} ({type(error).__name__})"
                    ) from error
                ended += 1
                done(task, result)
        finally:
            with suppress(Exception):  # nothing to cancel where the scheduler is gone
                client.cancel(list(futures))

    try:
        checked = _require(client, settings, memory_gb)
        yield mapped
    finally:
        with suppress(Exception):
            client.close(timeout=2)


def _as_they_end(client: Any, settings: Settings, waiting: Any, checked: set[str]) -> Iterator[Any]:
    """The futures of ``waiting`` as they end. Workers that join meanwhile are checked as the first ones were.

    ComputeError of one that would spoil the work, and when the cluster has had no worker for `_PATIENCE_S`.
    """
    looked = seen = time.monotonic()
    told = False
    while not waiting.is_empty():
        yield from waiting.next_batch(block=False)
        time.sleep(_TAKE_S)
        now = time.monotonic()
        if now < looked + _LOOK_S:
            continue
        looked, there = now, set[str]()
        with suppress(OSError, TimeoutError):  # the scheduler is gone, which the futures say
            there = {*client.scheduler_info(n_workers=-1)["workers"]}
        if there - checked:
            _agree(client, settings, there - checked)
            checked |= there
        if there:
            seen, told = now, False
        elif now > seen + _PATIENCE_S:
            raise ComputeError(
                f"compute = {settings.compute}: without a worker for {_PATIENCE_S:g} s; what was done stands: start "
                "workers and run this again"
            )
        elif now > seen + _SAID_S and not told:
            told = True
            say(
                f"compute = {settings.compute}: no worker is left; waiting for one, {_PATIENCE_S:g} s in all"
            )


def _run(
    ours: dict[str, str], root: str, function: Callable[..., Any], task: tuple[Any, ...]
) -> Any:
    """A task, unless its worker came after the check and would spoil it."""
    run = (*ours.items(), root)
    if run not in _ALIKE:
        if wrong := _unlike(ours, root):
            raise ComputeError(f"{os.uname().nodename}: a worker that has joined: {wrong}")
        _ALIKE.add(run)
    return function(*task)


def _unlike(ours: dict[str, str], root: str) -> str:
    """Why this worker may not do the work of a machine that is ``about`` so; "" when it may."""
    from distributed import get_worker

    theirs, threads = about(), get_worker().state.nthreads
    for name, own in ours.items():
        if theirs[name] != own:
            return f"{name} is {theirs[name]} there and {own} here; deploy one version"
    if threads != 1:
        return f"has {threads} threads; start it with --nthreads 1, and more of them"
    return sees(root, "") if root else ""


def about() -> dict[str, str]:
    """What has to be the same on every machine."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {
        "Python": python,
        "code": source_hash(),
        **{name: version(name) for name in _LIBRARIES},
    }


def sees(root: str, token: str) -> str:
    """Why this machine cannot work on the lake that holds a folder's file ``token``; "" when it can."""
    if "://" not in root:
        if not (Path(root) / token).exists():
            return "does not see this folder"
        return "" if os.access(root, os.W_OK) else "may not write into this folder"
    from market.lake import Lake

    try:
        Lake(root).store.require_writable()
    except (L2Error, OSError) as error:
        return " ".join(str(error).split())
    return ""


def _require(client: Any, settings: Settings, memory_gb: float) -> set[str]:
    """The workers. ComputeError unless every one can do this work."""
    try:
        client.wait_for_workers(1, timeout=_WAIT_S)
    except TimeoutError as error:
        raise ComputeError(
            f"compute = {settings.compute}: the scheduler has no worker; start one: "
            "dask worker HOST:PORT --nthreads 1 --resources memory_gb=8"
        ) from error
    workers = client.scheduler_info(n_workers=-1)["workers"]
    largest = max(found["resources"].get(_MEMORY, 0.0) for found in workers.values())
    if largest < memory_gb:
        raise ComputeError(
            f"compute = {settings.compute}: a task takes {memory_gb:g} GB, and no worker has more than "
            f"{largest:g}; start one with --resources {_MEMORY}={memory_gb:g} or more"
        )
    _agree(client, settings, {*workers})
    return {*workers}


def _agree(client: Any, settings: Settings, workers: set[str]) -> None:
    """ComputeError of a worker whose code, libraries, threads, clock or root would spoil the work."""

    def refuse(worker: str, why: str) -> ComputeError:
        return ComputeError(f"compute = {settings.compute}: worker {worker}: {why}")

    def asked(function: Callable[..., Any], *given: Any) -> dict[str, Any]:
        answers: dict[str, Any] = client.run(
            function, *given, workers=list(workers), on_error="return"
        )
        # One that has gone meanwhile is started again by its nanny.
        answers = {w: a for w, a in answers.items() if not isinstance(a, OSError)}
        for worker, answer in answers.items():
            if isinstance(answer, Exception):
                raise refuse(worker, f"has other code ({type(answer).__name__}: {answer})"[:200])
        return answers

    for worker, found in client.scheduler_info(n_workers=-1)["workers"].items():
        if worker in workers and found["nthreads"] != 1:
            raise refuse(
                worker,
                f"has {found['nthreads']} threads; start it with --nthreads 1, and more of them",
            )
    ours = about()
    for worker, theirs in asked(about).items():
        for name, own in ours.items():
            if theirs[name] != own:
                raise refuse(
                    worker, f"{name} is {theirs[name]} there and {own} here; deploy one version"
                )
    before = _clock()
    stamps = asked(time.time)
    after = _clock()
    for worker, stamp in stamps.items():
        apart_s = max(before - stamp, stamp - after)
        if apart_s > CLOCKS_APART_S:
            raise refuse(
                worker, f"its clock differs by {apart_s:.1f} s or more; synchronise both (NTP)"
            )
    if not settings.root:  # the work reads and writes no lake
        return
    local, token = "://" not in settings.root, f".compute-{uuid4().hex}"
    root = settings.root
    if local and not Path(root).is_absolute():
        raise ComputeError(f"root = {root}: name it absolutely, as every machine sees it")
    mark = Path(root) / token
    if local:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        for worker, why in asked(sees, root, token).items():
            if why:
                raise refuse(
                    worker,
                    f"{root}: {why}; use an object store (s3://…) or a folder that all machines mount there",
                )
    finally:
        if local:
            mark.unlink(missing_ok=True)
