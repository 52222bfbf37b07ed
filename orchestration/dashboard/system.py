"""The system page: connections, gaps, versions, recorder, disk, pipeline runs, and the end of the worker's log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from nicegui import ui

from live.log import FORMAT
from live.state_stream import VERSION
from market.console import NONE, fixed, utc_time
from market.pages import DATA_DOCS, REPORTS
from market.settings import Settings
from market.units import SECOND_NS
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.machine import Machine
from orchestration.dashboard.widgets import Figures, Renew, section, table

_LEVELS = {"warning": "!", "error": "!!"}


def build(follow: Follower, machine: Machine, settings: Settings) -> Renew:
    """What the worker says of itself, and what is seen of this machine; without a worker the latter alone."""
    figures = Figures(
        ("phase", "venue time", "run", "last word", "updates here", "dropped here", "disk free",
         "newest capture", "written", "capture size")
    )  # fmt: skip
    problem = ui.label().classes("text-negative")
    with ui.row().classes("gap-4"):
        pages = settings.pages
        for name, url in (
            ("Dagster", pages.dagster), ("MLflow", pages.model(settings.model_name)),
            ("reports", f"/files/{REPORTS}/index.html"), ("Data Docs", f"/files/{DATA_DOCS}/index.html"),
        ):  # fmt: skip
            ui.link(name, url, new_tab=True)
    section("Connections", "of the worker to the venue, and how old the market data are")
    links = table(("connection", "state", "since", "why"), "no connection is known", text=4)
    section("Pipeline", "the last runs of Dagster, read every half minute")
    runs = table(
        ("run", "job", "status", "started", "took"), "no run yet: `l2 pipeline` or `l2 ui`", text=4
    )
    section("Counters", "since the worker's start")
    counters = table(("counter", "value"), "nothing is told")
    section("Latency", "since the worker's start, ms")
    latency = table(("stage", "median", "p99", "p99.9", "most", "n"), "nothing was timed yet")
    section("Versions")
    versions = table(("of", "version"), "nothing is told", text=2)
    section("The worker's log", "its last lines, the newest first; all of them are on its stderr")
    log = ui.label().classes("whitespace-pre-wrap break-all font-mono text-xs w-full").mark("log")

    def renew() -> None:
        state, now_s = follow.state, time.time()
        worker = state.get("worker", {})
        now_ns = worker.get("time_ns", 0)
        figures.show(
            phase=str(worker.get("phase", NONE)),
            venue_time=utc_time(now_ns) if now_ns else NONE,
            run=str(worker.get("run", NONE)),
            last_word=f"{follow.age_s:.1f} s ago" if state else NONE,
            updates_here=f"{follow.updates:,}",
            dropped_here=f"{follow.dropped:,}",
            disk_free=f"{machine.free_bytes / 1e9:,.0f} of {machine.disk_bytes / 1e9:,.0f} GB",
        )
        problem.set_text(machine.problem)
        capture = machine.capture
        figures.show(
            newest_capture=capture.name if capture else "none since yesterday",
            written=f"{_span(now_s - capture.written_s)} ago" if capture else NONE,
            capture_size=f"{capture.bytes / 1e6:,.1f} MB" if capture else NONE,
        )
        links([*_links(state, now_ns)])
        runs([
            [run.id[:8], run.job, run.status.lower(),
             utc_time(int(run.started_s * 1e9)) if run.started_s else "not started",
             _span((run.ended_s or now_s) - run.started_s) if run.started_s else NONE]
            for run in machine.runs
        ])  # fmt: skip
        counters([*_counters(state)])
        latency([
            [stage, *(fixed(found[p] / 1e3, 2) for p in ("p50", "p99", "p99.9", "most")), f"{found['n']:,}"]
            for stage, found in state.get("latency", {}).items() if found.get("n")
        ])  # fmt: skip
        versions([
            ["platform", str(worker.get("platform", NONE))],
            ["features' code", str(worker.get("code", NONE))],
            ["model", str(worker.get("model", NONE))],
            ["state stream", f"{VERSION}"],
            ["log", f"{worker.get('log_format', NONE)}, known here {FORMAT}"],
        ])  # fmt: skip
        told = sorted(state.get("lines", {}).items(), key=lambda item: -int(item[0]))
        log.set_text("\n".join(line_of(line) for _, line in told) or "it has said nothing yet")

    return renew


def _span(seconds: float) -> str:
    """A duration for people."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _links(state: Mapping[str, Any], now_ns: int) -> Iterator[list[str]]:
    for name, link in state.get("links", {}).items():
        since = f"{_span((now_ns - link['since_ns']) / SECOND_NS)} ago"
        yield [name, "up" if link["up"] else "DOWN", since, link["why"] or NONE]
    for symbol, market in state.get("markets", {}).items():
        silent_s = (now_ns - market.get("last_ns", now_ns)) / SECOND_NS
        valid = "valid" if market["valid"] else "NOT KNOWN"
        yield [f"{symbol} book", valid, f"{max(0.0, silent_s):.1f} s ago", NONE]


def _counters(state: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, value in state.get("counters", {}).items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {n}" for k, n in value.items()) or "none"
        yield [name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)]


def line_of(line: str) -> str:
    """A line of the worker's log for people; as it is when it is no JSON, as one that was cut."""
    try:
        told = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError:
        return line
    when, level, event = (str(told.pop(key, "")) for key in ("timestamp", "level", "event"))
    fields = ", ".join(f"{name} {value}" for name, value in told.items())
    return f"{when[:19].replace('T', ' ')} {_LEVELS.get(level, '')} {event}{': ' if fields else ''}{fields}"
