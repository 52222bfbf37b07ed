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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from market.cache import settle_home
from market.errors import ModelError
from market.settings import Settings, SettingsError, load
from models_registry.dataset import Features
from models_registry.manifest import (
    POINTER_FILE,
    Bundle,
    BundleError,
    Pointer,
    bundles_folder,
    encode,
    read_pointer,
)
from models_registry.pointed import CHALLENGER_FILE, replace_file
from models_registry.state import one_at_a_time
from models_registry.store import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    RegistryError,
    aliases_of,
    fetch,
    model_version,
    registered_model,
    registry_client,
)

#: Tags of the registered model: the champion that was verified and recorded, and the newest version that
#: there was when somebody decided last. The gate's verdict on a version up to it moves nothing any more.
ACCEPTED: Final = "champion.accepted"
DECIDED: Final = "champion.decided"
#: Tags of a version: why a move by hand was undone, and that a person overruled the gate.
REFUSED: Final = "champion.refused"
OVERRULED: Final = "promoted"


def resolve(settings: Settings, features: Features | None = None) -> Pointer | None:
    """Update bundle and pointer to the alias; returns the pointer, None without a champion.

    An alias that was moved in MLflow's page is judged like `l2 promote`, and put back when its version
    is refused: RegistryError then, with the reason as the version's tag. BundleError when the registry's
    files have not their registered checksums; the pointer stays. ``features`` are those that run.
    """
    with champions(settings) as client:
        return follow(client, settings, features or Features.defined())


def follow(client: Any, settings: Settings, features: Features) -> Pointer | None:
    """`resolve` by who holds `champions`."""
    name = settings.model_name
    version = aliases_of(client, name).get(CHAMPION)
    if version is None:
        return None
    home = bundles_folder(settings.root, name)
    present = _valid_pointer(home, settings)
    accepted = registered_model(client, name).tags.get(ACCEPTED) or (present and present.version)
    if accepted == version:
        if present is not None and present.version == version:
            return present
        pointer = bring(client, settings, version)
    else:
        try:
            require_verdict(model_version(client, name, version))
            # Of a registry that has recorded nothing yet, the worker judges the features.
            pointer = bring(client, settings, version, features if accepted else None)
        except (BundleError, RegistryError) as error:
            client.set_model_version_tag(name, version, REFUSED, f"{_now()}: {error}")
            if accepted:
                client.set_registered_model_alias(name, CHAMPION, accepted)
            else:
                client.delete_registered_model_alias(name, CHAMPION)
            back = f"is back at version {accepted}" if accepted else "is taken away"
            raise RegistryError(
                f"the alias {CHAMPION} of {name} was moved by hand, and {back}: {error}"
            ) from error
        if accepted:
            client.set_registered_model_alias(name, PREVIOUS, accepted)
        record(client, name, version, "by hand in MLflow")
    point(settings, pointer)
    return pointer


def follow_challenger(settings: Settings) -> str:
    """Point the worker's shadow to the alias `challenger`; its version, empty without one of its own."""
    name = settings.model_name
    file = bundles_folder(settings.root, name) / CHALLENGER_FILE
    with champions(settings) as client:
        aliases = aliases_of(client, name)
        version = str(aliases.get(CHALLENGER, ""))
        if version in ("", aliases.get(CHAMPION)):
            file.unlink(missing_ok=True)
            return ""
        present = read_pointer(settings.root, name, CHALLENGER_FILE)
        if present is None or present.version != version:
            replace_file(file, encode(bring(client, settings, version)))
    return version


@contextmanager
def champions(settings: Settings) -> Iterator[Any]:
    """An MLflow client for who reads and moves the alias: one process at a time, where it can write."""
    what = f"the champion of {settings.model_name}"
    with registry_client(settings) as client, one_at_a_time(settings, "champion", what):
        yield client


def require_verdict(found: Any) -> None:
    """RegistryError unless the gate has passed this version or a person has overruled it."""
    verdict = found.tags.get("gate.verdict", "unknown")
    if verdict != "promote" and OVERRULED not in found.tags:
        raise RegistryError(
            f"{found.name} version {found.version}: the gate says {verdict} "
            f"({found.tags.get('gate.reasons', 'no reasons')}); promote another version or "
            f"overrule it: l2 promote {found.version} --in-spite-of-gate"
        )


def record(client: Any, name: str, version: str, by: str) -> None:
    """Write down who made a version champion, and that every verdict until now is used up."""
    newest = client.search_model_versions(
        f"name = '{name}'", max_results=1, order_by=["version_number DESC"]
    )
    client.set_model_version_tag(name, version, "champion.since", _now())
    client.set_model_version_tag(name, version, "champion.by", by)
    client.set_registered_model_tag(name, DECIDED, str(newest[0].version))
    client.set_registered_model_tag(name, ACCEPTED, version)


def bring(
    client: Any, settings: Settings, version: str, features: Features | None = None
) -> Pointer:
    """Download a version and verify it before anything points to it; the pointer to it.

    BundleError when it is damaged, or was trained on other ``features`` (None: whatever they are).
    """
    home = bundles_folder(settings.root, settings.model_name)
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(".*.tmp"):  # by a process that was killed: this one holds `champions`
        shutil.rmtree(left, ignore_errors=True)
    fresh = home / f".{uuid.uuid4().hex}.tmp"
    try:
        digest = fetch(client, settings, version, fresh)
        if features is not None:
            topic = f"orderbook.{settings.market.book_depth}"
            Bundle.load(fresh, digest).require(features.hash, topic)
        folder = home / f"{version}-{digest[:8]}"
        if not folder.exists():
            fresh.rename(folder)
        else:
            # Perhaps damaged since: file by file, as it may be the one that a worker reads just now.
            for file in fresh.iterdir():
                file.replace(folder / file.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Pointer(
        name=settings.model_name, version=version, folder=folder.name, manifest_sha256=digest
    )


def point(settings: Settings, pointer: Pointer) -> None:
    """Make a bundle that `bring` has verified the one that the worker trades."""
    path = bundles_folder(settings.root, settings.model_name) / POINTER_FILE
    temporary = path.with_name(f".{uuid.uuid4().hex}.pointer")
    with temporary.open("wb") as out:
        out.write(encode(pointer))
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


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
        challenger = follow_challenger(settings) if pointer is not None else ""
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
            line += f"; challenger: version {challenger}" if challenger else ""
    if line != seen:
        print(line, file=sys.stderr if code else sys.stdout, flush=True)
    return code, line


if __name__ == "__main__":
    sys.exit(main())
