"""What stands beside the data: the truth by the second, the log of what was planted, decoys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from market.lake import Lake, LakeError
from market.units import day_start_ns
from proving.synthetic import latent, tables, write_truth
from proving.synthetic.page import PAGE, page
from proving.synthetic.planted import alpha_sd
from proving.synthetic.profiles import instant_ns, profile

DAY = "2026-03-08"


def test_the_committed_profiles_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run make generate"


def test_the_truth_is_the_latent_day_at_the_ends_of_seconds() -> None:
    market = profile("regimes")
    found = tables.truth(market, 3, "BTCUSDT", DAY)
    hidden = latent.drivers(market, 3, "BTCUSDT", DAY)
    assert found["t_ns"][0].as_py() == day_start_ns(DAY) + 10**9
    assert found["alpha"].to_numpy()[59] == hidden.alpha[600]
    sd = alpha_sd(market, "BTCUSDT")
    alpha = sd * found["strength"].to_numpy() * found["x"].to_numpy()
    assert np.allclose(found["alpha"].to_numpy(), alpha)
    assert set(np.unique(found["strength"].to_numpy())) <= {1.0, 0.0, -1.0}


def test_on_null_the_truth_is_zero() -> None:
    found = tables.truth(profile("null"), 7, "BTCUSDT", DAY)
    assert not found["alpha"].to_numpy().any()
    assert not found["filtered_alpha"].to_numpy().any()


def test_the_log_has_every_change_at_its_instant() -> None:
    log = tables.planted_log(profile("decay"), 3, "BTCUSDT", DAY).to_pylist()
    assert [row["t_ns"] for row in log] == sorted(row["t_ns"] for row in log)
    changes = [row for row in log if row["what"] == "change"]
    assert [(row["t_ns"], row["value"], row["note"]) for row in changes] == [
        (instant_ns("2026-03-08T00:00:00"), 0.0, "alpha: step to value")
    ]
    regimes = [row for row in log if row["what"] == "regime"]
    hidden = latent.drivers(profile("decay"), 3, "BTCUSDT", DAY)
    assert len(regimes) == 1 + np.count_nonzero(np.diff(hidden.regime[:-1]))
    assert regimes[0]["t_ns"] == day_start_ns(DAY)
    jumps = [row["value"] for row in log if row["what"] == "jump"]
    assert len(jumps) == np.count_nonzero(hidden.jumps)
    assert sum(jumps) == pytest.approx(hidden.jumps.sum() * 1e4)


def test_fee_changes_are_in_the_log_alone() -> None:
    log = tables.planted_log(profile("confounded"), 3, "BTCUSDT", "2026-03-09").to_pylist()
    assert [r["value"] for r in log if r["note"].startswith("fee")] == [7.5]


def correlations(seed: int, day: str) -> dict[str, float]:
    table = tables.decoys(profile("default"), seed, "BTCUSDT", day)
    log = latent.drivers(profile("default"), seed, "BTCUSDT", day).log_price[10::10]
    move = log[61:] - log[1:-60]
    columns = table.column_names[1:]
    return {
        name: float(np.corrcoef(table[name].to_numpy()[: len(move)], move)[0, 1])
        for name in columns
    }


def test_decoys_have_their_stated_correlations() -> None:
    early, late = correlations(4, "2026-03-02"), correlations(4, "2026-03-12")
    noise = [name for name in early if name.startswith("noise")]
    assert len(noise) >= 20
    # An hour's half-life leaves a day with a dozen independent values.
    assert max(abs(early[name]) for name in noise) < 0.15
    assert early["in_sample_1"] == pytest.approx(0.15, abs=0.03)
    assert abs(late["in_sample_1"]) < 0.03
    assert early["in_sample_2"] > 0.03
    assert abs(late["in_sample_2"]) < 0.03
    assert early["leaky"] == pytest.approx(0.5, abs=0.05)
    assert late["leaky"] == pytest.approx(0.5, abs=0.05)


def test_ground_truth_is_written_beside_the_data(tmp_path: Path) -> None:
    lake = Lake(tmp_path, "synthetic")
    write_truth(lake, profile("default"), 7, "BTCUSDT", DAY)
    for name in ("truth", "planted", "decoys"):
        assert lake.is_current(name, "BTCUSDT", DAY)
        assert lake.metadata(name, "BTCUSDT", DAY)["profile"] == "default"
    assert lake.rows("truth", "BTCUSDT", DAY) == lake.rows("decoys", "BTCUSDT", DAY) == 86_400
    with pytest.raises(LakeError, match="holds recorded data"):
        write_truth(Lake(tmp_path / "r", "recorded"), profile("default"), 7, "BTCUSDT", DAY)
