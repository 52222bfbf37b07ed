"""An account is traded by one worker, whatever machine it is on."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

import pytest

from live.lease import LOST_S, Lease, leased
from market.postgres import StateError
from tests.cluster.conftest import Postgres

pytestmark = pytest.mark.cluster


def take(
    server: Postgres, waited: list[float], account: str = "account 1"
) -> AbstractContextManager[Lease]:
    return leased(server.uri, account, 15.0, lambda _: None, waited.append)


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

    with take(postgres, waited) as lease, lease.watch(stop):
        assert not lost.wait(LOST_S)  # it stands
        postgres.run("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'")
        assert lost.wait(60)
        with take(postgres, waited):
            assert waited == [15.0 + LOST_S]
    assert len(why) == 1
    assert why[0].startswith("lease lost: ")


def test_a_server_that_is_gone_ends_the_lease(postgres: Postgres) -> None:
    lost = threading.Event()
    with take(postgres, []) as lease, lease.watch(lambda _: lost.set()):
        postgres.stop()
        assert lost.wait(60)
    with pytest.raises(StateError, match="Connection refused"), take(postgres, []):
        pass
    postgres.start()
