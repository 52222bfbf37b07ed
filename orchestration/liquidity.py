"""`l2 liquidity`: what markets could bear, from bars of the lake or of captures, as a table and a page."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from execution.hazard import FillModel
from execution.liquidity_survey import COLUMNS, MEMORY_S, Floats, Survey, averaged, survey
from market.bars import bars_from_chunks
from market.console import Result, names, say, table
from market.errors import DataError
from market.events import Events
from market.lake import Lake
from market.settings import Settings, with_symbols
from market.units import days_between
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of
from orchestration import sheet

HEAD: Final = ("what", "unit", "mean", "a tenth below", "median", "a tenth above", "n")
#: Points of a picture's line, at most.
_POINTS: Final = 2_000


class LiquidityError(DataError):
    """There are no bars as asked; the message says where, and what to do."""


def analyse(
    settings: Settings,
    *,
    frames: Sequence[str] = (),
    first: str | None = None,
    last: str | None = None,
    page: str | None = None,
) -> dict[str, Any]:
    """Survey each symbol; plain data. ``frames`` are captures to read in the lake's place.

    LiquidityError when no symbol has bars.
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
    found: dict[str, Any] = msgspec.to_builtins(surveys)
    return found


def _of_captures(frames: Sequence[str], settings: Settings) -> dict[str, dict[str, Floats]]:
    symbols, depth = settings.market.symbols, settings.market.book_depth
    for path in frames:
        if not Path(path).is_file():
            raise LiquidityError(f"{path}: no such capture")
    instruments = instruments_of(frames, symbols, depth)
    found = {}
    for symbol in symbols:
        parts = []
        for path in frames:
            decoder = Decoder(instruments, depth, [symbol], follow=False)
            chunks = _chunks(path, decoder, symbol)
            made = bars_from_chunks(chunks, instruments[symbol], settings)
            if len(made):
                parts.append(made.to_arrow())
        if parts:
            found[symbol] = _columns(pa.concat_tables(parts))
    return found


def _chunks(path: str, decoder: Decoder, symbol: str) -> Iterator[Events]:
    for block in read_blocks(path):
        events = decoder.decode_block(block).events.get(symbol)
        if events is not None and len(events):
            yield events


def _of_lake(
    settings: Settings, first: str | None, last: str | None
) -> dict[str, dict[str, Floats]]:
    lake = Lake(settings.root, settings.source)
    held = sorted({day for _, day in lake.partitions("bars")})
    if not held:
        return {}
    days = days_between(first or held[0], last or held[-1])
    found = {}
    for symbol in settings.market.symbols:
        parts = [
            lake.read("bars", symbol, day, ("t_ns", *COLUMNS))
            for day in days
            if lake.exists("bars", symbol, day)
        ]
        if parts:
            found[symbol] = _columns(pa.concat_tables(parts))
    return found


def _columns(bars: pa.Table) -> dict[str, Floats]:
    return {
        name: bars[name].to_numpy().astype(np.float64, copy=False) for name in ("t_ns", *COLUMNS)
    }


# -- for people --------------------------------------------------------------------------------------


def lines(found: Survey) -> list[tuple[str, ...]]:
    """The survey of a symbol as cells of a table: `HEAD` names the columns."""
    rows = [
        (
            each.name,
            each.unit,
            *(number(value) for value in (each.mean, each.low, each.median, each.high)),
            f"{each.n:,}",
        )
        for each in found.measured
    ]
    back = found.resilience
    half = number(back.half_life_s)
    rows.append(("half-life of depth within 2 bps", "s", half, "", "", "", f"{back.shocks:,}"))
    rows += [
        (f"depth back {seconds} s after a shock", "share", number(share), "", "", "", "")
        for seconds, share in back.returned.items()
    ]
    return rows


def number(value: float | None) -> str:
    """Three significant digits, thousands apart."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def html_page(
    surveys: Mapping[str, Survey], bars: Mapping[str, Mapping[str, Floats]], source: str
) -> str:
    """One HTML file that needs nothing else."""
    body = [
        "<h1>Liquidity</h1>",
        f"<p>From {source} bars of one second. Both sides of the book are thrown together. A shock is "
        "a second in which takers took a third of what stood within 2 bps of the mid; what returned "
        "is the sum over shocks over the sum of what was lost. Fills are those that the fill model "
        "expects of one lot that joins the touch.</p>",
    ]
    for symbol, found in surveys.items():
        body += [
            f"<h2>{symbol}, {found.seconds:,} s</h2>",
            sheet.svg(_picture(bars[symbol], found)),
            sheet.table(lines(found), HEAD),
        ]
    return sheet.document("Liquidity", body)


def _picture(bars: Mapping[str, Floats], found: Survey) -> Any:
    figure, grid = sheet.axes(2, (1, 1), 5.2, 2)
    when = (bars["t_ns"] - bars["t_ns"][0]) / 60e9
    every = max(1, len(when) // _POINTS)

    def line(axes: Any, values: Floats, label: str) -> None:
        axes.plot(when[::every], averaged(values)[::every], lw=1, label=label)

    def depth(band: str) -> Floats:
        return (bars[f"bid_{band}"] + bars[f"ask_{band}"]) / 2e6

    for band, name in (("d1", "1 bps"), ("d2", "2 bps"), ("d3", "3 bps")):
        line(grid[0][0], depth(band), f"within {name}")
    for size, name in (("10k", "10,000"), ("100k", "100,000"), ("1m", "1,000,000")):
        costs = (bars[f"sweep_buy_{size}"] + bars[f"sweep_sell_{size}"]) / 2
        line(grid[0][1], costs, name)
    line(grid[1][0], bars["sell_notional"] / 1e3, "from bids")
    line(grid[1][0], bars["buy_notional"] / 1e3, "from asks")
    back = found.resilience.returned
    if back:
        grid[1][1].plot(list(back), list(back.values()), "o-", ms=3, lw=1, label="returned")
    else:
        said = f"{found.resilience.shocks} shocks, after which depth had not fallen at the close"
        grid[1][1].text(0.5, 0.5, said, ha="center", transform=grid[1][1].transAxes)
    if found.resilience.half_life_s:
        at = np.linspace(0, max(back), 100)
        fitted = 1 - 2 ** (-at / found.resilience.half_life_s)
        grid[1][1].plot(at, fitted, lw=0.8, ls=":", color="k", label="fitted")
    titles = (
        ("depth of a side, million USDT", "minutes"),
        ("cost of a sweep in USDT, bps", "minutes"),
        ("taken, thousand USDT a second", "minutes"),
        ("share of lost depth that is back", "seconds after a shock"),
    )
    for axes, (title, label) in zip(grid.ravel(), titles, strict=True):
        axes.set(title=title, xlabel=label, ylim=(0, None))
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
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
    parser.add_argument("--html", metavar="FILE", help="write the page")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 liquidity`: depth, spread, resilience and fill chances of captures or dates."""
    surveys = analyse(
        with_symbols(settings, names(options.symbols)),
        frames=options.frames,
        first=options.first,
        last=options.last,
        page=options.html,
    )
    if options.html:
        say(f"page written to {options.html}")
    if not options.json:
        for symbol, each in surveys.items():
            print(f"{symbol}, {each['seconds']:,} s")
            print(table(lines(msgspec.convert(each, Survey, strict=False)), HEAD))
    return surveys
