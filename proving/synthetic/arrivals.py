"""Order arrivals: a multivariate Hawkes process of six kinds of request, and counter-based random numbers.

Random numbers are Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as
1, 2, 3", 2011): a stateless function of a key, a stream and a count. The n-th request of a day thus
draws the same numbers whatever else happened, so that two markets of one seed differ by our orders
alone.

The process is exogenous: its intensities

    λ_i(t) = μ_i·m(t) + Σ_k Σ_j N_ij·w_k·β_k·S_jk(t),   S_jk(t) = Σ over past requests of kind j of e^(-β_k(t - t'))

depend on the market's activity m and the process's own past, never on the book. N is the branching
matrix: the mean number of requests of kind i that one of kind j triggers. It is simulated by thinning
(Ogata 1981) in steps over which m is constant.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from market.kernel import kernel

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class RequestKind(IntEnum):
    """Kinds of background request."""

    TAKE = 0  #: a market order
    JOIN = 1  #: a limit order at the touch
    LEAVE = 2  #: a cancel at the touch
    PLACE = 3  #: a limit order behind the touch
    WITHDRAW = 4  #: a cancel behind the touch
    IMPROVE = 5  #: a limit order inside the spread


KINDS: Final = len(RequestKind)

#: Decay rates β (1/s) of excitation, and the share w of a kind's offspring that each has.
DECAY_PER_S: Final = np.array([20.0, 1.0, 0.05])
DECAY_SHARE: Final = np.array([0.35, 0.35, 0.30])
SCALES: Final = len(DECAY_PER_S)
#: Stream of random numbers of the candidates of thinning.
CANDIDATE_STREAM: Final = 0

#: Share of a request's offspring that is of its own kind; the rest is of all kinds in proportion to
#: their rates.
OWN_KIND: Final = 0.8
#: How strongly a request of each kind excites others: trades and quotes inside the spread are news,
#: orders and cancels behind the touch hardly are.
PULL: Final = np.array([8.0, 1.0, 1.5, 0.3, 0.3, 4.0])

_U32: Final = np.uint64(0xFFFFFFFF)
_M0: Final = np.uint64(0xD2511F53)
_M1: Final = np.uint64(0xCD9E8D57)
_W0: Final = np.uint64(0x9E3779B9)
_W1: Final = np.uint64(0xBB67AE85)
_SHIFT: Final = np.uint64(32)
_TO_UNIT: Final = 2.0**-32


class HawkesLaw(NamedTuple):
    """Parameters of the process at activity one."""

    base: Floats  #: (KINDS,) μ, spontaneous requests per second
    kick: Floats  #: (KINDS, SCALES, KINDS) [j, k, i]: jump of λ_i at a request of kind j


class HawkesState(NamedTuple):
    """State of the process, with the key of its random numbers."""

    key: npt.NDArray[np.uint64]  #: (2,)
    excitation: Floats  #: (SCALES, KINDS) excess of each λ_i over μ_i·m
    candidates: Integers  #: (1,) number of candidates drawn
    draws: Floats  #: (4,) scratch


def new_hawkes(key: npt.NDArray[np.uint64]) -> HawkesState:
    """The process without a past."""
    return HawkesState(key, np.zeros((SCALES, KINDS)), np.zeros(1, np.int64), np.zeros(4))


def branching_matrix(rates: Floats, branching: float) -> Floats:
    """N = n·(c·1 + (1 - c)·r·qᵀ) for mean rates r, with q ∝ `PULL` and q·r = 1; shape (KINDS, KINDS).

    N·r = n·r: its spectral radius is the branching ratio n whatever the rates, and every kind keeps
    the share 1 - n of spontaneous requests.
    """
    pull = PULL / max(float(PULL @ rates), 1e-300)
    return branching * (OWN_KIND * np.eye(KINDS) + (1 - OWN_KIND) * np.outer(rates, pull))


def hawkes_law(rates: Floats, branching: float) -> HawkesLaw:
    """The process with these mean rates (per second, at activity one) and this branching ratio.

    ``rates`` has one entry per `RequestKind`. ValueError when a rate is negative or the ratio is not
    in [0, 1).
    """
    rates = np.asarray(rates, float)
    if rates.shape != (KINDS,) or (rates < 0).any():
        raise ValueError(f"rates {rates.tolist()}: expected {KINDS} of them, none negative")
    if not 0 <= branching < 1:
        raise ValueError(f"branching {branching:g}: admissible is 0 <= branching < 1")
    matrix = branching_matrix(rates, branching)
    kick = np.einsum("ij,k->jki", matrix, DECAY_SHARE * DECAY_PER_S)
    return HawkesLaw((1 - branching) * rates, np.ascontiguousarray(kick))


def philox_key(digest: bytes) -> npt.NDArray[np.uint64]:
    """Two 32-bit key words of the first eight bytes of a digest."""
    return np.frombuffer(digest[:8], np.uint32).astype(np.uint64)


@kernel
def philox(key: npt.NDArray[np.uint64], stream: int, count: int, out: Floats) -> None:
    """Four uniforms in (0, 1) for a stream (any 64 bits) and a count (any 64 bits)."""
    c0 = np.uint64(count) & _U32
    c1 = np.uint64(count) >> _SHIFT
    c2 = np.uint64(stream) & _U32
    c3 = np.uint64(stream) >> _SHIFT
    k0, k1 = key[0], key[1]
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0 = (p1 >> _SHIFT) ^ c1 ^ k0
        c2 = (p0 >> _SHIFT) ^ c3 ^ k1
        c1 = p1 & _U32
        c3 = p0 & _U32
        k0 = (k0 + _W0) & _U32
        k1 = (k1 + _W1) & _U32
    out[0] = (float(c0) + 0.5) * _TO_UNIT
    out[1] = (float(c1) + 0.5) * _TO_UNIT
    out[2] = (float(c2) + 0.5) * _TO_UNIT
    out[3] = (float(c3) + 0.5) * _TO_UNIT


@kernel
def decay(excitation: Floats, seconds: float) -> float:
    """Let excitation (SCALES, KINDS) decay for some time; returns its sum."""
    total = 0.0
    for k in range(SCALES):
        factor = math.exp(-DECAY_PER_S[k] * seconds)
        for i in range(KINDS):
            excitation[k, i] *= factor
            total += excitation[k, i]
    return total


@kernel
def excite(excitation: Floats, law: HawkesLaw, kind: int) -> None:
    """Add the excitation by one request."""
    for k in range(SCALES):
        for i in range(KINDS):
            excitation[k, i] += law.kick[kind, k, i]


@kernel
def next_request(
    state: HawkesState, law: HawkesLaw, activity: float, seconds: float
) -> tuple[float, int]:
    """Time until the next request within ``seconds`` of constant activity, and its `RequestKind`.

    Kind -1 when none comes. The state is advanced by the time returned, and excited by the request.
    """
    excitation = state.excitation
    base = 0.0
    for i in range(KINDS):
        base += law.base[i]
    base *= activity
    passed = 0.0
    bound = base + decay(excitation, 0.0)
    while True:
        philox(state.key, CANDIDATE_STREAM, state.candidates[0], state.draws)
        state.candidates[0] += 1
        if bound <= 0:
            return seconds, -1
        wait = -math.log(state.draws[0]) / bound
        if passed + wait >= seconds:
            decay(excitation, seconds - passed)
            return seconds, -1
        passed += wait
        now = base + decay(excitation, wait)
        mark = state.draws[1] * bound
        if mark < now:
            for i in range(KINDS):
                mark -= law.base[i] * activity
                for k in range(SCALES):
                    mark -= excitation[k, i]
                if mark < 0 or i == KINDS - 1:
                    excite(excitation, law, i)
                    return passed, i
        bound = now
