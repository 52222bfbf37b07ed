"""How a market is judged beside recordings: blocks, ranges, verdicts, distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proving.realism import acceptance, metaorders
from proving.realism.acceptance import Estimate, judge, span, without_blocks
from proving.realism.criteria import STATISTICS
from proving.realism.metaorders import READ_S, Impact
from proving.realism.observation import Observation
from proving.synthetic import profile
from tests.proving.test_facts import START, observation, taker_orders, walk


def found(value: float, low: float = math.nan, high: float = math.nan) -> Estimate:
    return Estimate(label="any", value=value, low=low, high=high, n=100)


@pytest.mark.parametrize(
    ("value", "accepted", "recorded", "verdict"),
    [
        (found(0.5), (0.4, 0.6), (), "in"),
        (found(0.4), (0.4, 0.6), (), "in"),
        (found(0.7, 0.65, 0.75), (0.4, 0.6), (), "OUT"),
        (found(0.7, 0.55, 0.85), (0.4, 0.6), (), "open"),
        (found(0.7), (0.4, 0.6), (), "OUT"),
        (found(0.7, 0.69, 0.71), (0.4, 0.6), (found(0.5, 0.2, 0.8),), "open"),
        (found(0.7, 0.69, 0.71), (0.4, 0.6), (found(0.5, 0.4, 0.6),), "OUT"),
        (found(0.7), None, (), "reported"),
        (found(math.nan), (0.4, 0.6), (), "too short"),
        (found(-3.0), (-math.inf, 0.0), (), "in"),
    ],
)
def test_verdicts(
    value: Estimate,
    accepted: tuple[float, float] | None,
    recorded: Sequence[Estimate],
    verdict: str,
) -> None:
    assert judge(value, accepted, recorded) == verdict


def test_the_range_spans_the_recordings_widened_on_both_sides() -> None:
    assert span([found(2.0), found(4.0), found(math.nan)], 0.1) == pytest.approx((1.8, 4.4))
    assert span([found(-2.0)], 0.1) == pytest.approx((-2.2, -1.8))
    assert span([found(math.nan)], 0.1) is None


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(20, 90), min_size=1, max_size=4), st.integers(2, 12))
def test_jackknife_blocks_leave_each_second_out_once(lengths: list[int], blocks: int) -> None:
    """Invariant: over all blocks, every second of every observation is missing exactly once."""
    market = [
        msgspec.structs.replace(observation(seconds), label=str(place))
        for place, seconds in enumerate(lengths)
    ]
    left = without_blocks(market, blocks)
    missing = {(label, second): 0 for label, each in _seconds(market) for second in each}
    for without in left:
        held: set[tuple[str, int]] = set()
        for label, each in _seconds(without):
            held |= {(label, second) for second in each}
        for key in missing.keys() - held:
            missing[key] += 1
    assert set(missing.values()) == {1}


def _seconds(market: Sequence[Observation]) -> list[tuple[str, range]]:
    first = [(each.start_ns - START) // 1_000_000_000 for each in market]
    return [
        (each.label, range(start, start + each.seconds))
        for each, start in zip(market, first, strict=True)
    ]


def busy(seed: int, seconds: int = 1_200, sigma: float = 1.0) -> Observation:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, seconds, 5 * seconds))
    sides = rng.choice([-1, 1], len(times))
    orders = taker_orders(times, sides)
    orders["lots"] = rng.integers(1, 50, len(times))
    bars = walk(rng.normal(0, sigma, seconds)) | {"spread_one": np.ones(seconds)}
    return observation(seconds, bars=bars, orders=orders)


def test_a_table_has_a_row_per_statistic_and_judges_like_with_like() -> None:
    recorded = [busy(1), busy(2)]
    rows = {row.name: row for row in acceptance.table([busy(3)], recorded, null=True)}
    assert list(rows) == [statistic.name for statistic in STATISTICS]
    volatility = rows["volatility of 1 s"]
    assert volatility.found.low < volatility.found.value < volatility.found.high
    assert volatility.verdict == "in"
    assert rows["sizes of taker orders"].verdict == "in"
    assert rows["OFI of 10 s and the next 10 s"].verdict == "too short"  # it has no imbalance
    wild = {row.name: row for row in acceptance.table([busy(3, sigma=5.0)], recorded, null=True)}
    assert wild["volatility of 1 s"].verdict == "OUT"


def test_without_recordings_their_rows_are_reported_not_judged() -> None:
    rows = acceptance.table([busy(3)], [], null=False)
    like = {statistic.name for statistic in STATISTICS if statistic.like is not None}
    assert {row.verdict for row in rows if row.name in like} <= {"reported", "too short"}


def test_forward_rows_are_judged_on_the_null_market_only() -> None:
    rng = np.random.default_rng(5)
    bars = walk(rng.normal(size=4_000)) | {"ofi_1": rng.normal(size=4_000)}
    market = [observation(4_000, bars=bars)]
    name = "OFI of 10 s and the next 10 s"
    planted = {row.name: row for row in acceptance.table(market, [], null=False)}[name]
    null = {row.name: row for row in acceptance.table(market, [], null=True)}[name]
    assert (planted.verdict, planted.accepted) == ("reported", None)
    assert null.accepted == (-0.05, 0.05)


def test_a_row_as_plain_data_has_no_nan_or_infinity() -> None:
    rows = acceptance.table([busy(3)], [busy(1)], null=True)
    text = msgspec.json.encode([acceptance.as_data(row) for row in rows])
    assert len(msgspec.json.decode(text)) == len(STATISTICS)


def root_impact(share: float, rng: np.random.Generator, left: float = 0.5) -> Impact:
    """Forty metaorders with impact √share, of which ``left`` stays, in noise."""
    shape = np.array([min(1.0, second / 60) for second in READ_S])
    shape[np.array(READ_S) > 60] = left
    path = math.sqrt(share) * shape + rng.normal(0, 0.02, (40, len(READ_S)))
    return Impact(share=share, path=path)


def test_square_root_impact_and_its_retention_are_estimated() -> None:
    rng = np.random.default_rng(11)
    impacts = [root_impact(share, rng) for share in metaorders.SHARES]
    assert metaorders.concavity(impacts) == pytest.approx(0.5, abs=0.05)
    assert metaorders.retention(impacts) == pytest.approx(0.5, abs=0.05)
    rows = acceptance.impact_rows(impacts)
    assert [row.verdict for row in rows] == ["in", "in"]
    assert all(row.found.low < row.found.value < row.found.high for row in rows)


def test_impact_is_the_signed_difference_of_mids() -> None:
    """Two markets that differ by +1 bps after a buy and -1 bps after a sell: impact 1 each."""
    seconds = 3 * 900
    without = np.random.default_rng(3).normal(0, 1e-4, seconds).cumsum()
    with_them = without.copy()
    with_them[metaorders.PAUSE_S // 2 + 1 :] += 1e-4
    with_them[metaorders.PAUSE_S // 2 + 901 :] -= 1e-4
    made = metaorders.impact(0.1, with_them, without)
    assert made.path.shape == (3, len(READ_S))
    assert made.path[:2, 1:] == pytest.approx(np.ones((2, len(READ_S) - 1)), abs=1e-9)
    assert made.path[:, 0] == pytest.approx(np.zeros(3))


def test_a_metaorder_has_impact_and_none_before_it_trades() -> None:
    """A large buy in the same market of the same seed: equal mids before it, higher ones after."""
    market = profile("null")
    runs = [metaorders.mids(market, 202, "BTCUSDT", "2026-03-01", 0.15, q) for q in (0.0, 2.0)]
    begins = metaorders.PAUSE_S // 2
    assert np.array_equal(runs[0][: begins + 1], runs[1][: begins + 1])
    during = slice(begins + 20, begins + metaorders.DURATION_S)
    assert np.nanmean(runs[1][during] - runs[0][during]) > 0


def test_without_metaorders_there_are_no_impact_rows() -> None:
    assert [row.verdict for row in acceptance.impact_rows([])] == ["too short", "too short"]
