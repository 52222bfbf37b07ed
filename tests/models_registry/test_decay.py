"""The decay monitor: its false-alarm rate, what it finds, and what must not move it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import planted
import pytest

from market.lake import Lake
from market.settings import Settings
from models_registry import decay
from models_registry.decay import (
    DecayState,
    advance,
    alarms,
    cusum,
    make_reference,
    monitor,
    observations,
    simulate_limit,
)
from models_registry.manifest import DecayReference

SECOND = 1_000_000_000
MINUTES = 1440


def rows(days: int, ic: float, seed: int):
    """One prediction and realised return a minute; both divided by the scale they were made at."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    count = days * MINUTES
    predicted = generator.normal(size=count)
    realised = ic * predicted + np.sqrt(1 - ic**2) * generator.standard_t(5, count) / np.sqrt(5 / 3)
    t_ns = np.arange(1, count + 1, dtype=np.int64) * 60 * SECOND
    return t_ns, np.zeros(count, np.int8), 0.1 * predicted, realised


@pytest.fixture(scope="module")
def reference() -> DecayReference:
    return make_reference(*rows(10, 0.10, 1), spacing_s=60, arl0_days=30.0, block_s=3600, seed=5)


def test_the_stream_s_mean_is_the_rank_ic(reference: DecayReference) -> None:
    assert reference.mean == pytest.approx(0.10, abs=3 / np.sqrt(10 * MINUTES))
    assert reference.drift == pytest.approx(reference.mean - 0.4 * min(reference.mean, 0.10))
    assert reference.observations == 10 * MINUTES


def test_the_mean_time_between_false_alarms_is_as_stated(reference: DecayReference) -> None:
    # 30 fresh histories of 6 days at the reference's IC: 6 alarms expected at one in 30 days.
    found = sum(monitor(reference, *rows(6, 0.10, 100 + n)).failed for n in range(30))
    assert 1 <= found <= 13


def test_a_lost_ic_is_detected_within_days(reference: DecayReference) -> None:
    delays = []
    for n in range(10):
        report = monitor(reference, *rows(3, 0.0, 200 + n))
        assert report.failed
        delays.append(report.alarm_ns / (86_400 * SECOND))
    # The optimal detector takes 0.6 days on average at one false alarm in 30 days (Lorden's bound).
    assert np.mean(delays) < 2.0


def test_an_inverted_signal_is_detected_sooner_than_a_lost_one(reference: DecayReference) -> None:
    lost = monitor(reference, *rows(6, 0.0, 300))
    inverted = monitor(reference, *rows(6, -0.10, 300))
    assert inverted.alarm_ns < lost.alarm_ns
    assert inverted.ic_recent < 0 < inverted.ic_reference


def test_predictions_of_another_size_or_mean_alone_change_nothing(
    reference: DecayReference,
) -> None:
    t_ns, symbol, predicted, realised = rows(3, 0.10, 401)
    plain = monitor(reference, t_ns, symbol, predicted, realised)
    for moved in (3.0 * predicted, 0.2 * predicted, predicted + 0.5):
        assert monitor(reference, t_ns, symbol, moved, realised) == plain
    assert monitor(reference, t_ns, symbol, predicted, 2.0 * realised) == plain


def test_two_symbols_in_a_minute_are_one_observation() -> None:
    t_ns, symbol, predicted, realised = rows(1, 0.1, 7)
    once_at, once = observations(t_ns, symbol, predicted, realised, 60)
    both = np.concatenate([symbol, symbol + 1]).astype(np.int8)
    twice_at, twice = observations(
        np.tile(t_ns, 2), both, np.tile(predicted, 2), np.tile(realised, 2), 60
    )
    assert np.array_equal(once_at, twice_at)
    assert twice == pytest.approx(once)


def test_the_cusum_is_that_of_page() -> None:
    x = np.random.default_rng(3).normal(size=200)
    level, path = 0.0, []
    for value in x:
        level = max(0.0, level + 0.1 - value)
        path.append(level)
    assert cusum(x, 0.1) == pytest.approx(path)


def test_a_rarer_false_alarm_needs_a_higher_limit_and_the_seed_fixes_it() -> None:
    x = 0.1 + np.random.default_rng(4).normal(size=2000)
    limits = [simulate_limit(x, arl0=arl0, mean_block=20, seed=1) for arl0 in (200, 2000, 20_000)]
    assert limits == sorted(set(limits))
    assert limits[1] == simulate_limit(x, arl0=2000, mean_block=20, seed=1)


def test_the_monitor_goes_on_where_it_stopped_whatever_the_version(
    reference: DecayReference,
) -> None:
    ends, x = observations(*rows(3, 0.0, 12), 60)
    whole = advance(DecayState(), reference, ends, x, "2")
    half = advance(DecayState(), reference, ends[:700], x[:700], "1")
    assert half.cusum > 0.5 * reference.limit
    parts = advance(half, reference, ends[600:], x[600:], "2")
    assert parts.alarm_ns == whole.alarm_ns
    assert (parts.cusum, parts.alarms) == pytest.approx((whole.cusum, whole.alarms))
    assert (whole.alarms, whole.alarm_version) == (len(alarms(reference, x)), "2")


def test_an_hour_is_ranked_among_the_day_before_its_end_alone() -> None:
    t_ns, symbol, predicted, realised = rows(3, 0.1, 13)
    ends, x = observations(t_ns, symbol, predicted, realised, 60)
    last = slice(2 * MINUTES - 23 * 60 - 1, None)
    some, y = observations(t_ns[last], symbol[last], predicted[last], realised[last], 60)
    assert np.array_equal(ends[-MINUTES:], some[-MINUTES:])
    assert np.array_equal(x[-MINUTES:], y[-MINUTES:])


def test_without_a_positive_ic_there_is_nothing_to_lose() -> None:
    flat = make_reference(*rows(3, -0.1, 8), spacing_s=60, arl0_days=5, block_s=600, seed=1)
    assert flat.limit is None
    report = monitor(flat, *rows(1, -0.1, 9))
    assert not report.failed
    assert "nothing can decay" in report.summary


def test_without_realised_returns_there_is_no_statement(reference: DecayReference) -> None:
    t_ns, symbol, predicted, realised = rows(1, 0.1, 10)
    report = monitor(reference, t_ns, symbol, predicted, np.full(len(realised), np.nan))
    assert not report.failed
    assert "no prediction has a realised return" in report.summary


def test_the_champion_is_scored_and_checked_on_later_days_only(
    registered: tuple[Lake, Settings], tmp_path: Path
) -> None:
    lake, settings = registered
    keys = [(s, d) for d in ("2026-01-05", "2026-01-06") for s in planted.SYMBOLS]
    before = decay.score_days(lake, settings, keys, planted.FEATURES)
    assert before.partitions == 0
    planted.extend(lake, "2026-01-06", 0.25)
    try:
        scored = decay.score_days(lake, settings, keys, planted.FEATURES)
        assert scored.partitions == 2
        found = lake.read("performance", "BTCUSDT", "2026-01-06").to_pylist()
        assert [row["horizon_s"] for row in found] == list(planted.HORIZONS)
        at_60 = found[1]
        assert at_60["ic"] > 0.2
        assert at_60["mean_edge_bps"] > 0
        assert 0.5 < at_60["hit_rate"] < 1
        assert at_60["n_eff"] == pytest.approx(120, abs=2)
        good = decay.check(lake, settings, planted.FEATURES)
        assert not good.failed
        planted.extend(lake, "2026-01-06", 0.25, fading=True)
        faded = decay.check(lake, settings, planted.FEATURES)
        assert abs(faded.ic_recent) < 0.15
        assert faded.statistic > good.statistic
        assert faded.failed
        other = msgspec.structs.replace(planted.FEATURES, hash="other")
        assert "feature definitions" in decay.check(lake, settings, other).summary
    finally:
        for symbol in planted.SYMBOLS:
            lake.remove("training_set", symbol, "2026-01-06")
            lake.remove("performance", symbol, "2026-01-06")


def test_without_a_champion_nothing_is_scored(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", "synthetic")
    settings = planted.settings(tmp_path / "lake")
    assert "no champion" in decay.score_days(lake, settings, [], planted.FEATURES).summary
    assert "no champion" in decay.check(lake, settings, planted.FEATURES).summary
