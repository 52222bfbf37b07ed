"""The desk: what it sends for a target while the venue refuses, and what it knows of orders and money."""

from __future__ import annotations

import itertools
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from execution.liquidity import Costs, depth_lots
from execution.orders import (
    Accepted,
    Action,
    Cancel,
    Cancelled,
    Event,
    ExecutionType,
    Filled,
    Liquidity,
    Rejected,
    Submit,
    TimeInForce,
)
from live.desk import Desk
from live.messages import Append, Effect, Say, Send, WalletReport
from live.pre_trade import DEPTH_BPS
from live.safety import Mode, Safety
from live.symbol_state import SymbolState
from market.instruments import BUILT_IN
from market.settings import Execution, Market, Risk, Settings
from market.units import E8
from market.units import SECOND_NS as S
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of
from models_registry.recipe import NO_REGIME, Prediction
from tests.assets.test_costs import cost, parent
from tests.execution.tape import snapshot

BTC = "BTCUSDT"
START = 1_700_000_000 * S


class Refusing:
    """A desk at a venue that refuses every new order until it is told to fill."""

    def __init__(
        self, algorithm: str, position_lots: int, symbols: tuple[str, ...] = (BTC,), **more: Any
    ) -> None:
        settings = Settings(
            market=Market(symbols=(BTC,)),
            execution=msgspec.convert(
                {"algorithm": algorithm, "deadline_s": 60.0} | more, Execution
            ),
        )
        self.market = market = SymbolState(BUILT_IN[BTC], stale_after_s=1e6)
        book = snapshot(START, [(600_000, 9_000)], [(600_001, 9_000)])
        market.take(book)
        self.effects: list[Effect] = []
        self.desk = Desk(
            {BTC: market},
            settings,
            "test",
            costs=Costs(),
            moves_market=False,
            emit=self.effects.append,
        )
        self.desk.on_events(BTC, book)
        self.sent: list[tuple[float, Submit]] = []  #: seconds since the start, and the order
        self.fills = False
        self.now_ns = START
        if position_lots:
            self.desk.take(self.execution("", position_lots, 1, "x0"))

    def execution(self, client_id: str, lots: int, side: int, name: str, **more: Any) -> Filled:
        given: dict[str, Any] = {
            "client_id": client_id,
            "time_ns": self.now_ns,
            "venue_ns": self.now_ns,
            "exec_id": name,
            "symbol": BTC,
            "side": side,
            "qty_lots": lots,
            "price_ticks": 600_000,
            "liquidity": Liquidity.TAKER,
            "fee_e8": 0,
            "leaves_lots": 0,
        }
        return Filled(**(given | more))

    def run(self, seconds: int, target_lots: int) -> None:
        """Let time pass with a target, in tenths of a second."""
        for _ in range(10 * seconds):
            self.now_ns += S // 10
            if self.now_ns % S == 0:
                self.desk.set_target(BTC, target_lots, self.now_ns, None)
            self.desk.step(BTC, self.now_ns)
            actions = [effect.body for effect in self.effects if isinstance(effect, Send)]
            self.effects.clear()
            evidence: list[Event] = []
            for action in actions:
                evidence += self.answer(action)
            self.desk.step(BTC, self.now_ns, evidence)

    def answer(self, action: Action | Any) -> list[Event]:
        times: dict[str, Any] = {"time_ns": self.now_ns, "venue_ns": self.now_ns}
        if isinstance(action, Cancel):
            left = self.desk.orders.by_id[action.client_id].open_lots
            told = {"client_id": action.client_id, "reason": "requested", "leaves_lots": left}
            return [Cancelled(**told, **times)]
        if not isinstance(action, Submit):
            return []
        self.sent.append(((self.now_ns - START) / S, action))
        name = action.client_id
        if not self.fills:
            return [Rejected(client_id=name, reason="not now", **times)]
        crosses = action.time_in_force is TimeInForce.IOC
        fill = self.execution(name, action.qty_lots, action.side, f"{name}/1")
        return [Accepted(client_id=name, **times), *([fill] if crosses else [])]


@pytest.mark.parametrize("algorithm", ["market", "passive"])
def test_an_exit_that_is_refused_never_rests(algorithm: str) -> None:
    """Refused for two minutes, over its deadline: never more than five seconds without a try, and
    flat as soon as the venue takes it."""
    venue = Refusing(algorithm, 10)
    venue.run(120, 0)
    times = [0.0, *(at for at, _ in venue.sent), 120.0]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 5.2
    assert all(order.reduce_only and order.side == -1 for _, order in venue.sent)
    venue.fills = True
    venue.run(7, 0)
    assert venue.desk.position_lots(BTC) == 0


def test_entries_pause_and_what_reduces_does_not() -> None:
    """Refused five times an entry pauses for the deadline's length; a target of less comes through."""
    venue = Refusing("market", 10)
    venue.run(50, 20)
    assert [order.side for _, order in venue.sent] == [1] * 5
    venue.fills = True
    venue.run(5, 20)
    assert venue.desk.position_lots(BTC) == 10
    venue.run(2, 4)
    assert venue.desk.position_lots(BTC) == 4
    # Through zero: what reduces goes on, the rest waits for the end of the pause.
    venue.run(2, -6)
    assert venue.desk.position_lots(BTC) == 0
    venue.run(20, -6)
    assert venue.desk.position_lots(BTC) == -6


def test_a_flattening_hurries_an_exit_that_rests_already() -> None:
    """The exit would rest for a minute; FLATTEN cancels it and crosses, by one order of the whole position."""
    venue, mode = Refusing("router", 10), Mode.NORMAL
    venue.fills = True
    venue.desk.govern(lambda symbol: mode)
    venue.run(3, 0)
    assert [order.time_in_force for _, order in venue.sent] == [TimeInForce.POST_ONLY]
    assert venue.desk.position_lots(BTC) == 10
    mode = Mode.FLATTEN
    venue.run(2, 0)
    assert venue.desk.position_lots(BTC) == 0
    assert [order.qty_lots for _, order in venue.sent] == [10, 10]


def test_an_execution_of_no_order_of_ours_moves_position_and_guard() -> None:
    """A liquidation of six of ten lots: the next exit is of four, and not more."""
    venue = Refusing("market", 10)
    bust = venue.execution("", 6, -1, "bust", execution=ExecutionType.LIQUIDATION)
    assert venue.desk.take(bust) == BTC
    assert venue.desk.take(bust) == ""
    assert venue.desk.position_lots(BTC) == 4
    assert venue.desk.guard.allow(
        venue.now_ns,
        Submit(
            client_id="a",
            symbol=BTC,
            side=-1,
            qty_lots=5,
            price_ticks=600_000,
            reduce_only=True,
        ),
        venue.market.view(venue.now_ns),
    )
    venue.fills = True
    venue.run(2, 0)
    assert [order.qty_lots for _, order in venue.sent] == [4]
    assert venue.desk.position_lots(BTC) == 0


@pytest.mark.parametrize(
    ("equity_usdt", "binding"), [(0.0, "equity"), (-5.0, "equity"), (100.0, "symbol")]
)
def test_no_size_is_said_once_with_the_cap_that_leaves_none(
    equity_usdt: float, binding: str
) -> None:
    """No equity, or a lot of 60 USDT where the symbol's cap is 25."""
    venue = Refusing("market", 0)
    desk, mid_ticks = venue.desk, {BTC: 600_000.5}
    desk.account.opening_e8 = round(equity_usdt * E8)
    desk.account.mark(START, mid_ticks)
    desk.exposure.mark(mid_ticks)
    strong = Prediction(
        expected_bps=30.0, raw_bps=30.0, by_horizon=(30.0,), regime=NO_REGIME, error_bps=1.0, scale_bps=2.0
    )  # fmt: skip
    sizes = [desk.sizes.decide(BTC, 1, START, 60_000.05, strong, 1.0, 60.0) for _ in range(2)]
    assert [(size.lots, size.binding) for size in sizes] == [(0, binding)] * 2
    said = [e for e in venue.effects if isinstance(e, Say) and e.event == "no size"]
    assert [line.fields["binding"] for line in said] == [binding]


def test_sizes_and_leverage_are_of_the_wallet_where_it_holds_less() -> None:
    """A capital of 100,000 with a tenth of it at the venue is sized as a capital of a tenth; with ten times, as it
    is."""
    found = []
    for capital, wallet in ((100_000.0, 10_000), (10_000.0, 10_000), (10_000.0, 100_000)):
        desk, mid_ticks = Refusing("market", 0, capital_usdt=capital).desk, {BTC: 600_000.5}
        told = WalletReport(equity_e8=wallet * E8, balance_e8=wallet * E8)
        desk.exposure.evidence(START, told)
        desk.account.mark(START, mid_ticks)
        desk.exposure.mark(mid_ticks)
        desk.guard.mark(mid_ticks)
        strong = Prediction(
            expected_bps=300.0, raw_bps=300.0, by_horizon=(300.0,), regime=NO_REGIME, error_bps=1.0, scale_bps=2.0
        )  # fmt: skip
        size = desk.sizes.decide(BTC, 1, START, 60_000.05, strong, 1.0, 60.0)
        found.append((desk.guard.room_usdt(BTC)[1], size.caps["symbol"], size.lots))
    assert found == [found[1]] * 3
    assert found[1][0] == 30_000.0


def test_a_dearer_account_than_assumed_is_no_error_of_an_estimate() -> None:
    """The model's fee row has 2 and 5.5 bps; the account paid 4 as maker for the half that filled."""
    desk, row = Refusing("market", 0).desk, parent("p")
    paid = cost(row, filled=5, fees_bps=2.0, end_ns=row.deadline_ns)
    assert desk.pre_trade.measured(row, paid, 3.0) == 3.0 - (2.0 - 0.5 * 2.0)


def test_a_parent_given_up_early_or_without_a_fill_is_no_evidence_for_the_ramp() -> None:
    """Forty of them, each cheaper than expected by what it did not do, hide no hundred dear ones."""
    desk, row = Refusing("market", 0).desk, parent("p")
    desk.sizes.ramp.load("m")
    for n in range(100):
        desk._measured(row, cost(row, filled=10), 2.0 + n % 2)
    early = {"end_ns": row.deadline_ns - 1}
    for nothing in (cost(row, filled=0), *(cost(row, filled=n, **early) for n in (0, 5))):
        for _ in range(40):
            desk._measured(row, nothing, -2.9)
    assert (desk.sizes.ramp.state.parents, desk.sizes.ramp.is_dear) == (100, True)
    late = cost(row, filled=5, end_ns=row.deadline_ns)
    desk._measured(row, late, 2.0)
    assert desk.sizes.ramp.state.parents == 101


@pytest.mark.parametrize("algorithm", ["market", "router"])
def test_a_limit_of_margin_takes_a_quarter_at_once_and_each_minute(algorithm: str) -> None:
    """Under REDUCE, by reduce-only orders, whatever the target; a limit of losses only forbids more."""
    venue = Refusing(algorithm, 100)
    venue.fills = True
    safety = Safety([BTC], Risk(), lambda effect: None)
    venue.desk.govern(safety.mode)
    venue.desk.exposure.govern(safety, lambda *_: None)
    safety.see(START, "day_loss_usdt", 1e9)
    venue.run(5, 200)
    assert venue.desk.position_lots(BTC) == 100
    safety.see(START, "liquidation_bps", 300.0, BTC)
    held = []
    for seconds in (5, 60, 60):
        venue.run(seconds, 200)
        held.append(venue.desk.position_lots(BTC))
    assert held == [75, 56, 42]
    assert all(order.reduce_only for _, order in venue.sent)
    safety.see(START, "liquidation_bps", 1_000.0, BTC)
    venue.run(65, 42)
    assert venue.desk.position_lots(BTC) == 42


def test_a_step_of_margin_does_not_wait_for_an_exit_that_rests() -> None:
    venue = Refusing("router", 100)
    venue.fills = True
    safety = Safety([BTC], Risk(), lambda effect: None)
    venue.desk.govern(safety.mode)
    venue.desk.exposure.govern(safety, lambda *_: None)
    venue.run(3, 0)
    assert venue.desk.position_lots(BTC) == 100
    safety.see(venue.now_ns, "liquidation_bps", 300.0, BTC)
    venue.run(3, 0)
    assert venue.desk.position_lots(BTC) <= 75


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_the_recorded_depth_is_that_of_the_whole_book(symbol: str, data_dir: Path) -> None:
    """Against the recording's own levels, kept without our book; the five levels shown hold less."""
    recording = data_dir / "bybit-linear-20260809.frames.zst"
    instruments = instruments_of([str(recording)], (symbol,))
    instrument, decoder = instruments[symbol], Decoder(instruments, 200, (symbol,), follow=False)
    tick, lot = Decimal(instrument.tick), Decimal(instrument.lot)
    state, book = SymbolState(instrument, stale_after_s=1e6), {"b": {}, "a": {}}
    compared = short = 0
    for line in next(read_blocks(recording, size=8 << 20)).data.splitlines():
        receive_ns, _, frame = line.partition(b" ")
        rows = decoder.decode_frame(int(receive_ns), frame).events.get(symbol)
        if rows is None or f'"topic":"orderbook.200.{symbol}"'.encode() not in frame[:80]:
            continue
        state.builder.close_until(int(receive_ns) // S * S)
        state.take(rows)
        told = msgspec.json.decode(frame)
        for side, levels in book.items():
            if told["type"] == "snapshot":
                levels.clear()
            levels |= {Decimal(price): Decimal(size) for price, size in told["data"][side]}
        for side, levels in ((1, book["b"]), (-1, book["a"])):
            mid = (
                max(p for p, n in book["b"].items() if n)
                + min(p for p, n in book["a"].items() if n)
            ) / 2
            within = mid * 3 / 10_000
            held = sum(n for price, n in levels.items() if abs(price - mid) <= within) / lot
            view = state.view(int(receive_ns))
            assert view.mid_ticks == float(mid / tick)
            assert depth_lots(view.levels(side), view.mid_ticks, DEPTH_BPS) == held
            compared += 1
            short += sum(lots for _, lots in (view.bids if side > 0 else view.asks)) < held
    assert compared > 300
    assert short > 0.9 * compared


def test_the_end_ends_parents_and_leaves_one_with_an_open_order_to_the_next_start() -> None:
    venue = Refusing("market", 10)
    venue.run(20, 0)
    venue.desk.finish(venue.now_ns)
    (ended,) = (e.parent_id for e in venue.effects if isinstance(e, Append) and e.kind == "end")
    assert venue.sent[0][1].client_id.startswith(ended)
    unanswered = Refusing("market", 10)
    unanswered.answer = lambda action: []  # type: ignore[method-assign]
    unanswered.run(20, 0)
    unanswered.desk.finish(unanswered.now_ns)
    assert not [e for e in unanswered.effects if isinstance(e, Append) and e.kind == "end"]
