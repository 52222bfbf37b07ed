"""MLflow's store of a lake: where it is, a client on it, and what is read from it by name.

By default tracking is in ``<root>/mlflow/mlflow.db``, or in the database of the setting ``state``, with artifacts
below the root; the settings
``registry.tracking_uri`` and ``registry.registry_uri``, or else MLflow's own environment variables, name
another. MLflow is imported only inside functions, as it takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from market.errors import ModelError
from market.locks import exclusive
from market.settings import Settings
from models_registry.manifest import Bundle, BundleError
from models_registry.relocation import artifacts_uri, here, relocate
from models_registry.state import database, on_server, registry_home

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"

BUNDLE_ARTIFACT: Final = "bundle"

_FOREIGN: Final = r"(mlflow|sqlalchemy|alembic|pydantic)(\.|$)"
_VARIABLES: Final = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
#: MLflow's codes of an answer; any other is of a registry that is down, locked or refuses us.
_ABSENT: Final = "RESOURCE_DOES_NOT_EXIST"


class RegistryError(ModelError):
    """The registry cannot serve the request; the message says what to do."""


def tracking_uri(settings: Settings) -> str:
    """MLflow's store for this lake."""
    named = settings.registry.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return named or database(settings, "mlflow")


def is_own(settings: Settings) -> bool:
    """Whether the store is the lake's own file, which moves with the lake."""
    return not on_server(settings) and tracking_uri(settings) == database(settings, "mlflow")


def artifacts(settings: Settings) -> str:
    """Where new experiments of our own databases keep their artifacts: of a file beside it, else below the root."""
    if "://" in settings.root and on_server(settings):
        return f"{settings.root.rstrip('/')}/mlflow/artifacts"
    return artifacts_uri(registry_home(settings))


@contextmanager
def registry_client(settings: Settings, experiment: str = "") -> Iterator[Any]:
    """An MLflow client on this lake's store, at its experiment or the named one; restores MLflow's URIs
    afterwards.

    RegistryError when the store is down, locked or refuses the request.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # seven take minutes
    from mlflow.exceptions import MlflowException

    with warnings.catch_warnings():
        # Warnings of MLflow's own dependencies.
        warnings.filterwarnings("ignore", module=_FOREIGN)
        try:
            yield from _pointed(settings, experiment or settings.model_name)
        except MlflowException as error:
            raise RegistryError(
                f"{tracking_uri(settings)}: the model registry does not do it ({_reason(error)}); nothing "
                "was changed here: look at the registry and run the command again"
            ) from error


def _pointed(settings: Settings, experiment: str) -> Iterator[Any]:
    import mlflow

    # Silence the migrations of a new database and the check of the input example.
    for quiet in ("alembic", "mlflow.pyfunc"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    # They print the traceback of what they raise.
    for quiet in ("mlflow.store.db.utils", "mlflow.utils.file_utils"):
        logging.getLogger(quiet).setLevel(logging.CRITICAL)
    uri, own, home = tracking_uri(settings), is_own(settings), registry_home(settings)
    versions = settings.registry.registry_uri or os.environ.get("MLFLOW_REGISTRY_URI") or uri
    home.mkdir(parents=True, exist_ok=True)
    # MLflow keeps what is set in variables too, for its child processes.
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    before = (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(versions)
    try:
        # Opening makes the database and the experiment; two processes at once would both do it.
        may_write = os.access(home, os.W_OK)
        lock = exclusive(home / "created.lock", "MLflow's database") if may_write else nullcontext()
        with lock:
            if own:
                relocate(home)
            client = mlflow.MlflowClient(uri, versions)
            if client.get_experiment_by_name(experiment) is None:
                location = artifacts(settings) if uri == database(settings, "mlflow") else None
                client.create_experiment(experiment, artifact_location=location)
            mlflow.set_experiment(experiment)
        yield client
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def asked(url: str, what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Do something with a database of the state; RegistryError for errors of these kinds: it is locked,
    damaged or down.
    """
    try:
        yield
    except kinds as error:
        raise RegistryError(
            f"{url}: {what} cannot be read or written ({_reason(error.__cause__ or error)}); free or restore the database and "
            "run the command again"
        ) from error


def _reason(error: BaseException) -> str:
    """The line of an error's message that says what happened; SQLAlchemy may put one on autoflush before it."""
    lines = str(error).strip().splitlines() or [""]
    return next((line for line in lines if "autoflush" not in line), lines[0])[:300]


def absent(error: Any) -> bool:
    """Whether a MlflowException says that something does not exist, and not that the store is down."""
    return bool(error.error_code == _ABSENT)


def model_version(client: Any, name: str, version: str) -> Any:
    """MLflow's ModelVersion; RegistryError when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if not (absent(error) or error.error_code == "INVALID_PARAMETER_VALUE"):
            raise
        raise RegistryError(
            f"{name} has no version {version}; see the registry for those there are"
        ) from error


def registered_model(client: Any, name: str) -> Any:
    """MLflow's RegisteredModel, which has the aliases and tags; None before its first version."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if absent(error):
            return None
        raise


def aliases_of(client: Any, name: str) -> dict[str, str]:
    """Alias -> version of a registered model; empty before its first version."""
    # Version searches may omit aliases; the registered model has them.
    found = registered_model(client, name)
    return {alias: str(version) for alias, version in found.aliases.items()} if found else {}


def champion_version(settings: Settings) -> str | None:
    """The version under the alias `champion`; None when there is none."""
    with registry_client(settings) as client:
        return aliases_of(client, settings.model_name).get(CHAMPION)


def latest_attempt(client: Any, name: str) -> Any:
    """The run of the latest training attempt that ended; None before the first.

    An attempt is a run with an identity and a verdict: what a person logs into the experiment is none.
    """
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs(
        [experiment.experiment_id],
        filter_string=(
            "attributes.status = 'FINISHED' and tags.identity != '' and tags.`gate.verdict` != ''"
        ),
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0] if runs else None


def fetch_bundle(settings: Settings, version: str, folder: Path) -> str:
    """Download and verify a version's bundle into a new ``folder``, with fsync; its manifest's SHA-256.

    BundleError when its files are not there or have not their checksums.
    """
    with registry_client(settings) as client:
        return fetch(client, settings, version, folder)


def fetch(client: Any, settings: Settings, version: str, folder: Path) -> str:
    """`fetch_bundle` by a client that is open."""
    import mlflow
    from mlflow.exceptions import MlflowException

    name = settings.model_name
    with tempfile.TemporaryDirectory() as scratch:
        found = model_version(client, name, version)
        logged = client.get_model_version_download_uri(name, version)
        if is_own(settings):
            logged = here(registry_home(settings), logged)
        where = f"{logged}/artifacts/{BUNDLE_ARTIFACT}"
        try:
            local = mlflow.artifacts.download_artifacts(artifact_uri=where, dst_path=scratch)
        except (MlflowException, FileNotFoundError, NotADirectoryError) as error:
            if isinstance(error, MlflowException) and not absent(error):
                raise
            raise BundleError(
                f"{name} version {version}: its files are not in the registry ({where}); restore them "
                "from a backup, or train again"
            ) from error
        try:
            wanted = str(found.tags["manifest_sha256"])
        except KeyError as error:
            raise BundleError(
                f"{name} version {version}: no training attempt of ours registered it (it has no tag "
                "manifest_sha256); promote another"
            ) from error
        Bundle.load(local, wanted)
        folder.mkdir(parents=True)
        for file in sorted(Path(local).iterdir()):
            with (folder / file.name).open("wb") as out:
                out.write(file.read_bytes())
                out.flush()
                os.fsync(out.fileno())
    return wanted
