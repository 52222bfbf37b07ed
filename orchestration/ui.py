"""`l2 ui`: Dagster's home in a lake, and the web servers of Dagster and MLflow on loopback."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from market.console import Result, say
from market.errors import UsageError
from market.locks import exclusive
from market.settings import Settings
from models_registry.relocation import relocate
from models_registry.state import check, database, on_server, registry_home
from models_registry.store import artifacts, is_own, tracking_uri

if TYPE_CHECKING:
    import dagster as dg

_FIRST_YAML: Final = """\
telemetry:
  enabled: false
nux:
  enabled: false
"""
#: One run at a time: each is parallel by itself. A run that fails is made again from where it failed.
_DAGSTER_YAML: Final = (
    _FIRST_YAML
    + """\
concurrency:
  runs:
    max_concurrent_runs: 1
run_retries:
  enabled: true
  max_retries: 2
"""
)


_POSTGRES_YAML: Final = "storage:\n  postgres:\n    postgres_url: {}\n"


class PortError(UsageError):
    """A port cannot be listened on."""


def home_of(settings: Settings) -> Path:
    """DAGSTER_HOME, by default ``dagster`` of the lake's home."""
    return Path(os.environ.get("DAGSTER_HOME") or settings.home.absolute() / "dagster")


def dagster_home(settings: Settings) -> Path:
    """The same, created, and configured as the settings say unless a person has written its ``dagster.yaml``."""
    home = home_of(settings)
    home.mkdir(parents=True, exist_ok=True)
    file, wanted = home / "dagster.yaml", _DAGSTER_YAML
    if on_server(settings):
        wanted += _POSTGRES_YAML.format(database(settings, "dagster"))
    before = file.read_text() if file.exists() else _FIRST_YAML
    written = _DAGSTER_YAML + _POSTGRES_YAML.partition("{}")[0]
    ours = before in (_FIRST_YAML, _DAGSTER_YAML) or before.startswith(written)
    if ours and before != wanted:
        file.write_text(wanted)
    return home


def dagster_instance(settings: Settings) -> dg.DagsterInstance:
    """The Dagster instance of a lake, whose runs `l2 ui` shows; sets DAGSTER_HOME."""
    import dagster as dg

    check(settings)
    home = dagster_home(settings)
    os.environ["DAGSTER_HOME"] = str(home)
    with exclusive(home / "created.lock", "Dagster's databases"):
        instance = dg.DagsterInstance.get()
        # Each makes its tables when it is first used; two processes at once would both do it.
        instance.run_storage, instance.event_log_storage, instance.schedule_storage  # noqa: B018
    return instance


def port_of(url: str, default: int) -> int:
    """The port of an address."""
    return urlsplit(url).port or default


def require_free(port: int, option: str) -> None:
    """PortError, naming the option to change, when the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortError(f"port {port} is in use; choose another with {option}") from error


def serve(settings: Settings, dagster_port: int, mlflow_port: int, daemon: bool = True) -> None:
    """Run the servers until interrupted, or until one of them exits; with the ``daemon`` of Dagster, which
    launches its runs. Raises PortError.
    """
    check(settings)
    own = tracking_uri(settings) == database(settings, "mlflow")
    require_free(dagster_port, "--dagster-port")
    if own:
        require_free(mlflow_port, "--mlflow-port")
        home = registry_home(settings)
        home.mkdir(parents=True, exist_ok=True)
        if is_own(settings):
            relocate(home)
    else:
        say(f"MLflow: {tracking_uri(settings)}, which the settings or its variables name")
    environment = os.environ | {
        "DAGSTER_HOME": str(dagster_home(settings)),
        "L2_ROOT": settings.root if "://" in settings.root else str(Path(settings.root).absolute()),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # seven idle processes of a job queue that nothing here uses
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "true",
        # what Dagster, MLflow and their web server say of each other's old ways
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
    }
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    servers: list[subprocess.Popen[bytes]] = []
    try:
        served = [("Dagster", dagster_port, _dagster(dagster_port, daemon))]
        if own:
            served.append(("MLflow", mlflow_port, _mlflow(mlflow_port, settings)))
        for name, port, arguments in served:
            say(f"{name}: http://127.0.0.1:{port}")
            servers.append(subprocess.Popen(arguments, env=environment, start_new_session=True))
        os.wait()
    except KeyboardInterrupt:
        say("stopping")
    finally:
        _stop(servers)


def _dagster(port: int, daemon: bool) -> list[str]:
    beside = Path(sys.executable).parent
    server = [str(beside / "dagster"), "dev"] if daemon else [str(beside / "dagster-webserver")]
    module = ("--module-name", "orchestration.definitions")
    return [*server, "--port", str(port), "--host", "127.0.0.1", *module]


def _mlflow(port: int, settings: Settings) -> list[str]:
    return [
        str(Path(sys.executable).parent / "mlflow"), "server",
        "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", database(settings, "mlflow"),
        "--default-artifact-root", artifacts(settings), "--workers", "1",
    ]  # fmt: skip


def _stop(servers: list[subprocess.Popen[bytes]]) -> None:
    """Stop servers and their children: each leads a process group. By force after some seconds."""
    for number, timeout_s in ((signal.SIGINT, 4), (signal.SIGTERM, 2), (signal.SIGKILL, 2)):
        for server in servers:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, number)
        deadline = time.monotonic() + timeout_s
        for server in servers:
            with suppress(subprocess.TimeoutExpired):
                server.wait(timeout=max(0.0, deadline - time.monotonic()))


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 ui`."""
    parser.add_argument("--dagster-port", type=int, help="default: that of pages.dagster, 3000")
    parser.add_argument("--mlflow-port", type=int, help="default: that of pages.mlflow, 5000")
    parser.add_argument(
        "--no-daemon", action="store_true", help="pages alone; Dagster's daemon runs elsewhere"
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 ui`: serve both pages until interrupted."""
    pages = settings.pages
    serve(
        settings,
        options.dagster_port or port_of(pages.dagster, 3000),
        options.mlflow_port or port_of(pages.mlflow, 5000),
        not options.no_daemon,
    )
    return None
