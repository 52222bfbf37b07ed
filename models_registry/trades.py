"""Simulated trades of the target rule over test blocks, net of each fee row; break-even fee.

The decision at t uses the prediction at t and is executed one second later, at the mid of t + 1 s
plus or minus half the spread then; the taker fee is paid on both legs. The position is carried from
second to second; a reversal closes and opens at the same prices. The rule is
`execution.sizing.next_target`, the live one. Size, market impact and funding are not modelled.

A break in the rows (not warm, a gap, labels missing, the end of the block) closes the position and is
counted as ``cut``: at the last row before it, or, ``after`` it, at the first row that follows, whatever
happened in between. Neither is what a worker would have got; the gate takes the worse of the two.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from execution.sizing import next_target
from market.kernel import compiled
from market.settings import FEE_ROWS_BPS
from market.units import SECOND_NS
from models_registry.statistics import clopper_pearson_upper, uniqueness
from models_registry.validation import distinct, lower_bound

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: Columns of the kernel's output.
_ENTRY, _EXIT, _SIDE, _GROSS, _SPREAD, _TURNOVER, _CUT = range(7)
_WIDTH: Final = 7


class Trades(msgspec.Struct, frozen=True, kw_only=True):
    """n round trips by entry time, arrays of shape (n,).

    ``gross_bps`` is mid to mid, ``spread_bps`` the cost of crossing the spread (positive = paid),
    ``turnover`` the notional of both legs over that of the entry, on which fees are paid; ``cut`` marks
    trades closed by a break. In ``signals`` of ``seconds`` the prediction exceeded the cost.
    """

    symbol: npt.NDArray[np.int8]
    entry_ns: Int
    exit_ns: Int
    side: npt.NDArray[np.int8]
    gross_bps: Float
    spread_bps: Float
    turnover: Float
    cut: npt.NDArray[np.bool_]
    seconds: int
    signals: int

    def __len__(self) -> int:
        return len(self.entry_ns)

    def net_bps(self, fee_bps: float) -> Float:
        """Net result of each trade (n,) at this fee per side."""
        return np.asarray(self.gross_bps - self.spread_bps - fee_bps * self.turnover)


class FeeResult(msgspec.Struct, frozen=True, kw_only=True):
    """The rule at one fee row, taker on both legs. Means are bps per trade.

    ``net_lower_bps`` is the one-sided 95 % lower bound (stationary bootstrap over time) of the worse of
    ``net_bps``, with ``cut`` trades settled before breaks, and ``net_after_bps``, settled after them;
    ``break_even_bps`` the fee per side at which these same trades would have earned nothing.
    ``false_net`` and ``false_gross`` are the shares of trades that earned nothing after and before
    costs, ``false_net_upper`` the one-sided 95 % bound of the first (Clopper & Pearson 1934) on
    ``n_eff`` trades, of which those open at the same time in two symbols are not independent;
    ``coverage`` is the share of seconds whose expectation exceeded the cost.
    """

    row: str
    taker_bps: float
    trades: int
    n_eff: float
    cut: int
    gross_bps: float
    spread_bps: float
    net_bps: float
    net_after_bps: float
    net_lower_bps: float
    net_total_bps: float
    break_even_bps: float
    hit_rate: float
    false_net: float
    false_net_upper: float
    false_gross: float
    payoff: float
    coverage: float
    holding_s: float


@compiled
def _simulate(  # type: ignore[no-untyped-def]
    t_ns, mid, spread_bps, expected_bps, fees_bps, horizon_s, after, out
):
    """One symbol's rows in time order -> (trades written to ``out``, seconds with a signal).

    Entry and exit are row numbers: a time in ns does not fit a float.
    """
    count = 0
    signals = 0
    position = 0
    age_s = 0.0
    entry = 0
    entry_mid = 0.0
    entry_half = 0.0
    for i in range(len(t_ns)):
        cost_bps = fees_bps + spread_bps[i]
        signal = abs(expected_bps[i]) > cost_bps
        if signal:
            signals += 1
        joined = i + 1 < len(t_ns) and t_ns[i + 1] == t_ns[i] + SECOND_NS
        target = 0
        if joined:
            target = next_target(position, age_s, expected_bps[i], cost_bps, horizon_s)
        if signal and target == position:
            age_s = 0.0
        age_s += 1.0
        if target == position:
            continue
        j = i + 1 if joined or (after and i + 1 < len(t_ns)) else i
        half = 0.5e-4 * spread_bps[j] * mid[j]
        if position != 0:
            out[count, _ENTRY] = entry
            out[count, _EXIT] = j
            out[count, _SIDE] = position
            out[count, _GROSS] = position * (mid[j] - entry_mid) / entry_mid * 1e4
            out[count, _SPREAD] = (entry_half + half) / entry_mid * 1e4
            # Fees are paid on what was traded: bought at the ask, sold at the bid.
            entry_price = entry_mid + position * entry_half
            out[count, _TURNOVER] = (entry_price + mid[j] - position * half) / entry_mid
            out[count, _CUT] = 0.0 if joined else 1.0
            count += 1
        position = target
        age_s = 1.0
        entry = j
        entry_mid = mid[j]
        entry_half = half
    return count, signals


def simulate(
    *,
    t_ns: Int,
    symbol: npt.NDArray[np.int8],
    mid: Float,
    spread_bps: Float,
    expected_bps: Float,
    fee_bps: float,
    horizon_s: int,
    after: bool = False,
) -> Trades:
    """Round trips of the target rule over rows (n,) of any symbols in time order.

    ``expected_bps`` is NaN without a prediction; ``fee_bps`` is the taker fee per side in the cost that
    a prediction must exceed, honest when it is the one really paid. ``after`` settles positions at a break
    at the first row after it.
    """
    parts = [np.empty((0, _WIDTH))]
    names = [np.empty(0, np.int8)]
    times = [np.empty((0, 2), np.int64)]
    signals = 0
    for index in np.unique(symbol):
        own = symbol == index
        out = np.empty((int(own.sum()), _WIDTH))
        count, fired = _simulate(
            t_ns[own],
            mid[own],
            spread_bps[own],
            expected_bps[own],
            2.0 * fee_bps,
            float(horizon_s),
            after,
            out,
        )
        signals += fired
        parts.append(out[:count].copy())
        names.append(np.full(count, index, np.int8))
        times.append(t_ns[own][out[:count, [_ENTRY, _EXIT]].astype(np.int64)])
    legs, owner = np.concatenate(times), np.concatenate(names)
    order = np.lexsort((owner, legs[:, 0]))
    rows, legs = np.concatenate(parts)[order], legs[order]
    return Trades(
        symbol=owner[order],
        entry_ns=legs[:, 0],
        exit_ns=legs[:, 1],
        side=rows[:, _SIDE].astype(np.int8),
        gross_bps=rows[:, _GROSS],
        spread_bps=rows[:, _SPREAD],
        turnover=rows[:, _TURNOVER],
        cut=rows[:, _CUT] > 0,
        seconds=len(t_ns),
        signals=signals,
    )


def fee_result(
    trades: Trades, after: Trades, row: str, t_ns: Int, *, block_s: int, samples: int, seed: int
) -> FeeResult:
    """Figures of the trades at one fee row; ``t_ns`` (n,) are all decision times.

    ``after`` are the same trades settled after breaks.
    """
    taker_bps = FEE_ROWS_BPS[row][0]
    net = trades.net_bps(taker_bps)
    count = len(trades)
    before_fees = trades.gross_bps - trades.spread_bps
    unique = uniqueness(trades.entry_ns, trades.exit_ns)
    wins, losses = net[net > 0], net[net <= 0]
    grid = distinct(t_ns)

    def bound(made: Trades) -> float:
        return lower_bound(
            np.concatenate((grid, made.entry_ns)),
            np.concatenate((np.zeros(len(grid)), made.net_bps(taker_bps))),
            np.concatenate((np.zeros(len(grid)), np.ones(len(made)))),
            block_s=block_s,
            samples=samples,
            seed=seed,
        )

    cut = int(trades.cut.sum())
    lower = bound(trades)
    return FeeResult(
        row=row,
        taker_bps=taker_bps,
        trades=count,
        n_eff=float(unique.sum()),
        cut=cut,
        gross_bps=_mean(trades.gross_bps),
        spread_bps=_mean(trades.spread_bps),
        net_bps=_mean(net),
        net_after_bps=_mean(after.net_bps(taker_bps)),
        net_lower_bps=min(lower, bound(after)) if cut else lower,
        net_total_bps=float(net.sum()),
        break_even_bps=float(before_fees.sum() / trades.turnover.sum()) if count else math.nan,
        hit_rate=len(wins) / count if count else math.nan,
        false_net=len(losses) / count if count else math.nan,
        false_net_upper=clopper_pearson_upper(float(unique[net <= 0].sum()), float(unique.sum())),
        false_gross=float(np.mean(trades.gross_bps <= 0)) if count else math.nan,
        payoff=_mean(wins) / -_mean(losses) if len(wins) and losses.sum() < 0 else math.nan,
        coverage=trades.signals / trades.seconds if trades.seconds else 0.0,
        holding_s=_mean((trades.exit_ns - trades.entry_ns) / SECOND_NS),
    )


def _mean(values: Float) -> float:
    return float(values.mean()) if len(values) else math.nan
