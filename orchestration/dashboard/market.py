"""The market page: ladder, depth map, spread, cost by size, taker flow, funding, and the signal over it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nicegui import ui

from market.console import NONE, fixed, percent, utc_time
from market.units import SECOND_NS
from orchestration.dashboard.follow import Follower, Moment
from orchestration.dashboard.reader import Reader
from orchestration.dashboard.widgets import (
    ASK,
    BID,
    LINE,
    MUTED,
    SECOND,
    Figures,
    Renew,
    Show,
    chart,
    draw,
    finite,
    lines,
    section,
    table,
)

#: Seconds of the depth map, and its rows.
_MAP_S: Final = 120
_MAP_ROWS: Final = 30
#: Features that are shown of a prediction.
_PARTS: Final = 10


def build(follow: Follower, symbol: Callable[[], str], reader: Reader) -> Renew:
    """Ladder, depth map, spread, cost by size, taker flow, funding, and the signal over it."""
    figures = Figures(
        ("mid", "spread", "taker flow", "volatility", "touch recovers in", "funding", "next funding", "book")
    )  # fmt: skip
    ladder, depth = _book()
    liquidity, costs, trades = _takers()
    section(
        "Signal", "expected return over the primary horizon, and what an entry has to exceed, bps"
    )
    signal = lines("Signal", ("expected", "threshold", "-threshold"), (LINE, SECOND, SECOND), "bps")
    about = Figures(("expected", "threshold", "confidence", "regime", "by horizon", "target"))
    section(
        "Features that moved it", "parts of the expected return (TreeSHAP), bps; they sum to it"
    )
    moved = table(("feature", "value", "bps"), "no prediction yet, or its model is not in the lake")
    failed = ui.label().classes("text-xs opacity-60")
    drawn: list[Any] = ["", 0]  # symbol and second of the charts

    def clear() -> None:
        """Nothing of another symbol stays."""
        figures.clear()
        about.clear()
        for drawing in (ladder, depth, liquidity, signal):
            draw(drawing, *([] for _ in drawing.options["series"]))
        for show in (costs, trades, moved):
            show([])

    def renew() -> None:
        state, name = follow.state, symbol()
        found = state.get("markets", {}).get(name)
        if name != drawn[0] or not found:
            if drawn[0]:
                clear()
            drawn[:] = [name if found else "", 0]
        if not found:
            return
        kept = list(follow.moments.get(name, ()))
        _ladder(ladder, found)
        figures.show(**_touch(found), taker_flow=_flow(kept, found))
        rate, due_ns = found["funding_rate"], found["funding_ns"]
        left_s = (due_ns - state["worker"]["time_ns"]) // SECOND_NS
        figures.show(
            funding=NONE if rate is None else f"{fixed(rate * 1e4, 3)} bps",
            next_funding=f"in {left_s // 3600} h {left_s // 60 % 60} min" if due_ns and left_s > 0 else NONE,
            book="valid" if found["valid"] else "not known",
            volatility=f"{fixed(found['sigma_bps'], 3)} bps/√s",
            touch_recovers_in=f"{fixed(follow.recoveries[name].mean_s, 1)} s",
        )  # fmt: skip
        trades([_trade(row, found) for row in found["trades"]])
        if vector := state.get("vectors", {}).get(name):
            parts = reader.answer(f"moved/{name}", vector["t_ns"], **vector)
            moved(_parts(parts.get("moved", [])))
            failed.set_text(parts.get("error", ""))
        costs([
            [f"{int(usdt):,}", *(fixed(each, 3) for each in pair)]
            for usdt, pair in found["sweep_bps"].items()
        ])  # fmt: skip
        decision = state.get("symbols", {}).get(name, {}).get("decision") or {}
        about.show(
            expected=f"{fixed(decision.get('expected_bps'), 3)} bps",
            threshold=f"{fixed(decision.get('cost_bps'), 3)} bps",
            confidence=percent(decision.get("confidence")),
            regime=str(decision.get("regime") or NONE),
            by_horizon=" / ".join(fixed(each, 2) for each in decision.get("by_horizon") or ()) or NONE,
            target={1: "long", -1: "short"}.get(decision.get("target", 0), "flat"),
        )  # fmt: skip
        if kept and kept[-1].t_s != drawn[1]:
            drawn[1] = kept[-1].t_s
            _over_time(liquidity, signal, found, kept)
            _map(depth, kept[-_MAP_S:], found["tick"])

    return renew


def _book() -> tuple[ui.echart, ui.echart]:
    """The charts of the ladder and of depth over time."""
    with ui.element("div").classes("grid grid-cols-1 lg:grid-cols-2 gap-4 w-full"):
        with ui.column().classes("gap-1 w-full"):
            section("Ladder", "quantity at each price, USDT")
            ladder = chart(
                "h-96",
                xAxis={"type": "value", "axisLabel": {"formatter": "{value} k", "color": MUTED}},
                yAxis={"type": "category", "data": [], "axisLabel": {"color": MUTED}},
                series=[
                    {"name": name, "type": "bar", "stack": "side", "color": color, "data": []}
                    for name, color in (("bid", BID), ("ask", ASK))
                ],
            )
        with ui.column().classes("gap-1 w-full"):
            section("Depth map", f"the last {_MAP_S} s; the stronger the colour, the deeper")
            depth = chart(
                "h-96",
                tooltip={},
                xAxis={"type": "category", "data": [], "axisLabel": {"color": MUTED}},
                yAxis={"type": "category", "data": [], "axisLabel": {"color": MUTED}},
                visualMap={"show": False, "min": 0, "max": 8, "inRange": {
                    "color": ["rgba(76,120,168,0.04)", "rgba(76,120,168,1)"]}},
                series=[{"type": "heatmap", "data": []}],
            )  # fmt: skip
    return ladder, depth


def _takers() -> tuple[ui.echart, Show, Show]:
    """The chart and table of what taking costs, and the table of takers' trades."""
    with ui.element("div").classes("grid grid-cols-1 lg:grid-cols-2 gap-4 w-full"):
        with ui.column().classes("gap-1 w-full"):
            section("Spread and cost of taking at once", "against the mid, before fees, bps")
            liquidity = lines(
                "Spread and cost by size", ("spread", *"123"), (MUTED, LINE, SECOND, ASK), "bps"
            )
            costs = table(("size, USDT", "buy", "sell"), "the book is not known")
        with ui.column().classes("gap-1 w-full"):
            section("Trades", "the last that takers made, newest first; UTC")
            trades = table(
                ("time", "side", "price", "size", "USDT"), "nobody has traded yet", text=2
            )
    return liquidity, costs, trades


def _over_time(
    liquidity: ui.echart, signal: ui.echart, found: Mapping[str, Any], kept: Sequence[Moment]
) -> None:
    for n, usdt in enumerate(found["sweep_bps"], 1):
        liquidity.options["series"][n]["name"] = f"{int(usdt) // 1000} k USDT"
    draw(
        liquidity,
        [[m.t_s * 1000, finite((m.ask - m.bid) / m.mid * 1e4)] for m in kept],
        *(
            [[m.t_s * 1000, finite(m.sweeps[n])] for m in kept if len(m.sweeps) > n]
            for n in range(len(found["sweep_bps"]))
        ),
    )
    draw(
        signal,
        [[m.t_s * 1000, finite(m.expected_bps)] for m in kept],
        [[m.t_s * 1000, finite(m.cost_bps)] for m in kept],
        [[m.t_s * 1000, finite(-m.cost_bps)] for m in kept],
    )


def _trade(row: Sequence[int], found: Mapping[str, Any]) -> list[str]:
    time_ns, side, ticks, lots = row
    tick, lot = float(found["tick"]), float(found["lot"])
    digits, places = (len(found[k].partition(".")[2]) for k in ("tick", "lot"))
    return [
        f"{utc_time(time_ns)[11:19]}.{time_ns // 1_000_000 % 1000:03d}",
        "buy" if side > 0 else "sell",
        f"{ticks * tick:,.{digits}f}",
        f"{lots * lot:,.{places}f}",
        fixed(ticks * tick * lots * lot, 0),
    ]


def _parts(moved: Sequence[Sequence[Any]]) -> list[list[str]]:
    """The largest parts, and the rest together."""
    rest = sum(part for _, _, part in moved[_PARTS:])
    rows = [[name, fixed(value, 4), f"{part:+.3f}"] for name, value, part in moved[:_PARTS]]
    return [*rows, ["all others", "", f"{rest:+.3f}"]] if moved else []


def _ladder(chart: ui.echart, found: Mapping[str, Any]) -> None:
    tick, lot = float(found["tick"]), float(found["lot"])
    levels = [(p * tick, q * lot * p * tick / 1e3) for p, q in (*found["bids"], *found["asks"])]
    bids, digits = len(found["bids"]), len(found["tick"].partition(".")[2])
    order = sorted(range(len(levels)), key=lambda n: levels[n][0])
    chart.options["yAxis"]["data"] = [f"{levels[n][0]:,.{digits}f}" for n in order]
    draw(
        chart,
        [round(levels[n][1], 2) if n < bids else None for n in order],
        [round(levels[n][1], 2) if n >= bids else None for n in order],
    )


def _touch(found: Mapping[str, Any]) -> dict[str, str]:
    """Mid and spread."""
    if not (found["bids"] and found["asks"]):
        return {"mid": NONE, "spread": NONE}
    tick, digits = float(found["tick"]), len(found["tick"].partition(".")[2])
    bid, ask = found["bids"][0][0], found["asks"][0][0]
    return {
        "mid": f"{(bid + ask) / 2 * tick:,.{digits + 1}f}",
        "spread": f"{fixed((ask - bid) / (bid + ask) * 2e4, 3)} bps",
    }


def _flow(kept: Sequence[Moment], found: Mapping[str, Any]) -> str:
    """What takers bought and sold over the last ten seconds."""
    if not kept:
        return NONE
    last, back = kept[-1], kept[-min(len(kept), 11)]
    span_s, usdt = max(1, last.t_s - back.t_s), float(found["lot"]) * last.mid / 1e3
    bought, sold = (last.bought - back.bought) / span_s, (last.sold - back.sold) / span_s
    return f"+{fixed(bought * usdt, 1)} / -{fixed(sold * usdt, 1)} k USDT/s"


def _map(chart: ui.echart, kept: Sequence[Moment], ticks: str) -> None:
    """Quantity by price and second, in rows of equal width over all levels that were seen."""
    tick, digits = float(ticks), len(ticks.partition(".")[2])
    low = min(m.bids[-1][0] for m in kept) - tick / 2
    span = max(m.asks[-1][0] for m in kept) + tick / 2 - low
    step = tick * math.ceil(round(span / tick) / _MAP_ROWS)
    rows = math.ceil(round(span / tick) / round(step / tick))
    cells: dict[tuple[int, int], float] = {}
    for column, m in enumerate(kept):
        for price, quantity in (*m.bids, *m.asks):
            row = int((price - low) // step)
            cells[column, row] = cells.get((column, row), 0.0) + quantity * price / 1e3
    chart.options["xAxis"]["data"] = [time.strftime("%H:%M:%S", time.gmtime(m.t_s)) for m in kept]
    chart.options["yAxis"]["data"] = [f"{low + (n + 0.5) * step:,.{digits}f}" for n in range(rows)]
    draw(chart, [[x, y, round(math.log1p(value), 2)] for (x, y), value in cells.items()])
