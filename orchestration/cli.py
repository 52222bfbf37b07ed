"""The `l2` command: one verb per thing a person does with the platform.

Results go to standard output (``--json``: one object, last line), progress to standard error. A
failure is one clear line and exit status 1, a wrong call exit status 2; ``--debug`` adds the
traceback. Options become environment variables before anything is loaded, so that whatever a verb
starts, in this process or another, sees the same settings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from market.settings import Settings, SettingsError, effective, load

Result = dict[str, Any] | None


class CommandError(RuntimeError):
    """A verb cannot do what was asked; the message is for the person who asked."""


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("common options")
    group.add_argument("--config", metavar="FILE", help="settings file (default: l2.toml)")
    group.add_argument("--root", metavar="DIR", help="root of the lake")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one setting, e.g. model.fee_row=zero",
    )
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return common


def parser() -> argparse.ArgumentParser:
    """The command's grammar."""
    common = _common()
    top = argparse.ArgumentParser(
        prog="l2", description="Bybit frames to executed orders along one path."
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, run: Callable[[Settings, argparse.Namespace], Result], text: str) -> Any:
        added = verbs.add_parser(name, parents=[common], help=text, description=text)
        added.set_defaults(run=run)
        return added

    record = verb("record", _record, "record the venue's public market data into the lake's frames")
    record.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    record.add_argument("--url", metavar="WS", help="public WebSocket (default: record.url)")
    record.add_argument(
        "--for", dest="duration", type=float, metavar="S", help="stop after this long"
    )

    fetch = verb("fetch", _fetch, "bring the venue's public archives into the lake")
    fetch.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    fetch.add_argument("--from", dest="first", metavar="YYYY-MM-DD", required=True)
    fetch.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="default: the first date")

    coverage = verb("coverage", _coverage, "show which dates are held, from where, and their gaps")
    coverage.add_argument("--symbols", metavar="A,B", help="default: every symbol held")

    ingest = verb("ingest", _ingest, "take captures into the lake: frames to events")
    ingest.add_argument("paths", nargs="+", metavar="PATH")

    synth = verb("synth", _synth, "write a capture of a synthetic market")
    synth.add_argument("--day", required=True, metavar="YYYY-MM-DD")
    synth.add_argument("--start", type=int, default=0, metavar="S", help="seconds after midnight")
    synth.add_argument("--stop", type=int, default=86_400, metavar="S")

    pipeline = verb("pipeline", _pipeline, "run the whole graph: ingest to promotion and study")
    pipeline.add_argument(
        "--frames", nargs="+", default=[], metavar="FILE", help="captures to take in"
    )
    pipeline.add_argument("--from", dest="first", metavar="YYYY-MM-DD", help="first date")
    pipeline.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="last date")

    for name, text in (
        ("promote", "make a model version the champion"),
        ("rollback", "make the previous champion the champion again"),
    ):
        changed = verb(name, _promote if name == "promote" else _rollback, text)
        if name == "promote":
            changed.add_argument("version", help="version in the MLflow registry")
            changed.add_argument(
                "--in-spite-of-gate", action="store_true", help="promote what the gate did not pass"
            )

    live = verb("live", _live, "run the worker: predict and trade with the champion")
    live.add_argument("--venue", choices=["paper"], default="paper")
    live.add_argument(
        "--frames", nargs="+", default=[], metavar="FILE", help="replay these captures"
    )
    live.add_argument("--url", metavar="WS", help="public WebSocket to follow instead")
    live.add_argument("--speed", type=float, default=1.0, help="replay speed, 1 = as recorded")
    live.add_argument(
        "--warm-up",
        type=float,
        default=0.0,
        metavar="S",
        help="replay this much at full speed first",
    )
    live.add_argument(
        "--for", dest="duration", type=float, metavar="S", help="stop after this long"
    )
    live.add_argument("--keep-position", action="store_true", help="do not flatten at the end")

    sql = verb("sql", _sql, "query the lake's tables with SQL")
    sql.add_argument("query", help="e.g. 'select count(*) from bars'")

    ui = verb("ui", _ui, "open the Dagster and MLflow pages of a lake")
    ui.add_argument("--dagster-port", type=int, default=3000)
    ui.add_argument("--mlflow-port", type=int, default=5000)

    demo = verb("demo", _demo, "the whole path on a synthetic market, in minutes")
    demo.add_argument("--days", type=int, default=8, help="days of market (8 give 5 test blocks)")
    verb("config", _config, "print the effective settings")
    verb("doctor", _doctor, "check what the platform needs of this machine")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status."""
    options = parser().parse_args(arguments)
    try:
        _export(options)
        settings = load()
        result = options.run(settings, options)
    except KeyboardInterrupt:
        print("l2: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the boundary where an error becomes a line for a person
        if options.debug:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        hint = (
            ""
            if _is_ours(error) or options.debug
            else f" ({type(error).__name__}; --debug shows where)"
        )
        print(f"l2 {options.verb}: {text}{hint}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    if options.json and result is not None:
        print(json.dumps(result, default=str))
    return int(bool(result and result.get("failed")))


def _is_ours(error: Exception) -> bool:
    rooms = {"market", "execution", "models_registry", "assets", "orchestration", "live"}
    return type(error).__module__.split(".")[0] in rooms or isinstance(error, OSError)


def _export(options: argparse.Namespace) -> None:
    """Hand the command line down as environment, where every process of this run looks."""
    if options.config:
        if not Path(options.config).exists():
            raise SettingsError(f"{options.config}: no such settings file")
        os.environ["L2_CONFIG"] = str(Path(options.config).absolute())
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingsError(f"--set {item}: expected section.key=value")
        os.environ["L2_" + key.strip().upper().replace(".", "__")] = value
    if options.root:
        os.environ["L2_ROOT"] = (
            options.root if "://" in options.root else str(Path(options.root).absolute())
        )


# -- verbs -----------------------------------------------------------------------------------------


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


def _record(settings: Settings, options: argparse.Namespace) -> Result:
    import signal

    from live.feed import WireFeed
    from live.recording import instruments_listed, record
    from orchestration.console import say, table

    settings = _symbols(settings, options)

    def started(feed: WireFeed) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: feed.stop())

    result = record(
        settings,
        url=options.url,
        duration_s=options.duration,
        listed=instruments_listed(settings, say),
        say=say,
        started=started,
    )
    if not options.json:
        print(table([(name, value) for name, value in result.items() if name != "frames"]))
        print(table(sorted(result["frames"].items())))
    return result


def _fetch(settings: Settings, options: argparse.Namespace) -> Result:
    import msgspec

    from live.download import fetch
    from orchestration.console import say, table

    symbols = _symbols(settings, options).market.symbols
    fetched = fetch(settings, symbols, options.first, options.last or options.first, say)
    if not options.json:
        rows: list[tuple[str, object]] = [
            ("dates fetched", len(fetched.made)),
            ("dates that stood already", fetched.standing),
            *(("the venue lacks", text) for text in fetched.lacking),
            *(("FAILED, ask again", text) for text in fetched.failures),
        ]
        print(table(rows))
    return {"failed": bool(fetched.failures), **msgspec.to_builtins(fetched)}


def _coverage(settings: Settings, options: argparse.Namespace) -> Result:
    from live.coverage import HEAD, coverage
    from market.lake import Lake
    from orchestration.console import say, table

    symbols = _symbols(settings, options).market.symbols if options.symbols else None
    lake = Lake(settings.root)
    days = coverage(lake, settings.market.book_depth, symbols, say)
    if not options.json:
        print(table([day.row() for day in days], HEAD) if days else f"{lake.uri}: holds no day")
    return {"source": lake.source, "days": [day.data() for day in days]}


def _ingest(settings: Settings, options: argparse.Namespace) -> Result:
    from market.ingest import adopt, ingest, scan
    from market.lake import Lake
    from orchestration.console import say, table

    lake = Lake(settings.root, settings.source)
    captures = [adopt(lake, path) for path in options.paths]
    report = ingest(lake, captures, list(scan(captures)), settings, progress=say)
    result = {
        "frames": report.frames,
        "events": sum(report.events.values()),
        "quarantined": report.quarantined,
        "reasons": report.reasons,
        "torn": report.torn,
    }
    if not options.json:
        print(
            table(
                [
                    *report.frames.items(),
                    ("torn ends dropped", report.torn),
                    *(("rejected: " + k, v) for k, v in report.reasons.items()),
                ]
            )
        )
    return result


def _synth(settings: Settings, options: argparse.Namespace) -> Result:
    from market.lake import Lake
    from market.synthetic import profile, write_frames
    from orchestration.console import say

    if settings.source != "synthetic":
        raise CommandError("a recorded lake takes no synthetic data; use --set source=synthetic")
    lake = Lake(settings.root, settings.source)
    path = write_frames(
        lake,
        profile(settings.synthetic.profile),
        settings.synthetic.seed,
        settings.market.symbols,
        options.day,
        options.start,
        options.stop,
    )
    say(f"wrote {path}")
    return {"capture": str(path)}


def _pipeline(settings: Settings, options: argparse.Namespace) -> Result:
    from orchestration.pipeline import report_text, run

    report = run(settings, options.frames, options.first, options.last)
    if not options.json:
        print(report_text(report))
    return report


def _promote(settings: Settings, options: argparse.Namespace) -> Result:
    from models_registry.registry import promote

    promote(settings, options.version, in_spite_of_gate=options.in_spite_of_gate)
    print(f"{settings.model_name} version {options.version} is champion", file=sys.stderr)
    return {"name": settings.model_name, "champion": options.version}


def _rollback(settings: Settings, options: argparse.Namespace) -> Result:
    from models_registry.registry import rollback

    version = rollback(settings)
    print(f"{settings.model_name} version {version} is champion again", file=sys.stderr)
    return {"name": settings.model_name, "champion": version}


def _live(settings: Settings, options: argparse.Namespace) -> Result:
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
        process.wait(timeout=30)


def _sql(settings: Settings, options: argparse.Namespace) -> Result:
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


def _ui(settings: Settings, options: argparse.Namespace) -> Result:
    from orchestration.pages import serve

    serve(settings, options.dagster_port, options.mlflow_port)
    return None


def _demo(settings: Settings, options: argparse.Namespace) -> Result:
    from orchestration.demo import run

    return run(options.root or "demo", options.days, quiet=options.json)


def _config(settings: Settings, options: argparse.Namespace) -> Result:
    from orchestration.console import table

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


def _doctor(settings: Settings, options: argparse.Namespace) -> Result:
    from orchestration.console import table
    from orchestration.doctor import examine

    findings = examine(settings)
    if not options.json:
        print(table([("ok" if f.ok else "FAIL", f.what, f.detail) for f in findings]))
    return {
        "failed": not all(f.ok for f in findings),
        "findings": [{"ok": f.ok, "what": f.what, "detail": f.detail} for f in findings],
    }


if __name__ == "__main__":
    sys.exit(main())
