"""From captures to bars: the first two assets of the path."""

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
    """Captures that may hold frames of these dates, in time order.

    A capture lies under the date of its first frame and may run past midnight, so the last one of
    the day before belongs to it too.
    """
    found: dict[str, None] = {}
    for day in sorted(set(days)):
        for path in [*lake.captures(previous_day(day))[-1:], *lake.captures(day)]:
            found[path] = None
    return list(found)


def archived_keys(lake: Lake, wanted: Sequence[Key], book_depth: int) -> list[Key]:
    """The keys to read from the venue's archives: those that no capture of the recorder holds."""
    from market.wire.survey import scan

    archived = sorted(set(lake.archives()) & set(wanted), key=wanted.index)
    captures = captures_for(lake, (day for _, day in archived))
    held = scan(captures, book_depth) if captures else {}
    return [key for key in archived if key not in held]


def bars_of(root: str, settings: Settings, symbol: str, day: str) -> int:
    """Make one bars partition from its events, in a synthetic lake without them from the market itself;
    returns its rows. A partition that is current is left as it is: it would be the same.
    """
    from market.bars import make_bars

    lake = Lake(root, settings.source)
    if not lake.exists("events", symbol, day) and settings.source == "synthetic":
        return synthetic_bars(lake, settings, symbol, day)
    if lake.is_current("bars", symbol, day, lake.fingerprint("events", symbol, day)):
        return lake.rows("bars", symbol, day)
    return make_bars(lake, symbol, day, settings)


def synthetic_bars(lake: Lake, settings: Settings, symbol: str, day: str) -> int:
    """Make one bars partition straight from the synthetic market: in the reduced form where one is
    fitted to its book and flow, else by way of the engine's events. The one place where an asset
    reaches into `proving`.
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
    """Every book level, trade, ticker field and liquidation, one row each, in integers.

    Read from the recorder's captures of the date where they hold it, else from the venue's archive.
    In a synthetic lake a date without a capture has no events: its bars come straight from the
    generator.
    """
    from market.ingest import ingest

    settings, lake = platform.settings(), platform.lake()
    wanted = keys_of(context.partition_keys)
    captures = captures_for(lake, (day for _, day in wanted))
    archived = archived_keys(lake, wanted, settings.market.book_depth)
    # a recorded date without frames is an error, which ingest words; a synthetic one has bars only
    recorded = [
        key
        for key in wanted
        if key not in archived and (settings.source == "recorded" or lake.captures(key[1]))
    ]
    if recorded and not captures:
        raise dg.Failure(
            f"no capture under {lake.base}/frames for {recorded[0][1]} to {recorded[-1][1]}, and no "
            "archive; record, ingest or fetch one, or choose other dates"
        )
    # An archive is one symbol's date and reads alone, so that a range gives what its dates give.
    batches = [(captures, recorded)] if recorded else []
    batches += [([lake.archive(*key)], [key]) for key in archived]
    metadata: dict[str, Any] = {
        "source": settings.source,
        "straight as bars": len(wanted) - len(recorded) - len(archived),
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
    """One row a second: book, order flow, trades and ticker as `market/bars.py` defines them."""
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
