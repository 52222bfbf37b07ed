"""The touch in the reduced form: its columns are those of bars, and its law is found again."""

from __future__ import annotations

import numpy as np
import pytest

from market.bars import Bars, bars_from_chunks
from market.instruments import BUILT_IN
from market.settings import Settings
from market.units import day_start_ns
from proving.synthetic import generate, latent, profile, touch

DAY = "2026-03-01"
TICK = BUILT_IN["BTCUSDT"].tick_size
#: What jitter within 100 ms decides, which a grid of frames does not hold.
JITTERY = {"flicker", "mid_twap", "spread_mean", "spread_std", "spread_one", "quote_life"}


@pytest.fixture(scope="module")
def market() -> tuple[Bars, touch.TouchRecorder]:
    """Half an hour of the engine: its bars, and its touch as it was watched."""
    chunks = list(generate(profile("default"), 5, "BTCUSDT", DAY, 0, 1800))
    watch = touch.TouchRecorder(day_start_ns(DAY), 18_000)
    for chunk in chunks:
        watch.push(chunk)
    return bars_from_chunks(chunks, BUILT_IN["BTCUSDT"], Settings()), watch


def test_columns_of_the_recorded_touch_equal_those_of_its_bars(
    market: tuple[Bars, touch.TouchRecorder],
) -> None:
    bars, watch = market
    bid, ask, arrival_s = watch.recorded()
    out = np.empty((1800, len(touch.COLUMNS)))
    touch.columns(bid, ask - bid, TICK, arrival_s, 0.5, np.zeros(1800), out)
    for place, name in enumerate(touch.COLUMNS):
        # A frame that jitter brings over the second's end is another second's.
        same = np.isclose(out[1:, place], bars.column(name)[1:], rtol=1e-9, atol=1e-15)
        if name in JITTERY:
            correlation = np.corrcoef(out[60:, place], bars.column(name)[60:])[0, 1]
            assert correlation > (0.5 if name == "flicker" else 0.97), name
        else:
            assert same.mean() > 0.99, name


def test_a_fit_recovers_the_model_that_was_drawn_from() -> None:
    hidden = latent.drivers(profile("default"), 5, "BTCUSDT", DAY)
    bins = 24
    edges = np.geomspace(2e-6, 2e-4, bins - 1)
    gap = np.concatenate([[0.0], edges])
    flat = np.linspace(0, 1, 65)
    law = touch.TouchModel(
        delay=np.array([2]),
        keep=np.array([0.9]),
        offset=np.zeros(len(touch.OFFSET_HALF_LIVES_S)),
        edges=edges,
        hazard=np.stack([np.minimum((gap / 1e-4) ** 2 + 0.02, 1), np.full(bins, 0.01)])[None]
        .repeat(2, axis=0),
        mood=np.zeros((2, 4)),
        nudge=np.full((2, bins, 2 * touch.NUDGE_HALF_TICKS + 1), 1.0),
        landing=np.zeros((2, bins, 65)) + (flat - 0.5) * 1e-6,
        spread=np.ones((2, 2, 12)),
        arrival_s=np.array([0.01]),
        flicker=np.array([0.5]),
    )  # fmt: skip
    law.nudge[:, :, : touch.NUDGE_HALF_TICKS + 2] = 0.0
    bid, spread, _ = touch.follow(law, hidden, TICK, np.random.default_rng(2))
    assert (spread == 1).all()
    moods = touch.market_state(hidden)
    seen = touch.DayTouch(bid, bid + spread, hidden.log_price, moods, TICK, 0.01)
    found = touch.fit([seen])
    assert found.delay[0] == 2
    # Nothing but a tenth of a basis point of landing error was put between quotes and value.
    middle = 0.5 * (found.edges[3:-4] + found.edges[4:-3])
    expected = law.hazard[0, 0, np.searchsorted(law.edges, middle)]
    assert found.hazard[0, 0, 4:-4] == pytest.approx(expected, abs=0.15)
    assert np.abs(found.hazard[0, 0, 4:-4] - expected).mean() < 0.05
    assert found.hazard[0, 1].mean() < 0.05
    assert np.abs(found.mood[0]).max() < 0.2


def test_the_drawn_touch_is_never_crossed_and_follows_the_price() -> None:
    from proving.synthetic import reduced

    market = profile("default")
    for symbol in ("BTCUSDT", "ETHUSDT"):
        hidden = latent.drivers(market, 5, symbol, DAY)
        tick = BUILT_IN[symbol].tick_size
        law = reduced.model_of(market, symbol).touch
        bid, spread, _ = touch.follow(law, hidden, tick, np.random.default_rng(2))
        assert (spread >= 1).all()
        apart = np.log((bid + 0.5 * spread) * tick) - hidden.log_price[:-1]
        assert np.std(apart) < 10e-4
        assert (spread == 1).mean() > 0.98
