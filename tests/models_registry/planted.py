"""Small training sets with a planted linear signal, or none, in the shape the warehouse publishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from market.lake import Lake
from market.settings import Model, Settings
from market.units import day_start_ns, days_between
from models_registry.dataset import Features, LakeSource

HORIZONS = (10, 60, 300)
SYMBOLS = ("BTCUSDT", "ETHUSDT")
FEATURES = Features.of(("signal", "echo", "noise_1", "noise_2", "noise_3", "realised_vol_300"))

SECOND = 1_000_000_000


def settings(root: Path, **model: object) -> Settings:
    """Everything small: hours instead of days, few trees' worth of trials, short blocks."""
    small: dict[str, object] = {
        "horizons_s": HORIZONS,
        "fee_row": "zero",
        "train_stride_s": 5,
        "min_train_days": 2,
        "min_test_blocks": 3,
        "trials": 2,
        "select": 0,
        "act": "expected_edge",
        "threads": 1,
        "bootstrap_samples": 300,
        "bootstrap_block_s": 600,
        "decay_arl0_days": 1.0,
    }
    return Settings(root=str(root), source="synthetic", model=Model(**(small | model)))  # type: ignore[arg-type]


def day(
    date: str, stream: int, strength: float, seconds: int = 7200, *, fading: bool = False
) -> pa.Table:
    """One symbol's rows: an Ornstein–Uhlenbeck drift (half-life 30 s) moves the mid by ``strength``
    bps a second per unit, ``signal`` and ``echo`` see it through noise.

    ``fading`` keeps what the features look like and takes the drift out of the price.
    """
    generator = np.random.Generator(np.random.Philox(key=[day_start_ns(date), stream]))
    count = seconds + max(HORIZONS) + 2
    memory = 0.5 ** (1 / 30)
    shocks = generator.normal(size=count) * np.sqrt(1 - memory**2)
    drift = np.empty(count)
    drift[0] = generator.normal()
    for i in range(1, count):
        drift[i] = memory * drift[i - 1] + shocks[i]
    moves = 1e-4 * (0.0 if fading else strength) * drift + 0.9e-4 * generator.normal(size=count)
    log_mid = np.log(50_000.0) + np.concatenate(([0.0], np.cumsum(moves[:-1])))
    noise = generator.normal(size=(count, 5))
    wave = 0.9 * np.sqrt(300.0) * np.exp(0.2 * np.sin(np.arange(count) / 700.0))
    seen = drift if strength else np.zeros(count)
    rows: dict[str, np.ndarray | pa.Array] = {
        "t_ns": day_start_ns(date) + (36_000 + np.arange(1, count + 1)) * SECOND,
        "mid_close": np.exp(log_mid),
        "spread_bps": np.full(count, 0.05),
        "signal": seen + noise[:, 0],
        "echo": np.where(np.arange(count) % 7 == 0, np.nan, 0.5 * seen + noise[:, 1]),
        "noise_1": noise[:, 2],
        "noise_2": noise[:, 3],
        "noise_3": noise[:, 4],
        "realised_vol_300": wave,
    }
    for horizon in HORIZONS:
        label = np.full(count, np.nan)
        known = count - 1 - horizon
        label[:known] = log_mid[1 + horizon :][:known] - log_mid[1:][:known]
        rows[f"y_{horizon}"] = pa.array(label, from_pandas=True)
    # The warehouse leaves out rows without any label.
    return pa.table(rows).slice(0, seconds)


def lake(root: Path, days: int, strength: float, *, first: str = "2026-01-01") -> Lake:
    """A lake whose training set has ``days`` dates of two symbols."""
    made = Lake(root, "synthetic")
    last = np.datetime64(first) + days - 1
    for date in days_between(first, str(last)):
        extend(made, date, strength)
    return made


def source(of: Lake) -> LakeSource:
    return LakeSource(of, SYMBOLS, HORIZONS)


def extend(into: Lake, date: str, strength: float, *, fading: bool = False) -> None:
    for stream, symbol in enumerate(SYMBOLS):
        rows = day(date, stream, strength, fading=fading)
        into.write("training_set", symbol, date, rows, inputs=f"{strength} {fading}")
