"""`l2 import-sqlite`: books, trades and signals of a SQLite database with no schema to rely on, into the lake.

A mapping (TOML) says, for each table, which columns may hold what: of several names the first one that has a
value in a row counts, and a name that begins with ``=`` is the value itself.

    [[trades]]                              [[books]]       rows of one time are the whole book
    table = "trades"                        table = "l2"
    time = ["timestamp", "ts"]              time = ["time"]
    symbol = ["symbol", "=BTCUSDT"]         symbol = ["=BTCUSDT"]
    side = ["side"]                         side = ["side"]       buy, bid, b, 1 and sell, ask, s, a, -1
    price = ["price", "px"]                 price = ["price"]
    qty = ["qty", "amount"]                 qty = ["qty"]
    id = ["trade_id"]

    [[signals]]
    table = "signals"
    time = ["created"]
    symbol = ["symbol"]
    value = ["prediction"]

Numbers may be text, times are seconds, ms, µs or ns by their size, or ISO text (UTC). Books and trades become a
capture, which is ingested as any other; signals the table ``signals``. What cannot be used, and what is there
twice, is written beside the capture, row by row as it is in the database with its reason: nothing is lost.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sqlite3
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from live.archives.conversion import ArchiveError
from live.archives.foreign import (
    SYMBOL,
    Floats,
    Integers,
    Refused,
    instrument_of,
    put_levels,
    write_capture,
)
from market.console import Result, say, utc_time
from market.errors import UsageError
from market.events import EVENT, Events, Kind
from market.ingest import ingest
from market.instruments import Instrument, refusal
from market.intake import take_in
from market.lake import Lake
from market.provenance import Table
from market.settings import Settings
from market.units import MS_NS, utc_date

SIGNALS: Final = Table("signals", version=1, record=True)

#: Longer without a row is a gap that is named.
_GAP_NS: Final = 60_000 * MS_NS
_ROWS: Final = 50_000
_NO_TIME: Final = "no time between 2000 and 2100"
_FIRST_NS, _LAST_NS = 946_684_800_000 * MS_NS, 4_102_444_800_000 * MS_NS
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DECIMAL: Final = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TOGETHER: Final = 4_096
_UP: Final = ("'buy'", "'bid'", "'bids'", "'b'", "'long'", "'1'", "'1.0'", "'+1'")
_DOWN: Final = ("'sell'", "'ask'", "'asks'", "'s'", "'a'", "'short'", "'-1'", "'-1.0'")

Columns = tuple[str, ...]


class Mapped(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table, and the columns that may hold what."""

    table: str
    time: Columns
    symbol: Columns
    side: Columns = ()
    price: Columns = ()
    qty: Columns = ()
    id: Columns = ()
    value: Columns = ()


class Tables(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tables of each kind."""

    trades: tuple[Mapped, ...] = ()
    books: tuple[Mapped, ...] = ()
    signals: tuple[Mapped, ...] = ()


def read_mapping(path: Path) -> Tables:
    """The mapping of a file. UsageError when it is none."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text()), Tables)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}; docs/import.md shows a mapping") from error
    if not (found.trades or found.books or found.signals):
        raise UsageError(f"{path}: maps no table; docs/import.md shows a mapping")
    for kind, needed in (("trades", ("side", "price", "qty")), ("books", ("side", "price", "qty")),
                         ("signals", ("value",))):  # fmt: skip
        for table in getattr(found, kind):
            if missing := [name for name in needed if not getattr(table, name)]:
                raise UsageError(
                    f"{path}: [[{kind}]] {table.table}: say which column is {missing[0]}"
                )
    return found


class Database:
    """A SQLite file, opened to be read only. ArchiveError when it is none, or lacks a table or column."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ArchiveError(f"{path}: no such file")
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        for function in (_number, _ns):
            self._connection.create_function(function.__name__, 1, function, deterministic=True)
        self._known: dict[str, list[str]] = {}

    def columns(self, table: str) -> list[str]:
        if known := self._known.get(table):
            return known
        with self._reading():
            query = f"pragma table_info({_name(table)})"
            found = [row[1] for row in self._connection.execute(query)]
            query = (
                "select name, type from sqlite_master where type in ('table', 'view') order by name"
            )
            types = dict(self._connection.execute(query))
        if not found:
            raise ArchiveError(
                f"{self.path}: no table {table}; there are: {', '.join(types) or 'none'}"
            )
        if types.get(table) == "view" or not self._numbered(table, found):
            raise ArchiveError(
                f"{self.path}: {table} is a view, or a table without rowid: its rows cannot be told "
                f"apart; copy them into a table (create table rows as select * from {_name(table)})"
            )
        self._known[table] = found
        return found

    def rows(self, mapped: Mapped, fields: Sequence[str], where: str = "") -> Iterator[list[Any]]:
        """Blocks of (rowid, time in ns, fields…) by time, those without one last; what is no number is None."""
        known = self.columns(mapped.table)
        select = [_rowid(known), f"_ns({_raw(self._first(mapped, known, 'time'))})"]
        select += [self._field(mapped, known, name) for name in fields]
        query = f"select {', '.join(select)} from {_name(mapped.table)} {where} order by 2 nulls last, 1"
        with self._reading():
            cursor = self._connection.execute(query)
            while rows := cursor.fetchmany(_ROWS):
                yield rows

    def row(self, table: str, rowid: int) -> dict[str, Any]:
        """A row as it is in the database."""
        known = self.columns(table)
        query = f"select * from {_name(table)} where {_rowid(known)} = ?"
        with self._reading():
            cursor = self._connection.execute(query, (rowid,))
            return dict(zip((each[0] for each in cursor.description), next(cursor), strict=True))

    def symbols(self, mapped: Mapped) -> list[tuple[str, str]]:
        """Each symbol, empty for none, with the where clause of its rows: together they are all rows."""
        # In hex, as text may be no UTF-8 and a number equals no text; that of NULL is empty.
        code = f"hex({self._first(mapped, self.columns(mapped.table), 'symbol')})"
        query = f"select distinct {code} from {_name(mapped.table)} order by 1"
        with self._reading():
            codes = [row[0] for row in self._connection.execute(query)]
        return [
            (bytes.fromhex(found).decode("utf-8", "replace"), f"where {code} = '{found}'")
            for found in codes
        ]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise ArchiveError(f"{self.path}: {error}") from error

    def _numbered(self, table: str, known: Sequence[str]) -> bool:
        """Whether the rows have an id of SQLite's."""
        try:
            self._connection.execute(f"select {_rowid(known)} from {_name(table)} limit 0")
        except sqlite3.OperationalError:
            return False
        return True

    def _first(self, mapped: Mapped, known: Sequence[str], field: str) -> str:
        """The first of a field's columns that has a value, as SQL."""
        parts = []
        for name in getattr(mapped, field):
            if name.startswith("="):
                parts.append(_text(name[1:]))
            elif name in known:
                parts.append(f"nullif({_name(name)}, '')")
        if not parts:
            names = ", ".join(getattr(mapped, field))
            raise ArchiveError(f"{self.path}: {mapped.table} has no column {names} for {field}")
        return f"coalesce({', '.join(parts)}, null)"

    def _field(self, mapped: Mapped, known: Sequence[str], field: str) -> str:
        if not getattr(mapped, field):
            return "null"
        first = self._first(mapped, known, field)
        if field == "side":
            text = f"lower(trim(cast({first} as text)))"
            return (
                f"case when {text} in ({', '.join(_UP)}) then 1 "
                f"when {text} in ({', '.join(_DOWN)}) then -1 end"
            )
        if field == "symbol":
            return f"cast({first} as text)"
        return first if field == "id" else f"_number({_raw(first)})"


class Rejects:
    """Rows that do not fit, as they are in the database, in a file that is made when there is the first."""

    def __init__(self, path: Path, database: Database) -> None:
        self.path, self.counts = path, Counter[str]()
        self._database = database
        self._file: Any = None

    def __call__(self, table: str, rowid: int, reason: str) -> None:
        self.counts[f"{table}: {reason}"] += 1
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8", newline="")
            self._writer = csv.writer(self._file)
            self._writer.writerow(["table", "rowid", "reason", "values"])
        row = self._database.row(table, rowid)
        text = json.dumps(row, default=bytes.hex, ensure_ascii=False)
        self._writer.writerow([table, rowid, reason, text])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _no_symbol(name: str) -> str:
    """Why something is no symbol; empty for one."""
    if not name:
        return "no symbol"
    return refusal(name) if SYMBOL.fullmatch(name) else "not a symbol of the venue, such as BTCUSDT"


class TableSource:
    """Books or trades of one symbol in one table, as rows of a capture (`live.archives.foreign.Source`)."""

    def __init__(
        self,
        database: Database,
        mapped: Mapped,
        feed: str,
        symbol: tuple[str, str],
        rejects: Rejects,
    ) -> None:
        self.path, self.feed = database.path, feed
        self.symbol, self._where = symbol
        self.refused = Refused(database.path)
        self._database, self._mapped, self._rejects = database, mapped, rejects
        first = next(self._blocks(), [])
        self.start_ns: int = first[0][1] or 0 if first else 0
        found = np.array([(r[3] or 0.0, r[4] or 0.0) for r in first], np.float64).reshape(-1, 2)
        self._sample = found[(found > 0).all(axis=1)]
        self.gaps = 0

    def _blocks(self) -> Iterator[list[Any]]:
        return self._database.rows(self._mapped, ("side", "price", "qty", "id"), self._where)

    def sample(self) -> tuple[Floats, Floats]:
        return self._sample[:, 0], self._sample[:, 1]

    def blocks(self, instrument: Instrument) -> Iterator[tuple[Integers, Events]]:
        """The usable rows; of the same row twice the first, of a level twice the last."""
        ids: set[Any] = set()
        for rows in self._together():
            events, reasons = self._judged(rows, instrument)
            # Rows that cannot be used take no other's place.
            usable = [row for row, reason in zip(rows, reasons, strict=True) if not reason]
            last, at_once = {row[1:4]: row for row in usable}, set[Any]()
            for n, row in enumerate(rows):
                if reasons[n]:
                    continue
                if self.feed == "book":
                    if last[row[1:4]] is not row:
                        reasons[n] = "a later row has the same level at the same time"
                    continue
                known, key = (at_once, row[1:5]) if row[5] is None else (ids, row[5])
                if key in known:
                    reasons[n] = "there twice"
                known.add(key)
            for row, reason in zip(rows, reasons, strict=True):
                if reason:
                    self._reject(row, reason)
            sound = np.array([not reason for reason in reasons], np.bool_)
            yield np.array([row[0] for row in rows], np.int64)[sound], events[sound]

    def _together(self) -> Iterator[list[Any]]:
        """Rows in pieces that divide none of one time."""
        at, waiting = None, list[Any]()
        for block in self._blocks():
            for row in block:
                if row[1] != at:
                    if len(waiting) >= _TOGETHER:
                        yield waiting
                        waiting = []
                    self.gaps += at is not None and (row[1] or at) - at > _GAP_NS
                    at = row[1]
                waiting.append(row)
        if waiting:
            yield waiting

    def _judged(self, rows: list[Any], instrument: Instrument) -> tuple[Events, list[str]]:
        """Rows as events, and why each cannot be used: empty for those that can."""
        events = np.zeros(len(rows), EVENT)
        side, price, qty = (
            np.array([np.nan if row[n] is None else row[n] for row in rows], np.float64)
            for n in (2, 3, 4)
        )
        times = np.array([row[1] or 0 for row in rows], np.int64)
        events["side"] = np.nan_to_num(side).astype(np.int8)
        events["kind"] = Kind.TRADE if self.feed == "trades" else Kind.SNAPSHOT
        events["exchange_ns"] = events["receive_ns"] = times
        reasons = [""] * len(rows)
        wrong = [(_NO_TIME, times == 0), *put_levels(events, price, qty, instrument, True)]
        for reason, mask in wrong:
            for n in np.flatnonzero(mask):
                reasons[n] = reasons[n] or reason
        return events, reasons

    def usable(self) -> bool:
        """Whether there is a symbol and a time; else every row is left out."""
        reason = _no_symbol(self.symbol) or ("" if self.start_ns else _NO_TIME)
        for block in self._blocks() if reason else ():
            for row in block:
                self._reject(row, reason)
        return not reason

    def _reject(self, row: Sequence[Any], reason: str) -> None:
        self.refused.note(f"{self._mapped.table}: {reason}", row[0])
        self._rejects(self._mapped.table, row[0], reason)


def signals(database: Database, mapped: Mapped, lake: Lake, rejects: Rejects) -> int:
    """Write a table's signals into the lake's partitions, beside those there; how many rows are in it."""
    by_day: dict[tuple[str, str], dict[int, float]] = {}
    count = 0
    for block in database.rows(mapped, ("symbol", "value")):
        for row, at, symbol, value in block:
            missing = _NO_TIME if at is None else "no value" if value is None else ""
            if missing := missing or _no_symbol(symbol or ""):
                rejects(mapped.table, row, missing)
                continue
            key = symbol, utc_date(at - 1)
            if key not in by_day:
                there = lake.exists(SIGNALS.name, *key)
                held = lake.read(SIGNALS.name, *key).to_pylist() if there else []
                by_day[key] = {each["t_ns"]: each["value"] for each in held}
            if by_day[key].setdefault(at, float(value)) != float(value):
                rejects(mapped.table, row, "a signal of that time is there already")
            else:
                count += 1
    for key, values in by_day.items():
        times = sorted(values)
        columns = {"t_ns": times, "value": [values[at] for at in times]}
        lake.write(SIGNALS.name, *key, pa.table(columns))
    return count


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 import-sqlite`."""
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--mapping", type=Path, required=True, metavar="M.toml")
    parser.add_argument("--out", type=Path, metavar="X.frames.zst", help="default: beside FILE")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """Import a database, and say what did not fit."""
    mapping, database = read_mapping(options.mapping), Database(options.file)
    out = options.out or options.file.with_suffix(".frames.zst")
    rejects = Rejects(out.with_suffix("").with_suffix(".left-out.csv"), database)
    lake = Lake(settings.root, settings.source)
    try:
        found: dict[str, Any] = {
            "signals": sum(signals(database, m, lake, rejects) for m in mapping.signals)
        }
        sources = [
            TableSource(database, mapped, feed, symbol, rejects)
            for feed, tables in (("trades", mapping.trades), ("book", mapping.books))
            for mapped in tables
            for symbol in database.symbols(mapped)
        ]
        sources = [source for source in sources if source.usable()]
        if sources:
            found |= _captured(sources, out, lake, settings)
    finally:
        rejects.close()
    found |= {"left_out": dict(rejects.counts), "file": str(rejects.path) if rejects.counts else ""}
    for reason, count in rejects.counts.items():
        say(f"{count:,} rows left out: {reason}")
    if not (sources or found["signals"]):
        say(f"{options.file}: no row fits the mapping; nothing was written into the lake")
    if not options.json:
        for name, value in found.items():
            print(f"{name:10} {value}")
    return found


def _captured(
    sources: list[TableSource], out: Path, lake: Lake, settings: Settings
) -> Mapping[str, Any]:
    symbols = sorted({source.symbol for source in sources})
    instruments = {
        s: instrument_of(s, [x for x in sources if x.symbol == s], "", "") for s in symbols
    }
    done = write_capture(out, sources, instruments, settings.market.book_depth)
    taken = take_in(lake, [str(out)], settings.market.book_depth, say)
    days = sorted(day for _, day in taken.keys)
    with lake.working_on(days[0], days[-1]):
        report = ingest(lake, taken.captures, taken.keys, settings, progress=say)
    gaps = {f"{s.symbol} {s.feed}": s.gaps for s in sources if s.gaps}
    begins = min(source.start_ns for source in sources)
    return {
        "from": utc_time(begins),
        "rows": done.rows,
        "frames": done.frames,
        "events": sum(report.events.values()),
        "gaps over 60 s": gaps,
        "capture": str(out),
    }


# -- SQL -------------------------------------------------------------------------------------------


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _raw(sql: str) -> str:
    """A value with text as bytes: it need not be UTF-8, which a function is given."""
    return f"case typeof({sql}) when 'text' then cast({sql} as blob) else {sql} end"


def _rowid(columns: Sequence[str]) -> str:
    """SQLite's name for the id of rows; the user's columns may have some of these names."""
    taken = {name.lower() for name in columns}
    return next((name for name in ("rowid", "oid", "_rowid_") if name not in taken), "rowid")


def _number(value: bytes | float | None) -> float | None:
    """A number, or text that is one and nothing else; None for anything else, NaN and infinity."""
    if isinstance(value, bytes):
        value = float(value) if _DECIMAL.fullmatch(value.strip()) else None
    return value if value is not None and math.isfinite(value) else None


def _ns(value: bytes | float | None) -> int | None:
    """A time: of a number by its size, of ISO text in UTC; None for what is not between 2000 and 2100."""
    text = value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else str(value)
    try:
        if (number := _number(value)) is not None:
            size = abs(number)
            unit = 10**9 if size < 1e11 else 10**6 if size < 1e14 else 10**3 if size < 1e17 else 1
            found = round(Decimal(text) * unit)  # a float would keep no µs of ms
        else:
            at = datetime.fromisoformat(text.replace(" +", "+").replace(" -", "-"))
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            found = (at - _EPOCH) // timedelta(microseconds=1) * 1000
    except (ValueError, ArithmeticError):  # of another form, or an exponent without bounds
        return None
    return found if _FIRST_NS <= found < _LAST_NS else None
