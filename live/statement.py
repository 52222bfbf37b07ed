"""The statement of a UTC day: profit realised and open, fees by liquidity, funding; against the venue's own.

    day over, executions known ─► TRANSACTIONS of the day ─► sums of both, symbol by symbol ─► rows on record
                                          ▲                        │
                                          └── differ: again, until `ROUNDS` times ┘ then the symbol halts

Money is exact, at 1e-8. Executions and funding belong to the day of the venue's time. Simulated venues have no
transaction log: their rows say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from execution.account import Account, Day, Holding, unit_e8, value_e8
from execution.tca import Row
from live.messages import Append, Effect, Query, QueryKind, QueryResult, Say, TransactionReport
from live.requests import Retries, Retry
from live.safety import Safety
from market.instruments import Instrument
from market.units import DAY_NS, MINUTE_NS, SECOND_NS

#: A day is stated so long after its end: evidence may come late.
WAIT_NS: Final = MINUTE_NS
#: A difference is a fact when it was found so many times, this far apart.
ROUNDS: Final = 3
AGAIN_NS: Final = 10 * SECOND_NS
#: Past days that are asked for at a start, at most.
_LOOK_BACK: Final = 6
#: A day's log is of many pages: it takes longer than other answers.
_PATIENCE: Final = 30


class StatementRow(Row, frozen=True, kw_only=True):
    """A UTC day of one symbol; money in quote currency at 1e-8, quantities in lots of ``lot``.

    ``open_e8`` is the unrealised profit at the day's last mid. ``compared``: against the venue's transaction log;
    ``differs`` names each figure that is another there, ``differs_e8`` is the venue's change of the balance less
    ours. ``note`` says why something is missing.
    """

    symbol: str
    date: str
    venue: str
    lot: str
    opening_lots: int
    bought_lots: int
    sold_lots: int
    closing_lots: int
    executions: int
    realised_e8: int
    open_e8: int
    maker_fees_e8: int
    taker_fees_e8: int
    funding_e8: int
    compared: bool = False
    differs: str = ""
    differs_e8: int = 0
    note: str = ""

    @property
    def change_e8(self) -> int:
        """What the day did to the balance."""
        return self.realised_e8 - self.maker_fees_e8 - self.taker_fees_e8 - self.funding_e8


def statement(account: Account, venue: str, number: int, note: str) -> list[StatementRow]:
    """The rows of a day (since the epoch), of symbols that moved or were held in it."""
    return [
        _row(account.holdings[symbol], day, venue, number, note)
        for symbol, day in sorted(account.days.get(number, {}).items())
    ]


def _row(holding: Holding, day: Day, venue: str, number: int, note: str) -> StatementRow:
    instrument, lots = holding.instrument, day.closing_lots
    open_e8 = 0
    if lots and day.mark_ticks is not None:
        open_e8 = round(unit_e8(instrument) * lots * day.mark_ticks) - day.closing_cost_e8
    elif lots:
        note = "; ".join(filter(None, (note, "the last mid is not known: open profit left out")))
    return StatementRow(
        symbol=instrument.symbol,
        date=date_of(number),
        venue=venue,
        lot=instrument.lot,
        opening_lots=day.opening_lots,
        bought_lots=day.bought_lots,
        sold_lots=day.sold_lots,
        closing_lots=lots,
        executions=day.executions,
        realised_e8=day.realised_e8,
        open_e8=open_e8,
        maker_fees_e8=day.maker_fees_e8,
        taker_fees_e8=day.taker_fees_e8,
        funding_e8=day.funding_e8,
        note=note,
    )


def date_of(number: int) -> str:
    """The date of a UTC day since the epoch."""
    return f"{datetime.fromtimestamp(number * 86_400, UTC):%Y-%m-%d}"


def differences(
    instrument: Instrument, day: Day, lines: Sequence[TransactionReport]
) -> tuple[dict[str, tuple[int, int]], Holding]:
    """Figure -> (ours, the venue's), where they differ; and what our arithmetic makes of the venue's executions
    in the venue's order. ``lines`` are the venue's of the symbol, oldest first.

    Profit is compared with that, so that evidence that came in another order makes no difference.
    """
    fold = Holding(
        instrument=instrument, position_lots=day.opening_lots, cost_e8=day.opening_cost_e8
    )
    trades = [line for line in lines if line.lots]
    for line in trades:
        fold.trade(line.lots, line.price_ticks, 0)
    pairs = {
        "executions": (day.executions, len(trades)),
        "lots bought": (day.bought_lots, fold.bought_lots),
        "lots sold": (day.sold_lots, fold.sold_lots),
        "value": (
            day.value_e8,
            sum(value_e8(instrument, line.price_ticks, line.lots) for line in trades),
        ),
        "fees": (day.fees_e8, sum(line.fee_e8 for line in lines)),
        "funding": (day.funding_e8, sum(line.funding_e8 for line in lines)),
        "realised": (fold.realised_e8, sum(line.cash_e8 for line in lines)),
        "balance": (
            fold.realised_e8 - day.fees_e8 - day.funding_e8,
            sum(line.change_e8 for line in lines),
        ),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}, fold


class StatementState(msgspec.Struct, kw_only=True):
    """A checkpoint of `Statements`: since when the log has every execution, and the last day compared."""

    since_ns: int = 0
    day: int = 0


class Statements:
    """Compares each past day with the venue's transaction log, once. ``state`` is the caller's to keep."""

    def __init__(
        self,
        account: Account,
        retries: Retries,
        safety: Safety,
        venue: str,
        emit: Callable[[Effect], None],
        state: StatementState,
    ) -> None:
        self._account, self._retries, self._safety = account, retries, safety
        self._venue, self._emit, self._state = venue, emit, state
        self._rounds: dict[int, int] = {}

    def look(self, now_ns: int, venue_ns: int) -> None:
        """Executions up to ``venue_ns`` are known: ask for the days that ended before it."""
        state, last = self._state, (venue_ns - WAIT_NS) // DAY_NS - 1
        if not state.since_ns:  # the first start: what was before is not on record
            state.since_ns, state.day = now_ns, last
            self._account.days.clear()
        for number in range(max(state.day + 1, last - _LOOK_BACK), last + 1):
            since_ns = max(number * DAY_NS, state.since_ns)
            query = Query(kind=QueryKind.TRANSACTIONS, since_ns=since_ns)
            key = f"audit/{query.kind}/{number}"
            self._retries.want(now_ns, key, query, patience=_PATIENCE)

    def result(self, now_ns: int, retry: Retry, result: QueryResult) -> None:
        """A complete answer: the day's rows on record, or the question once more where sums differ."""
        number = result.query.since_ns // DAY_NS
        lines = [line for line in result.reports if isinstance(line, TransactionReport)]
        known = [
            x for x in lines if x.symbol in self._account.holdings and (x.lots or x.funding_e8)
        ]
        compared = self._compared(number, known)
        differ = [row for row in compared if row.differs]
        self._rounds[number] = rounds = self._rounds.get(number, 0) + 1
        if differ and rounds < ROUNDS:
            self._retries.again(now_ns, retry, AGAIN_NS)
            return
        self._retries.done(retry.key)
        self._state.day = max(self._state.day, number)
        _record(self._emit, number, compared)
        if len(known) < len(lines):
            kinds = sorted({f"{x.kind} {x.symbol}".strip() for x in lines if x not in known})
            self._say("warning", "transactions of others", date=date_of(number), kinds=kinds)
        for row in differ:
            about = {"symbol": row.symbol, "date": row.date, "what": row.differs}
            self._say("error", "statement differs", **about)
            self._safety.see(now_ns, "statement", 1.0, row.symbol)
        if compared and not differ:
            self._say("info", "statement agrees", date=date_of(number), symbols=len(compared))

    def _compared(self, number: int, known: Iterable[TransactionReport]) -> list[StatementRow]:
        account, of = self._account, {s: list[TransactionReport]() for s in self._account.holdings}
        for line in known:
            of[line.symbol].append(line)
            account.day_of(line.symbol, number * DAY_NS)
        rows = []
        for row in statement(account, self._venue, number, ""):
            day = account.days[number][row.symbol]
            if day.adopted:
                note = "not compared: the position was taken from the venue"
                rows.append(msgspec.structs.replace(row, note=note))
                continue
            holding = account.holdings[row.symbol]
            found, fold = differences(holding.instrument, day, of[row.symbol])
            if not found and account.restate(row.symbol, number, fold.cost_e8):
                body = msgspec.json.encode(
                    fold.cost_e8
                )  # the next day begins with it, after a restart too
                at_ns = number * DAY_NS
                self._emit(Append(kind="restated", time_ns=at_ns, body=body, symbol=row.symbol))
                row = _row(holding, day, self._venue, number, "")
            ours, theirs = found.get("balance", (0, 0))
            said = ", ".join(
                f"{name} {here} here, {there} there" for name, (here, there) in found.items()
            )
            rows.append(
                msgspec.structs.replace(row, compared=True, differs=said, differs_e8=theirs - ours)
            )
        return rows

    def _say(self, level: str, event: str, **fields: object) -> None:
        self._emit(Say(level=level, event=event, fields=fields))


class DailyStatement:
    """States each day of a simulated venue after its end, and of every venue the day so far at the end."""

    def __init__(
        self, account: Account, venue: str, simulated: bool, emit: Callable[[Effect], None]
    ) -> None:
        self._account, self._venue, self._emit = account, venue, emit
        self._simulated, self._stated = simulated, -1

    def second(self, now_ns: int) -> None:
        """State the days that are over."""
        number = (now_ns - WAIT_NS) // DAY_NS
        if self._simulated and number != self._stated:
            self._stated = number
            for each in sorted(n for n in self._account.days if n < number):
                self._state(each, "not compared: a simulated venue has no transaction log")

    def finish(self, now_ns: int) -> None:
        """State the present day up to now."""
        self._state(now_ns // DAY_NS, "not compared: the day is not over")

    def _state(self, number: int, note: str) -> None:
        _record(self._emit, number, statement(self._account, self._venue, number, note))


def _record(emit: Callable[[Effect], None], number: int, rows: Iterable[StatementRow]) -> None:
    for row in rows:
        body = msgspec.json.encode(row)
        emit(Append(kind="statement", time_ns=number * DAY_NS, body=body, symbol=row.symbol))
