"""The worker as a process, trading on the exchange on loopback: stopped, killed, started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import ccxt
import pytest

from live.control import send
from live.messages import Command
from live.state_stream import read_states
from market.instruments import BUILT_IN
from tests.live.live_market import promote

REPOSITORY = Path(__file__).resolve().parents[2]
SYMBOLS = ("BTCUSDT", "ETHUSDT")

WORKER = """
import msgspec, sys
from pathlib import Path
from live.worker import run
from tests.live.live_market import live_settings
settings = live_settings(Path(sys.argv[1]), algorithm="passive", deadline_s=60.0)
live = msgspec.structs.replace(settings.live, venue="sandbox", sandbox=sys.argv[2])
run(msgspec.structs.replace(settings, live=live), flatten=sys.argv[3] == "flatten")
"""


class Exchange(NamedTuple):
    rest: str
    key: dict[str, str]

    def ask(self) -> Any:
        """A client of our own, which looks at what stands there."""
        client = ccxt.bybit({"apiKey": self.key["key"], "secret": self.key["secret"]})
        client.urls["api"] = dict.fromkeys(client.urls["api"], self.rest)
        return client

    def positions(self) -> dict[str, dict[str, Any]]:
        """Open positions by symbol."""
        found = self.ask().private_get_v5_position_list(
            {"category": "linear", "settleCoin": "USDT"}
        )
        return {p["symbol"]: p for p in found["result"]["list"] if float(p["size"] or 0)}

    def executions(self, parent: str) -> list[dict[str, Any]]:
        """A parent's, of the newest."""
        found = self.ask().private_get_v5_execution_list({"category": "linear", "limit": 100})
        return [x for x in found["result"]["list"] if x["orderLinkId"].startswith(f"{parent}-")]

    def orders(self) -> list[dict[str, Any]]:
        """Open orders, stops left out."""
        found = self.ask().private_get_v5_order_realtime(
            {"category": "linear", "settleCoin": "USDT"}
        )
        return [
            order for order in found["result"]["list"] if order["stopOrderType"] in ("", "UNKNOWN")
        ]


@contextmanager
def serving(*symbols: str) -> Iterator[Exchange]:
    command = [
        *(sys.executable, "-m", "orchestration.cli", "sandbox", "--profile", "demo"),
        *("--symbols", ",".join(symbols), "--past", "1200", "--no-rate-limit", "--seed", "3"),
    ]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            described = json.loads(process.stdout.readline())
            yield Exchange(described["rest"], described["keys"][0])
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    with serving(*SYMBOLS) as one:
        yield one


class Worker:
    """A worker's process over a root."""

    def __init__(self, root: Path, exchange: Exchange, end: str = "keep") -> None:
        self.state = root / "live" / "sandbox"
        keys = {"L2_API_KEY": exchange.key["key"], "L2_API_SECRET": exchange.key["secret"]}
        with open(root / "worker.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(root), exchange.rest, end],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **keys},
                stderr=log,
            )

    def until(
        self, true: Callable[[dict[str, Any]], object], within_s: float = 300
    ) -> dict[str, Any]:
        """The first told state of which something is true."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the worker ended"
            try:
                told = next(read_states(self.state / "state.sock", 5))["state"]
            except (OSError, StopIteration):
                told = {}
            if told and true(told):
                return dict(told)
            time.sleep(0.1)
        raise AssertionError("it never came true")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=120) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def holds(state: dict[str, Any]) -> bool:
    return state["worker"]["phase"] == "trading" and any(
        row["position_lots"] and row["stop_ticks"] for row in state["symbols"].values()
    )


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
