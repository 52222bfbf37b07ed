"""The tear sheet: a backtest's HTML page with pictures, and the tables beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from execution.blotter import Trade
from execution.tca import Row, to_table
from live.journal import KINDS
from market.console import fixed
from market.units import BPS, SECOND_NS
from orchestration import report_page
from orchestration.backtest.figures import MIN_BLOCKS
from orchestration.backtest.report_tables import (
    AGAINST_HEAD,
    BOUNDS_HEAD,
    FEE_HEAD,
    GROUP_HEAD,
    against_rows,
    bounds_rows,
    fee_rows,
    group_rows,
    limits_reached,
    summary_rows,
)
from orchestration.backtest.run import Books
from orchestration.backtest.span import instant_text

_COLOURS: Final = {"vip0": "#c44e52", "vip3": "#dd8452", "zero": "#4c72b0"}
#: A line is drawn with about this many points.
_POINTS: Final = 2_000
#: What is written beside the page.
_FILES: Final = ("trades.parquet", "trades.csv", "equity.parquet", "json")


# -- files beside the page -------------------------------------------------------------------------


class TableWriter:
    """Writes execution tables of a run as their rows are finished: STEM.fills.parquet and the like."""

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self._stack = ExitStack()
        self._writers: dict[str, pq.ParquetWriter] = {}
        stem.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, table: str, rows: Sequence[Row]) -> None:
        """Append rows of a table; the first call writes the file even without rows."""
        kind = KINDS[table]
        if table not in self._writers:
            path = self._stem.with_name(f"{self._stem.name}.{table}.parquet")
            self._writers[table] = self._stack.enter_context(
                pq.ParquetWriter(path, kind.schema(), compression="zstd")
            )
        if rows:
            self._writers[table].write_table(to_table(rows, kind))

    def close(self) -> None:
        """Finish the files."""
        self._stack.close()


def write(run: Books, bounds: Sequence[Books], result: Mapping[str, Any], page: Path) -> list[str]:
    """Write the page, and beside it the trade list, the equity curve and the figures; their paths.

    ``bounds`` are the runs at the bounds of the queue models, if any.
    """
    stem = page.with_suffix("")
    page.parent.mkdir(parents=True, exist_ok=True)
    trades = to_table(run.blotter.trades, Trade)
    paths = [page, *(stem.with_name(f"{stem.name}.{name}") for name in _FILES)]
    page.write_text(document(run, bounds, result), encoding="utf-8")
    pq.write_table(trades, paths[1], compression="zstd")
    pacsv.write_csv(trades, paths[2])
    pq.write_table(_curve(run), paths[3], compression="zstd")
    paths[4].write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return [str(path) for path in paths]


def _curve(run: Books) -> pa.Table:
    """The equity curve, a row a minute."""
    curve = run.curve
    columns: dict[str, Any] = {"t_ns": np.array(curve.t_ns, np.int64)}
    columns |= {f"net_{row}_usdt": np.array(values) for row, values in curve.equity.items()}
    for symbol in run.symbols:
        columns[f"position_{symbol}_usdt"] = np.array(curve.position_usdt[symbol])
        columns[f"mid_{symbol}"] = np.array(curve.price[symbol])
    return pa.table(columns)


# -- the page --------------------------------------------------------------------------------------


def document(run: Books, bounds: Sequence[Books], result: Mapping[str, Any]) -> str:
    """The page: one HTML file that needs nothing else."""
    row = result["fee_row"]
    by_net = sorted(run.blotter.trades, key=lambda trade: trade.net_usdt(row))
    foreign = [result["foreign"]] if result["foreign"] else []
    warnings = [*foreign, *limits_reached(result), *result["errors"]]
    body = [
        f"<h1>Backtest of {html.escape(result['model'])}</h1>",
        *(f"<p class=warning>{html.escape(warning)}</p>" for warning in warnings),
        report_page.table(summary_rows(result), kind="about"),
        "<h2>Profit after fees and funding</h2>",
        _equity_picture(run, bounds),
        report_page.table(fee_rows(result), FEE_HEAD),
        *_bounds(result),
        *_against(result),
        "<h2>Position</h2>",
        _position_picture(run),
        "<h2>Round trips</h2>",
        _trades_picture(run, result),
        report_page.table(group_rows(result["by_symbol"], "symbol"), ("symbol", *GROUP_HEAD)),
        "<h2>By regime</h2>",
        report_page.table(group_rows(result["regimes"], "regime"), ("regime", *GROUP_HEAD)),
        "<h2>Worst and best round trips</h2>",
        report_page.table(_trade_rows(by_net[:8] + by_net[8:][-8:], row), _TRADE_HEAD),
        "<h2>Assumptions</h2>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in result["assumptions"]),
        f"<li>Intervals: stationary bootstrap, mean block {run.settings.model.bootstrap_block_s:,} s, "
        f"{run.settings.model.bootstrap_samples:,} samples; none below {MIN_BLOCKS} blocks.</li>",
        "<li>Capacity a trade: the size at which sweeping the book displayed at the entries would use "
        "up the mean net result of both legs; market impact beyond that is not in it.</li></ul>",
    ]
    return report_page.document(f"Backtest of {result['model']}", body)


def _bounds(result: Mapping[str, Any]) -> list[str]:
    if "bounds" not in result:
        return []
    return [
        "<h2>Between the bounds of the queue</h2>",
        "<p>The queue position of our orders is not in the data. The same resting orders fill at the "
        "pessimistic bound no more, and at the optimistic one no less, than under any queue model. The "
        "trader goes on from its fills, so results need not be in that order: they say how much the "
        "queue model decides.</p>",
        report_page.table(bounds_rows(result), BOUNDS_HEAD),
    ]


def _against(result: Mapping[str, Any]) -> list[str]:
    if "against" not in result:
        return []
    return [
        f"<h2>Against {html.escape(result['against']['model'])} on the same events</h2>",
        report_page.table(against_rows(result), AGAINST_HEAD),
    ]


_TRADE_HEAD: Final = (
    "entry", "symbol", "side", "regime", "held s", "value", "gross bps", "net bps", "net USDT",
)  # fmt: skip


def _trade_rows(trades: Sequence[Trade], row: str) -> list[tuple[str, ...]]:
    return [
        (
            instant_text(t.entry_ns), t.symbol, "long" if t.side > 0 else "short", t.regime,
            fixed((t.exit_ns - t.entry_ns) / SECOND_NS, 1), fixed(t.value_usdt, 0),
            fixed(t.gross_bps, 3), fixed(t.net_bps(row), 3), fixed(t.net_usdt(row)),
        )
        for t in trades
    ]  # fmt: skip


# -- pictures --------------------------------------------------------------------------------------


def _thinned(run: Books) -> tuple[Any, slice]:
    """Times to draw, and the slice of the curve's points that they are."""
    step = slice(None, None, max(1, len(run.curve.t_ns) // _POINTS))
    return np.array(run.curve.t_ns, np.int64)[step].astype("datetime64[ns]"), step


def _equity_picture(run: Books, bounds: Sequence[Books]) -> str:
    """Equity and drawdown at every fee row, with the band between the queue bounds."""
    times, step = _thinned(run)
    figure, [[top], [below]] = report_page.axes(2, (3, 1), 4.2)
    fee_row = run.settings.model.fee_row
    for row, values in run.curve.equity.items():
        equity = np.array(values)
        width = 1.8 if row == fee_row else 0.9
        top.plot(times, equity[step], color=_COLOURS[row], lw=width, label=row)
        drawdown = equity - np.maximum.accumulate(np.maximum(equity, 0.0))
        below.plot(times, drawdown[step], color=_COLOURS[row], lw=width)
    if bounds:
        edges = [np.array(one.curve.equity[fee_row])[step] for one in bounds]
        style = {"color": _COLOURS[fee_row], "alpha": 0.15, "lw": 0, "label": "queue bounds"}
        top.fill_between(times, *edges, **style)
    top.set_ylabel("net profit, USDT")
    below.set_ylabel("drawdown")
    top.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
    return report_page.svg(figure)


def _position_picture(run: Books) -> str:
    """Price and position of each symbol."""
    times, step = _thinned(run)
    symbols = run.settings.market.symbols
    figure, axes = report_page.axes(2 * len(symbols), (2, 1) * len(symbols), 2.4 * len(symbols))
    for n, symbol in enumerate(symbols):
        price, position = axes[2 * n][0], axes[2 * n + 1][0]
        price.plot(times, np.array(run.curve.price[symbol])[step], color="#555555", lw=0.8)
        price.set_ylabel(symbol)
        usdt = np.array(run.curve.position_usdt[symbol])[step]
        position.fill_between(times, usdt, step="post", color="#4c72b0", lw=0)
        position.set_ylabel("USDT")
    return report_page.svg(figure)


def _trades_picture(run: Books, result: Mapping[str, Any]) -> str:
    """Distribution of net results, and net profit against the fee."""
    figure, [[left, right]] = report_page.axes(1, (1,), 2.8, columns=2)
    row, turnover = result["fee_row"], result["turnover_usdt"]
    bps = np.array([trade.net_bps(row) for trade in run.blotter.trades])
    if len(bps):
        low, high = np.quantile(bps, (0.005, 0.995))
        left.hist(np.clip(bps, low, high), bins=50, color=_COLOURS[row])
        left.axvline(0, color="#333333", lw=0.8)
    left.set_xlabel(f"net bps a round trip at {row}")
    fees = np.linspace(0.0, 6.0, 50)
    earned = result["gross_usdt"] - result["funding_usdt"]
    right.plot(fees, earned - fees * turnover / BPS, color="#333333", lw=1.2)
    right.axhline(0, color="#999999", lw=0.8)
    for name, r in result["rows"].items():
        paid = r["fees_usdt"] / turnover * BPS if turnover else 0.0
        right.plot(paid, r["net_usdt"], "o", color=_COLOURS[name], label=name)
    if result["break_even_bps"] is not None and 0 <= result["break_even_bps"] <= 6:
        right.axvline(result["break_even_bps"], color="#999999", lw=0.8, ls="--")
    right.set_xlabel("fee a side, bps (dashed: break-even)")
    right.set_ylabel("net profit, USDT")
    right.legend(frameon=False)
    return report_page.svg(figure)
