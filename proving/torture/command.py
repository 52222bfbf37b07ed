"""The verb `l2 torture`: seeds in processes that are forked from one with warm venues."""

from __future__ import annotations

import argparse
import gc
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from market.console import Result, say
from market.console import seeds as named_seeds
from market.errors import UsageError
from market.settings import Settings
from market.units import MS_NS, SECOND_NS

if TYPE_CHECKING:
    from proving.sandbox.virtual import VirtualVenue

JOBS: Final = 2
#: Seeds of the market and of the run that only loads what is compiled.
MARKET_SEED: Final = 7
#: Prices and positions are followed every so often beside what requests do.
CYCLE_NS: Final = 100 * MS_NS
#: Median time from a request's answer to its arrival at the market, so that fills and cancels race.
LATENCY_MS: Final = 5.0
#: Symbols of the venues, which seeds take in turn.
SYMBOLS: Final = (*[("BTCUSDT",)] * 3, ("BTCUSDT", "ETHUSDT"))
#: The venue's seeds begin at different seconds of its market, so many.
BEGINNINGS: Final = 16
#: Seeds between two lines of progress.
PROGRESS: Final = 100
#: A planted bug is found within so many seeds, or not at all.
PLANTED_SEEDS: Final = 60


Venues = Sequence["VirtualVenue"]  #: seeds take them in turn


class Report(msgspec.Struct, kw_only=True):
    """What became of a seed; ``met`` counts (kind of fault, state of an order)."""

    seed: int
    violations: list[str]
    digest: str = ""
    cpu_s: float = 0.0
    counts: dict[str, int] = {}
    met: list[tuple[str, str, int]] = []


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 torture`."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--seeds", metavar="A-B", default="1-20", help="default: 1-20")
    chosen.add_argument("--seed", type=int, help="one seed")
    chosen.add_argument(
        "--planted", action="store_true", help="plant known bugs, and say which seed finds each"
    )
    parser.add_argument("--trace", action="store_true", help="of one seed, every event")
    parser.add_argument("--table", action="store_true", help="how often each fault met each state")


def command(_: Settings, options: argparse.Namespace) -> Result:
    """Run seeds; fails where an invariant was violated, or a planted bug was not found."""
    seeds = seeds_of(options)
    from proving.torture.planted import BUGS

    say("building the market and loading what is compiled")
    warm = warm_venues()
    if options.planted:
        found = {name: first_seed(warm, plant) for name, plant in BUGS.items()}
        for name, seed in found.items():
            print(f"{name:40} {'not found' if seed is None else f'seed {seed}'}")
        return {"planted": found, "failed": None in found.values()}
    reports = []
    for report in run(warm, seeds, trace=options.trace):
        reports.append(report)
        if len(reports) % PROGRESS == 0:
            say(f"{len(reports)} of {len(seeds)} seeds")
        for violation in report.violations:
            print(f"seed {report.seed}: {violation}", file=sys.stderr)
    return _result(reports, table=options.table)


def seeds_of(options: argparse.Namespace) -> tuple[int, ...]:
    """The seeds asked for; UsageError for what is none."""
    if options.seed is not None:
        return (options.seed,)
    if options.trace:
        raise UsageError("--trace is of one seed; name it with --seed N")
    return named_seeds(options.seeds)


def _result(reports: list[Report], *, table: bool) -> Result:
    from proving.torture import coverage
    from proving.torture.faults import KINDS

    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
    met = coverage.merged(report.met for report in reports)
    empty = coverage.empty(met, KINDS)
    if table:
        print("\n".join(coverage.table(met, KINDS)))
    violated = sorted(report.seed for report in reports if report.violations)
    return {
        **counts,
        "pairs_never_met": empty,
        "cpu_s_per_seed": sum(report.cpu_s for report in reports) / len(reports),
        "cpu_s_most": max(report.cpu_s for report in reports),
        "violated": violated,
        "failed": bool(violated),
        "seeds": len(reports),
        "violations": sum(len(report.violations) for report in reports),
    }


# -- processes -------------------------------------------------------------------------------------


def warm_venues() -> Venues:
    """Venues that stand still, in a process that has everything loaded: one run is over on each, of its
    second client, so that the first is untouched.
    """
    from proving.sandbox.virtual import VirtualVenue
    from proving.torture.world import World

    venues: dict[tuple[str, ...], VirtualVenue] = {}
    for symbols in set(SYMBOLS):
        venue = venues[symbols] = VirtualVenue(
            MARKET_SEED,
            symbols=symbols,
            clients=3,
            cycle_ns=CYCLE_NS,
            depths=(200, 1),
            latency_ms=LATENCY_MS,
        )
        with tempfile.TemporaryDirectory() as folder:
            World(0, venue, Path(folder), client=1).run()
    gc.freeze()
    return tuple(venues[symbols] for symbols in SYMBOLS)


def run(
    venues: Venues,
    seeds: Iterable[int],
    *,
    plant: Callable[[], None] | None = None,
    trace: bool = False,
    jobs: int = JOBS,
) -> Iterator[Report]:
    """The reports of seeds, each run in a process of its own, as they come."""
    waiting, running = iter(seeds), dict[int, tuple[int, int, bytearray]]()
    try:
        while True:
            while len(running) < jobs and (seed := next(waiting, None)) is not None:
                pipe, child = _fork(venues[seed % len(venues)], seed, plant, trace)
                running[pipe] = seed, child, bytearray()
            if not running:
                return
            for pipe in select.select(list(running), (), ())[0]:
                seed, child, body = running[pipe]
                if part := os.read(pipe, 1 << 16):
                    body += part
                    continue
                del running[pipe]
                os.close(pipe)
                os.waitpid(child, 0)
                yield _read(seed, bytes(body))
    finally:  # whoever has seen enough
        for pipe, (_, child, _) in running.items():
            os.close(pipe)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _read(seed: int, body: bytes) -> Report:
    try:
        return msgspec.msgpack.decode(body, type=Report)
    except msgspec.DecodeError:
        return Report(seed=seed, violations=["0: its process ended without a report"])


def _fork(
    venue: VirtualVenue, seed: int, plant: Callable[[], None] | None, trace: bool
) -> tuple[int, int]:
    """Run a seed in a child; the end of a pipe that gets its report, and its process id."""
    sys.stdout.flush()
    ours, theirs = os.pipe()
    if child := os.fork():
        os.close(theirs)
        return ours, child
    try:
        gc.disable()  # a run is over before it pays
        sys.settrace(None)  # what a tracer saw is lost with `_exit`
        if plant is not None:
            plant()
        os.write(theirs, msgspec.msgpack.encode(_report(venue, seed, trace)))
        sys.stdout.flush()
    finally:
        os._exit(0)


def _report(venue: VirtualVenue, seed: int, trace: bool) -> Report:
    from proving.torture.world import World

    started = time.process_time()
    venue.exchange.cycle_ns = SECOND_NS  # as long as there is no order
    venue.advance(venue.now_ns + seed % BEGINNINGS * SECOND_NS)
    venue.exchange.cycle_ns = CYCLE_NS
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        world = World(seed, venue, Path(folder), print if trace else None)
        violations = world.judge.violations
        try:
            world.run()
        except Exception as error:  # of the product: that is what the run is to find
            where = traceback.extract_tb(error.__traceback__)[-1]
            violations.append(
                f"0: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            )
            if trace:
                traceback.print_exc()
    return Report(
        seed=seed,
        violations=violations,
        digest=world.digest.hexdigest(),
        cpu_s=time.process_time() - started,
        counts=dict(world.judge.counts),
        met=[(kind, state, times) for (kind, state), times in sorted(world.met.items())],
    )


def _memory() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def first_seed(venues: Venues, plant: Callable[[], None]) -> int | None:
    """The first seed that finds a planted bug."""
    for at in range(1, PLANTED_SEEDS + 1, JOBS):
        seeds = range(at, at + JOBS)
        found: list[Any] = [r.seed for r in run(venues, seeds, plant=plant) if r.violations]
        if found:
            return int(min(found))
    return None
