"""The one resource that every asset takes: the settings and the lake they name."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from market.lake import Lake
from market.settings import Settings, load

OWNERS = ["team:platform"]


class Platform(dg.ConfigurableResource["Platform"]):
    """Settings as the `l2` command reads them: file < environment < overrides.

    ``file`` is a TOML path ("" for the default search), ``overrides`` are ``section.key=value``.
    """

    file: str = ""
    overrides: list[str] = []  # noqa: RUF012 (a pydantic field, copied per instance)

    def settings(self) -> Settings:
        return load(self.file or None, overrides=self.overrides)

    def lake(self) -> Lake:
        settings = self.settings()
        return Lake(settings.root, settings.source)

    @property
    def workers(self) -> int:
        """Processes for steps that split by partition: one per core this process may use."""
        return len(os.sched_getaffinity(0))

    def folder(self, name: str) -> Path:
        """A folder beside the tables of a local root, made if it is absent."""
        path = Path(self.settings().root).absolute() / name
        path.mkdir(parents=True, exist_ok=True)
        return path
