"""The challenger beside the champion, and the decay alarm: what the worker learns of models from files.

A challenger (`challenger.json` beside the champion's pointer) predicts on the vectors that the champion
decided on, in a thread, after those decisions' orders have left; features that it takes besides the
champion's are computed from the second after it was loaded (`Shadow.features`). Its predictions come back as inputs
(`messages.Shadowed`), so that a replay of the log needs no challenger. One that takes longer than
`BUDGET_S` a second, for both symbols, loses seconds, which are counted; trading never waits for it.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence, Set
from typing import Any, Final

import msgspec
import numpy as np

from live.decisions import Decision
from live.messages import Shadowed
from live.trader import columns_of
from market.errors import ModelError
from market.settings import Settings
from models_registry.manifest import LEGACY, Bundle, Pointer, bundles_folder
from models_registry.pointed import CHALLENGER_FILE, DECAY_FILE, load_pointed

#: Longer than this for one second's vectors, and the next second is left out.
BUDGET_S: Final = 0.05
#: After a decision, by which its orders have left.
_AFTER_S: Final = 0.05


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker reads of `models_registry.monitoring`'s state."""

    alarm_ns: int | None = None


class DecayAlarm:
    """The alarm of the decay monitor, which another process writes; a look costs one stat."""

    def __init__(self, root: str, name: str) -> None:
        self._file = bundles_folder(root, name) / DECAY_FILE
        self._stamp: tuple[int, int] | None = None
        self._told = math.nan  #: an earlier process may have been told of one

    def look(self) -> float | None:
        """The time of the alarm that stands (s), 0 without one; None when that has not changed."""
        try:
            stat = os.stat(self._file)
            if (stamp := (stat.st_ino, stat.st_mtime_ns)) == self._stamp:
                return None
            self._stamp = stamp
            found = msgspec.json.decode(self._file.read_bytes(), type=Alarm)
        except (OSError, msgspec.DecodeError):
            return None
        told, self._told = self._told, (found.alarm_ns or 0) / 1e9
        return self._told if told != self._told else None


def decay_alarm(settings: Settings) -> DecayAlarm:
    """That of the promoted model, or of the frozen one."""
    name = LEGACY if settings.desk.model == LEGACY else settings.model_name
    return DecayAlarm(settings.root, name)


class Shadow:
    """Predicts with the challenger in a thread; ``put`` takes its predictions, from that thread.

    ``feature_hash``, ``book_topic`` and ``horizons_s`` are those of the champion's process: another
    challenger is left alone, with a line in the log.
    """

    def __init__(
        self,
        root: str,
        name: str,
        *,
        feature_hash: str,
        book_topic: str,
        horizons_s: Sequence[int],
        put: Callable[[Shadowed], None],
        log: Any,
    ) -> None:
        self._root, self._name, self._put, self._log = root, name, put, log
        self._feature_hash, self._book_topic = feature_hash, book_topic
        self._horizons_s = tuple(horizons_s)
        self._file = bundles_folder(root, name) / CHALLENGER_FILE
        self._stamp: tuple[int, int] | None = None
        self._model: tuple[Pointer, Bundle] | None = None
        self._queue: queue.SimpleQueue[tuple[list[Decision], Set[str]] | None] = queue.SimpleQueue()
        self._skip = False
        self.predicted = self.skipped = 0
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> dict[str, int]:
        """Predictions made, and decisions left out for want of time."""
        return {"predicted": self.predicted, "skipped": self.skipped}

    @property
    def features(self) -> tuple[str, ...]:
        """What the challenger takes; nothing without one."""
        model = self._model
        return () if model is None else model[1].manifest.features

    def take(self, decisions: list[Decision], computed: Set[str]) -> None:
        """The decisions of a second, whose vectors hold the ``computed`` features, once their orders have
        left; left out while it is busy."""
        if self._queue.qsize():
            self.skipped += len(decisions) if self._model is not None else 0
        else:
            self._queue.put((decisions, computed))

    def close(self) -> None:
        """Finish the second in progress."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while (second := self._queue.get()) is not None:
            time.sleep(_AFTER_S)
            try:
                self._look()
                if self._model is not None and second[1] >= set(self.features):
                    self._predict(*self._model, second[0])
            except Exception as error:  # the challenger's trouble is nobody else's
                self._model = None
                self._log.error("challenger not used", reason=f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        """Load the challenger when its pointer changed."""
        try:
            stat = os.stat(self._file)
        except FileNotFoundError:
            self._model = self._stamp = None
            return
        if (stamp := (stat.st_ino, stat.st_mtime_ns)) == self._stamp:
            return
        self._stamp, self._model = stamp, None
        found = load_pointed(self._root, self._name, CHALLENGER_FILE)
        if found is not None:
            pointer, bundle = found
            bundle.require(self._feature_hash, self._book_topic)
            if bundle.manifest.primary_s not in self._horizons_s:
                raise ModelError(f"its horizon of {bundle.manifest.primary_s} s is not labelled")
            self._model = found
            self._log.info("challenger in the shadow", version=pointer.version)

    def _predict(self, pointer: Pointer, bundle: Bundle, decisions: list[Decision]) -> None:
        if self._skip:
            self._skip, self.skipped = False, self.skipped + len(decisions)
            return
        began = time.monotonic()
        columns = columns_of(bundle)
        made = bundle.predict_many(np.array([one.vector[columns] for one in decisions]))
        self._skip = time.monotonic() - began > BUDGET_S
        self.predicted += len(decisions)
        for one, raw_bps, scale_bps in zip(decisions, made.raw_bps, made.scale_bps, strict=True):
            self._put(
                Shadowed(
                    symbol=one.symbol,
                    t_ns=one.t_ns,
                    model_version=pointer.version,
                    bundle_sha=pointer.in_force,
                    raw_bps=float(raw_bps),
                    scale_bps=float(scale_bps),
                )
            )
