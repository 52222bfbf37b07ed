"""A training attempt in MLflow: an attempt is a run, a validated model a version, promotion an alias.

    challenger   the latest registered version
    champion     what the live worker trades, through the resolver
    previous     the champion before, for `rollback`

Registration is idempotent: the same data, code and settings give the existing version. One attempt of a
lake runs at a time: a second waits, and finds what the first has registered. MLflow is imported only
inside functions, as it takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from market.lake import Lake
from market.locks import exclusive
from market.provenance import closure_hash
from market.settings import FEE_ROWS_BPS, Settings
from models_registry import dataset
from models_registry.dataset import Features
from models_registry.manifest import MANIFEST_FILE, Verdict, load_champion, sha256
from models_registry.served import served_model
from models_registry.store import (
    BUNDLE_ARTIFACT,
    CHALLENGER,
    registered_model,
    registry_client,
    registry_home,
)

CARD_FILE: Final = "card.md"

Progress = Callable[[str], None]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of a training attempt; ``version`` is None when none was registered."""

    verdict: Verdict
    reasons: tuple[str, ...]
    version: str | None
    run_id: str
    card: str
    metrics: Mapping[str, float]
    reused: bool


def train_and_register(
    lake: Lake,
    settings: Settings,
    git_sha: str,
    run_tags: Mapping[str, str] | None = None,
    progress: Progress = lambda line: None,
    features: Features | None = None,
) -> Outcome:
    """One attempt on the lake's whole training set: walk-forward, verdict, run and version.

    Always logs an MLflow run; registers a version, as `challenger`, unless the verdict is
    `not_enough_data`. An attempt with the identity of a registered version logs a run that refers to it.
    """
    from models_registry import gate, probes, training, trials
    from models_registry.decay import check
    from models_registry.tuning import Studies

    features = features or Features.defined()
    symbols = settings.market.symbols
    fingerprint = dataset.fingerprint(lake, symbols, dataset.dates(lake, symbols))
    tags = {
        "git_sha": git_sha,
        "data_fingerprint": fingerprint,
        "feature_hash": features.hash,
        "horizons": ",".join(str(h) for h in settings.model.horizons_s),
        "source": lake.source,
        "identity": identity(settings, features, fingerprint, git_sha),
        **(run_tags or {}),
    }
    lock = registry_home(settings) / "training.lock"
    with (
        registry_client(settings) as client,
        exclusive(lock, f"a training of {tags['source']} data"),
    ):
        _end_killed(client, settings.model_name)
        known = _version_with(client, settings.model_name, tags["identity"])
        if known is not None:
            progress(f"version {known.version} was made from the same data, code and settings")
            return _note_reuse(client, settings, known, tags)
        champion = load_champion(settings.root, settings.model_name)
        source = dataset.LakeSource(lake, symbols, settings.model.horizons_s)
        home, procedure = registry_home(settings), trials.procedure(settings, features)
        looks = trials.looks_of(settings)
        found = probes.of_data(source, features.names, settings.model.primary_s)
        for date in source.dates()[-1:]:
            found += probes.live_skew(lake, symbols, features.names, date)
        evaluation = training.evaluate(
            source,
            settings,
            features,
            champion=(champion[0].version, champion[1]) if champion else None,
            context=msgspec.structs.replace(
                trials.context(home, procedure, looks),
                champion_decayed=champion is not None and check(lake, settings, features).failed,
                rows=tuple(gate.probe_row(probe) for probe in found),
            ),
            studies=Studies(file=home / "optuna.db", prefix=tags["identity"]),
            progress=progress,
        )
        trials.record(home, "training", procedure, tags["identity"], looks, evaluation.daily)
        model = None
        if evaluation.gate.verdict != "not_enough_data":
            model = training.finish(
                evaluation,
                source,
                settings,
                features,
                data_fingerprint=fingerprint,
                git_sha=git_sha,
            )
            progress("final boosters fitted")
        return _log(client, settings, lake.source, evaluation, model, tags)


def identity(settings: Settings, features: Features, fingerprint: str, git_sha: str) -> str:
    """Hash of everything that determines a version (16 hex digits)."""
    import lightgbm

    parts = (
        settings.model_name,
        msgspec.json.encode(settings.model, order="sorted").decode(),
        repr(settings.market.symbols),
        str(settings.market.book_depth),
        repr(FEE_ROWS_BPS[settings.model.fee_row]),
        features.hash,
        repr(features.names),
        fingerprint,
        git_sha,
        _code(),
        lightgbm.__version__,
    )
    return sha256("\n".join(parts).encode())[:16]


def _code() -> str:
    """Hash of the code that trains and validates, because a git sha misses uncommitted changes."""
    return closure_hash(__name__, "models_registry.training")


def _log(
    client: Any,
    settings: Settings,
    source: str,
    evaluation: Any,
    model: Any,
    tags: Mapping[str, str],
) -> Outcome:
    import mlflow

    from models_registry import card
    from models_registry.evaluation import metrics

    about = card.About(
        name=settings.model_name,
        source=source,
        git_sha=tags["git_sha"],
        fingerprint=tags["data_fingerprint"],
        fee_row=settings.model.fee_row,
        block_s=settings.model.bootstrap_block_s,
    )
    figures = dict(model.manifest.metrics) if model is not None else metrics(evaluation)
    text = card.text(evaluation, model, about)
    verdict, reasons = evaluation.gate.verdict, evaluation.gate.reasons
    tags = {**tags, "gate.verdict": verdict, "gate.reasons": "; ".join(reasons)}
    for figure in ("ic_mean", "ic_worst_fold"):
        tags[figure] = f"{figures[figure]:.4f}" if figure in figures else "none"
    version = None
    with mlflow.start_run(run_name=f"{verdict} {tags['data_fingerprint'][:8]}", tags=tags) as run:
        mlflow.log_params(
            {
                **msgspec.to_builtins(settings.model),
                **{
                    f"lightgbm.{k}": v
                    for k, v in msgspec.to_builtins(evaluation.parameters).items()
                },
            }
        )
        mlflow.log_metrics(figures)
        for block in evaluation.blocks:
            mlflow.log_metric("ic_block", block.ic.rank, step=block.number)
        mlflow.log_text(text, CARD_FILE)
        mlflow.log_text(card.fold_csv(evaluation), "blocks.csv")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for name, image in card.pictures(evaluation, model).items():
                (folder / name).write_bytes(image)
                mlflow.log_artifact(str(folder / name), "pictures")
            if model is not None:
                logged = _log_model(model, folder)
                version = _register(
                    client,
                    settings.model_name,
                    str(logged.model_uri),
                    run.info.run_id,
                    {**tags, "manifest_sha256": sha256(model.files[MANIFEST_FILE])},
                    card.description(evaluation, about),
                )
                mlflow.set_tag("model_version", version)
    return Outcome(
        verdict=verdict,
        reasons=reasons,
        version=version,
        run_id=run.info.run_id,
        card=text,
        metrics=figures,
        reused=False,
    )


def _log_model(model: Any, folder: Path) -> Any:
    """Log the bundle with the code that serves it; returns MLflow's ModelInfo."""
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    bundle = folder / BUNDLE_ARTIFACT
    bundle.mkdir()
    for name, data in model.files.items():
        (bundle / name).write_bytes(data)
    features = model.manifest.features
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.double, name) for name in features]),
        outputs=Schema(
            [
                ColSpec(DataType.double, "expected_bps"),
                ColSpec(DataType.double, "raw_bps"),
                ColSpec(DataType.long, "regime"),
            ]
        ),
    )
    served = served_model(folder / "code", sha256(model.files[MANIFEST_FILE]))
    return mlflow.pyfunc.log_model(
        name="model",
        python_model=str(served.script),
        code_paths=[str(served.package)],
        artifacts={BUNDLE_ARTIFACT: str(bundle)},
        signature=signature,
        input_example=pd.DataFrame(np.ones((1, len(features))), columns=list(features)),
        pip_requirements=list(served.requirements),
    )


def _register(
    client: Any, name: str, uri: str, run_id: str, tags: Mapping[str, str], description: str
) -> str:
    if registered_model(client, name) is None:
        client.create_registered_model(name)
    made = client.create_model_version(
        name, uri, run_id, tags=dict(tags), description=description, await_creation_for=0
    )
    version = str(made.version)
    client.set_registered_model_alias(name, CHALLENGER, version)
    return version


def _note_reuse(client: Any, settings: Settings, known: Any, tags: Mapping[str, str]) -> Outcome:
    import mlflow

    version = str(known.version)
    original = client.get_run(known.run_id)
    inherited = {
        key: original.data.tags[key]
        for key in ("gate.verdict", "gate.reasons", "ic_mean", "ic_worst_fold")
        if key in original.data.tags
    }
    text = mlflow.artifacts.load_text(f"runs:/{known.run_id}/{CARD_FILE}")
    with mlflow.start_run(
        run_name=f"same as version {version}",
        tags={**tags, **inherited, "model_version": version, "reuses": str(known.run_id)},
    ) as run:
        mlflow.log_metrics(original.data.metrics)
    return Outcome(
        verdict=inherited["gate.verdict"],
        reasons=tuple(filter(None, inherited["gate.reasons"].split("; "))),
        version=version,
        run_id=run.info.run_id,
        card=text,
        metrics=dict(original.data.metrics),
        reused=True,
    )


def _end_killed(client: Any, name: str) -> None:
    """End the runs of attempts that were killed: who holds the lock of training is the only one."""
    experiment = client.get_experiment_by_name(name)
    for run in client.search_runs(
        [experiment.experiment_id], "attributes.status = 'RUNNING' and tags.identity != ''"
    ):
        client.set_terminated(run.info.run_id, "KILLED")


def _version_with(client: Any, name: str, wanted: str) -> Any:
    found = client.search_model_versions(f"name = '{name}' and tag.identity = '{wanted}'")
    return min(found, key=lambda v: int(v.version)) if found else None
