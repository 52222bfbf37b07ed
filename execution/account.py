"""Position, realised profit and balance from fills and funding: exact integers at 1e-8.

For a linear perpetual only realised profit, fees and funding move the balance; the notional never
does. With v the signed notional of each fill (price × quantity, positive when bought), the books
balance to the last unit at every instant:

    equity - opening balance = position × mark price - Σ v - fees - funding

A remainder of a division is rounded against us (fees, funding) or stays in the cost of the open
position (partial close), so that money neither appears nor vanishes.

`Account` is the only place of position and money: `snapshot` and `restore` carry it from one process to
the next, with cost basis, equity peak and the day's opening equity.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Final

import msgspec

from execution.orders import Filled, Liquidity
from market.errors import DataError
from market.instruments import Instrument
from market.units import DAY_NS, E8, HOUR_NS

#: An execution is known by its id for this long by the venue's time, longer than venues report one.
MEMORY_NS: Final = 8 * DAY_NS
#: Days whose sums are kept.
DAYS: Final = 9


@lru_cache(maxsize=256)
def unit_e8(instrument: Instrument) -> int:
    """Notional of one lot at a price of one tick, at 1e-8; DataError when it is not whole."""
    unit = Decimal(instrument.tick) * Decimal(instrument.lot) * E8
    if unit != int(unit) or unit <= 0:
        raise DataError(
            f"{instrument.symbol}: tick {instrument.tick} × lot {instrument.lot} is not a positive "
            "multiple of 1e-8, in which money is counted; it can be recorded, and not traded"
        )
    return int(unit)


def value_e8(instrument: Instrument, price_ticks: int, qty_lots: int) -> int:
    """Notional, price × quantity, in quote currency at 1e-8; exact."""
    return unit_e8(instrument) * price_ticks * qty_lots


def fee_e8(notional_e8: int, rate: str) -> int:
    """Notional × rate, rounded up to 1e-8: a fee is never too small, a rebate never too large.

    ``rate`` is a decimal string, a fraction of notional; negative for a rebate.
    """
    numerator, denominator = _fraction(rate)
    return -(-notional_e8 * numerator // denominator)


@lru_cache(maxsize=256)
def _fraction(rate: str) -> tuple[int, int]:
    return Decimal(rate).as_integer_ratio()


def rate_of_bps(bps: float) -> str:
    """Basis points as the exact decimal fraction that fees are computed by: 5.5 → "0.00055"."""
    return f"{(Decimal(str(bps)) / 10_000).normalize():f}"


def funding_e8(instrument: Instrument, position_lots: int, mark_e8: int, rate_e8: int) -> int:
    """Funding payment at 1e-8, positive when paid: position × mark price × rate, rounded up.

    ``mark_e8`` is the mark price at settlement and ``rate_e8`` the funding rate, both at 1e-8
    (the units of ticker rows). At a positive rate longs pay shorts.
    """
    exact = Decimal(instrument.lot).as_integer_ratio()
    numerator = position_lots * exact[0] * mark_e8 * rate_e8
    return -(-numerator // (exact[1] * E8))


class Holding(msgspec.Struct, kw_only=True):
    """One symbol's position and its profit, fees and funding so far; all money at 1e-8."""

    instrument: Instrument
    position_lots: int = 0
    #: Signed entry notional of the open position: positive for a long, negative for a short.
    cost_e8: int = 0
    realised_e8: int = 0
    fees_e8: int = 0
    funding_e8: int = 0
    #: Opening fees of the open position; part of ``fees_e8``.
    open_fees_e8: int = 0
    #: Profit of closed positions after their fees, as the venue reports it (closed PnL).
    closed_e8: int = 0
    bought_lots: int = 0
    sold_lots: int = 0
    turnover_e8: int = 0
    adopted_ns: int = -1  #: the position holds every execution up to this venue time, booked or not

    @property
    def entry_ticks(self) -> Fraction | None:
        """Average entry price in ticks, exact; None when flat."""
        if not self.position_lots:
            return None
        return Fraction(self.cost_e8, self.position_lots * unit_e8(self.instrument))

    def unrealised_e8(self, mark_ticks: int) -> int:
        """Unrealised profit of the position at the mark, without the cost of closing."""
        return value_e8(self.instrument, mark_ticks, self.position_lots) - self.cost_e8

    def trade(self, signed_lots: int, price_ticks: int, fee: int) -> int:
        """Book one execution of ``signed_lots`` (positive bought) at a price.

        Returns the closed PnL: the profit of the part of the position that it closed, less that
        part's share of the opening fees and the closing fee. Remainders stay with the open position.
        """
        value = value_e8(self.instrument, price_ticks, signed_lots)
        position, closed_pnl = self.position_lots, 0
        if position * signed_lots < 0:
            closed = -signed_lots if abs(signed_lots) <= abs(position) else position
            cost = self.cost_e8 * closed // position
            proceeds = value_e8(self.instrument, price_ticks, closed)
            opening = self.open_fees_e8 * closed // position
            closing = fee * abs(closed) // abs(signed_lots)
            closed_pnl = proceeds - cost - opening - closing
            self.realised_e8 += proceeds - cost
            self.cost_e8 += value + proceeds - cost
            self.open_fees_e8 += fee - opening - closing
            self.closed_e8 += closed_pnl
        else:
            self.cost_e8 += value
            self.open_fees_e8 += fee
        self.position_lots += signed_lots
        self.fees_e8 += fee
        self.turnover_e8 += abs(value)
        self.bought_lots += max(0, signed_lots)
        self.sold_lots += max(0, -signed_lots)
        return closed_pnl


class Day(msgspec.Struct, kw_only=True):
    """What one symbol's executions and funding of a UTC day, by the venue's time, came to; money at 1e-8."""

    opening_lots: int = 0
    opening_cost_e8: int = 0
    executions: int = 0
    bought_lots: int = 0
    sold_lots: int = 0
    value_e8: int = 0  #: of what was bought less what was sold
    realised_e8: int = 0
    maker_fees_e8: int = 0
    taker_fees_e8: int = 0
    funding_e8: int = 0
    adopted: bool = False  #: the position was taken from the venue
    mark_ticks: float | None = None  #: the day's last mid

    @property
    def closing_lots(self) -> int:
        return self.opening_lots + self.bought_lots - self.sold_lots

    @property
    def closing_cost_e8(self) -> int:
        """Signed entry notional of what is left: v = Δcost - realised for every execution."""
        return self.opening_cost_e8 + self.value_e8 + self.realised_e8

    @property
    def fees_e8(self) -> int:
        return self.maker_fees_e8 + self.taker_fees_e8


class AccountState(msgspec.Struct, kw_only=True):
    """What an account is at an instant; money at 1e-8, times epoch ns."""

    opening_e8: int = 0
    holdings: dict[str, Holding] = {}
    equity_e8: int  #: at the last mark
    peak_e8: int
    day: int = -1  #: UTC day since the epoch, of the last mark
    day_opening_e8: int
    executions: dict[str, int] = {}  #: execution id -> venue time, of trades and funding
    recent: dict[str, list[tuple[int, int]]] = {}  #: symbol -> (venue time, signed lots)
    days: dict[int, dict[str, Day]] = {}  #: UTC day since the epoch -> by symbol, the newest


class Account:
    """Balance and positions over several symbols: the signed sum of executions, and funding.

    ``holdings`` has a `Holding` for every symbol. ``marked_e8`` is the equity at the last `mark`,
    ``peak_e8`` the highest so far, ``day_opening_e8`` the first of the UTC day; ``forgotten`` counts
    execution ids that left memory.
    """

    def __init__(self, instruments: Mapping[str, Instrument], opening_e8: int = 0) -> None:
        self.opening_e8 = self.marked_e8 = self.peak_e8 = self.day_opening_e8 = opening_e8
        #: The venue's balance less ours: what was transferred, and what the log lacks.
        self.apart_e8 = 0
        self.day = -1
        self.forgotten = 0
        self.days: dict[int, dict[str, Day]] = {}
        self.holdings = {
            symbol: Holding(instrument=instrument) for symbol, instrument in instruments.items()
        }
        self._mids: dict[str, float] = {}
        self._executions: dict[str, int] = {}
        self._newest_ns = -1 << 62
        self._recent: dict[str, deque[tuple[int, int]]] = {
            symbol: deque() for symbol in instruments
        }

    def position_lots(self, symbol: str) -> int:
        """Signed position; 0 for a symbol that the account does not know."""
        holding = self.holdings.get(symbol)
        return holding.position_lots if holding is not None else 0

    def apply(self, fill: Filled) -> bool:
        """Book an execution, of an order of ours or not; False for one that is booked already.

        Where two orders of one account meet, both sides have the same id.

        Raises KeyError for a symbol that the account does not know.
        """
        holding = self.holdings[fill.symbol]
        if fill.venue_ns <= holding.adopted_ns or not self._is_new(
            f"{fill.exec_id}/{fill.side:+d}", fill.venue_ns
        ):
            return False
        lots, realised_e8 = fill.side * fill.qty_lots, holding.realised_e8
        day = self.day_of(fill.symbol, fill.venue_ns)
        holding.trade(lots, fill.price_ticks, fill.fee_e8)
        self._sum(day, fill, holding.realised_e8 - realised_e8)
        recent = self._recent[fill.symbol]
        recent.append((fill.venue_ns, fill.side * fill.qty_lots))
        while recent[0][0] < fill.venue_ns - HOUR_NS:
            recent.popleft()
        return True

    def day_of(self, symbol: str, venue_ns: int) -> Day:
        """The sums of the day of a time; asked for before what moves them is booked."""
        number, days = venue_ns // DAY_NS, self.days
        if symbol not in days.setdefault(number, {}):
            holding = self.holdings[symbol]
            later = [days[n][symbol] for n in sorted(days) if n > number and symbol in days[n]]
            opening = later[0] if later else None
            days[number][symbol] = Day(
                opening_lots=opening.opening_lots if opening else holding.position_lots,
                opening_cost_e8=opening.opening_cost_e8 if opening else holding.cost_e8,
            )
        day = days[number][symbol]
        if len(days) > DAYS:
            del days[min(days)]
        return day

    def _sum(self, day: Day, fill: Filled, realised_e8: int) -> None:
        lots = fill.side * fill.qty_lots
        value = value_e8(self.holdings[fill.symbol].instrument, fill.price_ticks, lots)
        day.executions += 1
        day.bought_lots += max(0, lots)
        day.sold_lots += max(0, -lots)
        day.value_e8 += value
        day.realised_e8 += realised_e8
        if fill.liquidity is Liquidity.MAKER:
            day.maker_fees_e8 += fill.fee_e8
        else:
            day.taker_fees_e8 += fill.fee_e8
        for number, symbols in self.days.items():  # it came late
            if number > fill.venue_ns // DAY_NS and fill.symbol in symbols:
                symbols[fill.symbol].opening_lots += lots
                symbols[fill.symbol].opening_cost_e8 += value + realised_e8

    def restate(self, symbol: str, number: int, cost_e8: int) -> bool:
        """Take the closing cost of a day (since the epoch) as it is in the venue's order of executions; whether ours
        was another.

        A cost depends on the order in which executions were booked, and what it has more the realised profit has
        more. A day with executions after it realised with the wrong cost; comparing it restates the rest.
        """
        more = cost_e8 - (day := self.day_of(symbol, number * DAY_NS)).closing_cost_e8
        day.realised_e8 += more
        for later in (
            of[symbol] for n, of in sorted(self.days.items()) if n > number and symbol in of
        ):
            later.opening_cost_e8 += more
            if later.executions or later.adopted:
                later.realised_e8 -= more
                return more != 0
        holding = self.holdings[symbol]
        holding.cost_e8 += more
        holding.realised_e8 += more
        holding.closed_e8 += more
        return more != 0

    def fund(self, exec_id: str, symbol: str, paid_e8: int, venue_ns: int) -> bool:
        """Book a funding payment (positive = paid) as the venue states it; False for a repetition.

        Raises KeyError for a symbol that the account does not know.
        """
        holding = self.holdings[symbol]
        if not self._is_new(exec_id, venue_ns):
            return False
        self.day_of(symbol, venue_ns).funding_e8 += paid_e8
        holding.funding_e8 += paid_e8
        return True

    def _is_new(self, exec_id: str, venue_ns: int) -> bool:
        """Whether an execution is booked for the first time; remembers it, and forgets old ones.

        One from before the memory counts as booked: it cannot be told from a repetition.
        """
        known = self._executions
        if exec_id in known or venue_ns < self._newest_ns - MEMORY_NS:
            return False
        known[exec_id] = venue_ns
        self._newest_ns = max(self._newest_ns, venue_ns)
        while known[oldest := next(iter(known))] < self._newest_ns - MEMORY_NS:
            del known[oldest]
            self.forgotten += 1
        return True

    def adopt(self, symbol: str, lots: int, entry_e8: int, venue_ns: int = -1) -> None:
        """Take the venue's position with its average entry price at 1e-8, whatever ours is.

        Executions up to ``venue_ns`` are in it, and are not booked any more. Raises KeyError for a
        symbol that the account does not know.
        """
        holding = self.holdings[symbol]
        for number in [*self.days, venue_ns // DAY_NS] if venue_ns > 0 else self.days:
            if number >= venue_ns // DAY_NS:
                self.day_of(symbol, number * DAY_NS).adopted = True
        holding.position_lots, holding.open_fees_e8 = lots, 0
        holding.cost_e8 = round(lots * entry_e8 * Fraction(holding.instrument.lot))
        holding.adopted_ns = venue_ns

    # -- equity --------------------------------------------------------------------------------

    def mark(self, now_ns: int, mids_ticks: Mapping[str, float]) -> int:
        """Mark to market at mids in ticks; returns the equity. NaN keeps a symbol's last mid.

        The first mark of a UTC day sets the equity that its result is measured from. While a position
        has never had a mid the equity stays what it was.
        """
        if 0 <= self.day < now_ns // DAY_NS:
            self._close_day(self.day)
        self._mids |= {s: mid for s, mid in mids_ticks.items() if not math.isnan(mid)}
        held = {s: h for s, h in self.holdings.items() if h.position_lots}
        if held.keys() <= self._mids.keys():
            self.marked_e8 = self.balance_e8 + sum(
                round(unit_e8(h.instrument) * h.position_lots * self._mids[s]) - h.cost_e8
                for s, h in held.items()
            )
        self.peak_e8 = max(self.peak_e8, self.marked_e8)
        if self.day != now_ns // DAY_NS:
            self.day, self.day_opening_e8 = now_ns // DAY_NS, self.marked_e8
        return self.marked_e8

    def _close_day(self, number: int) -> None:
        """Give a day's symbols their last mid, those held without an execution included."""
        for symbol, holding in self.holdings.items():
            if holding.position_lots or symbol in self.days.get(number, {}):
                self.day_of(symbol, number * DAY_NS).mark_ticks = self._mids.get(symbol)

    def profit(self, mids_ticks: Mapping[str, float]) -> tuple[float, float, float]:
        """Gross profit at these mids, fees and funding paid (quote currency).

        Raises KeyError when a symbol with a position has no mid.
        """
        gross = fees = funding = 0.0
        for symbol, holding in self.holdings.items():
            open_profit = 0.0
            if holding.position_lots:
                value = unit_e8(holding.instrument) * holding.position_lots * mids_ticks[symbol]
                open_profit = value - holding.cost_e8
            gross += (holding.realised_e8 + open_profit) / E8
            fees += holding.fees_e8 / E8
            funding += holding.funding_e8 / E8
        return gross, fees, funding

    # -- restart -------------------------------------------------------------------------------

    def marks(self) -> AccountState:
        """What the last mark to market left, without what evidence tells."""
        return AccountState(
            equity_e8=self.marked_e8,
            peak_e8=self.peak_e8,
            day=self.day,
            day_opening_e8=self.day_opening_e8,
        )

    def restore_marks(self, state: AccountState) -> None:
        """Take over the marks of an earlier process."""
        self.marked_e8, self.peak_e8 = state.equity_e8, state.peak_e8
        self.day, self.day_opening_e8 = state.day, state.day_opening_e8

    def snapshot(self) -> AccountState:
        """The state, to be encoded before the account changes again."""
        return msgspec.structs.replace(
            self.marks(),
            opening_e8=self.opening_e8,
            holdings=self.holdings,
            executions=self._executions,
            recent={symbol: list(recent) for symbol, recent in self._recent.items()},
            days=self.days,
        )

    def restore(self, state: AccountState) -> None:
        """Take over the state of an earlier process, symbols that are no longer configured included.

        DataError for a position that was counted in other lots than the instrument has now.
        """
        for symbol, holding in state.holdings.items():
            if (ours := self.holdings.get(symbol)) is not None:
                before, now = holding.instrument.lot, ours.instrument.lot
                if holding.position_lots and before != now:
                    raise DataError(
                        f"{symbol}: {holding.position_lots} lots were held when a lot was {before}, now "
                        f"it is {now}; close the position under the old instrument first"
                    )
                holding.instrument = ours.instrument
            self.holdings[symbol] = holding
        self.opening_e8 = state.opening_e8
        self.restore_marks(state)
        self._executions, self.days = state.executions, state.days
        self._newest_ns = max(state.executions.values(), default=self._newest_ns)
        self._recent |= {symbol: deque(recent) for symbol, recent in state.recent.items()}

    # -- funding -------------------------------------------------------------------------------

    def position_lots_at(self, symbol: str, time_ns: int) -> int:
        """The position at an instant of the last hour, of what was executed before it."""
        later = sum(lots for venue_ns, lots in self._recent[symbol] if venue_ns >= time_ns)
        return self.holdings[symbol].position_lots - later

    def settle(
        self,
        symbol: str,
        mark_e8: int,
        rate_e8: int,
        position_lots: int | None = None,
        time_ns: int = 0,
    ) -> int:
        """Settle funding on a position, by default the present one; the payment (positive = paid)."""
        holding = self.holdings[symbol]
        lots = holding.position_lots if position_lots is None else position_lots
        paid = funding_e8(holding.instrument, lots, mark_e8, rate_e8)
        self.pay(symbol, paid, time_ns)
        return paid

    def pay(self, symbol: str, paid_e8: int, time_ns: int) -> None:
        """Book funding of a simulated venue, which has no execution of it."""
        self.day_of(symbol, time_ns).funding_e8 += paid_e8
        self.holdings[symbol].funding_e8 += paid_e8

    @property
    def backed_e8(self) -> int:
        """What sizes and leverage are of: the equity at the last mark, or the wallet's where that is less."""
        return self.marked_e8 + min(0, self.apart_e8)

    @property
    def balance_e8(self) -> int:
        """Opening balance plus realised profit, less fees and funding."""
        return self.opening_e8 + sum(
            h.realised_e8 - h.fees_e8 - h.funding_e8 for h in self.holdings.values()
        )

    def equity_e8(self, marks: Mapping[str, int]) -> int:
        """Balance plus unrealised profit at mark prices in ticks.

        Raises KeyError when a symbol with a position has no mark.
        """
        return self.balance_e8 + sum(
            h.unrealised_e8(marks[symbol]) for symbol, h in self.holdings.items() if h.position_lots
        )
