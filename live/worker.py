"""The worker: one process that decides every second and trades, all of it recorded.

    feed ─► shell (live.shell): stamp ─► log ─► core (live.core) ─► requests ─► venue
              └─► own capture, decisions        └─► records: the journal's tables

`live.run` puts a run together; here is the verb `l2 live`. Decisions and orders are a function of what
is in the log, so that `--again` repeats them bit for bit. At midnight UTC the own capture starts a new
file with checkpoints of books and tickers, from which the bars of the date start too; so live and batch
agree on every date.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from live.collect import collect
from live.feed import ReplayFeed, WireFeed
from live.loopback import exchange
from live.run import Run, StoppedError, followed
from market.console import Result
from market.errors import UsageError
from market.settings import Settings
from models_registry.manifest import LEGACY


def run(
    settings: Settings,
    *,
    frames: Sequence[str] = (),
    speed: float = 1.0,
    warm_up_s: float = 0.0,
    duration_s: float | None = None,
    url: str | None = None,
    flatten: bool = True,
) -> dict[str, Any]:
    """Run a worker over captures (``frames``), a public stream (``url``) or a venue until its end.

    It ends with its captures, after ``duration_s`` seconds, or at SIGTERM or SIGINT; open orders are
    then cancelled and, with ``flatten``, positions closed. Returns `Run.summary`. Raises UsageError,
    NoChampionError, BundleError, VenueError, LogError or LakeError.
    """
    with Run(settings, frames, url) as one:
        if one.public is None:
            feed: ReplayFeed | WireFeed = ReplayFeed(
                frames, speed=speed, warm_up_s=warm_up_s, duration_s=duration_s
            )
            duration_s = None
        else:
            feed = one.wire(one.public)
        summary = one.trade(feed, flatten, duration_s)
    state = settings.home / "live" / settings.live.venue
    return summary | {"collected": collect(one.lake, state, settings.live.venue)}


def summary_text(summary: Mapping[str, Any]) -> str:
    """`Worker.summary` as a table."""

    def number(value: float | None, unit: str, digits: int = 2) -> str:
        return "none" if value is None else f"{value:,.{digits}f} {unit}"

    parts = summary["cost_parts_bps"]
    latency = summary["latency_us"]
    share = summary["maker_share"]
    rows = [
        ("run", f"{summary['run']}, {summary['model']}, fees of {summary['fee_row']}"),
        ("market", f"{summary['frames']:,} frames, {summary['events']:,} events, "
                   f"{summary['gaps']} gaps, {summary['rejected']} rejected"),
        ("decisions", f"{summary['decisions']:,}, {summary['warm_decisions']:,} of them warm"),
        ("signals", ", ".join(f"{n:,} {symbol}" for symbol, n in summary["signals"].items())),
        ("orders", f"{summary['parents']} parents, {summary['orders']} orders, "
                   f"{summary['fills']} fills, maker {'none' if share is None else f'{share:.1%}'}"),
        ("all-in cost", f"{number(summary['all_in_cost_bps'], 'bps')} = "
                        + " + ".join(f"{name.removesuffix('_bps')} {number(value, '').strip()}"
                                     for name, value in parts.items())),
        ("profit", f"gross {number(summary['gross_pnl_usdt'], 'USDT')}, "
                   f"net {number(summary['net_pnl_usdt'], 'USDT')}"),
        ("latency", f"p50 {latency['p50']:,.0f} us, p99 {latency['p99']:,.0f} us, "
                    f"p99.9 {latency['p99.9']:,.0f} us over {latency['n']:,} seconds"),
        ("captures", ", ".join(summary["captures"]) or "none"),
    ]  # fmt: skip
    return "\n".join(f"{name:<12} {value}" for name, value in rows)


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 live`."""
    parser.add_argument(
        "--venue",
        choices=["paper", "sandbox", "testnet", "demo", "live"],
        help="default: live.venue of the settings, paper",
    )
    parser.add_argument(
        "--frames", nargs="+", default=[], metavar="FILE", help="replay these captures, on paper"
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help="public WebSocket to follow on paper; of a sandbox its rest address",
    )
    parser.add_argument("--speed", type=float, default=1.0, help="of a replay or a started sandbox")
    parser.add_argument(
        "--warm-up",
        type=float,
        default=0.0,
        metavar="S",
        help="replay this much at full speed first",
    )
    parser.add_argument(
        "--for", dest="duration", type=float, metavar="S", help="stop after this long"
    )
    parser.add_argument(
        "--no-resolver", action="store_true", help="another process keeps the champion's bundle"
    )
    parser.add_argument("--keep-position", action="store_true", help="do not flatten at the end")
    parser.add_argument(
        "--again",
        metavar="LOG",
        help="replay the last run of a log folder and compare every effect",
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 live`: trade with the champion until the market or the time ends."""
    if options.again:
        from live.replay import replay_last

        return replay_last(Path(options.again), options.json)
    venue = options.venue or settings.live.venue
    live = msgspec.structs.replace(settings.live, venue=venue)
    settings = msgspec.structs.replace(settings, live=live)
    if venue == "paper" and bool(options.frames) == bool(options.url):
        raise UsageError(
            "say where the market comes from: --frames FILE…, --url WS or --venue NAME"
        )
    if venue != "paper" and options.frames:
        raise UsageError(f"--frames: captures are replayed on paper, not at the venue {venue}")
    with ExitStack() as stack:
        if venue == "sandbox":
            symbols = followed(settings.market)
            served = exchange(settings, options.url, options.speed, symbols)
            settings = stack.enter_context(served)
        if not options.no_resolver:
            stack.enter_context(_resolver(settings))
        result = run(
            settings,
            frames=options.frames,
            url=options.url if venue == "paper" else None,
            speed=options.speed,
            warm_up_s=options.warm_up,
            duration_s=options.duration,
            flatten=not options.keep_position,
        )
    if not options.json:
        print(summary_text(result))
    if held := result["held"]:
        print(
            f"l2 live: stopped while held ({', '.join(held)}); see docs/runbook.md", file=sys.stderr
        )
        result["status"] = StoppedError.exit_status
    return result


@contextmanager
def _resolver(settings: Settings) -> Iterator[None]:
    """The resolver as a child process, which copies a promoted version to a local bundle; none for the
    frozen model.

    A process of its own, so that the worker never loads MLflow; if it dies, the worker keeps its
    champion, and if the worker is killed, it ends.
    """
    if settings.desk.model == LEGACY:
        yield
        return
    options = ("--every", str(settings.live.resolve_every_s), "--parent", str(os.getpid()))
    command = [sys.executable, "-m", "models_registry.resolver", *options]
    # stdout is reserved for the result, so the resolver writes to stderr
    process = subprocess.Popen(command, stdout=2)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            # A library being imported may block the signal; a kill leaves no partial file.
            process.kill()
            process.wait()
