"""The registered model's code (MLflow models-from-code): a bundle behind the pyfunc interface.

MLflow runs this file when a version is loaded for review or served over HTTP. The trading process
does not: it loads the bundle itself.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd

from models_registry.manifest import Bundle


class ExpectedReturn(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow has no types
    """Feature rows in, ``expected_bps`` and ``raw_bps`` and the regime's number out."""

    def load_context(self, context: Any) -> None:
        self.bundle = Bundle.load(context.artifacts["bundle"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """``model_input`` is a frame with the manifest's features as columns, in any order."""
        matrix = model_input[list(self.bundle.manifest.features)].to_numpy(np.float64)
        made = self.bundle.predict_many(matrix)
        return pd.DataFrame(
            {
                "expected_bps": made.expected_bps,
                "raw_bps": made.raw_bps,
                "regime": made.regime.astype(np.int64),
            }
        )


mlflow.models.set_model(ExpectedReturn())
