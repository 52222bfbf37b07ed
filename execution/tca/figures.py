"""Figures of a range of parents: the data behind every table and picture of the cost analysis.

Input are rows of the tables parent_costs, order_outcomes, fill_markouts and cost_findings, None where
a value is unknown. Output is plain data: a mean is ``[mean, low, high, n]`` with its 95 % interval,
where n counts the independent observations: instants (parents, for markouts).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from execution.orders import NEVER_REST
from execution.tca.groups import Interval, grouped, interval, third, thirds
from execution.tca.rows import MARKOUTS_S, PARTS
from market.console import NONE, bps, fixed, percent
from market.units import BPS, E8

Rows = Sequence[Mapping[str, Any]]

#: Dimensions that cost is attributed to, in the order in which they are shown.
DIMENSIONS: Final = ("algorithm", "spread regime", "volatility", "size", "hour", "side")
#: Size buckets, as parent_costs names them.
SIZES: Final = ("below 5 k", "5 to 20 k", "20 to 100 k", "100 k and more")
BENCHMARKS: Final = ("arrival", "twap", "vwap", "close")
#: Parts of an estimate, and the parts of the shortfall that each predicts.
ESTIMATED: Final = {
    "spread": ("spread_bps",),
    "impact": ("impact_bps",),
    "timing": ("delay_bps", "timing_bps", "opportunity_bps"),
    "fees": ("fees_bps",),
}


def as_float(value: Any) -> float:
    """A value as a float; NaN for None."""
    return math.nan if value is None else float(value)


def plain(mean: Interval) -> list[float | None]:
    """An interval as plain data, ``[mean, low, high, n]``; None for NaN."""
    bounds = (mean.mean, mean.low, mean.high)
    return [None if math.isnan(value) else value for value in bounds] + [mean.n]


def figures(parents: Rows, orders: Rows, markouts: Rows, findings: Rows) -> dict[str, Any]:
    """Every figure of these rows."""
    measured = sorted(
        (row for row in parents if row["total_bps"] is not None),
        key=lambda row: (row["decision_ns"], row["symbol"], row["parent_id"]),
    )
    return {
        "parents": len(parents),
        "states": dict(Counter(row["state"] for row in parents).most_common()),
        "traded_usdt": math.fsum(
            as_float(row["size_usdt"]) * as_float(row["fill_rate"]) for row in measured
        ),
        "overall": {name: mean_of(measured, name) for name in ("total_bps", "error_bps")},
        "impact_by": dict(Counter(row["impact_by"] for row in measured).most_common()),
        "costs": costs(measured),
        "benchmarks": benchmarks(measured),
        "estimates": estimates(measured),
        "attribution": attribution(measured),
        "orders": order_figures(orders),
        "markouts": markout_figures(markouts),
        "findings": dict(Counter(row["kind"] for row in findings).most_common()),
    }


def _of(rows: Rows, key: Callable[[Mapping[str, Any]], Any]) -> dict[Any, list[Mapping[str, Any]]]:
    groups: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(sorted(groups.items()))


def mean_of(rows: Rows, name: str) -> list[float | None]:
    """Mean of a column over the instants of parents, with its interval."""
    return _mean(rows, lambda row: as_float(row[name]))


def _mean(rows: Rows, value: Callable[[Mapping[str, Any]], float]) -> list[float | None]:
    means = grouped(rows, lambda _: None, lambda row: row["decision_ns"], value)
    return plain(means.get(None, interval([])))


def _plain(rows: Rows, name: str) -> float | None:
    return mean_of(rows, name)[0]


def costs(measured: Rows) -> list[dict[str, Any]]:
    """All-in cost and its parts by symbol, venue and algorithm."""
    lines = []
    for (symbol, venue, algorithm), rows in _of(
        measured, lambda row: (row["symbol"], row["venue"], row["algorithm"])
    ).items():
        filled = sum(row["filled_lots"] for row in rows)
        maker_lots = math.fsum(
            row["filled_lots"] * as_float(row["maker_share"]) for row in rows if row["filled_lots"]
        )
        lines.append(
            {
                "symbol": symbol,
                "venue": venue,
                "algorithm": algorithm,
                "parents": len(rows),
                "total_bps": mean_of(rows, "total_bps"),
                **{part: _plain(rows, part) for part in PARTS},
                "foretold_bps": _plain(rows, "foretold_bps"),
                "fill_rate": filled / sum(row["qty_lots"] for row in rows),
                "complete": sum(row["state"] == "complete" for row in rows) / len(rows),
                "maker_share": maker_lots / filled if filled else None,
                "time_to_fill_s": _plain(rows, "time_to_fill_s"),
            }
        )
    return lines


def carry(parents: Rows, payments: Rows) -> list[dict[str, Any]]:
    """Funding paid by symbol and venue, in USDT and in bps of what was traded; no part of a shortfall.

    A payment is that of the parent that was the last to trade on the position's side before it; ``most_bps``
    is the dearest parent's, of its own size.
    """
    lines = []
    for (symbol, venue), paid in _of(payments, lambda row: (row["symbol"], row["venue"])).items():
        ours = [row for row in parents if (row["symbol"], row["venue"]) == (symbol, venue)]
        by_parent: dict[str, float] = defaultdict(float)
        size = {row["parent_id"]: as_float(row["size_usdt"]) for row in ours}
        for row in paid:
            side = 1 if row["position_lots"] > 0 else -1
            before = [p for p in ours if p["side"] == side and p["decision_ns"] < row["time_ns"]]
            if before:
                last = max(before, key=lambda parent: parent["decision_ns"])
                by_parent[last["parent_id"]] += row["paid_e8"] / E8
        traded = math.fsum(
            as_float(row["size_usdt"]) * as_float(row["fill_rate"])
            for row in ours
            if row["fill_rate"] is not None
        )
        total = math.fsum(row["paid_e8"] for row in paid) / E8
        lines.append(
            {
                "symbol": symbol,
                "venue": venue,
                "settlements": len(paid),
                "parents": len(by_parent),
                "paid_usdt": total,
                "carry_bps": total / traded * BPS if traded else None,
                "most_bps": max((p / size[n] * BPS for n, p in by_parent.items()), default=None),
            }
        )
    return lines


def benchmarks(measured: Rows) -> list[dict[str, Any]]:
    """The fills against each benchmark, by algorithm (bps, positive = worse)."""
    return [
        {
            "algorithm": algorithm,
            **{name: mean_of(rows, f"vs_{name}_bps") for name in BENCHMARKS},
        }
        for algorithm, rows in _of(measured, lambda row: row["algorithm"]).items()
    ]


def estimates(measured: Rows) -> list[dict[str, Any]]:
    """Error of the pre-trade estimates: outcome minus estimate, in total and by part.

    ``within_risk`` is the share of outcomes no further from the estimate than its stated risk.
    """
    lines = []
    groups = _of(
        [row for row in measured if row["estimate_bps"] is not None], lambda row: row["algorithm"]
    )
    for algorithm, rows in groups.items():
        squares = [as_float(row["error_bps"]) ** 2 for row in rows]
        risky = [row for row in rows if as_float(row["estimate_risk_bps"]) > 0]
        inside = sum(abs(row["error_bps"]) <= row["estimate_risk_bps"] for row in risky)
        lines.append(
            {
                "algorithm": algorithm,
                "parents": len(rows),
                "estimate_bps": _plain(rows, "estimate_bps"),
                "outcome_bps": _plain(rows, "total_bps"),
                "bias_bps": mean_of(rows, "error_bps"),
                "rmse_bps": math.sqrt(math.fsum(squares) / len(rows)),
                "within_risk": inside / len(risky) if risky else None,
                "parts": {name: _mean(rows, _part_error(name)) for name in ESTIMATED},
            }
        )
    return lines


def _part_error(name: str) -> Callable[[Mapping[str, Any]], float]:
    """Error of an estimate's part: outcome minus estimate."""
    return lambda row: (
        math.fsum(as_float(row[part]) for part in ESTIMATED[name])
        - as_float(row[f"estimate_{name}_bps"])
    )


def volatility_bounds(parents: Rows) -> dict[str, tuple[float, float] | None]:
    """Bounds between the thirds of each symbol's volatility at the decisions."""
    return {
        symbol: thirds(as_float(row["sigma_bps"]) for row in rows)
        for symbol, rows in _of(parents, lambda row: row["symbol"]).items()
    }


def _in_order(name: str, value: str) -> tuple[int, str]:
    """Sort key of a dimension's values: sizes by size, others by name."""
    return (SIZES.index(value) if name == "size" and value in SIZES else 0, value)


#: Buckets of the queue ahead, in order.
QUEUES: Final = ("nothing in front", "lower third", "middle", "upper third", "unknown")


def attribution(measured: Rows) -> dict[str, list[dict[str, Any]]]:
    """Cost by each dimension's values, with the number of parents and the interval."""
    bounds = volatility_bounds(measured)
    keys: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "algorithm": lambda row: ": ".join(filter(None, (row["algorithm"], row["picked"]))),
        "spread regime": lambda row: str(row["spread_regime"]),
        "volatility": lambda row: third(as_float(row["sigma_bps"]), bounds[row["symbol"]]),
        "size": lambda row: str(row["size_bucket"]),
        "hour": lambda row: f"{row['hour']:02d} h",
        "side": lambda row: "buy" if row["side"] > 0 else "sell",
    }
    return {
        name: [
            {
                "value": value,
                "parents": len(rows),
                "total_bps": mean_of(rows, "total_bps"),
                **{part: _plain(rows, part) for part in PARTS},
                "maker_share": _plain(rows, "maker_share"),
            }
            for value, rows in sorted(
                _of(measured, keys[name]).items(), key=lambda item: _in_order(name, item[0])
            )
        ]
        for name in DIMENSIONS
    }


def rests(order: Mapping[str, Any]) -> bool:
    """Whether a row of orders is of one that may rest in the book."""
    return order["time_in_force"] not in NEVER_REST


def order_figures(orders: Rows) -> list[dict[str, Any]]:
    """Orders by algorithm and type (resting or crossing): how many filled, how soon, how the others ended."""
    lines = []
    for (algorithm, kind), rows in _of(
        orders, lambda row: (row["algorithm"], "resting" if rests(row) else "crossing")
    ).items():
        sent, filled = (sum(row[name] for row in rows) for name in ("qty_lots", "booked_lots"))
        first_fills = sorted(row["first_fill_s"] for row in rows if row["first_fill_s"] is not None)
        lines.append(
            {
                "algorithm": algorithm,
                "type": kind,
                "orders": len(rows),
                "with_fills": len(first_fills),
                "filled_share": filled / sent if sent else None,
                "maker_share": sum(row["maker_lots"] for row in rows) / filled if filled else None,
                "median_first_fill_s": first_fills[len(first_fills) // 2] if first_fills else None,
                "amends": sum(row["amends"] for row in rows),
                "ends": dict(
                    Counter(
                        f"{row['state'].lower()}{': ' if row['reason'] else ''}{row['reason']}"
                        for row in rows
                    ).most_common()
                ),
            }
        )
    return lines


def queue_bounds(rows: Rows) -> dict[str, tuple[float, float] | None]:
    """Bounds between the thirds of the queues that each symbol's orders joined."""
    return {
        symbol: thirds(ahead for row in own if (ahead := as_float(row["queue_ahead_lots"])) > 0)
        for symbol, own in _of(rows, lambda row: row["symbol"]).items()
    }


def queue_third(ahead: float, bounds: tuple[float, float] | None) -> str:
    """Bucket of an order's queue ahead among the orders of its symbol."""
    return "nothing in front" if ahead == 0 else third(ahead, bounds)


def markout_figures(markouts: Rows) -> list[dict[str, Any]]:
    """Markouts by outcome (maker or taker fill, cancelled, rejected) and by queue ahead.

    Weighted by quantity within a parent; parents are the observations.
    """
    bounds = queue_bounds(markouts)
    first_ns: dict[tuple[str, str], int] = {}
    for row in markouts:
        name = row["symbol"], row["parent_id"]
        first_ns[name] = min(first_ns.get(name, row["time_ns"]), row["time_ns"])

    def instant(row: Mapping[str, Any]) -> tuple[int, str]:
        return first_ns[row["symbol"], row["parent_id"]], row["parent_id"]

    def outcome(row: Mapping[str, Any]) -> str:
        return f"{row['liquidity']} fill" if row["exec_id"] else f"not filled: {row['outcome']}"

    def line(happened: str, queue: str, rows: Rows) -> dict[str, Any]:
        def mean(horizon: int) -> list[float | None]:
            means = grouped(
                rows,
                lambda _: None,
                instant,
                lambda row: as_float(row[f"markout_{horizon}s_bps"]),
                lambda row: float(row["qty_lots"]),
            )
            return plain(means.get(None, interval([])))

        return {
            "what": happened,
            "queue": queue,
            "rows": len(rows),
            **{f"{horizon}s": mean(horizon) for horizon in MARKOUTS_S},
        }

    lines = []
    for happened, rows in _of(markouts, outcome).items():
        lines.append(line(happened, "all", rows))
        buckets = _of(
            rows, lambda row: queue_third(as_float(row["queue_ahead_lots"]), bounds[row["symbol"]])
        )
        if set(buckets) != {"unknown"}:
            lines += [line(happened, queue, buckets[queue]) for queue in QUEUES if queue in buckets]
    return lines


def main_table(result: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """The table of costs: its head, then one line per symbol, venue and algorithm."""
    yield (
        "symbol", "venue", "algorithm", "parents", "all-in bps", "95 %",
        *(part.removesuffix("_bps") for part in PARTS), "filled", "maker", "time s", "foretold",
    )  # fmt: skip
    for row in result["costs"]:
        mean, low, high, _ = row["total_bps"]
        yield (
            row["symbol"], row["venue"], row["algorithm"], f"{row['parents']:,}", bps(mean),
            NONE if low is None else f"{bps(low)} to {bps(high)}", *(bps(row[part]) for part in PARTS),
            percent(row["fill_rate"]), percent(row["maker_share"]), fixed(row["time_to_fill_s"], 1),
            bps(row["foretold_bps"]),
        )  # fmt: skip
