"""Fees, funding, margins and wallets of the sandbox equal amounts captured from the venue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from execution.margin import MarginMode, Terms, tiers
from market.events import Field
from market.instruments import BUILT_IN, Instrument
from market.units import E8
from proving.sandbox import account_requests
from proving.sandbox.accounts import Client, VenueOrder
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.listing import LISTINGS, DecimalCodec
from proving.sandbox.rows import wallet_row
from proving.synthetic.background import BACKGROUND
from proving.synthetic.engine import EngineExecution
from proving.synthetic.profiles import profile

BTC = BUILT_IN["BTCUSDT"]
XRP = Instrument(symbol="XRPUSDT", tick="0.0001", lot="1", min_qty="1", min_notional="5")
LINEAR = {"category": "linear", "symbol": "BTCUSDT"}


@pytest.fixture(scope="module")
def world() -> SandboxExchange:
    return SandboxExchange(profile("default"), 17, clients=1)


@pytest.fixture
def exchange(world: SandboxExchange) -> Iterator[SandboxExchange]:
    """An exchange with one fresh client; client and prices are restored afterwards."""
    old = world.clients[0]
    fresh = Client(
        old.owner, old.key, old.secret, world.instruments, old.margin.terms, 100_000 * E8
    )
    world.clients[0] = fresh
    values = dict(world.tapes["BTCUSDT"].values)
    yield world
    world.tapes["BTCUSDT"].values = values
    world.clients[0] = old


def new_order(client: Client, codec: DecimalCodec, side: int, ticks: int, lots: int) -> VenueOrder:
    return VenueOrder(
        client=client,
        codec=codec,
        number=1,
        order_id=f"{side}-{ticks}",
        link_id="",
        side=side,
        is_market=False,
        ticks=ticks,
        lots=lots,
        time_in_force="GTC",
        reduce_only=False,
        close_on_trigger=False,
        created_ms=1,
        updated_ms=1,
        last_ticks=ticks,
    )


def execute(exchange: SandboxExchange, order: VenueOrder) -> dict[str, Any]:
    """Fill an order completely against a background order at its price."""
    execution = EngineExecution(
        maker=1,
        maker_owner=BACKGROUND,
        taker=2,
        taker_owner=order.client.owner,
        side=order.side,
        ticks=order.ticks,
        lots=order.lots,
        maker_left=0,
    )
    return exchange.account_book.book_trade(order, execution, False, "name", exchange.now_ns, 1)


def test_a_taker_fee_equals_the_venue_s(exchange: SandboxExchange) -> None:
    """0.003 BTC at 51,850 in February 2024: 155.55 × 0.00055."""
    client = exchange.clients[0]
    execute(exchange, new_order(client, DecimalCodec(BTC), -1, 518_500, 3))
    row = account_requests.executions(exchange, client, LINEAR)["list"][0]
    assert (row["execValue"], row["execFee"], row["feeRate"]) == ("155.55", "0.0855525", "0.00055")


def test_closed_profit_and_transaction_log_equal_the_venue_s(exchange: SandboxExchange) -> None:
    """0.01 BTC from 28,144.7 to 28,149.9 in April 2023, at a fee of 0.0006."""
    client = exchange.clients[0]
    codec = DecimalCodec(msgspec.structs.replace(BTC, taker_fee="0.0006"))
    execute(exchange, new_order(client, codec, 1, 281_447, 10))
    execute(exchange, new_order(client, codec, -1, 281_499, 10))
    row = account_requests.closed_pnl(exchange, client, LINEAR)["list"][0]
    assert row["closedPnl"] == "-0.2857676"
    assert (row["cumEntryValue"], row["avgEntryPrice"]) == ("281.447", "28144.7")
    assert (row["cumExitValue"], row["avgExitPrice"]) == ("281.499", "28149.9")
    log = account_requests.transaction_log(exchange, client, {"accountType": "UNIFIED"})["list"][0]
    assert (log["fee"], log["cashFlow"], log["change"]) == ("0.1688994", "0.052", "-0.1168994")


@pytest.mark.parametrize(
    ("lots", "mark", "rate", "value", "paid"),
    [
        (2, "29133.6", 100_378, "58.2672", "0.05848746"),
        (8, "83138.7", 296, "665.1096", "0.00196873"),
        (2, "29476.42", 76_104, "58.95284", "0.04486547"),
        (2, "29474.1", -103_505, "58.9482", "-0.06101433"),
    ],
)
def test_a_funding_payment_equals_the_venue_s(
    exchange: SandboxExchange, lots: int, mark: str, rate: int, value: str, paid: str
) -> None:
    client, tape = exchange.clients[0], exchange.tapes["BTCUSDT"]
    client.account.holdings["BTCUSDT"].trade(lots, 290_000, 0)
    tape.values[Field.MARK_PRICE] = round(float(mark) * E8)
    tape.values[Field.FUNDING_RATE] = rate
    exchange.settle_funding("BTCUSDT")
    row = account_requests.executions(exchange, client, {**LINEAR, "execType": "Funding"})["list"][
        0
    ]
    assert (row["execValue"], row["execFee"]) == (value, paid)
    log = account_requests.transaction_log(exchange, client, {"type": "SETTLEMENT"})["list"][0]
    assert float(log["funding"]) == -float(paid)


def test_initial_and_maintenance_margin_equal_the_venue_s(exchange: SandboxExchange) -> None:
    """0.1 BTC at 23,032.9, leverage 10, in February 2023."""
    client = exchange.clients[0]
    flat = tiers([(2_000_000, "0.01", "0.005", "100")])
    isolated = MarginMode.ISOLATED
    client.margin.terms["BTCUSDT"] = Terms(tiers=flat, mode=isolated, taker_fee="0.0006")
    client.mode = isolated
    client.account.holdings["BTCUSDT"].trade(100, 230_329, 0)
    row = account_requests.positions(exchange, client, LINEAR)["list"][0]
    assert (row["positionValue"], row["avgPrice"]) == ("2303.29", "23032.9")
    assert (row["positionIM"], row["positionMM"]) == ("231.5727766", "12.7602266")


def test_a_wallet_message_equals_the_venue_s() -> None:
    """4 XRP at 2.7862 and an order for 10 at 2.5293, in January 2025."""
    terms = Terms(tiers=tiers([(250_000, "0.015", "0.0075", "75")]), mode=MarginMode.ISOLATED)
    client = Client(5, "", "", {"XRPUSDT": XRP}, {"XRPUSDT": terms}, 100_005_007_561)
    client.account.holdings["XRPUSDT"].trade(4, 27_862, 0)
    resting = new_order(client, DecimalCodec(XRP), 1, 25_293, 10)
    client.open[resting.order_id] = resting
    coin = wallet_row(client, {"XRPUSDT": 313_420_000})["coin"][0]
    assert (coin["walletBalance"], coin["equity"]) == ("1000.05007561", "1001.44207561")
    assert (coin["unrealisedPnl"], coin["totalOrderIM"]) == ("1.392", "2.55573119")
    assert (coin["totalPositionIM"], coin["totalPositionMM"]) == ("1.11999668", "0.08910268")


def test_the_first_risk_tier_of_ethusdt_gives_the_venue_s_margins() -> None:
    """A short of 0.01 in November 2025: tier 11 up to 900,000, leverage 30, IM and MM as in the venue's message."""
    listing = LISTINGS["ETHUSDT"]
    lowest = listing.tiers[0]
    assert (listing.first_tier, lowest.limit, lowest.maintenance) == (11, 900_000, "0.005")
    terms = Terms(tiers=listing.tiers, leverage="30")
    value_e8 = 3_642_326_400  # from which the pushed IM follows; the MM to a hundred-thousandth
    assert terms.position_margin_e8(-1, value_e8) == 123_480_936
    assert terms.maintenance_e8(-1, value_e8) == pytest.approx(20_281_586, rel=1e-5)
