"""`l2 retain`: bytes by table and date, and which captures may go because what is made of them stands.

A capture is the only thing of a lake that cannot be made again, and the largest. It may go when it is older
than asked and, of every symbol and date that it holds, each table made of it at any remove is there, is
current (code and inputs), names the capture among its files and reaches to its end, and each other capture
that holds one of them may go too. Any other is kept, and the reason named. Nothing is removed without ``--delete``.

Partitions are not compacted: a partition is one file already, and those of a day are large but for records
(docs/storage.md has the figures).
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from assets.isolation import critical, name
from assets.staleness import stale_tables
from market.console import Result, say, table
from market.errors import DataError, UsageError
from market.lake import Lake
from market.provenance import tables as declared
from market.settings import Settings
from market.units import DAY_NS, day_start_ns
from market.wire.survey import Key, last_receive_ns, scan

#: Made of events where something is to say, or for a study: their absence is no lack.
_OPTIONAL: Final = frozenset({"quarantine", "study"})


class Expiry(msgspec.Struct, frozen=True):
    """A capture older than asked; ``kept`` says why it has to stay, "" for one that may go."""

    path: str
    date: str
    size: int
    kept: str


def derived() -> list[str]:
    """Tables that are made of captures at any remove, each after those that it is made of."""
    found = ["events"]
    for each, (declaration, _) in declared().items():
        if set(declaration.upstream) & set(found) and each not in _OPTIONAL:
            found.append(each)
    return found


def sizes(lake: Lake) -> dict[str, dict[str, int]]:
    """Table -> date -> bytes, largest table first; captures are under ``frames`` and ``archive``."""
    found: dict[str, dict[str, int]] = {}
    for each in lake.tables():
        for (_, day), entry in lake.entries(each).items():
            dates = found.setdefault(each, {})
            dates[day] = dates.get(day, 0) + entry.size
    for kind in ("frames", "archive"):
        for _, day, size in _captures(lake, kind):
            dates = found.setdefault(kind, {})
            dates[day] = dates.get(day, 0) + size
    return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))


def expiries(lake: Lake, settings: Settings, before: str) -> Iterator[Expiry]:
    """The captures filed under dates before ``before``; with each the reason why it is kept, if it is.

    Tables are made again of every capture of a date that is there, so that those of a key go together or stay.
    """
    captures, copies = _all(lake), list[Expiry]()
    here = lake if lake.is_local else Lake(lake.home, lake.source)
    there = {path: size for path, _, size in captures}
    for path, day, size in _all(here) if here is not lake else ():
        if there.get(f"{lake.base}/{path.removeprefix(f'{here.base}/')}") != size:
            captures.append((path, day, size))
        elif day < before:  # the bucket's is the one that is judged
            copies.append(Expiry(path, day, size, ""))
    held: dict[str, Collection[Key]] = {}
    kept: dict[str, str] = {}
    for path, day, _ in captures:
        if day < before:
            held[path], kept[path] = _judged(lake, settings, path)
            if kept[path] and path not in there:
                kept[path] = "not uploaded; `l2 upload`"
    latest = max((day for keys in held.values() for _, day in keys), default="")
    for path, day, _ in captures:
        if before <= day <= latest:
            held[path], kept[path] = _held(settings, path)[0], "younger"
    keep_together(held, kept)
    for path, day, size in captures:
        if day < before:
            yield Expiry(path, day, size, kept[path])
    yield from copies


def keep_together(held: Mapping[str, Collection[Key]], kept: dict[str, str]) -> None:
    """Keep each capture that holds a key of one that is kept, with the reason."""
    keeps: dict[Key, str] = {}
    more = [path for path, why in kept.items() if why]
    while more:
        keeps.update({key: path for path in more for key in held[path] if key not in keeps})
        more = []
        for path in [path for path, why in kept.items() if not why]:
            if (key := next((key for key in held[path] if key in keeps), None)) is not None:
                kept[path] = f"{name(key)} is also in {keeps[key]}, which is kept"
                more.append(path)


def delete(lake: Lake, expired: Sequence[Expiry]) -> int:
    """Remove the captures that may go; their bytes."""
    gone = [each for each in expired if not each.kept]
    for each in gone:
        store = lake.store if each.path.startswith(lake.base) else Lake(lake.home).store
        store.delete(each.path)
        if "://" not in each.path:
            with suppress(OSError):  # other captures of the date are there
                Path(each.path).parent.rmdir()
    return sum(each.size for each in gone)


def _all(lake: Lake) -> list[tuple[str, str, int]]:
    return [found for kind in ("frames", "archive") for found in _captures(lake, kind)]


def _captures(lake: Lake, kind: str) -> list[tuple[str, str, int]]:
    """(path, date, bytes) of each capture, by date."""
    return sorted(
        (entry.path, entry.path.split("/date=")[1].partition("/")[0], entry.size)
        for entry in lake.store.below(f"{lake.base}/{kind}")
        if entry.path.endswith(".frames.zst") and "/date=" in entry.path
    )


def _held(settings: Settings, path: str) -> tuple[Collection[Key], str]:
    """The keys of a capture; none, and why, where it cannot be read."""
    try:
        held = scan([path], settings.market.book_depth)
    except DataError as error:
        return (), str(error)
    return held, "" if held else "holds no frame that tables are made of"


def _judged(lake: Lake, settings: Settings, path: str) -> tuple[Collection[Key], str]:
    """The keys of a capture, and why it has to stay by what is made of it alone."""
    held, why = _held(settings, path)
    try:
        last_ns = last_receive_ns(path) if held else 0
        reasons = (_unproven(lake, settings, key, Path(path).name, last_ns) for key in sorted(held))
        return held, why or next(filter(None, reasons), "")
    except DataError as error:
        return held, str(error)


def _unproven(lake: Lake, settings: Settings, key: Key, file: str, last_ns: int) -> str:
    """What is missing of the tables of a key that are made of a capture; "" for nothing."""
    for each in derived():
        if not lake.exists(each, *key):
            return f"{each} of {name(key)} is not there"
        if not lake.is_current(each, *key):
            return f"{each} of {name(key)} was made by other code"
    if failing := critical(lake, key, ("events", "bars")):
        return f"{name(key)} failed {failing}"
    if changed := stale_tables(lake, settings, [key]):
        return f"{changed[key]} of {name(key)} was made from other inputs"
    notes = {each: lake.metadata(each, *key) for each in ("events", "ingests")}
    if notes["ingests"]["inputs"] != notes["events"]["inputs"]:
        return f"ingests of {name(key)} was made from other inputs"
    files = msgspec.json.decode(notes["ingests"].get("files", "[]"))
    if file not in {used["file"] for used in files}:
        return f"events of {name(key)} are not made of it"
    end_ns = min(last_ns, day_start_ns(key[1]) + DAY_NS)
    if int(notes["events"].get("until_ns", 0)) < end_ns:
        return f"events of {name(key)} end before it does"
    return ""


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 retain`."""
    parser.add_argument("--older", type=int, metavar="DAYS", help="judge captures older than this")
    parser.add_argument("--delete", action="store_true", help="remove those that may go")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 retain`: sizes; with ``--older`` the captures that may go, removed only with ``--delete``."""
    lake = Lake(settings.root, settings.source)
    found = sizes(lake)
    judged: list[Expiry] = []
    freed = 0
    if options.older is not None:
        if options.older < 0:
            raise UsageError(f"--older {options.older}: expected a number of days")
        before = (datetime.now(UTC) - timedelta(days=options.older)).strftime("%Y-%m-%d")
        judged = list(expiries(lake, settings, before))
        if options.delete and judged:
            dates = [each.date for each in judged]
            with lake.working_on(min(dates), max(dates)):
                judged = list(expiries(lake, settings, before))  # as it stands under the lock
                freed = delete(lake, judged)
    if not options.json:
        rows: list[tuple[Any, ...]] = [
            (each, len(days), f"{sum(days.values()) / 1e6:,.1f}") for each, days in found.items()
        ]
        print(table(rows, ("table", "dates", "MB")))
        for each in judged:
            word = f"kept: {each.kept}" if each.kept else "removed" if freed else "may go"
            print(f"{each.path}  {each.size / 1e6:,.1f} MB  {word}")
        if any(not each.kept for each in judged) and not freed:
            say("nothing was removed; --delete removes what may go")
    return {"sizes": found, "captures": msgspec.to_builtins(judged), "freed": freed}
