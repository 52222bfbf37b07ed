"""Clocks for receive times: the wall clock's, without its steps back, and a venue's whose time is its own.

A sandbox runs at a speed of its own on a day of its own, and says how that follows the wall clock.
Whoever takes its frames goes by its time in everything: receive times, staleness, seconds, dates,
funding. With the settings' default the venue's time is the wall clock's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from market.settings import Clock

#: A smaller disagreement of the two clocks is adjustment, not a step.
STEP_NS: Final = 100_000_000


class SteadyClock:
    """Epoch ns that only grow.

    Normally it tells the wall clock's time, and a step forward is followed at once. After a step
    back it goes on at half speed until the wall clock has caught up: frames keep their order and
    their distance, where a clock that stood still would give an hour of them one time. Every step is
    put into ``steps`` (ns, negative = back), for whoever reads the clock to write down.
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


class VenueClock(SteadyClock):
    """A venue's time in ns, by how it follows a steady wall clock.

    The time is ``simulated_ns`` + ``speed`` · (wall - ``wall_ns``), as the sandbox's ``clock`` says.
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
