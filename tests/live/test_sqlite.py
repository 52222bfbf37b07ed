"""A SQLite database as bad as real ones: what fits is in the lake, what does not is kept with its reason."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from market.events import Kind
from market.lake import Lake
from orchestration.cli import main

#: 2026-03-02 10:00:00 UTC in ms.
T = 1_772_445_600_000

MAPPING = """
[[trades]]
table = "trades"
time = ["timestamp", "ts"]
symbol = ["symbol", "=BTCUSDT"]
side = ["side", "direction"]
price = ["price", "px"]
qty = ["qty"]
id = ["trade_id"]

[[books]]
table = "order_book"
time = ["time"]
symbol = ["=BTCUSDT"]
side = ["type"]
price = ["price"]
qty = ["amount"]

[[signals]]
table = "signals"
time = ["created"]
symbol = ["coin"]
value = ["prediction"]
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript("""
            create table trades (trade_id, timestamp, ts, symbol, side, direction, price, px, qty);
            create table order_book (time, type text, price, amount);
            create table signals (created, coin, prediction);
        """)
        connection.executemany(
            "insert into trades values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                ("a", T, None, "BTCUSDT", "buy", None, 60_000.1, None, 0.5),
                (
                    "b",
                    None,
                    (T + 1000) / 1000,
                    None,
                    "SELL",
                    None,
                    None,
                    "60000.0",
                    "0.25",
                ),  # s, text
                ("c", "2026-03-02 10:00:02", None, "", None, "-1", "60000.2", None, 1),  # ISO text
                ("a", T, None, "BTCUSDT", "buy", None, 60_000.1, None, 0.5),  # there twice
                (
                    "d",
                    T * 1_000_000 + 3 * 10**9,
                    None,
                    "BTCUSDT",
                    "b",
                    None,
                    60_000.3,
                    None,
                    2,
                ),  # ns
                ("e", T + 4000, None, "BTCUSDT", "hold", None, 60_000.3, None, 2),  # no side
                ("f", T + 5000, None, "BTCUSDT", "buy", None, "n/a", None, 2),  # no price
                ("g", None, None, "BTCUSDT", "buy", None, 60_000.3, None, 2),  # no time
                ("h", T + 900_000, None, "BTCUSDT", "buy", None, 60_000.3, None, 2),  # after a gap
            ],
        )
        connection.executemany(
            "insert into order_book values (?, ?, ?, ?)",
            [
                (T // 1000, "bid", 60_000.0, 1.5), (T // 1000, "ask", "60000.1", 2),
                (T // 1000, "bid", 60_000.0, 1.75),  # the same level again: the later one counts
                (T // 1000 + 1, "bids", 60_000.0, 1.0), (T // 1000 + 1, "asks", 60_000.1, 3),
                (T // 1000 + 1, "asks", -5, 3),
            ],
        )  # fmt: skip
        connection.executemany(
            "insert into signals values (?, ?, ?)",
            [(T / 1000, "BTCUSDT", "0.7"), (T, "BTCUSDT", 0.8), (T + 60_000, "BTCUSDT", None)],
        )
    return path


def imported(database: Path, root: Path, mapping: str = MAPPING) -> int:
    file = database.with_name("mapping.toml")
    file.write_text(mapping)
    return main(
        ["import-sqlite", str(database), "--mapping", str(file), "--root", str(root), "--json"]
    )


def test_what_fits_is_in_the_lake_and_the_rest_is_kept_with_its_reason(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(database, tmp_path / "lake") == 0
    told = json.loads(capsys.readouterr().out)
    lake = Lake(tmp_path / "lake")
    events = lake.read("events", "BTCUSDT", "2026-03-02")
    rows = {name: events.column(name).to_numpy() for name in events.column_names}
    trades = rows["kind"] == Kind.TRADE
    assert rows["price_ticks"][trades].tolist() == [600_001, 600_000, 600_002, 600_003, 600_003]
    assert rows["side"][trades].tolist() == [1, -1, -1, 1, 1]
    seconds = (rows["receive_ns"][trades] - T * 10**6) / 1e9
    assert seconds.tolist() == [0, 1, 2, 3, 900]
    books = rows["kind"] == Kind.SNAPSHOT
    assert rows["price_ticks"][books].tolist() == [600_000, 600_001, 600_000, 600_001]
    assert rows["qty_lots"][books].tolist() == [1750, 2000, 1000, 3000]

    with open(database.with_name("old.left-out.csv")) as file:
        kept = list(csv.DictReader(file))
    assert Counter(row["reason"] for row in kept) == {
        "there twice": 1,
        "no side": 1,
        "no price above zero": 2,
        "no time between 2000 and 2100": 1,
        "a later row has the same level at the same time": 1,
        "a signal of that time is there already": 1,
        "no value": 1,
    }
    assert sum(told["left_out"].values()) == len(kept)
    (unpriced,) = (row for row in kept if row["table"] == "trades" and "price" in row["reason"])
    assert json.loads(unpriced["values"])["price"] == "n/a"
    assert told["gaps over 60 s"] == {"BTCUSDT trades": 1}
    signals = lake.read("signals", "BTCUSDT", "2026-03-02")
    assert signals.to_pylist() == [{"t_ns": T * 10**6, "value": 0.7}]
    # Every row is in the lake or in the file.
    with sqlite3.connect(database) as connection:
        total = sum(
            connection.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("trades", "order_book", "signals")
        )
    assert total == told["rows"] + told["signals"] + len(kept)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        (MAPPING.replace('"order_book"', '"books"'), "no table books"),
        (MAPPING.replace('["created"]', '["made"]'), "signals has no column made for time"),
        (MAPPING.replace('value = ["prediction"]', ""), "[[signals]] signals: say which column is value"),
        ("[[trades", "Expected"),
        ("", "maps no table"),
        (MAPPING.replace('"order_book"', '"books"'), "no table books; there are: order_book"),
    ],
)  # fmt: skip
def test_a_mapping_that_does_not_fit_ends_with_one_line(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mapping: str, says: str
) -> None:
    assert imported(database, tmp_path / "lake", mapping) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert error.startswith("l2 import-sqlite: ")
    assert says in error
    assert "\n" not in error


def test_a_file_that_is_no_database_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"no database, but long enough to be taken for one by its name alone")
    assert imported(path, tmp_path / "lake") == 1
    assert "file is not a database" in capsys.readouterr().err


COLUMNS = (
    'time = ["ts"]\nsymbol = ["s"]\nside = ["side"]\nprice = ["price"]\nqty = ["qty"]\nid = ["id"]'
)
TRADES = f'[[trades]]\ntable = "t"\n{COLUMNS}'


def database_of(path: Path, rows: list[tuple[object, ...]]) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (id, ts, s, side, price, qty, rowid text)")
        connection.executemany("insert into t values (?, ?, ?, ?, ?, ?, 'x')", rows)
    return path


def left_out(path: Path) -> dict[int, str]:
    with open(path.with_suffix(".left-out.csv"), encoding="utf-8") as file:
        return {int(row["rowid"]): row["reason"] for row in csv.DictReader(file)}


def test_each_row_is_in_the_lake_or_left_out_whatever_its_columns_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    symbols = ["BTCUSDT", None, "", 7, 0, 7.5, b"BTCUSDT", b"\xff\xfe", "BTC\0USDT", "'; --"]
    rows = [(str(n), T + n, symbol, "buy", 60_000.1, 1) for n, symbol in enumerate(symbols)]
    prices = [
        "60.000.3",
        "6_0",
        "nan",
        "inf",
        float("inf"),
        "1e999",
        "1e",
        "",
        b"\xff",
        "６",
        " 60000.1 ",
        "+6.00001e4",
    ]
    rows += [(f"p{n}", T + 99, "BTCUSDT", "buy", price, 1) for n, price in enumerate(prices)]
    times = [1e25, 5, -1, "1e-99999999999999999999", "2026-13-01", b"\xff"]
    rows += [(f"t{n}", at, "BTCUSDT", "buy", 60_000.1, 1) for n, at in enumerate(times)]
    path = database_of(tmp_path / "q#1%20?.db", rows)
    with sqlite3.connect(path) as connection:  # text that is no UTF-8
        connection.execute("update t set s = cast(x'42ff' as text) where id = '9'")
    assert imported(path, tmp_path / "lake", TRADES) == 0
    told, left = json.loads(capsys.readouterr().out), left_out(path)
    priced, timed = len(symbols), len(symbols) + len(prices)
    assert [n for n in range(len(rows)) if n + 1 not in left] == [0, 3, 4, 6, timed - 2, timed - 1]
    assert told["rows"] + len(left) == len(rows)
    assert {left[2], left[3]} == {"no symbol"}
    assert {left[n + 1] for n in range(priced, timed - 2)} == {"no price above zero"}
    assert {left[n + 1] for n in range(timed, len(rows))} == {"no time between 2000 and 2100"}
    days = {symbol for symbol, _ in Lake(tmp_path / "lake").partitions("events")}
    assert days == {"BTCUSDT", "7", "0"}


def test_equal_trades_without_an_id_are_one_only_at_the_same_time(tmp_path: Path) -> None:
    trade = "BTCUSDT", "buy", 60_000.1, 1
    at = [("a", T), (None, T + 1), (None, T + 1), (None, T + 3_600_000), ("a", T + 3_600_001)]
    path = database_of(tmp_path / "x.db", [(*each, *trade) for each in at])
    assert imported(path, tmp_path / "lake", TRADES) == 0
    assert left_out(path) == {3: "there twice", 5: "there twice"}


def test_a_row_that_cannot_be_used_takes_no_others_place(tmp_path: Path) -> None:
    rows = [("a", T, "BTCUSDT", "buy", "n/a", 1), ("a", T, "BTCUSDT", "buy", 60_000.1, 1)]
    path = database_of(tmp_path / "trades.db", rows)
    assert imported(path, tmp_path / "lake", TRADES) == 0
    assert left_out(path) == {1: "no price above zero"}
    rows = [("a", T, "BTCUSDT", "bid", 60_000.1, qty) for qty in (1, 2, "n/a")]
    path = database_of(tmp_path / "books.db", rows)
    assert imported(path, tmp_path / "lake", TRADES.replace("trades", "books")) == 0
    level = "a later row has the same level at the same time"
    assert left_out(path) == {1: level, 3: "no quantity, or below zero"}


def test_a_signal_never_replaces_another_of_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapped = '[[signals]]\ntable = "{}"\ntime = ["ts"]\nsymbol = ["s"]\nvalue = ["v"]\n'
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as connection:
        for name, rows in (
            ("one", [(T, "0.5"), (1e25, 1), (5, 1)]),
            ("two", [(T, 0.5), (T + 1, 0.25), (T + 1, 0.75), (T + 2, 2)]),
        ):
            connection.execute(f"create table {name} (ts, s default 'BTCUSDT', v)")
            connection.executemany(f"insert into {name} (ts, v) values (?, ?)", rows)
    for _ in range(2):
        assert imported(path, tmp_path / "lake", mapped.format("one") + mapped.format("two")) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["signals"] == 4
        assert told["left_out"] == {
            "one: no time between 2000 and 2100": 2,
            "two: a signal of that time is there already": 1,
        }
    table = Lake(tmp_path / "lake").read("signals", "BTCUSDT", "2026-03-02")
    assert table.column("value").to_pylist() == [0.5, 0.25, 2.0]


@pytest.mark.parametrize("kind", ["view", "table without rowid"])
def test_rows_without_an_id_are_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = database_of(tmp_path / "x.db", [("a", T, "BTCUSDT", "buy", 60_000.1, 1)])
    with sqlite3.connect(path) as connection:
        if kind == "view":
            connection.execute("create view w as select * from t")
        else:
            connection.execute(
                "create table w (id primary key, ts, s, side, price, qty) without rowid"
            )
    assert imported(path, tmp_path / "lake", TRADES.replace('"t"', '"w"')) == 1
    error = capsys.readouterr().err.strip()
    assert 'create table rows as select * from "w"' in error
    assert "\n" not in error


def test_rows_of_no_symbol_and_of_no_time_are_left_out_and_the_others_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (ts, s, side, price, qty)")
        connection.executemany(
            "insert into t values (?, ?, 'buy', 60000.1, 1)",
            [(T, "BTCUSDT"), (T, "../../x"), ("later", "ETHUSDT"), (5, "SOLUSDT")],
        )
    mapping = TRADES.replace('id = ["id"]', "")
    assert imported(path, tmp_path / "lake", mapping) == 0
    no_time = "no time between 2000 and 2100"
    assert left_out(path) == {
        2: "not a symbol of the venue, such as BTCUSDT",
        3: no_time,
        4: no_time,
    }
    assert {symbol for symbol, _ in Lake(tmp_path / "lake").partitions("events")} == {"BTCUSDT"}
