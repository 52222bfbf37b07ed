"""The dbt project as assets: features, labels and training set, a range of dates in one dbt run.

`build_range` is the one way in, for Dagster and for everybody else. dbt reads bars in place and
stages a whole range; only when every test has passed does each staged partition, sorted by time,
replace the lake's. A failing model or test leaves the old partitions as they were.

dbt runs as a process of its own: importing it takes seconds, and its state is global.
"""

# No postponed annotations here: Dagster compares the type of `context` as it stands.

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import dagster as dg
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, dbt_assets

from assets.contracts import PROJECT, project_for
from assets.partitions import PARTITIONS, Span, context_spans
from assets.platform import OWNERS, Platform
from market.errors import DataError
from market.instruments import leader
from market.lake import Lake, LakeError
from market.settings import Settings
from market.units import previous_day

#: What dbt makes, in the order it is published in: a table after the ones it was made from.
TABLES: Final = ("features", "labels", "training_set")

Key = tuple[str, str]


class TableTest(msgspec.Struct, frozen=True, kw_only=True):
    """One dbt test: ``failures`` is the number of rows that break it."""

    name: str
    passed: bool
    failures: int
    #: What dbt said of a test that could not run; empty otherwise.
    message: str = ""


class WarehouseError(DataError):
    """A range could not be built and nothing was published; ``tests`` are the results until then."""

    def __init__(self, message: str, tests: Sequence[TableTest] = ()) -> None:
        super().__init__(message)
        self.tests = tuple(tests)


class WarehouseReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a run published."""

    #: Table -> symbol -> rows.
    rows: dict[str, dict[str, int]]
    tests: tuple[TableTest, ...]
    #: (symbol, date) without bars, which therefore have nothing here either.
    missing: tuple[Key, ...]
    #: Partitions replaced, all tables together.
    partitions: int


def dbt_vars(
    lake: Lake, settings: Settings, symbols: Sequence[str], from_date: str, to_date: str, out: str
) -> dict[str, Any]:
    """The vars of one dbt run; ``out`` is the folder that its tables are staged in."""
    return {
        "root": lake.base,
        "out": out,
        "symbols": sorted(symbols),
        "leaders": sorted({leader(symbol) for symbol in symbols}),
        "from_date": from_date,
        "to_date": to_date,
        "horizons_s": list(settings.model.horizons_s),
    }


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
) -> WarehouseReport:
    """Build ``tables`` for all symbols and dates (both ends included) in one dbt run, and publish.

    Dates without bars are left out and reported. Raises WarehouseError, and publishes nothing, when
    no date has bars or when a model or a test fails; LakeError when bars were made by other code.
    """
    if not lake.is_local:
        raise WarehouseError(f"{lake.uri}: dbt stages on a local disk; use a local lake root")
    wanted = Span(tuple(sorted(symbols)), from_date, to_date).keys
    standing = [key for key in wanted if lake.exists("bars", *key)]
    if not standing:
        raise WarehouseError(
            f"{lake.uri}: no bars of {', '.join(symbols)} from {from_date} to {to_date}; "
            "materialise bars first"
        )
    inputs = _inputs(lake, settings, standing)
    with staging(lake) as out:
        variables = dbt_vars(lake, settings, symbols, from_date, to_date, str(out))
        project = project_for(project, settings.model.horizons_s, out)
        made = [table for table in TABLES if table in tables]
        tests = run_dbt(project, out, variables, made, progress or silent)
        rows = {
            table: publish(
                lake, out, table, {key: inputs[table][key] for key in standing}, ("t_ns",)
            )
            for table in made
        }
    return WarehouseReport(
        rows=rows,
        tests=tests,
        missing=tuple(key for key in wanted if key not in set(standing)),
        partitions=len(rows) * len(standing),
    )


def silent(_: str) -> None:
    """Progress that nobody asked for."""


def _inputs(lake: Lake, settings: Settings, keys: Sequence[Key]) -> dict[str, dict[Key, str]]:
    """Table -> partition -> fingerprint of everything that it is made from.

    Raises LakeError when one of the bars partitions was made by other code: a table is never made
    of two meanings.
    """
    bars: dict[Key, str] = {}

    def of(symbol: str, day: str) -> str:
        if (symbol, day) not in bars:
            stands = lake.exists("bars", symbol, day)
            if stands:
                lake.open("bars", symbol, day).close(force=True)
            bars[symbol, day] = lake.fingerprint("bars", symbol, day) if stands else "none"
        return bars[symbol, day]

    features, labels, training = {}, {}, {}
    for symbol, day in keys:
        read = [
            of(name, date) for name in (symbol, leader(symbol)) for date in (day, previous_day(day))
        ]
        features[symbol, day] = _digest(read)
        labels[symbol, day] = _digest([of(symbol, day), *map(str, settings.model.horizons_s)])
        training[symbol, day] = _digest([features[symbol, day], labels[symbol, day]])
    return {"features": features, "labels": labels, "training_set": training}


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@contextmanager
def staging(lake: Lake) -> Iterator[Path]:
    """A folder of this run alone beside the tables, on the same disk."""
    parent = Path(lake.base) / "staging"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="warehouse-", dir=parent) as out:
        yield Path(out)


# -- dbt -------------------------------------------------------------------------------------------


def _dbt(project: Path, target: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "dbt.cli.main", "--no-use-colors", "--log-format", "json"),
        *("--log-path", str(target), "--no-version-check", *arguments),
        *("--project-dir", str(project), "--profiles-dir", str(project)),
        *("--target-path", str(target)),
    ]


def _environment() -> dict[str, str]:
    # Reports nothing home whatever the user's own dbt configuration says.
    return {**os.environ, "DO_NOT_TRACK": "1", "PYTHONWARNINGS": "ignore"}


def run_dbt(
    project: Path,
    out: Path,
    variables: Mapping[str, Any],
    tables: Sequence[str],
    progress: Callable[[str], None],
) -> tuple[TableTest, ...]:
    """One `dbt build` of the tables and what they are made from; the results of its tests."""
    target = out / "target"
    command = _dbt(
        project,
        target,
        "build",
        *("--select", *(f"+{table}" for table in tables)),
        # A test of two tables runs when both are built; unit tests belong to the test suite.
        *("--indirect-selection", "cautious", "--exclude-resource-type", "unit_test"),
        *("--vars", json.dumps(variables)),
    )
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=project,
        env=_environment(),
    ) as process:
        for line in process.stdout or ():
            message = _message(line, said)
            if message:
                progress(message)
    results = target / "run_results.json"
    found = json.loads(results.read_bytes())["results"] if results.exists() else []
    tests = tuple(_test(result) for result in found if result["unique_id"].startswith("test."))
    broken = [_complaint(result) for result in found if result["status"] in ("error", "fail")]
    if broken or process.returncode:
        reason = "; ".join(broken) or f"dbt failed: {' '.join(said[-1:]) or process.returncode}"
        raise WarehouseError(f"{reason}; nothing was published", tests)
    return tests


def _message(line: str, said: list[str]) -> str:
    """What to show of one line of dbt's log; errors are kept in ``said``."""
    try:
        info = json.loads(line)["info"]
    except (ValueError, KeyError, TypeError):
        said.append(line.strip())  # not dbt's own: an interpreter that could not start, say
        return ""
    text = " ".join(str(info.get("msg", "")).split())
    if info.get("level") == "error":
        said.append(text)
    return text if info.get("name") in ("LogModelResult", "LogTableTest") else ""


def _test(result: Mapping[str, Any]) -> TableTest:
    ran = result["status"] in ("pass", "fail", "warn")
    return TableTest(
        name=_name(result),
        passed=result["status"] == "pass",
        failures=int(result["failures"] or 0),
        message="" if ran else " ".join(str(result["message"] or result["status"]).split()),
    )


def _complaint(result: Mapping[str, Any]) -> str:
    kind = result["unique_id"].split(".")[0]
    if result["status"] == "fail":
        return f"dbt {kind} {_name(result)} failed in {result['failures']} row(s)"
    reason = " ".join(str(result["message"]).split(" > in macro")[0].split())
    return f"dbt {kind} {_name(result)} failed: {reason}"


def _name(result: Mapping[str, Any]) -> str:
    """``test.l2.not_null_x.1a2b3c`` and ``model.l2.labels`` both have their name third."""
    return str(result["unique_id"].split(".")[2])


# -- publishing ------------------------------------------------------------------------------------


def publish(
    lake: Lake, out: Path, table: str, inputs: Mapping[Key, str], order: Sequence[str]
) -> dict[str, int]:
    """Replace one partition per key by what dbt staged; rows per symbol.

    DuckDB's partitioned write keeps no order, so rows are sorted by ``order``: same rows, same
    bytes. A key for which nothing was staged becomes an empty partition, which says that it was built.
    """
    staged = out / table
    schema = pq.read_schema(next(staged.rglob("*.parquet"))).remove_metadata()
    rows: dict[str, int] = {}
    for (symbol, day), fingerprint in inputs.items():
        files = sorted((staged / f"symbol={symbol}" / f"date={day}").glob("*.parquet"))
        parts = [pq.read_table(file, partitioning=None) for file in files]
        content = pa.concat_tables(parts) if parts else schema.empty_table()
        lake.write(
            table,
            symbol,
            day,
            content.sort_by([(name, "ascending") for name in order]),
            fingerprint,
            dictionary=False,
        )
        rows[symbol] = rows.get(symbol, 0) + content.num_rows
    return rows


# -- Dagster ---------------------------------------------------------------------------------------


def manifest(project: Path = PROJECT) -> Path:
    """The parsed project; dbt parses it when a file of it has changed since the last time."""
    digest = hashlib.sha256()
    for path in sorted(project.rglob("*")):
        if path.suffix in (".sql", ".yml") and "target" not in path.parts:
            digest.update(f"{path.relative_to(project)}\n".encode() + path.read_bytes())
    home = project / "target"
    wanted = home / f"manifest-{digest.hexdigest()[:16]}.json"
    if wanted.exists():
        return wanted
    home.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="parse-", dir=home) as folder:
        done = subprocess.run(
            _dbt(project, Path(folder), "parse"),
            capture_output=True,
            text=True,
            cwd=project,
            env=_environment(),
            check=False,
        )
        if done.returncode:
            said: list[str] = []
            for line in (done.stdout + done.stderr).splitlines():
                _message(line, said)
            raise WarehouseError(f"{project}: dbt cannot parse it: {' '.join(said[-1:])}")
        for old in home.glob("manifest-*.json"):
            old.unlink(missing_ok=True)
        # Two processes may parse at once: either's result is the same.
        shutil.move(Path(folder) / "manifest.json", wanted)
    return wanted


#: What dbt calls otherwise than the assets that make it; the worker's records come with its decisions.
ASSETS: Final = {
    "stg_bars": "bars",
    **dict.fromkeys(("parents", "orders", "fills", "tca", "markouts"), "decisions"),
}


class Translator(DagsterDbtTranslator):  # type: ignore[misc]  # dagster_dbt is not typed here
    """dbt models as assets."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        name = str(dbt_resource_props["name"])
        return dg.AssetKey(ASSETS.get(name, name))

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str:
        return "execution" if "costs" in dbt_resource_props["fqn"] else "warehouse"

    def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> Sequence[str]:
        return OWNERS

    def get_description(self, dbt_resource_props: Mapping[str, Any]) -> str:
        return " ".join(str(dbt_resource_props["description"]).split())


#: Several sources of dbt are one asset here: the worker's records.
TRANSLATOR: Final = Translator(
    settings=DagsterDbtTranslatorSettings(enable_duplicate_source_asset_keys=True)
)


@dbt_assets(  # type: ignore[untyped-decorator]
    manifest=manifest(),
    select=" ".join(TABLES),
    name="warehouse",
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    dagster_dbt_translator=TRANSLATOR,
)
def warehouse(context: dg.AssetExecutionContext, platform: Platform) -> Iterator[Any]:
    """Features, labels and training set of the asked partitions: one dbt run for a range."""
    settings, lake = platform.settings(), platform.lake()
    asked = {key.to_user_string() for key in context.selected_asset_keys}
    reports = []
    for span in context_spans(context):
        try:
            report = build_range(
                lake,
                settings,
                span.symbols,
                span.from_date,
                span.to_date,
                context.log.info,
                tables=asked,
            )
        except (WarehouseError, LakeError) as error:
            if isinstance(error, WarehouseError):
                yield from check_results(context, error.tests)
            raise dg.Failure(str(error)) from error
        for symbol, day in report.missing:
            context.log.warning(f"{symbol} {day} has no bars, so nothing was made of it")
        reports.append(report)
    for table in TABLES:
        if table in asked:
            yield dg.MaterializeResult(asset_key=table, metadata=rows_metadata(table, reports))
    yield from check_results(context, [test for report in reports for test in report.tests])


def rows_metadata(table: str, reports: Sequence[WarehouseReport]) -> dict[str, Any]:
    """Rows of one table, in all and by symbol, over the spans of a run."""
    by_symbol: dict[str, int] = {}
    for report in reports:
        for symbol, rows in report.rows[table].items():
            by_symbol[symbol] = by_symbol.get(symbol, 0) + rows
    return {
        "rows": sum(by_symbol.values()),
        "by symbol": dg.MetadataValue.json(by_symbol),
        "partitions without bars": sum(len(report.missing) for report in reports),
    }


def check_results(
    context: dg.AssetExecutionContext, tests: Sequence[TableTest]
) -> Iterator[dg.AssetCheckResult]:
    """The selected checks' results; a test that ran for several spans passed if it always did."""
    for key in sorted(context.selected_asset_check_keys, key=lambda key: key.name):
        ran = [test for test in tests if test.name == key.name]
        if ran:
            yield dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=all(test.passed for test in ran),
                metadata={
                    "failing rows": sum(test.failures for test in ran),
                    "message": "; ".join(test.message for test in ran if test.message),
                },
            )
