"""Whether what was planted is in the prices: the alpha's IC with the mid's return, truth in hand.

The planted alpha at t is correlated with the return of the mid from t + 1 s to t + 1 s + h, as labels
are made, over days of several seeds and all symbols of a profile, and set beside its closed form. Days
of different seeds are independent, so their scatter gives the standard error; symbols of one day are
not, and count together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.instruments import BUILT_IN
from market.units import day_start_ns
from proving.synthetic import generate, latent, reduced, touch
from proving.synthetic.latent import FRAMES, PER_SECOND, SECONDS
from proving.synthetic.planted import closed_form_ic
from proving.synthetic.profiles import Profile

Floats = npt.NDArray[np.float64]

HORIZONS_S: Final = (10, 60, 300, 900)
DELAY_S: Final = 1
DAY: Final = "2026-04-01"
#: Bounds of a study that says something: |z| and the standard error.
LARGEST_Z: Final = 3.0
LARGEST_ERROR: Final = 0.005

#: (profile, seed, symbol, day) -> log mid at each close, (SECONDS,).
Mids = Callable[[Profile, int, str, str], Floats]


class Recovered(msgspec.Struct, frozen=True):
    """One horizon of a study."""

    horizon_s: int
    planted: float  #: the closed form
    found: float  #: pooled over days and symbols
    error: float  #: standard error of ``found``
    days: int

    @property
    def z(self) -> float:
        """How many standard errors lie between found and planted."""
        return (self.found - self.planted) / self.error

    @property
    def agrees(self) -> bool:
        """Close to the closed form, and by few errors small enough to say so."""
        return abs(self.z) <= LARGEST_Z and self.error <= LARGEST_ERROR


def engine_mids(profile: Profile, seed: int, symbol: str, day: str) -> Floats:
    """Log mid at each close of a day that traded order by order."""
    watch = touch.Watch(day_start_ns(day), FRAMES)
    for chunk in generate(profile, seed, symbol, day):
        watch.push(chunk)
    bid, ask, arrival_s = watch.seen()
    return _at_closes(bid + ask, arrival_s)


def reduced_mids(profile: Profile, seed: int, symbol: str, day: str) -> Floats:
    """Log mid at each close of a day in the reduced form."""
    law = reduced.law_of(profile, symbol).touch
    hidden = latent.drivers(profile, seed, symbol, day)
    rng = latent.generator(seed, symbol, day, "reduced touch")
    bid, spread, _ = touch.follow(law, hidden, BUILT_IN[symbol].tick_size, rng)
    return _at_closes(2 * bid + spread, float(law.arrival_s[0]))


def _at_closes(mid2: npt.NDArray[np.int64], arrival_s: float) -> Floats:
    last = reduced.frames_before(np.arange(1, SECONDS + 1), arrival_s) - 1
    return np.asarray(np.log(mid2[np.minimum(last, len(mid2) - 1)]))


def day_sums(
    profile: Profile, seed: int, mids: Mids, horizons_s: Sequence[int] = HORIZONS_S
) -> Floats:
    """(horizons, 3): sums of α², r² and α·r over a seed's day and all symbols, in standard units.

    Alpha and returns have known means of zero. They are divided by the symbol's sigma, so that
    symbols weigh alike.
    """
    out = np.zeros((len(horizons_s), 3))
    for listing in profile.listings:
        log_mid = mids(profile, seed, listing.symbol, DAY)
        hidden = latent.drivers(profile, seed, listing.symbol, DAY)
        alpha = hidden.alpha[PER_SECOND::PER_SECOND] / listing.sigma_bps
        for place, horizon_s in enumerate(horizons_s):
            move = log_mid[DELAY_S + horizon_s :] - log_mid[DELAY_S:-horizon_s]
            move = move * (1e4 / listing.sigma_bps)
            then = alpha[: len(move)]
            out[place] += (then @ then, move @ move, then @ move)
    return out


def pooled(
    profile: Profile, sums: Iterable[Floats], horizons_s: Sequence[int] = HORIZONS_S
) -> list[Recovered]:
    """The study's rows from the sums of independent days; the error by the delta method."""
    days = np.stack(list(sums))
    rows = []
    for place, horizon_s in enumerate(horizons_s):
        own = days[:, place]
        alpha, move, both = own.sum(axis=0)
        found = both / math.sqrt(alpha * move)
        influence = own[:, 2] / math.sqrt(alpha * move)
        influence = influence - 0.5 * found * (own[:, 0] / alpha + own[:, 1] / move)
        error = math.sqrt(len(own) / (len(own) - 1) * float(influence @ influence))
        planted = closed_form_ic(profile, horizon_s, DELAY_S)
        rows.append(Recovered(horizon_s, planted, float(found), error, len(own)))
    return rows
