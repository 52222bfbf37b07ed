"""The ramp: sizes of a newly promoted model, and of the first day on a venue, grow with evidence.

    share = start + (1 - start)·min(1, n / parents)     n parents of the model measured at this venue
    share = start      while realised costs exceed expected ones by more than `TOLERANCE_BPS`, for certain
    share ≤ `FIRST_DAY`                                                until a day after the first start

A breach (`live.safety.Limit.cuts`) takes the evidence away, so that sizes begin again, at once. It is a
function of parents, limits and the time given; its state is the desk's in a checkpoint.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from market.settings import Desk
from market.units import DAY_NS

#: Largest share of a size on the first day at a venue.
FIRST_DAY: Final = 0.5
#: By how much realised costs may exceed expected ones, and the one-sided 95 % bound that says so.
TOLERANCE_BPS: Final = 1.0
Z_CERTAIN: Final = 1.645


class RampState(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives a restart. ``model`` is the checksum of the manifest that the evidence is of; sums of
    realised less expected costs in bps, over ``parents`` of it.
    """

    model: str = ""
    since_ns: int = 0  #: of the first start at this venue
    parents: int = 0
    missed_bps: float = 0.0
    missed_squares: float = 0.0
    breaches: int = 0  #: limits reached so far
    cut_ns: int = 0  #: when one took the evidence away, 0 for never


class Ramp:
    """The share of a size that there is evidence for; 1 where ``desk.ramp`` is off."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._model = desk, ""
        self.state = RampState()

    def load(self, model: str) -> None:
        """Another model, by its manifest's checksum, comes into force: without evidence."""
        self._model = model
        if self.state.model != model:
            self._begin_again(model=model)

    def begin(self, now_ns: int) -> None:
        """A process starts; the venue's first day begins with its first one."""
        if not self.state.since_ns:
            self.state = msgspec.structs.replace(self.state, since_ns=now_ns)

    def restore(self, state: RampState) -> None:
        """Go on from a checkpoint, with the model that was loaded."""
        self.state = state
        self.load(self._model)

    def measured(self, missed: float) -> None:
        """A parent was measured: its realised less its expected cost in bps, NaN where it has none."""
        missed = float(missed)
        if self._desk.ramp and not math.isnan(missed):
            self.state = msgspec.structs.replace(
                self.state,
                parents=self.state.parents + 1,
                missed_bps=self.state.missed_bps + missed,
                missed_squares=self.state.missed_squares + missed * missed,
            )

    def breached(self, now_ns: int, breaches: int) -> float:
        """``breaches`` limits were reached so far; by how much sizes shrink at once (1: not)."""
        if not self._desk.ramp or breaches == self.state.breaches:
            return 1.0
        before = self.share(now_ns)
        self._begin_again(breaches=breaches, cut_ns=now_ns)
        return self.share(now_ns) / before

    def _begin_again(self, **known: Any) -> None:
        nothing = {"parents": 0, "missed_bps": 0.0, "missed_squares": 0.0}
        self.state = msgspec.structs.replace(self.state, **nothing | known)

    def share(self, now_ns: int) -> float:
        """The share of a size now, in (0, 1]."""
        if not self._desk.ramp:
            return 1.0
        state, start = self.state, self._desk.ramp_start
        grown = 0.0 if self.is_dear else min(1.0, state.parents / self._desk.ramp_parents)
        share = start + (1.0 - start) * grown
        return share if now_ns >= state.since_ns + DAY_NS else min(share, FIRST_DAY)

    @property
    def is_dear(self) -> bool:
        """Whether execution costs more than expected, beyond tolerance and chance."""
        mean, error = self.missed
        return mean - Z_CERTAIN * error > TOLERANCE_BPS

    @property
    def missed(self) -> tuple[float, float]:
        """Mean of realised less expected cost in bps and its standard error; 0 and ∞ of fewer than two."""
        state, n = self.state, self.state.parents
        if n < 2:
            return 0.0, math.inf
        mean = state.missed_bps / n
        variance = max(0.0, state.missed_squares - n * mean * mean) / (n - 1)
        return mean, math.sqrt(variance / n)

    def view(self, now_ns: int) -> dict[str, Any]:
        """What the state stream shows of it."""
        mean, error = self.missed
        return {
            "share": self.share(now_ns),
            "parents": self.state.parents,
            "of_parents": self._desk.ramp_parents,
            "cost_error_bps": [mean, error] if math.isfinite(error) else None,
            "is_dear": self.is_dear,
            "first_day_until_ns": self.state.since_ns + DAY_NS,
            "breaches": self.state.breaches,
            "cut_ns": self.state.cut_ns,
        }
