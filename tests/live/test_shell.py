"""A request leaves once what it rests on is on disk, and not otherwise."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from execution.orders import Amend, Cancel, Submit
from live.latency import Histogram
from live.log import Header, LogWriter
from live.messages import CancelAll, RequestBody, Send, SetStop, Tick
from live.run import logger, stopping
from live.shell import STAGES
from live.writer import Writer


class Disk:
    """fdatasync of a disk that may fail, or take its time."""

    def __init__(self) -> None:
        self.fails = False
        self.synced = 0

    def __call__(self, descriptor: int) -> None:
        if self.fails:
            raise OSError(28, "No space left on device")
        os.fdatasync(descriptor)
        self.synced += 1


class Bench:
    def __init__(self, folder: Path) -> None:
        self.disk, self.sent, self.failures = Disk(), list[int](), list[Exception]()
        self.refuses: set[int] = set()  #: numbers that the connections do not take
        header = Header(
            venue="x",
            account="",
            source="synthetic",
            instruments={},
            settings=b"{}",
            code="",
            run="x-1",
        )
        self.log = LogWriter(folder / "log", header, 0, background=True, fdatasync=self.disk)
        latency = {stage: Histogram() for stage in STAGES}
        self.expired: list[int] = []
        self.writer = Writer(
            self.log,
            self.send,
            lambda told: self.expired.append(told.request),
            self.failures.append,
            latency,
        )

    def send(self, send: Send) -> None:
        assert self.log.synced_to >= send.deadline_ns, "what it rests on is on disk"
        if send.number in self.refuses:
            raise RuntimeError("the loop has ended")
        self.sent.append(send.number)

    def request(self, number: int, body: RequestBody) -> None:
        """A request that rests on an input; the position stands in its deadline, for `send`."""
        self.log.append_input(number, Tick())
        position = self.log.position
        self.writer.put(position, Send(number=number, body=body, deadline_ns=position))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.disk.fails = False
    made.writer.close()
    made.log.close()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def order(number: int, reduce_only: bool = False) -> Submit:
    return Submit(
        client_id=str(number), symbol="BTCUSDT", side=1, qty_lots=1, reduce_only=reduce_only
    )


def test_requests_leave_in_order_after_a_sync_that_covers_them(bench: Bench) -> None:
    for number in range(50):
        bench.request(number, order(number))
    until(lambda: len(bench.sent) == 50)
    assert bench.sent == list(range(50))
    assert bench.disk.synced > 0


def test_nothing_leaves_while_the_disk_refuses_and_everything_afterwards(bench: Bench) -> None:
    bench.disk.fails = True
    bench.request(1, order(1))
    until(lambda: bench.failures)
    bench.request(2, Cancel(client_id="1"))
    assert bench.sent == []
    assert "No space left on device" in str(bench.failures[0])
    bench.disk.fails = False
    until(lambda: bench.sent == [1, 2])


def test_a_gated_writer_lets_only_what_reduces_leave(bench: Bench) -> None:
    bench.writer.gated = True
    bodies = (
        order(1),
        order(2, reduce_only=True),
        Amend(client_id="2", qty_lots=5),
        Cancel(client_id="2"),
        CancelAll(symbol="BTCUSDT"),
        SetStop(symbol="BTCUSDT", stop_ticks=7),
    )
    for number, body in enumerate(bodies, 1):
        bench.request(number, body)
    until(lambda: 6 in bench.sent)
    assert bench.sent == [2, 4, 5, 6]
    assert bench.expired == [1, 3]


def test_what_cannot_be_handed_over_ends_and_the_next_one_leaves(bench: Bench) -> None:
    bench.refuses.add(1)
    for number in (1, 2):
        bench.request(number, order(number))
    until(lambda: 2 in bench.sent)
    assert (bench.sent, bench.expired) == ([2], [1])
    assert "the loop has ended" in str(bench.failures)


def test_a_line_that_stderr_does_not_take_ends_nothing_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say = logger(deque())
    with monkeypatch.context() as patched, suppress(OSError), open("/dev/full", "w") as full:
        patched.setattr(sys, "stderr", full)
        for level in (say.info, say.error):
            level("unheard")
    closed, stops = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"), list[str]()
    closed.close()
    with stopping(stops.append, say), monkeypatch.context() as gone:
        gone.setattr(sys, "stderr", closed)
        signal.raise_signal(signal.SIGHUP)
    say.warning("heard")
    assert stops == ["SIGHUP"]
    [line] = capsys.readouterr().err.splitlines()
    assert (line_of := msgspec.json.decode(line))["event"] == "heard"
    assert line_of["unsaid"] == 3


def test_a_histogram_knows_percentiles_within_a_bucket() -> None:
    times = Histogram()
    for n in range(1, 10_001):
        times.add(n * 1000)
    for percent in (50, 99, 99.9):
        assert times.percentile_us(percent) == pytest.approx(100 * percent, rel=0.13)
    assert times.summary()["most"] == 10_000.0
    assert sum(count for _, count in times.buckets()) == times.count == 10_000
    assert Histogram().percentile_us(99) == 0.0


def test_what_is_recent_in_a_histogram_is_of_the_last_two_minutes() -> None:
    times, slow_us = Histogram(), 100_000
    times.add(slow_us * 1000)
    found = []
    for minute in range(1, 6):
        times.add(1_000_000)
        recent = times.recent(100.0 + 60 * minute)
        found.append((recent.count, recent.percentile_us(99) > 2000))
    assert found[0] == (2, True)
    assert found[-1] == (1, False)
    assert times.count == 6
