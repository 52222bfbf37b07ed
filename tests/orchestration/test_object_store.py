"""The pipeline's steps over six symbol-days give in a bucket what they give on a disk; captures expire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import dagster as dg
import pytest

from assets.isolation import WITHOUT_DATA
from assets.market_data import bars_of, captures_for, events
from assets.platform import Platform
from assets.quality_batches import BATCHES
from assets.warehouse import build_range
from market.ingest import ingest
from market.intake import upload
from market.lake import Lake
from market.place import home_of
from market.settings import Settings
from market.wire.capture import CaptureWriter
from orchestration.automation import range_tags
from orchestration.cli import main
from orchestration.retain import derived, expiries, keep_together
from tests.object_store import BUCKET, served
from tests.orchestration.test_isolation import BTC, ETH, capture, lines

pytestmark = pytest.mark.cluster
DAYS = [f"2026-01-0{n}" for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lake, Lake]]:
    """One on a disk and one in a bucket, each with its run over the same captures."""
    home = tmp_path_factory.mktemp("home")
    with served(str(home)):
        made = []
        for root in (str(tmp_path_factory.mktemp("disk") / "lake"), BUCKET):
            for day in DAYS:
                folder = home_of(root) / "frames" / f"date={day}"
                capture(folder / "a.frames.zst", lines(BTC, day), lines(ETH, day))
            lake, settings = Lake(root), Settings(root=root)
            keys = [(symbol, day) for symbol in (BTC, ETH) for day in DAYS]
            with lake.working_on(DAYS[0], DAYS[-1]):
                upload(lake, print)
                report = ingest(lake, captures_for(lake, DAYS), keys, settings)
                assert not report.missing
                for key in keys:
                    assert bars_of(root, settings, *key) == 20
                built = build_range(lake, settings, (BTC, ETH), DAYS[0], DAYS[-1])
            assert built.rows["features"] == {BTC: 60, ETH: 60}
            made.append(lake)
        yield made[0], made[1]


def test_the_tables_are_the_same_partition_by_partition(lakes: tuple[Lake, Lake]) -> None:
    disk, bucket = lakes
    assert disk.tables() == bucket.tables()
    for table in disk.tables():
        keys = disk.partitions(table)
        assert keys == bucket.partitions(table)
        assert {day for _, day in keys} == set(DAYS)
        for key in keys:
            assert bucket.as_written(table, *key).read().equals(disk.as_written(table, *key).read())
            assert bucket.metadata(table, *key) == disk.metadata(table, *key)
    for table, batch in BATCHES.items():
        assert batch(bucket, BTC, DAYS[1]).equals(batch(disk, BTC, DAYS[1])), table
    left = [path for path in bucket.home.rglob("*.parquet") if "staging" in path.parts]
    assert not left


def test_sql_asks_the_bucket_in_place(
    lakes: tuple[Lake, Lake], capsys: pytest.CaptureFixture[str]
) -> None:
    query = "select symbol, date, count(*) as n from bars group by all order by all"
    assert main(["sql", query, "--root", lakes[1].uri, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["symbol"], row["date"]) for row in rows] == lakes[0].partitions("bars")


def test_a_capture_that_went_on_after_its_ingest_is_kept(lakes: tuple[Lake, Lake]) -> None:
    lake = lakes[0]
    (path,) = lake.captures(DAYS[0])
    before = Path(path).read_bytes()
    with CaptureWriter(path) as writer:
        for at, frame in lines(BTC, DAYS[0]):
            writer.append(at + 3_600 * 10**9, frame)
    (found,) = expiries(lake, Settings(), DAYS[1])
    assert found.kept == f"events of {DAYS[0]} {BTC} end before it does"
    Path(path).write_bytes(before)


def test_captures_of_one_key_go_together_or_stay(lakes: tuple[Lake, Lake]) -> None:
    lake, settings = lakes[0], Settings()
    (first,) = lake.captures(DAYS[0])
    late = Path(first).with_name("late.frames.zst")  # came when the date had been ingested
    capture(late, lines(ETH, DAYS[0]))
    found = {each.path: each.kept for each in expiries(lake, settings, DAYS[1])}
    assert found == {
        str(late): f"events of {DAYS[0]} {ETH} are not made of it",
        first: f"{DAYS[0]} {ETH} is also in {late}, which is kept",
    }
    late.unlink()
    kept = {"a": "", "b": "", "c": "younger", "d": ""}
    held = {
        "a": [(BTC, DAYS[0])],
        "b": [(BTC, DAYS[0]), (BTC, DAYS[1])],
        "c": [(BTC, DAYS[1])],
        "d": [(ETH, DAYS[1])],
    }
    keep_together(held, kept)
    assert kept == {
        "a": f"{DAYS[0]} {BTC} is also in b, which is kept",
        "b": f"{DAYS[1]} {BTC} is also in c, which is kept",
        "c": "younger",
        "d": "",
    }


@pytest.mark.parametrize("place", [0, 1], ids=["disk", "bucket"])
def test_captures_expire_when_all_that_is_made_of_them_stands(
    lakes: tuple[Lake, Lake], place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, settings = lakes[place], Settings()
    assert {"bars", "features", "labels", "training_set", "ingests"} < set(derived())
    assert {each.kept for each in expiries(lake, settings, "2026-01-04")} == {""}
    assert [each.date for each in expiries(lake, settings, DAYS[1])] == DAYS[:1] * (1 + place)

    def kept() -> dict[str, str]:
        return {e.date: e.kept for e in expiries(lake, settings, "2026-01-04") if e.kept}

    lake.remove("labels", ETH, DAYS[0])
    assert kept() == {DAYS[0]: f"labels of {DAYS[0]} {ETH} is not there"}
    rows = lake.read("training_set", BTC, DAYS[1])
    lake.write("training_set", BTC, DAYS[1], rows, inputs="of other labels")
    assert kept()[DAYS[1]] == f"training_set of {DAYS[1]} {BTC} was made from other inputs"
    assert main(["retain", "--older", "1", "--root", lake.uri]) == 0
    said = capsys.readouterr().out
    assert f"labels of {DAYS[0]} {ETH} is not there" in said
    assert "may go" in said
    assert lake.capture_dates() == DAYS  # without the word nothing goes
    assert main(["retain", "--older", "1", "--delete", "--root", lake.uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["freed"] > 0
    assert lake.capture_dates() == DAYS[:2]
    assert set(found["sizes"]["bars"]) == set(DAYS)


def test_a_capture_that_comes_after_the_others_expired_replaces_nothing(
    lakes: tuple[Lake, Lake],
) -> None:
    lake = lakes[0]
    before = {each: lake.rows("events", each, DAYS[2]) for each in (BTC, ETH)}
    capture(f"{lake.frames_dir(DAYS[2])}/late.frames.zst", islice(lines(BTC, DAYS[2]), 3))
    with dg.DagsterInstance.ephemeral() as instance:
        ran = dg.materialize(
            [events],
            tags=range_tags(DAYS[2], DAYS[2], (BTC, ETH)),
            resources={"platform": Platform(overrides=[f"root={lake.base}"])},
            instance=instance,
        )
    made = ran.asset_materializations_for_node("events")
    left = next(each.metadata[WITHOUT_DATA] for each in made if WITHOUT_DATA in each.metadata)
    assert "1 of the captures that it was read from are gone" in str(left.value[f"{DAYS[2]} {BTC}"])
    assert before == {each: lake.rows("events", each, DAYS[2]) for each in (BTC, ETH)}


def test_what_expired_in_the_bucket_is_not_uploaded_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(str(tmp_path)):
        lake = Lake(BUCKET)
        here = home_of(BUCKET) / "frames" / f"date={DAYS[0]}" / "a.frames.zst"
        capture(here, lines(BTC, DAYS[0]))
        (path,) = upload(lake, print)
        lake.store.delete(path)
        assert upload(lake, print) == []
        assert "1 that were removed there are left out" in capsys.readouterr().out
        with CaptureWriter(here) as writer:  # one that has grown since is another
            writer.append(*next(iter(lines(BTC, DAYS[1]))))
        assert upload(lake, print) == [path]
        assert {e.path: e.kept for e in expiries(lake, Settings(), DAYS[1])}[str(here)] == ""
