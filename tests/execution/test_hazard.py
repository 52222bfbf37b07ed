"""The fill model: what its probabilities promise, that its fit finds the truth, and how it scores."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.hazard import (
    COVARIATES,
    Cause,
    Causes,
    FillModel,
    Fitted,
    Parameters,
    Queued,
    QueueEstimate,
)
from execution.hazard import committed as committed_parameters
from execution.hazard.placements import QUEUES, place_orders
from execution.hazard.survival import (
    CENSORED,
    FILLED,
    RAN_AWAY,
    Fit,
    Floats,
    Lives,
    constant,
    design,
    fit,
    hazards,
    incidence,
    joined,
    log_likelihoods,
    periods,
    rates,
    reliability,
    score,
)
from execution.liquidity import Monitor
from execution.simulation.latency import constant as constant_latency
from market.events import Events
from market.units import SECOND_NS as SECOND
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of
from tests.execution.tape import INSTRUMENT, frame, snapshot, trade
from tests.execution.test_liquidity import picture

#: What is fitted: both bounds of the queue, on both kinds of market.
MODELS = [(queue, source) for queue in QUEUES for source in ("recorded", "synthetic")]
#: A recording that no parameters were fitted on.
UNSEEN = "usdm-20240808"
EDGES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
#: A truth in which each covariate speaks, and speaks less of later times.
TRUTH = Causes(
    filled=Cause(
        base=(-2.6, -2.4, -1.9, -1.2, -0.8, -0.5),
        level=(-0.5, 0.1, -0.6, 0.2, 0.5, 0.4, -0.3, -0.8),
        slope=(0.1, 0.0, 0.2, 0.0, -0.1, -0.1, 0.05, 0.2),
    ),
    ran_away=Cause(
        base=(-3.0, -2.8, -2.2, -1.4, -1.0, -0.7),
        level=(0.1, -0.2, 0.5, 0.0, 0.1, 0.6, 0.4, 0.9),
        slope=(0.0, 0.05, -0.2, 0.0, 0.0, -0.2, -0.1, -0.3),
    ),
)


def simulated(count: int, seed: int, watched_s: Floats | None = None) -> Lives:
    """Lives whose hazards are those of `TRUTH`, on standard normal covariates."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    x = rng.standard_normal((count, len(COVARIATES)))
    watched = np.full(count, EDGES[-1]) if watched_s is None else watched_s
    truth = hazards(TRUTH, x, EDGES)
    lasted, outcome = watched.copy(), np.zeros(count, np.int64)
    alive = np.ones(count, bool)
    for k, (begin, end) in enumerate(zip((0.0, *EDGES), EDGES, strict=False)):
        draw = rng.random(count)
        at = begin + (end - begin) * (1 - rng.random(count))
        for cause, comes in (
            (FILLED, draw < truth[:, k, 0]),
            (RAN_AWAY, (draw >= truth[:, k, 0]) & (draw < truth[:, k].sum(axis=1))),
        ):
            now = alive & comes & (at <= watched)
            lasted[now], outcome[now] = at[now], cause
        alive &= draw >= truth[:, k].sum(axis=1)
    return Lives(x, lasted, watched, outcome, np.arange(count, dtype=np.float64) * 10)


@cache
def fitted(seed: int = 1) -> tuple[Lives, Causes, Fit]:
    lives = simulated(10_000, seed)
    return lives, *fit(lives, EDGES, ridge=1e-3)


def model(causes: Causes = TRUTH) -> FillModel:
    fit = Fitted(causes=causes, rates=(0.1, 0.1), ridge=1.0, looks=0, fitted_on=())
    return FillModel(
        Parameters(
            away_bps=1.0,
            edges_s=EDGES,
            covariates=COVARIATES,
            fits={"recorded": {"risk_averse": fit}},
        )
    )


values = st.floats(0, 5e6)
states = st.builds(
    Queued,
    ahead_usdt=values,
    own_usdt=values,
    opposite_usdt=values,
    spread_ticks=st.floats(1, 30),
    outflow_usdt_s=st.floats(0, 1e6),
    sigma_bps=st.floats(0.05, 5),
    signal_bps=st.floats(-3, 3),
    distance_bps=st.floats(0, 1),
)
STATE = Queued(
    ahead_usdt=200e3,
    own_usdt=200e3,
    opposite_usdt=300e3,
    spread_ticks=1,
    outflow_usdt_s=50e3,
    sigma_bps=0.5,
)


# -- what the probabilities promise ------------------------------------------------------------------


@settings(derandomize=True, max_examples=200, deadline=None)
@given(states, st.floats(0.01, 600), st.floats(1, 3), st.sampled_from(MODELS))
def test_a_fill_is_a_probability_and_grows_with_the_horizon(
    state: Queued, horizon_s: float, longer: float, which: tuple[str, str]
) -> None:
    """0 ≤ P(filled) ≤ 1, it grows with the horizon, and an order that follows the touch fills no less
    surely than one that does not."""
    known = FillModel.load(*which)
    filled = known.fill_probability(state, horizon_s)
    assert 0 <= filled <= 1 + 1e-12
    assert known.fill_probability(state, horizon_s * longer) >= filled - 1e-12
    assert filled - 1e-12 <= known.pegged_fill_probability(state, horizon_s) <= 1
    assert known.expected_fill_s(state) > 0


def test_the_scalar_and_the_array_model_agree() -> None:
    """The scalar model and the arrays that it is fitted and judged by are one formula."""
    known = model()
    found = hazards(TRUTH, np.array([STATE.covariates()]), EDGES)
    assert [(filled, away) for _, _, filled, away in known._hazards(STATE)] == [
        pytest.approx(tuple(row)) for row in found[0]
    ]
    assert [end for end, *_ in known._hazards(STATE)] == list(EDGES)
    for horizon in EDGES:
        filled, _ = incidence(found, EDGES, horizon)[0]
        assert known.fill_probability(STATE, horizon) == pytest.approx(filled)


def test_constant_rates_give_exponential_fill_times() -> None:
    """With rates f and a that never change, P(filled by t) = f / (f + a) · (1 - e^-(f+a)t), and the
    expected time to a fill is 1 / f: each attempt lasts 1 / (f + a) and fills with chance f / (f + a)."""
    f, a = 0.3, 0.1
    lengths = np.diff(np.array(EDGES), prepend=0)
    ended = -np.expm1(-(f + a) * lengths)
    zero = (0.0,) * len(COVARIATES)

    def cause(share: float) -> Cause:
        base = np.log(ended * share / (1 - ended))
        return Cause(base=tuple(base.tolist()), level=zero, slope=zero)

    known = model(Causes(filled=cause(f / (f + a)), ran_away=cause(a / (f + a))))
    for horizon in (0.1, 0.7, 3.0, 30.0, 100.0):
        law = f / (f + a) * -math.expm1(-(f + a) * horizon)
        assert known.fill_probability(STATE, horizon) == pytest.approx(law)
    assert known.expected_fill_s(STATE) == pytest.approx(1 / f)
    assert known.pegged_fill_probability(STATE, 5.0) == pytest.approx(-math.expm1(-f * 5), abs=0.02)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(states, st.floats(1.1, 20), st.sampled_from(QUEUES))
def test_the_fitted_fill_hazard_falls_with_the_queue_ahead(
    state: Queued, times: float, queue: str
) -> None:
    """On synthetic ones the queue adds next to nothing to the imbalance, see the docs."""
    known = FillModel.load(queue, "recorded")
    behind = msgspec.structs.replace(state, ahead_usdt=(state.ahead_usdt + 1e3) * times)
    for near, far in zip(known._hazards(state), known._hazards(behind), strict=True):
        assert far[2] <= near[2] + 1e-12


def test_a_queue_model_without_a_fit_is_named() -> None:
    with pytest.raises(
        ValueError, match="log2 of recorded data: no fill model is fitted; fitted are"
    ):
        FillModel.load("log2")


def test_parameters_of_other_covariates_are_refused() -> None:
    with pytest.raises(ValueError, match="fit again"):
        msgspec.structs.replace(committed_parameters(), covariates=("ahead",))


# -- states and queue positions ----------------------------------------------------------------------


def test_a_state_is_the_view_in_quote_currency() -> None:
    """Ahead of an order of 3 lots that joins the bid stand 10 lots and two of its own."""
    state = Queued.of(Monitor(), picture(signal_bps=2.0), 1, 3)
    worth = 100.0  # a lot at the bid
    assert state.ahead_usdt == 12 * worth
    assert (state.own_usdt, state.opposite_usdt, state.spread_ticks) == (10 * worth, 10 * worth, 1)
    assert (state.signal_bps, state.distance_bps) == (2.0, 0.0)
    behind = Queued.of(Monitor(), picture(signal_bps=2.0), -1, ahead_lots=4, price_ticks=103)
    assert behind.signal_bps == -2.0
    assert behind.ahead_usdt == 4 * 103
    assert behind.distance_bps == pytest.approx(2 / 100.5 * 1e4)


def test_a_market_and_its_mirror_are_one_state() -> None:
    view = picture(bids=((100, 10), (99, 5)), asks=((101, 40), (102, 5)), signal_bps=1.5)
    mirror = picture(bids=((100, 40), (99, 5)), asks=((101, 10), (102, 5)), signal_bps=-1.5)
    buyer, seller = Queued.of(Monitor(), view, 1), Queued.of(Monitor(), mirror, -1)
    assert buyer.covariates() == pytest.approx(seller.covariates(), rel=2e-2)


def test_only_trades_and_displayed_depth_move_a_queue_position_forward() -> None:
    place = QueueEstimate(1, 100, picture())
    assert place.ahead_lots == 10
    place.see(picture(1, sold_lots=3))
    assert place.ahead_lots == 7
    place.see(picture(2, sold_lots=3, bids=((100, 50), (99, 20))))
    assert place.ahead_lots == 7  # new orders queue behind
    place.see(picture(3, sold_lots=3, bids=((100, 5), (99, 20))))
    assert place.ahead_lots == 5  # no more than what is there
    place.see(picture(4, sold_lots=900, stale=True))
    assert place.ahead_lots == 5


def test_trades_at_better_prices_move_no_queue_position() -> None:
    place = QueueEstimate(1, 99, picture())
    assert place.ahead_lots == 20
    place.see(picture(1, sold_lots=8))
    assert place.ahead_lots == 20
    place.see(picture(2, sold_lots=8, bids=((99, 20), (98, 30))))
    place.see(picture(3, sold_lots=12, bids=((99, 16), (98, 30))))
    assert place.ahead_lots == 16
    place.see(picture(4, sold_lots=12, bids=((98, 30),)))
    assert place.ahead_lots == 0  # the price is within the view, and the level is empty


# -- the fit -----------------------------------------------------------------------------------------


def test_the_fit_recovers_known_coefficients() -> None:
    """Of 44 coefficients of covariates no more than a few lie outside of 1.96 standard errors, and
    none outside of four."""
    lives, _, found = fitted()
    mean, sd = lives.covariates.mean(axis=0), lives.covariates.std(axis=0)
    columns, k = found.coefficients.shape[1], len(EDGES)
    errors = np.sqrt(np.diag(found.covariance)).reshape(2, columns)
    z = []
    for n, cause in enumerate((TRUTH.filled, TRUTH.ran_away)):
        true = np.concatenate([np.array(cause.level) * sd, np.array(cause.slope) * sd])
        z.extend(((found.coefficients[n, k:] - true) / errors[n, k:]).tolist())
    assert np.abs(mean).max() < 0.05
    assert np.abs(z).max() < 4
    assert (np.abs(z) < 1.96).mean() > 0.85


def test_the_fit_maximises_the_likelihood() -> None:
    """A neighbour in any direction is less likely."""
    lives, causes, _ = fitted()
    best = log_likelihoods(lives, hazards(causes, lives.covariates, EDGES), EDGES).sum()
    for place in range(len(COVARIATES)):
        for step in (-0.05, 0.05):
            level = list(causes.filled.level)
            level[place] += step
            moved = Causes(
                filled=msgspec.structs.replace(causes.filled, level=tuple(level)),
                ran_away=causes.ran_away,
            )
            near = log_likelihoods(lives, hazards(moved, lives.covariates, EDGES), EDGES).sum()
            assert near < best


def test_censoring_does_not_bias_the_fit() -> None:
    """Lives whose watch ends at random give the same shares as lives that are watched to the end,
    where leaving the censored ones out, or cutting within intervals, would not."""
    rng = np.random.Generator(np.random.Philox(key=7))
    count = 20_000
    cut = simulated(count, 3, rng.uniform(0.2, 12.0, count))
    whole = simulated(count, 4)
    causes, _ = fit(cut, EDGES, ridge=1e-3)
    x = whole.covariates
    predicted = incidence(hazards(causes, x, EDGES), EDGES, 10.0).mean(axis=0)
    seen = [
        float(((whole.outcome == c) & (whole.lasted_s <= 10.0)).mean()) for c in (FILLED, RAN_AWAY)
    ]
    assert predicted == pytest.approx(seen, abs=0.015)
    kept = cut.outcome != CENSORED
    naive = float((cut.outcome[kept] == FILLED).mean())
    assert abs(naive - seen[0]) > 0.03


def test_person_periods_are_the_intervals_observed_whole() -> None:
    lives = Lives(
        covariates=np.zeros((5, 1)),
        lasted_s=np.array([0.7, 0.7, 0.7, 2.0, 4.0]),
        watched_s=np.array([30.0, 0.8, 0.7, 30.0, 4.0]),
        # filled; filled within an interval that was not watched whole; censored in the second
        # interval; ran away at an end; censored in the fourth.
        outcome=np.array([FILLED, FILLED, CENSORED, RAN_AWAY, CENSORED]),
        observed_s=np.zeros(5),
    )
    found = periods(lives, EDGES)
    rows = [
        (found.interval[found.life == n].tolist(), found.outcome[found.life == n].tolist())
        for n in range(5)
    ]
    assert rows == [
        ([0, 1], [0, FILLED]),
        ([0], [0]),
        ([0], [0]),
        ([0, 1, 2], [0, 0, RAN_AWAY]),
        ([0, 1, 2], [0, 0, 0]),
    ]


def test_regressors_are_interval_covariates_and_their_products_with_log_time() -> None:
    x = design(np.array([[2.0], [2.0]]), np.array([0, 2]), (1.0, 3.0, 5.0))
    z = np.log1p([0.5, 2.0, 4.0])
    assert x.tolist() == [
        [1, 0, 0, 2, pytest.approx(2 * z[0])],
        [0, 0, 1, 2, pytest.approx(2 * z[2])],
    ]


def test_a_constant_covariate_gets_no_coefficient() -> None:
    lives = simulated(2_000, 5)
    flat = lives._replace(covariates=lives.covariates * (np.arange(len(COVARIATES)) != 3))
    causes, _ = fit(flat, EDGES)
    assert causes.filled.level[3] == causes.ran_away.slope[3] == 0


# -- the score ---------------------------------------------------------------------------------------


def test_the_true_model_scores_above_constant_hazards_and_is_reliable() -> None:
    _, causes, _ = fitted()
    lives = simulated(10_000, 2)
    predicted = hazards(causes, lives.covariates, EDGES)
    gain = score(lives, predicted, constant(rates(fitted()[0]), EDGES), EDGES)
    assert gain.low > 0
    assert gain.gain == pytest.approx(gain.model - gain.constant)
    for horizon in (1.0, 5.0, 30.0):
        bins = reliability(lives, predicted, EDGES, horizon)
        assert sum(each.n for each in bins) == len(lives.outcome)
        inside = [each.low - 0.01 <= each.predicted <= each.high + 0.01 for each in bins]
        assert sum(inside) >= 9
        assert bins[-1].observed > 2 * bins[0].observed


def test_a_wrong_model_is_not_reliable() -> None:
    lives = simulated(10_000, 2)
    turned = np.array(TRUTH.filled.level) * -1
    wrong = Causes(
        filled=msgspec.structs.replace(TRUTH.filled, level=tuple(turned.tolist())),
        ran_away=TRUTH.ran_away,
    )
    predicted = hazards(wrong, lives.covariates, EDGES)
    assert score(lives, predicted, constant(rates(lives), EDGES), EDGES).high < 0
    bins = reliability(lives, predicted, EDGES, 5.0)
    assert sum(not each.low <= each.predicted <= each.high for each in bins) >= 5


def test_constant_hazards_are_events_over_exposure() -> None:
    lives = simulated(5_000, 8)
    base = constant(rates(lives), EDGES)
    known = [(lives.outcome == c).sum() / lives.lasted_s.sum() for c in (FILLED, RAN_AWAY)]
    assert base[0, 0] == pytest.approx(
        [-math.expm1(-sum(known) * EDGES[0]) * rate / sum(known) for rate in known]
    )
    none = lives._replace(outcome=np.zeros(len(lives.outcome), np.int64))
    assert constant(rates(none), EDGES).tolist() == np.zeros((1, len(EDGES), 2)).tolist()


def test_moments_of_different_streams_are_kept_apart() -> None:
    part = simulated(10, 9)
    both = joined([part, part])
    assert len(both.outcome) == 20
    assert len(np.unique(both.observed_s)) == 20


# -- orders that might have been ---------------------------------------------------------------------

START = 1_700_000_000 * SECOND


def at(seconds: float) -> int:
    return START + round(seconds * SECOND)


def placed(*rows: Events, until_s: int = 90) -> Lives:
    """Orders in a market of 10 lots at 100 and 20 at 101, in which nothing else happens."""
    opening = snapshot(at(0), asks=((101, 20), (102, 20), (103, 30)))
    quiet = [frame(at(second), bids=[(98, 30)]) for second in range(1, until_s + 1)]
    events = np.concatenate([opening, *quiet, *rows])
    found = place_orders(
        [events[np.argsort(events["receive_ns"], kind="stable")]],
        INSTRUMENT,
        away_bps=150.0,
        latency=constant_latency(0, 0),
        queues=("risk_averse",),
    )
    return found.lives["risk_averse"]


def sent_first(lives: Lives) -> dict[str, tuple[float, int]]:
    """How long the first buyer and the first seller lasted after they were sent, and how they ended.

    The first orders are sent 21 s after the opening, the first whole second after the warm-up.
    """
    buys = lives.covariates[:, COVARIATES.index("imbalance")] < 0
    first = lives.observed_s == at(21) / SECOND
    return {
        name: (round(float(lives.lasted_s[rows][0]), 6), int(lives.outcome[rows][0]))
        for name, rows in (("buyer", first & buys), ("seller", first & ~buys))
    }


def test_an_order_is_filled_when_its_queue_and_itself_have_traded() -> None:
    assert sent_first(placed(trade(at(25), -1, 100, 10)))["buyer"] == (60.0, CENSORED)
    both = sent_first(placed(trade(at(25), -1, 100, 11)))
    assert both == {"buyer": (4.0, FILLED), "seller": (60.0, CENSORED)}


def test_the_price_runs_away_from_one_side_and_fills_the_other() -> None:
    moved = frame(at(30), bids=[(103, 9)], asks=[(101, 0), (102, 0), (103, 0), (104, 50)])
    assert sent_first(placed(moved)) == {"buyer": (9.0, RAN_AWAY), "seller": (9.0, FILLED)}


def test_an_observation_is_censored_by_the_minute_or_the_streams_end() -> None:
    whole = placed()
    assert sent_first(whole)["buyer"] == (60.0, CENSORED)
    assert whole.watched_s.max() == 60.0
    cut = placed(until_s=41)
    lasted, outcome = sent_first(cut)["buyer"]
    assert outcome == CENSORED
    assert 19 < lasted <= 20
    assert (cut.lasted_s <= cut.watched_s + 1e-9).all()


def test_an_order_is_observed_again_at_its_new_queue_position() -> None:
    """Sent at 21 s behind 10 lots, of which 4 trade at 22.5 s; looked at again after 2, 5 and 15 s."""
    lives = placed(trade(at(22.5), -1, 100, 4), until_s=60)
    column = lives.covariates[:, COVARIATES.index("ahead")]
    buys = lives.covariates[:, COVARIATES.index("imbalance")] < 0

    def ahead(second: float) -> float:
        return float(column[buys & (lives.observed_s == at(second) / SECOND)].min())

    assert ahead(21) == pytest.approx(math.log1p(10 * 100 / 1e3))
    for second in (23, 26, 36):
        assert ahead(second) == pytest.approx(math.log1p(6 * 100 / 1e3))


def test_no_order_is_placed_without_a_book() -> None:
    found = place_orders([], INSTRUMENT, away_bps=1.0, latency=constant_latency(0, 0))
    assert found.lives == {}


# -- on recordings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_the_committed_model_beats_constant_hazards_out_of_sample(
    data_dir: Path, symbol: str
) -> None:
    """More likely by a margin, and orders that were called likely fill more often."""
    known = committed_parameters()
    path = data_dir / f"{UNSEEN}.frames.zst"
    instruments = instruments_of([str(path)], [symbol], 200)
    decoder = Decoder(instruments, 200, [symbol], follow=False)
    found = place_orders(
        (decoder.decode_block(block).events[symbol] for block in read_blocks(path)),
        instruments[symbol],
        away_bps=known.away_bps,
        latency=constant_latency(10_000_000, 10_000_000),
        queues=("risk_averse",),
    )
    lives, model = found.lives["risk_averse"], known.fits["recorded"]["risk_averse"]
    assert UNSEEN not in model.fitted_on
    predicted = hazards(model.causes, lives.covariates, known.edges_s)
    assert score(lives, predicted, constant(model.rates, known.edges_s), known.edges_s).low > 0
    bins = reliability(lives, predicted, known.edges_s, 5.0, bins=3)
    assert bins[0].observed < bins[1].observed < bins[2].observed
