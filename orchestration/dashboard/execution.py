"""The execution page: parents and their open orders, what orders cost so far, and where time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from market.console import NONE, fixed, percent
from market.units import SECOND_NS
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.widgets import (
    ASK,
    BID,
    LINE,
    MUTED,
    SECOND,
    Figures,
    Renew,
    draw,
    lines,
    section,
    table,
)


def build(follow: Follower) -> Renew:
    """Parents and their open orders, what orders cost so far, and where time goes."""
    figures = Figures(
        ("parents", "orders", "fills", "filled", "fill rate", "maker share", "all-in cost", "markouts")
    )  # fmt: skip
    section(
        "Parents at work",
        "due: by the schedule now; cost so far of what is filled, estimate of the whole before it began, bps",
    )
    parents = table(
        (
            "parent",
            "symbol",
            "side",
            "algorithm",
            "filled",
            "due",
            "deadline",
            "cost so far",
            "estimate",
        ),
        "no parent is at work",
        text=4,
    )
    section(
        "Open orders",
        "ahead: lots before it in its queue at most; chance: to be filled where it stands by its parent's "
        "deadline, before the price runs away",
    )
    orders = table(
        ("order", "symbol", "side", "state", "price", "filled", "ahead", "chance", "age"),
        "no order is open",
        text=4,
    )
    section("Cost so far, in parts", "mean over measured parents, bps of the decision price")
    parts = table(("part", "bps"), "no parent has been measured yet")
    section("Latency", "99th percentile of the last one or two minutes, ms")
    stages = ("queue", "step", "log", "sync", "send", "decision")
    colors = (LINE, BID, SECOND, ASK, MUTED, "#7a5195")
    latency = lines("Latency by stage", stages, colors, "ms", "log")
    drawn = [0]

    def renew() -> None:
        state = follow.state
        costs = state.get("costs", {})
        now_ns = state["worker"]["time_ns"]
        figures.show(
            parents=f"{costs.get('parents', 0):,}",
            orders=f"{costs.get('orders', 0):,}",
            fills=f"{costs.get('fills', 0):,}",
            filled=f"{fixed(costs.get('filled_usdt'), 0)} USDT",
            maker_share=percent(costs.get("maker_share")),
            fill_rate=percent(costs.get("fill_rate")),
            markouts=_markouts(costs.get("markouts_bps") or {}),
            **{"all-in cost": f"{fixed(costs.get('all_in_cost_bps'), 3)} bps"},
        )
        parents(_parents(state, now_ns))
        orders(_orders(state, now_ns))
        parts([
            [name.removesuffix("_bps").replace("_", " "), fixed(value, 3)]
            for name, value in (costs.get("cost_parts_bps") or {}).items()
            if value is not None
        ])  # fmt: skip
        kept = list(follow.seconds)
        if kept and kept[-1].t_s != drawn[0]:
            drawn[0] = kept[-1].t_s
            draw(
                latency,
                *([[s.t_s * 1000, s.p99_ms.get(stage) or None] for s in kept] for stage in stages),
            )

    return renew


def _parents(state: Mapping[str, Any], now_ns: int) -> list[list[str]]:
    return [
    [id, row["symbol"], _side(row),
     f"{row['algorithm']}: {row['picked']}" if row.get("picked") else row["algorithm"],
     _filled(row), f"{row.get('due_lots', row['qty_lots']):,} lots",
     f"{(row['deadline_ns'] - now_ns) / SECOND_NS:.0f} s",
     fixed(row.get("cost_bps"), 3), fixed(row.get("estimate_bps"), 3)]
    for id, row in state.get("parents", {}).items()
]  # fmt: skip


def _orders(state: Mapping[str, Any], now_ns: int) -> list[list[str]]:
    markets = state.get("markets", {})
    return [
    [id, row["symbol"], _side(row), row["state"].lower(), _price(row, markets),
     _filled(row), f"{row['ahead_lots']:,} lots" if "ahead_lots" in row else NONE,
     percent(row.get("fill_chance")),
     f"{max(0.0, (now_ns - row['sent_ns']) / SECOND_NS):.1f} s"]
    for id, row in state.get("orders", {}).items()
]  # fmt: skip


def _filled(row: Mapping[str, Any]) -> str:
    return f"{row['filled_lots']:,} of {row['qty_lots']:,} lots"


def _markouts(found: Mapping[str, float | None]) -> str:
    """Seconds after the fill, and how far the mid had gone our way."""
    return (
        "; ".join(f"{s} s {fixed(value)}" for s, value in found.items()) + " bps" if found else NONE
    )


def _side(row: Mapping[str, Any]) -> str:
    return "buy" if row["side"] > 0 else "sell"


def _price(row: Mapping[str, Any], markets: Mapping[str, Any]) -> str:
    if not (ticks := row.get("price_ticks")) or row["symbol"] not in markets:
        return NONE
    tick = markets[row["symbol"]]["tick"]
    return f"{ticks * float(tick):,.{len(tick.partition('.')[2])}f}"
