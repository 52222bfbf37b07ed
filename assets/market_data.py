"""The first two assets: events from captures or archives, and bars from events."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets.platform import OWNERS, PARTITIONS, Key, Platform, keys_of, partition_key
from market.compute import map_processes
from market.lake import Lake
from market.settings import Settings
from market.units import previous_day


def captures_for(lake: Lake, days: Iterable[str]) -> list[str]:
    """Captures that may have frames of these dates, in time order.

    A capture is filed under the date of its first frame and may run past midnight, so the last one of
    the day before is included.
    """
    return list(
        dict.fromkeys(
            path
            for day in sorted(set(days))
            for path in [*lake.captures(previous_day(day))[-1:], *lake.captures(day)]
        )
    )


def archived_keys(lake: Lake, keys: Sequence[Key], book_depth: int) -> list[Key]:
    """The keys to read from the venue's archives: those without frames in the recorder's captures."""
    from market.wire.survey import scan

    archived = sorted(set(lake.archives()) & set(keys), key=keys.index)
    captures = captures_for(lake, (day for _, day in archived))
    recorded = scan(captures, book_depth) if captures else {}
    return [key for key in archived if key not in recorded]


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
    from market.ingest import ingest

    settings, lake = platform.settings(), platform.lake()
    requested = keys_of(context.partition_keys)
    captures = captures_for(lake, (day for _, day in requested))
    archived = archived_keys(lake, requested, settings.market.book_depth)
    # A recorded date without frames is an error that ingest raises; a synthetic one has only bars.
    recorded = [
        key
        for key in requested
        if key not in archived and (settings.source == "recorded" or lake.captures(key[1]))
    ]
    if recorded and not captures:
        raise dg.Failure(
            f"no capture under {lake.base}/frames for {recorded[0][1]} to {recorded[-1][1]}, and no "
            "archive; record, ingest or fetch one, or choose other dates"
        )
    # Each archive is ingested by itself, so that a range gives the same rows as its single dates.
    batches = [(captures, recorded)] if recorded else []
    batches += [([lake.archive(*key)], [key]) for key in archived]
    metadata: dict[str, Any] = {
        "source": settings.source,
        "straight as bars": len(requested) - len(recorded) - len(archived),
    }
    if archived:
        metadata["from archives"] = dg.MetadataValue.json([" ".join(key) for key in archived])
    rows = quarantined = 0
    frames: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for paths, keys in batches:
        context.log.info(f"reading {len(paths)} capture(s) for {len(keys)} partition(s)")
        report = ingest(lake, paths, keys, settings, progress=context.log.info)
        for symbol, day in keys:
            context.add_asset_metadata(
                {
                    "read from": (
                        "the venue's archive" if (symbol, day) in archived else "captures"
                    ),
                    "files": dg.MetadataValue.json([Path(path).name for path in paths]),
                },
                partition_key=partition_key(symbol, day),
            )
        rows += sum(report.events.values())
        quarantined += report.quarantined
        frames.update(report.frames)
        reasons.update(report.reasons)
    if batches:
        metadata |= {
            "rows": rows,
            "quarantined": quarantined,
            "frames": dg.MetadataValue.json(dict(frames)),
            "rejects by reason": dg.MetadataValue.json(dict(reasons)),
        }
        context.log.info(f"{frames.total():,} frames, {rows:,} events, {quarantined} quarantined")
    return dg.MaterializeResult(metadata=metadata)


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
    settings = platform.settings()
    tasks = [(settings.root, settings, *key) for key in keys_of(context.partition_keys)]
    rows: dict[str, int] = {}

    def done(task: tuple[Any, ...], count: int) -> None:
        symbol, day = task[2:]
        rows[f"{day} {symbol}"] = count
        context.log.info(f"{day} {symbol}: {count:,} bars ({len(rows)} of {len(tasks)})")

    map_processes(bars_of, tasks, platform.workers, done)
    return dg.MaterializeResult(
        metadata={"rows": sum(rows.values()), "by partition": dg.MetadataValue.json(rows)}
    )
