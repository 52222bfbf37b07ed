"""Seeds in processes, results a line each in a folder: what is done by the same code is not run again."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec

from market.compute import map_tasks
from market.console import say
from market.settings import Settings

#: Memory of a seed (GB).
MEMORY_GB: Final = 1.5


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A finished seed of a run, figures by cell; ``code`` is the hash of all that decides them."""

    row: str
    run: str
    seed: int
    code: str
    cpu_s: float
    at: str
    figures: dict[str, dict[str, float]]


def read(folder: Path) -> list[Done]:
    """Finished seeds of a folder; a line cut by a crash does not count."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_bytes().splitlines():
            try:
                found.append(msgspec.json.decode(text, type=Done))
            except msgspec.DecodeError:
                say(f"{path}: a line is cut; its seed runs again")
    return found


def run(
    module: str,
    tasks: list[tuple[str, str, int]],
    code: str,
    folder: Path,
    done: dict[tuple[str, str, int], Done],
    jobs: int,
    settings: Settings | None = None,
) -> None:
    """Run the tasks (row, run, seed) of a module's ``ROWS`` where `mapping` says; each result is on disk
    before the next one is waited for."""
    if not tasks:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # One thread each: the processes are the parallelism.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

    def keep(task: tuple[Any, ...], result: tuple[dict[str, dict[str, float]], float]) -> None:
        (_, row, name, seed), (figures, cpu_s) = task, result
        found = done[row, name, seed] = Done(
            row=row,
            run=name,
            seed=seed,
            code=code,
            cpu_s=cpu_s,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            figures=figures,
        )
        with (folder / f"{row}.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(found) + b"\n")
        count = sum(each in done for each in tasks)
        if count % 20 == 0 or count == len(tasks):
            say(f"{count} of {len(tasks)}: {row} {name}, seed {seed}, {cpu_s:.1f} s of cpu")

    map_tasks(one, [(module, *task) for task in tasks], jobs, keep, settings, MEMORY_GB)


def one(module: str, row: str, name: str, seed: int) -> tuple[dict[str, dict[str, float]], float]:
    """One seed of one run, in this process: figures by cell, and cpu seconds with those of its children."""
    started = sum(os.times()[:4])
    found = import_module(module).ROWS[row].runs[name](seed)
    plain = {cell: {k: float(v) for k, v in part.items()} for cell, part in found.items()}
    return plain, sum(os.times()[:4]) - started
