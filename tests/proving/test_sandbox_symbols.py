"""Our recorder and worker on a venue that delists a symbol, and on venues of any date."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from live.clock import VenueClock, clock_of
from live.coverage import coverage
from live.feed import Backoff, FeedError, WireFeed
from live.market_recorder import Recorder, record
from live.worker import run
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Clock, Market, Record, Settings
from market.units import DAY_NS, HOUR_NS, utc_date
from market.wire.capture import CaptureWriter
from market.wire.topics import public_topics
from proving.sandbox.exchange import FIRST_DAY, SandboxExchange
from proving.sandbox.faults import Fault
from proving.sandbox.server import Sandbox
from proving.synthetic.profiles import profile
from tests.live.live_market import live_settings, promote
from tests.proving.sandbox_server import Served, served

BTC, ETH = "BTCUSDT", "ETHUSDT"
SECOND = 1_000_000_000
#: How long a slow machine may take.
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    """At the present time."""
    with served(Sandbox(41, symbols=(BTC, ETH), begins_ns=None)) as running:
        yield running


@pytest.fixture(scope="module")
def dated() -> Iterator[Served]:
    """On a date of its own, ten times as fast."""
    with served(Sandbox(41, symbols=(BTC,), speed=10.0)) as running:
        yield running


def delist(venue: Served, symbols: str, seconds: int) -> None:
    faults = venue.sandbox.faults
    venue.run(lambda _: faults.command(Fault(kind="delist", what=symbols, ms=seconds * 1000)))


def recorded(venue: Served, root: Path, enough: Callable[[Recorder], bool]) -> tuple[Recorder, str]:
    """A recording of both symbols at the present time, and what was said; refused topics are asked for
    every half second."""
    said: list[str] = []
    names = public_topics((BTC, ETH), (1, 200))
    clock = VenueClock(Clock())
    feed = WireFeed(
        venue.description["ws_public"],
        names,
        duration_s=PATIENCE_S,
        clock_ns=clock,
        keep_replies=True,
        ask_again=Backoff(0.5, 0.5),
    )
    recorder = Recorder(Settings(root=str(root)), feed, names, BUILT_IN, clock, said.append)

    def watch() -> None:
        end = time.monotonic() + PATIENCE_S
        while not enough(recorder) and time.monotonic() < end:
            time.sleep(0.05)
        feed.stop()

    watching = threading.Thread(target=watch)
    watching.start()
    recorder.run()
    watching.join()
    return recorder, "\n".join(said)


def frames_of(recorder: Recorder, symbol: str) -> int:
    return sum(t.frames for name, t in recorder.replica.topics.items() if name.endswith(symbol))


def test_a_venue_at_the_present_time_is_recorded_by_the_wall_clock(
    venue: Served, tmp_path: Path
) -> None:
    now_ns = venue.run(lambda exchange: exchange.now_ns)
    assert abs(time.time_ns() - now_ns) < HOUR_NS  # late by what compiling took
    recorder, _ = recorded(venue, tmp_path, lambda run: frames_of(run, BTC) > 50)
    assert recorder.refused == {}
    assert [day.day for day in coverage(Lake(tmp_path), 200)][:1] == [utc_date(now_ns)]


def test_a_delisted_symbol_stops_no_other_and_is_recorded_once_it_is_listed_again(
    venue: Served, tmp_path: Path
) -> None:
    delist(venue, ETH, 5)
    before: list[int] = []

    def enough(run: Recorder) -> bool:
        if run.refused and frames_of(run, BTC) > 50 and not before:
            before.append(frames_of(run, ETH))
        return bool(before) and not run.refused and frames_of(run, ETH) > 20

    recorder, said = recorded(venue, tmp_path, enough)
    assert before == [0]
    assert recorder.summary()["refused"] == {}
    assert f"WARN {ETH}: the venue refuses orderbook.1.{ETH}" in said
    assert f"{ETH}: the venue has orderbook.1.{ETH}" in said
    assert recorder.connections == 1
    days = {day.symbol: day for day in coverage(Lake(tmp_path), 200)}
    assert days[ETH].refused == f"error:handler not found,topic:orderbook.1.{ETH}"
    assert (days[BTC].refused, days[ETH].frames > 20) == ("", True)


def test_a_symbol_that_is_delisted_while_recorded_stops_no_other(
    venue: Served, tmp_path: Path
) -> None:
    """A book that fell silent is renewed, and the venue refuses it: no reconnection takes the other's."""
    at: list[int] = []

    def enough(run: Recorder) -> bool:
        if frames_of(run, ETH) > 20 and not at:
            delist(venue, ETH, 600)
            run._feed.renew([f"orderbook.200.{BTC}", f"orderbook.200.{ETH}"])
        if run.refused and not at:
            at.append(frames_of(run, BTC))
        return bool(at) and frames_of(run, BTC) > at[0] + 50

    recorder, said = recorded(venue, tmp_path, enough)
    venue.run(lambda _: venue.sandbox.faults.clear())
    assert set(recorder.refused) == {f"orderbook.200.{ETH}"}
    assert recorder.connections == 1
    assert said.count("WARN") >= 1
    checkpoints = {line.split(b'"topic":')[1][:25] for line in recorder.replica.checkpoints()}
    assert not any(f"orderbook.200.{ETH}".encode() in line for line in checkpoints)


def test_a_recorder_that_is_refused_everything_ends_with_one_line(
    venue: Served, tmp_path: Path
) -> None:
    delist(venue, "", 600)
    settings = Settings(root=str(tmp_path), record=Record(url=venue.description["ws_public"]))
    with pytest.raises(FeedError, match=r"every subscription refused .error:handler not found"):
        record(settings, listed={}, say=lambda text: None, duration_s=PATIENCE_S)
    venue.run(lambda _: venue.sandbox.faults.clear())


def test_the_clock_of_a_venue_on_loopback_is_taken_over(dated: Served, tmp_path: Path) -> None:
    """By the recorder and by the worker; set by hand it stays, and no other host is asked."""
    url = dated.description["ws_public"]
    said: list[str] = []
    found = clock_of(url, Clock(), said.append)
    assert found == msgspec.convert(dated.description["clock"], Clock)
    assert FIRST_DAY in said[0]
    by_hand = Clock(wall_ns=1, simulated_ns=2, speed=3.0)
    assert clock_of(url, by_hand, said.append) == by_hand
    assert clock_of("wss://stream.example.org/v5/public/linear", Clock(), said.append) == Clock()
    assert clock_of("ws://127.0.0.1:9", Clock(), said.append) == Clock()
    assert len(said) == 1

    only = Market(symbols=(BTC,))
    settings = Settings(root=str(tmp_path / "recorded"), market=only, record=Record(url=url))
    record(settings, listed=BUILT_IN, say=said.append, duration_s=20)
    assert Lake(settings.root).capture_dates() == [FIRST_DAY]
    promote(tmp_path)
    settings = msgspec.structs.replace(live_settings(tmp_path), market=only)
    summary = run(settings, url=url, duration_s=30)
    assert (summary["rejected"], summary["events"] > 0) == (0, True)
    assert summary["decisions"] >= 20


def test_a_worker_of_whose_frames_none_is_accepted_ends_with_one_line(tmp_path: Path) -> None:
    promote(tmp_path)
    path = tmp_path / "late.frames.zst"
    with CaptureWriter(path) as writer:
        for n in range(1334):
            frame = {"topic": f"publicTrade.{BTC}", "type": "snapshot", "ts": 1_772_323_500_000}
            trade = {"T": 1_772_323_500_000, "s": BTC, "S": "Buy", "v": "1", "p": "1", "i": str(n)}
            writer.append(
                1_795_000_000 * SECOND + n, msgspec.json.encode(frame | {"data": [trade]})
            )
    with pytest.raises(FeedError, match="200 frames were refused and none accepted") as caught:
        run(live_settings(tmp_path), frames=[str(path)], speed=0)
    assert "\n" not in str(caught.value)
    assert f"publicTrade.{BTC}" in str(caught.value)


@pytest.mark.parametrize("begins", [DAY_NS - 400 * SECOND, 7 * HOUR_NS + 1234 * SECOND])
def test_a_market_may_begin_at_any_second(begins: int) -> None:
    """Its midnight turns into the next date's market, and funding is due at the venue's hours."""
    frames: list[bytes] = []
    exchange = SandboxExchange(
        profile("default"),
        3,
        begins_ns=begins,
        on_frame=lambda topic, frame: frames.append(frame) if "tickers" in topic else None,
    )
    assert exchange.start_ns == begins + 300 * SECOND
    exchange.advance(begins + 450 * SECOND)
    due = {
        int(data["nextFundingTime"])
        for frame in frames
        if "nextFundingTime" in (data := msgspec.json.decode(frame)["data"])
    }
    eight_ms = 8 * 3_600_000
    first = (begins // 1_000_000 // eight_ms + 1) * eight_ms
    assert due == {first} | ({first + eight_ms} if begins + 450 * SECOND >= DAY_NS else set())
