"""The model that trades: the promoted bundle, swapped between two decisions when another is promoted.

The worker sees only the pointer file and the bundle that it names; who promotes, and how a bundle
gets onto this machine, is the resolver's business in another process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from market.errors import ModelError
from models_registry.manifest import (
    POINTER_FILE,
    Bundle,
    BundleError,
    Pointer,
    bundles_folder,
    load_champion,
)


class NoChampionError(ModelError):
    """Nothing has been promoted; the message says how to get there."""


class Champion:
    """The bundle in force. `refresh` costs one stat unless the pointer changed.

    ``feature_hash``, ``book_topic``, ``source`` and ``symbols`` are what this process runs on; a
    bundle made for anything else is refused with a BundleError at the start, and later with one
    logged line while the bundle in force stays.
    """

    def __init__(
        self,
        root: str,
        name: str,
        *,
        feature_hash: str,
        book_topic: str,
        source: str,
        symbols: Sequence[str],
        log: Any,
    ) -> None:
        self._root, self._name = root, name
        self._feature_hash, self._book_topic = feature_hash, book_topic
        self._source, self._symbols = source, tuple(symbols)
        self._log = log
        self._file = bundles_folder(root, name) / POINTER_FILE
        self._seen = self._stamp()
        # Reading boosters takes longer than a frame may wait.
        self._loader = ThreadPoolExecutor(1, "champion")
        self._loading: Future[tuple[Pointer, Bundle]] | None = None
        self.swaps = 0
        self.refused = 0
        self.pointer, self.bundle = self._load()

    def refresh(self) -> bool:
        """Look at the pointer; True when another bundle came into force just now."""
        swapped = False
        if self._loading is not None and self._loading.done():
            future, self._loading = self._loading, None
            try:
                pointer, bundle = future.result()
            except (BundleError, NoChampionError) as error:
                self.refused += 1
                self._log.error("champion refused", reason=str(error), stays=self.pointer.version)
            else:
                swapped = pointer != self.pointer
                if swapped:
                    self._log.info("swap", old=self.pointer.version, new=pointer.version)
                    self.pointer, self.bundle = pointer, bundle
                    self.swaps += 1
        if self._loading is None and (stamp := self._stamp()) != self._seen:
            self._seen = stamp
            self._loading = self._loader.submit(self._load)
        return swapped

    def close(self) -> None:
        self._loader.shutdown(wait=True)

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self._file)
        except FileNotFoundError:
            return (0, 0, 0)
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def _load(self) -> tuple[Pointer, Bundle]:
        champion = load_champion(self._root, self._name)
        if champion is None:
            raise NoChampionError(
                f"no champion of {self._name} in {self._root}: train with `l2 pipeline` and promote "
                "a version with `l2 promote VERSION`"
            )
        pointer, bundle = champion
        bundle.require(self._feature_hash, self._book_topic)
        if bundle.manifest.source != self._source:
            raise BundleError(
                f"model {self._name} {pointer.version} was trained on {bundle.manifest.source} data "
                f"and this lake holds {self._source} data; train on this lake"
            )
        if missing := set(self._symbols) - set(bundle.manifest.symbols):
            raise BundleError(
                f"model {self._name} {pointer.version} was not trained on "
                f"{', '.join(sorted(missing))}; set market.symbols accordingly or train again"
            )
        # The first prediction pays for what LightGBM sets up lazily; better here than in a decision.
        bundle.predict(np.zeros(len(bundle.manifest.features)))
        return pointer, bundle
