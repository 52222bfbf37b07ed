"""The model page: the version in force and how its predictions do since this page follows the worker."""

from __future__ import annotations

import math
from collections.abc import Callable

from market.console import NONE, fixed
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.widgets import (
    LINE,
    SECOND,
    Figures,
    Renew,
    draw,
    finite,
    lines,
    section,
)


def build(follow: Follower, symbol: Callable[[], str], horizon_s: int) -> Renew:
    """The version in force and how its predictions do since this page follows the worker."""
    figures = Figures(("version", "rank IC here", "seconds compared", "expected", "regime"))
    section(
        "Prediction and what came",
        f"expected return, and the mid's return over the {horizon_s} s after, bps; of the last "
        "minutes only: the hourly check of decay is in the pipeline",
    )
    chart = lines("Prediction", ("expected", "came"), (LINE, SECOND), "bps")
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
            [m.t_s * 1000, finite(1e4 * math.log(mids[m.t_s + horizon_s] / m.mid))]
            for m in kept
            if m.t_s + horizon_s in mids
        ]
        draw(chart, [[m.t_s * 1000, finite(m.expected_bps)] for m in kept], came)

    return renew
