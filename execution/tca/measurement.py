"""Implementation shortfall of one parent, its benchmarks and its markouts.

Perold's implementation shortfall (1988) in Kissell's expanded form, in bps of the decision value
S·p_d, positive = cost. With s the side, S the parent's quantity, q_i at p_i its fills, m_i the mid
at fill i, p_d, p_0, p_T the mids at decision, first order and end, and w_i the own market impact in
m_i:

    delay        s (p_0 - p_d)
    spread       Σ q_i s (p_i - m_i) / S          paid by a taker, earned (negative) by a maker
    impact       Σ q_i s w_i / S                  our own market impact
    timing       Σ q_i s (m_i - p_0 - w_i) / S    drift of the market without us
    opportunity  s (p_T - p_0) (1 - Σ q_i / S)    the unfilled quantity, valued at the end
    fees         Σ fee_i
    total        computed on its own; it equals the sum, to 1e-9

w_i is measured where a market without us exists (``control``: c_i the mid there, w_i = (m_i - p_0) -
(c_i - c_0)), and otherwise modelled (``propagator``: the impact that earlier taker fills still have).
Without either, it stays in timing.

Markouts have the opposite sign: s (m_{t+τ} - p_i) / p_i, positive = the market went our way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from execution.account import unit_e8
from execution.algorithms.working import Parent
from execution.liquidity import Propagator
from execution.orders import NEVER_REST, Filled, Liquidity, Submit
from execution.tca.mids import Mids, TradedVolume
from execution.tca.rows import MARKOUTS_S, MarkoutRow, OrderRow, Shortfall, notional_usdt
from execution.venue import View
from market.instruments import Instrument
from market.units import BPS, SECOND_NS


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
    picked: str = "",
    control: Mids | None = None,
    propagator: Propagator | None = None,
    traded: TradedVolume | None = None,
    own_in_traded: bool = False,
    signal_bps: float = math.nan,
    signal_s: float = math.nan,
) -> Shortfall:
    """Implementation shortfall of one parent, in parts that sum to the total to 1e-9 bps.

    ``fills`` are the parent's executions; duplicates count once. ``mids`` must reach from the decision
    to ``end_ns``, and a minute further for all markouts. ``arrival_ns`` is when the first order was
    sent, None when none was. ``size_usdt`` is the intended notional (default: that at the decision),
    ``picked`` the algorithm that a router chose.

    ``control`` are the mids of the same market without us (of a replay, whose market our orders do
    not move: ``mids`` themselves); without one, ``propagator`` models our impact. ``traded`` is the
    market's volume, our own trades included where ``own_in_traded``. ``signal_bps`` is the expected
    return over ``signal_s`` seconds. ValueError when the mids end before ``end_ns``.
    """
    fills = distinct(fills)
    side, decided = parent.side, parent.decision_mid_ticks
    start = mids.at(arrival_ns) if arrival_ns is not None else decided
    end = mids.at(end_ns)
    if math.isnan(end) or math.isnan(start):
        raise ValueError(f"parent {parent.id}: the mids end before the parent does")
    begun_ns = parent.decision_ns if arrival_ns is None else arrival_ns
    filled = sum(fill.qty_lots for fill in fills)
    scale = BPS / (parent.qty_lots * decided)
    at_fills = [mids.at(fill.venue_ns) for fill in fills]
    spread = math.fsum(
        f.qty_lots * side * (f.price_ticks - m) for f, m in zip(fills, at_fills, strict=True)
    )
    moved = math.fsum(f.qty_lots * side * (m - start) for f, m in zip(fills, at_fills, strict=True))
    impact_by, own = _own_impact(parent, fills, mids, arrival_ns, control, propagator)
    paid = sum(fill.qty_lots * fill.price_ticks for fill in fills)
    unfilled = parent.qty_lots - filled
    fees = sum(fill.fee_e8 for fill in fills) / unit_e8(instrument) * scale
    if math.isnan(size_usdt):
        size_usdt = notional_usdt(instrument, parent.qty_lots, decided)
    return Shortfall(
        parent_id=parent.id,
        symbol=parent.symbol,
        side=side,
        algorithm=algorithm,
        picked=picked,
        venue=venue,
        size_usdt=size_usdt,
        decision_ns=parent.decision_ns,
        arrival_ns=begun_ns,
        end_ns=end_ns,
        qty_lots=parent.qty_lots,
        filled_lots=filled,
        decision_mid_ticks=decided,
        fill_ticks=paid / filled if filled else math.nan,
        delay_bps=side * (start - decided) / decided * BPS,
        spread_bps=spread * scale,
        impact_bps=own * scale,
        timing_bps=(moved - own) * scale,
        opportunity_bps=side * (end - start) * unfilled * scale,
        fees_bps=fees,
        total_bps=side * ((paid + unfilled * end) - parent.qty_lots * decided) * scale + fees,
        impact_by=impact_by,
        foretold_bps=_predicted_drift(parent, fills, begun_ns, signal_bps, signal_s),
        arrival_mid_ticks=start,
        arrival_sound=mids.sound(begun_ns),
        **_benchmarks(parent, fills, mids, traded, begun_ns, end_ns, start, own_in_traded),
        **_fill_quality(parent, fills, mids),
    )


def _own_impact(
    parent: Parent,
    fills: Sequence[Filled],
    mids: Mids,
    arrival_ns: int | None,
    control: Mids | None,
    propagator: Propagator | None,
) -> tuple[str, float]:
    """How own impact is known, and Σ q_i s w_i in ticks; ValueError when the control ends early."""
    decided = parent.decision_mid_ticks

    def moved(market: Mids, time_ns: int) -> float:
        """How far the mid has moved since the first order."""
        return market.at(time_ns) - (decided if arrival_ns is None else market.at(arrival_ns))

    own = 0.0
    if control is None and propagator is not None:
        own = _modelled_impact(fills, propagator) * decided / BPS
    elif control is not None and control is not mids:
        own = math.fsum(
            f.qty_lots * parent.side * (moved(mids, f.venue_ns) - moved(control, f.venue_ns))
            for f in fills
        )
    if math.isnan(own):
        raise ValueError(f"parent {parent.id}: the control ends before the parent does")
    return "control" if control is not None else "propagator" if propagator else "none", own


def _modelled_impact(fills: Sequence[Filled], propagator: Propagator) -> float:
    """Σ q_i w_i / p_d in bps: the impact that taker fills before each fill still have.

    Maker fills have none; fills of one instant do not move each other's mid.
    """
    takers = sorted(
        (fill.venue_ns / SECOND_NS, float(fill.qty_lots))
        for fill in fills
        if fill.liquidity is Liquidity.TAKER
    )
    total = 0.0
    for fill in fills:
        at = fill.venue_ns / SECOND_NS
        total += fill.qty_lots * propagator.left_bps([s for s in takers if s[0] < at], at)
    return total


def _predicted_drift(
    parent: Parent, fills: Sequence[Filled], begun_ns: int, signal_bps: float, signal_s: float
) -> float:
    """The drift that the signal predicted, over the fills: linear over the signal's horizon."""
    if math.isnan(signal_bps) or not signal_s > 0:
        return math.nan
    shares = (
        fill.qty_lots * min(1.0, (fill.venue_ns - begun_ns) / SECOND_NS / signal_s)
        for fill in fills
    )
    return parent.side * signal_bps * math.fsum(shares) / parent.qty_lots


def _benchmarks(
    parent: Parent,
    fills: Sequence[Filled],
    mids: Mids,
    traded: TradedVolume | None,
    begun_ns: int,
    end_ns: int,
    start: float,
    own_in_traded: bool,
) -> dict[str, float]:
    """The fills' mean price against the mid at arrival, the interval's TWAP and VWAP, and the close.

    The interval runs from the first order to the end. Its VWAP excludes our own trades; NaN without
    others'. The close is the mid at the deadline, NaN while that is not on record.
    """
    filled = sum(fill.qty_lots for fill in fills)
    paid = sum(fill.qty_lots * fill.price_ticks for fill in fills)
    marks = {
        "arrival": start,
        "twap": mids.mean(begun_ns, end_ns),
        "vwap": math.nan,
        "close": mids.at(max(parent.deadline_ns, end_ns)),
    }
    if traded is not None:
        lots, value = traded.between(begun_ns, end_ns)
        if own_in_traded:
            lots, value = lots - filled, value - paid
        marks["vwap"] = value / lots if lots > 0 else math.nan
    against = parent.side * BPS / parent.decision_mid_ticks
    return {
        f"vs_{name}_bps": against * (paid / filled - mark) if filled else math.nan
        for name, mark in marks.items()
    }


def _fill_quality(parent: Parent, fills: Sequence[Filled], mids: Mids) -> dict[str, float]:
    """Maker share, time to the last fill, and mean markouts; NaN without a fill."""
    markouts = {f"markout_{h}s_bps": _markout(fills, mids, h) for h in MARKOUTS_S}
    if not fills:
        return {"maker_share": math.nan, "time_to_fill_s": math.nan, **markouts}
    maker = sum(f.qty_lots for f in fills if f.liquidity is Liquidity.MAKER)
    last_ns = max(fill.venue_ns for fill in fills)
    return {
        "maker_share": maker / sum(fill.qty_lots for fill in fills),
        "time_to_fill_s": (last_ns - parent.decision_ns) / SECOND_NS,
        **markouts,
    }


def _markout(fills: Sequence[Filled], mids: Mids, horizon_s: int) -> float:
    """Mean markout over the filled quantity, in bps of the fill price."""
    if not fills:
        return math.nan
    total = math.fsum(
        f.qty_lots * markout_bps(f.side, f.price_ticks, mids.at(f.venue_ns + horizon_s * SECOND_NS))
        for f in fills
    )
    return total / sum(f.qty_lots for f in fills)


def markout_bps(side: int, price_ticks: float, later_ticks: float) -> float:
    """Markout: how far the mid went our way after a fill price, in bps of it; NaN if unknown."""
    return side * (later_ticks - price_ticks) / price_ticks * BPS


def displayed_ahead(view: View, order: Submit) -> float:
    """Queue ahead of an order when it is sent: lots displayed at its price or better, own side.

    NaN for one that crosses, beyond the view's last level, and for a stale book.
    """
    levels = view.bids if order.side > 0 else view.asks
    if order.time_in_force in NEVER_REST or view.stale or not levels:
        return math.nan
    if order.side * (order.price_ticks - levels[-1][0]) < 0:
        return math.nan
    return float(
        sum(lots for ticks, lots in levels if order.side * (ticks - order.price_ticks) >= 0)
    )


def markout_rows(
    parent_id: str,
    venue: str,
    orders: Sequence[OrderRow],
    fills: Sequence[Filled],
    mids: Mids,
    ahead: Mapping[str, float],
) -> list[MarkoutRow]:
    """Markouts after each fill of a parent, and after the end of each order's unfilled quantity.

    ``orders`` are the parent's, ``ahead`` the queue ahead of each (`displayed_ahead`). An unfilled
    quantity has a row for limit orders only: a market order has no price to measure from.
    """
    sent = {order.client_id: order.sent_ns for order in orders}
    rows = [
        MarkoutRow(
            client_id=fill.client_id,
            parent_id=parent_id,
            exec_id=fill.exec_id,
            symbol=fill.symbol,
            side=fill.side,
            venue=venue,
            outcome="filled",
            liquidity=str(fill.liquidity),
            qty_lots=fill.qty_lots,
            price_ticks=fill.price_ticks,
            queue_ahead_lots=_queue_ahead(fill),
            **_markouts(
                fill.side,
                fill.price_ticks,
                fill.venue_ns,
                sent.get(fill.client_id, fill.venue_ns),
                mids,
            ),
        )
        for fill in distinct(fills)
    ]
    for order in orders:
        unfilled = order.qty_lots - order.filled_lots
        if unfilled > 0 and order.time_in_force not in NEVER_REST:
            rows.append(
                MarkoutRow(
                    client_id=order.client_id,
                    parent_id=parent_id,
                    exec_id="",
                    symbol=order.symbol,
                    side=order.side,
                    venue=venue,
                    outcome=order.state.lower(),
                    liquidity="none",
                    qty_lots=unfilled,
                    price_ticks=order.price_ticks,
                    queue_ahead_lots=ahead.get(order.client_id, math.nan),
                    **_markouts(
                        order.side, order.price_ticks, order.changed_ns, order.sent_ns, mids
                    ),
                )
            )
    return rows


def distinct(fills: Sequence[Filled]) -> list[Filled]:
    """Executions without duplicates."""
    return list({(fill.client_id, fill.exec_id): fill for fill in fills}.values())


def _queue_ahead(fill: Filled) -> float:
    return float(fill.queue_ahead_lots) if fill.liquidity is Liquidity.MAKER else math.nan


def _markouts(
    side: int, price_ticks: int, time_ns: int, sent_ns: int, mids: Mids
) -> dict[str, Any]:
    """The columns of a `MarkoutRow` that depend on time."""
    return {
        "time_ns": time_ns,
        "rested_s": (time_ns - sent_ns) / SECOND_NS,
        "mid_ticks": mids.at(time_ns),
        **{
            f"markout_{h}s_bps": markout_bps(side, price_ticks, mids.at(time_ns + h * SECOND_NS))
            for h in MARKOUTS_S
        },
    }
