"""`l2 bench backtest`: what a symbol-day of a backtest costs, by stage, in processor seconds.

Half an hour of the ``demo`` market behind an hour of it, by boosters of the size that training makes, which
follow the trade flow and so trade all the time. A backtest computes features and predictions once, and
runs three times: at its own queue model and at both bounds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import lightgbm
import msgspec
import numpy as np

from market.bars import make_bars
from market.console import Say
from market.features import feature_hash, feature_names
from market.ingest import ingest
from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS, day_start_ns
from models_registry.manifest import Bundle, Manifest, Pointer, list_hash
from orchestration.backtest.figures import figures
from orchestration.backtest.foresight import ForesightTrader, file_of, foresee
from orchestration.backtest.run import FixedModel, Run, replay
from orchestration.backtest.span import Span, instruments_of_span
from proving.bench.goals import Measure
from proving.synthetic import profile, write_frames

SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
_DAY: Final = "2026-03-02"
_HISTORY_S: Final = 3_700
_ROUNDS: Final = 100
_RUNS: Final = 3


def measure(quick: bool, say: Say) -> Iterator[Measure]:
    """Every figure of this area."""
    span_s = 20 if quick else 1_800
    with tempfile.TemporaryDirectory() as folder:
        settings = msgspec.convert(
            {"root": folder, "source": "synthetic", "model": {"fee_row": "zero"},
             "execution": {"algorithm": "market"}}, Settings,
        )  # fmt: skip
        say("the market, and a model")
        lake = _lake(settings, _HISTORY_S + span_s)
        first_ns = day_start_ns(_DAY) + _HISTORY_S * SECOND_NS
        span = Span(first_ns, first_ns + span_s * SECOND_NS)
        model = followers(settings, 2 if quick else _ROUNDS)
        say("by stage")
        spent, trips = _stages(settings, lake, span, model, Path(folder))
    scale = 86_400 / span_s / len(SYMBOLS)
    how = (
        f"processor time of {span_s:,} s of {' and '.join(SYMBOLS)}, {trips:,} round trips, as seconds "
        f"of a symbol-day; {len(model.bundle.boosters)} boosters of {_ROUNDS} trees"
    )
    for name, taken in spent.items():
        yield Measure(
            name=f"backtest: {name}", ours=taken * scale, unit="s", better="less", how=how
        )
    once = spent["features"] + spent["predictions"] + spent["report"]
    yield Measure(
        name="backtest: total, with both bounds",
        ours=(once + _RUNS * spent["run"]) * scale,
        unit="s",
        better="less",
        how=f"{how}; features, predictions and report once, the run {_RUNS} times",
    )


def _stages(
    settings: Settings, lake: Lake, span: Span, model: FixedModel, folder: Path
) -> tuple[dict[str, float], int]:
    """Processor seconds by stage, and the round trips that a run made; ``run`` holds the parts of a run."""
    instruments, inputs = instruments_of_span(lake, SYMBOLS, span)
    spent = foresee(settings, instruments, span, [model], SYMBOLS, folder)
    parts = {"simulator": 0.0, "accounting": 0.0}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                parts[part] += time.perf_counter() - started

        return call

    files = {symbol: file_of(folder, 0, symbol) for symbol in SYMBOLS}

    def trader(*arguments: Any, **options: Any) -> ForesightTrader:
        made = ForesightTrader(*arguments, files=files, **options)
        made.desk.measure = timed("accounting", made.desk.measure)  # type: ignore[method-assign]
        return made

    run = Run(settings, instruments, model, trader=trader)
    for venue in run.driver.venues.values():
        for name in ("on_events", "advance", "send", "poll"):
            setattr(venue, name, timed("simulator", getattr(venue, name)))
    for name in ("sample", "flush"):
        setattr(run, name, timed("accounting", getattr(run, name)))
    started = time.process_time()
    events = replay(lake, instruments, span, [run])
    spent["run"] = time.process_time() - started
    started = time.process_time()
    figures(run.books(events), model, span, inputs, lake.source, events)
    spent["report"] = time.process_time() - started
    return spent | {f"run, its {part}": taken for part, taken in parts.items()}, len(
        run.blotter.trades
    )


def _lake(settings: Settings, span_s: int) -> Lake:
    """A lake with the first ``span_s`` of a day, as events and bars."""
    lake = Lake(settings.root, settings.source)
    write_frames(lake, profile("demo"), 7, SYMBOLS, _DAY, 0, span_s)
    ingest(lake, lake.captures(_DAY), [(symbol, _DAY) for symbol in SYMBOLS], settings)
    for symbol in SYMBOLS:
        make_bars(lake, symbol, _DAY, settings)
    return lake


def followers(settings: Settings, rounds: int, feature: str = "tfi_60") -> FixedModel:
    """A model whose boosters follow a feature, the trade flow of a minute; trained on random rows."""
    names, horizons = feature_names(), settings.model.horizons_s
    rows = np.random.Generator(np.random.Philox(key=5)).normal(size=(20_000, len(names)))
    label = np.sign(rows[:, names.index(feature)]) + 0.1 * rows[:, 0]
    options = {"num_leaves": 31, "verbose": -1, "deterministic": True, "num_threads": 1}
    boosters = [
        lightgbm.train(options | {"seed": horizon}, lightgbm.Dataset(rows, label), rounds)
        for horizon in horizons
    ]
    line = {"fitted": 1.0, "error": 0.0, "n_eff": 100.0, "slope": 1.0, "table": []}
    member = {"calibration": line, "to_primary": 1.0, "weight": 1 / len(horizons), "ic": 0.1,
              "booster": "-", "sha256": "-"}  # fmt: skip
    day = {"first_date": _DAY, "last_date": _DAY, "first_ns": 0, "last_ns": 1, "rows": 1,
           "stride_s": 1}  # fmt: skip
    about = {
        "format": 1, "name": settings.model_name, "source": settings.source,
        "book_topic": f"orderbook.{settings.market.book_depth}", "symbols": SYMBOLS,
        "feature_hash": feature_hash(), "feature_list_hash": list_hash(names), "window": day,
        "fees": {"row": "zero", "taker_bps": 0.0, "maker_bps": 0.0}, "data_fingerprint": "bench",
        "git_sha": "bench", "seed": 5, "parameters": {}, "metrics": {},
        "gate": {"verdict": "promote", "reasons": []},
        "decay": {"spacing_s": 60, "mean": 0.0, "drift": 0.0, "limit": None, "arl0_days": 30.0,
                  "observations": 0},
        "recipe": {
            "features": names, "primary_s": settings.model.primary_s, "gain": 1.0,
            "scale": {"feature": "realised_vol_300", "window_s": 300, "floor_bps": 1.0},
            "members": [member | {"horizon_s": horizon} for horizon in horizons],
            "regimes": [{"name": "all", "up_to_bps": None, "threshold_bps": 0.0}],
        },
    }  # fmt: skip
    bundle = Bundle(msgspec.convert(about, Manifest), boosters, "bench")
    pointer = Pointer(name=settings.model_name, version="bench", folder="", manifest_sha256="bench")
    return FixedModel(pointer, bundle)
