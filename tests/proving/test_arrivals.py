"""Arrivals: the generator's published answers, and the moments that the process was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.kernel import kernel
from proving.synthetic.arrivals import (
    KINDS,
    HawkesLaw,
    HawkesState,
    Integers,
    branching_matrix,
    hawkes_law,
    new_hawkes,
    next_request,
    philox,
)

RATES = np.array([12.0, 30.0, 28.0, 80.0, 150.0, 5.0])


def words(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    def signed(low: int, high: int) -> int:
        return int(np.array([high << 32 | low], np.uint64).view(np.int64)[0])

    out = np.zeros(4)
    philox(np.array(key, np.uint64), signed(*counter[2:]), signed(*counter[:2]), out)
    return [int(u * 2**32) for u in out]


def test_philox4x32_10_gives_its_published_test_vectors() -> None:
    ones = 0xFFFFFFFF
    assert words((0, 0), (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words((ones, ones), (ones,) * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert words((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)) == [
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    ]


@kernel
def _count(
    state: HawkesState, law: HawkesLaw, activity: float, steps: int, tally: Integers
) -> None:
    """Requests by kind in each of ``steps`` tenths of a second."""
    for step in range(steps):
        left = 0.1
        while True:
            passed, kind = next_request(state, law, activity, left)
            left -= passed
            if kind < 0:
                break
            tally[step, kind] += 1


def counted(law: HawkesLaw, seconds: int, activity: float = 1.0) -> Integers:
    tally = np.zeros((seconds * 10, KINDS), np.int64)
    _count(new_hawkes(np.array([3, 4], np.uint64)), law, activity, len(tally), tally)
    return tally[200:]


@pytest.mark.parametrize("branching", [0.0, 0.75])
def test_requests_arrive_at_their_mean_rates(branching: float) -> None:
    found = counted(hawkes_law(RATES, branching), 4000).sum(axis=1).reshape(-1, 200)
    rates = counted(hawkes_law(RATES, branching), 4000).mean(axis=0) * 10
    # A cluster has 1 / (1 - n) members, so counts vary 1 / (1 - n)² times as much as Poisson ones.
    error = np.sqrt(RATES / 3980) / (1 - branching)
    assert (np.abs(rates - RATES) < 4 * error).all()
    fano = found.sum(axis=1).var() / found.sum(axis=1).mean()
    assert (fano == pytest.approx(1, abs=0.35)) if branching == 0 else fano > 3


def test_activity_multiplies_arrival_rates() -> None:
    twice = counted(hawkes_law(RATES, 0.5), 1000, 2.0).mean(axis=0) * 10
    assert twice == pytest.approx(2 * RATES, rel=0.15)


# Whatever the rates, the branching matrix has the ratio asked for and leaves every kind spontaneous
# requests; a ratio of one or a negative rate is refused.


@given(st.lists(st.floats(0.01, 500), min_size=KINDS, max_size=KINDS), st.floats(0, 0.99))
def test_the_branching_ratio_is_the_spectral_radius(rates: list[float], branching: float) -> None:
    matrix = branching_matrix(np.array(rates), branching)
    radius = float(np.abs(np.linalg.eigvals(matrix)).max())
    assert math.isclose(radius, branching, rel_tol=1e-6, abs_tol=1e-9)
    law = hawkes_law(np.array(rates), branching)
    assert (law.base >= 0).all()
    assert law.base == pytest.approx((1 - branching) * np.array(rates))


@pytest.mark.parametrize("branching", [1.0, 1.5, -0.1])
def test_a_branching_ratio_of_one_or_more_is_rejected(branching: float) -> None:
    with pytest.raises(ValueError, match="admissible is 0 <= branching < 1"):
        hawkes_law(RATES, branching)


def test_negative_rates_are_rejected() -> None:
    with pytest.raises(ValueError, match="none negative"):
        hawkes_law(-RATES, 0.5)
