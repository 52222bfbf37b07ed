"""Work on a Dask cluster: the same rows as here, whatever becomes of a worker or the scheduler."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pyarrow.parquet as pq
import pytest

from assets import market_data
from assets.dbt_assets import warehouse
from assets.execution import execution_study
from assets.platform import Platform
from market import compute
from market.compute import ComputeError, map_tasks
from market.errors import DataError
from market.lake import Lake
from market.settings import Settings, SettingsError, load
from models_registry import training
from orchestration.automation import range_tags
from proving.bench import cluster as bench
from proving.bench.cluster import MEMORY_GB, Cluster
from proving.bench.goals import GOALS
from tests.cluster import work
from tests.cluster.conftest import until
from tests.models_registry import planted
from tests.orchestration.test_isolation import BTC, ETH, capture, lines

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")


def on(cluster: Cluster, root: Path) -> Settings:
    return Settings(root=str(root), compute=cluster.uri)


def mapped(
    function: Callable[..., Any],
    tasks: list[tuple[Any, ...]],
    settings: Settings,
    memory_gb: float = 1.0,
) -> dict[tuple[Any, ...], Any]:
    results: dict[tuple[Any, ...], Any] = {}
    map_tasks(
        function, tasks, 2, lambda task, result: results.update({task: result}), settings, memory_gb
    )
    return results


def test_a_cluster_makes_the_rows_of_this_machine_partition_by_partition(
    cluster: Cluster, tmp_path: Path
) -> None:
    lakes = []
    for place in ("local", cluster.uri):
        lake = Lake(tmp_path / place[:5], "recorded")
        for day in DAYS:
            capture(f"{lake.frames_dir(day)}/a.frames.zst", lines(BTC, day), lines(ETH, day))
        with dg.DagsterInstance.ephemeral() as instance:
            ran = dg.materialize(
                [market_data.events, market_data.bars, warehouse, execution_study],
                tags=range_tags(DAYS[0], DAYS[-1], (BTC, ETH)),
                resources={
                    "platform": Platform(overrides=[f"root={lake.base}", f"compute={place}"])
                },
                instance=instance,
                run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
            )
            told = [entry.user_message for entry in instance.all_logs(ran.run_id)]
        assert ran.success
        # Whoever does the work, Dagster shows each partition.
        assert any(line.endswith("bars (6 of 6)") for line in told)
        assert sum("parents studied" in line for line in told) == 6
        lakes.append(lake)
    for table in ("events", "ingests", "bars", "features", "labels", "training_set", "study"):
        keys = lakes[0].partitions(table)
        assert len(keys) >= 6, table
        assert lakes[1].partitions(table) == keys
        for key in keys:
            one, other = (pq.read_table(lake.path(table, *key)) for lake in lakes)
            assert one.equals(other), (table, key)


def test_folds_and_trials_on_a_cluster_give_the_evaluation_of_this_machine(
    cluster: Cluster, tmp_path: Path
) -> None:
    lake = planted.lake(tmp_path / "lake", 5, 0.25)
    here = planted.settings(tmp_path / "lake", select=3, trials=2)
    there = msgspec.structs.replace(here, compute=cluster.uri)
    source = planted.source(lake)
    said: list[str] = []
    one, other = (
        training.evaluate(source, settings, planted.FEATURES, progress=said.append)
        for settings in (here, there)
    )
    assert one.blocks
    assert msgspec.json.encode(other.blocks) == msgspec.json.encode(one.blocks)
    assert (other.parameters, other.looks) == (one.parameters, one.looks)
    assert any("boosters fitted" in line for line in said)


def test_a_worker_killed_in_the_middle_of_a_partition_leaves_nothing_half_written(
    cluster: Cluster, tmp_path: Path
) -> None:
    results = mapped(
        work.half_written, [(str(tmp_path), day) for day in DAYS], on(cluster, tmp_path)
    )
    assert (tmp_path / "killed").exists()
    assert len(results) == len(DAYS)
    assert all(Lake(tmp_path).rows("bars", BTC, day) == 1000 for day in DAYS)


def test_a_task_that_kills_every_worker_is_named(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ComputeError, match=r"^7: 2 workers were lost while running it"):
        mapped(work.deadly, [(7,)], on(cluster, tmp_path))
    with pytest.raises(ComputeError, match=r"^7: a worker process was killed"):
        mapped(work.deadly, [(7,), (8,)], Settings())


def test_what_a_task_raises_is_told_with_its_name(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^ours: cannot be read$"):
        mapped(work.failing, [("ours",)], on(cluster, tmp_path))
    with pytest.raises(ComputeError, match=r"^theirs: a defect \(ZeroDivisionError\)$"):
        mapped(work.failing, [("theirs",)], on(cluster, tmp_path))


def test_tasks_of_more_than_half_a_workers_memory_never_meet_on_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    tasks = [(0.1 + n / 100,) for n in range(6)]
    spans = sorted(mapped(work.span, tasks, on(cluster, tmp_path), MEMORY_GB / 2 + 1).values())
    for (worker, _, end), (next_worker, begin, _) in pairwise(spans):
        assert worker != next_worker or begin >= end


def test_with_the_scheduler_gone_the_run_says_so_and_a_second_one_completes(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    own_cluster.start()
    settings, done = on(own_cluster, tmp_path), threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            tasks = [(0.1,), (60.0,)]
            map_tasks(work.span, tasks, 2, lambda *_: done.set(), settings, 1.0)
        except ComputeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(done.is_set)
    own_cluster.stop()
    thread.join(60)
    assert "the scheduler is gone; 1 of 2 tasks were done" in str(errors[0])
    own_cluster.start()
    assert len(mapped(work.span, [(0.1,)], settings)) == 1


def test_a_cluster_without_workers_is_said_and_waited_for_so_long_as_it_says(
    own_cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("_LOOK_S", "_SAID_S"):
        monkeypatch.setattr(compute, name, 0.1)
    own_cluster.start(1)
    settings, begun, ended = on(own_cluster, tmp_path), threading.Event(), list[object]()

    def run() -> None:
        tasks = [(0.1,), (3.0,)]
        try:
            map_tasks(
                work.span, tasks, 2, lambda task, _: (begun.set(), ended.append(task)), settings
            )  # type: ignore[func-returns-value]
        except ComputeError as error:
            ended.append(str(error))

    for patience_s, end in ((300.0, (3.0,)), (0.5, None)):
        monkeypatch.setattr(compute, "_PATIENCE_S", patience_s)
        begun.clear()
        thread = threading.Thread(target=run)
        thread.start()
        until(begun.is_set)
        own_cluster.stop(1)
        if end:
            until(lambda: "no worker is left; waiting for one, 300 s" in capsys.readouterr().err)
            own_cluster.join()
        thread.join(120)
        assert ended[-1] == end or "without a worker for 0.5 s; what was done" in str(ended[-1])


def test_a_worker_that_joins_is_asked_what_the_first_ones_were(
    own_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "_LOOK_S", 0.1)
    own_cluster.start(1)
    settings, begun = on(own_cluster, tmp_path), threading.Event()

    def joins() -> None:
        begun.wait(60)
        own_cluster.join(threads=2)

    thread = threading.Thread(target=joins)
    thread.start()
    tasks = [(0.1,), *((60.0 + n,) for n in range(4))]
    with pytest.raises(ComputeError, match="has 2 threads; start it with --nthreads 1"):
        map_tasks(work.span, tasks, 2, lambda *_: begun.set(), settings)
    thread.join()


def test_a_folder_that_may_only_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mark").touch()
    assert compute.sees(str(tmp_path), "mark") == ""
    monkeypatch.setattr(
        os, "access", lambda path, mode: mode != os.W_OK
    )  # root may write everywhere
    assert compute.sees(str(tmp_path), "mark") == "may not write into this folder"


def test_what_would_spoil_the_work_is_refused_before_it(
    cluster: Cluster, own_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = on(cluster, tmp_path)
    with pytest.raises(ComputeError, match="no worker has more than 4; start one with"):
        mapped(work.span, [(0.0,)], settings, 64)
    with pytest.raises(ComputeError, match="root = lake: name it absolutely"):
        compute.check(on(cluster, Path("lake")))
    own_cluster.start(threads=2)
    with pytest.raises(ComputeError, match="has 2 threads; start it with --nthreads 1"):
        compute.check(on(own_cluster, tmp_path))
    monkeypatch.setattr(compute, "_WAIT_S", 1)
    with pytest.raises(ComputeError, match="no Dask scheduler answers there"):
        compute.check(Settings(root=str(tmp_path), compute="dask://127.0.0.1:9"))
    with monkeypatch.context() as patch:
        patch.setattr(compute, "source_hash", lambda: "0" * 16)
        with pytest.raises(ComputeError, match=r"code is \w{16} there and 0{16} here"):
            compute.check(settings)
    with monkeypatch.context() as patch:
        patch.setattr(compute, "version", lambda name: "0.1")
        with pytest.raises(ComputeError, match=r"numpy is \S+ there and 0.1 here"):
            compute.check(settings)
    with monkeypatch.context() as patch:
        patch.setattr(compute, "_clock", lambda: time.time() + 30)
        with pytest.raises(ComputeError, match=r"its clock differs by (29|30)\.\d s or more"):
            compute.check(settings)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", lambda self: None)
        with pytest.raises(ComputeError, match=f"{tmp_path}: does not see this folder"):
            compute.check(settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("compute", "dask:8786"),
        ("compute", "cloud"),
        ("state", "mysql://x"),
        ("state", "postgresql://h/d"),
    ],
)
def test_a_place_that_is_none_is_refused(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{key}: "):
        load(overrides=[f"{key}={value}"])


def test_a_password_in_a_setting_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError, match="state: holds a password") as refused:
        load(overrides=["state=postgresql://desk:hunter2@db/l2"])
    assert "hunter2" not in str(refused.value)


def test_a_quick_bench_has_a_row_for_every_goal() -> None:
    rows = {row.name: row.ours for row in bench.measure(quick=True, say=lambda _: None)}
    assert rows.keys() > GOALS["cluster"].keys()
    assert all(value > 0 for value in rows.values())


def test_here_no_more_processes_run_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_memory_gb", lambda: 1.5)
    results: dict[Any, Any] = {}
    tasks = [(0.0,), (0.01,)]
    map_tasks(
        work.span, tasks, 2, lambda t, r: results.update({t: r[0]}), None, market_data.MEMORY_GB
    )
    assert len(set(results.values())) == 1
