"""What pages with figures share: their style, tables of text, and pictures as inline SVG.

A page is one HTML file that needs nothing else: no script, no font, no address.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any, Final

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #e3e3e3; }
th:first-child, td:first-child { text-align: left; }
.about td { text-align: left; } .about td:first-child { color: #777; white-space: nowrap; }
.warning { background: #fdecea; border-left: 4px solid #c44e52; padding: .6em 1em; }
svg { width: 100%; height: auto; } li { margin: .2em 0; } .scroll { overflow-x: auto; }
"""


def document(title: str, body: Sequence[str], style: str = STYLE) -> str:
    """The page: its title, and its parts as HTML."""
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{style}</style></head><body>" + "\n".join(body) + "</body></html>\n"
    )


def table(
    rows: Sequence[Sequence[str]], head: Sequence[str] = (), kind: str = "", texts: int = 1
) -> str:
    """A table of text; the first ``texts`` columns are to the left, figures to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        told = (
            f"<{tag}{' class=text' if 1 <= n < texts else ''}>{html.escape(cell)}</{tag}>"
            for n, cell in enumerate(cells)
        )
        return f"<tr>{''.join(told)}</tr>"

    top = line(head, "th") if head else ""
    body = "".join(line(cells, "td") for cells in rows)
    return f"<div class=scroll><table class='{kind}'>{top}{body}</table></div>"


def axes(
    rows: int, heights: Sequence[float], height: float, columns: int = 1, **more: Any
) -> tuple[Any, Any]:
    """A figure of the page's width, ``height`` inches high, and its grid of axes."""
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
        gridspec_kw={"height_ratios": heights},
        **more,
    )
    return figure, grid


def concise_dates(drawn: Any) -> None:
    """Times on the x axis, each said once."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    drawn.xaxis.set_major_locator(locator)
    drawn.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def svg(figure: Any) -> str:
    """The figure as inline SVG; the same figure gives the same text."""
    import matplotlib.pyplot as plt

    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    drawn = out.getvalue()
    return drawn[drawn.index("<svg") :]
