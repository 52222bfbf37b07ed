"""The `l2` command: results on standard output, errors as one line that says what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from orchestration.cli import main
from orchestration.pages import PortError, require_free


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own working folder, and no setting leaks out of one."""
    monkeypatch.chdir(tmp_path)
    for name in ("L2_CONFIG", "L2_ROOT", "L2_MODEL__FEE_ROW", "L2_MODEL__FEEROW", "L2_SOURCE"):
        monkeypatch.setenv(name, "")  # remembers the old value, so that main() may change it
        monkeypatch.delenv(name)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    assert error
    assert "\n" not in error
    assert "Traceback" not in error
    return error


def test_config_prints_the_effective_settings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--json", "--set", "model.fee_row=zero", "--root", "here"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"]["fee_row"] == "zero"
    assert printed["root"].endswith("/here")


def test_config_says_whether_a_secret_is_set_and_never_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2_API_SECRET", "not-for-eyes")
    assert main(["config"]) == 0
    printed = capsys.readouterr().out
    assert "L2_API_SECRET  set" in printed
    assert "not-for-eyes" not in printed


def test_an_unknown_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--set", "model.feerow=zero"]) == 2
    assert "model.feerow" in one_line(capsys)


def test_a_settings_file_that_is_absent_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--config", "nowhere.toml"]) == 2
    assert "nowhere.toml" in one_line(capsys)


@pytest.mark.parametrize("verb", ["ingest", "pipeline"])
def test_a_missing_capture_is_named(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = ["--frames"] if verb == "pipeline" else []
    assert main([verb, *flag, "absent.frames.zst", "--root", "lake"]) == 1
    assert "absent.frames.zst" in one_line(capsys)


def test_an_empty_capture_is_named_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.frames.zst").touch()
    assert main(["ingest", "empty.frames.zst", "--root", "lake"]) == 1
    assert "empty.frames.zst" in one_line(capsys)
    assert not list((tmp_path / "lake").rglob("*.parquet"))
    assert not list((tmp_path / "lake").rglob("*.zst"))


def test_live_without_a_champion_says_how_to_get_one(
    capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    frames = str(data_dir / "bybit-linear-20260809.frames.zst")
    assert main(["live", "--frames", frames, "--root", "lake"]) == 1
    assert "champion" in one_line(capsys)


def test_live_wants_one_market(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["live", "--root", "lake"]) == 1
    assert "--frames" in one_line(capsys)


def test_sql_reads_tables_and_reports_its_own_errors_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["sql", "select 6 * 7 as answer", "--json", "--root", "lake"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": [{"answer": 42}]}
    assert main(["sql", "select * from nothing", "--root", "lake"]) == 1
    assert "nothing" in one_line(capsys)


def test_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"Python", "libgomp", "disk", "memory"} <= {finding["what"] for finding in findings}


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortError, match=f"port {port} is in use; choose another with --x"):
            require_free(port, "--x")
