"""The journal: what we meant to do and what became of it, in SQLite, written before it happens.

One table of entries that can only grow. What an entry says is in its ``kind``:

    run      a worker began
    parent   a parent order was opened          body: whatever the desk says of it
    intent   an action is about to be sent      body: `execution.orders.Action`
    event    the venue told us an outcome       body: `execution.orders.Event`
    markouts where the mid went after it        body: list of `execution.tca.MarkoutRow`
    end      a parent order is finished         body: its shortfall and times
    funding  funding was settled                body: `live.desk.Funding`

An intent is on the disk (WAL, synchronous=FULL) before `Journal.intend` returns, and only then may
its action leave: after a crash there is no order at the venue that the journal does not name.
Events need less (synchronous=NORMAL: they outlive the process, not a power cut), because the venue
can tell them again; the next intent makes them durable with it.

Opening a journal replays it: `Journal.orders` and `Journal.positions` are what the entries add up
to, then and after every new entry. Position is the signed sum of executions, each counted once.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from execution.orders import (
    Accepted,
    Action,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    Lost,
    OrderState,
    Rejected,
    Submit,
)
from execution.tca import OrderRow
from market.errors import DataError

#: What each schema version adds; version n is the first n scripts applied in order. Scripts that
#: have been released never change.
MIGRATIONS: Final = (
    """
    create table entries (
        seq integer primary key,
        time_ns integer not null,
        kind text not null,
        symbol text not null,
        parent_id text not null,
        client_id text not null,
        body blob not null
    );
    """,
    """
    create trigger entries_stay before delete on entries
        begin select raise(abort, 'journal entries are never deleted'); end;
    create trigger entries_hold before update on entries
        begin select raise(abort, 'journal entries are never changed'); end;
    create index entries_by_kind on entries (kind, time_ns);
    """,
)


class JournalError(DataError):
    """The journal cannot be used; the message names the file and what to do."""


class Entry(NamedTuple):
    seq: int
    time_ns: int
    kind: str
    symbol: str
    parent_id: str
    client_id: str
    body: bytes


#: An entry without its number.
Row = tuple[int, str, str, str, str, bytes]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An order as the journal knows it. Quantities in lots, prices in ticks, times in ns."""

    submit: Submit
    parent_id: str
    state: OrderState
    price_ticks: int
    qty_lots: int
    submitted_ns: int
    changed_ns: int
    filled_lots: int = 0
    reason: str = ""

    @classmethod
    def submitted(cls, submit: Submit, parent_id: str, time_ns: int) -> Order:
        return cls(
            submit=submit,
            parent_id=parent_id,
            state=OrderState.PENDING_NEW,
            price_ticks=submit.price_ticks,
            qty_lots=submit.qty_lots,
            submitted_ns=time_ns,
            changed_ns=time_ns,
        )


def order_row(order: Order, venue: str, amends: int = 0) -> OrderRow:
    """The order as a row of the lake's table."""
    asked = order.submit
    return OrderRow(
        client_id=asked.client_id,
        parent_id=order.parent_id,
        symbol=asked.symbol,
        side=asked.side,
        venue=venue,
        order_type=str(asked.order_type),
        time_in_force=str(asked.time_in_force),
        qty_lots=order.qty_lots,
        price_ticks=order.price_ticks,
        filled_lots=order.filled_lots,
        state=str(order.state),
        reason=order.reason,
        sent_ns=order.submitted_ns,
        changed_ns=order.changed_ns,
        amends=amends,
    )


_ACTION = msgspec.json.Decoder(Action)
_EVENT = msgspec.json.Decoder(Event)


def after_action(order: Order, action: Amend | Cancel, time_ns: int) -> Order:
    """The order once we asked for a change; an order whose fate is final or unknown stays so."""
    if isinstance(action, Amend) or order.state.is_final or order.state is OrderState.UNKNOWN:
        return order
    return msgspec.structs.replace(order, state=OrderState.PENDING_CANCEL, changed_ns=time_ns)


def after_event(order: Order, event: Event) -> Order:
    """The order once an outcome is known (see the state diagram in `execution.orders`).

    An execution that is told late still counts, also on an order that was already final.
    """
    change: dict[str, Any] = {"changed_ns": event.time_ns}
    open_state = OrderState.PARTIALLY_FILLED if order.filled_lots else OrderState.NEW
    match event:
        case Filled():
            change["filled_lots"] = order.filled_lots + event.qty_lots
            if event.leaves_lots == 0:
                change["state"] = OrderState.FILLED
            elif not (order.state.is_final or order.state is OrderState.PENDING_CANCEL):
                change["state"] = OrderState.PARTIALLY_FILLED
        case _ if order.state.is_final:
            return order
        case Accepted():
            if order.state in (OrderState.PENDING_NEW, OrderState.UNKNOWN):
                change["state"] = open_state
        case Amended():
            change |= {"price_ticks": event.price_ticks, "qty_lots": event.qty_lots}
        case Cancelled():
            change |= {"state": OrderState.CANCELLED, "reason": event.reason}
        case Rejected():
            change |= {"state": OrderState.REJECTED, "reason": event.reason}
        case CancelRejected():
            if order.state is OrderState.PENDING_CANCEL:
                change["state"] = open_state
        case Lost():
            change |= {"state": OrderState.UNKNOWN, "reason": event.reason}
    return msgspec.structs.replace(order, **change)


class Ledger:
    """What intents and outcomes add up to, in memory; `Journal` is the one that outlives a process."""

    #: How errors name it.
    name: str = "ledger"

    def __init__(self) -> None:
        self.orders: dict[str, Order] = {}
        self.positions: dict[str, int] = {}
        self.parents = 0  #: parent orders ever opened; the next one's number
        self._executions: dict[str, set[str]] = {}
        self._kept: list[Entry] = []
        self._written = 0

    # -- writing -------------------------------------------------------------------------------

    def note(
        self, kind: str, time_ns: int, body: bytes, symbol: str = "", parent_id: str = ""
    ) -> None:
        """Add an entry that is neither an intent nor an event."""
        self._add([(time_ns, kind, symbol, parent_id, "", body)], durable=False)

    def intend(self, time_ns: int, symbol: str, parent_id: str, actions: Sequence[Action]) -> None:
        """Make actions durable; only then may they be sent. JournalError on an id used before."""
        rows = []
        for action in actions:
            if isinstance(action, Submit) and action.client_id in self.orders:
                raise JournalError(f"{self.name}: client order id {action.client_id} was used")
            body = msgspec.json.encode(action)
            rows.append((time_ns, "intent", symbol, parent_id, action.client_id, body))
        self._add(rows, durable=True)

    def record(self, events: Iterable[Event]) -> list[Event]:
        """Add outcomes; returns those that say something new (an execution is told once)."""
        rows, fresh = [], []
        told: set[tuple[str, str]] = set()
        for event in events:
            if isinstance(event, Filled):
                key = (event.client_id, event.exec_id)
                if event.exec_id in self._executions.get(event.client_id, ()) or key in told:
                    continue
                told.add(key)
            order = self.orders.get(event.client_id)
            symbol, parent = (order.submit.symbol, order.parent_id) if order else ("", "")
            body = msgspec.json.encode(event)
            rows.append((event.time_ns, "event", symbol, parent, event.client_id, body))
            fresh.append(event)
        self._add(rows, durable=False)
        return fresh

    def _add(self, rows: Sequence[Row], durable: bool) -> None:
        if rows:
            for entry in self._keep(rows, durable):
                self._apply(entry)

    def _keep(self, rows: Sequence[Row], durable: bool) -> list[Entry]:
        """Number the rows and keep them, whole or not at all."""
        entries = [Entry(self._written + n, *row) for n, row in enumerate(rows, 1)]
        self._written += len(rows)
        self._kept += entries
        return entries

    # -- reading -------------------------------------------------------------------------------

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """Entries in the order in which they were written, of one kind or all."""
        return (entry for entry in self._kept if kind in (None, entry.kind))

    def open_orders(self) -> list[Order]:
        """Orders that are not final, oldest first; UNKNOWN ones are among them."""
        return [order for order in self.orders.values() if not order.state.is_final]

    def drain(self) -> list[Entry]:
        """Take out what is settled, so that memory does not grow with the days.

        Settled are the entries of parents that have ended, with their orders, and those of no parent.
        """
        ended = {entry.parent_id for entry in self._kept if entry.kind == "end"} | {""}
        settled = [entry for entry in self._kept if entry.parent_id in ended]
        self._kept = [entry for entry in self._kept if entry.parent_id not in ended]
        for client_id in {entry.client_id for entry in settled}:
            self.orders.pop(client_id, None)
            self._executions.pop(client_id, None)
        return settled

    def _apply(self, entry: Entry) -> None:
        if entry.kind == "parent":
            self.parents += 1
        elif entry.kind == "intent":
            self._apply_intent(_ACTION.decode(entry.body), entry)
        elif entry.kind == "event":
            self._apply_event(_EVENT.decode(entry.body))

    def _apply_intent(self, action: Action, entry: Entry) -> None:
        if isinstance(action, Submit):
            self.orders[action.client_id] = Order.submitted(action, entry.parent_id, entry.time_ns)
        elif (order := self.orders.get(action.client_id)) is not None:
            self.orders[action.client_id] = after_action(order, action, entry.time_ns)

    def _apply_event(self, event: Event) -> None:
        if isinstance(event, Filled):
            told = self._executions.setdefault(event.client_id, set())
            if event.exec_id in told:
                return
            told.add(event.exec_id)
            held = self.positions.get(event.symbol, 0)
            self.positions[event.symbol] = held + event.side * event.qty_lots
        if (order := self.orders.get(event.client_id)) is not None:
            self.orders[event.client_id] = after_event(order, event)


class Journal(Ledger):
    """An open journal; one process at a time writes it. Use as a context manager, or `close`."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.name = str(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        try:
            self._db = _connect(self.path)
            _migrate(self._db, self.path)
        except BaseException:
            os.close(self._lock)
            raise
        for entry in self.entries():
            self._apply(entry)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()
        os.close(self._lock)

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        return read_entries(self._db, kind)

    def drain(self) -> list[Entry]:
        """Nothing: a journal keeps everything."""
        return []

    def _keep(self, rows: Sequence[Row], durable: bool) -> list[Entry]:
        self._db.execute(f"pragma synchronous = {'full' if durable else 'normal'}")
        self._db.execute("begin immediate")
        try:
            first = self._db.execute("select coalesce(max(seq), 0) + 1 from entries").fetchone()[0]
            entries = [Entry(first + n, *row) for n, row in enumerate(rows)]
            self._db.executemany("insert into entries values (?, ?, ?, ?, ?, ?, ?)", entries)
            self._db.execute("commit")
        except BaseException:
            self._db.execute("rollback")
            raise
        return entries


def read_entries(db: sqlite3.Connection, kind: str | None = None) -> Iterator[Entry]:
    where, values = ("", ()) if kind is None else (" where kind = ?", (kind,))
    for row in db.execute(f"select * from entries{where} order by seq", values):
        yield Entry(*row)


def read_only(path: str | Path) -> sqlite3.Connection:
    """A reader beside a running writer; JournalError when the file is not a current journal."""
    path = Path(path)
    if not path.exists():
        raise JournalError(f"{path}: no such journal")
    db = _connect(path)
    if (found := _version(db, path)) != len(MIGRATIONS):
        db.close()
        raise JournalError(
            f"{path}: schema {found}, this code reads {len(MIGRATIONS)}; start a worker once to "
            "migrate an older journal, or use the version that wrote a newer one"
        )
    db.execute("pragma query_only = on")
    return db


def _lock(path: Path) -> int:
    """Hold the journal for this process; the kernel lets go when the process ends, however."""
    handle = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise JournalError(
            f"{path}: another worker is running on this journal; stop it first"
        ) from error
    return handle


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    try:
        db.execute("pragma journal_mode = wal")
    except sqlite3.DatabaseError as error:
        db.close()
        raise JournalError(f"{path}: not a journal ({error}); move it away") from error
    return db


def _version(db: sqlite3.Connection, path: Path) -> int:
    tables = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
    if "schema_version" in tables:
        return int(db.execute("select max(version) from schema_version").fetchone()[0])
    if tables:
        db.close()
        raise JournalError(f"{path}: a database, but not a journal; move it away")
    return 0


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    found = _version(db, path)
    if found > len(MIGRATIONS):
        db.close()
        raise JournalError(
            f"{path}: schema {found} is newer than {len(MIGRATIONS)}, the newest known here; "
            "use the version of the platform that wrote it"
        )
    db.execute("pragma synchronous = full")
    for version, script in enumerate(MIGRATIONS[found:], found + 1):
        # One transaction a version: a crash leaves a whole version behind, never half of one.
        db.executescript(
            "begin exclusive;\n"
            "create table if not exists schema_version (version integer primary key);\n"
            f"{script}\ninsert into schema_version values ({version});\ncommit;"
        )
