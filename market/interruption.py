"""SIGINT and SIGTERM end a verb as interrupted, within seconds, whatever it is doing.

Handlers alone do not: Dagster replaces them between steps and forgets what arrived then, and a
library in the middle of an import swallows the exception. The interpreter also writes every signal's
number to its wakeup descriptor, whichever handler is installed; a thread reads it there. So a signal is
never missed, and a verb that has not ended after the grace time is ended with its worker processes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
#: Exit status of an interrupted verb, by either signal.
STATUS: Final = 130
#: Time to end in order, in seconds; afterwards the process ends where it stands.
GRACE_S: Final = 3.0

_received = threading.Event()
_at_signal: list[Callable[[], object]] = []
_at_kill: list[Callable[[], object]] = []


def received() -> bool:
    """Whether a signal has arrived; what fails then fails for that reason."""
    return _received.is_set()


def check() -> None:
    """Raise KeyboardInterrupt when a signal has arrived, wherever its first exception went."""
    if received():
        raise KeyboardInterrupt


@contextmanager
def on_interrupt(at_signal: Callable[[], object], at_kill: Callable[[], object]) -> Iterator[None]:
    """Call ``at_signal`` when a signal arrives, ``at_kill`` before the process is ended by force.

    Both run in the watching thread, and an exception of theirs is ignored.
    """
    _at_signal.append(at_signal)
    _at_kill.append(at_kill)
    try:
        yield
    finally:
        _at_signal.remove(at_signal)
        _at_kill.remove(at_kill)


@contextmanager
def interruptible(name: str, grace_s: float = GRACE_S) -> Iterator[None]:
    """Turn both signals into KeyboardInterrupt, and end the process if that is not enough.

    Outside the main thread, where no handler can be installed, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    outer = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    ended = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(reading, ended, name, grace_s), name="interruption", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(outer)
        os.close(writing)
        watcher.join()
        os.close(reading)
        for number, handler in before.items():
            signal.signal(number, handler)
        if received():  # a pool would wait for its workers
            _kill_descendants()


def _watch(reading: int, ended: threading.Event, name: str, grace_s: float) -> None:
    while numbers := os.read(reading, 64):
        if set(numbers) & set(SIGNALS):
            break
    else:
        return
    _received.set()
    _call(_at_signal)
    if ended.wait(grace_s):
        return
    _call(_at_kill)
    _kill_descendants()
    print(f"l2 {name}: interrupted", file=sys.stderr, flush=True)
    os._exit(STATUS)


def _call(callbacks: list[Callable[[], object]]) -> None:
    for callback in list(callbacks):
        with suppress(Exception):
            callback()


def _kill_descendants() -> None:
    for child in _descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Processes started by ``pid`` and, in turn, by them."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found
