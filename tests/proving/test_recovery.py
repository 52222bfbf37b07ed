"""The planted IC is in the prices: the study's figures, and a small study of the market itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from proving.synthetic import command as synth
from proving.synthetic import latent
from proving.synthetic.planted import closed_form_ic
from proving.synthetic.profiles import Profile, altered, profile


def efficient_mids(market: Profile, seed: int, symbol: str, day: str) -> npt.NDArray[np.float64]:
    """A market whose mid is the efficient price."""
    return latent.drivers(market, seed, symbol, day).log_price[
        latent.PER_SECOND :: latent.PER_SECOND
    ]


def test_the_efficient_price_has_the_closed_form_ic() -> None:
    strong = profile("strong")
    sums = [synth.day_sums(strong, seed, efficient_mids) for seed in range(4)]
    for row in synth.pooled(strong, sums):
        assert row.planted == closed_form_ic(strong, row.horizon_s, 1.0)
        assert abs(row.z) < 4
        assert row.found == pytest.approx(row.planted, abs=0.06)
        # The error is that of four days, not of a few or of many.
        assert 0.001 < row.error < 0.04


def test_mids_of_the_reduced_form_have_the_planted_ic() -> None:
    strong = profile("strong")
    sums = [synth.day_sums(strong, 50 + seed, synth.reduced_mids) for seed in range(3)]
    rows = synth.pooled(strong, sums)
    assert abs(rows[1].z) < 4
    assert rows[1].found == pytest.approx(rows[1].planted, abs=0.06)


def test_a_null_market_has_no_measured_ic() -> None:
    """Prices of the null market beside the alpha that the same seed would have had."""
    null, weak = altered(profile("null"), filterable=0.65), profile("strong")

    def mids(market: Profile, seed: int, symbol: str, day: str) -> npt.NDArray[np.float64]:
        return efficient_mids(null, seed, symbol, day)

    rows = synth.pooled(weak, [synth.day_sums(weak, seed, mids) for seed in range(4)])
    assert rows[0].z < -5
    assert not rows[0].agrees
    assert abs(rows[0].found) < 4 * rows[0].error


def test_agreement_needs_a_small_error() -> None:
    close = synth.MeasuredIC(60, 0.1, 0.11, 0.02, 5)
    assert abs(close.z) < 3
    assert not close.agrees
    assert synth.MeasuredIC(60, 0.1, 0.11, 0.0045, 50).agrees
    assert not synth.MeasuredIC(60, 0.1, 0.12, 0.0045, 50).agrees
