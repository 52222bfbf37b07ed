"""Requests under way, by number: who sends one opens it here, and its answer or deadline ends it."""

from __future__ import annotations

from typing import Final

import msgspec

from live.messages import RequestBody, Send

#: Requests that expired are remembered, so that a late answer is still read; so many of them.
LATE: Final = 1024


class RequestsState(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of `Requests`."""

    number: int = 0
    under_way: tuple[Send, ...] = ()
    late: tuple[Send, ...] = ()


class Requests:
    """Numbers requests, uniquely in a log, and knows which are without an answer.

    ``answer_ns`` is how long a request waits for its answer unless it says otherwise.
    """

    def __init__(self, answer_ns: int, state: RequestsState | None = None) -> None:
        state = state or RequestsState()
        self._answer_ns = answer_ns
        self._number = state.number
        self.under_way = {send.number: send for send in state.under_way}
        self._late = {send.number: send for send in state.late}

    def open(self, now_ns: int, body: RequestBody, deadline_ns: int = 0) -> Send:
        """A request to send; by default it waits for ``answer_ns``."""
        self._number += 1
        send = Send(
            number=self._number, body=body, deadline_ns=deadline_ns or now_ns + self._answer_ns
        )
        self.under_way[send.number] = send
        return send

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
            number=self._number,
            under_way=tuple(self.under_way.values()),
            late=tuple(self._late.values()),
        )
