"""The tables of a backtest's report, in the terminal and on the tear sheet, and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from execution.simulation.queue import BOUNDS
from market.console import fixed, interval, percent, table

Figures = Mapping[str, Any]
Cells = list[tuple[str, ...]]

FEE_HEAD: Final = (
    "fee row", "taker", "maker", "fees", "net", "net a day", "95 %", "net bps a trade", "95 %",
    "hits", "drawdown", "capacity a trade",
)  # fmt: skip
BOUNDS_HEAD: Final = (
    "queue model", "round trips", "maker", "turnover", "gross", "break-even",
    "net at vip0", "at vip3", "at zero",
)  # fmt: skip
GROUP_HEAD: Final = (
    "time", "trades", "gross bps", "net bps", "net USDT", "hits", "held s", "maker",
)  # fmt: skip
AGAINST_HEAD: Final = ("fee row", "net", "the other's", "difference", "a day", "95 %")


def limits_reached(result: Figures) -> list[str]:
    """A line about the worker's limits that stopped the trader, none when none did."""
    reached = [f"{name} {times} times" for name, times in result["worker"]["limits"].items()]
    return [f"Limits reached (`[risk]`): {', '.join(reached)}"] if reached else []


def summary_rows(result: Figures) -> list[tuple[str, str]]:
    """The head of every report: which model ran over which market, and what came of it."""
    exposure = result["exposure"]
    return [
        ("market", f"{', '.join(result['symbols'])}, {result['source']} data, {result['from']} to "
                   f"{result['to']} UTC: {result['hours']:,.2f} h, {result['events']:,} events"),
        ("model", f"{result['model']}, trained on {result['model source']} data"
                  + (" (FOREIGN to this lake)" if result["foreign"] else "")),
        ("orders", f"{result['algorithm']}, queue {result['queue']}, decided at fees of "
                   f"{result['fee_row']}; maker {percent(result['maker_share'])}"),
        ("evidence", f"{result['round_trips']:,} round trips; {result['independent_labels']:,.0f} "
                     "spans of the traded horizon"),
        ("gross", f"{fixed(result['gross_usdt'])} USDT before fees, funding "
                  f"{fixed(result['funding_usdt'])} USDT paid"),
        ("break-even fee", f"{fixed(result['break_even_bps'], 3)} bps a side"),
        ("turnover", f"{fixed(result['turnover_usdt'], 0)} USDT, "
                     f"{fixed(result['turnover_per_day'], 1)} times the capital a day"),
        ("exposure", f"in the market {percent(exposure['invested_share'])} of the time, mean "
                     f"{fixed(exposure['mean_gross_usdt'], 0)}, at most "
                     f"{fixed(exposure['largest_usdt'], 0)} USDT"),
    ]  # fmt: skip


def fee_rows(result: Figures) -> Cells:
    """Results by fee row."""
    return [
        (
            name, f"{r['taker_bps']:g}", f"{r['maker_bps']:g}", fixed(r["fees_usdt"]),
            fixed(r["net_usdt"]), fixed(r["net_usdt_per_day"]), _interval(r["net_usdt_per_day_95"]),
            fixed(r["net_bps"], 3), _interval(r["net_bps_95"], 3), percent(r["hit_rate"]),
            fixed(r["drawdown_usdt"]),
            "none" if r["capacity_usdt"] is None else fixed(r["capacity_usdt"], 0),
        )
        for name, r in result["rows"].items()
    ]  # fmt: skip


def _interval(bounds: Sequence[float] | None, digits: int = 2) -> str:
    low, high = bounds or (None, None)
    return interval(low, high, lambda value: fixed(value, digits))


def bounds_rows(result: Figures) -> Cells:
    """The run at the pessimistic queue bound, as configured, and at the optimistic bound."""
    pessimistic, optimistic = (result["bounds"][bound] for bound in BOUNDS)
    return [
        (
            run["queue"], f"{run['round_trips']:,}", percent(run["maker_share"]),
            fixed(run["turnover_usdt"], 0), fixed(run["gross_usdt"]), fixed(run["break_even_bps"], 3),
            *(fixed(run["rows"][row]["net_usdt"]) for row in ("vip0", "vip3", "zero")),
        )
        for run in (pessimistic, result, optimistic)
    ]  # fmt: skip


def group_rows(groups: Sequence[Figures], key: str) -> Cells:
    """Means of round trips by regime or symbol; ``key`` names the group."""
    return [
        (
            str(g[key]), percent(g.get("time_share")), f"{g['trades']:,}", fixed(g["gross_bps"], 3),
            fixed(g["net_bps"], 3), fixed(g["net_usdt"]), percent(g["hit_rate"]),
            fixed(g["holding_s"], 1), percent(g["maker_share"]),
        )
        for g in groups
    ]  # fmt: skip


def against_rows(result: Figures) -> Cells:
    """Net of the run and of a second model on the same events, and the difference."""
    other = result["against"]
    return [
        (
            name, fixed(result["rows"][name]["net_usdt"]), fixed(other["rows"][name]["net_usdt"]),
            fixed(apart["net_usdt"]), fixed(apart["net_usdt_per_day"]),
            _interval(apart["net_usdt_per_day_95"]),
        )
        for name, apart in other["difference"].items()
    ]  # fmt: skip


def report_text(result: Figures) -> str:
    """The report for a terminal."""
    parts = [table(summary_rows(result)), table(fee_rows(result), FEE_HEAD)]
    if "bounds" in result:
        parts.append(table(bounds_rows(result), BOUNDS_HEAD))
    for groups, key in (("regimes", "regime"), ("by_symbol", "symbol")):
        parts.append(table(group_rows(result[groups], key), (key, *GROUP_HEAD)))
    if "against" in result:
        head = f"Against {result['against']['model']} on the same events:\n"
        parts.append(head + table(against_rows(result), AGAINST_HEAD))
    parts.append("\n".join(result["assumptions"]))
    parts += limits_reached(result)
    parts += [f"ERROR: {error}" for error in result["errors"]]
    return "\n\n".join(parts)
