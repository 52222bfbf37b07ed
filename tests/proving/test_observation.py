"""The observation of a market, and probe orders at both ends of its queues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from market.bars import bars_from_chunks
from market.events import Events, Flag
from market.instruments import BUILT_IN, Instrument
from market.settings import Settings
from proving.realism.conflation import conflated
from proving.realism.observation import FRAMES_A_SECOND, PROFILE_BPS, Observation, Observer, observe
from proving.realism.probes import Prober
from tests.execution.tape import INSTRUMENT, frame, snapshot, trade
from tests.market.streams import recorded

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def at(seconds: float) -> int:
    return START + round(seconds * SECOND)


def probed(*rows: Events) -> dict[tuple[int, int], float]:
    """Seconds to the fill of the four orders placed first, by (side, back); -1 when unfilled."""
    prober = Prober(every_ns=3600 * SECOND, deadline_ns=10 * SECOND)
    prober.push(np.concatenate([snapshot(at(0)), *rows, frame(at(60))]))
    found = prober.finish()
    return {
        (int(p["side"]), int(p["back"])): (
            -1.0 if p["filled_ns"] < 0 else (int(p["filled_ns"]) - at(0)) / SECOND
        )
        for p in found[found["placed_ns"] == at(0)]
    }


def test_the_front_fills_at_the_first_trade_the_back_past_the_queue() -> None:
    # Ten lots stand at the best bid: the eleventh sold there is the back order's.
    sells = [trade(at(1), -1, 100, 4), trade(at(2), -1, 100, 6), trade(at(3), -1, 100, 1)]
    found = probed(*sells)
    assert found == {(1, 0): 1.0, (1, 1): 3.0, (-1, 0): -1.0, (-1, 1): -1.0}


def test_a_smaller_displayed_quantity_bounds_the_queue_ahead() -> None:
    found = probed(frame(at(1), [(100, 3)]), trade(at(2), -1, 100, 3), trade(at(3), -1, 100, 1))
    assert found[1, 1] == 3.0


def test_a_trade_through_or_an_opposite_best_at_the_price_fills_both() -> None:
    through = probed(trade(at(1), -1, 99, 1))
    assert (through[1, 0], through[1, 1]) == (1.0, 1.0)
    # All asks are lifted and the bids follow: the ask orders at 101 are reached.
    moved = frame(at(2), [(101, 5)], [(101, 0)])
    reached = probed(moved)
    assert (reached[-1, 0], reached[-1, 1]) == (2.0, 2.0)


def test_rpi_and_block_trades_fill_no_probe() -> None:
    hidden = [trade(at(1), -1, 100, 50, flag) for flag in (Flag.RPI, Flag.BLOCK)]
    assert set(probed(*hidden).values()) == {-1.0}


def test_probes_do_not_fill_after_their_deadline() -> None:
    assert probed(trade(at(9.9), -1, 100, 1))[1, 0] == 9.9
    assert probed(trade(at(10.1), -1, 100, 1))[1, 0] == -1.0


def test_probes_with_a_deadline_past_the_stream_are_left_out() -> None:
    prober = Prober(every_ns=SECOND, deadline_ns=10 * SECOND)
    prober.push(np.concatenate([snapshot(at(0)), *(frame(at(n)) for n in range(1, 21))]))
    found = prober.finish()
    assert sorted(set(found["placed_ns"].tolist())) == [at(n) for n in range(11)]


def test_the_front_never_fills_after_the_back(data_dir: Path) -> None:
    """Invariant, on a recording: more queue in front never fills earlier."""
    prober = Prober()
    prober.push(recorded(data_dir, "usdm-20240718", "BTCUSDT", 120))
    found = prober.finish()
    front, back = (found[found["back"] == side]["filled_ns"].astype(float) for side in (0, 1))
    front[front < 0] = back[back < 0] = np.inf
    assert len(front) > 100
    assert np.all(front <= back)
    assert np.any(front < back)


def scripted() -> list[Events]:
    """Three seconds of a book with prices of 100,000 ticks, so that a tick is 0.1 bps."""
    bids, asks = ([(100_000 + s * n, 10) for n in range(60)] for s in (-1, 1))
    asks = [(price + 1, lots) for price, lots in asks]
    rows = [snapshot(at(0.05), bids, asks)]
    rows += [
        trade(at(0.5), 1, 100_001, 3),
        trade(at(0.5), 1, 100_001, 2),
        trade(at(0.6), -1, 100_000, 1),
    ]
    rows += [trade(at(0.7), -1, 100_000, 9, Flag.BLOCK)]
    # The best bid falls to 99,999 and comes back within one period: the slower feed sees neither.
    rows += [frame(at(1.01), [(100_000, 0)]), frame(at(1.05), [(100_000, 10)])]
    rows += [frame(at(1.5), [(100_000, 0)]), frame(at(2.85), [(100_000, 4)])]
    return rows


def test_an_observation_by_hand() -> None:
    seen = observe("hand", scripted(), INSTRUMENT, Settings())
    assert (seen.label, seen.symbol, seen.seconds, seen.crossed) == ("hand", "TEST", 3, 0)
    # Prints of one side and instant are one order; block trades are none.
    assert seen.orders[["side", "lots"]].tolist() == [(1, 5), (-1, 1)]
    assert [(int(t) - START) / SECOND for t in seen.frames["t_ns"]] == [0.1, 1.1, 1.5, 2.9]
    assert seen.frames["bid"].tolist() == [100_000, 100_000, 99_999, 100_000]
    assert seen.frames["bid_lots"].tolist() == [10, 10, 10, 4]
    # Within 1 bps of the mid, ten ticks, stand ten levels of ten lots on either side.
    assert seen.frames["bid_near"][0] == sum(10 * (100_000 - n) for n in range(10))
    assert seen.frames["ask_near"][0] == sum(10 * (100_001 + n) for n in range(10))
    # The profile adds up by distance and ends where the book does: at 59.5 ticks, 5.95 bps.
    by_distance = seen.profile[0, 0]
    assert by_distance[PROFILE_BPS == 1.0] == seen.frames["bid_near"][0]
    assert np.all(np.diff(by_distance) > 0)
    assert seen.level_lots[0].tolist() == [[10] * 20] * 2


def test_a_depth_profile_is_nan_past_the_last_level() -> None:
    # Twenty levels a side reach 1.95 bps of the mid.
    bids, asks = ([(100_000 + s * n + (s > 0), 10) for n in range(20)] for s in (-1, 1))
    seen = observe("short", [snapshot(at(0), bids, asks), frame(at(1))], INSTRUMENT, Settings())
    assert np.array_equal(np.isnan(seen.profile[0, 0]), PROFILE_BPS > 1.95)


@pytest.fixture(scope="module")
def minute(data_dir: Path) -> tuple[Events, Observation, Instrument]:
    events = recorded(data_dir, "usdm-20240718", "BTCUSDT", 60)
    instrument = BUILT_IN["BTCUSDT"]
    return events, observe("minute", [events], instrument, Settings()), instrument


def test_an_observation_does_not_depend_on_chunk_sizes(
    minute: tuple[Events, Observation, Instrument],
) -> None:
    events, whole, instrument = minute
    observer = Observer("minute", instrument, Settings())
    for piece in np.array_split(events, 37):
        observer.push(piece)
    cut = observer.finish()
    assert cut.frames.tobytes() == whole.frames.tobytes()
    assert cut.orders.tobytes() == whole.orders.tobytes()
    assert cut.probes.tobytes() == whole.probes.tobytes()
    assert cut.level_lots.tobytes() == whole.level_lots.tobytes()
    assert cut.profile.tobytes() == whole.profile.tobytes()
    for name, values in whole.bars.items():
        assert cut.bars[name].tobytes() == values.tobytes(), name


def test_seconds_and_frames_of_a_recording(minute: tuple[Events, Observation, Instrument]) -> None:
    events, seen, instrument = minute
    bars = bars_from_chunks(conflated([events]), instrument, Settings())
    assert seen.seconds == len(bars) == len(seen.bars["mid_close"])
    assert np.array_equal(seen.bars["ofi_1"], bars.column("ofi_1"), equal_nan=True)
    # Twenty frames a second became ten.
    assert len(seen.frames) == pytest.approx(FRAMES_A_SECOND * seen.seconds, rel=0.05)


def test_parts_of_an_observation_add_up(minute: tuple[Events, Observation, Instrument]) -> None:
    """Invariant: cutting in two loses no frame, order, probe, sample or second."""
    _, seen, _ = minute
    first, second = seen.between(0, 20), seen.between(20, seen.seconds)
    assert first.stop_ns == second.start_ns
    for name in ("frames", "orders", "probes", "sampled_ns", "level_lots", "profile"):
        both = np.concatenate([getattr(first, name), getattr(second, name)])
        assert both.tobytes() == getattr(seen, name).tobytes(), name
    assert first.seconds == len(first.bars["ofi_1"]) == 20
