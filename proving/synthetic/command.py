"""`l2 synth`: write days of a synthetic market into the lake, and measure the planted IC.

Frames go where captures go, events and bars into their partitions; beside them the tables `truth`,
`planted` and `decoys` say what was planted.

**The planted IC** (`--ic`). The alpha at t is correlated with the return of the mid from t + 1 s to
t + 1 s + h, as labels are made, over one day of each of several seeds and all symbols of a profile, and
compared with its closed form. Days of different seeds are independent, so their scatter gives the
standard error; symbols of one day are not, and count together.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from market.compute import map_tasks
from market.console import Result, Say, names, say, table
from market.errors import UsageError
from market.events import ARROW_SCHEMA, to_arrow
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from market.units import BPS, DAY_S, SECOND_NS, day_start_ns, days_between
from proving import synthetic
from proving.synthetic import latent, reduced, touch
from proving.synthetic.latent import FRAMES, PER_SECOND, SECONDS
from proving.synthetic.planted import closed_form_ic
from proving.synthetic.profiles import Profile
from proving.synthetic.tables import require_synthetic

Kind = Literal["frames", "events", "bars"]

KINDS: Final[tuple[Kind, ...]] = ("frames", "events", "bars")
Floats = npt.NDArray[np.float64]

#: First of the seeds by which the IC is measured; nothing else uses them.
FIRST_SEED: Final = 700_001
IC_DAY: Final = "2026-04-01"
HORIZONS_S: Final = (10, 60, 300, 900)
DELAY_S: Final = 1
#: A study agrees within these bounds of |z| and of the standard error.
LARGEST_Z: Final = 3.0
LARGEST_ERROR: Final = 0.005

#: (profile, seed, symbol, day) -> log mid at each close, (SECONDS,).
Mids = Callable[[Profile, int, str, str], Floats]


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
    per core; the output does not depend on it. Returns the written paths, or numbers of rows.
    """
    profile, seed = synthetic.profile(settings.synthetic.profile), settings.synthetic.seed
    if kind == "bars" and span != (0, SECONDS):
        raise ValueError("bars are made by the day: leave out --start and --stop")
    # A capture holds all symbols of its day.
    symbols = settings.market.symbols
    parts = [symbols] if kind == "frames" else [(symbol,) for symbol in symbols]
    tasks = [(settings, kind, day, part, span, depths) for day in days for part in parts]
    results: dict[tuple[str, tuple[str, ...]], str | int] = {}

    def done(task: tuple[Any, ...], result: str | int) -> None:
        _, _, day, part, _, _ = task
        results[day, part] = result
        say(f"{day}: {result}" if kind == "frames" else f"{day} {part[0]}: {result:,} {kind}")

    map_tasks(_write_part, tasks, workers or len(os.sched_getaffinity(0)), done)
    written = {
        day if kind == "frames" else f"{day} {part[0]}": results[day, part]
        for _, _, day, part, _, _ in tasks
    }
    summary: dict[str, Any] = {
        "profile": profile.name,
        "seed": seed,
        "as": kind,
        "written": written,
    }
    if kind == "frames":
        summary["capture"] = written[days[-1]]
    return summary


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
    require_synthetic(lake)
    start_s, stop_s = span
    until_ns = day_start_ns(day) + stop_s * SECOND_NS
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


# -- the planted IC --------------------------------------------------------------------------------


class MeasuredIC(msgspec.Struct, frozen=True):
    """The IC at one horizon."""

    horizon_s: int
    planted: float  #: the closed form
    found: float  #: measured, pooled over days and symbols
    error: float  #: standard error of ``found``
    days: int

    @property
    def z(self) -> float:
        """Distance of the measured from the planted IC in standard errors."""
        return (self.found - self.planted) / self.error

    @property
    def agrees(self) -> bool:
        """Whether the measured IC is near the closed form, with an error small enough to tell."""
        return abs(self.z) <= LARGEST_Z and self.error <= LARGEST_ERROR


def engine_mids(profile: Profile, seed: int, symbol: str, day: str) -> Floats:
    """Log mid at each close of a day of the full market."""
    recorder = touch.TouchRecorder(day_start_ns(day), FRAMES)
    for chunk in synthetic.generate(profile, seed, symbol, day):
        recorder.push(chunk)
    bid, ask, arrival_s = recorder.recorded()
    return _at_closes(bid + ask, arrival_s)


def reduced_mids(profile: Profile, seed: int, symbol: str, day: str) -> Floats:
    """Log mid at each close of a day in the reduced form."""
    model = reduced.model_of(profile, symbol).touch
    hidden = latent.drivers(profile, seed, symbol, day)
    rng = latent.generator(seed, symbol, day, "reduced touch")
    bid, spread, _ = touch.follow(model, hidden, BUILT_IN[symbol].tick_size, rng)
    return _at_closes(2 * bid + spread, float(model.arrival_s[0]))


def _at_closes(mid2: npt.NDArray[np.int64], arrival_s: float) -> Floats:
    last = reduced.frames_before(np.arange(1, SECONDS + 1), arrival_s) - 1
    return np.asarray(np.log(mid2[np.minimum(last, len(mid2) - 1)]))


def day_sums(
    profile: Profile, seed: int, mids: Mids, horizons_s: Sequence[int] = HORIZONS_S
) -> Floats:
    """(horizons, 3): sums of α², r² and α·r over a seed's day and all symbols.

    Alpha and returns have known means of zero. They are divided by the symbol's sigma, so that symbols
    weigh alike.
    """
    out = np.zeros((len(horizons_s), 3))
    for listing in profile.listings:
        log_mid = mids(profile, seed, listing.symbol, IC_DAY)
        hidden = latent.drivers(profile, seed, listing.symbol, IC_DAY)
        alpha = hidden.alpha[PER_SECOND::PER_SECOND] / listing.sigma_bps
        for place, horizon_s in enumerate(horizons_s):
            move = log_mid[DELAY_S + horizon_s :] - log_mid[DELAY_S:-horizon_s]
            move = move * (BPS / listing.sigma_bps)
            then = alpha[: len(move)]
            # numpy's own sum: a BLAS product depends on how many threads it has just now.
            out[place] += [
                float((x * y).sum()) for x, y in ((then, then), (move, move), (then, move))
            ]
    return out


def pooled(
    profile: Profile, sums: Iterable[Floats], horizons_s: Sequence[int] = HORIZONS_S
) -> list[MeasuredIC]:
    """The IC by horizon from the sums of independent days; its error by the delta method."""
    days = np.stack(list(sums))
    rows = []
    for place, horizon_s in enumerate(horizons_s):
        own = days[:, place]
        alpha, move, both = own.sum(axis=0)
        ic = both / math.sqrt(alpha * move)
        influence = own[:, 2] / math.sqrt(alpha * move)
        influence = influence - 0.5 * ic * (own[:, 0] / alpha + own[:, 1] / move)
        error = math.sqrt(len(own) / (len(own) - 1) * float(influence @ influence))
        planted = closed_form_ic(profile, horizon_s, DELAY_S)
        rows.append(MeasuredIC(horizon_s, planted, float(ic), error, len(own)))
    return rows


def recovered(
    settings: Settings,
    kind: Kind,
    seeds: int,
    say: Say,
    *,
    workers: int | None = None,
    kept: Path | None = None,
) -> list[MeasuredIC]:
    """The alpha's IC with the mid's return over seeds of a profile, the same for any ``workers``.

    ``workers``: processes, by default one per core. ``kept``: a cache file, to which each day is
    appended; days in it, of this profile and this code, are not made again.
    """
    profile = synthetic.profile(settings.synthetic.profile)
    mids = reduced_mids if kind == "bars" else engine_mids
    made_from = {
        seed: _made_from(profile, kind, seed) for seed in range(FIRST_SEED, FIRST_SEED + seeds)
    }
    cache = _cached(kept, say)
    sums = {seed: cache[text] for seed, text in made_from.items() if text in cache}
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
    map_tasks(day_sums, tasks, workers or len(os.sched_getaffinity(0)), done)
    return pooled(profile, [sums[seed] for seed in made_from])


class _Day(msgspec.Struct):
    """A line of the cache: `day_sums` of one seed, and the fingerprint of their inputs."""

    made_from: str
    sums: list[list[float]]


def _made_from(profile: Profile, kind: Kind, seed: int) -> str:
    stamp = reduced.fingerprint if kind == "bars" else synthetic.fingerprint
    symbols = [listing.symbol for listing in profile.listings]
    return "; ".join(stamp(profile, seed, symbol, IC_DAY) for symbol in symbols)


def _cached(kept: Path | None, say: Say) -> dict[str, Floats]:
    """The days of a cache file by fingerprint; a line that was cut short is skipped."""
    days: dict[str, Floats] = {}
    if kept is None or not kept.exists():
        return days
    text = kept.read_bytes()
    if not text.endswith(b"\n"):
        # A line was cut short: the next day begins a line of its own.
        with kept.open("ab") as file:
            file.write(b"\n")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            day = msgspec.json.decode(line, type=_Day)
        except msgspec.DecodeError as error:
            say(f"{kept} line {number}: {error}; its day is made again")
            continue
        days[day.made_from] = np.array(day.sums)
    return days


HEAD = ("horizon", "planted IC", "IC with the mid", "standard error", "z", "")


def lines(rows: Sequence[MeasuredIC]) -> list[tuple[str, ...]]:
    """The rows of the table, in the order of `HEAD`."""
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
        from proving.realism import page

        return page.command(settings, options)
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
