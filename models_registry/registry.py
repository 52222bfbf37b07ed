"""The MLflow registry: an attempt is a run, a validated model a version, promotion an alias.

    challenger   the latest registered version
    champion     what the live worker trades, through the resolver
    previous     the champion before, for `rollback`

Tracking is in ``<root>/mlflow/mlflow.db`` with artifacts beside it. Registration is idempotent: the
same data, code and settings give the existing version. MLflow is imported only inside functions, as it
takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import msgspec

from market.errors import ModelError
from market.lake import Lake
from market.locks import exclusive
from market.provenance import closure_hash
from market.settings import FEE_ROWS_BPS, Settings
from models_registry import dataset
from models_registry.dataset import Features
from models_registry.manifest import (
    MANIFEST_FILE,
    Bundle,
    Verdict,
    load_champion,
    sha256,
)
from models_registry.relocation import artifacts_uri, here, relocate

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"

_FOREIGN: Final = r"(mlflow|sqlalchemy|alembic|pydantic)(\.|$)"

CARD_FILE: Final = "card.md"
BUNDLE_ARTIFACT: Final = "bundle"

Progress = Callable[[str], None]


class RegistryError(ModelError):
    """The registry cannot serve the request; the message says what to do."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of a training attempt; ``version`` is None when none was registered."""

    verdict: Verdict
    reasons: tuple[str, ...]
    version: str | None
    run_id: str
    card: str
    metrics: Mapping[str, float]
    reused: bool


def registry_home(settings: Settings) -> Path:
    """The lake's folder of MLflow's files, behind any link, as MLflow keeps what it has opened by name.

    RegistryError when the root is not local.
    """
    if "://" in settings.root:
        raise RegistryError(f"{settings.root}: the model registry needs a local root")
    return Path(settings.root).resolve() / "mlflow"


def tracking_uri(settings: Settings) -> str:
    """MLflow's store for this lake. RegistryError when the root is not local."""
    return f"sqlite:///{registry_home(settings) / 'mlflow.db'}"


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
    with registry_client(settings) as client:
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


def fetch_bundle(settings: Settings, version: str, folder: Path) -> str:
    """Download and verify a version's bundle into a new ``folder``, with fsync; its manifest's SHA-256."""
    import mlflow

    name = settings.model_name
    with registry_client(settings) as client, tempfile.TemporaryDirectory() as scratch:
        wanted = str(model_version(client, name, version).tags["manifest_sha256"])
        logged = here(registry_home(settings), client.get_model_version_download_uri(name, version))
        local = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{logged}/artifacts/{BUNDLE_ARTIFACT}", dst_path=scratch
        )
        Bundle.load(local, wanted)
        folder.mkdir(parents=True)
        for file in sorted(Path(local).iterdir()):
            with (folder / file.name).open("wb") as out:
                out.write(file.read_bytes())
                out.flush()
                os.fsync(out.fileno())
    return wanted


def champion_version(settings: Settings) -> str | None:
    """The version under the alias `champion`; None when there is none."""
    with registry_client(settings) as client:
        return aliases_of(client, settings.model_name).get(CHAMPION)


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
    figures = metrics(evaluation)
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
                uri = _log_model(model, folder / BUNDLE_ARTIFACT)
                version = _register(
                    client,
                    settings.model_name,
                    uri,
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


def _log_model(model: Any, folder: Path) -> str:
    """Log the bundle with its serving code; returns the model's URI."""
    import lightgbm
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    folder.mkdir()
    for name, data in model.files.items():
        (folder / name).write_bytes(data)
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
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={BUNDLE_ARTIFACT: str(folder)},
        signature=signature,
        input_example=pd.DataFrame(np.ones((1, len(features))), columns=list(features)),
        pip_requirements=[f"lightgbm=={lightgbm.__version__}", f"mlflow=={mlflow.__version__}"],
    )
    return str(info.model_uri)


def _register(
    client: Any, name: str, uri: str, run_id: str, tags: Mapping[str, str], description: str
) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
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


@contextmanager
def registry_client(settings: Settings) -> Iterator[Any]:
    """An MLflow client on this lake's store and experiment; restores MLflow's URIs afterwards."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    with warnings.catch_warnings():
        # Warnings of MLflow's own dependencies.
        warnings.filterwarnings("ignore", module=_FOREIGN)
        yield from _pointed(settings)


def _pointed(settings: Settings) -> Iterator[Any]:
    import mlflow

    # Silence the migrations of a new database and the check of the input example.
    for quiet in ("alembic", "mlflow.pyfunc"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    # It prints the traceback of what it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    uri = tracking_uri(settings)
    home = registry_home(settings)
    home.mkdir(parents=True, exist_ok=True)
    before = (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        # Opening makes the database and the experiment; two processes at once would both do it.
        may_write = os.access(home, os.W_OK)
        lock = exclusive(home / "created.lock", "MLflow's database") if may_write else nullcontext()
        with lock:
            relocate(home)
            client = mlflow.MlflowClient(uri, uri)
            experiment = client.get_experiment_by_name(settings.model_name)
            if experiment is None:
                location = artifacts_uri(home)
                client.create_experiment(settings.model_name, artifact_location=location)
            mlflow.set_experiment(settings.model_name)
        yield client
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])


def model_version(client: Any, name: str, version: str) -> Any:
    """MLflow's ModelVersion; RegistryError when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        raise RegistryError(
            f"{name} has no version {version}; see the registry for those there are"
        ) from error


def aliases_of(client: Any, name: str) -> dict[str, str]:
    """Alias -> version of a registered model; empty before its first version."""
    from mlflow.exceptions import MlflowException

    try:
        # Version searches may omit aliases; the registered model has them.
        aliases = client.get_registered_model(name).aliases
    except MlflowException:
        return {}
    return {alias: str(version) for alias, version in aliases.items()}


def _version_with(client: Any, name: str, wanted: str) -> Any:
    found = client.search_model_versions(f"name = '{name}' and tag.identity = '{wanted}'")
    return min(found, key=lambda v: int(v.version)) if found else None


def latest_run(client: Any, name: str) -> Any:
    """The latest finished run of a model's experiment, None before the first."""
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs(
        [experiment.experiment_id],
        filter_string="attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0] if runs else None
