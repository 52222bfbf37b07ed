"""The verb `l2 certify`: seeds in processes, results a line each in a folder, the table at the end."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from market.console import Result
from market.console import names as listed
from market.console import seeds as named_seeds
from market.errors import UsageError
from market.provenance import closure_hash, code_hash
from market.settings import Settings
from proving.certify.verdict import Figures, Line
from proving.kept import read, run

if TYPE_CHECKING:
    from proving.certify.rows import Row

JOBS: Final = 2
ROWS_MODULE: Final = "proving.certify.rows"
ENGINE_MODULE: Final = "proving.certify.engine"
FOLDER: Final = "certify"
#: Seeds from here on certify; those before are for development.
FIRST_CERTIFYING: Final = 1001


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 certify`."""
    parser.add_argument(
        "--seeds",
        metavar="A-B",
        default="1001-1200",
        help="default: 1001-1200; a row takes as many of the first as it needs",
    )
    parser.add_argument(
        "--only", metavar="ROW", help="null, planted, regimes, decay, leaks; default: all"
    )
    parser.add_argument(
        "--engine", action="store_true", help="the row of the engine's market in place of these"
    )
    parser.add_argument("--runs", metavar="RUN", help="only these runs of the rows")
    parser.add_argument(
        "--judge", action="store_true", help="run nothing; judge what is done, by whatever code"
    )
    parser.add_argument("--folder", metavar="DIR", default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"processes, default {JOBS}")
    parser.add_argument("--pictures", metavar="DIR", help="write one picture per row")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """Run what is not done yet, and judge; fails where a line fails."""
    module = ENGINE_MODULE if options.engine else ROWS_MODULE
    known: dict[str, Row] = import_module(module).ROWS
    rows = tuple(known) if options.only is None else tuple(listed(options.only, "--only"))
    if unknown := sorted(set(rows) - set(known)):
        raise UsageError(f"--only {unknown[0]}: expected {', '.join(known)}")
    wanted = None if options.runs is None else set(listed(options.runs, "--runs"))
    seeds, folder = named_seeds(options.seeds), Path(options.folder)
    # SQL decides beside the code where features are made by dbt.
    code = closure_hash(module) + (code_hash("training_set") if options.engine else "")
    # Of several results of a seed the last one counts.
    done = {(d.row, d.run, d.seed): d for d in read(folder) if options.judge or d.code == code}
    tasks = [
        (row, name, seed)
        for row in rows
        for seed in seeds[: known[row].seeds]
        for name in known[row].runs
        if wanted is None or name in wanted
    ]
    if not options.judge:
        left = [task for task in tasks if task not in done]
        # Markets are made as needed: no lake has to be where the seeds run.
        where = msgspec.structs.replace(settings, root="")
        run(module, left, code, folder, done, options.jobs, where)
    lines: list[Line] = []
    for row in rows:
        cells: dict[str, list[Figures]] = defaultdict(list)
        for task in tasks:
            if task[0] == row and task in done:
                for cell, figures in done[task].figures.items():
                    cells[cell].append(figures)
        if cells:
            lines += known[row].judge(cells)
            if options.pictures:
                from proving.certify.pictures import draw

                own = [(x, status(x, known[row].seeds)) for x in lines if x.row == row]
                draw(Path(options.pictures) / f"{row}.png", own)
    judged = [(x, status(x, known[x.row].seeds)) for x in lines]
    print("\n".join(table(judged)))
    used = [done[task] for task in tasks if task in done]
    return {
        "code": sorted({each.code for each in used}),
        "cpu_s": sum(each.cpu_s for each in used),
        "certifying": min(seeds) >= FIRST_CERTIFYING,
        "failed": any(each != "pass" for _, each in judged),
        "table": [
            # JSON has no infinity.
            {
                k: None if v in (math.inf, -math.inf) else v
                for k, v in msgspec.to_builtins(x).items()
            }
            for x in lines
        ],
    }


def status(of: Line, seeds: int) -> str:
    """pass, FAIL, or open while it has fewer seeds than its row needs."""
    if of.seeds < seeds:
        return f"open, {of.seeds} of {seeds} seeds"
    return "pass" if of.passed else "FAIL"


def table(lines: list[tuple[Line, str]]) -> list[str]:
    """The lines with their status as a Markdown table."""
    out = [
        "| row | figure | value | 95 % bounds | needs | holds | |",
        "|---|---|---|---|---|---|---|",
    ]
    out += [
        f"| {x.row} | {x.what} | {x.figure:.4g} | {x.low:.4g} … {x.high:.4g} | {x.needs} | "
        f"{'yes' if x.passed else 'no'} | {each} |"
        for x, each in lines
    ]
    return out
