"""What a worker shows of itself: the sections of the state stream (docs/live.md)."""

from __future__ import annotations

import math
from fractions import Fraction
from importlib import metadata
from typing import Any, Final

import msgspec
from scipy.special import ndtr

from execution.liquidity import sweep_bps
from execution.orders import OrderState
from live.decisions import Decision
from live.log import FORMAT
from live.symbol_state import SymbolState
from market.events import PLACES, Field
from market.features import feature_names
from market.units import E8
from models_registry.recipe import Recipe, scale_bps

#: Levels of each side that are shown, and sizes whose cost is (USDT).
LADDER: Final = 15
SWEPT_USDT: Final = (10_000, 50_000, 250_000)
PLATFORM: Final = metadata.version("l2-platform")


def view(shell: Any) -> dict[str, dict[str, Any]]:
    """The state of a `live.shell.Shell` now, as plain data; times epoch ns, prices ticks, quantities lots,
    money USDT.
    """
    core, keeper = shell.core, shell.keeper
    account, safety = core.account, core.safety
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
        "markets": {symbol: _market(state) for symbol, state in core.trader.symbols.items()},
        "limits": msgspec.structs.asdict(safety.limits),
        "ramp": core.desk.sizes.ramp.view(shell.now_ns),
        "account": {
            "equity": account.marked_e8 / E8,
            "day_result": (account.marked_e8 - account.day_opening_e8) / E8,
            "peak": account.peak_e8 / E8,
        },
        "costs": core.desk.summary(),
        "orders": {
            order.client_id: {
                "symbol": order.symbol,
                "side": order.submit.side,
                "state": str(order.state),
                "price_ticks": order.price_ticks,
                "qty_lots": order.qty_lots,
                "filled_lots": order.filled_lots,
                "sent_ns": order.sent_ns,
                "changed_ns": order.changed_ns,
            }
            for order in core.orders.open()
        },
        "parents": {
            work.parent.id: {
                "symbol": work.parent.symbol,
                "side": work.parent.side,
                "algorithm": work.name,
                "qty_lots": work.parent.qty_lots,
                "filled_lots": work.algorithm.filled_lots,
                "deadline_ns": work.parent.deadline_ns,
                "abandoned": work.abandoned,
            }
            for work in core.desk.parents_at_work
        },
        "latency": {stage: found.summary() for stage, found in shell.latency.items()},
        "counters": {
            "frames": core.frames,
            "gaps": core.gaps,
            "rejected_frames": sum(core.rejects.values()),
            "stray_answers": core.strays,
            "orders_rejected": core.orders.entered.get(OrderState.REJECTED, 0),
            "orders_unknown": core.orders.entered.get(OrderState.UNKNOWN, 0),
            "orders_denied": sum(core.desk.guard.denials.values()),
            "lost_frames": keeper.lost_frames,
            "lost_decisions": keeper.lost_decisions,
            "dropped_lines": shell.stream.dropped if shell.stream else 0,
            "reconnects": getattr(shell.feed, "reconnects", 0),
            "limits_reached": safety.counts,
        },
    }


def _worker(shell: Any) -> dict[str, Any]:
    return {
        "time_ns": shell.now_ns,
        "phase": str(shell.core.reconciliation.phase),
        "venue": shell.settings.live.venue,
        "run": shell.log.header.run,
        "model": f"{shell.champion.pointer.name} {shell.champion.pointer.version}",
        "log_position": shell.log.position,
        "log_synced": shell.log.synced_to,
        "code": shell.log.header.code,
        "platform": PLATFORM,
        "log_format": FORMAT,
    }


def _market(state: SymbolState) -> dict[str, Any]:
    """The book near the touch, what sizes would cost that are taken at once, and the next funding."""
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
        "funding_rate": None if rate is None else rate / 10 ** PLACES[Field.FUNDING_RATE],
        "funding_ns": state.settlements.next_ns,
    }


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
