"""What a worker shows of itself: the sections of the state stream (docs/live.md)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from fractions import Fraction
from importlib import metadata
from typing import Any, Final

import msgspec
from scipy.special import ndtr

from execution.estimates import fill_model
from execution.hazard import Queued, QueueEstimate
from execution.liquidity import Monitor, sweep_bps
from execution.order_machine import Order
from execution.orders import OrderState
from execution.tca import ESTIMATES, MARKOUTS_S
from live.decisions import Decision
from live.desk import Desk
from live.latency import Histogram
from live.log import FORMAT
from live.parent_costs import ActiveParent
from live.symbol_state import SymbolState
from live.trader import columns_of
from market.events import PLACES, Field
from market.features import feature_names
from market.units import BPS, E8, SECOND_NS
from models_registry.manifest import Bundle
from models_registry.recipe import Recipe, scale_bps

#: Levels of each side that are shown, and sizes whose cost is (USDT).
LADDER: Final = 15
SWEPT_USDT: Final = (10_000, 50_000, 250_000)
PLATFORM: Final = metadata.version("l2-platform")


def view(shell: Any) -> dict[str, dict[str, Any]]:
    """The state of a `live.shell.Shell` now, as plain data; times epoch ns, prices ticks, quantities lots,
    money USDT.
    """
    core, keeper, desk = shell.core, shell.keeper, shell.core.desk
    account, safety = core.account, core.safety
    works = {work.parent.id: work for work in desk.parents_at_work}
    symbols = {}
    for symbol, state in core.trader.symbols.items():
        holding = account.holdings[symbol]
        symbols[symbol] = {
            "mode": core.mode(symbol).name.lower(),
            "why": safety.why(symbol),
            "position_lots": holding.position_lots,
            "entry_ticks": _rounded(holding.entry_ticks),
            "stop_ticks": core.reconciliation.protection.state.stops.get(symbol, 0),
            "target_lots": state.target_lots,
            "size": msgspec.to_builtins(core.desk.sizes.last.get(symbol)),
            "decision": _decision(shell.decisions.get(symbol), shell.champion.bundle.recipe),
        }
    return {
        "worker": _worker(shell),
        "links": {
            name: {"up": up, "since_ns": since_ns, "why": why}
            for name, (up, since_ns, why) in (
                shell.links | getattr(shell.feed, "links", {})
            ).items()
        },
        "lines": dict(tuple(shell.lines)),
        "symbols": symbols,
        "markets": {
            symbol: _market(state, desk.monitors[symbol])
            for symbol, state in core.trader.symbols.items()
        },
        "vectors": {
            symbol: _vector(decision, shell.champion.bundle)
            for symbol, decision in shell.decisions.items()
            if decision.bundle_sha == shell.champion.pointer.in_force
        },
        "limits": msgspec.structs.asdict(safety.limits),
        "used": _used(desk, safety.used()),
        "exposure": {symbol: _exposure(desk, symbol) for symbol in core.trader.symbols},
        "ramp": core.desk.sizes.ramp.view(shell.now_ns),
        "account": {
            "equity": account.marked_e8 / E8,
            "day_result": (account.marked_e8 - account.day_opening_e8) / E8,
            "peak": account.peak_e8 / E8,
        },
        "costs": desk.summary()
        | {
            "fill_rate": _fill_rate(core.orders.entered),
            "markouts_bps": {s: desk.costs.mean(f"markout_{s}s_bps") for s in MARKOUTS_S},
        },
        "orders": _orders(shell, works),
        "parents": _parents(desk, works),
        "latency": {stage: _latency(found) for stage, found in shell.latency.items()},
        "counters": {
            "frames": core.frames,
            "gaps": core.gaps,
            "rejected_frames": sum(core.rejects.values()),
            "stray_answers": core.strays,
            "orders_rejected": core.orders.entered.get(OrderState.REJECTED, 0),
            "orders_unknown": core.orders.entered.get(OrderState.UNKNOWN, 0),
            "orders_denied": sum(desk.guard.denials.values()),
            "lost_frames": keeper.lost_frames,
            "lost_decisions": keeper.lost_decisions,
            "dropped_lines": shell.stream.dropped if shell.stream else 0,
            "reconnects": getattr(shell.feed, "reconnects", 0),
            "limits_reached": safety.counts,
        },
    }


def _latency(found: Histogram) -> dict[str, Any]:
    recent = found.recent(time.monotonic())
    p99 = {"recent_p99": round(recent.percentile_us(99), 1)} if recent.count else {}
    return found.summary() | p99


def _orders(shell: Any, works: Mapping[str, ActiveParent]) -> dict[str, Any]:
    return {
        order.client_id: {
            "symbol": order.symbol,
            "parent": order.parent_id,
            "side": order.submit.side,
            "state": str(order.state),
            "price_ticks": order.price_ticks,
            "qty_lots": order.qty_lots,
            "filled_lots": order.filled_lots,
            "sent_ns": order.sent_ns,
            "changed_ns": order.changed_ns,
            **queue_of(shell, order, works.get(order.parent_id)),
        }
        for order in shell.core.orders.open()
    }


def _parents(desk: Desk, works: Mapping[str, ActiveParent]) -> dict[str, Any]:
    return {
        id: {
            "symbol": work.parent.symbol,
            "side": work.parent.side,
            "algorithm": work.name,
            "picked": work.algorithm.picked,
            "qty_lots": work.parent.qty_lots,
            "filled_lots": work.algorithm.filled_lots,
            "due_lots": work.algorithm.due_lots,
            "decision_ns": work.parent.decision_ns,
            "deadline_ns": work.parent.deadline_ns,
            "abandoned": work.abandoned,
            "cost_bps": cost_bps(desk, work),
            "estimate_bps": _known(sum(getattr(work.row, part) for part in ESTIMATES)),
        }
        for id, work in works.items()
    }


def _worker(shell: Any) -> dict[str, Any]:
    return {
        "time_ns": shell.now_ns,
        "phase": str(shell.core.reconciliation.phase),
        "venue": shell.settings.live.venue,
        "source": shell.settings.source,
        "run": shell.log.header.run,
        "model": f"{shell.champion.pointer.name} {shell.champion.pointer.version}",
        "log_position": shell.log.position,
        "log_synced": shell.log.synced_to,
        "code": shell.log.header.code,
        "platform": PLATFORM,
        "log_format": FORMAT,
    }


def _market(state: SymbolState, monitor: Monitor) -> dict[str, Any]:
    """The book near the touch, what sizes would cost that are taken at once, the last trades, volatility,
    and the next funding."""
    book, instrument, fields = state.builder.book, state.instrument, state.ticker.fields
    bids, asks = book.bids(), book.asks()
    sweep: dict[str, list[float | None]] = {}
    if bids and asks:
        mid = (bids[0][0] + asks[0][0]) / 2
        for usdt in SWEPT_USDT:
            lots = max(1, round(usdt / (mid * instrument.tick_size * instrument.lot_size)))
            sweep[str(usdt)] = [sweep_bps(levels, mid, lots) for levels in (asks, bids)]
    rate = fields.get(int(Field.FUNDING_RATE))
    return {
        "tick": instrument.tick,
        "lot": instrument.lot,
        "valid": bool(book.valid),
        "last_ns": int(book.receive_ns),
        "bids": bids[:LADDER],
        "asks": asks[:LADDER],
        "bought_lots": int(state.taken[0]),
        "sold_lots": int(state.taken[1]),
        "sweep_bps": sweep,
        "trades": state.last_trades(),
        "sigma_bps": monitor.sigma_bps,
        "funding_rate": None if rate is None else rate / 10 ** PLACES[Field.FUNDING_RATE],
        "funding_ns": state.settlements.next_ns,
    }


def _fill_rate(entered: Mapping[OrderState, int]) -> float | None:
    """Share of the orders that ended, which filled completely."""
    ended = sum(count for state, count in entered.items() if state.is_final)
    return entered.get(OrderState.FILLED, 0) / ended if ended else None


def queue_of(shell: Any, order: Order, work: ActiveParent | None) -> dict[str, Any]:
    """Lots ahead of a resting order at most, and its chance to be filled where it stands by its parent's
    deadline (`execution.hazard`); nothing of one that does not rest or has no parent at work."""
    if work is None or not order.rests:
        return {}
    core, side = shell.core, order.submit.side
    state = core.trader.symbols[order.symbol]
    view = state.view(core.now_ns)
    if view.stale:
        return {}
    found = work.queues.get(order.client_id)
    if found is None or found.price_ticks != order.price_ticks:
        found = work.queues[order.client_id] = QueueEstimate(side, order.price_ticks, view)
        ahead = work.ahead.get(order.client_id, math.nan)
        if not order.amends and not math.isnan(ahead):  # what was displayed before it came
            found.ahead_lots = min(found.ahead_lots, ahead)
    else:
        found.see(view)
    left_s = (work.parent.deadline_ns - core.now_ns) / SECOND_NS
    view = msgspec.structs.replace(view, signal_bps=work.expected_bps)
    queued = Queued.of(
        core.desk.monitors[order.symbol], view, side, max(1, order.open_lots),
        ahead_lots=found.ahead_lots, price_ticks=order.price_ticks,
    )  # fmt: skip
    chance = fill_model(shell.settings.source).fill_probability(queued, left_s) if left_s > 0 else 0
    return {"ahead_lots": int(found.ahead_lots), "fill_chance": round(chance, 4)}


def cost_bps(desk: Desk, work: ActiveParent) -> float | None:
    """What the fills so far cost against the decision's mid, with fees, bps; None before the first."""
    fills, decided = desk.costs.fills.get(work.parent.id, []), work.parent.decision_mid_ticks
    lots = sum(fill.qty_lots for fill in fills)
    if not lots:
        return None
    instrument = desk.account.holdings[work.parent.symbol].instrument
    paid = sum(fill.qty_lots * (fill.price_ticks - decided) for fill in fills) * work.parent.side
    fees = sum(fill.fee_e8 for fill in fills) / E8 / instrument.tick_size / instrument.lot_size
    return float((paid + fees) / lots / decided * BPS)


def _used(desk: Desk, seen: dict[str, float]) -> dict[str, float]:
    """Of limits in force what is used now, by setting of `[risk]`: as `live.safety` and the guard judge it."""
    worst = {symbol: desk.guard.worst_usdt(symbol) for symbol in desk.account.holdings}
    gross, equity = sum(worst.values()), desk.account.backed_e8 / E8
    return seen | {
        "position_usdt": max(worst.values(), default=0.0),
        "gross_usdt": gross,
        "leverage": gross / equity if equity > 0 else math.inf,
    }


def _exposure(desk: Desk, symbol: str) -> dict[str, Any]:
    """A symbol's own exposure, what correlated positions add in its units (USDT), and correlations; margin of the position
    (USDT), and how far liquidation is (bps of the mid; null when flat, or with ``desk.margin`` off)."""
    holding, exposure = desk.account.holdings[symbol], desk.exposure
    mid, lots = desk.costs.last_mids().get(symbol, math.nan), holding.position_lots
    headroom, side = exposure.headroom, 1 if lots >= 0 else -1
    margin = away = None
    if lots and headroom is not None:
        margin = headroom.terms[symbol].position_margin_e8(side, abs(holding.cost_e8)) / E8
    if lots and not math.isnan(mid):
        away = _known(exposure.distance_bps(symbol, mid))
    leaders = exposure.leaders
    others = [] if leaders is None else [each for each in leaders.symbols if each != symbol]
    return {
        "own_usdt": _known(lots * mid * holding.instrument.tick_size * holding.instrument.lot_size),
        "group_usdt": exposure.group(symbol, side, {}),
        "correlation": {
            other: _known(leaders.correlation(symbol, other)) for other in others if leaders
        },
        "margin_usdt": margin,
        "liquidation_bps": away,
    }


def _vector(decision: Decision, bundle: Bundle) -> dict[str, Any]:
    """The features of the model in force as the last decision had them, in the order of its manifest."""
    values = decision.vector[columns_of(bundle)].tolist()
    return {
        "t_ns": decision.t_ns,
        "bundle_sha": decision.bundle_sha,
        "values": [_known(value) for value in values],
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rounded(ticks: Fraction | None) -> float | None:
    return None if ticks is None else round(float(ticks), 3)


def _decision(decision: Decision | None, recipe: Recipe) -> dict[str, Any] | None:
    """Without the features, and with null for what is not known.

    ``confidence`` is the probability that the return over the primary horizon has the sign expected, were
    it normal about the expectation with the model's volatility.
    """
    if decision is None:
        return None
    fields = msgspec.structs.asdict(decision)
    volatility = fields.pop("vector")[feature_names().index(recipe.scale.feature)]
    scale = float(scale_bps(volatility, recipe.scale, recipe.primary_s))
    fields["confidence"] = float(ndtr(abs(decision.raw_bps) / scale)) if scale else math.nan
    del fields["symbol"]
    return msgspec.json.decode(msgspec.json.encode(fields))  # type: ignore[no-any-return]
