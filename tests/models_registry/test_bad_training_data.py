"""What training cannot learn from: a named verdict or one line, the champion stays, nothing is half-registered."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import planted
import pyarrow as pa
import pytest

from market.lake import Lake
from market.settings import Market, Settings
from models_registry import dataset, promotion, registry, store
from models_registry.dataset import Features
from models_registry.manifest import load_champion
from models_registry.registry import Outcome
from models_registry.store import RegistryError

FEATURES = Features.of((*planted.FEATURES.names, "queue_now"))
DATES = [f"2026-01-0{n}" for n in range(1, 6)]

#: Another table of a date than the planted one.
Change = Callable[[pa.Table, str], pa.Table]


def settings_of(root: Path) -> Settings:
    """Every part of training, on little: selection, a search, a first fold and two that follow it."""
    made = planted.settings(root, train_stride_s=2, select=3)
    return msgspec.structs.replace(made, market=Market(symbols=("BTCUSDT",)))


def write(
    root: Path, change: Change = lambda table, date: table, dates: Sequence[str] = DATES
) -> None:
    lake = Lake(root, "synthetic")
    for date in dates:
        table = planted.day(date, 0, 0.25, 2400)
        table = table.append_column("queue_now", table["signal"])
        changed = change(table, date)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, changed.schema) as stream:
            stream.write_table(changed)
        inputs = hashlib.sha256(sink.getvalue()).hexdigest()
        lake.write("training_set", "BTCUSDT", date, changed, inputs=inputs)


def attempt(root: Path, progress: Callable[[str], None] = lambda line: None) -> Outcome:
    lake = Lake(root, "synthetic")
    return registry.train_and_register(
        lake, settings_of(root), "code", None, progress, features=FEATURES
    )


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A lake with a champion."""
    root = tmp_path_factory.mktemp("origin") / "lake"
    write(root)
    shutil.copytree(template, root / "mlflow")
    assert attempt(root).version == "1"
    promotion.promote(settings_of(root), "1", in_spite_of_gate=True, features=FEATURES)
    return root


@pytest.fixture
def root(origin: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(origin, tmp_path / "lake"))


def held(root: Path) -> dict[str, Any]:
    """Versions and aliases of the registry, and what the worker's pointer names."""
    settings = settings_of(root)
    champion = load_champion(root, settings.model_name)
    assert champion is not None
    with store.registry_client(settings) as client:
        found = client.search_model_versions(f"name = '{settings.model_name}'")
        experiment = client.get_experiment_by_name(settings.model_name).experiment_id
        running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
        return {
            "versions": sorted(int(version.version) for version in found),
            "aliases": store.aliases_of(client, settings.model_name),
            "pointer": champion[0],
            "running": len(running),
        }


def replaced(
    table: pa.Table, names: list[str], value: Callable[[pa.ChunkedArray], Any]
) -> pa.Table:
    for name in names:
        table = table.set_column(table.column_names.index(name), name, pa.array(value(table[name])))
    return table


LABELS = [f"y_{horizon}" for horizon in planted.HORIZONS]


def constant(table: pa.Table, _: str) -> pa.Table:
    return replaced(table, LABELS, lambda column: np.zeros(len(column)))


def falls(table: pa.Table, date: str) -> pa.Table:
    """The span of the first fold has no rise."""
    if date > DATES[1]:
        return table
    return replaced(table, LABELS, lambda column: -np.abs(column.to_numpy()))


def null(*names: str, of: list[str] = DATES) -> Change:
    def change(table: pa.Table, date: str) -> pa.Table:
        return replaced(table, [*names], lambda c: [None] * len(c)) if date in of else table

    return change


@pytest.mark.parametrize(
    ("change", "verdict", "said"),
    [
        (constant, "abstain", "rank IC 0.0000 has an always-valid lower bound of 0.0000"),
        (null("y_60"), "not_enough_data", "0 training rows with a label at 60 s"),
        (null("y_300"), "not_enough_data", "0 training rows with a label at 300 s"),
        (null("realised_vol_300"), "not_enough_data", "and realised_vol_300 of at least 500"),
        (lambda table, _: table.slice(0, 200), "not_enough_data", "of at least 500"),
    ],
    ids=["constant label", "no label", "a horizon without label", "no volatility", "little"],
)
def test_a_verdict_names_what_cannot_be_learnt(
    root: Path, change: Change, verdict: str, said: str
) -> None:
    before = held(root)
    write(root, change)
    outcome = attempt(root)
    assert (outcome.verdict, outcome.version) == (verdict, "2" if verdict == "abstain" else None)
    assert said in "; ".join(outcome.reasons)
    assert promotion.promote_latest(settings_of(root), FEATURES) == (False, "1")
    if outcome.version:
        before["versions"].append(2)
        before["aliases"]["challenger"] = "2"
    assert held(root) == before


@pytest.mark.parametrize(
    "change",
    [falls, null("echo", "noise_1"), null(*LABELS, of=DATES[1:2])],
    ids=["a fold without positives", "a feature all null", "no label in a tail"],
)
def test_what_can_still_be_learnt_is_judged_on_its_other_rows(root: Path, change: Change) -> None:
    write(root, change)
    outcome = attempt(root)
    assert outcome.version == "2"
    assert outcome.verdict in ("promote", "abstain")
    assert outcome.metrics["blocks"] >= 2
    moved, champion = promotion.promote_latest(settings_of(root), FEATURES)
    assert (moved, champion) in ((True, "2"), (False, "1"))
    assert held(root)["aliases"]["champion"] == held(root)["pointer"].version == champion


def other_data(root: Path) -> None:
    write(root, lambda table, _: table.slice(1))


def test_a_registry_that_is_down_stops_a_training_before_it_begins(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, said = held(root), list[str]()
    other_data(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=r"^http://127\.0\.0\.1:9: the model registry"):
        attempt(root, said.append)
    monkeypatch.undo()
    assert not said
    assert held(root) == before


@pytest.mark.parametrize("file", ["mlflow.db", "trials.db"])
def test_a_database_that_is_locked_at_the_end_leaves_no_version(root: Path, file: str) -> None:
    before = held(root)
    other_data(root)
    with closing(sqlite3.connect(root / "mlflow" / file, isolation_level=None)) as other:

        def lock(line: str) -> None:
            if line == "final boosters fitted":
                other.execute("begin immediate")

        with pytest.raises(RegistryError, match=rf"{file}: .*database is locked.*run the command"):
            attempt(root, lock)
    assert held(root)["versions"] == before["versions"]
    assert held(root)["aliases"] == before["aliases"]
    assert attempt(root).version == "2", "it is free again"
    assert held(root)["running"] == 0


@pytest.mark.parametrize("file", ["optuna.db", "trials.db"])
def test_what_is_no_database_is_named_and_nothing_is_registered(root: Path, file: str) -> None:
    before = held(root)
    other_data(root)
    (root / "mlflow" / file).write_bytes(b"something else, of the size of a header of SQLite" * 3)
    with pytest.raises(RegistryError, match=rf"{file}: .* cannot be read or written .*restore"):
        attempt(root)
    assert held(root) == before


def test_a_version_that_lost_its_alias_gets_it_when_it_is_found_again(root: Path) -> None:
    with store.registry_client(settings_of(root)) as client:  # as a process killed in between
        client.delete_registered_model_alias("synthetic-l2", "challenger")
    assert attempt(root).reused
    assert held(root)["aliases"] == {"champion": "1", "challenger": "1"}


def test_the_alias_moves_on_to_a_version_whose_process_ended_before_it_did(root: Path) -> None:
    other_data(root)
    assert attempt(root).version == "2"
    with store.registry_client(settings_of(root)) as client:
        client.set_registered_model_alias("synthetic-l2", "challenger", "1")
    assert attempt(root).reused
    assert held(root)["aliases"]["challenger"] == "2"


def test_data_that_change_under_a_training_make_no_version(root: Path) -> None:
    before = held(root)
    other_data(root)

    def change(line: str) -> None:
        if line == "final boosters fitted":
            write(root)

    with pytest.raises(RegistryError, match="training set changed meanwhile"):
        attempt(root, change)
    assert held(root) == before

    def come(line: str) -> None:  # a date that was not there when it began
        if line.startswith("block 1"):
            write(root, dates=["2026-01-06"])

    other_data(root)
    assert attempt(root, come).version == "2"
    with store.registry_client(settings_of(root)) as client:
        recorded = client.get_model_version("synthetic-l2", "2").tags["data_fingerprint"]
    days = dataset.fingerprint(Lake(root, "synthetic"), ["BTCUSDT"], DATES)
    assert recorded == days


def test_what_another_lake_trains_goes_on(root: Path) -> None:
    settings = settings_of(root)
    with store.registry_client(settings) as client:
        experiment = client.get_experiment_by_name(settings.model_name).experiment_id
        runs = [
            client.create_run(experiment, tags={"identity": "of a run", "lake": lake}).info.run_id
            for lake in (str(root.resolve()), "s3://other/lake")
        ]
    attempt(root)
    with store.registry_client(settings) as client:
        assert [client.get_run(run).info.status for run in runs] == ["KILLED", "RUNNING"]
