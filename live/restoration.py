"""A new process goes on where the log ends: the last checkpoint, and what evidence came after it.

The market is not repeated. Intents and events on record are folded into orders and account as the core
folded them; requests follow from what was sent and answered, the desk's from parents opened and ended.
What no evidence tells (`live.safety`) is on record as a section when it changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec

from execution.account import Account, AccountState
from execution.order_machine import Orders
from execution.orders import Filled
from live import log
from live.arms import base_of
from live.core import CoreState
from live.funding import FundingPayment
from live.journal import fold, parent_of
from live.log import Body, Checkpoint, Header, LogError, Torn
from live.messages import Answer, Append, Expired, Input, PositionReport, Send
from live.requests import Requests
from market.instruments import Instrument
from market.units import DAY_NS, HOUR_NS

_KINDS = get_type_hints(CoreState)
_FUNDING = msgspec.json.Decoder(FundingPayment)
_POSITION = msgspec.json.Decoder(PositionReport)
_MARKS = msgspec.json.Decoder(AccountState)


class Restored(NamedTuple):
    """What a log leaves: the state to go on from, its last header, and what a crash had torn off."""

    state: CoreState
    header: Header
    torn: Torn | None


def checkpoint_of(state: CoreState) -> Checkpoint:
    """A checkpoint to start a segment from."""
    encode = msgspec.msgpack.encode
    return Checkpoint({name: encode(getattr(state, name)) for name in _KINDS})


def state_of(checkpoint: Checkpoint) -> CoreState:
    """The state of a checkpoint; sections that it lacks are as at a first start."""
    decode = msgspec.msgpack.decode
    return CoreState(
        **{name: decode(body, type=_KINDS[name]) for name, body in checkpoint.sections.items()}
    )


def require(header: Header, folder: Path, venue: str, account: str, source: str) -> None:
    """LogError unless a log is of this venue, account (earlier versions named none) and kind of data."""
    for name, ours in (("venue", venue), ("account", account), ("source", source)):
        if (theirs := getattr(header, name)) != ours and (theirs or name != "account"):
            raise LogError(
                f"{folder}: the log of {name} {theirs or 'none'}, and this worker's is "
                f"{ours or 'none'}; use another root, or move the folder away once it is flat there"
            )


def require_known(state: CoreState, folder: Path, symbols: Collection[str]) -> None:
    """LogError for a position or an open order in a symbol that the settings name no more."""
    holdings = {} if state.account is None else state.account.holdings
    held = {symbol for symbol, holding in holdings.items() if holding.position_lots}
    held |= {order.symbol for order in state.orders if not order.state.is_final}
    if unknown := ", ".join(sorted(held.difference(symbols))):
        raise LogError(
            f"{folder}: a position or an open order in {unknown}, which the settings do not name; name it in "
            "market.watch, where it is closed, and take it out once it is flat"
        )


def restore(
    folder: Path,
    instruments: Mapping[str, Instrument],
    opening_e8: int,
    fdatasync: Callable[[int], None] = os.fdatasync,
) -> Restored | None:
    """The state at the log's end, for the one writer; None for an empty log.

    LogError for a log that cannot be read. ``opening_e8`` is the balance of a first start.
    """
    torn = log.repair(folder, fdatasync)
    last = log.last_segment(folder)
    if last is None:
        return None
    number, header = last
    try:
        restoration = Restoration(state_of(header.checkpoint), instruments, opening_e8)
        for block in log.read(folder, log.Position(number)):
            for _, body in block.records:
                restoration.take(body)
        return Restored(restoration.state(), header, torn)
    except (msgspec.DecodeError, ValueError) as error:
        raise LogError(
            f"{folder}: segment {number} is of another version of the platform ({error}); stop the worker "
            "with the version that wrote it, which leaves a log that this one reads"
        ) from error


class Restoration:
    """Folds what is on record on from a state: `take` each record of the log, in order."""

    def __init__(
        self, state: CoreState, instruments: Mapping[str, Instrument], opening_e8: int
    ) -> None:
        self._state = state
        self.orders = Orders()
        self.orders.restore(state.orders, state.executions)
        self.account = Account(instruments, opening_e8)
        if state.account is not None:
            self.account.restore(state.account)
        self.requests = Requests(0)
        self.requests.restore(state.requests)
        self._parents, self._open = state.desk.parent_number, dict(state.desk.open)
        self._arms = dict(state.desk.arms)
        self._fills = {key: list(state.desk.fills.get(key, ())) for key in self._open}
        self._sections: dict[str, Any] = {}
        self._input: Input | None = None

    def take(self, body: Body) -> None:
        """Take the next record."""
        match body:
            case Append():
                self._record(body)
            case Send():
                self.requests.sent(body)
            case Answer() | Expired():
                self._handled()
                self._input = body
            case _ if isinstance(body, Input):
                self._handled()

    def _handled(self) -> None:
        """The input before was handled whole. What the last one of a log made may be missing: its request
        then counts as without an answer, and the venue is asked.
        """
        match self._input:
            case Answer(request=number):
                self.requests.answered(number)
            case Expired(request=number):
                self.requests.expired(number)
        self._input = None

    def _record(self, record: Append) -> None:
        match record.kind:
            case "intent" | "event":
                order, event = fold(self.orders, record)
                if isinstance(event, Filled):
                    if event.symbol in self.account.holdings:
                        self.account.apply(event)
                    if order is not None and order.parent_id in self._fills:
                        self._fills[order.parent_id].append(event)
            case "parent":
                self._parents += 1
                self._open[record.parent_id] = row = parent_of(record)
                if stratum := base_of(row.stratum):
                    self._arms[stratum] = self._arms.get(stratum, 0) + 1
                self._fills[record.parent_id] = []
                self.orders.forget(record.time_ns - HOUR_NS)  # as the desk does
            case "end":
                self._open.pop(record.parent_id, None)
                self._fills.pop(record.parent_id, None)
            case "funding":
                funding = _FUNDING.decode(record.body)
                if record.client_id:
                    symbol, paid_e8 = record.symbol, funding.paid_e8
                    self.account.fund(record.client_id, symbol, paid_e8, record.time_ns)
                else:  # of a simulated venue, which has no execution of it
                    self.account.pay(record.symbol, funding.paid_e8, record.time_ns)
            case "adopted":
                of = _POSITION.decode(record.body)
                self.account.adopt(of.symbol, of.lots, of.entry_e8, of.venue_ns)
            case "restated":
                number, cost_e8 = record.time_ns // DAY_NS, msgspec.json.decode(record.body)
                self.account.restate(record.symbol, number, cost_e8)
            case "equity":
                self.account.restore_marks(_MARKS.decode(record.body))
            case kind if kind.startswith("section/"):
                name = kind.removeprefix("section/")
                self._sections[name] = msgspec.json.decode(record.body, type=_KINDS[name])

    def state(self) -> CoreState:
        """The state now."""
        desk = msgspec.structs.replace(
            self._sections.get("desk", self._state.desk),
            parent_number=self._parents,
            arms=self._arms,
            open=self._open,
            fills={key: tuple(fills) for key, fills in self._fills.items()},
        )
        folded = {
            "orders": tuple(self.orders.by_id.values()),
            "executions": tuple(self.orders.executions()),
            "account": self.account.snapshot(),
            "requests": self.requests.snapshot(),
            "desk": desk,
        }
        return msgspec.structs.replace(self._state, **(self._sections | folded))
