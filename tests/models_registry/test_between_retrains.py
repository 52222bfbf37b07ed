"""Between two retrains: decay goes on hourly, a patch has to be better, a challenger is compared."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from live.collect import PREDICTED
from market.features import feature_names
from market.lake import Lake
from market.settings import Settings
from market.units import day_start_ns, utc_date
from models_registry import comparison, online, store
from models_registry.decay import DecayState
from models_registry.manifest import (
    MANIFEST_FILE,
    POINTER_FILE,
    BundleError,
    DecayReference,
    bundles_folder,
    read_pointer,
)
from models_registry.monitoring import calibration_slope, check, psi, read_state, served
from models_registry.pointed import (
    CHALLENGER_FILE,
    DECAY_FILE,
    Patch,
    apply,
    find,
    load_pointed,
    publish,
    withdraw,
)
from models_registry.recipe import Certificate, Regime, Step
from models_registry.resolver import follow_challenger
from orchestration.dashboard.model_record import importance
from tests.live.live_market import live_settings, promote

S = 1_000_000_000
FIRST = "2026-03-09"
START = day_start_ns(FIRST)
HOUR = 3_600 // 15
NAME = "synthetic-l2"
COST_BPS = 0.5
REFERENCE = DecayReference(
    spacing_s=60, mean=0.2, drift=0.16, limit=30.0, arl0_days=30.0, observations=7200
)
Float = np.ndarray


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    promote(tmp_path, decay=REFERENCE)
    return live_settings(tmp_path)


def serve(
    settings: Settings, begin: int, raw: Float, realised: Float, version: str = "1", rival: str = "2", **shadow: Float
) -> Lake:  # fmt: skip
    """Decisions every 15 s from hour ``begin`` on (n,) and their labels; with ``shadow`` a challenger's."""
    lake = Lake(settings.root, "synthetic")
    t_ns = START + (begin * HOUR + np.arange(1, len(raw) + 1)) * 15 * S
    days = np.array([utc_date(int(t)) for t in t_ns])
    for day in np.unique(days):
        on = days == day
        n = int(on.sum())
        columns = {
            "run": ["r"] * n,
            "t_ns": t_ns[on],
            "model_version": [version] * n,
            "raw_bps": raw[on],
            "expected_bps": raw[on],
            "cost_bps": np.full(n, COST_BPS),
            **{name: shadow.get(name, np.ones(len(raw)))[on] for name in feature_names()},
        }
        parts = {
            "decisions": pa.table(columns),
            "realised": pa.table(
                {
                    "t_ns": t_ns[on] + 61 * S,
                    "decided_ns": [[int(t)] for t in t_ns[on]],
                    "horizon_s": [[60]] * n,
                    "return_bps": [[float(y)] for y in realised[on]],
                },
                schema=PREDICTED["realised"],
            ),
        }
        if "challenger" in shadow:
            parts["shadow"] = pa.table(
                {
                    "t_ns": t_ns[on],
                    "model_version": [rival] * n,
                    "bundle_sha": ["s"] * n,
                    "raw_bps": shadow["challenger"][on],
                    "scale_bps": np.ones(n),
                }
            )
        for table, rows in parts.items():
            if lake.exists(table, "BTCUSDT", str(day)):
                rows = pa.concat_tables([lake.read(table, "BTCUSDT", str(day)), rows])
            lake.write(table, "BTCUSDT", str(day), rows)
    return lake


def noisy(n: int, ic: float, seed: int) -> tuple[Float, Float]:
    generator = np.random.default_rng(seed)
    raw = generator.normal(size=n)
    return raw, ic * raw + np.sqrt(1 - ic**2) * generator.normal(size=n)


def test_decay_is_found_hourly_and_stands_until_another_version_is_champion(
    settings: Settings,
) -> None:
    home = bundles_folder(settings.root, NAME)
    lake = serve(settings, 0, *noisy(30 * HOUR, 0.2, 1))
    assert not check(lake, settings).failed
    before = read_state(home)
    assert before.watched_to_ns == START + 30 * 3600 * S, "whole hours"
    serve(settings, 30, *noisy(20 * HOUR, 0.0, 2))
    report = check(lake, settings)
    assert report.failed
    assert START + 30 * 3600 * S < report.alarm_ns < START + 42 * 3600 * S
    state = read_state(home)
    assert check(lake, settings) == report, "an hour is watched once"
    (home / DECAY_FILE).unlink()
    check(lake, settings)
    assert read_state(home) == state, "in two steps as in one"
    promote(Path(settings.root), "2", decay=REFERENCE)
    assert not check(lake, settings).failed
    assert read_state(home) == msgspec.structs.replace(state, alarm_ns=None, alarm_version=""), (
        "the stream goes on"
    )


def test_a_calibration_that_drifted_is_told_from_a_good_one(settings: Settings) -> None:
    raw, realised = noisy(30 * HOUR, 0.3, 3)
    rows = served(
        serve(settings, 0, 0.3 * raw, realised), load_pointed(settings.root, NAME)[1].manifest
    )
    slope, error = calibration_slope(rows)
    assert slope == pytest.approx(1.0, abs=3 * error)
    bold, error = calibration_slope(msgspec.structs.replace(rows, raw_bps=3 * rows.raw_bps))
    assert bold == pytest.approx(1 / 3, abs=3 * error)


def test_the_psi_without_drift_is_that_of_chance_and_grows_with_a_shift() -> None:
    generator = np.random.default_rng(4)
    old, new = generator.normal(size=5_000), generator.normal(size=(200, 500))
    chance = np.mean([psi(old, one) for one in new])
    assert chance == pytest.approx(9 * (1 / 5_000 + 1 / 500), rel=0.15)
    assert psi(old, new[0] + 1.0) > 0.5
    assert psi(old, np.where(np.arange(500) % 2, np.nan, new[0])) > 0.5


def test_a_patch_is_adopted_only_if_it_is_better_and_dies_with_its_champion(
    settings: Settings,
) -> None:
    root = Path(settings.root)
    bundle = load_pointed(root, NAME)[1]
    generator = np.random.default_rng(5)
    n = 60 * HOUR
    flow = generator.normal(size=n)
    vectors = np.ones((n, len(feature_names())))
    vectors[:, feature_names().index("tfi_60")] = flow
    made = bundle.predict_many(vectors)
    noise = made.raw_bps.std() * generator.normal(size=n)
    lake = serve(settings, 0, made.raw_bps, made.raw_bps + noise, tfi_60=flow)
    assert not online.refit(lake, settings).adopted, "as it was calibrated"
    for table in ("decisions", "realised"):
        for key in lake.partitions(table):
            lake.remove(table, *key)
    serve(settings, 0, made.raw_bps, 0.3 * made.raw_bps + noise, tfi_60=flow)
    found = online.refit(lake, settings)
    assert found.adopted, found.summary
    pointer, patched = load_pointed(root, NAME)
    assert pointer.patch
    shrunk = patched.predict_many(vectors[:100]).raw_bps / made.raw_bps[:100]
    assert np.all((shrunk > 0.3) & (shrunk < 0.9))
    again, same = find(bundles_folder(root, NAME), pointer.in_force)
    assert again.version == "1"
    assert same.recipe == patched.recipe
    promote(root, "2", sign=-1.0)
    assert read_pointer(root, NAME).patch == ""
    patch = Patch(
        name=NAME, version="1", manifest_sha256=bundle.manifest_sha256, until_ns=0,
        weights=(1.0, 1.0), gain=1.0,
    )  # fmt: skip
    assert publish(root, patch) is None, "of a champion that is none any more"
    with pytest.raises(BundleError, match="dies with its champion"):
        apply(load_pointed(root, NAME)[1], patch)
    with pytest.raises(BundleError, match="finite"):
        apply(bundle, msgspec.structs.replace(patch, weights=(1.0, float("nan"))))


@pytest.mark.parametrize("alike", [True, False])
def test_the_act_rule_of_a_certified_recipe_follows_what_it_served(
    alike: bool, settings: Settings
) -> None:
    root, generator = Path(settings.root), np.random.default_rng(8)
    model = msgspec.structs.replace(settings.model, certify="gross")
    settings = msgspec.structs.replace(settings, model=model)
    flow = generator.normal(size=60 * HOUR)
    vectors = np.ones((len(flow), len(feature_names())))
    vectors[:, feature_names().index("tfi_60")] = flow
    steps = tuple(
        Step(score=score, coverage=0.1, n_eff=500.0, rate=0.1, upper=upper)
        for score, upper in ((1.6, 0.12), (1.0, 0.19), (0.7, 0.35))
    )
    certificate = Certificate(
        basis="gross", fee_row="zero", target=0.2, confidence=0.95, least_score=1.0, steps=steps
    )
    regime = Regime(
        name="all", up_to_bps=None, threshold_bps=0.0, least_score=1.0, certificates=(certificate,)
    )
    recipe = load_pointed(root, NAME)[1].recipe
    recipe = msgspec.structs.replace(recipe, act="certified", regimes=(regime,), gain=0.5)
    promote(root, "3", recipe=recipe, decay=REFERENCE)
    bundle = load_pointed(root, NAME)[1]
    scale = bundle.predict_many(vectors[:1]).scale_bps[0]
    came = flow if alike else generator.normal(size=len(flow))
    lake = serve(settings, 0, flow * scale, came, version="3", tfi_60=flow)
    found = online.refit(lake, settings)
    assert found.adopted, found.summary
    pointer, patched = load_pointed(root, NAME)
    (now,) = patched.recipe.regimes
    if alike:  # never false: the level rises past every step
        assert (now.threshold_bps, now.least_score) == (0.0, 0.7)
    else:
        assert now.threshold_bps is None, "half of them are false"
        assert not patched.predict_many(vectors).expected_bps.any()
    assert patched.recipe.gain == 0.5, "its error is of what the gain multiplies"
    file = bundles_folder(root, NAME) / "patches" / f"{pointer.patch}.json"
    patch = msgspec.json.decode(file.read_bytes(), type=Patch)
    assert patch.adaptive is not None
    other = msgspec.structs.replace(patch, adaptive=patch.adaptive * 2)
    with pytest.raises(BundleError, match="not 1 regimes"):
        apply(bundle, other)


@pytest.mark.parametrize(("ic", "better"), [(0.5, "challenger"), (0.2, "open"), (0.0, "champion")])
def test_challenger_and_champion_are_told_apart(ic: float, better: str, settings: Settings) -> None:
    raw, realised = noisy(60 * HOUR, 0.3, 6)
    other = ic * realised + np.sqrt(1 - ic**2) * np.random.default_rng(7).normal(size=len(raw))
    assert "no challenger" in comparison.compare(Lake(settings.root, "synthetic"), settings)
    home = bundles_folder(settings.root, NAME)
    pointer = msgspec.structs.replace(read_pointer(settings.root, NAME), version="2")
    (home / CHALLENGER_FILE).write_bytes(msgspec.json.encode(pointer))
    lake = serve(settings, 0, other if better == "open" else raw, realised, challenger=other)
    found = comparison.compare(lake, settings)
    assert found.hours >= 59
    assert found.better == better
    assert found.lower <= found.difference <= found.upper


def test_challengers_that_follow_one_another_are_one_stream(settings: Settings) -> None:
    raw, realised = noisy(60 * HOUR, 0.1, 6)
    other = 0.5 * realised + np.sqrt(0.75) * np.random.default_rng(7).normal(size=len(raw))
    home = bundles_folder(settings.root, NAME)
    for day in range(3):
        now = slice(day * 20 * HOUR, (day + 1) * 20 * HOUR)
        rival = str(2 + day)
        pointer = msgspec.structs.replace(read_pointer(settings.root, NAME), version=rival)
        (home / CHALLENGER_FILE).write_bytes(msgspec.json.encode(pointer))
        lake = serve(
            settings, day * 20, raw[now], realised[now], rival=rival, challenger=other[now]
        )
    found = comparison.compare(lake, settings)
    assert (found.challenger, found.earlier, found.better) == ("4", 2, "challenger")
    assert found.hours >= 59
    assert found.summary.startswith("challenger 4 and 2 before it less champion 1: rank IC +0.")


def test_the_shadow_s_pointer_follows_the_challenger_unless_that_is_champion(
    registered: tuple[Lake, Settings],
) -> None:
    _, settings = registered
    name = settings.model_name
    file = bundles_folder(settings.root, name) / CHALLENGER_FILE
    assert follow_challenger(settings) == "", "version 1 is both"
    with store.registry_client(settings) as client:
        client.delete_registered_model_alias(name, store.CHAMPION)
        try:
            assert follow_challenger(settings) == "1"
            assert load_pointed(settings.root, name, CHALLENGER_FILE)[0].version == "1"
        finally:
            client.set_registered_model_alias(name, store.CHAMPION, "1")
    assert follow_challenger(settings) == ""
    assert not file.exists()


def test_a_patch_is_withdrawn_of_the_champion_that_had_it_alone(settings: Settings) -> None:
    root = Path(settings.root)
    patched = msgspec.structs.replace(read_pointer(root, NAME), patch="f" * 64)
    pointer_file = bundles_folder(root, NAME) / POINTER_FILE
    pointer_file.write_bytes(msgspec.json.encode(patched))
    assert withdraw(root, patched)
    assert read_pointer(root, NAME) == msgspec.structs.replace(patched, patch="")
    promote(root, "2")
    promoted = pointer_file.read_bytes()
    assert not withdraw(root, patched), "another was promoted meanwhile"
    assert pointer_file.read_bytes() == promoted


def test_folders_beside_the_versions_stop_no_hourly_check(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    home = bundles_folder(settings.root, NAME)
    manifest = (home / "1-test" / MANIFEST_FILE).read_bytes()
    for folder, data in {
        ".0a1b.tmp": manifest[:100], "notes": b"{}", "7-old": b"{", "3-older": manifest
    }.items():  # fmt: skip
        (home / folder).mkdir()
        (home / folder / MANIFEST_FILE).write_bytes(data)
    lake = serve(settings, 0, *noisy(30 * HOUR, 0.2, 1))
    assert check(lake, settings).observations > 0
    said = capsys.readouterr().err
    assert said.count("without its reference") == 1
    assert "7-old" in said
    assert importance(home)["versions"] == ["1"], "of the others the boosters are not there"


def test_an_unreadable_state_begins_anew(settings: Settings) -> None:
    home = bundles_folder(settings.root, NAME)
    (home / DECAY_FILE).write_bytes(b"{")
    assert read_state(home) == DecayState()
