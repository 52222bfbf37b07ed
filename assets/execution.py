"""The execution study as an asset: what the same parents would have cost under each algorithm."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from assets.isolation import LeftOut, critical, tried
from assets.platform import OWNERS, PARTITIONS, Platform, keys_of
from market.compute import map_tasks
from market.lake import Lake
from market.provenance import Table
from market.settings import Settings, changed

if TYPE_CHECKING:
    from execution.tca import Shortfall

STUDY: Final = Table("study", version=1, upstream=("events",))

#: Memory of one partition's study (GB).
MEMORY_GB: Final = 1.0
#: Decision times of one partition at most, each with a parent per side, size and algorithm: enough for
#: a confidence interval, and a bound on the computing time of a day.
INSTANTS: Final = 120
#: Minimum seconds between decision times.
SPACING_S: Final = 45.0


def spacing_s(span_s: float, instants: int = INSTANTS) -> float:
    """Seconds between decision times so that a span has at most ``instants`` of them."""
    return max(SPACING_S, math.ceil(span_s / instants))


def study_partition(root: str, settings: Settings, symbol: str, day: str) -> int:
    """Run the study over one events partition into the table ``study``; returns its rows.

    A worker process runs it. LakeError when the events are missing or were made by other code.
    """
    from execution.study import study
    from execution.tca import Shortfall, to_table
    from market.events import Events, from_arrow
    from market.instruments import partition_instrument

    lake = Lake(root, settings.source)
    source = lake.open("events", symbol, day)
    instrument = partition_instrument(lake.metadata("events", symbol, day), symbol)

    # From the statistics of the file's footer, without reading a row.
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

    report = study({symbol: chunks()}, {symbol: instrument}, settings, every_s=spacing_s(span_s))
    inputs = lake.fingerprint("events", symbol, day) + "".join(
        (
            changed(settings.model, "fee_row"),
            changed(settings.execution, "entry_latency_ms", "response_latency_ms"),
            changed(settings.execution, "busy_latency_ms", "study_span_s"),
        )
    )
    lake.write("study", symbol, day, to_table(report.rows, Shortfall), inputs=inputs)
    return len(report.rows)


def costs(rows: "Sequence[Shortfall]") -> list[dict[str, Any]]:
    """Mean costs of both sides together, one line per symbol, size, algorithm and queue model."""
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
    """Implementation shortfall of the same parents under each algorithm, at both queue bounds, in bps.

    Fees are those of the settings' fee row. Dates that have only bars are skipped.
    """
    from msgspec import convert

    from execution.tca import Shortfall

    settings, lake = platform.settings(), platform.lake()
    left, keys = LeftOut(context.log.warning), []
    for key in keys_of(context.partition_keys):
        if failing := critical(lake, key, ["events"]):
            left.fail(key, f"critical: {failing}")
        elif lake.exists("events", *key):
            keys.append(key)
    rows_of: dict[str, int] = {}

    def note(task: tuple[Any, ...], outcome: tuple[int | None, str]) -> None:
        (symbol, day), (rows, reason) = task[3:], outcome
        if rows is None:
            left.fail((symbol, day), reason)
            return
        rows_of[f"{day} {symbol}"] = rows
        context.log.info(f"{day} {symbol}: {rows} parents studied ({len(rows_of)} of {len(keys)})")

    tasks = [(study_partition, settings.root, settings, *key) for key in keys]
    map_tasks(tried, tasks, platform.workers, note, settings, MEMORY_GB)
    shortfalls = [
        convert({k: math.nan if v is None else v for k, v in row.items()}, Shortfall)
        for key in keys
        if key not in left.failed
        for row in lake.read("study", *key).to_pylist()
    ]
    return dg.MaterializeResult(
        metadata=left.finish(rows_of if keys else None)
        | {
            "parents": len(shortfalls),
            "fee row": settings.model.fee_row,
            "cost by algorithm": dg.MetadataValue.json(costs(shortfalls)),
        }
    )
