"""The five pages: market, execution, risk, model, system. Each returns what renews it from the follower's state.

Texts of the worker are shown as text, never as HTML. Numbers carry their units; times are UTC.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nicegui import ui

from market.console import NONE, fixed, percent, utc_time
from market.units import SECOND_NS
from orchestration.dashboard.acts import order
from orchestration.dashboard.follow import Follower, Moment

Renew = Callable[[], None]

#: Seconds of the depth map, and its rows.
_MAP_S: Final = 120
_MAP_ROWS: Final = 30
_BID, _ASK, _LINE, _SECOND = "#2a9d6f", "#d1495b", "#4c78a8", "#e0a030"
_MUTED: Final = "#8a8f98"


class Figures:
    """A grid of labelled figures, renewed by name."""

    def __init__(self, names: Sequence[str]) -> None:
        self._values: dict[str, ui.label] = {}
        with ui.grid().classes("grid-cols-2 sm:grid-cols-4 lg:grid-cols-6 gap-x-6 gap-y-2 w-full"):
            for name in names:
                with ui.column().classes("gap-0"):
                    ui.label(name).classes("text-xs opacity-60")
                    self._values[name] = ui.label(NONE).classes("text-base tabular-nums").mark(name)

    def show(self, **values: str) -> None:
        for name, text in values.items():
            self._values[name.replace("_", " ")].set_text(text)


def section(title: str, hint: str = "") -> None:
    """A heading, and below it what it means."""
    ui.label(title).classes("text-lg font-medium mt-4").props("role=heading aria-level=2")
    if hint:
        ui.label(hint).classes("text-xs opacity-60")


def _table(columns: Sequence[str], empty: str, text: int = 1) -> Callable[[list[list[str]]], None]:
    """A table whose first columns are ``text`` and the others numbers; what shows new rows."""
    heads = [
        {"name": name, "label": name, "field": name, "align": "left" if n < text else "right"}
        for n, name in enumerate(columns)
    ]
    table = ui.table(columns=heads, rows=[], row_key=columns[0]).classes("w-full")
    table.props('dense flat bordered hide-pagination rows-per-page-options="[0]"')
    table.add_slot("no-data", f'<div class="q-pa-xs opacity-60">{empty}</div>')

    def show(rows: list[list[str]]) -> None:
        new = [dict(zip(columns, row, strict=True)) for row in rows]
        if new != table.rows:
            table.rows = new
            table.update()

    return show


def _chart(height: str, **options: Any) -> ui.echart:
    base = {
        "animation": False,
        "grid": {"left": 58, "right": 16, "top": 28, "bottom": 24},
        "textStyle": {"color": _MUTED},
        "legend": {"top": 0, "textStyle": {"color": _MUTED}},
        "tooltip": {"trigger": "axis"},
    }
    return ui.echart(base | options).classes(f"w-full {height}")


def _lines(
    title: str, names: Sequence[str], colors: Sequence[str], unit: str, scale: str = "value"
) -> ui.echart:
    return _chart(
        "h-56",
        xAxis={"type": "time", "axisLabel": {"hideOverlap": True, "color": _MUTED}},
        yAxis={
            "type": scale, "scale": True, "name": unit, "axisLabel": {"color": _MUTED},
            "splitLine": {"lineStyle": {"opacity": 0.25}},
        },
        series=[
            {"name": name, "type": "line", "showSymbol": False, "color": color, "data": []}
            for name, color in zip(names, colors, strict=True)
        ],
        aria={"enabled": True, "label": {"description": title}},
    )  # fmt: skip


def _draw(chart: ui.echart, *series: list[Any]) -> None:
    for number, data in enumerate(series):
        chart.options["series"][number]["data"] = data
    chart.update()


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


# -- market ----------------------------------------------------------------------------------------


def market(follow: Follower, symbol: Callable[[], str]) -> Renew:
    """Ladder, depth map, spread, cost by size, taker flow, funding, and the signal over it."""
    figures = Figures(
        ("mid", "spread", "taker flow", "funding", "next funding", "book"),
    )
    with ui.element("div").classes("grid grid-cols-1 lg:grid-cols-2 gap-4 w-full"):
        with ui.column().classes("gap-1 w-full"):
            section("Ladder", "quantity at each price, USDT")
            ladder = _chart(
                "h-96",
                xAxis={"type": "value", "axisLabel": {"formatter": "{value} k", "color": _MUTED}},
                yAxis={"type": "category", "data": [], "axisLabel": {"color": _MUTED}},
                series=[
                    {"name": name, "type": "bar", "stack": "side", "color": color, "data": []}
                    for name, color in (("bid", _BID), ("ask", _ASK))
                ],
            )
        with ui.column().classes("gap-1 w-full"):
            section("Depth map", f"the last {_MAP_S} s; darker is deeper")
            depth = _chart(
                "h-96",
                tooltip={},
                xAxis={"type": "category", "data": [], "axisLabel": {"color": _MUTED}},
                yAxis={"type": "category", "data": [], "axisLabel": {"color": _MUTED}},
                visualMap={"show": False, "min": 0, "max": 8, "inRange": {
                    "color": ["rgba(76,120,168,0.04)", "rgba(76,120,168,0.5)", "#16324f"]}},
                series=[{"type": "heatmap", "data": []}],
            )  # fmt: skip
    section("Cost of taking at once", "against the mid, before fees, bps")
    costs = _table(("size, USDT", "buy", "sell"), "the book is not known")
    section(
        "Signal", "expected return over the primary horizon, and what an entry has to exceed, bps"
    )
    signal = _lines(
        "Signal", ("expected", "threshold", "-threshold"), (_LINE, _SECOND, _SECOND), "bps"
    )
    about = Figures(("expected", "threshold", "confidence", "regime", "by horizon", "target"))
    drawn = [0]

    def renew() -> None:
        state, name = follow.state, symbol()
        found = state.get("markets", {}).get(name)
        if not found:
            return
        kept = list(follow.moments.get(name, ()))
        _ladder(ladder, found)
        if kept:
            figures.show(**_touch(kept, found))
        rate, due_ns = found["funding_rate"], found["funding_ns"]
        left_s = (due_ns - state["worker"]["time_ns"]) // SECOND_NS
        figures.show(
            funding=NONE if rate is None else f"{fixed(rate * 1e4, 3)} bps",
            next_funding=f"in {left_s // 3600} h {left_s // 60 % 60} min" if due_ns and left_s > 0 else NONE,
            book="valid" if found["valid"] else "not known",
        )  # fmt: skip
        costs([
            [f"{int(usdt):,}", *(fixed(each, 3) for each in pair)]
            for usdt, pair in found["sweep_bps"].items()
        ])  # fmt: skip
        decision = state["symbols"].get(name, {}).get("decision") or {}
        about.show(
            expected=f"{fixed(decision.get('expected_bps'), 3)} bps",
            threshold=f"{fixed(decision.get('cost_bps'), 3)} bps",
            confidence=percent(decision.get("confidence")),
            regime=str(decision.get("regime") or NONE),
            by_horizon=" / ".join(fixed(each, 2) for each in decision.get("by_horizon") or ()) or NONE,
            target={1: "long", -1: "short"}.get(decision.get("target", 0), "flat"),
        )  # fmt: skip
        if kept and kept[-1].t_s != drawn[0]:
            drawn[0] = kept[-1].t_s
            _draw(
                signal,
                [[m.t_s * 1000, _finite(m.expected_bps)] for m in kept],
                [[m.t_s * 1000, _finite(m.cost_bps)] for m in kept],
                [[m.t_s * 1000, _finite(-m.cost_bps)] for m in kept],
            )
            _map(depth, kept[-_MAP_S:], float(found["tick"]))

    return renew


def _ladder(chart: ui.echart, found: Mapping[str, Any]) -> None:
    tick, lot = float(found["tick"]), float(found["lot"])
    levels = [(p * tick, q * lot * p * tick / 1e3) for p, q in (*found["bids"], *found["asks"])]
    bids, digits = len(found["bids"]), len(found["tick"].partition(".")[2])
    order = sorted(range(len(levels)), key=lambda n: levels[n][0])
    chart.options["yAxis"]["data"] = [f"{levels[n][0]:,.{digits}f}" for n in order]
    _draw(
        chart,
        [round(levels[n][1], 2) if n < bids else None for n in order],
        [round(levels[n][1], 2) if n >= bids else None for n in order],
    )


def _touch(kept: Sequence[Moment], found: Mapping[str, Any]) -> dict[str, str]:
    """Mid, spread, and what takers bought and sold over the last ten seconds."""
    last, back = kept[-1], kept[-min(len(kept), 11)]
    span_s, usdt = max(1, last.t_s - back.t_s), float(found["lot"]) * last.mid / 1e3
    bought, sold = (last.bought - back.bought) / span_s, (last.sold - back.sold) / span_s
    return {
        "mid": f"{last.mid:,.{len(found['tick'].partition('.')[2])}f}",
        "spread": f"{fixed((last.ask - last.bid) / last.mid * 1e4, 3)} bps",
        "taker flow": f"+{fixed(bought * usdt, 1)} / -{fixed(sold * usdt, 1)} k USDT/s",
    }


def _map(chart: ui.echart, kept: Sequence[Moment], tick: float) -> None:
    """Quantity by price and second, in rows of equal width around the last mid."""
    last = kept[-1]
    reach = max(
        (abs(p - last.mid) for m in kept[-30:] for p, _ in (*m.bids, *m.asks)), default=tick
    )
    step = max(tick, 2 * reach / _MAP_ROWS)
    low = last.mid - step * _MAP_ROWS / 2
    cells: dict[tuple[int, int], float] = {}
    for column, m in enumerate(kept):
        for price, quantity in (*m.bids, *m.asks):
            row = int((price - low) // step)
            if 0 <= row < _MAP_ROWS:
                cells[column, row] = cells.get((column, row), 0.0) + quantity * price / 1e3
    chart.options["xAxis"]["data"] = [time.strftime("%H:%M:%S", time.gmtime(m.t_s)) for m in kept]
    chart.options["yAxis"]["data"] = [f"{low + (n + 0.5) * step:,.2f}" for n in range(_MAP_ROWS)]
    _draw(chart, [[x, y, round(math.log1p(value), 2)] for (x, y), value in cells.items()])


# -- execution -------------------------------------------------------------------------------------


def execution(follow: Follower, symbol: Callable[[], str]) -> Renew:
    """Parents and their open orders, what orders cost so far, and where time goes."""
    figures = Figures(
        ("parents", "orders", "fills", "filled", "maker share", "all-in cost", "markout 60 s")
    )
    section("Parents at work")
    parents = _table(
        ("parent", "symbol", "side", "algorithm", "filled", "deadline"),
        "no parent is at work",
        text=4,
    )
    section("Open orders")
    orders = _table(
        ("order", "symbol", "side", "state", "price", "filled", "age"), "no order is open", text=4
    )
    section("Cost so far, in parts", "mean over measured parents, bps of the decision price")
    parts = _table(("part", "bps"), "no parent has been measured yet")
    section("Latency", "99th percentile since the start, ms")
    stages = ("queue", "step", "log", "sync", "send", "decision")
    colors = (_LINE, _BID, _SECOND, _ASK, _MUTED, "#7a5195")
    latency = _lines("Latency by stage", stages, colors, "ms", "log")
    drawn = [0]

    def renew() -> None:
        state = follow.state
        costs, markets = state.get("costs", {}), state.get("markets", {})
        now_ns = state["worker"]["time_ns"]
        figures.show(
            parents=f"{costs.get('parents', 0):,}",
            orders=f"{costs.get('orders', 0):,}",
            fills=f"{costs.get('fills', 0):,}",
            filled=f"{fixed(costs.get('filled_usdt'), 0)} USDT",
            maker_share=percent(costs.get("maker_share")),
            markout_60_s=f"{fixed(costs.get('markout_60s_bps'), 3)} bps",
            **{"all-in cost": f"{fixed(costs.get('all_in_cost_bps'), 3)} bps"},
        )
        parents([
            [id, row["symbol"], _side(row), row["algorithm"],
             f"{row['filled_lots']:,} of {row['qty_lots']:,} lots",
             f"{(row['deadline_ns'] - now_ns) / SECOND_NS:.0f} s"]
            for id, row in state.get("parents", {}).items()
        ])  # fmt: skip
        orders([
            [id, row["symbol"], _side(row), row["state"].lower(), _price(row, markets),
             f"{row['filled_lots']:,} of {row['qty_lots']:,} lots",
             f"{max(0.0, (now_ns - row['sent_ns']) / SECOND_NS):.1f} s"]
            for id, row in state.get("orders", {}).items()
        ])  # fmt: skip
        parts([
            [name.removesuffix("_bps").replace("_", " "), fixed(value, 3)]
            for name, value in (costs.get("cost_parts_bps") or {}).items()
            if value is not None
        ])  # fmt: skip
        kept = list(follow.seconds)
        if kept and kept[-1].t_s != drawn[0]:
            drawn[0] = kept[-1].t_s
            _draw(
                latency,
                *([[s.t_s * 1000, s.p99_ms.get(stage) or None] for s in kept] for stage in stages),
            )

    return renew


def _side(row: Mapping[str, Any]) -> str:
    return "buy" if row["side"] > 0 else "sell"


def _price(row: Mapping[str, Any], markets: Mapping[str, Any]) -> str:
    if not (ticks := row.get("price_ticks")) or row["symbol"] not in markets:
        return NONE
    tick = markets[row["symbol"]]["tick"]
    return f"{ticks * float(tick):,.{len(tick.partition('.')[2])}f}"


# -- risk ------------------------------------------------------------------------------------------


def _evidence(state: Mapping[str, Any]) -> str:
    ramp = state.get("ramp") or {}
    if not ramp:
        return NONE
    cost = ramp.get("cost_error_bps")
    error = "" if cost is None else f", cost {cost[0]:+.2f} ± {cost[1]:.2f} bps off"
    return f"{ramp['parents']} of {ramp['of_parents']} parents{error}"


def risk(follow: Follower, symbol: Callable[[], str], token: str) -> Renew:
    """Positions, equity, limits, and what an operator can order."""
    figures = Figures(
        (
            "equity",
            "day's result",
            "below peak",
            "mode",
            "gross",
            "leverage",
            "ramp",
            "ramp's evidence",
        )
    )
    with ui.row().classes("gap-2 mt-2") as orders:
        for verb, color in (("halt", "negative"), ("flatten", "warning"), ("resume", "positive")):
            ui.button(
                verb.capitalize(), color=color, on_click=lambda v=verb: order(follow, v, "", token)
            )
        ui.button("Pause symbol", on_click=lambda: order(follow, "pause", symbol(), token))
    orders.set_visibility(bool(token))
    section("Positions")
    positions = _table(
        ("symbol", "mode", "why", "size bound by", "position", "entry", "stop", "target", "value"),
        "no symbol is traded",
        text=4,
    )
    section("Equity", "USDT, marked to the mid")
    equity = _lines("Equity", ("equity",), (_LINE,), "USDT")
    section("Limits in force", "of [risk]; commands only tighten them")
    limits = _table(("limit", "value"), "no limits are told")
    drawn = [0]

    def renew() -> None:
        state = follow.state
        account, markets, rows = state["account"], state.get("markets", {}), []
        gross = 0.0
        for name, row in state.get("symbols", {}).items():
            found = markets.get(name)
            tick, lot = (float(found[k]) for k in ("tick", "lot")) if found else (math.nan,) * 2
            kept = follow.moments.get(name)
            value = row["position_lots"] * lot * kept[-1].mid if kept else math.nan
            gross += abs(value) if math.isfinite(value) else 0.0
            rows.append([
                name, row["mode"], "; ".join(row["why"]) or NONE,
                (row.get("size") or {}).get("binding", NONE), f"{row['position_lots']:,} lots",
                fixed(None if row["entry_ticks"] is None else row["entry_ticks"] * tick),
                fixed(row["stop_ticks"] * tick) if row["stop_ticks"] else NONE,
                f"{row['target_lots']:,} lots", f"{fixed(value, 0)} USDT",
            ])  # fmt: skip
        positions(rows)
        modes = {row["mode"] for row in state.get("symbols", {}).values()}
        figures.show(
            equity=f"{fixed(account['equity'])} USDT",
            below_peak=f"{fixed(account['peak'] - account['equity'])} USDT",
            mode=", ".join(sorted(modes)) or NONE,
            gross=f"{fixed(gross, 0)} USDT",
            leverage=f"{fixed(gross / account['equity'], 2)} x" if account["equity"] > 0 else NONE,
            ramp=percent((state.get("ramp") or {}).get("share")),
            **{
                "day's result": f"{fixed(account['day_result'])} USDT",
                "ramp's evidence": _evidence(state),
            },
        )
        limits([
            [name.replace("_", " "), f"{value:,g}"] for name, value in state.get("limits", {}).items()
        ])  # fmt: skip
        seconds = list(follow.seconds)
        if seconds and seconds[-1].t_s != drawn[0]:
            drawn[0] = seconds[-1].t_s
            _draw(equity, [[s.t_s * 1000, round(s.equity, 2)] for s in seconds])

    return renew


# -- model -----------------------------------------------------------------------------------------


def model(follow: Follower, symbol: Callable[[], str], horizon_s: int) -> Renew:
    """The version in force and how its predictions do since this page follows the worker."""
    figures = Figures(("version", "rank IC here", "seconds compared", "expected", "regime"))
    section(
        "Prediction and what came",
        f"expected return, and the mid's return over the {horizon_s} s after, bps; of the last "
        "minutes only: the hourly check of decay is in the pipeline",
    )
    chart = _lines("Prediction", ("expected", "came"), (_LINE, _SECOND), "bps")
    drawn = [0]

    def renew() -> None:
        state, name = follow.state, symbol()
        decision = state["symbols"].get(name, {}).get("decision") or {}
        kept = list(follow.moments.get(name, ()))
        figures.show(
            version=str(state["worker"].get("model", NONE)),
            expected=f"{fixed(decision.get('raw_bps'), 3)} bps",
            regime=str(decision.get("regime") or NONE),
        )
        if not kept or kept[-1].t_s == drawn[0]:
            return
        drawn[0] = kept[-1].t_s
        ic, count = follow.ic(name, horizon_s)
        figures.show(rank_IC_here=fixed(ic, 3), seconds_compared=f"{count:,}")
        mids = {m.t_s: m.mid for m in kept}
        came = [
            [m.t_s * 1000, _finite(1e4 * math.log(mids[m.t_s + horizon_s] / m.mid))]
            for m in kept
            if m.t_s + horizon_s in mids
        ]
        _draw(chart, [[m.t_s * 1000, _finite(m.expected_bps)] for m in kept], came)

    return renew


# -- system ----------------------------------------------------------------------------------------


def system(follow: Follower, root: str) -> Renew:
    """Connection, counters, disk, and the end of the worker's log of lines."""
    figures = Figures(
        ("phase", "venue time", "run", "last word", "updates here", "dropped here", "disk free")
    )
    section("Counters", "since the worker's start")
    counters = _table(("counter", "value"), "nothing is told")
    section("Latency", "since the worker's start, ms")
    latency = _table(("stage", "median", "p99", "p99.9", "most", "n"), "nothing was timed yet")

    def renew() -> None:
        state = follow.state
        worker = state["worker"]
        disk = shutil.disk_usage(root if Path(root).exists() else "/")
        figures.show(
            phase=str(worker["phase"]),
            venue_time=utc_time(worker["time_ns"]),
            run=str(worker["run"]),
            last_word=f"{follow.age_s:.1f} s ago",
            updates_here=f"{follow.updates:,}",
            dropped_here=f"{follow.dropped:,}",
            disk_free=f"{disk.free / 1e9:,.0f} GB",
        )
        rows = []
        for name, value in state.get("counters", {}).items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{k} {n}" for k, n in value.items()) or "none"
            rows.append(
                [name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)]
            )
        counters(rows)
        latency([
            [stage, *(fixed(found[p] / 1e3, 2) for p in ("p50", "p99", "p99.9", "most")), f"{found['n']:,}"]
            for stage, found in state.get("latency", {}).items() if found.get("n")
        ])  # fmt: skip

    return renew
