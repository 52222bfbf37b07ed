"""The format of a model version (a bundle): LightGBM text boosters and one JSON manifest.

A bundle is a folder:

    manifest.json        `Manifest`; names each booster with its SHA-256
    booster_60s.txt ...  one LightGBM text model per horizon and objective

and a pointer file names the champion's bundle (`read_pointer`); the resolver writes both, the trading
process only reads them.

A field that a manifest of an older format lacks has its default. This module imports no MLflow, pandas or
training code, because the worker imports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from market.errors import ModelError
from market.place import home_of
from market.settings import FEE_ROWS_BPS, Settings
from market.units import utc_date
from models_registry.recipe import Predictor, Recipe, StrictStruct

if TYPE_CHECKING:
    import lightgbm

FORMAT: Final = 2
FORMATS: Final = (1, FORMAT)
MANIFEST_FILE: Final = "manifest.json"
POINTER_FILE: Final = "champion.json"
#: The baseline that is frozen (`models_registry.baselines`).
LEGACY: Final = "legacy"

Verdict = Literal["promote", "abstain", "not_enough_data"]


class BundleError(ModelError):
    """A bundle or pointer cannot be used; the message names the file and what to do."""


class Selection(StrictStruct, frozen=True, kw_only=True):
    """How the model's features were selected (`models_registry.selection`), over ``folds`` folds.

    ``frequency`` is the share of folds that selected each of the model's features; ``stability`` the index
    of Nogueira et al. with its 95 % interval (None with fewer than two folds); ``decoys_selected`` counts,
    over all folds, the noise columns that were selected.
    """

    candidates: int
    clusters: int
    folds: int
    decoys: int
    decoys_selected: int
    frequency: dict[str, float]
    stability: float | None
    stability_lower: float | None
    stability_upper: float | None


class Fees(StrictStruct, frozen=True, kw_only=True):
    """The fee row that the verdict assumes, bps per side."""

    row: str
    taker_bps: float
    maker_bps: float


class TrainingWindow(StrictStruct, frozen=True, kw_only=True):
    """Training data of the final boosters, both ends included."""

    first_date: str
    last_date: str
    first_ns: int
    last_ns: int
    rows: int
    stride_s: int


class GateRow(StrictStruct, frozen=True, kw_only=True):
    """One question of the gate: its figure (None: none), the limit that it was held to, and the answer.

    A row that is not ``blocking`` is advice to a reviewer.
    """

    name: str
    blocking: bool
    passed: bool
    value: float | None
    limit: float | None
    text: str


class Gate(StrictStruct, frozen=True, kw_only=True):
    """The promotion gate's verdict, its reasons, and the rows that it rests on (none in old manifests)."""

    verdict: Verdict
    reasons: tuple[str, ...]
    rows: tuple[GateRow, ...] = ()


class DecayReference(StrictStruct, frozen=True, kw_only=True):
    """Reference of the decay monitor (`models_registry.decay`).

    ``mean`` is the mean of the monitored stream over the out-of-sample rows, one observation per
    ``spacing_s``; ``limit`` is the alarm limit of the CUSUM with ``drift``, None when the mean is not
    positive and nothing could decay.
    """

    spacing_s: int
    mean: float
    drift: float
    limit: float | None
    arl0_days: float
    observations: int


class Manifest(StrictStruct, frozen=True, kw_only=True):
    """Everything about a model version except its trees."""

    format: int
    name: str
    source: Literal["recorded", "synthetic"]
    book_topic: str
    symbols: tuple[str, ...]
    #: `market.features.feature_hash()` of the definitions the training set was made by.
    feature_hash: str
    #: `list_hash` of the recipe's features.
    feature_list_hash: str
    recipe: Recipe
    fees: Fees
    window: TrainingWindow
    data_fingerprint: str
    git_sha: str
    seed: int
    parameters: dict[str, float | int | str | bool]
    gate: Gate
    decay: DecayReference
    metrics: dict[str, float]
    selection: Selection | None = None

    @property
    def features(self) -> tuple[str, ...]:
        return self.recipe.features

    @property
    def horizons_s(self) -> tuple[int, ...]:
        return self.recipe.horizons_s

    @property
    def primary_s(self) -> int:
        return self.recipe.primary_s


class Pointer(StrictStruct, frozen=True, kw_only=True):
    """Which bundle is the champion: a folder below ``<root>/bundles/<name>`` and its checksum.

    ``patch`` is the checksum of its patch in force (`models_registry.pointed`), empty for none.
    """

    name: str
    version: str
    folder: str
    manifest_sha256: str
    patch: str = ""

    @property
    def in_force(self) -> str:
        """The checksum that predictions are known by: of the patch, else of the manifest."""
        return self.patch or self.manifest_sha256


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def list_hash(names: Sequence[str]) -> str:
    """Hash of a feature list in its order (16 hex digits)."""
    return sha256("\n".join(names).encode())[:16]


def encode(record: StrictStruct) -> bytes:
    """Canonical JSON: equal records give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def new_manifest(
    settings: Settings,
    feature_hash: str,
    recipe: Recipe,
    span_ns: tuple[int, int],
    *,
    rows: int,
    git_sha: str,
    gate: Gate,
    data_fingerprint: str = "",
    parameters: Mapping[str, float | int | str | bool] | None = None,
    decay: DecayReference | None = None,
    metrics: Mapping[str, float] | None = None,
    selection: Selection | None = None,
) -> Manifest:
    """The manifest of a version that these settings made of ``rows`` rows from the first to the last of
    ``span_ns``; without ``decay`` it has none that could be found."""
    model = settings.model
    first_ns, last_ns = span_ns
    taker_bps, maker_bps = FEE_ROWS_BPS[model.fee_row]
    return Manifest(
        format=FORMAT,
        name=settings.model_name,
        source=settings.source,
        book_topic=f"orderbook.{settings.market.book_depth}",
        symbols=settings.market.symbols,
        feature_hash=feature_hash,
        feature_list_hash=list_hash(recipe.features),
        recipe=recipe,
        fees=Fees(row=model.fee_row, taker_bps=taker_bps, maker_bps=maker_bps),
        window=TrainingWindow(
            # A partition is of the date of t - 1 ns.
            first_date=utc_date(first_ns - 1),
            last_date=utc_date(last_ns - 1),
            first_ns=first_ns,
            last_ns=last_ns,
            rows=rows,
            stride_s=model.train_stride_s,
        ),
        data_fingerprint=data_fingerprint,
        git_sha=git_sha,
        seed=model.seed,
        parameters=dict(parameters or {}),
        gate=gate,
        decay=decay
        or DecayReference(
            spacing_s=recipe.primary_s,
            mean=0.0,
            drift=0.0,
            limit=None,
            arl0_days=model.decay_arl0_days,
            observations=0,
        ),
        metrics=dict(metrics or {}),
        selection=selection,
    )


def bundles_folder(root: str | Path, name: str) -> Path:
    """Where this machine's bundles of a model are."""
    return home_of(root) / "bundles" / name


def manifests(home: Path) -> list[Path]:
    """The manifests of the versions in a model's folder, named VERSION-…, oldest version first.

    Others are not of a resolver, or half-written.
    """
    found = {path: path.parent.name.partition("-")[0] for path in home.glob(f"*/{MANIFEST_FILE}")}
    return sorted((path for path, number in found.items() if number.isdecimal()),
                  key=lambda path: int(found[path]))  # fmt: skip


def legacy_folder(settings: Settings) -> Path:
    """Where the lake's `LEGACY` bundle is."""
    return bundles_folder(settings.root, LEGACY) / settings.model_name


def read_pointer(root: str | Path, name: str, file: str = POINTER_FILE) -> Pointer | None:
    """The champion's pointer, None when nothing has been promoted; BundleError when unreadable."""
    path = bundles_folder(root, name) / file
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Pointer)
    except msgspec.DecodeError as error:
        raise BundleError(
            f"{path}: not a champion pointer ({error}); run the resolver again"
        ) from error


class Bundle(Predictor):
    """A verified model version, ready to predict."""

    def __init__(
        self, manifest: Manifest, boosters: Sequence[lightgbm.Booster], manifest_sha256: str
    ) -> None:
        super().__init__(manifest.recipe, boosters)
        self.manifest = manifest
        self.manifest_sha256 = manifest_sha256

    @classmethod
    def load(cls, folder: str | Path, manifest_sha256: str = "") -> Bundle:
        """Read and verify a bundle.

        BundleError unless every file has its registered SHA-256 (the manifest's own is checked when
        given) and the feature list its hash.
        """
        import lightgbm

        folder = Path(folder)
        data = _read(folder / MANIFEST_FILE)
        digest = sha256(data)
        if manifest_sha256 and digest != manifest_sha256:
            raise BundleError(
                f"{folder / MANIFEST_FILE}: checksum {digest[:16]} is not the registered "
                f"{manifest_sha256[:16]}; remove the folder and run the resolver again"
            )
        manifest = parse_manifest(data, str(folder / MANIFEST_FILE))
        boosters = []
        for member in manifest.recipe.members:
            path = folder / member.booster
            text = _read(path)
            if sha256(text) != member.sha256:
                raise BundleError(
                    f"{path}: checksum {sha256(text)[:16]} is not the manifest's "
                    f"{member.sha256[:16]}; remove the folder and run the resolver again"
                )
            boosters.append(lightgbm.Booster(model_str=text.decode()))
            if boosters[-1].num_feature() != len(manifest.features):
                raise BundleError(
                    f"{path}: takes {boosters[-1].num_feature()} features, the manifest lists "
                    f"{len(manifest.features)}; train again"
                )
        return cls(manifest, boosters, digest)

    def require(self, feature_hash: str, book_topic: str) -> None:
        """BundleError unless the model was trained on these feature definitions and this topic."""
        found = self.manifest
        if found.feature_hash != feature_hash:
            raise BundleError(
                f"model {found.name} was trained on feature definitions {found.feature_hash}, the "
                f"running code has {feature_hash}; train again or run the code it was trained with"
            )
        if found.book_topic != book_topic:
            raise BundleError(
                f"model {found.name} was trained on {found.book_topic}, this run reads "
                f"{book_topic}; set market.book_depth accordingly or train again"
            )


def load_champion(root: str | Path, name: str) -> tuple[Pointer, Bundle] | None:
    """The champion's pointer and verified bundle, None when nothing has been promoted."""
    pointer = read_pointer(root, name)
    if pointer is None:
        return None
    folder = bundles_folder(root, name) / pointer.folder
    return pointer, Bundle.load(folder, pointer.manifest_sha256)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in ``data``; BundleError naming ``where`` when it is not valid."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"{where}: not a model manifest ({error}); train again") from error
    if manifest.format not in FORMATS:
        raise BundleError(f"{where}: format {manifest.format}, this code reads up to {FORMAT}")
    if list_hash(manifest.features) != manifest.feature_list_hash:
        raise BundleError(f"{where}: the feature list does not have its hash; train again")
    recipe = manifest.recipe
    if recipe.scale.feature not in recipe.features:
        raise BundleError(f"{where}: scale feature {recipe.scale.feature} is not a feature")
    if any(Path(member.booster).name != member.booster for member in recipe.members):
        raise BundleError(f"{where}: a booster is not a plain file name; train again")
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror}); run the resolver again"
        ) from error
