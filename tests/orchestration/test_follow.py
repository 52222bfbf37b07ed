"""What the page and `l2 status` make of a stream that is missing, broken, or of another version."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from live.state_stream import VERSION
from orchestration.cli import main
from orchestration.dashboard import follow
from orchestration.dashboard.follow import Follower

STATE = {
    "worker": {
        "time_ns": 1_772_409_600_000_000_000,
        "phase": "trading",
        "venue": "v",
        "model": "m",
    },
    "symbols": {"BTCUSDT": {"mode": "normal"}},
    "account": {"equity": 1.0, "peak": 1.0, "day_result": 0.0},
}


def snapshot(version: int = VERSION, **more: Any) -> bytes:
    told = {"type": "snapshot", "version": version, "sequence": 1, "state": STATE | more}
    return msgspec.json.encode(told) + b"\n"


class Worker:
    """A socket that says these bytes to each who connects, and then hangs up or, ``open``, says no more."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.says, self.open = b"", False
        self._held: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            connection.sendall(self.says)
            if self.open:
                self._held.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        for each in (self._server, *self._held):
            each.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    one = Worker(tmp_path / "live" / "sandbox" / "state.sock")
    yield one
    one.close()


@pytest.fixture
def page(tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Follower]:
    monkeypatch.setattr(follow, "PATIENCE_S", 0.3)
    one = Follower(tmp_path / "live" / "sandbox" / "state.sock")
    yield one
    one.close()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def recovers(worker: Worker, page: Follower) -> None:
    """It still follows once the worker speaks as it should."""
    worker.says, worker.open, before = snapshot(), True, page.updates
    until(lambda: page.updates > before and page.state)


@pytest.mark.parametrize(
    ("says", "status"),
    [
        (snapshot()[:40], "the worker says nothing"),
        (b'{"type": "snap\n', "the worker's stream cannot be read"),
        (b"\xff\xfe\n", "the worker's stream cannot be read"),
        (b"[1, 2]\n", "the worker's stream cannot be read"),
        (snapshot(markets={"BTCUSDT": {}}), "the worker's stream cannot be read"),
        (snapshot(VERSION + 1), f"the worker speaks version {VERSION + 1}"),
    ],
    ids=[
        "stops in a line",
        "no JSON",
        "no text",
        "no line of ours",
        "a field is missing",
        "version",
    ],
)
def test_a_stream_that_is_broken_is_named_and_the_next_one_is_followed(
    worker: Worker, page: Follower, says: bytes, status: str
) -> None:
    worker.says, worker.open = says, "version" in status
    until(lambda: page.status.startswith(status))
    recovers(worker, page)


def test_a_worker_that_hangs_keeps_what_it_said_and_is_named(
    worker: Worker, page: Follower
) -> None:
    worker.says, worker.open = snapshot(), True
    until(lambda: page.updates and page.status == "the worker says nothing")
    assert page.state["worker"]["phase"] == "trading"
    recovers(worker, page)


def test_a_symbol_without_data_is_no_trouble(worker: Worker, page: Follower) -> None:
    empty = {"bids": [], "asks": [], "valid": False, "tick": "0.1", "lot": "0.001"}
    worker.says = snapshot(markets={"BTCUSDT": empty})
    until(lambda: page.updates)
    assert page.state["markets"]["BTCUSDT"]["bids"] == []
    assert not page.moments.get("BTCUSDT")


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (b"", "says nothing"),
        (snapshot()[:40], "says nothing"),
        (b"no JSON\n", "not a line of the state stream"),
        (snapshot(VERSION + 1), f"version {VERSION + 1} of the state, {VERSION} here"),
    ],
)
def test_status_is_one_clear_line(
    tmp_path: Path, worker: Worker, says: bytes, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.says = says
    assert main(["status", "--root", str(tmp_path), "--venue", "sandbox"]) != 0
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error


def test_a_port_in_use_is_said_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["dashboard", "--root", str(tmp_path), "--venue", "v", "--port", port]) == 2
    assert f"127.0.0.1:{port}: Address already in use; name another" in capsys.readouterr().err
