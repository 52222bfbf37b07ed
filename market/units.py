"""Units and the calendar: every constant of conversion, and UTC dates.

Times are integer nanoseconds since the epoch and end in ``_ns``; prices are integer ticks and
quantities integer lots (`market.instruments`); money is an integer multiple of 1e-8 and ends in
``_e8``. Floats begin at bars.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final

MS_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000
MINUTE_NS: Final = 60 * SECOND_NS
HOUR_NS: Final = 3_600 * SECOND_NS
DAY_NS: Final = 86_400 * SECOND_NS
DAY_S: Final = 86_400
DAY_MS: Final = 86_400_000

#: Basis points in one: a return of 0.0001 is 1 bps.
BPS: Final = 1e4
#: Fixed-point scale of money and of ticker fields: 1 unit is 1e-8.
E8: Final = 100_000_000


def utc_date(ns: int) -> str:
    """The UTC date (YYYY-MM-DD) of an epoch time in ns."""
    return datetime.fromtimestamp(ns // SECOND_NS, UTC).strftime("%Y-%m-%d")


def day_start_ns(day: str) -> int:
    """Epoch ns of a UTC date's midnight."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def previous_day(day: str) -> str:
    """The date before."""
    return (date.fromisoformat(day) - timedelta(days=1)).isoformat()


def next_day(day: str) -> str:
    """The date after."""
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def days_between(first: str, last: str) -> list[str]:
    """All dates from first to last, both included; none when last is earlier."""
    start, stop = date.fromisoformat(first), date.fromisoformat(last)
    return [(start + timedelta(days=n)).isoformat() for n in range((stop - start).days + 1)]
