"""The log gives back what was synced, in one order, and says plainly what it cannot read."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.orders import Submit
from live import log
from live.control import lock
from live.log import Checkpoint, Header, LogError, LogWriter, Position
from live.messages import (
    Answer,
    Append,
    Command,
    Expired,
    PrivateFrame,
    PublicFrame,
    Say,
    Send,
    Tick,
)
from live.restoration import require
from market.units import HOUR_NS
from proving.torture.disk import Disk
from tests.conftest import REPOSITORY

T = 1_700_000_000_000_000_000
HEADER = Header(
    venue="sandbox",
    account="42",
    source="synthetic",
    instruments={"BTCUSDT": ("0.1", "0.001")},
    settings=b"{}",
    code="abc",
    run="sandbox-1",
)


def writer(folder: Path, **options: object) -> LogWriter:
    return LogWriter(folder, HEADER, T, reserve_bytes=1 << 16, **options)  # type: ignore[arg-type]


def bodies(folder: Path, since: Position = Position()) -> list[object]:  # noqa: B008
    return [body for block in log.read(folder, since) for _, body in block.records]


def frames(count: int) -> list[PublicFrame]:
    return [PublicFrame(frame=os.urandom(200)) for _ in range(count)]


def submit(number: int = 1) -> Send:
    order = Submit(client_id=f"p-{number}", symbol="BTCUSDT", side=1, qty_lots=5)
    return Send(number=number, body=order, deadline_ns=T + 1)


INPUTS = st.one_of(
    st.builds(PublicFrame, frame=st.binary(max_size=300)),
    st.builds(PrivateFrame, frame=st.binary(max_size=300)),
    st.builds(Answer, request=st.integers(0, 99), body=st.binary(max_size=99)),
    st.builds(Expired, request=st.integers(0, 99), reason=st.text(max_size=9)),
    st.just(Tick()),
    st.builds(
        Command, command=st.just("halt"), who=st.text(max_size=9), reason=st.text(max_size=9)
    ),
)
EFFECTS = st.lists(
    st.one_of(
        st.builds(submit, st.integers(1, 99)),
        st.builds(Append, kind=st.just("parent"), time_ns=st.just(T), body=st.binary(max_size=99)),
        st.builds(Say, level=st.just("info"), event=st.text(max_size=9)),
    ),
    max_size=3,
)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(INPUTS, EFFECTS, st.sampled_from("asft")), max_size=20))
def test_records_come_back_as_they_were_in_one_order(
    steps: list[tuple[log.Input, list[log.Effect], str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("log")
    out = writer(folder)
    appended: list[object] = [HEADER]
    for n, (given_input, effects, then) in enumerate(steps):
        out.append_input(T + n, given_input)
        out.append_effects(T + n, effects)
        appended += [given_input, *effects]
        match then:
            case "s":
                assert out.sync() == out.position
            case "f":
                out.flush()
            case "t":
                state = Checkpoint({"orders": b"%d" % n})
                out.turn(T + n, state)
                appended.append(msgspec.structs.replace(HEADER, checkpoint=state))
    out.close()
    assert bodies(folder) == appended


def test_a_reader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = writer(tmp_path)
    seen: list[object] = []
    at = Position()
    for part in (frames(3), frames(1000), frames(2)):
        for frame in part:
            out.append_input(T, frame)
        out.flush()
        for block in log.read(tmp_path, at):
            seen += [body for _, body in block.records]
            at = Position(block.segment, block.end)
        if len(part) == 1000:
            out.turn(T, Checkpoint())
    out.close()
    assert seen == bodies(tmp_path)
    assert len(seen) == 2 + 1005
    (tmp_path / "000002.log").unlink()
    with pytest.raises(LogError, match="no segment 2; put it back, or collect anew"):
        bodies(tmp_path, at)


def test_whatever_was_synced_is_there_wherever_a_crash_tears_the_end(tmp_path: Path) -> None:
    """Invariants, for every length of the file: a prefix of the records is read, synced ones are in it,
    the torn bytes are kept, and the next writer's records follow."""
    out = writer(tmp_path / "log")
    for frame in frames(3):
        out.append_input(T, frame)
    out.append_effects(T, [submit()])
    out.sync()
    safe = out._offset
    out.append_input(T, Tick())
    out.flush()
    written = out._offset
    data = (tmp_path / "log" / "000001.log").read_bytes()
    out.close()
    whole = bodies(tmp_path / "log")
    for length in [*range(0, safe, 7), *range(safe, written + 1), len(data)]:
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "000001.log").write_bytes(data[:length])
        before = bodies(folder)
        assert before == whole[: len(before)]
        assert length < safe or len(before) >= len(whole) - 1
        torn = log.repair(folder)
        assert log.repair(folder) is None
        size = (folder / "000001.log").stat().st_size if before else 0
        if torn:
            assert torn.kept.read_bytes() == data[size:length].rstrip(b"\0")
            assert torn.bytes == len(torn.kept.read_bytes())
        writer(folder).close()
        assert bodies(folder) == [*before, HEADER]
        shutil.rmtree(folder)


def test_blocks_that_a_power_cut_left_out_of_order_are_torn_not_damaged(tmp_path: Path) -> None:
    """Pages reach a disk in any order: a whole block may lie behind a lost one, both never synced."""
    out = writer(tmp_path)
    begin = out._offset
    for _ in range(2):
        for frame in frames(3):
            out.append_input(T, frame)
        out.flush()
    out.close()
    path = tmp_path / "000001.log"
    data = bytearray(path.read_bytes())
    data[begin + 30 : begin + 90] = bytes(60)
    path.write_bytes(data)
    assert bodies(tmp_path) == [HEADER]
    torn = log.repair(tmp_path)
    assert torn is not None
    assert torn.bytes == len(data) - begin


def test_a_segment_without_a_byte_is_none(tmp_path: Path) -> None:
    """A crash or a full disk between a segment's creation and its header leaves one."""
    writer(tmp_path).close()
    for name in ("000002.log", "000001.log"):
        (tmp_path / name).write_bytes(b"")
        assert log.repair(tmp_path) is None
        assert not (tmp_path / name).exists()
        if name == "000002.log":
            assert bodies(tmp_path) == [HEADER]
    assert log.last_segment(tmp_path) is None


def test_a_start_syncs_what_a_killed_writer_left(tmp_path: Path) -> None:
    """Else a power cut after the next start tears a segment that another follows."""
    disk = Disk(tmp_path)
    out = writer(tmp_path, fdatasync=disk.sync)
    out.append_input(T, Tick())
    out.flush()
    log.repair(tmp_path, disk.sync)
    writer(tmp_path, fdatasync=disk.sync)
    disk.cut_power(random.Random(1))
    assert bodies(tmp_path) == [HEADER, Tick(), HEADER]


@pytest.mark.parametrize("turned", [False, True])
def test_damage_in_the_middle_names_file_and_place(tmp_path: Path, turned: bool) -> None:
    out = writer(tmp_path)
    begin = out._offset
    for _ in range(3):
        for frame in frames(3):
            out.append_input(T, frame)
        out.sync()
    if turned:
        begin = out._offset - 100  # the last block of a segment that another follows
        out.turn(T, Checkpoint())
    out.close()
    path = tmp_path / "000001.log"
    data = bytearray(path.read_bytes())
    data[begin + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogError, match=r"000001\.log: damaged at byte \d+.* nothing was sent"):
        bodies(tmp_path)


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    writer(tmp_path).close()
    path = tmp_path / "000001.log"
    path.write_bytes(b"L2L" + bytes([99]) + path.read_bytes()[4:])
    before = path.read_bytes()
    for look in (bodies, log.repair, log.last_segment):
        with pytest.raises(LogError, match="format 99 is newer than 1"):
            look(tmp_path)
    assert path.read_bytes() == before


def test_a_log_of_another_venue_account_or_source_is_refused(tmp_path: Path) -> None:
    require(HEADER, tmp_path, "sandbox", "42", "synthetic")
    for name, wanted in {
        "venue": ("live", "42", "synthetic"),
        "account": ("sandbox", "43", "synthetic"),
        "source": ("sandbox", "42", "recorded"),
    }.items():
        with pytest.raises(LogError, match=f"the log of {name} .* use another root"):
            require(HEADER, tmp_path, *wanted)


def test_a_segment_is_whole_on_disk_before_the_next_one_exists(tmp_path: Path) -> None:
    """Else a power cut could leave a hole in the middle of the log."""
    safe: dict[str, int] = {}

    def fdatasync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        safe[path.name] = out._offset if safe else 0
        assert max(log.segments(tmp_path).values()) == path

    out = writer(tmp_path, fdatasync=fdatasync)
    for frame in frames(9):
        out.append_input(T, frame)
    out.turn(T, Checkpoint())
    out.sync()
    out.close()
    assert list(safe) == ["000001.log", "000002.log"]
    assert safe["000001.log"] == (tmp_path / "000001.log").stat().st_size


def test_the_last_segments_header_has_the_state_it_started_from(tmp_path: Path) -> None:
    out = writer(tmp_path)
    assert log.last_segment(tmp_path) == (1, HEADER)
    assert not out.turn_due(T)
    assert out.turn_due(T + HOUR_NS)
    out.turn(T + HOUR_NS, Checkpoint({"account": b"rich"}))
    out.close()
    number, header = log.last_segment(tmp_path) or (0, HEADER)
    assert (number, header.checkpoint.sections) == (2, {"account": b"rich"})
    assert log.last_segment(tmp_path / "elsewhere") is None


def test_one_process_holds_a_lock_and_is_named(tmp_path: Path) -> None:
    held = lock(tmp_path / "worker.lock", "the state of sandbox")
    with pytest.raises(LogError, match=f"the state of sandbox: process {os.getpid()} works on it"):
        lock(tmp_path / "worker.lock", "the state of sandbox")
    os.close(held)
    os.close(lock(tmp_path / "worker.lock", "the state of sandbox"))


def test_a_thread_may_sync_while_another_appends(tmp_path: Path) -> None:
    out = writer(tmp_path, background=True)
    done = threading.Event()

    def sync() -> None:
        while not done.is_set():
            out.sync()

    thread = threading.Thread(target=sync)
    thread.start()
    for n in range(5000):
        out.append_input(T + n, PublicFrame(frame=b"%d" % n))
        if n % 1000 == 999:
            out.turn(T + n, Checkpoint())
    done.set()
    thread.join()
    assert out.sync() == out.position
    out.close()
    sent = [body.frame for body in bodies(tmp_path) if isinstance(body, PublicFrame)]
    assert sent == [b"%d" % n for n in range(5000)]
    assert len(log.segments(tmp_path)) == 6


def test_a_reader_beside_a_writer_sees_no_damage(tmp_path: Path) -> None:
    """It may meet a block half written that is whole, with others behind it, a moment later."""
    out = writer(tmp_path, background=True)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for frame in frames(50):
                out.append_input(T, frame)
            out.sync()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        at, seen = Position(), 0
        while seen < 20_000:
            for block in log.read(tmp_path, at):
                at, seen = Position(block.segment, block.end), seen + len(block.records)
    finally:
        done.set()
        thread.join()
    out.close()


CRASH = """
import os, signal, sys
from pathlib import Path
from tests.live.test_log import T, frames, submit, writer
out = writer(Path(sys.argv[1]))
out.append_effects(T, [submit()])
out.sync()
for frame in frames(5): out.append_input(T, frame)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_request_outlives_a_process_killed_right_after_its_sync(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path)], check=False, cwd=REPOSITORY
    )
    assert killed.returncode == -signal.SIGKILL
    assert bodies(tmp_path) == [HEADER, submit()]
    assert log.repair(tmp_path) is None


FULL = """
import sys
from pathlib import Path
import pytest
from live.log import LogError, LogFullError
from tests.live.test_log import T, Tick, bodies, frames, submit, writer
folder = Path(sys.argv[1])
ballast = folder / "ballast"
out = writer(folder / "log")
ballast.write_bytes(bytes(2 << 20))
said = []
sent = 0
while not said:
    out.append_input(T, frames(1)[0])
    sent += 1
    try: out.sync()
    except LogFullError as error: said.append(str(error))
assert "disk is full" in said[0] and out.full, said
assert out.synced_to == out.position, "what was appended is safe before it is said"
for _ in range(5):  # the reserve takes what a shutdown has to say, and is not announced again
    out.append_effects(T, [submit()])
    out.sync()
with pytest.raises(LogError, match="cannot be written .*No space left"):
    while True:
        out.append_input(T, frames(1)[0])
        sent += 1
        out.sync()
assert out.synced_to < out.position
ballast.unlink()
assert out.sync() == out.position and not out.full, "what could not be written was kept"
out.close()
assert len(bodies(folder / "log")) == 1 + 5 + sent
"""


def test_a_full_disk_is_said_while_a_shutdown_still_fits(tmp_path: Path) -> None:
    mounted = f'mount -t tmpfs -o size=3m l2 {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    able = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*able, f"mount -t tmpfs l2 {tmp_path}"], check=False).returncode:
        pytest.skip("needs a small file system of its own")
    done = subprocess.run(
        [*able, mounted, FULL], check=False, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
