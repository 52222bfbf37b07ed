"""The champion: the promoted model bundle, swapped between two decisions when another is promoted.

The worker reads only the pointer file and the bundle that it names; the resolver, in another process,
copies bundles from the registry (`models_registry.resolver`).
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from market.errors import ModelError
from market.settings import Settings
from models_registry.manifest import (
    LEGACY,
    MANIFEST_FILE,
    POINTER_FILE,
    Bundle,
    BundleError,
    Pointer,
    bundles_folder,
    legacy_folder,
)
from models_registry.pointed import load_frozen, load_pointed


class NoChampionError(ModelError):
    """No version has been promoted; the message says how to promote one."""


class Champion:
    """The bundle in force; `refresh` costs one stat unless the pointer changed.

    With ``desk.model=legacy`` it is the lake's frozen bundle, which no promotion replaces: neither resolver
    nor registry has a part in it. ``feature_hash`` is that of this process. A bundle trained for other
    features, book, source or symbols is refused: at the start with BundleError (NoChampionError without
    one), later with a logged error while the bundle in force stays.
    """

    def __init__(self, settings: Settings, *, feature_hash: str, log: Any) -> None:
        self._settings, self._feature_hash, self._log = settings, feature_hash, log
        self.is_frozen = settings.desk.model == LEGACY
        if self.is_frozen:
            self._file = legacy_folder(settings) / MANIFEST_FILE
        else:
            self._file = bundles_folder(settings.root, settings.model_name) / POINTER_FILE
        self._stamped = self._stamp()
        # Loaded in a thread: reading boosters takes longer than a frame may wait.
        self._loader = ThreadPoolExecutor(1, "champion")
        self._loading: Future[tuple[Pointer, Bundle]] | None = None
        self.swaps = 0
        self.refused = 0
        self.pointer, self.bundle = self._load()

    def refresh(self) -> bool:
        """Check the pointer; True when another bundle was swapped in just now."""
        swapped = False
        if self._loading is not None and self._loading.done():
            future, self._loading = self._loading, None
            try:
                pointer, bundle = future.result()
            except (BundleError, NoChampionError) as error:
                self.refused += 1
                self._log.error("champion refused", reason=str(error), kept=self.pointer.version)
            else:
                swapped = pointer != self.pointer
                if swapped:
                    self._log.info(
                        "champion swapped", old=self.pointer.version, new=pointer.version
                    )
                    self.pointer, self.bundle = pointer, bundle
                    self.swaps += 1
        if self._loading is None and (stamp := self._stamp()) != self._stamped:
            self._stamped = stamp
            self._loading = self._loader.submit(self._load)
        return swapped

    def close(self) -> None:
        """Wait for a load in progress."""
        self._loader.shutdown(wait=True)

    def _stamp(self) -> tuple[int, int, int]:
        try:
            stat = os.stat(self._file)
        except FileNotFoundError:
            return (0, 0, 0)
        return (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _load(self) -> tuple[Pointer, Bundle]:
        settings = self._settings
        name = settings.model_name
        found = load_frozen(settings) if self.is_frozen else load_pointed(settings.root, name)
        if found is None:
            raise NoChampionError(
                f"no champion of {name} in {settings.root}: train with `l2 pipeline` and promote "
                "a version with `l2 promote VERSION`"
            )
        pointer, bundle = found
        bundle.require(self._feature_hash, f"orderbook.{settings.market.book_depth}")
        if bundle.manifest.source != settings.source:
            raise BundleError(
                f"model {name} {pointer.version} was trained on {bundle.manifest.source} data "
                f"and this lake holds {settings.source} data; train on this lake"
            )
        if missing := set(settings.market.symbols) - set(bundle.manifest.symbols):
            raise BundleError(
                f"model {name} {pointer.version} was not trained on "
                f"{', '.join(sorted(missing))}; set market.symbols accordingly or train again"
            )
        # The first prediction pays for LightGBM's lazy set-up: here, not in a decision.
        bundle.predict(np.zeros(len(bundle.manifest.features)))
        return pointer, bundle
