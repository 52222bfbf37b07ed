"""`l2 fills`: how well the fill model foretells hypothetical orders; ``--fit`` fits it anew.

Orders are placed into captures and into hours of synthetic days (`execution.hazard.placements`), and
the committed model is scored on what became of them. Sources that a model was fitted on are named in
its parameters and marked where they are scored. Each synthetic seed gives one hour of its day,
another one for each seed, and the best signal that can be known there; recordings have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from execution import hazard
from execution.hazard import COVARIATES, Parameters, placements, survival
from execution.hazard.placements import Placed, Signal, Span
from execution.hazard.survival import Lives
from execution.simulation.simulator import latency_of
from market.events import Events
from market.instruments import BUILT_IN, Instrument
from market.lake import day_start_ns
from market.settings import Settings
from market.synthetic import generate, profile
from market.synthetic.tables import truth
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of

Say = Callable[[str], None]

#: The day of which synthetic hours are, and the profile.
DAY: Final = "2026-03-01"
#: Of every hour of a synthetic day, these first minutes are looked at.
MINUTES: Final = 5.0
PROFILE: Final = "default"
#: Distance at which the price counts as run away, and the intervals of time since a look.
AWAY_BPS: Final = 1.0
EDGES_S: Final = (0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)
#: Horizons of the reliability diagrams.
HORIZONS_S: Final = (1.0, 5.0, 30.0)
_SECOND_NS: Final = 1_000_000_000


class FillsError(RuntimeError):
    """What was asked cannot be fitted or scored."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of events: a symbol of a capture, or an hour of a synthetic symbol-day."""

    name: str
    symbol: str
    path: str = ""
    seed: int = -1

    @property
    def recorded(self) -> bool:
        return bool(self.path)


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


def seeds_named(text: str | None) -> tuple[int, ...]:
    """Seeds of ``1,2,5`` or ``1-4``; none of nothing."""
    found: list[int] = []
    for part in (text or "").split(","):
        if not part.strip():
            continue
        first, _, last = part.partition("-")
        try:
            found.extend(range(int(first), int(last or first) + 1))
        except ValueError as error:
            raise FillsError(
                f"seeds {text}: expected numbers and spans, e.g. 1,2 or 1-4"
            ) from error
    return tuple(found)


def placed(source: Source, settings: Settings) -> Placed:
    """Place orders into a source; what became of them."""
    feed, instrument, signal = _opened(source, settings)
    return placements.place_orders(
        feed,
        instrument,
        away_bps=AWAY_BPS,
        latency=latency_of(settings.execution),
        signal=signal,
        spans=placements.ALL if source.recorded else _hourly(),
    )


def _hourly() -> list[Span]:
    """The first minutes of every hour of the synthetic day."""
    midnight_ns = day_start_ns(DAY)
    return [
        Span(begin_ns, begin_ns + round(MINUTES * 60 * _SECOND_NS))
        for begin_ns in range(midnight_ns, midnight_ns + 86_400 * _SECOND_NS, 3600 * _SECOND_NS)
    ]


def _opened(
    source: Source, settings: Settings
) -> tuple[Iterator[Events], Instrument, Signal | None]:
    if source.recorded:
        instruments = instruments_of([source.path], [source.symbol], settings.market.book_depth)
        return (
            _captured(source, instruments, settings.market.book_depth),
            instruments[source.symbol],
            None,
        )
    market = profile(PROFILE)
    rate = math.log(2) / market.half_life_s
    gain = -math.expm1(-rate * market.ic_horizon_s) / rate
    table = truth(market, source.seed, source.symbol, DAY)
    expected = table["filtered_alpha"].to_numpy() * gain
    midnight_ns = int(table["t_ns"][0].as_py()) - _SECOND_NS

    def signal(now_ns: int) -> float | None:
        # Row n is of the end of second n: the last one that has ended.
        second = (now_ns - midnight_ns) // _SECOND_NS - 1
        return float(expected[second]) if 0 <= second < len(expected) else None

    feed = generate(market, source.seed, source.symbol, DAY)
    return feed, BUILT_IN[source.symbol], signal


def _captured(
    source: Source, instruments: Mapping[str, Instrument], depth: int
) -> Iterator[Events]:
    decoder = Decoder(instruments, depth, [source.symbol], follow=False)
    for block in read_blocks(source.path):
        events = decoder.decode_block(block).events.get(source.symbol)
        if events is not None:
            yield events


def placed_in_all(
    sources: Sequence[Source], settings: Settings, workers: int, say: Say
) -> dict[Source, Placed]:
    """`placed` of each source, each in a process of its own; sources without an order are left out."""
    if not sources:
        raise FillsError("nothing to place orders into: name --frames or --seeds")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        asked = {pool.submit(placed, source, settings): source for source in sources}
        for done, future in enumerate(as_completed(asked), 1):
            source, found = asked[future], future.result()
            counted = {queue: len(lives.outcome) for queue, lives in found.lives.items()}
            say(f"{done} of {len(asked)}: {source.name} {source.symbol}, looks {counted}")
    results = {asked[future]: future.result() for future in asked}
    kept = {s: p for s, p in results.items() if any(len(e.outcome) for e in p.lives.values())}
    if not kept:
        raise FillsError("no order could be placed: the sources are too short or hold no book")
    return kept


# -- fitting -----------------------------------------------------------------------------------------


def fitted(found: Mapping[Source, Placed], made: Mapping[str, str | float]) -> Parameters:
    """The parameters fitted on sources, recorded and synthetic ones with the same weight in all."""
    queues = {}
    for queue in placements.QUEUES:
        lives, weight = pooled(found, queue)
        queues[queue], _ = survival.fit(lives, EDGES_S, weight=weight)
    return Parameters(
        away_bps=AWAY_BPS,
        edges_s=EDGES_S,
        covariates=COVARIATES,
        queues=queues,
        made={
            **made,
            "looks": sum(len(p.lives[placements.QUEUES[0]].outcome) for p in found.values()),
        },
    )


def pooled(found: Mapping[Source, Placed], queue: str) -> tuple[Lives, survival.Floats]:
    """All lives at one bound, and weights by which recordings and synthetic hours count alike."""
    parts = [p.lives[queue] for p in found.values()]
    kind = np.repeat([s.recorded for s in found], [len(p.outcome) for p in parts])
    share = kind.mean()
    if share in (0.0, 1.0):
        weight = np.ones(len(kind))
    else:
        weight = np.where(kind, 0.5 / share, 0.5 / (1 - share))
    return survival.joined(parts), weight


def write(parameters: Parameters, path: Path | None = None) -> Path:
    """Write parameters as JSON, by default to where the code reads them."""
    path = path or Path(hazard.__file__).with_name("parameters.json")
    text = msgspec.json.format(msgspec.json.encode(parameters), indent=1)
    path.write_bytes(text + b"\n")
    return path
