"""Soak test of the worker: hours of market at the exchange on loopback, with faults, and both books compared.

    python -m proving.worker_soak --root demo/lake --seconds 3600 --speed 20 --seed 1

The exchange runs with random faults, `l2 live` trades at it with the champion of ``root`` in a process of its
own. Its memory is sampled; when it has ended, what it has on record is compared with what the exchange says:
executions by id, the position of each symbol, open orders, and a cost for every parent. A worker that stopped
trading before the last tenth of the run fails. The worker's state
folder and captures are written below ``root``; use a copy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from execution.orders import Event, Filled
from live.journal import parent_of
from live.log import read, segments
from live.messages import Append
from market.console import say
from market.units import SECOND_NS
from proving.usage import cpu_s, resident_mb

#: Faults a simulated minute: network, venue and feed, at the rates of a bad day in an hour.
FAULTS: Final = (
    "answer_lost=0.2,answer_late=0.3,cut_before=0.1,cut_after=0.1,timed_out=0.1,rate_limited=0.1,"
    "maintenance=0.05,drop=0.2,duplicate=0.3,delay=0.1,silence=0.05,close=0.02,abort=0.02,restart=0.02"
)
#: The demo's model trades for signals that no fee row pays, and the limits of loss would end it within minutes.
SETTINGS: Final = (
    "execution.algorithm=passive",
    "risk.daily_loss_usdt=1000000",
    "risk.drawdown_usdt=1000000",
)
SYMBOLS: Final = "BTCUSDT,ETHUSDT"
#: Memory counts from here on, as a share of the run: caches have filled by then.
WARM_UP: Final = 0.25
SAMPLE_S: Final = 5.0

_L2: Final = (sys.executable, "-m", "orchestration.cli")
_EVENT = msgspec.json.Decoder(Event)


def soak(
    root: str, seconds: float, speed: float, seed: int, faults: str, symbols: str
) -> dict[str, Any]:
    """Run exchange and worker for ``seconds`` of wall time; what was found, ``failed`` with reasons."""
    folder = Path(root) / "live" / "sandbox"
    began = segments_of(folder)
    more = ("--faults", faults, "--fault-log", f"{root}/soak-faults.jsonl")
    with exchange(speed, seed, *more, symbols=symbols) as venue:
        settings = (
            part
            for setting in (*SETTINGS, f"market.symbols={symbols}")
            for part in ("--set", setting)
        )
        worker = started(root, venue, "--for", f"{seconds * speed:g}", *settings)
        memory, cores = _sampled(worker, venue["pid"], seconds, seconds + 900.0)
        said = worker.stdout.read() if worker.stdout is not None else b""
        found = compared(folder, began, venue)
    happened = Path(f"{root}/soak-faults.jsonl")
    found |= {
        "wall_s": seconds,
        "speed": speed,
        "seed": seed,
        "exit": worker.returncode,
        "faults": len(happened.read_bytes().splitlines()) if happened.exists() else 0,
        **_growth(memory),
        "memory_mb": [round(mb, 1) for mb in memory[:: max(1, len(memory) // 60)]],
        "exchange_cores": [
            round(float(part.mean()), 2) for part in np.array_split(cores, min(60, len(cores) or 1))
        ],
        "worker": json.loads(said) if worker.returncode == 0 else None,
    }
    if worker.returncode:
        found["failed"].append(f"the worker ended with {worker.returncode}")
    if found["last_parent_s"] < 0.9 * seconds * speed:
        found["failed"].append(f"no parent after {found['last_parent_s']:,.0f} simulated seconds")
    if found["memory_growth"] > 0.05:
        found["failed"].append(f"memory grew by {found['memory_growth']:.1%} after the warm-up")
    return found


@contextmanager
def exchange(
    speed: float, seed: int, *more: str, symbols: str = SYMBOLS
) -> Iterator[dict[str, Any]]:
    """The exchange on loopback in a process of its own; what it says of itself, and its ``pid``."""
    command = [
        *(*_L2, "sandbox", "--profile", "demo", "--symbols", symbols),
        *("--speed", f"{speed:g}", "--seed", str(seed), "--past", "3700", *more),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline()) | {"pid": process.pid}
        finally:
            process.terminate()


def started(root: str, venue: dict[str, Any], *more: str) -> subprocess.Popen[bytes]:
    """A worker of ``root`` at the exchange; its lines go to a file there."""
    keys = venue["keys"][0]
    command = [
        *(*_L2, "live", "--root", root, "--config", f"{root}/l2.toml", "--json"),
        *("--venue", "sandbox", "--url", venue["rest"], *more),
    ]
    environment = os.environ | {"L2_API_KEY": keys["key"], "L2_API_SECRET": keys["secret"]}
    with open(f"{root}/soak-worker.log", "ab") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)


def segments_of(folder: Path) -> set[int]:
    """Segments of a worker's log that are there already."""
    return set(segments(folder / "log"))


def _sampled(
    worker: subprocess.Popen[bytes], venue: int, seconds: float, limit_s: float
) -> tuple[list[float], list[float]]:
    """Resident memory of the worker (MB) and cores that the exchange took, while the worker trades.

    The worker is killed after ``limit_s``. What it takes to collect the whole run into the lake, after the end, is not
    counted.
    """
    memory, cores = list[float](), list[float]()
    began, used_s = time.monotonic(), cpu_s(venue)
    while worker.poll() is None:
        if (passed := time.monotonic() - began) > limit_s:
            worker.kill()
            break
        time.sleep(SAMPLE_S)
        if passed < seconds and worker.poll() is None:
            memory.append(resident_mb(worker.pid))
            before_s, used_s = used_s, cpu_s(venue)
            cores.append((used_s - before_s) / SAMPLE_S)
    worker.wait()
    return memory, cores


def _growth(memory: list[float]) -> dict[str, float]:
    """First and last memory after the warm-up (medians of a tenth of the samples), and the growth."""
    warm = memory[round(len(memory) * WARM_UP) :] or [0.0]
    part = max(1, len(warm) // 10)
    first, last = float(np.median(warm[:part])), float(np.median(warm[-part:]))
    return {
        "memory_first_mb": round(first, 1),
        "memory_last_mb": round(last, 1),
        "memory_growth": last / first - 1 if first else 0.0,
    }


def compared(folder: Path, began: set[int], venue: dict[str, Any]) -> dict[str, Any]:
    """The worker's record of this run against what the exchange says."""
    last_ns = 0
    fills: dict[str, int] = {}
    positions: dict[str, int] = {}
    parents: dict[str, int] = {}
    left: dict[str, int] = {}
    for block in read(folder / "log"):
        for _, body in block.records if block.segment not in began else ():
            if not isinstance(body, Append):
                continue
            if body.kind == "parent":
                last_ns = max(last_ns, body.time_ns)
                parents.setdefault(body.parent_id, 0)
                left[body.parent_id] = parent_of(body).qty_lots
            elif body.kind == "end":
                parents[body.parent_id] = parents.get(body.parent_id, 0) + 1
            elif body.kind == "event":
                event = _EVENT.decode(body.body)
                if isinstance(event, Filled):
                    fills[event.exec_id] = fills.get(event.exec_id, 0) + 1
                    left[body.parent_id] = left.get(body.parent_id, 0) - event.qty_lots
                    lots = event.side * event.qty_lots
                    positions[event.symbol] = positions.get(event.symbol, 0) + lots
    theirs = venue_record(venue["rest"], venue["keys"][0])
    failed = []
    if missing := set(theirs["executions"]) - set(fills):
        failed.append(f"{len(missing)} executions are not on record, {sorted(missing)[0]} first")
    if twice := [one for one, times in fills.items() if times > 1]:
        failed.append(f"{len(twice)} executions are on record twice, {twice[0]} first")
    if over := [parent for parent, lots in left.items() if parent and lots < 0]:
        failed.append(f"{len(over)} parents filled beyond their quantity, {over[0]} first")
    if open_orders := theirs["open_orders"]:
        failed.append(f"{len(open_orders)} orders are open at the exchange: {open_orders}")
    ours = {symbol: lots for symbol, lots in positions.items() if lots}
    if bool(ours) != bool(theirs["positions"]):
        failed.append(f"positions: {ours} on record, {theirs['positions']} at the exchange")
    if uncosted := [parent for parent, ends in parents.items() if ends != 1]:
        failed.append(f"{len(uncosted)} parents without one cost, {uncosted[0]} first")
    return {
        "executions": len(fills),
        "executions_at_venue": len(theirs["executions"]),
        "parents": len(parents),
        "last_parent_s": (last_ns - venue["clock"]["simulated_ns"]) / SECOND_NS,
        "positions": ours,
        "failed": failed,
    }


def venue_record(rest: str, keys: dict[str, str]) -> dict[str, Any]:
    """What the exchange has of an account: execution ids (the newest thousand), positions, open orders."""
    import ccxt

    client = ccxt.bybit({"apiKey": keys["key"], "secret": keys["secret"]})
    for name in list(client.urls["api"]):
        if isinstance(client.urls["api"][name], str):
            client.urls["api"][name] = rest
    client.timeout = 2_000

    def asked(method: str, query: dict[str, Any]) -> dict[str, Any]:
        """The answer's result; faults happen to this client too, so it asks again."""
        for _ in range(20):
            try:
                result: dict[str, Any] = getattr(client, method)(query)["result"]
            except ccxt.BaseError:
                time.sleep(0.5)
            else:
                return result
        raise RuntimeError(f"{rest}: no answer to {method}")

    linear = {"category": "linear", "settleCoin": "USDT"}
    executions: list[str] = []
    cursor = ""
    while True:
        query = {"category": "linear", "limit": 100, "execType": "Trade", "cursor": cursor}
        page = asked("privateGetV5ExecutionList", query)
        executions += [row["execId"] for row in page["list"]]
        cursor = page.get("nextPageCursor", "")
        if not cursor:
            break
    positions = asked("privateGetV5PositionList", linear)["list"]
    orders = asked("privateGetV5OrderRealtime", linear)["list"]
    return {
        "executions": executions,
        "positions": {
            p["symbol"]: f"{p['side']} {p['size']}" for p in positions if p["size"] != "0"
        },
        "bare": [
            p["symbol"] for p in positions if p["size"] != "0" and not float(p["stopLoss"] or 0)
        ],
        "open_orders": [
            order["orderLinkId"] or order["orderId"]
            for order in orders
            if order["stopOrderType"] in ("", "UNKNOWN")  # a position's stop is no resting order
        ],
    }


def main() -> None:
    """Run it, print the findings as JSON; exit 1 when something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--root", required=True, help="a lake with a champion and l2.toml; use a copy"
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="of wall time")
    parser.add_argument("--speed", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--symbols", default=SYMBOLS)
    parser.add_argument("--faults", default=FAULTS, help="rates a simulated minute")
    options = parser.parse_args()
    say(f"worker soak: {options.seconds:g} s at {options.speed:g}x, seed {options.seed}")
    found = soak(
        options.root, options.seconds, options.speed, options.seed, options.faults, options.symbols
    )
    print(json.dumps(found))
    for reason in found["failed"]:
        say(f"FAILED: {reason}")
    sys.exit(bool(found["failed"]))


if __name__ == "__main__":
    main()
