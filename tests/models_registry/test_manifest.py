"""A bundle: loaded without MLflow, verified, and giving one row and many the same numbers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from market.lake import Lake
from models_registry import dataset
from models_registry.evaluation import Evaluation
from models_registry.manifest import (
    MANIFEST_FILE,
    POINTER_FILE,
    Bundle,
    BundleError,
    Pointer,
    bundles_folder,
    encode,
    load_champion,
    read_pointer,
    sha256,
)
from models_registry.recipe import (
    Regime,
    Scale,
    regime_index,
    scale_bps,
)
from models_registry.training import TrainedModel


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def matrix(planted_lake: Lake, trained: tuple[Evaluation, TrainedModel]) -> np.ndarray:
    manifest = trained[1].manifest
    rows = dataset.load(
        planted_lake, manifest.symbols, ["2026-01-05"], manifest.features, manifest.horizons_s
    )
    return rows.features[:3000]


def test_one_row_and_many_give_the_same_bits(bundle_folder: Path, matrix: np.ndarray) -> None:
    bundle = Bundle.load(bundle_folder)
    many = bundle.predict_many(matrix)
    threaded = bundle.predict_many(matrix, threads=2)
    assert np.array_equal(many.raw_bps, threaded.raw_bps)
    for row in range(0, 3000, 61):
        one = bundle.predict(matrix[row])
        assert one.raw_bps == many.raw_bps[row]
        assert one.expected_bps == many.expected_bps[row]
        assert one.by_horizon == tuple(many.by_horizon[row])
        assert one.regime == bundle.recipe.regimes[many.regime[row]].name


def test_a_model_is_asked_on_the_values_that_the_training_set_keeps(
    bundle_folder: Path, matrix: np.ndarray
) -> None:
    """Live features are float64: what float32 does not tell apart is one value, and so one answer."""
    bundle = Bundle.load(bundle_folder)
    assert matrix.dtype == np.float32
    kept = bundle.predict_many(matrix)
    exact = matrix.astype(np.float64)
    nudges = np.random.default_rng(3).uniform(-0.49, 0.49, matrix.shape) * 2.0**-25
    for live in (exact, exact * (1 + nudges)):
        assert np.array_equal(bundle.predict_many(live).raw_bps, kept.raw_bps, equal_nan=True)
    beyond, missing = exact.copy(), exact.copy()
    beyond[:, 1], missing[:, 1] = 1e39, np.nan
    assert np.array_equal(
        bundle.predict_many(beyond).raw_bps, bundle.predict_many(missing).raw_bps, equal_nan=True
    )


def test_validation_and_serving_predict_the_same(
    bundle_folder: Path, trained: tuple[Evaluation, TrainedModel]
) -> None:
    assert Bundle.load(bundle_folder).manifest == trained[1].manifest


def test_a_bundle_needs_neither_mlflow_nor_training_code(bundle_folder: Path) -> None:
    program = (
        "import sys, numpy as np\n"
        "from models_registry.manifest import Bundle\n"
        f"bundle = Bundle.load({str(bundle_folder)!r})\n"
        "made = bundle.predict(np.zeros(len(bundle.manifest.features)))\n"
        "heavy = {'mlflow', 'dagster', 'dbt', 'great_expectations', 'optuna', 'matplotlib',\n"
        "         'models_registry.training', 'models_registry.registry'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert np.isfinite(made.expected_bps)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_row_without_volatility_has_no_prediction(
    bundle_folder: Path, matrix: np.ndarray
) -> None:
    bundle = Bundle.load(bundle_folder)
    row = matrix[0].copy()
    row[bundle.manifest.features.index("realised_vol_300")] = np.nan
    made = bundle.predict(row)
    assert np.isnan(made.expected_bps)
    assert made.regime == "unknown"


def test_a_closed_regime_predicts_zero_but_still_ranks(
    bundle_folder: Path, trained: tuple[Evaluation, TrainedModel], matrix: np.ndarray
) -> None:
    open_bundle = Bundle.load(bundle_folder)
    recipe = open_bundle.recipe
    shut = tuple(msgspec.structs.replace(r, threshold_bps=None) for r in recipe.regimes)
    manifest = msgspec.structs.replace(
        open_bundle.manifest, recipe=msgspec.structs.replace(recipe, regimes=shut)
    )
    closed = Bundle(manifest, open_bundle.boosters, "").predict_many(matrix)
    assert not closed.expected_bps.any()
    assert np.array_equal(closed.raw_bps, open_bundle.predict_many(matrix).raw_bps)
    high = tuple(msgspec.structs.replace(r, threshold_bps=2.0) for r in recipe.regimes)
    manifest = msgspec.structs.replace(
        manifest, recipe=msgspec.structs.replace(recipe, regimes=high)
    )
    some = Bundle(manifest, open_bundle.boosters, "").predict_many(matrix)
    acted = some.expected_bps != 0
    assert np.array_equal(acted, np.abs(some.raw_bps) >= 2.0)
    assert 0 < acted.sum() < len(acted)


def test_scale_and_regime_by_hand() -> None:
    scale = Scale(feature="v", window_s=300, floor_bps=2.0)
    assert scale_bps(np.array([1.0, 8.0, np.nan]), scale, 75)[:2].tolist() == [1.0, 4.0]
    regimes = [
        Regime(name=n, up_to_bps=e, threshold_bps=0.0)
        for n, e in (("low", 5.0), ("normal", 9.0), ("high", None))
    ]
    found = regime_index(np.array([1.0, 5.0, 5.1, 9.5, np.nan]), regimes)
    assert found.tolist() == [0, 0, 1, 2, -1]


def test_a_wrong_number_of_features_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(ValueError, match="takes 6 features"):
        Bundle.load(bundle_folder).predict(np.zeros(5))


def test_a_changed_booster_is_refused(copy: Path) -> None:
    booster = copy / "booster_60s.txt"
    booster.write_bytes(booster.read_bytes().replace(b"leaf_value=", b"leaf_value=9", 1))
    with pytest.raises(BundleError, match=r"booster_60s\.txt: checksum .* is not the manifest's"):
        Bundle.load(copy)


def test_a_changed_manifest_is_refused_by_its_registered_checksum(copy: Path) -> None:
    path = copy / MANIFEST_FILE
    registered = sha256(path.read_bytes())
    assert Bundle.load(copy, registered).manifest_sha256 == registered
    path.write_bytes(path.read_bytes().replace(b'"gain": ', b'"gain": 9', 1))
    with pytest.raises(BundleError, match="is not the registered"):
        Bundle.load(copy, registered)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"noise_1"', b'"noise_9"', "feature list does not have its hash"),
        (b'"format": 2', b'"format": 3', "format 3, this code reads up to 2"),
        (b'"format": 2', b'"format": 2, "extra": 1', "unknown field `extra`"),
        (b'"format": 2', b'"format": ', "not a model manifest"),
        (b'"booster_60s.txt"', b'"../booster_60s.txt"', "not a plain file name"),
    ],
)
def test_an_invalid_manifest_is_refused_in_one_line(copy, old, new, said) -> None:
    path = copy / MANIFEST_FILE
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(BundleError, match=said) as caught:
        Bundle.load(copy)
    assert "\n" not in str(caught.value)
    assert MANIFEST_FILE in str(caught.value)


def test_a_missing_booster_is_named(copy: Path) -> None:
    (copy / "booster_10s.txt").unlink()
    with pytest.raises(BundleError, match=r"booster_10s\.txt: cannot be read"):
        Bundle.load(copy)


def test_other_features_or_another_topic_are_refused(bundle_folder: Path) -> None:
    bundle = Bundle.load(bundle_folder)
    bundle.require(bundle.manifest.feature_hash, "orderbook.200")
    with pytest.raises(BundleError, match="feature definitions"):
        bundle.require("other", "orderbook.200")
    with pytest.raises(BundleError, match=r"trained on orderbook\.200"):
        bundle.require(bundle.manifest.feature_hash, "orderbook.50")


def test_the_pointer_names_the_champion_and_a_damaged_one_is_an_error(
    bundle_folder: Path, tmp_path: Path
) -> None:
    assert read_pointer(tmp_path, "btc-l2") is None
    assert load_champion(tmp_path, "btc-l2") is None
    home = bundles_folder(tmp_path, "btc-l2")
    shutil.copytree(bundle_folder, home / "3-abc")
    digest = sha256((bundle_folder / MANIFEST_FILE).read_bytes())
    pointer = Pointer(name="btc-l2", version="3", folder="3-abc", manifest_sha256=digest)
    (home / POINTER_FILE).write_bytes(encode(pointer))
    found = load_champion(tmp_path, "btc-l2")
    assert found is not None
    assert found[0] == pointer
    assert found[1].manifest_sha256 == digest
    (home / POINTER_FILE).write_text("{")
    with pytest.raises(BundleError, match="not a champion pointer"):
        read_pointer(tmp_path, "btc-l2")
