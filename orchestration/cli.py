"""The `l2` command: one verb per thing a person does with the platform.

Each verb lives beside its feature: the module named in `VERBS` has ``arguments(parser)``, which adds
its options, and ``command(settings, options)``, which runs it and returns its result as plain data
(where a module has several verbs, ``NAME_arguments`` and ``NAME_command``). It is loaded when the
verb is called, so `l2 --help` and `l2 config` wait for nothing heavy.

Results go to standard output (``--json``: one object, last line), progress to standard error. A
failure is one clear line and exit status 1 (3 where a worker must not be started again as it is), a wrong
call or setting exit status 2, an interruption 130; ``--debug`` adds the traceback. Options become environment variables before anything is loaded,
so that whatever a verb starts, in this process or another, sees the same settings.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from market import interruption
from market.cache import settle_home
from market.console import Result
from market.errors import L2Error, UsageError, no_space
from market.settings import Settings, SettingsError, load


class Verb(NamedTuple):
    """A verb: the module that has it, what it does in a line, and whether it ends itself at a signal."""

    module: str
    text: str
    daemon: bool = False


#: Group -> name -> verb, in the order of `l2 --help`. The verbs of proving are the command line's
#: only way into that room, by name.
VERBS: Final[dict[str, dict[str, Verb]]] = {
    "data": {
        "record": Verb("live.market_recorder", "record the venue's public data into the lake's captures", daemon=True),
        "fetch": Verb("live.archives.download", "fetch the venue's archives of past dates"),
        "coverage": Verb("live.coverage", "show which dates are held, from where, and their gaps"),
        "ingest": Verb("orchestration.commands", "take captures into the lake: frames to events"),
        "convert": Verb("live.archives.doors", "make a capture of data in other formats: Tardis, hftbacktest"),
        "import-sqlite": Verb("live.archives.sqlite", "books, trades and signals of a SQLite database into the lake"),
        "export": Verb("live.archives.doors", "write a date of events for hftbacktest"),
        "liquidity": Verb("orchestration.liquidity_report", "show what markets could bear: depth to fills"),
        "migrate": Verb("orchestration.migrate", "rewrite what an earlier schema wrote, in place"),
        "upload": Verb("orchestration.commands", "copy this machine's finished captures into the object store"),
        "retain": Verb("orchestration.retain", "show sizes, and expire captures whose tables stand"),
        "sql": Verb("orchestration.commands", "query the lake's tables with SQL"),
    },
    "models": {
        "pipeline": Verb(
            "orchestration.pipeline", "run the whole graph: ingest to promotion and study"
        ),
        "backtest": Verb(
            "orchestration.backtest.command", "run the live trader over recorded events, with books"
        ),
        "promote": Verb("models_registry.promotion", "make a model version the champion"),
        "rollback": Verb(
            "models_registry.promotion", "make the previous champion the champion again"
        ),
        "reproduce": Verb(
            "models_registry.reproduction", "train a version again from its inputs, and compare"
        ),
        "ab": Verb("models_registry.comparison", "compare the challenger with the champion"),
        "ui": Verb("orchestration.ui", "open the Dagster and MLflow pages of a lake", daemon=True),
    },
    "trading": {
        "live": Verb("live.worker", "run the worker: predict and trade with the champion", daemon=True),
        "status": Verb("live.status", "show on one screen what the running worker does"),
        "why": Verb("live.why", "explain an order, or a decision, from the worker's log"),
        "dashboard": Verb("orchestration.dashboard.command", "serve the page of the running worker", daemon=True),
        "watch": Verb("orchestration.watch", "say when worker, recorder or daily run are late", daemon=True),
        "halt": Verb("live.control", "make the worker cancel everything and open nothing, until resumed"),
        "flatten": Verb("live.control", "make the worker close its positions and open nothing"),
        "pause": Verb("live.control", "make the worker open nothing for a symbol"),
        "resume": Verb("live.control", "lift what halt, flatten and pause ordered, and reached limits"),
        "limits": Verb("live.control", "tighten risk limits of the running worker"),
        "handover": Verb("live.control", "end the worker, and leave orders and positions to the next"),
        "tca": Verb(
            "orchestration.tca.command", "show what orders cost, in parts, against what was expected"
        ),
        "statement": Verb("orchestration.statement", "state a day's profit, fees and funding, for an accountant"),
        "fills": Verb(
            "orchestration.fills.command", "judge the fill model by orders placed into market data"
        ),
        "study": Verb(
            "orchestration.study.command", "show what each execution algorithm costs, and which goals hold"
        ),
    },
    "proving": {
        "demo": Verb("proving.demo", "the whole path on a synthetic market, in minutes"),
        "synth": Verb(
            "proving.synthetic.command", "make days of a synthetic market, or judge that market"
        ),
        "sandbox": Verb(
            "proving.sandbox.command", "serve an exchange on loopback for real clients to trade on", daemon=True
        ),
        "torture": Verb(
            "proving.torture.command", "run the worker through every fault, by seed, and judge it"
        ),
        "certify": Verb(
            "proving.certify.command", "run training over markets whose truth is known, and judge it"
        ),
        "desk-table": Verb(
            "proving.desk.command", "compare the desk with the profile legacy, seed by seed, at every fee row"
        ),
        "bench": Verb(
            "proving.bench.command", "measure speed and memory against goals and a peer"
        ),
    },
    "this machine": {
        "config": Verb("orchestration.commands", "print the effective settings"),
        "service": Verb("orchestration.service", "make systemd units of recorder, worker and pages"),
        "doctor": Verb(
            "orchestration.commands", "check what the platform needs of this machine"
        ),
    },
}  # fmt: skip


def common() -> argparse.ArgumentParser:
    """The options that every verb takes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("common options")
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
    return parser


def overview() -> str:
    """`l2 --help`."""
    lines = [
        "usage: l2 VERB [options]",
        "",
        "Bybit frames to executed orders along one path. `l2 VERB --help` lists a verb's options.",
    ]
    for group, verbs in VERBS.items():
        lines += ["", f"{group}:", *(f"  {name:10} {verb.text}" for name, verb in verbs.items())]
    return "\n".join(lines)


def loaded(name: str) -> tuple[argparse.ArgumentParser, Callable[..., Result]]:
    """The grammar of a verb, and the function that runs it; its module is loaded for both."""
    verb = _verb(name)
    module: Any = import_module(verb.module)
    parser = argparse.ArgumentParser(
        prog=f"l2 {name}", description=f"{verb.text[0].upper()}{verb.text[1:]}.", parents=[common()]
    )
    named = hasattr(module, f"{name}_command")
    getattr(module, f"{name}_arguments" if named else "arguments")(parser)
    run: Callable[[Settings, argparse.Namespace], Result] = getattr(
        module, f"{name}_command" if named else "command"
    )
    return parser, run


def _verb(name: str) -> Verb:
    known = {name: verb for verbs in VERBS.values() for name, verb in verbs.items()}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "`l2 --help` lists them"
        raise UsageError(f"no such verb; {hint}")
    return known[name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(overview())
        return 0 if given else 2
    name, *rest = given
    debug = "--debug" in rest
    before = {key: os.environ.get(key) for key in _EXPORTED}
    try:
        settle_home()
        _export(common().parse_known_args(rest)[0])
        with interruption.interruptible(name):
            parser, run = loaded(name)
            options = parser.parse_args(rest)
            settings = load()
            if not _verb(name).daemon:
                result = run(settings, options)
        interruption.check()  # once the thread that hears of signals has ended
        if _verb(name).daemon:
            result = run(settings, options)
    except BaseException as error:  # the boundary where an error becomes a line for a person
        if interruption.received() or isinstance(error, KeyboardInterrupt):
            print(f"l2 {name}: interrupted", file=sys.stderr)
            return interruption.STATUS
        if not isinstance(error, Exception):
            raise
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        ours = isinstance(error, L2Error | OSError) or no_space(error)
        if no_space(error):
            text += (
                f"; free space in {tempfile.gettempdir()} or in the lake's root and run it again"
            )
        hint = "" if ours or debug else f" ({type(error).__name__}; --debug shows where)"
        print(f"l2 {name}: {text}{hint}", file=sys.stderr)
        return error.exit_status if isinstance(error, L2Error) else 1
    finally:
        # Another call in this process starts from the environment that this one found.
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
    if options.json and result is not None:
        print(json.dumps(result, default=str))
    return int(result.get("status") or bool(result.get("failed"))) if result else 0


_EXPORTED: Final = ("L2_CONFIG", "L2_ROOT", "L2_SET")


def _export(options: argparse.Namespace) -> None:
    """Hand the command line down as environment, where every process of this run looks."""
    if options.config:
        if not Path(options.config).exists():
            raise SettingsError(f"--config {options.config}: no such settings file")
        os.environ["L2_CONFIG"] = str(Path(options.config).absolute())
    if options.set:
        os.environ["L2_SET"] = "\n".join(options.set)
    if options.root:
        os.environ["L2_ROOT"] = (
            options.root if "://" in options.root else str(Path(options.root).absolute())
        )


if __name__ == "__main__":
    sys.exit(main())
