"""Every answer and frame of the sandbox has the shape of the venue's recorded one of its kind.

Every recording has to be requested by an entry of `KINDS` or listed in `NOT_OURS` with the reason.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest
from websockets.sync.client import connect

from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.server import Sandbox
from tests.conftest import recordings
from tests.proving.sandbox_clients import Wire, authentication
from tests.proving.sandbox_server import Served, ask, served
from tests.proving.shapes import Shape, differences

FOLDER: Final = recordings().parent / "bybit"

#: Recordings of what the sandbox does not send, by file or file/name, with the reason.
NOT_OURS: Final = {
    "historical_ob200": "archives",
    "historical_ob500": "archives",
    "historical_trades_csv": "archives",
    "client_pybit": "what clients send",
    "client_rest_ccxt": "what clients send",
    "client_ws_ccxt_pro": "what clients send",
    "derived_btcusdt_risk_tiers_2026": "derived, not recorded",
    "manifest": "an index",
    "rest_order_ack/cancel-all (spot form)": "spot",
    'ws_public_subscribe_ack/spot ack, for contrast: ret_msg is "subscribe"': "spot",
    "ws_public_errors/spot only: more than 10 args in a request": "spot",
    "ws_public_errors/unknown op (older envelope)": "an envelope of the past",
    "ws_private_auth/failure, old envelope": "an envelope of the past",
    "ws_trade/order.create refused, spot (2024-04)": "spot",
    "ws_trade/request order.create": "what clients send",
    "ws_trade/request order.create-batch": "what clients send",
    "ws_trade/reply ping": "what clients send",
    "rest_account_misc/dcp": "abridged by the documentation to code and message",
}


class Kind(NamedTuple):
    """How to get a kind of answer from the sandbox.

    ``removed`` are patterns of recorded paths that the venue no longer has, ``added`` of paths that it
    documents and no recording shows in their present form.
    """

    request: Callable[[World], list[Any]]
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    like: tuple[str, ...] = ()  #: other kinds whose recordings show the same rows


class World:
    """A served sandbox in which clients have positions, orders, executions and funding payments."""

    def __init__(self, venue: Served) -> None:
        self.venue = venue
        mark = self.get("market/tickers", "symbol=BTCUSDT")["result"]["list"][0]["markPrice"]
        self.mark = float(mark)
        self.far = f"{self.mark * 0.995:.1f}"
        self.order(orderType="Market", qty="0.100")
        self.order(orderType="Market", qty="0.040", side="Sell")
        self.resting = self.order(price=self.far, orderLinkId="shape-1")["result"]
        crossing = f"{self.mark * 1.005:.1f}"
        self.order(price=crossing, timeInForce="PostOnly")
        venue.run(lambda exchange: exchange.settle_funding("BTCUSDT"))

    def get(self, path: str, query: str = "", client: int = 0) -> Any:
        """The answer to a signed GET in the linear category."""
        query = f"?category=linear&{query}".rstrip("&")
        return ask(self.venue, f"/v5/{path}{query}", client=client)[1]

    def post(self, path: str, body: dict[str, Any], client: int = 0, **wrong: Any) -> Any:
        text = json.dumps({"category": "linear", **body}).encode()
        return ask(self.venue, f"/v5/{path}", text, client=client, **wrong)[1]

    def order(self, **fields: Any) -> Any:
        body = {"symbol": "BTCUSDT", "side": "Buy", "orderType": "Limit", "qty": "0.010"}
        return self.post("order/create", {**body, **fields})

    def amended(self) -> Any:
        created = self.order(price=self.far)["result"]
        body = {"symbol": "BTCUSDT", "orderId": created["orderId"], "qty": "0.020"}
        return self.post("order/amend", body)

    def cancelled(self) -> list[Any]:
        created = self.order(price=self.far)["result"]
        return [self.post("order/cancel", {"symbol": "BTCUSDT", "orderId": created["orderId"]})]

    def all_cancelled(self) -> list[Any]:
        self.order(price=self.far, orderLinkId=f"shape-{time.monotonic_ns()}")
        return [self.post("order/cancel-all", {"symbol": "BTCUSDT"})]

    def batch(self, verb: str) -> list[Any]:
        leg = {"symbol": "BTCUSDT", "side": "Buy", "orderType": "Limit", "qty": "0.010"}
        legs = [{**leg, "price": self.far}, {**leg, "qty": "9999", "price": self.far}]
        created = self.post("order/create-batch", {"request": legs})
        if verb == "create":
            return [created]
        ids = [row["orderId"] or "unknown" for row in created["result"]["list"]]
        removed = [{"symbol": "BTCUSDT", "orderId": identity} for identity in ids]
        return [self.post("order/cancel-batch", {"request": removed})]

    def refused(self, **fields: Any) -> list[Any]:
        return [self.order(**{"price": self.far, **fields})]

    # -- streams -----------------------------------------------------------------------------------

    def public_frames(
        self, topic: str, kind: str = "", act: Callable[[SandboxExchange], None] | None = None
    ) -> Any:
        """The first frames of a topic, of one type if given; ``act`` runs in the exchange before."""
        with connect(self.venue.description["ws_public"]) as socket:
            wire = Wire(socket)
            wire.ask({"op": "subscribe", "args": [topic]})
            if act is not None:
                self.venue.run(act)
            frames: list[Any] = []
            deadline = time.monotonic() + 60
            while len(frames) < 3 and time.monotonic() < deadline:
                frame = wire.next()
                if kind in ("", frame.get("type", "")):
                    frames.append(frame)
                if frames and (act is not None or kind == "snapshot"):
                    break
            return frames

    def control_answer(self, *requests: Any) -> list[Any]:
        """The answer to the last of some requests on the public stream."""
        with connect(self.venue.description["ws_public"]) as socket:
            wire = Wire(socket)
            return [wire.ask(request) for request in requests][-1:]

    def private_answers(self, where: str, *requests: Any) -> list[Any]:
        """The answers to authentication and some requests on a private socket."""
        with connect(self.venue.description[where]) as socket:
            wire = Wire(socket)
            return [wire.ask(request) for request in (self.authentication(), *requests)]

    def authentication(self) -> dict[str, Any]:
        return {**authentication(self.venue), "req_id": "1"}

    def private_frames(self, topic: str) -> list[Any]:
        """Messages of an order that rests and is cancelled, and of one that fills."""
        with connect(self.venue.description["ws_private"]) as socket:
            wire = Wire(socket)
            for request in (self.authentication(), subscribe(topic)):
                assert wire.ask(request)["success"]
            self.cancelled()
            self.order(orderType="Market", qty="0.001")
            return wire.topics({"order": 3, "execution": 1, "execution.fast": 1}.get(topic, 2))

    def trade_answer(self, op: str, *, batch: bool = False, **fields: Any) -> list[Any]:
        """The answer to an operation of order entry over WebSocket."""
        header = {"X-BAPI-TIMESTAMP": str(time.time_ns() // 1_000_000)}
        order = {"category": "linear", "symbol": "BTCUSDT", **fields}
        args = {"category": "linear", "request": [order]} if batch else order
        request = {"op": op, "reqId": "r-1", "header": header, "args": [args]}
        return self.private_answers("ws_trade", request)[1:]

    def resting_id(self) -> str:
        return str(self.order(price=self.far)["result"]["orderId"])


def market(path: str, query: str = "symbol=BTCUSDT") -> Callable[[World], list[Any]]:
    return lambda world: [world.get(f"market/{path}", query)]


def account(path: str, query: str = "", client: int = 0) -> Callable[[World], list[Any]]:
    return lambda world: [world.get(path, query, client)]


def liquidate(exchange: SandboxExchange) -> None:
    tape = exchange.tapes["BTCUSDT"]
    tape.publish_liquidation(1, tape.last_ticks, 7, exchange.now_ns)


def subscribe(*topics: str, **more: Any) -> dict[str, Any]:
    return {"op": "subscribe", "args": list(topics), **more}


#: Documented fields of an order; the recorded REST rows are older.
ORDER_FIELDS = (
    r".*\.(createType|closedPnl|marketUnit|feeCurrency|parentOrderLinkId|brokerOrderPrice|USDT)",
)

LEG: Final[dict[str, Any]] = {"side": "Buy", "orderType": "Limit", "qty": "0.010"}

KINDS: Final[dict[str, Kind]] = {
    "rest_server_time": Kind(market("time", "")),
    "rest_instruments_info": Kind(market("instruments-info")),
    # The recording is of another market, with sizes of six decimals.
    "rest_orderbook": Kind(market("orderbook"), added=(r"\.result\.[ab]\[\]\[\]",)),
    "rest_tickers": Kind(
        market("tickers"), added=(r".*\.(singleOpenInterest(Value)?|(bid|ask)1Size)",)
    ),
    "rest_recent_trade": Kind(market("recent-trade"), added=(r".*\.(isRPITrade|seq)",)),
    "rest_kline": Kind(market("kline", "symbol=BTCUSDT&interval=1")),
    "rest_funding_history": Kind(market("funding/history")),
    "rest_open_interest": Kind(market("open-interest", "symbol=BTCUSDT&intervalTime=5min")),
    "rest_price_limit": Kind(market("price-limit")),
    "rest_risk_limit": Kind(market("risk-limit")),
    "rest_account_misc/fee-rate": Kind(account("account/fee-rate"), added=(r"\.result\.category",)),
    "rest_account_misc/account": Kind(account("account/info")),
    "rest_account_misc/dcp-info": Kind(
        lambda world: [
            world.post(
                "order/disconnected-cancel-all", {"product": "DERIVATIVES", "timeWindow": 10}
            ),
            world.get("account/query-dcp-info"),
        ][1:]
    ),
    "rest_account_misc/leverage": Kind(
        lambda world: [
            world.post(
                "position/set-leverage",
                {"symbol": "BTCUSDT", "buyLeverage": "7", "sellLeverage": "7"},
                client=1,
            )
        ]
    ),
    "rest_account_misc/position-mode": Kind(
        lambda world: [world.post("position/switch-mode", {"symbol": "BTCUSDT", "mode": 0}, 2)]
    ),
    "rest_account_misc/set-margin-mode": Kind(
        lambda world: [world.post("account/set-margin-mode", {"setMarginMode": "ISOLATED_MARGIN"})]
    ),
    "rest_account_misc/GET /v5/user/query-api result (identity fields redacted here)": Kind(
        account("user/query-api"), removed=(r"\.result\.permissions\..*\[\]",)
    ),
    "rest_closed_pnl_and_log/closed-pnl row": Kind(account("position/closed-pnl")),
    "rest_closed_pnl_and_log/transaction-log row of the same close": Kind(
        account("account/transaction-log", "type=TRADE"), added=(r".*\.id",)
    ),
    "rest_errors/bad signature": Kind(
        lambda world: [world.post("order/create", {}, secret="wrong")]
    ),
    "rest_errors/bad category": Kind(lambda world: world.refused(category="nothing")),
    "rest_errors/bad side": Kind(lambda world: world.refused(side="buy")),
    "rest_errors/hedge/one-way mismatch": Kind(lambda world: world.refused(positionIdx=1)),
    "rest_errors/qty under minOrderQty": Kind(lambda world: world.refused(qty="0.0001")),
    "rest_errors/price out of range": Kind(lambda world: world.refused(price="2500000.0")),
    "rest_errors/reduce-only violated (2023 wording)": Kind(
        lambda world: world.refused(reduceOnly=True)
    ),
    "rest_errors/reduce-only with no position (2026-07 wording)": Kind(
        lambda world: world.refused(reduceOnly=True)
    ),
    "rest_errors/cancel without an id": Kind(
        lambda world: [world.post("order/cancel", {"symbol": "BTCUSDT"})]
    ),
    "rest_errors/cancel unknown order (2023 wording)": Kind(
        lambda world: [world.post("order/cancel", {"symbol": "BTCUSDT", "orderId": "1"})]
    ),
    "rest_errors/timestamp outside the window": Kind(
        lambda world: [world.post("order/create", {}, stamp=1_700_000_000_000)]
    ),
    "rest_errors/leverage unchanged (2025-10)": Kind(
        lambda world: [
            world.post(
                "position/set-leverage",
                {"symbol": "BTCUSDT", "buyLeverage": "10", "sellLeverage": "10"},
            )
        ]
    ),
    "rest_execution_list": Kind(
        account("execution/list", "symbol=BTCUSDT"),
        added=(r".*\.(execPnl|feeCurrency|isLeverage|extraFees)",),
    ),
    "rest_order_ack/cancel-all (UTA)": Kind(World.all_cancelled),
    "rest_order_ack/amend": Kind(lambda world: [world.amended()]),
    "rest_order_ack/cancel (2025-12, linear)": Kind(World.cancelled),
    "rest_order_ack": Kind(lambda world: [world.order(price=world.far)]),
    "rest_order_batch/batch-cancel": Kind(lambda world: world.batch("cancel")),
    "rest_order_batch": Kind(lambda world: world.batch("create")),
    "rest_order_history": Kind(
        account("order/history"),
        removed=(r".*\.MNT",),
        added=ORDER_FIELDS,
        like=("rest_order_realtime",),
    ),
    "rest_order_realtime/empty": Kind(account("order/realtime", "symbol=BTCUSDT", client=2)),
    "rest_order_realtime": Kind(
        account("order/realtime", "symbol=BTCUSDT"),
        removed=(r".*\.MNT",),
        added=ORDER_FIELDS,
        like=("rest_order_history",),
    ),
    "rest_position_list": Kind(
        lambda world: [world.get("position/list", "symbol=BTCUSDT", n) for n in (0, 2)],
        added=(r".*\.((position[IM]M)ByMp|breakEvenPrice|sessionAvgPrice|curRealisedPnl)",),
        like=("rest_position_list/long",),
    ),
    "rest_wallet_balance": Kind(
        account("account/wallet-balance", "accountType=UNIFIED"),
        removed=(r".*\.free",),
        added=(r".*\.(spotBorrow|colRes)",),
    ),
    "ws_public_orderbook_1": Kind(
        lambda world: world.public_frames("orderbook.1.BTCUSDT", "snapshot")
    ),
    "ws_public_orderbook_50": Kind(lambda world: world.public_frames("orderbook.50.BTCUSDT")),
    "ws_public_orderbook_1000": Kind(lambda world: world.public_frames("orderbook.1000.BTCUSDT")),
    "ws_public_trade": Kind(lambda world: world.public_frames("publicTrade.BTCUSDT")),
    "ws_public_tickers": Kind(
        lambda world: world.public_frames("tickers.BTCUSDT"), added=(r"\.data\.singleOpenInterest",)
    ),
    "ws_public_kline": Kind(lambda world: world.public_frames("kline.5.BTCUSDT")),
    "ws_public_all_liquidation": Kind(
        # Prices of the recorded symbols have another scale.
        lambda world: world.public_frames("allLiquidation.BTCUSDT", act=liquidate),
        added=(r"\.data\[\]\.p",),
    ),
    "ws_public_price_limit": Kind(lambda world: world.public_frames("priceLimit.BTCUSDT")),
    "ws_public_subscribe_ack/unsubscribe ack, contract": Kind(
        lambda world: world.control_answer(
            subscribe("kline.D.BTCUSDT"),
            {"op": "unsubscribe", "args": ["kline.D.BTCUSDT"], "req_id": "3"},
        )
    ),
    "ws_public_subscribe_ack/linear ack without req_id in the request": Kind(
        lambda world: world.control_answer(subscribe("kline.D.BTCUSDT"))
    ),
    "ws_public_subscribe_ack": Kind(
        lambda world: world.control_answer(subscribe("kline.D.BTCUSDT", req_id="4"))
    ),
    "ws_public_ping_pong/linear pong without req_id": Kind(
        lambda world: world.control_answer({"op": "ping"})
    ),
    "ws_public_ping_pong": Kind(lambda world: world.control_answer({"op": "ping", "req_id": "7"})),
    "ws_public_errors/duplicate subscribe": Kind(
        lambda world: world.control_answer(
            subscribe("tickers.BTCUSDT"), subscribe("tickers.BTCUSDT", req_id="e6")
        )
    ),
    "ws_public_errors": Kind(
        lambda world: world.control_answer(subscribe("orderbook.50.NOPEUSDT", req_id="e1"))
    ),
    "ws_private_auth": Kind(lambda world: world.private_answers("ws_private")),
    "ws_private_pong": Kind(
        lambda world: world.private_answers("ws_private", {"op": "ping", "req_id": "2"})[1:]
    ),
    "ws_private_order": Kind(
        lambda world: world.private_frames("order"), removed=(r".*\.(tpSlMode|MNT)",)
    ),
    # A tax of some countries is all that the recorded one has of extra fees.
    "ws_private_execution": Kind(
        lambda world: world.private_frames("execution"), removed=(r".*\.extraFees\[\].*",)
    ),
    "ws_private_execution_fast": Kind(lambda world: world.private_frames("execution.fast")),
    "ws_private_position": Kind(
        lambda world: world.private_frames("position"), removed=(r".*\.(tpSlMode|CreatedTime)",)
    ),
    "ws_private_wallet": Kind(
        lambda world: world.private_frames("wallet"), added=(r".*\.(colRes|spotBorrow)",)
    ),
    "ws_trade/auth ok": Kind(lambda world: world.private_answers("ws_trade")),
    "ws_trade/reply pong": Kind(
        lambda world: world.private_answers("ws_trade", {"op": "ping"})[1:]
    ),
    "ws_trade/order.create failure": Kind(
        lambda world: world.trade_answer("order.create", **LEG, price="0.05")
    ),
    "ws_trade/order.create": Kind(
        lambda world: world.trade_answer("order.create", **LEG, price=world.far)
    ),
    "ws_trade/reply order.create": Kind(
        lambda world: world.trade_answer("order.create", **LEG, price=world.far)
    ),
    "ws_trade/reply order.create-batch": Kind(
        lambda world: world.trade_answer("order.create-batch", batch=True, **LEG, positionIdx=1),
        added=(r"\.reqId",),  # the recorded request had none
    ),
    "ws_trade/order.amend failure": Kind(
        lambda world: world.trade_answer("order.amend", orderId="nothing", qty="0.02")
    ),
    "ws_trade/order.amend": Kind(
        lambda world: world.trade_answer("order.amend", orderId=world.resting_id(), qty="0.02")
    ),
    "ws_trade/order.cancel failure": Kind(
        lambda world: world.trade_answer("order.cancel", orderId="nothing")
    ),
    "ws_trade/order.cancel": Kind(
        lambda world: world.trade_answer("order.cancel", orderId=world.resting_id())
    ),
}


def names() -> list[str]:
    """Every recorded item as file/name."""
    names: list[str] = []
    for file in sorted(FOLDER.glob("*.json")):
        items = json.loads(file.read_bytes()).get("items", [])
        if not items or file.stem in NOT_OURS:
            names.append(file.stem)
        else:
            names += [f"{file.stem}/{item['name']}" for item in items]
    return names


def kind_of(name: str) -> str | None:
    """The key of `KINDS` for a recorded item: the longest prefix of its name."""
    return max((kind for kind in KINDS if name.startswith(kind)), key=len, default=None)


def is_ours(name: str) -> bool:
    return name not in NOT_OURS and name.partition("/")[0] not in NOT_OURS


def recorded(kind: str) -> Shape:
    """The shape of all items of a kind; older ones only fill in what newer ones lack."""
    shape, older = Shape(), Shape()
    for file in FOLDER.glob("*.json"):
        for item in json.loads(file.read_bytes()).get("items", []):
            name = f"{file.stem}/{item.get('name')}"
            if not is_ours(name) or not (
                kind_of(name) == kind or name.startswith(KINDS[kind].like)
            ):
                continue
            frame = item["frame"]
            if name.startswith("rest_"):  # some recordings hold the result only
                frame = frame if "retCode" in frame else {"result": frame}
                frame = {"retCode": 0, "retMsg": "OK", "retExtInfo": {}, "time": 1, **frame}
            is_old = "2023" in name and not name.startswith(KINDS[kind].like)
            (older if is_old else shape).add("", frame)
    shape.fill(older)
    return shape


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with served(Sandbox(seed=7, speed=4.0, clients=3, limited=False)) as venue:
        yield World(venue)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recorded frames in {FOLDER}")
def test_every_recording_is_requested_or_listed_as_not_ours() -> None:
    assert [name for name in names() if is_ours(name) and kind_of(name) is None] == []
    known = set(names()) | {name.partition("/")[0] for name in names()}
    assert set(NOT_OURS) <= known
    assert set(KINDS) <= {kind_of(name) for name in names()}


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recorded frames in {FOLDER}")
@pytest.mark.parametrize("kind", KINDS)
def test_answers_have_the_recorded_shape(world: World, kind: str) -> None:
    entry = KINDS[kind]
    ours = Shape(entry.request(world))
    assert ours.forms
    assert differences(ours, recorded(kind), removed=entry.removed, added=entry.added) == []
