"""How often each kind of fault met each state of an order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from execution.orders import OrderState
from market.units import SECOND_NS

#: An order that has ended is met by what happens this soon after it.
RECENT_NS = 10 * SECOND_NS


def table(met: Mapping[tuple[str, str], int], kinds: Iterable[str]) -> list[str]:
    """The table in Markdown: one row a kind, one column a state."""
    states = list(OrderState)
    lines = [
        "| fault | " + " | ".join(state.replace("_", " ").lower() for state in states) + " |",
        "| --- |" + " ---: |" * len(states),
    ]
    for kind in kinds:
        counts = " | ".join(f"{met.get((kind, state), 0):,}" for state in states)
        lines.append(f"| {kind} | {counts} |")
    return lines


def empty(met: Mapping[tuple[str, str], int], kinds: Iterable[str]) -> list[str]:
    """The pairs that were never met."""
    return [
        f"{kind} × {state}" for kind in kinds for state in OrderState if not met.get((kind, state))
    ]


def merged(runs: Iterable[Iterable[tuple[str, str, int]]]) -> Counter[tuple[str, str]]:
    """The sums of several runs."""
    total: Counter[tuple[str, str]] = Counter()
    for met in runs:
        for kind, state, times in met:
            total[kind, state] += times
    return total
