"""The gate's rows and verdict, and what repeated looks at nothing promote."""

from __future__ import annotations

import math

import numpy as np
import pytest

from market.units import DAY_NS, SECOND_NS
from models_registry import gate
from models_registry.gate import Context
from models_registry.probes import Probe
from models_registry.statistics import clopper_pearson_upper
from models_registry.trades import FeeResult

BLOCK_S = 3600


def result(*, trades: int = 100, lower: float = 0.5) -> FeeResult:
    return FeeResult(
        row="vip0",
        taker_bps=5.5,
        trades=trades,
        n_eff=float(trades),
        cut=0,
        gross_bps=13.0,
        spread_bps=0.1,
        net_bps=1.0,
        net_after_bps=1.0,
        net_lower_bps=lower,
        net_total_bps=100.0,
        break_even_bps=6.0,
        hit_rate=0.6,
        false_net=0.4,
        false_net_upper=0.5,
        false_gross=0.3,
        payoff=1.0,
        coverage=0.01,
        holding_s=60.0,
    )


def stream(ics: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Times and rank products, one a minute, of days with these ICs."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    ic = np.array(ics)[:, np.newaxis]
    predicted, noise = generator.standard_normal((2, len(ics), 1440))
    product = predicted * (ic * predicted + np.sqrt(1 - ic**2) * noise)
    t_ns = np.arange(1, 1440 * len(ics) + 1) * 60 * SECOND_NS
    return t_ns, product.ravel()


def passes(ics: list[float], seed: int) -> tuple[bool, bool]:
    t_ns, product = stream(ics, seed)
    recent = gate.recent_row(t_ns, product, BLOCK_S, 200, seed)
    return gate.ic_row(t_ns, product, 0.0, BLOCK_S).passed, recent.passed


@pytest.mark.parametrize(
    ("found", "passed", "said"),
    [
        (result(), True, "lower bound of 0.500 bps"),
        (result(lower=0.0), False, "0.000 bps, not above zero"),
        (result(lower=-math.inf), False, "no value, not above zero"),
        (result(lower=math.nan), False, "no value, not above zero"),
        (result(trades=29), False, "29 trades at fee row vip0 of at least 30"),
    ],
)
def test_the_net_row_needs_trades_and_a_bound_above_zero(found, passed, said) -> None:
    row = gate.net_row(found, 30)
    assert row.passed is passed
    assert said in row.text


def test_a_failed_blocking_row_abstains_and_a_failed_advisory_one_does_not() -> None:
    good = gate.row("ic", True, 0.1, 0.0, "shown")
    bad = gate.row("leak", False, math.inf, 0.0, "leaks")
    advice = gate.advisory_row("dsr", False, 0.1, 0.95, "many trials", gate.FULL_DAYS - 1)
    ripe = gate.advisory_row("dsr", False, 0.1, 0.95, "many trials", gate.FULL_DAYS)

    def decide(*rows):
        return gate.decide(rows, blocks=5, min_blocks=5)

    assert decide(good, advice).verdict == "promote"
    assert decide(good, advice).reasons == ("shown",)
    assert decide(good, bad).reasons == ("leaks",)
    assert decide(good, ripe).verdict == "abstain"
    assert bad.value is None
    few = gate.decide((good,), blocks=4, min_blocks=5, shortfall=("why",))
    assert (few.verdict, few.reasons) == (
        "not_enough_data",
        ("4 test blocks of at least 5", "why"),
    )
    leak = Probe(name="split", passed=False, value=3.0, limit=0.0, text="3 overlap")
    assert decide(good, gate.probe_row(leak)).reasons == ("split: 3 overlap",)


def test_asked_every_day_for_30_days_nothing_without_skill_is_promoted() -> None:
    seeds = 500
    ever = sum(day > 0 for day in gate.simulate(0.0, seeds))
    assert clopper_pearson_upper(ever, seeds) <= 0.03


def test_skill_is_found_within_days() -> None:
    weak, strong = gate.simulate(0.05, 60, 10), gate.simulate(0.10, 60, 5)
    assert np.mean(np.array(weak) > 0) > 0.9
    assert all(strong)


def test_the_bound_is_by_hours_of_few_days_and_by_days_of_many() -> None:
    t_ns, product = stream([0.2] * 10, 1)
    few = t_ns <= 9 * DAY_NS
    assert "216 blocks of 3600 s on 9 days" in gate.ic_row(t_ns[few], product[few], 0, 3600).text
    assert "by 10 days" in gate.ic_row(t_ns, product, 0, 3600).text
    alone, tried = (gate.ic_lower(t_ns, product, 3600, n)[0] for n in (1, 20))
    assert 0 < tried < alone < product.mean()


def test_dead_days_cannot_hide_behind_good_ones() -> None:
    asked = {
        dead: [passes([0.1] * 20 + [0.0] * dead, seed) for seed in range(30)] for dead in (0, 10)
    }
    assert all(all(rows) for rows in asked[0])
    # The mean over all days is still above zero: only the recent days tell.
    assert all(ic for ic, _ in asked[10])
    assert sum(recent for _, recent in asked[10]) <= 5


@pytest.mark.parametrize(
    ("gain", "decayed", "passed", "said"),
    [
        (0.05, False, True, "+0.0"),
        (0.0, False, False, "not better beyond noise"),
        (-0.05, False, False, "not better beyond noise"),
        (-0.05, True, True, "decay alarm stands"),
        (math.nan, False, False, "no test second is later"),
    ],
)
def test_a_challenger_replaces_the_champion_only_if_better_beyond_noise(
    gain, decayed, passed, said
) -> None:
    generator = np.random.default_rng(2)
    t_ns = np.arange(1, 5 * 1440 + 1) * 60 * SECOND_NS
    difference = gain + 0.4 * generator.normal(size=len(t_ns))
    if gain == 0.0:
        difference -= difference.mean()
    row = gate.champion_row(
        "3", t_ns, difference, decayed=decayed, block_s=BLOCK_S, samples=200, seed=1
    )
    assert row.passed is passed
    assert said in row.text


def test_overfitting_is_over_the_days_that_enough_procedures_share() -> None:
    generator = np.random.default_rng(3)
    days, net = np.arange(20), 0.5 + 0.1 * generator.normal(size=20)
    other = dict(enumerate(generator.normal(size=20).tolist()))
    assert Context(others=(other,)).overfitting(days, net) == (0.0, 2)
    assert Context().overfitting(days, net) is None
    short = ({0: 1.0}, dict.fromkeys(range(100, 140), 1.0), dict.fromkeys(range(10, 20), 1.0))
    assert Context(others=short).overfitting(days, net) is None
    row = gate.overfitting_row(Context(others=short, procedures=4), days, net)
    assert (row.passed, row.blocking, row.value) == (True, False, None)
    assert "PBO not computable: none of 3 other procedures has 16 of these 20 test days" in row.text
    many = Context(others=(*short, other), procedures=5)
    assert many.overfitting(days, net) == (0.0, 2), "a short one takes none of its days away"
    assert "among 2 of 5 procedures" in gate.overfitting_row(many, days, net).text
    apart = (dict.fromkeys(range(16), 1.0), {d: float(d % 3) for d in range(4, 20)}, other)
    assert Context(others=apart).overfitting(days, net)[1] == 3, "not more than share days"
