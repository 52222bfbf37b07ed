"""A clock for receive times: the wall clock's, without its steps back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

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
