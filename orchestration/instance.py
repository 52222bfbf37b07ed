"""Where Dagster keeps its runs: a folder beside the lake, so that the pages show what was run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from market.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

_CONFIGURATION = """\
telemetry:
  enabled: false
nux:
  enabled: false
"""


def dagster_home(settings: Settings) -> Path:
    """The instance's folder, made and configured when it is absent."""
    home = Path(os.environ.get("DAGSTER_HOME") or Path(settings.root).absolute() / "dagster")
    home.mkdir(parents=True, exist_ok=True)
    file = home / "dagster.yaml"
    if not file.exists():
        file.write_text(_CONFIGURATION)
    return home


def instance(settings: Settings) -> dg.DagsterInstance:
    """The instance of a lake."""
    import dagster as dg

    os.environ["DAGSTER_HOME"] = str(dagster_home(settings))
    return dg.DagsterInstance.get()
