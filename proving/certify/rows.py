"""The rows of certification: what each cell runs on one seed, by the product's own code.

Everything that a seed decides follows from its number; the profile below is the same for all rows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.settings import Market, Model, Settings
from market.units import DAY_NS, SECOND_NS
from models_registry import baselines, decay, probes, trades
from models_registry.dataset import MemorySource, Rows
from models_registry.evaluation import (
    BlockResult,
    Evaluation,
    OutOfSample,
    rank_product,
    summarise_blocks,
)
from models_registry.manifest import DecayReference
from models_registry.trades import Trades
from models_registry.training import evaluate
from models_registry.validation import distinct, information_coefficient, walk_forward
from proving.certify import verdict
from proving.certify.market import Planted, Scenario, plant
from proving.certify.stream import (
    ARL0_DAYS,
    PER_DAY,
    REFERENCE_DAYS,
    SPACING_S,
    STEPS,
    Fall,
    Stream,
    stream,
)
from proving.certify.verdict import Cells, Figures, Line

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Days in which a model is refitted once, and of the test; training alone comes before.
REFIT_DAYS: Final = 5
TEST_DAYS: Final = 30


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What runs on a seed, by name, giving figures by cell; what is required; how many seeds it takes."""

    runs: Mapping[str, Callable[[int], dict[str, Figures]]]
    judge: Callable[[Cells], list[Line]]
    seeds: int


def profile(**model: object) -> Settings:
    """The settings of certification: one symbol, one horizon, the zero-fee row, no search of parameters."""
    chosen = {
        "horizons_s": (60,),
        "fee_row": "zero",
        "train_stride_s": 15,
        "max_test_blocks": TEST_DAYS // REFIT_DAYS,
        "min_test_blocks": 5,
        "trials": 0,
        "threads": 1,
        "bootstrap_samples": 400,
        "act": "certified",
        "certify": "gross",
        **model,
    }
    return Settings(
        source="synthetic",
        market=Market(symbols=("BTCUSDT",)),
        model=msgspec.convert(chosen, Model),
    )


def judged(planted: Planted, settings: Settings) -> Evaluation:
    """The product's walk-forward over planted rows."""
    source = MemorySource(planted.rows, planted.features.names)
    return evaluate(source, settings, planted.features)


def pooled(evaluation: Evaluation) -> OutOfSample:
    """The out-of-sample rows; ValueError with the reasons when there are none."""
    if evaluation.pooled is None:
        raise ValueError(f"nothing was tested: {'; '.join(evaluation.skipped)}")
    return evaluation.pooled


def booster_ic(part: OutOfSample) -> float:
    """Rank IC of the primary booster over all test seconds, ranked together."""
    label, t_ns = part.rows.labels_bps[:, 0], part.rows.t_ns
    return information_coefficient(part.output[:, 0], label, t_ns, 60).rank


def daily(part: OutOfSample) -> list[OutOfSample]:
    """The test days one by one, ranked within their own day: what was known on its evening."""
    day = (part.rows.t_ns - 1) // DAY_NS
    out = []
    for one in distinct(day):
        own = part.where(day == one)
        product = rank_product(own.rows.symbol, own.raw_bps, own.rows.labels_bps[:, 0])
        out.append(msgspec.structs.replace(own, rank_product=product))
    return out


# -- null and planted ------------------------------------------------------------------------------


def null(seed: int) -> dict[str, Figures]:
    """A market without alpha, its gate asked on the evening of every test day.

    The gate is asked of the raw expectation: so no rule of when to act can hide what it would promote.
    """
    truth = plant(Scenario(days=5 + TEST_DAYS, hours=1.0), seed)
    settings = profile(min_train_days=5)
    evaluation = judged(truth, settings)
    whole = pooled(evaluation)
    days = daily(msgspec.structs.replace(whole, expected_bps=whole.raw_bps))
    promoted = False
    for count in range(settings.model.min_test_blocks, len(days) + 1):
        # Asked daily, a gate has a block per date.
        blocks = [evaluation.blocks[i // REFIT_DAYS] for i in range(count)]
        promoted |= gate_of(evaluation, settings, blocks, days[:count]) == "promote"
    return {
        "null": {
            "ic": booster_ic(whole),
            "ic_ensemble": evaluation.ic.rank,
            "promoted": promoted,
            "certified": float(np.mean(whole.expected_bps != 0.0)),
        }
    }


def gate_of(
    evaluation: Evaluation,
    settings: Settings,
    blocks: list[BlockResult],
    days: list[OutOfSample],
) -> str:
    """The gate's verdict on the first days of the stream."""
    seen = summarise_blocks(
        settings,
        evaluation.train_rows,
        evaluation.dates,
        evaluation.parameters,
        evaluation.tuned_ic,
        blocks,
        days,
        (),
        None,
    )
    return seen.gate.verdict


def alpha(
    name: str, ic: float, train_days: int = 25, test_days: int = 5, **scenario: object
) -> Callable[[int], dict[str, Figures]]:
    """A stationary alpha: what the ensemble and the filter rank of the same seconds."""

    def run(seed: int) -> dict[str, Figures]:
        made = {"days": train_days + test_days, "hours": 20.0, "ic": ic, **scenario}
        truth = plant(msgspec.convert(made, Scenario), seed)
        blocks = test_days // REFIT_DAYS
        settings = profile(min_train_days=train_days, max_test_blocks=blocks, train_stride_s=30)
        part = pooled(judged(truth, settings))
        tested = np.isin(truth.rows.t_ns, part.rows.t_ns)
        oracle, label = truth.oracle_bps[tested], part.rows.labels_bps[:, 0]
        acted = part.expected_bps != 0.0
        wrong = part.expected_bps[acted] * label[acted] <= 0.0
        figures = {
            "ic": float(np.nanmean(rank_product(part.rows.symbol, part.raw_bps, label))),
            "oracle_ic": float(np.nanmean(rank_product(part.rows.symbol, oracle, label))),
            "certified": float(acted.mean()),
            "false": float(wrong.mean()) if acted.any() else 0.0,
            "oracle_coverage": coverage(oracle / part.scale_bps, label, 0.20),
        }
        return {name: figures}

    return run


def coverage(score: Float, label: Float, false: float) -> float:
    """The largest share of rows, by size of their score, of which at most ``false`` have a wrong sign."""
    order = np.argsort(-np.abs(score), kind="stable")
    wrong = np.cumsum(score[order] * label[order] <= 0) / np.arange(1, len(score) + 1)
    kept = np.flatnonzero(wrong <= false)
    return float(kept[-1] + 1) / len(score) if len(kept) else 0.0


# -- regimes and decay -----------------------------------------------------------------------------

TRAIN_DAYS: Final = 20
CHANGES: Final = ("1d", "3d", "7d", "step", "flip")


def sharpe(made: Trades, t_ns: Int) -> float:
    """Yearly Sharpe ratio of daily net results without fees; a day without a trade earned nothing."""
    days = distinct((t_ns - 1) // DAY_NS)
    place = np.searchsorted(days, (made.exit_ns - 1) // DAY_NS)
    net = np.bincount(place, made.net_bps(0.0), len(days))
    spread = float(net.std(ddof=1))
    return float(net.mean()) / spread * math.sqrt(365.0) if spread > 0 else 0.0


def market(cell: str, *, still: bool) -> Callable[[int], dict[str, Figures]]:
    """Adaptive ensemble, frozen static model and legacy on the same days of one market."""

    def run(seed: int) -> dict[str, Figures]:
        scenario = Scenario(
            days=TRAIN_DAYS + TEST_DAYS,
            hours=4.0,
            ic=0.3,
            regimes=not still,
            change="none" if still else CHANGES[seed % len(CHANGES)],
            change_day=TRAIN_DAYS + 1.0 + 9.0 * np.random.default_rng(seed).random(),
        )
        truth = plant(scenario, seed)
        rule = {"min_train_days": TRAIN_DAYS, "act": "expected_edge"}
        adaptive = judged(truth, profile(**rule))
        static = judged(truth, profile(**rule, max_test_blocks=1))
        t_ns = pooled(adaptive).rows.t_ns
        return {
            cell: {
                "adaptive": sharpe(adaptive.round_trips["zero"], t_ns),
                "static": sharpe(static.round_trips["zero"], t_ns),
                "legacy": sharpe(legacy(truth, profile(**rule)), t_ns),
            }
        }

    return run


def legacy(truth: Planted, settings: Settings) -> Trades:
    """The round trips of what the owners had, frozen after the first training, on all test days."""
    model, source = settings.model, MemorySource(truth.rows, truth.features.names)
    fold = walk_forward(
        truth.rows.t_ns,
        min_train_days=model.min_train_days,
        max_test_blocks=1,
        calibration_share=model.calibration_share,
        max_horizon_s=model.primary_s,
    )[0]
    with tempfile.TemporaryDirectory() as folder:
        settings = msgspec.structs.replace(settings, root=folder)
        bundle = baselines.load_legacy(source, settings, truth.features, fold, "")
    rows = source.read(fold.test_dates, bundle.manifest.features)
    return trades.simulate(
        t_ns=rows.t_ns,
        symbol=rows.symbol,
        mid=rows.mid,
        spread_bps=rows.spread_bps,
        expected_bps=bundle.predict_many(rows.features, model.threads).expected_bps,
        fee_bps=0.0,
        horizon_s=model.primary_s,
    )


# -- decay -----------------------------------------------------------------------------------------

#: Days that are watched after a change; a fall not found by then counts as found on that day.
AFTER_DAYS: Final = 15.0
FALLS: Final = {
    **{f"step {d:.2f} to 0": Fall(before=d, after=0.0) for d in (0.03, 0.05, 0.08, 0.10, 0.15)},
    "step 0.05 to -0.05": Fall(before=0.05, after=-0.05),
    "step 0.20 to 0.10": Fall(before=0.20, after=0.10),
    "0.10 to 0, half-life 1 d": Fall(before=0.10, after=0.0, kind="1d"),
    "0.10 to 0, half-life 3 d": Fall(before=0.10, after=0.0, kind="3d"),
    "0.10 to 0, half-life 7 d": Fall(before=0.10, after=0.0, kind="7d"),
    "still, IC 0.10": Fall(before=0.10, after=0.10, kind="none"),
    "still, IC 0.05": Fall(before=0.05, after=0.05, kind="none"),
    "still, volatility doubled": Fall(before=0.10, after=0.10, kind="volatility"),
    "still, mean of predictions shifted": Fall(before=0.10, after=0.10, kind="shift"),
    "still, predictions twice as bold": Fall(before=0.10, after=0.10, kind="bold"),
}


def monitored(before: float) -> Callable[[int], dict[str, Figures]]:
    """One reference, and the monitor over streams of that IC that change at the same random minute."""

    def run(seed: int) -> dict[str, Figures]:
        rng = np.random.default_rng(seed)
        trained = int(rng.integers(REFERENCE_DAYS[0], REFERENCE_DAYS[1] + 1))
        begin, changed = trained * PER_DAY, round((trained + 1.0 + 2.0 * rng.random()) * PER_DAY)
        out: dict[str, Figures] = {}
        reference = None
        for cell, change in FALLS.items():
            if change.before != before:
                continue
            still = change.drop == 0.0
            after = 30.0 if still else AFTER_DAYS
            whole = stream(change, changed / PER_DAY + after, changed / PER_DAY, seed)
            reference = reference or reference_of(whole.part(0, begin), seed)
            late = [
                (a - changed) / PER_DAY for a in alarms(reference, whole, begin) if a >= changed
            ]
            out[cell] = (
                {"alarms": len(late), "watched_days": after}
                if still
                else {
                    "drop": change.drop,
                    "delay_days": late[0] if late else AFTER_DAYS,
                    "missed": not late,
                }
            )
        return out

    return run


def reference_of(past: Stream, seed: int) -> DecayReference:
    """The reference that a gate would leave after these test days."""
    return decay.make_reference(
        past.t_ns,
        past.symbol,
        past.predicted,
        past.realised,
        spacing_s=SPACING_S,
        arl0_days=ARL0_DAYS,
        block_s=3600,
        seed=seed,
    )


def alarms(reference: DecayReference, whole: Stream, begin: int) -> list[int]:
    """Minutes of alarms from ``begin`` on; the monitor starts anew after each."""
    part = whole.part(begin, len(whole.t_ns) // STEPS)
    _, x = decay.observations(
        part.t_ns, part.symbol, part.predicted, part.realised, reference.spacing_s
    )
    return [begin + int(at) for at in decay.alarms(reference, x)]


# -- leaks -----------------------------------------------------------------------------------------


def leak(name: str) -> Callable[[int], dict[str, Figures]]:
    """One leak planted in an otherwise honest market; ``honest`` plants none."""

    def run(seed: int) -> dict[str, Figures]:
        kind = name if name in ("advanced", "centred", "decoy") else "none"
        scenario = {"days": 3, "hours": 8.0, "ic": 0.1, "leak": kind}
        truth = plant(msgspec.convert(scenario, Scenario), seed)
        rows, names = truth.rows, truth.features.names
        fold = walk_forward(
            rows.t_ns, min_train_days=2, max_test_blocks=1, calibration_share=0.2, max_horizon_s=60
        )[0]
        strided = rows.t_ns // SECOND_NS % 15 == 0
        inside, test = fold.train.mask(rows.t_ns) & strided, fold.test.mask(rows.t_ns) & strided
        if name == "shuffled split":
            heads = np.random.default_rng(seed).random(len(rows)) < 0.5
            inside, test = strided & heads, strided & ~heads
        fitted = strided if name == "scaler on all" else inside

        def scaler(given: Rows) -> bytes:
            part = given.features[fitted]
            return bytes(np.concatenate((part.mean(axis=0), part.std(axis=0))).tobytes())

        found = [
            probes.time_shift(rows.features, names, rows.mid, rows.t_ns, 60),
            probes.label_edge(rows.features, names, rows.mid, rows.t_ns, 60),
            probes.split(rows.t_ns[inside], rows.t_ns[test], 60),
            probes.future_fit(scaler, rows, rows.t_ns > fold.train.until_ns, seed),
        ]
        failed = {probe.name: float(not probe.passed) for probe in found}
        return {name: {"caught": max(failed.values()), **failed}}

    return run


ROWS: Final[dict[str, Row]] = {
    "null": Row(runs={"null": null}, judge=verdict.null, seeds=200),
    "planted": Row(
        runs={
            "0.03": alpha("0.03", 0.03),
            "0.10": alpha("0.10", 0.10),
            "0.30": alpha("0.30", 0.30),
            "0.50": alpha("0.50", 0.59, 10, TEST_DAYS, filterable=0.85, half_life_s=120.0),
        },
        judge=verdict.planted,
        seeds=20,
    ),
    "regimes": Row(
        runs={
            "changing": market("changing", still=False),
            "stationary": market("stationary", still=True),
        },
        judge=verdict.regimes,
        seeds=20,
    ),
    "decay": Row(
        runs={
            f"from {before:.2f}": monitored(before)
            for before in sorted({fall.before for fall in FALLS.values()})
        },
        judge=verdict.decay,
        seeds=200,
    ),
    "leaks": Row(
        runs={
            name: leak(name)
            for name in (
                "advanced",
                "centred",
                "decoy",
                "shuffled split",
                "scaler on all",
                "honest",
            )
        },
        judge=verdict.leaks,
        seeds=20,
    ),
}
