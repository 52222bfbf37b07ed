"""Whether training would read partitions that were made from other inputs than there are now."""

from __future__ import annotations

from collections.abc import Sequence

from assets.isolation import by_reason, name
from assets.platform import Key

# Private names: `assets.warehouse` makes tables, and any change of it makes them look made by other code.
from assets.warehouse import TABLES, _inputs, _read, _unfit
from market.bars import bar_inputs
from market.lake import Lake
from market.settings import Settings
from models_registry.dataset import DatasetError


def require_current(lake: Lake, settings: Settings) -> None:
    """DatasetError when a training partition would be made from other inputs now than it was.

    One whose own bars are gone, cannot be read or failed an expectation is judged elsewhere.
    """
    symbols = settings.market.symbols
    keys = [
        key
        for key in lake.partitions("training_set")
        if key[0] in symbols and lake.exists("bars", *key)
    ]
    stale = stale_tables(lake, settings, keys)
    if stale:
        dates = sorted(day for _, day in stale)
        named = "; ".join(by_reason({name(key): tables for key, tables in sorted(stale.items())}))
        raise DatasetError(
            f"made from other inputs than there are now: {named}. Training needs them as they would be: "
            f"l2 pipeline --from {dates[0]} --to {dates[-1]}"
        )


def stale_tables(lake: Lake, settings: Settings, keys: Sequence[Key]) -> dict[Key, str]:
    """The keys of which tables were made from other inputs than there are now, and these tables.

    Keys whose bars cannot be read or failed an expectation are left out.
    """
    judged, unusable = _unfit(lake, keys)
    sound = [key for key in keys if not {*_read(key)} & unusable.keys() and key not in judged]
    expected = _inputs(lake, settings, sound, judged)
    stale: dict[Key, str] = {}
    for key in sound:
        changed = [
            table
            for table in TABLES
            if lake.exists(table, *key)
            and lake.metadata(table, *key).get("inputs") != expected[table][key]
        ]
        if settings.source == "recorded" and lake.exists("events", *key):
            inputs = bar_inputs(lake, *key, settings)
            changed += [] if lake.is_current("bars", *key, inputs) else ["bars"]
        if changed:
            stale[key] = ", ".join(changed)
    return stale
