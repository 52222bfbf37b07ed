"""A/B of execution: which of two arms works a parent, at random within its stratum, and the same in a replay.

An arm is an algorithm, with parameters of its own if wanted: ``passive``, ``passive behind_bps=1 patience=0.5``,
``router deadline_s=10``. Parents of one stratum (symbol, size bucket, octave of the volatility) are taken two by
two: a hash of seed, stratum and pair says which arm the first of a pair gets, and the second gets the other. So
arms are balanced in every stratum at any time, and a pair's difference is symmetric about zero where they cost the
same. Orders that are forced (a flattening, the shut-down) belong to no arm.
"""

from __future__ import annotations

import math
from bisect import bisect
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from execution.algorithms import start
from execution.algorithms.working import Parent
from execution.tca import ParentRow
from execution.tca.rows import notional_usdt
from market.errors import UsageError
from market.instruments import Instrument
from market.settings import Execution
from market.units import SECOND_NS

#: Bounds between size buckets (quote currency), as `parent_costs` has them.
SIZES_USDT: Final = (5_000.0, 20_000.0, 100_000.0)
#: A parameter of every arm, beside its algorithm's: `execution.deadline_s` in its place.
_DEADLINE: Final = "deadline_s"


class Arm(NamedTuple):
    """What works a parent. ``name`` and ``stratum`` (with the pair's number) are empty outside an experiment."""

    name: str
    algorithm: str
    parameters: dict[str, Any]
    deadline_ns: int = 0
    stratum: str = ""

    def parent(self, parent: Parent) -> Parent:
        """The parent with the arm's deadline."""
        if not self.deadline_ns:
            return parent
        return msgspec.structs.replace(parent, deadline_ns=parent.decision_ns + self.deadline_ns)

    def on_record(self, row: ParentRow) -> ParentRow:
        """The parent's row with its arm."""
        return msgspec.structs.replace(row, arm=self.name, stratum=self.stratum)


def arm_of(text: str) -> Arm:
    """The arm of ``ALGORITHM [NAME=VALUE]…``; UsageError for one that cannot be."""
    algorithm, *given = text.split() or [""]
    parameters: dict[str, Any] = {}
    for each in given:
        name, _, value = each.partition("=")
        try:
            parameters[name] = int(value) if value.isdigit() else float(value)
        except ValueError:
            raise UsageError(f"execution.arms: {text}: {each}: expected NAME=NUMBER") from None
    deadline_ns = round(float(parameters.pop(_DEADLINE, 0.0)) * SECOND_NS)
    trial = Parent(
        id="", symbol="", side=1, qty_lots=1, decision_ns=0, deadline_ns=1, decision_mid_ticks=1.0
    )
    try:
        start(algorithm, trial, **parameters)
    except (ValueError, TypeError) as error:
        raise UsageError(f"execution.arms: {text}: {error}") from None
    return Arm(text, algorithm, parameters, deadline_ns)


class Arms:
    """Assigns parents to the arms of the settings, none or two of them; else UsageError.

    ``counts`` are the parents of each stratum so far, which outlive a restart.
    """

    def __init__(self, settings: Execution) -> None:
        arms = settings.arms
        if len(arms) not in (0, 2) or len(set(arms)) < len(arms):
            raise UsageError(
                f"execution.arms: {', '.join(arms)}: expected two different ones, or none"
            )
        self._arms, self._settings = [arm_of(text) for text in arms], settings
        self.counts: dict[str, int] = {}

    def of(self, parent: Parent, forced: str, instrument: Instrument, sigma_bps: float) -> Arm:
        """The arm of the next parent; ``forced`` names an algorithm that is not to be chosen."""
        if forced or not self._arms:
            return Arm("", forced or self._settings.algorithm, {})
        size_usdt = notional_usdt(instrument, parent.qty_lots, parent.decision_mid_ticks)
        stratum = stratum_of(parent.symbol, size_usdt, sigma_bps)
        count = self.counts.get(stratum, 0)
        self.counts[stratum] = count + 1
        pair, second = divmod(count, 2)
        digest = blake2b(
            f"{self._settings.arms_seed}/{stratum}/{pair}".encode(), digest_size=8
        ).digest()
        return self._arms[(digest[0] & 1) ^ second]._replace(stratum=f"{stratum} #{pair}")


def stratum_of(symbol: str, size_usdt: float, sigma_bps: float) -> str:
    """Symbol, size bucket and octave of the volatility (bps per square root of a second)."""
    octave = math.floor(math.log2(sigma_bps)) if sigma_bps > 0 else -99
    return f"{symbol} size {bisect(SIZES_USDT, size_usdt)} sigma {octave}"


def base_of(stratum: str) -> str:
    """The stratum of a recorded one, without the pair's number."""
    return stratum.rpartition(" #")[0]
