"""The journal names every order that may have left, and adds up to the same state when reopened."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.orders import (
    Accepted,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Liquidity,
    Lost,
    OrderState,
    Rejected,
    Submit,
)
from live.journal import MIGRATIONS, Journal, JournalError, open_read_only, read_entries
from tests.conftest import Limit

T = 1_700_000_000_000_000_000


def submit(client_id: str = "p-1", side: int = 1, qty_lots: int = 10) -> Submit:
    return Submit(
        client_id=client_id, symbol="BTCUSDT", side=side, qty_lots=qty_lots, price_ticks=600_000
    )


def filled(client_id: str, exec_id: str, qty_lots: int, leaves_lots: int, side: int = 1) -> Filled:
    return Filled(
        client_id=client_id,
        time_ns=T + 2,
        venue_ns=T + 1,
        exec_id=exec_id,
        symbol="BTCUSDT",
        side=side,
        qty_lots=qty_lots,
        price_ticks=600_000,
        liquidity=Liquidity.MAKER,
        fee_e8=12_000,
        leaves_lots=leaves_lots,
    )


def outcome(kind: type, client_id: str = "p-1", **fields: object) -> Event:
    return kind(client_id=client_id, time_ns=T + 2, venue_ns=T + 1, **fields)  # type: ignore[no-any-return]


def test_an_order_follows_its_state_diagram(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite3") as journal:

        def state() -> OrderState:
            return journal.orders["p-1"].state

        journal.record_intents(T, "BTCUSDT", "p", [submit()])
        assert state() is OrderState.PENDING_NEW
        journal.record_events([outcome(Accepted)])
        assert state() is OrderState.NEW
        journal.record_events([filled("p-1", "e1", 4, 6)])
        assert state() is OrderState.PARTIALLY_FILLED
        journal.record_intents(T, "BTCUSDT", "p", [Amend(client_id="p-1", price_ticks=600_001)])
        journal.record_events([outcome(Amended, price_ticks=600_001, qty_lots=10)])
        assert journal.orders["p-1"].price_ticks == 600_001
        journal.record_intents(T, "BTCUSDT", "p", [Cancel(client_id="p-1")])
        assert state() is OrderState.PENDING_CANCEL
        journal.record_events([outcome(CancelRejected, reason="too late")])
        assert state() is OrderState.PARTIALLY_FILLED
        journal.record_events([outcome(Lost, reason="no answer")])
        assert state() is OrderState.UNKNOWN
        journal.record_intents(T, "BTCUSDT", "p", [Cancel(client_id="p-1")])
        assert state() is OrderState.UNKNOWN, "asking is no evidence"
        assert [order.submit.client_id for order in journal.open_orders()] == ["p-1"]
        journal.record_events([outcome(Cancelled, reason="by us", leaves_lots=6)])
        assert state() is OrderState.CANCELLED
        assert journal.open_orders() == []


def test_a_full_disk_is_named_and_leaves_what_was_written(
    tmp_path: Path, file_limit: Limit
) -> None:
    path = tmp_path / "journal.sqlite3"
    with Journal(path) as journal:
        journal.record_intents(T, "BTCUSDT", "p", [submit()])
        with file_limit(4096):
            with pytest.raises(JournalError, match=r"cannot be written .* is never sent"):
                journal.record_intents(T, "BTCUSDT", "p", [submit("p-2")])
            with pytest.raises(
                JournalError, match=r"other\.sqlite3: cannot be written .* needs space"
            ):
                Journal(tmp_path / "other.sqlite3").record_intents(T, "", "p", [submit("o-1")])
        assert list(journal.orders) == ["p-1"]
        journal.record_intents(T, "BTCUSDT", "p", [submit("p-2")])
    with Journal(path) as again:
        assert [order.submit.client_id for order in again.open_orders()] == ["p-1", "p-2"]


def test_a_late_execution_of_a_cancelled_order_still_moves_the_position(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite3") as journal:
        journal.record_intents(T, "BTCUSDT", "p", [submit()])
        journal.record_events([outcome(Cancelled, reason="by us", leaves_lots=10)])
        journal.record_events([filled("p-1", "e1", 4, 6)])
        assert journal.orders["p-1"].state is OrderState.CANCELLED
        assert journal.orders["p-1"].filled_lots == 4
        assert journal.positions == {"BTCUSDT": 4}


def test_an_execution_reported_twice_counts_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite3") as journal:
        journal.record_intents(T, "BTCUSDT", "p", [submit()])
        event = filled("p-1", "e1", 4, 6)
        assert journal.record_events([event, event]) == [event]
        assert journal.record_events([event]) == []
        assert journal.positions == {"BTCUSDT": 4}


def test_a_client_order_id_is_never_used_twice(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite3") as journal:
        journal.record_intents(T, "BTCUSDT", "p", [submit()])
    with (
        Journal(tmp_path / "journal.sqlite3") as journal,
        pytest.raises(JournalError, match="p-1 was used"),
    ):
        journal.record_intents(T, "BTCUSDT", "p", [submit()])


IDS = ("p-1", "p-2", "q-1")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("cancel"), st.sampled_from(IDS)),
        st.tuples(st.just("accept"), st.sampled_from(IDS)),
        st.tuples(st.just("reject"), st.sampled_from(IDS)),
        st.tuples(st.just("lose"), st.sampled_from(IDS)),
        st.tuples(st.just("cancelled"), st.sampled_from(IDS)),
        st.tuples(
            st.just("fill"),
            st.sampled_from(IDS),
            st.integers(1, 5),
            st.integers(0, 5),
            st.integers(0, 9),
        ),
    ),
    max_size=30,
)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(steps=STEPS)
def test_a_reopened_journal_replays_to_the_same_state(
    steps: list[tuple[object, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Invariants: replay of the file gives the state that was held in memory; the position is the
    sum of executions, each once; a final order never opens again."""
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite3"
    executions: dict[tuple[str, str], int] = {}
    with Journal(path) as journal:
        for number, client_id in enumerate(IDS):
            journal.record_intents(
                T, "BTCUSDT", client_id[0], [submit(client_id, side=(1, -1, 1)[number])]
            )
        for step in steps:
            kind, client_id = str(step[0]), str(step[1])
            side = journal.orders[client_id].submit.side
            final = {c for c, order in journal.orders.items() if order.state.is_final}
            match kind:
                case "cancel":
                    journal.record_intents(
                        T, "BTCUSDT", client_id[0], [Cancel(client_id=client_id)]
                    )
                case "accept":
                    journal.record_events([outcome(Accepted, client_id)])
                case "reject":
                    journal.record_events([outcome(Rejected, client_id, reason="r")])
                case "lose":
                    journal.record_events([outcome(Lost, client_id, reason="l")])
                case "cancelled":
                    journal.record_events([outcome(Cancelled, client_id, reason="c")])
                case _:
                    qty, leaves, number = int(step[2]), int(step[3]), step[4]  # type: ignore[call-overload]
                    executions.setdefault((client_id, f"e{number}"), side * qty)
                    journal.record_events([filled(client_id, f"e{number}", qty, leaves, side)])
            assert final <= {c for c, order in journal.orders.items() if order.state.is_final}
        orders, positions = dict(journal.orders), dict(journal.positions)
    assert positions.get("BTCUSDT", 0) == sum(executions.values())
    with Journal(path) as journal:
        assert journal.orders == orders
        assert journal.positions == positions


CRASH = """
import os, signal, sys
from execution.orders import Submit
from live.journal import Journal
journal = Journal(sys.argv[1])
journal.record_intents(5, "BTCUSDT", "p", [Submit(client_id="p-1", symbol="BTCUSDT", side=1, qty_lots=1)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_intent_outlives_a_process_killed_right_after_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    killed = subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with Journal(path) as journal:
        assert [order.submit.client_id for order in journal.open_orders()] == ["p-1"]
        assert journal.orders["p-1"].state is OrderState.PENDING_NEW


def test_intents_are_fsynced_and_events_become_durable_with_the_next_intent(
    tmp_path: Path,
) -> None:
    with Journal(tmp_path / "journal.sqlite3") as journal:

        def level() -> int:
            return int(journal._db.execute("pragma synchronous").fetchone()[0])

        journal.record_intents(T, "BTCUSDT", "p", [submit()])
        assert level() == 2
        journal.record_events([outcome(Accepted)])
        assert level() == 1
        journal.record_intents(T, "BTCUSDT", "p", [Cancel(client_id="p-1")])
        assert level() == 2


def test_entries_can_neither_be_changed_nor_deleted(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite3") as journal:
        journal.record_intents(T, "BTCUSDT", "p", [submit()])
        for statement in ("delete from entries", "update entries set time_ns = 0"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                journal._db.execute(statement)


def test_a_journal_of_the_first_schema_is_migrated_and_keeps_its_entries(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    with sqlite3.connect(path) as old:
        old.executescript(
            "create table schema_version (version integer primary key);"
            f"{MIGRATIONS[0]} insert into schema_version values (1);"
        )
        body = b'{"type":"Submit","client_id":"p-1","symbol":"BTCUSDT","side":1,"qty_lots":10}'
        old.execute(
            "insert into entries values (1, ?, 'intent', 'BTCUSDT', 'p', 'p-1', ?)", (T, body)
        )
    old.close()
    with pytest.raises(JournalError, match="schema 1, this code reads 2"):
        open_read_only(path)
    with Journal(path) as journal:
        assert journal.orders["p-1"].qty_lots == 10
    reader = open_read_only(path)
    assert [entry.client_id for entry in read_entries(reader)] == ["p-1"]
    reader.close()


def test_a_journal_of_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    Journal(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute("insert into schema_version values (99)")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="schema 99 is newer than 2"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    path.write_bytes(b"something else entirely, and long enough to be read as a header" * 20)
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path)


def test_a_second_worker_on_the_same_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    with Journal(path), pytest.raises(JournalError, match="another worker"):
        Journal(path)
    Journal(path).close()
