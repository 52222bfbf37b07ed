"""The right to trade an account, across machines: an advisory lock of one PostgreSQL session.

A worker holds it from before its first request to after its last one. The database gives it to one session;
a worker that cannot say within `LOST_S` that its session stands stops as at SIGTERM, within ``live.closing_s``. Who takes
a lease that was not given back waits for as long before it trades, so that the two never act together.
The session is the server's own: no pooler that shares sessions may stand between.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any, Final

from market.postgres import StateError, connect, refused

#: The session is asked this often, and is lost when it does not answer for so long (seconds).
BEAT_S: Final = 1.0
LOST_S: Final = 4.0
_SILENT_MS: Final = round((LOST_S - BEAT_S) * 1000)
#: The server drops a session whose machine is silent after about 11 seconds.
_SESSION: Final = {
    "options": f"-c statement_timeout={_SILENT_MS} -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 "
    "-c tcp_keepalives_count=3",
    "keepalives_idle": 1,
    "tcp_user_timeout": _SILENT_MS,
}
_TABLE: Final = """
create schema if not exists lease;
create table if not exists lease.holders (
    account text primary key, holder text not null, since timestamptz not null, ended boolean not null
)"""
_TAKE: Final = """
insert into lease.holders values (%s, %s, now(), false)
on conflict (account) do update set holder = excluded.holder, since = now(), ended = false"""


class Lease:
    """A held lease; `watch` says when it is lost."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._over = threading.Event()

    @contextmanager
    def watch(self, lost: Callable[[str], None]) -> Iterator[None]:
        """Call ``lost`` from a thread, once, when the session is lost within the block."""
        thread = threading.Thread(target=self._beat, args=(lost,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _beat(self, lost: Callable[[str], None]) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._ask("select 1")
            except Exception as error:  # whatever it is: nobody knows whose the account is
                lost(f"lease lost: {str(error).strip().partition(chr(10))[0]}")
                return

    def _ask(self, sql: str, *given: Any) -> Any:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, given)
            return cursor.fetchone() if cursor.description else None


@contextmanager
def leased(
    state: str,
    account: str,
    closing_s: float,
    say: Callable[[str], None],
    wait: Callable[[float], Any],
) -> Iterator[Lease]:
    """Hold the lease of ``account`` in the database ``state`` for the block.

    StateError when another has it, which is named, or the database refuses. ``wait`` lets seconds pass.
    """
    connection = connect(state, **_SESSION)
    lease, me = Lease(connection), f"process {os.getpid()} of {os.uname().nodename}"
    key = int.from_bytes(sha256(account.encode()).digest()[:8], "big", signed=True)
    row = "select holder, since, ended from lease.holders where account = %s"
    try:
        try:
            # the lock first: two that begin at once would both make the table
            lease._ask("select pg_advisory_lock(0)")
            lease._ask(_TABLE)
            lease._ask("select pg_advisory_unlock(0)")
            taken = lease._ask("select pg_try_advisory_lock(%s)", key)[0]
            former = lease._ask(row, account)
        except Exception as error:
            raise refused(state, error) from error
        if not taken:
            holder, since, _ = former or ("another worker", "just now", False)
            raise StateError(
                f"{account}: {holder} trades it, since {since}; stop it first, or wait until it is seen to be gone"
            )
        if former and not former[2]:
            seconds = closing_s + LOST_S
            say(
                f"{former[0]} did not give {account} back: waiting {seconds:.0f} s, until it has stopped"
            )
            wait(seconds)
        try:
            lease._ask(_TAKE, account, me)
        except Exception as error:
            raise refused(state, error) from error
        yield lease
        with suppress(Exception):  # lost: the next one waits
            lease._ask("update lease.holders set ended = true where account = %s", account)
    finally:
        connection.close()
