"""The venue's recorded frames read to evidence, with values worked out by hand; requests written as the
exchange on loopback reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execution.orders import (
    Accepted,
    Amend,
    Cancel,
    CancelRejected,
    ExecutionType,
    Filled,
    Liquidity,
    Lost,
    OrderReport,
    OrderState,
    OrderType,
    Rejected,
    Submit,
    TimeInForce,
)
from live.bybit.codec import VERDICTS, BybitCodec, Call, Verdict, not_sent, unreadable
from live.messages import (
    AccountReport,
    CancelAll,
    Evidence,
    FeeReport,
    FundingReport,
    InstrumentReport,
    PositionReport,
    Query,
    QueryKind,
    QueryResult,
    Refused,
    RequestBody,
    SetStop,
    WalletReport,
)
from market.instruments import BUILT_IN, Instrument
from market.units import DAY_NS, MS_NS
from proving.sandbox import order_entry
from proving.sandbox.exchange import SandboxExchange
from proving.synthetic.profiles import profile
from tests.conftest import recordings

FOLDER = recordings().parent / "bybit"
NOW = 1_800_000_000_000_000_000


def listed(symbol: str, tick: str, lot: str) -> Instrument:
    return Instrument(symbol=symbol, tick=tick, lot=lot, min_qty=lot, min_notional="5")


#: Finer grids than the built-in ones where a recording of the test network quotes finer.
INSTRUMENTS = {
    "BTCUSDT": listed("BTCUSDT", "0.05", "0.001"),
    "ETHUSDT": listed("ETHUSDT", "0.01", "0.01"),
    "SOLUSDT": listed("SOLUSDT", "0.01", "0.1"),
    "XRPUSDT": listed("XRPUSDT", "0.0001", "1"),
    "ESPORTSUSDT": listed("ESPORTSUSDT", "0.00001", "1"),
}


@pytest.fixture(scope="module", autouse=True)
def _recorded() -> None:
    if not FOLDER.is_dir():
        pytest.skip(f"no recorded frames in {FOLDER}")


def frames(kind: str) -> list[bytes]:
    items = json.loads((FOLDER / f"{kind}.json").read_text())["items"]
    return [json.dumps(item["frame"]).encode() for item in items]


def codec() -> BybitCodec:
    return BybitCodec(INSTRUMENTS)


def read(kind: str, place: int) -> list[Evidence]:
    return codec().evidence(NOW, frames(kind)[place])


def ask(query: Query, *bodies: bytes) -> tuple[QueryResult, list[Call]]:
    """The result of a query whose calls are answered by these bodies, and its calls."""
    reader, calls = codec(), []
    conversation = reader.converse(query)
    call = next(conversation)
    for place, body in enumerate(bodies):
        calls.append(call)
        try:
            call = conversation.send(body)
        except StopIteration as ended:
            assert place == len(bodies) - 1, call
            (result,) = reader.answer(NOW, query, ended.value)
            assert isinstance(result, QueryResult)
            return result, calls
    raise AssertionError(f"another call is made: {call}")


def recorded(kind: str, place: int) -> bytes:
    """A recorded answer, in its envelope also where only the result was kept."""
    frame = json.loads(frames(kind)[place])
    if "retCode" not in frame:
        frame = {"retCode": 0, "retMsg": "OK", "result": frame}
    return json.dumps({"time": 1_700_000_000_000, **frame}).encode()


# -- the private stream ----------------------------------------------------------------------------


def order(**fields: Any) -> OrderReport:
    known = {"time_ns": NOW, "side": 1, "filled_lots": 0, "client_id": ""}
    return OrderReport(**{**known, **fields})


ORDERS = [
    order(
        client_id="VQAC6QMAAQAARFkvRM9C",
        venue_ns=1682917170026 * MS_NS,
        venue_order_id="af6512ea-74b0-4ac5-959a-9a52d4208b08",
        symbol="BTCUSDT",
        state=OrderState.NEW,
        price_ticks=553468,  # 27673.40 / 0.05
        qty_lots=1,
    ),
    Refused(reason="order: category 'option' of ETH-30DEC22-1400-C"),
    order(
        venue_ns=1727433749095 * MS_NS,
        venue_order_id="f38c5e38-46ef-4a8a-b115-fd3392d4f144",
        symbol="SOLUSDT",
        state=OrderState.CANCELLED,
        price_ticks=9900,
        qty_lots=1,
        reason="EC_PerCancelRequest CancelByUser",
    ),
    order(
        client_id="1763090785843843",
        venue_ns=1763095434846 * MS_NS,
        venue_order_id="8e91f790-0d27-4c26-92ec-d3467da90d07",
        symbol="ESPORTSUSDT",
        side=-1,
        state=OrderState.FILLED,
        price_ticks=33656,
        qty_lots=34,
        filled_lots=34,
    ),
    order(
        client_id="1708249213491",
        venue_ns=1708249213758 * MS_NS,
        venue_order_id="b49d6860-3062-4295-aa1f-c6471f3c9b20",
        symbol="BTCUSDT",
        side=-1,
        state=OrderState.FILLED,
        price_ticks=985152,  # the bound 49257.6 / 0.05
        qty_lots=3,
        filled_lots=3,
    ),
    order(
        venue_ns=1737725795596 * MS_NS,
        venue_order_id="e09b7733-3df0-4684-b866-f5a802fb7ee2",
        symbol="XRPUSDT",
        state=OrderState.NEW,
        price_ticks=25293,
        qty_lots=10,
    ),
]


@pytest.mark.parametrize("place", range(len(ORDERS)))
def test_recorded_orders_are_reports(place: int) -> None:
    assert read("ws_private_order", place) == [ORDERS[place]]
    assert len(frames("ws_private_order")) == len(ORDERS)


def fill(**fields: Any) -> Filled:
    known = {"time_ns": NOW, "client_id": "", "liquidity": Liquidity.TAKER, "leaves_lots": 0}
    return Filled(**{**known, **fields})


XRP = {
    "venue_ns": 1737725902941 * MS_NS,
    "symbol": "XRPUSDT",
    "side": 1,
    "venue_order_id": "c7cffe92-d5e1-403a-9e8b-3cb3508f7dcc",
}
FILLS = [
    [
        fill(
            client_id="nQAC6QMAAQAAnUSX79BC",
            venue_ns=1682924344203 * MS_NS,
            exec_id="a3333bcf-4d02-55f1-a9d2-08a5149064f4",
            symbol="BTCUSDT",
            side=1,
            qty_lots=1,
            price_ticks=571354,  # 28567.70 / 0.05
            fee_e8=1_714_062,
            venue_order_id="787dcaf8-84b4-44b7-b57c-71bdf1bd5420",
        )
    ],
    [
        fill(
            venue_ns=1746270400353 * MS_NS,
            exec_id="0ab1bdf7-4219-438b-b30a-32ec863018f7",
            symbol="BTCUSDT",
            side=-1,
            qty_lots=500,
            price_ticks=1_918_002,  # 95900.1 / 0.05
            # 26.3725275 and a tax of 0.006403779 make 26.378931279; rounded up at 1e-8
            fee_e8=2_637_893_128,
            venue_order_id="9aac161b-8ed6-450d-9cab-c5cc67c21784",
        )
    ],
    [
        fill(
            client_id="1708249213491",
            venue_ns=1708249213755 * MS_NS,
            exec_id="8262dbfa-5434-51ed-8458-3b97d3d49b3a",
            symbol="BTCUSDT",
            side=-1,
            qty_lots=3,
            price_ticks=1_037_000,
            fee_e8=8_555_250,
            venue_order_id="b49d6860-3062-4295-aa1f-c6471f3c9b20",
        )
    ],
    [
        fill(
            exec_id="ba509918-9526-5485-acbf-9dc2af25ae1e",
            qty_lots=1,
            price_ticks=31424,
            fee_e8=125_696,
            leaves_lots=9,
            **XRP,
        ),
        fill(
            exec_id="d382f1b7-fb96-5721-87da-ee475174bc19",
            qty_lots=9,
            price_ticks=31427,
            fee_e8=1_131_372,
            **XRP,
        ),
    ],
]


@pytest.mark.parametrize("place", range(len(FILLS)))
def test_recorded_executions_are_fills(place: int) -> None:
    assert read("ws_private_execution", place) == FILLS[place]
    assert len(frames("ws_private_execution")) == len(FILLS)


@pytest.mark.parametrize("place", range(3))
def test_fast_executions_which_lack_the_fee_are_no_fills(place: int) -> None:
    (refused,) = read("ws_private_execution_fast", place)
    assert isinstance(refused, Refused)


POSITIONS = [
    PositionReport(
        symbol="BTCUSDT",
        lots=2,
        entry_e8=3_268_525_000_000,
        liquidation_ticks=2.0,  # 0.10 / 0.05
        leverage="10",
        venue_ns=1682919303679 * MS_NS,
    ),
    PositionReport(symbol="BTCUSDT", lots=0, leverage="10", venue_ns=1683003561818 * MS_NS),
    PositionReport(
        symbol="ETHUSDT",
        lots=-1,
        entry_e8=364_107_500_000,
        liquidation_ticks=5176483.003276,
        leverage="30",
        venue_ns=1762199125472 * MS_NS,
    ),
    PositionReport(
        symbol="BTCUSDT",
        lots=100,
        entry_e8=2_303_290_000_000,
        leverage="10",
        venue_ns=1677331636515 * MS_NS,
    ),
    PositionReport(
        symbol="BTCUSDT", lots=0, hedged=True, leverage="10", venue_ns=1697682317038 * MS_NS
    ),
    PositionReport(
        symbol="XRPUSDT",
        lots=4,
        entry_e8=278_620_000,
        leverage="10",
        venue_ns=1737705600059 * MS_NS,
    ),
]


@pytest.mark.parametrize("place", range(len(POSITIONS)))
def test_recorded_positions(place: int) -> None:
    assert read("ws_private_position", place) == [POSITIONS[place]]
    assert len(frames("ws_private_position")) == len(POSITIONS)


def test_recorded_wallets_state_the_settlement_coin() -> None:
    assert read("ws_private_wallet", 0) == []  # it lists bitcoin only
    assert read("ws_private_wallet", 1) == [
        WalletReport(
            equity_e8=-62_053_813_709,
            balance_e8=-62_053_813_709,
            initial_margin_rate=0.0046,
            maintenance_margin_rate=0.0007,
            venue_ns=1677583612673 * MS_NS,
        )
    ]
    assert read("ws_private_wallet", 2) == [
        WalletReport(
            equity_e8=100_144_207_561,
            balance_e8=100_005_007_561,
            initial_margin_rate=0.0043,
            maintenance_margin_rate=0.0003,
            venue_ns=1737725795605 * MS_NS,
        )
    ]


@pytest.mark.parametrize("kind", ["ws_private_auth", "ws_private_pong"])
def test_replies_and_pongs_say_nothing(kind: str) -> None:
    for frame in frames(kind):
        assert codec().evidence(NOW, frame) == []


# -- statuses and types ----------------------------------------------------------------------------


def changed(kind: str, place: int, **fields: Any) -> list[Evidence]:
    """The evidence of a recorded frame with some fields of its row replaced."""
    frame = json.loads(frames(kind)[place])
    frame["data"][0].update(fields)
    return codec().evidence(NOW, json.dumps(frame).encode())


@pytest.mark.parametrize(
    ("status", "state", "is_stop"),
    [
        ("New", OrderState.NEW, False),
        ("PartiallyFilled", OrderState.PARTIALLY_FILLED, False),
        ("Untriggered", OrderState.NEW, True),
        ("Triggered", OrderState.NEW, True),
        ("Filled", OrderState.FILLED, False),
        ("Cancelled", OrderState.CANCELLED, False),
        ("PartiallyFilledCanceled", OrderState.CANCELLED, False),
        ("Deactivated", OrderState.CANCELLED, True),
        ("Rejected", OrderState.REJECTED, False),
    ],
)
def test_every_status_of_an_order_has_a_state(
    status: str, state: OrderState, is_stop: bool
) -> None:
    (report,) = changed("ws_private_order", 0, orderStatus=status)
    assert isinstance(report, OrderReport)
    assert (report.state, report.is_stop) == (state, is_stop)


def test_a_status_that_is_not_documented_is_refused() -> None:
    assert changed("ws_private_order", 0, orderStatus="Sleeping") == [
        Refused(reason="order: orderStatus 'Sleeping'")
    ]


@pytest.mark.parametrize(
    ("kind", "execution"),
    [
        ("Trade", ExecutionType.TRADE),
        ("BustTrade", ExecutionType.LIQUIDATION),
        ("AdlTrade", ExecutionType.DELEVERAGING),
        ("Settle", ExecutionType.SETTLEMENT),
        ("Delivery", ExecutionType.UNKNOWN),
        ("BlockTrade", ExecutionType.UNKNOWN),
        ("MovePosition", ExecutionType.UNKNOWN),
        ("FutureSpread", ExecutionType.UNKNOWN),
        ("CorporateAction", ExecutionType.UNKNOWN),
    ],
)
def test_executions_of_every_type_move_the_position(kind: str, execution: ExecutionType) -> None:
    (filled,) = changed("ws_private_execution", 0, execType=kind)
    assert isinstance(filled, Filled)
    assert filled.execution is execution


def test_a_fee_in_another_coin_is_reported_and_the_fill_counts() -> None:
    filled, refused = changed("ws_private_execution", 0, feeCurrency="MNT")
    assert isinstance(filled, Filled)
    assert (filled.qty_lots, filled.fee_e8) == (1, 0)
    assert refused == Refused(reason="BTCUSDT: a fee of 0.01714062 MNT is not counted")


@pytest.mark.parametrize(
    "fields",
    [
        {"price": "27673.42"},
        {"qty": "0.0005"},
        {"qty": "-0.001"},
        {"price": "NaN"},
        {"price": "1e3"},
        {"price": 27673.4},
        {"side": "None"},
        {"symbol": "DOGEUSDT"},
        {"category": "inverse"},
        {"updatedTime": "yesterday"},
        {"updatedTime": "²"},
    ],
)
def test_what_is_off_the_grid_or_not_documented_is_refused(fields: dict[str, Any]) -> None:
    (refused,) = changed("ws_private_order", 0, **fields)
    assert isinstance(refused, Refused)


@pytest.mark.parametrize(
    "frame",
    [
        *(b"", b"\xff", b"null", b"[]", b"{}", b'{"topic":"order"}', b'{"topic":5,"data":[]}'),
        *(b'{"topic":"order","creationTime":1,"data":[5]}', b"[" * 100_000),
    ],
)
def test_a_frame_that_cannot_be_read_is_refused(frame: bytes) -> None:
    (refused,) = codec().evidence(NOW, frame)
    assert isinstance(refused, Refused)


@given(st.binary(max_size=60) | st.recursive(st.none(), st.lists).map(lambda x: repr(x).encode()))
def test_no_frame_and_no_answer_raises(frame: bytes) -> None:
    reader = codec()
    assert isinstance(reader.evidence(NOW, frame), list)
    for request in (Cancel(client_id="a"), SetStop(symbol="BTCUSDT", stop_ticks=1)):
        assert len(reader.answer(NOW, request, frame)) == 1
    (result,) = reader.answer(NOW, Query(kind=QueryKind.WALLET), frame)
    assert isinstance(result, QueryResult)
    assert not result.complete


# -- answers ---------------------------------------------------------------------------------------

SUBMIT = Submit(client_id="a", symbol="BTCUSDT", side=1, qty_lots=1, price_ticks=100)


def answered(request: RequestBody, body: bytes) -> list[Evidence]:
    return codec().answer(NOW, request, body)


def test_recorded_answers_of_the_trade_socket() -> None:
    bodies = frames("ws_trade")
    cancel, amend = Cancel(client_id="a"), Amend(client_id="a", qty_lots=2)
    assert answered(SUBMIT, bodies[1]) == [
        Accepted(
            client_id="a",
            time_ns=NOW,
            venue_ns=1764401421683 * MS_NS,
            venue_order_id="15141634-9867-4d9f-9159-ba37ae9b5fca",
        )
    ]
    assert answered(SUBMIT, bodies[2]) == [
        Rejected(
            client_id="a",
            time_ns=NOW,
            venue_ns=1764403934982 * MS_NS,
            reason="110003 price is invalid",
        )
    ]
    assert answered(amend, bodies[3]) == []
    assert answered(amend, bodies[4]) == [
        CancelRejected(
            client_id="a",
            time_ns=NOW,
            venue_ns=1764403866842 * MS_NS,
            reason="110001 order not exists or too late to replace",
            gone=True,
        )
    ]
    assert answered(cancel, bodies[5]) == []
    assert answered(cancel, bodies[6]) == [
        CancelRejected(
            client_id="a",
            time_ns=NOW,
            venue_ns=1764403799483 * MS_NS,
            reason="110001 order not exists or too late to cancel",
            gone=True,
        )
    ]
    (refused,) = answered(SUBMIT, bodies[7])
    assert isinstance(refused, Rejected)
    assert refused.reason == "170131 Insufficient balance."


def test_recorded_acknowledgements_over_rest() -> None:
    bodies = frames("rest_order_ack")
    assert answered(SUBMIT, bodies[0]) == [
        Accepted(
            client_id="a",
            time_ns=NOW,
            venue_ns=1682857519260 * MS_NS,
            venue_order_id="1410305521329702656",
        )
    ]
    assert answered(Cancel(client_id="a"), bodies[1]) == []
    assert answered(CancelAll(symbol="BTCUSDT"), bodies[2]) == []
    assert answered(CancelAll(symbol="BTCUSDT"), bodies[3]) == []
    assert answered(Amend(client_id="a", qty_lots=2), bodies[4]) == []
    (accepted,) = answered(SUBMIT, bodies[5])
    assert isinstance(accepted, Accepted)
    assert accepted.venue_order_id == "44ce1d85-3458-4ec3-af76-41a4cf80c9b3"


def test_recorded_errors_are_refusals_but_of_what_holds_already() -> None:
    for body in frames("rest_errors"):
        code = json.loads(body)["retCode"]
        evidence = answered(SetStop(symbol="BTCUSDT", stop_ticks=1), body)
        if code == 110043:
            assert evidence == []
        else:
            (refused,) = evidence
            assert isinstance(refused, Refused)
            assert (refused.code, refused.retry) == (code, False)


def outcome(verdict: Verdict, request: RequestBody) -> set[str]:
    """The kinds of evidence, with their flags, of every code of a verdict."""
    found = set()
    for code in (code for code, its in VERDICTS.items() if its is verdict and code != 110079):
        for one in answered(request, json.dumps({"retCode": code, "retMsg": "why"}).encode()):
            flags = [f for f in ("duplicate", "gone", "retry") if getattr(one, f, False)]
            found.add(" ".join([type(one).__name__, *flags]))
    return found


@pytest.mark.parametrize(
    ("verdict", "submit", "cancel", "stop"),
    [
        (Verdict.DONE, "Accepted", "", ""),
        (Verdict.UNCHANGED, "Lost", "", ""),
        (Verdict.REFUSED, "Rejected", "CancelRejected", "Refused"),
        (Verdict.LATER, "Rejected", "CancelRejected", "Refused retry"),
        (Verdict.DUPLICATE, "Rejected duplicate", "Lost", "Refused"),
        (Verdict.GONE, "Lost", "CancelRejected gone", "Refused"),
        (Verdict.UNKNOWN, "Lost", "Lost", "Refused retry"),
    ],
)
def test_each_return_code_is_evidence_by_its_verdict(
    verdict: Verdict, submit: str, cancel: str, stop: str
) -> None:
    assert outcome(verdict, SUBMIT) == {submit}
    for request in (Cancel(client_id="a"), Amend(client_id="a", qty_lots=2)):
        assert outcome(verdict, request) == ({cancel} if cancel else set())
    for other in (SetStop(symbol="BTCUSDT", stop_ticks=1), CancelAll(symbol="BTCUSDT")):
        assert outcome(verdict, other) == ({stop} if stop else set())


@pytest.mark.parametrize(
    "body",
    [
        b'{"retCode":424242,"retMsg":"a code of next year"}',
        b'{"retCode":110079,"retMsg":"order is being processed"}',
        unreadable(502, b"<html>Bad Gateway</html>"),
        b'{"retCode":true}',
        b"<html>",
    ],
)
def test_an_answer_whose_meaning_is_not_known_leaves_an_order_unknown(body: bytes) -> None:
    (lost,) = answered(SUBMIT, body)
    assert isinstance(lost, Lost)


def test_http_refusals_and_requests_that_never_left_are_refusals() -> None:
    for body in (unreadable(403, b"<html>"), unreadable(429, b""), not_sent("no lot")):
        (rejected,) = answered(SUBMIT, body)
        assert isinstance(rejected, Rejected)
        assert not rejected.duplicate


# -- queries ---------------------------------------------------------------------------------------


def test_an_order_is_looked_for_where_it_can_be_and_then_in_its_executions() -> None:
    query = Query(kind=QueryKind.ORDER, symbol="BTCUSDT", client_id="YLxaWKMiHU")
    nothing = recorded("rest_order_realtime", 1)
    history = recorded("rest_order_history", 0)
    executions = recorded("rest_execution_list", 2)
    result, calls = ask(query, nothing, history, executions)
    assert [call.path for call in calls] == ["order/realtime", "order/history", "execution/list"]
    assert all(call.params["orderLinkId"] == "YLxaWKMiHU" for call in calls)
    assert result.complete
    assert result.venue_ns == 1682689733889 * MS_NS  # of the first call
    assert result.orders == (
        fill(
            venue_ns=1684314652233 * MS_NS,
            exec_id="63efa380-bdb4-5b1c-83d3-937ca3938000",
            symbol="BTCUSDT",
            side=-1,
            qty_lots=10,
            price_ticks=536336,
            fee_e8=16_090_080,
            venue_order_id="7babd487-21bb-4148-9cb2-3921134cb52b",
        ),
        order(
            client_id="YLxaWKMiHU",
            venue_ns=1684476068372 * MS_NS,
            venue_order_id="14bad3a1-6454-43d8-bcf2-5345896cf74d",
            symbol="BTCUSDT",
            state=OrderState.CANCELLED,
            price_ticks=537288,
            qty_lots=3,
            reason="EC_PostOnlyWillTakeLiquidity",
        ),
    )


def test_an_open_order_is_not_looked_for_in_the_history() -> None:
    query = Query(kind=QueryKind.ORDER, symbol="BTCUSDT", client_id="VQAC6QMAAQAARFkvRM9C")
    result, calls = ask(
        query, recorded("rest_order_realtime", 0), recorded("rest_order_realtime", 1)
    )
    assert [call.path for call in calls] == ["order/realtime", "execution/list"]
    (report,) = result.orders
    assert report.client_id == query.client_id


def test_absence_is_proof_only_while_the_venue_lists_ended_orders() -> None:
    nothing = recorded("rest_order_realtime", 1)
    at = 1682689733889 * MS_NS
    for age_ns, complete in ((DAY_NS, True), (DAY_NS + MS_NS, False)):
        query = Query(kind=QueryKind.ORDER, client_id="a", since_ns=at - age_ns)
        result, _ = ask(query, nothing, nothing, nothing)
        assert (result.complete, result.orders) == (complete, ())


def test_recorded_open_orders_and_a_last_page_that_names_a_next_one() -> None:
    result, calls = ask(
        Query(kind=QueryKind.OPEN_ORDERS, symbol="BTCUSDT"), recorded("rest_order_realtime", 0)
    )
    assert result.complete
    assert result.orders == (ORDERS[0],)
    assert calls[0].params == {"category": "linear", "symbol": "BTCUSDT", "limit": "50"}


def rows_of(first: int, count: int, cursor: str, at_ms: int = 2_000_000_000_000) -> bytes:
    row = json.loads(frames("rest_execution_list")[2])["list"][0]
    rows = [
        {**row, "execId": str(n), "execTime": str(at_ms - n)} for n in range(first, first + count)
    ]
    result = {"list": rows, "nextPageCursor": cursor}
    return json.dumps({"retCode": 0, "retMsg": "", "result": result, "time": at_ms}).encode()


def test_pages_are_read_to_the_last_and_rows_that_shift_between_them_once() -> None:
    query = Query(kind=QueryKind.EXECUTIONS, symbol="BTCUSDT")
    result, calls = ask(
        query, rows_of(0, 100, "next%3A"), rows_of(99, 100, "last"), rows_of(199, 1, "x")
    )
    assert [call.params.get("cursor") for call in calls] == [None, "next%3A", "last"]
    assert [getattr(one, "exec_id", "") for one in result.orders] == [
        str(n) for n in reversed(range(200))
    ]
    assert result.complete


def test_executions_of_longer_than_a_week_are_asked_for_by_weeks() -> None:
    since_ms = 2_000_000_000_000 - 15 * 86_400_000
    query = Query(kind=QueryKind.EXECUTIONS, since_ns=since_ms * MS_NS)
    result, calls = ask(query, *[rows_of(0, 0, "")] * 3)
    week = 7 * 86_400_000
    assert [(int(c.params["startTime"]), int(c.params["endTime"])) for c in calls] == [
        (since_ms + n * week, since_ms + (n + 1) * week) for n in range(3)
    ]
    assert result.complete


def test_a_page_that_is_refused_or_cannot_be_read_makes_the_result_incomplete() -> None:
    query = Query(kind=QueryKind.EXECUTIONS, symbol="BTCUSDT")
    limited = b'{"retCode":10006,"retMsg":"Too many visits!","time":5}'
    result, _ = ask(query, rows_of(0, 100, "next"), limited)
    assert (result.complete, len(result.orders)) == (False, 100)
    assert result.reason == "execution/list: 10006 Too many visits!"
    assert result.reports == (Refused(reason=result.reason, code=10006, retry=True),)
    result, _ = ask(query, b"<html>")
    assert (result.complete, result.orders) == (False, ())


def test_recorded_funding_is_a_report_and_no_fill() -> None:
    result, _ = ask(Query(kind=QueryKind.EXECUTIONS), recorded("rest_execution_list", 0))
    assert result.orders == ()
    assert result.reports == tuple(
        FundingReport(
            exec_id=name, symbol="BTCUSDT", lots=2, mark_e8=mark, paid_e8=paid, venue_ns=at * MS_NS
        )
        for name, mark, paid, at in [
            ("dfad755a-6776-44a4-a654-21f3f0687e2d", 2_913_360_000_000, 5_848_746, 1682611200000),
            ("c140901a-2a06-4f3b-bd40-3db229e95c7b", 2_947_410_000_000, -6_101_433, 1682640000000),
            ("7eeb8e40-fde4-4be1-9fa1-191081c49d8e", 2_947_642_000_000, 4_486_547, 1682668800000),
        ]
    )
    result, _ = ask(Query(kind=QueryKind.EXECUTIONS), recorded("rest_execution_list", 1))
    (funding,) = result.reports
    assert isinstance(funding, FundingReport)
    assert (funding.lots, funding.paid_e8) == (8, 196_873)


def test_recorded_positions_of_queries() -> None:
    query = Query(kind=QueryKind.POSITION, symbol="BTCUSDT")
    result, calls = ask(query, recorded("rest_position_list", 0))
    assert calls[0].params == {"category": "linear", "symbol": "BTCUSDT", "limit": "200"}
    assert result.reports == (
        PositionReport(
            symbol="BTCUSDT",
            lots=2,
            entry_e8=3_268_525_000_000,
            liquidation_ticks=2.0,
            leverage="10",
            venue_ns=1682668800070 * MS_NS,
        ),
    )
    result, _ = ask(query, recorded("rest_position_list", 1))
    assert result.reports == (
        PositionReport(symbol="BTCUSDT", lots=0, leverage="1", venue_ns=1691735404177 * MS_NS),
    )


def test_recorded_balances_of_queries() -> None:
    query = Query(kind=QueryKind.WALLET)
    result, _ = ask(query, recorded("rest_wallet_balance", 0))
    assert result.reports == (
        WalletReport(
            equity_e8=1_823_730_054_219,
            balance_e8=1_805_496_604_219,
            initial_margin_rate=0.0001,
            venue_ns=1757053660131 * MS_NS,
        ),
    )
    result, _ = ask(query, recorded("rest_wallet_balance", 1))
    (wallet,) = result.reports
    assert isinstance(wallet, WalletReport)
    assert (wallet.equity_e8, wallet.balance_e8) == (143_961_537_267, 143_961_537_267)


def test_recorded_account_instrument_and_fees() -> None:
    query = Query(kind=QueryKind.ACCOUNT)
    result, calls = ask(query, recorded("rest_account_misc", 7), recorded("rest_account_misc", 1))
    assert [call.path for call in calls] == ["user/query-api", "account/info"]
    assert result.reports == (
        AccountReport(
            account="0",
            unified=True,
            margin_mode="REGULAR_MARGIN",
            can_trade=True,
            can_withdraw=False,
            expires_ns=1_682_229_144 * 1_000_000_000,
            venue_ns=1_700_000_000_000 * MS_NS,
        ),
    )
    result, _ = ask(Query(kind=QueryKind.FEES, symbol="ETHUSDT"), recorded("rest_account_misc", 0))
    assert result.reports == (FeeReport(symbol="ETHUSDT", maker="0.0001", taker="0.0006"),)
    result, _ = ask(
        Query(kind=QueryKind.INSTRUMENT, symbol="BTCUSDT"), recorded("rest_instruments_info", 0)
    )
    assert result.reports == (
        InstrumentReport(
            symbol="BTCUSDT",
            tick="0.10",
            lot="0.001",
            min_qty="0.001",
            min_notional="5",
            max_order_qty="1500.000",
            max_market_qty="150.000",
        ),
    )


# -- requests --------------------------------------------------------------------------------------


def test_an_order_is_written_with_the_venues_own_strings_and_its_stop() -> None:
    reader = BybitCodec(BUILT_IN)
    submit = Submit(
        client_id="p1-3",
        symbol="BTCUSDT",
        side=-1,
        qty_lots=12,
        price_ticks=867_234,
        time_in_force=TimeInForce.POST_ONLY,
        stop_ticks=880_000,
    )
    call = reader.encode(submit)
    assert (call.path, call.is_post, call.operation) == ("order/create", True, "order.create")
    assert call.params == {
        "category": "linear",
        "symbol": "BTCUSDT",
        "side": "Sell",
        "orderType": "Limit",
        "qty": "0.012",
        "price": "86723.4",
        "timeInForce": "PostOnly",
        "positionIdx": 0,
        "orderLinkId": "p1-3",
        "reduceOnly": False,
        "stopLoss": "88000.0",
        "slTriggerBy": "MarkPrice",
        "tpslMode": "Full",
    }


def test_a_market_order_is_a_limit_at_its_bound_and_nothing_without_one() -> None:
    market = Submit(
        client_id="a",
        symbol="BTCUSDT",
        side=1,
        qty_lots=1,
        price_ticks=900_000,
        order_type=OrderType.MARKET,
        reduce_only=True,
        stop_ticks=1,
    )
    params = codec().encode(market).params
    assert (params["orderType"], params["timeInForce"], params["price"]) == (
        "Limit",
        "IOC",
        "45000.00",
    )
    assert "stopLoss" not in params
    unbound = Submit(
        client_id="a", symbol="BTCUSDT", side=1, qty_lots=1, order_type=OrderType.MARKET
    )
    with pytest.raises(ValueError, match="price in ticks"):
        codec().encode(unbound)


def test_the_other_requests() -> None:
    reader = BybitCodec(BUILT_IN)
    of = {"category": "linear", "symbol": "ETHUSDT"}
    amend = Amend(client_id="a", price_ticks=250_001)
    assert reader.encode(amend, "ETHUSDT") == Call(
        "order/amend", True, {**of, "orderLinkId": "a", "price": "2500.01"}
    )
    assert reader.encode(Cancel(client_id="a"), "ETHUSDT") == Call(
        "order/cancel", True, {**of, "orderLinkId": "a"}
    )
    assert reader.encode(CancelAll(symbol="ETHUSDT")) == Call(
        "order/cancel-all", True, {**of, "orderFilter": "Order"}
    )
    stop = {**of, "tpslMode": "Full", "positionIdx": 0, "slTriggerBy": "MarkPrice"}
    for ticks, price in ((250_000, "2500.00"), (0, "0")):
        call = reader.encode(SetStop(symbol="ETHUSDT", stop_ticks=ticks))
        assert call == Call("position/trading-stop", True, {**stop, "stopLoss": price})
        assert call.operation == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"qty_lots": 0},
        {"qty_lots": 0.5},
        {"price_ticks": -5},
        {"price_ticks": 0},
        {"side": 0},
        {"symbol": "NONE"},
        {"client_id": "x" * 37},
        {"client_id": "with space"},
        {"client_id": ""},
    ],
)
def test_a_request_that_cannot_be_written_is_never_sent(wrong: dict[str, Any]) -> None:
    known: dict[str, Any] = {
        "client_id": "a",
        "symbol": "BTCUSDT",
        "side": 1,
        "qty_lots": 1,
        "price_ticks": 100,
    }
    conversation = codec().converse(Submit(**{**known, **wrong}))
    with pytest.raises(ValueError, match=r".+"):
        next(conversation)


@pytest.fixture(scope="module")
def exchange() -> SandboxExchange:
    return SandboxExchange(profile("default"), 11, clients=1)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    number=st.integers(1, 10**9),
    side=st.sampled_from([1, -1]),
    lots=st.integers(1, 3000),
    distance=st.integers(1, 3000),
    force=st.sampled_from([TimeInForce.GTC, TimeInForce.POST_ONLY]),
    stop=st.integers(0, 20_000),
)
def test_the_exchange_on_loopback_reads_the_order_that_was_meant(
    exchange: SandboxExchange,
    number: int,
    side: int,
    lots: int,
    distance: int,
    force: TimeInForce,
    stop: int,
) -> None:
    (client,) = exchange.clients
    tape, reader = exchange.tapes["BTCUSDT"], BybitCodec(BUILT_IN)
    touch = next(iter(tape.books[1].sides[side]))
    ticks = touch - side * distance
    submit = Submit(
        client_id=f"{len(client.by_link_id)}-{number}",
        symbol="BTCUSDT",
        side=side,
        qty_lots=lots,
        price_ticks=ticks,
        time_in_force=force,
        stop_ticks=ticks - side * stop if stop else 0,
    )
    order_entry.create(exchange, client, reader.encode(submit).params)
    taken = client.by_link_id[submit.client_id]
    assert (taken.symbol, taken.side, taken.lots, taken.ticks) == ("BTCUSDT", side, lots, ticks)
    assert (taken.time_in_force, taken.reduce_only) == (force.value, False)
    armed = taken.stops.stop_loss_e8 if taken.stops else None
    assert armed == (submit.stop_ticks * tape.tick_e8 if stop else None)
    assert taken.stops is None or taken.stops.stop_by == "MarkPrice"
    amend = Amend(client_id=submit.client_id, price_ticks=ticks - side, qty_lots=lots + 1)
    order_entry.amend(exchange, client, reader.encode(amend, "BTCUSDT").params)
    assert (taken.lots, taken.ticks) == (lots + 1, ticks - side)
    cancel = Cancel(client_id=submit.client_id)
    order_entry.cancel(exchange, client, reader.encode(cancel, "BTCUSDT").params)
    assert not taken.is_open
