"""The study over hand-made and recorded markets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from execution.account import Account
from execution.orders import Filled, Liquidity
from execution.study import StudyReport, study
from execution.tca import TABLES, MidRecorder
from market.events import Events
from market.instruments import BUILT_IN, Instrument
from market.settings import Execution, Model, Settings
from market.units import SECOND_NS as S
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from proving.synthetic import generate, profile
from tests.execution.tape import INSTRUMENT, SYMBOL, frame, residual_bps, snapshot, trade

START = 1_000 * S


def quiet_market(seconds: int) -> Events:
    """A book of one tick spread that never moves; each second a buyer and a seller take more than
    half of the touch, which is filled up again."""
    rows = [snapshot(START, [(10_000, 1_000), (9_999, 9)], [(10_001, 1_000), (10_002, 9)])]
    for n in range(1, 10 * seconds):
        now = START + n * S // 10
        if n % 10 == 3:
            rows += [trade(now, 1, 10_001, 600), trade(now, -1, 10_000, 600)]
        rows.append(frame(now + 1, [(10_000, 1_000)], [(10_001, 1_000)]))
    return np.concatenate(rows)


def report(feed: Any, **more: Any) -> StudyReport:
    given = {"every_s": 21.0, "sizes_usdt": (60_000.0,), "deadline_s": 10.0}
    return study({SYMBOL: feed}, {SYMBOL: INSTRUMENT}, Settings(), **(given | more))


def test_costs_in_a_market_that_never_moves() -> None:
    """Crossing costs half a tick and the taker fee; joining earns half a tick for the maker fee."""
    found = report(quiet_market(120))
    both = {(s.algorithm, s.venue): s for s in found.summaries if s.side == 0}
    half_tick = 0.5 / 10_000.5 * 1e4
    for queue in ("risk_averse", "power3"):
        taker, maker = both["market", queue], both["passive", queue]
        assert taker.total_bps == pytest.approx(half_tick + 5.5, abs=1e-3)
        assert taker.maker_share == 0.0
        assert maker.total_bps == pytest.approx(-half_tick + 2.0, abs=1e-3)
        assert (maker.maker_share, maker.fill_rate) == (1.0, 1.0)
        assert found.differences[SYMBOL, 60_000.0, "passive", queue].mean == pytest.approx(
            -3.5 - 2 * half_tick, abs=2e-3
        )
    assert both["passive", "risk_averse"].time_to_fill_s == pytest.approx(1.3)


def test_chunks_change_nothing() -> None:
    events = quiet_market(60)
    ends = np.flatnonzero(events["flags"] & 1) + 1
    chunks = np.split(events, ends[7::13])
    whole, cut = report(events), report(iter(chunks))
    assert whole.tables() == cut.tables()
    assert whole.differences == cut.differences


def test_parents_cut_by_the_end_are_left_out_everywhere() -> None:
    found = report(quiet_market(60))
    assert {row.decision_ns for row in found.rows} == {START + S, START + 22 * S}
    assert found.cut == 2 * 4
    assert len(found.rows) == 2 * 2 * 4


def test_parents_that_would_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decide less often than every 20 s"):
        report(quiet_market(1), every_s=20.0)


def test_instants_without_a_market_are_counted() -> None:
    found = report(quiet_market(60)[1:2])
    assert (found.rows, found.skipped) == ([], 0)
    late = np.concatenate([quiet_market(2), frame(START + 40 * S, [(9_998, 1)])])
    assert report(late).skipped == 4


# -- recorded markets ------------------------------------------------------------------------------

#: The re-framed recordings trade ETH in thousandths.
RECORDED: dict[str, Instrument] = BUILT_IN | {
    "ETHUSDT": msgspec.structs.replace(BUILT_IN["ETHUSDT"], lot="0.001")
}


@pytest.fixture(scope="module")
def recording(data_dir: Path) -> dict[str, Events]:
    decoder = Decoder(RECORDED)
    parts: dict[str, list[Events]] = {}
    for block in read_blocks(data_dir / "usdm-20240808.frames.zst"):
        for symbol, events in decoder.decode_block(block).events.items():
            parts.setdefault(symbol, []).append(events)
    return {symbol: np.concatenate(found) for symbol, found in parts.items()}


@pytest.fixture(scope="module")
def recorded(recording: dict[str, Events]) -> StudyReport:
    return study(recording, RECORDED, Settings(), every_s=19.0, deadline_s=8.0)


def test_recorded_costs_are_consistent(recorded: StudyReport) -> None:
    print("\n" + recorded.text())
    assert {s.symbol for s in recorded.summaries} == {"BTCUSDT", "ETHUSDT"}
    for row in recorded.rows:
        assert abs(residual_bps(row)) <= 1e-9
        assert row.filled_lots == row.qty_lots
        if row.algorithm == "market":
            # At least the taker fee and half a tick; the market moved little in 10 ms.
            assert row.fees_bps == pytest.approx(5.5, abs=0.05)
            assert row.spread_bps > 0
    for key, paired in recorded.differences.items():
        assert paired.n > 10, key
        assert math.isfinite(paired.low)


def test_recorded_tables_agree_with_each_other(recorded: StudyReport) -> None:
    tables = recorded.tables()
    assert set(tables) == set(TABLES)
    parents = {row.parent_id: row for row in recorded.parents}
    assert len(parents) == len(recorded.rows)
    orders = {row.client_id: row for row in recorded.orders}
    filled: dict[str, int] = {}
    for fill in recorded.fills:
        assert orders[fill.client_id].parent_id == fill.parent_id
        filled[fill.client_id] = filled.get(fill.client_id, 0) + fill.qty_lots
    assert filled == {k: o.filled_lots for k, o in orders.items() if o.filled_lots}


def test_recorded_parents_have_the_same_decision_in_every_trial(recorded: StudyReport) -> None:
    mids: dict[tuple[str, int], set[float]] = {}
    for row in recorded.rows:
        mids.setdefault((row.symbol, row.decision_ns), set()).add(row.decision_mid_ticks)
    assert all(len(found) == 1 for found in mids.values())


def test_recorded_fills_pass_through_the_account(recorded: StudyReport) -> None:
    """Every trial ends flat: each instant buys and sells the same quantity."""
    accounts: dict[str, Account] = {}
    for row in recorded.fills:
        account = accounts.setdefault(row.parent_id.split("/", 4)[4], Account(RECORDED))
        account.apply(
            Filled(
                client_id=row.client_id,
                time_ns=row.time_ns,
                venue_ns=row.venue_ns,
                exec_id=row.exec_id,
                symbol=row.symbol,
                side=row.side,
                qty_lots=row.qty_lots,
                price_ticks=row.price_ticks,
                liquidity=Liquidity(row.liquidity),
                fee_e8=row.fee_e8,
                leaves_lots=0,
            )
        )
    for account in accounts.values():
        for holding in account.holdings.values():
            assert (holding.position_lots, holding.cost_e8) == (0, 0)
            assert holding.fees_e8 > 0


def test_recorded_maker_fills_are_within_trades_and_offers(
    recording: dict[str, Events], recorded: StudyReport
) -> None:
    """Of each order's maker fills: prints at or through the price since it was sent, and what the
    other side showed there."""
    orders = {row.client_id: row for row in recorded.orders}
    makers = [f for f in recorded.fills if f.liquidity == "maker" and f.symbol == "BTCUSDT"]
    assert makers
    events = recording["BTCUSDT"]
    shift = recorded.clock_shift_ns["BTCUSDT"]
    exchange_ns = events["exchange_ns"] + shift
    for fill in makers[:50]:
        span = (exchange_ns >= orders[fill.client_id].sent_ns) & (exchange_ns <= fill.venue_ns)
        seen = events[span & (events["side"] == -fill.side)]
        through = fill.side * (fill.price_ticks - seen["price_ticks"]) >= 0
        assert fill.qty_lots <= seen["qty_lots"][through].sum()


def test_recorded_mids_are_those_of_a_valid_book(recording: dict[str, Events]) -> None:
    recorder = MidRecorder()
    for chunk in np.array_split(recording["BTCUSDT"], 7):
        recorder.push(chunk)
    whole = MidRecorder()
    whole.push(recording["BTCUSDT"])
    start = int(recording["BTCUSDT"]["receive_ns"][0])
    for n in range(0, 300 * S, 7 * S):
        assert recorder.mids.at(start + n) == whole.mids.at(start + n)


def test_settings_reach_the_simulators() -> None:
    free = Settings(
        model=Model(fee_row="zero"),
        execution=Execution(entry_latency_ms=2_000.0, response_latency_ms=1_000.0),
    )
    found = study(
        {SYMBOL: quiet_market(60)},
        {SYMBOL: INSTRUMENT},
        free,
        algorithms=("market",),
        every_s=21.0,
        deadline_s=10.0,
        queues=("risk_averse",),
    )
    assert all(row.fees_bps == 0 for row in found.rows)
    assert all(row.time_to_fill_s == pytest.approx(2.0) for row in found.rows)
    assert all(row.end_ns - row.decision_ns == 3 * S for row in found.rows)


def test_late_events_of_an_ended_parent_are_its_own() -> None:
    """In this stretch an amendment is refused after the fill that ended its parent."""
    chunks = list(generate(profile("demo"), 7, "BTCUSDT", "2026-03-09", 0, 900))
    settings = Settings()
    report = study({"BTCUSDT": chunks}, BUILT_IN, settings, every_s=45, queues=("risk_averse",))
    assert all(abs(residual_bps(row)) < 1e-9 for row in report.rows)
    assert {row.algorithm for row in report.rows} == {"market", "passive"}
