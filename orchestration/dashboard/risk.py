"""The risk page: positions, equity, limits, and what an operator can order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from market.console import NONE, fixed, percent
from orchestration.dashboard.acts import order
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.widgets import LINE, Figures, Renew, draw, lines, section, table


def _evidence(state: Mapping[str, Any]) -> str:
    ramp = state.get("ramp") or {}
    if not ramp:
        return NONE
    cost = ramp.get("cost_error_bps")
    error = "" if cost is None else f", cost {cost[0]:+.2f} ± {cost[1]:.2f} bps off"
    return f"{ramp['parents']} of {ramp['of_parents']} parents{error}"


def build(follow: Follower, symbol: Callable[[], str], token: str) -> Renew:
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
    positions = table(
        ("symbol", "mode", "why", "size bound by", "position", "entry", "stop", "target", "value"),
        "no symbol is traded",
        text=4,
    )
    section("Equity", "USDT, marked to the mid")
    equity = lines("Equity", ("equity",), (LINE,), "USDT")
    section("Limits in force", "of [risk]; commands only tighten them")
    limits = table(("limit", "value"), "no limits are told")
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
            draw(equity, [[s.t_s * 1000, round(s.equity, 2)] for s in seconds])

    return renew
