"""The first two assets: events from captures or archives, and bars from events."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
import msgspec

from assets.isolation import LeftOut, apart, critical, reason_of, tried
from assets.platform import OWNERS, PARTITIONS, Key, Platform, Span, keys_of, partition_key, spans
from market.compute import map_tasks, on_cluster
from market.errors import DataError
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, day_start_ns, days_between, previous_day, utc_date

if TYPE_CHECKING:
    from market.ingest import IngestReport


#: Memory of a task (GB): a date of two symbols from captures, a date of one from an archive or into bars. Captures
#: of a date are read once for all their symbols, of each with half as much.
MEMORY_GB: Final = 1.0
#: Captures that began so many days before a date are looked at for it.
_DAYS_BEFORE: Final = 7


def captures_for(lake: Lake, days: Iterable[str]) -> list[str]:
    """Captures that may have frames of these dates, in the order of the dates that they are filed under.

    A capture is filed under the date of its first frame and may go on for days: those of the week before
    are included that reach to shortly before the date, whose book goes on from theirs.
    """
    from market.ingest import MAX_SILENCE_NS

    found: dict[str, None] = {}
    for day in sorted(set(days)):
        since_ns = day_start_ns(day) - MAX_SILENCE_NS
        first = utc_date(day_start_ns(day) - _DAYS_BEFORE * DAY_NS)
        for earlier in days_between(first, previous_day(day)):
            found |= dict.fromkeys(
                path for path in lake.captures(earlier) if _reaches(path, since_ns)
            )
        found |= dict.fromkeys(lake.captures(day))
    return list(found)


def _reaches(capture: str, since_ns: int) -> bool:
    from market.wire.survey import last_receive_ns

    try:
        return last_receive_ns(capture) >= since_ns
    except DataError:  # the reading of its own date will say so
        return False


def archived_keys(lake: Lake, keys: Sequence[Key], book_depth: int) -> list[Key]:
    """The keys to read from the venue's archives: those without frames in the recorder's captures."""
    from market.wire.survey import scan

    recorded: set[Key] = set()
    archived = sorted(set(lake.archives()) & set(keys), key=keys.index)
    for day in {day for _, day in archived}:
        if captures := captures_for(lake, [day]):
            try:
                recorded |= scan(captures, book_depth).keys()
            except DataError:  # the reading will say so, and an archive hides no damaged capture
                recorded |= {key for key in archived if key[1] == day}
    return [key for key in archived if key not in recorded]


def _gone(lake: Lake, key: Key, captures: Sequence[str]) -> int:
    """How many of the files that a partition was read from have expired: the captures left hold less than it."""
    if not (lake.exists("events", *key) and lake.exists("ingests", *key)):
        return 0
    used = msgspec.json.decode(lake.metadata("ingests", *key).get("files", "[]"))
    there = [*captures, *([lake.archive(*key)] if key in lake.archives() else [])]
    return len({each["file"] for each in used} - {Path(path).name for path in there})


def bars_of(root: str, settings: Settings, symbol: str, day: str) -> int:
    """Make one bars partition from its events unless it is current; returns its rows.

    In a synthetic lake without events it comes from the synthetic market. A worker process runs it.
    """
    from market.bars import bar_inputs, make_bars

    lake = Lake(root, settings.source)
    if not lake.exists("events", symbol, day) and settings.source == "synthetic":
        return synthetic_bars(lake, settings, symbol, day)
    if lake.is_current("bars", symbol, day, bar_inputs(lake, symbol, day, settings)):
        return lake.rows("bars", symbol, day)
    return make_bars(lake, symbol, day, settings)


def synthetic_bars(lake: Lake, settings: Settings, symbol: str, day: str) -> int:
    """Make one bars partition from the synthetic market unless it is current; returns its rows.

    By the reduced form if one is fitted to the symbol's book and flow, else from the engine's events.
    The only place where an asset imports `proving`.
    """
    from proving import synthetic
    from proving.synthetic import reduced

    market, seed = synthetic.profile(settings.synthetic.profile), settings.synthetic.seed
    if reduced.fitted(market, symbol):
        if lake.is_current("bars", symbol, day, reduced.fingerprint(market, seed, symbol, day)):
            return lake.rows("bars", symbol, day)
        return reduced.write_bars(lake, market, seed, symbol, day)
    if lake.is_current("bars", symbol, day, synthetic.fingerprint(market, seed, symbol, day)):
        return lake.rows("bars", symbol, day)
    return synthetic.write_bars(lake, market, seed, symbol, day, settings)


@dg.asset(
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="market",
    owners=OWNERS,
    kinds={"python", "parquet"},
)
def events(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[None]:
    """One row per book level, trade, ticker field and liquidation, in integers.

    From the recorder's captures if they have the date, else from the venue's archive. In a synthetic
    lake a date without a capture has no events: its bars come from the generator.
    """
    settings, lake = platform.settings(), platform.lake()
    requested = keys_of(context.partition_keys)
    archived = archived_keys(lake, requested, settings.market.book_depth)
    # A synthetic date without a capture has only bars.
    straight = [
        key for key in requested if settings.source == "synthetic" and not lake.captures(key[1])
    ]
    left = LeftOut(context.log.warning)
    recorded = []
    for key in requested:
        if key in archived or key in straight:
            continue
        captures = captures_for(lake, [key[1]])
        if captures and (gone := _gone(lake, key, captures)):
            left.lacks(
                key,
                f"stands as it is: {gone} of the captures that it was read from are gone (remove it to read the rest)",
            )
        elif captures:
            recorded.append(partition_key(*key))
        elif not lake.exists("events", *key):  # a partition that was ingested stands
            left.lacks(key, f"no capture under {lake.base}/frames, and no archive")
    # A cluster reads by date, as the daily run does, each with what reaches into it from before.
    parts = spans(recorded)
    if on_cluster(settings):
        parts = tuple(part for span in parts for part in span.batches(len(span.symbols)))
    # Each archive is ingested by itself, so that a range gives the same rows as its single dates.
    tasks = [(_CAPTURES, settings, span) for span in parts]
    tasks += [(_ARCHIVE, settings, Span((symbol,), day, day)) for symbol, day in archived]
    readings: dict[tuple[str, Span], Reading] = {}

    def read(task: tuple[Any, ...], reading: Reading) -> None:
        source, _, span = task
        readings[source, span] = reading
        rows = sum(sum(part.report.events.values()) for part in reading.parts)
        place = f"{', '.join(span.symbols)} from {span.from_date} to {span.to_date}"
        context.log.info(f"{place}: {rows:,} events ({len(readings)} of {len(tasks)})")
        for line in reading.warnings:
            context.log.warning(line)
        for key, reason in reading.failed.items():
            left.fail(key, reason)

    # Elsewhere nobody would see the lines of a task that is under way.
    make = reading_of if on_cluster(settings) else partial(reading_of, log=context.log.info)
    memory_gb = MEMORY_GB * max(1.0, *(len(span.symbols) / 2 for _, _, span in tasks), 0.0)
    map_tasks(make, tasks, 1, read, settings, memory_gb)
    found = [part for source, _, span in tasks for part in readings[source, span].parts]
    for part in found:
        _note_missing(lake, part.report, left)
        for key in part.span.keys:
            context.add_asset_metadata(
                {"read from": part.source, "files": dg.MetadataValue.json(part.files)},
                partition_key=partition_key(*key),
            )
    there = [*straight, *(key for key in requested if lake.exists("events", *key))]
    metadata = left.finish(there) | {"source": settings.source, "straight as bars": len(straight)}
    if archived:
        metadata["from archives"] = dg.MetadataValue.json([" ".join(key) for key in archived])
    return dg.MaterializeResult(metadata=metadata | _totals(found, context.log))


class Part(msgspec.Struct, frozen=True):
    """One ingest: where from, which partitions, which files, and its report."""

    source: str
    span: Span
    files: list[str]
    report: "IngestReport"


class Reading(msgspec.Struct, frozen=True):
    """What a task has read, why the rest of its partitions failed, and what a person has to see."""

    parts: list[Part] = []
    failed: dict[Key, str] = {}
    warnings: list[str] = []


_CAPTURES: Final = "captures"
_ARCHIVE: Final = "the venue's archive"


def reading_of(
    source: str, settings: Settings, span: Span, log: Callable[[str], None] | None = None
) -> Reading:
    """Make the events of a span from its captures or its archive; a worker process may run it."""
    from market.ingest import ingest

    lake, reading = Lake(settings.root, settings.source), Reading()

    def read(part: Span, paths: Sequence[str]) -> None:
        if log:
            log(f"reading {len(paths)} capture(s) for {len(part.keys)} partition(s)")
        report = ingest(lake, paths, part.keys, settings, progress=log)
        reading.parts.append(Part(source, part, [Path(path).name for path in paths], report))

    def from_captures(part: Span) -> None:
        # One of the day before that cannot be read stops no single date.
        captures = captures_for(lake, part.dates)
        own = [path for day in part.dates for path in lake.captures(day)]
        try:
            read(part, captures)
        except DataError as error:
            if len(part.dates) > 1 or own in ([], captures):
                raise
            read(part, own)
            reading.warnings.append(f"{part.from_date}: read without the day before: {error}")

    def from_archive(part: Span) -> None:
        read(part, [lake.archive(*part.keys[0])])

    def failed(key: Key, error: DataError) -> None:
        reading.failed[key] = reason_of(error)

    apart(span, from_archive if source == _ARCHIVE else from_captures, failed)
    return reading


def _totals(parts: Sequence[Part], log: logging.Logger) -> dict[str, Any]:
    """Metadata of all parts together; none without a part."""
    if not parts:
        return {}
    frames: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for part in parts:
        frames.update(part.report.frames)
        reasons.update(part.report.reasons)
    rows = sum(sum(part.report.events.values()) for part in parts)
    quarantined = reasons.total()
    log.info(f"{frames.total():,} frames, {rows:,} events, {quarantined} quarantined")
    return {
        "rows": rows,
        "quarantined": quarantined,
        "frames": dg.MetadataValue.json(dict(frames)),
        "rejects by reason": dg.MetadataValue.json(dict(reasons)),
    }


def _note_missing(lake: Lake, report: "IngestReport", left: LeftOut) -> None:
    """Partitions without an event: lines of theirs that are all refused are no lack of data."""
    for name, refused in report.missing.items():
        symbol, day = name.split(" ")
        if refused:
            reasons = ", ".join(report.reasons)
            left.fail((symbol, day), f"all of its {refused} lines are quarantined ({reasons})")
        elif not lake.exists("events", symbol, day):
            left.lacks((symbol, day), "no frame of it in the captures")


@dg.asset(
    deps=[events],
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="market",
    owners=OWNERS,
    kinds={"numba", "parquet"},
)
def bars(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[None]:
    """One row per second: book, order flow, trades and ticker, as `market/columns.py` defines them."""
    settings, lake = platform.settings(), platform.lake()
    left, tasks = LeftOut(context.log.warning), []
    for key in keys_of(context.partition_keys):
        if settings.source == "recorded" and not lake.exists("events", *key):
            left.lacks(key, "no events")
        elif failing := critical(lake, key, ["events"]):
            left.fail(key, f"critical: {failing}")
        else:
            tasks.append((bars_of, settings.root, settings, *key))
    rows: dict[str, int] = {}

    def done(task: tuple[Any, ...], outcome: tuple[int | None, str]) -> None:
        (symbol, day), (count, reason) = task[3:], outcome
        if count is None:
            left.fail((symbol, day), reason)
            return
        rows[f"{day} {symbol}"] = count
        context.log.info(f"{day} {symbol}: {count:,} bars ({len(rows)} of {len(tasks)})")

    map_tasks(tried, tasks, platform.workers, done, settings, MEMORY_GB)
    return dg.MaterializeResult(
        metadata=left.finish(rows)
        | {"rows": sum(rows.values()), "by partition": dg.MetadataValue.json(rows)}
    )
