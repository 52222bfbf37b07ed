"""deploy/compose.yaml: valid, of commands that exist, and of the settings that the platform reads."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from assets.modelling import git_sha
from market.settings import load
from models_registry.state import PARTS
from orchestration.cli import VERBS, loaded
from orchestration.ui import dagster_home
from tests.conftest import REPOSITORY

FILE = REPOSITORY / "deploy" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
OURS = {name: each for name, each in COMPOSE["services"].items() if each["image"] == "l2-platform"}
#: What a service's command line is given: verbs of ours, and programs of our lock file.
PROGRAMS = {"l2", "dask", "mlflow", "dagster-daemon", "dagster-webserver"}


def test_the_file_is_a_compose_file_of_every_part() -> None:
    found = PyCompose.from_yaml(yaml.safe_dump(COMPOSE))
    found.validate()
    assert set(found.service_names()) == {
        "postgres", "objects", "buckets", "mlflow", "scheduler", "compute", "daemon", "webserver",
        "recorder", "upload", "worker", "page",
    }  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_a_program_of_the_image_with_options_that_it_takes(name: str) -> None:
    program, *arguments = [
        re.sub(r"\$\{\w+:-(\w+)\}", r"\1", each) for each in OURS[name]["command"]
    ]
    assert program in PROGRAMS
    assert (Path(sys.executable).parent / program).exists()
    if program == "l2":
        verb, *options = arguments
        assert verb in {each for group in VERBS.values() for each in group}
        loaded(verb)[0].parse_args(options)
    elif program == "dask":
        from distributed.cli import dask_scheduler, dask_worker

        main = {"scheduler": dask_scheduler, "worker": dask_worker}[arguments[0]].main
        main.make_context(program, arguments[1:])


def test_the_settings_of_the_services_are_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for service in OURS.values():
        given = {
            k: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", str(v)) for k, v in service["environment"].items()
        }
        load(environ=given)
    settings = load(environ=given | {"L2_ROOT": str(tmp_path)})
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert (
        COMPOSE["configs"]["dagster"]["content"]
        == (dagster_home(settings) / "dagster.yaml").read_text()
    )
    schemas = COMPOSE["configs"]["schemas"]["content"].splitlines()
    assert schemas == [f"create schema {part};" for part in PARTS]


def test_no_secret_is_written_down_and_each_is_explained() -> None:
    secrets = set(re.findall(r"\$\{(\w+)(?::\?[^}]*)\}", FILE.read_text()))
    page = (REPOSITORY / "docs" / "deploy.md").read_text()
    assert {name for name in secrets if f"`{name}`" not in page} == set()
    for service in COMPOSE["services"].values():
        for key, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|KEY|TOKEN", key):
                assert value.startswith("${"), key


def test_every_volume_and_dependency_is_there_and_the_worker_is_one() -> None:
    for service in COMPOSE["services"].values():
        assert {each.partition(":")[0] for each in service.get("volumes", [])} <= set(
            COMPOSE["volumes"]
        )
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
    worker = COMPOSE["services"]["worker"]
    assert (worker["deploy"]["replicas"], worker["restart"]) == (1, "no")


def test_the_workspace_that_the_services_name_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster._core.workspace.load import location_origins_from_yaml_paths

    (origin,) = location_origins_from_yaml_paths([str(REPOSITORY / "workspace.yaml")])
    assert origin.location_name == "l2"
    module = origin.loadable_target_origin.module_name
    assert module == "orchestration.definitions"
    assert __import__(module, fromlist=["defs"]).defs.resolve_job_def("pipeline")


def test_the_image_installs_from_the_lock_file() -> None:
    lines = (FILE.parent / "Dockerfile").read_text().splitlines()
    assert lines[1].startswith("FROM python:3.11")
    assert any("make .venv/.ready" in line for line in lines)
    lock = (REPOSITORY / "requirements.lock").read_text()
    for package in ("distributed==", "dagster-postgres==", "psycopg2-binary==", "boto3=="):
        assert f"\n{package}" in lock, package


def test_the_image_takes_no_secrets_with_it_and_needs_no_git(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "**/.env" in (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ".env" in (REPOSITORY / ".gitignore").read_text().splitlines()
    monkeypatch.setenv("PATH", "")
    assert git_sha() == "unknown"
