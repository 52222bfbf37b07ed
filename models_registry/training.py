"""From a training set to a judged model: walk-forward, verdict, final boosters.

Walk-forward judges the procedure: in every fold boosters train, calibrate and then face a test
block, second by second, through the predictor and the target rule that run live. The final boosters
are then fitted by the same procedure on all rows; what calibrates them are the out-of-sample
outputs of all test blocks, made by boosters that had not seen them. The figures that are reported
are those of the folds, each with its own calibration, and never those of the final calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.lake import DAY_NS, Lake, utc_date
from market.settings import FEE_ROWS_BPS, Settings
from models_registry import dataset, decay, ensemble, gate
from models_registry import trades as trading
from models_registry.dataset import Features, Rows
from models_registry.ensemble import Fitted, Parameters
from models_registry.manifest import (
    FORMAT,
    MANIFEST_FILE,
    Bundle,
    DecayReference,
    Fees,
    Gate,
    Manifest,
    Predictor,
    Recipe,
    Window,
    encode,
    list_hash,
    parse_manifest,
)
from models_registry.trades import FeeResult, Trades
from models_registry.validation import (
    Coefficient,
    Fold,
    Mask,
    information_coefficient,
    label_reach_ns,
    lower_bound,
    normal_scores,
    walk_forward,
)

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Progress = Callable[[str], None]

#: Streams of randomness, apart from each other.
_IC_STREAM: Final = 1
_NET_STREAM: Final = 2
_DECAY_STREAM: Final = 3


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One test block: its rows, what was known at each horizon, and the trades' net by fee row."""

    number: int
    first_date: str
    last_date: str
    train_rows: int
    calibration_rows: int
    ic: Coefficient
    ic_by_horizon: tuple[Coefficient, ...]
    open_regimes: int
    trades: Mapping[str, int]
    net_total_bps: Mapping[str, float]


class OutOfSample(msgspec.Struct, frozen=True, kw_only=True):
    """Every second of every test block as its own fold saw it; n rows in time order.

    ``rank_product`` (n,) is the product of the normal scores of prediction and realised return
    within a block and symbol: its mean is the rank IC. ``champion_bps`` (n,) is what the champion
    expected, NaN where it was trained. ``rows`` keep no features.
    """

    rows: Rows
    volatility: Float
    scale_bps: Float
    output: Float
    by_horizon: Float
    raw_bps: Float
    expected_bps: Float
    champion_bps: Float
    rank_product: Float

    def where(self, mask: Mask) -> OutOfSample:
        kept = {name: getattr(self, name) for name in self.__struct_fields__}
        rows = kept.pop("rows").where(mask)
        return OutOfSample(rows=rows, **{name: values[mask] for name, values in kept.items()})


class Versus(msgspec.Struct, frozen=True, kw_only=True):
    """Candidate and champion over the same test seconds, all after the champion's training.

    Without such seconds the results are empty and ``note`` says why.
    """

    champion: str
    note: str = ""
    hours: float = 0.0
    candidate: tuple[FeeResult, ...] = ()
    incumbent: tuple[FeeResult, ...] = ()


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of walk-forward; ``pooled`` is None when no block could be judged."""

    symbols: tuple[str, ...]
    horizons_s: tuple[int, ...]
    primary_s: int
    dates: tuple[str, ...]
    train_rows: int
    parameters: Parameters
    tuned_ic: float
    blocks: tuple[Block, ...]
    skipped: tuple[str, ...]
    pooled: OutOfSample | None
    ic: Coefficient
    ic_lower: float
    ic_by_horizon: tuple[Coefficient, ...]
    results: tuple[FeeResult, ...]
    trades: Mapping[str, Trades]
    versus: Versus | None
    gate: Gate


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A finished version: the files of its bundle by name, the manifest among them.

    ``importance`` is the share of each feature in the boosters' gain, largest first.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    importance: tuple[tuple[str, float], ...]


class _FoldModel(msgspec.Struct, frozen=True, kw_only=True):
    recipe: Recipe
    members: tuple[Fitted, ...]
    train_rows: int
    calibration_rows: int


def load_rows(lake: Lake, settings: Settings, features: Features) -> Rows:
    """The rows that train: every n-th second of all dates."""
    if ensemble.SCALE_FEATURE not in features.names:
        raise dataset.DatasetError(
            f"the features lack {ensemble.SCALE_FEATURE}, which scales the labels; define it"
        )
    symbols = settings.market.symbols
    return dataset.load(
        lake,
        symbols,
        dataset.dates(lake, symbols),
        features.names,
        settings.model.horizons_s,
        settings.model.train_stride_s,
    )


def evaluate(
    lake: Lake,
    settings: Settings,
    features: Features,
    rows: Rows,
    *,
    champion: tuple[str, Bundle] | None = None,
    progress: Progress = lambda line: None,
) -> Study:
    """Walk-forward over ``rows`` (of `load_rows`), with every second of the test blocks read anew.

    ``champion`` (version, bundle) is compared with where it can be: same features, later seconds.
    Ends with a verdict whatever there is, nothing at all included.
    """
    model = settings.model
    volatility = _volatility(rows, features)
    days = np.unique((rows.t_ns - 1) // DAY_NS)
    dates = tuple(utc_date(int(day) * DAY_NS) for day in days)
    progress(f"{len(rows)} training rows on {len(dates)} dates")
    folds = walk_forward(
        rows.t_ns,
        min_train_days=model.min_train_days,
        max_test_blocks=model.max_test_blocks,
        calibration_share=model.calibration_share,
        max_horizon_s=max(model.horizons_s),
    )
    parameters, tuned_ic = Parameters(), math.nan
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
    blocks: list[Block] = []
    parts: list[OutOfSample] = []
    for number, fold in enumerate(folds):
        fitted = _fit_fold(rows, volatility, fold, features, settings, parameters)
        if isinstance(fitted, str):
            skipped.append(f"block from {fold.test_dates[0]}: {fitted}")
            continue
        part = _face(lake, settings, features, fold, fitted, rival)
        block = _block(number, fold, part, fitted, settings)
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
    return _judge(settings, len(rows), dates, parameters, tuned_ic, blocks, parts, skipped, note)


def finish(
    study: Study,
    settings: Settings,
    features: Features,
    rows: Rows,
    *,
    source: str,
    data_fingerprint: str,
    git_sha: str,
) -> Model:
    """Fit the final boosters on all rows and write down the version.

    ValueError when the study judged no block: there is nothing to calibrate on.
    """
    if study.pooled is None:
        raise ValueError("a study without test blocks makes no model")
    model = settings.model
    volatility = _volatility(rows, features)
    scale = ensemble.scale_of(volatility)
    members = ensemble.fit(
        rows,
        volatility,
        scale,
        features.names,
        model.horizons_s,
        study.parameters,
        stride_s=model.train_stride_s,
        seed=model.seed,
        threads=model.threads,
    )
    seconds = study.pooled.rows.t_ns // dataset.SECOND_NS
    seen = study.pooled.where(seconds % model.train_stride_s == 0)
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
        source="synthetic" if source == "synthetic" else "recorded",
        book_topic=f"orderbook.{settings.market.book_depth}",
        symbols=settings.market.symbols,
        feature_hash=features.hash,
        feature_list_hash=list_hash(features.names),
        recipe=recipe,
        fees=Fees(row=model.fee_row, taker_bps=taker_bps, maker_bps=maker_bps),
        window=Window(
            first_date=study.dates[0],
            last_date=study.dates[-1],
            first_ns=int(rows.t_ns[0]),
            last_ns=int(rows.t_ns[-1]),
            rows=len(rows),
            stride_s=model.train_stride_s,
        ),
        data_fingerprint=data_fingerprint,
        git_sha=git_sha,
        seed=model.seed,
        parameters=msgspec.to_builtins(study.parameters),
        gate=study.gate,
        decay=_decay_reference(study.pooled, settings),
        metrics=metrics(study),
    )
    files = {member.file: member.text.encode() for member in members}
    files[MANIFEST_FILE] = encode(manifest)
    return Model(
        manifest=parse_manifest(files[MANIFEST_FILE], MANIFEST_FILE),
        files=files,
        importance=_importance(members, features),
    )


def metrics(study: Study) -> dict[str, float]:
    """The figures a reviewer searches by; only those that exist."""
    found: dict[str, float] = {
        "blocks": float(len(study.blocks)),
        "train_rows": float(study.train_rows),
        "ic_tuned": study.tuned_ic,
    }
    if study.blocks:
        ranks = [block.ic.rank for block in study.blocks]
        found |= {
            "ic_mean": study.ic.rank,
            "ic_pearson": study.ic.pearson,
            "ic_lower": study.ic_lower,
            "ic_worst_fold": min(ranks),
            "ic_best_fold": max(ranks),
            "n_eff": study.ic.n_eff,
        }
        for horizon, ic in zip(study.horizons_s, study.ic_by_horizon, strict=True):
            found[f"ic_{horizon}s"] = ic.rank
    for result in study.results:
        for field in ("net_bps", "net_lower_bps", "gross_bps", "trades", "false_net", "coverage"):
            found[f"{result.row}.{field}"] = float(getattr(result, field))
        found[f"{result.row}.break_even_bps"] = result.break_even_bps
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _volatility(rows: Rows, features: Features) -> Float:
    return np.ascontiguousarray(rows.features[:, features.names.index(ensemble.SCALE_FEATURE)])


def _rival(
    champion: tuple[str, Bundle] | None, features: Features
) -> tuple[Bundle | None, Versus | None]:
    if champion is None:
        return None, None
    version, bundle = champion
    if bundle.manifest.feature_hash != features.hash or bundle.manifest.features != features.names:
        return None, Versus(champion=version, note="it takes other features")
    return bundle, Versus(champion=version)


def _fit_fold(
    rows: Rows,
    volatility: Float,
    fold: Fold,
    features: Features,
    settings: Settings,
    parameters: Parameters,
) -> _FoldModel | str:
    """The fold's model, or why there is too little to make one."""
    model = settings.model
    inside, held = fold.train.mask(rows.t_ns), fold.calibration.mask(rows.t_ns)
    train, calibration = rows.where(inside), rows.where(held)
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
        volatility[held],
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
    lake: Lake,
    settings: Settings,
    features: Features,
    fold: Fold,
    fitted: _FoldModel,
    rival: Bundle | None,
) -> OutOfSample:
    """Every second of the test block through the fold's predictor, one date at a time."""
    predictor: Predictor = ensemble.predictor(fitted.recipe, fitted.members)
    threads = settings.model.threads
    parts = []
    for date in fold.test_dates:
        rows = dataset.load(
            lake, settings.market.symbols, [date], features.names, settings.model.horizons_s
        )
        made = predictor.predict_many(rows.features, threads)
        champion_bps = np.full(len(rows), np.nan)
        if rival is not None:
            trained = rival.manifest.window.last_ns + label_reach_ns(max(rival.horizons_s))
            later = rows.t_ns > trained
            if later.any():
                seen = rival.predict_many(rows.features[later], threads)
                champion_bps[later] = seen.expected_bps
        parts.append(
            OutOfSample(
                rows=msgspec.structs.replace(rows, features=np.empty((len(rows), 0))),
                volatility=_volatility(rows, features),
                scale_bps=made.scale_bps,
                output=made.output,
                by_horizon=made.by_horizon,
                raw_bps=made.raw_bps,
                expected_bps=made.expected_bps,
                champion_bps=champion_bps,
                rank_product=np.empty(len(rows)),
            )
        )
    block = _join(parts)
    primary = block.rows.labels_bps[:, settings.model.horizons_s.index(settings.model.primary_s)]
    product = _rank_product(block.rows.symbol, block.raw_bps, primary)
    return msgspec.structs.replace(block, rank_product=product)


def _rank_product(symbol: npt.NDArray[np.int8], predicted: Float, realised: Float) -> Float:
    """Product of the normal scores within each symbol, over rows where both are known."""
    out = np.full(len(symbol), np.nan)
    known = ~(np.isnan(predicted) | np.isnan(realised))
    for index in np.unique(symbol):
        own = np.flatnonzero(known & (symbol == index))
        out[own] = normal_scores(predicted[own]) * normal_scores(realised[own])
    return out


def _join(parts: Sequence[OutOfSample]) -> OutOfSample:
    if len(parts) == 1:
        return parts[0]
    values = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in OutOfSample.__struct_fields__
        if name != "rows"
    }
    rows = {
        name: np.concatenate([getattr(part.rows, name) for part in parts])
        for name in Rows.__struct_fields__
    }
    return OutOfSample(rows=Rows(**rows), **values)


def _coefficient(part: OutOfSample, primary: int, horizon_s: int) -> Coefficient:
    """The pooled IC at the primary horizon: ranks within block and symbol, Pearson over all."""
    label = part.rows.labels_bps[:, primary]
    found = information_coefficient(part.raw_bps, label, part.rows.t_ns, horizon_s)
    known = ~np.isnan(part.rank_product)
    rank = float(part.rank_product[known].mean()) if known.any() else 0.0
    return msgspec.structs.replace(found, rank=rank)


def _by_horizon(part: OutOfSample, horizons_s: Sequence[int]) -> tuple[Coefficient, ...]:
    return tuple(
        information_coefficient(
            part.by_horizon[:, column], part.rows.labels_bps[:, column], part.rows.t_ns, horizon
        )
        for column, horizon in enumerate(horizons_s)
    )


def _trade(part: OutOfSample, expected_bps: Float, row: str, horizon_s: int) -> Trades:
    return trading.simulate(
        t_ns=part.rows.t_ns,
        symbol=part.rows.symbol,
        mid=part.rows.mid,
        spread_bps=part.rows.spread_bps,
        expected_bps=expected_bps,
        fee_bps=FEE_ROWS_BPS[row][0],
        horizon_s=horizon_s,
    )


def _block(
    number: int, fold: Fold, part: OutOfSample, fitted: _FoldModel, settings: Settings
) -> Block:
    model = settings.model
    made = {row: _trade(part, part.expected_bps, row, model.primary_s) for row in FEE_ROWS_BPS}
    return Block(
        number=number,
        first_date=fold.test_dates[0],
        last_date=fold.test_dates[-1],
        train_rows=fitted.train_rows,
        calibration_rows=fitted.calibration_rows,
        ic=_coefficient(part, model.horizons_s.index(model.primary_s), model.primary_s),
        ic_by_horizon=_by_horizon(part, model.horizons_s),
        open_regimes=sum(r.threshold_bps is not None for r in fitted.recipe.regimes),
        trades={row: len(found) for row, found in made.items()},
        net_total_bps={
            row: float(found.net_bps(FEE_ROWS_BPS[row][0]).sum()) for row, found in made.items()
        },
    )


def _results(
    part: OutOfSample, expected_bps: Float, settings: Settings
) -> tuple[tuple[FeeResult, ...], dict[str, Trades]]:
    model = settings.model
    made = {row: _trade(part, expected_bps, row, model.primary_s) for row in FEE_ROWS_BPS}
    return tuple(
        trading.judge(
            found,
            row,
            part.rows.t_ns,
            block_s=model.bootstrap_block_s,
            samples=model.bootstrap_samples,
            seed=model.seed + _NET_STREAM,
        )
        for row, found in made.items()
    ), made


def _judge(
    settings: Settings,
    train_rows: int,
    dates: tuple[str, ...],
    parameters: Parameters,
    tuned_ic: float,
    blocks: Sequence[Block],
    parts: Sequence[OutOfSample],
    skipped: Sequence[str],
    versus: Versus | None,
) -> Study:
    model = settings.model
    pooled = _join(parts) if parts else None
    ic = Coefficient(rank=0.0, pearson=0.0, rows=0, n_eff=0.0)
    ic_lower = -math.inf
    by_horizon: tuple[Coefficient, ...] = ()
    results: tuple[FeeResult, ...] = ()
    made: dict[str, Trades] = {}
    if pooled is not None:
        ic = _coefficient(pooled, model.horizons_s.index(model.primary_s), model.primary_s)
        ic_lower = lower_bound(
            pooled.rows.t_ns,
            pooled.rank_product,
            (~np.isnan(pooled.rank_product)).astype(np.float64),
            block_s=model.bootstrap_block_s,
            samples=model.bootstrap_samples,
            seed=model.seed + _IC_STREAM,
        )
        by_horizon = _by_horizon(pooled, model.horizons_s)
        results, made = _results(pooled, pooled.expected_bps, settings)
        if versus is not None and not versus.note:
            versus = _compare(versus, pooled, settings)
    stated = next((r for r in results if r.row == model.fee_row), None)
    return Study(
        symbols=settings.market.symbols,
        horizons_s=model.horizons_s,
        primary_s=model.primary_s,
        dates=dates,
        train_rows=train_rows,
        parameters=parameters,
        tuned_ic=tuned_ic,
        blocks=tuple(blocks),
        skipped=tuple(skipped),
        pooled=pooled,
        ic=ic,
        ic_lower=ic_lower,
        ic_by_horizon=by_horizon,
        results=results,
        trades=made,
        versus=versus,
        gate=gate.judge(
            blocks=len(blocks),
            min_blocks=model.min_test_blocks,
            ic=ic.rank,
            ic_lower=ic_lower,
            result=stated,
            min_trades=model.min_trades,
            shortfall=tuple(skipped),
        ),
    )


def _compare(versus: Versus, pooled: OutOfSample, settings: Settings) -> Versus:
    both = pooled.where(~np.isnan(pooled.champion_bps))
    if not len(both.rows):
        return msgspec.structs.replace(versus, note="it was trained on all of these test blocks")
    return msgspec.structs.replace(
        versus,
        hours=len(np.unique(both.rows.t_ns)) / 3600.0,
        candidate=_results(both, both.expected_bps, settings)[0],
        incumbent=_results(both, both.champion_bps, settings)[0],
    )


def _decay_reference(pooled: OutOfSample, settings: Settings) -> DecayReference:
    model = settings.model
    primary = model.horizons_s.index(model.primary_s)
    return decay.make_reference(
        pooled.rows.t_ns,
        pooled.raw_bps / pooled.scale_bps,
        pooled.rows.labels_bps[:, primary] / pooled.scale_bps,
        spacing_s=model.primary_s,
        arl0_days=model.decay_arl0_days,
        block_s=model.bootstrap_block_s,
        seed=model.seed + _DECAY_STREAM,
    )


def _importance(members: Sequence[Fitted], features: Features) -> tuple[tuple[str, float], ...]:
    total = np.zeros(len(features.names))
    for member in members:
        gain = np.asarray(ensemble.read_booster(member.text).feature_importance("gain"))
        total += gain / max(gain.sum(), 1e-300)
    order = np.argsort(-total, kind="stable")
    return tuple((features.names[i], float(total[i] / len(members))) for i in order)
