"""Accounts that must not be traded, and the demo venue, over loopback: one clear line, nothing sent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from execution.orders import Accepted, Amend, Cancel, OrderReport, OrderState, Rejected, Submit
from live.bybit.account import problems
from live.bybit.rest import BybitError
from live.control import lock_account
from live.messages import Answer, Link, PositionReport, QueryKind, Report, SetStop
from market.instruments import BUILT_IN
from market.settings import Settings
from proving.sandbox.server import Sandbox
from tests.conftest import REPOSITORY
from tests.live.bybit_venue import SYMBOL, Client, connected
from tests.live.live_market import promote
from tests.proving.sandbox_server import Served, ask, served


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(33, clients=6, begins_ns=None)) as running:
        yield running


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    with served(Sandbox(34, clients=2, begins_ns=None, demo=True)) as running:
        yield running


def lines(client: Client) -> list[str]:
    """What start-up says of the account, by the queries that it makes."""
    reports: list[Report] = []
    for kind in (
        *(QueryKind.ACCOUNT, QueryKind.WALLET, QueryKind.POSITION),
        *(QueryKind.INSTRUMENT, QueryKind.FEES),
    ):
        reports += client.query(kind).reports
    settings = msgspec.convert({"live": {"venue": "sandbox"}}, Settings)
    said = problems(reports, settings, {SYMBOL: BUILT_IN[SYMBOL]})
    assert not client.account.by_link_id  # nothing was sent
    assert not any("\n" in line for line in said)
    return said


def test_an_account_as_it_should_be_starts(venue: Served) -> None:
    with connected(venue, client=0) as client:
        assert lines(client) == []


@pytest.mark.parametrize(
    ("number", "changes", "line"),
    [
        (1, {"is_read_only": True}, "key: it may only read; make one that may place orders"),
        (2, {"may_withdraw": True}, "key: it may withdraw; make one without that right"),
        (
            3,
            {"is_hedged": True},
            "BTCUSDT: the account is in hedge mode; switch it to one-way mode",
        ),
    ],
)
def test_rights_and_modes_that_are_refused(
    venue: Served, number: int, changes: dict[str, bool], line: str
) -> None:
    account = venue.sandbox.exchange.clients[number]
    for name, value in changes.items():
        setattr(account, name, value)
    with connected(venue, client=number) as client:
        (said,) = lines(client)
    assert said.startswith(line)


def test_another_leverage_is_refused(venue: Served) -> None:
    account = venue.sandbox.exchange.clients[4]
    venue.run(lambda _: account.margin.set_leverage(SYMBOL, "25"))
    with connected(venue, client=4) as client:
        assert lines(client) == [
            "BTCUSDT: leverage 25 at the venue, live.leverage is 10.0; change one of them"
        ]


def test_a_symbol_that_the_venue_lacks_is_refused(venue: Served) -> None:
    instrument = msgspec.structs.replace(BUILT_IN[SYMBOL], symbol="NOPEUSDT")
    client = Client(venue, client=0, instruments={"NOPEUSDT": instrument})
    with pytest.raises(BybitError) as refused:
        client.connections.start(60.0)
    assert str(refused.value) == (
        f"NOPEUSDT: {venue.description['rest']} does not list it (market/instruments-info: 10001 params "
        "error: symbol invalid); take it out of market.symbols"
    )
    assert not client.inputs


def test_what_a_read_only_key_sends_is_refused(venue: Served) -> None:
    venue.sandbox.exchange.clients[5].is_read_only = True
    with connected(venue, client=5) as client:
        order = Submit(
            client_id="r-1",
            symbol=SYMBOL,
            side=1,
            qty_lots=10,
            price_ticks=client.touch(1) - 3000,
        )
        (rejected,) = client.ask(order)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("10005 Permission denied")


WORKER = """
import msgspec, sys
from pathlib import Path
from live.worker import run
from tests.live.live_market import live_settings
settings = live_settings(Path(sys.argv[1]))
live = msgspec.structs.replace(settings.live, venue="sandbox", sandbox=sys.argv[2])
run(msgspec.structs.replace(settings, live=live))
"""


@pytest.fixture(scope="module")
def both() -> Iterator[Served]:
    with served(Sandbox(35, symbols=("BTCUSDT", "ETHUSDT"), begins_ns=None)) as running:
        yield running


def ended(tmp_path: Path, venue: Served, **keys: str) -> str:
    """The last line of a worker's process, which sends nothing."""
    if not (tmp_path / "bundles").exists():
        promote(tmp_path)
    key = {**venue.description["keys"][0], **keys}
    child = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path), venue.description["rest"]],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "L2_API_KEY": key["key"],
            "L2_API_SECRET": key["secret"],
        },
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode
    account = venue.sandbox.exchange.clients[0]
    assert not account.by_link_id
    assert not account.executions
    assert not key["secret"] or key["secret"] not in child.stderr
    return child.stderr.strip().splitlines()[-1]


def test_the_worker_ends_with_the_line_and_sends_nothing(tmp_path: Path, both: Served) -> None:
    both.sandbox.exchange.clients[0].is_hedged = True
    try:
        line = ended(tmp_path, both)
    finally:
        both.sandbox.exchange.clients[0].is_hedged = False
    assert "the account is in hedge mode; switch it to one-way mode" in line
    assert "no keys: set L2_API_KEY and L2_API_SECRET" in ended(
        tmp_path / "second", both, key="", secret=""
    )
    # The log names its account, and the account has one worker, whatever its keys.
    assert "the log of account 1, and this worker's is 2;" in ended(
        tmp_path, both, **both.description["keys"][1]
    )
    with lock_account(both.description["rest"], "1", "account 1"):
        line = ended(tmp_path / "third", both)
    assert f"account 1 of sandbox: process {os.getpid()} works on it" in line


# -- demo ------------------------------------------------------------------------------------------


def test_demo_is_traded_over_rest_with_its_private_stream(demo: Served) -> None:
    assert set(demo.description) == {"rest", "ws_private", "keys", "clock"}
    with connected(demo, demo=True) as client:
        ups = [one.stream for _, one in client.inputs if isinstance(one, Link) and one.up]
        assert "trade" not in ups
        assert lines(client) == []  # fees are the settings', and are not asked for
        touch = client.touch(1)
        order = Submit(
            client_id="d-1", symbol=SYMBOL, side=1, qty_lots=10, price_ticks=touch - 3000
        )
        (accepted,) = client.ask(order)
        assert isinstance(accepted, Accepted)
        assert client.ask(Amend(client_id="d-1", qty_lots=12)) == []
        assert client.ask(Cancel(client_id="d-1")) == []
        client.until(lambda: _states(client, "d-1").count(OrderState.CANCELLED))
        entry = Submit(
            client_id="d-2",
            symbol=SYMBOL,
            side=1,
            qty_lots=10,
            price_ticks=touch + 300,
            stop_ticks=touch - 5000,
        )
        client.ask(entry)
        client.until(lambda: _states(client, "d-2").count(OrderState.FILLED))
        assert client.ask(SetStop(symbol=SYMBOL, stop_ticks=touch - 4000)) == []
        (position,) = client.query(QueryKind.POSITION).reports
        assert isinstance(position, PositionReport)
        assert (position.lots, position.stop_ticks) == (10, touch - 4000)


def _states(client: Client, name: str) -> list[OrderState]:
    reports = [one for one in client.evidence if isinstance(one, OrderReport)]
    return [one.state for one in reports if one.client_id == name]


def test_demo_refuses_what_it_lacks(demo: Served) -> None:
    status, answer, _ = ask(demo, "/v5/account/fee-rate?category=linear")
    assert (status, answer["retCode"]) == (200, 10032)
    with connected(demo, demo=True, client=1) as client:
        result = client.query(QueryKind.FEES)
        assert (result.complete, result.reports) == (True, ())
        sent = [given for _, given in client.inputs if isinstance(given, Answer)]
        assert b"fee-rate" not in sent[-1].body


def test_demo_has_no_trade_socket(demo: Served) -> None:
    client: Any = Client(demo, client=1)
    with pytest.raises(BybitError, match=r"/v5/trade: cannot connect"):
        client.connections.start(60.0)
