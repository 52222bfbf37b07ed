"""What the system page shows beside the worker's state: captures, disk, and the last runs of the pipeline.

Read in a thread of its own, for all readers of the page once; nothing heavy is imported for it.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from market.errors import L2Error
from market.lake import Lake
from market.postgres import connect, refused
from market.settings import Settings
from market.units import utc_date
from models_registry.state import on_server
from orchestration.ui import home_of

#: Seconds between looks at captures and disk, and at the runs.
_EVERY_S: Final = 5.0
_RUNS_S: Final = 30.0
RUNS: Final = 8


class PipelineRun(NamedTuple):
    """A run of Dagster; times are epoch seconds, None for what has not happened."""

    id: str
    job: str
    status: str
    started_s: float | None
    ended_s: float | None


class Capture(NamedTuple):
    """A capture file; when it was written to last is epoch seconds."""

    written_s: float
    name: str
    bytes: int


def newest_capture(lake: Lake, now_s: float) -> Capture | None:
    """The capture of this machine, of today or yesterday (UTC), that was written to last."""
    here, found = Lake(lake.home, lake.source), []
    for at_s in (now_s, now_s - 86_400):
        for path in map(Path, here.captures(utc_date(int(at_s * 1e9)))):
            with suppress(FileNotFoundError):  # moved away meanwhile
                stat = path.stat()
                found.append(Capture(stat.st_mtime, path.name, stat.st_size))
    return max(found, default=None)


def pipeline_runs(settings: Settings, count: int = RUNS) -> list[PipelineRun]:
    """The newest runs of a lake, read from Dagster's own storage; none without one. sqlite3.Error or StateError
    for one that cannot be read.
    """
    query = (
        "select run_id, pipeline_name, status, start_time, end_time from {}runs order by id desc "
        f"limit {count:d}"
    )
    if on_server(settings):
        with closing(connect(settings.state)) as connection, connection.cursor() as cursor:
            try:
                cursor.execute(query.format("dagster."))
            except Exception as error:
                raise refused(settings.state, error) from error
            return [PipelineRun(*row) for row in cursor.fetchall()]
    file = home_of(settings) / "history" / "runs.db"
    if not file.exists():
        return []
    uri = f"{file.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as connection:
        return [PipelineRun(*row) for row in connection.execute(query.format(""))]


class Machine:
    """Looks every few seconds until `close`; what it holds is replaced, never changed."""

    def __init__(self, settings: Settings) -> None:
        self.capture: Capture | None = None
        self.free_bytes = self.disk_bytes = 0
        self.runs: list[PipelineRun] = []
        self.problem = ""
        self._settings = settings
        self._lake: Lake | None = None
        self._end, self._runs_s = threading.Event(), -_RUNS_S
        threading.Thread(target=self._watch, name="machine", daemon=True).start()

    def close(self) -> None:
        self._end.set()

    def _watch(self) -> None:
        while not self._end.is_set():
            try:
                self.look()
                self.problem = ""
            except (L2Error, OSError, sqlite3.Error) as error:
                self.problem = f"{type(error).__name__}: {error}"
            self._end.wait(_EVERY_S)

    def look(self) -> None:
        """Read everything that is due. OSError or sqlite3.Error for what cannot be read."""
        root = self._settings.home.absolute()
        disk = shutil.disk_usage(root if root.exists() else "/")
        self.free_bytes, self.disk_bytes = disk.free, disk.total
        if self._lake is None and (root / "lake.json").exists():  # it would make one otherwise
            self._lake = Lake(str(root))
        self.capture = None if self._lake is None else newest_capture(self._lake, time.time())
        if time.monotonic() - self._runs_s >= _RUNS_S:
            self._runs_s = time.monotonic()
            self.runs = pipeline_runs(self._settings)
