"""The lake's training_set as arrays, read one partition at a time.

A day of two symbols is about 120 MB, so training reads every n-th second of all days (at 15 s 8 MB a
day), and validation every second of one day at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from market.errors import ModelError
from market.features.precision import Float32, rounded
from market.lake import Lake
from market.units import DAY_NS, SECOND_NS, utc_date
from models_registry.manifest import list_hash
from models_registry.validation import distinct

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

TABLE: Final = "training_set"


class DatasetError(ModelError):
    """The training set lacks what was requested; the message says what to materialise."""


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """Feature columns of a model, in the order of the live vector, and the hash of their definitions."""

    names: tuple[str, ...]
    hash: str

    @classmethod
    def defined(cls) -> Features:
        """The features of `market.features`."""
        from market.features import feature_hash, feature_names

        return cls(names=tuple(feature_names()), hash=feature_hash())

    @classmethod
    def of(cls, names: Sequence[str]) -> Features:
        """Columns without a definition; the hash is that of their names."""
        return cls(names=tuple(names), hash=list_hash(names))


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """n rows by time, then symbol.

    ``t_ns`` (n,), ``symbol`` (n,) index into the requested symbols, ``mid`` (n,) in quote currency,
    ``spread_bps`` (n,), ``features`` (n, f) as rounded, ``labels_bps`` (n, horizons) log returns in bps; NaN for
    NULL.
    """

    t_ns: Int
    symbol: npt.NDArray[np.int8]
    mid: Float
    spread_bps: Float
    features: Float32
    labels_bps: Float

    def __len__(self) -> int:
        return len(self.t_ns)

    @classmethod
    def empty(cls, rows: int, features: int, labels: int) -> Rows:
        """Rows to be filled in."""
        return cls(
            t_ns=np.empty(rows, np.int64),
            symbol=np.empty(rows, np.int8),
            mid=np.empty(rows),
            spread_bps=np.empty(rows),
            features=np.empty((rows, features), np.float32),
            labels_bps=np.empty((rows, labels)),
        )

    def where(self, mask: npt.NDArray[np.bool_] | slice) -> Rows:
        """The rows where ``mask`` (n,) is true; views of those of a slice."""
        return Rows(**{name: getattr(self, name)[mask] for name in self.__struct_fields__})

    def then(self, other: Rows) -> Rows:
        """These rows and the others."""
        both = (
            (name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__
        )
        return Rows(**{name: np.concatenate((a, b)) for name, a, b in both})


def dates(lake: Lake, symbols: Iterable[str]) -> list[str]:
    """Dates with a training_set partition of any of the symbols, sorted."""
    wanted = set(symbols)
    return sorted({day for symbol, day in lake.partitions(TABLE) if symbol in wanted})


def fingerprint(lake: Lake, symbols: Iterable[str], days: Iterable[str]) -> str:
    """Fingerprint of the content of these partitions (16 hex digits)."""
    wanted, within = set(symbols), set(days)
    digest = hashlib.sha256()
    for symbol, day in lake.partitions(TABLE):
        if symbol in wanted and day in within:
            digest.update(f"{symbol} {day} {lake.fingerprint(TABLE, symbol, day)}\n".encode())
    return digest.hexdigest()[:16]


def load(
    lake: Lake,
    symbols: Sequence[str],
    days: Iterable[str],
    features: Sequence[str],
    horizons_s: Sequence[int],
    stride_s: int = 1,
) -> Rows:
    """Rows at multiples of ``stride_s`` seconds; empty without a partition.

    DatasetError when a partition lacks a column, LakeError when it was made by other code.
    """
    labels = [f"y_{horizon}" for horizon in horizons_s]
    columns = ["t_ns", "mid_close", "spread_bps", *features, *labels]
    keys = [
        (index, symbol, day)
        for day in days
        for index, symbol in enumerate(symbols)
        if lake.exists(TABLE, symbol, day)
    ]
    times = [lake.read(TABLE, symbol, day, ["t_ns"])["t_ns"].to_numpy() for _, symbol, day in keys]
    kept = [np.flatnonzero(t_ns // SECOND_NS % stride_s == 0) for t_ns in times]
    t_ns = np.concatenate(
        [np.empty(0, np.int64), *(t[k] for t, k in zip(times, kept, strict=True))]
    )
    symbol_of = np.repeat([index for index, *_ in keys], [len(k) for k in kept]).astype(np.int8)
    # Each row goes straight to its place, so that no array is held twice.
    place = np.argsort(np.lexsort((symbol_of, t_ns)))
    rows = Rows.empty(len(t_ns), len(features), len(labels))
    rows.t_ns[place], rows.symbol[place] = t_ns, symbol_of
    start = 0
    for (_, symbol, day), chosen in zip(keys, kept, strict=True):
        file = lake.open(TABLE, symbol, day)
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise DatasetError(
                f"{lake.path(TABLE, symbol, day)}: no column {', '.join(missing[:3])}"
                f"{' …' if len(missing) > 3 else ''}; materialise training_set for {symbol} "
                f"{day} again"
            )
        at = place[start : start + len(chosen)]
        start += len(chosen)
        table = file.read(columns=columns).take(pa.array(chosen))
        rows.mid[at] = _column(table, "mid_close")
        rows.spread_bps[at] = _column(table, "spread_bps")
        for column, name in enumerate(features):
            rows.features[at, column] = rounded(_column(table, name))
        for column, name in enumerate(labels):
            rows.labels_bps[at, column] = _column(table, name) * 1e4
    return rows


def values_at(t_ns: Int, values: Float, wanted: Int) -> Float:
    """Values (n,) at rising times as of the ``wanted`` ones (m,), NaN where there is none."""
    at = np.searchsorted(t_ns, wanted)
    found = np.append(values, np.nan)[at]
    found[np.append(t_ns, -1)[at] != wanted] = np.nan
    return found


class Source(Protocol):
    """Where training and validation read their rows."""

    def dates(self) -> tuple[str, ...]:
        """UTC dates with rows, sorted."""
        ...

    def read(self, days: Iterable[str], features: Sequence[str], stride_s: int = 1) -> Rows:
        """Rows of these dates with these feature columns, at multiples of ``stride_s`` seconds."""
        ...


class LakeSource:
    """The lake's training set (`load`), of the dates there are now; DatasetError and LakeError as there."""

    def __init__(self, lake: Lake, symbols: Sequence[str], horizons_s: Sequence[int]) -> None:
        self._lake, self._symbols, self._horizons_s = lake, tuple(symbols), tuple(horizons_s)
        self._dates = tuple(dates(lake, symbols))

    def dates(self) -> tuple[str, ...]:
        return self._dates

    def read(self, days: Iterable[str], features: Sequence[str], stride_s: int = 1) -> Rows:
        return load(self._lake, self._symbols, days, features, self._horizons_s, stride_s)


class MemorySource:
    """Rows in memory, by time, with the names of their feature columns."""

    def __init__(self, rows: Rows, names: Sequence[str]) -> None:
        self._rows, self._names = rows, list(names)
        self._day = (rows.t_ns - 1) // DAY_NS

    def dates(self) -> tuple[str, ...]:
        return tuple(utc_date(int(day) * DAY_NS) for day in distinct(self._day))

    def read(self, days: Iterable[str], features: Sequence[str], stride_s: int = 1) -> Rows:
        wanted = set(days)
        chosen = [d for d in distinct(self._day) if utc_date(int(d) * DAY_NS) in wanted]
        if missing := sorted(set(features) - set(self._names)):
            raise DatasetError(f"the rows have no column {', '.join(missing[:3])}")
        kept = np.isin(self._day, chosen) & (self._rows.t_ns // SECOND_NS % stride_s == 0)
        columns = [self._names.index(name) for name in features]
        rows = self._rows.where(kept)
        return msgspec.structs.replace(rows, features=rows.features[:, columns])


def _column(table: pa.Table, name: str) -> Float:
    # Cast first: an all-NULL column has no float type, and its NULLs would not become NaN.
    values = table.column(name).cast(pa.float64()).to_numpy()
    return np.ascontiguousarray(values, np.float64)
