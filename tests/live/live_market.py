"""A champion bundle small enough for a test, and settings of a synthetic lake."""

from __future__ import annotations

from pathlib import Path

import lightgbm
import msgspec
import numpy as np

from market.features import feature_hash, feature_names
from market.settings import Execution, Model, Registry, Settings
from models_registry.manifest import (
    FORMAT,
    MANIFEST_FILE,
    POINTER_FILE,
    DecayReference,
    Fees,
    Gate,
    Manifest,
    Pointer,
    TrainingWindow,
    bundles_folder,
    encode,
    list_hash,
    sha256,
)
from models_registry.recipe import (
    Calibration,
    Member,
    Recipe,
    Regime,
    Scale,
)

HORIZONS = (10, 60)


def live_settings(root: Path, promotion: str = "auto", **execution: object) -> Settings:
    """Settings of a synthetic lake without fees, so that a small signal trades."""
    return Settings(
        root=str(root),
        source="synthetic",
        model=Model(horizons_s=HORIZONS, primary_s=60, fee_row="zero"),
        registry=msgspec.convert({"promotion": promotion}, Registry),
        execution=msgspec.convert({"deadline_s": 10.0, **execution}, Execution),
    )


def promote(root: Path, version: str = "1", name: str = "synthetic-l2", **changes: object) -> str:
    """Write a bundle whose prediction follows the trade flow of a minute, and point at it.

    ``changes`` replace fields of the manifest; ``sign`` inverts the prediction, ``follows`` names
    another feature, ``features`` are those that the model takes, all by default.
    """
    names: tuple[str, ...] = changes.pop("features", feature_names())  # type: ignore[assignment]
    sign = float(changes.pop("sign", 1.0))  # type: ignore[arg-type]
    follows = names.index(str(changes.pop("follows", "tfi_60")))
    folder = bundles_folder(root, name) / f"{version}-test"
    folder.mkdir(parents=True)
    members = _members(folder, len(names), follows, sign)
    recipe = Recipe(
        features=names,
        primary_s=60,
        scale=Scale(feature="realised_vol_300", window_s=300, floor_bps=1.0),
        members=members,
        gain=1.0,
        regimes=(Regime(name="all", up_to_bps=None, threshold_bps=0.0),),
    )
    manifest = Manifest(
        format=FORMAT,
        name=name,
        source="synthetic",
        book_topic="orderbook.200",
        symbols=("BTCUSDT", "ETHUSDT"),
        feature_hash=feature_hash(),
        feature_list_hash=list_hash(names),
        recipe=recipe,
        fees=Fees(row="zero", taker_bps=0.0, maker_bps=0.0),
        window=TrainingWindow(
            first_date="2026-03-01",
            last_date="2026-03-01",
            first_ns=0,
            last_ns=1,
            rows=1,
            stride_s=1,
        ),
        data_fingerprint="test",
        git_sha="test",
        seed=1,
        parameters={},
        gate=Gate(verdict="promote", reasons=()),
        decay=DecayReference(
            spacing_s=60, mean=0.0, drift=0.0, limit=None, arl0_days=30.0, observations=0
        ),
        metrics={},
    )
    data = encode(msgspec.structs.replace(manifest, **changes))
    (folder / MANIFEST_FILE).write_bytes(data)
    pointer = Pointer(name=name, version=version, folder=folder.name, manifest_sha256=sha256(data))
    temporary = folder.parent / ".pointer.tmp"
    temporary.write_bytes(encode(pointer))
    temporary.replace(folder.parent / POINTER_FILE)
    return version


def _members(folder: Path, features: int, follows: int, sign: float) -> tuple[Member, ...]:
    """Boosters, one per horizon, trained on the sign of one column of random rows."""
    rng = np.random.Generator(np.random.Philox(key=5))
    rows = rng.normal(size=(2_000, features))
    label = sign * np.sign(rows[:, follows])
    members = []
    for horizon in HORIZONS:
        booster = lightgbm.train(
            {
                "objective": "regression",
                "num_leaves": 4,
                "verbose": -1,
                "deterministic": True,
                "num_threads": 1,
            },
            lightgbm.Dataset(rows, label),
            num_boost_round=5,
        )
        text = booster.model_to_string().encode()
        (folder / f"booster_{horizon}s.txt").write_bytes(text)
        line = Calibration(fitted=1.0, error=0.0, n_eff=100.0, slope=1.0, table=())
        members.append(
            Member(
                horizon_s=horizon,
                booster=f"booster_{horizon}s.txt",
                sha256=sha256(text),
                calibration=line,
                to_primary=1.0,
                weight=0.5,
                ic=0.1,
            )
        )
    return tuple(members)
