"""dbt in a subprocess: one build of tables into a staging folder, then publication into the lake.

Importing dbt takes seconds and its state is global, so it never runs in this process. A build stages a
whole range of dates; only when every test has passed is each staged partition sorted and replaces the
lake's. A failing model or test leaves the old partitions in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from market.cache import user_folder
from market.errors import DataError, no_space
from market.features import feature_names
from market.features.precision import rounded
from market.instruments import leader
from market.lake import Lake
from market.provenance import ROOT
from market.settings import Settings
from market.units import next_day, previous_day

Key = tuple[str, str]

PROJECT: Final = ROOT / "dbt_project"
#: Metadata of a check that had nothing to judge.
NOT_RUN: Final = "not run"


class TableTest(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one dbt test; ``failures`` counts failing rows."""

    name: str
    passed: bool
    failures: int
    #: dbt's error for a test that could not run; empty otherwise.
    message: str = ""


class WarehouseError(DataError):
    """A build failed and nothing was published; ``tests`` are the results until then."""

    def __init__(self, message: str, tests: Sequence[TableTest] = ()) -> None:
        super().__init__(message)
        self.tests = tuple(tests)


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of a build."""

    #: Table -> symbol -> rows.
    rows: dict[str, dict[str, int]]
    tests: tuple[TableTest, ...]
    #: (symbol, date) of the partitions of each table.
    keys: tuple[Key, ...]
    #: (symbol, date) skipped for lack of input.
    missing: tuple[Key, ...] = ()
    #: (symbol, date) -> why its input cannot be used.
    failed: dict[Key, str] = {}
    #: Whether all partitions were current, so that nothing was run.
    current: bool = False


def dbt_vars(
    lake: Lake,
    settings: Settings,
    symbols: Sequence[str],
    from_date: str,
    to_date: str,
    out: str,
    reads: Sequence[str],
) -> dict[str, Any]:
    """The vars of one dbt run; ``out`` is its staging folder, ``reads`` are the tables that it reads.

    It reads them as they stand now, whatever other runs replace meanwhile.
    """
    days = previous_day(from_date), next_day(to_date)
    return {
        "root": lake.freeze(Path(out) / "lake", reads, *days),
        "out": out,
        "symbols": sorted(symbols),
        "leaders": sorted({leader(symbol) for symbol in symbols}),
        "from_date": from_date,
        "to_date": to_date,
        "horizons_s": list(settings.model.horizons_s),
    }


@contextmanager
def staging(lake: Lake) -> Iterator[Path]:
    """A staging folder of its own, on the same disk as the tables; removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="warehouse-", dir=lake.scratch()) as out:
        yield Path(out)


def _dbt(
    project: Path, target: Path, cwd: Path, progress: Callable[[str], None], *arguments: str
) -> str:
    """Run dbt; "" when it ended well, else its last error, or what it says of a full disk."""
    command = [
        *(sys.executable, "-m", "dbt.cli.main", "--no-use-colors", "--log-format", "json"),
        *("--log-path", str(target), "--no-version-check", *arguments),
        *("--project-dir", str(project), "--profiles-dir", str(project)),
        *("--target-path", str(target)),
    ]
    # No telemetry, whatever the user's own dbt configuration says; no coverage, as none of our code runs there.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    environment |= {"DO_NOT_TRACK": "1", "PYTHONWARNINGS": "ignore"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    errors: list[str] = []
    with subprocess.Popen(command, cwd=cwd, env=environment, text=True, **pipes) as process:
        for line in process.stdout or ():
            try:
                info = json.loads(line)["info"]
            except (ValueError, KeyError, TypeError):
                errors.append(line.strip())  # not dbt's: the interpreter failed to start, say
                continue
            text = " ".join(str(info.get("msg", "")).split())
            if info.get("level") == "error":
                errors.append(text)
            if text and info.get("name") in ("LogModelResult", "LogTableTest"):
                progress(text)
    last = [line for line in errors if no_space(line)] or errors or [f"exit {process.returncode}"]
    return last[-1] if process.returncode else ""


def run_dbt(
    project: Path,
    out: Path,
    variables: Mapping[str, Any],
    tables: Sequence[str],
    progress: Callable[[str], None],
) -> tuple[TableTest, ...]:
    """`dbt build` of the tables and their upstream models; the results of its tests.

    WarehouseError when a model or test fails. dbt works in ``out``, which takes what DuckDB spills, and
    names all files relative to it: dbt-duckdb quotes no path, and DuckDB takes each for a glob.
    """
    target = out / "target"
    place = os.path.relpath(os.path.realpath(variables["root"]), os.path.realpath(out))
    error = _dbt(
        *(project, target, out, progress, "build"),
        *("--select", *(f"+{table}" for table in tables)),
        # A test on two tables runs when both are built; unit tests belong to the test suite.
        *("--indirect-selection", "cautious", "--exclude-resource-type", "unit_test"),
        *("--vars", json.dumps({**variables, "root": place, "out": "."})),
    )
    file = target / "run_results.json"
    results = json.loads(file.read_bytes())["results"] if file.exists() else []
    tests = tuple(_test(result) for result in results if result["unique_id"].startswith("test."))
    failed = [_failure(result) for result in results if result["status"] in ("error", "fail")]
    if failed or error:
        reason = "; ".join(failed) or f"dbt failed: {error}"
        dates = f"{variables['from_date']} to {variables['to_date']}"
        raise WarehouseError(f"{reason}; nothing of {dates} was published", tests)
    return tests


def _test(result: Mapping[str, Any]) -> TableTest:
    ran = result["status"] in ("pass", "fail", "warn")
    return TableTest(
        name=_name(result),
        passed=result["status"] == "pass",
        failures=int(result["failures"] or 0),
        message="" if ran else " ".join(str(result["message"] or result["status"]).split()),
    )


def _failure(result: Mapping[str, Any]) -> str:
    kind = result["unique_id"].split(".")[0]
    if result["status"] == "fail":
        return f"dbt {kind} {_name(result)} failed in {result['failures']} row(s)"
    reason = " ".join(str(result["message"]).split(" > in macro")[0].split())
    return f"dbt {kind} {_name(result)} failed: {reason}"


def _name(result: Mapping[str, Any]) -> str:
    """The third part of ``test.l2.not_null_x.1a2b3c`` or ``model.l2.labels``."""
    return str(result["unique_id"].split(".")[2])


# -- publishing ------------------------------------------------------------------------------------


def publish(
    lake: Lake, out: Path, table: str, inputs: Mapping[Key, str], order: Sequence[str]
) -> dict[str, int]:
    """Replace one partition per key of ``inputs`` by dbt's staged rows; rows by symbol.

    Rows are sorted by ``order``, as DuckDB's partitioned write keeps no order: same rows, same bytes.
    Features are kept as `market.features.precision` says.
    A key without staged rows gets an empty partition, which records that it was built.
    """
    staged = out / table
    schema = pq.read_schema(next(staged.rglob("*.parquet"))).remove_metadata()
    rows: dict[str, int] = {}
    for (symbol, day), fingerprint in inputs.items():
        files = sorted((staged / f"symbol={symbol}" / f"date={day}").glob("*.parquet"))
        parts = [pq.read_table(file, partitioning=None) for file in files]
        content = _kept(pa.concat_tables(parts) if parts else schema.empty_table())
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


def _kept(rows: pa.Table) -> pa.Table:
    """The rows with their features rounded."""
    for name in set(feature_names()) & set(rows.column_names):
        values = rounded(rows[name].to_numpy())
        column = pa.array(values, from_pandas=True)  # NaN back to NULL
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def manifest(project: Path = PROJECT) -> Path:
    """dbt's manifest.json of the project, cached until a file of the project changes.

    WarehouseError when dbt cannot parse it.
    """
    digest = hashlib.sha256()
    for path in sorted(project.rglob("*")):
        if path.suffix in (".sql", ".yml") and "target" not in path.parts:
            digest.update(f"{path.relative_to(project)}\n".encode() + path.read_bytes())
    home = project / "target" if os.access(project, os.W_OK) else user_folder()
    cached = home / f"manifest-{digest.hexdigest()[:16]}.json"
    if cached.exists():
        return cached
    home.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="parse-", dir=home) as folder:
        error = _dbt(project, Path(folder), project, lambda line: None, "parse")
        if error:
            raise WarehouseError(f"{project}: dbt cannot parse it: {error}")
        for old in home.glob("manifest-*.json"):
            old.unlink(missing_ok=True)
        # Two processes may parse at once, with the same result.
        shutil.move(Path(folder) / "manifest.json", cached)
    return cached
