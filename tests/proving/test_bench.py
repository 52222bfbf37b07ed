"""What is measured is the same work: asked at news only or at every step, here or at the peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from market.events import Events
from proving.bench.command import (
    peer_ready,
)
from proving.bench.execution import measure, visible
from proving.bench.market import generated_rows
from proving.bench.quotes import FEED_NS, STEP_NS, quotes
from tests.proving.bench_goals import check_goals


@pytest.fixture(scope="module")
def rows() -> Events:
    return visible(generated_rows(30_000))


def test_exchange_times_rise_and_receipt_has_the_feed_latency(rows: Events) -> None:
    assert (np.diff(rows["exchange_ns"]) >= 0).all()
    assert set(rows["receive_ns"] - rows["exchange_ns"]) == {FEED_NS}


def test_a_strategy_called_at_news_sends_the_same_as_at_every_step(
    rows: Events,
) -> None:
    sent = quotes(rows)
    assert len(sent) > 100
    assert sent == quotes(rows, every_step=True)
    assert all(time % STEP_NS == 0 for time, _, _ in sent)


def quick_rows() -> list[Any]:
    return list(measure(True, lambda _: None))


@pytest.mark.peers
def test_both_engines_receive_equal_requests_and_goals_have_figures(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where requests differ, `measure` raises."""
    if not peer_ready():
        pytest.skip("the peer is not installed: make bench-peers")
    monkeypatch.setenv("L2_TEST_DATA", str(data_dir))
    found = quick_rows()
    check_goals("execution", {row.name: row.unit for row in found})
    for row in found:
        assert row.ours > 0
        alone = ("cost per row", "decision", "fill probability")
        assert (row.peer is None) == any(name in row.name for name in alone)
