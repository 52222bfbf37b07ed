"""What goes into the trading core and what comes out of it: inputs, requests and effects.

`live.core.Core.step(now_ns, input) -> effects` is the whole of the worker that decides. Every input is
appended to the log (`live.log`) before it is handled; a run is a function of its inputs, so that the log
repeats it. Drivers: the worker's shell (`live.worker`), paper (`live.paper`), backtests
(`orchestration.backtest`) and fault simulation (`proving.torture`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from execution.orders import Amend, Cancel, Event, Submit


class Struct(msgspec.Struct, frozen=True, kw_only=True, tag=True, gc=False):
    """Base: immutable and tagged, so that the log can read it back."""


# -- inputs ----------------------------------------------------------------------------------------


class PublicFrame(Struct, frozen=True, kw_only=True):
    """A frame of the public stream as received, or a control line of the feed (``{"l2": …}``)."""

    frame: bytes


class PrivateFrame(Struct, frozen=True, kw_only=True):
    """A frame of the private stream as received; the venue's `Codec` reads it."""

    frame: bytes


class Answer(Struct, frozen=True, kw_only=True):
    """The answer to a request, as received; the venue's `Codec` reads it."""

    request: int
    body: bytes


class Expired(Struct, frozen=True, kw_only=True):
    """A request's deadline passed, or its connection was lost, without an answer."""

    request: int
    reason: str


class Tick(Struct, frozen=True, kw_only=True):
    """Time passed. A driver gives one at least every 100 ms and at `Core.next_ns`."""


class Link(Struct, frozen=True, kw_only=True):
    """A connection came up (authenticated and subscribed) or went down: public, private or trade."""

    stream: str
    up: bool
    reason: str = ""


class InForce(Struct, frozen=True, kw_only=True):
    """A model version, or a patch of it, came into force. The driver has loaded it and hands it over by
    `Core.load`; the checksum is `Pointer.in_force`.
    """

    name: str
    version: str
    manifest_sha256: str


class Shadowed(Struct, frozen=True, kw_only=True):
    """A challenger's prediction on the vector of a decision that has left; it only goes on record."""

    symbol: str
    t_ns: int
    model_version: str
    bundle_sha: str
    raw_bps: float
    scale_bps: float


class Command(Struct, frozen=True, kw_only=True):
    """An operator's command (halt, flatten, resume, pause, limits) or the driver's: stop, and finish after
    it; fact, a measurement. ``who`` and ``reason`` are on record; ``symbol`` is empty for all; ``limits``
    are settings of `[risk]` that only tighten.
    """

    command: str
    who: str
    reason: str
    symbol: str = ""
    limits: dict[str, float] = {}


Input = PublicFrame | PrivateFrame | Answer | Expired | Tick | Link | InForce | Shadowed | Command


# -- requests --------------------------------------------------------------------------------------


class QueryKind(StrEnum):
    """What can be asked of a venue. ORDER is one order, open or ended, by client id; EXECUTIONS are those
    since a time, or of one client id; TRANSACTIONS those of a time's UTC day from it on.
    """

    ORDER = "order"
    OPEN_ORDERS = "open_orders"
    EXECUTIONS = "executions"
    POSITION = "position"
    WALLET = "wallet"
    ACCOUNT = "account"
    INSTRUMENT = "instrument"
    FEES = "fees"
    RISK_LIMITS = "risk_limits"
    TRANSACTIONS = "transactions"


class Query(Struct, frozen=True, kw_only=True):
    """A question to the venue; answered by one `QueryResult`."""

    kind: QueryKind
    symbol: str = ""
    client_id: str = ""
    since_ns: int = 0


class CancelAll(Struct, frozen=True, kw_only=True):
    """Cancel every open order of a symbol, conditional ones excepted."""

    symbol: str


class SetStop(Struct, frozen=True, kw_only=True):
    """Arm, move or (with 0) remove the venue-side stop of a symbol's whole position."""

    symbol: str
    stop_ticks: int


RequestBody = Submit | Amend | Cancel | CancelAll | SetStop | Query


class Send(Struct, frozen=True, kw_only=True):
    """Effect: send a request. What it rests on must be on disk before it leaves.

    Without an answer by ``deadline_ns`` the driver gives `Expired`. ``number`` is unique in the log.
    ``symbol`` is that of the order of an `Amend` or `Cancel`, which the venue asks for beside its id.
    """

    number: int
    body: RequestBody
    deadline_ns: int
    symbol: str = ""


# -- evidence beyond orders ------------------------------------------------------------------------


class PositionReport(Struct, frozen=True, kw_only=True):
    """A position as the venue states it. Prices in ticks, 0 for none; ``entry_e8`` is the average price
    at 1e-8. A ``venue_ns`` a few ms after a fill's is the same fact.
    """

    symbol: str
    lots: int
    entry_e8: int = 0
    stop_ticks: int = 0
    liquidation_ticks: float = 0.0
    hedged: bool = False
    leverage: str = ""
    venue_ns: int = 0


class WalletReport(Struct, frozen=True, kw_only=True):
    """Equity and balance of the account's settlement coin at 1e-8; margin rates are fractions."""

    equity_e8: int
    balance_e8: int
    initial_margin_rate: float = 0.0
    maintenance_margin_rate: float = 0.0
    venue_ns: int = 0


class FundingReport(Struct, frozen=True, kw_only=True):
    """A settlement that the venue booked; positive when paid. Not a fill."""

    exec_id: str
    symbol: str
    lots: int
    mark_e8: int
    paid_e8: int
    venue_ns: int


class TransactionReport(Struct, frozen=True, kw_only=True):
    """A line of the venue's transaction log; money at 1e-8. ``lots`` (signed) and ``price_ticks`` are those
    of an execution of a symbol that is known here, else 0. Fee and funding are positive when paid; change =
    cash - fee - funding.
    """

    kind: str
    exec_id: str
    symbol: str
    lots: int
    price_ticks: int
    fee_e8: int
    funding_e8: int
    cash_e8: int
    change_e8: int
    venue_ns: int


class AccountReport(Struct, frozen=True, kw_only=True):
    """The key's permissions and the account's modes, as the venue states them; ``expires_ns`` is the
    key's last instant, 0 for none.
    """

    account: str
    unified: bool
    margin_mode: str
    can_trade: bool
    can_withdraw: bool
    expires_ns: int = 0
    venue_ns: int = 0


class InstrumentReport(Struct, frozen=True, kw_only=True):
    """Tick, lot and limits of a symbol in the venue's own strings; empty where it has none."""

    symbol: str
    tick: str
    lot: str
    status: str = "Trading"
    min_qty: str = ""
    min_notional: str = ""
    max_order_qty: str = ""
    max_market_qty: str = ""


class FeeReport(Struct, frozen=True, kw_only=True):
    """Fee rates of a symbol, fractions of notional as decimal strings."""

    symbol: str
    maker: str
    taker: str


class TierReport(Struct, frozen=True, kw_only=True):
    """A risk tier of a symbol in the venue's own strings: positions up to ``limit`` in quote currency, rates
    as fractions; ``deduction`` is empty where it states none.
    """

    symbol: str
    limit: str
    initial: str
    maintenance: str
    max_leverage: str
    deduction: str = ""


class Refused(Struct, frozen=True, kw_only=True):
    """The venue refused a request other than an order's; ``retry`` when the reason passes by itself."""

    reason: str
    code: int = 0
    retry: bool = False


class QueryResult(Struct, frozen=True, kw_only=True):
    """The answer to a query: everything it asked for when ``complete``, as of ``venue_ns``."""

    query: Query
    complete: bool
    venue_ns: int
    orders: tuple[Event, ...] = ()  #: `OrderReport` and `Filled`, oldest first
    reports: tuple[Report, ...] = ()
    reason: str = ""


Report = (
    PositionReport
    | WalletReport
    | FundingReport
    | TransactionReport
    | AccountReport
    | InstrumentReport
    | FeeReport
    | TierReport
    | Refused
)
Evidence = Event | Report | QueryResult


# -- other effects ---------------------------------------------------------------------------------


class Append(Struct, frozen=True, kw_only=True):
    """Effect: a record for the journal's tables (`live.journal` says what the body of a kind is)."""

    kind: str
    time_ns: int
    body: bytes
    symbol: str = ""
    parent_id: str = ""
    client_id: str = ""


class Say(Struct, frozen=True, kw_only=True):
    """Effect: a line of the worker's log."""

    level: str
    event: str
    fields: dict[str, object] = {}


class Renew(Struct, frozen=True, kw_only=True):
    """Effect: subscribe these public topics anew, which gives each a snapshot."""

    topics: tuple[str, ...]


Effect = Send | Append | Say | Renew


class Emitter:
    """Makes records and log lines of what it is told, and hands them on as effects."""

    def __init__(self, emit: Callable[[Effect], None]) -> None:
        self._emit = emit

    def append(
        self,
        kind: str,
        time_ns: int,
        body: object,
        symbol: str = "",
        parent_id: str = "",
        client_id: str = "",
    ) -> None:
        """A record with its body as JSON."""
        self._emit(
            Append(
                kind=kind,
                time_ns=time_ns,
                body=msgspec.json.encode(body),
                symbol=symbol,
                parent_id=parent_id,
                client_id=client_id,
            )
        )

    def say(self, level: str, event: str, **fields: object) -> None:
        """A line of the worker's log."""
        self._emit(Say(level=level, event=event, fields=fields))
