"""`l2 reproduce`: a version made again from its recorded inputs, settings and seed, and compared.

The attempt's record names every partition with its fingerprint: those are linked into a lake of their own,
so that dates that came since change nothing. Nothing is logged and nothing moves.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from market.console import Result, say
from market.lake import Lake
from market.settings import Settings
from models_registry import dataset
from models_registry.dataset import Features
from models_registry.manifest import MANIFEST_FILE, Bundle, parse_manifest
from models_registry.registry import RECORD_FILE, Progress, Recorded, attempt, code
from models_registry.store import RegistryError, fetch, model_version, registry_client


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: rows that were predicted by both, how many differ in a bit, and what else does."""

    version: str
    rows: int
    different: int
    differs: tuple[str, ...]


def reproduce(
    settings: Settings,
    version: str,
    features: Features | None = None,
    progress: Progress = lambda line: None,
) -> Reproduction:
    """Train a version again and compare boosters, manifest and predictions on its last date.

    RegistryError for a version without a record, or whose inputs are not there any more.
    """
    lake = Lake(settings.root, settings.source)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recorded, sha = _fetch(settings, version, folder / "bundle")
        first = Bundle.load(folder / "bundle", sha)
        rival = None
        if recorded.champion:
            with registry_client(settings) as client:
                fetch(client, settings, recorded.champion, folder / "rival")
            rival = (recorded.champion, Bundle.load(folder / "rival"))
        differs = _inputs(lake, recorded, version)
        features = features or Features.defined()
        if features.hash != recorded.features.hash:
            differs.append(f"feature definitions: {recorded.features.hash}, now {features.hash}")
        if code() != recorded.code:
            differs.append(f"code of training: {recorded.code}, now {code()}")
        view = _view(lake, recorded, lake.scratch() / f"reproduce-{version}")
        then = recorded.settings
        source = dataset.LakeSource(view, then.market.symbols, then.model.horizons_s)
        fingerprint = first.manifest.data_fingerprint
        _, made = attempt(recorded, source, rival, fingerprint, progress)
        if made is None:
            raise RegistryError(
                f"version {version}: these inputs are not enough data for a version"
            )
        again = folder / "again"
        again.mkdir()
        for name, data in made.files.items():
            (again / name).write_bytes(data)
            if name != MANIFEST_FILE and data != _read(folder / "bundle" / name):
                differs.append(f"booster {name}")
        differs += _fields(first.manifest, parse_manifest(made.files[MANIFEST_FILE], MANIFEST_FILE))
        rows = source.read(source.dates()[-1:], first.manifest.features)
        one = first.predict_many(rows.features).raw_bps
        other = Bundle.load(again).predict_many(rows.features).raw_bps
    different = int(np.sum(one.view(np.int64) != other.view(np.int64)))
    return Reproduction(
        version=version, rows=len(rows), different=different, differs=tuple(differs)
    )


def _fetch(settings: Settings, version: str, folder: Path) -> tuple[Recorded, str]:
    import mlflow
    from mlflow.exceptions import MlflowException

    with registry_client(settings) as client:
        run = model_version(client, settings.model_name, version).run_id
        try:
            text = mlflow.artifacts.load_text(f"runs:/{run}/{RECORD_FILE}")
            recorded = msgspec.json.decode(text, type=Recorded)
        except (MlflowException, OSError, msgspec.DecodeError) as error:
            raise RegistryError(
                f"version {version} has no record of its inputs that can be read ({RECORD_FILE} of its "
                "run): it is of another release, or the file was removed; train again"
            ) from error
        return recorded, fetch(client, settings, version, folder)


def _inputs(lake: Lake, recorded: Recorded, version: str) -> list[str]:
    """The recorded partitions that are made of something else now; RegistryError when one is gone."""
    differs, gone = [], []
    for name, fingerprint in recorded.partitions.items():
        day, symbol = name.split(" ")
        if not lake.exists(dataset.TABLE, symbol, day):
            gone.append(name)
        elif lake.fingerprint(dataset.TABLE, symbol, day) != fingerprint:
            differs.append(f"input {dataset.TABLE} {name}")
    if gone:
        raise RegistryError(
            f"version {version}: {len(gone)} partitions of {dataset.TABLE} that it was made from are not "
            f"here (first: {gone[0]}); make them again with l2 pipeline"
        )
    return differs


def _view(lake: Lake, recorded: Recorded, folder: Path) -> Lake:
    """A lake of the recorded partitions alone, by hard links."""
    for name in recorded.partitions:
        day, symbol = name.split(" ")
        lake.fetch(dataset.TABLE, symbol, day, folder)
    return Lake(folder, lake.source)


def _fields(first: Any, second: Any) -> list[str]:
    """The fields of a manifest that differ, beside the boosters' checksums."""
    one, other = msgspec.to_builtins(first), msgspec.to_builtins(second)
    return [f"manifest.{name}" for name in one if one[name] != other[name]]


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 reproduce`."""
    parser.add_argument("version", help="version in the MLflow registry")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 reproduce`: make a version again, and compare; fails when a prediction differs."""
    found = reproduce(settings, options.version, progress=say)
    what = f"; what differs: {', '.join(found.differs)}" if found.differs else ""
    if found.different:
        raise RegistryError(
            f"version {found.version}: {found.different:,} of {found.rows:,} predictions differ{what}"
        )
    say(f"version {found.version}: {found.rows:,} predictions are byte for byte the same{what}")
    result: Result = msgspec.to_builtins(found)
    return result
