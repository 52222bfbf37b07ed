"""`l2 fills`: how well the fill model foretells hypothetical orders; ``--fit`` fits it anew.

Orders are placed into captures and into synthetic days (`execution.hazard.placements`), and the
committed model is scored on what became of them. Sources that a model was fitted on are named in its
parameters and marked where they are scored. A synthetic seed gives the first minutes of every hour of
a day, and the best signal that can be known there; recordings have none.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from execution import hazard
from execution.hazard import COVARIATES, Fitted, Parameters, placements, survival
from execution.hazard.placements import Placed, Signal, Span
from execution.hazard.survival import Bin, Lives, Score
from execution.simulation.simulator import latency_of
from market.console import Result, Say, names, say, seeds, table
from market.errors import DataError
from market.events import Events
from market.instruments import Instrument
from market.settings import Settings
from market.units import SECOND_NS, day_start_ns
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of

#: The synthetic day, and the profile.
DAY: Final = "2026-03-01"
#: Of every hour of a synthetic day, these first minutes are looked at.
MINUTES: Final = 5.0
PROFILE: Final = "default"
#: Distance at which the price counts as run away, and the intervals of time since a look.
AWAY_BPS: Final = 1.0
EDGES_S: Final = (0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)
#: More looks than these tell no more, because orders of one moment end alike; every n-th is used.
MOST_LOOKS: Final = 30_000
#: Horizons of the reliability diagrams.
HORIZONS_S: Final = (1.0, 5.0, 30.0)


class FillsError(DataError):
    """What was asked cannot be fitted or scored."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of events: a symbol of a capture, or an hour of a synthetic symbol-day."""

    name: str
    symbol: str
    path: str = ""
    seed: int = -1

    @property
    def kind(self) -> str:
        """As `Settings.source`."""
        return "recorded" if self.path else "synthetic"


def captures(paths: Sequence[str], symbols: Sequence[str]) -> list[Source]:
    """A source for each symbol of each capture; FillsError for a file that is not there."""
    for path in paths:
        if not Path(path).is_file():
            raise FillsError(f"{path}: no such capture")
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


def placed(source: Source, settings: Settings) -> Placed:
    """Place orders into a source; what became of them."""
    feed, instrument, signal = _opened(source, settings)
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
        Span(begin_ns, begin_ns + round(MINUTES * 60 * SECOND_NS))
        for begin_ns in range(midnight_ns, midnight_ns + 86_400 * SECOND_NS, 3600 * SECOND_NS)
    ]


def _opened(
    source: Source, settings: Settings
) -> tuple[Iterator[Events], Instrument, Signal | None]:
    if source.path:
        instruments = instruments_of([source.path], [source.symbol], settings.market.book_depth)
        return (
            _captured(source, instruments, settings.market.book_depth),
            instruments[source.symbol],
            None,
        )
    from proving.study.forecast import day_with_forecast

    return day_with_forecast(PROFILE, source.seed, source.symbol, DAY)


def _captured(
    source: Source, instruments: Mapping[str, Instrument], depth: int
) -> Iterator[Events]:
    decoder = Decoder(instruments, depth, [source.symbol], follow=False)
    for block in read_blocks(source.path):
        events = decoder.decode_block(block).events.get(source.symbol)
        if events is not None:
            yield events


def placed_in_all(
    sources: Sequence[Source],
    settings: Settings,
    say: Say,
    *,
    workers: int = 2,
    keep: Path | None = None,
) -> dict[Source, Placed]:
    """`placed` of each source, each in a process of its own.

    ``keep`` is a folder where what became of the orders is kept, one file a source: a run that was
    stopped goes on there. Empty it when the code or the settings have changed.
    """
    if not sources:
        raise FillsError("nothing to place orders into: name --frames or --seeds")
    results = {s: _kept(keep, s) for s in sources} if keep else dict.fromkeys(sources)
    missing = [source for source, there in results.items() if there is None]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        asked = {pool.submit(placed, source, settings): source for source in missing}
        for done, future in enumerate(as_completed(asked), 1):
            source = asked[future]
            result = results[source] = future.result()
            if keep:
                store(keep, source, result)
            looks = len(result.lives[placements.QUEUES[0]].outcome)
            say(f"{done} of {len(asked)}: {source.name} {source.symbol}, {looks} looks")
    return {source: result for source, result in results.items() if result is not None}


def store(folder: Path, source: Source, found: Placed) -> None:
    """Keep what became of a source's orders, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _file(folder, source)
    arrays: dict[str, Any] = {
        f"{queue}/{field}": values
        for queue, lives in found.lives.items()
        for field, values in lives._asdict().items()
    }
    arrays |= {f"{queue}/refused": np.array(count) for queue, count in found.refused.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(part, **arrays)
    os.replace(part, path)


def _kept(folder: Path, source: Source) -> Placed | None:
    path = _file(folder, source)
    if not path.exists():
        return None
    with np.load(path) as held:
        return Placed(
            {
                queue: Lives(*(held[f"{queue}/{field}"] for field in Lives._fields))
                for queue in placements.QUEUES
            },
            {queue: int(held[f"{queue}/refused"]) for queue in placements.QUEUES},
        )


def _file(folder: Path, source: Source) -> Path:
    return folder / f"{source.name.replace(' ', '-')}-{source.symbol}.npz"


# -- fitting -----------------------------------------------------------------------------------------


def fitted(found: Mapping[Source, Placed], standing: Parameters | None) -> Parameters:
    """The parameters fitted on sources, recorded and synthetic ones apart.

    Of a kind that no source is of, what ``standing`` holds stays.
    """
    fits = dict(standing.fits) if standing else {}
    for kind in dict.fromkeys(source.kind for source in found):
        mine = {source: placed for source, placed in found.items() if source.kind == kind}
        found_fits: dict[str, Fitted] = {}
        ridge: float | None = None
        for queue in placements.QUEUES:
            fit = _fit([each.lives[queue] for each in mine.values()], mine, ridge)
            # The bounds differ little, and are compared: they are shrunk alike.
            found_fits[queue], ridge = fit, fit.ridge
        fits[kind] = found_fits
    return Parameters(away_bps=AWAY_BPS, edges_s=EDGES_S, covariates=COVARIATES, fits=fits)


def _fit(parts: Sequence[Lives], sources: Iterable[Source], ridge: float | None) -> Fitted:
    lives = survival.joined(parts)
    used, _ = survival.thin(lives, MOST_LOOKS)
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


def write(parameters: Parameters, path: Path | None = None) -> Path:
    """Write parameters as JSON, by default to where the code reads them."""
    path = path or hazard.PARAMETERS
    text = msgspec.json.format(msgspec.json.encode(parameters), indent=1)
    path.write_bytes(text + b"\n")
    return path


# -- judging -----------------------------------------------------------------------------------------


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """How well the model of a source's kind foretold the orders of one source."""

    source: str
    symbol: str
    kind: str
    queue: str
    fitted: bool  #: whether the model had seen it
    score: Score
    refused: int


class Diagram(msgspec.Struct, frozen=True, kw_only=True):
    """Reliability over all sources of a kind that the model had, or had not, seen."""

    kind: str
    queue: str
    fitted: bool
    horizon_s: float
    bins: list[Bin]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    judged: list[Judged]
    diagrams: list[Diagram]
    fits: dict[str, dict[str, Fitted]]


def judge(found: Mapping[Source, Placed], parameters: Parameters) -> Report:
    """Score every source, and draw reliability over sources of a kind together.

    FillsError for a kind of source for which nothing is fitted.
    """
    judged, diagrams = [], []
    kinds: dict[tuple[str, str, bool], list[tuple[Lives, survival.Floats]]] = {}
    for source, placed in found.items():
        if source.kind not in parameters.fits:
            raise FillsError(f"nothing is fitted on {source.kind} data; fit it with --fit")
        for queue, lives in placed.lives.items():
            if len(lives.outcome) == 0:
                continue
            fit = parameters.fits[source.kind][queue]
            told = survival.hazards(fit.causes, lives.covariates, parameters.edges_s)
            base = survival.constant(fit.rates, parameters.edges_s)
            seen = source.name in fit.fitted_on
            kinds.setdefault((source.kind, queue, seen), []).append((lives, told))
            judged.append(
                Judged(
                    source=source.name,
                    symbol=source.symbol,
                    kind=source.kind,
                    queue=queue,
                    fitted=seen,
                    score=survival.score(lives, told, base, parameters.edges_s),
                    refused=placed.refused[queue],
                )
            )
    for (kind, queue, seen), parts in kinds.items():
        lives = survival.joined([lives for lives, _ in parts])
        told = np.concatenate([each for _, each in parts])
        for horizon in HORIZONS_S:
            bins = survival.reliability(lives, told, parameters.edges_s, horizon)
            diagrams.append(
                Diagram(kind=kind, queue=queue, fitted=seen, horizon_s=horizon, bins=bins)
            )
    return Report(judged=judged, diagrams=diagrams, fits=parameters.fits)


def run(
    settings: Settings,
    sources: Sequence[Source],
    say: Say,
    *,
    fit: bool = False,
    workers: int = 2,
    keep: Path | None = None,
) -> Report:
    """Place orders into sources and judge the committed model by them; with ``fit`` fit and write it
    first."""
    found = placed_in_all(sources, settings, say, workers=workers, keep=keep)
    if not fit:
        return judge(found, hazard.committed())
    parameters = fitted(found, _standing())
    say(f"parameters written to {write(parameters)}")
    return judge(found, parameters)


def _standing() -> Parameters | None:
    """The committed parameters; None when they are of other code, and all have to be fitted."""
    try:
        return hazard.committed()
    except (OSError, ValueError):
        return None


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 fills`."""
    parser.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="captures")
    parser.add_argument("--seeds", metavar="N,M-K", help="days of the synthetic market")
    parser.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    parser.add_argument(
        "--fit", action="store_true", help="fit the model on them first, and write it"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes")
    parser.add_argument(
        "--kept", metavar="DIR", help="keep what became of orders; go on from there"
    )
    parser.add_argument("--page", metavar="FILE.md", help="write the page, its picture beside it")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 fills`: score the committed fill model, or fit it anew."""
    from orchestration.fills import page

    symbols = names(options.symbols) or settings.market.symbols
    report = run(
        settings,
        [*captures(options.frames, symbols), *synthetic(seeds(options.seeds), symbols)],
        say,
        fit=options.fit,
        workers=options.workers,
        keep=Path(options.kept) if options.kept else None,
    )
    if options.page:
        page.write(report, Path(options.page))
        say(f"page written to {options.page}")
    if not options.json:
        print(table(page.lines(report.judged), page.HEAD))
    result: dict[str, Any] = msgspec.to_builtins(report)
    return result
