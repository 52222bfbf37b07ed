"""What a pointer file names: a bundle, and the patch of it that is in force between two retrains.

    <root>/bundles/<name>/champion.json, challenger.json      `manifest.Pointer`
    <root>/bundles/<name>/decay.json                          `decay.DecayState`
    <root>/bundles/<name>/patches/<sha256>.json               `Patch`

A patch holds for the one manifest whose checksum it names, so it dies with its champion: the next promotion
writes a pointer without one. Like `models_registry.manifest` this imports no MLflow or training code, because
the worker imports it.
"""

from __future__ import annotations

import math
import os
import uuid
from pathlib import Path
from typing import Final

import msgspec

from market.settings import Settings
from models_registry.manifest import (
    LEGACY,
    MANIFEST_FILE,
    POINTER_FILE,
    Bundle,
    BundleError,
    Pointer,
    bundles_folder,
    encode,
    legacy_folder,
    manifests,
    read_pointer,
    sha256,
)
from models_registry.recipe import StrictStruct

CHALLENGER_FILE: Final = "challenger.json"
#: State of the decay monitor (`models_registry.monitoring`), of which the worker reads the alarm.
DECAY_FILE: Final = "decay.json"


class Followed(StrictStruct, frozen=True, kw_only=True):
    """Where the act rule of a regime stands between two trainings (`abstention.AdaptiveLevel`): its level, and the
    smallest |raw| / scale that is acted on, None where none is.
    """

    level: float
    least_score: float | None


class Patch(StrictStruct, frozen=True, kw_only=True):
    """What was fitted anew of a version's ensemble from what it served until ``until_ns``.

    ``weights`` and ``gain`` replace those of the recipe, ``weights`` in the order of its members.
    ``improvement`` is the mean gain in prequential log-loss per observation over ``hours`` hours.
    ``adaptive`` is the act rule of a certified recipe's regimes, in their order.
    """

    name: str
    version: str
    manifest_sha256: str
    until_ns: int
    weights: tuple[float, ...]
    gain: float
    improvement: float = 0.0
    hours: int = 0
    adaptive: tuple[Followed, ...] | None = None


def load_pointed(
    root: str | Path, name: str, file: str = POINTER_FILE
) -> tuple[Pointer, Bundle] | None:
    """A pointer and the verified bundle that it names, patched; None when there is no pointer."""
    pointer = read_pointer(root, name, file)
    if pointer is None:
        return None
    home = bundles_folder(root, name)
    bundle = Bundle.load(home / pointer.folder, pointer.manifest_sha256)
    return pointer, apply(bundle, _patch(home, pointer.patch)) if pointer.patch else bundle


def load_frozen(settings: Settings) -> tuple[Pointer, Bundle]:
    """The lake's `LEGACY` bundle under a pointer that no registry moves. BundleError without one."""
    folder = legacy_folder(settings)
    if not (folder / MANIFEST_FILE).is_file():
        raise BundleError(
            f"{folder}: no legacy model; `l2 pipeline` freezes one when it trains, and desk.model=champion "
            "runs the promoted version"
        )
    bundle = Bundle.load(folder)
    return _frozen_pointer(folder, bundle.manifest_sha256), bundle


def _frozen_pointer(folder: Path, sha: str) -> Pointer:
    return Pointer(name=folder.name, version=LEGACY, folder="", manifest_sha256=sha)


def find(home: Path, sha: str) -> tuple[Pointer, Bundle]:
    """The bundle in a model's folder, or its legacy one, whose manifest, or whose patch, has this checksum."""
    frozen = home.parent / LEGACY / home.name
    if (frozen / MANIFEST_FILE).is_file() and sha256((frozen / MANIFEST_FILE).read_bytes()) == sha:
        return _frozen_pointer(frozen, sha), Bundle.load(frozen, sha)
    patch = _patch(home, sha) if (home / "patches" / f"{sha}.json").exists() else None
    wanted = sha if patch is None else patch.manifest_sha256
    for manifest in manifests(home):
        if sha256(manifest.read_bytes()) == wanted:
            bundle = Bundle.load(manifest.parent, wanted)
            pointer = Pointer(
                name=bundle.manifest.name,
                version=manifest.parent.name.partition("-")[0],
                folder=manifest.parent.name,
                manifest_sha256=wanted,
                patch="" if patch is None else sha,
            )
            return pointer, bundle if patch is None else apply(bundle, patch)
    raise BundleError(f"{home}: no bundle or patch has the checksum {sha[:16]}; fetch it again")


def apply(bundle: Bundle, patch: Patch) -> Bundle:
    """A bundle with a patch applied; BundleError when it is another version's, of another number of members or
    regimes, or no finite numbers.
    """
    members = bundle.recipe.members
    if patch.manifest_sha256 != bundle.manifest_sha256:
        raise BundleError(
            f"patch of {patch.name} {patch.version}: made for manifest {patch.manifest_sha256[:16]}, "
            f"not for {bundle.manifest_sha256[:16]}; it dies with its champion"
        )
    if len(patch.weights) != len(members) or not all(
        map(math.isfinite, [*patch.weights, patch.gain])
    ):
        raise BundleError(
            f"patch of {patch.name} {patch.version}: not {len(members)} finite weights"
        )
    replaced = tuple(
        msgspec.structs.replace(member, weight=weight)
        for member, weight in zip(members, patch.weights, strict=True)
    )
    regimes = bundle.recipe.regimes
    if patch.adaptive is not None:
        if len(patch.adaptive) != len(regimes):
            raise BundleError(
                f"patch of {patch.name} {patch.version}: not {len(regimes)} regimes; it is withdrawn or "
                "made again by the next online update"
            )
        regimes = tuple(
            msgspec.structs.replace(regime, threshold_bps=None)
            if now.least_score is None
            else msgspec.structs.replace(regime, threshold_bps=0.0, least_score=now.least_score)
            for regime, now in zip(regimes, patch.adaptive, strict=True)
        )
    recipe = msgspec.structs.replace(
        bundle.recipe, members=replaced, gain=patch.gain, regimes=regimes
    )
    manifest = msgspec.structs.replace(bundle.manifest, recipe=recipe)
    return Bundle(manifest, bundle.boosters, bundle.manifest_sha256)


def publish(root: str | Path, patch: Patch) -> Pointer | None:
    """Write a patch and name it in the champion's pointer; None when that is another's by now.

    Who calls holds the champions' lock (`state.one_at_a_time`), as for `withdraw`.
    """
    home, data = bundles_folder(root, patch.name), encode(patch)
    (home / "patches").mkdir(exist_ok=True)
    replace_file(home / "patches" / f"{sha256(data)}.json", data)
    pointer = read_pointer(root, patch.name)
    if pointer is None or pointer.manifest_sha256 != patch.manifest_sha256:
        return None
    pointer = msgspec.structs.replace(pointer, patch=sha256(data))
    replace_file(home / POINTER_FILE, encode(pointer))
    return pointer


def withdraw(root: str | Path, was: Pointer) -> bool:
    """Take the patch out of the champion's pointer, if that is still what it was; whether it is."""
    if read_pointer(root, was.name) != was:
        return False
    file = bundles_folder(root, was.name) / POINTER_FILE
    replace_file(file, encode(msgspec.structs.replace(was, patch="")))
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def _patch(home: Path, sha: str) -> Patch:
    path = home / "patches" / f"{sha}.json"
    try:
        data = path.read_bytes()
        patch = msgspec.json.decode(data, type=Patch)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"{path}: not a patch ({error}); remove it from the pointer") from error
    if sha256(data) != sha:
        raise BundleError(f"{path}: does not have the checksum of its name; remove it")
    return patch
