"""One row through LightGBM boosters without what `Booster.predict` does around it.

`Booster.predict` takes 24 µs for a row, of which the trees are 2; the rest is Python and the parsing of
parameters. LightGBM's C API has them parsed once (`LGBM_BoosterPredictForMatSingleRowFast`) and walks the same
trees by the same code, so the outputs have the same bits. Its Python package declares no function for it.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import lightgbm


class OneRow:
    """The raw outputs of ``boosters``, which all take ``features`` columns; for one thread at a time."""

    def __init__(self, boosters: Sequence[lightgbm.Booster], features: int) -> None:
        from lightgbm import basic

        self._boosters = tuple(boosters)  # whose handles are held
        self._row = np.empty(features, np.float32)
        self._out = np.empty(len(self._boosters))
        self._check = basic._safe_call
        self._predict = basic._LIB.LGBM_BoosterPredictForMatSingleRowFast
        row, length = ctypes.c_void_p(self._row.ctypes.data), ctypes.c_int64()
        self._calls = []
        for n, booster in enumerate(self._boosters):
            config = ctypes.c_void_p()
            self._check(
                basic._LIB.LGBM_BoosterPredictForMatSingleRowFastInit(
                    booster._handle,
                    basic._C_API_PREDICT_RAW_SCORE,
                    ctypes.c_int(0),
                    ctypes.c_int(-1),
                    basic._C_API_DTYPE_FLOAT32,
                    ctypes.c_int32(features),
                    b"num_threads=1",
                    ctypes.byref(config),
                )
            )
            weakref.finalize(self, basic._LIB.LGBM_FastConfigFree, config)
            place = ctypes.c_void_p(self._out[n:].ctypes.data)
            self._calls.append((config, row, ctypes.byref(length), place))

    def __call__(self, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The outputs (boosters,) for a row (features,), NaN for NULL; overwritten by the next call."""
        self._row[:] = row
        for call in self._calls:
            self._check(self._predict(*call))
        return self._out
