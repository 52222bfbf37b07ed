"""A lake that is moved, copied, restored or linked to: its registry works where it lies, and there alone.

The lake is that of an earlier version, whose registry names a folder of another machine.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import planted
import pytest

from market.lake import Lake
from market.settings import Settings
from models_registry import promotion, registry, relocation, resolver, store
from models_registry.manifest import bundles_folder, load_champion
from models_registry.relocation import RelocationError
from tests.conftest import REPOSITORY

ARCHIVE = max((REPOSITORY / "tests" / "fixtures").glob("lake-*.tar.xz"))
NAME = "synthetic-l2"


def restored(folder: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    shutil.rmtree(folder / "lake" / "training_set")  # of earlier code; the attempts need none
    return folder / "lake"


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A lake that was restored elsewhere and opened there."""
    root = restored(tmp_path)
    assert store.champion_version(settings_of(root)) == "1"
    return root


def settings_of(root: Path) -> Settings:
    return planted.settings(root)


def train(root: Path) -> Path:
    """An attempt on too little data; the folder of its run's artifacts."""
    outcome = registry.train_and_register(Lake(root), settings_of(root), "code")
    assert outcome.verdict == "not_enough_data"
    found = [path.parent for path in root.parent.rglob(f"{outcome.run_id}/artifacts/card.md")]
    assert len(found) == 1
    return found[0]


def fetch(root: Path) -> None:
    """Promotes version 1 and gets its files, as with no bundle on disk."""
    settings = settings_of(root)
    shutil.rmtree(bundles_folder(root, NAME), ignore_errors=True)
    promotion.promote(settings, "1")
    pointer = resolver.resolve(settings)
    assert pointer is not None
    assert pointer.version == "1"
    assert load_champion(str(root), NAME) is not None


def locations(root: Path) -> set[str]:
    """Every location in the registry's database that is of a lake."""
    with closing(sqlite3.connect(root / "mlflow" / "mlflow.db")) as db:
        held = [
            uri
            for table, column in relocation._LOCATIONS
            for (uri,) in db.execute(f"select {column} from {table}")
        ]
    return {str(uri).partition("/mlflow/")[0] for uri in held if "/mlflow/artifacts" in str(uri)}


def state(root: Path) -> dict[str, bytes]:
    home = root / "mlflow"
    return {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_a_restored_lake_works_under_its_new_name_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = restored(tmp_path)
    assert locations(root) == {"file:///srv/l2/demo"}
    fetch(root)
    assert locations(root) == {root.as_uri()}
    said = capsys.readouterr().err
    assert said.count("registry: moved here from /srv/l2/demo/mlflow") == 1
    assert train(root).is_relative_to(root)
    assert not Path("/srv/l2/demo").exists()


def test_a_moved_lake_goes_on_and_may_be_moved_back(origin: Path, tmp_path: Path) -> None:
    for name in ("it's #1 [moved]", "lake"):
        root = origin.rename(tmp_path / name)
        assert train(root).is_relative_to(root)
        fetch(root)
        assert locations(root) == {root.as_uri()}
        origin = root
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake"]


def test_a_copy_and_its_original_each_write_to_their_own(origin: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    before = state(origin)
    assert train(copy).is_relative_to(copy)
    fetch(copy)
    assert state(origin) == before
    after = state(copy)
    assert train(origin).is_relative_to(origin)
    fetch(origin)
    assert state(copy) == after


def test_a_link_is_no_move_and_one_that_is_set_elsewhere_is(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(origin)
    capsys.readouterr()
    before = state(origin)
    fetch(link)
    assert "moved here" not in capsys.readouterr().err
    assert train(link).resolve().is_relative_to(origin)
    other = shutil.copytree(origin, tmp_path / "other")
    link.unlink()
    link.symlink_to(other)
    before = state(origin)
    assert train(link).resolve().is_relative_to(other)
    assert state(origin) == before
    assert locations(other) == {other.as_uri()}


def test_a_registry_without_its_artifacts_is_refused_and_mended(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "a new one"
    shutil.copytree(origin, new, ignore=shutil.ignore_patterns("artifacts"))
    before = state(new)
    with pytest.raises(RelocationError, match="files of 1 of its versions are not here") as refused:
        train(new)
    assert state(new) == before
    assert str(origin / "mlflow") in str(refused.value)
    assert resolver.main(["--root", str(new), "--name", NAME]) == 1
    assert capsys.readouterr().err.count("cp -an") == 1
    subprocess.run(str(refused.value).rpartition(": ")[2], shell=True, check=True)
    fetch(new)
    assert train(new).is_relative_to(new)


def test_a_copy_that_can_only_be_read_is_read(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(origin, tmp_path / "copy")
    shutil.rmtree(origin)
    real = os.access  # which lets the superuser write anything

    def access(path: str | Path, mode: int) -> bool:
        return not (mode == os.W_OK and str(path).startswith(str(copy))) and real(path, mode)

    monkeypatch.setattr(os, "access", access)
    before = state(copy)
    settings = settings_of(copy)
    assert store.champion_version(settings) == "1"
    assert promotion.latest_verdict(settings)[0] == "promote"
    sha = store.fetch_bundle(settings, "1", tmp_path / "fetched")
    champion = load_champion(str(copy), NAME)
    assert champion is not None
    assert champion[1].manifest_sha256 == sha
    assert state(copy) == before


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RelocationError, match=r"mlflow\.db: cannot be used as MLflow's database"):
        store.champion_version(settings_of(tmp_path))


def test_two_processes_that_open_a_moved_lake_at_once_both_work(origin: Path) -> None:
    root = origin.rename(origin.with_name("moved"))
    command = [
        sys.executable,
        "-m",
        "models_registry.resolver",
        "--name",
        NAME,
        "--root",
        str(root),
    ]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [each.communicate()[0] for each in both] == [f"champion of {NAME}: version 1\n"] * 2
    assert locations(root) == {root.as_uri()}
