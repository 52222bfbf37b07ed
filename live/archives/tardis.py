"""Tardis-format CSV files (plain or gzip) as rows: `incremental_book_L2`, `trades`, `derivative_ticker`.

    exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount
    exchange,symbol,timestamp,local_timestamp,id,side,price,amount
    exchange,symbol,timestamp,local_timestamp,funding_timestamp,funding_rate,predicted_funding_rate,
        open_interest,last_price,index_price,mark_price

Times are epoch µs: ``local_timestamp`` is that of receipt, by which a file is sorted. Columns are found by
name, in any order. A row that cannot be used is left out and counted; a file that is no such file, of
another exchange, of two symbols, damaged or out of order is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from live.archives.conversion import ArchiveError
from live.archives.foreign import Floats, Integers, Mask, Refused, put_levels
from market.events import EVENT, PLACES, SUMS, Events, Field, Kind
from market.instruments import Instrument

_COMMON: Final = {
    "exchange": pa.string(),
    "symbol": pa.string(),
    "timestamp": pa.int64(),
    "local_timestamp": pa.int64(),
}
_PRINT: Final = {"side": pa.string(), "price": pa.float64(), "amount": pa.float64()}
_TICKER_FIELDS: Final = {
    "mark_price": Field.MARK_PRICE,
    "index_price": Field.INDEX_PRICE,
    "last_price": Field.LAST_PRICE,
    "funding_rate": Field.FUNDING_RATE,
    "funding_timestamp": Field.NEXT_FUNDING_MS,
    "open_interest": Field.OPEN_INTEREST,
}
#: Feed -> the column that only its files have, and the types of the columns that are read.
_FEEDS: Final[dict[str, tuple[str, dict[str, pa.DataType]]]] = {
    "book": ("is_snapshot", {**_COMMON, "is_snapshot": pa.bool_(), **_PRINT}),
    "trades": ("id", {**_COMMON, **_PRINT}),
    "ticker": ("funding_rate", {**_COMMON, **dict.fromkeys(_TICKER_FIELDS, pa.float64())}),
}
#: The names of a side: what lifts the row to +1, and what to -1.
_SIDES: Final = {"book": ("bid", "ask"), "trades": ("buy", "sell")}

_BLOCK_BYTES: Final = 8 << 20
_SAMPLE_BYTES: Final = 1 << 20
#: 2000 to 2100 in µs: seconds, ms and ns of these years are all outside.
_EARLIEST_US, _LATEST_US = 946_684_800_000_000, 4_102_444_800_000_000


class TardisFile:
    """One file; ArchiveError when it is none of the three kinds, is empty, or of another exchange."""

    def __init__(self, path: Path, exchange: str) -> None:
        self.path, self._exchange = path, exchange
        self.symbol = ""
        self.refused = Refused(path)
        self.feed, self._types = self._find_feed()
        first = next(self._batches(_SAMPLE_BYTES), None)
        if first is None or not first.num_rows:
            raise ArchiveError(f"{path}: has a header and no rows")
        self._first = first
        self.symbol = str(first.column("symbol")[0])
        received = first.column("local_timestamp").drop_null()
        self.start_ns = int(received[0].as_py()) * 1000 if len(received) else 0
        self.refused = Refused(path)  # the first rows are read again with the others

    def sample(self) -> tuple[Floats, Floats]:
        """Prices and quantities of the file's first MB; none of a ticker."""
        if self.feed == "ticker":
            return np.zeros(0), np.zeros(0)
        prices, amounts = (_floats(self._first, name) for name in ("price", "amount"))
        sound = (prices > 0) & (amounts >= 0)
        return prices[sound], amounts[sound]

    def blocks(self, instrument: Instrument) -> Iterator[tuple[Integers, Events]]:
        """The rows of every usable line, each with its number."""
        first = 1
        for batch in self._batches(_BLOCK_BYTES):
            yield self._rows(batch, np.arange(first, first + batch.num_rows), instrument)
            first += batch.num_rows

    # -- reading -------------------------------------------------------------------------------

    def _find_feed(self) -> tuple[str, dict[str, pa.DataType]]:
        """The feed that the header names, and the columns to read."""
        try:
            with pa.input_stream(str(self.path)) as file:
                line = file.read(1 << 16).partition(b"\n")[0].decode("utf-8-sig")
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            raise ArchiveError(f"{self.path}: cannot be read as CSV ({error})") from error
        if not line.strip():
            raise ArchiveError(f"{self.path}: empty, without a header")
        names = [name.strip().strip('"') for name in line.split(",")]
        for feed, (own, types) in _FEEDS.items():
            if own in names:
                if missing := [name for name in types if name not in names]:
                    raise ArchiveError(
                        f"{self.path}: {feed} without the columns {', '.join(missing)}"
                    )
                return feed, types
        raise ArchiveError(
            f"{self.path}: neither incremental_book_L2 nor trades nor derivative_ticker; "
            f"its first line is {line.strip()[:200]!r}"
        )

    def _batches(self, size: int) -> Iterator[Any]:
        """The file's record batches; whatever pyarrow finds wrong is an ArchiveError."""
        try:
            with (
                pa.input_stream(str(self.path)) as file,  # unpacked when its name ends with .gz
                pcsv.open_csv(
                    file,
                    pcsv.ReadOptions(block_size=size, use_threads=False),
                    pcsv.ParseOptions(invalid_row_handler=self._ragged),
                    pcsv.ConvertOptions(
                        column_types=self._types,
                        include_columns=list(self._types),
                        strings_can_be_null=True,
                    ),
                ) as reader,
            ):
                for batch in reader:
                    self._check(batch)
                    yield batch
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ArchiveError(f"{self.path}: cannot be read as CSV ({reason})") from error

    def _ragged(self, row: Any) -> str:
        self.refused.note("another number of columns than the header", (row.number or 2) - 1)
        return "skip"

    def _check(self, batch: Any) -> None:
        """One exchange and one symbol in all rows."""
        for name, wanted in (("exchange", self._exchange), ("symbol", self.symbol)):
            column = batch.column(name)
            wanted = wanted or str(column[0])
            other = pc.filter(column, pc.not_equal(column, wanted))
            if len(other):
                hint = f"--exchange {other[0]} takes it" if name == "exchange" else "one a file"
                raise ArchiveError(f"{self.path}: {name} {other[0]} beside {wanted}; {hint}")

    # -- rows ----------------------------------------------------------------------------------

    def _rows(
        self, batch: Any, numbers: Integers, instrument: Instrument
    ) -> tuple[Integers, Events]:
        exchange_us, receive_us = (
            batch.column(name).fill_null(0).to_numpy() for name in ("timestamp", "local_timestamp")
        )
        early, late = np.minimum(exchange_us, receive_us), np.maximum(exchange_us, receive_us)
        wrong = [("no time in µs", (early < _EARLIEST_US) | (late >= _LATEST_US))]
        if self.feed == "ticker":
            row, events = self._ticker(batch)
        else:
            row = np.arange(len(numbers))
            events = np.zeros(len(row), EVENT)
            up, down = (_where(pc.equal(batch.column("side"), name)) for name in _SIDES[self.feed])
            events["side"] = up.astype(np.int8) - down
            events["kind"] = Kind.TRADE
            if self.feed == "book":
                snapshot = _where(batch.column("is_snapshot"))
                events["kind"] = np.where(snapshot, Kind.SNAPSHOT, Kind.DELTA)
            prices, amounts = _floats(batch, "price"), _floats(batch, "amount")
            wrong += put_levels(events, prices, amounts, instrument, True)
        events["exchange_ns"], events["receive_ns"] = (
            exchange_us[row] * 1000,
            receive_us[row] * 1000,
        )
        usable = self.refused.sound(wrong, numbers)[row]
        return numbers[row][usable], events[usable]

    def _ticker(self, batch: Any) -> tuple[Integers, Events]:
        """A row for each cell that is not empty, and which line each is of."""
        values = np.stack([_floats(batch, name) for name in _TICKER_FIELDS], axis=1)
        row, column = np.nonzero(np.isfinite(values))
        fields = np.array(list(_TICKER_FIELDS.values()))[column]
        scales = np.array([10.0 ** PLACES[field] for field in _TICKER_FIELDS.values()])[column]
        scales[fields == Field.NEXT_FUNDING_MS] = 1e-3  # from µs
        scaled = values[row, column] * scales
        events = np.zeros(len(row), EVENT)
        events["kind"] = Kind.TICKER
        events["field"] = fields
        sums = np.isin(fields, list(SUMS))
        events["value"] = np.where(sums, np.floor(scaled + 1e-6), np.rint(scaled))
        return row, events


def _floats(batch: Any, name: str) -> Floats:
    """A column of numbers, NaN where a cell is empty."""
    values: Floats = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _where(column: Any) -> Mask:
    """A column of truth values, false where a cell is empty."""
    values: Mask = column.fill_null(False).to_numpy(zero_copy_only=False)
    return values
