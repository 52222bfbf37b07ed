"""What has to agree before trading: one clear line for each thing that does not."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest

from live.bybit.account import problems
from live.bybit.venues import VENUES, AddressError, Keys, address_of, keys_of, sandbox
from live.messages import (
    AccountReport,
    FeeReport,
    InstrumentReport,
    PositionReport,
    Report,
    WalletReport,
)
from market.instruments import BUILT_IN
from market.settings import Settings
from market.units import DAY_NS, E8

NOW = 1_790_000_000_000_000_000
ACCOUNT = AccountReport(
    account="7",
    unified=True,
    margin_mode="REGULAR_MARGIN",
    can_trade=True,
    can_withdraw=False,
    expires_ns=NOW + 90 * DAY_NS,
    venue_ns=NOW,
)
WALLET = WalletReport(equity_e8=300_000 * E8, balance_e8=300_000 * E8)
POSITION = PositionReport(symbol="BTCUSDT", lots=0, leverage="10")
LISTED = InstrumentReport(
    symbol="BTCUSDT", tick="0.10", lot="0.001", min_qty="0.001", min_notional="5"
)
FEES = FeeReport(symbol="BTCUSDT", maker="0.0002", taker="0.00055")
SYMBOLS = {"BTCUSDT": BUILT_IN["BTCUSDT"]}


def settings(**live: Any) -> Settings:
    return msgspec.convert({"live": {"venue": "live", "confirm": "live", **live}}, Settings)


def said(*changed: Report, without: type | None = None, source: str = "recorded") -> list[str]:
    """The lines when some of the reports are replaced, or left out."""
    by_type = {type(one): one for one in (ACCOUNT, WALLET, POSITION, LISTED, FEES, *changed)}
    by_type.pop(without or object, None)
    return problems(list(by_type.values()), settings(), SYMBOLS, source=source)


def but(report: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(report, **fields)


def test_nothing_is_said_when_everything_agrees() -> None:
    assert said() == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (but(ACCOUNT, can_withdraw=True), "key: it may withdraw; make one without that right"),
        (but(ACCOUNT, can_trade=False), "key: it may only read; make one that may place orders"),
        (but(ACCOUNT, expires_ns=NOW), "key: it expires at 2026-09-21 14:13:20 UTC, within a day"),
        (but(ACCOUNT, unified=False), "account 7: not a unified trading account"),
        (
            but(ACCOUNT, margin_mode="PORTFOLIO_MARGIN"),
            "account 7: margin mode PORTFOLIO_MARGIN, live.margin_mode is cross",
        ),
        (but(WALLET, equity_e8=0), "wallet: no equity (0 USDT); fund the account"),
        (
            but(WALLET, equity_e8=1_000 * E8),
            "wallet: 1000.00 USDT of equity, orders are sized for execution.capital_usdt 200000.00",
        ),
        (but(POSITION, hedged=True), "BTCUSDT: the account is in hedge mode; switch it to one-way"),
        (
            but(POSITION, leverage="25"),
            "BTCUSDT: leverage 25 at the venue, live.leverage is 10.0; change one of them",
        ),
        (but(LISTED, tick="0.50"), "BTCUSDT: tick 0.50 at the venue, 0.1 here"),
        (but(LISTED, lot="0.01"), "BTCUSDT: lot 0.01 at the venue, 0.001 here"),
        (but(LISTED, min_qty=""), "BTCUSDT: smallest quantity ? at the venue, 0.001 here"),
        (but(LISTED, min_notional="10"), "BTCUSDT: smallest notional 10 at the venue, 5 here"),
        (but(LISTED, status="Closed"), "BTCUSDT: its status is Closed"),
        (
            but(FEES, taker="0.0006"),
            "BTCUSDT: taker fee 0.0006 paid, 0.00055 assumed (model.fee_row vip0)",
        ),
        (but(FEES, maker="?"), "BTCUSDT: maker fee ? paid, 0.0002 assumed (model.fee_row vip0)"),
    ],
)
def test_each_difference_is_one_line(changed: Report, line: str) -> None:
    (only,) = said(changed)
    assert only.startswith(line)


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (AccountReport, "account: live does not state it"),
        (WalletReport, "wallet: no equity"),
        (PositionReport, "BTCUSDT: the venue does not state its position"),
        (InstrumentReport, "BTCUSDT: the venue does not list it; take it out of market.symbols"),
    ],
)
def test_what_the_venue_does_not_state_is_a_line(missing: type, line: str) -> None:
    (only,) = said(without=missing)
    assert only.startswith(line)


def test_lower_fees_and_a_venue_that_states_none_are_no_matter() -> None:
    assert said(but(FEES, taker="0.0003", maker="-0.0001")) == []
    assert said(without=FeeReport) == []


def test_a_model_of_synthetic_data_is_refused_in_the_world() -> None:
    (line,) = said(source="synthetic")
    assert line.startswith("model: trained on synthetic data, which is not traded on live")
    reports: list[Report] = [ACCOUNT, WALLET, POSITION, LISTED, FEES]
    at_sandbox = msgspec.convert({"live": {"venue": "sandbox"}}, Settings)
    assert problems(reports, at_sandbox, SYMBOLS, source="synthetic") == []


# -- addresses and keys ----------------------------------------------------------------------------


@pytest.mark.parametrize("venue", ["testnet", "demo", "live"])
def test_venues_of_the_world_need_their_name_once_more(venue: str) -> None:
    for confirm in ("", "yes", "paper"):
        with pytest.raises(AddressError, match=rf'set live.confirm = "{venue}"'):
            address_of(settings(venue=venue, confirm=confirm))
    assert address_of(settings(venue=venue, confirm=venue)) is VENUES[venue]


def test_demo_has_no_trade_socket_no_public_stream_and_no_fee_query() -> None:
    demo = VENUES["demo"]
    assert (demo.trade, demo.states_fees) == ("", False)
    assert demo.public == VENUES["live"].public
    assert "demo" in demo.private


@pytest.mark.parametrize("rest", ["https://api.bybit.com", "http://10.0.0.1:80", "", "127.0.0.1:1"])
def test_a_sandbox_is_on_loopback(rest: str) -> None:
    with pytest.raises(AddressError, match="loopback"):
        sandbox(rest)


def test_keys_come_from_the_environment_and_are_never_shown() -> None:
    with pytest.raises(AddressError, match="set L2_API_KEY and L2_API_SECRET in the environment"):
        keys_of({"L2_API_KEY": "k"})
    keys = keys_of({"L2_API_KEY": "ke-y", "L2_API_SECRET": "s-ecret"})
    shown = f"{keys} {keys!r} {[keys]} {vars(keys) if hasattr(keys, '__dict__') else ''}"
    assert "ke-y" not in shown
    assert "s-ecret" not in shown
    assert (
        keys.hidden(b"error sign! origin_string[1ke-y5000]")
        == b"error sign! origin_string[1KEY5000]"
    )
    with pytest.raises(TypeError):
        msgspec.msgpack.encode(keys)
    with pytest.raises(TypeError, match="not written"):
        pickle.dumps(keys)


def test_key_and_secret_are_what_was_given() -> None:
    keys = Keys("a", "b")
    assert (keys.key, keys.secret) == ("a", "b")
