"""The system page: connection, counters, disk, and the end of the worker's log of lines."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from market.console import fixed, utc_time
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.widgets import Figures, Renew, section, table


def build(follow: Follower, root: str) -> Renew:
    """Connection, counters, disk, and the end of the worker's log of lines."""
    figures = Figures(
        ("phase", "venue time", "run", "last word", "updates here", "dropped here", "disk free")
    )
    section("Counters", "since the worker's start")
    counters = table(("counter", "value"), "nothing is told")
    section("Latency", "since the worker's start, ms")
    latency = table(("stage", "median", "p99", "p99.9", "most", "n"), "nothing was timed yet")

    def renew() -> None:
        state = follow.state
        worker = state["worker"]
        disk = shutil.disk_usage(root if Path(root).exists() else "/")
        figures.show(
            phase=str(worker["phase"]),
            venue_time=utc_time(worker["time_ns"]),
            run=str(worker["run"]),
            last_word=f"{follow.age_s:.1f} s ago",
            updates_here=f"{follow.updates:,}",
            dropped_here=f"{follow.dropped:,}",
            disk_free=f"{disk.free / 1e9:,.0f} GB",
        )
        rows = []
        for name, value in state.get("counters", {}).items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{k} {n}" for k, n in value.items()) or "none"
            rows.append(
                [name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)]
            )
        counters(rows)
        latency([
            [stage, *(fixed(found[p] / 1e3, 2) for p in ("p50", "p99", "p99.9", "most")), f"{found['n']:,}"]
            for stage, found in state.get("latency", {}).items() if found.get("n")
        ])  # fmt: skip

    return renew
