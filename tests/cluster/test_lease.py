"""An account is traded by one worker, whatever machine it is on."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress

import pytest

from live.lease import LOST_S, SPARE_S, STOP_S, Lease, leased
from market.postgres import StateError
from tests.cluster.conftest import Postgres, until

pytestmark = pytest.mark.cluster


def take(
    server: Postgres, waited: list[float], account: str = "account 1", closing_s: float = 15.0
) -> AbstractContextManager[Lease]:
    return leased(server.uri, account, closing_s, lambda _: None, waited.append)


@contextmanager
def silenced(server: Postgres) -> Iterator[tuple[str, threading.Event]]:
    """The server behind a proxy that takes what it is sent, and passes nothing on once the event is set."""
    silent = threading.Event()

    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not silent.is_set():
                    target.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listening, closing(socket.socket()) as behind:

        def serve() -> None:
            ahead, _ = listening.accept()
            behind.connect(("127.0.0.1", server.port))
            with ahead:
                threading.Thread(target=carry, args=(behind, ahead), daemon=True).start()
                carry(ahead, behind)

        threading.Thread(target=serve, daemon=True).start()
        yield server.uri.replace(str(server.port), str(listening.getsockname()[1])), silent


def test_an_account_has_one_worker_and_another_one_its_own(postgres: Postgres) -> None:
    waited: list[float] = []
    with (
        take(postgres, waited),
        take(postgres, waited, "account 2"),
        pytest.raises(StateError, match=r"^account 1: process \d+ of \S+ trades it, since"),
        take(postgres, waited),
    ):
        pass
    with take(postgres, waited):  # it was given back
        assert waited == []


def test_a_worker_whose_session_is_lost_stops_and_the_next_one_waits_for_it(
    postgres: Postgres,
) -> None:
    waited: list[float] = []
    lost, why = threading.Event(), list[str]()

    def stop(reason: str) -> None:
        why.append(reason)
        lost.set()

    with take(postgres, waited, closing_s=40.0) as lease, lease.watch(stop):
        assert not lost.wait(LOST_S)  # it stands
        postgres.run("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'")
        assert lost.wait(60)
        assert lease.stands()  # to close down
        with take(postgres, waited, closing_s=5.0):  # as long as the former takes, not itself
            assert waited == [LOST_S + 40.0 + STOP_S + SPARE_S]
    assert len(why) == 1
    assert why[0].startswith("lease lost: ")


def test_a_lease_that_gets_no_answer_is_lost(postgres: Postgres) -> None:
    waited: list[float] = []
    lost, why = threading.Event(), list[str]()
    with silenced(postgres) as (uri, silent):
        with leased(uri, "account 1", 0.0, lambda _: None, waited.append) as lease:
            silent.set()
            with lease.watch(lambda _: lost.set()):
                assert lost.wait(60)
            with lease.watch(why.append):  # whoever looks only now is told as well
                pass
            until(lambda: not lease.stands())
        postgres.run("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'")
        with take(postgres, waited, closing_s=5.0):
            assert waited[-1] == LOST_S + STOP_S + SPARE_S
    assert why == [f"lease lost: the database has not answered for {LOST_S:g} s"]


def test_a_lease_takes_no_right_to_make_what_is_there(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with take(postgres, []):
        pass
    for sql in (
        "create role trader login password 'its own'",
        "grant usage on schema lease to trader",
        "grant select, insert, update on lease.holders to trader",
    ):
        postgres.run(sql, "l2")
    monkeypatch.setitem(os.environ, "PGPASSWORD", "its own")
    waited: list[float] = []
    with leased(
        postgres.uri.replace("desk@", "trader@"), "account 3", 15.0, lambda _: None, waited.append
    ):
        assert waited == []


def test_a_table_of_an_earlier_release_gets_what_it_lacks(postgres: Postgres) -> None:
    for sql in (
        "drop schema if exists lease cascade",
        "create schema lease",
        "create table lease.holders (account text primary key, holder text not null, "
        "since timestamptz not null, ended boolean not null)",
        "insert into lease.holders values ('account 1', 'process 1 of a', now(), false)",
    ):
        postgres.run(sql, "l2")
    waited: list[float] = []
    with take(postgres, waited):
        assert waited == [LOST_S + 15.0 + STOP_S + SPARE_S]


def test_a_server_that_is_gone_ends_the_lease(postgres: Postgres) -> None:
    lost = threading.Event()
    with take(postgres, []) as lease, lease.watch(lambda _: lost.set()):
        postgres.stop()
        assert lost.wait(60)
    with pytest.raises(StateError, match="Connection refused"), take(postgres, []):
        pass
    postgres.start()
