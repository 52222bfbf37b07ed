"""A SQLite database as bad as real ones: what fits is in the lake, what does not is kept with its reason."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
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
    np.testing.assert_allclose(seconds, [0, 1, 2, 3, 900], atol=1e-4)
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
    columns = 'time = ["ts"]\nsymbol = ["s"]\nside = ["side"]\nprice = ["price"]\nqty = ["qty"]'
    assert imported(path, tmp_path / "lake", f'[[trades]]\ntable = "t"\n{columns}') == 0
    with open(tmp_path / "x.left-out.csv") as file:
        left = {(row["rowid"], row["reason"]) for row in csv.DictReader(file)}
    assert left == {
        ("2", "not a symbol of the venue, such as BTCUSDT"),
        ("3", "no time between 2000 and 2100"), ("4", "no time between 2000 and 2100"),
    }  # fmt: skip
    assert {symbol for symbol, _ in Lake(tmp_path / "lake").partitions("events")} == {"BTCUSDT"}
