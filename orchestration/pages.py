"""The web pages of a lake: Dagster's and MLflow's own servers, on loopback."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from market.console import Result, say
from market.errors import UsageError
from market.settings import Settings
from orchestration.instance import dagster_home


class PortError(UsageError):
    """A port cannot be listened on."""


def require_free(port: int, option: str) -> None:
    """PortError when something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortError(f"port {port} is in use; choose another with {option}") from error


def commands(settings: Settings, dagster_port: int, mlflow_port: int) -> dict[str, list[str]]:
    """The two servers' command lines."""
    root = Path(settings.root).absolute()
    binaries = Path(sys.executable).parent
    return {
        "Dagster": [
            str(binaries / "dagster"), "dev", "--port", str(dagster_port),
            "--host", "127.0.0.1", "--module-name", "orchestration.definitions",
        ],
        "MLflow": [
            str(binaries / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow_port),
            "--backend-store-uri", f"sqlite:///{root}/mlflow/mlflow.db",
            "--default-artifact-root", f"{root}/mlflow/artifacts",
            "--workers",
            "1",
        ],
    }  # fmt: skip


def serve(settings: Settings, dagster_port: int, mlflow_port: int) -> None:
    """Run both servers until interrupted, or until one of them ends."""
    require_free(dagster_port, "--dagster-port")
    require_free(mlflow_port, "--mlflow-port")
    root = Path(settings.root).absolute()
    (root / "mlflow").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "DAGSTER_HOME": str(dagster_home(settings)),
        "L2_ROOT": str(root),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # seven idle processes of a job queue that nothing here uses
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "true",
    }
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands(settings, dagster_port, mlflow_port).items():
            port = dagster_port if name == "Dagster" else mlflow_port
            say(f"{name}: http://127.0.0.1:{port}")
            running.append(subprocess.Popen(command, env=environment, start_new_session=True))
        os.wait()
    except KeyboardInterrupt:
        say("stopping")
    finally:
        _stop(running)


def _stop(running: list[subprocess.Popen[bytes]]) -> None:
    """End servers with all that they started: each leads a process group of its own."""
    for number, patience_s in ((signal.SIGINT, 20), (signal.SIGKILL, 5)):
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=patience_s)


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 ui`."""
    parser.add_argument("--dagster-port", type=int, default=3000)
    parser.add_argument("--mlflow-port", type=int, default=5000)


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 ui`: serve both pages until interrupted."""
    serve(settings, options.dagster_port, options.mlflow_port)
    return None
