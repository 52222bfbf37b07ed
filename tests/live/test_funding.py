"""Funding: what is paid are the settlements that were, at their own rate and mark price.

A recorder and the archives of the same venue name the same settlements, whatever the interval does.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.account import Account
from execution.orders import Filled, Liquidity
from live.archives.conversion import doubtful, funding_frames
from live.archives.rest import Settlement as Archived
from live.funding import Settlement, Settlements
from live.own_capture import TickerState, checkpoints
from market.book import Book
from market.events import Field
from market.instruments import BUILT_IN
from market.units import DAY_NS, HOUR_NS, MS_NS, SECOND_NS, day_start_ns
from market.wire.decode import Decoder

SYMBOL = "BTCUSDT"
DAY = "2026-03-01"
START_NS = day_start_ns(DAY)
HOUR_S = 3600


def of(hours: Sequence[float]) -> list[Settlement]:
    """Settlements at these hours of the date, each of its own rate and mark price."""
    return [
        Settlement(START_NS + round(hour * HOUR_NS), 1000 + 7 * n, (50_000 + n) * 10**8)
        for n, hour in enumerate(hours)
    ]


def by_recorder(settled: Sequence[Settlement], until_s: int, early_ms: int = 0) -> list[Settlement]:
    """What a recorder's ticker shows: the running rate, and when it will be settled.

    The frame after a settlement, which goes on to the next, is received ``early_ms`` before it.
    """
    follows, found = Settlements(), []
    fields: dict[int, int] = {}
    follows.begin(fields, START_NS - 9 * SECOND_NS)
    frames: dict[int, dict[int, int]] = {}
    for n, each in enumerate(settled):
        since_ns = settled[n - 1].time_ns - early_ms * MS_NS if n else START_NS - 5 * SECOND_NS
        frames[since_ns] = {
            Field.FUNDING_RATE: each.rate_e8 or 0,
            Field.MARK_PRICE: each.mark_e8 or 0,
            Field.NEXT_FUNDING_MS: each.time_ns // MS_NS,
        }
    end = settled[-1].time_ns - early_ms * MS_NS
    frames[end] = {Field.FUNDING_RATE: 9, Field.MARK_PRICE: 9, Field.NEXT_FUNDING_MS: 1 << 42}
    for second in range(-8, until_s + 1):
        now_ns = START_NS + second * SECOND_NS
        for ns in [ns for ns in frames if ns < now_ns]:
            fields |= frames.pop(ns)
        if (shown := follows.until(fields, now_ns)) is not None:
            found.append(shown)
    return found


def by_archive(settled: Sequence[Settlement], days: int = 1) -> list[Settlement]:
    """What the trader makes of the archive's frames of these dates."""
    history = [Archived(s.time_ns // MS_NS, f"{s.rate_e8}e-8", f"{s.mark_e8}e-8") for s in settled]
    ticker, follows, found = TickerState(), Settlements(), []
    follows.begin({}, START_NS - SECOND_NS)
    for day in range(days):
        start_ms = (START_NS + day * DAY_NS) // MS_NS
        rates = [each for each in history if 0 <= each.ms - start_ms + 86_400_000 < 2 * 86_400_000]
        decoder = Decoder(BUILT_IN)
        for ms, frame in funding_frames(rates, SYMBOL, start_ms):
            received_ns = ms * MS_NS + 20 * MS_NS
            ticker.apply(decoder.decode_frame(received_ns, frame).events[SYMBOL])
            now_ns = received_ns // SECOND_NS * SECOND_NS + SECOND_NS
            if (shown := follows.until(ticker.fields, now_ns)) is not None:
                found.append(shown)
            assert follows.until(ticker.fields, now_ns + SECOND_NS) is None
    return found


SCHEDULES = {
    "8 h": (0, 8, 16),
    "4 h": (0, 4, 8, 12, 16, 20),
    "1 h": range(24),
    "1 h, then 8 h": (0, 1, 2, 3, 4, 5, 6, 7, 8, 16),
    "8 h, then 1 h": (0, 8, 16, 17, 18, 19, 20, 21, 22, 23),
    "4 h, then 1 h, then 4 h": (0, 4, 5, 6, 7, 8, 12, 16, 20),
    "no more after the second": (0, 8),
}


@pytest.mark.parametrize("hours", SCHEDULES.values(), ids=SCHEDULES)
def test_recorder_and_archive_name_the_settlements_that_were(hours: Sequence[int]) -> None:
    settled = of(hours)
    assert by_recorder(settled, 24 * HOUR_S) == settled
    assert by_archive(settled) == settled


def test_settlements_at_and_across_midnight_belong_to_their_own_instant() -> None:
    settled = of((0, 8, 16, 24, 32, 40))
    assert by_archive(settled, days=2) == settled
    assert by_recorder(settled, 44 * HOUR_S) == settled


@given(st.lists(st.sampled_from((1, 2, 4, 8)), min_size=1, max_size=6), st.integers(0, 900))
def test_any_intervals_and_a_venue_clock_ahead_give_the_settlements(
    intervals: list[int], early_ms: int
) -> None:
    hours = [sum(intervals[:n]) / 60 for n in range(1, len(intervals) + 1)]
    settled = of(hours)
    assert by_recorder(settled, round(hours[-1] * HOUR_S) + 5, early_ms) == settled


def test_a_settlement_that_was_put_off_is_not_paid_before_it() -> None:
    follows = Settlements()
    follows.begin({Field.NEXT_FUNDING_MS: START_NS // MS_NS + 8 * HOUR_S * 1000}, START_NS)
    later: dict[int, int] = {Field.NEXT_FUNDING_MS: START_NS // MS_NS + 9 * HOUR_S * 1000}
    assert follows.until(later, START_NS + 7 * HOUR_NS) is None
    assert follows.until(later, START_NS + 8 * HOUR_NS) is None
    assert follows.until(later, START_NS + 9 * HOUR_NS) == (START_NS + 9 * HOUR_NS, None, None)


def test_without_a_time_of_the_venue_nothing_is_assumed() -> None:
    follows = Settlements()
    fields: dict[int, int] = {Field.FUNDING_RATE: 10_000, Field.MARK_PRICE: 10**13}
    follows.begin(fields, START_NS)
    assert all(follows.until(fields, START_NS + n * HOUR_NS) is None for n in range(1, 30))
    # One that is over is not paid again, however long the ticker is silent.
    fields[Field.NEXT_FUNDING_MS] = START_NS // MS_NS
    assert all(follows.until(fields, START_NS + n * HOUR_NS) is None for n in range(30, 40))


HISTORIES = [
    ((0, 8, 16, 24), []),
    ((0, 8, 24, 32), [(8, 24)]),
    ((0, 1, 2, 4, 5, 6), [(2, 4)]),
    ((0, 1, 2, 10, 18), []),
    ((0, 8, 16, 17, 18), []),
    ((0, 4, 8, 16, 20, 24), [(8, 16)]),
    ((0,), []),
    ((), []),
]


@pytest.mark.parametrize(("hours", "spans"), HISTORIES)
def test_a_settlement_missing_from_the_history_is_found(
    hours: Sequence[int], spans: list[tuple[int, int]]
) -> None:
    history = [Archived(hour * 3_600_000, "0.0001") for hour in hours]
    found = [(a // 3_600_000, b // 3_600_000) for a, b in doubtful(history)]
    assert found == spans


@pytest.mark.parametrize(
    ("made_ns", "held"), [(-1, 5), (0, 0), (1, 0)], ids=["before", "at", "after"]
)
def test_only_what_was_executed_before_the_instant_is_charged(made_ns: int, held: int) -> None:
    """A position opened exactly at a settlement does not pay it, one closed exactly then does."""

    def fill(number: int, side: int, venue_ns: int) -> Filled:
        return Filled(
            client_id=f"c{number}", time_ns=venue_ns + 10 * MS_NS, venue_ns=venue_ns,
            symbol=SYMBOL, side=side, price_ticks=500_000, qty_lots=5,
            exec_id=f"x{number}", liquidity=Liquidity.TAKER, fee_e8=0, leaves_lots=0,
        )  # fmt: skip

    at_ns = START_NS + 8 * HOUR_NS
    opened, closed = (Account({SYMBOL: BUILT_IN[SYMBOL]}) for _ in range(2))
    opened.apply(fill(1, 1, at_ns + made_ns))
    assert opened.position_lots_at(SYMBOL, at_ns) == held
    closed.apply(fill(1, 1, at_ns - 2 * HOUR_NS))
    closed.apply(fill(2, -1, at_ns + made_ns))
    assert closed.position_lots_at(SYMBOL, at_ns) == 5 - held
    paid = closed.settle(SYMBOL, 50_000 * 10**8, 10_000, closed.position_lots_at(SYMBOL, at_ns))
    assert paid == (5 - held) * 500_000


def test_a_negative_rate_is_restated_as_it_is() -> None:
    ticker = TickerState()
    ticker.fields = {Field.FUNDING_RATE: -12_345, Field.OPEN_INTEREST: 5_500, Field.SETTLED_MS: 77}
    (line,) = checkpoints(BUILT_IN[SYMBOL], Book(), ticker, 200)
    decoded = Decoder(BUILT_IN).decode_frame(START_NS, line)
    restated = TickerState()
    restated.apply(decoded.events[SYMBOL])
    assert restated.fields == ticker.fields
