"""What a backtest amounts to: figures, each with what it rests on.

Net results are given at three fee rows: one run was made at the stated row, and the same executions
are priced again at the others. Intervals are two-sided 95 % percentiles of the stationary bootstrap
over time blocks (`models_registry.validation`), and are left out when the span holds fewer than
`MIN_BLOCKS` of them: a number would only look like knowledge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from execution.blotter import Trade, break_even_bps, capacity_usdt
from market.settings import FEE_ROWS_BPS
from market.units import E8
from models_registry.validation import BIN_S, bin_sums, bootstrap
from orchestration.backtest.span import Span, instant_text

if TYPE_CHECKING:
    from orchestration.backtest import Fixed, Run

#: An interval needs this many mean block lengths of data.
MIN_BLOCKS: Final = 10

Float = npt.NDArray[np.float64]


# -- figures ---------------------------------------------------------------------------------------


def figures(
    run: Run, model: Fixed, span: Span, inputs: Mapping[str, str], source: str, events: int
) -> dict[str, Any]:
    """Everything a reader wants to know, as plain data without NaN; money in quote currency."""
    settings, curve, trades = run.settings, run.curve, run.blotter.trades
    row = settings.model.fee_row
    holdings = run.blotter.totals.values()
    turnover = sum(h.turnover_e8 for h in holdings) / E8
    funding = sum(h.funding_e8 for h in holdings) / E8
    net = {name: values[-1] for name, values in curve.equity.items()}
    fees = {name: sum(h.fees_e8[name] for h in holdings) / E8 for name in FEE_ROWS_BPS}
    gross = net[row] + fees[row] + funding
    days = curve.seconds / 86_400
    capital = settings.execution.capital_usdt
    manifest = model.bundle.manifest
    found = {
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
        # Labels of neighbouring seconds overlap, and symbols move together: neither counts twice.
        "independent_labels": run.trader.warm_decisions
        / len(settings.market.symbols)
        / manifest.primary_s,
        "round_trips": len(trades),
        "gross_usdt": gross,
        "funding_usdt": funding,
        "unpriced_funding": run.trader.unpriced_funding,
        "turnover_usdt": turnover,
        "turnover_per_day": turnover / capital / days if days else math.nan,
        "maker_share": sum(h.maker_e8 for h in holdings) / E8 / turnover if turnover else math.nan,
        "break_even_bps": break_even_bps(gross, funding, turnover),
        "exposure": {
            "invested_share": _over(curve.invested_s, curve.seconds),
            "mean_gross_usdt": _over(curve.exposure_usdt_s, curve.seconds),
            "mean_net_usdt": _over(curve.net_usdt_s, curve.seconds),
            "largest_usdt": curve.largest_usdt,
        },
        "rows": {
            name: _at_row(run, name, fees[name], net[name], days) for name in FEE_ROWS_BPS
        },
        "regimes": _regimes(run, trades, row),
        "by_symbol": _by_symbol(trades, row),
        "worker": run.trader.summary(),
        "errors": run.log.errors,
    }  # fmt: skip
    return plain(found)  # type: ignore[no-any-return]


def assumptions(run: Run, model: Fixed) -> list[str]:
    """What the figures rest on, in sentences."""
    execution, row = run.settings.execution, run.settings.model.fee_row
    said = [
        "A decision at t uses what was received before t; its orders leave at t and reach the venue "
        f"{execution.entry_latency_ms:g} ms later (computing included), answers take "
        f"{execution.response_latency_ms:g} ms.",
        f"Queue model {execution.queue}, which decides what rests and fills; our own orders move nobody "
        "else.",
        f"Decisions and orders were made at fee row {row}; the other rows price the same executions "
        "again.",
        "Every fee is by the execution's actual liquidity. Funding is settled at the data's own mark "
        "and rate.",
        "While a market cannot be judged (gap, stale book, first hour) the target is flat.",
    ]
    if run.trader.unpriced_funding:
        said.append(
            f"{run.trader.unpriced_funding} funding settlements of an open position are left out: the "
            "data do not hold their rate."
        )
    if model.foreign:
        said.insert(0, f"This is {model.foreign}: its result says nothing about a market.")
    return said


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _at_row(run: Run, row: str, fees: float, net: float, days: float) -> dict[str, Any]:
    trades, model = run.blotter.trades, run.settings.model
    bps = np.array([trade.net_bps(row) for trade in trades])
    times = np.array(run.curve.t_ns, np.int64)
    changes = np.diff(np.array(run.curve.equity[row]), prepend=0.0)
    minutes = np.diff(times, prepend=times[0]) / (60 * 1e9)
    drawdown = run.curve.drawdown[row]
    return {
        "taker_bps": FEE_ROWS_BPS[row][0],
        "maker_bps": FEE_ROWS_BPS[row][1],
        "fees_usdt": fees,
        "net_usdt": net,
        "net_usdt_per_day": net / days if days >= 1 else math.nan,
        "net_usdt_per_day_95": interval(
            times, changes, minutes / 1_440, model.bootstrap_block_s, model.bootstrap_samples,
            model.seed,
        ),
        "drawdown_usdt": drawdown,
        "drawdown_share": drawdown / run.settings.execution.capital_usdt,
        "net_bps": float(bps.mean()) if len(bps) else math.nan,
        "net_bps_95": interval(
            np.concatenate([times, [trade.entry_ns for trade in trades]]).astype(np.int64),
            np.concatenate([np.zeros(len(times)), bps]),
            np.concatenate([np.zeros(len(times)), np.ones(len(bps))]),
            model.bootstrap_block_s, model.bootstrap_samples, model.seed,
        ),
        "hit_rate": float((bps > 0).mean()) if len(bps) else math.nan,
        "capacity_usdt": capacity_usdt(trades, row),
    }  # fmt: skip


def interval(
    t_ns: npt.NDArray[np.int64],
    values: Float,
    weights: Float,
    block_s: int,
    samples: int,
    seed: int,
) -> tuple[float, float] | None:
    """95 % interval of sum(values) / sum(weights), both (n,) at times ``t_ns`` (n,).

    None when there is too little to resample: fewer than `MIN_BLOCKS` blocks of ``block_s``.
    """
    if not len(t_ns) or (t_ns.max() - t_ns.min()) / 1e9 < MIN_BLOCKS * block_s:
        return None
    sums = bin_sums(t_ns, (values, weights))

    def quotient(totals: Float) -> Float:
        out = np.full(len(totals), np.nan)
        np.divide(totals[:, 0], totals[:, 1], out=out, where=totals[:, 1] > 0)
        return out

    drawn = bootstrap(sums, quotient, mean_block=block_s / BIN_S, samples=samples, seed=seed)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return low, high


def difference(run: Run, other: Run) -> dict[str, Any]:
    """Net of one run less the other's over the same minutes, and a day with its interval, by fee row.

    What less than a day came to is no figure of a day.
    """
    model = run.settings.model
    times = np.array(run.curve.t_ns, np.int64)
    days = np.diff(times, prepend=times[0]) / (86_400 * 1e9)
    found = {}
    for row in FEE_ROWS_BPS:
        apart = np.array(run.curve.equity[row]) - np.array(other.curve.equity[row])
        found[row] = {
            "net_usdt": float(apart[-1]),
            "net_usdt_per_day": apart[-1] / days.sum() if days.sum() >= 1 else math.nan,
            "net_usdt_per_day_95": interval(
                times, np.diff(apart, prepend=0.0), days, model.bootstrap_block_s,
                model.bootstrap_samples, model.seed,
            ),
        }  # fmt: skip
    return plain(found)  # type: ignore[no-any-return]


def _regimes(run: Run, trades: Sequence[Trade], row: str) -> list[dict[str, Any]]:
    decided = sum(run.regimes.values())
    names = sorted(run.regimes.keys() | {trade.regime for trade in trades})
    return [
        {
            "regime": name,
            "time_share": _over(run.regimes.get(name, 0), decided),
            **_of(own, row),
        }
        for name in names
        for own in [[trade for trade in trades if trade.regime == name]]
    ]


def _by_symbol(trades: Sequence[Trade], row: str) -> list[dict[str, Any]]:
    return [
        {"symbol": name, **_of([trade for trade in trades if trade.symbol == name], row)}
        for name in sorted({trade.symbol for trade in trades})
    ]


def _of(trades: Sequence[Trade], row: str) -> dict[str, Any]:
    """Means over some round trips."""
    net = np.array([trade.net_bps(row) for trade in trades])
    held = [(trade.exit_ns - trade.entry_ns) / 1e9 for trade in trades]
    return {
        "trades": len(trades),
        "gross_bps": _mean([trade.gross_bps for trade in trades]),
        "net_bps": _mean(net),
        "net_usdt": math.fsum(trade.net_usdt(row) for trade in trades),
        "hit_rate": _mean(net > 0),
        "holding_s": _mean(held),
        "maker_share": _mean([trade.maker_share for trade in trades]),
    }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def plain(data: Any) -> Any:
    """Data for JSON: NaN and infinities become null."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data


# -- for people ------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def between(bounds: Sequence[float] | None, digits: int = 2) -> str:
    return "too short" if bounds is None else f"{bounds[0]:,.{digits}f} to {bounds[1]:,.{digits}f}"


def summary_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The head of every report: what ran over what, and what it did."""
    exposure = found["exposure"]
    return [
        ("market", f"{', '.join(found['symbols'])}, {found['source']} data, {found['from']} to "
                   f"{found['to']} UTC: {found['hours']:,.2f} h, {found['events']:,} events"),
        ("model", f"{found['model']}, trained on {found['model source']} data"
                  + (" (FOREIGN to this lake)" if found["foreign"] else "")),
        ("orders", f"{found['algorithm']}, queue {found['queue']}, decided at fees of "
                   f"{found['fee_row']}; maker {share(found['maker_share'])}"),
        ("evidence", f"{found['round_trips']:,} round trips; {found['independent_labels']:,.0f} "
                     "spans of the traded horizon"),
        ("gross", f"{number(found['gross_usdt'])} USDT before fees, funding "
                  f"{number(found['funding_usdt'])} USDT paid"),
        ("break-even fee", f"{number(found['break_even_bps'], 3)} bps a side"),
        ("turnover", f"{number(found['turnover_usdt'], 0)} USDT, "
                     f"{number(found['turnover_per_day'], 1)} times the capital a day"),
        ("exposure", f"in the market {share(exposure['invested_share'])} of the time, mean "
                     f"{number(exposure['mean_gross_usdt'], 0)}, at most "
                     f"{number(exposure['largest_usdt'], 0)} USDT"),
    ]  # fmt: skip


FEE_HEAD: Final = (
    "fee row", "taker", "maker", "fees", "net", "net a day", "95 %", "net bps a trade", "95 %",
    "hits", "drawdown", "capacity a trade",
)  # fmt: skip


def fee_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name, f"{r['taker_bps']:g}", f"{r['maker_bps']:g}", number(r["fees_usdt"]),
            number(r["net_usdt"]), number(r["net_usdt_per_day"]),
            between(r["net_usdt_per_day_95"]), number(r["net_bps"], 3),
            between(r["net_bps_95"], 3), share(r["hit_rate"]), number(r["drawdown_usdt"]),
            "none" if r["capacity_usdt"] is None else f"{r['capacity_usdt']:,.0f}",
        )
        for name, r in found["rows"].items()
    ]  # fmt: skip


GROUP_HEAD: Final = (
    "time", "trades", "gross bps", "net bps", "net USDT", "hits", "held s", "maker",
)  # fmt: skip


def group_rows(groups: Sequence[Mapping[str, Any]], key: str) -> list[tuple[str, ...]]:
    return [
        (
            str(g[key]), share(g.get("time_share")), f"{g['trades']:,}", number(g["gross_bps"], 3),
            number(g["net_bps"], 3), number(g["net_usdt"]), share(g["hit_rate"]),
            number(g["holding_s"], 1), share(g["maker_share"]),
        )
        for g in groups
    ]  # fmt: skip


def text(found: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    from market.console import table
    from orchestration.backtest import bounds

    parts = [
        table(summary_rows(found)),
        table(fee_rows(found), FEE_HEAD),
        table(bounds.rows(found), bounds.HEAD) if "bounds" in found else "",
        table(group_rows(found["regimes"], "regime"), ("regime", *GROUP_HEAD)),
        table(group_rows(found["by_symbol"], "symbol"), ("symbol", *GROUP_HEAD)),
        _against(found),
        "\n".join(found["assumptions"]),
        *(f"NOT IN ORDER: {error}" for error in found["errors"]),
    ]
    return "\n\n".join(part for part in parts if part)


AGAINST_HEAD: Final = ("fee row", "net", "the other's", "difference", "a day", "95 %")


def against_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a second model did on the same events, and the difference."""
    other = found["against"]
    return [
        (
            name, number(found["rows"][name]["net_usdt"]), number(other["rows"][name]["net_usdt"]),
            number(apart["net_usdt"]), number(apart["net_usdt_per_day"]),
            between(apart["net_usdt_per_day_95"]),
        )
        for name, apart in other["difference"].items()
    ]  # fmt: skip


def _against(found: Mapping[str, Any]) -> str:
    from market.console import table

    if "against" not in found:
        return ""
    head = f"Against {found['against']['model']} on the same events:\n"
    return head + table(against_rows(found), AGAINST_HEAD)
