"""Our recorder and worker on the sandbox: they follow its clock and record its market exactly."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from live.clock import VenueClock
from live.feed import WireFeed
from live.market_recorder import instruments_listed, record
from live.worker import run
from market.bars import bars_from_chunks, make_bars
from market.book import Book
from market.events import Events, Flag, Kind, from_arrow
from market.ingest import ingest
from market.lake import Lake
from market.settings import Clock, Market, Record, Settings
from market.units import utc_date
from proving.sandbox.exchange import FIRST_DAY
from proving.sandbox.server import Sandbox
from proving.synthetic import marketplace
from proving.synthetic.profiles import profile
from proving.synthetic.publication import TOPICS
from tests.live.live_market import live_settings, promote
from tests.proving.sandbox_server import Served, served

SYMBOL, OTHER = "BTCUSDT", "ETHUSDT"
SEED, SPEED = 31, 10.0
SECOND = 1_000_000_000


def test_the_venue_clock_maps_the_wall_clock_at_its_speed() -> None:
    wall = [1_000 * SECOND]
    clock = VenueClock(
        Clock(wall_ns=1_000 * SECOND, simulated_ns=7, speed=10.0), lambda: wall[0], lambda: wall[0]
    )
    assert clock() == 7
    wall[0] += 3
    assert clock() == 37
    plain = VenueClock(Clock(), lambda: 1_795_000_000_123_456_789, lambda: 5)
    assert plain() == 1_795_000_000_123_456_789


def test_the_venue_clock_never_goes_back_when_the_wall_clock_does() -> None:
    wall, monotonic = [1_000 * SECOND], [0]
    origin = Clock(wall_ns=1_000 * SECOND, speed=10.0)
    clock = VenueClock(origin, lambda: wall[0], lambda: monotonic[0])
    times = [clock()]
    for step in (SECOND, -3600 * SECOND, SECOND, SECOND):
        wall[0] += step
        monotonic[0] += SECOND
        times.append(clock())
    assert times == sorted(times)
    assert len(clock.steps) == 1


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(SEED, speed=SPEED, symbols=(SYMBOL, OTHER))) as running:
        yield running


def clock_of(venue: Served) -> Clock:
    return msgspec.convert(venue.description["clock"], Clock)


@pytest.fixture(scope="module")
def recorded(venue: Served, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Any]:
    """A minute of simulated time, recorded in six seconds, or as long as the machine needs."""
    settings = Settings(
        root=str(tmp_path_factory.mktemp("recorded")),
        market=Market(symbols=(SYMBOL,)),
        record=Record(url=venue.description["ws_public"], rest_url=venue.description["rest"]),
        clock=clock_of(venue),
    )
    lines: list[str] = []
    listed = instruments_listed(settings, lines.append)
    until_ns = venue.run(lambda exchange: exchange.now_ns) + 60 * SECOND

    def stop_when_recorded(feed: WireFeed) -> None:
        while venue.run(lambda exchange: exchange.now_ns) < until_ns:
            time.sleep(0.1)
        feed.stop()

    watching: list[threading.Thread] = []

    def started(feed: WireFeed) -> None:
        watching.append(threading.Thread(target=stop_when_recorded, args=(feed,)))
        watching[0].start()

    result = record(settings, listed=listed, say=lines.append, started=started)
    watching[0].join()
    assert not [line for line in lines if "built-in" in line]
    return settings, result


def rows_of(events: Events, *kinds: Kind) -> Events:
    return events[np.isin(events["kind"], [int(kind) for kind in kinds])]


def content(events: Events) -> list[tuple[int, ...]]:
    """Rows without their receive times."""
    names = ("exchange_ns", "publish_ns", "update_id", "side", "price_ticks", "qty_lots")
    return list(zip(*(events[name].tolist() for name in names), strict=True))


def test_a_recorded_minute_has_the_events_and_bars_of_the_market(
    recorded: tuple[Settings, Any],
) -> None:
    """Nothing is quarantined. Books and trades equal those of the market run directly as events, and
    bars of those events at the recorded receive times equal the recording's bars."""
    settings, result = recorded
    assert (result["gaps"], result["broken_books"], result["unreadable"]) == (0, 0, 0)
    lake = Lake(settings.root)
    report = ingest(lake, result["files"], [(SYMBOL, FIRST_DAY)], settings)
    assert (report.quarantined, report.gaps, report.duplicates) == (0, 0, 0)
    make_bars(lake, SYMBOL, FIRST_DAY, settings)
    recorded_events = from_arrow(lake.read("events", SYMBOL, FIRST_DAY))
    bars = lake.read("bars", SYMBOL, FIRST_DAY)

    market = marketplace.SyntheticMarket(profile("default"), SEED, SYMBOL, FIRST_DAY, topics=TOPICS)
    direct = market.advance(int(recorded_events["exchange_ns"].max()) + SECOND)
    books = rows_of(direct[direct["pad"] == 0], Kind.SNAPSHOT, Kind.DELTA)
    opening = rows_of(recorded_events, Kind.SNAPSHOT)
    assert len(np.unique(opening["update_id"])) == 1
    joined = opening["update_id"][0]
    book = Book()
    book.apply(books[books["update_id"] <= joined])
    restated = Book()
    restated.apply(opening)
    assert (book.bids(), book.asks()) == (restated.bids(), restated.asks())

    deltas = rows_of(recorded_events, Kind.DELTA)
    until = deltas["update_id"][-1]
    expected_books = books[(books["update_id"] > joined) & (books["update_id"] <= until)]
    assert len(np.unique(expected_books["update_id"])) > 400
    assert content(deltas) == content(expected_books)
    trades = rows_of(recorded_events, Kind.TRADE)
    prints = rows_of(direct, Kind.TRADE)
    # The market draws each frame's lag; a topic's frames leave in order.
    prints["publish_ns"] = np.maximum.accumulate(prints["publish_ns"])
    first, last = np.searchsorted(prints["update_id"], trades["update_id"][[0, -1]])
    expected_trades = prints[
        first : int(np.searchsorted(prints["update_id"], trades["update_id"][-1], "right"))
    ]
    assert last > first
    assert content(trades) == content(expected_trades)

    remade = recorded_events.copy()
    for kind, rows in ((Kind.DELTA, expected_books), (Kind.TRADE, expected_trades)):
        places = np.flatnonzero(recorded_events["kind"] == int(kind))
        for name in ("price_ticks", "qty_lots", "side", "exchange_ns", "publish_ns"):
            remade[name][places] = rows[name]
        rpi = np.uint8(Flag.RPI)
        remade["flags"][places] = (recorded_events["flags"][places] & ~rpi) | (rows["flags"] & rpi)
    again = bars_from_chunks(
        [remade],
        market.instrument,
        settings,
        int(lake.metadata("events", SYMBOL, FIRST_DAY)["until_ns"]),
    ).to_arrow()
    assert len(again) >= 55
    assert again.equals(bars)


def test_receive_times_follow_the_venue_clock(recorded: tuple[Settings, Any]) -> None:
    """Latency on the venue clock is positive and small unless the machine is busy; on the wall clock it
    would be months."""
    settings, _ = recorded
    recorded_events = from_arrow(Lake(settings.root).read("events", SYMBOL, FIRST_DAY))
    lag_s = (recorded_events["receive_ns"] - recorded_events["publish_ns"]) / 1e9
    assert lag_s.min() > -0.05
    assert lag_s.max() < 3600
    assert {utc_date(int(ns)) for ns in recorded_events["receive_ns"][[0, -1]]} == {FIRST_DAY}


def test_the_worker_decides_every_second_of_simulated_time(venue: Served, tmp_path: Path) -> None:
    promote(tmp_path)
    settings = msgspec.structs.replace(live_settings(tmp_path), clock=clock_of(venue))
    summary = run(settings, url=venue.description["ws_public"], duration_s=40.0)
    assert summary["rejected"] == summary["gaps"] == 0
    assert summary["frames"] > 50
    lake = Lake(str(tmp_path))
    assert lake.partitions("decisions")
    for symbol in (SYMBOL, OTHER):
        seconds = lake.read("decisions", symbol, FIRST_DAY)["t_ns"].to_numpy()
        assert 30 <= len(seconds) <= 41
        assert set(np.diff(seconds)) == {SECOND}
