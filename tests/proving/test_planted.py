"""What is planted: closed forms that are met, a filter that is the best, days that join."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proving.synthetic import latent
from proving.synthetic.planted import (
    alpha_sd,
    best_filter,
    closed_form_ic,
    filterable_ic,
    level,
    moments,
    solve,
)
from proving.synthetic.profiles import (
    HOLDERS,
    PROFILES,
    Change,
    Listing,
    Profile,
    ProfileError,
    altered,
    ic_limit,
    instant_ns,
    parameters,
    profile,
    read_profiles,
)

DAY, NEXT = "2026-03-01", "2026-03-02"
SYMBOLS = ("BTCUSDT", "ETHUSDT")

Floats = npt.NDArray[np.float64]


def each_second(values: Floats) -> Floats:
    return values[:: latent.PER_SECOND]


# -- profiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_every_named_profile_is_valid(name: str) -> None:
    found = profile(name)
    assert found.about
    assert best_filter(found).correlation[0] == pytest.approx(found.filterable, abs=1e-6)


def test_every_parameter_is_documented() -> None:
    for kind in (Profile, Listing, *HOLDERS.values()):
        said = dict(parameters(kind))
        silent = set(kind.__struct_fields__) - set(said) - {"name", "symbol"}
        assert not silent


def test_a_profile_inherits_from_its_base(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[a]\nic = 0.05\n[[a.listings]]\n' + "\n".join(
        f"{key} = {value!r}" for key, value in msgspec.to_builtins(
            profile("default").listings[0]).items()).replace("'", '"')
        + '\n[b]\nbase = "a"\nhalf_life_s = 90.0\n')  # fmt: skip
    found = read_profiles(file)
    assert found["b"].ic == found["a"].ic == 0.05
    assert found["b"].half_life_s == 90
    file.write_text('[b]\nbase = "a"\n')
    with pytest.raises(ProfileError, match="its base a must come before it"):
        read_profiles(file)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ic": 0.9}, "whatever the volatility: admissible is 0 <= ic < 0.80"),
        ({"noise_half_life_s": 90.0}, "must be below half_life_s"),
        ({"regimes": ()}, "regimes is empty"),
        ({"listings": ()}, "no symbol is listed"),
        ({"half_life": 3.0}, "half_life"),
        (
            {"jump_share": 0.9},
            r"jump_share: expected `?float`? <= 0.5.*Share of the efficient price",
        ),
        ({"regime_stay_s": -1.0}, "regime_stay_s.*Mean stay in a regime"),
        ({"in_sample_until": "tomorrow"}, "tomorrow is no date and time"),
        ({"changes": [{"what": "alpha", "starts": "soon", "to": 0.0}]}, "soon is no date and time"),
        (
            {"changes": [{"what": "alpha", "starts": DAY, "to": 0.0, "shape": "ramp"}]},
            "a ramp needs lasts_h > 0",
        ),
        (
            {"changes": [{"what": "volatility", "starts": DAY, "to": -1.0}]},
            "admissible is 0.05 <= to <= 20",
        ),
    ],
)
def test_impossible_parameters_are_rejected_with_the_reason(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ProfileError, match=said):
        altered(profile("demo"), **changes)


def test_a_negative_rate_is_rejected_with_its_path() -> None:
    listings = msgspec.to_builtins(profile("demo").listings)
    listings[1]["orders_per_s"] = -1.0
    with pytest.raises(ProfileError, match=r"listings\[1\].orders_per_s: expected float >= 0"):
        altered(profile("demo"), listings=listings)


def test_a_follower_cannot_exceed_its_own_volatility() -> None:
    btc, eth = profile("demo").listings
    with pytest.raises(ProfileError, match=r"admissible is 0 <= beta < 1\.11"):
        Profile(name="x", listings=(btc, msgspec.structs.replace(eth, beta=1.2)))


def test_filterable_below_what_prices_give_is_rejected() -> None:
    with pytest.raises(ProfileError, match=r"prices alone tell .* admissible is 0\.4"):
        best_filter(altered(profile("demo"), filterable=0.2))


# -- closed forms ----------------------------------------------------------------------------------


# Whatever the half-life and horizon, an admissible IC is met exactly and any other is refused.


@given(st.floats(0, 1), st.floats(5, 600), st.floats(1, 900))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_alpha_is_scaled_to_its_ic(ic: float, half_life_s: float, horizon_s: float) -> None:
    free = altered(profile("demo"), ic=0.0, half_life_s=half_life_s, ic_horizon_s=horizon_s)
    if ic >= ic_limit(half_life_s, horizon_s):
        with pytest.raises(ProfileError, match="admissible"):
            altered(free, ic=ic)
    else:
        found = closed_form_ic(altered(free, ic=ic), horizon_s)
        assert found == pytest.approx(ic, rel=1e-6, abs=1e-12)


def test_the_reference_figures_of_a_medium_alpha_are_met() -> None:
    """IC 0.10 at 60 s with H = 30 s needs 0.0215 bp/s at 50 % annual volatility, worked by hand."""
    medium = profile("default")
    annual = 0.5 * 1e4 / math.sqrt(365.25 * 86_400)
    scale = annual / medium.listing("BTCUSDT").sigma_bps
    assert alpha_sd(medium, "BTCUSDT") * scale == pytest.approx(0.0215, abs=1e-4)
    ics = [closed_form_ic(medium, h) for h in (1, 10, 60, 300, 900)]
    assert ics == pytest.approx([0.024, 0.068, 0.100, 0.059, 0.034], abs=0.001)


def test_the_demo_holds_a_filterable_ic_between_20_and_30_percent() -> None:
    demo = profile("demo")
    best, had = closed_form_ic(demo, 60), filterable_ic(demo, 60)
    assert 0.20 <= had <= 0.30
    assert 0.5 <= had / best <= 0.8


def test_regimes_mix_the_closed_forms_by_simulation() -> None:
    """A chain of three regimes and an OU process, simulated from their definitions."""
    market = altered(profile("regimes"), regime_stay_s=120.0, ic=0.3)
    rng = np.random.default_rng(5)
    n, horizon = 2_000_000, 60
    rate = math.log(2) / market.half_life_s
    x = rng.standard_normal(n)
    latent.smooth(x, math.exp(-rate))
    chain = latent._bridged_chain(rng.random(n - 1), 3, 1 / market.regime_stay_s, 0, 0)
    alpha = np.array([regime.alpha for regime in market.regimes])[chain] * x
    sigma = market.leader.sigma_bps
    a = alpha_sd(market, market.leader.symbol)
    path = np.cumsum(a * alpha + sigma * rng.standard_normal(n))
    ic = float(np.corrcoef(alpha[:-horizon], path[horizon:] - path[:-horizon])[0, 1])
    # A drift that is held for a second instead of moving within it shifts the sum by half a step.
    assert ic == pytest.approx(closed_form_ic(market, horizon), abs=0.01)
    assert closed_form_ic(market, horizon) < 0.9 * closed_form_ic(
        altered(market, regimes=profile("default").regimes), horizon
    )


def test_a_weaker_schedule_gives_a_smaller_ic() -> None:
    market = profile("default")
    ics = [closed_form_ic(market, 60, strength=d) for d in (0.0, 0.25, 0.5, 1.0)]
    assert ics[0] == 0
    assert np.all(np.diff(ics) > 0)
    assert ics[2] == pytest.approx(ics[3] / 2, rel=0.02)


@given(st.floats(1e-3, 1.0), st.floats(0.1, 3600))
@settings(derandomize=True, max_examples=50, deadline=None)
def test_moments_equal_their_integrals(rate: float, horizon_s: float) -> None:
    gain, spread = moments(rate, horizon_s)
    s = np.linspace(0, horizon_s, 200_001)
    kernel = np.exp(-rate * s)
    assert gain == pytest.approx(np.trapezoid(kernel, s), rel=1e-3)
    assert spread == pytest.approx(2 * np.trapezoid((horizon_s - s) * kernel, s), rel=1e-3)


# -- schedules -------------------------------------------------------------------------------------


def at(*hours: float) -> npt.NDArray[np.int64]:
    return instant_ns(f"{DAY}T00:00:00") + (np.array(hours) * 3.6e12).astype(np.int64)


def change(**said: object) -> Change:
    return msgspec.convert(
        {"starts": f"{DAY}T00:00:00", "what": "alpha", "to": 0.0, **said}, Change
    )


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        (change(), [1, 0, 0, 0]),
        (change(to=-1.0), [1, -1, -1, -1]),
        (change(shape="ramp", lasts_h=4.0), [1, 1, 0.75, 0]),
        (change(shape="exponential", lasts_h=1.0, to=0.5), [1, 1, 0.75, 0.5 + 0.5**9]),
    ],
)
def test_changes_follow_their_shapes(planted: Change, expected: list[float]) -> None:
    found = level([planted], "alpha", at(-1, 0, 1, 8))
    assert found == pytest.approx(expected)
    assert level([planted], "depth", at(-1, 0, 1, 8)) == pytest.approx([1, 1, 1, 1])


def test_multipliers_multiply_and_shifts_add() -> None:
    both = [change(to=0.5), change(to=0.5)]
    assert level(both, "alpha", at(1)) == pytest.approx([0.25])
    shifts = [change(what="features", to=0.5), change(what="features", to=0.7)]
    assert level(shifts, "features", at(-1, 1)) == pytest.approx([0, 1.2])


def test_confounders_leave_the_alphas_relation_to_returns() -> None:
    """The same shocks before and after: only the scale of price, depth and score changes."""
    plain = latent.drivers(profile("default"), 3, "BTCUSDT", "2026-03-12")
    shaken = latent.drivers(profile("confounded"), 3, "BTCUSDT", "2026-03-12")
    assert shaken.x.tobytes() == plain.x.tobytes()
    assert np.allclose(shaken.volatility, 2 * plain.volatility)
    assert np.allclose(shaken.alpha, 2 * plain.alpha)
    assert np.allclose(shaken.depth, plain.depth / 2)
    assert np.allclose(shaken.score, plain.score + 1)
    assert np.allclose(shaken.move, plain.move)


def test_decay_changes_the_alpha_alone() -> None:
    plain = latent.drivers(profile("default"), 3, "BTCUSDT", "2026-03-09")
    gone = latent.drivers(profile("decay"), 3, "BTCUSDT", "2026-03-09")
    assert not gone.alpha.any()
    assert plain.alpha.std() > 0
    for name in ("x", "score", "volatility", "depth", "intensity"):
        assert getattr(gone, name).tobytes() == getattr(plain, name).tobytes()


# -- days that join --------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_price_alpha_score_and_regime_carry_over_midnight(symbol: str) -> None:
    market = profile("regimes")
    today = latent.drivers(market, 7, symbol, DAY)
    tomorrow = latent.drivers(market, 7, symbol, NEXT)
    assert today.log_price[-1] == tomorrow.log_price[0]
    # The step into midnight is a step like any other.
    assert abs(today.log_price[-1] - today.log_price[-2]) < 2e-4
    assert today.regime[-1] == tomorrow.regime[0]
    if symbol == market.leader.symbol:
        assert today.x[-1] == tomorrow.x[0]
        assert today.score[-1] == tomorrow.score[0]
    assert today.x[-1] == pytest.approx(tomorrow.x[0], abs=0.2)
    assert today.volatility[-1] == pytest.approx(tomorrow.volatility[0], rel=1e-9)


# Bridged between draws of the stationary law, a path has the stationary law at every time.


def test_a_bridge_keeps_the_law_of_the_free_path() -> None:
    rng = np.random.default_rng(11)
    decay = 0.97
    paths = rng.standard_normal((4000, 61))
    for path in paths:
        start, end = rng.standard_normal(), 0.0
        # An end that remembers the start, as two instants of one path do.
        end = decay**60 * start + math.sqrt(1 - decay**120) * rng.standard_normal()
        latent._bridge_ou(path, decay, start, end)
    assert paths.var(axis=0) == pytest.approx(np.ones(61), abs=0.1)
    lagged = np.mean(paths[:, 10:-10] * paths[:, 20:], axis=0)
    assert lagged == pytest.approx(np.full(41, decay**10), abs=0.08)


def test_a_bridged_chain_has_its_end_state_and_mean_stay() -> None:
    rng = np.random.default_rng(3)
    stays, visits = [], np.zeros(3)
    for _ in range(60):
        start, end = rng.integers(3, size=2)
        chain = latent._bridged_chain(rng.random(86_400), 3, 1 / 7200, int(start), int(end))
        assert (chain[0], chain[-1]) == (start, end)
        places = np.flatnonzero(np.diff(chain))
        stays += np.diff(places).tolist()
        visits += np.bincount(chain, minlength=3)
    # Whole stays inside a day are a little shorter than stays: long ones are cut by midnight.
    assert 5_000 < np.mean(stays) < 7_500
    assert visits / visits.sum() == pytest.approx(np.full(3, 1 / 3), abs=0.08)


def test_eth_follows_btc_by_the_known_lag() -> None:
    demo = profile("demo")
    btc = np.diff(latent.drivers(demo, 7, "BTCUSDT", DAY).log_price)
    eth = np.diff(latent.drivers(demo, 7, "ETHUSDT", DAY).log_price)
    lag = round(demo.listing("ETHUSDT").lag_s * latent.PER_SECOND)
    by_lag = [np.corrcoef(btc[: len(btc) - k], eth[k:])[0, 1] for k in range(8)]
    assert int(np.argmax(by_lag)) == lag
    assert by_lag[lag] > 0.5
    assert abs(by_lag[0]) < 0.02


def test_volatility_has_the_stated_mean_square_and_jumps_their_share() -> None:
    market = profile("default")
    days = [latent.drivers(market, seed, "BTCUSDT", DAY) for seed in range(8)]
    squares = [float(np.mean(day.volatility**2)) for day in days]
    assert np.mean(squares) == pytest.approx(1, abs=3 * np.std(squares) / math.sqrt(len(days)))
    jumped = sum(float(np.sum(day.jumps**2)) for day in days) * 1e8
    total = len(days) * market.leader.sigma_bps**2 * latent.SECONDS
    assert jumped / total == pytest.approx(market.jump_share, rel=0.5)


# -- the filter ------------------------------------------------------------------------------------


def test_the_filter_is_the_steady_state_of_the_kalman_recursion() -> None:
    demo = profile("demo")
    found = best_filter(demo)
    m = len(demo.listings)
    step, seen = np.diag(found.decay), found.seen
    stationary = np.diag(np.repeat([1.0, found.noise_sd**2], m))
    shocks = stationary @ (np.eye(2 * m) - step @ step)
    errors = np.diag(np.repeat([1e-6, 1.0], m))
    spread = stationary
    for _ in range(10_000):
        gain = spread @ seen.T @ np.linalg.inv(seen @ spread @ seen.T + errors)
        left = spread - gain @ seen @ spread
        spread = step @ left @ step + shocks
    assert gain == pytest.approx(found.gain, rel=1e-5, abs=1e-9)
    assert math.sqrt(1 - left[0, 0]) == pytest.approx(found.correlation[0], rel=1e-6)


@given(st.floats(0.05, 100))
@settings(derandomize=True, max_examples=20, deadline=None)
def test_more_noise_never_helps_the_filter(noise_sd: float) -> None:
    demo = profile("demo")
    assert solve(demo, noise_sd * 1.1).correlation[0] < solve(demo, noise_sd).correlation[0]


def test_the_filter_is_unbiased_and_has_its_correlation() -> None:
    demo = profile("demo")
    true, found = [], []
    for seed in range(3):
        filtered = latent.filtered_alphas(demo, seed, DAY)
        for symbol in SYMBOLS:
            true.append(each_second(latent.drivers(demo, seed, symbol, DAY).alpha))
            found.append(each_second(filtered[symbol]))
    alpha, filtered_alpha = np.concatenate(true), np.concatenate(found)
    correlation = float(np.corrcoef(alpha, filtered_alpha)[0, 1])
    assert correlation == pytest.approx(demo.filterable, abs=0.02)
    # Of the best estimate, regressing the truth on it gives one.
    slope = float(np.mean(alpha * filtered_alpha) / np.mean(filtered_alpha**2))
    assert slope == pytest.approx(1, abs=0.07)
