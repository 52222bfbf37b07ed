"""The worker over a synthetic market: what it saw, decided and did stands on record, and repeats."""

from __future__ import annotations

import asyncio
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from websockets.asyncio.server import ServerConnection

from execution.order_machine import Order
from execution.orders import Event, Filled, OrderState
from live import log
from live.champion import Champion, NoChampionError
from live.collect import collect
from live.control import Control
from live.feed import FeedError, Item, ReplayFeed
from live.inbox import Given
from live.journal import JournalError, TableRows, parent_of
from live.log import LogError
from live.messages import Append, Command, PublicFrame
from live.replay import replay_last
from live.run import Run, known_instruments
from live.why import explained, frame_before
from live.worker import run, summary_text
from market.bars import BarBuilder, Bars, make_bars
from market.errors import no_space
from market.features import FeatureEvaluator, feature_names
from market.features.rendering import render_model
from market.ingest import ingest
from market.lake import Lake
from market.settings import PROFILES, Desk, Settings
from market.units import day_start_ns
from market.wire.capture import CaptureWriter, read_blocks, read_lines
from market.wire.decode import Decoder
from models_registry.manifest import (
    POINTER_FILE,
    BundleError,
    bundles_folder,
    legacy_folder,
    read_pointer,
)
from models_registry.pointed import CHALLENGER_FILE, DECAY_FILE, Patch, find, publish
from orchestration.backtest.run import load_model
from orchestration.cli import main
from orchestration.dashboard.again import Again
from orchestration.journal_migration import migrate_journals
from orchestration.statement import statement
from proving.synthetic import profile, write_frames
from tests.conftest import Limit
from tests.live.exchange import acknowledge, exchange
from tests.live.live_market import live_settings, promote
from tests.market.feature_bars import run_model, staged
from tests.orchestration.test_journal_migration import journal

S = 1_000_000_000
DAY = "2026-03-03"
SYMBOLS = ("BTCUSDT", "ETHUSDT")
#: The lake holds this much of the date, the fresh capture goes on where it ends.
HISTORY_S, FRESH_S = 3_660, 100
START = day_start_ns(DAY) + HISTORY_S * S


class Market(NamedTuple):
    root: Path  #: a lake with bars and events of the first hour
    fresh: str  #: a capture of the seconds behind it


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    root = tmp_path_factory.mktemp("market")
    lake = Lake(root, "synthetic")
    known = write_frames(root / "known.frames.zst", profile("demo"), 7, SYMBOLS, DAY, 0, HISTORY_S)
    settings = live_settings(root)
    ingest(lake, [known], [(symbol, DAY) for symbol in SYMBOLS], settings)
    for symbol in SYMBOLS:
        make_bars(lake, symbol, DAY, settings)
    fresh = write_frames(
        root / "fresh.frames.zst",
        profile("demo"),
        7,
        SYMBOLS,
        DAY,
        HISTORY_S,
        HISTORY_S + FRESH_S,
    )
    return Market(root, fresh)


def lake_over(market: Market, root: Path) -> Path:
    """A lake of one's own over the shared partitions."""
    root.mkdir()
    for name in ("bars", "events", "lake.json"):
        (root / name).symlink_to(market.root / name)
    return root


@pytest.fixture
def root(market: Market, tmp_path: Path) -> Path:
    return lake_over(market, tmp_path / "lake")


def decisions(root: Path) -> list[dict[str, Any]]:
    """Rows of the lake's decisions, what a worker left in its folder included, by run and time."""
    lake = Lake(root)
    collect(lake, root / "live" / "paper", "paper")
    rows = [
        row | {"symbol": symbol}
        for symbol, day in lake.partitions("decisions")
        for row in lake.read("decisions", symbol, day).to_pylist()
    ]
    return sorted(rows, key=lambda row: (row["run"], row["t_ns"], row["symbol"]))


def logged(root: Path) -> list[tuple[int, Any]]:
    """Every record of a worker's log with its time, headers left out."""
    return [
        (now_ns, body)
        for block in log.read(root / "live" / "paper" / "log")
        for now_ns, body in block.records
        if not isinstance(body, log.Header)
    ]


def records(root: Path, *kinds: str) -> list[Append]:
    """The journal's records of these kinds."""
    return [b for _, b in logged(root) if isinstance(b, Append) and b.kind in kinds]


def orders_of(root: Path) -> dict[str, Order]:
    """Every order in the log, by client id."""
    rows = TableRows("paper")
    for record in records(root, "intent", "event"):
        rows.take(record)
    return rows.orders.by_id


def event_of(record: Append) -> Event:
    return msgspec.json.decode(record.body, type=Event)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def worked(market: Market, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run to look at from many sides; nobody changes what it left."""
    root = lake_over(market, tmp_path_factory.mktemp("worked") / "lake")
    promote(root)
    return root, run(live_settings(root), frames=[market.fresh], speed=0)


def test_a_run_decides_every_second_trades_and_ends_flat(
    worked: tuple[Path, dict[str, Any]], market: Market
) -> None:
    root, summary = worked
    rows = decisions(root)
    times = sorted({row["t_ns"] for row in rows})
    assert times == list(range(START + S, START + FRESH_S * S, S))
    assert len(rows) == summary["decisions"] == 2 * len(times)
    assert all(row["warm"] for row in rows), "the lake's history joins without a break"
    assert summary["parents"] > 0
    assert summary["fills"] > 0
    assert summary["positions"] == dict.fromkeys(SYMBOLS, 0)
    assert summary["rejected"] == summary["gaps"] == summary["skipped_seconds"] == 0
    assert "decisions" in summary_text(summary)


@pytest.mark.parametrize("size", [0, 30_000, 150_000])
def test_a_worker_does_not_begin_on_a_full_disk_and_later_does(
    size: int, root: Path, market: Market, file_limit: Limit
) -> None:
    promote(root)
    settings = live_settings(root)
    with file_limit(size), pytest.raises((LogError, OSError)) as stopped:
        run(settings, frames=[market.fresh], speed=0)
    assert no_space(stopped.value) or isinstance(stopped.value, LogError)
    summary = run(settings, frames=[market.fresh], speed=0)
    assert summary["positions"] == dict.fromkeys(SYMBOLS, 0)
    left = [path.name for path in (root / "live").rglob("*") if path.suffix in (".tmp", ".arrows")]
    assert not left
    assert summary["collected"]["decisions"] >= summary["decisions"]


def test_a_disk_that_fills_up_ends_files_and_neither_decisions_nor_the_closing(
    root: Path, market: Market, file_limit: Limit, capfd: pytest.CaptureFixture[str]
) -> None:
    promote(root)
    left: list[str] | None = None
    with begun(root, market.fresh) as one, ExitStack() as full:
        feed = Steps(market.fresh, {START + 30 * S: lambda: full.enter_context(file_limit(40_000))})
        stack = ExitStack()
        shell = one.begin(feed, feed.first_ns, stack)
        left = shell.run(iter(feed))
        with pytest.raises(LogError):  # what cannot be on record is no good end
            stack.close()
    assert left == []
    assert {s: shell.core.account.position_lots(s) for s in SYMBOLS} == dict.fromkeys(SYMBOLS, 0)
    assert shell.core.trader.decisions == 2 * (FRESH_S - 1), "it decides on"
    assert shell.keeper.lost_frames > 0
    assert "cannot be written" in capfd.readouterr().err
    summary = run(live_settings(root), frames=[market.fresh], speed=0)
    assert summary["positions"] == dict.fromkeys(SYMBOLS, 0)


def test_the_cost_of_a_run_is_the_sum_of_its_parts(
    worked: tuple[Path, dict[str, Any]],
) -> None:
    _, summary = worked
    parts = sum(summary["cost_parts_bps"].values())
    assert parts == pytest.approx(summary["all_in_cost_bps"], abs=1e-9)
    assert summary["net_pnl_usdt"] == summary["gross_pnl_usdt"] - summary["fees_usdt"]


def traded(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the execution tables by table."""
    lake = Lake(root)
    return {
        table: [
            row | {"symbol": symbol}
            for symbol, day in lake.partitions(table)
            for row in lake.read(table, symbol, day).to_pylist()
        ]
        for table in ("parents", "orders", "fills", "tca", "markouts")
    }


def test_every_parent_has_its_estimate_and_its_cost_against_an_unmoved_market(
    worked: tuple[Path, dict[str, Any]],
) -> None:
    root, _ = worked
    rows = traded(root)
    costs = {row["parent_id"]: row for row in rows["tca"]}
    assert set(costs) == {row["parent_id"] for row in rows["parents"]}
    for row in rows["parents"]:
        assert row["spread_regime"] in ("one_tick", "usual", "wide")
        assert row["sigma_bps"] > 0
        assert row["volume_lots_s"] > 0
        assert row["depth_lots"] > 0
        told = [row[f"estimate_{part}_bps"] for part in ("spread", "impact", "timing", "fees")]
        assert all(value is not None for value in told)
    for cost in costs.values():
        assert (cost["impact_by"], cost["impact_bps"]) == ("control", 0.0)
        assert cost["arrival_sound"]
        assert cost["arrival_ns"] >= cost["decision_ns"]
        assert cost["time_to_fill_s"] is None or cost["time_to_fill_s"] > 0


def test_every_fill_and_every_rest_of_a_limit_order_has_markouts(
    worked: tuple[Path, dict[str, Any]],
) -> None:
    root, _ = worked
    rows = traded(root)
    told = {(row["client_id"], row["exec_id"]): row for row in rows["markouts"]}
    for fill in rows["fills"]:
        row = told.pop((fill["client_id"], fill["exec_id"]))
        assert (row["qty_lots"], row["time_ns"]) == (fill["qty_lots"], fill["venue_ns"])
    rests = {
        order["client_id"]: order["qty_lots"] - order["filled_lots"]
        for order in rows["orders"]
        if order["order_type"] == "Limit" and order["filled_lots"] < order["qty_lots"]
    }
    assert {client: row["qty_lots"] for (client, _), row in told.items()} == rests
    assert all(row["outcome"] == "cancelled" for row in told.values())


def test_records_of_an_older_version_are_brought_up_to_date_when_more_is_collected(
    worked: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A row that only the lake still holds stays, whatever columns it was written with."""
    root, _ = worked
    lake, old = Lake(root), Lake(tmp_path / "old", "synthetic")
    symbol, day = lake.partitions("parents")[0]
    rows = lake.read("parents", symbol, day)
    lost = rows.slice(0, 1).set_column(
        rows.column_names.index("parent_id"), "parent_id", [["of a journal that was lost"]]
    )
    old.write("parents", symbol, day, lost.drop(["spread_regime", "sigma_bps"]))
    live = tmp_path / "old" / "live" / "paper"
    shutil.copytree(root / "live" / "paper", live)
    (live / "collected").unlink()  # what this lake has collected: nothing
    collect(old, live, "paper")
    found = {row["parent_id"]: row for row in old.read("parents", symbol, day).to_pylist()}
    assert set(found) == {"of a journal that was lost", *rows.column("parent_id").to_pylist()}
    kept = found["of a journal that was lost"]
    assert (kept["spread_regime"], kept["sigma_bps"]) == ("unknown", None)


def test_the_own_capture_has_checkpoints_and_then_every_frame(
    worked: tuple[Path, dict[str, Any]], market: Market
) -> None:
    _, summary = worked
    [path] = summary["captures"]
    own, received = list(read_lines(path)), list(read_lines(market.fresh))
    assert own[-len(received) :] == received
    opening = [msgspec.json.decode(frame) for _, frame in own[: -len(received)]]
    assert [line["l2"] for line in opening] == ["instrument"] * 2 + ["checkpoint"] * 4


def test_every_action_has_an_intent_and_no_order_stays_open(
    worked: tuple[Path, dict[str, Any]],
) -> None:
    root, summary = worked
    orders = orders_of(root)
    assert len(orders) == summary["orders"]
    assert all(order.state.is_final for order in orders.values())
    assert summary["positions"] == dict.fromkeys(SYMBOLS, 0)
    assert summary["left"] == []
    told: set[str] = set()
    for record in records(root, "intent", "event"):
        if record.kind == "intent":
            told.add(record.client_id)
        else:
            assert record.client_id in told, "evidence follows its intent"


def test_the_same_frames_give_the_same_decisions_and_the_same_log(
    worked: tuple[Path, dict[str, Any]], market: Market, root: Path
) -> None:
    first, summary = worked
    second = root
    promote(second)
    again = run(live_settings(second), frames=[market.fresh], speed=0)
    assert logged(first) == logged(second)
    for symbol, day in Lake(first).partitions("decisions"):
        paths = [Path(Lake(root).path("decisions", symbol, day)) for root in (first, second)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    measured = {"latency_us": None, "stages_us": None, "captures": None}
    assert summary | measured == again | measured


def test_a_log_repeats_its_run_effect_for_effect(worked: tuple[Path, dict[str, Any]]) -> None:
    root, _ = worked
    repeated = replay_last(root / "live" / "paper" / "log", as_json=True)
    assert isinstance(repeated, dict)
    assert repeated["difference"] == ""
    assert repeated["inputs"] > 1000
    assert repeated["effects"] > 100


# -- skew: live against batch -----------------------------------------------------------------


def test_a_log_is_shown_again_to_its_end_and_from_any_time(
    worked: tuple[Path, dict[str, Any]],
) -> None:
    root, summary = worked
    again = Again(root / "live" / "paper" / "log")
    again.speed = 1e9

    def ended() -> bool:
        return again.status == "the log ends here"

    def until(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not true():
            assert time.monotonic() < deadline, again.status
            time.sleep(0.02)

    try:
        until(ended)
        assert again.state["costs"]["fills"] == summary["fills"]
        assert again.state["worker"]["run"] == again.run
        middle = (again.begins_ns + again.ends_ns) // 2
        again.paused = True
        again.jump(middle)
        # The state shown before stays until the time is reached.
        until(lambda: middle <= again.state["worker"]["time_ns"] < middle + 10 * S)
        assert not ended()
    finally:
        again.close()


def test_a_long_log_is_opened_and_asked_without_decoding_all_of_it(
    worked: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = tmp_path / "lake", tmp_path / "lake" / "live" / "paper" / "log"
    shutil.copytree(worked[0], root, symlinks=True)
    mine = log.segments(folder)
    for number in reversed(mine):  # behind a run of its own length and more
        mine[number].rename(folder / f"{number + 1:06d}.log")
    path = tmp_path / "other"
    other = msgspec.structs.replace(log.header_of(folder / "000002.log"), run="another")
    out = log.LogWriter(path, other, START, reserve_bytes=0)
    for n in range(20_000):
        out.append_input(START + n, PublicFrame(frame=os.urandom(1_000)))
    out.close()
    (path / "000001.log").rename(folder / "000001.log")

    ended = next(record for record in records(root, "end"))
    blocks, decoded, decoder = sum(1 for _ in log.read(folder)), list[int](), log._RECORDS

    class Counts:
        def decode(self, raw: bytes) -> Any:
            decoded.append(threading.get_ident())
            return decoder.decode(raw)

    monkeypatch.setattr(log, "_RECORDS", Counts())
    again = Again(folder)
    again.close()
    mine_alone = decoded.count(threading.get_ident())
    assert mine_alone <= 10 < blocks / 20
    found = explained(again.settings, root / "live" / "paper", ended.parent_id)[1]
    assert {r["kind"] for r in found["records"]} >= {"parent", "intent", "event", "end"}
    assert decoded.count(threading.get_ident()) - mine_alone < blocks / 10
    times = [at for block in log.read(folder, log.Position(2)) for at, _ in block.records]
    assert (again.begins_ns, again.ends_ns) == (min(times), max(times))


def test_the_statement_of_a_paper_run_is_its_profit_and_says_what_it_is_not(
    worked: tuple[Path, dict[str, Any]],
) -> None:
    root, summary = worked
    rows = statement(live_settings(root), DAY)
    assert sum(row["executions"] for row in rows) == summary["fills"]
    assert sum(row["change"] for row in rows) == pytest.approx(Decimal(summary["net_pnl_usdt"]))
    assert {(row["closing"], row["compared"], row["note"]) for row in rows} == {
        (0, False, "not compared: the day is not over")
    }


def test_a_worker_that_ends_while_it_is_held_exits_with_a_status_of_its_own(
    root: Path,
    market: Market,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    promote(root)
    (root / "live" / "paper" / "control").mkdir(parents=True)
    (root / "live" / "paper" / "control" / "halt").touch()
    unsynced, answer = list[int](), Control.answer

    def answered(control: Control, name: str, said: dict[str, Any]) -> None:
        kept = control._put.__self__.log  # type: ignore[attr-defined]
        unsynced.append(kept.position - kept.synced_to)
        answer(control, name, said)

    monkeypatch.setattr(Control, "answer", answered)
    options = ["source=synthetic", "model.horizons_s=10,60", "model.fee_row=zero"]
    told = [word for option in options for word in ("--set", option)]
    live = ["live", "--root", str(root), "--no-resolver", "--frames", market.fresh]
    assert main([*live, *told, "--speed", "100"]) == 3
    assert "l2 live: stopped while held (halt by " in capsys.readouterr().err
    assert unsynced == [0], "what an operator is told is done is on disk"


def test_an_order_is_explained_from_its_features_to_its_cost(
    worked: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = worked
    ended = {record.parent_id for record in records(root, "end")}
    parent = next(r for r in records(root, "parent") if r.parent_id in ended)
    options = ("--root", str(root), "--venue", "paper", "--set", "source=synthetic")
    assert main(["why", f"{parent.parent_id}-1", *options]) == 0
    text = capsys.readouterr().out
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(parent.time_ns // S))
    assert text.startswith(f"{parent.symbol}, decision of {second.replace('T', ' ')} UTC\n")
    assert f"\nparent {parent.parent_id}: " in text
    assert re.search(r"^ +0\.\d{3} +1 +(buy|sell) limit ioc", text, re.MULTILINE)
    assert "  last public frame before it: " in text
    assert re.search(r"^cost -?\d+\.\d{3} bps: delay ", text, re.MULTILINE)

    assert main(["why", second, "--symbol", parent.symbol, "--json", *options]) == 0
    found = msgspec.json.decode(capsys.readouterr().out)
    assert sum(found["moved_bps"].values()) == pytest.approx(found["decision"]["raw_bps"], abs=1e-9)
    assert {r["kind"] for r in found["records"]} >= {"parent", "intent", "event", "end"}
    frame, at = found["frame"], found["second"] * S
    known = [
        (block.segment, block.offset, n, time_ns, body.frame)
        for block in log.read(root / "live" / "paper" / "log")
        for n, (time_ns, body) in enumerate(block.records)
        if isinstance(body, PublicFrame)
        and time_ns < at
        and re.search(rf'"topic":"[^"]+\.{parent.symbol}"'.encode(), body.frame)
    ]
    *place, raw = known[-1]
    assert [frame[k] for k in ("segment", "offset", "record", "receive_ns")] == place
    assert frame["topic"] == msgspec.json.decode(raw)["topic"]
    assert frame_before(root / "live" / "paper" / "log", parent.symbol, at + 3600 * S) is None
    assert frame_before(root / "live" / "paper" / "log", parent.symbol, at - 3600 * S) is None

    assert main(["why", "2001-01-01T00:00:00", *options]) == 2
    assert main(["why", "yesterday", *options]) == 2
    assert "neither an id (SYMBOL-SECOND-NUMBER) nor a UTC time" in capsys.readouterr().err


def batch_bars(capture: str, settings: Settings, until_ns: int = 0) -> dict[str, Bars]:
    """Bars of one date by symbol, made of its capture in one piece, with those of silent seconds up
    to ``until_ns``."""
    instruments = known_instruments(SYMBOLS, [capture], settings.market.book_depth)
    decoder = Decoder(instruments, settings.market.book_depth, SYMBOLS)
    builders = {s: BarBuilder(instruments[s], settings.market.stale_after_s) for s in SYMBOLS}
    parts: dict[str, list[Bars]] = {symbol: [] for symbol in SYMBOLS}
    for block in read_blocks(capture):
        for symbol, events in decoder.decode_block(block).events.items():
            parts[symbol].append(builders[symbol].push(events))
    for symbol, builder in builders.items():
        parts[symbol].append(builder.close_until(until_ns) if until_ns else builder.finish())
    return {
        symbol: Bars(
            t_ns=np.concatenate([part.t_ns for part in found]),
            values=np.concatenate([part.values for part in found]),
        )
        for symbol, found in parts.items()
    }


def test_logged_vectors_are_recomputed_from_the_own_capture_by_the_batch(
    worked: tuple[Path, dict[str, Any]],
) -> None:
    """Parity: |live − batch| <= 1e-9 max(1, |live|), and the same NULLs, on every feature."""
    root, summary = worked
    [capture] = summary["captures"]
    parts = []
    for symbol, bars in batch_bars(capture, live_settings(root)).items():
        history = Lake(root).read("bars", symbol, DAY)
        known = np.column_stack([column.to_numpy() for column in history.columns[1:]])
        t_ns = np.concatenate([history.column("t_ns").to_numpy(), bars.t_ns])
        parts.append(staged(symbol, t_ns, np.concatenate([known, bars.values]), [DAY]))
    table = run_model(render_model(), pa.concat_tables(parts))
    batch = {(row["symbol"], row["t_ns"]): row for row in table.to_pylist()}
    rows = decisions(root)
    assert len(rows) > 150
    for row in rows:
        other = batch[row["symbol"], row["t_ns"]]
        assert row["warm"] == other["warm"]
        for name in feature_names():
            a, b = row[name], other[name]
            assert (a is None) == (b is None), name
            assert a is None or abs(a - b) <= 1e-9 * max(1.0, abs(a)), name


def test_midnight_changes_the_file_and_each_date_reads_alone(
    data_dir: Path, tmp_path: Path
) -> None:
    """On a recording that crosses midnight UTC: bars made of each date's file in one piece give the
    vectors that were logged, bit for bit."""
    promote(tmp_path, name="btc-l2", source="recorded")
    settings = msgspec.structs.replace(live_settings(tmp_path), source="recorded")
    midnight = day_start_ns("2024-07-19")
    window = tmp_path / "window.frames.zst"
    with CaptureWriter(window) as writer:
        for receive_ns, frame in read_lines(data_dir / "usdm-20240718.frames.zst"):
            if receive_ns < midnight + 30 * S:
                writer.append(receive_ns, frame)
    summary = run(settings, frames=[str(window)], speed=0)
    assert summary["gaps"] == 0
    assert summary["rejected"] == 0
    assert summary["parents"] == 0, "not warm"
    captures = summary["captures"]
    assert [path.split("/")[-2] for path in captures] == ["date=2024-07-18", "date=2024-07-19"]
    evaluator = FeatureEvaluator(SYMBOLS)
    live = {(row["symbol"], row["t_ns"]): row for row in decisions(tmp_path)}
    compared: set[tuple[str, int]] = set()
    for capture, until_ns in zip(captures, (midnight, 0), strict=True):
        bars = batch_bars(capture, settings, until_ns)
        for t_ns in sorted({int(t) for symbol in SYMBOLS for t in bars[symbol].t_ns}):
            now = [(s, np.flatnonzero(bars[s].t_ns == t_ns)) for s in SYMBOLS]
            for symbol, [place] in now:
                evaluator.push(symbol, t_ns, bars[symbol].values[place])
            for symbol in SYMBOLS:
                vector, _ = evaluator.evaluate(symbol)
                if (row := live.get((symbol, t_ns))) is not None:
                    logged = [math.nan if row[n] is None else row[n] for n in feature_names()]
                    np.testing.assert_array_equal(vector, logged)
                    compared.add((symbol, t_ns))
    assert compared == set(live)
    valid = [row for row in live.values() if row["mid"] is not None]
    assert len(valid) > 0.99 * len(live)
    assert min(row["t_ns"] for row in valid) < midnight - 120 * S
    assert max(row["t_ns"] for row in valid) > midnight + 20 * S


# -- the champion -----------------------------------------------------------------------------


class Steps(ReplayFeed):
    """A replay that does something between two items."""

    def __init__(self, capture: str, at: dict[int, Callable[[], object]]) -> None:
        super().__init__([capture], speed=0)
        self._at = at

    def __iter__(self) -> Iterator[Item]:
        due = dict(self._at)
        for item in super().__iter__():
            for t_ns in [t for t in due if t <= item.receive_ns]:
                due.pop(t_ns)()
            yield item


@contextmanager
def begun(root: Path, capture: str, settings: Settings | None = None) -> Iterator[Run]:
    """What a run holds, before its first frame."""
    with Run(settings or live_settings(root), [capture], None) as one:
        yield one


def test_a_command_goes_before_what_waits(root: Path, market: Market) -> None:
    promote(root)
    at = START + 30 * S
    with begun(root, market.fresh) as one, ExitStack() as stack:
        pause = Command(command="pause", who="ann", reason="news", symbol=SYMBOLS[0])
        feed = Steps(market.fresh, {at: lambda: shell.command("1.json", pause)})
        shell = one.begin(feed, feed.first_ns, stack)
        shell.run(iter(feed))
    [(n, told_ns)] = [(n, ns) for n, (ns, body) in enumerate(logged(root)) if body == pause]
    frames = [ns for ns, body in logged(root)[:n] if isinstance(body, PublicFrame)]
    assert frames[-1] <= told_ns < at


def test_what_fails_while_closing_down_ends_none_of_the_rest(
    root: Path, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(root)
    fails = iter(range(3))
    with begun(root, market.fresh) as one, ExitStack() as stack:
        feed = ReplayFeed([market.fresh], speed=0, duration_s=60)
        shell = one.begin(feed, feed.first_ns, stack)
        step = shell.core.step

        def failing(now_ns: int, given: Any) -> Any:
            if shell.core._closing is not None and next(fails, None) is not None:
                raise ValueError("a fault")
            return step(now_ns, given)

        monkeypatch.setattr(shell.core, "step", failing)
        assert shell.run(iter(feed)) == []
        assert next(fails, None) is None, "it failed"
    assert [symbol for symbol in SYMBOLS if shell.core.account.position_lots(symbol)] == []
    assert all(order.state.is_final for order in shell.core.orders.by_id.values())
    assert shell._failures == {"ValueError": 3}


def test_limits_of_the_machine_that_passed_while_no_worker_ran_are_lifted(
    root: Path, market: Market
) -> None:
    promote(root)
    alarm = bundles_folder(root, "synthetic-l2") / DECAY_FILE
    facts = {"disk_full": 1.0, "late_s": 9.0, "decay": 5.0}
    for number in (1, 2):
        with begun(root, market.fresh) as one, ExitStack() as stack:
            feed = ReplayFeed([market.fresh], speed=0, duration_s=5)
            shell = one.begin(feed, feed.first_ns, stack)
            shell._paced = True
            if number == 1:
                told = Command(command="fact", who="w", reason="", limits=facts)
                shell.take(Given(told, 0))
                assert set(shell.core.safety.why(SYMBOLS[0])) >= {"disk full", "decay alarm"}
            else:
                alarm.write_text('{"alarm_ns": null}')
                shell.feed = object()  # type: ignore[assignment]
                shell.take(Item(shell.now_ns + S, None, time.monotonic_ns()))
                assert shell.core.safety.why(SYMBOLS[0]) == []
            if number == 1:
                shell.log.sync()


def test_a_replay_begins_before_its_first_frame_is_due(root: Path, market: Market) -> None:
    """Reading the history takes seconds, for which no frame shall wait."""
    promote(root, "1")
    names: list[str] = []
    with begun(root, market.fresh) as one:
        feed = Steps(market.fresh, {0: lambda: names.append(one.run_id)})
        summary = one.trade(feed)
    assert names == [summary["run"]]
    assert summary["run"]
    assert summary["warm_decisions"] > 0, "the history was joined"


def test_unpaced_seconds_are_counted_beside_the_latencies(root: Path, market: Market) -> None:
    promote(root, "1")
    every = run(live_settings(root), frames=[market.fresh], speed=0)["latency_us"]
    paced = run(live_settings(root), frames=[market.fresh], speed=1_000, warm_up_s=10)["latency_us"]
    assert every["unpaced"] == 0
    assert paced["unpaced"] > 0
    assert paced["n"] + paced["unpaced"] == every["n"]


def wait_for(champion: Champion) -> Callable[[], None]:
    """Let a load that was begun come to its end."""

    def wait() -> None:
        assert champion._loading is not None, "the pointer's change was noticed"
        champion._loading.exception(timeout=30)

    return wait


def test_a_promoted_champion_is_swapped_in_between_two_seconds(root: Path, market: Market) -> None:
    promote(root, "1")
    with begun(root, market.fresh) as one:
        at: dict[int, Callable[[], object]] = {
            START + 20 * S: lambda: promote(root, "2", sign=-1.0),
            START + 20 * S + S // 2: wait_for(one.champion),
        }
        summary = one.trade(Steps(market.fresh, at))
    assert summary["swaps"] == 1
    rows = decisions(root)
    versions = [row["model_version"] for row in rows]
    assert versions == sorted(versions)
    changed = min(row["t_ns"] for row in rows if row["model_version"] == "2")
    assert changed == START + 21 * S
    assert len({row["bundle_sha"] for row in rows}) == 2
    # The new model says the opposite of the old one.
    for row in rows:
        flow = row["tfi_60"] * (1 if row["model_version"] == "1" else -1)
        assert row["expected_bps"] * flow > 0


def point_at_challenger(root: Path) -> None:
    """A challenger beside the champion, which stays version 1."""
    home = bundles_folder(root, "synthetic-l2")
    champion = (home / POINTER_FILE).read_bytes()
    promote(root, "2", sign=-1.0)
    (home / POINTER_FILE).replace(home / CHALLENGER_FILE)
    (home / POINTER_FILE).write_bytes(champion)


def patch_champion(root: Path) -> None:
    pointer, bundle = find(
        bundles_folder(root, "synthetic-l2"), read_pointer(root, "synthetic-l2").manifest_sha256
    )
    half = tuple(member.weight / 2 for member in bundle.recipe.members)
    patch = Patch(
        name=pointer.name, version=pointer.version, manifest_sha256=pointer.manifest_sha256,
        until_ns=START, weights=half, gain=1.0,
    )  # fmt: skip
    assert publish(root, patch) is not None


def test_patch_challenger_and_decay_alarm_reach_the_worker_and_repeat_bit_for_bit(
    root: Path, market: Market, capsys: pytest.CaptureFixture[str]
) -> None:
    """The challenger takes features that the champion does not: they are computed once it is loaded."""
    taken = ("tfi_60", "realised_vol_300")
    promote(root, "1", features=taken)
    point_at_challenger(root)
    alarm = bundles_folder(root, "synthetic-l2") / DECAY_FILE
    with begun(root, market.fresh) as one:

        def loaded() -> None:
            until = time.monotonic() + 60
            while not (one.shadow and one.shadow.features):
                assert time.monotonic() < until
                time.sleep(0.01)

        def paced() -> None:
            """As slow as a real second is to the shadow, which leaves out what it is too busy for."""
            while one.shadow and one.shadow._queue.qsize():
                time.sleep(0.01)

        at: dict[int, Callable[[], object]] = {
            START + 10 * S: loaded,
            **{START + n * S: paced for n in range(11, 20)},
            START + 20 * S: lambda: patch_champion(root),
            START + 20 * S + S // 2: wait_for(one.champion),
            START + 50 * S: lambda: alarm.write_text(f'{{"alarm_ns": {START}, "cusum": 1.0}}'),
            START + 70 * S: lambda: alarm.write_text('{"alarm_ns": null}'),
        }
        summary = one.trade(Steps(market.fresh, at))
    rows = decisions(root)
    assert {row["model_version"] for row in rows} == {"1"}
    shas = {row["bundle_sha"]: row for row in rows}
    assert len(shas) == 2
    for sha, row in shas.items():  # as the patched bundle predicts it again
        again = find(bundles_folder(root, "synthetic-l2"), sha)[1]
        vector = np.array([row[name] for name in again.manifest.features], np.float64)
        assert again.predict(vector).raw_bps == row["raw_bps"]
    assert rows[0]["queue_now"] is None
    assert all(row["queue_now"] is not None for row in rows if row["t_ns"] > START + 12 * S)
    by_time = {(row["symbol"], row["t_ns"]): row for row in rows}
    lake = Lake(root)
    shadow = lake.read("shadow", "BTCUSDT", DAY).to_pylist()
    assert shadow
    assert summary["shadowed"]["predicted"] > 0
    for row in shadow:
        assert row["model_version"] == "2"
        assert row["raw_bps"] * by_time["BTCUSDT", row["t_ns"]]["raw_bps"] < 0
    labels = lake.read("realised", "BTCUSDT", DAY).to_pylist()
    assert {h for row in labels for h in row["horizon_s"]} == {10, 60}
    said = capsys.readouterr().err
    reached = [line for line in said.splitlines() if '"decay alarm"' in line]
    assert [msgspec.json.decode(line)["event"] for line in reached] == [
        "limit reached",
        "limit cleared",
    ]
    parents = [r for r in records(root, "parent") if START + 51 * S < r.time_ns < START + 70 * S]
    assert not parents, "nothing is opened"
    assert replay_last(root / "live" / "paper" / "log", as_json=True)["difference"] == ""


def test_a_champion_that_takes_for_ever_to_load_keeps_nothing_waiting(
    root: Path, market: Market
) -> None:
    """Its manifest is a pipe that nobody writes to yet."""
    promote(root, "1")
    with begun(root, market.fresh) as one:
        champion = one.champion
        promote(root, "2")
        home = bundles_folder(root, "synthetic-l2")
        pipe = home / "2-test" / "manifest.json"
        pipe.unlink()
        os.mkfifo(pipe)
        for _ in range(3):
            assert not champion.refresh()
        assert champion.pointer.version == "1"
        pipe.write_bytes(b"{}")
        wait_for(champion)()
        assert not champion.refresh()
        assert (champion.refused, champion.pointer.version) == (1, "1")


def test_a_champion_for_other_features_is_refused_and_the_old_one_stays(
    root: Path, market: Market, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(root, "1")
    with begun(root, market.fresh) as one:
        at: dict[int, Callable[[], object]] = {
            START + 20 * S: lambda: promote(root, "2", feature_hash="0" * 16),
            START + 20 * S + S // 2: wait_for(one.champion),
        }
        summary = one.trade(Steps(market.fresh, at))
    assert (summary["swaps"], summary["bundles_refused"]) == (0, 1)
    assert {row["model_version"] for row in decisions(root)} == {"1"}
    assert "was trained on feature definitions 0000000000000000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_hash": "0" * 16}, "feature definitions"),
        ({"book_topic": "orderbook.50"}, "orderbook.50"),
        ({"source": "recorded"}, "trained on recorded data"),
        ({"symbols": ("BTCUSDT",)}, "not trained on ETHUSDT"),
    ],
)
def test_a_champion_for_another_market_does_not_start(
    changes: dict[str, object], message: str, tmp_path: Path, market: Market
) -> None:
    promote(tmp_path, **changes)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=message) as caught:
        run(live_settings(tmp_path), frames=[market.fresh], speed=0)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bundles"], "nothing was begun"


def test_without_a_champion_nothing_is_written_and_the_error_says_how_to_promote(
    tmp_path: Path, market: Market
) -> None:
    root = tmp_path / "none"
    with pytest.raises(NoChampionError, match=r"no champion.*l2 pipeline.*l2 promote"):
        run(live_settings(root), frames=[market.fresh], speed=0)
    assert not root.exists()


def test_the_frozen_model_is_traded_without_champion_or_registry_and_repeated(
    root: Path, market: Market
) -> None:
    """``desk.profile=legacy``: market orders of 5 % of the capital, and one line where there is no bundle."""
    plain = live_settings(root, algorithm="market")
    settings = msgspec.structs.replace(plain, desk=Desk(**PROFILES["legacy"]["desk"]))
    with pytest.raises(BundleError, match=r"no legacy model; `l2 pipeline` freezes one"):
        run(settings, frames=[market.fresh], speed=0)
    promote(root)
    home = bundles_folder(root, "synthetic-l2")
    (home / POINTER_FILE).unlink()
    (home.parent / "legacy").mkdir()
    (home / "1-test").rename(legacy_folder(settings))
    summary = run(settings, frames=[market.fresh], speed=0)
    assert summary["model"] == "synthetic-l2 legacy"
    assert summary["fills"] > 0
    sizes = [parent_of(r).size_usdt for r in records(root, "parent")]
    assert max(sizes) <= 2.01 * 0.05 * settings.execution.capital_usdt  # turned round
    assert not replay_last(root / "live" / "paper" / "log", as_json=True)["difference"]
    assert load_model(settings, "", SYMBOLS).name == summary["model"]


def test_a_worker_goes_on_from_a_migrated_journal_and_not_before(
    root: Path, market: Market
) -> None:
    """500 lots are held by a journal of an earlier version, entered at 60,000."""
    promote(root)
    journal(root / "live" / "paper" / "journal.sqlite3")
    settings = live_settings(root)
    with pytest.raises(JournalError, match="of an earlier version; run `l2 migrate`") as caught:
        run(settings, frames=[market.fresh], speed=0)
    assert "\n" not in str(caught.value)
    assert not (root / "live" / "paper" / "log").exists(), "nothing was begun"
    migrate_journals(settings)
    summary = run(settings, frames=[market.fresh], speed=0)
    assert summary["run"].endswith("-2")
    assert summary["positions"] == dict.fromkeys(SYMBOLS, 0), "the 500 lots are closed at the end"
    bought = {1: 600, -1: 100}
    for record in records(root, "event"):
        event = event_of(record)
        if isinstance(event, Filled) and event.symbol == "BTCUSDT" and event.time_ns > START:
            bought[event.side] += event.qty_lots
    assert bought[1] == bought[-1]


# -- when things break --------------------------------------------------------------------------


def test_a_sequence_gap_stops_trading_until_the_features_are_warm_again(
    root: Path, market: Market, tmp_path: Path
) -> None:
    promote(root)
    broken = tmp_path / "broken.frames.zst"
    cut = START + 50 * S
    with CaptureWriter(broken) as writer:
        for receive_ns, frame in read_lines(market.fresh):
            lost = cut <= receive_ns < cut + S and b"orderbook.200.BTCUSDT" in frame
            if not lost:
                writer.append(receive_ns, frame)
    summary = run(live_settings(root), frames=[str(broken)], speed=0)
    assert summary["gaps"] == 1
    made = decisions(root)
    held = [r for r in made if r["symbol"] == "BTCUSDT" and r["t_ns"] <= cut][-1]["target"]
    for row in (row for row in made if row["t_ns"] > cut + S):
        if row["symbol"] == "BTCUSDT":  # held, for its horizon at most, and nothing entered
            assert (row["mid"], row["expected_bps"], row["target"]) == (None, None, held)
            assert not row["warm"]
        else:
            assert row["warm"]
    opened = [record for record in records(root, "parent") if record.symbol == "BTCUSDT"]
    assert max(record.time_ns for record in opened) <= cut + S


class KilledError(Exception):
    """The process ends here, as far as the test can make it."""


def test_orders_of_a_killed_worker_are_reconciled_and_its_position_closed(
    root: Path, market: Market
) -> None:
    promote(root)
    left: dict[str, int] = {}
    working: list[str] = []

    # Without fees urgency has everything cross at once.
    resting = msgspec.structs.replace(
        live_settings(root, algorithm="passive"), desk=Desk(urgency=False)
    )
    with begun(root, market.fresh, resting) as one, ExitStack() as stack:
        feed = Steps(market.fresh, {})
        shell = one.begin(feed, feed.first_ns, stack)
        for item in feed:
            shell.take(item)
            core = shell.core
            working = [o.client_id for o in core.orders.open() if o.state is OrderState.NEW]
            if (
                working
                and core.account.position_lots("BTCUSDT")
                and item.receive_ns > START + 20 * S
            ):
                left = {s: core.account.position_lots(s) for s in SYMBOLS}
                break
        else:
            pytest.fail("the market gave no moment with a position and an open order")
    before = len(logged(root))

    summary = run(live_settings(root), frames=[market.fresh], speed=0)
    ended = orders_of(root)
    assert [ended[client_id].state for client_id in working] == [OrderState.CANCELLED] * len(
        working
    )
    assert summary["positions"] == dict.fromkeys(SYMBOLS, 0)
    first = next(
        fill
        for _, record in logged(root)[before:]
        if isinstance(record, Append) and record.kind == "event" and record.symbol == "BTCUSDT"
        if isinstance(fill := event_of(record), Filled)
    )
    assert first.side * left["BTCUSDT"] < 0, "what was left is closed first"


# -- the lake -----------------------------------------------------------------------------------


def test_collecting_a_run_into_the_lake_is_idempotent(root: Path, market: Market) -> None:
    promote(root)
    with begun(root, market.fresh) as one:
        summary = one.trade(Steps(market.fresh, {}))
    lake = Lake(root)
    state = root / "live" / "paper"
    done = collect(lake, state, "paper")
    assert done["decisions"] == summary["decisions"]
    assert (done["parents"], done["orders"], done["fills"], done["tca"]) == (
        summary["parents"],
        summary["orders"],
        summary["fills"],
        summary["parents"],
    )
    tables = ("decisions", "orders", "fills", "parents", "tca")

    def content() -> dict[str, bytes]:
        return {
            lake.path(table, *key): Path(lake.path(table, *key)).read_bytes()
            for table in tables
            for key in lake.partitions(table)
        }

    before = content()
    assert set(collect(lake, state, "paper").values()) == {0}
    assert content() == before
    with lake.connect(tables) as connection:
        [[filled]] = connection.sql("select sum(side * qty_lots) from fills").fetchall()
        [[worst]] = connection.sql(
            "select max(abs(delay_bps + spread_bps + timing_bps + opportunity_bps + fees_bps"
            " - total_bps)) from tca"
        ).fetchall()
        [[stray]] = connection.sql(
            "select count(*) from fills where (venue, parent_id) not in"
            " (select (venue, parent_id) from parents)"
        ).fetchall()
    assert (filled, stray) == (0, 0)
    assert worst <= 1e-9


# -- the wire -----------------------------------------------------------------------------------


def test_a_worker_on_the_wire_records_decodes_and_decides(data_dir: Path, tmp_path: Path) -> None:
    """A loopback exchange sends a recording's frames with their times moved to the present."""
    promote(tmp_path, name="btc-l2", source="recorded")
    settings = msgspec.structs.replace(live_settings(tmp_path), source="recorded")
    frames = [frame for _, frame in read_lines(data_dir / "bybit-linear-20260809.frames.zst")]

    async def handler(socket: ServerConnection) -> None:
        await acknowledge(socket)
        for frame in frames:
            now = str(time.time_ns() // 1_000_000)
            await socket.send(
                re.sub(r'(?<="ts":)\d+|(?<="cts":)\d+|(?<="T":)\d+', now, frame.decode())
            )
            await asyncio.sleep(0.002)
        await socket.wait_closed()

    with exchange(handler) as url:
        summary = run(settings, url=url, duration_s=4)
    assert summary["frames"] > 500
    assert summary["events"] > 0
    assert (summary["rejected"], summary["gaps"]) == (0, 0)
    assert summary["decisions"] >= 4
    assert summary["parents"] == 0, "not warm"
    received = [
        msgspec.json.decode(frame) for path in summary["captures"] for _, frame in read_lines(path)
    ]
    assert [line["l2"] for line in received[:4] if "l2" in line][:4] == [
        *("instrument", "instrument", "connect", "subscribe")
    ]
    assert len(received) == summary["frames"] + 2


def test_a_worker_that_cannot_reach_the_venue_says_so_in_one_line(tmp_path: Path) -> None:
    promote(tmp_path)
    with pytest.raises(FeedError, match="cannot connect") as caught:
        run(live_settings(tmp_path), url="ws://127.0.0.1:9", duration_s=2)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "live").rglob("*.frames.zst"))


# -- the process --------------------------------------------------------------------------------

PROCESS = """
import json, sys
from pathlib import Path
from live.worker import run
from tests.live.exchange import acknowledge, exchange
from tests.live.live_market import live_settings
summary = run(live_settings(Path(sys.argv[1])), frames=[sys.argv[2]], speed=1.0)
print(json.dumps({"summary": summary, "modules": sorted(sys.modules)}))
"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_worker_cleanly_and_it_loads_no_heavy_module(
    root: Path, market: Market, end: signal.Signals
) -> None:
    promote(root)
    repository = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(root), market.fresh],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if msgspec.json.decode(line)["event"] == "warm":
                break
        time.sleep(0.5)
        if end is signal.SIGHUP:  # with the terminal, what reads its lines is gone
            process.stderr.close()
            process.stderr = None
        process.send_signal(end)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    result = msgspec.json.decode(out)
    assert 0 < result["summary"]["decisions"] < 2 * FRESH_S
    assert result["summary"]["positions"] == dict.fromkeys(SYMBOLS, 0)
    loaded = {name.partition(".")[0] for name in result["modules"]}
    heavy = {"dagster", "dbt", "mlflow", "great_expectations", "optuna", "matplotlib", "ccxt"}
    assert loaded & heavy == set()
    assert all(order.state.is_final for order in orders_of(root).values())
