"""The evaluation of a walk-forward: test blocks, pooled out-of-sample figures, champion comparison.

Ranks are taken within a block and symbol, so that neither a volatile day nor the more volatile symbol
dominates the IC; bounds are by stationary bootstrap over the time of all test blocks together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.settings import FEE_ROWS_BPS, Settings
from models_registry import gate, trades
from models_registry.dataset import Rows
from models_registry.ensemble import BoosterParameters
from models_registry.manifest import Gate, Recipe
from models_registry.trades import FeeResult, Trades
from models_registry.validation import (
    Coefficient,
    Fold,
    Mask,
    distinct,
    information_coefficient,
    lower_bound,
    normal_scores,
)

Float = npt.NDArray[np.float64]

#: Offsets of the seed: independent random streams.
_IC_STREAM: Final = 1
_NET_STREAM: Final = 2


class BlockResult(msgspec.Struct, frozen=True, kw_only=True):
    """One test block: its dates, row counts, IC by horizon, and trades and net result by fee row."""

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
    """Every second of every test block, predicted by its own fold; n rows in time order.

    ``rank_product`` (n,) is the product of the normal scores of prediction and realised return
    within a block and symbol: its mean is the rank IC. ``champion_bps`` (n,) is the champion's
    prediction, NaN where it was trained. ``rows`` have no features.
    """

    rows: Rows
    volatility: Float
    scale_bps: Float
    output: Float
    raw_bps: Float
    expected_bps: Float
    champion_bps: Float
    rank_product: Float

    def where(self, mask: Mask) -> OutOfSample:
        """The rows where ``mask`` (n,) is true."""
        kept = {name: getattr(self, name) for name in self.__struct_fields__}
        rows = kept.pop("rows").where(mask)
        return OutOfSample(rows=rows, **{name: values[mask] for name, values in kept.items()})


class ChampionComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Candidate against champion over the same test seconds, all after the champion's training.

    Without such seconds the results are empty and ``note`` gives the reason.
    """

    champion: str
    note: str = ""
    hours: float = 0.0
    candidate: tuple[FeeResult, ...] = ()
    incumbent: tuple[FeeResult, ...] = ()


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a walk-forward; ``pooled`` is None when no block could be evaluated."""

    symbols: tuple[str, ...]
    horizons_s: tuple[int, ...]
    primary_s: int
    dates: tuple[str, ...]
    train_rows: int
    parameters: BoosterParameters
    tuned_ic: float
    blocks: tuple[BlockResult, ...]
    skipped: tuple[str, ...]
    pooled: OutOfSample | None
    ic: Coefficient
    ic_lower: float
    ic_by_horizon: tuple[Coefficient, ...]
    results: tuple[FeeResult, ...]
    round_trips: Mapping[str, Trades]
    versus: ChampionComparison | None
    gate: Gate


def metrics(evaluation: Evaluation) -> dict[str, float]:
    """Metrics of the MLflow run; only the finite ones."""
    found: dict[str, float] = {
        "blocks": float(len(evaluation.blocks)),
        "train_rows": float(evaluation.train_rows),
        "ic_tuned": evaluation.tuned_ic,
    }
    if evaluation.blocks:
        ranks = [block.ic.rank for block in evaluation.blocks]
        found |= {
            "ic_mean": evaluation.ic.rank,
            "ic_pearson": evaluation.ic.pearson,
            "ic_lower": evaluation.ic_lower,
            "ic_worst_fold": min(ranks),
            "ic_best_fold": max(ranks),
            "n_eff": evaluation.ic.n_eff,
        }
        for horizon, ic in zip(evaluation.horizons_s, evaluation.ic_by_horizon, strict=True):
            found[f"ic_{horizon}s"] = ic.rank
    for result in evaluation.results:
        for field in ("net_bps", "net_lower_bps", "gross_bps", "trades", "false_net", "coverage"):
            found[f"{result.row}.{field}"] = float(getattr(result, field))
        found[f"{result.row}.break_even_bps"] = result.break_even_bps
    return {name: value for name, value in found.items() if math.isfinite(value)}


def rank_product(symbol: npt.NDArray[np.int8], predicted: Float, realised: Float) -> Float:
    """Product of the normal scores within each symbol (n,), NaN where either value is NaN."""
    out = np.full(len(symbol), np.nan)
    known = ~(np.isnan(predicted) | np.isnan(realised))
    for index in np.unique(symbol):
        own = np.flatnonzero(known & (symbol == index))
        out[own] = normal_scores(predicted[own]) * normal_scores(realised[own])
    return out


def join(parts: Sequence[OutOfSample]) -> OutOfSample:
    """Concatenate the rows of several parts."""
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
    """Each booster's own IC before calibration, as a slope shrunk to zero would hide it."""
    return tuple(
        information_coefficient(
            part.output[:, column], part.rows.labels_bps[:, column], part.rows.t_ns, horizon
        )
        for column, horizon in enumerate(horizons_s)
    )


def _trade(part: OutOfSample, expected_bps: Float, row: str, horizon_s: int) -> Trades:
    return trades.simulate(
        t_ns=part.rows.t_ns,
        symbol=part.rows.symbol,
        mid=part.rows.mid,
        spread_bps=part.rows.spread_bps,
        expected_bps=expected_bps,
        fee_bps=FEE_ROWS_BPS[row][0],
        horizon_s=horizon_s,
    )


def make_block(
    number: int,
    fold: Fold,
    part: OutOfSample,
    recipe: Recipe,
    settings: Settings,
    *,
    train_rows: int,
    calibration_rows: int,
) -> BlockResult:
    """The figures of one test block under the recipe of its fold."""
    model = settings.model
    made = {row: _trade(part, part.expected_bps, row, model.primary_s) for row in FEE_ROWS_BPS}
    return BlockResult(
        number=number,
        first_date=fold.test_dates[0],
        last_date=fold.test_dates[-1],
        train_rows=train_rows,
        calibration_rows=calibration_rows,
        ic=_coefficient(part, model.horizons_s.index(model.primary_s), model.primary_s),
        ic_by_horizon=_by_horizon(part, model.horizons_s),
        open_regimes=sum(r.threshold_bps is not None for r in recipe.regimes),
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
        trades.fee_result(
            found,
            row,
            part.rows.t_ns,
            block_s=model.bootstrap_block_s,
            samples=model.bootstrap_samples,
            seed=model.seed + _NET_STREAM,
        )
        for row, found in made.items()
    ), made


def summarise_blocks(
    settings: Settings,
    train_rows: int,
    dates: tuple[str, ...],
    parameters: BoosterParameters,
    tuned_ic: float,
    blocks: Sequence[BlockResult],
    parts: Sequence[OutOfSample],
    skipped: Sequence[str],
    versus: ChampionComparison | None,
) -> Evaluation:
    """Pool the test blocks, bound IC and net result, compare with the champion, and decide the gate."""
    model = settings.model
    pooled = join(parts) if parts else None
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
    return Evaluation(
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
        round_trips=made,
        versus=versus,
        gate=gate.decide(
            blocks=len(blocks),
            min_blocks=model.min_test_blocks,
            ic=ic.rank,
            ic_lower=ic_lower,
            result=stated,
            min_trades=model.min_trades,
            shortfall=tuple(skipped),
        ),
    )


def _compare(
    versus: ChampionComparison, pooled: OutOfSample, settings: Settings
) -> ChampionComparison:
    both = pooled.where(~np.isnan(pooled.champion_bps))
    if not len(both.rows):
        return msgspec.structs.replace(versus, note="it was trained on all of these test blocks")
    return msgspec.structs.replace(
        versus,
        hours=len(distinct(both.rows.t_ns)) / 3600.0,
        candidate=_results(both, both.expected_bps, settings)[0],
        incumbent=_results(both, both.champion_bps, settings)[0],
    )
