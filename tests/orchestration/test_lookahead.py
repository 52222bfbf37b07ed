"""The probes distinguish a backtest that looks ahead from one that does not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from live.decisions import Decision
from market.lake import Lake
from orchestration.backtest import lookahead
from orchestration.backtest.lookahead import Innovations, RunDigest, probe, verdict
from orchestration.backtest.span import instant_text
from tests.live.live_market import live_settings, promote
from tests.live.warm import S, minutes, write

T0 = 1_700_000_000 * S


def decision(t_ns: int, expected_bps: float, mid: float) -> Decision:
    return Decision(
        symbol="BTCUSDT", t_ns=t_ns, model_version="1", bundle_sha="", expected_bps=expected_bps,
        raw_bps=expected_bps, by_horizon=(), regime="all", warm=True, target=0, position_lots=0,
        cost_bps=0.0, mid=mid, spread_bps=0.0, vector=np.zeros(2),
    )  # fmt: skip


def innovations(lead_s: int, momentum: float, seed: int, persistence: float = 0.0) -> Innovations:
    """A market whose expectation follows the second that has passed, ``lead_s`` bars early."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    returns = generator.normal(size=3_000)
    flow = momentum * returns + generator.normal(size=3_000)
    expected = np.zeros(3_000)
    for n in range(1, 3_000):
        expected[n] = persistence * expected[n - 1] + flow[n]
    mids = 60_000 * np.exp(np.cumsum(returns) * 1e-5)
    collected = Innovations()
    for n in range(2_990):
        collected.decided(decision(T0 + n * S, float(expected[n + lead_s]), float(mids[n])))
    return collected


@pytest.mark.parametrize("persistence", [0.0, 0.95])
@pytest.mark.parametrize("momentum", [1.0, -1.0])
def test_features_one_bar_early_show_in_their_innovations(
    momentum: float, persistence: float
) -> None:
    unshifted = innovations(0, momentum, 1, persistence).contrast(7)
    assert verdict(unshifted["z"]) == "clean"
    assert abs(unshifted["past"]) == pytest.approx(0.5**0.5, abs=0.05)
    assert abs(unshifted["next"]) < 0.05
    assert verdict(innovations(1, momentum, 1, persistence).contrast(7)["z"]) == "LOOKS AHEAD"


def test_innovations_without_information_give_no_verdict() -> None:
    assert verdict(innovations(0, 0.0, 2).contrast(7)["z"]) == "cannot tell"
    assert verdict(Innovations().contrast(7)["z"]) == "cannot tell"


def test_a_digest_covers_the_records_before_an_instant_alone() -> None:
    cut = T0 + 5 * S
    whole, part, other = RunDigest([cut]), RunDigest([cut]), RunDigest([cut])
    for n in range(10):
        whole.decided(decision(T0 + n * S, n, 1.0))
        if n < 5:
            part.decided(decision(T0 + n * S, n, 1.0))
            other.decided(decision(T0 + n * S, n + (n == 4) * 1e-12, 1.0))
    assert whole.before(cut) == part.before(cut) != other.before(cut)


def test_a_truncated_run_repeats_the_records_of_the_whole_one(
    data_dir: Path, tmp_path: Path
) -> None:
    """On a recording, with orders in flight at the cuts."""
    promote(tmp_path, name="btc-l2", source="recorded", follows="ofi_now")
    settings = msgspec.structs.replace(live_settings(tmp_path), source="recorded")
    market = minutes(data_dir / "usdm-20240808.frames.zst", 30)
    write(Lake(tmp_path, "recorded"), market)
    report = probe(settings, first=instant_text(market.start_ns).replace(" ", "T"), truncations=2)
    assert [row["same"] for row in report["truncated"]] == [True, True]
    assert all(row["records"] > 60 for row in report["truncated"])
    assert report["verdict"] == "cannot tell", "half a minute is no evidence"
    assert not report["failed"]
    assert "are the same" in lookahead.report_text(report)
