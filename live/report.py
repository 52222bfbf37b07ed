"""What a worker says: JSON lines for machines while it runs, a short table for people at its end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def logger() -> Any:
    """Structured logging, one JSON line each, to stderr."""
    import structlog

    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary for people."""

    def number(value: float | None, unit: str, digits: int = 2) -> str:
        return "none" if value is None else f"{value:,.{digits}f} {unit}"

    parts = summary["cost_parts_bps"]
    latency = summary["latency_us"]
    share = summary["maker_share"]
    rows = [
        ("run", f"{summary['run']}, {summary['model']}, fees of {summary['fee_row']}"),
        ("market", f"{summary['frames']:,} frames, {summary['events']:,} events, "
                   f"{summary['gaps']} gaps, {summary['rejected']} rejected"),
        ("decisions", f"{summary['decisions']:,}, {summary['warm_decisions']:,} of them warm"),
        ("signals", ", ".join(f"{n:,} {symbol}" for symbol, n in summary["signals"].items())),
        ("orders", f"{summary['parents']} parents, {summary['orders']} orders, "
                   f"{summary['fills']} fills, maker {'none' if share is None else f'{share:.1%}'}"),
        ("all-in cost", f"{number(summary['all_in_cost_bps'], 'bps')} = "
                        + " + ".join(f"{name.removesuffix('_bps')} {number(value, '').strip()}"
                                     for name, value in parts.items())),
        ("profit", f"gross {number(summary['gross_pnl_usdt'], 'USDT')}, "
                   f"net {number(summary['net_pnl_usdt'], 'USDT')}"),
        ("latency", f"p50 {latency['p50']:,.0f} us, p99 {latency['p99']:,.0f} us, "
                    f"p99.9 {latency['p99.9']:,.0f} us over {latency['n']:,} seconds"),
        ("captures", ", ".join(summary["captures"]) or "none"),
    ]  # fmt: skip
    return "\n".join(f"{name:<12} {value}" for name, value in rows)
