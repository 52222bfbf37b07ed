"""The reduced form: like the engine's bars on seeds that calibration has not seen, and as honest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from market.bars import Bars, bars_from_chunks
from market.columns import COLUMNS
from market.instruments import BUILT_IN
from market.lake import Lake, LakeError
from market.settings import Settings
from market.units import day_start_ns
from proving.synthetic import generate, latent, reduced
from proving.synthetic.calibration import Likeness, compared
from proving.synthetic.profiles import ProfileError, altered, profile

DAY = "2026-02-07"
SEED = 31
HOURS = 3
SYMBOLS = ("BTCUSDT", "ETHUSDT")
#: Columns whose law follows a single path of the day: hours of it are one observation.
SLOW = {
    "mark", "index_price", "hawkes_buy_100", "hawkes_sell_100", "vpin", "quote_life", "spread_bps",
}  # fmt: skip


@pytest.fixture(scope="module")
def own() -> dict[str, Bars]:
    return {symbol: reduced.bars(profile("default"), SEED, symbol, DAY) for symbol in SYMBOLS}


@pytest.fixture(scope="module")
def likeness(own: dict[str, Bars]) -> dict[str, Likeness]:
    """Three hours of the engine beside the same hidden hours in the reduced form."""
    out = {}
    for symbol in SYMBOLS:
        chunks = generate(profile("default"), SEED, symbol, DAY, 0, HOURS * 3600)
        full = bars_from_chunks(chunks, BUILT_IN[symbol], Settings())
        hidden = latent.drivers(profile("default"), SEED, symbol, DAY)
        out[symbol] = compared(full, own[symbol], hidden, margin=300)
    return out


# -- bars like any others --------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_day_has_all_its_seconds_and_columns(own: dict[str, Bars], symbol: str) -> None:
    bars = own[symbol]
    assert (bars.t_ns == day_start_ns(DAY) + np.arange(1, 86_401) * 10**9).all()
    assert bars.values.shape == (86_400, len(COLUMNS))
    for name in COLUMNS:
        assert not np.isnan(bars.column(name)).all(), name
    always = ("mid_close", "bid_q1", "ofi_1", "buy_n", "rv", "mark", "bid_depth", "hawkes_buy_1")
    for name in always:
        assert not np.isnan(bars.column(name)[1:]).any(), name
    assert bars.column("gap")[0] == 1
    assert not bars.column("gap")[1:].any()


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_bars_keep_the_bounds_between_columns(own: dict[str, Bars], symbol: str) -> None:
    of = own[symbol].column
    assert (of("mid_low") <= of("mid_close") * (1 + 1e-12)).all()
    assert (of("mid_high") >= of("mid_open") * (1 - 1e-12)).all()
    assert (of("mid_open")[1:] == of("mid_close")[:-1]).all()
    assert of("rv") == pytest.approx(of("rv_up") + of("rv_down"))
    assert (of("spread_ticks") >= 1).all()
    ticks = 2 * of("mid_close") / BUILT_IN[symbol].tick_size
    assert np.abs(ticks - np.rint(ticks)).max() < 1e-5


def test_the_same_arguments_give_the_same_bytes(own: dict[str, Bars]) -> None:
    again = reduced.bars(profile("default"), SEED, "ETHUSDT", DAY)
    assert again.values.tobytes() == own["ETHUSDT"].values.tobytes()
    other = reduced.bars(profile("default"), SEED + 1, "ETHUSDT", DAY)
    assert other.column("mid_close")[0] != own["ETHUSDT"].column("mid_close")[0]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_days_join_at_midnight(own: dict[str, Bars], symbol: str) -> None:
    tomorrow = reduced.bars(profile("default"), SEED, symbol, "2026-02-08")
    step = np.log(tomorrow.column("mid_close")[0] / own[symbol].column("mid_close")[-1])
    # Offsets of quotes from value begin anew: a few basis points.
    assert abs(step) < 20e-4


# -- like the engine's -----------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_columns_are_distributed_as_the_engines(likeness: dict[str, Likeness], symbol: str) -> None:
    found = likeness[symbol]
    distances = {
        column.name: column.distance for column in found.columns if column.name not in SLOW
    }
    held = {name: d for name, d in distances.items() if not np.isnan(d)}
    # Over whole days the median is 0.02; three hours of slow columns have a distance of their own.
    assert np.median(list(held.values())) < 0.08
    assert np.quantile(list(held.values()), 0.9) < 0.20
    assert max(held.values()) < 0.40, max(held, key=lambda name: held[name])


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_columns_have_the_engines_correlations_and_memory(
    likeness: dict[str, Likeness], symbol: str
) -> None:
    found = likeness[symbol]
    assert found.correlation_gap[0] < 0.05
    assert found.correlation_gap[1] < 0.30
    gaps = [abs(a - b) for column in found.columns for a, b in column.memory]
    assert np.median(gaps) < 0.05
    assert np.quantile(gaps, 0.95) < 0.30


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_features_have_the_engines_correlation_with_the_alpha(
    likeness: dict[str, Likeness], symbol: str
) -> None:
    for each in likeness[symbol].features:
        # Quotes follow the score alone; trades and order flow have noise of their own beside it.
        quoted = each.name.startswith(("queue", "micro", "imbalance", "cancel"))
        width = 0.12 if quoted else 0.30
        assert each.correlations[1] == pytest.approx(each.correlations[0], abs=width), each.name


# -- what it is for --------------------------------------------------------------------------------


def test_another_signal_needs_no_new_fit_and_another_book_does() -> None:
    market = profile("default")
    key = reduced.book_key(market, "BTCUSDT")
    assert reduced.book_key(altered(market, ic=0.2, half_life_s=90.0), "BTCUSDT") == key
    for name in ("null", "weak", "strong", "fast", "regimes", "decay", "confounded"):
        assert reduced.fitted(profile(name), "BTCUSDT"), name
    other = altered(market, hold_bps=2.0)
    assert reduced.book_key(other, "BTCUSDT") != key
    assert not reduced.fitted(other, "BTCUSDT")
    with pytest.raises(
        ProfileError, match=r"fit one with `python -m proving\.synthetic\.calibration fit default`"
    ):
        reduced.bars(other, 1, "BTCUSDT", DAY)


def test_partitions_record_their_provenance(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "synthetic")
    assert reduced.write_bars(lake, profile("null"), 3, "BTCUSDT", DAY) == 86_400
    assert lake.metadata("bars", "BTCUSDT", DAY)["made"] == "in the reduced form"
    made_from = reduced.fingerprint(profile("null"), 3, "BTCUSDT", DAY)
    assert lake.is_current("bars", "BTCUSDT", DAY, made_from)
    with pytest.raises(LakeError, match="holds recorded data"):
        reduced.write_bars(Lake(tmp_path / "r", "recorded"), profile("null"), 3, "BTCUSDT", DAY)


def test_on_null_flow_predicts_nothing_of_the_next_minute() -> None:
    """Pooled over days: order flow, queues and trades of a minute against the return of the next."""
    sums = np.zeros((3, 3, 3))
    for seed in range(3):
        bars = reduced.bars(profile("null"), 400 + seed, "BTCUSDT", DAY)
        log = np.log(bars.column("mid_close"))
        move = log[61:] - log[1:-60]
        series = (
            bars.column("ofi_1"),
            bars.column("bid_q1_mean") - bars.column("ask_q1_mean"),
            bars.column("buy_n") - bars.column("sell_n"),
        )
        for place, flow in enumerate(series):
            total = np.cumsum(flow)
            total[60:] -= total[:-60].copy()
            then = total[: len(move)]
            sums[seed, place] = then @ then, move @ move, then @ move
    both = sums[:, :, 2] / np.sqrt(sums[:, :, 0].sum(axis=0) * sums[:, :, 1].sum(axis=0))
    found = both.sum(axis=0)
    # Bartlett: two windows of a minute over three days leave 0.012.
    assert np.abs(found).max() < 0.045


def test_features_follow_the_planted_signal() -> None:
    strong, null = profile("strong"), profile("null")
    ics = []
    for market in (strong, null):
        bars = reduced.bars(market, 77, "BTCUSDT", DAY)
        queue = bars.column("bid_q1_mean") - bars.column("ask_q1_mean")
        queue = queue / (bars.column("bid_q1_mean") + bars.column("ask_q1_mean"))
        total = np.cumsum(queue)
        total[15:] -= total[:-15].copy()
        log = np.log(bars.column("mid_close"))
        ics.append(float(np.corrcoef(total[:-61], log[61:] - log[1:-60])[0, 1]))
    assert ics[0] > 0.06
    assert abs(ics[1]) < 0.05
