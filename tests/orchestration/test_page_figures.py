"""What the page computes: the record of a version in service, and how soon a touch recovers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from market.settings import Settings
from orchestration.dashboard.follow import Recovery
from orchestration.dashboard.model_record import record
from tests.live.live_market import live_settings, promote
from tests.models_registry.test_between_retrains import (
    COST_BPS,
    HOUR,
    REFERENCE,
    START,
    S,
    noisy,
    serve,
)


def test_the_record_is_of_the_version_that_served(tmp_path: Path) -> None:
    promote(tmp_path, decay=REFERENCE)
    settings, hours = live_settings(tmp_path), 30
    assert record(settings)["decisions"] == 0, "nothing was served yet"
    raw, realised = noisy(hours * HOUR, 0.2, 1)
    serve(settings, 0, raw, realised)
    found = record(settings)
    assert found["decay"]["limit"] == REFERENCE.limit
    assert "no challenger" in found["challenger"]
    assert sum(x[0] for x in found["importance"]["shares"].values()) == pytest.approx(1.0)

    end_ns, ic, lower, upper = found["rolling"][-1]
    assert end_ns == START + hours * 3600 * S
    error = (24 * HOUR) ** -0.5  # of the mean of independent products
    assert ic == pytest.approx(0.2, abs=4 * error)
    assert upper - lower == pytest.approx(2 * 1.96 * error, rel=0.5)

    # The last decision is of an hour that is not over.
    acts = np.abs(raw[:-1]) > COST_BPS
    earned = np.sign(raw[:-1]) * realised[:-1] - COST_BPS
    assert found["decisions"] == len(acts)
    assert found["coverage"] == pytest.approx(acts.mean())
    assert found["false_net"] == pytest.approx((earned[acts] <= 0).mean())


def test_without_a_promoted_version_it_says_what_to_do(tmp_path: Path) -> None:
    assert "l2 promote" in record(Settings(root=str(tmp_path)))["error"]


def test_resilience_is_how_long_a_depleted_touch_takes_to_refill_by_half() -> None:
    seen = Recovery()
    for at, bid in (*((s, 100) for s in range(60)), (60, 10), (61, 30), (62.5, 60), (63, 100)):
        seen.see(at, (bid, 100))
    assert seen.mean_s == 2.5
