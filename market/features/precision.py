"""How exactly a feature is kept: as float32, in the lake and wherever a model is asked.

What is rounded is decided by what a column is, and nothing else:

| a column is | kept as | because |
|---|---|---|
| a feature | float32 | a share, log, correlation or ratio: 24 bits tell apart more values than a day has rows |
| a price, a quantity, a label | float64 | its last tick counts at any size, and sums are made of it |
| a time, a count | integer | exact |

The evaluator and the batch's SQL compute in float64 and agree there; both are rounded once, here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def rounded(features: npt.NDArray[np.floating]) -> Float32:
    """Features to the nearest float32; NaN for NaN (NULL) and for what overflows (over 3.4e38)."""
    with np.errstate(over="ignore"):
        kept = features.astype(np.float32)
    kept[np.isinf(kept)] = np.nan
    return kept
