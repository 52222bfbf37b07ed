"""Bars of a synthetic market without its events: the reduced form, a model fitted to the engine's bars.

    latent day  ─►  touch by the frame (`proving.synthetic.touch`)  ─►  price and spread columns
         └────────────►  primitives by the second (`proving.synthetic.primitives`)  ─►  all other columns

Each primitive of a second is a monotone function of a normal score, tabulated from the engine's bars.
The scores follow a linear law with correlated normal errors: they depend on the latent day and the
touch of that second, on themselves a second before, and on their means over some seconds, a minute and
ten. The planted alpha acts as in the engine: by the score, the efficient price, volatility, depth and
intensity. Tickers are the engine's own.

`proving.synthetic.calibration` fits the model and writes the file read here. It holds for markets whose
book and flow have the parameters that it was fitted to; what is planted is free (`PLANTED`).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from market.bars import Bars
from market.columns import COLUMNS, C
from market.events import STEP_E8, Field
from market.instruments import BUILT_IN, Instrument
from market.kernel import compiled
from market.lake import Lake
from market.provenance import closure_hash
from market.units import day_start_ns
from proving.synthetic import latent, touch
from proving.synthetic.latent import SECONDS, Drivers, generator
from proving.synthetic.primitives import NAMES, P, compose, trades
from proving.synthetic.profiles import Listing, Profile, ProfileError
from proving.synthetic.tables import require_synthetic

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FILE: Final = Path(__file__).with_suffix(".npz")
#: Parameters of a profile that a fitted model lets vary: what is planted, and volatility.
PLANTED: Final = (
    "name", "about", "ic", "ic_horizon_s", "half_life_s", "filterable", "noise_half_life_s",
    "regimes", "regime_stay_s", "changes", "in_sample_until", "vol_log_sd", "vol_half_life_s",
    "slow_vol_log_sd", "slow_vol_half_life_s", "jump_share", "jumps_per_day", "season",
)  # fmt: skip

#: Half-lives of the means of past scores that enter the law (s).
MEMORY_S: Final = (5.0, 60.0, 600.0)
#: A second's law depends on how far quotes moved in it: realised volatility of the mid in standard
#: deviations of the efficient price. A book hardly changes until quotes move.
STIRS: Final = (0.0, 0.7)
_KEEP: Final = tuple(0.5 ** (1 / h) for h in MEMORY_S)
#: Warm-up before midnight, in which the scores reach their law (s).
_WARM_UP_S: Final = 600
_LARGEST_SCORE: Final = 6.0


class ReducedModel(NamedTuple):
    """The fit of one symbol. K primitives, E inputs, M memories, Q knots, S stirs."""

    touch: touch.TouchModel
    inputs: Floats  #: (2, E) mean and standard deviation of the inputs
    weights: Floats  #: (S, E + K + M·K, K) of inputs, of the scores before, of their means
    errors: Floats  #: (S, K, K) lower triangle: errors from independent ones
    scores: Floats  #: (K, Q) normal scores at the knots
    values: Floats  #: (K, Q) primitives at the knots
    stick: Floats  #: (1,) see `primitives.trades`


def book_key(profile: Profile, symbol: str) -> str:
    """Key of a fit: the symbol and all parameters but the planted ones."""
    kept = {k: v for k, v in msgspec.to_builtins(profile).items() if k not in PLANTED}
    digest = hashlib.sha256(msgspec.json.encode(kept)).hexdigest()[:12]
    return f"{symbol}-{digest}"


@lru_cache(maxsize=64)
def fitted(profile: Profile, symbol: str) -> bool:
    """Whether a model is fitted to the symbol's book and flow."""
    key = book_key(profile, symbol)
    with np.load(FILE) as arrays:
        return f"{key}/weights" in arrays.files


@lru_cache(maxsize=8)
def model_of(profile: Profile, symbol: str) -> ReducedModel:
    """The fitted model of a symbol; ProfileError when none was fitted to its book and flow."""
    profile.listing(symbol)
    key = book_key(profile, symbol)
    with np.load(FILE) as file:
        arrays = {n.split("/", 1)[1]: file[n] for n in file.files if n.startswith(f"{key}/")}
    if not arrays:
        raise ProfileError(
            f"profile {profile.name}: no reduced form is fitted to its book and flow; make its bars "
            f"from events, or fit one with `python -m proving.synthetic.calibration fit {profile.name}`"
        )
    wide = {name: as_wide(array) for name, array in arrays.items()}
    fields = touch.TouchModel._fields
    quotes = touch.TouchModel(*(wide.pop(f"touch.{name}") for name in fields))
    return ReducedModel(quotes, **wide)


def as_wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A stored array in the width that kernels take."""
    return array.astype(np.int64 if array.dtype.kind == "i" else np.float64)


# -- inputs ----------------------------------------------------------------------------------------


def inputs(
    listing: Listing,
    hidden: Drivers,
    mid2: Integers,
    targets: Floats,
    columns: Floats,
    tick: float,
    arrival_s: float,
) -> Floats:
    """Inputs of the scores, (seconds, E), from the latent day and the touch.

    ``mid2`` (frames,) is twice the mid in ticks, ``targets`` those of quotes (`touch.targets`),
    ``columns`` the columns of the touch (seconds, len(touch.COLUMNS)).
    """
    seconds = len(columns)
    last = np.minimum(frames_before(np.arange(1, seconds + 1), arrival_s), len(mid2)) - 1
    unit = listing.sigma_bps * 1e-4
    score = hidden.score
    total = np.concatenate([[0.0], np.cumsum(score)])
    mean = np.diff(total[last + 1], prepend=0.0) / np.maximum(np.diff(last, prepend=-1), 1)
    slow = mean.copy()
    _average(slow, 0.5**0.1)
    log_mid = np.log(mid2)
    move = np.diff(log_mid[last], prepend=log_mid[0]) / unit
    value = np.diff(hidden.log_price[last], prepend=hidden.log_price[0]) / unit
    gap = (targets[last] - log_mid[last]) / unit
    offset = (targets[last] - hidden.log_price[last] - np.log(2 / tick)) / unit
    late = (log_mid[last] - log_mid[np.maximum(last - 3, 0)]) / unit
    column = dict(zip(touch.COLUMNS, columns.T, strict=True))
    move_before = np.concatenate([[0.0], move[:-1]])
    return np.stack(
        [
            np.ones(seconds),
            mean,
            score[last],
            np.concatenate([[0.0], mean[:-1]]),
            slow,
            np.arcsinh(value),
            np.arcsinh(move),
            np.abs(np.arcsinh(move)),
            np.arcsinh(move_before),
            np.arcsinh(late),
            np.arcsinh(gap),
            np.abs(np.arcsinh(gap)),
            np.arcsinh(offset),
            np.log(hidden.volatility[last]),
            np.log(hidden.depth[last]),
            np.log(hidden.intensity[last]),
            np.log1p(column["best_changes"]),
            np.log(column["spread_mean"]),
            np.log(column["spread_ticks"]),
            np.log1p(column["rv"] / unit**2),
            np.log1p(column["flicker"]),
            np.arcsinh(move / 0.05),
            np.log1p(column["rv_up"] / (0.05 * unit) ** 2),
            np.log1p(column["rv_down"] / (0.05 * unit) ** 2),
            np.arcsinh(move_before / 0.05),
        ],
        axis=1,
    )


def frames_before(second: npt.NDArray[Any], arrival_s: float) -> Integers:
    """Number of frames received before instants (s after midnight)."""
    return np.asarray(np.ceil((second - arrival_s) / 0.1 - 1e-9), np.int64)


def stirs(listing: Listing, columns: Floats) -> Integers:
    """Which of the laws applies to each second, by how far quotes moved: 0 for not at all."""
    unit = listing.sigma_bps * 1e-4
    moved = np.sqrt(columns[:, touch.COLUMNS.index("rv")]) / unit
    return np.asarray(np.searchsorted(STIRS, moved), np.int64)


@compiled
def _average(path: Floats, keep: float) -> None:
    """Replace a path by its exponential mean."""
    mean = 0.0
    for n in range(len(path)):
        mean += (1 - keep) * (path[n] - mean)
        path[n] = mean


# -- bars ------------------------------------------------------------------------------------------


def bars(profile: Profile, seed: int, symbol: str, day: str) -> Bars:
    """The bars of a symbol's day in the reduced form, all SECONDS of them.

    A function of its arguments and of the fitted model. ProfileError for an unknown symbol or a book
    that no model was fitted to.
    """
    model, listing = model_of(profile, symbol), profile.listing(symbol)
    instrument = BUILT_IN[symbol]
    hidden = latent.drivers(profile, seed, symbol, day)
    rng = generator(seed, symbol, day, "reduced touch")
    columns, given = draw_touch(model.touch, listing, hidden, instrument.tick_size, rng)
    parts = draw(
        model, given, stirs(listing, columns), generator(seed, symbol, day, "reduced bars")
    )
    values = np.full((SECONDS, len(COLUMNS)), np.nan)
    for place, name in enumerate(touch.COLUMNS):
        values[:, getattr(C, name)] = columns[:, place]
    compose(parts, values, instrument.lot_size)
    order = generator(seed, symbol, day, "reduced trades").random((SECONDS, 64))
    age, off = (np.ascontiguousarray(parts[:, P[name]]) for name in ("trade_age_s", "last_off"))
    trades(values, age, off, order, float(model.stick[0]))
    _tickers(values, listing, seed, day, hidden, instrument)
    # The first second has no book until its snapshot.
    values[:, C.gap] = 0.0
    values[0, C.gap] = 1.0
    t_ns = day_start_ns(day) + np.arange(1, SECONDS + 1) * 1_000_000_000
    return Bars(t_ns=t_ns, values=values)


def draw_touch(
    model: touch.TouchModel,
    listing: Listing,
    hidden: Drivers,
    tick: float,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Columns of a touch drawn for a latent day, and the inputs of its scores."""
    bid, spread, targets = touch.follow(model, hidden, tick, rng)
    arrival, flicker = float(model.arrival_s[0]), float(model.flicker[0])
    columns = np.empty((SECONDS, len(touch.COLUMNS)))
    touch.columns(bid, spread, tick, arrival, flicker, rng.random(SECONDS), columns)
    return columns, inputs(listing, hidden, 2 * bid + spread, targets, columns, tick, arrival)


def draw(model: ReducedModel, given: Floats, stirred: Integers, rng: np.random.Generator) -> Floats:
    """Draw the primitives (seconds, K) of a day with these inputs and `stirs`."""
    shocks = rng.standard_normal((_WARM_UP_S + len(given), len(NAMES)))
    scaled = (given - model.inputs[0]) / model.inputs[1]
    scaled = np.concatenate([np.repeat(scaled[:1], _WARM_UP_S, axis=0), scaled])
    stirred = np.concatenate([np.repeat(stirred[:1], _WARM_UP_S), stirred])
    errors = np.ascontiguousarray(model.errors.transpose(0, 2, 1))
    scores = _scores(scaled, stirred, shocks, model.weights, errors, np.array(_KEEP))[_WARM_UP_S:]
    parts: Floats = _mapped(scores, model.scores, model.values)
    return parts


@compiled
def _scores(
    given: Floats,
    stirred: Integers,
    shocks: Floats,
    weights: Floats,
    errors: Floats,
    keep: Floats,
) -> Floats:
    """Normal scores (n, K), second by second; sums run in one fixed order, for equal rounding."""
    n, k = shocks.shape
    out = np.empty((n, k))
    before = np.zeros(k)
    means = np.zeros((len(keep), k))
    e = given.shape[1]
    state = np.zeros(e + (1 + len(keep)) * k)
    for t in range(n):
        row, s = out[t], stirred[t]
        row[:] = 0.0
        state[:e] = given[t]
        state[e : e + k] = before
        for m in range(len(keep)):
            state[e + (m + 1) * k : e + (m + 2) * k] = means[m]
        for i in range(len(state)):
            for j in range(k):
                row[j] += state[i] * weights[s, i, j]
        for i in range(k):
            for j in range(i, k):
                row[j] += shocks[t, i] * errors[s, i, j]
        for i in range(k):
            row[i] = min(max(row[i], -_LARGEST_SCORE), _LARGEST_SCORE)
            before[i] = row[i]
            for m in range(len(keep)):
                means[m, i] += (1 - keep[m]) * (row[i] - means[m, i])
    return out


@compiled
def _mapped(scores: Floats, knots: Floats, values: Floats) -> Floats:
    """Primitives from scores, linear between knots and constant beyond the last."""
    out = np.empty_like(scores)
    n, k = scores.shape
    q = knots.shape[1]
    for t in range(n):
        for i in range(k):
            z = scores[t, i]
            above = np.searchsorted(knots[i], z)
            if above == 0:
                out[t, i] = values[i, 0]
            elif above == q:
                out[t, i] = values[i, q - 1]
            else:
                low, high = knots[i, above - 1], knots[i, above]
                share = (z - low) / (high - low)
                out[t, i] = values[i, above - 1] + share * (values[i, above] - values[i, above - 1])
    return out


def _tickers(
    values: Floats, listing: Listing, seed: int, day: str, hidden: Drivers, instrument: Instrument
) -> None:
    """Ticker columns: the engine's own values, as last known at each close."""
    midnight = day_start_ns(day)
    known = latent.reference(listing, seed, day, midnight, hidden.log_price, instrument.lot_size)
    at = np.arange(SECONDS)
    for name, series, field in (
        ("mark", known.mark, Field.MARK_PRICE),
        ("index_price", known.index_price, Field.INDEX_PRICE),
        ("funding_rate", known.funding, Field.FUNDING_RATE),
        ("open_interest", known.open_interest, Field.OPEN_INTEREST),
        ("turnover_24h", known.turnover, Field.TURNOVER_24H),
    ):
        values[:, getattr(C, name)] = series[at] * STEP_E8[field] / 1e8
    rate, age = values[:, C.funding_rate], values[:, C.ticker_age_s]
    share = np.clip(age, 0, 1)
    before = np.concatenate([rate[:1], rate[:-1]])
    values[:, C.funding_mean] = before + share * (rate - before)
    values[:, C.basis_bps] = np.log(values[:, C.mark] / values[:, C.index_price]) * 1e4
    closes_ms = midnight // 1_000_000 + (at + 1) * 1000
    values[:, C.funding_in_s] = (known.next_funding_ms[at] - closes_ms) * 1e-3


def fingerprint(profile: Profile, seed: int, symbol: str, day: str) -> str:
    """Fingerprint of a partition of reduced bars: profile, seed, code and fit."""
    digest = hashlib.sha256(msgspec.json.encode((profile, seed, symbol, day)))
    digest.update(closure_hash(__name__).encode())
    digest.update(FILE.read_bytes())
    return f"reduced {profile.name} {seed} {digest.hexdigest()[:16]}"


def write_bars(lake: Lake, profile: Profile, seed: int, symbol: str, day: str) -> int:
    """Write the `bars` partition of a symbol's day in the reduced form; returns the number of bars."""
    require_synthetic(lake)
    rows = bars(profile, seed, symbol, day).to_arrow()
    made_from = fingerprint(profile, seed, symbol, day)
    extra = {"made": "in the reduced form", "profile": profile.name, "seed": seed}
    lake.write("bars", symbol, day, rows, made_from, extra, dictionary=False)
    return int(rows.num_rows)
