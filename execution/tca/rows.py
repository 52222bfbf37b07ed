"""Rows of the lake's execution tables: parents, orders, fills, markouts and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, get_type_hints

import msgspec
import pyarrow as pa

from execution.account import unit_e8
from execution.algorithms.working import Parent
from execution.liquidity import Estimate
from execution.order_machine import Order
from execution.orders import Filled
from market.instruments import Instrument
from market.units import E8

#: Horizons of markouts in seconds.
MARKOUTS_S: Final = (1, 5, 30, 60)
#: The parts of a shortfall, in the order in which they are shown.
PARTS: Final = (
    "delay_bps", "spread_bps", "impact_bps", "timing_bps", "opportunity_bps", "fees_bps",
)  # fmt: skip
#: The parts of an estimate that a parent carries.
ESTIMATES: Final = (
    "estimate_spread_bps", "estimate_impact_bps", "estimate_timing_bps", "estimate_fees_bps",
)  # fmt: skip


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the rows of a lake table: its fields are the columns.

    A field with a default was added later: rows written before it are read with the default.
    """

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


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """The market at a parent's decision, and the pre-trade estimate of its cost.

    ``sigma_bps`` is volatility per square root of a second, ``volume_lots_s`` the traded lots a
    second, ``depth_lots`` the depth within 3 bps on the side that would be taken from. ``signal_bps``
    is the model's signed expected return over ``signal_s`` seconds, ``urgency`` that of
    `execution.urgency`. NaN where unknown.
    """

    spread_regime: str = "unknown"
    sigma_bps: float = math.nan
    volume_lots_s: float = math.nan
    depth_lots: float = math.nan
    signal_bps: float = math.nan
    signal_s: float = math.nan
    urgency: float = math.nan
    estimate: Estimate | None = None


class ParentRow(Row, frozen=True, kw_only=True):
    """A parent order, with its `Circumstances`.

    ``size_binding`` is the cap that decided an entry's size, ``size_caps`` all of them as JSON, in lots.
    """

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
    spread_regime: str = "unknown"
    sigma_bps: float = math.nan
    volume_lots_s: float = math.nan
    depth_lots: float = math.nan
    signal_bps: float = math.nan
    signal_s: float = math.nan
    urgency: float = math.nan
    estimate_spread_bps: float = math.nan
    estimate_impact_bps: float = math.nan
    estimate_timing_bps: float = math.nan
    estimate_fees_bps: float = math.nan
    estimate_risk_bps: float = math.nan
    estimate_bias_bps: float = math.nan
    #: Of an A/B of execution: the arm, and the stratum with the pair's number.
    arm: str = ""
    stratum: str = ""
    size_binding: str = ""
    size_caps: str = ""


class OrderRow(Row, frozen=True, kw_only=True):
    """A child order and its last state."""

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
    """An execution."""

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


class MarkoutRow(Row, frozen=True, kw_only=True):
    """Markouts after a fill, or after the end of an order's unfilled quantity.

    ``outcome`` is ``filled``, or how the unfilled quantity ended (``cancelled``, ``rejected``,
    ``unknown``…), ``liquidity`` then ``none``, and ``exec_id`` empty: such a row has the markout of a
    hypothetical fill at the order's price at that moment. ``queue_ahead_lots`` is the queue ahead when
    the order was placed: the venue's for fills, else as displayed; NaN if unknown. Markouts are in bps
    of the price, positive = the market went our way.
    """

    client_id: str
    parent_id: str
    exec_id: str
    symbol: str
    side: int
    venue: str
    outcome: str
    liquidity: str
    qty_lots: int
    price_ticks: int
    time_ns: int
    rested_s: float
    mid_ticks: float
    queue_ahead_lots: float
    markout_1s_bps: float
    markout_5s_bps: float
    markout_30s_bps: float
    markout_60s_bps: float


class Shortfall(Row, frozen=True, kw_only=True):
    """Implementation shortfall of one parent. NaN without a measurement (no fill, past the record).

    ``impact_by`` is how own impact was separated from drift: ``control`` (a market without us, which a
    replay is by itself), ``propagator`` (a model), ``none`` (not separated: all of it is in
    ``timing_bps``), or ``cut``: its process ended before it did, and what its fills lost is in
    ``spread_bps``. ``foretold_bps`` is the part of the drift that the signal predicted, and no part
    of the sum. ``vs_*_bps`` compare the fills with a benchmark, positive = worse than it.
    """

    parent_id: str
    symbol: str
    side: int
    algorithm: str
    #: Name of the option that a router picked.
    picked: str = ""
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
    impact_bps: float = 0.0
    timing_bps: float
    opportunity_bps: float
    fees_bps: float
    total_bps: float
    impact_by: str = "none"
    foretold_bps: float = math.nan
    arrival_mid_ticks: float = math.nan
    #: Whether the book was valid when the first order was sent.
    arrival_sound: bool = True
    vs_arrival_bps: float = math.nan
    vs_twap_bps: float = math.nan
    vs_vwap_bps: float = math.nan
    vs_close_bps: float = math.nan
    maker_share: float
    time_to_fill_s: float
    markout_1s_bps: float
    markout_5s_bps: float
    markout_30s_bps: float
    markout_60s_bps: float

    @property
    def fill_rate(self) -> float:
        """Filled share of the parent."""
        return self.filled_lots / self.qty_lots


#: Row types of the lake's execution tables.
TABLES: Final[dict[str, type[Row]]] = {
    "parents": ParentRow,
    "orders": OrderRow,
    "fills": FillRow,
    "tca": Shortfall,
    "markouts": MarkoutRow,
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


def fitted(rows: pa.Table, kind: type[Row]) -> pa.Table:
    """Rows of an older schema in the present one: missing columns get the field's default.

    Columns that the kind does not have are dropped. ValueError when a column without a default is
    missing.
    """
    defaults = {
        field.name: field.default
        for field in msgspec.structs.fields(kind)
        if field.default is not msgspec.NODEFAULT
    }
    columns: dict[str, Any] = {}
    for field in kind.schema():
        if field.name in rows.column_names:
            columns[field.name] = rows.column(field.name).cast(field.type)
        elif field.name in defaults:
            value = defaults[field.name]
            value = None if value != value else value
            columns[field.name] = pa.array([value] * rows.num_rows, field.type)
        else:
            raise ValueError(f"rows without {field.name}: they were not written as {kind.__name__}")
    return pa.table(columns, schema=kind.schema())


def notional_usdt(instrument: Instrument, lots: int, ticks: float) -> float:
    """Notional of a quantity at a price, in quote currency."""
    return unit_e8(instrument) * lots * ticks / E8


def parent_row(
    parent: Parent,
    algorithm: str,
    venue: str,
    instrument: Instrument,
    size_usdt: float = math.nan,
    circumstances: Circumstances | None = None,
) -> ParentRow:
    """The row of a parent; ``size_usdt`` defaults to its notional at the decision."""
    if math.isnan(size_usdt):
        size_usdt = notional_usdt(instrument, parent.qty_lots, parent.decision_mid_ticks)
    known = circumstances or Circumstances()
    expected = known.estimate
    estimated: dict[str, Any] = (
        {}
        if expected is None
        else {
            "estimate_spread_bps": expected.spread_bps,
            "estimate_impact_bps": expected.impact_bps,
            "estimate_timing_bps": expected.timing_bps,
            "estimate_fees_bps": expected.fees_bps,
            "estimate_risk_bps": expected.risk_bps,
            "estimate_bias_bps": expected.bias_bps,
        }
    )
    return ParentRow(
        parent_id=parent.id,
        symbol=parent.symbol,
        side=parent.side,
        algorithm=algorithm,
        venue=venue,
        qty_lots=parent.qty_lots,
        size_usdt=size_usdt,
        decision_ns=parent.decision_ns,
        deadline_ns=parent.deadline_ns,
        decision_mid_ticks=parent.decision_mid_ticks,
        spread_regime=known.spread_regime,
        sigma_bps=known.sigma_bps,
        volume_lots_s=known.volume_lots_s,
        depth_lots=known.depth_lots,
        signal_bps=known.signal_bps,
        signal_s=known.signal_s,
        urgency=known.urgency,
        **estimated,
    )


def fill_row(fill: Filled, parent_id: str, venue: str) -> FillRow:
    """The row of an execution."""
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


def order_row(order: Order, venue: str) -> OrderRow:
    """The row of an order, as it is now."""
    submit = order.submit
    return OrderRow(
        client_id=submit.client_id,
        parent_id=order.parent_id,
        symbol=submit.symbol,
        side=submit.side,
        venue=venue,
        order_type=str(submit.order_type),
        time_in_force=str(submit.time_in_force),
        qty_lots=order.qty_lots,
        price_ticks=order.price_ticks,
        filled_lots=order.filled_lots,
        state=str(order.state),
        reason=order.reason,
        sent_ns=order.sent_ns,
        changed_ns=order.changed_ns,
        amends=order.amends,
    )
