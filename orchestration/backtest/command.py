"""`l2 backtest`: a model over a span of the lake's events; the report, the tear sheet, the probes."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from execution.simulation.queue import BOUNDS
from live.worker import followed
from market.console import Result, Say, names, say
from market.errors import UsageError
from market.lake import Lake
from market.settings import Settings, with_symbols
from orchestration.backtest import lookahead
from orchestration.backtest.figures import bound_figures, difference, figures
from orchestration.backtest.report_tables import report_text
from orchestration.backtest.run import (
    Run,
    SharedPredictionTrader,
    bound_settings,
    load_model,
    replay,
)
from orchestration.backtest.span import instruments_of_span, span_of
from orchestration.backtest.tear_sheet import TableWriter, write


def with_options(
    settings: Settings, fee_row: str | None = None, algorithm: str | None = None
) -> Settings:
    """The settings with another fee row or algorithm; UsageError when there is none such."""
    data = msgspec.to_builtins(settings)
    if fee_row is not None:
        data["model"]["fee_row"] = fee_row
    if algorithm is not None:
        data["execution"]["algorithm"] = algorithm
    try:
        return msgspec.convert(data, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"--fees {fee_row} --algorithm {algorithm}: {error}") from error


def backtest(
    settings: Settings,
    *,
    model: str = "champion",
    against: str | None = None,
    first: str | None = None,
    last: str | None = None,
    fee_row: str | None = None,
    algorithm: str | None = None,
    in_spite_of_source: bool = False,
    bounded: bool = True,
    page: str | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Run a model over a span of the lake's events; the figures as plain data (`figures.figures`).

    ``against`` names a second model, which trades the same events with books of its own. ``bounded``
    repeats the run at both bounds of the queue models (`run.bound_settings`). ``page`` is the HTML file
    to write, with the tables beside it. Raises UsageError, BacktestError, SpanError,
    BundleError, LakeError.
    """
    settings = with_options(settings, fee_row, algorithm)
    lake = Lake(settings.root, settings.source)
    symbols = followed(settings.market.symbols)
    span = span_of(lake, symbols, first, last)
    instruments, inputs = instruments_of_span(lake, symbols, span)
    models = [
        load_model(settings, which, settings.market.symbols, in_spite_of_source=in_spite_of_source)
        for which in (model, *([against] if against is not None else []))
    ]
    writer = TableWriter(Path(page).with_suffix("")) if page else None
    trader = partial(SharedPredictionTrader, predictions={})
    run = Run(settings, instruments, models[0], trader=trader, rows=writer)
    bounds = [
        Run(at_bound, instruments, models[0], trader=trader)
        for at_bound in (bound_settings(settings) if bounded else ())
    ]
    rivals = [Run(settings, instruments, rival) for rival in models[1:]]
    started = time.monotonic()
    try:
        events = replay(lake, instruments, span, [run, *bounds, *rivals], say)
    finally:
        if writer is not None:
            writer.close()
    result = figures(run, models[0], span, inputs, lake.source, events)
    result["seconds"] = time.monotonic() - started
    if bounded:
        result["bounds"] = {
            bound: bound_figures(figures(one, models[0], span, inputs, lake.source, events))
            for bound, one in zip(BOUNDS, bounds, strict=True)
        }
    for rival, its_model in zip(rivals, models[1:], strict=True):
        of_rival = figures(rival, its_model, span, inputs, lake.source, events)
        result["against"] = of_rival | {"difference": difference(run, rival)}
    if page:
        result["files"] = write(run, bounds, result, Path(page))
    return result


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 backtest`."""
    parser.add_argument(
        "--model",
        default="champion",
        metavar="MODEL",
        help="champion, a version of the registry, or a bundle's folder",
    )
    parser.add_argument("--against", metavar="MODEL", help="a second model on the same events")
    parser.add_argument("--from", dest="first", metavar="DATE", help="UTC date or instant")
    parser.add_argument("--to", dest="last", metavar="DATE", help="the last one, included")
    parser.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    parser.add_argument(
        "--fees", choices=["vip0", "vip3", "zero"], help="row that decides (default: model.fee_row)"
    )
    parser.add_argument("--algorithm", metavar="NAME", help="default: execution.algorithm")
    parser.add_argument("--html", metavar="FILE", help="write the page, and tables beside it")
    parser.add_argument(
        "--in-spite-of-source", action="store_true", help="run a synthetic model on recorded data"
    )
    parser.add_argument(
        "--no-bounds",
        action="store_true",
        help="leave out the same run at both bounds of queue models: half the time",
    )
    parser.add_argument(
        "--probe",
        type=int,
        nargs="?",
        const=2,
        metavar="N",
        help="look for look-ahead instead: N random truncations, features a bar late and early",
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 backtest`: figures, tear sheet, a comparison of two models, or look-ahead probes."""
    settings = with_symbols(settings, names(options.symbols))
    if options.probe is not None:
        probed = lookahead.probe(
            with_options(settings, options.fees, options.algorithm),
            model=options.model,
            first=options.first,
            last=options.last,
            truncations=options.probe,
            in_spite_of_source=options.in_spite_of_source,
            say=say,
        )
        if not options.json:
            print(lookahead.report_text(probed))
        return probed
    result = backtest(
        settings,
        model=options.model,
        against=options.against,
        first=options.first,
        last=options.last,
        fee_row=options.fees,
        algorithm=options.algorithm,
        in_spite_of_source=options.in_spite_of_source,
        bounded=not options.no_bounds,
        page=options.html,
        say=say,
    )
    if not options.json:
        print(report_text(result))
    return result
