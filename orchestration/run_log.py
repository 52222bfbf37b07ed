"""Dagster's run log as progress lines: the messages of steps, their start and failure, on stderr."""

from __future__ import annotations

import logging
from typing import Any

import dagster as dg

from market import interruption
from market.console import say


class _ProgressHandler(logging.Handler):
    """Prints messages of steps and failures; Dagster's other events stay in its own log."""

    def emit(self, record: logging.LogRecord) -> None:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {}) or {}
        event = meta.get("dagster_event")
        step = meta.get("step_key") or ""
        if event is None:
            say(f"{step}: {meta.get('orig_message') or record.getMessage()}")
        elif getattr(event, "event_type_value", "") == "STEP_START":
            say(f"{step}: started")
        elif getattr(event, "event_type_value", "") == "STEP_FAILURE":
            if interruption.received():
                say(f"{step}: interrupted")
            else:
                say(f"{step}: FAILED: {_root_cause(event)}")


def _root_cause(event: dg.DagsterEvent) -> str:
    """The root cause of a failed step in one line."""
    error = event.step_failure_data.error
    # a worker process hands its traceback over as the last cause: text, not a reason
    while (
        error is not None and error.cause is not None and error.cause.cls_name != "_RemoteTraceback"
    ):
        error = error.cause
    return " ".join(error.message.split()) if error is not None else "no reason given"


def _logger(_: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("l2", level=logging.DEBUG)
    logger.addHandler(_ProgressHandler())
    return logger


progress_logger = dg.LoggerDefinition(
    _logger, description="Progress lines: messages, starts and failures of steps."
)
