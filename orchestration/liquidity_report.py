"""`l2 liquidity`: depth, spread, sweeps, resilience and fill probabilities, as a table and a page.

Surveys bars of the lake, or of captures (`execution.liquidity_survey`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from execution.hazard import FillModel
from execution.liquidity_survey import COLUMNS, MEMORY_S, Floats, Survey, averaged, survey
from market.bars import bars_from_chunks
from market.console import Result, names, say, significant, table
from market.errors import DataError
from market.lake import Lake
from market.settings import Settings, with_symbols
from market.units import MINUTE_NS, days_between
from market.wire.survey import instruments_of
from orchestration import report_page
from orchestration.capture_events import require_captures, symbol_events

HEAD: Final = ("what", "unit", "mean", "10 %", "median", "90 %", "n")
#: Points of a picture's line, at most.
_POINTS: Final = 2_000


class LiquidityError(DataError):
    """There are no bars to survey; the message says where, and what to do."""


def analyse(
    settings: Settings,
    *,
    frames: Sequence[str] = (),
    first: str | None = None,
    last: str | None = None,
    page: str | None = None,
) -> dict[str, Any]:
    """Survey each symbol from ``first`` to ``last`` (default: all dates of the lake); plain data.

    ``frames`` are captures to read instead of the lake, ``page`` is the HTML file to write. Raises
    DataError for a missing capture, LiquidityError when no symbol has bars.
    """
    bars = _of_captures(frames, settings) if frames else _of_lake(settings, first, last)
    if not bars:
        where = ", ".join(frames) or f"{settings.root}, {first or 'all'} to {last or 'all'}"
        raise LiquidityError(
            f"{where}: no bars of {', '.join(settings.market.symbols)}; name captures with --frames, "
            "or dates that the lake holds"
        )
    source = "recorded" if frames else settings.source
    model = FillModel.load(source=source)
    surveys = {symbol: survey(symbol, columns, model) for symbol, columns in bars.items()}
    if page:
        Path(page).write_text(html_page(surveys, bars, source), encoding="utf-8")
        report_page.publish(Path(page), settings)
    result: dict[str, Any] = msgspec.to_builtins(surveys)
    return result


def _of_captures(frames: Sequence[str], settings: Settings) -> dict[str, dict[str, Floats]]:
    """Columns of bars by symbol; symbols without a bar are left out."""
    require_captures(frames)
    symbols, depth = settings.market.symbols, settings.market.book_depth
    instruments = instruments_of(frames, symbols, depth)
    by_symbol = {}
    for symbol in symbols:
        parts = []
        for path in frames:
            chunks = symbol_events(path, instruments, symbol, depth)
            bars = bars_from_chunks(chunks, instruments[symbol], settings)
            if len(bars):
                parts.append(bars.to_arrow())
        if parts:
            by_symbol[symbol] = _columns(pa.concat_tables(parts))
    return by_symbol


def _of_lake(
    settings: Settings, first: str | None, last: str | None
) -> dict[str, dict[str, Floats]]:
    lake = Lake(settings.root, settings.source)
    dates = sorted({day for _, day in lake.partitions("bars")})
    if not dates:
        return {}
    by_symbol = {}
    for symbol in settings.market.symbols:
        parts = [
            lake.read("bars", symbol, day, ("t_ns", *COLUMNS))
            for day in days_between(first or dates[0], last or dates[-1])
            if lake.exists("bars", symbol, day)
        ]
        if parts:
            by_symbol[symbol] = _columns(pa.concat_tables(parts))
    return by_symbol


def _columns(bars: pa.Table) -> dict[str, Floats]:
    return {
        name: bars[name].to_numpy().astype(np.float64, copy=False) for name in ("t_ns", *COLUMNS)
    }


# -- table and page --------------------------------------------------------------------------------


def lines(surveyed: Survey) -> list[tuple[str, ...]]:
    """The survey of a symbol as cells of a table under `HEAD`."""
    rows = [
        (
            each.name,
            each.unit,
            *(significant(value) for value in (each.mean, each.low, each.median, each.high)),
            f"{each.n:,}",
        )
        for each in surveyed.measured
    ]
    resilience = surveyed.resilience
    half_life = significant(resilience.half_life_s)
    shocks = f"{resilience.shocks:,}"
    rows.append(("half-life of depth within 2 bps", "s", half_life, "", "", "", shocks))
    rows += [
        (f"depth back {seconds} s after a shock", "share", significant(share), "", "", "", "")
        for seconds, share in resilience.returned.items()
    ]
    return rows


def html_page(
    surveys: Mapping[str, Survey], bars: Mapping[str, Mapping[str, Floats]], source: str
) -> str:
    """One HTML file that needs nothing else."""
    body = [
        "<h1>Liquidity</h1>",
        f"<p>From {source} bars of one second, both sides of the book pooled. A shock is a second in "
        "which takers took a third of the depth within 2 bps of the mid; what returned is the sum over "
        "shocks over the sum of what was lost. Fills are the fill model's expectation for one lot that "
        "joins the touch.</p>",
    ]
    for symbol, surveyed in surveys.items():
        body += [
            f"<h2>{symbol}, {surveyed.seconds:,} s</h2>",
            report_page.svg(_picture(bars[symbol], surveyed)),
            report_page.table(lines(surveyed), HEAD),
        ]
    return report_page.document("Liquidity", body)


def _picture(bars: Mapping[str, Floats], surveyed: Survey) -> Any:
    figure, [[depth, sweep], [taken, recovery]] = report_page.axes(2, (1, 1), 5.2, 2)
    minutes = (bars["t_ns"] - bars["t_ns"][0]) / MINUTE_NS
    every = max(1, len(minutes) // _POINTS)

    def line(ax: Any, values: Floats, label: str) -> None:
        ax.plot(minutes[::every], averaged(values)[::every], lw=1, label=label)

    for band, name in (("d1", "1 bps"), ("d2", "2 bps"), ("d3", "3 bps")):
        line(depth, (bars[f"bid_{band}"] + bars[f"ask_{band}"]) / 2e6, f"within {name}")
    for size, name in (("10k", "10,000"), ("100k", "100,000"), ("1m", "1,000,000")):
        line(sweep, (bars[f"sweep_buy_{size}"] + bars[f"sweep_sell_{size}"]) / 2, name)
    line(taken, bars["sell_notional"] / 1e3, "from bids")
    line(taken, bars["buy_notional"] / 1e3, "from asks")
    resilience = surveyed.resilience
    returned = resilience.returned
    if returned:
        recovery.plot(list(returned), list(returned.values()), "o-", ms=3, lw=1, label="returned")
    else:
        text = f"{resilience.shocks} shocks, after which depth had not fallen at the close"
        recovery.text(0.5, 0.5, text, ha="center", transform=recovery.transAxes)
    if resilience.half_life_s:
        seconds = np.linspace(0, max(returned), 100)
        fitted = 1 - 2 ** (-seconds / resilience.half_life_s)
        recovery.plot(seconds, fitted, lw=0.8, ls=":", color="k", label="fitted")
    for ax, title, label in (
        (depth, "depth of a side, million USDT", "minutes"),
        (sweep, "cost of a sweep in USDT, bps", "minutes"),
        (taken, "taken, thousand USDT a second", "minutes"),
        (recovery, "share of lost depth that is back", "seconds after a shock"),
    ):
        ax.set(title=title, xlabel=label, ylim=(0, None))
        if ax.lines:
            ax.legend(fontsize=8, frameon=False)
    figure.suptitle(f"averages over {MEMORY_S:g} s", fontsize=9)
    figure.tight_layout()
    return figure


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 liquidity`."""
    parser.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="captures")
    parser.add_argument("--from", dest="first", metavar="YYYY-MM-DD", help="first date")
    parser.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="last date")
    parser.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    parser.add_argument("--html", nargs="?", const="", metavar="FILE", help=report_page.HELP)


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 liquidity`: depth, spread, resilience and fill chances of captures or dates."""
    page = report_page.place(settings, options.html, "liquidity")
    surveys = analyse(
        with_symbols(settings, names(options.symbols)),
        frames=options.frames,
        first=options.first,
        last=options.last,
        page=page,
    )
    if page:
        say(f"page written to {page}")
    if not options.json:
        for symbol, each in surveys.items():
            print(f"{symbol}, {each['seconds']:,} s")
            print(table(lines(msgspec.convert(each, Survey, strict=False)), HEAD))
    return surveys
