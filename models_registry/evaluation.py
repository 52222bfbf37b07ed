"""The evaluation of a walk-forward: test blocks, pooled out-of-sample figures, champion comparison.

Ranks are taken within a block and symbol, so that neither a volatile day nor the more volatile symbol
dominates the IC; bounds are by stationary bootstrap over the time of all test blocks together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from market.settings import FEE_ROWS_BPS, Model, Settings
from market.units import DAY_NS
from models_registry import gate, statistics, trades
from models_registry.dataset import Rows
from models_registry.ensemble import BoosterParameters
from models_registry.gate import Context
from models_registry.manifest import Gate, GateRow
from models_registry.recipe import Recipe
from models_registry.selection import FoldSelection
from models_registry.slopes import Z95, fit_line
from models_registry.trades import FeeResult, Trades
from models_registry.validation import (
    Coefficient,
    Fold,
    Mask,
    distinct,
    information_coefficient,
    normal_scores,
)

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Offsets of the seed: independent random streams.
_IC_STREAM, _NET_STREAM, _CHAMPION_STREAM = 1, 2, 4

#: A calibration slope is accepted when its 90 % interval meets this range.
_SLOPES: Final = (0.5, 1.5)


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
    prediction, NaN where it was trained; ``champion_gain`` (n,) how much larger the candidate's rank product
    is than the champion's on the same rows. ``rows`` have no features.
    """

    rows: Rows
    volatility: Float
    scale_bps: Float
    output: Float
    raw_bps: Float
    expected_bps: Float
    champion_bps: Float
    champion_gain: Float
    rank_product: Float

    def where(self, mask: Mask) -> OutOfSample:
        """The rows where ``mask`` (n,) is true."""
        kept = {name: getattr(self, name) for name in self.__struct_fields__}
        rows = kept.pop("rows").where(mask)
        return OutOfSample(rows=rows, **{name: values[mask] for name, values in kept.items()})

    def write(self, path: Path) -> None:
        """Times, symbols, predictions (bps) and rank products as Parquet."""
        columns = {"t_ns": self.rows.t_ns, "symbol": self.rows.symbol}
        columns |= {n: getattr(self, n).astype(np.float32) for n in ("raw_bps", "rank_product")}
        pq.write_table(pa.table(columns), path, compression="zstd")


class ChampionComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Candidate against champion over the same test seconds, all after the champion's training.

    Without such seconds the results are empty and ``note`` gives the reason. ``gain_lower`` bounds by whole days
    what the candidate's rank IC is larger by; ``daily`` are both one's net results (bps) at the stated fee row by day.
    """

    champion: str
    note: str = ""
    hours: float = 0.0
    candidate: tuple[FeeResult, ...] = ()
    incumbent: tuple[FeeResult, ...] = ()
    gain_lower: float = -math.inf
    daily: tuple[Mapping[int, float], Mapping[int, float]] = ({}, {})


class BaselineResult(msgspec.Struct, frozen=True, kw_only=True):
    """A baseline on the test blocks: rank IC with its one-sided 95 % bound, its trades, and their net by day."""

    name: str
    ic: float
    ic_lower: float
    result: FeeResult
    daily: Mapping[int, float] = {}


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a walk-forward; ``pooled`` is None when no block could be evaluated."""

    symbols: tuple[str, ...]
    horizons_s: tuple[int, ...]
    primary_s: int
    dates: tuple[str, ...]
    train_rows: int
    #: By horizon; those of the last fold.
    parameters: Mapping[int, BoosterParameters]
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
    #: Net result in bps at the stated fee row by test day (number).
    daily: Mapping[int, float]
    selections: tuple[FoldSelection, ...] = ()
    baselines: tuple[BaselineResult, ...] = ()
    #: This attempt and its tuning trials.
    looks: int = 1


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
    for baseline in evaluation.baselines:
        name = f"baseline.{baseline.name.replace(' ', '_')}"
        found |= {f"{name}.ic": baseline.ic, f"{name}.net_bps": baseline.result.net_bps}
    for row in evaluation.gate.rows:
        if row.value is not None:
            found[f"gate.{row.name.replace(' ', '_')}"] = row.value
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


def join(parts: list[OutOfSample]) -> OutOfSample:
    """Concatenate the rows of several parts; empties the list, so that hardly a column is held twice."""
    if len(parts) == 1:
        return parts.pop()
    bare = [{name: getattr(part, name) for name in part.__struct_fields__} for part in parts]
    rows = [
        {name: getattr(part.rows, name) for name in part.rows.__struct_fields__} for part in parts
    ]
    for columns in bare:
        del columns["rows"]
    parts.clear()
    return OutOfSample(rows=Rows(**_concatenated(rows)), **_concatenated(bare))


def _concatenated(parts: Sequence[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in [*parts[0]]}


def _coefficient(
    part: OutOfSample, predicted: Float, column: int, horizon_s: int, product: Float | None = None
) -> Coefficient:
    """IC of a prediction (n,) with a label: Pearson over all rows, ranks within block and symbol.

    ``product`` (n,) is that of the ranks; by default the rows are of one block.
    """
    rows, label = part.rows, part.rows.labels_bps[:, column]
    product = rank_product(rows.symbol, predicted, label) if product is None else product
    found = information_coefficient(predicted, label, rows.t_ns, horizon_s)
    known = ~np.isnan(product)
    rank = float(product[known].mean()) if known.any() else 0.0
    return msgspec.structs.replace(found, rank=rank)


def _primary(part: OutOfSample, model: Model) -> Coefficient:
    column = model.horizons_s.index(model.primary_s)
    return _coefficient(part, part.raw_bps, column, model.primary_s, part.rank_product)


def _by_horizon(
    part: OutOfSample, horizons_s: Sequence[int], blocks: Sequence[BlockResult] = ()
) -> tuple[Coefficient, ...]:
    """Each booster's own IC before calibration, as a slope shrunk to zero would hide it; of ``blocks``
    together, or of one.
    """
    found = [_coefficient(part, part.output[:, n], n, h) for n, h in enumerate(horizons_s)]
    for n in range(len(found) if blocks else 0):
        each = [block.ic_by_horizon[n] for block in blocks]
        rank = sum(one.rank * one.rows for one in each) / max(1, sum(one.rows for one in each))
        found[n] = msgspec.structs.replace(found[n], rank=rank)
    return tuple(found)


def _trade(
    part: OutOfSample, expected_bps: Float, row: str, horizon_s: int, after: bool = False
) -> Trades:
    return trades.simulate(
        t_ns=part.rows.t_ns,
        symbol=part.rows.symbol,
        mid=part.rows.mid,
        spread_bps=part.rows.spread_bps,
        expected_bps=expected_bps,
        fee_bps=FEE_ROWS_BPS[row][0],
        horizon_s=horizon_s,
        after=after,
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
        ic=_primary(part, model),
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
            _trade(part, expected_bps, row, model.primary_s, after=True),
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
    parameters: Mapping[int, BoosterParameters],
    tuned_ic: float,
    blocks: Sequence[BlockResult],
    parts: list[OutOfSample],
    skipped: Sequence[str],
    versus: ChampionComparison | None,
    context: Context | None = None,
    selections: Sequence[FoldSelection] = (),
) -> Evaluation:
    """Pool the test blocks (``parts``, which is emptied), bound IC and net result, compare with the champion, and decide the gate."""
    model, context = settings.model, context or Context()
    pooled = join(parts) if parts else None
    ic = Coefficient(rank=0.0, pearson=0.0, rows=0, n_eff=0.0)
    ic_lower = -math.inf
    by_horizon: tuple[Coefficient, ...] = ()
    results: tuple[FeeResult, ...] = ()
    made: dict[str, Trades] = {}
    rows: list[GateRow] = []
    daily: dict[int, float] = {}
    if pooled is not None:
        ic = _primary(pooled, model)
        by_horizon = _by_horizon(pooled, model.horizons_s, blocks)
        results, made = _results(pooled, pooled.expected_bps, settings)
        stated = next(r for r in results if r.row == model.fee_row)
        daily = daily_net(pooled.rows.t_ns, made[model.fee_row], stated.taker_bps)
        rows = _gate_rows(pooled, ic, stated, daily, settings, context)
        rows += _choice_rows(selections, stated, settings, len(daily))
        ic_lower = rows[0].value if rows[0].value is not None else -math.inf
        if versus is not None:
            rows.append(_champion_row(versus, pooled, settings, context))
            if not versus.note:
                versus = _compare(versus, pooled, settings)
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
        daily=daily,
        selections=tuple(selections),
        gate=gate.decide(
            (*rows, *context.rows),
            blocks=len(blocks),
            min_blocks=model.min_test_blocks,
            shortfall=skipped,
        ),
    )


def daily_net(t_ns: Int, made: Trades, fee_bps: float) -> dict[int, float]:
    """Net result in bps of the trades entered on each day of the decisions ``t_ns`` (n,)."""
    days = gate.days_of(t_ns)
    net = np.zeros(len(days))
    np.add.at(net, np.searchsorted(days, (made.entry_ns - 1) // DAY_NS), made.net_bps(fee_bps))
    return dict(zip(days.tolist(), net.tolist(), strict=True))


def _gate_rows(
    pooled: OutOfSample,
    ic: Coefficient,
    stated: FeeResult,
    daily: Mapping[int, float],
    settings: Settings,
    context: Context,
) -> list[GateRow]:
    """The rows that rest on the test blocks alone; the first is that of the IC."""
    model, t_ns = settings.model, pooled.rows.t_ns
    days, net = np.array(list(daily), np.int64), np.array(list(daily.values()))
    label = pooled.rows.labels_bps[:, model.horizons_s.index(model.primary_s)]
    line = fit_line(pooled.raw_bps, label, t_ns, model.primary_s)
    low, high = line.slope - Z95 * line.error, line.slope + Z95 * line.error
    trials = statistics.effective_trials(context.trials, context.correlation)
    dsr = statistics.deflated_sharpe(statistics.moments(net), trials, context.sharpe_variance)
    found = [
        gate.ic_row(
            t_ns, pooled.rank_product, ic.rank, model.bootstrap_block_s, context.procedures
        ),
        gate.recent_row(
            t_ns,
            pooled.rank_product,
            model.bootstrap_block_s,
            model.bootstrap_samples,
            model.seed + _IC_STREAM,
        ),
        gate.net_row(stated, model.min_trades),
        gate.advisory_row(
            "deflated sharpe",
            dsr >= gate.DSR_LEAST,
            dsr,
            gate.DSR_LEAST,
            f"DSR {dsr:.3f} of {len(days)} daily results at fee row {model.fee_row}, for "
            f"{context.trials} trials on these data ({trials:.1f} independent)",
            len(days),
        ),
        gate.advisory_row(
            "calibration",
            low <= _SLOPES[1] and high >= _SLOPES[0],
            line.slope,
            None,
            f"realised on expected return has a slope of {line.slope:.2f} ± {line.error:.2f}",
            len(days),
        ),
    ]
    if context.others:
        found.append(gate.overfitting_row(context, days, net))
    return found


def _choice_rows(
    selections: Sequence[FoldSelection], stated: FeeResult, settings: Settings, days: int
) -> list[GateRow]:
    """What was selected over the folds, and what was acted on: advisory at first."""
    rows = []
    if len(selections) > 1:
        union = sorted({name for one in selections for name in one.names})
        chosen = np.zeros((len(selections), len(selections[0].importance)), np.bool_)
        chosen[:, : len(union)] = [[name in one.names for name in union] for one in selections]
        stability = statistics.selection_stability(chosen)
        text = (
            f"selections of {len(selections)} folds have a stability of {stability.value:.2f} "
            f"({stability.low:.2f} to {stability.high:.2f}), "
            f"{sum(s.decoys for s in selections)} decoys among them"
        )
        least = gate.STABILITY_LEAST
        passed = stability.value >= least
        rows.append(gate.advisory_row("stability", passed, stability.value, least, text, days))
    if settings.model.act == "certified" and stated.trades:
        upper, most = stated.false_net_upper, gate.FALSE_SIGNALS_MOST
        text = (
            f"of {stated.n_eff:,.0f} independent trades {100 * stated.false_net:.1f} % earned nothing "
            f"net at fee row {stated.row}, at most {100 * upper:.1f} % at 95 %"
        )
        rows.append(gate.advisory_row("certified", upper <= most, upper, most, text, days))
    return rows


def _champion_row(
    versus: ChampionComparison, pooled: OutOfSample, settings: Settings, context: Context
) -> GateRow:
    if versus.note:
        text = f"champion {versus.champion} cannot be run by this code: {versus.note}"
        return gate.row("champion", True, math.nan, None, text)
    return gate.champion_row(
        versus.champion,
        pooled.rows.t_ns,
        pooled.champion_gain,
        decayed=context.champion_decayed,
        block_s=settings.model.bootstrap_block_s,
        samples=settings.model.bootstrap_samples,
        seed=settings.model.seed + _CHAMPION_STREAM,
    )


def _compare(
    versus: ChampionComparison, pooled: OutOfSample, settings: Settings
) -> ChampionComparison:
    both = pooled.where(~np.isnan(pooled.champion_bps))
    if not len(both.rows):
        return msgspec.structs.replace(versus, note="it was trained on all of these test blocks")
    model, t_ns = settings.model, both.rows.t_ns
    mine, own = _results(both, both.expected_bps, settings)
    theirs, other = _results(both, both.champion_bps, settings)
    fee_bps = FEE_ROWS_BPS[model.fee_row][0]
    return msgspec.structs.replace(
        versus,
        hours=len(distinct(t_ns)) / 3600.0,
        candidate=mine,
        incumbent=theirs,
        gain_lower=statistics.day_bound(
            t_ns, both.champion_gain, samples=model.bootstrap_samples, seed=model.seed
        ),
        daily=(
            daily_net(t_ns, own[model.fee_row], fee_bps),
            daily_net(t_ns, other[model.fee_row], fee_bps),
        ),
    )
