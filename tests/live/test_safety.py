"""Safety: each limit acts at its value, clears as its row says, and nothing forgets a loss."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from live.messages import Command, Effect, Say
from live.safety import LIMITS, SETTINGS_ALONE, Limit, Mode, Safety, SafetyState
from market.settings import Risk
from market.units import DAY_NS, SECOND_NS

T0 = 1_800_000_000 * SECOND_NS
A, B = "BTCUSDT", "ETHUSDT"


class Desk:
    """A safety with its lines."""

    def __init__(self, risk: Risk | None = None, state: SafetyState | None = None) -> None:
        self.lines: list[Say] = []
        self.safety = Safety((A, B), risk or Risk(), self._emit, state)
        self.safety.second(T0)

    def _emit(self, effect: Effect) -> None:
        assert isinstance(effect, Say)
        self.lines.append(effect)

    def order(self, command: str, symbol: str = "", **limits: float) -> None:
        self.safety.command(
            T0,
            Command(command=command, who="ann", reason="test", symbol=symbol, limits=limits),
        )

    def again(self) -> Desk:
        """The same after a crash and a restart from the checkpoint on disk."""
        stored = msgspec.json.encode(self.safety.snapshot())
        return Desk(state=msgspec.json.decode(stored, type=SafetyState))


def bad(limit: Limit) -> float:
    return limit.bound(Risk()) * (0.99 if limit.below else 1.01)


def good(limit: Limit) -> float:
    return limit.bound(Risk()) * (limit.ease * 1.01 if limit.below else limit.ease * 0.9)


def test_what_is_used_of_limits_is_the_worst_value_less_what_was_resumed_from() -> None:
    desk, risk = Desk(), Risk()
    for symbol, away in ((A, 900.0), (B, math.inf)):
        desk.safety.see(T0, "liquidation_bps", away, symbol)
    desk.safety.see(T0, "gap_s", 1.5, B)
    desk.safety.see(T0, "day_loss_usdt", risk.daily_loss_usdt + 10.0)
    desk.order("resume")
    desk.safety.see(T0, "day_loss_usdt", risk.daily_loss_usdt + 60.0)
    assert desk.safety.used() == {
        "liquidation_bps": 900.0, "liquidation_flatten_bps": 900.0, "gap_s": 1.5,
        "gap_flatten_s": 1.5, "daily_loss_usdt": 50.0,
    }  # fmt: skip


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_each_limit_acts_says_so_once_and_is_counted(limit: Limit) -> None:
    desk = Desk()
    for n in range(3):
        desk.safety.see(T0 + n, limit.fact, bad(limit), A)
    assert desk.safety.mode(A) >= limit.action
    assert desk.safety.mode(B) == Mode.NORMAL
    said = [x for x in desk.lines if x.fields["limit"] == limit.name]
    assert [x.event for x in said] == ["limit reached"]
    assert desk.safety.counts[limit.name] == 1
    assert limit.name in desk.safety.why(A)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_each_limit_clears_as_its_row_says_and_not_earlier(limit: Limit) -> None:
    desk = Desk()
    desk.safety.see(T0, limit.fact, bad(limit))
    almost = limit.bound(Risk()) * (1.01 if limit.below else 0.99)
    desk.safety.see(T0 + 1, limit.fact, almost)
    assert limit.name in desk.safety.why(A), "the limit has hysteresis"
    desk.safety.see(T0 + 2, limit.fact, good(limit))
    assert (limit.name in desk.safety.why(A)) == (limit.clears in ("day", "resume"))
    desk.safety.second(T0 + DAY_NS)
    assert (limit.name in desk.safety.why(A)) == (limit.clears == "resume")
    desk.order("resume")
    assert limit.name not in desk.safety.why(A)
    cleared = [x for x in desk.lines if x.fields.get("limit") == limit.name][1:]
    assert [x.event for x in cleared] == ["limit cleared"]


def test_no_knowledge_of_a_fact_changes_nothing() -> None:
    desk = Desk()
    desk.safety.see(T0, "day_loss_usdt", math.nan)
    assert desk.safety.mode(A) == Mode.NORMAL
    desk.safety.see(T0, "day_loss_usdt", 6000.0)
    desk.safety.see(T0, "day_loss_usdt", math.nan)
    assert desk.safety.mode(A) == Mode.REDUCE


def test_a_gap_of_a_second_closes_nothing_and_one_of_a_minute_does() -> None:
    desk = Desk()
    modes = {}
    for seconds in (0, 1, 2, 59, 60):
        desk.safety.see(T0, "gap_s", float(seconds), A)
        modes[seconds] = desk.safety.mode(A)
    assert modes == {0: 0, 1: 0, 2: Mode.PAUSE, 59: Mode.PAUSE, 60: Mode.FLATTEN}
    desk.safety.see(T0, "gap_s", 0.0, A)
    assert desk.safety.mode(A) == Mode.NORMAL


def test_a_resumed_decay_alarm_stays_lifted_until_the_next_alarm() -> None:
    desk, modes = Desk(), []
    for alarm_s in (1_000.0, 1_000.0, 4_600.0, 0.0):
        desk = desk.again()
        desk.order("fact", decay=alarm_s)
        modes.append(desk.safety.mode(A))
        if len(modes) == 1:
            desk.order("resume")
    assert modes == [Mode.PAUSE, Mode.NORMAL, Mode.PAUSE, Mode.NORMAL]


def test_decisions_3_s_late_open_nothing() -> None:
    desk = Desk()
    desk.order("fact", late_s=3.2)
    assert desk.safety.mode(A) == Mode.PAUSE
    desk.order("fact", late_s=0.01)
    assert desk.safety.mode(A) == Mode.NORMAL


def test_a_burst_of_rejects_pauses_until_a_minute_is_quiet() -> None:
    desk = Desk()
    for n in range(20):
        desk.safety.rejected(T0 + n * SECOND_NS)
    assert desk.safety.mode(A) == Mode.PAUSE
    desk.safety.second(T0 + 68 * SECOND_NS)
    assert desk.safety.mode(A) == Mode.PAUSE, "11 are left of the last minute"
    desk.safety.second(T0 + 71 * SECOND_NS)
    assert desk.safety.mode(A) == Mode.NORMAL


def test_a_crash_loop_does_not_lose_the_daily_limit_again() -> None:
    desk = Desk()
    desk.safety.see(T0, "day_loss_usdt", 5000.0)
    for _ in range(5):
        desk = desk.again()
        desk.safety.see(T0, "day_loss_usdt", 0.0)  # an account that began anew would say so
        assert desk.safety.mode(A) == Mode.REDUCE
    desk.safety.second(T0 + DAY_NS)
    assert desk.safety.mode(A) == Mode.NORMAL


def test_a_resumed_loss_may_grow_by_its_limit_once_more() -> None:
    desk = Desk()
    desk.safety.see(T0, "day_loss_usdt", 5200.0)
    desk.order("resume")
    desk = desk.again()
    desk.safety.see(T0, "day_loss_usdt", 10_199.0)
    assert desk.safety.mode(A) == Mode.NORMAL
    desk.safety.see(T0, "day_loss_usdt", 10_200.0)
    assert desk.safety.mode(A) == Mode.REDUCE
    desk.safety.second(T0 + DAY_NS)
    desk.safety.see(T0 + DAY_NS, "day_loss_usdt", 5000.0)
    assert desk.safety.mode(A) == Mode.REDUCE, "a new day has the whole limit, and no more"


def test_what_was_won_back_after_a_resume_is_not_lost_once_more() -> None:
    desk = Desk()
    limit = Risk().drawdown_usdt
    desk.safety.see(T0, "drawdown_usdt", limit + 200.0)
    desk.order("resume")
    for value, resumed in ((limit, limit), (limit + 100.0, limit), (300.0, 300.0), (0.0, 0.0)):
        desk.safety.changed = False
        desk.safety.see(T0, "drawdown_usdt", value)
        assert desk.safety.resumed == (0.0, resumed), "the guard's too"
        assert desk.safety.changed == (value == resumed), "on record"
        desk = desk.again()
    desk.safety.see(T0, "drawdown_usdt", limit)
    assert desk.safety.mode(A) == Mode.REDUCE


def test_orders_of_operators_stand_over_a_restart_until_resumed() -> None:
    desk = Desk()
    desk.order("pause", A)
    desk.order("halt")
    desk = desk.again()
    assert desk.safety.mode(A) == desk.safety.mode(B) == Mode.HALT
    desk.order("resume", A)
    assert desk.safety.mode(A) == Mode.HALT, "what was ordered for all is lifted for all"
    desk.order("flatten", B)
    desk.order("resume")
    assert desk.safety.mode(A) == desk.safety.mode(B) == Mode.NORMAL
    assert all(x.fields["who"] == "ann" and x.fields["reason"] == "test" for x in desk.lines)


def test_resuming_a_symbol_leaves_the_limits_of_all() -> None:
    desk = Desk()
    desk.safety.see(T0, "unexplained", 1.0, A)
    desk.safety.see(T0, "drawdown_usdt", 20_000.0)
    desk.order("resume", A)
    assert desk.safety.mode(A) == Mode.REDUCE
    desk.safety.see(T0, "unexplained", 1.0, A)
    assert desk.safety.mode(A) == Mode.HALT, "and it is halted anew"


def test_limits_only_tighten_and_stay_tight_over_a_restart() -> None:
    desk = Desk()
    desk.order("limits", daily_loss_usdt=1000.0, liquidation_bps=800.0, stale_s=3.0)
    desk.order("limits", daily_loss_usdt=2000.0)
    desk.order("limits", liquidation_bps=700.0)
    desk.order("limits", order_usdt=0.0)
    desk.order("limits", close_bps=1.0)
    desk.order("limits", nonsense=1.0)
    desk = desk.again()
    assert desk.safety.limits == msgspec.structs.replace(
        Risk(), daily_loss_usdt=1000.0, liquidation_bps=800.0, stale_s=3.0
    )
    desk.safety.see(T0, "day_loss_usdt", 1000.0)
    assert desk.safety.mode(A) == Mode.REDUCE


def test_what_is_read_at_the_start_alone_is_tightened_by_no_order_of_any_log() -> None:
    fixed = dict.fromkeys(sorted(SETTINGS_ALONE), 5.0)
    desk = Desk()
    desk.order("limits", **fixed)
    refused = [x.fields["limit"] for x in desk.lines if x.event == "limit not changed"]
    assert refused == [*fixed]
    assert desk.safety.limits == Desk(state=SafetyState(limits=fixed)).safety.limits == Risk()


def test_a_refused_loosening_is_one_line_each() -> None:
    desk = Desk()
    desk.order("limits", daily_loss_usdt=9000.0, nonsense=1.0)
    refused = [x.fields["limit"] for x in desk.lines if x.event == "limit not changed"]
    assert refused == ["daily_loss_usdt", "nonsense"]
    assert desk.safety.limits == Risk()


def test_tighter_settings_win_over_a_stored_order() -> None:
    desk = Desk()
    desk.order("limits", daily_loss_usdt=1000.0)
    safety = Desk(Risk(daily_loss_usdt=500.0), desk.safety.snapshot()).safety
    assert safety.limits.daily_loss_usdt == 500.0


FACTS = sorted({limit.fact for limit in LIMITS})


@given(
    st.lists(
        st.tuples(st.sampled_from(FACTS), st.floats(0, 1e5), st.sampled_from(("", A, B))),
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_the_mode_is_the_strictest_reached_whatever_restarts(
    facts: list[tuple[str, float, str]], crash: int
) -> None:
    """A restart at any instant changes no mode, and no mode is laxer than a fact now beyond its limit."""
    plain, restarted = Desk(), Desk()
    last: dict[tuple[str, str], float] = {}
    for n, (fact, value, symbol) in enumerate(facts):
        if n == crash:
            restarted = restarted.again()
        for desk in (plain, restarted):
            desk.safety.see(T0 + n, fact, value, symbol)
        last[fact, symbol] = value
    for symbol in (A, B):
        assert plain.safety.mode(symbol) == restarted.safety.mode(symbol)
        for limit in LIMITS:
            for value in (last.get((limit.fact, s)) for s in ("", symbol)):
                if value is not None and (
                    value <= limit.bound(Risk()) if limit.below else value >= limit.bound(Risk())
                ):
                    assert plain.safety.mode(symbol) >= limit.action


def test_held_is_what_only_a_person_lifts() -> None:
    desk = Desk()
    desk.safety.see(T0, "gap_s", 1000.0, A)
    desk.order("pause", A)
    assert desk.safety.mode(A) is Mode.FLATTEN
    assert desk.safety.held == [], "both end by themselves, or close nothing"
    desk.safety.see(T0, "unexplained", 1.0, A)
    desk.order("flatten", B)
    assert desk.safety.held == desk.again().safety.held == ["flatten by ann", "unexplained"]
    desk.order("resume")
    assert desk.safety.held == []


def test_what_still_holds_is_not_resumed_away() -> None:
    desk = Desk()
    desk.safety.see(T0, "gap_s", 30.0, A)
    desk.order("resume")
    assert desk.safety.mode(A) == Mode.PAUSE
