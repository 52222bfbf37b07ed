"""`l2 study`: what the algorithms cost, over synthetic days in the engine and over recordings.

Synthetic days judge the goals. Each is run by a process of its own and leaves one file; a study that
was stopped goes on where it was, and a file that another code or another plan made is made anew.
Recordings are minutes long: what they show illustrates, and is shown under both bounds of the queue.
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

from execution.algorithms import ALGORITHMS
from execution.study import StudyReport, study
from execution.tca import to_table
from market.compute import map_processes
from market.console import Say
from market.errors import UsageError
from market.events import Events
from market.provenance import closure_hash
from market.settings import Settings
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of
from proving.study import days as days_module
from proving.study.days import ORACLE, Contender, Outcome, Plan, run_day
from proving.study.verdicts import by_cell, goals, lines, regimes, text

#: Bounds of what a queue may do: the pessimistic, which judges, and the optimistic.
QUEUES: Final = ("risk_averse", "power3")
#: Recordings: deadline, and rounds of parents that are shifted against each other.
RECORDED_DEADLINE_S: Final = 60.0
RECORDED_ROUNDS: Final = 12
RECORDED_USDT: Final = (10_000.0, 50_000.0)


class StudyError(UsageError):
    """The study cannot be made as asked; the message says what to change."""


def contenders(names: Sequence[str] = tuple(ALGORITHMS)) -> tuple[Contender, ...]:
    """Algorithms as they are, the baseline first. StudyError for one that is not known."""
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown:
        raise StudyError(f"algorithm {unknown[0]!r}: expected some of {', '.join(ALGORITHMS)}")
    ordered = sorted(names, key=lambda name: name != "market")
    return tuple(Contender(name, name) for name in ordered)


def made_by(plan: Plan, settings: Settings) -> str:
    """What a day's file was made from: plan, settings that matter, and code (16 hex digits)."""
    digest = hashlib.sha256(msgspec.json.encode((plan, settings.execution, settings.model.fee_row)))
    digest.update(closure_hash(days_module.__name__).encode())
    return digest.hexdigest()[:16]


def day_file(folder: str, plan: Plan, seed: int, symbol: str, settings: Settings, made: str) -> int:
    """Study one day into its file, unless it stands; returns the number of outcomes."""
    path = Path(folder) / f"{symbol}-{seed}.parquet"
    if path.exists():
        metadata = pq.read_schema(path).metadata or {}
        if metadata.get(b"made_by") == made.encode():
            return int(pq.read_metadata(path).num_rows)
    table = to_table(run_day(plan, seed, symbol, settings), Outcome)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table.replace_schema_metadata({"made_by": made}), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return int(table.num_rows)


def outcomes_of(path: Path) -> list[Outcome]:
    """The outcomes of a day's file."""
    return [
        msgspec.convert({k: math.nan if v is None else v for k, v in row.items()}, Outcome)
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
) -> list[Outcome]:
    """Study the day of every seed and symbol; days whose files stand are not run again."""
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

    map_processes(day_file, tasks, workers, note)
    return [
        outcome
        for symbol in symbols
        for seed in seeds
        for outcome in outcomes_of(folder / f"{symbol}-{seed}.parquet")
    ]


def recorded(
    settings: Settings,
    path: Path,
    names: Sequence[str],
    sizes_usdt: Sequence[float],
    say: Say,
    rounds: int = RECORDED_ROUNDS,
) -> StudyReport:
    """The study over one capture, all its symbols, under both bounds of the queue.

    ``rounds`` of parents are shifted against each other, see `execution.study.study`.
    """
    if not path.exists():
        raise StudyError(f"{path}: no such capture")
    symbols, depth = settings.market.symbols, settings.market.book_depth
    instruments = instruments_of([str(path)], symbols, depth)
    decoder = Decoder(instruments, depth, symbols, follow=False)
    parts: dict[str, list[Events]] = {}
    for block in read_blocks(path):
        for symbol, events in decoder.decode_block(block).events.items():
            parts.setdefault(symbol, []).append(events)
    report = study(
        parts,
        instruments,
        settings,
        algorithms=[contender.name for contender in contenders(names)],
        every_s=RECORDED_DEADLINE_S + 12,
        sizes_usdt=sizes_usdt,
        deadline_s=RECORDED_DEADLINE_S,
        queues=QUEUES,
        rounds=rounds,
    )
    say(f"{path.name}: {len(report.rows):,} parents, {report.cut} cut by its end")
    return report


def as_data(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything that is said of synthetic days, as plain data without NaN."""
    by_regime = {name: lines(outcomes, group) for name, group in regimes(outcomes).items()}
    found = {
        "parents": sum(row.algorithm == ORACLE for row in outcomes),
        "seeds": sorted({row.seed for row in outcomes}),
        "cells": lines(outcomes, by_cell),
        "regimes": by_regime,
        "goals": goals(outcomes),
    }
    return _plain(found)


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """The same with None for what is not a number."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(found))
    return plain


def recorded_data(name: str, report: StudyReport) -> dict[str, Any]:
    """What is said of a recording, as plain data."""
    return _plain(
        {
            "recording": name,
            "parents": len(report.rows),
            "cut": report.cut,
            "skipped": report.skipped,
            "summaries": [each for each in report.summaries if each.side == 0],
            "differences": [
                {
                    "symbol": symbol,
                    "size_usdt": size,
                    "algorithm": algorithm,
                    "queue": queue,
                    **msgspec.to_builtins(found),
                }
                for (symbol, size, algorithm, queue), found in report.differences.items()
            ],
        }
    )


def run(
    settings: Settings,
    *,
    frames: Sequence[str],
    days: int,
    first_seed: int,
    every_s: int,
    names: Sequence[str],
    symbols: Sequence[str],
    profile: str,
    folder: Path,
    workers: int,
    say: Say,
) -> tuple[dict[str, Any], str]:
    """`l2 study`: synthetic days, recordings, or both; as plain data, and as text for people."""
    if not frames and not days:
        raise StudyError("nothing to study: ask for --synthetic, or name captures with --frames")
    found: dict[str, Any] = {}
    parts: list[str] = []
    if days:
        plan = Plan(contenders=contenders(names), every_s=every_s, profile=profile)
        seeds = range(first_seed, first_seed + days)
        outcomes = synthetic(settings, plan, seeds, symbols, folder / profile, workers, say)
        found["synthetic"] = as_data(outcomes)
        parts.append(text(outcomes))
    for name in frames:
        report = recorded(settings, Path(name), names, RECORDED_USDT, say)
        found.setdefault("recordings", []).append(recorded_data(Path(name).name, report))
        parts.append(f"{Path(name).name}\n{report.text()}")
    return found, "\n\n".join(parts)
