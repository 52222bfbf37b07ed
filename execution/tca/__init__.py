"""Transaction cost analysis: what parent orders cost, in parts that sum to zero.

record        what the market did meanwhile: mids and tape
rows          rows of the lake's execution tables
measurement   a parent's shortfall, benchmarks and markouts; the formulas stand there
groups        means with intervals, paired differences, thirds
    figures       everything that is said of a range of parents, as plain data
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
from execution.tca.record import MidRecorder, Mids, Tape
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
    "Tape",
    "difference",
    "displayed_ahead",
    "fill_row",
    "fitted",
    "grouped",
    "interval",
    "markout_bps",
    "markout_rows",
    "parent_row",
    "shortfall",
    "summarise",
    "third",
    "thirds",
    "to_table",
]
