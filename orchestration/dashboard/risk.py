"""The risk page: positions, equity, limits, and what an operator can order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from live.safety import LARGER
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


def share(name: str, used: float | None, limit: float) -> float | None:
    """How much of a limit is used; of one that is a least distance, the limit over the distance."""
    if used is None:
        return None
    if name in LARGER:
        return limit / used if used > 0 else 1.0
    return max(0.0, used) / limit


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _positions(follow: Follower) -> tuple[list[list[str]], float]:
    """A row for each symbol, and the gross value of positions in USDT."""
    state, rows = follow.state, list[list[str]]()
    markets = state.get("markets", {})
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
    return rows, gross


def _exposure(name: str, row: Mapping[str, Any]) -> list[str]:
    group, own = row["group_usdt"] or {}, row["own_usdt"]
    total = None if own is None else own + sum(group.values())
    away = row["liquidation_bps"]
    return [
        name, f"{fixed(own, 0)} USDT", f"{fixed(total, 0)} USDT",
        ", ".join(f"{other} {value:+,.0f}" for other, value in group.items()) or NONE,
        ", ".join(f"{o} {fixed(c)}" for o, c in row["correlation"].items()) or NONE,
        NONE if row["margin_usdt"] is None else f"{row['margin_usdt']:,.2f} USDT",
        NONE if away is None else f"{away:,.0f} bps",
    ]  # fmt: skip


def _orders(follow: Follower, symbols: Sequence[str], token: str) -> None:
    """The buttons of what an operator can order."""
    with ui.row().classes("gap-2 mt-2"):
        for verb, color in (("halt", "negative"), ("flatten", "warning"), ("resume", "positive")):
            ui.button(
                verb.capitalize(), color=color, on_click=lambda v=verb: order(follow, v, "", token)
            )
        for symbol in symbols:
            ui.button(f"Pause {symbol}", on_click=lambda s=symbol: order(follow, "pause", s, token))


def build(follow: Follower, symbols: Sequence[str], token: str) -> Renew:
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
    if token:
        _orders(follow, symbols, token)
    section("Positions")
    positions = table(
        ("symbol", "mode", "why", "size bound by", "position", "entry", "stop", "target", "value"),
        "no symbol is traded",
        text=4,
    )
    section(
        "Correlated exposure and liquidation",
        "with others: own value and, in units of the symbol, what correlated positions add; liquidation: from "
        "the mid to the nearer of the venue's price and ours",
    )
    exposures = table(
        ("symbol", "own", "with others", "added by", "correlation", "margin used", "liquidation"),
        "no symbol is traded",
    )
    section("Equity", "USDT, marked to the mid")
    equity = lines("Equity", ("equity",), (LINE,), "USDT")
    section(
        "Limits",
        "of [risk], as in force: commands only tighten them; used: what they are judged by now",
    )
    limits = table(("limit", "used", "in force", "share"), "no limits are told")
    drawn = [0]

    def renew() -> None:
        state = follow.state
        account = state["account"]
        rows, gross = _positions(follow)
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
        exposures([_exposure(name, row) for name, row in state.get("exposure", {}).items()])
        used, in_force = state.get("used", {}), state.get("limits", {})
        limits([
            [name.replace("_", " "), _plain(used.get(name)), _plain(value),
             percent(share(name, used.get(name), value))]
            for name, value in sorted(in_force.items(), key=lambda each: each[0] not in used)
        ])  # fmt: skip
        seconds = list(follow.seconds)
        if seconds and seconds[-1].t_s != drawn[0]:
            drawn[0] = seconds[-1].t_s
            draw(equity, [[s.t_s * 1000, round(s.equity, 2)] for s in seconds])

    return renew
