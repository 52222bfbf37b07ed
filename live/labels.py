"""What became of predictions: every decision on record, and later its realised return by horizon.

    label(t, h) = ln mid(t + 1 s + h) - ln mid(t + 1 s)     none across a second without a sound bar

as in training (docs/architecture.md, Label). The decay monitor and a shadow model read these records.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import msgspec

from live.decisions import Decision
from live.messages import Append, Effect
from market.units import BPS, SECOND_NS


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record of kind ``decision``: `live.decisions.Decision` without its features; null for NaN."""

    t_ns: int
    model_version: str
    horizons_s: tuple[int, ...]
    expected_bps: float
    raw_bps: float
    by_horizon: tuple[float, ...]
    regime: str
    target: int
    position_lots: int
    cost_bps: float
    mid: float


class LabelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record of kind ``labels``: the realised returns in bps that became known at a second, as
    (time of the decision, horizon in s, return).
    """

    returns: tuple[tuple[int, int, float], ...]


class Labels:
    """Records one symbol's decisions, and their labels as the seconds pass."""

    def __init__(self, symbol: str, emit: Callable[[Effect], None]) -> None:
        self._symbol, self._emit = symbol, emit
        self._mids: deque[tuple[int, float]] = deque()  #: of consecutive sound seconds
        self._waiting: dict[
            int, deque[int]
        ] = {}  #: horizon (s) -> times of decisions without a label

    def second(self, t_ns: int, mid: float) -> None:
        """A second ended with this mid; NaN for one without a sound bar."""
        if math.isnan(mid) or (self._mids and self._mids[-1][0] != t_ns - SECOND_NS):
            self._mids.clear()
            self._waiting.clear()
        if math.isnan(mid):
            return
        self._mids.append((t_ns, mid))
        found = []
        for horizon_s, times in self._waiting.items():
            start_ns = t_ns - horizon_s * SECOND_NS
            while times and times[0] + SECOND_NS < start_ns:
                times.popleft()
            if times and times[0] + SECOND_NS == start_ns:
                back = self._mids[-1 - horizon_s] if horizon_s < len(self._mids) else None
                if back is not None:
                    found.append((times[0], horizon_s, math.log(mid / back[1]) * BPS))
                times.popleft()
        keep = max(self._waiting, default=0) + 2
        while len(self._mids) > keep:
            self._mids.popleft()
        if found:
            self._append("labels", t_ns, LabelRecord(returns=tuple(found)))

    def decided(self, decision: Decision, horizons_s: tuple[int, ...]) -> None:
        """Record a decision that rests on a prediction."""
        if math.isnan(decision.expected_bps):
            return
        names = DecisionRecord.__struct_fields__
        fields = {n: getattr(decision, n) for n in names if n != "horizons_s"}
        self._append("decision", decision.t_ns, DecisionRecord(horizons_s=horizons_s, **fields))
        for horizon_s in horizons_s:
            self._waiting.setdefault(horizon_s, deque()).append(decision.t_ns)

    def _append(self, kind: str, t_ns: int, body: object) -> None:
        self._emit(
            Append(kind=kind, time_ns=t_ns, body=msgspec.json.encode(body), symbol=self._symbol)
        )
