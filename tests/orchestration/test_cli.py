"""The `l2` command: results on standard output, errors as one line that says what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from market.settings import Settings
from models_registry.store import CHAMPION, registry_client
from orchestration.cli import VERBS, main
from orchestration.ui import PortError, require_free
from proving.sandbox.server import Sandbox
from tests.conftest import REPOSITORY, Limit
from tests.proving.sandbox_server import served


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own working folder, and no setting leaks out of one."""
    monkeypatch.chdir(tmp_path)
    for name in ("L2_CONFIG", "L2_ROOT", "L2_SET"):
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


def test_a_bad_value_blames_the_option_that_was_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["config", "--set", "model.fee_row=vip9"]) == 2
    assert one_line(capsys).startswith("l2 config: --set model.fee_row=vip9: model.fee_row: ")
    monkeypatch.setenv("L2_MODEL__FEE_ROW", "vip9")
    assert main(["config"]) == 2
    assert "environment L2_MODEL__FEE_ROW" in one_line(capsys)


def test_options_of_one_call_do_not_reach_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--json", "--set", "model.fee_row=zero", "--root", "here"]) == 0
    capsys.readouterr()
    assert main(["config", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"]["fee_row"], printed["root"]) == ("vip0", "lake")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["study", "--synthetic", "--seeds", "x"], "--seeds x: expected seeds and ranges"),
        (["synth", "--check", "--seeds", "9-4"], "--seeds 9-4: 9-4 runs backwards"),
        (["fills", "--seeds", "1,two"], "--seeds 1,two: expected seeds and ranges"),
        (["coverage", "--symbols", ","], "--symbols ',': names none"),
        (["study", "--algorithms", "magic", "--synthetic"], "algorithm 'magic': expected some of"),
        (["pipelin"], "no such verb; did you mean pipeline?"),
    ],
)
def test_a_wrong_call_is_told_in_the_words_that_were_typed(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert one_line(capsys).startswith(f"l2 {arguments[0]}: {expected}")


def test_a_full_disk_is_one_line_of_what_to_do(
    tmp_path: Path, file_limit: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path / "lake")]
    with file_limit(0):
        assert main(["sql", "select 1", *root]) == 1
        assert "lake.json: not written" in one_line(capsys)
    assert main(["sql", "select 1", *root]) == 0
    capsys.readouterr()
    copy = f"copy (select uuid() from range(99999)) to '{tmp_path}/out.csv'"
    with file_limit(10_000):
        assert main(["sql", copy, *root]) != 0
        assert "free space in" in one_line(capsys)


def test_an_unknown_option_shows_the_usage_of_its_own_verb(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["coverage", "--seed", "1"])
    assert "usage: l2 coverage" in capsys.readouterr().err


def test_help_lists_every_verb_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for group, verbs in VERBS.items():
        assert f"\n{group}:\n" in printed
        assert all(f"\n  {name} " in printed for name in verbs)


@pytest.mark.parametrize("name", [name for verbs in VERBS.values() for name in verbs])
def test_every_verb_has_a_grammar_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"usage: l2 {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["config"], ["config", "--help"], ["nonsense"]])
def test_help_and_config_load_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys; from orchestration.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    heavy = {"dagster", "duckdb", "mlflow", "numba", "numpy", "pandas", "pyarrow", "websockets"}
    assert not loaded & heavy


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
    assert main(["live", "--root", "lake"]) == 2
    assert "--frames" in one_line(capsys)


def test_sql_reads_tables_and_reports_its_own_errors_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["sql", "select 6 * 7 as answer", "--json", "--root", "lake"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": [{"answer": 42}]}
    assert main(["sql", "select * from nothing", "--root", "lake"]) == 2
    assert "nothing" in one_line(capsys)


def test_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"Python", "libgomp", "disk", "memory"} <= {finding["what"] for finding in findings}


def test_doctor_reaches_the_venue_and_compares_its_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def venue(*options: str) -> dict[str, Any]:
        given = ("doctor", "--json", "--root", str(tmp_path), "--set", "live.venue=sandbox")
        main([*given, *(part for option in options for part in ("--set", option))])
        found = json.loads(capsys.readouterr().out)["findings"]
        return next(finding for finding in found if finding["what"] == "venue")

    with served(Sandbox(41, symbols=("BTCUSDT",), begins_ns=None)) as running:
        rest = str(running.description["rest"])
        clock = running.description["clock"]
        taken = [f"clock.{name}={value}" for name, value in clock.items()]
        taken.append("risk.clock_skew_s=3600")  # it is late by what building it took
        good = venue(f"live.sandbox={rest}", *taken)
        assert good["ok"], good
        assert good["detail"].startswith(f"{rest} answers in ")
        behind = f"clock.simulated_ns={clock['simulated_ns'] - 7_200 * 10**9}"
        late = venue(f"live.sandbox={rest}", *taken, behind)
        assert not late["ok"]
        assert "s from ours, of 3600 allowed; synchronise this machine's" in late["detail"]
    gone = venue(f"live.sandbox={rest}")
    assert not gone["ok"]
    assert "Connection refused" in gone["detail"]


def found_by_doctor(capsys: pytest.CaptureFixture[str], what: str, *options: str) -> dict[str, Any]:
    main(["doctor", "--json", *(part for option in options for part in ("--set", option))])
    found = json.loads(capsys.readouterr().out)["findings"]
    return next(finding for finding in found if finding["what"] == what)


@pytest.mark.parametrize(
    "body", [b"<html>Sign in</html>", b"{}", b"[1]", b'{"result": {"timeNano": "soon"}}', b"\xff"]
)
def test_doctor_says_in_one_line_that_a_venue_answers_with_something_else(
    capsys: pytest.CaptureFixture[str], body: bytes
) -> None:
    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rest = f"http://127.0.0.1:{server.server_port}"
        found = found_by_doctor(capsys, "venue", "live.venue=sandbox", f"live.sandbox={rest}")
        server.shutdown()
    assert not found["ok"]
    assert found["detail"].startswith(f"{rest}: not the venue's time but ")
    assert "\n" not in found["detail"]


def test_doctor_asks_the_registry_for_its_champion(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = found_by_doctor(capsys, "registry")
    assert found["ok"]
    assert found["detail"].startswith("none yet at sqlite:///")
    assert not Path("lake").exists(), "looking makes none"
    settings = Settings(root=str(Path("lake").absolute()))
    with registry_client(settings) as client:
        client.create_registered_model(settings.model_name)
        client.create_model_version(settings.model_name, "file:///nowhere")
    assert "no version is champion" in found_by_doctor(capsys, "registry")["detail"]
    with registry_client(settings) as client:
        client.set_registered_model_alias(settings.model_name, CHAMPION, "1")
    told = found_by_doctor(capsys, "registry")["detail"]
    assert told.endswith(f"answers, version 1 is champion of {settings.model_name}")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        away = found_by_doctor(capsys, "registry", f"registry.tracking_uri={uri}")
    assert not away["ok"]
    assert away["detail"].startswith(f"{uri}: the model registry does not do it")


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortError, match=f"port {port} is in use; choose another with --x"):
            require_free(port, "--x")
