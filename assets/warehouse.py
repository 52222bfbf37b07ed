"""Features, labels and training set: a span of dates in one dbt run.

`build_range` is the only entry point, for Dagster and all others. dbt reads bars in place and stages
the span; its partitions are replaced when all tests have passed. Memory and staging grow with the
span: whoever builds a long range gives it in batches (`Span.batches`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import pyarrow as pa

from assets.contracts import project_for
from assets.dbt import (
    PROJECT,
    BuildReport,
    Key,
    TableTest,
    dbt_vars,
    publish,
    run_dbt,
    staging,
)
from assets.isolation import critical
from market.instruments import leader
from market.lake import Lake, LakeError
from market.provenance import Table
from market.settings import Settings
from market.units import days_between, previous_day

#: dbt's tables in order of publication: each after those it is made from.
DECLARED: Final = (
    Table(
        "features",
        version=3,
        upstream=("bars",),
        files=(
            "dbt_project/dbt_project.yml",
            "dbt_project/macros/bars.sql",
            "dbt_project/macros/vars.sql",
            "dbt_project/models/staging/stg_bars.sql",
            "dbt_project/models/features/features.sql",
        ),
    ),
    Table(
        "labels",
        version=1,
        upstream=("bars",),
        files=(
            "dbt_project/dbt_project.yml",
            "dbt_project/macros/bars.sql",
            "dbt_project/macros/vars.sql",
            "dbt_project/models/staging/stg_bars.sql",
            "dbt_project/models/marts/labels.sql",
        ),
    ),
    Table(
        "training_set",
        version=3,
        upstream=("features", "labels"),
        files=("dbt_project/models/marts/training_set.sql",),
    ),
)
TABLES: Final = tuple(table.name for table in DECLARED)
#: Partitions of one dbt run: staging grows by 0.25 GB with each, and starting dbt costs 5 s.
BATCH: Final = 4


def build_range(
    lake: Lake,
    settings: Settings,
    symbols: Sequence[str],
    from_date: str,
    to_date: str,
    progress: Callable[[str], None] | None = None,
    *,
    tables: Collection[str] = TABLES,
    project: Path = PROJECT,
) -> BuildReport:
    """Build ``tables`` for all symbols and dates (both ends included) in one dbt run, and publish.

    Partitions without bars, and those whose bars cannot be used, are left out and reported. Bars that
    failed a critical expectation enter no partition, as if they were absent. WarehouseError, with nothing
    published, when a model or test fails.
    """
    requested = [(s, day) for s in sorted(symbols) for day in days_between(from_date, to_date)]
    judged, unusable = _unfit(lake, requested)
    missing = [key for key in requested if not lake.exists("bars", *key)]
    failed = {key: f"critical: {judged[key]}" for key in requested if key in judged}
    for key in requested:
        reasons = [unusable[each] for each in _read(key) if each in unusable]
        if reasons and key not in missing:
            failed[key] = reasons[0]
    present = [key for key in requested if not (key in failed or key in missing)]
    inputs = _inputs(lake, settings, present, judged)
    built = [table for table in TABLES if table in tables]
    rows: dict[str, dict[str, int]] = {table: {} for table in built}
    results: tuple[TableTest, ...] = ()
    if present:
        with staging(lake) as out:
            variables = dbt_vars(lake, settings, symbols, from_date, to_date, str(out), ("bars",))
            variables["unfit"] = sorted(" ".join(key) for key in judged | unusable)
            project = project_for(project, settings.model.horizons_s, out)
            results = run_dbt(project, out, variables, built, progress or (lambda line: None))
            rows = {table: publish(lake, out, table, inputs[table], ("t_ns",)) for table in built}
    return BuildReport(
        rows=rows, tests=results, keys=tuple(present), missing=tuple(missing), failed=failed
    )


def _read(key: Key) -> list[Key]:
    """The bars that a partition reads: its own, its leader's, and those of the day before."""
    symbol, day = key
    return [(name, date) for name in (symbol, leader(symbol)) for date in (day, previous_day(day))]


def _unfit(lake: Lake, keys: Sequence[Key]) -> tuple[dict[Key, str], dict[Key, str]]:
    """The bars that these keys must not read: by verdict, and by being unreadable or of other code.

    Without the first a partition is right, as after a date that was not recorded; the second can be made
    again, so that who needs them waits.
    """
    judged: dict[Key, str] = {}
    unusable: dict[Key, str] = {}
    for key in dict.fromkeys(read for each in keys for read in _read(each)):
        if failing := critical(lake, key, ("events", "bars")):
            judged[key] = failing
        elif lake.exists("bars", *key):
            try:
                lake.open("bars", *key).close(force=True)
            except (LakeError, OSError, pa.ArrowInvalid) as error:
                unusable[key] = str(error)
    return judged, unusable


def _inputs(
    lake: Lake, settings: Settings, keys: Sequence[Key], judged: Collection[Key]
) -> dict[str, dict[Key, str]]:
    """Table -> key -> fingerprint of everything that the partition is made from."""

    @cache
    def bars(key: Key) -> str:
        absent = key in judged or not lake.exists("bars", *key)
        return "none" if absent else lake.fingerprint("bars", *key)

    features, labels, training = {}, {}, {}
    for symbol, day in keys:
        features[symbol, day] = _digest([bars(key) for key in _read((symbol, day))])
        labels[symbol, day] = _digest([bars((symbol, day)), *map(str, settings.model.horizons_s)])
        training[symbol, day] = _digest([features[symbol, day], labels[symbol, day]])
    return {"features": features, "labels": labels, "training_set": training}


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
