"""`l2 backtest`: a model over a span of the lake's events; the report, the tear sheet, the probes."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from execution.simulation.queue import BOUNDS
from live.run import followed
from market.compute import Map, mapping
from market.console import Result, Say, names, say
from market.errors import UsageError
from market.instruments import Instrument
from market.lake import Lake
from market.settings import Settings, with_symbols
from market.units import HOUR_NS
from orchestration import report_page
from orchestration.backtest import lookahead
from orchestration.backtest.figures import bound_figures, difference, figures
from orchestration.backtest.foresight import ForesightTrader, file_of, foresee
from orchestration.backtest.report_tables import report_text
from orchestration.backtest.run import (
    Books,
    FixedModel,
    Run,
    bound_settings,
    load_model,
    replay,
)
from orchestration.backtest.span import Span, instruments_of_span, span_of
from orchestration.backtest.tear_sheet import TableWriter, write


def with_options(
    settings: Settings, fee_row: str | None = None, algorithm: str | None = None
) -> Settings:
    """The settings with another fee row or algorithm; UsageError when there is none such."""
    if fee_row is None and algorithm is None:
        return settings
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
    model: str | FixedModel = "",
    against: str | FixedModel | None = None,
    first: str | None = None,
    last: str | None = None,
    fee_row: str | None = None,
    algorithm: str | None = None,
    in_spite_of_source: bool = False,
    bounded: bool = True,
    page: str | None = None,
    say: Say | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Run a model over a span of the lake's events; the figures as plain data (`figures.figures`).

    ``model`` is one of `run.load_model`, by default that of ``desk.model``; ``against`` is a second model, which trades the same events with books of its own. ``bounded``
    repeats the run at both bounds of the queue models (`run.bound_settings`). ``page`` is the HTML file
    to write, with the tables beside it; ``workers`` is how many processes to use (0: `processes`).
    Raises UsageError, BacktestError, SpanError, BundleError, LakeError.
    """
    settings = with_options(settings, fee_row, algorithm)
    lake = Lake(settings.root, settings.source)
    symbols = followed(settings.market)
    span = span_of(lake, symbols, first, last)
    instruments, inputs = instruments_of_span(lake, symbols, span, settings.market.watch)
    models = [
        which
        if isinstance(which, FixedModel)
        else load_model(
            settings, which, settings.market.symbols, in_spite_of_source=in_spite_of_source
        )
        for which in (model, *([against] if against is not None else []))
    ]
    variants = [(settings, 0), *((one, 0) for one in (bound_settings(settings) if bounded else ()))]
    variants += [(settings, number) for number in range(1, len(models))]
    started = time.monotonic()
    workers = workers or processes(span)
    with tempfile.TemporaryDirectory(prefix="l2-backtest-") as scratch, mapping(workers) as mapped:
        parts = [settings.market.symbols[n::workers] for n in range(workers)]
        foresee_tasks = [
            (settings, instruments, span, models, part, Path(scratch), say)
            for part in parts
            if part
        ]
        mapped(foresee, foresee_tasks, lambda *_: None)
        foreseen = [
            {symbol: file_of(Path(scratch), number, symbol) for symbol in settings.market.symbols}
            for number in range(len(models))
        ]
        books = trade_all(instruments, span, models, variants, foreseen, page, mapped, say)
    run, *others = books
    bounds = others[: len(others) - len(models) + 1]
    result = figures(run, models[0], span, inputs, lake.source, run.events)
    result["seconds"] = time.monotonic() - started
    if bounded:
        result["bounds"] = {
            bound: bound_figures(figures(one, models[0], span, inputs, lake.source, one.events))
            for bound, one in zip(BOUNDS, bounds, strict=True)
        }
    for rival, its_model in zip(others[len(bounds) :], models[1:], strict=True):
        of_rival = figures(rival, its_model, span, inputs, lake.source, rival.events)
        result["against"] = of_rival | {"difference": difference(run, rival)}
    if page:
        result["files"] = write(run, bounds, result, Path(page))
        report_page.publish(Path(page), settings)
    return result


def processes(span: Span) -> int:
    """How many to use: a short span is over before a second one has started."""
    return len(os.sched_getaffinity(0)) if span.until_ns - span.first_ns > HOUR_NS else 1


def trade(
    settings: Settings,
    instruments: Mapping[str, Instrument],
    span: Span,
    model: FixedModel,
    files: Mapping[str, Path],
    page: str | None,
    say: Say | None,
) -> Books:
    """One run over the span by what was foreseen; the execution tables go beside ``page``."""
    with ExitStack() as stack:
        writer = None
        if page is not None:
            writer = TableWriter(Path(page).with_suffix(""))
            stack.callback(writer.close)
        trader = partial(ForesightTrader, files=files)
        run = Run(settings, instruments, model, trader=trader, rows=writer)
        lake = Lake(settings.root, settings.source)
        return run.books(replay(lake, instruments, span, [run], say))


def trade_all(
    instruments: Mapping[str, Instrument],
    span: Span,
    models: Sequence[FixedModel],
    variants: Sequence[tuple[Settings, int]],
    foreseen: Sequence[Mapping[str, Path]],
    page: str | None,
    mapped: Map,
    say: Say | None,
) -> list[Books]:
    """The books of each variant (settings, number of its model), in their order.

    The first one writes the tables and calls ``say``, which must be a module's function.
    """
    tasks = [
        (one, instruments, span, models[number], foreseen[number], None if n else page,
         None if n else say)
        for n, (one, number) in enumerate(variants)
    ]  # fmt: skip
    books: dict[int, Books] = {}

    def done(task: tuple[Any, ...], result: Books) -> None:
        (number,) = (n for n, one in enumerate(tasks) if one is task)
        books[number] = result
        if say is not None:
            say(
                f"queue {result.settings.execution.queue}: {len(result.blotter.trades):,} round trips"
            )

    mapped(trade, tasks, done)
    return [books[n] for n in range(len(tasks))]


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 backtest`."""
    parser.add_argument(
        "--model",
        default="",
        metavar="MODEL",
        help="champion, legacy, a version of the registry, or a bundle's folder (default: desk.model)",
    )
    parser.add_argument("--against", metavar="MODEL", help="a second model on the same events")
    parser.add_argument("--from", dest="first", metavar="DATE", help="UTC date or instant")
    parser.add_argument("--to", dest="last", metavar="DATE", help="the last one, included")
    parser.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    parser.add_argument(
        "--fees", choices=["vip0", "vip3", "zero"], help="row that decides (default: model.fee_row)"
    )
    parser.add_argument("--algorithm", metavar="NAME", help="default: execution.algorithm")
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help=f"{report_page.HELP}, with tables beside",
    )
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
        page=report_page.place(settings, options.html, "backtest"),
        say=say,
    )
    if not options.json:
        print(report_text(result))
    return result
