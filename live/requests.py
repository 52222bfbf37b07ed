"""Requests under way, by number: who sends one opens it here, and its answer or deadline ends it.

`Retries` repeat a question, or a request that may be repeated, until what it is for is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from execution.orders import Submit
from live.messages import Effect, RequestBody, Send
from market.units import SECOND_NS

#: Requests that expired are remembered, so that a late answer is still read; so many of them.
LATE: Final = 1024

#: Waits between two tries of a request (ns); the last one repeats.
PATIENCE_NS: Final = tuple(s * SECOND_NS // 2 for s in (1, 2, 4, 8, 16, 32, 60))
#: Retries sent in a second, all together.
RETRIES_PER_S: Final = 10


class RequestsState(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of `Requests`."""

    number: int = 0
    under_way: tuple[Send, ...] = ()
    late: tuple[Send, ...] = ()


class Requests:
    """Numbers requests, uniquely in a log, and knows which are without an answer.

    ``answer_ns`` is how long a request waits for its answer unless it says otherwise, from when it is handed over:
    ``lag_ns`` after its instant.
    """

    def __init__(self, answer_ns: int) -> None:
        self.answer_ns = answer_ns
        self.lag_ns = 0  #: how far the clock is ahead of what is being handled
        self.under_way: dict[int, Send] = {}
        self._late: dict[int, Send] = {}
        self.number = 0

    def restore(self, state: RequestsState) -> None:
        """Go on from a checkpoint."""
        self.number = state.number
        self.under_way = {send.number: send for send in state.under_way}
        self._late = {send.number: send for send in state.late}

    def open(self, now_ns: int, body: RequestBody, symbol: str = "", patience: int = 1) -> Send:
        """A request to send; it waits ``patience`` times ``answer_ns``. ``symbol`` is that of the order of an
        amend or cancel.
        """
        send = Send(
            number=self.number + 1,
            body=body,
            deadline_ns=now_ns + self.lag_ns + patience * self.answer_ns,
            symbol=symbol,
        )
        self.sent(send)
        return send

    def sent(self, send: Send) -> None:
        """A request was sent: by `open`, or by an earlier process, as its log says."""
        self.number = max(self.number, send.number)
        self.under_way[send.number] = send

    def deadline_ns(self, client_id: str) -> int:
        """The deadline of an order's request that has no answer; 0 for none."""
        sends = (*self.under_way.values(), *self._late.values())
        orders = (s for s in sends if isinstance(s.body, Submit) and s.body.client_id == client_id)
        return next((send.deadline_ns for send in orders), 0)

    def answered(self, number: int) -> Send | None:
        """The request that an answer is of; None when it is of none, or of one answered before."""
        return self.under_way.pop(number, None) or self._late.pop(number, None)

    def expired(self, number: int) -> Send | None:
        """The request whose deadline passed; None when it was answered. A late answer is still read."""
        send = self.under_way.pop(number, None)
        if send is not None:
            self._late[number] = send
            if len(self._late) > LATE:
                del self._late[next(iter(self._late))]
        return send

    def snapshot(self) -> RequestsState:
        """For a checkpoint."""
        return RequestsState(
            number=self.number,
            under_way=tuple(self.under_way.values()),
            late=tuple(self._late.values()),
        )


class Retry(msgspec.Struct, kw_only=True):
    """A request that is retried until it is done. ``number`` is that of the one under way, 0 for none; it
    waits ``patience`` times as long as others for its answer.
    """

    key: str
    body: RequestBody
    born_ns: int
    due_ns: int
    tries: int = 0
    absences: int = 0  #: complete answers that do not list it
    number: int = 0
    patience: int = 1


class Retries:
    """Requests that are retried, by key: each with exponential backoff, all within `RETRIES_PER_S`."""

    def __init__(self, requests: Requests, emit: Callable[[Effect], None]) -> None:
        self._requests, self._emit = requests, emit
        self._by_key: dict[str, Retry] = {}
        self._sent: deque[int] = deque(maxlen=RETRIES_PER_S)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin so, oldest first."""
        return [key for key in self._by_key if key.startswith(prefix)]

    def waiting(self, prefix: str) -> list[str]:
        """Those of them that are not under way."""
        return [key for key in self.keys(prefix) if not self._by_key[key].number]

    def want(
        self, now_ns: int, key: str, body: RequestBody, delay_ns: int = 0, patience: int = 1
    ) -> None:
        """Have this sent until it is done; one that is wanted already goes on with this body."""
        retry = self._by_key.get(key)
        if retry is None:
            due_ns = now_ns + delay_ns
            self._by_key[key] = Retry(
                key=key, body=body, born_ns=now_ns, due_ns=due_ns, patience=patience
            )
        else:
            retry.body = body

    def done(self, key: str) -> None:
        """It is known, or not wanted any more; a later answer is of none."""
        self._by_key.pop(key, None)

    def again(self, now_ns: int, retry: Retry, least_ns: int = 0) -> None:
        """Send it again, after its patience and no earlier than in ``least_ns``."""
        retry.number = 0
        patience_ns = PATIENCE_NS[min(max(retry.tries, 1), len(PATIENCE_NS)) - 1]
        retry.due_ns = now_ns + max(patience_ns, least_ns)

    def of(self, number: int) -> Retry | None:
        """The retry whose request has this number."""
        return next((e for e in self._by_key.values() if e.number == number), None)

    def step(self, now_ns: int, only: type = object) -> None:
        """Send what is due, of one kind of request only."""
        for retry in sorted(self._by_key.values(), key=lambda e: e.due_ns):
            if retry.number or retry.due_ns > now_ns or not isinstance(retry.body, only):
                continue
            if now_ns < self._free_ns:
                return
            self._sent.append(now_ns)
            retry.tries += 1
            send = self._requests.open(now_ns, retry.body, patience=retry.patience)
            retry.number = send.number
            self._emit(send)

    @property
    def _free_ns(self) -> int:
        return self._sent[0] + SECOND_NS if len(self._sent) == RETRIES_PER_S else 0

    @property
    def next_ns(self) -> int:
        """When one is due; 0 for none."""
        due = min((e.due_ns for e in self._by_key.values() if not e.number), default=0)
        return max(due, self._free_ns) if due else 0
