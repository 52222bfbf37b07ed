"""The reduced form of a synthetic market: its fit to the full market's bars, and how alike the two are.

    python -m proving.synthetic.calibration fit PROFILE…            fit, and write reduced.npz
    python -m proving.synthetic.calibration compare PROFILE SEED DAY      compare one day of each symbol

**Fit.** The full market is made for the days of `CALIBRATION`, with seeds that serve nothing else.
Tables and linear laws are fitted by counting and least squares; no figure is chosen by hand.

**Comparison**, on the same latent day, so that differences are the reduced form's: per column the
Kolmogorov-Smirnov distance, moments and autocorrelation; over pairs of columns the rank correlations;
per feature its correlation with the planted alpha. Use seeds that were not fitted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri
from scipy.stats import ks_2samp, rankdata

from market.bars import BarBuilder, Bars
from market.columns import COLUMNS, C
from market.instruments import BUILT_IN
from market.settings import Settings
from market.units import BPS, SECOND_NS, day_start_ns
from proving.synthetic import generate, latent, reduced, touch
from proving.synthetic.latent import FRAMES, PER_SECOND, SECONDS, Drivers, generator
from proving.synthetic.primitives import NAMES, TAKERS, P, decompose, trades
from proving.synthetic.profiles import Profile, profile
from proving.synthetic.reduced import FILE, MEMORY_S, STIRS, Integers, ReducedModel

Floats = npt.NDArray[np.float64]

#: Seeds and dates of the fit.
CALIBRATION: Final = ((900_001, "2026-01-05"), (900_002, "2026-01-06"))
#: Seconds at either end of a day that are left out.
MARGIN_S: Final = 900
_KNOTS: Final = 161
_REACH: Final = 4.3
_RIDGE: Final = 1e-4


class FullDay(NamedTuple):
    """A day of the full market: its bars, its touch, and its latent paths."""

    bars: Bars
    touch: touch.DayTouch
    hidden: Drivers


def full_day(profile: Profile, seed: int, symbol: str, day: str) -> FullDay:
    """Make a symbol's day from its events, which are not kept."""
    instrument = BUILT_IN[symbol]
    hidden = latent.drivers(profile, seed, symbol, day)
    midnight = day_start_ns(day)
    builder = BarBuilder(instrument, Settings().market.stale_after_s)
    recorder = touch.TouchRecorder(midnight, FRAMES)
    parts = []
    for chunk in generate(profile, seed, symbol, day):
        parts.append(builder.push(chunk))
        recorder.push(chunk)
    parts += [builder.finish(), builder.close_until(midnight + SECONDS * SECOND_NS)]
    bars = Bars(
        t_ns=np.concatenate([part.t_ns for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )
    bid, ask, arrival = recorder.recorded()
    touches = touch.DayTouch(
        bid, ask, hidden.log_price, touch.market_state(hidden), instrument.tick_size, arrival
    )
    return FullDay(bars, touches, hidden)


def fit(profile: Profile, symbol: str, days: Sequence[FullDay]) -> ReducedModel:
    """Fit the model of a symbol to days of the full market."""
    listing, instrument = profile.listing(symbol), BUILT_IN[symbol]
    quotes = touch.fit([day.touch for day in days])
    arrival = float(quotes.arrival_s[0])
    inputs, stirred, parts = [], [], []
    inside = slice(MARGIN_S, SECONDS - MARGIN_S)
    for day in days:
        columns = np.empty((SECONDS, len(touch.COLUMNS)))
        bid, ask = day.touch.bid, day.touch.ask
        coin = np.zeros(SECONDS)
        touch.columns(bid, ask - bid, instrument.tick_size, arrival, 1.0, coin, columns)
        # Only the bars know which reversals came within 100 ms.
        columns[:, touch.COLUMNS.index("flicker")] = day.bars.column("flicker")
        targets = touch.targets(quotes, day.touch)
        day_inputs = reduced.inputs(
            listing, day.hidden, bid + ask, targets, columns, instrument.tick_size, arrival
        )
        inputs.append(day_inputs[inside])
        stirred.append(reduced.stirs(listing, columns)[inside])
        parts.append(decompose(day.bars.values[inside]))
    all_inputs = np.concatenate(inputs)
    centre, width = all_inputs.mean(axis=0), all_inputs.std(axis=0)
    centre[width < 1e-9] = 0.0
    width[width < 1e-9] = 1.0
    scale = np.stack([centre, width])
    levels = np.linspace(-_REACH, _REACH, _KNOTS)
    values, scores = _normal_scores(parts, levels)
    weights, errors = _regressed([(each - centre) / width for each in inputs], stirred, scores)
    knots = np.repeat(levels[None], len(NAMES), axis=0)
    model = ReducedModel(quotes, scale, weights, errors, knots, values, np.array([0.0]))
    # Scores drawn with a touch of the model's own are not quite normal: move the knots to their
    # quantiles.
    flickers, drawn = [], []
    for place, day in enumerate(days):
        rng = generator(900_000 + place, symbol, "", "calibration")
        own = quotes._replace(flicker=np.array([1.0]))
        columns, own_inputs = reduced.draw_touch(
            own, listing, day.hidden, instrument.tick_size, rng
        )
        flickers.append(columns[inside, touch.COLUMNS.index("flicker")].mean())
        own_stirred = reduced.stirs(listing, columns)
        drawn.append(
            reduced.draw(model._replace(values=knots), own_inputs, own_stirred, rng)[inside]
        )
    wanted = np.mean([day.bars.column("flicker")[inside].mean() for day in days])
    share = min(1.0, float(wanted / max(np.mean(flickers), 1e-9)))
    moved = np.quantile(np.concatenate(drawn), _shares(levels), axis=0).T + levels * 1e-9
    return model._replace(
        touch=quotes._replace(flicker=np.array([share])),
        scores=np.maximum.accumulate(moved, axis=1),
        stick=np.array([_stick(days)]),
    )


def _shares(levels: Floats) -> Floats:
    return np.asarray(ndtr(levels), np.float64)


def _normal_scores(parts: Sequence[Floats], levels: Floats) -> tuple[Floats, list[Floats]]:
    """Values at the knots (K, Q), and each day's normal scores by rank; ties are broken at random.

    A second without a quantity takes the score of the last one that had it.
    """
    together = np.concatenate(parts)
    chance = np.random.default_rng(20260105).random(len(together))
    finer = {P[f"{taker}_n"]: P[f"{taker}_qty"] for taker in TAKERS}
    out = np.zeros_like(together)
    values = np.zeros((together.shape[1], len(levels)))
    shares = _shares(levels)
    for k in range(together.shape[1]):
        column = together[:, k]
        known = np.flatnonzero(~np.isnan(column))
        if len(known) == 0:
            continue
        # Equal counts of trades are ordered by quantity, other ties at random, and by the same draw
        # for every quantity: a second without trades lacks everything that comes with trades.
        second = together[known, finer[k]] if k in finer else np.zeros(len(known))
        order = np.lexsort((chance[known], second, column[known]))
        ranks = np.empty(len(known))
        ranks[order] = np.arange(len(known))
        out[known, k] = ndtri((ranks + 0.5) / len(known))
        latest = np.zeros(len(column), np.int64)
        latest[known] = known
        out[:, k] = out[np.maximum.accumulate(latest), k]
        # Interpolated quantiles would invent values between tied ones.
        values[k] = np.quantile(column[known], shares, method="inverted_cdf")
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return values, [np.asarray(part) for part in np.split(out, ends)]


def _regressed(
    given: Sequence[Floats], stirred: Sequence[Integers], scores: Sequence[Floats]
) -> tuple[Floats, Floats]:
    """Ridge regression of the linear laws, one for each of `reduced.stirs`: weights and errors."""
    k = len(NAMES)
    laws = 1 + len(STIRS)
    size = given[0].shape[1] + (1 + len(MEMORY_S)) * k
    grams, counts = np.zeros((laws, size + k, size + k)), np.zeros(laws)
    for inputs, places, own in zip(given, stirred, scores, strict=True):
        means = [_means(own, half_life) for half_life in MEMORY_S]
        rows = np.concatenate([inputs[1:], own[:-1], *(m[:-1] for m in means), own[1:]], axis=1)
        for place in range(laws):
            chosen = rows[places[1:] == place]
            grams[place] += chosen.T @ chosen
            counts[place] += len(chosen)
    weights, errors = np.zeros((laws, size, k)), np.zeros((laws, k, k))
    for place, (gram, count) in enumerate(zip(grams, counts, strict=True)):
        normal, cross = gram[:size, :size] + _RIDGE * count * np.eye(size), gram[:size, size:]
        solved = np.linalg.solve(normal, cross)
        residual = gram[size:, size:] - solved.T @ cross - cross.T @ solved
        residual += solved.T @ gram[:size, :size] @ solved
        weights[place] = solved
        errors[place] = np.linalg.cholesky(residual / count + 1e-8 * np.eye(k))
    return weights, errors


def _means(scores: Floats, half_life_s: float) -> Floats:
    """Exponential means of each column, each second included."""
    keep = 0.5 ** (1 / half_life_s)
    return np.asarray(lfilter([1 - keep], [1, -keep], scores, axis=0))


def _stick(days: Sequence[FullDay]) -> float:
    """Persistence of trade sides by which the mean run length at closes is that of the bars; bisected."""
    bars = days[0].bars.values[MARGIN_S : SECONDS - MARGIN_S].copy()
    both = (bars[:, C.buy_n] > 0) & (bars[:, C.sell_n] > 0)
    wanted = float(np.abs(bars[both, C.run_length]).mean())
    order = np.random.default_rng(1).random((len(bars), 64))
    age = np.full(len(bars), 0.1)
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = 0.5 * (low + high)
        trades(bars, age, age, order, middle)
        if float(np.abs(bars[both, C.run_length]).mean()) < wanted:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def stored(model: ReducedModel, key: str) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """The arrays of a model under their names in the file, in half the width."""
    for name, array in model.touch._asdict().items():
        yield f"{key}/touch.{name}", array if array.dtype.kind == "i" else array.astype(np.float32)
    for name, array in model._asdict().items():
        if name != "touch":
            # Knots of ties lie closer than half the width can tell apart.
            yield f"{key}/{name}", array if name == "scores" else array.astype(np.float32)


def fitted_arrays(name: str, symbol: str) -> dict[str, npt.NDArray[np.generic]]:
    """The fitted model of a named profile's symbol, as arrays of the file."""
    market = profile(name)
    days = [full_day(market, seed, symbol, day) for seed, day in CALIBRATION]
    return dict(stored(fit(market, symbol, days), reduced.book_key(market, symbol)))


def write_fit(names: Sequence[str]) -> None:
    """Fit the symbols of named profiles and write `reduced.FILE`.

    On one kind of processor the file is the same byte for byte: linear algebra over several threads
    would depend on their number, so each model is fitted in a process with one.
    """
    tasks = [(name, listing.symbol) for name in names for listing in profile(name).listings]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        fitted = [pool.submit(fitted_arrays, *task) for task in tasks]
        for (name, symbol), model in zip(tasks, fitted, strict=True):
            arrays |= model.result()
            print(f"{name} {symbol}: fitted to {len(CALIBRATION)} days", file=sys.stderr)
    temporary = FILE.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(temporary, **dict(sorted(arrays.items())))  # type: ignore[arg-type]
    os.replace(temporary, FILE)


# -- comparison ------------------------------------------------------------------------------------

#: Lags of the autocorrelations (s).
LAGS_S: Final = (1, 10, 60)
#: Prices are compared by their distance from the closing mid, and the mid by its returns.
_PRICES: Final = (
    "mid_open", "mid_high", "mid_low", "mid_twap", "micro_close", "vamp_close", "vwap", "last_price",
    "mark", "index_price",
)  # fmt: skip
#: Seconds between samples of the distance, which should be nearly independent.
_APART_S: Final = 7


class ColumnComparison(msgspec.Struct, frozen=True):
    """One column in both; pairs are the engine's, the reduced form's."""

    name: str
    distance: float  #: Kolmogorov-Smirnov
    means: tuple[float, float]
    deviations: tuple[float, float]
    missing: tuple[float, float]  #: share of NULLs
    memory: tuple[tuple[float, float], ...]  #: autocorrelation at LAGS_S


class FeatureCorrelation(msgspec.Struct, frozen=True):
    """Correlation of a feature with the alpha in both."""

    name: str
    correlations: tuple[float, float]


class Likeness(msgspec.Struct, frozen=True):
    """The comparison of one symbol's day."""

    columns: tuple[ColumnComparison, ...]
    features: tuple[FeatureCorrelation, ...]
    #: Mean and 99th percentile of the differences of rank correlations over pairs of columns.
    correlation_gap: tuple[float, float]


def compared(full: Bars, own: Bars, hidden: Drivers, margin: int = MARGIN_S) -> Likeness:
    """Compare bars of the same seconds; ``margin`` seconds at either end are left out."""
    n = len(full)
    inside = slice(margin, n - margin)
    series = [_series(bars.values[:n], inside) for bars in (full, own)]
    columns = tuple(_column(name, series[0][name], series[1][name]) for name in series[0])
    alpha = hidden.x[PER_SECOND * np.arange(1, n + 1)][inside]
    features = [_features(bars.values[:n]) for bars in (full, own)]
    correlations = tuple(
        FeatureCorrelation(
            name,
            (
                _correlation(features[0][name][inside], alpha),
                _correlation(features[1][name][inside], alpha),
            ),
        )
        for name in features[0]
    )
    return Likeness(columns, correlations, _correlation_gap(series[0], series[1]))


def _series(values: Floats, inside: slice) -> dict[str, Floats]:
    """Every column as it is compared."""
    mid = values[:, C.mid_close]
    out = {}
    for place, name in enumerate(COLUMNS):
        column = values[:, place]
        if name in _PRICES:
            column = np.log(column / mid) * BPS
        elif name == "mid_close":
            column = np.diff(np.log(mid), prepend=np.nan) * BPS
        out[name] = column[inside]
    return out


def _column(name: str, full: Floats, own: Floats) -> ColumnComparison:
    known = [part[~np.isnan(part)] for part in (full, own)]
    empty = min(len(part) for part in known) == 0
    return ColumnComparison(
        name=name,
        distance=float("nan") if empty else _distance(known[0], known[1]),
        means=(_mean(known[0]), _mean(known[1])),
        deviations=(float(np.std(known[0])), float(np.std(known[1]))),
        missing=(float(np.isnan(full).mean()), float(np.isnan(own).mean())),
        memory=tuple((_autocorrelation(full, lag), _autocorrelation(own, lag)) for lag in LAGS_S),
    )


def _distance(full: Floats, own: Floats) -> float:
    # Values that differ by rounding alone are one value.
    scale = float(np.max(np.abs(full))) or 1.0
    grid = [np.round(part[::_APART_S] / scale, 9) for part in (full, own)]
    return float(ks_2samp(*grid, method="asymp").statistic)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _autocorrelation(values: Floats, lag: int) -> float:
    apart = np.nan_to_num(values - _mean(values[~np.isnan(values)]))
    square = float(apart @ apart)
    return float(apart[lag:] @ apart[:-lag]) / square if square > 0 else 0.0


def _correlation(a: Floats, b: Floats) -> float:
    known = ~np.isnan(a)
    return float(np.corrcoef(a[known], b[known])[0, 1])


def _correlation_gap(full: dict[str, Floats], own: dict[str, Floats]) -> tuple[float, float]:
    # Tickers are the engine's own in both.
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
    """Some features that follow the alpha, as `market.features.definitions` defines them."""

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


def comparison_table(likeness: Likeness) -> str:
    """The comparison in plain text."""
    lines = [
        f"{'column':18}{'distance':>9}{'mean':>14}{'reduced':>14}{'memory at 1, 10, 60 s':>34}"
    ]
    for column in likeness.columns:
        memory = "  ".join(f"{a:+.2f}/{b:+.2f}" for a, b in column.memory)
        lines.append(
            f"{column.name:18}{column.distance:9.3f}{column.means[0]:14.5g}{column.means[1]:14.5g}"
            f"   {memory}"
        )
    lines.append("")
    lines.append(f"{'feature':24}{'correlation with the alpha':>28}{'reduced':>10}")
    lines += [
        f"{each.name:24}{each.correlations[0]:28.3f}{each.correlations[1]:10.3f}"
        for each in likeness.features
    ]
    mean, high = likeness.correlation_gap
    lines.append(f"rank correlations of columns differ by {mean:.3f} in the mean, {high:.3f} at most "
                 "in 99 % of pairs")  # fmt: skip
    return "\n".join(lines)


def print_comparison(name: str, seed: int, day: str) -> None:
    """Compare one day of each symbol of a profile."""
    for listing in profile(name).listings:
        full = full_day(profile(name), seed, listing.symbol, day)
        own = reduced.bars(profile(name), seed, listing.symbol, day)
        likeness = compared(full.bars, own, full.hidden)
        print(f"\n{listing.symbol}\n{comparison_table(likeness)}")


def main(arguments: Sequence[str]) -> int:
    """``fit PROFILE…`` or ``compare PROFILE SEED DAY``."""
    match arguments:
        case ["fit", *names] if names:
            write_fit(names)
        case ["compare", name, seed, day]:
            print_comparison(name, int(seed), day)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
