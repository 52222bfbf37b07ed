"""The row of `l2 certify --engine`: a market without alpha, order by order, through the whole pipeline.

Bars of the matching engine (profile `null`), features, labels and training set by dbt, leakage probes, training, and
the gate on the last evening, asked of the raw expectation as in the null row. A day is its first `SECONDS`, of which
720 s warm up; one symbol, and the settings of the other rows.
"""

from __future__ import annotations

import tempfile
from typing import Final

import msgspec
import numpy as np

from assets.warehouse import build_range
from market.lake import Lake
from market.units import DAY_NS, day_start_ns, days_between, utc_date
from models_registry import leakage
from models_registry.dataset import Features, LakeSource
from models_registry.slopes import Z95
from models_registry.training import evaluate
from proving.certify import verdict
from proving.certify.market import FIRST_DAY
from proving.certify.rows import REFIT_DAYS, Row, booster_ic, daily, gate_of, pooled, profile
from proving.certify.verdict import Cells, Figures, Line
from proving.synthetic import profile as market_of
from proving.synthetic import write_bars

TRAIN_DAYS: Final = 4
SECONDS: Final = 7_200
DATES: Final = days_between(
    FIRST_DAY, utc_date(day_start_ns(FIRST_DAY) + (TRAIN_DAYS + REFIT_DAYS - 1) * DAY_NS)
)


def null(seed: int, seconds: int = SECONDS) -> dict[str, Figures]:
    """Figures of one seed; ``accused`` is how many leakage probes fail."""
    features, settings = Features.defined(), profile(min_train_days=TRAIN_DAYS, max_test_blocks=1)
    with tempfile.TemporaryDirectory() as folder:
        settings = msgspec.structs.replace(settings, root=folder)
        lake, symbols = Lake(folder, settings.source), settings.market.symbols
        for symbol in symbols:
            for day in DATES:
                write_bars(lake, market_of("null"), seed, symbol, day, settings, 0, seconds)
        build_range(lake, settings, symbols, DATES[0], DATES[-1])
        source = LakeSource(lake, symbols, settings.model.horizons_s)
        accused = sum(not p.passed for p in leakage.probed(lake, source, settings, features))
        evaluation = evaluate(source, settings, features)
    whole = pooled(evaluation)
    days = daily(msgspec.structs.replace(whole, expected_bps=whole.raw_bps))
    # A gate has a block per date.
    verdict_ = gate_of(evaluation, settings, [evaluation.blocks[0]] * len(days), days)
    return {
        "null": {
            "ic": booster_ic(whole),
            "ic_ensemble": evaluation.ic.rank,
            "promoted": verdict_ == "promote",
            "certified": float(np.mean(whole.expected_bps != 0.0)),
            "accused": accused,
        }
    }


def judge(cells: Cells) -> list[Line]:
    """As the null row; a dozen seeds bound no share, so that none of them may be promoted at all."""
    found = cells["null"]
    n, ic = len(found), verdict.average(verdict.column(found, "ic"))
    small = abs(ic.figure) <= 3 * (ic.high - ic.figure) / Z95
    out = [Line("engine", "mean IC", "within 3 standard errors of 0", small, n, *ic)]
    for name, what in (("promoted", "promoted"), ("accused", "accused by a leakage probe")):
        part = verdict.share(verdict.column(found, name))
        out.append(Line("engine", what, "none", part.figure == 0.0, n, *part))
    covered = verdict.average(verdict.column(found, "certified"))
    what, needs = "certified coverage", "upper ≤ 0.1 %"
    return [*out, Line("engine", what, needs, covered.high <= 0.001, n, *covered)]


ROWS: Final = {"engine": Row(runs={"null": null}, judge=judge, seeds=12)}
