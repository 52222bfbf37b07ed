"""Safety: what is measured → its limit → what is done → what clears it, as one table; operators' commands.

Pure: `Core` tells it facts and commands, and asks for the mode in force before it opens anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import msgspec

from live.messages import Command, Effect
from market.settings import Risk


class Mode(IntEnum):
    """What may be sent for a symbol, from free to strict; the strictest in force counts."""

    NORMAL = 0
    PASSIVE = 1  #: no crossing but to reduce
    PAUSE = 2  #: no new parents
    REDUCE = 3  #: the position only shrinks
    FLATTEN = 4  #: the position is closed
    HALT = 5  #: everything is cancelled; only reducing orders and stops are sent


class SafetyState(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of `Safety`."""


class Safety:
    """The mode of each symbol, by facts and commands. Times are epoch ns."""

    def __init__(
        self, symbols: Iterable[str], risk: Risk, state: SafetyState | None = None
    ) -> None:
        self.limits = risk  #: `[risk]` as tightened by commands; the guard's limits

    def see(self, now_ns: int, fact: str, value: float, symbol: str = "") -> list[Effect]:
        """A fact's value now, of a symbol or (empty) of all; a line is said once per change."""
        raise NotImplementedError

    def command(self, now_ns: int, command: Command) -> list[Effect]:
        """Honour halt, flatten, resume, pause, limits, and ``fact``: measurements from outside the core
        (``limits`` holds name → value: late_s, clock_skew_s, disk_full, decay).
        """
        raise NotImplementedError

    def mode(self, symbol: str) -> Mode:
        """The strictest mode in force for a symbol."""
        raise NotImplementedError

    def snapshot(self) -> SafetyState:
        """For a checkpoint."""
        raise NotImplementedError
