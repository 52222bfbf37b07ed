"""Downloads of the venue's public archives into a lake: parallel, polite, resumable.

    ROOT/archive/raw/SYMBOL/…                the files as the venue serves them
    ROOT/archive/date=DATE/SYMBOL.frames.zst what they become: one capture a symbol and date
    ROOT/archive/date=DATE/SYMBOL.json       what was found in them, and by which settings they were read
    ROOT/archive/funding/SYMBOL.csv          settled funding rates

A date that stands is not asked for again. A file that was cut short goes on where it ended; one that
cannot be read is fetched once more from its beginning.
"""

from __future__ import annotations

import argparse
import csv
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from live.archives.archive import ArchiveDay, ArchiveError, Settled, convert
from live.archives.rest import Patience, RequestError, funding, request
from market.console import Result, names, say, table
from market.errors import DataError
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, day_start_ns, days_between, previous_day

#: The first date whose book archive has 200 levels instead of 500.
SWITCH_DAY: Final = "2025-08-21"
_CHUNK: Final = 1 << 18
#: Changes when archives are read in another way: what stands is then made anew.
_VERSION: Final = 2


class FetchError(DataError):
    """Nothing can be fetched as asked; the message says what to change."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The note beside a fetched date: what it holds, and what it was read by."""

    version: int
    latency_ms: float
    depth: int
    funding: tuple[Settled, ...]
    day: ArchiveDay


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """What a fetch did. ``lacking`` names what the venue has not; ``failures`` what may be tried again."""

    made: tuple[ArchiveDay, ...]
    standing: int
    lacking: tuple[str, ...]
    failures: tuple[str, ...]
    funding_rates: dict[str, int]


def fetch(
    settings: Settings, symbols: Sequence[str], first: str, last: str, say: Callable[[str], None]
) -> Fetched:
    """Bring the archives of these symbols from the first to the last date, both included.

    One date's failure does not stop the others. FetchError when the range or the root is unusable.
    """
    try:
        days = days_between(first, last)
    except ValueError as error:
        raise FetchError(f"{first} to {last}: expected dates as YYYY-MM-DD ({error})") from error
    if not days:
        raise FetchError(f"{first} to {last}: the range is empty")
    lake = Lake(settings.root, settings.source)
    if settings.source != "recorded" or not lake.is_local:
        raise FetchError(
            "archives are recorded data and need a local root whose source is recorded"
        )
    fetcher = _Fetcher(settings, lake)
    made: list[ArchiveDay] = []
    lacking: list[str] = []
    failures: list[str] = []
    rates = {}
    for symbol in symbols:
        try:
            rates[symbol] = fetcher.funding(symbol, previous_day(days[0]), days[-1])
        except RequestError as error:
            failures.append(f"{symbol} funding: {error}")
            say(failures[-1])
    keys = [(symbol, day) for day in days for symbol in symbols]
    wanted = [key for key in keys if not fetcher.stands(*key)]
    if len(wanted) < len(keys):
        say(f"{len(keys) - len(wanted)} of {len(keys)} dates stand already")
    with ThreadPoolExecutor(max(1, settings.history.connections)) as pool:
        waiting = {pool.submit(fetcher.download, *key): key for key in wanted}
        for number, future in enumerate(as_completed(waiting), 1):
            symbol, day = waiting[future]
            try:
                lacks = future.result()
                if lacks:
                    lacking.append(f"{symbol} {day}: {' and '.join(lacks)}")
                    text = f"the venue has no {' and no '.join(lacks)}"
                else:
                    made.append(fetcher.make(symbol, day))
                    text = _told(made[-1])
            except (RequestError, ArchiveError, OSError) as error:
                failures.append(f"{symbol} {day}: {error}")
                text = f"failed: {error}"
            say(f"{number} of {len(wanted)}: {symbol} {day}: {text}")
    return Fetched(
        made=tuple(sorted(made, key=lambda found: (found.day, found.symbol))),
        standing=len(keys) - len(wanted),
        lacking=tuple(sorted(lacking)),
        failures=tuple(sorted(failures)),
        funding_rates=rates,
    )


class _Fetcher:
    """The steps of one (symbol, date)."""

    def __init__(self, settings: Settings, lake: Lake) -> None:
        self.history, self.market = settings.history, settings.market
        self.lake = lake
        self.root = Path(lake.base) / "archive"
        self.patience = Patience(
            settings.history.attempts, settings.history.wait_s, settings.history.timeout_s
        )

    def stands(self, symbol: str, day: str) -> bool:
        note = self._note(symbol, day)
        if not (note.exists() and Path(self.lake.archive(symbol, day)).exists()):
            return False
        try:
            found = msgspec.json.decode(note.read_bytes(), type=Standing)
        except msgspec.MsgspecError:
            return False  # written by another version: made anew from the files that are there
        return found == self._standing(found.day)

    def download(self, symbol: str, day: str) -> list[str]:
        """Bring both archives of a date; what the venue has not got."""
        lacks = []
        if self._raw_trades(symbol, day) is None:
            lacks.append("trades")
        if self._raw_books(symbol, day) is None:
            lacks.append("books")
        return lacks

    def make(self, symbol: str, day: str) -> ArchiveDay:
        """The capture of a date from its archives; a damaged one is fetched once more."""
        try:
            return self._make(symbol, day)
        except ArchiveError:
            for path in (*self._book_paths(symbol, day), self._trades_path(symbol, day)):
                path.unlink(missing_ok=True)
            self.download(symbol, day)
            return self._make(symbol, day)

    def _make(self, symbol: str, day: str) -> ArchiveDay:
        books, trades = self._raw_books(symbol, day), self._raw_trades(symbol, day)
        if books is None or trades is None:
            raise ArchiveError(f"{symbol} {day}: an archive is gone")
        out = Path(self.lake.archive(symbol, day))
        note = self._note(symbol, day)
        note.unlink(missing_ok=True)
        found = convert(
            books,
            trades,
            out,
            symbol=symbol,
            day=day,
            depth=self.market.book_depth,
            latency_ns=round(self.market.archive_latency_ms * 1e6),
            funding=self._rates(symbol, day),
        )
        note.write_bytes(msgspec.json.encode(self._standing(found)))
        return found

    def funding(self, symbol: str, first: str, last: str) -> int:
        """Add the settled rates of these dates to the symbol's table; how many it then holds."""
        start, stop = day_start_ns(first), day_start_ns(last) + DAY_NS
        rates = funding(
            self.history.rest_url,
            symbol,
            start // 1_000_000,
            stop // 1_000_000 - 1,
            self.patience,
        )
        path = self._funding_path(symbol)
        path.parent.mkdir(parents=True, exist_ok=True)
        held = self._held_rates(symbol) | dict(rates)
        part = path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["settled_ms", "settled_utc", "rate"])
            for at, rate in sorted(held.items()):
                when = datetime.fromtimestamp(at / 1000, UTC).isoformat()
                writer.writerow([at, when, rate])
        os.replace(part, path)
        return len(held)

    def _held_rates(self, symbol: str) -> dict[int, str]:
        path = self._funding_path(symbol)
        if not path.exists():
            return {}
        with path.open(newline="") as file:
            return {int(row["settled_ms"]): row["rate"] for row in csv.DictReader(file)}

    def _rates(self, symbol: str, day: str) -> tuple[Settled, ...]:
        """What the symbol's table holds of a date and the one before, oldest first."""
        start, stop = day_start_ns(previous_day(day)), day_start_ns(day) + DAY_NS
        return tuple(
            (at, rate)
            for at, rate in sorted(self._held_rates(symbol).items())
            if start <= at * 1_000_000 < stop
        )

    def _funding_path(self, symbol: str) -> Path:
        return self.root / "funding" / f"{symbol}.csv"

    def _standing(self, day: ArchiveDay) -> Standing:
        return Standing(
            version=_VERSION,
            latency_ms=self.market.archive_latency_ms,
            depth=self.market.book_depth,
            funding=self._rates(day.symbol, day.day),
            day=day,
        )

    def _note(self, symbol: str, day: str) -> Path:
        return Path(self.lake.archive(symbol, day)).with_name(f"{symbol}.json")

    def _trades_path(self, symbol: str, day: str) -> Path:
        return self.root / "raw" / symbol / f"{symbol}{day}.csv.gz"

    def _book_paths(self, symbol: str, day: str) -> list[Path]:
        """Both names that a date's book archive can have, the likelier one first."""
        depths = (500, 200) if day < SWITCH_DAY else (200, 500)
        folder = self.root / "raw" / symbol
        return [folder / f"{day}_{symbol}_ob{depth}.data.zip" for depth in depths]

    def _raw_trades(self, symbol: str, day: str) -> Path | None:
        path = self._trades_path(symbol, day)
        url = f"{self.history.trades_url}/{symbol}/{path.name}"
        return path if download(url, path, self.patience) else None

    def _raw_books(self, symbol: str, day: str) -> Path | None:
        paths = self._book_paths(symbol, day)
        for path in paths:
            if path.exists():
                return path
        for path in paths:
            url = f"{self.history.books_url}/{symbol}/{path.name}"
            if download(url, path, self.patience):
                return path
        return None


def download(url: str, path: Path, patience: Patience) -> bool:
    """Bring one file, which appears whole or not at all; False when the server has none (404).

    Nothing is asked when the file is there. RequestError when it cannot be had.
    """
    if path.exists():
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        patience.insist(url, lambda: _go_on(url, part, patience.timeout_s))
    except RequestError as error:
        if error.status == 404:
            return False
        raise
    os.replace(part, path)
    return True


def _go_on(url: str, part: Path, timeout_s: float) -> None:
    """Fetch what of a file is not there yet. OSError when the body ends before its announced size."""
    held = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={held}-"} if held else {}
    try:
        answer = urllib.request.urlopen(request(url, **headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        part.unlink(missing_ok=True)
        raise OSError(f"{url}: no more than {held} bytes; begun anew") from error
    with answer, part.open("ab") as file:
        if answer.status != 206:
            file.truncate(0)
            held = 0
        announced = answer.headers.get("Content-Length")
        while piece := answer.read(_CHUNK):
            file.write(piece)
        size = file.tell()
    if announced is not None and size != held + int(announced):
        raise OSError(f"{url}: ended after {size} of {held + int(announced)} bytes")


def _told(day: ArchiveDay) -> str:
    late = f", starts {day.starts_late_s:.0f} s late" if day.starts_late_s >= 1 else ""
    return f"{day.book_lines:,} book frames, {day.gaps} gaps, {day.trades:,} trades{late}"


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 fetch`."""
    parser.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    parser.add_argument("--from", dest="first", metavar="YYYY-MM-DD", required=True)
    parser.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="default: the first date")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 fetch`: the venue's archives of a range of dates into the lake."""
    symbols = names(options.symbols) or settings.market.symbols
    fetched = fetch(settings, symbols, options.first, options.last or options.first, say)
    if not options.json:
        rows: list[tuple[str, object]] = [
            ("dates fetched", len(fetched.made)),
            ("dates that stood already", fetched.standing),
            *(("the venue lacks", text) for text in fetched.lacking),
            *(("FAILED, ask again", text) for text in fetched.failures),
        ]
        print(table(rows))
    return {"failed": bool(fetched.failures), **msgspec.to_builtins(fetched)}
