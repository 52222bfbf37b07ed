"""What all runs of a lake share is made once, and changed by one of them at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
