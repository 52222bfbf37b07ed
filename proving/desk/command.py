"""The verb `l2 desk-table`: sessions in processes, their sums a line each in a folder, the table at the end."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Final

import msgspec

from market.console import Result, names
from market.console import seeds as named_seeds
from market.errors import UsageError
from market.provenance import closure_hash
from market.settings import Settings
from orchestration.backtest.figures import plain
from proving.kept import read, run

MODULE: Final = "proving.desk.sessions"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 desk-table`."""
    parser.add_argument(
        "--seeds", metavar="A-B", default="3001-3020", help="default: 3001-3020; below 3001: for development"
    )  # fmt: skip
    parser.add_argument(
        "--only", metavar="ROW", help="planted, null, parents, or a recording's name"
    )
    parser.add_argument("--runs", metavar="RUN", help="whole, parts; default: both")
    parser.add_argument(
        "--judge", action="store_true", help="run nothing; judge what is done, by whatever code"
    )
    parser.add_argument("--folder", metavar="DIR", default="desk-table", help="default: desk-table")
    parser.add_argument("--jobs", type=int, default=2, help="processes, default 2")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """Run what is not done yet with the lake's champion and its legacy model, and print the table."""
    from proving.desk.sessions import ROWS, Figures, models
    from proving.desk.table import report

    rows = names(options.only, "--only") or tuple(ROWS)
    if unknown := sorted(set(rows) - set(ROWS)):
        raise UsageError(f"--only {unknown[0]}: expected {', '.join(ROWS)}")
    wanted = names(options.runs, "--runs")
    folder, code = Path(options.folder), ""
    if not options.judge:
        used = models().values() if not all(ROWS[row].draws for row in rows) else ()
        code = "-".join((closure_hash(MODULE), *(m.pointer.manifest_sha256[:8] for m in used)))
    # Of several results of a seed the last one counts.
    done = {(d.row, d.run, d.seed): d for d in read(folder) if options.judge or d.code == code}
    # Both desks come first, then each part; a run that is stopped has all rows of its first seeds.
    tasks = [
        (row, name, seed)
        for name in ("whole", "parts")
        for place, seed in enumerate(named_seeds(options.seeds))
        for row in rows
        if name in (wanted or name) and name in ROWS[row].runs and place < ROWS[row].seeds
    ]
    if not options.judge:
        left = [task for task in tasks if task not in done]
        run(MODULE, left, code, folder, done, options.jobs)
    kept = [done[task] for task in tasks if task in done]
    found: dict[str, dict[str, dict[int, Figures]]] = {}
    for each in kept:
        for cell, figures in each.figures.items():
            found.setdefault(each.row, defaultdict(dict))[cell][each.seed] = figures
    text, data = report(found)
    if not options.json:
        print("\n".join(text))
    return {
        "code": sorted({each.code for each in kept}),
        "cpu_s": sum(each.cpu_s for each in kept),
        "cpu_s_a_seed": {
            f"{row} {name}": sum(cpu) / len(cpu)
            for row in rows
            for name in ROWS[row].runs
            if (cpu := [each.cpu_s for each in kept if (each.row, each.run) == (row, name)])
        },
        **plain(msgspec.to_builtins(data)),
    }
