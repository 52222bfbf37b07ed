"""What users have made with earlier versions opens, and the present code makes the same rows of it.

tests/fixtures/lake-COMMIT.tar.xz was made by the program at that commit: 100 seconds of the demo's
market from frames to training set, beside the records, journal, registry and bundles of a demo. Its
registry names the folder /srv/l2/demo, and is relocated when it is opened.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from assets.costs import build_costs, cost_rows
from assets.warehouse import build_range
from execution.tca.figures import figures
from live.collect import collect
from live.journal import JournalError
from live.restoration import restore
from market import provenance
from market.bars import make_bars
from market.ingest import ingest
from market.instruments import BUILT_IN
from market.lake import Lake, LakeError
from market.settings import Settings, load
from market.wire.survey import scan
from models_registry import promotion, store
from models_registry.manifest import Bundle, load_champion
from orchestration.journal_migration import migrate_journals
from tests.conftest import REPOSITORY

ARCHIVES = sorted((REPOSITORY / "tests" / "fixtures").glob("lake-*.tar.xz"))
DAY = "2026-03-02"
SYMBOLS = ("BTCUSDT", "ETHUSDT")
#: Rows of the fixture, all symbols and dates together.
ROWS = {
    "events": 91_609,
    "bars": 200,
    "features": 200,
    "labels": 200,
    "ingests": 6,
    "study": 32,
    "decisions": 40,
    "parents": 68,
    "orders": 68,
    "fills": 72,
}


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return Lake(tmp_path / "lake")


def settings_of(lake: Lake) -> Settings:
    return load(
        environ={},
        overrides=[
            f"root={lake.base}",
            "source=synthetic",
            "synthetic.profile=demo",
            "model.fee_row=zero",
            "execution.algorithm=market",
        ],
    )


def changed_since(earlier: Lake) -> set[str]:
    """Tables whose rows were changed on purpose since (`python -m market.provenance changed TABLE`)."""
    return {
        table
        for table in earlier.tables()
        if not any(earlier.is_current(table, *key) for key in earlier.partitions(table))
    }


def test_every_table_that_did_not_change_on_purpose_is_read(earlier: Lake) -> None:
    changed = changed_since(earlier)
    records = {name for name, (table, _) in provenance.tables().items() if table.record}
    assert not changed & records, "records cannot be made again"
    counted = {
        table: sum(earlier.read(table, *key).num_rows for key in earlier.partitions(table))
        for table in set(earlier.tables()) - changed
    }
    assert counted.items() >= {table: n for table, n in ROWS.items() if table in counted}.items()
    assert {"training_set", "tca", "markouts", "quality", "planted", *ROWS} <= set(
        counted
    ) | changed


def test_a_table_that_changed_is_refused_with_the_way_to_make_it_again(earlier: Lake) -> None:
    for table in changed_since(earlier):
        with pytest.raises(LakeError, match=f"made by other code.*materialise {table} for"):
            earlier.read(table, *earlier.partitions(table)[0])


def test_the_code_hashes_are_written_down_for_the_present_code() -> None:
    stale = [
        table
        for table in provenance.tables()
        if provenance._equivalent()[table].code != provenance.code_hash(table)
    ]
    assert not stale, (
        f"the code that makes {', '.join(stale)} has changed: run `python -m market.provenance same` "
        "if it makes the same rows, `changed` if users have to make them again"
    )


def test_the_present_code_makes_the_same_rows_again(earlier: Lake, tmp_path: Path) -> None:
    fresh = Lake(tmp_path / "fresh", "synthetic")
    settings = settings_of(fresh)
    for capture in earlier.captures(DAY):
        fresh.put_file(f"{fresh.frames_dir(DAY)}/{Path(capture).name}", capture)
    captures = fresh.captures(DAY)
    ingest(fresh, captures, list(scan(captures)), settings)
    for symbol in SYMBOLS:
        make_bars(fresh, symbol, DAY, settings)
    build_range(fresh, settings, SYMBOLS, DAY, DAY)
    made = {"events", "ingests", "bars", "features", "labels", "training_set"}
    for table in made - changed_since(earlier):
        for symbol in SYMBOLS:
            before, after = (each.read(table, symbol, DAY) for each in (earlier, fresh))
            assert plain(after).equals(plain(before)), (table, symbol)


def plain(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata()


def test_costs_are_figured_from_the_records_of_an_earlier_worker(earlier: Lake) -> None:
    build_costs(earlier, settings_of(earlier), SYMBOLS, "2026-03-10", "2026-03-10")
    result = figures(*cost_rows(earlier, SYMBOLS, "2026-03-10", "2026-03-10").values())
    assert sum(result["states"].values()) == 68


def test_a_journal_of_an_earlier_worker_goes_on_and_gives_the_same_rows(earlier: Lake) -> None:
    state = Path(earlier.base) / "live" / "paper"
    tables = ("parents", "orders", "fills", "tca", "markouts")
    before = {
        (table, *key): plain(earlier.read(table, *key))
        for table in tables
        for key in earlier.partitions(table)
    }
    for table, symbol, day in before:
        earlier.remove(table, symbol, day)
    with pytest.raises(JournalError, match="l2 migrate"):
        collect(earlier, state, "paper")
    migrate_journals(settings_of(earlier))
    collect(earlier, state, "paper")
    for (table, *key), rows in before.items():
        # Other columns were added since.
        again = plain(earlier.read(table, *key)).select(rows.column_names)
        assert again.equals(rows), (table, key)
    restored = restore(state / "log", {symbol: BUILT_IN[symbol] for symbol in SYMBOLS}, 0)
    assert restored is not None
    account = restored.state.account
    assert account is not None
    assert {s: h.position_lots for s, h in account.holdings.items()} == dict.fromkeys(SYMBOLS, 0)
    assert restored.state.desk.parent_number == 68


def test_an_earlier_champion_loads_and_the_registry_still_moves_it(earlier: Lake) -> None:
    settings = settings_of(earlier)
    champion = load_champion(settings.root, settings.model_name)
    assert champion is not None
    pointer, bundle = champion
    assert (pointer.version, len(bundle.manifest.recipe.members)) == ("1", 4)
    made = bundle.predict(np.ones(len(bundle.manifest.features)))
    # To the last bit what the code that made it predicted.
    assert made.raw_bps == made.expected_bps == 3.1776240698755434
    assert made.by_horizon == (0.48669476201879663, 3.7016726557217328, 6.412920201636497, 0.0)
    assert store.champion_version(settings) == "1"
    shutil.rmtree(Path(settings.root) / "bundles")
    promotion.promote(settings, "1")
    again = load_champion(settings.root, settings.model_name)
    assert again is not None
    assert isinstance(again[1], Bundle)
    assert again[1].manifest_sha256 == bundle.manifest_sha256
