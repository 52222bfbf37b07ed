"""Operators' commands reach the worker once, are answered, and a halt outlasts everything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from live.control import Control, ControlError, lock, lock_account, runs, send, state_of
from live.log import LogError
from live.messages import Command
from market.errors import UsageError
from market.settings import Settings
from orchestration.cli import main

HALT = Command(command="halt", who="ana", reason="a test")


class Worker:
    """Takes commands as a worker's shell does; ``answers`` unless it is busy."""

    def __init__(self, state: Path) -> None:
        self.taken: list[tuple[str, Command]] = []
        self.emergencies: list[Command] = []
        self.busy = False
        self._lock = lock(state / "worker.lock", "the worker")
        self.control = Control(state / "control", self.take, self.emergency, ("BTCUSDT", "ETHUSDT"))

    def take(self, name: str, command: Command) -> None:
        self.taken.append((name, command))
        if not self.busy:
            said = [f"{command.command} by {command.who}"]
            self.control.answer(name, {"said": said, "modes": {"BTCUSDT": "halt"}})

    def emergency(self, command: Command) -> None:
        self.emergencies.append(command)
        raise RuntimeError("the connections have ended")

    def stop(self) -> None:
        self.control.close()
        os.close(self._lock)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "live" / "paper"


@pytest.fixture
def worker(state: Path) -> Iterator[Worker]:
    one = Worker(state)
    yield one
    one.stop()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_a_command_is_taken_once_and_its_answer_comes_back(state: Path, worker: Worker) -> None:
    answer = send(state, HALT)
    assert answer == {"said": ["halt by ana"], "modes": {"BTCUSDT": "halt"}}
    tighter = Command(command="limits", who="ana", reason="", limits={"order_usdt": 1000.0})
    send(state, tighter)
    assert [command for _, command in worker.taken] == [HALT, tighter]
    assert list((state / "control").iterdir()) == []


def test_an_empty_file_named_halt_does_it_from_any_shell(state: Path, worker: Worker) -> None:
    (state / "control" / "halt").touch()
    until((state / "control" / "halt.done").exists)
    [(_, command)] = worker.taken
    assert (command.command, command.symbol) == ("halt", "")
    assert command.who
    assert not (state / "control" / "halt").exists()


def test_a_file_that_is_no_command_is_refused_with_the_reason(state: Path, worker: Worker) -> None:
    bad = {"1": b"{", "2": msgspec.json.encode(Command(command="sell", who="x", reason="y"))}
    for name, content in bad.items():
        (state / "control" / f"{name}.json").write_bytes(content)
    until(lambda: len(list((state / "control").glob("*.done"))) == 2)
    errors = [msgspec.json.decode((state / "control" / f"{n}.done").read_bytes()) for n in bad]
    assert "truncated" in errors[0]["error"]
    assert "sell: expected one of halt" in errors[1]["error"]
    assert worker.taken == []


def test_a_halt_that_the_main_loop_does_not_take_is_done_without_it(
    state: Path, worker: Worker
) -> None:
    worker.busy = True
    with pytest.raises(ControlError, match="has not answered yet"):
        send(state, HALT, wait_s=3)
    until(lambda: worker.emergencies == [HALT])
    time.sleep(0.3)
    assert worker.emergencies == [HALT], "once"
    [(name, _)] = worker.taken
    worker.busy = False
    send(state, msgspec.structs.replace(HALT, symbol="ETHUSDT"))  # commands are read all the same
    worker.control.answer(name, {"said": [], "modes": {}})
    assert not (state / "control" / name).exists()


@pytest.mark.parametrize("verb", ["halt", "flatten", "pause", "resume"])
def test_a_command_for_a_symbol_that_is_not_there_is_refused(
    state: Path, worker: Worker, verb: str
) -> None:
    wrong = msgspec.structs.replace(HALT, command=verb, symbol="BTCUSD")
    with pytest.raises(ControlError, match="BTCUSD: not a symbol here; known: BTCUSDT, ETHUSDT"):
        send(state, wrong)
    assert worker.taken == []


def test_a_halt_that_would_wait_for_the_next_worker_names_a_symbol_of_the_settings(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["halt", "BTCUSD", "--root", str(tmp_path)]) == 2
    assert "BTCUSD: not a symbol here" in capsys.readouterr().err
    assert not state.exists()


def test_an_account_has_one_worker_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with lock_account("http://venue", "7", "account 7"):
        for name in ("XDG_RUNTIME_DIR", "TMPDIR", "HOME"):
            monkeypatch.setenv(name, "/nowhere")
        with pytest.raises(LogError, match=f"account 7: process {os.getpid()} works on it"):
            lock_account("http://venue", "7", "account 7")
        lock_account("http://venue", "8", "account 8").close()
    lock_account("http://venue", "7", "account 7").close()


def test_without_a_worker_only_a_halt_waits_for_the_next_one(state: Path) -> None:
    with pytest.raises(ControlError, match="none runs; the next one starts halted"):
        send(state, HALT)
    with pytest.raises(ControlError, match="no worker runs there"):
        send(state, Command(command="flatten", who="ana", reason=""))
    assert not runs(state)
    next_one = Worker(state)
    until(lambda: next_one.taken)
    next_one.stop()
    assert [command for _, command in next_one.taken] == [HALT]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": "resume", "reason": ""}, "say why with --reason"),
        ({"command": "limits", "limits": {"order_usd": 1.0}}, "order_usd: no limit"),
        (
            {"command": "limits", "limits": {"stop_bps": 1.0}},
            "stop_bps: set in .risk. of the settings",
        ),
        ({"command": "limits"}, "name at least one"),
    ],
)
def test_a_command_that_cannot_be_honoured_is_not_sent(
    state: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        send(state, msgspec.structs.replace(HALT, **changes))
    assert not state.exists()


def test_a_verb_finds_the_one_worker_that_runs(
    state: Path, worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(root=str(tmp_path))
    (tmp_path / "live" / "testnet").mkdir()
    assert state_of(settings, None) == state
    assert main(["pause", "BTCUSDT", "--reason", "news", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [
        "pause",
        "by",
        worker.taken[0][1].who,
        "BTCUSDT",
        "halt",
    ]
    assert (worker.taken[0][1].symbol, worker.taken[0][1].reason) == ("BTCUSDT", "news")
    second = Worker(tmp_path / "live" / "testnet")
    with pytest.raises(UsageError, match="say which with --venue"):
        state_of(settings, None)
    second.stop()
