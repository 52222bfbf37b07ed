"""What a benchmark's figure is, and the goals of all areas.

A goal in absolute time is stated for the reference machine (`proving.bench.calibration`). It names the
kind of work that its row is most like, and is scaled by what that work takes here, measured before and
after the row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from execution.algorithms import ALGORITHMS

_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
}


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure, and the peer's for the same work on the same data where there is one.

    ``better`` is "more" or "less"; ``how`` says what was measured, on which data, and which of several
    repetitions this is.
    """

    name: str
    ours: float
    unit: str
    how: str
    peer: float | None = None
    better: str = "more"
    parts: dict[str, Any] = {}  #: more of it as plain data, for ``--json``

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer's; None without a peer."""
        if self.peer is None:
            return None
        return self.ours / self.peer if self.better == "more" else self.peer / self.ours


class Threshold(msgspec.Struct, frozen=True):
    """A goal: the bound that ``ours``, or the ``ratio`` to the peer, has to keep.

    ``kind`` is the kind of calibration that scales a bound in absolute time; None for what does not
    depend on the machine's speed.
    """

    of: str
    relation: str
    value: float
    kind: str | None = None

    def __str__(self) -> str:
        return f"{self.of} {self.relation} {self.value:.4g}"

    def scaled(self, factor: Mapping[str, float]) -> Threshold:
        """The same on a machine on which each kind takes ``factor`` times as long."""
        if self.kind is None:
            return self
        times = factor[self.kind] if self.relation == "<=" else 1 / factor[self.kind]
        return msgspec.structs.replace(self, value=self.value * times)

    def met(self, measure: Measure) -> bool | None:
        """Whether the figure keeps the bound; None when it does not exist (no peer)."""
        figure = measure.ratio if self.of == "ratio" else measure.ours
        return None if figure is None else _OPERATORS[self.relation](figure, self.value)


def _ratio(value: float) -> Threshold:
    return Threshold("ratio", ">=", value)


def _at_least(value: float, kind: str | None = None) -> Threshold:
    return Threshold("ours", ">=", value, kind)


def _at_most(value: float, kind: str | None = None) -> Threshold:
    return Threshold("ours", "<=", value, kind)


#: Area -> name of a measure -> its goals. Ratios count from 1: above it ours is better. A bound in
#: absolute time names its kind of calibration.
GOALS: Final[dict[str, dict[str, tuple[Threshold, ...]]]] = {
    "market": {
        "book, generated": (_ratio(1.5),),
        "book, recorded": (_ratio(1.5),),
        "book and bars, generated": (_ratio(0.5),),
        "book and bars, recorded": (_ratio(0.5),),
        "frames to events, generated": (_ratio(10), _at_least(60, "compiled")),
        "frames to events, recorded": (_ratio(10), _at_least(60, "compiled")),
        "features, recorded pace: p99": (_at_most(1, "waking"),),
        "features, recorded pace: p99.9": (_at_most(10, "waking"),),
        "features, 10x burst: p99": (_at_most(1, "waking"),),
        "features, 10x burst: p99.9": (_at_most(10, "waking"),),
        "evaluator alone: p99": (_at_most(100, "compiled"),),
        "a day taken in: peak memory": (_at_most(1000),),
        "a day taken in: time per event over its first quarter": (_at_most(1.2),),
    },
    "live": {
        f"order, {pace}: {rank}": (_at_most(value),)
        for pace in ("recorded pace", "10x burst")
        for rank, value in (("p99", 10.0), ("p99.9", 50.0))
    },
    "cluster": {"bars by the cluster over bars here": (_at_most(1.1),)},
    "lake": {
        "query: last hour, 20 features of one symbol": (_at_most(10, "query"),),
        "query: aggregate of one feature over a day": (_at_most(10, "query"),),
        "query: last hour of bars of one symbol, by the worker": (_at_most(10, "query"),),
        "query: last hour, all features of both symbols": (_at_most(30, "query"),),
        "query: aggregate of one feature over all days": (_at_most(50, "query"),),
        **{
            f"feature tables of {days} days: {figure}": (_at_most(value),)
            for days in (2, 6, 30)
            for figure, value in (
                *(("peak memory", 3000.0), ("peak staging", 3000.0)),
                ("stored a symbol and day", 100.0),
            )
        },
    },
    "capture": {
        "archive day to events and bars": (_at_most(30, "compiled"),),
    },
    "execution": {
        "replay without a strategy, generated": (_ratio(1),),
        "replay without a strategy, recorded": (_ratio(1),),
        "quotes in plain Python, generated": (_ratio(2),),
        "quotes in plain Python, recorded": (_ratio(2),),
        "quotes, peak memory, generated": (_ratio(1),),
        "quotes, peak memory, recorded": (_ratio(1),),
        "quotes, cost per row of 4 spans over one": (_at_most(1.1),),
        "fill probability of one state": (_at_most(20, "python"),),
        **{f"decision, {name}: p99": (_at_most(200, "python"),) for name in ALGORITHMS},
    },
    "backtest": {
        # A day of two symbols in a minute on two cores.
        "backtest: total, with both bounds": (_at_most(60, "python"),),
    },
    "sandbox": {
        "order over REST to answer: p99": (_at_most(20, "waking"),),
        "order over WebSocket to answer: p99": (_at_most(20, "waking"),),
        # A push interval of the topic.
        "frames late: most": (_at_most(100, "waking"),),
        "memory after the last hour over the second": (_at_most(1.05),),
    },
    "page": {
        "worker, an event with a reader": (_at_most(1.05),),
        "worker, an event with a stopped reader": (_at_most(1.05),),
        "worker, runs whose orders or records differ": (_at_most(0),),
        "worker, lines that a stopped reader lost": (_at_least(1),),
        "page, most memory": (_at_most(300),),
        "page, processor": (_at_most(0.5),),
    },
    "models": {
        "one-row inference: p99": (_at_most(1, "python"),),
        "one-row inference, a booster per horizon and objective: p99": (_at_most(1, "python"),),
        "training, 30 days at every second: peak memory": (_at_most(4000),),
    },
    "synth": {
        "a day to events, BTCUSDT": (_at_most(30, "compiled"),),
        "a day to events, ETHUSDT": (_at_most(30, "compiled"),),
        "cost per L3 event, a day over its first hour, BTCUSDT": (_at_most(1.1),),
        "cost per L3 event, a day over its first hour, ETHUSDT": (_at_most(1.1),),
        # A thousand symbol-days an hour.
        "a day to bars in the reduced form, BTCUSDT": (_at_most(3.6, "compiled"),),
        "a day to bars in the reduced form, ETHUSDT": (_at_most(3.6, "compiled"),),
        "peak memory, two days over one": (_at_most(1.1),),
    },
}
