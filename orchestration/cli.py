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
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from market.settings import Settings, SettingsError, load
from orchestration import verbs
from orchestration.verbs import Result


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
    grammar = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, run: Callable[[Settings, argparse.Namespace], Result], text: str) -> Any:
        added = grammar.add_parser(name, parents=[common], help=text, description=text)
        added.set_defaults(run=run)
        return added

    record = verb(
        "record", verbs.record, "record the venue's public market data into the lake's frames"
    )
    record.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    record.add_argument("--url", metavar="WS", help="public WebSocket (default: record.url)")
    record.add_argument(
        "--for", dest="duration", type=float, metavar="S", help="stop after this long"
    )

    fetch = verb("fetch", verbs.fetch, "bring the venue's public archives into the lake")
    fetch.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    fetch.add_argument("--from", dest="first", metavar="YYYY-MM-DD", required=True)
    fetch.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="default: the first date")

    coverage = verb(
        "coverage", verbs.coverage, "show which dates are held, from where, and their gaps"
    )
    coverage.add_argument("--symbols", metavar="A,B", help="default: every symbol held")

    ingest = verb("ingest", verbs.ingest, "take captures into the lake: frames to events")
    ingest.add_argument("paths", nargs="+", metavar="PATH")

    synth = verb(
        "synth", verbs.synth, "make days of a synthetic market, and what is planted in them"
    )
    synth.add_argument("--day", metavar="YYYY-MM-DD", help="needed without --check or --ic")
    synth.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="last date (default: --day)")
    synth.add_argument(
        "--as",
        dest="kind",
        choices=["frames", "events", "bars"],
        default="frames",
        help="bars: in the reduced form, hundreds of days an hour",
    )
    synth.add_argument("--depths", metavar="N,M", help="further book topics of frames: 50, 1")
    synth.add_argument(
        "--ic",
        type=int,
        metavar="SEEDS",
        help="measure the planted alpha's IC with the mid over seeds; write nothing",
    )
    synth.add_argument("--kept", metavar="FILE", help="days of --ic that are done, not made again")
    synth.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    synth.add_argument("--start", type=int, default=0, metavar="S", help="seconds after midnight")
    synth.add_argument("--stop", type=int, default=86_400, metavar="S")
    judged = synth.add_argument_group("--check: what it shows, beside recordings")
    judged.add_argument("--check", action="store_true", help="judge the market; write nothing")
    judged.add_argument("--profile", metavar="P", help="default: synthetic.profile")
    judged.add_argument("--seeds", metavar="N,M", help="default: seeds no calibration has seen")
    judged.add_argument("--hours", type=float, metavar="H", help="of each seed's day (default: 24)")
    judged.add_argument("--only", default="", metavar="TEXT", help="rows of this name, no page")
    judged.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    judged.add_argument("--recordings", metavar="DIR", help="captures to compare with")
    judged.add_argument("--page", metavar="FILE", help="default: synthetic-check.html")

    fills = verb("fills", verbs.fills, "judge the fill model by orders placed into market data")
    fills.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="captures")
    fills.add_argument("--seeds", metavar="N,M-K", help="days of the synthetic market")
    fills.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    fills.add_argument(
        "--fit", action="store_true", help="fit the model on them first, and write it"
    )
    fills.add_argument("--workers", type=int, default=2, metavar="N", help="processes")
    fills.add_argument("--kept", metavar="DIR", help="keep what became of orders; go on from there")
    fills.add_argument("--page", metavar="FILE.md", help="write the page, its picture beside it")

    liquidity = verb("liquidity", verbs.liquidity, "show what markets could bear: depth to fills")
    liquidity.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="captures")
    liquidity.add_argument("--from", dest="first", metavar="YYYY-MM-DD", help="first date")
    liquidity.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="last date")
    liquidity.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    liquidity.add_argument("--html", metavar="FILE", help="write the page")

    pipeline = verb(
        "pipeline", verbs.pipeline, "run the whole graph: ingest to promotion and study"
    )
    pipeline.add_argument(
        "--frames", nargs="+", default=[], metavar="FILE", help="captures to take in"
    )
    pipeline.add_argument("--from", dest="first", metavar="YYYY-MM-DD", help="first date")
    pipeline.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="last date")

    for name, text in (
        ("promote", "make a model version the champion"),
        ("rollback", "make the previous champion the champion again"),
    ):
        changed = verb(name, verbs.promote if name == "promote" else verbs.rollback, text)
        if name == "promote":
            changed.add_argument("version", help="version in the MLflow registry")
            changed.add_argument(
                "--in-spite-of-gate", action="store_true", help="promote what the gate did not pass"
            )

    backtest = verb(
        "backtest", verbs.backtest, "run the live trader over recorded events, with books"
    )
    backtest.add_argument(
        "--model",
        default="champion",
        metavar="MODEL",
        help="champion, a version of the registry, or a bundle's folder",
    )
    backtest.add_argument("--against", metavar="MODEL", help="a second model on the same events")
    backtest.add_argument("--from", dest="first", metavar="DATE", help="UTC date or instant")
    backtest.add_argument("--to", dest="last", metavar="DATE", help="the last one, included")
    backtest.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    backtest.add_argument(
        "--fees", choices=["vip0", "vip3", "zero"], help="row that decides (default: model.fee_row)"
    )
    backtest.add_argument("--algorithm", metavar="NAME", help="default: execution.algorithm")
    backtest.add_argument("--html", metavar="FILE", help="write the page, and tables beside it")
    backtest.add_argument(
        "--in-spite-of-source", action="store_true", help="run a synthetic model on recorded data"
    )
    backtest.add_argument(
        "--no-bounds",
        action="store_true",
        help="leave out the same run at both bounds of queue models: half the time",
    )
    backtest.add_argument(
        "--probe",
        type=int,
        nargs="?",
        const=2,
        metavar="N",
        help="look for look-ahead instead: N random truncations, features a bar late and early",
    )

    tca = verb("tca", verbs.tca, "show what orders cost, in parts, against what was expected")
    tca.add_argument("--from", dest="first", metavar="YYYY-MM-DD", help="default: the first date")
    tca.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="default: the last date")
    tca.add_argument("--symbol", action="append", metavar="S", help="default: every one on record")
    tca.add_argument(
        "--beside", metavar="PAGE", help="take the tables that a backtest left beside its page"
    )
    tca.add_argument("--html", metavar="FILE", help="write the page")

    live = verb("live", verbs.live, "run the worker: predict and trade with the champion")
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

    bench = verb("bench", verbs.bench, "measure speed and memory against goals and a peer")
    bench.add_argument("area", help="what to measure, e.g. market")
    bench.add_argument(
        "--quick", action="store_true", help="so little of everything that the figures mean nothing"
    )
    bench.add_argument(
        "--markdown", action="store_true", help="print a section of docs/benchmarks.md"
    )

    study = verb(
        "study", verbs.study, "what each execution algorithm costs, and whether goals hold"
    )
    study.add_argument(
        "--synthetic", action="store_true", help="days of the synthetic market, in its engine"
    )
    study.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="captures to study")
    study.add_argument(
        "--days", type=int, default=20, metavar="N", help="synthetic days, one a seed"
    )
    study.add_argument("--first-seed", type=int, default=1, metavar="N")
    study.add_argument(
        "--every", type=int, default=1500, metavar="S", help="seconds between instants of a day"
    )
    study.add_argument("--algorithms", metavar="A,B", help="default: all")
    study.add_argument(
        "--profile", default="default", metavar="P", help="of synthetic days (default: default)"
    )
    study.add_argument("--symbols", metavar="A,B", help="of synthetic days (default: BTCUSDT)")
    study.add_argument("--workers", type=int, default=2, metavar="N", help="days at a time")
    study.add_argument(
        "--results", metavar="DIR", help="days done, to go on from (default: study in the lake)"
    )
    study.add_argument("--html", metavar="FILE", help="write the page; a name in .md: Markdown")

    sql = verb("sql", verbs.sql, "query the lake's tables with SQL")
    sql.add_argument("query", help="e.g. 'select count(*) from bars'")

    ui = verb("ui", verbs.ui, "open the Dagster and MLflow pages of a lake")
    ui.add_argument("--dagster-port", type=int, default=3000)
    ui.add_argument("--mlflow-port", type=int, default=5000)

    demo = verb("demo", verbs.demo, "the whole path on a synthetic market, in minutes")
    demo.add_argument("--days", type=int, default=8, help="days of market (8 give 5 test blocks)")

    sandbox = verb(
        "sandbox", verbs.sandbox, "serve a venue on loopback for real clients to trade on"
    )
    sandbox.add_argument("--port", type=int, default=0, help="default: any that is free")
    sandbox.add_argument("--seed", type=int, default=1, help="of the market, keys and ids")
    sandbox.add_argument("--speed", type=float, default=1.0, help="simulated time to the clock's")
    sandbox.add_argument("--profile", metavar="NAME", default="default", help="of the market")
    sandbox.add_argument("--symbols", metavar="A,B", help="default: BTCUSDT")
    sandbox.add_argument("--accounts", type=int, default=2, metavar="N", help="funded clients")
    sandbox.add_argument("--no-rate-limit", action="store_true", help="answer every request")
    sandbox.add_argument(
        "--faults", default="", metavar="KIND=N,…", help="so many a simulated minute, all=N for all"
    )
    sandbox.add_argument(
        "--fault-log", type=Path, metavar="FILE", help="what went wrong, when, to whom"
    )

    verb("config", verbs.config, "print the effective settings")
    verb("doctor", verbs.doctor, "check what the platform needs of this machine")
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
    rooms = {"market", "execution", "models_registry", "assets", "orchestration", "live", "proving"}
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


if __name__ == "__main__":
    sys.exit(main())
