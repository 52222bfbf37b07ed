"""`l2 migrate`: partitions of an earlier schema, rewritten in place, and journals made into logs.

A partition is rewritten in pieces and replaced as a whole: one that was interrupted is as it was, and
the next call goes on with it. Lines that the earlier code had refused are not in it; ingest alone
brings them back.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa

from market.console import Result, say
from market.console import table as listing
from market.lake import Lake
from market.migration import Migration, steps_of
from market.provenance import declaration, is_current
from market.settings import Settings
from orchestration.journal_migration import migrate_journals

#: Rows in memory at once.
_BATCH: Final = 1 << 18
#: Metadata that the writer sets itself.
_OWN: Final = frozenset({"schema", "code", "source", "inputs"})


class Migrated(msgspec.Struct, frozen=True):
    """What a call did: partitions rewritten by table, and those of other code that it cannot."""

    rewritten: dict[str, int]
    left: dict[str, int]
    journals: dict[str, int] = {}  #: journal that became a log -> its entries


def migrate(lake: Lake, progress: Callable[[str], None] = lambda _: None) -> Migrated:
    """Rewrite every partition that has a migration; the others stay as they are."""
    rewritten: dict[str, int] = {}
    left: dict[str, int] = {}
    for table in lake.tables():
        for symbol, day in lake.partitions(table):
            notes = lake.metadata(table, symbol, day)
            steps = steps_of(table, notes)
            if steps:
                rows = _rewrite(lake, table, symbol, day, notes, steps)
                rewritten[table] = rewritten.get(table, 0) + 1
                progress(
                    f"{table} {symbol} {day}: {rows:,} rows, schema {notes['schema']} to "
                    f"{declaration(table).version}"
                )
            elif not is_current(table, notes.get("code")):
                left[table] = left.get(table, 0) + 1
    return Migrated(rewritten, left)


def _rewrite(
    lake: Lake,
    table: str,
    symbol: str,
    day: str,
    notes: Mapping[str, str],
    steps: Sequence[Migration],
) -> int:
    last = steps[-1]
    extra = {key: value for key, value in notes.items() if key not in _OWN}
    count = 0
    with (
        lake.as_written(table, symbol, day) as source,
        lake.writer(table, symbol, day, last.schema, notes["inputs"], extra, **last.storage) as out,
    ):
        for batch in source.iter_batches(batch_size=_BATCH):
            rows = pa.Table.from_batches([batch])
            for step in steps:
                rows = step.rows(rows)
            out.write_table(rows.replace_schema_metadata(out.schema.metadata))
            count += rows.num_rows
    return count


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 migrate`."""
    parser.add_argument(
        "--state",
        action="store_true",
        help="move the state from SQLite to the database of the settings",
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 migrate`: rewrite what has a migration, and name what has to be made again."""
    if options.state:
        from orchestration.state_migration import migrate_state

        moved = migrate_state(settings, say)
        return {"rows": moved}
    journals = migrate_journals(settings)
    done = msgspec.structs.replace(migrate(Lake(settings.root), say), journals=journals)
    if not options.json:
        rows = [(f"{name}: rewritten", n) for name, n in done.rewritten.items()]
        rows += [(f"{path}: entries made into a log", n) for path, n in journals.items()]
        rows += [(f"{name}: of other code, to be made again", n) for name, n in done.left.items()]
        print(listing(rows or [("nothing to do", "every partition is of the present code")]))
    plain: dict[str, Any] = msgspec.to_builtins(done)
    return plain
