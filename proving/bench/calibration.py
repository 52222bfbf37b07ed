"""How fast the machine is at this moment, so that rows in absolute time judge the program alone.

Each kind is a fixed piece of work that is none of ours. A goal in seconds, or per second, names the
kind whose work is most like its row's, and is scaled by how much longer that kind takes here than on
the reference machine.

Other programs shall not count: a pass is taken in the processor time of this thread (queries on one
core for that reason), after a sleep at real-time priority where the system grants it; and the figure
of a kind is the median of many short passes.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt

from market.kernel import compiled

REFERENCE_MACHINE: Final = "2 cores of AMD EPYC, Python 3.11.7, 2026-11-29"
#: Milliseconds of one pass of each kind on the machine that the goals are stated for.
REFERENCE_MS: Final[Mapping[str, float]] = {
    "compiled": 3.2,
    "python": 3.2,
    "waking": 0.5,
    "query": 5.1,
}

_STEPS: Final = 400_000
_TABLE: Final = 1 << 15
_ROWS: Final = 100_000
_COLUMNS: Final = 8


def calibrate(passes: int = 25) -> dict[str, float]:
    """Kind -> milliseconds of one pass here and now; about a second in all."""
    with duckdb.connect(config={"threads": 1}) as connection:
        columns = ", ".join(f"hash(i * {n + 1}) / 1.8e19 as c{n}" for n in range(_COLUMNS))
        connection.execute(
            f"create table t as select i % 60 as k, {columns} from range({_ROWS}) r(i)"
        )
        work: dict[str, Callable[[], float]] = {
            "compiled": _compiled_ms,
            "python": _python_ms,
            "waking": _waking_ms,
            "query": lambda: _query_ms(connection),
        }
        for one in work.values():
            one()  # compiles, and fills the caches
        rounds = [{kind: one() for kind, one in work.items()} for _ in range(passes)]
    return {kind: statistics.median(taken[kind] for taken in rounds) for kind in work}


def factors(milliseconds: Mapping[str, float]) -> dict[str, float]:
    """Kind -> how many times as long as on the reference machine."""
    return {kind: took / REFERENCE_MS[kind] for kind, took in milliseconds.items()}


def between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Factors of a time between two calibrations: their geometric mean."""
    return {kind: math.sqrt(before[kind] * after[kind]) for kind in before}


def _compiled_ms() -> float:
    table = np.zeros(_TABLE, np.int64)
    started = time.thread_time_ns()
    _walk(table, _STEPS)
    return (time.thread_time_ns() - started) / 1e6


@compiled
def _walk(table: npt.NDArray[np.int64], steps: int) -> float:
    """Updates at places that only the last one gives away, with branches and divisions."""
    at, total = 1, 0.0
    for n in range(steps):
        at = (at * 1_103_515_245 + 12_345 + table[at % len(table)]) % 2_147_483_648
        place = at % len(table)
        if at & 64:
            table[place] += n
            total += at / (1.0 + n)
        else:
            table[place] = n
            total -= total / (1.0 + at)
    return total


def _python_ms() -> float:
    started = time.thread_time_ns()
    _loop(4_000)
    return (time.thread_time_ns() - started) / 1e6


def _loop(steps: int) -> int:
    """Look-ups, calls and small objects."""
    book: dict[int, tuple[int, str]] = {}
    for n in range(steps):
        key = n * 7_919 % 1_000
        size, side = book.get(key, (0, "Buy"))
        book[key] = (size + n % 5, "Sell" if side == "Buy" else "Buy")
        if not n % 100:
            book = dict(sorted(book.items()))
    return sum(size for size, _ in book.values())


def _waking_ms() -> float:
    """From the instant after a sleep at which work is due until it is done, on cold caches."""
    table = np.zeros(_TABLE, np.int64)
    with real_time():
        due = time.perf_counter_ns() + 5_000_000
        while (wait_ns := due - time.perf_counter_ns()) > 0:
            time.sleep(wait_ns / 1e9)
        _loop(200)
        _walk(table, 10_000)
        return (time.perf_counter_ns() - due) / 1e6


def _query_ms(connection: duckdb.DuckDBPyConnection) -> float:
    figures = ", ".join(f"avg(c{n}), stddev_pop(c{n})" for n in range(_COLUMNS))
    started = time.thread_time_ns()
    connection.execute(f"select k, {figures} from t group by k").to_arrow_table()
    return (time.thread_time_ns() - started) / 1e6


@contextmanager
def real_time() -> Iterator[str]:
    """Real-time scheduling (SCHED_FIFO), so that other programs do not count; yields which priority.

    Normal priority where the system does not grant it. Not for work that keeps a core busy for a
    second or more: the kernel then throttles real-time processes.
    """
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        if before[0] != os.SCHED_FIFO:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError):
        yield "normal priority"
        return
    try:
        yield "real-time priority"
    finally:
        os.sched_setscheduler(0, *before)
