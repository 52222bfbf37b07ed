"""What the pages are made of. Texts of the worker are shown as text, never as HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from nicegui import ui

from market.console import NONE

Renew = Callable[[], None]
Show = Callable[[list[list[str]]], None]

BID, ASK, LINE, SECOND = "#2a9d6f", "#d1495b", "#4c78a8", "#e0a030"
MUTED: Final = "#8a8f98"


class Figures:
    """A grid of labelled figures, renewed by name."""

    def __init__(self, names: Sequence[str]) -> None:
        self._values: dict[str, ui.label] = {}
        with ui.grid().classes("grid-cols-2 sm:grid-cols-4 lg:grid-cols-6 gap-x-6 gap-y-2 w-full"):
            for name in names:
                with ui.column().classes("gap-0"):
                    ui.label(name).classes("text-xs opacity-60")
                    self._values[name] = ui.label(NONE).classes("text-base tabular-nums").mark(name)

    def clear(self) -> None:
        for label in self._values.values():
            label.set_text(NONE)

    def show(self, **values: str) -> None:
        for name, text in values.items():
            self._values[name.replace("_", " ")].set_text(text)


def section(title: str, hint: str = "") -> None:
    """A heading, and below it what it means."""
    ui.label(title).classes("text-lg font-medium mt-4").props("role=heading aria-level=2")
    if hint:
        ui.label(hint).classes("text-xs opacity-60")


#: Cells by column: an order's or a parent's id leads to what led to it, a share is also a bar where there is room.
_CELLS: Final = {
    "order": "<a class='underline' :href=\"'/why?order=' + encodeURIComponent(VALUE)\">{{ VALUE }}</a>",
    "share": "<div class='row no-wrap items-center justify-end gap-2'><q-linear-progress class='gt-xs'"
    " v-if='!isNaN(parseFloat(VALUE))' style='width: 72px' aria-hidden='true'"
    " :value='Math.min(1, parseFloat(VALUE) / 100)'"
    " :color=\"parseFloat(VALUE) >= 80 ? 'negative' : 'primary'\" /><span>{{ VALUE }}"
    "</span></div>",
}
_CELLS["parent"] = _CELLS["order"]
#: A table of more columns is on a phone a card for each row, which nobody has to push sideways.
_PHONE_COLUMNS: Final = 5


def _cell(name: str, value: str) -> str:
    return _CELLS.get(name, "{{ VALUE }}").replace("VALUE", value)


def table(columns: Sequence[str], empty: str, text: int = 1) -> Show:
    """A table whose first columns are ``text`` and the others numbers; what shows new rows."""
    heads = [
        {"name": name, "label": name, "field": name, "align": "left" if n < text else "right"}
        for n, name in enumerate(columns)
    ]
    shown = ui.table(columns=heads, rows=[], row_key="#").classes("w-full")
    shown.props('dense flat bordered hide-pagination rows-per-page-options="[0]"')
    shown.add_slot("no-data", f'<div class="q-pa-xs opacity-60">{empty}</div>')

    for name in _CELLS.keys() & set(columns):
        cell = f'<q-td :props="props">{_cell(name, "props.value")}</q-td>'
        shown.add_slot(f"body-cell-{name}", cell)
    if len(columns) > _PHONE_COLUMNS:
        shown.props(':grid="window.innerWidth < 600"')
        cells = "".join(
            f"<div class='row no-wrap justify-between gap-4 w-full'><span class='opacity-60'>{name}</span>"
            f"<span class='text-right break-words min-w-0'>{_cell(name, f'props.cols[{n}].value')}</span></div>"
            for n, name in enumerate(columns)
        )
        shown.add_slot("item", f"<div class='w-full p-2 mb-2 rounded border text-sm'>{cells}</div>")

    def show(rows: list[list[str]]) -> None:
        new = [{"#": str(n), **dict(zip(columns, row, strict=True))} for n, row in enumerate(rows)]
        if new != shown.rows:
            shown.rows = new
            shown.update()

    return show


def chart(height: str, **options: Any) -> ui.echart:
    base = {
        "animation": False,
        "useUTC": True,
        "grid": {"left": 58, "right": 16, "top": 28, "bottom": 24},
        "textStyle": {"color": MUTED},
        # One line, right of the axis's unit; on a phone it scrolls.
        "legend": {"type": "scroll", "top": 0, "left": 90, "textStyle": {"color": MUTED}},
        "tooltip": {"trigger": "axis"},
    }
    return ui.echart(base | options).classes(f"w-full {height}")


def lines(
    title: str, names: Sequence[str], colors: Sequence[str], unit: str, scale: str = "value"
) -> ui.echart:
    return chart(
        "h-56",
        xAxis={
            "type": "time",
            "axisLabel": {
                "hideOverlap": True, "color": MUTED, "formatter": {"day": "{yyyy}-{MM}-{dd}"},
            },
        },
        yAxis={
            "type": scale, "scale": True, "name": unit, "axisLabel": {"color": MUTED},
            "splitLine": {"lineStyle": {"opacity": 0.25}},
        },
        series=[
            {"name": name, "type": "line", "showSymbol": False, "color": color, "data": []}
            for name, color in zip(names, colors, strict=True)
        ],
        aria={"enabled": True, "label": {"description": title}},
    )  # fmt: skip


def draw(chart: ui.echart, *series: list[Any]) -> None:
    for number, data in enumerate(series):
        chart.options["series"][number]["data"] = data
    chart.update()


def finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
