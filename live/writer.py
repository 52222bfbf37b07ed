"""Syncs the log in a thread of its own; requests leave once what they rest on is on disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from execution.orders import Amend, Submit
from live.latency import Histogram
from live.log import LogWriter
from live.messages import Expired, Send
from market.units import SECOND_NS

#: What no request waits for is on disk after so long, and compressed and handed to the system after so long:
#: what is left of a burst when a request comes is little.
SYNC_S: Final = 0.5
FLUSH_S: Final = 0.05


class Writer:
    """Syncs the log in a thread, and hands requests to ``send`` once what they rest on is on disk.

    While ``gated`` nothing leaves that could open or enlarge a position. ``put`` takes the `Expired` of what did
    not leave, ``failed`` the reasons.
    """

    def __init__(
        self,
        log: LogWriter,
        send: Callable[[Send], None],
        put: Callable[[Expired], None],
        failed: Callable[[Exception], None],
        latency: Mapping[str, Histogram],
    ) -> None:
        self._log, self._send, self._put, self._failed = log, send, put, failed
        self._latency = latency
        self._waiting: deque[tuple[int, Send]] = deque()
        self._wake, self._closing = threading.Event(), False
        self.gated = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def put(self, position: int, send: Send) -> None:
        """A request that rests on the log up to a position."""
        self._waiting.append((position, send))
        self._wake.set()

    def close(self) -> None:
        """Sync what there is, send what may leave, and end."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        closing, due_ns = False, 0
        while not closing:
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            closing = self._closing
            started = time.monotonic_ns()
            try:
                if self._waiting or closing or started >= due_ns:
                    due_ns = started + round(SYNC_S * SECOND_NS)
                    self._log.sync()
                else:
                    self._log.flush()
            except Exception as error:  # what it rests on is not on disk, so it does not leave
                self._failed(error)
            synced = time.monotonic_ns()
            if self._waiting:
                self._latency["sync"].add(synced - started)
            while self._waiting and self._waiting[0][0] <= self._log.synced_to:
                self._let(self._waiting.popleft()[1])
                sent = time.monotonic_ns()
                self._latency["send"].add(sent - synced)
                synced = sent

    def _let(self, send: Send) -> None:
        body = send.body
        opens = isinstance(body, Amend) or (isinstance(body, Submit) and not body.reduce_only)
        why = "halted without the main loop"
        if not (self.gated and opens):
            try:
                return self._send(send)
            except Exception as error:  # the next request must leave all the same
                self._failed(error)
                why = f"{type(error).__name__}: {error}"
        self._put(Expired(request=send.number, reason=f"not sent: {why}"))
        return None
