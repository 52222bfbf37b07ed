"""What clients are told of their own affairs: orders, executions, positions and balances as they change.

Every order that is accepted, amended, executed or ended is told of in one message, with its executions
in another of the same id and time; which of the two goes first is not promised. Position and wallet
follow, changed or not. What a message says is what was so when it came about; it leaves a moment
later, within the few milliseconds that the venue's own lag behind, so that answers to requests come
sometimes before and sometimes after. All of it is a function of the seed and of what happened.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from market.units import MS_NS
from proving.sandbox.ledger import plain_price
from proving.sandbox.tape import Tape
from proving.sandbox.trading import Client, Order, Row

#: How long after an event its message leaves: one of these, by lot.
LAGS_MS: Final = (0, 0, 0, 2, 4, 8)
#: How much later than those of orders leave those of position and wallet.
STATE_MS: Final = 6

#: Fields of an execution that its fast message has.
_FAST: Final = (
    *("category", "symbol", "execId", "execPrice", "execQty", "orderId", "isMaker"),
    *("orderLinkId", "side", "execTime", "seq"),
)


class Notice(NamedTuple):
    """One message to a client, for all who read its topic."""

    due_ns: int  #: when it leaves
    number: int  #: in the order of leaving, among those due at the same time
    client: Client
    topic: str  #: without a category
    name: str  #: the message's id; empty for those that have none
    data: msgspec.Raw

    def frame(self, topic: str) -> bytes:
        """The message under the name that its reader has asked for."""
        fields: dict[str, Any] = {"topic": topic}
        if self.name:
            fields["id"] = self.name
        return msgspec.json.encode(
            {**fields, "creationTime": self.due_ns // MS_NS, "data": self.data}
        )


class Notices:
    """Messages that wait to leave; ``tell`` is called with each when it does. ``marks`` are the mark
    prices that positions are valued at, by symbol."""

    def __init__(
        self,
        seed: int,
        tapes: dict[str, Tape],
        marks: dict[str, int],
        tell: Callable[[Notice], None],
    ) -> None:
        self.heard: Callable[[Client], bool] = lambda client: True  #: whether anybody would read
        self._seed, self._tapes, self._marks, self.tell = seed, tapes, marks, tell
        self._waiting: list[Notice] = []
        self._number = self._events = 0
        self._last: dict[tuple[Client, str], int] = {}

    def order(self, order: Order, fills: Sequence[Row], at_ns: int, sequence: int) -> None:
        """An order has changed, by these executions if there are any."""
        lag_ns, executed_first = self._lot()
        client, symbol = order.client, order.symbol
        if self.heard(client):
            self._fast(client, fills, at_ns, lag_ns)
            name = f"{client.owner}_{symbol}_{sequence}"
            row = {"category": "linear", **order.row(), "feeCurrency": ""}
            del row["extraFees"]
            messages = [("order", [row])]
            if fills:
                messages.insert(0 if executed_first else 1, ("execution", _executions(fills)))
            due_ns = self._due(client, "order", at_ns + lag_ns)
            for topic, data in messages:
                self._push(due_ns, client, topic, name, data)
        self._state(client, symbol, at_ns, lag_ns, sequence)

    def settled(self, client: Client, row: Row, at_ns: int) -> None:
        """Funding was paid or received."""
        lag_ns, _ = self._lot()
        if self.heard(client):
            due_ns = self._due(client, "order", at_ns + lag_ns)
            name = f"{client.owner}_{row['symbol']}_{row['seq']}"
            self._push(due_ns, client, "execution", name, _executions([row]))
        self._state(client, row["symbol"], at_ns, lag_ns, row["seq"])

    def restated(self, client: Client, symbol: str, at_ns: int) -> None:
        """A setting has changed what position and wallet say."""
        self._state(client, symbol, at_ns, self._lot()[0], client.positions[symbol].sequence)

    def release(self, now_ns: int) -> None:
        """Tell what is due."""
        while self._waiting and self._waiting[0].due_ns <= now_ns:
            self.tell(heapq.heappop(self._waiting))

    def _lot(self) -> tuple[int, bool]:
        """Lag in ns of the next event's messages, and whether its executions go first."""
        self._events += 1
        text = f"{self._seed}/notice/{self._events}"
        drawn = hashlib.blake2b(text.encode(), digest_size=2).digest()
        return LAGS_MS[drawn[0] % len(LAGS_MS)] * MS_NS, bool(drawn[1] & 1)

    def _fast(self, client: Client, fills: Sequence[Row], at_ns: int, lag_ns: int) -> None:
        rows = [
            {name: row[name] for name in _FAST} | ({"orderLinkId": ""} if row["isMaker"] else {})
            for row in _executions(fills)
            if row["execType"] == "Trade"
        ]
        if rows:
            due_ns = self._due(client, "fast", at_ns + lag_ns // 2)
            self._push(due_ns, client, "execution.fast", "", rows)

    def _state(self, client: Client, symbol: str, at_ns: int, lag_ns: int, sequence: int) -> None:
        """Position and wallet as they are now."""
        about = client.positions[symbol]
        if about.sequence >= 0:  # a position that never was has none
            about.sequence = max(about.sequence, sequence)
        if not self.heard(client):
            return
        due_ns = self._due(client, "state", at_ns + lag_ns + STATE_MS * MS_NS)
        figures, mark_e8 = self._tapes[symbol].figures, self._marks[symbol]
        position = _position(client.position_row(figures, mark_e8), mark_e8)
        wallet = client.wallet_row(self._marks)
        for topic, row in (("wallet", wallet), ("position", position)):
            self._push(due_ns, client, topic, f"{client.owner}_{topic}_{due_ns // MS_NS}", [row])

    def _due(self, client: Client, lane: str, due_ns: int) -> int:
        """When a message leaves: not before those of its kind that it comes after."""
        due_ns = max(due_ns, self._last.get((client, lane), 0))
        self._last[client, lane] = due_ns
        return due_ns

    def _push(self, due_ns: int, client: Client, topic: str, name: str, data: list[Row]) -> None:
        self._number += 1
        raw = msgspec.Raw(msgspec.json.encode(data))
        heapq.heappush(self._waiting, Notice(due_ns, self._number, client, topic, name, raw))


def _executions(rows: Sequence[Row]) -> list[Row]:
    """Executions as the stream tells of them."""
    return [{"category": "linear", **row, "extraFees": []} for row in rows]


def _position(row: Row, mark_e8: int) -> Row:
    """A position as the stream tells of it: other names and zeros than over REST."""
    told = {("entryPrice" if name == "avgPrice" else name): value for name, value in row.items()}
    for name in ("positionValue", "unrealisedPnl", "takeProfit", "stopLoss"):
        told[name] = told[name] or "0"
    return {**told, "category": "linear", "markPrice": plain_price(mark_e8)}
