"""Reconciliation: what became of requests without an answer, and whether log and venue agree.

Start-up and shut-down are phases of it. It sends queries, cancels, stops and closing orders; what it proves
(an order that never arrived) it hands over as evidence, which the core folds like the venue's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

import msgspec

from execution.account import Account
from execution.order_machine import Orders
from execution.orders import Event, OrderReport
from live.messages import Effect, Evidence, Link, QueryResult, Send
from live.requests import Requests
from live.safety import Safety
from market.instruments import Instrument
from market.settings import Settings


class Phase(StrEnum):
    """STARTING: nothing trades until log and venue agree. TRADING. RECONCILING: some symbol waits for
    evidence. STOPPING: cancelling and flattening. ENDED: proven, or out of time.
    """

    STARTING = "starting"
    TRADING = "trading"
    RECONCILING = "reconciling"
    STOPPING = "stopping"
    ENDED = "ended"


class ReconciliationState(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of `Reconciliation`."""


class Reconciliation:
    """Orders, executions, positions and stops: log against venue. Times are epoch ns.

    ``emit`` takes requests and lines. What the policy halts, and rejects, margin and liquidation distance as the
    venue states them, go to ``safety``. The core calls, after `Orders` and `Account` took the evidence:

        Answer         send = requests.answered(n); unfold(e) of each piece, and evidence(now, x, send) of each x
        Expired        send = requests.expired(n); apply lost(now, send, reason); then expired(now, send)
        frames         evidence(now, e) of each piece
        Link           link(now, l)
        a new process  start(now), once the log was read back
        a second       mark(now, symbol, mid_ticks), for stops and bounds
        last           step(now) when it is due; then `made()`, whose events go through the core as evidence,
                       until there are none
    """

    def __init__(
        self,
        orders: Orders,
        account: Account,
        requests: Requests,
        safety: Safety,
        instruments: Mapping[str, Instrument],
        settings: Settings,
        emit: Callable[[Effect], None],
        state: ReconciliationState | None = None,
    ) -> None:
        self.phase = Phase.STARTING
        self.next_ns = 0  #: when `step` is due; 0 for never

    def start(self, now_ns: int) -> None:
        """A process begins: requests under way are without an answer, and nothing trades until log and
        venue agree.
        """
        raise NotImplementedError

    def lost(self, now_ns: int, send: Send, reason: str) -> Event | None:
        """The evidence that a request's expiry is: `Lost` of its order; None for other requests."""
        raise NotImplementedError

    def expired(self, now_ns: int, send: Send) -> None:
        """A request ended without an answer (after the core applied `lost`)."""
        raise NotImplementedError

    def unfold(self, evidence: Evidence) -> list[Evidence]:
        """A query's result as evidence for everybody: its orders, dated as of the answer, its reports, and last
        the result itself; other evidence as it is.
        """
        if not isinstance(evidence, QueryResult):
            return [evidence]
        dated = [
            msgspec.structs.replace(event, venue_ns=max(event.venue_ns, evidence.venue_ns))
            if isinstance(event, OrderReport)
            else event
            for event in evidence.orders
        ]
        return [*dated, *evidence.reports, evidence]

    def evidence(self, now_ns: int, evidence: Evidence, send: Send | None = None) -> None:
        """What the venue says, in a frame or in the answer to ``send``, after it was applied."""
        raise NotImplementedError

    def link(self, now_ns: int, link: Link) -> None:
        """A connection came up or went down."""
        raise NotImplementedError

    def mark(self, now_ns: int, symbol: str, mid_ticks: float) -> None:
        """The last known mid (or mark) price of a symbol."""
        raise NotImplementedError

    def step(self, now_ns: int) -> None:
        """What is due by time."""
        raise NotImplementedError

    def made(self) -> list[Event]:
        """Evidence that was proven since the last call, e.g. `Rejected` of an order that never arrived."""
        raise NotImplementedError

    def may_open(self, symbol: str) -> bool:
        """Whether parents may be opened for a symbol: its log and the venue agree."""
        raise NotImplementedError

    def stop_ticks(self, symbol: str, side: int, price_ticks: float) -> int:
        """The stop to attach to an entry order of this side near this price; 0 for none."""
        raise NotImplementedError

    def stop(self, now_ns: int, flatten: bool) -> None:
        """Shut down: cancel all, with ``flatten`` close positions, within `live.closing_s`."""
        raise NotImplementedError

    def left(self) -> list[str]:
        """Orders, positions and requests without evidence, a line each: what shut-down leaves."""
        raise NotImplementedError

    def snapshot(self) -> ReconciliationState:
        """For a checkpoint."""
        raise NotImplementedError
