"""The journal: what the log has on record, as rows of the lake's tables.

A record is a `messages.Append`, its body JSON of what its kind says:

    run         a process started                    run id, model, symbols
    parent      a parent order was opened            `execution.tca.ParentRow`
    intent      an action is about to be sent        `execution.orders.Action`
    event       evidence that counted, executions    `execution.orders.Event`
                of no order of ours among it
    denied      a limit denied an action             the rejection
    markouts    mids after a parent's fills          list of `execution.tca.MarkoutRow`
    end         a parent order is finished, or was   `execution.tca.Shortfall`
                cut by the end of its process
    funding     funding was paid; client id: the     `live.desk.FundingPayment`
                venue's execution id of it, if any
    statement   a UTC day's sums of a symbol, as     `live.statement.StatementRow`
                known by then; the last one holds
    restated    the cost that a day closed with, as  an integer at 1e-8
                the venue's order of executions has
                it
    adopted     a position was taken from the venue  `messages.PositionReport`
    equity      a mark to market, every minute       `execution.account.AccountState`, its marks
    decision    a decision; labels, what came of it  `live.labels`
    shadow      a challenger's prediction            `messages.Shadowed`
    command     an operator's command                `messages.Command`
    section/X   replaces section X of the core's     a field of `live.core.CoreState`
                checkpoint from here on

Evidence is on record when it changed orders or money: folding intents and events into
`execution.order_machine` gives every order's state, here and at a restart. An execution told twice counts
once, and an intent precedes its request (idempotent, write-ahead); rows have a primary key.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from execution.order_machine import Order, Orders
from execution.orders import Action, Event, Filled, Submit
from execution.tca import TABLES, MarkoutRow, ParentRow, Row, Shortfall, fill_row, order_row
from live.funding import CarryRow, FundingPayment
from live.messages import Append
from live.statement import StatementRow
from market.errors import DataError
from market.units import DAY_NS

#: The journal of versions before the log, in a worker's folder.
OLD_JOURNAL: Final = "journal.sqlite3"

#: Row types of the tables that are made of records.
KINDS: Final[dict[str, type[Row]]] = TABLES | {"statements": StatementRow, "carry": CarryRow}

R = TypeVar("R", bound=Row)

_ACTION = msgspec.json.Decoder(Action)
_EVENT = msgspec.json.Decoder(Event)


class JournalError(DataError):
    """Records cannot be used; the message names the file and what to do."""

    exit_status = 3


def require_migrated(state: Path) -> None:
    """JournalError where a worker of an earlier version left a journal that was not migrated yet."""
    if (old := state / OLD_JOURNAL).exists():
        raise JournalError(
            f"{old}: a journal of an earlier version; run `l2 migrate`, which makes a log of it"
        )


def fold(orders: Orders, record: Append) -> tuple[Order | None, Event | None]:
    """Fold an intent or event into orders: the order that it changed, and the evidence.

    The order is None for evidence of none of ours, and for an execution that was counted before.
    """
    if record.kind == "event":
        event = event_of(record)
        return orders.apply(event), event
    action = action_of(record)
    if isinstance(action, Submit):
        return orders.sent(action, record.parent_id, record.time_ns), None
    return orders.requested(action, record.time_ns), None


def action_of(record: Append) -> Action:
    """The action of an intent."""
    return _ACTION.decode(record.body)  # type: ignore[no-any-return]


def event_of(record: Append) -> Event:
    """The evidence of an event."""
    return _EVENT.decode(record.body)  # type: ignore[no-any-return]


def parent_of(record: Append) -> ParentRow:
    """The parent of a record of that kind."""
    return _read(ParentRow, msgspec.json.decode(record.body))


class TableRows:
    """Rows of the tables from records as they come: `take` each, `drain` at times.

    ``orders`` are those that may still change; an order's row is given again whenever it changed.
    """

    def __init__(self, venue: str) -> None:
        self.orders = Orders()
        self._venue = venue
        self._rows: dict[str, list[tuple[int, Row]]] = defaultdict(list)
        self._changed: dict[str, Order] = {}
        self._now_ns = 0

    def take(self, record: Append) -> None:
        """Take the next record."""
        self._now_ns = max(self._now_ns, record.time_ns)
        match record.kind:
            case "parent":
                parent = parent_of(record)
                self._rows["parents"].append((parent.decision_ns, parent))
            case "end":
                cost = _read(Shortfall, msgspec.json.decode(record.body))
                self._rows["tca"].append((cost.decision_ns, cost))
            case "markouts":
                for fields in msgspec.json.decode(record.body):
                    row = _read(MarkoutRow, fields)
                    self._rows["markouts"].append((row.time_ns, row))
            case "statement":
                day = msgspec.json.decode(record.body, type=StatementRow)
                self._rows["statements"].append((record.time_ns, day))
            case "funding":
                paid = msgspec.json.decode(record.body, type=FundingPayment)
                carry = CarryRow(venue=self._venue, **msgspec.structs.asdict(paid))
                self._rows["carry"].append((paid.time_ns, carry))
            case "intent" | "event":
                self._fold(record)

    def _fold(self, record: Append) -> None:
        order, event = fold(self.orders, record)
        if order is not None:
            self._changed[order.client_id] = order
        if isinstance(event, Filled) and (order or not self.orders.get(event.client_id)):
            parent_id = order.parent_id if order else record.parent_id
            row = fill_row(event, parent_id, self._venue)
            self._rows["fills"].append((event.time_ns, row))

    def drain(self) -> dict[str, list[tuple[int, Row]]]:
        """Table -> (time that dates the row, row) since the last call."""
        placed: list[tuple[int, Row]] = [
            (order.sent_ns, order_row(order, self._venue)) for order in self._changed.values()
        ]
        rows = self._rows
        rows["orders"] += placed
        self._rows, self._changed = defaultdict(list), {}
        self.orders.forget(self._now_ns - DAY_NS)
        return rows


def journal_rows(records: Iterable[Append], venue: str) -> dict[str, list[tuple[int, Row]]]:
    """Table -> (time that dates the row, row) of all these records."""
    rows = TableRows(venue)
    for record in records:
        rows.take(record)
    return rows.drain()


def _read(kind: type[R], fields: dict[str, object]) -> R:
    """A row from its JSON, which has null for NaN."""
    return msgspec.convert({k: math.nan if v is None else v for k, v in fields.items()}, kind)
