"""What orders would have cost: the execution study over a partition's events."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from assets.platform import OWNERS, PARTITIONS, Platform, keys_of
from market.compute import map_processes
from market.lake import Lake
from market.provenance import Table
from market.settings import Settings

if TYPE_CHECKING:
    from execution.tca import Shortfall

STUDY: Final = Table("study", version=1, upstream=("events",))

#: Parents a study of one partition decides at most, per side, size and algorithm: enough for an
#: interval, and a bound on what a whole day costs.
INSTANTS: Final = 120
#: Decisions are at least this far apart (seconds).
SPACING_S: Final = 45.0


def spacing_s(span_s: float, instants: int = INSTANTS) -> float:
    """Seconds between decisions so that a span gives at most ``instants`` of them."""
    return max(SPACING_S, math.ceil(span_s / instants))


def study_partition(root: str, settings: Settings, symbol: str, day: str) -> int:
    """Run the study over one events partition into the lake's ``study`` table; rows written."""
    from execution.study import study
    from execution.tca import Shortfall, to_table
    from market.events import Events, from_arrow
    from market.instruments import partition_instrument

    lake = Lake(root, settings.source)
    source = lake.open("events", symbol, day)
    instrument = partition_instrument(lake.metadata("events", symbol, day), symbol)

    # statistics of the file's footer: no row is read for them
    column = source.schema_arrow.get_field_index("receive_ns")
    groups = [source.metadata.row_group(n).column(column) for n in range(source.num_row_groups)]
    first_ns = groups[0].statistics.min
    span_s = min((groups[-1].statistics.max - first_ns) / 1e9, settings.execution.study_span_s)

    def chunks() -> Iterator[Events]:
        for batch in source.iter_batches(batch_size=1 << 18):
            part = from_arrow(batch)
            if part["receive_ns"][0] > first_ns + span_s * 1e9:
                return
            yield part

    found = study({symbol: chunks()}, {symbol: instrument}, settings, every_s=spacing_s(span_s))
    inputs = lake.fingerprint("events", symbol, day)
    lake.write("study", symbol, day, to_table(found.rows, Shortfall), inputs=inputs)
    return len(found.rows)


def costs(rows: "Sequence[Shortfall]") -> list[dict[str, Any]]:
    """The study's answer, one line per symbol, algorithm and queue bound."""
    from execution.tca import summarise

    return [
        {
            "symbol": s.symbol,
            "size": f"{s.size_usdt:,.0f}",
            "algorithm": s.algorithm,
            "queue": s.venue,
            "n": s.instants,
            "all-in bps": round(s.total_bps, 3),
            "95 %": f"{s.low_bps:.2f} to {s.high_bps:.2f}",
            "spread": round(s.spread_bps, 3),
            "timing": round(s.timing_bps, 3),
            "fees": round(s.fees_bps, 3),
            "filled": f"{s.fill_rate:.1%}",
            "maker": f"{s.maker_share:.0%}",
        }
        for s in summarise(rows)
        if s.side == 0
    ]


@dg.asset(
    deps=["events"],
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="execution",
    owners=OWNERS,
    kinds={"numba", "parquet"},
)
def execution_study(
    context: dg.AssetExecutionContext, platform: Platform
) -> dg.MaterializeResult[None]:
    """The same buys and sells under each algorithm, replayed in the queue: all-in cost in bps.

    Fees are those of the settings' fee row. Dates without events (straight as bars) have no study.
    """
    from msgspec import convert

    from execution.tca import Shortfall

    settings, lake = platform.settings(), platform.lake()
    keys = [key for key in keys_of(context.partition_keys) if lake.exists("events", *key)]
    done: dict[str, int] = {}

    def note(task: tuple[Any, ...], rows: int) -> None:
        symbol, day = task[2:]
        done[f"{day} {symbol}"] = rows
        context.log.info(f"{day} {symbol}: {rows} parents studied ({len(done)} of {len(keys)})")

    map_processes(
        study_partition,
        [(settings.root, settings, *key) for key in keys],
        platform.workers,
        note,
    )
    found = [
        convert({k: math.nan if v is None else v for k, v in row.items()}, Shortfall)
        for key in keys
        for row in lake.read("study", *key).to_pylist()
    ]
    return dg.MaterializeResult(
        metadata={
            "parents": len(found),
            "fee row": settings.model.fee_row,
            "cost by algorithm": dg.MetadataValue.json(costs(found)),
        }
    )
