"""`l2 study`: cost of the algorithms over recordings, and over synthetic days in the matching engine.

Recordings are minutes long: their results illustrate, under both bounds of the queue. Synthetic days
judge the goals (`proving.study.command`).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from execution.algorithms import ALGORITHMS
from execution.study import StudyError, StudyReport, known, study
from market.console import Result, Say, names, say, seeds
from market.events import Events
from market.settings import Settings
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from market.wire.survey import instruments_of
from orchestration import report_page
from orchestration.capture_events import require_captures
from orchestration.study import study_report

#: Queue models of a recording: the pessimistic bound, which decides, and the optimistic one.
QUEUES: Final = ("risk_averse", "power3")
#: Recordings: deadline, rounds of parents shifted against each other, and sizes.
RECORDED_DEADLINE_S: Final = 60.0
RECORDED_ROUNDS: Final = 12
RECORDED_USDT: Final = (10_000.0, 50_000.0)


def recorded(
    settings: Settings,
    path: Path,
    names: Sequence[str],
    sizes_usdt: Sequence[float],
    say: Say,
    rounds: int = RECORDED_ROUNDS,
) -> StudyReport:
    """The study over one capture, all its symbols, under both bounds of the queue.

    ``names`` are algorithms; ``rounds`` of parents are shifted against each other
    (`execution.study.study`). Raises StudyError, DataError for a missing capture.
    """
    require_captures([str(path)])
    symbols, depth = settings.market.symbols, settings.market.book_depth
    instruments = instruments_of([str(path)], symbols, depth)
    decoder = Decoder(instruments, depth, symbols, follow=False)
    parts: dict[str, list[Events]] = {}
    for block in read_blocks(path):
        for symbol, events in decoder.decode_block(block).events.items():
            parts.setdefault(symbol, []).append(events)
    report = study(
        parts,
        instruments,
        settings,
        algorithms=sorted(known(names), key=lambda name: name != "market"),
        every_s=RECORDED_DEADLINE_S + 12,
        sizes_usdt=sizes_usdt,
        deadline_s=RECORDED_DEADLINE_S,
        queues=QUEUES,
        rounds=rounds,
    )
    say(f"{path.name}: {len(report.rows):,} parents, {report.cut} cut by its end")
    return report


def recorded_data(name: str, report: StudyReport) -> dict[str, Any]:
    """Summaries of a recording and differences from market orders, as plain data without NaN."""
    data = {
        "recording": name,
        "parents": len(report.rows),
        "cut": report.cut,
        "skipped": report.skipped,
        "summaries": [each for each in report.summaries if each.side == 0],
        "differences": [
            {
                "symbol": symbol,
                "size_usdt": size,
                "algorithm": algorithm,
                "queue": queue,
                **msgspec.to_builtins(difference),
            }
            for (symbol, size, algorithm, queue), difference in report.differences.items()
        ],
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(data))  # NaN becomes null
    return plain


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 study`."""
    parser.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="captures to study")
    parser.add_argument(
        "--algorithms", metavar="A,B", help="default: all; A@0.5: at that urgency (synthetic days)"
    )
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help=f"{report_page.HELP}; a name in .md: Markdown",
    )
    engine = parser.add_argument_group("--synthetic: days of the synthetic market, in its engine")
    engine.add_argument("--synthetic", action="store_true", help="study synthetic days")
    engine.add_argument(
        "--seeds", metavar="N,M-K", help="default: --days of them from --first-seed"
    )
    engine.add_argument(
        "--days", type=int, default=20, metavar="N", help="one a seed (default: 20)"
    )
    engine.add_argument("--first-seed", type=int, default=1, metavar="N")
    engine.add_argument(
        "--every", type=int, default=1500, metavar="S", help="seconds between instants of a day"
    )
    engine.add_argument("--profile", default="default", metavar="P", help="default: default")
    engine.add_argument("--symbols", metavar="A,B", help="default: BTCUSDT")
    engine.add_argument("--workers", type=int, default=2, metavar="N", help="days at a time")
    engine.add_argument(
        "--results",
        metavar="DIR",
        help="folder of finished days, to resume from (default: study in the lake)",
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 study`: synthetic days, recordings, or both."""
    if not options.frames and not options.synthetic:
        raise StudyError("nothing to study: ask for --synthetic, or name captures with --frames")
    legacy = settings.desk.profile == "legacy"
    algorithms = names(options.algorithms, "--algorithms") or (
        (settings.execution.algorithm,) if legacy else tuple(ALGORITHMS)
    )
    own_usdt = settings.execution.capital_usdt * settings.execution.size_share
    sizes_usdt = (own_usdt,) if legacy else RECORDED_USDT
    result: dict[str, Any] = {}
    parts: list[str] = []
    if options.synthetic:
        from proving.study import command as engine

        result["synthetic"], text = engine.run(
            settings,
            names=algorithms,
            profile=options.profile,
            seeds=seeds(options.seeds)
            or range(options.first_seed, options.first_seed + options.days),
            every_s=options.every,
            symbols=names(options.symbols) or ("BTCUSDT",),
            folder=Path(options.results or settings.home / "study"),
            workers=options.workers,
            say=say,
        )
        parts.append(text)
    for name in options.frames:
        report = recorded(settings, Path(name), algorithms, sizes_usdt, say)
        result.setdefault("recordings", []).append(recorded_data(Path(name).name, report))
        parts.append(f"{Path(name).name}\n{report.text()}")
    if (page := report_page.place(settings, options.html, "study")) is not None:
        study_report.write(result, Path(page), shlex.join(["l2", *sys.argv[1:]]))
        report_page.publish(Path(page), settings)
    if not options.json:
        print("\n\n".join(parts))
    return result
