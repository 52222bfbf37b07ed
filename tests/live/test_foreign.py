"""Data of other formats: what they hold becomes the same bars; what they do not is named; bad files are refused."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live.archives.conversion import ArchiveError
from live.archives.foreign import Converted, instrument_of, units, write_capture
from live.archives.hftbacktest import BUY, CLEAR, EXCHANGE, LOCAL, ROW, SELL, EventFile, export
from live.archives.tardis import TardisFile
from market.bars import COLUMNS, bars_from_chunks
from market.book import Book
from market.events import Events, Flag, Kind, from_arrow
from market.ingest import ingest
from market.instruments import BUILT_IN, Instrument, partition_instrument
from market.lake import Lake
from market.settings import Settings
from market.wire.capture import CaptureWriter, read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of, scan
from orchestration.cli import main
from proving.bench.command import peer_ready, run_peer
from tests.live.foreign_files import BOOK_HEADER, TRADE_HEADER, book_rows, csv, tardis_files

BTC = BUILT_IN["BTCUSDT"]
SETTINGS = Settings()
LEVELS = [
    (0, "true", "bid", "100.0", "1"),
    (0, "true", "ask", "100.1", "2"),
    (100, "false", "bid", "99.9", "3"),
    (200, "false", "ask", "100.1", "0"),
    (200, "false", "ask", "100.2", "1"),
]
#: Times of the formats are µs and ms; nothing else holds the 24-hour turnover.
LOST_BY_TARDIS = {"turnover_24h"}
LOST_BY_HFTBACKTEST = {
    *("mark", "index_price", "basis_bps", "funding_rate", "funding_mean", "funding_in_s"),
    *("open_interest", "turnover_24h", "ticker_age_s"),
}


def events_of(capture: Path, symbol: str) -> tuple[Events, Instrument]:
    """All rows of a symbol, received in whole µs."""
    instruments = instruments_of([str(capture)], [symbol])
    decoder = Decoder(instruments, 200, [symbol], follow=False)
    parts = [decoder.decode_block(block).events for block in read_blocks(capture)]
    rows = np.concatenate([part[symbol] for part in parts if symbol in part])
    rows["receive_ns"] = rows["receive_ns"] // 1000 * 1000
    return rows, instruments[symbol]


def bars(rows: Events, instrument: Instrument) -> dict[str, np.ndarray]:
    made = bars_from_chunks([rows], instrument, SETTINGS)
    return {"t_ns": made.t_ns, **dict(zip(COLUMNS, made.values.T, strict=True))}


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> set[str]:
    assert len(one["t_ns"]) == len(other["t_ns"]) > 5
    return {name for name in one if not np.array_equal(one[name], other[name], equal_nan=True)}


def converted(out: Path, *paths: Path, tick: str = "", lot: str = "") -> Converted:
    """Tardis files of any symbols as a capture."""
    sources = [TardisFile(path, "bybit") for path in paths]
    instruments = {
        symbol: instrument_of(symbol, [s for s in sources if s.symbol == symbol], tick, lot)
        for symbol in {source.symbol for source in sources}
    }
    return write_capture(out, sources, instruments, 200)


def recording(data_dir: Path, name: str) -> Path:
    (path,) = data_dir.glob(name)
    return path


# -- the same bars ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bybit-linear-*", "usdm-20240808*"])
def test_a_recording_as_tardis_files_gives_the_same_bars(
    data_dir: Path, tmp_path: Path, name: str
) -> None:
    capture = recording(data_dir, name)
    rows = {symbol: events_of(capture, symbol) for symbol in ("BTCUSDT", "ETHUSDT")}
    files = [
        path
        for symbol, (events, instrument) in rows.items()
        for path in tardis_files(tmp_path / symbol, events, instrument)
    ]
    done = converted(tmp_path / "x.frames.zst", *files[::-1])
    assert done.refused == 0
    for symbol, (events, instrument) in rows.items():
        again, inferred = events_of(tmp_path / "x.frames.zst", symbol)
        assert (inferred.tick, inferred.lot) == (instrument.tick, instrument.lot)
        assert not (again["flags"] & Flag.GAP).any()
        lost = LOST_BY_TARDIS if name.startswith("bybit") else set()
        assert differing(bars(events, instrument), bars(again, instrument)) == lost


@pytest.mark.parametrize("name", ["bybit-linear-*", "usdm-20240808*"])
def test_a_date_exported_and_converted_back_gives_the_same_bars(
    data_dir: Path, tmp_path: Path, name: str
) -> None:
    capture = str(recording(data_dir, name))
    lake = Lake(tmp_path / "lake", "recorded")
    (symbol, day), *_ = keys = list(scan([capture]))
    ingest(lake, [capture], keys, SETTINGS)
    export(lake, symbol, day, tmp_path / "x.npz")
    instrument = partition_instrument(lake.metadata("events", symbol, day), symbol)
    source = EventFile(tmp_path / "x.npz", symbol)
    inferred = instrument_of(symbol, [source], "", "")
    assert (inferred.tick, inferred.lot) == (instrument.tick, instrument.lot)
    write_capture(tmp_path / "x.frames.zst", [source], {symbol: instrument}, 200)
    assert not source.refused.counts
    stored = from_arrow(lake.open("events", symbol, day).read())
    again = from_capture(tmp_path / "x.frames.zst", symbol)
    lost = LOST_BY_HFTBACKTEST if name.startswith("bybit") else {"lag_ms"}
    assert differing(bars(stored, instrument), bars(again, instrument)) == lost


def from_capture(path: Path, symbol: str) -> Events:
    instruments = instruments_of([str(path)], [symbol])
    decoder = Decoder(instruments, 200, [symbol], follow=False)
    return np.concatenate(
        [
            part[symbol]
            for block in read_blocks(path)
            if symbol in (part := decoder.decode_block(block).events)
        ]
    )


@pytest.mark.peers
@pytest.mark.parametrize("name", ["bybit-linear-*", "usdm-20240808*"])
def test_the_library_replays_an_exported_date_to_our_book(
    data_dir: Path, tmp_path: Path, name: str
) -> None:
    if not peer_ready():
        pytest.skip("the peer is not installed: make bench-peers")
    capture = str(recording(data_dir, name))
    lake = Lake(tmp_path / "lake", "recorded")
    (symbol, day), *_ = keys = list(scan([capture]))
    ingest(lake, [capture], keys, SETTINGS)
    export(lake, symbol, day, tmp_path / "x.npz")
    instrument = partition_instrument(lake.metadata("events", symbol, day), symbol)
    events = from_arrow(lake.open("events", symbol, day).read())
    events = events[(events["kind"] <= Kind.DELTA) | (events["kind"] == Kind.TRADE)]
    instants, starts = np.unique(events["receive_ns"], return_index=True)
    np.save(tmp_path / "instants.npy", instants)
    run_peer(
        "hftbacktest_events.py", "replay", tmp_path / "x.npz", tmp_path / "instants.npy",
        instrument.tick, instrument.lot, tmp_path / "found.npz",
    )  # fmt: skip
    with np.load(tmp_path / "found.npz") as found:
        assert found["same"]
        book = Book()
        ends = [*starts[1:], len(events)]
        for n, (start, end) in enumerate(zip(starts, ends, strict=True)):
            book.apply(events[start:end])
            ours_now = [side[0][0] if side else 0 for side in (book.bids(), book.asks())]
            assert [found["bid"][n], found["ask"][n]] == ours_now, instants[n]
        ours = {(1, *level) for level in book.bids()} | {(-1, *level) for level in book.asks()}
        assert ours == {tuple(level) for level in found["levels"].tolist()}


@pytest.mark.peers
def test_tardis_files_through_the_library_give_the_same_bars_as_ours(
    data_dir: Path, tmp_path: Path
) -> None:
    if not peer_ready():
        pytest.skip("the peer is not installed: make bench-peers")
    events, instrument = events_of(recording(data_dir, "bybit-linear-*"), "BTCUSDT")
    book, trades, _ = tardis_files(tmp_path, events, instrument)
    run_peer("hftbacktest_events.py", "tardis", tmp_path / "theirs.npz", trades, book)
    source = EventFile(tmp_path / "theirs.npz", "BTCUSDT")
    write_capture(tmp_path / "theirs.frames.zst", [source], {"BTCUSDT": instrument}, 200)
    converted(tmp_path / "ours.frames.zst", book, trades)
    ours, theirs = (
        from_capture(tmp_path / f"{name}.frames.zst", "BTCUSDT") for name in ("ours", "theirs")
    )
    assert not source.refused.counts
    assert differing(bars(ours, instrument), bars(theirs, instrument)) == set()


# -- what is refused, and what is left out -----------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        (BOOK_HEADER.replace(",amount", ""), [], "book without the columns amount"),
        (BOOK_HEADER.replace("local_", "l_"), [], "book without the columns local_timestamp"),
        ("time,price", ["1,2"], "neither incremental_book_L2 nor trades nor derivative_ticker"),
        (BOOK_HEADER, [row.replace("bybit", "deribit") for row in book_rows(LEVELS)], "deribit"),
        (BOOK_HEADER, [], "has a header and no rows"),
        (BOOK_HEADER, book_rows(LEVELS) + book_rows(LEVELS, "ETHUSDT"), "symbol ETHUSDT beside"),
        (BOOK_HEADER, book_rows(LEVELS[::-1]), "row 3: received before the row above"),
        (BOOK_HEADER, [row.replace("99.9", "cheap") for row in book_rows(LEVELS)], "cheap"),
        (BOOK_HEADER, [row.replace("1780", "1") for row in book_rows(LEVELS)], "no time in µs"),
        ("", [], "empty, without a header"),
        (BOOK_HEADER, book_rows(LEVELS, "BTCUSD"), "BTCUSD: an inverse contract"),
        (BOOK_HEADER, book_rows(LEVELS, "ETHUSDZ26"), "ETHUSDZ26: an inverse contract"),
        (BOOK_HEADER, book_rows(LEVELS, "BTC/USDT:USDT"), "not a symbol of the venue"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_line(
    tmp_path: Path, header: str, rows: list[str], said: str
) -> None:
    with pytest.raises(ArchiveError, match=said) as caught:
        converted(tmp_path / "x.frames.zst", csv(tmp_path / "book.csv.gz", header, rows))
    assert "book.csv.gz" in str(caught.value) or "USD" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*frames*"))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_a_truncated_gz_is_refused_and_nothing_is_left(tmp_path: Path, share: float) -> None:
    many = [(ms, "false", "bid", f"{90 + ms % 97 / 10:.1f}", str(ms)) for ms in range(1, 30_000)]
    path = csv(tmp_path / "book.csv.gz", BOOK_HEADER, book_rows(many))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ArchiveError, match="cannot be read as CSV"):
        converted(tmp_path / "x.frames.zst", path)
    assert not list(tmp_path.glob("*frames*"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("bid,99.8,-1", "no quantity, or below zero"),
        ("bid,-99.8,1", "no price above zero"),
        ("bid,99.85,1", "a price between two ticks of 0.1"),
        ("bid,99.8,0.0005", "a quantity between two lots of 0.001"),
        ("unknown,99.8,1", "no side"),
        (",99.8,1", "no side"),
        ("bid,,1", "no price above zero"),
        ("bid,99.8,", "no quantity, or below zero"),
        ("bid,nan,1", "no price above zero"),
        ("bid,99.8,inf", "a quantity between two lots of 0.001"),
        ("bid,99.8,1e300", "a quantity between two lots of 0.001"),
        ("bid,99.8,1,more", "another number of columns than the header"),
    ],
)
def test_a_bad_row_is_left_out_counted_and_located(tmp_path: Path, row: str, reason: str) -> None:
    rows = book_rows(LEVELS)
    whole = converted(tmp_path / "a.frames.zst", csv(tmp_path / "a.csv", BOOK_HEADER, rows))
    head = rows[2].rsplit(",", 3)[0]
    path = csv(tmp_path / "b.csv", BOOK_HEADER, [*rows[:3], f"{head},{row}", *rows[3:]])
    done = converted(tmp_path / "b.frames.zst", path, tick="0.1", lot="0.001")
    assert done.refused == 1
    assert done.findings == (f"b.csv: 1 rows left out, the first is row 4: {reason}",)
    assert done.rows == whole.rows
    assert same_frames(tmp_path / "a.frames.zst", tmp_path / "b.frames.zst")


def same_frames(one: Path, other: Path) -> bool:
    texts = [b"".join(block.data for block in read_blocks(path)) for path in (one, other)]
    return texts[0].split(b"\n")[1:] == texts[1].split(b"\n")[1:]


def shuffled(rows: list[str]) -> tuple[str, list[str]]:
    order = [7, 0, 5, 3, 2, 6, 1, 4]
    return tuple(  # type: ignore[return-value]
        [",".join(line.split(",")[n] for n in order) for line in part]
        for part in ([BOOK_HEADER], rows)
    )


@pytest.mark.parametrize(
    "write",
    [
        lambda path, rows: csv(path / "b.csv.gz", BOOK_HEADER, rows, "\r\n"),
        lambda path, rows: csv(path / "b.csv", BOOK_HEADER, rows),
        lambda path, rows: csv(path / "b.csv", f"{BOOK_HEADER},note", [f"{row},x" for row in rows]),
        lambda path, rows: csv(path / "b.csv", shuffled(rows)[0][0], shuffled(rows)[1]),
        lambda path, rows: csv(path / "b.csv", BOOK_HEADER, [*rows, "", ""]),
        lambda path, rows: csv(path / "b.csv", f"\ufeff{BOOK_HEADER}", rows),
        lambda path, rows: csv(
            path / "b.csv", BOOK_HEADER, [row.replace("BTCUSDT", '"BTCUSDT"') for row in rows]
        ),
    ],
)
def test_line_ends_column_order_and_packing_do_not_matter(
    tmp_path: Path, write: Callable[[Path, list[str]], Path]
) -> None:
    rows = book_rows(LEVELS)
    converted(tmp_path / "a.frames.zst", csv(tmp_path / "a.csv.gz", BOOK_HEADER, rows))
    converted(tmp_path / "b.frames.zst", write(tmp_path, rows))
    assert same_frames(tmp_path / "a.frames.zst", tmp_path / "b.frames.zst")


def book_of(path: Path, symbol: str = "BTCUSDT") -> Book:
    book = Book()
    book.apply(from_capture(path, symbol))
    return book


def test_rows_of_one_instant_are_one_frame_and_snapshots_replace_the_book(tmp_path: Path) -> None:
    again = [*LEVELS, (300, "true", "bid", "98.0", "4"), (300, "true", "ask", "98.2", "5")]
    converted(tmp_path / "x.frames.zst", csv(tmp_path / "b.csv", BOOK_HEADER, book_rows(again)))
    rows = from_capture(tmp_path / "x.frames.zst", "BTCUSDT")
    assert np.count_nonzero(rows["flags"] & Flag.FIRST) == 4
    assert np.diff(np.unique(rows["update_id"])).tolist() == [1, 1, 1]
    assert (rows["receive_ns"] - rows["exchange_ns"] == 5_000_000).all()
    book = book_of(tmp_path / "x.frames.zst")
    assert (book.bids(), book.asks()) == ([(980, 4000)], [(982, 5000)])


def test_a_crossed_snapshot_is_kept_and_the_book_invalid(tmp_path: Path) -> None:
    crossed = [(0, "true", "bid", "100.2", "1"), (0, "true", "ask", "100.1", "2")]
    path = csv(tmp_path / "b.csv", BOOK_HEADER, book_rows([*crossed, *LEVELS[2:]]))
    assert converted(tmp_path / "x.frames.zst", path).refused == 0
    rows = from_capture(tmp_path / "x.frames.zst", "BTCUSDT")
    book = Book()
    book.apply(rows[:2])
    assert not book.valid


def test_levels_beyond_the_depth_are_cut_as_the_venue_cuts_them(tmp_path: Path) -> None:
    deep = [(0, "true", "bid", f"{100 - n / 10:.1f}", "1") for n in range(300)]
    deep += [(0, "true", "ask", f"{100.1 + n / 10:.1f}", "1") for n in range(300)]
    deep += [(1, "false", "bid", "100.0", "0"), (2, "false", "ask", "100.0", "7")]
    path = csv(tmp_path / "b.csv", BOOK_HEADER, book_rows(deep))
    converted(tmp_path / "x.frames.zst", path)
    book = book_of(tmp_path / "x.frames.zst")
    assert (len(book.bids()), len(book.asks())) == (200, 200)
    assert (book.bids()[0][0], book.bids()[-1][0]) == (999, 800)
    assert (book.asks()[0], book.asks()[-1][0]) == ((1000, 7000), 1199)


def test_days_and_symbols_in_any_order_are_one_stream(tmp_path: Path) -> None:
    day = 86_400_000
    one, two = (
        csv(tmp_path / f"{n}.csv", BOOK_HEADER, book_rows([(t + n * day, *r) for t, *r in LEVELS]))
        for n in (0, 1)
    )
    other = csv(tmp_path / "eth.csv", BOOK_HEADER, book_rows(LEVELS, "ETHUSDT"))
    for name, order in (("a", (one, other, two)), ("b", (two, one, other))):
        done = converted(tmp_path / f"{name}.frames.zst", *order)
        assert done.frames == {"BTCUSDT": 6, "ETHUSDT": 3}
    assert (tmp_path / "a.frames.zst").read_bytes() == (tmp_path / "b.frames.zst").read_bytes()
    assert len(list(scan([str(tmp_path / "a.frames.zst")]))) == 3
    with pytest.raises(ArchiveError, match="begins before"):
        converted(
            tmp_path / "c.frames.zst", one, csv(tmp_path / "c.csv", BOOK_HEADER, lines_of(one))
        )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_any_division_of_rows_into_files_gives_the_same_capture(data: st.DataObject) -> None:
    """Files may be cut between any two instants, and given in any order."""
    steps = data.draw(st.lists(st.integers(1, 3), min_size=6, max_size=30))
    times = np.cumsum(steps).tolist()
    prices = data.draw(st.lists(st.integers(980, 999), min_size=len(times), max_size=len(times)))
    levels = [(0, "true", "bid", "98.0", "1"), (0, "true", "ask", "101.0", "1")]
    levels += [
        (ms, "false", "bid", f"{n / 10:.1f}", str(n % 3))
        for ms, n in zip(times, prices, strict=True)
    ]
    cuts = sorted(set(data.draw(st.lists(st.integers(2, len(levels)), max_size=5))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pieces = [
            csv(folder / f"{n}.csv", BOOK_HEADER, book_rows(levels[a:b]))
            for n, (a, b) in enumerate(pairwise([0, *cuts, len(levels)]))
            if a < b
        ]
        whole = csv(folder / "all.csv", BOOK_HEADER, book_rows(levels))
        converted(folder / "a.frames.zst", whole, tick="0.1", lot="1")
        order = data.draw(st.permutations(pieces))
        converted(folder / "b.frames.zst", *order, tick="0.1", lot="1")
        assert same_frames(folder / "a.frames.zst", folder / "b.frames.zst")


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


def test_trades_of_no_side_are_left_out_and_ids_of_others_are_unlike(tmp_path: Path) -> None:
    rows = [
        f"bybit,BTCUSDT,{us},{us + 9},x,{side},100.1,{amount}"
        for us, side, amount in [
            (1_780_000_000_000_000, "buy", "1"),
            (1_780_000_000_000_000, "sell", "1"),
            (1_780_000_000_000_000, "unknown", "1"),
            (1_780_000_000_000_400, "buy", "0"),
            (1_780_000_000_000_700, "buy", "2"),
        ]
    ]
    done = converted(tmp_path / "x.frames.zst", csv(tmp_path / "t.csv", TRADE_HEADER, rows))
    assert done.refused == 2
    trades = from_capture(tmp_path / "x.frames.zst", "BTCUSDT")
    assert trades["side"].tolist() == [1, -1, 1]
    assert len(np.unique(trades["update_id"])) == 3


def test_empty_cells_of_a_ticker_are_no_rows(tmp_path: Path) -> None:
    header = "exchange,symbol,timestamp,local_timestamp,funding_timestamp,funding_rate,"
    header += "predicted_funding_rate,open_interest,last_price,index_price,mark_price"
    rows = [
        "bybit,BTCUSDT,1780000000000000,1780000000005000,,,,,,,",
        "bybit,BTCUSDT,1780000001000000,1780000001005000,1780012800000000,-0.0001,,5.12345,,,1e2",
    ]
    converted(tmp_path / "x.frames.zst", csv(tmp_path / "d.csv", header, rows))
    ticker = from_capture(tmp_path / "x.frames.zst", "BTCUSDT")
    found = dict(zip(ticker["field"].tolist(), ticker["value"].tolist(), strict=True))
    assert found == {1: 10**10, 3: -10_000, 4: 1_780_012_800_000, 5: 5123}


# -- event files -------------------------------------------------------------------------------------


def event_rows(*rows: tuple[int, int, float, float]) -> np.ndarray:
    """(ev, ms, px, qty); received 5 ms later."""
    out = np.zeros(len(rows), ROW)
    for n, (ev, ms, px, qty) in enumerate(rows):
        at = 1_780_000_000_000_000_000 + ms * 1_000_000
        out[n] = (ev | EXCHANGE | LOCAL, at, at + 5_000_000, px, qty, 0, 0, 0.0)
    return out


SOUND = event_rows(
    (CLEAR, 0, 0, 0), (4 | BUY, 0, 100, 1), (4 | SELL, 0, 100.1, 2), (1 | BUY, 9, 99.9, 3), (2 | SELL, 9, 100, 1)
)  # fmt: skip


def event_file(path: Path, **arrays: np.ndarray) -> EventFile:
    np.savez_compressed(path, **arrays)
    return EventFile(path, "BTCUSDT")


def taken(tmp_path: Path, rows: np.ndarray) -> tuple[Events, dict[str, int]]:
    source = event_file(tmp_path / "x.npz", data=rows)
    write_capture(tmp_path / "x.frames.zst", [source], {"BTCUSDT": BTC}, 200)
    return from_capture(tmp_path / "x.frames.zst", "BTCUSDT"), dict(source.refused.counts)


def test_events_become_frames_and_a_clear_alone_empties_the_book(tmp_path: Path) -> None:
    rows, refused = taken(tmp_path, np.concatenate([SOUND, event_rows((CLEAR, 20, 0, 0))]))
    assert not refused
    assert rows["kind"].tolist() == [1, 1, 2, 3, 1]
    book = Book()
    book.apply(rows)
    assert not book.valid
    assert book.bids() == book.asks() == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((1, 10, 99.8, 1.0), "no side"),
        ((1 | BUY, 10, -1.0, 1.0), "no price above zero"),
        ((1 | BUY, 10, 99.8, -1.0), "no quantity, or below zero"),
        ((2 | BUY, 10, 99.8, 0.0), "no quantity, or below zero"),
        ((1 | BUY, 10, float("nan"), 1.0), "no price above zero"),
        ((1 | BUY, 10, 99.87, 1.0), "a price between two ticks of 0.1"),
        ((13 | BUY, 10, 99.8, 1.0), "neither of depth nor a trade"),
    ],
)
def test_a_bad_event_is_left_out_and_counted(
    tmp_path: Path, row: tuple[int, int, float, float], reason: str
) -> None:
    good, _ = taken(tmp_path, SOUND)
    rows, refused = taken(tmp_path, np.concatenate([SOUND, event_rows(row)]))
    assert refused == {reason: 1}
    assert np.array_equal(rows, good)


def test_events_that_only_the_exchange_saw_are_those_of_another_row(tmp_path: Path) -> None:
    split = np.repeat(SOUND, 2)
    split["ev"][::2] &= ~np.uint64(LOCAL)
    split["ev"][1::2] &= ~np.uint64(EXCHANGE)
    assert np.array_equal(taken(tmp_path, split)[0], taken(tmp_path, SOUND)[0])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "damaged"),
        (lambda raw: b"PK" + raw[5:], "damaged"),
        (lambda raw: b"", "damaged"),
        (lambda raw: b"plain text, no array", "damaged"),
    ],
)
def test_a_damaged_event_file_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    np.savez_compressed(tmp_path / "x.npz", data=SOUND)
    (tmp_path / "x.npz").write_bytes(damage((tmp_path / "x.npz").read_bytes()))
    with pytest.raises(ArchiveError, match=said):
        EventFile(tmp_path / "x.npz", "BTCUSDT")


def test_an_array_that_is_none_of_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="not of hftbacktest's events"):
        event_file(tmp_path / "x.npz", data=np.zeros(3))
    with pytest.raises(ArchiveError, match="several arrays"):
        event_file(tmp_path / "x.npz", a=SOUND, b=SOUND)
    with pytest.raises(ArchiveError, match="holds no events"):
        event_file(tmp_path / "x.npz", data=SOUND[:0])
    with pytest.raises(ArchiveError, match="row 3: received before"):
        taken(tmp_path, SOUND[::-1])


def test_after_a_gap_the_exported_book_is_empty_until_a_snapshot(tmp_path: Path) -> None:
    levels = [*LEVELS, (300, "true", "bid", "98.0", "4"), (300, "true", "ask", "98.2", "5")]
    converted(tmp_path / "x.frames.zst", csv(tmp_path / "b.csv", BOOK_HEADER, book_rows(levels)))
    capture = tmp_path / "gap.frames.zst"
    text = b"".join(block.data for block in read_blocks(tmp_path / "x.frames.zst")).split(b"\n")
    with CaptureWriter(capture) as writer:
        writer.append_block(b"\n".join([*text[:2], *text[3:]]))  # without the first delta
    lake = Lake(tmp_path / "lake", "recorded")
    (symbol, day), *_ = keys = list(scan([str(capture)]))
    ingest(lake, [str(capture)], keys, SETTINGS)
    done = export(lake, symbol, day, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        kinds = (file["data"]["ev"] & np.uint64(0xFF)).tolist()
    assert kinds == [3, 4, 4, 3, 3, 4, 4]
    assert (done.rows, done.left_out, done.moved) == (7, 2, 0)


@pytest.mark.parametrize(
    ("symbol", "amounts", "lot"),
    [
        ("BTCUSDT", ["1", "0.5"], "0.001"),
        ("ETHUSDT", ["1.234", "0.5"], "0.001"),  # finer than the built-in lot
        ("BTCUSDT", ["1"] * 200 + ["0.00055"], "0.001"),  # one wrong row moves no grid
        ("1000PEPEUSDT", ["12000", "100"], "1"),
        ("XYZUSDT", ["0.25", "10"], "0.01"),
    ],
)
def test_a_lot_is_built_in_or_the_coarsest_that_fits(
    tmp_path: Path, symbol: str, amounts: list[str], lot: str
) -> None:
    levels = [(n, "false", "bid", "99.9", amount) for n, amount in enumerate(amounts)]
    source = TardisFile(csv(tmp_path / "b.csv", BOOK_HEADER, book_rows(levels, symbol)), "bybit")
    assert instrument_of(symbol, [source], "", "").lot == lot
    assert instrument_of(symbol, [source], "0.5", "7").tick == "0.5"


def test_units_are_whole_or_told_apart() -> None:
    found, whole = units(np.array([86_723.4, 86_723.45, 1e-8, 3e9]), "0.1")
    assert whole.tolist() == [True, False, False, True]
    assert found[[0, 3]].tolist() == [867_234, 30_000_000_000]
    assert units(np.array([1e-8, 12_345.00000001]), "0.00000001")[1].all()


# -- the verbs ---------------------------------------------------------------------------------------


def test_the_verbs_convert_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = str(csv(tmp_path / "b.csv", BOOK_HEADER, book_rows(LEVELS)))
    out = str(tmp_path / "x.frames.zst")
    assert main(["convert", "--tardis", book, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == {"BTCUSDT": 3}
    root = ["--root", str(tmp_path / "lake")]
    assert main(["ingest", out, *root]) == 0
    npz = str(tmp_path / "x.npz")
    date = ["--symbol", "BTCUSDT", "--date", "2026-05-28"]
    assert main(["export", "--hftbacktest", npz, *date, *root]) == 0
    again = ["--symbol", "BTCUSDT", "--out", str(tmp_path / "y.frames.zst")]
    assert main(["convert", "--hftbacktest", npz, *again]) == 0
    assert "6 rows as 3 of BTCUSDT frames" in capsys.readouterr().out
    assert book_of(Path(out)).bids() == book_of(tmp_path / "y.frames.zst").bids()


def test_a_date_without_events_cannot_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    date = ["--symbol", "BTCUSDT", "--date", "2026-05-28", "--root", str(tmp_path)]
    assert main(["export", "--hftbacktest", str(tmp_path / "x.npz"), *date]) == 1
    assert "Errno" not in capsys.readouterr().err
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--hftbacktest", "x.npz", "--out", "x.frames.zst"], 2, "needs --symbol"),
        (["--tardis", "x.csv", "--out", "x.zst"], 2, "ends with .frames.zst"),
        (["--tardis", "x.csv", "--out", "x.frames.zst", "--tick", "-1"], 2, "--tick -1"),
        (["--tardis", "none.csv", "--out", "x.frames.zst"], 1, "none.csv"),
        (["--hftbacktest", "no.npz", "--symbol", "BTCUSDT", "--out", "x.frames.zst"], 1, "no.npz"),
    ],
)
def test_wrong_calls_are_one_line(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *arguments]) == status
    assert said in capsys.readouterr().err
