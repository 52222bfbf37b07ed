"""A lake in an object store: whole partitions, versions, and one line for each way that it refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from live.decisions import write_merged
from market.intake import upload
from market.lake import Lake, LakeError
from market.place import home_of
from market.settings import SettingsError, load
from market.store import ReplacedError, StoreError
from market.wire.capture import CaptureWriter, content_hash, read_lines
from market.wire.survey import last_receive_ns
from tests.object_store import BUCKET, ObjectStore, served

pytestmark = pytest.mark.cluster
KEY = ("BTCUSDT", "2026-03-02")


def rows(version: int, count: int = 200_000) -> pa.Table:
    """Over a read-ahead long, so that a reader asks more than once."""
    noise = np.random.default_rng(version).integers(0, 1 << 62, count)
    return pa.table({"t_ns": pa.array(range(count)), "version": [version] * count, "noise": noise})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with served(str(tmp_path_factory.mktemp("home"))) as started:
        yield started


@pytest.fixture
def lake(store: ObjectStore, request: pytest.FixtureRequest) -> Lake:
    made = Lake(f"{BUCKET}/{request.node.name}", "synthetic")
    made.write("bars", *KEY, rows(1), inputs="first")
    return made


def test_a_lake_in_a_bucket_answers_as_one_on_a_disk(lake: Lake, tmp_path: Path) -> None:
    there = Lake(tmp_path, "synthetic")
    for each in (lake, there):
        each.write("bars", *KEY, rows(1), inputs="first")
        each.write("features", *KEY, rows(2, 10))
    for ask in (
        lambda of: of.read("bars", *KEY, ["version"]),
        lambda of: of.between("bars", *KEY, 7_198, 7_202),
        lambda of: of.load("bars", [KEY[0]], "2026-03-01", "2026-03-03"),
        lambda of: (of.tables(), of.partitions("bars"), of.metadata("bars", *KEY)),
        lambda of: (of.is_current("bars", *KEY, "first"), of.fingerprint("bars", *KEY)),
        lambda of: of.connect().sql("select symbol, date, sum(noise) from bars group by all").fetchall(),
        lambda of: of.content(of.path("features", *KEY)),
    ):  # fmt: skip
        assert ask(lake) == ask(there)
    with lake.file("bars", *KEY) as file:
        assert content_hash(file) == content_hash(there.path("bars", *KEY))
    lake.remove("features", *KEY)
    assert not lake.exists("features", *KEY)
    assert not [path for path in lake.scratch().iterdir() if path.name != "held"]
    with pytest.raises(LakeError, match="holds synthetic data, and recorded was asked for"):
        Lake(lake.uri, "recorded")


def test_of_two_that_begin_a_lake_at_once_one_says_of_what(store: ObjectStore) -> None:
    said: list[str] = []

    def begin(source: str) -> None:
        try:
            said.append(Lake(f"{BUCKET}/begun", source).source)
        except LakeError as error:
            said.append(str(error))

    threads = [threading.Thread(target=begin, args=(s,)) for s in ("recorded", "synthetic")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {"recorded", "synthetic"} & set(said) == {Lake(f"{BUCKET}/begun").source}
    assert any("use another root" in each for each in said)


def test_a_reader_sees_one_version_while_two_writers_replace_it(lake: Lake) -> None:
    stop, counts = threading.Event(), {1: 200_000, 2: 100_000, 3: 300_000}

    def keep_writing(version: int) -> None:
        while not stop.is_set():
            lake.write("bars", *KEY, rows(version, counts[version]))

    writers = [threading.Thread(target=keep_writing, args=(n,)) for n in (2, 3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(8):
            found = lake.read("bars", *KEY)
            version = found["version"][0].as_py()
            assert found.equals(rows(version, counts[version]))
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_an_open_reader_is_refused_what_has_been_replaced(lake: Lake) -> None:
    with lake.open("bars", *KEY) as source:
        lake.write("bars", *KEY, rows(2))
        with pytest.raises(ReplacedError, match=r"part.parquet: was replaced meanwhile; run it"):
            source.read()
    assert lake.read("bars", *KEY).equals(rows(2))


def test_a_version_is_replaced_once(lake: Lake) -> None:
    version = lake.version("bars", *KEY)
    lake.write("bars", *KEY, rows(2), version=version)
    with pytest.raises(ReplacedError):
        lake.write("bars", *KEY, rows(3), version=version)
    with pytest.raises(ReplacedError):
        lake.write("bars", *KEY, rows(3), version="")
    assert lake.read("bars", *KEY).equals(rows(2))


def test_records_of_two_machines_are_all_kept(lake: Lake) -> None:
    def put(run: str) -> None:
        for n in range(5):
            row = pa.table({"run": [run], "t_ns": [n]})
            write_merged(lake, "decisions", *KEY, row, ("run", "t_ns"))

    threads = [threading.Thread(target=put, args=(run,)) for run in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lake.rows("decisions", *KEY) == 10


@pytest.mark.parametrize("fault", ["cut", "SlowDown"])
def test_a_store_that_fails_midway_leaves_the_old_partition(
    lake: Lake, store: ObjectStore, fault: str
) -> None:
    with (
        store.faulty(lambda method, path: fault if method == "PUT" else ""),
        pytest.raises(StoreError, match=r"part\.parquet: .*(does not answer|refuses PutObject)"),
    ):
        lake.write("bars", *KEY, rows(2))
    assert lake.read("bars", *KEY).equals(rows(1))
    assert not list(lake.scratch().glob(".*.tmp"))


def test_a_connection_that_is_cut_within_a_read_is_asked_again(
    lake: Lake, store: ObjectStore
) -> None:
    left = iter(["cut"])
    fault = lambda method, path: next(left, "") if method == "GET" else ""  # noqa: E731
    with store.faulty(fault):
        assert lake.read("bars", *KEY).equals(rows(1))


def test_what_refuses_says_so_in_one_line_before_work_begins(
    lake: Lake, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="there is no bucket absent; make it, or name another"):
        Lake("s3://absent/lake")
    with (
        store.faulty(lambda method, path: "AccessDenied"),
        pytest.raises(StoreError, match=r"bucket books refuses \w+ \((AccessDenied|403)\)"),
    ):
        Lake(lake.uri)
    with (
        store.faulty(lambda method, path: "AccessDenied" if method == "PUT" else ""),
        pytest.raises(StoreError, match=r"bucket books refuses PutObject \(AccessDenied\)"),
        lake.working_on(KEY[1], KEY[1]),
    ):
        pytest.fail("work began")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:1 does not answer"):
        Lake(lake.uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/absent")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match="no credentials; set AWS_ACCESS_KEY_ID and AWS_SEC"):
        Lake(lake.uri)


@pytest.mark.parametrize("root", ["gs://bucket/lake", "s3://", "file:///tmp/lake"])
def test_another_kind_of_root_is_refused(root: str) -> None:
    with pytest.raises(SettingsError, match="a lake is a folder or s3://bucket/prefix"):
        load(environ={"L2_ROOT": root})


def test_finished_captures_are_uploaded_once_and_read_in_place(lake: Lake) -> None:
    here = Lake(home_of(lake.uri), "synthetic")
    path = Path(f"{here.frames_dir(KEY[1])}/a.frames.zst")
    with CaptureWriter(path) as writer:
        writer.append(5, b"{}")
        assert upload(lake, print) == []  # it is being written
    assert upload(lake, print) == lake.captures(KEY[1])
    assert upload(lake, print) == []
    (there,) = lake.captures(KEY[1])
    assert list(read_lines(there)) == list(read_lines(path)) == [(5, b"{}")]
    assert (content_hash(there), last_receive_ns(there)) == (content_hash(path), 5)
