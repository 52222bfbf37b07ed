"""What the queue leaves open: the same trader at both bounds of all queue models.

Public data do not say where in a queue our orders stood, so fills of resting orders are a model's. Two
bounds hold for every model: of what leaves a level unseen nothing stood in front of us (pessimistic),
or everything that could (optimistic). The same resting orders have at every moment filled, together, at
least as much as at the one and at most as much as at the other; an order that stands alone at its price
also by itself (tests/execution/test_queue.py, test_invariants.py).

That is said of the same orders' fills, not of money: an order that fills earlier may be the worse for
it, and the trader goes on from there. So results at the bounds need not lie on either side of the run's
own; they say how much of the result the queue model decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from execution.simulation.queue import BOUNDS
from live.trader import Trader
from market.settings import Settings
from models_registry.manifest import Prediction
from orchestration.backtest.figures import number, share

#: What was expected last, by symbol: when, and what.
Expected = dict[str, tuple[int, Prediction]]

#: Figures of a run that its bounds are held beside.
_FIGURES: Final = (
    "queue",
    "round_trips",
    "maker_share",
    "turnover_usdt",
    "gross_usdt",
    "break_even_bps",
)
_AT_A_ROW: Final = ("net_usdt", "net_bps", "drawdown_usdt")


class Agreeing(Trader):
    """One of several traders over the same rows: what the first expects of a second all expect of it.

    Features know the market and nothing of our orders, so it is the same number, computed once.
    """

    def __init__(self, *arguments: Any, expected: Expected, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._expected = expected

    def _expect(self, symbol: str, t_ns: int, vector: npt.NDArray[np.float64]) -> Prediction:
        known = self._expected.get(symbol)
        if known is None or known[0] != t_ns:
            known = self._expected[symbol] = t_ns, super()._expect(symbol, t_ns, vector)
        return known[1]


def settings_at(settings: Settings) -> list[Settings]:
    """The settings with each bound as the queue model, pessimistic first."""
    return [
        msgspec.structs.replace(
            settings, execution=msgspec.structs.replace(settings.execution, queue=bound)
        )
        for bound in BOUNDS
    ]


def beside(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's figures those that its bounds are compared in."""
    return {name: found[name] for name in _FIGURES} | {
        "rows": {
            row: {name: figures[name] for name in _AT_A_ROW}
            for row, figures in found["rows"].items()
        }
    }


HEAD: Final = (
    "queue model", "round trips", "maker", "turnover", "gross", "break-even",
    "net at vip0", "at vip3", "at zero",
)  # fmt: skip


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line each: the pessimistic bound, the run as it was set, the optimistic bound."""
    pessimistic, optimistic = (found["bounds"][bound] for bound in BOUNDS)
    return [
        (
            run["queue"], f"{run['round_trips']:,}", share(run["maker_share"]),
            number(run["turnover_usdt"], 0), number(run["gross_usdt"]),
            number(run["break_even_bps"], 3),
            *(number(run["rows"][row]["net_usdt"]) for row in ("vip0", "vip3", "zero")),
        )
        for run in (pessimistic, found, optimistic)
    ]  # fmt: skip
