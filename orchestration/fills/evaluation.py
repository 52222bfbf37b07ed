"""Fits and scores the fill model on hypothetical orders in captures and in synthetic days.

Orders are placed by `execution.hazard.placements`, and the committed model is scored on their outcomes.
Parameters name the sources they were fitted on, and scores in sample are marked. A synthetic seed gives
the first minutes of every hour of a day, with the best signal that can be known there; recordings have
no signal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from execution import hazard
from execution.hazard import COVARIATES, Fitted, Parameters, placements, survival
from execution.hazard.placements import Placed, Signal, Span
from execution.hazard.survival import Bin, Lives, Score
from execution.simulation.simulator import latency_of
from market.compute import map_tasks
from market.console import Say
from market.errors import DataError, UsageError
from market.events import Events
from market.instruments import Instrument
from market.settings import Settings
from market.units import DAY_NS, HOUR_NS, MINUTE_NS, day_start_ns
from market.wire.survey import instruments_of
from orchestration.capture_events import require_captures, symbol_events

#: The synthetic day and profile, and how much of every hour is used.
DAY: Final = "2026-03-01"
PROFILE: Final = "default"
MINUTES: Final = 5.0
#: Distance at which the price has run away, and the intervals of time since an observation.
AWAY_BPS: Final = 1.0
EDGES_S: Final = (0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)
#: Observations that a fit uses, at most (every n-th): orders of one moment end alike, more add nothing.
MAX_OBSERVATIONS: Final = 30_000
#: Horizons of the reliability diagrams.
HORIZONS_S: Final = (1.0, 5.0, 30.0)


class FillsError(DataError):
    """No parameters are fitted on a kind of source."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of events: a symbol of a capture (``path``) or of a synthetic day (``seed``)."""

    name: str
    symbol: str
    path: str = ""
    seed: int = -1

    @property
    def kind(self) -> str:
        """As `Settings.source`."""
        return "recorded" if self.path else "synthetic"


# -- placing orders --------------------------------------------------------------------------------


def captures(paths: Sequence[str], symbols: Sequence[str]) -> list[Source]:
    """A source for each symbol of each capture; DataError for a missing file."""
    require_captures(paths)
    return [
        Source(name=Path(path).name.removesuffix(".frames.zst"), symbol=symbol, path=path)
        for path in paths
        for symbol in symbols
    ]


def synthetic(seeds: Sequence[int], symbols: Sequence[str]) -> list[Source]:
    """A source for each symbol of each seed."""
    return [
        Source(name=f"seed {seed}", symbol=symbol, seed=seed)
        for seed in seeds
        for symbol in symbols
    ]


def place(source: Source, settings: Settings) -> Placed:
    """Place hypothetical orders into a source; their outcomes."""
    feed, instrument, signal = _open(source, settings)
    return placements.place_orders(
        feed,
        instrument,
        away_bps=AWAY_BPS,
        latency=latency_of(settings.execution),
        signal=signal,
        spans=placements.ALL if source.path else _hourly(),
    )


def _hourly() -> list[Span]:
    """The first minutes of every hour of the synthetic day."""
    midnight_ns = day_start_ns(DAY)
    return [
        Span(begin_ns, begin_ns + round(MINUTES * MINUTE_NS))
        for begin_ns in range(midnight_ns, midnight_ns + DAY_NS, HOUR_NS)
    ]


def _open(source: Source, settings: Settings) -> tuple[Iterator[Events], Instrument, Signal | None]:
    if source.path:
        depth = settings.market.book_depth
        instruments = instruments_of([source.path], [source.symbol], depth)
        feed = symbol_events(source.path, instruments, source.symbol, depth)
        return feed, instruments[source.symbol], None
    from proving.study.forecast import day_with_forecast

    return day_with_forecast(PROFILE, source.seed, source.symbol, DAY)


def place_all(
    sources: Sequence[Source],
    settings: Settings,
    say: Say,
    *,
    workers: int = 2,
    cache: Path | None = None,
) -> dict[Source, Placed]:
    """`place` for each source, in worker processes. UsageError without sources.

    ``cache`` is a folder of outcomes, one file a source, from which an interrupted run resumes. It is
    honest only while code and settings stay the same: empty it when they change.
    """
    if not sources:
        raise UsageError("nothing to place orders into: name --frames or --seeds")
    outcomes = {s: load(cache, s) for s in sources} if cache else dict.fromkeys(sources)
    tasks = [(source, settings) for source, cached in outcomes.items() if cached is None]
    done = 0

    def note(task: tuple[Any, ...], placed: Placed) -> None:
        nonlocal done
        done += 1
        source = task[0]
        outcomes[source] = placed
        if cache:
            store(cache, source, placed)
        count = len(placed.lives[placements.QUEUES[0]].outcome)
        say(f"{done} of {len(tasks)}: {source.name} {source.symbol}, {count} observations")

    map_tasks(place, tasks, workers, note)
    return {source: placed for source, placed in outcomes.items() if placed is not None}


#: Names of fields in cached files, where they differ: folders of earlier versions stay readable.
_STORED: Final = {"observed_s": "looked_s"}


def store(folder: Path, source: Source, placed: Placed) -> None:
    """Cache the outcomes of a source, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _file(folder, source)
    arrays: dict[str, Any] = {
        f"{queue}/{_STORED.get(field, field)}": values
        for queue, lives in placed.lives.items()
        for field, values in lives._asdict().items()
    }
    arrays |= {f"{queue}/refused": np.array(count) for queue, count in placed.refused.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(part, **arrays)
    os.replace(part, path)


def load(folder: Path, source: Source) -> Placed | None:
    """The cached outcomes of a source, None when there are none."""
    path = _file(folder, source)
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return Placed(
            {
                queue: Lives(*(arrays[f"{queue}/{_STORED.get(f, f)}"] for f in Lives._fields))
                for queue in placements.QUEUES
            },
            {queue: int(arrays[f"{queue}/refused"]) for queue in placements.QUEUES},
        )


def _file(folder: Path, source: Source) -> Path:
    return folder / f"{source.name.replace(' ', '-')}-{source.symbol}.npz"


# -- fitting ---------------------------------------------------------------------------------------


def fit(outcomes: Mapping[Source, Placed], previous: Parameters | None) -> Parameters:
    """Parameters fitted on sources, recorded and synthetic ones apart.

    A kind without a source keeps the parameters of ``previous``.
    """
    fits = dict(previous.fits) if previous else {}
    for kind in dict.fromkeys(source.kind for source in outcomes):
        of_kind = {source: placed for source, placed in outcomes.items() if source.kind == kind}
        by_queue: dict[str, Fitted] = {}
        ridge: float | None = None
        for queue in placements.QUEUES:
            parts = [placed.lives[queue] for placed in of_kind.values()]
            fitted = by_queue[queue] = _fit_queue(parts, of_kind, ridge)
            ridge = fitted.ridge  # bounds differ little and are compared: the same ridge for both
        fits[kind] = by_queue
    return Parameters(away_bps=AWAY_BPS, edges_s=EDGES_S, covariates=COVARIATES, fits=fits)


def _fit_queue(parts: Sequence[Lives], sources: Iterable[Source], ridge: float | None) -> Fitted:
    """The fit under one queue bound; a ridge of None is chosen by cross-validation."""
    lives = survival.joined(parts)
    used, _ = survival.thin(lives, MAX_OBSERVATIONS)
    if ridge is None:
        ridge = survival.chosen_ridge(used, EDGES_S)
    causes, _ = survival.fit(used, EDGES_S, ridge=ridge)
    return Fitted(
        causes=causes,
        rates=survival.rates(lives),
        ridge=ridge,
        looks=len(used.outcome),
        fitted_on=tuple(dict.fromkeys(source.name for source in sources)),
    )


def write_parameters(parameters: Parameters, path: Path | None = None) -> Path:
    """Write parameters as JSON, by default to the committed file."""
    path = path or hazard.PARAMETERS
    path.write_bytes(msgspec.json.format(msgspec.json.encode(parameters), indent=1) + b"\n")
    return path


# -- scoring ---------------------------------------------------------------------------------------


class SourceScore(msgspec.Struct, frozen=True, kw_only=True):
    """The score, on the orders of one source, of the model fitted on that kind of source."""

    source: str
    symbol: str
    kind: str
    queue: str
    fitted: bool  #: whether the source is in the fit (in sample)
    score: Score
    refused: int


class ReliabilityDiagram(msgspec.Struct, frozen=True, kw_only=True):
    """Reliability over all sources of a kind in sample (``fitted``), or out of sample."""

    kind: str
    queue: str
    fitted: bool
    horizon_s: float
    bins: list[Bin]


class FillReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `l2 fills`."""

    judged: list[SourceScore]
    diagrams: list[ReliabilityDiagram]
    fits: dict[str, dict[str, Fitted]]


def evaluate(outcomes: Mapping[Source, Placed], parameters: Parameters) -> FillReport:
    """Score every source; reliability diagrams over the sources of a kind together.

    FillsError for a kind of source without a fit.
    """
    scores: list[SourceScore] = []
    diagrams: list[ReliabilityDiagram] = []
    groups: dict[tuple[str, str, bool], list[tuple[Lives, survival.Floats]]] = {}
    for source, placed in outcomes.items():
        if source.kind not in parameters.fits:
            raise FillsError(f"nothing is fitted on {source.kind} data; fit it with --fit")
        for queue, lives in placed.lives.items():
            if len(lives.outcome) == 0:
                continue
            fitted = parameters.fits[source.kind][queue]
            hazards = survival.hazards(fitted.causes, lives.covariates, parameters.edges_s)
            baseline = survival.constant(fitted.rates, parameters.edges_s)
            in_sample = source.name in fitted.fitted_on
            groups.setdefault((source.kind, queue, in_sample), []).append((lives, hazards))
            scores.append(
                SourceScore(
                    source=source.name,
                    symbol=source.symbol,
                    kind=source.kind,
                    queue=queue,
                    fitted=in_sample,
                    score=survival.score(lives, hazards, baseline, parameters.edges_s),
                    refused=placed.refused[queue],
                )
            )
    for (kind, queue, in_sample), parts in groups.items():
        lives = survival.joined([lives for lives, _ in parts])
        hazards = np.concatenate([hazards for _, hazards in parts])
        diagrams += [
            ReliabilityDiagram(
                kind=kind,
                queue=queue,
                fitted=in_sample,
                horizon_s=horizon,
                bins=survival.reliability(lives, hazards, parameters.edges_s, horizon),
            )
            for horizon in HORIZONS_S
        ]
    return FillReport(judged=scores, diagrams=diagrams, fits=parameters.fits)


def run(
    settings: Settings,
    sources: Sequence[Source],
    say: Say,
    *,
    fit_first: bool = False,
    workers: int = 2,
    cache: Path | None = None,
) -> FillReport:
    """Place orders into sources and score the committed model on them.

    With ``fit_first`` the model is fitted on them first, and its parameters are written.
    """
    outcomes = place_all(sources, settings, say, workers=workers, cache=cache)
    if not fit_first:
        return evaluate(outcomes, hazard.committed())
    parameters = fit(outcomes, _committed())
    say(f"parameters written to {write_parameters(parameters)}")
    return evaluate(outcomes, parameters)


def _committed() -> Parameters | None:
    """The committed parameters, None when they do not fit the code's covariates or intervals."""
    try:
        return hazard.committed()
    except (OSError, ValueError):
        return None
