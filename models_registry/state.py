"""Where MLflow, Optuna, Dagster and our count of looks keep their state: files below the lake's root, or schemas
of one PostgreSQL database (setting ``state``), each made and brought up to date by its own library.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

from market.console import say
from market.locks import exclusive
from market.postgres import StateError, connect, refused
from market.settings import Settings

Part = Literal["dagster", "mlflow", "optuna", "looks"]
PARTS: Final[tuple[Part, ...]] = ("dagster", "mlflow", "optuna", "looks")
_FILES: Final = {"mlflow": "mlflow.db", "optuna": "optuna.db", "looks": "trials.db"}


def on_server(settings: Settings) -> bool:
    """Whether the state is in PostgreSQL."""
    return settings.state != "sqlite"


def registry_home(settings: Settings) -> Path:
    """The lake's folder of MLflow's files, behind any link, as MLflow keeps what it has opened by name."""
    return settings.home.resolve() / "mlflow"


def lake_name(settings: Settings) -> str:
    """A lake's name in a database that several lakes may share: its root, however it is written."""
    root = settings.root
    return root.rstrip("/") if "://" in root else str(Path(root).resolve())


def database(settings: Settings, part: Part) -> str:
    """SQLAlchemy's URL of a part's database; it holds no password, which libpq has from the environment."""
    if on_server(settings):
        # named, as SQLAlchemy 2.1 takes another driver and dagster-postgres brings this one
        server = settings.state.replace("postgresql://", "postgresql+psycopg2://")
        return f"{server}?options=-csearch_path%3D{part}"
    return f"sqlite:///{registry_home(settings) / _FILES[part]}"


@contextmanager
def one_at_a_time(settings: Settings, name: str, what: str) -> Iterator[None]:
    """Hold the registry's lock ``name`` for the block, on every machine where the state is on a server: who comes
    second waits, and says for ``what``. Nothing is held of a registry that may only be read.
    """
    home = registry_home(settings)
    if not on_server(settings):
        file = home / f"{name}.lock"
        with exclusive(file, what) if os.access(home, os.W_OK) else nullcontext():
            yield
        return
    with closing(connect(settings.state)) as connection, connection.cursor() as cursor:
        key = f"{settings.model_name} {lake_name(settings)} {name}"
        number = int.from_bytes(sha256(key.encode()).digest()[:8], "big", signed=True)
        cursor.execute("select pg_try_advisory_lock(%s)", [number])
        if not cursor.fetchone()[0]:
            say(f"waiting for another process, which works on {what}")
            cursor.execute("select pg_advisory_lock(%s)", [number])
        yield  # the lock ends with its session


def check(settings: Settings) -> None:
    """Make the schemas that are not there. StateError when the database refuses, or holds a schema of another
    version of a library; nothing is asked of SQLite, which each library opens by itself.
    """
    if not on_server(settings):
        return
    connection = connect(settings.state)
    try:
        with connection.cursor() as cursor:
            for part in PARTS:
                # even "if not exists" needs the right to make one
                cursor.execute("select 1 from pg_namespace where nspname = %s", (part,))
                if not cursor.fetchone():
                    cursor.execute(f"create schema {part}")
    except Exception as error:
        raise refused(settings.state, error) from error
    finally:
        connection.close()
    for part, head in _HEADS.items():
        found = _revision(database(settings, part))
        if found is not None and found != (wanted := head()):
            raise StateError(
                f"state = {settings.state}: the schema {part} is of version {found} and the library here of "
                f"{wanted}; install that release, or upgrade the schema with the library's own command "
                "(dagster instance migrate, mlflow db upgrade, optuna storage upgrade)"
            )


def _revision(url: str) -> str | None:
    import sqlalchemy as sa
    from alembic.migration import MigrationContext

    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def _scripts(package: str, folder: str) -> Callable[[], str | None]:
    def head() -> str | None:
        from importlib.util import find_spec

        from alembic.script import ScriptDirectory

        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        return ScriptDirectory(str(Path(spec.origin).parent / folder)).get_current_head()

    return head


#: The newest revision that each installed library knows.
_HEADS: Final[dict[Any, Callable[[], str | None]]] = {
    "dagster": _scripts("dagster", "_core/storage/alembic"),
    "mlflow": _scripts("mlflow", "store/db_migrations"),
    "optuna": _scripts("optuna", "storages/_rdb/alembic"),
}
