"""Follows a worker's state stream from outside: the state now, its age, and what the page draws over time."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from live.state_stream import VERSION, read_states
from market.units import SECOND_NS

#: Seconds of the charts, and how long a silent worker is waited for before it is asked for anew.
KEPT_S: Final = 600
PATIENCE_S: Final = 3.0


class Moment(NamedTuple):
    """One second of a symbol: venue time (s), mid, touch, book near it, prediction, and its cost (bps); ``sweeps``:
    what each size costs to take (bps, NaN unknown), mean of both sides."""

    t_s: int
    mid: float
    bid: float
    ask: float
    bids: tuple[tuple[float, float], ...]
    asks: tuple[tuple[float, float], ...]
    expected_bps: float
    cost_bps: float
    bought: int
    sold: int
    sweeps: tuple[float, ...]


class Second(NamedTuple):
    """One second of the worker: venue time (s), equity, and p99 of stages in the minutes before (ms)."""

    t_s: int
    equity: float
    p99_ms: Mapping[str, float]


class Recovery:
    """Resilience as seen here: the mean time in which a touch that fell below a fifth of its usual quantity, a
    minute's average, was back at half of it. ``mean_s`` is NaN before the first."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=50)
        self._usual, self._since = [math.nan] * 2, [math.nan] * 2
        self._now_s = math.nan

    @property
    def mean_s(self) -> float:
        return sum(self._times) / len(self._times) if self._times else math.nan

    def see(self, now_s: float, touches: Sequence[float]) -> None:
        """Take the quantities at the best bid and ask."""
        share = -math.expm1(-min(now_s - self._now_s, 60.0) / 60.0)
        self._now_s = now_s
        for k, lots in enumerate(touches):
            usual = self._usual[k]
            if math.isnan(self._since[k]) and lots < 0.2 * usual:
                self._since[k] = now_s
            elif lots >= usual / 2 and not math.isnan(self._since[k]):
                self._times.append(now_s - self._since[k])
                self._since[k] = math.nan
            self._usual[k] = lots if math.isnan(usual) else usual + share * (lots - usual)


class Follower:
    """Reads the stream in a thread of its own, again and again; what it holds is replaced, never changed.

    ``status`` says what there is to say of the connection, empty while all is well.
    """

    is_played = False  #: a log, which is played (`again.Again`)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: dict[str, dict[str, Any]] = {}
        self.status = "connecting"
        self.received = self.updates = 0  #: lines of the stream, and how often the state changed
        self.dropped = 0
        self.told_s = -math.inf  #: when the last line came, monotonic
        self.moments: dict[str, deque[Moment]] = {}
        self.recoveries: dict[str, Recovery] = defaultdict(Recovery)
        self.seconds: deque[Second] = deque(maxlen=KEPT_S)
        self._follows, self._kept_of = False, None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()

    @property
    def age_s(self) -> float:
        """Seconds since the worker last said something."""
        return time.monotonic() - self.told_s

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                for line in read_states(self.path, PATIENCE_S):
                    if self._end.is_set():
                        return
                    self._take(line)
                self.status = "the worker says nothing"
            except FileNotFoundError:
                self.status = "no worker runs; start one with `l2 live`"
            except OSError as error:
                self.status = f"the worker's stream cannot be read: {error.strerror or error}"
            except Exception as error:  # a field is missing, or is another: the page goes on
                what = f"{type(error).__name__}: {error}"
                self.status = f"the worker's stream cannot be read: {what}; is it another version?"
            self._end.wait(0.5)

    def _take(self, line: Mapping[str, Any]) -> None:
        self.received += 1
        self.told_s = time.monotonic()
        match line.get("type"):
            case "snapshot":
                if (version := line.get("version")) != VERSION:
                    self.status = (
                        f"the worker speaks version {version} of its state, this page {VERSION}; "
                        "start the page of the same version"
                    )
                    self.state, self._follows = {}, False
                    return
                self._follows = True  # its state is empty where a worker only begins
                self.state = {name: dict(values) for name, values in line["state"].items()}
            case "change" if self._follows:
                state = dict(self.state)
                for section, patch in line["state"].items():
                    merged = state.get(section, {}) | patch
                    state[section] = {k: v for k, v in merged.items() if v is not None}
                self.state = state
            case "dropped":
                self.dropped += int(line["lines"])
                return
            case _:
                return
        if self.state:
            self.status = ""
            self.updates += 1
            self._keep()

    def _keep(self) -> None:
        state = self.state
        t_s, run = int(state["worker"]["time_ns"]) // SECOND_NS, state["worker"].get("run")
        # Counters begin anew with a run, and the time of an exchange on loopback may go back.
        if run != self._kept_of or (self.seconds and t_s < self.seconds[-1].t_s):
            self._kept_of = run
            self.moments, self.seconds = {}, deque(maxlen=KEPT_S)
            self.recoveries = defaultdict(Recovery)
        for symbol, market in state.get("markets", {}).items():
            if market["bids"] and market["asks"]:
                touches = market["bids"][0][1], market["asks"][0][1]
                self.recoveries[symbol].see(int(state["worker"]["time_ns"]) / SECOND_NS, touches)
            kept = self.moments.setdefault(symbol, deque(maxlen=KEPT_S))
            if (not kept or kept[-1].t_s < t_s) and market["bids"] and market["asks"]:
                kept.append(_moment(t_s, market, state["symbols"].get(symbol, {}).get("decision")))
        if not self.seconds or self.seconds[-1].t_s < t_s:
            latency = state.get("latency", {})
            p99 = {s: v["recent_p99"] / 1e3 for s, v in latency.items() if "recent_p99" in v}
            self.seconds.append(Second(t_s, float(state["account"]["equity"]), p99))

    def ic(self, symbol: str, horizon_s: int) -> tuple[float, int]:
        """Rank correlation of prediction and return over what was seen here, and of how many seconds."""
        from scipy.stats import spearmanr

        kept = list(self.moments.get(symbol, ()))
        mids = {moment.t_s: moment.mid for moment in kept}
        pairs = [
            (moment.expected_bps, math.log(mids[moment.t_s + horizon_s] / moment.mid))
            for moment in kept
            if moment.t_s + horizon_s in mids and not math.isnan(moment.expected_bps)
        ]
        if len(pairs) < 30 or np.ptp([p for p, _ in pairs]) == 0:
            return math.nan, len(pairs)
        return float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


def _moment(t_s: int, market: Mapping[str, Any], decision: Mapping[str, Any] | None) -> Moment:
    tick, lot = float(market["tick"]), float(market["lot"])
    bids, asks = (
        tuple((ticks * tick, lots * lot) for ticks, lots in market[side])
        for side in ("bids", "asks")
    )
    known = decision or {}
    return Moment(
        t_s=t_s,
        mid=(bids[0][0] + asks[0][0]) / 2,
        bid=bids[0][0],
        ask=asks[0][0],
        bids=bids,
        asks=asks,
        expected_bps=_number(known.get("raw_bps")),
        cost_bps=_number(known.get("cost_bps")),
        bought=int(market["bought_lots"]),
        sold=int(market["sold_lots"]),
        sweeps=tuple(sum(map(_number, pair)) / 2 for pair in market["sweep_bps"].values()),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
