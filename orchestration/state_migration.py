"""`l2 migrate --state`: what Dagster, MLflow, Optuna and the count of looks kept in SQLite, into PostgreSQL.

Each part's schema is made by its own library; then its tables are copied in the order of their foreign keys,
in one transaction. Dagster keeps the events of each run in a file of its own, so that they are stored again by
its own storage, which makes the indexes. A part that was moved (`_MOVED` says so, written with its last rows) is
left as it is, one that was interrupted is begun again, and one that others use already is refused. The SQLite
files stay where they are. Artifacts stay too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from market.postgres import StateError
from market.settings import Settings
from models_registry import trials
from models_registry.state import Part, check, database, lake_name, on_server
from orchestration.ui import dagster_home

_ROWS: Final = 1_000
#: What Dagster notes of its own upgrades, in one table for what were three files; a new schema has it.
_NOTES: Final = "secondary_indexes"
#: What has a row as soon as a part is in use.
_IN_USE: Final = {"dagster": "runs", "mlflow": "runs", "optuna": "trials", "looks": "looks"}

#: In the database: which part of which lake was moved.
_MOVED: Final = "looks.moved"

Say = Callable[[str], None]


def migrate_state(settings: Settings, say: Say) -> dict[str, int]:
    """Move every part that is not there yet; the rows copied of each (of Dagster, with its events).

    StateError when the settings name no server, it refuses, a file was written by another version, or a part of
    the database is in use without having been moved from this lake.
    """
    if not on_server(settings):
        raise StateError(
            "state = sqlite: name the database that the state moves to, e.g. --set "
            "state=postgresql://desk@db:5432/l2"
        )
    check(settings)
    files = msgspec.structs.replace(settings, state="sqlite")
    moved: dict[str, int] = {}
    marker = sa.create_engine(database(settings, "looks"))
    with marker.begin() as there:
        there.execute(
            sa.text(
                f"create table if not exists {_MOVED} (part text, lake text, primary key (part, lake))"
            )
        )
        held = sa.text(f"select part from {_MOVED} where lake = :lake")
        before = set[str](there.execute(held, {"lake": lake_name(settings)}).scalars())
    marker.dispose()
    for part, move in _MOVES.items():
        if part in before:
            say(f"{part}: there already, left as it is")
            continue
        source = sa.create_engine(database(files, part)) if part != "dagster" else None  # type: ignore[arg-type]
        target = sa.create_engine(database(settings, part))  # type: ignore[arg-type]
        try:
            if source is not None and not Path(str(source.url.database)).exists():
                continue
            say(f"{part}: preparing its schema")
            rows = move(settings, source, target)
            moved[part] = rows
            say(f"{part}: {rows:,} rows moved")
        finally:
            for engine in (source, target):
                if engine is not None:
                    engine.dispose()
    return moved


def _in_use(database: sa.Engine, part: str) -> bool:
    if not sa.inspect(database).has_table(_IN_USE[part]):
        return False
    with database.connect() as connection:
        return bool(
            connection.execute(sa.text(f"select exists (select 1 from {_IN_USE[part]})")).scalar()
        )


def _used(settings: Settings, source: sa.Engine, target: sa.Engine, part: str) -> bool:
    """Whether others use a part of the database already. StateError when rows of ours would be left behind."""
    if not _in_use(target, part):
        return False
    if _in_use(source, part):
        raise StateError(
            f"state = {settings.state}: {part} is in use there already, and what {source.url.database} holds was "
            "not moved; move into a database that no run has used yet"
        )
    return True


def copy(
    settings: Settings,
    sources: Sequence[tuple[sa.Engine, sa.MetaData]],
    target: sa.Engine,
    part: Part,
) -> int:
    """Replace what is in these tables of ``target`` by the sources' rows, and note the move; the rows.

    StateError where others use the part already and the sources hold something.
    """
    if _used(settings, sources[0][0], target, part):
        return 0
    count = 0
    with target.begin() as into:
        _empty(into, [schema for _, schema in sources])
        for source, schema in sources:
            with source.connect() as out:
                there = set(sa.inspect(source).get_table_names())
                for table in schema.sorted_tables:
                    if table.name not in there or table.name == _NOTES:
                        continue
                    rows = out.execute(table.select()).mappings()
                    while batch := [dict(row) for row in rows.fetchmany(_ROWS)]:
                        into.execute(table.insert(), batch)
                        count += len(batch)
                    _count_on(into, table)
        into.execute(
            sa.text(f"insert into {_MOVED} values (:part, :lake)"),
            {"part": part, "lake": lake_name(settings)},
        )
    return count


def _empty(into: sa.Connection, schemas: Sequence[sa.MetaData]) -> None:
    for schema in reversed(schemas):
        for table in reversed(schema.sorted_tables):
            if table.name != _NOTES:
                into.execute(table.delete())


def _count_on(into: sa.Connection, table: sa.Table) -> None:
    """Let a table's own numbers go on behind those that were copied."""
    for column in table.primary_key.columns:
        if isinstance(column.type, sa.Integer | sa.BigInteger) and not column.foreign_keys:
            name = into.execute(
                sa.text("select pg_get_serial_sequence(:table, :column)"),
                {"table": table.name, "column": column.name},
            ).scalar()
            if name:
                into.execute(
                    sa.select(
                        sa.func.setval(name, sa.func.coalesce(sa.func.max(column), 0) + 1, False)
                    )
                )


def _same_version(source: sa.Engine, target: sa.Engine) -> None:
    from alembic.migration import MigrationContext

    found = []
    for engine in (source, target):
        with engine.connect() as connection:
            found.append(MigrationContext.configure(connection).get_current_revision())
    if found[0] != found[1]:
        raise StateError(
            f"{source.url.database}: its schema is of version {found[0]}, and the library here makes {found[1]}; "
            "upgrade the file first (mlflow db upgrade, optuna storage upgrade)"
        )


def _mlflow(settings: Settings, source: sa.Engine | None, target: sa.Engine) -> int:
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    assert source is not None
    url = database(settings, "mlflow")
    SqlAlchemyStore(url, f"{settings.root}/mlflow/artifacts")._dispose_engine()
    _same_version(source, target)
    return copy(settings, [(source, Base.metadata)], target, "mlflow")


def _optuna(settings: Settings, source: sa.Engine | None, target: sa.Engine) -> int:
    import optuna
    from optuna.storages._rdb.models import BaseModel

    assert source is not None
    optuna.storages.RDBStorage(database(settings, "optuna")).remove_session()
    _same_version(source, target)
    return copy(settings, [(source, BaseModel.metadata)], target, "optuna")


def _looks(settings: Settings, source: sa.Engine | None, target: sa.Engine) -> int:
    assert source is not None
    schema = trials.schema()
    schema.create_all(target)
    return copy(settings, [(source, schema)], target, "looks")


def _dagster(settings: Settings, _: sa.Engine | None, target: sa.Engine) -> int:
    from dagster._core.storage.event_log import SqliteEventLogStorage
    from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
    from dagster._core.storage.runs.schema import RunStorageSqlMetadata
    from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
    from dagster_postgres import DagsterPostgresStorage

    home = dagster_home(settings)
    runs = home / "history" / "runs.db"
    if not runs.exists():
        return 0
    storage = DagsterPostgresStorage(database(settings, "dagster"), should_autocreate_tables=True)
    engines = [
        sa.create_engine(f"sqlite:///{file}")
        for file in (runs, home / "schedules" / "schedules.db")
    ]
    if _used(settings, engines[0], target, "dagster"):
        return 0
    events, count = SqliteEventLogStorage(str(home / "history" / "runs")), 0
    with target.begin() as into:
        _empty(into, [SqlEventLogStorageMetadata])
    with engines[0].connect() as out:
        made: Sequence[str] = (
            out.execute(sa.text("select run_id from runs order by id")).scalars().all()
        )
    for run in made:
        cursor: str | None = None
        while True:
            page = events.get_records_for_run(run, cursor, limit=_ROWS)
            for record in page.records:
                storage.event_log_storage.store_event(record.event_log_entry)
            count, cursor = count + len(page.records), page.cursor
            if not page.has_more:
                break
    events.dispose()
    schemas = (RunStorageSqlMetadata, ScheduleStorageSqlMetadata)
    # Last: a run that stands says that all is there.
    rows = copy(settings, list(zip(engines, schemas, strict=True)), target, "dagster")
    for engine in engines:
        engine.dispose()
    return rows + count


_MOVES: Final[dict[str, Callable[[Settings, Any, sa.Engine], int]]] = {
    "mlflow": _mlflow,
    "optuna": _optuna,
    "looks": _looks,
    "dagster": _dagster,
}
