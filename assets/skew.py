"""Skew between live and batch: logged decisions, made again from what the worker itself received.

A run of the worker leaves its capture (`ROOT/live/frames/date=DATE/RUN.frames.zst`), the bars that it
began with (`ROOT/live/history/RUN.parquet`, where it joined the lake's history) and its decisions, each
with the vector it was made from. From the first two, and nothing else, this makes the bars of a date
in one piece and the features by the batch's SQL, and compares every value; and from the logged vector
and the bundle that it names, the expectation:

    |live − batch| <= 1e-9 max(1, |live|), NULL where the other is NULL, the same bars, as warm

Another frame, another bar, another definition or another order of events shows as a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

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
from models_registry.manifest import MANIFEST_FILE, Bundle, BundleError, sha256

TOLERANCE: Final = 1e-9
#: Differences that are told in full; all are counted.
TOLD: Final = 20

#: Columns of a decision that its bar has under the same meaning.
_OF_BAR: Final = {"mid": "mid_close", "spread_bps": "spread_bps"}

Key = tuple[str, str]
Floats = npt.NDArray[np.float64]
#: Times, live values, batch values.
Apart = tuple[npt.NDArray[np.int64], Floats, Floats]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One value that the batch does not confirm; None stands for NULL."""

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
    """What was compared. ``by_name`` counts differences by feature, ``told`` holds the first ones.

    ``unfounded`` names what cannot be recomputed, and why: it fails as a difference does.
    """

    decisions: int
    values: int
    differences: int
    by_name: dict[str, int]
    told: tuple[Difference, ...]
    unfounded: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not (self.differences or self.unfounded)


def judge(lake: Lake, settings: Settings, keys: Iterable[Key]) -> SkewReport:
    """Recompute the decisions of these (symbol, date) keys; those without decisions say nothing."""
    by_run: dict[tuple[str, str], list[str]] = {}
    logged: dict[Key, pa.Table] = {}
    for symbol, day in keys:
        if lake.exists("decisions", symbol, day):
            rows = logged[symbol, day] = lake.read("decisions", symbol, day)
            for run in pc.unique(rows["run"]).to_pylist():
                by_run.setdefault((run, day), []).append(symbol)
    decisions = values = 0
    found: list[Difference] = []
    by_name: dict[str, int] = {}
    unfounded: list[str] = []
    for (run, day), symbols in sorted(by_run.items()):
        mine = {
            symbol: logged[symbol, day].filter(pc.equal(logged[symbol, day]["run"], run))
            for symbol in symbols
        }
        until_ns = max(pc.max(rows["t_ns"]).as_py() for rows in mine.values())
        try:
            batch = _recomputed(Path(lake.base) / "live", settings, run, day, symbols, until_ns)
        except SkewError as error:
            unfounded.append(str(error))
            continue
        for symbol, rows in mine.items():
            decisions += len(rows)
            off = _compared(rows, batch[symbol])
            try:
                off |= _expected(lake.base, rows)
            except BundleError as error:
                unfounded.append(f"{run} {day}: {error}")
            values += len(rows) * len(off)
            for name, (times, live, other) in off.items():
                if len(times):
                    by_name[name] = by_name.get(name, 0) + len(times)
                found += [
                    Difference(run=run, symbol=symbol, t_ns=t, name=name, live=a, batch=b)
                    for t, a, b in list(
                        zip(times.tolist(), _nulls(live), _nulls(other), strict=True)
                    )[:TOLD]
                ]
    return SkewReport(
        decisions=decisions,
        values=values,
        differences=sum(by_name.values()),
        by_name=dict(sorted(by_name.items(), key=lambda item: -item[1])),
        told=tuple(sorted(found, key=lambda one: (one.t_ns, one.symbol))[:TOLD]),
        unfounded=tuple(unfounded),
    )


class SkewError(DataError):
    """A run's decisions cannot be made again; the message says what is missing."""


# -- the batch's side ----------------------------------------------------------------------------


def _recomputed(
    live: Path, settings: Settings, run: str, day: str, symbols: Sequence[str], until_ns: int
) -> dict[str, pa.Table]:
    """Symbol -> t_ns, warm, features and the bar's columns of one run on one date."""
    import duckdb
    import jinja2

    from market.features.rendering import render_model

    wanted = list(dict.fromkeys([*symbols, *map(leader, symbols)]))
    before = _capture(live, run, previous_day(day))
    capture = _capture(live, run, day)
    if capture is None:
        raise SkewError(
            f"{run} {day}: {live}/frames has no capture of it; keep the worker's captures until "
            "their date was checked"
        )
    history = _history(live / "history" / f"{run}.parquet")
    midnight = day_start_ns(day)
    parts = []
    of_date = _bars(capture, settings, wanted, min(until_ns, midnight + DAY_NS))
    of_eve = _bars(before, settings, wanted, midnight) if before is not None else {}
    for symbol in wanted:
        pieces = [*history.get(symbol, ()), *of_eve.get(symbol, ()), *of_date.get(symbol, ())]
        rows = pa.concat_tables([ARROW_SCHEMA.empty_table(), *pieces])
        rows = rows.filter(pc.greater(rows["t_ns"], midnight - MEMORY_S * SECOND_NS))
        parts.append(
            rows.append_column("symbol", pa.array([symbol] * len(rows), pa.string()))
            .append_column("date", pa.array([day] * len(rows), pa.string()))
            .append_column("wanted", pc.greater(rows["t_ns"], midnight))
        )
    sql = jinja2.Environment().from_string(render_model()).render(ref=lambda name: name)
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        bars = pa.concat_tables(parts)
        connection.register("stg_bars", bars)
        features = connection.execute(f"from ({sql}) order by symbol, t_ns").to_arrow_table()
    found = {}
    for symbol in symbols:
        mine = features.filter(pc.equal(features["symbol"], symbol))
        seen = bars.filter(pc.and_(pc.equal(bars["symbol"], symbol), bars["wanted"]))
        for name in _OF_BAR.values():
            mine = mine.append_column(f"bar.{name}", seen.sort_by("t_ns")[name])
        found[symbol] = mine
    return found


def _capture(live: Path, run: str, day: str) -> Path | None:
    path = live / "frames" / f"date={day}" / f"{run}.frames.zst"
    return path if path.exists() else None


def _history(path: Path) -> dict[str, list[pa.Table]]:
    """The bars that the run began with, by symbol."""
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
    """Bars of a capture in one piece up to ``until_ns``."""
    depth = settings.market.book_depth
    instruments: dict[str, Instrument] = instruments_of([str(capture)], symbols, depth)
    decoder = Decoder(instruments, depth, symbols, follow=False)
    builders = {
        symbol: BarBuilder(found, settings.market.stale_after_s)
        for symbol, found in instruments.items()
    }
    parts: dict[str, list[Bars]] = {symbol: [] for symbol in symbols}
    for block in read_blocks(capture):
        for symbol, events in decoder.decode_block(block).events.items():
            parts[symbol].append(builders[symbol].push(events))
    for symbol, builder in builders.items():
        parts[symbol].append(builder.close_until(until_ns))
    return {symbol: [bars.to_arrow() for bars in found] for symbol, found in parts.items()}


# -- the comparison ------------------------------------------------------------------------------


def _compared(rows: pa.Table, batch: pa.Table) -> dict[str, Apart]:
    """Name -> (times, live values, batch values) where the two differ, over all that is compared."""
    t_ns, other_ns = rows["t_ns"].to_numpy(), batch["t_ns"].to_numpy()
    place = np.searchsorted(other_ns, t_ns)
    place = np.minimum(place, max(len(other_ns) - 1, 0))
    there = other_ns[place] == t_ns if len(other_ns) else np.zeros(len(t_ns), bool)
    found = {}
    names = {name: name for name in ("warm", *feature_names())}
    names |= {name: f"bar.{column}" for name, column in _OF_BAR.items()}
    for name, theirs in names.items():
        live = _floats(rows, name)
        other = np.full(len(t_ns), np.nan)
        if len(other_ns):
            other = np.where(there, _floats(batch, theirs)[place], np.nan)
        found[name] = _apart(t_ns, live, other)
    return found


def _expected(root: str, rows: pa.Table) -> dict[str, Apart]:
    """The same for the expectations, by the bundles that the decisions name.

    BundleError when one is not kept any more.
    """
    shas = np.array(rows["bundle_sha"].to_pylist())
    sound = (_floats(rows, "warm") == 1) & ~np.isnan(_floats(rows, "mid"))
    made = {name: np.full(len(rows), np.nan) for name in ("expected_bps", "raw_bps")}
    for sha in sorted(set(shas.tolist())):
        bundle = _bundle(root, sha)
        mine = np.flatnonzero(sound & (shas == sha))
        names = bundle.manifest.features
        vectors = np.column_stack([_floats(rows, name)[mine] for name in names])
        if len(mine):
            found = bundle.predict_many(vectors)
            made["expected_bps"][mine] = found.expected_bps
            made["raw_bps"][mine] = found.raw_bps
    t_ns = rows["t_ns"].to_numpy()
    return {name: _apart(t_ns, _floats(rows, name), other) for name, other in made.items()}


def _bundle(root: str, sha: str) -> Bundle:
    for path in sorted(Path(root).glob(f"bundles/*/*/{MANIFEST_FILE}")):
        if sha256(path.read_bytes()) == sha:
            return Bundle.load(path.parent, sha)
    raise BundleError(
        f"{root}/bundles: the bundle {sha[:12]} that decided is gone; keep bundles until their dates "
        "were checked"
    )


def _apart(t_ns: npt.NDArray[np.int64], live: Floats, other: Floats) -> Apart:
    off = np.isnan(live) != np.isnan(other)
    off |= np.abs(live - other) > TOLERANCE * np.maximum(1.0, np.abs(live))
    return t_ns[off], live[off], other[off]


def _floats(rows: pa.Table, name: str) -> Floats:
    if name not in rows.column_names:
        return np.full(len(rows), np.nan)
    column: Any = rows[name]
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _nulls(values: Floats) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def said(report: SkewReport) -> str:
    """The report in one line."""
    if not report.decisions and not report.unfounded:
        return "no decisions of the live worker on these dates"
    text = f"{report.decisions:,} decisions, {report.values:,} values, {report.differences} differ"
    if report.told:
        text += f"; first {report.told[0]}"
    return "; ".join([text, *report.unfounded])
