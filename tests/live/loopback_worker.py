"""The exchange on loopback and the worker as processes, for tests that look at both from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ccxt

from live.state_stream import read_states

REPOSITORY = Path(__file__).resolve().parents[2]
SYMBOLS = ("BTCUSDT", "ETHUSDT")

WORKER = """
import msgspec, sys
from pathlib import Path
from live.worker import run
from market.settings import Desk
from tests.live.live_market import live_settings
settings = live_settings(Path(sys.argv[1]), algorithm="passive", deadline_s=60.0)
live = msgspec.structs.replace(settings.live, venue="sandbox", sandbox=sys.argv[2])
desk = Desk(urgency=False)  # without fees everything would cross at once, and nothing rest
run(msgspec.structs.replace(settings, live=live, desk=desk), flatten=sys.argv[3] == "flatten")
"""


class Exchange(NamedTuple):
    rest: str
    key: dict[str, str]
    workers: list[subprocess.Popen[bytes]]

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
        workers: list[subprocess.Popen[bytes]] = []
        try:
            described = json.loads(process.stdout.readline())
            yield Exchange(described["rest"], described["keys"][0], workers)
        finally:
            process.terminate()
            for worker in workers:  # those of a test that failed
                worker.kill()
                worker.wait()


class Worker:
    """A worker's process over a root."""

    def __init__(self, root: Path, exchange: Exchange, end: str = "keep") -> None:
        self.state = root / "live" / "sandbox"
        # Traced it would not keep up with the exchange, which runs by the clock.
        untraced = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
        keys = {"L2_API_KEY": exchange.key["key"], "L2_API_SECRET": exchange.key["secret"]}
        with open(root / "worker.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(root), exchange.rest, end],
                cwd=REPOSITORY,
                env={**untraced, "PYTHONPATH": str(REPOSITORY), **keys},
                stderr=log,
            )
        exchange.workers.append(self.process)

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
