"""`l2 bench AREA`: speed and memory, side by side with a peer where there is one, against our goals.

To add an area: write ``ROOM/bench.py`` with a function

    measure(quick: bool, say: Callable[[str], None]) -> Iterator[Measure]

that yields its figures as they are found (`proving.bench.yardstick` has what it is made of), name it in
`AREAS`, and put its goals into `GOALS`, the one table of them, under the names of its measures. With
``quick`` it does the same work on so little that a test can run it; the figures then mean nothing,
and no goal is judged.
"""

from __future__ import annotations

import argparse
import operator
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec

from execution.algorithms import ALGORITHMS
from market.console import Result, say, table
from market.errors import UsageError
from market.settings import Settings
from proving.bench.yardstick import Measure, peer_ready

#: Area -> the module that measures it.
AREAS: Final[dict[str, str]] = {
    "market": "proving.bench.market",
    "capture": "proving.bench.capture",
    "execution": "proving.bench.execution",
    "synth": "proving.bench.synthetic",
    "sandbox": "proving.bench.sandbox",
}

_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
}


class Goal(msgspec.Struct, frozen=True):
    """What a figure has to reach: of ``ours`` or of the ``ratio`` to the peer."""

    of: str
    relation: str
    value: float

    def __str__(self) -> str:
        return f"{self.of} {self.relation} {self.value:g}"

    def met(self, row: Measure) -> bool | None:
        """None when there is nothing to judge by."""
        found = row.ratio if self.of == "ratio" else row.ours
        return None if found is None else _OPERATORS[self.relation](found, self.value)


def _ratio(value: float) -> Goal:
    return Goal("ratio", ">=", value)


def _at_least(value: float) -> Goal:
    return Goal("ours", ">=", value)


def _at_most(value: float) -> Goal:
    return Goal("ours", "<=", value)


#: Area -> name of a measure -> its goals. Ratios count from 1: above it ours is better.
GOALS: Final[dict[str, dict[str, tuple[Goal, ...]]]] = {
    "market": {
        "book, generated": (_ratio(1.5),),
        "book, recorded": (_ratio(1.5),),
        "book and bars, generated": (_ratio(0.5),),
        "book and bars, recorded": (_ratio(0.5),),
        "frames to events, generated": (_ratio(10), _at_least(60)),
        "frames to events, recorded": (_ratio(10), _at_least(60)),
        "live, recorded pace: p99": (_at_most(1),),
        "live, recorded pace: p99.9": (_at_most(10),),
        "live, 10x burst: p99": (_at_most(1),),
        "live, 10x burst: p99.9": (_at_most(10),),
        "evaluator alone: p99": (_at_most(100),),
        "a day taken in: peak memory": (_at_most(1000),),
        "a day taken in: time per event over its first quarter": (_at_most(1.2),),
        "query: last hour, 20 features of one symbol": (_at_most(10),),
        "query: last hour, all features of both symbols": (_at_most(60),),
        "query: aggregate of one feature over all days": (_at_most(100),),
    },
    "capture": {
        "archive day to events and bars": (_at_most(30),),
    },
    "execution": {
        "replay without a strategy, generated": (_ratio(1),),
        "replay without a strategy, recorded": (_ratio(1),),
        "quotes in plain Python, generated": (_ratio(2),),
        "quotes in plain Python, recorded": (_ratio(2),),
        "quotes, peak memory, generated": (_ratio(1),),
        "quotes, peak memory, recorded": (_ratio(1),),
        "quotes, cost per row of 4 spans over one": (_at_most(1.1),),
        "fill probability of one state": (_at_most(20),),
        **{f"decision, {name}: p99": (_at_most(200),) for name in ALGORITHMS},
    },
    "sandbox": {
        "order over REST to answer: p99": (_at_most(20),),
        "order over WebSocket to answer: p99": (_at_most(20),),
        # A push interval of the topic.
        "frames late: most": (_at_most(100),),
        "memory after the last hour over the second": (_at_most(1.05),),
    },
    "synth": {
        "a day to events, BTCUSDT": (_at_most(30),),
        "a day to events, ETHUSDT": (_at_most(30),),
        "cost per L3 event, a day over its first hour, BTCUSDT": (_at_most(1.1),),
        "cost per L3 event, a day over its first hour, ETHUSDT": (_at_most(1.1),),
        # A thousand symbol-days an hour.
        "a day to bars in the reduced form, BTCUSDT": (_at_most(3.6),),
        "a day to bars in the reduced form, ETHUSDT": (_at_most(3.6),),
        "peak memory, two days over one": (_at_most(1.1),),
    },
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the result; ``goal`` is null where none is set, ``met`` where none was judged."""

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    unit: str
    goal: str | None
    met: bool | None
    how: str


class BenchError(UsageError):
    """The benchmark cannot be run as asked."""


def measures(area: str, quick: bool, say: Callable[[str], None]) -> Iterator[Measure]:
    """The figures of an area as they are found; BenchError for an unknown one."""
    if area not in AREAS:
        raise BenchError(f"{area}: nothing is measured under this name; known: {', '.join(AREAS)}")
    found: Iterator[Measure] = import_module(AREAS[area]).measure(quick, say)
    return found


def run(area: str, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure an area; plain data, with what it was measured on."""
    if not peer_ready():
        say("the peer is not installed, so its columns stay empty; make bench-peers installs it")
    started = time.monotonic()
    rows = []
    for measure in measures(area, quick, say):
        rows.append(_row(measure, () if quick else GOALS.get(area, {}).get(measure.name, ())))
        say(f"{measure.name}: {_figure(measure.ours)} {measure.unit}")
    return {
        "area": area,
        "quick": quick,
        "peer": "hftbacktest 2.4.4" if peer_ready() else None,
        **_circumstances(),
        "seconds": round(time.monotonic() - started, 1),
        "rows": [msgspec.structs.asdict(row) for row in rows],
    }


def _row(measure: Measure, goals: tuple[Goal, ...]) -> Row:
    judged = [goal.met(measure) for goal in goals]
    return Row(
        name=measure.name,
        ours=measure.ours,
        peer=measure.peer,
        ratio=measure.ratio,
        unit=measure.unit,
        goal=", ".join(map(str, goals)) or None,
        met=None if not judged or None in judged else all(judged),
        how=measure.how,
    )


def _circumstances() -> dict[str, Any]:
    """When, on what, and of which commit."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "commit": _commit(),
    }


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Short name of the checkout's commit, with a plus when files differ; None outside of git."""
    command = ["git", "describe", "--always", "--dirty=+"]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def lines(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The rows as cells of a table for people: `HEAD` names the columns."""
    return [
        (
            row["name"],
            _figure(row["ours"]),
            _figure(row["peer"]),
            _figure(row["ratio"]),
            row["unit"],
            row["goal"] or "",
            {True: "met", False: "MISSED", None: ""}[row["met"]],
        )
        for row in result["rows"]
    ]


def markdown(result: dict[str, Any]) -> str:
    """The result as a section of docs/benchmarks.md: the table, and what each row is."""
    peer = f", beside {result['peer']}" if result["peer"] else ", without the peer"
    table = [HEAD, ("---",) * len(HEAD), *lines(result)]
    return "\n".join(
        [
            f"## {result['area']}",
            "",
            f"{result['date']}, commit {result['commit']}, {result['cores']} cores of "
            f"{result['processor']}, Python {result['python']}, load {result['load']:g} at the end"
            f"{peer}; the run took {result['seconds']:.0f} s.",
            "",
            *("| " + " | ".join(str(cell) or " " for cell in row) + " |" for row in table),
            "",
            *(f"- **{row['name']}**: {row['how']}" for row in result["rows"]),
        ]
    )


HEAD: Final = ("what", "ours", "peer", "ratio", "unit", "goal", "")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 bench`."""
    parser.add_argument("area", metavar="AREA", help=f"one of {', '.join(AREAS)}")
    parser.add_argument(
        "--quick", action="store_true", help="so little of everything that the figures mean nothing"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print a section of docs/benchmarks.md"
    )


def command(_: Settings, options: argparse.Namespace) -> Result:
    """`l2 bench`: an area's measures beside their goals."""
    result = run(options.area, options.quick, say)
    if options.markdown:
        print(markdown(result))
    elif not options.json:
        print(table(lines(result), HEAD))
    return result
