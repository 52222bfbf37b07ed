"""Messages of the private stream: orders, executions, positions and wallets as they change.

Every accepted, amended, executed or ended order makes one order message, and an execution message of the
same id and time if it executed; which of the two leaves first is drawn. Position and wallet follow,
changed or not. A message states what was true at the event and leaves a few milliseconds later, within
the venue's own lag, so that the answer to a request comes sometimes before and sometimes after it. All
of it is a function of the seed and the events.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from market.units import MS_NS
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.protocol import Row, plain_price
from proving.sandbox.rows import order_row, position_row, wallet_row
from proving.sandbox.tape import PublicTape

#: Lag of a message after its event: one of these, drawn.
LAGS_MS: Final = (0, 0, 0, 2, 4, 8)
#: Further lag of position and wallet messages.
STATE_LAG_MS: Final = 6

#: Fields of a fast execution message.
_FAST_FIELDS: Final = (
    *("category", "symbol", "execId", "execPrice", "execQty", "orderId", "isMaker"),
    *("orderLinkId", "side", "execTime", "seq"),
)


class PrivateMessage(NamedTuple):
    """One message to all subscribers of a topic of one client."""

    due_ns: int  #: when it leaves
    number: int  #: order of leaving among those due at the same time
    client: Client
    topic: str  #: without a category
    message_id: str  #: empty for topics without ids
    data: msgspec.Raw

    def frame(self, topic: str) -> bytes:
        """The message under the topic name that its reader subscribed to."""
        fields: dict[str, Any] = {"topic": topic}
        if self.message_id:
            fields["id"] = self.message_id
        return msgspec.json.encode(
            {**fields, "creationTime": self.due_ns // MS_NS, "data": self.data}
        )


class PrivateMessages:
    """The queue of messages by due time; ``on_message`` is called with each when it is due.

    ``marks`` are the mark prices by symbol that positions are valued at.
    """

    def __init__(
        self,
        seed: int,
        tapes: dict[str, PublicTape],
        marks: dict[str, int],
        on_message: Callable[[PrivateMessage], None],
    ) -> None:
        self.has_reader: Callable[[Client], bool] = lambda client: True
        self.on_message = on_message
        self._seed, self._tapes, self._marks = seed, tapes, marks
        self._queue: list[PrivateMessage] = []
        self._number = self._events = 0
        self._last_due_ns: dict[tuple[Client, str], int] = {}

    def order_changed(
        self, order: VenueOrder, executions: Sequence[Row], at_ns: int, sequence: int
    ) -> None:
        """Queue the messages of a changed order and of the executions that changed it, if any."""
        lag_ns, execution_first = self._draw()
        client, symbol = order.client, order.symbol
        if self.has_reader(client):
            self._queue_fast(client, executions, at_ns, lag_ns)
            message_id = f"{client.owner}_{symbol}_{sequence}"
            row = {"category": "linear", **order_row(order), "feeCurrency": ""}
            del row["extraFees"]
            messages = [("order", [row])]
            if executions:
                rows = _execution_rows(executions)
                messages.insert(0 if execution_first else 1, ("execution", rows))
            due_ns = self._due_ns(client, "order", at_ns + lag_ns)
            for topic, data in messages:
                self._push(due_ns, client, topic, message_id, data)
        self._queue_state(client, symbol, at_ns, lag_ns, sequence)

    def funding_settled(self, client: Client, row: Row, at_ns: int) -> None:
        """Queue the messages of a funding payment, given as an execution."""
        lag_ns, _ = self._draw()
        if self.has_reader(client):
            due_ns = self._due_ns(client, "order", at_ns + lag_ns)
            message_id = f"{client.owner}_{row['symbol']}_{row['seq']}"
            self._push(due_ns, client, "execution", message_id, _execution_rows([row]))
        self._queue_state(client, row["symbol"], at_ns, lag_ns, row["seq"])

    def settings_changed(self, client: Client, symbol: str, at_ns: int) -> None:
        """Queue position and wallet after a change of leverage or margin mode."""
        sequence = client.position_meta[symbol].sequence
        self._queue_state(client, symbol, at_ns, self._draw()[0], sequence)

    def release(self, now_ns: int) -> None:
        """Send the messages that are due."""
        while self._queue and self._queue[0].due_ns <= now_ns:
            self.on_message(heapq.heappop(self._queue))

    @property
    def next_ns(self) -> int | None:
        """When the next message is due."""
        return self._queue[0].due_ns if self._queue else None

    def _draw(self) -> tuple[int, bool]:
        """Lag (ns) of the next event's messages, and whether its executions leave first."""
        self._events += 1
        text = f"{self._seed}/notice/{self._events}"
        drawn = hashlib.blake2b(text.encode(), digest_size=2).digest()
        return LAGS_MS[drawn[0] % len(LAGS_MS)] * MS_NS, bool(drawn[1] & 1)

    def _queue_fast(
        self, client: Client, executions: Sequence[Row], at_ns: int, lag_ns: int
    ) -> None:
        """Fast executions, which leave earlier and do not name a maker's order."""
        rows = [
            {name: row[name] for name in _FAST_FIELDS}
            | ({"orderLinkId": ""} if row["isMaker"] else {})
            for row in _execution_rows(executions)
            if row["execType"] == "Trade"
        ]
        if rows:
            due_ns = self._due_ns(client, "fast", at_ns + lag_ns // 2)
            self._push(due_ns, client, "execution.fast", "", rows)

    def _queue_state(
        self, client: Client, symbol: str, at_ns: int, lag_ns: int, sequence: int
    ) -> None:
        """Position and wallet as they are now."""
        meta = client.position_meta[symbol]
        if meta.sequence >= 0:  # it stays -1 before the first execution
            meta.sequence = max(meta.sequence, sequence)
        if not self.has_reader(client):
            return
        due_ns = self._due_ns(client, "state", at_ns + lag_ns + STATE_LAG_MS * MS_NS)
        mark_e8 = self._marks[symbol]
        position = position_row(client, self._tapes[symbol].codec, mark_e8)
        wallet = wallet_row(client, self._marks)
        for topic, row in (("wallet", wallet), ("position", _streamed_position(position, mark_e8))):
            self._push(due_ns, client, topic, f"{client.owner}_{topic}_{due_ns // MS_NS}", [row])

    def _due_ns(self, client: Client, group: str, due_ns: int) -> int:
        """When a message leaves: never before an earlier one of its group (order, fast or state)."""
        due_ns = max(due_ns, self._last_due_ns.get((client, group), 0))
        self._last_due_ns[client, group] = due_ns
        return due_ns

    def _push(
        self, due_ns: int, client: Client, topic: str, message_id: str, data: list[Row]
    ) -> None:
        self._number += 1
        raw = msgspec.Raw(msgspec.json.encode(data))
        message = PrivateMessage(due_ns, self._number, client, topic, message_id, raw)
        heapq.heappush(self._queue, message)


def _execution_rows(rows: Sequence[Row]) -> list[Row]:
    """Executions as the stream writes them."""
    return [{"category": "linear", **row, "extraFees": []} for row in rows]


def _streamed_position(row: Row, mark_e8: int) -> Row:
    """A position as the stream writes it, with another name and other zeros than over REST."""
    row = {("entryPrice" if name == "avgPrice" else name): value for name, value in row.items()}
    for name in ("positionValue", "unrealisedPnl", "takeProfit", "stopLoss"):
        row[name] = row[name] or "0"
    return {**row, "category": "linear", "markPrice": plain_price(mark_e8)}
