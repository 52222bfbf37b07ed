"""The registered model's code (MLflow models-from-code): a bundle behind the pyfunc interface.

MLflow runs this file when a version is loaded for review or served over HTTP; nothing imports it.
The trading process loads the bundle itself.
"""

from typing import Any

import numpy as np

from models_registry.manifest import Bundle


def _serve() -> None:
    """Hand MLflow the model. A function, so that no module of the room names MLflow at its top."""
    import mlflow
    import pandas as pd

    class ExpectedReturn(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow has no types
        """Feature rows in; ``expected_bps``, ``raw_bps`` and the regime's number out."""

        def load_context(self, context: Any) -> None:
            self.bundle = Bundle.load(context.artifacts["bundle"])

        # MLflow reads these annotations, so they are not postponed in this file.
        def predict(
            self, context: Any, model_input: pd.DataFrame, params: Any = None
        ) -> pd.DataFrame:
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


_serve()
