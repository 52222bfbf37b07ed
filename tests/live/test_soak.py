"""A short soak: thousands of frames a second from a venue that misbehaves, every line compared."""

from __future__ import annotations

from pathlib import Path

from live.soak import FAULTS, compare, digest, soak
from market.capture import CaptureWriter


def test_every_line_received_under_load_and_faults_is_stored(tmp_path: Path) -> None:
    result = soak(tmp_path, seconds=8.0, rate=1500.0, fault_s=0.4)

    assert result["wrong"] == []
    assert result["lost"] == 0
    assert result["lines_compared"] == result["received"] > 1500
    assert len(list((tmp_path / "sent").iterdir())) >= 2
    assert result["gaps"] >= 1
    assert result["duplicates"] >= 1
    assert result["disconnects"] >= 1
    assert len(FAULTS) == 9


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
