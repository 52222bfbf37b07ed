"""The experiment of dynamic weights: nothing is weighted by a label that is not known yet."""

from __future__ import annotations

import numpy as np
import pytest

from models_registry.dataset import Rows
from models_registry.ensemble import Outputs
from models_registry.validation import DELAY_S
from proving import weighting
from proving.kept import Done
from proving.weighting import HORIZON_S, VARIANTS, families, hourly, report, stacked, trailing

REACH = HORIZON_S + DELAY_S
SECOND = 10**9


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_the_trailing_contribution_is_the_weighted_mean_of_what_is_known(
    rng: np.random.Generator,
) -> None:
    part, label = rng.standard_normal((2, 400))
    label[50:60] = np.nan
    found = trailing(part, label, 30.0)
    product = np.nan_to_num(part * label)
    for at in (0, REACH - 1, REACH, REACH + 7, 399):
        known = product[: max(0, at + 1 - REACH)]
        weight = 0.5 ** (np.arange(len(known))[::-1] / 30.0)
        mean = float((weight * known).sum() / weight.sum()) if len(known) else 0.0
        assert found[at] == pytest.approx(mean, abs=1e-12)


def test_hourly_weights_do_not_see_labels_that_are_not_known(rng: np.random.Generator) -> None:
    n, begins = 3 * 3600, 3600
    rows = Rows(
        t_ns=np.arange(1, n + 1) * SECOND,
        symbol=np.zeros(n, np.int8),
        mid=np.ones(n),
        spread_bps=np.zeros(n),
        features=np.empty((n, 0), np.float32),
        labels_bps=np.zeros((n, 1)),
    )
    both = Outputs(rows=rows, volatility=np.ones(n), output=rng.standard_normal((n, 2)))
    label = both.output[:, 0] + rng.standard_normal(n)
    before = hourly(both, label, begins, 1)
    later = label.copy()
    later[2 * 3600 + 1 - REACH :] *= -1  # unknown when the last hour begins
    assert np.array_equal(hourly(both, later, begins, 1), before)
    earlier = label.copy()
    earlier[:begins] *= -1
    assert not np.array_equal(hourly(both, earlier, begins, 1), before)
    assert np.allclose(stacked(both.output, label, rows.t_ns), (1.0, 0.0), atol=0.1)


def test_families_are_by_name_and_the_table_has_every_variant() -> None:
    assert families(("book_0_5", "noise_1", "flow_1_20", "book_1_5")) == {
        "book": [0, 3],
        "flow": [2],
        "others": [1],
    }
    found = [
        Done(
            row="weighting",
            run="weighting",
            seed=seed,
            code="",
            cpu_s=1.0,
            at="",
            figures={
                market: {
                    f"{kind}, {name}": seed + place / 10
                    for kind in ("ic", "sharpe")
                    for place, name in enumerate(VARIANTS)
                }
            },
        )
        for seed in range(4)
        for market in (("fades", "stays")[seed % 2],)
    ]
    lines = report(found)
    assert len(lines) == 2 * 2 * (len(VARIANTS) - 1)
    assert lines[0][:4] == ["fades", "2", "ic", "hourly"]
    assert lines[0][-1] == "+0.1000 [+0.1000, +0.1000]"


@pytest.mark.parametrize(("seed", "market"), [(2, "fades"), (3, "stays")])
def test_a_seed_has_every_figure(seed: int, market: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighting, "HOURS", 0.5)
    (found,) = weighting.weighted(seed).items()
    assert found[0] == market
    assert set(found[1]) == {f"{kind}, {name}" for kind in ("ic", "sharpe") for name in VARIANTS}
    assert found[1]["ic, static"] > 0.05
