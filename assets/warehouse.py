"""Features, labels and training set: a span of dates in one dbt run.

`build_range` is the only entry point, for Dagster and all others. dbt reads bars in place and stages
the span; its partitions are replaced when all tests have passed. Memory and staging grow with the
span: whoever builds a long range gives it in batches (`Span.batches`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from assets.contracts import project_for
from assets.dbt import (
    PROJECT,
    BuildReport,
    Key,
    WarehouseError,
    dbt_vars,
    publish,
    run_dbt,
    staging,
)
from market.instruments import leader
from market.lake import Lake
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

    Dates without bars are skipped and reported. WarehouseError, with nothing published, when no date
    has bars or a model or test fails; LakeError when bars were made by other code.
    """
    if not lake.is_local:
        raise WarehouseError(f"{lake.uri}: dbt stages on a local disk; use a local lake root")
    requested = [(s, day) for s in sorted(symbols) for day in days_between(from_date, to_date)]
    present = [key for key in requested if lake.exists("bars", *key)]
    if not present:
        raise WarehouseError(
            f"{lake.uri}: no bars of {', '.join(symbols)} from {from_date} to {to_date}; "
            "materialise bars first"
        )
    inputs = _inputs(lake, settings, present)
    with staging(lake) as out:
        variables = dbt_vars(lake, settings, symbols, from_date, to_date, str(out), ("bars",))
        project = project_for(project, settings.model.horizons_s, out)
        built = [table for table in TABLES if table in tables]
        tests = run_dbt(project, out, variables, built, progress or (lambda line: None))
        rows = {
            table: publish(
                lake, out, table, {key: inputs[table][key] for key in present}, ("t_ns",)
            )
            for table in built
        }
    return BuildReport(
        rows=rows,
        tests=tests,
        keys=tuple(present),
        missing=tuple(key for key in requested if key not in set(present)),
    )


def _inputs(lake: Lake, settings: Settings, keys: Sequence[Key]) -> dict[str, dict[Key, str]]:
    """Table -> key -> fingerprint of everything that the partition is made from.

    LakeError when a bars partition was made by other code: a table never mixes two versions.
    """
    bars: dict[Key, str] = {}

    def bars_fingerprint(symbol: str, day: str) -> str:
        if (symbol, day) not in bars:
            exists = lake.exists("bars", symbol, day)
            if exists:
                lake.open("bars", symbol, day).close(force=True)
            bars[symbol, day] = lake.fingerprint("bars", symbol, day) if exists else "none"
        return bars[symbol, day]

    features, labels, training = {}, {}, {}
    for symbol, day in keys:
        read = [
            bars_fingerprint(name, date)
            for name in (symbol, leader(symbol))
            for date in (day, previous_day(day))
        ]
        features[symbol, day] = _digest(read)
        labels[symbol, day] = _digest(
            [bars_fingerprint(symbol, day), *map(str, settings.model.horizons_s)]
        )
        training[symbol, day] = _digest([features[symbol, day], labels[symbol, day]])
    return {"features": features, "labels": labels, "training_set": training}


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
