"""`l2 convert` and `l2 export`: data of other formats into a capture, and events out of the lake.

A capture made here is ingested like any other; what the formats do not hold is lost (docs/import.md).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from live.archives.foreign import Source, instrument_of, write_capture
from live.archives.hftbacktest import EventFile, export
from live.archives.tardis import TardisFile
from market.console import Result, say
from market.errors import UsageError
from market.lake import Lake
from market.settings import Settings


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 convert`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--tardis",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="CSV or CSV.gz of incremental_book_L2, trades or derivative_ticker, in any order",
    )
    source.add_argument(
        "--hftbacktest", nargs="+", type=Path, metavar="FILE", help="npz or npy of events"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="X.frames.zst")
    parser.add_argument("--symbol", help="whose events an npz holds")
    parser.add_argument("--exchange", default="bybit", help="whose CSV rows to take (bybit)")
    parser.add_argument(
        "--tick", default="", help="price step, where it is not built in or inferred"
    )
    parser.add_argument("--lot", default="", help="quantity step, likewise")


def convert_command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 convert`: files of another format as a capture, for `l2 ingest`."""
    if options.hftbacktest and not options.symbol:
        raise UsageError("--hftbacktest needs --symbol: the file does not name it")
    for name in ("tick", "lot"):
        step = getattr(options, name)
        if step and not (step.replace(".", "", 1).isdecimal() and float(step) > 0):
            raise UsageError(f"--{name} {step}: not a positive decimal")
    if not options.out.name.endswith(".frames.zst"):
        raise UsageError(f"--out {options.out}: a capture's name ends with .frames.zst")
    sources: Sequence[Source] = (
        [TardisFile(path, options.exchange) for path in options.tardis]
        if options.tardis
        else [EventFile(path, options.symbol) for path in options.hftbacktest]
    )
    instruments = {
        symbol: instrument_of(
            symbol, [s for s in sources if s.symbol == symbol], options.tick, options.lot
        )
        for symbol in sorted({source.symbol for source in sources})
    }
    for instrument in instruments.values():
        say(f"{instrument.symbol}: ticks of {instrument.tick}, lots of {instrument.lot}")
    started = time.monotonic()
    done = write_capture(options.out, sources, instruments, settings.market.book_depth)
    seconds = time.monotonic() - started
    for finding in done.findings:
        say(finding)
    if not options.json:
        read = sum(source.path.stat().st_size for source in sources)
        frames = ", ".join(f"{count:,} of {symbol}" for symbol, count in done.frames.items())
        print(
            f"{done.rows:,} rows as {frames} frames in {options.out}, {done.refused:,} left out; "
            f"{read / 1e6:,.0f} MB in {seconds:.0f} s ({done.rows / max(seconds, 1e-3) / 1e6:.1f} M rows/s)"
        )
    return msgspec.to_builtins(done)  # type: ignore[no-any-return]


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 export`."""
    parser.add_argument("--hftbacktest", type=Path, required=True, metavar="OUT.npz")
    parser.add_argument("--symbol", required=True)
    parser.add_argument("--date", required=True, help="YYYY-MM-DD")


def export_command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 export`: the events of one symbol's date for hftbacktest."""
    if options.hftbacktest.suffix != ".npz":
        raise UsageError(f"--hftbacktest {options.hftbacktest}: a name that ends with .npz")
    lake = Lake(settings.root)
    done = export(lake, options.symbol, options.date, options.hftbacktest)
    if not options.json:
        print(
            f"{done.rows:,} rows in {options.hftbacktest}; {done.left_out:,} events have no place there; "
            f"{done.moved:,} exchange times moved, by at most {done.moved_ns / 1e6:.3g} ms"
        )
    return msgspec.to_builtins(done)  # type: ignore[no-any-return]
