"""Frames and bare time come in one order, at the asked pace; a lost connection is made again."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection

from live.feed import (
    RENEWALS,
    SILENCE_NS,
    TICK_NS,
    Backoff,
    FeedError,
    Item,
    ReplayFeed,
    WireFeed,
)
from market.wire.capture import CaptureWriter
from market.wire.topics import public_topics
from tests.live.exchange import Handler, acknowledge, exchange

S = 1_000_000_000
T = 1_700_000_000 * S


class FakeClock:
    """Monotonic time that passes only in sleeps, and a little in every reading."""

    def __init__(self) -> None:
        self.now_ns = 5 * S
        self.slept: list[float] = []

    def monotonic_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ns += round(seconds * 1e9)


def capture(path: Path, *offsets_ns: int) -> str:
    with CaptureWriter(path) as writer:
        for number, offset in enumerate(offsets_ns):
            writer.append(T + offset, b'{"topic":"x","n":%d}' % number)
    return str(path)


def frames(items: list[Item]) -> list[Item]:
    return [item for item in items if item.frame is not None]


def test_frames_are_not_paced_during_warm_up_and_paced_afterwards(
    tmp_path: Path,
) -> None:
    path = capture(tmp_path / "a.frames.zst", *(n * S // 2 for n in range(9)))
    clock = FakeClock()
    feed = ReplayFeed(
        [path], speed=10, warm_up_s=2, monotonic_ns=clock.monotonic_ns, sleep=clock.sleep
    )
    seen = [
        (item.receive_ns - T, clock.now_ns - 5 * S, item.due_ns)
        for item in feed
        if item.frame is not None
    ]
    start = 5 * S
    assert [(t, at) for t, at, _ in seen[:4]] == [(n * S // 2, 0) for n in range(4)]
    assert [due for *_, due in seen[:4]] == [0, 0, 0, 0]
    # From 2 s on a second of the capture takes a tenth of a second.
    assert [(at, due) for _, at, due in seen[4:]] == [
        (n * S // 20, start + n * S // 20) for n in range(5)
    ]


def test_a_replay_knows_the_time_of_its_first_item(tmp_path: Path) -> None:
    feed = ReplayFeed([capture(tmp_path / "a.frames.zst", 3 * S, 5 * S)], speed=0)
    assert feed.first_ns == T + 3 * S == next(iter(feed)).receive_ns


def test_a_slow_consumer_does_not_shift_when_later_frames_are_due(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.frames.zst", 0, S, 2 * S)
    clock = FakeClock()
    due = []
    for item in ReplayFeed([path], monotonic_ns=clock.monotonic_ns, sleep=clock.sleep):
        if item.frame is not None:
            due.append(item.due_ns)
            clock.now_ns += 1_500_000_000
    assert due == [5 * S, 6 * S, 7 * S]


@settings(derandomize=True, max_examples=25, deadline=None)
@given(gaps=st.lists(st.integers(0, 3 * S), min_size=1, max_size=12))
def test_ticks_are_on_the_grid_and_never_before_an_older_frame(
    gaps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Invariants: items never go back in time; between two frames every multiple of the grid comes
    exactly once, and one that coincides with a frame comes before it; no frame is lost."""
    offsets = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    path = capture(tmp_path_factory.mktemp("feed") / "a.frames.zst", *offsets)
    items = list(ReplayFeed([path], speed=0))
    times = [item.receive_ns for item in items]
    assert times == sorted(times)
    assert [item.receive_ns - T for item in frames(items)] == offsets
    ticks = [item.receive_ns for item in items if item.frame is None]
    first, last = T + offsets[0], T + offsets[-1]
    assert ticks == list(range((first // TICK_NS + 1) * TICK_NS, last + 1, TICK_NS))
    for before, after in itertools.pairwise(items):
        assert not (after.frame is None and before.frame and before.receive_ns == after.receive_ns)


def test_a_long_silence_gets_ticks_for_a_while_and_is_then_skipped(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.frames.zst", 0, 10 * SILENCE_NS)
    items = list(ReplayFeed([path], speed=0))
    ticks = [item.receive_ns for item in items if item.frame is None]
    assert len(ticks) == SILENCE_NS // TICK_NS
    assert items[-1].receive_ns == T + 10 * SILENCE_NS


def test_receive_times_that_step_back_are_passed_on_unchanged(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.frames.zst", 0, S, S // 2, S + 1)
    items = frames(list(ReplayFeed([path], speed=0)))
    assert [item.receive_ns - T for item in items] == [0, S, S // 2, S + 1]


def test_the_duration_is_real_time_after_the_warm_up(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.frames.zst", *(n * S for n in range(100)))
    clock = FakeClock()
    feed = ReplayFeed(
        [path],
        speed=10,
        warm_up_s=20,
        duration_s=3,
        monotonic_ns=clock.monotonic_ns,
        sleep=clock.sleep,
    )
    items = list(feed)
    assert items[-1].receive_ns == T + 50 * S
    assert clock.now_ns == 5 * S + 3 * S


def test_captures_follow_one_another_and_a_stop_ends_the_iteration(tmp_path: Path) -> None:
    paths = [
        capture(tmp_path / "a.frames.zst", 0, 1),
        capture(tmp_path / "b.frames.zst", 2, 3, 4),
    ]
    feed = ReplayFeed(paths, speed=0)
    seen = []
    for item in feed:
        seen.append(item.receive_ns - T)
        if len(seen) == 3:
            feed.stop()
    assert seen == [0, 1, 2]


def test_a_line_without_a_time_is_passed_on_for_the_decoder_to_reject(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "a.frames.zst") as writer:
        writer.append_block(b"%d {}\nnot a line of a capture\n" % T)
    items = list(ReplayFeed([writer.path], speed=0))
    assert [(item.receive_ns, item.frame) for item in items] == [
        (T, b"{}"),
        (T, b"not a line of a capture"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"captures": []}, "no capture"),
        ({"captures": ["x"], "speed": -1.0}, "must not be negative"),
    ],
)
def test_a_replay_with_invalid_arguments_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(FeedError, match=message):
        ReplayFeed(**arguments)


def test_backoff_grows_to_a_limit_and_resets_after_success() -> None:
    backoff = Backoff(first_s=1, limit_s=8, seed=1)
    waits = [backoff.next_s() for _ in range(6)]
    for wait, ceiling in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert ceiling / 2 <= wait <= ceiling
    backoff.reset()
    assert backoff.next_s() <= 1


# -- the wire ----------------------------------------------------------------------------------


def wire(url: str, **options: Any) -> WireFeed:
    settings: dict[str, Any] = {"backoff": Backoff(0.01, 0.02), "duration_s": 10}
    return WireFeed(url, public_topics(["BTCUSDT"], [200]), **(settings | options))


def take(feed: WireFeed, until: Callable[[list[Item]], bool]) -> list[Item]:
    items: list[Item] = []
    for item in feed:
        items.append(item)
        if until(items):
            feed.stop()
            break
    return items


def kinds(items: list[Item]) -> list[str]:
    found = []
    for item in frames(items):
        decoded = msgspec.json.decode(item.frame or b"")
        found.append(decoded.get("l2") or decoded.get("topic"))
    return found


def test_the_wire_feed_subscribes_stamps_in_order_and_drops_replies() -> None:
    asked: list[list[str]] = []

    async def handler(socket: ServerConnection) -> None:
        asked.append(await acknowledge(socket))
        for number in range(20):
            await socket.send(f'{{"topic":"publicTrade.BTCUSDT","n":{number}}}')
            await asyncio.sleep(0.01)
        await socket.wait_closed()

    with exchange(handler) as url:
        items = take(wire(url), lambda items: len(frames(items)) == 22)
    assert asked == [
        [
            "orderbook.200.BTCUSDT",
            "publicTrade.BTCUSDT",
            "tickers.BTCUSDT",
            "allLiquidation.BTCUSDT",
        ]
    ]
    assert kinds(items) == ["connect", "subscribe"] + ["publicTrade.BTCUSDT"] * 20
    times = [item.receive_ns for item in items]
    assert times == sorted(times)
    ticks = [item for item in items if item.frame is None]
    assert ticks
    assert all(item.receive_ns % TICK_NS == 0 for item in ticks)


def test_a_lost_connection_is_marked_reconnected_and_resubscribed() -> None:
    async def handler(socket: ServerConnection) -> None:
        await acknowledge(socket)
        await socket.send('{"topic":"publicTrade.BTCUSDT"}')
        await socket.close()

    with exchange(handler) as url:
        feed = wire(url)
        items = take(feed, lambda items: kinds(items).count("publicTrade.BTCUSDT") == 3)
    once = ["connect", "subscribe", "publicTrade.BTCUSDT"]
    assert kinds(items) == [*once, "disconnect", *once, "disconnect", *once]
    assert feed.reconnects >= 2


def test_the_feed_pings_and_replaces_a_silent_connection() -> None:
    pings = 0
    connections = 0

    async def handler(socket: ServerConnection) -> None:
        nonlocal pings, connections
        connections += 1
        mute = connections == 1
        await acknowledge(socket)
        async for text in socket:
            assert msgspec.json.decode(text) == {"op": "ping"}
            pings += 1
            if not mute:
                await socket.send('{"success":true,"ret_msg":"pong","op":"ping","req_id":""}')
                if pings > 4:
                    await socket.send('{"topic":"publicTrade.BTCUSDT"}')

    with exchange(handler) as url:
        items = take(wire(url, ping_s=0.1), lambda items: "publicTrade.BTCUSDT" in kinds(items))
    assert kinds(items) == [
        *("connect", "subscribe", "disconnect"),
        *("connect", "subscribe", "publicTrade.BTCUSDT"),
    ]
    assert pings > 4


def test_an_address_that_refuses_connections_is_one_clear_line() -> None:
    async def handler(socket: ServerConnection) -> None:
        await socket.close()

    with exchange(handler) as url:
        pass  # the port was free a moment ago, and is closed again
    with pytest.raises(FeedError, match=r"cannot connect .*check address and network"):
        list(wire(url))


def refusing(refused: Callable[[str], bool], reason: str, asked: list[list[str]]) -> Handler:
    """A venue as it is: the first topic that it does not have refuses the whole request."""

    async def handler(socket: ServerConnection) -> None:
        async for text in socket:
            request = msgspec.json.decode(text)
            if request["op"] != "subscribe":
                continue
            asked.append(request["args"])
            bad = next(filter(refused, request["args"]), None)
            reply = {"success": bad is None, "ret_msg": reason.format(bad) if bad else ""}
            await socket.send(msgspec.json.encode({**reply, "op": "subscribe"}), text=True)
            for topic in request["args"] if bad is None else ():
                await socket.send(msgspec.json.encode({"topic": topic}), text=True)

    return handler


NOT_FOUND = "error:handler not found,topic:{}"


@pytest.mark.parametrize("reason", [NOT_FOUND, "args size >10"])
def test_a_feed_of_which_every_topic_is_refused_ends_with_one_line(reason: str) -> None:
    said = f"every subscription refused .{reason.format('orderbook.200.BTCUSDT')}.*market.symbols"
    with (
        exchange(refusing(lambda topic: True, reason, [])) as url,
        pytest.raises(FeedError, match=said),
    ):
        list(wire(url))


def test_a_refused_topic_stops_no_other_and_is_asked_for_again() -> None:
    asked: list[list[str]] = []
    bad = {"tickers.BTCUSDT", "allLiquidation.BTCUSDT"}

    def refused(topic: str) -> bool:
        return topic in bad and len(asked) < 6

    with exchange(refusing(refused, NOT_FOUND, asked)) as url:
        feed = wire(url, ask_again=Backoff(0.05, 0.1))
        items = take(feed, lambda items: kinds(items)[-1:] == ["allLiquidation.BTCUSDT"])
    whole = public_topics(["BTCUSDT"], [200])
    both = [topic for topic in whole if topic in bad]
    assert asked[:3] == [whole, [t for t in whole if t != both[0]], whole[:2]]
    assert asked[3:6] == [both, both[1:], both]
    assert kinds(items) == [
        *("connect", "subscribe", "refused", *whole[:2], "refused", "restored", *both)
    ]
    refusal = msgspec.json.decode(frames(items)[2].frame or b"")
    assert refusal["topics"] == both
    assert refusal["reason"] == NOT_FOUND.format(both[0])


def test_a_renewed_topic_that_is_refused_takes_no_other_with_it() -> None:
    """The venue refuses the request for both after both were given up: the sound one comes back."""
    asked: list[list[str]] = []
    book, trades = public_topics(["BTCUSDT"], [200])[:2]
    gone = refusing(lambda topic: topic == book and len(asked) > 1, NOT_FOUND, asked)
    with exchange(gone) as url:
        feed, renewed = wire(url), list[bool]()

        def ended(items: list[Item]) -> bool:
            if kinds(items)[-1:] == ["allLiquidation.BTCUSDT"] and not renewed:
                feed.renew([book, trades])
                renewed.append(True)
            return kinds(items)[-1:] == [trades] and len(asked) > 1

        items = take(feed, ended)
    assert asked[1:] == [[book, trades], [trades]]
    assert kinds(items)[-3:] == ["renew", "refused", trades]


def test_topics_that_are_subscribed_already_are_not_refused() -> None:
    asked: list[list[str]] = []
    book, *others = public_topics(["BTCUSDT"], [200])
    held = refusing(lambda topic: topic == book, "error:already subscribed,topic:{}", asked)
    with exchange(held) as url:
        items = take(wire(url), lambda items: kinds(items)[-1:] == others[-1:])
    assert asked == [[book, *others], others]
    assert "refused" not in kinds(items)


def test_a_refusal_of_a_subscription_that_stood_before_passes() -> None:
    """Not even where the venue cut the connection before it answered the first one."""
    connections = 0
    asked: list[list[str]] = []
    refusal = b'{"success":false,"ret_msg":"Server is restarting","op":"subscribe"}'

    async def handler(socket: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        async for text in socket:
            request = msgspec.json.decode(text)
            if request["op"] == "subscribe":
                asked.append(request["args"])
                if connections == 1:
                    await socket.send('{"topic":"publicTrade.BTCUSDT"}')
                    await socket.close()
                elif len(asked) < 5:
                    await socket.send(refusal, text=True)
                else:
                    await socket.send(b'{"success":true,"op":"subscribe"}', text=True)
                    await socket.send('{"topic":"publicTrade.BTCUSDT"}')

    with exchange(handler) as url:
        feed = wire(url, quick=Backoff(0.01, 0.02))
        items = take(feed, lambda items: kinds(items).count("publicTrade.BTCUSDT") == 2)
    assert connections == 2
    assert asked == [public_topics(["BTCUSDT"], [200])] * 5
    assert kinds(items)[-4:] == ["refused", "refused", "restored", "publicTrade.BTCUSDT"]


def test_a_renewed_book_is_asked_for_again_until_its_snapshot_and_then_anew() -> None:
    asked: list[str] = []
    book, *_ = public_topics(["BTCUSDT"], [200])
    snapshot = f'{{"topic":"{book}","type":"snapshot"}}'
    connections = 0

    async def handler(socket: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        await acknowledge(socket)
        await socket.send(snapshot)
        async for text in socket:
            request = msgspec.json.decode(text)
            if request["op"] != "ping":
                asked.append(request["op"])
                assert request["args"] == [book]
                await socket.send(f'{{"success":true,"op":"{request["op"]}"}}')
                if request["op"] == "subscribe" and asked.count("subscribe") == 3:
                    await socket.send(snapshot)

    def renew(feed: WireFeed) -> Callable[[list[Item]], bool]:
        def ended(items: list[Item]) -> bool:
            if kinds(items)[-1:] == [book] and kinds(items).count(book) < 3:
                feed.renew([book])
            return connections == 2

        return ended

    with exchange(handler) as url:
        feed = wire(url, quick=Backoff(0.01, 0.02))
        items = take(feed, renew(feed))
    # Twice in vain; after the second gap no snapshot comes, until the connection is replaced.
    assert asked[:6] == ["unsubscribe", "subscribe"] * 3
    assert asked.count("subscribe") == kinds(items).count("renew") == 3 + RENEWALS
    assert feed.reconnects == 1


@pytest.mark.parametrize("apart_days", [-400, 270])
def test_a_venue_of_another_date_ends_the_feed_with_both_times(apart_days: int) -> None:
    async def handler(socket: ServerConnection) -> None:
        await acknowledge(socket)
        for number in range(100):
            stamp = T // 10**6 + apart_days * 86_400_000 + number
            await socket.send(f'{{"topic":"publicTrade.BTCUSDT","ts":{stamp}}}')
        await socket.wait_closed()

    with (
        exchange(handler) as url,
        pytest.raises(FeedError, match=r"the venue stands at 202\d-.*our clock at 2023-11-14"),
    ):
        list(wire(url, clock_ns=lambda: T))


def test_one_frame_of_the_right_date_keeps_a_feed(tmp_path: Path) -> None:
    async def handler(socket: ServerConnection) -> None:
        await acknowledge(socket)
        for number in range(100):
            stamp = T // 10**6 - (0 if number == 15 else 86_400_000 * 3)
            await socket.send(f'{{"topic":"publicTrade.BTCUSDT","ts":{stamp}}}')
        await socket.wait_closed()

    with exchange(handler) as url:
        items = take(wire(url, clock_ns=lambda: T), lambda items: len(frames(items)) == 102)
    assert len(frames(items)) == 102


def test_an_address_that_is_no_websocket_is_refused() -> None:
    with pytest.raises(FeedError, match="expected a ws"):
        WireFeed("https://example.org", [])
