"""The half of `l2 study` that is over synthetic days: run them in the engine, and judge the goals.

Each day is run by a process of its own and leaves one file; a study that was stopped goes on where it
was, and a file that another code or another plan made is made anew.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow.parquet as pq

from execution.study import StudyError, known
from execution.tca import to_table
from market.compute import map_tasks
from market.console import Say
from market.provenance import closure_hash
from market.settings import Settings
from proving.study import days as days_module
from proving.study.days import ORACLE, Contender, ParentOutcome, Plan, run_day
from proving.study.verdicts import by_cell, goals, lines, regimes, text

#: Memory of a day (GB).
MEMORY_GB: Final = 1.0


def contenders(names: Sequence[str]) -> tuple[Contender, ...]:
    """Algorithms, the baseline first; ``NAME@0.5`` is one at that urgency. StudyError for what is none."""
    found = []
    for name in names:
        algorithm, at, level = name.partition("@")
        known([algorithm])
        if at and not (level.replace(".", "", 1).isdecimal() and float(level) <= 1):
            raise StudyError(f"algorithm {name!r}: expected an urgency of 0 to 1 after the @")
        found.append(Contender(name, algorithm, urgency=float(level) if at else None))
    return tuple(sorted(found, key=lambda each: each.name != "market"))


def made_by(plan: Plan, settings: Settings) -> str:
    """What a day's file was made from: plan, settings that matter, and code (16 hex digits)."""
    digest = hashlib.sha256(msgspec.json.encode((plan, settings.execution, settings.model.fee_row)))
    digest.update(closure_hash(days_module.__name__).encode())
    return digest.hexdigest()[:16]


def day_file(folder: str, plan: Plan, seed: int, symbol: str, settings: Settings, made: str) -> int:
    """Study one day into its file, unless it is there already; returns the number of outcomes."""
    path = Path(folder) / f"{symbol}-{seed}.parquet"
    if path.exists():
        metadata = pq.read_schema(path).metadata or {}
        if metadata.get(b"made_by") == made.encode():
            return int(pq.read_metadata(path).num_rows)
    table = to_table(run_day(plan, seed, symbol, settings), ParentOutcome)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table.replace_schema_metadata({"made_by": made}), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return int(table.num_rows)


def outcomes_of(path: Path) -> list[ParentOutcome]:
    """The outcomes of a day's file."""
    return [
        msgspec.convert({k: math.nan if v is None else v for k, v in row.items()}, ParentOutcome)
        for row in pq.read_table(path).to_pylist()
    ]


def synthetic(
    settings: Settings,
    plan: Plan,
    seeds: Sequence[int],
    symbols: Sequence[str],
    folder: Path,
    workers: int,
    say: Say,
) -> list[ParentOutcome]:
    """Study the day of every seed and symbol; days whose files are current are not run again."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    made = made_by(plan, settings)
    tasks = [
        (str(folder), plan, seed, symbol, settings, made) for symbol in symbols for seed in seeds
    ]
    ended = 0

    def note(task: tuple[Any, ...], rows: int) -> None:
        nonlocal ended
        ended += 1
        say(f"{task[3]} seed {task[2]}: {rows:,} parents; {ended} of {len(tasks)} days")

    # Its results lie in the folder, and of the lake nothing is read.
    where = msgspec.structs.replace(settings, root=str(folder))
    map_tasks(day_file, tasks, workers, note, where, MEMORY_GB)
    return [
        outcome
        for symbol in symbols
        for seed in seeds
        for outcome in outcomes_of(folder / f"{symbol}-{seed}.parquet")
    ]


def as_data(outcomes: Sequence[ParentOutcome]) -> dict[str, Any]:
    """Summaries and goals of synthetic days as plain data; None for NaN."""
    by_regime = {name: lines(outcomes, group) for name, group in regimes(outcomes).items()}
    data = {
        "parents": sum(row.algorithm == ORACLE for row in outcomes),
        "seeds": sorted({row.seed for row in outcomes}),
        "cells": lines(outcomes, by_cell),
        "estimates": lines(outcomes, lambda _: "all"),
        "regimes": by_regime,
        "goals": goals(outcomes),
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(data))
    return plain


def run(
    settings: Settings,
    *,
    names: Sequence[str],
    profile: str,
    seeds: Sequence[int],
    every_s: int,
    symbols: Sequence[str],
    folder: Path,
    workers: int,
    say: Say,
) -> tuple[dict[str, Any], str]:
    """Study days of a profile, one a seed and symbol; as plain data, and as text for people."""
    plan = Plan(contenders=contenders(names), every_s=every_s, profile=profile)
    outcomes = synthetic(settings, plan, seeds, symbols, folder / profile, workers, say)
    return as_data(outcomes), text(outcomes)
