"""Training: walk-forward evaluation, verdict, final boosters.

Walk-forward evaluates the procedure: in every fold boosters are trained, calibrated (`models_registry.fold`)
and tested on a later block, second by second, through the live predictor and target rule. The final boosters
are fitted by the same procedure on all rows and calibrated on the out-of-sample outputs of all test blocks. The
reported figures are those of the folds, each with its own calibration; never in-sample ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.settings import FEE_ROWS_BPS, Model, Settings
from market.units import DAY_NS, SECOND_NS, utc_date
from models_registry import decay, ensemble, selection
from models_registry.abstention import score
from models_registry.dataset import Features, Rows, Source
from models_registry.ensemble import FittedBooster, Outputs
from models_registry.evaluation import (
    BlockResult,
    ChampionComparison,
    Evaluation,
    OutOfSample,
    join,
    make_block,
    metrics,
    rank_product,
    summarise_blocks,
)
from models_registry.fold import (
    SEEN_ROWS,
    Fits,
    FoldModel,
    Trainer,
    fit_ahead,
    folds_of,
    thinned_s,
)
from models_registry.gate import Context
from models_registry.manifest import (
    MANIFEST_FILE,
    Bundle,
    DecayReference,
    Manifest,
    Selection,
    encode,
    new_manifest,
    parse_manifest,
)
from models_registry.recipe import Basis, Predictor
from models_registry.selection import FoldSelection
from models_registry.statistics import clopper_pearson_upper
from models_registry.tuning import Studies
from models_registry.validation import Fold, distinct, effective_count, label_reach_ns

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


def evaluate(
    source: Source,
    settings: Settings,
    features: Features,
    *,
    champion: tuple[str, Bundle] | None = None,
    context: Context | None = None,
    studies: Studies | None = None,
    progress: Progress = lambda line: None,
    fits: Fits = Trainer,
    folds: Sequence[Fold] | None = None,
) -> Evaluation:
    """Walk-forward over the source's dates: training rows by stride, test blocks at every second.

    ``champion`` (version, bundle) is compared on seconds after its training if it is of the same
    definitions; ``studies`` keep the trials of the search for hyper-parameters; ``fits`` fits a fold's
    model; ``folds`` are other ones. Gives a verdict even without any row. DatasetError without the scale feature.
    """
    model, context = settings.model, context or Context()
    trainer = fits(source, features, model, studies, progress)
    t_ns = trainer.rows.t_ns
    days = distinct((t_ns - 1) // DAY_NS)
    dates = tuple(utc_date(int(day) * DAY_NS) for day in days)
    progress(f"{len(t_ns)} training rows on {len(dates)} dates")
    folds = folds_of(t_ns, model) if folds is None else folds
    skipped: list[str] = []
    if not folds:
        skipped.append(
            f"{len(dates)} dates with warm rows, of which training alone takes "
            f"{model.min_train_days}"
        )
    if fits is Trainer:
        fit_ahead(trainer, (source, features, model, studies), folds, settings, progress)
    rival, note = _rival(champion, features)
    blocks: list[BlockResult] = []
    parts: list[OutOfSample] = []
    selections: list[FoldSelection] = []
    for number, fold in enumerate(folds):
        fitted = trainer.fit(fold)
        if isinstance(fitted, str):
            skipped.append(f"block from {fold.test_dates[0]}: {fitted}")
            continue
        if fitted.selection is not None:
            selections.append(fitted.selection)
        part = face(source, settings, fold, fitted, rival)
        strided = _strided(part, trainer.seen_stride_s)
        trainer.add(strided.rows, strided.volatility, strided.output)
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
    count, tuned = len(t_ns), trainer.tuned
    del trainer, t_ns  # half a gigabyte at every second of 30 days
    context = msgspec.structs.replace(context, trials=context.trials + tuned.looks)
    found = summarise_blocks(
        settings, count, dates, tuned.parameters, tuned.ic, blocks, parts, skipped, note, context,
        selections,
    )  # fmt: skip
    return msgspec.structs.replace(found, looks=1 + tuned.looks)


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
    names, how = _final_features(evaluation, features, model)
    rows = source.read(source.dates(), names, model.train_stride_s)
    volatility = _volatility(rows, names)
    scale = ensemble.scale_of(volatility)
    members = ensemble.fit(rows, volatility, scale, names, evaluation.parameters, model)
    span, count = (int(rows.t_ns[0]), int(rows.t_ns[-1])), len(rows)
    del rows
    part = _strided(evaluation.pooled, thinned_s(model.train_stride_s, count, SEEN_ROWS))
    seen = Outputs(rows=part.rows, volatility=part.volatility, output=part.output)
    weights = ensemble.stack(seen, scale, model)
    # Only a return booster has another use than its weight: the expectation at its horizon.
    kept = [n for n, m in enumerate(members) if m.objective == "return" or weights[n] > 0]
    members = tuple(members[n] for n in kept)
    recipe = ensemble.combine(
        members,
        weights[kept],
        msgspec.structs.replace(seen, output=seen.output[:, kept]),
        scale,
        ensemble.regime_edges(volatility),
        names,
        model,
    )
    manifest = new_manifest(
        settings,
        features.hash,
        recipe,
        span,
        rows=count,
        data_fingerprint=data_fingerprint,
        git_sha=git_sha,
        parameters={
            f"{horizon}s.{name}": value
            for horizon, found in evaluation.parameters.items()
            for name, value in msgspec.to_builtins(found).items()
        },
        gate=evaluation.gate,
        decay=_decay_reference(evaluation.pooled, settings),
        metrics=metrics(evaluation) | signal_rates(evaluation.pooled, model),
        selection=how,
    )
    files = {member.file: member.text.encode() for member in members}
    files[MANIFEST_FILE] = encode(manifest)
    return TrainedModel(
        manifest=parse_manifest(files[MANIFEST_FILE], MANIFEST_FILE),
        files=files,
        importance=_importance(members, names),
    )


def _final_features(
    evaluation: Evaluation, features: Features, model: Model
) -> tuple[tuple[str, ...], Selection | None]:
    if not evaluation.selections:
        return features.names, None
    chosen, how = selection.consensus(evaluation.selections, features.names, model.select)
    wanted = {*chosen, ensemble.SCALE_FEATURE}
    return tuple(name for name in features.names if name in wanted), how


def signal_rates(pooled: OutOfSample, model: Model) -> dict[str, float]:
    """Figures of the signals on out-of-sample seconds: those whose expectation exceeds the cost.

    Coverage is of all seconds; rates of false signals are gross and net at the model's fee row, each with
    its one-sided 95 % bound (Clopper–Pearson on independent labels).
    """
    cost = pooled.rows.spread_bps + 2 * FEE_ROWS_BPS[model.fee_row][0]
    acted = np.abs(pooled.expected_bps) > cost
    signed = np.where(acted, pooled.expected_bps, 0.0)
    made = score(pooled.rows, signed, pooled.volatility, model)
    n_eff = effective_count(made.t_ns, model.primary_s)
    found = {"signals.coverage": float(acted.mean()), "signals.n_eff": n_eff}
    earned: dict[Basis, Float] = {"gross": made.gross_bps, "net": made.net_bps}
    for basis, bps in earned.items():
        if len(bps):
            rate = float((bps <= 0).mean())
            found[f"signals.false_{basis}"] = rate
            found[f"signals.false_{basis}_upper"] = clopper_pearson_upper(rate * n_eff, n_eff)
    return found


def _volatility(rows: Rows, names: Sequence[str]) -> Float:
    column = names.index(ensemble.SCALE_FEATURE)
    return np.ascontiguousarray(rows.features[:, column], np.float64)


def _strided(part: OutOfSample, stride_s: int) -> OutOfSample:
    if stride_s == 1:
        return part
    return part.where(part.rows.t_ns // SECOND_NS % stride_s == 0)


def _rival(
    champion: tuple[str, Bundle] | None, features: Features
) -> tuple[Bundle | None, ChampionComparison | None]:
    if champion is None:
        return None, None
    version, bundle = champion
    if bundle.manifest.feature_hash != features.hash:
        return None, ChampionComparison(champion=version, note="it takes other features")
    return bundle, ChampionComparison(champion=version)


def face(
    source: Source,
    settings: Settings,
    fold: Fold,
    fitted: FoldModel,
    rival: Bundle | None = None,
) -> OutOfSample:
    """Predict every second of the test block with the fold's model, one date at a time."""
    predictor: Predictor = ensemble.predictor(fitted.recipe, fitted.members)
    threads = settings.model.threads
    own = fitted.recipe.features
    names = list(dict.fromkeys((*own, *(rival.manifest.features if rival else ()))))
    parts = []
    for date in fold.test_dates:
        rows = source.read([date], names)
        if not (inside := fold.test.mask(rows.t_ns)).all():
            rows = rows.where(inside)
        made = predictor.predict_many(rows.features[:, : len(own)], threads)
        champion_bps, champion_raw = np.full((2, len(rows)), np.nan)
        if rival is not None:
            trained = rival.manifest.window.last_ns + label_reach_ns(max(rival.horizons_s))
            later = rows.t_ns > trained
            if later.any():
                columns = [names.index(name) for name in rival.manifest.features]
                seen = rival.predict_many(rows.features[later][:, columns], threads)
                champion_bps[later], champion_raw[later] = seen.expected_bps, seen.raw_bps
        parts.append(
            OutOfSample(
                rows=msgspec.structs.replace(rows, features=np.empty((len(rows), 0))),
                volatility=_volatility(rows, names),
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
    members: Sequence[FittedBooster], names: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    total = np.zeros(len(names))
    for member in members:
        gain = np.asarray(ensemble.read_booster(member.text).feature_importance("gain"))
        total += gain / max(gain.sum(), 1e-300)
    order = np.argsort(-total, kind="stable")
    return tuple((names[i], float(total[i] / len(members))) for i in order)
