"""Selection finds what was planted, also when columns say the same, and lets no noise through."""

from __future__ import annotations

import numpy as np
import pytest

from models_registry import selection
from models_registry.dataset import Rows

SECOND = 1_000_000_000


def rows(seed: int, count: int, noise: int) -> tuple[Rows, np.ndarray]:
    """Two twins of one driver, another driver, a constant, a column without a value, and noise."""
    generator = np.random.default_rng(seed)
    drivers = generator.normal(size=(count, 2))
    goal = drivers @ [0.3, 0.3] + generator.normal(size=count)
    twins = drivers[:, :1] + 0.1 * generator.normal(size=(count, 2))
    columns = [twins, drivers[:, 1:], np.ones((count, 1)), np.full((count, 1), np.nan)]
    columns.append(generator.normal(size=(count, noise)))
    made = Rows(
        t_ns=np.arange(count, dtype=np.int64) * 60 * SECOND,
        symbol=(np.arange(count) % 2).astype(np.int8),
        mid=np.ones(count),
        spread_bps=np.zeros(count),
        features=np.hstack(columns).astype(np.float32),
        labels_bps=goal[:, np.newaxis],
    )
    return made, goal


def chosen(strength: float, count: int = 4) -> tuple[selection.FoldSelection, list[str]]:
    names = [
        "twin_1",
        "twin_2",
        "driver",
        "constant",
        "missing",
        *(f"other_{n}" for n in range(20)),
    ]
    train, goal = rows(1, 6000, 20)
    scored, realised = rows(2, 3000, 20)
    if not strength:
        goal, realised = (np.random.default_rng(3).normal(size=len(x)) for x in (goal, realised))
    found = selection.select(
        train, goal, scored, realised, names, count=count, horizon_s=60, stride_s=60, seed=1,
        threads=1,
    )  # fmt: skip
    return found, names


def test_what_is_planted_is_selected_and_noise_is_not() -> None:
    found, names = chosen(1.0)
    assert {"twin_1", "twin_2", "driver"} <= set(found.names)
    assert sum(name.startswith("other") for name in found.names) <= 1
    assert found.decoys == 0
    assert (found.importance[:3] > 0.05).all()
    assert np.abs(found.importance[5:]).max() < 0.02
    assert found.clusters == len(names) - 1 + 2 * selection.DECOYS
    assert chosen(1.0)[0].names == found.names


def test_without_a_signal_candidates_still_make_a_model_and_no_decoy_is_one() -> None:
    found, names = chosen(0.0)
    assert 1 <= len(found.names) <= 4
    assert set(found.names) <= set(names)


def test_columns_of_one_rank_order_are_a_cluster_whatever_their_sign() -> None:
    x = np.random.default_rng(4).normal(size=(500, 2)).astype(np.float32)
    groups = selection.clusters(np.column_stack((x[:, 0], x[:, 1], -np.exp(x[:, 0]))))
    assert sorted(group.tolist() for group in groups) == [[0, 2], [1]]


def test_the_final_features_are_those_of_most_folds_then_the_most_important() -> None:
    def fold(names: str, decoys: int, *importance: float) -> selection.FoldSelection:
        return selection.FoldSelection(
            names=tuple(names), importance=np.array(importance), clusters=3, decoys=decoys
        )

    folds = [fold("ab", 0, 0.1, 0.2, 0.0), fold("ac", 1, 0.1, 0.0, 0.1)]
    names, how = selection.consensus(folds, tuple("abc"), 2)
    assert names == ("a", "b")
    assert how.frequency == {"a": 1.0, "b": 0.5}
    assert (how.folds, how.decoys_selected, how.candidates) == (2, 1, 3)
    assert selection.consensus(folds, tuple("abc"), 9)[0] == ("a", "b", "c")


def test_permuting_a_column_that_no_tree_uses_costs_nothing() -> None:
    found, _ = chosen(1.0)
    assert found.importance[3] == found.importance[4] == pytest.approx(0.0)
