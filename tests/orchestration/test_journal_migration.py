"""A journal of an earlier version becomes a log: its position, cost, orders and entries go on."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import msgspec
import pytest

from execution.orders import Accepted, Filled, Liquidity, OrderState, Submit
from execution.tca import MARKOUTS_S, ParentRow, Shortfall
from live import log
from live.control import lock
from live.funding import FundingPayment
from live.journal import JournalError, require_migrated
from live.messages import Append
from live.restoration import restore
from market.instruments import BUILT_IN
from market.settings import Settings, load
from orchestration.journal_migration import migrate_journals

T = 1_700_000_000_000_000_000
SCHEMA = """
create table schema_version (version integer primary key);
create table entries (
    seq integer primary key, time_ns integer not null, kind text not null, symbol text not null,
    parent_id text not null, client_id text not null, body blob not null
);
"""


def fill(client_id: str, exec_id: str, side: int, lots: int, price_ticks: int) -> Filled:
    return Filled(
        client_id=client_id, time_ns=T, venue_ns=T, exec_id=exec_id, symbol="BTCUSDT", side=side,
        qty_lots=lots, price_ticks=price_ticks, liquidity=Liquidity.TAKER, fee_e8=100, leaves_lots=0,
    )  # fmt: skip


def submit(client_id: str, side: int, lots: int) -> Submit:
    return Submit(
        client_id=client_id, symbol="BTCUSDT", side=side, qty_lots=lots, price_ticks=600_000
    )


PARENT = ParentRow(
    parent_id="p2", symbol="BTCUSDT", side=1, algorithm="passive", venue="paper", qty_lots=9,
    size_usdt=1.0, decision_ns=T, deadline_ns=T, decision_mid_ticks=1.5,
)  # fmt: skip
FUNDING = FundingPayment(
    symbol="BTCUSDT", time_ns=T, position_lots=500, mark_e8=1, rate_e8=1, paid_e8=270_000_000
)
_ZERO = dict.fromkeys(
    [
        "size_usdt", "fill_ticks", "delay_bps", "spread_bps", "timing_bps", "opportunity_bps",
        "fees_bps", "total_bps", "maker_share", "time_to_fill_s", "decision_mid_ticks",
        *(f"markout_{s}s_bps" for s in MARKOUTS_S),
    ],
    0.0,
)  # fmt: skip
COST = Shortfall(
    parent_id="p1", symbol="BTCUSDT", side=1, algorithm="passive", venue="paper", decision_ns=T,
    arrival_ns=T, end_ns=T, qty_lots=9, filled_lots=9, **_ZERO,  # type: ignore[arg-type]
)  # fmt: skip
#: Bought 600, sold 100: 500 lots are held; one parent ended, one has an order open.
ENTRIES: list[tuple[str, str, str, object]] = [
    ("run", "", "", {"run": "paper-1"}),
    ("parent", "p1", "", msgspec.structs.replace(PARENT, parent_id="p1")),
    ("intent", "p1", "p1-1", submit("p1-1", 1, 600)),
    ("event", "p1", "p1-1", fill("p1-1", "e1", 1, 600, 600_000)),
    ("intent", "p1", "p1-2", submit("p1-2", -1, 100)),
    ("event", "p1", "p1-2", fill("p1-2", "e2", -1, 100, 610_000)),
    ("end", "p1", "", COST),
    ("funding", "", "", FUNDING),
    ("parent", "p2", "", PARENT),
    ("intent", "p2", "p2-1", submit("p2-1", 1, 9)),
    ("event", "p2", "p2-1", Accepted(client_id="p2-1", time_ns=T, venue_ns=T)),
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    journal(tmp_path / "live" / "paper" / "journal.sqlite3")
    return load(environ={}, overrides=[f"root={tmp_path}"])


def journal(path: Path, version: int = 2, symbol: str = "BTCUSDT") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as db:
        db.execute("pragma journal_mode = wal")
        db.executescript(SCHEMA)
        db.execute("insert into schema_version values (?)", (version,))
        for n, (kind, parent_id, client_id, body) in enumerate(ENTRIES, 1):
            row = (n, T + n, kind, symbol, parent_id, client_id, msgspec.json.encode(body))
            db.execute("insert into entries values (?, ?, ?, ?, ?, ?, ?)", row)
    db.close()


def test_position_cost_funding_and_open_orders_go_on(settings: Settings) -> None:
    state = Path(settings.root) / "live" / "paper"
    with pytest.raises(JournalError, match="l2 migrate"):
        require_migrated(state)
    assert migrate_journals(settings) == {str(state / "journal.sqlite3"): len(ENTRIES)}
    require_migrated(state)
    assert (state / "journal.sqlite3.migrated").exists()
    restored = restore(state / "log", {"BTCUSDT": BUILT_IN["BTCUSDT"]}, 10**12)
    assert restored is not None
    account = restored.state.account
    assert account is not None
    holding = account.holdings["BTCUSDT"]
    unit_e8 = 10**8 // 10 // 1000  # of a lot at a tick
    assert holding.position_lots == 500
    assert holding.cost_e8 == 500 * 600_000 * unit_e8, "entered at 60,000"
    assert holding.realised_e8 == 100 * 10_000 * unit_e8
    assert (holding.fees_e8, holding.funding_e8) == (200, 270_000_000)
    assert restored.state.desk.parent_number == 2
    assert list(restored.state.desk.open) == ["p2"]
    states = {order.client_id: order.state for order in restored.state.orders}
    assert states == {
        "p1-1": OrderState.FILLED, "p1-2": OrderState.FILLED, "p2-1": OrderState.NEW,
    }  # fmt: skip


def test_every_entry_is_a_record_and_nothing_is_done_twice(settings: Settings) -> None:
    migrate_journals(settings)
    assert migrate_journals(settings) == {}
    folder = Path(settings.root) / "live" / "paper" / "log"
    records = [
        body for block in log.read(folder) for _, body in block.records if isinstance(body, Append)
    ]
    assert [(r.kind, r.time_ns, r.parent_id, r.client_id, r.body) for r in records] == [
        (kind, T + n, parent_id, client_id, msgspec.json.encode(body))
        for n, (kind, parent_id, client_id, body) in enumerate(ENTRIES, 1)
    ]
    assert len(log.segments(folder)) == 2, "the second starts from what follows"


@pytest.mark.parametrize("left", ["log.tmp", "log"])
def test_an_interrupted_migration_is_done_again(settings: Settings, left: str) -> None:
    state = Path(settings.root) / "live" / "paper"
    copy = (state / "journal.sqlite3").read_bytes()
    migrate_journals(settings)
    (state / "log").rename(state / left)
    (state / "journal.sqlite3").write_bytes(copy)
    migrate_journals(settings)
    restored = restore(state / "log", {"BTCUSDT": BUILT_IN["BTCUSDT"]}, 0)
    assert restored is not None
    assert restored.state.desk.parent_number == 2
    assert not (state / "journal.sqlite3").exists()


def test_what_is_no_journal_of_ours_is_left_alone(tmp_path: Path) -> None:
    settings = load(environ={}, overrides=[f"root={tmp_path}"])
    path = tmp_path / "live" / "paper" / "journal.sqlite3"
    journal(path, version=99)
    with pytest.raises(JournalError, match="schema 99 is newer than 2, the newest known here; use"):
        migrate_journals(settings)
    path.write_bytes(b"something else entirely, and long enough to be read as a header" * 20)
    before = path.read_bytes()
    with pytest.raises(JournalError, match="not a journal"):
        migrate_journals(settings)
    assert path.read_bytes() == before
    path.unlink()
    journal(path, symbol="NOSUCHUSDT")
    with pytest.raises(JournalError, match="NOSUCHUSDT are not known"):
        migrate_journals(settings)
    assert not (path.parent / "log").exists()


def test_a_journal_that_a_worker_is_writing_is_not_migrated(settings: Settings) -> None:
    path = Path(settings.root) / "live" / "paper" / "journal.sqlite3"
    held = lock(path.with_suffix(".lock"), "an earlier worker")
    with pytest.raises(log.LogError, match="works on it"):
        migrate_journals(settings)
    os.close(held)
    assert path.exists()
