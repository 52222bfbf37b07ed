"""The study report of `l2 study`: goals, costs by algorithm, regimes, recordings; HTML or Markdown.

Figures are those of `proving.study.command.as_data` and `command.recorded_data`. A Markdown report has
its pictures in files beside it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from market.console import NONE, fixed, interval, percent
from orchestration import report_page

Data = Mapping[str, Any]
Cells = list[tuple[str, ...]]

_MARKOUTS: Final = ("1", "5", "30", "60")
_ORACLE: Final = "oracle"
#: The bound of the goal "never worse than market", bps.
_GOAL_BPS: Final = 0.3
_STYLE: Final = (
    report_page.STYLE
    + """
body { max-width: 1320px; } p { max-width: 58em; } td, th { white-space: nowrap; padding: 3px 6px; }
.text { text-align: left; }
"""
)

READING: Final = """\
Costs are in bps of the value at the decision, positive = paid, fees and the crossing of what was left at \
the deadline included. The same parents, a buy and a sell at the same instants of the same market, under \
every algorithm; in the engine our orders are in the book with everybody else's, so queue positions are \
exact and need no bounds. Impact is the difference from the same market without us. Intervals are 95 %, \
from resampling whole days. The oracle is filled as a maker at the best price that anybody took before \
the deadline, without queue or impact: a bound, not an algorithm."""

RECORDED: Final = """\
Recordings are minutes long: their results illustrate, and judge nothing. Parents overlap in time (each \
round of them in a market of its own), so there are fewer independent observations than parents. The \
queue models are shown beside each other: risk_averse is the pessimistic bound, power3 a generous model."""

GOAL_HEAD: Final = ("goal", "wanted", "found", "verdict")
CELL_HEAD: Final = (
    "size, deadline", "algorithm", "n", "all-in", "95 %", "less market", "95 %", "spread", "impact",
    "timing", "fees", "filled", "maker", "time s", "1 s", "5 s", "30 s", "60 s", "bias", "RMSE",
)  # fmt: skip
REGIME_HEAD: Final = ("divided by", "group", "n", "market", "router", "less market", "upper 95 %")
RECORDED_HEAD: Final = (
    "symbol", "size", "algorithm", "queue", "n", "all-in", "95 %", "less market", "95 %", "spread",
    "timing", "fees", "filled", "maker", "time s", "5 s", "60 s",
)  # fmt: skip
#: Columns of text at the left of each table; 2 where none is given.
_TEXT_COLUMNS: Final = {GOAL_HEAD: 4, RECORDED_HEAD: 4}


# -- tables ----------------------------------------------------------------------------------------


def goal_rows(goals: Sequence[Data]) -> Cells:
    """Each goal with its verdict."""
    return [
        (goal["name"], goal["wanted"], goal["found"], "holds" if goal["holds"] else "fails")
        for goal in goals
    ]


def cell_rows(cells: Sequence[Data]) -> Cells:
    """Costs by size, deadline and algorithm."""
    return [
        (
            cell["group"], cell["algorithm"], str(cell["total"]["n"]), fixed(cell["total"]["mean"]),
            _interval(cell["total"]), fixed(cell["difference"]["mean"]),
            _interval(cell["difference"]),
            *(fixed(cell[f"{part}_bps"]) for part in ("spread", "impact", "timing", "fees")),
            percent(cell["completion"]), percent(cell["maker_share"]),
            fixed(cell["time_to_fill_s"], 1),
            *(fixed(cell[f"markout_{horizon}s_bps"]) for horizon in _MARKOUTS),
            fixed(cell["bias"]["mean"]), fixed(cell["rmse_bps"]),
        )
        for group in groups_of(cells)
        for cell in cells
        if cell["group"] == group
    ]  # fmt: skip


def regime_rows(regimes: Mapping[str, Sequence[Data]]) -> Cells:
    """The router against market orders in every regime."""
    market = {
        (name, cell["group"]): cell["total"]["mean"]
        for name, cells in regimes.items()
        for cell in cells
        if cell["algorithm"] == "market"
    }
    return [
        (
            name, cell["group"], str(cell["total"]["n"]), fixed(market[name, cell["group"]]),
            fixed(cell["total"]["mean"]), fixed(cell["difference"]["mean"]),
            fixed(cell["difference"]["upper"]),
        )
        for name, cells in regimes.items()
        for cell in sorted(cells, key=lambda cell: str(cell["group"]))
        if cell["algorithm"] == "router"
    ]  # fmt: skip


def recorded_rows(recording: Data) -> Cells:
    """Costs of a recording by symbol, size, algorithm and queue model."""
    differences = {
        (each["symbol"], each["size_usdt"], each["algorithm"], each["queue"]): each
        for each in recording["differences"]
    }
    rows = []
    for each in recording["summaries"]:
        key = each["symbol"], each["size_usdt"], each["algorithm"], each["venue"]
        less = differences.get(key)
        rows.append(
            (
                each["symbol"], fixed(each["size_usdt"], 0), each["algorithm"], each["venue"],
                str(each["instants"]), fixed(each["total_bps"]),
                interval(each["low_bps"], each["high_bps"]),
                fixed(less["mean"]) if less else NONE, _interval(less) if less else NONE,
                *(fixed(each[f"{part}_bps"]) for part in ("spread", "timing", "fees")),
                percent(each["fill_rate"]), percent(each["maker_share"]),
                fixed(each["time_to_fill_s"], 1), fixed(each["markout_5s_bps"]),
                fixed(each["markout_60s_bps"]),
            )
        )  # fmt: skip
    return rows


def _interval(estimated: Data) -> str:
    return interval(estimated["low"], estimated["high"])


def groups_of(cells: Sequence[Data]) -> list[str]:
    """Sizes and deadlines, the short deadline first and the small size first."""
    order = {
        cell["group"]: (cell["deadline_s"], cell["size_usdt"] or 0.0)
        for cell in cells
        if cell["algorithm"] != _ORACLE
    }
    return sorted(order, key=lambda group: order[group])


def _algorithms(cells: Sequence[Data], group: str) -> list[Data]:
    """The cells of a group without the oracle's."""
    return [c for c in cells if c["group"] == group and c["algorithm"] != _ORACLE]


# -- pictures --------------------------------------------------------------------------------------


def costs_picture(cells: Sequence[Data]) -> Any:
    """All-in cost of every algorithm in every cell, in its parts, with intervals."""
    groups = groups_of(cells)
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure, grid = report_page.axes(
        rows, [1] * rows, 3.1 * rows, columns, sharey=True, layout="constrained"
    )
    for ax, group in zip(grid.flat, groups, strict=False):
        bars = _algorithms(cells, group)[::-1]
        for place, cell in enumerate(bars):
            ends = {True: 0.0, False: 0.0}
            for part, colour in report_page.COST_PARTS.items():
                if value := cell[part] or 0.0:
                    ax.barh(place, value, left=ends[value > 0], color=colour, height=0.7)
                    ends[value > 0] += value
            total = cell["total"]
            ax.plot(total["mean"], place, "k|", ms=9)
            if total["low"] is not None:
                ax.plot([total["low"], total["high"]], [place, place], color="k", lw=1)
        ax.set_yticks(range(len(bars)), [cell["algorithm"] for cell in bars])
        ax.set_title(f"{group}, bps", loc="left")
        ax.set_axisbelow(True)
    for part, colour in report_page.COST_PARTS.items():
        if any(cell[part] for cell in cells if cell["algorithm"] != _ORACLE):
            grid.flat[0].barh(0, 0, color=colour, label=part.removesuffix("_bps"))
    figure.legend(loc="outside lower center", ncols=len(report_page.COST_PARTS), frameon=False)
    return figure


def differences_picture(cells: Sequence[Data]) -> Any:
    """Every algorithm against market orders on the same parents, with the bound of the goal."""
    groups = groups_of(cells)
    names = list(dict.fromkeys(cell["algorithm"] for cell in cells))
    names = [name for name in names if name not in (_ORACLE, "market")]
    figure, [[ax]] = report_page.axes(1, [1], 3.6)
    for k, name in enumerate(names):
        colour = report_page.SERIES[k % len(report_page.SERIES)]
        for n, group in enumerate(groups):
            for cell in _algorithms(cells, group):
                if cell["algorithm"] == name:
                    less = cell["difference"]
                    x = n + (k - len(names) / 2) * 0.08
                    label = name if n == 0 else None
                    ax.plot(x, less["mean"], "o", ms=4, color=colour, label=label)
                    if less["low"] is not None:
                        ax.plot([x, x], [less["low"], less["high"]], color=colour, lw=1)
    ax.axhline(0, color="#222222", lw=0.7)
    ax.axhline(_GOAL_BPS, color="#c44e52", lw=0.7, ls="--")
    ax.set_xticks(range(len(groups)), groups)
    ax.set_ylabel("cost less market, bps")
    ax.legend(ncols=5, frameon=False, fontsize=8)
    return figure


def markouts_picture(cells: Sequence[Data]) -> Any:
    """Markouts of the first cell and of the one in the middle."""
    groups = groups_of(cells)
    groups = [groups[0], groups[len(groups) // 2]] if len(groups) > 1 else groups
    figure, grid = report_page.axes(
        1, [1], 3.2, max(1, len(groups)), sharey=True, layout="constrained"
    )
    for ax, group in zip(grid.flat, groups, strict=False):
        for k, cell in enumerate(_algorithms(cells, group)):
            values = [cell[f"markout_{horizon}s_bps"] for horizon in _MARKOUTS]
            colour = report_page.SERIES[k % len(report_page.SERIES)]
            ax.plot(_MARKOUTS, values, "o-", ms=3, lw=1, color=colour, label=cell["algorithm"])
        ax.axhline(0, color="#222222", lw=0.7)
        ax.set_title(group, loc="left")
        ax.set_xlabel("s after the fill")
    grid.flat[0].set_ylabel("markout, bps (positive = our way)")
    handles = grid.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


# -- the report ------------------------------------------------------------------------------------


def write(result: Data, path: Path, command: str) -> None:
    """Write the report: Markdown with pictures beside it where the name ends in ``.md``, else HTML.

    ``result`` is that of the verb, ``command`` the command line that made it.
    """
    cells = (result.get("synthetic") or {}).get("cells") or []
    pictures = {}
    if cells:
        pictures = {
            "costs": costs_picture(cells),
            "differences": differences_picture(cells),
            "markouts": markouts_picture(cells),
        }
    if path.suffix == ".md":
        links = {}
        for name, figure in pictures.items():
            image = path.with_name(f"{path.stem}-{name}.png")
            figure.savefig(image, dpi=90, bbox_inches="tight", metadata={"Software": None})
            links[name] = f"![{name}]({image.name})"
        path.write_text("\n\n".join(_parts(result, links, command, _markdown)) + "\n", "utf-8")
        return
    inline = {name: report_page.svg(figure) for name, figure in pictures.items()}
    body = _parts(result, inline, command, _html)
    page = report_page.document("What execution costs", body, _STYLE)
    path.write_text(page, encoding="utf-8")


def _html(kind: str, value: Any, head: Sequence[str] = ()) -> str:
    if kind == "table":
        columns = _TEXT_COLUMNS.get(tuple(head), 2)
        return report_page.table(value, head, text_columns=columns)
    if kind == "raw":
        return str(value)
    tag = {"title": "h1", "heading": "h2", "code": "pre"}.get(kind, "p")
    return f"<{tag}>{html.escape(value)}</{tag}>"


def _markdown(kind: str, value: Any, head: Sequence[str] = ()) -> str:
    if kind == "table":
        return report_page.markdown_table(value, head)
    mark = {"title": "# ", "heading": "## ", "code": "    "}.get(kind, "")
    return f"{mark}{value}"


def _parts(result: Data, pictures: Mapping[str, str], command: str, render: Any) -> list[str]:
    """The report's parts, each rendered by ``render`` (`_html` or `_markdown`)."""
    parts = [render("title", "What execution costs"), render("code", command)]
    days = result.get("synthetic")
    if days:
        seeds = days["seeds"]
        sample = (
            f"{days['parents']:,} parents of each algorithm, seeds {seeds[0]} to {seeds[-1]} "
            f"({len(seeds)} days)."
        )
        parts += [
            render("heading", "In the engine"),
            render("text", f"{sample} {READING}"),
            render("table", goal_rows(days["goals"]), GOAL_HEAD),
            render("raw", pictures["costs"]),
            render("raw", pictures["differences"]),
            render("table", cell_rows(days["cells"]), CELL_HEAD),
            render("heading", "After the fills"),
            render("raw", pictures["markouts"]),
            render("heading", "By regime"),
            render("table", regime_rows(days["regimes"]), REGIME_HEAD),
        ]
    if result.get("recordings"):
        parts += [render("heading", "On recordings"), render("text", RECORDED)]
        for recording in result["recordings"]:
            sample = (
                f"{recording['recording']}: {recording['parents']:,} parents; left out: "
                f"{recording['cut']} that its end cut, {recording['skipped']} instants with a stale "
                "book."
            )
            parts += [
                render("text", sample),
                render("table", recorded_rows(recording), RECORDED_HEAD),
            ]
    return parts
