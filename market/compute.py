"""Where heavy work runs: pure, importable functions over tasks, in processes of this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any


def map_processes(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    workers: int,
    done: Callable[[tuple[Any, ...], Any], None],
) -> None:
    """``function(*task)`` for each task in worker processes; ``done(task, result)`` as they end.

    Functions are pure and importable, so a cluster's ``map`` can take this one's place.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            done(task, function(*task))
        return
    # spawn: a forked child would inherit the locks of dagster's threads
    with ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=get_context("spawn"), initializer=_leave_interrupts
    ) as pool:
        futures = {pool.submit(function, *task): task for task in tasks}
        for future in as_completed(futures):
            done(futures[future], future.result())


def _leave_interrupts() -> None:
    """A terminal's Ctrl-C reaches workers too; the process that has them ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
