"""Scheduled algorithms: each is a curve of the share of the parent that should be done by now.

    twap             evenly, by a randomised clock
    vwap             evenly, without slices: no volume of the day's hours is forecast
    pov              a participation rate: a share of what the market trades
    almgren_chriss   faster first, as fast as aversion to risk asks

The quantity due rests at the own touch; what has been due for longer than ``patience_ns`` is taken,
and so is the remainder at the end of the time that the parent's urgency leaves.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator

from execution.algorithms.placement import Resting
from execution.algorithms.working import Parent
from execution.orders import Action
from execution.venue import View
from market.units import SECOND_NS


class Scheduled(Resting):
    """Base: rests the quantity due by `_share`, and takes what has been due for ``patience_ns``."""

    def __init__(self, parent: Parent, *, patience_ns: int = 10 * SECOND_NS) -> None:
        super().__init__(parent, max_moves=500)
        self._patience_ns = patience_ns
        self._due: list[tuple[int, int]] = []  #: (time, lots due from then on), both rising

    @property
    def due_lots(self) -> int:
        return self._due[-1][1] if self._due else 0

    @abstractmethod
    def _share(self, now_ns: int, view: View) -> float:
        """Share of the parent that should be done by now, 0 to 1; it never falls."""

    def _elapsed(self, now_ns: int) -> float:
        """Elapsed share of the time that its urgency leaves the parent."""
        span = self.until_ns - self.parent.decision_ns
        return min(1.0, (now_ns - self.parent.decision_ns) / span) if span > 0 else 1.0

    def _work(self, now_ns: int, view: View) -> Iterator[Action]:
        due = min(math.ceil(self._share(now_ns, view) * self.parent.qty_lots), self.parent.qty_lots)
        if not self._due or due > self._due[-1][1]:
            self._due.append((now_ns, due))
        while len(self._due) > 1 and self._due[1][0] <= now_ns - self._patience_ns:
            self._due.pop(0)
        since, overdue = self._due[0]
        late = overdue - self.filled_lots if since <= now_ns - self._patience_ns else 0
        if late > 0:
            yield from self._cross(now_ns, late, view)
        waiting = self._due[-1][1] - self.filled_lots - max(late, 0)
        yield from self._rest(now_ns, waiting, view.touch(self.parent.side))


class Twap(Scheduled):
    """Equal slices at about equal times; both are randomised by ``vary``, so that no pattern shows.

    The variation is a function of the parent's id: the same parent is worked the same way again.
    """

    def __init__(self, parent: Parent, *, slices: int = 10, vary: float = 0.2) -> None:
        span_ns = max(parent.deadline_ns - parent.decision_ns, slices)
        super().__init__(parent, patience_ns=span_ns // slices)
        draws = _uniform(parent.id, 2 * slices)
        sizes = [1 + vary * (2 * u - 1) for u in draws[:slices]]
        shifts = [vary * (u - 0.5) for u in draws[slices:]]
        total, done = math.fsum(sizes), 0.0
        self._steps: list[tuple[float, float]] = []  #: (share of time, share of quantity)
        for k, (size, shift) in enumerate(zip(sizes, shifts, strict=True)):
            done += size / total
            self._steps.append((max(0.0, k + shift) / slices if k else 0.0, done))

    def _share(self, now_ns: int, view: View) -> float:
        elapsed = self._elapsed(now_ns)
        return max((done for at, done in self._steps if at <= elapsed), default=0.0)


class Vwap(Scheduled):
    """In proportion to the volume that is expected: within minutes, of which nothing is known, evenly."""

    def _share(self, now_ns: int, view: View) -> float:
        return self._elapsed(now_ns)


class Pov(Scheduled):
    """Participation: a share ρ of the volume, ourselves included, so ρ/(1-ρ) of what others trade.

    It may be far from done at the deadline, when the remainder crosses. ValueError outside 0 < ρ < 1.
    """

    def __init__(self, parent: Parent, *, participation: float = 0.1) -> None:
        super().__init__(parent)
        if not 0 < participation < 1:
            raise ValueError(f"participation {participation:g}: expected a share between 0 and 1")
        self._ratio = participation / (1 - participation)
        self._begin: int | None = None

    def _share(self, now_ns: int, view: View) -> float:
        traded = view.bought_lots + view.sold_lots
        if self._begin is None:
            self._begin = traded
        others = traded - self._begin - self.own_in_tape * self.filled_lots
        return max(0.0, min(1.0, self._ratio * others / self.parent.qty_lots))


def trajectory(front_load: float, elapsed: float) -> float:
    """Share done of an optimal schedule (Almgren and Chriss 2000, in continuous time).

    1 - sinh(κ(T - t)) / sinh(κT) with ``front_load`` = κT and ``elapsed`` = t/T; 0 is even (TWAP).
    """
    if front_load < 1e-6:
        return elapsed
    # sinh(a)/sinh(b) by exponentials of negative numbers only: it cannot overflow.
    left = front_load * (1 - elapsed)
    remaining = math.exp(left - front_load) * -math.expm1(-2 * left) / -math.expm1(-2 * front_load)
    return 1 - remaining


class AlmgrenChriss(Scheduled):
    """Front-loaded by risk aversion against market impact: the Almgren-Chriss curve.

    ``front_load`` is κT, with κ² = λσ²/η in continuous time: risk aversion, variance of the price a
    second, and temporary impact of trading one lot a second; T is the time that urgency leaves.
    ValueError when negative.
    """

    def __init__(self, parent: Parent, *, front_load: float = 2.0) -> None:
        super().__init__(parent)
        if front_load < 0:
            raise ValueError(f"front load {front_load:g}: expected κT of at least 0")
        self._front_load = front_load

    def _share(self, now_ns: int, view: View) -> float:
        return trajectory(self._front_load, self._elapsed(now_ns))


def _uniform(key: str, count: int) -> list[float]:
    """Uniform numbers in [0, 1) that are a function of a text."""
    return [
        int.from_bytes(hashlib.sha256(f"{key}/{k}".encode()).digest()[:7]) / 2**56
        for k in range(count)
    ]
