"""A span of the lake's events, read second by second in the order of all symbols."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

import msgspec
import numpy as np

from market.errors import DataError, UsageError
from market.events import Events, from_arrow
from market.instruments import Instrument, partition_instrument
from market.lake import Lake
from market.units import DAY_NS, SECOND_NS, day_start_ns, utc_date

#: Rows of a partition in memory at a time.
BATCH_ROWS: Final = 1 << 16


class SpanError(DataError):
    """The lake does not hold the span's events; the message says what is missing and what to do."""


class Span(msgspec.Struct, frozen=True):
    """Receive times t with ``first_ns <= t < until_ns``."""

    first_ns: int
    until_ns: int

    @property
    def dates(self) -> list[str]:
        """UTC dates that the span touches."""
        days = range(self.first_ns // DAY_NS, -(-self.until_ns // DAY_NS))
        return [utc_date(day * DAY_NS) for day in days]


def span_of(lake: Lake, symbols: Sequence[str], first: str | None, last: str | None) -> Span:
    """The span from ``first`` to ``last``: UTC dates, both included, or instants; default: all dates.

    UsageError when it is empty or cannot be parsed, SpanError when the lake holds no events.
    """
    dates = sorted({day for symbol, day in lake.partitions("events") if symbol in symbols})
    if not dates:
        raise SpanError(
            f"{lake.uri}: holds no events of {', '.join(symbols)}; ingest captures, or fetch archives"
        )
    span = Span(_parse(first or dates[0])[0], _parse(last or dates[-1])[1])
    if span.first_ns >= span.until_ns:
        raise UsageError(f"--from {first} --to {last}: the end is not after the beginning")
    return span


def _parse(text: str) -> tuple[int, int]:
    """Begin and end (exclusive) of a date in ns, or an instant twice."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text}: expected a UTC date (2026-03-03) or instant (2026-03-03T10:30)"
        ) from None
    if len(text) == len("2026-03-03"):
        start = day_start_ns(text)
        return start, start + DAY_NS
    at = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    at_ns = int(at.timestamp()) * SECOND_NS + at.microsecond * 1_000
    return at_ns, at_ns


def instruments_of_span(
    lake: Lake, symbols: Sequence[str], span: Span, watched: Collection[str] = ()
) -> tuple[dict[str, Instrument], dict[str, str]]:
    """Each symbol's instrument, and the fingerprints of the partitions in the span.

    SpanError when a symbol has no events and is not ``watched``, or its dates differ in tick or lot.
    """
    instruments: dict[str, Instrument] = {}
    inputs: dict[str, str] = {}
    for symbol in symbols:
        for day in span.dates:
            if not lake.exists("events", symbol, day):
                continue
            instrument = partition_instrument(lake.metadata("events", symbol, day), symbol)
            known = instruments.setdefault(symbol, instrument)
            if (known.tick, known.lot) != (instrument.tick, instrument.lot):
                raise SpanError(
                    f"{symbol}: {day} has tick {instrument.tick} and lot {instrument.lot}, earlier dates "
                    f"{known.tick} and {known.lot}; run them apart"
                )
            inputs[f"{symbol} {day}"] = lake.fingerprint("events", symbol, day)
        if symbol not in instruments and symbol not in watched:
            raise SpanError(
                f"{symbol}: no events from {span.dates[0]} to {span.dates[-1]}; ingest captures or "
                "fetch archives of these dates, or leave the symbol out"
            )
    return instruments, inputs


def seconds_of(lake: Lake, symbol: str, span: Span) -> Iterator[tuple[int, Events]]:
    """A symbol's events second by second: (begin of the second in ns, its rows)."""
    pending: Events | None = None  # rows of a second that may go on in the next batch
    for day in span.dates:
        if not lake.exists("events", symbol, day):
            continue
        with lake.open("events", symbol, day) as source:
            for batch in source.iter_batches(batch_size=BATCH_ROWS):
                rows = from_arrow(batch)
                if rows["receive_ns"][0] >= span.until_ns:
                    break
                rows = rows if pending is None else np.concatenate([pending, rows])
                times = rows["receive_ns"]
                inside = slice(*np.searchsorted(times, [span.first_ns, span.until_ns]).tolist())
                rows = rows[inside]
                if not len(rows):
                    pending = None
                    continue
                seconds = rows["receive_ns"] // SECOND_NS
                starts = np.flatnonzero(np.diff(seconds, prepend=-1)).tolist()
                for start, stop in pairwise(starts):
                    yield int(seconds[start]) * SECOND_NS, rows[start:stop]
                pending = rows[starts[-1] :].copy()
    if pending is not None:
        yield int(pending["receive_ns"][0]) // SECOND_NS * SECOND_NS, pending


def merged(
    streams: Mapping[str, Iterator[tuple[int, Events]]],
) -> Iterator[tuple[int, dict[str, Events]]]:
    """Seconds of several symbols in order, each with the rows of the symbols that have any."""
    heads = {symbol: next(stream, None) for symbol, stream in streams.items()}
    while any(heads.values()):
        second_ns = min(head[0] for head in heads.values() if head is not None)
        rows = {}
        for symbol, head in heads.items():
            if head is not None and head[0] == second_ns:
                rows[symbol] = head[1]
                heads[symbol] = next(streams[symbol], None)
        yield second_ns, rows


def instant_text(ns: int) -> str:
    """UTC, to the second."""
    return f"{datetime.fromtimestamp(ns // SECOND_NS, UTC):%Y-%m-%d %H:%M:%S}"
