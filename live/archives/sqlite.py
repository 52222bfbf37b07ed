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
twice, is written beside the capture, row by row with its reason: nothing is lost.
"""

from __future__ import annotations

import argparse
import csv
import sqlite3
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
_FIRST_MS, _LAST_MS = 946_684_800_000, 4_102_444_800_000
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


class Rejects:
    """Rows that do not fit, in a file beside the capture, made when there is the first."""

    def __init__(self, path: Path) -> None:
        self.path, self.counts = path, Counter[str]()
        self._file: Any = None

    def __call__(self, table: str, row: int, reason: str, values: Sequence[Any]) -> None:
        self.counts[f"{table}: {reason}"] += 1
        if self._file is None:
            self._file = self.path.open("w", newline="")
            self._writer = csv.writer(self._file)
            self._writer.writerow(["table", "rowid", "reason", "values"])
        self._writer.writerow([table, row, reason, *map(str, values)])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Database:
    """A SQLite file, opened to be read only. ArchiveError when it is none, or lacks a table or column."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ArchiveError(f"{path}: no such file")
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "replace")

    def columns(self, table: str) -> list[str]:
        try:
            found = [
                row[1] for row in self._connection.execute(f"pragma table_info({_name(table)})")
            ]
        except sqlite3.DatabaseError as error:
            raise ArchiveError(f"{self.path}: {error}") from error
        if not found:
            query = "select name from sqlite_master where type in ('table', 'view') order by name"
            names = ", ".join(row[0] for row in self._connection.execute(query)) or "none"
            raise ArchiveError(f"{self.path}: no table {table}; there are: {names}")
        return found

    def rows(self, mapped: Mapped, fields: Sequence[str], where: str = "") -> Iterator[list[Any]]:
        """Blocks of (rowid, time in ms, fields…) by time; what is no number or time is None."""
        known = self.columns(mapped.table)
        select = [f"({self._field(mapped, known, name)}) as {name}" for name in fields]
        time = _ms(self._first(mapped, known, "time"))
        query = (
            f"select rowid, {time} as ms, {', '.join(select)} from {_name(mapped.table)} {where} "
            "order by ms, rowid"
        )
        cursor = self._connection.execute(query)
        while rows := cursor.fetchmany(_ROWS):
            yield rows

    def symbols(self, mapped: Mapped) -> list[str]:
        known = self.columns(mapped.table)
        query = f"select distinct {self._first(mapped, known, 'symbol')} from {_name(mapped.table)}"
        return sorted(str(row[0]) for row in self._connection.execute(query) if row[0])

    def of(self, mapped: Mapped, symbol: str) -> str:
        """The where clause of a symbol's rows."""
        first = self._first(mapped, self.columns(mapped.table), "symbol")
        return f"where {first} = {_text(symbol)}"

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
        return first if field in ("id", "symbol") else _number(first)


def _no_symbol(symbol: object) -> str:
    """Why something is no symbol; empty for one."""
    if symbol is None:
        return "no symbol"
    name = str(symbol)
    return refusal(name) if SYMBOL.fullmatch(name) else "not a symbol of the venue, such as BTCUSDT"


class TableSource:
    """Books or trades of one symbol in one table, as rows of a capture (`live.archives.foreign.Source`)."""

    def __init__(
        self, database: Database, mapped: Mapped, feed: str, symbol: str, rejects: Rejects
    ) -> None:
        self.path, self.symbol, self.feed = database.path, symbol, feed
        self.refused = Refused(database.path)
        self._database, self._mapped, self._rejects = database, mapped, rejects
        self._where = database.of(mapped, symbol)
        first = next(
            (
                row[1]
                for block in self._blocks()
                for row in block
                if _FIRST_MS <= (row[1] or 0) < _LAST_MS
            ),
            0,
        )
        self.start_ns = round(first * MS_NS)
        self.gaps = 0

    def _blocks(self) -> Iterator[list[Any]]:
        return self._database.rows(self._mapped, ("side", "price", "qty", "id"), self._where)

    def sample(self) -> tuple[Floats, Floats]:
        block = next(self._blocks(), [])
        found = np.array([(r[3] or 0.0, r[4] or 0.0) for r in block], np.float64).reshape(-1, 2)
        sound = (found > 0).all(axis=1)
        return found[sound, 0], found[sound, 1]

    def blocks(self, instrument: Instrument) -> Iterator[tuple[Integers, Events]]:
        """The usable rows; of the same row twice the first, of a level twice the last."""
        seen: set[Any] = set()
        at, waiting = -1.0, list[Any]()
        for block in self._blocks():
            for row in block:
                if row[1] != at:
                    if len(waiting) >= _TOGETHER:
                        yield self._events(waiting, instrument)
                        waiting = []
                    if at > 0 and row[1] is not None and row[1] - at > _GAP_NS / MS_NS:
                        self.gaps += 1
                    at = row[1] or -1.0
                    if not self._mapped.id:
                        seen.clear()
                key = row[5] if self._mapped.id and row[5] is not None else tuple(row[2:5])
                if self.feed == "trades" and key in seen:
                    self._reject(row, "there twice")
                    continue
                seen.add(key)
                waiting.append(row)
        if waiting:
            yield self._events(waiting, instrument)

    def _events(self, rows: list[Any], instrument: Instrument) -> tuple[Integers, Events]:
        if self.feed == "book":
            last = {tuple(row[1:4]): row for row in rows}
            for row in rows:
                if last[tuple(row[1:4])] is not row:
                    self._reject(row, "a later row has the same level at the same time")
            rows = list(last.values())
        events = np.zeros(len(rows), EVENT)
        side, price, qty = (
            np.array([np.nan if row[n] is None else row[n] for row in rows], np.float64)
            for n in (2, 3, 4)
        )
        ms = np.array([row[1] or 0.0 for row in rows], np.float64)
        events["side"] = np.nan_to_num(side).astype(np.int8)
        events["kind"] = Kind.TRADE if self.feed == "trades" else Kind.SNAPSHOT
        events["exchange_ns"] = events["receive_ns"] = np.rint(ms * MS_NS).astype(np.int64)
        wrong = [(_NO_TIME, (ms < _FIRST_MS) | (ms >= _LAST_MS))]
        wrong += put_levels(events, price, qty, instrument, True)
        sound = np.ones(len(rows), np.bool_)
        for reason, mask in wrong:
            for n in np.flatnonzero(mask & sound):
                self._reject(rows[n], reason)
            sound &= ~mask
        return np.array([row[0] for row in rows], np.int64)[sound], events[sound]

    def usable(self) -> bool:
        """Whether there is a symbol and a time; else every row is left out."""
        reason = _no_symbol(self.symbol) or ("" if self.start_ns else _NO_TIME)
        for block in self._blocks() if reason else ():
            for row in block:
                self._reject(row, reason)
        return not reason

    def _reject(self, row: Sequence[Any], reason: str) -> None:
        self.refused.note(f"{self._mapped.table}: {reason}", int(row[0]))
        self._rejects(self._mapped.table, int(row[0]), reason, row[1:])


def signals(database: Database, mapped: Mapped, lake: Lake, rejects: Rejects) -> int:
    """Write a table's signals into the lake's partitions; how many."""
    by_day: dict[tuple[str, str], dict[int, float]] = {}
    for block in database.rows(mapped, ("symbol", "value")):
        for row, ms, symbol, value in block:
            missing = "no time" if ms is None else "no value" if value is None else ""
            if missing := missing or _no_symbol(symbol):
                rejects(mapped.table, row, missing, (ms, symbol, value))
                continue
            at = round(ms * MS_NS)
            held = by_day.setdefault((str(symbol), utc_date(at - 1)), {})
            if at in held:
                rejects(
                    mapped.table, row, "a signal of that time is there already", (ms, symbol, value)
                )
                continue
            held[at] = float(value)
    for (symbol, day), values in by_day.items():
        if lake.exists(SIGNALS.name, symbol, day):
            old = lake.read(SIGNALS.name, symbol, day)
            known = zip(
                old.column("t_ns").to_pylist(), old.column("value").to_pylist(), strict=True
            )
            values = dict(known) | values
        times = sorted(values)
        columns = {"t_ns": times, "value": [values[at] for at in times]}
        lake.write(SIGNALS.name, symbol, day, pa.table(columns))
    return sum(map(len, by_day.values()))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 import-sqlite`."""
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--mapping", type=Path, required=True, metavar="M.toml")
    parser.add_argument("--out", type=Path, metavar="X.frames.zst", help="default: beside FILE")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """Import a database, and say what did not fit."""
    mapping, database = read_mapping(options.mapping), Database(options.file)
    out = options.out or options.file.with_suffix(".frames.zst")
    rejects = Rejects(out.with_suffix("").with_suffix(".left-out.csv"))
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


def _number(sql: str) -> str:
    """A number, or text that is one; NULL for anything else."""
    return (
        f"case when typeof({sql}) in ('integer', 'real') then {sql} "
        f"when trim({sql}) glob '*[0-9]*' and trim({sql}) not glob '*[^0-9.eE+-]*' "
        f"then cast(trim({sql}) as real) end"
    )


def _ms(sql: str) -> str:
    """A time in ms: of a number by its size, of ISO text in UTC."""
    number = _number(sql)
    return (
        f"case when typeof({sql}) = 'text' and {sql} glob '[12][0-9][0-9][0-9]-*' "
        f"then (julianday({sql}) - 2440587.5) * 86400000.0 "
        f"when abs({number}) < 1e11 then {number} * 1000.0 when abs({number}) < 1e14 then {number} * 1.0 "
        f"when abs({number}) < 1e17 then {number} / 1000.0 else {number} / 1000000.0 end"
    )
