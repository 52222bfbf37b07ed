"""The resolver: copies the version under the alias `champion` to a local bundle, and points to it.

    python -m models_registry.resolver --root lake --name btc-l2 [--every 5]

The process between MLflow and the worker. A bundle is downloaded to a temporary folder, verified, and
renamed to ``<root>/bundles/<name>/<version>-<sha8>/``; then the pointer file is replaced. Both steps are
atomic, and the worker needs neither this process nor MLflow to continue.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from market.cache import settle_home
from market.errors import ModelError
from market.settings import Settings, SettingsError, load
from models_registry import registry
from models_registry.manifest import (
    POINTER_FILE,
    Bundle,
    BundleError,
    Pointer,
    bundles_folder,
    encode,
    read_pointer,
)


def resolve(settings: Settings) -> Pointer | None:
    """Update bundle and pointer to the alias; returns the pointer, None without a champion.

    BundleError when the registry's files have not their registered checksums; the pointer then stays.
    """
    version = registry.champion_version(settings)
    if version is None:
        return None
    home = bundles_folder(settings.root, settings.model_name)
    present = _valid_pointer(home, settings)
    if present is not None and present.version == version:
        return present
    fresh = home / f".{uuid.uuid4().hex}.tmp"
    try:
        digest = registry.fetch_bundle(settings, version, fresh)
        folder = home / f"{version}-{digest[:8]}"
        if folder.exists():
            # From an earlier promotion and perhaps damaged since; the new copy is verified.
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    pointer = Pointer(
        name=settings.model_name, version=version, folder=folder.name, manifest_sha256=digest
    )
    _replace(home / POINTER_FILE, encode(pointer))
    return pointer


def _valid_pointer(home: Path, settings: Settings) -> Pointer | None:
    """The present pointer if its bundle is valid, else None, so that it is downloaded again."""
    try:
        pointer = read_pointer(settings.root, settings.model_name)
        if pointer is not None:
            Bundle.load(home / pointer.folder, pointer.manifest_sha256)
    except BundleError as error:
        print(f"resolver: {error}", file=sys.stderr)
        return None
    return pointer


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 0 with a champion, 3 without one, 1 on an error."""
    parser = argparse.ArgumentParser(prog="python -m models_registry.resolver")
    parser.add_argument("--root", help="the lake's root (default: the settings')")
    parser.add_argument("--name", choices=("btc-l2", "synthetic-l2"), help="registered model")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="repeat until stopped")
    parser.add_argument(
        "--parent", type=int, default=0, metavar="PID", help="end when it has ended"
    )
    options = parser.parse_args(arguments)
    settle_home()
    try:
        settings = load()
    except SettingsError as error:
        print(f"resolver: {error}", file=sys.stderr)
        return 1
    if options.root:
        settings = msgspec.structs.replace(settings, root=options.root)
    if options.name:
        source = "synthetic" if options.name == "synthetic-l2" else "recorded"
        settings = msgspec.structs.replace(settings, source=source)
    if not options.every:
        return _once(settings, None)[0]
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    code, seen = _once(settings, None)
    while not stopped.wait(options.every) and options.parent in (0, os.getppid()):
        code, seen = _once(settings, seen)
    return code


def _once(settings: Settings, seen: str | None) -> tuple[int, str]:
    """Resolve once and print a changed status line: (exit status, line)."""
    try:
        pointer = resolve(settings)
    except (ModelError, OSError) as error:
        code, line = 1, f"resolver: {error}"
    else:
        if pointer is None:
            code = 3
            line = (
                f"no champion of {settings.model_name} in {settings.root}: promote a version with "
                "`l2 promote VERSION`"
            )
        else:
            code, line = 0, f"champion of {pointer.name}: version {pointer.version}"
    if line != seen:
        print(line, file=sys.stderr if code else sys.stdout, flush=True)
    return code, line


if __name__ == "__main__":
    sys.exit(main())
