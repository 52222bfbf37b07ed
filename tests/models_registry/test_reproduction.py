"""A version made again: the same to the last bit, or what differs."""

from __future__ import annotations

import planted
import pytest

from market.lake import Lake
from market.settings import Settings
from models_registry.reproduction import reproduce
from models_registry.store import RegistryError


def test_a_version_is_made_again_to_the_last_bit_whatever_came_since(
    registered: tuple[Lake, Settings],
) -> None:
    lake, settings = registered
    for symbol in planted.SYMBOLS:
        lake.write("training_set", symbol, "2026-02-01", planted.day("2026-02-01", 9, 0.0))
    try:
        found = reproduce(settings, "1", planted.FEATURES)
    finally:
        for symbol in planted.SYMBOLS:
            lake.remove("training_set", symbol, "2026-02-01")
    assert (found.different, found.differs) == (0, ())
    assert found.rows > 10_000


def test_what_differs_and_what_is_gone_are_named(registered: tuple[Lake, Settings]) -> None:
    lake, settings = registered
    key = (planted.SYMBOLS[0], "2026-01-01")
    rows, notes = lake.read("training_set", *key), lake.metadata("training_set", *key)
    try:
        lake.write("training_set", *key, rows.slice(0, rows.num_rows // 2), inputs="shorter")
        found = reproduce(settings, "1", planted.FEATURES)
        assert found.different > 0
        assert f"input training_set 2026-01-01 {key[0]}" in found.differs
        assert "booster booster_60s.txt" in found.differs
        lake.remove("training_set", *key)
        with pytest.raises(RegistryError, match=f"first: 2026-01-01 {key[0]}"):
            reproduce(settings, "1", planted.FEATURES)
    finally:
        lake.write("training_set", *key, rows, inputs=notes["inputs"])
