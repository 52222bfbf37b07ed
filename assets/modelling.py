"""Model assets: performance of the champion and its decay check, training, gate, promotion."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.platform import OWNERS, PARTITIONS, Platform, keys_of
from market.pages import DATA_DOCS, REPORTS, Pages
from market.settings import Settings


def git_sha() -> str:
    """The current commit, with ``+`` when the work tree is dirty; "unknown" outside git or without it."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
            )
        except OSError:  # an image without git
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    sha = git("rev-parse", "HEAD")
    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return f"{sha[:12]}{'+' if changed else ''}" if sha else "unknown"


@dg.asset(
    deps=["training_set"],
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="models",
    owners=OWNERS,
    kinds={"lightgbm", "parquet"},
)
def performance(
    context: dg.AssetExecutionContext, platform: Platform
) -> dg.MaterializeResult[None]:
    """Out-of-sample performance of the champion by date and horizon: IC, hit rate, edge."""
    from models_registry.decay import score_days

    scored = score_days(platform.lake(), platform.settings(), keys_of(context.partition_keys))
    context.log.info(scored.summary)
    return dg.MaterializeResult(
        metadata={"summary": scored.summary, "partitions scored": scored.partitions}
    )


# Blocking, so that training and promotion wait for it; its severity stops neither.
@dg.asset_check(asset=performance, blocking=True, additional_deps=["served"])
def decay(context: dg.AssetCheckExecutionContext, platform: Platform) -> dg.AssetCheckResult:
    """CUSUM on the champion's live IC: fails when the IC decays.

    A failure does not block; it requests a retrain (`orchestration.automation`).
    """
    from models_registry.monitoring import check

    report = check(platform.lake(), platform.settings())
    context.log.info(report.summary)
    return dg.AssetCheckResult(
        passed=not report.failed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"summary": report.summary, **_plain(report.figures)},
    )


@dg.asset(
    deps=["training_set", performance],
    group_name="models",
    owners=OWNERS,
    kinds={"lightgbm", "optuna", "mlflow"},
    automation_condition=(
        dg.AutomationCondition.any_deps_match(
            dg.AutomationCondition.any_checks_match(dg.AutomationCondition.check_failed())
        )
        .allow(dg.AssetSelection.assets(performance))
        .newly_true()
        & ~dg.AutomationCondition.in_progress()
    ),
)
def model(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[None]:
    """A training attempt on the whole training set: walk-forward, gate, MLflow run and version.

    Succeeds whatever the verdict; `not_enough_data` registers no version. Fails on partitions that were made
    from other inputs than there are now.
    """
    from assets.staleness import require_current
    from models_registry.registry import train_and_register

    require_current(platform.lake(), platform.settings())
    outcome = train_and_register(
        platform.lake(),
        platform.settings(),
        git_sha=git_sha(),
        run_tags={"dagster.run_id": context.run_id},
        progress=context.log.info,
    )
    context.log.info(f"verdict: {outcome.verdict} ({'; '.join(outcome.reasons)})")
    pages, name = platform.settings().pages, platform.settings().model_name
    if outcome.version and not outcome.reused:
        annotate(platform.settings(), outcome.version, links_of(pages, context.run_id))
    return dg.MaterializeResult(
        metadata={
            "verdict": outcome.verdict,
            "reasons": dg.MetadataValue.json(list(outcome.reasons)),
            "registered model": name,
            "page of the version": dg.MetadataValue.url(pages.model(name, outcome.version or "")),
            "version": outcome.version or "none registered",
            "MLflow run": outcome.run_id,
            "card": dg.MetadataValue.md(outcome.card),
            **_plain(outcome.metrics),
        }
    )


def links_of(pages: Pages, run_id: str) -> dict[str, str]:
    """What a version's page leads to: the run that made it, and what is known of its data and its trades."""
    return {
        "Dagster run": pages.run(run_id),
        "reports": pages.file(f"{REPORTS}/index.html"),
        "Data Docs": pages.file(f"{DATA_DOCS}/index.html"),
        "worker": pages.dashboard,
    }


def annotate(settings: Settings, version: str, links: Mapping[str, str]) -> None:
    """Add links to a version's description, which MLflow shows on its page."""
    from models_registry.store import model_version, registry_client

    with registry_client(settings) as client:
        known = model_version(client, settings.model_name, version)
        line = " · ".join(f"[{name}]({url})" for name, url in links.items())
        client.update_model_version(
            settings.model_name, version, f"{known.description or ''}\n\n{line}"
        )


@dg.asset_check(asset=model)
def gate(context: dg.AssetCheckExecutionContext, platform: Platform) -> dg.AssetCheckResult:
    """Whether the latest attempt passed the promotion gate; a failure warns and does not block."""
    from models_registry.promotion import latest_verdict

    verdict, reasons = latest_verdict(platform.settings())
    return dg.AssetCheckResult(
        passed=verdict == "promote",
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"verdict": verdict, "reasons": dg.MetadataValue.json(list(reasons))},
    )


@dg.asset(
    deps=[model, performance],
    group_name="models",
    owners=OWNERS,
    kinds={"mlflow"},
    # What asks for a training asks for the judgement of what it makes, in the same run.
    automation_condition=dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.will_be_requested()
    ).allow(dg.AssetSelection.assets(model)),
)
def champion(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult[None]:
    """The version that the live worker trades: the alias `champion` in the registry.

    Moves to the latest attempt's version if its verdict is `promote`.
    """
    from models_registry.promotion import promote_latest

    moved, version = promote_latest(platform.settings())
    text = f"version {version}" if version else "none yet"
    context.log.info(f"champion: {text}{' (new)' if moved else ''}")
    return dg.MaterializeResult(metadata={"champion": text, "moved": moved})


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as metadata, "none" for None and NaN, which Dagster displays badly."""
    return {
        name: value if value == value and value is not None else "none"
        for name, value in figures.items()
    }
