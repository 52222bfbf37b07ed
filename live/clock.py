"""Clocks for receive times: a monotonic wall clock, and the simulated clock of a sandbox venue.

A sandbox may run at its own speed on its own date, and states how that maps to the wall clock. Its
clients use the venue's time for everything: receive times, staleness, seconds, dates, funding. By default
the venue's time is the wall clock's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from http.client import HTTPException
from typing import Final
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec

from market.console import utc_time
from market.settings import Clock

#: Where a venue on loopback says its `Clock`, as JSON.
CLOCK_PATH: Final = "/control/clock"
#: A smaller difference between wall and monotonic clock is slewing (NTP), not a step.
STEP_NS: Final = 100_000_000


class SteadyClock:
    """Wall clock time in epoch ns that never decreases.

    A step forward is followed at once. After a step back the clock runs at half speed until the wall
    clock has caught up, so that frames keep their order and distances; standing still would give an
    hour of frames the same time. Every step is appended to ``steps`` (ns, negative = back).
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        self._wall, self._monotonic = wall_ns(), monotonic_ns()
        self._now = self._wall
        self.steps: deque[int] = deque()

    def __call__(self) -> int:
        wall, monotonic = self._wall_ns(), self._monotonic_ns()
        passed = monotonic - self._monotonic
        step = wall - self._wall - passed
        if abs(step) > STEP_NS:
            self.steps.append(step)
        self._now = max(wall, self._now + passed // 2)
        self._wall, self._monotonic = wall, monotonic
        return self._now


def clock_of(url: str, configured: Clock, say: Callable[[str], None]) -> Clock:
    """The clock to follow a venue by: the configured one, else what a venue on loopback says of its own.

    Any other venue keeps the time of the world, and one that does not answer is taken to.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if configured != Clock() or not (host in ("localhost", "::1") or host.startswith("127.")):
        return configured
    try:
        with urlopen(f"http://{parts.netloc}{CLOCK_PATH}", timeout=5.0) as answer:
            clock = msgspec.json.decode(answer.read(), type=Clock)
    except (OSError, HTTPException, msgspec.MsgspecError):
        return configured
    say(
        f"following the clock of {parts.netloc}: {utc_time(VenueClock(clock)())}, {clock.speed:g} x"
    )
    return clock


class VenueClock(SteadyClock):
    """A sandbox's time in epoch ns: ``simulated_ns`` + ``speed`` · (wall - ``wall_ns``).

    The three constants are the settings' ``[clock]``, which the sandbox prints at its start.
    """

    def __init__(
        self,
        clock: Clock,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(wall_ns, monotonic_ns)
        self.speed = clock.speed
        self._clock = clock

    def __call__(self) -> int:
        passed = super().__call__() - self._clock.wall_ns
        if self.speed != 1:  # a float would lose nanoseconds of the epoch
            passed = int(passed * self.speed)
        return self._clock.simulated_ns + passed
