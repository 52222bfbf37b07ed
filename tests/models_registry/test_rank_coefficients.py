"""One rule for all ICs of a card: ranks within block and symbol, rows weigh alike."""

from __future__ import annotations

import numpy as np
import pytest

from models_registry.evaluation import Evaluation, rank_product
from models_registry.training import TrainedModel
from models_registry.validation import distinct


def test_the_ic_by_horizon_is_ranked_within_block_and_symbol(
    trained: tuple[Evaluation, TrainedModel],
) -> None:
    evaluation, _ = trained
    part = evaluation.pooled
    assert part is not None
    day = (part.rows.t_ns - 1) // (86_400 * 10**9)
    for column in range(len(evaluation.horizons_s)):
        products = []
        for number, one in enumerate(distinct(day)):
            own = day == one
            products.append(
                rank_product(
                    part.rows.symbol[own],
                    part.output[own, column],
                    part.rows.labels_bps[own, column],
                )
            )
            block = evaluation.blocks[number].ic_by_horizon[column]
            assert block.rank == pytest.approx(np.nanmean(products[-1]))
        pooled = evaluation.ic_by_horizon[column]
        assert pooled.rank == pytest.approx(np.nanmean(np.concatenate(products)))
