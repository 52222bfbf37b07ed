"""Metrics of a worker's state and of the lake, as Prometheus reads them, and the rules that alarm by them."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from live.state_stream import StateStream
from market.lake import Lake
from market.settings import Settings
from orchestration.dashboard.follow import Follower
from orchestration.metrics import Metrics, serve
from tests.conftest import REPOSITORY
from tests.orchestration.test_watch import DAY, told, until

RULES = REPOSITORY / "orchestration" / "alerts.yml"
FIRED = REPOSITORY / "tests" / "orchestration" / "alerts_test.yml"


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    rows = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def test_metrics_are_the_workers_state_and_the_lakes_age(tmp_path: Path) -> None:
    stream = StateStream(tmp_path / "state.sock")
    follow = Follower(stream.path)
    try:
        settings = Settings(root=str(tmp_path))
        port = serve(Metrics(settings, follow, lambda: DAY + 3600.0), 0)
        assert "l2_equity_usdt" not in scraped(port)
        state = told(mode="halt")
        state["symbols"]["BTCUSDT"]["position_lots"] = -7
        state["account"] = {"equity": 90.0, "peak": 100.0, "day_result": -5.0}
        state["latency"] = {"decision": {"n": 9, "p50": 2000.0, "p99": 9000.0, "p99.9": 9500.0}}
        state["counters"] = {"gaps": 3, "limits_reached": {"gap": 2}}
        stream.publish(state)
        until(lambda: follow.state)
        Lake(tmp_path).write("bars", "BTCUSDT", "2026-03-01", pa.table({"t_ns": [1]}))
        found = scraped(port)
        assert found["l2_worker_silent_seconds"] < 30
        assert found['l2_mode{symbol="BTCUSDT"}'] == 5
        assert found['l2_position_lots{symbol="BTCUSDT"}'] == -7
        assert (found["l2_equity_usdt"], found["l2_drawdown_usdt"]) == (90, 10)
        assert found['l2_latency_seconds{quantile="0.99",stage="decision"}'] == 0.009
        assert found['l2_worker_count{what="limit gap"}'] == 2
        assert found['l2_bars_age_seconds{symbol="BTCUSDT"}'] == 3600
        assert found["l2_capture_age_seconds"] == 1e9
    finally:
        follow.close()
        stream.close()


def test_every_rule_has_a_test_that_fires_it() -> None:
    rules = [
        rule["alert"]
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
    ]
    tests = yaml.safe_load(FIRED.read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    quiet = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if not case["exp_alerts"]
    }
    assert fired == quiet == set(rules)


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: apt-get install prometheus")
def test_promtool_fires_each_rule() -> None:
    done = subprocess.run(["promtool", "test", "rules", str(FIRED)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
