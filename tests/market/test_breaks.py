"""Breaks: the same NULLs and warm rows in both engines, and exactly where too many seconds lack."""

from __future__ import annotations

import numpy as np
import pytest
from feature_bars import NAMES
from test_features import MIDNIGHT, SYMBOLS, assert_parity, two_symbols

from market.features import feature_names
from market.units import DAY_NS, SECOND_NS, utc_date

START, N = MIDNIGHT - 1600, 2950
GAP = NAMES.index("gap")

#: Break -> seconds from the start that do not exist. Second 1600 is the last before midnight.
BREAKS = {
    "none": [],
    "of 1 s": [1300],
    "of 2 s": [1300, 1301],
    "of 30 s": range(1300, 1330),
    "of 59 s": range(1300, 1359),
    "of 61 s": range(1300, 1361),
    "of 10 min": range(1300, 1900),
    "every other second": range(1300, 1700, 2),
    "every fourth second": range(800, 2000, 4),
    "every fifth second": range(800, 2000, 5),
    "over midnight": range(1585, 1615),
    "at the start": range(40),
    "two within a minute": [*range(1300, 1312), *range(1330, 1342)],
    "at the end": range(2850, 2950),
}
#: Feature -> spans that it needs of its own seconds, spans of both symbols', lags.
SPANS = {
    "ofi_15": ([15], [], []),
    "queue_60": ([60], [], []),
    "imbalance_10_z_300": ([300], [], []),
    "vol_ratio_60_900": ([60, 900], [], []),
    "kyle_900": ([900], [], []),
    "realised_vol_300": ([300], [], []),
    "realised_vol_3600": ([3600], [], []),
    "range_300": ([300], [], []),
    "bounce_300": ([300], [], []),
    "hawkes_tilt_10_now": ([10], [], []),
    "hawkes_tilt_100_now": ([100], [], []),
    "vpin_volume_rel_900": ([100, 900], [], []),
    "lead_ofi_60": ([], [60], []),
    "lead_corr_900": ([], [900], []),
    "lead_vol_ratio_300": ([300], [300], []),
    "queue_now": ([], [], []),
    "return_60": ([], [], [60]),
    "premium_turn_60": ([], [], [60]),
}


def broken(how, breaks, symbols=SYMBOLS):
    """Each break around a midnight of its own, two days apart: (bars of both symbols, the dates)."""
    parts = {symbol: [] for symbol in SYMBOLS}
    dates = []
    for n, seconds in enumerate(breaks):
        start = START + n * 2 * 86_400
        dates += [utc_date(start * SECOND_NS), utc_date(start * SECOND_NS + DAY_NS)]
        for symbol, (t, bars) in two_symbols(20, start, N).items():
            hit = np.isin(t - start, list(seconds)) & (symbol in symbols)
            if how == "a gap":
                bars[hit, GAP] = np.where(t[hit] % 3 == 0, np.nan, 1.0)
                hit[:] = False
            parts[symbol].append((t[~hit], bars[~hit]))
    data = {
        symbol: tuple(map(np.concatenate, zip(*found, strict=True)))
        for symbol, found in parts.items()
    }
    return data, dates


def existing(t, bars, start):
    """Whether each of the ``N`` seconds exists."""
    found = np.zeros(N, bool)
    here = (t >= start) & (t < start + N) & (bars[:, GAP] == 0)
    found[t[here] - start] = True
    return found


def covered(exists, w):
    total = np.concatenate([[0], np.cumsum(exists)])
    first = np.maximum(np.arange(N) + 1 - w, 0)
    return total[1:] - total[first] >= 0.8 * w


@pytest.mark.parametrize("how", ["no bar", "a gap"])
def test_null_exactly_where_too_many_seconds_lack(how):
    data, dates = broken(how, BREAKS.values())
    values, warm = assert_parity(data, dates)
    seconds = np.concatenate([data[symbol][0] for symbol in SYMBOLS])
    of_symbol = np.concatenate([[symbol] * len(data[symbol][0]) for symbol in SYMBOLS])
    for n, name in enumerate(BREAKS):
        start = START + n * 2 * 86_400
        exists = {symbol: existing(*data[symbol], start) for symbol in SYMBOLS}
        both = exists["BTCUSDT"] & exists["ETHUSDT"]
        for symbol in SYMBOLS:
            mine = (of_symbol == symbol) & (seconds >= start) & (seconds < start + N)
            at, own = seconds[mine] - start, exists[symbol]
            for feature, (alone, together, lags) in SPANS.items():
                want = own & np.logical_and.reduce(
                    [covered(own, w) for w in alone]
                    + [covered(both, w) for w in together]
                    + [np.append(np.zeros(s, bool), own[: N - s]) for s in [0, *lags]]
                )
                got = ~np.isnan(values[mine, feature_names().index(feature)])
                assert got.tolist() == want[at].tolist(), (name, feature, symbol)
            ready = own & np.logical_and.reduce([covered(own, w) for w in (15, 60, 300, 900)])
            assert np.array(warm)[mine].tolist() == ready[at].tolist(), (name, symbol)
            if name == "of 30 s":
                assert ready[1299]
                assert ready[1330 + 47 :].all(), "warm within a minute of its end"


def test_a_break_of_the_leader_voids_only_what_reads_the_leader():
    (data, dates), (whole, _) = (
        broken("a gap", [range(1300, 1500)], symbols) for symbols in (["ETHUSDT"], [])
    )
    values, warm = assert_parity(data, dates)
    others, ready = assert_parity(whole, dates)
    rows = len(data["BTCUSDT"][0])
    assert warm[:rows] == ready[:rows]
    changed = ~((values == others) | (np.isnan(values) & np.isnan(others)))[:rows].all(axis=0)
    assert {name for name, off in zip(feature_names(), changed, strict=True) if off} == {
        name for name in feature_names() if name.startswith("lead_")
    }
