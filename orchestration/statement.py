"""`l2 statement DATE`: what a UTC day came to by venue and symbol, as a table, CSV or Parquet for an accountant.

The rows are those of the worker's log (`live.statement`), or of the tables beside a backtest's page. Amounts are
in quote currency, exact to 1e-8; a fee and funding are positive when paid.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from live.collect import collect
from market.console import Result, table
from market.errors import DataError, UsageError
from market.lake import Lake
from market.settings import Settings
from market.units import E8

#: Columns of amounts, from those of `live.statement.StatementRow` at 1e-8.
_AMOUNTS: Final = {
    "realised": "realised_e8",
    "open": "open_e8",
    "maker_fees": "maker_fees_e8",
    "taker_fees": "taker_fees_e8",
    "funding": "funding_e8",
}
_QUANTITIES: Final = ("opening", "bought", "sold", "closing")
_MONEY: Final = pa.decimal128(27, 8)


class StatementError(DataError):
    """There is no statement of a date; the message says where, and what to do."""


def statement(settings: Settings, day: str, beside: str | None = None) -> list[dict[str, Any]]:
    """The rows of a date by venue and symbol, quantities and amounts as decimals.

    ``beside`` is a backtest's page. Raises UsageError for a malformed date, StatementError without rows.
    """
    try:
        date.fromisoformat(day)
    except ValueError as error:
        raise UsageError(f"{day}: not a date; expected YYYY-MM-DD") from error
    if beside is not None:
        page = Path(beside)
        path = page.with_name(f"{page.stem}.statements.parquet")
        where, rows = str(path), pq.read_table(path).to_pylist() if path.exists() else []
        rows = [row for row in rows if row["date"] == day]
    else:
        where, rows = settings.root, _of_lake(settings, day)
    if not rows:
        raise StatementError(
            f"{where}: no statement of {day}: the worker writes it a minute after the day's end, and when it "
            "ends; a backtest beside its page (--beside FILE)"
        )
    return [_decimal(row) for row in sorted(rows, key=lambda row: (row["venue"], row["symbol"]))]


def _of_lake(settings: Settings, day: str) -> list[dict[str, Any]]:
    lake = Lake(settings.root, settings.source)
    for log in sorted((settings.home / "live").glob("*/log")):
        collect(lake, log.parent, log.parent.name)
    return [
        {"symbol": symbol, **row}
        for symbol, dated in lake.partitions("statements")
        if dated == day
        for row in lake.read("statements", symbol, dated).to_pylist()
    ]


def _decimal(row: Mapping[str, Any]) -> dict[str, Any]:
    lot = Decimal(row["lot"])
    amounts = {name: Decimal(row[column]) / E8 for name, column in _AMOUNTS.items()}
    change = amounts["realised"] - sum(amounts[n] for n in ("maker_fees", "taker_fees", "funding"))
    return {
        **{name: row[name] for name in ("date", "venue", "symbol")},
        **{name: row[f"{name}_lots"] * lot for name in _QUANTITIES},
        "executions": row["executions"],
        **amounts,
        "change": change,
        "compared": row["compared"],
        "venue_less_ours": Decimal(row["differs_e8"]) / E8,
        "differs": row["differs"],
        "note": row["note"],
    }


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows as CSV, amounts with eight decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(rows[0])
        writer.writerows([_text(value) for value in row.values()] for row in rows)


def _text(value: object) -> str:
    return f"{value:.8f}" if isinstance(value, Decimal) else str(value)


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows as Parquet, amounts as decimal128(27, 8)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {Decimal: _MONEY, int: pa.int64(), bool: pa.bool_(), str: pa.string()}
    schema = pa.schema([(name, kinds[type(value)]) for name, value in rows[0].items()])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for a terminal, and what was compared with the venue."""
    shown = ("venue", "symbol", "closing", "executions", *_AMOUNTS, "change")
    cells = [
        [f"{row[n]:,}" if isinstance(row[n], Decimal) else row[n] for n in shown] for row in rows
    ]
    notes = [
        f"{row['venue']} {row['symbol']}: {said}"
        for row in rows
        for said in (
            row["differs"] or row["compared"] * "agrees with the venue to the last unit",
            row["note"],
        )
        if said
    ]
    return "\n".join([table(cells, shown), "", *notes])


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 statement`."""
    parser.add_argument("date", metavar="YYYY-MM-DD", help="a UTC day")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write it as CSV")
    parser.add_argument("--parquet", metavar="FILE", type=Path, help="write it as Parquet")
    parser.add_argument("--beside", metavar="PAGE", help="of a backtest, by its page")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 statement`: a day by venue and symbol; exit status 1 where the venue's log differs."""
    rows = statement(settings, options.date, options.beside)
    if options.csv is not None:
        write_csv(rows, options.csv)
    if options.parquet is not None:
        write_parquet(rows, options.parquet)
    if not options.json:
        print(text(rows))
    return {"rows": rows, "failed": any(row["differs"] for row in rows)}
