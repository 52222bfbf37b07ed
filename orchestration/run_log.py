"""Dagster's log as people see it: one line per message with the seconds since the start, on stderr."""

from __future__ import annotations

import logging
from typing import Any

import dagster as dg

from market.console import say


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
