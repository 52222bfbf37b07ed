"""What people see of a run: one line per message with the seconds since the start, on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

_START = time.monotonic()


def say(message: str) -> None:
    """One progress line; standard output stays free for results."""
    print(f"[{time.monotonic() - _START:6.1f} s] {message}", file=sys.stderr, flush=True)


class _People(logging.Handler):
    """Lets through what a step says, and what fails; dagster's own bookkeeping stays in its log."""

    def emit(self, record: logging.LogRecord) -> None:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {}) or {}
        event = meta.get("dagster_event")
        step = meta.get("step_key") or ""
        if event is None:
            say(f"{step}: {meta.get('orig_message') or record.getMessage()}")
        elif getattr(event, "event_type_value", "") == "STEP_START":
            say(f"{step}: started")
        elif getattr(event, "event_type_value", "") == "STEP_FAILURE":
            say(f"{step}: FAILED: {_reason(event)}")


def _reason(event: dg.DagsterEvent) -> str:
    """The first cause of a failed step in one line; the traceback is in dagster's log."""
    error = event.step_failure_data.error
    # a worker process hands its traceback over as the last cause: text, not a reason
    while (
        error is not None and error.cause is not None and error.cause.cls_name != "_RemoteTraceback"
    ):
        error = error.cause
    return " ".join(error.message.split()) if error is not None else "no reason given"


def _people(_: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("l2", level=logging.DEBUG)
    logger.addHandler(_People())
    return logger


people_logger = dg.LoggerDefinition(
    _people, description="Progress for people: what each step says, without the bookkeeping."
)


def table(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A plain aligned table; numbers to the right, text to the left."""
    cells = [[str(cell) for cell in row] for row in ([head] if head else []) + list(rows)]
    if not cells:
        return ""
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    numeric = [
        all(isinstance(row[n], int | float) or str(row[n])[:1] in "+-0123456789–" for row in rows)
        for n in range(len(widths))
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    if head:
        lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)
