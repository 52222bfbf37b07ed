"""What the log has on record reaches the lake once, and nothing that stands is written again."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from execution.orders import (
    Accepted,
    Action,
    Amend,
    Cancelled,
    Event,
    Filled,
    Liquidity,
    Submit,
)
from execution.tca import ParentRow
from live.collect import collect
from live.journal import JournalError, journal_rows
from live.log import Checkpoint, Header, LogWriter
from live.messages import Append, PublicFrame
from market.lake import Lake
from market.units import DAY_NS, utc_date

T = 1_700_000_000_000_000_000
DAY = utc_date(T)
TABLES = ("parents", "orders", "fills", "tca", "markouts")
HEADER = Header(
    venue="paper", account="", source="recorded", instruments={}, settings=b"", code="", run="r"
)


def record(kind: str, body: object, time_ns: int = T, client_id: str = "", **ids: str) -> Append:
    encoded = msgspec.json.encode(body)
    return Append(kind=kind, time_ns=time_ns, body=encoded, client_id=client_id, **ids)


def parent(parent_id: str, symbol: str = "BTCUSDT", time_ns: int = T) -> Append:
    row = ParentRow(
        parent_id=parent_id, symbol=symbol, side=1, algorithm="passive", venue="paper", qty_lots=9,
        size_usdt=1.0, decision_ns=time_ns, deadline_ns=time_ns, decision_mid_ticks=1.5,
    )  # fmt: skip
    return record("parent", row, time_ns, symbol=symbol, parent_id=parent_id)


def intent(action: Action, time_ns: int = T) -> Append:
    parent_id = action.client_id.rpartition("-")[0]
    return record("intent", action, time_ns, action.client_id, parent_id=parent_id)


def submit(client_id: str, symbol: str = "BTCUSDT") -> Submit:
    return Submit(client_id=client_id, symbol=symbol, side=1, qty_lots=9, price_ticks=600_000)


def event(body: Event) -> Append:
    return record("event", body, body.time_ns, body.client_id)


def fill(
    client_id: str, exec_id: str, lots: int, time_ns: int = T, symbol: str = "BTCUSDT"
) -> Append:
    return event(
        Filled(
            client_id=client_id, time_ns=time_ns, venue_ns=time_ns, exec_id=exec_id, symbol=symbol,
            side=1, qty_lots=lots, price_ticks=600_000, liquidity=Liquidity.MAKER, fee_e8=7,
            leaves_lots=0,
        )
    )  # fmt: skip


class State:
    """A worker's folder, its log still open."""

    def __init__(self, root: Path) -> None:
        self.lake = Lake(root)
        self.folder = root / "live" / "paper"
        self.out = LogWriter(self.folder / "log", HEADER, T)

    def append(self, *records: Append) -> None:
        self.out.append_input(T, PublicFrame(frame=b"{}"))
        self.out.append_effects(T, records)
        self.out.flush()

    def collect(self) -> dict[str, int]:
        return collect(self.lake, self.folder, "paper")

    def rows(self, table: str, symbol: str = "BTCUSDT", day: str = DAY) -> list[dict[str, object]]:
        return self.lake.read(table, symbol, day).to_pylist()  # type: ignore[no-any-return]

    def files(self) -> dict[str, tuple[int, int]]:
        """Every partition's file, with its identity on disk."""
        return {
            f"{table} {symbol} {day}": (stat.st_ino, stat.st_mtime_ns)
            for table in TABLES
            for symbol, day in self.lake.partitions(table)
            for stat in [Path(self.lake.path(table, symbol, day)).stat()]
        }


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def test_a_second_collection_writes_nothing_again(state: State) -> None:
    state.append(parent("p1"), intent(submit("p1-1")), fill("p1-1", "e1", 9))
    assert state.collect() == {
        "parents": 1, "orders": 1, "fills": 1, "tca": 0, "markouts": 0, "decisions": 0,
        "realised": 0, "shadow": 0, "statements": 0, "carry": 0,
    }  # fmt: skip
    before = state.files()
    assert set(before) == {f"{table} BTCUSDT {DAY}" for table in ("parents", "orders", "fills")}
    assert sum(state.collect().values()) == 0
    state.append()
    assert sum(state.collect().values()) == 0
    assert state.files() == before


def test_only_partitions_with_new_rows_are_written(state: State) -> None:
    state.append(parent("p1"), intent(submit("p1-1")), parent("p2", "ETHUSDT"))
    state.collect()
    before = state.files()
    state.append(fill("p1-1", "e1", 9), parent("p3", time_ns=T + DAY_NS))
    state.collect()
    after = state.files()
    new = f"parents BTCUSDT {utc_date(T + DAY_NS)}"
    assert {name for name in after if after[name] != before.get(name)} == {
        f"orders BTCUSDT {DAY}", f"fills BTCUSDT {DAY}", new,
    }  # fmt: skip


def test_an_order_goes_on_from_where_it_was_collected(state: State) -> None:
    state.append(intent(submit("p1-1")))
    state.append(fill("p1-1", "e1", 2))
    state.collect()
    assert [row["state"] for row in state.rows("orders")] == ["PARTIALLY_FILLED"]
    state.out.turn(T, Checkpoint())
    state.append(
        intent(Amend(client_id="p1-1", qty_lots=5)),
        fill("p1-1", "e1", 2, T + 1),
        fill("p1-1", "e2", 1, T + 2),
        event(Cancelled(client_id="p1-1", time_ns=T + 3, venue_ns=T + 3, reason="by us")),
    )
    state.collect()
    (order,) = state.rows("orders")
    assert {name: order[name] for name in ("state", "filled_lots", "amends", "sent_ns")} == {
        "state": "CANCELLED", "filled_lots": 3, "amends": 1, "sent_ns": T,
    }  # fmt: skip
    assert [row["exec_id"] for row in state.rows("fills")] == ["e1", "e2"], "each once"
    assert {row["parent_id"] for row in state.rows("fills")} == {"p1"}


def test_a_collection_killed_midway_loses_and_doubles_nothing(state: State) -> None:
    """Killed after some partitions: those are new, the others old, and how far it read is not noted."""
    state.append(parent("p1"), intent(submit("p1-1")), fill("p1-1", "e1", 2))
    state.collect()
    files = [Path(state.lake.path("orders", "BTCUSDT", DAY)), state.folder / "collected"]
    before = [path.read_bytes() for path in files]
    state.append(parent("p2"), intent(submit("p2-1")), fill("p1-1", "e2", 7), fill("p2-1", "e3", 9))
    state.collect()
    wanted = {table: state.rows(table) for table in ("parents", "orders", "fills")}
    for path, data in zip(files, before, strict=True):
        path.write_bytes(data)
    state.collect()
    assert {table: state.rows(table) for table in wanted} == wanted
    (state.folder / "collected").unlink()  # everything again, into the same rows
    state.collect()
    assert {table: state.rows(table) for table in wanted} == wanted


def test_what_a_writer_has_not_finished_is_collected_later(state: State) -> None:
    state.append(parent("p1"))
    path = state.folder / "log" / "000001.log"
    whole = path.read_bytes()
    state.append(parent("p2"))
    data = path.read_bytes()
    path.write_bytes(data[: state.out._offset - 9])
    assert state.collect()["parents"] == 1
    path.write_bytes(data)
    assert state.collect()["parents"] == 1
    assert len(whole) == len(data)
    assert [row["parent_id"] for row in state.rows("parents")] == ["p1", "p2"]


def test_an_execution_of_no_order_of_ours_is_a_fill_without_parent(state: State) -> None:
    state.append(fill("", "e1", 4), fill("by-hand", "e2", 5))
    state.collect()
    assert [(row["client_id"], row["parent_id"], row["qty_lots"]) for row in state.rows("fills")] == [
        ("", "", 4), ("by-hand", "", 5),
    ]  # fmt: skip


def test_rows_in_memory_are_those_of_the_log(state: State) -> None:
    accepted = Accepted(client_id="p1-1", time_ns=T, venue_ns=T)
    records = [parent("p1"), intent(submit("p1-1")), event(accepted), fill("p1-1", "e1", 9)]
    state.append(*records)
    state.collect()
    for table, rows in journal_rows(records, "paper").items():
        named = [msgspec.structs.asdict(row) for _, row in rows]
        stored = [row | {"symbol": "BTCUSDT"} for row in state.rows(table)]
        assert pa.Table.from_pylist(stored).num_rows == len(named)
        assert stored[0].items() >= {k: v for k, v in named[0].items() if v == v}.items()


def test_a_journal_of_an_earlier_version_names_the_command(state: State) -> None:
    (state.folder / "journal.sqlite3").touch()
    with pytest.raises(JournalError, match="earlier version; run `l2 migrate`"):
        state.collect()


def test_a_record_that_cannot_be_read_is_named_with_its_place(state: State) -> None:
    state.append(parent("p1"), record("end", {}))
    with pytest.raises(JournalError, match=r"segment 1, block at byte \d+: a record of kind end"):
        state.collect()


def test_an_unreadable_memory_says_what_to_do(state: State) -> None:
    (state.folder / "collected").write_bytes(b"nonsense")
    with pytest.raises(JournalError, match="remove it, and the whole log is collected again"):
        state.collect()


def test_two_venues_collect_into_one_lake_one_after_the_other(
    state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    state.append(parent("p1"))
    holds = (
        "import sys; from pathlib import Path; from market.locks import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'records'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holds, str(state.lake.home / "records.lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        thread = threading.Thread(target=state.collect)
        thread.start()
        while "waiting for process" not in capsys.readouterr().err:
            assert thread.is_alive()
        assert not state.lake.exists("parents", "BTCUSDT", DAY)
        other.communicate("")
    thread.join()
    assert len(state.rows("parents")) == 1
