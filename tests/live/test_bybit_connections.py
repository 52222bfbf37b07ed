"""The driver against the exchange on loopback: every request ends, over both transports."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from execution.orders import (
    Accepted,
    Amend,
    Cancel,
    CancelRejected,
    Filled,
    OrderReport,
    OrderState,
    Rejected,
    Submit,
    TimeInForce,
)
from live.bybit.codec import BybitCodec
from live.bybit.connections import _CALLERS, Connections
from live.bybit.rest import WINDOW_S, Budget, BybitError
from live.bybit.venues import VENUES, Keys
from live.messages import (
    AccountReport,
    Answer,
    CancelAll,
    Command,
    Expired,
    FeeReport,
    InstrumentReport,
    Link,
    PositionReport,
    PrivateFrame,
    QueryKind,
    Refused,
    SetStop,
    WalletReport,
)
from market.settings import Live
from proving.sandbox.faults import KINDS
from proving.sandbox.server import Sandbox
from tests.live.bybit_venue import SYMBOL, Client, connected
from tests.proving.sandbox_server import Served, eventually, served

NAMES = itertools.count(1)


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(21, clients=8, begins_ns=None)) as running:
        yield running


@pytest.fixture(scope="module", params=["trade socket", "rest"])
def client(request: pytest.FixtureRequest, venue: Served) -> Iterator[Client]:
    number = 0 if request.param == "rest" else 1
    with connected(venue, trade=request.param == "trade socket", client=number) as running:
        yield running


def bid(client: Client, away: int = 3000, lots: int = 10, **more: Any) -> Submit:
    """An order to buy that rests far below the market."""
    fields: dict[str, Any] = {"side": 1, "price_ticks": client.touch(1) - away, "qty_lots": lots}
    fields |= {"client_id": f"t-{next(NAMES)}", "symbol": SYMBOL}
    return Submit(**{**fields, **more})


def reported(client: Client, submit: Submit, state: OrderState) -> OrderReport:
    def found() -> OrderReport | None:
        return next(
            (
                one
                for one in reversed(client.evidence)
                if isinstance(one, OrderReport)
                and (one.client_id, one.state) == (submit.client_id, state)
            ),
            None,
        )

    report = client.until(found)
    assert report is not None
    return report


def flatten(client: Client) -> None:
    client.ask(CancelAll(symbol=SYMBOL))
    lots = client.account.position_lots(SYMBOL)
    if lots:
        side = -1 if lots > 0 else 1
        price = client.touch(-side) + side * 300
        close = bid(client, side=side, qty_lots=abs(lots), price_ticks=price, reduce_only=True)
        client.ask(close)
        client.until(lambda: not client.account.position_lots(SYMBOL))


def test_an_order_is_created_amended_found_and_cancelled(client: Client) -> None:
    submit = bid(client, time_in_force=TimeInForce.POST_ONLY)
    (accepted,) = client.ask(submit)
    assert isinstance(accepted, Accepted)
    report = reported(client, submit, OrderState.NEW)
    assert (report.qty_lots, report.price_ticks) == (10, submit.price_ticks)
    assert report.venue_order_id == accepted.venue_order_id
    assert client.ask(Amend(client_id=submit.client_id, qty_lots=12)) == []
    client.until(lambda: reported(client, submit, OrderState.NEW).qty_lots == 12)
    found = client.query(QueryKind.ORDER, client_id=submit.client_id)
    assert found.complete
    (listed,) = found.orders
    assert isinstance(listed, OrderReport)
    assert (listed.state, listed.qty_lots) == (OrderState.NEW, 12)
    assert submit.client_id in {o.client_id for o in client.query(QueryKind.OPEN_ORDERS).orders}
    assert client.ask(Cancel(client_id=submit.client_id)) == []
    ended = reported(client, submit, OrderState.CANCELLED)
    assert ended.reason == "EC_PerCancelRequest CancelByUser"
    (late,) = client.ask(Cancel(client_id=submit.client_id))
    assert isinstance(late, CancelRejected)
    assert late.gone
    (again,) = client.ask(submit)
    assert isinstance(again, Rejected)
    assert again.duplicate


def test_a_fill_arms_its_stop_and_a_stop_is_moved_and_removed(client: Client) -> None:
    touch = client.touch(1)
    submit = bid(
        client,
        price_ticks=touch + 300,
        time_in_force=TimeInForce.IOC,
        stop_ticks=touch - 5000,
    )
    since_ns = client.clock() - 60_000_000_000
    client.ask(submit)
    reported(client, submit, OrderState.FILLED)

    def position() -> PositionReport:
        (report,) = client.query(QueryKind.POSITION).reports
        assert isinstance(report, PositionReport)
        return report

    assert (position().lots, position().stop_ticks) == (10, touch - 5000)
    for ticks in (touch - 4000, touch - 4000, 0):  # the second changes nothing, which is no refusal
        assert client.ask(SetStop(symbol=SYMBOL, stop_ticks=ticks)) == []
        assert position().stop_ticks == ticks
    found = client.query(QueryKind.ORDER, client_id=submit.client_id)
    executed = [one for one in found.orders if isinstance(one, Filled)]
    streamed = {one.exec_id for one in client.evidence if isinstance(one, Filled)}
    assert sum(one.qty_lots for one in executed) == 10
    assert {one.exec_id for one in executed} <= streamed
    since = client.query(QueryKind.EXECUTIONS, since_ns=since_ns)
    assert {one.exec_id for one in executed} <= {getattr(o, "exec_id", "") for o in since.orders}
    flatten(client)


def test_every_query_is_complete_and_dated_by_the_venue(client: Client) -> None:
    expected = {
        QueryKind.WALLET: WalletReport,
        QueryKind.ACCOUNT: AccountReport,
        QueryKind.INSTRUMENT: InstrumentReport,
        QueryKind.FEES: FeeReport,
    }
    for kind, report in expected.items():
        before_ns = client.venue.run(lambda exchange: exchange.now_ns)
        result = client.query(kind)
        assert result.complete, result.reason
        assert {type(one) for one in result.reports} == {report}
        assert before_ns - 1_000_000 <= result.venue_ns <= client.clock()


def test_unknown_symbols_are_refused_without_a_guess(client: Client) -> None:
    assert not client.query(QueryKind.INSTRUMENT, "NOPEUSDT").complete
    (refused,) = client.ask(bid(client, symbol="NOPEUSDT"))
    assert isinstance(refused, Rejected)
    assert refused.reason == "10001 not sent: symbol 'NOPEUSDT' has no instrument here"
    (unwritten,) = client.ask(Cancel(client_id="t-0"), symbol="")
    assert isinstance(unwritten, CancelRejected)


def test_cancel_all_leaves_the_stop(client: Client) -> None:
    touch = client.touch(1)
    entry = bid(
        client, price_ticks=touch + 300, time_in_force=TimeInForce.IOC, stop_ticks=touch - 5000
    )
    client.ask(entry)
    reported(client, entry, OrderState.FILLED)
    resting = bid(client)
    client.ask(resting)
    assert client.ask(CancelAll(symbol=SYMBOL)) == []
    reported(client, resting, OrderState.CANCELLED)
    (position,) = client.query(QueryKind.POSITION).reports
    assert isinstance(position, PositionReport)
    assert position.stop_ticks == touch - 5000
    flatten(client)


@pytest.mark.parametrize("kind", ["cut_after", "answer_lost"])
def test_a_lost_answer_expires_and_the_order_is_found_by_its_id(client: Client, kind: str) -> None:
    submit = bid(client)
    client.fault(kind, "order/create")
    expired = client.ended(client.send(submit, answer_s=1.5))
    assert isinstance(expired, Expired)
    reported(client, submit, OrderState.NEW)  # the private stream says what the answer did not
    found = client.query(QueryKind.ORDER, client_id=submit.client_id)
    assert found.complete
    assert [o.client_id for o in found.orders] == [submit.client_id]
    client.ask(Cancel(client_id=submit.client_id))


def test_a_request_that_never_arrived_is_proven_absent(client: Client) -> None:
    submit = bid(client)
    client.fault("cut_before", "order/create")
    assert isinstance(client.ended(client.send(submit, answer_s=1.5)), Expired)
    found = client.query(QueryKind.ORDER, client_id=submit.client_id)
    assert (found.complete, found.orders) == (True, ())


REQUEST_FAULTS = [name for name, kind in KINDS.items() if kind.place == "request"]


@pytest.mark.parametrize("kind", REQUEST_FAULTS)
def test_whatever_happens_to_a_request_nothing_untrue_is_said(client: Client, kind: str) -> None:
    submit = bid(client)
    client.fault(kind, "order/create")
    client.ended(client.send(submit, answer_s=1.5))
    own = [one for one in client.evidence if getattr(one, "client_id", "") == submit.client_id]
    client.until(lambda: not client.venue.sandbox.faults.pending, 5.0)
    taken = submit.client_id in client.account.by_link_id
    assert not (taken and any(isinstance(one, Rejected) for one in own))
    assert taken or not any(isinstance(one, Accepted) for one in own)
    if kind == "banned":
        client.until(lambda: client.query(QueryKind.WALLET).complete)  # the silence ends
    found = client.query(QueryKind.ORDER, client_id=submit.client_id)
    assert found.complete
    assert [one.client_id for one in found.orders] == [submit.client_id] * taken
    if taken:
        client.ask(Cancel(client_id=submit.client_id))


def test_a_late_answer_follows_the_expiry(client: Client) -> None:
    submit = bid(client)
    client.fault("answer_late", "order/create", ms=1500)
    number = client.send(submit, answer_s=0.5)
    assert isinstance(client.ended(number), Expired)
    client.until(
        lambda: [1 for _, one in client.inputs if isinstance(one, Answer) and one.request == number]
    )
    accepted = [
        one
        for one in client.evidence
        if isinstance(one, Accepted) and one.client_id == submit.client_id
    ]
    assert len(accepted) == 1
    client.ask(Cancel(client_id=submit.client_id))


def test_a_request_past_its_deadline_is_not_sent(client: Client) -> None:
    submit = bid(client)
    ended = client.ended(client.send(submit, answer_s=-1.0))
    found = client.query(QueryKind.ORDER, client_id=submit.client_id)
    assert (found.complete, found.orders) == (True, ())
    assert isinstance(ended, Answer | Expired)


def test_nothing_leaves_while_another_may_trade_the_account(client: Client) -> None:
    submit = bid(client)
    client.connections.may_send = lambda: False
    (rejected,) = client.ask(submit)
    client.connections.may_send = lambda: True
    assert isinstance(rejected, Rejected)
    found = client.query(QueryKind.ORDER, client_id=submit.client_id)
    assert (found.complete, found.orders) == (True, ())


def test_what_waits_for_a_caller_until_after_its_deadline_does_not_leave(venue: Served) -> None:
    with connected(venue, trade=False, client=2) as client:
        held = threading.Event()
        for _ in range(_CALLERS):  # the venue's REST hangs
            client.connections._callers.submit(held.wait, 20)
        submit = bid(client)
        number = client.send(submit, answer_s=0.3)
        assert isinstance(client.ended(number), Expired)
        held.set()
        client.until(lambda: [one for one in client.evidence if isinstance(one, Rejected)])
        found = client.query(QueryKind.ORDER, client_id=submit.client_id)
        assert (found.complete, found.orders) == (True, ())


def test_a_refusal_that_passes_names_itself(client: Client) -> None:
    for kind, code in (("rate_limited", 10006), ("overloaded", 429)):
        client.fault(kind, "position/trading-stop")
        (refused,) = client.ask(SetStop(symbol=SYMBOL, stop_ticks=1))
        assert isinstance(refused, Refused)
        assert (refused.code, refused.retry) == (code, True)


def test_requests_wait_for_their_turn_and_none_is_refused_for_its_rate(client: Client) -> None:
    orders = [bid(client, lots=1) for _ in range(25)]
    numbers = [client.send(order, answer_s=60.0) for order in orders]
    for number in numbers:
        assert isinstance(client.ended(number), Answer)
    ids = {order.client_id for order in orders}
    client.until(lambda: ids <= {e.client_id for e in client.evidence if isinstance(e, Accepted)})
    client.ask(CancelAll(symbol=SYMBOL))
    for number in [client.send(bid(client), answer_s=0.3) for _ in range(25)]:
        client.ended(number)
    # No request leaves after its deadline; of a loop that is late, the expiry is heard first.
    client.until(
        lambda: [
            given
            for _, given in client.inputs
            if isinstance(given, Answer) and b"not sent: its turn" in given.body
        ]
    )
    flatten(client)


# -- connections -----------------------------------------------------------------------------------


def links(client: Client, stream: str) -> list[bool]:
    return [one.up for _, one in client.inputs if isinstance(one, Link) and one.stream == stream]


@pytest.mark.parametrize("stream", ["private", "trade"])
def test_a_lost_socket_is_replaced_and_both_are_said(venue: Served, stream: str) -> None:
    with connected(venue, client=2) as client:
        client.until(lambda: links(client, "private") and links(client, "trade"))

        def cut(_: Any) -> None:
            for connection in venue.sandbox.venue.endpoints[f"/v5/{stream}"].connections:
                if connection.client is client.account:
                    connection.end(orderly=False)

        venue.run(cut)
        client.until(lambda: links(client, stream) == [True, False, True])
        submit = bid(client)
        client.ask(submit)
        reported(client, submit, OrderState.NEW)
        client.ask(Cancel(client_id=submit.client_id))


def test_orders_go_by_rest_while_the_trade_socket_is_down(venue: Served) -> None:
    with connected(venue, client=3) as client:
        trade = client.connections._trade
        assert trade is not None
        trade.socket = None
        submit = bid(client)
        (accepted,) = client.ask(submit)
        assert isinstance(accepted, Accepted)
        client.ask(Cancel(client_id=submit.client_id))


def test_the_clocks_skew_is_measured_and_handed_over(venue: Served) -> None:
    with connected(venue, client=3) as client:
        facts = client.until(lambda: [g for _, g in client.inputs if isinstance(g, Command)])
        (skew,) = facts[0].limits.values()
        assert facts[0].command == "fact"
        assert list(facts[0].limits) == ["clock_skew_s"]
        assert 0 <= skew < 1


def test_key_and_secret_are_in_nothing_that_is_handed_over(venue: Served) -> None:
    with connected(venue, client=3, keys={}) as client:
        submit = bid(client)
        client.ask(submit)
        client.query(QueryKind.ACCOUNT)
        client.ask(Cancel(client_id=submit.client_id))
        frames = [g.frame for _, g in client.inputs if isinstance(g, PrivateFrame)]
        bodies = [g.body for _, g in client.inputs if isinstance(g, Answer)]
        key, secret = client.account.key.encode(), client.account.secret.encode()
        assert frames
        assert bodies
        assert not any(key in text or secret in text for text in frames + bodies)


# -- what keeps it from starting -------------------------------------------------------------------


def no_start(client: Client) -> str:
    """The one line of a start that is refused; nothing was sent."""
    orders = len(client.account.by_link_id)
    with pytest.raises(BybitError) as error:
        client.connections.start(60.0)
    assert len(client.account.by_link_id) == orders
    assert client.account.key not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("keys", [{"key": "nobody"}, {"secret": "wrong"}])
def test_wrong_keys_are_one_clear_line(venue: Served, keys: dict[str, str]) -> None:
    line = no_start(Client(venue, client=4, keys=keys))
    assert "auth refused" in line
    assert "check that L2_API_KEY and L2_API_SECRET are keys of sandbox" in line


def test_a_clock_that_is_off_is_one_clear_line(venue: Served) -> None:
    client = Client(venue, client=4)
    client.fault("clock", ms=-6000)
    try:
        line = no_start(client)
    finally:
        venue.run(lambda _: venue.sandbox.faults.clear())
    assert line.startswith("the clock of this machine is 6.0 s ahead of the venue's")
    assert line.endswith("set it (NTP), or every request is refused")


@pytest.mark.parametrize("kind", ["cut_before", "rate_limited", "overloaded"])
def test_a_start_asks_again_where_no_answer_came_or_the_refusal_passes(
    venue: Served, kind: str
) -> None:
    client = Client(venue, client=4)
    client.fault(kind, "account/info", times=5)
    client.connections.start()
    client.connections.stop(0.0)
    assert not venue.sandbox.faults.pending


def test_an_address_where_nobody_serves_is_one_clear_line(venue: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # closed again below
    nowhere = venue._replace(description={**venue.description, "rest": f"http://127.0.0.1:{port}"})
    line = no_start(Client(nowhere, client=4))
    assert "no answer" in line


@pytest.mark.parametrize("name", sorted(VENUES))
def test_nothing_but_loopback_can_be_reached_from_a_test(name: str) -> None:
    connections = Connections(
        VENUES[name], Keys("k", "s"), BybitCodec({}), lambda ns, given: None, Live()
    )
    with pytest.raises(BybitError, match="no answer"):
        connections.start(60.0)
    with pytest.raises(OSError, match="tests reach loopback only"):
        socket.create_connection(("192.0.2.1", 443), timeout=1.0)


# -- disconnect-cancel-all ------------------------------------------------------------------------


def test_what_rests_is_cancelled_once_the_worker_is_away_where_that_is_granted(
    venue: Served,
) -> None:
    with connected(venue, client=6, disconnect_cancel_s=3) as client:
        assert client.connections.disconnect_cancels
        entry = bid(client, price_ticks=client.touch(-1) + 300, stop_ticks=client.touch(1) - 5000)
        client.ask(entry)
        reported(client, entry, OrderState.FILLED)
        resting = bid(client)
        client.ask(resting)
        reported(client, resting, OrderState.NEW)
    eventually(lambda: venue.run(lambda exchange: not exchange.clients[6].open))
    with connected(venue, client=6) as client:
        report = client.query(QueryKind.ORDER, client_id=resting.client_id).orders[0]
        assert isinstance(report, OrderReport)
        assert report.reason.endswith("CancelByDCP")
        (position,) = client.query(QueryKind.POSITION).reports
        assert isinstance(position, PositionReport)
        assert (position.lots, position.stop_ticks) == (10, entry.stop_ticks), "it stays protected"
        flatten(client)


def test_a_venue_that_does_not_grant_it_is_traded_all_the_same(venue: Served) -> None:
    client = Client(venue, client=7)
    client.fault("maintenance", "order/disconnected-cancel-all")
    client.connections.start()
    try:
        assert not client.connections.disconnect_cancels
        client.ask(bid(client))
        flatten(client)
    finally:
        client.connections.stop(5.0)


# -- the budget ------------------------------------------------------------------------------------


def test_a_path_has_its_limit_in_any_window_and_follows_the_headers() -> None:
    budget = Budget()
    waits = [budget.take("order/create", 100.0) for _ in range(25)]
    assert waits == [0.0] * 10 + [WINDOW_S] * 10 + [2 * WINDOW_S] * 5
    assert budget.take("order/cancel", 100.0) == 0.0
    headers = {
        "X-Bapi-Limit": "20",
        "X-Bapi-Limit-Status": "0",
        "X-Bapi-Limit-Reset-Timestamp": "1700",
    }
    budget.heard("order/cancel", headers, 100.0, 1000)
    assert budget.take("order/cancel", 100.1) == pytest.approx(0.6)
    assert budget.take("order/amend", 100.0, 0.0) == 0.0
    assert [budget.take("order/cancel", 100.0, 0.1) for _ in range(9)] == [None] * 9  # and no place
    assert budget.take("order/cancel", 100.1) == pytest.approx(0.6)
    budget.close(110.0)
    assert budget.take("order/amend", 104.0) == 6.0
    budget.heard("order/amend", {"X-Bapi-Limit": "x"}, 104.0, 1000)
