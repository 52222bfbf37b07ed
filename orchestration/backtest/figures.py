"""The figures of a backtest, as plain data.

Net results are given at three fee rows: decisions were made at the configured row, and the same fills
are priced again at the others. Intervals are two-sided 95 % percentiles of the stationary bootstrap
(Politis & Romano 1994, `models_registry.validation`) and None when the span holds fewer than
`MIN_BLOCKS` mean blocks, too few to resample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from execution.blotter import Trade, break_even_bps, capacity_usdt
from market.settings import FEE_ROWS_BPS
from market.units import DAY_NS, DAY_S, E8, MINUTE_NS, SECOND_NS
from models_registry.validation import BIN_S, bin_sums, bootstrap
from orchestration.backtest.run import Books, FixedModel
from orchestration.backtest.span import Span, instant_text

#: An interval needs this many mean block lengths of data.
MIN_BLOCKS: Final = 10

#: Figures in which a run is compared with its queue bounds: of the run, and at each fee row.
_BOUND_FIGURES: Final = (
    "queue",
    "round_trips",
    "maker_share",
    "turnover_usdt",
    "gross_usdt",
    "break_even_bps",
)
_BOUND_ROW_FIGURES: Final = ("net_usdt", "net_bps", "drawdown_usdt")

Floats = npt.NDArray[np.float64]


def figures(
    run: Books, model: FixedModel, span: Span, inputs: Mapping[str, str], source: str, events: int
) -> dict[str, Any]:
    """Every figure of a run, as plain data without NaN; money in quote currency.

    ``inputs`` are the fingerprints of the partitions read, ``source`` is the lake's.
    """
    settings, curve, trades = run.settings, run.curve, run.blotter.trades
    row = settings.model.fee_row
    totals = run.blotter.totals.values()
    turnover = sum(h.turnover_e8 for h in totals) / E8
    funding = sum(h.funding_e8 for h in totals) / E8
    net = {name: values[-1] for name, values in curve.equity.items()}
    fees = {name: sum(h.fees_e8[name] for h in totals) / E8 for name in FEE_ROWS_BPS}
    gross = net[row] + fees[row] + funding
    days = curve.seconds / DAY_S
    capital = settings.execution.capital_usdt
    manifest = model.bundle.manifest
    result = {
        "source": source,
        "model": model.name,
        "model source": manifest.source,
        "foreign": model.foreign,
        "symbols": list(settings.market.symbols),
        "from": instant_text(span.first_ns),
        "to": instant_text(span.until_ns),
        "inputs": dict(inputs),
        "fee_row": row,
        "algorithm": settings.execution.algorithm,
        "queue": settings.execution.queue,
        "capital_usdt": capital,
        "assumptions": assumptions(run, model),
        "events": events,
        "hours": curve.seconds / 3_600,
        # Labels of neighbouring seconds overlap, and symbols are correlated: neither counts twice.
        "independent_labels": run.warm_decisions
        / len(settings.market.symbols)
        / manifest.primary_s,
        "round_trips": len(trades),
        "gross_usdt": gross,
        "funding_usdt": funding,
        "unpriced_funding": run.unpriced_funding,
        "turnover_usdt": turnover,
        "turnover_per_day": turnover / capital / days if days else math.nan,
        "maker_share": _ratio(sum(h.maker_e8 for h in totals) / E8, turnover),
        "break_even_bps": break_even_bps(gross, funding, turnover),
        "exposure": {
            "invested_share": _ratio(curve.invested_s, curve.seconds),
            "mean_gross_usdt": _ratio(curve.exposure_usdt_s, curve.seconds),
            "mean_net_usdt": _ratio(curve.net_usdt_s, curve.seconds),
            "largest_usdt": curve.largest_usdt,
        },
        "rows": {name: _at_row(run, name, fees[name], net[name], days) for name in FEE_ROWS_BPS},
        "regimes": _by_regime(run, trades, row),
        "by_symbol": _by_symbol(trades, row),
        "worker": run.worker,
        "errors": run.errors,
    }
    return plain(result)  # type: ignore[no-any-return]


def assumptions(run: Books, model: FixedModel) -> list[str]:
    """The assumptions under which the figures hold, in sentences."""
    execution, row = run.settings.execution, run.settings.model.fee_row
    sentences = [
        "A decision at t uses what was received before t; its orders leave at t and reach the venue "
        f"{execution.entry_latency_ms:g} ms later (computing included), answers take "
        f"{execution.response_latency_ms:g} ms.",
        f"Queue model {execution.queue} decides when resting orders fill; our own orders have no market "
        "impact.",
        f"Decisions and orders were made at fee row {row}; the other rows price the same fills again.",
        "Every fill pays the fee of its actual liquidity (maker or taker). Funding is paid at "
        "the settlements that were, at their own rate and mark price.",
        "While a market cannot be judged (sequence gap, stale book, warm-up) nothing is entered.",
    ]
    if run.unpriced_funding:
        sentences.append(
            f"{run.unpriced_funding} funding settlements of an open position are left out: the "
            "data do not hold their rate."
        )
    if model.foreign:
        sentences.insert(0, f"This is {model.foreign}: its result says nothing about a market.")
    return sentences


def _at_row(run: Books, row: str, fees: float, net: float, days: float) -> dict[str, Any]:
    """Figures at a fee row."""
    trades, model = run.blotter.trades, run.settings.model
    bps = np.array([trade.net_bps(row) for trade in trades])
    times = np.array(run.curve.t_ns, np.int64)
    changes = np.diff(np.array(run.curve.equity[row]), prepend=0.0)
    minutes = np.diff(times, prepend=times[0]) / MINUTE_NS
    drawdown = run.curve.drawdown[row]
    return {
        "taker_bps": FEE_ROWS_BPS[row][0],
        "maker_bps": FEE_ROWS_BPS[row][1],
        "fees_usdt": fees,
        "net_usdt": net,
        "net_usdt_per_day": net / days if days >= 1 else math.nan,
        "net_usdt_per_day_95": bootstrap_interval(
            times, changes, minutes / 1_440, model.bootstrap_block_s, model.bootstrap_samples,
            model.seed,
        ),
        "drawdown_usdt": drawdown,
        "drawdown_share": drawdown / run.settings.execution.capital_usdt,
        "net_bps": _mean(bps),
        "net_bps_95": bootstrap_interval(
            np.concatenate([times, [trade.entry_ns for trade in trades]]).astype(np.int64),
            np.concatenate([np.zeros(len(times)), bps]),
            np.concatenate([np.zeros(len(times)), np.ones(len(bps))]),
            model.bootstrap_block_s, model.bootstrap_samples, model.seed,
        ),
        "hit_rate": _mean(bps > 0),
        "capacity_usdt": capacity_usdt(trades, row),
    }  # fmt: skip


def bootstrap_interval(
    t_ns: npt.NDArray[np.int64],
    values: Floats,
    weights: Floats,
    block_s: int,
    samples: int,
    seed: int,
) -> tuple[float, float] | None:
    """95 % interval of sum(values) / sum(weights), both (n,) at times ``t_ns`` (n,).

    Honest when ``block_s`` is longer than the values stay correlated. None for fewer than `MIN_BLOCKS`
    blocks of ``block_s``.
    """
    if not len(t_ns) or (t_ns.max() - t_ns.min()) / SECOND_NS < MIN_BLOCKS * block_s:
        return None
    sums = bin_sums(t_ns, (values, weights))

    def quotient(totals: Floats) -> Floats:
        out = np.full(len(totals), np.nan)
        np.divide(totals[:, 0], totals[:, 1], out=out, where=totals[:, 1] > 0)
        return out

    drawn = bootstrap(sums, quotient, mean_block=block_s / BIN_S, samples=samples, seed=seed)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return low, high


def difference(run: Books, other: Books) -> dict[str, Any]:
    """Net of one run less the other's over the same minutes, by fee row: in all, and a day.

    The figure of a day is None for spans of less than a day.
    """
    model = run.settings.model
    times = np.array(run.curve.t_ns, np.int64)
    days = np.diff(times, prepend=times[0]) / DAY_NS
    by_row = {}
    for row in FEE_ROWS_BPS:
        apart = np.array(run.curve.equity[row]) - np.array(other.curve.equity[row])
        by_row[row] = {
            "net_usdt": float(apart[-1]),
            "net_usdt_per_day": apart[-1] / days.sum() if days.sum() >= 1 else math.nan,
            "net_usdt_per_day_95": bootstrap_interval(
                times, np.diff(apart, prepend=0.0), days, model.bootstrap_block_s,
                model.bootstrap_samples, model.seed,
            ),
        }  # fmt: skip
    return plain(by_row)  # type: ignore[no-any-return]


def bound_figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a run at a queue bound that are reported beside those of the run itself."""
    return {name: result[name] for name in _BOUND_FIGURES} | {
        "rows": {
            row: {name: at_row[name] for name in _BOUND_ROW_FIGURES}
            for row, at_row in result["rows"].items()
        }
    }


def _by_regime(run: Books, trades: Sequence[Trade], row: str) -> list[dict[str, Any]]:
    decisions = sum(run.regimes.values())
    return [
        {
            "regime": name,
            "time_share": _ratio(run.regimes.get(name, 0), decisions),
            **_means([trade for trade in trades if trade.regime == name], row),
        }
        for name in sorted(run.regimes.keys() | {trade.regime for trade in trades})
    ]


def _by_symbol(trades: Sequence[Trade], row: str) -> list[dict[str, Any]]:
    return [
        {"symbol": name, **_means([trade for trade in trades if trade.symbol == name], row)}
        for name in sorted({trade.symbol for trade in trades})
    ]


def _means(trades: Sequence[Trade], row: str) -> dict[str, Any]:
    """Means over round trips; NaN without any."""
    net = np.array([trade.net_bps(row) for trade in trades])
    return {
        "trades": len(trades),
        "gross_bps": _mean([trade.gross_bps for trade in trades]),
        "net_bps": _mean(net),
        "net_usdt": math.fsum(trade.net_usdt(row) for trade in trades),
        "hit_rate": _mean(net > 0),
        "holding_s": _mean([(trade.exit_ns - trade.entry_ns) / SECOND_NS for trade in trades]),
        "maker_share": _mean([trade.maker_share for trade in trades]),
    }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def plain(data: Any) -> Any:
    """Data for JSON: NaN and infinities become None."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data
