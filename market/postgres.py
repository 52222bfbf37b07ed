"""The database that keeps the platform's state where the settings name one: connections, and refusals in a line."""

from __future__ import annotations

from typing import Any, Final

from market.errors import DataError

#: A server that says nothing is given up after this (seconds).
_CONNECT_S: Final = 10


class StateError(DataError):
    """The database of the state refuses, or holds another schema; the message says what to do."""


def connect(state: str, **options: Any) -> Any:
    """A psycopg2 connection, each statement of which stands by itself; the password is libpq's (PGPASSWORD).

    StateError when there is none.
    """
    try:
        import psycopg2  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise StateError(
            f"state = {state}: psycopg2 is not installed; pip install l2-platform[cluster]"
        ) from error
    try:
        connection = psycopg2.connect(state, **{"connect_timeout": _CONNECT_S, **options})
    except psycopg2.OperationalError as error:
        raise refused(state, error) from error
    connection.autocommit = True
    return connection


def refused(state: str, error: Exception) -> StateError:
    """What a database says, and what to do."""
    why = str(error).strip().partition("\n")[0]
    todo = "see that it runs and takes this user"
    if "password" in why:
        todo = "set PGPASSWORD (or PGPASSFILE) in the environment"
    return StateError(f"state = {state}: {why}; {todo}")
