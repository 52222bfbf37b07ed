"""One fold's model: boosters of all that is past, stacked and calibrated by what was seen out of sample.

    first fold     |TTTTTTTTTTT head .| tail |.|CCCC calibration|.|#### test|
    later folds    |TTTTTTTTTTTTTTT head .|   tail   |.SSSSSSSS seen|#### test|

Features and hyper-parameters come from boosters of the head, judged on the tail. Stacking weights and
slopes are those of the procedure, not of one set of boosters: they come from its outputs on the first
calibration span and on all test blocks before this one, each by boosters of what lay before it
(prequential, Dawid 1984), the latest with most weight. So no fold but the first holds rows back from its
boosters, and a change of the market is learned at the next fold. The final model is made the same way. Each
fold of combinatorial validation is like a first one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.compute import mapping, on_cluster
from market.settings import Model, Settings
from market.units import SECOND_NS, utc_date
from models_registry import dataset, ensemble, selection
from models_registry.dataset import Features, Rows, Source
from models_registry.ensemble import BoosterParameters, FittedBooster, Outputs
from models_registry.recipe import Recipe, Scale
from models_registry.selection import FoldSelection
from models_registry.tuning import Studies, tune
from models_registry.validation import (
    Decisions,
    Fold,
    Int,
    Mask,
    TimeSpan,
    effective_count,
    split_tail,
    walk_forward,
)

Float = npt.NDArray[np.float64]
Progress = Callable[[str], None]

#: Memory of one fold's task on a cluster (GB).
MEMORY_GB: Final = 4.0
#: The share of the training span, at its end, that judges features, parameters and weights.
TAIL_SHARE: Final = 0.25
#: Rows that features are selected on, at most; more are thinned to a multiple of the stride.
SELECTION_ROWS: Final = 400_000
#: Rows seen out of sample that weights and slopes are fitted on, at most, thinned likewise: labels of a minute
#: overlap so much that more of them say little, and hold gigabytes.
SEEN_ROWS: Final = 1_000_000


def thinned_s(stride_s: int, rows: int, most: int) -> int:
    """The least multiple of a stride at which no more than ``most`` of these rows are left (seconds)."""
    return stride_s * max(1, -(-rows // most))


def folds_of(t_ns: Int, model: Model) -> tuple[Fold, ...]:
    """The walk-forward folds of decisions at these times (n,) that the settings ask for."""
    return walk_forward(
        t_ns,
        min_train_days=model.min_train_days,
        max_test_blocks=model.max_test_blocks,
        calibration_share=model.calibration_share,
        max_horizon_s=max(model.horizons_s),
    )


class FoldModel(msgspec.Struct, frozen=True, kw_only=True):
    """A fold's recipe and boosters. ``selection`` is None where all candidates are taken."""

    recipe: Recipe
    members: tuple[FittedBooster, ...]
    selection: FoldSelection | None
    train_rows: int
    calibration_rows: int


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters by horizon, the primary horizon's rank IC, and the seconds of training span they saw.

    ``looks`` counts the trials so far: every one of each horizon and span.
    """

    parameters: Mapping[int, BoosterParameters] = {}
    ic: float = math.nan
    span_s: float = 0.0
    looks: int = 0


class Ahead(msgspec.Struct, frozen=True, kw_only=True):
    """What of a fold rests on its own past alone, and was made elsewhere (`fit_ahead`)."""

    selection: FoldSelection | None
    tuned: Tuned
    members: tuple[FittedBooster, ...] = ()


class Trainer:
    """Fits fold after fold of a source; ``tuned`` are the parameters in force.

    Rows of all candidate features are held at the coarsest stride that selection needs, others are read by
    the fold. DatasetError without the scale feature.
    """

    def __init__(
        self, source: Source, features: Features, model: Model, studies: Studies | None,
        progress: Progress,
    ) -> None:  # fmt: skip
        if ensemble.SCALE_FEATURE not in features.names:
            raise dataset.DatasetError(
                f"the features lack {ensemble.SCALE_FEATURE}, which scales the labels; define it"
            )
        self._source, self._features, self._model = source, features, model
        self._studies, self._progress = studies, progress
        self.tuned = Tuned(parameters=dict.fromkeys(model.horizons_s, BoosterParameters()))
        #: Outputs of all folds so far, out of sample; None before the first one.
        self.seen: Outputs | None = None
        #: By the begin of a fold's test block.
        self.ahead: dict[int, Ahead] = {}
        self.dates = source.dates()
        #: Training rows without features: what folds are made of.
        self.rows = source.read(self.dates, [ensemble.SCALE_FEATURE], model.train_stride_s)
        stride_s, count = model.train_stride_s, len(self.rows)
        self._stride_s = thinned_s(stride_s, count, SELECTION_ROWS) if model.select else 0
        self.seen_stride_s = thinned_s(stride_s, count, SEEN_ROWS)
        self._candidates = (
            source.read(self.dates, features.names, self._stride_s) if model.select else None
        )

    def read(self, names: tuple[str, ...], span: TimeSpan) -> tuple[Rows, Float]:
        """Training rows of a span with these features, and their volatility."""
        if self._candidates is not None and self._stride_s == self._model.train_stride_s:
            rows = self._candidates.where(_within(self._candidates, span))
            columns = [self._features.names.index(name) for name in names]
            rows = msgspec.structs.replace(rows, features=rows.features.take(columns, axis=1))
        else:
            first, last = (
                utc_date(ns) for ns in (max(span.after_ns, 0), max(span.until_ns - 1, 0))
            )
            days = [day for day in self.dates if first <= day <= last]
            rows = self._source.read(days, names, self._model.train_stride_s)
            # Views: every second of 30 days is half a gigabyte of features.
            rows = rows.where(_within(rows, span))
        volatility = rows.features[:, names.index(ensemble.SCALE_FEATURE)].astype(np.float64)
        return rows, volatility

    def fit(self, fold: Fold) -> FoldModel | str:
        """The fold's model, or the reason why it has too few rows."""
        model = self._model
        if lacking := self.lacks(fold):
            return lacking
        # Only of a fold whose past is all that lies before it can earlier folds say anything.
        first = self.seen is None or isinstance(fold.train, Decisions)
        ahead = self.ahead.get(fold.test.after_ns)
        span, head, tail = self.spans(fold, first)
        chosen = ahead.selection if ahead else self.select(head, tail)
        names = self.names(chosen)
        if ahead:
            self.tuned = ahead.tuned
        elif self.due(fold):
            self.forget(fold)
            self.note(fold, self.search(fold, names, head, tail, model.horizons_s))
        rows, volatility = self.read(names, span)
        scale = ensemble.scale_of(volatility)
        members = ahead.members if ahead else self._members(rows, volatility, scale, names)
        count = len(rows)
        del rows
        if first:
            held, held_volatility = self.read(names, fold.calibration)
            thin = held.t_ns // SECOND_NS % self.seen_stride_s == 0
            held, held_volatility = held.where(thin), held_volatility[thin]
            output = ensemble.outputs(members, held.features, model.threads)
            self.seen = _bare(held, held_volatility, output)
        assert self.seen is not None
        # The labels of the last rows of a test block reach into the next one.
        seen = self.seen.where(self.seen.rows.t_ns <= fold.calibration.until_ns)
        recipe = ensemble.combine(
            members,
            self._weights(seen, scale),
            seen,
            scale,
            ensemble.regime_edges(volatility),
            names,
            model,
        )
        return FoldModel(
            recipe=recipe,
            members=members,
            selection=chosen,
            train_rows=count,
            calibration_rows=len(seen.rows),
        )

    def lacks(self, fold: Fold) -> str:
        """Why a fold has too few rows; "" where it has enough."""
        inside = fold.train.mask(self.rows.t_ns)
        # The one feature of these rows is the scale.
        known = ~np.isnan(self.rows.labels_bps[inside]) & ~np.isnan(self.rows.features[inside])
        for horizon, count in zip(self._model.horizons_s, known.sum(axis=0), strict=False):
            if count < ensemble.MIN_TRAIN_ROWS:
                return (
                    f"{count} training rows with a label at {horizon} s and {ensemble.SCALE_FEATURE} "
                    f"of at least {ensemble.MIN_TRAIN_ROWS}"
                )
        return ""

    def spans(self, fold: Fold, first: bool) -> tuple[TimeSpan, TimeSpan, TimeSpan]:
        """The span of a fold's boosters, of its head, and of its tail."""
        span = fold.train if first else TimeSpan(fold.train.after_ns, fold.calibration.until_ns)
        head, tail = split_tail(self.rows.t_ns, span, TAIL_SHARE, max(self._model.horizons_s))
        return span, head, tail

    def names(self, chosen: FoldSelection | None) -> tuple[str, ...]:
        """The features that a fold's boosters take."""
        wanted = {*chosen.names, ensemble.SCALE_FEATURE} if chosen else self._features.names
        return tuple(name for name in self._features.names if name in wanted)

    def boosters(self, names: tuple[str, ...], span: TimeSpan) -> tuple[FittedBooster, ...]:
        """A fold's boosters with the parameters in force."""
        rows, volatility = self.read(names, span)
        return self._members(rows, volatility, ensemble.scale_of(volatility), names)

    def _members(
        self, rows: Rows, volatility: Float, scale: Scale, names: tuple[str, ...]
    ) -> tuple[FittedBooster, ...]:
        return ensemble.fit(rows, volatility, scale, names, self.tuned.parameters, self._model)

    def _weights(self, seen: Outputs, scale: Scale) -> Float:
        return ensemble.stack(seen, scale, self._model)

    def add(self, rows: Rows, volatility: Float, output: Float) -> None:
        """Outputs of the last fold's boosters on rows after its training, whose outcome is known."""
        new = _bare(rows, volatility, output)
        self.seen = new if self.seen is None else self.seen.then(new)

    def select(self, head: TimeSpan, tail: TimeSpan) -> FoldSelection | None:
        """The features that a fold takes; None for all."""
        rows, model = self._candidates, self._model
        if rows is None:
            return None
        names = self._features.names
        train, scored = rows.where(head.mask(rows.t_ns)), rows.where(tail.mask(rows.t_ns))
        column = names.index(ensemble.SCALE_FEATURE)
        scale = ensemble.scale_of(train.features[:, column].astype(np.float64))
        goals = [
            ensemble.targets(
                part.labels_bps, part.features[:, column].astype(float), scale, model.horizons_s
            )[:, model.horizons_s.index(model.primary_s)]
            for part in (train, scored)
        ]
        return selection.select(
            train,
            goals[0],
            scored,
            goals[1],
            names,
            count=model.select,
            horizon_s=model.primary_s,
            stride_s=self._stride_s,
            seed=model.seed,
            threads=model.threads,
        )

    def due(self, fold: Fold) -> bool:
        """Whether hyper-parameters are searched for anew: when the span has doubled, or is no past."""
        span_s = (fold.train.until_ns - fold.train.after_ns) / 1e9
        anew = isinstance(fold.train, Decisions) or span_s >= 2 * self.tuned.span_s
        return bool(self._model.trials) and anew

    def forget(self, fold: Fold) -> None:
        """Drop what was found for other combinatorial folds, which were trained on this one's test group."""
        if isinstance(fold.train, Decisions):
            blank = dict.fromkeys(self._model.horizons_s, BoosterParameters())
            self.tuned = Tuned(parameters=blank, looks=self.tuned.looks)

    def search(
        self,
        fold: Fold,
        names: tuple[str, ...],
        head: TimeSpan,
        tail: TimeSpan,
        horizons: Sequence[int],
    ) -> dict[int, tuple[BoosterParameters, float]]:
        """Parameters and rank IC at these horizons, but those at which the tail is too short to judge."""
        model = self._model
        train, volatility = self.read(names, head)
        scored, scored_volatility = self.read(names, tail)
        scale = ensemble.scale_of(volatility)
        goals = ensemble.targets(train.labels_bps, volatility, scale, model.horizons_s)
        realised = ensemble.targets(scored.labels_bps, scored_volatility, scale, model.horizons_s)

        def judges(horizon: int) -> bool:
            known = ~np.isnan(realised[:, model.horizons_s.index(horizon)])
            return effective_count(scored.t_ns[known], horizon) >= ensemble.MIN_EFFECTIVE

        horizons = [horizon for horizon in horizons if judges(horizon)]
        if not horizons:
            return {}
        data = ensemble.bin_features(train.features, names, model.threads)

        def one(horizon: int) -> tuple[BoosterParameters, float]:
            column = model.horizons_s.index(horizon)

            def fit(parameters: BoosterParameters, watch: Any) -> FittedBooster:
                return ensemble.fit_booster(
                    data, goals[:, column], parameters, horizon_s=horizon,
                    stride_s=model.train_stride_s, seed=model.seed, threads=1, watch=watch,
                )  # fmt: skip

            return tune(
                fit,
                scored.features,
                realised[:, column],
                first=self.tuned.parameters.get(horizon, BoosterParameters()),
                trials=model.trials,
                seed=model.seed,
                studies=self._studies,
                name=f"{horizon} s before {fold.test_dates[0]}",
            )

        with ThreadPoolExecutor(model.threads) as pool:
            return dict(zip(horizons, pool.map(one, horizons), strict=True))

    def note(self, fold: Fold, found: Mapping[int, tuple[BoosterParameters, float]]) -> None:
        """Put what a search found into force."""
        primary_s = self._model.primary_s
        if not found:
            return
        self.tuned = Tuned(
            parameters={**self.tuned.parameters, **{h: best for h, (best, _) in found.items()}},
            ic=found[primary_s][1] if primary_s in found else self.tuned.ic,
            span_s=(fold.train.until_ns - fold.train.after_ns) / 1e9,
            looks=self.tuned.looks + max(0, self._model.trials) * len(found),
        )
        self._progress(
            f"tuned within the training span before {fold.test_dates[0]}: rank IC {self.tuned.ic:.4f}"
        )


# -- on a cluster ----------------------------------------------------------------------------------


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a task of a fold needs to do as the trainer would; all of it is read from the source."""

    source: Any
    features: Features
    model: Model
    studies: Studies | None
    fold: Fold
    first: bool
    selection: FoldSelection | None = None
    tuned: Tuned = Tuned()
    horizon_s: int = 0

    def trainer(self) -> Trainer:
        made = Trainer(self.source, self.features, self.model, self.studies, lambda line: None)
        made.tuned = self.tuned
        return made


def selected(work: Work) -> FoldSelection | None:
    """The features of a fold."""
    trainer = work.trainer()
    return trainer.select(*trainer.spans(work.fold, work.first)[1:])


def searched(work: Work) -> dict[int, tuple[BoosterParameters, float]]:
    """The parameters of a fold at one horizon."""
    trainer = work.trainer()
    _, head, tail = trainer.spans(work.fold, work.first)
    names = trainer.names(work.selection)
    return trainer.search(work.fold, names, head, tail, [work.horizon_s])


def boosted(work: Work) -> tuple[FittedBooster, ...]:
    """The boosters of a fold."""
    trainer = work.trainer()
    span, _, _ = trainer.spans(work.fold, work.first)
    return trainer.boosters(trainer.names(work.selection), span)


def fit_ahead(
    trainer: Trainer, given: tuple[Any, Features, Model, Studies | None], folds: Sequence[Fold],
    settings: Settings, progress: Progress,
) -> None:  # fmt: skip
    """On the cluster of the settings make what of each fold rests on its own past alone: selections side by
    side, then the searches, each after the one before it, horizons side by side, then all boosters. `fit`
    weighs them one after the other. Nothing without a cluster. ComputeError as `mapping`.
    """
    if not on_cluster(settings):
        return
    whole = [fold for fold in folds if not trainer.lacks(fold)]
    source, features, model, studies = given
    works = [
        Work(source=source, features=features, model=model, studies=studies, fold=fold,
             first=fold is whole[0] or isinstance(fold.train, Decisions))
        for fold in whole
    ]  # fmt: skip
    replace, found = msgspec.structs.replace, dict[int, Any]()
    with mapping(1, settings, MEMORY_GB) as mapped:

        def each(what: str, function: Callable[[Work], Any], of: Collection[Work]) -> list[Any]:
            found.clear()

            def done(task: tuple[Any, ...], result: Any) -> None:
                found[id(task[0])] = result
                progress(f"{task[0].fold.test_dates[0]}: {what} ({len(found)} of {len(of)})")

            mapped(function, [(work,) for work in of], done)
            return [found[id(work)] for work in of]

        chosen = each("features selected", selected, works)
        works = [replace(w, selection=c) for w, c in zip(works, chosen, strict=True)]
        for number, work in enumerate(works):
            if trainer.due(work.fold):
                trainer.forget(work.fold)
                searches = [
                    replace(work, tuned=trainer.tuned, horizon_s=horizon)
                    for horizon in model.horizons_s
                ]
                parts = each("searched", searched, searches)
                trainer.note(work.fold, {h: best for part in parts for h, best in part.items()})
            works[number] = replace(work, tuned=trainer.tuned)
        for work, members in zip(works, each("boosters fitted", boosted, works), strict=True):
            trainer.ahead[work.fold.test.after_ns] = Ahead(
                selection=work.selection, tuned=work.tuned, members=members
            )


def _bare(rows: Rows, volatility: Float, output: Float) -> Outputs:
    rows = msgspec.structs.replace(rows, features=np.empty((len(rows), 0), np.float32))
    return Outputs(rows=rows, volatility=volatility, output=output)


#: What fits a source's folds: `Trainer`, or another of its kind.
Fits = Callable[[Source, Features, Model, Studies | None, Progress], Trainer]


def _within(rows: Rows, span: TimeSpan) -> slice | Mask:
    """Where the rows of a span are among rows by time: between its ends, unless it names its decisions."""
    if isinstance(span, Decisions):
        return span.mask(rows.t_ns)
    first, last = np.searchsorted(rows.t_ns, (span.after_ns, span.until_ns), side="right")
    return slice(int(first), int(last))
