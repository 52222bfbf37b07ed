"""A run with its work on a cluster, its lake in a bucket and its state on a server, over a store that fails."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from market.lake import Lake
from market.place import home_of
from market.settings import load
from orchestration.pipeline import run
from proving.bench.cluster import Cluster
from tests.cluster.conftest import Postgres
from tests.object_store import BUCKET, served
from tests.orchestration.test_isolation import BTC, ETH, capture, lines

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

DAYS = ("2026-01-01", "2026-01-02")
TABLES = ["events", "bars", "features", "labels", "training_set"]


def test_a_run_completes_after_one_whose_store_failed_midway(
    own_cluster: Cluster, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(str(tmp_path / "home")) as store:
        own_cluster.start()  # with the store's credentials in its environment
        monkeypatch.delenv("DAGSTER_HOME", raising=False)
        for name, value in {
            "ROOT": BUCKET,
            "COMPUTE": own_cluster.uri,
            "STATE": postgres.uri,
        }.items():
            monkeypatch.setenv(f"L2_{name}", value)
        for day in DAYS:
            folder = home_of(BUCKET) / "frames" / f"date={day}"
            capture(folder / "a.frames.zst", lines(BTC, day), lines(ETH, day))
        puts = count()

        def fault(method: str, path: str) -> str:
            """Of the bars' objects, all but the first are refused."""
            refused = method == "PUT" and "/bars/" in path and next(puts) > 0
            return "AccessDenied" if refused else ""

        with store.faulty(fault):
            first = run(load(), first=DAYS[0], last=DAYS[-1], selection=TABLES)
        assert first["failed"]
        lake = Lake(BUCKET)
        assert len(lake.partitions("bars")) == 1
        second = run(load(), first=DAYS[0], last=DAYS[-1], selection=TABLES)
        assert not second["failed"], second
        keys = [(symbol, day) for symbol in (BTC, ETH) for day in DAYS]
        assert all(lake.partitions(table) == keys for table in TABLES)
        assert second["bars"] == {BTC: 40, ETH: 40}
