"""Rolling beta and correlation of one-second returns, shocks of leaders, and exposure counted by group.

Of the log returns r of two symbols' mids over the same seconds, with exponential weights (`HALF_LIFE_S`):

    C = Σ r_i(t)·r_j(t) + Σ r_i(t)·r_j(t-1) + Σ r_i(t-1)·r_j(t),   V_i = Σ r_i(t)²
    beta of i to j = C / V_j,   correlation = C / √(V_i·V_j) within ±1

One second of lead and lag is in C because symbols follow each other by parts of a second, which a covariance
of the same seconds alone understates (Dimson 1979). A gap makes no return, on either side of it, and weights
decay through it: a beta needs `LEAST_S` seconds of weight, and is not known after a long gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from market.units import BPS, SECOND_NS

HALF_LIFE_S: Final = 900.0
#: Seconds of weight without which no beta or correlation is known; all that ever was weighs 1,300.
LEAST_S: Final = 300.0
#: A leader's return of the last second, in its own standard deviations and times the correlation, from which
#: entries against it wait for the next second.
SHOCK: Final = 2.0
#: Symbols of a smaller correlation do not count in each other's group.
LEAST_CORRELATION: Final = 0.3
#: A symbol without a mid for so long is said to have no data.
SILENT_S: Final = 60

_DECAY: Final = 0.5 ** (1 / HALF_LIFE_S)


class Last(msgspec.Struct, kw_only=True):
    """A symbol's last mid (0 for none), and its returns of the last two seconds in bps."""

    second: int = -1
    seen: int = -1  #: the last second with a mid
    mid: float = 0.0
    now: float | None = None
    before: float | None = None


class Pair(msgspec.Struct, kw_only=True):
    """Weighted sums of two symbols, in order of their names, up to a second; squares in bps²."""

    second: int = -1
    weight: float = 0.0
    squares: tuple[float, float] = (0.0, 0.0)
    cross: float = 0.0


class LeadersState(msgspec.Struct, kw_only=True):
    """All that `Leaders` remembers; pairs by both names with a slash between."""

    last: dict[str, Last] = {}
    pairs: dict[str, Pair] = {}


class Leaders:
    """Correlated symbols, traded or watched: `second` once a second, then the questions."""

    def __init__(self, symbols: Iterable[str], state: LeadersState | None = None) -> None:
        self.symbols = sorted(symbols)
        self.state = state or LeadersState()
        self._silent: set[str] = set()
        self._begun = -1

    def second(self, t_ns: int, mids: Mapping[str, float]) -> list[str]:
        """Take the mids at a whole second; NaN or absent where there was none. Returns the symbols that have
        had none for `SILENT_S` now, each once."""
        now, state = t_ns // SECOND_NS, self.state
        if now <= max((last.second for last in state.last.values()), default=-1):
            return []  # history that a checkpoint holds already
        self._begun = now if self._begun < 0 else self._begun
        silent = []
        for symbol in self.symbols:
            last, mid = state.last.setdefault(symbol, Last()), mids.get(symbol, math.nan)
            known = mid > 0.0
            moves = known and last.mid > 0.0 and last.second == now - 1
            last.before = last.now if last.second == now - 1 else None
            last.now = math.log(mid / last.mid) * BPS if moves else None
            last.second, last.mid = now, mid if known else 0.0
            last.seen = now if known else last.seen
            if now - max(last.seen, self._begun) < SILENT_S:
                self._silent.discard(symbol)
            elif symbol not in self._silent:
                self._silent.add(symbol)
                silent.append(symbol)
        for n, first in enumerate(self.symbols):
            for second in self.symbols[n + 1 :]:
                pair = state.pairs.setdefault(f"{first}/{second}", Pair())
                _add(pair, now, state.last[first], state.last[second])
        return silent

    def _pair(self, symbol: str, other: str) -> tuple[float, float, float, float] | None:
        """(V of the symbol, V of the other, C, weight); None while that is not known."""
        first, second = sorted((symbol, other))
        pair = self.state.pairs.get(f"{first}/{second}")
        if pair is None or pair.weight < LEAST_S or min(pair.squares) <= 0.0:
            return None
        own, others = pair.squares if symbol == first else pair.squares[::-1]
        return own, others, pair.cross, pair.weight

    def beta(self, symbol: str, other: str) -> float:
        """Beta of a symbol's returns to another's; NaN while it is not known."""
        found = self._pair(symbol, other)
        return math.nan if found is None else found[2] / found[1]

    def correlation(self, symbol: str, other: str) -> float:
        """Correlation of two symbols' returns, within ±1; NaN while it is not known."""
        found = self._pair(symbol, other)
        if found is None:
            return math.nan
        own, others, cross, _ = found
        return max(-1.0, min(1.0, cross / math.sqrt(own * others)))

    def shock(self, symbol: str) -> float:
        """What the leaders' last second lets expect of a symbol, in its own standard deviations: of all others'
        standardised returns times the correlation the largest; 0 where none is known."""
        largest = 0.0
        for other in self.symbols:
            if other != symbol and (found := self._pair(symbol, other)) is not None:
                sigma_bps = math.sqrt(found[1] / found[3])
                moved_bps = self.state.last[other].now or 0.0
                expected = self.correlation(symbol, other) * moved_bps / sigma_bps
                largest = expected if abs(expected) > abs(largest) else largest
        return largest

    def delays(self, symbol: str, side: int) -> bool:
        """Whether an entry on a side waits for the next second, because a leader has just moved against it."""
        return side * self.shock(symbol) <= -SHOCK

    def exposures(self, symbol: str, side: int, values: Mapping[str, float]) -> dict[str, float]:
        """Signed ``values`` of positions in other symbols in units of this one: each times its beta to it.

        Without a known beta the whole value counts on ``side``: what cannot be told is taken for the worst.
        """
        counted: dict[str, float] = {}
        for other, value in values.items():
            if other == symbol or not value:
                continue
            correlation = self.correlation(other, symbol)
            if math.isnan(correlation):
                counted[other] = side * abs(value)
            elif abs(correlation) >= LEAST_CORRELATION:
                counted[other] = self.beta(other, symbol) * value
        return counted


def _add(pair: Pair, now: int, first: Last, second: Last) -> None:
    if pair.second >= 0:
        kept = _DECAY ** (now - pair.second)
        pair.weight *= kept
        pair.squares = pair.squares[0] * kept, pair.squares[1] * kept
        pair.cross *= kept
    pair.second = now
    if first.now is None or second.now is None:
        return
    cross = first.now * second.now + first.now * (second.before or 0.0)
    cross += (first.before or 0.0) * second.now
    pair.weight += 1.0
    pair.squares = pair.squares[0] + first.now**2, pair.squares[1] + second.now**2
    pair.cross += cross
