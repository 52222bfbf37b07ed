"""What Great Expectations judges of a partition: a batch of rows that DuckDB reads from its Parquet file.

    events     a row per second: its frames, gaps, trades and lags
    bars       the bars, in the columns that an expectation is on
    features   a row per feature: its share of NULL, whether it changes, its drift

dbt's tests hold the shape of tables (primary keys, one row per bar, finite values); the expectations on
these batches (`assets.quality`) hold how good the data is. A value that cannot be had is NULL: no ticker,
no trade, too few earlier dates. Forty million events take DuckDB 2 s, and the batch is 86,400 rows.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final

from market.events import Flag, Kind
from market.lake import Lake

if TYPE_CHECKING:
    import pandas as pd

# Each part of its own: a scan by one condition decodes only its columns, where it holds. A figure of the
# whole batch is a subquery: DuckDB 1.5.5 fails now and then on an aggregate `over ()` in two threads
# (duckdb#25713).
_EVENTS: Final = f"""
with frames as (
    select receive_ns // 1000000000 as second, count(*) as frames,
        min(receive_ns - exchange_ns) / 1e9 as lag_min_s,
        max(receive_ns - exchange_ns) / 1e9 as lag_max_s
    from read_parquet($path)
    where flags > 0 and flags & {Flag.LAST} > 0 and flags & {Flag.CHECKPOINT} = 0
        and kind <= {Kind.DELTA}
    group by 1
), gaps as (
    select receive_ns // 1000000000 as second, count(*) as gaps from read_parquet($path)
    where flags >= {Flag.GAP} and flags & {Flag.GAP} > 0 and kind <= {Kind.DELTA} group by 1
), priceless as (
    select receive_ns // 1000000000 as second, count(*) as priceless from read_parquet($path)
    where price_ticks <= 0 and kind != {Kind.TICKER} and side != 0 group by 1
), trade as materialized (
    select receive_ns // 1000000000 as second, price_ticks, qty_lots from read_parquet($path)
    where kind = {Kind.TRADE}
), trades as (
    select second, count(*) filter (qty_lots <= 0) as empty_trades,
        count(*) filter (abs(price_ticks / nullif(middle, 0) - 1) > 0.2) as off_market
    from trade, (select median(price_ticks) as middle from trade) group by second
), minutes as (
    -- a step of either clock shifts the minimum lag per minute for good
    select 60 * minute as second, abs(lag_s - lag(lag_s) over (order by minute)) as clock_step_s
    from (select second // 60 as minute, min(lag_min_s) as lag_s from frames group by 1)
), seconds as (
    select unnest(range(min(receive_ns) // 1000000000, max(receive_ns) // 1000000000 + 1)) as second
    from read_parquet($path)
)
select strftime(make_timestamp(second * 1000000), '%H:%M:%S') as time,
    coalesce(frames, 0) as frames, coalesce(gaps, 0) as gaps, coalesce(priceless, 0) as priceless,
    empty_trades, off_market, lag_min_s, lag_max_s - (select min(lag_min_s) from frames) as stall_s, clock_step_s,
    (select count(*) from (select receive_ns < lag(receive_ns) over () as back from read_parquet($path))
        where back) as steps_back,
    {{ingests}}
from seconds left join frames using (second) left join gaps using (second)
    left join priceless using (second) left join trades using (second)
    left join minutes using (second)
order by second"""

_INGESTS: Final = {
    "steps_back_share": "sum(steps_back) / nullif(sum(frames), 0)",
    "rejected_share": "sum(rejected) / nullif(sum(frames) + sum(rejected), 0)",
    "left_out": "sum(left_out)",
}

_BARS: Final = """
with whole as materialized (
    select count(*) as rows,
        sum(buy_notional + sell_notional) / nullif(arg_max_null(turnover_24h, t_ns), 0) as volume_to_turnover
    from read_parquet($path)
)
select strftime(make_timestamp(t_ns // 1000), '%H:%M:%S') as time, gap, mid_close, spread_bps, frames,
    100 * abs(ln(mid_close / nullif(lag(mid_close) over (order by t_ns), 0))) as jump_pct,
    (frames > 0 and gap = 0 and (bid_q1 is null or ask_q1 is null))::int as one_sided,
    ((buy_n = 0) != (buy_qty = 0) or (sell_n = 0) != (sell_qty = 0))::int as volume_without_trades,
    -- archives have no ticker except the funding rate
    case when mark is not null then coalesce(ticker_age_s, 0) end as ticker_age_s,
    -- of partitions of nearly 24 h; synthetic turnover is drawn, not summed
    case when $recorded and (select rows from whole) > 84600 then (select volume_to_turnover from whole)
        end as volume_to_turnover,
    $crossed::double as crossed_frames, $one_sided::double as one_sided_frames
from read_parquet($path) order by t_ns"""

#: One feature of each family whose distribution should be stable from day to day.
STEADY: Final = (
    *("ofi_60", "imbalance_10_now", "micro_now", "slope_tilt_now", "cancel_ratio_60"),
    *("level_share_300", "tfi_60", "vpin_volume_now", "realised_vol_300", "return_60"),
    *("premium_now", "lead_return_15"),
)
#: Drift needs at least so many dates of the week before.
WEEK_AT_LEAST: Final = 3


def event_batch(lake: Lake, symbol: str, day: str) -> pd.DataFrame:
    """A row per second from the first event to the last; what the ingest counted is in every row."""
    paths = {"path": "events"}
    counted = dict.fromkeys(_INGESTS, "null::double")
    if lake.exists("ingests", symbol, day):
        names = lake.as_written("ingests", symbol, day).schema_arrow.names
        paths["ingests"] = "ingests"
        counted |= {
            name: f"(select {sql} from read_parquet($ingests))"
            for name, sql in _INGESTS.items()
            if name != "left_out" or name in names
        }
    ingests = ", ".join(f"{sql} as {name}" for name, sql in counted.items())
    return _frame(lake, (symbol, day), _EVENTS.format(ingests=ingests), paths, {})


def bar_batch(lake: Lake, symbol: str, day: str) -> pd.DataFrame:
    """The bars; the shares of frames that left the book crossed, or one-sided, are in every row."""
    notes = lake.metadata("bars", symbol, day)
    parameters = {
        "recorded": lake.source == "recorded",
        "crossed": notes.get("crossed"),
        "one_sided": notes.get("one_sided"),
    }
    return _frame(lake, (symbol, day), _BARS, {"path": "bars"}, parameters)


def feature_batch(lake: Lake, symbol: str, day: str) -> pd.DataFrame:
    """A row per feature, over the warm rows; ``warm_share`` is in every row."""
    import pandas as pd

    names = [
        name
        for name in lake.as_written("features", symbol, day).schema_arrow.names
        if name not in ("t_ns", "warm")
    ]
    counts = ", ".join(f"count({name}), (min({name}) = max({name}))::int" for name in names)
    sql = f"select count(*), {counts} from read_parquet($path) where warm"
    found = _frame(lake, (symbol, day), sql, {"path": "features"}, {})
    warm, *by_name = found.iloc[0].tolist()
    batch = pd.DataFrame({"feature": names, "constant": by_name[1::2]})
    batch["null_share"] = [1 - count / warm if warm else None for count in by_name[::2]]
    batch["absent"] = [int(count == 0) if warm else None for count in by_name[::2]]
    batch["warm_share"] = warm / max(1, lake.rows("features", symbol, day))
    batch["drift"] = batch["feature"].map(_drift(lake, symbol, day)).astype(float)
    return batch


def _drift(lake: Lake, symbol: str, day: str) -> dict[str, float]:
    """Shift of each steady feature's median from the week before, in interquartile ranges."""
    week = [(date.fromisoformat(day) - timedelta(days=n)).isoformat() for n in range(1, 8)]
    days = [earlier for earlier in week if lake.is_current("features", symbol, earlier)]
    if len(days) < WEEK_AT_LEAST:
        return {}
    quartiles = ", ".join(f"quantile_cont({name}, [0.25, 0.5, 0.75])" for name in STEADY)

    def of(dates: Sequence[str]) -> tuple[Any, ...]:
        listed = ", ".join(f"'{name}'" for name in dates)
        # A row every 15 s is enough for quartiles.
        sql = f"""select {quartiles} from features where symbol = '{symbol}' and date in ({listed})
            and warm and t_ns // 1000000000 % 15 = 0"""
        return connection.execute(sql).fetchone() or ()

    with lake.connect(["features"]) as connection:
        return {
            name: abs(now[1] - before[1]) / (before[2] - before[0])
            for name, now, before in zip(STEADY, of([day]), of(days), strict=True)
            if now is not None and before is not None and before[2] > before[0]
        }


#: Table -> its batch.
BATCHES: Final[dict[str, Callable[[Lake, str, str], pd.DataFrame]]] = {
    "events": event_batch,
    "bars": bar_batch,
    "features": feature_batch,
}


def _frame(
    lake: Lake,
    key: tuple[str, str],
    sql: str,
    paths: dict[str, str],
    parameters: dict[str, Any],
) -> pd.DataFrame:
    """The rows of a statement over a key's partitions; ``paths``: parameter -> table."""
    import duckdb

    with ExitStack() as stack:
        connection = stack.enter_context(duckdb.connect())
        for name, table in paths.items():
            file = stack.enter_context(lake.file(table, *key))
            parameters[name] = glob.escape(file)  # DuckDB takes every path for a glob
        return connection.execute(sql, parameters).df()
