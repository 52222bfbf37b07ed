"""The strategy by which `proving.bench.execution` measures simulators: quotes on both sides.

    python -m proving.bench.quotes ROWS.npy

runs it in a process of its own and prints its peak memory, which is why this module imports nothing
but the simulator.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from execution.orders import Action, Cancel, Cancelled, Filled, Rejected, Submit, TimeInForce
from execution.simulation.simulator import Simulator
from market.events import Events
from market.instruments import BUILT_IN

SYMBOL: Final = "BTCUSDT"
FEED_NS: Final = 5_000_000
ORDER_NS: Final = 5_000_000
STEP_NS: Final = 100_000_000
#: Without a minimum notional, which the peer does not know.
_INSTRUMENT: Final = msgspec.structs.replace(BUILT_IN[SYMBOL], min_notional="0")
_ENDS: Final = (Filled, Cancelled, Rejected)
# Members of an enumeration are slow to look up.
_POST_ONLY: Final = TimeInForce.POST_ONLY

#: Requests: time (ns), side (0 for a cancel), price in ticks (number of the order for a cancel).
Sent = list[tuple[int, int, int]]


def simulator(mode: str) -> Simulator:
    """The simulator with the benchmark's latencies."""
    return Simulator(
        {SYMBOL: _INSTRUMENT},
        entry_latency_ns=ORDER_NS,
        response_latency_ns=ORDER_NS,
        mode=mode,
    )


def replay(rows: Events) -> Simulator:
    """All rows without a strategy, in the simulator's default mode."""
    market = simulator("partial")
    market.on_events(SYMBOL, rows)
    market.advance(int(rows["receive_ns"][-1]))
    return market


def quotes(rows: Events, *, every_step: bool = False) -> Sent:
    """The strategy's requests up to the last step before the rows end.

    ``every_step`` calls it also at steps where nothing has changed.
    """
    market = simulator("whole")
    market.on_events(SYMBOL, rows)
    end_ns = (int(rows["receive_ns"][-1]) - 1) // STEP_NS * STEP_NS
    now = market.advance(int(rows["receive_ns"][0]))
    sent: Sent = []
    number = 0
    working = ["", ""]
    prices = [0, 0]
    while now < end_ns:
        if every_step:
            now = market.advance(now - now % STEP_NS + STEP_NS)
        else:
            now = market.advance_to_news(end_ns, STEP_NS)
        ended = [event.client_id for event in market.poll() if isinstance(event, _ENDS)]
        actions: list[Action] = []
        for n, touch in enumerate(market.touch(SYMBOL)):
            if touch is None:
                continue
            if working[n] in ended:
                working[n] = ""
            if working[n] and prices[n] != touch:
                actions.append(Cancel(client_id=working[n]))
                sent.append((now, 0, int(working[n])))
                working[n] = ""
            if not working[n]:
                number += 1
                working[n], prices[n] = str(number), touch
                side = -1 if n else 1
                actions.append(
                    Submit(
                        client_id=working[n],
                        symbol=SYMBOL,
                        side=side,
                        qty_lots=1,
                        price_ticks=touch,
                        time_in_force=_POST_ONLY,
                    )
                )
                sent.append((now, side, touch))
        if actions:
            market.send(actions)
    return sent


def peak_mb() -> float:
    """Largest resident memory of this process; what getrusage says includes its parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    quotes(np.load(sys.argv[1]))
    print(peak_mb())
