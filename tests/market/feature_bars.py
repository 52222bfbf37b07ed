"""Random bars, and the features model run on them in DuckDB."""

from __future__ import annotations

import duckdb
import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market.bars import COLUMNS
from market.units import DAY_NS, SECOND_NS, day_start_ns

NAMES = list(COLUMNS)
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def random_bars(rng: np.random.Generator, n: int, price: float = 60_000.0) -> Floats:
    """float64 (n, len(COLUMNS)): numbers of plausible size and sign, most of them independent."""
    bars = rng.lognormal(1.0, 1.0, (n, len(NAMES)))
    column = {name: bars[:, k] for k, name in enumerate(NAMES)}
    mid = price * np.exp(np.cumsum(rng.standard_t(4, n)) * 5e-5)
    for name in ("mid_open", "mid_close", "mid_twap", "micro_close", "vamp_close", "vwap"):
        column[name][:] = mid * (1 + rng.normal(0, 2e-5, n))
    for name in ("last_price", "mark", "index_price"):
        column[name][:] = mid * (1 + rng.normal(0, 1e-4, n))
    column["mid_high"][:] = column["mid_close"] * (1 + rng.exponential(2e-5, n))
    column["mid_low"][:] = column["mid_close"] * (1 - rng.exponential(2e-5, n))
    shared = rng.normal(0, 3, n)
    for level in range(1, 11):
        column[f"ofi_{level}"][:] = shared + rng.normal(0, 3, n)
    quiet = rng.random(n) < 0.3
    for name in ("buy_qty", "sell_qty", "buy_n", "sell_n", "buy_notional", "sell_notional"):
        column[name][:] = np.where(quiet, 0.0, column[name])
    for name in ("liq_long", "liq_short", "rpi_buy_qty", "rpi_sell_qty", "flicker"):
        column[name][:] = np.where(rng.random(n) < 0.8, 0.0, column[name])
    for name in ("rv", "bv", "rv_up", "rv_down"):
        column[name][:] *= 1e-9
    column["gap"][:] = 0.0
    column["run_length"][:] = rng.integers(-9, 10, n)
    column["spread_one"][:] = rng.random(n)
    column["funding_rate"][:] = rng.normal(1e-4, 1e-4, n)
    column["funding_mean"][:] = column["funding_rate"]
    column["basis_bps"][:] = rng.normal(0, 2, n)
    column["vpin"][:] = rng.random(n)
    column["funding_in_s"][:] = rng.integers(0, 28_800, n)
    column["turnover_24h"][:] *= 1e6
    column["open_interest"][:] = 5e4 * np.exp(np.cumsum(rng.normal(0, 1e-5, n)))
    return bars


def staged(symbol: str, t_ns: Ints, bars: Floats, dates: list[str]) -> pa.Table:
    """Rows of ``stg_bars``: a date's bars, and the hour before as rows of that date."""
    parts = []
    for date in dates:
        start = day_start_ns(date)
        stop = start + DAY_NS
        mine = (t_ns > start - 3600 * SECOND_NS) & (t_ns <= stop)
        columns = {
            "symbol": pa.array([symbol] * int(mine.sum()), pa.string()),
            "date": pa.array([date] * int(mine.sum()), pa.string()),
            "t_ns": t_ns[mine],
            "wanted": pa.array(t_ns[mine] > start),
        }
        for k, name in enumerate(NAMES):
            values = bars[mine, k]
            columns[name] = pa.array(values, pa.float64(), mask=np.isnan(values))
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def run_model(sql: str, stg_bars: pa.Table, threads: int = 2) -> pa.Table:
    """The rows of a rendered dbt model, by symbol and time."""
    statement = jinja2.Environment().from_string(sql).render(ref=lambda name: name)
    with duckdb.connect() as connection:
        connection.execute(f"set threads = {threads}")
        connection.execute("set TimeZone = 'UTC'")
        connection.register("stg_bars", stg_bars)
        return connection.execute(f"from ({statement}) order by symbol, t_ns").to_arrow_table()
