"""The running market: nothing is lost, time is honest, and our orders meet the same market."""

from __future__ import annotations

import json

import numpy as np
import pytest

from market.book import Book
from market.events import Events, Flag, Kind
from market.wire.encode import Encoder
from proving.synthetic.marketplace import OURS, ExecutionReport, SyntheticMarket
from proving.synthetic.matching import Status, TimeInForce
from proving.synthetic.profiles import profile
from proving.synthetic.publication import TOPICS

DAY = "2026-03-01"
POST = TimeInForce.POST_ONLY
IOC = TimeInForce.IMMEDIATE_OR_CANCEL
SECOND = 1_000_000_000


def running(seed: int = 7, seconds: int = 60, **options: int) -> SyntheticMarket:
    market = SyntheticMarket(profile("null"), seed, "BTCUSDT", DAY, **options)  # type: ignore[arg-type]
    market.advance(market.midnight_ns + seconds * SECOND)
    return market


def after(market: SyntheticMarket, seconds: float) -> Events:
    return market.advance(market.now_ns + round(seconds * SECOND))


# Held at every stop, whatever we send:
#   lots added = 2 x lots executed + lots cancelled + lots resting; the book is not crossed and two-sided;
#   the published book is the venue's, 200 levels of it, once a frame has come after the last change.


@pytest.mark.parametrize("seed", [1])
def test_lots_are_conserved_and_the_book_is_never_crossed(seed: int) -> None:
    market, rng = running(seed, 10), np.random.default_rng(seed)
    handles = [0]
    for _ in range(300):
        bid, ask = market.best(1), market.best(-1)
        assert bid is not None
        assert ask is not None
        assert bid < ask
        side = int(rng.choice([1, -1]))
        ticks = (bid if side > 0 else ask) + int(rng.integers(-30, 30))
        draw = rng.random()
        if draw < 0.4:
            handles.append(market.submit(side, ticks, int(rng.integers(1, 3000))))
        elif draw < 0.6:
            market.take(side, int(rng.integers(1, 20_000)))
        elif draw < 0.8:
            market.cancel(int(rng.choice(handles)))
        else:
            market.amend(int(rng.choice(handles)), ticks, int(rng.integers(1, 3000)))
        after(market, 0.05)
        counts = market.counts
        resting = sum(lots for side in (1, -1) for _, lots in market.levels(side))
        assert counts["added"] == 2 * counts["executed"] + counts["cancelled"] + resting
    answered = {report.handle for report in market.reports() if report.status is not None}
    assert set(handles) - {0} <= answered


def test_the_published_book_equals_the_engines() -> None:
    market, book = SyntheticMarket(profile("null"), 3, "BTCUSDT", DAY), Book()
    for _ in range(50):
        rows = after(market, 1.0)
        frames = np.flatnonzero((rows["flags"] & Flag.LAST != 0) & (rows["kind"] <= Kind.DELTA))
        book.apply(rows)
        # Up to 37 ms have passed since the last frame; the touch agrees when nothing happened then.
        assert len(frames) == 10
        assert len(book.bids()) == len(book.asks()) == 200
    stop = market.midnight_ns + int(rows["exchange_ns"][frames[-1]]) - market.midnight_ns
    again = SyntheticMarket(profile("null"), 3, "BTCUSDT", DAY)
    again.advance(stop)
    assert again.levels(1, 200) == book.bids()
    assert again.levels(-1, 200) == book.asks()


def test_stops_of_the_caller_do_not_change_the_market() -> None:
    whole, steps = (
        SyntheticMarket(profile("null"), 5, "BTCUSDT", DAY),
        SyntheticMarket(profile("null"), 5, "BTCUSDT", DAY),
    )
    expected = after(whole, 20)
    rng = np.random.default_rng(0)
    pieces = []
    while steps.now_ns < whole.now_ns:
        pieces.append(steps.advance(min(whole.now_ns, steps.now_ns + int(rng.integers(1, 10**9)))))
    assert np.concatenate(pieces).tobytes() == expected.tobytes()


def test_an_order_far_from_the_touch_has_no_impact() -> None:
    plain, ours = running(), running()
    bid = ours.best(1)
    assert bid is not None
    handle = ours.submit(1, bid - 20_000, 5, POST)
    a, b = after(plain, 30), after(ours, 30)
    assert a.tobytes() == b.tobytes()
    ours.cancel(handle)
    assert after(plain, 30).tobytes() == after(ours, 30).tobytes()
    statuses = [report.status for report in ours.reports()]
    assert statuses == [Status.RESTING, Status.CANCELLED]


def test_a_taker_order_has_transient_impact() -> None:
    """The same market with and without one large buy: up at once, and most of it gone in minutes."""
    moved = []
    for seed in range(5):
        plain, ours = running(seed), running(seed)
        ours.take(1, 60_000)
        path = []
        for seconds in (0.2, 60, 240):
            after(plain, seconds)
            after(ours, seconds)
            mids = [sum(m.best(s) or 0 for s in (1, -1)) / 2 for m in (ours, plain)]
            path.append((mids[0] / mids[1] - 1) * 1e4)
        moved.append(path)
    at_once, minute, later = np.mean(moved, axis=0)
    assert at_once > 0.5
    assert later < 0.6 * at_once
    assert minute < at_once


def test_requests_and_reports_have_their_latencies() -> None:
    market = SyntheticMarket(
        profile("null"), 7, "BTCUSDT", DAY, entry_ns=5_000_000, response_ns=3_000_000
    )
    after(market, 10)
    sent = market.now_ns
    bid = market.best(1)
    assert bid is not None
    handle = market.submit(1, bid - 100, 5)
    after(market, 0.004)
    assert market.lots_ahead(handle) is None
    after(market, 0.002)
    assert market.lots_ahead(handle) is not None
    assert market.reports(sent + 7_999_999) == []
    (report,) = market.reports(sent + 8_000_000)
    assert report == ExecutionReport(
        sent + 8_000_000, sent + 5_000_000, handle, Status.RESTING, 5, ()
    )


def test_an_order_at_the_touch_queues_and_is_filled_by_takers() -> None:
    filled = 0
    for seed in range(2):
        market = running(seed)
        for _ in range(60):
            touch = market.best(1)
            assert touch is not None
            handle = market.submit(1, touch, 7, POST)
            after(market, 0.001)
            ahead = market.lots_ahead(handle)
            after(market, 2)
            market.cancel(handle)
            after(market, 0.001)
            reports = market.reports()
            fills = [e for r in reports if r.status is None for e in r.executions]
            assert all(e.maker_owner == OURS and e.side == -1 and e.ticks == touch for e in fills)
            assert sum(e.lots for e in fills) <= 7
            last = [r for r in reports if r.status is Status.CANCELLED]
            if ahead is not None and sum(e.lots for e in fills) < 7:
                assert last[0].left == 7 - sum(e.lots for e in fills)
            filled += sum(e.lots for e in fills) == 7
    assert filled > 10


def test_the_background_owns_no_orders_of_ours() -> None:
    with pytest.raises(ValueError, match="is the background's"):
        running(seconds=1).submit(1, 100, 1, owner=0)


def test_the_day_ends() -> None:
    market = running(seconds=1)
    with pytest.raises(ValueError, match="beyond the end"):
        market.advance(market.midnight_ns + 86_401 * SECOND)


def test_faster_topics_give_the_same_book() -> None:
    market = SyntheticMarket(profile("null"), 7, "BTCUSDT", DAY, topics=TOPICS)
    plain = SyntheticMarket(profile("null"), 7, "BTCUSDT", DAY)
    rows, alone = after(market, 20), after(plain, 20)
    first = rows[rows["pad"] == 0]
    assert first.tobytes() == alone.tobytes()
    books = [Book() for _ in TOPICS]
    for place, (depth, period) in enumerate(TOPICS):
        mine = rows[rows["pad"] == place]
        mine = mine[mine["kind"] <= Kind.DELTA]
        updates = mine["update_id"][mine["flags"] & Flag.FIRST != 0]
        assert (np.diff(updates) == 1).all()
        assert len(updates) == pytest.approx(20 * SECOND / period, abs=5)
        books[place].apply(mine)
        assert len(books[place].bids()) == depth
    with pytest.raises(ValueError, match="expected"):
        SyntheticMarket(profile("null"), 7, "BTCUSDT", DAY, topics=TOPICS[1:])


def touches(market: SyntheticMarket) -> tuple[float, float]:
    """Mid and half of the spread, ticks."""
    bid, ask = market.best(1), market.best(-1)
    assert bid is not None
    assert ask is not None
    return (bid + ask) / 2, (ask - bid) / 2


def taken(market: SyntheticMarket, side: int, lots: int) -> float:
    """Mean price of a market order that executes now, ticks."""
    market.take(side, lots)
    market.advance(market.now_ns + 1)
    fills = [fill for report in market.reports() for fill in report.executions]
    assert sum(fill.lots for fill in fills) == lots
    return sum(fill.lots * fill.ticks for fill in fills) / lots


def test_an_uninformed_taker_loses_fees_half_spreads_and_impact_alone() -> None:
    """Round trips of ten seconds, of random side, each beside the same market without them.

    What they lose is two fees, two half-spreads and the levels behind the touch, less what impact the
    second order still finds in its favour; the rest is the market's own move, which they know nothing of.
    """
    fee_bps, lots = 5.5, 10_000
    lost, costs, impacts = [], [], []
    for seed in range(3):
        market = SyntheticMarket(profile("null"), seed, "BTCUSDT", DAY)
        untouched = SyntheticMarket(profile("null"), seed, "BTCUSDT", DAY)
        rng = np.random.default_rng(seed)
        for _ in range(150):
            after(market, 10)
            untouched.advance(market.now_ns)
            side = int(rng.choice([1, -1]))
            start, half = touches(market)
            alone = touches(untouched)[0]
            bought = taken(market, side, lots)
            after(market, 10)
            untouched.advance(market.now_ns)
            end, half_after = touches(market)
            moved = side * ((end - touches(untouched)[0]) - (start - alone))
            sold = taken(market, -side, lots)
            behind = side * (bought - start) - half + side * (end - sold) - half_after
            scale = 1e4 / start
            lost.append(-side * (sold - bought) * scale + 2 * fee_bps)
            costs.append((half + half_after + behind - moved) * scale + 2 * fee_bps)
            impacts.append(moved * scale)
            assert behind >= 0
    rest = np.array(lost) - np.array(costs)
    error = rest.std() / np.sqrt(len(rest))
    assert abs(rest.mean()) < 3 * error
    # The interval is narrow beside what is lost, with fees and without, and impact is there to be found.
    assert np.mean(costs) - 2 * fee_bps > 2 * error
    assert np.mean(lost) > 20 * error
    assert np.mean(impacts) > 3 * np.std(impacts) / np.sqrt(len(impacts))


def test_a_random_maker_earns_nothing_net() -> None:
    """Orders of random side at the touch, marked to the mid ten seconds after they are withdrawn."""
    gains = []
    for seed in range(3):
        market = SyntheticMarket(profile("null"), seed, "BTCUSDT", DAY)
        rng = np.random.default_rng(seed)
        for _ in range(120):
            after(market, 5)
            side = int(rng.choice([1, -1]))
            touch = market.best(side)
            assert touch is not None
            handle = market.submit(side, touch, 100, POST)
            after(market, 10)
            market.cancel(handle)
            after(market, 10)
            mid = touches(market)[0]
            fills = [fill for report in market.reports() for fill in report.executions]
            gains += [side * (mid - fill.ticks) / mid * 1e4 for fill in fills]
    found = np.array(gains)
    assert len(found) > 100
    assert found.mean() < 2 * found.std() / np.sqrt(len(found))


def test_the_mid_has_the_ic_of_the_efficient_price() -> None:
    """Quoting, impact and takers add noise to the mid, and neither hide the alpha nor tell it early.

    Both information coefficients are of one path, so their difference is far more certain than they
    are; what the planted alpha's own is, closed forms say (`proving.synthetic.planted`).
    """
    market = SyntheticMarket(profile("demo"), 11, "BTCUSDT", DAY)
    seconds = 2 * 3600
    mids = np.empty(seconds + 1)
    for second in range(seconds + 1):
        market.advance(market.midnight_ns + max(1, second * SECOND))
        mids[second] = sum(market.best(side) or 0 for side in (1, -1)) / 2
    mid = np.log(mids * market.instrument.tick_size)
    efficient = market.hidden.log_price[::10][: seconds + 1]
    alpha = market.hidden.alpha[::10][: seconds + 1]
    for horizon in (10, 60, 300):
        moves = [path[horizon:] - path[:-horizon] for path in (mid, efficient)]
        of_mid, of_price = (np.corrcoef(alpha[:-horizon], move)[0, 1] for move in moves)
        assert abs(of_mid - of_price) < 0.04
        assert of_mid > 0.1
        assert moves[0].var() / moves[1].var() == pytest.approx(1, abs=0.2)


def test_fills_of_thousands_of_our_orders_at_once_are_all_reported() -> None:
    """More than the outbox and the rows have room for at first; nothing is lost."""
    market = running(seconds=5)
    bid, ask = market.best(1), market.best(-1)
    assert bid is not None
    assert ask is not None
    count = 20_000
    handles = {market.submit(-1, ask + 3 + n % 40, 1) for n in range(count)}
    after(market, 0.001)
    assert all(report.status is Status.RESTING for report in market.reports())
    market.take(1, 10_000_000, ask + 60)
    rows = after(market, 0.001)
    filled = [report for report in market.reports() if report.status is None]
    assert {report.handle for report in filled} == handles
    assert np.count_nonzero(rows["kind"] == Kind.TRADE) >= count


def test_a_fill_names_its_public_trade() -> None:
    """What maker and taker are told of has the price, quantity and id of one trade that all see."""
    market = running(seconds=5)
    ((ask, shown),) = market.levels(-1, 1)
    resting = [market.submit(-1, ask, 40, POST) for _ in range(2)]
    market.take(1, shown + 60)
    market.submit(1, ask - 3, 7)
    rows = after(market, 20)
    encoder = Encoder(market.instrument)
    trades = {
        trade["i"]: (trade["T"], trade["v"], trade["p"])
        for _, frame in encoder.frames(rows[rows["kind"] == Kind.TRADE])
        for trade in json.loads(frame)["data"]
    }
    told: dict[str, set[int]] = {}
    for report in market.reports():
        for n, execution in enumerate(report.executions):
            name = encoder.trade_id(report.sequence, report.place + n)
            price = f"{execution.ticks * market.instrument.tick_size:.2f}"
            quantity = f"{execution.lots * market.instrument.lot_size:.3f}"
            assert trades[name] == (report.exchange_ns // 1_000_000, quantity, price)
            told.setdefault(name, set()).add(report.handle)
    assert len(told) >= 3
    both = [handles for handles in told.values() if len(handles) == 2]
    assert both
    assert all(handles & set(resting) for handles in both)


def test_a_finished_order_is_no_longer_tracked() -> None:
    """Whoever trades for a day does not fill the market's memory with what is over."""
    market = running()
    bid, ask = market.best(1), market.best(-1)
    assert bid is not None
    assert ask is not None
    filled = market.submit(1, ask, 5)
    cancelled, amended = (market.submit(1, bid - 50, 5) for _ in range(2))
    kept = market.submit(1, bid - 60, 5)
    after(market, 0.01)
    market.cancel(cancelled)
    market.amend(amended, ask + 20, 5)
    market.amend(kept, bid - 61, 4)
    after(market, 0.01)
    market.reports()
    for handle in (filled, cancelled, amended):
        assert market.lots_ahead(handle) is None
        market.cancel(handle)
    market.cancel(kept)
    after(market, 0.01)
    said = {report.handle: report.status for report in market.reports()}
    assert said.pop(kept) is Status.CANCELLED
    assert set(said.values()) == {Status.UNKNOWN_ORDER}
    assert not market._references
    assert not market._handles
