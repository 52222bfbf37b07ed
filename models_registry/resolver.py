"""From the alias `champion` to a local bundle and a pointer: the process between MLflow and live.

    python -m models_registry.resolver --root lake --name btc-l2 [--every 5]

A bundle is copied to a temporary folder, verified, and renamed to
``<root>/bundles/<name>/<version>-<sha8>/``; then the pointer file is replaced. The worker sees the
old champion or the new one, whole, and needs neither this process nor MLflow to go on.
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
from models_registry.registry import RegistryError


def resolve(settings: Settings) -> Pointer | None:
    """Bring bundle and pointer in line with the alias; the pointer, None without a champion.

    BundleError when what the registry holds is not what was registered; the pointer then stays.
    """
    version = registry.champion_version(settings)
    if version is None:
        return None
    home = bundles_folder(settings.root, settings.model_name)
    present = _standing(home, settings)
    if present is not None and present.version == version:
        return present
    fresh = home / f".{uuid.uuid4().hex}.tmp"
    try:
        digest = registry.fetch_bundle(settings, version, fresh)
        folder = home / f"{version}-{digest[:8]}"
        if folder.exists():
            # Left by an earlier promotion, or damaged since: the fresh copy is the verified one.
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    pointer = Pointer(
        name=settings.model_name, version=version, folder=folder.name, manifest_sha256=digest
    )
    _replace(home / POINTER_FILE, encode(pointer))
    return pointer


def _standing(home: Path, settings: Settings) -> Pointer | None:
    """The pointer, if what it points at is whole; a damaged one counts as none and is renewed."""
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
    """The command; 0 with a champion, 3 without one, 1 on an error, which is one line."""
    parser = argparse.ArgumentParser(prog="python -m models_registry.resolver")
    parser.add_argument("--root", help="the lake's root (default: the settings')")
    parser.add_argument("--name", choices=("btc-l2", "synthetic-l2"), help="registered model")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="look again and again")
    options = parser.parse_args(arguments)
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
    while not stopped.wait(options.every):
        code, seen = _once(settings, seen)
    return code


def _once(settings: Settings, seen: str | None) -> tuple[int, str]:
    """Resolve and say what changed: exit code, and the line that was said or is still true."""
    try:
        pointer = resolve(settings)
    except (BundleError, RegistryError, OSError) as error:
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
