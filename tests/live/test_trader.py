"""The trader is a function of the events: how they are cut and interleaved changes nothing."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from live.core import Core
from live.decisions import Decision
from live.gateway import PlainCodec
from live.messages import Append, Effect, Say
from live.paper import PaperDriver, paper_venues
from live.pre_trade import decay_of
from market.events import EVENT, Events, Field, Flag, Kind
from market.settings import Desk, Market, Settings
from orchestration.backtest.run import FixedModel, load_model
from tests.live.live_market import live_settings, promote
from tests.live.warm import SYMBOLS, Minutes, S, fresh, minutes, snapshot

SECONDS = 24


@pytest.fixture(scope="module")
def market(data_dir: Path) -> Minutes:
    return minutes(data_dir / "usdm-20240808.frames.zst", SECONDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FixedModel:
    root = tmp_path_factory.mktemp("model")
    promote(root, follows="ofi_now")
    return load_model(live_settings(root), "champion", SYMBOLS)


@pytest.fixture(scope="module")
def whole(market: Minutes, model: FixedModel) -> dict[str, list[Any]]:
    """What comes of the minutes, fed by whole seconds."""
    settings = live_settings(Path("unused"), algorithm="passive")
    return by_seconds(Traded(model, settings, market), market).record()


class Traded:
    """A trader under test, and all that it did."""

    def __init__(self, model: FixedModel, settings: Settings, market: Minutes) -> None:
        self.records: list[Append] = []
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.decisions: list[Decision] = []
        core = Core(
            settings,
            market.instruments,
            model=model,
            codec=PlainCodec(),
            name="test",
            at_venue=False,
            on_decision=lambda decision, _: self.decisions.append(decision),
        )
        self.trader = core.trader
        venues = paper_venues(market.instruments, settings)
        self.driver = PaperDriver(core, venues, self._take)
        self.driver.begin(market.start_ns, fresh(market.history))

    def _take(self, effect: Effect) -> None:
        if isinstance(effect, Append):
            self.records.append(effect)
        elif isinstance(effect, Say):
            said = {"error": self.errors, "warning": self.warnings}.get(effect.level, [])
            said.append(effect.event)

    def record(self) -> dict[str, list[Any]]:
        """By symbol: decisions with their vectors, and the ledger's entries without their numbers."""
        done: dict[str, list[Any]] = defaultdict(list)
        for decision in self.decisions:
            told = [repr(getattr(decision, n)) for n in decision.__struct_fields__[:-1]]
            digest = hashlib.sha256(decision.vector.tobytes()).hexdigest()
            done[decision.symbol].append((*told, digest))
        for record in self.records:
            done[record.symbol].append(record)
        return done

    def fills(self) -> int:
        return sum(record.body.startswith(b'{"type":"Filled"') for record in self.records)


def seconds_of(events: Events) -> Iterator[tuple[int, Events]]:
    seconds = events["receive_ns"] // S
    for second in np.unique(seconds):
        yield int(second) * S, events[seconds == second]


def by_seconds(traded: Traded, market: Minutes, cut: Any = None) -> Traded:
    """Feed whole seconds, symbol after symbol; ``cut`` divides a second's rows further."""
    parts = {symbol: dict(seconds_of(rows)) for symbol, rows in market.events.items()}
    for second in sorted(set().union(*parts.values())):
        for symbol in SYMBOLS:
            rows = parts[symbol].get(second)
            if rows is not None:
                for piece in [rows] if cut is None else cut(rows):
                    traded.driver.on_events(symbol, piece)
    traded.driver.close(flatten=True)
    return traded


def frames_of(rows: Events) -> list[Events]:
    ends = np.flatnonzero(rows["flags"] & int(Flag.LAST)) + 1
    return [part for part in np.split(rows, ends) if len(part)]


@pytest.mark.parametrize("algorithm", ["passive", "market"])
def test_interleaved_frames_and_whole_seconds_by_symbol_decide_the_same(
    algorithm: str, market: Minutes, model: FixedModel, tmp_path: Path
) -> None:
    """Live hands over each frame with ticks between them, a backtest seconds of one symbol."""
    settings = live_settings(tmp_path, algorithm=algorithm)
    batch = by_seconds(Traded(model, settings, market), market)
    live = Traded(model, settings, market)
    frames = sorted(
        (
            (int(frame["receive_ns"][0]), symbol, frame)
            for symbol, rows in market.events.items()
            for frame in frames_of(rows)
        ),
        key=lambda item: item[:2],
    )
    tick = market.start_ns
    for time_ns, symbol, frame in frames:
        while tick + 37_000_000 < time_ns:
            tick += 37_000_000  # bare time at odd instants
            live.driver.advance(tick)
        live.driver.on_events(symbol, frame)
    live.driver.close(flatten=True)
    assert batch.fills() > 10, "there is something to compare"
    assert live.record() == batch.record()
    assert not live.errors


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_splitting_a_second_into_calls_changes_nothing(
    seed: int, market: Minutes, model: FixedModel, whole: dict[str, list[Any]]
) -> None:
    """Invariant: for every division of a second's rows at ends of frames, the record is the same."""
    generator = np.random.Generator(np.random.Philox(key=seed))

    def cut(rows: Events) -> list[Events]:
        frames = frames_of(rows)
        places = np.unique(generator.integers(1, max(2, len(frames)), 4)).tolist()
        return [np.concatenate(frames[a:b]) for a, b in pairwise([0, *places, None]) if frames[a:b]]

    settings = live_settings(Path("unused"), algorithm="passive")
    assert by_seconds(Traded(model, settings, market), market, cut).record() == whole


def test_watched_symbols_are_followed_and_never_traded(market: Minutes, model: FixedModel) -> None:
    """One with data, whose beta is known from the history on, and one that nothing is heard of."""
    silent = msgspec.structs.replace(market.instruments["BTCUSDT"], symbol="SOLUSDT")
    several = market._replace(instruments={**market.instruments, "SOLUSDT": silent})
    settings = live_settings(Path("unused"), algorithm="market")
    followed = Market(symbols=("BTCUSDT",), watch=("ETHUSDT", "SOLUSDT"))
    traded = Traded(model, msgspec.structs.replace(settings, market=followed), several)
    leaders = traded.trader.desk.exposure.leaders
    assert leaders is not None
    assert leaders.beta("ETHUSDT", "BTCUSDT") > 0
    by_seconds(traded, several)
    assert traded.fills() > 3
    assert {record.symbol for record in traded.records} <= {"", "BTCUSDT"}
    assert {decision.symbol for decision in traded.decisions} == {"BTCUSDT"}
    assert math.isnan(leaders.beta("SOLUSDT", "BTCUSDT"))


def test_events_of_another_second_are_refused(market: Minutes, model: FixedModel) -> None:
    traded = Traded(model, live_settings(Path("unused")), market)
    rows = market.events["BTCUSDT"]
    traded.driver.on_events("BTCUSDT", rows[rows["receive_ns"] < market.start_ns + 3 * S])
    with pytest.raises(ValueError, match="push one second at a time"):
        traded.driver.advance(market.start_ns + S)


def test_a_gap_of_seconds_holds_the_position_and_enters_nothing(
    market: Minutes, model: FixedModel
) -> None:
    settings = live_settings(Path("unused"), algorithm="market")
    events = market.events["BTCUSDT"].copy()
    broken_ns = market.start_ns + 10 * S
    later = np.flatnonzero(
        (events["receive_ns"] >= broken_ns)
        & (events["kind"] == int(Kind.DELTA))
        & (events["flags"] & int(Flag.FIRST) != 0)
    )
    events["flags"][later[0]] |= int(Flag.GAP)
    # The venue answers with a snapshot: the book is sound again, but five of the last seconds are not,
    # and warm features lack three of fifteen at most.
    healed_ns = broken_ns + 4 * S + S // 2
    frames = frames_of(events)
    before = [frame for frame in frames if frame["receive_ns"][0] < healed_ns]
    after = [frame for frame in frames if frame["receive_ns"][0] >= healed_ns]
    whole = np.concatenate([*before, snapshot(market, "BTCUSDT", healed_ns), *after])
    gapped = market._replace(events=market.events | {"BTCUSDT": whole})
    traded = by_seconds(Traded(model, settings, market), gapped)
    btc = [d for d in traded.decisions if d.symbol == "BTCUSDT"]
    held = [d for d in btc if d.t_ns <= broken_ns][-1]
    assert held.target != 0, "it has a position to hold"
    during = [d for d in btc if broken_ns < d.t_ns < broken_ns + 17 * S]
    assert all(not d.warm and math.isnan(d.expected_bps) for d in during)
    # A break of seconds is no reason to pay for leaving; nothing is entered either.
    assert {d.target for d in during} == {held.target}
    lots = {d.position_lots for d in during if d.t_ns > healed_ns + 2 * S}
    assert len(lots) == 1
    assert lots != {0}
    assert any(d.target for d in traded.decisions if d.symbol == "ETHUSDT" and d.t_ns > healed_ns)


def ticker(time_ns: int, values: dict[Field, int]) -> Events:
    rows = np.zeros(len(values), EVENT)
    rows["receive_ns"] = rows["exchange_ns"] = rows["publish_ns"] = time_ns
    rows["kind"] = int(Kind.TICKER)
    rows["field"], rows["value"] = list(values), list(values.values())
    rows["flags"][-1:] = int(Flag.LAST)
    return rows


#: Rate and mark price of a settlement, at 1e-8.
RATE, MARK = 10_000, 58_000 * 100_000_000


def through_a_settlement(
    source: str, market: Minutes, model: FixedModel, due_ns: int, funding: bool
) -> Traded:
    """What comes of the minutes with a settlement that ``source`` tells of; ``funding`` as in `Desk`."""
    settings = live_settings(Path("unused"), algorithm="market")
    traded = Traded(model, msgspec.structs.replace(settings, desk=Desk(funding=funding)), market)
    for state in traded.trader.symbols.values():
        state.ticker.fields = {}
    frames = [f for f in frames_of(market.events["BTCUSDT"]) if f["kind"][0] != int(Kind.TICKER)]
    foreseen = {Field.MARK_PRICE: MARK, Field.NEXT_FUNDING_MS: due_ns // 1_000_000}
    if source == "recorder":
        frames.append(ticker(due_ns - 3 * S // 2, {Field.FUNDING_RATE: RATE, **foreseen}))
        frames.append(ticker(due_ns, {Field.FUNDING_RATE: 99 * RATE}))
    elif source.startswith("archive"):
        at_ms = due_ns // 1_000_000
        before = {Field.FUNDING_RATE: 99 * RATE, Field.EXPECTED_FUNDING_MS: at_ms - 3000}
        settled = {Field.FUNDING_RATE: RATE, Field.SETTLED_MS: at_ms, Field.SETTLED_RATE: RATE}
        if source == "archive":
            settled[Field.SETTLED_MARK] = MARK
        frames += [ticker(due_ns - 5 * S, before), ticker(due_ns + 20_000_000, settled)]
    else:
        frames.append(ticker(due_ns - 3 * S // 2, foreseen))
    frames.sort(key=lambda frame: int(frame["receive_ns"][0]))
    events = {"BTCUSDT": np.concatenate(frames), "ETHUSDT": market.events["ETHUSDT"][:0]}
    return by_seconds(traded, market._replace(events=events))


def test_a_payment_that_costs_more_than_the_round_trip_is_avoided(
    market: Minutes, model: FixedModel
) -> None:
    """Without fees a bp is dear: the long position that would pay it is closed, and comes back."""
    due_ns = market.start_ns + 12 * S
    traded = through_a_settlement("recorder", market, model, due_ns, True)
    held = {d.t_ns: d.position_lots for d in traded.decisions if d.symbol == "BTCUSDT"}
    assert max(held[ns] for ns in held if ns < due_ns) > 0
    assert held[due_ns] <= 0
    assert not [r for r in traded.records if r.kind == "funding" and b'"paid_e8":-' not in r.body]


def test_a_leaders_shock_delays_the_entry_of_a_reversal_and_not_its_exit(
    market: Minutes, model: FixedModel
) -> None:
    """A short that is to become a long while the leader falls is closed in that second, and turned in the next."""
    trader = Traded(model, live_settings(Path("unused")), market).trader
    state, now_ns = trader.symbols["ETHUSDT"], trader.second_ns + 10 * S  # a gap: no return
    noise, mids = np.random.Generator(np.random.Philox(key=1)), np.array([60_000.0, 3_000.0])
    state.target, state.target_lots, state.signal_ns = -1, -5, now_ns
    long = msgspec.structs.replace(trader._nothing(), expected_bps=30.0, raw_bps=30.0)
    moves = [*noise.normal(scale=1e-4, size=900), -2e-3, 0.0]
    for move in moves:
        now_ns += S
        mids = mids * (1 + move)
        trader.desk.exposure.learn(
            now_ns, dict(zip(("BTCUSDT", "ETHUSDT"), mids.tolist(), strict=True))
        )
        if move in moves[900:]:
            found = trader._target(state, now_ns, long, 5.0, float(mids[1]))
            assert (found, state.target) == ((0, 0) if move else (1, 1))


def test_a_rate_that_is_not_predicted_counts_as_zero_and_is_said_once_for_a_symbol(
    market: Minutes, model: FixedModel
) -> None:
    due_ns = market.start_ns + 12 * S
    with_it, without = (
        through_a_settlement("no rate", market, model, due_ns, funding) for funding in (True, False)
    )
    assert with_it.record() == without.record()
    said = [w for w in with_it.warnings if w.startswith("funding")]
    assert said == ["funding not predicted, taken as zero"] * len(SYMBOLS)


def test_the_threshold_is_what_execution_is_expected_to_pay(
    market: Minutes, model: FixedModel
) -> None:
    """Without fees nothing is saved by waiting, and the round trip costs its spread and depth; with
    them as a maker less than two taker fees."""
    free = through_a_settlement("no rate", market, model, market.start_ns + 12 * S, True)
    costs = {round(d.cost_bps, 3) for d in free.decisions if abs(d.expected_bps) > 0}
    assert costs
    assert 0 < min(costs) <= max(costs) < 2
    settings = live_settings(Path("unused"), algorithm="router")
    settings = msgspec.structs.replace(
        settings, model=msgspec.structs.replace(settings.model, fee_row="vip0")
    )
    paying = by_seconds(Traded(model, settings, market), market)
    costs = [d.cost_bps for d in paying.decisions if d.expected_bps]
    assert costs
    assert all(4.0 < cost < 11.0 for cost in costs)


def test_the_half_life_is_that_of_the_models_slopes(model: FixedModel) -> None:
    """Equal slopes per square root of time: √(1/6) of the minute's return comes in ten seconds."""
    decay = decay_of(model.bundle)
    assert decay.horizon_s == 60
    assert decay.ratio(10) == pytest.approx(math.sqrt(1 / 6), rel=0.03)


@pytest.mark.parametrize("source", ["recorder", "archive", "archive without a mark", "no rate"])
def test_funding_is_settled_at_its_instant_by_its_own_mark_and_rate(
    source: str, market: Minutes, model: FixedModel
) -> None:
    """A recorder's rate that is told at the settlement belongs to the next one; an archive's is its own."""
    due_ns, rate, mark, told = market.start_ns + 12 * S, RATE, MARK, source != "no rate"
    traded = through_a_settlement(source, market, model, due_ns, False)
    held = next(d.position_lots for d in traded.decisions if d.t_ns == due_ns)
    assert held != 0
    payments = [r for r in traded.records if r.kind == "funding"]
    assert traded.trader.unpriced_funding == (not told)
    if told:
        [entry] = payments
        paid = msgspec.json.decode(entry.body)
        assert (paid["time_ns"], paid["rate_e8"]) == (due_ns, rate)
        if source == "archive without a mark":
            # The middle of the book stands in for it.
            assert paid["mark_e8"] == pytest.approx(mark, rel=0.1)
            return
        assert paid["mark_e8"] == mark
        assert paid["position_lots"] == held
        # lots of 0.001 at 58,000 and 1 bp: 0.0058 each, rounded against us at 1e-8
        assert paid["paid_e8"] == math.ceil(held * 0.001 * 58_000 * 1e-4 * 1e8 - 1e-6)
        assert traded.trader.summary()["funding_usdt"] == paid["paid_e8"] / 1e8
    else:
        assert payments == []
