"""The exchange on loopback hands over frames of its past, which join those of its streams."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import zstandard

from proving.sandbox.server import Sandbox
from proving.sandbox.virtual import VirtualVenue
from tests.proving.feed_rules import violations
from tests.proving.sandbox_server import Served, served

SECOND = 1_000_000_000
BOOK = "orderbook.200.BTCUSDT"


def lines_of(capture: bytes) -> list[tuple[int, dict[str, Any]]]:
    """Receive times and frames of a capture."""
    lines = zstandard.decompress(capture).splitlines()
    return [
        (int(ns), json.loads(frame)) for ns, _, frame in (line.partition(b" ") for line in lines)
    ]


def test_the_past_keeps_the_rules_of_its_topics_and_joins_the_stream() -> None:
    venue = VirtualVenue(seed=9, start_ns=30 * SECOND, past_s=150)
    past = venue.venue.past
    lines = lines_of(past.capture([BOOK, "publicTrade.BTCUSDT"], venue.now_ns - 100 * SECOND))
    times = [received_ns for received_ns, _ in lines]
    assert times == sorted(times)
    assert 100 <= (venue.now_ns - times[0]) / SECOND <= 161
    assert 0 <= venue.now_ns - times[-1] < SECOND
    for stem, topic in (("orderbook.200", BOOK), ("publicTrade", "publicTrade.BTCUSDT")):
        frames = [frame for _, frame in lines if frame["topic"] == topic]
        assert len(frames) > 100
        assert violations(stem, frames) == []
    assert lines[0][1]["type"] == "snapshot"
    last = [frame["data"]["u"] for _, frame in lines if frame["topic"] == BOOK][-1]
    venue.connect("public", topics=[BOOK])
    answers = [json.loads(d.frame) for d in venue.advance(venue.now_ns + SECOND) if d.frame]
    first = next(frame for frame in answers if "topic" in frame)
    assert (first["type"], first["data"]["u"]) == ("snapshot", last)


def test_old_frames_are_forgotten() -> None:
    venue = VirtualVenue(seed=9, start_ns=SECOND, past_s=60)
    venue.advance(venue.now_ns + 200 * SECOND)
    first, _ = lines_of(venue.venue.past.capture([BOOK], 0))[0]
    assert 60 <= (venue.now_ns - first) / SECOND <= 181


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(seed=9, past_s=60)) as running:
        yield running


def asked(venue: Served, query: str) -> tuple[int, bytes]:
    """Status and body of a request for the past."""
    try:
        with urllib.request.urlopen(venue.description["rest"] + f"/control/past?{query}") as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_client_asks_for_topics_and_seconds(venue: Served) -> None:
    status, body = asked(venue, f"seconds=30&topics={BOOK}")
    assert status == 200
    assert {frame["topic"] for _, frame in lines_of(body)} == {BOOK}
    assert len({frame["topic"] for _, frame in lines_of(asked(venue, "seconds=30")[1])}) >= 4


@pytest.mark.parametrize("query", ["seconds=x", "", "seconds=30&topics=orderbook.1.BTCUSDT"])
def test_a_wrong_question_is_explained(venue: Served, query: str) -> None:
    status, body = asked(venue, query)
    assert (status, list(json.loads(body))) == (400, ["error"])
