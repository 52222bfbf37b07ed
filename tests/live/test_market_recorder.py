"""What arrived is what is stored, whatever the venue, the disk, the clock or a signal does."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection

from live import market_recorder
from live.clock import SteadyClock
from live.feed import Backoff, Item, WireFeed
from live.market_recorder import (
    CaptureBuffer,
    Recorder,
    RecorderError,
    record,
    repair_torn_tail,
)
from live.replica import BookTopic, Replica
from market.book import Book
from market.instruments import BUILT_IN, Instrument
from market.lake import Lake
from market.settings import Market, Record, Settings
from market.units import utc_date
from market.wire.capture import CaptureWriter, read_blocks, read_lines
from market.wire.decode import Decoder
from market.wire.survey import instruments_of
from market.wire.topics import public_topics
from tests.conftest import REPOSITORY
from tests.live.exchange import Handler, acknowledge, exchange

S = 1_000_000_000
HOUR = 3600 * S
T = 1_700_000_000 * S // HOUR * HOUR
BOOK = "orderbook.200.BTCUSDT"


def quiet(text: str) -> None:
    """Progress that nobody reads."""


class Script:
    """A feed that hands over given frames, with bare time every second, and notes what is asked."""

    deepest_queue = 0

    def __init__(self, lines: Sequence[tuple[int, bytes]]) -> None:
        self._lines = lines
        self.renewed: list[list[str]] = []

    def stop(self) -> None:
        self._lines = ()

    def renew(self, topics: Sequence[str]) -> None:
        self.renewed.append(list(topics))

    def __iter__(self) -> Iterator[Item]:
        last = 0
        for receive_ns, frame in self._lines:
            if receive_ns - last >= S:
                last = receive_ns
                yield Item(receive_ns, None, 0)
            yield Item(receive_ns, frame, 0)


def book(kind: str, u: int, bids: object, asks: object, topic: str = BOOK) -> bytes:
    symbol = topic.rpartition(".")[2]
    data = {"s": symbol, "b": bids, "a": asks, "u": u, "seq": u}
    return msgspec.json.encode({"topic": topic, "type": kind, "ts": 1, "data": data, "cts": 1})


def snapshot(u: int, topic: str = BOOK) -> bytes:
    return book("snapshot", u, [["100.0", "1"]], [["100.1", "2"]], topic)


def delta(u: int, size: str = "3", topic: str = BOOK) -> bytes:
    return book("delta", u, [["100.0", size]], [], topic)


def recorded(
    root: Path,
    feed: Script,
    names: list[str] | None = None,
    listed: Mapping[str, Instrument] = BUILT_IN,
    span_ns: int = HOUR,
) -> Recorder:
    return Recorder(
        Settings(root=str(root)),
        feed,
        names or public_topics(("BTCUSDT", "ETHUSDT"), (200,)),
        listed,
        SteadyClock(),
        quiet,
        span_ns=span_ns,
    )


def stored(paths: Sequence[str]) -> list[tuple[int, bytes]]:
    """Every line of these captures that is not one of our own."""
    return [line for path in paths for line in read_lines(path) if not line[1].startswith(b'{"l2"')]


def controls(paths: Sequence[str], kind: str) -> list[dict[str, object]]:
    lines = [frame for path in paths for _, frame in read_lines(path)]
    found = [msgspec.json.decode(frame) for frame in lines if frame.startswith(b'{"l2"')]
    return [fields for fields in found if fields["l2"] == kind]


def books_after(paths: Sequence[str]) -> dict[str, tuple[object, object, int]]:
    """The books at the end of these captures, read as one stream."""
    decoder = Decoder()
    books = {symbol: Book() for symbol in BUILT_IN}
    for path in paths:
        for block in read_blocks(path):
            for symbol, events in decoder.decode_block(block).events.items():
                books[symbol].apply(events)
    return {
        symbol: (list(held.bids()), list(held.asks()), held.update_id)
        for symbol, held in books.items()
    }


@pytest.mark.parametrize("name", ["bybit-linear-20260809", "usdm-20240808"])
def test_a_recording_is_stored_line_by_line_and_each_file_reads_alone(
    name: str, data_dir: Path, tmp_path: Path
) -> None:
    path = str(data_dir / f"{name}.frames.zst")
    lines = list(read_lines(path))[:12_000]

    run = recorded(tmp_path, Script(lines), listed=instruments_of([path], BUILT_IN), span_ns=9 * S)
    result = run.run()

    files = result["files"]
    assert len(files) >= 4
    assert stored(files) == [(max(ns, 0), frame) for ns, frame in lines]
    assert result["lost"] == result["gaps"] == result["broken_books"] == 0
    assert result["received"] == len(lines)
    whole = books_after(files)
    assert whole["BTCUSDT"][0]
    assert books_after(files[-1:]) == whole


def test_a_file_opens_with_checkpoints_of_the_state_before_its_first_frame(tmp_path: Path) -> None:
    lines = [
        (T, snapshot(7)),
        (T + S, b'{"topic":"tickers.BTCUSDT","type":"snapshot","data":{"markPrice":"5","x":"1"}}'),
        (T + 2 * S, b'{"topic":"tickers.BTCUSDT","type":"delta","data":{"markPrice":"6"}}'),
        (T + HOUR, delta(8)),
    ]
    files = recorded(tmp_path, Script(lines)).run()["files"]

    assert [Path(path).parent.name for path in files] == [f"date={utc_date(T)}"] * 2
    assert [line["symbol"] for line in controls(files[1:], "instrument")] == list(BUILT_IN)
    held, ticker = controls(files[1:], "checkpoint")
    assert held["topic"] == BOOK
    assert held["data"]["u"] == 7
    assert held["data"]["b"] == [["100.0", "1"]]
    assert ticker["data"] == {"markPrice": "6", "x": "1"}


def test_a_finished_file_ends_with_the_start_time_of_the_next(tmp_path: Path) -> None:
    """So a date's last file says itself whether the stream went on past midnight."""
    lines = [(T, snapshot(7)), (T + HOUR + 5, delta(8)), (T + 2 * HOUR + 7, delta(9))]
    files = recorded(tmp_path, Script(lines)).run()["files"]

    last = [list(read_lines(path))[-1] for path in files]
    assert last[:2] == [(T + HOUR + 5, b'{"l2":"turn"}'), (T + 2 * HOUR + 7, b'{"l2":"turn"}')]
    assert last[2][1].startswith(b'{"l2":"disconnect"')


def test_a_gap_or_a_crossed_book_is_resubscribed_and_retried_after_a_wait(
    tmp_path: Path,
) -> None:
    connect = b'{"l2":"connect"}'
    crossing = book("delta", 11, [["100.2", "1"]], [])
    lines = [(T, connect), (T, snapshot(1)), (T + S, delta(3)), (T + 2 * S, delta(4))]
    lines += [(T + n * S, b"{}") for n in range(3, 8)]
    lines += [(T + 8 * S, snapshot(10)), (T + 9 * S, crossing), (T + 10 * S, b"{}")]
    feed = Script(lines)

    result = recorded(tmp_path, feed, [BOOK]).run()

    assert feed.renewed == [[BOOK], [BOOK], [BOOK]]
    assert (result["gaps"], result["broken_books"], result["resyncs"]) == (1, 1, 3)


def test_a_topic_without_a_snapshot_after_all_retries_reconnects(tmp_path: Path) -> None:
    lines = [(T, b'{"l2":"connect"}'), *((T + n * S, b"{}") for n in range(200))]
    feed = Script(lines)
    recorded(tmp_path, feed, [BOOK]).run()
    assert [] in feed.renewed
    assert feed.renewed.index([]) == market_recorder._RENEWALS


def test_duplicates_and_repeats_are_counted_and_stored(tmp_path: Path) -> None:
    lines = [(T + n, line) for n, line in enumerate([snapshot(1), delta(2), delta(2), snapshot(2)])]
    result = recorded(tmp_path, Script(lines), [BOOK]).run()
    assert (result["duplicates"], result["repeated_snapshots"], result["gaps"]) == (1, 1, 0)
    assert stored(result["files"]) == lines


# -- the disk --------------------------------------------------------------------------------------


@pytest.fixture
def file_limit() -> Iterator[None]:
    """Restores the limit on file sizes, by which a test makes the disk refuse."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refuse_beyond(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def noise(count: int, start_ns: int) -> list[tuple[int, bytes]]:
    """Lines that do not compress well."""
    return [(start_ns + n, os.urandom(300).hex().encode()) for n in range(count)]


def test_nothing_is_lost_while_writes_fail_and_the_buffer_lasts(
    tmp_path: Path, file_limit: None
) -> None:
    ticks = iter(range(0, 1000 * S, S))
    said: list[str] = []
    buffer = CaptureBuffer(Lake(tmp_path), list, 1 << 20, said.append, lambda: next(ticks))
    first, second, third = noise(50, T), noise(200, T + S), noise(50, T + HOUR)

    for line in first:
        buffer.add(*line)
    assert buffer.flush()
    refuse_beyond(20_000)
    for line in second:
        buffer.add(*line)
    assert not buffer.flush()
    for line in third:
        buffer.add(*line)
    refuse_beyond(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    buffer.close()

    assert stored(buffer.paths) == first + second + third
    assert (buffer.failures, buffer.lost) == (1, 0)
    assert "retried every second" in said[0]


def test_lines_beyond_the_buffer_are_dropped_counted_and_marked(
    tmp_path: Path, file_limit: None
) -> None:
    ticks = iter(range(0, 1000 * S, S))
    buffer = CaptureBuffer(
        Lake(tmp_path), lambda: [b'{"l2":"x"}'], 30_000, quiet, lambda: next(ticks)
    )
    kept, later = noise(100, T), noise(10, T + 20)
    buffer.add(*kept[0])
    assert buffer.flush()
    refuse_beyond(100)
    for line in kept[1:]:
        buffer.add(*line)
        buffer.tick(line[0])
    refuse_beyond(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    buffer.tick(T + 10)
    for line in later:
        buffer.add(*line)
    buffer.close()

    assert 0 < buffer.lost < 100
    assert stored(buffer.paths) == kept[: 100 - buffer.lost] + later
    assert len(buffer.paths) == 2
    assert [line["lost"] for line in controls(buffer.paths[1:], "disconnect")] == [buffer.lost]


def test_a_torn_tail_is_truncated_at_the_next_start(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    path = Path(lake.frames_dir(utc_date(T))) / f"{T}{market_recorder.SUFFIX}"
    with CaptureWriter(path) as writer:
        writer.append_block(b"".join(b"%d {}\n" % (T + n) for n in range(100)))
    whole = path.read_bytes()
    with CaptureWriter(path) as writer:
        writer.append_block(b"%d {}\n" % T)
    path.write_bytes(path.read_bytes()[:-3])
    said: list[str] = []

    repair_torn_tail(lake, T, said.append)

    assert path.read_bytes().startswith(whole)
    assert not [block for block in read_blocks(path) if block.torn]
    assert "repaired" in said[0]


# -- the wire --------------------------------------------------------------------------------------


#: How long a slow machine may take.
PATIENCE_S = 90.0


def recorded_from(
    url: str, root: Path, names: list[str], enough: Callable[[Recorder], bool]
) -> tuple[dict[str, object], Recorder]:
    """Record until ``enough`` of the recording."""
    clock = SteadyClock()
    feed = WireFeed(
        url,
        names,
        duration_s=PATIENCE_S,
        clock_ns=clock,
        keep_replies=True,
        backoff=Backoff(0.05, 0.1, seed=1),
    )
    run = Recorder(Settings(root=str(root)), feed, names, BUILT_IN, clock, quiet)
    ended = threading.Event()

    def watch() -> None:
        while not (enough(run) or ended.wait(0.02)):
            pass
        feed.stop()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return run.run(), run
    finally:
        ended.set()
        watcher.join()


def test_a_misbehaving_venue_is_stored_as_received_and_resynchronised(tmp_path: Path) -> None:
    """Gap, garbage, duplicates, a crossed book, 2 MB frames, a connection cut within a message."""
    sent: list[bytes] = []
    asked: list[str] = []

    async def say(socket: ServerConnection, message: bytes) -> None:
        sent.append(message)
        await socket.send(message, text=True)

    async def venue(socket: ServerConnection) -> None:
        connection = len([op for op in asked if op == "connect"])
        asked.append("connect")
        await acknowledge(socket)
        u = 1000 * connection + 1
        await say(socket, snapshot(u))
        await say(socket, delta(u + 1))
        await say(socket, b"\xff\xfe not json \x01")
        await say(socket, msgspec.json.encode({"topic": "x", "fill": "y" * 2_000_000}))
        await say(socket, delta(u + 1))
        await say(socket, delta(u + 5) if connection == 0 else delta(u + 2))
        while connection == 0:
            request = msgspec.json.decode(await socket.recv())
            if request["op"] == "subscribe":
                asked.append("again")
                await say(socket, snapshot(500))
                await say(socket, delta(501, "0"))
                # The head of a frame that never comes whole.
                socket.transport.write(b"\x81\x7e\x10\x00half a message")
                socket.transport.close()
                return
        await socket.wait_closed()

    def at_last(run: Recorder) -> bool:
        held = run.replica.topics[BOOK]
        return isinstance(held, BookTopic) and held.update_id == 1003

    with exchange(venue) as url:
        result, run = recorded_from(url, tmp_path, [BOOK], at_last)

    files = result["files"]
    replies = b'"op":"'
    assert [frame for _, frame in stored(files) if replies not in frame] == sent
    assert asked == ["connect", "again", "connect"]
    assert (result["gaps"], result["duplicates"], result["disconnects"]) == (1, 2, 1)
    assert len(controls(files, "connect")) == 2
    assert controls(files, "renew")[0]["topics"] == [BOOK]
    assert result["lost"] == 0
    book_topic = run.replica.topics[BOOK]
    assert isinstance(book_topic, BookTopic)
    assert book_topic.update_id == 1003


def steady(rate_hz: float) -> Handler:
    async def venue(socket: ServerConnection) -> None:
        await acknowledge(socket)
        await socket.send(snapshot(1), text=True)
        u = 2
        while True:
            await socket.send(delta(u, str(u)), text=True)
            u += 1
            await asyncio.sleep(1 / rate_hz)

    return venue


def command(root: Path, url: str) -> subprocess.Popen[str]:
    arguments = ["--url", url, "--root", str(root), "--json", "--symbols", "BTCUSDT"]
    limits = ["--set", "record.depths=200", "--set", "record.rest_url=http://127.0.0.1:9"]
    return subprocess.Popen(
        [sys.executable, "-m", "orchestration.cli", "record", *arguments, *limits],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def captures(root: Path) -> list[str]:
    return sorted(str(path) for path in root.glob("frames/date=*/*.frames.zst"))


def wait_for_lines(root: Path, count: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        files = [path for path in captures(root) if Path(path).stat().st_size]
        if files and len(stored(files[-1:])) >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{count} lines were not recorded in {PATIENCE_S:.0f} s")


def test_the_command_survives_kill_and_stops_cleanly_on_sigterm(tmp_path: Path) -> None:
    with exchange(steady(200)) as url:
        first = command(tmp_path, url)
        wait_for_lines(tmp_path, 100)
        first.kill()
        first.communicate()
        second = command(tmp_path, url)
        end = time.monotonic() + PATIENCE_S
        while len(captures(tmp_path)) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        wait_for_lines(tmp_path, 100)
        third = command(tmp_path, url)
        _, complaint = third.communicate(timeout=PATIENCE_S)
        second.send_signal(signal.SIGTERM)
        output, _ = second.communicate(timeout=PATIENCE_S)

    assert second.returncode == 0
    result = msgspec.json.decode(output.splitlines()[-1])
    assert (result["gaps"], result["lost"]) == (0, 0)
    before, after = captures(tmp_path)
    assert result["files"] == [after]
    assert controls([after], "disconnect")[-1]["reason"] == "recorder stopped"
    updates = [
        msgspec.json.decode(frame)["data"]["u"] for _, frame in stored([after]) if b'"u"' in frame
    ]
    assert updates == list(range(1, len(updates) + 1))
    assert not [block for block in read_blocks(before) if block.torn]
    assert third.returncode == 1
    assert "another recorder writes here" in complaint


def test_a_recorder_refuses_unusable_settings_and_a_second_recorder(tmp_path: Path) -> None:
    for wrong, said in (
        (Settings(root=str(tmp_path), record=Record(depths=(1, 50))), "lacks market.book_depth"),
        (Settings(root=str(tmp_path), source="synthetic"), "source is recorded"),
    ):
        with pytest.raises(RecorderError, match=said):
            record(wrong, url="ws://127.0.0.1:9", listed={}, say=quiet)


# -- the clock, the replica ------------------------------------------------------------------------


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**10), st.integers(-(10**12), 10**12)), max_size=30))
def test_receive_times_never_decrease_whatever_the_system_clock_does(
    steps: list[tuple[int, int]],
) -> None:
    """Between two readings time passes at least half as fast as it does, and never stands still."""
    monotonic, wall = 0, T
    clock = SteadyClock(lambda: wall, lambda: monotonic)
    last = clock()
    for passed, step in steps:
        monotonic += passed
        wall += passed + step
        now = clock()
        assert now - last >= passed // 2
        assert now >= wall
        last = now
    assert list(clock.steps) == [step for _, step in steps if abs(step) > 100_000_000]


def test_a_step_of_the_system_clock_is_recorded(tmp_path: Path) -> None:
    wall = iter([T, T + S, T - 3600 * S, T - 3599 * S])
    monotonic = iter(range(T, T + 100 * S, S))
    clock = SteadyClock(lambda: next(wall), lambda: next(monotonic))
    stamps = [clock() for _ in range(3)]
    said: list[str] = []
    feed = Script([(stamp, snapshot(1)) for stamp in stamps])
    run = Recorder(Settings(root=str(tmp_path)), feed, [BOOK], BUILT_IN, clock, said.append)

    result = run.run()

    assert result["clock_steps"] == 1
    assert [line["step_ns"] for line in controls(result["files"], "clock")] == [-3602 * S]
    assert [stamp for stamp, _ in stored(result["files"])] == stamps == sorted(stamps)
    assert "stepped by -3602.000 s" in said[0]


@pytest.mark.parametrize("name", ["bybit-linear-20260809", "usdm-20240718"])
def test_a_replica_has_the_book_of_the_decoder(name: str, data_dir: Path) -> None:
    names = [f"orderbook.200.{symbol}" for symbol in BUILT_IN]
    path = str(data_dir / f"{name}.frames.zst")
    listed = instruments_of([path], BUILT_IN)
    replica, decoder, held = Replica(names), Decoder(listed), {symbol: Book() for symbol in listed}
    for n, (receive_ns, frame) in enumerate(read_lines(path)):
        replica.follow(receive_ns, frame)
        for symbol, events in decoder.decode_frame(receive_ns, frame).events.items():
            held[symbol].apply(events)
        if n > 8000:
            break
    for symbol, instrument in listed.items():
        topic = replica.topics[f"orderbook.200.{symbol}"]
        state = topic.state()
        assert isinstance(state, dict)
        for side, levels in (("b", held[symbol].bids()), ("a", held[symbol].asks())):
            assert [
                (instrument.price_ticks(price), instrument.qty_lots(size))
                for price, size in state[side]
            ] == [(int(price), int(size)) for price, size in levels]
        assert state["u"] == held[symbol].update_id


def test_settings_name_the_recorded_topics() -> None:
    named = public_topics(Market().symbols, Record().depths)
    assert len(named) == 14
    assert {"orderbook.1000.ETHUSDT", "allLiquidation.BTCUSDT"} <= set(named)
