"""The real core over a recording: its log gives back its state at any step, and every effect again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from execution.orders import Event, Filled
from execution.tca import PARTS
from live import log
from live.core import Core, CoreState
from live.gateway import PlainCodec
from live.history import SymbolHistory
from live.log import Checkpoint, Header, LogWriter
from live.messages import Append, Command, Effect, Input, PublicFrame, Send, Tick
from live.paper import PaperGateway, paper_venues
from live.replay import replay
from live.restoration import checkpoint_of, restore, state_of
from live.safety import SafetyState
from market.bars import COLUMNS, Bars
from market.instruments import Instrument
from market.settings import Execution, Market, Settings
from market.units import E8
from market.wire.capture import read_lines
from market.wire.survey import instruments_of
from proving.torture.decider import RandomModel, SecondAsFeature

_EVENT = msgspec.json.Decoder(Event)
_COST = msgspec.json.Decoder(dict[str, Any])
MS = 1_000_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")
SETTINGS = Settings(
    market=Market(symbols=SYMBOLS), execution=Execution(algorithm="adaptive", deadline_s=4.0)
)
OPENING_E8 = round(SETTINGS.execution.capital_usdt * E8)
HALT = Command(command="halt", who="me", reason="a test", symbol="ETHUSDT")
HEADER = Header(
    venue="paper", account="", source="recorded", instruments={}, settings=b"", code="", run="r"
)


def core(instruments: dict[str, Instrument], state: CoreState | None = None) -> Core:
    return Core(
        SETTINGS,
        instruments,
        model=RandomModel(5, "1"),
        codec=PlainCodec(),
        name="paper",
        at_venue=False,
        state=state,
        evaluator=SecondAsFeature(),
    )


class Run:
    """A recording traded on paper, with its log; ``states`` are those at some places of it."""

    def __init__(
        self,
        folder: Path,
        instruments: dict[str, Instrument],
        lines: list[tuple[int, bytes]],
        last: Input = Tick(),  # noqa: B008
        state: CoreState | None = None,
        books: Mapping[str, SymbolHistory] | None = None,
    ) -> None:
        self.instruments = instruments
        self.core = core(instruments, state)
        self.venue = PaperGateway(paper_venues(instruments, SETTINGS))
        self.out = LogWriter(folder, HEADER, lines[0][0], reserve_bytes=0)
        self.states: dict[tuple[int, int], CoreState] = {}
        self._carry_out(lines[0][0], self.core.begin(lines[0][0], books))
        for n, (now_ns, given) in enumerate([*inputs(lines), (lines[-1][0] + MS, last)]):
            for time_ns, told in self.venue.until(now_ns):
                self._step(time_ns, told)
            self._step(now_ns, given)
            if n % 100 == 0:
                self.out.flush()
                self.states[self.out._number, self.out._offset] = self.state()
            if n % 400 == 399:
                self.out.turn(now_ns, checkpoint_of(self.core.snapshot()))
        self.out.close()

    def books(self) -> dict[str, SymbolHistory]:
        """The market for a process that goes on here, in place of a snapshot."""
        none = Bars(t_ns=np.empty(0, np.int64), values=np.empty((0, len(COLUMNS))))
        return {
            symbol: SymbolHistory(none, state.builder.book, state.ticker)
            for symbol, state in self.core.trader.symbols.items()
        }

    def state(self) -> CoreState:
        return state_of(checkpoint_of(self.core.snapshot()))

    def _step(self, now_ns: int, given: Input) -> None:
        self.out.append_input(now_ns, given)
        self._carry_out(now_ns, self.core.step(now_ns, given))

    def _carry_out(self, now_ns: int, effects: Sequence[Effect]) -> None:
        self.out.append_effects(now_ns, effects)
        self.venue.take(self.core.rows)
        for effect in effects:
            if isinstance(effect, Send):
                self.venue.send(now_ns, effect)


def inputs(lines: list[tuple[int, bytes]]) -> Iterator[tuple[int, Input]]:
    tick_ns = lines[0][0]
    for now_ns, frame in lines:
        while tick_ns + 100 * MS < now_ns:
            tick_ns += 100 * MS
            yield tick_ns, Tick()
        yield now_ns, PublicFrame(frame=frame)


@pytest.fixture(scope="module")
def recording(data_dir: Path) -> tuple[dict[str, Instrument], list[tuple[int, bytes]]]:
    path = next(data_dir.glob("bybit-*.frames.zst"))
    return instruments_of([str(path)], SYMBOLS), list(read_lines(path))


@pytest.fixture(scope="module")
def run(recording: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("log")
    return Run(folder, *recording, HALT), folder


def known(state: CoreState) -> dict[str, Any]:
    """What evidence tells of a state: without marks to market, and facts as of the last second."""
    safety = state.safety or SafetyState()
    encoded = msgspec.json.encode(msgspec.structs.replace(state, safety=safety))  # null for NaN
    plain: dict[str, Any] = msgspec.json.decode(encoded)
    for name in ("equity_e8", "peak_e8", "day", "day_opening_e8"):
        del plain["account"][name]
    del plain["safety"]["facts"]
    # On record when it was last written; a start confirms each by a decision before it acts on it.
    del plain["desk"]["targets"]
    # Learnt anew from the history that a start takes; a step of a margin limit begins anew.
    del plain["exposure"]
    return plain


def test_the_log_gives_back_the_state_of_the_core(run: tuple[Run, Path], tmp_path: Path) -> None:
    """A request whose answer is the last thing in the log counts as under way, and is asked about."""
    made, folder = run
    assert made.core.desk.fills > 0
    assert len(made.states) > 10
    for n, ((segment, end), expected) in enumerate(made.states.items()):
        copy = tmp_path / str(n)
        copy.mkdir()
        path = log.segments(folder)[segment]
        (copy / path.name).write_bytes(path.read_bytes()[:end])
        restored = restore(copy, made.instruments, OPENING_E8)
        assert restored is not None
        now, then = known(restored.state), known(expected)
        asked = {send["number"]: send for send in now["requests"].pop("under_way")}
        open_then = {send["number"]: send for send in then["requests"].pop("under_way")}
        assert asked.items() >= open_then.items()
        assert len(asked) <= len(open_then) + 1
        assert now == then


def test_a_halt_outlives_the_process(run: tuple[Run, Path]) -> None:
    made, folder = run
    restored = restore(folder, made.instruments, OPENING_E8)
    assert restored is not None
    again_ = core(made.instruments, restored.state)
    assert again_.mode("ETHUSDT") == made.core.safety.mode("ETHUSDT")
    assert again_.safety.why("ETHUSDT")[-1:] == ["a test"]


class Again:
    def __init__(self, instruments: dict[str, Instrument], header: Header) -> None:
        self.core = core(instruments, state_of(header.checkpoint))

    def begin(self, now_ns: int) -> Sequence[Effect]:
        return self.core.begin(now_ns)

    def step(self, now_ns: int, given: Input) -> Sequence[Effect]:
        return self.core.step(now_ns, given)

    def checkpoint(self) -> Checkpoint:
        return checkpoint_of(self.core.snapshot())


def test_a_run_of_the_core_repeats_bit_for_bit(run: tuple[Run, Path]) -> None:
    made, folder = run
    told = replay(folder, 0, lambda header: Again(made.instruments, header))
    assert told.difference == ""
    assert told.segments == len(log.segments(folder)) > 3
    assert told.effects > 200


def test_every_parent_ends_with_a_cost_also_one_cut_by_a_crash(
    recording: Any, tmp_path: Path
) -> None:
    instruments, lines = recording
    half = len(lines) // 2
    folder = tmp_path / "log"
    died = Run(folder, instruments, lines[:half])
    restored = restore(folder, instruments, OPENING_E8)
    assert restored is not None
    cut = restored.state.desk.open
    assert any(restored.state.desk.fills.values())
    Run(folder, instruments, lines[half:], state=restored.state, books=died.books())
    records = [
        body for block in log.read(folder) for _, body in block.records if isinstance(body, Append)
    ]
    ends = [_COST.decode(record.body) for record in records if record.kind == "end"]
    filled: Counter[str] = Counter()
    for record in records:
        if record.kind == "event":
            event = _EVENT.decode(record.body)
            filled[record.parent_id] += event.qty_lots if isinstance(event, Filled) else 0
    last = restore(folder, instruments, OPENING_E8)
    assert last is not None
    opened = {record.parent_id for record in records if record.kind == "parent"}
    assert {cost["parent_id"] for cost in ends} == opened - last.state.desk.open.keys()
    assert len(ends) == len({cost["parent_id"] for cost in ends})
    assert {cost["parent_id"] for cost in ends if cost["impact_by"] == "cut"} == set(cut)
    for cost in ends:
        assert cost["filled_lots"] == filled[cost["parent_id"]]
        parts = sum(cost[part] for part in PARTS)
        assert cost["total_bps"] == pytest.approx(parts, abs=1e-9)
