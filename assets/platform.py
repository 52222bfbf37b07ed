"""Shared by every asset: the platform resource, and partitions by UTC date and symbol."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

import dagster as dg
import msgspec

from market.lake import Lake
from market.settings import Settings, load
from market.units import days_between
from models_registry.state import check

OWNERS = ["team:platform"]

#: Tags by which Dagster says which partitions a run is of.
PARTITION: Final = "dagster/partition"
RANGE_START: Final = "dagster/asset_partition_range_start"
RANGE_END: Final = "dagster/asset_partition_range_end"


class Platform(dg.ConfigurableResource["Platform"]):
    """Settings as the `l2` command reads them: file < environment < overrides.

    ``file`` is a TOML path ("" for the default search), ``overrides`` are ``section.key=value``.
    """

    file: str = ""
    overrides: list[str] = []  # noqa: RUF012 (a pydantic field, copied per instance)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Platform]:
        """Hold the run's dates: another run over one of them waits (`Lake.working_on`).

        StateError, before any work, of a database that refuses.
        """
        check(self.settings())
        days = run_dates(context.run.tags if context.run else {})
        with self.lake().working_on(*days) if days else nullcontext():
            yield self

    def settings(self) -> Settings:
        return load(self.file or None, overrides=self.overrides)

    def lake(self) -> Lake:
        settings = self.settings()
        return Lake(settings.root, settings.source)

    @property
    def workers(self) -> int:
        """Processes for steps parallel over partitions: one per core available to this process."""
        return len(os.sched_getaffinity(0))

    def folder(self, name: str) -> Path:
        """A folder of this machine's part of the lake, created if missing."""
        path = self.settings().home.absolute() / name
        path.mkdir(parents=True, exist_ok=True)
        return path


# -- partitions ------------------------------------------------------------------------------------

#: First date of the partitions: no order-book archive of the venue is older.
START: Final = "2023-01-01"


def partitions(symbols: Iterable[str]) -> dg.MultiPartitionsDefinition:
    """Dates × symbols.

    The current day is a partition too, so that today's recording can be built today; building replaces
    the whole partition. It is incomplete, so schedules request yesterday explicitly.
    """
    return dg.MultiPartitionsDefinition(
        {
            "date": dg.DailyPartitionsDefinition(start_date=START, end_offset=1),
            "symbol": dg.StaticPartitionsDefinition(list(symbols)),
        }
    )


#: Dagster needs partitions when definitions are loaded, so the symbols are the configured ones.
PARTITIONS: Final = partitions(load().market.recorded)


class Span(msgspec.Struct, frozen=True):
    """Symbols × dates from ``from_date`` to ``to_date``, both included."""

    symbols: tuple[str, ...]
    from_date: str
    to_date: str

    @property
    def dates(self) -> list[str]:
        return days_between(self.from_date, self.to_date)

    @property
    def keys(self) -> list[tuple[str, str]]:
        """(symbol, date) of every partition in it."""
        return [(symbol, day) for symbol in self.symbols for day in self.dates]

    def batches(self, size: int) -> list[Span]:
        """Spans of at most ``size`` partitions that make it up, by date, then symbol."""
        groups = [self.symbols[n : n + size] for n in range(0, len(self.symbols), size)]
        dates, days = self.dates, max(1, size // len(self.symbols))
        starts = range(0, len(dates), days)
        spans = [(dates[n], dates[n : n + days][-1]) for n in starts]
        return [Span(group, first, last) for first, last in spans for group in groups]


def partition_key(symbol: str, day: str) -> str:
    """The Dagster partition key of one symbol's date."""
    return dg.MultiPartitionKey({"date": day, "symbol": symbol})


def run_dates(tags: Mapping[str, str]) -> tuple[str, str] | None:
    """First and last date of the partitions that a run's tags name; None for a run without."""
    first = tags.get(RANGE_START) or tags.get(PARTITION)
    last = tags.get(RANGE_END) or first
    return (split_key(first)[1], split_key(last)[1]) if first and last else None


Key = tuple[str, str]


def keys_of(partition_keys: Iterable[str]) -> list[Key]:
    """(symbol, date) of each partition key, ordered by date, then symbol."""
    return [split_key(key) for key in sorted(partition_keys)]


def split_key(key: str) -> tuple[str, str]:
    """(symbol, date) of a Dagster partition key, which holds the dimensions in name order."""
    day, symbol = key.split("|", 1)
    return symbol, day


def spans(keys: Iterable[str]) -> tuple[Span, ...]:
    """The fewest spans, by first date, that contain exactly these partition keys.

    A backfill over a range gives one span; keys selected one by one may give several.
    """
    by_day: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        symbol, day = split_key(key)
        by_day[day].add(symbol)
    merged: list[Span] = []
    for day in sorted(by_day):
        symbols = tuple(sorted(by_day[day]))
        last = merged[-1] if merged else None
        if last and last.symbols == symbols and days_between(last.to_date, day)[1:] == [day]:
            merged[-1] = Span(symbols, last.from_date, day)
        else:
            merged.append(Span(symbols, day, day))
    return tuple(merged)


def context_spans(context: dg.AssetExecutionContext) -> tuple[Span, ...]:
    """The spans that a run was requested for: one partition or a range."""
    return spans(context.partition_keys)
