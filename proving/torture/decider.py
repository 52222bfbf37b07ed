"""A model whose expectations are random by seed, so that orders of every kind flow.

Bars go in as they would into the real features; out comes the second alone, and the model draws from seed
and second: long, short, flat or nothing, for a few seconds each. It is a function of the second, so that
a run repeated from its log decides the same.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from market.features import feature_names
from market.units import SECOND_NS
from models_registry.manifest import Pointer
from models_registry.recipe import Prediction

Floats = npt.NDArray[np.float64]

#: An expectation that pays any cost (bps).
SURE_BPS = 500.0


class SecondAsFeature:
    """Stands in for the features: the vector's first element is the second, with an offset by symbol so
    that symbols differ, the rest zeros.
    """

    def __init__(self) -> None:
        self._second: dict[str, int] = {}

    def push(self, symbol: str, t_ns: int, bar: Floats, /) -> None:
        self._second[symbol] = t_ns // SECOND_NS

    def push_many(self, symbol: str, t_ns: npt.NDArray[np.int64], bars: Floats, /) -> None:
        if len(t_ns):
            self._second[symbol] = int(t_ns[-1]) // SECOND_NS

    def choose(self, names: Collection[str], /) -> None:
        """There is one feature."""

    def evaluate(self, symbol: str) -> tuple[Floats, bool]:
        vector = np.zeros(len(feature_names()))
        vector[0] = self._second.get(symbol, 0) + zlib.crc32(symbol.encode()) % 1000
        return vector, True


class RandomModel:
    """The model: a bundle of one feature, and its pointer.

    ``hold_s`` is how long an expectation stands; the share of each of long, short, flat and none is drawn.
    """

    def __init__(self, seed: int, version: str) -> None:
        dice = random.Random(f"{seed}/decider")
        self._seed, self._hold_s = seed, dice.choice((3, 4, 6))
        self._weights = [dice.uniform(0.5, 2.0) for _ in range(4)]
        manifest = SimpleNamespace(
            features=feature_names()[:1], primary_s=self._hold_s, source="recorded"
        )
        self.bundle: Any = SimpleNamespace(
            manifest=manifest,
            recipe=SimpleNamespace(members=(), primary_s=self._hold_s),
            horizons_s=(self._hold_s,),
            predict=self._predict,
        )
        self.pointer = Pointer(
            name="dice", version=version, folder="", manifest_sha256=f"{seed:064x}"
        )

    def refresh(self) -> bool:
        """No other version ever comes into force."""
        return False

    def _predict(self, vector: Floats) -> Prediction:
        bps = _drawn(self._seed, int(vector[0]) // self._hold_s, tuple(self._weights))
        return Prediction(expected_bps=bps, raw_bps=bps, by_horizon=(bps,), regime="any")


@lru_cache(maxsize=1024)
def _drawn(seed: int, period: int, weights: tuple[float, ...]) -> float:
    if period % 3 == 0:  # a turn every now and then, so that no run idles by chance
        return SURE_BPS if period % 2 else -SURE_BPS
    dice = random.Random(f"{seed}/{period}")
    return dice.choices((SURE_BPS, -SURE_BPS, 0.0, float("nan")), weights)[0]
