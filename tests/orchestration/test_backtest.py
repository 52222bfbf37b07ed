"""A backtest is the live trader over recorded events: the same decisions, orders and fills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from execution.tca import Row
from live.collect import collect
from live.decisions import Decision
from live.own_capture import TickerState, checkpoints
from live.run import followed
from live.worker import run as run_live
from market.bars import BarBuilder, Bars
from market.features import feature_names
from market.ingest import ingest
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, day_start_ns, utc_date
from market.wire.capture import CaptureWriter, read_lines
from market.wire.decode import Decoder
from market.wire.survey import instruments_of
from orchestration.backtest.run import Run, load_model, replay
from orchestration.backtest.span import Span, instruments_of_span
from tests.live.live_market import live_settings, promote

S = 1_000_000_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")
HISTORY_S = 3_660


class Recorded(NamedTuple):
    """A lake with a warm-up hour before a stretch of a recording, and that stretch as a capture."""

    root: Path
    capture: str
    span: Span


def warm_lake(root: Path, recording: Path, first_ns: int, until_ns: int) -> Recorded:
    """A lake in which features are warm at the recording's first second.

    Recordings are minutes long and features look back an hour, so the hour before repeats the
    recording's own bars.
    """
    instruments = instruments_of([str(recording)], SYMBOLS)
    decoder = Decoder(instruments, 200, SYMBOLS, follow=False)
    builders = {symbol: BarBuilder(instruments[symbol], 5.0) for symbol in SYMBOLS}
    parts: dict[str, list[Bars]] = {symbol: [] for symbol in SYMBOLS}
    restated: list[bytes] = []
    lines = []
    for receive_ns, frame in read_lines(recording):
        if receive_ns >= until_ns:
            break
        if receive_ns >= first_ns:
            if not lines:
                restated = [
                    line
                    for symbol, builder in builders.items()
                    for line in checkpoints(instruments[symbol], builder.book, TickerState(), 200)
                ]
            lines.append((receive_ns, frame))
        for symbol, events in decoder.decode_frame(receive_ns, frame).events.items():
            parts[symbol].append(builders[symbol].push(events))
    start_ns = lines[0][0] // S * S
    capture, opening = root / "stretch.frames.zst", root / "opening.frames.zst"
    for path, at_ns, following in ((opening, start_ns - S, []), (capture, start_ns, lines)):
        with CaptureWriter(path) as writer:
            for instrument in instruments.values():
                writer.control(at_ns, {"l2": "instrument", **msgspec.to_builtins(instrument)})
            for line in restated:
                writer.append(at_ns, line)
            for receive_ns, frame in following:
                writer.append(receive_ns, frame)
    lake = Lake(root, "recorded")
    settings = Settings(root=str(root))
    dates = sorted({utc_date(start_ns - S), utc_date(start_ns), utc_date(lines[-1][0])})
    ingest(
        lake, [str(opening), str(capture)], [(s, day) for s in SYMBOLS for day in dates], settings
    )
    for symbol, chunks in parts.items():
        values = np.concatenate([bars.values for bars in chunks])[2:]
        back = np.arange(HISTORY_S, dtype=np.int64)[::-1]
        bars = Bars(t_ns=start_ns - S * back, values=values[back % len(values)])
        for day in sorted({utc_date(int(t) - 1) for t in bars.t_ns[[0, -1]]}):
            of_day = (bars.t_ns - 1) // DAY_NS == day_start_ns(day) // DAY_NS
            of_date = Bars(t_ns=bars.t_ns[of_day], values=bars.values[of_day])
            lake.write("bars", symbol, day, of_date.to_arrow())
    return Recorded(root, str(capture), Span(start_ns, lines[-1][0] + 1))


def lake_over(recorded: Recorded, root: Path) -> Path:
    """Another lake over the same partitions."""
    root.mkdir()
    for name in ("bars", "events", "lake.json"):
        (root / name).symlink_to(recorded.root / name)
    return root


class Backtest(NamedTuple):
    """A finished run with its decisions and the rows of its execution tables."""

    run: Run
    decisions: list[Decision]
    tables: dict[str, list[dict[str, Any]]]


def backtest(settings: Settings, span: Span) -> Backtest:
    lake = Lake(settings.root)
    instruments, _ = instruments_of_span(lake, followed(settings.market), span)
    decisions: list[Decision] = []
    tables: dict[str, list[dict[str, Any]]] = {}

    def keep(table: str, rows: Sequence[Row]) -> None:
        tables.setdefault(table, []).extend(msgspec.structs.asdict(row) for row in rows)

    model = load_model(settings, "champion", settings.market.symbols)
    run = Run(settings, instruments, model, decided=decisions.append, rows=keep)
    replay(lake, instruments, span, [run])
    return Backtest(run, decisions, tables)


def without_venue(rows: Sequence[dict[str, Any]], *key: str) -> list[dict[str, Any]]:
    """Rows without the venue's name and with NaN as None, sorted by ``key``."""
    return sorted(
        (
            {k: None if v != v else v for k, v in row.items() if k not in ("venue", "run")}
            for row in rows
        ),
        key=lambda row: tuple(row[name] for name in key),
    )


@pytest.fixture(scope="module")
def stretches(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, Recorded]:
    """A fast minute, and one around midnight UTC."""
    midnight = day_start_ns("2024-07-19")
    fast = data_dir / "usdm-20240808.frames.zst"
    first = next(iter(read_lines(fast)))[0]
    return {
        "fast": warm_lake(tmp_path_factory.mktemp("fast"), fast, first + 4 * S, first + 64 * S),
        "midnight": warm_lake(
            tmp_path_factory.mktemp("midnight"),
            data_dir / "usdm-20240718.frames.zst",
            midnight - 35 * S,
            midnight + 25 * S,
        ),
    }


def settings_of(root: Path, **execution: object) -> Settings:
    return msgspec.structs.replace(live_settings(root, **execution), source="recorded")


@pytest.mark.parametrize(
    ("name", "algorithm", "speed"),
    [
        ("fast", "passive", 0.0),
        ("fast", "passive", 30.0),
        ("fast", "market", 120.0),
        ("midnight", "passive", 0.0),
    ],
)
def test_worker_and_backtest_decide_order_and_fill_alike(
    name: str, algorithm: str, speed: float, stretches: dict[str, Recorded], tmp_path: Path
) -> None:
    """Bit for bit, whatever the speed of the worker's replay."""
    recorded = stretches[name]
    root = lake_over(recorded, tmp_path / "lake")
    # The expectation changes sign with the flow of each second: orders fill, are amended and cancelled.
    promote(root, name="btc-l2", source="recorded", follows="ofi_now")
    settings = settings_of(root, algorithm=algorithm)
    mine = backtest(settings, recorded.span)
    summary = run_live(settings, frames=[recorded.capture], speed=speed)
    lake = Lake(root)
    collect(lake, root / "live" / "paper", "paper")

    def live(table: str) -> list[dict[str, Any]]:
        return [
            row | {"symbol": symbol}
            for symbol, day in lake.partitions(table)
            for row in lake.read(table, symbol, day).to_pylist()
        ]

    assert len(mine.tables["fills"]) > 20, "there is something to compare"
    assert {row["symbol"] for row in mine.tables["fills"]} == set(SYMBOLS)
    for table, key in (
        ("parents", "parent_id"),
        ("orders", "client_id"),
        ("fills", "exec_id"),
        ("tca", "parent_id"),
    ):
        assert without_venue(mine.tables[table], key) == without_venue(live(table), key), table
    horizons = mine.run.model.bundle.horizons_s
    decided = [
        {
            **{
                field: getattr(d, field)
                for field in d.__struct_fields__
                if field not in ("by_horizon", "vector", "error_bps", "scale_bps")
            },
            **{f"expected_{h}_bps": v for h, v in zip(horizons, d.by_horizon, strict=True)},
            **dict(zip(feature_names(), d.vector.tolist(), strict=True)),
        }
        for d in mine.decisions
    ]
    assert sum(d.warm for d in mine.decisions) == len(mine.decisions) > 100
    key = ("t_ns", "symbol")
    assert without_venue(decided, *key) == without_venue(live("decisions"), *key)
    for name, figure in mine.run.trader.summary().items():
        if name in ("all_in_cost_bps", "cost_parts_bps"):
            continue  # means over parents, which rounding lets depend on the symbols' order
        assert figure == summary[name], name


def test_a_position_is_carried_over_midnight(
    stretches: dict[str, Recorded], tmp_path: Path
) -> None:
    """Nothing is closed or entered anew where the next partition begins: at every decision the position
    is the sum of all fills received until then."""
    recorded = stretches["midnight"]
    root = lake_over(recorded, tmp_path / "lake")
    promote(root, name="btc-l2", source="recorded", follows="ofi_now")
    run = backtest(settings_of(root, algorithm="market"), recorded.span)
    midnight = day_start_ns("2024-07-19")
    assert {d.position_lots != 0 for d in run.decisions if d.t_ns == midnight} == {True}
    for decision in run.decisions:
        received = [
            row["side"] * row["qty_lots"]
            for row in run.tables["fills"]
            if row["symbol"] == decision.symbol and row["time_ns"] < decision.t_ns
        ]
        assert decision.position_lots == sum(received)
