"""Data-quality figures of a partition of events, bars or features: one row of numbers each.

dbt's tests hold the shape of tables (primary keys, one row per bar, finite values); these measure how
good the data is. `assets.quality` states their allowed ranges. A figure that cannot be computed is NaN:
no ticker, no trade, too few earlier dates.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.parquet as pq

from market.book import Book
from market.events import Flag, Kind, from_arrow
from market.lake import Lake

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, str]
Figures = dict[str, float]

_BOOK: Final = f"kind in ({Kind.SNAPSHOT}, {Kind.DELTA})"
_FRAME: Final = f"{_BOOK} and flags & {Flag.LAST} > 0 and flags & {Flag.CHECKPOINT} = 0"
_TRADE: Final = f"kind = {Kind.TRADE}"

_EVENTS: Final = {
    "completeness": f"""count(distinct receive_ns // 1000000000) filter ({_FRAME})
        / (max(receive_ns) // 1000000000 - min(receive_ns) // 1000000000 + 1)""",
    "gap_share": f"""count(*) filter ({_BOOK} and flags & {Flag.GAP} > 0)
        / greatest(1, count(*) filter ({_FRAME}))""",
    "nonpositive_price": f"count(*) filter (kind != {Kind.TICKER} and side != 0 and price_ticks <= 0)",
    "nonpositive_trade": f"count(*) filter ({_TRADE} and qty_lots <= 0)",
    "trades_off_market": f"""count(*) filter ({_TRADE}
        and abs(price_ticks / nullif(trade_median, 0) - 1) > 0.2)
        / greatest(1, count(*) filter ({_TRADE}))""",
    "lag_min_s": f"min((receive_ns - exchange_ns) / 1e9) filter ({_FRAME})",
    "lag_spread_s": f"""quantile_cont((receive_ns - exchange_ns) / 1e9, 0.999) filter ({_FRAME})
        - min((receive_ns - exchange_ns) / 1e9) filter ({_FRAME})""",
}
_EVENTS_SOURCE: Final = f"""select * from read_parquet($path),
    (select median(price_ticks) as trade_median from read_parquet($path) where {_TRADE})"""

#: A step of either clock shifts the minimum lag per minute for good.
_CLOCK_STEP: Final = f"""select max(abs(lag_s - previous_s)) from (
    select lag_s, lag(lag_s) over (order by minute) as previous_s from (
        select receive_ns // 60000000000 as minute, min((receive_ns - exchange_ns) / 1e9) as lag_s
        from read_parquet($path) where {_FRAME} group by minute))"""

_BARS: Final = {
    "gap_share": "avg(gap)",
    "mid_null_share": "count(*) filter (mid_close is null) / count(*)",
    "largest_jump_pct": "100 * max(abs(ln(mid_close / nullif(previous_mid, 0))))",
    "spread_median_bps": "median(spread_bps)",
    "one_sided_share": """count(*) filter (frames > 0 and gap = 0 and (bid_q1 is null or ask_q1 is null))
        / count(*)""",
    "volume_without_trades": "count(*) filter ((buy_n = 0) != (buy_qty = 0) or (sell_n = 0) != (sell_qty = 0))",
    "truncated_share": "avg(truncated)",
    "silent_share": "count(*) filter (frames = 0) / count(*)",
    # Archives have no ticker except the funding rate.
    "ticker_silent_share": "avg(case when ticker_age_s > 60 then 1 else 0 end) filter (mark is not null)",
    # Against the ticker's 24 h turnover, for partitions of nearly 24 h.
    "volume_to_turnover": """case when count(*) > 84600 then
        sum(buy_notional + sell_notional) / nullif(last(turnover_24h order by t_ns), 0) end""",
}
_BARS_SOURCE: Final = (
    "select *, lag(mid_close) over (order by t_ns) as previous_mid from read_parquet($path)"
)

#: One feature of each family whose distribution should be stable from day to day.
STEADY: Final = (
    *("ofi_60", "imbalance_10_now", "micro_now", "slope_tilt_now", "cancel_ratio_60"),
    *("level_share_300", "tfi_60", "vpin_volume_now", "realised_vol_300", "return_60"),
    *("premium_now", "lead_return_15"),
)
#: Drift needs at least so many dates of the week before.
WEEK_AT_LEAST: Final = 3


def summarise(lake: Lake, table: str, keys: Sequence[Key]) -> pd.DataFrame:
    """One row of figures per existing partition, with a ``partition`` column ("DATE SYMBOL")."""
    import pandas as pd

    rows = [
        {"partition": f"{day} {symbol}", **FIGURES[table](lake, symbol, day)}
        for symbol, day in keys
        if lake.exists(table, symbol, day)
    ]
    return pd.DataFrame(rows)


def event_figures(lake: Lake, symbol: str, day: str) -> Figures:
    """Completeness per second, sequence gaps, time order, clocks, prices, and the replayed book."""
    path = lake.path("events", symbol, day)
    figures = _select(_EVENTS, _EVENTS_SOURCE, path)
    figures["clock_step_s"] = _float(_query(_CLOCK_STEP, path)[0])
    # In the pass that the book needs anyway: as a window of the query it would take a single core.
    book, steps_back, before_ns = Book(), 0, 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1 << 18):
            rows = from_arrow(batch)
            book.apply(rows)
            times = rows["receive_ns"]
            steps_back += int((np.diff(times, prepend=before_ns) < 0).sum())
            before_ns = int(times[-1])
    figures["steps_back"] = float(steps_back)
    counters = book.counters
    frames = max(1, counters["frames"])
    figures["crossed_share"] = counters["crossed"] / frames
    figures["one_sided_share"] = counters["one_sided"] / frames
    figures["steps_back_share"] = figures["rejected_share"] = figures["left_out"] = math.nan
    if lake.exists("ingests", symbol, day):
        sql = """select sum(steps_back) / nullif(sum(frames), 0),
            sum(rejected) / nullif(sum(frames) + sum(rejected), 0) from read_parquet($path)"""
        shares = _query(sql, lake.path("ingests", symbol, day))
        figures["steps_back_share"], figures["rejected_share"] = map(_float, shares)
        if "left_out" in pq.read_schema(lake.path("ingests", symbol, day)).names:
            sql = "select sum(left_out) from read_parquet($path)"
            figures["left_out"] = _float(_query(sql, lake.path("ingests", symbol, day))[0])
    return figures


def bar_figures(lake: Lake, symbol: str, day: str) -> Figures:
    """Gaps, prices, spreads, volumes, and staleness of the ticker."""
    figures = _select(_BARS, _BARS_SOURCE, lake.path("bars", symbol, day))
    if lake.source == "synthetic":
        figures["volume_to_turnover"] = math.nan  # synthetic turnover is drawn, not summed
    return figures


def feature_figures(lake: Lake, symbol: str, day: str) -> Figures:
    """NULLs and constants of the features in warm rows, and drift from the week before."""
    path = lake.path("features", symbol, day)
    names = [name for name in pq.read_schema(path).names if name not in ("t_ns", "warm")]
    counts = ", ".join(f"count({name}), min({name}) = max({name})" for name in names)
    rows, *by_name = _query(f"select count(*), {counts} from read_parquet($path) where warm", path)
    present, constant = by_name[::2], by_name[1::2]
    figures = dict.fromkeys(("null_share", "absent", "constant"), math.nan)
    figures["warm_share"] = rows / max(1, lake.rows("features", symbol, day))
    if rows:
        figures["null_share"] = 1 - sum(present) / (rows * len(names))
        figures["absent"] = float(sum(count == 0 for count in present))
        figures["constant"] = float(sum(map(bool, constant)))
    figures["drift"] = _drift(lake, symbol, day)
    return figures


def _drift(lake: Lake, symbol: str, day: str) -> float:
    """Largest shift of a steady feature's median from the week before, in interquartile ranges."""
    week = [(date.fromisoformat(day) - timedelta(days=n)).isoformat() for n in range(1, 8)]
    days = [earlier for earlier in week if lake.is_current("features", symbol, earlier)]
    if len(days) < WEEK_AT_LEAST:
        return math.nan
    quartiles = ", ".join(f"quantile_cont({name}, [0.25, 0.5, 0.75])" for name in STEADY)

    def of(dates: Sequence[str]) -> tuple[Any, ...]:
        listed = ", ".join(f"'{name}'" for name in dates)
        # A row every 15 s is enough for quartiles.
        sql = f"""select {quartiles} from features where symbol = '{symbol}' and date in ({listed})
            and warm and t_ns // 1000000000 % 15 = 0"""
        return connection.execute(sql).fetchone() or ()

    with lake.connect(["features"]) as connection:
        shifts = [
            abs(now[1] - before[1]) / (before[2] - before[0])
            for now, before in zip(of([day]), of(days), strict=True)
            if now is not None and before is not None and before[2] > before[0]
        ]
    return max(shifts, default=math.nan)


#: Table -> its figures.
FIGURES: Final[dict[str, Callable[[Lake, str, str], Figures]]] = {
    "events": event_figures,
    "bars": bar_figures,
    "features": feature_figures,
}


def _select(figures: dict[str, str], source: str, path: str) -> Figures:
    select = ", ".join(f"({sql})::double" for sql in figures.values())
    row = _query(f"select {select} from ({source})", path)
    return dict(zip(figures, map(_float, row), strict=True))


def _query(sql: str, path: str) -> tuple[Any, ...]:
    import duckdb

    with duckdb.connect() as connection:  # which takes every path for a glob
        return connection.execute(sql, {"path": glob.escape(path)}).fetchone() or ()


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
