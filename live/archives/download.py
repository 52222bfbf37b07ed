"""Downloads of the venue's public archives into a lake: parallel, rate-limited, resumable.

    ROOT/archive/raw/SYMBOL/…                files as the venue serves them
    ROOT/archive/date=DATE/SYMBOL.frames.zst the capture converted from them, one per symbol and date
    ROOT/archive/date=DATE/SYMBOL.json       counts of the archives, and the settings of the conversion
    ROOT/archive/funding/SYMBOL.csv          settled funding rates

Idempotent: a date whose note matches the present settings is not requested again. A partial file is
resumed where it ends; one that cannot be read is downloaded once more from its start.
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

from live.archives.conversion import ArchiveDay, ArchiveError, convert, doubtful
from live.archives.rest import RequestError, RetryPolicy, Settlement, request, settlements
from market.console import Result, names, say, table
from market.errors import DataError
from market.instruments import refusal
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, MS_NS, day_start_ns, days_between, previous_day

#: First date whose book archive has 200 levels a side instead of 500.
SWITCH_DAY: Final = "2025-08-21"
_CHUNK_BYTES: Final = 1 << 18
#: Of the conversion; raised when it changes, so that existing captures are converted again.
_VERSION: Final = 3


class FetchError(DataError):
    """Nothing can be fetched; the message says what to change."""


class DayNote(msgspec.Struct, frozen=True, kw_only=True):
    """The note beside a converted date: its counts, and everything the conversion depended on."""

    version: int
    latency_ms: float
    depth: int
    funding: tuple[Settlement, ...]
    day: ArchiveDay


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of a fetch, which is also the JSON of `l2 fetch`.

    ``made`` are the dates converted now, ``standing`` counts those that were current already,
    ``lacking`` names what the venue does not have, ``failures`` what may be tried again,
    ``funding_rates`` counts the settlements stored by symbol, and ``doubtful`` names spans in which
    one may be missing.
    """

    made: tuple[ArchiveDay, ...]
    standing: int
    lacking: tuple[str, ...]
    failures: tuple[str, ...]
    funding_rates: dict[str, int]
    doubtful: tuple[str, ...] = ()


def fetch(
    settings: Settings, symbols: Sequence[str], first: str, last: str, say: Callable[[str], None]
) -> Fetched:
    """Fetch the archives of these symbols from the first to the last date, both included.

    A failing date does not stop the others. FetchError when the range or the lake is unusable.
    """
    try:
        days = days_between(first, last)
    except ValueError as error:
        raise FetchError(f"{first} to {last}: expected dates as YYYY-MM-DD ({error})") from error
    if not days:
        raise FetchError(f"{first} to {last}: the range is empty")
    if refused := [why for symbol in symbols if (why := refusal(symbol))]:
        raise FetchError("; ".join(refused))
    if settings.source != "recorded":
        raise FetchError("archives are recorded data and need a root whose source is recorded")
    lake = Lake(settings.home, settings.source)
    fetcher = _Fetcher(settings, lake)
    converted: list[ArchiveDay] = []
    lacking: list[str] = []
    failures: list[str] = []
    rate_counts = {}
    gaps: list[str] = []
    for symbol in symbols:
        try:
            stored = fetcher.store_funding(symbol, previous_day(days[0]), days[-1])
            rate_counts[symbol], fetched = stored
            gaps += [
                f"{symbol}: {utc_text(before)} to {utc_text(after)}"
                for before, after in doubtful(fetched)
            ]
        except RequestError as error:
            failures.append(f"{symbol} funding: {error}")
            say(failures[-1])
    keys = [(symbol, day) for day in days for symbol in symbols]
    pending = [key for key in keys if not fetcher.is_current(*key)]
    if len(pending) < len(keys):
        say(f"{len(keys) - len(pending)} of {len(keys)} dates are current already")
    with ThreadPoolExecutor(max(1, settings.history.connections)) as pool:
        downloads = {pool.submit(fetcher.download, *key): key for key in pending}
        for number, future in enumerate(as_completed(downloads), 1):
            symbol, day = downloads[future]
            try:
                missing = future.result()
                if missing:
                    lacking.append(f"{symbol} {day}: {' and '.join(missing)}")
                    text = f"the venue has no {' and no '.join(missing)}"
                else:
                    converted.append(fetcher.convert(symbol, day))
                    text = _counts_text(converted[-1])
            except (RequestError, ArchiveError, OSError) as error:
                failures.append(f"{symbol} {day}: {error}")
                text = f"failed: {error}"
            say(f"{number} of {len(pending)}: {symbol} {day}: {text}")
    return Fetched(
        made=tuple(sorted(converted, key=lambda each: (each.day, each.symbol))),
        standing=len(keys) - len(pending),
        lacking=tuple(sorted(lacking)),
        failures=tuple(sorted(failures)),
        funding_rates=rate_counts,
        doubtful=tuple(gaps),
    )


class _Fetcher:
    """The steps of one (symbol, date); `download` may run in several threads."""

    def __init__(self, settings: Settings, lake: Lake) -> None:
        self._history, self._market = settings.history, settings.market
        self._lake = lake
        self._root = Path(lake.base) / "archive"
        self._retry = RetryPolicy(
            settings.history.attempts, settings.history.wait_s, settings.history.timeout_s
        )

    def is_current(self, symbol: str, day: str) -> bool:
        """Whether the date's capture exists and was converted by the present settings and rates."""
        path = self._note_path(symbol, day)
        if not (path.exists() and Path(self._lake.archive(symbol, day)).exists()):
            return False
        try:
            note = msgspec.json.decode(path.read_bytes(), type=DayNote)
        except msgspec.MsgspecError:
            return False  # of another version: converted again from the raw files
        return note == self._note(note.day)

    def download(self, symbol: str, day: str) -> list[str]:
        """Download both archives of a date; names of those that the venue does not have."""
        missing = []
        if self._raw_trades(symbol, day) is None:
            missing.append("trades")
        if self._raw_books(symbol, day) is None:
            missing.append("books")
        return missing

    def convert(self, symbol: str, day: str) -> ArchiveDay:
        """Convert a date's archives into its capture; damaged ones are downloaded once more."""
        try:
            return self._convert(symbol, day)
        except ArchiveError:
            for path in (*self._book_paths(symbol, day), self._trades_path(symbol, day)):
                path.unlink(missing_ok=True)
            self.download(symbol, day)
            return self._convert(symbol, day)

    def _convert(self, symbol: str, day: str) -> ArchiveDay:
        books, trades = self._raw_books(symbol, day), self._raw_trades(symbol, day)
        if books is None or trades is None:
            raise ArchiveError(f"{symbol} {day}: the venue no longer has an archive of it")
        note_path = self._note_path(symbol, day)
        note_path.unlink(missing_ok=True)
        counts = convert(
            books,
            trades,
            Path(self._lake.archive(symbol, day)),
            symbol=symbol,
            day=day,
            depth=self._market.book_depth,
            latency_ns=round(self._market.archive_latency_ms * MS_NS),
            funding=self._rates_for(symbol, day),
        )
        note_path.write_bytes(msgspec.json.encode(self._note(counts)))
        return counts

    def store_funding(self, symbol: str, first: str, last: str) -> tuple[int, list[Settlement]]:
        """Add the settlements of these dates to the symbol's file; how many it then has, and they."""
        start_ns, stop_ns = day_start_ns(first), day_start_ns(last) + DAY_NS
        fetched = settlements(
            self._history.rest_url, symbol, start_ns // MS_NS, stop_ns // MS_NS - 1, self._retry
        )
        path = self._funding_path(symbol)
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {each.ms: each for each in (*self._stored(symbol), *fetched)}
        stored = sorted(known.values())
        part = path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["settled_ms", "settled_utc", "rate", "mark"])
            for ms, rate, mark in stored:
                writer.writerow([ms, utc_text(ms), rate, mark])
        os.replace(part, path)
        return len(stored), fetched

    def _stored(self, symbol: str) -> list[Settlement]:
        path = self._funding_path(symbol)
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [
                Settlement(int(row["settled_ms"]), row["rate"], row.get("mark") or "")
                for row in csv.DictReader(file)
            ]

    def _rates_for(self, symbol: str, day: str) -> tuple[Settlement, ...]:
        """Stored settlements of a date and of the one before, oldest first."""
        start_ns, stop_ns = day_start_ns(previous_day(day)), day_start_ns(day) + DAY_NS
        return tuple(each for each in self._stored(symbol) if start_ns <= each.ms * MS_NS < stop_ns)

    def _note(self, day: ArchiveDay) -> DayNote:
        return DayNote(
            version=_VERSION,
            latency_ms=self._market.archive_latency_ms,
            depth=self._market.book_depth,
            funding=self._rates_for(day.symbol, day.day),
            day=day,
        )

    def _funding_path(self, symbol: str) -> Path:
        return self._root / "funding" / f"{symbol}.csv"

    def _note_path(self, symbol: str, day: str) -> Path:
        return Path(self._lake.archive(symbol, day)).with_name(f"{symbol}.json")

    def _trades_path(self, symbol: str, day: str) -> Path:
        return self._root / "raw" / symbol / f"{symbol}{day}.csv.gz"

    def _book_paths(self, symbol: str, day: str) -> list[Path]:
        """Both possible names of a date's book archive, the likelier one first."""
        depths = (500, 200) if day < SWITCH_DAY else (200, 500)
        folder = self._root / "raw" / symbol
        return [folder / f"{day}_{symbol}_ob{depth}.data.zip" for depth in depths]

    def _raw_trades(self, symbol: str, day: str) -> Path | None:
        path = self._trades_path(symbol, day)
        url = f"{self._history.trades_url}/{symbol}/{path.name}"
        return path if download(url, path, self._retry) else None

    def _raw_books(self, symbol: str, day: str) -> Path | None:
        paths = self._book_paths(symbol, day)
        for path in paths:
            if path.exists():
                return path
        for path in paths:
            url = f"{self._history.books_url}/{symbol}/{path.name}"
            if download(url, path, self._retry):
                return path
        return None


def download(url: str, path: Path, retry: RetryPolicy) -> bool:
    """Download one file atomically, unless it exists; False when the server has none (404).

    RequestError when retries do not help.
    """
    if path.exists():
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        retry.run(url, lambda: _resume(url, part, retry.timeout_s))
    except RequestError as error:
        if error.status == 404:
            return False
        raise
    os.replace(part, path)
    return True


def _resume(url: str, part: Path, timeout_s: float) -> None:
    """Append the missing rest of a file. OSError when the body ends before its announced size."""
    offset = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    try:
        response = urllib.request.urlopen(request(url, **headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        part.unlink(missing_ok=True)
        raise OSError(
            f"{url}: has no more than {offset} bytes; downloaded from its start"
        ) from error
    with response, part.open("ab") as file:
        if response.status != 206:  # the whole file instead of the range
            file.truncate(0)
            offset = 0
        length = response.headers.get("Content-Length")
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
        size = file.tell()
    if length is not None and size != offset + int(length):
        raise OSError(f"{url}: ended after {size} of {offset + int(length)} bytes")


def utc_text(ms: int) -> str:
    """An instant in epoch ms as ISO 8601 text."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def _counts_text(day: ArchiveDay) -> str:
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
    symbols = names(options.symbols) or settings.market.recorded
    fetched = fetch(settings, symbols, options.first, options.last or options.first, say)
    if not options.json:
        rows: list[tuple[str, object]] = [
            ("dates fetched", len(fetched.made)),
            ("dates that were current", fetched.standing),
            *(("a funding settlement may be missing", text) for text in fetched.doubtful),
            *(("the venue lacks", text) for text in fetched.lacking),
            *(("FAILED, run it again", text) for text in fetched.failures),
        ]
        print(table(rows))
    return {"failed": bool(fetched.failures), **msgspec.to_builtins(fetched)}
