"""The why page: what led to an order or a decision and what came of it, as `l2 why` prints it."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from orchestration.dashboard.reader import Reader
from orchestration.dashboard.widgets import Renew


def build(state: Path, reader: Reader, what: str) -> Renew:
    """One screen of text about ``what``, from the log in the worker's folder ``state``."""
    with ui.row().classes("items-center gap-2 w-full mt-2"):
        given = ui.input("Order, parent or UTC second", value=what).classes("grow max-w-xl")
        given.props("autofocus")

        def go() -> None:
            ui.navigate.to(f"/why?order={quote(given.value.strip())}")

        given.on("keydown.enter", go)
        ui.button("Explain", on_click=go)
    opened, final = (
        time.monotonic(),
        [False],
    )  # a reload reads the log again, and a page reads it once
    text = ui.label().classes("whitespace-pre font-mono text-xs overflow-x-auto w-full").mark("why")

    def renew() -> None:
        if not what:
            text.set_text(
                "an order or a parent of the execution page, as ETHUSDT-1795989502-6, or a second, as "
                "2026-03-02T10:00:00"
            )
            return
        if final[0]:
            return
        found = reader.answer(f"why/{what}", opened, what=what, state=str(state))
        final[0] = reader.is_answered(f"why/{what}", opened)
        text.set_text(found.get("text") or found.get("error") or "reading the log …")

    return renew
