"""The cost report of `l2 tca`: shortfall in parts, benchmarks, estimates, attribution, markouts, orders.

One HTML file. Figures are those of `execution.tca.figures`; pictures draw the rows behind them.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
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
    rests,
)
from market.console import bps, estimate, fixed, interval, percent
from orchestration import report_page
from orchestration.backtest.span import instant_text
from orchestration.tca import arms, carry

Rows = Sequence[Mapping[str, Any]]

#: Points that a picture draws, at most.
_MAX_POINTS: Final = 4_000
#: Where the log axis of times to fill begins (seconds).
_MIN_FILL_S: Final = 0.01
#: Groups of fewer parents are in the table, not in pictures.
_MIN_PARENTS: Final = 5
#: Findings that are listed one by one, at most.
_MAX_LISTED: Final = 40

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
Implementation shortfall in bps of the value at the decision, positive = paid. <i>Delay</i> is the move
of the mid until the first order, <i>spread</i> the fills against the mid at their time (negative when
earned), <i>impact</i> what our own orders did to the mid, <i>timing</i> what the mid would have done
anyway, <i>opportunity</i> the unfilled rest, valued at the end. With the fees, the parts add up to the
total of every parent to 1e-9. Intervals are 95 %, from a block bootstrap over instants: parents decided
at one instant are one observation."""


def document(result: Mapping[str, Any], rows: Mapping[str, Rows]) -> str:
    """The page of ``result`` (`figures`), with pictures of ``rows``, the tables that it was made from."""
    measured = [row for row in rows["parent_costs"] if row["total_bps"] is not None]
    title = f"Execution costs, {' to '.join(dict.fromkeys(result['dates']))}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(', '.join(result['symbols']))}, {result['source']} data</p>",
        _cards(result, measured),
        f"<p>{_READING}</p>",
    ]
    if measured:
        body += [
            "<h2>Cost of parents, in parts</h2>",
            _parts_picture(result),
            _main_table(result),
            _impact_note(result),
            *_arms(result),
            *carry.section(result),
            "<h2>Parent by parent</h2>",
            _parents_picture(measured),
            "<h2>Against benchmarks</h2>",
            _benchmarks_note(),
            _benchmarks_table(result),
            "<h2>The estimate before the trade, and its error</h2>",
            *_estimates(result, measured),
            "<h2>Attribution</h2>",
            "<p>Means with 95 % intervals. Volatility is cut into thirds of the parents of each "
            "symbol.</p>",
            _attribution_picture(result),
            *_attribution_tables(result),
        ]
    if rows["fill_markouts"]:
        body += [
            "<h2>Markouts</h2>",
            "<p>The move of the mid after a fill, in bps of its price: positive = our way. For orders "
            "that ended unfilled, the same from their end at their last price: what a fill there would "
            "have brought. Weighted by quantity within a parent.</p>",
            _markouts_picture(result),
            _markouts_table(result),
        ]
    if rows["order_outcomes"]:
        resting = [row for row in rows["order_outcomes"] if rests(row)]
        body += [
            "<h2>Orders</h2>",
            _orders_picture(resting) if resting else "<p>None of them rested in the book.</p>",
            _orders_table(result),
        ]
    body += ["<h2>Records to check</h2>", *_findings(result, rows["cost_findings"])]
    return report_page.document(title, body, _STYLE)


def _cards(result: Mapping[str, Any], measured: Rows) -> str:
    lots = sum(row["filled_lots"] for row in measured)
    maker = sum(
        row["filled_lots"] * as_float(row["maker_share"]) for row in measured if row["filled_lots"]
    )
    whole = result["overall"]
    mean, low, high, _ = whole["total_bps"]
    states = ", ".join(f"{count:,} {state}" for state, count in result["states"].items())
    cards = [
        (f"{bps(mean)} bps", f"all-in, 95 % {interval(low, high, bps)}"),
        (f"{result['parents']:,} parents", states),
        (f"{result['traded_usdt']:,.0f} USDT", "traded"),
        (percent(maker / lots if lots else None), "of the filled quantity as maker"),
        (f"{bps(whole['error_bps'][0])} bps", "mean error of the estimate"),
        (f"{sum(result['findings'].values()):,}", "findings in the records"),
    ]  # fmt: skip
    inner = "".join(
        f"<div class=card><b>{html.escape(figure)}</b><span>{html.escape(label)}</span></div>"
        for figure, label in cards
    )
    return f"<div class=cards>{inner}</div>"


def _main_table(result: Mapping[str, Any]) -> str:
    head, *lines = main_table(result)
    return report_page.table(lines, head, text_columns=3)


def _arms(result: Mapping[str, Any]) -> list[str]:
    if not result["arms"]:
        return []
    parts = [
        "<h2>A/B of execution</h2>",
        "<p>Parents dealt at random between two arms, in pairs of one symbol, size and volatility. The "
        "interval of the difference holds at every look at once: stop when it excludes zero.</p>",
    ]
    for one in result["arms"]:
        parts += [
            report_page.table(arms.lines(one), arms.HEAD),
            f"<p>{html.escape(arms.sentence(one))}</p>",
        ]
    return parts


def _impact_note(result: Mapping[str, Any]) -> str:
    methods = {
        "control": "against the same market without us (a replay is its own control: our orders move "
        "nobody there, so impact is zero)",
        "propagator": "by a propagator model",
        "none": "not at all: it is in timing",
        "cut": "not at all, since their process ended before them: it is in spread",
    }
    parts = "; ".join(
        f"of {count:,} parents {methods[method]}" for method, count in result["impact_by"].items()
    )
    return (
        f"<p>Own impact was separated from drift {html.escape(parts)}. <i>Foretold</i> is the part of "
        "timing that the signal at the decision had predicted, and no part of the sum.</p>"
    )


def _benchmarks_note() -> str:
    return (
        "<p>The fills' mean price against the mid at arrival (when the first order was sent), the mean "
        "mid of the interval from there to the end, the mean price of others' trades in it, and the mid "
        "at the deadline. Positive = dearer than the benchmark, bps [95 %].</p>"
    )


def _benchmarks_table(result: Mapping[str, Any]) -> str:
    return report_page.table(
        [
            (row["algorithm"], *(estimate(*row[name][:3]) for name in BENCHMARKS),
             f"{row['arrival'][3]:,}")
            for row in result["benchmarks"]
        ],
        ("algorithm", "arrival", "interval TWAP", "interval VWAP", "close", "instants"),
    )  # fmt: skip


def _estimates(result: Mapping[str, Any], measured: Rows) -> list[str]:
    lines = result["estimates"]
    if not lines:
        return ["<p>No parent of these carries an estimate.</p>"]
    return [
        "<p>The desk records what a parent should cost when it starts. Error = outcome minus estimate; "
        "<i>timing</i> is compared with delay, timing and opportunity together. <i>Within risk</i>: "
        "outcomes no further from the estimate than its stated standard deviation (68 % where errors "
        "are normal).</p>",
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


def _attribution_tables(result: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    for name in DIMENSIONS:
        lines = result["attribution"][name]
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


def _markouts_table(result: Mapping[str, Any]) -> str:
    return report_page.table(
        [
            (
                row["what"] if row["queue"] == "all" else f"\u2003{row['queue']}",
                f"{row['rows']:,}", f"{row['1s'][3]:,}",
                *(estimate(*row[f"{horizon}s"][:3]) for horizon in MARKOUTS_S),
            )
            for row in result["markouts"]
        ],
        ("outcome, and queue ahead", "rows", "parents", *(f"{h} s" for h in MARKOUTS_S)),
    )  # fmt: skip


def _orders_table(result: Mapping[str, Any]) -> str:
    return report_page.table(
        [
            (
                row["algorithm"], row["type"],
                ", ".join(f"{count:,} {end}" for end, count in row["ends"].items()),
                f"{row['orders']:,}", f"{row['with_fills']:,}", percent(row["filled_share"]),
                percent(row["maker_share"]),
                fixed(row["median_first_fill_s"]),
                f"{row['amends']:,}",
            )
            for row in result["orders"]
        ],
        ("algorithm", "type", "ends", "orders", "with fills", "lots filled", "maker",
         "median first fill, s", "amends"),
        text_columns=3,
    )  # fmt: skip


def _findings(result: Mapping[str, Any], rows: Rows) -> list[str]:
    if not rows:
        return [
            "<p>None: every fill reconciles with an order and is in the cost of its parent, every parent "
            "was measured and filled, every order ended.</p>"
        ]
    listed = [
        (
            row["kind"], row["symbol"], row["venue"], row["client_id"] or row["parent_id"],
            instant_text(row["time_ns"]), row["detail"],
        )
        for row in rows[:_MAX_LISTED]
    ]  # fmt: skip
    cut = len(rows) > _MAX_LISTED
    return [
        report_page.table([(kind, f"{count:,}") for kind, count in result["findings"].items()]),
        f"<p>{f'The first {_MAX_LISTED} of {len(rows):,}:' if cut else ''}</p>",
        report_page.table(
            listed, ("what", "symbol", "venue", "order or parent", "when", "detail"), text_columns=6
        ),
    ]


# -- pictures --------------------------------------------------------------------------------------


def _parts_picture(result: Mapping[str, Any]) -> str:
    """Parts as stacked bars, earned ones to the left, and the total with its interval."""
    lines = result["costs"]
    figure, [[ax]] = report_page.axes(1, (1,), 0.9 + 0.42 * len(lines))
    for place, row in enumerate(lines):
        ends = {1: 0.0, -1: 0.0}
        for part in PARTS:
            value = row[part] or 0.0
            sign = 1 if value >= 0 else -1
            ax.barh(place, value, left=ends[sign], height=0.55, color=report_page.COST_PARTS[part],
                       label=part.removesuffix("_bps") if place == 0 else None)  # fmt: skip
            ends[sign] += value
        _whisker(ax, row["total_bps"], place, "#111111")
    ax.axvline(0, color="#333333", lw=0.8)
    ax.set_yticks(range(len(lines)), [_label(row, lines) for row in lines])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("bps of the decision value; ◆ total with 95 % interval")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(PARTS))
    return report_page.svg(figure)


def _label(row: Mapping[str, Any], lines: Rows) -> str:
    """Symbol and algorithm; the venue too where there are several."""
    venues = {each["venue"] for each in lines}
    names = [row["symbol"], row["algorithm"], *([row["venue"]] if len(venues) > 1 else [])]
    return " · ".join(names)


def _whisker(ax: Any, mean_interval: Sequence[Any], place: float, colour: str) -> None:
    """A mean with its 95 % interval, ``[mean, low, high, n]``, as a line."""
    mean, low, high, _ = mean_interval
    if mean is not None:
        if low is not None:
            ax.plot([low, high], [place, place], color=colour, lw=1.4, zorder=4)
        ax.plot(mean, place, "D", color=colour, ms=5, zorder=5)


def _thin(rows: Rows) -> Rows:
    return rows[:: max(1, -(-len(rows) // _MAX_POINTS))]


def _by_algorithm(rows: Rows) -> Iterator[tuple[str, str, Rows]]:
    """Colour, name and rows of each algorithm."""
    names = sorted({row["algorithm"] for row in rows})
    for colour, name in zip(report_page.SERIES, names, strict=False):
        yield colour, name, [row for row in rows if row["algorithm"] == name]


def _bins(values: Sequence[float], tail: float) -> tuple[float, float, Any]:
    """The quantiles ``tail`` and 1 - ``tail``, and 40 bins between them."""
    low, high = np.quantile(values, (tail, 1 - tail))
    return low, high, np.linspace(low, high if high > low else low + 1, 41)


def _parents_picture(measured: Rows) -> str:
    """Each parent's cost over time, and the distribution of costs, by algorithm."""
    figure, [[left, right]] = report_page.axes(1, (1,), 3.2, columns=2, width_ratios=(2.2, 1))
    low, high, edges = _bins([row["total_bps"] for row in measured], 0.005)
    for colour, name, rows in _by_algorithm(measured):
        shown = _thin(rows)
        times = np.array([row["decision_ns"] for row in shown], "datetime64[ns]")
        costs = np.clip([row["total_bps"] for row in shown], low, high)
        left.plot(times, costs, ".", ms=3.5, alpha=0.6, color=colour, label=name)
        costs = np.clip([row["total_bps"] for row in rows], low, high)
        right.hist(costs, bins=edges, color=colour, alpha=0.6)
    left.axhline(0, color="#333333", lw=0.8)
    left.set_ylabel("all-in cost, bps")
    report_page.concise_dates(left)
    right.set_xlabel("all-in cost, bps (outliers in the last bins)")
    right.set_ylabel("parents")
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6)
    return report_page.svg(figure)


def _estimates_picture(measured: Rows) -> str:
    """Outcome against estimate, and the distribution of the error, by algorithm."""
    measured = [row for row in measured if row["estimate_bps"] is not None]
    figure, [[left, right]] = report_page.axes(1, (1,), 3.2, columns=2)
    low, high, edges = _bins([row["error_bps"] for row in measured], 0.01)
    for colour, name, rows in _by_algorithm(measured):
        shown = _thin(rows)
        estimated = [row["estimate_bps"] for row in shown]
        totals = [row["total_bps"] for row in shown]
        left.plot(estimated, totals, ".", ms=3.5, alpha=0.6, color=colour, label=name)
        errors = np.clip([row["error_bps"] for row in rows], low, high)
        right.hist(errors, bins=edges, color=colour, alpha=0.6)
    estimated = [row["estimate_bps"] for row in measured]
    ends = np.array([min(estimated), max(estimated)])
    left.plot(ends, ends, color="#333333", lw=0.9, ls="--")
    left.set(xlabel="estimate, bps", ylabel="outcome, bps (dashed: equal)")
    right.axvline(0, color="#333333", lw=0.8)
    right.set(xlabel="outcome minus estimate, bps", ylabel="parents")
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6)
    return report_page.svg(figure)


def _attribution_picture(result: Mapping[str, Any]) -> str:
    """Mean cost with its interval by each value of the dimensions that have more than one."""
    shown = [name for name in DIMENSIONS if len(result["attribution"][name]) > 1]
    if not shown:
        return ""
    rows = -(-len(shown) // 3)
    figure, grid = report_page.axes(
        rows, (1,) * rows, 2.6 * rows, columns=min(3, len(shown)), layout="constrained"
    )
    for ax, name in zip(grid.flat, shown, strict=False):
        lines = result["attribution"][name]
        for place, row in enumerate(lines):
            _whisker(ax, row["total_bps"], place, report_page.SERIES[0])
        ax.set_yticks(range(len(lines)), [f"{row['value']}  n {row['parents']:,}" for row in lines],
                         fontsize=8 if len(lines) < 13 else 5)  # fmt: skip
        ax.set_ylim(len(lines) - 0.5, -0.5)
        ax.set_title(f"by {name}", fontsize=9, loc="left")
        ax.set_xlabel("all-in, bps")
    for unused in grid.flat[len(shown) :]:
        unused.set_visible(False)
    return report_page.svg(figure)


def _markouts_picture(result: Mapping[str, Any]) -> str:
    """Mean markouts by outcome, and of maker fills by the queue ahead."""
    panels = {
        "by outcome": [row for row in result["markouts"] if row["queue"] == "all"],
        "maker fills, by the queue ahead": [
            row
            for row in result["markouts"]
            if row["what"] == "maker fill"
            and row["queue"] != "all"
            and row["1s"][3] >= _MIN_PARENTS
        ],
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    figure, [grid] = report_page.axes(1, (1,), 3.2, columns=len(panels))
    for ax, (title, lines) in zip(grid, panels.items(), strict=True):
        for n, (colour, row) in enumerate(zip(report_page.SERIES, lines, strict=False)):
            at = [horizon * (1 + 0.03 * (n - len(lines) / 2)) for horizon in MARKOUTS_S]
            means = [as_float(row[f"{horizon}s"][0]) for horizon in MARKOUTS_S]
            label = row["what"] if row["queue"] == "all" else row["queue"]
            ax.plot(at, means, "o-", ms=3.5, color=colour, label=label)
            for x, horizon in zip(at, MARKOUTS_S, strict=True):
                _, low, high, _ = row[f"{horizon}s"]
                if low is not None:
                    ax.plot([x, x], [low, high], color=colour, lw=1, alpha=0.7)
        ax.axhline(0, color="#333333", lw=0.8)
        ax.set(xscale="log", xlabel="seconds after", ylabel="markout, bps")
        ax.set_xticks(MARKOUTS_S, [str(horizon) for horizon in MARKOUTS_S])
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=8)
        ax.set_title(title, fontsize=9, loc="left")
    return report_page.svg(figure)


def _orders_picture(resting: Rows) -> str:
    """Share of resting orders with a first fill within a time, by algorithm and by queue ahead."""
    by_algorithm: dict[str, list[Mapping[str, Any]]] = {}
    by_queue: dict[str, list[Mapping[str, Any]]] = {}
    bounds = queue_bounds(resting)
    for row in resting:
        by_algorithm.setdefault(row["algorithm"], []).append(row)
        queue = queue_third(as_float(row["queue_ahead_lots"]), bounds[row["symbol"]])
        by_queue.setdefault(queue, []).append(row)
    by_queue = {name: members for name, members in by_queue.items() if len(members) >= _MIN_PARENTS}
    panels = {"by algorithm": by_algorithm, "by the queue ahead": by_queue}
    panels = {title: groups for title, groups in panels.items() if groups}
    figure, [grid] = report_page.axes(1, (1,), 2.8, columns=len(panels))
    for ax, (title, groups) in zip(grid, panels.items(), strict=True):
        shown = [name for name in (*QUEUES, *sorted(by_algorithm)) if name in groups]
        for colour, name in zip(report_page.SERIES, shown, strict=False):
            _survival(ax, groups[name], name, colour)
        ax.set(xscale="log", xlim=(_MIN_FILL_S, None), ylim=(0, 1.02), xlabel="seconds since sent",
                  ylabel="share with a fill")  # fmt: skip
        ax.set_title(title, fontsize=9, loc="left")
        ax.legend(frameon=False, fontsize=8)
    return report_page.svg(figure)


def _survival(ax: Any, orders: Rows, name: str, colour: str) -> None:
    """One minus the Kaplan-Meier estimate; an order that ends unfilled is censored there."""
    ends = sorted(
        (as_float(row["lived_s"] if row["first_fill_s"] is None else row["first_fill_s"]),
         row["first_fill_s"] is not None)
        for row in orders
    )  # fmt: skip
    at_risk, alive = len(ends), 1.0
    times, filled = [_MIN_FILL_S], [0.0]
    for seconds, has_fill in ends:
        if has_fill:
            alive *= 1 - 1 / at_risk
            times.append(max(seconds, _MIN_FILL_S))
            filled.append(1 - alive)
        at_risk -= 1
    ax.step(times, filled, where="post", color=colour, lw=1.3, label=f"{name} (n {len(ends):,})")
