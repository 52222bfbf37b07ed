"""The right to trade an account, across machines: an advisory lock of one PostgreSQL session.

A worker holds it from before its first request to after its last one. The database gives it to one session;
a worker that cannot say within `LOST_S` that its session stands stops as at SIGTERM, within its ``live.closing_s``, and
sends nothing later than that (`Lease.stands`). Who takes a lease that was not given back waits for as long before it
trades, by what the former noted, so that the two never act together.
The session is the server's own: no pooler that shares sessions may stand between.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any, Final

from market.postgres import StateError, connect, refused

#: The session is asked this often, and is lost when it does not answer for so long (seconds).
BEAT_S: Final = 1.0
LOST_S: Final = 4.0
#: Beyond its `live.closing_s`: what closing down may take, and what is on its way to the venue after that.
STOP_S: Final = 1.0
SPARE_S: Final = 5.0
_SILENT_MS: Final = round((LOST_S - BEAT_S) * 1000)
#: The server drops a session whose machine is silent after about 11 seconds.
_SESSION: Final = {
    "options": f"-c statement_timeout={_SILENT_MS} -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 "
    "-c tcp_keepalives_count=3",
    "keepalives_idle": 1,
    "tcp_user_timeout": _SILENT_MS,
}
#: What there has to be, each with how it is made; even "if not exists" needs the right to make it.
_MADE: Final = (
    ("select to_regnamespace('lease')", "create schema lease"),
    (
        "select to_regclass('lease.holders')",
        "create table lease.holders (account text primary key, holder text not null, "
        "since timestamptz not null, ended boolean not null)",
    ),
    (
        "select attname from pg_attribute where attrelid = 'lease.holders'::regclass and attname = 'closing_s'",
        "alter table lease.holders add column closing_s double precision",
    ),
)
_TAKE: Final = """
insert into lease.holders (account, holder, since, ended, closing_s) values (%s, %s, now(), false, %s)
on conflict (account) do update
set holder = excluded.holder, since = now(), ended = false, closing_s = excluded.closing_s"""


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """A lease, watched from the connection on; `watch` says when it is lost."""

    def __init__(self, connection: Any, closing_s: float) -> None:
        self._connection, self._closing_s = connection, closing_s
        # Its own: shutting it down ends a statement that is never answered, which `close` would wait for.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._answered, self._why = _now(), ""
        self._lost: Callable[[str], None] | None = None
        self._over, self._lock = threading.Event(), threading.Lock()
        for work in (self._beat, self._guard):
            threading.Thread(target=work, name="lease", daemon=True).start()

    def stands(self) -> bool:
        """Whether anything may still be sent to the venue: held, or lost for less than closing takes."""
        return _now() < self._answered + LOST_S + self._closing_s + STOP_S

    @contextmanager
    def watch(self, lost: Callable[[str], None]) -> Iterator[None]:
        """Call ``lost`` from a thread, once, when the session is lost within the block or was before."""
        with self._lock:
            self._lost = lost
            if self._why:
                lost(self._why)
        try:
            yield
        finally:
            with self._lock:
                self._lost = None

    def close(self) -> None:
        """End the session, answered or not."""
        self._over.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._connection.close()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self.ask("select 1")
            except Exception as error:  # whatever it is: nobody knows whose the account is
                self._end(str(error).strip().partition(chr(10))[0])
                return

    def _guard(self) -> None:
        """Beside `_beat`, whose question may never be answered."""
        while not self._over.wait(BEAT_S / 4):
            if _now() > self._answered + LOST_S:
                self._end(f"the database has not answered for {LOST_S:g} s")
                return

    def _end(self, why: str) -> None:
        with self._lock:
            if self._why or self._over.is_set():
                return
            self._why = f"lease lost: {why}"
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            if self._lost is not None:
                self._lost(self._why)

    def ask(self, sql: str, *given: Any) -> Any:
        """The first row of an answer, None of a statement without rows."""
        asked = _now()  # the session stood then; when the answer was on its way nobody knows
        with self._connection.cursor() as cursor:
            cursor.execute(sql, given)
            row = cursor.fetchone() if cursor.description else None
        self._answered = max(self._answered, asked)
        return row


@contextmanager
def leased(
    state: str,
    account: str,
    closing_s: float,
    say: Callable[[str], None],
    wait: Callable[[float], Any],
) -> Iterator[Lease]:
    """Hold the lease of ``account`` in the database ``state`` for the block.

    StateError when another has it, which is named, or the database refuses. ``closing_s`` is what this worker takes
    to close down; ``wait`` lets seconds pass.
    """
    lease = Lease(connect(state, **_SESSION), closing_s)
    me = f"process {os.getpid()} of {os.uname().nodename}"
    key = int.from_bytes(sha256(account.encode()).digest()[:8], "big", signed=True)
    row = "select holder, since, ended, closing_s from lease.holders where account = %s"
    try:
        try:
            # the lock first: two that begin at once would both make the table
            lease.ask("select pg_advisory_lock(0)")
            for there, make in _MADE:
                if (found := lease.ask(there)) is None or found[0] is None:
                    lease.ask(make)
            lease.ask("select pg_advisory_unlock(0)")
            taken = lease.ask("select pg_try_advisory_lock(%s)", key)[0]
            former = lease.ask(row, account)
        except Exception as error:
            raise refused(state, error) from error
        if not taken:
            holder, since, *_ = former or ("another worker", "just now")
            raise StateError(
                f"{account}: {holder} trades it, since {since}; stop it first, or wait until it is seen to be gone"
            )
        if former and not former[2]:
            takes_s = closing_s if former[3] is None else former[3]
            seconds = LOST_S + takes_s + STOP_S + SPARE_S
            say(
                f"{former[0]} did not give {account} back: waiting {seconds:.0f} s, until it has stopped"
            )
            wait(seconds)
        try:
            lease.ask(_TAKE, account, me, closing_s)
        except Exception as error:
            raise refused(state, error) from error
        yield lease
        with suppress(Exception):  # lost: the next one waits
            lease.ask("update lease.holders set ended = true where account = %s", account)
    finally:
        lease.close()
