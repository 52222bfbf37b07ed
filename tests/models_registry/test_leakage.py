"""A feature that looks ahead in its definition is stopped by the gate of the training that takes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import planted
import pyarrow as pa

from market.bars import COLUMNS
from market.features.rendering import batch, render_model
from market.lake import Lake
from market.units import SECOND_NS, day_start_ns, days_between
from models_registry import leakage
from models_registry.dataset import Features, LakeSource
from models_registry.registry import train_and_register

DATES = days_between("2026-01-01", "2026-01-05")
HONEST = "ofi_1 / nullif(depth_norm, 0) as ofi_now"
EARLY = HONEST.replace("ofi_1", "lead(ofi_1) over (partition by symbol, date order by t_ns)")


def made(root: Path, definition: str) -> Lake:
    """Bars of one symbol for the first 5,400 s of each date, and the training set of this definition."""
    lake, sql = Lake(root, "synthetic"), render_model()
    assert HONEST in sql
    for date in DATES:
        rng = np.random.Generator(np.random.Philox(key=day_start_ns(date)))
        t_ns = day_start_ns(date) + np.arange(1, 5401) * SECOND_NS
        columns = {name: rng.uniform(0.5, 1.5, len(t_ns)) for name in COLUMNS}
        mid = 60_000 * np.exp(np.cumsum(rng.normal(0, 1e-4, len(t_ns))))
        bars = pa.table({"t_ns": t_ns} | columns | {"mid_close": mid, "gap": np.zeros(len(t_ns))})
        lake.write("bars", "BTCUSDT", date, bars, inputs=definition)
        for name, value in (("symbol", "BTCUSDT"), ("date", date), ("wanted", True)):
            bars = bars.append_column(name, pa.array([value] * len(bars)))
        rows = batch(bars, sql.replace(HONEST, definition))
        for horizon in planted.HORIZONS:
            label = np.full(len(t_ns), np.nan)
            label[: -horizon - 1] = np.log(mid[1 + horizon :] / mid[1:-horizon])
            rows = rows.append_column(f"y_{horizon}", pa.array(label, from_pandas=True))
        for name in ("mid_close", "spread_bps"):
            rows = rows.append_column(name, bars[name])
        kept = rows.filter(rows["warm"]).drop(["symbol", "date", "warm"])
        lake.write("training_set", "BTCUSDT", date, kept, inputs=definition)
    return lake


def test_a_feature_one_bar_early_is_named_and_not_promoted(tmp_path: Path, template: Path) -> None:
    lake = made(tmp_path, EARLY)
    shutil.copytree(template, tmp_path / "mlflow")
    settings = planted.settings(tmp_path, trials=0)
    outcome = train_and_register(lake, settings, "code")
    assert outcome.verdict == "abstain"
    said = [reason for reason in outcome.reasons if reason.startswith("truncation")]
    assert said == [
        "truncation: 900 of 144,000 values of 2026-01-05 change when the bars end with them; ofi_now"
    ]


def test_the_features_as_they_are_defined_look_at_nothing_later(tmp_path: Path) -> None:
    lake, settings = made(tmp_path, HONEST), planted.settings(tmp_path)
    source = LakeSource(lake, settings.market.symbols, settings.model.horizons_s)
    found = leakage.probed(lake, source, settings, Features.defined())
    assert {probe.name: probe.passed for probe in found}["truncation"]
    assert all(row.blocking for row in leakage.rows(found))
