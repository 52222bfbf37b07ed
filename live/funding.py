"""Which funding settlements were, at which rate and mark price: what is paid, apart from what is known.

A recorder's ticker says when the next settlement is (``nextFundingTime``) and its running rate: when that
time passes, or the ticker goes on to a later one, it was settled at the rate in force just before. An
archive's says each settlement itself, after it was. A settlement that neither names is none: no interval
is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from execution.tca import Row
from execution.urgency import Funding
from market.events import Field
from market.units import BPS, E8, MS_NS, SECOND_NS


class Settlement(NamedTuple):
    """A funding settlement: rate and mark price at 1e-8, None where they are not known."""

    time_ns: int
    rate_e8: int | None
    mark_e8: int | None


class Settlements:
    """Follows the ticker fields of one symbol from second to second."""

    def __init__(self) -> None:
        self.next_ns = 0  #: the next settlement as the venue says, 0 when it does not
        self._settled_ns = 0
        self._terms: tuple[int | None, int | None] = (None, None)

    def begin(self, fields: Mapping[int, int], now_ns: int) -> None:
        """Start at an instant: what was settled up to it is not ours."""
        self._settled_ns = now_ns
        self._note(fields)

    def until(self, fields: Mapping[int, int], now_ns: int) -> Settlement | None:
        """The settlement that the fields, as of the second that ends at ``now_ns``, show to have been."""
        found = None
        told_ns = fields.get(Field.SETTLED_MS, 0) * MS_NS
        next_ns, terms = self.next_ns, self._terms
        self._note(fields)
        if told_ns > self._settled_ns:
            rate, mark = fields.get(Field.SETTLED_RATE), fields.get(Field.SETTLED_MARK)
            found = Settlement(told_ns, rate, mark)
        elif next_ns > self._settled_ns:
            # The venue's clock and ours differ by less than a second. What a ticker that has gone on
            # says is of the settlement after.
            goes_on = self.next_ns > next_ns
            if now_ns >= next_ns or (goes_on and now_ns + SECOND_NS > next_ns):
                found = Settlement(next_ns, *(terms if goes_on else self._terms))
        if found is not None:
            self._settled_ns = found.time_ns
        return found

    def _note(self, fields: Mapping[int, int]) -> None:
        self.next_ns = fields.get(Field.NEXT_FUNDING_MS, 0) * MS_NS
        self._terms = fields.get(Field.FUNDING_RATE), fields.get(Field.MARK_PRICE)


def predicted(fields: Mapping[int, int], now_ns: int) -> Funding | None:
    """The next settlement as the venue's ticker foresees it; None without its time or its rate."""
    next_ns, rate_e8 = fields.get(Field.NEXT_FUNDING_MS, 0) * MS_NS, fields.get(Field.FUNDING_RATE)
    if next_ns <= now_ns or rate_e8 is None:
        return None
    return Funding((next_ns - now_ns) / SECOND_NS, rate_e8 / E8 * BPS)


class FundingPayment(msgspec.Struct, frozen=True, kw_only=True):
    """One funding settlement: mark price, rate (0 where the venue does not state it) and payment
    (positive = paid) at 1e-8."""

    symbol: str
    time_ns: int
    position_lots: int
    mark_e8: int
    rate_e8: int
    paid_e8: int


class CarryRow(Row, frozen=True, kw_only=True):
    """A row of the table ``carry``: one payment, positive = paid, in quote currency at 1e-8."""

    symbol: str
    venue: str
    time_ns: int
    position_lots: int
    mark_e8: int
    rate_e8: int
    paid_e8: int
