"""A fold of combinatorial validation learns nothing of its test group, whose neighbours train it."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
import planted
import pytest
from sklearn.base import BaseEstimator

from market.lake import Lake
from market.settings import Settings
from models_registry.dataset import MemorySource, Rows
from models_registry.fold import FoldModel, Trainer, Tuned
from models_registry.own import OwnTrainer
from models_registry.validation import combinatorial_folds, label_reach_ns


def rows_of(lake: Lake) -> Rows:
    source = planted.source(lake)
    return source.read(source.dates(), planted.FEATURES.names, 5)


def path_of(rows: Rows, test_groups: int):
    return combinatorial_folds(
        rows.t_ns, groups=5, test_groups=test_groups, calibration_share=0.2, max_horizon_s=300,
        embargo_s=300,
    )[0]  # fmt: skip


@pytest.mark.parametrize("select", [0, 3])
def test_outcomes_of_the_test_group_change_nothing_of_its_fold(
    select: int, planted_lake: Lake, planted_settings: Settings
) -> None:
    rows = rows_of(planted_lake)
    model = msgspec.structs.replace(planted_settings.model, select=select)
    before, fold = path_of(rows, 1)[1:3]

    def fitted(given: Rows) -> tuple[FoldModel, Tuned]:
        source = MemorySource(given, planted.FEATURES.names)
        trainer = Trainer(source, planted.FEATURES, model, None, lambda line: None)
        trainer.fit(before)  # was trained, and its parameters chosen, on this one's test group
        made = trainer.fit(fold)
        assert isinstance(made, FoldModel)
        return made, trainer.tuned

    used = fold.train.mask(rows.t_ns) | fold.calibration.mask(rows.t_ns)
    broken = np.where(used[:, np.newaxis], rows.labels_bps, -7.0 * rows.labels_bps)
    made, tuned = fitted(rows)
    other, again = fitted(msgspec.structs.replace(rows, labels_bps=broken))
    assert made.train_rows == other.train_rows == fold.train.mask(rows.t_ns).sum()
    assert tuned.parameters == again.parameters
    assert made.members == other.members
    assert made.recipe == other.recipe


class Noting(BaseEstimator):
    """Keeps the clock, the first column, of all that it is fitted on."""

    fitted: ClassVar[list[np.ndarray]] = []

    def fit(self, x: np.ndarray, y: np.ndarray) -> Noting:
        self.fitted.append(x[:, 0])
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x[:, 0] % 7 - 3.0


def test_no_row_that_fits_lies_in_or_reaches_into_a_test_group(
    planted_lake: Lake, planted_settings: Settings
) -> None:
    rows = rows_of(planted_lake)
    seconds = (rows.t_ns - rows.t_ns[0]) // 1_000_000_000
    rows.features[:, 0] = seconds
    source = MemorySource(rows, planted.FEATURES.names)
    trainer = OwnTrainer(
        source, planted.FEATURES, planted_settings.model, None, lambda line: None,
        own=Noting(), name="noting",
    )  # fmt: skip
    for fold in path_of(rows, 2):
        Noting.fitted.clear()
        assert isinstance(trainer.fit(fold), FoldModel)
        (clock,) = Noting.fitted
        assert trainer.seen is not None
        fitted_ns = rows.t_ns[0] + clock.astype(np.int64) * 1_000_000_000
        t_ns = np.concatenate([fitted_ns, trainer.seen.rows.t_ns])
        after = fold.test.after_ns + 1 - label_reach_ns(300)
        assert not ((t_ns > after) & (t_ns < fold.test.until_ns + label_reach_ns(300))).any()
