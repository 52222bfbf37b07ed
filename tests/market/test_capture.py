"""Captures: written lines are read back, and only a torn tail is ever dropped."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from market.wire import capture
from market.wire.capture import CaptureError, CaptureWriter, content_hash, read_blocks, read_lines


def pack(*texts: bytes) -> bytes:
    """Each text as a zstd frame of its own."""
    return b"".join(zstandard.ZstdCompressor().compress(text) for text in texts)


def text_of(path: Path) -> bytes:
    return b"".join(block.data for block in read_blocks(path))


def last_of(path: Path) -> capture.Block:
    *_, last = read_blocks(path)
    return last


# -- reading ---------------------------------------------------------------------------------------


def test_blocks_hold_whole_lines_and_number_them(tmp_path: Path) -> None:
    lines = [b"%d {%d}\n" % (n, hash((n, 1))) for n in range(20_000)]
    path = tmp_path / "a.frames.zst"
    path.write_bytes(pack(b"".join(lines)))
    blocks = list(read_blocks(path, size=1000))
    assert len(blocks) > 3
    number = 1
    for block in blocks:
        assert block.first_line == number
        assert block.data.endswith(b"\n") or (block.last and not block.data)
        assert block.data.startswith(b"".join(lines[number - 1 : number]))
        number += block.data.count(b"\n")
    assert number - 1 == len(lines)
    assert [block.last for block in blocks] == [False] * (len(blocks) - 1) + [True]
    assert blocks[-1].compressed_bytes == path.stat().st_size


def test_concatenated_zstd_frames_are_one_stream_even_when_a_line_spans_two(tmp_path: Path) -> None:
    path = tmp_path / "a.frames.zst"
    path.write_bytes(pack(b"1 {}\n2 {", b"}\n", b"", b"3 {}\n"))
    assert text_of(path) == b"1 {}\n2 {}\n3 {}\n"
    assert not last_of(path).torn


def test_every_truncation_of_a_file_reads_as_a_prefix_of_its_lines(tmp_path: Path) -> None:
    whole = b"".join(b'%d {"topic":"t%d"}\n' % (n, n * 7919) for n in range(200))
    data = pack(whole[:1500], whole[1500:])
    path = tmp_path / "a.frames.zst"
    seen = set()
    for size in range(4, len(data), 7):
        path.write_bytes(data[:size])
        text = text_of(path)
        assert whole.startswith(text)
        assert text == b"" or text.endswith(b"\n")
        last = last_of(path)
        assert last.torn or text == whole[:1500][: whole[:1500].rfind(b"\n") + 1]
        seen.add(len(text))
    assert len(seen) >= 2


def test_zeros_after_the_last_frame_are_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.frames.zst"
    path.write_bytes(pack(b"1 {}\n") + bytes(9000))
    assert text_of(path) == b"1 {}\n"
    assert last_of(path).torn_frame


def test_damage_before_the_tail_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.frames.zst"
    path.write_bytes(pack(b"1 {}\n") + b"garbage in the middle" + pack(b"2 {}\n"))
    with pytest.raises(CaptureError, match=rf"{re.escape(str(path))}: damaged near byte \d+"):
        list(read_blocks(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"1 {}\n", "not a zstd file"),
        (b"\x28\xb5", "only 2 bytes"),
    ],
)
def test_a_file_that_is_no_capture_is_one_clear_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.frames.zst"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=message) as caught:
        list(read_blocks(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_capture_errors(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no such capture"):
        list(read_blocks(tmp_path / "none"))
    with pytest.raises(CaptureError, match="cannot be read"):
        list(read_blocks(tmp_path))
    with pytest.raises(CaptureError, match="cannot be read"):
        content_hash(tmp_path / "none")


def test_an_endless_line_keeps_its_head_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "MAX_LINE_BYTES", 100_000)
    monkeypatch.setattr(capture, "KEPT_HEAD_BYTES", 10)
    path = tmp_path / "a.frames.zst"
    path.write_bytes(pack(b"1 {}\n2 " + b"x" * 3_000_000 + b"\n3 {}\n"))
    blocks = list(read_blocks(path))
    assert b"".join(block.data for block in blocks) == b"1 {}\n2 xxxxxxxx\n3 {}\n"
    assert frozenset().union(*(block.cut for block in blocks)) == {2}


# -- writing ---------------------------------------------------------------------------------------


def test_frames_controls_and_blocks_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.frames.zst"
    with CaptureWriter(path) as writer:
        writer.control(5, {"l2": "connect", "url": "ws://x"})
        writer.append(6, b'{"topic":"a"}')
        writer.append_block(b"7 {}\n8 {}\n")
        writer.append_block(b"")
        writer.append(9, b'{\n"pretty":1}')
    assert list(read_lines(path)) == [
        (5, b'{"l2":"connect","url":"ws://x"}'),
        (6, b'{"topic":"a"}'),
        (7, b"{}"),
        (8, b"{}"),
        (9, b'{ "pretty":1}'),
    ]
    assert not last_of(path).torn


def test_appending_anything_but_whole_lines_is_an_error(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "a.frames.zst") as writer:
        with pytest.raises(CaptureError, match="end with a newline"):
            writer.append_block(b"1 {}")
        with pytest.raises(CaptureError, match="needs a field l2"):
            writer.control(1, {"name": "connect"})


def test_the_clock_and_the_size_end_zstd_frames(tmp_path: Path) -> None:
    now = [0]
    path = tmp_path / "a.frames.zst"
    writer = CaptureWriter(path, sync_ms=100, frame_bytes=1000, clock=lambda: now[0])
    writer.append(1, b"{}")
    assert path.stat().st_size == 0 or text_of(path) == b""
    now[0] = 100_000_000
    writer.append(2, b"{}")
    assert text_of(path) == b"1 {}\n2 {}\n"
    writer.append_block(b"3 " + b"x" * 1000 + b"\n")
    assert text_of(path).count(b"\n") == 3
    writer.close()
    writer.close()


def test_one_capture_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.frames.zst"
    with CaptureWriter(path), pytest.raises(CaptureError, match="another process is writing"):
        CaptureWriter(path)
    CaptureWriter(path).close()


def test_the_same_lines_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with CaptureWriter(tmp_path / name, frame_bytes=5000) as writer:
            for n in range(100):
                writer.append_block(b"%d {}\n" % n * 50)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.frames.zst"
    garbage = b"\x00 a\rb\x0b c\x0c\x1c\x85\xe2\x80\xa8 \xff"
    with CaptureWriter(path) as writer:
        writer.append(1, garbage)
        writer.append(2, b"{}\r")
    assert list(read_lines(path)) == [(1, garbage), (2, b"{}\r")]


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Limits the size of files, as a full disk does; the limit ends with the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A disk that is full at any byte. Invariant: the failure is one CaptureError, synced text and every
# whole zstd frame reads, the rest is counted, nothing is torn, and the file can be appended to.
@pytest.mark.parametrize("full_at", [0, 1, 7, 400, 1000, 1999, 4096])
def test_a_full_disk_is_one_clear_error_and_leaves_a_whole_file(
    tmp_path: Path, file_limit: Callable[[int], None], full_at: int
) -> None:
    path = tmp_path / "a.frames.zst"
    lines = [b"%d %b\n" % (n, os.urandom(150).hex().encode()) for n in range(1, 60)]
    with CaptureWriter(path) as writer:
        writer.append_block(lines[0])
        writer.sync()
    synced = path.stat().st_size
    writer = CaptureWriter(path, frame_bytes=2000)
    file_limit(synced + full_at)
    taken: list[bytes] = []

    def fill() -> None:
        for line in lines[1:]:
            taken.append(line)
            writer.append_block(line)

    with pytest.raises(CaptureError, match="cannot be written: File too large"):
        fill()
    with pytest.raises(CaptureError, match="an earlier write failed; open the capture again"):
        writer.append_block(lines[0])
    writer.close()
    file_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])

    assert not last_of(path).torn
    kept = text_of(path)
    assert b"".join(lines).startswith(kept)
    assert len(kept) == len(lines[0]) + sum(map(len, taken)) - writer.lost_bytes
    with CaptureWriter(path) as again:
        again.append_block(b"99 {}\n")
    assert text_of(path) == kept + b"99 {}\n"


def test_a_failure_on_close_is_a_capture_error(
    tmp_path: Path, file_limit: Callable[[int], None]
) -> None:
    path = tmp_path / "a.frames.zst"
    file_limit(10)
    with (
        pytest.raises(CaptureError, match=r"a\.frames\.zst: cannot be written"),
        CaptureWriter(path) as writer,
    ):
        writer.append_block(b"1 {}\n")
    assert writer.lost_bytes == 5
    assert path.stat().st_size == 0


# A crash leaves any prefix of the file. Invariant: after reopening and appending, the file reads as
# a prefix of the old lines, at least as long as the synced text, followed by the new line.
@settings(max_examples=60, derandomize=True, deadline=None)
@given(cut=st.floats(0, 1), zeros=st.sampled_from([0, 0, 3, 5000]))
def test_reopening_after_a_crash_keeps_synced_lines(cut: float, zeros: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.frames.zst"
        with CaptureWriter(path) as writer:
            writer.append_block(b"".join(b"%d {}\n" % n for n in range(1, 50)))
            writer.sync()
            synced = path.stat().st_size
            writer.append_block(b"".join(b"%d {%d}\n" % (n, n**5) for n in range(50, 900)))
        data = path.read_bytes()
        size = synced + round(cut * (len(data) - synced))
        old = text_of(path)
        path.write_bytes(data[:size] + bytes(zeros))
        with CaptureWriter(path) as writer:
            writer.append(10**6, b"{}")
        *kept, new = text_of(path).splitlines(keepends=True)
        assert new == b"1000000 {}\n"
        assert old.startswith(b"".join(kept))
        assert len(kept) >= 49
        assert not last_of(path).torn


def test_reopening_counts_the_unfinished_line_it_drops(tmp_path: Path) -> None:
    path = tmp_path / "a.frames.zst"
    packer = zstandard.ZstdCompressor().compressobj()
    torn = packer.compress(b'2 {}\n3 {"half') + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    path.write_bytes(pack(b"1 {}\n") + torn)
    assert last_of(path).torn_bytes == 8
    assert last_of(path).torn_frame
    with CaptureWriter(path) as writer:
        assert writer.dropped_bytes == 8
        writer.append(4, b"{}")
    assert text_of(path) == b"1 {}\n2 {}\n4 {}\n"


def test_a_killed_writer_loses_no_synced_line(tmp_path: Path) -> None:
    path = tmp_path / "a.frames.zst"
    code = (
        "import os, signal, sys\n"
        "from market.wire.capture import CaptureWriter\n"
        "writer = CaptureWriter(sys.argv[1], sync_ms=10**6)\n"
        "for n in range(1, 1001): writer.append(n, b'{}')\n"
        "writer.sync()\n"
        "for n in range(1001, 2001): writer.append(n, b'{}')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(capture.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert done.returncode == -9
    stamps = [stamp for stamp, _ in read_lines(path)]
    assert stamps == list(range(1, len(stamps) + 1))
    assert len(stamps) >= 1000
