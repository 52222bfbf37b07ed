"""dbt as a process of its own: one build of tables into a staging folder, then their publication.

Importing dbt takes seconds and its state is global, so it never runs in this process. A build stages
a whole range of dates; only when every test has passed does each staged partition, sorted, replace
the lake's. A failing model or test leaves the old partitions as they were.
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

from market.errors import DataError
from market.instruments import leader
from market.lake import Lake
from market.provenance import ROOT
from market.settings import Settings

Key = tuple[str, str]

PROJECT: Final = ROOT / "dbt_project"


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


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a build published, or found current."""

    #: Table -> symbol -> rows.
    rows: dict[str, dict[str, int]]
    tests: tuple[TableTest, ...]
    #: (symbol, date) of the partitions of each table.
    keys: tuple[Key, ...]
    #: (symbol, date) without input, which therefore have no partition either.
    missing: tuple[Key, ...] = ()
    #: All partitions were current, and nothing was run.
    current: bool = False


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


@contextmanager
def staging(lake: Lake) -> Iterator[Path]:
    """A staging folder of this run alone, on the same disk as the tables."""
    parent = Path(lake.base) / "staging"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="warehouse-", dir=parent) as out:
        yield Path(out)


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
