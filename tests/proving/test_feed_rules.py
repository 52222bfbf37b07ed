"""Frames of the exchange on loopback do nothing that recorded frames of the venue never do."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any, Final

import pytest
import zstandard

from proving.sandbox.virtual import VirtualVenue
from tests.conftest import recordings
from tests.proving.feed_rules import (
    RULES,
    Frame,
    out_of_order,
    untold_executions,
    violations,
)

FOLDER: Final = recordings().parent / "bybit"
CAPTURE: Final = recordings() / "bybit-linear-20260809.frames.zst"
SECOND: Final = 1_000_000_000
PUBLIC: Final = (
    *(f"orderbook.{depth}.BTCUSDT" for depth in (1, 50, 200, 1000)),
    *("publicTrade.BTCUSDT", "tickers.BTCUSDT", "allLiquidation.BTCUSDT"),
    *("kline.1.BTCUSDT", "priceLimit.BTCUSDT"),
)
PRIVATE: Final = ("order", "execution", "execution.fast", "position", "wallet")


def stem_of(topic: str) -> str:
    """The stem of a topic that rules are registered by; empty for other topics."""
    stems = [stem for stem in RULES if topic == stem or topic.startswith(f"{stem}.")]
    return max(stems, key=len, default="")


def by_topic(frames: list[Frame]) -> dict[str, list[Frame]]:
    """Frames by topic, in order."""
    topics: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        if stem_of(frame.get("topic", "")):
            topics[frame["topic"]].append(frame)
    return topics


def captured(name: str) -> list[Frame]:
    """The frames of a recorded capture."""
    with (recordings() / f"{name}.frames.zst").open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().splitlines()
    return [json.loads(line.partition(b" ")[2]) for line in lines]


def quoted() -> list[Frame]:
    """Single frames that the venue sent, as quoted beside the protocol's description."""
    items = [
        item for file in FOLDER.glob("ws_*.json") for item in json.loads(file.read_bytes())["items"]
    ]
    return [
        item["frame"]
        for item in items
        if item["source"].get("provenance", "").startswith("captured") and "topic" in item["frame"]
    ]


def traded(minutes: int, seed: int) -> list[Frame]:
    """Frames of all topics while two clients trade in all ways, one of them until it is liquidated."""
    venue = VirtualVenue(seed, clients=2, limited=False, start_ns=60 * SECOND)
    dice, frames = random.Random(seed), []
    venue.connect("public", topics=PUBLIC)
    for client in venue.clients:
        venue.connect("private", client, PRIVATE)
    tape = venue.exchange.tapes["BTCUSDT"]
    for step in range(minutes * 120):
        deliveries = venue.advance(venue.now_ns + SECOND // 2)
        frames += [json.loads(d.frame) for d in deliveries if d.frame is not None]
        client, side = dice.choice(venue.clients), dice.choice(("Buy", "Sell"))
        last = tape.last_ticks + dice.randint(-40, 40)
        order: dict[str, Any] = {
            "category": "linear",
            "symbol": "BTCUSDT",
            "side": side,
            "qty": f"{dice.randint(5, 900) / 1000:.3f}",
            "orderType": "Limit",
            "price": f"{last / 10:.1f}",
            "timeInForce": dice.choice(("GTC", "IOC", "FOK", "PostOnly")),
        }
        if step % 7 == 3:
            order |= {
                "orderType": "Market",
                "stopLoss": f"{(last + (-900 if side == 'Buy' else 900)) / 10:.1f}",
            }
        if step % 11 == 5:
            order |= {"triggerPrice": f"{(last + 60) / 10:.1f}", "triggerDirection": 1}
        venue.request(client, "order/create", order)
        if step % 5 == 4:
            verb = dice.choice(("order/amend", "order/cancel"))
            for own in list(client.open.values())[:2]:
                params = {"category": "linear", "symbol": "BTCUSDT", "orderId": own.order_id}
                venue.request(client, verb, {**params, "qty": f"{dice.randint(1, 900) / 1000:.3f}"})
        if step % 60 == 59:
            cancel = {"category": "linear", "symbol": "BTCUSDT"}
            venue.request(client, "order/cancel-all", cancel)
            venue.exchange.settle_funding("BTCUSDT")
    venue.exchange.liquidate(venue.clients[0], ["BTCUSDT"])
    deliveries = venue.advance(venue.now_ns + SECOND)
    return frames + [json.loads(d.frame) for d in deliveries if d.frame is not None]


@pytest.fixture(scope="module")
def ours() -> list[Frame]:
    return traded(minutes=3, seed=11)


@pytest.mark.skipif(not CAPTURE.is_file(), reason=f"no recorded frames in {CAPTURE}")
def test_recorded_frames_keep_the_rules() -> None:
    frames = captured("bybit-linear-20260809")
    topics = by_topic(frames)
    assert len(topics) == 6
    found = {topic: violations(stem_of(topic), part) for topic, part in topics.items()}
    assert {topic: part for topic, part in found.items() if part} == {}
    for symbol in ("BTCUSDT", "ETHUSDT"):
        of_symbol = [frame for frame in frames if frame["topic"].endswith(symbol)]
        assert out_of_order(of_symbol) == []


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recorded frames in {FOLDER}")
def test_quoted_frames_keep_the_rules() -> None:
    found = [
        violation
        for frame in quoted()
        if (stem := stem_of(frame["topic"]))
        for violation in violations(stem, [frame])
    ]
    assert found == []


def test_every_topic_of_the_exchange_has_rules_and_frames(ours: list[Frame]) -> None:
    assert set(by_topic(ours)) == {*PUBLIC, *PRIVATE}
    assert {stem_of(topic) for topic in (*PUBLIC, *PRIVATE)} == set(RULES)


@pytest.mark.parametrize("topic", [*PUBLIC, *PRIVATE])
def test_frames_of_the_exchange_keep_the_rules(ours: list[Frame], topic: str) -> None:
    frames = by_topic(ours)[topic]
    per_client = defaultdict(list)
    for frame in frames:
        per_client[frame.get("id", "").partition("_")[0]].append(frame)
    assert [
        found for part in per_client.values() for found in violations(stem_of(topic), part)
    ] == []


def test_sequences_and_executions_agree_across_topics(ours: list[Frame]) -> None:
    told = [frame for part in by_topic(ours).values() for frame in part]
    assert out_of_order(told) == []
    assert untold_executions(told) == []


def _set(*path: Any) -> Any:
    """A damage: the last element of a path into a frame becomes a value."""
    *inner, name, value = path

    def damage(frames: list[Frame], at: int) -> None:
        target: Any = frames[at]
        for step in inner:
            target = target[step]
        target[name] = value

    return damage


DAMAGES: Final[list[tuple[str, str, Any]]] = [
    ("orderbook.50", "no_frame_is_empty", lambda frames, at: frames[at]["data"].update(a=[], b=[])),
    ("orderbook.200", "updates_are_counted", lambda frames, at: frames.pop(at)),
    ("orderbook.1", "one_level_is_always_whole", _set("type", "delta")),
    ("orderbook.1000", "times_and_sequences_grow", _set("ts", 1)),
    ("orderbook.50", "levels_are_sorted", _set("data", "b", [["1", "1"], ["2", "1"]])),
    ("orderbook.50", "deltas_change_the_book", _set("data", "a", [["1.00", "0"]])),
    ("publicTrade", "trades_come_in_order", lambda frames, at: frames.insert(at, frames[at + 1])),
    ("publicTrade", "tick_direction_follows_prices", _set("data", 0, "L", "")),
    (
        "tickers",
        "ticker_deltas_tell_changes",
        lambda frames, at: frames[at]["data"].update(preQty=""),
    ),
    ("allLiquidation", "liquidations_were_before", _set("data", [])),
    ("kline", "candles_hold_together", _set("data", 0, "low", "9999999")),
    ("priceLimit", "buys_may_pay_more_than_sells", _set("data", "buyLmt", "1")),
    ("order", "messages_leave_after_what_they_tell", _set("creationTime", 1)),
    ("order", "quantities_of_an_order_add_up", _set("data", 0, "leavesQty", "0.0001")),
    ("order", "states_of_an_order_follow", _set("data", 0, "cumExecQty", "-1")),
    ("execution", "amounts_of_an_execution_follow", _set("data", 0, "execFee", "9")),
    ("execution.fast", "fast_executions_hide_makers", _set("id", "1")),
    ("position", "a_position_has_a_side_or_nothing", _set("data", 0, "side", "None")),
    ("wallet", "sums_of_a_wallet_hold", _set("data", 0, "totalPerpUPL", "77")),
]


@pytest.mark.parametrize(("stem", "name", "damage"), DAMAGES, ids=[name for _, name, _ in DAMAGES])
def test_each_rule_finds_its_damage(ours: list[Frame], stem: str, name: str, damage: Any) -> None:
    topic = next(topic for topic in by_topic(ours) if stem_of(topic) == stem)
    frames = json.loads(json.dumps(by_topic(ours)[topic]))
    damage(frames, len(frames) // 2)
    assert any(found.startswith(name) for found in violations(stem, frames))
    assert {check.__name__ for checks in RULES.values() for check in checks} == {
        name for _, name, _ in DAMAGES
    }
