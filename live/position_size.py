"""Why a position has its size: what the worker knows at an entry, given to `execution.sizing`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from execution.account import Account
from execution.algorithms.working import Parent
from execution.liquidity import Monitor, depth_lots, impact_bps
from execution.risk import Guard
from execution.sizing import Edge, Inputs, Size, position_lots
from execution.tca import ParentRow
from execution.venue import View
from live.messages import Emitter
from live.pre_trade import DEPTH_BPS
from live.ramp import Ramp
from live.symbol_state import SymbolState
from market.settings import Settings
from market.units import E8
from models_registry.recipe import Prediction

_JSON: Final = msgspec.json.Encoder()


class Sizes:
    """Sizes of target positions. ``last`` is each symbol's size at its last entry.

    ``held_lots`` gives a symbol's signed position, ``caps`` the caps of other parts for a symbol and side.
    ``group`` gives signed exposures of its correlated symbols, in units of the symbol (quote currency), by the
    targets in lots; None where they are not counted.
    """

    def __init__(
        self,
        settings: Settings,
        symbols: Mapping[str, SymbolState],
        monitors: Mapping[str, Monitor],
        account: Account,
        guard: Guard,
        emitter: Emitter,
        held_lots: Callable[[str], int],
        caps: Callable[[str, int], Mapping[str, int]],
        group: Callable[[str, int, Mapping[str, int]], Mapping[str, float] | None],
    ) -> None:
        self._settings, self._symbols, self._monitors = settings, symbols, monitors
        self._account, self._guard, self._emitter = account, guard, emitter
        self._held_lots, self._caps, self._group = held_lots, caps, group
        self.ramp = Ramp(settings.desk)
        self.last: dict[str, Size] = {}
        self._told: dict[str, str] = {}  #: the cap that a symbol has no size for, as last said

    def decide(
        self,
        symbol: str,
        side: int,
        now_ns: int,
        mid: float,
        prediction: Prediction,
        cost_bps: float,
        horizon_s: float,
    ) -> Size:
        """The size of a position to be entered now, at a mid in quote currency; 0 lots for none.

        ``cost_bps`` is what a round trip is expected to cost.
        """
        settings, instrument = self._settings, self._symbols[symbol].instrument
        lot_usdt = mid * instrument.lot_size
        least_lots = instrument.qty_lots(instrument.min_qty)
        fixed_usdt = settings.execution.capital_usdt * settings.execution.size_share
        targets = {name: state.target_lots for name, state in self._symbols.items()}
        inputs = Inputs(
            side=side,
            desk=settings.desk,
            risk=self._guard.limits,
            lot_usdt=lot_usdt,
            least_lots=least_lots,
            fixed_lots=round(fixed_usdt / lot_usdt),
            equity_usdt=self._account.backed_e8 / E8,
            group_usdt=self._group(symbol, side, targets),
            more=self._caps(symbol, side),
            ramp=self.ramp.share(now_ns),
        )
        if settings.desk.size == "risk":
            view = self._symbols[symbol].view(now_ns)
            least = math.ceil(float(instrument.min_notional) / lot_usdt)
            inputs = msgspec.structs.replace(
                inputs,
                edge=self._edge(symbol, side, view, prediction, cost_bps, horizon_s),
                least_lots=max(least_lots, least),
                against_lots=max(0, -side * self._held_lots(symbol)),
                depth_lots=self._depth_lots(side, view),
                room_usdt=self._guard.room_usdt(symbol),
            )
        size = position_lots(inputs)
        self._tell(symbol, side, size)
        return size

    def likely_lots(self, symbol: str) -> int:
        """The size that an entry would have: that of the last one; 0 where there was none, or sizes are fixed."""
        last = self.last.get(symbol) if self._settings.desk.size == "risk" else None
        return last.lots if last else 0

    def _edge(
        self,
        symbol: str,
        side: int,
        view: View,
        prediction: Prediction,
        cost_bps: float,
        horizon_s: float,
    ) -> Edge:
        monitor, sigma_bps = self._monitors[symbol], prediction.scale_bps
        if math.isnan(sigma_bps):  # of a signal that is no model
            sigma_bps = monitor.sigma_bps * math.sqrt(horizon_s)
        return Edge(
            mean_bps=side * prediction.raw_bps,
            error_bps=prediction.error_bps,
            cost_bps=cost_bps,
            sigma_bps=sigma_bps,
            horizon_s=horizon_s,
            impact_bps=0.0 if view.stale else impact_bps(monitor, view, 1),
        )

    def _depth_lots(self, side: int, view: View) -> int:
        """Lots that a taker would find within the price bound; none in a book that is not known."""
        if view.stale:
            return 0
        within_bps = min(DEPTH_BPS, self._guard.limits.price_band_bps)
        return depth_lots(view.levels(-side), view.mid_ticks, within_bps)

    def _tell(self, symbol: str, side: int, size: Size) -> None:
        """A line when there is no size, once for each cap that decides so."""
        if not size.lots and self._told.get(symbol) != size.binding:
            fields = {"symbol": symbol, "side": side, "binding": size.binding, "caps": size.caps}
            self._emitter.say("info", "no size", **fields)
        self._told[symbol] = "" if size.lots else size.binding

    def on_record(self, row: ParentRow, parent: Parent) -> ParentRow:
        """The row of a parent with the size that it enters; of one that reduces, as it is."""
        size = self.last.get(parent.symbol)
        if parent.reduce_only or size is None:
            return row
        caps = _JSON.encode(size.caps).decode()
        return msgspec.structs.replace(row, size_binding=size.binding, size_caps=caps)
