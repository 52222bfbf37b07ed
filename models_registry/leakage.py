"""The leakage probes that a training asks of itself: blocking rows of its gate, all on bounded samples.

time_shift, label_edge         first symbol, last date of the training set
split, future_fit, permuted    first fold, primary horizon, five quick fits
live_skew                      last half hour of the last date, made again by the live engine
truncation                     `ROWS` rows of the last date, made again by the batch from bars that end with them

`probes.decoys` is of no use here: selection judges noise columns in every fold (`selection`), and the row
`stability` of the gate states how many it let through. Noise among the chosen costs skill, and no honesty.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from market.features import feature_names
from market.features.expression import MEMORY_S
from market.features.precision import rounded
from market.instruments import leader
from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS, day_start_ns
from models_registry import gate, probes
from models_registry.dataset import TABLE, Features, Source
from models_registry.manifest import GateRow
from models_registry.probes import Probe

#: Rows of a symbol that `truncation` makes again, the last ones before the cut.
ROWS: Final = 900
#: float32 keeps 24 bits; sums over other stretches of the same bars agree to 1e-9 before rounding.
_ROUNDING: Final = 2.5e-7


def probed(lake: Lake, source: Source, settings: Settings, features: Features) -> tuple[Probe, ...]:
    """All probes that can be run on this training set; `live_skew` and `truncation` need its bars."""
    with warnings.catch_warnings():
        # Of a feature that is all NULL: it has no mean.
        warnings.filterwarnings("ignore", "Mean of empty|Degrees of freedom", RuntimeWarning)
        found = probes.of_data(source, features.names, settings.model.primary_s)
    found += probes.of_pipeline(source, settings, features)
    for date in source.dates()[-1:]:
        found += probes.live_skew(lake, settings.market.symbols, features.names, date)
        found += truncation(lake, settings.market.symbols, features.names, date)
    return found


def rows(found: Iterable[Probe]) -> tuple[GateRow, ...]:
    """The gate's rows of these probes."""
    return tuple(gate.probe_row(probe) for probe in found)


def truncation(
    lake: Lake, symbols: Sequence[str], names: Sequence[str], date: str
) -> tuple[Probe, ...]:
    """Whether values of a date's training set change when the bars end with them (`probes`).

    The cut is early in the date, so that few bars tell: an hour of memory, which no feature looks back beyond,
    then `ROWS` rows. None where bars, rows or definitions of the features are missing.
    """
    wanted = sorted({*symbols, *(leader(symbol) for symbol in symbols)})
    # The batch too goes without a leader that is not there.
    followed = [symbol for symbol in wanted if lake.exists("bars", symbol, date)]
    if not set(names) <= set(feature_names()):
        return ()
    from market.features.rendering import batch

    first_ns = day_start_ns(date) + MEMORY_S * SECOND_NS
    kept = {}
    for symbol in sorted(set(symbols) & set(followed)):
        table = lake.read(TABLE, symbol, date, ["t_ns", *names])
        kept[symbol] = table.filter(pc.greater(table["t_ns"], first_ns)).slice(0, ROWS)
    ends = [table["t_ns"][-1].as_py() for table in kept.values() if len(table)]
    if not ends:
        return ()
    parts = []
    for symbol in followed:
        bars = lake.between("bars", symbol, date, 0, max(ends))
        for name, value in (("symbol", symbol), ("date", date), ("wanted", True)):
            bars = bars.append_column(name, pa.array([value] * len(bars)))
        parts.append(bars)
    made = batch(pa.concat_tables(parts))
    compared, wrong = 0, Counter[str]()
    for symbol, table in kept.items():
        again = made.filter(pc.equal(made["symbol"], symbol))
        again = again.take(pc.index_in(table["t_ns"], again["t_ns"]))
        for name in names:
            old, new = (
                rounded(part[name].to_numpy(zero_copy_only=False)) for part in (table, again)
            )
            close = np.isclose(new, old, _ROUNDING, _ROUNDING, equal_nan=True)
            compared, wrong[name] = compared + len(old), wrong[name] + int((~close).sum())
    differ = wrong.total()
    text = f"{differ} of {compared:,} values of {date} change when the bars end with them"
    text += "".join(f"; {name}" for name, count in wrong.most_common(5) if count)
    return (Probe(name="truncation", passed=not differ, value=float(differ), limit=0.0, text=text),)
