"""Leakage probes: each names one way in which a result may have seen what it predicts.

time_shift      a feature whose innovations go with a later second's return more than with those past
label_edge      a feature that foresees returns up to the end of the label and no further
truncation      a feature that differs when it is computed from data that ends at its own time
split           training labels that reach into the test span
future_fit      a fit (split, scaler, tuning) that changes with rows after its training span
permuted        labels permuted in blocks that are still predicted
decoys          noise features among the chosen in more than one fold
live_skew       features of the training set that the live engine does not make of the same bars

Each returns a `Probe`; one that could not have shown a leak says so in its text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import numpy.typing as npt

from market.features.precision import rounded
from market.instruments import leader
from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS, day_start_ns
from models_registry.dataset import TABLE, Features, MemorySource, Rows, Source
from models_registry.validation import (
    DELAY_S,
    Mask,
    information_coefficient,
    label_reach_ns,
    walk_forward,
)

if TYPE_CHECKING:
    from models_registry.fold import Fits

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Correlation of a feature's innovation with a later second's return that is presumed a leak. The honest
#: features of the synthetic market have at most 0.10, those of order flow one bar early up to 0.5.
AHEAD_LIMIT: Final = 0.15
#: Standard errors of an edge of foresight that are no accident among some hundred features.
EDGE_Z: Final = 5.0
#: Errors of an IC on permuted labels that are no accident: one-sided 0.1 %.
PERMUTED_Z: Final = 3.09
#: float32 keeps 24 bits; two engines agree to 1e-9 before rounding.
_ROUNDING: Final = 2.5e-7
_SKEW_S: Final = 1800


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A probe's outcome: it passes while ``value`` does not exceed ``limit``."""

    name: str
    passed: bool
    value: float
    limit: float
    text: str


def _probe(name: str, value: float, limit: float, text: str) -> Probe:
    return Probe(name=name, passed=value <= limit, value=value, limit=limit, text=text)


def time_shift(
    features: npt.NDArray[np.floating],
    names: Sequence[str],
    mid: Float,
    t_ns: Int,
    horizon_s: int,
) -> Probe:
    """Features (n, f) of one symbol at consecutive seconds against its mid (n,).

    With u the innovation of a feature (what its last value does not foresee of it) at t and r(k) the return of the k-th second after it,
    a feature looks ahead if |corr(u, r(k))| exceeds `AHEAD_LIMIT` for a k > 0 and all of the last three
    seconds' correlations. Leads are the first three seconds and both ends of the label, where a decoy
    made of the label changes. The same on features one bar early says whether a leak would show.
    """
    leads = (1, 2, 3, DELAY_S + 1, horizon_s + DELAY_S, horizon_s + DELAY_S + 1)
    ahead = _ahead(features, mid, t_ns, leads)
    early = _ahead(np.concatenate((features[1:], features[-1:])), mid, t_ns, leads)
    found = np.flatnonzero(ahead > AHEAD_LIMIT)
    said = ", ".join(f"{names[i]} {ahead[i]:.2f}" for i in found[np.argsort(-ahead[found])][:5])
    would = int((early > AHEAD_LIMIT).sum())
    shown = (
        f"one bar early {would} of {len(names)} features would show"
        if would
        else "innovations of these features go with no second's return, so a leak would not show"
    )
    return _probe(
        "time_shift",
        float(ahead.max(initial=0.0)),
        AHEAD_LIMIT,
        f"looks ahead: {said}; {shown}" if said else f"no feature looks ahead; {shown}",
    )


def _ahead(
    features: npt.NDArray[np.floating], mid: Float, t_ns: Int, leads: Sequence[int]
) -> Float:
    """Per feature: the largest |corr| with a later second, 0 where one of the past is larger."""
    joined = np.diff(t_ns) == SECOND_NS
    level = _standardised(features)
    persistence = np.mean(level[1:] * level[:-1], axis=0)
    change = level[1:] - persistence * level[:-1]
    change[~joined] = 0.0
    change /= change.std(axis=0) + np.float32(1e-12)
    returns = np.where(joined, np.diff(np.log(mid)), 0.0)
    # Ranks would be slower and say the same: clip what would dominate the sum.
    spread = float(returns.std()) or 1.0
    scaled = np.clip(returns / spread, -5.0, 5.0).astype(np.float32)
    scaled /= float(scaled.std()) or 1.0
    np.clip(change, -5.0, 5.0, out=change)

    def correlation(lead: int) -> Float:
        n = len(change) - abs(lead)
        if n < 2:
            return np.zeros(features.shape[1])
        part = change[:n] if lead >= 0 else change[-lead:]
        after = scaled[lead:] if lead >= 0 else scaled[:n]
        return np.asarray(np.abs(after @ part) / n, np.float64)

    past = np.max([correlation(lead) for lead in (0, -1, -2)], axis=0)
    ahead = np.max([correlation(lead) for lead in leads], axis=0)
    return np.where(ahead > past, ahead, 0.0)


def label_edge(
    features: npt.NDArray[np.floating],
    names: Sequence[str],
    mid: Float,
    t_ns: Int,
    horizon_s: int,
) -> Probe:
    """Features (n, f) of one symbol at consecutive seconds: does foresight stop where the label ends?

    What a feature knows of the future fades; what was made of the label ends with it. With r the
    correlations with the return over the label's last tenth and over the same time after it, the value
    is the largest (|r_in| - 2|r_out|) in standard errors √(5w/n) of overlapping windows of w seconds.
    """
    w = max(1, horizon_s // 10)
    end = DELAY_S + horizon_s
    n = len(mid) - end - w
    if n < 100 * w:
        return _probe("label_edge", 0.0, EDGE_Z, f"{len(mid)} seconds are too few to tell")
    log_mid = np.log(mid)
    # Within consecutive seconds only.
    whole = t_ns[end + w :] - t_ns[:n] == (end + w) * SECOND_NS
    level = _standardised(features[:n][whole])
    r_in, r_out = (
        np.abs(_scaled(log_mid[at + w :][:n] - log_mid[at:][:n], whole) @ level) / len(level)
        for at in (end - w, end)
    )
    z = np.asarray((r_in - 2.0 * r_out) / math.sqrt(5.0 * w / len(level)), np.float64)
    worst = int(z.argmax())
    return _probe(
        "label_edge",
        float(z[worst]),
        EDGE_Z,
        f"{names[worst]}: correlation {r_in[worst]:.3f} before the label's end, {r_out[worst]:.3f} after it",
    )


def _standardised(features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Columns of mean 0 and variance 1; 0 where NaN or constant."""
    level = features.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        level -= np.nanmean(level, axis=0)
        level /= np.nanstd(level, axis=0)
    return np.nan_to_num(level, copy=False, posinf=0.0, neginf=0.0)


def _scaled(returns: Float, chosen: Mask) -> npt.NDArray[np.float32]:
    values = returns[chosen].astype(np.float32)
    return np.asarray((values - values.mean()) / (values.std() or np.float32(1.0)))


def truncation(
    compute: Callable[[int], npt.NDArray[np.floating]], count: int, cuts: Sequence[int]
) -> Probe:
    """``compute(n)`` makes features (n, f) of the first n of ``count`` rows of input.

    Row by row before each cut they must be those made of all rows, bit for bit: centred filters,
    features advanced in time and statistics of the whole sample are not.
    """
    whole = compute(count)
    wrong = sum(int((~_same(compute(cut), whole[:cut])).any(axis=1).sum()) for cut in cuts)
    return _probe(
        "truncation",
        float(wrong),
        0.0,
        f"{wrong} rows before {len(cuts)} cuts change with later data",
    )


def _same(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Mask:
    return np.asarray((a == b) | (np.isnan(a) & np.isnan(b)))


def split(train_ns: Int, test_ns: Int, horizon_s: int) -> Probe:
    """No label of a training decision overlaps one of a test decision."""
    reach = label_reach_ns(horizon_s)
    test = np.sort(test_ns)
    # The next test decision after each training decision, and the last before it.
    after = np.searchsorted(test, train_ns)
    padded = np.concatenate(([np.iinfo(np.int64).min // 2], test, [np.iinfo(np.int64).max]))
    overlap = (padded[after + 1] - train_ns < reach) | (train_ns - padded[after] < reach)
    found = int(overlap.sum())
    return _probe(
        "split",
        float(found),
        0.0,
        f"{found} of {len(train_ns)} training labels overlap test labels",
    )


def future_fit(fit: Callable[[Rows], bytes], rows: Rows, later: Mask, seed: int) -> Probe:
    """``fit(rows)`` must give the same bytes when the rows ``later`` (n,) are replaced by noise.

    Finds a scaler, a threshold or hyper-parameters fitted on all rows, and a shuffled split.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    features, labels = rows.features.copy(), rows.labels_bps.copy()
    count = int(later.sum())
    features[later] = 100.0 * generator.standard_normal((count, features.shape[1]))
    labels[later] = 1000.0 * generator.standard_normal((count, labels.shape[1]))
    noisy = msgspec.structs.replace(rows, features=features, labels_bps=labels)
    changed = fit(rows) != fit(noisy)
    return _probe(
        "future_fit",
        float(changed),
        0.0,
        f"the fit {'CHANGES' if changed else 'does not change'} with the {count:,} rows after its span",
    )


def permuted(
    score: Callable[[Rows], tuple[float, float]], rows: Rows, block_s: int, seed: int
) -> Probe:
    """``score(rows)`` fits and tests, and gives (rank IC, n_eff); its labels are permuted here.

    Labels move in blocks of time, the same for every symbol, so that they keep their overlap; rows that
    get none have NaN. An IC above `PERMUTED_Z` errors is a leak.
    """
    ic, n_eff = score(msgspec.structs.replace(rows, labels_bps=permute(rows, block_s, seed)))
    limit = PERMUTED_Z / math.sqrt(max(n_eff, 1.0))
    return _probe(
        "permuted", ic, limit, f"rank IC {ic:.4f} on permuted labels, at most {limit:.4f}"
    )


def permute(rows: Rows, block_s: int, seed: int) -> Float:
    """The labels (n, horizons) of other times: blocks of ``block_s`` in random order."""
    times = np.unique(rows.t_ns)
    block = times // (block_s * SECOND_NS)
    names, first = np.unique(block, return_index=True)
    generator = np.random.Generator(np.random.Philox(key=seed))
    pieces = np.split(np.arange(len(times)), first[1:])
    source = np.concatenate([pieces[i] for i in generator.permutation(len(names))])
    # Row of (time, symbol), -1 where there is none.
    width = int(rows.symbol.max(initial=0)) + 1
    place = np.full((len(times), width), -1)
    at = np.searchsorted(times, rows.t_ns)
    place[at, rows.symbol] = np.arange(len(rows))
    taken = place[source[at], rows.symbol]
    return np.where((taken >= 0)[:, np.newaxis], rows.labels_bps[taken], np.nan)


def decoys(importance: Float, decoy: Mask, top: int) -> Probe:
    """No noise feature is among the ``top`` by importance (folds, f) in more than one fold."""
    order = np.argsort(-importance, axis=1, kind="stable")[:, :top]
    folds = np.zeros(importance.shape[1])
    np.add.at(folds, order, 1.0)
    worst = float(folds[decoy].max(initial=0.0))
    return _probe(
        "decoys",
        worst,
        1.0,
        f"a noise feature is among the {top} best in {worst:.0f} of {len(importance)} folds",
    )


def of_data(source: Source, names: Sequence[str], horizon_s: int) -> tuple[Probe, ...]:
    """The probes of feature columns, on the first symbol's rows of the last date; none without rows."""
    for date in source.dates()[-1:]:
        rows = source.read([date], names)
        own = rows.where(rows.symbol == rows.symbol[:1])
        if len(own):
            given = (own.features, names, own.mid, own.t_ns, horizon_s)
            return time_shift(*given), label_edge(*given)
    return ()


def of_pipeline(
    source: Source,
    settings: Settings,
    features: Features,
    fits: Fits | None = None,
) -> tuple[Probe, ...]:
    """`split`, `future_fit` and `permuted` on the first fold, fitted by `fold.Trainer` or by ``fits``; none
    without a fold.

    Of the primary horizon alone, without selection and tuning, which stay inside the training span: three
    such fits are to cost little beside the folds themselves.
    """
    from models_registry import ensemble
    from models_registry.fold import FoldModel, Trainer

    own = settings.model
    model = msgspec.structs.replace(own, horizons_s=(own.primary_s,), trials=0, select=0)
    rows = source.read(source.dates()[: own.min_train_days + 1], features.names, own.train_stride_s)
    # That of a source which says what to learn (`own.OwnSource.learning`) is the last.
    columns = [
        own.horizons_s.index(own.primary_s),
        *range(len(own.horizons_s), rows.labels_bps.shape[1]),
    ]
    rows = msgspec.structs.replace(rows, labels_bps=rows.labels_bps[:, columns])
    folds = walk_forward(
        rows.t_ns,
        min_train_days=own.min_train_days,
        max_test_blocks=1,
        calibration_share=own.calibration_share,
        max_horizon_s=own.primary_s,
    )
    if not folds:
        return ()
    fold = folds[0]
    test = fold.test.mask(rows.t_ns)
    past = fold.train.mask(rows.t_ns) | fold.calibration.mask(rows.t_ns)
    apart = split(rows.t_ns[past], rows.t_ns[test], own.primary_s)

    def fit(given: Rows) -> FoldModel | str:
        memory = MemorySource(given, features.names)
        trainer = (fits or Trainer)(memory, features, model, None, lambda line: None)
        return trainer.fit(fold)

    def digest(given: Rows) -> bytes:
        made = fit(given)
        if isinstance(made, str):
            return made.encode()
        return repr(made.recipe).encode() + b"".join(m.text.encode() for m in made.members)

    def score(given: Rows) -> tuple[float, float]:
        made, held = fit(given), given.where(test)
        if isinstance(made, str):
            return 0.0, 1.0
        columns = [features.names.index(name) for name in made.recipe.features]
        output = ensemble.outputs(made.members[:1], held.features[:, columns], own.threads)[:, 0]
        ic = information_coefficient(output, held.labels_bps[:, 0], held.t_ns, own.primary_s)
        return ic.rank, ic.n_eff

    return (
        apart,
        future_fit(digest, rows, ~past & (rows.t_ns > fold.calibration.until_ns), own.seed),
        permuted(score, rows, own.bootstrap_block_s, own.seed),
    )


def live_skew(
    lake: Lake, symbols: Sequence[str], names: Sequence[str], date: str
) -> tuple[Probe, ...]:
    """The last half hour of a date's training set, made again by the live engine from the same bars.

    None of them where there are no bars, no rows, or features that the running code does not define.
    """
    from market.bars import COLUMNS
    from market.features import FeatureEvaluator, feature_names

    defined = list(feature_names())
    followed = sorted({*symbols, *(leader(symbol) for symbol in symbols)})
    if not set(names) <= set(defined) or not all(lake.exists("bars", s, date) for s in followed):
        return ()
    column = [defined.index(name) for name in names]
    evaluator = FeatureEvaluator(symbols)
    bars, kept = {}, {}
    times = [lake.read(TABLE, symbol, date, ["t_ns"])["t_ns"].to_numpy() for symbol in symbols]
    if not any(len(part) for part in times):
        return ()
    last = max(int(part[-1]) for part in times if len(part))
    for symbol in followed:
        table = lake.read("bars", symbol, date, ["t_ns", *COLUMNS])
        t_ns = table["t_ns"].to_numpy()
        values = np.column_stack([table[c].to_numpy(zero_copy_only=False) for c in COLUMNS])
        bars[symbol] = dict(zip(t_ns.tolist(), values.astype(np.float64), strict=True))
    for symbol in symbols:
        table = lake.read(TABLE, symbol, date, ["t_ns", *names])
        recent = np.flatnonzero(table["t_ns"].to_numpy() > last - _SKEW_S * SECOND_NS)
        values = np.column_stack(
            [table[n].to_numpy(zero_copy_only=False)[recent] for n in names]
        ).astype(np.float64)
        kept[symbol] = dict(zip(table["t_ns"].to_numpy()[recent].tolist(), values, strict=True))
    compared = differ = 0
    # Event-time sums restart at midnight in both; windows reach back no further than a few hours.
    for t in range(
        max(day_start_ns(date) + SECOND_NS, last - 4 * 3600 * SECOND_NS), last + 1, SECOND_NS
    ):
        for symbol in followed:
            if (bar := bars[symbol].get(t)) is not None:
                evaluator.push(symbol, t, bar)
        for symbol in symbols:
            if (row := kept[symbol].get(t)) is not None:
                made = np.asarray(rounded(evaluator.evaluate(symbol)[0][column]), np.float64)
                close = np.abs(made - row) <= _ROUNDING * np.maximum(1.0, np.abs(row))
                compared += len(row)
                differ += int((~(close | (np.isnan(made) & np.isnan(row)))).sum())
    text = f"{differ} of {compared:,} values of {date} differ between the live engine and the batch"
    return (_probe("live_skew", float(differ), 0.0, text),)
