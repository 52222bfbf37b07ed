"""Training: walk-forward evaluation, verdict, final boosters.

Walk-forward evaluates the procedure: in every fold boosters are trained, calibrated and tested on a
later block, second by second, through the live predictor and target rule. The final boosters are fitted
by the same procedure on all rows and calibrated on the out-of-sample outputs of all test blocks. The
reported figures are those of the folds, each with its own calibration; never in-sample ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.settings import FEE_ROWS_BPS, Settings
from market.units import DAY_NS, SECOND_NS, utc_date
from models_registry import dataset, decay, ensemble
from models_registry.dataset import Features, Rows, Source
from models_registry.ensemble import BoosterParameters, FittedBooster
from models_registry.evaluation import (
    BlockResult,
    ChampionComparison,
    Context,
    Evaluation,
    OutOfSample,
    join,
    make_block,
    metrics,
    rank_product,
    summarise_blocks,
)
from models_registry.manifest import (
    FORMAT,
    MANIFEST_FILE,
    Bundle,
    DecayReference,
    Fees,
    Manifest,
    Predictor,
    Recipe,
    TrainingWindow,
    encode,
    list_hash,
    parse_manifest,
)
from models_registry.validation import Fold, distinct, label_reach_ns, walk_forward

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Progress = Callable[[str], None]

#: Stream of randomness, apart from those of the evaluation.
_DECAY_STREAM: Final = 3


class TrainedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A trained version: its manifest and the files of its bundle by name.

    ``importance`` is each feature's share of the boosters' gain, largest first.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    importance: tuple[tuple[str, float], ...]


class _FoldModel(msgspec.Struct, frozen=True, kw_only=True):
    recipe: Recipe
    members: tuple[FittedBooster, ...]
    train_rows: int
    calibration_rows: int


def evaluate(
    source: Source,
    settings: Settings,
    features: Features,
    *,
    champion: tuple[str, Bundle] | None = None,
    context: Context | None = None,
    progress: Progress = lambda line: None,
) -> Evaluation:
    """Walk-forward over the source's dates: training rows by stride, test blocks at every second.

    ``champion`` (version, bundle) is compared on seconds after its training if it has the same
    features. Gives a verdict even without any row. DatasetError without the scale feature.
    """
    model = settings.model
    rows = _training_rows(source, settings, features)
    volatility = _volatility(rows, features)
    days = distinct((rows.t_ns - 1) // DAY_NS)
    dates = tuple(utc_date(int(day) * DAY_NS) for day in days)
    progress(f"{len(rows)} training rows on {len(dates)} dates")
    folds = walk_forward(
        rows.t_ns,
        min_train_days=model.min_train_days,
        max_test_blocks=model.max_test_blocks,
        calibration_share=model.calibration_share,
        max_horizon_s=max(model.horizons_s),
    )
    parameters, tuned_ic = BoosterParameters(), math.nan
    skipped: list[str] = []
    if folds:
        parameters, tuned_ic = ensemble.tune(
            rows,
            volatility,
            folds[0].train,
            features.names,
            column=model.horizons_s.index(model.primary_s),
            horizon_s=model.primary_s,
            stride_s=model.train_stride_s,
            trials=model.trials,
            seed=model.seed,
            threads=model.threads,
        )
        progress(f"tuned within the first training span: rank IC {tuned_ic:.4f}")
    else:
        skipped.append(
            f"{len(dates)} dates with warm rows, of which training alone takes "
            f"{model.min_train_days}"
        )
    rival, note = _rival(champion, features)
    blocks: list[BlockResult] = []
    parts: list[OutOfSample] = []
    for number, fold in enumerate(folds):
        fitted = _fit_fold(rows, volatility, fold, features, settings, parameters)
        if isinstance(fitted, str):
            skipped.append(f"block from {fold.test_dates[0]}: {fitted}")
            continue
        part = _face(source, settings, features, fold, fitted, rival)
        block = make_block(
            number,
            fold,
            part,
            fitted.recipe,
            settings,
            train_rows=fitted.train_rows,
            calibration_rows=fitted.calibration_rows,
        )
        if block.ic.n_eff < ensemble.MIN_EFFECTIVE:
            skipped.append(
                f"block from {block.first_date}: {block.ic.n_eff:.0f} independent labels of at "
                f"least {ensemble.MIN_EFFECTIVE:.0f}"
            )
            continue
        parts.append(part)
        blocks.append(block)
        progress(
            f"block {number + 1} of {len(folds)} ({block.first_date}): rank IC {block.ic.rank:.4f}"
        )
    return summarise_blocks(
        settings, len(rows), dates, parameters, tuned_ic, blocks, parts, skipped, note, context
    )


def finish(
    evaluation: Evaluation,
    source: Source,
    settings: Settings,
    features: Features,
    *,
    data_fingerprint: str,
    git_sha: str,
) -> TrainedModel:
    """Fit the final boosters on all rows and make the bundle.

    ValueError for an evaluation without test blocks, which leaves nothing to calibrate on.
    """
    if evaluation.pooled is None:
        raise ValueError("an evaluation without test blocks makes no model")
    model = settings.model
    rows = _training_rows(source, settings, features)
    volatility = _volatility(rows, features)
    scale = ensemble.scale_of(volatility)
    members = ensemble.fit(
        rows,
        volatility,
        scale,
        features.names,
        model.horizons_s,
        evaluation.parameters,
        stride_s=model.train_stride_s,
        seed=model.seed,
        threads=model.threads,
    )
    seconds = evaluation.pooled.rows.t_ns // SECOND_NS
    seen = evaluation.pooled.where(seconds % model.train_stride_s == 0)
    recipe = ensemble.combine(
        members,
        seen.output,
        seen.rows,
        seen.volatility,
        scale,
        ensemble.regime_edges(volatility),
        features.names,
        model.primary_s,
    )
    taker_bps, maker_bps = FEE_ROWS_BPS[model.fee_row]
    manifest = Manifest(
        format=FORMAT,
        name=settings.model_name,
        source=settings.source,
        book_topic=f"orderbook.{settings.market.book_depth}",
        symbols=settings.market.symbols,
        feature_hash=features.hash,
        feature_list_hash=list_hash(features.names),
        recipe=recipe,
        fees=Fees(row=model.fee_row, taker_bps=taker_bps, maker_bps=maker_bps),
        window=TrainingWindow(
            first_date=evaluation.dates[0],
            last_date=evaluation.dates[-1],
            first_ns=int(rows.t_ns[0]),
            last_ns=int(rows.t_ns[-1]),
            rows=len(rows),
            stride_s=model.train_stride_s,
        ),
        data_fingerprint=data_fingerprint,
        git_sha=git_sha,
        seed=model.seed,
        parameters=msgspec.to_builtins(evaluation.parameters),
        gate=evaluation.gate,
        decay=_decay_reference(evaluation.pooled, settings),
        metrics=metrics(evaluation),
    )
    files = {member.file: member.text.encode() for member in members}
    files[MANIFEST_FILE] = encode(manifest)
    return TrainedModel(
        manifest=parse_manifest(files[MANIFEST_FILE], MANIFEST_FILE),
        files=files,
        importance=_importance(members, features),
    )


def _training_rows(source: Source, settings: Settings, features: Features) -> Rows:
    if ensemble.SCALE_FEATURE not in features.names:
        raise dataset.DatasetError(
            f"the features lack {ensemble.SCALE_FEATURE}, which scales the labels; define it"
        )
    return source.read(source.dates(), features.names, settings.model.train_stride_s)


def _volatility(rows: Rows, features: Features) -> Float:
    column = features.names.index(ensemble.SCALE_FEATURE)
    return np.ascontiguousarray(rows.features[:, column], np.float64)


def _rival(
    champion: tuple[str, Bundle] | None, features: Features
) -> tuple[Bundle | None, ChampionComparison | None]:
    if champion is None:
        return None, None
    version, bundle = champion
    if bundle.manifest.feature_hash != features.hash or bundle.manifest.features != features.names:
        return None, ChampionComparison(champion=version, note="it takes other features")
    return bundle, ChampionComparison(champion=version)


def _fit_fold(
    rows: Rows,
    volatility: Float,
    fold: Fold,
    features: Features,
    settings: Settings,
    parameters: BoosterParameters,
) -> _FoldModel | str:
    """The fold's model, or the reason why it has too few rows."""
    model = settings.model
    inside, calibrating = fold.train.mask(rows.t_ns), fold.calibration.mask(rows.t_ns)
    train, calibration = rows.where(inside), rows.where(calibrating)
    scale = ensemble.scale_of(volatility[inside])
    for horizon, column in zip(model.horizons_s, train.labels_bps.T, strict=True):
        known = int(np.sum(~np.isnan(column)))
        if known < ensemble.MIN_TRAIN_ROWS:
            return f"{known} training rows at {horizon} s of at least {ensemble.MIN_TRAIN_ROWS}"
    members = ensemble.fit(
        train,
        volatility[inside],
        scale,
        features.names,
        model.horizons_s,
        parameters,
        stride_s=model.train_stride_s,
        seed=model.seed,
        threads=model.threads,
    )
    recipe = ensemble.combine(
        members,
        ensemble.outputs(members, calibration.features, model.threads),
        calibration,
        volatility[calibrating],
        scale,
        ensemble.regime_edges(volatility[inside]),
        features.names,
        model.primary_s,
    )
    return _FoldModel(
        recipe=recipe,
        members=members,
        train_rows=len(train),
        calibration_rows=len(calibration),
    )


def _face(
    source: Source,
    settings: Settings,
    features: Features,
    fold: Fold,
    fitted: _FoldModel,
    rival: Bundle | None,
) -> OutOfSample:
    """Predict every second of the test block with the fold's model, one date at a time."""
    predictor: Predictor = ensemble.predictor(fitted.recipe, fitted.members)
    threads = settings.model.threads
    parts = []
    for date in fold.test_dates:
        rows = source.read([date], features.names)
        made = predictor.predict_many(rows.features, threads)
        champion_bps, champion_raw = np.full((2, len(rows)), np.nan)
        if rival is not None:
            trained = rival.manifest.window.last_ns + label_reach_ns(max(rival.horizons_s))
            later = rows.t_ns > trained
            if later.any():
                seen = rival.predict_many(rows.features[later], threads)
                champion_bps[later], champion_raw[later] = seen.expected_bps, seen.raw_bps
        parts.append(
            OutOfSample(
                rows=msgspec.structs.replace(rows, features=np.empty((len(rows), 0))),
                volatility=_volatility(rows, features),
                scale_bps=made.scale_bps,
                output=made.output,
                raw_bps=made.raw_bps,
                expected_bps=made.expected_bps,
                champion_bps=champion_bps,
                champion_gain=champion_raw,
                rank_product=np.empty(len(rows)),
            )
        )
    block = join(parts)
    primary = block.rows.labels_bps[:, settings.model.horizons_s.index(settings.model.primary_s)]
    symbol, rival_raw = block.rows.symbol, block.champion_gain
    product = rank_product(symbol, block.raw_bps, primary)
    same = np.where(np.isnan(rival_raw), np.nan, block.raw_bps)
    gain = rank_product(symbol, same, primary) - rank_product(symbol, rival_raw, primary)
    return msgspec.structs.replace(block, rank_product=product, champion_gain=gain)


def _decay_reference(pooled: OutOfSample, settings: Settings) -> DecayReference:
    model = settings.model
    primary = model.horizons_s.index(model.primary_s)
    return decay.make_reference(
        pooled.rows.t_ns,
        pooled.rows.symbol,
        pooled.raw_bps / pooled.scale_bps,
        pooled.rows.labels_bps[:, primary] / pooled.scale_bps,
        spacing_s=model.primary_s,
        arl0_days=model.decay_arl0_days,
        block_s=model.bootstrap_block_s,
        seed=model.seed + _DECAY_STREAM,
    )


def _importance(
    members: Sequence[FittedBooster], features: Features
) -> tuple[tuple[str, float], ...]:
    total = np.zeros(len(features.names))
    for member in members:
        gain = np.asarray(ensemble.read_booster(member.text).feature_importance("gain"))
        total += gain / max(gain.sum(), 1e-300)
    order = np.argsort(-total, kind="stable")
    return tuple((features.names[i], float(total[i] / len(members))) for i in order)
