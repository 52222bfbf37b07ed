"""What a range of parents amounts to: the figures behind every table and picture of the analysis.

Input are rows of the tables parent_costs, order_outcomes, fill_markouts and cost_findings, None where
something is not known. Output is plain data: a mean stands as ``[mean, low, high, n]`` with its 95 %
interval, where n counts instants (or parents, of markouts), which are what is independent.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from execution.tca.groups import Interval, grouped, interval, third, thirds
from execution.tca.rows import MARKOUTS_S, PARTS

Rows = Sequence[Mapping[str, Any]]

#: What a parent's cost may be laid to, in the order in which it is shown.
DIMENSIONS: Final = ("algorithm", "spread regime", "volatility", "size", "hour", "side")
#: The steps of sizes, as parent_costs names them.
SIZES: Final = ("below 5 k", "5 to 20 k", "20 to 100 k", "100 k and more")
BENCHMARKS: Final = ("arrival", "twap", "vwap", "close")
#: Parts of an estimate, and the parts of the outcome that each spoke of.
ESTIMATED: Final = {
    "spread": ("spread_bps",),
    "impact": ("impact_bps",),
    "timing": ("delay_bps", "timing_bps", "opportunity_bps"),
    "fees": ("fees_bps",),
}


def number(value: Any) -> float:
    """A figure as a float; None is NaN."""
    return math.nan if value is None else float(value)


def told(found: Interval) -> list[float | None]:
    """An interval as plain data."""
    bounds = (found.mean, found.low, found.high)
    return [None if math.isnan(value) else value for value in bounds] + [found.n]


def figures(parents: Rows, orders: Rows, markouts: Rows, findings: Rows) -> dict[str, Any]:
    """Everything that is said of these rows."""
    measured = sorted(
        (row for row in parents if row["total_bps"] is not None),
        key=lambda row: (row["decision_ns"], row["symbol"], row["parent_id"]),
    )
    return {
        "parents": len(parents),
        "states": dict(Counter(row["state"] for row in parents).most_common()),
        "traded_usdt": math.fsum(
            number(row["size_usdt"]) * number(row["fill_rate"]) for row in measured
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
    return _mean(rows, lambda row: number(row[name]))


def _mean(rows: Rows, value: Callable[[Mapping[str, Any]], float]) -> list[float | None]:
    found = grouped(rows, lambda _: None, lambda row: row["decision_ns"], value)
    return told(found.get(None, interval([])))


def _plain(rows: Rows, name: str) -> float | None:
    return mean_of(rows, name)[0]


def costs(measured: Rows) -> list[dict[str, Any]]:
    """All-in cost and its parts by symbol, venue and algorithm."""
    lines = []
    for (symbol, venue, algorithm), rows in _of(
        measured, lambda row: (row["symbol"], row["venue"], row["algorithm"])
    ).items():
        filled = sum(row["filled_lots"] for row in rows)
        made = math.fsum(
            row["filled_lots"] * number(row["maker_share"]) for row in rows if row["filled_lots"]
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
                "maker_share": made / filled if filled else None,
                "time_to_fill_s": _plain(rows, "time_to_fill_s"),
            }
        )
    return lines


def benchmarks(measured: Rows) -> list[dict[str, Any]]:
    """The fills against each benchmark, by algorithm (bps, positive = dearer)."""
    return [
        {
            "algorithm": algorithm,
            **{name: mean_of(rows, f"vs_{name}_bps") for name in BENCHMARKS},
        }
        for algorithm, rows in _of(measured, lambda row: row["algorithm"]).items()
    ]


def estimates(measured: Rows) -> list[dict[str, Any]]:
    """Error of the estimates made before the trade: outcome minus estimate, in all and by part.

    ``within_risk`` is the share of outcomes no further from the estimate than its stated risk.
    """
    lines = []
    groups = _of(
        [row for row in measured if row["estimate_bps"] is not None], lambda row: row["algorithm"]
    )
    for algorithm, rows in groups.items():
        squares = [number(row["error_bps"]) ** 2 for row in rows]
        risky = [row for row in rows if number(row["estimate_risk_bps"]) > 0]
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
                "parts": {name: _mean(rows, _missed(name)) for name in ESTIMATED},
            }
        )
    return lines


def _missed(name: str) -> Callable[[Mapping[str, Any]], float]:
    """By how much an estimate's part fell short of what it spoke of."""
    return lambda row: (
        math.fsum(number(row[part]) for part in ESTIMATED[name])
        - number(row[f"estimate_{name}_bps"])
    )


def volatility_bounds(parents: Rows) -> dict[str, tuple[float, float] | None]:
    """Of each symbol the bounds between the thirds of its volatility at the decisions."""
    return {
        symbol: thirds(number(row["sigma_bps"]) for row in rows)
        for symbol, rows in _of(parents, lambda row: row["symbol"]).items()
    }


def _in_order(name: str, value: str) -> tuple[int, str]:
    """Values in the order in which people count: sizes by size."""
    return (SIZES.index(value) if name == "size" and value in SIZES else 0, value)


#: Queues in the order in which people count.
QUEUES: Final = ("nothing in front", "lower third", "middle", "upper third", "unknown")


def attribution(measured: Rows) -> dict[str, list[dict[str, Any]]]:
    """Cost by what it may be laid to; each value with its number of parents and its interval."""
    bounds = volatility_bounds(measured)
    keys: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "algorithm": lambda row: ": ".join(filter(None, (row["algorithm"], row["picked"]))),
        "spread regime": lambda row: str(row["spread_regime"]),
        "volatility": lambda row: third(number(row["sigma_bps"]), bounds[row["symbol"]]),
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
                _of(measured, keys[name]).items(), key=lambda found: _in_order(name, found[0])
            )
        ]
        for name in DIMENSIONS
    }


def order_figures(orders: Rows) -> list[dict[str, Any]]:
    """Orders by algorithm and type: how many filled, how soon, and how the others ended."""
    lines = []
    for (algorithm, kind), rows in _of(
        orders, lambda row: (row["algorithm"], row["order_type"])
    ).items():
        asked, filled = (sum(row[name] for row in rows) for name in ("qty_lots", "booked_lots"))
        soon = sorted(row["first_fill_s"] for row in rows if row["first_fill_s"] is not None)
        lines.append(
            {
                "algorithm": algorithm,
                "type": kind,
                "orders": len(rows),
                "with_fills": len(soon),
                "filled_share": filled / asked if asked else None,
                "maker_share": sum(row["maker_lots"] for row in rows) / filled if filled else None,
                "median_first_fill_s": soon[len(soon) // 2] if soon else None,
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
    """Of each symbol the bounds between the thirds of the queues that its orders joined."""
    return {
        symbol: thirds(ahead for row in held if (ahead := number(row["queue_ahead_lots"])) > 0)
        for symbol, held in _of(rows, lambda row: row["symbol"]).items()
    }


def queue_third(ahead: float, bounds: tuple[float, float] | None) -> str:
    """How much stood in front of an order, beside the others of its symbol."""
    return "nothing in front" if ahead == 0 else third(ahead, bounds)


def markout_figures(markouts: Rows) -> list[dict[str, Any]]:
    """Markouts by what happened (maker or taker fill, cancelled, rejected) and by queue in front.

    Weighted by quantity within a parent; parents are the observations.
    """
    bounds = queue_bounds(markouts)
    begun: dict[tuple[str, str], int] = {}
    for row in markouts:
        name = row["symbol"], row["parent_id"]
        begun[name] = min(begun.get(name, row["time_ns"]), row["time_ns"])

    def instant(row: Mapping[str, Any]) -> tuple[int, str]:
        return begun[row["symbol"], row["parent_id"]], row["parent_id"]

    def what(row: Mapping[str, Any]) -> str:
        return f"{row['liquidity']} fill" if row["exec_id"] else f"not filled: {row['outcome']}"

    def line(happened: str, queue: str, rows: Rows) -> dict[str, Any]:
        def mean(horizon: int) -> list[float | None]:
            found = grouped(
                rows,
                lambda _: None,
                instant,
                lambda row: number(row[f"markout_{horizon}s_bps"]),
                lambda row: float(row["qty_lots"]),
            )
            return told(found.get(None, interval([])))

        return {
            "what": happened,
            "queue": queue,
            "rows": len(rows),
            **{f"{horizon}s": mean(horizon) for horizon in MARKOUTS_S},
        }

    lines = []
    for happened, rows in _of(markouts, what).items():
        lines.append(line(happened, "all", rows))
        buckets = _of(
            rows, lambda row: queue_third(number(row["queue_ahead_lots"]), bounds[row["symbol"]])
        )
        if set(buckets) != {"unknown"}:
            lines += [line(happened, queue, buckets[queue]) for queue in QUEUES if queue in buckets]
    return lines


def main_table(found: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """The table of costs for people: one line per symbol, venue and algorithm, and its head first."""
    yield (
        "symbol", "venue", "algorithm", "parents", "all-in bps", "95 %",
        *(part.removesuffix("_bps") for part in PARTS), "filled", "maker", "time s", "foretold",
    )  # fmt: skip
    for row in found["costs"]:
        mean, low, high, _ = row["total_bps"]
        yield (
            row["symbol"], row["venue"], row["algorithm"], f"{row['parents']:,}", bps(mean),
            "–" if low is None else f"{bps(low)} to {bps(high)}", *(bps(row[part]) for part in PARTS),
            share(row["fill_rate"]), share(row["maker_share"]),
            "–" if row["time_to_fill_s"] is None else f"{row['time_to_fill_s']:.1f}",
            bps(row["foretold_bps"]),
        )  # fmt: skip


def bps(value: float | None) -> str:
    """A figure in bps for people: three digits below one, two above; – for nothing."""
    if value is None:
        return "–"
    told_ = f"{value:.{3 if abs(value) < 1 else 2}f}"
    return told_.lstrip("-") if float(told_) == 0 else told_


def share(value: float | None) -> str:
    """A share as a percentage for people."""
    return "–" if value is None else f"{value:.1%}"
