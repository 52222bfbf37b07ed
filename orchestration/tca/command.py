"""`l2 tca`: transaction costs over a range of dates, from the records in the lake.

    parents, orders, fills, tca, markouts ─► assets.costs (dbt) ─► execution.tca.figures ─► text, report

The records are those of the live worker, or the tables that a backtest wrote beside its tear sheet.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.costs import build_costs, cost_rows, table_rows
from execution.tca import TABLES
from execution.tca import figures as tca_figures
from execution.tca.figures import figures, main_table
from live.funding import CarryRow
from market.console import Result, Say, bps, estimate, percent, say, table
from market.errors import DataError, UsageError
from market.lake import Lake
from market.settings import Settings
from market.units import utc_date
from orchestration import report_page
from orchestration.tca import arms, carry, cost_report

#: The column that dates a row of each table.
DATE_COLUMNS: Final = {
    "parents": "decision_ns",
    "orders": "sent_ns",
    "fills": "time_ns",
    "tca": "decision_ns",
    "markouts": "time_ns",
    "carry": "time_ns",
}


class TcaError(DataError):
    """There are no records to analyse; the message says where, and what to do."""


def analyse(
    settings: Settings,
    *,
    first: str | None = None,
    last: str | None = None,
    symbols: Sequence[str] | None = None,
    beside: str | None = None,
    page: str | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Figures of the parents decided from ``first`` to ``last`` (default: all on record); plain data.

    ``beside`` is a backtest's tear sheet whose tables are read instead of the lake's; ``page`` is the
    HTML file to write. Raises UsageError for malformed dates, TcaError without records,
    WarehouseError when a dbt test fails.
    """
    for day in (first, last):
        if day is not None and not _is_date(day):
            raise UsageError(f"{day}: not a date; expected YYYY-MM-DD")
    if first is not None and last is not None and first > last:
        raise UsageError(f"--from {first} is after --to {last}")
    if beside is None:
        return _analyse(
            Lake(settings.root, settings.source), settings, first, last, symbols, page, say
        )
    with tempfile.TemporaryDirectory() as folder:
        lake = lake_beside(Path(beside), Path(folder), settings.source)
        return _analyse(lake, settings, first, last, symbols, page, say)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _analyse(
    lake: Lake,
    settings: Settings,
    first: str | None,
    last: str | None,
    symbols: Sequence[str] | None,
    page: str | None,
    say: Say | None,
) -> dict[str, Any]:
    partitions = {
        (symbol, day)
        for kind in TABLES
        for symbol, day in lake.partitions(kind)
        if (symbols is None or symbol in symbols)
        and (first is None or first <= day)
        and (last is None or day <= last)
    }
    if not partitions:
        of = f"of {', '.join(symbols)} " if symbols else ""
        raise TcaError(
            f"{lake.uri}: no orders on record {of}from {first or 'the first date'} to "
            f"{last or 'the last'}; the worker writes them when it ends (`l2 live`), a backtest beside "
            "its page (`l2 backtest --html FILE`, then --beside FILE)"
        )
    days = sorted(day for _, day in partitions)
    present = tuple(sorted({symbol for symbol, _ in partitions}))
    # Neighbouring dates are read for what crosses midnight; the figures are of this range.
    span = first or days[0], last or days[-1]
    report = build_costs(lake, settings, present, *span, say)
    if say is not None:
        state = "are current" if report.current else f"made, {len(report.tests)} tests passed"
        say(f"{len(report.keys)} partitions of costs {state}")
    rows = cost_rows(lake, present, *span)
    result = {
        "source": lake.source,
        "dates": [days[0], days[-1]],
        "symbols": list(present),
        **figures(*rows.values()),
        "arms": arms.compared(
            *(table_rows(lake, name, present, days[0], days[-1]) for name in ("parents", "tca"))
        ),
        "carry": tca_figures.carry(rows["parent_costs"], table_rows(lake, "carry", present, *span)),
    }
    if page is not None:
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        Path(page).write_text(cost_report.document(result, rows), encoding="utf-8")
        report_page.publish(Path(page), settings)
        result["page"] = page
    return result


def lake_beside(page: Path, folder: Path, source: str) -> Lake:
    """A lake in ``folder`` of the tables that a backtest wrote beside its tear sheet.

    TcaError when a table is missing, or lacks columns because an older version wrote it.
    """
    lake = Lake(folder / "lake", source)
    for name, kind in (TABLES | {"carry": CarryRow}).items():
        path = page.with_name(f"{page.stem}.{name}.parquet")
        if name == "carry" and not path.exists():
            continue  # no settlement while a position was held
        if not path.exists():
            raise TcaError(
                f"{path}: no such table; --beside names the page of `l2 backtest --html FILE`"
            )
        rows = pq.read_table(path)
        if missing := set(kind.schema().names) - set(rows.column_names):
            raise TcaError(
                f"{path}: without {', '.join(sorted(missing))}; it is of an older version, run the "
                "backtest again"
            )
        times = rows.column(DATE_COLUMNS[name]).to_pylist()
        dates = pa.array([utc_date(ns) for ns in times], pa.string())
        symbols = rows.column("symbol")
        for symbol, day in sorted(set(zip(symbols.to_pylist(), dates.to_pylist(), strict=True))):
            selected = pc.and_(pc.equal(symbols, symbol), pc.equal(dates, day))
            lake.write(name, symbol, day, rows.filter(selected).drop(["symbol"]))
    return lake


def report_text(result: dict[str, Any]) -> str:
    """The tables for a terminal."""
    head, *lines = main_table(result)
    states = ", ".join(f"{count:,} {state}" for state, count in result["states"].items())
    parts = [
        f"{', '.join(result['symbols'])}, {' to '.join(result['dates'])}, {result['source']}: "
        f"{result['parents']:,} parents ({states}), {result['traded_usdt']:,.0f} USDT traded",
        table(lines, head) if lines else "no parent was measured",
    ]
    if result["arms"]:
        parts.append(arms.text(result["arms"]))
    parts += carry.text(result)
    if result["estimates"]:
        rows = [
            (
                row["algorithm"], f"{row['bias_bps'][3]:,}", bps(row["estimate_bps"]),
                bps(row["outcome_bps"]), estimate(*row["bias_bps"][:3]), bps(row["rmse_bps"]),
                percent(row["within_risk"]),
            )
            for row in result["estimates"]
        ]  # fmt: skip
        head = ("estimates", "n", "estimate", "outcome", "error [95 %]", "RMSE", "within risk")
        parts.append(table(rows, head))
    if result["markouts"]:
        markouts = [
            (
                row["what"],
                f"{row['rows']:,}",
                *(estimate(*row[f"{h}s"][:3]) for h in (1, 5, 30, 60)),
            )
            for row in result["markouts"]
            if row["queue"] == "all"
        ]
        parts.append(table(markouts, ("markouts, bps", "rows", "1 s", "5 s", "30 s", "60 s")))
    if result["findings"]:
        parts.append(table(list(result["findings"].items()), ("records to check", "rows")))
    return "\n\n".join(parts)


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 tca`."""
    parser.add_argument(
        "--from", dest="first", metavar="YYYY-MM-DD", help="default: the first date"
    )
    parser.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="default: the last date")
    parser.add_argument(
        "--symbol", action="append", metavar="S", help="default: every one on record"
    )
    parser.add_argument(
        "--beside", metavar="PAGE", help="take the tables that a backtest left beside its page"
    )
    parser.add_argument("--html", nargs="?", const="", metavar="FILE", help=report_page.HELP)


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 tca`: costs of the parents of a range of dates, in parts."""
    result = analyse(
        settings,
        first=options.first,
        last=options.last,
        symbols=options.symbol,
        beside=options.beside,
        page=report_page.place(settings, options.html, "tca"),
        say=say,
    )
    if not options.json:
        print(report_text(result))
    return result
