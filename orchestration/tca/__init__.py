"""`l2 tca`: what orders cost over a range of dates, from the records in the lake.

    parents, orders, fills, tca, markouts ─► assets.costs (dbt) ─► execution.tca.figures ─► text, page

The records are those of the worker, or the tables that a backtest left beside its page.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.costs import build_costs, cost_rows
from execution.tca import TABLES
from execution.tca.figures import figures, main_table
from market.console import Result, bps, estimate, percent, say, table
from market.errors import DataError
from market.lake import Lake
from market.settings import Settings
from market.units import utc_date
from orchestration.tca import page as tca_page

#: The time that dates a row of each table.
DATED: Final = {
    "parents": "decision_ns",
    "orders": "sent_ns",
    "fills": "time_ns",
    "tca": "decision_ns",
    "markouts": "time_ns",
}


class TcaError(DataError):
    """There is nothing to analyse as asked; the message says where, and what to do."""


def analyse(
    settings: Settings,
    *,
    first: str | None = None,
    last: str | None = None,
    symbols: Sequence[str] | None = None,
    beside: str | None = None,
    page: str | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Figures of the parents decided from ``first`` to ``last`` (default: all on record); plain data.

    ``beside`` is a backtest's page whose tables are taken instead of the lake's; ``page`` is the HTML
    file to write. Raises TcaError when nothing is on record, WarehouseError when a test of the tables
    fails.
    """
    for day in (first, last):
        if day is not None and not _is_date(day):
            raise TcaError(f"{day}: not a date; expected YYYY-MM-DD")
    if first is not None and last is not None and first > last:
        raise TcaError(f"--from {first} is after --to {last}")
    if beside is None:
        return _analyse(
            Lake(settings.root, settings.source), settings, first, last, symbols, page, say
        )
    with tempfile.TemporaryDirectory() as folder:
        lake = _beside(Path(beside), Path(folder), settings.source)
        return _analyse(lake, settings, first, last, symbols, page, say)


def _is_date(text_: str) -> bool:
    try:
        return date.fromisoformat(text_).isoformat() == text_
    except ValueError:
        return False


def _analyse(
    lake: Lake,
    settings: Settings,
    first: str | None,
    last: str | None,
    symbols: Sequence[str] | None,
    page: str | None,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    held = {key for table_ in TABLES for key in lake.partitions(table_)}
    held = {
        (symbol, day)
        for symbol, day in held
        if (symbols is None or symbol in symbols)
        and (first is None or first <= day)
        and (last is None or day <= last)
    }
    if not held:
        asked = " ".join(
            [*([f"of {', '.join(symbols)}"] if symbols else []), f"from {first or 'the first date'}",
             f"to {last or 'the last'}"]
        )  # fmt: skip
        raise TcaError(
            f"{lake.uri}: no orders on record {asked}; the worker leaves them there when it ends "
            "(`l2 live`), a backtest beside its page (`l2 backtest --html FILE`, then --beside FILE)"
        )
    days = sorted(day for _, day in held)
    named = tuple(sorted({symbol for symbol, _ in held}))
    # Neighbouring dates are read for what falls behind midnight; what is told is of these.
    span = first or days[0], last or days[-1]
    report = build_costs(lake, settings, named, *span, say)
    if say is not None:
        state = "are current" if report.current else f"made, {len(report.tests)} tests passed"
        say(f"{len(report.keys)} partitions of costs {state}")
    rows = cost_rows(lake, named, *span)
    found = {
        "source": lake.source,
        "dates": [days[0], days[-1]],
        "symbols": list(named),
        **figures(*rows.values()),
    }
    if page is not None:
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        Path(page).write_text(tca_page.document(found, rows), encoding="utf-8")
        found["page"] = page
    return found


def _beside(page: Path, folder: Path, source: str) -> Lake:
    """A lake of its own of the tables that a backtest left beside its page."""
    lake = Lake(folder / "lake", source)
    for name, kind in TABLES.items():
        path = page.with_name(f"{page.stem}.{name}.parquet")
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
        dates = pa.array([utc_date(ns) for ns in rows.column(DATED[name]).to_pylist()], pa.string())
        keys = {
            (s, d)
            for s, d in zip(rows.column("symbol").to_pylist(), dates.to_pylist(), strict=True)
        }
        for symbol, day in sorted(keys):
            mine = pc.and_(pc.equal(rows.column("symbol"), symbol), pc.equal(dates, day))
            lake.write(name, symbol, day, rows.filter(mine).drop(["symbol"]))
    return lake


# -- for people ------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """The tables for people."""
    head, *lines = main_table(found)
    states = ", ".join(f"{count:,} {state}" for state, count in found["states"].items())
    parts = [
        f"{', '.join(found['symbols'])}, {' to '.join(found['dates'])}, {found['source']}: "
        f"{found['parents']:,} parents ({states}), {found['traded_usdt']:,.0f} USDT traded",
        table(lines, head) if lines else "no parent was measured",
    ]
    if found["estimates"]:
        parts.append(
            table(
                [
                    (
                        row["algorithm"], f"{row['bias_bps'][3]:,}", bps(row["estimate_bps"]),
                        bps(row["outcome_bps"]), estimate(*row["bias_bps"][:3]),
                        bps(row["rmse_bps"]), percent(row["within_risk"]),
                    )
                    for row in found["estimates"]
                ],
                ("estimates", "n", "told bps", "came to", "error [95 %]", "RMSE", "within risk"),
            )
        )  # fmt: skip
    if found["markouts"]:
        parts.append(
            table(
                [
                    (
                        row["what"],
                        f"{row['rows']:,}",
                        *(estimate(*row[f"{h}s"][:3]) for h in (1, 5, 30, 60)),
                    )
                    for row in found["markouts"]
                    if row["queue"] == "all"
                ],
                ("markouts, bps", "rows", "1 s", "5 s", "30 s", "60 s"),
            )
        )
    if found["findings"]:
        parts.append(table(list(found["findings"].items()), ("not as it should be", "rows")))
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
    parser.add_argument("--html", metavar="FILE", help="write the page")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 tca`: cost of the parents of a range of dates, and what each part of it is."""
    result = analyse(
        settings,
        first=options.first,
        last=options.last,
        symbols=options.symbol,
        beside=options.beside,
        page=options.html,
        say=say,
    )
    if not options.json:
        print(text(result))
    return result
