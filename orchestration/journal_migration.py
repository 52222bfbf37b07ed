"""Journals of earlier versions (SQLite), made into a log: `l2 migrate` calls it for each worker's folder.

Every entry becomes a record of the first segment, so that the tables can be made of it again; the second
starts from the checkpoint that follows: positions with their cost, funding, the parents' counter, orders
left open. The old file is kept beside it, renamed last: an interrupted migration begins anew.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from live.control import lock
from live.journal import OLD_JOURNAL, JournalError
from live.log import Header, LogWriter
from live.messages import Append
from live.restoration import checkpoint_of, restore
from market.instruments import BUILT_IN
from market.settings import Settings, effective
from market.units import E8

#: Schema versions that can be read: both have the same columns.
_VERSIONS: Final = (1, 2)
_COLUMNS: Final = "time_ns, kind, symbol, parent_id, client_id, body"


def migrate_journals(settings: Settings) -> dict[str, int]:
    """Make a log of every journal below the root; its file -> entries."""
    folders = sorted(settings.home.glob(f"live/*/{OLD_JOURNAL}"))
    return {str(path): _migrate(path, settings) for path in folders}


def _migrate(path: Path, settings: Settings) -> int:
    held = lock(path.with_suffix(".lock"), str(path))
    try:
        folder, fresh = path.parent / "log", path.parent / "log.tmp"
        entries = list(_entries(path))
        if not folder.exists():
            shutil.rmtree(fresh, ignore_errors=True)
            _write(fresh, path, entries, settings)
            os.rename(fresh, folder)
        os.rename(path, path.with_suffix(".sqlite3.migrated"))
        return len(entries)
    finally:
        os.close(held)


def _write(folder: Path, path: Path, entries: Sequence[Append], settings: Settings) -> None:
    symbols = sorted({entry.symbol for entry in entries if entry.symbol})
    if unknown := [symbol for symbol in symbols if symbol not in BUILT_IN]:
        raise JournalError(
            f"{path}: tick and lot of {', '.join(unknown)} are not known; add them to "
            "market/instruments.py"
        )
    instruments = {symbol: BUILT_IN[symbol] for symbol in symbols}
    runs = sum(entry.kind == "run" for entry in entries)
    header = Header(
        venue=path.parent.name,
        account="",
        source=settings.source,
        instruments={s: (each.tick, each.lot) for s, each in instruments.items()},
        settings=msgspec.json.encode(effective(settings)),
        code="",
        run=f"{path.parent.name}-migrated-{runs}",
    )
    now_ns = max((entry.time_ns for entry in entries), default=0)
    out = LogWriter(folder, header, now_ns)
    for entry in entries:
        out.append_effects(entry.time_ns, [entry])
    out.sync()
    restored = restore(folder, instruments, round(settings.execution.capital_usdt * E8))
    assert restored is not None
    out.turn(now_ns, checkpoint_of(restored.state))
    out.close()


def _entries(path: Path) -> Iterator[Append]:
    """The entries in the order they were written; JournalError for what is no journal of those versions."""
    try:
        with closing(sqlite3.connect(path, timeout=10.0)) as db:
            (version,) = db.execute("select max(version) from schema_version").fetchone()
            if version not in _VERSIONS:
                raise JournalError(
                    f"{path}: schema {version} is newer than {_VERSIONS[-1]}, the newest known here; use the "
                    "version of the platform that wrote it"
                )
            for time_ns, kind, *ids, body in db.execute(
                f"select {_COLUMNS} from entries order by seq"
            ):
                symbol, parent_id, client_id = ids
                yield Append(
                    kind=kind,
                    time_ns=time_ns,
                    body=body,
                    symbol=symbol,
                    parent_id=parent_id,
                    client_id=client_id,
                )
    except sqlite3.DatabaseError as error:
        raise JournalError(f"{path}: not a journal ({error}); move it away") from error
