"""`l2 migrate`: partitions of an earlier schema are rewritten in place, whole or not at all."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from market.events import Field, Kind
from market.ingest import ingest
from market.lake import Lake, LakeError
from market.migration import MIGRATIONS, steps_of
from market.settings import Settings
from market.wire.survey import scan
from orchestration.migrate import Migrated, migrate
from tests.conftest import REPOSITORY

ARCHIVE = REPOSITORY / "tests" / "fixtures" / "lake-0420984.tar.xz"
DAY = "2026-03-02"


@pytest.fixture
def earlier(tmp_path: Path) -> Lake:
    """A lake of the first schema of events."""
    with tarfile.open(ARCHIVE) as archive:
        members = [
            m
            for m in archive
            if m.name.startswith(("lake/lake.json", "lake/frames", "lake/events", "lake/bars"))
        ]
        archive.extractall(tmp_path, members=members, filter="data")
    return Lake(tmp_path / "lake")


def plain(rows: pa.Table) -> pa.Table:
    return rows.replace_schema_metadata()


def test_migrated_events_are_those_that_their_captures_give(earlier: Lake, tmp_path: Path) -> None:
    keys = earlier.partitions("events")
    before = {key: earlier.metadata("events", *key) for key in keys}
    with pytest.raises(LakeError, match=r"materialise events for .* again, or run `l2 migrate`"):
        earlier.read("events", *keys[0])
    assert migrate(earlier).rewritten == {"events": len(keys)}
    fresh = Lake(tmp_path / "fresh", "synthetic")
    captures = earlier.captures(DAY)
    ingest(fresh, captures, list(scan(captures)), Settings())
    assert keys == fresh.partitions("events")
    for key in keys:
        assert plain(earlier.read("events", *key)).equals(plain(fresh.read("events", *key)))
        after, made = earlier.metadata("events", *key), fresh.metadata("events", *key)
        assert {k: after[k] for k in ("inputs", "until_ns", "instrument")} == {
            k: before[key][k] for k in ("inputs", "until_ns", "instrument")
        }
        assert (after["schema"], after["code"]) == (made["schema"], made["code"])


def test_a_migration_that_was_interrupted_goes_on(earlier: Lake) -> None:
    keys = earlier.partitions("events")

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(earlier, interrupt)
    stale = [key for key in keys if steps_of("events", earlier.metadata("events", *key))]
    assert stale == keys[1:]
    said: list[str] = []
    assert migrate(earlier, said.append).rewritten == {"events": len(keys) - 1}
    assert [text.split(":")[0] for text in said] == [f"events {s} {d}" for s, d in keys[1:]]
    assert migrate(earlier).rewritten == {}
    assert not list(Path(earlier.base).rglob("*.tmp"))


def test_a_partition_that_cannot_be_rewritten_stays_as_it_was(earlier: Lake) -> None:
    path = Path(earlier.path("events", *earlier.partitions("events")[0]))
    torn = path.read_bytes()
    torn = torn[:2000] + bytes(2000) + torn[4000:]
    path.write_bytes(torn)
    with pytest.raises(OSError, match=r".+"):
        migrate(earlier)
    assert path.read_bytes() == torn
    assert [file.name for file in path.parent.iterdir()] == ["part.parquet"]


def test_partitions_of_unknown_code_are_left_and_counted(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.write("bars", "BTCUSDT", DAY, pa.table({"t_ns": [1]}))
    assert migrate(lake) == Migrated({}, {})
    notes = {"schema": "1", "code": "0123456789abcdef"}
    assert steps_of("events", notes) == ()
    assert steps_of("events", {**notes, "schema": "0", "code": MIGRATIONS[0].codes[0]}) == ()


def test_ticker_values_of_the_first_schema_take_their_fields_scale() -> None:
    of = {
        Field.FUNDING_RATE: (-12_345, -12_345),
        Field.NEXT_FUNDING_MS: (1_786_320_000_000, 1_786_320_000_000),
        Field.OPEN_INTEREST: (5_989_173_200_000, 59_891_732),
        Field.VOLUME_24H: (1_757_391_209_999, 17_573_912),
        Field.TURNOVER_24H: (114_211_841_290_210_099, 1_142_118_412_902_100),
    }
    old = {
        "value_e8": [0, *(before for before, _ in of.values())],
        "field": pa.array([0, *of], pa.uint8()),
        "kind": [int(Kind.TRADE), *[int(Kind.TICKER)] * len(of)],
    }
    new = MIGRATIONS[0].rows(pa.table(old))
    assert new.column_names == ["value", "field", "kind"]
    assert np.array_equal(new["value"].to_numpy(), [0, *(after for _, after in of.values())])
