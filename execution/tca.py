"""Transaction cost analysis: what a parent order cost against the price it was decided at.

Perold's implementation shortfall (1988) in Kissell's expanded form, in bps of the decision value
S·p_d, positive = cost. With s the side, S the parent's quantity, q_i at p_i its fills, m_i the mid
when fill i happened, p_d, p_0, p_T the mids at decision, first order and end:

    delay        s (p_0 - p_d)
    spread       Σ q_i s (p_i - m_i) / S        paid by a taker, earned (negative) by a maker
    timing       Σ q_i s (m_i - p_0) / S        drift and our own impact, not told apart here
    opportunity  s (p_T - p_0) (1 - Σ q_i / S)  what is left, valued at the end
    fees         Σ fee_i
    total        the five together, and computed apart from them: `Shortfall.residual_bps` is zero

Markouts are the other way round: s (m_{t+τ} - p_i) / p_i, positive = the market went our way.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, Final, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from execution.account import E8, unit_e8
from execution.algorithms.working import Parent
from execution.orders import Filled, Liquidity
from market.instruments import Instrument

#: Horizons of markouts in seconds.
MARKOUTS_S: Final = (1, 5, 30, 60)
#: The parts of a shortfall, in the order in which they are shown.
PARTS: Final = ("delay_bps", "spread_bps", "timing_bps", "opportunity_bps", "fees_bps")
_BPS: Final = 1e4
_SECOND_NS: Final = 1_000_000_000


class Mids:
    """The mid over time, as far as it was known: a step function in ticks."""

    def __init__(
        self, time_ns: Iterable[int] = (), mid_ticks: Iterable[float] = (), until_ns: int = 0
    ) -> None:
        self._time_ns = list(time_ns)
        self._mid_ticks = list(mid_ticks)
        #: The record ends here; nothing is known of later times.
        self.until_ns = max(until_ns, self._time_ns[-1] if self._time_ns else 0)

    def append(self, time_ns: int, mid_ticks: float) -> None:
        """The mid from ``time_ns`` on; times do not run backwards."""
        self.until_ns = max(self.until_ns, time_ns)
        if not self._mid_ticks or self._mid_ticks[-1] != mid_ticks:
            self._time_ns.append(time_ns)
            self._mid_ticks.append(mid_ticks)

    def at(self, time_ns: int) -> float:
        """The mid at an instant: the last one known then; NaN past the record's end.

        Before the first mid it is the first one.
        """
        if time_ns > self.until_ns or not self._time_ns:
            return math.nan
        return self._mid_ticks[max(0, bisect_right(self._time_ns, time_ns) - 1)]

    def forget(self, before_ns: int) -> None:
        """Drop what is older, except the mid that held at ``before_ns``."""
        keep = max(0, bisect_right(self._time_ns, before_ns) - 1)
        del self._time_ns[:keep], self._mid_ticks[:keep]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the rows of a lake table: its fields are the columns."""

    @classmethod
    def schema(cls) -> pa.Schema:
        """Arrow schema; floats may be NULL (NaN in memory), everything else may not."""
        kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
        hints = get_type_hints(cls)
        return pa.schema(
            [
                pa.field(name, kinds[hints[name]], nullable=hints[name] is float)
                for name in cls.__struct_fields__
            ]
        )


class ParentRow(Row, frozen=True, kw_only=True):
    parent_id: str
    symbol: str
    side: int
    algorithm: str
    venue: str
    qty_lots: int
    size_usdt: float
    decision_ns: int
    deadline_ns: int
    decision_mid_ticks: float


class OrderRow(Row, frozen=True, kw_only=True):
    client_id: str
    parent_id: str
    symbol: str
    side: int
    venue: str
    order_type: str
    time_in_force: str
    qty_lots: int
    price_ticks: int
    filled_lots: int
    state: str
    reason: str
    sent_ns: int
    changed_ns: int
    amends: int


class FillRow(Row, frozen=True, kw_only=True):
    exec_id: str
    client_id: str
    parent_id: str
    symbol: str
    side: int
    venue: str
    venue_ns: int
    time_ns: int
    qty_lots: int
    price_ticks: int
    liquidity: str
    fee_e8: int
    queue_ahead_lots: int


class Shortfall(Row, frozen=True, kw_only=True):
    """One parent's cost. NaN where there is nothing to measure (no fill, or past the record)."""

    parent_id: str
    symbol: str
    side: int
    algorithm: str
    #: Where it traded: "paper", or for a replay the queue model.
    venue: str
    size_usdt: float
    decision_ns: int
    arrival_ns: int
    end_ns: int
    qty_lots: int
    filled_lots: int
    decision_mid_ticks: float
    fill_ticks: float
    delay_bps: float
    spread_bps: float
    timing_bps: float
    opportunity_bps: float
    fees_bps: float
    total_bps: float
    maker_share: float
    time_to_fill_s: float
    markout_1s_bps: float
    markout_5s_bps: float
    markout_30s_bps: float
    markout_60s_bps: float

    @property
    def fill_rate(self) -> float:
        return self.filled_lots / self.qty_lots

    @property
    def residual_bps(self) -> float:
        """Parts minus total: zero to 1e-9."""
        return math.fsum(getattr(self, part) for part in PARTS) - self.total_bps


#: Row types of the lake's execution tables.
TABLES: Final[dict[str, type[Row]]] = {
    "parents": ParentRow,
    "orders": OrderRow,
    "fills": FillRow,
    "tca": Shortfall,
}


def to_table(rows: Sequence[Row], kind: type[Row]) -> pa.Table:
    """Rows of one kind as an Arrow table; NaN becomes NULL."""
    schema = kind.schema()
    columns = {
        field.name: pa.array(
            [None if value != value else value for value in (getattr(r, field.name) for r in rows)],
            field.type,
        )
        for field in schema
    }
    return pa.table(columns, schema=schema)


def parent_row(
    parent: Parent, algorithm: str, venue: str, instrument: Instrument, size_usdt: float = math.nan
) -> ParentRow:
    return ParentRow(
        parent_id=parent.id,
        symbol=parent.symbol,
        side=parent.side,
        algorithm=algorithm,
        venue=venue,
        qty_lots=parent.qty_lots,
        size_usdt=_size(parent, instrument, size_usdt),
        decision_ns=parent.decision_ns,
        deadline_ns=parent.deadline_ns,
        decision_mid_ticks=parent.decision_mid_ticks,
    )


def fill_row(fill: Filled, parent_id: str, venue: str) -> FillRow:
    return FillRow(
        exec_id=fill.exec_id,
        client_id=fill.client_id,
        parent_id=parent_id,
        symbol=fill.symbol,
        side=fill.side,
        venue=venue,
        venue_ns=fill.venue_ns,
        time_ns=fill.time_ns,
        qty_lots=fill.qty_lots,
        price_ticks=fill.price_ticks,
        liquidity=str(fill.liquidity),
        fee_e8=fill.fee_e8,
        queue_ahead_lots=fill.queue_ahead_lots,
    )


def shortfall(
    parent: Parent,
    fills: Sequence[Filled],
    mids: Mids,
    instrument: Instrument,
    *,
    algorithm: str,
    venue: str,
    arrival_ns: int | None,
    end_ns: int,
    size_usdt: float = math.nan,
) -> Shortfall:
    """One parent's cost, in parts that sum to the total to 1e-9 bps.

    ``fills`` are the parent's executions, each once; ``mids`` must reach from the decision to
    ``end_ns``, and a minute further for all markouts. ``arrival_ns`` is when the first order was
    sent, None when none was. ``size_usdt`` is what the parent was to be worth (default: what it was
    worth at the decision). Raises ValueError when the mids end before ``end_ns``.
    """
    side, decided = parent.side, parent.decision_mid_ticks
    start = mids.at(arrival_ns) if arrival_ns is not None else decided
    end = mids.at(end_ns)
    if math.isnan(end) or math.isnan(start):
        raise ValueError(f"parent {parent.id}: the mids end before the parent does")
    filled = sum(fill.qty_lots for fill in fills)
    scale = _BPS / (parent.qty_lots * decided)
    before = [mids.at(fill.venue_ns) for fill in fills]
    spread = math.fsum(
        f.qty_lots * side * (f.price_ticks - m) for f, m in zip(fills, before, strict=True)
    )
    timing = math.fsum(f.qty_lots * side * (m - start) for f, m in zip(fills, before, strict=True))
    paid = sum(fill.qty_lots * fill.price_ticks for fill in fills)
    left = parent.qty_lots - filled
    fees = sum(fill.fee_e8 for fill in fills) / unit_e8(instrument) * scale
    made = sum(f.qty_lots for f in fills if f.liquidity is Liquidity.MAKER)
    last_ns = max((fill.venue_ns for fill in fills), default=parent.decision_ns)
    return Shortfall(
        parent_id=parent.id,
        symbol=parent.symbol,
        side=side,
        algorithm=algorithm,
        venue=venue,
        size_usdt=_size(parent, instrument, size_usdt),
        decision_ns=parent.decision_ns,
        arrival_ns=parent.decision_ns if arrival_ns is None else arrival_ns,
        end_ns=end_ns,
        qty_lots=parent.qty_lots,
        filled_lots=filled,
        decision_mid_ticks=decided,
        fill_ticks=paid / filled if filled else math.nan,
        delay_bps=side * (start - decided) / decided * _BPS,
        spread_bps=spread * scale,
        timing_bps=timing * scale,
        opportunity_bps=side * (end - start) * left * scale,
        fees_bps=fees,
        total_bps=side * ((paid + left * end) - parent.qty_lots * decided) * scale + fees,
        maker_share=made / filled if filled else math.nan,
        time_to_fill_s=(last_ns - parent.decision_ns) / _SECOND_NS if filled else math.nan,
        **{f"markout_{h}s_bps": _markout(fills, mids, h) for h in MARKOUTS_S},
    )


def _size(parent: Parent, instrument: Instrument, size_usdt: float) -> float:
    if not math.isnan(size_usdt):
        return size_usdt
    return unit_e8(instrument) * parent.qty_lots * parent.decision_mid_ticks / E8


def _markout(fills: Sequence[Filled], mids: Mids, horizon_s: int) -> float:
    """Mean over the filled quantity of the markout, in bps of the fill price."""
    if not fills:
        return math.nan
    total = math.fsum(
        f.qty_lots
        * f.side
        * (mids.at(f.venue_ns + horizon_s * _SECOND_NS) - f.price_ticks)
        / f.price_ticks
        for f in fills
    )
    return total / sum(f.qty_lots for f in fills) * _BPS


# -- many parents ----------------------------------------------------------------------------------


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A mean with its 95 % bootstrap interval; ``n`` counts instants, not parents."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], samples: int = 2000) -> Interval:
    """Mean of a time-ordered series and its interval from a circular block bootstrap.

    Neighbours are alike, so blocks of about n^(1/3) are drawn (Politis and Romano 1992). NaN bounds
    below two values. The same values give the same interval.
    """
    series: npt.NDArray[np.float64] = np.asarray(values, np.float64)
    n = len(series)
    if n < 2:
        return Interval(
            mean=float(series.mean()) if n else math.nan, low=math.nan, high=math.nan, n=n
        )
    block = max(1, round(n ** (1 / 3)))
    rng = np.random.Generator(np.random.Philox(key=n))
    starts = rng.integers(0, n, (samples, -(-n // block)))
    places = (starts[:, :, None] + np.arange(block)) % n
    means = series[places.reshape(samples, -1)[:, :n]].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean=float(series.mean()), low=float(low), high=float(high), n=n)


class Summary(Row, frozen=True, kw_only=True):
    """Mean cost of a group of parents. ``side`` 0 is both sides, the pair at one instant being one
    observation: what the market did in between cancels out of it. ``low_bps`` and ``high_bps`` bound
    the mean total at 95 %; ``instants`` is the number of observations."""

    symbol: str
    size_usdt: float
    algorithm: str
    venue: str
    side: int
    parents: int
    instants: int
    total_bps: float
    low_bps: float
    high_bps: float
    delay_bps: float
    spread_bps: float
    timing_bps: float
    opportunity_bps: float
    fees_bps: float
    fill_rate: float
    maker_share: float
    time_to_fill_s: float
    markout_1s_bps: float
    markout_5s_bps: float
    markout_30s_bps: float
    markout_60s_bps: float


_MEANS: Final = (
    *PARTS,
    "fill_rate",
    "maker_share",
    "time_to_fill_s",
    *(f"markout_{h}s_bps" for h in MARKOUTS_S),
)


def summarise(rows: Iterable[Shortfall], *, by_size: bool = True) -> list[Summary]:
    """Mean all-in cost in bps by symbol, size, algorithm, venue and side (+1, -1 and 0 for both).

    Parents weigh the same whatever their size. With ``by_size`` false sizes are thrown together
    (for parents whose sizes all differ).
    """

    def group(row: Shortfall) -> tuple[Any, ...]:
        return row.symbol, row.size_usdt if by_size else 0.0, row.algorithm, row.venue

    summaries = []
    for (symbol, size, algorithm, venue), found in groupby(sorted(rows, key=group), group):
        members = sorted(found, key=lambda r: r.decision_ns)
        for side in (0, 1, -1):
            chosen = [r for r in members if side in (0, r.side)]
            if not chosen:
                continue
            total = interval(_by_instant(chosen, lambda r: r.total_bps))
            means = {name: _mean([getattr(r, name) for r in chosen]) for name in _MEANS}
            summaries.append(
                Summary(
                    symbol=symbol,
                    size_usdt=size if by_size else _mean([r.size_usdt for r in chosen]),
                    algorithm=algorithm,
                    venue=venue,
                    side=side,
                    parents=len(chosen),
                    instants=total.n,
                    total_bps=total.mean,
                    low_bps=total.low,
                    high_bps=total.high,
                    **means,
                )
            )
    return summaries


def difference(rows: Iterable[Shortfall], baseline: Iterable[Shortfall]) -> Interval:
    """Mean cost of ``rows`` minus that of the same parents in ``baseline``, in bps, both sides.

    Parents are the same when symbol, size, instant and side are; the others are left out.
    """

    def key(row: Shortfall) -> tuple[Any, ...]:
        return row.symbol, row.size_usdt, row.decision_ns, row.side

    base = {key(row): row.total_bps for row in baseline}
    pairs = sorted((row for row in rows if key(row) in base), key=lambda r: r.decision_ns)
    return interval(_by_instant(pairs, lambda row: row.total_bps - base[key(row)]))


def _by_instant(rows: Sequence[Shortfall], value: Callable[[Shortfall], float]) -> list[float]:
    """Mean of a value over the parents of each instant, in time order."""
    return [
        _mean([value(row) for row in group])
        for _, group in groupby(rows, key=lambda row: row.decision_ns)
    ]


def _mean(values: Sequence[float]) -> float:
    """Mean of what exists; NaN when nothing does."""
    real = [value for value in values if not math.isnan(value)]
    return math.fsum(real) / len(real) if real else math.nan
