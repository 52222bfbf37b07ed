"""The whole path on a synthetic market whose alpha is known, from nothing to live paper fills.

    days 1 to n-1   as bars, in the reduced form of the market
    day n           its last eight hours order by order, as a capture of frames, through ingest
    day n+1         its first minutes, fresh: the live worker replays them

All of it lies under one folder (default ``demo/``) with its own settings file, so that the pages
and every verb can be pointed at it afterwards. What stands is used again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.execution import study_partition
from assets.market_data import bars_of
from market.bars import COLUMNS
from market.compute import map_tasks
from market.console import Result, say, table
from market.features import FeatureEvaluator
from market.ingest import ingest
from market.lake import Lake
from market.settings import FEE_ROWS_BPS, Settings, load
from market.units import DAY_NS, day_start_ns, days_between, previous_day, utc_date
from models_registry.evaluation import rank_product
from models_registry.registry import OUT_OF_SAMPLE_FILE
from models_registry.validation import BIN_S, bin_sums, bootstrap, ratio
from proving.synthetic import (
    fingerprint,
    profile,
    write_frames,
    write_truth,
)

FIRST_DAY: Final = "2026-03-02"
#: The engine takes as long for eight hours of the last day as the other core does for the days before it.
ENGINE_FROM_S: Final = 16 * 3600
#: Live: twenty minutes of market in half a minute of wall time.
SPEED: Final = 40
LIVE_S: Final = 30

_SETTINGS: Final = """\
# The demo's lake: a synthetic market with a strong planted signal, judged without fees.
root = "{root}"
source = "synthetic"

[synthetic]
profile = "demo"
seed = 7

[model]
# No fee row of the venue pays for one-minute signals; the planted one is judged at zero.
fee_row = "zero"
# Acts where the expectation exceeds its error and the cost; the certified rule, which is the default, would
# abstain most of the time: no rate of false signals below 20 % can be had from so small an IC.
act = "expected_edge"

[execution]
# The router is the default. Without fees it takes at once: crossing a spread of one tick costs a hundredth
# of a basis point, less than the adverse selection of resting; at the venue's fees it is the other way round.
study_span_s = 10800
"""

TABLES: Final = ("bars", "features", "labels", "training_set")
_STUDY: Final = "execution_study"


def run(folder: str, days: int, quiet: bool = False) -> dict[str, Any]:
    """Everything, in order; returns the summary and prints it unless ``quiet``."""
    started = time.monotonic()
    if days < 2:
        raise ValueError(f"--days {days}: at least two, one straight as bars and one as frames")
    settings = _prepare(folder)
    lake = Lake(settings.root, settings.source)
    first = FIRST_DAY
    last = days_between(first, "2026-12-31")[days - 1]
    fresh = days_between(first, "2026-12-31")[days]

    say(f"synthetic market: {days} days of {' and '.join(settings.market.symbols)}")
    capture = _market(lake, settings, first, last, fresh)

    from orchestration import pipeline

    stands = all(
        lake.is_current(name, symbol, day)
        for name in TABLES
        for symbol in settings.market.symbols
        for day in days_between(first, last)
    )
    if stands:
        say("tables stand as this code would make them: training and promotion only")
    selection = ("model", "champion", "performance") if stands else None
    report = pipeline.run(settings, (), first, last, selection, without=(_STUDY,))
    _require(report)
    with _worker(folder, lake, fresh) as live:
        # Beside the worker, which trades for half a minute and hardly needs its core.
        if not stands:
            studied = pipeline.run(settings, (), first, last, (_STUDY,))
            _require(studied)
            report |= {"execution": studied["execution"]}
            report["checks"] += studied["checks"]
        traded = live()
    summary = {
        "source": settings.source,
        "capture": str(capture),
        "pipeline": report,
        "live": traded,
        "planted": _planted(lake, settings, report),
        "seconds": round(time.monotonic() - started),
    }
    if not quiet:
        print(_text(folder, summary, settings))
    return summary


def recovered(lake: Lake, settings: Settings, made: pa.Table) -> dict[str, float]:
    """Rank ICs of the alpha, of its best filter and of the pipeline over the same test seconds.

    ``made`` is the attempt's `OUT_OF_SAMPLE_FILE`; all three are the mean product of normal scores within a
    symbol and date. ``share`` is the pipeline's over the filter's, with its one-sided 95 % lower bound.
    """
    model = settings.model
    columns: list[list[Any]] = [[], [], [], []]
    t_ns, which = made["t_ns"].to_numpy(), made["symbol"].to_numpy()
    for index, symbol in enumerate(settings.market.symbols):
        for day in np.unique((t_ns - 1) // DAY_NS).tolist():
            own = np.flatnonzero((which == index) & ((t_ns - 1) // DAY_NS == day))
            date = utc_date(day * DAY_NS)
            truth = lake.read("truth", symbol, date, ["t_ns", "alpha", "filtered_alpha"])
            labels = lake.read("training_set", symbol, date, ["t_ns", f"y_{model.primary_s}"])
            label = labels[1].to_numpy()[np.searchsorted(labels["t_ns"].to_numpy(), t_ns[own])]
            at = np.searchsorted(truth["t_ns"].to_numpy(), t_ns[own])
            single = np.zeros(len(own), np.int8)
            columns[0].append(t_ns[own])
            columns[1].append(made["rank_product"].to_numpy()[own].astype(np.float64))
            for place, name in ((2, "filtered_alpha"), (3, "alpha")):
                columns[place].append(rank_product(single, truth[name].to_numpy()[at], label))
    times, ours, best, alpha = (np.concatenate(column) for column in columns)
    known = ~np.isnan(ours + best)
    sums = bin_sums(times[known], (ours[known], best[known]))
    drawn = bootstrap(
        sums,
        ratio,
        mean_block=model.bootstrap_block_s / BIN_S,
        samples=model.bootstrap_samples,
        seed=model.seed,
    )
    return {
        "alpha": float(np.nanmean(alpha)),
        "filter": float(best[known].mean()),
        "pipeline": float(ours[known].mean()),
        "share": float(ours[known].sum() / best[known].sum()),
        "share_lower": float(np.quantile(drawn, 0.05)),
    }


def _planted(lake: Lake, settings: Settings, report: dict[str, Any]) -> dict[str, float]:
    """`recovered` of the attempt that the pipeline reports; empty when it has no test seconds."""
    import mlflow

    from models_registry.store import registry_client

    with registry_client(settings) as client, TemporaryDirectory() as scratch:
        run_id = report["model"]["MLflow run"]
        run_id = client.get_run(run_id).data.tags.get("reuses", run_id)
        if OUT_OF_SAMPLE_FILE not in {file.path for file in client.list_artifacts(run_id)}:
            return {}
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=OUT_OF_SAMPLE_FILE, dst_path=scratch
        )
        return recovered(lake, settings, pq.read_table(path))


def _prepare(folder: str) -> Settings:
    root = Path(folder).absolute()
    root.mkdir(parents=True, exist_ok=True)
    file = root / "l2.toml"
    text = _SETTINGS.format(root=root)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    os.environ["L2_CONFIG"] = str(file)
    os.environ.pop("L2_ROOT", None)
    return load(file)


def _market(lake: Lake, settings: Settings, first: str, last: str, fresh: str) -> Path:
    """Generate what does not stand yet, a process per core; the capture of the last day.

    The bars asset would make the days that are straight as bars just the same. Made here they fill
    the other core while the capture, which is one stream, is written.
    """
    tasks: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        # First the long one, which compiles the engine; what needs the engine too comes when it has.
        (write_capture, (settings, last, ENGINE_FROM_S, 86_400)),
        *(
            (bars_of, (settings.root, settings, symbol, day))
            for day in days_between(first, previous_day(last))
            for symbol in settings.market.symbols
        ),
        (compile_ahead, (settings, last)),  # a minute in a fresh clone
        *(
            (add_truth, (settings, symbol, day))
            for day in days_between(first, last)
            for symbol in settings.market.symbols
        ),
        (write_capture, (settings, fresh, 0, LIVE_S * SPEED + 60)),
    ]
    say(f"{len(tasks)} pieces of market to make, {len(os.sched_getaffinity(0))} at a time")
    with ThreadPoolExecutor(1) as beside:
        loaded = beside.submit(import_module, "orchestration.definitions")  # and dbt's manifest
        map_tasks(
            _call, tasks, len(os.sched_getaffinity(0)), lambda _, done: say(done) if done else None
        )
        loaded.result()
    return Path(lake.captures(last)[0])


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """Run one piece; what there is to say of it."""
    begun = time.monotonic()
    result = function(*arguments)
    if function is bars_of:
        symbol, day = arguments[2:]
        result = f"{day} {symbol}: {result:,} bars"
    return f"{result} in {time.monotonic() - begun:.0f} s" if result else ""


def write_capture(settings: Settings, day: str, start_s: int, stop_s: int) -> str:
    """A date's capture of all symbols, unless the one of this seed and code stands."""
    lake = Lake(settings.root, settings.source)
    law, seed, symbols = (
        profile(settings.synthetic.profile),
        settings.synthetic.seed,
        settings.market.symbols,
    )
    made_from = " ".join(fingerprint(law, seed, name, day, start_s, stop_s) for name in symbols)
    note = Path(lake.frames_dir(day)) / "made-from"
    if note.exists() and note.read_text() == made_from and lake.captures(day):
        return f"{day}: the capture stands"
    for old in lake.captures(day):
        Path(old).unlink()
    path = Path(write_frames(lake, law, seed, symbols, day, start_s, stop_s))
    lake.put(str(note), made_from.encode())
    return f"{day}: {path.stat().st_size / 1e6:.0f} MB of frames"


def compile_ahead(settings: Settings, day: str) -> str:
    """Compile what the later steps run, on two minutes of market in a lake that is thrown away.

    Compiled code is kept on disk, so it does its work here, while a core is free, and once: steps that
    use both cores would compile it twice.
    """
    lake, symbols = Lake(settings.root, settings.source), settings.market.symbols
    keys = [(symbol, day) for symbol in symbols]
    if all(lake.is_current("events", *key) for key in keys):
        return ""
    with TemporaryDirectory() as folder:
        own = msgspec.structs.replace(settings, root=folder)
        lake = Lake(folder, own.source)
        law, seed = profile(own.synthetic.profile), own.synthetic.seed
        write_frames(lake, law, seed, symbols, day, 0, 120)
        ingest(lake, lake.captures(day), keys, own)
        evaluator = FeatureEvaluator(symbols)
        for symbol, _ in keys:
            bars_of(folder, own, symbol, day)
            study_partition(folder, own, symbol, day)
            evaluator.push(symbol, day_start_ns(day), np.full(len(COLUMNS), np.nan))
            evaluator.evaluate(symbol)
    return "compiled"


def add_truth(settings: Settings, symbol: str, day: str) -> str:
    """What was planted, beside the data."""
    lake = Lake(settings.root, settings.source)
    if not lake.is_current("truth", symbol, day):
        write_truth(lake, profile(settings.synthetic.profile), settings.synthetic.seed, symbol, day)
    return ""


def _require(report: dict[str, Any]) -> None:
    if report["failed"]:
        from orchestration import pipeline

        print(pipeline.report_text(report), file=sys.stderr)
        raise RuntimeError(
            f"the pipeline failed at {', '.join(report['failed_steps']) or 'a check'}"
        )


@contextmanager
def _worker(folder: str, lake: Lake, fresh: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """The worker as people run it, in its own process, on data that the model has not seen.

    Yields what waits for its end and returns what it printed; an error here ends the worker too.
    """
    command = [
        sys.executable, "-m", "orchestration.cli", "live", "--venue", "paper", "--json",
        "--frames", *lake.captures(fresh), "--speed", str(SPEED), "--for", str(LIVE_S),
    ]  # fmt: skip
    say(f"live worker: paper venue, {LIVE_S} s at {SPEED}x, warmed up from {previous_day(fresh)}")
    log = Path(folder) / "live.log"

    def wait() -> dict[str, Any]:
        printed, _ = process.communicate()
        if process.returncode != 0:
            last = log.read_text().splitlines()[-1:]
            raise RuntimeError(f"the live worker failed: {' '.join(last)} (all it said: {log})")
        result: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return result

    with (
        log.open("wb") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        try:
            yield wait
        finally:
            process.terminate()  # does nothing to one that has ended


def _text(folder: str, summary: dict[str, Any], settings: Settings) -> str:
    from orchestration.pipeline import outcomes

    report, live = summary["pipeline"], summary["live"]
    metrics = report["metrics"]
    primary = f"{settings.model.primary_s}s"
    planted = summary["planted"]
    fee_row = settings.model.fee_row

    def figure(name: str, digits: int = 3) -> str:
        value = metrics.get(name)
        return "none" if value is None else f"{value:,.{digits}f}"

    def bps(value: float | None) -> str:
        return "none" if value is None else f"{value:.3f} bps"

    rows = [
        ("market", f"{report['source']}, {report['dates'][0]} to {report['dates'][1]}, seed "
                   f"{settings.synthetic.seed}"),
        ("ingested", f"{sum(report['frames'].values()):,} frames, {report['events']:,} events, "
                     f"{report['quarantined']} quarantined"),
        ("bars", ", ".join(f"{n:,} {symbol}" for symbol, n in report["bars"].items())),
        ("data checks", outcomes(report["checks"])),
        ("rank IC", f"{figure('ic_mean')} at {primary} over {figure('blocks', 0)} days, always-valid lower "
                    f"bound {figure('ic_lower')} (n_eff {figure('n_eff', 0)})"),
        *(
            [("planted", f"on the same seconds the best filter of flow and prices has {planted['filter']:.3f} "
                         f"and the alpha itself {planted['alpha']:.3f}; recovered of the filter's "
                         f"{planted['share']:.0%}, at least {planted['share_lower']:.0%}")]
            if planted else []
        ),
        *(
            (f"net, fees {row}", f"{figure(f'{row}.net_bps')} bps a trade, lower bound "
                                 f"{figure(f'{row}.net_lower_bps')}, {figure(f'{row}.trades', 0)} trades")
            for row in FEE_ROWS_BPS
        ),
        ("gate", f"{report['verdict']} at fees {fee_row}; champion: {report['champion']}"),
        ("live, paper", f"{live['decisions']:,} decisions, {live['parents']} parents, "
                        f"{live['orders']} orders, {live['fills']} fills"),
        ("all-in cost", f"{bps(live['all_in_cost_bps'])} of shortfall a parent, fees {fee_row}"),
        ("profit", f"{live['net_pnl_usdt']:,.2f} USDT net on {live['filled_usdt']:,.0f} traded"),
        ("took", f"{summary['seconds']} s"),
    ]  # fmt: skip
    l2 = os.path.relpath(Path(sys.executable).parent / "l2")
    config = f"--config {os.path.relpath(Path(folder) / 'l2.toml')}"
    where = os.path.relpath(folder)
    return "\n".join(
        [
            "",
            table(rows),
            "",
            "Look at it:",
            table(
                [
                    ("Dagster and MLflow", f"{l2} ui {config}"),
                    ("tables", f'{l2} sql {config} "select * from features limit 5"'),
                    ("what orders cost", f"{l2} tca {config} --html {where}/costs.html"),
                    (
                        "data quality",
                        f"{where}/quality/gx/uncommitted/data_docs/local_site/index.html",
                    ),
                    ("settings", f"{where}/l2.toml"),
                    ("worker's log", f"{where}/live.log"),
                ]
            ),
        ]
    )


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 demo`."""
    parser.add_argument("--days", type=int, default=8, help="days of market (8 give 5 test blocks)")


def command(_: Settings, options: argparse.Namespace) -> Result:
    """`l2 demo`: everything under one folder, by default demo/."""
    return run(options.root or "demo", options.days, quiet=options.json)
