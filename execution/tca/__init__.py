"""Transaction cost analysis: implementation shortfall of parent orders, in parts that sum to it.

rows          rows of the lake's execution tables
mids          the market around a parent: mids and traded volume over time
measurement   one parent's shortfall, benchmarks and markouts, with their formulas
groups        many parents: means with intervals, paired differences, thirds
figures       every figure of a range of parents, as plain data for pages and tables
"""

from __future__ import annotations

from execution.tca.groups import (
    Interval,
    Summary,
    difference,
    grouped,
    interval,
    summarise,
    third,
    thirds,
)
from execution.tca.measurement import displayed_ahead, markout_bps, markout_rows, shortfall
from execution.tca.mids import MidRecorder, Mids, TradedVolume
from execution.tca.rows import (
    ESTIMATES,
    MARKOUTS_S,
    PARTS,
    TABLES,
    Circumstances,
    FillRow,
    MarkoutRow,
    OrderRow,
    ParentRow,
    Row,
    Shortfall,
    fill_row,
    fitted,
    order_row,
    parent_row,
    to_table,
)

__all__ = [
    "ESTIMATES",
    "MARKOUTS_S",
    "PARTS",
    "TABLES",
    "Circumstances",
    "FillRow",
    "Interval",
    "MarkoutRow",
    "MidRecorder",
    "Mids",
    "OrderRow",
    "ParentRow",
    "Row",
    "Shortfall",
    "Summary",
    "TradedVolume",
    "difference",
    "displayed_ahead",
    "fill_row",
    "fitted",
    "grouped",
    "interval",
    "markout_bps",
    "markout_rows",
    "order_row",
    "parent_row",
    "shortfall",
    "summarise",
    "third",
    "thirds",
    "to_table",
]
