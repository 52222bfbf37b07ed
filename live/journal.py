"""The journal: a write-ahead log of order intents and order events, in SQLite.

One append-only table. The ``kind`` of an entry says what its body is:

    run      a worker started                   run id, model, symbols
    parent   a parent order was opened          `execution.tca.ParentRow`
    intent   an action is about to be sent      `execution.orders.Action`
    event    an order event of the venue        `execution.orders.Event`
    denied   a risk limit denied an action      the rejection
    markouts mids after a parent's fills        list of `execution.tca.MarkoutRow`
    end      a parent order is finished         `execution.tca.Shortfall`
    funding  funding was settled                `live.desk.FundingPayment`

An intent is durable (WAL, synchronous=FULL: fsync) before `Journal.record_intents` returns, and only
then may its action be sent: after a crash no order is at the venue that the journal does not name.
Events are written with synchronous=NORMAL, which survives a crash of the process but not a power cut,
because the venue can report them again; the next intent makes them durable too.

Opening a journal replays it: `Journal.orders` and `Journal.positions` are the state after all entries.
A position is the signed sum of executions; one reported twice counts once (idempotent).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from execution.account import Account
from execution.order_machine import Order, Orders
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

#: Schema migrations: version n is the first n scripts in order. Released scripts never change.
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
    """A row of the table ``entries``; ids are empty where they do not apply."""

    seq: int
    time_ns: int
    kind: str
    symbol: str
    parent_id: str
    client_id: str
    body: bytes


#: An entry without ``seq``.
Row = tuple[int, str, str, str, str, bytes]


class JournalOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order and its state. Quantities in lots, prices in ticks, times in ns.

    ``price_ticks`` and ``qty_lots`` are the present ones, after amends.
    """

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
    def submitted(cls, submit: Submit, parent_id: str, time_ns: int) -> JournalOrder:
        """A new order, sent at ``time_ns``."""
        return cls(
            submit=submit,
            parent_id=parent_id,
            state=OrderState.PENDING_NEW,
            price_ticks=submit.price_ticks,
            qty_lots=submit.qty_lots,
            submitted_ns=time_ns,
            changed_ns=time_ns,
        )


def order_row(order: JournalOrder, venue: str, amends: int = 0) -> OrderRow:
    """The order as a row of the lake's table ``orders``."""
    submit = order.submit
    return OrderRow(
        client_id=submit.client_id,
        parent_id=order.parent_id,
        symbol=submit.symbol,
        side=submit.side,
        venue=venue,
        order_type=str(submit.order_type),
        time_in_force=str(submit.time_in_force),
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


def after_action(order: JournalOrder, action: Amend | Cancel, time_ns: int) -> JournalOrder:
    """The order after a cancel or amend request; a final or UNKNOWN order keeps its state."""
    if isinstance(action, Amend) or order.state.is_final or order.state is OrderState.UNKNOWN:
        return order
    return msgspec.structs.replace(order, state=OrderState.PENDING_CANCEL, changed_ns=time_ns)


def after_event(order: JournalOrder, event: Event) -> JournalOrder:
    """The order after an order event (see the state diagram in `execution.orders`).

    A late execution counts even on an order that is final already.
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


class MemoryJournal:
    """A journal in memory, for backtests; `Journal` is the durable one."""

    #: Its name in error messages.
    name: str = "journal in memory"

    def __init__(self) -> None:
        self.orders: dict[str, JournalOrder] = {}
        self.positions: dict[str, int] = {}
        self.parents = 0  #: parent orders ever opened; the next one's number
        self._executions: dict[str, set[str]] = {}
        self._entries: list[Entry] = []
        self._last_seq = 0

    # -- writing -------------------------------------------------------------------------------

    def append(
        self, kind: str, time_ns: int, body: bytes, symbol: str = "", parent_id: str = ""
    ) -> None:
        """Append an entry that is neither an intent nor an event."""
        self._add([(time_ns, kind, symbol, parent_id, "", body)], durable=False)

    def record_intents(
        self, time_ns: int, symbol: str, parent_id: str, actions: Sequence[Action]
    ) -> None:
        """Append actions durably; only then may they be sent. JournalError for a used client id."""
        rows = []
        for action in actions:
            if isinstance(action, Submit) and action.client_id in self.orders:
                raise JournalError(
                    f"{self.name}: client order id {action.client_id} was used before"
                )
            body = msgspec.json.encode(action)
            rows.append((time_ns, "intent", symbol, parent_id, action.client_id, body))
        self._add(rows, durable=True)

    def record_events(self, events: Iterable[Event]) -> list[Event]:
        """Append order events; returns them without executions that were recorded before."""
        rows, fresh = [], []
        seen: set[tuple[str, str]] = set()
        for event in events:
            if isinstance(event, Filled):
                key = (event.client_id, event.exec_id)
                if event.exec_id in self._executions.get(event.client_id, ()) or key in seen:
                    continue
                seen.add(key)
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
        """Number and store the rows, atomically."""
        entries = [Entry(self._last_seq + n, *row) for n, row in enumerate(rows, 1)]
        self._last_seq += len(rows)
        self._entries += entries
        return entries

    # -- reading -------------------------------------------------------------------------------

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """Entries of one kind, or all, in the order they were written."""
        return (entry for entry in self._entries if kind in (None, entry.kind))

    def open_orders(self) -> list[JournalOrder]:
        """Orders that are not final, UNKNOWN ones included, oldest first."""
        return [order for order in self.orders.values() if not order.state.is_final]

    def drain_finished(self) -> list[Entry]:
        """Remove and return entries of finished parents and of no parent, to bound memory."""
        ended = {entry.parent_id for entry in self._entries if entry.kind == "end"} | {""}
        finished = [entry for entry in self._entries if entry.parent_id in ended]
        self._entries = [entry for entry in self._entries if entry.parent_id not in ended]
        for client_id in {entry.client_id for entry in finished}:
            self.orders.pop(client_id, None)
            self._executions.pop(client_id, None)
        return finished

    def _apply(self, entry: Entry) -> None:
        if entry.kind == "parent":
            self.parents += 1
        elif entry.kind == "intent":
            self._apply_intent(_ACTION.decode(entry.body), entry)
        elif entry.kind == "event":
            self._apply_event(_EVENT.decode(entry.body))

    def _apply_intent(self, action: Action, entry: Entry) -> None:
        if isinstance(action, Submit):
            self.orders[action.client_id] = JournalOrder.submitted(
                action, entry.parent_id, entry.time_ns
            )
        elif (order := self.orders.get(action.client_id)) is not None:
            self.orders[action.client_id] = after_action(order, action, entry.time_ns)

    def _apply_event(self, event: Event) -> None:
        if isinstance(event, Filled):
            executions = self._executions.setdefault(event.client_id, set())
            if event.exec_id in executions:
                return
            executions.add(event.exec_id)
            position = self.positions.get(event.symbol, 0)
            self.positions[event.symbol] = position + event.side * event.qty_lots
        if (order := self.orders.get(event.client_id)) is not None:
            self.orders[event.client_id] = after_event(order, event)


def restored(journal: MemoryJournal, account: Account) -> Orders:
    """The order machine with the orders that an earlier process left open, and into ``account`` the
    positions of earlier runs with their cost; their results are not this run's.
    """
    past = Account({symbol: each.instrument for symbol, each in account.holdings.items()})
    for entry in journal.entries("event"):
        event = _EVENT.decode(entry.body)
        if isinstance(event, Filled) and event.symbol in past.holdings:
            past.apply(event)
    for symbol, earlier in past.holdings.items():
        ours = account.holdings[symbol]
        ours.position_lots, ours.cost_e8 = earlier.position_lots, earlier.cost_e8
    orders = Orders()
    orders.restore(
        Order(
            submit=order.submit,
            parent_id=order.parent_id,
            state=order.state,
            price_ticks=order.price_ticks,
            qty_lots=order.qty_lots,
            filled_lots=order.filled_lots,
            sent_ns=order.submitted_ns,
            changed_ns=order.changed_ns,
        )
        for order in journal.open_orders()
    )
    return orders


class Journal(MemoryJournal):
    """A journal in a SQLite file, locked for one writing process. A context manager.

    JournalError when another process holds it, or the file is no journal or of a newer schema.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.name = str(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        try:
            with _written(self.path):
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
        """Close the file and release its lock."""
        self._db.close()
        os.close(self._lock)

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """Entries of one kind, or all, in the order they were written."""
        return read_entries(self._db, kind)

    def drain_finished(self) -> list[Entry]:
        """Nothing: the file keeps every entry."""
        return []

    def _keep(self, rows: Sequence[Row], durable: bool) -> list[Entry]:
        with _written(self.path):
            self._db.execute(f"pragma synchronous = {'full' if durable else 'normal'}")
            self._db.execute("begin immediate")
            try:
                first = self._db.execute(
                    "select coalesce(max(seq), 0) + 1 from entries"
                ).fetchone()[0]
                entries = [Entry(first + n, *row) for n, row in enumerate(rows)]
                self._db.executemany("insert into entries values (?, ?, ?, ?, ?, ?, ?)", entries)
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it itself where the disk is full
                    self._db.execute("rollback")
                raise
        return entries


def read_entries(db: sqlite3.Connection, kind: str | None = None) -> Iterator[Entry]:
    """Entries of an open journal file, of one kind or all, in the order they were written."""
    where, values = ("", ()) if kind is None else (" where kind = ?", (kind,))
    for row in db.execute(f"select * from entries{where} order by seq", values):
        yield Entry(*row)


def open_read_only(path: str | Path) -> sqlite3.Connection:
    """Open a journal for reading, also beside its writer; JournalError for another schema version."""
    path = Path(path)
    if not path.exists():
        raise JournalError(f"{path}: no such journal")
    with _written(path):
        db = _connect(path)
    if (version := _version(db, path)) != len(MIGRATIONS):
        db.close()
        raise JournalError(
            f"{path}: schema {version}, this code reads {len(MIGRATIONS)}; start a worker once to "
            "migrate an older journal, or use the version that wrote a newer one"
        )
    db.execute("pragma query_only = on")
    return db


def _lock(path: Path) -> int:
    """Lock the journal for this process; the kernel releases it when the process ends, however."""
    handle = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise JournalError(
            f"{path}: another worker is running on this journal; stop it first"
        ) from error
    return handle


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """JournalError for what SQLite says of the disk."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise JournalError(
            f"{path}: cannot be written ({error}), and what is not in it is never sent; it needs space "
            "and a folder that may be written; a worker that starts again settles its open orders"
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    try:
        db.execute("pragma journal_mode = wal")
    except sqlite3.DatabaseError as error:
        db.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
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
    present = _version(db, path)
    if present > len(MIGRATIONS):
        db.close()
        raise JournalError(
            f"{path}: schema {present} is newer than {len(MIGRATIONS)}, the newest known here; "
            "use the version of the platform that wrote it"
        )
    db.execute("pragma synchronous = full")
    for version, script in enumerate(MIGRATIONS[present:], present + 1):
        # One transaction per version: a crash leaves a whole version.
        db.executescript(
            "begin exclusive;\n"
            "create table if not exists schema_version (version integer primary key);\n"
            f"{script}\ninsert into schema_version values ({version});\ncommit;"
        )
