"""The synthetic market: reproducible, venue-like, and with exactly the alpha that was planted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from market.bars import Bars, bars_from_chunks
from market.book import Book
from market.events import EVENT, Events, Field, Flag, Kind
from market.instruments import BUILT_IN
from market.lake import Lake, LakeError
from market.settings import Settings
from market.units import day_start_ns
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from proving import synthetic
from proving.synthetic import (
    PROFILES,
    ProfileError,
    altered,
    generate,
    profile,
    truth,
    write_bars,
    write_frames,
    write_truth,
)
from proving.synthetic.background import SHOWN_LEVELS

DAY = "2026-03-01"
SETTINGS = Settings(source="synthetic")
SYMBOLS = ("BTCUSDT", "ETHUSDT")
#: Ticker fields that the venue sends; those of archives come after them.
SENT = {int(field) for field in Field if field <= Field.LAST_PRICE}


def events(market: str, symbol: str, stop_s: int, start_s: int = 0, day: str = DAY) -> Events:
    return np.concatenate(list(generate(profile(market), 7, symbol, day, start_s, stop_s)))


def bars(market: str, symbol: str, stop_s: int, seed: int = 7) -> Bars:
    chunks = generate(profile(market), seed, symbol, DAY, 0, stop_s)
    return bars_from_chunks(chunks, BUILT_IN[symbol], SETTINGS)


@pytest.fixture(scope="module")
def hours() -> dict[tuple[str, str], Bars]:
    """Bars of the first three hours by market and symbol."""
    return {(m, s): bars(m, s, 3 * 3600) for m in ("demo", "null") for s in SYMBOLS}


@pytest.fixture(scope="module")
def last_seconds() -> Events:
    """The end of a day."""
    return events("demo", "ETHUSDT", 86_400, start_s=86_390)


def forward(mid: npt.NDArray[np.float64], horizon_s: int) -> npt.NDArray[np.float64]:
    """Labels y_h(t) = ln mid(t+1+h) − ln mid(t+1), for all rows that have one."""
    log = np.log(mid)
    return np.asarray(log[1 + horizon_s :] - log[1:-horizon_s])


def trailing(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    total = np.cumsum(values)
    total[width:] -= total[:-width].copy()
    return total


def ic_and_error(
    signal: npt.NDArray[np.float64], label: npt.NDArray[np.float64], block_s: int
) -> tuple[float, float]:
    """Correlation, and its standard error from blocks that are nearly independent."""
    n = len(label) // block_s
    s = signal[: n * block_s] - signal[: n * block_s].mean()
    y = label[: n * block_s] - label[: n * block_s].mean()
    scale = math.sqrt(float((s * s).sum() * (y * y).sum()))
    ic = float((s * y).sum()) / scale
    # Sum of each block's influence on the ratio.
    half = 0.5 * ic * (s * s / (s * s).sum() + y * y / (y * y).sum())
    influence = (s * y / scale - half).reshape(n, block_s).sum(axis=1)
    return ic, math.sqrt(float((influence**2).sum()))


# -- reproducibility -------------------------------------------------------------------------------


def test_same_arguments_give_the_same_bytes() -> None:
    assert events("demo", "ETHUSDT", 120).tobytes() == events("demo", "ETHUSDT", 120).tobytes()


@pytest.mark.parametrize("other", [(8, "BTCUSDT", DAY), (7, "BTCUSDT", "2026-03-02")])
def test_another_seed_or_day_gives_another_market(other: tuple[int, str, str]) -> None:
    seed, symbol, day = other
    first = next(generate(profile("demo"), 7, "BTCUSDT", DAY, 0, 60))
    second = next(generate(profile("demo"), seed, symbol, day, 0, 60))
    assert first["price_ticks"][0] != second["price_ticks"][0]


def test_a_part_of_a_day_is_a_prefix_of_the_day() -> None:
    part, more = events("demo", "BTCUSDT", 300), events("demo", "BTCUSDT", 420)
    assert part.tobytes() == more[: len(part)].tobytes()
    assert more["receive_ns"][len(part)] >= day_start_ns(DAY) + 300 * 10**9


def test_a_later_start_adds_its_opening_and_changes_nothing_else() -> None:
    whole, late = events("demo", "BTCUSDT", 420), events("demo", "BTCUSDT", 420, start_s=400)
    opening = late[late["kind"] == Kind.SNAPSHOT]
    assert len(opening) == 400
    book, joined = Book(), Book()
    book.apply(whole)
    joined.apply(late)
    assert joined.bids() == book.bids()
    assert joined.asks() == book.asks()
    assert joined.update_id == book.update_id
    trades = whole[(whole["kind"] == Kind.TRADE) & (whole["receive_ns"] > opening["receive_ns"][0])]
    assert late[late["kind"] == Kind.TRADE].tobytes() == trades.tobytes()
    ticker = late[late["kind"] == Kind.TICKER][:8]
    assert set(ticker["field"]) == SENT
    assert ticker["flags"].tolist() == [0] * 7 + [int(Flag.LAST)]


def test_books_join_at_midnight(last_seconds: Events) -> None:
    first = events("demo", "ETHUSDT", 2, day="2026-03-02")
    deltas = last_seconds[last_seconds["kind"] == Kind.DELTA]
    assert first["update_id"][0] == deltas["update_id"][-1] + 1
    before, after = Book(), Book()
    before.apply(last_seconds)
    after.apply(first[first["kind"] == Kind.SNAPSHOT])
    assert before.best_bid is not None
    assert after.best_bid is not None
    assert abs(math.log(after.best_bid / before.best_bid)) < 5e-4


def test_everything_is_received_within_its_span_and_in_order(last_seconds: Events) -> None:
    rows = last_seconds
    midnight = day_start_ns(DAY)
    received = rows["receive_ns"]
    assert received[0] >= midnight + 86_390 * 10**9
    assert received[-1] < midnight + 86_400 * 10**9
    assert (np.diff(received) >= 0).all()
    assert (rows["publish_ns"] >= rows["exchange_ns"]).all()
    assert (received > rows["publish_ns"]).all()
    assert (rows["flags"][-1] & Flag.LAST) != 0


# -- the venue's rules -----------------------------------------------------------------------------


@pytest.mark.parametrize("market", sorted(PROFILES))
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_book_is_never_crossed_and_holds_200_levels_a_side(market: str, symbol: str) -> None:
    rows = events(market, symbol, 300)
    book = Book()
    frames = book.apply(rows)
    counters = book.counters
    assert frames == counters["frames"] == 3000
    assert book.valid
    assert {counters[name] for name in ("crossed", "one_sided", "unheld", "refused", "gaps")} == {0}
    assert len(book.bids()) == len(book.asks()) == SHOWN_LEVELS


def test_update_ids_have_no_gap_and_snapshots_come_once() -> None:
    rows = events("demo", "BTCUSDT", 300)
    books = rows[(rows["kind"] == Kind.SNAPSHOT) | (rows["kind"] == Kind.DELTA)]
    firsts = books[(books["flags"] & Flag.FIRST) != 0]
    assert (np.diff(firsts["update_id"]) == 1).all()
    assert (firsts["kind"] == Kind.SNAPSHOT).sum() == 1
    assert firsts["kind"][0] == Kind.SNAPSHOT


def test_a_level_row_always_changes_its_level() -> None:
    held: dict[tuple[int, int], int] = {}
    for row in events("demo", "ETHUSDT", 60):
        if row["kind"] not in (Kind.SNAPSHOT, Kind.DELTA) or row["side"] == 0:
            continue
        key = (int(row["side"]), int(row["price_ticks"]))
        assert held.get(key, 0) != row["qty_lots"]
        held[key] = int(row["qty_lots"])


def test_trades_are_at_the_touch_while_it_is_unchanged() -> None:
    """Within 100 ms the touch may go and come back, so not every trade is there; most are."""
    rows = events("demo", "BTCUSDT", 600)
    book, waiting = Book(), rows[:0]
    at_touch: list[bool] = []
    for frame in np.split(rows, np.flatnonzero(rows["flags"] & Flag.LAST != 0)[:-1] + 1):
        if frame["kind"][0] == Kind.TRADE:
            waiting = np.concatenate([waiting, frame])
        if frame["kind"][0] not in (Kind.SNAPSHOT, Kind.DELTA):
            continue
        before = (book.best_bid, book.best_ask)
        book.apply(frame)
        if before == (book.best_bid, book.best_ask):
            touch = {1: book.best_ask, -1: book.best_bid}
            at_touch += [row["price_ticks"] == touch[int(row["side"])] for row in waiting]
        waiting = rows[:0]
    assert len(at_touch) > 1000
    assert np.mean(at_touch) > 0.95


def test_traded_quantity_is_missing_in_the_next_frame() -> None:
    rows = events("demo", "BTCUSDT", 3600)
    # (side, price) -> lots taken since the last frame; only at a touch that stays.
    book = Book()
    bounds = np.flatnonzero((rows["flags"] & Flag.LAST != 0) & (rows["kind"] == Kind.DELTA))
    start = int(np.flatnonzero(rows["kind"] == Kind.DELTA)[0])
    book.apply(rows[:start])
    changes, volumes = [], []
    for stop in bounds[:12_000] + 1:
        frame = rows[start:stop]
        before = {1: (book.asks(1)[0], -1), -1: (book.bids(1)[0], 1)}
        book.apply(frame)
        for side, ((price, lots), own) in before.items():
            after = book.qty_lots(own, price)
            best = book.best_ask if side == 1 else book.best_bid
            if best == price:
                mine = (frame["kind"] == Kind.TRADE) & (frame["side"] == side)
                mine &= frame["flags"] & Flag.RPI == 0
                changes.append(after - lots)
                volumes.append(int(frame["qty_lots"][mine].sum()))
        start = int(stop)
    change, volume = np.array(changes, float), np.array(volumes, float)
    slope = np.cov(change, volume)[0, 1] / volume.var()
    error = change.std() / (volume.std() * math.sqrt(len(volume)))
    # Sells come when the bid side is thin, and it fills up again: the slope is below one.
    assert abs(slope + 1) < max(0.35, 4 * error)


def test_the_ticker_sends_a_snapshot_and_then_changes() -> None:
    rows = events("demo", "BTCUSDT", 600)
    ticker = rows[rows["kind"] == Kind.TICKER]
    frames = np.split(ticker, np.flatnonzero(ticker["flags"] & Flag.LAST != 0)[:-1] + 1)
    # No trade has happened yet, so there is no last price.
    assert set(frames[0]["field"]) == SENT - {int(Field.LAST_PRICE)}
    known: dict[int, int] = {}
    for row in ticker:
        assert known.get(int(row["field"])) != row["value"]
        known[int(row["field"])] = int(row["value"])
    assert known[Field.NEXT_FUNDING_MS] == day_start_ns(DAY) // 10**6 + 8 * 3_600_000
    assert abs(known[Field.MARK_PRICE] / known[Field.INDEX_PRICE] - 1) < 2e-3
    assert abs(known[Field.FUNDING_RATE]) < 1e5 * 3


def test_liquidations_are_rare_and_of_the_losing_side() -> None:
    market = altered(profile("null"), liquidations_per_h=600.0, vol_log_sd=0.0)
    rows = np.concatenate(list(generate(market, 7, "BTCUSDT", DAY, 0, 1200)))
    found = rows[rows["kind"] == Kind.LIQUIDATION]
    assert 20 < len(found) < 600
    assert set(found["side"]) == {1, -1}
    assert (found["qty_lots"] > 0).all()


# -- what the market looks like --------------------------------------------------------------------


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("market", ["demo", "null"])
def test_bars_look_like_recorded_ones(
    hours: dict[tuple[str, str], Bars], market: str, symbol: str
) -> None:
    found = hours[market, symbol]
    column: Callable[[str], npt.NDArray[np.float64]] = found.column
    returns = np.diff(np.log(column("mid_close"))) * 1e4
    assert not np.isnan(returns).any()
    assert np.nanmean(column("spread_one")) >= 0.99
    assert 0.25 < returns.std() < 1.6
    assert ((returns - returns.mean()) ** 4).mean() / returns.var() ** 2 > 5
    assert column("gap")[1:].sum() == 0
    assert 4 < np.nanmean(column("bid_reach")) < 12
    assert 9.9 < column("frames")[1:].mean() < 10.1
    assert 4 < column("updates")[1:].mean() / 10 < 40
    trades = column("buy_n") + column("sell_n")
    assert 5 < trades.mean() < 60
    # Clustered: far more variable than Poisson.
    assert trades.var() / trades.mean() > 2
    depth = column("bid_depth") / column("bid_q1") / column("mid_close")
    assert np.nanmedian(depth) > 4


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("market", ["demo", "null"])
def test_order_flow_explains_the_same_ten_seconds(
    hours: dict[tuple[str, str], Bars], market: str, symbol: str
) -> None:
    found = hours[market, symbol]
    log = np.log(found.column("mid_close"))[9::10]
    flow = found.column("ofi_1")[10:]
    flow = flow[: len(flow) // 10 * 10].reshape(-1, 10).sum(axis=1)
    returns = np.diff(log)[: len(flow)]
    # Calm hours of one night; over longer spans it is above 0.4, as `l2 synth --check` shows.
    assert np.corrcoef(flow[: len(returns)], returns)[0, 1] ** 2 > 0.3
    tape = (found.column("buy_qty") - found.column("sell_qty"))[10:]
    tape = tape[: len(tape) // 10 * 10].reshape(-1, 10).sum(axis=1)
    assert np.corrcoef(tape[: len(returns)], returns)[0, 1] > 0.15


# -- what is planted -------------------------------------------------------------------------------


def test_on_null_no_flow_predicts_the_next_minute(hours: dict[tuple[str, str], Bars]) -> None:
    for symbol in SYMBOLS:
        found = hours["null", symbol]
        label = forward(found.column("mid_close"), 60)
        counts = found.column("buy_n") - found.column("sell_n")
        for values in (found.column("ofi_1"), counts):
            ic, error = ic_and_error(trailing(values, 60)[: len(label)], label, 600)
            # Eighteen blocks may miss their own spread: not below Bartlett's for two 60 s windows.
            error = max(error, math.sqrt(40 / len(label)))
            assert abs(ic) < 3.5 * error


def test_bars_show_the_alpha_that_the_filter_finds(hours: dict[tuple[str, str], Bars]) -> None:
    found = hours["demo", "BTCUSDT"]
    planted = truth(profile("demo"), 7, "BTCUSDT", DAY)
    assert (found.t_ns == planted["t_ns"].to_numpy()[: len(found)]).all()
    bid, ask = found.column("bid_q1_mean"), found.column("ask_q1_mean")
    shown = trailing((bid - ask) / (bid + ask), 60)
    known = planted["filtered_alpha"].to_numpy()[: len(shown)]
    assert np.corrcoef(shown[3600:], known[3600:])[0, 1] > 0.7


# -- refusals --------------------------------------------------------------------------------------


def test_unknown_names_and_spans_are_rejected_at_once() -> None:
    with pytest.raises(ProfileError, match="known are default, null, demo"):
        profile("nulll")
    with pytest.raises(ProfileError, match="it lists BTCUSDT, ETHUSDT"):
        generate(profile("demo"), 7, "SOLUSDT", DAY)
    with pytest.raises(ValueError, match="expected 0 <= start < stop"):
        generate(profile("demo"), 7, "BTCUSDT", DAY, 10, 10)


# -- into the lake ---------------------------------------------------------------------------------


def test_frames_and_events_give_the_same_bars(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "x.frames.zst", profile("demo"), 7, SYMBOLS, DAY, 0, 120)
    decoder = Decoder()
    pieces: dict[str, list[Events]] = {symbol: [] for symbol in SYMBOLS}
    received = []
    for block in read_blocks(path):
        received += [int(line.partition(b" ")[0]) for line in block.data.splitlines()]
        decoded = decoder.decode_block(block)
        assert not decoded.rejects
        assert decoded.gaps == decoded.duplicates == decoded.steps_back == 0
        for symbol, rows in decoded.events.items():
            pieces[symbol].append(rows)
    assert received == sorted(received)
    for symbol in SYMBOLS:
        rows = np.concatenate(pieces[symbol])
        assert rows.tobytes() == events("demo", symbol, 120).astype(EVENT).tobytes()
        by_frames = bars_from_chunks(pieces[symbol], BUILT_IN[symbol], SETTINGS)
        straight = bars("demo", symbol, 120)
        assert by_frames.values.tobytes() == straight.values.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["x.frames.zst"]


def test_partitions_record_their_fingerprint(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "synthetic")
    assert write_bars(lake, profile("demo"), 7, "BTCUSDT", DAY, SETTINGS, 0, 60) == 60
    notes = lake.metadata("bars", "BTCUSDT", DAY)
    assert notes["made"] == "straight as bars"
    made_from = synthetic.fingerprint(profile("demo"), 7, "BTCUSDT", DAY, 0, 60)
    assert lake.is_current("bars", "BTCUSDT", DAY, made_from)
    assert not lake.is_current("bars", "BTCUSDT", DAY, made_from.replace(" 7 ", " 8 "))
    write_truth(lake, profile("demo"), 7, "BTCUSDT", DAY)
    planted = lake.read("truth", "BTCUSDT", DAY)
    assert planted.num_rows == 86_400
    assert set(planted.column_names).isdisjoint(lake.read("bars", "BTCUSDT", DAY).column_names[1:])


def test_a_capture_in_the_lake_is_under_its_date(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "synthetic")
    path = write_frames(lake, profile("demo"), 7, SYMBOLS, DAY, 0, 5)
    assert lake.captures(DAY) == [path]
    first = Path(path).read_bytes()
    write_frames(lake, profile("demo"), 7, SYMBOLS, DAY, 0, 5)
    assert Path(path).read_bytes() == first


def test_a_recorded_lake_takes_no_synthetic_data(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="holds recorded data"):
        write_truth(Lake(tmp_path, "recorded"), profile("demo"), 7, "BTCUSDT", DAY)
