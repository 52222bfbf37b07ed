"""Live-batch skew: logged decisions recomputed from what the worker itself received.

A run of the worker leaves its own capture (`ROOT/live/frames/date=DATE/RUN.frames.zst`), the bars that it
started with (`ROOT/live/history/RUN.parquet`, if it joined the lake's history) and its decisions with
their feature vectors. From capture and history alone this rebuilds the bars of a date in one piece and
the features by the batch's SQL, and compares every value; and from the logged vector and the bundle
named with it, the expected return:

    |live − batch| <= 1e-9 max(1, |live|), NULLs in the same places, the same bars, the same warm-up

Another frame, bar, definition or order of events shows as a difference. Of features that a decision's
model does not take, which the worker need not compute, the values that are there are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from market.bars import ARROW_SCHEMA, BarBuilder, Bars
from market.columns import COLUMNS
from market.errors import DataError
from market.features import feature_names
from market.features.expression import MEMORY_S
from market.instruments import Instrument, leader
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, SECOND_NS, day_start_ns, previous_day
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of
from models_registry.manifest import Bundle, BundleError
from models_registry.pointed import find

TOLERANCE: Final = 1e-9
#: Differences that a report lists; all are counted.
EXAMPLES: Final = 20

#: Columns of a decision -> the bar's column of the same meaning.
_BAR_COLUMNS: Final = {"mid": "mid_close", "spread_bps": "spread_bps"}

Key = tuple[str, str]  #: (symbol, date)
Floats = npt.NDArray[np.float64]


class SkewError(DataError):
    """A run's decisions cannot be recomputed; the message says what is missing."""


class Mismatches(NamedTuple):
    """Rows of one column where live and batch differ, arrays of shape (n,); ``values`` were compared."""

    t_ns: npt.NDArray[np.int64]
    live: Floats
    batch: Floats
    values: int


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One value that the batch does not reproduce; None stands for NULL."""

    run: str
    symbol: str
    t_ns: int
    name: str
    live: float | None
    batch: float | None

    def __str__(self) -> str:
        time = np.datetime64(self.t_ns, "ns").astype("datetime64[s]")
        return (
            f"{self.symbol} {time} {self.name}: live {self.live}, batch {self.batch} ({self.run})"
        )


class SkewReport(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of a comparison: decisions, values compared, differences in all and by column.

    ``examples`` are the first differences. ``not_recomputed`` names what could not be recomputed, and
    why: the comparison fails on it as on a difference.
    """

    decisions: int
    values: int
    differences: int
    by_name: dict[str, int]
    examples: tuple[Difference, ...]
    not_recomputed: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything was recomputed without a difference."""
        return not (self.differences or self.not_recomputed)

    @property
    def summary(self) -> str:
        """The report in one line."""
        if not self.decisions and not self.not_recomputed:
            return "no decisions of the live worker on these dates"
        text = f"{self.decisions:,} decisions, {self.values:,} values, {self.differences} differ"
        if self.examples:
            text += f"; first {self.examples[0]}"
        return "; ".join([text, *self.not_recomputed])


def compare(lake: Lake, settings: Settings, keys: Iterable[Key]) -> SkewReport:
    """Recompute and compare the decisions of these (symbol, date) keys; keys without any are skipped."""
    symbols_of: dict[tuple[str, str], list[str]] = {}
    for symbol, day in keys:
        if lake.exists("decisions", symbol, day):
            for run in pc.unique(lake.read("decisions", symbol, day, ["run"])["run"]).to_pylist():
                symbols_of.setdefault((run, day), []).append(symbol)
    decisions = values = 0
    examples: list[Difference] = []
    by_name: dict[str, int] = {}
    not_recomputed: list[str] = []
    for (run, day), symbols in sorted(symbols_of.items()):
        of_run = {
            symbol: rows.filter(pc.equal(rows["run"], run))
            for symbol in symbols
            for rows in [lake.read("decisions", symbol, day)]
        }
        until_ns = max(pc.max(rows["t_ns"]).as_py() for rows in of_run.values())
        try:
            batch = _recompute(lake.home / "live", settings, run, day, symbols, until_ns)
        except SkewError as error:
            not_recomputed.append(str(error))
            continue
        for symbol, rows in of_run.items():
            decisions += len(rows)
            bundles: dict[str, Bundle] = {}
            mismatches: dict[str, Mismatches] = {}
            try:
                shas = sorted(set(rows["bundle_sha"].to_pylist()))
                bundles = {sha: _bundle(lake.home, sha) for sha in shas}
                mismatches = _compare_predictions(bundles, rows)
            except BundleError as error:
                not_recomputed.append(f"{run} {day}: {error}")
            mismatches |= _compare_features(bundles, rows, batch[symbol])
            values += sum(found.values for found in mismatches.values())
            for name, found in mismatches.items():
                if len(found.t_ns):
                    by_name[name] = by_name.get(name, 0) + len(found.t_ns)
            examples += _examples(run, symbol, mismatches)
    return SkewReport(
        decisions=decisions,
        values=values,
        differences=sum(by_name.values()),
        by_name=dict(sorted(by_name.items(), key=lambda item: -item[1])),
        examples=tuple(sorted(examples, key=lambda each: (each.t_ns, each.symbol))[:EXAMPLES]),
        not_recomputed=tuple(not_recomputed),
    )


def _examples(run: str, symbol: str, mismatches: Mapping[str, Mismatches]) -> list[Difference]:
    """The first `EXAMPLES` differences of each column."""

    def nulls(values: Floats) -> list[float | None]:
        return [None if value != value else value for value in values[:EXAMPLES].tolist()]

    return [
        Difference(run=run, symbol=symbol, t_ns=t_ns, name=name, live=live, batch=batch)
        for name, rows in mismatches.items()
        for t_ns, live, batch in zip(
            rows.t_ns[:EXAMPLES].tolist(), nulls(rows.live), nulls(rows.batch), strict=True
        )
    ]


# -- recomputing -----------------------------------------------------------------------------------


def _recompute(
    live: Path, settings: Settings, run: str, day: str, symbols: Sequence[str], until_ns: int
) -> dict[str, pa.Table]:
    """Symbol -> t_ns, warm, features and the bar's columns of one run on one date.

    SkewError when the run's capture is gone or its history has other columns.
    """
    import duckdb
    import jinja2

    from market.features.rendering import render_model

    needed = list(dict.fromkeys([*symbols, *map(leader, symbols)]))
    eve_capture = _capture(live, run, previous_day(day))
    capture = _capture(live, run, day)
    if capture is None:
        raise SkewError(
            f"{run} {day}: {live}/frames has no capture of it; keep the worker's captures until "
            "their date was checked"
        )
    history = _history(live / "history" / f"{run}.parquet")
    midnight_ns = day_start_ns(day)
    date_bars = _bars(capture, settings, needed, min(until_ns, midnight_ns + DAY_NS))
    eve_bars = _bars(eve_capture, settings, needed, midnight_ns) if eve_capture is not None else {}
    parts = []
    for symbol in needed:
        pieces = [*history.get(symbol, ()), *eve_bars.get(symbol, ()), *date_bars.get(symbol, ())]
        rows = pa.concat_tables([ARROW_SCHEMA.empty_table(), *pieces])
        rows = rows.filter(pc.greater(rows["t_ns"], midnight_ns - MEMORY_S * SECOND_NS))
        parts.append(
            rows.append_column("symbol", pa.array([symbol] * len(rows), pa.string()))
            .append_column("date", pa.array([day] * len(rows), pa.string()))
            .append_column("wanted", pc.greater(rows["t_ns"], midnight_ns))
        )
    sql = jinja2.Environment().from_string(render_model()).render(ref=lambda name: name)
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        bars = pa.concat_tables(parts)
        connection.register("stg_bars", bars)
        features = connection.execute(f"from ({sql}) order by symbol, t_ns").to_arrow_table()
    batch = {}
    for symbol in symbols:
        rows = features.filter(pc.equal(features["symbol"], symbol))
        own_bars = bars.filter(pc.and_(pc.equal(bars["symbol"], symbol), bars["wanted"]))
        for name in _BAR_COLUMNS.values():
            rows = rows.append_column(f"bar.{name}", own_bars.sort_by("t_ns")[name])
        batch[symbol] = rows
    return batch


def _capture(live: Path, run: str, day: str) -> Path | None:
    path = live / "frames" / f"date={day}" / f"{run}.frames.zst"
    return path if path.exists() else None


def _history(path: Path) -> dict[str, list[pa.Table]]:
    """The bars that the run started with, by symbol."""
    if not path.exists():
        return {}
    rows = pq.read_table(path, partitioning=None)
    if rows.column_names[2:] != list(COLUMNS):
        raise SkewError(f"{path}: has other bar columns; check with the code that ran")
    return {
        symbol: [rows.filter(pc.equal(rows["symbol"], symbol)).drop(["symbol"]).cast(ARROW_SCHEMA)]
        for symbol in pc.unique(rows["symbol"]).to_pylist()
    }


def _bars(
    capture: Path, settings: Settings, symbols: Sequence[str], until_ns: int
) -> dict[str, list[pa.Table]]:
    """Bars of a whole capture up to ``until_ns``, by symbol."""
    depth = settings.market.book_depth
    instruments: dict[str, Instrument] = instruments_of([str(capture)], symbols, depth)
    decoder = Decoder(instruments, depth, symbols, follow=False)
    builders = {
        symbol: BarBuilder(instrument, settings.market.stale_after_s)
        for symbol, instrument in instruments.items()
    }
    parts: dict[str, list[Bars]] = {symbol: [] for symbol in symbols}
    for block in read_blocks(capture):
        for symbol, events in decoder.decode_block(block).events.items():
            parts[symbol].append(builders[symbol].push(events))
    for symbol, builder in builders.items():
        parts[symbol].append(builder.close_until(until_ns))
    return {symbol: [bars.to_arrow() for bars in of_symbol] for symbol, of_symbol in parts.items()}


# -- comparing -------------------------------------------------------------------------------------


def _compare_features(
    bundles: Mapping[str, Bundle], rows: pa.Table, batch: pa.Table
) -> dict[str, Mismatches]:
    """Column -> mismatches, for every compared column of the decisions."""
    shas = np.array(rows["bundle_sha"].to_pylist())
    taken = [(shas == sha, {*bundle.manifest.features}) for sha, bundle in bundles.items()]
    live_ns, batch_ns = rows["t_ns"].to_numpy(), batch["t_ns"].to_numpy()
    index = np.minimum(np.searchsorted(batch_ns, live_ns), max(len(batch_ns) - 1, 0))
    matched = batch_ns[index] == live_ns if len(batch_ns) else np.zeros(len(live_ns), bool)
    columns = {name: name for name in ("warm", *feature_names())}
    columns |= {name: f"bar.{column}" for name, column in _BAR_COLUMNS.items()}
    mismatches = {}
    for name, batch_name in columns.items():
        recomputed = np.full(len(live_ns), np.nan)
        if len(batch_ns):
            recomputed = np.where(matched, _floats(batch, batch_name)[index], np.nan)
        live = _floats(rows, name)
        compared = ~np.isnan(live) | (name not in feature_names())
        for mask, features in taken:
            compared |= mask & (name in features)
        mismatches[name] = _mismatches(live_ns[compared], live[compared], recomputed[compared])
    return mismatches


def _compare_predictions(bundles: Mapping[str, Bundle], rows: pa.Table) -> dict[str, Mismatches]:
    """The same for expected returns, predicted again by the bundles that the decisions name."""
    shas = np.array(rows["bundle_sha"].to_pylist())
    predicted = (_floats(rows, "warm") == 1) & ~np.isnan(_floats(rows, "mid"))
    batch = {name: np.full(len(rows), np.nan) for name in ("expected_bps", "raw_bps")}
    for sha, bundle in bundles.items():
        chosen = np.flatnonzero(predicted & (shas == sha))
        names = bundle.manifest.features
        vectors = np.column_stack([_floats(rows, name)[chosen] for name in names])
        if len(chosen):
            predictions = bundle.predict_many(vectors)
            batch["expected_bps"][chosen] = predictions.expected_bps
            batch["raw_bps"][chosen] = predictions.raw_bps
    t_ns = rows["t_ns"].to_numpy()
    return {name: _mismatches(t_ns, _floats(rows, name), values) for name, values in batch.items()}


def _bundle(root: Path, sha: str) -> Bundle:
    for home in sorted(root.glob("bundles/*")):
        with suppress(BundleError):
            return find(home, sha)[1]
    raise BundleError(
        f"{root}/bundles: the bundle {sha[:12]} that decided is gone; keep bundles until their dates "
        "were checked"
    )


def _mismatches(t_ns: npt.NDArray[np.int64], live: Floats, batch: Floats) -> Mismatches:
    differs = np.isnan(live) != np.isnan(batch)
    differs |= np.abs(live - batch) > TOLERANCE * np.maximum(1.0, np.abs(live))
    return Mismatches(t_ns[differs], live[differs], batch[differs], len(t_ns))


def _floats(rows: pa.Table, name: str) -> Floats:
    """A column as float64, NaN for NULL; all NaN when the table has no such column."""
    if name not in rows.column_names:
        return np.full(len(rows), np.nan)
    column: Any = rows[name]
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), np.float64)
