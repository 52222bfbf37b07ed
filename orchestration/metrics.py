"""Metrics of worker, recorder and pipeline for Prometheus, served by `l2 watch --metrics PORT`.

Made of the worker's state stream and of the lake when they are asked for: the worker does nothing for them,
and its death shows as ``l2_worker_silent_seconds``. Rules that alarm by them are in ``alerts.yml`` beside this.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from live.safety import Mode
from market.errors import L2Error
from market.lake import Lake
from market.settings import Settings
from market.units import day_start_ns
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.machine import PipelineRun, newest_capture, pipeline_runs

#: What is told for a worker that never was.
_NEVER_S: Final = 1e9


class Metrics:
    """A collector over what a `Follower` holds; ``clock`` gives epoch seconds."""

    def __init__(
        self, settings: Settings, follow: Follower, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._follow, self._clock = settings, follow, clock
        self._lake = Lake(settings.root, settings.source)

    def collect(self) -> Iterator[Metric]:
        """Every metric, as it is now."""
        silent_s = min(self._follow.age_s, _NEVER_S)
        yield _gauge("worker_silent_seconds", "since the worker's last word", silent_s)
        if state := self._follow.state:
            yield from _of_worker(state)
        yield from self._of_lake()

    def _of_lake(self) -> Iterator[Metric]:
        now = self._clock()
        newest = newest_capture(self._lake, now)
        age_s = _NEVER_S if newest is None else now - newest.written_s
        yield _gauge("capture_age_seconds", "since a capture was last written to", age_s)
        made = GaugeMetricFamily(
            "l2_bars_age_seconds", "since the end of the last date of bars", labels=["symbol"]
        )
        last: dict[str, str] = {}
        for symbol, day in self._lake.partitions("bars"):
            last[symbol] = max(day, last.get(symbol, day))
        for symbol, day in last.items():
            made.add_metric([symbol], now - (day_start_ns(day) / 1e9 + 86_400))
        yield made
        ended = [run for run in self._runs() if run.ended_s]
        if ended:
            failed = float(ended[0].status == "FAILURE")
            yield _gauge("pipeline_failed", "whether the last run that ended had failed", failed)
            yield _gauge("pipeline_age_seconds", "since a run ended", now - (ended[0].ended_s or 0))
        root = self._settings.home
        free = shutil.disk_usage(root if root.exists() else Path("/")).free
        yield _gauge("disk_free_bytes", "on the lake's disk", float(free))

    def _runs(self) -> list[PipelineRun]:
        try:
            return pipeline_runs(self._settings)
        except (L2Error, sqlite3.Error):  # nothing is told of what cannot be read
            return []


def _of_worker(state: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    account, counters = state["account"], state.get("counters", {})
    yield _gauge("equity_usdt", "marked to the mid", account["equity"])
    yield _gauge("day_result_usdt", "since midnight UTC", account["day_result"])
    yield _gauge("drawdown_usdt", "below the highest equity", account["peak"] - account["equity"])
    position = GaugeMetricFamily("l2_position_lots", "signed position", labels=["symbol"])
    mode = GaugeMetricFamily(
        "l2_mode", f"from {Mode(0).name} 0 to {Mode.HALT.name} {Mode.HALT:d}", labels=["symbol"]
    )
    for symbol, row in state["symbols"].items():
        position.add_metric([symbol], row["position_lots"])
        mode.add_metric([symbol], Mode[row["mode"].upper()])
    yield from (position, mode)
    latency = GaugeMetricFamily(
        "l2_latency_seconds", "percentiles since the start", labels=["stage", "quantile"]
    )
    recent = GaugeMetricFamily(
        "l2_latency_recent_seconds", "99th percentile of the last minutes", labels=["stage"]
    )
    for stage, found in state.get("latency", {}).items():
        for name, quantile in (("p50", "0.5"), ("p99", "0.99"), ("p99.9", "0.999")):
            if found.get("n"):
                latency.add_metric([stage, quantile], found[name] / 1e6)
        if "recent_p99" in found:
            recent.add_metric([stage], found["recent_p99"] / 1e6)
    yield from (latency, recent)
    counted = GaugeMetricFamily("l2_worker_count", "since the start", labels=["what"])
    for name, value in counters.items():
        if isinstance(value, int | float):
            counted.add_metric([name], value)
    reached = counters.get("limits_reached") or {}
    for name, value in reached.items():
        counted.add_metric([f"limit {name}"], value)
    yield counted


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"l2_{name}", about, value=value)


def serve(metrics: Metrics, port: int) -> int:
    """Serve on loopback until the process ends; the port."""
    registry = CollectorRegistry()
    registry.register(metrics)
    server, _ = start_http_server(port, "127.0.0.1", registry)
    return int(server.server_port)
