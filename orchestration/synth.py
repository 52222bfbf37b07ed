"""`l2 synth`: days of a synthetic market into the lake, and the proof that they hold what is planted.

Frames go where captures go, events and bars where their partitions go. With each date goes, beside the
data, what was planted in it: the tables `truth`, `planted` and `decoys`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from assets.market_data import map_processes
from market import synthetic
from market.events import ARROW_SCHEMA, to_arrow
from market.instruments import BUILT_IN
from market.lake import Lake, LakeError, day_start_ns
from market.settings import Settings
from market.synthetic import recovery, reduced
from market.synthetic.latent import SECONDS
from market.synthetic.profiles import Profile

Kind = Literal["frames", "events", "bars"]
Say = Callable[[str], None]

KINDS: tuple[Kind, ...] = ("frames", "events", "bars")
#: Seeds of the study of information coefficients, from here on; nothing else uses them.
FIRST_SEED = 700_001


def write(
    settings: Settings,
    kind: Kind,
    days: Sequence[str],
    span: tuple[int, int],
    depths: Sequence[int],
    say: Say,
) -> dict[str, Any]:
    """Write days as frames, events or bars, and what was planted beside them.

    ``span``: seconds after midnight; bars are made by the day. Returns what was written.
    """
    lake = Lake(settings.root, settings.source)
    profile, seed = synthetic.profile(settings.synthetic.profile), settings.synthetic.seed
    if kind == "bars" and span != (0, SECONDS):
        raise ValueError("bars are made by the day: leave out --start and --stop")
    written: dict[str, Any] = {"profile": profile.name, "seed": seed, "as": kind, "written": {}}
    for day in days:
        if kind == "frames":
            path = synthetic.write_frames(
                lake, profile, seed, settings.market.symbols, day, *span, depths=depths
            )
            written["written"][day] = path
            written["capture"] = path
            say(f"{day}: {path}")
        for symbol in settings.market.symbols:
            if kind == "events":
                rows = write_events(lake, profile, seed, symbol, day, span)
            elif kind == "bars":
                rows = reduced.write_bars(lake, profile, seed, symbol, day)
            if kind != "frames":
                written["written"][f"{day} {symbol}"] = rows
                say(f"{day} {symbol}: {rows:,} {kind}")
            synthetic.write_truth(lake, profile, seed, symbol, day)
    return written


def write_events(
    lake: Lake, profile: Profile, seed: int, symbol: str, day: str, span: tuple[int, int]
) -> int:
    """Write an events partition without storing frames; returns the number of rows.

    The rows are those that ingest makes of the frames.
    """
    if lake.source != "synthetic":
        raise LakeError(
            f"{lake.uri}: holds {lake.source} data; synthetic data needs a root of its own"
        )
    start_s, stop_s = span
    until_ns = day_start_ns(day) + stop_s * 1_000_000_000
    notes = {
        "instrument": msgspec.json.encode(BUILT_IN[symbol]).decode(),
        "made": "straight as events",
        "until_ns": until_ns,
    }
    made_from = synthetic.fingerprint(profile, seed, symbol, day, start_s, stop_s)
    rows = 0
    with lake.writer("events", symbol, day, ARROW_SCHEMA, made_from, notes) as out:
        for chunk in synthetic.generate(profile, seed, symbol, day, start_s, stop_s):
            table = to_arrow(chunk).replace_schema_metadata(out.schema.metadata)
            out.write_table(table)
            rows += len(chunk)
    return rows


def recovered(settings: Settings, kind: Kind, seeds: int, say: Say) -> list[recovery.Recovered]:
    """The alpha's IC with the mid's return over seeds of a profile, a process per core."""
    profile = synthetic.profile(settings.synthetic.profile)
    mids = recovery.reduced_mids if kind == "bars" else recovery.engine_mids
    tasks = [(profile, FIRST_SEED + n, mids) for n in range(seeds)]
    sums = []

    def done(task: tuple[Any, ...], result: Any) -> None:
        sums.append((task[1], result))
        say(f"seed {task[1]}: {len(sums)} of {seeds}")

    map_processes(recovery.day_sums, tasks, len(os.sched_getaffinity(0)), done)
    ordered = [result for _, result in sorted(sums, key=lambda pair: pair[0])]
    return recovery.pooled(profile, ordered)


HEAD = ("horizon", "planted IC", "IC with the mid", "standard error", "z", "")


def lines(rows: Sequence[recovery.Recovered]) -> list[tuple[str, ...]]:
    """The study as a table for people."""
    return [
        (
            f"{row.horizon_s} s",
            f"{row.planted:.4f}",
            f"{row.found:.4f}",
            f"{row.error:.4f}",
            f"{row.z:+.2f}",
            "agrees" if row.agrees else "does not agree",
        )
        for row in rows
    ]
