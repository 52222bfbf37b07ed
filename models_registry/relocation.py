"""A registry that was moved or copied with its lake: its locations are brought to where it lies.

MLflow stores where artifacts are as absolute URIs, of experiments, runs, models and versions alike, and
writes the next ones below them: into the lake that a copy was made of, which may be another's.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from market.console import say
from market.errors import ModelError

#: Columns of MLflow's database that hold the location of an artifact.
_LOCATIONS: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
_OF_A_LAKE: Final = "/mlflow/artifacts"
_BELOW: Final = "{0} = :old or substr({0}, 1, length(:old) + 1) = :old || '/'"


class RelocationError(ModelError):
    """The registry was moved without its artifacts; the message says how to bring them."""


def artifacts_uri(home: Path) -> str:
    """Where a new experiment of the registry in ``home`` keeps its artifacts."""
    return (home.resolve() / "artifacts").as_uri()


def relocate(home: Path) -> None:
    """Rewrite the locations of a registry that lies elsewhere now, in one transaction, and say so.

    One that may only be read is left as it is (see `here`). RelocationError when the files of a
    registered version are not in ``home``, or the database is none.
    """
    database = home / "mlflow.db"
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as db:
            if not (
                _elsewhere(db, home) and os.access(database, os.W_OK) and os.access(home, os.W_OK)
            ):
                return
            db.execute("begin immediate")
            for old in _elsewhere(db, home):
                _rewrite(db, home, old)
            db.execute("commit")
    except sqlite3.DatabaseError as error:
        raise RelocationError(
            f"{database}: cannot be used as MLflow's database ({error})"
        ) from error


def _elsewhere(db: sqlite3.Connection, home: Path) -> list[str]:
    """Artifact locations of lakes in the database that are not this one's, by whatever path."""
    if not db.execute("select 1 from sqlite_master where name = 'experiments'").fetchone():
        return []  # another process is making it
    found = db.execute("select distinct artifact_location from experiments").fetchall()
    return [
        uri
        for (uri,) in found
        if uri.endswith(_OF_A_LAKE)
        and uri != artifacts_uri(home)
        and _path(uri).resolve() != (home / "artifacts").resolve()
    ]


def _rewrite(db: sqlite3.Connection, home: Path, old: str) -> None:
    below = _BELOW.format("storage_location")
    held = db.execute(f"select storage_location from model_versions where {below}", {"old": old})
    missing = [path for (uri,) in held if not (path := _path(here(home, uri))).exists()]
    if missing:
        raise RelocationError(
            f"{home}: this registry was made in {_path(old).parent}, and the files of {len(missing)} "
            f"of its versions are not here (first: {missing[0]}); bring them from there or from a "
            f"backup: cp -an {shlex.quote(f'{_path(old)}/.')} {shlex.quote(f'{home}/artifacts/')}"
        )
    for table, column in _LOCATIONS:
        db.execute(
            f"update {table} set {column} = :new || substr({column}, length(:old) + 1) "
            f"where {_BELOW.format(column)}",
            {"old": old, "new": artifacts_uri(home)},
        )
    say(f"registry: moved here from {_path(old).parent}; its locations now name {home}")


def here(home: Path, uri: str) -> str:
    """An artifact's location in the registry that lies in ``home``, wherever that was made."""
    _, inside, rest = uri.rpartition(_OF_A_LAKE)
    return artifacts_uri(home) + rest if inside else uri


def _path(uri: str) -> Path:
    return Path(url2pathname(urlsplit(uri).path))
