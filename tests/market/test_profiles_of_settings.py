"""A profile stands for settings that are not set one by one; watched symbols are recorded and not traded."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from live.run import followed
from market.settings import SettingsError, load


def test_legacy_is_what_was_there_before_but_for_what_is_set_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "l2.toml"
    file.write_text('[desk]\nprofile = "legacy"\nramp = true\n[execution]\nsize_share = 0.1\n')
    settings = load(file, environ={})
    off = ("urgency", "leaders", "funding", "margin")
    assert [getattr(settings.desk, name) for name in off] == [False] * len(off)
    assert (settings.desk.model, settings.desk.size, settings.desk.ramp) == (
        "legacy",
        "fixed",
        True,
    )
    assert (settings.execution.algorithm, settings.execution.size_share) == ("market", 0.1)


def test_the_default_profile_changes_no_setting(tmp_path: Path) -> None:
    whole = load(environ={}, overrides=["desk.profile=whole"])
    assert msgspec.to_builtins(whole) == msgspec.to_builtins(load(environ={}, overrides=[]))


def test_an_unknown_profile_is_an_error_that_names_it() -> None:
    with pytest.raises(SettingsError, match=r"--set desk\.profile=best: desk\.profile: .*'best'"):
        load(environ={}, overrides=["desk.profile=best"])


def test_watched_symbols_are_recorded_after_the_traded_ones_and_once() -> None:
    market = load(environ={}, overrides=["market.watch=SOLUSDT,BTCUSDT"]).market
    assert market.recorded == ("BTCUSDT", "ETHUSDT", "SOLUSDT")
    assert followed(market) == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    with pytest.raises(SettingsError, match=r"--set market\.watch=BTCUSD: BTCUSD: an inverse"):
        load(environ={}, overrides=["market.watch=BTCUSD"])
