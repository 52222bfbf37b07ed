"""Margin at the desk: the venue's tiers and prices against ours, and a position that shrinks in steps."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from execution.account import Account
from execution.margin import BTC_TIERS, MarginMode
from execution.orders import TimeInForce
from live.bybit.codec import BybitCodec
from live.exposure import STEP_NS, Exposure, ExposureState
from live.messages import Query, QueryKind, QueryResult, TierReport, WalletReport
from live.safety import Mode
from market.instruments import BUILT_IN
from market.settings import Desk as DeskSettings
from market.settings import Live, Market, Settings
from market.units import E8, SECOND_NS
from proving.sandbox.virtual import VirtualVenue
from tests.live.fate import MID, T0, Desk, S, Venue, settings

ROWS = [
    TierReport(symbol=S, limit=str(t.limit), initial=t.initial, maintenance=t.maintenance,
               max_leverage=t.max_leverage, deduction=str(float(t.deduction)) if t.deduction else "")
    for t in BTC_TIERS
]  # fmt: skip


@pytest.fixture
def desk() -> Desk:
    """A desk of 1,000 USDT at its venue."""
    venue = Venue()
    venue.balance_e8, venue.tiers = 1_000 * E8, ROWS
    desk = Desk(venue, msgspec.structs.replace(settings(), desk=DeskSettings()))
    desk.account.opening_e8 = 1_000 * E8
    desk.start()
    return desk


def ours_of(desk: Desk) -> float:
    assert desk.exposure.headroom is not None
    return desk.exposure.headroom.after(S)[1]


def hold(desk: Desk, lots: int = 100) -> None:
    desk.submit("a-1", lots=lots, time_in_force=TimeInForce.IOC)
    desk.exposure.mark({S: float(MID)})
    desk.venue.liquidation_ticks = ours_of(desk)


# -- the venue's figures -----------------------------------------------------------------------------


def test_tiers_are_the_venues(desk: Desk) -> None:
    assert Query(kind=QueryKind.RISK_LIMITS, symbol=S) in desk.bodies(Query)
    assert desk.exposure.headroom is not None
    assert desk.exposure.headroom.terms[S].tiers == BTC_TIERS
    assert not desk.lines("risk tiers of BTCUSDT assumed")


def tell_tiers(desk: Desk, *rows: TierReport, reason: str = "") -> None:
    query = Query(kind=QueryKind.RISK_LIMITS, symbol=S)
    desk.tell(QueryResult(query=query, complete=True, venue_ns=T0, reports=rows, reason=reason))


def test_a_venue_without_tiers_is_said(desk: Desk) -> None:
    tell_tiers(desk)
    assert len(desk.lines("risk tiers of BTCUSDT assumed")) == 1
    assert desk.exposure.caps(S, 1)["margin"] == 0  # no mark yet
    desk.exposure.mark({S: float(MID)})
    assert desk.exposure.caps(S, 1)["margin"] > 0


@pytest.mark.parametrize(
    ("rows", "reason", "why"),
    [
        ([ROWS[0], msgspec.structs.replace(ROWS[1], maintenance="0.001")], "", "have to grow"),
        ([ROWS[0], msgspec.structs.replace(ROWS[1], deduction="512")], "", "deducts 512"),
        ([msgspec.structs.replace(ROWS[0], limit="many")], "", "no number"),
        ([ROWS[0]], "market/risk-limit: riskLimitValue None", "riskLimitValue"),
    ],
)
def test_a_table_that_does_not_match_gives_no_size_and_a_line(
    desk: Desk, rows: list[TierReport], reason: str, why: str
) -> None:
    desk.exposure.mark({S: float(MID)})
    tell_tiers(desk, *rows, reason=reason)
    (line,) = desk.lines("risk tiers do not match: nothing is opened")
    assert why in str(line.fields["why"])
    assert desk.exposure.caps(S, 1) == {"margin": 0}
    tell_tiers(desk, *ROWS)
    assert desk.exposure.caps(S, 1)["margin"] > 0


@pytest.mark.parametrize(
    ("off", "mode"), [(1.0009, Mode.NORMAL), (1.0011, Mode.HALT), (0, Mode.HALT)]
)
def test_a_liquidation_price_more_than_a_tenth_of_a_per_cent_off_halts(
    desk: Desk, off: float, mode: Mode
) -> None:
    hold(desk)
    desk.venue.liquidation_ticks *= off
    desk.tell(desk.venue.position())
    assert desk.safety.mode(S) == Mode.NORMAL, "once is not enough"
    desk.run(5)
    assert desk.safety.mode(S) == mode
    assert ("liquidation differs" in desk.safety.why(S)) == (mode is Mode.HALT)


def test_a_price_that_an_audit_finds_off_is_confirmed_before_the_next_audit(desk: Desk) -> None:
    hold(desk)
    desk.run(2)
    desk.venue.liquidation_ticks *= 1.01
    desk.fate._audit_all(desk.now_ns, blocking=False)
    desk.run(5)
    assert desk.safety.mode(S) is Mode.HALT


def test_a_price_that_agrees_when_asked_again_is_forgiven(desk: Desk) -> None:
    hold(desk)
    right = desk.venue.position()
    desk.tell(msgspec.structs.replace(right, liquidation_ticks=right.liquidation_ticks * 1.01))
    assert len(desk.lines("the venue's liquidation price differs, asked for again")) == 1
    desk.run(70)
    assert desk.safety.mode(S) == Mode.NORMAL


def test_a_transfer_is_no_difference_once_the_wallet_is_known(desk: Desk) -> None:
    hold(desk)
    desk.venue.balance_e8 += 500 * E8
    desk.tell(WalletReport(equity_e8=desk.venue.balance_e8, balance_e8=desk.venue.balance_e8))
    desk.exposure.mark({S: float(MID)})
    desk.venue.liquidation_ticks = ours_of(desk)
    desk.run(70)
    assert desk.safety.mode(S) == Mode.NORMAL


@pytest.mark.parametrize("margin", [True, False])
def test_the_market_coming_near_the_liquidation_price_reduces_then_closes(margin: bool) -> None:
    """By the venue's figure, which is told with ``desk.margin`` off too."""
    venue = Venue()
    venue.balance_e8 = 1_000 * E8
    given = msgspec.structs.replace(settings(), desk=DeskSettings(margin=margin))
    desk = Desk(venue, given)
    desk.start()
    desk.submit("a-1", time_in_force=TimeInForce.IOC)
    desk.tell(msgspec.structs.replace(venue.position(), liquidation_ticks=900_000.0))
    modes = {}
    for mid in (1_000_000, 940_000, 915_000, 940_000, 960_000):
        desk.exposure.see(desk.now_ns, S, float(mid))
        modes[mid] = desk.safety.mode(S)
    assert modes == {
        1_000_000: Mode.NORMAL,
        940_000: Mode.REDUCE,
        915_000: Mode.FLATTEN,
        960_000: Mode.NORMAL,
    }


@pytest.mark.parametrize("side", ["Buy", "Sell"])
@pytest.mark.parametrize("mode", list(MarginMode))
@pytest.mark.parametrize("qty", ["0.9", "4"])
def test_our_liquidation_price_is_the_exchanges(side: str, mode: MarginMode, qty: str) -> None:
    """Within 0.1 %, of a position that the exchange on loopback has matched itself, and states."""
    venue = VirtualVenue(seed=8, start_ns=5 * SECOND_NS, clients=1, deposit_e8=120_000 * E8)
    client = venue.clients[0]
    client.set_mode(mode)

    def ask(path: str, **params: str) -> bytes:
        answer = venue.request(client, path, {"category": "linear", "symbol": S, **params}).answer
        assert answer is not None
        return answer.body

    ask("order/create", side=side, orderType="Market", qty=qty)
    venue.advance(venue.now_ns + SECOND_NS)
    codec = BybitCodec(BUILT_IN)
    (row,) = json.loads(ask("position/list"))["result"]["list"]
    told = codec.reader.position(row)
    account = Account(BUILT_IN, client.account.opening_e8)
    account.holdings[S] = msgspec.structs.replace(client.account.holdings[S])
    seen: list[tuple[str, float]] = []
    live = Live(leverage=float(row["leverage"]), margin_mode=mode.value)
    margins = Exposure(BUILT_IN, account, Settings(live=live), True, lambda *_, **__: None)
    margins._see = lambda _, fact, value, __: seen.append((fact, value))
    tiers = [
        codec._read(
            "market/risk-limit", json.loads(ask("market/risk-limit"))["result"]["list"], 0, 0
        )
    ]
    query = Query(kind=QueryKind.RISK_LIMITS, symbol=S)
    margins.evidence(
        0, QueryResult(query=query, complete=True, venue_ns=0, reports=tuple(tiers[0]))
    )
    margins.mark({S: float(row["markPrice"]) * 10})
    for time_ns in (0, 10 * SECOND_NS):
        margins.evidence(time_ns, told)
    assert seen == []
    wrong = msgspec.structs.replace(
        told, liquidation_ticks=(told.liquidation_ticks or 500_000.0) * 1.0015
    )
    for time_ns in (20 * SECOND_NS, 30 * SECOND_NS):
        margins.evidence(time_ns, wrong)
    if told.liquidation_ticks:
        assert [fact for fact, _ in seen] == ["liquidation_apart_bps"]


# -- a position that shrinks --------------------------------------------------------------------------


def alone(shrinks: Callable[[str], bool] = lambda symbol: True) -> Exposure:
    margins = Exposure(
        {S: BUILT_IN[S]}, Account({S: BUILT_IN[S]}, 10**13), Settings(market=Market(symbols=(S,))),
        False, lambda *_, **__: None,
    )  # fmt: skip
    margins._shrinks = shrinks
    return margins


@pytest.mark.parametrize("side", [1, -1])
def test_a_quarter_goes_at_once_and_every_minute_to_the_last_lot(side: int) -> None:
    margins, lots, after = alone(), 100, [100]
    for minute in range(14):
        for second in range(60):
            now_ns = T0 + minute * STEP_NS + second * SECOND_NS
            lots = abs(margins.reduced(now_ns, S, side * lots, side * lots)[0])
        after.append(lots)
    assert after[:6] == [100, 75, 56, 42, 31, 23]
    assert after[-1] == 0


@examples(derandomize=True, max_examples=100, deadline=None)
@given(
    held=st.integers(-500, 500),
    target=st.integers(-500, 500),
    filled=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    crash=st.integers(0, 8),
)
def test_a_step_never_enlarges_nor_turns_a_position_whatever_fills_and_restarts(
    held: int, target: int, filled: list[float], crash: int
) -> None:
    margins, before = alone(), abs(held)
    for n, share in enumerate(filled):
        if n == crash:
            state = msgspec.json.decode(msgspec.json.encode(margins.snapshot()), type=ExposureState)
            margins = alone()
            margins.restore(state)
        wanted, due = margins.reduced(T0 + n * STEP_NS, S, held, target)
        assert not due or abs(wanted) < abs(held)
        assert abs(wanted) <= max(0, before * 3 // 4 if held else abs(target))
        if held:
            before = abs(held)
            held += round(
                (max(min(held, wanted), 0) - held if held > 0 else min(max(held, wanted), 0) - held)
                * share
            )


def test_a_position_that_eased_begins_anew_and_margin_off_changes_nothing() -> None:
    now = [True]
    margins = alone(lambda symbol: now[0])
    assert margins.reduced(T0, S, 100, 100) == (75, True)
    now[0] = False
    assert margins.reduced(T0 + 1, S, 75, 100) == (100, False)
    now[0] = True
    assert margins.reduced(T0 + 2, S, 75, 100) == (56, True)
    off = Exposure({S: BUILT_IN[S]}, Account({S: BUILT_IN[S]}), Settings(desk=DeskSettings(margin=False)),
                  False, lambda *_, **__: None)  # fmt: skip
    off._shrinks = lambda symbol: True
    assert off.reduced(T0, S, 100, 100) == (100, False)
    assert off.caps(S, 1) == {}


def test_zero_equity_gives_no_size_and_says_so_once(desk: Desk) -> None:
    desk.tell(WalletReport(equity_e8=0, balance_e8=0))
    desk.exposure.mark({S: float(MID)})
    assert [desk.exposure.caps(S, side) for side in (1, -1, 1)] == [{"margin": 0}] * 3
    lines = desk.lines("margin leaves no size: fund the account, or lower live.leverage")
    assert [line.fields["side"] for line in lines] == [1, -1]


def test_a_group_counts_positions_or_larger_targets_of_other_symbols() -> None:
    """As long as no beta is known for the worst side; nothing with ``desk.leaders`` off."""
    account = Account(BUILT_IN, 10**13)
    account.holdings["ETHUSDT"].trade(-100, 300_000, 0)  # one, sold at 3,000
    for leaders in (True, False):
        given = Settings(desk=DeskSettings(leaders=leaders))
        one = Exposure(BUILT_IN, account, given, False, lambda *_, **__: None)
        one.mark({"BTCUSDT": 600_000.0, "ETHUSDT": 330_000.0})
        counted = [one.group(S, 1, {"ETHUSDT": -200}), one.group(S, -1, {"ETHUSDT": 0})]
        assert counted == ([{"ETHUSDT": 6_600.0}, {"ETHUSDT": -3_300.0}] if leaders else [None] * 2)


def test_symbols_that_turn_together_count_on_the_side_that_is_entered() -> None:
    """A long that is to become a short of the same size counts as the long for a buy of the other symbol, as the
    short for a sale: neither is a hedge before, or after, the turn. With a negative beta the other way round."""
    for sign in (1, -1):
        account = Account(BUILT_IN, 10**13)
        account.holdings[S].trade(833, 600_000, 0)
        one = Exposure(BUILT_IN, account, Settings(), False, lambda *_, **__: None)
        one.mark({S: 600_000.0, "ETHUSDT": 300_000.0})
        noise, mids = (
            np.random.Generator(np.random.Philox(key=1)),
            {S: 60_000.0, "ETHUSDT": 3_000.0},
        )
        for second in range(900):
            move = noise.normal() * 1e-4
            mids = {S: mids[S] * (1 + move), "ETHUSDT": mids["ETHUSDT"] * (1 + sign * move)}
            one.learn(T0 + second * SECOND_NS, mids)
        for side in (1, -1):
            for target in (-833, 0, 833):
                exposures = one.group("ETHUSDT", side, {S: target})
                assert exposures is not None
                worse = (
                    49_980.0 if sign * side > 0 or target < 0 else 0.0 if target == 0 else -49_980.0
                )
                assert exposures[S] == pytest.approx(side * worse, rel=0.1)


def test_a_watched_symbol_without_data_for_a_minute_is_said_once() -> None:
    said: list[str] = []
    given = Settings(market=Market(symbols=(S,), watch=("ETHUSDT",)))
    one = Exposure(
        {S: BUILT_IN[S]}, Account({S: BUILT_IN[S]}), given, False,
        lambda level, event, **about: said.append(f"{level}: {event}: {about['symbol']}"),
    )  # fmt: skip
    for n in range(90):
        one.learn(T0 + n * SECOND_NS, {S: 60_000.0})
    assert said == ["warning: a correlated symbol without data guards nothing: ETHUSDT"]
    assert not one.delays(S, 1)
