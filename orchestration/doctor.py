"""What the platform needs of a machine, checked one by one."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from market.settings import Settings


class Finding(msgspec.Struct, frozen=True):
    ok: bool
    what: str
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """Every check, passed or not."""
    version = ".".join(map(str, sys.version_info[:3]))
    packages = ("dagster", "dbt-duckdb", "duckdb", "lightgbm", "mlflow", "numba", "pyarrow")
    return [
        Finding((3, 11) <= sys.version_info[:2] < (3, 14), "Python", f"{version} (3.11 to 3.13)"),
        _libgomp(),
        _disk(settings),
        _memory(),
        *map(_package, packages),
    ]


def _libgomp() -> Finding:
    found = ctypes.util.find_library("gomp")
    hint = "needed by LightGBM; install your system's libgomp (Debian: libgomp1)"
    return Finding(found is not None, "libgomp", found or hint)


def _disk(settings: Settings) -> Finding:
    root = Path(settings.root).absolute()
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free / 1e9
    return Finding(free > 5, "disk", f"{free:.0f} GB free at {root} (5 GB for the demo)")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Finding(total > 6, "memory", f"{total:.0f} GB (6 GB or more)")


def _package(name: str) -> Finding:
    try:
        return Finding(True, name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(False, name, "not installed; run make")
