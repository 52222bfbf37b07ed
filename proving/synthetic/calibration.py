"""Fits the reduced form of a synthetic market to bars of the full one.

    python -m proving.synthetic.calibration PROFILE…     fit the books of these; writes reduced.npz

The full market is made for the days below with seeds that serve nothing else. What is fitted are
tables and linear laws by counting and least squares; no figure is chosen by hand. How like the two
are, on other seeds, is `proving.synthetic.likeness`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from market.bars import BarBuilder, Bars
from market.columns import C
from market.instruments import BUILT_IN
from market.settings import Settings
from market.units import day_start_ns
from proving.synthetic import generate, latent, reduced, touch
from proving.synthetic.latent import FRAMES, SECONDS, Drivers, generator
from proving.synthetic.primitives import NAMES, TAKERS, P, decompose, trades
from proving.synthetic.profiles import Profile, profile
from proving.synthetic.reduced import FILE, MEMORY_S, STIRS, Integers, Law

Floats = npt.NDArray[np.float64]

#: Seeds and dates that calibration has for itself.
CALIBRATION: Final = ((900_001, "2026-01-05"), (900_002, "2026-01-06"))
#: Seconds at either end of a day that fitting leaves out.
_MARGIN: Final = 900
_KNOTS: Final = 161
_REACH: Final = 4.3
_RIDGE: Final = 1e-4


class FullDay(NamedTuple):
    """A day of the full market: its bars, its touch, and what was hidden."""

    bars: Bars
    touch: touch.Seen
    hidden: Drivers


def full_day(profile: Profile, seed: int, symbol: str, day: str) -> FullDay:
    """Make a symbol's day by way of its events, which are not kept."""
    instrument = BUILT_IN[symbol]
    hidden = latent.drivers(profile, seed, symbol, day)
    midnight = day_start_ns(day)
    builder = BarBuilder(instrument, Settings().market.stale_after_s)
    watch = touch.Watch(midnight, FRAMES)
    parts = []
    for chunk in generate(profile, seed, symbol, day):
        parts.append(builder.push(chunk))
        watch.push(chunk)
    parts += [builder.finish(), builder.close_until(midnight + SECONDS * 1_000_000_000)]
    made = Bars(
        t_ns=np.concatenate([part.t_ns for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )
    bid, ask, arrival = watch.seen()
    seen = touch.Seen(
        bid, ask, hidden.log_price, touch.moods(hidden), instrument.tick_size, arrival
    )
    return FullDay(made, seen, hidden)


def fit(profile: Profile, symbol: str, days: Sequence[FullDay]) -> Law:
    """The law of a symbol from days of the full market."""
    listing, instrument = profile.listing(symbol), BUILT_IN[symbol]
    quotes = touch.fit([day.touch for day in days])
    arrival = float(quotes.arrival_s[0])
    given, stirred, parts = [], [], []
    inside = slice(_MARGIN, SECONDS - _MARGIN)
    for day in days:
        seen = np.empty((SECONDS, len(touch.COLUMNS)))
        bid, ask = day.touch.bid, day.touch.ask
        coin = np.zeros(SECONDS)
        touch.columns(bid, ask - bid, instrument.tick_size, arrival, 1.0, coin, seen)
        # Which reversals came within 100 ms only the bars know.
        seen[:, touch.COLUMNS.index("flicker")] = day.bars.column("flicker")
        goals = touch.goals(quotes, day.touch)
        found = reduced.inputs(
            listing, day.hidden, bid + ask, goals, seen, instrument.tick_size, arrival
        )
        given.append(found[inside])
        stirred.append(reduced.stirs(listing, seen)[inside])
        parts.append(decompose(day.bars.values[inside]))
    all_given = np.concatenate(given)
    centre, width = all_given.mean(axis=0), all_given.std(axis=0)
    centre[width < 1e-9] = 0.0
    width[width < 1e-9] = 1.0
    scale = np.stack([centre, width])
    levels = np.linspace(-_REACH, _REACH, _KNOTS)
    values, scores = _normal_scores(parts, levels)
    weights, errors = _regressed([(g - centre) / width for g in given], stirred, scores)
    knots = np.repeat(levels[None], len(NAMES), axis=0)
    law = Law(quotes, scale, weights, errors, knots, values, np.array([0.0]))
    # What the law draws with a touch of its own is not quite normal: the knots move to where its
    # quantiles are.
    flickers, drawn = [], []
    for place, day in enumerate(days):
        rng = generator(900_000 + place, symbol, "", "calibration")
        own = quotes._replace(flicker=np.array([1.0]))
        seen, own_given = reduced.touched(own, listing, day.hidden, instrument.tick_size, rng)
        flickers.append(seen[inside, touch.COLUMNS.index("flicker")].mean())
        own_stirred = reduced.stirs(listing, seen)
        drawn.append(reduced.draw(law._replace(values=knots), own_given, own_stirred, rng)[inside])
    wanted = np.mean([day.bars.column("flicker")[inside].mean() for day in days])
    share = min(1.0, float(wanted / max(np.mean(flickers), 1e-9)))
    moved = np.quantile(np.concatenate(drawn), _shares(levels), axis=0).T + levels * 1e-9
    return law._replace(
        touch=quotes._replace(flicker=np.array([share])),
        scores=np.maximum.accumulate(moved, axis=1),
        stick=np.array([_stick(days)]),
    )


def _shares(levels: Floats) -> Floats:
    from scipy.special import ndtr

    return np.asarray(ndtr(levels), np.float64)


def _normal_scores(parts: Sequence[Floats], levels: Floats) -> tuple[Floats, list[Floats]]:
    """Values at the knots (K, Q), and each day's scores; ties are broken evenly, gaps filled.

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
        held = np.flatnonzero(~np.isnan(column))
        if len(held) == 0:
            continue
        # Equal counts of trades are told apart by what was traded, other ties by chance, and by the
        # same chance everywhere: seconds without trades are without all that comes with trades.
        second = together[held, finer[k]] if k in finer else np.zeros(len(held))
        order = np.lexsort((chance[held], second, column[held]))
        ranks = np.empty(len(held))
        ranks[order] = np.arange(len(held))
        out[held, k] = ndtri((ranks + 0.5) / len(held))
        known = np.zeros(len(column), np.int64)
        known[held] = held
        filled = np.maximum.accumulate(known)
        out[:, k] = out[filled, k]
        # A tie is one value: quantiles between neighbouring values would invent others.
        values[k] = np.quantile(column[held], shares, method="inverted_cdf")
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return values, [np.asarray(part) for part in np.split(out, ends)]


def _regressed(
    given: Sequence[Floats], stirred: Sequence[Integers], scores: Sequence[Floats]
) -> tuple[Floats, Floats]:
    """Weights and errors of the linear laws, one for each of `reduced.stirs`, by least squares."""
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
        known, cross = gram[:size, :size] + _RIDGE * count * np.eye(size), gram[:size, size:]
        found = np.linalg.solve(known, cross)
        left = gram[size:, size:] - found.T @ cross - cross.T @ found
        left += found.T @ gram[:size, :size] @ found
        weights[place] = found
        errors[place] = np.linalg.cholesky(left / count + 1e-8 * np.eye(k))
    return weights, errors


def _means(scores: Floats, half_life_s: float) -> Floats:
    """Exponential means of each column up to and with each second."""
    from scipy.signal import lfilter

    keep = 0.5 ** (1 / half_life_s)
    return np.asarray(lfilter([1 - keep], [1, -keep], scores, axis=0))


def _stick(days: Sequence[FullDay]) -> float:
    """How much trades keep their side: the mean length of runs at the close decides."""
    bars = days[0].bars.values[_MARGIN : SECONDS - _MARGIN].copy()
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


def stored(law: Law, key: str) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """The arrays of a law under their names in the file, in half the width."""
    for name, array in law.touch._asdict().items():
        yield f"{key}/touch.{name}", array if array.dtype.kind == "i" else array.astype(np.float32)
    for name, array in law._asdict().items():
        if name != "touch":
            # Knots of ties lie closer than half the width can tell apart.
            yield f"{key}/{name}", array if name == "scores" else array.astype(np.float32)


def made(name: str, symbol: str) -> dict[str, npt.NDArray[np.generic]]:
    """The fitted law of a named profile's symbol as the file holds it."""
    law = profile(name)
    days = [full_day(law, seed, symbol, day) for seed, day in CALIBRATION]
    return dict(stored(fit(law, symbol, days), reduced.book_key(law, symbol)))


def main(arguments: Sequence[str]) -> None:
    """Fit the books of named profiles and write the file.

    The file is the same byte for byte each time, on one kind of processor: sums over threads of linear
    algebra would depend on their number, so each law is fitted in a process that has one.
    """
    tasks = [(name, listing.symbol) for name in arguments for listing in profile(name).listings]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    held: dict[str, npt.NDArray[np.generic]] = {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        fitted = [pool.submit(made, *task) for task in tasks]
        for (name, symbol), law in zip(tasks, fitted, strict=True):
            held |= law.result()
            print(f"{name} {symbol}: fitted to {len(CALIBRATION)} days", file=sys.stderr)
    temporary = FILE.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(temporary, **dict(sorted(held.items())))  # type: ignore[arg-type]
    os.replace(temporary, FILE)


if __name__ == "__main__":
    main(sys.argv[1:])
