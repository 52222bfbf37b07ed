"""`l2 synth`: days of a synthetic market into the lake, and the proof that they hold what is planted.

Frames go where captures go, events and bars where their partitions go. With each date goes, beside the
data, what was planted in it: the tables `truth`, `planted` and `decoys`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from market.compute import map_processes
from market.console import Result, Say, names, say, table
from market.errors import UsageError
from market.events import ARROW_SCHEMA, to_arrow
from market.instruments import BUILT_IN
from market.lake import Lake, LakeError
from market.settings import Settings
from market.units import DAY_S, day_start_ns, days_between
from proving import synthetic
from proving.synthetic import recovery, reduced
from proving.synthetic.latent import SECONDS
from proving.synthetic.profiles import Profile

Kind = Literal["frames", "events", "bars"]

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
    workers: int | None = None,
) -> dict[str, Any]:
    """Write days as frames, events or bars, and what was planted beside them.

    ``span``: seconds after midnight; bars are made by the day. ``workers``: processes, by default one
    per core; what is written does not depend on it. Returns what was written.
    """
    profile, seed = synthetic.profile(settings.synthetic.profile), settings.synthetic.seed
    if kind == "bars" and span != (0, SECONDS):
        raise ValueError("bars are made by the day: leave out --start and --stop")
    # A capture holds all symbols of its day.
    symbols = settings.market.symbols
    parts = [symbols] if kind == "frames" else [(symbol,) for symbol in symbols]
    tasks = [(settings, kind, day, part, span, depths) for day in days for part in parts]
    made: dict[tuple[str, tuple[str, ...]], str | int] = {}

    def done(task: tuple[Any, ...], result: str | int) -> None:
        _, _, day, part, _, _ = task
        made[day, part] = result
        say(f"{day}: {result}" if kind == "frames" else f"{day} {part[0]}: {result:,} {kind}")

    map_processes(_write_part, tasks, workers or len(os.sched_getaffinity(0)), done)
    written = {
        day if kind == "frames" else f"{day} {part[0]}": made[day, part]
        for _, _, day, part, _, _ in tasks
    }
    found: dict[str, Any] = {"profile": profile.name, "seed": seed, "as": kind, "written": written}
    if kind == "frames":
        found["capture"] = written[days[-1]]
    return found


def _write_part(
    settings: Settings,
    kind: Kind,
    day: str,
    symbols: Sequence[str],
    span: tuple[int, int],
    depths: Sequence[int],
) -> str | int:
    """Write symbols of a day: the path of their frames, or the rows of one symbol's partition."""
    lake = Lake(settings.root, settings.source)
    profile, seed = synthetic.profile(settings.synthetic.profile), settings.synthetic.seed
    result: str | int
    if kind == "frames":
        result = synthetic.write_frames(lake, profile, seed, symbols, day, *span, depths=depths)
    elif kind == "events":
        result = write_events(lake, profile, seed, symbols[0], day, span)
    else:
        result = reduced.write_bars(lake, profile, seed, symbols[0], day)
    for symbol in symbols:
        synthetic.write_truth(lake, profile, seed, symbol, day)
    return result


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


def recovered(
    settings: Settings,
    kind: Kind,
    seeds: int,
    say: Say,
    *,
    workers: int | None = None,
    kept: Path | None = None,
) -> list[recovery.Recovered]:
    """The alpha's IC with the mid's return over seeds of a profile, the same for any ``workers``.

    ``workers``: processes, by default one per core. ``kept``: a file that takes in each day as it is
    done; days that it holds already, of this profile and this code, are not made again.
    """
    profile = synthetic.profile(settings.synthetic.profile)
    mids = recovery.reduced_mids if kind == "bars" else recovery.engine_mids
    made_from = {
        seed: _made_from(profile, kind, seed) for seed in range(FIRST_SEED, FIRST_SEED + seeds)
    }
    held = _held(kept, say)
    sums = {seed: held[text] for seed, text in made_from.items() if text in held}
    if sums:
        say(f"{kept}: holds {len(sums)} of {seeds} seeds")

    def done(task: tuple[Any, ...], result: Any) -> None:
        seed = task[1]
        sums[seed] = result
        if kept:
            line = msgspec.json.encode(_Day(made_from=made_from[seed], sums=result.tolist()))
            with kept.open("ab") as file:
                file.write(line + b"\n")
        say(f"seed {seed}: {len(sums)} of {seeds}")

    tasks = [(profile, seed, mids) for seed in made_from if seed not in sums]
    map_processes(recovery.day_sums, tasks, workers or len(os.sched_getaffinity(0)), done)
    return recovery.pooled(profile, [sums[seed] for seed in made_from])


class _Day(msgspec.Struct):
    """A line of the file of a study: what `recovery.day_sums` gave for one seed, and of what."""

    made_from: str
    sums: list[list[float]]


def _made_from(profile: Profile, kind: Kind, seed: int) -> str:
    stamp = reduced.fingerprint if kind == "bars" else synthetic.fingerprint
    symbols = [listing.symbol for listing in profile.listings]
    return "; ".join(stamp(profile, seed, symbol, recovery.DAY) for symbol in symbols)


def _held(kept: Path | None, say: Say) -> dict[str, recovery.Floats]:
    """What a study's file holds, by what it was made from; a line cut short counts as not there."""
    found: dict[str, recovery.Floats] = {}
    if kept is None or not kept.exists():
        return found
    text = kept.read_bytes()
    if not text.endswith(b"\n"):
        # The next day begins a line of its own.
        with kept.open("ab") as file:
            file.write(b"\n")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            day = msgspec.json.decode(line, type=_Day)
        except msgspec.DecodeError as error:
            say(f"{kept} line {number}: {error}; its day is made again")
            continue
        found[day.made_from] = np.array(day.sums)
    return found


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


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 synth`."""
    parser.add_argument("--day", metavar="YYYY-MM-DD", help="needed without --check or --ic")
    parser.add_argument(
        "--to", dest="last", metavar="YYYY-MM-DD", help="last date (default: --day)"
    )
    parser.add_argument(
        "--as",
        dest="kind",
        choices=["frames", "events", "bars"],
        default="frames",
        help="bars: in the reduced form, hundreds of days an hour",
    )
    parser.add_argument("--depths", metavar="N,M", help="further book topics of frames: 50, 1")
    parser.add_argument(
        "--ic",
        type=int,
        metavar="SEEDS",
        help="measure the planted alpha's IC with the mid over seeds; write nothing",
    )
    parser.add_argument("--kept", metavar="FILE", help="days of --ic that are done, not made again")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument("--start", type=int, default=0, metavar="S", help="seconds after midnight")
    parser.add_argument("--stop", type=int, default=DAY_S, metavar="S")
    checked = parser.add_argument_group("--check: what it shows, beside recordings")
    checked.add_argument("--check", action="store_true", help="judge the market; write nothing")
    checked.add_argument("--profile", metavar="P", help="default: synthetic.profile")
    checked.add_argument("--seeds", metavar="N,M-K", help="default: seeds no calibration has seen")
    checked.add_argument(
        "--hours", type=float, metavar="H", help="of each seed's day (default: 24)"
    )
    checked.add_argument("--only", default="", metavar="TEXT", help="rows of this name, no page")
    checked.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    checked.add_argument("--recordings", metavar="DIR", help="captures to compare with")
    checked.add_argument("--page", metavar="FILE", help="default: synthetic-check.html")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 synth`: write days of the market, or measure (--ic) or judge (--check) it."""
    if options.check:
        from proving.realism import command as realism

        return realism.command(settings, options)
    if options.profile:
        changed = msgspec.structs.replace(settings.synthetic, profile=options.profile)
        settings = msgspec.structs.replace(settings, synthetic=changed)
    if options.ic:
        kept = Path(options.kept) if options.kept else None
        rows = recovered(
            settings, options.kind, options.ic, say, workers=options.workers, kept=kept
        )
        if not options.json:
            print(table(lines(rows), HEAD))
        return {
            "rows": [
                {**msgspec.structs.asdict(row), "z": row.z, "agrees": row.agrees} for row in rows
            ],
            "failed": not all(row.agrees for row in rows),
        }
    if not options.day:
        raise UsageError(
            "say which day to make: --day YYYY-MM-DD; or --check or --ic to judge the market"
        )
    if settings.source != "synthetic":
        raise UsageError("a recorded lake takes no synthetic data; use --set source=synthetic")
    days = days_between(options.day, options.last or options.day)
    depths = [int(depth) for depth in names(options.depths, "--depths")]
    span = (options.start, options.stop)
    return write(settings, options.kind, days, span, depths, say, options.workers)
