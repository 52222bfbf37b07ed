"""The paper venue owes what every venue owes, at the settings' fees and latencies."""

from __future__ import annotations

import msgspec
import pytest

from execution.orders import Filled
from live.paper import PaperVenue
from market.settings import Execution, Model, Settings
from tests.execution.tape import INSTRUMENT, SYMBOL, Tape, limit, market
from tests.execution.venue_contract import VenueContract


def paper(settings: Settings | None = None, **positions: int) -> PaperVenue:
    immediate = Execution(entry_latency_ms=0.0, response_latency_ms=0.0)
    return PaperVenue({SYMBOL: INSTRUMENT}, settings or Settings(execution=immediate), positions)


class TestPaperVenue(VenueContract):
    @pytest.fixture
    def tape(self) -> Tape:
        return Tape(paper()).opens()


@pytest.mark.parametrize(("row", "bps"), [("vip0", 5.5), ("vip3", 3.5), ("zero", 0.0)])
def test_takers_pay_the_fee_row_of_the_settings(row: str, bps: float) -> None:
    settings = Settings(
        model=msgspec.convert({"fee_row": row}, Model),
        execution=Execution(entry_latency_ms=0.0, response_latency_ms=0.0),
    )
    tape = Tape(paper(settings)).opens()
    filled = [e for e in tape.send(market("a", 1, 4)) if isinstance(e, Filled)]
    assert sum(e.fee_e8 for e in filled) == round(4 * 101 * 1e8 * bps / 1e4)


def test_an_order_takes_the_latencies_of_the_settings_to_be_answered() -> None:
    settings = Settings(execution=Execution(entry_latency_ms=30.0, response_latency_ms=20.0))
    tape = Tape(paper(settings)).opens()
    tape.simulator.send([market("a", 1, 1)])
    assert tape.wait(49_000_000) == []
    assert len(tape.wait(2_000_000)) == 2


def test_a_busy_market_takes_longer_where_the_settings_say_so() -> None:
    execution = Execution(entry_latency_ms=30.0, response_latency_ms=20.0, busy_latency_ms=1_000.0)
    tape = Tape(paper(Settings(execution=execution))).opens()
    tape.simulator.send([market("a", 1, 1)])
    # The six rows of the snapshot a moment ago: six milliseconds each way.
    assert tape.wait(61_000_000) == []
    assert len(tape.wait(2_000_000)) == 2


@pytest.mark.parametrize(("queue", "filled"), [("pessimistic", 0), ("optimistic", 3)])
def test_the_bounds_are_queue_models_of_the_settings(queue: str, filled: int) -> None:
    execution = msgspec.convert({"queue": queue, "entry_latency_ms": 0.0}, Execution)
    tape = Tape(paper(Settings(execution=execution))).opens()
    tape.send(limit("a", 1, 100, 5))
    # Ten in front, four behind; six of the fourteen leave, and seven trade.
    tape.shows(bids=[(100, 14)])
    tape.shows(bids=[(100, 8)])
    tape.prints(-1, 100, 7)
    assert tape.position == filled


def test_positions_of_earlier_runs_are_carried_on() -> None:
    tape = Tape(paper(**{SYMBOL: -7})).opens()
    tape.send(market("a", 1, 4))
    assert tape.position == -3


def test_settings_alone_decide_the_queue_model() -> None:
    with pytest.raises(ValueError, match="queue"):
        paper(Settings(execution=msgspec.structs.replace(Execution(), queue="none")))
