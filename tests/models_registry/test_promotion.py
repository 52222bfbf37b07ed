"""Who becomes champion and who stays: verdicts, rollbacks, moves by hand, damage, races."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from market.settings import Settings
from models_registry import promotion, resolver, store
from models_registry.manifest import (
    MANIFEST_FILE,
    BundleError,
    bundles_folder,
    load_champion,
    read_pointer,
    sha256,
)
from models_registry.store import RegistryError
from tests.live.live_market import live_settings, promote


class Registry:
    """A registry whose versions are made in a moment, and the attempts that made them."""

    def __init__(self, settings: Settings, client: Any, scratch: Path) -> None:
        self.settings, self.client, self._scratch = settings, client, scratch
        self.name = settings.model_name
        client.create_registered_model(self.name)

    def version(self, verdict: str = "promote", **changes: object) -> str:
        """Register a version with this verdict, and log its attempt."""
        number = str(1 + len(self.client.search_model_versions(f"name = '{self.name}'")))
        promote(self._scratch, version=number, sign=float(number), **changes)
        logged = self.logged(number)
        shutil.copytree(bundles_folder(self._scratch, self.name) / f"{number}-test", logged)
        digest = sha256((logged / MANIFEST_FILE).read_bytes())
        tags = {"gate.verdict": verdict, "identity": number, "manifest_sha256": digest}
        source = logged.parents[1].as_uri()
        self.client.create_model_version(self.name, source, tags=tags, await_creation_for=0)
        self.attempt(number, verdict)
        return number

    def attempt(self, number: str, verdict: str = "promote") -> None:
        """Log the attempt that made a version, or found it made already."""
        tags = {"gate.verdict": verdict, "identity": number, "model_version": number}
        self.run(tags)

    def run(self, tags: dict[str, str]) -> None:
        experiment = self.client.get_experiment_by_name(self.name)
        run = self.client.create_run(experiment.experiment_id, tags=tags)
        self.client.set_terminated(run.info.run_id)

    def logged(self, number: str) -> Path:
        return self._scratch / "logged" / number / "artifacts" / "bundle"

    def by_hand(self, number: str) -> None:
        self.client.set_registered_model_alias(self.name, "champion", number)

    def tags(self, number: str) -> dict[str, str]:
        return dict(self.client.get_model_version(self.name, number).tags)

    def champion(self) -> str:
        """The champion, of which registry, pointer and bundle say the same."""
        aliases = store.aliases_of(self.client, self.name)
        found = load_champion(self.settings.root, self.name)
        assert found is not None
        assert aliases["champion"] == found[0].version
        return aliases["champion"]


@pytest.fixture
def registry(tmp_path: Path, template: Path) -> Iterator[Registry]:
    settings = live_settings(tmp_path / "lake")
    shutil.copytree(template, tmp_path / "lake" / "mlflow")
    with store.registry_client(settings) as client:
        yield Registry(settings, client, tmp_path / "made")


def test_a_rollback_stands_until_a_newer_version_or_a_person_overrules_it(
    registry: Registry,
) -> None:
    settings = registry.settings
    for number in ("1", "2"):
        assert registry.version() == number
        assert promotion.promote_latest(settings) == (True, number)
    assert promotion.rollback(settings) == "1"
    registry.attempt("2")  # the next daily run on the same data
    assert promotion.promote_latest(settings) == (False, "1")
    assert registry.champion() == "1"
    assert registry.version() == "3"
    assert promotion.promote_latest(settings) == (True, "3")
    registry.attempt("2")  # an older version is found again
    assert promotion.promote_latest(settings) == (False, "3")
    promotion.promote(settings, "2")
    assert registry.champion() == "2"
    registry.attempt("3")
    assert promotion.promote_latest(settings) == (False, "2")
    assert registry.tags("2")["champion.by"] == "l2 promote"
    assert registry.tags("3")["champion.by"] == "the gate"


def test_manual_promotion_leaves_the_alias_to_a_person(registry: Registry) -> None:
    registry.version()
    manual = live_settings(Path(registry.settings.root), promotion="manual")
    assert promotion.promote_latest(manual) == (False, None)
    promotion.promote(manual, "1")
    assert registry.champion() == "1"


def test_a_damaged_or_foreign_version_moves_nothing(registry: Registry) -> None:
    settings = registry.settings
    registry.version()
    promotion.promote_latest(settings)
    (registry.logged(registry.version()) / "booster_60s.txt").write_bytes(b"damaged")
    (registry.logged(registry.version()) / MANIFEST_FILE).unlink()
    shutil.rmtree(registry.logged(registry.version()))
    registry.version(feature_hash="0" * 16)
    registry.version(book_topic="orderbook.50")
    for number, reason in (
        ("2", "checksum"),
        ("3", "cannot be read"),
        ("4", "its files are not in the registry"),
        ("5", "feature definitions 0000000000000000"),
        ("6", "trained on orderbook.50"),
    ):
        with pytest.raises(BundleError, match=reason):
            promotion.promote(settings, number, in_spite_of_gate=True)
        registry.attempt(number)
        with pytest.raises(BundleError, match=reason):
            promotion.promote_latest(settings)
        assert registry.champion() == "1"
    folder = bundles_folder(settings.root, registry.name)
    assert sorted(path.name[0] for path in folder.iterdir()) == ["1", "c"]  # and the pointer


def test_a_rollback_to_a_damaged_version_moves_nothing(registry: Registry) -> None:
    for _ in range(2):
        registry.version()
        promotion.promote_latest(registry.settings)
    (registry.logged("1") / "booster_60s.txt").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="checksum"):
        promotion.rollback(registry.settings)
    assert registry.champion() == "2"


def test_runs_of_a_person_are_no_attempts(registry: Registry) -> None:
    registry.version("abstain")
    registry.run({})
    registry.run({"gate.verdict": "promote", "model_version": "1"})
    assert promotion.latest_verdict(registry.settings)[0] == "abstain"
    assert promotion.promote_latest(registry.settings) == (False, None)


def test_an_alias_moved_by_hand_is_judged_recorded_and_put_back(registry: Registry) -> None:
    settings = registry.settings
    registry.version("abstain")
    registry.by_hand("1")
    with pytest.raises(RegistryError, match=r"is taken away: .* the gate says abstain"):
        resolver.resolve(settings)
    assert resolver.resolve(settings) is None
    for _ in range(2):
        registry.version()
        promotion.promote_latest(settings)
    registry.by_hand("2")
    assert resolver.resolve(settings) is not None
    assert registry.champion() == "2"
    assert registry.tags("2")["champion.by"] == "by hand in MLflow"
    assert store.aliases_of(registry.client, registry.name)["previous"] == "3"
    registry.attempt("3")
    assert promotion.promote_latest(settings) == (False, "2")
    registry.version(feature_hash="0" * 16)
    for number, reason in (("1", "the gate says abstain"), ("4", "feature definitions")):
        registry.by_hand(number)
        with pytest.raises(RegistryError, match="is back at version 2"):
            resolver.resolve(settings)
        assert registry.champion() == "2"
        assert reason in registry.tags(number)["champion.refused"]
    promotion.promote(settings, "1", in_spite_of_gate=True)
    promotion.rollback(settings)
    registry.by_hand("1")  # a person has overruled the gate before
    resolver.resolve(settings)
    assert registry.champion() == "1"


_RESOLVE = """
import sys
from pathlib import Path
from models_registry import resolver
from tests.live.live_market import live_settings
settings = live_settings(Path(sys.argv[1]))
while not (Path(sys.argv[1]) / "stop").exists():
    resolver.resolve(settings)
"""
_READ = """
import sys
from pathlib import Path
from models_registry.manifest import load_champion
reads = 0
while not (Path(sys.argv[1]) / "stop").exists():
    reads += load_champion(sys.argv[1], "synthetic-l2") is not None
print(reads)
"""


def test_readers_never_fail_while_two_resolvers_follow_promotions(registry: Registry) -> None:
    settings, root = registry.settings, registry.settings.root
    for _ in range(2):
        registry.version()
        promotion.promote_latest(settings)
    pipe = subprocess.PIPE
    others = [
        subprocess.Popen([sys.executable, "-c", code, root], stdout=pipe, stderr=pipe, text=True)
        for code in (_RESOLVE, _RESOLVE, _READ, _READ)
    ]
    try:
        for turn in range(30):
            promotion.promote(settings, str(1 + turn % 2))
    finally:
        (Path(root) / "stop").touch()
    done = [(each.communicate(timeout=120), each.returncode) for each in others]
    assert [code for _, code in done] == [0] * 4, [said for (_, said), _ in done]
    assert all(int(printed) > 0 for (printed, _), _ in done[2:])
    assert read_pointer(root, registry.name) is not None


def test_a_registry_that_is_down_is_named_and_the_champion_stays(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.version()
    promotion.promote_latest(registry.settings)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for call in (resolver.resolve, promotion.rollback, promotion.promote_latest):
        with pytest.raises(RegistryError, match=r"^http://127\.0\.0\.1:9: the model registry"):
            call(registry.settings)
    monkeypatch.undo()
    assert registry.champion() == "1"


def test_a_locked_database_is_named_and_nothing_is_half_done(registry: Registry) -> None:
    registry.version()
    promotion.promote_latest(registry.settings)
    registry.version()
    database = store.registry_home(registry.settings) / "mlflow.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(RegistryError, match=r"the model registry does not do it .*locked"):
            promotion.promote_latest(registry.settings)
    assert registry.champion() == "1"
    assert promotion.promote_latest(registry.settings) == (True, "2"), "it is free again"
