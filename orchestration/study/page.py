"""The page of `l2 study`: goals, costs by algorithm, regimes, recordings; HTML, or Markdown.

Every figure comes from `orchestration.study.as_data`; a page in HTML needs nothing else, one in Markdown
has its pictures in files beside it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from orchestration import report_page

Data = Mapping[str, Any]

_PARTS: Final = {
    "fees_bps": "#55a868",
    "spread_bps": "#8c8c8c",
    "impact_bps": "#c44e52",
    "timing_bps": "#4c72b0",
    "delay_bps": "#937860",
    "opportunity_bps": "#dd8452",
}
_MARKOUTS: Final = ("1", "5", "30", "60")
_COLOURS: Final = (
    "#2b5c9e",
    "#c9803a",
    "#5b9a68",
    "#8a63a8",
    "#a33b3b",
    "#5f6b7a",
    "#b59f2c",
    "#3a8f9a",
    "#9a5b7c",
    "#444444",
)
_ORACLE: Final = "oracle"
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
every algorithm; in the engine our orders stand in the book with everybody else's, so that the queue is \
what it is and there are no bounds of it. Impact is the difference to the same market without us. \
Intervals are 95 %, from resampling whole days. The oracle is filled as a maker at the best price that \
anybody took before the deadline, without queue or impact: a bound, not an algorithm."""

RECORDED: Final = """\
Recordings are minutes long: what they show illustrates, and judges nothing. Parents overlap in time (each \
round of them in a market of its own), so their number overstates what they tell. The queue is bounded \
both ways: risk_averse is the pessimistic bound, power3 the optimistic one."""

CELL_HEAD: Final = (
    "size, deadline",
    "algorithm",
    "n",
    "all-in",
    "95 %",
    "less market",
    "95 %",
    "spread",
    "impact",
    "timing",
    "fees",
    "filled",
    "maker",
    "time s",
    "1 s",
    "5 s",
    "30 s",
    "60 s",
    "bias",
    "RMSE",
)


def number(value: float | None, places: int = 2) -> str:
    """A figure, – where there is none."""
    return "–" if value is None else f"{value:.{places}f}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def interval(found: Data) -> str:
    return f"{number(found['low'])} … {number(found['high'])}"


def cell_rows(cells: Sequence[Data]) -> list[tuple[str, ...]]:
    """The main table, a row an algorithm of a cell, in the order of `CELL_HEAD`."""
    return [
        (
            cell["group"],
            cell["algorithm"],
            str(cell["total"]["n"]),
            number(cell["total"]["mean"]),
            interval(cell["total"]),
            number(cell["difference"]["mean"]),
            interval(cell["difference"]),
            *(number(cell[f"{part}_bps"]) for part in ("spread", "impact", "timing", "fees")),
            share(cell["completion"]),
            share(cell["maker_share"]),
            number(cell["time_to_fill_s"], 1),
            *(number(cell[f"markout_{horizon}s_bps"]) for horizon in _MARKOUTS),
            number(cell["bias"]["mean"]),
            number(cell["rmse_bps"]),
        )
        for group in groups_of(cells)
        for cell in cells
        if cell["group"] == group
    ]


REGIME_HEAD: Final = ("divided by", "group", "n", "market", "router", "less market", "upper 95 %")


def regime_rows(regimes: Mapping[str, Sequence[Data]]) -> list[tuple[str, ...]]:
    """The router beside market orders in every regime."""
    base = {
        (name, cell["group"]): cell["total"]["mean"]
        for name, found in regimes.items()
        for cell in found
        if cell["algorithm"] == "market"
    }
    return [
        (
            name,
            cell["group"],
            str(cell["total"]["n"]),
            number(base[name, cell["group"]]),
            number(cell["total"]["mean"]),
            number(cell["difference"]["mean"]),
            number(cell["difference"]["upper"]),
        )
        for name, found in regimes.items()
        for cell in sorted(found, key=lambda cell: str(cell["group"]))
        if cell["algorithm"] == "router"
    ]


GOAL_HEAD: Final = ("goal", "wanted", "found", "verdict")


def goal_rows(goals: Sequence[Data]) -> list[tuple[str, ...]]:
    return [
        (goal["name"], goal["wanted"], goal["found"], "holds" if goal["holds"] else "fails")
        for goal in goals
    ]


RECORDED_HEAD: Final = (
    "symbol",
    "size",
    "algorithm",
    "queue",
    "n",
    "all-in",
    "95 %",
    "less market",
    "95 %",
    "spread",
    "timing",
    "fees",
    "filled",
    "maker",
    "time s",
    "5 s",
    "60 s",
)


def recorded_rows(found: Data) -> list[tuple[str, ...]]:
    """A recording's table, in the order of `RECORDED_HEAD`."""
    paired = {
        (each["symbol"], each["size_usdt"], each["algorithm"], each["queue"]): each
        for each in found["differences"]
    }
    rows = []
    for each in found["summaries"]:
        less = paired.get((each["symbol"], each["size_usdt"], each["algorithm"], each["venue"]))
        rows.append(
            (
                each["symbol"],
                f"{each['size_usdt']:,.0f}",
                each["algorithm"],
                each["venue"],
                str(each["instants"]),
                number(each["total_bps"]),
                f"{number(each['low_bps'])} … {number(each['high_bps'])}",
                number(less["mean"]) if less else "–",
                interval(less) if less else "–",
                *(number(each[f"{part}_bps"]) for part in ("spread", "timing", "fees")),
                share(each["fill_rate"]),
                share(each["maker_share"]),
                number(each["time_to_fill_s"], 1),
                number(each["markout_5s_bps"]),
                number(each["markout_60s_bps"]),
            )
        )
    return rows


def groups_of(cells: Sequence[Data]) -> list[str]:
    """Sizes and deadlines, the short deadline first and the small size first."""
    taken = {
        cell["group"]: (cell["deadline_s"], cell["size_usdt"] or 0.0)
        for cell in cells
        if cell["algorithm"] != _ORACLE
    }
    return sorted(taken, key=lambda group: taken[group])


# -- pictures --------------------------------------------------------------------------------------


def costs_picture(cells: Sequence[Data]) -> Any:
    """All-in cost of every algorithm in every cell, in its parts, with intervals."""
    groups = groups_of(cells)
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure, grid = report_page.axes(
        rows, [1] * rows, 3.1 * rows, columns, sharey=True, layout="constrained"
    )
    for axes, group in zip(grid.flat, groups, strict=False):
        found = [c for c in cells if c["group"] == group and c["algorithm"] != _ORACLE]
        found.reverse()
        names = [cell["algorithm"] for cell in found]
        right, left = [0.0] * len(found), [0.0] * len(found)
        for part, colour in _PARTS.items():
            for k, cell in enumerate(found):
                value = cell[part] or 0.0
                if not value:
                    continue
                axes.barh(
                    k, value, left=right[k] if value > 0 else left[k], color=colour, height=0.7
                )
                if value > 0:
                    right[k] += value
                else:
                    left[k] += value
        for k, cell in enumerate(found):
            total = cell["total"]
            axes.plot(total["mean"], k, "k|", ms=9)
            if total["low"] is not None:
                axes.plot([total["low"], total["high"]], [k, k], color="k", lw=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{group}, bps", loc="left")
        axes.set_axisbelow(True)
    for part, colour in _PARTS.items():
        if any(cell[part] for cell in cells if cell["algorithm"] != _ORACLE):
            grid.flat[0].barh(0, 0, color=colour, label=part.removesuffix("_bps"))
    figure.legend(loc="outside lower center", ncols=len(_PARTS), frameon=False)
    return figure


def differences_picture(cells: Sequence[Data]) -> Any:
    """Every algorithm against market orders, the same parents, with the bound of the goal."""
    groups = groups_of(cells)
    names = [
        n for n in dict.fromkeys(c["algorithm"] for c in cells) if n not in (_ORACLE, "market")
    ]
    figure, grid = report_page.axes(1, [1], 3.6)
    axes = grid.flat[0]
    for k, name in enumerate(names):
        for n, group in enumerate(groups):
            found = [c for c in cells if c["group"] == group and c["algorithm"] == name]
            if not found:
                continue
            less = found[0]["difference"]
            at = n + (k - len(names) / 2) * 0.08
            colour = _COLOURS[k % len(_COLOURS)]
            axes.plot(at, less["mean"], "o", ms=4, color=colour, label=name if n == 0 else None)
            if less["low"] is not None:
                axes.plot([at, at], [less["low"], less["high"]], color=colour, lw=1)
    axes.axhline(0, color="#222222", lw=0.7)
    axes.axhline(0.3, color="#c44e52", lw=0.7, ls="--")
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("cost less market, bps")
    axes.legend(ncols=5, frameon=False, fontsize=8)
    return figure


def markouts_picture(cells: Sequence[Data]) -> Any:
    """Where the mid went after the fills; the parents of the goals' size."""
    groups = groups_of(cells)
    groups = [groups[0], groups[len(groups) // 2]] if len(groups) > 1 else groups
    figure, grid = report_page.axes(
        1, [1], 3.2, max(1, len(groups)), sharey=True, layout="constrained"
    )
    for axes, group in zip(grid.flat, groups, strict=False):
        found = [c for c in cells if c["group"] == group and c["algorithm"] != _ORACLE]
        for k, cell in enumerate(found):
            values = [cell[f"markout_{horizon}s_bps"] for horizon in _MARKOUTS]
            axes.plot(
                _MARKOUTS, values, "o-", ms=3, lw=1, color=_COLOURS[k % 10], label=cell["algorithm"]
            )
        axes.axhline(0, color="#222222", lw=0.7)
        axes.set_title(group, loc="left")
        axes.set_xlabel("s after the fill")
    grid.flat[0].set_ylabel("markout, bps (positive = our way)")
    names = grid.flat[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


#: Columns of text at the left of each table.
_TEXTS: Final = {GOAL_HEAD: 4, RECORDED_HEAD: 4}


# -- the page --------------------------------------------------------------------------------------


def write(found: Data, path: Path, command: str) -> None:
    """Write the page: Markdown with pictures beside it where the name ends in ``.md``, else HTML."""
    cells = (found.get("synthetic") or {}).get("cells") or []
    pictures = (
        {
            "costs": costs_picture(cells),
            "differences": differences_picture(cells),
            "markouts": markouts_picture(cells),
        }
        if cells
        else {}
    )
    if path.suffix == ".md":
        named = {}
        for name, figure in pictures.items():
            image = path.with_name(f"{path.stem}-{name}.png")
            figure.savefig(image, dpi=90, bbox_inches="tight", metadata={"Software": None})
            named[name] = f"![{name}]({image.name})"
        path.write_text("\n\n".join(_parts(found, named, command, _markdown)) + "\n", "utf-8")
        return
    drawn = {name: report_page.svg(figure) for name, figure in pictures.items()}
    body = _parts(found, drawn, command, _html)
    path.write_text(report_page.document("What execution costs", body, _STYLE), encoding="utf-8")


def _html(kind: str, value: Any, head: Sequence[str] = ()) -> str:
    if kind == "table":
        return report_page.table(value, head, text_columns=_TEXTS.get(tuple(head), 2))
    if kind == "raw":
        return str(value)
    tag = {"title": "h1", "heading": "h2", "code": "pre"}.get(kind, "p")
    return f"<{tag}>{html.escape(value)}</{tag}>"


def _markdown(kind: str, value: Any, head: Sequence[str] = ()) -> str:
    if kind == "table":
        lines = [head, ["---"] * len(head), *value]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
    mark = {"title": "# ", "heading": "## ", "code": "    "}.get(kind, "")
    return f"{mark}{value}"


def _parts(found: Data, pictures: Mapping[str, str], command: str, as_: Any) -> list[str]:
    """The page's parts, each rendered by ``as_``."""
    parts = [as_("title", "What execution costs"), as_("code", command)]
    days = found.get("synthetic")
    if days:
        seeds = days["seeds"]
        parts += [
            as_("heading", "In the engine"),
            as_(
                "text",
                f"{days['parents']:,} parents of each algorithm, seeds {seeds[0]} to {seeds[-1]} "
                f"({len(seeds)} days). {READING}",
            ),
            as_("table", goal_rows(days["goals"]), GOAL_HEAD),
            as_("raw", pictures["costs"]),
            as_("raw", pictures["differences"]),
            as_("table", cell_rows(days["cells"]), CELL_HEAD),
            as_("heading", "After the fills"),
            as_("raw", pictures["markouts"]),
            as_("heading", "By regime"),
            as_("table", regime_rows(days["regimes"]), REGIME_HEAD),
        ]
    if found.get("recordings"):
        parts += [as_("heading", "On recordings"), as_("text", RECORDED)]
        for recording in found["recordings"]:
            cut, skipped = recording["cut"], recording["skipped"]
            parts += [
                as_(
                    "text",
                    f"{recording['recording']}: {recording['parents']:,} parents; {cut} more ran into "
                    f"its end and {skipped} instants had no market: they are left out.",
                ),
                as_("table", recorded_rows(recording), RECORDED_HEAD),
            ]
    return parts
