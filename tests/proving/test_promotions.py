"""Promotions beside resolvers and readers, in small: `python -m proving.promotions` proves it at length."""

from __future__ import annotations

from pathlib import Path

from proving import promotions


def test_nobody_fails_while_champions_change_and_twins_make_one_version(tmp_path: Path) -> None:
    found = promotions.proved(str(tmp_path / "lake"), seed=1, promotions=2, limit_s=240)
    assert not found["failed"]
    assert found["promotions"] == 2
    assert min(*found["resolved"], *found["read"]) > 0
