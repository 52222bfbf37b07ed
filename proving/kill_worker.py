"""Kill the worker -9 at random instants and start it again, at the exchange on loopback; then compare both books.

    python -m proving.kill_worker --root demo/lake --kills 30 --seed 1

A worker is killed at a random instant of its start, or so long after it trades as is drawn. What stands at the
exchange then is looked at: each position has its stop, or has it within T of the next worker's trading. The
last worker closes everything, and log and exchange are compared as `proving.worker_soak` does: no execution lost
or counted twice, no parent filled beyond its quantity, each with one cost. Use a copy of the root.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from live.state_stream import read_states
from live.worker import run
from market.console import say
from market.settings import load
from proving.worker_soak import SETTINGS, compared, exchange, segments_of, venue_record

#: The longest that a position stands without a stop while a worker trades (s of the venue's time).
PROTECTED_S: Final = 15.0
#: Share of the kills that hit a start; the longest that a start may take (s of wall time).
STARTS: Final = 0.25
LONGEST_S: Final = 300.0


#: Workers are forked of a process that has loaded their modules and nothing else.
_PROCESSES: Final = multiprocessing.get_context("forkserver")


def kill_often(
    root: str, kills: int, seed: int, speed: float, most_s: float, limit_s: float
) -> dict[str, Any]:
    """Kill so often, up to ``most_s`` of wall time after trading began, and begin no start after ``limit_s``;
    what was found, ``failed`` with reasons."""
    dice, folder = random.Random(seed), Path(root) / "live" / "sandbox"
    began, failed, held, resting, late = segments_of(folder), list[str](), 0, 0, 0
    took, done, end = 20.0, 0, time.monotonic() + limit_s
    _PROCESSES.set_forkserver_preload(["live.worker"])
    with exchange(speed, seed, "--no-rate-limit") as venue:
        key = venue["keys"][0]
        for kill in range(1, kills + 1):
            if time.monotonic() > end:
                break
            since, worker = time.monotonic(), _started(root, venue)
            if dice.random() < STARTS:
                time.sleep(dice.uniform(0.0, took))
                late += 1
            else:
                traded = until_it_trades(worker, folder)
                took = time.monotonic() - since
                if not traded:
                    failed.append(f"start {kill}: not trading after {took:.0f} s")
                time.sleep(dice.uniform(0.0, most_s))
            worker.kill()
            worker.join()
            done = kill
            stands = venue_record(venue["rest"], key)
            held += bool(stands["positions"])
            resting += bool(stands["open_orders"])
            if stands["bare"]:
                failed.append(f"kill {kill}: {stands['bare']} without a stop")
            say(f"kill {kill} of {kills}: {stands['positions']}, {stands['open_orders']} open")
        last = _started(root, venue)
        if not until_it_trades(last, folder):
            failed.append("the last worker does not trade")
        time.sleep(PROTECTED_S / speed)
        if bare := venue_record(venue["rest"], key)["bare"]:
            failed.append(f"{bare} without a stop after {PROTECTED_S:g} s")
        last.terminate()
        last.join(LONGEST_S)
        if last.exitcode != 0:
            failed.append(f"the last worker ended with {last.exitcode}")
        last.kill()
        found = compared(folder, began, venue)
    return found | {
        "kills": done,
        "in_starts": late,
        "with_position": held,
        "with_open_orders": resting,
        "seed": seed,
        "speed": speed,
        "failed": failed + found["failed"],
    }


def _started(root: str, venue: dict[str, Any]) -> Any:
    key = venue["keys"][0]
    process = _PROCESSES.Process(
        target=_work, args=(root, venue["rest"], key["key"], key["secret"])
    )
    process.start()
    return process


def _work(root: str, rest: str, key: str, secret: str) -> None:
    """A worker's process, whose lines go to a file of the root."""
    os.dup2(os.open(f"{root}/kill-worker.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)
    os.environ |= {"L2_API_KEY": key, "L2_API_SECRET": secret}
    settings = load(Path(root) / "l2.toml", overrides=SETTINGS)
    live = msgspec.structs.replace(settings.live, venue="sandbox", sandbox=rest)
    run(msgspec.structs.replace(settings, root=root, live=live))


def until_it_trades(worker: Any, folder: Path) -> bool:
    """Wait for a worker to trade; False when it ends, or takes too long."""
    end = time.monotonic() + LONGEST_S
    while worker.is_alive() and time.monotonic() < end:
        try:
            told = next(read_states(folder / "state.sock", 2.0))["state"]
            if told and told["worker"]["phase"] == "trading":
                return True
        except (OSError, StopIteration):
            pass
        time.sleep(0.1)
    return False


def main() -> None:
    """Run it, print the findings as JSON; exit 1 when something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--root", required=True, help="a lake with a champion and l2.toml; a copy")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speed", type=float, default=5.0)
    parser.add_argument(
        "--most", type=float, default=8.0, metavar="S", help="of wall time, trading"
    )
    parser.add_argument("--limit", type=float, default=3600.0, metavar="S", help="of wall time")
    options = parser.parse_args()
    found = kill_often(
        options.root, options.kills, options.seed, options.speed, options.most, options.limit
    )
    print(json.dumps(found))
    for reason in found["failed"]:
        say(f"FAILED: {reason}")
    sys.exit(bool(found["failed"]))


if __name__ == "__main__":
    main()
