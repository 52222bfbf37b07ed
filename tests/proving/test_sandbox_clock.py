"""Our own recorder and worker on the sandbox: they go by its clock, and take down what its market said."""

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
from live.recording import instruments_listed, record
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


def test_a_venue_s_clock_follows_the_wall_clock_at_its_speed_and_never_goes_back() -> None:
    wall = [1_000 * SECOND]
    clock = VenueClock(
        Clock(wall_ns=1_000 * SECOND, simulated_ns=7, speed=10.0), lambda: wall[0], lambda: wall[0]
    )
    assert clock() == 7
    wall[0] += 3
    assert clock() == 37
    plain = VenueClock(Clock(), lambda: 1_795_000_000_123_456_789, lambda: 5)
    assert plain() == 1_795_000_000_123_456_789


def test_a_step_back_of_the_wall_clock_is_none_of_the_venue_s() -> None:
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
    return msgspec.convert(venue.told["clock"], Clock)


@pytest.fixture(scope="module")
def recorded(venue: Served, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Any]:
    """A minute of the venue's time, taken down in six seconds, or as long as the machine needs."""
    settings = Settings(
        root=str(tmp_path_factory.mktemp("recorded")),
        market=Market(symbols=(SYMBOL,)),
        record=Record(url=venue.told["ws_public"], rest_url=venue.told["rest"]),
        clock=clock_of(venue),
    )
    said: list[str] = []
    listed = instruments_listed(settings, said.append)
    until_ns = venue.now(lambda exchange: exchange.now_ns) + 60 * SECOND

    def stop_in_time(feed: WireFeed) -> None:
        while venue.now(lambda exchange: exchange.now_ns) < until_ns:
            time.sleep(0.1)
        feed.stop()

    watching: list[threading.Thread] = []

    def started(feed: WireFeed) -> None:
        watching.append(threading.Thread(target=stop_in_time, args=(feed,)))
        watching[0].start()

    result = record(settings, listed=listed, say=said.append, started=started)
    watching[0].join()
    assert not [line for line in said if "built-in" in line]
    return settings, result


def rows_of(events: Events, *kinds: Kind) -> Events:
    return events[np.isin(events["kind"], [int(kind) for kind in kinds])]


def shown(events: Events) -> list[tuple[int, ...]]:
    """What rows say, whenever they were received."""
    names = ("exchange_ns", "publish_ns", "update_id", "side", "price_ticks", "qty_lots")
    return list(zip(*(events[name].tolist() for name in names), strict=True))


def test_a_recorded_minute_has_the_events_and_bars_of_the_market_itself(
    recorded: tuple[Settings, Any],
) -> None:
    """Nothing is quarantined; books and trades are those of the market made directly as events, and
    bars of those events, with the times they were received at, are the bars of the recording."""
    settings, result = recorded
    assert (result["gaps"], result["broken_books"], result["unreadable"]) == (0, 0, 0)
    lake = Lake(settings.root)
    report = ingest(lake, result["files"], [(SYMBOL, FIRST_DAY)], settings)
    assert (report.quarantined, report.gaps, report.duplicates) == (0, 0, 0)
    make_bars(lake, SYMBOL, FIRST_DAY, settings)
    taken = from_arrow(lake.read("events", SYMBOL, FIRST_DAY))
    bars = lake.read("bars", SYMBOL, FIRST_DAY)

    market = marketplace.SyntheticMarket(profile("default"), SEED, SYMBOL, FIRST_DAY, topics=TOPICS)
    direct = market.advance(int(taken["exchange_ns"].max()) + SECOND)
    books = rows_of(direct[direct["pad"] == 0], Kind.SNAPSHOT, Kind.DELTA)
    opening = rows_of(taken, Kind.SNAPSHOT)
    assert len(np.unique(opening["update_id"])) == 1
    joined = opening["update_id"][0]
    book = Book()
    book.apply(books[books["update_id"] <= joined])
    restated = Book()
    restated.apply(opening)
    assert (book.bids(), book.asks()) == (restated.bids(), restated.asks())

    deltas = rows_of(taken, Kind.DELTA)
    until = deltas["update_id"][-1]
    meant = books[(books["update_id"] > joined) & (books["update_id"] <= until)]
    assert len(np.unique(meant["update_id"])) > 400
    assert shown(deltas) == shown(meant)
    trades = rows_of(taken, Kind.TRADE)
    prints = rows_of(direct, Kind.TRADE)
    first, last = np.searchsorted(prints["update_id"], trades["update_id"][[0, -1]])
    told = prints[
        first : int(np.searchsorted(prints["update_id"], trades["update_id"][-1], "right"))
    ]
    assert last > first
    assert shown(trades) == shown(told)

    remade = taken.copy()
    for kind, rows in ((Kind.DELTA, meant), (Kind.TRADE, told)):
        places = np.flatnonzero(taken["kind"] == int(kind))
        for name in ("price_ticks", "qty_lots", "side", "exchange_ns", "publish_ns"):
            remade[name][places] = rows[name]
        rpi = np.uint8(Flag.RPI)
        remade["flags"][places] = (taken["flags"][places] & ~rpi) | (rows["flags"] & rpi)
    again = bars_from_chunks(
        [remade],
        market.instrument,
        settings,
        int(lake.metadata("events", SYMBOL, FIRST_DAY)["until_ns"]),
    ).to_arrow()
    assert len(again) >= 55
    assert again.equals(bars)


def test_frames_are_received_when_the_venue_says_they_are(recorded: tuple[Settings, Any]) -> None:
    """By the venue's clock a frame comes after it was sent, soon unless the machine is busy; by the
    wall clock it would be on its way for months."""
    settings, _ = recorded
    taken = from_arrow(Lake(settings.root).read("events", SYMBOL, FIRST_DAY))
    lag_s = (taken["receive_ns"] - taken["publish_ns"]) / 1e9
    assert lag_s.min() > -0.05
    assert lag_s.max() < 3600
    assert {utc_date(int(ns)) for ns in taken["receive_ns"][[0, -1]]} == {FIRST_DAY}


def test_the_worker_decides_in_the_venue_s_seconds(venue: Served, tmp_path: Path) -> None:
    promote(tmp_path)
    settings = msgspec.structs.replace(live_settings(tmp_path), clock=clock_of(venue))
    summary = run(settings, url=venue.told["ws_public"], duration_s=40.0)
    assert summary["rejected"] == summary["gaps"] == 0
    assert summary["frames"] > 50
    lake = Lake(str(tmp_path))
    assert lake.partitions("decisions")
    for symbol in (SYMBOL, OTHER):
        made = lake.read("decisions", symbol, FIRST_DAY)["t_ns"].to_numpy()
        assert 30 <= len(made) <= 41
        assert set(np.diff(made)) == {SECOND}
