"""A model that draws its expectations by seed and second, so that orders of every kind flow."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from market.features import feature_names
from market.units import SECOND_NS
from models_registry.manifest import Pointer, Prediction

Floats = npt.NDArray[np.float64]


class Seconds:
    """In place of the features: the vector's first element is the second, the rest zeros."""

    def __init__(self) -> None:
        self._second: dict[str, int] = {}

    def push(self, symbol: str, t_ns: int, bar: Floats, /) -> None:
        self._second[symbol] = t_ns // SECOND_NS

    def push_many(self, symbol: str, t_ns: npt.NDArray[np.int64], bars: Floats, /) -> None:
        if len(t_ns):
            self._second[symbol] = int(t_ns[-1]) // SECOND_NS

    def evaluate(self, symbol: str) -> tuple[Floats, bool]:
        vector = np.zeros(len(feature_names()))
        vector[0] = self._second.get(symbol, 0)
        return vector, True


class Drawn:
    """Long, short or flat for ``hold_s`` seconds each."""

    def __init__(self, seed: int, hold_s: int = 5) -> None:
        self._seed, self._hold_s = seed, hold_s
        manifest = SimpleNamespace(
            features=feature_names()[:1], primary_s=hold_s, source="recorded"
        )
        self.bundle: Any = SimpleNamespace(
            manifest=manifest, horizons_s=(hold_s,), predict=self._predict
        )
        self.pointer = Pointer(name="drawn", version="1", folder="", manifest_sha256="0" * 64)

    def _predict(self, vector: Floats) -> Prediction:
        chance = random.Random(f"{self._seed}/{int(vector[0]) // self._hold_s}")
        bps = chance.choice((500.0, -500.0, 0.0))
        return Prediction(expected_bps=bps, raw_bps=bps, by_horizon=(bps,), regime="any")
