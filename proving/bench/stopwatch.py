"""Times stages that call each other, each without what it calls."""

from __future__ import annotations

import functools
import time
from typing import Any


class Stopwatch:
    """Exclusive times (ns) of nested stages in ``spent``, until it is cleared."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self._inner = [0]

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Time the calls of a method as of a stage."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0)
            started = time.monotonic_ns()
            try:
                return function(*arguments, **options)
            finally:
                taken = time.monotonic_ns() - started
                own = taken - self._inner.pop()
                self._inner[-1] += taken
                self.spent[stage] = self.spent.get(stage, 0) + own

        setattr(owner, name, timed)
