"""A Dask cluster and a PostgreSQL server on loopback, started by the tests that ask for them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proving.bench.cluster import Cluster


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(answers: object, seconds: float = 60) -> None:
    """Wait for a callable to be true."""
    end = time.monotonic() + seconds
    while not answers():  # type: ignore[operator]
        assert time.monotonic() < end, f"{answers} was not true within {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    one = Cluster(tmp_path_factory.mktemp("dask"))
    with pytest.MonkeyPatch.context() as patch:
        # how often a task may lose its worker: half a minute each on a busy machine
        patch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
        one.start()
    yield one
    one.stop()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Not started yet; a test may end it."""
    one = Cluster(tmp_path)
    yield one
    one.stop()


class Postgres:
    """A server of an unprivileged user, whose password is asked for."""

    PASSWORD = "not a secret"

    def __init__(self, folder: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found and not shutil.which("initdb"):
            pytest.skip("no PostgreSQL here (apt-get install postgresql)")
        self.bin = found[-1].parent if found else Path(str(shutil.which("initdb"))).parent
        self.folder, self.port = folder, free_port()
        self.uri = f"postgresql://desk@127.0.0.1:{self.port}/l2"

    def _as_user(self, *command: str) -> None:
        # initdb refuses root
        given = (
            ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            if os.geteuid() == 0
            else []
        )
        done = subprocess.run(
            [*given, *command], cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        data = self.folder / "data"
        if not data.exists():
            password = self.folder / "password"
            password.write_text(self.PASSWORD)
            password.chmod(0o644)
            self._as_user(
                f"{self.bin}/initdb", "-D", str(data), "-U", "desk", "--auth=scram-sha-256", "--no-sync",
                f"--pwfile={password}",
            )  # fmt: skip
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        log = ("-l", str(self.folder / "log"))
        self._as_user(f"{self.bin}/pg_ctl", "-D", str(data), *log, "-o", options, "-w", "start")

    def stop(self) -> None:
        self._as_user(
            f"{self.bin}/pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop"
        )

    def run(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="desk", password=self.PASSWORD, dbname=database
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            rows = cursor.fetchall() if cursor.description else []
        connection.close()
        return rows


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    # Not below pytest's folder, which its user alone may enter.
    with tempfile.TemporaryDirectory(prefix="l2-postgres-", dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        server = Postgres(Path(folder))
        server.start()
        server.run("create database l2")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PGPASSWORD", server.PASSWORD)
            yield server
        server.stop()
