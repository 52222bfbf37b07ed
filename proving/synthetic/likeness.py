"""How like bars of the reduced form are to the engine's own, over the same hidden day.

    python -m proving.synthetic.likeness PROFILE SEED DAY     the table, for each symbol

Per column the distance of the two distributions, means, and how long it remembers itself; for all
pairs of columns their rank correlations; for features what they tell of the planted alpha, as their
correlation with it. The hidden day is the same for both, so differences are the reduced form's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp, rankdata

from market.bars import Bars
from market.columns import COLUMNS, C
from proving.synthetic import reduced
from proving.synthetic.latent import PER_SECOND, Drivers
from proving.synthetic.profiles import profile

Floats = npt.NDArray[np.float64]

#: Lags at which a column's memory is compared (s).
LAGS_S: Final = (1, 10, 60)
#: Columns that are prices: compared by their distance from the mid at the close, which is compared by
#: its returns.
_PRICES: Final = (
    "mid_open", "mid_high", "mid_low", "mid_twap", "micro_close", "vamp_close", "vwap", "last_price",
    "mark", "index_price",
)  # fmt: skip
#: Every so many seconds enter the distance, so that they are nearly independent.
_APART: Final = 7


class Column(msgspec.Struct, frozen=True):
    """One column of both."""

    name: str
    distance: float  #: Kolmogorov-Smirnov
    means: tuple[float, float]  #: the engine's, the reduced form's
    deviations: tuple[float, float]
    missing: tuple[float, float]  #: share of NULLs
    memory: tuple[tuple[float, float], ...]  #: autocorrelation at LAGS_S


class Told(msgspec.Struct, frozen=True):
    """What a feature tells of the alpha in both."""

    name: str
    correlations: tuple[float, float]


class Likeness(msgspec.Struct, frozen=True):
    """The comparison of one symbol's day."""

    columns: tuple[Column, ...]
    features: tuple[Told, ...]
    #: Mean and 99th percentile of the differences of rank correlations over pairs of columns.
    correlation_gap: tuple[float, float]


def compared(full: Bars, own: Bars, hidden: Drivers, margin: int = 900) -> Likeness:
    """Compare bars of the same seconds; ``margin`` seconds at either end are left out."""
    n = len(full)
    inside = slice(margin, n - margin)
    series = [_series(bars.values[:n], inside) for bars in (full, own)]
    columns = tuple(_column(name, series[0][name], series[1][name]) for name in series[0])
    alpha = hidden.x[PER_SECOND * np.arange(1, n + 1)][inside]
    seen, drawn = _features(full.values), _features(own.values[:n])
    told = tuple(
        Told(
            name,
            (_correlation(seen[name][inside], alpha), _correlation(drawn[name][inside], alpha)),
        )
        for name in seen
    )
    return Likeness(columns, told, _correlation_gap(series[0], series[1]))


def _series(values: Floats, inside: slice) -> dict[str, Floats]:
    mid = values[:, C.mid_close]
    out = {}
    for place, name in enumerate(COLUMNS):
        column = values[:, place]
        if name in _PRICES:
            column = np.log(column / mid) * 1e4
        elif name == "mid_close":
            column = np.diff(np.log(mid), prepend=np.nan) * 1e4
        out[name] = column[inside]
    return out


def _column(name: str, full: Floats, own: Floats) -> Column:
    held = [part[~np.isnan(part)] for part in (full, own)]
    empty = min(len(part) for part in held) == 0
    return Column(
        name=name,
        distance=float("nan") if empty else _distance(held[0], held[1]),
        means=(_mean(held[0]), _mean(held[1])),
        deviations=(float(np.std(full[~np.isnan(full)])), float(np.std(own[~np.isnan(own)]))),
        missing=(float(np.isnan(full).mean()), float(np.isnan(own).mean())),
        memory=tuple((_memory(full, lag), _memory(own, lag)) for lag in LAGS_S),
    )


def _distance(full: Floats, own: Floats) -> float:
    # Values that differ by rounding alone are one value.
    scale = float(np.max(np.abs(full))) or 1.0
    grid = [np.round(part[::_APART] / scale, 9) for part in (full, own)]
    return float(ks_2samp(*grid, method="asymp").statistic)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _memory(values: Floats, lag: int) -> float:
    apart = np.nan_to_num(values - _mean(values[~np.isnan(values)]))
    square = float(apart @ apart)
    return float(apart[lag:] @ apart[:-lag]) / square if square > 0 else 0.0


def _correlation(a: Floats, b: Floats) -> float:
    held = ~np.isnan(a)
    return float(np.corrcoef(a[held], b[held])[0, 1])


def _correlation_gap(full: dict[str, Floats], own: dict[str, Floats]) -> tuple[float, float]:
    # Tickers are the engine's own, and how they move within a day is nobody's law.
    names = [
        name
        for name in full
        if name not in ("open_interest", "turnover_24h", "funding_rate", "funding_mean",
                        "funding_in_s", "mark", "index_price", "basis_bps", "spread_bps")
        and np.nanstd(full[name]) > 0 and np.nanstd(own[name]) > 0
    ]  # fmt: skip
    ranks = [
        np.stack([rankdata(np.nan_to_num(part[name])) for name in names]) for part in (full, own)
    ]
    gap = np.abs(np.corrcoef(ranks[0]) - np.corrcoef(ranks[1]))[np.triu_indices(len(names), 1)]
    return float(gap.mean()), float(np.quantile(gap, 0.99))


def _features(values: Floats) -> dict[str, Floats]:
    """A few features that the alpha reaches, by the definitions of `market.features.definitions`."""

    def of(name: str) -> Floats:
        return np.asarray(values[:, getattr(C, name)])

    def total(series: Floats, width: int) -> Floats:
        sums = np.cumsum(np.nan_to_num(series))
        sums[width:] -= sums[:-width].copy()
        return sums

    queue = (of("bid_q1_mean") - of("ask_q1_mean")) / (of("bid_q1_mean") + of("ask_q1_mean"))
    flow, volume = of("buy_qty") - of("sell_qty"), of("buy_qty") + of("sell_qty")
    pulled = of("ask_cancel_1") - of("bid_cancel_1")
    pulls = of("ask_cancel_1") + of("bid_cancel_1")
    excited = of("hawkes_buy_10") + of("hawkes_sell_10")
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "queue_15": total(queue, 15),
            "queue_60": total(queue, 60),
            "imbalance_10_now": (of("bid_q10") - of("ask_q10")) / (of("bid_q10") + of("ask_q10")),
            "micro_15": total(np.log(of("micro_close") / of("mid_close")), 15),
            "ofi_60": total(of("ofi_1"), 60) / total(of("depth_norm"), 60),
            "tfi_15": total(flow, 15) / total(volume, 15),
            "tfi_60": total(flow, 60) / total(volume, 60),
            "hawkes_tilt_10_now": (of("hawkes_buy_10") - of("hawkes_sell_10")) / excited,
            "cancel_tilt_touch_15": total(pulled, 15) / total(pulls, 15),
        }


def table(found: Likeness) -> str:
    """The comparison in plain text."""
    lines = [
        f"{'column':18}{'distance':>9}{'mean':>14}{'reduced':>14}{'memory at 1, 10, 60 s':>34}"
    ]
    for column in found.columns:
        memory = "  ".join(f"{a:+.2f}/{b:+.2f}" for a, b in column.memory)
        lines.append(
            f"{column.name:18}{column.distance:9.3f}{column.means[0]:14.5g}{column.means[1]:14.5g}"
            f"   {memory}"
        )
    lines.append("")
    lines.append(f"{'feature':24}{'correlation with the alpha':>28}{'reduced':>10}")
    lines += [
        f"{told.name:24}{told.correlations[0]:28.3f}{told.correlations[1]:10.3f}"
        for told in found.features
    ]
    mean, high = found.correlation_gap
    lines.append(f"rank correlations of columns differ by {mean:.3f} in the mean, {high:.3f} at most "
                 "in 99 % of pairs")  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Compare one day of each symbol of a profile."""
    from proving.synthetic.calibration import full_day

    name, seed, day = arguments
    for listing in profile(name).listings:
        made = full_day(profile(name), int(seed), listing.symbol, day)
        own = reduced.bars(profile(name), int(seed), listing.symbol, day)
        print(f"\n{listing.symbol}\n{table(compared(made.bars, own, made.hidden))}")


if __name__ == "__main__":
    main(sys.argv[1:])
