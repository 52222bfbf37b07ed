"""The page of `l2 tca`: costs, benchmarks, estimates, markouts and attribution, one HTML file.

Every figure is `execution.tca.figures`'; the pictures draw the rows behind them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from execution.tca import MARKOUTS_S, PARTS
from execution.tca.figures import (
    BENCHMARKS,
    DIMENSIONS,
    QUEUES,
    as_float,
    main_table,
    queue_bounds,
    queue_third,
)
from market.console import bps, estimate, percent
from orchestration import report_page

Rows = Sequence[Mapping[str, Any]]

_COLOURS: Final = dict(
    zip(PARTS, ("#8c8c8c", "#4c72b0", "#c44e52", "#dd8452", "#937860", "#55a868"), strict=True)
)
_SERIES: Final = ("#2b5c9e", "#c9803a", "#5b9a68", "#8a63a8", "#a33b3b", "#5f6b7a", "#b59f2c")
#: A picture draws at most this many points.
_POINTS: Final = 4_000
#: Times to fill are drawn from here on (seconds).
_SOONEST_S: Final = 0.01
#: Groups of fewer parents are in the table alone.
_FEWEST: Final = 5
#: Findings that are listed one by one.
_LISTED: Final = 40

_STYLE: Final = (
    report_page.STYLE
    + """
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 1.2em 0; }
.card { border: 1px solid #e3e3e3; border-radius: 6px; padding: .5em .9em; flex: 1 1 auto; }
.card b { display: block; font-size: 1.35em; font-weight: 600; }
.card span { color: #777; font-size: 12px; }
body { max-width: 1200px; } p { max-width: 58em; }
td, th { white-space: nowrap; padding: 3px 7px; }
.text { text-align: left; } td.text { white-space: normal; } h3 { font-size: 1em; margin: 1.4em 0 .3em; }
"""
)

_READING: Final = """\
All costs are in bps of the value at the decision, positive = paid. <i>Delay</i> is the wait until the
first order, <i>spread</i> the fills against the mid of their moment (negative when earned),
<i>impact</i> what our own orders did to the mid, <i>timing</i> what the mid would have done anyway,
<i>opportunity</i> what did not fill, valued at the end. The six add up to the total of every parent to
1e-9. Intervals are 95 %, from a block bootstrap over instants: parents decided at one instant are one
observation."""


def document(found: Mapping[str, Any], rows: Mapping[str, Rows]) -> str:
    """The page of these figures, with pictures of the rows that they were made from."""
    measured = [row for row in rows["parent_costs"] if row["total_bps"] is not None]
    title = f"Execution costs, {' to '.join(dict.fromkeys(found['dates']))}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(', '.join(found['symbols']))}, {found['source']} data</p>",
        _cards(found, measured),
        f"<p>{_READING}</p>",
    ]
    if measured:
        body += [
            "<h2>What parents cost, in parts</h2>",
            _parts_picture(found),
            _main_table(found),
            _impact_note(found),
            "<h2>Parent by parent</h2>",
            _parents_picture(measured),
            "<h2>Against benchmarks</h2>",
            _benchmarks_note(),
            _benchmarks_table(found),
            "<h2>The estimate before the trade, and its error</h2>",
            *_estimates(found, measured),
            "<h2>What the cost may be laid to</h2>",
            "<p>Means with 95 % intervals. Volatility is cut into thirds of the parents of each "
            "symbol.</p>",
            _attribution_picture(found),
            *_attribution_tables(found),
        ]
    if rows["fill_markouts"]:
        body += [
            "<h2>Markouts</h2>",
            "<p>Where the mid went after a fill, in bps of its price: positive = our way. For what did "
            "not fill, the same from the moment it was given up, at the price it was left with: what a "
            "fill there would have brought. Weighted by quantity within a parent.</p>",
            _markouts_picture(found),
            _markouts_table(found),
        ]
    if rows["order_outcomes"]:
        resting = [row for row in rows["order_outcomes"] if row["order_type"] == "Limit"]
        body += [
            "<h2>Orders</h2>",
            _orders_picture(resting) if resting else "<p>None of them rested.</p>",
            _orders_table(found),
        ]
    body += ["<h2>What is not as it should be</h2>", *_findings(found, rows["cost_findings"])]
    return report_page.document(title, body, _STYLE)


def _cards(found: Mapping[str, Any], measured: Rows) -> str:
    lots = sum(row["filled_lots"] for row in measured)
    maker = sum(
        row["filled_lots"] * as_float(row["maker_share"]) for row in measured if row["filled_lots"]
    )
    whole = found["overall"]
    states = ", ".join(f"{count:,} {state}" for state, count in found["states"].items())
    cards = [
        (f"{bps(whole['total_bps'][0])} bps", f"all-in, 95 % {bps(whole['total_bps'][1])} to "
                                              f"{bps(whole['total_bps'][2])}"),
        (f"{found['parents']:,} parents", states),
        (f"{found['traded_usdt']:,.0f} USDT", "traded"),
        (percent(maker / lots if lots else None), "of the filled quantity made"),
        (f"{bps(whole['error_bps'][0])} bps", "mean error of the estimate"),
        (f"{sum(found['findings'].values()):,}", "findings in the records"),
    ]  # fmt: skip
    inner = "".join(
        f"<div class=card><b>{html.escape(figure)}</b><span>{html.escape(label)}</span></div>"
        for figure, label in cards
    )
    return f"<div class=cards>{inner}</div>"


def _main_table(found: Mapping[str, Any]) -> str:
    head, *lines = main_table(found)
    return report_page.table(lines, head, text_columns=3)


def _impact_note(found: Mapping[str, Any]) -> str:
    told = {
        "control": "against the same market without us (a replay is one by itself: our orders move "
        "nobody there, so impact is zero)",
        "propagator": "by a propagator model",
        "none": "not at all: it is in timing",
    }
    parts = "; ".join(
        f"of {count:,} parents {told[way]}" for way, count in found["impact_by"].items()
    )
    return (
        f"<p>Own impact was told from drift, {html.escape(parts)}. <i>Foretold</i> is the part of timing "
        "that the signal at the decision had announced, and no part of the sum.</p>"
    )


def _benchmarks_note() -> str:
    return (
        "<p>The fills' mean price against the mid at arrival (when the first order was sent), the mean "
        "mid of the interval from there to the end, the mean price of others' trades in it, and the mid "
        "at the deadline. Positive = dearer than the benchmark, bps [95 %].</p>"
    )


def _benchmarks_table(found: Mapping[str, Any]) -> str:
    return report_page.table(
        [
            (row["algorithm"], *(estimate(*row[name][:3]) for name in BENCHMARKS),
             f"{row['arrival'][3]:,}")
            for row in found["benchmarks"]
        ],
        ("algorithm", "arrival", "interval TWAP", "interval VWAP", "close", "instants"),
    )  # fmt: skip


def _estimates(found: Mapping[str, Any], measured: Rows) -> list[str]:
    lines = found["estimates"]
    if not lines:
        return ["<p>No parent of these carries an estimate.</p>"]
    return [
        "<p>The desk writes down what a parent should cost when it starts. Error = outcome minus "
        "estimate; <i>timing</i> is held against delay, timing and opportunity together. <i>Within "
        "risk</i>: outcomes no further from the estimate than its stated standard deviation (68 % "
        "where errors are normal).</p>",
        _estimates_picture(measured),
        report_page.table(
            [
                (
                    row["algorithm"], f"{row['parents']:,}", bps(row["estimate_bps"]),
                    bps(row["outcome_bps"]), estimate(*row["bias_bps"][:3]), bps(row["rmse_bps"]),
                    percent(row["within_risk"]),
                )
                for row in lines
            ],
            ("algorithm", "parents", "estimate", "outcome", "bias [95 %]", "RMSE", "within risk"),
        ),
        "<h3>Bias by part</h3>",
        report_page.table(
            [
                (row["algorithm"], *(estimate(*missed[:3]) for missed in row["parts"].values()))
                for row in lines
            ],
            ("algorithm", *lines[0]["parts"]),
        ),
    ]  # fmt: skip


def _attribution_tables(found: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    for name in DIMENSIONS:
        lines = found["attribution"][name]
        parts += [
            f"<h3>By {html.escape(name)}</h3>",
            report_page.table(
                [
                    (
                        row["value"], f"{row['parents']:,}", f"{row['total_bps'][3]:,}",
                        estimate(*row["total_bps"][:3]), *(bps(row[part]) for part in PARTS),
                        percent(row["maker_share"]),
                    )
                    for row in lines
                ],
                (name, "parents", "instants", "all-in [95 %]",
                 *(part.removesuffix("_bps") for part in PARTS), "maker"),
            ),
        ]  # fmt: skip
    return parts


def _markouts_table(found: Mapping[str, Any]) -> str:
    return report_page.table(
        [
            (
                row["what"] if row["queue"] == "all" else f"\u2003{row['queue']}",
                f"{row['rows']:,}", f"{row['1s'][3]:,}",
                *(estimate(*row[f"{horizon}s"][:3]) for horizon in MARKOUTS_S),
            )
            for row in found["markouts"]
        ],
        ("what, and queue in front", "rows", "parents", *(f"{h} s" for h in MARKOUTS_S)),
    )  # fmt: skip


def _orders_table(found: Mapping[str, Any]) -> str:
    return report_page.table(
        [
            (
                row["algorithm"], row["type"],
                ", ".join(f"{count:,} {end}" for end, count in row["ends"].items()),
                f"{row['orders']:,}", f"{row['with_fills']:,}", percent(row["filled_share"]),
                percent(row["maker_share"]),
                "–" if row["median_first_fill_s"] is None else f"{row['median_first_fill_s']:.2f}",
                f"{row['amends']:,}",
            )
            for row in found["orders"]
        ],
        ("algorithm", "type", "how they ended", "orders", "with fills", "lots filled", "maker",
         "median first fill, s", "amends"),
        text_columns=3,
    )  # fmt: skip


def _findings(found: Mapping[str, Any], rows: Rows) -> list[str]:
    if not rows:
        return [
            "<p>Nothing: every fill belongs to an order and is in the cost of its parent, every parent "
            "was measured and filled, every order ended.</p>"
        ]
    listed = [
        (
            row["kind"], row["symbol"], row["venue"], row["client_id"] or row["parent_id"],
            _instant(row["time_ns"]), row["detail"],
        )
        for row in rows[:_LISTED]
    ]  # fmt: skip
    more = f"<p>The first {_LISTED} of {len(rows):,}:</p>" if len(rows) > _LISTED else "<p></p>"
    return [
        report_page.table([(kind, f"{count:,}") for kind, count in found["findings"].items()]),
        more,
        report_page.table(
            listed, ("what", "symbol", "venue", "order or parent", "when", "detail"), text_columns=6
        ),
    ]


def _instant(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


# -- pictures --------------------------------------------------------------------------------------


def _parts_picture(found: Mapping[str, Any]) -> str:
    """Parts as stacked bars, what is earned to the left, and the total with its interval."""
    lines = found["costs"]
    figure, [[drawn]] = report_page.axes(1, (1,), 0.9 + 0.42 * len(lines))
    for place, row in enumerate(lines):
        ends = {1: 0.0, -1: 0.0}
        for part in PARTS:
            value = row[part] or 0.0
            sign = 1 if value >= 0 else -1
            drawn.barh(place, value, left=ends[sign], height=0.55, color=_COLOURS[part],
                       label=part.removesuffix("_bps") if place == 0 else None)  # fmt: skip
            ends[sign] += value
        _whisker(drawn, row["total_bps"], place, "#111111")
    drawn.axvline(0, color="#333333", lw=0.8)
    drawn.set_yticks(range(len(lines)), [_named(row, lines) for row in lines])
    drawn.invert_yaxis()
    drawn.grid(axis="y", visible=False)
    drawn.set_xlabel("bps of the decision value; ◆ total with 95 % interval")
    drawn.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(PARTS))
    return report_page.svg(figure)


def _named(row: Mapping[str, Any], lines: Rows) -> str:
    """A line's name: the venue only where there are several."""
    venues = {each["venue"] for each in lines}
    names = [row["symbol"], row["algorithm"], *([row["venue"]] if len(venues) > 1 else [])]
    return " · ".join(names)


def _whisker(drawn: Any, found: Sequence[Any], place: float, colour: str) -> None:
    mean, low, high, _ = found
    if mean is not None:
        if low is not None:
            drawn.plot([low, high], [place, place], color=colour, lw=1.4, zorder=4)
        drawn.plot(mean, place, "D", color=colour, ms=5, zorder=5)


def _thin(rows: Rows) -> Rows:
    return rows[:: max(1, -(-len(rows) // _POINTS))]


def _parents_picture(measured: Rows) -> str:
    """Each parent's cost over time, and the distribution of costs, by algorithm."""
    figure, [[left, right]] = report_page.axes(1, (1,), 3.2, columns=2, width_ratios=(2.2, 1))
    totals = [row["total_bps"] for row in measured]
    low, high = np.quantile(totals, (0.005, 0.995))
    edges = np.linspace(low, high if high > low else low + 1, 41)
    for colour, name in zip(_SERIES, sorted({row["algorithm"] for row in measured}), strict=False):
        mine = [row for row in measured if row["algorithm"] == name]
        shown = _thin(mine)
        times = np.array([row["decision_ns"] for row in shown], "datetime64[ns]")
        left.plot(times, np.clip([row["total_bps"] for row in shown], low, high), ".", ms=3.5,
                  alpha=0.6, color=colour, label=name)  # fmt: skip
        right.hist(np.clip([row["total_bps"] for row in mine], low, high), bins=edges,
                   color=colour, alpha=0.6)  # fmt: skip
    left.axhline(0, color="#333333", lw=0.8)
    left.set_ylabel("all-in cost, bps")
    report_page.concise_dates(left)
    right.set_xlabel("all-in cost, bps (ends gather the outliers)")
    right.set_ylabel("parents")
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6)
    return report_page.svg(figure)


def _estimates_picture(measured: Rows) -> str:
    """Outcome against estimate, and the distribution of the error, by algorithm."""
    told = [row for row in measured if row["estimate_bps"] is not None]
    figure, [[left, right]] = report_page.axes(1, (1,), 3.2, columns=2)
    errors = [row["error_bps"] for row in told]
    low, high = np.quantile(errors, (0.01, 0.99))
    edges = np.linspace(low, high if high > low else low + 1, 41)
    for colour, name in zip(_SERIES, sorted({row["algorithm"] for row in told}), strict=False):
        mine = [row for row in told if row["algorithm"] == name]
        shown = _thin(mine)
        left.plot([row["estimate_bps"] for row in shown], [row["total_bps"] for row in shown], ".",
                  ms=3.5, alpha=0.6, color=colour, label=name)  # fmt: skip
        right.hist(np.clip([row["error_bps"] for row in mine], low, high), bins=edges, color=colour,
                   alpha=0.6)  # fmt: skip
    ends = np.array(
        [min(row["estimate_bps"] for row in told), max(row["estimate_bps"] for row in told)]
    )
    left.plot(ends, ends, color="#333333", lw=0.9, ls="--")
    left.set(xlabel="estimate, bps", ylabel="outcome, bps (dashed: equal)")
    right.axvline(0, color="#333333", lw=0.8)
    right.set(xlabel="outcome minus estimate, bps", ylabel="parents")
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6)
    return report_page.svg(figure)


def _attribution_picture(found: Mapping[str, Any]) -> str:
    """Mean cost with its interval by each value of the dimensions that have more than one."""
    shown = [name for name in DIMENSIONS if len(found["attribution"][name]) > 1]
    if not shown:
        return ""
    rows = -(-len(shown) // 3)
    figure, grid = report_page.axes(
        rows, (1,) * rows, 2.6 * rows, columns=min(3, len(shown)), layout="constrained"
    )
    for drawn, name in zip(grid.flat, shown, strict=False):
        lines = found["attribution"][name]
        for place, row in enumerate(lines):
            _whisker(drawn, row["total_bps"], place, _SERIES[0])
        drawn.set_yticks(range(len(lines)), [f"{row['value']}  n {row['parents']:,}" for row in lines],
                         fontsize=8 if len(lines) < 13 else 5)  # fmt: skip
        drawn.set_ylim(len(lines) - 0.5, -0.5)
        drawn.set_title(f"by {name}", fontsize=9, loc="left")
        drawn.set_xlabel("all-in, bps")
    for unused in grid.flat[len(shown) :]:
        unused.set_visible(False)
    return report_page.svg(figure)


def _markouts_picture(found: Mapping[str, Any]) -> str:
    """Mean markouts by what happened, and of fills that made by the queue in front."""
    panels = {
        "by what happened": [row for row in found["markouts"] if row["queue"] == "all"],
        "fills that made, by the queue in front": [
            row
            for row in found["markouts"]
            if row["what"] == "maker fill" and row["queue"] != "all" and row["1s"][3] >= _FEWEST
        ],
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    figure, [grid] = report_page.axes(1, (1,), 3.2, columns=len(panels))
    for drawn, (title, lines) in zip(grid, panels.items(), strict=True):
        for n, (colour, row) in enumerate(zip(_SERIES, lines, strict=False)):
            at = [horizon * (1 + 0.03 * (n - len(lines) / 2)) for horizon in MARKOUTS_S]
            means = [as_float(row[f"{horizon}s"][0]) for horizon in MARKOUTS_S]
            label = row["what"] if row["queue"] == "all" else row["queue"]
            drawn.plot(at, means, "o-", ms=3.5, color=colour, label=label)
            for x, horizon in zip(at, MARKOUTS_S, strict=True):
                _, low, high, _ = row[f"{horizon}s"]
                if low is not None:
                    drawn.plot([x, x], [low, high], color=colour, lw=1, alpha=0.7)
        drawn.axhline(0, color="#333333", lw=0.8)
        drawn.set(xscale="log", xlabel="seconds after", ylabel="markout, bps")
        drawn.set_xticks(MARKOUTS_S, [str(horizon) for horizon in MARKOUTS_S])
        drawn.minorticks_off()
        drawn.legend(frameon=False, fontsize=8)
        drawn.set_title(title, fontsize=9, loc="left")
    return report_page.svg(figure)


def _orders_picture(resting: Rows) -> str:
    """Share of resting orders that had a first fill within a time, by algorithm and by queue."""
    by_algorithm: dict[str, list[Mapping[str, Any]]] = {}
    by_queue: dict[str, list[Mapping[str, Any]]] = {}
    bounds = queue_bounds(resting)
    for row in resting:
        by_algorithm.setdefault(row["algorithm"], []).append(row)
        queue = queue_third(as_float(row["queue_ahead_lots"]), bounds[row["symbol"]])
        by_queue.setdefault(queue, []).append(row)
    by_queue = {name: members for name, members in by_queue.items() if len(members) >= _FEWEST}
    panels = {"by algorithm": by_algorithm, "by the queue in front": by_queue}
    panels = {title: groups for title, groups in panels.items() if groups}
    figure, [grid] = report_page.axes(1, (1,), 2.8, columns=len(panels))
    for drawn, (title, groups) in zip(grid, panels.items(), strict=True):
        shown = [name for name in (*QUEUES, *sorted(by_algorithm)) if name in groups]
        for colour, name in zip(_SERIES, shown, strict=False):
            _survival(drawn, groups[name], name, colour)
        drawn.set(xscale="log", xlim=(_SOONEST_S, None), ylim=(0, 1.02), xlabel="seconds since sent",
                  ylabel="share with a fill")  # fmt: skip
        drawn.set_title(title, fontsize=9, loc="left")
        drawn.legend(frameon=False, fontsize=8)
    return report_page.svg(figure)


def _survival(drawn: Any, orders: Rows, name: str, colour: str) -> None:
    """One minus Kaplan and Meier's estimate: an order that ends unfilled is watched until then."""
    ends = sorted(
        (as_float(row["lived_s"] if row["first_fill_s"] is None else row["first_fill_s"]),
         row["first_fill_s"] is not None)
        for row in orders
    )  # fmt: skip
    at_risk, alive = len(ends), 1.0
    times, filled = [_SOONEST_S], [0.0]
    for seconds, came in ends:
        if came:
            alive *= 1 - 1 / at_risk
            times.append(max(seconds, _SOONEST_S))
            filled.append(1 - alive)
        at_risk -= 1
    drawn.step(times, filled, where="post", color=colour, lw=1.3, label=f"{name} (n {len(ends):,})")
