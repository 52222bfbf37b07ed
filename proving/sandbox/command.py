"""The verb `l2 sandbox`: what it does is said before the exchange is loaded, which takes seconds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from market.console import Result, names, say, utc_time
from market.errors import UsageError
from market.settings import Settings
from market.units import day_start_ns

MAX_PAST_S: Final = 7200
#: Median latency of a request from its answer to the market: recorded orders show two to three ms.
LATENCY_MS: Final = 2.0


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
    parser.add_argument(
        "--past",
        type=int,
        default=0,
        metavar="SECONDS",
        help="of the market before clients come, kept",
    )
    parser.add_argument(
        "--latency",
        type=float,
        default=LATENCY_MS,
        metavar="MS",
        help="of requests to the market, the median",
    )
    parser.add_argument(
        "--states", default="", metavar="A,B", help="of accounts: read_only, hedge and others"
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
    if not 0 <= options.latency <= 10_000:
        raise UsageError(f"--latency {options.latency:g}: expected 0 to 10000 ms")
    if not 0 <= options.past <= MAX_PAST_S:
        raise UsageError(f"--past {options.past}: expected 0 to {MAX_PAST_S} seconds")
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
        past_s=options.past,
        latency_ms=options.latency,
        states=options.states,
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
