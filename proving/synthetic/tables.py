"""What was planted in a symbol's day: ground-truth tables beside the data, and never in it.

    truth     per second: the alpha, the best filter's alpha, efficient price, the market's state
    planted   the log: regimes, jumps and changes, each at its instant
    decoys    per second: features of noise, features that work in sample only, and one with leakage

The first two are for judges. Decoys test feature selection: they join the bars on ``t_ns``.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market.lake import Lake, LakeError
from market.provenance import Table, closure_hash
from market.units import SECOND_NS, day_start_ns
from proving.synthetic import latent
from proving.synthetic.latent import FRAMES, PER_SECOND, SECONDS, Drivers, generator
from proving.synthetic.planted import alpha_sd, best_filter, closed_form_ic, level
from proving.synthetic.profiles import STEP_S, Profile, instant_ns

TABLES: Final = (
    Table("truth", version=2),
    Table("planted", version=1),
    Table("decoys", version=1),
)

_FRAME_NS: Final = round(STEP_S * SECOND_NS)

#: Truth column -> (type, unit, meaning).
TRUTH_COLUMNS: Final[dict[str, tuple[pa.DataType, str, str]]] = {
    "t_ns": (pa.int64(), "ns", "end of the second, as in bars"),
    "alpha": (pa.float64(), "bp/s", "drift of the efficient price at t"),
    "filtered_alpha": (
        pa.float64(),
        "bp/s",
        "the best that can be known of it from all flow, quotes and prices up to t",
    ),
    "x": (pa.float64(), "sd", "the planted process before regime and schedule"),
    "strength": (pa.float64(), "1", "multiplier of alpha by regime and schedule"),
    "score": (pa.float64(), "sd", "what flow and quotes follow: x and noise flow"),
    "efficient_price": (pa.float64(), "quote", "price that quotes follow, at t"),
    "volatility": (pa.float64(), "1", "multiplier of the listing's sigma"),
    "depth": (pa.float64(), "1", "multiplier of displayed quantities"),
    "intensity": (pa.float64(), "1", "multiplier of arrival rates by regime"),
    "regime": (pa.int64(), "index", "place in the profile's regimes"),
}

TRUTH_SCHEMA: Final = pa.schema(
    [pa.field(name, kind, nullable=False) for name, (kind, _, _) in TRUTH_COLUMNS.items()]
)

LOG_SCHEMA: Final = pa.schema(
    [
        pa.field("t_ns", pa.int64(), nullable=False),
        pa.field("what", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
    ]
)

#: Half-lives of the noise decoys (s); zero is white noise. Those of odd places are cubed: heavy tails.
NOISE_HALF_LIVES_S: Final = (0, 0, 0, 0, 1, 2, 3, 5, 10, 15, 20, 30, 60, 90, 120, 300, 600, 900,
                             1800, 3600)  # fmt: skip
#: Decoy -> (horizon of the return it is made of in s, their correlation).
FORETELLING: Final = {
    "in_sample_1": (60, 0.15),
    "in_sample_2": (300, 0.15),
    "leaky": (60, 0.5),
}

DECOY_SCHEMA: Final = pa.schema(
    [pa.field("t_ns", pa.int64(), nullable=False)]
    + [
        pa.field(name, pa.float64(), nullable=False)
        for name in (*(f"noise_{n + 1}" for n in range(len(NOISE_HALF_LIVES_S))), *FORETELLING)
    ]
)


def seconds_of(day: str) -> npt.NDArray[np.int64]:
    """Ends of the day's seconds, (SECONDS,) epoch ns: the axis of bars."""
    return np.asarray(day_start_ns(day) + np.arange(1, SECONDS + 1) * SECOND_NS)


def truth(profile: Profile, seed: int, symbol: str, day: str) -> pa.Table:
    """Ground truth per second of the day, on the bars' time axis (`TRUTH_COLUMNS`)."""
    hidden = latent.drivers(profile, seed, symbol, day)
    filtered = latent.filtered_alphas(profile, seed, day)[symbol]
    at = slice(PER_SECOND, None, PER_SECOND)
    # The filter has at_seconds the frames that bar t holds, and they end before t.
    at_seconds = slice(PER_SECOND - 1, -1, PER_SECOND)
    columns = (
        seconds_of(day),
        hidden.alpha[at],
        filtered[at_seconds],
        hidden.x[at],
        hidden.strength[at],
        hidden.score[at],
        np.exp(hidden.log_price[at]),
        hidden.volatility[at],
        hidden.depth[at],
        hidden.intensity[at],
        hidden.regime[at],
    )
    return pa.table([pa.array(column) for column in columns], schema=TRUTH_SCHEMA)


def planted_log(profile: Profile, seed: int, symbol: str, day: str) -> pa.Table:
    """The log: parameters and states at midnight, then every change in order of time."""
    hidden = latent.drivers(profile, seed, symbol, day)
    midnight = day_start_ns(day)
    opening = [
        ("profile", float(seed), f"profile {profile.name}, seed in value"),
        ("alpha_sd", alpha_sd(profile, symbol), "bp/s where regime and schedule are 1"),
        (
            "ic",
            closed_form_ic(profile, profile.ic_horizon_s),
            f"of the alpha with the return over {profile.ic_horizon_s:g} s, schedule at 1",
        ),
        (
            "filterable",
            best_filter(profile).correlation[_place(profile, symbol)],
            "correlation of the best filter with the alpha",
        ),
    ]
    opening += [
        (what, float(level(profile.changes, what, np.array([midnight]))[0]), "at midnight")
        for what in sorted({change.what for change in profile.changes} - {"fee"})
    ]
    rows = [(midnight, *row) for row in opening]
    switches = np.flatnonzero(np.diff(hidden.regime, prepend=-1)[:FRAMES])
    for j in switches:
        regime = profile.regimes[hidden.regime[j]]
        note = (
            f"{regime.name}: volatility {regime.volatility:g}, depth {regime.depth:g}, "
            f"intensity {regime.intensity:g}, alpha {regime.alpha:g}"
        )
        rows.append((midnight + int(j) * _FRAME_NS, "regime", float(hidden.regime[j]), note))
    note = "bps, of the own efficient price"
    rows.extend(
        (midnight + int(j) * _FRAME_NS, "jump", hidden.jumps[j] * 1e4, note)
        for j in np.flatnonzero(hidden.jumps)
    )
    for change in profile.changes:
        starts = instant_ns(change.starts)
        if midnight <= starts < midnight + SECONDS * SECOND_NS:
            note = f"{change.what}: {change.shape} to value"
            if change.lasts_h:
                note += f", {change.lasts_h:g} h"
            rows.append((starts, "change", change.to, note))
    rows.sort(key=lambda row: row[0])
    columns = list(zip(*rows, strict=True))
    return pa.table([pa.array(column) for column in columns], schema=LOG_SCHEMA)


def decoys(profile: Profile, seed: int, symbol: str, day: str) -> pa.Table:
    """Features that selection must reject (`DECOY_SCHEMA`), per second on the bars' time axis.

    Twenty of noise; two correlated with the future return, from t + 1 s on, until the profile's
    ``in_sample_until`` and not afterwards; and one with leakage, correlated always. All have unit
    variance, heavy tails apart.
    """
    hidden = latent.drivers(profile, seed, symbol, day)
    t_ns = seconds_of(day)
    columns: list[npt.NDArray[np.generic]] = [t_ns]
    for place, half_life_s in enumerate(NOISE_HALF_LIVES_S):
        path = generator(seed, symbol, day, f"decoy {place}").standard_normal(SECONDS)
        if half_life_s:
            latent.smooth(path, math.exp(-math.log(2) / half_life_s))
        columns.append(path**3 / math.sqrt(15) if place % 2 else path)
    in_sample = t_ns < instant_ns(profile.in_sample_until)
    for name, (horizon_s, correlation) in FORETELLING.items():
        noise = generator(seed, symbol, day, f"decoy {name}").standard_normal(SECONDS)
        share = np.where(in_sample | (name == "leaky"), correlation, 0.0)
        future = _future_return(hidden, horizon_s)
        columns.append(share * future + np.sqrt(1 - share**2) * noise)
    return pa.table([pa.array(column) for column in columns], schema=DECOY_SCHEMA)


def _future_return(hidden: Drivers, horizon_s: int) -> npt.NDArray[np.float64]:
    """Standardised return of the efficient price from t + 1 s over the horizon, cut at midnight."""
    log = hidden.log_price[PER_SECOND::PER_SECOND]
    places = np.arange(SECONDS)
    begin = np.minimum(places + 1, SECONDS - 1)
    move = log[np.minimum(begin + horizon_s, SECONDS - 1)] - log[begin]
    return np.asarray(move / move.std())


def fingerprint(profile: Profile, seed: int, symbol: str, day: str) -> str:
    """Fingerprint of the tables of a symbol-day: profile, seed and code."""
    digest = hashlib.sha256(msgspec.json.encode((profile, seed, symbol, day)))
    digest.update(closure_hash(__name__).encode())
    return f"planted {profile.name} {seed} {digest.hexdigest()[:16]}"


def require_synthetic(lake: Lake) -> None:
    """LakeError for a lake of recorded data, which takes no synthetic data."""
    if lake.source != "synthetic":
        raise LakeError(
            f"{lake.uri}: holds {lake.source} data; synthetic data needs a root of its own"
        )


def write_truth(lake: Lake, profile: Profile, seed: int, symbol: str, day: str) -> str:
    """Write truth, log and decoys of a symbol-day; returns the truth's path."""
    require_synthetic(lake)
    made_from = fingerprint(profile, seed, symbol, day)
    notes = {"profile": profile.name, "seed": seed}
    lake.write("planted", symbol, day, planted_log(profile, seed, symbol, day), made_from, notes)
    lake.write("decoys", symbol, day, decoys(profile, seed, symbol, day), made_from, notes)
    return lake.write("truth", symbol, day, truth(profile, seed, symbol, day), made_from, notes)


def _place(profile: Profile, symbol: str) -> int:
    return [listing.symbol for listing in profile.listings].index(symbol)
