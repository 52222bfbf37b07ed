"""The facts of markets made by hand, whose answers are known."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from scipy import special

from proving.realism import facts, liquidity, stylised
from proving.realism.observation import FRAME, KEPT, ORDER, PROFILE_BPS, Observation
from proving.realism.probes import PROBE

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
Floats = npt.NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260302)


def observation(seconds: int, **parts: object) -> Observation:
    """A market in which nothing happens but what is given; ``bars`` are added to quiet ones."""
    bars = {name: np.zeros(seconds) for name in KEPT} | {"mid_close": np.full(seconds, 1e5)}
    bars |= parts.pop("bars", {})  # type: ignore[call-overload]
    frames = np.zeros(10 * seconds, FRAME)
    frames["t_ns"] = START + SECOND // 10 * np.arange(1, 10 * seconds + 1)
    frames["bid"], frames["ask"] = 100_000, 100_001
    frames["bid_lots"] = frames["ask_lots"] = 10
    frames["bid_near"] = frames["ask_near"] = 1e6
    whole = Observation(
        label="hand",
        symbol="TEST",
        start_ns=START,
        stop_ns=START + seconds * SECOND,
        tick=1.0,
        lot=1.0,
        frames=frames,
        bars=bars,
        orders=np.zeros(0, ORDER),
        probes=np.zeros(0, PROBE),
        sampled_ns=np.zeros(0, np.int64),
        profile=np.zeros((0, 2, len(PROFILE_BPS))),
        level_lots=np.zeros((0, 2, 20), np.int64),
    )
    return msgspec.structs.replace(whole, **parts)


def walk(moves_bps: Floats) -> dict[str, Floats]:
    return {"mid_close": 1e5 * np.exp(np.cumsum(moves_bps) / 1e4)}


def taker_orders(seconds: Floats, sides: Floats, lots: int = 1) -> npt.NDArray[np.void]:
    orders = np.zeros(len(seconds), ORDER)
    orders["t_ns"] = START + np.rint(seconds * SECOND).astype(np.int64)
    orders["side"], orders["lots"] = sides, lots
    return orders


def test_volatility_kurtosis_and_signature_of_a_random_walk(rng: np.random.Generator) -> None:
    market = [observation(40_000, bars=walk(rng.normal(0, 1.5, 40_000))) for _ in range(2)]
    assert facts.volatility(market) == pytest.approx(1.5, rel=0.02)
    assert facts.kurtosis_1s(market) == pytest.approx(3.0, abs=0.1)
    assert facts.signature_short(market) == pytest.approx(1.0, abs=0.05)
    assert facts.signature_long(market) == pytest.approx(1.0, abs=0.2)
    assert facts.largest_score(market) < 3.5
    assert facts.jumps(market) < 0.03


def test_autocorrelated_minute_returns_have_a_high_score(rng: np.random.Generator) -> None:
    minutes = rng.normal(size=601)
    repeated = minutes[1:] + 0.5 * minutes[:-1]
    market = [observation(36_000, bars=walk(np.repeat(repeated / 60, 60)))]
    assert facts.largest_score(market) > 5


def test_imbalance_explains_the_same_bar_as_planted_and_not_the_next(
    rng: np.random.Generator,
) -> None:
    flow, noise = rng.normal(size=(2, 60_000))
    market = [observation(60_000, bars=walk(flow + noise) | {"ofi_1": flow})]
    assert facts.ofi_same(market) == pytest.approx(0.5, abs=0.02)
    assert abs(facts.ofi_next_10s(market)) < 0.03
    assert abs(facts.ofi_next_60s(market)) < 0.03


def test_leading_imbalance_correlates_with_the_next_bar(rng: np.random.Generator) -> None:
    flow = rng.normal(size=60_000)
    late = np.concatenate([np.zeros(10), flow[:-10]])
    market = [observation(60_000, bars=walk(late) | {"ofi_1": flow})]
    assert facts.ofi_next_10s(market) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_the_exponent_of_depth_is_the_planted_one(
    exponent: float, rng: np.random.Generator
) -> None:
    depth = np.repeat(np.exp(rng.normal(0, 0.5, 400)), 60)
    flow = rng.normal(size=len(depth))
    bars = walk(flow * depth**-exponent + 0.2 * rng.normal(size=len(depth)))
    bars |= {"ofi_1": flow, "bid_q1_mean": depth, "ask_q1_mean": depth}
    assert facts.ofi_depth([observation(len(depth), bars=bars)]) == pytest.approx(
        exponent, abs=0.05
    )


def test_the_depth_exponent_at_equal_volatility_is_not_confounded(
    rng: np.random.Generator,
) -> None:
    """Slope ∝ depth^-1 · volatility^0.6, and volatile minutes are thin."""
    depth = np.repeat(np.exp(rng.normal(0, 0.5, 800)), 60)
    volatility = depth**-0.7 * np.repeat(np.exp(rng.normal(0, 0.6, 800)), 60)
    flow, noise = rng.normal(size=(2, len(depth)))
    bars = walk(0.6 * volatility**0.6 / depth * flow + volatility * noise)
    bars |= {"ofi_1": flow, "bid_q1_mean": depth, "ask_q1_mean": depth}
    market = [observation(len(depth), bars=bars)]
    assert facts.ofi_depth(market) > 1.25
    assert facts.ofi_depth_like_volatility(market) == pytest.approx(1.0, abs=0.1)


def test_volume_that_follows_volatility_is_correlated_with_it(rng: np.random.Generator) -> None:
    level = np.repeat(rng.normal(0, 0.7, 2_000), 10)
    bars = walk(np.exp(level) * rng.choice([-1.0, 1.0], len(level)))
    bars |= {"buy_qty": np.exp(level), "sell_qty": np.exp(level)}
    market = [observation(len(level), bars=bars)]
    other = np.exp(rng.permutation(level))
    shuffled = [observation(len(level), bars=bars | {"buy_qty": other, "sell_qty": other})]
    assert facts.volume_volatility_10s(market) > 0.85
    assert abs(facts.volume_volatility_10s(shuffled)) < 0.1


def test_poisson_orders_of_random_sides_have_no_memory(rng: np.random.Generator) -> None:
    times = np.sort(rng.uniform(0, 10_000, 50_000))
    market = [observation(10_000, orders=taker_orders(times, rng.choice([-1, 1], len(times))))]
    assert facts.order_rate(market) == pytest.approx(5.0)
    assert facts.fano_1s(market) == pytest.approx(1.0, abs=0.05)
    assert facts.branching_10s(market) < 0.1
    assert abs(facts.sign_lag_10(market)) < 0.02


def test_signs_of_split_orders_have_the_memory_that_splitting_gives(
    rng: np.random.Generator,
) -> None:
    """Lillo, Mike and Farmer (2005): runs with P(L > k) = k^-1.5 give ρ(ℓ) = Σ_{k≥ℓ} k^-1.5 / E[L].

    That is ℓ^-0.5 at long lags and a little steeper at short ones.
    """
    lengths = np.ceil((1 - rng.random(1_000_000)) ** (-1 / 1.5)).astype(int)
    signs = np.repeat(rng.choice([-1, 1], len(lengths)), lengths)[:2_000_000]
    times = np.linspace(0, 1_000, len(signs), endpoint=False)
    market = [observation(1_000, orders=taker_orders(times, signs))]
    known = special.zeta(1.5, np.arange(1, 201)) / (1 + special.zeta(1.5))
    assert facts.sign_correlation(market, 200) == pytest.approx(known, abs=0.02)
    assert facts.sign_memory(market) == pytest.approx(stylised.decay_exponent(known), abs=0.08)
    assert stylised.decay_exponent(known, first=50) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_half_life_of_deviations_of_depth(seconds: float, rng: np.random.Generator) -> None:
    kept = 0.5 ** (0.1 / seconds)
    log_depth = np.empty(100_000)
    log_depth[0] = 0.0
    noise = rng.normal(size=len(log_depth))
    for i in range(1, len(log_depth)):
        log_depth[i] = kept * log_depth[i - 1] + noise[i]
    market = observation(10_000)
    market.frames["bid_near"] = market.frames["ask_near"] = np.exp(14 + 0.1 * log_depth)
    assert liquidity.depth_half_life([market]) == pytest.approx(seconds, rel=0.15)


def test_depth_after_shocks_recovers_with_the_planted_half_life() -> None:
    """Every 40 s a sell takes the best bid and half the near depth, which grows back."""
    since = (np.arange(1, 40_001) * 0.1) % 40.0
    market = observation(4_000)
    market.frames["bid_near"] = 1e6 - 5e5 * 0.5 ** (since / 2.0)
    times = np.arange(40.0, 3_960.0, 40.0) - 0.05
    market = msgspec.structs.replace(
        market, orders=taker_orders(times, np.full(len(times), -1), lots=9)
    )
    assert liquidity.shocks([market]) == len(times)
    assert liquidity.resilience([market]) == pytest.approx(2.0, rel=0.1)


def test_small_orders_are_no_shock() -> None:
    market = observation(100, orders=taker_orders(np.arange(1.0, 80.0), np.full(79, 1), lots=4))
    assert liquidity.shocks([market]) == 0
    assert math.isnan(liquidity.resilience([market]))


def test_markouts_and_times_to_fill_by_hand() -> None:
    """The mid rises by 10 bps after ten seconds: good for bids filled before, bad for asks."""
    market = observation(60)
    late = market.frames["t_ns"] > START + 10 * SECOND
    market.frames["bid"][late] += 100
    market.frames["ask"][late] += 100
    probes = np.zeros(4, PROBE)
    probes["side"], probes["back"] = [1, -1, 1, -1], [0, 0, 1, 1]
    probes["price_ticks"] = [100_000, 100_001, 100_000, 100_001]
    probes["placed_ns"] = START + SECOND
    probes["filled_ns"] = [START + 8 * SECOND, START + 2 * SECOND, -1, START + 8 * SECOND]
    market = msgspec.structs.replace(market, probes=probes)
    assert liquidity.time_to_fill([market], 0).tolist() == [7.0, 1.0]
    assert liquidity.time_to_fill([market], 1).tolist() == [math.inf, 7.0]
    # From 8 s to 13 s: (100,100.5 - 100,000)/100,000; from 2 s to 7 s: half a tick earned.
    assert liquidity.markouts([market], 0) == pytest.approx([10.05, 0.05], abs=1e-3)
    assert liquidity.markouts([market], 1) == pytest.approx([-9.95], abs=1e-3)
    assert liquidity.filled_front([market]) == 1.0
    assert liquidity.filled_back([market]) == 0.5
    assert liquidity.markout_gap([market]) == pytest.approx(-9.95 - 5.05, abs=1e-3)


def test_lifetimes_leave_out_the_first_and_last_best_price() -> None:
    market = observation(10)
    for second, price in ((2, 99_999), (5, 100_000), (5.5, 99_998)):
        market.frames["bid"][market.frames["t_ns"] >= START + round(second * SECOND)] = price
    assert facts.lifetimes([market]).tolist() == [3.0, 0.5]


def test_the_depth_profile_ends_where_half_of_the_books_end() -> None:
    profile = np.empty((10, 2, len(PROFILE_BPS)))
    profile[:, 0], profile[:, 1] = 1e6 * PROFILE_BPS, 2e6 * PROFILE_BPS
    profile[:6, :, PROFILE_BPS > 3.0] = np.nan
    market = [observation(10, profile=profile)]
    mean = facts.mean_profile(market)
    assert np.array_equal(np.isnan(mean[0]), PROFILE_BPS > 3.0)
    assert facts.profile_exponent(market) == pytest.approx(1.0)
    assert facts.asymmetry(market) == pytest.approx(-math.log(2))


def test_the_cancelled_share_of_the_quantity_that_leaves() -> None:
    flows = {"bid_cancel": 3.0, "ask_cancel": 6.0, "buy_qty": 0.5, "sell_qty": 0.5}
    bars = {name: np.full(20, value) for name, value in flows.items()}
    assert facts.cancelled([observation(20, bars=bars)]) == pytest.approx(0.9)


def test_moves_of_the_mid_from_frame_to_frame() -> None:
    market = observation(10)
    market.frames["bid"][50:] += 20
    market.frames["ask"][50:] += 20
    assert facts.moving([market]) == pytest.approx(1 / 99)
    assert facts.move([market]) == pytest.approx(2.0, rel=1e-3)


def test_a_market_without_trades_or_moves_gives_nan_or_zero() -> None:
    """Invariant: a quiet market gives NaN or zero, never an error."""
    quiet = [observation(600)]
    found = {
        statistic.__name__: statistic(quiet)
        for statistic in (
            facts.move,
            facts.hill_1s,
            facts.sign_memory,
            facts.ofi_same,
            liquidity.resilience,
            liquidity.markout_front,
        )
    }
    assert all(math.isnan(value) for value in found.values()), found
    assert facts.turnover(quiet) == facts.order_rate(quiet) == facts.volatility(quiet) == 0.0
