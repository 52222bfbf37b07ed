"""Dynamic weights of feature families against static ones, on planted markets whose first family fades.

    python -m proving.weighting --seeds 1001-1060 [--jobs 2] [--folder weighting]

One booster per family of features (those of the book, those of the flow, the others) on the walk-forward of
certification: thirty test days, refitted every five. *Static* is the product's stacking: non-negative weights
of all that was seen out of sample before the block. *Dynamic* is the same, each family's part multiplied at
every second by

    g = c_t / c_0 within [0, 1],   c_t = trailing mean of part · label

over the labels known by then, which halve in weight with every HALF_LIVES_DAYS shown, and c_0 the mean over
what the weights were fitted on. *Hourly* fits the static weights and slopes anew every hour on all that is
known, as the product's online update does (`models_registry.online`, which also asks whether it helps).

Even seeds have a market in which the first family's strength goes, at once, in days or by turning round, and
mostly the second one's grows instead; odd seeds have one that stays. Seeds below 1001 are for development.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from scipy.signal import lfilter

from market.console import seeds, table
from market.provenance import closure_hash
from market.settings import Model
from market.units import SECOND_NS
from models_registry import ensemble, trades
from models_registry.ensemble import SCALE_FEATURE, BoosterParameters, FittedBooster, Outputs
from models_registry.fold import folds_of
from models_registry.recipe import Scale, scale_bps
from models_registry.slopes import fit_line, recency
from models_registry.validation import DELAY_S, TimeSpan, information_coefficient, label_reach_ns
from proving import kept
from proving.certify.market import Planted, Scenario, plant
from proving.certify.rows import CHANGES, TEST_DAYS, TRAIN_DAYS, profile, sharpe
from proving.certify.verdict import average
from proving.kept import Done

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MODULE: Final = "proving.weighting"

HOURS: Final = 4.0
#: Half-lives of the trailing contribution, in days of `HOURS` shown hours; all are reported, none is chosen.
HALF_LIVES_DAYS: Final = (0.25, 1.0, 4.0)
HORIZON_S: Final = 60
VARIANTS: Final = ("static", "hourly", *(f"{days:g} d" for days in HALF_LIVES_DAYS))
_DAY_S: Final = HOURS * 3600


def families(names: tuple[str, ...]) -> Mapping[str, list[int]]:
    """Family -> the places of its features."""
    found: dict[str, list[int]] = {"book": [], "flow": [], "others": []}
    for place, name in enumerate(names):
        family = name.split("_")[0]
        found[family if family in found else "others"].append(place)
    return found


def trailing(part: Float, label: Float, half_life_s: float) -> Float:
    """Trailing mean of ``part · label`` (n,) over consecutive seconds, each counted once its label is known.

    From the first known label on it is a mean over what there is; before, zero. Labels that are unknown count
    as no contribution.
    """
    known = np.nan_to_num(part * label)
    late = np.zeros(len(known))
    reach = HORIZON_S + DELAY_S
    late[reach:] = known[:-reach]
    keep = 0.5 ** (1 / half_life_s)
    weight = 1 - keep ** np.maximum(np.arange(1, len(known) + 1) - reach, 0)
    sums = lfilter([1 - keep], [1.0, -keep], late)
    return np.asarray(sums / np.maximum(weight, 1e-12))


def stacked(output: Float, label: Float, t_ns: Int) -> Float:
    """Stacking weights times slopes (members,) of outputs (n, members) seen out of sample; labels scaled.

    As `models_registry.ensemble.stack` and `combine` do for the product's boosters, with every label clipped.
    """
    weight = recency(t_ns)
    lines = [fit_line(x, label, t_ns, HORIZON_S, weight).shrunk for x in output.T]
    known, root = ~np.isnan(label), np.sqrt(weight)
    found = nnls((output * lines * root[:, np.newaxis])[known], (label * root)[known])[0]
    total = output @ (lines * found)
    return np.asarray(lines * found * fit_line(total, label, t_ns, HORIZON_S, weight).shrunk)


def hourly(both: Outputs, label: Float, begins: int, stride_s: int) -> Float:
    """The expectation (n - begins,) of weights that are fitted anew every hour; labels in units of scale."""
    t_ns, out = both.rows.t_ns, []
    hour = (t_ns[begins:] - 1) // (3600 * SECOND_NS)
    strided = t_ns // SECOND_NS % stride_s == 0
    for one in np.unique(hour):
        own = begins + np.flatnonzero(hour == one)
        past = strided & (t_ns <= t_ns[own[0]] - label_reach_ns(HORIZON_S))
        out.append(both.output[own] @ stacked(both.output[past], label[past], t_ns[past]))
    return np.concatenate(out)


class Families:
    """A booster per family of features over the rows of a planted market."""

    def __init__(self, truth: Planted, model: Model) -> None:
        self.rows, self._model, self._names = truth.rows, model, truth.features.names
        self._groups = families(self._names)
        at = self._names.index(SCALE_FEATURE)
        self.volatility = self.rows.features[:, at].astype(np.float64)
        self._strided = self.rows.t_ns // SECOND_NS % model.train_stride_s == 0

    def fitted(self, span: TimeSpan) -> tuple[list[FittedBooster], Scale]:
        """The boosters of a span, and the scale of their labels."""
        inside = span.mask(self.rows.t_ns) & self._strided
        features, volatility = self.rows.features[inside], self.volatility[inside]
        scale = ensemble.scale_of(volatility)
        labels = self.rows.labels_bps[inside]
        goal = ensemble.targets(labels, volatility, scale, self._model.horizons_s)[:, 0]
        members = [
            ensemble.fit_booster(
                ensemble.bin_features(features[:, at], [self._names[i] for i in at], 1),
                goal,
                BoosterParameters(),
                horizon_s=HORIZON_S,
                stride_s=self._model.train_stride_s,
                seed=self._model.seed,
                threads=1,
            )
            for at in self._groups.values()
        ]
        return members, scale

    def outputs(self, members: list[FittedBooster], span: TimeSpan) -> Outputs:
        """What they say of every second of a span."""
        inside = span.mask(self.rows.t_ns)
        features = self.rows.features[inside]
        output = [
            member.booster().predict(features[:, at], num_threads=1)
            for member, at in zip(members, self._groups.values(), strict=True)
        ]
        bare = np.empty((len(features), 0), np.float32)
        rows = msgspec.structs.replace(self.rows.where(inside), features=bare)
        return Outputs(
            rows=rows, volatility=self.volatility[inside], output=np.column_stack(output)
        )


def expectations(truth: Planted) -> tuple[Int, dict[str, Float]]:
    """Times (n,) of all test seconds, and the expectation (n,) in bps by each kind of weights."""
    model = profile(min_train_days=TRAIN_DAYS).model
    market, seen = Families(truth, model), None
    made: dict[str, list[Float]] = {name: [] for name in VARIANTS}
    tested: list[Int] = []
    for fold in folds_of(truth.rows.t_ns, model):
        past = TimeSpan(fold.train.after_ns, fold.test.after_ns - label_reach_ns(HORIZON_S))
        members, scale = market.fitted(fold.train if seen is None else past)
        seen = market.outputs(members, fold.calibration) if seen is None else seen
        test = market.outputs(members, fold.test)
        both, begins = seen.then(test), len(seen.rows)
        unit = scale_bps(both.volatility, scale, HORIZON_S)
        label = np.clip(both.rows.labels_bps[:, 0] / unit, -ensemble.CLIP, ensemble.CLIP)
        parts = both.output * stacked(seen.output, label[:begins], seen.rows.t_ns)
        edges = {
            "static": parts[begins:].sum(axis=1),
            "hourly": hourly(both, label, begins, model.train_stride_s),
        }
        for half_life in HALF_LIVES_DAYS:
            taken = parts[begins:].copy()
            for column, part in enumerate(parts.T):
                usual = float(np.nanmean((part * label)[:begins]))
                now = trailing(part, label, half_life * _DAY_S)[begins:]
                taken[:, column] *= np.clip(now / usual, 0.0, 1.0) if usual > 0 else 0.0
            edges[f"{half_life:g} d"] = taken.sum(axis=1)
        for name, edge in edges.items():
            made[name].append(edge * unit[begins:])
        tested.append(test.rows.t_ns)
        seen = both
    return np.concatenate(tested), {name: np.concatenate(pieces) for name, pieces in made.items()}


def compared(truth: Planted) -> dict[str, float]:
    """Rank IC, and Sharpe ratio without fees, over all test seconds by each kind of weights."""
    t_ns, made = expectations(truth)
    tested = truth.rows.where(np.isin(truth.rows.t_ns, t_ns))
    figures: dict[str, float] = {}
    for name, expected in made.items():
        trips = trades.simulate(
            t_ns=t_ns,
            symbol=tested.symbol,
            mid=tested.mid,
            spread_bps=tested.spread_bps,
            expected_bps=expected,
            fee_bps=0.0,
            horizon_s=HORIZON_S,
        )
        found = information_coefficient(expected, tested.labels_bps[:, 0], t_ns, HORIZON_S)
        figures |= {f"ic, {name}": found.rank, f"sharpe, {name}": sharpe(trips, t_ns)}
    return figures


def weighted(seed: int) -> dict[str, dict[str, float]]:
    """The figures of one seed's market."""
    changes = seed % 2 == 0
    scenario = Scenario(
        days=TRAIN_DAYS + TEST_DAYS,
        hours=HOURS,
        ic=0.3,
        change=CHANGES[seed // 2 % len(CHANGES)] if changes else "none",
        change_day=TRAIN_DAYS + 1.0 + 9.0 * np.random.default_rng(seed).random(),
    )
    return {"fades" if changes else "stays": compared(plant(scenario, seed))}


#: As `proving.kept` wants them: row -> its runs by name.
ROWS: Final = {"weighting": SimpleNamespace(runs={"weighting": weighted})}


def report(found: list[Done]) -> list[list[str]]:
    """The table: of each market the means, and the difference to static with its 95 % bounds, one-sided each."""
    lines = []
    for market in ("fades", "stays"):
        own = [figures[market] for each in found if market in (figures := each.figures)]
        for kind in ("ic", "sharpe") if len(own) > 1 else ():
            static = np.array([figures[f"{kind}, static"] for figures in own])
            for name in VARIANTS[1:]:
                other = np.array([figures[f"{kind}, {name}"] for figures in own])
                less = average(other - static)
                lines.append(
                    [
                        market,
                        str(len(own)),
                        kind,
                        name if name == "hourly" else f"dynamic, half-life {name}",
                        f"{static.mean():.4f}",
                        f"{other.mean():.4f}",
                        f"{less.figure:+.4f} [{less.low:+.4f}, {less.high:+.4f}]",
                    ]
                )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proving.weighting")
    parser.add_argument("--seeds", metavar="A-B", default="1001-1060")
    parser.add_argument("--folder", metavar="DIR", default="weighting")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    folder, code = Path(options.folder), closure_hash(MODULE)
    done = {(d.row, d.run, d.seed): d for d in kept.read(folder) if d.code == code}
    tasks = [("weighting", "weighting", seed) for seed in seeds(options.seeds)]
    left = [task for task in tasks if task not in done]
    kept.run(MODULE, left, code, folder, done, options.jobs)
    head = ("market", "seeds", "figure", "weights", "static", "these", "difference")
    print(table(report([done[task] for task in tasks]), head))
    return 0


if __name__ == "__main__":
    sys.exit(main())
