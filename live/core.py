"""The trading core: `step(now, input) → effects`, a function of its inputs.

    public frame ─► rows ─► trader (bars, features, decision) ─► desk (algorithms, guard) ─► requests
    private frame, answer, expiry ─► evidence ─► orders, account ─► desk, reconciliation, safety
    time, links, commands ─► reconciliation, safety

No clock, thread, socket, file or random source: the worker's shell, paper trading, backtest and fault
simulation drive the same core, and the log repeats a run. In one step seconds up to now close first, then the input is
handled, then what is due by time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from execution.account import AccountState
from execution.order_machine import Order
from execution.orders import OrderEvent
from live.decisions import Decision
from live.desk import DeskState
from live.exposure import ExposureState
from live.frames import Frames, Rows
from live.gateway import Codec
from live.history import SymbolHistory
from live.labels import Labels
from live.messages import (
    Answer,
    Command,
    Effect,
    Emitter,
    Evidence,
    Expired,
    FundingReport,
    InForce,
    Input,
    Link,
    PrivateFrame,
    PublicFrame,
    Report,
    Send,
    Shadowed,
    Tick,
)
from live.reconciliation import Phase, Reconciliation, ReconciliationState
from live.requests import RequestsState
from live.safety import Mode, Safety, SafetyState
from live.symbol_state import BookWatch
from live.trader import Evaluates, Model, Trader
from market.events import Events, Kind
from market.instruments import Instrument
from market.settings import Settings
from market.units import SECOND_NS
from market.wire.results import Reject
from market.wire.stream import NEVER
from market.wire.topics import symbol_topics

_TRADE: Final = int(Kind.TRADE)


class CoreState(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of the core: what a new process goes on from. The market is not in it."""

    orders: tuple[Order, ...] = ()
    executions: tuple[tuple[str, str], ...] = ()
    account: AccountState | None = None
    requests: RequestsState = RequestsState()
    reconciliation: ReconciliationState | None = None
    safety: SafetyState | None = None
    desk: DeskState = DeskState()
    exposure: ExposureState = ExposureState()


class Closing(msgspec.Struct):
    """The shut-down: first the desk cancels, then it flattens, then reconciliation proves."""

    flatten: bool
    flattens: bool
    until_ns: int
    end_ns: int
    proving: bool = False


class Core:
    """One worker's decisions and orders. Times are epoch ns and never decrease.

    ``codec`` reads the venue's messages, ``name`` is the venue's name in records. ``at_venue``: a venue
    that states positions, funding and stops, and in whose market our orders are; else a simulated one.
    ``check`` says in what the venue's first reports contradict the settings (`live.bybit.account.problems`).
    ``rows`` are the event rows of the last public frame by symbol, for a simulated venue. ``trader`` makes
    the trader, for studies of others.
    """

    def __init__(
        self,
        settings: Settings,
        instruments: Mapping[str, Instrument],
        *,
        model: Model,
        codec: Codec,
        name: str,
        at_venue: bool,
        state: CoreState | None = None,
        evaluator: Evaluates | None = None,
        on_decision: Callable[[Decision, tuple[int, ...]], None] | None = None,
        on_midnight: Callable[[int], None] | None = None,
        check: Callable[[list[Report]], list[str]] = lambda reports: [],
        trader: Callable[..., Trader] = Trader,
    ) -> None:
        self._settings, self._codec = settings, codec
        self.trader = trader(
            settings,
            instruments,
            model=model,
            name=name,
            moves_market=at_venue,
            pays_funding=not at_venue,
            on_decision=self._decided,
            on_midnight=on_midnight,
            evaluator=evaluator,
        )
        self._on_decision = on_decision
        self.desk = self.trader.desk
        self.orders, self.account = self.desk.orders, self.desk.account
        self.requests = self.desk.requests
        state = state or CoreState()
        self._restore(state)
        emit = self._emit = self.trader.effects.append
        self._emitter = Emitter(emit)
        self.safety = Safety(instruments, settings.risk, emit, state.safety)
        self.reconciliation = Reconciliation(
            self.orders,
            self.account,
            self.requests,
            self.safety,
            instruments,
            settings,
            emit,
            state.reconciliation,
            check,
        )
        self._labels = {symbol: Labels(symbol, emit) for symbol in settings.market.symbols}
        stops = self.reconciliation.protection.entry_stop if at_venue else None
        self.desk.govern(self.mode, stops, self.reconciliation.is_started)
        self.desk.exposure.govern(self.safety, self.reconciliation.look_again)
        self._limit()
        if at_venue:
            self.desk.adopt()
        self._targets = self.trader.targets()  #: on record
        depth = settings.market.book_depth
        self._decoder = Frames(instruments, depth, instruments, follow=False)
        self._books = {
            symbol: BookWatch((symbol_topics(symbol, depth)[0],)) for symbol in instruments
        }
        self.rows: dict[str, Events] = {}
        self._closing: Closing | None = None
        self._numbered = self.requests.number  #: requests by the last second's end
        self.now_ns = self.frames = self.events = self.gaps = self.strays = 0
        self.rejects: dict[tuple[str, str], int] = {}

    def _restore(self, state: CoreState) -> None:
        self.orders.restore(state.orders, state.executions)
        if state.account is not None:
            self.account.restore(state.account)
        self.requests.restore(state.requests)
        self.desk.restore(state.desk)
        self.desk.exposure.restore(state.exposure)

    def snapshot(self) -> CoreState:
        """The state, for a checkpoint; to be encoded before the next step."""
        return CoreState(
            orders=tuple(self.orders.by_id.values()),
            executions=tuple(self.orders.executions()),
            account=self.account.snapshot(),
            requests=self.requests.snapshot(),
            reconciliation=self.reconciliation.snapshot(),
            safety=self.safety.snapshot(),
            desk=self.desk.snapshot(),
            exposure=self.desk.exposure.snapshot(),
        )

    @property
    def next_ns(self) -> int:
        """When a `Tick` is due at the latest, 0 for never; drivers give one every 100 ms anyway."""
        return self.reconciliation.next_ns

    def load(self, model: Model) -> None:
        """Decide by this model from now on; the driver gives `InForce` with it."""
        self.trader.load(model)

    def mode(self, symbol: str) -> Mode:
        """What may be done for a symbol now."""
        mode = self.safety.mode(symbol)
        if mode < Mode.PAUSE and not self.reconciliation.may_open(symbol):
            return Mode.PAUSE
        return mode

    # -- one step --------------------------------------------------------------------------------

    def begin(
        self, now_ns: int, history: Mapping[str, SymbolHistory] | None = None
    ) -> list[Effect]:
        """Start at an instant, with the history before its second if there is one."""
        self.now_ns = now_ns
        self.rows = self.trader.begin(now_ns // SECOND_NS * SECOND_NS, history)
        self._record_desk(now_ns)
        self.reconciliation.start(now_ns)
        return self.trader.drain()

    def step(self, now_ns: int, given: Input | Rows) -> list[Effect]:
        """Handle one input received at ``now_ns``; the effects, in order."""
        self.now_ns = now_ns = max(now_ns, self.now_ns)
        self.rows = {}
        match given:
            case PublicFrame():
                self._public(now_ns, given.frame)
            case Rows():
                self._close(now_ns)
                self._rows(now_ns, *given)
            case Tick():
                self._close(now_ns)
                for symbol in self.trader.symbols:
                    self.trader.react(symbol, now_ns)
                self._go_on_closing(now_ns)
            case PrivateFrame():
                self._close(now_ns - 1)
                self._learn(now_ns, self._codec.evidence(now_ns, given.frame))
            case Answer():
                self._close(now_ns - 1)
                self._answer(now_ns, given)
            case Expired():
                self._close(now_ns - 1)
                self._expired(now_ns, given)
            case Link():
                self.reconciliation.link(now_ns, given)
            case Command():
                self._command(now_ns, given)
            case Shadowed():
                self._emitter.append("shadow", given.t_ns, given, symbol=given.symbol)
            case InForce():
                self._emitter.say("info", "model in force", name=given.name, version=given.version)
        self._due(now_ns)
        return self.trader.drain()

    def step_frames(self, given: Sequence[tuple[int, PublicFrame]]) -> list[Effect]:
        """`step` for public frames with their times; they are taken together where it makes no difference."""
        effects: list[Effect] = []
        n = 0
        while n < len(given):
            if not (taken := self._together(given[n:])):
                effects += self.step(*given[n])
            n += taken or 1
        return effects + self.trader.drain()

    def _decided(self, decision: Decision, horizons_s: tuple[int, ...]) -> None:
        self._labels[decision.symbol].decided(decision, horizons_s)
        if self._on_decision is not None:
            self._on_decision(decision, horizons_s)

    def _close(self, now_ns: int) -> None:
        """Close the seconds that ended by ``now_ns``; evidence of that instant belongs before its end."""
        trader, target_ns = self.trader, now_ns // SECOND_NS * SECOND_NS
        while trader.second_ns < target_ns:
            end_ns = trader.next_end(target_ns)
            for symbol in trader.symbols:
                trader.react(symbol, end_ns)
            trader.close_second(end_ns)
            self._second(end_ns)

    def _second(self, end_ns: int) -> None:
        """What is looked at once a second."""
        for symbol, watch in self._books.items():
            book = self.trader.symbols[symbol].builder.book
            if self.frames:
                self._look(symbol, end_ns)
            if book.valid:
                mid_ticks = self.trader.symbols[symbol].view(end_ns).mid_ticks
                self.reconciliation.protection.mark(symbol, mid_ticks)
                self.desk.exposure.see(end_ns, symbol, mid_ticks)
            if book.receive_ns:
                silent_ns = max(0, end_ns - book.receive_ns)
                self.safety.see(end_ns, "stale_s", silent_ns / SECOND_NS, symbol)
                behind_ns = book.receive_ns - int(book.state[0]["publish_ns"])
                self.safety.see(end_ns, "behind_s", behind_ns / SECOND_NS, symbol)
            lost_ns = end_ns - watch.lost_ns if watch.lost_ns else 0
            self.safety.see(end_ns, "gap_s", lost_ns / SECOND_NS, symbol)
        for symbol, labels in self._labels.items():
            labels.second(end_ns, self.trader.symbols[symbol].mid_at(end_ns))
        for fact, value in self.desk.facts().items():
            self.safety.see(end_ns, fact, value)
        self.trader.cut(end_ns, self.safety.breaches)
        sent, self._numbered = self.requests.number - self._numbered, self.requests.number
        self.safety.see(end_ns, "rate_used", sent / self.safety.limits.actions_per_s)
        self.safety.second(end_ns)
        self._record_desk(end_ns)

    def _record_desk(self, now_ns: int) -> None:
        if (targets := self.trader.targets()) == self._targets:
            return
        self._targets = targets
        # Parents and their fills follow from their own records.
        desk = msgspec.structs.replace(self.desk.snapshot(), open={}, fills={})
        self._emitter.append("section/desk", now_ns, desk)

    def _due(self, now_ns: int) -> None:
        """What is due by time; what reconciliation proves is evidence like the venue's own."""
        if 0 < self.reconciliation.next_ns <= now_ns:
            self.reconciliation.step(now_ns)
        while made := self.reconciliation.made():
            self._learn(now_ns, made)
        if self.safety.strictest >= Mode.FLATTEN and self._closing is None:
            self._obey(now_ns)
        if self.safety.changed:  # a halt outlives the process that was told
            self.safety.changed = False
            self._limit()
            self._emitter.append("section/safety", now_ns, self.safety.snapshot())

    def _obey(self, now_ns: int) -> None:
        """Close or cancel at once, and as soon as what was open is cancelled: not at the next decision."""
        for symbol in self.trader.symbols:
            mode, at_rest = self.safety.mode(symbol), self.desk.at_rest(symbol)
            if mode >= Mode.FLATTEN and not (at_rest and mode is Mode.HALT):
                self.desk.pursue(symbol, 0, now_ns, None)
                self.trader.react(symbol, now_ns)

    def _limit(self) -> None:
        """The desk's limits are those of `[risk]` as tightened, its losses those not resumed from."""
        self.desk.exposure.limits = self.desk.guard.limits = self.safety.limits
        self.desk.guard.resumed = self.safety.resumed

    # -- the market ------------------------------------------------------------------------------

    def _public(self, receive_ns: int, frame: bytes) -> None:
        self.frames += 1
        decoded = self._decoder.decode_frame(receive_ns, frame)
        # The decoder's clock: a stamp that it rejects moves no time.
        now_ns = self._decoder.clock_ns
        self._close(now_ns)
        for symbol, rows in decoded.events.items():
            if len(rows):
                self._rows(now_ns, symbol, rows)
        self._gapped(now_ns, decoded.gaps)
        for control in decoded.controls:
            if control.fields["l2"] in ("refused", "restored"):
                self._emitter.say("warning", "topics " + control.fields["l2"], **control.fields)
        for reject in decoded.rejects:
            self._note_reject(reject)

    def _rows(self, now_ns: int, symbol: str, rows: Events) -> None:
        self.events += len(rows)
        if self.trader.on_rows(symbol, rows):
            self.rows[symbol] = rows
        if rows["kind"][0] <= _TRADE:
            self.trader.react(symbol, now_ns)

    def _together(self, given: Sequence[tuple[int, PublicFrame]]) -> int:
        """Take the first frames together; how many, 0 when there may be something to do after each."""
        if len(given) == 1 or given[0][0] < self.now_ns or not self._due_ns():
            return 0
        decoder = self._decoder
        for now_ns, symbol, gaps in decoder.together(given, self.trader, self._due_ns):
            self.now_ns = now_ns
            if symbol:
                self.trader.react(symbol, now_ns)
            self._gapped(now_ns, gaps)
            self._due(now_ns)
        self.frames += len(decoder.frames)
        self.events += decoder.rows_taken
        return len(decoder.frames)

    def _due_ns(self) -> int:
        """Up to when nothing is due but by what comes in; 0 when there may be something after each frame."""
        if self.safety.strictest >= Mode.FLATTEN and self._closing is None:
            return 0
        return self.reconciliation.next_ns or NEVER

    def _gapped(self, now_ns: int, gaps: int) -> None:
        self.gaps += gaps
        for symbol in self._books if gaps else ():
            self._look(symbol, now_ns)

    def _look(self, symbol: str, now_ns: int) -> None:
        """Ask for a book anew when it is not known."""
        book, watch = self.trader.symbols[symbol].builder.book, self._books[symbol]
        # A symbol that the venue takes off is silent; asked anew, the venue refuses it and says why.
        silent = now_ns - book.receive_ns >= self.safety.limits.stale_s * SECOND_NS
        if (renew := watch.look(now_ns, book.synchronised and not silent)) is not None:
            lost_s = round((now_ns - watch.lost_ns) / 1e9, 3)
            event = "book silent" if book.synchronised else "book lost"
            self._emitter.say("warning", f"{event}, asked for anew", symbol=symbol, lost_s=lost_s)
            self._emit(renew)

    def _note_reject(self, reject: Reject) -> None:
        """Count a rejected frame; of each (topic, reason) the 1st, 10th, 100th, ... is said."""
        kind = reject.topic, reject.reason
        times = self.rejects[kind] = self.rejects.get(kind, 0) + 1
        if str(times).strip("0") == "1":
            about = {"topic": reject.topic, "reason": reject.reason, "detail": reject.detail}
            self._emitter.say("warning", "frame rejected", **about, times=times)

    # -- evidence --------------------------------------------------------------------------------

    def _answer(self, now_ns: int, answer: Answer) -> None:
        send = self.requests.answered(answer.request)
        if send is None:
            self.strays += 1
            return
        self._learn(now_ns, self._codec.answer(now_ns, send.body, answer.body), send)
        self.reconciliation.answered(now_ns, send)

    def _expired(self, now_ns: int, expired: Expired) -> None:
        send = self.requests.expired(expired.request)
        if send is None:
            return
        self._emitter.say("warning", "no answer", request=send.number, reason=expired.reason)
        if (lost := self.reconciliation.lost(now_ns, send, expired.reason)) is not None:
            self._learn(now_ns, [lost])
        self.reconciliation.expired(now_ns, send)

    def _learn(self, now_ns: int, evidence: Sequence[Evidence], send: Send | None = None) -> None:
        """Fold evidence in and let reconciliation see it; then algorithms react to all of it at once."""
        changed: dict[str, None] = {}
        for told in evidence:
            for piece in self.reconciliation.unfold(told):
                if isinstance(piece, OrderEvent):
                    if symbol := self.desk.take(piece):
                        changed[symbol] = None
                elif isinstance(piece, FundingReport):
                    self.desk.book_funding(piece)
                self.reconciliation.evidence(now_ns, piece, send)
                self.desk.exposure.evidence(now_ns, piece)
        for symbol in changed:
            self.trader.react(symbol, now_ns)

    # -- commands and effects --------------------------------------------------------------------

    def _command(self, now_ns: int, command: Command) -> None:
        self._emitter.append("command", now_ns, command)
        if command.command == "stop":
            self.stop(now_ns, flatten="flatten" in command.limits, leave="leave" in command.limits)
        elif command.command == "finish":
            self._finish()
        else:
            if "lag_s" in command.limits:
                self.requests.lag_ns = round(command.limits["lag_s"] * SECOND_NS)
            self.safety.command(now_ns, command)

    def stop(self, now_ns: int, flatten: bool, leave: bool = False) -> None:
        """Shut down: nothing is decided any more; the desk cancels its orders and, with ``flatten``, closes
        its positions, each in a third of `live.closing_s`; reconciliation proves it, or does the rest, in what
        is left of it. With ``leave`` nothing is sent any more but what the evidence needs: orders rest on, and
        positions keep their stops, for the next worker.
        """
        if self._closing is None:
            self.trader.decides = False
            until_ns, end_ns = self._third(now_ns), self._third(now_ns, 3)
            self._closing = Closing(
                flatten=flatten, flattens=flatten, until_ns=until_ns, end_ns=end_ns, proving=leave
            )
            if leave:
                self._record_desk(now_ns)
                self.reconciliation.stop(now_ns, end_ns, flatten=False, leave=True)
                return
            self.desk.abandon(now_ns)
            for symbol in self.trader.symbols:
                self.trader.react(symbol, now_ns)
            self._go_on_closing(now_ns)

    def _third(self, now_ns: int, times: int = 1) -> int:
        return now_ns + round(self._settings.live.closing_s * 1e9 * times / 3)

    def _go_on_closing(self, now_ns: int) -> None:
        closing = self._closing
        if closing is None or closing.proving:
            return
        is_started = self.reconciliation.is_started()  # else the desk may send nothing
        at_rest = all(map(self.desk.at_rest, self.trader.symbols))
        if is_started and now_ns < closing.until_ns and not at_rest:
            return
        if closing.flattens and is_started:
            closing.flattens, closing.until_ns = False, self._third(now_ns)
            self.desk.flatten(now_ns)
            for symbol in self.trader.symbols:
                self.trader.react(symbol, now_ns)
            return
        closing.proving = True
        self.reconciliation.stop(now_ns, closing.end_ns, closing.flatten)

    def _finish(self) -> None:
        """After the shut-down: measure what is measured by now, say what is left."""
        self.trader.finish(self.now_ns)
        for line in self.reconciliation.left():
            self._emitter.say("error", "left at the end", what=line)

    @property
    def ended(self) -> bool:
        """Whether the shut-down is done, or out of time."""
        return self.reconciliation.phase is Phase.ENDED
