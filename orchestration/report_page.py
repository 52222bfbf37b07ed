"""What report pages share: HTML documents and tables, pictures as inline SVG, Markdown tables.

An HTML page is one file without scripts, fonts or pictures of elsewhere, so that it can be mailed and archived;
its header leads to the other pages of this machine (`publish`).
"""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from market.pages import DATA_DOCS, REPORTS
from market.settings import Settings

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #e3e3e3; }
th:first-child, td:first-child { text-align: left; }
.about td { text-align: left; } .about td:first-child { color: #777; white-space: nowrap; }
.warning { background: #fdecea; border-left: 4px solid #c44e52; padding: .6em 1em; }
nav { font-size: 13px; margin-bottom: 1em; }
svg { width: 100%; min-width: 720px; height: auto; } li { margin: .2em 0; } .scroll { overflow-x: auto; }
"""

#: Of the option ``--html``.
HELP: Final = "write the page; without FILE below the lake's reports"

#: Colours of lines and points, in the order in which series are drawn.
SERIES: Final = (
    "#2b5c9e", "#c9803a", "#5b9a68", "#8a63a8", "#a33b3b", "#5f6b7a", "#b59f2c", "#3a8f9a",
    "#9a5b7c", "#444444",
)  # fmt: skip
#: Colours of the parts of a parent's cost.
COST_PARTS: Final = {
    "delay_bps": "#8c8c8c",
    "spread_bps": "#4c72b0",
    "impact_bps": "#c44e52",
    "timing_bps": "#dd8452",
    "opportunity_bps": "#937860",
    "fees_bps": "#55a868",
}


def document(title: str, body: Sequence[str], style: str = STYLE) -> str:
    """The HTML page of a title and parts that are HTML already."""
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width'><title>{html.escape(title)}</title>"
        f"<style>{style}</style></head><body>" + "\n".join(body) + "</body></html>\n"
    )


def place(settings: Settings, given: str | None, name: str) -> str | None:
    """Where a page goes: the file that was given, or below the lake where ``--html`` stood alone."""
    if given != "":
        return given
    folder = settings.home / REPORTS
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{name}.html")


def publish(page: Path, settings: Settings) -> None:
    """Give a page that was written a header with links, and renew the list of the lake's reports."""
    if page.suffix != ".html":
        return
    root = settings.home.absolute()
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("<body>", f"<body>{_nav(page, root, settings)}", 1), "utf-8")
    if page.absolute().parent == root / REPORTS:
        write_index(settings)


def write_index(settings: Settings) -> None:
    """The page ``index.html`` of the lake's reports, the newest first."""
    index = settings.home.absolute() / REPORTS / "index.html"
    index.parent.mkdir(parents=True, exist_ok=True)
    found = [page for page in index.parent.glob("*.html") if page != index and page.is_file()]
    lines = []
    for page in sorted(found, key=lambda page: page.stat().st_mtime, reverse=True):
        text = page.read_text(encoding="utf-8", errors="replace")  # not every page is ours
        title = re.search("<title>(.*?)</title>", text[:4096])
        lines.append(
            f'<li><a href="{html.escape(page.name)}">{title[1] if title else page.stem}</a></li>'
        )
    listed = (
        f"<ul>{''.join(lines)}</ul>" if lines else "<p>None yet: `l2 tca --html` makes one.</p>"
    )
    body = [_nav(index, index.parents[1], settings), "<h1>Reports</h1>", listed]
    index.write_text(document("Reports", body), encoding="utf-8")


def _nav(page: Path, root: Path, settings: Settings) -> str:
    """Links to the lake's other pages, relative where they are files, and to the servers."""
    files = {"Reports": root / REPORTS / "index.html", "Data Docs": root / DATA_DOCS / "index.html"}
    here, to = page.absolute().parent, settings.pages
    links = {name: os.path.relpath(path, here) for name, path in files.items() if path != page}
    servers = {
        "Dagster": to.dagster,
        "MLflow": to.model(settings.model_name),
        "Worker": to.dashboard,
    }
    items = (f'<a href="{html.escape(url)}">{name}</a>' for name, url in (links | servers).items())
    return f"<nav>{' · '.join(items)}</nav>"


def table(
    rows: Sequence[Sequence[str]], head: Sequence[str] = (), kind: str = "", text_columns: int = 1
) -> str:
    """An HTML table; the first ``text_columns`` are set to the left, figures to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (
            f"<{tag}{' class=text' if 1 <= n < text_columns else ''}>{html.escape(cell)}</{tag}>"
            for n, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    top = line(head, "th") if head else ""
    body = "".join(line(cells, "td") for cells in rows)
    return f"<div class=scroll><table class='{kind}'>{top}{body}</table></div>"


def markdown_table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def axes(
    rows: int, height_ratios: Sequence[float], height: float, columns: int = 1, **options: Any
) -> tuple[Any, Any]:
    """A figure of the page's width and ``height`` inches, and its (rows, columns) grid of axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "sheet",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#eeeeee",
            "font.size": 9,
        }
    )
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(11, height),
        sharex=columns == 1,
        squeeze=False,
        gridspec_kw={"height_ratios": height_ratios},
        **options,
    )
    return figure, grid


def concise_dates(ax: Any) -> None:
    """Label a time axis with each date once."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def svg(figure: Any) -> str:
    """The figure as inline SVG, deterministic, which a phone pushes sideways; closes the figure."""
    import matplotlib.pyplot as plt

    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return f"<div class=scroll>{text[text.index('<svg') :]}</div>"
