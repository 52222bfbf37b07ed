"""Where the pages of Dagster, MLflow and the worker are, so that they and the reports lead to each other."""

from __future__ import annotations

from typing import Final

import msgspec

#: Below a lake's root: reports, and the site of Data Docs.
REPORTS: Final = "reports"
DATA_DOCS: Final = "quality/gx/uncommitted/data_docs/local_site"


class Pages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Addresses without a slash at the end. `l2 ui` and `l2 dashboard` serve at these ports unless told otherwise."""

    dagster: str = "http://127.0.0.1:3000"
    mlflow: str = "http://127.0.0.1:5000"
    dashboard: str = "http://127.0.0.1:8300"

    def asset(self, name: str) -> str:
        return f"{self.dagster}/assets/{name}"

    def run(self, run_id: str) -> str:
        return f"{self.dagster}/runs/{run_id}"

    def model(self, name: str, version: str = "") -> str:
        where = f"/versions/{version}" if version else ""
        return f"{self.mlflow}/#/models/{name}{where}"

    def file(self, path: str) -> str:
        """A file below the lake's root, of `REPORTS` or `DATA_DOCS`, as the dashboard serves it."""
        return f"{self.dashboard}/files/{path}"
