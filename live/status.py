"""`l2 status`: what the running worker does, on one screen, from its state stream."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from live.control import state_of
from live.state_stream import VERSION, read_states
from market.console import NONE, Result, fixed, table, utc_time
from market.errors import VenueError
from market.settings import Settings
from market.units import SECOND_NS

#: A worker tells its state five times a second; one that says nothing for longer hangs.
_PATIENCE_S: Final = 5.0

State = Mapping[str, Mapping[str, Any]]


class StatusError(VenueError):
    """No worker says what it does; the message says why."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 status`."""
    parser.add_argument("--venue", metavar="NAME", help="default: that of the worker that runs")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """Print the state of the worker. StatusError when none runs, or one that says nothing."""
    state = now(settings, options.venue)
    if not options.json:
        print("\n".join(screen(state)))
    return {name: dict(values) for name, values in state.items()}


def now(settings: Settings, venue: str | None) -> State:
    """The first whole state that the worker tells."""
    path = state_of(settings, venue) / "state.sock"
    try:
        for line in read_states(path, _PATIENCE_S):
            if line.get("version", VERSION) != VERSION:
                raise StatusError(f"{path}: version {line['version']} of the state, {VERSION} here")
            state: State = line.get("state", {})
            if "worker" in state and "account" in state:
                return state
    except FileNotFoundError as error:
        raise StatusError(
            f"{path.parent.name}: no worker runs; start one with `l2 live`"
        ) from error
    except OSError as error:
        raise StatusError(
            f"{path}: {error.strerror}; the worker has ended without a word"
        ) from error
    raise StatusError(
        f"{path.parent.name}: the worker says nothing for {_PATIENCE_S:g} s; see its log, and `l2 halt`"
    )


def screen(state: State) -> Iterator[str]:
    """The lines: worker, symbols, parents, open orders, and what ought to be zero."""
    state = defaultdict(dict, state)  # a change has neither what is null nor what is empty
    worker, account, costs = state["worker"], state["account"], state["costs"]
    now_ns = worker["time_ns"]
    yield f"{worker['venue']}, {worker['model']}, {worker['phase']}, {utc_time(now_ns)}"
    yield (
        f"equity {fixed(account['equity'])} USDT, today {fixed(account['day_result'])}; "
        f"{costs['parents']:,} parents, {costs['fills']:,} fills, all-in cost "
        f"{fixed(costs.get('all_in_cost_bps'), 3)} bps"
    )
    yield ""
    yield table(
        [
            (name, row["mode"], row["position_lots"], row["target_lots"],
             _price(state, name, row["entry_ticks"]), _price(state, name, row["stop_ticks"]),
             fixed((row["decision"] or {}).get("expected_bps"), 3), "; ".join(row["why"]))
            for name, row in state["symbols"].items()
        ],
        ("symbol", "mode", "position, lots", "target", "entry", "stop", "expected, bps", "why"),
    )  # fmt: skip
    for title, section in (("parents at work", "parents"), ("open orders", "orders")):
        rows = [
            (id, "buy" if row["side"] > 0 else "sell", row.get("algorithm") or row["state"].lower(),
             f"{row['filled_lots']:,} of {row['qty_lots']:,}", _time(row, now_ns))
            for id, row in state[section].items()
        ]  # fmt: skip
        yield f"\n{title}: {'none' if not rows else ''}".rstrip()
        if rows:
            yield table(rows)
    decision = state["latency"].get("decision", {})
    if decision.get("n"):
        yield f"\ndecisions after {decision['p50'] / 1e3:.1f} ms, p99 {decision['p99'] / 1e3:.1f} ms"
    wrong = {k: v for k, v in state["counters"].items() if v and k != "frames"}
    reached = wrong.pop("limits_reached", {})
    wrong |= {f"limit {name}": count for name, count in reached.items()}
    yield "counted: " + (
        ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in wrong.items()) or "nothing"
    )


def _price(state: State, symbol: str, ticks: float | None) -> str:
    if not ticks or symbol not in state["markets"]:
        return NONE
    return fixed(ticks * float(state["markets"][symbol]["tick"]))


def _time(row: Mapping[str, Any], now_ns: int) -> str:
    if "deadline_ns" in row:
        return f"{(row['deadline_ns'] - now_ns) / SECOND_NS:.0f} s left"
    return f"{max(0, now_ns - row['sent_ns']) / SECOND_NS:.1f} s old"
