"""Better words never make a lake stale, a changed value always does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from market import provenance
from tests.conftest import REPOSITORY

CACHES = (
    provenance.module_file,
    provenance._source,
    provenance.closure,
    provenance.closure_hash,
    provenance.tables,
    provenance.code_hash,
    provenance._equivalent,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project's sources, which provenance reads in place of the project."""
    for room in provenance.ROOMS:
        shutil.copytree(
            REPOSITORY / room,
            tmp_path / room,
            ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")],
        )
    shutil.copytree(REPOSITORY / "dbt_project" / "models", tmp_path / "dbt_project" / "models")
    shutil.copytree(REPOSITORY / "dbt_project" / "macros", tmp_path / "dbt_project" / "macros")
    for name in ("dbt_project/dbt_project.yml", "market/equivalent_code.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "EQUIVALENT", tmp_path / "market" / "equivalent_code.toml")
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    for cached in CACHES:
        cached.cache_clear()


def hashes() -> dict[str, str]:
    forget()
    return {table: provenance.code_hash(table) for table in provenance.tables()}


def edit(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    assert change(text) != text, f"{path} holds nothing to change"
    path.write_text(change(text))


def test_the_copy_of_the_project_has_the_hashes_of_the_project(project: Path) -> None:
    copied = hashes()
    assert {"events", "bars", "features", "training_set", "study", "truth"} <= set(copied)
    provenance.ROOT = REPOSITORY
    assert hashes() == copied


def test_comments_docstrings_and_layout_leave_every_hash_as_it_is(project: Path) -> None:
    before = hashes()
    for path in project.rglob("*.py"):
        text = path.read_text()
        if text.startswith('"""') and path.name != "provenance.py":
            path.write_text('"""Other words. ' + text[3:].replace(",\n", ",  # why\n\n", 1))
    edit(project / "dbt_project/models/features/features.sql", lambda sql: f"-- why\n\n{sql}")
    assert hashes() == before


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("market/kernel.py", 'error_model="numpy"', 'error_model="python"', {"events", "bars"}),
        ("execution/account.py", "E8", "BPS", {"study", "parent_costs"}),
        ("market/settings.py", "5.5", "9.5", set()),
        (
            "dbt_project/models/marts/labels.sql",
            "select",
            "select distinct",
            {"labels", "training_set"},
        ),
    ],
)
def test_a_changed_value_makes_stale_what_is_made_by_it(
    project: Path, file: str, old: str, new: str, stale: set[str]
) -> None:
    before = hashes()
    edit(project / file, lambda text: text.replace(old, new))
    after = hashes()
    changed = {table for table in after if after[table] != before[table]}
    assert stale <= changed
    assert changed or not stale
    assert not changed & {"decisions", "orders", "fills", "performance"}, "records stay readable"


def test_a_raised_schema_version_makes_the_table_and_those_below_it_stale(project: Path) -> None:
    before = hashes()
    edit(
        project / "market/bars.py",
        lambda text: text.replace('Table("bars", version=1', 'Table("bars", version=2'),
    )
    after = hashes()
    changed = {table for table in after if after[table] != before[table]}
    assert {"bars", "features", "labels", "training_set"} <= changed
    assert not changed & {"events", "ingests", "quarantine", "study", "parent_costs"}


def test_code_written_down_as_equivalent_is_current_until_the_code_changes(project: Path) -> None:
    earlier = hashes()["bars"]
    edit(project / "market/second.py", lambda text: text + "\nANOTHER = 1\n")
    forget()
    assert not provenance.is_current("bars", earlier)
    assert provenance.main(["same"]) == 0
    forget()
    assert provenance.is_current("bars", earlier)
    edit(project / "market/second.py", lambda text: text + "\nA_THIRD = 1\n")
    forget()
    assert not provenance.is_current("bars", earlier)
    assert provenance.main(["changed"]) == 0
    forget()
    assert not provenance.is_current("bars", earlier)


def test_one_table_can_have_changed_while_others_make_the_same_rows(project: Path) -> None:
    before = hashes()
    edit(project / "market/second.py", lambda text: text + "\nANOTHER = 1\n")
    forget()
    assert provenance.main(["changed", "bars"]) == 0
    forget()
    assert provenance.main(["same"]) == 0
    forget()
    assert not provenance.is_current("bars", before["bars"])
    assert provenance.is_current("features", before["features"])


def test_the_tables_that_a_module_decides_are_listed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert provenance.main(["of", "execution.account"]) == 0
    listed = capsys.readouterr().out.split()
    assert {"study", "parent_costs"} <= set(listed)
    assert not {"bars", "fills"} & set(listed)


def test_every_table_names_declared_tables_upstream_and_one_producer(project: Path) -> None:
    declared = provenance.tables()
    order = list(declared)
    for name, (table, _) in declared.items():
        assert all(order.index(above) < order.index(name) for above in table.upstream)
    edit(
        project / "market/ingest.py",
        lambda text: text.replace('Table("quarantine"', 'Table("bars"'),
    )
    forget()
    with pytest.raises(provenance.ProvenanceError, match=r"bars is declared in market\.\w+ and in"):
        provenance.tables()


def test_an_unknown_table_is_named_with_those_that_are_known() -> None:
    with pytest.raises(provenance.ProvenanceError, match=r"bras: no such table; known are bars, "):
        provenance.declaration("bras")


def test_a_damaged_cache_of_a_source_file_is_made_anew(project: Path) -> None:
    before = hashes()
    kept = list(project.rglob("*.syntax"))
    assert len(kept) > 50
    for place, path in enumerate(kept):
        path.write_bytes((b"", b"no msgpack", path.read_bytes()[:-1])[place % 3])
    assert hashes() == before
