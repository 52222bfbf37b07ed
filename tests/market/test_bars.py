"""The compiled bars against a slow reference, and their rules one by one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ReferenceBars
from streams import START_NS, framed, level_row, recorded, streams

from market.bars import (
    ARROW_SCHEMA,
    COLUMNS,
    MAX_BARS,
    BarBuilder,
    Bars,
    bar_inputs,
    bars_from_chunks,
    make_bars,
)
from market.book import Book
from market.events import ARROW_SCHEMA as EVENT_SCHEMA
from market.events import EVENT, Events, Field, Flag, Kind, to_arrow
from market.instruments import BUILT_IN, Instrument
from market.lake import Lake, LakeError
from market.settings import Settings, load
from market.units import MS_NS, SECOND_NS

BTC = BUILT_IN["BTCUSDT"]
#: Makes prices of a few thousand ticks and quantities of a few hundred lots reach the sweeps.
COARSE = Instrument(symbol="X", tick="0.5", lot="0.25", min_qty="1", min_notional="1")
STALE_S = 5.0


def joined(parts: list[Bars]) -> Bars:
    return Bars(
        t_ns=np.concatenate([p.t_ns for p in parts]),
        values=np.concatenate([p.values for p in parts]),
    )


def bars_of(events: Events, instrument: Instrument = COARSE) -> Bars:
    return bars_from_chunks([events], instrument, Settings())


def assert_same_bytes(left: Bars, right: Bars) -> None:
    np.testing.assert_array_equal(left.t_ns, right.t_ns)
    np.testing.assert_array_equal(left.values.view(np.int64), right.values.view(np.int64))


#: Room for rounding where a formula divides small differences: absolute, in the column's unit.
LOOSE = {"spread_std": 1e-6, "bid_slope": 1e-3, "ask_slope": 1e-3}
LOOSE |= {"bid_convexity": 1e-3, "ask_convexity": 1e-3, "rv": 1e-15, "bv": 1e-15}


def assert_as_reference(bars: Bars, events: Events, instrument: Instrument) -> None:
    t_ns, expected = ReferenceBars(instrument, STALE_S).run(events)
    np.testing.assert_array_equal(bars.t_ns, t_ns)
    for n, name in enumerate(COLUMNS):
        np.testing.assert_allclose(
            bars.values[:, n],
            expected[:, n],
            rtol=1e-7 if name in LOOSE else 1e-9,
            atol=LOOSE.get(name, 1e-9),
            err_msg=name,
        )


# Invariant: on any stream, every column of every bar equals its definition.
@given(streams())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_column_follows_its_definition_on_random_streams(frames):
    events = np.concatenate(frames)
    assert_as_reference(bars_of(events), events, COARSE)


CORNERS = [(tick, lot) for tick in ("0.00000001", "1000") for lot in ("0.001", "1000000")]


@pytest.mark.parametrize(("tick", "lot"), CORNERS)
@given(frames=streams())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_columns_follow_their_definition_on_coarse_and_fine_grids(tick, lot, frames):
    """Lots by the billion. Trades are left out: the plain VPIN counts every bucket."""
    events = np.concatenate(frames)
    events = events[events["kind"] != Kind.TRADE]
    events["qty_lots"] *= 1_000_000_000
    grid = Instrument(symbol="X", tick=tick, lot=lot, min_qty=lot, min_notional="5")
    assert_as_reference(bars_of(events, grid), events, grid)


def test_trades_beyond_int64_have_their_notional():
    grid = Instrument(symbol="X", tick="1000", lot="1000000", min_qty="1000000", min_notional="5")
    lots, price = 1 << 45, 1_000_000_007
    events = np.concatenate([opening(), trade(1, 1, price, lots), trade(2, -1, price, lots)])
    bars = bars_of(events, grid)
    for name in ("buy_notional", "sell_notional"):
        assert bars.column(name)[0] == pytest.approx(float(lots) * price * 1e9, rel=1e-12)
    assert bars.column("vwap")[0] == pytest.approx(price * 1e3, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("bybit-linear-20260809", 42), ("usdm-20240718", 12), ("usdm-20240808", 12)],
)
def test_every_column_follows_its_definition_on_recordings(data_dir: Path, name, seconds):
    events = recorded(data_dir, name, "BTCUSDT", seconds)
    bars = bars_of(events, BTC)
    assert_as_reference(bars, events, BTC)
    assert not bars.column("gap")[1:].any()


# Invariant: the bars of a stream do not depend on how it is split into calls, nor on closing by the
# clock in between, even in the middle of frames.
@given(streams(), st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_split_of_a_stream_gives_the_same_bytes(frames, data):
    events = np.concatenate(frames)
    builder, parts, start = BarBuilder(COARSE, STALE_S), [], 0
    while start < len(events):
        stop = start + data.draw(st.integers(1, 12))
        parts.append(builder.push(events[start:stop]))
        start = min(stop, len(events))
        before, after = (
            events["receive_ns"][start - 1],
            events["receive_ns"][min(start, len(events) - 1)],
        )
        if data.draw(st.booleans()):
            parts.append(builder.close_until(data.draw(st.integers(int(before), int(after)))))
    parts.append(builder.finish())
    assert_same_bytes(joined(parts), bars_of(events))
    assert builder.late == 0


def test_a_recording_frame_by_frame_gives_the_same_bytes(data_dir: Path):
    events = recorded(data_dir, "usdm-20240808", "BTCUSDT", 30)
    ends = np.flatnonzero(events["flags"] & Flag.LAST) + 1
    builder, parts, start = BarBuilder(BTC, STALE_S), [], 0
    for end in ends:
        parts.append(builder.close_until(int(events["receive_ns"][start])))
        parts.append(builder.push(events[start:end]))
        start = end
    assert_same_bytes(joined([*parts, builder.finish()]), bars_of(events, BTC))


# Invariant: a checkpoint over a valid book that is not stale changes no byte of any bar.
@given(streams(), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_checkpoints_over_a_valid_book_leave_no_trace(frames, data):
    frames = [frame for frame in frames if not (frame["flags"] & Flag.CHECKPOINT).any()]
    if not frames:
        return
    book, restated = Book(), []
    for frame in frames:
        book.apply(frame)
        restated.append(frame)
        if book.valid and data.draw(st.booleans()):
            restated.append(book.snapshot_rows(int(frame["receive_ns"][0])))
    assert_same_bytes(bars_of(np.concatenate(restated)), bars_of(np.concatenate(frames)))


def book_frame(kind: Kind, ms: float, *levels: tuple[int, int, int], flags: int = 0) -> Events:
    now = START_NS + round(ms * MS_NS)
    return framed([level_row(kind, *level) for level in levels], now, 1, flags)


def trade(ms: float, side: int, price: int, lots: int, flags: int = 0) -> Events:
    return framed(
        [level_row(Kind.TRADE, side, price, lots)], START_NS + round(ms * MS_NS), 1, flags
    )


def opening(ms: float = 0) -> Events:
    levels = [(1, 100 - n, 10 + n) for n in range(12)] + [(-1, 101 + n, 20 + n) for n in range(12)]
    return book_frame(Kind.SNAPSHOT, ms, *levels)


def values(*frames: Events, until_ms: float | None = None) -> list[dict[str, float]]:
    builder = BarBuilder(COARSE, STALE_S)
    parts = [builder.push(frame) for frame in frames]
    parts.append(
        builder.close_until(START_NS + round(until_ms * MS_NS)) if until_ms else builder.finish()
    )
    return [dict(zip(COLUMNS, row.tolist(), strict=True)) for row in joined(parts).values]


def test_an_event_at_t_belongs_to_the_next_bar():
    first, second = values(opening(), book_frame(Kind.DELTA, 1000, (1, 100, 3)))
    assert (first["frames"], second["frames"]) == (1, 1)
    assert (first["bid_q1"], second["bid_q1"]) == (10 * 0.25, 3 * 0.25)


def test_seconds_without_data_carry_the_book_until_it_is_stale():
    bars = values(opening(), until_ms=8000)
    assert len(bars) == 8
    assert [bar["stale_s"] for bar in bars] == pytest.approx(range(1, 9))
    assert [bar["gap"] for bar in bars] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert all(bar["mid_close"] == 100.5 * 0.5 for bar in bars[:5])
    assert all(np.isnan(bar["mid_close"]) and np.isnan(bar["bid_q5"]) for bar in bars[5:])
    assert all(
        bar["frames"] == bar["buy_qty"] == bar["ofi_1"] == bar["rv"] == 0 for bar in bars[1:]
    )


def test_a_stale_book_is_valid_again_from_the_next_frame_on():
    bars = values(opening(), book_frame(Kind.DELTA, 6400, (-1, 101, 0)), until_ms=8000)
    assert [bar["gap"] for bar in bars] == [0, 0, 0, 0, 0, 1, 1, 0]
    assert bars[6]["spread_mean"] == 2
    assert bars[6]["mid_open"] == bars[6]["mid_twap"] == 101 * 0.5


def test_a_gap_makes_its_second_and_all_until_the_next_snapshot_gaps():
    lost = book_frame(Kind.DELTA, 1500, (1, 100, 4), flags=Flag.GAP)
    bars = values(opening(), lost, opening(3200), opening(4000), until_ms=5000)
    assert [bar["gap"] for bar in bars] == [0, 1, 1, 1, 0]
    assert np.isnan([bar["mid_close"] for bar in bars]).tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert bars[1]["mid_twap"] == 100.5 * 0.5


def test_order_flow_comes_from_deltas_and_not_from_snapshots():
    moved = book_frame(Kind.SNAPSHOT, 500, (1, 100, 1), (-1, 101, 1))
    (bar,) = values(opening(), moved)
    assert bar["ofi_1"] == bar["bid_cancel"] == bar["ask_cancel"] == 0
    (bar,) = values(opening(), book_frame(Kind.DELTA, 500, (1, 100, 4), (-1, 101, 0)))
    assert bar["ofi_1"] == (4 - 10 + 20) * 0.25
    assert (bar["bid_cancel_1"], bar["ask_cancel_1"]) == (6 * 0.25, 20 * 0.25)


def test_traded_quantity_is_no_cancel_and_rpi_trades_take_no_level():
    drop = book_frame(Kind.DELTA, 500, (-1, 101, 5))
    (bar,) = values(opening(), trade(400, 1, 101, 12), drop)
    assert (bar["ask_cancel"], bar["ask_add"]) == (3 * 0.25, 0)
    (bar,) = values(opening(), trade(400, 1, 101, 12, Flag.RPI), drop)
    assert (bar["ask_cancel"], bar["ask_add"]) == (15 * 0.25, 0)
    (bar,) = values(opening(), trade(400, 1, 101, 18), drop)
    assert (bar["ask_cancel"], bar["ask_add_1"]) == (0, 3 * 0.25)


def test_trades_before_the_last_book_frame_explain_no_later_decrease():
    still = book_frame(Kind.DELTA, 450, (1, 90, 1))
    (bar,) = values(
        opening(), trade(400, 1, 101, 15), still, book_frame(Kind.DELTA, 500, (-1, 101, 5))
    )
    assert bar["ask_cancel"] == 15 * 0.25


def test_rpi_trades_are_flow_and_block_trades_are_not():
    rpi, block = trade(10, 1, 101, 4, Flag.RPI), trade(20, -1, 100, 1000, Flag.BLOCK)
    (bar,) = values(opening(), rpi, trade(15, -1, 100, 8), block)
    assert (bar["buy_qty"], bar["rpi_buy_qty"], bar["sell_qty"], bar["rpi_sell_qty"]) == (
        1,
        1,
        2,
        0,
    )
    assert (bar["block_buy_qty"], bar["block_sell_qty"]) == (0, 250)
    assert (bar["buy_n"], bar["sell_n"], bar["max_trade"]) == (1, 1, 2)
    assert bar["vwap"] == pytest.approx((101 * 1 + 100 * 2) / 3 * 0.5)


def test_a_best_price_that_comes_back_within_100_ms_flickers():
    out, back = (1, 100, 0), (1, 100, 10)
    quick = [book_frame(Kind.DELTA, 100, out), book_frame(Kind.DELTA, 200, back)]
    slow = [book_frame(Kind.DELTA, 100, out), book_frame(Kind.DELTA, 201, back)]
    assert [values(opening(), *moves)[0]["flicker"] for moves in (quick, slow)] == [1, 0]
    assert values(opening(), *quick)[0]["best_changes"] == 2


def test_ticker_values_hold_until_they_change():
    bars = values(opening(), ticker(250, Field.MARK_PRICE, 50_25000000), until_ms=3000)
    assert [bar["mark"] for bar in bars] == [50.25] * 3
    assert [bar["ticker_age_s"] for bar in bars] == pytest.approx([0.75, 1.75, 2.75])
    assert np.isnan([bar["funding_in_s"] for bar in bars]).all()


def ticker(ms: float, field: Field, value_e8: int) -> Events:
    row = np.zeros(1, EVENT)
    row["kind"], row["field"], row["value"] = Kind.TICKER, field, value_e8
    return framed([row], START_NS + round(ms * MS_NS), 1)


def test_predicted_funding_is_weighted_by_its_known_time():
    rate = Field.FUNDING_RATE
    bars = values(
        opening(),
        ticker(500, rate, 10_000),
        ticker(1250, rate, 30_000),
        ticker(3100, rate, 30_000),
        until_ms=4000,
    )
    assert [bar["funding_rate"] for bar in bars] == [1e-4, 3e-4, 3e-4, 3e-4]
    assert bars[0]["funding_mean"] == 1e-4
    assert bars[1]["funding_mean"] == pytest.approx(0.25 * 1e-4 + 0.75 * 3e-4)
    assert bars[2]["funding_mean"] == bars[3]["funding_mean"] == 3e-4


def test_the_basis_is_mark_over_index():
    quotes = ticker(1, Field.MARK_PRICE, 101 * 10**8), ticker(2, Field.INDEX_PRICE, 100 * 10**8)
    (half,), (both,) = values(opening(), quotes[0]), values(opening(), *quotes)
    assert np.isnan(half["basis_bps"])
    assert both["basis_bps"] == pytest.approx(np.log(1.01) * 1e4)


def test_vpin_is_of_full_volume_buckets_however_large_a_trade():
    """A price of 100 and a lot of 0.25 make 10,000 lots a bucket of 250,000."""
    coarse = msgspec.structs.replace(COARSE, tick="1")

    def vpin(*trades: tuple[int, int]) -> float:
        builder = BarBuilder(coarse, STALE_S)
        prints = [trade(n, side, 100, lots) for n, (side, lots) in enumerate(trades)]
        builder.push(np.concatenate([opening(), *prints]))
        return float(builder.finish().column("vpin")[0])

    assert np.isnan(vpin((1, 9_999)))
    assert vpin((1, 10_000)) == 1
    assert vpin((1, 7_500), (-1, 2_500)) == 0.5
    assert vpin((1, 5_000), (-1, 5_000), (1, 9_999)) == 0
    # Half of the sale makes the first bucket balanced; the rest fills three and a half of its own.
    assert vpin((1, 5_000), (-1, 40_000)) == pytest.approx(3 / 4)
    assert vpin((-1, 10**15)) == 1


def test_bands_and_sweeps_beyond_the_book_are_null_and_marked():
    (bar,) = values(opening())
    assert bar["truncated"] == 1
    assert np.isnan(bar["sweep_buy_1m"])
    deep = [(1, 40_000 - n, 4_000) for n in range(40)] + [
        (-1, 40_001 + n, 4_000) for n in range(40)
    ]
    (bar,) = values(book_frame(Kind.SNAPSHOT, 0, *deep))
    assert bar["truncated"] == 0
    assert bar["bid_d1"] == sum((40_000 - n) * 0.5 * 1000 for n in range(4))
    assert bar["sweep_buy_10k"] == pytest.approx(0.5 / 40_000.5 * 1e4)


def test_nothing_closes_before_the_first_event():
    builder = BarBuilder(BTC, STALE_S)
    assert len(builder.close_until(START_NS)) == len(builder.finish()) == 0
    assert len(builder.push(np.zeros(0, EVENT))) == 0


def test_an_event_older_than_a_closed_second_counts_now_and_is_counted():
    builder = BarBuilder(COARSE, STALE_S)
    builder.push(opening())
    assert len(builder.close_until(START_NS + SECOND_NS)) == 1
    builder.push(trade(900, 1, 101, 4))
    bar = builder.finish()
    assert builder.late == 1
    assert bar.column("buy_qty").tolist() == [1.0]
    assert bar.column("trade_age_s").tolist() == [1.0]


def test_trades_without_a_side_are_refused_and_counted():
    builder = BarBuilder(COARSE, STALE_S)
    builder.push(np.concatenate([opening(), trade(10, 0, 101, 4), trade(10, 1, 101, -4)]))
    assert builder.refused == 2
    assert builder.finish().column("buy_n").tolist() == [0.0]


def test_a_clock_that_jumps_is_an_error_and_not_an_allocation():
    builder = BarBuilder(BTC, STALE_S)
    builder.push(opening())
    with pytest.raises(ValueError, match="wrong clock"):
        builder.push(opening((MAX_BARS + 2) * 1000))
    with pytest.raises(ValueError, match="dtype"):
        builder.push(np.zeros(1))


def test_arrow_says_null_where_memory_says_nan():
    table = bars_of(opening()).to_arrow()
    assert table.schema == ARROW_SCHEMA
    assert table.column_names == ["t_ns", *COLUMNS]
    assert table["mark"].null_count == table["sweep_buy_1m"].null_count == 1
    assert table["mid_close"].null_count == 0
    assert not any(pc.any(pc.is_nan(table[name])).as_py() for name in COLUMNS)


# -- partitions ------------------------------------------------------------------------------------

DAY = "2023-11-14"  # that of START_NS


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def write_events(lake: Lake, events: Events, **extra: str) -> None:
    with lake.writer("events", "X", DAY, EVENT_SCHEMA, inputs="abc", extra=extra) as out:
        for start in range(0, len(events), 7):
            out.write_table(to_arrow(events[start : start + 7]).cast(out.schema))


def test_a_partition_of_bars_holds_what_its_events_give_and_names_them(lake: Lake):
    events = np.concatenate([opening(), trade(700, 1, 101, 4), trade(2500, -1, 100, 1)])
    write_events(lake, events, instrument=msgspec.json.encode(COARSE).decode())
    assert make_bars(lake, "X", DAY, Settings()) == 3
    assert lake.read("bars", "X", DAY).equals(bars_of(events).to_arrow())
    assert lake.is_current("bars", "X", DAY, inputs=lake.fingerprint("events", "X", DAY))


def test_bars_of_another_stale_limit_are_not_current(lake: Lake):
    write_events(lake, opening(), instrument=msgspec.json.encode(COARSE).decode())
    make_bars(lake, "X", DAY, Settings())
    other = load(environ={}, overrides=["market.stale_after_s=9"])
    assert lake.is_current("bars", "X", DAY, bar_inputs(lake, "X", DAY, Settings()))
    assert not lake.is_current("bars", "X", DAY, bar_inputs(lake, "X", DAY, other))


def test_bars_without_events_or_an_instrument_are_errors(lake: Lake):
    with pytest.raises(LakeError, match="no such partition"):
        make_bars(lake, "X", DAY, Settings())
    write_events(lake, opening())
    with pytest.raises(LakeError, match="names no instrument for X"):
        make_bars(lake, "X", DAY, Settings())
