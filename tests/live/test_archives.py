"""Archives read as the stream a recorder would have written; a deep book says what a shallow one would."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live.archives.conversion import ArchiveDay, ArchiveError, convert, funding_frames
from live.archives.rest import Settlement
from live.archives.truncation import BookTruncator
from market.book import Book
from market.events import from_arrow
from market.ingest import ingest
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, day_start_ns
from market.wire.capture import read_lines
from market.wire.decode import Decoder
from proving.bench import capture as bench
from tests.live.archive_files import HEADER, book_zip, trade_gz

DAY = "2026-03-01"
START_MS = day_start_ns(DAY) // 1_000_000
SYMBOL = "BTCUSDT"
LATENCY_NS = 20_000_000


def frame(kind: str, ms: int, u: int, bids: object, asks: object, depth: int = 200) -> bytes:
    data = {"s": SYMBOL, "b": bids, "a": asks, "u": u, "seq": u}
    content = {
        "topic": f"orderbook.{depth}.{SYMBOL}",
        "type": kind,
        "ts": START_MS + ms,
        "data": data,
        "cts": START_MS + ms - 3,
    }
    return msgspec.json.encode(content)


def row(ms: float, name: str, side: str = "Buy", symbol: str = SYMBOL, rpi: int = 0) -> str:
    seconds = f"{(START_MS + ms) / 1000:.4f}"
    return f"{seconds},{symbol},{side},0.001,100.1,PlusTick,{name},1e7,0.001,0.1,{rpi}"


BOOKS = [
    frame("snapshot", 500, 1, [["100.0", "1"]], [["100.1", "1"]]),
    frame("delta", 600, 2, [["100.0", "2"]], []),
    frame("snapshot", 700, 1, [["99.9", "1"]], [["100.0", "1"]]),
    frame("delta", 86_399_995, 2, [], [["100.0", "2"]]),
]


def converted(
    folder: Path, books: list[bytes], trades: bytes, depth: int = 200
) -> tuple[ArchiveDay, list[tuple[int, bytes]]]:
    folder.mkdir(exist_ok=True)
    (folder / "books.zip").write_bytes(book_zip("books.data", books))
    (folder / "trades.csv.gz").write_bytes(trades)
    out = folder / "out.frames.zst"
    day = convert(
        folder / "books.zip",
        folder / "trades.csv.gz",
        out,
        symbol=SYMBOL,
        day=DAY,
        depth=depth,
        latency_ns=LATENCY_NS,
    )
    return day, [line for line in read_lines(out) if not line[1].startswith(b'{"l2"')]


def ids(lines: list[tuple[int, bytes]]) -> list[str]:
    """Trade ids and update ids, in the order of the stream."""
    found: list[str] = []
    for _, text in lines:
        data = msgspec.json.decode(text)["data"]
        found += [f"u{data['u']}"] if isinstance(data, dict) else [trade["i"] for trade in data]
    return found


def test_receive_times_are_publish_times_plus_latency_and_trades_precede_books(
    tmp_path: Path,
) -> None:
    rows = [row(100, "a"), row(600.0, "b"), row(600.7, "c", "Sell"), row(601, "d", rpi=1)]
    day, lines = converted(tmp_path, BOOKS, trade_gz(rows))

    assert ids(lines) == ["a", "u1", "b", "c", "u2", "d", "u1", "u2"]
    start = day_start_ns(DAY)
    expected = [100, 500, 600, 600, 601, 700]
    assert [ns for ns, _ in lines[:-1]] == [start + ms * 10**6 + LATENCY_NS for ms in expected]
    assert lines[-1][0] == start + DAY_NS - 1  # an archive is its date's, to the last frame
    assert [text for _, text in lines if b"orderbook" in text] == BOOKS
    assert (day.book_lines, day.snapshots, day.gaps, day.trades, day.strays) == (4, 2, 0, 4, 0)
    assert day.starts_late_s == 0.5
    trades = [
        trade
        for _, text in lines
        if b"publicTrade" in text
        for trade in msgspec.json.decode(text)["data"]
    ]
    assert [(trade["S"], trade["RPI"]) for trade in trades][1:] == [
        ("Buy", False),
        ("Sell", False),
        ("Buy", True),
    ]


def test_the_order_of_a_trade_archive_does_not_matter(tmp_path: Path) -> None:
    rows = [row(ms, f"{ms}-{n}") for ms in (5, 10, 2000) for n in range(3)]
    old = [line.rpartition(",")[0] for line in rows]
    oldest = converted(tmp_path / "a", BOOKS, trade_gz(old, HEADER.rpartition(",")[0]))
    newest = converted(tmp_path / "b", BOOKS, trade_gz(rows[::-1]))
    windows = converted(tmp_path / "c", BOOKS, trade_gz([f"{line}\r" for line in rows]))
    assert oldest == newest == windows


@pytest.mark.parametrize(
    ("books", "rows", "said"),
    [
        (BOOKS[1:2], [row(1, "a")], "no snapshot"),
        ([*BOOKS, b"<html>"], [row(1, "a")], "line 5: not a book frame"),
        ([BOOKS[0].replace(b"BTC", b"ETH")], [row(1, "a")], "a frame of ETHUSDT"),
        ([frame("snapshot", 1, 1, [], [], 50)], [row(1, "a")], "50 levels"),
        (BOOKS, [row(1, "a", symbol="ETHUSDT")], "line 2: a trade of ETHUSDT"),
        (BOOKS, [row(1, "a"), "1,2,3"], "line 3: not a trade"),
        (BOOKS, [row(1, "a", side="Both")], "line 2: not a trade"),
        (BOOKS, ["", row(1, "a"), row(1, 'b"')], "line 4: not a trade"),
        (BOOKS, [row(1e15, "a")], "line 2: not a trade"),
        (BOOKS, ["." + row(1, "a")], "line 2: not a trade"),
    ],
)
def test_a_file_that_is_no_archive_of_the_symbol_is_refused_with_its_line(
    tmp_path: Path, books: list[bytes], rows: list[str], said: str
) -> None:
    with pytest.raises(ArchiveError, match=said):
        converted(tmp_path, books, trade_gz(rows))
    assert not list(tmp_path.glob("*.frames.zst"))


@pytest.mark.parametrize("name", ["books.zip", "trades.csv.gz"])
def test_an_archive_truncated_anywhere_is_refused_as_damaged(tmp_path: Path, name: str) -> None:
    noise = random.Random(1)
    rows = [row(n, f"{noise.random()}") for n in range(500)]
    converted(tmp_path, BOOKS, trade_gz(rows))
    whole = (tmp_path / name).read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ArchiveError, match="damaged"):
            convert(
                tmp_path / "books.zip",
                tmp_path / "trades.csv.gz",
                tmp_path / "again.frames.zst",
                symbol=SYMBOL,
                day=DAY,
                depth=200,
                latency_ns=0,
            )


CHANGES = st.lists(
    st.lists(st.tuples(st.integers(1, 14), st.integers(0, 3)), max_size=6), min_size=1, max_size=25
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.integers(1, 5), CHANGES, CHANGES)
def test_a_truncated_book_equals_the_best_levels_of_the_book_after_every_frame(
    depth: int, bids: list[list[tuple[int, int]]], asks: list[list[tuple[int, int]]]
) -> None:
    """Applying the cut frames to an empty book gives the best levels of the whole book, no more."""
    cut = BookTruncator(SYMBOL, 500, depth)
    whole: dict[str, dict[int, int]] = {"b": {1: 1}, "a": {100: 1}}
    shown: dict[str, dict[str, str]] = {"b": {}, "a": {}}
    steps: list[tuple[str, dict[str, list[tuple[int, int]]]]]
    steps = [("snapshot", {"b": [(1, 1)], "a": [(100, 1)]})]
    steps += [
        ("delta", {"b": below, "a": [(price + 50, size) for price, size in above]})
        for below, above in zip(bids, asks, strict=False)
    ]
    for u, (kind, sides) in enumerate(steps):
        texts = {side: [[str(p), str(q)] for p, q in levels] for side, levels in sides.items()}
        said = msgspec.json.decode(cut.frame(frame(kind, u, u, texts["b"], texts["a"], 500)))
        assert said["topic"] == f"orderbook.{depth}.{SYMBOL}"
        for side, sign in (("b", -1), ("a", +1)):
            for price, size in sides[side]:
                whole[side][price] = size
            for price, size in said["data"][side]:
                assert size != "0" or price in shown[side]
                shown[side][price] = size
            shown[side] = {price: size for price, size in shown[side].items() if size != "0"}
            held = {price: size for price, size in whole[side].items() if size}
            best = sorted(held, key=lambda price: sign * price)[:depth]
            assert shown[side] == {str(price): str(held[price]) for price in best}


def test_truncation_reads_any_json_layout_and_keeps_digits_as_received() -> None:
    plain, spaced = BookTruncator(SYMBOL, 500, 1), BookTruncator(SYMBOL, 500, 1)
    opening = frame("snapshot", 0, 1, [["9.50", "1.0"], ["9.4", "2"]], [["10.00", "0.10"]], 500)
    leaving = frame("delta", 1, 2, [["9.50", "0.000"]], [], 500)
    said = [plain.frame(text) for text in (opening, leaving)]
    for text, cut in zip((opening, leaving), said, strict=True):
        content = msgspec.json.decode(text)
        content["data"] = dict(reversed(content["data"].items()))
        other = msgspec.json.format(msgspec.json.encode(content | {"more": [1]}))
        assert spaced.frame(other) == cut
    first, second = (msgspec.json.decode(cut)["data"] for cut in said)
    assert (first["b"], first["a"]) == ([["9.50", "1.0"]], [["10.00", "0.10"]])
    assert (second["b"], second["a"]) == ([["9.50", "0"], ["9.4", "2"]], [])


@pytest.mark.parametrize(
    ("bids", "said"),
    [
        ([["1e3", "1"]], "plain positive decimals"),
        ([["-1.0", "1"]], "plain positive decimals"),
        ([["1.0", "x"]], "plain positive decimals"),
        ([["1.0"]], "length"),
        ([[f"{n + 1}", "1"] for n in range(10_001)], "more than 10,000 levels"),
    ],
)
def test_a_frame_that_cannot_be_truncated_is_refused_with_its_line(
    tmp_path: Path, bids: object, said: str
) -> None:
    deep = [frame("snapshot", n, n + 1, [["1.0", "1"]], [], 500) for n in range(3)]
    deep.append(frame("delta", 4, 4, bids, [], 500))
    with pytest.raises(ArchiveError, match=f"line 4: .*{said}"):
        converted(tmp_path, deep, trade_gz([row(1, "a")]))


def test_an_archive_of_500_levels_decodes_to_the_best_200(tmp_path: Path) -> None:
    noise = random.Random(7)
    size = lambda: f"{noise.randint(1, 900) / 1000:.3f}"  # noqa: E731
    bids = {1000 - n: size() for n in range(500)}
    asks = {1001 + n: size() for n in range(500)}
    text = lambda levels: [[f"{price / 10:.1f}", qty] for price, qty in levels.items()]  # noqa: E731
    frames = [frame("snapshot", 0, 1, text(bids), text(asks), 500)]
    for n in range(300):
        changes: tuple[dict[int, str], dict[int, str]] = ({}, {})
        for side, held, base in ((changes[0], bids, 501), (changes[1], asks, 1001)):
            for _ in range(8):
                price = base + noise.randint(0, 499)
                side[price] = held[price] = noise.choice(["0", size()])
        frames.append(frame("delta", 100 * n, n + 2, text(changes[0]), text(changes[1]), 500))

    day, lines = converted(tmp_path, frames, trade_gz([row(1, "a")]))

    assert (day.depth, day.gaps) == (500, 0)
    decoder, book = Decoder(symbols=[SYMBOL]), Book()
    for receive_ns, line in lines:
        for events in decoder.decode_frame(receive_ns, line).events.values():
            book.apply(events)
    for levels, held, sign in ((book.bids(), bids, -1), (book.asks(), asks, +1)):
        best = sorted((p for p in held if held[p] != "0"), key=lambda price: sign * price)[:200]
        expected = [(price, round(float(held[price]) * 1000)) for price in best]
        assert [(int(price), int(qty)) for price, qty in levels] == expected


def test_trades_keep_their_text_and_are_grouped_by_millisecond(tmp_path: Path) -> None:
    """Seconds with any number of decimals; those of one millisecond are one frame."""
    tail = f"{SYMBOL},Sell,1e-3,100.10,ZeroMinusTick,id-1,x,x,x,1"
    seconds = START_MS // 1000
    times = [
        f"{seconds}",
        f"{seconds}.",
        f"{seconds}.0019999",
        f"{seconds}.002",
        f"{seconds}.00209",
    ]
    _, lines = converted(tmp_path, BOOKS, trade_gz([f"{time},{tail}" for time in times]))
    frames = [msgspec.json.decode(text) for _, text in lines if b"publicTrade" in text]
    assert [(each["ts"] - START_MS, len(each["data"])) for each in frames] == [
        (0, 2),
        (1, 1),
        (2, 2),
    ]
    trade = {"T": START_MS, "s": SYMBOL, "S": "Sell", "v": "1e-3", "p": "100.10"}
    assert frames[0]["data"][0] == trade | {
        "L": "ZeroMinusTick",
        "i": "id-1",
        "BT": False,
        "RPI": True,
    }


def test_an_archive_without_trades_converts(tmp_path: Path) -> None:
    day, lines = converted(tmp_path, BOOKS, trade_gz([]))
    assert (day.trades, len(lines)) == (0, len(BOOKS))


def test_ingest_rejects_nothing_of_a_converted_archive(tmp_path: Path) -> None:
    rows = [row(n, str(n)) for n in range(0, 80_000, 100)]
    converted(tmp_path, BOOKS, trade_gz(rows))
    lake = Lake(tmp_path / "lake", "recorded")
    report = ingest(lake, [str(tmp_path / "out.frames.zst")], [(SYMBOL, DAY)], Settings())
    assert (report.quarantined, report.gaps, report.steps_back) == (0, 0, 0)
    assert report.frames == {f"orderbook.200.{SYMBOL}": 4, f"publicTrade.{SYMBOL}": 800}


def test_a_synthetic_archive_day_converts_and_is_deterministic_by_seed(tmp_path: Path) -> None:
    one = bench.write_archives(tmp_path / "one", 2000, 3000)
    two = bench.write_archives(tmp_path / "two", 2000, 3000)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]

    found = bench.convert_day(tmp_path / "lake", *one)

    day = found.archive
    assert (day.depth, day.book_lines, day.gaps, day.trades, day.strays) == (500, 2000, 0, 3000, 0)
    assert 86_000 < found.bars <= 86_400
    lake = Lake(tmp_path / "lake")
    events = from_arrow(lake.read("events", bench.SYMBOL, bench.DAY))
    book = Book()
    book.apply(events)
    assert [book.counters[name] for name in ("crossed", "unheld", "gaps")] == [0, 0, 0]
    assert len(book.bids()) == len(book.asks()) == 200


# -- funding -------------------------------------------------------------------------------------

HOUR_MS = 3_600_000


def told(funding: list[Settlement]) -> list[tuple[int, str, int]]:
    """(hour of the date, rate, hours to the next settlement) of each frame."""
    found = []
    for sent_ms, text in funding_frames(funding, SYMBOL, START_MS):
        data = msgspec.json.decode(text)["data"]
        away = int(data["expectedFunding"]) - sent_ms
        found.append(((sent_ms - START_MS) // HOUR_MS, data["fundingRate"], away // HOUR_MS))
    return found


def test_the_last_settled_rate_is_in_force_until_the_next_settlement() -> None:
    def rates(*hours: int) -> list[Settlement]:
        return [Settlement(START_MS + hour * HOUR_MS, f"{hour}e-5") for hour in hours]

    assert told(rates(0, 8, 16)) == [(0, "0e-5", 8), (8, "8e-5", 8), (16, "16e-5", 8)]
    # What was settled before midnight is known at midnight; the next date is not.
    assert told(rates(-12, -4, 4, 12, 20, 28)) == [
        (0, "-4e-5", 4),
        (4, "4e-5", 8),
        (12, "12e-5", 8),
        (20, "20e-5", 8),
    ]
    # The interval is that of the settlements that were, even where it is about to change.
    assert told(rates(-4, 0, 4, 12)) == [(0, "0e-5", 4), (4, "4e-5", 4), (12, "12e-5", 8)]
    assert told([]) == []


def test_the_benchmark_converts_a_day_and_reports_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "BOOK_FRAMES", 30_000)
    monkeypatch.setattr(bench, "TRADES", 30_000)
    whole, *steps = bench.measure(quick=True, say=lambda text: None)
    assert whole.ours == pytest.approx(sum(step.ours for step in steps))
    assert {each.unit for each in (whole, *steps)} == {"s"}
    assert "300 frames of 500 levels" in whole.how
