"""What any model must beat, on the same folds: majority, persistence, queue imbalance, volatility, `legacy`.

A baseline is fitted on a fold's training rows and gives an expected return in bps. `legacy` stands for what
the owners had: one LightGBM of the library's default parameters on `LEGACY_FEATURES` features (those with
the largest gain in one such booster on all features of the same rows), the direction of one minute, and a
constant threshold; fitted on the first fold's training span, never again, and kept as a bundle that
`l2 backtest --model legacy` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.settings import FEE_ROWS_BPS, Settings
from models_registry import ensemble, trades
from models_registry.dataset import Features, Rows, Source
from models_registry.evaluation import BaselineResult, daily_net, rank_product
from models_registry.fold import folds_of
from models_registry.manifest import (
    LEGACY,
    MANIFEST_FILE,
    Bundle,
    BundleError,
    Gate,
    encode,
    legacy_folder,
    new_manifest,
    sha256,
)
from models_registry.recipe import Calibration, Member, Recipe, Regime, Scale, scale_bps
from models_registry.validation import Fold, label_reach_ns, lower_bound

Float = npt.NDArray[np.float64]
#: Features (n, f) of the columns that it needs -> expected return (n,) in bps.
Signal = Callable[[Float], Float]

LEGACY_FEATURES: Final = 84
#: Share of the calibration rows whose log-odds exceed the constant threshold.
_LEGACY_ACTS: Final = 0.1
_LEGACY_FILE: Final = "booster_direction.txt"


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """A baseline: the columns that it needs, and its fit on features (n, f) and labels (n,) in bps."""

    name: str
    needs: tuple[str, ...]
    fit: Callable[[Float, Float], Signal]


def _majority(_: Float, label: Float) -> Signal:
    mean = float(label.mean())
    return lambda features: np.full(len(features), mean)


def _persistence(features: Float, label: Float) -> Signal:
    size = abs(_slope(features[:, 0], label))
    return lambda given: size * np.nan_to_num(given[:, 0])


def _slope(x: Float, y: Float) -> float:
    x = np.nan_to_num(x)
    return float((x * y).sum()) / (float((x * x).sum()) or 1.0)


def _queue_imbalance(features: Float, label: Float) -> Signal:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(label > 0)) < 2:
        return _majority(features, label)
    fitted = LogisticRegression().fit(np.nan_to_num(features), label > 0)
    size = float(np.abs(label).mean())
    return lambda given: size * (2.0 * fitted.predict_proba(np.nan_to_num(given))[:, 1] - 1.0)


def _volatility(features: Float, label: Float) -> Signal:
    from sklearn.linear_model import LinearRegression

    fitted = LinearRegression().fit(np.nan_to_num(features), label)
    return lambda given: np.asarray(fitted.predict(np.nan_to_num(given)))


def baselines(primary_s: int) -> tuple[Baseline, ...]:
    """The baselines but `legacy`, for labels of this horizon."""
    return (
        Baseline(name="majority", needs=(), fit=_majority),
        Baseline(name="persistence", needs=(f"return_{primary_s}",), fit=_persistence),
        Baseline(name="queue imbalance", needs=("queue_now",), fit=_queue_imbalance),
        Baseline(
            name="volatility",
            needs=("realised_vol_60", "realised_vol_300", "realised_vol_900"),
            fit=_volatility,
        ),
    )


def judge(
    source: Source, settings: Settings, features: Features, git_sha: str | None
) -> tuple[BaselineResult, ...]:
    """Every baseline whose columns are there, and `legacy`, on the folds with enough labels; none without them.

    Without ``git_sha`` no `legacy` is made where there is none that ends before the first test block.
    BundleError when the lake's `legacy` is damaged or cannot be made.
    """
    model = settings.model
    rows = source.read(source.dates(), (ensemble.SCALE_FEATURE,), model.train_stride_s)
    label = rows.labels_bps[:, model.horizons_s.index(model.primary_s)]
    known = rows.t_ns[~np.isnan(label) & ~np.isnan(rows.features[:, 0])]
    folds = [
        fold
        for fold in folds_of(rows.t_ns, model)
        if fold.train.mask(known).sum() >= ensemble.MIN_TRAIN_ROWS
        and fold.calibration.mask(known).any()
    ]
    if not folds:
        return ()
    if git_sha is not None:
        legacy: Bundle | None = load_legacy(source, settings, features, folds[0], git_sha)
    else:
        legacy = held_legacy(settings, features)
        reach = label_reach_ns(model.primary_s)
        if legacy is not None and legacy.manifest.window.last_ns + reach > folds[0].test.after_ns:
            legacy = None
    return evaluate(source, settings, features, folds, legacy)


def evaluate(
    source: Source,
    settings: Settings,
    features: Features,
    folds: Sequence[Fold],
    legacy: Bundle | None,
) -> tuple[BaselineResult, ...]:
    """The baselines on the test blocks of ``folds``."""
    model = settings.model
    chosen = [b for b in baselines(model.primary_s) if set(b.needs) <= set(features.names)]
    its = legacy.manifest.features if legacy is not None else ()
    names = tuple(dict.fromkeys((*(n for b in chosen for n in b.needs), *its)))
    column = model.horizons_s.index(model.primary_s)
    training = source.read(source.dates(), names, model.train_stride_s)
    blocks: list[Rows] = []
    expected: dict[str, list[Float]] = {b.name: [] for b in chosen}
    if legacy is not None:
        expected[LEGACY] = []
    products: dict[str, list[Float]] = {name: [] for name in expected}
    for fold in folds:
        train = training.where(
            fold.train.mask(training.t_ns) & ~np.isnan(training.labels_bps[:, column])
        )
        test = source.read(fold.test_dates, names)
        made: dict[str, tuple[Float, Float]] = {}
        for baseline in chosen:
            at = [names.index(name) for name in baseline.needs]
            signal = baseline.fit(
                train.features[:, at].astype(np.float64), train.labels_bps[:, column]
            )(test.features[:, at].astype(np.float64))
            made[baseline.name] = signal, signal
        if legacy is not None:
            own = [names.index(name) for name in its]
            seen = legacy.predict_many(test.features[:, own], model.threads)
            made[LEGACY] = seen.raw_bps, seen.expected_bps
        for name, (raw, acted) in made.items():
            expected[name].append(acted)
            products[name].append(rank_product(test.symbol, raw, test.labels_bps[:, column]))
        blocks.append(msgspec.structs.replace(test, features=np.empty((len(test), 0))))
    return tuple(
        _result(name, blocks, np.concatenate(products[name]), np.concatenate(acted), settings)
        for name, acted in expected.items()
    )


def _result(
    name: str, blocks: Sequence[Rows], product: Float, expected: Float, settings: Settings
) -> BaselineResult:
    model = settings.model
    t_ns, symbol, mid, spread = (
        np.concatenate([getattr(rows, field) for rows in blocks])
        for field in ("t_ns", "symbol", "mid", "spread_bps")
    )
    resampling = {
        "block_s": model.bootstrap_block_s,
        "samples": model.bootstrap_samples,
        "seed": model.seed,
    }
    before, after = (
        trades.simulate(
            t_ns=t_ns,
            symbol=symbol,
            mid=mid,
            spread_bps=spread,
            expected_bps=expected,
            fee_bps=FEE_ROWS_BPS[model.fee_row][0],
            horizon_s=model.primary_s,
            after=late,
        )
        for late in (False, True)
    )
    known = ~np.isnan(product)
    return BaselineResult(
        name=name,
        ic=float(product[known].mean()) if known.any() else 0.0,
        ic_lower=lower_bound(t_ns, product, known.astype(np.float64), **resampling),
        result=trades.fee_result(before, after, model.fee_row, t_ns, **resampling),
        daily=daily_net(t_ns, before, FEE_ROWS_BPS[model.fee_row][0]),
    )


# -- legacy ----------------------------------------------------------------------------------------


def held_legacy(settings: Settings, features: Features) -> Bundle | None:
    """The lake's `legacy`, None where there is none of these definitions. BundleError when it is damaged."""
    folder = legacy_folder(settings)
    found = Bundle.load(folder) if (folder / MANIFEST_FILE).exists() else None
    return found if found is not None and found.manifest.feature_hash == features.hash else None


def load_legacy(
    source: Source, settings: Settings, features: Features, fold: Fold, git_sha: str
) -> Bundle:
    """The lake's frozen `legacy`, made of ``fold`` (the first) unless it is there.

    It is made again only when the running feature definitions are others. BundleError when it is damaged.
    """
    if (held := held_legacy(settings, features)) is not None:
        return held
    folder = legacy_folder(settings)
    files = make_legacy(source, settings, features, fold, git_sha)
    folder.mkdir(parents=True, exist_ok=True)
    # The manifest last: what it names is there.
    for name in sorted(files, key=lambda name: name == MANIFEST_FILE):
        scratch = folder / f".{name}"
        scratch.write_bytes(files[name])
        scratch.replace(folder / name)
    return Bundle.load(folder)


def make_legacy(
    source: Source, settings: Settings, features: Features, fold: Fold, git_sha: str
) -> Mapping[str, bytes]:
    """The files of the `legacy` bundle. BundleError with too few rows."""
    model = settings.model
    column = model.horizons_s.index(model.primary_s)
    days = [d for d in source.dates() if d < fold.test_dates[0]]
    rows = source.read(days, features.names, model.train_stride_s)
    rows = rows.where(~np.isnan(rows.labels_bps[:, column]))
    train = rows.where(fold.train.mask(rows.t_ns))
    held = rows.where(fold.calibration.mask(rows.t_ns))
    if len(train) < ensemble.MIN_TRAIN_ROWS or not len(held):
        raise BundleError(f"{len(train)} training rows are too few for the legacy baseline")
    up = train.labels_bps[:, column] > 0
    gain = np.asarray(_booster(train.features, up, model.seed).feature_importance("gain"))
    volatility = features.names.index(ensemble.SCALE_FEATURE)
    best = [i for i in np.argsort(-gain, kind="stable") if i != volatility]
    kept = sorted([volatility, *best[: LEGACY_FEATURES - 1]])
    names = tuple(features.names[i] for i in kept)
    booster = _booster(train.features[:, kept], up, model.seed)
    scale = ensemble.scale_of(train.features[:, volatility].astype(np.float64))
    odds = np.abs(booster.predict(held.features[:, kept], raw_score=True))
    unit = scale_bps(held.features[:, volatility].astype(np.float64), scale, model.primary_s)
    # A probability p of up is an expectation of (2p - 1)·E|y|, about log-odds/2·E|y|.
    size = 0.5 * float(np.nanmean(np.abs(held.labels_bps[:, column]) / unit))
    text = booster.model_to_string().encode()
    act = float(np.quantile(odds, 1.0 - _LEGACY_ACTS))
    recipe = _legacy_recipe(names, scale, model.primary_s, sha256(text), size, act)
    manifest = new_manifest(
        settings,
        features.hash,
        recipe,
        (int(train.t_ns[0]), int(held.t_ns[-1])),
        rows=len(train),
        git_sha=git_sha,
        gate=Gate(verdict="abstain", reasons=("a baseline is not promoted",)),
    )
    return {_LEGACY_FILE: text, MANIFEST_FILE: encode(manifest)}


def _legacy_recipe(
    names: tuple[str, ...], scale: Scale, primary_s: int, digest: str, size: float, odds: float
) -> Recipe:
    """One direction booster; acts where its log-odds exceed ``odds``. ``size`` is bps of scale per log-odds."""
    return Recipe(
        features=names,
        primary_s=primary_s,
        scale=scale,
        members=(
            Member(
                horizon_s=primary_s,
                booster=_LEGACY_FILE,
                sha256=digest,
                calibration=Calibration(fitted=size, error=None, n_eff=0.0, slope=size, table=()),
                to_primary=1.0,
                weight=1.0,
                ic=0.0,
                objective="direction",
            ),
        ),
        gain=size,
        regimes=(
            Regime(
                name="all",
                up_to_bps=None,
                threshold_bps=0.0,
                least_score=size * odds,
            ),
        ),
    )


def _booster(features: npt.NDArray[np.floating], up: npt.NDArray[np.bool_], seed: int):  # type: ignore[no-untyped-def]
    import lightgbm

    settings = {
        "objective": "binary",
        "deterministic": True,
        "force_col_wise": True,
        "seed": seed,
        "verbosity": -1,
    }
    return lightgbm.train(settings, lightgbm.Dataset(features, up.astype(np.float64)))
