"""Market impact of injected metaorders in a synthetic market.

Two markets of one seed differ by our orders alone, so the difference of their mids is our impact: no
drift has to be averaged away, and a few dozen metaorders suffice where a recording would need
thousands. A metaorder is worked in equal market orders at equal intervals; sides alternate, and a pause
between two lets the impact of the first decay.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np

from market.units import BPS, SECOND_NS
from proving.realism.stylised import Floats, power_exponent
from proving.synthetic.marketplace import SyntheticMarket
from proving.synthetic.profiles import Profile

DURATION_S: Final = 60  #: of a metaorder
CHILDREN: Final = 30
PAUSE_S: Final = 840  #: after it, before the next
RETAINED_AFTER: Final = 5  #: durations after the end at which the rest of the impact is read
#: Quantities, as shares of the mean traded volume over the duration.
SHARES: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
#: Times since the beginning at which impact is read (s).
READ_S: Final = tuple(range(0, DURATION_S * (RETAINED_AFTER + 1) + 1, 10))


class Impact(msgspec.Struct, frozen=True, kw_only=True):
    """Impact of the metaorders of one size in one market, bps, positive in their direction.

    ``path`` has shape (metaorders, len(READ_S)): the mid less that of the market without them, relative
    to just before each began. ``share`` is one of `SHARES`.
    """

    share: float
    path: Floats

    @property
    def at_end(self) -> Floats:
        """Impact at the end of each metaorder."""
        return np.asarray(self.path[:, READ_S.index(DURATION_S)])

    @property
    def retained(self) -> Floats:
        """Impact that is left `RETAINED_AFTER` durations later."""
        return np.asarray(self.path[:, -1])


def mids(profile: Profile, seed: int, symbol: str, day: str, hours: float, share: float) -> Floats:
    """Log mid by second of a market in which metaorders of this size trade; 0 for none."""
    listing = profile.listing(symbol)
    market = SyntheticMarket(profile, seed, symbol, day)
    lots = share * listing.orders_per_s * listing.order_qty * DURATION_S
    child = max(1, round(lots / CHILDREN / market.instrument.lot_size)) if share > 0 else 0
    period = DURATION_S + PAUSE_S
    out = np.empty(round(hours * 3600))
    for second in range(len(out)):
        market.advance(market.midnight_ns + second * SECOND_NS)
        bid, ask = market.best(1), market.best(-1)
        out[second] = math.log(0.5 * (bid + ask)) if bid and ask else math.nan
        number, since = divmod(second - PAUSE_S // 2, period)
        # The first second of a metaorder reads the mid before it trades.
        if child and 0 <= since < DURATION_S and since % (DURATION_S // CHILDREN) == 0:
            market.take(1 if number % 2 == 0 else -1, child)
    return out


def impact(share: float, with_them: Floats, without: Floats) -> Impact:
    """The impact in a run of `mids`, relative to the market without metaorders."""
    moved = (with_them - without) * BPS
    period = DURATION_S + PAUSE_S
    starts = np.arange(PAUSE_S // 2, len(moved) - READ_S[-1], period)
    sides = np.where(np.arange(len(starts)) % 2 == 0, 1.0, -1.0)
    path = moved[starts[:, None] + np.array(READ_S)] - moved[starts][:, None]
    return Impact(share=share, path=path * sides[:, None])


def concavity(impacts: list[Impact]) -> float:
    """δ of I ∝ Q^δ at the end of the metaorders."""
    shares = np.array([each.share for each in impacts])
    ends = np.array([float(np.nanmean(each.at_end)) for each in impacts])
    return power_exponent(shares, ends)


def retention(impacts: list[Impact]) -> float:
    """Share of the final impact that is left `RETAINED_AFTER` durations later."""
    ends = np.concatenate([each.at_end for each in impacts])
    left = np.concatenate([each.retained for each in impacts])
    return float(np.nanmean(left) / np.nanmean(ends))
