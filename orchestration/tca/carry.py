"""Carry in the cost report: the lines of `execution.tca.figures.carry`, as text and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from market.console import bps, fixed, table
from orchestration import report_page

_HEAD: Final = (
    "carry", "venue", "settlements", "of parents", "paid USDT", "bps of traded", "dearest parent, bps",
)  # fmt: skip


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            row["symbol"], row["venue"], f"{row['settlements']:,}", f"{row['parents']:,}",
            fixed(row["paid_usdt"]), bps(row["carry_bps"]), bps(row["most_bps"]),
        )
        for row in result["carry"]
    ]  # fmt: skip


def text(result: Mapping[str, Any]) -> list[str]:
    """The table for a terminal, where any was paid."""
    return [table(_rows(result), _HEAD)] if result["carry"] else []


def section(result: Mapping[str, Any]) -> list[str]:
    """The same for the page."""
    if not result["carry"]:
        return []
    return [
        "<p>Carry: the funding of positions that were held at a settlement, positive = paid. It comes beside "
        "the shortfall, and is that of the parent that last traded on the position's side.</p>",
        report_page.table(_rows(result), _HEAD, text_columns=2),
    ]
