"""A short soak: thousands of frames a second from a venue that misbehaves, every line compared."""

from __future__ import annotations

from pathlib import Path

from market.wire.capture import CaptureWriter
from proving.soak import FAULTS, compare, digest, markdown, soak


def test_every_line_received_under_load_and_faults_is_stored(tmp_path: Path) -> None:
    result = soak(tmp_path, seconds=8.0, rate=1500.0, fault_s=0.4, file_s=2.0)

    assert result["wrong"] == []
    assert result["lost"] == 0
    assert result["lines_compared"] == result["received"] > 1500
    assert len(list((tmp_path / "sent").iterdir())) >= 2
    assert result["gaps"] >= 1
    assert result["duplicates"] >= 1
    assert result["disconnects"] >= 1
    assert result["files"] >= 3
    assert sum(result["faults"].values()) >= len(FAULTS)
    table = markdown(result).splitlines()
    assert {line.count("|") for line in table} == {3}
    assert f"| lines compared | {result['lines_compared']:,} |" in table


def test_only_a_cut_connection_may_have_a_tail_that_never_arrived(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()
    (sent / "000000.sent").write_bytes(digest(b"{}") + digest(b"[]"))
    path = tmp_path / "x.frames.zst"
    with CaptureWriter(path) as writer:
        writer.append(1, b'{"l2":"connect"}')
        writer.append(1, b"{}")
    for ended, wrong in (("abort", 0), ("close", 1), ("by the other side", 0)):
        (sent / "ends.txt").write_text(f"0 {ended}\n")
        found = compare(sent, [str(path)])
        assert (len(found["wrong"]), found["sent_but_never_received"]) == (wrong, 1)


def test_the_comparison_sees_a_line_that_is_missing_changed_or_moved(tmp_path: Path) -> None:
    lines = [*(b'{"n":%d}' % n for n in range(4)), b"garbage \r\x0b of any \xff byte"]
    sent = tmp_path / "sent"
    sent.mkdir()
    (sent / "000000.sent").write_bytes(b"".join(map(digest, lines)))
    wrong = {
        "missing": lines[:2] + lines[3:],
        "changed": [*lines[:2], b'{"n":9}', *lines[3:]],
        "moved": [lines[1], lines[0], *lines[2:]],
        "added": [*lines, b"{}"],
    }
    for name, stored in {"whole": lines, "tail": lines[:3], **wrong}.items():
        path = tmp_path / f"{name}.frames.zst"
        with CaptureWriter(path) as writer:
            writer.append(1, b'{"l2":"connect"}')
            for line in stored:
                writer.append(1, line)
        assert bool(compare(sent, [str(path)])["wrong"]) == (name in wrong)
