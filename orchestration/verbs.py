"""What the verbs of `l2` do: each takes the settings and its options, and gives its result as plain data.

A verb loads what it needs when it runs, so that `l2 config` never waits for Dagster and the trading
process never loads it. People read what is printed; ``--json`` prints the returned object instead.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from market.errors import UsageError
from market.settings import Settings, effective

Result = dict[str, Any] | None


class CommandError(UsageError):
    """A verb cannot do what was asked; the message is for the person who asked."""


def _symbols(settings: Settings, options: argparse.Namespace) -> Settings:
    """The settings with ``--symbols`` in the place of market.symbols."""
    if not options.symbols:
        return settings
    import msgspec

    named = tuple(name.strip() for name in options.symbols.split(",") if name.strip())
    if not named:
        raise CommandError("--symbols names none; expected e.g. BTCUSDT,ETHUSDT")
    replace = msgspec.structs.replace
    return replace(settings, market=replace(settings.market, symbols=named))


def record(settings: Settings, options: argparse.Namespace) -> Result:
    import signal

    from live import recording
    from live.feed import WireFeed
    from market.console import say, table

    settings = _symbols(settings, options)

    def started(feed: WireFeed) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: feed.stop())

    result = recording.record(
        settings,
        url=options.url,
        duration_s=options.duration,
        listed=recording.instruments_listed(settings, say),
        say=say,
        started=started,
    )
    if not options.json:
        print(table([(name, value) for name, value in result.items() if name != "frames"]))
        print(table(sorted(result["frames"].items())))
    return result


def fetch(settings: Settings, options: argparse.Namespace) -> Result:
    import msgspec

    from live.archives import download
    from market.console import say, table

    symbols = _symbols(settings, options).market.symbols
    fetched = download.fetch(settings, symbols, options.first, options.last or options.first, say)
    if not options.json:
        rows: list[tuple[str, object]] = [
            ("dates fetched", len(fetched.made)),
            ("dates that stood already", fetched.standing),
            *(("the venue lacks", text) for text in fetched.lacking),
            *(("FAILED, ask again", text) for text in fetched.failures),
        ]
        print(table(rows))
    return {"failed": bool(fetched.failures), **msgspec.to_builtins(fetched)}


def coverage(settings: Settings, options: argparse.Namespace) -> Result:
    from live.coverage import HEAD, missing
    from live.coverage import coverage as covered
    from market.console import say, table
    from market.lake import Lake

    symbols = _symbols(settings, options).market.symbols if options.symbols else None
    lake = Lake(settings.root)
    days = covered(lake, settings.market.book_depth, symbols, say)
    lacking = missing(days)
    if not options.json:
        print(table([day.row() for day in days], HEAD) if days else f"{lake.uri}: holds no day")
        for symbol, first, last, count in lacking:
            print(f"{symbol}: nothing of {count} dates, {first} to {last}")
    return {
        "source": lake.source,
        "days": [day.data() for day in days],
        "missing": [list(span) for span in lacking],
    }


def ingest(settings: Settings, options: argparse.Namespace) -> Result:
    from market import ingest as taking
    from market.console import say, table
    from market.lake import Lake

    lake = Lake(settings.root, settings.source)
    captures = [taking.adopt(lake, path) for path in options.paths]
    report = taking.ingest(lake, captures, list(taking.scan(captures)), settings, progress=say)
    result = {
        "frames": report.frames,
        "events": sum(report.events.values()),
        "quarantined": report.quarantined,
        "reasons": report.reasons,
        "refused_elsewhere": report.elsewhere,
        "torn": report.torn,
    }
    if not options.json:
        print(
            table(
                [
                    *report.frames.items(),
                    ("torn ends dropped", report.torn),
                    *(("rejected: " + k, v) for k, v in report.reasons.items()),
                    ("rejected, of symbols without a usable frame", report.elsewhere),
                ]
            )
        )
    return result


def synth(settings: Settings, options: argparse.Namespace) -> Result:
    from pathlib import Path

    import msgspec

    from market.console import say, table
    from market.units import days_between
    from proving.synthetic import command as made

    if options.check:
        return _checked(settings, options)
    if options.profile:
        changed = msgspec.structs.replace(settings.synthetic, profile=options.profile)
        settings = msgspec.structs.replace(settings, synthetic=changed)
    if options.ic:
        rows = made.recovered(
            settings,
            options.kind,
            options.ic,
            say,
            workers=options.workers,
            kept=Path(options.kept) if options.kept else None,
        )
        if not options.json:
            print(table(made.lines(rows), made.HEAD))
        return {
            "rows": [
                {**msgspec.structs.asdict(row), "z": row.z, "agrees": row.agrees} for row in rows
            ],
            "failed": not all(row.agrees for row in rows),
        }
    if not options.day:
        raise CommandError(
            "say which day to make: --day YYYY-MM-DD; or --check or --ic to judge the market"
        )
    if settings.source != "synthetic":
        raise CommandError("a recorded lake takes no synthetic data; use --set source=synthetic")
    days = days_between(options.day, options.last or options.day)
    depths = [int(depth) for depth in options.depths.split(",")] if options.depths else []
    span = (options.start, options.stop)
    return made.write(settings, options.kind, days, span, depths, say, options.workers)


def fills(settings: Settings, options: argparse.Namespace) -> Result:
    from pathlib import Path

    import msgspec

    from market.console import say, table
    from orchestration import fills as made
    from orchestration.fills import page

    symbols = _symbols(settings, options).market.symbols
    sources = made.captures(options.frames, symbols)
    sources += made.synthetic(made.seeds_named(options.seeds), symbols)
    report = made.run(
        settings,
        sources,
        say,
        fit=options.fit,
        workers=options.workers,
        keep=Path(options.kept) if options.kept else None,
    )
    if options.page:
        page.write(report, Path(options.page))
        say(f"page written to {options.page}")
    if not options.json:
        print(table(page.lines(report.judged), page.HEAD))
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found


def liquidity(settings: Settings, options: argparse.Namespace) -> Result:
    from msgspec import convert

    from execution.liquidity_survey import Survey
    from market.console import say, table
    from orchestration.liquidity import HEAD, analyse, lines

    found = analyse(
        _symbols(settings, options),
        frames=options.frames,
        first=options.first,
        last=options.last,
        page=options.html,
    )
    if options.html:
        say(f"page written to {options.html}")
    if not options.json:
        for symbol, each in found.items():
            print(f"{symbol}, {each['seconds']:,} s")
            print(table(lines(convert(each, Survey, strict=False)), HEAD))
    return found


def _checked(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 synth --check`: the table on standard output, the pictures in a page."""
    from pathlib import Path

    from market.console import say, table
    from proving.realism import command as acceptance
    from proving.realism import page as acceptance_page

    settings = _symbols(settings, options)
    checked = acceptance.check(
        settings,
        name=options.profile or settings.synthetic.profile,
        seeds=acceptance.seeds_named(options.seeds),
        hours=acceptance.HOURS if options.hours is None else options.hours,
        day=options.day or acceptance.DAY,
        folder=Path(options.recordings) if options.recordings else None,
        only=options.only,
        workers=options.workers,
        say=say,
    )
    if not options.json:
        for symbol, rows in checked.rows.items():
            print(f"\n{symbol}\n{table(acceptance.lines(rows), acceptance.HEAD)}\n")
            print(table(acceptance.remarks(rows)))
    say(", ".join(f"{count} rows {verdict}" for verdict, count in checked.counted().items()))
    found = {"failed": checked.counted().get("OUT", 0) > 0, **checked.data()}
    if options.only:
        return found
    target = Path(options.page or "synthetic-check.html")
    acceptance_page.write(checked, target)
    say(f"pictures in {target}")
    return {"page": str(target), **found}


def pipeline(settings: Settings, options: argparse.Namespace) -> Result:
    from orchestration.pipeline import report_text, run

    report = run(settings, options.frames, options.first, options.last)
    if not options.json:
        print(report_text(report))
    return report


def promote(settings: Settings, options: argparse.Namespace) -> Result:
    from models_registry import registry

    registry.promote(settings, options.version, in_spite_of_gate=options.in_spite_of_gate)
    print(f"{settings.model_name} version {options.version} is champion", file=sys.stderr)
    return {"name": settings.model_name, "champion": options.version}


def rollback(settings: Settings, options: argparse.Namespace) -> Result:
    from models_registry import registry

    version = registry.rollback(settings)
    print(f"{settings.model_name} version {version} is champion again", file=sys.stderr)
    return {"name": settings.model_name, "champion": version}


def backtest(settings: Settings, options: argparse.Namespace) -> Result:
    from market.console import say
    from orchestration.backtest import backtest, chosen, figures, lookahead

    settings = _symbols(settings, options)
    if options.probe is not None:
        probed = lookahead.probe(
            chosen(settings, options.fees, options.algorithm),
            model=options.model,
            first=options.first,
            last=options.last,
            truncations=options.probe,
            in_spite_of_source=options.in_spite_of_source,
            say=say,
        )
        if not options.json:
            print(lookahead.text(probed))
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
        print(figures.text(result))
    return result


def tca(settings: Settings, options: argparse.Namespace) -> Result:
    from market.console import say
    from orchestration import tca as analysis

    found = analysis.analyse(
        settings,
        first=options.first,
        last=options.last,
        symbols=options.symbol,
        beside=options.beside,
        page=options.html,
        say=say,
    )
    if not options.json:
        print(analysis.text(found))
    return found


def live(settings: Settings, options: argparse.Namespace) -> Result:
    from live.worker import run, summary_text

    if bool(options.frames) == bool(options.url):
        raise CommandError("say where the market comes from: --frames FILE… or --url WS")
    with _resolver(settings):
        result = run(
            settings,
            frames=options.frames,
            url=options.url,
            speed=options.speed,
            warm_up_s=options.warm_up,
            duration_s=options.duration,
            flatten=not options.keep_position,
        )
    if not options.json:
        print(summary_text(result))
    return result


@contextmanager
def _resolver(settings: Settings) -> Iterator[None]:
    """The process that turns the promoted alias into a local bundle while the worker trades.

    It is another process so that the worker never loads MLflow; if it dies the worker goes on with
    the champion that it has.
    """
    every = str(settings.live.resolve_every_s)
    command = [sys.executable, "-m", "models_registry.resolver", "--every", every]
    # a result must be the last line of standard output, so the resolver speaks on standard error
    process = subprocess.Popen(command, stdout=2)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            # A library that loads may keep the signal to itself; nothing is half-written by a kill.
            process.kill()
            process.wait()


def sql(settings: Settings, options: argparse.Namespace) -> Result:
    import duckdb

    from market.lake import Lake

    try:
        answer: duckdb.DuckDBPyRelation | None = Lake(settings.root).connect().sql(options.query)
    except duckdb.Error as error:
        raise CommandError(str(error).splitlines()[0]) from error
    if answer is None:
        return {"rows": []}
    if options.json:
        names = answer.columns
        return {"rows": [dict(zip(names, row, strict=True)) for row in answer.fetchall()]}
    answer.show(max_rows=100)
    return None


def bench(settings: Settings, options: argparse.Namespace) -> Result:
    from market.console import say, table
    from proving.bench.command import HEAD, lines, markdown, run

    result = run(options.area, options.quick, say)
    if options.markdown:
        print(markdown(result))
    elif not options.json:
        print(table(lines(result), HEAD))
    return result


def study(settings: Settings, options: argparse.Namespace) -> Result:
    import shlex
    from pathlib import Path

    from execution.algorithms import ALGORITHMS
    from market.console import say
    from orchestration import study as studying
    from orchestration.study import page

    def listed(given: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(part.strip() for part in given.split(",")) if given else default

    found, text = studying.run(
        settings,
        frames=options.frames,
        days=options.days if options.synthetic else 0,
        first_seed=options.first_seed,
        every_s=options.every,
        names=listed(options.algorithms, tuple(ALGORITHMS)),
        symbols=listed(options.symbols, ("BTCUSDT",)),
        profile=options.profile,
        folder=Path(options.results or Path(settings.root) / "study"),
        workers=options.workers,
        say=say,
    )
    if options.html:
        page.write(found, Path(options.html), shlex.join(["l2", *sys.argv[1:]]))
    if not options.json:
        print(text)
    return found


def ui(settings: Settings, options: argparse.Namespace) -> Result:
    from orchestration.pages import serve

    serve(settings, options.dagster_port, options.mlflow_port)
    return None


def demo(settings: Settings, options: argparse.Namespace) -> Result:
    from proving.demo import run

    return run(options.root or "demo", options.days, quiet=options.json)


def config(settings: Settings, options: argparse.Namespace) -> Result:
    from market.console import table

    tree = effective(settings)
    if not options.json:
        rows: list[tuple[str, object]] = []
        for key, value in tree.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            rows += [(f"{key}.{name}".rstrip("."), item) for name, item in inner]
        print(table(rows))
        for name in ("L2_API_KEY", "L2_API_SECRET"):
            print(f"{name}  {'set (not shown)' if os.environ.get(name) else 'not set'}")
    return tree


def sandbox(settings: Settings, options: argparse.Namespace) -> Result:
    import json

    from proving.sandbox.faults import rates_of
    from proving.sandbox.server import Sandbox, run

    world = Sandbox(
        options.seed,
        speed=options.speed,
        profile_name=options.profile,
        symbols=_symbols(settings, options).market.symbols if options.symbols else ("BTCUSDT",),
        clients=options.accounts,
        limited=not options.no_rate_limit,
        fault_rates=rates_of(options.faults),
        fault_log=options.fault_log,
    )
    run(world, options.port, lambda told: print(json.dumps(told), flush=True))
    return None


def doctor(settings: Settings, options: argparse.Namespace) -> Result:
    from market.console import table
    from orchestration.doctor import examine

    findings = examine(settings)
    if not options.json:
        print(table([("ok" if f.ok else "FAIL", f.what, f.detail) for f in findings]))
    return {
        "failed": not all(f.ok for f in findings),
        "findings": [{"ok": f.ok, "what": f.what, "detail": f.detail} for f in findings],
    }
