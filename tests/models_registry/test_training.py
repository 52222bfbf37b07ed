"""The pipeline finds what was planted, abstains where there is nothing, and repeats itself."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import planted
import pytest
from conftest import train

from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS
from models_registry import card, dataset, ensemble, training
from models_registry.dataset import DatasetError, Features
from models_registry.evaluation import Evaluation
from models_registry.fold import FoldModel, Trainer, Tuned, folds_of
from models_registry.pictures import pictures
from models_registry.slopes import LineFit, fit_line, pooled, recency
from models_registry.training import TrainedModel
from models_registry.validation import effective_count


def study_of(lake: Lake, settings: Settings) -> Evaluation:
    return training.evaluate(planted.source(lake), settings, planted.FEATURES)


def rows_of(lake: Lake) -> dataset.Rows:
    source = planted.source(lake)
    return source.read(source.dates(), planted.FEATURES.names, 5)


def test_rows_in_memory_are_evaluated_like_those_of_a_lake(
    planted_lake: Lake,
    planted_settings: Settings,
    trained: tuple[Evaluation, TrainedModel],
) -> None:
    lake_source = planted.source(planted_lake)
    every = lake_source.read(lake_source.dates(), planted.FEATURES.names)
    source = dataset.MemorySource(every, planted.FEATURES.names)
    study = training.evaluate(source, planted_settings, planted.FEATURES)
    assert study.blocks == trained[0].blocks
    assert study.results == trained[0].results


def test_a_planted_signal_is_detected_and_promoted(
    trained: tuple[Evaluation, TrainedModel],
) -> None:
    study, model = trained
    assert study.gate.verdict == "promote"
    assert len(study.blocks) == 3
    assert study.ic.rank > study.ic_lower > 0.1
    assert model.importance[0][0] in ("signal", "echo")
    assert all(member.weight >= 0 for member in model.manifest.recipe.members)
    assert sum(m.weight for m in model.manifest.recipe.members) == pytest.approx(1.0)
    assert model.manifest.recipe.horizons_s == planted.HORIZONS
    assert all(regime.threshold_bps == 0.0 for regime in model.manifest.recipe.regimes)
    assert model.manifest.decay.limit is not None


def test_expectations_are_returns_in_bps(trained: tuple[Evaluation, TrainedModel]) -> None:
    pooled = trained[0].pooled
    assert pooled is not None
    realised = pooled.rows.labels_bps[:, planted.HORIZONS.index(60)]
    line = fit_line(pooled.raw_bps, realised, pooled.rows.t_ns, 60)
    assert line.slope == pytest.approx(1.0, abs=3 * line.error)
    assert line.error < 0.2


def test_higher_fees_only_ever_cost(trained: tuple[Evaluation, TrainedModel]) -> None:
    by_row = {result.row: result for result in trained[0].results}
    assert set(by_row) == {"vip0", "vip3", "zero"}
    assert by_row["vip0"].trades <= by_row["vip3"].trades <= by_row["zero"].trades
    assert by_row["zero"].break_even_bps > 0


def test_noise_abstains_and_every_regime_without_evidence_stays_closed(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path / "lake", 5, 0.0)
    study, model = train(lake, planted.settings(tmp_path / "lake"))
    assert study.gate.verdict == "abstain"
    assert abs(study.ic.rank) < 3.5 / np.sqrt(study.ic.n_eff)
    recipe = model.manifest.recipe
    if recipe.gain == 0.0:
        assert all(regime.threshold_bps is None for regime in recipe.regimes)


def test_too_few_days_are_not_enough_data_and_say_so(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path / "lake", 3, 0.25)
    study = study_of(lake, planted.settings(tmp_path / "lake"))
    assert study.gate.verdict == "not_enough_data"
    assert study.gate.reasons[0] == "1 test blocks of at least 3"
    assert len(study.blocks) == 1


def test_nothing_at_all_is_not_enough_data(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", "synthetic")
    settings = planted.settings(tmp_path / "lake")
    study = study_of(lake, settings)
    assert study.gate.verdict == "not_enough_data"
    assert "0 dates with warm rows" in study.gate.reasons[1]
    about = card.About(
        name="synthetic-l2", source="synthetic", git_sha="x", fingerprint="y", fee_row="zero",
        block_s=600,
    )  # fmt: skip
    assert "not enough data" in card.text(study, None, about)
    assert pictures(study, None) == {}
    assert card.fold_csv(study).count("\n") == 1
    with pytest.raises(ValueError, match="makes no model"):
        training.finish(
            study, planted.source(lake), settings, planted.FEATURES,
            data_fingerprint="y", git_sha="x",
        )  # fmt: skip


def test_a_few_minutes_a_day_are_too_few_to_train_or_judge(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", "synthetic")
    for date in range(1, 7):
        name = f"2026-01-0{date}"
        lake.write("training_set", "BTCUSDT", name, planted.day(name, 0, 0.25, 200), inputs="x")
    study = study_of(lake, planted.settings(tmp_path / "lake"))
    assert study.gate.verdict == "not_enough_data"
    assert not study.blocks
    assert any("of at least 500" in reason for reason in study.gate.reasons)


def test_the_same_data_and_code_are_the_same_bytes(
    planted_lake: Lake, planted_settings: Settings, trained: tuple[Evaluation, TrainedModel]
) -> None:
    _, again = train(planted_lake, planted_settings)
    assert dict(again.files) == dict(trained[1].files)


def test_later_data_cannot_change_a_fold(
    planted_lake: Lake,
    planted_settings: Settings,
    trained: tuple[Evaluation, TrainedModel],
    tmp_path: Path,
) -> None:
    # The first blocks of a shorter lake are the first blocks of the longer one.
    shorter = Lake(tmp_path / "lake", "synthetic")
    for symbol, date in planted_lake.partitions("training_set"):
        if date <= "2026-01-04":
            table = planted_lake.read("training_set", symbol, date)
            shorter.write("training_set", symbol, date, table, inputs="x")
    study = study_of(shorter, msgspec.structs.replace(planted_settings, root=shorter.uri))
    assert len(study.blocks) == 2
    for short, long in zip(study.blocks, trained[0].blocks, strict=False):
        assert (short.ic, short.net_total_bps) == (long.ic, long.net_total_bps)


def test_the_first_fold_is_calibrated_on_what_its_boosters_had_not_seen(
    planted_lake: Lake, planted_settings: Settings
) -> None:
    names = planted.FEATURES.names
    rows = rows_of(planted_lake)
    fold = folds_of(rows.t_ns, planted_settings.model)[0]
    model = msgspec.structs.replace(planted_settings.model, select=3)

    def fitted(given: dataset.Rows) -> tuple[FoldModel, Tuned, ensemble.Outputs]:
        source = dataset.MemorySource(given, names)
        trainer = Trainer(source, planted.FEATURES, model, None, lambda line: None)
        made = trainer.fit(fold)
        assert isinstance(made, FoldModel)
        assert trainer.seen is not None
        return made, trainer.tuned, trainer.seen

    made, tuned, seen = fitted(rows)
    assert made.selection is not None
    assert {"signal", "echo"} <= set(made.selection.names) <= set(names)
    assert set(made.recipe.features) == {*made.selection.names, ensemble.SCALE_FEATURE}
    assert set(tuned.parameters) == set(planted.HORIZONS)
    broken = rows.labels_bps.copy()
    broken[~fold.train.mask(rows.t_ns)] *= -1.0
    other, again, as_seen = fitted(msgspec.structs.replace(rows, labels_bps=broken))
    assert other.selection is not None
    assert (other.selection.names, again) == (made.selection.names, tuned)
    assert np.array_equal(as_seen.output, seen.output)
    assert fold.calibration.mask(seen.rows.t_ns).all()
    assert made.recipe.gain > other.recipe.gain == 0.0


def test_a_horizon_is_tuned_where_independent_labels_can_judge(
    planted_lake: Lake, planted_settings: Settings
) -> None:
    rows, names = rows_of(planted_lake), planted.FEATURES.names
    source = dataset.MemorySource(rows, names)
    trainer = Trainer(source, planted.FEATURES, planted_settings.model, None, lambda line: None)
    fold = folds_of(rows.t_ns, planted_settings.model)[0]
    _, head, tail = trainer.spans(fold, True)
    # Hundreds of rows, of which a horizon of 300 s makes ten labels.
    assert effective_count(rows.t_ns[tail.mask(rows.t_ns)], 300) < ensemble.MIN_EFFECTIVE
    found = trainer.search(fold, names, head, tail, planted.HORIZONS)
    assert set(found) == {10, 60}
    trainer.note(fold, found)
    assert set(trainer.tuned.parameters) == set(planted.HORIZONS)
    assert trainer.tuned.looks == 2 * planted_settings.model.trials


def test_slopes_are_fitted_on_a_stated_number_of_rows_at_most(
    planted_lake: Lake, planted_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(planted_lake)
    monkeypatch.setattr("models_registry.fold.SEEN_ROWS", len(rows) // 3)
    source = dataset.MemorySource(rows, planted.FEATURES.names)
    trainer = Trainer(source, planted.FEATURES, planted_settings.model, None, lambda line: None)
    fold = folds_of(rows.t_ns, planted_settings.model)[0]
    assert isinstance(trainer.fit(fold), FoldModel)
    assert trainer.seen is not None
    held = fold.calibration.mask(rows.t_ns) & (rows.t_ns // SECOND_NS % trainer.seen_stride_s == 0)
    assert trainer.seen_stride_s == 3 * planted_settings.model.train_stride_s
    assert np.array_equal(trainer.seen.rows.t_ns, rows.t_ns[held])


def test_outcomes_of_test_blocks_calibrate_the_next_fold(
    planted_lake: Lake, planted_settings: Settings
) -> None:
    rows = rows_of(planted_lake)
    folds = folds_of(rows.t_ns, planted_settings.model)
    source = dataset.MemorySource(rows, planted.FEATURES.names)
    trainer = Trainer(source, planted.FEATURES, planted_settings.model, None, lambda line: None)
    made = trainer.fit(folds[0])
    assert isinstance(made, FoldModel)
    block = rows.where(folds[0].test.mask(rows.t_ns))
    # Whatever the boosters said there, they were wrong.
    output = ensemble.outputs(made.members, block.features, 1)
    trainer.add(block, block.features[:, -1].astype(float), -10.0 * output)
    worse = trainer.fit(folds[1])
    assert isinstance(worse, FoldModel)
    assert worse.train_rows > made.train_rows
    assert made.recipe.gain > worse.recipe.gain == 0.0


def test_slopes_are_drawn_together_by_their_errors() -> None:
    def line(slope: float, error: float) -> LineFit:
        return LineFit(slope=slope, error=error, n_eff=100.0)

    alike = pooled([line(1.0, 0.5), line(1.2, 0.5), line(0.8, 0.5)])
    assert [one.slope for one in alike] == pytest.approx([1.0] * 3)
    assert [one.error for one in alike] == pytest.approx([0.5 / np.sqrt(3)] * 3)
    # By hand: Q = 2 / 0.01, τ² = (200 - 2) / 200 = 0.99, B = 0.01 / (0.01 + 0.99).
    apart = pooled([line(-1.0, 0.1), line(0.0, 0.1), line(1.0, 0.1)])
    assert [one.slope for one in apart] == pytest.approx([-0.99, 0.0, 0.99])
    assert apart[0].error == pytest.approx(np.sqrt(0.99 * 0.01 + 0.01**2 / 3))
    unknown = pooled([line(1.0, 0.1), line(0.0, math.inf)])
    assert unknown[1].slope == pytest.approx(1.0)


def test_recent_rows_count_more_and_all_of_them_less() -> None:
    generator = np.random.default_rng(1)
    t_ns = np.arange(1, 6001, dtype=np.int64) * 600_000_000_000
    x = generator.normal(size=6000)
    y = np.where(t_ns > t_ns[3000], x, -x) + generator.normal(size=6000)
    assert fit_line(x, y, t_ns, 10).shrunk == 0.0
    found = fit_line(x, y, t_ns, 10, recency(t_ns))
    # A half-life of 720 rows: 2 * 720 / ln 2 equal ones.
    assert found.n_eff == pytest.approx(2 * 720 / np.log(2) / 1, rel=0.01)
    assert found.slope == pytest.approx(1.0 - 2 * 0.5 ** (3000 / 720), abs=0.1)


def test_a_line_s_error_grows_with_overlap_and_noise_shrinks_to_nothing() -> None:
    generator = np.random.default_rng(1)
    t_ns = np.arange(1, 6001, dtype=np.int64) * 1_000_000_000
    x = generator.normal(size=6000)
    strong = fit_line(x, 2.0 * x + generator.normal(size=6000), t_ns, 10)
    assert strong.slope == pytest.approx(2.0, abs=0.1)
    assert 0.95 * strong.slope < strong.shrunk < strong.slope
    longer = fit_line(x, 2.0 * x + generator.normal(size=6000), t_ns, 1000)
    assert longer.error == pytest.approx(10 * strong.error, rel=0.1)
    assert fit_line(x, -x, t_ns, 10).shrunk == 0.0
    assert fit_line(np.zeros(6000), x, t_ns, 10).shrunk == 0.0


def test_a_missing_column_or_scale_is_named(planted_lake: Lake, planted_settings: Settings) -> None:
    absent = Features.of((*planted.FEATURES.names, "absent"))
    with pytest.raises(DatasetError, match=r"no column absent; materialise training_set"):
        training.evaluate(planted.source(planted_lake), planted_settings, absent)
    with pytest.raises(DatasetError, match="realised_vol_300"):
        training.evaluate(planted.source(planted_lake), planted_settings, Features.of(("signal",)))


def test_strided_rows_are_the_full_rows_at_those_seconds(planted_lake: Lake) -> None:
    names = planted.FEATURES.names
    every = dataset.load(planted_lake, planted.SYMBOLS, ["2026-01-02"], names, planted.HORIZONS)
    some = dataset.load(
        planted_lake, planted.SYMBOLS, ["2026-01-02"], names, planted.HORIZONS, stride_s=5
    )
    kept = every.where((every.t_ns // 1_000_000_000) % 5 == 0)
    for field in dataset.Rows.__struct_fields__:
        assert np.array_equal(getattr(some, field), getattr(kept, field), equal_nan=True)
    assert (np.diff(every.t_ns) >= 0).all()


def test_pictures_are_repeatable_png_files(trained: tuple[Evaluation, TrainedModel]) -> None:
    study, model = trained
    first, second = pictures(study, model), pictures(study, model)
    names = ("calibration", "decay", "folds", "ic_by_block", "importance", "net", "reliability")
    assert sorted(first) == [f"{name}.png" for name in names]
    assert all(image.startswith(b"\x89PNG") for image in first.values())
    assert first == second
