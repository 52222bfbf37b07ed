"""Feature selection of one fold: clustered permutation importance, out of sample, against noise.

    candidates + noise ─► clusters by rank correlation ─► a booster on the head of the training span
    ─► importance of a cluster = fall of the rank IC on its purged tail when the cluster's columns are
       permuted together within their symbol ─► clusters above the bar

Permuted alone, one of two columns that say the same seems to say nothing; so clusters are permuted. The bar
is the largest of the importance of half of the noise columns and of minus the least importance of any
cluster: what says nothing falls as far as it rises. The other half of the noise is judged like any
candidate, so that how many of it are selected measures what the selection lets through.

The test and calibration blocks are never seen. Sources: López de Prado (2020), ch. 6 (clustered
importance); Kursa & Rudnicki (2010) (noise columns as the bar); Dai et al. (2023) (mirror statistics).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.features.precision import Float32
from models_registry import ensemble, statistics
from models_registry.dataset import Rows
from models_registry.manifest import Selection
from models_registry.validation import mean_known, normal_scores

Float = npt.NDArray[np.float64]

#: Noise columns that set the bar, and as many that are judged.
DECOYS: Final = 5
#: Columns whose average rank correlation is above this are one cluster.
SAME: Final = 0.5
#: Rows that rank correlations are computed of, and that importance is measured on, at most.
_CORRELATED_ROWS: Final = 4000
_SCORED_ROWS: Final = 8_000
_REPEATS: Final = 2

#: A quick booster: importance needs the order of features, not the last of the fit.
_PARAMETERS: Final = ensemble.BoosterParameters(
    trees=60, learning_rate=0.08, feature_share=0.3, leaf_labels=40
)


class FoldSelection(msgspec.Struct, frozen=True, kw_only=True):
    """What one fold selected of the candidates, in their order.

    ``importance`` (candidates,) is each one's cluster's; ``decoys`` how many judged noise columns were
    selected.
    """

    names: tuple[str, ...]
    importance: Float
    clusters: int
    decoys: int


def clusters(features: Float32) -> list[npt.NDArray[np.int64]]:
    """Columns of rows (n, f) by average-linkage clustering of 1 - |rank correlation|."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    step = -(-len(features) // _CORRELATED_ROWS)
    ranks = np.column_stack([normal_scores(column.astype(float)) for column in features[::step].T])
    np.nan_to_num(ranks, copy=False)
    spread = np.sqrt((ranks**2).sum(axis=0))
    ranks /= np.where(spread > 0, spread, 1.0)
    distance = np.clip(1.0 - np.abs(ranks.T @ ranks), 0.0, 1.0)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average")
    label = fcluster(tree, 1.0 - SAME, "distance")
    return [np.flatnonzero(label == index) for index in np.unique(label)]


def importance(
    text: str,
    features: Float32,
    realised: Float,
    symbol: npt.NDArray[np.int8],
    groups: Sequence[npt.NDArray[np.int64]],
    *,
    seed: int,
    threads: int,
) -> Float:
    """Fall of the rank IC (groups,) of a booster's prediction when a group's columns are permuted.

    Honest only on rows (n, f) that the booster was not trained on, purged.
    """
    booster = ensemble.read_booster(text)
    used = np.asarray(booster.feature_importance()) > 0
    goal = normal_scores(realised)

    def ic(matrix: Float32) -> float:
        predicted = np.asarray(booster.predict(matrix, num_threads=threads))
        return mean_known(normal_scores(predicted) * goal)

    base = ic(features)
    generator = np.random.Generator(np.random.Philox(key=seed))
    orders = []
    for _ in range(_REPEATS):
        order = np.arange(len(features))
        for index in np.unique(symbol):
            own = np.flatnonzero(symbol == index)
            order[own] = generator.permutation(own)
        orders.append(order)
    found = np.zeros(len(groups))
    scratch = features.copy()
    for number, group in enumerate(groups):
        if not used[group].any():
            continue
        falls = []
        for order in orders:
            scratch[:, group] = features[order][:, group]
            falls.append(base - ic(scratch))
        scratch[:, group] = features[:, group]
        found[number] = np.mean(falls)
    return found


def select(
    train: Rows,
    goal: Float,
    scored: Rows,
    realised: Float,
    names: Sequence[str],
    *,
    count: int,
    horizon_s: int,
    stride_s: int,
    seed: int,
    threads: int,
) -> FoldSelection:
    """At most ``count`` of the candidates ``names``, the columns of both sets of rows.

    ``goal`` and ``realised`` (n,) are their scaled labels at the primary horizon. Free of leakage if no
    label of ``train`` reaches into ``scored``, and neither into calibration or test. When no cluster
    is above the bar, the candidates of largest gain are taken.
    """
    step = -(-len(scored) // _SCORED_ROWS)
    scored, realised = scored.where(np.arange(len(scored)) % step == 0), realised[::step]
    generator = np.random.Generator(np.random.Philox(key=[seed, 1]))
    noise = generator.normal(size=(len(train) + len(scored), 2 * DECOYS)).astype(np.float32)
    features = np.hstack((train.features, noise[: len(train)]))
    columns = [*names, *(f"noise_column_{n}" for n in range(2 * DECOYS))]
    booster = ensemble.fit_booster(
        ensemble.bin_features(features, columns, threads),
        goal,
        _PARAMETERS,
        horizon_s=horizon_s,
        stride_s=stride_s,
        seed=seed,
        threads=threads,
    )
    groups = clusters(features)
    del features
    fall = importance(
        booster.text,
        np.hstack((scored.features, noise[len(train) :])),
        realised,
        scored.symbol,
        groups,
        seed=seed,
        threads=threads,
    )
    bars = set(range(len(names), len(names) + DECOYS))
    shadows = [fall[n] for n, group in enumerate(groups) if bars & set(group.tolist())]
    bar = max(*shadows, -float(fall.min()))
    order = np.argsort(-fall, kind="stable")
    above = [groups[n] for n in order if fall[n] > bar] or [np.arange(len(names))]
    gain = np.asarray(ensemble.read_booster(booster.text).feature_importance("gain"))
    # Of every cluster above the bar its best column, then the best of the others in them.
    within = [group[np.argsort(-gain[group], kind="stable")] for group in above]
    rest = np.concatenate([np.empty(0, np.int64), *(group[1:] for group in within)])
    rest = rest[gain[rest] > 0]
    ranked = [*(group[0] for group in within), *rest[np.argsort(-gain[rest], kind="stable")]]
    chosen = [int(n) for n in ranked if n not in bars][:count]
    of_cluster = np.zeros(len(columns))
    for value, group in zip(fall, groups, strict=True):
        of_cluster[group] = value
    return FoldSelection(
        names=tuple(name for n, name in enumerate(names) if n in set(chosen)),
        importance=of_cluster[: len(names)],
        clusters=len(groups),
        decoys=sum(n >= len(names) for n in chosen),
    )


def consensus(
    folds: Sequence[FoldSelection], names: Sequence[str], count: int
) -> tuple[tuple[str, ...], Selection]:
    """The final model's features, those that most folds selected (then by mean importance), and how."""
    times = Counter(name for fold in folds for name in fold.names)
    mean = dict(zip(names, np.mean([fold.importance for fold in folds], axis=0), strict=True))
    best = set(sorted(times, key=lambda name: (-times[name], -mean[name]))[:count])
    chosen = tuple(name for name in names if name in best)
    selected = np.array([[name in fold.names for name in names] for fold in folds])
    found = statistics.selection_stability(selected) if len(folds) > 1 else None
    return chosen, Selection(
        candidates=len(names),
        clusters=round(float(np.mean([fold.clusters for fold in folds]))),
        folds=len(folds),
        decoys=DECOYS,
        decoys_selected=sum(fold.decoys for fold in folds),
        frequency={name: times[name] / len(folds) for name in chosen},
        stability=found.value if found else None,
        stability_lower=found.low if found else None,
        stability_upper=found.high if found else None,
    )
