"""Where heavy work runs: pure, importable functions over tasks, in processes of this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol


class Map(Protocol):
    """``function(*task)`` for each task; ``done(task, result)`` as they end."""

    def __call__(
        self,
        function: Callable[..., Any],
        tasks: Sequence[tuple[Any, ...]],
        done: Callable[[tuple[Any, ...], Any], None],
    ) -> None: ...


def map_processes(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    workers: int,
    done: Callable[[tuple[Any, ...], Any], None],
) -> None:
    """``function(*task)`` for each task in worker processes; ``done(task, result)`` as they end.

    Functions are pure and importable, so a cluster's ``map`` can take this one's place.
    """
    with mapping(min(workers, len(tasks))) as mapped:
        mapped(function, tasks, done)


@contextmanager
def mapping(workers: int) -> Iterator[Map]:
    """`map_processes` for several calls one after the other, in the same processes."""
    if workers <= 1:
        yield _map_here
        return
    # spawn: a forked child would inherit the locks of dagster's threads
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_leave_interrupts
    ) as pool:

        def mapped(
            function: Callable[..., Any],
            tasks: Sequence[tuple[Any, ...]],
            done: Callable[[tuple[Any, ...], Any], None],
        ) -> None:
            futures = {pool.submit(function, *task): task for task in tasks}
            for future in as_completed(futures):
                done(futures[future], future.result())

        yield mapped


def _map_here(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    done: Callable[[tuple[Any, ...], Any], None],
) -> None:
    for task in tasks:
        done(task, function(*task))


def _leave_interrupts() -> None:
    """A terminal's Ctrl-C reaches workers too; the process that has them ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
