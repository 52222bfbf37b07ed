"""The runbook misses nothing that the code can say; service units are sound, and written only when told."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from dagster import load_asset_checks_from_modules

from live import runbook
from live.safety import _MODES, LIMITS
from market.errors import L2Error, UsageError
from market.settings import SettingsError
from models_registry.manifest import BundleError
from orchestration import cli
from tests.conftest import REPOSITORY
from tests.test_imports import MODULES, TREES

#: Errors of the live room that are not the worker's: of archives and the recorder.
ELSEWHERE = {"ArchiveError", "FetchError", "RecorderError", "RequestError"}
NOT_WORKER = ("live.market_recorder", "live.coverage")


def text_of(node: ast.expr) -> str:
    """A string with … for each part that varies."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) for part in parts)
        case ast.BinOp(left=left, right=right):
            return text_of(left) + text_of(right)
    return "…"


def lines_of(tree: ast.AST) -> Iterator[str]:
    """The lines that code says at level warning or error."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        named = {each.arg: each.value for each in node.keywords}
        if name in ("say", "_say") and len(node.args) > 1:
            level, event = node.args[:2]
        elif name == "Say" and {"level", "event"} <= named.keys():
            level, event = named["level"], named["event"]
        elif name in ("warning", "error") and node.args:
            level, event = ast.Constant(name), node.args[0]
        else:
            continue
        if text_of(level) in ("warning", "error"):
            yield text_of(event)


def below(kind: type[L2Error]) -> Iterator[type[L2Error]]:
    yield kind
    for each in kind.__subclasses__():
        yield from below(each)


def test_every_limit_and_operators_command_has_advice() -> None:
    assert set(runbook.LIMIT_ADVICE) == {limit.name for limit in LIMITS}
    assert set(runbook.COMMAND_ADVICE) == set(_MODES)


def test_every_line_that_warns_has_its_row() -> None:
    worker = [
        tree for name, tree in TREES.items() if name.startswith("live") and name not in NOT_WORKER
    ]
    said = {line for tree in worker for line in lines_of(tree)}
    assert said - {"…"} == set(runbook.LINES)  # … is of helpers that pass a line on


def test_every_error_that_ends_a_worker_has_its_row_and_status() -> None:
    for module in (name for name in MODULES if name.startswith("live.")):
        import_module(module)
    found = {
        kind.__name__: kind.exit_status
        for kind in below(L2Error)
        if kind.__module__.startswith("live.") and kind.__name__ not in ELSEWHERE
    }
    found |= {kind.__name__: kind.exit_status for kind in (UsageError, SettingsError, BundleError)}
    assert {name: status for name, (status, *_) in runbook.ERRORS.items()} == found


def test_every_check_of_the_pipeline_has_its_row() -> None:
    modules = ("assets.modelling", "assets.quality", "orchestration.live_assets")
    ours = {
        spec.name
        for module in modules
        for check in load_asset_checks_from_modules([import_module(module)])
        for spec in check.check_specs
    }
    assert ours == set(runbook.CHECKS)


def test_every_alert_and_every_subject_of_the_watch_has_its_row() -> None:
    rules = yaml.safe_load((REPOSITORY / "orchestration" / "alerts.yml").read_text())
    assert {rule["alert"] for group in rules["groups"] for rule in group["rules"]} == set(
        runbook.ALERTS
    )
    calls = (node for node in ast.walk(TREES["orchestration.watch"]) if isinstance(node, ast.Call))
    names = {text_of(call.args[0]) for call in calls if getattr(call.func, "id", "") == "Subject"}
    assert names == set(runbook.SUBJECTS)


def test_the_committed_page_is_what_the_tables_say() -> None:
    assert runbook.PAGE.read_text() == runbook.page(), "it is stale: run make generate"


# -- service units ---------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder for units, and keys and odd settings in the environment."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("L2_ROOT", str(tmp_path / 'a lake of 5 % "x"'))
    monkeypatch.setenv("L2_SET", "model.fee_row=zero\nlive.venue=sandbox")
    monkeypatch.setenv("L2_API_SECRET", "hush")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config" / "systemd" / "user"


def test_units_are_shown_first_then_written_and_removed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["service", "install", "--user"]) == 0
    assert "RestartPreventExitStatus=2 3" in capsys.readouterr().out
    assert not home.exists()
    assert cli.main(["service", "install", "--user", "--yes"]) == 0
    written = {path.name: path.read_text() for path in home.iterdir()}
    assert {name.removeprefix("l2-").removesuffix(".service") for name in written} == {
        *("recorder", "resolver", "worker", "dagster", "ui", "dashboard", "watch")
    }
    assert not any("hush" in text for text in written.values())
    assert cli.main(["service", "remove"]) == 0
    assert len(list(home.iterdir())) == len(written)
    assert cli.main(["service", "remove", "--yes"]) == 0
    assert not list(home.iterdir())


def test_systemd_accepts_the_units_and_reads_our_settings_from_them(
    home: Path, tmp_path: Path
) -> None:
    assert cli.main(["service", "install", "--user", "--yes"]) == 0
    for path in home.iterdir():
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(path.read_text())
        assert {"Unit", "Service", "Install"} == set(unit.sections())
    text = (home / "l2-worker.service").read_text()
    assert 'Environment="L2_SET=model.fee_row=zero\\nlive.venue=sandbox"' in text
    assert '5 %% \\"x\\""' in text
    assert '"live" "--no-resolver"\n' in text, "a sandbox worker follows its venue, not the wire"
    if shutil.which("systemd-analyze"):
        found = subprocess.run(
            ["systemd-analyze", "verify", "--user", "--man=no", *map(str, home.iterdir())],
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (found.returncode, found.stderr) == (0, "")


def test_a_lake_in_a_bucket_is_uploaded_to_hourly_with_credentials_from_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("L2_ROOT", "s3://books/lake")
    monkeypatch.setenv("L2_HOME", str(home.parents[1] / "machine"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    assert cli.main(["service", "install", "--user", "--yes"]) == 0
    enabled = capsys.readouterr().out.partition("enable --now ")[2].split("\n")[0].split()
    texts = {path.name: path.read_text() for path in home.iterdir()}
    assert set(texts) - set(enabled) == {"l2-upload.service"}, "the timer starts it"
    services = [text for name, text in texts.items() if name.endswith(".service")]
    assert all("EnvironmentFile=-%E/l2/keys.env" in text for text in services)
    assert all("AWS_ENDPOINT_URL_S3=http://127.0.0.1:9000" in text for text in services)
    made = f"DAGSTER_HOME={home.parents[1]}/machine/books/lake/dagster"
    assert all(made in text for text in services), "without it Dagster's daemon does not start"
    assert not any("hush" in text for text in texts.values())
    assert cli.main(["service", "remove", "--yes"]) == 0
    assert not list(home.iterdir())


def test_every_unit_has_the_passwords_file_where_the_state_is_on_a_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2_STATE", "postgresql://desk@db:5432/l2")
    monkeypatch.setenv("PGPASSWORD", "hush")
    assert cli.main(["service", "install", "--user", "--yes"]) == 0
    texts = {path.name: path.read_text() for path in home.iterdir()}
    assert len(texts) == 7
    assert all(text.count("EnvironmentFile=-%E/l2/keys.env") == 1 for text in texts.values())
    assert not any("hush" in text for text in texts.values())


def test_a_unit_of_somebody_else_is_left_alone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir(parents=True)
    (home / "l2-worker.service").write_text("[Service]\nExecStart=/bin/true\n")
    assert cli.main(["service", "install", "--user", "--yes"]) == 2
    assert "not written by `l2 service`" in capsys.readouterr().err
    assert cli.main(["service", "remove", "--yes"]) == 0
    assert len(list(home.iterdir())) == 1
