"""One run of the whole graph over a range of dates, and what it amounts to as plain data."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import dagster as dg

from assets.dbt import NOT_RUN
from assets.isolation import FAILED, WITHOUT_DATA, by_reason
from market import compute, interruption
from market.console import Result, say, table
from market.intake import TakenIn, take_in, upload
from market.lake import Lake, LakeError
from market.settings import Settings
from models_registry import state
from orchestration.automation import range_tags
from orchestration.ui import dagster_instance

#: Tags of a run: the process that it lives in, and the machine of that.
_PROCESS: Final = "l2/process"
_MACHINE: Final = "l2/machine"


def run(
    settings: Settings,
    frames: Sequence[str] = (),
    first: str | None = None,
    last: str | None = None,
    selection: Sequence[str] | None = None,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Take captures in, materialise the graph over their dates, and report.

    ``frames`` are capture files to adopt; their dates are the range unless ``first`` and ``last``
    say otherwise. ``selection`` names assets (default: all), of which those ``without`` are left out. The
    report has ``failed`` set when a step failed, a blocking check stopped the run, or a partition or file
    that holds data was left out; dates without data are only named. LakeError when there is nothing to
    run on.
    """
    compute.check(settings)
    state.check(settings)
    lake = Lake(settings.root, settings.source)
    lake.store.require_writable()
    upload(lake, say)
    taken = take_in(lake, frames, settings.market.book_depth, say)
    first, last, symbols = _range(lake, settings, taken, first, last)
    say(f"{', '.join(symbols)} from {first} to {last} into {settings.root}")
    from orchestration.definitions import defs  # after settings are exported: partitions need them

    job = defs.resolve_job_def("pipeline")
    chosen = [dg.AssetKey(name) for name in selection or ()]
    if without:
        keys = chosen or defs.resolve_asset_graph().materializable_asset_keys
        chosen = [key for key in keys if key.to_user_string() not in without]
    instance, run_id = dagster_instance(settings), str(uuid4())
    _cancel_killed(instance)
    with interruption.on_interrupt(
        at_signal=lambda: instance.report_run_canceling(_run(instance, run_id)),
        at_kill=lambda: instance.report_run_canceled(_run(instance, run_id)),
    ):
        result = job.execute_in_process(
            run_id=run_id,
            instance=instance,
            tags=range_tags(first, last, symbols)
            | {_PROCESS: str(os.getpid()), _MACHINE: os.uname().nodename},
            # without a mention dagster falls back to its own, wordy console
            run_config={"loggers": {"console": {}}},
            asset_selection=chosen or None,
            raise_on_error=False,
        )
        interruption.check()
    return report(lake, symbols, first, last, result, taken.unread)


def _run(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    found = instance.get_run_by_id(run_id)
    assert found is not None
    return found


def _cancel_killed(instance: dg.DagsterInstance) -> None:
    """Close the runs of this machine's processes that are gone, which the pages would show as running for ever."""
    active = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    for run in instance.get_runs(active):
        process, machine = run.tags.get(_PROCESS), run.tags.get(_MACHINE)
        if process and machine == os.uname().nodename and not Path(f"/proc/{process}").exists():
            instance.report_run_canceled(run, "its process was killed")


def _range(
    lake: Lake,
    settings: Settings,
    taken: TakenIn,
    first: str | None,
    last: str | None,
) -> tuple[str, str, tuple[str, ...]]:
    """Dates and symbols of a run; the symbols keep the settings' order, as partitions do."""
    if taken.keys:
        dates = sorted({day for _, day in taken.keys})
        first, last = first or dates[0], last or dates[-1]
        named = {symbol for symbol, _ in taken.keys}
        symbols = tuple(symbol for symbol in settings.market.recorded if symbol in named)
        if not symbols:
            raise LakeError(
                f"the captures hold {', '.join(sorted(named))}, none of which is among "
                f"the settings' symbols {', '.join(settings.market.recorded)}"
            )
        return first, last, symbols
    dates = [*lake.capture_dates(), *(day for _, day in lake.archives())]
    dates = dates or [day for _, day in lake.partitions("bars")]
    if not (dates or (first and last)):
        raise LakeError(
            f"{settings.root}: no captures to run on; give --frames FILE or --from/--to"
        )
    return first or min(dates), last or max(dates), settings.market.recorded


def report(
    lake: Lake,
    symbols: Sequence[str],
    first: str,
    last: str,
    result: dg.ExecuteInProcessResult,
    unread: Mapping[str, str],
) -> dict[str, Any]:
    """What a run left behind: counts from the lake, checks and verdict from the run's events."""
    counts = _counts(lake, symbols, first, last)
    metadata = _materialised(result)
    failed, without_data = _left_out(result)
    model = metadata.get("model", {})
    checks = _checks(result)
    failed_steps = [event.step_key for event in result.all_events if event.is_step_failure]
    return {
        "source": lake.source,
        "dates": [first, last],
        "symbols": list(symbols),
        **counts,
        "checks": checks,
        "verdict": model.get("verdict", "none"),
        "reasons": model.get("reasons", []),
        "model": {
            key: model[key] for key in ("registered model", "version", "MLflow run") if key in model
        },
        "metrics": {key: value for key, value in model.items() if isinstance(value, int | float)},
        "champion": metadata.get("champion", {}).get("champion", "none"),
        "execution": metadata.get("execution_study", {}).get("cost by algorithm", []),
        "run_id": result.run_id,
        "failed_steps": failed_steps,
        "without_data": without_data,
        "failed_partitions": failed,
        "unread": dict(unread),
        "failed": bool(not result.success or failed or unread),
    }


def _left_out(result: dg.ExecuteInProcessResult) -> tuple[dict[str, str], dict[str, str]]:
    """Step and reason by "DATE SYMBOL", of partitions that failed and of those without data."""
    steps: list[tuple[str, Mapping[str, Any]]] = [
        (event.materialization.asset_key.to_user_string(), event.materialization.metadata)
        for event in result.get_asset_materialization_events()
    ]
    steps += [(check.check_name, check.metadata) for check in result.get_asset_check_evaluations()]
    failed: dict[str, str] = {}
    lacking: dict[str, str] = {}
    for step, metadata in steps:  # as they ran: the first to leave a partition out says why
        for title, found in ((FAILED, failed), (WITHOUT_DATA, lacking)):
            if title in metadata:
                for key, reason in metadata[title].value.items():
                    found.setdefault(key, f"{step}: {reason}")
    return failed, {key: reason for key, reason in lacking.items() if key not in failed}


def _counts(lake: Lake, symbols: Sequence[str], first: str, last: str) -> dict[str, Any]:
    connection = lake.connect(("ingests", "bars", "features", "quarantine"))
    views = {row[0] for row in connection.execute("show tables").fetchall()}
    where = f"date between '{first}' and '{last}'"

    def query(view: str, sql: str) -> list[tuple[Any, ...]]:
        return connection.execute(sql).fetchall() if view in views else []

    def by_symbol(view: str) -> dict[str, int]:
        rows = query(
            view, f"select symbol, count(*) from {view} where {where} group by 1 order by 1"
        )
        return {symbol: rows_ for symbol, rows_ in rows if symbol in symbols}

    totals = query(
        "ingests",
        # rows without a dot count what no topic brought: books restated at midnight, for one
        f"select topic, sum(frames)::bigint from ingests where {where} and contains(topic, '.') "
        "group by 1 order by 1",
    )
    events = query("ingests", f"select sum(events)::bigint from ingests where {where}")
    rejected = query("quarantine", f"select count(*) from quarantine where {where}")
    return {
        "frames": dict(totals),
        "events": events[0][0] or 0 if events else 0,
        "quarantined": rejected[0][0] if rejected else 0,
        "bars": by_symbol("bars"),
        "feature_rows": by_symbol("features"),
    }


def _materialised(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """Asset name -> metadata as plain values, of everything that this run materialised."""
    found: dict[str, dict[str, Any]] = {}
    for event in result.get_asset_materialization_events():
        materialization = event.materialization
        name = materialization.asset_key.to_user_string()
        found[name] = {key: item.value for key, item in materialization.metadata.items()}
    return found


def _checks(result: dg.ExecuteInProcessResult) -> list[dict[str, Any]]:
    evaluations = result.get_asset_check_evaluations()
    return [
        {
            "asset": evaluation.asset_key.to_user_string(),
            "check": evaluation.check_name,
            "passed": evaluation.passed,
            "severity": evaluation.severity.value,
            **{
                name: evaluation.metadata[name].value
                for name in ("breaches", NOT_RUN)
                if name in evaluation.metadata
            },
        }
        for evaluation in evaluations
    ]


def outcomes(checks: Sequence[dict[str, Any]]) -> str:
    """How many checks passed, warned, failed and were not run (and why), in words."""
    counts = Counter(
        NOT_RUN
        if NOT_RUN in check
        else "passed"
        if check["passed"]
        else "failed"
        if check["severity"] == "ERROR"
        else "warned"
        for check in checks
    )
    unasked: dict[str, set[str]] = {}
    for check in checks:
        if NOT_RUN in check:
            unasked.setdefault(check[NOT_RUN], set()).add(check["asset"])
    why = "; ".join(f"{', '.join(sorted(of))}: {reason}" for reason, of in unasked.items())
    return ", ".join(
        f"{counts[outcome]} {outcome}{f' ({why})' if outcome == NOT_RUN else ''}"
        for outcome in ("passed", "warned", "failed", NOT_RUN)
        if counts[outcome] or outcome == "passed"
    )


def report_text(found: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        table(
            [
                ("dates", " to ".join(found["dates"])),
                ("source", found["source"]),
                *((f"frames {topic}", f"{count:,}") for topic, count in found["frames"].items()),
                ("events", f"{found['events']:,}"),
                ("quarantined", f"{found['quarantined']:,}"),
                *((f"bars {symbol}", f"{rows:,}") for symbol, rows in found["bars"].items()),
                *(
                    (f"feature rows {symbol}", f"{n:,}")
                    for symbol, n in found["feature_rows"].items()
                ),
                ("checks", outcomes(found["checks"])),
                ("verdict", found["verdict"]),
                ("champion", found["champion"]),
            ]
        )
    ]
    lines += [f"  {'; '.join(found['reasons'])}"] if found["reasons"] else []
    for check in found["checks"]:
        if not check["passed"]:
            word = "failed" if check["severity"] == "ERROR" else "warning"
            lines.append(f"  {word}: {check['asset']}.{check['check']}")
            lines += [f"    {breach}" for breach in check.get("breaches", [])]
    if found["execution"]:
        lines += ["", "What orders would have cost:", ""]
        heads = list(found["execution"][0])
        lines.append(table([[row[h] for h in heads] for row in found["execution"]], heads))
    lines += [f"WARN no data: {line}" for line in by_reason(found["without_data"])]
    lines += [f"FAILED: {line}" for line in by_reason(found["failed_partitions"])]
    lines += [f"FAILED file {path}: {reason}" for path, reason in found["unread"].items()]
    if found["failed"] and not (found["failed_partitions"] or found["unread"]):
        lines.append(f"FAILED at {', '.join(found['failed_steps']) or 'a blocking check'}")
    elif found["failed_steps"]:
        lines.append(f"FAILED at {', '.join(found['failed_steps'])}")
    return "\n".join(lines)


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 pipeline`."""
    parser.add_argument(
        "--frames", nargs="+", default=[], metavar="FILE", help="captures to take in"
    )
    parser.add_argument("--from", dest="first", metavar="YYYY-MM-DD", help="first date")
    parser.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="last date")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 pipeline`: the whole graph over captures or dates."""
    result = run(settings, options.frames, options.first, options.last)
    if not options.json:
        print(report_text(result))
    return result
