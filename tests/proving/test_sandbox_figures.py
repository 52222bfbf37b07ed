"""The venue's own figures, as captured on its wire, in the answers of the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from execution.margin import MarginMode, Terms, tiers
from market.events import Field
from market.instruments import BUILT_IN, Instrument
from market.units import E8
from proving.sandbox import desk
from proving.sandbox.exchange import Exchange
from proving.sandbox.figures import Figures
from proving.sandbox.listing import LISTINGS
from proving.sandbox.trading import Client, Order
from proving.synthetic.background import BACKGROUND
from proving.synthetic.engine import EngineExecution
from proving.synthetic.profiles import profile

BTC = BUILT_IN["BTCUSDT"]
XRP = Instrument(symbol="XRPUSDT", tick="0.0001", lot="1", min_qty="1", min_notional="5")
LINEAR = {"category": "linear", "symbol": "BTCUSDT"}


@pytest.fixture(scope="module")
def world() -> Exchange:
    return Exchange(profile("default"), 17, clients=1)


@pytest.fixture
def exchange(world: Exchange) -> Iterator[Exchange]:
    """An exchange whose one client has nothing behind it, and whose prices are its own again after."""
    old = world.clients[0]
    fresh = Client(
        old.owner, old.key, old.secret, world.instruments, old.margin.terms, 100_000 * E8
    )
    world.clients[0] = fresh
    values = dict(world.tapes["BTCUSDT"].values)
    yield world
    world.tapes["BTCUSDT"].values = values
    world.clients[0] = old


def order(client: Client, figures: Figures, side: int, ticks: int, lots: int) -> Order:
    return Order(
        client=client,
        figures=figures,
        number=1,
        order_id=f"{side}-{ticks}",
        link_id="",
        side=side,
        market=False,
        ticks=ticks,
        lots=lots,
        force="GTC",
        reduce_only=False,
        close_on_trigger=False,
        created_ms=1,
        updated_ms=1,
        last_ticks=ticks,
    )


def taken(exchange: Exchange, made: Order) -> dict[str, Any]:
    """An order that takes from everybody else at its price."""
    execution = EngineExecution(
        maker=1,
        maker_owner=BACKGROUND,
        taker=2,
        taker_owner=made.client.owner,
        side=made.side,
        ticks=made.ticks,
        lots=made.lots,
        maker_left=0,
    )
    return exchange.ledger.trade(made, execution, False, "name", exchange.now_ns, 1)


def test_a_fee_is_what_the_venue_took(exchange: Exchange) -> None:
    """0.003 BTC at 51,850 in February 2024: 155.55 × 0.00055."""
    client = exchange.clients[0]
    taken(exchange, order(client, Figures(BTC), -1, 518_500, 3))
    row = desk.executions(exchange, client, LINEAR)["list"][0]
    assert (row["execValue"], row["execFee"], row["feeRate"]) == ("155.55", "0.0855525", "0.00055")


def test_what_closing_brought_is_what_the_venue_wrote(exchange: Exchange) -> None:
    """0.01 BTC from 28,144.7 to 28,149.9 in April 2023, at a fee of 0.0006."""
    client = exchange.clients[0]
    figures = Figures(msgspec.structs.replace(BTC, taker_fee="0.0006"))
    taken(exchange, order(client, figures, 1, 281_447, 10))
    taken(exchange, order(client, figures, -1, 281_499, 10))
    row = desk.closed_pnl(exchange, client, LINEAR)["list"][0]
    assert row["closedPnl"] == "-0.2857676"
    assert (row["cumEntryValue"], row["avgEntryPrice"]) == ("281.447", "28144.7")
    assert (row["cumExitValue"], row["avgExitPrice"]) == ("281.499", "28149.9")
    log = desk.transaction_log(exchange, client, {"accountType": "UNIFIED"})["list"][0]
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
def test_funding_is_what_the_venue_charged(
    exchange: Exchange, lots: int, mark: str, rate: int, value: str, paid: str
) -> None:
    client, tape = exchange.clients[0], exchange.tapes["BTCUSDT"]
    client.account.holdings["BTCUSDT"].trade(lots, 290_000, 0)
    tape.values[Field.MARK_PRICE] = round(float(mark) * E8)
    tape.values[Field.FUNDING_RATE] = rate
    exchange.settle("BTCUSDT")
    row = desk.executions(exchange, client, {**LINEAR, "execType": "Funding"})["list"][0]
    assert (row["execValue"], row["execFee"]) == (value, paid)
    log = desk.transaction_log(exchange, client, {"type": "SETTLEMENT"})["list"][0]
    assert float(log["funding"]) == -float(paid)


def test_margins_of_a_position_are_what_the_venue_asked(exchange: Exchange) -> None:
    """0.1 BTC at 23,032.9, ten times, in February 2023."""
    client = exchange.clients[0]
    flat = tiers([(2_000_000, "0.01", "0.005", "100")])
    isolated = MarginMode.ISOLATED
    client.margin.terms["BTCUSDT"] = Terms(tiers=flat, mode=isolated, taker_fee="0.0006")
    client.mode = isolated
    client.account.holdings["BTCUSDT"].trade(100, 230_329, 0)
    row = desk.positions(exchange, client, LINEAR)["list"][0]
    assert (row["positionValue"], row["avgPrice"]) == ("2303.29", "23032.9")
    assert (row["positionIM"], row["positionMM"]) == ("231.5727766", "12.7602266")


def test_a_wallet_is_what_the_venue_pushed() -> None:
    """4 XRP at 2.7862 and an order for 10 at 2.5293, in January 2025."""
    terms = Terms(tiers=tiers([(250_000, "0.015", "0.0075", "75")]), mode=MarginMode.ISOLATED)
    client = Client(5, "", "", {"XRPUSDT": XRP}, {"XRPUSDT": terms}, 100_005_007_561)
    client.account.holdings["XRPUSDT"].trade(4, 27_862, 0)
    resting = order(client, Figures(XRP), 1, 25_293, 10)
    client.open[resting.order_id] = resting
    coin = client.wallet_row({"XRPUSDT": 313_420_000})["coin"][0]
    assert (coin["walletBalance"], coin["equity"]) == ("1000.05007561", "1001.44207561")
    assert (coin["unrealisedPnl"], coin["totalOrderIM"]) == ("1.392", "2.55573119")
    assert (coin["totalPositionIM"], coin["totalPositionMM"]) == ("1.11999668", "0.08910268")


def test_what_is_known_of_ethusdt_s_tiers_holds() -> None:
    """A short of 0.01 in November 2025: tier 11 up to 900,000, at 30 times IM and MM as pushed."""
    listing = LISTINGS["ETHUSDT"]
    lowest = listing.tiers[0]
    assert (listing.first_tier, lowest.limit, lowest.maintenance) == (11, 900_000, "0.005")
    terms = Terms(tiers=listing.tiers, leverage="30")
    value_e8 = 3_642_326_400  # from which the pushed IM follows; the MM to a hundred-thousandth
    assert terms.position_margin_e8(-1, value_e8) == 123_480_936
    assert terms.maintenance_e8(-1, value_e8) == pytest.approx(20_281_586, rel=1e-5)
