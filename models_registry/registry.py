"""A training attempt in MLflow: an attempt is a run, a validated model a version, promotion an alias.

    challenger   the latest registered version
    champion     what the live worker trades, through the resolver
    previous     the champion before, for `rollback`

Registration is idempotent: the same data, code and settings give the existing version, unless a decay alarm
has been raised since, under which it is judged anew. One attempt of a
lake runs at a time: a second waits, and finds what the first has registered. MLflow is imported only
inside functions, as it takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from market.lake import Lake
from market.provenance import closure_hash
from market.settings import FEE_ROWS_BPS, Settings
from models_registry import dataset, trials
from models_registry.dataset import Features
from models_registry.evaluation import Evaluation
from models_registry.gate import Context
from models_registry.manifest import (
    MANIFEST_FILE,
    Bundle,
    Pointer,
    Verdict,
    load_champion,
    sha256,
)
from models_registry.served import served_model
from models_registry.state import database, lake_name, one_at_a_time
from models_registry.store import (
    BUNDLE_ARTIFACT,
    CHALLENGER,
    RegistryError,
    aliases_of,
    registered_model,
    registry_client,
)
from models_registry.tuning import Studies, kept_trials

if TYPE_CHECKING:
    from models_registry.training import TrainedModel

CARD_FILE: Final = "card.md"
RECORD_FILE: Final = "recorded.json"
OUT_OF_SAMPLE_FILE: Final = "out_of_sample.parquet"

Progress = Callable[[str], None]


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What a version was made from: `models_registry.reproduction` makes it again.

    ``settings`` are those of market and model, ``partitions`` has the fingerprint of each by "DATE SYMBOL",
    ``champion`` is the version that was compared, "" for none, ``context`` what the gate knew.
    """

    settings: Settings
    partitions: Mapping[str, str]
    features: Features
    champion: str
    context: Context
    git_sha: str
    code: str


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
    RegistryError when the training set has changed meanwhile.
    """
    from models_registry import baselines

    features = features or Features.defined()
    symbols = settings.market.symbols
    with (
        registry_client(settings) as client,
        one_at_a_time(settings, "training", f"a training of {lake.source} data"),
    ):
        _end_killed(client, settings.model_name, lake_name(settings))
        source = dataset.LakeSource(lake, symbols, settings.model.horizons_s)
        fingerprint = dataset.fingerprint(lake, symbols, source.dates())
        made_of = identity(settings, features, fingerprint, git_sha)
        tags = {
            "git_sha": git_sha,
            "data_fingerprint": fingerprint,
            "feature_hash": features.hash,
            "horizons": ",".join(str(h) for h in settings.model.horizons_s),
            "source": lake.source,
            "lake": lake_name(settings),
            "identity": made_of,
            **(run_tags or {}),
        }
        champion = load_champion(settings.root, settings.model_name)
        alarm_ns = _alarm(settings, champion, tags)
        known = _version_with(client, settings.model_name, made_of)
        if alarm_ns and known is not None:
            tags["identity"] = f"{made_of}-{alarm_ns}"
            known = _version_with(client, settings.model_name, tags["identity"])
        if known is not None:
            progress(f"version {known.version} was made from the same data, code and settings")
            return _note_reuse(client, settings, known, tags)
        recorded = Recorded(
            settings=Settings(source=settings.source, market=settings.market, model=settings.model),
            partitions={
                f"{day} {symbol}": lake.fingerprint(dataset.TABLE, symbol, day)
                for symbol, day in lake.partitions(dataset.TABLE)
                if symbol in symbols and day in source.dates()
            },
            features=features,
            champion=champion[0].version if champion else "",
            context=_context(lake, source, settings, features, champion is not None, alarm_ns),
            git_sha=git_sha,
            code=code(),
        )
        rival = (champion[0].version, champion[1]) if champion else None
        studies = Studies(url=database(settings, "optuna"), prefix=made_of)
        evaluation, model = attempt(
            recorded, source, rival, fingerprint, progress, studies, settings
        )
        trials.record(
            database(settings, "looks"),
            "training",
            trials.procedure(settings, features),
            tags["identity"],
            evaluation.looks,
            evaluation.daily,
        )
        judged = baselines.judge(source, settings, features, git_sha)
        evaluation = msgspec.structs.replace(evaluation, baselines=judged)
        if dataset.fingerprint(lake, symbols, source.dates()) != fingerprint:
            raise RegistryError(
                f"{lake.uri}: its training set changed meanwhile, and nothing is registered; train again"
            )
        return _log(client, settings, recorded, evaluation, model, tags, studies)


def _alarm(
    settings: Settings, champion: tuple[Pointer, Bundle] | None, tags: Mapping[str, str]
) -> int | None:
    """When the alarm was raised that stands for the champion; None where an attempt would make it again."""
    from models_registry.monitoring import alarm_of

    if champion is None:
        return None
    of = champion[1].manifest
    same = (of.data_fingerprint, of.git_sha) == (tags["data_fingerprint"], tags["git_sha"])
    return None if same else alarm_of(settings, champion[0].version)


def _context(
    lake: Lake, source: dataset.Source, settings: Settings, features: Features, champion: bool,
    alarm_ns: int | None,
) -> Context:  # fmt: skip
    """What the gate must know beside the evaluation: earlier looks, leakage probes, a decayed champion.

    It has decayed by what it served (``alarm_ns``), or by the training set's dates after its own.
    """
    from models_registry import leakage
    from models_registry.decay import check

    procedure = trials.procedure(settings, features)
    return msgspec.structs.replace(
        trials.context(database(settings, "looks"), procedure),
        champion_decayed=champion
        and (alarm_ns is not None or check(lake, settings, features).failed),
        rows=leakage.rows(leakage.probed(lake, source, settings, features)),
    )


def attempt(
    recorded: Recorded,
    source: dataset.Source,
    champion: tuple[str, Bundle] | None,
    fingerprint: str,
    progress: Progress,
    studies: Studies | None = None,
    where: Settings | None = None,
) -> tuple[Evaluation, TrainedModel | None]:
    """Evaluate, and train a version unless the verdict is `not_enough_data`; folds on the cluster of ``where``."""
    from models_registry import training

    settings, features = recorded.settings, recorded.features
    place = where or settings
    evaluation = training.evaluate(
        source,
        msgspec.structs.replace(settings, root=place.root, compute=place.compute),
        features,
        champion=champion,
        context=recorded.context,
        studies=studies,
        progress=progress,
    )
    if evaluation.gate.verdict == "not_enough_data":
        return evaluation, None
    model = training.finish(
        evaluation,
        source,
        settings,
        features,
        data_fingerprint=fingerprint,
        git_sha=recorded.git_sha,
    )
    progress("final boosters fitted")
    return evaluation, model


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
        code(),
        lightgbm.__version__,
    )
    return sha256("\n".join(parts).encode())[:16]


def code() -> str:
    """Hash of the code that trains and validates, because a git sha misses uncommitted changes."""
    return closure_hash(__name__, "models_registry.training")


def _log(
    client: Any,
    settings: Settings,
    recorded: Recorded,
    evaluation: Evaluation,
    model: TrainedModel | None,
    tags: Mapping[str, str],
    studies: Studies,
) -> Outcome:
    """Log the run with its model, and register the version when everything of it is there."""
    import mlflow

    from models_registry import card
    from models_registry.evaluation import metrics
    from models_registry.pictures import pictures

    about = card.About(
        name=settings.model_name,
        source=tags["source"],
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
    with (
        mlflow.start_run(run_name=f"{verdict} {tags['data_fingerprint'][:8]}", tags=tags) as run,
        tempfile.TemporaryDirectory() as scratch,
    ):
        folder = Path(scratch)
        lightgbm = msgspec.to_builtins(evaluation.parameters)
        mlflow.log_params(
            msgspec.to_builtins(settings.model)
            | {f"lightgbm.{name}": value for name, value in lightgbm.items()}
        )
        mlflow.log_text(text, CARD_FILE)
        mlflow.log_text(card.fold_csv(evaluation), "blocks.csv")
        mlflow.log_text(msgspec.json.encode(recorded).decode(), RECORD_FILE)
        if evaluation.pooled is not None:
            evaluation.pooled.write(folder / OUT_OF_SAMPLE_FILE)
            mlflow.log_artifact(str(folder / OUT_OF_SAMPLE_FILE))
        images = pictures(evaluation, model)
        for name, image in images.items():
            (folder / name).write_bytes(image)
            mlflow.log_artifact(str(folder / name), "pictures")
        logged = _log_model(model, folder) if model is not None else None
        _log_figures(evaluation, figures, tags, logged.model_id if logged else None)
        _log_trials(client, run.info, studies)
        if model is not None and logged is not None:
            version = _register(
                client,
                settings.model_name,
                str(logged.model_uri),
                run.info.run_id,
                {**tags, "manifest_sha256": sha256(model.files[MANIFEST_FILE])},
                card.description(evaluation, about, run.info.run_id, images),
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


def _log_figures(
    evaluation: Evaluation,
    figures: Mapping[str, float],
    tags: Mapping[str, str],
    model_id: str | None,
) -> None:
    """Log metrics and the training set, linked to the model, and a nested run for each test block."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import LoggedModelInput

    source = CodeDatasetSource(
        {"dates": f"{evaluation.dates[0]} to {evaluation.dates[-1]}"} if evaluation.dates else {}
    )
    data = MetaDataset(source, name=dataset.TABLE, digest=tags["data_fingerprint"])
    linked = LoggedModelInput(model_id) if model_id else None
    mlflow.log_input(data, context="training", model=linked)
    mlflow.log_metrics(dict(figures), model_id=model_id, dataset=data)
    for block in evaluation.blocks:
        mlflow.log_metric("ic_block", block.ic.rank, step=block.number)
        with mlflow.start_run(
            run_name=f"block {block.number + 1}: {block.first_date}", nested=True
        ):
            mlflow.log_params({"first_date": block.first_date, "last_date": block.last_date})
            mlflow.log_metrics(
                {"ic": block.ic.rank, "ic_pearson": block.ic.pearson, "n_eff": block.ic.n_eff}
                | {f"net_total_bps_{row}": total for row, total in block.net_total_bps.items()}
                | {f"trades_{row}": float(count) for row, count in block.trades.items()}
            )


def _log_trials(client: Any, parent: Any, studies: Studies) -> None:
    """Log a nested run for each trial of the search for hyper-parameters, with its times."""
    from mlflow.entities import Metric, Param

    for study, trial in kept_trials(studies):
        began, ended = (
            round(time.timestamp() * 1000) if time else None
            for time in (trial.datetime_start, trial.datetime_complete)
        )
        run = client.create_run(
            parent.experiment_id,
            start_time=began,
            tags={"mlflow.parentRunId": parent.run_id, "trial.state": trial.state.name.lower()},
            run_name=f"trial {trial.number + 1}: {study}",
        ).info
        ic = [] if trial.value is None else [Metric("ic", trial.value, ended or 0, 0)]
        params = [Param(name, str(value)) for name, value in trial.params.items()]
        client.log_batch(run.run_id, metrics=ic, params=params)
        client.set_terminated(run.run_id, end_time=ended)


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
    # The process that registered it may have ended before it moved the alias.
    if int(aliases_of(client, settings.model_name).get(CHALLENGER, 0)) < int(version):
        client.set_registered_model_alias(settings.model_name, CHALLENGER, version)
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


def _end_killed(client: Any, name: str, lake: str) -> None:
    """End the runs of a lake's attempts that were killed: who holds its lock of training is the only one."""
    experiment = client.get_experiment_by_name(name)
    for run in client.search_runs(
        [experiment.experiment_id], "attributes.status = 'RUNNING' and tags.identity != ''"
    ):
        if run.data.tags.get("lake") == lake:
            client.set_terminated(run.info.run_id, "KILLED")


def _version_with(client: Any, name: str, wanted: str) -> Any:
    found = client.search_model_versions(f"name = '{name}' and tag.identity = '{wanted}'")
    return min(found, key=lambda v: int(v.version)) if found else None
