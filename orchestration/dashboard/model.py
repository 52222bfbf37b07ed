"""The model page: the version in force, how it did in service, and since this page follows the worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nicegui import ui

from market.console import NONE, fixed, percent, utc_time
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.reader import Reader
from orchestration.dashboard.widgets import (
    LINE,
    MUTED,
    SECOND,
    Figures,
    Renew,
    chart,
    draw,
    finite,
    lines,
    section,
    table,
)

#: Seconds after which the lake is read again.
_AGAIN_S: Final = 120


def build(follow: Follower, symbol: Callable[[], str], horizon_s: int, reader: Reader) -> Renew:
    """The version in force; its rank IC, calibration, signals, decay, challenger and importances on record."""
    figures = Figures(
        ("version", "trained to", "rank IC stated", "rank IC served", "decay statistic", "decay alarm",
         "calibration slope", "coverage", "false signals", "served", "rank IC here", "regime")
    )  # fmt: skip
    said = ui.label().classes("w-full p-2 rounded border").props("role=status")
    said.set_visibility(False)
    rolling, reliable = _served()
    section(
        "Challenger against champion",
        "on the seconds that both predicted; bounds hold at every look",
    )
    challenger = ui.label(NONE)
    section("Importance over versions", "share of the boosters' gain, the newest version first")
    with ui.element("div").classes("w-full") as important:
        pass
    section(
        "Prediction and what came",
        f"expected return, and the mid's return over the {horizon_s} s after, bps; since this page follows",
    )
    predicted = lines("Prediction", ("expected", "came"), (LINE, SECOND), "bps")
    drawn: list[Any] = ["", 0]  # symbol and second of the chart
    shown: list[dict[str, Any]] = [{}]

    def renew() -> None:
        state, name = follow.state, symbol()
        decision = state.get("symbols", {}).get(name, {}).get("decision") or {}
        figures.show(
            version=str(state["worker"].get("model", NONE)),
            regime=str(decision.get("regime") or NONE),
        )
        found = reader.answer("record", int(time.monotonic() // _AGAIN_S))
        if found and found is not shown[0]:
            shown[0] = found
            said.set_text(found.get("error") or _lacks(found))
            said.set_visibility(bool(said.text))
            if "error" not in found:
                _record(found)
        kept = list(follow.moments.get(name, ()))
        if name != drawn[0]:
            drawn[:] = [name, 0]
            figures.show(rank_IC_here=NONE)
            draw(predicted, [], [])
        if not kept or kept[-1].t_s == drawn[1]:
            return
        drawn[1] = kept[-1].t_s
        ic, count = follow.ic(name, horizon_s)
        figures.show(rank_IC_here=f"{fixed(ic, 3)} of {count:,} s")
        mids = {m.t_s: m.mid for m in kept}
        came = [
            [m.t_s * 1000, finite(1e4 * math.log(mids[m.t_s + horizon_s] / m.mid))]
            for m in kept
            if m.t_s + horizon_s in mids
        ]
        draw(predicted, [[m.t_s * 1000, finite(m.expected_bps)] for m in kept], came)

    def _record(found: Mapping[str, Any]) -> None:
        figures.show(**_figures(found))
        points = [[end // 1_000_000, *values] for end, *values in found["rolling"]]
        limits = [[p[0], found["decay"]["reference"]] for p in points]
        draw(rolling, *([[p[0], round(p[n], 4)] for p in points] for n in (1, 2, 3)), limits)
        bins = found["reliability"]
        draw(
            reliable,
            [[said, came] for said, came, _ in bins],
            [[said, came - error] for said, came, error in bins],
            [[said, came + error] for said, came, error in bins],
            [[said, said] for said, _, _ in bins],
        )
        challenger.set_text(_challenger(found["challenger"]))
        versions = [f"version {each}" for each in found["importance"]["versions"]]
        important.clear()
        with important:
            table(("feature", *versions), "no version is in the lake")([
                [name, *(percent(value) for value in shares)]
                for name, shares in found["importance"]["shares"].items()
            ])  # fmt: skip

    return renew


def _served() -> tuple[ui.echart, ui.echart]:
    """The charts of the rank IC in service and of the calibration."""
    with ui.element("div").classes("grid grid-cols-1 lg:grid-cols-2 gap-4 w-full"):
        with ui.column().classes("gap-1 w-full"):
            section(
                "Rank IC in service",
                "mean of the last 24 hours, and its 95 % bounds; the reference of decay",
            )
            rolling = lines(
                "Rank IC",
                ("rank IC", "lower", "upper", "reference"),
                (LINE, MUTED, MUTED, SECOND),
                "",
            )
        with ui.column().classes("gap-1 w-full"):
            section(
                "Calibration of the sign",
                "said: probability of the right sign; came: share that was right, with 95 % bounds",
            )
            reliable = chart(
                "h-56",
                xAxis={"type": "value", "scale": True, "name": "said", "axisLabel": {"color": MUTED}},
                yAxis={"type": "value", "scale": True, "name": "came", "axisLabel": {"color": MUTED},
                       "splitLine": {"lineStyle": {"opacity": 0.25}}},
                series=[
                    {"name": name, "type": kind, "showSymbol": False, "color": color, "data": []}
                    for name, kind, color in (
                        ("came", "scatter", LINE), ("lower", "line", MUTED), ("upper", "line", MUTED),
                        ("as said", "line", SECOND),
                    )
                ],
            )  # fmt: skip
    return rolling, reliable


def _figures(found: Mapping[str, Any]) -> dict[str, str]:
    decay, (slope, error) = found["decay"], found["slope"]
    rolling: Sequence[Any] = found["rolling"]
    of = "no limit: nothing can decay" if decay["limit"] is None else f"of {fixed(decay['limit'])}"
    return {
        "trained to": found["trained_to"],
        "rank IC stated": fixed(found["ic_stated"], 4),
        "rank IC served": "{} ({} to {})".format(*(fixed(v, 3) for v in rolling[-1][1:]))
        if rolling
        else NONE,
        "decay statistic": f"{fixed(decay['statistic'])} {of}",
        "decay alarm": "none"
        if decay["alarm_ns"] is None
        else f"since {utc_time(decay['alarm_ns'])}",
        "calibration slope": NONE if slope is None else f"{fixed(slope)} ± {fixed(error)}",
        "coverage": percent(found["coverage"]),
        "false signals": percent(found["false_net"]),
        "served": f"{found['decisions']:,} decisions",
    }


def _lacks(found: Mapping[str, Any]) -> str:
    """What there is not yet, and what brings it."""
    if not found["decisions"]:
        return (
            "no served decision with its label is in the lake yet: they come at the end of each hour that "
            "`l2 live` runs"
        )
    if not found["rolling"]:
        return "the rank IC in service is shown after three hours that are over"
    return ""


def _challenger(found: str | Mapping[str, Any]) -> str:
    if isinstance(found, str):
        return (
            f"{found}; give a version the alias `challenger`, and the worker runs it in its shadow"
        )
    return (
        f"challenger {found['challenger']} less champion {found['champion']}: rank IC "
        f"{found['difference']:+.4f}, between {found['lower']:+.4f} and {found['upper']:+.4f} over "
        f"{found['hours']} hours; better: {found['better']}"
    )
