"""`l2 fills`: score the committed fill model on hypothetical orders; ``--fit`` fits it first."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from market.console import Result, names, say, seeds, table
from market.settings import Settings
from orchestration import report_page
from orchestration.fills import fill_report
from orchestration.fills.evaluation import captures, run, synthetic


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 fills`."""
    parser.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="captures")
    parser.add_argument("--seeds", metavar="N,M-K", help="days of the synthetic market")
    parser.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    parser.add_argument(
        "--fit", action="store_true", help="fit the model on them first, and write it"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes")
    parser.add_argument(
        "--kept", metavar="DIR", help="cache the outcomes of orders there, and resume from it"
    )
    parser.add_argument("--page", metavar="FILE.md", help="write Markdown, its picture beside it")
    parser.add_argument("--html", nargs="?", const="", metavar="FILE", help=report_page.HELP)


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 fills`: score the committed fill model, or fit it anew."""
    symbols = names(options.symbols) or settings.market.symbols
    report = run(
        settings,
        [*captures(options.frames, symbols), *synthetic(seeds(options.seeds), symbols)],
        say,
        fit_first=options.fit,
        workers=options.workers,
        cache=Path(options.kept) if options.kept else None,
    )
    if options.page:
        fill_report.write(report, Path(options.page))
        say(f"page written to {options.page}")
    if page := report_page.place(settings, options.html, "fills"):
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        Path(page).write_text(fill_report.page(report), encoding="utf-8")
        report_page.publish(Path(page), settings)
        say(f"page written to {page}")
    if not options.json:
        print(table(fill_report.score_rows(report.judged), fill_report.HEAD))
    result: dict[str, Any] = msgspec.to_builtins(report)
    return result
