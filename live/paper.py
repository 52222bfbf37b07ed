"""Paper trading: the trader driven over simulated venues, which are fed with the same rows.

The rules of the market are the simulator's, so paper, backtest and the execution study agree. What happens
when: a symbol's market moves at the receive times of its own frames, on a time grid of `GRID_NS`, and when
evidence in flight arrives; bare time adds no other instant. So a run is a function of its events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from execution.account import rate_of_bps
from execution.orders import Action, Amend, Cancel, Event, OrderReport, OrderState, Submit
from execution.simulation.simulator import Simulator, latency_of
from live.desk import TIMER_NS
from live.gateway import PlainCodec
from live.history import SymbolHistory
from live.messages import (
    Answer,
    CancelAll,
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
)
from live.trader import Trader
from market.events import Events, Flag, Kind
from market.instruments import Instrument
from market.settings import FEE_ROWS_BPS, Settings
from market.units import SECOND_NS

#: Between frames a market in which we have orders moves on multiples of this.
GRID_NS: Final = TIMER_NS

#: At the end of a run open orders get this long to be cancelled, and positions to be closed.
CLOSING_NS: Final = 5 * SECOND_NS

_TRADE: Final = int(Kind.TRADE)
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


class PaperDriver:
    """Drives a trader over event rows and its simulated venues, a symbol at a time within each second.

    ``on_effect`` gets every effect but the requests, which go to the venues.
    """

    def __init__(
        self,
        trader: Trader,
        venues: Mapping[str, Simulator],
        on_effect: Callable[[Effect], None] = lambda effect: None,
    ) -> None:
        self.trader, self.venues, self._on_effect = trader, venues, on_effect
        self._now_ns = dict.fromkeys(
            trader.symbols, 0
        )  #: receive time that each market has reached

    def begin(self, second_ns: int, history: Mapping[str, SymbolHistory] | None = None) -> None:
        """Start at a whole second, with the history before it if there is one."""
        for symbol, rows in self.trader.begin(second_ns, history).items():
            self.venues[symbol].on_events(symbol, rows)
        self._now_ns = dict.fromkeys(self._now_ns, second_ns)

    def on_events(self, symbol: str, events: Events) -> None:
        """Take event rows of whole frames of one symbol and one second, in receive order.

        The result does not depend on how a second's rows are split into calls.
        """
        if not len(events):
            return
        # Seconds only: events of other symbols before this one may still be to come.
        self._close_until(int(events["receive_ns"][0]))
        restates = bool((events["flags"] & _CHECKPOINT).any())
        start = 0
        while start < len(events):
            if not restates and self._at_rest(symbol):
                self._take(symbol, events[start:])
                self._now_ns[symbol] = int(events["receive_ns"][-1])
                return
            ends = events["flags"][start:] & _LAST
            end = start + int(ends.argmax()) + 1 if ends.any() else len(events)
            self._frame(symbol, events[start:end])
            start = end

    def advance(self, now_ns: int) -> None:
        """Advance time to ``now_ns``; all earlier events must have been taken.

        Closes the seconds before it, and advances each market to the last instant of the grid.
        """
        self._close_until(now_ns)
        for symbol in self.venues:
            self._pass(symbol, now_ns // GRID_NS * GRID_NS)

    def advance_exactly(self, now_ns: int) -> None:
        """`advance`, and every market to ``now_ns`` itself instead of the grid: at a stream's end."""
        self.advance(now_ns)
        for symbol in self.venues:
            self._pass(symbol, now_ns)

    @property
    def market_ns(self) -> int:
        """The latest time that a market has reached."""
        return max(self._now_ns.values())

    def close(self, flatten: bool) -> None:
        """End of the stream: cancel open orders, with ``flatten`` close positions, measure costs.

        Cancelling and flattening take at most `CLOSING_NS` each; what is left is said as an error.
        """
        now_ns = max(self.trader.last_event_ns, self.market_ns)
        self.advance_exactly(now_ns)
        self.trader.settle_funding(wait_ns=0)
        self.trader.desk.abandon(now_ns)
        now_ns = self._wait(now_ns)
        if flatten:
            for venue in self.venues.values():
                venue.advance(now_ns)  # an idle one was left at the end of the last second
            self.trader.desk.flatten(now_ns)
            now_ns = self._wait(now_ns)
        desk = self.trader.desk
        desk.finish(now_ns)
        left = [f"order {order.client_id}" for order in desk.orders.open()]
        if flatten:
            left += [f"position in {s}" for s in self.venues if desk.position_lots(s)]
        for what in left:
            desk.say("error", "left at the end", what=what)
        self._carry_out()

    def _wait(self, now_ns: int) -> int:
        until_ns = now_ns + CLOSING_NS
        for symbol, venue in self.venues.items():
            self._react(symbol, now_ns, venue.poll())
        while any(not self._at_rest(symbol) for symbol in self.venues) and now_ns < until_ns:
            now_ns = (now_ns // GRID_NS + 1) * GRID_NS
            for symbol in self.venues:
                self._pass(symbol, now_ns)
        return now_ns

    def _at_rest(self, symbol: str) -> bool:
        """No parent or order is open, so the market need not be stepped within the second."""
        return not self.trader.desk.has_parent(symbol) and self.venues[symbol].idle

    def _take(self, symbol: str, rows: Events) -> None:
        if self.trader.on_rows(symbol, rows):
            self.venues[symbol].on_events(symbol, rows)

    def _frame(self, symbol: str, frame: Events) -> None:
        """One frame while orders are open: advance to it, apply it, react."""
        now_ns = int(frame["receive_ns"][0])
        if frame["kind"][0] > _TRADE:
            self._take(symbol, frame)
            return
        self._pass(symbol, now_ns)
        self._take(symbol, frame)
        self.venues[symbol].advance(now_ns)
        self._react(symbol, now_ns, self.venues[symbol].poll())

    def _pass(self, symbol: str, until_ns: int) -> None:
        """Advance a symbol's market, stopping at the grid and at each outcome."""
        now_ns = self._now_ns[symbol]
        while now_ns < until_ns:
            if self._at_rest(symbol):
                now_ns = until_ns
                break
            stop_ns = min(until_ns, (now_ns // GRID_NS + 1) * GRID_NS)
            while now_ns < stop_ns:
                venue = self.venues[symbol]
                now_ns = venue.advance(stop_ns, stop_at_outcome=True)
                evidence = venue.poll()
                # Not at the instant of a frame that is still to be taken.
                if evidence or now_ns % GRID_NS == 0:
                    self._react(symbol, now_ns, evidence)
        self._now_ns[symbol] = max(now_ns, self._now_ns[symbol])

    def _close_until(self, now_ns: int) -> None:
        trader, target_ns = self.trader, now_ns // SECOND_NS * SECOND_NS
        while trader.second_ns < target_ns:
            end_ns = trader.next_end(target_ns)
            for symbol, venue in self.venues.items():
                self._pass(symbol, end_ns)
                venue.advance(end_ns)
            trader.close_second(end_ns)
            self._carry_out()

    def _react(self, symbol: str, now_ns: int, evidence: Sequence[Event]) -> None:
        self.trader.react(symbol, now_ns, evidence)
        self._carry_out()

    def _carry_out(self) -> None:
        for effect in self.trader.drain():
            if not isinstance(effect, Send):
                self._on_effect(effect)
            elif isinstance(effect.body, Submit):
                self.venues[effect.body.symbol].send([effect.body])
            elif isinstance(effect.body, Amend | Cancel):
                order = self.trader.desk.orders.by_id[effect.body.client_id]
                self.venues[order.symbol].send([effect.body])


class PaperGateway:
    """A gateway to simulated venues, for a driver of the core: requests go in, evidence comes out in time.

    Orders and executions of an earlier process are unknown here: an order that is asked for has ended.
    """

    def __init__(self, venues: Mapping[str, Simulator]) -> None:
        self.codec = PlainCodec()
        self._venues = venues
        self._symbols: dict[str, str] = {}  #: client id -> symbol
        self._answers: deque[tuple[int, Answer]] = deque()

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
