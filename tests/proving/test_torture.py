"""Fault simulation: its parts keep their promises, seeds hold every invariant, planted bugs are found."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from orchestration.cli import main
from proving.sandbox.virtual import VirtualVenue
from proving.torture import faults
from proving.torture.command import Report, Venues, run, warm_venues
from proving.torture.disk import Disk
from proving.torture.network import Heap, Network, Wire
from proving.torture.planted import BUGS

SECOND = 1_000_000_000
#: So many take two minutes on two cores that do nothing else.
SEEDS = range(1, int(os.environ.get("TORTURE_SEEDS", "300")) + 1)
#: Every planted bug has to be found within so many seeds (docs/torture.md).
WITHIN = 60


@pytest.fixture(scope="module")
def venues() -> Venues:
    """Warm venues; runs are forked from them and leave them as they are."""
    return warm_venues()


# -- parts -----------------------------------------------------------------------------------------


def test_events_run_by_time_and_then_in_the_order_of_scheduling() -> None:
    heap, ran = Heap(0), []
    for name, at in (("c", 2), ("a", 1), ("b", 1), ("late", 9)):
        heap.at(at, lambda name=name: ran.append((name, heap.now_ns)))  # type: ignore[misc]
    heap.run(5)
    assert ran == [("a", 1), ("b", 1), ("c", 2)]
    assert (heap.now_ns, heap.next_ns) == (5, 9)


def test_a_connection_keeps_its_order_and_loses_what_is_in_flight_when_it_is_cut() -> None:
    venue = VirtualVenue(seed=3, start_ns=SECOND)
    cut = 0
    for seed in range(20):
        heap, got, ends = Heap(venue.now_ns), list[bytes](), list[str]()
        wire = Wire(
            Network(heap, random.Random(seed)), venue.connect("public"), got.append, ends.append
        )
        sent = [str(n).encode() for n in range(50)]
        for frame in sent:
            wire.remote.put(frame)
        wire.remote.end(orderly=False)
        for delivery in venue.advance(venue.now_ns + SECOND // 10):
            wire.down(delivery)
        heap.run(heap.now_ns + 20 * SECOND)
        assert got == sent[: len(got)]
        assert len(ends) == 1
        cut += len(got) < len(sent)
    assert 0 < cut < 20


@pytest.mark.parametrize("power", [False, True])
def test_a_power_cut_leaves_what_was_synced_and_a_prefix_of_the_rest(
    tmp_path: Path, power: bool
) -> None:
    lost = 0
    for seed in range(30):
        disk, path = Disk(tmp_path), tmp_path / f"{seed}.log"
        with path.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, 4096)
            file.write(b"s" * 100)
            disk.sync(file.fileno())
            file.write(b"u" * 100)
        if power:
            disk.cut_power(random.Random(seed))
        left = path.read_bytes().rstrip(b"\0")
        assert left[:100] == b"s" * 100
        assert left[100:] == b"u" * (len(left) - 100)
        lost += len(left) < 200
        path.unlink()
    assert (lost > 15) == power


def test_the_schedule_is_a_function_of_the_seed_and_leaves_no_kind_out() -> None:
    span = (0, 35 * SECOND)
    assert faults.schedule(1, *span) == faults.schedule(1, *span) != faults.schedule(2, *span)
    kinds = Counter(due.kind for seed in range(40) for due in faults.schedule(seed, *span))
    assert set(kinds) == set(faults.KINDS)
    some = {due.kind for due in faults.schedule(1, *span)}
    assert 5 < len(some) < len(faults.KINDS)


# -- runs ------------------------------------------------------------------------------------------


def test_no_seed_violates_an_invariant(venues: Venues) -> None:
    reports = list(run(venues, SEEDS))
    assert {report.seed: report.violations for report in reports if report.violations} == {}
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
    assert len(reports) == len(SEEDS)
    assert counts["orders"] > 10 * len(SEEDS)
    assert counts["faults"] > 10 * len(SEEDS)
    assert counts["crashes"] > len(SEEDS)


def test_a_seed_repeats_itself_to_the_last_bit(venues: Venues) -> None:
    def seen(report: Report) -> tuple[object, ...]:
        return report.seed, report.digest, report.counts, report.met, report.violations

    first, again, traced = (
        sorted(map(seen, run(venues, (3, 4), trace=trace))) for trace in (False, False, True)
    )
    assert first == again == traced
    assert first[0][1] != first[1][1]


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(venues: Venues, bug: str) -> None:
    found = (report for report in run(venues, range(1, WITHIN + 1), plant=BUGS[bug]))
    assert any(report.violations for report in found), f"{bug}: not within {WITHIN} seeds"


def test_an_exception_in_the_worker_is_a_violation(venues: Venues) -> None:
    def plant() -> None:
        from live.core import Core

        Core._due = lambda self, now_ns: 1 / 0  # type: ignore[method-assign, assignment]

    (report,) = run(venues, (1,), plant=plant)
    assert report.violations[0].startswith("0: ZeroDivisionError")


def test_the_last_line_of_the_output_holds_seeds_and_violations(
    capfd: pytest.CaptureFixture[str],
) -> None:
    import json

    status = main(["torture", "--seeds", "5", "--json"])
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (last["seeds"], last["violations"], status) == (1, 0, 0)


@pytest.mark.parametrize("wrong", [["--seeds", "9-1"], ["--trace"], ["--seeds", "x"]])
def test_wrong_seeds_are_one_clear_line(
    wrong: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["torture", *wrong]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
