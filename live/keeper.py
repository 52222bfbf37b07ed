"""Keeps what nothing waits for: the own capture and the decisions, written by a thread of its own.

A disk that takes no more ends the file, and nothing else: what is lost is counted, said, and found by the
daily check of decisions. The next UTC date tries again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from live.decisions import Decision, DecisionLog
from live.own_capture import OwnCapture

#: Frames and decisions that wait for the disk; a live market drops more, a replay waits for them.
_WAITING: Final = 100_000


class Keeper:
    """Writes in order, in a thread. ``failed`` is told the first failure of a file, in that thread.

    ``may_wait``: a producer that is too fast waits, instead of losing frames.
    """

    def __init__(
        self,
        capture: OwnCapture,
        decisions: DecisionLog,
        failed: Callable[[Exception], None],
        may_wait: bool,
    ) -> None:
        self.capture, self._decisions, self._failed = capture, decisions, failed
        self._may_wait = may_wait
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None]
        self._queue = queue.SimpleQueue()
        self.lost_frames = self.lost_decisions = 0
        self._given = self._taken = 0  #: frames put into the queue, and out of it
        self._captures, self._decides = False, True
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def open(self, now_ns: int, restated: Sequence[bytes]) -> None:
        """Start the capture's file of a UTC date, with checkpoints of books and tickers."""
        self._queue.put((self._open, (now_ns, restated)))

    def frames(self, frames: Sequence[tuple[int, bytes]]) -> None:
        """Keep frames as received, with their receive times."""
        while self._given - self._taken > _WAITING:
            if not self._may_wait:
                self.lost_frames += len(frames)
                self._captures = False  # a capture with a hole would claim to be whole
                return
            time.sleep(0.01)
        self._given += len(frames)
        self._queue.put((self._frames, (frames,)))

    def decision(self, decision: Decision, horizons_s: tuple[int, ...]) -> None:
        """Keep a decision."""
        self._queue.put((self._decision, (decision, horizons_s)))

    def close(self) -> None:
        """Write what waits and finish the files."""
        self._queue.put(None)
        self._thread.join()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work[0](*work[1])
        for finish in (self.capture.close, self._decisions.close):
            try:
                finish()
            except Exception as error:
                self._failed(error)

    def _open(self, now_ns: int, restated: Sequence[bytes]) -> None:
        try:
            self.capture.open(now_ns, restated)
            self._captures = True
        except Exception as error:
            self._fail(error)

    def _frames(self, frames: Sequence[tuple[int, bytes]]) -> None:
        self._taken += len(frames)
        if not self._captures:
            self.lost_frames += len(frames)
            return
        try:
            self.capture.append(frames)
        except Exception as error:
            self.lost_frames += len(frames)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._captures = False
        self._failed(error)

    def _decision(self, decision: Decision, horizons_s: tuple[int, ...]) -> None:
        if self._decides:
            try:
                self._decisions.add(decision, horizons_s)
            except Exception as error:
                self._decides = False
                self._failed(error)
        self.lost_decisions += not self._decides
