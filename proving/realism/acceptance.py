"""Acceptance of a synthetic market: its statistics beside those of recordings, each with a verdict.

A row has the value, its 95 % interval (jackknife over blocks of time), the number of observations, the
same of each recording, and the accepted range. The range is fixed by the literature, or spans the
recordings, widened by a share of itself, because two recorded days differ by more than any such share.
A recording that is too short for a statistic does not bound it.

    verdict     the value is
    in          inside the range
    open        outside, but its interval reaches in, or a recording's own interval reaches it:
                too little data to tell
    OUT         outside with its whole interval
    reported    shown without a range, or there is nothing to compare with
    too short   not defined over so short a time
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec
import numpy as np

from proving.realism.criteria import STATISTICS, Range, Statistic
from proving.realism.facts import Observations
from proving.realism.metaorders import Impact, concavity, retention
from proving.realism.observation import Observation
from proving.realism.stylised import distance, jackknife

Verdict = Literal["in", "open", "OUT", "reported", "too short"]

#: Blocks that are left out in turn; of a whole day they last two hours.
BLOCKS: Final = 12


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A statistic of one market; value and interval are NaN where they do not exist."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0


class JudgedStatistic(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table: a statistic of the market under test, and its verdict."""

    name: str
    group: str
    unit: str
    found: Estimate
    recorded: tuple[Estimate, ...]
    accepted: Range | None
    verdict: Verdict
    note: str


def without_blocks(market: Observations, blocks: int = BLOCKS) -> list[list[Observation]]:
    """Jackknife samples: the market without one block of time, for each of about ``blocks`` in turn.

    Blocks are equally long within an observation, and about so across observations.
    """
    total = sum(obs.seconds for obs in market)
    samples = []
    for place, obs in enumerate(market):
        parts = max(1, round(blocks * obs.seconds / max(1, total)))
        edges = np.linspace(0, obs.seconds, parts + 1).astype(int).tolist()
        others = [*market[:place], *market[place + 1 :]]
        for first, last in itertools.pairwise(edges):
            around = [obs.between(0, first), obs.between(last, obs.seconds)]
            samples.append([*others, *(part for part in around if part.seconds)])
    return samples


def estimated(
    statistic: Statistic, label: str, market: Observations, left: Sequence[Observations]
) -> Estimate:
    """One market's value with its interval; NaN when there are too few observations."""
    assert statistic.estimate is not None
    n = statistic.count(market)
    if n < statistic.least:
        return Estimate(label=label, value=math.nan, n=n)
    value = statistic.estimate(market)
    low, high = jackknife(statistic.estimate, left, value)
    return Estimate(label=label, value=value, low=low, high=high, n=n)


def judge(estimate: Estimate, accepted: Range | None, recorded: Sequence[Estimate] = ()) -> Verdict:
    """The verdict on a value (see the module); ``recorded`` are the values that made the range."""
    if not math.isfinite(estimate.value):
        return "too short"
    if accepted is None:
        return "reported"
    if accepted[0] <= estimate.value <= accepted[1]:
        return "in"
    reaches = estimate.low <= accepted[1] and estimate.high >= accepted[0]
    reached = any(each.low <= estimate.value <= each.high for each in recorded)
    return "open" if reaches or reached else "OUT"


def span(recorded: Sequence[Estimate], widened: float) -> Range | None:
    """From the least to the greatest recorded value, each moved outwards by a share of itself."""
    values = [each.value for each in recorded if math.isfinite(each.value)]
    if not values:
        return None
    low, high = min(values), max(values)
    return low - widened * abs(low), high + widened * abs(high)


def compare(
    statistic: Statistic, label: str, market: Observations, recorded: Sequence[Observation]
) -> tuple[Estimate, tuple[Estimate, ...], Range | None]:
    """Compare distributions: the distance to the nearest recording, to each of them, and the range."""
    assert statistic.sample is not None
    mine = statistic.sample(market)
    theirs = [(each.label, statistic.sample([each])) for each in recorded]
    kept = [(name, values) for name, values in theirs if len(values) >= statistic.least]
    beside = tuple(
        Estimate(
            label=name,
            value=distance(mine, values) if len(values) >= statistic.least else math.nan,
            n=len(values),
        )
        for name, values in theirs
    )
    between = [distance(x, y) for n, (_, x) in enumerate(kept) for _, y in kept[:n]]
    near = min((each for each in beside if math.isfinite(each.value)), key=_value, default=None)
    if near is None:
        return Estimate(label=label, value=math.nan, n=len(mine)), beside, None
    # 95 % quantile of the distance of two independent samples of one law; dependence makes it larger.
    noise = 1.36 * math.sqrt(1 / len(mine) + 1 / near.n) if len(mine) else math.nan
    estimate = Estimate(
        label=label,
        value=near.value,
        low=max(0.0, near.value - noise),
        high=near.value + noise,
        n=len(mine),
    )
    return estimate, beside, (0.0, max([0.1, *between]))


def _value(estimate: Estimate) -> float:
    return estimate.value


def table(
    market: Observations,
    recorded: Sequence[Observation],
    *,
    null: bool,
    only: str = "",
    say: Callable[[str], None] | None = None,
) -> list[JudgedStatistic]:
    """All rows for one symbol, or those whose names hold ``only``.

    ``null`` says that nothing is planted in the market.
    """
    label = market[0].label
    left = without_blocks(market)
    left_of = [without_blocks([each]) for each in recorded]
    rows = []
    for statistic in STATISTICS:
        if only not in statistic.name:
            continue
        note = statistic.note
        bounds: tuple[Estimate, ...] = ()
        if statistic.sample is not None:
            estimate, beside, accepted = compare(statistic, label, market, recorded)
        else:
            estimate = estimated(statistic, label, market, left)
            beside = tuple(
                estimated(statistic, each.label, [each], without)
                for each, without in zip(recorded, left_of, strict=True)
            )
            accepted = statistic.accepted
            if statistic.like is not None:
                accepted, bounds = span(beside, statistic.like), beside
                if accepted is not None and statistic.unit == "share":
                    accepted = accepted[0], min(1.0, accepted[1])
            if statistic.null_only and not null:
                accepted, note = None, "alpha is planted: judged on the null profile only"
        verdict = judge(estimate, accepted, bounds)
        if verdict == "OUT" and statistic.exception:
            note = "; ".join(filter(None, (note, f"out of range: {statistic.exception}")))
        rows.append(
            JudgedStatistic(
                name=statistic.name,
                group=statistic.group,
                unit=statistic.unit,
                found=estimate,
                recorded=beside,
                accepted=accepted,
                verdict=verdict,
                note=note,
            )
        )
        if say is not None:
            say(f"{market[0].symbol}: {statistic.name}: {rows[-1].verdict}")
    return rows


#: Statistics of injected metaorders, which no recording can show.
IMPACT: Final[tuple[tuple[str, Callable[[list[Impact]], float], Range, str], ...]] = (
    (
        "metaorders: exponent of impact in quantity",
        concavity,
        (0.4, 0.7),
        "the same market with and without them, from 2 to 40 % of what trades meanwhile",
    ),
    (
        "metaorders: impact left after five durations",
        retention,
        (0.3, 0.8),
        "as a share of the impact when the last part has traded",
    ),
)


def impact_rows(impacts: list[Impact]) -> list[JudgedStatistic]:
    """The rows of injected metaorders, with a jackknife over the metaorders."""
    numbers = min((len(each.path) for each in impacts), default=0)
    counted = range(numbers) if numbers > 3 else range(0)
    left = [
        [
            msgspec.structs.replace(each, path=np.delete(each.path, number, axis=0))
            for each in impacts
        ]
        for number in counted
    ]
    rows = []
    for name, estimate, accepted, note in IMPACT:
        value = estimate(impacts) if numbers else math.nan
        low, high = jackknife(estimate, left, value)
        measured = Estimate(
            label="injected", value=value, low=low, high=high, n=numbers * len(impacts)
        )
        rows.append(
            JudgedStatistic(
                name=name,
                group="impact",
                unit="",
                found=measured,
                recorded=(),
                accepted=accepted,
                verdict=judge(measured, accepted),
                note=note,
            )
        )
    return rows


def as_data(row: JudgedStatistic) -> dict[str, Any]:
    """A row as plain data; None for what is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    data: dict[str, Any] = plain(msgspec.to_builtins(row))
    return data
