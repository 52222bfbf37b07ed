"""The core: one step at a time, by hand, at a venue that says little."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from execution.order_machine import Order
from execution.orders import (
    Accepted,
    Action,
    Cancel,
    ExecutionType,
    Filled,
    Liquidity,
    OrderReport,
    Submit,
    TimeInForce,
)
from execution.risk import Denial
from live.core import Core, CoreState
from live.decisions import Decision
from live.gateway import PlainCodec
from live.labels import Labels
from live.log import LogError
from live.messages import (
    Answer,
    Append,
    Command,
    Effect,
    Evidence,
    FundingReport,
    PrivateFrame,
    PublicFrame,
    Query,
    QueryResult,
    Renew,
    Say,
    Send,
    Tick,
)
from live.rehearsal import _frames
from live.restoration import require_known
from live.safety import Mode
from live.symbol_state import MOST_RENEW_NS
from market.instruments import BUILT_IN, Instrument
from market.settings import Settings
from market.units import E8, SECOND_NS
from orchestration.backtest.run import FixedModel, load_model
from tests.live.live_market import live_settings, promote

START = 1_700_000_000 * SECOND_NS
SYMBOLS = ("BTCUSDT", "ETHUSDT")
INSTRUMENTS = {symbol: BUILT_IN[symbol] for symbol in SYMBOLS}
CODEC = PlainCodec()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FixedModel:
    root = tmp_path_factory.mktemp("model")
    promote(root)
    return load_model(live_settings(root), "champion", SYMBOLS)


def core_of(model: FixedModel, settings: Settings, state: CoreState | None = None) -> Core:
    return Core(
        settings,
        INSTRUMENTS,
        model=model,
        codec=CODEC,
        name="test",
        at_venue=True,
        state=state,
    )


def told(core: Core, now_ns: int, *evidence: Evidence) -> list[Effect]:
    return core.step(now_ns, PrivateFrame(frame=CODEC.encode(list(evidence))))


def execution(number: int, side: int, lots: int, price: int, **fields: Any) -> Filled:
    return Filled(
        client_id="",
        time_ns=START,
        venue_ns=START + number,
        exec_id=f"e{number}",
        symbol="BTCUSDT",
        side=side,
        qty_lots=lots,
        price_ticks=price,
        liquidity=Liquidity.TAKER,
        fee_e8=100,
        leaves_lots=0,
        **fields,
    )


@pytest.fixture
def core(model: FixedModel, tmp_path: Path) -> Core:
    made = core_of(model, live_settings(tmp_path))
    made.begin(START)
    return made


def test_a_lost_delta_asks_for_the_book_at_once_and_with_growing_patience(core: Core) -> None:
    frames = list(_frames(INSTRUMENTS, 200))
    asked: list[int] = []
    for n, (now_ns, frame) in enumerate(frames[:80]):
        if n == 16:  # BTCUSDT's delta of the third tenth of a second is lost
            assert b"orderbook.200.BTCUSDT" in frame
            continue
        effects = core.step(now_ns, PublicFrame(frame=frame))
        asked += [now_ns for effect in effects if isinstance(effect, Renew)]
        for effect in effects:
            if isinstance(effect, Renew):
                assert effect.topics == ("orderbook.200.BTCUSDT",)
    lost_ns = frames[24][0]
    assert asked[0] == lost_ns, "with the frame that shows the gap"
    now_ns = frames[79][0] // SECOND_NS * SECOND_NS
    for _ in range(120):
        now_ns += SECOND_NS
        topics = [e.topics[0] for e in core.step(now_ns, Tick()) if isinstance(e, Renew)]
        asked += [now_ns for topic in topics if topic.endswith("BTCUSDT")]
    waits = [later - sooner for sooner, later in pairwise(asked)]
    assert waits == sorted(waits)
    assert waits[0] >= 2 * SECOND_NS
    assert waits[-1] <= MOST_RENEW_NS + SECOND_NS
    assert 4 <= len(asked) <= 10


def test_frames_on_time_but_of_an_earlier_venue_time_open_nothing(core: Core) -> None:
    said = [
        effect.fields
        for now_ns, frame in _frames(INSTRUMENTS, 200)
        for effect in core.step(now_ns + 6 * SECOND_NS, PublicFrame(frame=frame))
        if isinstance(effect, Say) and effect.fields.get("limit") == "venue behind"
    ]
    assert said == [
        {"limit": "venue behind", "action": "pause", "symbol": symbol, "value": 6.0, "bound": 5.0}
        for symbol in SYMBOLS
    ]
    assert [core.mode(symbol) for symbol in SYMBOLS] == [Mode.PAUSE, Mode.PAUSE]
    assert core.safety.counts["venue behind"] == 2


def test_an_execution_of_no_order_of_ours_moves_the_position_once(core: Core) -> None:
    fill = execution(1, -1, 40, 600_000, execution=ExecutionType.LIQUIDATION)
    effects = told(core, START + SECOND_NS, fill)
    told(core, START + 2 * SECOND_NS, fill)
    assert core.account.position_lots("BTCUSDT") == core.desk.position_lots("BTCUSDT") == -40
    kinds = [effect.kind for effect in effects if isinstance(effect, Append)]
    assert kinds.count("event") == 1


def test_funding_is_booked_once_and_is_no_fill(core: Core) -> None:
    told(core, START + SECOND_NS, execution(1, 1, 500, 600_000))
    paid = FundingReport(
        exec_id="f", symbol="BTCUSDT", lots=500, mark_e8=60_000 * E8, paid_e8=3 * E8, venue_ns=START
    )
    told(core, START + 2 * SECOND_NS, paid, paid)
    assert core.account.holdings["BTCUSDT"].funding_e8 == 3 * E8
    assert core.account.position_lots("BTCUSDT") == 500


def test_a_restart_keeps_cost_basis_peak_and_the_days_result(
    core: Core, model: FixedModel, tmp_path: Path
) -> None:
    told(core, START + SECOND_NS, execution(1, 1, 500, 600_000))  # 0.5 BTC at 60,000
    core.account.mark(START + SECOND_NS, {"BTCUSDT": 620_000.0})
    core.account.mark(START + 2 * SECOND_NS, {"BTCUSDT": 600_000.0})
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(core.snapshot()), type=CoreState)
    again = core_of(model, live_settings(tmp_path), state)
    again.begin(START + 10 * SECOND_NS)
    assert again.account.position_lots("BTCUSDT") == 500
    # A fall of 10 %: 3,000 lost, of a peak that was 1,000 above.
    assert again.account.mark(START + 11 * SECOND_NS, {"BTCUSDT": 540_000.0}) == pytest.approx(
        (200_000 - 3_000) * E8, abs=1_000
    )
    assert again.desk.facts()["drawdown_usdt"] == pytest.approx(4_000.0, abs=1e-3)
    told(again, START + 12 * SECOND_NS, execution(2, -1, 500, 540_000))
    assert again.account.position_lots("BTCUSDT") == 0, "no phantom short after the exit"
    told(again, START + 13 * SECOND_NS, execution(1, 1, 500, 600_000))
    assert again.account.position_lots("BTCUSDT") == 0, "an execution of before is known"


def decision(t_ns: int) -> Decision:
    numbers = dict.fromkeys(("expected_bps", "raw_bps", "cost_bps", "mid", "spread_bps"), 1.0)
    return Decision(
        symbol="BTCUSDT",
        t_ns=t_ns,
        model_version="1",
        bundle_sha="",
        by_horizon=(1.0, 2.0),
        regime="all",
        warm=True,
        target=0,
        position_lots=0,
        vector=np.zeros(1),
        **numbers,
    )


def test_labels_are_of_the_mid_a_second_after_and_none_crosses_a_gap() -> None:
    effects: list[Effect] = []
    labels = Labels("BTCUSDT", effects.append)
    mids = [100.0 + n for n in range(12)]
    mids[7] = math.nan
    for n, mid in enumerate(mids):
        labels.second(n * SECOND_NS, mid)
        labels.decided(decision(n * SECOND_NS), (2, 4))
    found = {
        (t_ns // SECOND_NS, horizon_s): value
        for effect in effects
        if isinstance(effect, Append) and effect.kind == "labels"
        for t_ns, horizon_s, value in msgspec.json.decode(effect.body)["returns"]
    }
    expected = {
        (t, h): math.log(mids[t + 1 + h] / mids[t + 1]) * 1e4
        for t in range(12)
        for h in (2, 4)
        if t + 1 + h < 12 and not any(math.isnan(mid) for mid in mids[t + 1 : t + 2 + h])
    }
    assert found == pytest.approx(expected)
    assert {(0, 2), (0, 4), (8, 2)} <= found.keys()
    assert (4, 2) not in found


class Trading:
    """A core in a made-up market, at a venue that agrees from the start and says what it is told to."""

    def __init__(self, model: FixedModel, root: Path, state: CoreState | None = None) -> None:
        settings = live_settings(root, algorithm="passive")
        live = msgspec.structs.replace(settings.live, differences="adopt")
        settings = msgspec.structs.replace(settings, live=live)
        self.core = core_of(model, settings, state)
        self.core.begin(START)
        self.sent: list[Action] = []
        self._frames = iter(list(_frames(INSTRUMENTS, 200)))
        self.run(1.2)

    def took(self, effects: list[Effect]) -> list[Action]:
        bodies = [effect.body for effect in effects if isinstance(effect, Send)]
        self.sent += (fresh := [body for body in bodies if isinstance(body, Action)])
        return fresh

    def run(self, until_s: float) -> None:
        for now_ns, frame in self._frames:
            self.took(self.core.step(now_ns, PublicFrame(frame=frame)))
            if now_ns >= START + until_s * SECOND_NS:
                return

    def order(self, command: str, **limits: float) -> list[Action]:
        given = Command(command=command, who="ann", reason="test", limits=limits)
        return self.took(self.core.step(self.core.now_ns, given))

    def hold(self, lots: int) -> None:
        told(self.core, self.core.now_ns, execution(1, 1, lots, 100_000))

    def target(self, lots: int) -> None:
        """As decisions set it."""
        state = self.core.trader.symbols["BTCUSDT"]
        state.target, state.target_lots, state.signal_ns = int(lots > 0), lots, self.core.now_ns

    def rest(self) -> Order:
        """An entry of 40 lots that rests at the venue."""
        self.target(40)
        self.run(2.0)
        [entry] = self.sent
        now_ns, name = self.core.now_ns, entry.client_id
        accepted = Accepted(client_id=name, time_ns=now_ns, venue_ns=now_ns, venue_order_id="v")
        told(self.core, now_ns, accepted)
        return self.core.orders.by_id[name]

    def find(self, order: Order) -> None:
        """The venue is asked for an order, and has it."""
        now_ns, [(number, send)] = self.core.now_ns, self.core.requests.under_way.items()
        query = send.body
        assert isinstance(query, Query)
        report = OrderReport(
            client_id=order.client_id,
            time_ns=now_ns,
            venue_ns=now_ns,
            venue_order_id="v",
            symbol=order.symbol,
            side=order.submit.side,
            state=order.state,
            price_ticks=order.price_ticks,
            qty_lots=order.qty_lots,
            filled_lots=0,
        )
        result = QueryResult(query=query, complete=True, venue_ns=now_ns, orders=(report,))
        self.core.step(now_ns, Answer(request=number, body=CODEC.encode([result])))


def test_a_flatten_closes_in_the_same_step(model: FixedModel, tmp_path: Path) -> None:
    trading = Trading(model, tmp_path)
    trading.hold(40)
    [closing] = trading.order("flatten")
    assert isinstance(closing, Submit)
    assert closing.time_in_force is TimeInForce.IOC
    assert (closing.side, closing.qty_lots, closing.reduce_only) == (-1, 40, True)


def test_a_flatten_cancels_what_rests_in_the_same_step(model: FixedModel, tmp_path: Path) -> None:
    trading = Trading(model, tmp_path)
    entry = trading.rest()
    assert trading.order("flatten") == [Cancel(client_id=entry.client_id)]


def test_a_pause_opens_nothing_and_lets_exits_go_on(model: FixedModel, tmp_path: Path) -> None:
    trading = Trading(model, tmp_path)
    trading.hold(40)
    trading.target(80)
    trading.order("pause")
    trading.run(2.0)
    assert trading.sent == []
    trading.target(0)
    [exit_] = trading.took(trading.core.step(START + 3 * SECOND_NS, Tick()))
    assert isinstance(exit_, Submit)
    assert (exit_.side, exit_.qty_lots, exit_.reduce_only) == (-1, 40, True)


def test_a_restart_forgets_neither_a_resumed_loss_nor_tighter_limits(
    model: FixedModel, tmp_path: Path
) -> None:
    trading = Trading(model, tmp_path)
    core = trading.core

    def denied(core: Core) -> Denial | None:
        entry = Submit(client_id="a", symbol="BTCUSDT", side=1, qty_lots=4, price_ticks=100_000)
        return core.desk.guard.allow(
            core.now_ns, entry, core.trader.symbols["BTCUSDT"].view(core.now_ns)
        )

    trading.hold(40)
    core.account.mark(core.now_ns, {"BTCUSDT": 100_000.0})
    core.account.restore_marks(  # a day that began with 5,500 more
        msgspec.structs.replace(
            core.account.marks(), day_opening_e8=core.account.marked_e8 + 5_500 * E8
        )
    )
    trading.run(2.0)
    assert denied(core) is Denial.DAILY_LOSS
    trading.order("limits", order_usdt=10.0)
    trading.order("resume")
    assert denied(core) is Denial.ORDER_LIMIT
    again = core_of(model, live_settings(tmp_path), core.snapshot())
    assert again.desk.guard.resumed == core.desk.guard.resumed != (0.0, 0.0)
    assert again.desk.guard.limits.order_usdt == 10.0


def test_an_upgrade_leaves_the_order_and_the_next_core_goes_on_with_it(
    model: FixedModel, tmp_path: Path
) -> None:
    trading = Trading(model, tmp_path)
    entry = trading.rest()
    assert trading.order("stop", leave=1.0) == []
    for tenth in range(1, 31):
        trading.took(trading.core.step(trading.core.now_ns + tenth * SECOND_NS // 10, Tick()))
    assert trading.core.ended
    assert trading.core.reconciliation.left() == []
    assert trading.sent == [entry.submit]
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(trading.core.snapshot()), type=CoreState)
    second = Trading(model, tmp_path, state)
    second.run(2.9)
    assert [order.client_id for order in second.core.orders.open()] == [entry.client_id]
    assert not [action for action in second.sent if isinstance(action, Submit | Cancel)]
    [parent] = second.core.desk.parents_at_work
    assert (parent.parent.id, parent.algorithm.open_lots) == (entry.parent_id, 40)
    second.find(entry)
    second.run(2.95)
    second.target(0)
    second.core.step(START + 4 * SECOND_NS, Tick())
    assert entry.client_id in {o.client_id for o in second.core.orders.open() if o.cancel_sent}


def test_a_flat_symbol_that_the_settings_name_no_more_is_nothing_to_look_at(
    core: Core, model: FixedModel, tmp_path: Path
) -> None:
    told(core, START + SECOND_NS, execution(1, 1, 500, 600_000), execution(2, -1, 500, 600_000))
    account = core.account.snapshot()
    old = Instrument(symbol="SOLUSDT", tick="0.01", lot="0.1", min_qty="0.1", min_notional="5")
    account.holdings["SOLUSDT"] = type(account.holdings["BTCUSDT"])(instrument=old)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(core.snapshot()), type=CoreState)
    settings = live_settings(tmp_path)
    live = msgspec.structs.replace(settings.live, venue="sandbox")
    again = core_of(model, msgspec.structs.replace(settings, live=live), state)
    effects = again.begin(START + 10 * SECOND_NS)
    for tenth in range(100, 140):
        effects += again.step(START + tenth * SECOND_NS // 10, Tick())
    asked = {e.body.symbol for e in effects if isinstance(e, Send) and isinstance(e.body, Query)}
    assert asked == {"", *SYMBOLS}
    again.account.holdings["SOLUSDT"].position_lots = 5
    with pytest.raises(LogError, match=r"in SOLUSDT, which .*market\.watch"):
        require_known(again.snapshot(), tmp_path, SYMBOLS)


def test_deadlines_count_from_the_clock_when_much_waits(model: FixedModel, tmp_path: Path) -> None:
    trading = Trading(model, tmp_path)
    core = trading.core
    core.step(core.now_ns, Command(command="fact", who="w", reason="", limits={"lag_s": 3.0}))
    trading.rest()
    [send] = [s for s in core.requests.under_way.values() if isinstance(s.body, Submit)]
    assert send.deadline_ns == core.now_ns + 5 * SECOND_NS
    core.step(core.now_ns, Command(command="fact", who="w", reason="", limits={"lag_s": 0.0}))
    assert core.requests.lag_ns == 0


def test_a_symbol_that_falls_silent_alone_is_subscribed_anew(
    model: FixedModel, tmp_path: Path
) -> None:
    core = core_of(model, live_settings(tmp_path))
    core.begin(START)
    asked = []
    for now_ns, frame in _frames(INSTRUMENTS, 200):
        core.step(now_ns, PublicFrame(frame=frame))
    for second in range(3, 12):
        asked += [
            (second, effect.topics)
            for effect in core.step(START + second * SECOND_NS, Tick())
            if isinstance(effect, Renew)
        ]
    assert asked[0] == (8, ("orderbook.200.BTCUSDT",)), "after stale_s"
