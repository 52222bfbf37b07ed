"""The tear sheet: a backtest's page with pictures, one HTML file, and the tables beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from execution.blotter import Trade
from execution.tca import TABLES, Row, to_table
from orchestration import sheet
from orchestration.backtest import bounds
from orchestration.backtest.figures import (
    AGAINST_HEAD,
    FEE_HEAD,
    GROUP_HEAD,
    MIN_BLOCKS,
    against_rows,
    fee_rows,
    group_rows,
    summary_rows,
)
from orchestration.backtest.span import instant_text

if TYPE_CHECKING:
    from orchestration.backtest import Run

_COLOURS: Final = {"vip0": "#c44e52", "vip3": "#dd8452", "zero": "#4c72b0"}
#: A line is drawn with about this many points.
_POINTS: Final = 2_000


# -- what is left beside the page ------------------------------------------------------------------


class Tables:
    """Parquet tables of a run, written as its rows are settled: STEM.fills.parquet and the like."""

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self._stack = ExitStack()
        self._writers: dict[str, pq.ParquetWriter] = {}
        stem.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, table: str, rows: Sequence[Row]) -> None:
        kind = TABLES[table]
        if table not in self._writers:
            path = self._stem.with_name(f"{self._stem.name}.{table}.parquet")
            self._writers[table] = self._stack.enter_context(
                pq.ParquetWriter(path, kind.schema(), compression="zstd")
            )
        if rows:
            self._writers[table].write_table(to_table(rows, kind))

    def close(self) -> None:
        self._stack.close()


def write(run: Run, at_bounds: Sequence[Run], found: Mapping[str, Any], page: Path) -> list[str]:
    """Write the page, its figures as JSON and the trade list beside it; their paths.

    ``at_bounds`` are the same run at the bounds of queue models, if it was made.
    """
    stem = page.with_suffix("")
    page.parent.mkdir(parents=True, exist_ok=True)
    trades = to_table(run.blotter.trades, Trade)
    paths = [page, *(stem.with_name(f"{stem.name}.{name}") for name in _BESIDE)]
    page.write_text(document(run, at_bounds, found), encoding="utf-8")
    pq.write_table(trades, paths[1], compression="zstd")
    pacsv.write_csv(trades, paths[2])
    pq.write_table(_curve(run), paths[3], compression="zstd")
    paths[4].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return [str(path) for path in paths]


_BESIDE: Final = ("trades.parquet", "trades.csv", "equity.parquet", "json")


def _curve(run: Run) -> pa.Table:
    curve = run.curve
    columns: dict[str, Any] = {"t_ns": np.array(curve.t_ns, np.int64)}
    columns |= {f"net_{row}_usdt": np.array(values) for row, values in curve.equity.items()}
    for symbol in run.symbols:
        columns[f"position_{symbol}_usdt"] = np.array(curve.position_usdt[symbol])
        columns[f"mid_{symbol}"] = np.array(curve.price[symbol])
    return pa.table(columns)


# -- the page --------------------------------------------------------------------------------------


def document(run: Run, at_bounds: Sequence[Run], found: Mapping[str, Any]) -> str:
    """The page: one HTML file that needs nothing else."""
    row = found["fee_row"]
    best = sorted(run.blotter.trades, key=lambda trade: trade.net_usdt(row))
    warnings = [found["foreign"]] if found["foreign"] else []
    body = [
        f"<h1>Backtest of {html.escape(found['model'])}</h1>",
        *(f"<p class=warning>{html.escape(text_)}</p>" for text_ in (*warnings, *found["errors"])),
        sheet.table(summary_rows(found), kind="about"),
        "<h2>Profit after fees and funding</h2>",
        _equity_picture(run, at_bounds),
        sheet.table(fee_rows(found), FEE_HEAD),
        *_bounds(found),
        *_against(found),
        "<h2>Position</h2>",
        _position_picture(run),
        "<h2>Round trips</h2>",
        _trades_picture(run, found),
        sheet.table(group_rows(found["by_symbol"], "symbol"), ("symbol", *GROUP_HEAD)),
        "<h2>By regime</h2>",
        sheet.table(group_rows(found["regimes"], "regime"), ("regime", *GROUP_HEAD)),
        "<h2>The worst and the best</h2>",
        sheet.table(_listed(best[:8] + best[8:][-8:], row), _LISTED_HEAD),
        "<h2>What these figures rest on</h2>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in found["assumptions"]),
        f"<li>Intervals: stationary bootstrap, mean block {run.settings.model.bootstrap_block_s:,} s, "
        f"{run.settings.model.bootstrap_samples:,} samples; none below {MIN_BLOCKS} blocks.</li>",
        "<li>Capacity a trade: the size at which sweeping the book displayed at the entries would use "
        "up the mean net result of both legs; impact beyond that is not in it.</li></ul>",
    ]
    return sheet.document(f"Backtest of {found['model']}", body)


def _bounds(found: Mapping[str, Any]) -> list[str]:
    if "bounds" not in found:
        return []
    return [
        "<h2>Between the bounds of the queue</h2>",
        "<p>Where in a queue our orders stood is not in the data. The same resting orders fill at the "
        "pessimistic bound no more, and at the optimistic one no less, than under any queue model. The "
        "trader goes on from its fills, so results need not be in that order: they say how much the "
        "queue model decides.</p>",
        sheet.table(bounds.rows(found), bounds.HEAD),
    ]


def _against(found: Mapping[str, Any]) -> list[str]:
    if "against" not in found:
        return []
    return [
        f"<h2>Against {html.escape(found['against']['model'])} on the same events</h2>",
        sheet.table(against_rows(found), AGAINST_HEAD),
    ]


_LISTED_HEAD: Final = (
    "entry", "symbol", "side", "regime", "held s", "value", "gross bps", "net bps", "net USDT",
)  # fmt: skip


def _listed(trades: Sequence[Trade], row: str) -> list[tuple[str, ...]]:
    return [
        (
            instant_text(t.entry_ns), t.symbol, "long" if t.side > 0 else "short", t.regime,
            f"{(t.exit_ns - t.entry_ns) / 1e9:,.1f}", f"{t.value_usdt:,.0f}",
            f"{t.gross_bps:.3f}", f"{t.net_bps(row):.3f}", f"{t.net_usdt(row):,.2f}",
        )
        for t in trades
    ]  # fmt: skip


# -- pictures --------------------------------------------------------------------------------------


def _thinned(run: Run) -> tuple[Any, slice]:
    """Times to draw at, and the slice of the curve they are."""
    step = slice(None, None, max(1, len(run.curve.t_ns) // _POINTS))
    return np.array(run.curve.t_ns, np.int64)[step].astype("datetime64[ns]"), step


def _equity_picture(run: Run, at_bounds: Sequence[Run]) -> str:
    times, step = _thinned(run)
    figure, [[top], [below]] = sheet.axes(2, (3, 1), 4.2)
    for row, values in run.curve.equity.items():
        equity = np.array(values)
        stated = row == run.settings.model.fee_row
        width = 1.8 if stated else 0.9
        top.plot(times, equity[step], color=_COLOURS[row], lw=width, label=row)
        fall = equity - np.maximum.accumulate(np.maximum(equity, 0.0))
        below.plot(times, fall[step], color=_COLOURS[row], lw=width)
    if at_bounds:
        row = run.settings.model.fee_row
        edges = [np.array(one.curve.equity[row])[step] for one in at_bounds]
        between = {"color": _COLOURS[row], "alpha": 0.15, "lw": 0, "label": "queue bounds"}
        top.fill_between(times, *edges, **between)
    top.set_ylabel("net profit, USDT")
    below.set_ylabel("below the peak")
    top.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
    return sheet.svg(figure)


def _position_picture(run: Run) -> str:
    times, step = _thinned(run)
    symbols = run.settings.market.symbols
    figure, axes = sheet.axes(2 * len(symbols), (2, 1) * len(symbols), 2.4 * len(symbols))
    for n, symbol in enumerate(symbols):
        price, held = axes[2 * n][0], axes[2 * n + 1][0]
        price.plot(times, np.array(run.curve.price[symbol])[step], color="#555555", lw=0.8)
        price.set_ylabel(symbol)
        position = np.array(run.curve.position_usdt[symbol])[step]
        held.fill_between(times, position, step="post", color="#4c72b0", lw=0)
        held.set_ylabel("USDT")
    return sheet.svg(figure)


def _trades_picture(run: Run, found: Mapping[str, Any]) -> str:
    """Distribution of net results, and the total against the fee."""
    figure, [[left, right]] = sheet.axes(1, (1,), 2.8, columns=2)
    row = found["fee_row"]
    bps = np.array([trade.net_bps(row) for trade in run.blotter.trades])
    if len(bps):
        low, high = np.quantile(bps, (0.005, 0.995))
        left.hist(np.clip(bps, low, high), bins=50, color=_COLOURS[row])
        left.axvline(0, color="#333333", lw=0.8)
    left.set_xlabel(f"net bps a round trip at {row}")
    fees = np.linspace(0.0, 6.0, 50)
    earned = found["gross_usdt"] - found["funding_usdt"]
    right.plot(fees, earned - fees * found["turnover_usdt"] / 1e4, color="#333333", lw=1.2)
    right.axhline(0, color="#999999", lw=0.8)
    for name, r in found["rows"].items():
        paid = r["fees_usdt"] / found["turnover_usdt"] * 1e4 if found["turnover_usdt"] else 0.0
        right.plot(paid, r["net_usdt"], "o", color=_COLOURS[name], label=name)
    if found["break_even_bps"] is not None and 0 <= found["break_even_bps"] <= 6:
        right.axvline(found["break_even_bps"], color="#999999", lw=0.8, ls="--")
    right.set_xlabel("fee a side, bps (dashed: break-even)")
    right.set_ylabel("net profit, USDT")
    right.legend(frameon=False)
    return sheet.svg(figure)
