"""How rows of an earlier schema become rows of the present one; `l2 migrate` rewrites them so.

A table whose schema version was raised has a `Migration` here when its partitions are worth keeping:
their captures may be gone, or take long to read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from market.events import ARROW_SCHEMA, DICTIONARY, ENCODINGS, STEP_E8
from market.provenance import declaration


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """How a table's rows of one schema version become rows of the next."""

    table: str
    version: int  #: that it reads
    #: Hashes of the code whose rows of that version it is known to be right for.
    codes: tuple[str, ...]
    rows: Callable[[pa.Table], pa.Table]
    schema: pa.Schema
    #: Further arguments of `Lake.writer`.
    storage: Mapping[str, Any] = {}


def _events_2(rows: pa.Table) -> pa.Table:
    """Ticker values at 1e-8 become values at their field's own scale, further decimals cut."""
    old, step = rows["value_e8"].to_numpy(), STEP_E8.astype(np.int64)
    values = np.sign(old) * (np.abs(old) // step[rows["field"].to_numpy()])
    place = rows.column_names.index("value_e8")
    return rows.set_column(place, ARROW_SCHEMA.field("value"), pa.array(values))


MIGRATIONS: Final = (
    Migration(
        table="events",
        version=1,
        codes=("781166d12a2edcec", "81796d94906f5f04"),
        rows=_events_2,
        schema=ARROW_SCHEMA,
        storage={"dictionary": DICTIONARY, "encodings": ENCODINGS},
    ),
)


def steps_of(table: str, notes: Mapping[str, str]) -> Sequence[Migration]:
    """The migrations of a partition with this metadata, in order; none where one is missing."""
    known = {each.version: each for each in MIGRATIONS if each.table == table}
    first = int(notes.get("schema", 0))
    versions = range(first, declaration(table).version)
    if (
        not versions
        or not set(versions) <= known.keys()
        or notes.get("code") not in known[first].codes
    ):
        return ()
    return [known[version] for version in versions]
