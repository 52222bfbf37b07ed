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
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from live.state_stream import read_states
from market.console import say
from proving.worker_soak import compared, exchange, segments_of, started, venue_record

#: The longest that a position stands without a stop while a worker trades (s of the venue's time).
PROTECTED_S: Final = 15.0
#: Share of the kills that hit a start; the longest that a start may take (s of wall time).
STARTS: Final = 0.25
LONGEST_S: Final = 300.0


def kill_often(root: str, kills: int, seed: int, speed: float, most_s: float) -> dict[str, Any]:
    """Kill so often, up to ``most_s`` of wall time after trading began; what was found, ``failed`` with reasons."""
    dice, folder = random.Random(seed), Path(root) / "live" / "sandbox"
    began, failed, held, resting, late = segments_of(folder), list[str](), 0, 0, 0
    took = 20.0
    with exchange(speed, seed, "--no-rate-limit") as venue:
        key = venue["keys"][0]
        for kill in range(1, kills + 1):
            since, worker = time.monotonic(), started(root, venue)
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
            worker.wait()
            stands = venue_record(venue["rest"], key)
            held += bool(stands["positions"])
            resting += bool(stands["open_orders"])
            if stands["bare"]:
                failed.append(f"kill {kill}: {stands['bare']} without a stop")
            say(f"kill {kill} of {kills}: {stands['positions']}, {stands['open_orders']} open")
        last = started(root, venue)
        if not until_it_trades(last, folder):
            failed.append("the last worker does not trade")
        time.sleep(PROTECTED_S / speed)
        if bare := venue_record(venue["rest"], key)["bare"]:
            failed.append(f"{bare} without a stop after {PROTECTED_S:g} s")
        last.send_signal(signal.SIGTERM)
        try:
            ended = last.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            last.kill()
            ended = last.wait()
        if ended:
            failed.append(f"the last worker ended with {ended}")
        found = compared(folder, began, venue)
    return found | {
        "kills": kills,
        "in_starts": late,
        "with_position": held,
        "with_open_orders": resting,
        "seed": seed,
        "speed": speed,
        "failed": failed + found["failed"],
    }


def until_it_trades(worker: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait for a worker to trade; False when it ends, or takes too long."""
    end = time.monotonic() + LONGEST_S
    while worker.poll() is None and time.monotonic() < end:
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
    options = parser.parse_args()
    found = kill_often(options.root, options.kills, options.seed, options.speed, options.most)
    print(json.dumps(found))
    for reason in found["failed"]:
        say(f"FAILED: {reason}")
    sys.exit(bool(found["failed"]))


if __name__ == "__main__":
    main()
