"""What was planted in a symbol's day: ground-truth tables beside the data, and never in it.

    truth     per second: the alpha, the best filter's alpha, efficient price, the market's state
    planted   the log: regimes, jumps and changes, each at its instant
    decoys    per second: features of noise, features that work in sample only, and one with leakage

The first two are for judges. Decoys test feature selection: they join the bars on ``t_ns``.

    python -m proving.synthetic.tables

writes docs/profiles.md: every parameter of a market, the named profiles, and these tables.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

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
from proving.synthetic.profiles import (
    HOLDERS,
    PROFILES,
    STEP_S,
    Listing,
    Profile,
    instant_ns,
    parameters,
)

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
    found = latent.filtered_alphas(profile, seed, day)[symbol]
    at = slice(PER_SECOND, None, PER_SECOND)
    # The filter has seen the frames that bar t holds, and they end before t.
    seen = slice(PER_SECOND - 1, -1, PER_SECOND)
    columns = (
        seconds_of(day),
        hidden.alpha[at],
        found[seen],
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


def write_truth(lake: Lake, profile: Profile, seed: int, symbol: str, day: str) -> str:
    """Write truth, log and decoys of a symbol-day; returns the truth's path."""
    if lake.source != "synthetic":
        raise LakeError(
            f"{lake.uri}: holds {lake.source} data; synthetic data needs a root of its own"
        )
    made_from = fingerprint(profile, seed, symbol, day)
    notes = {"profile": profile.name, "seed": seed}
    lake.write("planted", symbol, day, planted_log(profile, seed, symbol, day), made_from, notes)
    lake.write("decoys", symbol, day, decoys(profile, seed, symbol, day), made_from, notes)
    return lake.write("truth", symbol, day, truth(profile, seed, symbol, day), made_from, notes)


def _place(profile: Profile, symbol: str) -> int:
    return [listing.symbol for listing in profile.listings].index(symbol)


# -- docs/profiles.md -------------------------------------------------------------------------------

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "profiles.md"
_HEAD: Final = """\
# Parameters of the synthetic market

Written by `make generate` from `proving/synthetic/profiles.py` and `proving/synthetic/profiles.toml`; what it all means is in
[synthetic.md](synthetic.md). *Recorded* are figures of the recordings that calibration used, *choice* is
what nobody can record. `l2 synth --profile NAME` and the setting `synthetic.profile` take these names.
"""


def page() -> str:
    """The text of docs/profiles.md."""
    lines = [_HEAD, "## Named profiles", "", "| name | what it is | differs in |", "|---|---|---|"]
    default = msgspec.to_builtins(PROFILES["default"])
    for name, profile in PROFILES.items():
        own = msgspec.to_builtins(profile)
        changed = ", ".join(
            f"`{key}`" + ("" if key in HOLDERS else f" {_text(value)}")
            for key, value in own.items()
            if value != default[key] and key not in ("name", "about")
        )
        lines.append(f"| `{name}` | {profile.about} | {changed} |")
    lines += ["", "## Of the market", *_parameter_table(Profile, default)]
    listings = {
        listing.symbol: msgspec.to_builtins(listing) for listing in PROFILES["default"].listings
    }
    lines += [
        "",
        "## Of a listing",
        *_parameter_table(Listing, *listings.values(), names=tuple(listings)),
    ]
    for kind in HOLDERS.values():
        if kind is not Listing:
            lines += ["", f"## Of a {kind.__name__.lower()}", *_parameter_table(kind)]
    lines += ["", "## The table of truth", "", "| column | unit | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {unit} | {said} |" for name, (_, unit, said) in TRUTH_COLUMNS.items()]
    lines += [
        "",
        "## The decoys",
        "",
        f"`noise_1` to `noise_{len(NOISE_HALF_LIVES_S)}`: noise with half-lives of "
        f"{', '.join(map(str, NOISE_HALF_LIVES_S))} s (0: white), those of even number cubed.",
    ]
    lines += [
        f"`{name}`: correlation {correlation:g} with the return to come over {horizon_s} s"
        + (", always." if name == "leaky" else ", until `in_sample_until` and none afterwards.")
        for name, (horizon_s, correlation) in FORETELLING.items()
    ]
    return "\n".join(lines) + "\n"


def _parameter_table(
    kind: Any, *values: dict[str, Any], names: tuple[str, ...] = ("default",)
) -> Iterator[str]:
    columns = names if values else ()
    yield ""
    yield "| parameter | meaning (unit), source |" + "".join(f" {name} |" for name in columns)
    yield "|---|---|" + "---|" * len(columns)
    for name, said in parameters(kind):
        cells = "".join(f" {'' if name in HOLDERS else _text(v[name])} |" for v in values)
        yield f"| `{name}` | {said} |{cells}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page())
