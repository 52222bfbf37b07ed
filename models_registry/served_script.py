"""MLflow "model from code": a bundle behind the pyfunc interface.

`models_registry.served` copies this file into a version; nothing imports it.
"""

from typing import Any

import numpy as np


def _serve() -> None:
    """Give MLflow the model. A function, so that no module imports MLflow at its top level."""
    import mlflow
    import pandas as pd

    class ExpectedReturn(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow has no types
        """Feature rows to ``expected_bps``, ``raw_bps`` and the index of the regime."""

        def load_context(self, context: Any) -> None:
            # Here: when the version is logged its modules are not importable yet.
            from models_registry.manifest import Bundle

            self.bundle = Bundle.load(context.artifacts["bundle"])

        # MLflow reads these annotations, so this file has no postponed ones.
        def predict(
            self, context: Any, model_input: pd.DataFrame, params: Any = None
        ) -> pd.DataFrame:
            """``model_input`` has the manifest's features as columns, in any order."""
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


_serve()
