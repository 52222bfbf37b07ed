"""What the watch says to a receiver on loopback, of a worker, a recorder and a daily run that are late."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from live.state_stream import StateStream
from market.lake import Lake
from market.settings import Notify, Settings
from market.units import utc_date
from models_registry.decay import DecayState
from models_registry.pointed import DECAY_FILE
from orchestration.cli import main
from orchestration.dashboard.follow import Follower
from orchestration.watch import Notifier, Told, Watch

DAY = 1_772_409_600  # a UTC midnight, epoch seconds


@pytest.fixture
def received() -> Iterator[tuple[str, list[str]]]:
    """A receiver's Apprise address, and the texts that it got."""
    texts: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            texts.append(json.loads(self.rfile.read(length))["message"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"json://127.0.0.1:{server.server_port}", texts
    server.shutdown()
    thread.join()
    server.server_close()


def told(run: str = "a", mode: str = "normal", fills: int = 0) -> dict[str, dict[str, Any]]:
    return {
        "worker": {"time_ns": time.time_ns(), "run": run},
        "symbols": {"BTCUSDT": {"mode": mode, "why": ["daily loss"] if mode != "normal" else []}},
        "account": {"equity": 1.0},
        "costs": {"fills": fills},
    }


def settings_of(root: Path, **notify: Any) -> Settings:
    return Settings(root=str(root), notify=Notify(**notify))


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[StateStream]:
    one = StateStream(tmp_path / "state.sock")
    yield one
    one.close()


@pytest.fixture
def follow(stream: StateStream) -> Iterator[Follower]:
    one = Follower(stream.path)
    yield one
    one.close()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def publish(stream: StateStream, follow: Follower, state: dict[str, dict[str, Any]]) -> None:
    before = follow.updates
    stream.publish(state)
    until(lambda: follow.updates > before)


def test_a_halt_is_said_once_and_when_it_is_over(
    tmp_path: Path, stream: StateStream, follow: Follower
) -> None:
    watch = Watch(settings_of(tmp_path), follow, False, lambda: DAY + 60.0)
    lines: list[str] = []
    tell = Told(lines.append, 3600.0)
    stream.publish(told(mode="halt"))
    until(lambda: follow.state)
    for now in (0.0, 10.0):
        tell(now, watch.look())
    assert lines == ["BTCUSDT: halt (daily loss)"]
    tell(3700.0, watch.look())
    assert lines == ["BTCUSDT: halt (daily loss)"] * 2
    stream.publish(told())
    until(lambda: follow.state["symbols"]["BTCUSDT"]["mode"] == "normal")
    tell(3701.0, watch.look())
    assert lines[2:] == ["over: BTCUSDT halt"]


def test_restarts_are_news_and_executions_where_they_are_asked_for(
    tmp_path: Path, stream: StateStream, follow: Follower
) -> None:
    watch = Watch(settings_of(tmp_path, fills=True), follow, False, time.time)
    for given, expected in (
        (told("a", fills=2), []),
        (told("a", fills=5), ["3 executions"]),
        (told("b"), ["the worker was started again: b"]),
    ):
        publish(stream, follow, given)
        assert list(watch.news()) == expected


def test_a_worker_that_dies_is_said_although_it_cannot_say_so(
    tmp_path: Path, stream: StateStream, follow: Follower
) -> None:
    watch = Watch(settings_of(tmp_path, silence_s=0.2), follow, False, lambda: DAY + 60.0)
    stream.publish(told())
    until(lambda: follow.state)
    stream.close()
    until(lambda: [subject.name for subject in watch.look()] == ["worker silent"])


def test_a_recorder_and_a_daily_run_that_are_late_are_subjects_each(
    tmp_path: Path, follow: Follower
) -> None:
    hours = [0.0]
    watch = Watch(settings_of(tmp_path), follow, True, lambda: DAY + 3600.0 * hours[0])
    hours[0] = 2.0

    def late() -> dict[str, str]:
        return {s.name: s.text for s in watch.look() if not s.name.startswith("worker")}

    def missing(days: int) -> str:
        date = utc_date((DAY - 86_400 * days) * 10**9)
        return f"no bars of {date} for BTCUSDT, ETHUSDT: see `l2 ui`"

    assert set(late()) == {"recorder"}
    hours[0] = 2.5  # the run begins at 00:20 and may take two hours
    assert late()["daily run"] == missing(1)
    capture = Path(Lake(tmp_path).frames_dir(utc_date(DAY * 10**9))) / "a.frames.zst"
    capture.parent.mkdir(parents=True)
    capture.touch()
    assert set(late()) == {"daily run"}
    hours[0] = 24.0
    assert late()["daily run"] == missing(1), "what is late is not over at midnight"
    hours[0] = 26.5
    assert late()["daily run"] == missing(0)


def test_all_that_happens_reaches_a_receiver_in_few_messages(
    tmp_path: Path, stream: StateStream, follow: Follower, received: tuple[str, list[str]]
) -> None:
    address, texts = received
    now_s = 0.0
    tell = Notifier(address, lambda: now_s)
    say = Told(tell, 3600.0)
    patient, quick = (
        Watch(settings_of(tmp_path, fills=True, silence_s=s), follow, False, lambda: DAY + 60.0)
        for s in (3600.0, 0.1)
    )

    def look(watch: Watch) -> None:
        say(now_s, watch.look())
        for line in watch.news():
            tell(line)

    publish(stream, follow, told("a", fills=1))
    look(patient)
    publish(stream, follow, told("a", mode="halt", fills=3))
    look(patient)
    assert texts == ["BTCUSDT: halt (daily loss)"]
    decayed = tmp_path / "bundles" / "btc-l2" / DECAY_FILE
    decayed.parent.mkdir(parents=True)
    decayed.write_bytes(msgspec.json.encode(DecayState(alarm_ns=DAY * 10**9)))
    publish(stream, follow, told("b"))
    look(patient)
    stream.close()
    until(lambda: follow.age_s > 0.1)
    for _ in range(2):
        look(quick)
    assert len(texts) == 1, "the next message is half a minute away"
    now_s = 31.0
    tell.send()
    assert texts[1].splitlines()[:5] == [
        "2 executions",
        "the model's predictions decay since 2026-03-02: docs/decay.md",
        "over: BTCUSDT halt",
        "the worker was started again: b",
        f"no word of the worker for 0.1 s: {follow.status or 'its stream stands still'}",
    ]


def test_a_flood_is_one_message_that_counts_what_it_leaves_out(
    received: tuple[str, list[str]],
) -> None:
    address, texts = received
    tell = Notifier(address, lambda: 0.0)
    for n in range(1000):
        tell(f"<b>{n}</b>")
    tell.send(last=True)
    assert len(texts) == 2
    assert texts[0] == "<b>0</b>"
    assert texts[1].splitlines()[-2:] == ["<b>20</b>", "and 979 more"]


def test_what_a_service_refuses_is_sent_again_until_it_takes_it(
    received: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    address, texts = received
    now_s = 0.0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        tell = Notifier(f"json://127.0.0.1:{closed.getsockname()[1]}", lambda: now_s)
        tell("a halt")
    assert "] a service did not take it" in capsys.readouterr().err
    tell._send.clear()
    tell._send.add(address)
    tell.send()
    assert not texts, "not before its time"
    now_s = 31.0
    tell.send()
    assert texts == ["a halt"]


def test_a_worker_of_another_version_is_said_though_it_speaks(
    tmp_path: Path, stream: StateStream, follow: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = DAY + 60.0
    watch = Watch(settings_of(tmp_path), follow, False, lambda: now_s)
    monkeypatch.setattr("orchestration.dashboard.follow.VERSION", -1)
    stream.publish(told(mode="halt"))
    until(lambda: "version" in follow.status)
    assert not list(watch.look()), "it may be about to end"
    now_s += 60.0
    until(lambda: [s.name for s in watch.look()] == ["worker not understood"])


def test_a_lake_that_cannot_be_read_is_a_subject_and_ends_nothing(
    tmp_path: Path, follow: Follower
) -> None:
    Lake(tmp_path)
    watch = Watch(settings_of(tmp_path), follow, False, lambda: DAY + 9000.0)
    (tmp_path / "bars").symlink_to(tmp_path / "bars")
    assert [s.name for s in watch.look()] == ["lake"]


def test_lines_go_to_the_addresses_of_the_environment(
    tmp_path: Path, received: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, texts = received
    monkeypatch.setenv("L2_NOTIFY", address)
    assert main(["watch", "--try", "--root", str(tmp_path)]) == 0
    assert texts == ["a trial of `l2 watch`"]
    options = ("--root", str(tmp_path), "--venue", "sandbox", "--set", "notify.silence_s=0.1")
    assert main(["watch", "--for", "3", "--recorder", *options]) == 0
    assert any(text.startswith("no word of the worker for 0.1 s: no worker runs") for text in texts)
    monkeypatch.setenv("L2_NOTIFY", "nonsense")
    assert main(["watch", "--try", "--root", str(tmp_path)]) == 2


def test_the_settings_hold_no_address() -> None:
    assert {f.name for f in msgspec.structs.fields(Notify)} == {"silence_s", "again_s", "fills"}
