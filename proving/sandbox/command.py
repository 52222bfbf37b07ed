"""The verb `l2 sandbox`: what it does is said before the exchange is loaded, which takes seconds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from market.console import Result, names, say, utc_time
from market.errors import UsageError
from market.settings import Settings
from market.units import day_start_ns


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 sandbox`."""
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    parser.add_argument("--seed", type=int, default=1, help="of the market, keys and ids")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated time to the clock's")
    parser.add_argument(
        "--date", metavar="YYYY-MM-DD", help="begin at its midnight (default: at the present time)"
    )
    parser.add_argument("--profile", metavar="NAME", default="default", help="of the market")
    parser.add_argument("--symbols", metavar="A,B", help="default: BTCUSDT")
    parser.add_argument("--accounts", type=int, default=2, metavar="N", help="funded clients")
    parser.add_argument(
        "--demo", action="store_true", help="as for demo accounts: REST and private stream only"
    )
    parser.add_argument("--no-rate-limit", action="store_true", help="answer every request")
    parser.add_argument(
        "--faults", default="", metavar="KIND=N,…", help="so many a simulated minute, all=N for all"
    )
    parser.add_argument(
        "--fault-log", type=Path, metavar="FILE", help="what went wrong, when, to whom"
    )


def command(_: Settings, options: argparse.Namespace) -> Result:
    """`l2 sandbox`: serve until SIGTERM or SIGINT; the first line says where and with which keys."""
    symbols = names(options.symbols) or ("BTCUSDT",)
    try:
        begins_ns = None if options.date is None else day_start_ns(options.date)
    except ValueError as error:
        raise UsageError(f"--date {options.date}: expected a date as YYYY-MM-DD") from error
    say("loading the exchange")
    from proving.sandbox.faults import rates_of
    from proving.sandbox.server import Sandbox, run

    say(
        f"building the market of {', '.join(symbols)}; where its code is not compiled yet, that comes "
        "first, once: 15 to 30 s"
    )
    sandbox = Sandbox(
        options.seed,
        speed=options.speed,
        profile_name=options.profile,
        symbols=symbols,
        begins_ns=begins_ns,
        clients=options.accounts,
        limited=not options.no_rate_limit,
        demo=options.demo,
        fault_rates=rates_of(options.faults),
        fault_log=options.fault_log,
    )

    def ready(description: dict[str, Any]) -> None:
        print(json.dumps(description), flush=True)
        at = utc_time(sandbox.exchange.now_ns)
        say(
            f"serving at {description['rest']}; the market stands at {at} and runs {options.speed:g} x"
        )

    run(sandbox, options.port, ready)
    return None
