"""The lake: a partition is the old one or the new one, and never of two meanings."""

from __future__ import annotations

import gc
import itertools
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from market import lake as lake_module
from market.lake import Lake, LakeError
from market.settings import SettingsError, load
from market.units import days_between
from tests.conftest import Limit

KEY = ("BTCUSDT", "2026-03-02")
OLD = pa.table({"t_ns": [1, 2], "mid_close": [10.0, 11.0]})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path / "lake", "synthetic")
    made.write("bars", *KEY, OLD, inputs="first")
    return made


def test_a_writer_that_fails_leaves_the_old_partition_and_nothing_else(lake: Lake) -> None:
    before = Path(lake.path("bars", *KEY)).read_bytes()

    def fail_midway() -> None:
        with lake.writer("bars", *KEY, OLD.schema) as out:
            out.write_table(OLD)
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    folder = Path(lake.path("bars", *KEY)).parent
    assert [path.name for path in folder.iterdir()] == ["part.parquet"]
    assert Path(lake.path("bars", *KEY)).read_bytes() == before


def test_a_full_disk_is_one_line_and_leaves_the_old_partition(
    lake: Lake, file_limit: Limit
) -> None:
    rows = pa.table({"t_ns": np.random.default_rng(3).integers(0, 1 << 62, 50_000)})
    capture = Path(lake.base) / "capture"
    capture.write_bytes(bytes(50_000))
    said = "not written, and what was there stands: no space left"
    with file_limit(10_000):
        with pytest.raises(LakeError, match=f"BTCUSDT.*{said}"):
            lake.write("bars", *KEY, rows)
        with pytest.raises(LakeError, match=f"ETHUSDT.*{said}"):
            lake.write("bars", "ETHUSDT", "2026-03-02", rows)
        with pytest.raises(LakeError, match=rf"a\.frames\.zst: {said}"):
            lake.put_file(f"{lake.frames_dir(KEY[1])}/a.frames.zst", capture)
    assert lake.read("bars", *KEY).equals(OLD)
    left = {path.name for path in Path(lake.base).rglob("*") if path.is_file()}
    assert left == {"lake.json", "part.parquet", "capture"}


def test_a_writer_that_is_killed_leaves_the_old_partition(lake: Lake) -> None:
    code = f"""
import os, signal, pyarrow as pa
from market.lake import Lake
table = pa.table({{"t_ns": list(range(100_000))}})
with Lake({lake.uri!r}).writer("bars", *{KEY!r}, table.schema) as out:
    out.write_table(table)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert lake.read("bars", *KEY).equals(OLD)
    assert lake.partitions("bars") == [KEY]


def test_the_same_rows_give_the_same_bytes(lake: Lake) -> None:
    before = Path(lake.path("bars", *KEY)).read_bytes()
    lake.write("bars", *KEY, OLD, inputs="first")
    assert Path(lake.path("bars", *KEY)).read_bytes() == before


def test_a_partition_made_by_other_code_is_refused_and_not_current(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lake.is_current("bars", *KEY, inputs="first")
    assert not lake.is_current("bars", *KEY, inputs="second")
    monkeypatch.setattr(lake_module, "is_current", lambda table, code: code == "another")
    assert not lake.is_current("bars", *KEY)
    with pytest.raises(LakeError, match=r"made by other code.*materialise bars for BTCUSDT"):
        lake.read("bars", *KEY)


def test_a_root_holds_one_source(lake: Lake) -> None:
    assert Lake(lake.uri).source == "synthetic"
    with pytest.raises(LakeError, match="holds synthetic data, and recorded was asked for"):
        Lake(lake.uri, "recorded")


def test_load_gives_the_dates_that_stand_with_their_symbol(lake: Lake) -> None:
    rows = lake.load("bars", ["BTCUSDT", "ETHUSDT"], "2026-03-01", "2026-03-03")
    assert rows.column("symbol").to_pylist() == ["BTCUSDT", "BTCUSDT"]
    with pytest.raises(LakeError, match="bars has nothing for 2026-04-01"):
        lake.load("bars", ["BTCUSDT"], "2026-04-01", "2026-04-02")


def test_an_absent_partition_says_how_to_make_it(lake: Lake) -> None:
    with pytest.raises(LakeError, match="no such partition; materialise bars for ETHUSDT"):
        lake.read("bars", "ETHUSDT", "2026-03-02")


def test_views_stand_as_long_as_their_connection(lake: Lake) -> None:
    connection = Lake(lake.base).connect()
    gc.collect()
    assert connection.sql("select count(*) from bars").fetchall() == [(2,)]


def test_views_carry_symbol_and_date_as_text(lake: Lake) -> None:
    found = lake.connect().sql("select symbol, date, count(*) from bars group by all").fetchall()
    assert found == [("BTCUSDT", "2026-03-02", 2)]


#: Names that DuckDB takes for globs: of nothing, or of the folders beside.
NAMES = (
    *("lake[1]", "[!a]", "]x[", "a*", "**", "a{1,2}", "{a}", "it's", 'a"b', "a b", "100% #1; --"),
    *("湖 ü", "-r", "a:b", "~", "$HOME", ". .", "l" * 200),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_lake_lives_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    for beside in ("1", "a", "ab", "a1"):
        Lake(tmp_path / beside).write("bars", "BTCUSDT", "2026-01-01", OLD)
    lake = Lake(tmp_path / name)
    lake.write("bars", *KEY, OLD)
    sql = "select symbol, date, count(*) from {} group by all"
    assert lake.connect().sql(sql.format("bars")).fetchall() == [(*KEY, 2)]
    assert lake.load("bars", [KEY[0]], "2026-01-01", "2026-03-03").num_rows == 2


def test_a_relative_root_and_links_to_and_in_a_lake_are_that_lake(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("big").mkdir()
    (tmp_path / "lake" / "bars").rename("big/bars")
    (tmp_path / "lake" / "bars").symlink_to(tmp_path / "big" / "bars")
    Path("link").symlink_to("lake")
    for root in ("lake", "lake/", "link", "big/../lake", "./link//", tmp_path / "lake"):
        found = Lake(root)
        assert found.partitions("bars") == [KEY]
        assert found.connect().sql("select count(*) from bars").fetchall() == [(2,)]


@pytest.mark.parametrize(
    "name",
    ["symbol=BTCUSDT", "env=prod/lake", "a?b", "a%20b", "a\\b", "a\nb", "a\udcffb", "x\0y"],
)
def test_a_place_that_queries_cannot_read_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="DuckDB or Dagster cannot read below") as refused:
        Lake(tmp_path / name)
    assert str(refused.value).isprintable()
    with pytest.raises(SettingsError, match=r"(?s)--set root=.*use another folder"):
        load(environ={}, overrides=[f"root={tmp_path / name}"])
    assert not any(tmp_path.iterdir())


def test_an_empty_root_is_no_lake_and_a_tilde_is_home(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="environment L2_ROOT: root: is empty; name a folder"):
        load(environ={"L2_ROOT": ""})
    monkeypatch.setenv("HOME", "/home/of-one")
    assert load(environ={"L2_ROOT": "~/lake"}).root == "/home/of-one/lake"


def test_a_connection_keeps_the_partitions_it_began_with(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    connections = []
    for rows in (100, 50):
        table = pa.table({"t_ns": pa.array(range(rows)), "value": pa.array([1.0] * rows)})
        lake.write("features", "BTCUSDT", "2026-01-05", table)
        connections.append(lake.connect(["features"]))
        for connection, seen in zip(connections, (100, 50), strict=False):
            assert connection.sql("select sum(value) from features").fetchall() == [(seen,)]
    lake.remove("features", "BTCUSDT", "2026-01-05")
    assert connections[1].sql("select count(*) from features").fetchall() == [(50,)]
    del connections, connection
    assert not list(tmp_path.glob("staging/*/read-*"))


def test_a_reader_sees_every_partition_whole_while_it_is_replaced(tmp_path: Path) -> None:
    """Each query: each date has all rows of one version, whatever is written meanwhile."""
    lake, days, rows = Lake(tmp_path), days_between("2026-01-01", "2026-01-06"), 40_000
    noise = np.random.default_rng(5).normal(size=rows)

    def write(version: int) -> None:
        columns = {"version": pa.array([version] * rows), "noise": noise * version}
        for day in days:
            lake.write("bars", "BTCUSDT", day, pa.table(columns))

    write(1)
    stop = threading.Event()

    def keep_writing() -> None:
        for version in itertools.count(2):
            if stop.is_set():
                return
            write(version)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(30):
            found = lake.connect(["bars"]).sql(
                "select count(*), max(version) - min(version), sum(noise) / max(version)"
                "from bars group by date"
            )
            for count, spread, mean in found.fetchall():
                assert (count, spread) == (rows, 0)
                assert mean == pytest.approx(noise.sum())
    finally:
        stop.set()
        writer.join()


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    text = f"""
import os, signal
from market.lake import Lake
lake = Lake({str(tmp_path)!r})
(lake.scratch() / "staged").write_text("half")
schema = __import__("pyarrow").schema([("a", "int64")])
with lake.working_on("2026-01-05", "2026-01-05"), lake.writer("bars", "BTCUSDT", "2026-01-05", schema):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == -9
    living = Lake(tmp_path)
    mine = living.scratch()
    left = [*tmp_path.glob("staging/*/staged"), *tmp_path.rglob(".*.tmp")]
    assert len(left) == 2
    with Lake(tmp_path).working_on("2026-01-05", "2026-01-06"):
        assert not any(path.exists() for path in left)
    assert [path.parent for path in tmp_path.glob("staging/*/held")] == [mine]


def test_a_day_of_seconds_is_stored_in_groups_of_two_hours(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    rows = pa.table({"t_ns": pa.array(range(86_400))})
    lake.write("features", "BTCUSDT", "2026-01-05", rows)
    assert lake.open("features", "BTCUSDT", "2026-01-05").num_row_groups == 12


def test_columns_without_a_dictionary_are_encoded_by_type_and_read_back(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    rng = np.random.default_rng(3)
    rows = pa.table(
        {
            "t_ns": pa.array(np.arange(20_000) * 1_000_000_000),
            "single": pa.array(rng.normal(size=20_000).astype(np.float32), from_pandas=True),
            "double": pa.array([None if n % 7 == 0 else n / 3 for n in range(20_000)]),
            "text": pa.array([str(n) for n in range(20_000)]),
            "flag": pa.array([n % 2 == 0 for n in range(20_000)]),
        }
    )
    lake.write("features", *KEY, rows, dictionary=False)
    file = lake.open("features", *KEY)
    group = file.metadata.row_group(0)
    used = {group.column(n).path_in_schema: group.column(n).encodings for n in range(5)}
    assert "DELTA_BINARY_PACKED" in used["t_ns"]
    assert "BYTE_STREAM_SPLIT" in used["single"]
    assert "BYTE_STREAM_SPLIT" in used["double"]
    assert lake.read("features", *KEY).equals(rows)
    assert (
        lake.connect()
        .execute("select * exclude (symbol, date) from features")
        .to_arrow_table()["double"]
        .combine_chunks()
        == rows["double"].combine_chunks()
    )


@pytest.mark.parametrize(
    ("after", "until", "expected"),
    [
        (7_198, 7_202, [7_199, 7_200, 7_201, 7_202]),  # across two row groups
        (-5, 1, [0, 1]),
        (19_998, 50_000, [19_999]),
        (30_000, 40_000, []),
        (7_199, 7_199, []),
        (14_399, 14_400, [14_400]),
    ],
)
def test_rows_between_two_times_are_those_and_no_others(
    tmp_path: Path, after: int, until: int, expected: list[int]
) -> None:
    lake = Lake(tmp_path)
    lake.write("bars", *KEY, pa.table({"t_ns": pa.array(range(20_000)), "x": [0.5] * 20_000}))
    assert lake.between("bars", *KEY, after, until)["t_ns"].to_pylist() == expected
    lake.write("bars", *KEY, lake.read("bars", *KEY).slice(0, 0))
    assert lake.between("bars", *KEY, after, until).num_rows == 0


def test_a_partition_is_streamed_in_the_memory_of_a_batch(lake: Lake) -> None:
    """Whatever was read before is let go while reading goes on."""
    rng = np.random.Generator(np.random.Philox(key=3))
    rows = pa.table({"noise": rng.integers(0, 1 << 62, 2_000_000)})
    with lake.writer("bars", "BTCUSDT", "2026-03-02", rows.schema) as out:
        for start in range(0, len(rows), 100_000):
            out.write_table(rows.slice(start, 100_000))
    stored = rows.nbytes
    del rows, rng
    before, most = pa.total_allocated_bytes(), 0
    with lake.open("bars", "BTCUSDT", "2026-03-02") as source:
        for batch in source.iter_batches(batch_size=10_000):
            most = max(most, pa.total_allocated_bytes() - before)
            del batch
    assert 0 < most < stored / 5
