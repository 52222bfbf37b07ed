"""Verbs without a room of their own: ingest, upload, sql, config and doctor.

What a verb needs is loaded when it runs, so that `l2 config` waits for nothing heavy.
"""

from __future__ import annotations

import argparse
import ctypes.util
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from market.console import Result, say, table
from market.errors import L2Error, UsageError
from market.settings import Settings, effective

if TYPE_CHECKING:
    import duckdb


def ingest_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 ingest`."""
    parser.add_argument("paths", nargs="+", metavar="PATH")


def ingest_command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 ingest`: adopt captures into the lake, and make events of every date they hold."""
    from market.ingest import ingest
    from market.instruments import refusal
    from market.intake import take_in
    from market.lake import Lake

    lake = Lake(settings.root, settings.source)
    taken = take_in(lake, options.paths, settings.market.book_depth, say)
    refused = {symbol: why for symbol, _ in taken.keys if (why := refusal(symbol))}
    keys = [key for key in taken.keys if key[0] not in refused]
    if refused and not keys:
        raise UsageError("; ".join(refused.values()))
    for why in refused.values():
        say(f"left out: {why}")
    days = sorted(day for _, day in keys)
    with lake.working_on(days[0], days[-1]):
        report = ingest(lake, taken.captures, keys, settings, progress=say)
    if not options.json:
        print(
            table(
                [
                    *report.frames.items(),
                    ("torn ends dropped", report.torn),
                    *(("rejected: " + k, v) for k, v in report.reasons.items()),
                    ("rejected, of symbols without a usable frame", report.elsewhere),
                    *(("FAILED", f"{key}: no event") for key in report.missing),
                    *(("FAILED", reason) for reason in taken.unread.values()),
                ]
            )
        )
        if len(report.files) > 1:
            head = ("file", "frames used", "repeated", "copies", "left out")
            rows = [
                (name, of.used, of.repeated, of.copies, of.left_out)
                for name, of in report.files.items()
            ]
            print("\n" + table(rows, head))
        for finding in report.findings:
            print(f"finding: {finding}")
    return {
        "frames": report.frames,
        "events": sum(report.events.values()),
        "quarantined": report.quarantined,
        "reasons": report.reasons,
        "left_out": refused,
        "refused_elsewhere": report.elsewhere,
        "torn": report.torn,
        "files": msgspec.to_builtins(report.files),
        "findings": report.findings,
        "unread": taken.unread,
        "failed": bool(report.missing or taken.unread),
    }


def upload_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 upload`."""
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="again and again, with this pause"
    )


def upload_command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 upload`: what recorder and `l2 fetch` finished on this machine, into the lake's bucket."""
    from market.intake import upload
    from market.lake import Lake
    from market.store import StoreError

    while True:
        try:
            done = upload(Lake(settings.root, settings.source), say)
        except StoreError as error:
            if options.every is None:
                raise
            say(f"WARN {error}; asked again in {options.every:g} s")
        if options.every is None:
            return {"uploaded": done}
        time.sleep(options.every)


def sql_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 sql`."""
    parser.add_argument("query", help="e.g. 'select count(*) from bars'")


def sql_command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 sql`: one query over a view of each table."""
    import duckdb

    from market.lake import Lake

    connection = Lake(settings.root).connect()
    try:
        answer: duckdb.DuckDBPyRelation | None = connection.sql(options.query)
    except duckdb.Error as error:
        raise UsageError(str(error).splitlines()[0]) from error
    if answer is None:
        return {"rows": []}
    if options.json:
        columns = answer.columns
        return {"rows": [dict(zip(columns, row, strict=True)) for row in answer.fetchall()]}
    answer.show(max_rows=100)
    return None


def config_arguments(_: argparse.ArgumentParser) -> None:
    """`l2 config` has no options of its own."""


def config_command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 config`: the settings in force; secrets are named and not shown."""
    tree = effective(settings)
    if not options.json:
        rows: list[tuple[str, object]] = []
        for key, value in tree.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            rows += [(f"{key}.{name}".rstrip("."), item) for name, item in inner]
        print(table(rows))
        for name in ("L2_API_KEY", "L2_API_SECRET"):
            print(f"{name}  {'set (not shown)' if os.environ.get(name) else 'not set'}")
    return tree


def doctor_arguments(_: argparse.ArgumentParser) -> None:
    """`l2 doctor` has no options of its own."""


def doctor_command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 doctor`: a line for each thing that the platform needs of this machine."""
    findings = examine(settings)
    if not options.json:
        print(table([("ok" if f.ok else "FAIL", f.what, f.detail) for f in findings]))
    return {
        "failed": not all(f.ok for f in findings),
        "findings": [{"ok": f.ok, "what": f.what, "detail": f.detail} for f in findings],
    }


class Finding(msgspec.Struct, frozen=True):
    """One thing that was checked."""

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
        _asked("lake", _lake, settings),
        _asked("model", _champion, settings),
        _asked("registry", _registry, settings),
        *(
            _asked(name, check, settings)
            for name, check in _VENUE
            if settings.live.venue != "paper"
        ),
    ]


def _asked(what: str, check: Callable[[Settings], str], settings: Settings) -> Finding:
    """A check's detail, or the error that it ends with."""
    try:
        return Finding(True, what, check(settings))
    except (L2Error, OSError) as error:
        return Finding(False, what, " ".join(str(error).split()))
    except Exception as error:  # whatever it is: the other checks are made
        return Finding(False, what, " ".join(f"{type(error).__name__}: {error}".split()))


def _lake(settings: Settings) -> str:
    from market.lake import Lake
    from market.store import holds_lake

    if not holds_lake(settings.root):
        return f"none yet at {settings.root}"
    days = [day for _, day in Lake(settings.root, settings.source).partitions("bars")]
    return (
        f"{settings.root}: bars of {min(days)} to {max(days)}"
        if days
        else f"{settings.root}: no bars"
    )


def _champion(settings: Settings) -> str:
    from models_registry.pointed import load_pointed

    if (found := load_pointed(settings.root, settings.model_name)) is None:
        return f"no champion of {settings.model_name} yet; `l2 pipeline`, then `l2 promote`"
    pointer, bundle = found
    return (
        f"{pointer.name} version {pointer.version}, {len(bundle.manifest.features)} features, loads"
    )


def _registry(settings: Settings) -> str:
    """Reaches MLflow's store, and asks it for the champion; an own one is not made for that."""
    from models_registry.store import champion_version, is_own, tracking_uri

    uri = tracking_uri(settings)
    if is_own(settings) and not Path(uri.removeprefix("sqlite:///")).exists():
        return f"none yet at {uri}"
    version = champion_version(settings)
    said = f"version {version} is" if version else "no version is"
    return f"{uri} answers, {said} champion of {settings.model_name}"


def _keys(settings: Settings) -> str:
    from live.bybit.venues import REAL, keys_of

    if settings.live.venue not in REAL:
        return "the exchange on loopback hands out its own"
    keys_of()
    return "set (not shown)"


def _clock(settings: Settings) -> str:
    """Reaches the venue, which needs no key, and compares its clock."""
    from live.bybit.venues import address_of

    rest = address_of(settings).rest
    sent = time.time_ns()
    with urllib.request.urlopen(f"{rest}/v5/market/time", timeout=5) as answer:
        body = answer.read()
    try:
        theirs = int(msgspec.json.decode(body)["result"]["timeNano"])
    except (msgspec.DecodeError, LookupError, TypeError, ValueError) as error:
        start = body[:60].decode("utf-8", "replace")
        raise UsageError(f"{rest}: not the venue's time but {start!r}; a proxy's page?") from error
    taken, since = settings.clock, time.time_ns()
    ours = taken.simulated_ns + taken.speed * ((sent + since) / 2 - taken.wall_ns)
    skew_s = abs(theirs - ours) / 1e9
    said = f"{rest} answers in {(since - sent) / 1e6:.0f} ms, its clock is {skew_s:.2f} s from ours"
    if skew_s > settings.risk.clock_skew_s:
        raise UsageError(
            f"{said}, of {settings.risk.clock_skew_s:g} allowed; synchronise this machine's"
        )
    return said


_VENUE: Final = (("keys", _keys), ("venue", _clock))


def _libgomp() -> Finding:
    found = ctypes.util.find_library("gomp")
    hint = "needed by LightGBM; install your system's libgomp (Debian: libgomp1)"
    return Finding(found is not None, "libgomp", found or hint)


def _disk(settings: Settings) -> Finding:
    root = settings.home.absolute()
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
