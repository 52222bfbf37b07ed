"""The worker as a process, trading on the exchange on loopback: stopped, killed, started again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from live.control import send
from live.messages import Command
from market.instruments import BUILT_IN
from tests.live.live_market import promote
from tests.live.loopback_worker import SYMBOLS, Exchange, Worker, holds, serving


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    with serving(*SYMBOLS) as one:
        yield one


def lots(exchange: Exchange) -> dict[str, float]:
    sides = {"Buy": 1, "Sell": -1}
    return {s: sides[p["side"]] * float(p["size"]) for s, p in exchange.positions().items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    promote(tmp_path)
    return tmp_path


def test_a_killed_worker_leaves_stops_and_the_next_one_takes_over_and_closes(
    root: Path, exchange: Exchange
) -> None:
    for rounds in range(2):
        worker = Worker(root, exchange)
        worker.until(holds)
        time.sleep(0.3 * rounds)
        worker.kill()
        for position in exchange.positions().values():
            assert float(position["stopLoss"] or 0) > 0, "no position without its stop"
    last = Worker(root, exchange, "flatten")
    last.until(lambda state: state["worker"]["phase"] == "trading")
    last.stop()
    assert exchange.positions() == {}
    assert exchange.orders() == []


def test_an_upgrade_keeps_position_and_resting_order_and_doubles_nothing(
    root: Path, exchange: Exchange
) -> None:
    resting: set[str] = set()
    while not resting:  # what rested may fill in the instant of the handover
        first = Worker(root, exchange)
        first.until(lambda state: holds(state) and "NEW" in str(state["orders"]))
        send(first.state, Command(command="handover", who="ann", reason="upgrade"))
        assert first.process.wait(timeout=120) == 0
        resting = {order["orderLinkId"] for order in exchange.orders()}
    before = lots(exchange)
    assert all(float(p["stopLoss"] or 0) > 0 for p in exchange.positions().values())
    second = Worker(root, exchange, "flatten")
    state = second.until(lambda state: state["worker"]["phase"] == "trading")
    known = {symbol: row["position_lots"] for symbol, row in state["symbols"].items()}
    assert {symbol for symbol, n in known.items() if n} >= set(before), "the log has it still"
    said = [line for line in (root / "worker.log").read_text().splitlines() if "goes on" in line]
    assert {order.rpartition("-")[0] for order in resting} <= {json.loads(x)["id"] for x in said}
    second.stop()
    assert exchange.positions() == {}
    assert exchange.orders() == []
    for parent, row in state["parents"].items():
        lot = Decimal(BUILT_IN[row["symbol"]].lot)
        filled = [Decimal(x["execQty"]) / lot for x in exchange.executions(parent)]
        assert sum(filled) <= row["qty_lots"], "nothing doubled"


def test_a_symbol_that_the_venue_does_not_list_ends_the_start_with_one_line(root: Path) -> None:
    with serving("BTCUSDT") as exchange:
        worker = Worker(root, exchange)
        assert worker.process.wait(timeout=120) == 1
        last = (root / "worker.log").read_text().splitlines()[-1]
        assert last.startswith(
            f"live.bybit.rest.BybitError: ETHUSDT: {exchange.rest} does not list it"
        )
        assert last.endswith("; take it out of market.symbols")
        assert exchange.orders() == []
