"""One (symbol, date) of events being written, with what was quarantined of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from market.events import ARROW_SCHEMA, DICTIONARY, ENCODINGS, Events, to_arrow
from market.instruments import Instrument
from market.lake import Lake
from market.wire.results import Reject, TopicCounts

ROW_GROUP: Final = 1 << 18
QUARANTINE_SCHEMA: Final = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("raw", pa.binary(), nullable=False),
    ]
)


class Partition:
    """One (symbol, date) being written."""

    def __init__(self, lake: Lake, stack: ExitStack, key: tuple[str, str], inputs: str) -> None:
        self.lake, self.stack, self.key, self.inputs = lake, stack, key, inputs
        self.rows = 0
        self.restated = 0
        self.counts: dict[str, TopicCounts] = {}
        self.quarantined = 0
        self.instrument: Instrument | None = None
        self._pending: list[Events] = []
        self._pending_rows = 0
        self._events: pq.ParquetWriter | None = None
        self._quarantine: pq.ParquetWriter | None = None

    def add(self, events: Events) -> None:
        self.rows += len(events)
        self._pending.append(events)
        self._pending_rows += len(events)
        if self._pending_rows >= ROW_GROUP:
            self._flush(self._pending_rows - self._pending_rows % ROW_GROUP)

    def quarantine(self, places: Sequence[tuple[str, int]], rejects: Sequence[Reject]) -> None:
        if self._quarantine is None:
            self._quarantine = self._open("quarantine", QUARANTINE_SCHEMA, True, None)
        columns = [
            [Path(file).name for file, _ in places],
            [line for _, line in places],
            [reject.reason for reject in rejects],
            [reject.detail for reject in rejects],
            [reject.topic for reject in rejects],
            [reject.raw for reject in rejects],
        ]
        self._quarantine.write_table(pa.table(columns, schema=self._quarantine.schema))
        self.quarantined += len(rejects)

    def finish(self, until_ns: int) -> None:
        """Write the rest; a date with nothing but restated rows has no events."""
        if self._pending_rows and self.rows > self.restated:
            self._flush(self._pending_rows)
        if self._events is not None:
            self._events.add_key_value_metadata({"l2.until_ns": str(until_ns)})
        if not self.quarantined:
            self.lake.remove("quarantine", *self.key)

    def _flush(self, count: int) -> None:
        if self._events is None:
            self._events = self._open("events", ARROW_SCHEMA, DICTIONARY, ENCODINGS)
        rows = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        table = to_arrow(rows[:count]).replace_schema_metadata(self._events.schema.metadata)
        self._events.write_table(table, row_group_size=ROW_GROUP)
        self._pending = [rows[count:].copy()] if count < len(rows) else []
        self._pending_rows = len(rows) - count

    def _open(
        self,
        table: str,
        schema: pa.Schema,
        dictionary: bool | Sequence[str],
        encodings: Mapping[str, str] | None,
    ) -> pq.ParquetWriter:
        extra = {}
        if self.instrument is not None:
            extra["instrument"] = msgspec.json.encode(self.instrument).decode()
        writer = self.lake.writer(
            table, *self.key, schema, self.inputs, extra, dictionary, encodings
        )
        return self.stack.enter_context(writer)
