"""What all runs of a lake share is made once, and changed by one of them at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg

from orchestration.pipeline import _MACHINE, _PROCESS, _cancel_killed

#: One run's use of Dagster's databases, MLflow's and the quality project, on a lake that has none.
_RUN = """
import sys
from pathlib import Path
import dagster, great_expectations, mlflow, pandas
from assets.expectations import Bound
from assets.quality import validate
from market.settings import load
from models_registry.store import registry_client
from orchestration.ui import dagster_instance

settings = load(environ={}, overrides=[f"root={sys.argv[1]}"])
print("ready", flush=True)
sys.stdin.readline()
dagster_instance(settings).get_runs()
with registry_client(settings) as client:
    print(client.get_experiment_by_name(settings.model_name).experiment_id)
folder = Path(sys.argv[1]) / "quality"
for turn in range(2):
    batch = pandas.DataFrame({"time": ["00:00:00"], "lag": [float(turn)]})
    bounds = [Bound("lag", "one", high=0.5)]
    (verdict,), _ = validate({f"2026-01-0{turn + 1} A": batch}, "events", bounds, folder)
    print(verdict.passed)
"""


def test_runs_of_a_fresh_lake_begin_at_the_same_moment(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _RUN, str(tmp_path / "lake")]
    runs = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n", run.communicate()[1]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    for run in runs:
        printed, said = run.communicate()
        assert run.returncode == 0, said
        assert printed.splitlines() == ["1", "True", "False"]


def test_only_this_machines_runs_are_closed_when_their_process_is_gone() -> None:
    here, gone = os.uname().nodename, str(2**22 + 1)  # above any process's number
    tags = {
        "killed": {_PROCESS: gone, _MACHINE: here},
        "runs": {_PROCESS: str(os.getpid()), _MACHINE: here},
        "elsewhere": {_PROCESS: gone, _MACHINE: "another"},
    }
    with dg.DagsterInstance.ephemeral() as instance:
        for name, given in tags.items():
            started = dg.DagsterRunStatus.STARTED
            instance.add_run(dg.DagsterRun("job", run_id=name, tags=given, status=started))
        _cancel_killed(instance)
        found = {run.run_id: run.status.value for run in instance.get_runs()}
    assert found == {"killed": "CANCELED", "runs": "STARTED", "elsewhere": "STARTED"}
