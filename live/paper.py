"""Paper trading: the core driven over simulated venues, which are fed with the same rows.

The rules of the market are the simulator's, so paper, backtest and the execution study agree. What happens
when: the core is stepped at receive times of frames, on a time grid of `GRID_NS`, and when evidence in
flight arrives; bare time adds no other instant. So a run is a function of its events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Final

import msgspec
import numpy as np

from execution.account import rate_of_bps
from execution.orders import Action, Amend, Cancel, Event, OrderReport, OrderState, Submit
from execution.simulation.simulator import Simulator, latency_of
from live.core import Core
from live.desk import TIMER_NS
from live.frames import Rows
from live.gateway import PlainCodec
from live.history import SymbolHistory
from live.messages import (
    Answer,
    CancelAll,
    Command,
    Effect,
    Evidence,
    Input,
    PositionReport,
    PrivateFrame,
    Query,
    QueryKind,
    QueryResult,
    Report,
    Send,
    Tick,
)
from market.events import Events, Flag
from market.instruments import Instrument
from market.settings import FEE_ROWS_BPS, Settings
from market.units import SECOND_NS

#: Between frames a market in which we have orders moves on multiples of this.
GRID_NS: Final = TIMER_NS

_LAST, _CHECKPOINT = int(Flag.LAST), int(Flag.CHECKPOINT)


class PaperVenue(Simulator):
    """A simulator with the settings' latencies, queue model and fee row, in mode ``partial``: matching and
    queue positions are `execution.simulation.queue`.

    Its results are honest when the latencies are no shorter and the fees no lower than the real ones;
    the queue model is an assumption whose bounds a backtest reports. ``positions`` are signed lots of
    earlier runs.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        settings: Settings,
        positions: Mapping[str, int] | None = None,
    ) -> None:
        taker_bps, maker_bps = FEE_ROWS_BPS[settings.model.fee_row]
        super().__init__(
            instruments,
            latency=latency_of(settings.execution),
            queue=settings.execution.queue,
            taker_fee=rate_of_bps(taker_bps),
            maker_fee=rate_of_bps(maker_bps),
            stale_after_ns=round(settings.market.stale_after_s * 1e9),
            window_levels=settings.market.book_depth,
            positions={symbol: lots for symbol, lots in (positions or {}).items() if lots},
        )


def paper_venues(
    instruments: Mapping[str, Instrument],
    settings: Settings,
    positions: Mapping[str, int] | None = None,
) -> dict[str, PaperVenue]:
    """One venue per symbol, so that no symbol's clock depends on another's frames."""
    return {
        symbol: PaperVenue(
            {symbol: instrument}, settings, {symbol: (positions or {}).get(symbol, 0)}
        )
        for symbol, instrument in instruments.items()
    }


def on_paper(settings: Settings) -> Settings:
    """The settings of a run at a simulated venue, whatever venue a worker of theirs trades at."""
    return msgspec.structs.replace(
        settings, live=msgspec.structs.replace(settings.live, venue="paper")
    )


class PaperDriver:
    """Drives a core over event rows of a lake and its simulated venues, as the worker's shell does over frames.

    Rows wait until their second has ended. While a symbol has nothing open, its market need not be stepped:
    its second is taken at once. ``on_effect`` gets every effect but the requests, which go to the venues.
    """

    def __init__(
        self,
        core: Core,
        venues: Mapping[str, Simulator],
        on_effect: Callable[[Effect], None] = lambda effect: None,
    ) -> None:
        self.core, self.trader, self.venues = core, core.trader, venues
        self._gateway, self._on_effect = PaperGateway(venues), on_effect
        self._waiting: dict[str, list[Events]] = {symbol: [] for symbol in core.trader.symbols}

    def begin(self, second_ns: int, history: Mapping[str, SymbolHistory] | None = None) -> None:
        """Start at a whole second, with the history before it if there is one."""
        effects = self.core.begin(second_ns, history)
        self._gateway.take(self.core.rows)
        self._carry_out(second_ns, effects)

    def on_events(self, symbol: str, events: Events) -> None:
        """Take event rows of whole frames of one symbol and one second, in receive order.

        The result does not depend on how a second's rows are split into calls.
        """
        if len(events):
            # Seconds only: events of other symbols before this one may still be to come.
            self.advance(int(events["receive_ns"][0]))
            self._waiting[symbol].append(events)

    def advance(self, now_ns: int) -> None:
        """Close the seconds that have ended by ``now_ns``; all earlier events must have been taken."""
        trader, target_ns = self.trader, now_ns // SECOND_NS * SECOND_NS
        while trader.second_ns < target_ns:
            end_ns = target_ns if self._idle else trader.second_ns + SECOND_NS
            self._take_waiting()
            self._pass(end_ns)

    def advance_exactly(self, now_ns: int) -> None:
        """`advance`, and take what waits of the second that ``now_ns`` is in: at a stream's end."""
        self.advance(now_ns)
        self._take_waiting()
        self._pass(now_ns)

    @property
    def market_ns(self) -> int:
        """The time that the core has reached."""
        return self.core.now_ns

    def close(self, flatten: bool) -> None:
        """End of the stream: the core shuts down (`Core.stop`) and says what is left as an error."""
        core = self.core
        waiting = [
            int(part["receive_ns"][-1]) for parts in self._waiting.values() for part in parts
        ]
        now_ns = max(self.trader.last_event_ns, core.now_ns, *waiting)
        self.advance_exactly(now_ns)
        reason = "the stream ended"
        limits = {"flatten": 1.0} if flatten else {}
        self._step(now_ns, Command(command="stop", who="driver", reason=reason, limits=limits))
        while not core.ended:
            self._pass((core.now_ns // GRID_NS + 1) * GRID_NS, steps=True)
        self._step(core.now_ns, Command(command="finish", who="driver", reason=reason))

    @property
    def _idle(self) -> bool:
        """Nothing is open anywhere, nothing waits and nothing is due."""
        return (
            not any(self._waiting.values())
            and not self._gateway.awaited
            and not self.core.next_ns
            and all(map(self._at_rest, self._waiting))
        )

    def _at_rest(self, symbol: str) -> bool:
        return self.trader.desk.at_rest(symbol) and self.venues[symbol].idle

    def _take_waiting(self) -> None:
        """The rows of the second in progress: frame by frame, by time, where something is open."""
        whole, frames = list[Rows](), list[tuple[int, str, Events]]()
        for symbol, parts in self._waiting.items():
            if not parts:
                continue
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
            parts.clear()
            if self._at_rest(symbol):
                whole += [Rows(symbol, part) for part in _apart(rows)]
            else:
                frames += [(int(part["receive_ns"][0]), symbol, part) for part in _frames(rows)]
        for now_ns, symbol, rows in sorted(frames, key=itemgetter(0)):
            self._pass(now_ns)
            self._step(now_ns, Rows(symbol, rows))
        for given in whole:  # nothing looks at them within the second, so they move no time
            self._step(self.core.now_ns, given)

    def _pass(self, until_ns: int, steps: bool = False) -> None:
        """Advance time: evidence as it comes, and a tick at each multiple of `GRID_NS` while something is open."""
        core = self.core
        while core.now_ns < until_ns:
            grid_ns = (core.now_ns // GRID_NS + 1) * GRID_NS
            if steps or not all(map(self._at_rest, self._waiting)) or 0 < core.next_ns <= grid_ns:
                stop_ns = min(until_ns, grid_ns)
            else:
                stop_ns = until_ns
            for now_ns, given in self._gateway.until(stop_ns):
                self._step(now_ns, given)
            if stop_ns % GRID_NS == 0:
                self._step(stop_ns, Tick())
            elif stop_ns == until_ns:
                return

    def _step(self, now_ns: int, given: Input | Rows) -> None:
        effects = self.core.step(now_ns, given)
        if self.core.rows:
            self._gateway.take(self.core.rows)
        self._carry_out(now_ns, effects)

    def _carry_out(self, now_ns: int, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._gateway.send(now_ns, effect)
            else:
                self._on_effect(effect)


def _frames(rows: Events) -> list[Events]:
    ends = np.flatnonzero(rows["flags"] & _LAST) + 1
    return [part for part in np.split(rows, ends) if len(part)]


def _apart(rows: Events) -> list[Events]:
    """All rows at once, unless some restate a book, which a trader takes frame by frame."""
    return _frames(rows) if (rows["flags"] & _CHECKPOINT).any() else [rows]


class PaperGateway:
    """A gateway to simulated venues, for a driver of the core: requests go in, evidence comes out in time.

    Orders and executions of an earlier process are unknown here: an order that is asked for has ended.
    """

    def __init__(self, venues: Mapping[str, Simulator]) -> None:
        self.codec = PlainCodec()
        self._venues = venues
        self._symbols: dict[str, str] = {}  #: client id -> symbol
        self._answers: deque[tuple[int, Answer]] = deque()

    @property
    def awaited(self) -> bool:
        """Whether an answer is still to be read."""
        return bool(self._answers)

    def take(self, rows: Mapping[str, Events]) -> None:
        """Rows of the last frame (`Core.rows`)."""
        for symbol, events in rows.items():
            self._venues[symbol].on_events(symbol, events)

    def send(self, now_ns: int, send: Send) -> None:
        """Send a request; orders are answered by evidence, everything else at once."""
        body, evidence = send.body, list[Evidence]()
        match body:
            case Submit():
                self._symbols[body.client_id] = body.symbol
                self._order(now_ns, body.symbol, body)
            case Amend() | Cancel():
                self._order(
                    now_ns, self._symbols.get(body.client_id, next(iter(self._venues))), body
                )
            case CancelAll():
                for client_id, symbol in self._symbols.items():
                    if symbol == body.symbol:
                        self._order(now_ns, symbol, Cancel(client_id=client_id))
            case Query():
                evidence = [self._result(now_ns, body)]
        self._answers.append(
            (now_ns, Answer(request=send.number, body=self.codec.encode(evidence)))
        )

    def _order(self, now_ns: int, symbol: str, action: Action) -> None:
        self._venues[symbol].advance(now_ns)
        self._venues[symbol].send([action])

    def _result(self, now_ns: int, query: Query) -> QueryResult:
        orders: tuple[Event, ...] = ()
        reports: tuple[Report, ...] = ()
        if query.kind is QueryKind.POSITION:
            lots = self._venues[query.symbol].position_lots(query.symbol)
            reports = (PositionReport(symbol=query.symbol, lots=lots, venue_ns=now_ns),)
        elif query.kind is QueryKind.ORDER and query.client_id not in self._symbols:
            ended = OrderReport(
                client_id=query.client_id,
                time_ns=now_ns,
                venue_ns=now_ns,
                venue_order_id="",
                symbol=query.symbol,
                side=0,
                state=OrderState.CANCELLED,
                price_ticks=0,
                qty_lots=0,
                filled_lots=0,
                reason="the paper venue ended with its process",
            )
            orders = (ended,)
        return QueryResult(
            query=query, complete=True, venue_ns=now_ns, orders=orders, reports=reports
        )

    def until(self, now_ns: int) -> Iterator[tuple[int, Input]]:
        """What has come by ``now_ns``, in order of time. Requests may be sent while it is read.

        A venue stops at its next outcome until that has been read, so that a request in reaction to it
        leaves at its time.
        """
        waiting: dict[str, tuple[int, list[Event]]] = {}
        while True:
            for symbol, venue in self._venues.items():
                if symbol not in waiting and not venue.idle:
                    time_ns = venue.advance(now_ns, stop_at_outcome=True)
                    if events := list(venue.poll()):
                        waiting[symbol] = time_ns, events
            answered = bool(self._answers) and self._answers[0][0] <= now_ns
            symbol = min(waiting, key=lambda name: waiting[name][0], default="")
            if answered and not (symbol and waiting[symbol][0] < self._answers[0][0]):
                yield self._answers.popleft()
            elif symbol:
                time_ns, events = waiting.pop(symbol)
                yield time_ns, PrivateFrame(frame=self.codec.encode(list[Evidence](events)))
            else:
                return
