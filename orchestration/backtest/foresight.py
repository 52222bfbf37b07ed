"""What a model expects at every second of a span, before any run: no order changes it.

    events ─► bars ─► features ─► predictions, in batches ─► a file of `record`s per model and symbol

Runs over the same rows share it (the run, its bounds, a second model), whatever process they are in.
`Watcher` is the trader itself that watches and trades nothing, and a batch's predictions are those of its
rows one by one (`models_registry.manifest`): a run decides as the live trader does, to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from live.symbol_state import SymbolState
from live.trader import Trader, columns_of
from market.console import Say
from market.events import Events
from market.instruments import Instrument
from market.lake import Lake
from market.settings import Settings
from models_registry.dataset import values_at
from models_registry.recipe import NO_REGIME, Prediction
from orchestration.backtest.run import PROGRESS_EVERY_S, FixedModel, opening
from orchestration.backtest.span import Span, instant_text, merged, seconds_of

#: Rows that are predicted at once.
BATCH: Final = 4096

#: What a `record` has of a prediction.
_PREDICTED: Final = (
    "expected_bps", "raw_bps", "error_bps", "scale_bps", "regime", "by_horizon",
)  # fmt: skip

_NO_VECTOR: Final = np.empty(0)

Floats = npt.NDArray[np.float64]


def record(horizons: int) -> np.dtype[np.void]:
    """One second of one symbol; its prediction means nothing where it is not warm."""
    return np.dtype(
        [
            ("t_ns", np.int64),
            ("warm", np.bool_),
            ("expected_bps", np.float64),
            ("raw_bps", np.float64),
            ("error_bps", np.float64),
            ("scale_bps", np.float64),
            ("regime", np.int8),
            ("by_horizon", np.float64, (horizons,)),
        ]
    )


def file_of(folder: Path, model: int, symbol: str) -> Path:
    """Where `foresee` writes the records of a symbol by the n-th model."""
    return folder / f"{model}-{symbol}"


class Watcher(Trader):
    """A trader that never trades: it writes down what each model expects of the ``watched`` symbols."""

    def __init__(
        self, *arguments: Any, models: Sequence[FixedModel], watched: Sequence[str], folder: Path,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(*arguments, **options)
        self.compute_also(tuple(n for model in models for n in model.bundle.manifest.features))
        self._models = [(model, columns_of(model.bundle)) for model in models]
        self._folder = folder
        self._pending: dict[str, list[tuple[int, bool, Floats]]] = {s: [] for s in watched}
        self.seconds = {"features": 0.0, "predictions": 0.0}

    def _take(self, state: SymbolState, rows: Events, restated: bool) -> None:
        state.ticker.apply(rows)
        state.builder.push(rows)

    def _decide(self, t_ns: int) -> None:
        for symbol, pending in self._pending.items():
            if self.symbols[symbol].row_ns == t_ns:
                vector, warm = self._evaluator.evaluate(symbol)
                pending.append((t_ns, warm, vector))
                if len(pending) == BATCH:
                    self._write(symbol)

    def finish(self, until_ns: int) -> None:
        """Close the seconds up to the span's end, and write what is pending."""
        self.close_until(until_ns)
        for symbol in self._pending:
            self._write(symbol)

    def _write(self, symbol: str) -> None:
        started = time.process_time()
        pending = self._pending[symbol]
        warm = np.array([row[1] for row in pending], np.bool_)
        for number, (model, columns) in enumerate(self._models):
            rows = np.zeros(len(pending), record(len(model.bundle.horizons_s)))
            rows["t_ns"], rows["warm"] = [row[0] for row in pending], warm
            if model.signal is not None:
                expected = values_at(*model.signal[symbol], rows["t_ns"])
                rows["warm"] &= np.isfinite(expected)
                rows["expected_bps"] = rows["raw_bps"] = expected
                rows["error_bps"] = rows["scale_bps"] = np.nan
            elif warm.any():
                matrix = np.array([vector[columns] for _, warm, vector in pending if warm])
                found = model.bundle.predict_many(matrix)
                for name in _PREDICTED:
                    rows[name][warm] = getattr(found, name)
            with file_of(self._folder, number, symbol).open("ab") as sink:
                rows.tofile(sink)
        pending.clear()
        self.seconds["predictions"] += time.process_time() - started


def foresee(
    settings: Settings,
    instruments: Mapping[str, Instrument],
    span: Span,
    models: Sequence[FixedModel],
    watched: Sequence[str],
    folder: Path,
    say: Say | None = None,
) -> dict[str, float]:
    """Write the records of the ``watched`` symbols by each model; processor seconds by stage."""
    started, progress = time.process_time(), time.monotonic()
    lake = Lake(settings.root, settings.source)
    watcher = Watcher(
        settings,
        instruments,
        model=models[0],
        name="foresight",
        models=models,
        watched=watched,
        folder=folder,
    )
    begun = False
    for second_ns, rows in merged(
        {symbol: seconds_of(lake, symbol, span) for symbol in instruments}
    ):
        if not begun:
            begun = True
            watch = settings.market.watch
            watcher.begin(second_ns, opening(lake, instruments, second_ns, watch))
        watcher.close_until(second_ns)
        for symbol, part in rows.items():
            watcher.on_rows(symbol, part)
        if say is not None and time.monotonic() - progress >= PROGRESS_EVERY_S:
            progress = time.monotonic()
            say(f"{instant_text(second_ns)}: features of {' and '.join(watched)}")
    if begun:
        watcher.finish(span.until_ns)
    spent = time.process_time() - started - watcher.seconds["predictions"]
    return watcher.seconds | {"features": spent}


class _Foreseen:
    """The records of several symbols, read along with the seconds of a run."""

    def __init__(self, files: Mapping[str, Path], horizons: int) -> None:
        self._rows = {symbol: _rows(path, horizons) for symbol, path in files.items()}
        self._now = dict.fromkeys(files, 0)
        #: Of each symbol the record at its last bar, as of its last `evaluate`.
        self.current: dict[str, tuple[Any, ...]] = {}

    def push(self, symbol: str, t_ns: int, _: Floats) -> None:
        """A bar closed at ``t_ns``."""
        self._now[symbol] = t_ns

    def push_many(self, symbol: str, t_ns: npt.NDArray[np.int64], bars: Floats) -> None:
        """History: foreseen from it already."""

    def choose(self, names: Collection[str]) -> None:
        """No features are computed."""

    def evaluate(self, symbol: str) -> tuple[Floats, bool]:
        """No vector, and whether the last bar is warm; before the first bar nothing was foreseen."""
        if not self._now[symbol]:
            return _NO_VECTOR, False
        for row in self._rows[symbol]:
            if row[0] >= self._now[symbol]:
                break
        else:
            row = (0,)
        if row[0] != self._now[symbol]:
            raise RuntimeError(f"{symbol}: {self._now[symbol]} was not foreseen")
        self.current[symbol] = row
        return _NO_VECTOR, row[1]


def _rows(path: Path, horizons: int) -> Iterator[tuple[Any, ...]]:
    kind = record(horizons)
    with path.open("rb") as source:
        while len(part := np.fromfile(source, kind, BATCH)):
            yield from part.tolist()


class ForesightTrader(Trader):
    """A trader that decides by what was foreseen (``files`` by symbol); its decisions have no vector."""

    def __init__(self, *arguments: Any, files: Mapping[str, Path], **options: Any) -> None:
        bundle = options["model"].bundle
        self._foreseen = _Foreseen(files, len(bundle.horizons_s))
        self._regimes = [*(regime.name for regime in bundle.manifest.recipe.regimes), NO_REGIME]
        super().__init__(*arguments, **options | {"evaluator": self._foreseen})

    def _expect(self, symbol: str, t_ns: int, vector: Floats) -> Prediction:
        *_, expected_bps, raw_bps, error_bps, scale_bps, regime, by_horizon = (
            self._foreseen.current[symbol]
        )
        return Prediction(
            expected_bps=expected_bps,
            raw_bps=raw_bps,
            error_bps=error_bps,
            scale_bps=scale_bps,
            by_horizon=tuple(by_horizon.tolist()),
            regime=self._regimes[regime],
        )
