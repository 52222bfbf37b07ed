"""Columns and models of one's own where the pipeline's are: what `orchestration.research` judges.

A model is anything with scikit-learn's ``fit(X, y)`` and ``predict(X)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market.errors import UsageError
from market.features.expression import WARM_S
from market.features.precision import Float32, rounded
from market.settings import FEE_ROWS_BPS, Model
from models_registry import ensemble, labels, probes
from models_registry.dataset import Features, Rows, Source, values_at
from models_registry.ensemble import FittedBooster
from models_registry.fold import Trainer, Tuned
from models_registry.probes import Probe
from models_registry.recipe import Scale, scale_bps
from models_registry.validation import Fold, combinatorial_folds

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: What a model of one's own learns: the return in units of volatility, the side on which a round trip earns more
#: than it costs, or the first of two barriers.
Label = Literal["return", "cost_aware", "triple_barrier"]

#: Rows at the end of a column that the truncation probe computes again.
PROBED_ROWS: Final = 20_000


class ResearchError(UsageError):
    """What was asked of research cannot be done; the message names what, and what to do."""


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column of one's own: by symbol the times (n,), rising, and values (n,); and its truncation probe."""

    name: str
    values: Mapping[str, tuple[Int, Float]]
    probe: Probe


class OwnSource:
    """The rows of a source on some dates, with columns of one's own, by name, beside its own."""

    def __init__(
        self,
        source: Source,
        days: Sequence[str],
        symbols: Sequence[str],
        own: Mapping[str, Column],
    ) -> None:
        self._source, self._days, self._symbols, self._own = source, tuple(days), symbols, own
        self._goals: Mapping[int, tuple[Int, Float]] = {}

    def learning(self, label: Label, model: Model) -> OwnSource:
        """The same rows, with what ``label`` says of each as one more column of labels, which a model of one's own
        learns. ResearchError for an unknown one.
        """
        if label not in get_args(Label):
            raise ResearchError(f"label {label!r}: expected one of {', '.join(get_args(Label))}")
        made = OwnSource(self._source, self._days, self._symbols, self._own)
        if label != "return":
            made._goals = labelled(self, label, model)
        return made

    def dates(self) -> tuple[str, ...]:
        return self._days

    def read(self, days: Iterable[str], features: Sequence[str], stride_s: int = 1) -> Rows:
        theirs = [name for name in features if name not in self._own]
        rows = self._source.read(days, theirs, stride_s)
        matrix = np.empty((len(rows), len(features)), np.float32)
        for at, name in enumerate(features):
            if name in theirs:
                matrix[:, at] = rows.features[:, theirs.index(name)]
                continue
            for index, symbol in enumerate(self._symbols):
                chosen = rows.symbol == index
                values = values_at(*self._own[name].values[symbol], rows.t_ns[chosen])
                matrix[chosen, at] = rounded(values)
        rows = msgspec.structs.replace(rows, features=matrix)
        if not self._goals:
            return rows
        goal = np.full(len(rows), np.nan)
        for index, known in self._goals.items():
            own = rows.symbol == index
            goal[own] = values_at(*known, rows.t_ns[own])
        return msgspec.structs.replace(rows, labels_bps=np.column_stack((rows.labels_bps, goal)))


def labelled(source: Source, label: Label, model: Model) -> dict[int, tuple[Int, Float]]:
    """Times and labels over the primary horizon of every second, by symbol (`models_registry.labels`).

    Prices are the touch, costs the taker fees of the settings' row; a barrier is as far as the volatility over the
    horizon.
    """
    found: dict[int, tuple[Int, Float]] = {}
    rows = source.read(source.dates(), [ensemble.SCALE_FEATURE], 1)
    scale = Scale(feature=ensemble.SCALE_FEATURE, window_s=ensemble.SCALE_WINDOW_S, floor_bps=0.0)
    for index in np.unique(rows.symbol):
        one = rows.where(rows.symbol == index)
        bid, ask = (one.mid * (1 + side * one.spread_bps / 2e4) for side in (-1, 1))
        if label == "cost_aware":
            fee_bps = FEE_ROWS_BPS[model.fee_row][0]
            made = labels.cost_aware(one.t_ns, bid, ask, model.primary_s, fee_bps).label
        else:
            width = 1e-4 * scale_bps(one.features[:, 0].astype(float), scale, model.primary_s)
            made, _ = labels.triple_barrier(one.t_ns, bid, ask, width, model.primary_s)
        found[int(index)] = one.t_ns, made
    return found


def combinatorial(
    source: Source, model: Model, groups: int, test_groups: int
) -> Sequence[Sequence[Fold]]:
    """The paths of `combinatorial_folds` over a source; ResearchError for groups that make none."""
    t_ns = source.read(source.dates(), [ensemble.SCALE_FEATURE], model.train_stride_s).t_ns
    try:
        # The embargo is the longest span that a warm row rests on.
        return combinatorial_folds(
            t_ns, groups=groups, test_groups=test_groups, max_horizon_s=max(model.horizons_s),
            calibration_share=model.calibration_share, embargo_s=max(WARM_S),
        )  # fmt: skip
    except ValueError as error:
        raise ResearchError(f"combinatorial folds: {error}; ask for other groups") from error


class _Fitted:
    """A fitted model as a recipe asks a booster: its output (n,) for rows (n, features)."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name, self._seen = model, name, (np.empty(0, np.float32), np.empty(0))

    def predict(self, rows: Float32, raw_score: bool = True, num_threads: int = 1) -> Float:
        if rows is not self._seen[0]:  # the members of every horizon ask for the same rows
            made = np.asarray(_called(self._name, self._model.predict, rows), np.float64)
            if made.shape != (len(rows),) or not np.isfinite(made).all():
                raise ResearchError(
                    f"{self._name}: predict gave not one finite number for each of {len(rows)} rows"
                )
            self._seen = rows, made
        return self._seen[1]


class OwnBooster(FittedBooster, frozen=True, kw_only=True):
    """A fitted model of one's own in the place of a booster; it is never served."""

    fitted: _Fitted

    def booster(self) -> Any:
        return self.fitted


class OwnTrainer(Trainer):
    """Fits ``own`` on each fold in the place of boosters, on all features given.

    It gets X float32 (n, features), NaN for NULL, and y (n,), the primary label in units of trailing
    volatility, clipped as boosters get it (`models_registry.ensemble`), or that of `OwnSource.learning`, with its
    uniqueness as ``sample_weight`` where ``fit`` takes one. Its output is calibrated on returns and acted on as
    theirs.
    """

    def __init__(
        self, source: Any, features: Features, model: Model, *more: Any, own: Any, name: str
    ) -> None:
        model = msgspec.structs.replace(model, select=0, trials=0)
        super().__init__(source, features, model, *more)
        self.tuned = Tuned()
        self._own, self._name = own, name

    def _weights(self, *_: Any) -> Float:
        return np.array(
            [float(horizon == self._model.primary_s) for horizon in self._model.horizons_s]
        )

    def _members(
        self, rows: Rows, volatility: Float, scale: Scale, names: tuple[str, ...]
    ) -> tuple[FittedBooster, ...]:
        from sklearn.base import clone
        from sklearn.utils.validation import has_fit_parameter

        model, fitted = self._model, clone(self._own, safe=False)
        goals = ensemble.targets(rows.labels_bps, volatility, scale, model.horizons_s)
        goal = goals[:, model.horizons_s.index(model.primary_s)]
        if rows.labels_bps.shape[1] > len(model.horizons_s):
            goal = rows.labels_bps[:, -1]
        known, more = ~np.isnan(goal), {}
        if has_fit_parameter(fitted, "sample_weight"):
            more["sample_weight"] = labels.weights(rows.t_ns, rows.symbol, model.primary_s)[known]
        y = np.clip(goal[known], -ensemble.CLIP, ensemble.CLIP)
        _called(self._name, fitted.fit, rows.features[known], y, **more)
        shared, text = _Fitted(fitted, self._name), repr(self._own)
        return tuple(
            OwnBooster(horizon_s=horizon, objective="return", text=text, fitted=shared)
            for horizon in model.horizons_s
        )


def _called(name: str, function: Callable[..., Any], *given: Any, **more: Any) -> Any:
    try:
        return function(*given, **more)
    except Exception as error:
        raise ResearchError(
            f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        ) from error


def _values(name: str, made: str | Callable[..., Any], rows: pa.Table) -> Float:
    if isinstance(made, str):
        connection = duckdb.connect().register("rows", rows)
        query = f"select ({made})::double as value from rows order by t_ns"
        found = queried(connection, query, f"{name}: {made}")["value"].to_numpy()
    else:
        needed = list(inspect.signature(made).parameters)
        frame = rows.select(needed).to_pandas()
        found = _called(name, made, **{column: frame[column] for column in needed})
    values = np.asarray(found, np.float64)
    if values.shape != (len(rows),):
        raise ResearchError(
            f"{name}: gave shape {values.shape} for {len(rows)} rows; one value each is expected"
        )
    return values


def computed(name: str, made: str | Callable[..., Any], rows: pa.Table) -> tuple[Float, Probe]:
    """A column (n,) of rows (n) by time, and its `probes.truncation` over the last of them.

    ``made`` is an SQL expression or a function of columns. ResearchError when it fails.
    """
    tail = rows.slice(max(0, len(rows) - PROBED_ROWS))

    def again(count: int) -> Float:
        return _values(name, made, tail.slice(0, count))[:, np.newaxis]

    found = probes.truncation(again, len(tail), (len(tail) // 3, len(tail) // 2))
    probe = msgspec.structs.replace(found, text=f"{name}: {found.text}")
    return _values(name, made, rows), probe


def queried(connection: duckdb.DuckDBPyConnection, query: str, about: str) -> pa.Table:
    """The result; ResearchError with DuckDB's first line."""
    try:
        return connection.execute(query).to_arrow_table()
    except duckdb.Error as error:
        raise ResearchError(f"{about}: {str(error).strip().partition(chr(10))[0]}") from error
